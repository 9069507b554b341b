//! `q8`: 8-bit integers in `-127..=127` with an f16 scale per row and block of 32 columns.
//!
//! ```text
//! panel: [scales: n_blocks x 16 rows f16, padded to 64 bytes]
//!        [values: n_blocks x 8 groups x 16 rows x 4 columns i8]      one group is one 64-byte line
//! value = scale * q
//! ```

use super::{BLOCK, BlockPanel, Codec, PANEL_ROWS, Unrepresentable, block_of, group_offset, too_large};
use half::f16;

/// Bytes of a block of 16 rows and 32 columns.
pub(crate) const BLOCK_BYTES: usize = PANEL_ROWS * BLOCK;

pub(super) static CODEC: Codec = Codec {
    name: "q8",
    panel_bytes: |cols| Some(BlockPanel::new(cols, BLOCK_BYTES)?.bytes),
    encode,
    add_row,
    integer: true,
};

fn encode(rows: &[f32], cols: usize, panel: &mut [u8]) -> Result<(), Unrepresentable> {
    let values_at = panel.len() - cols.div_ceil(BLOCK) * BLOCK_BYTES;
    for block in 0..cols.div_ceil(BLOCK) {
        for row in 0..PANEL_ROWS {
            let values = block_of(rows, cols, row, block);
            let scale = best_scale(&values).ok_or_else(|| too_large(&values, row, block))?;
            BlockPanel::put_scale(panel, block, row, scale);
            let bytes = &mut panel[values_at + block * BLOCK_BYTES..][..BLOCK_BYTES];
            for (col, q) in quantize(&values, scale.to_f32()).into_iter().enumerate() {
                bytes[group_offset(row, col)] = q as i8 as u8;
            }
        }
    }
    Ok(())
}

/// Rounds `values / scale` to integers, as whole floats in `-127..=127`.
fn quantize(values: &[f32; BLOCK], scale: f32) -> [f32; BLOCK] {
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    values.map(|v| (v * inverse).round_ties_even().clamp(-127.0, 127.0))
}

/// The f16 scale with the least squared error among those that put the largest value at 127 to 125.
/// `None` when it would not fit f16.
fn best_scale(values: &[f32; BLOCK]) -> Option<f16> {
    let largest = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let mut best = (f32::INFINITY, f16::ZERO);
    for levels in [127.0, 126.5, 126.0, 125.5, 125.0] {
        let scale = f16::from_f32(largest / levels);
        if scale.is_infinite() {
            return None;
        }
        let q = quantize(values, scale.to_f32());
        let error: f32 = (0..BLOCK).map(|i| values[i] - q[i] * scale.to_f32()).map(|e| e * e).sum();
        if error < best.0 {
            best = (error, scale);
        }
    }
    Some(best.1)
}

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
