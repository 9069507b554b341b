//! Encoding: from the elements of a checkpoint to panels.
//!
//! The kernels take whole blocks of 16 rows x 32 columns, in place. What is smaller, at the edges of a matrix, is copied
//! and padded with zeros here.

use super::table::Encoders;
use super::{EncodeArgs, Kernels, Lines, supported};
use crate::quant::{
    BLOCK, IntPanel, Matrix, PANEL_ROWS, QuantType, ROW_SCALES, Unrepresentable, nearest_scale, row_scale, square,
};
use crate::storage::Bytes;
use half::{bf16, f16};
use std::array::from_fn;

/// The type of a checkpoint's elements, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a 32-bit float.
    BF16,
}

impl Element {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// The first element of `bytes`.
    ///
    /// # Panics
    /// When there are fewer bytes.
    pub fn read(self, bytes: &[u8]) -> f32 {
        match self {
            Self::F32 => f32::from_le_bytes(from_fn(|i| bytes[i])),
            Self::F16 => f16::from_le_bytes(from_fn(|i| bytes[i])).to_f32(),
            Self::BF16 => bf16::from_le_bytes(from_fn(|i| bytes[i])).to_f32(),
        }
    }
}

/// Some rows of a matrix, as they lie in memory.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The memory; it needs no alignment.
    pub bytes: &'a [u8],
    /// What it holds.
    pub element: Element,
    /// Where the rows are in it.
    pub layout: Layout<'a>,
}

/// Which element is at which row and column.
#[derive(Clone, Copy, Debug)]
pub enum Layout<'a> {
    /// Row after row: row `r` starts at element `starts[r]`.
    Rows {
        /// One start for each row.
        starts: &'a [usize],
    },
    /// Column after column: row `r` of column `c` is element `first + c * stride + r`.
    Columns {
        /// The element of the first row and column.
        first: usize,
        /// Elements from one column to the next.
        stride: usize,
    },
}

impl Source<'_> {
    /// Byte offset of an element; `usize::MAX` when it overflows.
    fn offset(&self, row: usize, col: usize) -> usize {
        let element = match self.layout {
            Layout::Rows { starts } => starts[row].checked_add(col),
            Layout::Columns { first, stride } => {
                col.checked_mul(stride).and_then(|at| at.checked_add(first)?.checked_add(row))
            }
        };
        element.and_then(|at| at.checked_mul(self.element.bytes())).unwrap_or(usize::MAX)
    }

    /// One element.
    ///
    /// # Panics
    /// When it does not lie inside.
    pub fn at(&self, row: usize, col: usize) -> f32 {
        self.element.read(&self.bytes[self.offset(row, col)..])
    }

    /// Asserts that `[rows, cols]` lies inside.
    fn check(&self, rows: usize, cols: usize) {
        let inside = |row, col| {
            let end = self.offset(row, col).checked_add(self.element.bytes());
            assert!(
                end.is_some_and(|end| end <= self.bytes.len()),
                "row {row}, column {col} of {} bytes",
                self.bytes.len()
            );
        };
        match self.layout {
            Layout::Rows { starts } => {
                assert_eq!(starts.len(), rows, "starts of rows");
                (0..rows).for_each(|row| inside(row, cols - 1));
            }
            Layout::Columns { stride, .. } => {
                assert!(stride >= rows, "columns of {stride} elements for {rows} rows");
                inside(rows - 1, cols - 1);
            }
        }
    }
}

/// The values of a panel, by block.
#[derive(Clone, Copy)]
struct Parts {
    n_blocks: usize,
    values_at: usize,
    block_bytes: usize,
    /// Bytes of the panel that belong to blocks; the rest is padding.
    used: usize,
}

impl Parts {
    fn new(quant: QuantType, cols: usize) -> Option<Self> {
        let n_blocks = cols.div_ceil(BLOCK);
        if let Some(grid) = quant.grid() {
            let IntPanel { values_at, block_bytes, bytes, .. } = grid.panel(cols)?;
            return Some(Self { n_blocks, values_at, block_bytes, used: bytes });
        }
        let row_bytes = if quant == QuantType::F32 { PANEL_ROWS * 4 } else { PANEL_ROWS * 2 };
        Some(Self { n_blocks, values_at: 0, block_bytes: BLOCK * row_bytes, used: cols * row_bytes })
    }
}

