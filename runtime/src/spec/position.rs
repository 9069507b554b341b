//! How a token learns where it stands.

#![forbid(unsafe_code)]

use super::{MAX_COUNT, Spec, is_default, positive};
use crate::quant::PANEL_ROWS;
use serde::{Deserialize, Serialize};

/// How a token learns where it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Position {
    /// A trained vector per position, added to the token's embedding.
    Learned,
    /// Sines and cosines of the position, added to the token's embedding (Vaswani et al. 2017, arXiv:1706.03762).
    Sinusoidal(Sinusoidal),
    /// Rotation of query and key pairs (Su et al. 2021, arXiv:2104.09864).
    Rotary(Rotary),
    /// Scores fall with the distance, by head (Press et al. 2021, arXiv:2108.12409).
    Alibi(Alibi),
    /// A trained bias of scores for each head and range of distances, the same in all layers (Raffel et al. 2019,
    /// arXiv:1910.10683).
    RelativeBias(RelativeBias),
    /// Distances have keys of their own in each layer, made of sinusoids (Dai et al. 2019, arXiv:1901.02860).
    TransformerXl(TransformerXl),
    /// Not at all.
    None,
}

/// Sines and cosines of `(position + offset) * frequency`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sinusoidal {
    /// Interleaved as in the paper: dimensions `2i` and `2i + 1` are sine and cosine of frequency `10000^(-2i / d_model)`. In
    /// halves as in tensor2tensor and fairseq: all `n = d_model / 2` sines, then the cosines, of `10000^(-i / (n - 1))`.
    pub pairs: Pairs,
    /// The first token's position (2 in fairseq).
    #[serde(default, skip_serializing_if = "is_default")]
    pub offset: usize,
}

impl Sinusoidal {
    /// How far pair `i` of `n` turns from one position to the next.
    pub fn frequency(&self, i: usize, n: usize) -> f64 {
        let divisor = match self.pairs {
            Pairs::Halves => n - 1,
            Pairs::Interleaved => n,
        };
        // `libm`, because the system's functions differ between systems in the last digit.
        libm::pow(10_000.0, -(i as f64) / divisor as f64)
    }

    pub(super) fn validate(&self, d_model: usize) -> Result<(), String> {
        if d_model < 4 || !d_model.is_multiple_of(2) {
            return Err(format!("sinusoidal positions of `d_model` {d_model}, expected an even number from 4 on"));
        }
        match self.offset {
            offset if offset > MAX_COUNT => Err(format!("sinusoidal `offset` is {offset}, expected 0 to {MAX_COUNT}")),
            _ => Ok(()),
        }
    }
}

/// Distances in buckets. Half of them hold a distance each, the others ranges that grow by a factor, up to `max_distance`; the
/// last holds everything further. Where attention is not causal, half of the buckets are for keys behind the query.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelativeBias {
    /// How many buckets.
    pub buckets: usize,
    /// Distances from here on share a bucket.
    pub max_distance: usize,
}

impl RelativeBias {
    /// The bucket of a key so many positions before its query, which is negative behind it.
    pub fn bucket(&self, distance: isize, causal: bool) -> usize {
        let n = if causal { self.buckets } else { self.buckets / 2 };
        let behind = if !causal && distance < 0 { n } else { 0 };
        let distance = if causal { distance.max(0) as usize } else { distance.unsigned_abs() };
        let exact = n / 2;
        if distance < exact {
            return behind + distance;
        }
        // In f32 and in this order, as the reference computes it.
        let part =
            libm::logf(distance as f32 / exact as f32) / libm::log(self.max_distance as f64 / exact as f64) as f32;
        behind + (exact + (part * (n - exact) as f32) as usize).min(n - 1)
    }

    /// The buckets of all distances that differ, from the least on, and where distance 0 is among them.
    pub fn table(&self, causal: bool) -> (Vec<u16>, usize) {
        let zero = if causal { 0 } else { self.max_distance };
        let bucket = |i: usize| self.bucket(i as isize - zero as isize, causal) as u16;
        ((0..=zero + self.max_distance).map(bucket).collect(), zero)
    }

    pub(super) fn validate(&self, causal: bool) -> Result<(), String> {
        const MOST: usize = 1 << 15;
        let least = if causal { 2 } else { 4 };
        if self.buckets < least || self.buckets > MOST || !self.buckets.is_multiple_of(least) {
            return Err(format!("relative `buckets` is {}, expected a multiple of {least} up to {MOST}", self.buckets));
        }
        let exact = self.buckets / least;
        if self.max_distance <= exact || self.max_distance > MOST {
            let found = self.max_distance;
            return Err(format!("relative `max_distance` is {found}, expected more than {exact} up to {MOST}"));
        }
        Ok(())
    }
}

