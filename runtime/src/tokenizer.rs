//! Text to token ids and back.
//!
//! Encoding is the `tokenizers` crate reading the checkpoint's own `tokenizer.json`: no list of
//! known tokenizers, no hashes. Decoding is ours, because text must stream: a token may end in the
//! middle of a character, so a token here is *bytes*, and [`StreamDecoder`] holds them back until
//! the character is whole. Only byte-level decoders (GPT-2, GPT-NeoX) have such bytes; others are
//! refused by name.

#![forbid(unsafe_code)]

use crate::error::TokenizerError;
use std::collections::HashMap;
use tokenizers::decoders::DecoderWrapper;

/// A tokenizer as the checkpoint describes it.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    byte_of: HashMap<char, u8>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_len", &self.vocab_len()).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// Truncation and padding that it may ask for are left out: they belong to training, and a
    /// prompt that is cut in silence is an error.
    ///
    /// # Errors
    /// When the JSON is damaged, or its decoder is not `ByteLevel`.
    pub fn from_json(json: &[u8]) -> Result<Self, TokenizerError> {
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

    /// Checks that the model has a row for every token.
    ///
    /// # Errors
    /// The token with the highest id, when it is not below `vocab_size`. Fewer tokens than rows are
    /// fine: many checkpoints pad their vocabulary.
    pub fn check_vocabulary(&self, vocab_size: usize) -> Result<(), TokenizerError> {
        let highest = self.inner.get_vocab(true).into_iter().max_by(|a, b| (a.1, &a.0).cmp(&(b.1, &b.0)));
        match highest {
            Some((token, id)) if id as usize >= vocab_size => Err(TokenizerError::Vocabulary { token, id, vocab_size }),
            _ => Ok(()),
        }
    }

    /// The ids of a text. No special token is added; special tokens written in the text are
    /// recognised.
    ///
    /// # Errors
    /// When the library refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| TokenizerError::Encode(one_line(&*e)))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of some ids, special tokens included. Bytes that are no UTF-8 become U+FFFD; an id
    /// without a token (a padded vocabulary) is no text.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.decode_if(ids, |_| true)
    }

    /// As [`decode`](Self::decode), without special tokens.
    pub fn decode_skip_special(&self, ids: &[u32]) -> String {
        self.decode_if(ids, |id| !self.is_special(id))
    }

    fn decode_if(&self, ids: &[u32], keep: impl Fn(u32) -> bool) -> String {
        let mut bytes = Vec::new();
        for &id in ids.iter().filter(|&&id| keep(id)) {
            self.push_bytes(id, &mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Number of tokens, added ones included.
    pub fn vocab_len(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Whether `id` is a special token, such as the end of a text.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.id_to_token(id).is_some_and(|token| self.inner.get_added_vocabulary().is_special_token(&token))
    }

    /// A decoder for ids that come one at a time.
    pub fn stream(&self) -> StreamDecoder<'_> {
        StreamDecoder { tokenizer: self, pending: Vec::new(), text: String::new() }
    }

    /// Appends the bytes of a token: each character stands for one byte, except in tokens with a
    /// character outside that alphabet (added ones, such as runs of spaces), which stand for themselves.
    fn push_bytes(&self, id: u32, out: &mut Vec<u8>) {
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

/// Turns ids into text as they come. Everything it returns, put together, is the lossy UTF-8 of all
/// the tokens' bytes.
#[derive(Debug)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    /// The start of a character: at most 3 bytes between calls.
    pending: Vec<u8>,
    text: String,
}

impl StreamDecoder<'_> {
    /// The text that `id` completes: whole characters only, often empty within an emoji. A byte that
    /// can never become part of a character is U+FFFD at once.
    pub fn push(&mut self, id: u32) -> &str {
        self.tokenizer.push_bytes(id, &mut self.pending);
        self.text.clear();
        let mut done = 0;
        loop {
            let rest = &self.pending[done..];
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    self.text.push_str(valid);
                    done = self.pending.len();
                    break;
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    self.text.push_str(&String::from_utf8_lossy(&rest[..valid]));
                    done += valid;
                    // No length means that the end of the bytes cuts a character: wait for the rest.
                    let Some(invalid) = error.error_len() else { break };
                    self.text.push(char::REPLACEMENT_CHARACTER);
                    done += invalid;
                }
            }
        }
        self.pending.drain(..done);
        &self.text
    }

    /// What is left at the end: U+FFFD when a character was never completed.
    pub fn finish(&mut self) -> &str {
        self.text.clear();
        self.text.push_str(&String::from_utf8_lossy(&self.pending));
        self.pending.clear();
        &self.text
    }
}

