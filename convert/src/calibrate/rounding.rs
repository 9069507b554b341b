//! Rounding with feedback: GPTQ (Frantar et al. 2022) in the form of LDLQ (Chee et al. 2023, `QuIP`), which is the same.
//!
//! With `H = U D Uᵀ`, columns are rounded one after the other, each after it was moved by what the errors of those before it
//! make of it: `w_k + sum of (w_j - q_j) U_jk`. The error of the output is then the sum of `D_k` times the squared rounding
//! error of column `k`. Columns of much energy come first. Scales are fixed before, for blocks of columns as they lie in
//! the file.

use super::hessian::Moments;
use rayon::prelude::*;
use tidbit_runtime::quant::{BLOCK, Grid, PANEL_ROWS, QuantType, nearest_scale, row_scale, square};

/// What is added to the diagonal, in units of its mean; the next one when the factorization fails.
const DAMPING: [f64; 5] = [0.01, 0.03, 0.1, 0.3, 1.0];
/// Rows that are rounded together, so that each row of `U` is read once for all of them.
const TOGETHER: usize = 4 * PANEL_ROWS;

/// A matrix on a grid.
pub(crate) struct Rounded {
    /// Of each block, row by row.
    scales: Vec<i8>,
    row_scales: Vec<f32>,
    /// Row by row.
    codes: Vec<u8>,
    cols: usize,
}

/// A grid, and where its boundaries are.
pub(crate) struct Rounder {
    quant: QuantType,
    grid: &'static Grid,
    /// The code nearest to `i / 2` to `(i + 1) / 2`, from -128 on: boundaries are multiples of a half.
    nearest: Vec<u8>,
    largest: f32,
}

/// What the largest value of a block may map to, as a part of the largest entry.
const TRIALS: [f32; 14] = [0.68, 0.72, 0.76, 0.80, 0.84, 0.88, 0.91, 0.94, 0.97, 1.0, 1.03, 1.06, 1.1, 1.15];

impl Rounder {
    /// For an integer type.
    pub(crate) fn new(quant: QuantType) -> Option<Self> {
        let grid = quant.grid()?;
        let code = |half: i32| {
            // Just above the boundary that may be there.
            let value = half as f32 / 2.0 + 0.25;
            let distance = |e: i8| (f32::from(e) - value).abs();
            let entries = grid.entries.iter().enumerate();
            // Whole bytes are not ascending, and -128 is not used.
            let entries = entries.filter(|(_, e)| **e > -128);
            entries.min_by(|(_, a), (_, b)| distance(**a).total_cmp(&distance(**b))).map_or(0, |(code, _)| code as u8)
        };
        let largest = grid.entries.iter().map(|e| f32::from(*e).abs().min(127.0)).fold(0.0, f32::max);
        Some(Self { quant, grid, nearest: (-256..256).map(code).collect(), largest })
    }

    fn code(&self, value: f32) -> u8 {
        // Cut off above 0 rather than rounded down: that is a call of a function where processors are old.
        self.nearest[(value.clamp(-128.0, 127.5) * 2.0 + 256.0) as usize]
    }

    fn entry(&self, code: u8) -> f32 {
        f32::from(self.grid.entries[usize::from(code)])
    }

    /// The scale of a block with the least weighted error.
    fn scale(&self, values: &[f32], weights: &[f32]) -> f32 {
        let largest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
        if largest < 1e-30 {
            return 0.0;
        }
        let (mut best, mut gain) = (0.0, 0.0);
        for target in TRIALS {
            for sign in [1.0, -1.0] {
                let inverse = sign * target * self.largest / largest;
                let (mut xq, mut qq) = (0.0f32, 1e-30f32);
                for (&x, &h) in values.iter().zip(weights) {
                    let q = self.entry(self.code(x * inverse));
                    xq += h * x * q;
                    qq += h * q * q;
                }
                let gained = xq * xq / qq;
                if gained > gain {
                    (best, gain) = (xq / qq, gained);
                }
            }
        }
        best
    }

    /// Scales of a row, as the file holds them: the row's, and those of its blocks.
    fn scales(&self, row: &[f32], weights: &[f32]) -> (f32, Vec<i8>) {
        let scale = |(values, weights): (&[f32], &[f32])| self.scale(values, weights);
        let scales: Vec<f32> = row.chunks(BLOCK).zip(weights.chunks(BLOCK)).map(scale).collect();
        let unit = row_scale(scales.iter().fold(0.0, |m, s| m.max(s.abs())));
        (unit, scales.into_iter().map(|s| nearest_scale(s, unit)).collect())
    }

