//! BPE as tables that lie in the model file and are used where they lie: byte-level (GPT-2), or over characters (SentencePiece).
//!
//! A `tokenizer.json` of fifty thousand tokens takes the `tokenizers` crate 75 ms and 30 MB to make ready: more than
//! everything else that a short run does. The tables here are checked in a fraction of a millisecond, share the file's
//! pages, and encode faster. The converter makes them ([`BpeParts`]) from the same library, and keeps
//! the JSON when it cannot show that both give the same ids.
//!
//! Decoding needs the tokens' bytes only; the encoder's tables are checked when a text is encoded for the first time.

use super::characters::{CharacterHeader, Characters};
pub use super::characters::{CharacterParts, SpaceBefore};
use super::merge::{Merger, Merges};
use super::scanner::{SPACES, Scanner, ScannerParts};
use super::section::{Numbers, Reader, Writer};
use crate::error::TokenizerError;
use crate::storage::Bytes;
use std::borrow::Cow;
use std::sync::OnceLock;
use unicode_normalization_alignments::UnicodeNormalization;

/// Version of the tables. Version 1 had no characters, nothing around a text, and the first eight numbers only.
pub const VERSION: u32 = 2;
/// Flag: text is brought into Unicode's composed form (NFC) first.
const NFC: u32 = 1;
/// Flag: text starts as characters, not as bytes.
const CHARACTERS: u32 = 2;
/// Flag: unknown characters side by side are one token.
const FUSE_UNKNOWN: u32 = 4;
/// Flag: a text begins with a space that it has not.
const ADDS_SPACE: u32 = 8;
/// The most splitters one after the other: real tokenizers have up to four.
const MAX_SPLITTERS: usize = 16;
/// In place of a token's id where there is none.
pub const NO_TOKEN: u32 = u32::MAX;

/// What a BPE tokenizer is made of: the input of [`BpeParts::to_bytes`].
#[derive(Clone, Debug, Default)]
pub struct BpeParts {
    /// The bytes of every token, by id; `None` where no token has the id.
    pub tokens: Vec<Option<Vec<u8>>>,
    /// Ids of special tokens, ascending.
    pub special: Vec<u32>,
    /// Tokens before every text, and behind it.
    pub around: [Vec<u32>; 2],
    /// Whether a text begins with a space that it has not, which decoding leaves out.
    pub adds_space: bool,
    /// What a text starts as where that is not bytes. Then no splitters.
    pub characters: Option<CharacterParts>,
    /// The token of each byte, [`NO_TOKEN`] for none. All bytes that UTF-8 uses must have one, unless there are characters.
    pub byte_tokens: Vec<u32>,
    /// Pairs of tokens and the token that replaces them, best first, each pair once.
    pub merges: Vec<([u32; 2], u32)>,
    /// Whether text is normalized to NFC.
    pub nfc: bool,
    /// Recognises added tokens in the text as it is; accepts an id plus 1.
    pub added: ScannerParts,
    /// Recognises added tokens in normalized text; accepts an id plus 1.
    pub added_normalized: ScannerParts,
    /// Cut the text into the pieces within which tokens are merged, one after the other; accept 1 or [`SPACES`].
    pub splitters: Vec<ScannerParts>,
}

