//! The kernels themselves, written once over [`Simd`](super::simd::Simd).
//!
//! Everything here is `#[inline(always)]` and becomes machine code inside the per-ISA functions that
//! `super::instantiate!` makes. The functions are unsafe for one reason only: the instruction set must be there, and
//! the pointers in their arguments must cover what the arguments' documentation says. The safe wrappers in
//! [`super`] assert that.

pub(super) mod attention;
pub(super) mod attention_q8;
pub(super) mod ceilings;
pub(super) mod encode;
pub(super) mod gemm_float;
pub(super) mod gemm_int;
pub(super) mod int_weights;
pub(super) mod math;
pub(super) mod rows;
