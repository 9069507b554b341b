//! Opening a checkpoint, and converting it.

use crate::calibrate::{self, Calibrator, Journal};
use crate::checkpoint::{Layout, Weights, gguf, read_range, read_small};
use crate::error::{ConvertError, shown};
use crate::family::{self, Described};
use crate::generation;
use crate::mapping::{self, Mapped, Mapping, Part};
use crate::plan::{NO_HASH, Plan};
use crate::random::RandomRows;
use crate::rows::{SourceRows, element};
use crate::sentence;
use crate::stream::{self, Buffer, Loaded, Schedule, Wanted};
use crate::tokenizer::{self, StoredTokenizer};
use crate::writer::{self, Content, Job};
use crate::{Calibration, Cancel, Options, Progress, Report, Target};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use tidbit_runtime::format::{SourceFile, Stored};
use tidbit_runtime::kernels;
use tidbit_runtime::model::Model;
use tidbit_runtime::quant::QuantType;
use tidbit_runtime::spec::{Head, Spec};

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
    /// Opens a checkpoint: a folder with `config.json` and weights, one of its weight files, or a GGUF file.
    ///
    /// # Errors
    /// The first thing that is missing, damaged or not supported.
    pub fn open(path: &Path) -> Result<Self, ConvertError> {
        if gguf::is_gguf(path) {
            return Self::open_gguf(path);
        }
        let layout = Layout::find(path, None)?;
        let mut described = family::read_config(&layout.config.display().to_string(), &read_small(&layout.config)?)?;
        let generation = generation::read(&layout.folder, &mut described.spec)?;
        let mut files = sentence::read_pooling(&layout.folder, &mut described.spec)?;
        files.extend(generation);
        let (weights, index) = layout.open()?;
        Self::with(&layout, described, (weights, index), files)
    }

    /// Opens weights of which another file says what they are: a spec file (`.yaml`, `.yml`), or a `config.json`. Tensors have
    /// the names of the model file, whatever the family. A tokenizer beside the weights is taken.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_described(weights: &Path, spec: &Path) -> Result<Self, ConvertError> {
        if gguf::is_gguf(weights) {
            return Err(ConvertError::container(
                weights,
                "a GGUF file describes itself, expected no other description",
            ));
        }
        let mut described = family::read_described(spec)?;
        let layout = Layout::find(weights, Some(spec))?;
        let (weights, index) = layout.open()?;
        described.family = family::spec_file::family_of(&weights);
        described.said_by = family::spec_file::SAID_BY;
        Self::with(&layout, described, (weights, index), Vec::new())
    }

    /// What both have in common. `more` are files that decide the content, too.
    fn with(
        layout: &Layout,
        mut described: Described,
        (weights, index): (Weights, Option<PathBuf>),
        more: Vec<PathBuf>,
    ) -> Result<Self, ConvertError> {
        let mut mapping = mapping::map(&described, &weights)?;
        let tokenizer = tokenizer::load(&layout.folder, described.spec.vocab_size)?;

        let mut warnings = Vec::new();
        if let Some(difference) = differing_head(&mapping, &weights)? {
            let difference = format!("{}, but {difference}", described.says_tied(true));
            if described.by_spec_file() {
                return Err(ConvertError::config(&layout.config.display().to_string(), difference));
            }
            warnings.push(format!("{}: {difference}: both are used", layout.config.display()));
            described.spec.head = Head::Untied;
            mapping = mapping::map(&described, &weights)?;
        }
        if !described.left.unknown.is_empty() {
            let names = described.left.unknown.join(", ");
            warnings.push(format!("{}: unknown fields are ignored: {names}", layout.config.display()));
        }
        if !mapping.left_out.is_empty() {
            let names = mapping.left_out.iter().map(|name| shown(name)).collect::<Vec<_>>().join(", ");
            warnings.push(format!("{}: embeddings do not need and leave out: {names}", layout.folder.display()));
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
        files.extend(more);
        let sources = files.iter().map(|path| unhashed(path)).collect::<Result<_, _>>()?;
        Ok(Self { described, weights, mapping, tokenizer: tokenizer.tokenizer, files, sources, warnings })
    }

    /// Opens a GGUF file, which has all in one.
    fn open_gguf(path: &Path) -> Result<Self, ConvertError> {
        let gguf = gguf::read(path, 0)?;
        let mut described = family::gguf::describe(path, &gguf)?;
        let mut warnings = Vec::new();
        let place = path.display();
        if !described.left.unknown.is_empty() {
            let names = described.left.unknown.join(", ");
            warnings.push(format!("{place}: unknown keys are ignored: {names}"));
        }
        let tokenizer = match tokenizer::gguf::load(path, &gguf.metadata, described.spec.vocab_size)? {
            Ok(tokenizer) => {
                if let Some(reason) = &tokenizer.kept {
                    let slower = "the tokenizer is stored as JSON, which starts slower";
                    warnings.push(format!("{place}: {slower}: {reason}"));
                }
                Some(tokenizer)
            }
            Err(reason) => {
                warnings.push(format!("{place}: {reason}: converted without a tokenizer, it will not take text"));
                None
            }
        };
        let mut lossy: Vec<_> = gguf.tensors.values().filter_map(|t| t.blocks).map(gguf::Blocks::name).collect();
        lossy.sort_unstable();
        lossy.dedup();
        if !lossy.is_empty() {
            let names = lossy.join(" and ");
            warnings.push(format!("{place}: its weights are {names}; all but f32 rounds them a second time"));
        }
        let rest = gguf.metadata.unseen().into_iter().map(|key| shown(&key));
        described.left.ignored.extend(rest);
        let weights = Weights { files: vec![path.into()], tensors: gguf.tensors };
        let mapping = mapping::map(&described, &weights)?;
        let (files, sources) = (weights.files.clone(), vec![unhashed(path)?]);
        Ok(Self { described, weights, mapping, tokenizer, files, sources, warnings })
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
        let source_bytes: Vec<u64> = self.mapping.tensors.iter().map(Mapped::source_bytes).collect();
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
}

/// A head beside a tied embedding may differ from it: transformers then uses both. One line about where, if so.
fn differing_head(mapping: &Mapping, weights: &Weights) -> Result<Option<String>, ConvertError> {
    let (Some(head), Some(embedding)) = (&mapping.spare_head, mapping.tensors.first().and_then(|t| t.parts.first()))
    else {
        return Ok(None);
    };
    let place = |part: &Part| (part.source.file, part.source.offset, part.source.dtype);
    if place(head) == place(embedding) {
        return Ok(None);
    }
    let (elements, cols) = (head.source.elements().unwrap_or(0), head.source.shape.get(1).copied().unwrap_or(1));
    let read = |part: &Part, at: usize, out: &mut [f32]| -> Result<(), ConvertError> {
        let element = element(part.source.dtype);
        let (offset, length) = (part.source.offset + (at * element.bytes()) as u64, out.len() * element.bytes());
        let bytes = read_range(weights.path_of(&part.source), &part.name, offset, length as u64)?;
        for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(element.bytes())) {
            *out = element.read(bytes);
        }
        Ok(())
    };
    let (mut a, mut b) = (vec![0.0; 1 << 18], vec![0.0; 1 << 18]);
    for at in (0..elements).step_by(a.len()) {
        let n = (elements - at).min(a.len());
        read(head, at, &mut a[..n])?;
        read(embedding, at, &mut b[..n])?;
        if let Some(i) = (0..n).find(|&i| a[i].to_bits() != b[i].to_bits()) {
            let (row, col) = ((at + i) / cols, (at + i) % cols);
            return Ok(Some(format!(
                "row {row}, column {col} of `{}` is {}, and {} in `{}`",
                shown(&head.name),
                a[i],
                b[i],
                shown(&embedding.name)
            )));
        }
    }
    Ok(None)
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
    let attention = &checkpoint.spec().attention;
    // The plan lists the same tensors in the same order.
    let mut wanted = Vec::new();
    for (i, tensor) in mapped.iter().enumerate() {
        let parts = tensor.parts.iter().enumerate();
        wanted.extend(parts.map(|(j, part)| Wanted { index: (i, j), name: &part.name, source: &part.source }));
    }
    let schedule = Schedule::new(&checkpoint.files, weights, wanted);
    let room = schedule.room();
    let (send, receive) = mpsc::channel();
    let file_bytes = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            // Moved in: the channel ends with the reader.
            let send = send;
            let read = stream::read(&checkpoint.files, weights, &schedule, &room, &send, cancel);
            read.map_err(|e| send.send(Err(e))).ok()
        });
        // Tensors of which some parts have been read.
        let mut waiting = BTreeMap::<usize, Vec<Option<Buffer>>>::new();
        let mut tensors = receive.into_iter().filter_map(|loaded| {
            let Loaded { index: (i, part), bytes } = match loaded {
                Ok(loaded) => loaded,
                Err(e) => return Some(Err(e)),
            };
            let mut parts = waiting.remove(&i).unwrap_or_else(|| mapped[i].parts.iter().map(|_| None).collect());
            parts[part] = Some(bytes);
            if parts.iter().any(Option::is_none) {
                waiting.insert(i, parts);
                return None;
            }
            let rows = SourceRows::new(weights, &mapped[i], attention, parts.into_iter().flatten().collect());
            Some(Ok((i, Content::Rows(Box::new(rows)))))
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

/// Converts a checkpoint with data: a text runs through the model block by block, and every matrix is rounded so that what it
/// gives changes least. With a [`Target`], each gets the bits that it needs. An f32 copy of the model stands beside the output
/// meanwhile, and every block that is done, in [`journal_folder`](crate::journal_folder): when it was stopped, the same conversion
/// goes on from there. Two conversions to the same output at once are right, but do not help each other.
///
/// The bytes depend on neither the number of threads nor the instruction set.
///
/// # Errors
/// As [`convert`]; and when there is no tokenizer, the text is too short, the target cannot be met, or the model has an encoder.
pub fn convert_calibrated(
    checkpoint: &Checkpoint,
    output: &Path,
    (options, calibration): (&Options, &Calibration),
    progress: &mut dyn Progress,
) -> Result<Report, ConvertError> {
    if checkpoint.spec().encoder.is_some() {
        let reason = "a model with an encoder cannot be calibrated, convert it without a text";
        return Err(ConvertError::container(checkpoint.files.first().map_or(Path::new(""), |p| p), reason));
    }
    writer::check_output(output, checkpoint.files.iter().map(PathBuf::as_path))?;
    let folder = calibrate::journal_folder(output);
    std::fs::create_dir_all(&folder).map_err(ConvertError::io(output))?;
    let done = calibrated(checkpoint, (output, &folder), (options, calibration), progress);
    // All of it once it is done, with what processes that were killed have left; else nothing but an empty folder. What
    // cannot be removed does no harm.
    let _ = if done.is_ok() { std::fs::remove_dir_all(&folder) } else { std::fs::remove_dir(&folder) };
    done
}

/// [`convert_calibrated`]; what is only of use meanwhile is in `folder`.
fn calibrated(
    checkpoint: &Checkpoint,
    (output, folder): (&Path, &Path),
    (options, calibration): (&Options, &Calibration),
    progress: &mut dyn Progress,
) -> Result<Report, ConvertError> {
    let cancel = Cancel(options.cancel.as_deref());
    let exact = tempfile::tempdir_in(folder).map_err(ConvertError::io(output))?;
    let path = exact.path().join("f32.tidbit");
    let as_is = Options { quant: QuantType::F32, cancel: options.cancel.clone() };
    convert(checkpoint, &path, &as_is, &mut ())?;
    let model = Model::open(&path)?;
    let (ids, window) = windows(&model, calibration)?;
    let device = (kernels::active()?, rayon::current_num_threads());

    let mut plan = checkpoint.plan(options.quant)?;
    plan = checkpoint.plan_of(output, &plan, plan.tensors.iter().map(|t| t.stored).collect(), calibration)?;
    if let Some(target) = calibration.target {
        let probe = &ids[..ids.len().min(PROBE_TOKENS).min(window)];
        let step = |done, all| progress.measured(done, all);
        let decides = [&model.file().header_digest()[..], bytemuck::cast_slice(probe)];
        let journal = Journal::new(output, &decides);
        let candidates = calibrate::measure((&model, &plan, &journal), probe, device, cancel, step)?;
        plan = checkpoint.plan_within(output, (target, calibration), &candidates, &plan)?;
    }
    let types: Vec<String> = plan.tensors.iter().map(|t| format!("{} {}", t.name, t.stored)).collect();
    let types = types.join("\n");
    let window_bytes = (window as u64).to_le_bytes();
    let decides = [&model.file().header_digest()[..], bytemuck::cast_slice(&ids), &window_bytes, types.as_bytes()];
    let journal = Journal::new(output, &decides);
    let mut tensors = Calibrator::new((&model, &plan, journal), (&ids, window), device, cancel)?;
    let sources = model.file().provenance().sources.clone();
    let job = Job {
        spec: checkpoint.spec(),
        plan: &plan,
        tokenizer: checkpoint.tokenizer.as_ref(),
        sources: sources.clone(),
        kernels: device.0,
        cancel,
    };
    let file_bytes = writer::write(job, output, progress, &mut tensors, || Ok(sources))?;
    drop(tensors);
    Ok(Report { plan, file_bytes })
}

/// Tokens on which it is measured how much each matrix matters.
const PROBE_TOKENS: usize = 512;

/// The text in whole windows, and their length.
fn windows(model: &Model, calibration: &Calibration) -> Result<(Vec<u32>, usize), ConvertError> {
    let error = |reason: String| ConvertError::container(&calibration.name, reason);
    let tokenizer = model.tokenizer().map_err(|e| error(e.to_string()))?;
    let Some(tokenizer) = tokenizer else {
        return Err(error("the checkpoint has no tokenizer to read it with".into()));
    };
    let mut ids = tokenizer.encode(&calibration.text).map_err(|e| error(e.to_string()))?;
    let window = calibrate::WINDOW.min(model.spec().max_context());
    if calibration.windows == 0 {
        return Err(error("at most 0 windows of it, expected at least one".into()));
    }
    if ids.len() < window {
        return Err(error(format!("has {} tokens, expected at least one window of {window}", ids.len())));
    }
    ids.truncate(ids.len().min(calibration.windows.saturating_mul(window)) / window * window);
    Ok((ids, window))
}

impl Checkpoint {
    /// The plan that meets a target: how many bits each matrix gets is chosen by how much it matters.
    fn plan_within(
        &self,
        output: &Path,
        (target, calibration): (Target, &Calibration),
        candidates: &[calibrate::Candidate],
        uniform: &Plan,
    ) -> Result<Plan, ConvertError> {
        let error = |e: String| ConvertError::output(output, e);
        let matrices: u64 = candidates.iter().map(|c| uniform.tensors[c.tensor].bytes).sum();
        let all: u64 = uniform.tensors.iter().map(|t| t.bytes).sum();
        // What is in the file beside these, and what counts of it.
        let (beside, asked) = match target {
            Target::FileBytes(bytes) => (uniform.file_bytes - matrices, bytes),
            Target::BitsPerWeight(bits) => (all - matrices, (bits * uniform.parameters as f64 / 8.0) as u64),
        };
        let Some(types) = asked.checked_sub(beside).and_then(|room| calibrate::allocate(candidates, room)) else {
            let least = beside + calibrate::least_bytes(candidates);
            return Err(error(match target {
                Target::FileBytes(bytes) => format!("cannot be as small as {bytes} bytes, the least is {least}"),
                Target::BitsPerWeight(bits) => {
                    let least = least as f64 * 8.0 / uniform.parameters as f64;
                    format!(
                        "cannot have as few as {bits} bits per weight, the least is {:.3}",
                        (least * 1e3).ceil() / 1e3
                    )
                }
            }));
        };
        let mut stored: Vec<_> = uniform.tensors.iter().map(|t| t.stored).collect();
        candidates.iter().zip(types).for_each(|(c, quant)| stored[c.tensor] = Stored::Matrix(quant));
        self.plan_of(output, uniform, stored, calibration)
    }

    /// A plan with these types, and a record of the calibration.
    fn plan_of(
        &self,
        output: &Path,
        like: &Plan,
        stored: Vec<Stored>,
        calibration: &Calibration,
    ) -> Result<Plan, ConvertError> {
        let source_bytes: Vec<u64> = like.tensors.iter().map(|t| t.source_bytes).collect();
        let types = (like.quant, stored, Some(calibration.record()));
        Plan::with_types(self.spec(), types, &source_bytes, self.tokenizer.as_ref(), &self.sources)
            .map_err(|e| ConvertError::output(output, e))
    }
}

fn unhashed(path: &Path) -> Result<SourceFile, ConvertError> {
    let bytes = std::fs::metadata(path).map_err(ConvertError::io(path))?.len();
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(SourceFile { name, bytes, sha256: NO_HASH.into() })
}

/// Reads a `tokenizer.json` for [`write_random`].
///
/// # Errors
/// When it is no tokenizer, or has ids that a vocabulary of this size lacks.
pub fn read_tokenizer(path: &Path, vocab_size: usize) -> Result<Vec<u8>, ConvertError> {
    let bytes = read_small(path)?;
    tokenizer::validate(path, &bytes, vocab_size)?;
    Ok(bytes)
}

/// Writes a model of random weights with the spec's shapes: gains near 1, small biases, weights with a
/// deviation of 0.02. The same seed gives the same file. `inputs` are files that must not be overwritten.
///
/// # Errors
/// A spec that does not fit together, or an output that cannot be written.
pub fn write_random(
    spec: &Spec,
    options: &Options,
    tokenizer_json: Option<&[u8]>,
    (output, inputs, seed): (&Path, &[&Path], u64),
) -> Result<Report, ConvertError> {
    let error = |e: String| ConvertError::output(output, e);
    spec.validate().map_err(error)?;
    writer::check_output(output, inputs.iter().copied())?;
    let tensors = spec.tensors();
    let tokenizer = tokenizer_json.map(|json| StoredTokenizer::new(json.to_vec()));
    let plan = Plan::new(spec, options.quant, &vec![0; tensors.len()], tokenizer.as_ref(), &[]).map_err(error)?;
    let mut tensors = tensors
        .iter()
        .enumerate()
        .map(|(i, decl)| Ok((i, Content::Rows(Box::new(RandomRows::new(seed, i, decl.role, &decl.name))))));
    let job = Job {
        spec,
        plan: &plan,
        tokenizer: tokenizer.as_ref(),
        sources: Vec::new(),
        kernels: kernels::active()?,
        cancel: Cancel(options.cancel.as_deref()),
    };
    let file_bytes = writer::write(job, output, &mut (), &mut tensors, || Ok(Vec::new()))?;
    Ok(Report { plan, file_bytes })
}
