//! `f16`: IEEE half precision, rounded to nearest even.
//!
//! ```text
//! panel: cols x [16 rows] f16        padded to a multiple of 64 bytes
//! ```
//!
//! Exact for f16 checkpoints; bf16 ones lose only values below 6e-5. A value beyond 65504 is an error.

use super::{Codec, PANEL_ROWS};
use half::f16;

pub(super) static CODEC: Codec = Codec { panel_bytes: |cols| cols.checked_mul(PANEL_ROWS * 2), add_row };

fn add_row(panel: &[u8], _cols: usize, row: usize, out: &mut [f32]) {
    for (column, out) in panel.chunks_exact(PANEL_ROWS * 2).zip(out) {
        *out += f16::from_le_bytes([column[row * 2], column[row * 2 + 1]]).to_f32();
    }
}
