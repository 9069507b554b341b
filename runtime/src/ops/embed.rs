//! Token ids to rows of the residual stream.

use super::{Buffer, rows_per_task};
use crate::quant::Matrix;
use crate::threads::Pool;

/// Row `t` of `out` becomes the embedding of `ids[t]`, plus the embedding of `positions[t]` if there is a table of those.
///
/// # Panics
/// When an id or position has no row, or shapes do not fit together.
pub fn embed(
    pool: &mut Pool,
    (tokens, places): (&Matrix, Option<&Matrix>),
    (ids, positions): (&[u32], &[usize]),
    out: &mut Buffer,
) {
    let (cols, stride) = (out.cols(), out.stride());
    let rows = rows_per_task(pool, ids.len());
    pool.run_blocks(out.rows_mut(0..ids.len()), stride, rows, stride, &|rows, _, mut out| {
        for (i, t) in rows.enumerate() {
            let row = &mut out.row_mut(i)[..cols];
            match places {
                None => tokens.decode_row(ids[t] as usize, row),
                Some(places) => {
                    places.decode_row(positions[t], row);
                    tokens.add_row(ids[t] as usize, row);
                }
            }
        }
    });
}
