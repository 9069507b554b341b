//! Tokenizers: kept as they are, or built from vocabulary and merges with the same ids as the original.

mod support;

use serde_json::{Value, json};
use std::path::Path;
use support::*;
use tidbit_convert::Checkpoint;
use tidbit_runtime::format::{TOKENIZER, TOKENIZER_TABLES};
use tidbit_runtime::quant::QuantType;
use tidbit_runtime::tokenizer::Tokenizer;

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

/// The tokenizer in the converted model, which has the form `name`.
fn tokenizer(folder: &Path, name: &str) -> Tokenizer {
    let (file, _) = converted(folder, QuantType::Q8).unwrap();
    let (found, bytes) = file.tokenizer().unwrap();
    assert_eq!(found, name);
    if name == TOKENIZER { Tokenizer::from_json(&bytes) } else { Tokenizer::from_tables(bytes) }.unwrap()
}

/// The tokenizer in the converted model: tables.
fn tables(folder: &Path) -> Tokenizer {
    tokenizer(folder, TOKENIZER_TABLES)
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text).unwrap()
}

#[test]
fn builds_byte_level_bpe_from_vocabulary_and_merges() {
    let (vocab, merges) = vocabulary();
    let dir = folder(260, &vocab, merges);
    let built = tables(dir.path());
    let id = |token: &str| vocab[token].as_u64().unwrap() as u32;
    assert_eq!(ids(&built, "x the<|endoftext|>"), [id("x"), id("Ġthe"), 0]);
    let text = "the naïve 漢字\n\ttabs  and <|endoftext|> 🦊";
    assert_eq!(built.decode(&ids(&built, text)), text);
    assert_eq!(built.decode_skip_special(&[id("h"), 0]), "h", "the end of text is special");
    let names: Vec<_> =
        Checkpoint::open(dir.path()).unwrap().files().iter().map(|p| p.file_name().unwrap().to_owned()).collect();
    assert_eq!(names, ["config.json", "model.safetensors", "vocab.json", "merges.txt"]);

    // Windows line ends, and a token that only the config knows, which gets the next id.
    std::fs::write(dir.path().join("merges.txt"), merges.replace('\n', "\r\n")).unwrap();
    let map = json!({ "eos_token": "<|endoftext|>", "pad_token": { "content": "<pad>", "lstrip": true } });
    fake(261).write(dir.path());
    std::fs::write(dir.path().join("special_tokens_map.json"), map.to_string()).unwrap();
    // It takes the spaces before it, which tables do not do.
    let built = tokenizer(dir.path(), TOKENIZER);
    assert_eq!(ids(&built, "x the<|endoftext|>x <pad>"), [id("x"), id("Ġthe"), 0, id("x"), 260]);
}

#[test]
fn a_tokenizer_that_does_not_fit_is_refused() {
    let (vocab, merges) = vocabulary();
    let dir = folder(259, &vocab, merges);
    let message = failure(dir.path());
    let expected = "vocab.json: token \"Ġthe\" has id 259, but `vocab_size` is 259";
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
        "post_processor":null,"decoder":{"type":"BPEDecoder","suffix":"-"},
        "model":{"type":"BPE","vocab":{"a":0},"merges":[]}}"#;
    case("tokenizer.json", unigram, "`decoder` is BPEDecoder, supported: ByteLevel");
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
        assert_eq!(tokenizer.decode(&expected), case["decoded"].as_str().unwrap());
        assert_eq!(tokenizer.decode_skip_special(&expected), case["decoded_skip_special"].as_str().unwrap());
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
    assert_eq!(assert_golden(&tables(dir.path()), &gpt2.join("tokenizer-golden.json")), 83);
}

