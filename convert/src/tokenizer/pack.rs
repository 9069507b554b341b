//! A tokenizer as the runtime's tables: BPE over bytes (GPT-2) or characters (SentencePiece) with nothing that the tables cannot
//! say, shown to give the same ids as the library that defines it.

use super::{proof, tables};
use serde_json::Value;
use std::collections::HashMap;
use tidbit_runtime::storage::Bytes;
use tidbit_runtime::tokenizer::Tokenizer;
use tidbit_runtime::tokenizer::bpe::{BpeParts, CharacterParts, NO_TOKEN, SpaceBefore};
use tidbit_runtime::tokenizer::byte_char;
use tidbit_runtime::tokenizer::scanner::ScannerParts;
use tokenizers::{NormalizedString, Normalizer};

/// GPT-2's splitting expression, which the library's `ByteLevel` has built in.
const BYTE_LEVEL: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// What stands for a space in SentencePiece's tokens.
const SPACE: &str = "▁";

/// The longest added token, in characters: the runtime bounds the steps that looking for one may take.
const MAX_ADDED: usize = 128;

/// The tables of a `tokenizer.json`, or why it cannot have any.
pub(super) fn pack(json: &[u8]) -> Result<Vec<u8>, String> {
    let library = tokenizers::Tokenizer::from_bytes(json).map_err(|e| e.to_string())?;
    let description = serde_json::to_value(&library).map_err(|e| e.to_string())?;
    let reference = Tokenizer::from_json(json).map_err(|e| e.to_string())?;

    let around = around(&description["post_processor"])?;
    let tokens = tokens(&library, &reference)?;
    let special = (0..tokens.len() as u32).filter(|&id| reference.is_special(id)).collect();
    let (added, added_normalized) = added_tokens(&library)?;
    let (vocab, merges) = merges(&description["model"])?;
    let adds_space = reference.adds_space();
    let any = BpeParts {
        tokens,
        special,
        merges,
        added: tables::from_words(&added)?,
        around,
        adds_space,
        ..BpeParts::default()
    };
    let decoder = &description["decoder"];
    let of_bytes = match decoder["decoders"].as_array().map(Vec::as_slice) {
        Some([one]) => kind(one) == "ByteLevel",
        _ => kind(decoder) == "ByteLevel",
    };
    let parts = if of_bytes {
        over_bytes(any, &description, &vocab, &added_normalized)?
    } else {
        over_characters(any, &description, &vocab, &added_normalized)?
    };
    if description["model"]["ignore_merges"] == true {
        check_whole_words(&library, &parts)?;
    }
    let bytes = parts.to_bytes();
    let tables = Tokenizer::from_tables(Bytes::copy_from(&bytes)).map_err(|e| e.to_string())?;
    proof::same(&reference, &tables, &parts)?;
    Ok(bytes)
}

/// The parts of GPT-2's kind.
fn over_bytes(
    parts: BpeParts,
    description: &Value,
    vocab: &HashMap<&str, u32>,
    added_normalized: &[(String, u32)],
) -> Result<BpeParts, String> {
    let nfc = normalizes(&description["normalizer"])?;
    let (mut splitters, mut byte_level) = (Vec::new(), false);
    collect_splitters(&description["pre_tokenizer"], &mut splitters, &mut byte_level)?;
    if !byte_level {
        return Err("its `pre_tokenizer` is not ByteLevel".into());
    }
    let id = |byte| vocab.get(&*byte_char(byte).encode_utf8(&mut [0; 4])).copied().unwrap_or(NO_TOKEN);
    let byte_tokens = (0..=u8::MAX).map(id).collect();
    Ok(BpeParts { byte_tokens, nfc, splitters, added_normalized: tables::from_words(added_normalized)?, ..parts })
}

/// The parts of SentencePiece's kind.
fn over_characters(
    parts: BpeParts,
    description: &Value,
    vocab: &HashMap<&str, u32>,
    added_normalized: &[(String, u32)],
) -> Result<BpeParts, String> {
    let model = &description["model"];
    if model["ignore_merges"] == true {
        return Err("its `model` takes pieces as a whole".into());
    }
    let space_before = spaces(description)?;
    // There, spaces are replaced before these are looked for. The library's `Metaspace` does it behind.
    let spaced = |(content, _): &(String, u32)| content.contains([' ', '▁']);
    if kind(&description["pre_tokenizer"]) == "Metaspace" && added_normalized.iter().any(spaced) {
        return Err("its `pre_tokenizer` Metaspace follows added tokens with spaces".into());
    }
    let mut tokens = Vec::new();
    for (token, &id) in vocab {
        let mut characters = token.chars();
        if let (Some(c), None) = (characters.next(), characters.next()) {
            tokens.push((c, id));
        }
    }
    tokens.sort_unstable();
    let unknown = match model["unk_token"].as_str() {
        Some(token) => *vocab.get(token).ok_or("its `unk_token` is no token")?,
        None => NO_TOKEN,
    };
    let fallback = model["byte_fallback"] == true;
    let byte = |byte: u8| vocab.get(&*format!("<0x{byte:02X}>")).copied().filter(|_| fallback).unwrap_or(NO_TOKEN);
    let fuse_unknown = model["fuse_unk"] == true;
    let characters = Some(CharacterParts { tokens, unknown, fuse_unknown, space_before });
    let byte_tokens = (0..=u8::MAX).map(byte).collect();
    Ok(BpeParts { byte_tokens, characters, added_normalized: tables::from_words(added_normalized)?, ..parts })
}

