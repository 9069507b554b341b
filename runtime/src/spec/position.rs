//! How a token learns where it stands.

#![forbid(unsafe_code)]

use super::{MAX_COUNT, is_default, positive};
use serde::{Deserialize, Serialize};

/// How a token learns where it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Position {
    /// A trained vector per position, added to the token's embedding.
    Learned,
    /// Rotation of query and key pairs (Su et al. 2021, arXiv:2104.09864).
    Rotary(Rotary),
    /// Scores fall with the distance, by head (Press et al. 2021, arXiv:2108.12409).
    Alibi(Alibi),
    /// Not at all.
    None,
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
