//! Families of checkpoints: what a `config.json` means, and which tensor is which.
//!
//! A family is one file: a function from config to [`Spec`], and one [`Rule`] per tensor. Adding one
//! made of existing parts is that file and a line in [`FAMILIES`].

mod gpt2;
mod neox;

use crate::config::{Config, Leftover};
use crate::error::{ConvertError, shown};
use tidbit_runtime::spec::{Activation, Spec};

/// Every family that is understood.
static FAMILIES: [&Family; 2] = [&gpt2::FAMILY, &neox::FAMILY];

/// More layers than any model has: keeps a hostile config from asking for absurd memory.
const MAX_LAYERS: usize = 1 << 14;

/// One family of checkpoints.
#[derive(Debug)]
pub(crate) struct Family {
    /// `model_type` in the config.
    pub(crate) model_type: &'static str,
    /// `architectures` in the config.
    pub(crate) architectures: &'static [&'static str],
    /// In front of tensor names in checkpoints with a head; optional.
    pub(crate) prefix: &'static str,
    /// Reads the config.
    spec: fn(&Config) -> Result<Spec, ConvertError>,
    /// One per tensor.
    pub(crate) rules: &'static [Rule],
    /// Tensors that hold no weights (masks, frequencies); `{}` stands for a layer's number.
    pub(crate) buffers: &'static [&'static str],
}

/// Where one of our tensors comes from. `{}` stands for a layer's number.
#[derive(Debug)]
pub(crate) struct Rule {
    /// Its name in the model file.
    pub(crate) ours: &'static str,
    /// Its names in checkpoints.
    pub(crate) theirs: &'static [&'static str],
    /// How its rows lie there.
    pub(crate) order: Order,
}

/// How the rows of a source tensor lie, compared with ours `[out, in]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// The same way.
    Same,
    /// `[in, out]` (GPT-2's `Conv1D`).
    Transposed,
    /// Query, key and value rows of each head together: `[head, 3, head_dim]`, ours is
    /// `[3, head, head_dim]`.
    FusedPerHead,
}

const fn rule(ours: &'static str, theirs: &'static [&'static str], order: Order) -> Rule {
    Rule { ours, theirs, order }
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
}

/// Reads a config: its family, its spec, and the fields that were not needed.
pub(crate) fn read_config(file: &str, json: &[u8]) -> Result<Described, ConvertError> {
    let config = Config::parse(file, json)?;
    let family = find(&config)?;
    let spec = (family.spec)(&config)?;
    if spec.n_layers > MAX_LAYERS {
        return Err(config.error(format!("{} layers, expected at most {MAX_LAYERS}", spec.n_layers)));
    }
    spec.validate().map_err(|e| config.error(e))?;
    let left = config.finish()?;
    Ok(Described { family, spec, left })
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

/// Reads an activation's name.
fn activation(config: &Config, field: &str, default: &str) -> Result<Activation, ConvertError> {
    let name = config.text(field)?;
    Ok(match name.as_deref().unwrap_or(default) {
        "gelu" | "gelu_python" => Activation::GeluErf,
        "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" | "gelu_accurate" | "gelu_python_tanh" => Activation::GeluTanh,
        "quick_gelu" => Activation::GeluQuick,
        "relu" => Activation::Relu,
        "relu2" => Activation::ReluSquared,
        "silu" | "swish" => Activation::Silu,
        "tanh" => Activation::Tanh,
        _ => {
            let expected = "one of: gelu, gelu_python, gelu_new, gelu_fast, gelu_pytorch_tanh, gelu_accurate, \
                            gelu_python_tanh, quick_gelu, relu, relu2, silu, swish, tanh";
            return Err(config.refuse(field, expected));
        }
    })
}

/// Width of a head; `fields` name the width of the model and the number of heads in messages.
fn head_dim(config: &Config, width: usize, heads: usize, fields: [&str; 2]) -> Result<usize, ConvertError> {
    if !width.is_multiple_of(heads) {
        return Err(config.error(format!("`{}` {width} is not a multiple of `{}` {heads}", fields[0], fields[1])));
    }
    let head_dim = width / heads;
    // Families of plain multi-head attention have no such fields; a value that says the same is harmless.
    config.expect_size(&["num_key_value_heads", "n_kv_heads", "num_kv_heads"], heads, "as many as query heads")?;
    config.expect_size(&["head_dim"], head_dim, "width divided by heads")?;
    Ok(head_dim)
}

/// The layer's number in `name`, when it is `pattern` with a number for `{}`; empty when the pattern has
/// none.
pub(crate) fn layer_of<'a>(pattern: &str, name: &'a str) -> Option<&'a str> {
    let Some((before, after)) = pattern.split_once("{}") else { return (pattern == name).then_some("") };
    let number = name.strip_prefix(before)?.strip_suffix(after)?;
    (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())).then_some(number)
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
    fn unsupported_architectures_name_the_supported_ones() {
        for (json, expected) in [
            (r#"{"model_type": "llama"}"#, "`model_type` is \"llama\", expected one of: gpt2, gpt_neox"),
            (
                r#"{"model_type": "opt", "architectures": ["OPTForCausalLM"]}"#,
                "architecture OPTForCausalLM (`model_type` opt) is not supported, expected one of: gpt2, gpt_neox",
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
