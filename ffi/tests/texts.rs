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
use tidbit::session_calls::*;
use tidbit::status::*;
use tidbit_convert::{Checkpoint, Options, convert};
use tidbit_runtime::embed::Embedder;
use tidbit_runtime::engine::EngineOptions;
use tidbit_runtime::model::Model;
use tidbit_runtime::quant::QuantType;

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
