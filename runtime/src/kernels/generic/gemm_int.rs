//! Matrix products with integer weights: `out[t][row] = row scale * sum over blocks of scale_w * scale_x * (w . x)`.
//!
//! Within a block of 32 columns the dot product is exact in 32-bit integers; across blocks one f32 accumulator per
//! row adds up in order of the blocks. The result does not depend on how many tokens are computed together, on the
//! tile sizes below, nor on the instruction set.
//!
//! What bounds many tokens: each eight dot products need three float operations on the same two ports, so at most 73 % of
//! the 8-bit peak; with unpacking it is 59 to 61 % (GPT-2 124M, 512 tokens, `q4`, one thread, by `perf`; one matrix by itself).
//!
//! Tried and left out: AMX. `tdpbssd` makes the 16 x 16 sums of a block in 16 cycles (with 32 columns as with 64), but loading
//! its operands (13), storing the sums (15 to 18) and scaling them (24 to 29) hardly overlap with it: 70 cycles where
//! `vpdpbusd` takes 99, and 1675 -> 1870 tokens/s of prefill on one thread, 3040 -> 3250 on two, for 300 lines of assembly.
//! It would pay with one scale for a whole row.

use super::int_weights::{Dots, IntWeights, LINE};
use crate::kernels::simd::{LANES, Simd};
use crate::kernels::{ActBlock, Activations, Epilogue, GemmArgs, Vendor};
use crate::quant::{BLOCK, IntPanel, PANEL_ROWS, ROW_SCALES};
use std::mem::MaybeUninit;
use std::ops::Range;

/// Bytes between what is multiplied with `n_tokens` tokens and what is asked for then: into the first-level cache, and into the
/// second.
///
/// Into the second early, which takes more outstanding lines than the first, and into the first just before. One core (Intel),
/// 83 MB of `q4` of which a plain read takes 14.8 GB/s on a busy machine: without 9.6, one of 4 KiB 11.7, one of 12 or 16 KiB
/// into the second level 12.9, these two 13.4.
///
/// Zen 4 follows one token by itself once it is shown where (other AMD processors were not tried): all of 64 to 192 bytes read as
/// fast as nothing but reading does, for `q2` and `q4` up to 320; 512 bytes and 6 to 12 KiB take 8 to 18 % longer on one thread and as
/// long on two. With more tokens near requests come too late, and all of 512 or 1024 bytes and 8 or 12 KiB do as well.
fn ahead(vendor: Vendor, n_tokens: usize) -> [usize; 2] {
    match (vendor, n_tokens) {
        (Vendor::Amd, 1) => [2 * LINE; 2],
        _ => [512, 12288],
    }
}

/// What unpacking asks for, in bytes from the block on.
const UNPACK_AHEAD: usize = 512;

/// Blocks whose unpacked weights are kept in the first-level cache: 24 blocks of two panels are 24 KiB. Fewer would write
/// and read the sums more often.
const CHUNK_BLOCKS: usize = 24;
/// Groups of 4 columns in a block, and bytes of a block that [`unpack`] has made operands of.
const GROUPS: usize = BLOCK / 4;
const UNPACKED_BYTES: usize = PANEL_ROWS * BLOCK;
/// Tokens that one unpacking serves; their sums wait on the stack between chunks of blocks.
const CHUNK_TOKENS: usize = 128;
/// Up to this many tokens, unpacked weights are not worth keeping. Where products of pairs of tokens take a third less (`PAIRS`) they
/// are from 9 on. GPT-2's feed-forward matrix in `q4` out of memory, AVX-512: 9, 12 and 16 tokens took 194, 239 and 271 µs
/// through the buffer, and take 161, 190 and 235; 20 take 300 either way, and 24 are slower from the cache.
const fn few_tokens(pairs: bool) -> usize {
    if pairs { AT_ONCE } else { 2 * AT_ONCE }
}
/// Of which so many are computed together, at most.
const AT_ONCE: usize = 8;
/// Panels computed together.
const MAX_PANELS: usize = 2;