#[test]
fn the_built_tokenizer_of_the_minis_gives_the_golden_ids() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mini = root.join("models/gpt2-mini");
    if !mini.exists() {
        return; // the crate alone, as it is packaged
    }
    let built = without_json(&mini, 3584, &["tokenizer_config.json", "special_tokens_map.json"]);
    let json = std::fs::read(mini.join("tokenizer.json")).unwrap();
    let (built, original) = (tables(built.path()), Tokenizer::from_json(&json).unwrap());
    for text in ["Once upon a time", " \n\n  \"Who?\" said he.", "<|endoftext|>naïve 漢字 🦊", "it's  1,000 we'll"]
    {
        assert_eq!(ids(&built, text), ids(&original, text), "{text:?}");
    }
    assert_eq!(assert_golden(&built, &root.join("tests/data/gpt2-mini/tokenizer-golden.json")), 83);
}

/// A `tokenizer.json` of the small vocabulary.
fn description() -> Value {
    let (vocab, merges) = vocabulary();
    let merges: Vec<&str> = merges.lines().skip(1).collect();
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [added(0, "<|endoftext|>")], "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges },
    })
}

fn added(id: u32, content: &str) -> Value {
    json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": true })
}

/// A folder with this tokenizer.
fn with_json(json: &[u8], vocab_size: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fake(vocab_size).write(dir.path());
    std::fs::write(dir.path().join("tokenizer.json"), json).unwrap();
    dir
}

/// Numbers that are random enough for tests: `SplitMix64`.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    /// Random bytes as text, characters of all planes, runs of the same, and the ones that patterns name.
    fn text(&mut self) -> String {
        let mut text = String::new();
        for _ in 0..self.below(60) {
            match self.below(6) {
                0 => {
                    let bytes: Vec<u8> = (0..self.below(8)).map(|_| self.below(256) as u8).collect();
                    text.push_str(&String::from_utf8_lossy(&bytes));
                }
                1 => text.extend(char::from_u32(self.below(0x11_0000) as u32)),
                2 => text.extend(char::from_u32(self.below(0x3000) as u32)),
                3 => text.push_str(
                    &" \n\t\u{a0}x1"[..].chars().nth(self.below(6)).unwrap().to_string().repeat(self.below(9)),
                ),
                4 => {
                    text.push_str(
                        [" the", "'ll", "'S", "<|endoftext|>", "1234", "e\u{301}", "가", "  ", "▁", "</s>"]
                            [self.below(10)],
                    );
                }
                _ => text.push(char::from(self.below(128) as u8)),
            }
        }
        text
    }
}

/// Tables and library agree on ids, and on the text of the ids, at once and as a stream.
fn assert_same(tables: &Tokenizer, library: &Tokenizer, text: &str) {
    let (found, expected) = (ids(tables, text), ids(library, text));
    if found != expected {
        let at = found.iter().zip(&expected).position(|(a, b)| a != b).unwrap_or(found.len().min(expected.len()));
        panic!("after {:?}", library.decode(&expected[at.saturating_sub(8)..at]));
    }
    assert!(tables.decode(&expected) == library.decode(&expected));
    assert!(tables.decode_skip_special(&expected) == library.decode_skip_special(&expected));
    // What stands around a text does not depend on its length.
    if text.len() < 1 << 10 {
        assert!(tables.encode_start(text).unwrap() == library.encode_start(text).unwrap());
        assert!(tables.encode_whole(text).unwrap() == library.encode_whole(text).unwrap());
    }
    let streamed = |tokenizer: &Tokenizer| {
        let mut stream = tokenizer.stream();
        let text: String = expected.iter().map(|&id| stream.push(id).to_owned()).collect();
        text + stream.finish()
    };
    assert!(streamed(tables) == streamed(library));
    // A stream does not know that it is at the beginning, so it keeps the space that was added there.
    let text = streamed(tables);
    let without = text.strip_prefix(' ').filter(|_| tables.adds_space()).unwrap_or(&text);
    assert!(without == library.decode(&expected));
}

