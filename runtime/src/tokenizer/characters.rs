//! Text as characters, where a piece does not start as bytes but as one token for each character (SentencePiece's BPE): spaces
//! are written as `▁`, and what has no token of its own is the tokens of its bytes, or unknown.

use super::bpe::NO_TOKEN;
use super::section::{Numbers, Reader};

/// What stands for a space: U+2581.
const SPACE: char = '▁';

/// Which parts of a text, between the tokens that are cut out of it, get a space before them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SpaceBefore {
    /// None.
    #[default]
    Never = 0,
    /// All, before added tokens are looked for in what is normalized.
    Always = 1,
    /// Those that do not begin with one.
    Missing = 2,
    /// What the text begins with, when that is no added token and no space.
    First = 3,
}

impl SpaceBefore {
    fn of(number: u32) -> Result<Self, String> {
        let known = [Self::Never, Self::Always, Self::Missing, Self::First];
        known
            .into_iter()
            .find(|kind| *kind as u32 == number)
            .ok_or_else(|| format!("a space before texts of kind {number}"))
    }
}

/// What characters start as.
#[derive(Clone, Debug, Default)]
pub struct CharacterParts {
    /// Characters and their tokens, ascending.
    pub tokens: Vec<(char, u32)>,
    /// The token of characters without one, [`NO_TOKEN`] if they are left out.
    pub unknown: u32,
    /// Whether unknown characters side by side are one token.
    pub fuse_unknown: bool,
    /// Where spaces are added.
    pub space_before: SpaceBefore,
}

/// The tables, where they lie.
#[derive(Debug)]
pub(super) struct Characters {
    codes: Numbers,
    tokens: Numbers,
    unknown: u32,
    fuse_unknown: bool,
    space_before: SpaceBefore,
}

/// What the header says of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct CharacterHeader {
    pub(super) n: usize,
    pub(super) unknown: u32,
    pub(super) fuse_unknown: bool,
    pub(super) space_before: u32,
}

impl Characters {
    pub(super) fn read(from: &mut Reader, header: CharacterHeader, n_ids: usize) -> Result<Self, String> {
        let (codes, tokens) = (from.numbers(header.n)?, from.numbers(header.n)?);
        if !codes.view().iter().is_sorted_by(|a, b| a < b) {
            return Err("the characters are out of order".into());
        }
        let unknown = Some(header.unknown).filter(|&id| id != NO_TOKEN);
        if let Some(id) = tokens.view().iter().chain(unknown).find(|&id| id as usize >= n_ids) {
            return Err(format!("a character is token {id} of {n_ids}"));
        }
        Ok(Self {
            codes,
            tokens,
            unknown: header.unknown,
            fuse_unknown: header.fuse_unknown,
            space_before: SpaceBefore::of(header.space_before)?,
        })
    }

    /// A part of a text with its spaces as they are in tokens.
    pub(super) fn normalize(&self, part: &str) -> String {
        let space = (self.space_before == SpaceBefore::Always).then_some(SPACE);
        space.into_iter().chain(part.chars().map(|c| if c == ' ' { SPACE } else { c })).collect()
    }

    /// Appends what a normalized part starts as; `first` says that the text begins with it.
    pub(super) fn start(&self, part: &str, first: bool, byte_tokens: &[u32; 256], out: &mut Vec<u32>) {
        let space = match self.space_before {
            SpaceBefore::Never | SpaceBefore::Always => false,
            SpaceBefore::Missing => !part.starts_with(SPACE),
            SpaceBefore::First => first && !part.starts_with(SPACE),
        };
        let mut unknown = 0usize;
        for c in space.then_some(SPACE).into_iter().chain(part.chars()) {
            if let Some(id) = self.codes.view().find(c as u32).and_then(|at| self.tokens.view().get(at)) {
                out.extend(std::iter::repeat_n(self.unknown, std::mem::take(&mut unknown)));
                out.push(id);
                continue;
            }
            let mut buffer = [0; 4];
            let bytes = c.encode_utf8(&mut buffer).bytes().map(|byte| byte_tokens[usize::from(byte)]);
            if bytes.clone().all(|id| id != NO_TOKEN) {
                out.extend(bytes);
            } else if self.unknown != NO_TOKEN {
                unknown = if self.fuse_unknown { 1 } else { unknown + 1 };
            }
        }
        out.extend(std::iter::repeat_n(self.unknown, unknown));
    }
}

