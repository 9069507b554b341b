//! Tokenizers: kept as they are, or built from vocabulary and merges with the same ids as the original.

mod support;

use serde_json::{Value, json};
use std::path::Path;
use support::*;
use tidbit_convert::Checkpoint;
use tidbit_runtime::quant::QuantType;
use tokenizers::Tokenizer;

/// All 256 byte characters, `Ġt`, `he` and a special token: enough for real text.
fn vocabulary() -> (Value, &'static str) {
    let printable = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let moved = (0..256).filter(|&b| !printable(b)).zip(256..).map(|(_, c)| c);
    let characters = (0..256).filter(|&b| printable(b)).chain(moved).map(|c| char::from_u32(c).unwrap().to_string());
    let words = ["Ġt", "he", "Ġthe"].map(String::from);
    let tokens = std::iter::once("<|endoftext|>".to_string()).chain(characters).chain(words);
    let map: serde_json::Map<String, Value> = tokens.enumerate().map(|(id, token)| (token, json!(id))).collect();
    (Value::Object(map), "#version: 0.2\nĠ t\nh e\nĠt he\n")
}

/// A checkpoint that fits the vocabulary.
fn fake(vocab_size: usize) -> Fake {
    let mut fake = Fake::gpt2();
    fake.set("vocab_size", json!(vocab_size));
    fake.tensors.insert("transformer.wte.weight".into(), Tensor::new(&[vocab_size, D], |i| i as f32 * 1e-4));
    fake
}

fn folder(vocab_size: usize, vocab: &Value, merges: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fake(vocab_size).write(folder.path());
    std::fs::write(folder.path().join("vocab.json"), vocab.to_string()).unwrap();
    std::fs::write(folder.path().join("merges.txt"), merges).unwrap();
    folder
}

/// The tokenizer in the converted model.
fn tokenizer(folder: &Path) -> Tokenizer {
    let (file, _) = converted(folder, QuantType::Q8).unwrap();
    Tokenizer::from_bytes(&*file.tokenizer_json().unwrap()).unwrap()
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, false).unwrap().get_ids().to_vec()
}

#[test]
fn builds_byte_level_bpe_from_vocabulary_and_merges() {
    let (vocab, merges) = vocabulary();
    let dir = folder(260, &vocab, merges);
    let built = tokenizer(dir.path());
    let id = |token: &str| vocab[token].as_u64().unwrap() as u32;
    assert_eq!(ids(&built, "x the<|endoftext|>"), [id("x"), id("Ġthe"), 0]);
    let text = "the naïve 漢字\n\ttabs  and <|endoftext|> 🦊";
    assert_eq!(built.decode(&ids(&built, text), false).unwrap(), text);
    assert_eq!(built.decode(&[id("h"), 0], true).unwrap(), "h", "the end of text is special");
    let names: Vec<_> =
        Checkpoint::open(dir.path()).unwrap().files().iter().map(|p| p.file_name().unwrap().to_owned()).collect();
    assert_eq!(names, ["config.json", "model.safetensors", "vocab.json", "merges.txt"]);

    // Windows line ends, and a token that only the config knows, which gets the next id.
    std::fs::write(dir.path().join("merges.txt"), merges.replace('\n', "\r\n")).unwrap();
    let map = json!({ "eos_token": "<|endoftext|>", "pad_token": { "content": "<pad>", "lstrip": true } });
    fake(261).write(dir.path());
    std::fs::write(dir.path().join("special_tokens_map.json"), map.to_string()).unwrap();
    let built = tokenizer(dir.path());
    assert_eq!(ids(&built, "x the<|endoftext|>x <pad>"), [id("x"), id("Ġthe"), 0, id("x"), 260]);
}

#[test]
fn a_tokenizer_that_does_not_fit_is_refused() {
    let (vocab, merges) = vocabulary();
    let dir = folder(259, &vocab, merges);
    let message = failure(dir.path());
    let expected = "vocab.json: token \"Ġthe\" has id 259, but `vocab_size` is 259 (config.json)";
    assert!(message.contains(expected), "{message}");
    let padded = folder(300, &vocab, merges);
    assert!(Checkpoint::open(padded.path()).unwrap().has_tokenizer(), "rows without tokens are padding");
}

