//! Opening a checkpoint, and converting it.

use crate::checkpoint::{Layout, SourceTensor, Weights, read_range, read_small};
use crate::error::{ConvertError, HEAD_DIFFERS};
use crate::family::{self, Described};
use crate::mapping::{self, Mapping};
use crate::plan::{NO_HASH, Plan};
use crate::random::RandomRows;
use crate::rows::{Rows, SourceRows, element};
use crate::stream::{self, Loaded, Room, Wanted};
use crate::tokenizer::{self, StoredTokenizer};
use crate::writer::{self, Job};
use crate::{Cancel, Options, Progress, Report};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use tidbit_runtime::format::SourceFile;
use tidbit_runtime::kernels;
use tidbit_runtime::quant::QuantType;
use tidbit_runtime::spec::Spec;

/// A checkpoint whose config, tensor table and tokenizer have been read and agree. No weight has been
/// read yet.
#[derive(Debug)]
pub struct Checkpoint {
    described: Described,
    weights: Weights,
    mapping: Mapping,
    tokenizer: Option<StoredTokenizer>,
    files: Vec<PathBuf>,
    sources: Vec<SourceFile>,
    warnings: Vec<String>,
}

impl Checkpoint {
    /// Opens a checkpoint: a folder with `config.json` and weights, or one of its weight files.
    ///
    /// # Errors
    /// The first thing that is missing, damaged or not supported.
    pub fn open(path: &Path) -> Result<Self, ConvertError> {
        let layout = Layout::find(path)?;
        let described = family::read_config(&layout.config.display().to_string(), &read_small(&layout.config)?)?;
        let (weights, index) = layout.open()?;
        let mapping = mapping::map(&described, &weights)?;
        let tokenizer = tokenizer::load(&layout.folder, described.spec.vocab_size)?;

        let mut warnings = Vec::new();
        if !described.left.unknown.is_empty() {
            let names = described.left.unknown.join(", ");
            warnings.push(format!("{}: unknown fields are ignored: {names}", layout.config.display()));
        }
        if let Some(reason) = tokenizer.tokenizer.as_ref().and_then(|t| t.kept.as_ref()) {
            let folder = layout.folder.display();
            warnings.push(format!("{folder}: the tokenizer is stored as JSON, which starts slower: {reason}"));
        }
        if tokenizer.tokenizer.is_none() {
            let folder = layout.folder.display();
            warnings.push(format!(
                "{folder}: no tokenizer.json, nor vocab.json and merges.txt: the model will not take text"
            ));
        }
        let mut files = vec![layout.config.clone()];
        files.extend(index);
        files.extend(weights.files.iter().cloned());
        files.extend(tokenizer.files);
        let sources = files.iter().map(|path| unhashed(path)).collect::<Result<_, _>>()?;
        Ok(Self { described, weights, mapping, tokenizer: tokenizer.tokenizer, files, sources, warnings })
    }

    /// The architecture.
    pub fn spec(&self) -> &Spec {
        &self.described.spec
    }

    /// What converting it to `quant` would write.
    ///
    /// # Errors
    /// When a size overflows.
    pub fn plan(&self, quant: QuantType) -> Result<Plan, ConvertError> {
        let source_bytes: Vec<u64> = self.mapping.tensors.iter().map(|t| t.source.bytes().unwrap_or(0)).collect();
        Plan::new(self.spec(), quant, &source_bytes, self.tokenizer.as_ref(), &self.sources)
            .map_err(|e| ConvertError::container(self.files.first().map_or(Path::new(""), |p| p), e))
    }

    /// Every source file that decides the content of the result.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Fields of the config that were not needed.
    pub fn ignored_fields(&self) -> &[String] {
        &self.described.left.ignored
    }

    /// What the user should know, one line each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Whether the model will have a tokenizer.
    pub fn has_tokenizer(&self) -> bool {
        self.tokenizer.is_some()
    }

