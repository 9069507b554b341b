//! What the machine can do at best, measured with the same instructions as the kernels.

use crate::kernels::Vendor;
use crate::kernels::simd::Simd;

/// Reads `lines` cache lines of 64 bytes, each once, and returns something that depends on all of them.
#[inline(always)]
pub(in crate::kernels) unsafe fn read<S: Simd>(p: *const u8, lines: usize, vendor: Vendor) -> f32 {
    const CHAINS: usize = 4;
    // How far before lines are asked for. On Zen 4 all below 200 bytes are within a few percent of the best of 0 to 8 KiB, in small
    // pages and in huge ones; on the others that were tried it is 8 KiB.
    let ahead = if vendor == Vendor::Amd { 128 } else { 8192 };
    let ones = [1i8; 4];
    // SAFETY: the caller's pointer covers the lines.
    unsafe {
        let mut sums = [S::splat_i(0); CHAINS];
        for line in (0..lines / CHAINS * CHAINS).step_by(CHAINS) {
            for (chain, sum) in sums.iter_mut().enumerate() {
                let p = p.add((line + chain) * 64);
                S::prefetch(p.wrapping_add(ahead));
                *sum = S::dot_code(*sum, S::load_bytes(p), ones.as_ptr());
            }
        }
        S::sum(S::to_f(S::add_i(S::add_i(sums[0], sums[1]), S::add_i(sums[2], sums[3]))))
    }
}

/// Runs `rounds * W * X` dot products of 64 multiply-adds each on `W * X` independent sums.
#[inline(always)]
pub(in crate::kernels) unsafe fn multiply<S: Simd, const W: usize, const X: usize>(rounds: usize) -> f32 {
    let (bytes, x) = ([1u8; 64 * 8], [1i8; 4 * 8]);
    // SAFETY: both arrays hold eight operands, and there are no more of either.
    unsafe {
        const { assert!(W <= 8 && X <= 8) };
        let mut sums = [[S::splat_i(0); W]; X];
        let mut weights = [S::load_bytes(bytes.as_ptr()); W];
        for (w, weights) in weights.iter_mut().enumerate() {
            *weights = S::load_bytes(std::hint::black_box(bytes.as_ptr()).add(w * 64));
        }
        for _ in 0..rounds {
            // As if `x` were new each time: the products of the same operands would leave the loop otherwise.
            let x = std::hint::black_box(x.as_ptr());
            for (i, sums) in sums.iter_mut().enumerate() {
                for w in 0..W {
                    sums[w] = S::dot_code(sums[w], weights[w], x.add(i * 4));
                }
            }
        }
        let mut total = 0.0;
        for sums in sums {
            for sum in sums {
                total += S::sum(S::to_f(sum));
            }
        }
        total
    }
}
