//! Families of checkpoints: what a `config.json` means, and which tensor is which.
//!
//! A family is one file: a function from config to [`Spec`], and one [`Rule`] per tensor. Adding one
//! made of existing parts is that file and a line in [`FAMILIES`]. What several families share is
//! in `base` (sizes, heads, norms), `rotary` and `window`; `llama` has the rules of those like it.

mod base;
mod bert;
mod bloom;
mod falcon;
mod gemma;
mod gemma2;
mod gemma3;
pub(crate) mod gguf;
mod gpt2;
mod gpt_neo;
mod gptj;
mod llama;
mod mistral;
mod mixtral;
mod mpt;
mod neox;
mod olmo;
mod olmo2;
mod opt;
mod phi;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;
mod roberta;
mod rotary;
pub(crate) mod spec_file;
mod stablelm;
mod t5;
mod window;

use crate::checkpoint::{is_spec_file, read_small};
use crate::config::{Config, Leftover};
use crate::error::{ConvertError, shown};
use std::path::Path;
use tidbit_runtime::spec::Spec;

/// Every family that is understood.
static FAMILIES: &[&Family] = &[
    &gpt2::FAMILY,
    &neox::FAMILY,
    &gpt_neo::FAMILY,
    &gptj::FAMILY,
    &opt::FAMILY,
    &bloom::FAMILY,
    &mpt::FAMILY,
    &falcon::FAMILY,
    &phi::FAMILY,
    &llama::FAMILY,
    &mistral::FAMILY,
    &mixtral::FAMILY,
    &qwen2::FAMILY,
    &qwen2_moe::FAMILY,
    &qwen3::FAMILY,
    &qwen3_moe::FAMILY,
    &gemma::FAMILY,
    &gemma2::FAMILY,
    &gemma3::TEXT,
    &gemma3::TEXT_AND_IMAGE,
    &olmo::FAMILY,
    &olmo2::FAMILY,
    &stablelm::FAMILY,
    &bert::FAMILY,
    &roberta::FAMILY,
    &t5::T5,
    &t5::MT5,
];

/// One family of checkpoints.
#[derive(Debug)]
pub(crate) struct Family {
    /// `model_type` in the config.
    pub(crate) model_type: &'static str,
    /// `architectures` in the config.
    pub(crate) architectures: &'static [&'static str],
    /// In front of tensor names in checkpoints with a head, most common first; optional.
    pub(crate) prefixes: &'static [&'static str],
    /// Reads the config.
    spec: fn(&Config) -> Result<Spec, ConvertError>,
    /// Where tensors come from; the first rule that fits counts.
    pub(crate) rules: &'static [&'static [Rule]],
    /// Tensors that are not read: without weights (masks, frequencies), or of another part of the model.
    /// `{}` stands for a layer's number; one that ends with a dot stands for all that begin so.
    pub(crate) unread: &'static [&'static str],
}

/// Where one of our tensors comes from. `{}` stands for a layer's number, `{e}` for an expert's, `*` at the end for `weight` or
/// `bias`; `*` alone for any name.
#[derive(Debug)]
pub(crate) struct Rule {
    /// Its name in the model file.
    pub(crate) ours: &'static str,
    /// Its names in checkpoints: one of them, or where the order says so all.
    pub(crate) theirs: &'static [&'static str],
    /// How its rows lie there.
    pub(crate) order: Order,
}

/// How the rows of source tensors lie, compared with ours `[out, in]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// The same way.
    Same,
    /// `[in, out]` (GPT-2's `Conv1D`).
    Transposed,
    /// Queries, key and value of each key head together: `[n_kv_heads, n_heads / n_kv_heads + 2, head_dim]`.
    /// Ours has all queries, then all keys, then all values.
    Grouped,
    /// Three tensors: queries, keys, values.
    QueryKeyValue,
    /// Two tensors: keys, values.
    KeyValue,
    /// Those of queries, keys and values, where the two dimensions of a head that turn together are neighbours in queries and keys. Ours are half
    /// a head apart.
    PairsKeyValue,
    /// A tensor for each head, whose number stands for `{h}`.
    ByHead,
    /// So many rows come first that are not used.
    After(usize),
    /// The same, and the first row of a second tensor is added to each: that of the only kind of token there is.
    AfterAndKind(usize),
    /// A gain from which 1 was subtracted.
    LessOne,
}