#[test]
fn damaged_tokenizer_files_are_refused() {
    let (vocab, merges) = vocabulary();
    let dir = folder(260, &vocab, merges);
    let case = |file: &str, content: &str, expected: &str| {
        let path = dir.path().join(file);
        let before = std::fs::read(&path).ok();
        std::fs::write(&path, content).unwrap();
        let message = failure(dir.path());
        assert!(message.contains(expected), "{message} should contain {expected}");
        match before {
            Some(bytes) => std::fs::write(&path, bytes).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
    };
    case("merges.txt", "a b c\n", "merges.txt: line 1 is \"a b c\", expected two tokens");
    case("merges.txt", "#version\nqq zz\n", "vocab.json: not a tokenizer");
    case("merges.txt", "", "merges.txt: the file is empty");
    case("vocab.json", r#"{"a": -1}"#, "vocab.json: token \"a\" has id -1, expected a whole number");
    case("vocab.json", r#"{"a": 1, "b": 1}"#, "tokens \"a\" and \"b\" both have id 1");
    case("vocab.json", "[1]", "vocab.json: expected a JSON object");
    case("tokenizer_config.json", r#"{"tokenizer_class": "CLIPTokenizer"}"#, "`tokenizer_class` is CLIPTokenizer");
    case("tokenizer.json", "{", "tokenizer.json: not a tokenizer");
    let unigram = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,"pre_tokenizer":null,
        "post_processor":null,"decoder":{"type":"Metaspace","replacement":"_","prepend_scheme":"always","split":true},
        "model":{"type":"BPE","vocab":{"a":0},"merges":[]}}"#;
    case("tokenizer.json", unigram, "its `decoder` is Metaspace, expected ByteLevel");
    std::fs::remove_file(dir.path().join("merges.txt")).unwrap();
    assert!(failure(dir.path()).contains("vocab.json: there is no merges.txt beside it"));
}

#[test]
fn a_checkpoint_without_a_tokenizer_is_converted_with_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    Fake::gpt2().write(dir.path());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert!(!checkpoint.has_tokenizer());
    assert!(checkpoint.warnings().iter().any(|w| w.contains("no tokenizer.json")));
}

/// Compares with golden ids, and how many strings there were.
fn assert_golden(tokenizer: &Tokenizer, golden: &Path) -> usize {
    let golden: Vec<Value> = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    for case in &golden {
        let text = case["text"].as_str().unwrap();
        let expected: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(ids(tokenizer, text), expected, "{text:?}");
        assert_eq!(tokenizer.decode(&expected, false).unwrap(), case["decoded"].as_str().unwrap());
        assert_eq!(tokenizer.decode(&expected, true).unwrap(), case["decoded_skip_special"].as_str().unwrap());
    }
    golden.len()
}

/// A folder with the vocabulary and merges of `source`, without its `tokenizer.json`.
fn without_json(source: &Path, vocab_size: usize, extra: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fake(vocab_size).write(dir.path());
    for name in ["vocab.json", "merges.txt"].iter().chain(extra) {
        std::fs::copy(source.join(name), dir.path().join(name)).unwrap();
    }
    dir
}

#[test]
fn the_built_gpt2_tokenizer_gives_the_golden_ids() {
    let Some(gpt2) = shared("tokenizers/gpt2") else { return };
    let dir = without_json(&gpt2, 50257, &[]);
    assert_eq!(assert_golden(&tokenizer(dir.path()), &gpt2.join("tokenizer-golden.json")), 83);
}

#[test]
fn the_built_tokenizer_of_the_minis_gives_the_golden_ids() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mini = root.join("models/gpt2-mini");
    if !mini.exists() {
        return; // the crate alone, as it is packaged
    }
    let built = without_json(&mini, 3584, &["tokenizer_config.json", "special_tokens_map.json"]);
    let (built, original) = (tokenizer(built.path()), Tokenizer::from_file(mini.join("tokenizer.json")).unwrap());
    for text in ["Once upon a time", " \n\n  \"Who?\" said he.", "<|endoftext|>naïve 漢字 🦊", "it's  1,000 we'll"]
    {
        assert_eq!(ids(&built, text), ids(&original, text), "{text:?}");
    }
    assert_eq!(assert_golden(&built, &root.join("tests/data/gpt2-mini/tokenizer-golden.json")), 83);
}

#[test]
fn a_tokenizer_json_is_kept_byte_for_byte() {
    let (vocab, merges) = vocabulary();
    let dir = folder(260, &vocab, merges);
    let (file, _) = converted(dir.path(), QuantType::Q8).unwrap();
    let mut text = file.tokenizer_json().unwrap().to_vec();
    text.extend(b"\n \n");
    std::fs::write(dir.path().join("tokenizer.json"), &text).unwrap();
    let (file, report) = converted(dir.path(), QuantType::Q8).unwrap();
    assert_eq!(&*file.tokenizer_json().unwrap(), text);
    assert!(report.plan.tokenizer_bytes >= text.len() as u64);
}
