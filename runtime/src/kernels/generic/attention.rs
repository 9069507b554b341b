//! Causal attention of consecutive queries of one head over the cache, block by block with a running softmax
//! (Milakov & Gimelshein 2018, arXiv:1805.02867), so no matrix of scores is ever made.
//!
//! Blocks start at multiples of [`KEYS`] positions counted from the start of the text. A query therefore sees the same
//! sums in the same order whether it is computed alone or with others.

use super::math::exp;
use crate::kernels::AttentionArgs;
use crate::kernels::simd::{LANES, Simd};
use crate::spec::MAX_HEAD_DIM;

/// Positions of a block; the cache is padded to a multiple of it.
pub(crate) const KEYS: usize = 64;
const KEY_TILES: usize = KEYS / LANES;
/// Heads up to this are narrow.
const NARROW: usize = 128;

/// How keys and values are kept.
pub(in crate::kernels) trait Element<S: Simd> {
    /// One number.
    type Raw;
    /// The 16 numbers at `p`.
    unsafe fn load(p: *const Self::Raw) -> S::F;
}

/// f16.
pub(in crate::kernels) struct Half;

impl<S: Simd> Element<S> for Half {
    type Raw = u16;
    #[inline(always)]
    unsafe fn load(p: *const u16) -> S::F {
        // SAFETY: passed on.
        unsafe { S::load_f16(p) }
    }
}

/// f32.
pub(in crate::kernels) struct Single;

impl<S: Simd> Element<S> for Single {
    type Raw = f32;
    #[inline(always)]
    unsafe fn load(p: *const f32) -> S::F {
        // SAFETY: passed on.
        unsafe { S::load(p) }
    }
}

/// All queries, `Q` at a time; scores of `K` tiles of 16 keys and `V` vectors of the output are held in registers.
#[inline(always)]
pub(in crate::kernels) unsafe fn attention<S: Simd, E: Element<S>, const Q: usize, const K: usize, const V: usize>(
    args: &AttentionArgs<'_>,
) {
    // SAFETY: passed on.
    unsafe {
        // Most heads are narrow: clearing room for the widest would cost them a tenth of their time.
        if args.cache.head_dim <= NARROW {
            groups::<S, E, Q, K, V, NARROW>(args);
        } else {
            groups::<S, E, Q, K, V, MAX_HEAD_DIM>(args);
        }
    }
}

/// The same for heads of up to `D`.
#[inline(always)]
unsafe fn groups<S: Simd, E: Element<S>, const Q: usize, const K: usize, const V: usize, const D: usize>(
    args: &AttentionArgs<'_>,
) {
    let mut query = 0;
    // SAFETY: the caller's arguments cover all queries, and the keys and values up to the last of them.
    unsafe {
        while query + Q <= args.n_queries {
            Group::<S, Q, D>::new(args, query).run::<E, K, V>();
            query += Q;
        }
        while query < args.n_queries {
            Group::<S, 1, D>::new(args, query).run::<E, KEY_TILES, V>();
            query += 1;
        }
    }
}

/// `Q` consecutive queries.
struct Group<'a, S: Simd, const Q: usize, const D: usize> {
    args: &'a AttentionArgs<'a>,
    /// The first query's number.
    query: usize,
    /// The queries, scaled.
    q: [[f32; D]; Q],
    /// Scores, then probabilities, of a block.
    scores: [[f32; KEYS]; Q],
    /// Weighted sums of values.
    sums: [[f32; D]; Q],
    /// The largest score so far, and the sum of the exponentials against it.
    largest: [f32; Q],
    total: [f32; Q],
    lanes: std::marker::PhantomData<S>,
}

impl<'a, S: Simd, const Q: usize, const D: usize> Group<'a, S, Q, D> {
    #[inline(always)]
    unsafe fn new(args: &'a AttentionArgs<'a>, query: usize) -> Self {
        let mut q = [[0.0; D]; Q];
        for i in 0..Q {
            for d in 0..args.cache.head_dim {
                // SAFETY: the caller's queries have `head_dim` elements each.
                q[i][d] = args.scale * unsafe { *args.q.add((query + i) * args.q_stride + d) };
            }
        }
        Self {
            args,
            query,
            q,
            scores: [[0.0; KEYS]; Q],
            sums: [[0.0; D]; Q],
            largest: [f32::NEG_INFINITY; Q],
            total: [0.0; Q],
            lanes: std::marker::PhantomData,
        }
    }

