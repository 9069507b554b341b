//! What most families share: the sizes, the heads, the activation. [`start`] reads them and says otherwise
//! what the first decoders did; a family changes what it does differently.

use crate::config::Config;
use crate::error::ConvertError;
use tidbit_runtime::spec::{
    Activation, Attention, Embedding, Head, Logits, Mlp, Norm, NormKind, Pooling, Position, Residual, Scales, Spec,
};

/// Under which names a family's config has what all families have. A size without a default must be stated.
pub(super) struct Fields {
    /// `vocab_size` by default.
    pub(super) vocab: Option<usize>,
    pub(super) width: &'static [&'static str],
    pub(super) n_heads: (&'static [&'static str], Option<usize>),
    pub(super) heads: Heads,
    pub(super) n_layers: &'static [&'static str],
    /// And its default.
    pub(super) context: (&'static [&'static str], usize),
    pub(super) ffn: Ffn,
    /// And its default; always the default where there is no field.
    pub(super) eps: (&'static [&'static str], f64),
    /// And its default; always the default where there is no field.
    pub(super) activation: (Option<&'static str>, &'static str),
    /// `tie_word_embeddings` by default.
    pub(super) tied: bool,
    /// `eos_token_id` by default.
    pub(super) eos: Option<u32>,
}

/// Key and value heads, and the width of a head.
pub(super) enum Heads {
    /// As many as query heads, of the width divided by their number; fields may say the same.
    Plain,
    /// The width of plain ones; the family reads how many.
    Divided,
    /// As many as query heads, of a width in this field, or of this one.
    OfWidth(&'static str, usize),
    /// `num_key_value_heads` and `head_dim`. The defaults are those of an absent field, null stands for plain heads.
    Grouped { kv: Option<usize>, dim: Option<usize> },
}

/// Inner width of the feed-forward network.
pub(super) enum Ffn {
    /// It must be stated.
    Stated(&'static str),
    /// So much by default.
    Or(&'static str, usize),
    /// 4 times the model's by default.
    FourTimes(&'static str),
}

/// The names of most families.
pub(super) const HUB: Fields = Fields {
    vocab: None,
    width: &["hidden_size"],
    n_heads: (&["num_attention_heads"], None),
    heads: Heads::Plain,
    n_layers: &["num_hidden_layers"],
    context: (&["max_position_embeddings"], 2048),
    ffn: Ffn::Stated("intermediate_size"),
    eps: (&["layer_norm_eps"], 1e-5),
    activation: (Some("hidden_act"), "gelu"),
    tied: false,
    eos: None,
};

/// More layers than any model has: keeps a hostile config from asking for absurd memory.
pub(super) const MAX_LAYERS: usize = 1 << 14;

/// A spec with what `fields` name. Without a position; `LayerNorm` with gain and bias before attention and before a plain
/// feed-forward network, one after the other; biases everywhere but in the head.
pub(super) fn start(config: &Config, fields: &Fields) -> Result<Spec, ConvertError> {
    let or = |names: &[&str], default: Option<usize>| match config.size(names)? {
        Some(size) => Ok(size),
        None => default.map_or_else(|| config.required_size(names), Ok),
    };
    let d_model = config.required_size(fields.width)?;
    let n_heads = or(fields.n_heads.0, fields.n_heads.1)?;
    let n_layers = config.required_size(fields.n_layers)?;
    if n_layers > MAX_LAYERS {
        return Err(config.error(format!("{n_layers} layers, expected at most {MAX_LAYERS}")));
    }
    let vocab_size = or(&["vocab_size"], fields.vocab)?;
    let (n_kv_heads, head_dim) = heads(config, fields, d_model, n_heads)?;
    let ffn_dim = match fields.ffn {
        Ffn::Stated(name) => config.required_size(&[name])?,
        Ffn::Or(name, default) => config.size(&[name])?.unwrap_or(default),
        Ffn::FourTimes(name) => config.size(&[name])?.unwrap_or(4 * d_model),
    };
    Ok(Spec {
        family: String::new(),
        vocab_size,
        n_layers,
        d_model,
        context_length: config.size(fields.context.0)?.unwrap_or(fields.context.1),
        embedding: Embedding::default(),
        position: Position::None,
        norm: Norm::new(NormKind::LayerNorm, config.positive(fields.eps.0)?.unwrap_or(fields.eps.1) as f32),
        attention: Attention { qkv_bias: true, out_bias: true, ..Attention::new(n_heads, n_kv_heads, head_dim) },
        mlp: Mlp {
            ffn_dim,
            activation: activation(config, fields.activation.0, fields.activation.1)?,
            bias: true,
            gated: false,
            experts: None,
        },
        residual: Residual::Sequential,
        scales: Scales::default(),
        final_norm: true,
        head: if config.bool("tie_word_embeddings", fields.tied)? { Head::Tied } else { Head::Untied },
        logits: Logits::default(),
        pooling: Pooling::default(),
        eos_ids: config.token_ids("eos_token_id", fields.eos, vocab_size)?,
        encoder: None,
    })
}

/// Key and value heads, and the width of a head.
fn heads(config: &Config, fields: &Fields, d_model: usize, n_heads: usize) -> Result<(usize, usize), ConvertError> {
    const DIM: &str = "head_dim";
    const KV: &str = "num_key_value_heads";
    let [width, count] = [fields.width, fields.n_heads.0].map(|names| {
        let stated = names.iter().find(|name| config.has(name)).or(names.first());
        stated.copied().unwrap_or_default()
    });
    let divided = || {
        if d_model.is_multiple_of(n_heads) {
            return Ok(d_model / n_heads);
        }
        Err(config.error(format!("`{width}` {d_model} is not a multiple of `{count}` {n_heads}")))
    };
    match fields.heads {
        Heads::Plain => {
            let dim = divided()?;
            // These families have no such fields; a value that says the same is harmless.
            config.expect_size(&[KV, "n_kv_heads", "num_kv_heads"], n_heads, "as many as query heads")?;
            config.expect_size(&[DIM], dim, "width divided by heads")?;
            Ok((n_heads, dim))
        }
        Heads::OfWidth(name, default) => {
            config.expect_size(&[KV], n_heads, "as many as query heads")?;
            Ok((n_heads, config.size(&[name])?.unwrap_or(default)))
        }
        Heads::Divided => {
            let dim = divided()?;
            config.expect_size(&[DIM], dim, "width divided by heads")?;
            Ok((n_heads, dim))
        }
        Heads::Grouped { kv, dim } => {
            let read = |name: &str, default: Option<usize>| -> Result<_, ConvertError> {
                Ok(config.size(&[name])?.or(default.filter(|_| !config.has(name))))
            };
            let n_kv_heads = read(KV, kv)?.unwrap_or(n_heads);
            if !n_heads.is_multiple_of(n_kv_heads) {
                let default = if config.has(KV) { "" } else { " (by default)" };
                let reason = format!("`{count}` {n_heads} is not a multiple of `{KV}` {n_kv_heads}{default}");
                return Err(config.error(reason));
            }
            Ok((n_kv_heads, read(DIM, dim)?.map_or_else(divided, Ok)?))
        }
    }
}

/// Reads an activation's name.
pub(super) fn activation(config: &Config, field: Option<&str>, default: &str) -> Result<Activation, ConvertError> {
    let name = field.map_or(Ok(None), |field| config.text(field))?;
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
            return Err(config.refuse(field.unwrap_or_default(), expected));
        }
    })
}
