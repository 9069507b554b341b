//! An architecture as data.
//!
//! A [`Spec`] says everything the forward pass needs to know about a model except its weights. The
//! converter derives it from a checkpoint's `config.json`; the runtime never asks which family a
//! model belongs to. Adding a part (a position scheme, an activation, …) is one variant here, and
//! the compiler leads to every place that must know it.
//!
//! [`Spec::tensors`] lists the tensors a spec needs, with names and shapes: the one registry that the
//! converter fills, the file reader checks and `inspect` counts.

#![forbid(unsafe_code)]

mod attention;
mod encoder;
mod parts;
mod position;
mod tensors;
mod validate;

pub use attention::{Attention, FeatureMap, QkNorm, QkNormOver, Sparse, SparsePattern, Window};
pub use encoder::Encoder;
pub use parts::Part;
pub use position::{Alibi, Pairs, Position, RelativeBias, Rotary, RotaryScaling, Sinusoidal, TransformerXl};
pub use tensors::{Role, TensorDecl};

use serde::{Deserialize, Serialize};
use validate::positive;

/// A transformer: a decoder, an encoder, or a decoder that looks at what an encoder has read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// What the source called itself (`model_type`); shown to people, never branched on.
    pub family: String,
    /// Rows of the embedding and the head; ids are `0..vocab_size`.
    pub vocab_size: usize,
    /// Transformer blocks.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Positions the model was trained for, in tokens.
    pub context_length: usize,
    /// From a token's row to the first block.
    #[serde(default, skip_serializing_if = "is_default")]
    pub embedding: Embedding,
    /// How a token learns where it stands.
    pub position: Position,
    /// The normalization of the residual stream.
    pub norm: Norm,
    /// Self-attention.
    pub attention: Attention,
    /// Feed-forward network.
    pub mlp: Mlp,
    /// How the two halves of a block meet the residual stream.
    pub residual: Residual,
    /// What both sides of their sums are multiplied by.
    #[serde(default, skip_serializing_if = "is_default")]
    pub scales: Scales,
    /// Whether there is a normalization between the last block and the head.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub final_norm: bool,
    /// The output projection.
    pub head: Head,
    /// What the output projection's products become.
    #[serde(default, skip_serializing_if = "is_default")]
    pub logits: Logits,
    /// What a text's embedding is made of.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pooling: Pooling,
    /// The token that ends a text, if the checkpoint names one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub eos_ids: Vec<u32>,
    /// Another stack, which reads the text that this one writes about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder: Option<Encoder>,
}

/// From a token's row to the first block: `project(row) * scale`, positions added, normalized.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Embedding {
    /// Width of the table's rows and of the head's, where it is not `d_model`: a matrix leads to `d_model`, another one back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dim: Option<usize>,
    /// What rows are multiplied by.
    #[serde(skip_serializing_if = "is_one")]
    pub scale: f32,
    /// Whether the sum is normalized.
    pub norm: bool,
}

impl Default for Embedding {
    fn default() -> Self {
        Self { dim: None, scale: 1.0, norm: false }
    }
}

/// A normalization.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Norm {
    /// Which one.
    pub kind: NormKind,
    /// Added to the variance; the least length in `ScaleNorm`.
    pub eps: f32,
    /// What is trained of it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub trained: Trained,
    /// Where it stands in a block.
    #[serde(default, skip_serializing_if = "is_default")]
    pub place: Place,
}

/// Kinds of normalization.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// Mean and variance (Ba et al. 2016, arXiv:1607.06450).
    LayerNorm,
    /// The mean square alone (Zhang & Sennrich 2019, arXiv:1910.07467).
    RmsNorm,
    /// `gain * x / max(|x|, eps)` with one gain for all dimensions (Nguyen & Salazar 2019, arXiv:1910.05895).
    ScaleNorm,
}

impl NormKind {
    /// Elements of the gain of a norm over `dim` dimensions.
    pub fn gain_len(self, dim: usize) -> usize {
        match self {
            Self::LayerNorm | Self::RmsNorm => dim,
            Self::ScaleNorm => 1,
        }
    }
}

/// What is trained of a normalization.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trained {
    /// A gain and a bias for each dimension.
    #[default]
    GainAndBias,
    /// A gain.
    Gain,
    /// Nothing.
    Nothing,
}

/// Where the normalizations of a block stand; `f` is attention or the feed-forward network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// `x + f(norm(x))`.
    #[default]
    Before,
    /// `norm(x + f(x))`.
    After,
    /// `x + norm(f(x))`.
    Branch,
    /// `x + norm'(f(norm(x)))`.
    Sandwich,
}

impl Place {
    /// Whether there is one before attention and one before the feed-forward network.
    pub fn before(self) -> bool {
        matches!(self, Self::Before | Self::Sandwich)
    }

