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

mod tensors;

pub use tensors::{Role, TensorDecl};

use serde::{Deserialize, Serialize};

/// A decoder-only transformer.
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
    /// How a token learns where it stands.
    pub position: Position,
    /// The normalization used everywhere.
    pub norm: Norm,
    /// Self-attention.
    pub attention: Attention,
    /// Feed-forward network.
    pub mlp: Mlp,
    /// How the two halves of a block meet the residual stream.
    pub residual: Residual,
    /// The output projection.
    pub head: Head,
    /// The token that ends a text, if the checkpoint names one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub eos_ids: Vec<u32>,
}

/// How a token learns where it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Position {
    /// A trained vector per position, added to the token's embedding.
    Learned,
    /// Rotation of query and key pairs (Su et al. 2021, arXiv:2104.09864).
    Rotary(Rotary),
}

/// Rotary position embedding of the first `dims` dimensions of each head: dimension `i` turns with
/// dimension `i + dims / 2` by `position * theta^(-2i / dims)`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotary {
    /// Dimensions that turn; even, at most the head's.
    pub dims: usize,
    /// The base of the frequencies.
    pub theta: f32,
}

/// A normalization of the residual stream, with a trained gain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Norm {
    /// Which one.
    pub kind: NormKind,
    /// Added to the variance.
    pub eps: f32,
}

/// Kinds of normalization.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// Mean and variance, gain and bias (Ba et al. 2016, arXiv:1607.06450).
    LayerNorm,
}

/// Causal multi-head self-attention.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attention {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// What query-key products are multiplied by.
    pub scale: f32,
    /// Divide the scale by the layer's number, counted from 1.
    pub scale_by_inverse_layer: bool,
    /// Bias on query, key and value.
    pub qkv_bias: bool,
    /// Bias on the output projection.
    pub out_bias: bool,
}

impl Attention {
    /// Rows of the fused query-key-value projection: all query heads, then keys, then values.
    pub fn qkv_rows(&self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
    }

    /// What query-key products of layer `layer` (from 0) are multiplied by.
    pub fn scale_of(&self, layer: usize) -> f32 {
        if self.scale_by_inverse_layer { self.scale / (layer + 1) as f32 } else { self.scale }
    }
}

/// Feed-forward network: `down(activation(up(x)))`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mlp {
    /// Inner width.
    pub ffn_dim: usize,
    /// The non-linearity.
    pub activation: Activation,
    /// Bias on both projections.
    pub bias: bool,
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
}

/// The output projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Head {
    /// The token embedding serves as the output projection.
    Tied,
    /// A matrix of its own.
    Untied,
}

/// The widest head that the attention kernels hold on their stack.
pub const MAX_HEAD_DIM: usize = 512;

/// A bound on every count of a spec: keeps products of two within 64 bits and an
/// untrusted header from asking for absurd memory.
const MAX_COUNT: usize = 1 << 24;

impl Spec {
    /// Checks that the numbers fit together.
    ///
    /// # Errors
    /// One line that names the field and both values.
    pub fn validate(&self) -> Result<(), String> {
        let a = &self.attention;
        for (name, value) in [
            ("vocab_size", self.vocab_size),
            ("n_layers", self.n_layers),
            ("d_model", self.d_model),
            ("context_length", self.context_length),
            ("n_heads", a.n_heads),
            ("n_kv_heads", a.n_kv_heads),
            ("head_dim", a.head_dim),
            ("ffn_dim", self.mlp.ffn_dim),
        ] {
            if value == 0 || value > MAX_COUNT {
                return Err(format!("`{name}` is {value}, expected 1 to {MAX_COUNT}"));
            }
        }
        if !a.n_heads.is_multiple_of(a.n_kv_heads) {
            return Err(format!("`n_heads` {} is not a multiple of `n_kv_heads` {}", a.n_heads, a.n_kv_heads));
        }
        if a.head_dim > MAX_HEAD_DIM {
            return Err(format!("`head_dim` is {}, at most {MAX_HEAD_DIM} is supported", a.head_dim));
        }
        if a.n_heads > MAX_COUNT / a.head_dim {
            return Err(format!("`n_heads` {} times `head_dim` {} is more than {MAX_COUNT}", a.n_heads, a.head_dim));
        }
        if let Position::Rotary(r) = &self.position {
            if r.dims == 0 || r.dims % 2 != 0 || r.dims > a.head_dim {
                return Err(format!(
                    "rotary `dims` is {}, expected an even number up to `head_dim` {}",
                    r.dims, a.head_dim
                ));
            }
            if !(r.theta.is_finite() && r.theta > 0.0) {
                return Err(format!("rotary `theta` is {}, expected a positive number", r.theta));
            }
        }
        for (name, value) in [("norm eps", self.norm.eps), ("attention scale", a.scale)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(format!("{name} is {value}, expected a positive number"));
            }
        }
        if let Some(id) = self.eos_ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            return Err(format!("end-of-text id {id} is outside the vocabulary of {}", self.vocab_size));
        }
        Ok(())
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
            position: Position::Rotary(Rotary { dims: 4, theta: 10000.0 }),
            norm: Norm { kind: NormKind::LayerNorm, eps: 1e-5 },
            attention: Attention {
                n_heads: 3,
                n_kv_heads: 3,
                head_dim: 8,
                scale: 0.3,
                scale_by_inverse_layer: false,
                qkv_bias: true,
                out_bias: true,
            },
            mlp: Mlp { ffn_dim: 96, activation: Activation::GeluErf, bias: true },
            residual: Residual::Sequential,
            head: Head::Untied,
            eos_ids: vec![0],
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

    type Change = fn(&mut Spec);

    #[test]
    fn rejects_numbers_that_do_not_fit_together() {
        let cases: [(&str, Change); 9] = [
            ("`n_layers` is 0", |s| s.n_layers = 0),
            ("`vocab_size` is 18446744073709551615", |s| s.vocab_size = usize::MAX),
            ("`n_heads` 3 is not a multiple of `n_kv_heads` 2", |s| s.attention.n_kv_heads = 2),
            ("`head_dim` is 1024, at most 512", |s| s.attention.head_dim = 1024),
            ("rotary `dims` is 3", |s| s.position = Position::Rotary(Rotary { dims: 3, theta: 1e4 })),
            ("rotary `theta` is NaN", |s| s.position = Position::Rotary(Rotary { dims: 4, theta: f32::NAN })),
            ("norm eps is -1", |s| s.norm.eps = -1.0),
            ("attention scale is inf", |s| s.attention.scale = f32::INFINITY),
            ("end-of-text id 50 is outside the vocabulary of 50", |s| s.eos_ids = vec![0, 50]),
        ];
        for (expected, change) in cases {
            let mut spec = small();
            change(&mut spec);
            let message = spec.validate().unwrap_err();
            assert!(message.contains(expected), "{message} should contain {expected}");
        }
        small().validate().unwrap();
    }
}