    /// A head beside a tied embedding must equal it: older versions of transformers would use the
    /// embedding, newer ones the head, so a different one has no right answer.
    fn check_spare_head(&self, cancel: Cancel<'_>) -> Result<(), ConvertError> {
        let (Some((name, head)), Some(embedding)) = (&self.mapping.spare_head, self.mapping.tensors.first()) else {
            return Ok(());
        };
        if (head.file, head.offset, head.dtype)
            == (embedding.source.file, embedding.source.offset, embedding.source.dtype)
        {
            return Ok(());
        }
        let elements = head.elements().unwrap_or(0);
        let path = self.weights.path_of(head);
        let part = |tensor: &SourceTensor, name: &str, at: usize, out: &mut [f32]| -> Result<(), ConvertError> {
            let width = tensor.dtype.bitsize() as u64 / 8;
            let offset = tensor.offset + at as u64 * width;
            let bytes = read_range(self.weights.path_of(tensor), name, offset, out.len() as u64 * width)?;
            let element = element(tensor.dtype);
            for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(element.bytes())) {
                *out = element.read(bytes);
            }
            Ok(())
        };
        let (mut a, mut b) = (vec![0.0; 1 << 18], vec![0.0; 1 << 18]);
        for at in (0..elements).step_by(a.len()) {
            cancel.check()?;
            let n = (elements - at).min(a.len());
            part(head, name, at, &mut a[..n])?;
            part(&embedding.source, &embedding.name, at, &mut b[..n])?;
            if let Some(i) = (0..n).find(|&i| a[i].to_bits() != b[i].to_bits()) {
                let (row, col) = ((at + i) / self.spec().d_model, (at + i) % self.spec().d_model);
                let reason = format!(
                    "{HEAD_DIFFERS}, but row {row}, column {col} is {}, and {} in `{}`",
                    a[i], b[i], embedding.name
                );
                return Err(ConvertError::tensor(path, name, reason));
            }
        }
        Ok(())
    }
}

/// Converts a checkpoint to a model file. Runs on rayon's current thread pool; the bytes do not depend
/// on the number of threads.
///
/// # Errors
/// What is wrong with a weight or the output; [`ConvertError::Cancelled`] when the flag was set. The
/// output is then as it was before.
pub fn convert(
    checkpoint: &Checkpoint,
    output: &Path,
    options: &Options,
    progress: &mut dyn Progress,
) -> Result<Report, ConvertError> {
    let cancel = Cancel(options.cancel.as_deref());
    writer::check_output(output, checkpoint.files.iter().map(PathBuf::as_path))?;
    let plan = checkpoint.plan(options.quant)?;
    checkpoint.check_spare_head(cancel)?;
    let kernels = kernels::active()?;
    let (weights, mapped) = (&checkpoint.weights, &checkpoint.mapping.tensors);
    let job = Job {
        spec: checkpoint.spec(),
        plan: &plan,
        tokenizer: checkpoint.tokenizer.as_ref(),
        sources: checkpoint.sources.clone(),
        kernels,
        cancel,
    };
    let heads = checkpoint.spec().attention.n_heads;
    // The plan lists the same tensors in the same order.
    let wanted =
        mapped.iter().enumerate().map(|(index, t)| Wanted { index, name: &t.name, source: &t.source }).collect();
    let room = Room::new(plan.largest_source_bytes);
    let (send, receive) = mpsc::channel();
    let file_bytes = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            // Moved in: the channel ends with the reader.
            let send = send;
            let read = stream::read(&checkpoint.files, weights, wanted, &room, &send, cancel);
            read.map_err(|e| send.send(Err(e))).ok()
        });
        let mut tensors = receive.into_iter().map(|loaded| {
            let Loaded { index, bytes } = loaded?;
            Ok((index, Box::new(SourceRows::new(weights, &mapped[index], heads, bytes)) as Box<dyn Rows>))
        });
        let sources = || {
            let read = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            read.ok_or(ConvertError::Cancelled)
        };
        let written = writer::write(job, output, progress, &mut tensors, sources);
        room.close();
        written
    })?;
    Ok(Report { plan, file_bytes })
}

fn unhashed(path: &Path) -> Result<SourceFile, ConvertError> {
    let bytes = std::fs::metadata(path).map_err(ConvertError::io(path))?.len();
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(SourceFile { name, bytes, sha256: NO_HASH.into() })
}

/// Writes a model of random weights with the spec's shapes: gains near 1, small biases, weights with a
/// deviation of 0.02. The same seed gives the same file.
///
/// # Errors
/// A spec that does not fit together, or an output that cannot be written.
pub fn write_random(
    spec: &Spec,
    quant: QuantType,
    tokenizer_json: Option<&[u8]>,
    output: &Path,
    seed: u64,
) -> Result<Report, ConvertError> {
    let error = |e: String| ConvertError::output(output, e);
    spec.validate().map_err(error)?;
    writer::check_output(output, std::iter::empty())?;
    let tensors = spec.tensors();
    let tokenizer = tokenizer_json.map(|json| StoredTokenizer::new(json.to_vec()));
    let plan = Plan::new(spec, quant, &vec![0; tensors.len()], tokenizer.as_ref(), &[]).map_err(error)?;
    let mut tensors = tensors.iter().enumerate().map(|(i, decl)| {
        let rows: Box<dyn Rows> = Box::new(RandomRows::new(seed, i, decl.role, &decl.name));
        Ok((i, rows))
    });
    let job = Job {
        spec,
        plan: &plan,
        tokenizer: tokenizer.as_ref(),
        sources: Vec::new(),
        kernels: kernels::active()?,
        cancel: Cancel(None),
    };
    let file_bytes = writer::write(job, output, &mut (), &mut tensors, || Ok(Vec::new()))?;
    Ok(Report { plan, file_bytes })
}
