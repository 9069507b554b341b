//! Sixteen lanes, whatever the processor calls them.
//!
//! Every kernel is written once, over this trait, and instantiated for each instruction set in a function that
//! enables its features. An instruction set is one implementation of [`Simd`]: sixteen f32 lanes, sixteen i32 lanes,
//! and 64 bytes of 8-bit weights (16 rows x 4 columns).
//!
//! All float operations are IEEE operations in a fixed order, `fma` is fused everywhere, and integer sums are exact.
//! Two instruction sets therefore give the same bits, which the tests check.

use std::array::from_fn;

/// Lanes of a float vector.
pub(crate) const LANES: usize = 16;

/// One instruction set.
///
/// # Safety
/// All methods may be called only where the instruction set's features are known to be present. Pointers need
/// no alignment; they must be valid for the 16 elements (or 64, 16 or 4 bytes) that the method's name implies.
pub(crate) trait Simd: Copy {
    /// 16 f32 lanes.
    type F: Copy;
    /// 16 i32 lanes.
    type I: Copy;
    /// 64 bytes of weights: 16 rows x 4 columns.
    type B: Copy;
    /// A table of 16 signed bytes.
    type T: Copy;

    /// What [`load_i8`](Self::load_i8) adds to every weight: its dot products are larger by this times the sum of
    /// the activations.
    const I8_OFFSET: i32;
    /// The same for table entries.
    const CODE_OFFSET: i32;
    /// Whether many tokens are multiplied in pairs, by [`dot_pair`](Self::dot_pair).
    const PAIRS: bool = false;