/// Where the sum of a block's products starts: lower by what raised operands will add. A load that is broadcast: computing it
/// here takes slots of the ports that multiply.
#[inline(always)]
unsafe fn start<S: Simd, D: Dots<S>>(x: &ActBlock) -> S::I {
    const { assert!(D::OFFSET == 0 || D::OFFSET == 64 || D::OFFSET == 128) };
    // SAFETY: the features are the caller's promise.
    unsafe {
        match D::OFFSET {
            0 => S::splat_i(0),
            64 => S::splat_i(x.lowered[0]),
            _ => S::splat_i(x.lowered[1]),
        }
    }
}

/// One token: every weight is read once, from memory.
#[inline(always)]
pub(in crate::kernels) unsafe fn gemv<S: Simd, W: IntWeights<S>>(args: &GemmArgs) {
    // SAFETY: passed on.
    unsafe { direct::<S, W, 1>(args, 0..args.n_panels, 0) };
}

/// `T` tokens from `token` on: weights become operands in registers and are not kept. Returns `T`.
#[inline(always)]
unsafe fn direct<S: Simd, W: IntWeights<S>, const T: usize>(
    args: &GemmArgs,
    panels: Range<usize>,
    token: usize,
) -> usize {
    let Activations::Int { x, stride } = args.x else { unreachable!("integer weights take integer activations") };
    // SAFETY: the caller's arguments cover the panels, the activations and the output.
    unsafe {
        let x = x.add(token * stride);
        let weights = W::new();
        let layout = panel_layout::<S, W>(args.cols);
        let ahead = ahead(args.vendor, T);
        for panel in panels {
            let base = args.panels.add(panel * args.panel_bytes);
            let (scales, values) = (scales_of(base), base.add(layout.values_at));
            let mut sums = [S::splat(0.0); T];
            // Blocks ask for as much as they take. What lies between the values of two panels is asked for here: a hole in the
            // requests costs more than its lines (Zen 4, one thread: 4096 columns of `q4` read at 12 GB/s, and at 18 to 20 without one).
            prefetch::<S>(base, layout.values_at, ahead);
            for b in 0..layout.n_blocks {
                let block = values.add(b * W::BLOCK_BYTES);
                prefetch::<S>(block, W::BLOCK_BYTES, ahead);
                let mut even = [S::splat_i(0); T];
                // A dot product takes longer than it takes to start the next one: few tokens need two chains each.
                let mut odd = [S::splat_i(0); T];
                for t in 0..T {
                    even[t] = start::<S, W::Dots>(&*x.add(t * stride + b));
                }
                for pair in 0..4 {
                    let (first, second) = weights.pair(block, pair);
                    for t in 0..T {
                        let q = (*x.add(t * stride + b)).q.as_ptr().add(pair * 8);
                        even[t] = W::Dots::dot(even[t], first, q);
                        if T < 4 {
                            odd[t] = W::Dots::dot(odd[t], second, q.add(4));
                        } else {
                            even[t] = W::Dots::dot(even[t], second, q.add(4));
                        }
                    }
                }
                let scale = block_scales::<S>(scales.add(b * LANES));
                for t in 0..T {
                    let dot = if T < 4 { S::add_i(even[t], odd[t]) } else { even[t] };
                    let scale = S::mul(scale, S::splat((*x.add(t * stride + b)).scale));
                    sums[t] = S::fma(S::to_f(dot), scale, sums[t]);
                }
            }
            let row_scales = S::load(base.cast());
            for (t, sum) in sums.into_iter().enumerate() {
                args.finish::<S>(token + t, panel, S::mul(sum, row_scales));
            }
            args.activate(token, T, panel, 1);
        }
    }
    T
}

/// At most [`few_tokens`], as many at a time as registers hold; where that is not all, panel by panel, so that weights
/// come from memory once.
#[inline(always)]
unsafe fn few<S: Simd, W: IntWeights<S>>(args: &GemmArgs) {
    let step = if args.n_tokens > AT_ONCE { 1 } else { args.n_panels };
    for panel in (0..args.n_panels).step_by(step) {
        let panels = || panel..panel + step;
        let mut token = 0;
        while token < args.n_tokens {
            // SAFETY: passed on.
            token += unsafe {
                match args.n_tokens - token {
                    1 => direct::<S, W, 1>(args, panels(), token),
                    2 => direct::<S, W, 2>(args, panels(), token),
                    3 => direct::<S, W, 3>(args, panels(), token),
                    4 => direct::<S, W, 4>(args, panels(), token),
                    5 => direct::<S, W, 5>(args, panels(), token),
                    6 => direct::<S, W, 6>(args, panels(), token),
                    7 => direct::<S, W, 7>(args, panels(), token),
                    _ => direct::<S, W, AT_ONCE>(args, panels(), token),
                }
            };
        }
    }
}

