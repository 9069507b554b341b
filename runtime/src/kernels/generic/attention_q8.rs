//! Keys in 8 bits, values in 8 or 4, with one scale for each head and position.
//!
//! ```text
//! keys   [64 / 16][head_dim padded to 4 / 4][16 positions][4 dimensions]   i8
//! values [64 / 4][head_dim padded to 16][4 positions]                       i8
//! scales of keys [64], of values [64]                                       f16
//!
//! values in 4 bits, a byte being one position's number + 8, and 16 times that of the position four on:
//!        [64 / 8][head_dim padded to 16][4 positions]
//! ```
//!
//! Both products are integer dot products, exact and therefore the same on every instruction set. Queries and probabilities
//! are taken as integers of 15 bits, `128 * high + low`, each part of which is an operand: two instructions for 64 products, and
//! an error far below that of the cache itself. (With 8 bits alone it would be of the same size.)

use super::attention::{CHUNK, CHUNK_BLOCKS, KEYS, Kept};
use crate::kernels::AttentionArgs;
use crate::kernels::simd::{LANES, Simd};
use std::marker::PhantomData;

/// The largest integer: its high part is 127, and the low part of others lies in -64..=64.
const MOST: f32 = 127.0 * 128.0;
/// Columns of a dot product.
const GROUP: usize = 4;

/// How a line of 64 bytes holds the numbers of values.
pub(in crate::kernels) trait Line<S: Simd> {
    /// Operands of 64 numbers that a line holds: 1 or 2.
    const OPERANDS: usize;
    /// What is added to every number.
    const OFFSET: i32;
    /// The operands; the second is of no use if there is one.
    unsafe fn load(p: *const u8) -> [S::B; 2];
    /// `acc[row] + sum over 4 columns of operand[row][col] * x[col]`.
    unsafe fn dot(acc: S::I, operand: S::B, x: *const i8) -> S::I;
}

/// 64 numbers in -127..=127.
pub(in crate::kernels) struct Bytes;

impl<S: Simd> Line<S> for Bytes {
    const OPERANDS: usize = 1;
    const OFFSET: i32 = S::I8_OFFSET;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> [S::B; 2] {
        // SAFETY: passed on.
        unsafe { [S::load_i8(p); 2] }
    }

    #[inline(always)]
    unsafe fn dot(acc: S::I, operand: S::B, x: *const i8) -> S::I {
        // SAFETY: passed on.
        unsafe { S::dot_i8(acc, operand, x) }
    }
}

/// 128 numbers in -8..=7.
pub(in crate::kernels) struct Nibbles;

impl<S: Simd> Line<S> for Nibbles {
    const OPERANDS: usize = 2;
    const OFFSET: i32 = S::CODE_OFFSET;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> [S::B; 2] {
        // SAFETY: passed on.
        unsafe {
            let line = S::load_bytes(p);
            [S::centered(S::mask(line, 15), 8), S::centered(S::mask(S::shift_right(line, 4), 15), 8)]
        }
    }

    #[inline(always)]
    unsafe fn dot(acc: S::I, operand: S::B, x: *const i8) -> S::I {
        // SAFETY: passed on.
        unsafe { S::dot_code(acc, operand, x) }
    }
}

/// The kind, by its values.
pub(in crate::kernels) struct Integral<L>(PhantomData<L>);

/// `Q` vectors as integers.
pub(in crate::kernels) struct Integers<const Q: usize, const N: usize> {
    high: [[i8; N]; Q],
    low: [[i8; N]; Q],
    /// The sums of the high parts and of the low parts: what raised operands add to products, for each 1 they are raised by.
    sums: [[i32; 2]; Q],
    /// What the integer 1 stands for.
    units: [f32; Q],
}

