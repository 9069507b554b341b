//! Status codes, which never change, and the failures that carry them.

use tidbit_runtime::error::{EvalError, FormatError, SamplerError, SessionError, TokenizerError};

/// What a call returns. A number keeps its meaning for ever; new ones may be added.
pub type Status = i32;

/// It worked.
pub const TIDBIT_OK: Status = 0;
/// The text has ended: the model chose its end-of-text token. Not a failure.
pub const TIDBIT_END: Status = 1;
/// A null pointer or a number out of range.
pub const TIDBIT_INVALID_ARGUMENT: Status = 2;
/// A handle that is null, freed, or of another kind.
pub const TIDBIT_INVALID_HANDLE: Status = 3;
/// A text that is not UTF-8.
pub const TIDBIT_INVALID_UTF8: Status = 4;
/// There is no such key.
pub const TIDBIT_UNKNOWN_KEY: Status = 5;
/// The result does not fit the buffer; the length it needs is in the `out_` parameter, and nothing was lost.
pub const TIDBIT_BUFFER_TOO_SMALL: Status = 6;
/// Another call is using the handle.
pub const TIDBIT_BUSY: Status = 7;
/// An earlier call on this handle ended in `TIDBIT_INTERNAL`: it can only be freed.
pub const TIDBIT_POISONED: Status = 8;
/// `tidbit_session_cancel` was called.
pub const TIDBIT_CANCELLED: Status = 9;
/// No room for more tokens in the session's context.
pub const TIDBIT_CONTEXT_FULL: Status = 10;
/// Memory or another resource cannot be had, or is more than `memory.limit`.
pub const TIDBIT_OUT_OF_MEMORY: Status = 11;
/// The operating system refused.
pub const TIDBIT_IO: Status = 12;
/// Not a model, or a damaged one.
pub const TIDBIT_BAD_MODEL: Status = 13;
/// Something that this version, this machine or this model cannot do.
pub const TIDBIT_UNSUPPORTED: Status = 14;
/// A saved session that is damaged, or is not one of this model.
pub const TIDBIT_BAD_SAVE: Status = 15;
/// The session has no token to go on from.
pub const TIDBIT_EMPTY: Status = 16;
/// The model computed something that is not a number.
pub const TIDBIT_NOT_FINITE: Status = 17;
/// A defect of this library, caught before it reached the host. A session that it happened in is poisoned.
pub const TIDBIT_INTERNAL: Status = 18;

/// Every code with its name, which ends in NUL.
pub(crate) const ALL: &[(Status, &str)] = &[
    (TIDBIT_OK, "ok\0"),
    (TIDBIT_END, "end of text\0"),
    (TIDBIT_INVALID_ARGUMENT, "invalid argument\0"),
    (TIDBIT_INVALID_HANDLE, "invalid handle\0"),
    (TIDBIT_INVALID_UTF8, "invalid UTF-8\0"),
    (TIDBIT_UNKNOWN_KEY, "unknown key\0"),
    (TIDBIT_BUFFER_TOO_SMALL, "buffer too small\0"),
    (TIDBIT_BUSY, "busy\0"),
    (TIDBIT_POISONED, "poisoned\0"),
    (TIDBIT_CANCELLED, "cancelled\0"),
    (TIDBIT_CONTEXT_FULL, "context full\0"),
    (TIDBIT_OUT_OF_MEMORY, "out of memory\0"),
    (TIDBIT_IO, "input or output failed\0"),
    (TIDBIT_BAD_MODEL, "bad model\0"),
    (TIDBIT_UNSUPPORTED, "unsupported\0"),
    (TIDBIT_BAD_SAVE, "bad saved session\0"),
    (TIDBIT_EMPTY, "no token yet\0"),
    (TIDBIT_NOT_FINITE, "not finite\0"),
    (TIDBIT_INTERNAL, "internal error\0"),
];

/// Why a call failed: what it returns, and the message for [`tidbit_last_error`](crate::message::tidbit_last_error).
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: Status,
    pub(crate) message: String,
}

/// What the inside of a call comes to.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(status: Status, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    pub(crate) fn argument(message: impl Into<String>) -> Self {
        Self::new(TIDBIT_INVALID_ARGUMENT, message)
    }

    pub(crate) fn memory(bytes: usize, what: &str) -> Self {
        Self::new(TIDBIT_OUT_OF_MEMORY, format!("cannot allocate {bytes} bytes for {what}"))
    }

    pub(crate) fn io(error: &std::io::Error, what: &str) -> Self {
        let status = if error.kind() == std::io::ErrorKind::OutOfMemory { TIDBIT_OUT_OF_MEMORY } else { TIDBIT_IO };
        Self::new(status, format!("{what}: {error}"))
    }
}

impl From<FormatError> for Failure {
    fn from(error: FormatError) -> Self {
        use FormatError as E;
        let status = match &error {
            E::Io { source, .. } if source.kind() == std::io::ErrorKind::OutOfMemory => TIDBIT_OUT_OF_MEMORY,
            E::Lock { .. } => TIDBIT_OUT_OF_MEMORY,
            E::Io { .. } => TIDBIT_IO,
            E::NotAFile { .. } | E::Container { .. } | E::Foreign { .. } | E::Header { .. } | E::Tensor { .. } => {
                TIDBIT_BAD_MODEL
            }
            E::Version { .. } => TIDBIT_UNSUPPORTED,
        };
        Self::new(status, error.to_string())
    }
}

impl From<TokenizerError> for Failure {
    fn from(error: TokenizerError) -> Self {
        use TokenizerError as E;
        let status = match &error {
            E::Parse(_) | E::Tables(_) | E::Vocabulary { .. } => TIDBIT_BAD_MODEL,
            E::Unsupported { .. } => TIDBIT_UNSUPPORTED,
            E::Encode(_) => TIDBIT_INVALID_ARGUMENT,
            E::Memory { .. } => TIDBIT_OUT_OF_MEMORY,
        };
        Self::new(status, error.to_string())
    }
}

impl From<SessionError> for Failure {
    fn from(error: SessionError) -> Self {
        use SessionError as E;
        let status = match &error {
            E::EmptyPrompt | E::NothingRead => TIDBIT_EMPTY,
            E::ContextFull { .. } => TIDBIT_CONTEXT_FULL,
            E::OtherModel { .. }
            | E::LogitRows { .. }
            | E::Context { .. }
            | E::Threads { .. }
            | E::Token { .. }
            | E::Rolled { .. }
            | E::AtOnce { .. } => TIDBIT_INVALID_ARGUMENT,
            E::Memory { .. } | E::Spawn(_) => TIDBIT_OUT_OF_MEMORY,
            E::Cancelled => TIDBIT_CANCELLED,
            E::NotFinite { .. } | E::EmbeddingNotFinite { .. } => TIDBIT_NOT_FINITE,
            E::NoHead | E::NoEncoder | E::Isa(_) => TIDBIT_UNSUPPORTED,
        };
        Self::new(status, error.to_string())
    }
}

impl From<SamplerError> for Failure {
    fn from(error: SamplerError) -> Self {
        Self::argument(error.to_string())
    }
}

impl From<EvalError> for Failure {
    fn from(error: EvalError) -> Self {
        match error {
            EvalError::Session(error) => error.into(),
            error @ EvalError::NotFinite { .. } => Self::new(TIDBIT_NOT_FINITE, error.to_string()),
            error => Self::argument(error.to_string()),
        }
    }
}
