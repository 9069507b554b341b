//! Encoding of weights: one block of 16 rows x 32 columns at a time, rows as lanes.
//!
//! Every function loads its block, writes it as the panel of its type has it (see `quant`), and says whether all values
//! fit: if not, what it wrote means nothing.
//!
//! # The scale of a `q4` block
//!
//! The table is not uniform, so the best scale is not known from the largest value; it is found by trying what the largest
//! value might map to, with both signs (the table is not symmetric either: one sign alone costs 6 % RMSE). For a trial the
//! indices are fixed, and the scale that is best *for these indices* follows in closed form, `sum(x q) / sum(q q)`; it
//! lowers the squared error by `sum(x q)^2 / sum(q q)`, which is compared.
//!
//! All trials look at one rounding of the block to a sign and 8 bits of magnitude, 255 being the row's largest value. A
//! trial is then the same for every block: a small table from magnitude to entry. Sixteen cells of 16 magnitudes are
//! narrower than the distance of two boundaries between entries, so one comparison inside the cell finishes it. Both
//! signs of a trial take the same two look-ups, for values of the scale's sign and of the other. Sums are exact integers.
//!
//! Relative RMSE, in % (gpt2-mini, Gaussian, Student's t with 4 degrees of freedom): 12 trials on 255 levels 7.400,
//! 7.285, 8.640; the same on 127 levels 7.408, 7.293, 8.650; 8 trials 7.408, 7.294, 8.644; 16 trials 7.398, 7.284,
//! 8.639; 8 trials on the values themselves, as it was before, 7.405, 7.291, 8.640. A second round of scale and indices
//! from the winner gains 0.002. Weighting errors by x² raised the plain error by 7 %.

use crate::kernels::simd::{LANES, Simd};
use crate::kernels::{Element, EncodeArgs, Lines};
use crate::quant::{BLOCK, Q4_CODEBOOK};

/// Columns of a group: those that lie side by side in 64 bytes.
const GROUP: usize = 4;
/// Groups of a block.
const GROUPS: usize = BLOCK / GROUP;

/// What the largest value of a row maps to, in units of the table's entries.
const TARGETS: [i32; 12] = [44, 46, 48, 50, 52, 54, 56, 58, 60, 62, 64, 66];

/// The table as seen from zero in one direction: from a magnitude to an entry, negated when the direction is down, or to
/// its index. `low[m / 16]` up to the boundary, `high[m / 16]` above it.
#[derive(Clone, Copy)]
struct Side {
    boundary: [u8; 16],
    low: [u8; 16],
    high: [u8; 16],
}

/// A magnitude of 255 stands for `quarters / 4` in units of the table's entries.
const fn side(up: bool, quarters: i32, indices: bool) -> Side {
    let mut side = Side { boundary: [255; 16], low: [0; 16], high: [0; 16] };
    // The entry nearest to zero, from above and from below.
    let mut entry = 8usize;
    let mut magnitude = 0;
    while magnitude < 256 {
        let (cell, next) = (magnitude / 16, if up { entry + 1 } else { entry.wrapping_sub(1) });
        if next < Q4_CODEBOOK.len() {
            let twice_the_middle = (Q4_CODEBOOK[entry] as i32 + Q4_CODEBOOK[next] as i32).abs();
            if magnitude as i32 * quarters > twice_the_middle * 510 {
                if magnitude % 16 != 0 {
                    assert!(side.boundary[cell] == 255, "two boundaries in a cell");
                    side.boundary[cell] = magnitude as u8 - 1;
                }
                entry = next;
            }
        }
        let value = match (indices, up) {
            (true, _) => entry as i8,
            (false, true) => Q4_CODEBOOK[entry],
            (false, false) => -Q4_CODEBOOK[entry],
        };
        if magnitude % 16 == 0 {
            side.low[cell] = value as u8;
        }
        side.high[cell] = value as u8;
        magnitude += 1;
    }
    side
}

