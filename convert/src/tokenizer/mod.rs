//! The tokenizer that goes into the model file: from `tokenizer.json`, or from one built from
//! `vocab.json` and `merges.txt`. Either way the library that defines it has accepted it, and
//! every id has a row in the embedding.
//!
//! It is stored as the runtime's tables when those can be shown to do the same ([`pack`]), else as JSON.

mod chat;
pub(crate) mod gguf;
mod pack;
mod proof;
mod tables;

use crate::checkpoint::{json_object, read_small};
use crate::error::{ConvertError, shown};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tidbit_runtime::error::TokenizerError;
use tidbit_runtime::format::{Chat, TOKENIZER, TOKENIZER_TABLES};
use tokenizers::Tokenizer;

/// What a folder has for a tokenizer.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// What goes into the model file.
    pub(crate) tokenizer: Option<StoredTokenizer>,
    /// The files it was made from.
    pub(crate) files: Vec<PathBuf>,
}

/// A tokenizer as it goes into the model file.
#[derive(Debug)]
pub(crate) struct StoredTokenizer {
    /// Its name there.
    pub(crate) name: &'static str,
    /// Its bytes.
    pub(crate) bytes: Vec<u8>,
    /// Why it is stored as JSON, if it is.
    pub(crate) kept: Option<String>,
    /// How the model is spoken to, if it answers.
    pub(crate) chat: Option<Chat>,
}

impl StoredTokenizer {
    /// Tables of this `tokenizer.json` where that is possible, else the JSON.
    pub(crate) fn new(json: Vec<u8>) -> Self {
        match pack::pack(&json) {
            Ok(bytes) => Self { name: TOKENIZER_TABLES, bytes, kept: None, chat: None },
            Err(reason) => Self { name: TOKENIZER, bytes: json, kept: Some(shown(&reason)), chat: None },
        }
    }
}

/// Loads and checks a folder's tokenizer, with the chat template that belongs to it.
pub(crate) fn load(folder: &Path, vocab_size: usize) -> Result<Loaded, ConvertError> {
    let mut loaded = load_alone(folder, vocab_size)?;
    if let Some(tokenizer) = &mut loaded.tokenizer {
        let (chat, files) = chat::load(folder)?;
        tokenizer.chat = chat;
        for file in files {
            if !loaded.files.contains(&file) {
                loaded.files.push(file);
            }
        }
    }
    Ok(loaded)
}

fn load_alone(folder: &Path, vocab_size: usize) -> Result<Loaded, ConvertError> {
    let file = |name: &str| Some(folder.join(name)).filter(|p| p.exists());
    if let Some(path) = file("tokenizer.json") {
        let bytes = read_small(&path)?;
        validate(&path, &bytes, vocab_size)?;
        return Ok(Loaded { tokenizer: Some(StoredTokenizer::new(bytes)), files: vec![path] });
    }
    let (vocab, merges) = match (file("vocab.json"), file("merges.txt")) {
        (Some(vocab), Some(merges)) => (vocab, merges),
        (Some(vocab), None) => return Err(ConvertError::tokenizer(&vocab, "there is no merges.txt beside it")),
        (None, Some(merges)) => return Err(ConvertError::tokenizer(&merges, "there is no vocab.json beside it")),
        (None, None) => return Ok(Loaded::default()),
    };
    let mut files = vec![vocab, merges];
    let mut extra = |name: &str| -> Result<Map<String, Value>, ConvertError> {
        let Some(path) = file(name) else { return Ok(Map::new()) };
        let object = json_object(&path, &read_small(&path)?)?;
        files.push(path);
        Ok(object)
    };
    let config = extra("tokenizer_config.json")?;
    let (added, specials) = (extra("added_tokens.json")?, extra("special_tokens_map.json")?);
    let bytes = build(folder, &config, &added, &specials)?;
    validate(&folder.join("vocab.json"), &bytes, vocab_size)?;
    Ok(Loaded { tokenizer: Some(StoredTokenizer::new(bytes)), files })
}

/// Checks that the library takes it, that the runtime can decode with it, and that its ids fit.
pub(crate) fn validate(path: &Path, bytes: &[u8], vocab_size: usize) -> Result<(), ConvertError> {
    let error = |reason: String| Err(ConvertError::tokenizer(path, reason));
    // First, because it checks what the library follows blindly.
    match tidbit_runtime::tokenizer::Tokenizer::from_json(bytes) {
        Ok(_) => {}
        Err(TokenizerError::Parse(reason)) => return error(format!("not a tokenizer: {}", shown(&reason))),
        Err(e) => return error(shown(&e.to_string())),
    }
    let tokenizer = match Tokenizer::from_bytes(bytes) {
        Ok(tokenizer) => tokenizer,
        Err(e) => return error(format!("not a tokenizer: {}", shown(&e.to_string()))),
    };
    let outside = tokenizer.get_vocab(true).into_iter().filter(|&(_, id)| id as usize >= vocab_size);
    match outside.min_by_key(|&(_, id)| id) {
        Some((token, id)) => {
            let token = shown(&token);
            error(format!("token {token:?} has id {id}, but `vocab_size` is {vocab_size}"))
        }
        None => Ok(()),
    }
}

