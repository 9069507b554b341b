//! Work on one row of activations: normalization, quantization, conversion to f16.

use super::math;
use crate::kernels::ActBlock;
use crate::kernels::simd::{LANES, Simd};
use crate::quant::BLOCK;
use crate::spec::Activation;

/// Scales that [`to_q4`] tries, relative to the one that makes the largest magnitude 8.
const Q4_SCALES: [f32; 8] = [1.0, 0.94, 0.88, 0.82, 0.76, 0.7, 0.64, 0.58];

/// The last, partial vector of `n` values at `p`, filled up.
#[inline(always)]
unsafe fn tail<S: Simd>(p: *const f32, n: usize, fill: f32) -> S::F {
    let whole = n / LANES * LANES;
    let mut lanes = [fill; LANES];
    // SAFETY: the caller's pointer covers `n` elements.
    unsafe {
        for (i, lane) in lanes.iter_mut().enumerate().take(n - whole) {
            *lane = *p.add(whole + i);
        }
        S::load(lanes.as_ptr())
    }
}

/// `finish(x, gain, bias)` of all vectors into `out`, which may be `x`.
#[inline(always)]
unsafe fn scaled<S: Simd>(
    (x, n): (*const f32, usize),
    (gain, bias): (*const f32, *const f32),
    out: *mut f32,
    finish: impl Fn(S::F, S::F, S::F) -> S::F,
) {
    let whole = n / LANES * LANES;
    // SAFETY: the caller's pointers cover `n` elements; the last, partial vector goes through arrays.
    unsafe {
        for i in (0..whole).step_by(LANES) {
            S::store(out.add(i), finish(S::load(x.add(i)), S::load(gain.add(i)), S::load(bias.add(i))));
        }
        if whole < n {
            let last = finish(tail::<S>(x, n, 0.0), tail::<S>(gain, n, 0.0), tail::<S>(bias, n, 0.0));
            let last = S::to_array(last);
            std::slice::from_raw_parts_mut(out.add(whole), n - whole).copy_from_slice(&last[..n - whole]);
        }
    }
}

/// `(x - mean) / sqrt(variance + eps) * gain + bias` over `n` values. `out` may be `x`.
#[inline(always)]
pub(in crate::kernels) unsafe fn layer_norm<S: Simd>(
    x: *const f32,
    n: usize,
    gain: *const f32,
    bias: *const f32,
    eps: f32,
    out: *mut f32,
) {
    // SAFETY: the caller's pointers cover `n` elements.
    unsafe {
        let whole = n / LANES * LANES;
        let mut sum = S::splat(0.0);
        for i in (0..whole).step_by(LANES) {
            sum = S::add(sum, S::load(x.add(i)));
        }
        sum = S::add(sum, tail::<S>(x, n, 0.0));
        let mean = S::sum(sum) / n as f32;
        let means = S::splat(mean);
        let mut squares = S::splat(0.0);
        for i in (0..whole).step_by(LANES) {
            let d = S::sub(S::load(x.add(i)), means);
            squares = S::fma(d, d, squares);
        }
        let d = S::sub(tail::<S>(x, n, mean), means);
        squares = S::fma(d, d, squares);
        let inverse = S::splat(1.0 / (S::sum(squares) / n as f32 + eps).sqrt());
        scaled::<S>((x, n), (gain, bias), out, |x, gain, bias| S::fma(S::mul(S::sub(x, means), inverse), gain, bias));
    }
}

/// `x / sqrt(mean of squares + eps) * gain + bias` over `n` values. `out` may be `x`.
#[inline(always)]
pub(in crate::kernels) unsafe fn rms_norm<S: Simd>(
    x: *const f32,
    n: usize,
    gain: *const f32,
    bias: *const f32,
    eps: f32,
    out: *mut f32,
) {
    // SAFETY: the caller's pointers cover `n` elements.
    unsafe {
        let inverse = S::splat(1.0 / (sum_of_squares::<S>(x, n) / n as f32 + eps).sqrt());
        scaled::<S>((x, n), (gain, bias), out, |x, gain, bias| S::fma(S::mul(x, inverse), gain, bias));
    }
}

/// The sum of the squares of `n` values.
#[inline(always)]
unsafe fn sum_of_squares<S: Simd>(x: *const f32, n: usize) -> f32 {
    // SAFETY: the caller's pointer covers `n` elements.
    unsafe {
        let mut squares = S::splat(0.0);
        for i in (0..n / LANES * LANES).step_by(LANES) {
            let x = S::load(x.add(i));
            squares = S::fma(x, x, squares);
        }
        let last = tail::<S>(x, n, 0.0);
        S::sum(S::fma(last, last, squares))
    }
}

/// `x / max(|x|, eps) * gain + bias` over `n` values. `out` may be `x`.
#[inline(always)]
pub(in crate::kernels) unsafe fn scale_norm<S: Simd>(
    x: *const f32,
    n: usize,
    gain: *const f32,
    bias: *const f32,
    eps: f32,
    out: *mut f32,
) {
    // SAFETY: the caller's pointers cover `n` elements.
    unsafe {
        let inverse = S::splat(1.0 / sum_of_squares::<S>(x, n).sqrt().max(eps));
        scaled::<S>((x, n), (gain, bias), out, |x, gain, bias| S::fma(S::mul(x, inverse), gain, bias));
    }
}

