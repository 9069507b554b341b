//! Writes a model file: one tensor at a time, into a temporary file that is renamed at the end.
//!
//! Tensors come in any order, each goes to its place. The header needs every checksum, so its place is kept free and it is
//! written last. A tensor is encoded in chunks of a few megabytes, the panels of a chunk in parallel; the bytes do not
//! depend on the number of threads. A thread of its own computes checksums and writes, while the next chunk is encoded. What has
//! been written is sent to the disk meanwhile: waiting for all of it at the end took a third of a conversion. Whatever goes
//! wrong, the temporary file is removed.

use crate::disk::{Disk, Target};
use crate::error::ConvertError;
use crate::plan::Plan;
use crate::rows::{Rows, Scratch};
use crate::tokenizer::StoredTokenizer;
use crate::{Cancel, Progress};
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};
use std::io::{Seek, Write};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, SyncSender};
use tidbit_runtime::format::header::{self, hex};
use tidbit_runtime::format::{SourceFile, Stored};
use tidbit_runtime::kernels::Kernels;
use tidbit_runtime::quant::{PANEL_ROWS, QuantType};
use tidbit_runtime::spec::Spec;

/// Encoded bytes of a chunk, unless there are more threads than it has work for. Three chunks are held: one is encoded, one
/// waits, one is written.
const CHUNK: usize = 4 << 20;
/// A chunk does not grow beyond this for the sake of threads.
const MOST_CHUNK: usize = 32 << 20;
/// Buffers that are used again, in bytes.
const KEPT: std::ops::RangeInclusive<usize> = 1 << 20..=MOST_CHUNK;
/// Panels that a thread encodes together: where a source has them column by column, they share its lines and pages.
const TOGETHER: usize = 4;

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

fn write_model<W: Write + Seek + Send>(
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

    let mut sizes: Vec<u64> = plan.tensors.iter().map(|tensor| tensor.bytes).collect();
    if tokenizer.is_some() {
        places.push(end);
        sizes.push(plan.tokenizer_bytes);
        end += plan.tokenizer_bytes;
    }

    progress.begin(plan.source_bytes, plan.tensors.len());
    let mut disk = Disk::new(target, end);
    let checksums = std::thread::scope(|scope| {
        let (send, pieces) = mpsc::sync_channel(1);
        let (give_back, spare) = mpsc::sync_channel(2);
        let (disk, places) = (&mut disk, &places);
        let writer = scope.spawn(move || write_all(disk, places, pieces, &give_back));
        let mut sink = Sink { record: 0, send, spare };
        let encoded = encode_all(plan, kernels, &mut sink, progress, tensors, cancel).and_then(|()| {
            let Some(StoredTokenizer { bytes, .. }) = tokenizer else { return Ok(()) };
            sink.record = plan.tensors.len();
            sink.put(bytes.clone())?;
            sink.put(vec![0; plan.tokenizer_bytes as usize - bytes.len()])
        });
        drop(sink);
        let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // What stopped the writer stopped the encoder.
        let checksums = written?;
        match encoded {
            Ok(()) => Ok(checksums),
            Err(Stop::For(e)) => Err(e),
            Err(Stop::Writer) => unreachable!("the writer listens until it fails"),
        }
    })?;
    for (((_, record), expected), (bytes, checksum)) in records.iter_mut().zip(sizes).zip(checksums) {
        assert_eq!(bytes, expected, "bytes written and planned");
        record.sha256 = checksum;
    }

    let header = encode_header(hashed()?, &records)?;
    cancel.check()?;
    if header.len() as u64 != reserved {
        let reason = "an input file changed while it was read";
        return Err(ConvertError::output(output, reason));
    }
    disk.put(0, &header)?;
    disk.finish()?;
    progress.end();
    Ok(plan.file_bytes)
}