    /// Whether there is one behind each of them.
    pub fn behind(self) -> bool {
        self != Self::Before
    }
}

/// Feed-forward network: `down(activation(up(x)))`, or `down(activation(gate(x)) * up(x))`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mlp {
    /// Inner width, in layers without experts; of no meaning where there are none such ([`Mlp::plain_dim`]).
    #[serde(default)]
    pub ffn_dim: usize,
    /// The non-linearity.
    pub activation: Activation,
    /// Bias on all projections.
    pub bias: bool,
    /// Whether there is a gate (Shazeer 2020, arXiv:2002.05202).
    #[serde(default, skip_serializing_if = "is_default")]
    pub gated: bool,
    /// Layers that have several networks, of which each token takes some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<Experts>,
}

/// Mixture of experts (Shazeer et al. 2017, arXiv:1701.06538): the network of a token is the sum of those that a router likes
/// best, each times the probability it gives them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experts {
    /// Experts of a layer.
    pub count: usize,
    /// Those that a token takes.
    pub used: usize,
    /// Their inner width.
    pub ffn_dim: usize,
    /// Whether the probabilities of those taken are divided by their sum.
    pub renormalized: bool,
    /// Inner width of one more that all tokens take, times the sigmoid of a product of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_dim: Option<usize>,
    /// These layers; all when `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<usize>>,
}

impl Mlp {
    /// The experts of layer `layer`, if it has some.
    pub fn experts_of(&self, layer: usize) -> Option<&Experts> {
        self.experts.as_ref().filter(|e| e.layers.as_ref().is_none_or(|layers| layers.contains(&layer)))
    }

    /// The inner width of the network in those of `n_layers` layers that have no experts; `None` where all have.
    pub fn plain_dim(&self, n_layers: usize) -> Option<usize> {
        let all = |layers: &Option<Vec<usize>>| layers.as_ref().is_none_or(|layers| layers.len() == n_layers);
        (!self.experts.as_ref().is_some_and(|e| all(&e.layers))).then_some(self.ffn_dim)
    }

    /// The largest inner width of all networks of `n_layers` layers.
    pub fn widest(&self, n_layers: usize) -> usize {
        let experts = self.experts.iter().flat_map(|e| [e.ffn_dim, e.shared_dim.unwrap_or(0)]);
        experts.chain(self.plain_dim(n_layers)).max().unwrap_or(0)
    }
}

/// Element-wise non-linearities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)^2` (So et al. 2021, arXiv:2109.08668).
    ReluSquared,
    /// `x * Phi(x)`, with the exact error function (Hendrycks & Gimpel 2016, arXiv:1606.08415).
    GeluErf,
    /// The tanh approximation of GELU: `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
    GeluTanh,
    /// `x * sigmoid(1.702 x)`.
    GeluQuick,
    /// `x * sigmoid(x)`, also called swish.
    Silu,
    /// Hyperbolic tangent.
    Tanh,
}

impl Activation {
    /// Every activation.
    pub const ALL: [Self; 7] =
        [Self::Relu, Self::ReluSquared, Self::GeluErf, Self::GeluTanh, Self::GeluQuick, Self::Silu, Self::Tanh];
}

/// How the two halves of a block meet the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Residual {
    /// `x += attn(norm(x)); x += mlp(norm(x))`.
    Sequential,
    /// `x += attn(norm1(x)) + mlp(norm2(x))`.
    Parallel,
    /// `x += attn(norm(x)) + mlp(norm(x))`.
    ParallelOneNorm,
    /// `h = norm1(x); x = h + attn(h); h = norm2(x); x = h + mlp(h)`.
    FromNorm,
}

/// What both sides of a block's sums are multiplied by: `x + f(x)` is `stream * x + branch * f(x)`. In a parallel block the
/// stream is multiplied once.
///
/// With norms after the sum, `stream` is the alpha of `DeepNorm` (Wang et al. 2022, arXiv:2203.00555).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scales {
    /// The residual stream.
    #[serde(skip_serializing_if = "is_one")]
    pub stream: f32,
    /// Attention, or the feed-forward network, with a norm behind it that is not after the sum.
    #[serde(skip_serializing_if = "is_one")]
    pub branch: f32,
}

impl Default for Scales {
    fn default() -> Self {
        Self { stream: 1.0, branch: 1.0 }
    }
}

/// The output projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Head {
    /// The token embedding serves as the output projection.
    Tied,
    /// A matrix of its own.
    Untied,
    /// There is none: hidden states are all that the model gives.
    None,
}

/// How the hidden states of a text's tokens, after the final normalization, become its embedding.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pooling {
    /// Which of them.
    pub kind: PoolingKind,
    /// Whether the result is divided by its length.
    pub normalize: bool,
    /// The longest text that the model was trained to embed, in tokens; the context when `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
}

