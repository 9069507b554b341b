//! The binary interface only grows.
//!
//! `abi/tidbit-VERSION.h` is the header of the last release. Whatever it declares, the header of today must declare in the
//! same words; what is new is welcome. A program that was compiled with that old header runs with the library of today, and
//! the library exports the functions of its header and nothing else.
//!
//! With a release, `include/tidbit.h` is copied there and takes the place of the one before.

mod support;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

/// The header of the last release.
const RELEASED: &str = "tests/abi/tidbit-0.1.0.h";

/// Every declaration and constant of a header, in one line each, without comments.
fn declarations(header: &str) -> BTreeSet<String> {
    let mut text = String::new();
    let mut rest = header;
    while let Some((before, after)) = rest.split_once("/*") {
        text.push_str(before);
        rest = after.split_once("*/").expect("a comment has an end").1;
    }
    text.push_str(rest);
    let (mut found, mut declaration) = (BTreeSet::new(), String::new());
    for line in text.lines() {
        if let Some(constant) = line.strip_prefix("#define ") {
            found.insert(format!("#define {}", words(constant)));
        } else if !line.starts_with('#') && !line.contains("extern \"C\"") && line.trim() != "}" {
            declaration.push_str(line);
            declaration.push(' ');
            if line.trim_end().ends_with(';') {
                found.insert(words(&declaration));
                declaration.clear();
            }
        }
    }
    found
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What an old header declares and a new one does not.
fn broken(old: &str, new: &str) -> Vec<String> {
    declarations(old).difference(&declarations(new)).cloned().collect()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(support::root().join(path)).unwrap()
}

#[test]
fn nothing_that_was_released_has_changed() {
    let (old, new) = (read(RELEASED), read("include/tidbit.h"));
    assert!(declarations(&old).len() > 60, "the header was understood");
    let broken = broken(&old, &new);
    assert!(broken.is_empty(), "old programs would break; gone or changed:\n{}", broken.join("\n"));
}

/// The check itself: it lets additions pass, and nothing else.
#[test]
fn removing_or_changing_anything_is_found() {
    let old = read(RELEASED);
    let added =
        old.replace("#ifdef __cplusplus\n}", "tidbit_status tidbit_more(int32_t number);\n#ifdef __cplusplus\n}");
    assert!(broken(&old, &added).is_empty() && declarations(&added).len() == declarations(&old).len() + 1);
    for (what, with) in [
        ("tidbit_status tidbit_model_verify(const tidbit_model *model);", ""),
        (
            "tidbit_status tidbit_model_verify(const tidbit_model *model);",
            "int tidbit_model_verify(const tidbit_model *model);",
        ),
        ("size_t n_last,", ""),
        ("uint64_t offset,", "uint32_t offset,"),
        ("int32_t fd,\n", "uint64_t fd,\n"),
        ("#define TIDBIT_BUSY 7", "#define TIDBIT_BUSY 8"),
        ("#define TIDBIT_ABI_VERSION 1", "#define TIDBIT_ABI_VERSION 2"),
        ("typedef int32_t tidbit_status;", "typedef int64_t tidbit_status;"),
        ("typedef struct tidbit_model tidbit_model;", "typedef struct tidbit_model { int n; } tidbit_model;"),
        ("size_t length, void *user_data);", "size_t length);"),
    ] {
        assert!(old.contains(what), "{what}");
        assert!(!broken(&old, &old.replace(what, with)).is_empty(), "{what} became {with}");
    }
}

/// Functions of the header.
fn functions() -> BTreeSet<String> {
    let name = |declaration: &String| {
        let (before, _) = declaration.split_once('(')?;
        let name = before.rsplit([' ', '*']).next()?;
        (!declaration.starts_with("typedef") && name.starts_with("tidbit_")).then(|| name.to_owned())
    };
    declarations(&read("include/tidbit.h")).iter().filter_map(name).collect()
}

#[test]
#[cfg(target_os = "linux")]
fn the_library_exports_its_functions_and_nothing_else() {
    let (library, _) = support::shared_library();
    let Ok(output) = Command::new("nm").args(["--dynamic", "--defined-only", "--format=posix"]).arg(library).output()
    else {
        println!("skipped: no nm");
        return;
    };
    let symbols = String::from_utf8(output.stdout).unwrap();
    let symbols: BTreeSet<_> = symbols.lines().filter_map(|line| line.split(' ').next()).map(String::from).collect();
    assert_eq!(symbols, functions());
    let listed = read("tidbit.symbols");
    assert_eq!(
        listed.lines().map(String::from).collect::<BTreeSet<_>>(),
        symbols,
        "tidbit.symbols lists what is exported"
    );
}

/// Compiled with the old header, linked with the library of today.
#[test]
#[cfg(unix)]
fn an_old_program_runs() {
    let folder = support::scratch();
    std::fs::copy(support::root().join(RELEASED), folder.path().join("tidbit.h")).unwrap();
    let (library, more) = support::shared_library();
    let Some(mut cc) = support::compiler("CC", "cc") else { return };
    let program: PathBuf = folder.path().join("old");
    cc.arg("-I").arg(folder.path()).arg(support::root().join("examples/c/stream.c")).arg(library).args(more);
    assert!(cc.arg("-o").arg(&program).status().unwrap().success());
    let printed = support::succeeds(Command::new(program).arg(support::gpt2()).args(["Once upon a time", "5"]));
    assert!(printed.starts_with("Once upon a time") && printed.len() > 20, "{printed}");
}
