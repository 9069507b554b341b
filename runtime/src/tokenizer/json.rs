//! A tokenizer as the `tokenizers` crate reads it from a `tokenizer.json`.

use super::{byte_char, charsmap};
use crate::error::TokenizerError;
use serde_json::Value;
use std::collections::HashMap;

/// The crate's tokenizer, and what its tokens stand for.
pub(super) struct Json {
    inner: tokenizers::Tokenizer,
    letters: Letters,
    /// What a text begins with.
    prefix: Vec<u32>,
}

/// What the characters of tokens stand for.
enum Letters {
    /// Each for a byte (GPT-2's alphabet).
    Bytes(HashMap<char, u8>),
    /// For themselves, but for one that stands for a space, and `<0x0A>` for a byte (SentencePiece).
    Spaces {
        space: String,
        byte_fallback: bool,
        /// Whether a text begins with a space that it has not.
        added: bool,
    },
    /// For themselves; a token without this before it begins a word, and has a space before it (BERT).
    Pieces { prefix: String },
}

impl Letters {
    /// Reads a decoder, or says what it is.
    fn of(decoder: &Value) -> Result<Self, String> {
        let kind = |step: &Value| step["type"].as_str().unwrap_or("none").to_string();
        let steps = match decoder["decoders"].as_array() {
            Some(steps) => steps.as_slice(),
            None => std::slice::from_ref(decoder),
        };
        if let [step] = steps
            && kind(step) == "ByteLevel"
        {
            return Ok(Self::Bytes((0..=u8::MAX).map(|byte| (byte_char(byte), byte)).collect()));
        }
        if let ([step], Some(prefix)) = (steps, decoder["prefix"].as_str())
            && kind(step) == "WordPiece"
        {
            return Ok(Self::Pieces { prefix: prefix.into() });
        }
        let (mut space, mut byte_fallback, mut added) = (None, false, false);
        for step in steps {
            match kind(step).as_str() {
                "Replace" if step["content"] == " " => space = step["pattern"]["String"].as_str(),
                "Metaspace" => {
                    space = step["replacement"].as_str();
                    added = step["prepend_scheme"] != "never";
                }
                "ByteFallback" => byte_fallback = true,
                "Strip" if step["content"] == " " && step["start"] == 1 && step["stop"] == 0 => added = true,
                "Fuse" => {}
                other => return Err(other.into()),
            }
        }
        let space = space.filter(|s| !s.is_empty()).ok_or_else(|| kind(decoder))?.into();
        Ok(Self::Spaces { space, byte_fallback, added })
    }
}

impl Json {
    pub(super) fn read(json: &[u8]) -> Result<Self, TokenizerError> {
        let json = std::str::from_utf8(json).map_err(|e| TokenizerError::Parse(one_line(&e)))?;
        charsmap::check_json(json).map_err(TokenizerError::Parse)?;
        // Not `from_bytes`, which is generic: what it reads with would be compiled here, for speed, and twice as large.
        let mut inner: tokenizers::Tokenizer =
            json.parse().map_err(|e: tokenizers::Error| TokenizerError::Parse(one_line(&*e)))?;
        let decoder = serde_json::to_value(inner.get_decoder()).unwrap_or_default();
        let letters = Letters::of(&decoder).map_err(|found| TokenizerError::Unsupported {
            field: "decoder",
            found,
            supported: "ByteLevel, WordPiece, or Metaspace, Replace, ByteFallback, Fuse and Strip",
        })?;
        inner.with_truncation(None).map_err(|e| TokenizerError::Parse(one_line(&*e)))?;
        inner.with_padding(None);
        let mut read = Self { inner, letters, prefix: Vec::new() };
        read.prefix = read.find_prefix()?;
        Ok(read)
    }

    /// The special tokens that the library puts before a text.
    fn find_prefix(&self) -> Result<Vec<u32>, TokenizerError> {
        let (plain, mut whole) = (self.ids("a", false)?, self.ids("a", true)?);
        let at = whole.windows(plain.len().max(1)).position(|part| part == plain).unwrap_or(0);
        whole.truncate(at);
        Ok(whole)
    }

    /// What a text begins with.
    pub(super) fn prefix(&self) -> &[u32] {
        &self.prefix
    }

    /// Whether a text begins with a space that it has not.
    pub(super) fn adds_space(&self) -> bool {
        matches!(self.letters, Letters::Spaces { added: true, .. } | Letters::Pieces { .. })
    }

    pub(super) fn n_tokens(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The token with the highest id.
    pub(super) fn highest(&self) -> Option<(String, u32)> {
        self.inner.get_vocab(true).into_iter().max_by(|a, b| (a.1, &a.0).cmp(&(b.1, &b.0)))
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        // By the id: a token that is normalized has another text than the one it was added with.
        self.inner.get_added_vocabulary().get_added_tokens_decoder().get(&id).is_some_and(|token| token.special)
    }

    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.ids(text, false)
    }

    pub(super) fn encode_whole(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.ids(text, true)
    }

    fn ids(&self, text: &str, special: bool) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.inner.encode_fast(text, special).map_err(|e| TokenizerError::Encode(one_line(&*e)))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Appends the bytes of a token. Where each character stands for one byte: except in tokens with a
    /// character outside that alphabet (added ones, such as runs of spaces), which stand for themselves.
    pub(super) fn push_bytes(&self, id: u32, out: &mut Vec<u8>) {
        let Some(token) = self.inner.id_to_token(id) else { return };
        let byte_of = match &self.letters {
            Letters::Bytes(byte_of) => byte_of,
            Letters::Spaces { space, byte_fallback, .. } => {
                let hex =
                    token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')).filter(|hex| hex.len() == 2);
                match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| *byte_fallback) {
                    Some(byte) => out.push(byte),
                    None => out.extend_from_slice(token.replace(space, " ").as_bytes()),
                }
                return;
            }
            Letters::Pieces { prefix } => {
                match token.strip_prefix(prefix.as_str()).filter(|_| !prefix.is_empty()) {
                    Some(rest) => out.extend_from_slice(rest.as_bytes()),
                    None => out.extend([b" ", token.as_bytes()].concat()),
                }
                return;
            }
        };
        let start = out.len();
        for c in token.chars() {
            if let Some(&byte) = byte_of.get(&c) {
                out.push(byte);
            } else {
                out.truncate(start);
                out.extend_from_slice(token.as_bytes());
                return;
            }
        }
    }
}

/// The library's messages may span lines; ours are one.
fn one_line(error: &dyn std::error::Error) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}
