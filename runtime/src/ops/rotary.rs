//! Rotary position embedding (Su et al. 2021, arXiv:2104.09864), and what makes it reach further.

use super::{Buffer, rows_per_task, zeros};
use crate::error::SessionError;
use crate::spec::{Pairs, Rotary, RotaryScaling};
use crate::threads::Pool;

/// The angles of the tokens at hand: computed once, used in every layer.
#[derive(Clone, Debug)]
pub struct Rotation {
    rotary: Rotary,
    /// By pair; of positions that dynamic scaling changes nothing for.
    frequencies: Vec<f32>,
    /// What cosines and sines are multiplied by.
    magnitude: f32,
    /// The positions it is prepared for.
    positions: Vec<usize>,
    /// `[positions][dims / 2]` of (cos, sin).
    turns: Vec<(f32, f32)>,
}

impl Rotation {
    /// Room for `max_tokens`.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(rotary: &Rotary, max_tokens: usize) -> Result<Self, SessionError> {
        let half = rotary.dims / 2;
        let magnitude = match rotary.scaling {
            Some(RotaryScaling::Yarn { magnitude, .. }) => magnitude,
            _ => 1.0,
        };
        Ok(Self {
            frequencies: (0..half).map(|i| frequency(rotary, i, 0)).collect(),
            rotary: rotary.clone(),
            magnitude,
            positions: Vec::with_capacity(max_tokens),
            turns: zeros(half * max_tokens, (1.0, 0.0), "rotary positions")?,
        })
    }

    /// What there is room for.
    pub fn max_tokens(&self) -> usize {
        self.turns.len() / self.frequencies.len().max(1)
    }

    /// Bytes of one for `max_tokens`.
    pub fn bytes_of(rotary: &Rotary, max_tokens: usize) -> usize {
        max_tokens.saturating_mul(size_of::<usize>() + rotary.dims / 2 * size_of::<(f32, f32)>())
    }

    /// What it turns by.
    pub fn rotary(&self) -> &Rotary {
        &self.rotary
    }

    /// Prepares for these positions, unless that was done for the layer before. The angle is an f32 product, as the
    /// reference computes it.
    ///
    /// # Panics
    /// When there is no room for so many.
    pub fn prepare(&mut self, positions: &[usize]) {
        if self.positions == positions {
            return;
        }
        self.positions.clear();
        self.positions.extend_from_slice(positions);
        let half = self.frequencies.len();
        for (&position, turns) in positions.iter().zip(self.turns[..positions.len() * half].chunks_mut(half)) {
            let changed =
                matches!(self.rotary.scaling, Some(RotaryScaling::Dynamic { original, .. }) if position >= original);
            for (i, turn) in turns.iter_mut().enumerate() {
                let frequency = if changed { frequency(&self.rotary, i, position) } else { self.frequencies[i] };
                let angle = f64::from(position as f32 * frequency);
                *turn = (libm::cos(angle) as f32 * self.magnitude, libm::sin(angle) as f32 * self.magnitude);
            }
        }
    }

    /// Turns the first `n_heads` heads of the rows that it was prepared for.
    ///
    /// # Panics
    /// When there are fewer rows.
    pub fn apply(&self, pool: &mut Pool, x: &mut Buffer, n_heads: usize, head_dim: usize) {
        let n_tokens = self.positions.len();
        let half = self.frequencies.len();
        let stride = x.stride();
        let rows = rows_per_task(pool, n_tokens);
        pool.run_blocks(x.rows_mut(0..n_tokens), stride, rows, stride, &|rows, _, mut x| {
            for (i, t) in rows.enumerate() {
                let turns = &self.turns[t * half..][..half];
                for head in x.row_mut(i)[..n_heads * head_dim].chunks_exact_mut(head_dim) {
                    let turn = |a: &mut f32, b: &mut f32, (cos, sin): (f32, f32)| {
                        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                    };
                    match self.rotary.pairs {
                        Pairs::Halves => {
                            let (first, second) = head[..2 * half].split_at_mut(half);
                            first.iter_mut().zip(second).zip(turns).for_each(|((a, b), &t)| turn(a, b, t));
                        }
                        Pairs::Interleaved => {
                            let (pairs, _) = head[..2 * half].as_chunks_mut::<2>();
                            pairs.iter_mut().zip(turns).for_each(|([a, b], &t)| turn(a, b, t));
                        }
                    }
                }
            }
        });
    }
}

/// How far pair `i` turns from one position to the next. `libm`, because the system's functions differ between systems in
/// the last digit.
fn frequency(rotary: &Rotary, i: usize, position: usize) -> f32 {
    let dims = rotary.exponent.unwrap_or(rotary.dims) as f64;
    let theta = f64::from(rotary.theta);
    let plain = |theta: f64| (1.0 / libm::pow(theta, 2.0 * i as f64 / dims)) as f32;
    let usual = plain(theta);
    let turn = std::f64::consts::TAU;
    match rotary.scaling {
        None => usual,
        Some(RotaryScaling::Linear { factor }) => usual / factor,
        Some(RotaryScaling::Dynamic { factor, original }) => {
            let (factor, length) = (f64::from(factor), (position + 1).max(original) as f64);
            plain(theta * libm::pow(factor * length / original as f64 - (factor - 1.0), dims / (dims - 2.0)))
        }
        Some(RotaryScaling::Llama3 { factor, low, high, original }) => {
            let turns = original as f64 * f64::from(usual) / turn;
            let kept = ((turns - f64::from(low)) / f64::from(high - low)).clamp(0.0, 1.0) as f32;
            (1.0 - kept) * usual / factor + kept * usual
        }
        Some(RotaryScaling::Yarn { factor, beta_fast, beta_slow, original, truncate, .. }) => {
            // The pair that turns so many times in the trained length.
            let pair =
                |turns: f32| dims * libm::log(original as f64 / (f64::from(turns) * turn)) / (2.0 * libm::log(theta));
            let (mut low, mut high) = (pair(beta_fast), pair(beta_slow));
            if truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            let (low, mut high) = (low.max(0.0), high.min(dims - 1.0));
            if low == high {
                high += 0.001;
            }
            let divided = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0) as f32;
            usual / factor * divided + usual * (1.0 - divided)
        }
    }
}
