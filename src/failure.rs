//! How a command fails: one `error:` line, perhaps one `hint:` line, and an exit code.

use crate::output::{StdoutClosed, note};
use std::fmt;
use std::process::ExitCode;
use tidbit_convert::ConvertError;
use tidbit_runtime::error::{EvalError, FormatError, SamplerError, SessionError};

/// Stopped by Ctrl-C.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// An option whose value cannot be: exit code 2.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// An error that knows the way out.
#[derive(Debug)]
struct Hinted {
    error: anyhow::Error,
    hint: String,
}

impl fmt::Display for Hinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Hinted {}

/// Adds a hint to an error.
pub(crate) trait Hint {
    /// The same error, with a hint of one line.
    fn hint(self, hint: impl Into<String>) -> anyhow::Error;
}

impl<E: Into<anyhow::Error>> Hint for E {
    fn hint(self, hint: impl Into<String>) -> anyhow::Error {
        Hinted { error: self.into(), hint: hint.into() }.into()
    }
}

/// Prints the error and says how to exit.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if error.is::<StdoutClosed>() {
        return ExitCode::SUCCESS;
    }
    if is_interrupt(error) {
        return ExitCode::from(130);
    }
    note(format_args!("error: {}", one_line(&error.to_string())));
    let (error, hint) = match error.downcast_ref::<Hinted>() {
        Some(hinted) => (&hinted.error, Some(hinted.hint.clone())),
        None => (error, known_hint(error)),
    };
    if let Some(hint) = hint {
        note(format_args!("hint: {}", one_line(&hint)));
    }
    ExitCode::from(if is_usage(error) { 2 } else { 1 })
}

fn is_interrupt(error: &anyhow::Error) -> bool {
    error.is::<Interrupted>()
        || matches!(error.downcast_ref(), Some(SessionError::Cancelled))
        || matches!(error.downcast_ref(), Some(EvalError::Session(SessionError::Cancelled)))
        || matches!(error.downcast_ref(), Some(ConvertError::Cancelled))
}

/// Whether the value of an option is at fault, and not what a file holds.
fn is_usage(error: &anyhow::Error) -> bool {
    error.is::<Usage>()
        || error.is::<SamplerError>()
        || matches!(error.downcast_ref(), Some(ConvertError::Overwrites { .. }))
        || matches!(error.downcast_ref(), Some(SessionError::Threads { .. } | SessionError::Context { .. }))
        || matches!(error.downcast_ref(), Some(EvalError::Window { .. } | EvalError::Skip { .. }))
}

fn known_hint(error: &anyhow::Error) -> Option<String> {
    if let Some(error) = error.downcast_ref::<ConvertError>() {
        return error.hint().map(Into::into);
    }
    match error.downcast_ref()? {
        FormatError::Foreign { path, .. } => {
            let output = path.with_extension("tidbit");
            Some(format!("convert it first: tidbit convert {} -o {}", path.display(), output.display()))
        }
        FormatError::Version { .. } => Some("convert the checkpoint again with this version of tidbit".into()),
        _ => None,
    }
}

/// Paths and texts from outside may hold line breaks and control characters; a message is one line.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_one_line() {
        assert_eq!(one_line("a\nb\u{1b}[1m é"), "a\\nb\\u{1b}[1m é");
    }

    #[test]
    fn a_hint_keeps_the_kind_of_its_error() {
        let error = Usage("`-n` is 0".into()).hint("give 1");
        assert_eq!(error.to_string(), "`-n` is 0");
        assert_eq!(report(&error), ExitCode::from(2));
        assert_eq!(report(&anyhow::anyhow!("x")), ExitCode::from(1));
        assert_eq!(report(&SessionError::Cancelled.into()), ExitCode::from(130));
        assert_eq!(report(&StdoutClosed.into()), ExitCode::SUCCESS);
    }
}
