//! Causal attention of consecutive queries of one head over the cache, chunk by chunk with a running softmax
//! (Milakov & Gimelshein 2018, arXiv:1805.02867), so no matrix of scores is ever made.
//!
//! Chunks start at multiples of [`CHUNK`] positions counted from the start of the text. Each has a softmax of its own, and
//! chunks are merged in order. A query therefore sees the same sums in the same order whether it is computed alone or
//! with others, and whether one thread does all of its chunks or several do some each (Dao et al. 2023, "flash-decoding").
//! A chunk is several blocks long because a softmax has a long chain of dependent steps, whatever its length.

use super::math::{activation, exp};
use crate::kernels::simd::{LANES, Simd};
use crate::kernels::{AttentionArgs, Biases, Scoring};
use crate::spec::{Activation, MAX_HEAD_DIM, Sparse};
use std::marker::PhantomData;
use std::ops::Range;

/// Positions of a block: a page of the cache holds so many.
pub(crate) const KEYS: usize = 64;
const KEY_TILES: usize = KEYS / LANES;
/// Positions whose softmax is taken together.
pub(crate) const CHUNK: usize = 256;
pub(super) const CHUNK_BLOCKS: usize = CHUNK / KEYS;
/// Heads up to this are narrow.
const NARROW: usize = 128;

/// How keys and values are kept in a block, and how they meet queries and probabilities.
pub(in crate::kernels) trait Kept<S: Simd> {
    /// `Q` queries, ready for products.
    type Queries<const Q: usize, const D: usize>;
    /// Probabilities of a chunk for `Q` queries, ready for products.
    type Weights<const Q: usize>;

    /// Bytes of a block before its values.
    fn values_at(head_dim: usize) -> usize;
    /// Asks for what a block holds besides keys and values.
    unsafe fn ask_for_scales(block: *const u8, head_dim: usize);
    /// No queries.
    fn no_queries<const Q: usize, const D: usize>() -> Self::Queries<Q, D>;
    /// Makes `queries` those from `query` on.
    unsafe fn queries<const Q: usize, const D: usize>(
        queries: &mut Self::Queries<Q, D>,
        args: &AttentionArgs<'_>,
        query: usize,
    );
    /// Scores of the 16 keys of each of `K` tiles of the block at `block`; meanwhile as many bytes from `ahead` on are
    /// asked for.
    unsafe fn score<const Q: usize, const D: usize, const K: usize>(
        queries: &Self::Queries<Q, D>,
        head_dim: usize,
        block: *const u8,
        tile: usize,
        ahead: *const u8,
    ) -> [[S::F; K]; Q];
    /// No weights.
    fn no_weights<const Q: usize>() -> Self::Weights<Q>;
    /// Makes weights of query `i` from its probabilities, which may be overwritten, for `counts.1` positions of a chunk of
    /// which the first `counts.0` count.
    unsafe fn weights<const Q: usize>(
        weights: &mut Self::Weights<Q>,
        i: usize,
        probabilities: &mut [f32; CHUNK],
        counts: (usize, usize),
        blocks: &[*const u8; CHUNK_BLOCKS],
        head_dim: usize,
    );
    /// `V` vectors of the weighted sum of the chunk's first `n` values.
    unsafe fn weigh<const Q: usize, const V: usize>(
        weights: &Self::Weights<Q>,
        probabilities: &[[f32; CHUNK]; Q],
        head_dim: usize,
        blocks: &[*const u8; CHUNK_BLOCKS],
        n: usize,
        vector: usize,
        ahead: *const u8,
    ) -> [[S::F; V]; Q];
}

/// All queries, `Q` at a time; scores of `K` tiles of 16 keys and `V` vectors of the output are held in registers, `K1` and
/// `V1` for what is left, one at a time.
#[inline(always)]
pub(in crate::kernels) unsafe fn attention<
    S: Simd,
    C: Kept<S>,
    const Q: usize,
    const K: usize,
    const V: usize,
    const K1: usize,
    const V1: usize,
