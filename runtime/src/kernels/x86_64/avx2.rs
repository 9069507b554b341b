//! AVX2 with FMA and F16C (Haswell, Zen and later): 16 lanes are two registers. The rows differ in one trait, [`Multiply`].
//!
//! `vpmaddubsw` multiplies unsigned by signed bytes and adds pairs into 16 bits with saturation. Signed weights go
//! in as magnitudes, their signs moved to the activations (at most 2 * 127 * 127 = 32258); table entries, all
//! within ±63, go in raised by 64 (at most 2 * 127 * 127 as well). Nothing saturates, so sums are exact.
//!
//! AVX-VNNI (Alder Lake and later, which are without AVX-512) has `vpdpbusd` for these registers, which does not saturate: one
//! instruction for three, and signed weights go in raised by 128.

use crate::kernels::simd::{LANES, Simd};
#[allow(clippy::wildcard_imports, reason = "a hundred intrinsics")]
use std::arch::x86_64::*;
use std::marker::PhantomData;

/// How 8 rows x 4 columns of bytes meet activations.
///
/// # Safety
/// As for [`Simd`].
pub(crate) trait Multiply: Copy {
    /// [`Simd::I8_OFFSET`].
    const I8_OFFSET: i32;
    /// `acc[row] + sum over 4 columns of w[row][col] * x[row][col]`, `w` unsigned; exact where two products that are neighbours
    /// sum to 16 bits.
    unsafe fn dot(acc: __m256i, w: __m256i, x: __m256i) -> __m256i;
    /// The same for signed weights, raised by the offset.
    unsafe fn dot_i8(acc: __m256i, w: __m256i, x: __m256i) -> __m256i;
}

/// In 16 bits first: no feature beyond AVX2.
#[derive(Clone, Copy)]
pub(crate) struct Madd;

impl Multiply for Madd {
    const I8_OFFSET: i32 = 0;
    #[inline(always)]
    unsafe fn dot(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: AVX2 is the caller's promise.
        unsafe { _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1))) }
    }
    #[inline(always)]
    unsafe fn dot_i8(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: AVX2 is the caller's promise.
        unsafe { Self::dot(acc, _mm256_abs_epi8(w), _mm256_sign_epi8(x, w)) }
    }
}

/// In 32 bits at once.
#[derive(Clone, Copy)]
pub(crate) struct Vnni;

impl Multiply for Vnni {
    const I8_OFFSET: i32 = 128;
    #[inline(always)]
    unsafe fn dot(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the feature is the caller's promise.
        unsafe { _mm256_dpbusd_avx_epi32(acc, w, x) }
    }
    #[inline(always)]
    unsafe fn dot_i8(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the feature is the caller's promise.
        unsafe { _mm256_dpbusd_avx_epi32(acc, w, x) }
    }
}

/// AVX2 with one of the ways to multiply bytes.
#[derive(Clone, Copy)]
pub(crate) struct Avx2<M>(PhantomData<M>);

/// Applies `f` to both halves.
#[inline(always)]
fn both<A: Copy, B: Copy, R>(a: [A; 2], b: [B; 2], f: impl Fn(A, B) -> R) -> [R; 2] {
    [f(a[0], b[0]), f(a[1], b[1])]
}

