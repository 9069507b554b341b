//! Text to token ids and back.
//!
//! A model file has its tokenizer in one of two forms. [`bpe`] is tables used where they lie, which the converter made
//! and compared with the reference; `json` is the checkpoint's own `tokenizer.json`, read by the `tokenizers` crate, for
//! everything that the tables cannot say. There is no list of known tokenizers, and there are no hashes.
//!
//! Decoding is ours, because text must stream: a token may end in the middle of a character, so a token here is
//! *bytes*, and [`StreamDecoder`] holds them back until the character is whole. Byte-level decoders (GPT-2)
//! and those of SentencePiece (LLaMA) have such bytes, and so have words in pieces (BERT) when each begins with a space;
//! others are refused by name.

#![forbid(unsafe_code)]

pub mod bpe;
mod characters;
pub mod charsmap;
#[cfg(feature = "json-tokenizer")]
mod json;
#[cfg(not(feature = "json-tokenizer"))]
#[path = "no_json.rs"]
mod json;
mod merge;
pub mod scanner;
mod section;
mod stream;

pub use stream::{StreamDecoder, TextStream};

use crate::error::TokenizerError;
use crate::storage::{self, Bytes};
use bpe::Bpe;
use json::Json;

/// A tokenizer as the checkpoint describes it.
pub struct Tokenizer(Form);

enum Form {
    Bpe(Box<Bpe>),
    Json(Box<Json>),
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
    /// When the JSON is damaged, or its decoder is none of those that are known.
    pub fn from_json(json: &[u8]) -> Result<Self, TokenizerError> {
        Ok(Self(Form::Json(Box::new(Json::read(json)?))))
    }

    /// Opens the tables of [`bpe`], which are used where they lie.
    ///
    /// # Errors
    /// When they are damaged. What only encoding needs is checked by the first [`encode`](Self::encode).
    pub fn from_tables(tables: Bytes) -> Result<Self, TokenizerError> {
        Ok(Self(Form::Bpe(Box::new(Bpe::open(tables)?))))
    }

    /// Checks that the model has a row for every token.
    ///
    /// # Errors
    /// The token with the highest id, when it is not below `vocab_size`. Fewer tokens than rows are
    /// fine: many checkpoints pad their vocabulary.
    pub fn check_vocabulary(&self, vocab_size: usize) -> Result<(), TokenizerError> {
        let highest = match &self.0 {
            Form::Bpe(bpe) => (bpe.n_ids() as u32).checked_sub(1).map(|id| (self.decode(&[id]), id)),
            Form::Json(json) => json.highest(),
        };
        match highest {
            Some((token, id)) if id as usize >= vocab_size => Err(TokenizerError::Vocabulary { token, id, vocab_size }),
            _ => Ok(()),
        }
    }

