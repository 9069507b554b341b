//! The kernel table: one row of functions per instruction set, chosen once at run time.
//!
//! All `unsafe` arithmetic of the crate lives below this module. A row can be reached only through [`supported`], which
//! asks the processor; so holding a [`Kernels`] proves that its functions may be called. The methods of [`Kernels`]
//! assert every length before they hand out a pointer.
//!
//! To add an instruction set: implement `Simd` in a file of its own, add one `instantiate!` line and one line in
//! [`supported`]. To add a kernel: write it in `generic`, and add a field and a method here.

#[cfg(target_arch = "aarch64")]
mod aarch64 {
    pub(super) mod neon;
}
mod encode;
mod generic;
mod scalar;
mod simd;
#[cfg(target_arch = "x86_64")]
mod x86_64 {
    pub(super) mod avx2;
    pub(super) mod avx512;
}

use crate::error::IsaError;
use crate::pages::Page;
use crate::quant::{BLOCK, Matrix, PANEL_ROWS, QuantType};
use crate::spec::{Activation, MAX_HEAD_DIM, NormKind};
use crate::threads::BlockMut;
use std::ops::Range;

pub use encode::{Element, Layout, Source};
pub(crate) use generic::attention::KEYS;

/// 32 activations in 8 bits.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct ActBlock {
    /// What an integer stands for.
    pub scale: f32,
    /// -64 and -128 times the sum of the integers: what raising weights by 64 or 128 adds to a dot product, taken away.
    pub lowered: [i32; 2],
    /// Integers in -127..=127.
    pub q: [i8; BLOCK],
}

impl ActBlock {
    /// All zero.
    pub const ZERO: Self = Self { scale: 0.0, lowered: [0; 2], q: [0; BLOCK] };
}

/// The left operand of a matrix product, `[tokens, cols]`.
#[derive(Clone, Copy)]
pub enum Input<'a> {
    /// Floats; rows of `stride` elements.
    Float {
        /// At least `tokens * stride` elements.
        x: &'a [f32],
        /// Elements from one token to the next.
        stride: usize,
    },
    /// 8-bit blocks; rows of `cols.div_ceil(32)` blocks.
    Int(&'a [ActBlock]),
}

/// How keys and values of past tokens are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheType {
    /// 32-bit floats: exact, for models that are.
    F32,
    /// 16-bit floats.
    F16,
    /// 8-bit integers, and an f16 scale for the key and for the value of each head.
    Q8,
}

impl CacheType {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Q8];

    /// The name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8 => "q8",
        }
    }

    /// The type of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name() == name)
    }

    /// Bytes of the key and the value of one head at one position, scales and padding included.
    pub fn head_bytes(self, head_dim: usize) -> usize {
        let padded = head_dim.next_multiple_of(PANEL_ROWS);
        match self {
            Self::F32 => (head_dim + padded) * 4,
            Self::F16 => (head_dim + padded) * 2,
            Self::Q8 => head_dim.next_multiple_of(4) + padded + 4,
        }
    }
}

/// Keys and values of one head: page `i` holds positions `i * 64..(i + 1) * 64`, as `generic::attention` and
/// `generic::attention_q8` lay them out, from byte `at` on.
#[derive(Clone, Copy)]
pub(crate) struct HeadCache<'a> {
    pub(crate) cache_type: CacheType,
    pub(crate) head_dim: usize,
    pub(crate) pages: &'a [Page],
    pub(crate) at: usize,
}

impl HeadCache<'_> {
    /// The positions of one page.
    fn block(&self, page: usize) -> *const u8 {
        self.pages[page].bytes()[self.at..][..KEYS * self.cache_type.head_bytes(self.head_dim)].as_ptr()
    }

    /// What lies behind the first block: another head's, to be asked for ahead.
    fn after(&self) -> *const u8 {
        self.block(0).wrapping_add(KEYS * self.cache_type.head_bytes(self.head_dim))
    }
}

/// What happens to a product before it is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Epilogue {
    /// It replaces the output.
    Store,
    /// It is added to the output.
    Add,
    /// The output is multiplied by it.
    Multiply,
    /// Its activation replaces the output.
    Activate(Activation),
}

