//! A tokenizer as the `tokenizers` crate reads it from a `tokenizer.json`.

use super::byte_char;
use crate::error::TokenizerError;
use std::collections::HashMap;
use tokenizers::decoders::DecoderWrapper;

/// The crate's tokenizer, and the bytes that the characters of its tokens stand for.
pub(super) struct Json {
    inner: tokenizers::Tokenizer,
    byte_of: HashMap<char, u8>,
}

impl Json {
    pub(super) fn read(json: &[u8]) -> Result<Self, TokenizerError> {
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(|e| TokenizerError::Parse(one_line(&*e)))?;
        match inner.get_decoder() {
            Some(DecoderWrapper::ByteLevel(_)) => {}
            other => {
                let kind = serde_json::to_value(other).ok().and_then(|v| v["type"].as_str().map(str::to_owned));
                return Err(TokenizerError::Unsupported {
                    field: "decoder",
                    found: kind.unwrap_or_else(|| "none".into()),
                    supported: "ByteLevel",
                });
            }
        }
        inner.with_truncation(None).map_err(|e| TokenizerError::Parse(one_line(&*e)))?;
        inner.with_padding(None);
        let byte_of = (0..=u8::MAX).map(|byte| (byte_char(byte), byte)).collect();
        Ok(Self { inner, byte_of })
    }

    pub(super) fn n_tokens(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The token with the highest id.
    pub(super) fn highest(&self) -> Option<(String, u32)> {
        self.inner.get_vocab(true).into_iter().max_by(|a, b| (a.1, &a.0).cmp(&(b.1, &b.0)))
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.inner.id_to_token(id).is_some_and(|token| self.inner.get_added_vocabulary().is_special_token(&token))
    }

    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| TokenizerError::Encode(one_line(&*e)))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Appends the bytes of a token: each character stands for one byte, except in tokens with a
    /// character outside that alphabet (added ones, such as runs of spaces), which stand for themselves.
    pub(super) fn push_bytes(&self, id: u32, out: &mut Vec<u8>) {
        let Some(token) = self.inner.id_to_token(id) else { return };
        let start = out.len();
        for c in token.chars() {
            if let Some(&byte) = self.byte_of.get(&c) {
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
