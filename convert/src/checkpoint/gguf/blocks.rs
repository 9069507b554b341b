//! GGUF's blocks: some weights of a row with the numbers that scale them, little-endian.
//!
//! | type | weights | bytes | a weight, from integer `q` |
//! |---|---|---|---|
//! | `Q4_0`, `Q5_0`, `Q8_0` | 32 | 18, 22, 34 | `d q`, `q` signed |
//! | `Q4_1`, `Q5_1` | 32 | 20, 24 | `d q + m` |
//! | `Q2_K`, `Q4_K`, `Q5_K` | 256 | 84, 144, 176 | `(d s) q - (dmin t)`, `s` and `t` for each 16 (`Q2_K`) or 32 |
//! | `Q3_K`, `Q6_K` | 256 | 110, 210 | `(d s) q`, `q` signed, `s` for each 16 |
//!
//! Computed in f32, in the order of the table, as the reference (the Python package `gguf`) does: the same bits.

use tidbit_runtime::kernels::Element;

/// A kind of block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blocks {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

/// Weights of the largest block.
const MOST: usize = 256;

impl Blocks {
    /// Its name in GGUF.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Weights of a block.
    pub(crate) fn weights(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => MOST,
        }
    }

    /// Bytes of a block.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Bytes of `weights` weights; `None` when that is no whole number of blocks, or too many.
    pub(crate) fn bytes_of(self, weights: usize) -> Option<usize> {
        weights.is_multiple_of(self.weights()).then(|| (weights / self.weights()).checked_mul(self.bytes()))?
    }

    /// Appends the weights of whole blocks.
    pub(crate) fn unpack(self, bytes: &[u8], out: &mut Vec<f32>) {
        let mut weights = [0.0; MOST];
        for block in bytes.chunks_exact(self.bytes()) {
            let weights = &mut weights[..self.weights()];
            match self {
                Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => self.small(block, weights),
                Self::Q8_0 => {
                    let d = half(block, 0);
                    weights.iter_mut().zip(&block[2..]).for_each(|(w, &q)| *w = f32::from(q.cast_signed()) * d);
                }
                Self::Q2K => two(block, weights),
                Self::Q3K => three(block, weights),
                Self::Q4K | Self::Q5K => self.four_or_five(block, weights),
                Self::Q6K => six(block, weights),
            }
            out.extend_from_slice(weights);
        }
    }

    /// 32 weights of 4 bits, the upper half of them in the upper nibbles; perhaps a fifth bit; scaled, perhaps from a least.
    fn small(self, block: &[u8], weights: &mut [f32]) {
        let d = half(block, 0);
        let least = matches!(self, Self::Q4_1 | Self::Q5_1).then(|| half(block, 2));
        let fifth = match self {
            Self::Q5_0 => Some(bits(block, 2)),
            Self::Q5_1 => Some(bits(block, 4)),
            _ => None,
        };
        let nibbles = &block[block.len() - 16..];
        let middle = if fifth.is_some() { 16 } else { 8 };
        for (i, w) in weights.iter_mut().enumerate() {
            let high = fifth.map_or(0, |fifth| (fifth >> i & 1) << 4) as u8;
            let q = (nibbles[i % 16] >> (i / 16 * 4) & 0x0f) | high;
            *w = match least {
                Some(least) => d * f32::from(q) + least,
                None => d * f32::from(q.cast_signed() - middle),
            };
        }
    }

    /// 8 groups of 32 weights, two of them in the nibbles of the same 32 bytes; perhaps a fifth bit.
    fn four_or_five(self, block: &[u8], weights: &mut [f32]) {
        let (d, least, scales) = (half(block, 0), half(block, 2), &block[4..16]);
        let (fifth, nibbles) = if self == Self::Q5K { block[16..].split_at(32) } else { (&[][..], &block[16..]) };
        for (group, weights) in weights.chunks_exact_mut(32).enumerate() {
            // Six bits each: whole in the first eight bytes for four groups, whose upper two bits complete the nibbles
            // of the others.
            let (scale, shift) = match group {
                0..4 => (scales[group] & 0x3f, scales[group + 4] & 0x3f),
                _ => (
                    scales[group + 4] & 0x0f | (scales[group - 4] >> 2 & 0x30),
                    scales[group + 4] >> 4 | (scales[group] >> 2 & 0x30),
                ),
            };
            let (d, least) = (d * f32::from(scale), least * f32::from(shift));
            for (i, w) in weights.iter_mut().enumerate() {
                let high = fifth.get(i).map_or(0, |fifth| (fifth >> group & 1) << 4);
                let q = (nibbles[group / 2 * 32 + i] >> (group % 2 * 4) & 0x0f) | high;
                *w = d * f32::from(q) - least;
            }
        }
    }
}

/// The two bits of weight `i` of 256: 32 bytes have those of four runs of 32 weights.
fn pair(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3
}

fn two(block: &[u8], weights: &mut [f32]) {
    let (d, least) = (half(block, 80), half(block, 82));
    for (i, w) in weights.iter_mut().enumerate() {
        let scale = block[i / 16];
        let (d, least) = (d * f32::from(scale & 0x0f), least * f32::from(scale >> 4));
        *w = d * f32::from(pair(&block[16..80], i)) - least;
    }
}

fn three(block: &[u8], weights: &mut [f32]) {
    let (high, low, scales, d) = (&block[..32], &block[32..96], &block[96..108], half(block, 108));
    for (i, w) in weights.iter_mut().enumerate() {
        let group = i / 16;
        // Four bits in the nibbles of eight bytes, two in the last four.
        let scale =
            (scales[group % 8] >> (group / 8 * 4) & 0x0f) | ((scales[8 + group % 4] >> (group / 4 * 2) & 3) << 4);
        // The third bit says that nothing is subtracted.
        let minus = if high[i % 32] >> (i / 32) & 1 == 1 { 0 } else { 4 };
        let q = pair(low, i).cast_signed() - minus;
        *w = d * f32::from(scale.cast_signed() - 32) * f32::from(q);
    }
}

fn six(block: &[u8], weights: &mut [f32]) {
    let (low, high, scales, d) = (&block[..128], &block[128..192], &block[192..208], half(block, 208));
    for (i, w) in weights.iter_mut().enumerate() {
        let nibble = low[i / 128 * 64 + i % 64] >> (i % 128 / 64 * 4) & 0x0f;
        let q = (nibble | pair(high, i) << 4).cast_signed() - 32;
        *w = d * f32::from(scales[i / 16].cast_signed()) * f32::from(q);
    }
}

fn half(bytes: &[u8], at: usize) -> f32 {
    Element::F16.read(&bytes[at..])
}

fn bits(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}
