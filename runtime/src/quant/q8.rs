//! `q8`: 8-bit integers in `-127..=127` with an f16 scale per row and block of 32 columns.
//!
//! ```text
//! panel: [scales: n_blocks x 16 rows f16, padded to 64 bytes]
//!        [values: n_blocks x 8 groups x 16 rows x 4 columns i8]      one group is one 64-byte line
//! value = scale * q
//! ```

use super::{BLOCK, BlockPanel, Codec, PANEL_ROWS, group_offset};

/// Bytes of a block of 16 rows and 32 columns.
pub(crate) const BLOCK_BYTES: usize = PANEL_ROWS * BLOCK;

pub(super) static CODEC: Codec =
    Codec { name: "q8", panel_bytes: |cols| Some(BlockPanel::new(cols, BLOCK_BYTES)?.bytes), add_row, integer: true };

fn add_row(panel: &[u8], cols: usize, row: usize, out: &mut [f32]) {
    let values_at = panel.len() - cols.div_ceil(BLOCK) * BLOCK_BYTES;
    for (block, out) in out.chunks_mut(BLOCK).enumerate() {
        let scale = BlockPanel::scale(panel, block, row);
        let bytes = &panel[values_at + block * BLOCK_BYTES..][..BLOCK_BYTES];
        for (col, out) in out.iter_mut().enumerate() {
            *out += scale * f32::from(bytes[group_offset(row, col)] as i8);
        }
    }
}
