//! A model described by a file: for those who trained their own. A YAML of some lines says what a
//! [`Spec`] needs, in the field's words, and tensors have the names of the model file.
//!
//! | module | what lives there |
//! |---|---|
//! | `yaml` | the file as a table, nothing hostile left |
//! | `kinds` | the names of every kind: one line each |
//! | `keys` | every key, its default and where it belongs |
//!
//! Deserializing into [`Spec`] itself would need no code, but every default, and names that only Tidbit has. A table is read
//! as `config.json` is instead: the same checks, the same messages, and it takes no other path from there on. Unlike there, a
//! key that nobody reads is an error.

mod keys;
mod kinds;
#[cfg(test)]
mod tests;
mod yaml;

use super::base::MAX_LAYERS;
use super::{Described, Family, Order, Rule, rule, same};
use crate::checkpoint::Weights;
use crate::config::{Config, Leftover};
use crate::error::ConvertError;
use kinds::{Network, Sees, kind, names, required};
use tidbit_runtime::spec::{
    Attention, Embedding, Encoder, Experts, FeatureMap, Head, Logits, Mlp, Norm, NormKind, Place, Pooling, Position,
    QkNorm, Residual, Rotary, Scales, Sparse, SparsePattern, Spec, Trained, Window,
};

/// The names of the model file, as modules of torch would have them, too.
static FUSED: Family =
    Family { model_type: NAME, architectures: &[], prefixes: PREFIXES, spec, rules: &[RULES], unread: &[] };

/// The same, but queries, keys and values are three matrices.
static SPLIT: Family = Family { rules: &[QUERY_KEY_VALUE, RULES], ..FUSED };

/// Stands for a family that has none.
const NAME: &str = "custom";

/// `torch.compile` and `DistributedDataParallel` leave theirs.
const PREFIXES: &[&str] = &["", "model.", "_orig_mod.", "module."];

const RULES: &[Rule] = &[
    // Tables are modules with a `weight` in PyTorch.
    same("embed.tokens", &["embed.tokens.weight", "embed.tokens"]),
    same("embed.positions", &["embed.positions.weight", "embed.positions"]),
    same("encoder.embed.positions", &["encoder.embed.positions.weight", "encoder.embed.positions"]),
    same("*", &["*"]),
];

const QUERY_KEY_VALUE: &[Rule] = &[
    rule(
        "layers.{}.attn.qkv.*",
        &["layers.{}.attn.q.*", "layers.{}.attn.k.*", "layers.{}.attn.v.*"],
        Order::QueryKeyValue,
    ),
    rule(
        "encoder.layers.{}.attn.qkv.*",
        &["encoder.layers.{}.attn.q.*", "encoder.layers.{}.attn.k.*", "encoder.layers.{}.attn.v.*"],
        Order::QueryKeyValue,
    ),
    rule("layers.{}.cross.kv.*", &["layers.{}.cross.k.*", "layers.{}.cross.v.*"], Order::KeyValue),
];

/// What says so, for messages.
pub(crate) const SAID_BY: &str = "--spec";

/// Experts of all layers together, at most: keeps a hostile file from asking for absurd memory.
const MAX_EXPERTS: usize = 1 << 17;

/// The sizes that parts depend on.
struct Sizes {
    n_layers: usize,
    d_model: usize,
    head_dim: usize,
    context_length: usize,
}

/// Reads a spec file; `file` stands for it in messages.
pub(crate) fn read(file: &str, yaml: &[u8]) -> Result<Described, ConvertError> {
    let config = Config::of(file, yaml::read(file, yaml)?);
    keys::refuse_unknown(&config)?;
    let spec = spec(&config)?;
    spec.validate().map_err(|e| config.error(e))?;
    Ok(Described { family: &FUSED, spec, left: Leftover::default(), said_by: SAID_BY })
}

/// The family whose rules fit the names that the weights have.
pub(crate) fn family_of(weights: &Weights) -> &'static Family {
    let split = weights.tensors.keys().any(|name| name.ends_with(".attn.q.weight"));
    if split { &SPLIT } else { &FUSED }
}

