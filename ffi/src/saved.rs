//! Sessions to bytes and files, and back.

use crate::guard::guard;
use crate::memory::{self, Buffer, slice};
use crate::objects::{self, tidbit_session};
use crate::session::{Session, State};
use crate::status::{Failure, Outcome, Status, TIDBIT_BAD_SAVE, TIDBIT_IO, TIDBIT_UNSUPPORTED};
use std::ffi::c_char;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use tidbit_runtime::error::{FormatError, SavedError};
use tidbit_runtime::format::open_regular;
use tidbit_runtime::saved::{self, Text};
use tidbit_runtime::tokenizer::TextStream;

impl From<SavedError> for Failure {
    fn from(error: SavedError) -> Self {
        match error {
            SavedError::Session(error) => error.into(),
            SavedError::Encoder => Self::new(TIDBIT_UNSUPPORTED, error.to_string()),
            error => Self::new(TIDBIT_BAD_SAVE, error.to_string()),
        }
    }
}

/// The rest of a buffer of the host.
struct Rest<'a> {
    buffer: &'a Buffer<u8>,
    at: usize,
}

impl Write for Rest<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.put(self.at, bytes);
        self.at += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl State {
    fn save(&self, out: impl Write) -> io::Result<()> {
        let pending = self.stream.pending().to_vec();
        let text = Text { tokens: self.text.clone(), draws: self.sampler.draws(), pending };
        saved::write(&self.sequence, &text, out)
    }

    fn load(&mut self, bytes: &[u8]) -> Outcome {
        let (sequence, text) = saved::read(&self.sequence, bytes)?;
        self.sequence = sequence;
        self.text.clear();
        self.text.extend_from_slice(&text.tokens);
        self.replaced(text.draws, TextStream::with_pending(text.pending));
        Ok(())
    }
}

/// Saves a session to bytes: its text, what the model made of it, and where the random numbers are. Options are not saved.
///
/// Ownership: the buffer stays the caller's. A null buffer of capacity 0 asks for the length. The bytes are the same on every
/// machine.
/// Threads: as `tidbit_session_new`.
/// Errors: `TIDBIT_BUFFER_TOO_SMALL`, with the length in `out_length`; `TIDBIT_UNSUPPORTED` for a model with an encoder;
/// `TIDBIT_BUSY`, `TIDBIT_POISONED`, `TIDBIT_INVALID_HANDLE`, `TIDBIT_INVALID_ARGUMENT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_session_save(
    session: *const tidbit_session,
    buffer: *mut u8,
    capacity: usize,
    out_length: *mut usize,
) -> Status {
    guard(|| {
        // SAFETY: the host vouches for its pointers, as the header asks; here and below.
        let out = unsafe { Buffer::new(buffer, capacity, out_length)? };
        let session = objects::get::<Session>(session)?;
        let state = session.lock()?;
        saved::check(&session.model)?;
        let length = saved::len(&state.sequence, state.text.len());
        out.require(length)?;
        state.save(Rest { buffer: &out, at: 0 }).map_err(|e| Failure::io(&e, "the saved session"))?;
        out.finish(length);
        Ok(())
    })
}

/// Restores a session: its text is replaced by the saved one, and goes on as that would have, if the options that choose
/// tokens are the same.
///
/// The bytes may come from anywhere: they are checked, and must be of the same model and type of cache. The context may be
/// another, if the text fits.
///
/// Ownership: the bytes stay the caller's.
/// Threads: as `tidbit_session_new`.
/// Errors: `TIDBIT_BAD_SAVE`; `TIDBIT_UNSUPPORTED` for a model with an encoder; `TIDBIT_CONTEXT_FULL`; `TIDBIT_OUT_OF_MEMORY`, `TIDBIT_BUSY`, `TIDBIT_POISONED`,
/// `TIDBIT_INVALID_HANDLE`, `TIDBIT_INVALID_ARGUMENT`. The session is then as it was.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_session_load(session: *mut tidbit_session, data: *const u8, length: usize) -> Status {
    guard(|| {
        let session = objects::get::<Session>(session)?;
        // SAFETY: as in `tidbit_session_save`.
        let bytes = unsafe { slice(data, length, "the saved session")? };
        session.lock()?.load(bytes)
    })
}

/// Saves a session to a file, as `tidbit_session_save` does to bytes. The file appears under its name when it is complete; a
/// file of that name is replaced, anything else is not.
///
/// Ownership: the path stays the caller's.
/// Threads: as `tidbit_session_new`.
/// Errors: `TIDBIT_IO`, `TIDBIT_UNSUPPORTED` for a model with an encoder, `TIDBIT_BUSY`, `TIDBIT_POISONED`, `TIDBIT_INVALID_HANDLE`, `TIDBIT_INVALID_ARGUMENT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_session_save_file(
    session: *const tidbit_session,
    path: *const c_char,
    path_length: usize,
) -> Status {
    guard(|| {
        let session = objects::get::<Session>(session)?;
        // SAFETY: as in `tidbit_session_save`.
        let path = unsafe { memory::path(path, path_length)? };
        let state = session.lock()?;
        saved::check(&session.model)?;
        replace(path, |file| {
            let mut out = BufWriter::new(file);
            state.save(&mut out)?;
            out.flush()
        })
    })
}

/// Restores a session from a file, as `tidbit_session_load` does from bytes.
///
/// Ownership: the path stays the caller's.
/// Threads: as `tidbit_session_new`.
/// Errors: as `tidbit_session_load`, and `TIDBIT_IO`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_session_load_file(
    session: *mut tidbit_session,
    path: *const c_char,
    path_length: usize,
) -> Status {
    guard(|| {
        let session = objects::get::<Session>(session)?;
        // SAFETY: as in `tidbit_session_save`.
        let path = unsafe { memory::path(path, path_length)? };
        let mut state = session.lock()?;
        let bytes = read(path, saved::most(&state.sequence))?;
        state.load(&bytes)
    })
}

/// A regular file of at most `most` bytes.
fn read(path: &Path, most: usize) -> Outcome<Vec<u8>> {
    let io = |e| Failure::io(&e, &path.display().to_string());
    let bad = |message: String| Failure::new(TIDBIT_BAD_SAVE, message);
    let file = open_regular(path).map_err(|error| match error {
        FormatError::NotAFile { found, .. } => {
            bad(format!("{}: expected a saved session, found a {found}", path.display()))
        }
        error => error.into(),
    })?;
    let length = file.metadata().map_err(io)?.len();
    if length > most as u64 {
        return Err(bad(format!("{}: {length} bytes, this session takes at most {most}", path.display())));
    }
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(length as usize).map_err(|_| Failure::memory(length as usize, "the saved session"))?;
    // It may grow meanwhile.
    file.take(length).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

/// Writes a file under another name in the same folder, and renames it when it is complete.
fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> Outcome {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let io = |e: io::Error| Failure::io(&e, &path.display().to_string());
    if std::fs::symlink_metadata(path).is_ok_and(|existing| !existing.is_file()) {
        let message = format!("{}: something else than a file has this name", path.display());
        return Err(Failure::new(TIDBIT_IO, message));
    }
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}-{count}.part", std::process::id()));
    let part = PathBuf::from(name);
    let mut file = OpenOptions::new().write(true).create_new(true).open(&part).map_err(io)?;
    let result = write(&mut file).and_then(|()| file.sync_all()).and_then(|()| std::fs::rename(&part, path));
    if result.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    result.map_err(io)
}