/// [`Input`] as the kernels see it.
#[derive(Clone, Copy)]
enum Activations {
    Float { x: *const f32, stride: usize },
    Int { x: *const ActBlock, stride: usize },
}

/// `out[t][row] = epilogue(sum over cols of w[row][col] * x[t][col] + bias[row])` for some panels of a matrix.
struct GemmArgs<'a> {
    /// The first of `n_panels` panels, `panel_bytes` apart.
    panels: *const u8,
    panel_bytes: usize,
    n_panels: usize,
    cols: usize,
    x: Activations,
    n_tokens: usize,
    /// 16 values for each panel.
    bias: Option<&'a [f32]>,
    /// 16 rows of the first panel for token 0; `out_stride` elements to the next token.
    out: *mut f32,
    out_stride: usize,
    epilogue: Epilogue,
}

/// What becomes of the product of a query and a key, in this order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scoring {
    /// It is multiplied by this.
    pub scale: f32,
    /// A score `s` becomes `cap * tanh(s / cap)`, if not 0.
    pub cap: f32,
    /// `slope * (key - query)` in positions is added, if not 0.
    pub slope: f32,
    /// `slope * key` in bf16, times `scale`, is added instead.
    pub bf16: bool,
    /// Positions that a query sees, its own included.
    pub window: usize,
}

impl Scoring {
    /// Products times `scale`, and nothing else.
    pub fn scaled(scale: f32) -> Self {
        Self { scale, cap: 0.0, slope: 0.0, bf16: false, window: usize::MAX }
    }
}

/// Queries `0..n_queries` of one head at positions `first_position..`, over one key-value head's cache.
struct AttentionArgs<'a> {
    /// `[n_queries][head_dim]`, `q_stride` apart.
    q: *const f32,
    q_stride: usize,
    n_queries: usize,
    first_position: usize,
    scoring: Scoring,
    cache: HeadCache<'a>,
    /// `[n_queries][head_dim]`, `out_stride` apart.
    out: *mut f32,
    out_stride: usize,
}

/// Where a block of 16 rows x 32 columns lies.
enum Lines {
    /// The first column of each row; columns follow each other.
    Rows([*const u8; PANEL_ROWS]),
    /// The first column; its rows follow each other, and the next column is `stride` bytes on.
    Columns { first: *const u8, stride: usize },
}

/// A block of weights to be encoded.
struct EncodeArgs {
    element: Element,
    lines: Lines,
    /// Columns at the end that are none: zeros that no scale should care for.
    padding: usize,
    /// 16 scales: written when they are fitted, read when codes are assigned, and nothing to float types.
    scales: *mut f32,
    /// The values of a whole block; nothing when scales are fitted.
    values: *mut u8,
}

type GemmFn = unsafe fn(&GemmArgs);
/// Returns whether all values fit.
type EncodeFn = unsafe fn(&EncodeArgs) -> bool;