impl BpeParts {
    /// The tables as they stand in a model file (`docs/format.md`).
    pub fn to_bytes(&self) -> Vec<u8> {
        let ends = |lengths: &mut dyn Iterator<Item = usize>| {
            lengths
                .scan(0u32, |end, len| {
                    *end += len as u32;
                    Some(*end)
                })
                .collect::<Vec<_>>()
        };
        let text: Vec<u8> = self.tokens.iter().flatten().flatten().copied().collect();
        let mut by_left: Vec<_> = self.merges.iter().zip(0u32..).map(|(&(pair, _), rank)| (pair, rank)).collect();
        by_left.sort_unstable();
        let mut rights_of = vec![0; self.tokens.len()];
        for ([left, _], _) in &by_left {
            rights_of[*left as usize] += 1;
        }

        let none = CharacterParts { unknown: NO_TOKEN, ..CharacterParts::default() };
        let characters = self.characters.as_ref().unwrap_or(&none);
        let flags = [
            (NFC, self.nfc),
            (CHARACTERS, self.characters.is_some()),
            (FUSE_UNKNOWN, characters.fuse_unknown),
            (ADDS_SPACE, self.adds_space),
        ];
        let mut out = Writer::default();
        out.numbers([VERSION, flags.into_iter().filter(|flag| flag.1).map(|flag| flag.0).sum()]);
        let counts = [self.tokens.len(), self.tokens.iter().flatten().count(), text.len(), self.special.len()];
        out.numbers(counts.map(|n| n as u32));
        out.numbers([self.merges.len(), self.splitters.len()].map(|n| n as u32));
        let [before, after] = &self.around;
        out.numbers([before.len(), after.len(), characters.tokens.len()].map(|n| n as u32));
        out.numbers([characters.unknown, characters.space_before as u32]);
        out.numbers(ends(&mut self.tokens.iter().map(|token| token.as_ref().map_or(0, Vec::len))));
        out.bytes(&text);
        out.numbers(self.special.iter().copied());
        out.numbers(self.around.iter().flatten().copied());
        out.numbers(self.byte_tokens.iter().copied());
        out.numbers(characters.tokens.iter().map(|&(c, _)| c as u32));
        out.numbers(characters.tokens.iter().map(|&(_, id)| id));
        out.numbers(ends(&mut rights_of.into_iter()));
        out.numbers(by_left.iter().flat_map(|&([_, right], rank)| [right, rank]));
        out.numbers(self.merges.iter().map(|&(_, merged)| merged));
        for scanner in [&self.added, &self.added_normalized].into_iter().chain(&self.splitters) {
            scanner.write(&mut out);
        }
        out.finish()
    }
}

/// The opened tables.
#[derive(Debug)]
pub(super) struct Bpe {
    token_ends: Numbers,
    text: Bytes,
    special: Numbers,
    n_tokens: usize,
    nfc: bool,
    adds_space: bool,
    before: Numbers,
    after: Numbers,
    characters: Option<CharacterHeader>,
    n_merges: usize,
    n_splitters: usize,
    /// The rest of the file, for the encoder.
    rest: Reader,
    encoder: OnceLock<Result<Encoder, String>>,
}

/// The tables that only encoding needs.
#[derive(Debug)]
struct Encoder {
    byte_tokens: [u32; 256],
    characters: Option<Characters>,
    merges: Merges,
    added: Option<Scanner>,
    added_normalized: Option<Scanner>,
    splitters: Vec<Option<Scanner>>,
}

impl Bpe {
    /// Checks what decoding needs.
    pub(super) fn open(bytes: Bytes) -> Result<Self, TokenizerError> {
        Self::read(bytes).map_err(TokenizerError::Tables)
    }

    fn read(bytes: Bytes) -> Result<Self, String> {
        let mut from = Reader::new(bytes);
        let version = from.number()?;
        let known = match version {
            1 => NFC,
            VERSION => NFC | CHARACTERS | FUSE_UNKNOWN | ADDS_SPACE,
            _ => return Err(format!("version {version}, this runtime reads 1 and {VERSION}")),
        };
        let flags = from.number()?;
        if flags & !known != 0 {
            return Err(format!("flags {flags:#x}, this runtime knows {known:#x}"));
        }
        let mut count = || from.number().map(|n| n as usize);
        let (n_ids, n_tokens, text_len, n_special) = (count()?, count()?, count()?, count()?);
        let (n_merges, n_splitters) = (count()?, count()?);
        let (n_before, n_after, n, unknown, space_before) = match version {
            1 => (0, 0, 0, NO_TOKEN, 0),
            _ => (count()?, count()?, count()?, from.number()?, from.number()?),
        };
        let fuse_unknown = flags & FUSE_UNKNOWN != 0;
        let characters = CharacterHeader { n, unknown, fuse_unknown, space_before };
        let characters = Some(characters).filter(|_| flags & CHARACTERS != 0);
        if characters.is_none() && (n, unknown, space_before, fuse_unknown) != (0, NO_TOKEN, 0, false) {
            return Err(format!("{n} characters in tables over bytes"));
        }
        if characters.is_some() && n_splitters > 0 {
            return Err(format!("{n_splitters} splitters in tables over characters"));
        }
        let token_ends = from.numbers(n_ids)?;
        let text = from.bytes(text_len)?;
        let special = from.numbers(n_special)?;
        let (before, after) = (from.numbers(n_before)?, from.numbers(n_after)?);
        if let Some(id) = before.view().iter().chain(after.view().iter()).find(|&id| id as usize >= n_ids) {
            return Err(format!("token {id} of {n_ids} stands around a text"));
        }
        if !token_ends.view().are_ends_of(text_len) {
            return Err(format!("the ends of {n_ids} tokens do not ascend to {text_len}"));
        }
        if !special.view().iter().is_sorted() {
            return Err("the special tokens are out of order".into());
        }
        if n_splitters > MAX_SPLITTERS {
            return Err(format!("{n_splitters} splitters, at most {MAX_SPLITTERS}"));
        }
        Ok(Self {
            token_ends,
            text,
            special,
            n_tokens,
            nfc: flags & NFC != 0,
            adds_space: flags & ADDS_SPACE != 0,
            before,
            after,
            characters,
            n_merges,
            n_splitters,
            rest: from,
            encoder: OnceLock::new(),
        })
    }

