//! The C library: what other languages call.
//!
//! So far it only says its version; models and sessions follow. `include/tidbit.h` declares what is
//! exported here, and `tests/c_program.rs` compiles a C program against it.

use std::ffi::{CStr, c_char};

const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(version) => version,
    Err(_) => panic!("a version has no NUL inside"),
};

/// The version of this library, for example `0.1.0`: UTF-8, ending in NUL.
///
/// The text is static: it stays valid as long as the library is loaded, and the caller must not free it.
/// May be called from any thread at any time.
// SAFETY: no other symbol of the C library's prefix `tidbit_` has this name.
#[unsafe(no_mangle)]
pub extern "C" fn tidbit_version() -> *const c_char {
    VERSION.as_ptr()
}