/// Where spaces are added, when all others become `▁` and nothing else is done to a text.
fn spaces(description: &Value) -> Result<SpaceBefore, String> {
    let is_replace =
        |step: &Value| kind(step) == "Replace" && step["pattern"]["String"] == " " && step["content"] == SPACE;
    let (normalizer, pre_tokenizer) = (&description["normalizer"], &description["pre_tokenizer"]);
    let before = match sequence(normalizer, "normalizers")[..] {
        [] => None,
        [step] if is_replace(step) => Some(SpaceBefore::Never),
        [prepend, step] if kind(prepend) == "Prepend" && prepend["prepend"] == SPACE && is_replace(step) => {
            Some(SpaceBefore::Always)
        }
        [first, ..] => return Err(format!("its `normalizer` is {} with more than spaces", kind(first))),
    };
    match (before, &sequence(pre_tokenizer, "pretokenizers")[..]) {
        (Some(before), []) => Ok(before),
        // There are no spaces left to split at.
        (Some(before), [split]) if kind(split) == "Split" && split["pattern"]["String"] == " " => Ok(before),
        (None, [step]) if kind(step) == "Metaspace" && step["replacement"] == SPACE && step["split"] == false => {
            match step["prepend_scheme"].as_str() {
                Some("never") => Ok(SpaceBefore::Never),
                Some("always") => Ok(SpaceBefore::Missing),
                Some("first") => Ok(SpaceBefore::First),
                _ => Err("its `pre_tokenizer` Metaspace has no known scheme".into()),
            }
        }
        (_, [step, ..]) => Err(format!("its `pre_tokenizer` {} does more than replace spaces", kind(step))),
        (None, []) => Err("its `pre_tokenizer` and `normalizer` leave spaces".into()),
    }
}

/// The type of a part, for messages.
fn kind(part: &Value) -> &str {
    part["type"].as_str().unwrap_or("unknown")
}

/// The members of a sequence; a part by itself is one of length 1, and none is empty.
fn sequence<'a>(part: &'a Value, members: &str) -> Vec<&'a Value> {
    match part {
        Value::Null => Vec::new(),
        part if kind(part) == "Sequence" => {
            part[members].as_array().into_iter().flatten().flat_map(|member| sequence(member, members)).collect()
        }
        part => vec![part],
    }
}

/// Whether text is normalized to NFC; any other normalization is an error.
fn normalizes(normalizer: &Value) -> Result<bool, String> {
    let steps = sequence(normalizer, "normalizers");
    match steps.iter().find(|step| kind(step) != "NFC") {
        Some(other) => Err(format!("its `normalizer` is {}", kind(other))),
        None => Ok(!steps.is_empty()),
    }
}

fn collect_splitters(
    pre_tokenizer: &Value,
    splitters: &mut Vec<ScannerParts>,
    byte_level: &mut bool,
) -> Result<(), String> {
    for step in sequence(pre_tokenizer, "pretokenizers") {
        if *byte_level {
            return Err(format!("its `pre_tokenizer` is ByteLevel and then {}", kind(step)));
        }
        let refuse = |why: &str| Err(format!("its `pre_tokenizer` {} {why}", kind(step)));
        match kind(step) {
            "ByteLevel" => {
                if step["add_prefix_space"] != false {
                    return refuse("adds a space");
                }
                if step["use_regex"] != false {
                    splitters.push(tables::from_regex(BYTE_LEVEL)?);
                }
                *byte_level = true;
            }
            "Split" => {
                let Some(expression) = step["pattern"]["Regex"].as_str() else { return refuse("has no expression") };
                if step["behavior"] != "Isolated" || step["invert"] != false {
                    return refuse("does not isolate");
                }
                splitters.push(tables::from_regex(expression)?);
            }
            "Digits" => {
                let runs = step["individual_digits"] != true;
                splitters.push(tables::from_characters(char::is_numeric, runs));
            }
            _ => return refuse("is not known"),
        }
    }
    Ok(())
}

/// The tokens before a text and behind it.
fn around(post_processor: &Value) -> Result<[Vec<u32>; 2], String> {
    let mut around = [Vec::new(), Vec::new()];
    let mut templates = 0;
    for step in sequence(post_processor, "processors") {
        let refuse = || format!("its `post_processor` is {}", kind(step));
        match kind(step) {
            "ByteLevel" => {}
            "TemplateProcessing" if templates == 0 => {
                templates += 1;
                let mut texts = 0;
                for piece in step["single"].as_array().into_iter().flatten() {
                    if piece["Sequence"]["id"] == "A" && texts == 0 {
                        texts = 1;
                        continue;
                    }
                    let name = piece["SpecialToken"]["id"].as_str().ok_or_else(refuse)?;
                    for id in step["special_tokens"][name]["ids"].as_array().into_iter().flatten() {
                        let id = id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(refuse)?;
                        around[texts].push(id);
                    }
                }
                if texts == 0 {
                    return Err(refuse());
                }
            }
            _ => return Err(refuse()),
        }
    }
    Ok(around)
}

