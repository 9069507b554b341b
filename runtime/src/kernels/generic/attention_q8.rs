//! Keys and values in 8 bits, with one scale for each head and position.
//!
//! ```text
//! keys   [64 / 16][head_dim padded to 4 / 4][16 positions][4 dimensions]   i8
//! values [64 / 4][head_dim padded to 16][4 positions]                       i8
//! scales of keys [64], of values [64]                                       f16
//! ```
//!
//! Both products are integer dot products, exact and therefore the same on every instruction set. Queries and probabilities
//! are taken as integers of 15 bits, `128 * high + low`, each part of which is an operand: two instructions for 64 products, and
//! an error far below that of the cache itself. (With 8 bits alone it would be of the same size.)

use super::attention::{CHUNK, CHUNK_BLOCKS, KEYS, Kept};
use crate::kernels::AttentionArgs;
use crate::kernels::simd::{LANES, Simd};

/// The largest integer: its high part is 127, and the low part of others lies in -64..=64.
const MOST: f32 = 127.0 * 128.0;
/// Columns of a dot product.
const GROUP: usize = 4;

/// The kind.
pub(in crate::kernels) struct Bytes;

/// `Q` vectors as integers.
pub(in crate::kernels) struct Integers<const Q: usize, const N: usize> {
    high: [[i8; N]; Q],
    low: [[i8; N]; Q],
    /// Where sums of products of high parts start, so that what raised operands add to both sums cancels out.
    starts: [i32; Q],
    /// What the integer 1 stands for.
    units: [f32; Q],
}

impl<const Q: usize, const N: usize> Integers<Q, N> {
    #[inline(always)]
    fn zero() -> Self {
        Self { high: [[0; N]; Q], low: [[0; N]; Q], starts: [0; Q], units: [0.0; Q] }
    }

    /// Makes the `vectors` vectors that `at` gives, which are kept in `x` meanwhile, integers of vector `i`.
    #[inline(always)]
    unsafe fn set<S: Simd>(
        &mut self,
        i: usize,
        x: &mut [f32; N],
        vectors: usize,
        at: impl Fn(usize, *const f32) -> S::F,
    ) {
        // SAFETY: all arrays hold `vectors` vectors.
        unsafe {
            let p = x.as_mut_ptr();
            let (mut most, mut poison) = (S::splat(0.0), S::splat(0.0));
            for v in 0..vectors {
                let x = at(v, p.add(v * LANES));
                S::store(p.add(v * LANES), x);
                most = S::max(most, S::abs(x));
                // NaN when a number is NaN, which `max` may lose, or infinite.
                poison = S::fma(x, S::splat(0.0), poison);
            }
            let most = S::largest(most);
            let inverse = S::splat(if most > 0.0 { MOST / most } else { 0.0 });
            let mut sum = S::splat(0.0);
            for v in 0..vectors {
                let integer = whole::<S>(S::mul(S::load(p.add(v * LANES)), inverse));
                let high = whole::<S>(S::mul(integer, S::splat(1.0 / 128.0)));
                S::store_i8(self.high[i].as_mut_ptr().add(v * LANES), high);
                let low = S::fma(high, S::splat(-128.0), integer);
                S::store_i8(self.low[i].as_mut_ptr().add(v * LANES), low);
                sum = S::add(sum, integer);
            }
            if S::I8_OFFSET != 0 {
                // Products of raised operands are too large by 128 times the sum of the parts:
                // 128 * 128 * sum(high) + 128 * sum(low) = 128 * sum(integers) in all. Whole numbers: exact in any order.
                const { assert!(S::I8_OFFSET == 0 || S::I8_OFFSET == 128) };
                self.starts[i] = -(S::sum(sum) as i32);
            }
            self.units[i] = most / MOST + S::sum(poison);
        }
    }
}

