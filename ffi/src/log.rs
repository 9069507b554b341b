//! Where records of the log go: to a function of the host, fixed when the options are made.

use std::ffi::{c_char, c_void};

/// What a record is: something that may matter.
pub const TIDBIT_LOG_WARNING: i32 = 1;
/// What a record is: what the library did, and how long it took.
pub const TIDBIT_LOG_INFO: i32 = 2;

/// A function of the host that takes one whole record: its level, its text (UTF-8, no line break, no NUL), the length of
/// that, and what the host gave with the function.
///
/// It runs on the thread of the call that it is about, must return normally (no exception, no `longjmp`), and may call the
/// library, except for the handle that is in use.
pub type LogFunction =
    Option<unsafe extern "C" fn(level: i32, text: *const c_char, text_length: usize, user_data: *mut c_void)>;

/// The host's function with its data.
#[derive(Clone, Copy)]
pub(crate) struct LogSink {
    pub(crate) most: i32,
    pub(crate) function: unsafe extern "C" fn(i32, *const c_char, usize, *mut c_void),
    pub(crate) user_data: *mut c_void,
}

// SAFETY: the data is the host's, which promised in `tidbit_options_set_log` that its function may be called with it on any
// thread. It is never looked at here.
unsafe impl Send for LogSink {}
// SAFETY: as above.
unsafe impl Sync for LogSink {}

impl LogSink {
    pub(crate) fn record(&self, level: i32, text: &str) {
        if level <= self.most {
            let text = text.replace(['\n', '\r', '\0'], " ");
            // SAFETY: the host vouches for its function; the text lives until it returns.
            unsafe { (self.function)(level, text.as_ptr().cast(), text.len(), self.user_data) };
        }
    }
}

/// Writes a record, if the host wants any.
pub(crate) fn info(sink: Option<LogSink>, text: impl FnOnce() -> String) {
    if let Some(sink) = sink.filter(|sink| sink.most >= TIDBIT_LOG_INFO) {
        sink.record(TIDBIT_LOG_INFO, &text());
    }
}

/// The same for something that may matter.
pub(crate) fn warning(sink: Option<LogSink>, text: impl FnOnce() -> String) {
    if let Some(sink) = sink.filter(|sink| sink.most >= TIDBIT_LOG_WARNING) {
        sink.record(TIDBIT_LOG_WARNING, &text());
    }
}