/// [`tiles`] of one instruction set: a function of its own, because the types share it.
pub(in crate::kernels) type Tiles = unsafe fn(&Chunk<'_>, usize, usize);

/// Many tokens: weights of `P` panels are unpacked once for [`CHUNK_TOKENS`] tokens, which go through `tiles`.
#[inline(always)]
pub(in crate::kernels) unsafe fn gemm<S: Simd, W: IntWeights<S>, const P: usize>(args: &GemmArgs, tiles: Tiles) {
    if args.n_tokens <= few_tokens(S::PAIRS) {
        // SAFETY: passed on.
        return unsafe { few::<S, W>(args) };
    }
    let mut panel = 0;
    // SAFETY: the caller's arguments cover the panels, the activations and the output.
    unsafe {
        while panel + P <= args.n_panels {
            panels::<S, W, P>(args, panel, tiles);
            panel += P;
        }
        while panel < args.n_panels {
            panels::<S, W, 1>(args, panel, tiles);
            panel += 1;
        }
    }
}

/// Where the values of a panel lie.
#[inline(always)]
fn panel_layout<S: Simd, W: IntWeights<S>>(cols: usize) -> IntPanel {
    IntPanel::new(cols, W::BLOCK_BYTES).expect("a matrix in memory does not overflow")
}

/// The block scales of a panel.
#[inline(always)]
fn scales_of(panel: *const u8) -> *const i8 {
    panel.wrapping_add(ROW_SCALES).cast()
}

/// What 16 block scales stand for, in units of their rows'.
#[inline(always)]
unsafe fn block_scales<S: Simd>(p: *const i8) -> S::F {
    // SAFETY: passed on.
    unsafe {
        let scales = S::load_i8_lanes(p);
        S::mul(scales, S::abs(scales))
    }
}

/// `P` panels from `panel` on, all tokens.
#[inline(always)]
unsafe fn panels<S: Simd, W: IntWeights<S>, const P: usize>(args: &GemmArgs, panel: usize, tiles: Tiles) {
    const { assert!(P <= MAX_PANELS) };
    let Activations::Int { x, stride } = args.x else { unreachable!("integer weights take integer activations") };
    // Not cleared: that took 3 % of the product.
    let mut unpacked = Lines(MaybeUninit::<[u8; MAX_PANELS * CHUNK_BLOCKS * UNPACKED_BYTES]>::uninit());
    let mut scales = Lines(MaybeUninit::<[f32; MAX_PANELS * CHUNK_BLOCKS * LANES]>::uninit());
    let mut sums = Lines(MaybeUninit::<[f32; MAX_PANELS * LANES * CHUNK_TOKENS]>::uninit());
    let (unpacked, scales) = (unpacked.0.as_mut_ptr().cast::<u8>(), scales.0.as_mut_ptr().cast::<f32>());
    let sums = sums.0.as_mut_ptr().cast::<f32>();
    // SAFETY: the caller's arguments cover the panels, the activations and the output; the three buffers hold a
    // chunk each, and what is read of them was written before: `unpacked` and `scales` here, `sums` by the chunk before.
    unsafe {
        let weights = W::new();
        let layout = panel_layout::<S, W>(args.cols);
        let base = args.panels.add(panel * args.panel_bytes);
        for first_token in (0..args.n_tokens).step_by(CHUNK_TOKENS) {
            let n_tokens = CHUNK_TOKENS.min(args.n_tokens - first_token);
            for first_block in (0..layout.n_blocks).step_by(CHUNK_BLOCKS) {
                let n_blocks = CHUNK_BLOCKS.min(layout.n_blocks - first_block);
                for p in 0..P {
                    let source = base.add(p * args.panel_bytes);
                    let values = source.add(layout.values_at + first_block * W::BLOCK_BYTES);
                    unpack::<S, W>(weights, values, n_blocks, unpacked.add(p * CHUNK_BLOCKS * UNPACKED_BYTES));
                    for b in 0..n_blocks {
                        let scale = block_scales::<S>(scales_of(source).add((first_block + b) * LANES));
                        S::store(scales.add((p * CHUNK_BLOCKS + b) * LANES), scale);
                    }
                }
                let last = first_block + n_blocks == layout.n_blocks;
                // What is unpacked next: more of these panels, the same again for other tokens, or what lies behind them.
                let next = match (last, first_token + n_tokens == args.n_tokens) {
                    (false, _) => layout.values_at + (first_block + n_blocks) * W::BLOCK_BYTES,
                    (true, false) => layout.values_at,
                    (true, true) => P * args.panel_bytes + layout.values_at,
                };
                let next_bytes = CHUNK_BLOCKS.min(layout.n_blocks) * W::BLOCK_BYTES;
                let chunk = Chunk {
                    args,
                    panel,
                    token: first_token,
                    weights: unpacked,
                    scales,
                    x: x.add(first_token * stride + first_block),
                    x_stride: stride,
                    n_blocks,
                    sums,
                    first: first_block == 0,
                    last,
                    next: base.wrapping_add(next),
                    next_lines: next_bytes.div_ceil(n_tokens * LINE),
                };
                tiles(&chunk, P, n_tokens);
            }
        }
    }
}

/// The `n_tokens` tokens of a chunk, of which `T` are computed at a time; its panels are 1 or `P`.
#[inline(always)]
pub(in crate::kernels) unsafe fn tiles<S: Simd, D: Dots<S>, const P: usize, const T: usize>(
    chunk: &Chunk<'_>,
    n_panels: usize,
    n_tokens: usize,
) {
    const { assert!(P <= MAX_PANELS && T <= CHUNK_TOKENS) };
    // A copy stays in registers.
    let mut chunk = *chunk;
    // SAFETY: passed on.
    unsafe { if n_panels == P { chunk.all::<S, D, P, T>(n_tokens) } else { chunk.all::<S, D, 1, T>(n_tokens) } }
}

/// Asks for the `bytes` that will be read some time after those at `p`.
#[inline(always)]
unsafe fn prefetch<S: Simd>(p: *const u8, bytes: usize, [first, second]: [usize; 2]) {
    for line in (0..bytes).step_by(LINE) {
        // SAFETY: a prefetch takes any address; the features are the caller's promise.
        unsafe {
            S::prefetch(p.wrapping_add(first + line));
            S::prefetch_second(p.wrapping_add(second + line));
        }
    }
}

/// Makes operands of `n_blocks` blocks.
#[inline(always)]
unsafe fn unpack<S: Simd, W: IntWeights<S>>(weights: W, source: *const u8, n_blocks: usize, out: *mut u8) {
    for b in 0..n_blocks {
        // SAFETY: the caller's pointers cover `n_blocks` blocks.
        unsafe {
            let block = source.add(b * W::BLOCK_BYTES);
            for line in (0..W::BLOCK_BYTES).step_by(LINE) {
                S::prefetch(block.wrapping_add(UNPACK_AHEAD + line));
            }
            for pair in 0..4 {
                let (first, second) = weights.pair(block, pair);
                S::store_pair(out.add(b * UNPACKED_BYTES + pair * 128), first, second);
            }
        }
    }
}

/// Aligned to a cache line.
#[repr(align(64))]
struct Lines<T>(T);

/// Unpacked blocks of `P` panels, and the tokens that meet them.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Chunk<'a> {
    args: &'a GemmArgs<'a>,
    panel: usize,
    /// The first of the tokens that are left, from which `x` and `sums` count.
    token: usize,
    weights: *const u8,
    /// Of the blocks, as [`block_scales`] makes them: doing it for each tile takes a sixteenth of the slots of its ports.
    scales: *const f32,
    x: *const ActBlock,
    /// From one token to the next, in blocks.
    x_stride: usize,
    n_blocks: usize,
    /// `[tokens][MAX_PANELS][16]`.
    sums: *mut f32,
    /// Whether the sums start at 0.
    first: bool,
    /// Whether they are complete afterwards.
    last: bool,
    /// What will be unpacked next of the first panel, and how much of it to ask for with each token, in lines.
    next: *const u8,
    next_lines: usize,
}

