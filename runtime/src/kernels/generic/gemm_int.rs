//! Matrix products with integer weights: `out[t][row] = sum over blocks of scale_w * scale_x * (w . x)`.
//!
//! Within a block of 32 columns the dot product is exact in 32-bit integers; across blocks one f32 accumulator per
//! row adds up in order of the blocks. The result does not depend on how many tokens are computed together, on the
//! tile sizes below, nor on the instruction set.

use crate::kernels::simd::{LANES, Simd};
use crate::kernels::{ActBlock, Activations, Epilogue, GemmArgs};
use crate::quant::{BLOCK, BlockPanel, PANEL_ROWS, Q4_CODEBOOK};

/// Bytes of weights between a load and its prefetch. Without it one core reads at two thirds of its bandwidth;
/// 1 KiB is too near (11 of 15 GB/s), beyond 4 KiB nothing is gained.
const PREFETCH: usize = 4096;

/// Blocks whose unpacked weights are kept in the first-level cache: 8 blocks of two panels are 8 KiB.
const CHUNK_BLOCKS: usize = 8;
/// Groups of 4 columns in a block, and bytes of a block that [`unpack`] has made operands of.
const GROUPS: usize = BLOCK / 4;
const UNPACKED_BYTES: usize = PANEL_ROWS * BLOCK;
/// Tokens that one unpacking serves; their accumulators stay in the first-level cache too.
const CHUNK_TOKENS: usize = 96;

/// How a quant type's blocks become operands of dot products.
pub(in crate::kernels) trait IntWeights<S: Simd>: Copy {
    /// Bytes of one block (16 rows, 32 columns).
    const BLOCK_BYTES: usize;
    /// What the operands are raised by.
    const OFFSET: i32;
    /// Constants kept in registers.
    unsafe fn new() -> Self;
    /// Column groups `2 * pair` and `2 * pair + 1` of the block at `block`.
    unsafe fn pair(self, block: *const u8, pair: usize) -> (S::B, S::B);
    /// Adds the dot products of 4 columns.
    unsafe fn dot(acc: S::I, w: S::B, x: *const i8) -> S::I;
}

/// `q8`.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Q8;

impl<S: Simd> IntWeights<S> for Q8 {
    const BLOCK_BYTES: usize = PANEL_ROWS * BLOCK;
    const OFFSET: i32 = S::I8_OFFSET;
    #[inline(always)]
    unsafe fn new() -> Self {
        Self
    }
    #[inline(always)]
    unsafe fn pair(self, block: *const u8, pair: usize) -> (S::B, S::B) {
        // SAFETY: the caller's block covers 512 bytes.
        unsafe { (S::load_i8(block.add(pair * 128)), S::load_i8(block.add(pair * 128 + 64))) }
    }
    #[inline(always)]
    unsafe fn dot(acc: S::I, w: S::B, x: *const i8) -> S::I {
        // SAFETY: passed on.
        unsafe { S::dot_i8(acc, w, x) }
    }
}

/// `q4`.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Q4<T>(T);

impl<S: Simd> IntWeights<S> for Q4<S::T> {
    const BLOCK_BYTES: usize = PANEL_ROWS * BLOCK / 2;
    const OFFSET: i32 = S::CODE_OFFSET;
    #[inline(always)]
    unsafe fn new() -> Self {
        // SAFETY: passed on.
        Self(unsafe { S::table(&Q4_CODEBOOK) })
    }
    #[inline(always)]
    unsafe fn pair(self, block: *const u8, pair: usize) -> (S::B, S::B) {
        // SAFETY: the caller's block covers 256 bytes.
        unsafe { S::load_codes(block.add(pair * 64), self.0) }
    }
    #[inline(always)]
    unsafe fn dot(acc: S::I, w: S::B, x: *const i8) -> S::I {
        // SAFETY: passed on.
        unsafe { S::dot_code(acc, w, x) }
    }
}

/// Where the sum of a block's products starts: lower by what raised operands will add. A load that is broadcast; an
/// integer multiplied in a general register would cross to the vector side on the port that shuffles need.
#[inline(always)]
unsafe fn start<S: Simd, W: IntWeights<S>>(x: &ActBlock) -> S::I {
    const { assert!(W::OFFSET == 0 || W::OFFSET == 64 || W::OFFSET == 128) };
    // SAFETY: the features are the caller's promise.
    unsafe {
        let lowered = S::splat_i(x.lowered);
        match W::OFFSET {
            0 => S::splat_i(0),
            64 => lowered,
            _ => S::add_i(lowered, lowered),
        }
    }
}