impl<const Q: usize, const N: usize> Integers<Q, N> {
    #[inline(always)]
    fn zero() -> Self {
        Self { high: [[0; N]; Q], low: [[0; N]; Q], sums: [[0; 2]; Q], units: [0.0; Q] }
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
            let mut sums = [S::splat(0.0); 2];
            for v in 0..vectors {
                let integer = whole::<S>(S::mul(S::load(p.add(v * LANES)), inverse));
                let high = whole::<S>(S::mul(integer, S::splat(1.0 / 128.0)));
                S::store_i8(self.high[i].as_mut_ptr().add(v * LANES), high);
                let low = S::fma(high, S::splat(-128.0), integer);
                S::store_i8(self.low[i].as_mut_ptr().add(v * LANES), low);
                sums = [S::add(sums[0], high), S::add(sums[1], low)];
            }
            if S::I8_OFFSET != 0 || S::CODE_OFFSET != 0 {
                // Whole numbers: exact in any order.
                self.sums[i] = [S::sum(sums[0]) as i32, S::sum(sums[1]) as i32];
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

impl<L> Integral<L> {
    /// Where the scales of keys begin, and those of values.
    #[inline(always)]
    unsafe fn scales<S: Simd>(block: *const u8, head_dim: usize) -> (*const u16, *const u16)
    where
        L: Line<S>,
    {
        // SAFETY: inside the caller's block.
        unsafe {
            let values = KEYS * head_dim.next_multiple_of(LANES) / L::OPERANDS;
            let scales = block.add(KEYS * head_dim.next_multiple_of(GROUP) + values);
            (scales.cast(), scales.add(2 * KEYS).cast())
        }
    }
}

impl<S: Simd, L: Line<S>> Kept<S> for Integral<L> {
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
            let (scales, _) = Self::scales::<S>(block, head_dim);
            for line in 0..4 * KEYS / 64 {
                S::prefetch(scales.cast::<u8>().wrapping_add(line * 64));
            }
        }
    }

    #[inline(always)]
    fn no_queries<const Q: usize, const D: usize>() -> Integers<Q, D> {
        Integers::zero()
    }

    #[inline(always)]
    unsafe fn queries<const Q: usize, const D: usize>(
        integers: &mut Integers<Q, D>,
        args: &AttentionArgs<'_>,
        query: usize,
    ) {
        let head_dim = args.cache.head_dim;
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
                high[i] = [S::splat_i(-S::I8_OFFSET * queries.sums[i][0]); K];
                low[i] = [S::splat_i(-S::I8_OFFSET * queries.sums[i][1]); K];
            }
            // One query reads tile after tile, as the processor's prefetcher likes it (Zen 4: 2 to 3 % of decoding after
            // 900 tokens). Several share what they load of themselves among tiles.
            let tiles = if Q == 1 { 1 } else { K };
            for first in (0..K).step_by(tiles) {
                for group in 0..groups {
                    for k in first..first + tiles {
                        let line = (k * groups + group) * 64;
                        S::prefetch_second(ahead.wrapping_add(line));
                        let key = S::load_i8(keys.add(line));
                        for i in 0..Q {
                            high[i][k] = S::dot_i8(high[i][k], key, queries.high[i].as_ptr().add(group * GROUP));
                            low[i][k] = S::dot_i8(low[i][k], key, queries.low[i].as_ptr().add(group * GROUP));
                        }
                    }
                }
            }
            let mut scores = [[S::splat(0.0); K]; Q];
            for k in 0..K {
                let scale = S::load_f16(Self::scales::<S>(block, head_dim).0.add((tile + k) * LANES));
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
                let scale = Self::scales::<S>(block, head_dim).1.add(at);
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
                high[i] = [S::splat_i(-L::OFFSET * weights.sums[i][0]); V];
                low[i] = [S::splat_i(-L::OFFSET * weights.sums[i][1]); V];
            }
            for first in (0..n).step_by(KEYS) {
                let b = first / KEYS;
                let values = blocks[b].add(values_at);
                let ahead = if first + KEYS < n { blocks[b + 1].wrapping_add(values_at) } else { ahead };
                for j in (0..KEYS.min(n - first)).step_by(GROUP * L::OPERANDS) {
                    for v in 0..V {
                        let start = (j / (GROUP * L::OPERANDS) * vectors + vector + v) * 64;
                        S::prefetch_second(ahead.wrapping_add(start));
                        let value = L::load(values.add(start));
                        for part in 0..L::OPERANDS {
                            let at = first + j + part * GROUP;
                            for i in 0..Q {
                                high[i][v] = L::dot(high[i][v], value[part], weights.high[i].as_ptr().add(at));
                                low[i][v] = L::dot(low[i][v], value[part], weights.low[i].as_ptr().add(at));
                            }
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