>(
    args: &AttentionArgs<'_>,
) {
    // SAFETY: passed on.
    unsafe {
        // Most heads are narrow: clearing room for the widest would cost them a tenth of their time.
        if args.cache.head_dim <= NARROW {
            groups::<S, C, Q, K, V, K1, V1, NARROW>(args);
        } else {
            groups::<S, C, Q, K, V, K1, V1, MAX_HEAD_DIM>(args);
        }
    }
}

/// The same for heads of up to `D`.
#[inline(always)]
unsafe fn groups<
    S: Simd,
    C: Kept<S>,
    const Q: usize,
    const K: usize,
    const V: usize,
    const K1: usize,
    const V1: usize,
    const D: usize,
>(
    args: &AttentionArgs<'_>,
) {
    let whole = args.n_queries / Q * Q;
    // SAFETY: the caller's arguments cover all queries, and the keys and values up to the last of them.
    unsafe {
        if whole > 0 {
            let mut group = Group::<S, C, Q, D>::new(args);
            for query in (0..whole).step_by(Q) {
                group.run::<K, V>(query);
            }
        }
        if whole < args.n_queries {
            let mut group = Group::<S, C, 1, D>::new(args);
            for query in whole..args.n_queries {
                group.run::<K1, V1>(query);
            }
        }
    }
}

/// `Q` consecutive queries, and room that others after them use again: clearing it for each took a twelfth of attention
/// (512 tokens, Zen 4).
struct Group<'a, S: Simd, C: Kept<S>, const Q: usize, const D: usize> {
    args: &'a AttentionArgs<'a>,
    /// The first query's number.
    query: usize,
    queries: C::Queries<Q, D>,
    /// Scores, then probabilities, of a chunk.
    scores: [[f32; CHUNK]; Q],
    weights: C::Weights<Q>,
    /// Weighted sums of values.
    sums: [[f32; D]; Q],
    /// The largest score so far, and the sum of the exponentials against it.
    largest: [f32; Q],
    total: [f32; Q],
    lanes: PhantomData<S>,
}

impl<'a, S: Simd, C: Kept<S>, const Q: usize, const D: usize> Group<'a, S, C, Q, D> {
    #[inline(always)]
    fn new(args: &'a AttentionArgs<'a>) -> Self {
        Self {
            args,
            query: 0,
            queries: C::no_queries(),
            scores: [[0.0; CHUNK]; Q],
            weights: C::no_weights(),
            sums: [[0.0; D]; Q],
            largest: [f32::NEG_INFINITY; Q],
            total: [0.0; Q],
            lanes: PhantomData,
        }
    }

    /// The queries from `query` on.
    #[inline(always)]
    unsafe fn start(&mut self, query: usize) {
        // SAFETY: the caller's queries are as many; what is asked for need not be there.
        unsafe {
            self.query = query;
            C::queries(&mut self.queries, self.args, query);
            // The next ones lie kilobytes apart, where no processor follows: waiting for them took a tenth of attention.
            for next in query + Q..(query + 2 * Q).min(self.args.n_queries) {
                let row = self.args.q.wrapping_add(next * self.args.q_stride);
                for at in (0..self.args.cache.head_dim).step_by(LANES) {
                    S::prefetch(row.wrapping_add(at).cast());
                }
            }
        }
        for sums in &mut self.sums {
            sums[..self.args.cache.head_dim.next_multiple_of(LANES)].fill(0.0);
        }
        self.largest = [f32::NEG_INFINITY; Q];
        self.total = [0.0; Q];
    }

