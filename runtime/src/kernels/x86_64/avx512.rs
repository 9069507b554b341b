//! AVX-512 with VNNI (Ice Lake, Zen 4 and later): one register holds 16 lanes, `vpdpbusd` does 64 multiply-adds.
//!
//! `vpdpbusd` takes one unsigned operand: weights are made unsigned by adding 128 (a flipped top bit) or, for table
//! entries, by a table that is 64 larger. The caller starts each sum lower by that times the sum of the activations.

use super::avx2::{largest8, rows_first, sum8};
use crate::kernels::simd::{LANES, Simd};
#[allow(clippy::wildcard_imports, reason = "a hundred intrinsics")]
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(crate) struct Avx512;

/// Four columns to 16 bits, rounded to nearest even: the first two side by side in each quarter, and the last two.
#[inline(always)]
unsafe fn words(columns: [__m512; 4]) -> [__m512i; 2] {
    // SAFETY: AVX-512 is the caller's promise.
    unsafe {
        let [a, b, c, d] = columns;
        [
            _mm512_packs_epi32(_mm512_cvtps_epi32(a), _mm512_cvtps_epi32(b)),
            _mm512_packs_epi32(_mm512_cvtps_epi32(c), _mm512_cvtps_epi32(d)),
        ]
    }
}

