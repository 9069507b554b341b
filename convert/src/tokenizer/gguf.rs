//! The tokenizer of a GGUF, as a `tokenizer.json`. GGUF has tokens and merges, and for the rule that splits text into words
//! only a name: [`RULES`] knows what the names stand for.

use super::{StoredTokenizer, chat, validate};
use crate::checkpoint::gguf::Metadata;
use crate::error::{ConvertError, shown};
use serde_json::{Map, Value, json};
use std::path::Path;

/// The words of `LLaMA` 3, up to the digits.
const WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+";
/// And from there on.
const OTHERS: &str = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How text is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Split {
    /// GPT-2's expression.
    Plain,
    /// Digits by themselves, then GPT-2's expression.
    Digits,
    /// `LLaMA` 3's words, with up to so many digits together.
    Words(usize),
    /// Punctuation by itself, GPT-2's expression, digits in threes.
    Falcon,
    /// Runs of what is neither space nor punctuation.
    Bloom,
}

/// A name, how it splits, whether text is normalized to NFC before, and whether a word that is a token is taken as it is.
type Rule = (&'static str, Split, bool, bool);

/// What `tokenizer.ggml.pre` may be.
const RULES: &[Rule] = &[
    ("gpt-2", Split::Plain, false, false),
    ("phi-2", Split::Plain, false, false),
    ("mpt", Split::Plain, true, false),
    ("olmo", Split::Plain, true, false),
    ("smollm", Split::Digits, false, false),
    ("starcoder", Split::Digits, false, false),
    ("refact", Split::Digits, false, false),
    ("llama-bpe", Split::Words(3), false, true),
    ("llama3", Split::Words(3), false, true),
    ("llama-v3", Split::Words(3), false, true),
    ("dbrx", Split::Words(3), false, false),
    ("qwen2", Split::Words(1), true, false),
    ("deepseek-r1-qwen", Split::Words(1), true, false),
    ("stablelm2", Split::Words(1), false, false),
    ("falcon", Split::Falcon, false, false),
    ("bloom", Split::Bloom, false, false),
];

const TOKENS: &str = "tokenizer.ggml.tokens";

/// The kinds of tokens.
const NORMAL: i32 = 1;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// The tokenizer; inside, why there is none.
pub(crate) fn load(
    path: &Path,
    metadata: &Metadata,
    vocab_size: usize,
) -> Result<Result<StoredTokenizer, String>, ConvertError> {
    let (model, pre) = (metadata.text("tokenizer.ggml.model")?, metadata.text("tokenizer.ggml.pre")?);
    match model {
        Some("gpt2") => {}
        None => return Ok(Err("no `tokenizer.ggml.model`".into())),
        Some(other) => {
            return Ok(Err(format!("`tokenizer.ggml.model` is \"{}\", only gpt2 is supported", shown(other))));
        }
    }
    let Some(rule) = RULES.iter().find(|rule| Some(rule.0) == pre) else {
        let names: Vec<_> = RULES.iter().map(|rule| rule.0).collect();
        let found = pre.map_or_else(|| "missing".into(), |pre| format!("\"{}\"", shown(pre)));
        return Ok(Err(format!("`tokenizer.ggml.pre` is {found}, expected one of: {}", names.join(", "))));
    };
    let json = build(metadata, rule, vocab_size)?;
    validate(path, &json, vocab_size)?;
    let chat = chat::of_gguf(path, metadata, metadata.texts(TOKENS)?.unwrap_or_default())?;
    Ok(Ok(StoredTokenizer { chat, ..StoredTokenizer::new(json) }))
}

fn build(metadata: &Metadata, rule: &Rule, vocab_size: usize) -> Result<Vec<u8>, ConvertError> {
    const KINDS: &str = "tokenizer.ggml.token_type";
    const MERGES: &str = "tokenizer.ggml.merges";
    let Some(tokens) = metadata.texts(TOKENS)? else { return Err(metadata.refuse(TOKENS, "an array of strings")) };
    let kinds = metadata.ints(KINDS)?.unwrap_or_default();
    if tokens.len() > vocab_size {
        return Err(metadata.refuse(TOKENS, format!("at most {vocab_size}, the rows of the embedding")));
    }
    if !kinds.is_empty() && kinds.len() != tokens.len() {
        return Err(metadata.refuse(KINDS, format!("as many as there are tokens, {}", tokens.len())));
    }
    let (mut vocab, mut added) = (Map::new(), Vec::new());
    for (id, token) in tokens.iter().enumerate() {
        let kind = kinds.get(id).copied().unwrap_or(NORMAL);
        if kind == UNUSED {
            continue;
        }
        if let Some(other) = vocab.insert(token.clone(), json!(id)) {
            return Err(metadata.error(format!("tokens {other} and {id} are both {:?}", shown(token))));
        }
        if kind != NORMAL && !token.is_empty() {
            added.push(json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": kind != USER_DEFINED,
            }));
        }
    }
    let mut merges = Vec::new();
    for (i, merge) in metadata.texts(MERGES)?.unwrap_or_default().iter().enumerate() {
        match merge.split_once(' ') {
            Some((left, right)) if !left.is_empty() && !right.is_empty() && !right.contains(' ') => {
                merges.push([left, right]);
            }
            _ => return Err(metadata.error(format!("merge {i} is {:?}, expected two tokens", shown(merge)))),
        }
    }
    let &(_, split, nfc, ignore_merges) = rule;
    let space = metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(false);
    let decoder = json!({ "type": "ByteLevel", "add_prefix_space": space, "trim_offsets": true, "use_regex": true });
    let description = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": nfc.then(|| json!({ "type": "NFC" })),
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": splitters(split, space) },
        "post_processor": null,
        "decoder": decoder,
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": ignore_merges,
            "vocab": vocab,
            "merges": merges,
        },
    });
    Ok(description.to_string().into_bytes())
}

fn splitters(split: Split, space: bool) -> Vec<Value> {
    let bytes = |regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": space, "trim_offsets": true, "use_regex": regex });
    let isolate = |expression: &str| json!({ "type": "Split", "pattern": { "Regex": expression }, "behavior": "Isolated", "invert": false });
    match split {
        Split::Plain => vec![bytes(true)],
        Split::Digits => vec![json!({ "type": "Digits", "individual_digits": true }), bytes(true)],
        Split::Words(digits) => {
            let digits = if digits == 1 { r"\p{N}".into() } else { format!(r"\p{{N}}{{1,{digits}}}") };
            vec![isolate(&format!("{WORDS}|{digits}|{OTHERS}")), bytes(false)]
        }
        Split::Falcon => vec![
            json!({ "type": "Punctuation", "behavior": "Contiguous" }),
            bytes(true),
            json!({ "type": "Digits", "individual_digits": false }),
            isolate("[0-9][0-9][0-9]"),
        ],
        Split::Bloom => vec![isolate(r" ?[^(\s|[.,!?…。，、।۔،])]+"), bytes(false)],
    }
}
