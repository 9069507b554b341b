//! Writing to stdout and stderr without a panic when one is closed.

use std::fmt;
use std::io::{ErrorKind, Write};

/// The reader of stdout has gone (`tidbit … | head`): nothing is left to do, and nothing is wrong.
#[derive(Debug)]
pub(crate) struct StdoutClosed;

impl fmt::Display for StdoutClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stdout is closed")
    }
}

impl std::error::Error for StdoutClosed {}

/// Writes text to stdout at once, so that it streams through pipes too.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|e| {
        if e.kind() == ErrorKind::BrokenPipe {
            StdoutClosed.into()
        } else {
            anyhow::anyhow!("cannot write to stdout: {e}")
        }
    })
}

/// Writes a line to stdout.
pub(crate) fn print_line(text: impl fmt::Display) -> anyhow::Result<()> {
    print(&format!("{text}\n"))
}

/// Writes a JSON value to stdout, for people to read too.
pub(crate) fn print_json(value: &serde_json::Value) -> anyhow::Result<()> {
    print_line(serde_json::to_string_pretty(value)?)
}

/// Writes a line to stderr. A closed stderr is no reason to stop.
pub(crate) fn note(line: fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