    #[inline(always)]
    unsafe fn run<E: Element<S>, const K: usize, const V: usize>(&mut self) {
        let first = self.args.first_position + self.query;
        let n_keys = first + Q;
        // SAFETY: the arguments cover the keys and values of `n_keys` positions, rounded up to a block.
        unsafe {
            for base in (0..n_keys).step_by(KEYS) {
                let (keys, values) = self.args.cache.block(base / KEYS);
                let (keys, values) = (keys.cast::<E::Raw>(), values.cast::<E::Raw>());
                for tile in (0..KEY_TILES).step_by(K) {
                    if base + tile * LANES < n_keys {
                        self.score::<E, K>(keys, tile);
                    }
                }
                for i in 0..Q {
                    self.soften(i, (first + i + 1).saturating_sub(base).min(KEYS));
                }
                let n_values = KEYS.min(n_keys - base);
                let vectors = self.args.cache.head_dim.div_ceil(LANES);
                let whole = vectors / V * V;
                for vector in (0..whole).step_by(V) {
                    self.weigh::<E, V>(values, n_values, vector);
                }
                for vector in whole..vectors {
                    self.weigh::<E, 1>(values, n_values, vector);
                }
            }
            self.finish();
        }
    }

    /// Scores of the 16 keys of each of `K` tiles.
    #[inline(always)]
    unsafe fn score<E: Element<S>, const K: usize>(&mut self, keys: *const E::Raw, tile: usize) {
        let tile_len = self.args.cache.head_dim * LANES;
        // SAFETY: `keys` is a whole block.
        unsafe {
            let keys = keys.add(tile * tile_len);
            let mut dots = [[S::splat(0.0); K]; Q];
            for d in 0..self.args.cache.head_dim {
                for k in 0..K {
                    let key = E::load(keys.add(k * tile_len + d * LANES));
                    for i in 0..Q {
                        dots[i][k] = S::fma(key, S::splat(self.q[i][d]), dots[i][k]);
                    }
                }
            }
            for i in 0..Q {
                for k in 0..K {
                    S::store(self.scores[i].as_mut_ptr().add((tile + k) * LANES), dots[i][k]);
                }
            }
        }
    }

    /// Turns query `i`'s scores of a block, of which the first `n` count, into exponentials; rescales what was summed.
    #[inline(always)]
    unsafe fn soften(&mut self, i: usize, n: usize) {
        let scores = &mut self.scores[i];
        if n == 0 {
            *scores = [0.0; KEYS];
            return;
        }
        scores[n..].fill(f32::NEG_INFINITY);
        // SAFETY: `scores` holds `KEY_TILES` vectors.
        unsafe {
            let at = |tile: usize| scores.as_ptr().add(tile * LANES);
            let mut most = S::load(at(0));
            for tile in 1..KEY_TILES {
                most = S::max(most, S::load(at(tile)));
            }
            let (before, now) = (self.largest[i], S::largest(most));
            let largest = if before > now { before } else { now };
            let mut total = S::splat(0.0);
            for tile in 0..KEY_TILES {
                let e = exp::<S>(S::sub(S::load(scores.as_ptr().add(tile * LANES)), S::splat(largest)));
                total = S::add(total, e);
                S::store(scores.as_mut_ptr().add(tile * LANES), e);
            }
            let correction = S::to_array(exp::<S>(S::splat(before - largest)))[0];
            self.largest[i] = largest;
            self.total[i] = self.total[i].mul_add(correction, S::sum(total));
            if correction != 1.0 {
                for d in (0..self.args.cache.head_dim).step_by(LANES) {
                    let sum = self.sums[i].as_mut_ptr().add(d);
                    S::store(sum, S::mul(S::load(sum), S::splat(correction)));
                }
            }
        }
    }

    /// Adds the values of a block's first `n` positions, weighted, to `V` vectors of the output.
    #[inline(always)]
    unsafe fn weigh<E: Element<S>, const V: usize>(&mut self, values: *const E::Raw, n: usize, vector: usize) {
        let stride = self.args.cache.head_dim.next_multiple_of(LANES);
        // SAFETY: `values` is a whole block, each value padded to whole vectors.
        unsafe {
            let values = values.add(vector * LANES);
            let mut sums = [[S::splat(0.0); V]; Q];
            for i in 0..Q {
                for v in 0..V {
                    sums[i][v] = S::load(self.sums[i].as_ptr().add((vector + v) * LANES));
                }
            }
            for j in 0..n {
                for v in 0..V {
                    let value = E::load(values.add(j * stride + v * LANES));
                    for i in 0..Q {
                        sums[i][v] = S::fma(value, S::splat(self.scores[i][j]), sums[i][v]);
                    }
                }
            }
            for i in 0..Q {
                for v in 0..V {
                    S::store(self.sums[i].as_mut_ptr().add((vector + v) * LANES), sums[i][v]);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn finish(&self) {
        for i in 0..Q {
            let inverse = 1.0 / self.total[i];
            for d in 0..self.args.cache.head_dim {
                // SAFETY: the caller's output has `head_dim` elements for each query.
                unsafe { *self.args.out.add((self.query + i) * self.args.out_stride + d) = self.sums[i][d] * inverse };
            }
        }
    }
}