/// One token: every weight is read once, from memory.
#[inline(always)]
pub(in crate::kernels) unsafe fn gemv<S: Simd, W: IntWeights<S>>(args: &GemmArgs) {
    let Activations::Int { x, .. } = args.x else { unreachable!("integer weights take integer activations") };
    // SAFETY: the caller's arguments cover the panels, the activations and the output.
    unsafe {
        let weights = W::new();
        let layout = panel_layout::<S, W>(args.cols);
        for panel in 0..args.n_panels {
            let base = args.panels.add(panel * args.panel_bytes);
            let (scales, values) = (scales_of(base), base.add(layout.values_at));
            let mut acc = S::splat(0.0);
            for b in 0..layout.n_blocks {
                let (block, x) = (values.add(b * W::BLOCK_BYTES), &*x.add(b));
                for line in (0..W::BLOCK_BYTES).step_by(64) {
                    S::prefetch(block.wrapping_add(PREFETCH + line));
                }
                // Two chains, because a dot product takes longer than it takes to start the next one.
                let mut even = start::<S, W>(x);
                let mut odd = S::splat_i(0);
                for pair in 0..4 {
                    let (first, second) = weights.pair(block, pair);
                    even = W::dot(even, first, x.q.as_ptr().add(pair * 8));
                    odd = W::dot(odd, second, x.q.as_ptr().add(pair * 8 + 4));
                }
                let scale = S::mul(S::load_f16(scales.add(b * LANES)), S::splat(x.scale));
                acc = S::fma(S::to_f(S::add_i(even, odd)), scale, acc);
            }
            args.finish::<S>(0, panel, acc);
        }
    }
}

/// Many tokens: weights of `P` panels are unpacked once for [`CHUNK_TOKENS`] tokens, of which `T` are computed at a time.
#[inline(always)]
pub(in crate::kernels) unsafe fn gemm<S: Simd, W: IntWeights<S>, const P: usize, const T: usize>(args: &GemmArgs) {
    let mut panel = 0;
    // SAFETY: the caller's arguments cover the panels, the activations and the output.
    unsafe {
        while panel + P <= args.n_panels {
            panels::<S, W, P, T>(args, panel);
            panel += P;
        }
        while panel < args.n_panels {
            panels::<S, W, 1, T>(args, panel);
            panel += 1;
        }
    }
}

/// Where the scales and values of a panel lie.
#[inline(always)]
fn panel_layout<S: Simd, W: IntWeights<S>>(cols: usize) -> BlockPanel {
    BlockPanel::new(cols, W::BLOCK_BYTES).expect("a matrix in memory does not overflow")
}

/// The scales that lead a panel.
#[inline(always)]
fn scales_of(panel: *const u8) -> *const u16 {
    panel.cast()
}

/// `P` panels from `panel` on, all tokens.
#[inline(always)]
unsafe fn panels<S: Simd, W: IntWeights<S>, const P: usize, const T: usize>(args: &GemmArgs, panel: usize) {
    const { assert!(P <= 2 && T <= CHUNK_TOKENS) };
    let Activations::Int { x, stride } = args.x else { unreachable!("integer weights take integer activations") };
    let mut unpacked = Aligned([0u8; 2 * CHUNK_BLOCKS * UNPACKED_BYTES]);
    let mut sums = Aligned([0f32; 2 * LANES * CHUNK_TOKENS]);
    // SAFETY: the caller's arguments cover the panels, the activations and the output; the two buffers hold a
    // chunk each.
    unsafe {
        let weights = W::new();
        let layout = panel_layout::<S, W>(args.cols);
        let base = args.panels.add(panel * args.panel_bytes);
        for first_token in (0..args.n_tokens).step_by(CHUNK_TOKENS) {
            let n_tokens = CHUNK_TOKENS.min(args.n_tokens - first_token);
            for first_block in (0..layout.n_blocks).step_by(CHUNK_BLOCKS) {
                let n_blocks = CHUNK_BLOCKS.min(layout.n_blocks - first_block);
                for p in 0..P {
                    let source = base.add(p * args.panel_bytes + layout.values_at + first_block * W::BLOCK_BYTES);
                    let out = unpacked.0.as_mut_ptr().add(p * CHUNK_BLOCKS * UNPACKED_BYTES);
                    unpack::<S, W>(weights, source, n_blocks, out);
                }
                let scales = scales_of(base).add(first_block * LANES);
                let mut chunk = Chunk {
                    weights: unpacked.0.as_ptr(),
                    scales,
                    scales_stride: args.panel_bytes / 2,
                    x: x.add(first_token * stride + first_block),
                    x_stride: stride,
                    n_blocks,
                    sums: sums.0.as_mut_ptr(),
                    first: first_block == 0,
                };
                let mut left = n_tokens;
                while left >= T {
                    chunk.tokens::<S, W, P, T>();
                    chunk.advance(T);
                    left -= T;
                }
                while left >= 2 {
                    chunk.tokens::<S, W, P, 2>();
                    chunk.advance(2);
                    left -= 2;
                }
                if left > 0 {
                    chunk.tokens::<S, W, P, 1>();
                }
            }
            for t in 0..n_tokens {
                for p in 0..P {
                    args.finish::<S>(first_token + t, panel + p, S::load(sums.0.as_ptr().add((t * 2 + p) * LANES)));
                }
            }
        }
    }
}

