//! Quant types: how a weight matrix lies in the file, and how it gets there and back.
//!
//! Every type stores a matrix `[rows, cols]` as **panels** of [`PANEL_ROWS`] = 16 rows, the last one
//! padded with zero rows. Inside a panel the values are interleaved as the kernels read them, so a
//! model file is used in place. Each file of this folder holds one type: its layout and decoder. Encoders and dot
//! products live in `kernels`.
//!
//! Block types (`q8`, `q4`) lead a panel with all its scales and follow with all its values. Scales
//! in front of each block (288 bytes for `q4`) would make every second block straddle cache lines;
//! with a prefetch 4 KiB ahead the panel form read 15.5 GB/s where that one read 12.6 (80 MiB,
//! one thread), and without prefetch they are within 10 %.

#![forbid(unsafe_code)]

mod f16;
mod f32;
mod q4;
mod q8;

pub use q4::CODEBOOK as Q4_CODEBOOK;

use crate::storage::{ALIGN, Bytes};
use serde::{Deserialize, Serialize};

/// Rows of a panel: the f32 lanes of one AVX-512 register.
pub const PANEL_ROWS: usize = 16;
/// Columns that share a scale in the block types.
pub const BLOCK: usize = 32;

/// Identifies the interleaving of panels in the file.
pub const TILE_ID: &str = "panel16x4";

/// How the values of a weight matrix are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QuantType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// 8-bit integers, an f16 scale per block of 32: 8.5 bits per weight.
    Q8,
    /// 4-bit indices into a fixed table, an f16 scale per block of 32: 4.5 bits per weight.
    Q4,
}

/// A value that a type cannot hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Unrepresentable {
    /// Row.
    pub row: usize,
    /// Column.
    pub col: usize,
    /// The value.
    pub value: f32,
}

/// What a quant type provides.
struct Codec {
    name: &'static str,
    /// Bytes of a panel of `cols` columns before rounding up to [`ALIGN`].
    panel_bytes: fn(cols: usize) -> Option<usize>,
    /// Adds row `row` of a panel to `out` `[cols]`.
    add_row: fn(panel: &[u8], cols: usize, row: usize, out: &mut [f32]),
    /// Whether the kernels multiply it as integers (activations are quantized) or as floats.
    integer: bool,
}

impl QuantType {
    /// Every type, most precise first.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Q8, Self::Q4];

    fn codec(self) -> &'static Codec {
        match self {
            Self::F32 => &f32::CODEC,
            Self::F16 => &f16::CODEC,
            Self::Q8 => &q8::CODEC,
            Self::Q4 => &q4::CODEC,
        }
    }

    /// The name people use, e.g. `q4`.
    pub fn name(self) -> &'static str {
        self.codec().name
    }

    /// The type called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name() == name)
    }

    /// Whether the kernels multiply it as integers (and so quantize the activations).
    pub fn is_integer(self) -> bool {
        self.codec().integer
    }

    /// Bytes of one panel of `cols` columns: a multiple of 64. `None` when it overflows.
    pub fn panel_bytes(self, cols: usize) -> Option<usize> {
        (self.codec().panel_bytes)(cols)?.checked_next_multiple_of(ALIGN)
    }

    /// Bytes of a matrix `[rows, cols]`: a multiple of 64. `None` when it overflows.
    pub fn matrix_bytes(self, rows: usize, cols: usize) -> Option<usize> {
        self.panel_bytes(cols)?.checked_mul(rows.div_ceil(PANEL_ROWS))
    }
}

impl std::fmt::Display for QuantType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// A weight matrix in place.
#[derive(Clone, Debug)]
pub struct Matrix {
    quant: QuantType,
    rows: usize,
    cols: usize,
    panel_bytes: usize,
    data: Bytes,
}

impl Matrix {
    /// A matrix `[rows, cols]` over `data`.
    ///
    /// # Errors
    /// A message with both values when `data` has not exactly the bytes the shape needs.
    pub fn new(quant: QuantType, rows: usize, cols: usize, data: Bytes) -> Result<Self, String> {
        let bytes = quant.matrix_bytes(rows, cols).ok_or_else(|| format!("shape [{rows}, {cols}] overflows"))?;
        if data.len() != bytes {
            return Err(format!("[{rows}, {cols}] in {quant} needs {bytes} bytes, found {}", data.len()));
        }
        if data.as_ptr().align_offset(ALIGN) != 0 {
            return Err(format!("not aligned to {ALIGN} bytes"));
        }
        let panel_bytes = quant.panel_bytes(cols).unwrap_or(0);
        Ok(Self { quant, rows, cols, panel_bytes, data })
    }

    /// How the values are stored.
    pub fn quant(&self) -> QuantType {
        self.quant
    }

    /// Output dimension.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input dimension.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Number of panels.
    pub fn n_panels(&self) -> usize {
        self.rows.div_ceil(PANEL_ROWS)
    }

    /// Bytes of one panel.
    pub fn panel_bytes(&self) -> usize {
        self.panel_bytes
    }

    /// All panels.
    pub fn bytes(&self) -> &[u8] {
        &self.data
    }

    /// Decodes row `row` into `out` `[cols]`.
    ///
    /// # Panics
    /// When `row` is out of range or `out` has another length.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        out.fill(0.0);
        self.add_row(row, out);
    }

    /// Adds row `row` to `out` `[cols]`.
    ///
    /// # Panics
    /// When `row` is out of range or `out` has another length.
    pub fn add_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert_eq!(out.len(), self.cols);
        let panel = &self.data[row / PANEL_ROWS * self.panel_bytes..][..self.panel_bytes];
        (self.quant.codec().add_row)(panel, self.cols, row % PANEL_ROWS, out);
    }
}

/// Where the parts of a block-type panel lie: `n_blocks * 16` f16 scales, padded to a cache line, then
/// `n_blocks` blocks of `block_bytes`.
#[derive(Clone, Copy)]
pub(crate) struct BlockPanel {
    pub(crate) n_blocks: usize,
    pub(crate) values_at: usize,
    pub(crate) bytes: usize,
}

impl BlockPanel {
    pub(crate) fn new(cols: usize, block_bytes: usize) -> Option<Self> {
        let n_blocks = cols.div_ceil(BLOCK);
        let values_at = n_blocks.checked_mul(PANEL_ROWS * 2)?.checked_next_multiple_of(ALIGN)?;
        Some(Self { n_blocks, values_at, bytes: values_at.checked_add(n_blocks.checked_mul(block_bytes)?)? })
    }

    /// Byte offset of the scale of `row` in `block`.
    fn scale_at(block: usize, row: usize) -> usize {
        (block * PANEL_ROWS + row) * 2
    }

    fn scale(panel: &[u8], block: usize, row: usize) -> f32 {
        let at = Self::scale_at(block, row);
        half::f16::from_le_bytes([panel[at], panel[at + 1]]).to_f32()
    }
}

/// Byte offset of column `col` (0 to 31) of `row` in a block of bytes: groups of 4 columns, 64 bytes each.
fn group_offset(row: usize, col: usize) -> usize {
    col / 4 * 64 + row * 4 + col % 4
}

#[cfg(test)]
mod tests;
