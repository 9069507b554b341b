//! The processor: kernels spread over a pool of threads.

use super::{Backend, CacheType, Epilogue, Part};
use crate::error::SessionError;
use crate::kernels::Kernels;
use crate::kv_cache::{self, KvCache};
use crate::model::{Linear, NormWeights, Weights};
use crate::ops::{self, Buffer, MatmulScratch, Rotation};
use crate::spec::{Norm, NormKind, Position, Rotary, Spec};
use crate::threads::Pool;
use std::ops::Range;

/// Kernels, threads and scratch memory of one session.
pub struct Cpu {
    kernels: Kernels,
    pool: Pool,
    scratch: MatmulScratch,
    rotation: Option<Rotation>,
}

impl Cpu {
    /// A device for batches of up to `max_tokens` of models like `spec`.
    ///
    /// # Errors
    /// When threads cannot be started.
    pub fn new(kernels: Kernels, n_threads: usize, spec: &Spec, max_tokens: usize) -> Result<Self, SessionError> {
        let rotation = match &spec.position {
            Position::Learned => None,
            Position::Rotary(rotary) => Some(Rotation::new(rotary, max_tokens)),
        };
        Ok(Self {
            kernels,
            pool: Pool::new(n_threads).map_err(SessionError::Spawn)?,
            scratch: MatmulScratch::new(max_tokens, widest(spec))?,
            rotation,
        })
    }

    /// The kernels in use.
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// Threads in use.
    pub fn n_threads(&self) -> usize {
        self.pool.n_threads()
    }

    /// Bytes of scratch memory.
    pub fn scratch_bytes(&self) -> usize {
        self.scratch.bytes()
    }

    /// Bytes of scratch memory of a device for batches of up to `max_tokens`.
    pub fn scratch_bytes_of(spec: &Spec, max_tokens: usize) -> usize {
        MatmulScratch::bytes_of(max_tokens, widest(spec))
    }
}

/// The most columns that a product of this architecture has.
fn widest(spec: &Spec) -> usize {
    spec.d_model.max(spec.mlp.ffn_dim).max(spec.attention.n_heads * spec.attention.head_dim)
}

impl Backend for Cpu {
    type Buffer = Buffer;
    type Cache = KvCache;

    fn buffer(&self, max_tokens: usize, cols: usize) -> Result<Buffer, SessionError> {
        Buffer::new(max_tokens, cols)
    }

    fn cache(&self, spec: &Spec, cache_type: CacheType, context: usize) -> Result<KvCache, SessionError> {
        KvCache::new(spec, cache_type, context)
    }

    fn embed(&mut self, weights: &Weights, ids: &[u32], positions: &[usize], out: &mut Buffer) {
        ops::embed(&mut self.pool, (&weights.embedding, weights.positions.as_ref()), (ids, positions), out);
    }

    fn norm(&mut self, norm: &Norm, weights: &NormWeights, x: (&Buffer, Range<usize>), out: (&mut Buffer, usize)) {
        let device = (self.kernels, &mut self.pool);
        match norm.kind {
            NormKind::LayerNorm => ops::layer_norm(device, (&weights.weight, &weights.bias, norm.eps), x, out),
        }
    }

    fn linear(&mut self, linear: &Linear, x: &Buffer, tokens: Range<usize>, epilogue: Epilogue, out: &mut Buffer) {
        let device = (self.kernels, &mut self.pool);
        ops::matmul(device, &mut self.scratch, (&linear.weight, linear.bias.as_deref()), (x, tokens), epilogue, out);
    }

    fn rotate(&mut self, rotary: &Rotary, x: &mut Buffer, positions: &[usize], n_heads: usize, head_dim: usize) {
        let rotation = self.rotation.get_or_insert_with(|| Rotation::new(rotary, positions.len()));
        rotation.prepare(positions);
        rotation.apply(&mut self.pool, x, n_heads, head_dim);
    }

    fn reserve(&self, cache: &mut KvCache, positions: Range<usize>) -> Result<(), SessionError> {
        cache.reserve(positions)
    }

    fn store(&mut self, spec: &Spec, parts: &mut [Part<'_>], layer: usize, qkv: &Buffer) {
        let keys_at = spec.attention.n_heads * spec.attention.head_dim;
        let n_tokens = parts.last().map_or(0, |part| part.row + part.positions.len());
        let kv = qkv.rows(0..n_tokens).get(keys_at..).unwrap_or_default();
        kv_cache::store((self.kernels, &mut self.pool), layer, parts, (kv, qkv.stride()));
    }

    fn attend(&mut self, spec: &Spec, parts: &[Part<'_>], layer: usize, qkv: &Buffer, out: &mut Buffer) {
        let a = &spec.attention;
        let heads = (a.n_heads, a.n_kv_heads, a.scale_of(layer));
        ops::attention((self.kernels, &mut self.pool), (parts, layer), heads, qkv, out);
    }

    fn read<'a>(&self, buffer: &'a Buffer, row: usize) -> &'a [f32] {
        buffer.row(row)
    }
}
