//! What a device must offer: some twenty coarse operations on activations that live on it.
//!
//! The forward pass is written over [`Backend`] and knows no device. Operations are coarse (a whole matrix product with
//! its bias and epilogue, a whole layer's attention), so that a device can fuse inside them, and their arguments name
//! shapes, never architectures.

#![forbid(unsafe_code)]

mod cpu;

pub use crate::kernels::{CacheType, Epilogue};
pub use crate::kv_cache::Part;
pub use cpu::Cpu;

use crate::error::SessionError;
use crate::model::{Linear, NormWeights, ScoreWeights};
use crate::quant::Matrix;
use crate::spec::{FeatureMap, NormKind, Rotary, Sinusoidal, Spec};
use std::ops::Range;

/// An expert that a token takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chosen {
    /// The token's row.
    pub row: usize,
    /// The expert.
    pub expert: usize,
    /// What it is multiplied by.
    pub weight: f32,
}

/// A device. `positions` are where the rows of a batch stand in the text.
pub trait Backend {
    /// Activations `[tokens, cols]` on the device.
    type Buffer;
    /// Keys and values of one session on the device.
    type Cache;

    /// Zeros for up to `max_tokens` rows of `cols`.
    ///
    /// # Errors
    /// When the memory cannot be had.
    fn buffer(&self, max_tokens: usize, cols: usize) -> Result<Self::Buffer, SessionError>;

    /// An empty cache for `context` tokens.
    ///
    /// # Errors
    /// When the memory cannot be had.
    fn cache(&self, spec: &Spec, cache_type: CacheType, context: usize) -> Result<Self::Cache, SessionError>;

    /// `out[t] = tokens[ids[t]] * scale`.
    fn embed(&mut self, tokens: (&Matrix, f32), ids: &[u32], out: &mut Self::Buffer);

    /// `out[t] += places[positions[t]]`.
    fn embed_positions(&mut self, places: &Matrix, positions: &[usize], out: &mut Self::Buffer);

    /// Row `t` of `out` grows by the sines and cosines of `positions[t]`.
    fn embed_sinusoids(&mut self, of: &Sinusoidal, positions: &[usize], out: &mut Self::Buffer);

    /// Some rows of a buffer, normalized, become the rows of `out` from the given one on.
    fn norm(
        &mut self,
        norm: (NormKind, f32, &NormWeights),
        x: (&Self::Buffer, Range<usize>),
        out: (&mut Self::Buffer, usize),
    );

    /// The first rows of `out` become `epilogue(x wᵀ + bias)` of rows `tokens` of `x`.
    fn linear(
        &mut self,
        linear: &Linear,
        x: &Self::Buffer,
        tokens: Range<usize>,
        epilogue: Epilogue,
        out: &mut Self::Buffer,
    );

    /// The first `n_tokens` rows of `out` become their sum with those of `x`.
    fn add(&mut self, x: &Self::Buffer, n_tokens: usize, out: &mut Self::Buffer);

    /// The rows of `out` from the given one on become some rows of `x`.
    fn copy(&mut self, x: (&Self::Buffer, Range<usize>), out: (&mut Self::Buffer, usize));

    /// Multiplies the first `n_tokens` rows of `x` by `factor`.
    fn scale(&mut self, x: &mut Self::Buffer, n_tokens: usize, factor: f32);

    /// Clamps the first `n_tokens` rows of `x` to plus and minus `most`.
    fn clip(&mut self, x: &mut Self::Buffer, n_tokens: usize, most: f32);

    /// The first `n_tokens` rows of `x` become `cap * tanh(x / cap)`.
    fn softcap(&mut self, x: &mut Self::Buffer, n_tokens: usize, cap: f32);

    /// Normalizes queries and keys in the first `n_tokens` rows of `qkv`.
    fn norm_heads(&mut self, spec: &Spec, weights: &[NormWeights; 2], qkv: &mut Self::Buffer, n_tokens: usize);

    /// The `used` experts that each of the first `n_tokens` rows of `scores` likes best, with their probabilities, which are
    /// divided by their sum if so asked. In order of the rows.
    fn choose(&self, scores: &Self::Buffer, n_tokens: usize, of: (usize, bool)) -> Vec<Chosen>;

    /// Row `i` of `out` becomes row `rows[i].0` of `x`.
    fn gather(&mut self, x: &Self::Buffer, rows: &[(usize, f32)], out: &mut Self::Buffer);

    /// Row `rows[i].0` of `out` grows by row `i` of `x` times `rows[i].1`.
    fn scatter(&mut self, x: &Self::Buffer, rows: &[(usize, f32)], out: &mut Self::Buffer);

    /// Turns the first `n_heads` heads of each row of `x` to its position.
    fn rotate(&mut self, rotary: &Rotary, x: &mut Self::Buffer, positions: &[usize], n_heads: usize, head_dim: usize);

    /// Makes sure that `positions` of a cache can be written, for it may share what it holds with another.
    ///
    /// # Errors
    /// When the memory cannot be had.
    fn reserve(&self, cache: &mut Self::Cache, positions: Range<usize>) -> Result<(), SessionError>;

    /// Puts keys and values, which follow the queries in the rows of `qkv`, into layer `layer` of the parts' caches. The
    /// positions were [reserved](Self::reserve).
    fn store(&mut self, spec: &Spec, parts: &mut [Part<'_, Self::Cache>], layer: usize, qkv: &Self::Buffer);

    /// `out[t]` becomes the attention of the queries of row `t` of `qkv` to all positions of its text up to its own, or
    /// up to the part's last where attention is not causal.
    fn attend(
        &mut self,
        spec: &Spec,
        scores: &ScoreWeights,
        parts: &[Part<'_, Self::Cache>],
        layer: usize,
        qkv: &Self::Buffer,
        out: &mut Self::Buffer,
    );

    /// Puts the keys and values of an encoder's `n_tokens`, rows of `kv`, into layer `layer` of a [new cache](Self::cache) for as
    /// many.
    fn remember(&mut self, memory: &mut Self::Cache, layer: usize, kv: &Self::Buffer, n_tokens: usize);

    /// `out[t]` becomes the attention of row `t` of `queries` to all that its part [remembers](Self::remember).
    fn attend_memory(
        &mut self,
        spec: &Spec,
        parts: &[Part<'_, Self::Cache>],
        layer: usize,
        queries: &Self::Buffer,
        out: &mut Self::Buffer,
    );

    /// [`attend`](Self::attend) of linear attention, whose queries, keys and values lead the rows of `qkv`; the parts' caches take the keys and
    /// values in.
    fn attend_linearly(
        &mut self,
        of: (&Spec, FeatureMap),
        parts: &mut [Part<'_, Self::Cache>],
        layer: usize,
        qkv: &Self::Buffer,
        out: &mut Self::Buffer,
    );

    /// Row `row` on the host, without padding.
    fn read<'a>(&self, buffer: &'a Self::Buffer, row: usize) -> &'a [f32];
}