fn spec(config: &Config) -> Result<Spec, ConvertError> {
    let sizes = sizes(config)?;
    let n_heads = config.required_size(&["n_heads"])?;
    let vocab_size = config.required_size(&["vocab_size"])?;
    let bias = config.bool("bias", false)?;
    let norm = norm(config)?;
    let position = required(config, "pos_type", kinds::POSITIONS)?(config, &sizes)?;
    let sees = kind(config, "attention_type", kinds::ATTENTIONS)?.unwrap_or(Sees::Before);
    // Sums have no scores to be scaled.
    let scale = if sees == Sees::Sums { 1.0 } else { 1.0 / (sizes.head_dim as f32).sqrt() };
    let attention = Attention {
        causal: sees != Sees::All,
        scale: number(config, "attention_scale")?.unwrap_or(scale),
        scale_by_inverse_layer: config.bool("attention_scale_by_inverse_layer", false)?,
        qkv_bias: config.bool("qkv_bias", bias)?,
        out_bias: config.bool("attn_out_bias", bias)?,
        qk_norm: qk_norm(config, &norm)?,
        clip: number(config, "qkv_clip")?,
        softcap: number(config, "attention_softcap")?,
        window: window(config, sees, &position, &sizes)?,
        sparse: if sees == Sees::Blocks { Some(sparse(config, &sizes)?) } else { None },
        sinks: config.bool("attention_sinks", false)?,
        feature_map: (sees == Sees::Sums).then_some(FeatureMap::EluPlusOne),
        ..Attention::new(n_heads, config.size(&["n_kv_heads"])?.unwrap_or(n_heads), sizes.head_dim)
    };
    let mlp = mlp(config, bias, &sizes)?;
    let residual = kind(config, "residual_type", kinds::RESIDUALS)?.unwrap_or(Residual::Sequential);
    let head =
        kind(config, "head_type", kinds::HEADS)?.unwrap_or(if attention.causal { Head::Tied } else { Head::None });
    let logits = if head == Head::None {
        Logits::default()
    } else {
        Logits {
            bias: config.bool("head_bias", false)?,
            scale: number(config, "logit_scale")?.unwrap_or(1.0),
            softcap: number(config, "logit_softcap")?,
        }
    };
    let spec = Spec {
        family: config.text("name")?.unwrap_or_else(|| NAME.into()),
        vocab_size,
        n_layers: sizes.n_layers,
        d_model: sizes.d_model,
        context_length: sizes.context_length,
        embedding: Embedding {
            dim: config.size(&["embedding_dim"])?.filter(|&dim| dim != sizes.d_model),
            scale: number(config, "embedding_scale")?.unwrap_or(1.0),
            norm: config.bool("embedding_norm", false)?,
        },
        position,
        final_norm: config.bool("final_norm", norm.place != Place::After)?,
        norm,
        attention,
        mlp,
        residual,
        scales: Scales {
            stream: number(config, "residual_scale")?.unwrap_or(1.0),
            branch: number(config, "branch_scale")?.unwrap_or(1.0),
        },
        head,
        logits,
        pooling: Pooling {
            kind: kind(config, "pooling", kinds::POOLINGS)?.unwrap_or_default(),
            normalize: config.bool("pooling_normalize", false)?,
            max_tokens: config.size(&["pooling_max_tokens"])?,
        },
        eos_ids: config.token_ids("eos_token_id", None, vocab_size)?,
        encoder: encoder(config, vocab_size)?,
    };
    keys::refuse_unread(config)?;
    check(config, &spec)?;
    Ok(spec)
}

fn encoder(config: &Config, vocab_size: usize) -> Result<Option<Encoder>, ConvertError> {
    const START: &str = "decoder_start_token_id";
    let Some(n_layers) = config.size(&["encoder_layers"])? else { return Ok(None) };
    if n_layers > MAX_LAYERS {
        return Err(config.refuse("encoder_layers", format!("at most {MAX_LAYERS}")));
    }
    let start_id = config.count(START)?.unwrap_or(0);
    match u32::try_from(start_id) {
        Ok(id) if start_id < vocab_size => Ok(Some(Encoder { n_layers, start_id: id })),
        _ => Err(config.refuse(START, format!("less than `vocab_size`, which is {vocab_size}"))),
    }
}

fn sizes(config: &Config) -> Result<Sizes, ConvertError> {
    let n_layers = config.required_size(&["n_layers"])?;
    if n_layers > MAX_LAYERS {
        return Err(config.refuse("n_layers", format!("at most {MAX_LAYERS}")));
    }
    let (d_model, n_heads) = (config.required_size(&["d_model"])?, config.required_size(&["n_heads"])?);
    let head_dim = match config.size(&["head_dim"])? {
        Some(head_dim) => head_dim,
        None if d_model.is_multiple_of(n_heads) => d_model / n_heads,
        None => {
            return Err(
                config.refuse("d_model", format!("a multiple of `n_heads`, which is {n_heads}, or a `head_dim`"))
            );
        }
    };
    let context_length = config.required_size(&["context_length"])?;
    Ok(Sizes { n_layers, d_model, head_dim, context_length })
}