    #[inline(always)]
    unsafe fn run<const K: usize, const V: usize>(&mut self, query: usize) {
        let first = self.args.first_position + query;
        let n_keys = first + Q;
        let seen_from = (first + 1).saturating_sub(self.args.scoring.window) / CHUNK * CHUNK;
        // SAFETY: the arguments cover the queries, and the keys and values of `n_keys` positions.
        unsafe {
            self.start(query);
            let first = self.seen_from(seen_from, n_keys);
            let mut base = first;
            while base < n_keys {
                let next = self.seen_from(base + CHUNK, n_keys);
                // What comes after a chunk's values is the next one's first block, or the next head's.
                let cache = &self.args.cache;
                let ahead = if next < n_keys { cache.block(next / KEYS) } else { cache.after(first / KEYS) };
                self.chunk::<K, V>(base, CHUNK.min(n_keys - base), ahead);
                base = next;
            }
            self.finish();
        }
    }

    /// The first chunk from the one at `base` on of which a query sees something, where the last query sees up to `n_keys`
    /// positions; the others are not even asked for. At `n_keys` or beyond when there is none.
    #[inline(always)]
    fn seen_from(&self, base: usize, n_keys: usize) -> usize {
        match self.args.scoring.sparse {
            None => base,
            Some(sparse) => {
                let first = self.args.first_position + self.query;
                let seen = |base: &usize| sees_some(sparse, first..n_keys, *base);
                // No harm is done by what is left out: a query that sees nothing of a chunk keeps its sums as they are.
                (base..n_keys).step_by(CHUNK).find(seen).unwrap_or(n_keys)
            }
        }
    }

    /// Adds the chunk at `base`, of which the last query sees `n_keys` positions. What follows is asked for from
    /// `ahead` on.
    #[inline(always)]
    unsafe fn chunk<const K: usize, const V: usize>(&mut self, base: usize, n_keys: usize, ahead: *const u8) {
        let head_dim = self.args.cache.head_dim;
        let n_blocks = n_keys.div_ceil(KEYS);
        let mut blocks = [std::ptr::null(); CHUNK_BLOCKS];
        for (b, block) in blocks.iter_mut().enumerate().take(n_blocks) {
            *block = self.args.cache.block(base / KEYS + b);
            // SAFETY: the features are the caller's promise.
            unsafe { C::ask_for_scales(*block, head_dim) };
        }
        // SAFETY: the blocks up to `n_keys` positions are there.
        unsafe {
            for (b, &block) in blocks.iter().enumerate().take(n_blocks) {
                let ahead = if b + 1 < n_blocks { blocks[b + 1] } else { blocks[0].add(C::values_at(head_dim)) };
                for tile in (0..KEY_TILES).step_by(K) {
                    let at = b * KEYS + tile * LANES;
                    if at < n_keys {
                        let scores = C::score::<Q, D, K>(&self.queries, head_dim, block, tile, ahead);
                        for i in 0..Q {
                            for k in 0..K {
                                S::store(self.scores[i].as_mut_ptr().add(at + k * LANES), scores[i][k]);
                            }
                        }
                    }
                }
            }
            let mut counts = [0; Q];
            let mut fades = [(1.0, 0.0); Q];
            for i in 0..Q {
                let end = self.args.first_position + self.query + i + 1;
                let unseen = end.saturating_sub(self.args.scoring.window).saturating_sub(base);
                counts[i] = end.saturating_sub(base).min(CHUNK);
                if unseen >= counts[i] {
                    counts[i] = 0;
                }
                self.adjust(i, base, counts[i]);
                if !self.sees_some(i, unseen, counts[i]) {
                    counts[i] = 0;
                }
                fades[i] = self.soften(i, (unseen, counts[i]), n_keys);
                C::weights(&mut self.weights, i, &mut self.scores[i], (counts[i], n_keys), &blocks, head_dim);
            }
            let vectors = head_dim.div_ceil(LANES);
            let whole = vectors / V * V;
            for vector in (0..whole).step_by(V) {
                self.add::<V>(&counts, &fades, &blocks, n_keys, vector, ahead);
            }
            for vector in whole..vectors {
                self.add::<1>(&counts, &fades, &blocks, n_keys, vector, ahead);
            }
        }
    }