    unsafe fn splat(v: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn store(p: *mut f32, v: Self::F);
    unsafe fn load_f16(p: *const u16) -> Self::F;
    unsafe fn load_bf16(p: *const u16) -> Self::F;
    /// Rounds to nearest even.
    unsafe fn store_f16(p: *mut u16, v: Self::F);
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a > b ? a : b`: `b` when either is NaN.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// `a < b ? a : b`: `b` when either is NaN.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn abs(a: Self::F) -> Self::F;
    /// `a < b ? x : y`, lane by lane.
    unsafe fn select_lt(a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F;
    /// To the nearest whole number, ties to even.
    unsafe fn round(a: Self::F) -> Self::F;
    /// `2^n` for whole `n` in -126..=127.
    unsafe fn pow2(n: Self::F) -> Self::F;
    /// Stores whole values in -128..=127 as bytes.
    unsafe fn store_i8(p: *mut i8, v: Self::F);
    /// Lane `i` of vector `j` of the result is lane `j` of vector `i`.
    unsafe fn transpose(v: &mut [Self::F; LANES]);

    unsafe fn splat_i(v: i32) -> Self::I;
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn to_f(v: Self::I) -> Self::F;

    /// 16 whole numbers in -128..=127.
    unsafe fn load_i8_lanes(p: *const i8) -> Self::F;

    unsafe fn table(entries: &[i8; 16]) -> Self::T;
    /// 64 signed weights, in the form that [`dot_i8`](Self::dot_i8) takes.
    unsafe fn load_i8(p: *const u8) -> Self::B;
    /// The entries at indices below 16, in the form that [`dot_code`](Self::dot_code) takes.
    unsafe fn entries(index: Self::B, table: Self::T) -> Self::B;
    /// `code - half`, the same.
    unsafe fn centered(code: Self::B, half: i8) -> Self::B;
    unsafe fn load_bytes(p: *const u8) -> Self::B;
    unsafe fn store_bytes(p: *mut u8, v: Self::B);
    /// `acc[row] + sum over 4 columns of w[row][col] * x[col]`, `x` in -127..=127.
    unsafe fn dot_i8(acc: Self::I, w: Self::B, x: *const i8) -> Self::I;
    /// The same for table entries.
    unsafe fn dot_code(acc: Self::I, w: Self::B, x: *const i8) -> Self::I;

    /// 4 columns of 16 rows to bytes: to the nearest whole number, ties to even, then into -128..=127. Magnitudes must be
    /// below 2^31.
    unsafe fn pack_i8(columns: [Self::F; 4]) -> Self::B;
    /// The same into 0..=255; as unsigned bytes.
    unsafe fn pack_u8(columns: [Self::F; 4]) -> Self::B;
    /// 16 bytes, four times: what [`lookup`](Self::lookup) takes.
    unsafe fn repeat(p: *const u8) -> Self::B;
    /// `table[index]` of each byte; indices are below 16.
    unsafe fn lookup(table: Self::B, index: Self::B) -> Self::B;
    /// Each byte `n` bits lower; what moves into it from above is not defined.
    unsafe fn shift_right(v: Self::B, n: u32) -> Self::B;
    /// Each byte `n` bits higher; what moves into it from below is not defined.
    unsafe fn shift_left(v: Self::B, n: u32) -> Self::B;
    /// `v & mask` of each byte.
    unsafe fn mask(v: Self::B, mask: u8) -> Self::B;
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B;
    /// `a > b ? x : y` of unsigned bytes.
    unsafe fn select_above(a: Self::B, b: Self::B, x: Self::B, y: Self::B) -> Self::B;
    /// `v < 0 ? x : y`, `v` signed.
    unsafe fn select_negative(v: Self::B, x: Self::B, y: Self::B) -> Self::B;
    /// `acc[row] + sum over 4 columns of a[row][col] * w[row][col]`, `a` unsigned, `w` in -63..=63.
    unsafe fn dot_u8(acc: Self::I, a: Self::B, w: Self::B) -> Self::I;
    /// `acc[row] + sum over 4 columns of w[row][col]^2`, `w` in -63..=63.
    unsafe fn dot_squares(acc: Self::I, w: Self::B) -> Self::I;

    /// Stores weights of two groups of columns that follow each other, 128 bytes, as [`dot_pair`](Self::dot_pair) loads them if
    /// [`PAIRS`](Self::PAIRS), and one after the other if not.
    #[inline(always)]
    unsafe fn store_pair(p: *mut u8, first: Self::B, second: Self::B) {
        // SAFETY: passed on.
        unsafe {
            Self::store_bytes(p, first);
            Self::store_bytes(p.add(64), second);
        }
    }
    /// Adds to the sums of two tokens the dot products of 8 columns, weights at `w`, activations at `x`. In which order the
    /// sums lie is up to the instruction set until [`split_pair`](Self::split_pair); it starts from zeros.
    ///
    /// # Panics
    /// Unless [`PAIRS`](Self::PAIRS).
    #[inline(always)]
    unsafe fn dot_pair(_acc: [Self::I; 2], _w: *const u8, _x: [*const i8; 2]) -> [Self::I; 2] {
        unreachable!("an instruction set without products of pairs")
    }
    /// The sums of either token.
    ///
    /// # Panics
    /// Unless [`PAIRS`](Self::PAIRS).
    #[inline(always)]
    unsafe fn split_pair(_acc: [Self::I; 2]) -> [Self::I; 2] {
        unreachable!("an instruction set without products of pairs")
    }

    /// Asks for the cache line at `p`, which need not be valid.
    unsafe fn prefetch(p: *const u8);
    /// The same, into the second-level cache only.
    unsafe fn prefetch_second(p: *const u8);

    /// The 16 lanes as an array.
    #[inline(always)]
    unsafe fn to_array(v: Self::F) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        // SAFETY: `out` holds 16 values; the features are the caller's promise.
        unsafe { Self::store(out.as_mut_ptr(), v) };
        out
    }

    /// Sum of the lanes in one fixed order: halves are added until one is left.
    #[inline(always)]
    unsafe fn sum(v: Self::F) -> f32 {
        // SAFETY: the features are the caller's promise.
        let a = unsafe { Self::to_array(v) };
        let b: [f32; 8] = from_fn(|i| a[i] + a[i + 8]);
        let c: [f32; 4] = from_fn(|i| b[i] + b[i + 4]);
        (c[0] + c[2]) + (c[1] + c[3])
    }

    /// Largest lane (of numbers; the order does not matter).
    #[inline(always)]
    unsafe fn largest(v: Self::F) -> f32 {
        // SAFETY: the features are the caller's promise.
        let a = unsafe { Self::to_array(v) };
        let larger = |x: f32, y: f32| if x > y { x } else { y };
        let b: [f32; 8] = from_fn(|i| larger(a[i], a[i + 8]));
        let c: [f32; 4] = from_fn(|i| larger(b[i], b[i + 4]));
        larger(larger(c[0], c[2]), larger(c[1], c[3]))
    }
}
