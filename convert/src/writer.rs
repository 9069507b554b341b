//! Writes a model file: one tensor at a time, into a temporary file that is renamed at the end.
//!
//! The header needs every checksum, so its place is kept free and it is written last. A tensor is
//! encoded in chunks of a few megabytes, the panels of a chunk in parallel; the bytes do not depend on
//! the number of threads. Whatever goes wrong, the temporary file is removed.

use crate::error::ConvertError;
use crate::plan::Plan;
use crate::rows::Rows;
use crate::tokenizer::StoredTokenizer;
use crate::{Cancel, Progress};
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use tidbit_runtime::format::header::{self, hex};
use tidbit_runtime::format::{SourceFile, Stored};
use tidbit_runtime::quant::{PANEL_ROWS, QuantType};
use tidbit_runtime::spec::Spec;

/// Encoded bytes that are held at a time.
const CHUNK: usize = 8 << 20;

/// What is to be written.
pub(crate) struct Job<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) plan: &'a Plan,
    pub(crate) tokenizer: Option<&'a StoredTokenizer>,
    /// Source files, checksums not yet known.
    pub(crate) sources: Vec<SourceFile>,
    pub(crate) cancel: Cancel<'a>,
}

/// Checks that `output` can be written before anything is read.
pub(crate) fn check_output<'a>(output: &Path, mut inputs: impl Iterator<Item = &'a Path>) -> Result<(), ConvertError> {
    let error = |reason: String| Err(ConvertError::output(output, reason));
    let Some(name) = output.file_name() else { return error("expected the name of a file".into()) };
    let folder = folder_of(output);
    match std::fs::metadata(folder) {
        Ok(about) if about.is_dir() => {}
        Ok(_) => return error(format!("{} is not a folder", folder.display())),
        Err(e) => return error(format!("cannot write into the folder {}: {e}", folder.display())),
    }
    match std::fs::metadata(output) {
        Ok(about) if about.is_dir() => return error("is a folder, expected the name of a file".into()),
        Ok(about) if !about.is_file() => return error("is a special file, expected the name of a file".into()),
        // A link whose target is missing, or no file yet.
        _ => {}
    }
    let place = |path: &Path| std::fs::canonicalize(path).ok();
    let same = |input: &Path| {
        place(output).is_some_and(|o| Some(o) == place(input))
            || (input.file_name() == Some(name) && place(folder_of(input)) == place(folder))
    };
    match inputs.find(|input| same(input)) {
        Some(input) => error(format!("is also an input ({}), it would be overwritten", input.display())),
        None => Ok(()),
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes the file. `produce` gives the rows of tensor `i` of the plan; `hashed` gives the source
/// files with their checksums, at the end. Returns the file's length.
pub(crate) fn write(
    job: Job<'_>,
    output: &Path,
    progress: &mut dyn Progress,
    produce: &mut dyn FnMut(usize) -> Result<Box<dyn Rows>, ConvertError>,
    hashed: impl FnOnce() -> Result<Vec<SourceFile>, ConvertError>,
) -> Result<u64, ConvertError> {
    let name = output.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!(".{name}.");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(".part");
    #[cfg(unix)]
    {
        // As any new file: what the umask leaves of it, not the private mode of temporary files.
        use std::os::unix::fs::PermissionsExt as _;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let mut file = builder.tempfile_in(folder_of(output)).map_err(ConvertError::io(output))?;
    let length = write_model(job, file.as_file_mut(), output, progress, produce, hashed)?;
    file.as_file().sync_all().map_err(ConvertError::io(output))?;
    file.persist(output).map_err(|e| ConvertError::io(output)(e.error))?;
    Ok(length)
}

/// Writes the model into `out`; `output` only names it in messages.
fn write_model<W: Write + Seek>(
    job: Job<'_>,
    out: &mut W,
    output: &Path,
    progress: &mut dyn Progress,
    produce: &mut dyn FnMut(usize) -> Result<Box<dyn Rows>, ConvertError>,
    hashed: impl FnOnce() -> Result<Vec<SourceFile>, ConvertError>,
) -> Result<u64, ConvertError> {
    let Job { spec, plan, tokenizer, sources, cancel } = job;
    let encode_header = |sources: Vec<SourceFile>, records: &[_]| {
        header::encode(spec, &plan.provenance(sources), records).map_err(|e| ConvertError::output(output, e))
    };
    let mut records = plan.records(tokenizer);
    let reserved = encode_header(sources, &records)?.len() as u64;
    out.seek(SeekFrom::Start(reserved)).map_err(ConvertError::io(output))?;

    progress.begin(plan.source_bytes, plan.tensors.len());
    let mut sink = Sink { out, output, hasher: Sha256::new(), bytes: 0 };
    for (i, tensor) in plan.tensors.iter().enumerate() {
        cancel.check()?;
        let rows = produce(i)?;
        match (tensor.stored, tensor.shape.as_slice()) {
            (Stored::Matrix(quant), &[n, cols]) => write_matrix(&*rows, quant, [n, cols], &mut sink, cancel)?,
            (Stored::Vector, &[n]) => write_vector(&*rows, n, &mut sink)?,
            (stored, shape) => unreachable!("{stored} of shape {shape:?} is never planned"),
        }
        let hash = sink.finish_tensor(tensor.bytes);
        if let Some((_, record)) = records.get_mut(i) {
            record.sha256 = hash;
        }
        progress.tensor(&tensor.name, tensor.source_bytes);
    }
    if let (Some(StoredTokenizer { bytes, .. }), Some((_, record))) = (tokenizer, records.last_mut()) {
        sink.put(bytes)?;
        sink.put(&vec![0; plan.tokenizer_bytes as usize - bytes.len()])?;
        record.sha256 = sink.finish_tensor(plan.tokenizer_bytes);
    }

    let header = encode_header(hashed()?, &records)?;
    cancel.check()?;
    if header.len() as u64 != reserved {
        let reason = "an input file changed while it was read";
        return Err(ConvertError::output(output, reason));
    }
    out.seek(SeekFrom::Start(0)).map_err(ConvertError::io(output))?;
    out.write_all(&header).map_err(ConvertError::io(output))?;
    out.flush().map_err(ConvertError::io(output))?;
    progress.end();
    Ok(plan.file_bytes)
}

/// Writes bytes and remembers their checksum.
struct Sink<'a, W> {
    out: &'a mut W,
    output: &'a Path,
    hasher: Sha256,
    bytes: u64,
}

impl<W: Write> Sink<'_, W> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), ConvertError> {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes).map_err(ConvertError::io(self.output))
    }

    /// The checksum of what was written since the last call.
    fn finish_tensor(&mut self, expected: u64) -> String {
        assert_eq!(std::mem::take(&mut self.bytes), expected, "bytes written and planned");
        hex(&std::mem::take(&mut self.hasher).finalize())
    }
}