impl Chunk<'_> {
    /// All `n_tokens` tokens, and `P` panels.
    #[inline(always)]
    unsafe fn all<S: Simd, D: Dots<S>, const P: usize, const T: usize>(&mut self, n_tokens: usize) {
        let mut left = n_tokens;
        while left > 0 {
            // SAFETY: passed on.
            left -= unsafe {
                match left {
                    // Two of 4 are faster than 6 and 2.
                    8 if T == 6 => self.tokens::<S, D, P, 4>(),
                    n if n >= T => self.tokens::<S, D, P, T>(),
                    n if n >= 4 => self.tokens::<S, D, P, 4>(),
                    n if n >= 2 => self.tokens::<S, D, P, 2>(),
                    _ => self.tokens::<S, D, P, 1>(),
                }
            };
        }
    }

    /// The dot products of block `b`.
    #[inline(always)]
    unsafe fn dots<S: Simd, D: Dots<S>, const P: usize, const T: usize>(&self, b: usize) -> [[S::I; P]; T] {
        // SAFETY: the chunk covers `P` panels, `T` tokens and `n_blocks` blocks.
        unsafe {
            let mut dots = [[S::splat_i(0); P]; T];
            for t in 0..T {
                let x = &*self.x.add(t * self.x_stride + b);
                dots[t] = [start::<S, D>(x); P];
            }
            for group in 0..GROUPS {
                let mut operands = [S::load_bytes(self.weights.add(b * UNPACKED_BYTES + group * 64)); P];
                for (p, operand) in operands.iter_mut().enumerate().skip(1) {
                    *operand = S::load_bytes(self.weights.add((p * CHUNK_BLOCKS + b) * UNPACKED_BYTES + group * 64));
                }
                for t in 0..T {
                    let x = (*self.x.add(t * self.x_stride + b)).q.as_ptr().add(group * 4);
                    for p in 0..P {
                        dots[t][p] = D::dot(dots[t][p], operands[p], x);
                    }
                }
            }
            dots
        }
    }

    /// `sum` and the products of block `b` and token `t`.
    #[inline(always)]
    unsafe fn added<S: Simd>(&self, sum: S::F, dots: S::I, scale: S::F, (t, b): (usize, usize)) -> S::F {
        // SAFETY: as for `dots`.
        unsafe { S::fma(S::to_f(dots), S::mul(scale, S::splat((*self.x.add(t * self.x_stride + b)).scale)), sum) }
    }

    /// Adds the products of block `b` of panel `p` and of tokens `t` and `t + 1`, if there are so many; the last one without
    /// another is computed twice.
    #[inline(always)]
    unsafe fn add_pair<S: Simd, const P: usize, const T: usize>(
        &self,
        (b, p, t): (usize, usize, usize),
        scale: S::F,
        sums: &mut [[S::F; P]; T],
    ) {
        const { assert!(!S::PAIRS || S::I8_OFFSET == 0 && S::CODE_OFFSET == 0) };
        let other = (t + 1).min(T - 1);
        // SAFETY: as for `dots`.
        unsafe {
            let weights = self.weights.add((p * CHUNK_BLOCKS + b) * UNPACKED_BYTES);
            let [x, y] = [t, other].map(|t| (*self.x.add(t * self.x_stride + b)).q.as_ptr());
            let mut dots = [S::splat_i(0); 2];
            for pair in 0..GROUPS / 2 {
                dots = S::dot_pair(dots, weights.add(pair * 128), [x.add(pair * 8), y.add(pair * 8)]);
            }
            let [first, second] = S::split_pair(dots);
            sums[t][p] = self.added::<S>(sums[t][p], first, scale, (t, b));
            if other > t {
                sums[other][p] = self.added::<S>(sums[other][p], second, scale, (other, b));
            }
        }
    }

    /// Adds the chunk's blocks to the sums of the next `T` tokens and `P` panels, all held in registers. Returns `T`.
    #[inline(always)]
    unsafe fn tokens<S: Simd, D: Dots<S>, const P: usize, const T: usize>(&mut self) -> usize {
        // SAFETY: the chunk covers `P` panels, `T` tokens and `n_blocks` blocks.
        unsafe {
            let mut sums = [[S::splat(0.0); P]; T];
            if !self.first {
                for t in 0..T {
                    for p in 0..P {
                        sums[t][p] = S::load(self.sums.add((t * MAX_PANELS + p) * LANES));
                    }
                }
            }
            // Here, where nothing else comes from memory, and not all at once.
            for p in 0..P {
                for line in 0..T * self.next_lines {
                    S::prefetch_second(self.next.wrapping_add(p * self.args.panel_bytes + line * LINE));
                }
            }
            self.next = self.next.wrapping_add(T * self.next_lines * LINE);
            if self.last {
                // Rows of the output lie kilobytes apart, each on a page of its own: ask now, write later.
                for t in 0..T {
                    S::prefetch(self.args.out_at(self.token + t, self.panel).cast());
                    S::prefetch(self.args.out_at(self.token + t, self.panel + P - 1).cast());
                }
            }
            for b in 0..self.n_blocks {
                let dots = if S::PAIRS { [[S::splat_i(0); P]; T] } else { self.dots::<S, D, P, T>(b) };
                for p in 0..P {
                    let scale = S::load(self.scales.add((p * CHUNK_BLOCKS + b) * LANES));
                    if S::PAIRS {
                        for t in (0..T).step_by(2) {
                            self.add_pair::<S, P, T>((b, p, t), scale, &mut sums);
                        }
                        continue;
                    }
                    for t in 0..T {
                        sums[t][p] = self.added::<S>(sums[t][p], dots[t][p], scale, (t, b));
                    }
                }
            }
            if self.last {
                for p in 0..P {
                    let row_scales = self.args.panels.add((self.panel + p) * self.args.panel_bytes);
                    let row_scales = S::load(row_scales.cast());
                    for t in 0..T {
                        self.args.finish::<S>(self.token + t, self.panel + p, S::mul(sums[t][p], row_scales));
                    }
                }
                self.args.activate(self.token, T, self.panel, P);
            } else {
                for t in 0..T {
                    for p in 0..P {
                        S::store(self.sums.add((t * MAX_PANELS + p) * LANES), sums[t][p]);
                    }
                }
            }
            self.token += T;
            self.x = self.x.add(T * self.x_stride);
            self.sums = self.sums.add(T * MAX_PANELS * LANES);
        }
        T
    }
}

