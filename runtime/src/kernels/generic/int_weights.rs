//! The integer types, as operands of dot products: how each type's blocks are unpacked.

use crate::kernels::simd::Simd;
use crate::quant::{BLOCK, PANEL_ROWS, Q2_CODEBOOK, Q3_CODEBOOK, Q4_CODEBOOK};
use std::marker::PhantomData;

/// Bytes of a line: 4 columns of 16 rows, a byte each.
pub(super) const LINE: usize = 64;

/// How a quant type's blocks become operands of dot products.
pub(in crate::kernels) trait IntWeights<S: Simd>: Copy {
    /// How operands are multiplied.
    type Dots: Dots<S>;
    /// Bytes of one block (16 rows, 32 columns).
    const BLOCK_BYTES: usize;
    /// Constants kept in registers.
    unsafe fn new() -> Self;
    /// Column groups `2 * pair` and `2 * pair + 1` of the block at `block`.
    unsafe fn pair(self, block: *const u8, pair: usize) -> (S::B, S::B);
}

/// Dot products of operands, whatever they were made of.
pub(in crate::kernels) trait Dots<S: Simd> {
    /// What the operands are raised by.
    const OFFSET: i32;
    /// Adds the dot products of 4 columns.
    unsafe fn dot(acc: S::I, w: S::B, x: *const i8) -> S::I;
}

/// Of signed bytes.
pub(in crate::kernels) struct OfBytes;

impl<S: Simd> Dots<S> for OfBytes {
    const OFFSET: i32 = S::I8_OFFSET;
    #[inline(always)]
    unsafe fn dot(acc: S::I, w: S::B, x: *const i8) -> S::I {
        // SAFETY: passed on.
        unsafe { S::dot_i8(acc, w, x) }
    }
}

/// Of what codes stand for.
pub(in crate::kernels) struct OfCodes;

impl<S: Simd> Dots<S> for OfCodes {
    const OFFSET: i32 = S::CODE_OFFSET;
    #[inline(always)]
    unsafe fn dot(acc: S::I, w: S::B, x: *const i8) -> S::I {
        // SAFETY: passed on.
        unsafe { S::dot_code(acc, w, x) }
    }
}

/// `q8`.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Q8;

impl<S: Simd> IntWeights<S> for Q8 {
    type Dots = OfBytes;
    const BLOCK_BYTES: usize = PANEL_ROWS * BLOCK;
    #[inline(always)]
    unsafe fn new() -> Self {
        Self
    }
    #[inline(always)]
    unsafe fn pair(self, block: *const u8, pair: usize) -> (S::B, S::B) {
        // SAFETY: the caller's block covers 512 bytes.
        unsafe { (S::load_i8(block.add(pair * 128)), S::load_i8(block.add(pair * 128 + 64))) }
    }
}

/// How codes become entries, in the form that [`Simd::dot_code`] takes.
pub(in crate::kernels) trait Entries<S: Simd>: Copy {
    /// Constants kept in registers.
    unsafe fn new() -> Self;
    unsafe fn of(self, codes: S::B) -> S::B;
}

/// A table of up to 16 entries.
pub(in crate::kernels) trait Codebook: Copy {
    const ENTRIES: [i8; 16];
}

/// The tables of the types that have one.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Four;
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Three;
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Two;

impl Codebook for Four {
    const ENTRIES: [i8; 16] = Q4_CODEBOOK;
}
impl Codebook for Three {
    const ENTRIES: [i8; 16] = filled(&Q3_CODEBOOK);
}
impl Codebook for Two {
    const ENTRIES: [i8; 16] = filled(&Q2_CODEBOOK);
}

/// The table, and zeros behind it.
const fn filled(table: &[i8]) -> [i8; 16] {
    let mut entries = [0; 16];
    let mut i = 0;
    while i < table.len() {
        entries[i] = table[i];
        i += 1;
    }
    entries
}

/// Entries looked up.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Table<T, C>(T, PhantomData<C>);

impl<S: Simd, C: Codebook> Entries<S> for Table<S::T, C> {
    #[inline(always)]
    unsafe fn new() -> Self {
        // SAFETY: passed on.
        Self(unsafe { S::table(&C::ENTRIES) }, PhantomData)
    }
    #[inline(always)]
    unsafe fn of(self, codes: S::B) -> S::B {
        // SAFETY: passed on.
        unsafe { S::entries(codes, self.0) }
    }
}

/// Whole numbers, counted from `-HALF`.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Centered<const HALF: i8>;

