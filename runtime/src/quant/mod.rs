//! Quant types: how a weight matrix lies in the file, and how it gets there and back.
//!
//! Every type stores a matrix `[rows, cols]` as **panels** of [`PANEL_ROWS`] = 16 rows, the last one
//! padded with zero rows. Inside a panel the values are interleaved as the kernels read them, so a
//! model file is used in place. Each file of this folder holds one type: its layout and decoder. Encoders and dot
//! products live in `kernels`.
//!
//! Integer types lead a panel with all its scales and follow with all its values. Scales in front of each block would make every
//! second block straddle cache lines; with a prefetch 4 KiB ahead the panel form read 15.5 GB/s where that one read 12.6 (80 MiB
//! of 4 bits with f16 scales, one thread), and without prefetch they are within 10 %.

#![forbid(unsafe_code)]

mod f16;
mod f32;
mod integer;
mod q2;
mod q3;
mod q4;
mod q5;
mod q6;
mod q8;

pub use integer::{Grid, nearest_scale, row_scale, square};
pub(crate) use integer::{IntPanel, ROW_SCALES};
pub use q2::CODEBOOK as Q2_CODEBOOK;
pub use q3::CODEBOOK as Q3_CODEBOOK;
pub use q4::CODEBOOK as Q4_CODEBOOK;

use crate::storage::{ALIGN, Bytes};
use serde::{Deserialize, Serialize};

/// Rows of a panel: the f32 lanes of one AVX-512 register.
pub const PANEL_ROWS: usize = 16;
/// Columns that share a scale in the integer types.
pub const BLOCK: usize = 32;

/// Identifies the interleaving of panels in the file.
pub const TILE_ID: &str = "planes16x4";

/// How the values of a weight matrix are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QuantType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// 8-bit integers: 8.25 bits per weight, as all that follow with a scale for each block of 32.
    Q8,
    /// 6-bit integers: 6.25 bits per weight.
    Q6,
    /// 5-bit integers: 5.25 bits per weight.
    Q5,
    /// 4-bit indices into a fixed table: 4.25 bits per weight.
    Q4,
    /// 3-bit indices: 3.25 bits per weight.
    Q3,
    /// 2-bit indices: 2.25 bits per weight.
    Q2,
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

/// What a float type provides.
struct Codec {
    /// Bytes of a panel of `cols` columns before rounding up to [`ALIGN`].
    panel_bytes: fn(cols: usize) -> Option<usize>,
    /// Adds row `row` of a panel to `out` `[cols]`.
    add_row: fn(panel: &[u8], cols: usize, row: usize, out: &mut [f32]),
}

/// The two kinds of type.
enum Kind {
    /// Multiplied as floats.
    Float(&'static Codec),
    /// Multiplied as integers: activations are quantized.
    Integer(&'static Grid),
}

impl QuantType {
    /// Every type, most precise first.
    pub const ALL: [Self; 8] = [Self::F32, Self::F16, Self::Q8, Self::Q6, Self::Q5, Self::Q4, Self::Q3, Self::Q2];

    /// The integer types, most precise first.
    pub const INTEGER: [Self; 6] = [Self::Q8, Self::Q6, Self::Q5, Self::Q4, Self::Q3, Self::Q2];

    fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float(&f32::CODEC),
            Self::F16 => Kind::Float(&f16::CODEC),
            Self::Q8 => Kind::Integer(&q8::GRID),
            Self::Q6 => Kind::Integer(&q6::GRID),
            Self::Q5 => Kind::Integer(&q5::GRID),
            Self::Q4 => Kind::Integer(&q4::GRID),
            Self::Q3 => Kind::Integer(&q3::GRID),
            Self::Q2 => Kind::Integer(&q2::GRID),
        }
    }

    /// The name people use, e.g. `q4`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8 => "q8",
            Self::Q6 => "q6",
            Self::Q5 => "q5",
            Self::Q4 => "q4",
            Self::Q3 => "q3",
            Self::Q2 => "q2",
        }
    }

    /// The type called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name() == name)
    }

    /// Whether the kernels multiply it as integers (and so quantize the activations).
    pub fn is_integer(self) -> bool {
        self.grid().is_some()
    }

    /// How an integer type stores its values.
    pub fn grid(self) -> Option<&'static Grid> {
        match self.kind() {
            Kind::Float(_) => None,
            Kind::Integer(grid) => Some(grid),
        }
    }

    /// Bytes of one panel of `cols` columns: a multiple of 64. `None` when it overflows.
    pub fn panel_bytes(self, cols: usize) -> Option<usize> {
        let bytes = match self.kind() {
            Kind::Float(codec) => (codec.panel_bytes)(cols)?,
            Kind::Integer(grid) => grid.panel(cols)?.bytes,
        };
        bytes.checked_next_multiple_of(ALIGN)
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
        match self.quant.kind() {
            Kind::Float(codec) => (codec.add_row)(panel, self.cols, row % PANEL_ROWS, out),
            Kind::Integer(grid) => grid.add_row(panel, self.cols, row % PANEL_ROWS, out),
        }
    }
}

#[cfg(test)]
mod tests;
