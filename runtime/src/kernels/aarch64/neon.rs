//! NEON, which every aarch64 processor has, and its instructions for products of bytes: 16 lanes are four registers.
//!
//! Weights and table entries stay signed. The rows differ in one trait, [`Dot`]; all else is shared.
//!
//! No clock of such a processor was at hand; what could be measured is instructions, in the release binary, for 512
//! products of a weight and an activation (one block of 16 rows x 32 columns and one token), with all that the loop
//! over blocks does (scales, prefetch, counters):
//!
//! | row | q4, one token | q8, one token | q4, many tokens | q4, one token: per weight |
//! |---|---|---|---|---|
//! | `avx512` | 49 | 39 | 20 | 0.10 |
//! | `avx2` | 135 | 124 | 92 | 0.26 |
//! | `i8mm` | 170 | 119 | 61 | 0.33 |
//! | `dotprod` | 170 | 119 | 86 | 0.33 |
//! | `neon` | 274 | 230 | 184 | 0.54 |
//!
//! Registers of 128 bits make `dotprod`'s 170: 32 `sdot`, 32 `tbl` and 32 to split nibbles. Eight more broadcast four
//! activations each (`ld1r`, which has no offset: about as many additions); `sdot` by element would need only two loads
//! for a block, but a `Simd::dot_code` that takes 16 activations and a constant index. By the same count integer tiles
//! of 1 x 4 tokens are best with `sdot`, 1 x 3 without (184; 1 x 2 takes 191).
//!
//! `smmla` (i8mm) multiplies 2 rows x 8 columns by 2 tokens x 8 columns, 32 products for `sdot`'s 16; for one token half of its
//! work would be thrown away. Tiles of 1 x 2 tokens are best (61): with 1 x 4 the sums do not fit the registers (68). Two pairs
//! that share each load of weights, their sums going through memory once a block, should take about 47: not tried.

use crate::kernels::simd::{LANES, Simd};
#[allow(clippy::wildcard_imports, reason = "fifty intrinsics")]
use std::arch::aarch64::*;
use std::arch::asm;
use std::marker::PhantomData;