/// Compares on the first `most` bytes of the evaluation texts, and on random ones.
fn assert_same_on_texts(dir: &Path, json: &[u8], most: usize) {
    let (tables, library) = (tables(dir), Tokenizer::from_json(json).unwrap());
    assert_eq!(tables.vocab_len(), library.vocab_len());
    for name in ["text/heldout.txt", "text/wikitext2-test.txt"] {
        if let Some(path) = shared(name) {
            let text = std::fs::read_to_string(path).unwrap();
            assert_same(&tables, &library, &text[..text.floor_char_boundary(most)]);
        }
    }
    let mut random = Random(1);
    for _ in 0..1000 {
        assert_same(&tables, &library, &random.text());
    }
    let ids: Vec<u32> = (0..5000).map(|_| random.below(library.vocab_len() + 10) as u32).collect();
    assert_eq!(tables.decode(&ids), library.decode(&ids));
}

#[test]
fn tables_of_real_tokenizers_give_the_ids_of_the_library() {
    let mini = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/gpt2-mini");
    let real = ["gpt2", "neox"].map(|name| shared(&format!("tokenizers/{name}")));
    for folder in real.into_iter().flatten().chain([mini]) {
        let json = std::fs::read(folder.join("tokenizer.json")).unwrap();
        assert_same_on_texts(with_json(&json, 50432).path(), &json, usize::MAX);
    }
}

/// The library's tables of characters and the ones in the file, for every character there is.
#[test]
fn tables_class_every_character_as_the_library_does() {
    let json = description().to_string().into_bytes();
    let (dir, library) = (with_json(&json, 260), Tokenizer::from_json(&json).unwrap());
    let tables = tables(dir.path());
    let all: Vec<char> = ('\0'..=char::MAX).collect();
    for part in all.chunks(1 << 16) {
        // Pieces end where the class changes, and a merge of ` t` shows where they start.
        let text: String = part.iter().flat_map(|&c| ['a', c, ' ', 't', c]).collect();
        assert_same(&tables, &library, &text);
    }
}

