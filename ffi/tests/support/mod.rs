//! What the tests share: a C compiler, the built library, and the demo models as files.

#![allow(dead_code, reason = "every test file uses its own part of this")]

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use tidbit_convert::{Checkpoint, Options, convert};
use tidbit_runtime::quant::QuantType;

/// The crate's folder.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A folder for the files of this process, inside the build folder.
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A compiler (`CC` or `CXX`, or the name given), if there is one.
pub(crate) fn compiler(variable: &str, name: &str) -> Option<Command> {
    let name = std::env::var_os(variable).unwrap_or_else(|| name.into());
    if Command::new(&name).arg("--version").output().is_ok_and(|o| o.status.success()) {
        return Some(Command::new(name));
    }
    println!("skipped: no compiler {}", name.display());
    None
}

/// A built library. Cargo puts it beside this test, because the crate is also a Rust library that the test depends on.
fn library(name: &str) -> PathBuf {
    let path = std::env::current_exe().unwrap().with_file_name(name);
    assert!(path.is_file(), "{} was not built", path.display());
    path
}

/// The static library, and what must be linked with it.
pub(crate) fn static_library() -> (PathBuf, Vec<String>) {
    (library("libtidbit.a"), ["-lpthread", "-ldl", "-lm"].map(String::from).to_vec())
}

/// The shared library, and how it is found.
pub(crate) fn shared_library() -> (PathBuf, Vec<String>) {
    let library = library(&format!("{DLL_PREFIX}tidbit{DLL_SUFFIX}"));
    let path = format!("-Wl,-rpath,{}", library.parent().unwrap().display());
    (library, vec![path])
}

/// Compiles and links a C program. `None` without a compiler.
pub(crate) fn build(source: &str, program: &Path, (library, more): &(PathBuf, Vec<String>)) -> Option<PathBuf> {
    let mut cc = compiler("CC", "cc")?;
    cc.args(["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-g", "-I"]).arg(root().join("include"));
    cc.arg(root().join(source)).arg(library).args(more).arg("-lpthread").arg("-o").arg(program);
    let compiled = cc.output().unwrap();
    assert!(compiled.status.success(), "{cc:?}: {}", String::from_utf8_lossy(&compiled.stderr));
    Some(program.to_owned())
}

/// Runs a program to a good end; what it printed.
pub(crate) fn succeeds(command: &mut Command) -> String {
    let ran = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{command:?}: {}\n{stderr}", ran.status);
    assert!(!stderr.contains("panicked"), "{command:?}: {stderr}");
    String::from_utf8(ran.stdout).unwrap()
}

/// A demo model as a file, converted once per process.
pub(crate) fn model(name: &'static str, quant: QuantType) -> PathBuf {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    static MAKING: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one_at_a_time = MAKING.lock();
    let path = FOLDER.get_or_init(scratch).path().join(format!("{name}-{quant}.tidbit"));
    if !path.exists() {
        let checkpoint = Checkpoint::open(&root().join("../models").join(name)).unwrap();
        convert(&checkpoint, &path, &Options { quant, cancel: None }, &mut ()).unwrap();
    }
    path
}

/// The demo model that most tests use.
pub(crate) fn gpt2() -> PathBuf {
    model("gpt2-mini", QuantType::Q8)
}
