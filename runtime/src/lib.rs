//! The Tidbit runtime: opens a model file in place and runs it.
//!
//! Each module knows only the ones above it in this list:
//!
//! | module | what lives there |
//! |---|---|
//! | [`error`] | one error enum per layer, messages with values |
//! | [`storage`] | mapped or aligned bytes |
//! | [`pages`] | memory that caches own or share |
//! | [`quant`] | one file per quant type: block layout, encode, decode |
//! | [`spec`] | an architecture as data, and the tensors it needs |
//! | [`format`](mod@format) | the file: header, tensor index, validation once at open |
//! | [`tokenizer`] | text to ids and back, streaming UTF-8 |
//! | [`threads`] | the low-latency worker pool |
//! | [`kernels`] | the kernel table and its ISAs; unsafe code lives here |
//! | [`ops`] | safe, shape-asserting operations on activations |
//! | [`kv_cache`] | keys and values of past tokens |
//! | [`model`] | an opened model: weights by role, tokenizer |
//! | [`backend`] | the dozen coarse operations a device must offer |
//! | [`forward`] | the one forward pass, which reads the spec |
//! | [`sampler`] | logits to a token id |
//! | [`sequence`] | one text: its cache and position |
//! | [`saved`] | a sequence as bytes |
//! | [`engine`] | a model at work for any number of texts |
//! | [`embed`] | a vector for a text |
//! | [`session`] | a model at work for one text: prefill, decode, rewind |
//! | [`speculate`] | decoding with guesses that change nothing but the time |
//! | [`eval`] | perplexity, and the divergence from a reference |

#[cfg(target_endian = "big")]
compile_error!("the file format is little-endian and used in place");

pub mod backend;
pub mod embed;
pub mod engine;
pub mod error;
pub mod eval;
pub mod format;
pub mod forward;
pub mod kernels;
pub mod kv_cache;
mod linear_state;
pub mod model;
pub mod ops;
pub mod pages;
pub mod quant;
pub mod sampler;
pub mod saved;
pub mod sequence;
pub mod session;
pub mod spec;
pub mod speculate;
pub mod storage;
pub mod threads;
pub mod tokenizer;
