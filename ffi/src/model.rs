//! Models: opened from a path, from an open file, or in memory that the host lends.

use crate::guard::{guard, injected};
use crate::log;
use crate::memory::{self, Out, slice};
use crate::objects::{self, tidbit_model, tidbit_options};
use crate::options::{Access, Settings, settings};
use crate::status::{Failure, Outcome, Status};
use std::ffi::{c_char, c_void};
use std::fs::File;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Instant;
use tidbit_runtime::format::{self, Contents, FilePart, ModelFile};
use tidbit_runtime::model::Model;
use tidbit_runtime::storage::{ALIGN, Bytes, Lender};

/// A function of the host that takes back the memory that it lent: its address, its length in bytes, and what the host gave
/// with the function.
///
/// It is called exactly once for each call of `tidbit_model_open_memory`, also when that fails: as soon as nothing uses the
/// memory any more, on whichever thread was the last to use it. It must return normally and must not call the library.
pub type ReleaseFunction = Option<unsafe extern "C" fn(data: *const u8, length: usize, user_data: *mut c_void)>;

/// What a handle of a model stands for.
pub(crate) struct OpenModel {
    pub(crate) model: Model,
    /// Where the bytes are.
    pub(crate) access: &'static str,
    /// What is told of it by key, made when first asked.
    pub(crate) facts: OnceLock<serde_json::Value>,
}

/// The host's memory. Gives it back when dropped.
#[derive(Debug)]
struct Lent {
    data: *const u8,
    length: usize,
    release: ReleaseFunction,
    user_data: *mut c_void,
}

// SAFETY: the memory is only read, which the host allows on any thread; so it does for calling `release` with `user_data`.
unsafe impl Send for Lent {}
// SAFETY: as above.
unsafe impl Sync for Lent {}

// SAFETY: `data` and `length` do not change, and the host promised not to write there.
unsafe impl Lender for Lent {
    fn bytes(&self) -> &[u8] {
        if self.data.is_null() || self.length > isize::MAX as usize {
            return &[];
        }
        // SAFETY: not null, bytes need no alignment, the length is possible; the host vouches that it is readable until
        // `release`, which only `drop` calls.
        unsafe { std::slice::from_raw_parts(self.data, self.length) }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(release) = self.release {
            // SAFETY: the host vouches for its function; called once, when nothing uses the memory any more.
            unsafe { release(self.data, self.length, self.user_data) };
        }
    }
}

/// How a file is read.
fn file_access(access: Access) -> (format::Access, &'static str) {
    match access {
        Access::Auto | Access::Copy => (format::Access::Copy, "copy"),
        Access::InPlace => (format::Access::Map, "in-place"),
    }
}

/// Bytes of memory that opening a model takes, the file's pages not counted where it is used in place.
fn memory_bytes(contents: &Contents, file_bytes: usize, access: format::Access) -> usize {
    let copied = if access == format::Access::Copy { file_bytes } else { 0 };
    copied.saturating_add(contents.vector_bytes())
}

fn open_file(part: FilePart<'_>, settings: &Settings) -> Outcome<ModelFile> {
    let (access, _) = file_access(settings.access);
    if settings.memory_limit > 0 {
        let contents = Contents::read(part)?;
        settings.check_limit(memory_bytes(&contents, contents.file_bytes(), access), "the model")?;
    }
    Ok(ModelFile::from_file(part, access)?)
}

fn finish(file: ModelFile, access: &'static str, settings: &Settings, started: Instant) -> Outcome<*mut tidbit_model> {
    injected("model_open");
    if settings.verify {
        file.verify()?;
    }
    let model = Model::new(file)?;
    log::info(settings.log, || {
        let (file, time) = (model.file(), started.elapsed());
        format!("{}: opened, {} bytes ({access}), {time:.1?}", file.path().display(), file.len())
    });
    objects::insert(OpenModel { model, access, facts: OnceLock::new() })
}

