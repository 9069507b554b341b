//! A tokenizer as the runtime's tables: byte-level BPE with nothing that the tables cannot say, shown to give the same ids
//! as the library that defines it.

use super::{proof, tables};
use serde_json::Value;
use std::collections::HashMap;
use tidbit_runtime::storage::Bytes;
use tidbit_runtime::tokenizer::Tokenizer;
use tidbit_runtime::tokenizer::bpe::{BpeParts, NO_TOKEN};
use tidbit_runtime::tokenizer::byte_char;
use tidbit_runtime::tokenizer::scanner::ScannerParts;
use tokenizers::{NormalizedString, Normalizer};

/// GPT-2's splitting expression, which the library's `ByteLevel` has built in.
const BYTE_LEVEL: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The longest added token, in characters: the runtime bounds the steps that looking for one may take.
const MAX_ADDED: usize = 128;

/// The tables of a `tokenizer.json`, or why it cannot have any.
pub(super) fn pack(json: &[u8]) -> Result<Vec<u8>, String> {
    let library = tokenizers::Tokenizer::from_bytes(json).map_err(|e| e.to_string())?;
    let description = serde_json::to_value(&library).map_err(|e| e.to_string())?;
    let reference = Tokenizer::from_json(json).map_err(|e| e.to_string())?;

    let nfc = normalizes(&description["normalizer"])?;
    let mut splitters = Vec::new();
    let mut byte_level = false;
    collect_splitters(&description["pre_tokenizer"], &mut splitters, &mut byte_level)?;
    if !byte_level {
        return Err("its `pre_tokenizer` is not ByteLevel".into());
    }
    check_post_processor(&description["post_processor"])?;

    let tokens = tokens(&library, &reference)?;
    let special = (0..tokens.len() as u32).filter(|&id| reference.is_special(id)).collect();
    let (added, added_normalized) = added_tokens(&library)?;
    let (byte_tokens, merges) = merges(&description["model"])?;
    let parts = BpeParts { tokens, special, byte_tokens, merges, nfc, added, added_normalized, splitters };
    if description["model"]["ignore_merges"] == true {
        check_whole_words(&library, &parts)?;
    }
    let bytes = parts.to_bytes();
    let tables = Tokenizer::from_tables(Bytes::copy_from(&bytes)).map_err(|e| e.to_string())?;
    proof::same(&reference, &tables, &parts)?;
    Ok(bytes)
}

/// The type of a part, for messages.
fn kind(part: &Value) -> &str {
    part["type"].as_str().unwrap_or("unknown")
}

/// The members of a sequence; a part by itself is one of length 1, and none is empty.
fn sequence<'a>(part: &'a Value, members: &str) -> Vec<&'a Value> {
    match part {
        Value::Null => Vec::new(),
        part if kind(part) == "Sequence" => {
            part[members].as_array().into_iter().flatten().flat_map(|member| sequence(member, members)).collect()
        }
        part => vec![part],
    }
}

/// Whether text is normalized to NFC; any other normalization is an error.
fn normalizes(normalizer: &Value) -> Result<bool, String> {
    let steps = sequence(normalizer, "normalizers");
    match steps.iter().find(|step| kind(step) != "NFC") {
        Some(other) => Err(format!("its `normalizer` is {}", kind(other))),
        None => Ok(!steps.is_empty()),
    }
}

fn collect_splitters(
    pre_tokenizer: &Value,
    splitters: &mut Vec<ScannerParts>,
    byte_level: &mut bool,
) -> Result<(), String> {
    for step in sequence(pre_tokenizer, "pretokenizers") {
        if *byte_level {
            return Err(format!("its `pre_tokenizer` is ByteLevel and then {}", kind(step)));
        }
        let refuse = |why: &str| Err(format!("its `pre_tokenizer` {} {why}", kind(step)));
        match kind(step) {
            "ByteLevel" => {
                if step["add_prefix_space"] != false {
                    return refuse("adds a space");
                }
                if step["use_regex"] != false {
                    splitters.push(tables::from_regex(BYTE_LEVEL)?);
                }
                *byte_level = true;
            }
            "Split" => {
                let Some(expression) = step["pattern"]["Regex"].as_str() else { return refuse("has no expression") };
                if step["behavior"] != "Isolated" || step["invert"] != false {
                    return refuse("does not isolate");
                }
                splitters.push(tables::from_regex(expression)?);
            }
            "Digits" => {
                let runs = step["individual_digits"] != true;
                splitters.push(tables::from_characters(char::is_numeric, runs));
            }
            _ => return refuse("is not known"),
        }
    }
    Ok(())
}

/// Only what leaves a text's own ids as they are and puts none around them (as LLaMA 3 does): the tables have no such tokens.
fn check_post_processor(post_processor: &Value) -> Result<(), String> {
    for step in sequence(post_processor, "processors") {
        let single = step["single"].as_array().map(Vec::as_slice).unwrap_or_default();
        let texts: Vec<_> = single.iter().filter_map(|piece| piece["Sequence"]["id"].as_str()).collect();
        match kind(step) {
            "ByteLevel" => {}
            "TemplateProcessing" if texts == ["A"] && single.len() == 1 => {}
            other => return Err(format!("its `post_processor` is {other}")),
        }
    }
    Ok(())
}

