//! Real tokenizers against the outputs of the reference implementation.
//!
//! The demo model's runs always. The others are large and stand beside the repository (`../shared`, or where
//! `TIDBIT_SHARED` says); without them their tests print a line and pass.

use serde::Deserialize;
use std::path::{Path, PathBuf};
use tidbit_runtime::tokenizer::Tokenizer;

#[derive(Deserialize)]
struct Golden {
    text: String,
    ids: Vec<u32>,
    decoded: String,
    decoded_skip_special: String,
}

fn shared() -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    let folder = std::env::var_os("TIDBIT_SHARED").map_or_else(beside, PathBuf::from);
    if folder.join("tokenizers").is_dir() {
        return Some(folder);
    }
    println!("skipped: {} has no tokenizers", folder.display());
    None
}

/// Checks every string, and streaming; returns how many strings there were.
fn check(tokenizer: &Path, golden: &Path) -> usize {
    let tokenizer = Tokenizer::from_json(&std::fs::read(tokenizer).unwrap()).unwrap();
    let golden: Vec<Golden> = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    for g in &golden {
        assert_eq!(tokenizer.encode(&g.text).unwrap(), g.ids, "{:?}", g.text);
        assert_eq!(tokenizer.decode(&g.ids), g.decoded, "{:?}", g.text);
        assert_eq!(tokenizer.decode_skip_special(&g.ids), g.decoded_skip_special, "{:?}", g.text);
        let mut stream = tokenizer.stream();
        let mut text: String = g.ids.iter().map(|&id| stream.push(id).to_owned()).collect();
        text.push_str(stream.finish());
        assert_eq!(text, g.decoded, "streamed {:?}", g.text);
    }
    golden.len()
}

#[test]
fn equals_the_reference_on_every_string() {
    let Some(shared) = shared() else { return };
    for name in ["gpt2", "neox"] {
        let folder = shared.join("tokenizers").join(name);
        let n = check(&folder.join("tokenizer.json"), &folder.join("tokenizer-golden.json"));
        assert!(n >= 80, "{name}: only {n} strings");
    }
}

#[test]
fn the_demo_models_equals_the_reference_on_every_string() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let golden = root.join("tests/data/gpt2-mini/tokenizer-golden.json");
    assert!(check(&root.join("models/gpt2-mini/tokenizer.json"), &golden) >= 80);
}

#[test]
fn knows_the_size_of_real_vocabularies() {
    let Some(shared) = shared() else { return };
    for (name, tokens, rows) in [("gpt2", 50257, 50257), ("neox", 50277, 50432)] {
        let json = std::fs::read(shared.join("tokenizers").join(name).join("tokenizer.json")).unwrap();
        let tokenizer = Tokenizer::from_json(&json).unwrap();
        assert_eq!(tokenizer.vocab_len(), tokens, "{name}");
        tokenizer.check_vocabulary(rows).unwrap();
        tokenizer.check_vocabulary(tokens).unwrap();
        tokenizer.check_vocabulary(tokens - 1).unwrap_err();
    }
}
