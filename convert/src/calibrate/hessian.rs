//! Second moments of what goes into a matrix: `H = sum of x xᵀ`, half the Hessian of the squared error of its output.
//!
//! All sums have one order, whatever the threads and the instruction set: products run through the runtime's kernels, and the
//! factorization is element-wise loops of plain Rust, whose operations are those of IEEE 754.

use rayon::prelude::*;
use std::ops::Range;
use tidbit_runtime::backend::Epilogue;
use tidbit_runtime::error::SessionError;
use tidbit_runtime::kernels::Kernels;
use tidbit_runtime::ops::{self, Buffer, MatmulScratch};
use tidbit_runtime::quant::{Matrix, QuantType};
use tidbit_runtime::threads::Pool;

/// Columns that are eliminated together.
const STRIP: usize = 64;

/// The sum, `[n, n]`.
pub(crate) struct Hessian {
    sums: Buffer,
    tokens: usize,
}

impl Hessian {
    pub(crate) fn new(n: usize) -> Result<Self, SessionError> {
        Ok(Self { sums: Buffer::new(n, n)?, tokens: 0 })
    }

    /// Columns.
    pub(crate) fn n(&self) -> usize {
        self.sums.cols()
    }

    /// Vectors so far.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Adds some rows of `x`.
    pub(crate) fn add(&mut self, device: (Kernels, &mut Pool), x: &Buffer, tokens: Range<usize>) {
        let (n, n_tokens) = (self.n(), tokens.len());
        // Turned, so that the products are sums over tokens.
        let mut turned = vec![0.0; n * n_tokens];
        for (t, token) in tokens.enumerate() {
            for (col, &value) in x.row(token).iter().enumerate() {
                turned[col * n_tokens + t] = value;
            }
        }
        let (Ok(w), Ok(mut rows), Ok(mut scratch)) =
            (Matrix::encode(QuantType::F32, n, n_tokens, &turned), Buffer::new(n, n_tokens), MatmulScratch::new(1, 1))
        else {
            // Activations that are not finite teach nothing.
            return;
        };
        for (col, values) in turned.chunks_exact(n_tokens).enumerate() {
            rows.rows_mut(col..col + 1)[..n_tokens].copy_from_slice(values);
        }
        ops::matmul(device, &mut scratch, (&w, None), (&rows, 0..n), Epilogue::Add, &mut self.sums);
        self.tokens += n_tokens;
    }

    /// `x_i x_j` on average.
    pub(crate) fn mean(&self) -> Moments {
        let n = self.n();
        let per = 1.0 / self.tokens.max(1) as f64;
        let values = (0..n).flat_map(|i| self.sums.row(i).iter().map(move |&v| f64::from(v) * per)).collect();
        Moments { n, values }
    }
}

/// In eight sums, which the compiler can keep side by side.
fn dot(a: &[f64], b: &[f32]) -> f64 {
    let mut sums = [0.0; 8];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..8 {
            sums[i] += a[i] * f64::from(b[i]);
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, &b)| a * f64::from(b)).sum();
    sums.iter().sum::<f64>() + rest
}

/// A symmetric matrix of second moments.
#[derive(Clone)]
pub(crate) struct Moments {
    n: usize,
    values: Vec<f64>,
}

impl Moments {
    pub(crate) fn n(&self) -> usize {
        self.n
    }

    pub(crate) fn row(&self, i: usize) -> &[f64] {
        &self.values[i * self.n..][..self.n]
    }

    pub(crate) fn diagonal(&self) -> Vec<f64> {
        (0..self.n).map(|i| self.values[i * self.n + i]).collect()
    }

    /// Of inputs divided by `scales`.
    pub(crate) fn divided(&self, scales: &[f32]) -> Self {
        let mut values = self.values.clone();
        for (i, row) in values.chunks_exact_mut(self.n).enumerate() {
            for (value, &scale) in row.iter_mut().zip(scales) {
                *value /= f64::from(scale) * f64::from(scales[i]);
            }
        }
        Self { n: self.n, values }
    }

    /// The sum of `e H eᵀ` over rows `e` of `errors`.
    pub(crate) fn weigh(&self, errors: &[f32]) -> f64 {
        let of_row = |e: &[f32]| {
            let mut sum = 0.0;
            for (i, &a) in e.iter().enumerate() {
                if a != 0.0 {
                    sum += f64::from(a) * dot(self.row(i), e);
                }
            }
            sum
        };
        // Collected first: the order of the sum must not depend on the threads.
        errors.par_chunks(self.n).map(of_row).collect::<Vec<_>>().into_iter().sum()
    }

    /// `U` and `D` of `H + damping * mean of the diagonal = U D Uᵀ`, rows and columns in the given order; `U` has ones on its
    /// diagonal and zeros below. `None` when a `D` is not above 0.
    pub(crate) fn factor(&self, order: &[usize], damping: f64) -> Option<(Vec<f32>, Vec<f64>)> {
        let n = self.n;
        let diagonal = self.diagonal();
        let more = damping * (diagonal.iter().sum::<f64>() / n.max(1) as f64).max(1e-30);
        // The lower triangle: `a[i][j]` for `j <= i`.
        let mut a: Vec<f64> = vec![0.0; n * n];
        for (i, row) in a.chunks_exact_mut(n.max(1)).enumerate() {
            let source = self.row(order[i]);
            row[..=i].iter_mut().zip(order).for_each(|(out, &j)| *out = source[j]);
            row[i] += more;
        }
        let (mut u, mut d) = (vec![0.0; n * n], vec![0.0; n]);
        let mut end = n;
        while end > 0 {
            let start = end.saturating_sub(STRIP);
            // Column `k` of `U`, above its one, and the same times `D`, for each `k` of the strip.
            let mut strip = vec![0.0; (end - start) * n];
            for k in (start..end).rev() {
                let pivot = a[k * n + k];
                if !(pivot > 0.0 && pivot.is_finite()) {
                    return None;
                }
                d[k] = pivot;
                let column: Vec<f64> = a[k * n..k * n + k].iter().map(|v| v / pivot).collect();
                // The rest of the strip now, what is above it later.
                for i in start..k {
                    let factor = column[i] * pivot;
                    let row = &mut a[i * n..=i * n + i];
                    row.iter_mut().zip(&column).for_each(|(v, c)| *v -= factor * c);
                }
                for (i, &c) in column.iter().enumerate() {
                    u[i * n + k] = c as f32;
                }
                u[k * n + k] = 1.0;
                strip[(k - start) * n..][..k].copy_from_slice(&column);
            }
            let (above, _) = a.split_at_mut(start * n);
            above.par_chunks_exact_mut(n).enumerate().for_each(|(i, row)| {
                for k in (start..end).rev() {
                    let column = &strip[(k - start) * n..][..n];
                    let factor = column[i] * d[k];
                    row[..=i].iter_mut().zip(column).for_each(|(v, c)| *v -= factor * c);
                }
            });
            end = start;
        }
        Some((u, d))
    }
}