/// Makes operands of `n_blocks` blocks.
#[inline(always)]
unsafe fn unpack<S: Simd, W: IntWeights<S>>(weights: W, source: *const u8, n_blocks: usize, out: *mut u8) {
    for b in 0..n_blocks {
        for pair in 0..4 {
            // SAFETY: the caller's pointers cover `n_blocks` blocks.
            unsafe {
                let block = source.add(b * W::BLOCK_BYTES);
                if W::BLOCK_BYTES == PANEL_ROWS * BLOCK {
                    S::prefetch(block.wrapping_add(PREFETCH + pair * 128 + 64));
                }
                S::prefetch(block.wrapping_add(PREFETCH + pair * (W::BLOCK_BYTES / 4)));
                let (first, second) = weights.pair(block, pair);
                let out = out.add(b * UNPACKED_BYTES + pair * 128);
                S::store_bytes(out, first);
                S::store_bytes(out.add(64), second);
            }
        }
    }
}

#[repr(align(64))]
struct Aligned<T>(T);

/// Unpacked blocks of `P` panels, and the tokens that meet them.
struct Chunk {
    weights: *const u8,
    scales: *const u16,
    /// From one panel's scales to the next's, in elements.
    scales_stride: usize,
    x: *const ActBlock,
    /// From one token to the next, in blocks.
    x_stride: usize,
    n_blocks: usize,
    /// `[tokens][2 panels][16]`.
    sums: *mut f32,
    /// Whether the sums start at 0.
    first: bool,
}

impl Chunk {
    #[inline(always)]
    unsafe fn advance(&mut self, tokens: usize) {
        // SAFETY: stays within, or one past, what the chunk covers.
        unsafe {
            self.x = self.x.add(tokens * self.x_stride);
            self.sums = self.sums.add(tokens * 2 * LANES);
        }
    }

    /// Adds the chunk's blocks to the sums of `T` tokens and `P` panels, all held in registers.
    #[inline(always)]
    unsafe fn tokens<S: Simd, W: IntWeights<S>, const P: usize, const T: usize>(&self) {
        // SAFETY: the chunk covers `P` panels, `T` tokens and `n_blocks` blocks.
        unsafe {
            let mut sums = [[S::splat(0.0); P]; T];
            if !self.first {
                for t in 0..T {
                    for p in 0..P {
                        sums[t][p] = S::load(self.sums.add((t * 2 + p) * LANES));
                    }
                }
            }
            for b in 0..self.n_blocks {
                let mut dots = [[S::splat_i(0); P]; T];
                for t in 0..T {
                    let x = &*self.x.add(t * self.x_stride + b);
                    dots[t] = [start::<S, W>(x); P];
                }
                for group in 0..GROUPS {
                    let mut operands = [S::load_bytes(self.weights.add(b * UNPACKED_BYTES + group * 64)); P];
                    for (p, operand) in operands.iter_mut().enumerate().skip(1) {
                        *operand =
                            S::load_bytes(self.weights.add((p * CHUNK_BLOCKS + b) * UNPACKED_BYTES + group * 64));
                    }
                    for t in 0..T {
                        let x = (*self.x.add(t * self.x_stride + b)).q.as_ptr().add(group * 4);
                        for p in 0..P {
                            dots[t][p] = W::dot(dots[t][p], operands[p], x);
                        }
                    }
                }
                for p in 0..P {
                    let scale = S::load_f16(self.scales.add(p * self.scales_stride + b * LANES));
                    for t in 0..T {
                        let x = (*self.x.add(t * self.x_stride + b)).scale;
                        sums[t][p] = S::fma(S::to_f(dots[t][p]), S::mul(scale, S::splat(x)), sums[t][p]);
                    }
                }
            }
            for t in 0..T {
                for p in 0..P {
                    S::store(self.sums.add((t * 2 + p) * LANES), sums[t][p]);
                }
            }
        }
    }
}

impl GemmArgs<'_> {
    /// Adds the bias, applies the epilogue and writes 16 rows of token `token`.
    #[inline(always)]
    pub(in crate::kernels) unsafe fn finish<S: Simd>(&self, token: usize, panel: usize, sum: S::F) {
        // SAFETY: the arguments cover token and panel; `out` and `bias` are padded to 16.
        unsafe {
            let mut value = sum;
            if let Some(bias) = self.bias {
                value = S::add(value, S::load(bias.as_ptr().add(panel * PANEL_ROWS)));
            }
            let out = self.out.add(token * self.out_stride + panel * PANEL_ROWS);
            match self.epilogue {
                Epilogue::Store => {}
                Epilogue::Add => value = S::add(value, S::load(out)),
                Epilogue::Activate(kind) => value = super::math::activation::<S>(kind, value),
            }
            S::store(out, value);
        }
    }
}