/// The character that stands for a byte in the vocabulary of a byte-level tokenizer (Radford et al.
/// 2019): printable Latin-1 is itself, the other bytes follow from U+0100 on, in order.
fn byte_char(byte: u8) -> char {
    let is_printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if is_printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !is_printable(b)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The library's messages may span lines; ours are one.
fn one_line(error: &dyn std::error::Error) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A byte-level tokenizer of the 256 bytes, one merge, a special token and a run of spaces.
    fn json() -> serde_json::Value {
        let mut vocab: serde_json::Map<_, _> =
            (0..=255u8).map(|b| (byte_char(b).to_string(), u32::from(b).into())).collect();
        vocab.insert("he".into(), 256.into());
        let added = |id: u32, content: &str, special: bool| {
            serde_json::json!({ "id": id, "content": content, "special": special, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false })
        };
        serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
            "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true },
            "post_processor": null,
            "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true },
            "model": { "type": "BPE", "vocab": vocab, "merges": ["h e"] },
            "added_tokens": [added(257, "<|end|>", true), added(258, "    ", false)],
        })
    }

    fn tokenizer() -> Tokenizer {
        Tokenizer::from_json(json().to_string().as_bytes()).unwrap()
    }

    #[test]
    fn encodes_and_decodes() {
        let t = tokenizer();
        assert_eq!(t.encode("the").unwrap(), [u32::from(b't'), 256]);
        assert_eq!(t.encode("").unwrap(), [] as [u32; 0]);
        let ids = t.encode("é<|end|>    x").unwrap();
        assert_eq!(ids, [0xC3, 0xA9, 257, 258, u32::from(b'x')]);
        assert_eq!(t.decode(&ids), "é<|end|>    x");
        assert_eq!(t.decode_skip_special(&ids), "é    x");
        assert!(t.is_special(257) && !t.is_special(258) && !t.is_special(9999));
        assert_eq!(t.vocab_len(), 259);
    }

    #[test]
    fn ids_without_a_token_are_no_text() {
        let t = tokenizer();
        assert_eq!(t.decode(&[u32::from(b'a'), 259, u32::MAX, u32::from(b'b')]), "ab");
    }

    #[test]
    fn holds_a_character_until_it_is_whole() {
        let t = tokenizer();
        let mut stream = t.stream();
        assert_eq!(stream.push(0xF0), "");
        assert_eq!(stream.push(0x9F), "");
        assert_eq!(stream.push(0x98), "");
        assert_eq!(stream.push(0x80), "😀");
        assert_eq!(stream.push(256), "he");
        assert_eq!(stream.push(0xFF), "\u{FFFD}", "never part of a character");
        assert_eq!(stream.push(0xC3), "");
        assert_eq!(stream.push(256), "\u{FFFD}he", "the character was not completed");
        assert_eq!(stream.push(0xE2), "");
        assert_eq!(stream.push(0x82), "");
        assert_eq!(stream.finish(), "\u{FFFD}");
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn leaves_out_truncation() {
        let mut json = json();
        json["truncation"] = serde_json::json!({ "direction": "Right", "max_length": 1, "strategy": "LongestFirst",
            "stride": 0 });
        let t = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
        assert_eq!(t.encode("abc").unwrap().len(), 3);
    }

    #[test]
    fn refuses_other_decoders_by_name() {
        let mut json = json();
        json["decoder"] = serde_json::json!({ "type": "Metaspace", "replacement": "_", "prepend_scheme": "always" });
        let message = Tokenizer::from_json(json.to_string().as_bytes()).unwrap_err().to_string();
        assert_eq!(message, "tokenizer.json: `decoder` is Metaspace, supported: ByteLevel");
        json["decoder"] = serde_json::Value::Null;
        let message = Tokenizer::from_json(json.to_string().as_bytes()).unwrap_err().to_string();
        assert_eq!(message, "tokenizer.json: `decoder` is none, supported: ByteLevel");
    }

    #[test]
    fn refuses_damaged_json() {
        for damaged in ["", "{", "[]", "\u{0}", "{\"model\": 3}"] {
            let message = Tokenizer::from_json(damaged.as_bytes()).unwrap_err().to_string();
            assert!(message.starts_with("tokenizer.json: "), "{message}");
            assert!(!message.contains('\n'), "{message}");
        }
        assert!(Tokenizer::from_json(&[0xFF, 0xFE]).is_err());
    }

    #[test]
    fn names_the_token_that_the_model_lacks() {
        let t = tokenizer();
        t.check_vocabulary(259).unwrap();
        t.check_vocabulary(500).unwrap();
        let message = t.check_vocabulary(258).unwrap_err().to_string();
        assert_eq!(message, "tokenizer.json: token \"    \" has id 258, but the model's vocabulary has 258 entries");
    }

    proptest! {
        #[test]
        fn streaming_equals_decoding_at_once(ids in prop::collection::vec(0u32..262, 0..64)) {
            let t = tokenizer();
            let mut stream = t.stream();
            let mut text: String = ids.iter().map(|&id| stream.push(id).to_owned()).collect();
            text.push_str(stream.finish());
            prop_assert_eq!(&text, &t.decode(&ids));
            prop_assert_eq!(&text, &t.inner.decode(&ids, false).unwrap());
        }

        #[test]
        fn text_survives_the_way_there_and_back(text in any::<String>()) {
            let t = tokenizer();
            prop_assert_eq!(t.decode(&t.encode(&text).unwrap()), text);
        }
    }
}