/// The bytes of every token, by id.
fn tokens(library: &tokenizers::Tokenizer, reference: &Tokenizer) -> Result<Vec<Option<Vec<u8>>>, String> {
    let vocabulary = library.get_vocab(true);
    let n_ids = vocabulary.values().max().map_or(0, |&id| id as usize + 1);
    // Few ids are unused in real vocabularies; one made of holes would only fill memory.
    if n_ids > 4 * vocabulary.len() + 1024 {
        return Err(format!("its {} tokens have ids up to {n_ids}", vocabulary.len()));
    }
    let mut tokens = vec![None; n_ids];
    for &id in vocabulary.values() {
        let mut bytes = Vec::new();
        reference.push_bytes(id, &mut bytes);
        if tokens[id as usize].replace(bytes).is_some() {
            return Err(format!("two of its tokens have id {id}"));
        }
    }
    Ok(tokens)
}

/// Scanners of the added tokens that are looked for before and after normalization.
fn added_tokens(library: &tokenizers::Tokenizer) -> Result<(ScannerParts, ScannerParts), String> {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for (&id, token) in library.get_added_vocabulary().get_added_tokens_decoder() {
        let content = &token.content;
        if token.single_word || token.lstrip || token.rstrip {
            return Err(format!("its added token {content:?} looks around"));
        }
        if content.chars().count() > MAX_ADDED {
            return Err(format!("one of its added tokens has more than {MAX_ADDED} characters"));
        }
        if !token.normalized {
            before.push((content.clone(), id + 1));
            continue;
        }
        let mut normalized = NormalizedString::from(content.as_str());
        if let Some(normalizer) = library.get_normalizer() {
            normalizer.normalize(&mut normalized).map_err(|e| e.to_string())?;
        }
        after.push((normalized.get().to_owned(), id + 1));
    }
    // They come out of a hash map; the same tokenizer must give the same bytes.
    before.sort_unstable();
    after.sort_unstable();
    Ok((tables::from_words(&before)?, tables::from_words(&after)?))
}

/// A model that takes a piece as a whole when it is a token does the same as its merges when those make every token.
fn check_whole_words(library: &tokenizers::Tokenizer, parts: &BpeParts) -> Result<(), String> {
    let bare = BpeParts {
        tokens: parts.tokens.clone(),
        byte_tokens: parts.byte_tokens.clone(),
        merges: parts.merges.clone(),
        ..BpeParts::default()
    };
    let bare = Tokenizer::from_tables(Bytes::copy_from(&bare.to_bytes())).map_err(|e| e.to_string())?;
    for id in library.get_vocab(false).into_values() {
        // Bytes that are no text are no piece; an added token is cut out before there are pieces.
        let Some(Ok(text)) = parts.tokens[id as usize].as_deref().map(std::str::from_utf8) else { continue };
        let is_added = library.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id);
        if !is_added && bare.encode(text).map_err(|e| e.to_string())? != [id] {
            return Err(format!("its `model` takes {text:?} as a whole"));
        }
    }
    Ok(())
}

/// The token of each byte, and the merges, best first.
fn merges(model: &Value) -> Result<(Vec<u32>, Vec<([u32; 2], u32)>), String> {
    let none = |field: &str| matches!(model[field].as_str(), None | Some(""));
    if model["type"] != "BPE" || !(model["dropout"].is_null() || model["dropout"] == 0.0) {
        return Err("its `model` is not BPE without dropout".into());
    }
    if !none("continuing_subword_prefix") || !none("end_of_word_suffix") {
        return Err("its `model` marks parts of words".into());
    }
    let vocab = model["vocab"].as_object().ok_or("its `model` has no vocabulary")?;
    let id = |token: &str| vocab.get(token).and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
    let byte_tokens: Vec<u32> =
        (0..=u8::MAX).map(|byte| id(byte_char(byte).encode_utf8(&mut [0; 4])).unwrap_or(NO_TOKEN)).collect();

    let mut merges = Vec::new();
    let mut rank_of = HashMap::new();
    for merge in model["merges"].as_array().into_iter().flatten() {
        let (left, right) = (merge[0].as_str().unwrap_or_default(), merge[1].as_str().unwrap_or_default());
        let (Some(l), Some(r), Some(merged)) = (id(left), id(right), id(&format!("{left}{right}"))) else {
            return Err(format!("its merge of {left:?} and {right:?} has no token"));
        };
        // Of a pair that is there twice, the library takes the last.
        if let Some(before) = rank_of.insert([l, r], merges.len()) {
            merges[before] = None;
        }
        merges.push(Some(([l, r], merged)));
    }
    Ok((byte_tokens, merges.into_iter().flatten().collect()))
}
