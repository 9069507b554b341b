//! The rows of a matrix `[out, in]`, whatever the source: what the writer encodes.

use crate::checkpoint::gguf::Blocks;
use crate::checkpoint::{Dtype, Weights};
use crate::error::ConvertError;
use crate::family::Order;
use crate::mapping::Mapped;
use crate::stream::Buffer;
use std::ops::Range;
use std::path::PathBuf;
use tidbit_runtime::format::Stored;
use tidbit_runtime::kernels::{Element, Layout, Source};
use tidbit_runtime::spec::Attention;

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

/// A tensor of a checkpoint, in memory as it was in the file; or several, one after the other.
pub(crate) struct SourceRows {
    parts: Vec<Part>,
    order: Order,
    /// Rows of the whole matrix.
    rows: usize,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    vector: bool,
}

/// A source tensor.
struct Part {
    bytes: Buffer,
    element: Element,
    /// What its elements are unpacked from, if so.
    blocks: Option<Blocks>,
    /// How many of our rows it has.
    rows: usize,
    path: PathBuf,
    name: String,
}

impl Part {
    /// Appends a row of `cols` elements.
    fn push_row(&self, row: usize, cols: usize, out: &mut Vec<f32>) {
        if let Some(blocks) = self.blocks {
            let bytes = cols / blocks.weights() * blocks.bytes();
            return blocks.unpack(&self.bytes[row * bytes..(row + 1) * bytes], out);
        }
        let width = self.element.bytes();
        let row = &self.bytes[row * cols * width..(row + 1) * cols * width];
        out.extend(row.chunks_exact(width).map(|bytes| self.element.read(bytes)));
    }
}

/// Which of queries, keys and values are not turned.
const VALUES: usize = 2;

impl SourceRows {
    /// A tensor whose parts have been read.
    pub(crate) fn new(weights: &Weights, mapped: &Mapped, attention: &Attention, parts: Vec<Buffer>) -> Self {
        assert_eq!(parts.len(), mapped.parts.len(), "all parts of a tensor");
        let part = |(bytes, part): (Buffer, &crate::mapping::Part)| Part {
            bytes,
            element: element(part.source.dtype),
            blocks: part.source.blocks,
            rows: part.rows,
            path: weights.path_of(&part.source).into(),
            name: part.name.clone(),
        };
        let vector = mapped.decl.shape.len() == 1;
        Self {
            parts: parts.into_iter().zip(&mapped.parts).map(part).collect(),
            order: if vector && mapped.order == Order::Transposed { Order::Same } else { mapped.order },
            rows: mapped.decl.shape.first().copied().unwrap_or(1),
            n_heads: attention.n_heads,
            n_kv_heads: attention.n_kv_heads,
            head_dim: attention.head_dim,
            vector,
        }
    }

    /// The part that has our `row`, and its row there.
    fn place(&self, row: usize) -> (usize, usize) {
        match self.order {
            Order::Same | Order::Transposed | Order::LessOne => (0, row),
            Order::After(skipped) | Order::AfterAndKind(skipped) => (0, skipped + row),
            Order::Grouped => {
                let (head, dim) = (row / self.head_dim, row % self.head_dim);
                let shared = self.n_heads / self.n_kv_heads;
                // A group has its queries, a key and a value.
                let (group, slot) = match head.checked_sub(self.n_heads) {
                    None => (head / shared, head % shared),
                    Some(other) => (other % self.n_kv_heads, shared + other / self.n_kv_heads),
                };
                (0, (group * (shared + 2) + slot) * self.head_dim + dim)
            }
            Order::QueryKeyValue | Order::KeyValue | Order::ByHead => self.part_of(row),
            Order::PairsKeyValue => {
                let (part, row) = self.part_of(row);
                if part == VALUES {
                    return (part, row);
                }
                let (head, dim) = (row / self.head_dim, row % self.head_dim);
                let half = self.head_dim / 2;
                (part, head * self.head_dim + dim % half * 2 + dim / half)
            }
        }
    }

    /// The part that has a row when they follow each other, and which of its rows it is.
    fn part_of(&self, mut row: usize) -> (usize, usize) {
        for (i, part) in self.parts.iter().enumerate() {
            match row.checked_sub(part.rows) {
                Some(later) => row = later,
                None => return (i, row),
            }
        }
        unreachable!("the parts have all rows");
    }
}

impl Rows for SourceRows {
    fn source<'a>(&'a self, rows: Range<usize>, cols: usize, scratch: &'a mut Scratch) -> Source<'a> {
        let Scratch { values, starts } = scratch;
        let (first, _) = self.place(rows.start);
        let (last, _) = self.place(rows.end.max(1) - 1);
        let part = &self.parts[first];
        if self.order == Order::Transposed {
            let layout = Layout::Columns { first: rows.start, stride: self.rows };
            return Source { bytes: &part.bytes, element: part.element, layout };
        }
        starts.clear();
        let changed = matches!(self.order, Order::LessOne | Order::AfterAndKind(_));
        if first == last && !changed && part.blocks.is_none() {
            starts.extend(rows.map(|row| self.place(row).1 * cols));
            return Source { bytes: &part.bytes, element: part.element, layout: Layout::Rows { starts } };
        }
        // Rows of several parts, of blocks, or with something added: a copy.
        values.clear();
        starts.extend((0..rows.len()).map(|row| row * cols));
        for row in rows {
            let (part, row) = self.place(row);
            self.parts[part].push_row(row, cols, values);
        }
        if let (Order::AfterAndKind(_), Some(kinds)) = (self.order, self.parts.get(1)) {
            let mut kind = Vec::with_capacity(cols);
            kinds.push_row(0, cols, &mut kind);
            for row in values.chunks_exact_mut(cols.max(1)) {
                row.iter_mut().zip(&kind).for_each(|(value, kind)| *value += kind);
            }
        }
        if self.order == Order::LessOne {
            for value in values.iter_mut() {
                *value += 1.0;
            }
        }
        Source { bytes: bytemuck::must_cast_slice(values), element: Element::F32, layout: Layout::Rows { starts } }
    }

    fn refuse(&self, row: usize, col: usize, value: f32, stored: Stored) -> ConvertError {
        let (part, source_row) = self.place(row);
        let (row, col) = if self.order == Order::Transposed { (col, row) } else { (source_row, col) };
        let place = if self.vector { format!("element {row}") } else { format!("row {row}, column {col}") };
        let reason = if value.is_finite() {
            format!("{place} is {value}, which cannot be stored as {stored}")
        } else {
            format!("{place} is {value}, expected a finite number")
        };
        let Part { path, name, .. } = &self.parts[part];
        ConvertError::tensor(path, name, reason)
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
