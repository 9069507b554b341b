//! `q4`: 4-bit indices into a fixed table of 16 values, with an f16 scale per row and block of 32 columns.
//!
//! ```text
//! panel: [scales: n_blocks x 16 rows f16, padded to 64 bytes]
//!        [values: n_blocks x 4 pairs x 16 rows x 4 bytes]            one pair of groups is one 64-byte line
//! byte:  low nibble  = index of column c of the even group (columns 8p + c)
//!        high nibble = index of column c of the odd group  (columns 8p + 4 + c)
//! value = scale * CODEBOOK[index]
//! ```

use super::{BLOCK, BlockPanel, Codec, PANEL_ROWS, Unrepresentable, block_of, too_large};
use half::f16;

/// Bytes of a block of 16 rows and 32 columns.
pub(crate) const BLOCK_BYTES: usize = PANEL_ROWS * BLOCK / 2;

/// The table, ascending: denser around zero, where most weights are. Within ±63, so that sums of two
/// products with an 8-bit activation stay exact in 16 bits (AVX2 `maddubs`).
///
/// Found by Lloyd's algorithm with the scale search below inside, on blocks of trained transformers, Gaussian
/// and heavier-tailed values, then rounded by descent on integers. Relative RMSE on a trained 135M model: 7.41 %, against
/// 8.42 % for the uniform -8..7 and 7.64 % for NF4's values.
pub const CODEBOOK: [i8; 16] = [-59, -46, -36, -28, -21, -15, -9, -4, 1, 6, 12, 18, 25, 33, 42, 58];

pub(super) static CODEC: Codec = Codec {
    name: "q4",
    panel_bytes: |cols| Some(BlockPanel::new(cols, BLOCK_BYTES)?.bytes),
    encode,
    add_row,
    integer: true,
};

/// Byte offset and shift of column `col` (0 to 31) of `row` in a block.
fn nibble_offset(row: usize, col: usize) -> (usize, u32) {
    (col / 8 * 64 + row * 4 + col % 4, (col as u32 / 4 % 2) * 4)
}

fn encode(rows: &[f32], cols: usize, panel: &mut [u8]) -> Result<(), Unrepresentable> {
    let values_at = panel.len() - cols.div_ceil(BLOCK) * BLOCK_BYTES;
    for block in 0..cols.div_ceil(BLOCK) {
        for row in 0..PANEL_ROWS {
            let values = block_of(rows, cols, row, block);
            let scale = best_scale(&values);
            if scale.is_infinite() {
                return Err(too_large(&values, row, block));
            }
            BlockPanel::put_scale(panel, block, row, scale);
            let bytes = &mut panel[values_at + block * BLOCK_BYTES..][..BLOCK_BYTES];
            for (col, index) in nearest(&values, inverse(scale.to_f32())).into_iter().enumerate() {
                let (at, shift) = nibble_offset(row, col);
                bytes[at] |= index << shift;
            }
        }
    }
    Ok(())
}

fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// Index of the table entry nearest to each `values[i] * inverse_scale`.
fn nearest(values: &[f32; BLOCK], inverse_scale: f32) -> [u8; BLOCK] {
    let mut index = [0u8; BLOCK];
    for pair in CODEBOOK.windows(2) {
        let middle = f32::midpoint(f32::from(pair[0]), f32::from(pair[1]));
        for i in 0..BLOCK {
            index[i] += u8::from(values[i] * inverse_scale > middle);
        }
    }
    index
}

/// The scale with the least squared error, found by trying what the largest value may map to.
///
/// For each trial the indices are fixed and the scale that is best *for these indices* follows in
/// closed form (`sum(x q) / sum(q q)`); the error falls by `sum(x q)^2 / sum(q q)`. The table is not
/// symmetric, so both signs are tried (one sign alone costs 6 % RMSE). Eight trials in this range are within 0.15 % of an
/// exhaustive search; weighting errors by x² raised the plain error by 7 % and is not done.
fn best_scale(values: &[f32; BLOCK]) -> f16 {
    let largest = values.iter().fold(0.0f32, |m, &v| if v.abs() > m.abs() { v } else { m });
    if largest == 0.0 {
        return f16::ZERO;
    }
    let (mut best_gain, mut best) = (0.0f32, 0.0f32);
    for target in [46.0, 49.0, 52.0, 54.0, 57.0, 60.0, 63.0, 66.0] {
        for target in [target, -target] {
            let index = nearest(values, target / largest);
            let (mut xq, mut qq) = (0.0f32, 0.0f32);
            for i in 0..BLOCK {
                let q = f32::from(CODEBOOK[usize::from(index[i])]);
                xq += values[i] * q;
                qq += q * q;
            }
            let gain = xq * xq / qq;
            if gain > best_gain {
                (best_gain, best) = (gain, xq / qq);
            }
        }
    }
    f16::from_f32(best)
}

fn add_row(panel: &[u8], cols: usize, row: usize, out: &mut [f32]) {
    let values_at = panel.len() - cols.div_ceil(BLOCK) * BLOCK_BYTES;
    for (block, out) in out.chunks_mut(BLOCK).enumerate() {
        let scale = BlockPanel::scale(panel, block, row);
        let bytes = &panel[values_at + block * BLOCK_BYTES..][..BLOCK_BYTES];
        for (col, out) in out.iter_mut().enumerate() {
            let (at, shift) = nibble_offset(row, col);
            *out += scale * f32::from(CODEBOOK[usize::from(bytes[at] >> shift & 15)]);
        }
    }
}