/// One of the names, the same order.
const fn same(ours: &'static str, theirs: &'static [&'static str]) -> Rule {
    rule(ours, theirs, Order::Same)
}

const fn rule(ours: &'static str, theirs: &'static [&'static str], order: Order) -> Rule {
    Rule { ours, theirs, order }
}

impl Rule {
    /// The names in checkpoints of our tensor `ours`, without the prefix, if this rule is about it.
    pub(crate) fn names(&self, ours: &str) -> Option<Vec<String>> {
        if self.ours == "*" {
            return Some(vec![ours.into()]);
        }
        let (pattern, kind) = match self.ours.strip_suffix('*') {
            Some(pattern) => {
                let kind = ["weight", "bias"].into_iter().find(|kind| ours.ends_with(kind))?;
                (pattern, kind)
            }
            None => (self.ours, ""),
        };
        let [layer, expert] = numbers_of(pattern, ours.strip_suffix(kind)?)?;
        let name = |theirs: &&str| {
            let stem = theirs.strip_suffix('*').map_or_else(|| (*theirs).to_string(), |stem| format!("{stem}{kind}"));
            stem.replacen("{}", layer, 1).replacen("{e}", expert, 1)
        };
        Some(self.theirs.iter().map(name).collect())
    }
}

impl Family {
    /// Whether a tensor is known and not read.
    pub(crate) fn leaves_out(&self, name: &str) -> bool {
        let bare = self.prefixes.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
        self.unread.iter().any(|pattern| match pattern.strip_suffix('.') {
            Some(_) => name.starts_with(pattern),
            None => layer_of(pattern, bare).is_some(),
        })
    }
}

/// Every family that is understood: its `model_type` and its `architectures`.
pub fn supported_families() -> Vec<(&'static str, &'static [&'static str])> {
    FAMILIES.iter().map(|f| (f.model_type, f.architectures)).collect()
}

/// What a config says.
#[derive(Debug)]
pub(crate) struct Described {
    pub(crate) family: &'static Family,
    pub(crate) spec: Spec,
    pub(crate) left: Leftover,
    /// What says so, for messages.
    pub(crate) said_by: &'static str,
}

impl Described {
    /// Whether it was a file of ours.
    pub(crate) fn by_spec_file(&self) -> bool {
        self.said_by == spec_file::SAID_BY
    }

    /// How it says whether the head is tied.
    pub(crate) fn says_tied(&self, tied: bool) -> &'static str {
        match (self.by_spec_file(), tied) {
            (true, true) => "`head_type` is tied",
            (true, false) => "`head_type` is untied",
            (false, true) => "`tie_word_embeddings` is true",
            (false, false) => "`tie_word_embeddings` is false",
        }
    }
}

/// Reads a file that describes a model: a spec file (`.yaml`, `.yml`), or a config.
pub(crate) fn read_described(path: &Path) -> Result<Described, ConvertError> {
    let (file, bytes) = (path.display().to_string(), read_small(path)?);
    if is_spec_file(path) { spec_file::read(&file, &bytes) } else { read_config(&file, &bytes) }
}

/// Reads a config: its family, its spec, and the fields that were not needed.
pub(crate) fn read_config(file: &str, json: &[u8]) -> Result<Described, ConvertError> {
    read_fields(&Config::parse(file, json)?)
}

/// The same of a config that was parsed, or made.
fn read_fields(config: &Config) -> Result<Described, ConvertError> {
    let family = find(config)?;
    let spec = Spec { family: family.model_type.into(), ..(family.spec)(config)? };
    spec.validate().map_err(|e| config.error(e))?;
    let left = config.finish()?;
    Ok(Described { family, spec, left, said_by: "config.json" })
}

fn find(config: &Config) -> Result<&'static Family, ConvertError> {
    let model_type = config.text("model_type")?;
    let architectures = config.texts("architectures")?;
    let known = |expected: fn(&Family) -> String| FAMILIES.iter().map(|f| expected(f)).collect::<Vec<_>>().join(", ");
    let family = FAMILIES.iter().find(|f| match &model_type {
        Some(name) => f.model_type == name,
        None => architectures.iter().any(|a| f.architectures.contains(&a.as_str())),
    });
    let Some(family) = family else {
        let models = known(|f| f.model_type.into());
        return Err(match (&model_type, architectures.as_slice()) {
            (Some(_), []) => config.refuse("model_type", format!("one of: {models}")),
            (Some(name), [first, ..]) => config.error(format!(
                "architecture {} (`model_type` {}) is not supported, expected one of: {models}",
                shown(first),
                shown(name)
            )),
            (None, []) => config.error(format!("neither `model_type` nor `architectures`, expected one of: {models}")),
            (None, _) => config.refuse("architectures", known(|f| f.architectures.join(", "))),
        });
    };
    if architectures.iter().any(|a| !family.architectures.contains(&a.as_str())) {
        return Err(config.refuse("architectures", format!("one of: {}", family.architectures.join(", "))));
    }
    Ok(family)
}

/// The layer's number in `name`, when it is `pattern` with a number for `{}`; empty when the pattern has
/// none.
pub(crate) fn layer_of<'a>(pattern: &str, name: &'a str) -> Option<&'a str> {
    let Some((before, after)) = pattern.split_once("{}") else { return (pattern == name).then_some("") };
    let number = name.strip_prefix(before)?.strip_suffix(after)?;
    (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())).then_some(number)
}

