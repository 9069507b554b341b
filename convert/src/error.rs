//! What can go wrong in a conversion. Every message is one line, names the file, the tensor or the
//! field, and gives both values. A [`hint`](ConvertError::hint) is kept apart, for a line of its own.

use std::path::{Path, PathBuf};

/// A conversion that cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Its answer.
        source: std::io::Error,
    },
    /// No checkpoint where one was expected, or a part of it is missing.
    #[error("{}: {reason}", path.display())]
    NotACheckpoint {
        /// The folder or file.
        path: PathBuf,
        /// What was looked for, and what was found.
        reason: String,
    },
    /// A source file is damaged, or of a kind that is not read.
    #[error("{}: {reason}", path.display())]
    Container {
        /// The file.
        path: PathBuf,
        /// What is wrong, with values.
        reason: String,
    },
    /// `config.json` says something that is not understood or not supported.
    #[error("{file}: {reason}")]
    Config {
        /// The file.
        file: String,
        /// The field, its value, and what it may be.
        reason: String,
    },
    /// One tensor is wrong.
    #[error("{}: tensor `{tensor}`: {reason}", path.display())]
    Tensor {
        /// The file that has it, or should.
        path: PathBuf,
        /// Its name in the checkpoint.
        tensor: String,
        /// What is wrong, with both values.
        reason: String,
    },
    /// The tokenizer's files cannot be used.
    #[error("{}: {reason}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong, with values.
        reason: String,
    },
    /// The output cannot be written.
    #[error("{}: {reason}", path.display())]
    Output {
        /// The output file.
        path: PathBuf,
        /// What is in the way.
        reason: String,
    },
    /// The output is a file that is read.
    #[error("{}: is also an input ({}), it would be overwritten", output.display(), input.display())]
    Overwrites {
        /// The output file.
        output: PathBuf,
        /// The same file, as the input is called.
        input: PathBuf,
    },
    /// The instruction set asked for cannot be had.
    #[error(transparent)]
    Isa(#[from] tidbit_runtime::error::IsaError),
    /// The model could not be run to calibrate it.
    #[error("calibration: {0}")]
    Session(#[from] tidbit_runtime::error::SessionError),
    /// The f32 model that calibration runs could not be opened.
    #[error(transparent)]
    Format(#[from] tidbit_runtime::error::FormatError),
    /// Stopped by the caller; nothing is left behind.
    #[error("cancelled")]
    Cancelled,
}

impl ConvertError {
    /// What to do about it, where that is known: one line, to be shown below the message.
    pub fn hint(&self) -> Option<&'static str> {
        let text = self.to_string();
        HINTS.iter().find(|(part, _)| text.contains(part)).map(|&(_, hint)| hint)
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { path: path.into(), source }
    }

    pub(crate) fn container(path: &Path, reason: impl Into<String>) -> Self {
        Self::Container { path: path.into(), reason: reason.into() }
    }

    pub(crate) fn tensor(path: &Path, name: &str, reason: impl Into<String>) -> Self {
        Self::Tensor { path: path.into(), tensor: shown(name), reason: reason.into() }
    }

    pub(crate) fn config(file: &str, reason: impl Into<String>) -> Self {
        Self::Config { file: file.into(), reason: reason.into() }
    }

    pub(crate) fn tokenizer(path: &Path, reason: impl Into<String>) -> Self {
        Self::Tokenizer { path: path.into(), reason: reason.into() }
    }

    pub(crate) fn output(path: &Path, reason: impl Into<String>) -> Self {
        Self::Output { path: path.into(), reason: reason.into() }
    }
}

/// Part of a message, and the way out.
const HINTS: [(&str, &str); 5] = [
    (GIT_LFS, "fetch the weights with `git lfs pull`"),
    (LEGACY_TORCH, "load it and save it again with torch 1.6 or newer, or with safetensors"),
    ("it would be overwritten", "choose another name for the output"),
    ("cannot be stored as f16", "use --quant f32"),
    ("(--spec)", "docs/model-files.md lists the names and shapes of tensors; matrices are [out, in]"),
];

pub(crate) const GIT_LFS: &str = "a git-lfs pointer, not the file itself";
pub(crate) const LEGACY_TORCH: &str = "torch's legacy format (before 1.6)";

/// A name or value from outside, fit for a one-line message: control characters escaped, not too long.
pub(crate) fn shown(text: &str) -> String {
    const MOST: usize = 120;
    let mut out = String::new();
    for c in text.chars() {
        if out.len() > MOST {
            out.push('…');
            break;
        }
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_outside_stay_on_one_line() {
        assert_eq!(shown("h.0\nerror: \u{1b}[31m"), "h.0\\nerror: \\u{1b}[31m");
        assert!(shown(&"x".repeat(10_000)).len() < 200);
    }

    #[test]
    fn known_mistakes_have_a_hint() {
        let error = ConvertError::container(Path::new("model.safetensors"), format!("is {GIT_LFS}"));
        assert!(error.hint().is_some_and(|h| h.contains("git lfs pull")));
        assert!(ConvertError::Cancelled.hint().is_none());
    }
}