/// What is done with a block.
enum Step<'a> {
    /// Its scales are found.
    Fit(&'a mut [f32; PANEL_ROWS]),
    /// Its values are written: the bytes of its panel from its first value on, and its scales.
    Write(&'a mut [u8], [f32; PANEL_ROWS]),
}

impl Kernels {
    /// Encodes `[rows, cols]` of `source` into as many panels as that takes: `panels` is overwritten, padding included.
    ///
    /// # Errors
    /// A value that the type cannot hold: the first one that is not finite, or else the largest of the first block whose
    /// values are too large.
    ///
    /// # Panics
    /// When the shape is empty or does not lie inside `source`, or `panels` has another length.
    pub fn encode(
        self,
        quant: QuantType,
        source: &Source<'_>,
        [rows, cols]: [usize; 2],
        panels: &mut [u8],
    ) -> Result<(), Unrepresentable> {
        assert!(rows > 0 && cols > 0, "an empty matrix");
        assert_eq!(Some(panels.len()), quant.matrix_bytes(rows, cols), "bytes of a [{rows}, {cols}] matrix in {quant}");
        source.check(rows, cols);
        let n_panels = rows.div_ceil(PANEL_ROWS);
        let panel_bytes = panels.len() / n_panels;
        let parts = Parts::new(quant, cols).expect("the panels are in memory");
        // Block by block, `[n_panels][n_blocks]`.
        let mut scales = vec![[0.0; PANEL_ROWS]; if quant.is_integer() { n_panels * parts.n_blocks } else { 0 }];
        if quant.is_integer() {
            each_block(source, [n_panels, parts.n_blocks], |[panel, block]| {
                let fitted = &mut scales[panel * parts.n_blocks + block];
                self.encode_block(quant, source, [rows, cols], [panel, block], parts, Step::Fit(fitted))
            })?;
            for (scales, panel) in scales.chunks_mut(parts.n_blocks).zip(panels.chunks_exact_mut(panel_bytes)) {
                store_scales(scales, panel, parts.values_at);
            }
        }
        for panel in panels.chunks_exact_mut(panel_bytes) {
            panel[parts.used..].fill(0);
        }
        each_block(source, [n_panels, parts.n_blocks], |[panel, block]| {
            let values =
                &mut panels[panel * panel_bytes..][..panel_bytes][parts.values_at + block * parts.block_bytes..];
            let scales = scales.get(panel * parts.n_blocks + block).copied().unwrap_or_default();
            self.encode_block(quant, source, [rows, cols], [panel, block], parts, Step::Write(values, scales))
        })
    }

    /// One step of one block.
    fn encode_block(
        self,
        quant: QuantType,
        source: &Source<'_>,
        [rows, cols]: [usize; 2],
        [panel, block]: [usize; 2],
        parts: Parts,
        step: Step<'_>,
    ) -> Result<(), Unrepresentable> {
        let (row, col) = (panel * PANEL_ROWS, block * BLOCK);
        let (n_rows, n_cols) = ((rows - row).min(PANEL_ROWS), (cols - col).min(BLOCK));
        let width = source.element.bytes();
        // Cleared where it is used: clearing it for every block took a twentieth of a conversion.
        let mut padded;
        let lines = if n_rows < PANEL_ROWS || n_cols < BLOCK {
            padded = [0u8; BLOCK * PANEL_ROWS * 4];
            for (c, r) in (0..n_cols).flat_map(|c| (0..n_rows).map(move |r| (c, r))) {
                let from = source.offset(row + r, col + c);
                padded[(c * PANEL_ROWS + r) * width..][..width].copy_from_slice(&source.bytes[from..][..width]);
            }
            Lines::Columns { first: padded.as_ptr(), stride: PANEL_ROWS * width }
        } else {
            match source.layout {
                Layout::Rows { .. } => Lines::Rows(from_fn(|r| source.bytes[source.offset(row + r, col)..].as_ptr())),
                Layout::Columns { stride, .. } => {
                    Lines::Columns { first: source.bytes[source.offset(row, col)..].as_ptr(), stride: stride * width }
                }
            }
        };
        let encoders = Encoders::of(self.name);
        let fits = match step {
            Step::Fit(scales) => {
                let args = EncodeArgs {
                    element: source.element,
                    lines,
                    padding: BLOCK - n_cols,
                    scales: scales.as_mut_ptr(),
                    values: std::ptr::null_mut(),
                };
                // SAFETY: `self` proves the features. `Source::check` has asserted that all elements of the matrix lie
                // inside, and this is a whole block of it, or a padded copy; there is room for 16 scales.
                unsafe { (encoders.fit)(quant, &args) }
            }
            Step::Write(values, mut scales) => {
                let scales = scales.as_mut_ptr();
                let write = |values: *mut u8| {
                    let args = EncodeArgs { element: source.element, lines, padding: BLOCK - n_cols, scales, values };
                    // SAFETY: as above; there is room for the values of a block.
                    unsafe {
                        match quant {
                            QuantType::F32 => (encoders.encode[0])(&args),
                            QuantType::F16 => (encoders.encode[1])(&args),
                            _ => {
                                (encoders.assign)(quant, &args);
                                true
                            }
                        }
                    }
                };
                if values.len() >= parts.block_bytes {
                    write(values.as_mut_ptr())
                } else {
                    // The last columns of a panel of floats: no room to write whole blocks.
                    let mut last = [0u8; BLOCK * PANEL_ROWS * 4];
                    let fits = write(last.as_mut_ptr());
                    let n = parts.block_bytes / BLOCK * n_cols;
                    values[..n].copy_from_slice(&last[..n]);
                    fits
                }
            }
        };
        if fits { Ok(()) } else { Err(unrepresentable(source, [rows, cols], [panel, block])) }
    }
}

/// Goes through the blocks of all panels in an order that is kind to the source's cache lines and pages.
fn each_block(
    source: &Source<'_>,
    [n_panels, n_blocks]: [usize; 2],
    mut step: impl FnMut([usize; 2]) -> Result<(), Unrepresentable>,
) -> Result<(), Unrepresentable> {
    match source.layout {
        // Along the rows.
        Layout::Rows { .. } => (0..n_panels).try_for_each(|panel| (0..n_blocks).try_for_each(|b| step([panel, b]))),
        // Along the columns: panels that are side by side have their elements in the same lines and pages.
        Layout::Columns { .. } => (0..n_blocks).try_for_each(|b| (0..n_panels).try_for_each(|panel| step([panel, b]))),
    }
}

/// Writes the scales of a panel as the file has them, and rounds `scales` to what that stands for.
fn store_scales(scales: &mut [[f32; PANEL_ROWS]], panel: &mut [u8], values_at: usize) {
    panel[..values_at].fill(0);
    // All rows at once.
    let mut largest = [0.0f32; PANEL_ROWS];
    for scales in &*scales {
        for (largest, scale) in largest.iter_mut().zip(scales) {
            *largest = if scale.abs() > *largest { scale.abs() } else { *largest };
        }
    }
    let units = largest.map(row_scale);
    let (of_rows, of_blocks) = panel.split_at_mut(ROW_SCALES);
    of_rows.copy_from_slice(bytemuck::must_cast_slice(&units.map(f32::to_le_bytes)));
    for (scales, codes) in scales.iter_mut().zip(of_blocks.as_chunks_mut::<PANEL_ROWS>().0) {
        for ((scale, code), unit) in scales.iter_mut().zip(codes).zip(&units) {
            let nearest = nearest_scale(*scale, *unit);
            (*scale, *code) = (square(nearest) * unit, nearest as u8);
        }
    }
}

/// What made a block fail: its first value that is not finite, or else its largest one.
fn unrepresentable(source: &Source<'_>, [rows, cols]: [usize; 2], [panel, block]: [usize; 2]) -> Unrepresentable {
    let (row, col) = (panel * PANEL_ROWS, block * BLOCK);
    let places = (row..rows.min(row + PANEL_ROWS)).flat_map(|r| (col..cols.min(col + BLOCK)).map(move |c| (r, c)));
    let value = |(row, col)| Unrepresentable { row, col, value: source.at(row, col) };
    let mut values = places.map(value);
    let mut largest = values.next().expect("a block is not empty");
    for found in std::iter::once(largest).chain(values) {
        if !found.value.is_finite() {
            return found;
        }
        if found.value.abs() > largest.value.abs() {
            largest = found;
        }
    }
    largest
}

/// Here, not in `quant`, which knows nothing of kernels.
impl Matrix {
    /// Encodes `values` `[rows, cols]`, row by row.
    ///
    /// # Errors
    /// As [`Kernels::encode`].
    ///
    /// # Panics
    /// When `values` has not `rows * cols` elements, or there are none.
    pub fn encode(quant: QuantType, rows: usize, cols: usize, values: &[f32]) -> Result<Self, Unrepresentable> {
        supported()[0].encode_matrix(quant, rows, cols, values)
    }
}

impl Kernels {
    /// [`Matrix::encode`] with these kernels; the bytes are the same with all.
    pub(crate) fn encode_matrix(
        self,
        quant: QuantType,
        rows: usize,
        cols: usize,
        values: &[f32],
    ) -> Result<Matrix, Unrepresentable> {
        assert_eq!(values.len(), rows * cols, "values of a [{rows}, {cols}] matrix");
        let starts: Vec<usize> = (0..rows).map(|row| row * cols).collect();
        let layout = Layout::Rows { starts: &starts };
        let source = Source { bytes: bytemuck::must_cast_slice(values), element: Element::F32, layout };
        let bytes = quant.matrix_bytes(rows, cols).expect("a matrix that is in memory does not overflow");
        let mut data = vec![0; bytes];
        self.encode(quant, &source, [rows, cols], &mut data)?;
        Ok(Matrix::new(quant, rows, cols, Bytes::copy_from(&data)).expect("the right number of bytes, aligned"))
    }
}

#[cfg(test)]
mod tests;