/// Quantizes the first `n` of `x` to 8 bits in blocks of 32; the last block is padded with zeros.
///
/// The scale of a block is its largest magnitude over 127. A block with a NaN or an infinity gets a NaN scale, so
/// damage shows in the logits instead of vanishing in a rounding.
#[inline(always)]
pub(in crate::kernels) unsafe fn quantize<S: Simd>(x: *const f32, n: usize, out: *mut ActBlock) {
    for block in 0..n.div_ceil(BLOCK) {
        // SAFETY: the caller's `x` covers `n` elements and `out` the blocks of them; a partial block goes through an array.
        unsafe {
            let mut padded = [0.0f32; BLOCK];
            let mut source = x.add(block * BLOCK);
            if (block + 1) * BLOCK > n {
                padded[..n - block * BLOCK].copy_from_slice(std::slice::from_raw_parts(source, n - block * BLOCK));
                source = padded.as_ptr();
            }
            let (a, b) = (S::load(source), S::load(source.add(LANES)));
            let largest = S::largest(S::max(S::abs(a), S::abs(b)));
            let inverse = S::splat(if largest > 0.0 { 127.0 / largest } else { 0.0 });
            let (a, b) = (S::round(S::mul(a, inverse)), S::round(S::mul(b, inverse)));
            // Whole numbers of at most 13 bits: exact in any order. NaN when a value was NaN, which `largest` may have
            // lost, or infinite, whose inverse is 0.
            let sum = S::sum(S::add(a, b));
            let out = &mut *out.add(block);
            out.scale = largest / 127.0 + sum * 0.0;
            out.lowered = [-64 * sum as i32, -128 * sum as i32];
            S::store_i8(out.q.as_mut_ptr(), a);
            S::store_i8(out.q.as_mut_ptr().add(LANES), b);
        }
    }
}

/// Converts `n` values to f16; magnitudes beyond 65504 are clamped, so that a cache never holds infinities.
#[inline(always)]
pub(in crate::kernels) unsafe fn to_f16<S: Simd>(x: *const f32, n: usize, out: *mut u16) {
    // SAFETY: the caller's pointers cover `n` elements; the last, partial vector goes through arrays.
    unsafe {
        let convert = |x: *const f32, out: *mut u16| {
            S::store_f16(out, S::max(S::splat(-65504.0), S::min(S::splat(65504.0), S::load(x))));
        };
        let whole = n / LANES * LANES;
        for i in (0..whole).step_by(LANES) {
            convert(x.add(i), out.add(i));
        }
        if whole < n {
            let (mut source, mut result) = ([0.0f32; LANES], [0u16; LANES]);
            source[..n - whole].copy_from_slice(std::slice::from_raw_parts(x.add(whole), n - whole));
            convert(source.as_ptr(), result.as_mut_ptr());
            std::slice::from_raw_parts_mut(out.add(whole), n - whole).copy_from_slice(&result[..n - whole]);
        }
    }
}

/// Values by vectors; the last, partial one is a copy, filled up with zeros.
struct Padded {
    x: *const f32,
    n: usize,
    last: [f32; LANES],
}

impl Padded {
    #[inline(always)]
    unsafe fn new(x: *const f32, n: usize) -> Self {
        let (whole, mut last) = (n / LANES * LANES, [0.0f32; LANES]);
        // SAFETY: the caller's pointer covers `n` elements.
        unsafe { last[..n - whole].copy_from_slice(std::slice::from_raw_parts(x.add(whole), n - whole)) };
        Self { x, n, last }
    }

    /// The vector from value `i` on, a multiple of 16.
    #[inline(always)]
    unsafe fn at<S: Simd>(&self, i: usize) -> S::F {
        // SAFETY: whole vectors lie inside, the last one is in the array.
        unsafe { S::load(if i + LANES <= self.n { self.x.add(i) } else { self.last.as_ptr() }) }
    }

    /// The largest magnitude, and what is 0, or NaN when a value is NaN or infinite.
    #[inline(always)]
    unsafe fn largest<S: Simd>(&self) -> (f32, f32) {
        // SAFETY: the features are the caller's promise.
        unsafe {
            let (mut most, mut poison) = (S::splat(0.0), S::splat(0.0));
            for i in (0..self.n).step_by(LANES) {
                most = S::max(most, S::abs(self.at::<S>(i)));
                poison = S::fma(self.at::<S>(i), S::splat(0.0), poison);
            }
            (S::largest(most), S::sum(poison))
        }
    }
}