/// The layer's number, and the expert's that `{e}` stands for; empty where the pattern has none.
fn numbers_of<'a>(pattern: &str, name: &'a str) -> Option<[&'a str; 2]> {
    let Some((before, after)) = pattern.split_once("{e}") else { return Some([layer_of(pattern, name)?, ""]) };
    let rest = name.strip_suffix(after)?;
    let stem = rest.trim_end_matches(|c: char| c.is_ascii_digit());
    let expert = rest.get(stem.len()..).filter(|expert| !expert.is_empty())?;
    Some([layer_of(before, stem)?, expert])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_one_number() {
        assert_eq!(layer_of("h.{}.attn.bias", "h.12.attn.bias"), Some("12"));
        assert_eq!(layer_of("h.{}.attn.bias", "h.x.attn.bias"), None);
        assert_eq!(layer_of("h.{}.attn.bias", "h..attn.bias"), None);
        assert_eq!(layer_of("h.{}.attn.bias", "h.1.attn.c_attn.bias"), None);
        assert_eq!(layer_of("wte.weight", "wte.weight"), Some(""));
    }

    #[test]
    fn rules_name_weights_and_biases() {
        let rule = rule("layers.{}.attn.qkv.*", &["h.{}.q.*", "h.{}.v.*"], Order::QueryKeyValue);
        assert_eq!(rule.names("layers.3.attn.qkv.bias").unwrap(), ["h.3.q.bias", "h.3.v.bias"]);
        assert_eq!(rule.names("layers.3.attn.qkv.weight").unwrap(), ["h.3.q.weight", "h.3.v.weight"]);
        assert!(rule.names("layers.3.attn.out.weight").is_none());
        assert!(rule.names("layers.3.attn.qkv.scale").is_none());
        assert_eq!(same("embed.tokens", &["wte.weight"]).names("embed.tokens").unwrap(), ["wte.weight"]);
    }

    #[test]
    fn unsupported_architectures_name_the_supported_ones() {
        for (json, expected) in [
            (r#"{"model_type": "mamba"}"#, "`model_type` is \"mamba\", expected one of: gpt2, gpt_neox"),
            (
                r#"{"model_type": "xlstm", "architectures": ["XlstmForCausalLM"]}"#,
                "architecture XlstmForCausalLM (`model_type` xlstm) is not supported, expected one of: gpt2, gpt_neox",
            ),
            (r#"{"architectures": ["X"]}"#, "`architectures` is [\"X\"], expected GPT2LMHeadModel"),
            (
                r#"{"model_type": "gpt2", "architectures": ["GPT2ForTokenClassification"]}"#,
                "expected one of: GPT2LMHeadModel",
            ),
            ("{}", "neither `model_type` nor `architectures`"),
            ("[]", "expected a JSON object"),
            ("{", "not valid JSON"),
        ] {
            let message = read_config("config.json", json.as_bytes()).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