/// For each target, the entries up and down.
static TRIALS: [[Side; 2]; TARGETS.len()] = {
    let mut trials = [INDICES; TARGETS.len()];
    let mut i = 0;
    while i < TARGETS.len() {
        trials[i] = [side(true, 4 * TARGETS[i], false), side(false, 4 * TARGETS[i], false)];
        i += 1;
    }
    trials
};

/// Indices of the entries nearest to magnitudes in quarters of a unit, rounded up: then the boundaries, which are multiples
/// of half a unit, are exact.
const INDICES: [Side; 2] = [side(true, 255, true), side(false, 255, true)];

/// A [`Side`] in registers.
struct Steps<S: Simd> {
    boundary: S::B,
    low: S::B,
    high: S::B,
}

impl<S: Simd> Steps<S> {
    #[inline(always)]
    unsafe fn new(side: &Side) -> Self {
        // SAFETY: each table has 16 bytes; the features are the caller's promise.
        unsafe {
            Self {
                boundary: S::repeat(side.boundary.as_ptr()),
                low: S::repeat(side.low.as_ptr()),
                high: S::repeat(side.high.as_ptr()),
            }
        }
    }

    #[inline(always)]
    unsafe fn at(&self, magnitude: S::B) -> S::B {
        // SAFETY: the features are the caller's promise.
        unsafe {
            let cell = S::high_nibbles(magnitude);
            let (low, high) = (S::lookup(self.low, cell), S::lookup(self.high, cell));
            S::select_above(magnitude, S::lookup(self.boundary, cell), high, low)
        }
    }
}

/// How a type's elements become lanes.
trait Elements {
    const BYTES: usize;
    unsafe fn lanes<S: Simd>(p: *const u8) -> S::F;
}

struct Single;
struct Half;
struct Brain;

impl Elements for Single {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn lanes<S: Simd>(p: *const u8) -> S::F {
        // SAFETY: valid for 16 elements, the caller's promise.
        unsafe { S::load(p.cast()) }
    }
}

impl Elements for Half {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn lanes<S: Simd>(p: *const u8) -> S::F {
        // SAFETY: valid for 16 elements, the caller's promise.
        unsafe { S::load_f16(p.cast()) }
    }
}

impl Elements for Brain {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn lanes<S: Simd>(p: *const u8) -> S::F {
        // SAFETY: valid for 16 elements, the caller's promise.
        unsafe { S::load_bf16(p.cast()) }
    }
}

/// The block, column by column.
///
/// Loops fill arrays here, and not `from_fn`: its closures are not inlined into functions with other features.
#[inline(always)]
unsafe fn load_as<S: Simd, E: Elements>(lines: &Lines) -> [S::F; BLOCK] {
    // SAFETY: the caller's pointers cover 16 rows of 32 columns.
    unsafe {
        let mut x = [S::splat(0.0); BLOCK];
        match *lines {
            Lines::Rows(rows) => {
                for part in 0..BLOCK / LANES {
                    let mut square = [S::splat(0.0); LANES];
                    for row in 0..LANES {
                        square[row] = E::lanes::<S>(rows[row].add(part * LANES * E::BYTES));
                    }
                    S::transpose(&mut square);
                    for col in 0..LANES {
                        x[part * LANES + col] = square[col];
                    }
                }
            }
            Lines::Columns { first, stride } => {
                for col in 0..BLOCK {
                    // The same rows of the next block: a line of the cache for each column, which nothing else foresees.
                    S::prefetch(first.wrapping_add((BLOCK + col) * stride));
                    x[col] = E::lanes::<S>(first.add(col * stride));
                }
            }
        }
        x
    }
}

/// The block, column by column, and whether all of it is finite.
#[inline(always)]
unsafe fn load<S: Simd>(args: &EncodeArgs) -> ([S::F; BLOCK], bool) {
    // SAFETY: the caller's pointers cover 16 rows of 32 columns of the type it names.
    unsafe {
        let x = match args.element {
            Element::F32 => load_as::<S, Single>(&args.lines),
            Element::F16 => load_as::<S, Half>(&args.lines),
            Element::BF16 => load_as::<S, Brain>(&args.lines),
        };
        let finite = all_finite::<S>(&x);
        (x, finite)
    }
}

