//! The kernel table: one row of functions per instruction set, chosen once at run time.
//!
//! All `unsafe` arithmetic of the crate lives below this module. A row can be reached only through [`supported`], which
//! asks the processor; so holding a [`Kernels`] proves that its functions may be called. The methods of [`Kernels`]
//! assert every length before they hand out a pointer.
//!
//! To add an instruction set: implement `Simd` in a file of its own, add one `instantiate!` line in `table` and one line in
//! [`supported`]. To add a kernel: write it in `generic`, add a field in `table` and a method here.

#[cfg(target_arch = "aarch64")]
mod aarch64 {
    pub(super) mod neon;
}
mod encode;
mod generic;
mod scalar;
mod simd;
mod table;
#[cfg(target_arch = "x86_64")]
mod x86_64 {
    pub(super) mod avx2;
    pub(super) mod avx512;
}

use crate::error::IsaError;
use crate::pages::Page;
use crate::quant::{BLOCK, Matrix, PANEL_ROWS};
use crate::spec::{Activation, MAX_HEAD_DIM, NormKind, Sparse};
use crate::threads::BlockMut;
use std::ops::Range;

pub use encode::{Element, Layout, Source};
pub(crate) use generic::attention::{CHUNK, KEYS};

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
    /// Keys as in `Q8`, values in 4 bits. (Keys in 4 bits cost ten times what values do: 0.020 to 0.030 nats on the demo model.)
    Q4,
}

impl CacheType {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Q8, Self::Q4];

    /// The name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8 => "q8",
            Self::Q4 => "q4",
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
            Self::Q4 => head_dim.next_multiple_of(4) + padded / 2 + 4,
        }
    }
}

/// Keys and values of one head: page `i % pages.len()` holds positions `i * 64..(i + 1) * 64`, as `generic::attention` and
/// `generic::attention_q8` lay them out, from byte `at` on. Where the cache rolls, positions behind the window may be others.
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
        self.pages[page % self.pages.len()].bytes()[self.at..][..KEYS * self.cache_type.head_bytes(self.head_dim)]
            .as_ptr()
    }

    /// What lies behind a block: another head's, to be asked for ahead.
    fn after(&self, page: usize) -> *const u8 {
        self.block(page).wrapping_add(KEYS * self.cache_type.head_bytes(self.head_dim))
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
    /// The instruction set's own. A call, because inlined into every tile of every type it was a fifth of a stripped library.
    activation: unsafe fn(Activation, *mut f32, [usize; 2], usize),
    vendor: Vendor,
}

/// Whose processor it is: what they read by themselves ahead of a program differs more than their instructions do.
#[derive(Clone, Copy, PartialEq)]
enum Vendor {
    Amd,
    Other,
}

impl Vendor {
    fn of_this_processor() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let id = std::arch::x86_64::__cpuid(0);
            if [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD" {
                return Self::Amd;
            }
        }
        Self::Other
    }
}

/// What becomes of the product of a query and a key, in this order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scoring<'a> {
    /// It is multiplied by this.
    pub scale: f32,
    /// A score `s` becomes `cap * tanh(s / cap)`, if not 0.
    pub cap: f32,
    /// `slope * (key - query)` in positions is added, if not 0.
    pub slope: f32,
    /// `slope * key` in bf16, times `scale`, is added instead.
    pub bf16: bool,
    /// A bias is added, if there are some.
    pub biases: Option<Biases<'a>>,
    /// Keys of other blocks are not seen, if there is one.
    pub sparse: Option<&'a Sparse>,
    /// A score of no key, which takes its share of the probabilities, unless it is minus infinity.
    pub sink: f32,
    /// Positions that a query sees, its own included.
    pub window: usize,
}

/// Biases of a head's scores: `values[buckets[zero + distance]]`, where `distance` is from the key to the query; beyond the ends of
/// `buckets` as at the ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Biases<'a> {
    /// By bucket.
    pub values: &'a [f32],
    /// By distance, from the least on.
    pub buckets: &'a [u16],
    /// Where distance 0 is.
    pub zero: usize,
    /// How far before the position that it is computed as the query really stands; it sees so many keys behind it.
    pub before: usize,
}