impl<S: Simd, const HALF: i8> Entries<S> for Centered<HALF> {
    #[inline(always)]
    unsafe fn new() -> Self {
        Self
    }
    #[inline(always)]
    unsafe fn of(self, codes: S::B) -> S::B {
        // SAFETY: passed on.
        unsafe { S::centered(codes, HALF) }
    }
}

/// Codes in a plane of `LOW` bits and, if not 0, one of `HIGH` bits.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Planes<E, const LOW: usize, const HIGH: usize>(E);

impl<S: Simd, E: Entries<S>, const LOW: usize, const HIGH: usize> IntWeights<S> for Planes<E, LOW, HIGH> {
    type Dots = OfCodes;
    const BLOCK_BYTES: usize = (LOW + HIGH) * LINE;
    #[inline(always)]
    unsafe fn new() -> Self {
        // SAFETY: passed on.
        Self(unsafe { E::new() })
    }
    #[inline(always)]
    unsafe fn pair(self, block: *const u8, pair: usize) -> (S::B, S::B) {
        // SAFETY: the caller's block covers its planes.
        unsafe { (self.group(block, 2 * pair), self.group(block, 2 * pair + 1)) }
    }
}

impl<E, const LOW: usize, const HIGH: usize> Planes<E, LOW, HIGH> {
    /// One group of 4 columns.
    #[inline(always)]
    unsafe fn group<S: Simd>(self, block: *const u8, group: usize) -> S::B
    where
        E: Entries<S>,
    {
        // SAFETY: the caller's block covers its planes.
        unsafe {
            let line = |plane: usize, bit: usize| S::load_bytes(block.add(plane * LINE + bit / 8 * LINE));
            let low = group * LOW;
            let mut codes = S::mask(S::shift_right(line(0, low), (low % 8) as u32), (1 << LOW) - 1);
            if HIGH > 0 {
                let high = group * HIGH;
                let (from, line) = (high % 8, line(LOW, high));
                let placed = if from > LOW {
                    S::shift_right(line, (from - LOW) as u32)
                } else {
                    S::shift_left(line, (LOW - from) as u32)
                };
                codes = S::or(codes, S::mask(placed, ((1 << HIGH) - 1) << LOW));
            }
            self.0.of(codes)
        }
    }
}

/// Codes with a plane of 2 bits, and one more bit each if `HIGH` is 1.
///
/// They are looked up where they lie: of two groups of columns, whose low bits are neighbours in a byte, the first has a table
/// for the lower bits of an index and the second one for the upper. That saves two fifths of the shifts of [`Planes`], and
/// without a high bit half of the masks.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Pairs<T, C, const HIGH: usize>([T; 2], PhantomData<C>);

impl<S: Simd, C: Codebook, const HIGH: usize> IntWeights<S> for Pairs<S::T, C, HIGH> {
    type Dots = OfCodes;
    const BLOCK_BYTES: usize = (2 + HIGH) * LINE;

    #[inline(always)]
    unsafe fn new() -> Self {
        let (mut first, mut second) = ([0; 16], [0; 16]);
        for index in 0..16 {
            // The high bit stands above the first group's low bits, and below the second's.
            let high = |bit: usize| (index >> bit) % 2 * HIGH;
            first[index] = C::ENTRIES[index % 4 + 4 * high(2)];
            second[index] = C::ENTRIES[index / 4 + 4 * high(1)];
        }
        // SAFETY: passed on.
        Self(unsafe { [S::table(&first), S::table(&second)] }, PhantomData)
    }

    #[inline(always)]
    unsafe fn pair(self, block: *const u8, pair: usize) -> (S::B, S::B) {
        let Self([first, second], _) = self;
        // SAFETY: the caller's block covers its planes.
        unsafe {
            let low = S::shift_right(S::load_bytes(block.add(pair / 2 * LINE)), (pair % 2 * 4) as u32);
            if HIGH == 0 {
                let both = S::mask(low, 15);
                return (S::entries(both, first), S::entries(both, second));
            }
            let high = S::load_bytes(block.add(2 * LINE));
            // Bit `2 * pair` to bit 2, and the next one to bit 1.
            let of_first = if pair == 0 { S::shift_left(high, 2) } else { S::shift_right(high, 2 * pair as u32 - 2) };
            let of_second = S::shift_right(high, 2 * pair as u32);
            (
                S::entries(S::or(S::mask(low, 3), S::mask(of_first, 4)), first),
                S::entries(S::or(S::mask(low, 12), S::mask(of_second, 2)), second),
            )
        }
    }
}