/// Keys of distances: the score of a query `q` and a key `k` so many positions `d` before it is `(q + u) · k + (q + v) · W r_d`,
/// times the scale, with a matrix `W` and vectors `u` and `v` of each layer. The sinusoids `r_d` of a distance are sines, then
/// cosines, of `d * 10000^(-2i / d_model)`, as in the authors' code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransformerXl {
    /// Distances from here on count as this one (the authors' `clamp_len`).
    pub max_distance: usize,
}

impl TransformerXl {
    /// How far pair `i` of the sinusoids turns from one distance to the next.
    pub fn frequency(i: usize, d_model: usize) -> f64 {
        // `libm`, because the system's functions differ between systems in the last digit.
        libm::pow(10_000.0, -((2 * i) as f64) / d_model as f64)
    }

    /// Distances that differ.
    pub fn distances(&self) -> usize {
        self.max_distance.saturating_add(1)
    }

    pub(super) fn validate(&self, spec: &Spec) -> Result<(), String> {
        /// They are numbered in 16 bits.
        const MOST: usize = (1 << 16) - 1;
        /// Elements of the keys of all distances, heads and layers, and of the sinusoids they are made of: 512 MiB in f32, which
        /// are there twice while they are made.
        const MOST_ELEMENTS: usize = 1 << 27;
        let (found, d_model) = (self.max_distance, spec.d_model);
        if found == 0 || found > MOST {
            return Err(format!("Transformer-XL `max_distance` is {found}, expected 1 to {MOST}"));
        }
        if !d_model.is_multiple_of(2) {
            return Err(format!("Transformer-XL positions of `d_model` {d_model}, expected an even number"));
        }
        let a = &spec.attention;
        // All are at most 2^24, and `n_heads * head_dim` is: no product of two overflows.
        let width = (a.n_heads * a.head_dim).saturating_mul(spec.n_layers).max(d_model);
        // In memory they are padded to a panel.
        let most = MOST_ELEMENTS / width / PANEL_ROWS * PANEL_ROWS;
        if self.distances() > most {
            return Err(format!(
                "Transformer-XL `max_distance` is {found}, expected at most {} for keys of {width} dimensions in all layers",
                most.saturating_sub(1)
            ));
        }
        // The kernels add biases to scores that are capped already.
        match a.softcap {
            Some(cap) => Err(format!("Transformer-XL positions with a `softcap` of scores, {cap}, expected none")),
            None => Ok(()),
        }
    }
}

/// Rotary position embedding of the first `dims` dimensions of each head: pair `i` turns by `position * theta^(-2i / exponent)`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotary {
    /// Dimensions that turn; even, at most the head's.
    pub dims: usize,
    /// The base of the frequencies.
    pub theta: f32,
    /// The divisor in the frequencies' exponents, where it is not `dims` (GPT-NeoX with an odd number of dimensions).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exponent: Option<usize>,
    /// Which dimensions turn together.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pairs: Pairs,
    /// What makes positions beyond the trained ones usable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<RotaryScaling>,
}

/// Which dimensions of a head turn together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pairs {
    /// `i` and `i + dims / 2`.
    #[default]
    Halves,
    /// `2i` and `2i + 1`.
    Interleaved,
}

/// How rotary frequencies are changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RotaryScaling {
    /// All are divided (Chen et al. 2023, arXiv:2306.15595).
    Linear {
        /// By this.
        factor: f32,
    },
    /// The base grows with the position beyond the trained ones. Position `p` turns as a text of `p + 1` tokens does.
    Dynamic {
        /// Steepness.
        factor: f32,
        /// Positions that nothing changes for.
        original: usize,
    },
    /// Slow ones are divided, fast ones are not, those between partly (`LLaMA` 3.1).
    Llama3 {
        /// What slow ones are divided by.
        factor: f32,
        /// Slow: fewer turns than this in the trained length.
        low: f32,
        /// Fast: more turns than this.
        high: f32,
        /// The trained length.
        original: usize,
    },
    /// The same by the dimension's number, and a factor on queries and keys (Peng et al. 2023, arXiv:2309.00071).
    Yarn {
        /// What slow ones are divided by.
        factor: f32,
        /// Turns in the trained length above which nothing is divided.
        beta_fast: f32,
        /// Turns below which all is.
        beta_slow: f32,
        /// The trained length.
        original: usize,
        /// What cosines and sines are multiplied by.
        magnitude: f32,
        /// Whether the range between is rounded to whole dimensions.
        truncate: bool,
    },
}

