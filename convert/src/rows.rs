//! The rows of a matrix `[out, in]`, whatever the source: what the writer encodes.

use crate::checkpoint::{Dtype, Weights};
use crate::error::ConvertError;
use crate::family::Order;
use crate::mapping::Mapped;
use crate::stream::Buffer;
use std::ops::Range;
use std::path::PathBuf;
use tidbit_runtime::format::Stored;
use tidbit_runtime::kernels::{Element, Layout, Source};

/// A tensor of the model. A vector has one column.
pub(crate) trait Rows: Sync {
    /// Some rows of `cols` elements, in place or in `scratch`.
    fn source<'a>(&'a self, rows: Range<usize>, cols: usize, scratch: &'a mut Scratch) -> Source<'a>;

    /// The error for a value that cannot be stored, at its place in the source.
    fn refuse(&self, row: usize, col: usize, value: f32, stored: Stored) -> ConvertError;
}

/// Buffers of a thread that asks for rows.
#[derive(Default)]
pub(crate) struct Scratch {
    pub(crate) values: Vec<f32>,
    pub(crate) starts: Vec<usize>,
}

/// A tensor of a checkpoint, in memory as it was in the file.
pub(crate) struct SourceRows {
    bytes: Buffer,
    element: Element,
    order: Order,
    /// Rows of the whole matrix.
    rows: usize,
    heads: usize,
    path: PathBuf,
    name: String,
    vector: bool,
}

impl SourceRows {
    /// A tensor that has been read.
    pub(crate) fn new(weights: &Weights, mapped: &Mapped, heads: usize, bytes: Buffer) -> Self {
        Self {
            bytes,
            element: element(mapped.source.dtype),
            order: mapped.order,
            rows: mapped.decl.shape.first().copied().unwrap_or(1),
            heads,
            path: weights.path_of(&mapped.source).into(),
            name: mapped.name.clone(),
            vector: mapped.decl.shape.len() == 1,
        }
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
    fn source<'a>(&'a self, rows: Range<usize>, cols: usize, scratch: &'a mut Scratch) -> Source<'a> {
        let layout = if self.order == Order::Transposed {
            Layout::Columns { first: rows.start, stride: self.rows }
        } else {
            scratch.starts.clear();
            scratch.starts.extend(rows.map(|row| self.source_row(row) * cols));
            Layout::Rows { starts: &scratch.starts }
        };
        Source { bytes: &self.bytes, element: self.element, layout }
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

/// The type of a tensor's elements.
pub(crate) fn element(dtype: Dtype) -> Element {
    match dtype {
        Dtype::F32 => Element::F32,
        Dtype::F16 => Element::F16,
        Dtype::BF16 => Element::BF16,
        other => unreachable!("{other} was refused when the checkpoint was mapped"),
    }
}
