//! Writes a model file: one tensor at a time, into a temporary file that is renamed at the end.
//!
//! Tensors come in any order, each goes to its place. The header needs every checksum, so its place is kept free and it is
//! written last. A tensor is encoded in chunks of a few megabytes, the panels of a chunk in parallel; the bytes do not
//! depend on the number of threads. What has been written is sent to the disk meanwhile: waiting for all of it at the end
//! took a third of a conversion. Whatever goes wrong, the temporary file is removed.

use crate::error::ConvertError;
use crate::plan::Plan;
use crate::rows::{Rows, Scratch};
use crate::tokenizer::StoredTokenizer;
use crate::{Cancel, Progress};
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::mpsc::{self, SyncSender};
use tidbit_runtime::format::header::{self, hex};
use tidbit_runtime::format::{SourceFile, Stored};
use tidbit_runtime::kernels::Kernels;
use tidbit_runtime::quant::{PANEL_ROWS, QuantType};
use tidbit_runtime::spec::Spec;

/// Encoded bytes that are held at a time.
const CHUNK: usize = 8 << 20;
/// Panels that a thread encodes together: where a source has them column by column, they share its lines and pages.
const TOGETHER: usize = 4;
/// Written bytes after which the disk is given them.
const FLUSH: u64 = 32 << 20;

/// What a tensor is made of.
pub(crate) enum Content {
    /// Rows to be encoded as the plan says.
    Rows(Box<dyn Rows>),
    /// The bytes of a matrix, as the file has them.
    Encoded(Vec<u8>),
}

/// A tensor's number in the plan, and its content.
pub(crate) type Tensor = Result<(usize, Content), ConvertError>;

/// What is to be written.
pub(crate) struct Job<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) plan: &'a Plan,
    pub(crate) tokenizer: Option<&'a StoredTokenizer>,
    /// Source files, checksums not yet known.
    pub(crate) sources: Vec<SourceFile>,
    pub(crate) kernels: Kernels,
    pub(crate) cancel: Cancel<'a>,
}

/// Checks that a model file can be written to `output`, before anything is read: its folder is there, it is no folder or special
/// file itself, and none of `inputs`, which renaming the result over it would destroy. What writes models asks here; a caller
/// who reads more files than these functions know of asks first.
///
/// # Errors
/// [`ConvertError::Overwrites`] names the input; else what is in the way.
pub fn check_output<'a>(output: &Path, mut inputs: impl Iterator<Item = &'a Path>) -> Result<(), ConvertError> {
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
        Some(input) => Err(ConvertError::Overwrites { output: output.into(), input: input.into() }),
        None => Ok(()),
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes the file. `tensors` gives every tensor of the plan, in any order; `hashed` gives the source files with their
/// checksums, at the end. Returns the file's length.
pub(crate) fn write(
    job: Job<'_>,
    output: &Path,
    progress: &mut dyn Progress,
    tensors: &mut dyn Iterator<Item = Tensor>,
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
    let disk = file.as_file().try_clone().map_err(ConvertError::io(output))?;
    let (flush, flushes) = mpsc::sync_channel(1);
    let length = std::thread::scope(|scope| {
        let flusher = scope.spawn(move || flushes.iter().try_for_each(|()| disk.sync_data()));
        let target = Target { out: file.as_file_mut(), path: output, flush: &flush };
        let written = write_model(job, target, progress, tensors, hashed);
        drop(flush);
        let flushed = flusher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let length = written?;
        flushed.map(|()| length).map_err(ConvertError::io(output))
    })?;
    file.as_file().sync_all().map_err(ConvertError::io(output))?;
    file.persist(output).map_err(|e| ConvertError::io(output)(e.error))?;
    Ok(length)
}

/// What is written to.
struct Target<'a, W> {
    out: &'a mut W,
    /// Names it in messages.
    path: &'a Path,
    /// Told now and then that there is something for the disk.
    flush: &'a SyncSender<()>,
}

