//! SentencePiece's tokenizers in a GGUF: pieces with scores, of the kind `llama` (BPE) or `t5` (Unigram).
//!
//! SentencePiece has no list of merges: it joins the two neighbours that make the piece with the highest score, the leftmost of
//! equals. The pairs that make a piece are all its halves that are pieces, so in the order of their pieces' scores they are the
//! merges of a BPE, which is how the `tokenizers` library runs such models. Where a piece has several pairs, the library wants
//! an order among them that SentencePiece does not have; the longest left half first does the same for runs of one character.
//!
//! Special and user-defined tokens are cut out of the text first, and what is between them is a text of its own, with a space
//! before it where the model wants one. SentencePiece itself sees no special tokens in texts, and puts that space before the
//! first character only.
//!
//! What remains different with Unigram: the library adds scores in f64, SentencePiece in f32, where `bababababababa` can be a tie;
//! in `precompiled_charsmap` it looks for one character or for the first of an accented one, SentencePiece for as many as there
//! are; and where `<` has no piece, `<0x41>` that was written is the byte. Of 2,400 texts that look for trouble, that is two with a
//! model of 4,000 pieces and SentencePiece's usual table, 95 when it has tokens for bytes, too. BPE has none.

use super::{BYTE, NORMAL, Tokens, UNKNOWN, UNUSED, USER_DEFINED, around};
use crate::checkpoint::gguf::Metadata;
use crate::error::{ConvertError, shown};
use serde_json::{Map, Value, json};
use std::collections::{HashMap, HashSet};
use tokenizers::normalizers::Precompiled;

/// What stands for a space in a piece: U+2581.
const SPACE: &str = "▁";

/// Halving a piece of `n` bytes takes `n` look-ups of up to `n` bytes. Vocabularies of 256,000 pieces add up to some ten million.
const MAX_HALVING: usize = 1 << 27;

/// A `tokenizer.json` of the kind `llama`.
pub(super) fn bpe(metadata: &Metadata, tokens: &Tokens<'_>) -> Result<Vec<u8>, ConvertError> {
    let pieces = Pieces::read(metadata, tokens)?;
    let merges: Vec<_> = merges(metadata, &pieces)?.into_iter().map(|(left, right)| [left, right]).collect();
    let vocab: Map<_, _> = pieces.list.iter().map(|piece| (piece.content.clone(), json!(piece.id))).collect();
    let model = json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": pieces.unknown.and_then(|id| tokens.texts.get(id)),
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": true,
        "byte_fallback": pieces.bytes,
        "ignore_merges": false,
        "vocab": vocab,
        "merges": merges,
    });
    // Files of this kind say nothing about spaces side by side: the models keep them.
    describe(metadata, tokens, &pieces, &model, Defaults { begin: true, end: false, remove_spaces: false })
}

/// A `tokenizer.json` of the kind `t5`.
pub(super) fn unigram(metadata: &Metadata, tokens: &Tokens<'_>) -> Result<Vec<u8>, ConvertError> {
    const NEVER: f32 = 1e6;
    let pieces = Pieces::read(metadata, tokens)?;
    // The library takes every entry for a piece that a text may be made of, and the lowest score for the price of what has none.
    // SentencePiece asks only those that are text. Ids count from the first entry, so the others stay: those that are cut out of
    // texts before with the lowest score, those that no text may be made of far below.
    let text = pieces.list.iter().filter(|piece| piece.kind == NORMAL);
    let lowest = text.map(|piece| piece.score).fold(f32::INFINITY, f32::min);
    let lowest = if lowest.is_finite() { lowest } else { 0.0 };
    let n_ids = pieces.list.last().map_or(0, |piece| piece.id + 1);
    let mut vocab: Vec<_> = tokens.texts.iter().take(n_ids).map(|text| (text.clone(), lowest - NEVER)).collect();
    for piece in &pieces.list {
        let score = match piece.kind {
            NORMAL => piece.score,
            BYTE => lowest - NEVER,
            _ => lowest,
        };
        vocab[piece.id] = (piece.content.clone(), score);
    }
    let model = json!({ "type": "Unigram", "unk_id": pieces.unknown, "vocab": vocab, "byte_fallback": pieces.bytes });
    describe(metadata, tokens, &pieces, &model, Defaults { begin: false, end: true, remove_spaces: true })
}