    /// The ids of a text. No special token is added; special tokens written in the text are
    /// recognised.
    ///
    /// # Errors
    /// When the library refuses the text, or the tables are damaged.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        ensure_memory(text)?;
        match &self.0 {
            Form::Bpe(bpe) => bpe.encode(text),
            Form::Json(json) => json.encode(text),
        }
    }

    /// The ids of a text from its beginning: those that the tokenizer puts before every text (LLaMA's `<s>`), unless the
    /// text begins with them, and those of [`encode`](Self::encode).
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_start(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let ids = self.encode(text)?;
        let prefix = match &self.0 {
            Form::Bpe(bpe) => bpe.before(),
            Form::Json(json) => json.prefix().to_vec(),
        };
        Ok(if ids.starts_with(&prefix) { ids } else { [prefix, ids].concat() })
    }

    /// The ids of a whole text, with all special tokens that the tokenizer puts around one (BERT's `[CLS]` and `[SEP]`).
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_whole(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        ensure_memory(text)?;
        match &self.0 {
            Form::Bpe(bpe) => Ok([bpe.before(), bpe.encode(text)?, bpe.after()].concat()),
            Form::Json(json) => json.encode_whole(text),
        }
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
        let bytes = bytes.strip_prefix(b" ").filter(|_| self.adds_space()).unwrap_or(&bytes);
        String::from_utf8_lossy(bytes).into_owned()
    }

    /// Whether a text begins with a space that it has not: [`decode`](Self::decode) leaves one out, and so does a
    /// [stream that begins a text](Self::stream_start).
    pub fn adds_space(&self) -> bool {
        match &self.0 {
            Form::Bpe(bpe) => bpe.adds_space(),
            Form::Json(json) => json.adds_space(),
        }
    }

    /// Number of tokens, added ones included.
    pub fn vocab_len(&self) -> usize {
        match &self.0 {
            Form::Bpe(bpe) => bpe.n_tokens(),
            Form::Json(json) => json.n_tokens(),
        }
    }

    /// Whether `id` is a special token, such as the end of a text.
    pub fn is_special(&self, id: u32) -> bool {
        match &self.0 {
            Form::Bpe(bpe) => bpe.is_special(id),
            Form::Json(json) => json.is_special(id),
        }
    }

    /// A decoder for ids that come one at a time.
    pub fn stream(&self) -> StreamDecoder<'_> {
        StreamDecoder::new(self, TextStream::default())
    }

    /// The same for ids that begin a text: the space that the tokenizer sees before every text is left out.
    pub fn stream_start(&self) -> StreamDecoder<'_> {
        StreamDecoder::new(self, TextStream::at_start())
    }

    /// Appends the bytes that a token stands for: none for an id without a token, and not always whole characters.
    pub fn push_bytes(&self, id: u32, out: &mut Vec<u8>) {
        match &self.0 {
            Form::Bpe(bpe) => out.extend_from_slice(bpe.token(id)),
            Form::Json(json) => json.push_bytes(id, out),
        }
    }
}