#[inline(always)]
unsafe fn all_finite<S: Simd>(x: &[S::F]) -> bool {
    // SAFETY: the features are the caller's promise.
    unsafe {
        let mut sum = S::splat(0.0);
        for &x in x {
            sum = S::fma(x, S::splat(0.0), sum);
        }
        S::sum(sum) == 0.0
    }
}

/// Largest magnitude of each row.
#[inline(always)]
unsafe fn magnitudes<S: Simd>(x: &[S::F; BLOCK]) -> S::F {
    // SAFETY: the features are the caller's promise.
    unsafe {
        let mut most = S::splat(0.0);
        for &x in x {
            most = S::max(most, S::abs(x));
        }
        most
    }
}

/// `f32`: the values, column by column.
#[inline(always)]
pub(in crate::kernels) unsafe fn f32<S: Simd>(args: &EncodeArgs) -> bool {
    // SAFETY: the caller's pointers cover a block and its values.
    unsafe {
        let (x, finite) = load::<S>(args);
        for (col, &x) in x.iter().enumerate() {
            S::store(args.values.add(col * LANES * 4).cast(), x);
        }
        finite
    }
}

/// `f16`: the values rounded to nearest even, column by column.
#[inline(always)]
pub(in crate::kernels) unsafe fn f16<S: Simd>(args: &EncodeArgs) -> bool {
    // SAFETY: the caller's pointers cover a block and its values.
    unsafe {
        let (mut x, finite) = load::<S>(args);
        for (col, x) in x.iter_mut().enumerate() {
            let out = args.values.add(col * LANES * 2).cast();
            S::store_f16(out, *x);
            *x = S::load_f16(out);
        }
        finite && all_finite::<S>(&x)
    }
}

/// `q8`: the f16 scale with the least squared error among those that put the largest value at 127 to 125, and integers.
#[inline(always)]
pub(in crate::kernels) unsafe fn q8<S: Simd>(args: &EncodeArgs) -> bool {
    // SAFETY: the caller's pointers cover a block, 16 scales and the values.
    unsafe {
        let (x, finite) = load::<S>(args);
        let zero = S::splat(0.0);
        let largest = magnitudes::<S>(&x);
        let (mut best, mut least) = (zero, S::splat(f32::INFINITY));
        let mut scales = [zero; 5];
        for (scale, levels) in scales.iter_mut().zip([127.0, 126.5, 126.0, 125.5, 125.0]) {
            S::store_f16(args.scales, S::div(largest, S::splat(levels)));
            *scale = S::load_f16(args.scales);
            let (inverse, negated) = (invert::<S>(*scale), S::sub(zero, *scale));
            let mut error = zero;
            for &x in &x {
                let off = S::fma(S::round(steps::<S>(x, inverse)), negated, x);
                error = S::fma(off, off, error);
            }
            best = S::select_lt(error, least, *scale, best);
            least = S::min(error, least);
        }
        S::store_f16(args.scales, best);
        let inverse = invert::<S>(best);
        for (group, x) in x.as_chunks::<GROUP>().0.iter().enumerate() {
            let mut q = *x;
            for i in 0..GROUP {
                q[i] = steps::<S>(x[i], inverse);
            }
            S::store_bytes(args.values.add(group * GROUP * LANES), S::pack_i8(q));
        }
        finite && all_finite::<S>(&scales)
    }
}

/// `1 / scale`, and 0 when that is not above 0.
#[inline(always)]
unsafe fn invert<S: Simd>(scale: S::F) -> S::F {
    // SAFETY: the features are the caller's promise.
    unsafe { S::select_lt(S::splat(0.0), scale, S::div(S::splat(1.0), scale), S::splat(0.0)) }
}

/// `x * inverse` within -127 to 127, not rounded.
#[inline(always)]
unsafe fn steps<S: Simd>(x: S::F, inverse: S::F) -> S::F {
    // SAFETY: the features are the caller's promise.
    unsafe { S::max(S::min(S::mul(x, inverse), S::splat(127.0)), S::splat(-127.0)) }
}