/// Sum of 8 lanes: halves, then quarters, then neighbours, as [`Simd::sum`] does after its first step.
#[inline(always)]
pub(super) unsafe fn sum8(v: __m256) -> f32 {
    // SAFETY: AVX2 is the caller's promise.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

/// Largest of 8 lanes.
#[inline(always)]
pub(super) unsafe fn largest8(v: __m256) -> f32 {
    // SAFETY: AVX2 is the caller's promise.
    unsafe {
        let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

/// Half `HALF` of four columns to 16 bits, rounded to nearest even: the first two columns side by side in each half of a
/// register, and the last two.
#[inline(always)]
unsafe fn words<const HALF: usize>(columns: [[__m256; 2]; 4]) -> [__m256i; 2] {
    // SAFETY: AVX2 is the caller's promise.
    unsafe {
        let [a, b, c, d] = columns;
        [
            _mm256_packs_epi32(_mm256_cvtps_epi32(a[HALF]), _mm256_cvtps_epi32(b[HALF])),
            _mm256_packs_epi32(_mm256_cvtps_epi32(c[HALF]), _mm256_cvtps_epi32(d[HALF])),
        ]
    }
}

/// The order that makes 4 rows x 4 columns of 4 columns x 4 rows.
#[inline(always)]
pub(super) unsafe fn rows_first() -> __m128i {
    // SAFETY: AVX2 is the caller's promise.
    unsafe { _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15) }
}

/// Rows to columns.
#[inline(always)]
unsafe fn transpose8(v: [__m256; 8]) -> [__m256; 8] {
    // SAFETY: AVX2 is the caller's promise.
    unsafe {
        let (mut pairs, mut fours, mut out) = (v, v, v);
        for i in (0..8).step_by(2) {
            pairs[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
            pairs[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
        }
        for i in (0..8).step_by(4) {
            for j in 0..2 {
                fours[i + 2 * j] = _mm256_shuffle_ps::<0x44>(pairs[i + j], pairs[i + 2 + j]);
                fours[i + 2 * j + 1] = _mm256_shuffle_ps::<0xee>(pairs[i + j], pairs[i + 2 + j]);
            }
        }
        for i in 0..4 {
            out[i] = _mm256_permute2f128_ps::<0x20>(fours[i], fours[4 + i]);
            out[4 + i] = _mm256_permute2f128_ps::<0x31>(fours[i], fours[4 + i]);
        }
        out
    }
}

// SAFETY comments below are shared: the trait's contract gives the features and the pointers' validity; all loads and
// stores are unaligned forms.
#[expect(clippy::undocumented_unsafe_blocks, reason = "one contract for all of them, stated above")]
impl<M: Multiply> Simd for Avx2<M> {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    type B = [__m256i; 2];
    type T = __m256i;
    const I8_OFFSET: i32 = M::I8_OFFSET;
    const CODE_OFFSET: i32 = 64;

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self::F {
        unsafe { [_mm256_set1_ps(v); 2] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::F) {
        unsafe {
            _mm256_storeu_ps(p, v[0]);
            _mm256_storeu_ps(p.add(8), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        unsafe { [_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast()))] }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        both([p, p.wrapping_add(8)], [(); 2], |p, ()| unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        })
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, v: Self::F) {
        unsafe {
            _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[0]));
            _mm_storeu_si128(p.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[1]));
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        both(a, b, |a, b| unsafe { _mm256_add_ps(a, b) })
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        both(a, b, |a, b| unsafe { _mm256_sub_ps(a, b) })
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        both(a, b, |a, b| unsafe { _mm256_mul_ps(a, b) })
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        both(a, b, |a, b| unsafe { _mm256_div_ps(a, b) })
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        both(a, b, |a, b| unsafe { _mm256_max_ps(a, b) })
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        both(a, b, |a, b| unsafe { _mm256_min_ps(a, b) })
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        both(a, a, |a, _| unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) })
    }
    #[inline(always)]
    unsafe fn select_lt(a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        let less = both(a, b, |a, b| unsafe { _mm256_cmp_ps::<_CMP_LT_OQ>(a, b) });
        unsafe { [_mm256_blendv_ps(y[0], x[0], less[0]), _mm256_blendv_ps(y[1], x[1], less[1])] }
    }
    #[inline(always)]
    unsafe fn round(a: Self::F) -> Self::F {
        both(a, a, |a, _| unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) })
    }
    #[inline(always)]
    unsafe fn pow2(n: Self::F) -> Self::F {
        both(n, n, |n, _| unsafe {
            let biased = _mm256_add_epi32(_mm256_cvttps_epi32(n), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        })
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, v: Self::F) {
        unsafe {
            let words = _mm256_packs_epi32(_mm256_cvttps_epi32(v[0]), _mm256_cvttps_epi32(v[1]));
            // Packing works within 128-bit lanes: put the quarters back in order.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(p.cast(), bytes);
        }
    }
    #[inline(always)]
    unsafe fn transpose(v: &mut [Self::F; LANES]) {
        unsafe {
            let mut columns = *v;
            for half in 0..2 {
                let (mut upper, mut lower) = ([v[0][0]; 8], [v[0][0]; 8]);
                for i in 0..8 {
                    (upper[i], lower[i]) = (v[half * 8 + i][0], v[half * 8 + i][1]);
                }
                let (upper, lower) = (transpose8(upper), transpose8(lower));
                for i in 0..8 {
                    (columns[i][half], columns[8 + i][half]) = (upper[i], lower[i]);
                }
            }
            *v = columns;
        }
    }
    #[inline(always)]
    unsafe fn splat_i(v: i32) -> Self::I {
        unsafe { [_mm256_set1_epi32(v); 2] }
    }
    #[inline(always)]
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        both(a, b, |a, b| unsafe { _mm256_add_epi32(a, b) })
    }
    #[inline(always)]
    unsafe fn to_f(v: Self::I) -> Self::F {
        both(v, v, |v, _| unsafe { _mm256_cvtepi32_ps(v) })
    }
    #[inline(always)]
    unsafe fn table(entries: &[i8; 16]) -> Self::T {
        unsafe {
            let signed = _mm_loadu_si128(entries.as_ptr().cast());
            _mm256_broadcastsi128_si256(_mm_add_epi8(signed, _mm_set1_epi8(64)))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Self::B {
        let bytes = unsafe { Self::load_bytes(p) };
        match M::I8_OFFSET {
            0 => bytes,
            _ => both(bytes, bytes, |b, _| unsafe { _mm256_xor_si256(b, _mm256_set1_epi8(-128)) }),
        }
    }
    #[inline(always)]
    unsafe fn load_i8_lanes(p: *const i8) -> Self::F {
        let eight = |p: *const i8| unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))) };
        [eight(p), eight(p.wrapping_add(8))]
    }
    #[inline(always)]
    unsafe fn entries(index: Self::B, table: Self::T) -> Self::B {
        both(index, index, |index, _| unsafe { _mm256_shuffle_epi8(table, index) })
    }
    #[inline(always)]
    unsafe fn centered(code: Self::B, half: i8) -> Self::B {
        both(code, code, |code, _| unsafe { _mm256_add_epi8(code, _mm256_set1_epi8(64 - half)) })
    }
    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::B {
        unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn store_bytes(p: *mut u8, v: Self::B) {
        unsafe {
            _mm256_storeu_si256(p.cast(), v[0]);
            _mm256_storeu_si256(p.add(32).cast(), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn dot_i8(acc: Self::I, w: Self::B, x: *const i8) -> Self::I {
        unsafe {
            let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
            both(acc, w, |acc, w| M::dot_i8(acc, w, x))
        }
    }
    #[inline(always)]
    unsafe fn dot_code(acc: Self::I, w: Self::B, x: *const i8) -> Self::I {
        unsafe {
            let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
            both(acc, w, |acc, w| M::dot(acc, w, x))
        }
    }
    #[inline(always)]
    unsafe fn sum(v: Self::F) -> f32 {
        unsafe { sum8(_mm256_add_ps(v[0], v[1])) }
    }
    #[inline(always)]
    unsafe fn largest(v: Self::F) -> f32 {
        unsafe { largest8(_mm256_max_ps(v[0], v[1])) }
    }
    #[inline(always)]
    unsafe fn prefetch_second(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn pack_i8(columns: [Self::F; 4]) -> Self::B {
        unsafe {
            let order = _mm256_broadcastsi128_si256(rows_first());
            let ([a, b], [c, d]) = (words::<0>(columns), words::<1>(columns));
            let (upper, lower) = (_mm256_packs_epi16(a, b), _mm256_packs_epi16(c, d));
            [_mm256_shuffle_epi8(upper, order), _mm256_shuffle_epi8(lower, order)]
        }
    }
    #[inline(always)]
    unsafe fn pack_u8(columns: [Self::F; 4]) -> Self::B {
        unsafe {
            let order = _mm256_broadcastsi128_si256(rows_first());
            let ([a, b], [c, d]) = (words::<0>(columns), words::<1>(columns));
            let (upper, lower) = (_mm256_packus_epi16(a, b), _mm256_packus_epi16(c, d));
            [_mm256_shuffle_epi8(upper, order), _mm256_shuffle_epi8(lower, order)]
        }
    }
    #[inline(always)]
    unsafe fn repeat(p: *const u8) -> Self::B {
        unsafe { [_mm256_broadcastsi128_si256(_mm_loadu_si128(p.cast())); 2] }
    }
    #[inline(always)]
    unsafe fn lookup(table: Self::B, index: Self::B) -> Self::B {
        both(table, index, |table, index| unsafe { _mm256_shuffle_epi8(table, index) })
    }
    #[inline(always)]
    unsafe fn shift_right(v: Self::B, n: u32) -> Self::B {
        both(v, v, |v, _| unsafe { _mm256_srl_epi16(v, _mm_cvtsi32_si128(n as i32)) })
    }
    #[inline(always)]
    unsafe fn shift_left(v: Self::B, n: u32) -> Self::B {
        both(v, v, |v, _| unsafe { _mm256_sll_epi16(v, _mm_cvtsi32_si128(n as i32)) })
    }
    #[inline(always)]
    unsafe fn mask(v: Self::B, mask: u8) -> Self::B {
        both(v, v, |v, _| unsafe { _mm256_and_si256(v, _mm256_set1_epi8(mask as i8)) })
    }
    #[inline(always)]
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B {
        both(a, b, |a, b| unsafe { _mm256_or_si256(a, b) })
    }
    #[inline(always)]
    unsafe fn select_above(a: Self::B, b: Self::B, x: Self::B, y: Self::B) -> Self::B {
        // There is no unsigned comparison: `a` is at most `b` where it is the smaller one.
        let at_most = both(a, b, |a, b| unsafe { _mm256_cmpeq_epi8(_mm256_min_epu8(a, b), a) });
        unsafe { [_mm256_blendv_epi8(x[0], y[0], at_most[0]), _mm256_blendv_epi8(x[1], y[1], at_most[1])] }
    }
    #[inline(always)]
    unsafe fn select_negative(v: Self::B, x: Self::B, y: Self::B) -> Self::B {
        unsafe { [_mm256_blendv_epi8(y[0], x[0], v[0]), _mm256_blendv_epi8(y[1], x[1], v[1])] }
    }
    #[inline(always)]
    unsafe fn dot_u8(acc: Self::I, a: Self::B, w: Self::B) -> Self::I {
        // At most 2 * 255 * 63 = 32130: nothing saturates.
        unsafe { [M::dot(acc[0], a[0], w[0]), M::dot(acc[1], a[1], w[1])] }
    }
    #[inline(always)]
    unsafe fn dot_squares(acc: Self::I, w: Self::B) -> Self::I {
        unsafe {
            let magnitudes = [_mm256_abs_epi8(w[0]), _mm256_abs_epi8(w[1])];
            Self::dot_u8(acc, magnitudes, magnitudes)
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}
