//! The rows of the kernel table: every generic kernel, instantiated for every instruction set.

use super::{ActBlock, AttentionArgs, EncodeArgs, GemmArgs, Vendor};
use crate::quant::QuantType;
use crate::spec::Activation;

type GemmFn = unsafe fn(&GemmArgs);
/// Returns whether all values fit.
type EncodeFn = unsafe fn(&EncodeArgs) -> bool;

/// The functions of one instruction set.
pub(super) struct Row {
    /// Matrix products in order of [`QuantType::ALL`]: for one token, and for many.
    pub(super) gemm: [[GemmFn; 2]; 8],
    /// By [`CacheType`].
    pub(super) attention: [unsafe fn(&AttentionArgs<'_>); 4],
    /// By [`NormKind`].
    pub(super) norm: [unsafe fn(*const f32, usize, *const f32, *const f32, f32, *mut f32); 3],
    pub(super) quantize: unsafe fn(*const f32, usize, *mut ActBlock),
    pub(super) to_f16: unsafe fn(*const f32, usize, *mut u16),
    pub(super) to_q8: unsafe fn(*const f32, usize, (*const f32, usize), *mut i8) -> u16,
    pub(super) to_q4: unsafe fn(*const f32, usize, *mut i8) -> u16,
    pub(super) activate: unsafe fn(Activation, *mut f32, [usize; 2], usize),
    pub(super) exp_sum: unsafe fn(*const f32, usize) -> (f32, f64),
    pub(super) read: unsafe fn(*const u8, usize, Vendor) -> f32,
    pub(super) multiply: unsafe fn(usize) -> f32,
    /// Operands that `multiply` multiplies in a round.
    pub(super) peak_operands: usize,
    /// Matrix products so far, counted by the functions themselves: tests see that a forced row really ran.
    #[cfg(test)]
    pub(super) products: &'static std::sync::atomic::AtomicUsize,
}

/// The functions of one instruction set that encode weights. Not in the [`Row`], so that programs that never encode, such as
/// those with the C library, are linked without them.
pub(super) struct Encoders {
    /// Of `f32` and `f16`.
    pub(super) encode: [EncodeFn; 2],
    /// Of integer types: scales, and then codes.
    pub(super) fit: unsafe fn(QuantType, &EncodeArgs) -> bool,
    pub(super) assign: unsafe fn(QuantType, &EncodeArgs),
}

impl Encoders {
    /// Those of the instruction set of that name, which [`supported`](super::supported) has listed.
    pub(super) fn of(name: &str) -> &'static Self {
        match name {
            #[cfg(target_arch = "x86_64")]
            "avx512" => &avx512_row::ENCODERS,
            #[cfg(target_arch = "x86_64")]
            "avxvnni" => &avxvnni_row::ENCODERS,
            #[cfg(target_arch = "x86_64")]
            "avx2" => &avx2_row::ENCODERS,
            #[cfg(target_arch = "aarch64")]
            "i8mm" => &i8mm_row::ENCODERS,
            #[cfg(target_arch = "aarch64")]
            "dotprod" => &dotprod_row::ENCODERS,
            #[cfg(target_arch = "aarch64")]
            "neon" => &neon_row::ENCODERS,
            _ => &scalar_row::ENCODERS,
        }
    }
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
        pub(super) mod $module {
            use crate::kernels::generic::{attention, attention_q8, ceilings, encode, gemm_float, gemm_int, int_weights, rows};
            use super::{Encoders, Row};
            use crate::kernels::{ActBlock, AttentionArgs, EncodeArgs, GemmArgs, Vendor};
            use crate::quant::QuantType;
            use crate::spec::Activation;
            use attention_q8::{Bytes, Integral, Nibbles};
            use gemm_int::Chunk;
            use int_weights::{Centered, Four, OfBytes, OfCodes, Pairs, Planes, Q8, Table, Three, Two};

            type S = $simd;
            type T = <S as crate::kernels::simd::Simd>::T;

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
                unsafe { gemm_int::gemv::<S, Q8>(args) }
            }
            $(#[$feature])*
            unsafe fn byte_tiles(chunk: &Chunk<'_>, n_panels: usize, n_tokens: usize) {
                unsafe { gemm_int::tiles::<S, OfBytes, $ip, $it>(chunk, n_panels, n_tokens) }
            }
            $(#[$feature])*
            unsafe fn code_tiles(chunk: &Chunk<'_>, n_panels: usize, n_tokens: usize) {
                unsafe { gemm_int::tiles::<S, OfCodes, $ip, $it>(chunk, n_panels, n_tokens) }
            }
            $(#[$feature])*
            unsafe fn q8_many(args: &GemmArgs) {
                count();
                unsafe { gemm_int::gemm::<S, Q8, $ip>(args, byte_tiles) }
            }
            $(#[$feature])*
            unsafe fn q6_one(args: &GemmArgs) {
                count();
                unsafe { gemm_int::gemv::<S, Planes<Centered<32>, 4, 2>>(args) }
            }
            $(#[$feature])*
            unsafe fn q6_many(args: &GemmArgs) {
                count();
                unsafe { gemm_int::gemm::<S, Planes<Centered<32>, 4, 2>, $ip>(args, code_tiles) }
            }
            $(#[$feature])*
            unsafe fn q5_one(args: &GemmArgs) {
                count();
                unsafe { gemm_int::gemv::<S, Planes<Centered<16>, 4, 1>>(args) }
            }
            $(#[$feature])*
            unsafe fn q5_many(args: &GemmArgs) {
                count();
                unsafe { gemm_int::gemm::<S, Planes<Centered<16>, 4, 1>, $ip>(args, code_tiles) }
            }
            $(#[$feature])*
            unsafe fn q4_one(args: &GemmArgs) {
                count();
                unsafe { gemm_int::gemv::<S, Planes<Table<T, Four>, 4, 0>>(args) }
            }
            $(#[$feature])*
            unsafe fn q4_many(args: &GemmArgs) {
                count();
                unsafe { gemm_int::gemm::<S, Planes<Table<T, Four>, 4, 0>, $ip>(args, code_tiles) }
            }
            $(#[$feature])*
            unsafe fn q3_one(args: &GemmArgs) {
                count();
                unsafe { gemm_int::gemv::<S, Pairs<T, Three, 1>>(args) }
            }
            $(#[$feature])*
            unsafe fn q3_many(args: &GemmArgs) {
                count();
                unsafe { gemm_int::gemm::<S, Pairs<T, Three, 1>, $ip>(args, code_tiles) }
            }
            $(#[$feature])*
            unsafe fn q2_one(args: &GemmArgs) {
                count();
                unsafe { gemm_int::gemv::<S, Pairs<T, Two, 0>>(args) }
            }
            $(#[$feature])*
            unsafe fn q2_many(args: &GemmArgs) {
                count();
                unsafe { gemm_int::gemm::<S, Pairs<T, Two, 0>, $ip>(args, code_tiles) }
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
                unsafe { attention::attention::<S, Integral<Bytes>, $bq, $bk, $bv, $bk1, $bv1>(args) }
            }
            $(#[$feature])*
            unsafe fn attend_q4(args: &AttentionArgs<'_>) {
                unsafe { attention::attention::<S, Integral<Nibbles>, $bq, $bk, $bv, $bk1, $bv1>(args) }
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
            unsafe fn scale_norm(x: *const f32, n: usize, w: *const f32, b: *const f32, eps: f32, out: *mut f32) {
                unsafe { rows::scale_norm::<S>(x, n, w, b, eps, out) }
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
            unsafe fn to_q8(x: *const f32, n: usize, next: (*const f32, usize), out: *mut i8) -> u16 {
                unsafe { rows::to_q8::<S>(x, n, next, out) }
            }
            $(#[$feature])*
            unsafe fn to_q4(x: *const f32, n: usize, out: *mut i8) -> u16 {
                unsafe { rows::to_q4::<S>(x, n, out) }
            }
            $(#[$feature])*
            unsafe fn activate(kind: Activation, x: *mut f32, shape: [usize; 2], stride: usize) {
                unsafe { rows::activate::<S>(kind, x, shape, stride) }
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
            unsafe fn read(p: *const u8, lines: usize, vendor: Vendor) -> f32 {
                unsafe { ceilings::read::<S>(p, lines, vendor) }
            }
            $(#[$feature])*
            unsafe fn multiply(rounds: usize) -> f32 {
                unsafe { ceilings::multiply::<S, $pw, $px>(rounds) }
            }

            pub(in crate::kernels) static ROW: Row = Row {
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
                attention: [attend_f32, attend_f16, attend_q8, attend_q4],
                norm: [layer_norm, rms_norm, scale_norm],
                quantize,
                to_f16,
                to_q8,
                to_q4,
                activate,
                exp_sum,
                read,
                multiply,
                peak_operands: $pw * $px,
                #[cfg(test)]
                products: &PRODUCTS,
            };

            pub(in crate::kernels) static ENCODERS: Encoders = Encoders { encode: [encode_f32, encode_f16], fit, assign };
        }
    };
}

instantiate!(scalar_row, crate::kernels::scalar::Scalar, int 1 x 1, float 1 x 1, attention 1 1 1, one 1 1, in bytes 1 1 1, one 1 1, peak 1 x 1);
#[cfg(target_arch = "x86_64")]
instantiate!(avx2_row, crate::kernels::x86_64::avx2::Avx2<crate::kernels::x86_64::avx2::Madd>,
    #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
    int 1 x 4, float 1 x 6, attention 4 1 1, one 4 4, in bytes 2 1 1, one 2 2, peak 2 x 2);
#[cfg(target_arch = "x86_64")]
instantiate!(avxvnni_row, crate::kernels::x86_64::avx2::Avx2<crate::kernels::x86_64::avx2::Vnni>,
    #[target_feature(enable = "avxvnni,avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
    int 1 x 4, float 1 x 6, attention 4 1 1, one 4 4, in bytes 2 1 1, one 2 2, peak 2 x 4);
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
#[cfg(target_arch = "aarch64")]
instantiate!(i8mm_row, crate::kernels::aarch64::neon::Neon<crate::kernels::aarch64::neon::Smmla>,
    #[target_feature(enable = "neon,dotprod,i8mm")]
    int 1 x 2, float 1 x 6, attention 6 1 1, one 4 4, in bytes 3 1 1, one 2 2, peak 2 x 2);
