//! What a tokenizer adds to a text: tokens before the first of a session, as `tidbit run` has them, and those around a text
//! that is embedded.

#![allow(clippy::undocumented_unsafe_blocks, reason = "every pointer is that of a local")]

mod support;

use serde_json::{Map, Value, json};
use std::path::Path;
use std::ptr::{null, null_mut};
use tidbit::info::tidbit_info_int;
use tidbit::model::{tidbit_model_estimate, tidbit_model_free, tidbit_model_open};
use tidbit::objects::{tidbit_model, tidbit_session};
use tidbit::options::{tidbit_options_free, tidbit_options_new, tidbit_options_set_float};
use tidbit::saved::{tidbit_session_load, tidbit_session_save};
use tidbit::session_calls::*;
use tidbit::status::*;
use tidbit_convert::{Checkpoint, Options, convert};
use tidbit_runtime::embed::Embedder;
use tidbit_runtime::engine::{Engine, EngineOptions};
use tidbit_runtime::model::Model;
use tidbit_runtime::quant::QuantType;
use tidbit_runtime::sequence::{Sequence, SequenceOptions};

/// A checkpoint of the repository with another tokenizer, as a model file.
fn with_tokenizer(checkpoint: &Path, folder: &Path, tokenizer: &Value) -> std::path::PathBuf {
    for entry in std::fs::read_dir(checkpoint).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
        }
    }
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let file = folder.join("model.tidbit");
    let options = Options { quant: QuantType::F32, cancel: None };
    convert(&Checkpoint::open(folder).unwrap(), &file, &options, &mut ()).unwrap();
    file
}

fn open(file: &Path) -> (*mut tidbit_model, *mut tidbit_session) {
    let (mut model, mut session) = (null_mut(), null_mut());
    let path = file.to_str().unwrap();
    assert_eq!(unsafe { tidbit_model_open(path.as_ptr().cast(), path.len(), null(), &raw mut model) }, TIDBIT_OK);
    assert_eq!(unsafe { tidbit_session_new(model, null(), &raw mut session) }, TIDBIT_OK);
    (model, session)
}

fn free(model: *mut tidbit_model, session: *mut tidbit_session) {
    assert_eq!(unsafe { tidbit_session_free(session) }, TIDBIT_OK);
    assert_eq!(unsafe { tidbit_model_free(model) }, TIDBIT_OK);
}

fn append(session: *mut tidbit_session, text: &str) -> Status {
    unsafe { tidbit_session_append_text(session, text.as_ptr().cast(), text.len(), null_mut()) }
}

fn tokens(session: *mut tidbit_session) -> Vec<u32> {
    let (mut tokens, mut n) = ([0; 100], 0);
    assert_eq!(unsafe { tidbit_session_tokens(session, tokens.as_mut_ptr(), 100, &raw mut n) }, TIDBIT_OK);
    tokens[..n].to_vec()
}

fn embed(session: *mut tidbit_session, text: &str) -> Result<Vec<f32>, Status> {
    let (mut buffer, mut n) = (vec![0.0; 1000], 0);
    let (text, length) = (text.as_ptr().cast(), text.len());
    let status = unsafe { tidbit_session_embed(session, text, length, buffer.as_mut_ptr(), 1000, &raw mut n) };
    buffer.truncate(n);
    if status == TIDBIT_OK { Ok(buffer) } else { Err(status) }
}

fn fact(handle: *const tidbit_session, key: &str) -> i64 {
    let mut value = 0;
    let status = unsafe { tidbit_info_int(handle.cast(), key.as_ptr().cast(), key.len(), &raw mut value) };
    assert_eq!(status, TIDBIT_OK, "{key}");
    value
}

/// What the Rust library makes of it.
fn expected(file: &Path, text: &str) -> Vec<f32> {
    let model = Model::open(file).unwrap();
    let ids = model.tokenizer().unwrap().unwrap().encode_whole(text).unwrap();
    Embedder::new(&model, &EngineOptions::default()).unwrap().embed(&[ids]).unwrap().remove(0)
}

#[test]
fn a_session_begins_with_the_token_that_the_tokenizer_wants() {
    let (folder, checkpoint) = (support::scratch(), support::root().join("../models/gpt2-mini"));
    let mut tokenizer: Value =
        serde_json::from_str(&std::fs::read_to_string(checkpoint.join("tokenizer.json")).unwrap()).unwrap();
    let (start, text) = (json!({ "id": "<|endoftext|>", "type_id": 0 }), json!({ "id": "A", "type_id": 0 }));
    tokenizer["post_processor"] = json!({ "type": "TemplateProcessing", "pair": [],
        "single": [{ "SpecialToken": start }, { "Sequence": text }],
        "special_tokens": { "<|endoftext|>": { "id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"] } } });
    let file = with_tokenizer(&checkpoint, folder.path(), &tokenizer);
    let (model, session) = open(&file);
    let plain = Model::open(&file).unwrap().tokenizer().unwrap().unwrap().encode("Once upon").unwrap();

    assert_eq!(append(session, "Once upon"), TIDBIT_OK);
    let begun = [&[0], &plain[..]].concat();
    assert_eq!(tokens(session), begun);
    assert_eq!(append(session, "Once upon"), TIDBIT_OK);
    assert_eq!(tokens(session), [&begun[..], &plain].concat(), "only at the beginning");
    assert_eq!(unsafe { tidbit_session_rewind(session, 0) }, TIDBIT_OK);
    assert_eq!(append(session, "<|endoftext|>Once upon"), TIDBIT_OK);
    assert_eq!(tokens(session), begun, "not twice");
    assert_eq!(unsafe { tidbit_session_rewind(session, 0) }, TIDBIT_OK);
    assert_eq!(append(session, ""), TIDBIT_OK);
    assert_eq!(tokens(session), [0], "for a host that goes on with tokens");
    free(model, session);
}

