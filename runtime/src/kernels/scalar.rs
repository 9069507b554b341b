//! The portable instruction set: plain Rust, the reference that the others must equal bit for bit.
//!
//! On x86-64 it serves processors without AVX2 only, and has no instruction for `fma`, so what is long is not inlined there:
//! unrolled into every kernel it made half of a stripped library (3.3 of 6.6 MB of code).

use super::simd::{LANES, Simd};
use std::array::from_fn;

/// No instructions beyond what the compiler targets.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

impl Simd for Scalar {
    type F = [f32; LANES];
    type I = [i32; LANES];
    type B = [i8; 64];
    type T = [i8; 16];
    const I8_OFFSET: i32 = 0;
    const CODE_OFFSET: i32 = 0;

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self::F {
        [v; LANES]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        // SAFETY: valid for 16 elements, the trait's contract.
        unsafe { p.cast::<Self::F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::F) {
        // SAFETY: valid for 16 elements, the trait's contract.
        unsafe { p.cast::<Self::F>().write_unaligned(v) }
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        // SAFETY: valid for 16 elements, the trait's contract.
        let bits = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        bits.map(|b| half::f16::from_bits(b).to_f32_const())
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        // SAFETY: valid for 16 elements, the trait's contract.
        let bits = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        bits.map(|b| f32::from_bits(u32::from(b) << 16))
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    unsafe fn store_f16(p: *mut u16, v: Self::F) {
        let bits = v.map(|x| half::f16::from_f32_const(x).to_bits());
        // SAFETY: valid for 16 elements, the trait's contract.
        unsafe { p.cast::<[u16; LANES]>().write_unaligned(bits) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] / b[i])
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        a.map(f32::abs)
    }
    #[inline(always)]
    unsafe fn select_lt(a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        from_fn(|i| if a[i] < b[i] { x[i] } else { y[i] })
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    unsafe fn round(a: Self::F) -> Self::F {
        a.map(f32::round_ties_even)
    }
    #[inline(always)]
    unsafe fn pow2(n: Self::F) -> Self::F {
        n.map(|n| f32::from_bits(((n as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, v: Self::F) {
        // SAFETY: valid for 16 elements, the trait's contract.
        unsafe { p.cast::<[i8; LANES]>().write_unaligned(v.map(|x| x as i8)) }
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    unsafe fn transpose(v: &mut [Self::F; LANES]) {
        *v = from_fn(|i| from_fn(|j| v[j][i]));
    }
    #[inline(always)]
    unsafe fn splat_i(v: i32) -> Self::I {
        [v; LANES]
    }
    #[inline(always)]
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    unsafe fn to_f(v: Self::I) -> Self::F {
        v.map(|x| x as f32)
    }
    #[inline(always)]
    unsafe fn table(entries: &[i8; 16]) -> Self::T {
        *entries
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Self::B {
        // SAFETY: valid for 64 bytes, the trait's contract.
        unsafe { p.cast::<Self::B>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_i8_lanes(p: *const i8) -> Self::F {
        // SAFETY: valid for 16 bytes, the trait's contract.
        unsafe { p.cast::<[i8; LANES]>().read_unaligned() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn entries(index: Self::B, table: Self::T) -> Self::B {
        // SAFETY: no pointers.
        unsafe { Self::lookup(from_fn(|i| table[i % 16]), index) }
    }
    #[inline(always)]
    unsafe fn centered(code: Self::B, half: i8) -> Self::B {
        code.map(|c| c - half)
    }
    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::B {
        // SAFETY: valid for 64 bytes, the trait's contract.
        unsafe { p.cast::<Self::B>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_bytes(p: *mut u8, v: Self::B) {
        // SAFETY: valid for 64 bytes, the trait's contract.
        unsafe { p.cast::<Self::B>().write_unaligned(v) }
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    unsafe fn dot_i8(acc: Self::I, w: Self::B, x: *const i8) -> Self::I {
        // SAFETY: valid for 4 bytes, the trait's contract.
        let x = unsafe { x.cast::<[i8; 4]>().read_unaligned() };
        from_fn(|row| {
            let products = (0..4).map(|col| i32::from(w[row * 4 + col]) * i32::from(x[col]));
            acc[row] + products.sum::<i32>()
        })
    }
    #[inline(always)]
    unsafe fn dot_code(acc: Self::I, w: Self::B, x: *const i8) -> Self::I {
        // SAFETY: as for `dot_i8`, whose contract is the same.
        unsafe { Self::dot_i8(acc, w, x) }
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    unsafe fn pack_i8(columns: [Self::F; 4]) -> Self::B {
        from_fn(|i| columns[i % 4][i / 4].round_ties_even() as i8)
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    unsafe fn pack_u8(columns: [Self::F; 4]) -> Self::B {
        from_fn(|i| columns[i % 4][i / 4].round_ties_even() as u8 as i8)
    }
    #[inline(always)]
    unsafe fn repeat(p: *const u8) -> Self::B {
        // SAFETY: valid for 16 bytes, the trait's contract.
        let bytes = unsafe { p.cast::<[i8; 16]>().read_unaligned() };
        from_fn(|i| bytes[i % 16])
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    unsafe fn lookup(table: Self::B, index: Self::B) -> Self::B {
        index.map(|i| table[i as usize & 15])
    }
    #[inline(always)]
    unsafe fn shift_right(v: Self::B, n: u32) -> Self::B {
        v.map(|b| (b as u8 >> n) as i8)
    }
    #[inline(always)]
    unsafe fn shift_left(v: Self::B, n: u32) -> Self::B {
        v.map(|b| b << n)
    }
    #[inline(always)]
    unsafe fn mask(v: Self::B, mask: u8) -> Self::B {
        v.map(|b| b & mask as i8)
    }
    #[inline(always)]
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B {
        from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    unsafe fn select_above(a: Self::B, b: Self::B, x: Self::B, y: Self::B) -> Self::B {
        from_fn(|i| if a[i] as u8 > b[i] as u8 { x[i] } else { y[i] })
    }
    #[inline(always)]
    unsafe fn select_negative(v: Self::B, x: Self::B, y: Self::B) -> Self::B {
        from_fn(|i| if v[i] < 0 { x[i] } else { y[i] })
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    unsafe fn dot_u8(acc: Self::I, a: Self::B, w: Self::B) -> Self::I {
        from_fn(|row| {
            let products = (row * 4..row * 4 + 4).map(|i| i32::from(a[i] as u8) * i32::from(w[i]));
            acc[row] + products.sum::<i32>()
        })
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    unsafe fn dot_squares(acc: Self::I, w: Self::B) -> Self::I {
        from_fn(|row| acc[row] + (row * 4..row * 4 + 4).map(|i| i32::from(w[i]).pow(2)).sum::<i32>())
    }
    #[inline(always)]
    unsafe fn prefetch(_p: *const u8) {}
    #[inline(always)]
    unsafe fn prefetch_second(_p: *const u8) {}
}
