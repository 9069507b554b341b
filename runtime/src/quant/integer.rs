//! What the integer types have in common: the layout of a panel, and how codes are taken out of it and put in.
//!
//! ```text
//! panel: [row scales: 16 rows f32]                                   one 64-byte line
//!        [block scales: n_blocks x 16 rows i8, padded to 64 bytes]
//!        [values: n_blocks blocks]
//! block: its planes, one after the other
//! plane of width w (1, 2, 4 or 8 bits): w lines of 64 bytes; the bits of group g (columns 4g to 4g + 3) are in line
//!        g * w / 8 from bit g * w % 8 on; byte r * 4 + c of a line is row r, column c of its groups
//! code  = bits of the first plane, above them those of the second
//! value = row scale * s |s| * entry(code), s being the block scale
//! ```
//!
//! A block scale takes 8 bits. Its square gives it a relative step of 2 % at half of the row's largest one, and still 16 % at a
//! hundredth, where a linear one would be off by half: rows have outliers. Relative RMSE of `q4` on a trained 135M model: 7.46 % with
//! f32 scales, 7.47 % with 8 linear bits, 7.55 and 7.74 % with small floats of 4 and 3 bits of mantissa.

use super::{BLOCK, PANEL_ROWS};
use crate::storage::ALIGN;

/// Bytes of the row scales.
pub(crate) const ROW_SCALES: usize = PANEL_ROWS * 4;
/// The largest block scale.
const MAX_SCALE: i8 = 127;

/// How an integer type stores the codes of a block, and what they stand for.
#[derive(Debug)]
pub struct Grid {
    /// Widths of its planes in bits, the lowest bits first.
    pub(crate) planes: &'static [u32],
    /// What a code stands for, ascending: as many as there are codes. Within ±63 below 8 bits, so that sums of two
    /// products with an 8-bit activation stay exact in 16 bits (AVX2 `maddubs`).
    pub entries: &'static [i8],
}

impl Grid {
    /// Bytes of a block of 16 rows and 32 columns.
    pub(crate) fn block_bytes(&self) -> usize {
        self.planes.iter().sum::<u32>() as usize * ALIGN
    }

    /// Where the parts of a panel of `cols` columns lie. `None` when it overflows.
    pub(crate) fn panel(&self, cols: usize) -> Option<IntPanel> {
        IntPanel::new(cols, self.block_bytes())
    }

    /// The codes of row `row` of a block in the columns of group `group` (0 to 7).
    pub(super) fn codes(&self, block: &[u8], row: usize, group: usize) -> [usize; 4] {
        let (mut codes, mut done, mut at) = ([0; 4], 0, 0);
        for &width in self.planes {
            let (byte, shift) = place(width, row, group * 4);
            for (code, &byte) in codes.iter_mut().zip(&block[at + byte..][..4]) {
                *code |= (usize::from(byte) >> shift & ((1 << width) - 1)) << done;
            }
            done += width;
            at += width as usize * ALIGN;
        }
        codes
    }

    /// Writes a panel of rows of codes, with a scale for each row and the scales of its blocks one row after the other. Rows that
    /// are missing become zeros.
    ///
    /// # Panics
    /// When lengths do not fit together.
    pub fn write_panel(&self, panel: &mut [u8], row_scales: &[f32], scales: &[i8], codes: &[u8]) {
        let (rows, cols) = (row_scales.len(), codes.len() / row_scales.len());
        let parts = self.panel(cols).expect("a matrix in memory does not overflow");
        assert!(rows <= PANEL_ROWS && codes.len() == rows * cols && scales.len() == rows * parts.n_blocks, "a panel");
        panel.fill(0);
        for (row, scale) in row_scales.iter().enumerate() {
            panel[row * 4..][..4].copy_from_slice(&scale.to_le_bytes());
            for (block, &scale) in scales[row * parts.n_blocks..][..parts.n_blocks].iter().enumerate() {
                panel[ROW_SCALES + block * PANEL_ROWS + row] = scale as u8;
            }
            for (col, &code) in codes[row * cols..][..cols].iter().enumerate() {
                let block = &mut panel[parts.values_at + col / BLOCK * parts.block_bytes..][..parts.block_bytes];
                self.put(block, row, col % BLOCK, usize::from(code));
            }
        }
    }