/// Encodes every tensor of the plan.
fn encode_all(
    plan: &Plan,
    kernels: Kernels,
    sink: &mut Sink,
    progress: &mut dyn Progress,
    tensors: &mut dyn Iterator<Item = Tensor>,
    cancel: Cancel<'_>,
) -> Result<(), Stop> {
    let mut left = plan.tensors.len();
    loop {
        cancel.check()?;
        let Some(next) = tensors.next() else { break };
        let (i, content) = next?;
        let tensor = &plan.tensors[i];
        sink.record = i;
        match (content, tensor.stored, tensor.shape.as_slice()) {
            (Content::Encoded(bytes), _, _) => sink.put(bytes)?,
            (Content::Rows(rows), Stored::Matrix(quant), &[n, cols]) => {
                write_matrix(&*rows, (kernels, quant), [n, cols], sink, cancel)?;
            }
            (Content::Rows(rows), Stored::Vector, &[n]) => write_vector(&*rows, n, sink)?,
            (_, stored, shape) => unreachable!("{stored} of shape {shape:?} is never planned"),
        }
        progress.tensor(&tensor.name, tensor.source_bytes);
        left -= 1;
    }
    assert_eq!(left, 0, "tensors that nobody gave");
    Ok(())
}

/// Why encoding ended early.
enum Stop {
    For(ConvertError),
    /// The writer has failed, and says why.
    Writer,
}

impl From<ConvertError> for Stop {
    fn from(error: ConvertError) -> Self {
        Self::For(error)
    }
}

/// Hands bytes to the writer.
struct Sink {
    /// The record that they belong to.
    record: usize,
    send: SyncSender<(usize, Vec<u8>)>,
    /// Buffers that have been written: new ones cost a page fault for every 4096 bytes.
    spare: Receiver<Vec<u8>>,
}

impl Sink {
    fn put(&mut self, bytes: Vec<u8>) -> Result<(), Stop> {
        self.send.send((self.record, bytes)).map_err(|_| Stop::Writer)
    }

    /// `length` bytes to be overwritten.
    fn buffer(&mut self, length: usize) -> Vec<u8> {
        let mut buffer = self.spare.try_recv().unwrap_or_default();
        buffer.resize(length, 0);
        buffer
    }
}

/// Gives the disk what comes until nothing more comes: bytes of records, each record's one after the other from its place on. How
/// many there were, and their checksums.
fn write_all<W: Write + Seek>(
    disk: &mut Disk<'_, W>,
    places: &[u64],
    pieces: Receiver<(usize, Vec<u8>)>,
    give_back: &SyncSender<Vec<u8>>,
) -> Result<Vec<(u64, String)>, ConvertError> {
    let mut written: Vec<(u64, Sha256)> = places.iter().map(|_| Default::default()).collect();
    for (record, bytes) in pieces {
        let (length, hasher) = &mut written[record];
        hasher.update(&bytes);
        disk.put(places[record] + *length, &bytes)?;
        *length += bytes.len() as u64;
        if KEPT.contains(&bytes.capacity()) {
            // Enough are waiting, or whoever encodes has ended.
            let _ = give_back.try_send(bytes);
        }
    }
    Ok(written.into_iter().map(|(length, hasher)| (length, hex(&hasher.finalize()))).collect())
}

fn write_vector(rows: &dyn Rows, n: usize, sink: &mut Sink) -> Result<(), Stop> {
    let mut scratch = Scratch::default();
    let source = rows.source(0..n, 1, &mut scratch);
    let mut values: Vec<f32> = (0..n).map(|row| source.at(row, 0)).collect();
    if let Some(at) = values.iter().position(|v| !v.is_finite()) {
        return Err(rows.refuse(at, 0, values[at], Stored::Vector).into());
    }
    values.resize(n.next_multiple_of(PANEL_ROWS), 0.0);
    sink.put(values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

fn write_matrix(
    rows: &dyn Rows,
    (kernels, quant): (Kernels, QuantType),
    [n, cols]: [usize; 2],
    sink: &mut Sink,
    cancel: Cancel<'_>,
) -> Result<(), Stop> {
    let bytes = quant.matrix_bytes(n, cols).expect("the plan has this size");
    let task_rows = TOGETHER * PANEL_ROWS;
    let task_bytes = bytes / n.div_ceil(PANEL_ROWS) * TOGETHER;
    let for_threads = rayon::current_num_threads().min(MOST_CHUNK / task_bytes);
    let chunk_bytes = (CHUNK / task_bytes).max(for_threads).max(1) * task_bytes;
    for start in (0..bytes).step_by(chunk_bytes) {
        cancel.check()?;
        let mut chunk = sink.buffer((bytes - start).min(chunk_bytes));
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
    struct Small(usize);

    impl Write for Small {
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

    impl Seek for Small {
        fn seek(&mut self, _: io::SeekFrom) -> io::Result<u64> {
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
            let target = Target { out: &mut Small(room), path: Path::new("out.tidbit"), flush: &flush };
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