    pub(super) fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// What stands before every text.
    pub(super) fn before(&self) -> Vec<u32> {
        self.before.view().iter().collect()
    }

    /// What stands behind every text.
    pub(super) fn after(&self) -> Vec<u32> {
        self.after.view().iter().collect()
    }

    /// Whether a text begins with a space that it has not.
    pub(super) fn adds_space(&self) -> bool {
        self.adds_space
    }

    /// One more than the highest id.
    pub(super) fn n_ids(&self) -> usize {
        self.token_ends.view().len()
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.special.view().contains(id)
    }

    /// The bytes of a token; empty for an id without one.
    pub(super) fn token(&self, id: u32) -> &[u8] {
        self.token_ends.view().part(id as usize).and_then(|part| self.text.get(part)).unwrap_or_default()
    }

    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoder = self.encoder.get_or_init(|| Encoder::read(self)).as_ref();
        let encoder = encoder.map_err(|reason| TokenizerError::Tables(reason.clone()))?;
        let mut out = Vec::new();
        encoder.encode(text, self.nfc, &mut out).map_err(TokenizerError::Encode)?;
        Ok(out)
    }
}

impl Encoder {
    fn read(bpe: &Bpe) -> Result<Self, String> {
        let (mut from, n_ids) = (bpe.rest.clone(), bpe.n_ids());
        let byte_tokens = byte_tokens(&mut from, n_ids, bpe.characters.is_none())?;
        let characters = bpe.characters.map(|header| Characters::read(&mut from, header, n_ids)).transpose()?;
        let merges = Merges::read(&mut from, n_ids, bpe.n_merges)?;
        let added = |value: u32| value as usize <= n_ids;
        let encoder = Self {
            byte_tokens,
            characters,
            merges,
            added: Scanner::read(&mut from, added)?,
            added_normalized: Scanner::read(&mut from, added)?,
            splitters: (0..bpe.n_splitters)
                .map(|_| Scanner::read(&mut from, |value| value == 1 || value == SPACES))
                .collect::<Result<_, _>>()?,
        };
        from.end()?;
        Ok(encoder)
    }

    fn encode(&self, text: &str, nfc: bool, out: &mut Vec<u32>) -> Result<(), String> {
        let mut merger = Merger::new(&self.merges);
        let mut start = Vec::new();
        let mut first = true;
        for piece in pieces(self.added.as_ref(), text) {
            let (piece, token) = piece?;
            if token != 0 {
                out.push(token - 1);
                first = false;
                continue;
            }
            let piece = if nfc { composed(piece) } else { Cow::Borrowed(piece) };
            let piece = match &self.characters {
                Some(characters) => Cow::Owned(characters.normalize(&piece)),
                None => piece,
            };
            for piece in pieces(self.added_normalized.as_ref(), &piece) {
                match (piece?, &self.characters) {
                    ((piece, 0), None) => self.split(0, piece, &mut merger, out)?,
                    ((piece, 0), Some(characters)) => {
                        characters.start(piece, first, &self.byte_tokens, &mut start);
                        merger.merge(start.drain(..), out);
                    }
                    ((_, token), _) => out.push(token - 1),
                }
                first = false;
            }
        }
        Ok(())
    }

    /// Splitter after splitter, then the merges.
    fn split(&self, stage: usize, text: &str, merger: &mut Merger<'_>, out: &mut Vec<u32>) -> Result<(), String> {
        let Some(splitter) = self.splitters.get(stage) else {
            merger.merge(text.bytes().map(|byte| self.byte_tokens[usize::from(byte)]), out);
            return Ok(());
        };
        for piece in pieces(splitter.as_ref(), text) {
            self.split(stage + 1, piece?.0, merger, out)?;
        }
        Ok(())
    }
}