/// Opens a model file.
///
/// By default the file is read into memory: whatever is done to it afterwards (truncated, rewritten, removed) does not
/// matter. With the option `model.access` set to `in-place` it is mapped instead: opened at once, with its pages shared
/// between processes, and the process ends (SIGBUS) if someone truncates it meanwhile. The path is the system's: UTF-8, or
/// on Unix any bytes without NUL. Directories, pipes and devices are refused without waiting for them.
///
/// Ownership: the caller frees the handle with `tidbit_model_free`; the path stays the caller's. `options` may be null.
/// Threads: any.
/// Errors: `TIDBIT_IO`; `TIDBIT_BAD_MODEL` for what is not a model, or a damaged one; `TIDBIT_UNSUPPORTED` for another
/// version of the format; `TIDBIT_OUT_OF_MEMORY`, also for `memory.limit`; `TIDBIT_INVALID_ARGUMENT`, `TIDBIT_INVALID_HANDLE`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_model_open(
    path: *const c_char,
    path_length: usize,
    options: *const tidbit_options,
    out_model: *mut *mut tidbit_model,
) -> Status {
    guard(|| {
        // SAFETY: the host vouches for its pointers, as the header asks; here and below.
        let out = unsafe { Out::new(out_model, std::ptr::null_mut(), "out_model")? };
        let (started, settings) = (Instant::now(), settings(options)?);
        // SAFETY: as above.
        let path = unsafe { memory::path(path, path_length)? };
        let file = format::open_regular(path)?;
        let file = open_file(FilePart { file: &file, path, offset: 0, len: None }, &settings)?;
        out.set(finish(file, file_access(settings.access).1, &settings, started)?);
        Ok(())
    })
}

/// Opens a model that is a part of an open file: `length` bytes from `offset` on, or all that follow when `length` is 0.
///
/// The file must be a regular one. Its position is neither used nor moved. With `model.access` at `in-place`, `offset` must
/// be a multiple of 64. Everything else is as in `tidbit_model_open`.
///
/// Ownership: the descriptor stays the caller's, who may close it when the call returns.
/// Threads: any.
/// Errors: as `tidbit_model_open`; `TIDBIT_IO` for a descriptor that is not open; `TIDBIT_UNSUPPORTED` on systems without
/// Unix descriptors.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_model_open_fd(
    fd: i32,
    offset: u64,
    length: u64,
    options: *const tidbit_options,
    out_model: *mut *mut tidbit_model,
) -> Status {
    guard(|| {
        // SAFETY: as in `tidbit_model_open`.
        let out = unsafe { Out::new(out_model, std::ptr::null_mut(), "out_model")? };
        let (started, settings) = (Instant::now(), settings(options)?);
        let file = duplicate(fd)?;
        let (name, len) = (format!("descriptor {fd}"), (length > 0).then_some(length));
        let file = open_file(FilePart { file: &file, path: Path::new(&name), offset, len }, &settings)?;
        out.set(finish(file, file_access(settings.access).1, &settings, started)?);
        Ok(())
    })
}

/// The same open file under a descriptor of our own, so that the host may close its own meanwhile.
#[cfg(unix)]
fn duplicate(fd: i32) -> Outcome<File> {
    use std::os::fd::BorrowedFd;
    if fd < 0 {
        return Err(Failure::argument(format!("{fd} is no file descriptor")));
    }
    // SAFETY: not -1, and used for one system call, which answers `EBADF` for a number that is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    borrowed.try_clone_to_owned().map(File::from).map_err(|e| Failure::io(&e, &format!("descriptor {fd}")))
}

#[cfg(not(unix))]
fn duplicate(fd: i32) -> Outcome<File> {
    let message = format!("descriptor {fd}: this system has none");
    Err(Failure::new(crate::status::TIDBIT_UNSUPPORTED, message))
}

/// Opens a model that lies in the caller's memory.
///
/// The memory is used in place where its address is a multiple of 64, and otherwise copied. With the option `model.access`
/// it is always copied (`copy`), or refused when it is not aligned (`in-place`).
///
/// Ownership: the memory is lent. It must stay valid and unchanged until `release` is called, which happens exactly once for
/// every call of this function, whatever it returns (see `tidbit_release_function`). A null `release` is not called: the
/// memory must then outlive the model and everything made of it.
/// Threads: any; `release` may run on any thread that uses the model or a session of it.
/// Errors: as `tidbit_model_open`, without `TIDBIT_IO`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_model_open_memory(
    data: *const u8,
    length: usize,
    release: ReleaseFunction,
    user_data: *mut c_void,
    options: *const tidbit_options,
    out_model: *mut *mut tidbit_model,
) -> Status {
    // First, so that it is given back whatever follows.
    let lent = Lent { data, length, release, user_data };
    guard(move || {
        // SAFETY: as in `tidbit_model_open`.
        let out = unsafe { Out::new(out_model, std::ptr::null_mut(), "out_model")? };
        let (started, settings) = (Instant::now(), settings(options)?);
        // SAFETY: as above. Checks the address and the length.
        let bytes = unsafe { slice(data, length, "the memory")? };
        let path = Path::new("(memory)");
        let aligned = data.align_offset(ALIGN) == 0;
        let copy = match settings.access {
            Access::Copy => true,
            Access::Auto => !aligned,
            Access::InPlace if aligned => false,
            Access::InPlace => {
                return Err(Failure::argument(format!("memory in place must be aligned to {ALIGN} bytes")));
            }
        };
        let access = if copy { format::Access::Copy } else { format::Access::Map };
        let contents = Contents::of_bytes(path, bytes)?;
        settings.check_limit(memory_bytes(&contents, length, access), "the model")?;
        let bytes = if copy {
            let copied = Bytes::try_copy_from(bytes).map_err(|e| Failure::io(&e, "the model"))?;
            drop(lent);
            copied
        } else {
            Bytes::lent(Box::new(lent))
        };
        let file = ModelFile::from_bytes(path, bytes)?;
        out.set(finish(file, if copy { "copy" } else { "in-place" }, &settings, started)?);
        Ok(())
    })
}