/// What contradicts itself, in the words of the file; [`Spec::validate`] would say it in its own.
fn check(config: &Config, spec: &Spec) -> Result<(), ConvertError> {
    let refuse =
        |wrong: bool, key: &str, expected: &str| if wrong { Err(config.refuse(key, expected)) } else { Ok(()) };
    let (pre, sequential) = (spec.norm.place == Place::Before, spec.residual == Residual::Sequential);
    let encoder = !spec.attention.causal;
    refuse(!pre && !sequential, "norm_placement", "pre, because `residual_type` is not sequential")?;
    let moe = spec.mlp.experts.is_some();
    refuse(moe && !pre, "norm_placement", "pre, because `ffn_type` is moe")?;
    refuse(moe && !sequential, "residual_type", "sequential, because `ffn_type` is moe")?;
    refuse(encoder && spec.head != Head::None, "head_type", "none, because `attention_type` is bidirectional")?;
    let alibi = matches!(spec.position, Position::Alibi(_));
    refuse(encoder && alibi, "pos_type", "another one than alibi, because `attention_type` is bidirectional")?;
    let outside = spec.eos_ids.iter().any(|&id| id as usize >= spec.vocab_size);
    refuse(outside, "eos_token_id", &format!("less than `vocab_size`, which is {}", spec.vocab_size))?;
    let most = spec.context_length;
    let long = spec.pooling.max_tokens.is_some_and(|n| n > most);
    refuse(long, "pooling_max_tokens", &format!("at most `context_length`, which is {most}"))
}

fn norm(config: &Config) -> Result<Norm, ConvertError> {
    let norm_kind = required(config, "norm_type", kinds::NORMS)?;
    Ok(Norm {
        kind: norm_kind,
        eps: number(config, "norm_eps")?.unwrap_or(1e-5),
        trained: trained(config, norm_kind, ["norm_gain", "norm_bias"])?,
        place: kind(config, "norm_placement", kinds::PLACES)?.unwrap_or_default(),
    })
}

/// What is trained of a norm, from whether it has a gain and a bias.
fn trained(config: &Config, norm: NormKind, [gain, bias]: [&str; 2]) -> Result<Trained, ConvertError> {
    let has_gain = config.bool(gain, true)?;
    match (has_gain, config.bool(bias, has_gain && norm == NormKind::LayerNorm)?) {
        (true, true) => Ok(Trained::GainAndBias),
        (true, false) => Ok(Trained::Gain),
        (false, false) => Ok(Trained::Nothing),
        (false, true) => Err(config.refuse(bias, format!("false, because `{gain}` is false"))),
    }
}

fn qk_norm(config: &Config, norm: &Norm) -> Result<Option<QkNorm>, ConvertError> {
    let Some(over) = kind(config, "qk_norm", kinds::QK_NORMS)?.flatten() else { return Ok(None) };
    let norm_kind = match kind(config, "qk_norm_type", kinds::HEAD_NORMS)? {
        Some(kind) => kind,
        None if kinds::HEAD_NORMS.iter().any(|(_, kind)| *kind == norm.kind) => norm.kind,
        None => {
            let expected =
                format!("one of: {}, because `norm_type` is none of them", names(kinds::HEAD_NORMS).join(", "));
            return Err(config.refuse("qk_norm_type", expected));
        }
    };
    let eps = number(config, "qk_norm_eps")?.unwrap_or(norm.eps);
    Ok(Some(QkNorm {
        kind: norm_kind,
        eps,
        trained: trained(config, norm_kind, ["qk_norm_gain", "qk_norm_bias"])?,
        over,
    }))
}

/// Rotary positions; those of layers with a window where `outside` has the others'.
fn rotary(config: &Config, sizes: &Sizes, outside: Option<&Rotary>) -> Result<Rotary, ConvertError> {
    let prefix = if outside.is_some() { "window_" } else { "" };
    let key = |name: &str| format!("{prefix}{name}");
    let [dims_key, exponent_key, scaling_key] = ["rope_dims", "rope_exponent", "rope_scaling"].map(key);
    let dims = config.size(&[&dims_key])?.unwrap_or_else(|| outside.map_or(sizes.head_dim, |r| r.dims));
    if !dims.is_multiple_of(2) || dims > sizes.head_dim {
        let expected = format!("an even number up to `head_dim`, which is {}", sizes.head_dim);
        // Without a key of its own it is the width of a head that is odd.
        let odd = if config.has(&dims_key) { &dims_key } else { "head_dim" };
        return Err(config.refuse(odd, expected));
    }
    let exponent = match config.size(&[&exponent_key])? {
        Some(exponent) if exponent > dims => {
            return Err(config.refuse(&exponent_key, format!("at most `{dims_key}`, which is {dims}")));
        }
        Some(exponent) => Some(exponent).filter(|&exponent| exponent != dims),
        // Its divisor goes with its number of dimensions.
        None => outside.filter(|r| r.dims == dims).and_then(|r| r.exponent),
    };
    let scaling = match config.object(&scaling_key)? {
        Some(scaling) => super::rotary::scaling_of(config, &scaling, sizes.context_length)?,
        None => None,
    };
    Ok(Rotary {
        dims,
        theta: number(config, &key("rope_theta"))?.unwrap_or_else(|| outside.map_or(10_000.0, |r| r.theta)),
        exponent,
        pairs: kind(config, &key("rope_pairs"), kinds::PAIRS)?
            .unwrap_or_else(|| outside.map_or_else(Default::default, |r| r.pairs)),
        scaling,
    })
}

