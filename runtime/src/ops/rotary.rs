//! Rotary position embedding (Su et al. 2021, arXiv:2104.09864), half-split pairs as in GPT-NeoX.

use super::{Buffer, rows_per_task};
use crate::spec::Rotary;
use crate::threads::Pool;

/// The angles of the tokens at hand: computed once, used in every layer.
#[derive(Clone, Debug)]
pub struct Rotation {
    /// `1 / theta^(2 i / dims)`.
    frequencies: Vec<f32>,
    /// The positions it is prepared for.
    positions: Vec<usize>,
    /// `[positions][dims / 2]` of (cos, sin).
    turns: Vec<(f32, f32)>,
}

impl Rotation {
    /// Room for `max_tokens`.
    pub fn new(rotary: &Rotary, max_tokens: usize) -> Self {
        let half = rotary.dims / 2;
        let exponent = |i: usize| 2.0 * i as f64 / rotary.dims as f64;
        // `libm`, because the system's functions differ between systems in the last digit.
        let frequencies = (0..half).map(|i| (1.0 / libm::pow(f64::from(rotary.theta), exponent(i))) as f32).collect();
        Self { frequencies, positions: Vec::with_capacity(max_tokens), turns: vec![(1.0, 0.0); half * max_tokens] }
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
            for (turn, frequency) in turns.iter_mut().zip(&self.frequencies) {
                let angle = f64::from(position as f32 * frequency);
                *turn = (libm::cos(angle) as f32, libm::sin(angle) as f32);
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
                    let (first, second) = head[..2 * half].split_at_mut(half);
                    for ((a, b), &(cos, sin)) in first.iter_mut().zip(second).zip(turns) {
                        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                    }
                }
            }
        });
    }
}
