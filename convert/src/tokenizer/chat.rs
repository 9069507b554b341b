//! The chat template of a checkpoint, and the special tokens that it names. It is stored as it is: who runs it has to
//! bound it.

use crate::checkpoint::gguf::Metadata;
use crate::checkpoint::{json_object, read_small};
use crate::error::{ConvertError, shown};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tidbit_runtime::format::Chat;

/// Special tokens that templates name, and their keys in a GGUF.
const TOKENS: [(&str, &str); 7] = [
    ("bos_token", "bos_token_id"),
    ("eos_token", "eos_token_id"),
    ("unk_token", "unknown_token_id"),
    ("sep_token", "seperator_token_id"),
    ("pad_token", "padding_token_id"),
    ("cls_token", "cls_token_id"),
    ("mask_token", "mask_token_id"),
];

/// The template of a folder, if it has one, and the files it was read from: `chat_template.jinja`, or the field of that name in
/// `tokenizer_config.json`.
pub(super) fn load(folder: &Path) -> Result<(Option<Chat>, Vec<PathBuf>), ConvertError> {
    let mut files = Vec::new();
    let mut object = |name: &str| -> Result<Map<String, Value>, ConvertError> {
        let path = folder.join(name);
        if !path.exists() {
            return Ok(Map::new());
        }
        let object = json_object(&path, &read_small(&path)?)?;
        files.push(path);
        Ok(object)
    };
    let (config, specials) = (object("tokenizer_config.json")?, object("special_tokens_map.json")?);
    let alone = folder.join("chat_template.jinja");
    let (path, template) = if alone.exists() {
        let bytes = read_small(&alone)?;
        let text = String::from_utf8(bytes).map_err(|e| ConvertError::tokenizer(&alone, e.to_string()))?;
        files.push(alone.clone());
        (alone, Some(text))
    } else {
        let path = folder.join("tokenizer_config.json");
        let template = in_config(&path, config.get("chat_template"))?;
        (path, template)
    };
    let Some(template) = template else { return Ok((None, Vec::new())) };
    let text = |name: &str| {
        let value = config.get(name).or(specials.get(name))?;
        value.as_str().or(value["content"].as_str()).map(String::from)
    };
    let tokens = TOKENS.iter().filter_map(|(name, _)| Some(((*name).to_string(), text(name)?)));
    let chat = Chat { template, tokens: tokens.collect() };
    chat.check().map_err(|e| ConvertError::tokenizer(&path, e))?;
    Ok((Some(chat), files))
}

/// One template, or the one called `default` of several.
fn in_config(path: &Path, field: Option<&Value>) -> Result<Option<String>, ConvertError> {
    let wrong = |value: &Value| {
        let reason = format!("`chat_template` is {}, expected a template", shown(&value.to_string()));
        ConvertError::tokenizer(path, reason)
    };
    match field {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(template)) => Ok(Some(template.clone())),
        Some(Value::Array(list)) => match list.iter().find(|one| one["name"] == "default") {
            Some(one) => Ok(Some(one["template"].as_str().ok_or_else(|| wrong(one))?.into())),
            None => Ok(None),
        },
        Some(other) => Err(wrong(other)),
    }
}

/// The template of a GGUF, if it has one.
pub(super) fn of_gguf(path: &Path, metadata: &Metadata, tokens: &[String]) -> Result<Option<Chat>, ConvertError> {
    let Some(template) = metadata.text("tokenizer.chat_template")? else { return Ok(None) };
    let mut named = BTreeMap::new();
    for (name, key) in TOKENS {
        let id = metadata.count(&format!("tokenizer.ggml.{key}"))?;
        let token = id.and_then(|id| tokens.get(usize::try_from(id).ok()?));
        named.extend(token.map(|token| (name.to_string(), token.clone())));
    }
    let chat = Chat { template: template.into(), tokens: named };
    chat.check().map_err(|e| ConvertError::tokenizer(path, e))?;
    Ok(Some(chat))
}
