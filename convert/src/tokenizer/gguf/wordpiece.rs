//! BERT's tokenizer in a GGUF: whole words, and pieces that go on.
//!
//! A file has a space before each piece that begins a word, as SentencePiece has, and none before those that go on. Hugging Face
//! has it the other way round: `##` before those that go on, and nothing before the others.

use super::{CONTROL, NORMAL, Tokens, UNKNOWN, UNUSED, USER_DEFINED, template};
use crate::checkpoint::gguf::Metadata;
use crate::error::{ConvertError, shown};
use serde_json::{Map, json};

/// What stands before a piece that begins a word: U+2581.
const BEGINS: char = '▁';
/// Characters of a word that is still looked up, as `transformers` has it.
const LONGEST_WORD: usize = 100;

/// A `tokenizer.json` of the kind `bert`.
pub(super) fn build(metadata: &Metadata, tokens: &Tokens<'_>) -> Result<Vec<u8>, ConvertError> {
    let (mut vocab, mut recognised) = (Map::new(), Vec::new());
    let mut pieces = vec![None; tokens.texts.len()];
    let mut cased = false;
    for (id, token, kind) in tokens.iter().filter(|token| token.2 != UNUSED) {
        // Older files have these as they are, whatever their kind.
        let bracketed = token.len() > 2 && token.starts_with('[') && token.ends_with(']');
        let whole = [CONTROL, UNKNOWN].contains(&kind);
        let piece = match token.strip_prefix(BEGINS) {
            Some(word) if !whole => word.to_string(),
            None if !whole && !bracketed && kind != USER_DEFINED => format!("##{token}"),
            _ => token.to_string(),
        };
        if kind != NORMAL || (bracketed && tokens.kinds.is_empty()) {
            recognised.push(json!({
                "id": id, "content": piece, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": kind != USER_DEFINED,
            }));
        } else if !bracketed {
            cased |= piece.bytes().any(|byte| byte.is_ascii_uppercase());
        }
        if let Some(other) = vocab.insert(piece.clone(), json!(id)) {
            return Err(metadata.error(format!("tokens {other} and {id} are both {:?}", shown(&piece))));
        }
        pieces[id] = Some(piece);
    }
    let named = |keys: &[&str], usual: &str| -> Result<(usize, &str), ConvertError> {
        for key in keys.iter().map(|key| format!("tokenizer.ggml.{key}")) {
            let Some(id) = metadata.count(&key)? else { continue };
            let id = usize::try_from(id).unwrap_or(usize::MAX);
            return match pieces.get(id) {
                Some(Some(piece)) => Ok((id, piece)),
                _ => Err(metadata.refuse(&key, format!("a token that is in use, of {}", pieces.len()))),
            };
        }
        let id = pieces.iter().position(|piece| piece.as_deref() == Some(usual));
        let id =
            id.ok_or_else(|| metadata.error(format!("no token {usual:?}, and no `tokenizer.ggml.{}`", keys[0])))?;
        Ok((id, pieces[id].as_deref().unwrap_or_default()))
    };
    // The first spelling is the one that files have.
    let begin = named(&["cls_token_id", "bos_token_id"], "[CLS]")?;
    let end = named(&["seperator_token_id", "separator_token_id", "eos_token_id"], "[SEP]")?;
    let (_, unknown) = named(&["unknown_token_id"], "[UNK]")?;
    // Older files do not say it: a vocabulary without large letters was made so.
    let lowercase = metadata.bool("tokenizer.ggml.normalizer.lowercase")?.unwrap_or(!cased);
    let description = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": recognised,
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": metadata.bool("tokenizer.ggml.normalizer.strip_accents")?, "lowercase": lowercase,
        },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": template(Some(begin), Some(end)),
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": {
            "type": "WordPiece",
            "unk_token": unknown,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": LONGEST_WORD,
            "vocab": vocab,
        },
    });
    Ok(description.to_string().into_bytes())
}
