//! How tokens look at each other.

#![forbid(unsafe_code)]

use super::validate::in_order;
use super::{MAX_COUNT, NormKind, Rotary, Trained, is_default, is_yes, yes};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Multi-head self-attention.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent")]
pub struct Attention {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Whether a token sees only those before it and itself. If not, it sees its whole text, which then runs at once.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub causal: bool,
    /// What query-key products are multiplied by.
    pub scale: f32,
    /// Divide the scale by the layer's number, counted from 1.
    pub scale_by_inverse_layer: bool,
    /// Bias on query, key and value.
    pub qkv_bias: bool,
    /// Bias on the output projection.
    pub out_bias: bool,
    /// Normalization of queries and keys, before they turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qk_norm: Option<QkNorm>,
    /// Queries, keys and values are clamped to plus and minus this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<f32>,
    /// Scores `s` become `c * tanh(s / c)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub softcap: Option<f32>,
    /// Layers that see only the last positions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// Layers that see blocks of positions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sparse: Option<Sparse>,
    /// Whether each head has a trained score that no key belongs to and that takes its share of the probabilities (`OpenAI` 2025,
    /// gpt-oss, arXiv:2508.10925; Xiao et al. 2023, arXiv:2309.17453).
    #[serde(default, skip_serializing_if = "is_default")]
    pub sinks: bool,
    /// What queries and keys go through in linear attention (Katharopoulos et al. 2020, arXiv:2006.16236), which makes
    /// `f(q) S / f(q) z` of the sums `S` of `f(k) v` and `z` of `f(k)`. They are all that is kept of a text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feature_map: Option<FeatureMap>,
}

/// What queries and keys of linear attention go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeatureMap {
    /// `elu(x) + 1`: `x + 1` where positive, `e^x` elsewhere.
    EluPlusOne,
}

/// Block-sparse attention (Child et al. 2019, arXiv:1904.10509). Positions are in blocks of `block`; a query sees of those
/// before it and its own the last `local` blocks, and every `stride`-th.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sparse {
    /// Positions of a block.
    pub block: usize,
    /// The last blocks that are seen whole, the query's own included.
    pub local: usize,
    /// Of how many blocks one is seen.
    pub stride: usize,
    /// Which one.
    pub pattern: SparsePattern,
    /// These layers; all when `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<usize>>,
}

/// Which blocks are seen from afar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SparsePattern {
    /// Those that are a multiple of the stride back from the query's.
    Strided,
    /// The last of every stride, counted from the start of the text.
    Fixed,
}

impl Sparse {
    /// Whether a query sees a key that is not behind it.
    pub fn sees(&self, query: usize, key: usize) -> bool {
        self.sees_some(query, key..key + 1)
    }

    /// Whether a query sees some of these keys, of which there is one at least, and none behind it.
    pub fn sees_some(&self, query: usize, keys: Range<usize>) -> bool {
        let (query, first, last) = (query / self.block, keys.start / self.block, (keys.end - 1) / self.block);
        // Between the least and the most is a multiple of the stride.
        let (least, most) = match self.pattern {
            SparsePattern::Strided => (query - last, query - first),
            SparsePattern::Fixed => (first + 1, last + 1),
        };
        query - last < self.local || least.next_multiple_of(self.stride) <= most
    }

    pub(super) fn validate(&self, n_layers: usize) -> Result<(), String> {
        for (name, value) in [("block", self.block), ("local", self.local), ("stride", self.stride)] {
            if value == 0 || value > MAX_COUNT {
                return Err(format!("sparse `{name}` is {value}, expected 1 to {MAX_COUNT}"));
            }
        }
        in_order("sparse attention", self.layers.as_deref(), n_layers)
    }
}

/// Layers that see only the last positions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Positions that a query sees, its own included.
    pub size: usize,
    /// These layers; all when `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<usize>>,
    /// How positions turn in them, where it differs from the other layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotary: Option<Rotary>,
}

/// Normalization of queries and keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QkNorm {
    /// Which one.
    pub kind: NormKind,
    /// Added to the variance.
    pub eps: f32,
    /// What is trained of it.
    pub trained: Trained,
    /// What is normalized together.
    pub over: QkNormOver,
}

/// What a normalization of queries and keys takes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QkNormOver {
    /// Each head; all have the same gain.
    Head,
    /// Each head, with a gain of its own.
    HeadWithItsGain,
    /// All heads together.
    AllHeads,
}

impl Attention {
    /// Causal attention to all positions, without biases.
    pub fn new(n_heads: usize, n_kv_heads: usize, head_dim: usize) -> Self {
        Self {
            n_heads,
            n_kv_heads,
            head_dim,
            causal: true,
            scale: 1.0 / (head_dim as f32).sqrt(),
            scale_by_inverse_layer: false,
            qkv_bias: false,
            out_bias: false,
            qk_norm: None,
            clip: None,
            softcap: None,
            window: None,
            sparse: None,
            sinks: false,
            feature_map: None,
        }
    }

    /// Rows of the fused query-key-value projection: all query heads, then keys, then values.
    pub fn qkv_rows(&self) -> usize {
        self.n_heads * self.head_dim + self.kv_rows()
    }

    /// Rows of a fused projection of keys and values: all keys, then all values.
    pub fn kv_rows(&self) -> usize {
        2 * self.n_kv_heads * self.head_dim
    }

    /// What query-key products of layer `layer` (from 0) are multiplied by.
    pub fn scale_of(&self, layer: usize) -> f32 {
        if self.scale_by_inverse_layer { self.scale / (layer + 1) as f32 } else { self.scale }
    }

    /// Which blocks layer `layer` sees, if not all.
    pub fn sparse_of(&self, layer: usize) -> Option<&Sparse> {
        self.sparse.as_ref().filter(|s| s.layers.as_ref().is_none_or(|layers| layers.contains(&layer)))
    }

    /// The window of layer `layer`, if it has one.
    pub fn window_of(&self, layer: usize) -> Option<&Window> {
        self.window.as_ref().filter(|w| w.layers.as_ref().is_none_or(|layers| layers.contains(&layer)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_keys_are_seen_where_one_of_them_is() {
        for pattern in [SparsePattern::Strided, SparsePattern::Fixed] {
            for (block, local, stride) in [(1, 1, 7), (3, 2, 5), (4, 1, 1), (5, 3, 90)] {
                let sparse = Sparse { block, local, stride, pattern, layers: None };
                for query in 0..60 {
                    for keys in (0..=query).flat_map(|first| (first..=query).map(move |last| first..last + 1)) {
                        let some = keys.clone().any(|key| sparse.sees(query, key));
                        assert_eq!(sparse.sees_some(query, keys.clone()), some, "{sparse:?}: {query} of {keys:?}");
                    }
                }
            }
        }
    }
}