    /// Caps and biases query `i`'s scores of the first `n` positions of the chunk at `base`.
    #[inline(always)]
    unsafe fn adjust(&mut self, i: usize, base: usize, n: usize) {
        let Scoring { scale, cap, slope, bf16, biases, sparse, .. } = self.args.scoring;
        let query = self.args.first_position + self.query + i;
        let p = self.scores[i].as_mut_ptr();
        // SAFETY: `scores` holds the tiles of `n` positions.
        unsafe {
            if cap != 0.0 {
                for tile in 0..n.div_ceil(LANES) {
                    let at = p.add(tile * LANES);
                    let part = S::mul(S::load(at), S::splat(1.0 / cap));
                    S::store(at, S::mul(activation::<S>(Activation::Tanh, part), S::splat(cap)));
                }
            }
            if slope != 0.0 && bf16 {
                let rounded = half::bf16::from_f32(slope).to_f32();
                for key in 0..n {
                    let bias = half::bf16::from_f32(rounded * (base + key) as f32).to_f32();
                    *p.add(key) = bias.mul_add(scale, *p.add(key));
                }
            } else if slope != 0.0 {
                // Whole numbers below 2^24: exact.
                let places = S::load(std::array::from_fn::<f32, LANES, _>(|lane| lane as f32).as_ptr());
                for tile in 0..n.div_ceil(LANES) {
                    let at = p.add(tile * LANES);
                    let distance = (base + tile * LANES) as f32 - query as f32;
                    let distance = S::add(places, S::splat(distance));
                    S::store(at, S::fma(distance, S::splat(slope), S::load(at)));
                }
            }
            if let Some(Biases { values, buckets, zero, before }) = biases {
                for key in 0..n {
                    let distance = (zero + query - before).saturating_sub(base + key);
                    *p.add(key) += values[usize::from(buckets[distance.min(buckets.len() - 1)])];
                }
            }
            if let Some(sparse) = sparse {
                for key in 0..n {
                    if !sparse.sees(query, base + key) {
                        *p.add(key) = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }

    /// Whether query `i` sees any key of a chunk, of which those from `unseen` to `n` count.
    #[inline(always)]
    fn sees_some(&self, i: usize, unseen: usize, n: usize) -> bool {
        // Only a query of sparse blocks may see nothing between what it sees.
        self.args.scoring.sparse.is_none() || self.scores[i][unseen.min(n)..n].iter().any(|&s| s != f32::NEG_INFINITY)
    }

    /// Turns query `i`'s scores of a chunk, of which those from `unseen` to `n` of `n_keys` count, into exponentials. What
    /// was summed before and what this chunk adds are to be multiplied by the two numbers returned.
    #[inline(always)]
    unsafe fn soften(&mut self, i: usize, (unseen, n): (usize, usize), n_keys: usize) -> (f32, f32) {
        let scores = &mut self.scores[i];
        if unseen > 0 {
            scores[..unseen.min(n)].fill(f32::NEG_INFINITY);
        }
        if n < n_keys || !n.is_multiple_of(LANES) {
            scores[n..n_keys.next_multiple_of(LANES)].fill(f32::NEG_INFINITY);
        }
        let p = scores.as_mut_ptr();
        // SAFETY: `scores` holds the tiles of `n` positions.
        unsafe {
            let tiles = n.div_ceil(LANES);
            let mut most = S::splat(f32::NEG_INFINITY);
            for tile in 0..tiles {
                most = S::max(most, S::load(p.add(tile * LANES)));
            }
            let largest = S::largest(most);
            let mut total = S::splat(0.0);
            for tile in 0..tiles {
                let e = exp::<S>(S::sub(S::load(p.add(tile * LANES)), S::splat(largest)));
                total = S::add(total, e);
                S::store(p.add(tile * LANES), e);
            }
            for tile in tiles..n_keys.div_ceil(LANES) {
                S::store(p.add(tile * LANES), S::splat(0.0));
            }
            if n == 0 {
                return (1.0, 0.0);
            }
            let before = self.largest[i];
            let now = if before > largest { before } else { largest };
            let fade = |x: f32| S::to_array(exp::<S>(S::splat(x - now)))[0];
            let (old, new) = (fade(before), fade(largest));
            self.largest[i] = now;
            self.total[i] = self.total[i].mul_add(old, S::sum(total) * new);
            (old, new)
        }
    }

    /// Adds a chunk's weighted values to `V` vectors of the output.
    #[inline(always)]
    unsafe fn add<const V: usize>(
        &mut self,
        counts: &[usize; Q],
        fades: &[(f32, f32); Q],
        blocks: &[*const u8; CHUNK_BLOCKS],
        n_keys: usize,
        vector: usize,
        ahead: *const u8,
    ) {
        let head_dim = self.args.cache.head_dim;
        // SAFETY: the blocks hold `n_keys` values, each padded to whole vectors.
        unsafe {
            let added = C::weigh::<Q, V>(&self.weights, &self.scores, head_dim, blocks, n_keys, vector, ahead);
            for i in 0..Q {
                // A query that sees nothing of the chunk.
                if counts[i] > 0 {
                    for v in 0..V {
                        let sum = self.sums[i].as_mut_ptr().add((vector + v) * LANES);
                        let new = S::mul(added[i][v], S::splat(fades[i].1));
                        S::store(sum, S::fma(S::load(sum), S::splat(fades[i].0), new));
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn finish(&self) {
        for i in 0..Q {
            // SAFETY: the caller's output has `head_dim` elements for each query.
            unsafe {
                let mut inverse = 1.0 / self.total[i];
                let sink = self.args.scoring.sink;
                if sink != f32::NEG_INFINITY {
                    let now = if sink > self.largest[i] { sink } else { self.largest[i] };
                    let fade = |x: f32| S::to_array(exp::<S>(S::splat(x - now)))[0];
                    let old = fade(self.largest[i]);
                    inverse = old / self.total[i].mul_add(old, fade(sink));
                }
                let out = self.args.out.add((self.query + i) * self.args.out_stride);
                let full = self.args.cache.head_dim / LANES * LANES;
                for d in (0..full).step_by(LANES) {
                    S::store(out.add(d), S::mul(S::load(self.sums[i].as_ptr().add(d)), S::splat(inverse)));
                }
                for d in full..self.args.cache.head_dim {
                    *out.add(d) = self.sums[i][d] * inverse;
                }
            }
        }
    }
}

/// Whether one of these queries sees something of the chunk at `base`. A call: few models ask.
#[inline(never)]
fn sees_some(sparse: &Sparse, queries: Range<usize>, base: usize) -> bool {
    queries.into_iter().any(|query| base <= query && sparse.sees_some(query, base..(query + 1).min(base + CHUNK)))
}

/// A number of 16 or 32 bits.
pub(in crate::kernels) trait Number<S: Simd>: Copy {
    /// The 16 numbers at `p`.
    unsafe fn load(p: *const Self) -> S::F;
}

impl<S: Simd> Number<S> for u16 {
    #[inline(always)]
    unsafe fn load(p: *const u16) -> S::F {
        // SAFETY: passed on.
        unsafe { S::load_f16(p) }
    }
}

impl<S: Simd> Number<S> for f32 {
    #[inline(always)]
    unsafe fn load(p: *const f32) -> S::F {
        // SAFETY: passed on.
        unsafe { S::load(p) }
    }
}

/// As f16 (bits in `u16`) or f32: keys `[64 / 16][head_dim][16]`, values `[64][head_dim padded to 16]`.
pub(in crate::kernels) struct Floats<E>(PhantomData<E>);

impl<S: Simd, E: Number<S>> Kept<S> for Floats<E> {
    type Queries<const Q: usize, const D: usize> = [[f32; D]; Q];
    type Weights<const Q: usize> = ();

    #[inline(always)]
    fn values_at(head_dim: usize) -> usize {
        KEYS * head_dim * size_of::<E>()
    }

    #[inline(always)]
    unsafe fn ask_for_scales(_block: *const u8, _head_dim: usize) {}

    #[inline(always)]
    fn no_queries<const Q: usize, const D: usize>() -> [[f32; D]; Q] {
        [[0.0; D]; Q]
    }

    #[inline(always)]
    unsafe fn queries<const Q: usize, const D: usize>(
        queries: &mut [[f32; D]; Q],
        args: &AttentionArgs<'_>,
        query: usize,
    ) {
        for (i, row) in queries.iter_mut().enumerate() {
            for (d, q) in row.iter_mut().enumerate().take(args.cache.head_dim) {
                // SAFETY: the caller's queries have `head_dim` elements each.
                *q = args.scoring.scale * unsafe { *args.q.add((query + i) * args.q_stride + d) };
            }
        }
    }

    #[inline(always)]
    unsafe fn score<const Q: usize, const D: usize, const K: usize>(
        q: &[[f32; D]; Q],
        head_dim: usize,
        block: *const u8,
        tile: usize,
        ahead: *const u8,
    ) -> [[S::F; K]; Q] {
        let at = tile * head_dim * LANES;
        // SAFETY: the block holds all tiles.
        unsafe {
            let keys = block.cast::<E>().add(at);
            let ahead = ahead.cast::<E>().wrapping_add(at);
            let mut dots = [[S::splat(0.0); K]; Q];
            for d in 0..head_dim {
                for k in 0..K {
                    let number = (k * head_dim + d) * LANES;
                    S::prefetch_second(ahead.wrapping_add(number).cast());
                    let key = E::load(keys.add(number));
                    for i in 0..Q {
                        dots[i][k] = S::fma(key, S::splat(q[i][d]), dots[i][k]);
                    }
                }
            }
            dots
        }
    }

    fn no_weights<const Q: usize>() {}

    #[inline(always)]
    unsafe fn weights<const Q: usize>(
        (): &mut (),
        _i: usize,
        _probabilities: &mut [f32; CHUNK],
        _counts: (usize, usize),
        _blocks: &[*const u8; CHUNK_BLOCKS],
        _head_dim: usize,
    ) {
    }

    #[inline(always)]
    unsafe fn weigh<const Q: usize, const V: usize>(
        (): &(),
        probabilities: &[[f32; CHUNK]; Q],
        head_dim: usize,
        blocks: &[*const u8; CHUNK_BLOCKS],
        n: usize,
        vector: usize,
        ahead: *const u8,
    ) -> [[S::F; V]; Q] {
        let stride = head_dim.next_multiple_of(LANES);
        let values_at = <Self as Kept<S>>::values_at(head_dim);
        // SAFETY: the blocks hold `n` values, each padded to whole vectors.
        unsafe {
            let mut sums = [[S::splat(0.0); V]; Q];
            for first in (0..n).step_by(KEYS) {
                let b = first / KEYS;
                let values = blocks[b].add(values_at).cast::<E>().add(vector * LANES);
                let ahead = if first + KEYS < n { blocks[b + 1].wrapping_add(values_at) } else { ahead };
                let ahead = ahead.cast::<E>().wrapping_add(vector * LANES);
                for j in 0..KEYS.min(n - first) {
                    for v in 0..V {
                        let number = j * stride + v * LANES;
                        S::prefetch_second(ahead.wrapping_add(number).cast());
                        let value = E::load(values.add(number));
                        for i in 0..Q {
                            sums[i][v] = S::fma(value, S::splat(probabilities[i][first + j]), sums[i][v]);
                        }
                    }
                }
            }
            sums
        }
    }
}
