//! Safe, shape-asserting operations on activations: a kernel, spread over the pool.
//!
//! Activations are row-major, one row per token, in [`Buffer`]s whose rows are padded to 16 elements.

#![forbid(unsafe_code)]

mod attention;
mod embed;
mod linear_attention;
mod matmul;
mod norm;
mod relative;
mod rotary;
mod rows;

pub use attention::{Sees, attention};
pub use embed::{embed, embed_positions, embed_sinusoids};
pub use linear_attention::linear_attention;
pub use matmul::{MatmulScratch, matmul};
pub use norm::{norm, norm_groups};
pub use relative::RelativeKeys;
pub use rotary::Rotation;
pub use rows::{add, copy, each_row};

use crate::error::SessionError;
use crate::quant::PANEL_ROWS;
use crate::storage::{self, Zeros};
use crate::threads::Pool;

/// A matrix of activations `[tokens, cols]`.
#[derive(Debug)]
pub struct Buffer {
    data: Zeros<f32>,
    cols: usize,
    stride: usize,
}

impl Buffer {
    /// Zeros for up to `max_tokens` rows of `cols`.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(max_tokens: usize, cols: usize) -> Result<Self, SessionError> {
        let stride = cols.next_multiple_of(PANEL_ROWS);
        let len = max_tokens.saturating_mul(stride);
        let data = Zeros::new(len).map_err(|source| SessionError::Memory {
            bytes: len.saturating_mul(4),
            what: "activations",
            source,
        })?;
        Ok(Self { data, cols, stride })
    }

    /// Elements of a row that mean something.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements from one row to the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Rows there is room for.
    pub fn max_rows(&self) -> usize {
        self.data.len().checked_div(self.stride).unwrap_or(0)
    }

    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        self.data.len() * 4
    }

    /// Row `token`, without padding.
    pub fn row(&self, token: usize) -> &[f32] {
        &self.data[token * self.stride..][..self.cols]
    }

    /// Rows `tokens`, with their padding.
    pub fn rows(&self, tokens: std::ops::Range<usize>) -> &[f32] {
        &self.data[tokens.start * self.stride..tokens.end * self.stride]
    }

    /// Rows `tokens`, with their padding.
    pub fn rows_mut(&mut self, tokens: std::ops::Range<usize>) -> &mut [f32] {
        &mut self.data[tokens.start * self.stride..tokens.end * self.stride]
    }
}

/// `len` times `zero`, or an error instead of an abort: sizes come from a model file.
fn zeros<T: Clone>(len: usize, zero: T, what: &'static str) -> Result<Vec<T>, SessionError> {
    let mut data = Vec::new();
    let reserved = data.try_reserve_exact(len).map_err(|_| std::io::ErrorKind::OutOfMemory.into());
    reserved.and_then(|()| storage::ensure(0)).map_err(|source| {
        let bytes = len.saturating_mul(size_of::<T>());
        SessionError::Memory { bytes, what, source }
    })?;
    data.resize(len, zero);
    Ok(data)
}

/// Rows per task when each row is a little work: a few tasks per thread, so that none waits long for the last.
fn rows_per_task(pool: &Pool, n_rows: usize) -> usize {
    n_rows.div_ceil(pool.n_threads() * 4).max(1)
}
