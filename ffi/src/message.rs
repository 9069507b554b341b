//! The message of the last failure, one for each thread.

use crate::status::{ALL, Status};
use std::cell::RefCell;
use std::ffi::c_char;

thread_local! {
    /// UTF-8 that ends in NUL; empty before the first failure.
    static LAST: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Keeps `message` for the calling thread.
pub(crate) fn set(message: &str) {
    // A thread that is ending may have no place left for it; the status says enough then.
    let _ = LAST.try_with(|last| {
        if let Ok(mut last) = last.try_borrow_mut() {
            last.clear();
            // C would take a NUL inside for the end.
            last.extend(message.bytes().map(|byte| if byte == 0 { b' ' } else { byte }));
            last.push(0);
        }
    });
}

/// What went wrong in the last call of this thread that failed: one line of UTF-8, ending in NUL.
///
/// `out_length`, unless it is null, gets its length without the NUL. Before the first failure the text is empty; a call
/// that works leaves it as it is.
///
/// Ownership: the text belongs to the library and stays valid until the next call of any function by this thread, or until
/// the thread ends.
/// Threads: any; each thread sees its own failures only.
/// Errors: none; never null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_last_error(out_length: *mut usize) -> *const c_char {
    let (text, length) = LAST
        .try_with(|last| match last.try_borrow() {
            // Only this thread changes the text, in a later call.
            Ok(last) if !last.is_empty() => (last.as_ptr().cast::<c_char>(), last.len() - 1),
            _ => (c"".as_ptr(), 0),
        })
        .unwrap_or((c"".as_ptr(), 0));
    if !out_length.is_null() {
        // SAFETY: the caller gives null or a place for one number.
        unsafe { out_length.write(length) };
    }
    text
}

/// The name of a status, for example `context full`: UTF-8, ending in NUL. `unknown status` for a number that this
/// version does not know.
///
/// Ownership: static; valid as long as the library is loaded.
/// Threads: any.
/// Errors: none; never null.
#[unsafe(no_mangle)]
pub extern "C" fn tidbit_status_name(status: Status) -> *const c_char {
    let name = ALL.iter().find(|(code, _)| *code == status).map_or("unknown status\0", |(_, name)| name);
    name.as_ptr().cast()
}
