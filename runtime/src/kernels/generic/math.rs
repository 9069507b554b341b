//! exp and the activation functions, as polynomials with fused multiply-adds.

use crate::kernels::simd::Simd;
use crate::spec::Activation;

/// Below this `exp` returns 0 (its smallest normal result is at -87.34).
const EXP_MIN: f32 = -87.0;
const EXP_MAX: f32 = 88.0;

/// `e^x`; 0 below -87, at most `e^88`. Within 0.9 units in the last place.
///
/// `x = n ln 2 + r`: `2^n` from the exponent's bits, `e^r` from a minimax polynomial of degree 6 for |r| <= ln(2)/2. The
/// coefficients are rounded jointly: 0.49999994 is better than 0.5.
#[inline(always)]
pub(in crate::kernels) unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    const COEFFICIENTS: [f32; 7] =
        [0.001_383_906_4, 0.008_369_141, 0.041_668_102, 0.166_665_17, 0.499_999_94, 1.0, 1.0];
    // ln 2 in two parts. The first alone would do 24 bits; fused, `n * LN2_HIGH` leaves `x` without rounding.
    const LN2_HIGH: f32 = std::f32::consts::LN_2;
    const LN2_LOW: f32 = -1.904_654_2e-9;
    // SAFETY: the features are the caller's promise.
    unsafe {
        let clamped = S::min(S::max(x, S::splat(EXP_MIN)), S::splat(EXP_MAX));
        let n = S::round(S::mul(clamped, S::splat(std::f32::consts::LOG2_E)));
        let r = S::fma(n, S::splat(-LN2_HIGH), clamped);
        let r = S::fma(n, S::splat(-LN2_LOW), r);
        let mut p = S::splat(COEFFICIENTS[0]);
        for c in &COEFFICIENTS[1..] {
            p = S::fma(p, r, S::splat(*c));
        }
        S::select_lt(x, S::splat(EXP_MIN), S::splat(0.0), S::mul(p, S::pow2(n)))
    }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
unsafe fn sigmoid<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the features are the caller's promise.
    unsafe {
        let one = S::splat(1.0);
        S::div(one, S::add(one, exp::<S>(S::sub(S::splat(0.0), x))))
    }
}

/// `x Phi(x)` as `max(x, 0) - |x|/2 erfc(|x|/sqrt 2)`, which has no cancellation in the tails.
///
/// `erfc(a/sqrt 2) = e^(-a²/2)` times a polynomial in `1 / (1 + p a)`: the form of Abramowitz & Stegun 7.1.26, fitted to
/// 2.4e-8. The result is within 1e-7 * max(1, |x|).
#[inline(always)]
unsafe fn gelu_erf<S: Simd>(x: S::F) -> S::F {
    const P: f32 = 0.318_198_06;
    const COEFFICIENTS: [f32; 10] = [
        -0.039_574_902,
        0.257_752_5,
        -0.632_791_76,
        0.658_474_4,
        -0.274_409_86,
        0.327_535_8,
        0.189_610_69,
        0.260_055_8,
        0.253_325_4,
        2.194_026_1e-5,
    ];
    // SAFETY: the features are the caller's promise.
    unsafe {
        let one = S::splat(1.0);
        let a = S::abs(x);
        let t = S::div(one, S::fma(S::splat(P), a, one));
        let mut q = S::splat(COEFFICIENTS[0]);
        for c in &COEFFICIENTS[1..] {
            q = S::fma(q, t, S::splat(*c));
        }
        let e = exp::<S>(S::mul(S::splat(-0.5), S::mul(a, a)));
        S::fma(S::mul(S::mul(S::splat(-0.5), a), e), q, S::max(x, S::splat(0.0)))
    }
}

/// The activation function `kind` of each lane.
#[inline(always)]
pub(in crate::kernels) unsafe fn activation<S: Simd>(kind: Activation, x: S::F) -> S::F {
    // SAFETY: the features are the caller's promise.
    unsafe {
        let relu = S::max(x, S::splat(0.0));
        match kind {
            Activation::Relu => relu,
            Activation::ReluSquared => S::mul(relu, relu),
            Activation::GeluErf => gelu_erf::<S>(x),
            Activation::GeluTanh => {
                // (1 + tanh u) / 2 = sigmoid(2 u), u = sqrt(2/pi) (x + 0.044715 x^3)
                let inner = S::fma(S::mul(x, x), S::splat(0.044_715), S::splat(1.0));
                let twice = S::mul(S::mul(x, inner), S::splat(1.595_769));
                S::mul(x, sigmoid::<S>(twice))
            }
            Activation::GeluQuick => S::mul(x, sigmoid::<S>(S::mul(x, S::splat(1.702)))),
            Activation::Silu => S::mul(x, sigmoid::<S>(x)),
            Activation::Tanh => {
                // tanh x = 2 sigmoid(2 x) - 1
                let twice = sigmoid::<S>(S::add(x, x));
                S::fma(twice, S::splat(2.0), S::splat(-1.0))
            }
        }
    }
}