#[test]
fn splitters_and_normalizers_of_other_families_become_tables() {
    let byte_level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    let split = |expression: &str| {
        json!({ "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": expression }, "behavior": "Isolated", "invert": false }, byte_level] })
    };
    let digits = |individual: bool| {
        json!({ "type": "Sequence", "pretokenizers": [{ "type": "Digits", "individual_digits": individual },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true }] })
    };
    let llama = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let o200k = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let cases = [
        (split(llama), json!({ "type": "NFC" })),
        (split(o200k), Value::Null),
        (split(r"\p{N}"), json!({ "type": "Sequence", "normalizers": [{ "type": "NFC" }] })),
        (digits(true), Value::Null),
        (digits(false), Value::Null),
        (byte_level, Value::Null),
    ];
    for (pre_tokenizer, normalizer) in cases {
        let mut json = description();
        // Tokens that overlap, of both kinds, one of which the normalizer changes.
        for (id, content, normalized) in
            [(260, "<|a|>", false), (261, "<|a|><|b|>", false), (262, "  ", true), (263, "e\u{301}", true)]
        {
            let mut token = added(id, content);
            token["normalized"] = normalized.into();
            json["added_tokens"].as_array_mut().unwrap().push(token);
        }
        (json["pre_tokenizer"], json["normalizer"]) = (pre_tokenizer, normalizer);
        // As LLaMA 3 has it.
        let begin = json!({ "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<|endoftext|>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { "<|endoftext|>": { "id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"] } } });
        json["post_processor"] = json!({ "type": "Sequence", "processors": [
            { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true }, begin] });
        let json = json.to_string().into_bytes();
        let dir = with_json(&json, 300);
        assert_same_on_texts(dir.path(), &json, 1 << 16);
        let tables = tables(dir.path());
        let library = Tokenizer::from_json(&json).unwrap();
        assert_eq!(tables.encode_start("the").unwrap()[0], 0);
        assert_same(&tables, &library, "<|a|><|b|><|a|> <|a|><|   the  e\u{301}\u{e9}");
    }
}

#[test]
fn what_tables_cannot_say_is_kept_byte_for_byte() {
    type Change = fn(&mut Value);
    let cases: [(&str, Change); 13] = [
        ("`normalizer` is NFKC", |t| t["normalizer"] = json!({ "type": "NFKC" })),
        ("`pre_tokenizer` ByteLevel adds a space", |t| t["pre_tokenizer"]["add_prefix_space"] = true.into()),
        ("`pre_tokenizer` is not ByteLevel", |t| t["pre_tokenizer"] = Value::Null),
        ("`pre_tokenizer` Whitespace is not known", |t| t["pre_tokenizer"] = json!({ "type": "Whitespace" })),
        ("`model` is not BPE without dropout", |t| t["model"]["dropout"] = 1.0.into()),
        ("`model` marks parts of words", |t| t["model"]["end_of_word_suffix"] = "</w>".into()),
        ("added token \"<|endoftext|>\" looks around", |t| t["added_tokens"][0]["lstrip"] = true.into()),
        ("looks around", |t| {
            t["pre_tokenizer"] = json!({ "type": "Sequence", "pretokenizers": [
                { "type": "Split", "pattern": { "Regex": r"(?<=a)b|." }, "behavior": "Isolated", "invert": false },
                { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false }] });
        }),
        ("does not isolate", |t| {
            t["pre_tokenizer"] = json!({ "type": "Sequence", "pretokenizers": [
                { "type": "Split", "pattern": { "Regex": " " }, "behavior": "Removed", "invert": false },
                { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false }] });
        }),
        ("`model` takes \"ab\" as a whole", |t| {
            t["model"]["ignore_merges"] = true.into();
            t["model"]["vocab"]["ab"] = 260.into();
        }),
        ("`normalizer` is Prepend with more than spaces", |t| {
            *t = sentencepiece();
            t["normalizer"]["normalizers"][1]["content"] = "_".into();
        }),
        ("`pre_tokenizer` Metaspace does more than replace spaces", |t| {
            *t = sentencepiece();
            metaspace(t, "first");
            t["pre_tokenizer"]["split"] = true.into();
        }),
        ("`pre_tokenizer` and `normalizer` leave spaces", |t| {
            *t = sentencepiece();
            t["normalizer"] = Value::Null;
        }),
    ];
    for (reason, change) in cases {
        let mut json = description();
        change(&mut json);
        let mut json = json.to_string().into_bytes();
        json.extend(b"\n \n");
        let dir = with_json(&json, 500);
        let warnings = Checkpoint::open(dir.path()).unwrap().warnings().join("\n");
        assert!(warnings.contains("stored as JSON") && warnings.contains(reason), "{warnings} should contain {reason}");
        let (file, _) = converted(dir.path(), QuantType::Q8).unwrap();
        assert_eq!(*file.tokenizer().unwrap().1, json);
        let (kept, library) = (tokenizer(dir.path(), TOKENIZER), Tokenizer::from_json(&json).unwrap());
        for text in ["", "a b", " the end<|endoftext|>"] {
            assert_eq!(kept.encode(text).ok(), library.encode(text).ok());
        }
    }
}

/// SentencePiece's BPE, with some words of a text as its merges.
fn sentencepiece() -> Value {
    let mut vocab = serde_json::Map::new();
    let bytes = (0..=255u8).map(|byte| format!("<0x{byte:02X}>"));
    let letters = (b' '..=b'~').map(|c| char::from(c).to_string().replace(' ', "▁"));
    let more = ["é", "漢", "\u{301}", "\n"].map(String::from);
    let tokens = ["<unk>", "<s>", "</s>"].map(String::from).into_iter().chain(bytes).chain(letters).chain(more);
    for token in tokens {
        vocab.insert(token, vocab.len().into());
    }
    let mut merges = Vec::new();
    for pair in ["t h", "th e", "▁ the", "▁ ▁", "▁▁ ▁▁", "▁▁ ▁", "a a", "aa aa", "a aa", "1 2", "e \u{301}", "▁the ▁"]
    {
        merges.push(pair);
        vocab.insert(pair.replace(' ', ""), vocab.len().into());
    }
    json!({
        "version": "1.0", "truncation": null, "padding": null, "pre_tokenizer": null,
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        "normalizer": { "type": "Sequence", "normalizers": [{ "type": "Prepend", "prepend": "▁" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "▁" }] },
        "post_processor": { "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } },
                { "SpecialToken": { "id": "</s>", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] },
                "</s>": { "id": "</s>", "ids": [2], "tokens": ["</s>"] } } },
        "decoder": { "type": "Sequence", "decoders": [{ "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
            { "type": "ByteFallback" }, { "type": "Fuse" }, { "type": "Strip", "content": " ", "start": 1, "stop": 0 }] },
        "model": { "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": merges },
    })
}

/// `SentencePiece`'s spaces before texts as the library's `Metaspace` has them.
fn metaspace(t: &mut Value, scheme: &str) {
    t["normalizer"] = Value::Null;
    t["pre_tokenizer"] = json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false });
}