impl GemmArgs<'_> {
    /// Where 16 rows of token `token` go.
    #[inline(always)]
    fn out_at(&self, token: usize, panel: usize) -> *mut f32 {
        self.out.wrapping_add(token * self.out_stride + panel * PANEL_ROWS)
    }

    /// Applies an activation, if it is the epilogue, to what [`finish`](Self::finish) has written of `n_tokens` tokens from
    /// `token` on and `n_panels` panels from `panel` on. A call, made while no sums are in registers.
    #[inline(always)]
    pub(in crate::kernels) unsafe fn activate(&self, token: usize, n_tokens: usize, panel: usize, n_panels: usize) {
        if let Epilogue::Activate(kind) = self.epilogue {
            let shape = [n_tokens, n_panels * LANES];
            // SAFETY: the arguments cover tokens and panels; `out` is padded to 16.
            unsafe { (self.activation)(kind, self.out_at(token, panel), shape, self.out_stride) };
        }
    }

    /// Adds the bias, applies the epilogue but for an activation, and writes 16 rows of token `token`.
    #[inline(always)]
    pub(in crate::kernels) unsafe fn finish<S: Simd>(&self, token: usize, panel: usize, sum: S::F) {
        // SAFETY: the arguments cover token and panel; `out` and `bias` are padded to 16.
        unsafe {
            let mut value = sum;
            if let Some(bias) = self.bias {
                value = S::add(value, S::load(bias.as_ptr().add(panel * PANEL_ROWS)));
            }
            let out = self.out_at(token, panel);
            match self.epilogue {
                Epilogue::Add => value = S::add(value, S::load(out)),
                Epilogue::Multiply => value = S::mul(value, S::load(out)),
                Epilogue::Store | Epilogue::Activate(_) => {}
            }
            S::store(out, value);
        }
    }
}