/// Describes a GPT-2 style tokenizer: byte-level BPE over the splitting rule of GPT-2.
fn build(
    folder: &Path,
    config: &Map<String, Value>,
    added: &Map<String, Value>,
    specials: &Map<String, Value>,
) -> Result<Vec<u8>, ConvertError> {
    let path = folder.join("vocab.json");
    let class = config.get("tokenizer_class").and_then(Value::as_str);
    if let Some(class) = class
        && !["GPT2Tokenizer", "GPT2TokenizerFast", "GPTNeoXTokenizer", "GPTNeoXTokenizerFast"].contains(&class)
    {
        let reason = format!("`tokenizer_class` is {}, expected GPT2Tokenizer or a tokenizer.json", shown(class));
        return Err(ConvertError::tokenizer(&folder.join("tokenizer_config.json"), reason));
    }
    let vocab = json_object(&path, &read_small(&path)?)?;
    let mut ids = BTreeMap::new();
    for (token, id) in &vocab {
        let Some(number) = id.as_u64().and_then(|n| u32::try_from(n).ok()) else {
            let reason = format!("token {:?} has id {}, expected a whole number", shown(token), shown(&id.to_string()));
            return Err(ConvertError::tokenizer(&path, reason));
        };
        if let Some(other) = ids.insert(number, token.as_str()) {
            let reason = format!("tokens {:?} and {:?} both have id {number}", shown(other), shown(token));
            return Err(ConvertError::tokenizer(&path, reason));
        }
    }
    let prefix_space = config.get("add_prefix_space").and_then(Value::as_bool).unwrap_or(false);
    let byte_level =
        json!({ "type": "ByteLevel", "add_prefix_space": prefix_space, "trim_offsets": true, "use_regex": true });
    let description = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(&ids, &vocab, config, added, specials),
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": false,
            "vocab": vocab,
            "merges": merges(&folder.join("merges.txt"))?,
        },
    });
    Ok(description.to_string().into_bytes())
}

/// The pairs of `merges.txt`, best first.
fn merges(path: &Path) -> Result<Vec<[String; 2]>, ConvertError> {
    let bytes = read_small(path)?;
    let text = std::str::from_utf8(&bytes).map_err(|e| ConvertError::tokenizer(path, e.to_string()))?;
    let mut merges = Vec::new();
    for (i, line) in text.split('\n').enumerate() {
        let line = line.trim_end_matches('\r');
        if line.is_empty() || (i == 0 && line.starts_with("#version")) {
            continue;
        }
        match line.split_once(' ') {
            Some((left, right)) if !left.is_empty() && !right.is_empty() && !right.contains(' ') => {
                merges.push([left.into(), right.into()]);
            }
            _ => {
                let reason = format!("line {} is {:?}, expected two tokens", i + 1, shown(line));
                return Err(ConvertError::tokenizer(path, reason));
            }
        }
    }
    Ok(merges)
}

/// Tokens that are recognised as a whole, in order of their ids.
fn added_tokens(
    ids: &BTreeMap<u32, &str>,
    vocab: &Map<String, Value>,
    config: &Map<String, Value>,
    added: &Map<String, Value>,
    specials: &Map<String, Value>,
) -> Vec<Value> {
    let mut tokens: BTreeMap<u64, Value> = BTreeMap::new();
    let entry = |id: u64, content: &str, from: Option<&Value>, special: bool| {
        let flag = |name: &str, default: bool| from.and_then(|f| f.get(name)?.as_bool()).unwrap_or(default);
        json!({
            "id": id,
            "content": content,
            "single_word": flag("single_word", false),
            "lstrip": flag("lstrip", false),
            "rstrip": flag("rstrip", false),
            "normalized": flag("normalized", false),
            "special": flag("special", special),
        })
    };
    for (id, token) in config.get("added_tokens_decoder").and_then(Value::as_object).into_iter().flatten() {
        if let (Ok(id), Some(content)) = (id.parse(), token.get("content").and_then(Value::as_str)) {
            tokens.insert(id, entry(id, content, Some(token), false));
        }
    }
    for (content, id) in added {
        if let Some(id) = id.as_u64() {
            tokens.entry(id).or_insert_with(|| entry(id, content, None, false));
        }
    }
    let mut next = tokens.keys().chain(ids.keys().map(|&id| u64::from(id)).max().as_ref()).max().map_or(0, |id| id + 1);
    let known = tokens.values().filter_map(|t| t.get("content")?.as_str().map(String::from)).collect::<Vec<_>>();
    let named = specials.values().chain(config.iter().filter(|(k, _)| k.ends_with("_token")).map(|(_, v)| v));
    let named = named.flat_map(|v| if let Value::Array(list) = v { list.iter().collect() } else { vec![v] });
    let mut wanted: Vec<(&str, Option<&Value>)> = Vec::new();
    for value in named {
        let content = value.as_str().or_else(|| value.get("content")?.as_str());
        wanted.extend(content.map(|c| (c, Some(value).filter(|v| v.is_object()))));
    }
    if wanted.is_empty() && tokens.is_empty() && vocab.contains_key(END_OF_TEXT) {
        wanted.push((END_OF_TEXT, None));
    }
    for (content, from) in wanted {
        if content.is_empty() || known.iter().any(|k| k == content) {
            continue;
        }
        let in_vocab = vocab.get(content).and_then(Value::as_u64);
        let taken = tokens.values().any(|t| t.get("content").and_then(Value::as_str) == Some(content));
        if taken {
            continue;
        }
        let id = in_vocab.unwrap_or_else(|| {
            next += 1;
            next - 1
        });
        tokens.insert(id, entry(id, content, from, true));
    }
    tokens.into_values().collect()
}

/// GPT-2's only special token.
const END_OF_TEXT: &str = "<|endoftext|>";