/// `q4`: see the notes on the module.
#[inline(always)]
pub(in crate::kernels) unsafe fn q4<S: Simd>(args: &EncodeArgs) -> bool {
    // SAFETY: the caller's pointers cover a block, 16 scales and the values.
    unsafe {
        let (x, finite) = load::<S>(args);
        let zero = S::splat(0.0);
        let largest = magnitudes::<S>(&x);
        // Below this an f16 scale is 0, far above it the inverse overflows.
        let inverse = S::select_lt(S::splat(1e-20), largest, S::div(S::splat(255.0), largest), zero);
        let (magnitudes, signs) = split::<S>(&x, inverse, zero);

        let (mut product, mut squares, mut gain) = (zero, S::splat(1.0), zero);
        for trial in &TRIALS {
            let (up, down) = (Steps::<S>::new(&trial[0]), Steps::<S>::new(&trial[1]));
            let mut sums = [[S::splat_i(0); 2]; 2];
            for group in 0..GROUPS {
                let (magnitude, sign) = (magnitudes[group], signs[group]);
                let (up, down) = (up.at(magnitude), down.at(magnitude));
                let entries = [S::select_negative(sign, down, up), S::select_negative(sign, up, down)];
                for i in 0..2 {
                    sums[i][0] = S::dot_u8(sums[i][0], magnitude, entries[i]);
                    sums[i][1] = S::dot_squares(sums[i][1], entries[i]);
                }
            }
            for i in 0..2 {
                let (xq, qq) = (S::to_f(sums[i][0]), S::to_f(sums[i][1]));
                let xx = S::mul(xq, xq);
                // xx / qq against the best so far, without a division.
                let (ours, best) = (S::mul(xx, squares), S::mul(gain, qq));
                let signed = if i == 0 { xq } else { S::sub(zero, xq) };
                product = S::select_lt(best, ours, signed, product);
                squares = S::select_lt(best, ours, qq, squares);
                gain = S::select_lt(best, ours, xx, gain);
            }
        }
        let scale = S::mul(S::div(product, squares), S::mul(largest, S::splat(1.0 / 255.0)));
        S::store_f16(args.scales, scale);
        let scale = S::load_f16(args.scales);

        let quarters = S::select_lt(zero, S::abs(scale), S::div(S::splat(4.0), scale), zero);
        let (magnitudes, signs) = split::<S>(&x, quarters, S::splat(0.5));
        let (up, down) = (Steps::<S>::new(&INDICES[0]), Steps::<S>::new(&INDICES[1]));
        let mut indices = magnitudes;
        for group in 0..GROUPS {
            let (up, down) = (up.at(magnitudes[group]), down.at(magnitudes[group]));
            indices[group] = S::select_negative(signs[group], down, up);
        }
        for pair in 0..GROUPS / 2 {
            let bytes = S::join_nibbles(indices[2 * pair], indices[2 * pair + 1]);
            S::store_bytes(args.values.add(pair * GROUP * LANES), bytes);
        }
        finite && all_finite::<S>(&[scale])
    }
}

/// `x * factor` as unsigned bytes of magnitude, to which `more` is added before they are rounded, and bytes of the same
/// sign (0 where that rounds to 0).
#[inline(always)]
unsafe fn split<S: Simd>(x: &[S::F; BLOCK], factor: S::F, more: S::F) -> ([S::B; GROUPS], [S::B; GROUPS]) {
    // SAFETY: the features are the caller's promise.
    unsafe {
        let none = S::pack_u8([S::splat(0.0); GROUP]);
        let (mut magnitudes, mut signs) = ([none; GROUPS], [none; GROUPS]);
        for group in 0..GROUPS {
            let (mut signed, mut positive) = ([more; GROUP], [more; GROUP]);
            for i in 0..GROUP {
                signed[i] = S::mul(x[group * GROUP + i], factor);
                positive[i] = S::add(S::abs(signed[i]), more);
            }
            magnitudes[group] = S::pack_u8(positive);
            signs[group] = S::pack_i8(signed);
        }
        (magnitudes, signs)
    }
}