fn write_vector<W: Write>(rows: &dyn Rows, n: usize, sink: &mut Sink<'_, W>) -> Result<(), ConvertError> {
    let mut values = vec![0.0f32; n];
    rows.fill(0, 1, &mut values);
    if let Some(at) = values.iter().position(|v| !v.is_finite()) {
        return Err(rows.refuse(at, 0, values[at], Stored::Vector));
    }
    values.resize(n.next_multiple_of(PANEL_ROWS), 0.0);
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    sink.put(&bytes)
}

fn write_matrix<W: Write>(
    rows: &dyn Rows,
    quant: QuantType,
    [n, cols]: [usize; 2],
    sink: &mut Sink<'_, W>,
    cancel: Cancel<'_>,
) -> Result<(), ConvertError> {
    let panel_bytes = quant.panel_bytes(cols).expect("the plan has this size");
    let panels = n.div_ceil(PANEL_ROWS);
    let per_chunk = (CHUNK / panel_bytes).clamp(1, panels);
    let mut chunk = vec![0; per_chunk * panel_bytes];
    for start in (0..panels).step_by(per_chunk) {
        cancel.check()?;
        let chunk = &mut chunk[..(panels - start).min(per_chunk) * panel_bytes];
        // Collected in order, so that the first error does not depend on the threads.
        let results: Vec<Result<(), ConvertError>> = chunk
            .par_chunks_exact_mut(panel_bytes)
            .enumerate()
            .map_init(
                || vec![0.0f32; PANEL_ROWS * cols],
                |values, (i, panel)| {
                    let first = (start + i) * PANEL_ROWS;
                    let (used, padding) = values.split_at_mut((n - first).min(PANEL_ROWS) * cols);
                    rows.fill(first, cols, used);
                    padding.fill(0.0);
                    quant
                        .encode_panel(values, cols, panel)
                        .map_err(|e| rows.refuse(first + e.row, e.col, e.value, Stored::Matrix(quant)))
                },
            )
            .collect();
        results.into_iter().collect::<Result<(), _>>()?;
        sink.put(chunk)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::RandomRows;
    use std::io;
    use tidbit_runtime::spec;

    /// A disk with room for so many bytes.
    struct Disk(usize);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.0.checked_sub(bytes.len()) {
                Some(left) => self.0 = left,
                None => return Err(io::ErrorKind::StorageFull.into()),
            }
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Seek for Disk {
        fn seek(&mut self, _: SeekFrom) -> io::Result<u64> {
            Ok(0)
        }
    }

    #[test]
    fn a_full_disk_names_the_output() {
        let spec = crate::spec_from_json("c", TINY).unwrap().0;
        let n = spec.tensors().len();
        let plan = Plan::new(&spec, QuantType::Q8, &vec![0; n], None, &[]).unwrap();
        let attempt = |room: usize| {
            let job = Job { spec: &spec, plan: &plan, tokenizer: None, sources: Vec::new(), cancel: Cancel(None) };
            let mut produce =
                |i: usize| Ok(Box::new(RandomRows::new(1, i, spec::Role::Projection, "")) as Box<dyn Rows>);
            write_model(job, &mut Disk(room), Path::new("out.tidbit"), &mut (), &mut produce, || Ok(Vec::new()))
        };
        let needed = plan.file_bytes as usize;
        assert_eq!(attempt(needed).unwrap(), plan.file_bytes);
        for room in [0, 1000, needed / 2, needed - 1] {
            let message = attempt(room).unwrap_err().to_string();
            assert!(message.starts_with("out.tidbit: ") && message.contains("no storage space"), "{message}");
        }
    }

    const TINY: &str = r#"{"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 40}"#;
}