/// What is so unless the file says otherwise.
#[derive(Clone, Copy)]
struct Defaults {
    begin: bool,
    end: bool,
    remove_spaces: bool,
}

/// A token that may be used.
struct Piece {
    id: usize,
    /// As it stands in a text, or would after normalization.
    content: String,
    score: f32,
    kind: i32,
}

/// The tokens that may be used, by id.
struct Pieces {
    list: Vec<Piece>,
    /// Whether there is a token for each byte.
    bytes: bool,
    unknown: Option<usize>,
}

impl Pieces {
    fn read(metadata: &Metadata, tokens: &Tokens<'_>) -> Result<Self, ConvertError> {
        const SCORES: &str = "tokenizer.ggml.scores";
        let expected = || format!("as many as there are tokens, {}", tokens.texts.len());
        let Some(scores) = metadata.floats(SCORES)? else { return Err(metadata.refuse(SCORES, expected())) };
        if scores.len() != tokens.texts.len() {
            return Err(metadata.refuse(SCORES, expected()));
        }
        if tokens.kinds.is_empty() {
            return Err(metadata.refuse("tokenizer.ggml.token_type", expected()));
        }
        let (mut list, mut ids) = (Vec::new(), HashMap::new());
        let mut n_bytes = 0;
        for ((id, text, kind), &score) in tokens.iter().zip(scores).filter(|(token, _)| token.2 != UNUSED) {
            if !score.is_finite() {
                return Err(metadata.error(format!("token {id} has score {score}, expected a finite number")));
            }
            if kind == BYTE {
                if !(0..=u8::MAX).any(|byte| byte_name(byte) == text) {
                    let reason = format!("token {id} is {:?}, expected a byte such as \"<0x0A>\"", shown(text));
                    return Err(metadata.error(reason));
                }
                n_bytes += 1;
            }
            // A text has spaces where it is searched for these.
            let content = if kind == USER_DEFINED { text.replace(SPACE, " ") } else { text.to_string() };
            if let Some(other) = ids.insert(content.clone(), id) {
                return Err(metadata.error(format!("tokens {other} and {id} are both {:?}", shown(&content))));
            }
            list.push(Piece { id, content, score, kind });
        }
        if n_bytes > 0
            && let Some(missing) = (0..=u8::MAX).map(byte_name).find(|name| !ids.contains_key(name))
        {
            let reason = format!("{n_bytes} tokens for bytes, expected 256 or none: {missing:?} is missing");
            return Err(metadata.error(reason));
        }
        let unknown = list.iter().find(|piece| piece.kind == UNKNOWN).map(|piece| piece.id);
        Ok(Self { list, bytes: n_bytes > 0, unknown })
    }
}

/// The name of a byte's token.
fn byte_name(byte: u8) -> String {
    format!("<0x{byte:02X}>")
}

/// The pairs that make a piece, best first. Only what is text takes part, so no pair makes a special token or that of a byte.
fn merges<'a>(metadata: &Metadata, pieces: &'a Pieces) -> Result<Vec<(&'a str, &'a str)>, ConvertError> {
    let text = || pieces.list.iter().filter(|piece| piece.kind == NORMAL);
    let known: HashSet<&str> = text().map(|piece| piece.content.as_str()).collect();
    let (mut found, mut work) = (Vec::new(), 0usize);
    for Piece { id, content, score, .. } in text() {
        work = work.saturating_add(content.len().saturating_mul(content.len()));
        if work > MAX_HALVING {
            let reason = format!(
                "token {id} has {} bytes: the squares of such lengths up to here are more than {MAX_HALVING}",
                content.len()
            );
            return Err(metadata.error(reason));
        }
        for (at, _) in content.char_indices().skip(1) {
            let (left, right) = content.split_at(at);
            if known.contains(left) && known.contains(right) {
                found.push((*score, *id, left, right));
            }
        }
    }
    // Scores are finite, and -0 is 0.
    found.sort_by(|a, b| {
        b.0.partial_cmp(&a.0).unwrap_or(a.0.total_cmp(&b.0)).then(a.1.cmp(&b.1)).then(b.2.len().cmp(&a.2.len()))
    });
    Ok(found.into_iter().map(|(_, _, left, right)| (left, right)).collect())
}

