//! Normalization of rows, and of heads inside rows.

use super::{Buffer, rows_per_task};
use crate::kernels::Kernels;
use crate::spec::NormKind;
use crate::threads::Pool;
use std::ops::Range;

/// Normalizes rows `tokens` of `x` into rows `at..` of `out`.
///
/// # Panics
/// When shapes do not fit together.
pub fn norm(
    (kernels, pool): (Kernels, &mut Pool),
    (kind, eps, weights): (NormKind, f32, (&[f32], &[f32])),
    (x, tokens): (&Buffer, Range<usize>),
    (out, at): (&mut Buffer, usize),
) {
    assert_eq!(x.cols(), out.cols(), "input and output of a normalization");
    let (n_tokens, cols, stride) = (tokens.len(), x.cols(), x.stride());
    let source = x.rows(tokens);
    let rows = rows_per_task(pool, n_tokens);
    pool.run_blocks(out.rows_mut(at..at + n_tokens), stride, rows, stride, &|rows, _, mut out| {
        for (i, row) in rows.enumerate() {
            kernels.norm(kind, &source[row * stride..][..cols], weights, eps, &mut out.row_mut(i)[..cols]);
        }
    });
}

/// Normalizes, in place, columns `cols` of the first `n_tokens` rows of `x`, `group` of them at a time. Gain and bias are
/// those of `each` column, or serve all groups.
///
/// # Panics
/// When shapes do not fit together.
pub fn norm_groups(
    (kernels, pool): (Kernels, &mut Pool),
    (kind, eps, (gain, bias)): (NormKind, f32, (&[f32], &[f32])),
    (x, n_tokens): (&mut Buffer, usize),
    (cols, group, each): (Range<usize>, usize, bool),
) {
    let stride = x.stride();
    let rows = rows_per_task(pool, n_tokens);
    pool.run_blocks(x.rows_mut(0..n_tokens), stride, rows, stride, &|rows, _, mut x| {
        for i in 0..rows.len() {
            for (g, group_cols) in x.row_mut(i)[cols.clone()].chunks_exact_mut(group).enumerate() {
                let at = if each { g * group } else { 0 };
                kernels.norm_in_place(kind, group_cols, (&gain[at..], &bias[at..]), eps);
            }
        }
    });
}