fn window(config: &Config, sees: Sees, position: &Position, sizes: &Sizes) -> Result<Option<Window>, ConvertError> {
    let layers = match sees {
        Sees::Before | Sees::Blocks | Sees::Sums | Sees::All => return Ok(None),
        Sees::Window => None,
        Sees::WindowInSomeLayers if config.has("window_layers") => {
            Some(layers(config, "window_layers", sizes.n_layers)?)
        }
        Sees::WindowInSomeLayers => Some((0..sizes.n_layers).step_by(2).collect()),
    };
    let differs = config.names().any(|name| name.starts_with("window_rope_"));
    let rotary = match position {
        Position::Rotary(outside) if differs => Some(rotary(config, sizes, Some(outside))?),
        _ => None,
    };
    Ok(Some(Window { size: config.required_size(&["window"])?, layers, rotary }))
}

fn sparse(config: &Config, sizes: &Sizes) -> Result<Sparse, ConvertError> {
    let some = config.has("sparse_layers");
    Ok(Sparse {
        block: config.required_size(&["sparse_block"])?,
        local: config.size(&["sparse_local"])?.unwrap_or(1),
        stride: config.required_size(&["sparse_stride"])?,
        pattern: kind(config, "sparse_pattern", kinds::PATTERNS)?.unwrap_or(SparsePattern::Strided),
        layers: if some { Some(layers(config, "sparse_layers", sizes.n_layers)?) } else { None },
    })
}

/// A list of layers, in order and each once.
fn layers(config: &Config, key: &str, n_layers: usize) -> Result<Vec<usize>, ConvertError> {
    let mut layers = config.counts(key)?;
    layers.sort_unstable();
    layers.dedup();
    match layers.last() {
        Some(&last) if last < n_layers => Ok(layers),
        Some(_) => Err(config.refuse(key, format!("numbers less than `n_layers`, which is {n_layers}"))),
        None => Err(config.refuse(key, "at least one layer")),
    }
}

fn mlp(config: &Config, bias: bool, sizes: &Sizes) -> Result<Mlp, ConvertError> {
    let network = kind(config, "ffn_type", kinds::NETWORKS)?.unwrap_or(Network::Plain);
    let moe = network == Network::Experts;
    let expert_dim = if moe { config.size(&["expert_dim"])? } else { None };
    let ffn_dim = config.size(&["ffn_dim"])?.or(expert_dim).unwrap_or(4 * sizes.d_model);
    let gated = match network {
        Network::Plain => false,
        Network::Gated => true,
        Network::Experts => kind(config, "expert_type", kinds::EXPERTS)?.unwrap_or(true),
    };
    Ok(Mlp {
        ffn_dim,
        activation: required(config, "activation", kinds::ACTIVATIONS)?,
        bias: config.bool("ffn_bias", bias)?,
        gated,
        experts: if moe { Some(experts(config, expert_dim.unwrap_or(ffn_dim), sizes)?) } else { None },
    })
}

fn experts(config: &Config, ffn_dim: usize, sizes: &Sizes) -> Result<Experts, ConvertError> {
    let (count, used) = (config.required_size(&["n_experts"])?, config.required_size(&["experts_per_token"])?);
    if count > MAX_EXPERTS / sizes.n_layers {
        let most = MAX_EXPERTS / sizes.n_layers;
        return Err(config.refuse("n_experts", format!("at most {most} in each of {} layers", sizes.n_layers)));
    }
    if used > count {
        return Err(config.refuse("experts_per_token", format!("at most `n_experts`, which is {count}")));
    }
    Ok(Experts {
        count,
        used,
        ffn_dim,
        renormalized: config.bool("norm_topk_prob", true)?,
        shared_dim: config.size(&["shared_expert_dim"])?,
        layers: if config.has("moe_layers") { Some(layers(config, "moe_layers", sizes.n_layers)?) } else { None },
    })
}

fn number(config: &Config, key: &str) -> Result<Option<f32>, ConvertError> {
    Ok(config.positive(&[key])?.map(|value| value as f32))
}
