//! Token ids to rows of the residual stream.

use super::{Buffer, rows_per_task};
use crate::quant::Matrix;
use crate::spec::{Pairs, Sinusoidal};
use crate::threads::Pool;

/// Row `t` of `out` becomes the embedding of `ids[t]` times `scale`.
///
/// # Panics
/// When an id has no row, or shapes do not fit together.
pub fn embed(pool: &mut Pool, (tokens, scale): (&Matrix, f32), ids: &[u32], out: &mut Buffer) {
    let (cols, stride) = (out.cols(), out.stride());
    let rows = rows_per_task(pool, ids.len());
    pool.run_blocks(out.rows_mut(0..ids.len()), stride, rows, stride, &|rows, _, mut out| {
        for (i, t) in rows.enumerate() {
            let row = &mut out.row_mut(i)[..cols];
            tokens.decode_row(ids[t] as usize, row);
            if scale != 1.0 {
                for x in &mut *row {
                    *x *= scale;
                }
            }
        }
    });
}

/// Adds the embedding of `positions[t]` to row `t` of `out`.
///
/// # Panics
/// When a position has no row, or shapes do not fit together.
pub fn embed_positions(pool: &mut Pool, places: &Matrix, positions: &[usize], out: &mut Buffer) {
    let cols = out.cols();
    super::each_row(pool, (out, positions.len()), &|t, row| places.add_row(positions[t], &mut row[..cols]));
}

/// Adds the sines and cosines of `positions[t]` to row `t` of `out`.
///
/// # Panics
/// When there are fewer rows.
pub fn embed_sinusoids(pool: &mut Pool, of: &Sinusoidal, positions: &[usize], out: &mut Buffer) {
    let n = out.cols() / 2;
    super::each_row(pool, (out, positions.len()), &|t, row| {
        for i in 0..n {
            let angle = (positions[t] + of.offset) as f64 * of.frequency(i, n);
            let (sin, cos) = match of.pairs {
                Pairs::Halves => (i, n + i),
                Pairs::Interleaved => (2 * i, 2 * i + 1),
            };
            row[sin] += libm::sin(angle) as f32;
            row[cos] += libm::cos(angle) as f32;
        }
    });
}
