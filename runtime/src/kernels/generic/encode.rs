//! Encoding of weights: one block of 16 rows x 32 columns at a time, rows as lanes.
//!
//! Every function loads its block, writes it as the panel of its type has it (see `quant`), and says whether all values
//! fit: if not, what it wrote means nothing.
//!
//! Integer types take two steps. A block's scale is fitted first; when all of a row's are known they are rounded to what the
//! file can hold, and codes are assigned for these.
//!
//! # The scale of a block of integers
//!
//! Some steps that the largest value may be away from zero are tried. For a trial the integers are fixed, and the scale that is
//! best *for these* follows in closed form, `sum(x q) / sum(q q)`; it lowers the squared error by `sum(x q)^2 / sum(q q)`, which is
//! compared. The scale's sign puts the largest value on the negative side, which has one integer more.
//!
//! # The scale of a block of indices
//!
//! The same, with both signs: the tables are not symmetric, and one sign alone costs `q4` 6 % RMSE.
//!
//! All trials look at one rounding of the block to a sign and 8 bits of magnitude, 255 being the row's largest value. A
//! trial is then the same for every block: a small table from magnitude to entry. Sixteen cells of 16 magnitudes are
//! narrower than the distance of two boundaries between entries, so one comparison inside the cell finishes it. Both
//! signs of a trial take the same two look-ups, for values of the scale's sign and of the other. Sums are exact integers.
//!
//! Relative RMSE of `q4`, in % (gpt2-mini, Gaussian, Student's t with 4 degrees of freedom; f16 scales): 12 trials on 255 levels
//! 7.400, 7.285, 8.640; the same on 127 levels 7.408, 7.293, 8.650; 8 trials 7.408, 7.294, 8.644; 16 trials 7.398, 7.284,
//! 8.639; 8 trials on the values themselves, as it was before, 7.405, 7.291, 8.640. A second round of scale and indices
//! from the winner gains 0.002. Weighting errors by x² raised the plain error by 7 %.

use crate::kernels::simd::{LANES, Simd};
use crate::kernels::{Element, EncodeArgs, Lines};
use crate::quant::{BLOCK, Grid, Q2_CODEBOOK, Q3_CODEBOOK, Q4_CODEBOOK, QuantType};
use std::mem::MaybeUninit;

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
const fn side(table: &[i8], up: bool, quarters: i32, indices: bool) -> Side {
    let mut side = Side { boundary: [255; 16], low: [0; 16], high: [0; 16] };
    let mut entry = nearest_to_zero(table);
    let mut magnitude = 0;
    while magnitude < 256 {
        let (cell, next) = (magnitude / 16, if up { entry + 1 } else { entry.wrapping_sub(1) });
        if next < table.len() {
            let middle = table[entry] as i32 + table[next] as i32;
            let twice_the_middle = if up { middle } else { -middle };
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
            (false, true) => table[entry],
            (false, false) => -table[entry],
        };
        if magnitude % 16 == 0 {
            side.low[cell] = value as u8;
        }
        side.high[cell] = value as u8;
        magnitude += 1;
    }
    side
}

const fn nearest_to_zero(table: &[i8]) -> usize {
    let (mut nearest, mut i) = (0, 1);
    while i < table.len() {
        if table[i].unsigned_abs() < table[nearest].unsigned_abs() {
            nearest = i;
        }
        i += 1;
    }
    nearest
}

/// What is looked up to encode for a table.
struct Lookups {
    /// For each target, the entries up and down.
    trials: [[Side; 2]; TARGETS.len()],
    /// Indices of the entries nearest to magnitudes in quarters of a unit, rounded up: then the boundaries, which are
    /// multiples of half a unit, are exact.
    indices: [Side; 2],
    /// The square of the entry that stands for zero.
    zero_squared: i32,
}

const fn lookups(table: &[i8]) -> Lookups {
    let indices = [side(table, true, 255, true), side(table, false, 255, true)];
    let mut trials = [indices; TARGETS.len()];
    let mut i = 0;
    while i < TARGETS.len() {
        trials[i] = [side(table, true, 4 * TARGETS[i], false), side(table, false, 4 * TARGETS[i], false)];
        i += 1;
    }
    let zero = table[nearest_to_zero(table)] as i32;
    Lookups { trials, indices, zero_squared: zero * zero }
}

static Q4: Lookups = lookups(&Q4_CODEBOOK);
static Q3: Lookups = lookups(&Q3_CODEBOOK);
static Q2: Lookups = lookups(&Q2_CODEBOOK);

