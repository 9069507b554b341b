//! The tokenizer of a GGUF, as a `tokenizer.json`. GPT-2's kind has tokens and merges, and for the rule that splits text
//! into words only a name: [`RULES`] knows what the names stand for. SentencePiece's kinds are in [`sentencepiece`], BERT's is in
//! [`wordpiece`].

mod sentencepiece;
mod wordpiece;

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

/// A name, how it splits, whether text is normalized to NFC before, and whether a word that is a token is taken as it is. Those
/// tokenizers (`LLaMA` 3's) also begin a text with a token unless the file says otherwise.
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
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// The tokenizer; inside, why there is none.
pub(crate) fn load(
    path: &Path,
    metadata: &Metadata,
    vocab_size: usize,
) -> Result<Result<StoredTokenizer, String>, ConvertError> {
    let (model, pre) = (metadata.text("tokenizer.ggml.model")?, metadata.text("tokenizer.ggml.pre")?);
    let json = match model {
        Some("gpt2") => {
            let Some(rule) = RULES.iter().find(|rule| Some(rule.0) == pre) else {
                let names: Vec<_> = RULES.iter().map(|rule| rule.0).collect();
                let found = pre.map_or_else(|| "missing".into(), |pre| format!("\"{}\"", shown(pre)));
                let reason = format!("`tokenizer.ggml.pre` is {found}, expected one of: {}", names.join(", "));
                return Ok(Err(reason));
            };
            build(metadata, rule, &Tokens::read(metadata, vocab_size)?)?
        }
        Some("llama") => sentencepiece::bpe(metadata, &Tokens::read(metadata, vocab_size)?)?,
        Some("t5") => sentencepiece::unigram(metadata, &Tokens::read(metadata, vocab_size)?)?,
        Some("bert") => wordpiece::build(metadata, &Tokens::read(metadata, vocab_size)?)?,
        None => return Ok(Err("no `tokenizer.ggml.model`".into())),
        Some(other) => {
            let supported = "only gpt2, llama, t5 and bert are supported";
            return Ok(Err(format!("`tokenizer.ggml.model` is \"{}\", {supported}", shown(other))));
        }
    };
    validate(path, &json, vocab_size)?;
    let chat = chat::of_gguf(path, metadata, metadata.texts(TOKENS)?.unwrap_or_default())?;
    Ok(Ok(StoredTokenizer { chat, ..StoredTokenizer::new(json) }))
}

/// The tokens by id, and their kinds.
struct Tokens<'a> {
    texts: &'a [String],
    kinds: &'a [i32],
}

impl<'a> Tokens<'a> {
    fn read(metadata: &'a Metadata, vocab_size: usize) -> Result<Self, ConvertError> {
        const KINDS: &str = "tokenizer.ggml.token_type";
        let Some(texts) = metadata.texts(TOKENS)? else { return Err(metadata.refuse(TOKENS, "an array of strings")) };
        let kinds = metadata.ints(KINDS)?.unwrap_or_default();
        if texts.len() > vocab_size {
            return Err(metadata.refuse(TOKENS, format!("at most {vocab_size}, the rows of the embedding")));
        }
        if !kinds.is_empty() && kinds.len() != texts.len() {
            return Err(metadata.refuse(KINDS, format!("as many as there are tokens, {}", texts.len())));
        }
        Ok(Self { texts, kinds })
    }

    /// Id, text and kind of every token.
    fn iter(&self) -> impl Iterator<Item = (usize, &'a str, i32)> {
        let (texts, kinds) = (self.texts, self.kinds);
        texts.iter().enumerate().map(|(id, text)| (id, text.as_str(), kinds.get(id).copied().unwrap_or(NORMAL)))
    }
}

fn build(metadata: &Metadata, rule: &Rule, tokens: &Tokens<'_>) -> Result<Vec<u8>, ConvertError> {
    const MERGES: &str = "tokenizer.ggml.merges";
    let (mut vocab, mut recognised) = (Map::new(), Vec::new());
    for (id, token, kind) in tokens.iter().filter(|token| token.2 != UNUSED) {
        if let Some(other) = vocab.insert(token.into(), json!(id)) {
            return Err(metadata.error(format!("tokens {other} and {id} are both {:?}", shown(token))));
        }
        if kind != NORMAL && !token.is_empty() {
            recognised.push(json!({
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
        "added_tokens": recognised,
        "normalizer": nfc.then(|| json!({ "type": "NFC" })),
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": splitters(split, space) },
        "post_processor": around(metadata, tokens.texts, ignore_merges, false)?,
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

/// A post-processor that puts the tokens around a text that the file asks for; `begin` and `end` are so unless it says otherwise.
fn around(metadata: &Metadata, tokens: &[String], begin: bool, end: bool) -> Result<Value, ConvertError> {
    let begin = metadata.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(begin);
    let end = metadata.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(end);
    let named = |wanted: bool, name: &str| -> Result<Option<(usize, &str)>, ConvertError> {
        let key = format!("tokenizer.ggml.{name}");
        let Some(id) = metadata.count(&key)?.filter(|_| wanted) else { return Ok(None) };
        let id = usize::try_from(id).unwrap_or(usize::MAX);
        match tokens.get(id) {
            Some(token) => Ok(Some((id, token.as_str()))),
            None => Err(metadata.refuse(&key, format!("an id below {}, the number of tokens", tokens.len()))),
        }
    };
    let (begin, end) = (named(begin, "bos_token_id")?, named(end, "eos_token_id")?);
    Ok(template(begin, end))
}

/// A post-processor that puts these tokens before and behind a text.
fn template(begin: Option<(usize, &str)>, end: Option<(usize, &str)>) -> Value {
    if begin.is_none() && end.is_none() {
        return Value::Null;
    }
    let token = |(_, token): (usize, &str)| json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let single: Vec<_> = begin.map(token).into_iter().chain([text.clone()]).chain(end.map(token)).collect();
    let specials: Map<_, _> = [begin, end]
        .into_iter()
        .flatten()
        .map(|(id, token)| (token.to_string(), json!({ "id": token, "ids": [id], "tokens": [token] })))
        .collect();
    let pair = json!([text, { "Sequence": { "id": "B", "type_id": 1 } }]);
    json!({ "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": specials })
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