#[test]
fn an_encoder_embeds() {
    let folder = support::scratch();
    let mut vocab: Map<String, Value> = (4..71).map(|id| (format!("w{id}"), id.into())).collect();
    for (token, id) in [("[PAD]", 0), ("[UNK]", 1), ("[CLS]", 2), ("[SEP]", 3)] {
        vocab.insert(token.into(), id.into());
    }
    let tokenizer = json!({ "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "BertPreTokenizer" }, "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "post_processor": { "type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2] },
        "model": { "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab } });
    let file = with_tokenizer(&support::root().join("../tests/families/bert"), folder.path(), &tokenizer);
    let (model, session) = open(&file);
    // Nothing is taken that was not told: the batch of an encoder is a whole text.
    let (path, mut bytes) = (file.to_str().unwrap(), (0, 0));
    let outs = (&raw mut bytes.0, &raw mut bytes.1);
    let status = unsafe { tidbit_model_estimate(path.as_ptr().cast(), path.len(), null(), outs.0, outs.1) };
    assert_eq!(status, TIDBIT_OK);
    assert!((fact(session, "scratch_bytes") + fact(session, "cache_bytes")) as u64 <= bytes.1);
    for text in ["w5 w6", "", "w7 w8 w9 w10 w11"] {
        assert_eq!(embed(session, text), Ok(expected(&file, text)), "{text:?}");
    }
    assert_eq!(embed(session, &"w5 ".repeat(10_000)), Err(TIDBIT_CONTEXT_FULL));
    assert_eq!(unsafe { tidbit_session_cancel(session) }, TIDBIT_OK);
    assert_eq!(embed(session, "w5"), Err(TIDBIT_CANCELLED));
    // There are no logits.
    assert_eq!(append(session, "w5 w6"), TIDBIT_UNSUPPORTED);
    assert_eq!(embed(session, "w5 w6").unwrap().len(), 36);
    free(model, session);
}

/// The first text is the encoder's, and the session's begins by itself.
#[test]
fn a_model_with_an_encoder_writes_about_the_first_text() {
    let folder = support::scratch();
    let mut vocab: Vec<Value> = vec![json!(["<pad>", 0.0]), json!(["</s>", 0.0])];
    vocab.extend((2..71).map(|id| json!([format!("\u{2581}w{id}"), -2.0])));
    let spaces = json!({ "type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true });
    let tokenizer = json!({ "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": spaces, "decoder": spaces,
        "post_processor": { "type": "TemplateProcessing", "pair": [],
            "single": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "SpecialToken": { "id": "</s>", "type_id": 0 } }],
            "special_tokens": { "</s>": { "id": "</s>", "ids": [1], "tokens": ["</s>"] } } },
        "model": { "type": "Unigram", "unk_id": 2, "vocab": vocab, "byte_fallback": false } });
    let file = with_tokenizer(&support::root().join("../tests/families/flan-t5"), folder.path(), &tokenizer);
    let (model, session) = open(&file);
    let (path, mut bytes) = (file.to_str().unwrap(), (0, 0));
    let outs = (&raw mut bytes.0, &raw mut bytes.1);
    let status = unsafe { tidbit_model_estimate(path.as_ptr().cast(), path.len(), null(), outs.0, outs.1) };
    assert_eq!(status, TIDBIT_OK);
    let next = |session| {
        let (mut token, mut text, mut n) = (0, [0u8; 64], 0);
        let (buffer, length) = (text.as_mut_ptr().cast(), &raw mut n);
        let status = unsafe { tidbit_session_next(session, &raw mut token, buffer, 64, length) };
        assert_eq!(status, TIDBIT_OK);
        (token, String::from_utf8(text[..n].to_vec()).unwrap())
    };
    let (mut greedy, key) = (null_mut(), "sampling.temperature");
    assert_eq!(unsafe { tidbit_options_new(&raw mut greedy) }, TIDBIT_OK);
    assert_eq!(unsafe { tidbit_options_set_float(greedy, key.as_ptr().cast(), key.len(), 0.0) }, TIDBIT_OK);
    assert_eq!(unsafe { tidbit_session_set_sampling(session, greedy) }, TIDBIT_OK);
    assert_eq!(unsafe { tidbit_options_free(greedy) }, TIDBIT_OK);
    let read = [55u32, 48, 25, 50, 41];
    let begin = |session| unsafe { tidbit_session_append(session, read.as_ptr(), read.len()) };
    assert_eq!(begin(session), TIDBIT_OK);
    assert_eq!(tokens(session), [0]);
    assert!((fact(session, "scratch_bytes") + fact(session, "cache_bytes")) as u64 <= bytes.1);
    // However short the text itself may be.
    let short = SequenceOptions { context: Some(1), cache_type: None };
    let opened = Model::open(&file).unwrap();
    let mut sequence = Sequence::new(&opened, &short).unwrap();
    let mut engine = Engine::new(&opened, &EngineOptions { threads: Some(1), max_batch: Some(1) }).unwrap();
    engine.encode(&mut sequence, &[7; 64]).unwrap();
    assert!(sequence.cache_bytes() <= short.cache_bytes(opened.file().contents()).unwrap());
    // As transformers does.
    let written = [(38, "w38"), (14, " w14"), (29, " w29")].map(|(id, text)| (id, text.to_owned()));
    let found = [next(session), next(session), next(session)];
    assert_eq!(found, written);
    // The same again, behind the token that the decoder begins with.
    assert_eq!(unsafe { tidbit_session_rewind(session, 1) }, TIDBIT_OK);
    assert_eq!([next(session), next(session), next(session)], written);
    // Another goes on about the same text.
    let mut clone = null_mut();
    assert_eq!(unsafe { tidbit_session_clone(session, &raw mut clone) }, TIDBIT_OK);
    assert_eq!(next(clone), (38, " w38".to_owned()));
    // What is appended later is the model's own text; a new one begins with what is to be read.
    assert_eq!(unsafe { tidbit_session_append(session, [5u32].as_ptr(), 1) }, TIDBIT_OK);
    assert_eq!(tokens(session), [0, 38, 14, 29, 5]);
    assert_eq!(unsafe { tidbit_session_rewind(session, 0) }, TIDBIT_OK);
    let mut n = 0;
    let text = "w55 w48";
    let status = unsafe { tidbit_session_append_text(session, text.as_ptr().cast(), text.len(), &raw mut n) };
    assert_eq!((status, n, tokens(session)), (TIDBIT_OK, 3, vec![0]), "with the token that ends it");
    assert_eq!(unsafe { tidbit_session_rewind(session, 0) }, TIDBIT_OK);
    assert_eq!(begin(session), TIDBIT_OK);
    assert_eq!(next(session), written[0]);

    let long = vec![3u32; 65];
    assert_eq!(unsafe { tidbit_session_rewind(session, 0) }, TIDBIT_OK);
    assert_eq!(unsafe { tidbit_session_append(session, long.as_ptr(), 65) }, TIDBIT_CONTEXT_FULL);
    assert_eq!(unsafe { tidbit_session_append(session, [71u32].as_ptr(), 1) }, TIDBIT_INVALID_ARGUMENT);
    assert_eq!(tokens(session), [0u32; 0]);
    let mut score = 0.0;
    let mut fresh = null_mut();
    assert_eq!(unsafe { tidbit_session_new(model, null(), &raw mut fresh) }, TIDBIT_OK);
    let status = unsafe { tidbit_session_score(fresh, read.as_ptr(), 5, null_mut(), &raw mut score) };
    assert_eq!(status, TIDBIT_EMPTY, "nothing was read");
    let status = unsafe { tidbit_session_score(session, read.as_ptr(), 5, null_mut(), &raw mut score) };
    assert_eq!(status, TIDBIT_EMPTY, "what was read before does not count");
    let mut length = 0;
    assert_eq!(unsafe { tidbit_session_save(session, null_mut(), 0, &raw mut length) }, TIDBIT_UNSUPPORTED);
    assert_eq!(unsafe { tidbit_session_load(session, null(), 0) }, TIDBIT_UNSUPPORTED);
    assert_eq!(embed(session, "w5 w6"), Ok(expected(&file, "w5 w6")));
    assert_eq!(begin(session), TIDBIT_OK);
    assert_eq!(next(session), written[0], "embedding leaves all as it was");
    free(model, session);
    assert_eq!(unsafe { tidbit_session_free(clone) }, TIDBIT_OK);
    assert_eq!(unsafe { tidbit_session_free(fresh) }, TIDBIT_OK);
}

/// A decoder embeds too, and goes on with its own text as if nothing had been.
#[test]
fn embedding_leaves_the_text_alone() {
    let file = support::gpt2();
    let (model, session) = open(&file);
    assert_eq!(append(session, "Once upon a time"), TIDBIT_OK);
    let before = tokens(session);
    let logits = |session| {
        let (mut row, mut n) = (vec![0f32; 100_000], 0);
        let status = unsafe { tidbit_session_output(session, TIDBIT_LOGITS, 1, row.as_mut_ptr(), 100_000, &raw mut n) };
        assert_eq!(status, TIDBIT_OK);
        row.truncate(n);
        row
    };
    let told = logits(session);
    assert_eq!(embed(session, "the king"), Ok(expected(&file, "the king")));
    assert_eq!(embed(session, ""), Err(TIDBIT_EMPTY));
    assert_eq!(tokens(session), before);
    assert_eq!(logits(session), told);
    free(model, session);
}