#[cfg(all(test, feature = "json-tokenizer"))]
mod tests {
    use super::super::Tokenizer;
    use super::super::bpe::BpeParts;
    use super::super::scanner::ScannerParts;
    use super::super::tests::sentencepiece;
    use super::*;
    use crate::storage::Bytes;
    use proptest::prelude::*;
    use serde_json::json;

    /// The same as [`sentencepiece`], but for the special tokens in texts.
    fn parts() -> BpeParts {
        let bytes = (0..=255u8).map(|byte| vec![byte]);
        let names = ["<unk>", "<s>", "</s>"].map(|name| name.as_bytes().to_vec());
        let others = [" ", "h", "e", "i", "he", " he"].map(|text| text.as_bytes().to_vec());
        BpeParts {
            tokens: names.into_iter().chain(bytes).chain(others).map(Some).collect(),
            special: vec![0, 1, 2],
            around: [vec![1], vec![]],
            adds_space: true,
            byte_tokens: (3..259).collect(),
            characters: Some(CharacterParts {
                tokens: vec![('e', 261), ('h', 260), ('i', 262), (SPACE, 259)],
                unknown: 0,
                fuse_unknown: true,
                space_before: SpaceBefore::Always,
            }),
            merges: vec![([260, 261], 263), ([259, 263], 264)],
            ..BpeParts::default()
        }
    }

    fn open(parts: &BpeParts) -> Tokenizer {
        Tokenizer::from_tables(Bytes::copy_from(&parts.to_bytes())).unwrap()
    }