/// The character that stands for a byte in the vocabulary of a byte-level tokenizer (Radford et al.
/// 2019): printable Latin-1 is itself, the other bytes follow from U+0100 on, in order.
pub fn byte_char(byte: u8) -> char {
    let is_printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if is_printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !is_printable(b)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// Whether there is memory for what encoding makes of a text: lists of its characters and pieces.
fn ensure_memory(text: &str) -> Result<(), TokenizerError> {
    let bytes = text.len().saturating_mul(64);
    storage::ensure(bytes).map_err(|source| TokenizerError::Memory { bytes, what: "a text's tokens", source })
}

#[cfg(all(test, feature = "json-tokenizer"))]
mod tests {
    use super::bpe::BpeParts;
    use super::scanner::{SPACES, ScannerParts};
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

    /// A tokenizer as LLaMA has it: `▁` for a space, bytes for what has no token, `<s>` before a text.
    pub(super) fn sentencepiece(decoder: &serde_json::Value) -> serde_json::Value {
        let mut vocab = serde_json::Map::new();
        let bytes = (0..=255u8).map(|b| format!("<0x{b:02X}>"));
        let others = ["▁", "h", "e", "i", "he", "▁he"].map(String::from);
        for token in ["<unk>", "<s>", "</s>"].map(String::from).into_iter().chain(bytes).chain(others) {
            vocab.insert(token, vocab.len().into());
        }
        let added = |id: u32, content: &str| {
            serde_json::json!({ "id": id, "content": content, "special": true, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false })
        };
        serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "pre_tokenizer": null,
            "normalizer": { "type": "Sequence", "normalizers": [
                { "type": "Prepend", "prepend": "▁" },
                { "type": "Replace", "pattern": { "String": " " }, "content": "▁" } ] },
            "post_processor": { "type": "TemplateProcessing",
                "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
                "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
                "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] } } },
            "decoder": decoder,
            "model": { "type": "BPE", "vocab": vocab, "merges": ["h e", "▁ he"], "byte_fallback": true, "unk_token": "<unk>",
                "fuse_unk": true },
            "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        })
    }

    #[test]
    fn sentencepiece_is_decoded_as_the_library_does() {
        let steps = serde_json::json!([
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " }, { "type": "ByteFallback" },
            { "type": "Fuse" }, { "type": "Strip", "content": " ", "start": 1, "stop": 0 } ]);
        let json = sentencepiece(&serde_json::json!({ "type": "Sequence", "decoders": steps })).to_string();
        let library = tokenizers::Tokenizer::from_bytes(&json).unwrap();
        let ours = Tokenizer::from_json(json.as_bytes()).unwrap();
        for text in ["he", "hi he  he", " he\n", "héhe 🙂 ▁", "", "<s>he</s>"] {
            let expected = library.encode(text, true).unwrap().get_ids().to_vec();
            let found = ours.encode_start(text).unwrap();
            assert_eq!(
                found,
                if text.starts_with("<s>") { expected[1..].to_vec() } else { expected.clone() },
                "{text:?}"
            );
            let plain = ours.encode(text).unwrap();
            assert_eq!(ours.decode(&plain), library.decode(&plain, false).unwrap(), "{text:?}");
            let mut stream = ours.stream();
            let mut streamed: String = plain.iter().map(|&id| stream.push(id).to_string()).collect();
            streamed += stream.finish();
            assert_eq!(streamed.strip_prefix(' ').unwrap_or(&streamed), ours.decode(&plain), "{text:?}");
        }
        let other = serde_json::json!({ "type": "BPEDecoder", "suffix": "</w>" });
        let message = Tokenizer::from_json(sentencepiece(&other).to_string().as_bytes()).unwrap_err().to_string();
        assert!(message.contains("BPEDecoder") && message.contains("ByteLevel"), "{message}");
    }

    /// The same as tables, except that pieces end at spaces only.
    pub(super) fn parts() -> BpeParts {
        let words = [("<|end|>", 257), ("    ", 258)];
        // One state after the other for each word, from the start; a class for each letter.
        let mut added =
            ScannerParts { n_classes: 8, next: vec![0; 2 * 8], accept: vec![0, 0], ..ScannerParts::default() };
        for (c, class) in
            [(0, 0), (32, 1), (33, 0), (60, 2), (61, 0), (62, 3), (63, 0), (100, 4), (101, 5), (102, 0), (110, 6)]
        {
            added.starts.push(c);
            added.classes.push(class);
        }
        added.starts.extend([111, 124, 125]);
        added.classes.extend([0, 7, 0]);
        for (word, id) in words {
            let mut state = 1;
            for c in word.chars() {
                let class = added.classes[added.starts.partition_point(|&start| start <= c as u32) - 1];
                added.next[state * 8 + usize::from(class)] = added.accept.len() as u16;
                state = added.accept.len();
                added.next.extend([0; 8]);
                added.accept.push(0);
            }
            added.accept[state] = id + 1;
        }
        // ` ?[^ ]+|\s+(?!\S)|\s+` with the space as the only space: start, word, one space, more spaces.
        let splitter = ScannerParts {
            starts: vec![0, 32, 33],
            classes: vec![0, 1, 0],
            n_classes: 2,
            next: vec![0, 0, 2, 3, 2, 0, 2, 4, 0, 4],
            accept: vec![0, 0, 1, SPACES, SPACES],
        };
        let bytes = (0..=255u8).map(|byte| Some(vec![byte]));
        let others = ["he", "<|end|>", "    "].map(|token| Some(token.into()));
        BpeParts {
            tokens: bytes.chain(others).collect(),
            special: vec![257],
            byte_tokens: (0..256).collect(),
            merges: vec![([u32::from(b'h'), u32::from(b'e')], 256)],
            added,
            splitters: vec![splitter],
            ..BpeParts::default()
        }
    }

    /// One of each form.
    fn both() -> [Tokenizer; 2] {
        let tables = Bytes::copy_from(&parts().to_bytes());
        [Tokenizer::from_json(json().to_string().as_bytes()).unwrap(), Tokenizer::from_tables(tables).unwrap()]
    }

    #[test]
    fn encodes_and_decodes() {
        for t in both() {
            assert_eq!(t.encode("the").unwrap(), [u32::from(b't'), 256]);
            assert_eq!(t.encode("").unwrap(), [] as [u32; 0]);
            let ids = t.encode("é<|end|>    x").unwrap();
            assert_eq!(ids, [0xC3, 0xA9, 257, 258, u32::from(b'x')]);
            assert_eq!(t.decode(&ids), "é<|end|>    x");
            assert_eq!(t.decode_skip_special(&ids), "é    x");
            assert!(t.is_special(257) && !t.is_special(258) && !t.is_special(9999));
            assert_eq!(t.vocab_len(), 259);
        }
    }

    #[test]
    fn ids_without_a_token_are_no_text() {
        for t in both() {
            assert_eq!(t.decode(&[u32::from(b'a'), 259, u32::MAX, u32::from(b'b')]), "ab");
        }
    }

    #[test]
    fn holds_a_character_until_it_is_whole() {
        for t in both() {
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
    }

    /// A tokenizer as BERT has it.
    #[test]
    fn words_in_pieces_have_special_tokens_around_them() {
        let mut json = json();
        let vocab = ["[UNK]", "[CLS]", "[SEP]", "he", "##he", "hi"];
        let vocab: serde_json::Map<_, _> = vocab.iter().zip(0u32..).map(|(t, id)| ((*t).into(), id.into())).collect();
        json["model"] = serde_json::json!({ "type": "WordPiece", "unk_token": "[UNK]",
            "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocab });
        json["pre_tokenizer"] = serde_json::json!({ "type": "BertPreTokenizer" });
        json["decoder"] = serde_json::json!({ "type": "WordPiece", "prefix": "##", "cleanup": true });
        json["post_processor"] =
            serde_json::json!({ "type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1] });
        json["added_tokens"] = serde_json::json!([]);
        let t = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
        assert_eq!(t.encode("hehe hi x").unwrap(), [3, 4, 5, 0]);
        assert_eq!(t.encode_start("hehe hi").unwrap(), [1, 3, 4, 5]);
        assert_eq!(t.encode_whole("hehe hi").unwrap(), [1, 3, 4, 5, 2]);
        assert_eq!(t.encode_whole("").unwrap(), [1, 2]);
        assert_eq!(t.decode(&[3, 4, 5]), "hehe hi");
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
        let supported = "supported: ByteLevel, WordPiece, or Metaspace, Replace, ByteFallback, Fuse and Strip";
        json["decoder"] = serde_json::json!({ "type": "BPEDecoder", "suffix": "</w>" });
        let message = Tokenizer::from_json(json.to_string().as_bytes()).unwrap_err().to_string();
        assert_eq!(message, format!("tokenizer.json: `decoder` is BPEDecoder, {supported}"));
        json["decoder"] = serde_json::Value::Null;
        let message = Tokenizer::from_json(json.to_string().as_bytes()).unwrap_err().to_string();
        assert_eq!(message, format!("tokenizer.json: `decoder` is none, {supported}"));
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
        for t in both() {
            t.check_vocabulary(259).unwrap();
            t.check_vocabulary(500).unwrap();
            let message = t.check_vocabulary(258).unwrap_err().to_string();
            assert_eq!(message, "tokenizer: token \"    \" has id 258, but the model's vocabulary has 258 entries");
        }
    }

    proptest! {
        #[test]
        fn streaming_equals_decoding_at_once(ids in prop::collection::vec(0u32..262, 0..64)) {
            let [library, tables] = both();
            let mut stream = tables.stream();
            let mut text: String = ids.iter().map(|&id| stream.push(id).to_owned()).collect();
            text.push_str(stream.finish());
            prop_assert_eq!(&text, &tables.decode(&ids));
            prop_assert_eq!(&text, &library.decode(&ids));
        }

        #[test]
        fn text_survives_the_way_there_and_back(text in any::<String>()) {
            for t in both() {
                prop_assert_eq!(&t.decode(&t.encode(&text).unwrap()), &text);
            }
        }
    }
}