/// To the nearest whole number, for magnitudes below 2^22: half the work of [`Simd::round`] where that is two instructions
/// on one port.
#[inline(always)]
unsafe fn whole<S: Simd>(x: S::F) -> S::F {
    const SHIFT: f32 = 12_582_912.0;
    // SAFETY: the features are the caller's promise.
    unsafe { S::sub(S::add(x, S::splat(SHIFT)), S::splat(SHIFT)) }
}

/// The sum of products that two sums of parts stand for: both are below 2^24, and the sum is rounded once.
#[inline(always)]
unsafe fn joined<S: Simd>(high: S::I, low: S::I) -> S::F {
    // SAFETY: the features are the caller's promise.
    unsafe { S::fma(S::to_f(high), S::splat(128.0), S::to_f(low)) }
}

/// Where the scales of keys begin, and those of values.
#[inline(always)]
unsafe fn scales(block: *const u8, head_dim: usize) -> (*const u16, *const u16) {
    // SAFETY: inside the caller's block.
    unsafe {
        let scales = block.add(KEYS * (head_dim.next_multiple_of(GROUP) + head_dim.next_multiple_of(LANES)));
        (scales.cast(), scales.add(2 * KEYS).cast())
    }
}

impl<S: Simd> Kept<S> for Bytes {
    type Queries<const Q: usize, const D: usize> = Integers<Q, D>;
    type Weights<const Q: usize> = Integers<Q, CHUNK>;

    #[inline(always)]
    fn values_at(head_dim: usize) -> usize {
        KEYS * head_dim.next_multiple_of(GROUP)
    }

    #[inline(always)]
    unsafe fn ask_for_scales(block: *const u8, head_dim: usize) {
        // SAFETY: prefetches; the features are the caller's promise.
        unsafe {
            let (scales, _) = scales(block, head_dim);
            for line in 0..4 * KEYS / 64 {
                S::prefetch(scales.cast::<u8>().wrapping_add(line * 64));
            }
        }
    }

    #[inline(always)]
    unsafe fn queries<const Q: usize, const D: usize>(args: &AttentionArgs<'_>, query: usize) -> Integers<Q, D> {
        let head_dim = args.cache.head_dim;
        let mut integers = Integers::zero();
        let mut row = [0.0; D];
        for i in 0..Q {
            // SAFETY: the caller's queries have `head_dim` elements each, at most `D`; the last, partial vector goes
            // through an array.
            unsafe {
                let q = args.q.add((query + i) * args.q_stride);
                let full = head_dim / LANES;
                let mut last = [0.0; LANES];
                std::ptr::copy_nonoverlapping(q.add(full * LANES), last.as_mut_ptr(), head_dim % LANES);
                integers.set::<S>(i, &mut row, head_dim.div_ceil(LANES), |v, _| {
                    S::load(if v < full { q.add(v * LANES) } else { last.as_ptr() })
                });
            }
            integers.units[i] *= args.scoring.scale;
        }
        integers
    }

    #[inline(always)]
    unsafe fn score<const Q: usize, const D: usize, const K: usize>(
        queries: &Integers<Q, D>,
        head_dim: usize,
        block: *const u8,
        tile: usize,
        ahead: *const u8,
    ) -> [[S::F; K]; Q] {
        let groups = head_dim.div_ceil(GROUP);
        let at = tile * groups * 64;
        // SAFETY: the block holds all tiles and their scales.
        unsafe {
            let keys = block.add(at);
            let ahead = ahead.wrapping_add(at);
            let mut high = [[S::splat_i(0); K]; Q];
            let mut low = [[S::splat_i(0); K]; Q];
            for i in 0..Q {
                high[i] = [S::splat_i(queries.starts[i]); K];
            }
            for group in 0..groups {
                for k in 0..K {
                    let line = (k * groups + group) * 64;
                    S::prefetch_second(ahead.wrapping_add(line));
                    let key = S::load_i8(keys.add(line));
                    for i in 0..Q {
                        high[i][k] = S::dot_i8(high[i][k], key, queries.high[i].as_ptr().add(group * GROUP));
                        low[i][k] = S::dot_i8(low[i][k], key, queries.low[i].as_ptr().add(group * GROUP));
                    }
                }
            }
            let mut scores = [[S::splat(0.0); K]; Q];
            for k in 0..K {
                let scale = S::load_f16(scales(block, head_dim).0.add((tile + k) * LANES));
                for i in 0..Q {
                    let unit = S::mul(scale, S::splat(queries.units[i]));
                    scores[i][k] = S::mul(joined::<S>(high[i][k], low[i][k]), unit);
                }
            }
            scores
        }
    }

