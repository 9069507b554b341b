//! The rows of a matrix `[out, in]` in f32, whatever the source: what the writer encodes.

use crate::checkpoint::{Dtype, Weights, read_range};
use crate::error::ConvertError;
use crate::family::Order;
use crate::mapping::Mapped;
use half::{bf16, f16};
use std::path::PathBuf;
use tidbit_runtime::format::Stored;

/// A tensor of the model, row by row. A vector has one column.
pub(crate) trait Rows: Sync {
    /// Writes the rows from `first` on into `out` `[n, cols]`.
    fn fill(&self, first: usize, cols: usize, out: &mut [f32]);

    /// The error for a value that cannot be stored, at its place in the source.
    fn refuse(&self, row: usize, col: usize, value: f32, stored: Stored) -> ConvertError;
}

/// A tensor of a checkpoint, in memory as it was in the file.
pub(crate) struct SourceRows {
    bytes: Vec<u8>,
    dtype: Dtype,
    order: Order,
    /// Rows of the whole matrix.
    rows: usize,
    heads: usize,
    path: PathBuf,
    name: String,
    vector: bool,
}

impl SourceRows {
    /// Reads a tensor.
    pub(crate) fn read(weights: &Weights, mapped: &Mapped, heads: usize) -> Result<Self, ConvertError> {
        let path = weights.path_of(&mapped.source);
        let source = &mapped.source;
        let length = source.bytes().ok_or_else(|| ConvertError::tensor(path, &mapped.name, "its size overflows"))?;
        let bytes = read_range(path, &mapped.name, source.offset, length)?;
        Ok(Self {
            bytes,
            dtype: source.dtype,
            order: mapped.order,
            rows: mapped.decl.shape.first().copied().unwrap_or(1),
            heads,
            path: path.into(),
            name: mapped.name.clone(),
            vector: mapped.decl.shape.len() == 1,
        })
    }

    /// The source's row that is our `row`.
    fn source_row(&self, row: usize) -> usize {
        match self.order {
            Order::Same | Order::Transposed => row,
            Order::FusedPerHead => {
                let head_dim = self.rows / (3 * self.heads);
                let (part, head, dim) = (row / (self.heads * head_dim), row / head_dim % self.heads, row % head_dim);
                (head * 3 + part) * head_dim + dim
            }
        }
    }
}

impl Rows for SourceRows {
    fn fill(&self, first: usize, cols: usize, out: &mut [f32]) {
        let n = out.len() / cols;
        if self.order == Order::Transposed {
            let mut column = [0.0; 64];
            for at in (0..n).step_by(column.len()) {
                let part = &mut column[..(n - at).min(64)];
                for col in 0..cols {
                    decode(self.dtype, &self.bytes, col * self.rows + first + at, part);
                    for (i, &value) in part.iter().enumerate() {
                        out[(at + i) * cols + col] = value;
                    }
                }
            }
            return;
        }
        for (i, row) in out.chunks_exact_mut(cols).enumerate() {
            decode(self.dtype, &self.bytes, self.source_row(first + i) * cols, row);
        }
    }

    fn refuse(&self, row: usize, col: usize, value: f32, stored: Stored) -> ConvertError {
        let (row, col) = if self.order == Order::Transposed { (col, row) } else { (self.source_row(row), col) };
        let place = if self.vector { format!("element {row}") } else { format!("row {row}, column {col}") };
        let reason = if value.is_finite() {
            format!("{place} is {value}, which cannot be stored as {stored}")
        } else {
            format!("{place} is {value}, expected a finite number")
        };
        ConvertError::tensor(&self.path, &self.name, reason)
    }
}

/// Decodes the elements from `first` on into `out`.
pub(crate) fn decode(dtype: Dtype, bytes: &[u8], first: usize, out: &mut [f32]) {
    match dtype {
        Dtype::F32 => {
            for (out, b) in out.iter_mut().zip(bytes[first * 4..].chunks_exact(4)) {
                *out = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
        Dtype::F16 => {
            for (out, b) in out.iter_mut().zip(bytes[first * 2..].chunks_exact(2)) {
                *out = f16::from_le_bytes([b[0], b[1]]).to_f32();
            }
        }
        Dtype::BF16 => {
            for (out, b) in out.iter_mut().zip(bytes[first * 2..].chunks_exact(2)) {
                *out = bf16::from_le_bytes([b[0], b[1]]).to_f32();
            }
        }
        other => unreachable!("{other} was refused when the checkpoint was mapped"),
    }
}
