//! The kinds of each part by their names: one line a kind.

use super::{Sizes, rotary};
use crate::config::Config;
use crate::error::ConvertError;
use tidbit_runtime::spec::{
    Activation, Alibi, Head, NormKind, Pairs, Place, PoolingKind, Position, QkNormOver, RelativeBias, Residual,
    Sinusoidal, SparsePattern, TransformerXl,
};

/// Names and what they stand for.
pub(super) type Kinds<T> = &'static [(&'static str, T)];

pub(super) const POSITIONS: Kinds<fn(&Config, &Sizes) -> Result<Position, ConvertError>> = &[
    ("learned", |_, _| Ok(Position::Learned)),
    ("sinusoidal", |config, _| {
        let pairs = kind(config, "sinusoidal_pairs", PAIRS)?.unwrap_or(Pairs::Interleaved);
        let offset = config.count("sinusoidal_offset")?.unwrap_or(0);
        Ok(Position::Sinusoidal(Sinusoidal { pairs, offset }))
    }),
    ("rotary", |config, sizes| Ok(Position::Rotary(rotary(config, sizes, None)?))),
    ("alibi", |config, _| {
        let max_bias = config.positive(&["alibi_max_bias"])?.unwrap_or(8.0) as f32;
        Ok(Position::Alibi(Alibi { max_bias, bf16: config.bool("alibi_bf16", false)? }))
    }),
    ("relative_bias", |config, _| {
        let buckets = config.size(&["relative_buckets"])?.unwrap_or(32);
        let max_distance = config.size(&["relative_max_distance"])?.unwrap_or(128);
        Ok(Position::RelativeBias(RelativeBias { buckets, max_distance }))
    }),
    ("transformer_xl", |config, sizes| {
        let most = (sizes.context_length - 1).max(1);
        let max_distance = config.size(&["relative_max_distance"])?.unwrap_or(most);
        Ok(Position::TransformerXl(TransformerXl { max_distance }))
    }),
    ("none", |_, _| Ok(Position::None)),
];

pub(super) const PAIRS: Kinds<Pairs> = &[("half", Pairs::Halves), ("interleaved", Pairs::Interleaved)];

pub(super) const NORMS: Kinds<NormKind> =
    &[("layernorm", NormKind::LayerNorm), ("rmsnorm", NormKind::RmsNorm), ("scalenorm", NormKind::ScaleNorm)];

/// Those of queries and keys.
pub(super) const HEAD_NORMS: Kinds<NormKind> = &[("layernorm", NormKind::LayerNorm), ("rmsnorm", NormKind::RmsNorm)];

pub(super) const PLACES: Kinds<Place> =
    &[("pre", Place::Before), ("post", Place::After), ("branch", Place::Branch), ("sandwich", Place::Sandwich)];

pub(super) const RESIDUALS: Kinds<Residual> = &[
    ("sequential", Residual::Sequential),
    ("parallel", Residual::Parallel),
    ("parallel_one_norm", Residual::ParallelOneNorm),
    ("from_norm", Residual::FromNorm),
];

/// What a token sees.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sees {
    Before,
    Window,
    WindowInSomeLayers,
    Blocks,
    Sums,
    All,
}

pub(super) const ATTENTIONS: Kinds<Sees> = &[
    ("full", Sees::Before),
    ("window", Sees::Window),
    ("alternating", Sees::WindowInSomeLayers),
    ("sparse", Sees::Blocks),
    ("linear", Sees::Sums),
    ("bidirectional", Sees::All),
];

pub(super) const PATTERNS: Kinds<SparsePattern> =
    &[("strided", SparsePattern::Strided), ("fixed", SparsePattern::Fixed)];

pub(super) const QK_NORMS: Kinds<Option<QkNormOver>> = &[
    ("none", None),
    ("per_head", Some(QkNormOver::Head)),
    ("per_head_gain", Some(QkNormOver::HeadWithItsGain)),
    ("all_heads", Some(QkNormOver::AllHeads)),
];

/// A feed-forward network.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Network {
    Plain,
    Gated,
    Experts,
}

pub(super) const NETWORKS: Kinds<Network> =
    &[("plain", Network::Plain), ("gated", Network::Gated), ("moe", Network::Experts)];

/// Whether experts are gated.
pub(super) const EXPERTS: Kinds<bool> = &[("plain", false), ("gated", true)];

pub(super) const ACTIVATIONS: Kinds<Activation> = &[
    ("relu", Activation::Relu),
    ("relu2", Activation::ReluSquared),
    ("gelu", Activation::GeluErf),
    ("gelu_tanh", Activation::GeluTanh),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("quick_gelu", Activation::GeluQuick),
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("tanh", Activation::Tanh),
];

pub(super) const HEADS: Kinds<Head> = &[("tied", Head::Tied), ("untied", Head::Untied), ("none", Head::None)];

pub(super) const POOLINGS: Kinds<PoolingKind> =
    &[("mean", PoolingKind::Mean), ("cls", PoolingKind::Cls), ("last", PoolingKind::Last)];

/// The names.
pub(super) fn names<T>(kinds: Kinds<T>) -> Vec<&'static str> {
    kinds.iter().map(|(name, _)| *name).collect()
}

/// The kind that a key names, if it is there.
pub(super) fn kind<T: Copy>(config: &Config, key: &str, kinds: Kinds<T>) -> Result<Option<T>, ConvertError> {
    let Some(value) = config.get(key) else { return Ok(None) };
    let name = value.as_str().unwrap_or_default();
    match kinds.iter().find(|(known, _)| *known == name) {
        Some((_, kind)) => Ok(Some(*kind)),
        None => Err(config.refuse_name(key, &names(kinds))),
    }
}

/// The kind that a key names; it must be there.
pub(super) fn required<T: Copy>(config: &Config, key: &str, kinds: Kinds<T>) -> Result<T, ConvertError> {
    kind(config, key, kinds)?.ok_or_else(|| config.refuse_name(key, &names(kinds)))
}