/// The functions of one instruction set.
struct Row {
    /// Matrix products in order of [`QuantType::ALL`]: for one token, and for many.
    gemm: [[GemmFn; 2]; 8],
    /// By [`CacheType`].
    attention: [unsafe fn(&AttentionArgs<'_>); 3],
    /// By [`NormKind`].
    norm: [unsafe fn(*const f32, usize, *const f32, *const f32, f32, *mut f32); 2],
    quantize: unsafe fn(*const f32, usize, *mut ActBlock),
    to_f16: unsafe fn(*const f32, usize, *mut u16),
    to_q8: unsafe fn(*const f32, usize, *mut i8) -> u16,
    activate: unsafe fn(Activation, *mut f32, usize),
    exp_sum: unsafe fn(*const f32, usize) -> (f32, f64),
    /// Of `f32` and `f16`.
    encode: [EncodeFn; 2],
    /// Of integer types: scales, and then codes.
    fit: unsafe fn(QuantType, &EncodeArgs) -> bool,
    assign: unsafe fn(QuantType, &EncodeArgs),
    read: unsafe fn(*const u8, usize) -> f32,
    multiply: unsafe fn(usize) -> f32,
    /// Operands that `multiply` multiplies in a round.
    peak_operands: usize,
    /// Matrix products so far, counted by the functions themselves: tests see that a forced row really ran.
    #[cfg(test)]
    products: &'static std::sync::atomic::AtomicUsize,
}

/// Makes the row of an instruction set: each generic kernel inside a function that enables the features.
///
/// The numbers are tile sizes, chosen for the registers there are: panels x tokens of integer and of float products;
/// queries, key tiles and value vectors of attention; operands of the peak measurement.
macro_rules! instantiate {
    ($module:ident, $simd:ty, $(#[$feature:meta])*
     int $ip:literal x $it:literal, float $fp:literal x $ft:literal,
     attention $q:literal $k:literal $v:literal, one $k1:literal $v1:literal,
     in bytes $bq:literal $bk:literal $bv:literal, one $bk1:literal $bv1:literal,
     peak $pw:literal x $px:literal) => {
        #[expect(clippy::undocumented_unsafe_blocks, reason = "features are enabled here, pointers the caller's promise")]
        mod $module {
            use super::generic::{attention, attention_q8, ceilings, encode, gemm_float, gemm_int, rows};
            use super::{ActBlock, AttentionArgs, EncodeArgs, GemmArgs, Row};
            use crate::quant::QuantType;
            use crate::spec::Activation;
            use gemm_int::{Centered, Four, Planes, Table, Three, Two};

            type S = $simd;
            type T = <S as super::simd::Simd>::T;

            #[cfg(test)]
            static PRODUCTS: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

            fn count() {
                #[cfg(test)]
                PRODUCTS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }

            $(#[$feature])*
            unsafe fn f32_one(args: &GemmArgs) {
                count();
                unsafe { gemm_float::gemm::<S, gemm_float::F32, 4, 1>(args) }
            }
            $(#[$feature])*
            unsafe fn f32_many(args: &GemmArgs) {
                count();
                unsafe { gemm_float::gemm::<S, gemm_float::F32, $fp, $ft>(args) }
            }
            $(#[$feature])*
            unsafe fn f16_one(args: &GemmArgs) {
                count();
                unsafe { gemm_float::gemm::<S, gemm_float::F16, 4, 1>(args) }
            }
            $(#[$feature])*
            unsafe fn f16_many(args: &GemmArgs) {
                count();
                unsafe { gemm_float::gemm::<S, gemm_float::F16, $fp, $ft>(args) }
            }
            $(#[$feature])*
            unsafe fn q8_one(args: &GemmArgs) {
                count();
                unsafe { gemm_int::gemv::<S, gemm_int::Q8>(args) }
            }
            $(#[$feature])*
            unsafe fn q8_many(args: &GemmArgs) {
                count();
                unsafe { gemm_int::gemm::<S, gemm_int::Q8, $ip, $it>(args) }
            }
            $(#[$feature])*
            unsafe fn q6_one(args: &GemmArgs) {
                count();
                unsafe { gemm_int::gemv::<S, Planes<Centered<32>, 4, 2>>(args) }
            }
            $(#[$feature])*
            unsafe fn q6_many(args: &GemmArgs) {
                count();
                unsafe { gemm_int::gemm::<S, Planes<Centered<32>, 4, 2>, $ip, $it>(args) }
            }
            $(#[$feature])*
            unsafe fn q5_one(args: &GemmArgs) {
                count();
                unsafe { gemm_int::gemv::<S, Planes<Centered<16>, 4, 1>>(args) }
            }
            $(#[$feature])*
            unsafe fn q5_many(args: &GemmArgs) {
                count();
                unsafe { gemm_int::gemm::<S, Planes<Centered<16>, 4, 1>, $ip, $it>(args) }
            }
            $(#[$feature])*
            unsafe fn q4_one(args: &GemmArgs) {
                count();
                unsafe { gemm_int::gemv::<S, Planes<Table<T, Four>, 4, 0>>(args) }
            }
            $(#[$feature])*
            unsafe fn q4_many(args: &GemmArgs) {
                count();
                unsafe { gemm_int::gemm::<S, Planes<Table<T, Four>, 4, 0>, $ip, $it>(args) }
            }
            $(#[$feature])*
            unsafe fn q3_one(args: &GemmArgs) {
                count();
                unsafe { gemm_int::gemv::<S, Planes<Table<T, Three>, 2, 1>>(args) }
            }
            $(#[$feature])*
            unsafe fn q3_many(args: &GemmArgs) {
                count();
                unsafe { gemm_int::gemm::<S, Planes<Table<T, Three>, 2, 1>, $ip, $it>(args) }
            }
            $(#[$feature])*
            unsafe fn q2_one(args: &GemmArgs) {
                count();
                unsafe { gemm_int::gemv::<S, Planes<Table<T, Two>, 2, 0>>(args) }
            }
            $(#[$feature])*
            unsafe fn q2_many(args: &GemmArgs) {
                count();
                unsafe { gemm_int::gemm::<S, Planes<Table<T, Two>, 2, 0>, $ip, $it>(args) }
            }
            $(#[$feature])*
            unsafe fn attend_f32(args: &AttentionArgs<'_>) {
                unsafe { attention::attention::<S, attention::Floats<f32>, $q, $k, $v, $k1, $v1>(args) }
            }
            $(#[$feature])*
            unsafe fn attend_f16(args: &AttentionArgs<'_>) {
                unsafe { attention::attention::<S, attention::Floats<u16>, $q, $k, $v, $k1, $v1>(args) }
            }
            $(#[$feature])*
            unsafe fn attend_q8(args: &AttentionArgs<'_>) {
                unsafe { attention::attention::<S, attention_q8::Bytes, $bq, $bk, $bv, $bk1, $bv1>(args) }
            }
            $(#[$feature])*
            unsafe fn layer_norm(x: *const f32, n: usize, w: *const f32, b: *const f32, eps: f32, out: *mut f32) {
                unsafe { rows::layer_norm::<S>(x, n, w, b, eps, out) }
            }
            $(#[$feature])*
            unsafe fn rms_norm(x: *const f32, n: usize, w: *const f32, b: *const f32, eps: f32, out: *mut f32) {
                unsafe { rows::rms_norm::<S>(x, n, w, b, eps, out) }
            }
            $(#[$feature])*
            unsafe fn quantize(x: *const f32, n: usize, out: *mut ActBlock) {
                unsafe { rows::quantize::<S>(x, n, out) }
            }
            $(#[$feature])*
            unsafe fn to_f16(x: *const f32, n: usize, out: *mut u16) {
                unsafe { rows::to_f16::<S>(x, n, out) }
            }
            $(#[$feature])*
            unsafe fn to_q8(x: *const f32, n: usize, out: *mut i8) -> u16 {
                unsafe { rows::to_q8::<S>(x, n, out) }
            }
            $(#[$feature])*
            unsafe fn activate(kind: Activation, x: *mut f32, n: usize) {
                unsafe { rows::activate::<S>(kind, x, n) }
            }

            $(#[$feature])*
            unsafe fn exp_sum(x: *const f32, n: usize) -> (f32, f64) {
                unsafe { rows::exp_sum::<S>(x, n) }
            }
            $(#[$feature])*
            unsafe fn encode_f32(args: &EncodeArgs) -> bool {
                unsafe { encode::f32::<S>(args) }
            }
            $(#[$feature])*
            unsafe fn encode_f16(args: &EncodeArgs) -> bool {
                unsafe { encode::f16::<S>(args) }
            }
            $(#[$feature])*
            unsafe fn fit(quant: QuantType, args: &EncodeArgs) -> bool {
                unsafe { encode::fit::<S>(quant, args) }
            }
            $(#[$feature])*
            unsafe fn assign(quant: QuantType, args: &EncodeArgs) {
                unsafe { encode::assign::<S>(quant, args) }
            }
            $(#[$feature])*
            unsafe fn read(p: *const u8, lines: usize) -> f32 {
                unsafe { ceilings::read::<S>(p, lines) }
            }
            $(#[$feature])*
            unsafe fn multiply(rounds: usize) -> f32 {
                unsafe { ceilings::multiply::<S, $pw, $px>(rounds) }
            }

            pub(super) static ROW: Row = Row {
                gemm: [
                    [f32_one, f32_many],
                    [f16_one, f16_many],
                    [q8_one, q8_many],
                    [q6_one, q6_many],
                    [q5_one, q5_many],
                    [q4_one, q4_many],
                    [q3_one, q3_many],
                    [q2_one, q2_many],
                ],
                attention: [attend_f32, attend_f16, attend_q8],
                norm: [layer_norm, rms_norm],
                quantize,
                to_f16,
                to_q8,
                activate,
                exp_sum,
                encode: [encode_f32, encode_f16],
                fit,
                assign,
                read,
                multiply,
                peak_operands: $pw * $px,
                #[cfg(test)]
                products: &PRODUCTS,
            };
        }
    };
}

instantiate!(scalar_row, crate::kernels::scalar::Scalar, int 1 x 1, float 1 x 1, attention 1 1 1, one 1 1, in bytes 1 1 1, one 1 1, peak 1 x 1);
#[cfg(target_arch = "x86_64")]
instantiate!(avx2_row, crate::kernels::x86_64::avx2::Avx2,
    #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
    int 1 x 4, float 1 x 6, attention 4 1 1, one 4 4, in bytes 2 1 1, one 2 2, peak 2 x 2);
#[cfg(target_arch = "x86_64")]
instantiate!(avx512_row, crate::kernels::x86_64::avx512::Avx512,
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
    int 2 x 6, float 2 x 8, attention 6 4 4, one 4 4, in bytes 4 2 2, one 4 4, peak 4 x 5);
#[cfg(target_arch = "aarch64")]
instantiate!(neon_row, crate::kernels::aarch64::neon::Neon<crate::kernels::aarch64::neon::Widening>,
    #[target_feature(enable = "neon")]
    int 1 x 3, float 1 x 6, attention 6 1 1, one 4 4, in bytes 3 1 1, one 2 2, peak 2 x 2);
#[cfg(target_arch = "aarch64")]
instantiate!(dotprod_row, crate::kernels::aarch64::neon::Neon<crate::kernels::aarch64::neon::Sdot>,
    #[target_feature(enable = "neon,dotprod")]
    int 1 x 4, float 1 x 6, attention 6 1 1, one 4 4, in bytes 3 1 1, one 2 2, peak 2 x 2);

/// An instruction set that this processor runs.
#[derive(Clone, Copy)]
pub struct Kernels {
    name: &'static str,
    row: &'static Row,
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kernels({})", self.name)
    }
}

/// The instruction sets that this processor runs, best first; `scalar` is always the last.
pub fn supported() -> Vec<Kernels> {
    let mut list = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        let avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt")
            && is_x86_feature_detected!("popcnt");
        let avx512 = avx2
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni");
        if avx512 {
            list.push(Kernels { name: "avx512", row: &avx512_row::ROW });
        }
        if avx2 {
            list.push(Kernels { name: "avx2", row: &avx2_row::ROW });
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        let neon = std::arch::is_aarch64_feature_detected!("neon");
        if neon && std::arch::is_aarch64_feature_detected!("dotprod") {
            list.push(Kernels { name: "dotprod", row: &dotprod_row::ROW });
        }
        if neon {
            list.push(Kernels { name: "neon", row: &neon_row::ROW });
        }
    }
    list.push(Kernels { name: "scalar", row: &scalar_row::ROW });
    list
}

/// The best supported instruction set, or the one that `TIDBIT_ISA` names.
///
/// # Errors
/// When `TIDBIT_ISA` names none of them.
pub fn active() -> Result<Kernels, IsaError> {
    choose(std::env::var_os("TIDBIT_ISA").as_deref())
}

fn choose(asked: Option<&std::ffi::OsStr>) -> Result<Kernels, IsaError> {
    let list = supported();
    let found = match asked {
        None => list.first(),
        Some(name) => list.iter().find(|k| name == k.name),
    };
    found.copied().ok_or_else(|| IsaError {
        asked: asked.unwrap_or_default().to_string_lossy().into_owned(),
        supported: list.iter().map(|k| k.name).collect::<Vec<_>>().join(", "),
    })
}

impl Kernels {
    /// The name that `TIDBIT_ISA` takes.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// Matrix products that this row's own functions have run so far, in this process.
    #[cfg(test)]
    pub fn products_so_far(self) -> usize {
        self.row.products.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// `out[t][row] = epilogue(w[row] . x[t] + bias[row])` for the rows of some panels of `w`.
    ///
    /// `out` is `[tokens, 16 * panels.len()]`; rows beyond the matrix are written too. `bias` is the whole matrix's,
    /// padded to 16.
    ///
    /// # Panics
    /// When lengths do not fit together, or the input's kind is not the one `w`'s type takes.
    pub fn gemm(
        self,
        w: &Matrix,
        panels: Range<usize>,
        x: Input<'_>,
        bias: Option<&[f32]>,
        epilogue: Epilogue,
        out: &mut BlockMut<'_, f32>,
    ) {
        let n_tokens = out.n_rows();
        assert!(panels.start <= panels.end && panels.end <= w.n_panels(), "panels {panels:?} of {}", w.n_panels());
        assert_eq!(out.n_cols(), panels.len() * PANEL_ROWS, "columns of the output");
        if n_tokens == 0 || panels.is_empty() {
            return;
        }
        let bias = bias.map(|b| {
            assert_eq!(b.len(), w.n_panels() * PANEL_ROWS, "length of the bias");
            &b[panels.start * PANEL_ROWS..]
        });
        let x = match (x, w.quant().is_integer()) {
            (Input::Float { x, stride }, false) => {
                assert!(stride >= w.cols() && x.len() >= (n_tokens - 1) * stride + w.cols(), "length of the input");
                Activations::Float { x: x.as_ptr(), stride }
            }
            (Input::Int(x), true) => {
                let stride = w.cols().div_ceil(BLOCK);
                assert!(x.len() >= n_tokens * stride, "length of the input");
                Activations::Int { x: x.as_ptr(), stride }
            }
            _ => panic!("{} weights take another kind of input", w.quant()),
        };
        let args = GemmArgs {
            panels: w.bytes()[panels.start * w.panel_bytes()..].as_ptr(),
            panel_bytes: w.panel_bytes(),
            n_panels: panels.len(),
            cols: w.cols(),
            x,
            n_tokens,
            bias,
            out_stride: out.stride(),
            out: out.as_mut_ptr(),
            epilogue,
        };
        let functions = &self.row.gemm[w.quant() as usize];
        // SAFETY: `self` proves the features. `Matrix` has `panel_bytes` for each of its panels, laid out for its type
        // and columns; the other lengths were asserted above.
        unsafe { functions[usize::from(n_tokens > 1)](&args) }
    }

    /// Normalizes `x` into `out`: gain and bias as long as `x`.
    ///
    /// # Panics
    /// When the lengths do not fit together.
    pub fn norm(self, kind: NormKind, x: &[f32], (gain, bias): (&[f32], &[f32]), eps: f32, out: &mut [f32]) {
        let n = x.len();
        assert!(gain.len() >= n && bias.len() >= n && out.len() >= n, "a row of {n} values");
        let norm = self.row.norm[kind as usize];
        // SAFETY: `self` proves the features; lengths asserted.
        unsafe { norm(x.as_ptr(), n, gain.as_ptr(), bias.as_ptr(), eps, out.as_mut_ptr()) }
    }

    /// The same in place.
    ///
    /// # Panics
    /// When the lengths do not fit together.
    pub fn norm_in_place(self, kind: NormKind, x: &mut [f32], (gain, bias): (&[f32], &[f32]), eps: f32) {
        let n = x.len();
        assert!(gain.len() >= n && bias.len() >= n, "a row of {n} values");
        let (norm, x) = (self.row.norm[kind as usize], x.as_mut_ptr());
        // SAFETY: `self` proves the features; lengths asserted; a norm reads a vector before it writes it.
        unsafe { norm(x, n, gain.as_ptr(), bias.as_ptr(), eps, x) }
    }

    /// Quantizes one row to 8 bits, the last block padded with zeros.
    ///
    /// # Panics
    /// When `out` has not `x.len().div_ceil(32)` blocks.
    pub fn quantize(self, x: &[f32], out: &mut [ActBlock]) {
        assert_eq!(out.len(), x.len().div_ceil(BLOCK), "blocks of {} values", x.len());
        // SAFETY: `self` proves the features; lengths asserted.
        unsafe { (self.row.quantize)(x.as_ptr(), x.len(), out.as_mut_ptr()) }
    }

    /// Converts to f16 bits, clamping to ±65504.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn to_f16(self, x: &[f32], out: &mut [u16]) {
        assert_eq!(x.len(), out.len(), "as many halves as floats");
        // SAFETY: `self` proves the features; lengths asserted.
        unsafe { (self.row.to_f16)(x.as_ptr(), x.len(), out.as_mut_ptr()) }
    }

    /// Quantizes to 8 bits with one scale, whose f16 bits are returned. `out` is padded to 16; the padding is 0.
    ///
    /// # Panics
    /// When the lengths do not fit together.
    pub fn to_q8(self, x: &[f32], out: &mut [i8]) -> u16 {
        assert_eq!(out.len(), x.len().next_multiple_of(PANEL_ROWS), "as many bytes as floats");
        // SAFETY: `self` proves the features; lengths asserted.
        unsafe { (self.row.to_q8)(x.as_ptr(), x.len(), out.as_mut_ptr()) }
    }

    /// Applies an activation function in place.
    ///
    /// # Panics
    /// When the length is not a multiple of 16.
    pub fn activate(self, kind: Activation, x: &mut [f32]) {
        assert!(x.len().is_multiple_of(PANEL_ROWS), "{} values", x.len());
        // SAFETY: `self` proves the features; length asserted.
        unsafe { (self.row.activate)(kind, x.as_mut_ptr(), x.len()) }
    }

    /// `log(sum of e^x)`; not finite when a value is NaN or infinite, or there is none.
    pub fn log_sum_exp(self, x: &[f32]) -> f64 {
        // SAFETY: `self` proves the features.
        let (largest, sum) = unsafe { (self.row.exp_sum)(x.as_ptr(), x.len()) };
        // `libm`, for the same bits on every system.
        libm::log(sum) + f64::from(largest)
    }

    /// Reads every whole line of 64 bytes of `bytes` once, as fast as this instruction set can; the result depends on all.
    pub fn read(self, bytes: &[u8]) -> f32 {
        // SAFETY: `self` proves the features; only whole lines inside `bytes` are read.
        unsafe { (self.row.read)(bytes.as_ptr(), bytes.len() / 64) }
    }

    /// Runs at least `n` 8-bit multiply-adds as fast as this instruction set can, and returns how many it ran.
    pub fn multiply(self, n: u64) -> u64 {
        let rounds = (n / (64 * self.row.peak_operands as u64)).max(1);
        // SAFETY: `self` proves the features.
        std::hint::black_box(unsafe { (self.row.multiply)(rounds as usize) });
        rounds * 64 * self.row.peak_operands as u64
    }

    /// Causal attention of one head: `out[i] = sum over j <= position of softmax(scale * q[i] . k[j]) v[j]`.
    ///
    /// `q` holds the queries of tokens at `first_position..`, one for each row of `out`, `q_stride` apart.
    ///
    /// # Panics
    /// When lengths do not fit together.
    pub(crate) fn attention(
        self,
        (q, q_stride): (&[f32], usize),
        first_position: usize,
        scoring: Scoring,
        cache: HeadCache<'_>,
        out: &mut BlockMut<'_, f32>,
    ) {
        let (n_queries, head_dim) = (out.n_rows(), out.n_cols());
        if n_queries == 0 {
            return;
        }
        assert!(head_dim == cache.head_dim && head_dim <= MAX_HEAD_DIM, "a head of {head_dim} of {}", cache.head_dim);
        assert!(q.len() >= (n_queries - 1) * q_stride + head_dim, "length of the queries");
        let args = AttentionArgs {
            q: q.as_ptr(),
            q_stride,
            n_queries,
            first_position,
            scoring,
            cache,
            out_stride: out.stride(),
            out: out.as_mut_ptr(),
        };
        // SAFETY: `self` proves the features; lengths asserted, those of the cache by `HeadCache::block`.
        unsafe { self.row.attention[cache.cache_type as usize](&args) }
    }
}

#[cfg(test)]
mod tests;
