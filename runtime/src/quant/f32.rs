//! `f32`: the values as they are.
//!
//! ```text
//! panel: cols x [16 rows] f32        one column of 16 rows is one 64-byte line
//! ```

use super::{Codec, PANEL_ROWS};

pub(super) static CODEC: Codec = Codec { panel_bytes: |cols| cols.checked_mul(PANEL_ROWS * 4), add_row };

fn add_row(panel: &[u8], _cols: usize, row: usize, out: &mut [f32]) {
    for (column, out) in panel.chunks_exact(PANEL_ROWS * 4).zip(out) {
        let at = row * 4;
        *out += f32::from_le_bytes([column[at], column[at + 1], column[at + 2], column[at + 3]]);
    }
}
