//! The same bits for any number of threads and on every instruction set, through the whole program.

use std::path::{Path, PathBuf};
use std::process::Command;
use tidbit_runtime::kernels;

fn tidbit() -> Command {
    Command::new(env!("CARGO_BIN_EXE_tidbit"))
}

fn converted(model: &str, quant: &str, folder: &Path) -> PathBuf {
    let output = folder.join(format!("{model}-{quant}.tidbit"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(model);
    let status =
        tidbit().arg("convert").args([&source, Path::new("-o"), &output]).args(["--quant", quant]).output().unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    output
}

/// Runs the command with an instruction set and a number of threads; its JSON.
fn run(args: &[&str], isa: &str, threads: usize) -> serde_json::Value {
    let output = tidbit()
        .args(args)
        .args(["--threads", &threads.to_string(), "--json"])
        .env("TIDBIT_ISA", isa)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn perplexity_and_greedy_tokens_do_not_depend_on_threads_or_isa() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.txt");
    // Long enough for several batches and attention blocks; the words matter little.
    let words = "Once upon a time there was a king who had three daughters, and the youngest said: \"I will go.\"\n";
    std::fs::write(&text, words.repeat(12)).unwrap();
    let text = text.to_str().unwrap();
    for model in ["gpt2-mini", "neox-mini"] {
        for (quant, kv) in [("f32", "f32"), ("f16", "f16"), ("q8", "q8"), ("q4", "f16"), ("q4", "q8"), ("q8", "q4")] {
            let file = converted(model, quant, folder.path());
            let file = file.to_str().unwrap();
            let mut expected = None;
            for isa in kernels::supported() {
                for threads in [1, 2, 5] {
                    if isa.name() == "scalar" && threads != 2 {
                        continue; // slow, and threads are the same code for every instruction set
                    }
                    let nll = run(&["perplexity", file, text, "--window", "300", "--kv", kv], isa.name(), threads)["total_nll"]
                        .as_f64()
                        .unwrap();
                    let greedy = run(
                        &["run", file, "-p", "Once upon a time", "--temperature", "0", "-n", "24", "--kv", kv],
                        isa.name(),
                        threads,
                    );
                    assert_eq!(greedy["isa"], isa.name());
                    let found = (nll.to_bits(), greedy["ids"].clone());
                    let expected = expected.get_or_insert_with(|| found.clone());
                    assert_eq!(&found, expected, "{model} {quant}, {kv} cache: {} with {threads} threads", isa.name());
                }
            }
        }
    }
}
