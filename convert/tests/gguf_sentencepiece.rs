//! GGUFs with SentencePiece tokenizers give the ids that SentencePiece itself gives, which `tests/data/gguf/make_sentencepiece.py`
//! wrote down.

mod support;

use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use support::gguf::{D, File, Key, llama};
use support::*;
use tidbit_convert::Checkpoint;
use tidbit_runtime::format::{TOKENIZER, TOKENIZER_TABLES};
use tidbit_runtime::quant::QuantType;
use tidbit_runtime::tokenizer::Tokenizer;

#[derive(Deserialize)]
struct Golden {
    texts: Vec<String>,
    /// Of each model, eight digits for each text.
    sums: BTreeMap<String, String>,
}

/// FNV-1a of the ids.
fn checksum(ids: &[u32]) -> String {
    let sum = ids
        .iter()
        .flat_map(|id| id.to_le_bytes())
        .fold(0x811c_9dc5u32, |sum, byte| (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("{sum:08x}")
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/gguf")
}

/// The tokenizer in the model that a file becomes.
fn in_model(path: &Path) -> Tokenizer {
    let (model, _) = converted(path, QuantType::Q8).unwrap();
    let (form, bytes) = model.tokenizer().unwrap();
    if form == TOKENIZER_TABLES { Tokenizer::from_tables(bytes) } else { Tokenizer::from_json(&bytes) }.unwrap()
}

#[test]
fn bpe_becomes_tables() {
    for (name, expected) in
        [("llama", TOKENIZER_TABLES), ("gemma", TOKENIZER_TABLES), ("unknown", TOKENIZER_TABLES), ("t5", TOKENIZER)]
    {
        let path = fixtures().join(format!("sentencepiece-{name}.gguf"));
        let (model, _) = converted(&path, QuantType::Q8).unwrap();
        assert_eq!(model.tokenizer().unwrap().0, expected, "{name}: {:?}", Checkpoint::open(&path).unwrap().warnings());
    }
}

/// Compares all texts of a folder.
fn check(folder: &Path) {
    let golden: Golden = serde_json::from_slice(&std::fs::read(folder.join("sentencepiece.json")).unwrap()).unwrap();
    assert!(golden.texts.len() >= 2000 && !golden.sums.is_empty());
    let mut others = Vec::new();
    for (name, sums) in &golden.sums {
        let tokenizer = in_model(&folder.join(format!("sentencepiece-{name}.gguf")));
        let before = others.len();
        for (text, sum) in golden.texts.iter().zip(sums.as_bytes().chunks(8)) {
            let ids = tokenizer.encode(text).unwrap();
            if checksum(&ids).as_bytes() != sum {
                others.push((name, text, ids));
            }
        }
        println!("{name}: {} of {} texts differ", others.len() - before, golden.texts.len());
    }
    assert!(others.is_empty(), "{} texts differ: {:?}", others.len(), &others[..others.len().min(9)]);
}

#[test]
fn ids_are_those_of_sentencepiece() {
    check(&fixtures());
    if let Some(folder) = shared("tokenizers/sentencepiece") {
        check(&folder);
    }
}

/// A name without `tokenizer.ggml`, and a value.
type Change = (&'static str, Key);

/// A file with these tokens, their scores and kinds, and some keys.
fn with(kind: &'static str, tokens: &[(String, f32, i32)], changes: Vec<Change>) -> File {
    let mut file = llama();
    let n = tokens.len().max(8);
    file.tensors.retain(|t| t.name != "token_embd.weight");
    file.f32s("token_embd.weight", &[n, D], &vec![0.5; n * D]);
    file.key("tokenizer.ggml.model", Key::Text(kind));
    file.key("tokenizer.ggml.tokens", Key::Texts(tokens.iter().map(|token| token.0.clone()).collect()));
    file.key("tokenizer.ggml.scores", Key::Floats(tokens.iter().map(|token| token.1).collect()));
    file.key("tokenizer.ggml.token_type", Key::Ints(tokens.iter().map(|token| token.2).collect()));
    file.key("tokenizer.ggml.bos_token_id", Key::U32(1)).key("tokenizer.ggml.eos_token_id", Key::U32(2));
    for (name, value) in changes {
        file.key(&format!("tokenizer.ggml.{name}"), value);
    }
    file
}

/// A few tokens: the unknown, both ends, letters, a pair, and one that was put in by hand.
fn few() -> Vec<(String, f32, i32)> {
    let tokens = [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("▁", 1), ("a", 1), ("b", 1), ("ab", 1), ("<sep>", 4)];
    let scores = [0.0, 0.0, 0.0, -2.0, -3.0, -3.5, -1.0, 0.0];
    tokens.into_iter().zip(scores).map(|((token, kind), score)| (token.into(), score, kind)).collect()
}

/// The tokenizer of a file that converts.
fn opened(file: &File) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    in_model(&file.write(folder.path()))
}

#[test]
fn flags_say_what_stands_around_a_text() {
    let flag = |name: &'static str, on: bool| (name, Key::Bool(on));
    for (kind, changes, expected) in [
        ("llama", vec![], &[1, 3, 6][..]),
        ("llama", vec![flag("add_bos_token", false)], &[3, 6]),
        ("llama", vec![flag("add_eos_token", true)], &[1, 3, 6, 2]),
        ("llama", vec![flag("add_space_prefix", false)], &[1, 6]),
        ("t5", vec![], &[3, 6, 2]),
        ("t5", vec![flag("add_bos_token", true), flag("add_eos_token", false)], &[1, 3, 6]),
    ] {
        let tokenizer = opened(&with(kind, &few(), changes));
        assert_eq!(tokenizer.encode_whole("ab").unwrap(), expected, "{kind}");
        let mut start = expected.to_vec();
        start.retain(|&id| id != 2);
        assert_eq!(tokenizer.encode_start("ab").unwrap(), start, "{kind}");
        // As conversations have it, whose template writes what they begin with.
        let written = tokenizer.encode_start("<s>ab").unwrap();
        assert_eq!(written, if start[0] == 1 { start } else { [&[1], &start[..]].concat() }, "{kind}");
        assert_eq!(tokenizer.decode_skip_special(expected), "ab", "{kind}");
        assert!(tokenizer.is_special(1) && !tokenizer.is_special(7));
    }
}

#[test]
fn bytes_stand_for_what_has_no_piece() {
    let bytes = (0..=255u8).map(|byte| (format!("<0x{byte:02X}>"), 0.0, 6));
    let letters = "<0x41>".chars().map(|c| (c.to_string(), -9.0, 1)).take(5);
    let tokens: Vec<_> = few().into_iter().chain(bytes).chain(letters).chain([(">".into(), -9.0, 1)]).collect();
    for kind in ["llama", "t5"] {
        let tokenizer = opened(&with(kind, &tokens, vec![]));
        let text = "ab é<sep>b\n🦊";
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(tokenizer.decode(&ids).replace("<sep> ", "<sep>"), text, "{kind}");
        assert!(ids.contains(&(8 + 0xC3)) && ids.contains(&7), "{kind}: {ids:?}");
        let mut stream = tokenizer.stream();
        let streamed: String = ids.iter().map(|&id| stream.push(id).to_owned()).collect();
        assert_eq!(streamed, format!(" {}", tokenizer.decode(&ids)), "{kind}");
        // What is written like a byte is text.
        let ids = tokenizer.encode("<0x41>").unwrap();
        assert!(!ids.contains(&(8 + 0x41)), "{kind}: {ids:?}");
    }
}

#[test]
fn damaged_pieces_are_refused_by_name() {
    let message = |kind, tokens: &[_], changes| {
        let folder = tempfile::tempdir().unwrap();
        let message = failure(&with(kind, tokens, changes).write(folder.path()));
        assert!(message.contains("model.gguf: ") && !message.contains('\n'), "{message}");
        message
    };
    let one = |id: usize, text: &str, score: f32, kind: i32| {
        let mut tokens = few();
        tokens[id] = (text.into(), score, kind);
        tokens
    };
    let names = ["<0x00>", "<0x01>"].map(|name| (name.to_string(), 0.0, 6));
    let two: Vec<_> = few().into_iter().chain(names).collect();
    let count = "expected as many as there are tokens, 8";
    let set = |name: &'static str, value: Key| vec![(name, value)];
    for kind in ["llama", "t5"] {
        for (tokens, changes, expected) in [
            (few(), set("scores", Key::Floats(vec![0.0; 7])), format!("scores` is an array of 7 floats, {count}")),
            (few(), set("scores", Key::U32(7)), "scores` is 7, expected an array of floats".into()),
            (few(), set("token_type", Key::Ints(vec![1; 9])), format!("token_type` is an array of 9 numbers, {count}")),
            (few(), set("token_type", Key::Ints(vec![])), format!("token_type` is an array of 0 numbers, {count}")),
            (few(), set("tokens", Key::Texts(vec!["a".into(); 9])), "at most 8, the rows of the embedding".into()),
            (
                few(),
                [set("bos_token_id", Key::U32(8)), set("add_bos_token", Key::Bool(true))].concat(),
                "bos_token_id` is 8, expected an id below 8, the number of tokens".into(),
            ),
            (few(), set("add_bos_token", Key::U32(1)), "add_bos_token` is 1, expected true or false".into()),
            (one(4, "b", 0.0, 1), vec![], "tokens 4 and 5 are both \"b\"".into()),
            (one(4, "a", f32::NAN, 1), vec![], "token 4 has score NaN, expected a finite number".into()),
            (one(4, "a", f32::NEG_INFINITY, 1), vec![], "token 4 has score -inf, expected a finite number".into()),
            (one(4, "<0x0a>", 0.0, 6), vec![], "token 4 is \"<0x0a>\", expected a byte such as \"<0x0A>\"".into()),
            (two.clone(), vec![], "2 tokens for bytes, expected 256 or none: \"<0x02>\" is missing".into()),
        ] {
            let message = message(kind, &tokens, changes);
            assert!(message.contains(&expected), "{kind}: {message:?} should contain {expected:?}");
        }
    }
    let long: Vec<_> = few().into_iter().chain([("x".repeat(12_000), 0.0, 1)]).collect();
    let found = message("llama", &long, vec![]);
    assert!(found.contains("token 8 has 12000 bytes: "), "{found}");
}

/// A table of replacements: one unit for each place, and the texts.
fn charsmap(units: &[u32], texts: &[u8]) -> Vec<u8> {
    let length = units.len() as u32 * 4;
    [length].iter().chain(units).flat_map(|n| n.to_le_bytes()).chain(texts.iter().copied()).collect()
}

#[test]
fn damaged_tables_of_replacements_are_refused() {
    const MAP: &str = "precompiled_charsmap";
    const A: usize = 256 ^ b'A' as usize;
    // The root's children are at 256, and what `A` becomes is said at 512.
    let mut units = vec![0u32; 1024];
    units[0] = 256 << 10;
    units[A] = ((A as u32 ^ 512) << 10) | 1 << 8 | u32::from(b'A');
    units[512] = 1 << 31;
    let map = |units: &[u32], texts: &[u8]| Key::Bytes(charsmap(units, texts));
    let tokenizer = opened(&with("t5", &few(), vec![(MAP, map(&units, b"b\0"))]));
    assert_eq!(tokenizer.encode("Ab").unwrap(), [3, 5, 5]);

    let changed = |at: usize, unit: u32| {
        let mut units = units.clone();
        units[at] = unit;
        units
    };
    let far = (0xFFFF << 10) | 1 << 8 | u32::from(b'A');
    for (value, expected) in [
        (Key::Bytes(vec![1]), "expected a trie and its length, found 1 bytes"),
        (Key::Bytes(vec![255; 64]), "a trie of 4294967295 bytes in a table of 64"),
        (Key::Text("AAAA"), "`tokenizer.ggml.precompiled_charsmap` is \"AAAA\", expected an array of bytes"),
        (map(&[], b"b\0"), "a trie of 0 bytes, expected units of 4"),
        (map(&changed(0, 4096 << 10), b"b\0"), " of 1024"),
        (map(&changed(A, far), b"b\0"), " of 1024"),
        (map(&changed(512, 1 << 31 | 3), b"b\0"), "a replacement at byte 3 of 2"),
        (map(&changed(512, 1 << 31 | 1), "é\0".as_bytes()), "a replacement at byte 1 of 3"),
        (map(&units, b"\xFF\0"), "its replacements are not UTF-8"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let message = failure(&with("t5", &few(), vec![(MAP, value)]).write(folder.path()));
        assert!(message.contains(expected) && !message.contains('\n'), "{message:?} should contain {expected:?}");
    }
}

/// Changes bytes in the front of a file, where the tokenizer is.
#[test]
fn no_damage_makes_it_panic() {
    let folder = tempfile::tempdir().unwrap();
    let mut state = 1u64;
    let mut below = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    for name in ["llama", "t5"] {
        let whole = std::fs::read(fixtures().join(format!("sentencepiece-{name}.gguf"))).unwrap();
        let path = folder.path().join("model.gguf");
        for _ in 0..300 {
            let mut bytes = whole.clone();
            for _ in 0..=below(3) {
                bytes[400 + below(13_000)] = below(256) as u8;
            }
            std::fs::write(&path, bytes).unwrap();
            if let Err(e) = Checkpoint::open(&path) {
                assert!(!e.to_string().contains('\n'), "{e}");
            }
        }
    }
}