/// Quantizes `n` values to 8 bits with one scale, the largest magnitude over 127 rounded to f16, whose bits are returned. `out` is
/// padded to 16 with zeros. NaN and infinity make the scale NaN. The `next` values are asked for.
#[inline(always)]
pub(in crate::kernels) unsafe fn to_q8<S: Simd>(
    x: *const f32,
    n: usize,
    (next, n_next): (*const f32, usize),
    out: *mut i8,
) -> u16 {
    // SAFETY: the caller's pointers cover `n` elements, `out` rounded up to 16.
    unsafe {
        for i in (0..n_next).step_by(LANES) {
            S::prefetch(next.wrapping_add(i).cast());
        }
        let x = Padded::new(x, n);
        let (most, poison) = x.largest::<S>();
        let mut bits = [0u16; LANES];
        let scale = (most / 127.0).min(65504.0) + poison;
        S::store_f16(bits.as_mut_ptr(), S::splat(scale));
        let rounded = S::to_array(S::load_f16(bits.as_ptr()))[0];
        let inverse = S::splat(if rounded > 0.0 { 1.0 / rounded } else { 0.0 });
        for i in (0..n).step_by(LANES) {
            let q = S::round(S::mul(x.at::<S>(i), inverse));
            S::store_i8(out.add(i), S::max(S::min(q, S::splat(127.0)), S::splat(-127.0)));
        }
        bits[0]
    }
}

/// Quantizes `n` values to integers in -8..=7 with one scale, whose f16 bits are returned: of [`Q4_SCALES`], relative to the one
/// that makes the largest magnitude 8, the one with the least squared error, the first of equals. `out` is padded to 16
/// with zeros. NaN and infinity make the scale NaN.
#[inline(always)]
pub(in crate::kernels) unsafe fn to_q4<S: Simd>(x: *const f32, n: usize, out: *mut i8) -> u16 {
    // SAFETY: the caller's pointers cover `n` elements, `out` rounded up to 16.
    unsafe {
        let x = Padded::new(x, n);
        let (most, poison) = x.largest::<S>();
        // The scale of these bits, and what to multiply by: 0 where no scale is small enough.
        let rounded = |scale: f32| {
            let mut bits = [0u16; LANES];
            S::store_f16(bits.as_mut_ptr(), S::splat(scale.clamp(-65504.0, 65504.0) + poison));
            let scale = S::to_array(S::load_f16(bits.as_ptr()))[0];
            (bits[0], S::splat(scale), S::splat(if scale.abs() > 0.0 { 1.0 / scale } else { 0.0 }))
        };
        let code = |x: S::F, inverse: S::F| S::max(S::min(S::round(S::mul(x, inverse)), S::splat(7.0)), S::splat(-8.0));
        let (mut best, mut least) = (most / -8.0, f32::INFINITY);
        for candidate in Q4_SCALES.into_iter().flat_map(|part| [most / -8.0 * part, most / 8.0 * part]) {
            let (_, scale, inverse) = rounded(candidate);
            let mut errors = S::splat(0.0);
            for i in (0..n).step_by(LANES) {
                let error = S::sub(S::mul(code(x.at::<S>(i), inverse), scale), x.at::<S>(i));
                errors = S::fma(error, error, errors);
            }
            let error = S::sum(errors);
            if error < least {
                (best, least) = (candidate, error);
            }
        }
        let (bits, _, inverse) = rounded(best);
        for i in (0..n).step_by(LANES) {
            S::store_i8(out.add(i), code(x.at::<S>(i), inverse));
        }
        bits
    }
}

/// The largest of `n` values, and the sum of `e^(x - largest)`: f32 for 256 at a time, f64 beyond.
#[inline(always)]
pub(in crate::kernels) unsafe fn exp_sum<S: Simd>(x: *const f32, n: usize) -> (f32, f64) {
    const CHUNK: usize = 256;
    // SAFETY: the caller's pointer covers `n` elements; the last, partial vector goes through an array.
    unsafe {
        let whole = n / LANES * LANES;
        let mut last = [f32::NEG_INFINITY; LANES];
        last[..n - whole].copy_from_slice(std::slice::from_raw_parts(x.add(whole), n - whole));
        let mut most = S::load(last.as_ptr());
        for i in (0..whole).step_by(LANES) {
            most = S::max(most, S::load(x.add(i)));
        }
        let largest = S::largest(most);
        let term = |x: S::F| math::exp::<S>(S::sub(x, S::splat(largest)));
        let mut sum = f64::from(S::sum(term(S::load(last.as_ptr()))));
        for first in (0..whole).step_by(CHUNK) {
            let mut part = S::splat(0.0);
            for i in (first..whole.min(first + CHUNK)).step_by(LANES) {
                part = S::add(part, term(S::load(x.add(i))));
            }
            sum += f64::from(S::sum(part));
        }
        (largest, sum)
    }
}

/// `x[i] = activation(x[i])` for rows of `n` values, a multiple of 16, that begin `stride` apart.
#[inline(always)]
pub(in crate::kernels) unsafe fn activate<S: Simd>(
    kind: Activation,
    x: *mut f32,
    [rows, n]: [usize; 2],
    stride: usize,
) {
    for row in 0..rows {
        for i in (0..n).step_by(LANES) {
            // SAFETY: the caller's pointer covers the rows.
            unsafe {
                let at = x.add(row * stride + i);
                S::store(at, math::activation::<S>(kind, S::load(at)));
            }
        }
    }
}