#[test]
fn sentencepiece_of_many_kinds_becomes_tables() {
    type Change = fn(&mut Value);
    let replace = |t: &mut Value| t["normalizer"] = t["normalizer"]["normalizers"][1].take();
    let cases: [Change; 10] = [
        |_| {},
        |t| t["post_processor"] = Value::Null,
        |t| metaspace(t, "first"),
        |t| metaspace(t, "always"),
        |t| {
            metaspace(t, "never");
            t["decoder"]["decoders"].as_array_mut().unwrap().pop();
        },
        |t| t["model"]["byte_fallback"] = false.into(),
        |t| {
            t["model"]["byte_fallback"] = false.into();
            t["model"]["fuse_unk"] = false.into();
        },
        |t| {
            t["model"]["byte_fallback"] = false.into();
            t["model"]["unk_token"] = Value::Null;
        },
        |t| drop(t["model"]["vocab"].as_object_mut().unwrap().remove("<0xE2>")),
        |t| {
            t["pre_tokenizer"] = json!({ "type": "Split", "pattern": { "String": " " },
                "behavior": "MergedWithPrevious", "invert": false });
        },
    ];
    for (i, change) in cases.into_iter().enumerate() {
        for (normalized, without_prefix) in [(false, false), (true, false), (true, true)] {
            // What the kinds differ in has nothing to do with the rest.
            if normalized && ![0, 5, 9].contains(&i) {
                continue;
            }
            let mut json = sentencepiece();
            if without_prefix {
                replace(&mut json);
            }
            change(&mut json);
            // Tokens that the normalizer changes.
            for (id, content) in [(400, "  \n"), (401, "<|a|>"), (402, "▁▁▁▁▁")] {
                let mut token = added(id, content);
                (token["normalized"], token["special"]) = (normalized.into(), false.into());
                json["model"]["vocab"][content] = id.into();
                json["added_tokens"].as_array_mut().unwrap().push(token);
            }
            let json = json.to_string().into_bytes();
            let dir = with_json(&json, 500);
            println!("case {i}, normalized {normalized}, without a prefix {without_prefix}");
            assert_same_on_texts(dir.path(), &json, 1 << 14);
            let (tables, library) = (tables(dir.path()), Tokenizer::from_json(&json).unwrap());
            let texts = ["", " ", "<s>", "<s> the", " <|a|> the<|a|>  \n  ▁▁▁▁▁▁", "aaaaaaa é漢🦊 ▁the  the    "];
            for text in texts {
                assert_same(&tables, &library, text);
            }
        }
    }
}