/// The model, and what is done to texts before it and after.
fn describe(
    metadata: &Metadata,
    tokens: &Tokens<'_>,
    pieces: &Pieces,
    model: &Value,
    defaults: Defaults,
) -> Result<Vec<u8>, ConvertError> {
    let flag = |name: &str, default: bool| {
        Ok::<_, ConvertError>(metadata.bool(&format!("tokenizer.ggml.{name}"))?.unwrap_or(default))
    };
    let prefix = flag("add_space_prefix", true)?;
    let replace = |pattern: &str, content: &str| json!({ "type": "Replace", "pattern": { "String": pattern }, "content": content });
    let remove = |expression: &str, content: &str| json!({ "type": "Replace", "pattern": { "Regex": expression }, "content": content });

    let mut normalizers = Vec::new();
    normalizers.extend(charsmap(metadata)?);
    if flag("remove_extra_whitespaces", defaults.remove_spaces)? {
        // At the end `▁` that was written is a space, too. Runs are looked at from their first character only, and at once.
        normalizers.extend([remove(" {2,}", " "), remove(r"\A ", ""), remove(r"(?<![ ▁])[ ▁]++\z", "")]);
    }
    if prefix {
        normalizers.push(json!({ "type": "Prepend", "prepend": SPACE }));
    }
    normalizers.push(replace(" ", SPACE));
    // SentencePiece looks for user-defined pieces in normalized text, where `▁` that was written is a space. The library can do
    // that only where normalization leaves the pieces themselves as they are.
    let only_spaces = normalizers.len() == 1;

    let mut decoders = vec![replace(SPACE, " ")];
    if pieces.bytes {
        decoders.push(json!({ "type": "ByteFallback" }));
    }
    decoders.push(json!({ "type": "Fuse" }));
    if prefix {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }

    let recognised =
        pieces.list.iter().filter(|piece| ![NORMAL, BYTE].contains(&piece.kind) && !piece.content.is_empty());
    let recognised: Vec<_> = recognised
        .map(|piece| {
            let special = piece.kind != USER_DEFINED;
            json!({
                "id": piece.id, "content": piece.content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": only_spaces && !special, "special": special,
            })
        })
        .collect();
    let description = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": recognised,
        "normalizer": { "type": "Sequence", "normalizers": normalizers },
        "pre_tokenizer": null,
        "post_processor": around(metadata, tokens.texts, defaults.begin, defaults.end)?,
        "decoder": { "type": "Sequence", "decoders": decoders },
        "model": model,
    });
    Ok(description.to_string().into_bytes())
}

/// The table of replacements that the model was trained with.
fn charsmap(metadata: &Metadata) -> Result<Option<Value>, ConvertError> {
    const CHARSMAP: &str = "tokenizer.ggml.precompiled_charsmap";
    let Some(bytes) = metadata.bytes(CHARSMAP)?.filter(|bytes| !bytes.is_empty()) else { return Ok(None) };
    let refuse = |reason: String| metadata.error(format!("`{CHARSMAP}`: {reason}"));
    tidbit_runtime::tokenizer::charsmap::check(bytes).map_err(refuse)?;
    let map = Precompiled::from(bytes).map_err(|e| refuse(e.to_string()))?;
    serde_json::to_value(&map).map(Some).map_err(|e| refuse(e.to_string()))
}
