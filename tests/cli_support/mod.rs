//! Running the binary on the demo model, and saying what came of it.

#![allow(dead_code, reason = "every test file uses its own part of this")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// The checkpoint that lies in the repository.
pub(crate) fn checkpoint() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/gpt2-mini")
}

/// A folder for the files of this process, inside the build folder.
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// The demo model in q8, converted once per process.
pub(crate) fn model() -> PathBuf {
    static MODEL: OnceLock<PathBuf> = OnceLock::new();
    MODEL
        .get_or_init(|| {
            // Renamed into place, so processes that run at once do not see half of it.
            let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli-gpt2-mini.tidbit");
            succeeds(tidbit(["convert"]).arg(checkpoint()).arg("-o").arg(&path));
            path
        })
        .clone()
}

/// The binary, with its cache in the build folder and no settings from outside.
pub(crate) fn tidbit<'a>(args: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidbit"));
    command.args(args).stdin(Stdio::null()).env_remove("TIDBIT_ISA");
    command.env("TIDBIT_CACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli-cache"));
    command
}

/// `tidbit run` on the demo model.
pub(crate) fn run<'a>(args: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = tidbit(["run"]);
    command.arg(model()).args(args);
    command
}

/// What a process wrote, as text.
pub(crate) struct Written {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Written {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Self { stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

/// Runs to a good end.
pub(crate) fn succeeds(command: &mut Command) -> Written {
    let output = command.output().unwrap();
    let code = output.status.code();
    let written = Written::from(output);
    assert_eq!(code, Some(0), "{command:?}\n{}", written.stderr);
    assert!(!written.stderr.contains("error:") && !written.stderr.contains("panicked"), "{}", written.stderr);
    written
}

/// Runs to JSON on stdout.
pub(crate) fn json(command: &mut Command) -> serde_json::Value {
    serde_json::from_str(&succeeds(command).stdout).unwrap()
}

/// Runs to an error: the exit code, one `error:` line which has all of `parts`, no panic, and nothing on stdout.
pub(crate) fn fails(command: &mut Command, code: i32, parts: &[&str]) -> Written {
    let output = command.output().unwrap();
    let found = output.status.code();
    let written = Written::from(output);
    let context = format!("{command:?}\n{}", written.stderr);
    assert_eq!(found, Some(code), "{context}");
    assert!(!written.stderr.contains("panicked") && !written.stderr.contains("RUST_BACKTRACE"), "{context}");
    let errors: Vec<&str> = written.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{context}");
    for part in parts {
        assert!(errors[0].contains(part), "no {part:?} in\n{context}");
    }
    assert_eq!(written.stdout, "", "{context}");
    written
}

/// Names of what is in a folder.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Copies the files of a folder.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for name in names(from) {
        std::fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
}
