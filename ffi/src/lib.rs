//! The C library: what other languages call.
//!
//! `include/tidbit.h` is made from this crate by cbindgen; `CONVENTIONS.md` says what holds for all functions. Every one of
//! them goes through [`guard`](mod@guard), takes what it gets through [`memory`], and looks its handles up in [`objects`].
//!
//! | module | what lives there |
//! |---|---|
//! | `status` | the codes, and which error becomes which |
//! | `message` | the last failure of each thread |
//! | `guard` | panics become a status |
//! | `memory` | texts and arrays in, results out |
//! | `handles`, `objects` | what a handle stands for |
//! | `log` | records for the host |
//! | `options` | settings by key |
//! | `model` | opening models |
//! | `tokenizer` | text to ids and back |
//! | `session`, `session_calls` | texts in progress, and the functions for them |
//! | `saved` | sessions to bytes and files, and back |
//! | `info` | facts by key |

#![allow(clippy::missing_safety_doc, reason = "what holds for all functions is in CONVENTIONS.md, and in the header")]
#![allow(non_camel_case_types, reason = "the names of C")]

pub mod guard;
pub mod handles;
pub mod info;
pub mod log;
pub mod memory;
pub mod message;
pub mod model;
pub mod objects;
pub mod options;
pub mod saved;
pub mod session;
pub mod session_calls;
pub mod status;
pub mod tokenizer;

use std::ffi::{CStr, c_char};

const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(version) => version,
    Err(_) => panic!("a version has no NUL inside"),
};

/// The version of this library, for example `0.1.0`: UTF-8, ending in NUL.
///
/// Ownership: static; valid as long as the library is loaded.
/// Threads: any.
/// Errors: none; never null.
// SAFETY: no other symbol of the C library's prefix `tidbit_` has this name.
#[unsafe(no_mangle)]
pub extern "C" fn tidbit_version() -> *const c_char {
    VERSION.as_ptr()
}

/// The version of the binary interface. A program that was built against version N runs with any library that says N, also
/// a newer one with more functions.
///
/// Threads: any.
/// Errors: none.
#[unsafe(no_mangle)]
pub extern "C" fn tidbit_abi_version() -> u32 {
    info::TIDBIT_ABI_VERSION
}