    #[inline(always)]
    fn no_weights<const Q: usize>() -> Integers<Q, CHUNK> {
        Integers::zero()
    }

    #[inline(always)]
    unsafe fn weights<const Q: usize>(
        weights: &mut Integers<Q, CHUNK>,
        i: usize,
        probabilities: &mut [f32; CHUNK],
        (n, n_keys): (usize, usize),
        blocks: &[*const u8; CHUNK_BLOCKS],
        head_dim: usize,
    ) {
        let tiles = n_keys.div_ceil(LANES);
        // SAFETY: the blocks hold `n_keys` scales.
        unsafe {
            weights.set::<S>(i, probabilities, tiles, |tile, p| {
                let (block, at) = (blocks[tile * LANES / KEYS], tile * LANES % KEYS);
                let scale = scales(block, head_dim).1.add(at);
                let mut weight = S::mul(S::load(p), S::load_f16(scale));
                if (tile + 1) * LANES > n {
                    // Scales of positions that do not count may be anything.
                    let mut lanes = S::to_array(weight);
                    lanes[n.saturating_sub(tile * LANES)..].fill(0.0);
                    weight = S::load(lanes.as_ptr());
                }
                weight
            });
        }
    }

    #[inline(always)]
    unsafe fn weigh<const Q: usize, const V: usize>(
        weights: &Integers<Q, CHUNK>,
        _probabilities: &[[f32; CHUNK]; Q],
        head_dim: usize,
        blocks: &[*const u8; CHUNK_BLOCKS],
        n: usize,
        vector: usize,
        ahead: *const u8,
    ) -> [[S::F; V]; Q] {
        let vectors = head_dim.div_ceil(LANES);
        let values_at = <Self as Kept<S>>::values_at(head_dim);
        // SAFETY: the blocks hold `n` values, each padded to whole vectors, in groups of four.
        unsafe {
            let mut high = [[S::splat_i(0); V]; Q];
            let mut low = [[S::splat_i(0); V]; Q];
            for i in 0..Q {
                high[i] = [S::splat_i(weights.starts[i]); V];
            }
            for first in (0..n).step_by(KEYS) {
                let b = first / KEYS;
                let values = blocks[b].add(values_at);
                let ahead = if first + KEYS < n { blocks[b + 1].wrapping_add(values_at) } else { ahead };
                for j in (0..KEYS.min(n - first)).step_by(GROUP) {
                    for v in 0..V {
                        let line = (j / GROUP * vectors + vector + v) * 64;
                        S::prefetch_second(ahead.wrapping_add(line));
                        let value = S::load_i8(values.add(line));
                        for i in 0..Q {
                            high[i][v] = S::dot_i8(high[i][v], value, weights.high[i].as_ptr().add(first + j));
                            low[i][v] = S::dot_i8(low[i][v], value, weights.low[i].as_ptr().add(first + j));
                        }
                    }
                }
            }
            let mut sums = [[S::splat(0.0); V]; Q];
            for i in 0..Q {
                for v in 0..V {
                    sums[i][v] = S::mul(joined::<S>(high[i][v], low[i][v]), S::splat(weights.units[i]));
                }
            }
            sums
        }
    }
}