/// How codes of a type are found.
enum Search {
    /// They are integers: the lowest, the highest, and how many steps the largest value may be away from zero.
    Integers(f32, f32, &'static [f32]),
    /// They are looked up.
    Table(&'static Lookups),
}

impl Search {
    #[inline(always)]
    fn of(quant: QuantType) -> Self {
        match quant {
            QuantType::F32 | QuantType::F16 => unreachable!("{quant} has no scales"),
            QuantType::Q8 => Self::Integers(-127.0, 127.0, &[127.0, 126.5, 126.0, 125.5, 125.0]),
            QuantType::Q6 => Self::Integers(-32.0, 31.0, &[33.0, 32.5, 32.0, 31.5, 31.0, 30.0]),
            QuantType::Q5 => Self::Integers(-16.0, 15.0, &[17.0, 16.5, 16.0, 15.5, 15.0, 14.5, 14.0]),
            QuantType::Q4 => Self::Table(&Q4),
            QuantType::Q3 => Self::Table(&Q3),
            QuantType::Q2 => Self::Table(&Q2),
        }
    }
}

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
            let cell = S::mask(S::shift_right(magnitude, 4), 15);
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
    // SAFETY: the caller's pointers cover 16 rows of 32 columns; both arms fill all of `x`, which to clear first took 4 % of a
    // conversion.
    unsafe {
        let mut block = MaybeUninit::<[S::F; BLOCK]>::uninit();
        let x = block.as_mut_ptr().cast::<S::F>();
        match *lines {
            Lines::Rows(rows) => {
                for part in 0..BLOCK / LANES {
                    let mut square = [S::splat(0.0); LANES];
                    for row in 0..LANES {
                        square[row] = E::lanes::<S>(rows[row].add(part * LANES * E::BYTES));
                    }
                    S::transpose(&mut square);
                    for col in 0..LANES {
                        x.add(part * LANES + col).write(square[col]);
                    }
                }
            }
            Lines::Columns { first, stride } => {
                for col in 0..BLOCK {
                    // The same rows of the next block: a line of the cache for each column, which nothing else foresees.
                    S::prefetch(first.wrapping_add((BLOCK + col) * stride));
                    x.add(col).write(E::lanes::<S>(first.add(col * stride)));
                }
            }
        }
        block.assume_init()
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

/// Below this a row is taken for zeros: far below what any model has, and no quotient overflows.
const LEAST: f32 = 1e-30;

/// The best scales of a block.
#[inline(always)]
pub(in crate::kernels) unsafe fn fit<S: Simd>(quant: QuantType, args: &EncodeArgs) -> bool {
    // SAFETY: the caller's pointers cover a block and 16 scales.
    unsafe {
        let (x, finite) = load::<S>(args);
        let largest = magnitudes::<S>(&x);
        let scales = match Search::of(quant) {
            Search::Integers(lowest, highest, trials) => fit_integers::<S>(&x, largest, [lowest, highest], trials),
            Search::Table(lookups) => fit_table::<S>((&x, args.padding), largest, lookups),
        };
        S::store(args.scales, scales);
        finite
    }
}

#[inline(always)]
unsafe fn fit_integers<S: Simd>(x: &[S::F; BLOCK], largest: S::F, bounds: [f32; 2], trials: &[f32]) -> S::F {
    // SAFETY: the features are the caller's promise.
    unsafe {
        let zero = S::splat(0.0);
        let mut top = zero;
        for &x in x {
            top = S::max(top, x);
        }
        // All in -1..=1, the largest value -1 where there is one.
        let sign = S::select_lt(top, largest, S::splat(1.0), S::splat(-1.0));
        let unit = S::mul(sign, invert::<S>(largest, LEAST));
        let (mut scale, mut gain) = (zero, zero);
        for &steps in trials {
            let factor = S::mul(unit, S::splat(steps));
            let (mut xq, mut qq) = (zero, zero);
            for &x in x {
                let q = S::round(clamp::<S>(S::mul(x, factor), bounds));
                xq = S::fma(S::mul(x, unit), q, xq);
                qq = S::fma(q, q, qq);
            }
            let found = S::div(xq, S::max(qq, S::splat(1.0)));
            let gained = S::mul(found, xq);
            scale = S::select_lt(gain, gained, found, scale);
            gain = S::select_lt(gain, gained, gained, gain);
        }
        S::mul(scale, S::mul(sign, largest))
    }
}

#[inline(always)]
unsafe fn clamp<S: Simd>(x: S::F, [lowest, highest]: [f32; 2]) -> S::F {
    // SAFETY: the features are the caller's promise.
    unsafe { S::max(S::min(x, S::splat(highest)), S::splat(lowest)) }
}

/// `1 / x` where `x` is above `least`, and 0 elsewhere.
#[inline(always)]
unsafe fn invert<S: Simd>(x: S::F, least: f32) -> S::F {
    // SAFETY: the features are the caller's promise.
    unsafe { S::select_lt(S::splat(least), x, S::div(S::splat(1.0), x), S::splat(0.0)) }
}

#[inline(always)]
unsafe fn fit_table<S: Simd>((x, padding): (&[S::F; BLOCK], usize), largest: S::F, lookups: &Lookups) -> S::F {
    // SAFETY: the features are the caller's promise.
    unsafe {
        let zero = S::splat(0.0);
        let inverse = S::mul(S::splat(255.0), invert::<S>(largest, LEAST));
        let (magnitudes, signs) = split::<S>(x, inverse, zero);
        let (mut product, mut squares, mut gain) = (zero, S::splat(1.0), zero);
        // Tables have no zero, so padding would count.
        let padded = S::splat_i(-(padding as i32 * lookups.zero_squared));
        for trial in &lookups.trials {
            let (up, down) = (Steps::<S>::new(&trial[0]), Steps::<S>::new(&trial[1]));
            let mut sums = [[S::splat_i(0), padded]; 2];
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
        S::mul(S::div(product, squares), S::mul(largest, S::splat(1.0 / 255.0)))
    }
}

/// The codes of a block whose scales are given.
#[inline(always)]
pub(in crate::kernels) unsafe fn assign<S: Simd>(quant: QuantType, args: &EncodeArgs) {
    // SAFETY: the caller's pointers cover a block, 16 scales and the values.
    unsafe {
        let (x, _) = load::<S>(args);
        let scales = S::load(args.scales);
        // Of either sign; 0 for none.
        let inverse = S::select_lt(S::splat(0.0), S::abs(scales), S::div(S::splat(1.0), scales), S::splat(0.0));
        let codes = match Search::of(quant) {
            Search::Integers(lowest, highest, _) => {
                let mut codes = [S::pack_i8([inverse; GROUP]); GROUPS];
                for (codes, x) in codes.iter_mut().zip(x.as_chunks::<GROUP>().0) {
                    let mut q = *x;
                    for q in &mut q {
                        *q = clamp::<S>(S::mul(*q, inverse), [lowest, highest]);
                        // Codes count from the lowest, but for whole bytes.
                        if lowest > -64.0 {
                            *q = S::sub(S::round(*q), S::splat(lowest));
                        }
                    }
                    *codes = S::pack_i8(q);
                }
                codes
            }
            Search::Table(lookups) => {
                let (magnitudes, signs) = split::<S>(&x, S::mul(inverse, S::splat(4.0)), S::splat(0.5));
                let (up, down) = (Steps::<S>::new(&lookups.indices[0]), Steps::<S>::new(&lookups.indices[1]));
                let mut codes = magnitudes;
                for group in 0..GROUPS {
                    let (up, down) = (up.at(magnitudes[group]), down.at(magnitudes[group]));
                    codes[group] = S::select_negative(signs[group], down, up);
                }
                codes
            }
        };
        let grid = quant.grid().expect("it has scales");
        store_planes::<S>(grid, codes, args.values);
    }
}

/// Splits codes into the planes of a block.
#[inline(always)]
unsafe fn store_planes<S: Simd>(grid: &Grid, mut codes: [S::B; GROUPS], mut out: *mut u8) {
    // SAFETY: the caller's pointer covers the planes.
    unsafe {
        for &width in grid.planes {
            let together = 8 / width as usize;
            for line in codes.chunks(together) {
                let mut bytes = S::mask(line[0], 0);
                for (i, &codes) in line.iter().enumerate() {
                    let shift = i as u32 * width;
                    let mask = ((1u32 << width) - 1) << shift;
                    bytes = S::or(bytes, S::mask(S::shift_left(codes, shift), mask as u8));
                }
                S::store_bytes(out, bytes);
                out = out.add(GROUP * LANES);
            }
            for codes in &mut codes {
                // Nothing is left of whole bytes, and a shift by 8 is none.
                *codes = S::mask(S::shift_right(*codes, width % 8), (0xffu32 >> width) as u8);
            }
        }
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