    /// Puts a code where there were zeros.
    pub(super) fn put(&self, block: &mut [u8], row: usize, col: usize, mut code: usize) {
        let mut at = 0;
        for &width in self.planes {
            let (byte, shift) = place(width, row, col);
            block[at + byte] |= ((code & ((1 << width) - 1)) << shift) as u8;
            code >>= width;
            at += width as usize * ALIGN;
        }
    }

    /// Adds row `row` of a panel to `out` `[cols]`.
    pub(super) fn add_row(&self, panel: &[u8], cols: usize, row: usize, out: &mut [f32]) {
        let parts = self.panel(cols).expect("a matrix in memory does not overflow");
        let row_scale = f32::from_le_bytes(std::array::from_fn(|i| panel[row * 4 + i]));
        for (b, out) in out.chunks_mut(BLOCK).enumerate() {
            let scale = square(panel[ROW_SCALES + b * PANEL_ROWS + row] as i8) * row_scale;
            let block = &panel[parts.values_at + b * parts.block_bytes..][..parts.block_bytes];
            for (group, out) in out.chunks_mut(4).enumerate() {
                for (out, code) in out.iter_mut().zip(self.codes(block, row, group)) {
                    *out += scale * f32::from(self.entries[code]);
                }
            }
        }
    }
}

/// The integers around zero, for codes that count from the lowest.
pub(super) const fn centered<const N: usize>() -> [i8; N] {
    let mut entries = [0; N];
    let mut i = 0;
    while i < N {
        entries[i] = i as i8 - (N / 2) as i8;
        i += 1;
    }
    entries
}

/// The byte of a plane's code and its shift there.
fn place(width: u32, row: usize, col: usize) -> (usize, usize) {
    let bit = col / 4 * width as usize;
    (bit / 8 * ALIGN + row * 4 + col % 4, bit % 8)
}

/// What a block scale stands for, in units of its row's.
pub fn square(scale: i8) -> f32 {
    let scale = f32::from(scale);
    scale * scale.abs()
}

/// The row scale with which the largest of some block scales can be stored; 0 for none above 0.
pub fn row_scale(largest: f32) -> f32 {
    // Far below what any model has; above it, no quotient overflows.
    if largest > 1e-30 { largest / square(MAX_SCALE) } else { 0.0 }
}

/// The block scale nearest to `scale`. Without branches and calls, so that loops over rows become vectors.
#[inline]
pub fn nearest_scale(scale: f32, row_scale: f32) -> i8 {
    /// What is added to this and taken away again is rounded to a whole number, ties to even.
    const ROUND: f32 = 12_582_912.0;
    let ratio = scale.abs() / row_scale;
    let root = (ratio.sqrt() + ROUND - ROUND).min(f32::from(MAX_SCALE));
    // The middle of two squares is nearer to the smaller root than to their middle.
    let less = root - 1.0;
    let root = if root > 0.0 && root * root + less * less > 2.0 * ratio { less } else { root };
    let root = if row_scale == 0.0 { 0.0 } else { root };
    (if scale < 0.0 { -root } else { root }) as i8
}

/// Where the parts of a panel lie.
#[derive(Clone, Copy)]
pub(crate) struct IntPanel {
    pub(crate) n_blocks: usize,
    pub(crate) values_at: usize,
    pub(crate) block_bytes: usize,
    pub(crate) bytes: usize,
}

impl IntPanel {
    pub(crate) fn new(cols: usize, block_bytes: usize) -> Option<Self> {
        let n_blocks = cols.div_ceil(BLOCK);
        let values_at = n_blocks.checked_mul(PANEL_ROWS)?.checked_next_multiple_of(ALIGN)?.checked_add(ROW_SCALES)?;
        let bytes = values_at.checked_add(n_blocks.checked_mul(block_bytes)?)?;
        Some(Self { n_blocks, values_at, block_bytes, bytes })
    }
}