/// The bytes of every token, by id.
fn tokens(library: &tokenizers::Tokenizer, reference: &Tokenizer) -> Result<Vec<Option<Vec<u8>>>, String> {
    let vocabulary = library.get_vocab(true);
    let n_ids = vocabulary.values().max().map_or(0, |&id| id as usize + 1);
    // Few ids are unused in real vocabularies; one made of holes would only fill memory.
    if n_ids > 4 * vocabulary.len() + 1024 {
        return Err(format!("its {} tokens have ids up to {n_ids}", vocabulary.len()));
    }
    let mut tokens = vec![None; n_ids];
    for &id in vocabulary.values() {
        let mut bytes = Vec::new();
        reference.push_bytes(id, &mut bytes);
        if tokens[id as usize].replace(bytes).is_some() {
            return Err(format!("two of its tokens have id {id}"));
        }
    }
    Ok(tokens)
}

/// Words, and a token's id plus 1 for each.
type Words = Vec<(String, u32)>;

/// The added tokens that are looked for before and after normalization.
fn added_tokens(library: &tokenizers::Tokenizer) -> Result<(Words, Words), String> {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for (&id, token) in library.get_added_vocabulary().get_added_tokens_decoder() {
        let content = &token.content;
        if token.single_word || token.lstrip || token.rstrip {
            return Err(format!("its added token {content:?} looks around"));
        }
        if content.chars().count() > MAX_ADDED {
            return Err(format!("one of its added tokens has more than {MAX_ADDED} characters"));
        }
        if !token.normalized {
            before.push((content.clone(), id + 1));
            continue;
        }
        let mut normalized = NormalizedString::from(content.as_str());
        if let Some(normalizer) = library.get_normalizer() {
            normalizer.normalize(&mut normalized).map_err(|e| e.to_string())?;
        }
        after.push((normalized.get().to_owned(), id + 1));
    }
    // They come out of a hash map; the same tokenizer must give the same bytes.
    before.sort_unstable();
    after.sort_unstable();
    Ok((before, after))
}

/// A model that takes a piece as a whole when it is a token does the same as its merges when those make every token.
fn check_whole_words(library: &tokenizers::Tokenizer, parts: &BpeParts) -> Result<(), String> {
    let bare = BpeParts {
        tokens: parts.tokens.clone(),
        byte_tokens: parts.byte_tokens.clone(),
        merges: parts.merges.clone(),
        ..BpeParts::default()
    };
    let bare = Tokenizer::from_tables(Bytes::copy_from(&bare.to_bytes())).map_err(|e| e.to_string())?;
    for id in library.get_vocab(false).into_values() {
        // Bytes that are no text are no piece; an added token is cut out before there are pieces.
        let Some(Ok(text)) = parts.tokens[id as usize].as_deref().map(std::str::from_utf8) else { continue };
        let is_added = library.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id);
        if !is_added && bare.encode(text).map_err(|e| e.to_string())? != [id] {
            return Err(format!("its `model` takes {text:?} as a whole"));
        }
    }
    Ok(())
}

/// The id of every token of the model, and its merges, best first.
fn merges(model: &Value) -> Result<(HashMap<&str, u32>, Vec<([u32; 2], u32)>), String> {
    let none = |field: &str| matches!(model[field].as_str(), None | Some(""));
    if model["type"] != "BPE" || !(model["dropout"].is_null() || model["dropout"] == 0.0) {
        return Err("its `model` is not BPE without dropout".into());
    }
    if !none("continuing_subword_prefix") || !none("end_of_word_suffix") {
        return Err("its `model` marks parts of words".into());
    }
    let vocab = model["vocab"].as_object().ok_or("its `model` has no vocabulary")?;
    let number = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
    let vocab: HashMap<_, _> = vocab.iter().filter_map(|(token, id)| Some((token.as_str(), number(id)?))).collect();
    let id = |token: &str| vocab.get(token).copied();
    let mut merges = Vec::new();
    let mut rank_of = HashMap::new();
    for merge in model["merges"].as_array().into_iter().flatten() {
        let (left, right) = (merge[0].as_str().unwrap_or_default(), merge[1].as_str().unwrap_or_default());
        let (Some(l), Some(r), Some(merged)) = (id(left), id(right), id(&format!("{left}{right}"))) else {
            return Err(format!("its merge of {left:?} and {right:?} has no token"));
        };
        // Of a pair that is there twice, the library takes the last.
        if let Some(before) = rank_of.insert([l, r], merges.len()) {
            merges[before] = None;
        }
        merges.push(Some(([l, r], merged)));
    }
    Ok((vocab, merges.into_iter().flatten().collect()))
}
