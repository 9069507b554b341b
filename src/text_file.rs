//! Reading text from outside: a file or stdin, which must be UTF-8.

use anyhow::{Context, bail};
use std::io::Read;
use std::path::Path;

/// The text of a file.
///
/// # Errors
/// What the system answers, or the offset of the first byte that is not UTF-8.
pub(crate) fn read_file(path: &Path) -> anyhow::Result<String> {
    let name = path.display();
    let bytes = std::fs::read(path).with_context(|| name.to_string()).map_err(|e| flatten(&e))?;
    decode(&name.to_string(), bytes)
}

/// All of stdin.
///
/// # Errors
/// As [`read_file`].
pub(crate) fn read_stdin() -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    std::io::stdin().lock().read_to_end(&mut bytes).context("stdin").map_err(|e| flatten(&e))?;
    decode("stdin", bytes)
}

/// `text` without the line break at its end, which editors and `echo` add.
pub(crate) fn without_final_line_break(text: &str) -> &str {
    let text = text.strip_suffix('\n').unwrap_or(text);
    text.strip_suffix('\r').unwrap_or(text)
}

fn decode(name: &str, bytes: Vec<u8>) -> anyhow::Result<String> {
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            bail!("{name}: not UTF-8 text, byte {at} is {:#04x}", error.as_bytes()[at])
        }
    }
}

/// Context and cause on one line.
fn flatten(error: &anyhow::Error) -> anyhow::Error {
    anyhow::anyhow!("{error:#}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_first_byte_that_is_no_text() {
        assert_eq!(decode("f", b"ab".to_vec()).unwrap(), "ab");
        assert_eq!(decode("f", b"ab\xFFc".to_vec()).unwrap_err().to_string(), "f: not UTF-8 text, byte 2 is 0xff");
        assert_eq!(decode("f", b"\xE2\x82".to_vec()).unwrap_err().to_string(), "f: not UTF-8 text, byte 0 is 0xe2");
    }

    #[test]
    fn leaves_out_one_line_break() {
        assert_eq!(without_final_line_break("a\n\n"), "a\n");
        assert_eq!(without_final_line_break("a\r\n"), "a");
        assert_eq!(without_final_line_break("a"), "a");
    }
}