/// The token of each byte; where `all` is said, every byte that UTF-8 uses has one.
fn byte_tokens(from: &mut Reader, n_ids: usize, all: bool) -> Result<[u32; 256], String> {
    let mut byte_tokens = [NO_TOKEN; 256];
    for (byte, (slot, id)) in byte_tokens.iter_mut().zip(from.numbers(256)?.view().iter()).enumerate() {
        *slot = id;
        // 0xC0, 0xC1 and 0xF5 to 0xFF never occur in UTF-8.
        let needed = all && !matches!(byte, 0xC0 | 0xC1 | 0xF5..);
        if id as usize >= n_ids && (needed || id != NO_TOKEN) {
            return Err(format!("byte {byte:#04x} is token {id} of {n_ids}"));
        }
    }
    Ok(byte_tokens)
}

/// The pieces of a text; without a scanner, the text.
fn pieces<'s, 't>(
    scanner: Option<&'s Scanner>,
    text: &'t str,
) -> impl Iterator<Item = Result<(&'t str, u32), String>> + use<'s, 't> {
    let whole = if scanner.is_none() && !text.is_empty() { Some(Ok((text, 0))) } else { None };
    scanner.map(|scanner| scanner.pieces(text)).into_iter().flatten().chain(whole)
}

/// The composed form (NFC), from the same tables that the `tokenizers` crate uses.
fn composed(text: &str) -> Cow<'_, str> {
    // Characters below U+0300, which begins with the byte 0xCC, neither combine nor change.
    if text.bytes().all(|byte| byte < 0xCC) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.nfc().map(|(c, _)| c).collect())
}

#[cfg(all(test, feature = "json-tokenizer"))]
mod tests {
    use super::super::Tokenizer;
    use super::super::tests::parts;
    use super::*;
    use proptest::prelude::*;

    fn open(bytes: &[u8]) -> Result<Tokenizer, String> {
        Tokenizer::from_tables(Bytes::copy_from(bytes)).map_err(|e| e.to_string())
    }

    /// What is wrong, found when the tables are opened or when the first text is encoded.
    fn refusal(parts: &BpeParts) -> String {
        let message = open(&parts.to_bytes()).and_then(|t| t.encode("the").map_err(|e| e.to_string())).unwrap_err();
        assert!(message.starts_with("tokenizer.bpe: ") && !message.contains('\n'), "{message}");
        message
    }

    #[test]
    fn damaged_tables_are_refused_by_name() {
        type Change = fn(&mut BpeParts);
        let cases: [(&str, Change); 11] = [
            ("the special tokens are out of order", |p| p.special = vec![257, 1]),
            ("17 splitters, at most 16", |p| p.splitters = vec![p.splitters[0].clone(); 17]),
            ("byte 0x61 is token 300 of 259", |p| p.byte_tokens[0x61] = 300),
            ("byte 0x61 is token 4294967295", |p| p.byte_tokens[0x61] = NO_TOKEN),
            ("a merge makes token 259 of 259", |p| p.merges[0].1 = 259),
            ("a scanner has class 9 of 2", |p| p.splitters[0].classes[1] = 9),
            ("a scanner has state 77 of", |p| p.splitters[0].next[3] = 77),
            ("a scanner accepts 3, which means nothing", |p| p.splitters[0].accept[2] = 3),
            ("a scanner accepts 4294967295, which means nothing", |p| p.added.accept[2] = SPACES),
            ("ranges that do not ascend from 0", |p| p.added.starts[0] = 1),
            ("257 classes", |p| p.added.n_classes = 257),
        ];
        for (expected, change) in cases {
            let mut parts = parts();
            change(&mut parts);
            let message = refusal(&parts);
            assert!(message.contains(expected), "{message} should contain {expected}");
        }
    }