impl Scoring<'_> {
    /// Products times `scale`, and nothing else.
    pub fn scaled(scale: f32) -> Self {
        let sink = f32::NEG_INFINITY;
        Self { scale, cap: 0.0, slope: 0.0, bf16: false, biases: None, sparse: None, sink, window: usize::MAX }
    }
}

/// Queries `0..n_queries` of one head at positions `first_position..`, over one key-value head's cache.
struct AttentionArgs<'a> {
    /// `[n_queries][head_dim]`, `q_stride` apart.
    q: *const f32,
    q_stride: usize,
    n_queries: usize,
    first_position: usize,
    scoring: Scoring<'a>,
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

/// An instruction set that this processor runs.
#[derive(Clone, Copy)]
pub struct Kernels {
    name: &'static str,
    row: &'static table::Row,
    vendor: Vendor,
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kernels({})", self.name)
    }
}

/// The instruction sets that this processor runs, best first; `scalar` is always the last.
pub fn supported() -> Vec<Kernels> {
    let mut list = Vec::new();
    let vendor = Vendor::of_this_processor();
    let kernels = |name, row| Kernels { name, row, vendor };
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
            list.push(kernels("avx512", &table::avx512_row::ROW));
        }
        if avx2 && is_x86_feature_detected!("avxvnni") {
            list.push(kernels("avxvnni", &table::avxvnni_row::ROW));
        }
        if avx2 {
            list.push(kernels("avx2", &table::avx2_row::ROW));
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        let neon = std::arch::is_aarch64_feature_detected!("neon");
        let dotprod = neon && std::arch::is_aarch64_feature_detected!("dotprod");
        if dotprod && std::arch::is_aarch64_feature_detected!("i8mm") {
            list.push(kernels("i8mm", &table::i8mm_row::ROW));
        }
        if dotprod {
            list.push(kernels("dotprod", &table::dotprod_row::ROW));
        }
        if neon {
            list.push(kernels("neon", &table::neon_row::ROW));
        }
    }
    list.push(kernels("scalar", &table::scalar_row::ROW));
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
            activation: self.row.activate,
            vendor: self.vendor,
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

    /// Quantizes to 8 bits with one scale, whose f16 bits are returned. `out` is padded to 16; the padding is 0. Of what
    /// comes `next`, as much is asked for.
    ///
    /// # Panics
    /// When the lengths do not fit together.
    pub fn to_q8(self, x: &[f32], next: &[f32], out: &mut [i8]) -> u16 {
        assert_eq!(out.len(), x.len().next_multiple_of(PANEL_ROWS), "as many bytes as floats");
        // SAFETY: `self` proves the features; lengths asserted.
        unsafe { (self.row.to_q8)(x.as_ptr(), x.len(), (next.as_ptr(), next.len().min(x.len())), out.as_mut_ptr()) }
    }

    /// Quantizes to integers in -8..=7 with one scale, whose f16 bits are returned. `out` is padded to 16; the padding is 0.
    ///
    /// # Panics
    /// When the lengths do not fit together.
    pub fn to_q4(self, x: &[f32], out: &mut [i8]) -> u16 {
        assert_eq!(out.len(), x.len().next_multiple_of(PANEL_ROWS), "as many bytes as floats");
        // SAFETY: `self` proves the features; lengths asserted.
        unsafe { (self.row.to_q4)(x.as_ptr(), x.len(), out.as_mut_ptr()) }
    }

    /// Applies an activation function in place.
    ///
    /// # Panics
    /// When the length is not a multiple of 16.
    pub fn activate(self, kind: Activation, x: &mut [f32]) {
        assert!(x.len().is_multiple_of(PANEL_ROWS), "{} values", x.len());
        // SAFETY: `self` proves the features; length asserted.
        unsafe { (self.row.activate)(kind, x.as_mut_ptr(), [1, x.len()], 0) }
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
        unsafe { (self.row.read)(bytes.as_ptr(), bytes.len() / 64, self.vendor) }
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
        scoring: Scoring<'_>,
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