    /// Rounds `w` `[rows, cols]` to the nearest, with scales that weigh errors by the inputs' energy.
    pub(crate) fn nearest(&self, w: &[f32], energy: &[f32]) -> Rounded {
        self.round(w, energy, |row, steps, codes| {
            for (i, (&value, code)) in row.iter().zip(codes).enumerate() {
                *code = self.code(over(value, steps[i / BLOCK]));
            }
        })
    }

    /// Rounds `w` `[rows, cols]` with feedback.
    pub(crate) fn with_feedback(&self, w: &[f32], moments: &Moments) -> Rounded {
        let n = moments.n();
        let diagonal = moments.diagonal();
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]).then(a.cmp(&b)));
        let Some((u, d)) = DAMPING.into_iter().find_map(|damping| moments.factor(&order, damping)) else {
            let energy: Vec<f32> = diagonal.iter().map(|&d| d as f32).collect();
            return self.nearest(w, &energy);
        };
        let mut weights = vec![0.0; n];
        order.iter().zip(&d).for_each(|(&col, &d)| weights[col] = d as f32);
        let mut rounded = self.round(w, &weights, |_, _, _| {});
        let tasks = w.par_chunks(TOGETHER * n).zip(rounded.codes.par_chunks_mut(TOGETHER * n)).enumerate();
        let n_blocks = n.div_ceil(BLOCK);
        let (scales, row_scales) = (&rounded.scales, &rounded.row_scales);
        tasks.for_each(|(task, (w, codes))| {
            let rows = w.len() / n;
            let step = |row: usize, col: usize| {
                let row = task * TOGETHER + row;
                square(scales[row * n_blocks + col / BLOCK]) * row_scales[row]
            };
            let mut target: Vec<f32> =
                (0..rows).flat_map(|row| order.iter().map(move |&col| w[row * n + col])).collect();
            for (k, &col) in order.iter().enumerate() {
                let u = &u[k * n + k + 1..(k + 1) * n];
                for row in 0..rows {
                    let step = step(row, col);
                    let target = &mut target[row * n + k..(row + 1) * n];
                    let code = self.code(over(target[0], step));
                    codes[row * n + col] = code;
                    // All of its error, what it was moved by included.
                    let error = w[row * n + col] - step * self.entry(code);
                    target[1..].iter_mut().zip(u).for_each(|(t, u)| *t += error * u);
                }
            }
        });
        rounded
    }

    fn round(&self, w: &[f32], weights: &[f32], codes_of: impl Fn(&[f32], &[f32], &mut [u8]) + Sync) -> Rounded {
        let cols = weights.len();
        let mut codes = vec![0; w.len()];
        let of_row = |(row, codes): (&[f32], &mut [u8])| {
            let (unit, scales) = self.scales(row, weights);
            let steps: Vec<f32> = scales.iter().map(|&s| square(s) * unit).collect();
            codes_of(row, &steps, codes);
            (unit, scales)
        };
        let rows: Vec<(f32, Vec<i8>)> =
            w.par_chunks_exact(cols).zip(codes.par_chunks_exact_mut(cols)).map(of_row).collect();
        let row_scales = rows.iter().map(|(unit, _)| *unit).collect();
        Rounded { scales: rows.into_iter().flat_map(|(_, scales)| scales).collect(), row_scales, codes, cols }
    }

    /// What a row of a rounded matrix stands for.
    pub(crate) fn decode_row(&self, rounded: &Rounded, row: usize) -> Vec<f32> {
        let Rounded { scales, row_scales, codes, cols } = rounded;
        let scales = &scales[row * cols.div_ceil(BLOCK)..];
        let value = |(col, &code): (usize, &u8)| row_scales[row] * square(scales[col / BLOCK]) * self.entry(code);
        codes[row * cols..][..*cols].iter().enumerate().map(value).collect()
    }

    /// The panels of the file.
    pub(crate) fn encode(&self, rounded: &Rounded) -> Vec<u8> {
        let Rounded { scales, row_scales, codes, cols } = rounded;
        let rows = row_scales.len();
        let bytes = self.quant.matrix_bytes(rows, *cols).expect("a matrix that is in memory does not overflow");
        let mut out = vec![0; bytes];
        let panel_bytes = self.quant.panel_bytes(*cols).expect("as above");
        out.par_chunks_exact_mut(panel_bytes).enumerate().for_each(|(i, panel)| {
            let rows = i * PANEL_ROWS..rows.min((i + 1) * PANEL_ROWS);
            let n_blocks = cols.div_ceil(BLOCK);
            self.grid.write_panel(
                panel,
                &row_scales[rows.clone()],
                &scales[rows.start * n_blocks..rows.end * n_blocks],
                &codes[rows.start * cols..rows.end * cols],
            );
        });
        out
    }
}

/// `value / step`, 0 where there is no step.
fn over(value: f32, step: f32) -> f32 {
    if step == 0.0 { 0.0 } else { value / step }
}
