//! C programs that are compiled against the committed header and linked with the library, static and shared, as an
//! application would do it.
//!
//! Without a C compiler (`CC`, or `cc`) the tests print that they are skipped.

#![cfg(unix)]

mod support;

use std::process::Command;
use support::{build, gpt2, model, scratch, shared_library, static_library, succeeds};
use tidbit_runtime::quant::QuantType;

/// Compiles a C program with both libraries and runs it.
fn run_with_both(source: &str, args: &[&str], check: impl Fn(String)) {
    let folder = scratch();
    for (i, library) in [static_library(), shared_library()].iter().enumerate() {
        let Some(program) = build(source, &folder.path().join(format!("program-{i}")), library) else { return };
        check(succeeds(Command::new(program).args(args)));
    }
}

#[test]
fn a_c_program_links_either_library() {
    run_with_both("tests/version.c", &[], |printed| assert_eq!(printed, concat!(env!("CARGO_PKG_VERSION"), "\n")));
}

/// What the reference wrote, greedily and in f32, is what the example prints.
#[test]
fn the_example_writes_what_the_reference_wrote() {
    for name in ["gpt2-mini", "neox-mini"] {
        let file = model(name, QuantType::F32);
        let data = support::root().join(format!("../tests/data/{name}/greedy.json"));
        let golden: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(data).unwrap()).unwrap();
        run_with_both("examples/c/stream.c", &[file.to_str().unwrap(), "Once upon a time", "10"], |printed| {
            let text = printed.strip_prefix("Once upon a time").unwrap().trim_end_matches('\n');
            let found = golden.as_array().unwrap().iter().any(|case| case["text"].as_str().unwrap().starts_with(text));
            assert!(text.len() > 15 && found, "{name}: {text:?} is not the start of a reference text");
        });
    }
}

/// Every function and every misuse, from C.
#[test]
fn no_misuse_does_harm() {
    let file = gpt2();
    let folder = scratch();
    for (i, library) in [static_library(), shared_library()].iter().enumerate() {
        let Some(program) = build("tests/api.c", &folder.path().join(format!("api-{i}")), library) else { return };
        let files = folder.path().join(format!("files-{i}"));
        std::fs::create_dir(&files).unwrap();
        let printed = succeeds(Command::new(program).arg(&file).arg(&files));
        assert_eq!(printed, "every check passed\n");
    }
}

/// Memory that the system does not have, from C.
#[test]
#[cfg(target_os = "linux")]
fn no_memory_is_a_status() {
    let file = gpt2();
    run_with_both("tests/memory.c", &[file.to_str().unwrap()], |printed| {
        assert_eq!(printed, "every refusal was a status\n");
    });
}
