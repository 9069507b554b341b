//! A C program that is compiled against the committed header and linked with the library, static and shared, as an
//! application would do it.
//!
//! Without a C compiler (`CC`, or `cc`) the tests print that they are skipped.

#![cfg(unix)]

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The C compiler, if there is one.
fn compiler() -> Option<Command> {
    let name = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    if Command::new(&name).arg("--version").output().is_ok_and(|o| o.status.success()) {
        return Some(Command::new(name));
    }
    println!("skipped: no C compiler {}", name.display());
    None
}

/// A built library. Cargo puts it beside this test, because the crate is also a Rust library that the test depends on.
fn library(name: &str) -> PathBuf {
    let path = std::env::current_exe().unwrap().with_file_name(name);
    assert!(path.is_file(), "{} was not built", path.display());
    path
}

/// Compiles `version.c`, links it with `library`, and checks what it prints.
fn check(library: &Path, more: &[&str]) {
    let Some(mut cc) = compiler() else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let name = library.file_name().unwrap().to_string_lossy();
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("version-with-{name}"));
    cc.args(["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-I"]).arg(root.join("include"));
    cc.arg(root.join("tests/version.c")).arg(library).args(more).arg("-o").arg(&program);
    let compiled = cc.output().unwrap();
    assert!(compiled.status.success(), "{cc:?}: {}", String::from_utf8_lossy(&compiled.stderr));

    let ran = Command::new(&program).output().unwrap();
    assert!(ran.status.success(), "{}: {}", program.display(), String::from_utf8_lossy(&ran.stderr));
    assert_eq!(String::from_utf8_lossy(&ran.stdout), concat!(env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn a_c_program_links_the_static_library() {
    check(&library("libtidbit.a"), &["-lpthread", "-ldl", "-lm"]);
}

#[test]
fn a_c_program_links_the_shared_library() {
    let library = library(&format!("{DLL_PREFIX}tidbit{DLL_SUFFIX}"));
    let folder = library.parent().unwrap().display().to_string();
    check(&library, &[&format!("-Wl,-rpath,{folder}")]);
}