/// Biases of scores: `slope * (key - query)` in positions, with slope `2^(-max_bias * i / n)` for the heads
/// `i = 1, 2, …, n`, where `n` is a power of two; other numbers of heads take every second slope of twice as many.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alibi {
    /// The steepest slope's exponent, 8 in the paper.
    pub max_bias: f32,
    /// As Falcon was trained: `slope * key`, both and their product rounded to bf16, added before scores are scaled.
    #[serde(default, skip_serializing_if = "is_default")]
    pub bf16: bool,
}

impl Rotary {
    /// Half-split pairs, nothing scaled.
    pub fn new(dims: usize, theta: f32) -> Self {
        Self { dims, theta, exponent: None, pairs: Pairs::Halves, scaling: None }
    }

    pub(super) fn validate(&self, head_dim: usize) -> Result<(), String> {
        if self.dims == 0 || !self.dims.is_multiple_of(2) || self.dims > head_dim {
            return Err(format!("rotary `dims` is {}, expected an even number up to `head_dim` {head_dim}", self.dims));
        }
        if let Some(exponent) = self.exponent.filter(|e| !(1..=self.dims).contains(e)) {
            return Err(format!("rotary `exponent` is {exponent}, expected 1 to `dims` {}", self.dims));
        }
        // What the others do to frequencies hangs on how many pairs there are, and nobody has trained such a model.
        let linear = matches!(self.scaling, None | Some(RotaryScaling::Linear { .. }));
        if let Some(exponent) = self.exponent.filter(|_| !linear) {
            return Err(format!("rotary `exponent` {exponent} with scaling, expected none or a linear one"));
        }
        positive("rotary `theta`", self.theta)?;
        let (factor, original, others) = match &self.scaling {
            None => return Ok(()),
            Some(RotaryScaling::Linear { factor }) => (factor, 1, vec![]),
            Some(RotaryScaling::Dynamic { factor, original }) => {
                if self.dims == 2 {
                    return Err("rotary `dims` is 2, expected more for dynamic scaling".into());
                }
                (factor, *original, vec![])
            }
            Some(RotaryScaling::Llama3 { factor, low, high, original }) => {
                if low >= high {
                    return Err(format!("rotary `low` is {low}, expected less than `high` {high}"));
                }
                (factor, *original, vec![("rotary `low`", *low), ("rotary `high`", *high)])
            }
            Some(RotaryScaling::Yarn { factor, beta_fast, beta_slow, original, magnitude, .. }) => {
                if self.theta == 1.0 {
                    return Err("rotary `theta` is 1, expected another for YaRN".into());
                }
                let others =
                    [("`beta_fast`", *beta_fast), ("`beta_slow`", *beta_slow), ("rotary `magnitude`", *magnitude)];
                (factor, *original, others.to_vec())
            }
        };
        positive("rotary `factor`", *factor)?;
        if original == 0 || original > MAX_COUNT {
            return Err(format!("rotary `original` is {original}, expected 1 to {MAX_COUNT}"));
        }
        others.into_iter().try_for_each(|(name, value)| positive(name, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference is `T5Attention._relative_position_bucket` of transformers, with 32 buckets and a distance of 128.
    #[test]
    fn distances_fall_into_the_buckets_of_the_reference() {
        let bias = RelativeBias { buckets: 32, max_distance: 128 };
        let distances = [0, 1, 7, 8, 11, 12, 15, 16, 22, 23, 31, 32, 45, 46, 63, 64, 90, 91, 127, 128, 5000];
        let causal = [0, 1, 7, 8, 11, 12, 15, 16, 18, 18, 21, 21, 23, 24, 26, 26, 29, 29, 31, 31, 31];
        let both = [0, 1, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15, 15, 15];
        assert_eq!(distances.map(|d| bias.bucket(d, true)), causal);
        assert_eq!(distances.map(|d| bias.bucket(d, false)), both);
        assert_eq!(distances.map(|d| bias.bucket(-d, false))[1..], both.map(|b| b + 16)[1..]);
        assert_eq!(bias.bucket(-3, true), 0);
        let (table, zero) = bias.table(false);
        assert_eq!((table.len(), zero, table[zero], table[zero - 1], table[zero + 1]), (257, 128, 0, 17, 1));
    }
}
