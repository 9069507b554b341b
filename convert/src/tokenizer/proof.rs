//! Whether the tables give the same ids and the same text as the reference.
//!
//! The tables are made from the same description, so equality is expected; this is the check that no part of it was
//! misread. It covers what tables can get wrong: every token (decoded, and encoded by itself), both ends of every range of
//! characters, every pair of the texts below, and random text.

use tidbit_runtime::tokenizer::Tokenizer;
use tidbit_runtime::tokenizer::bpe::BpeParts;

/// Texts that take each alternative of the usual splitting expressions, and cases that scripts and normalization add.
const TEXTS: [&str; 37] = [
    "Hello",
    " world",
    "it's we'll I'VE they'RE 'tis",
    "'",
    "''s",
    "’s",
    " ",
    "  ",
    "   x",
    "\t",
    "\n",
    "\n\n",
    " \n",
    "\r\n",
    "\u{a0}",
    "\u{3000} \u{2028}",
    "1",
    "12345",
    " 1234",
    "3.14e-10",
    "½Ⅷ²",
    "!",
    " ?!",
    "...\n",
    "_a-b/c",
    "{}();\n\t\treturn x;",
    "naïve",
    "nai\u{308}ve e\u{301}\u{327}",
    "漢字かな",
    "한국어 \u{1112}\u{1161}\u{11ab}",
    "अनुच्छेद",
    "العربية",
    "👩‍👩‍👧🏽 🦊",
    "\u{0}\u{7f}\u{ad}\u{feff}\u{fffd}",
    "▁",
    " ▁▁a  ",
    "<0x41><s>",
];

/// Characters of random texts: those that patterns tell apart, and some of every length.
const CHARACTERS: [char; 41] = [
    ' ', ' ', ' ', '\n', '\r', '\t', '\'', 's', 't', 'r', 'e', 'v', 'm', 'l', 'd', 'a', 'Z', '0', '9', '.', '-', '<',
    '|', '>', '\u{a0}', 'é', 'ß', 'Я', '\u{301}', '\u{308}', 'ǅ', '٣', '漢', '\u{200d}', '\u{3000}', '한', '€', '🦊',
    '𝟙', '\u{e000}', '▁',
];

/// `Err` names the first text on which the two differ.
pub(super) fn same(reference: &Tokenizer, tables: &Tokenizer, parts: &BpeParts) -> Result<(), String> {
    let check = |text: &str| {
        let (expected, found) = (reference.encode(text), tables.encode(text));
        match (expected, found) {
            (Ok(expected), Ok(found)) if expected == found => Ok(()),
            (_, Err(e)) => Err(e.to_string()),
            _ => Err(format!("its tables give other ids for {:?}", text.chars().take(40).collect::<String>())),
        }
    };
    for text in TEXTS {
        if reference.encode_start(text).ok() != tables.encode_start(text).ok()
            || reference.encode_whole(text).ok() != tables.encode_whole(text).ok()
        {
            return Err(format!("its tables put other tokens around {text:?}"));
        }
    }
    for id in 0..=parts.tokens.len() as u32 {
        let token = tables.decode(&[id]);
        if reference.decode(&[id]) != token || reference.is_special(id) != tables.is_special(id) {
            return Err(format!("its tables have another token {id}"));
        }
    }
    // Together: a call of the reference for each of fifty thousand tokens takes longer than all the rest.
    for ids in (0..parts.tokens.len() as u32).collect::<Vec<_>>().chunks(512) {
        let tokens = ids.iter().map(|&id| tables.decode(&[id]));
        check(&tokens.collect::<Vec<_>>().join("\n"))?;
    }
    for scanner in parts.splitters.iter().chain([&parts.added, &parts.added_normalized]) {
        for starts in scanner.starts.chunks(64) {
            let ends = starts.iter().flat_map(|&start| [start.saturating_sub(1), start]).filter_map(char::from_u32);
            let uses: Vec<_> = ends.map(|c| format!("a{c}{c}1 {c}.{c}  {c}\n{c}")).collect();
            check(&uses.concat())?;
        }
    }
    for first in TEXTS {
        check(first)?;
        check(&TEXTS.map(|second| format!("{first}{second}{first} {second}")).join("a"))?;
    }
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut below = |n: usize| {
        // A linear congruential generator (Knuth's constants); its high bits are good.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    for _ in 0..200 {
        let text: String = (0..below(200)).map(|_| CHARACTERS[below(CHARACTERS.len())]).collect();
        check(&text)?;
        let ids: Vec<u32> = (0..below(20)).map(|_| below(parts.tokens.len().max(1)) as u32).collect();
        check(&tables.decode(&ids))?;
        if reference.decode(&ids) != tables.decode(&ids) {
            return Err(format!("its tables give another text for {ids:?}"));
        }
    }
    Ok(())
}