/// Which hidden states a text's embedding is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolingKind {
    /// The mean of all.
    #[default]
    Mean,
    /// The first token's, which is a special one (BERT's `[CLS]`).
    Cls,
    /// The last token's.
    Last,
}

impl PoolingKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Mean, Self::Cls, Self::Last];

    /// Its short name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Cls => "cls",
            Self::Last => "last",
        }
    }

    /// The kind of a short name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// What the output projection's products become: `softcap((products + bias) * scale)`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Logits {
    /// Whether there is a bias.
    #[serde(skip_serializing_if = "is_default")]
    pub bias: bool,
    /// What they are multiplied by.
    #[serde(skip_serializing_if = "is_one")]
    pub scale: f32,
    /// Logits `x` become `c * tanh(x / c)`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub softcap: Option<f32>,
}

impl Default for Logits {
    fn default() -> Self {
        Self { bias: false, scale: 1.0, softcap: None }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_one(value: &f32) -> bool {
    *value == 1.0
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_yes(value: &bool) -> bool {
    *value
}

/// The widest head that the attention kernels hold on their stack.
pub const MAX_HEAD_DIM: usize = 512;

/// A bound on every count of a spec: keeps products of two within 64 bits and an
/// untrusted header from asking for absurd memory.
pub const MAX_COUNT: usize = 1 << 24;

impl Spec {
    /// The most positions that a text can have. More than the model was trained for where nothing is looked up by position:
    /// what it then writes is another matter.
    pub fn max_context(&self) -> usize {
        match self.position {
            // A text that runs at once takes activations for all of it.
            _ if !self.attention.causal => self.context_length,
            Position::Learned => self.context_length,
            _ if self.encoder.is_some() => validate::MAX_AT_ONCE,
            Position::Sinusoidal(_)
            | Position::Rotary(_)
            | Position::Alibi(_)
            | Position::RelativeBias(_)
            | Position::TransformerXl(_)
            | Position::None => MAX_COUNT,
        }
    }
}

impl Norm {
    /// One before each half of a block, with what is usually trained of its kind.
    pub fn new(kind: NormKind, eps: f32) -> Self {
        let trained = match kind {
            NormKind::LayerNorm => Trained::GainAndBias,
            NormKind::RmsNorm | NormKind::ScaleNorm => Trained::Gain,
        };
        Self { kind, eps, trained, place: Place::Before }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A small valid spec that tests change at will.
    pub(crate) fn small() -> Spec {
        Spec {
            family: "test".into(),
            vocab_size: 50,
            n_layers: 2,
            d_model: 24,
            context_length: 40,
            embedding: Embedding::default(),
            position: Position::Rotary(Rotary::new(4, 10000.0)),
            norm: Norm::new(NormKind::LayerNorm, 1e-5),
            attention: Attention { scale: 0.3, qkv_bias: true, out_bias: true, ..Attention::new(3, 3, 8) },
            mlp: Mlp { ffn_dim: 96, activation: Activation::GeluErf, bias: true, gated: false, experts: None },
            final_norm: true,
            logits: Logits::default(),
            pooling: Pooling::default(),
            residual: Residual::Sequential,
            scales: Scales::default(),
            head: Head::Untied,
            eos_ids: vec![0],
            encoder: None,
        }
    }

    #[test]
    fn json_round_trips_exactly() {
        let mut spec = small();
        for eps in [1e-5, 1e-6, 1.1e-7, 0.3] {
            spec.norm.eps = eps;
            let json = serde_json::to_string(&spec).unwrap();
            assert_eq!(serde_json::from_str::<Spec>(&json).unwrap(), spec);
        }
    }

    #[test]
    fn a_width_that_no_layer_has_need_not_be() {
        let mut spec = small();
        let experts = Experts { count: 3, used: 1, ffn_dim: 8, renormalized: true, shared_dim: None, layers: None };
        for (layers, expected) in [(None, None), (Some(vec![0, 1]), None), (Some(vec![1]), Some(96))] {
            spec.mlp.experts = Some(Experts { layers, ..experts.clone() });
            assert_eq!(spec.mlp.plain_dim(spec.n_layers), expected);
            assert_eq!(spec.mlp.widest(spec.n_layers), expected.unwrap_or(8));
            let mut json = serde_json::to_value(&spec).unwrap();
            json["mlp"].as_object_mut().unwrap().remove("ffn_dim");
            let without = serde_json::from_value::<Spec>(json).unwrap().validate();
            assert_eq!(without.is_ok(), expected.is_none(), "{without:?}");
        }
    }

    #[test]
    fn parts_that_are_not_there_are_not_written() {
        let json = serde_json::to_string(&small()).unwrap();
        // Runtimes of before do not know them.
        for field in ["scales", "sparse", "sinks", "feature_map", "logits", "window", "encoder"] {
            assert!(!json.contains(field), "{field} in {json}");
        }
    }
}