    #[test]
    fn tables_of_the_wrong_length_or_version_are_refused() {
        let good = parts().to_bytes();
        for (expected, bytes) in [
            ("4 bytes expected at byte 0, there are 0", vec![]),
            ("version 3, this runtime reads 1 and 2", [&[3], &good[1..]].concat()),
            ("flags 0x10, this runtime knows 0xf", [&good[..4], &[16], &good[5..]].concat()),
            ("flags 0x2, this runtime knows 0x1", [&[1, 0, 0, 0, 2], &good[5..]].concat()),
            ("there are ", good[..good.len() - 4].to_vec()),
            ("bytes expected, found", [&good[..], &[0; 4]].concat()),
            ("there are ", [&good[..8], &[0xFF; 4], &good[12..]].concat()),
        ] {
            let message = open(&bytes).and_then(|t| t.encode("the").map_err(|e| e.to_string())).unwrap_err();
            assert!(message.contains(expected), "{message} should contain {expected}");
        }
        // The ends of tokens are behind the header: 13 numbers.
        let message = open(&[&good[..52], &[0xFF, 0xFF], &good[54..]].concat()).unwrap_err();
        assert!(message.contains("the ends of 259 tokens do not ascend to"), "{message}");
    }

    #[test]
    fn tables_of_version_1_are_read() {
        let new = parts().to_bytes();
        // What version 2 has more: five numbers behind the first eight, and arrays that are empty here.
        let old = [&[1], &new[1..32], &new[52..]].concat();
        let (new, old) = (open(&new).unwrap(), open(&old).unwrap());
        for text in ["", "the <|end|>    é", "he"] {
            assert_eq!(old.encode_whole(text).unwrap(), new.encode_whole(text).unwrap());
        }
        assert_eq!(old.decode(&[116, 256, 257]), "the<|end|>");
    }

    #[test]
    fn decoding_needs_no_encoder() {
        let good = parts().to_bytes();
        let damaged = open(&good[..good.len() - 4]).unwrap();
        assert_eq!(damaged.decode(&[116, 256]), "the");
        assert!(damaged.is_special(257));
        damaged.encode("the").unwrap_err();
        damaged.encode("the").unwrap_err();
    }

    #[test]
    fn long_words_merge_as_short_ones_do() {
        let tokenizer = open(&parts().to_bytes()).unwrap();
        for word in ["he", "hhe", "hehe", "heh", "ehehhheeh"] {
            for n in [1, 2, 5, 9, 30, 100] {
                // Without spaces: one piece, on both sides of the length from which another way is taken.
                let ids = tokenizer.encode(&word.repeat(n)).unwrap();
                let mut expected = Vec::new();
                let mut rest = word.repeat(n);
                while !rest.is_empty() {
                    let len = if rest.starts_with("he") { 2 } else { 1 };
                    expected.push(if len == 2 { 256 } else { u32::from(rest.as_bytes()[0]) });
                    rest.drain(..len);
                }
                assert_eq!(ids, expected, "{word} x {n}");
            }
        }
    }

    #[test]
    fn a_megabyte_without_a_space_is_not_quadratic() {
        let tokenizer = open(&parts().to_bytes()).unwrap();
        assert_eq!(tokenizer.encode(&"he".repeat(1 << 19)).unwrap(), vec![256; 1 << 19]);
        assert_eq!(tokenizer.encode(&" ".repeat(1 << 20)).unwrap().len(), (1 << 20) / 4);
    }

    /// `a*b`, and nothing else: without a `b` every `a` is a start that comes to nothing at the end of the text.
    #[test]
    fn a_table_that_goes_back_and_forth_is_an_error_not_a_wait() {
        let mut parts = parts();
        parts.splitters = vec![ScannerParts {
            starts: vec![0, 97, 98, 99],
            classes: vec![0, 1, 2, 0],
            n_classes: 3,
            next: vec![0, 0, 0, 0, 1, 2, 0, 0, 0],
            accept: vec![0, 0, 1],
        }];
        let tokenizer = open(&parts.to_bytes()).unwrap();
        assert_eq!(tokenizer.encode(&"a".repeat(100)).unwrap().len(), 100);
        assert_eq!(tokenizer.encode(&("a".repeat(1 << 20) + "b")).unwrap().len(), (1 << 20) + 1);
        let message = tokenizer.encode(&"a".repeat(1 << 20)).unwrap_err().to_string();
        assert!(message.contains("more than 256 steps for each"), "{message}");
    }

    proptest! {
        #[test]
        fn damaged_bytes_never_panic(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            text in ".{0,60}",
            ids in prop::collection::vec(any::<u32>(), 0..9),
        ) {
            let mut bytes = parts().to_bytes();
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Ok(tokenizer) = open(&bytes) {
                let _ = tokenizer.encode(&format!("{text} the <|end|>    {}", text.repeat(9)));
                let _ = tokenizer.decode_skip_special(&ids);
                let _ = tokenizer.check_vocabulary(3);
            }
        }
    }
}
