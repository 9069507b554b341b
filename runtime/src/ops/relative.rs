//! Transformer-XL's positions (Dai et al. 2019, arXiv:1901.02860, section 3.3): distances have keys, too.
//!
//! The score of a query `q` and a key `k` that stands `d` positions before it is `(q + u) · k + (q + v) · W r_d`, times the scale:
//! `r_d` are sinusoids of the distance, and `W`, `u` and `v` are trained for each layer. The attention kernels know nothing of
//! it: each query runs by itself, with `u` added, and takes its products with the keys `W r_d` of all distances as a table of
//! biases. Those keys are the same for all texts and are computed once, when the first device of a model is made. The
//! products are sums in one order, of plain multiplications and additions, so their bits depend on nothing else. Kernels could
//! make them faster, as matrix products.

use super::matmul::{MatmulScratch, matmul};
use super::{Buffer, zeros};
use crate::error::SessionError;
use crate::kernels::{Biases, Epilogue, Kernels};
use crate::quant::{Matrix, PANEL_ROWS, QuantType};
use crate::spec::{Position, Spec, TransformerXl};
use crate::threads::Pool;
use std::sync::OnceLock;

/// What a layer knows of distances.
pub struct RelativeKeys {
    /// `W`, `[n_heads * head_dim, d_model]`.
    weight: Matrix,
    /// `u`, `[n_heads * head_dim]`, padded.
    content_bias: Vec<f32>,
    /// `v`, the same.
    position_bias: Vec<f32>,
    /// `W r_d` in columns, `[n_heads * head_dim, distances]`.
    keys: OnceLock<Buffer>,
    /// Each distance is a bucket of its own.
    buckets: Vec<u16>,
}

impl RelativeKeys {
    /// Of `W`, and of `u` and `v`.
    pub fn new(weight: Matrix, [content_bias, position_bias]: [Vec<f32>; 2], of: &TransformerXl) -> Self {
        let buckets = (0..of.distances()).map(|distance| distance as u16).collect();
        Self { weight, content_bias, position_bias, keys: OnceLock::new(), buckets }
    }

    /// Bytes of the keys of all layers.
    pub fn bytes_of(spec: &Spec) -> usize {
        match &spec.position {
            Position::TransformerXl(of) => {
                let rows = spec.n_layers * spec.attention.n_heads * spec.attention.head_dim;
                rows * of.distances().next_multiple_of(PANEL_ROWS) * size_of::<f32>()
            }
            _ => 0,
        }
    }

    /// Computes the keys of those `layers` of a model that have none yet; `of` and `d_model` are the model's.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn prepare<'a>(
        layers: impl Iterator<Item = &'a Self>,
        (kernels, pool): (Kernels, &mut Pool),
        (of, d_model): (&TransformerXl, usize),
    ) -> Result<(), SessionError> {
        let mut missing = layers.filter(|layer| layer.keys.get().is_none()).peekable();
        if missing.peek().is_some() {
            let sinusoids = sinusoids(of, d_model)?;
            for layer in missing {
                let keys = layer.products((kernels, &mut *pool), &sinusoids)?;
                // Another thread may have been faster; both computed the same.
                let _ = layer.keys.set(keys);
            }
        }
        Ok(())
    }

    fn products(&self, device: (Kernels, &mut Pool), sinusoids: &Matrix) -> Result<Buffer, SessionError> {
        let (n, d_model) = (self.weight.rows(), self.weight.cols());
        // As they are: a product with integers would round the sinusoids to 8 bits.
        let mut rows = Buffer::new(n, d_model)?;
        for row in 0..n {
            self.weight.decode_row(row, &mut rows.rows_mut(row..row + 1)[..d_model]);
        }
        let mut keys = Buffer::new(n, sinusoids.rows())?;
        let mut no_integers = MatmulScratch::new(0, 0)?;
        matmul(device, &mut no_integers, (sinusoids, None), (&rows, 0..n), Epilogue::Store, &mut keys);
        Ok(keys)
    }

    /// A query of head `head` as it meets the keys of a text, and the biases of their scores: its products with the keys of the
    /// first `n` distances, times `scale`. Further ones are as the last.
    ///
    /// # Panics
    /// When the keys are not [prepared](Self::prepare), or there is no such head.
    pub(super) fn meet<'a>(
        &'a self,
        (head, query): (usize, &[f32]),
        (n, scale): (usize, f32),
        room: &'a mut Vec<f32>,
    ) -> (&'a [f32], Biases<'a>) {
        let keys = self.keys.get().expect("the device was made for this model");
        let n = n.min(keys.cols());
        room.clear();
        room.resize(query.len() + n, 0.0);
        let (met, values) = room.split_at_mut(query.len());
        for (i, &x) in query.iter().enumerate() {
            let dim = head * query.len() + i;
            met[i] = x + self.content_bias[dim];
            let x = scale * (x + self.position_bias[dim]);
            for (value, key) in values.iter_mut().zip(keys.row(dim)) {
                *value += x * key;
            }
        }
        (met, Biases { values, buckets: &self.buckets[..n], zero: 0, before: 0 })
    }
}

/// The sinusoids of all distances, `[distances, d_model]`: sines, then cosines.
fn sinusoids(of: &TransformerXl, d_model: usize) -> Result<Matrix, SessionError> {
    let mut rows = zeros(of.distances().saturating_mul(d_model), 0.0, "sinusoids of distances")?;
    let frequencies: Vec<f64> = (0..d_model / 2).map(|i| TransformerXl::frequency(i, d_model)).collect();
    for (distance, row) in rows.chunks_exact_mut(d_model).enumerate() {
        let (sines, cosines) = row.split_at_mut(d_model / 2);
        for ((sin, cos), frequency) in sines.iter_mut().zip(cosines).zip(&frequencies) {
            let angle = distance as f64 * frequency;
            (*sin, *cos) = (libm::sin(angle) as f32, libm::cos(angle) as f32);
        }
    }
    Ok(Matrix::encode(QuantType::F32, of.distances(), d_model, &rows).expect("f32 holds every sine"))
}