// SAFETY comments below are shared: the trait's contract gives the features and the pointers' validity; all loads and
// stores are unaligned forms.
#[expect(clippy::undocumented_unsafe_blocks, reason = "one contract for all of them, stated above")]
impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;
    type B = __m512i;
    type T = __m512i;
    const I8_OFFSET: i32 = 128;
    const CODE_OFFSET: i32 = 64;

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self::F {
        unsafe { _mm512_set1_ps(v) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::F) {
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, v: Self::F) {
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        unsafe { _mm512_abs_ps(a) }
    }
    #[inline(always)]
    unsafe fn select_lt(a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x) }
    }
    #[inline(always)]
    unsafe fn round(a: Self::F) -> Self::F {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn pow2(n: Self::F) -> Self::F {
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvttps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        }
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, v: Self::F) {
        unsafe { _mm_storeu_si128(p.cast(), _mm512_cvtsepi32_epi8(_mm512_cvttps_epi32(v))) }
    }
    #[inline(always)]
    unsafe fn transpose(v: &mut [Self::F; LANES]) {
        unsafe {
            // Pairs, then fours within each quarter of a register, then the quarters.
            let (mut pairs, mut fours) = (*v, *v);
            for i in (0..LANES).step_by(2) {
                pairs[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
                pairs[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
            }
            for i in (0..LANES).step_by(4) {
                for j in 0..2 {
                    let (a, b) = (_mm512_castps_pd(pairs[i + j]), _mm512_castps_pd(pairs[i + 2 + j]));
                    fours[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
                    fours[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
                }
            }
            for i in 0..4 {
                let (a, b, c, d) = (fours[i], fours[4 + i], fours[8 + i], fours[12 + i]);
                let (ab, cd) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d));
                v[i] = _mm512_shuffle_f32x4::<0x88>(ab, cd);
                v[8 + i] = _mm512_shuffle_f32x4::<0xdd>(ab, cd);
                let (ab, cd) = (_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(c, d));
                v[4 + i] = _mm512_shuffle_f32x4::<0x88>(ab, cd);
                v[12 + i] = _mm512_shuffle_f32x4::<0xdd>(ab, cd);
            }
        }
    }
    #[inline(always)]
    unsafe fn splat_i(v: i32) -> Self::I {
        unsafe { _mm512_set1_epi32(v) }
    }
    #[inline(always)]
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn to_f(v: Self::I) -> Self::F {
        unsafe { _mm512_cvtepi32_ps(v) }
    }
    #[inline(always)]
    unsafe fn table(entries: &[i8; 16]) -> Self::T {
        unsafe {
            let signed = _mm_loadu_si128(entries.as_ptr().cast());
            _mm512_broadcast_i32x4(_mm_add_epi8(signed, _mm_set1_epi8(64)))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Self::B {
        unsafe { _mm512_xor_si512(_mm512_loadu_si512(p.cast()), _mm512_set1_epi8(-128)) }
    }
    #[inline(always)]
    unsafe fn load_i8_lanes(p: *const i8) -> Self::F {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn entries(index: Self::B, table: Self::T) -> Self::B {
        unsafe { _mm512_shuffle_epi8(table, index) }
    }
    #[inline(always)]
    unsafe fn centered(code: Self::B, half: i8) -> Self::B {
        unsafe { _mm512_add_epi8(code, _mm512_set1_epi8(64 - half)) }
    }
    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::B {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store_bytes(p: *mut u8, v: Self::B) {
        unsafe { _mm512_storeu_si512(p.cast(), v) }
    }
    #[inline(always)]
    unsafe fn dot_i8(acc: Self::I, w: Self::B, x: *const i8) -> Self::I {
        unsafe { _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(x.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn dot_code(acc: Self::I, w: Self::B, x: *const i8) -> Self::I {
        unsafe { _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(x.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn sum(v: Self::F) -> f32 {
        unsafe { sum8(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v))) }
    }
    #[inline(always)]
    unsafe fn largest(v: Self::F) -> f32 {
        unsafe { largest8(_mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v))) }
    }
    #[inline(always)]
    unsafe fn prefetch_second(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn pack_i8(columns: [Self::F; 4]) -> Self::B {
        unsafe {
            let [a, b] = words(columns);
            _mm512_shuffle_epi8(_mm512_packs_epi16(a, b), _mm512_broadcast_i32x4(rows_first()))
        }
    }
    #[inline(always)]
    unsafe fn pack_u8(columns: [Self::F; 4]) -> Self::B {
        unsafe {
            let [a, b] = words(columns);
            _mm512_shuffle_epi8(_mm512_packus_epi16(a, b), _mm512_broadcast_i32x4(rows_first()))
        }
    }
    #[inline(always)]
    unsafe fn repeat(p: *const u8) -> Self::B {
        unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn lookup(table: Self::B, index: Self::B) -> Self::B {
        unsafe { _mm512_shuffle_epi8(table, index) }
    }
    #[inline(always)]
    unsafe fn shift_right(v: Self::B, n: u32) -> Self::B {
        unsafe { _mm512_srl_epi16(v, _mm_cvtsi32_si128(n as i32)) }
    }
    #[inline(always)]
    unsafe fn shift_left(v: Self::B, n: u32) -> Self::B {
        unsafe { _mm512_sll_epi16(v, _mm_cvtsi32_si128(n as i32)) }
    }
    #[inline(always)]
    unsafe fn mask(v: Self::B, mask: u8) -> Self::B {
        unsafe { _mm512_and_si512(v, _mm512_set1_epi8(mask as i8)) }
    }
    #[inline(always)]
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B {
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn select_above(a: Self::B, b: Self::B, x: Self::B, y: Self::B) -> Self::B {
        unsafe { _mm512_mask_blend_epi8(_mm512_cmpgt_epu8_mask(a, b), y, x) }
    }
    #[inline(always)]
    unsafe fn select_negative(v: Self::B, x: Self::B, y: Self::B) -> Self::B {
        unsafe { _mm512_mask_blend_epi8(_mm512_movepi8_mask(v), y, x) }
    }
    #[inline(always)]
    unsafe fn dot_u8(acc: Self::I, a: Self::B, w: Self::B) -> Self::I {
        unsafe { _mm512_dpbusd_epi32(acc, a, w) }
    }
    #[inline(always)]
    unsafe fn dot_squares(acc: Self::I, w: Self::B) -> Self::I {
        unsafe {
            let magnitudes = _mm512_abs_epi8(w);
            _mm512_dpbusd_epi32(acc, magnitudes, magnitudes)
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}