/// Says how many bytes of memory opening a model file takes, and making a session of it, before anything is taken: only the
/// header of the file is read.
///
/// Where the file is used in place, its own bytes are not counted. For a session of an opened model, see
/// `tidbit_session_estimate`.
///
/// Ownership: path and options stay the caller's; `options` may be null. Neither place for a result may be.
/// Threads: any.
/// Errors: as `tidbit_model_open`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_model_estimate(
    path: *const c_char,
    path_length: usize,
    options: *const tidbit_options,
    out_model_bytes: *mut u64,
    out_session_bytes: *mut u64,
) -> Status {
    guard(|| {
        // SAFETY: as in `tidbit_model_open`.
        let out_model = unsafe { Out::new(out_model_bytes, 0, "out_model_bytes") };
        // SAFETY: as above. Both before either fails, so that both are 0 then.
        let out_session = unsafe { Out::new(out_session_bytes, 0, "out_session_bytes") };
        let (out_model, out_session) = (out_model?, out_session?);
        let settings = settings(options)?;
        // SAFETY: as above.
        let path = unsafe { memory::path(path, path_length)? };
        let file = format::open_regular(path)?;
        let contents = Contents::read(FilePart { file: &file, path, offset: 0, len: None })?;
        let session = crate::session::memory_bytes(&contents, &settings)?;
        let model = memory_bytes(&contents, contents.file_bytes(), file_access(settings.access).0);
        out_model.set(model as u64);
        out_session.set(session as u64);
        Ok(())
    })
}

/// Makes another handle of the same model, for an owner of its own. Nothing is copied.
///
/// Ownership: each handle is freed by itself, in any order; the model goes with the last handle and the last session.
/// Threads: any.
/// Errors: `TIDBIT_INVALID_HANDLE`, `TIDBIT_INVALID_ARGUMENT`, `TIDBIT_OUT_OF_MEMORY`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_model_share(model: *const tidbit_model, out_model: *mut *mut tidbit_model) -> Status {
    guard(|| {
        // SAFETY: as in `tidbit_model_open`.
        let out = unsafe { Out::new(out_model, std::ptr::null_mut(), "out_model")? };
        let model = objects::get::<OpenModel>(model)?;
        let other = OpenModel { model: model.model.clone(), access: model.access, facts: OnceLock::new() };
        out.set(objects::insert(other)?);
        Ok(())
    })
}

/// Reads the whole model and compares its checksums. They find damage, not forgery.
///
/// Threads: any.
/// Errors: `TIDBIT_BAD_MODEL` for the first part that is not what was written; `TIDBIT_OUT_OF_MEMORY`, `TIDBIT_INVALID_HANDLE`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_model_verify(model: *const tidbit_model) -> Status {
    guard(|| {
        let model = objects::get::<OpenModel>(model)?;
        model.model.file().verify()?;
        // What only encoding needs of the tokenizer is checked by the first text.
        if let Some(tokenizer) = model.model.tokenizer()? {
            tokenizer.encode("")?;
        }
        Ok(())
    })
}

/// Frees a handle of a model. Null is nothing to free. Sessions and decoders of the model stay as they are.
///
/// Threads: any.
/// Errors: `TIDBIT_INVALID_HANDLE`, also when it is freed twice.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_model_free(model: *mut tidbit_model) -> Status {
    guard(|| objects::free::<OpenModel>(model, |_| {}))
}
