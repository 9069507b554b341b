//! Normalization of each row.

use super::{Buffer, rows_per_task};
use crate::kernels::Kernels;
use crate::threads::Pool;
use std::ops::Range;

/// Layer normalization of rows `tokens` of `x` into rows `at..` of `out`; `weight` and `bias` are padded to 16.
///
/// # Panics
/// When shapes do not fit together.
pub fn layer_norm(
    (kernels, pool): (Kernels, &mut Pool),
    (weight, bias, eps): (&[f32], &[f32], f32),
    (x, tokens): (&Buffer, Range<usize>),
    (out, at): (&mut Buffer, usize),
) {
    assert_eq!(x.cols(), out.cols(), "input and output of a normalization");
    let (n_tokens, cols, stride) = (tokens.len(), x.cols(), x.stride());
    let source = x.rows(tokens);
    let rows = rows_per_task(pool, n_tokens);
    pool.run_blocks(out.rows_mut(at..at + n_tokens), stride, rows, stride, &|rows, _, mut out| {
        for (i, row) in rows.enumerate() {
            kernels.layer_norm(&source[row * stride..][..cols], weight, bias, eps, out.row_mut(i));
        }
    });
}