    fn library() -> Tokenizer {
        let decoder = json!({ "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " }, { "type": "ByteFallback" },
            { "type": "Fuse" }, { "type": "Strip", "content": " ", "start": 1, "stop": 0 } ] });
        Tokenizer::from_json(sentencepiece(&decoder).to_string().as_bytes()).unwrap()
    }

    #[test]
    fn spaces_are_added_where_the_kind_says() {
        let mut parts = parts();
        for (kind, [plain, spaced, behind]) in [
            (SpaceBefore::Never, [&[263][..], &[264], &[2, 263]]),
            (SpaceBefore::Always, [&[264], &[259, 264], &[2, 264]]),
            (SpaceBefore::Missing, [&[264], &[264], &[2, 264]]),
            (SpaceBefore::First, [&[264], &[264], &[2, 263]]),
        ] {
            // A scanner of `.`, which stands for token 2.
            parts.added = ScannerParts {
                starts: vec![0, 46, 47],
                classes: vec![0, 1, 0],
                n_classes: 2,
                next: vec![0, 0, 0, 2, 0, 0],
                accept: vec![0, 0, 3],
            };
            parts.characters.as_mut().unwrap().space_before = kind;
            let tokenizer = open(&parts);
            for (text, expected) in [("he", plain), (" he", spaced), (".he", behind), ("", &[])] {
                assert_eq!(tokenizer.encode(text).unwrap(), expected, "{kind:?} {text:?}");
            }
            assert_eq!(tokenizer.encode_start("").unwrap(), [1]);
            assert_eq!(tokenizer.encode_whole("i").unwrap()[0], 1);
        }
    }

    #[test]
    fn characters_without_a_token_are_unknown_or_nothing() {
        let mut parts = parts();
        parts.byte_tokens = vec![NO_TOKEN; 256];
        for (unknown, fuse_unknown, expected) in
            [(0, true, &[259, 0, 260, 0][..]), (0, false, &[259, 0, 0, 260, 0]), (NO_TOKEN, true, &[259, 260])]
        {
            let characters = parts.characters.as_mut().unwrap();
            (characters.unknown, characters.fuse_unknown) = (unknown, fuse_unknown);
            assert_eq!(open(&parts).encode("éxh🦊").unwrap(), expected);
        }
    }

    #[test]
    fn damaged_characters_are_refused_by_name() {
        type Change = fn(&mut BpeParts);
        let characters: fn(&mut BpeParts) -> &mut CharacterParts = |p| p.characters.get_or_insert_default();
        let cases: [(&str, Change); 7] = [
            ("the characters are out of order", |p| p.characters.as_mut().unwrap().tokens.swap(0, 1)),
            ("the characters are out of order", |p| p.characters.as_mut().unwrap().tokens[1].0 = 'e'),
            ("a character is token 265 of 265", |p| p.characters.as_mut().unwrap().tokens[1].1 = 265),
            ("a character is token 999 of 265", |p| p.characters.as_mut().unwrap().unknown = 999),
            ("byte 0x61 is token 300 of 265", |p| p.byte_tokens[0x61] = 300),
            ("token 265 of 265 stands around a text", |p| p.around[1] = vec![265]),
            ("1 splitters in tables over characters", |p| p.splitters = vec![ScannerParts::default()]),
        ];
        for (expected, change) in cases {
            let mut parts = parts();
            change(&mut parts);
            assert!(!characters(&mut parts).tokens.is_empty());
            let tables = Tokenizer::from_tables(Bytes::copy_from(&parts.to_bytes()));
            let message = tables.and_then(|t| t.encode("he")).unwrap_err().to_string();
            assert!(message.contains(expected), "{message} should contain {expected}");
        }
        // Behind eight numbers and four: the kind of space before; and the flag without which there are no characters.
        let good = parts().to_bytes();
        for (at, value, expected) in
            [(48, 9, "a space before texts of kind 9"), (4, 8, "4 characters in tables over bytes")]
        {
            let mut bytes = good.clone();
            bytes[at] = value;
            let tables = Tokenizer::from_tables(Bytes::copy_from(&bytes));
            let message = tables.and_then(|t| t.encode("he")).unwrap_err().to_string();
            assert!(message.contains(expected), "{message} should contain {expected}");
        }
    }

    #[test]
    fn a_megabyte_of_one_word_is_not_quadratic() {
        let tokenizer = open(&parts());
        assert_eq!(tokenizer.encode(&"he".repeat(1 << 19)).unwrap().len(), 1 << 19);
    }

    proptest! {
        #[test]
        fn ids_and_texts_are_those_of_the_library(text in "([ hei▁é\n🙂]|he| he|\\PC){0,40}", ids in prop::collection::vec(0u32..270, 0..20)) {
            let (tables, library) = (open(&parts()), library());
            prop_assert_eq!(tables.encode(&text).unwrap(), library.encode(&text).unwrap());
            prop_assert_eq!(tables.encode_start(&text).unwrap(), library.encode_start(&text).unwrap());
            prop_assert_eq!(tables.encode_whole(&text).unwrap(), library.encode_whole(&text).unwrap());
            prop_assert_eq!(tables.decode(&ids), library.decode(&ids));
            prop_assert_eq!(tables.decode_skip_special(&ids), library.decode_skip_special(&ids));
            let streamed = |tokenizer: &Tokenizer| {
                let mut stream = tokenizer.stream();
                let text: String = ids.iter().map(|&id| stream.push(id).to_owned()).collect();
                text + stream.finish()
            };
            prop_assert_eq!(streamed(&tables), streamed(&library));
        }

        #[test]
        fn damaged_bytes_never_panic(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            text in ".{0,60}",
        ) {
            let mut bytes = parts().to_bytes();
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Ok(tokenizer) = Tokenizer::from_tables(Bytes::copy_from(&bytes)) {
                let _ = tokenizer.encode_whole(&format!("{text} he {}", text.repeat(9)));
                let _ = tokenizer.check_vocabulary(3);
            }
        }
    }
}
