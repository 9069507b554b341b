//! Arithmetic on rows of activations, element by element.

use super::{Buffer, rows_per_task};
use crate::threads::Pool;
use std::ops::Range;

/// Changes each of the first `n_tokens` rows of `x`, padding included.
///
/// # Panics
/// When there are fewer rows.
pub fn each_row(pool: &mut Pool, (x, n_tokens): (&mut Buffer, usize), change: &(dyn Fn(usize, &mut [f32]) + Sync)) {
    let stride = x.stride();
    let rows = rows_per_task(pool, n_tokens);
    pool.run_blocks(x.rows_mut(0..n_tokens), stride, rows, stride, &|rows, _, mut x| {
        for (i, row) in rows.enumerate() {
            change(row, x.row_mut(i));
        }
    });
}

/// Adds the first `n_tokens` rows of `x` to those of `out`.
///
/// # Panics
/// When shapes do not fit together.
pub fn add(pool: &mut Pool, (x, n_tokens): (&Buffer, usize), out: &mut Buffer) {
    assert_eq!(x.cols(), out.cols(), "both sides of a sum");
    each_row(pool, (out, n_tokens), &|row, out| {
        out.iter_mut().zip(x.row(row)).for_each(|(sum, x)| *sum += x);
    });
}

/// Rows `at..` of `out` become rows `tokens` of `x`.
///
/// # Panics
/// When shapes do not fit together.
pub fn copy((x, tokens): (&Buffer, Range<usize>), (out, at): (&mut Buffer, usize)) {
    assert_eq!(x.cols(), out.cols(), "both sides of a copy");
    let n = tokens.len();
    out.rows_mut(at..at + n).copy_from_slice(x.rows(tokens));
}