/// How 4 rows x 4 columns of signed bytes meet 4 activations.
///
/// # Safety
/// As for [`Simd`].
pub(crate) trait Dot: Copy {
    /// Whether there is `dot_pair`.
    const PAIRS: bool = false;
    /// `acc[row] + sum over 4 columns of w[row][col] * x[row][col]`, exactly, for `x` in -127..=127.
    unsafe fn dot(acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t;
    /// `acc[row][token] + sum over 8 columns of w[row][col] * x[token][col]`, two rows and two tokens.
    unsafe fn dot_pair(_acc: int32x4_t, _w: int8x16_t, _x: int8x16_t) -> int32x4_t {
        unreachable!("an instruction set without products of pairs")
    }
}

/// Multiplies into 16 bits and widens: no feature beyond NEON.
#[derive(Clone, Copy)]
pub(crate) struct Widening;

impl Dot for Widening {
    #[inline(always)]
    unsafe fn dot(acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: NEON is the caller's promise.
        unsafe {
            let low = vmull_s8(vget_low_s8(w), vget_low_s8(x));
            // Two products are at most 2 * 128 * 127 = 32512: they fit into 16 bits.
            vpadalq_s16(acc, vpaddq_s16(low, smull2(w, x)))
        }
    }
}

/// `vmull_high_s8`, of which the compiler makes two instructions when it sees that both halves of `x` are the same.
#[target_feature(enable = "neon")]
#[inline]
fn smull2(w: int8x16_t, x: int8x16_t) -> int16x8_t {
    let products: int16x8_t;
    // SAFETY: three registers and nothing else.
    unsafe {
        asm!(
            "smull2 {products:v}.8h, {w:v}.16b, {x:v}.16b",
            products = lateout(vreg) products,
            w = in(vreg) w,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    products
}

/// `sdot`, in processors from about 2018 on.
#[derive(Clone, Copy)]
pub(crate) struct Sdot;

impl Dot for Sdot {
    #[inline(always)]
    unsafe fn dot(acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: the feature is the caller's promise.
        unsafe { sdot(acc, w, x) }
    }
}

/// The intrinsic, `vdotq_s32`, is unstable.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn sdot(mut acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: three registers and nothing else.
    unsafe {
        asm!(
            "sdot {acc:v}.4s, {w:v}.16b, {x:v}.16b",
            acc = inout(vreg) acc,
            w = in(vreg) w,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

/// `sdot`, and for pairs of tokens `smmla`, in processors from about 2021 on.
#[derive(Clone, Copy)]
pub(crate) struct Smmla;

impl Dot for Smmla {
    const PAIRS: bool = true;
    #[inline(always)]
    unsafe fn dot(acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: the feature is the caller's promise.
        unsafe { sdot(acc, w, x) }
    }
    #[inline(always)]
    unsafe fn dot_pair(acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: the feature is the caller's promise.
        unsafe { smmla(acc, w, x) }
    }
}

/// The intrinsic, `vmmlaq_s32`, is unstable.
#[target_feature(enable = "neon,i8mm")]
#[inline]
fn smmla(mut acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: three registers and nothing else.
    unsafe {
        asm!(
            "smmla {acc:v}.4s, {w:v}.16b, {x:v}.16b",
            acc = inout(vreg) acc,
            w = in(vreg) w,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

/// NEON with one of the ways to multiply bytes.
#[derive(Clone, Copy)]
pub(crate) struct Neon<D>(PhantomData<D>);

/// The four quarters. Neither this nor the next two are `array::map` or `array::from_fn`: what those pass closures through has
/// not the features of who calls them, and the compiler stopped inlining it in large kernels, at the price of a call and a trip
/// through memory for each quarter.
#[inline(always)]
fn four<R>(f: impl Fn(usize) -> R) -> [R; 4] {
    [f(0), f(1), f(2), f(3)]
}

/// Applies `f` to the four quarters.
#[inline(always)]
fn each<A: Copy, R>(a: [A; 4], f: impl Fn(A) -> R) -> [R; 4] {
    [f(a[0]), f(a[1]), f(a[2]), f(a[3])]
}

/// Applies `f` to the four quarters of both.
#[inline(always)]
fn quarters<A: Copy, B: Copy, R>(a: [A; 4], b: [B; 4], f: impl Fn(A, B) -> R) -> [R; 4] {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

/// `a > b ? a : b`; `fmax` and `fmaxnm` treat NaN in other ways.
#[inline(always)]
unsafe fn larger(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: NEON is the caller's promise.
    unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
}

/// The order that makes 4 rows x 4 columns of 4 columns x 4 rows.
#[inline(always)]
unsafe fn rows_first() -> uint8x16_t {
    const ORDER: [u8; 16] = [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15];
    // SAFETY: NEON is the caller's promise; the array has 16 bytes.
    unsafe { vld1q_u8(ORDER.as_ptr()) }
}

/// Rows to columns.
#[inline(always)]
unsafe fn transpose4(v: [float32x4_t; 4]) -> [float32x4_t; 4] {
    // SAFETY: NEON is the caller's promise.
    unsafe {
        let (ac, bd) = (vzipq_f32(v[0], v[2]), vzipq_f32(v[1], v[3]));
        let (low, high) = (vzipq_f32(ac.0, bd.0), vzipq_f32(ac.1, bd.1));
        [low.0, low.1, high.0, high.1]
    }
}

// SAFETY comments below are shared: the trait's contract gives the features and the pointers' validity; NEON loads and
// stores need no alignment.
#[expect(clippy::undocumented_unsafe_blocks, reason = "one contract for all of them, stated above")]
impl<D: Dot> Simd for Neon<D> {
    type F = [float32x4_t; 4];
    type I = [int32x4_t; 4];
    type B = [int8x16_t; 4];
    type T = int8x16_t;
    const I8_OFFSET: i32 = 0;
    const CODE_OFFSET: i32 = 0;
    const PAIRS: bool = D::PAIRS;

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self::F {
        unsafe { [vdupq_n_f32(v); 4] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        four(|i| unsafe { vld1q_f32(p.add(i * 4)) })
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::F) {
        for i in 0..4 {
            unsafe { vst1q_f32(p.add(i * 4), v[i]) };
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        four(|i| unsafe { vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p.add(i * 4)))) })
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        four(|i| unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p.add(i * 4)))) })
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, v: Self::F) {
        for i in 0..4 {
            unsafe { vst1_u16(p.add(i * 4), vreinterpret_u16_f16(vcvt_f16_f32(v[i]))) };
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        quarters(a, b, |a, b| unsafe { vaddq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        quarters(a, b, |a, b| unsafe { vsubq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        quarters(a, b, |a, b| unsafe { vmulq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        quarters(a, b, |a, b| unsafe { vdivq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        four(|i| unsafe { vfmaq_f32(c[i], a[i], b[i]) })
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        quarters(a, b, |a, b| unsafe { larger(a, b) })
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        quarters(a, b, |a, b| unsafe { vbslq_f32(vcltq_f32(a, b), a, b) })
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        each(a, |a| unsafe { vabsq_f32(a) })
    }
    #[inline(always)]
    unsafe fn select_lt(a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        four(|i| unsafe { vbslq_f32(vcltq_f32(a[i], b[i]), x[i], y[i]) })
    }
    #[inline(always)]
    unsafe fn round(a: Self::F) -> Self::F {
        each(a, |a| unsafe { vrndnq_f32(a) })
    }
    #[inline(always)]
    unsafe fn pow2(n: Self::F) -> Self::F {
        each(n, |n| unsafe {
            let biased = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased))
        })
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, v: Self::F) {
        unsafe {
            let [a, b, c, d] = each(v, |v| vqmovn_s32(vcvtq_s32_f32(v)));
            let bytes = vcombine_s8(vqmovn_s16(vcombine_s16(a, b)), vqmovn_s16(vcombine_s16(c, d)));
            vst1q_s8(p, bytes);
        }
    }
    #[inline(always)]
    unsafe fn transpose(v: &mut [Self::F; LANES]) {
        unsafe {
            // Sixteen squares of 4 x 4.
            let source = *v;
            for (rows, cols) in (0..16).map(|i| (i / 4, i % 4)) {
                let square = four(|i| source[rows * 4 + i][cols]);
                for (i, column) in transpose4(square).into_iter().enumerate() {
                    v[cols * 4 + i][rows] = column;
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn splat_i(v: i32) -> Self::I {
        unsafe { [vdupq_n_s32(v); 4] }
    }
    #[inline(always)]
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        quarters(a, b, |a, b| unsafe { vaddq_s32(a, b) })
    }
    #[inline(always)]
    unsafe fn to_f(v: Self::I) -> Self::F {
        each(v, |v| unsafe { vcvtq_f32_s32(v) })
    }
    #[inline(always)]
    unsafe fn table(entries: &[i8; 16]) -> Self::T {
        unsafe { vld1q_s8(entries.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Self::B {
        unsafe { Self::load_bytes(p) }
    }
    #[inline(always)]
    unsafe fn load_i8_lanes(p: *const i8) -> Self::F {
        unsafe {
            let bytes = vld1q_s8(p);
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_s8(vget_high_s8(bytes)));
            let parts = [vget_low_s16(low), vget_high_s16(low), vget_low_s16(high), vget_high_s16(high)];
            each(parts, |part| vcvtq_f32_s32(vmovl_s16(part)))
        }
    }
    #[inline(always)]
    unsafe fn entries(index: Self::B, table: Self::T) -> Self::B {
        each(index, |index| unsafe { vqtbl1q_s8(table, vreinterpretq_u8_s8(index)) })
    }
    #[inline(always)]
    unsafe fn centered(code: Self::B, half: i8) -> Self::B {
        each(code, |code| unsafe { vsubq_s8(code, vdupq_n_s8(half)) })
    }
    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::B {
        four(|i| unsafe { vld1q_s8(p.add(i * 16).cast()) })
    }
    #[inline(always)]
    unsafe fn store_bytes(p: *mut u8, v: Self::B) {
        for i in 0..4 {
            unsafe { vst1q_s8(p.add(i * 16).cast(), v[i]) };
        }
    }
    #[inline(always)]
    unsafe fn dot_i8(acc: Self::I, w: Self::B, x: *const i8) -> Self::I {
        unsafe {
            let x = vreinterpretq_s8_s32(vdupq_n_s32(x.cast::<i32>().read_unaligned()));
            quarters(acc, w, |acc, w| D::dot(acc, w, x))
        }
    }
    #[inline(always)]
    unsafe fn dot_code(acc: Self::I, w: Self::B, x: *const i8) -> Self::I {
        unsafe { Self::dot_i8(acc, w, x) }
    }
    #[inline(always)]
    unsafe fn pack_i8(columns: [Self::F; 4]) -> Self::B {
        four(|rows| unsafe {
            let [a, b, c, d] = each(columns, |column| vqmovn_s32(vcvtnq_s32_f32(column[rows])));
            let bytes = vcombine_s8(vqmovn_s16(vcombine_s16(a, b)), vqmovn_s16(vcombine_s16(c, d)));
            vqtbl1q_s8(bytes, rows_first())
        })
    }
    #[inline(always)]
    unsafe fn pack_u8(columns: [Self::F; 4]) -> Self::B {
        four(|rows| unsafe {
            let [a, b, c, d] = each(columns, |column| vqmovn_s32(vcvtnq_s32_f32(column[rows])));
            let bytes = vcombine_u8(vqmovun_s16(vcombine_s16(a, b)), vqmovun_s16(vcombine_s16(c, d)));
            vqtbl1q_s8(vreinterpretq_s8_u8(bytes), rows_first())
        })
    }
    #[inline(always)]
    unsafe fn repeat(p: *const u8) -> Self::B {
        unsafe { [vld1q_s8(p.cast()); 4] }
    }
    #[inline(always)]
    unsafe fn lookup(table: Self::B, index: Self::B) -> Self::B {
        quarters(table, index, |table, index| unsafe { vqtbl1q_s8(table, vreinterpretq_u8_s8(index)) })
    }
    #[inline(always)]
    unsafe fn shift_right(v: Self::B, n: u32) -> Self::B {
        let by = -(n as i8);
        each(v, |v| unsafe { vreinterpretq_s8_u8(vshlq_u8(vreinterpretq_u8_s8(v), vdupq_n_s8(by))) })
    }
    #[inline(always)]
    unsafe fn shift_left(v: Self::B, n: u32) -> Self::B {
        each(v, |v| unsafe { vshlq_s8(v, vdupq_n_s8(n as i8)) })
    }
    #[inline(always)]
    unsafe fn mask(v: Self::B, mask: u8) -> Self::B {
        each(v, |v| unsafe { vandq_s8(v, vdupq_n_s8(mask as i8)) })
    }
    #[inline(always)]
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B {
        quarters(a, b, |a, b| unsafe { vorrq_s8(a, b) })
    }
    #[inline(always)]
    unsafe fn select_above(a: Self::B, b: Self::B, x: Self::B, y: Self::B) -> Self::B {
        four(|i| unsafe { vbslq_s8(vcgtq_u8(vreinterpretq_u8_s8(a[i]), vreinterpretq_u8_s8(b[i])), x[i], y[i]) })
    }
    #[inline(always)]
    unsafe fn select_negative(v: Self::B, x: Self::B, y: Self::B) -> Self::B {
        four(|i| unsafe { vbslq_s8(vcltzq_s8(v[i]), x[i], y[i]) })
    }
    #[inline(always)]
    unsafe fn dot_u8(acc: Self::I, a: Self::B, w: Self::B) -> Self::I {
        // Both operands of `sdot` are signed: `a * w` as `(a / 2) * 2 w + (a % 2) * w`.
        four(|i| unsafe {
            let a = vreinterpretq_u8_s8(a[i]);
            let (half, odd) = (vshrq_n_u8::<1>(a), vandq_u8(a, vdupq_n_u8(1)));
            let acc = D::dot(acc[i], vaddq_s8(w[i], w[i]), vreinterpretq_s8_u8(half));
            D::dot(acc, w[i], vreinterpretq_s8_u8(odd))
        })
    }
    #[inline(always)]
    unsafe fn dot_squares(acc: Self::I, w: Self::B) -> Self::I {
        quarters(acc, w, |acc, w| unsafe { D::dot(acc, w, w) })
    }
    #[inline(always)]
    unsafe fn sum(v: Self::F) -> f32 {
        unsafe {
            let four = vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
            vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)))
        }
    }
    #[inline(always)]
    unsafe fn largest(v: Self::F) -> f32 {
        unsafe {
            let four = larger(larger(v[0], v[2]), larger(v[1], v[3]));
            // Lanes 0 and 1 of what follows count.
            let two = larger(four, vextq_f32::<2>(four, four));
            vgetq_lane_f32::<0>(larger(two, vdupq_laneq_f32::<1>(two)))
        }
    }
    #[inline(always)]
    unsafe fn store_pair(p: *mut u8, first: Self::B, second: Self::B) {
        for i in 0..4 {
            unsafe {
                let (first, second) = (vreinterpretq_s32_s8(first[i]), vreinterpretq_s32_s8(second[i]));
                if D::PAIRS {
                    // Four rows of 8 columns each.
                    vst1q_s32(p.add(32 * i).cast(), vzip1q_s32(first, second));
                    vst1q_s32(p.add(32 * i + 16).cast(), vzip2q_s32(first, second));
                } else {
                    vst1q_s32(p.add(16 * i).cast(), first);
                    vst1q_s32(p.add(16 * i + 64).cast(), second);
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn dot_pair(acc: [Self::I; 2], w: *const u8, x: [*const i8; 2]) -> [Self::I; 2] {
        unsafe {
            let x = vcombine_s8(vld1_s8(x[0]), vld1_s8(x[1]));
            let w = |rows: usize| vld1q_s8(w.add(16 * rows).cast());
            [
                quarters(acc[0], [w(0), w(1), w(2), w(3)], |acc, w| D::dot_pair(acc, w, x)),
                quarters(acc[1], [w(4), w(5), w(6), w(7)], |acc, w| D::dot_pair(acc, w, x)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn split_pair(acc: [Self::I; 2]) -> [Self::I; 2] {
        // Each has two rows of two tokens.
        let [[a, b, c, d], [e, f, g, h]] = acc;
        let (first, second) = ([a, c, e, g], [b, d, f, h]);
        unsafe { [quarters(first, second, |a, b| vuzp1q_s32(a, b)), quarters(first, second, |a, b| vuzp2q_s32(a, b))] }
    }
    #[inline(always)]
    unsafe fn prefetch_second(p: *const u8) {
        unsafe { asm!("prfm pldl2keep, [{p}]", p = in(reg) p.addr(), options(nomem, nostack, preserves_flags)) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // A hint: no fault, and nothing that the compiler need know of.
        unsafe { asm!("prfm pldl1keep, [{p}]", p = in(reg) p.addr(), options(nomem, nostack, preserves_flags)) }
    }
}