fn write_model<W: Write + Seek>(
    job: Job<'_>,
    target: Target<'_, W>,
    progress: &mut dyn Progress,
    tensors: &mut dyn Iterator<Item = Tensor>,
    hashed: impl FnOnce() -> Result<Vec<SourceFile>, ConvertError>,
) -> Result<u64, ConvertError> {
    let Job { spec, plan, tokenizer, sources, kernels, cancel } = job;
    let output = target.path;
    let encode_header = |sources: Vec<SourceFile>, records: &[_]| {
        let chat = tokenizer.and_then(|t| t.chat.as_ref());
        header::encode(spec, &plan.provenance(sources), chat, records).map_err(|e| ConvertError::output(output, e))
    };
    let mut records = plan.records(tokenizer);
    let reserved = encode_header(sources, &records)?.len() as u64;
    let mut end = reserved;
    let mut places = Vec::new();
    for tensor in &plan.tensors {
        places.push(end);
        end += tensor.bytes;
    }

    progress.begin(plan.source_bytes, plan.tensors.len());
    let mut sink = Sink { target, hasher: Sha256::new(), bytes: 0, unflushed: 0 };
    let mut left = plan.tensors.len();
    loop {
        cancel.check()?;
        let Some(next) = tensors.next() else { break };
        let (i, content) = next?;
        let tensor = &plan.tensors[i];
        sink.seek(places[i])?;
        match (content, tensor.stored, tensor.shape.as_slice()) {
            (Content::Encoded(bytes), _, _) => sink.put(&bytes)?,
            (Content::Rows(rows), Stored::Matrix(quant), &[n, cols]) => {
                write_matrix(&*rows, (kernels, quant), [n, cols], &mut sink, cancel)?;
            }
            (Content::Rows(rows), Stored::Vector, &[n]) => write_vector(&*rows, n, &mut sink)?,
            (_, stored, shape) => unreachable!("{stored} of shape {shape:?} is never planned"),
        }
        records[i].1.sha256 = sink.finish_tensor(tensor.bytes);
        progress.tensor(&tensor.name, tensor.source_bytes);
        left -= 1;
    }
    assert_eq!(left, 0, "tensors that nobody gave");
    if let (Some(StoredTokenizer { bytes, .. }), Some((_, record))) = (tokenizer, records.last_mut()) {
        sink.seek(end)?;
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
    sink.seek(0)?;
    sink.put(&header)?;
    sink.target.out.flush().map_err(ConvertError::io(output))?;
    progress.end();
    Ok(plan.file_bytes)
}

/// Writes bytes and remembers their checksum.
struct Sink<'a, W> {
    target: Target<'a, W>,
    hasher: Sha256,
    bytes: u64,
    unflushed: u64,
}

impl<W: Write + Seek> Sink<'_, W> {
    fn seek(&mut self, place: u64) -> Result<(), ConvertError> {
        let Target { out, path, .. } = &mut self.target;
        out.seek(SeekFrom::Start(place)).map(|_| ()).map_err(ConvertError::io(path))
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), ConvertError> {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        self.unflushed += bytes.len() as u64;
        let Target { out, path, flush } = &mut self.target;
        out.write_all(bytes).map_err(ConvertError::io(path))?;
        // Not while the last flush still goes on; the end of the file waits for all of it.
        if self.unflushed >= FLUSH && flush.try_send(()).is_ok() {
            self.unflushed = 0;
        }
        Ok(())
    }

    /// The checksum of what was written since the last call.
    fn finish_tensor(&mut self, expected: u64) -> String {
        assert_eq!(std::mem::take(&mut self.bytes), expected, "bytes written and planned");
        hex(&std::mem::take(&mut self.hasher).finalize())
    }
}

fn write_vector<W: Write + Seek>(rows: &dyn Rows, n: usize, sink: &mut Sink<'_, W>) -> Result<(), ConvertError> {
    let mut scratch = Scratch::default();
    let source = rows.source(0..n, 1, &mut scratch);
    let mut values: Vec<f32> = (0..n).map(|row| source.at(row, 0)).collect();
    if let Some(at) = values.iter().position(|v| !v.is_finite()) {
        return Err(rows.refuse(at, 0, values[at], Stored::Vector));
    }
    values.resize(n.next_multiple_of(PANEL_ROWS), 0.0);
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    sink.put(&bytes)
}

fn write_matrix<W: Write + Seek>(
    rows: &dyn Rows,
    (kernels, quant): (Kernels, QuantType),
    [n, cols]: [usize; 2],
    sink: &mut Sink<'_, W>,
    cancel: Cancel<'_>,
) -> Result<(), ConvertError> {
    let bytes = quant.matrix_bytes(n, cols).expect("the plan has this size");
    let task_rows = TOGETHER * PANEL_ROWS;
    let task_bytes = bytes / n.div_ceil(PANEL_ROWS) * TOGETHER;
    let chunk_bytes = (CHUNK / task_bytes).max(1) * task_bytes;
    let mut chunk = vec![0; chunk_bytes.min(bytes)];
    for start in (0..bytes).step_by(chunk_bytes) {
        cancel.check()?;
        let chunk = &mut chunk[..(bytes - start).min(chunk_bytes)];
        let encode = |scratch: &mut Scratch, (i, panels): (usize, &mut [u8])| {
            let first = (start / task_bytes + i) * task_rows;
            let range = first..n.min(first + task_rows);
            let shape = [range.len(), cols];
            let source = rows.source(range, cols, scratch);
            let encoded = kernels.encode(quant, &source, shape, panels);
            encoded.map_err(|e| rows.refuse(first + e.row, e.col, e.value, Stored::Matrix(quant)))
        };
        // Collected in order, so that the first error does not depend on the threads.
        let results: Vec<Result<(), ConvertError>> =
            chunk.par_chunks_mut(task_bytes).enumerate().map_init(Scratch::default, encode).collect();
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
    use tidbit_runtime::{kernels, spec};

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
            let job = Job {
                spec: &spec,
                plan: &plan,
                tokenizer: None,
                sources: Vec::new(),
                kernels: kernels::active().unwrap(),
                cancel: Cancel(None),
            };
            let random = |i: usize| Content::Rows(Box::new(RandomRows::new(1, i, spec::Role::Projection, "")));
            let mut tensors = (0..n).map(|i| Ok((i, random(i))));
            let (flush, _flushes) = mpsc::sync_channel(1);
            let target = Target { out: &mut Disk(room), path: Path::new("out.tidbit"), flush: &flush };
            write_model(job, target, &mut (), &mut tensors, || Ok(Vec::new()))
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
