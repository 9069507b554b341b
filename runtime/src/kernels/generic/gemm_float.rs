//! Matrix products with f32 and f16 weights: `out[t][row] = sum over columns of w * x`, one fused multiply-add after
//! the other in order of the columns.

use crate::kernels::simd::{LANES, Simd};
use crate::kernels::{Activations, GemmArgs};
use crate::quant::PANEL_ROWS;

/// How a column of 16 rows is read.
pub(in crate::kernels) trait FloatWeights<S: Simd> {
    /// Bytes of a column.
    const COLUMN_BYTES: usize;
    /// The column at `p`.
    unsafe fn column(p: *const u8) -> S::F;
}

/// `f32`.
pub(in crate::kernels) struct F32;

impl<S: Simd> FloatWeights<S> for F32 {
    const COLUMN_BYTES: usize = PANEL_ROWS * 4;
    #[inline(always)]
    unsafe fn column(p: *const u8) -> S::F {
        // SAFETY: the caller's column covers 64 bytes.
        unsafe { S::load(p.cast()) }
    }
}

/// `f16`.
pub(in crate::kernels) struct F16;

impl<S: Simd> FloatWeights<S> for F16 {
    const COLUMN_BYTES: usize = PANEL_ROWS * 2;
    #[inline(always)]
    unsafe fn column(p: *const u8) -> S::F {
        // SAFETY: the caller's column covers 32 bytes.
        unsafe { S::load_f16(p.cast()) }
    }
}

/// All panels and tokens; `P` panels by `T` tokens at a time are held in registers.
#[inline(always)]
pub(in crate::kernels) unsafe fn gemm<S: Simd, W: FloatWeights<S>, const P: usize, const T: usize>(args: &GemmArgs) {
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

#[inline(always)]
unsafe fn panels<S: Simd, W: FloatWeights<S>, const P: usize, const T: usize>(args: &GemmArgs, panel: usize) {
    let mut token = 0;
    // SAFETY: passed on.
    unsafe {
        while token + T <= args.n_tokens {
            tile::<S, W, P, T>(args, panel, token);
            token += T;
        }
        while token < args.n_tokens {
            tile::<S, W, P, 1>(args, panel, token);
            token += 1;
        }
    }
}

#[inline(always)]
unsafe fn tile<S: Simd, W: FloatWeights<S>, const P: usize, const T: usize>(
    args: &GemmArgs,
    panel: usize,
    token: usize,
) {
    let Activations::Float { x, stride } = args.x else { unreachable!("float weights take float activations") };
    // SAFETY: the caller's arguments cover `P` panels from `panel` on, and `T` tokens from `token` on.
    unsafe {
        let weights = args.panels.add(panel * args.panel_bytes);
        let x = x.add(token * stride);
        let mut sums = [[S::splat(0.0); P]; T];
        for col in 0..args.cols {
            for p in 0..P {
                let w = W::column(weights.add(p * args.panel_bytes + col * W::COLUMN_BYTES));
                for t in 0..T {
                    sums[t][p] = S::fma(w, S::splat(*x.add(t * stride + col)), sums[t][p]);
                }
            }
        }
        for t in 0..T {
            for p in 0..P {
                args.finish::<S>(token + t, panel + p, sums[t][p]);
            }
        }
        args.activate(token, T, panel, P);
    }
}

// The sums of a panel are as many as the lanes of a vector.
const _: () = assert!(PANEL_ROWS == LANES);
