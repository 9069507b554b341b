//! Models of random weights: the shapes of a real one without its download, for benchmarks.

use crate::error::ConvertError;
use crate::rows::{Rows, Scratch};
use std::ops::Range;
use std::path::PathBuf;
use tidbit_runtime::format::Stored;
use tidbit_runtime::kernels::{Element, Layout, Source};
use tidbit_runtime::spec::Role;

/// Rows of random values: gains near 1, everything else around 0 with a deviation of 0.02.
///
/// Each value depends on the seed, the tensor and its place only, so rows can be made in any order by
/// any number of threads, with the same bits on every machine.
pub(crate) struct RandomRows {
    seed: u64,
    mean: f32,
    deviation: f32,
}

impl RandomRows {
    pub(crate) fn new(seed: u64, tensor: usize, role: Role, name: &str) -> Self {
        let gain = role == Role::Vector && name.ends_with("norm.weight");
        let (mean, deviation) = if gain { (1.0, 0.1) } else { (0.0, 0.02) };
        Self { seed: mix(seed ^ mix(tensor as u64)), mean, deviation }
    }
}

impl Rows for RandomRows {
    fn source<'a>(&'a self, rows: Range<usize>, cols: usize, scratch: &'a mut Scratch) -> Source<'a> {
        let Scratch { values, starts } = scratch;
        values.resize(rows.len() * cols, 0.0);
        for (i, out) in values.iter_mut().enumerate() {
            let bits = mix(self.seed.wrapping_add((rows.start * cols + i) as u64));
            *out = self.mean + self.deviation * normal(bits);
        }
        starts.clear();
        starts.extend((0..rows.len()).map(|row| row * cols));
        Source { bytes: bytemuck::must_cast_slice(values), element: Element::F32, layout: Layout::Rows { starts } }
    }

    fn refuse(&self, row: usize, col: usize, value: f32, stored: Stored) -> ConvertError {
        let reason = format!("random value {value} at row {row}, column {col} cannot be stored as {stored}");
        ConvertError::Output { path: PathBuf::new(), reason }
    }
}

/// `SplitMix64` (Steele et al. 2014): a bijection that spreads every bit.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Close to a standard normal: the sum of four uniform 16-bit numbers, centred and scaled (variance of
/// one is `1/12`, so of the sum `1/3`). Integer until the end: no libm, the same on every machine.
fn normal(bits: u64) -> f32 {
    let sum: i32 = (0..4).map(|i| (bits >> (16 * i)) as u16).map(i32::from).sum();
    (sum - 2 * 65535) as f32 * (1.732_050_8 / 65536.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_weights_have_the_stated_spread() {
        let rows = RandomRows::new(7, 3, Role::Projection, "layers.0.mlp.up.weight");
        let (mut scratch, mut other) = (Scratch::default(), Scratch::default());
        rows.source(0..100, 1000, &mut scratch);
        let values = &scratch.values;
        let mean = values.iter().sum::<f32>() / 1e5;
        let deviation = (values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / 1e5).sqrt();
        assert!(mean.abs() < 5e-4 && (deviation - 0.02).abs() < 5e-4, "{mean} {deviation}");
        rows.source(50..53, 1000, &mut other);
        assert_eq!(other.values, values[50_000..53_000]);
    }
}
