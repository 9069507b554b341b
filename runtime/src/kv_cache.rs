//! Keys and values of past tokens, laid out as the attention kernel reads them.
//!
//! ```text
//! layer -> key-value head -> keys   [positions / 16][head_dim][16]
//!                            values [positions][head_dim padded to 16]
//! ```
//!
//! Sixteen keys are interleaved like a weight panel, so their scores come out in sixteen lanes without a horizontal
//! sum. Positions are padded to the attention kernel's block. The memory is an anonymous mapping: zero, and not
//! taken from the system before it is used.

#![forbid(unsafe_code)]

use crate::error::SessionError;
use crate::format::{ModelFile, Stored};
pub use crate::kernels::CacheType;
use crate::kernels::{KEYS, Kernels};
use crate::quant::{PANEL_ROWS, QuantType};
use crate::spec::{MAX_HEAD_DIM, Spec};
use crate::threads::Pool;
use memmap2::MmapMut;

/// Tokens below which the cache is written by the calling thread alone: less work than a parallel region.
const SERIAL_TOKENS: usize = 4;

/// The cache of one session.
pub struct KvCache {
    memory: MmapMut,
    cache_type: CacheType,
    n_kv_heads: usize,
    head_dim: usize,
    /// Positions there is room for, a multiple of [`KEYS`].
    positions: usize,
}

/// Bytes that one token takes in the cache of a model.
pub fn bytes_per_token(spec: &Spec, cache_type: CacheType) -> usize {
    spec.n_layers * spec.attention.n_kv_heads * elements_per_position(spec.attention.head_dim) * cache_type.bytes()
}

/// How the cache of a model is kept unless told otherwise: in f32 when all its weights are, so that nothing at all is rounded,
/// and in f16 for the others.
pub fn default_type(file: &ModelFile) -> CacheType {
    let exact = file.tensors().all(|(_, record, _)| match record.stored {
        Stored::Bytes | Stored::Vector => true,
        Stored::Matrix(quant) => quant == QuantType::F32,
    });
    if exact { CacheType::F32 } else { CacheType::F16 }
}

fn elements_per_position(head_dim: usize) -> usize {
    head_dim + head_dim.next_multiple_of(PANEL_ROWS)
}

impl KvCache {
    /// An empty cache for `context` tokens.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(spec: &Spec, cache_type: CacheType, context: usize) -> Result<Self, SessionError> {
        let positions = context.next_multiple_of(KEYS);
        let bytes = bytes_per_token(spec, cache_type).saturating_mul(positions);
        let memory = MmapMut::map_anon(bytes).map_err(|source| SessionError::Memory {
            bytes,
            what: "the key-value cache",
            source,
        })?;
        let a = &spec.attention;
        Ok(Self { memory, cache_type, n_kv_heads: a.n_kv_heads, head_dim: a.head_dim, positions })
    }

    /// Bytes it takes when full.
    pub fn bytes(&self) -> usize {
        self.memory.len()
    }

    /// Bytes of one head.
    fn head_len(&self) -> usize {
        self.positions * elements_per_position(self.head_dim) * self.cache_type.bytes()
    }

    /// Bytes of the keys of one head.
    fn keys_len(&self) -> usize {
        self.positions * self.head_dim * self.cache_type.bytes()
    }

    /// Keys and values of one head, as the attention kernel takes them.
    ///
    /// # Panics
    /// When there is no such layer or head.
    pub fn head(&self, layer: usize, head: usize) -> (CacheType, &[u8], &[u8]) {
        assert!(head < self.n_kv_heads, "head {head} of {}", self.n_kv_heads);
        let len = self.head_len();
        let (keys, values) = self.memory[(layer * self.n_kv_heads + head) * len..][..len].split_at(self.keys_len());
        (self.cache_type, keys, values)
    }

    /// Writes keys and values of the tokens at `positions`. `kv` has rows of `stride` elements, one for each token, that start with all keys, then all values.
    ///
    /// # Panics
    /// When a position, or an element, is out of range.
    pub fn store(
        &mut self,
        (kernels, pool): (Kernels, &mut Pool),
        layer: usize,
        positions: std::ops::Range<usize>,
        (kv, stride): (&[f32], usize),
    ) {
        let (first_position, n_tokens) = (positions.start, positions.len());
        assert!(positions.end <= self.positions, "positions {positions:?} of {}", self.positions);
        let (head_dim, n_heads, len, keys_len) = (self.head_dim, self.n_kv_heads, self.head_len(), self.keys_len());
        let cache_type = self.cache_type;
        let layer = &mut self.memory[layer * n_heads * len..][..n_heads * len];
        let store_head = |head: usize, cache: &mut [u8]| {
            let (keys, values) = cache.split_at_mut(keys_len);
            for t in 0..n_tokens {
                let row = &kv[t * stride..];
                let key = &row[head * head_dim..][..head_dim];
                let value = &row[(n_heads + head) * head_dim..][..head_dim];
                match cache_type {
                    CacheType::F32 => {
                        put(
                            bytemuck::cast_slice_mut(keys),
                            bytemuck::cast_slice_mut(values),
                            key,
                            value,
                            first_position + t,
                        );
                    }
                    CacheType::F16 => {
                        let (mut k, mut v) = ([0u16; MAX_HEAD_DIM], [0u16; MAX_HEAD_DIM]);
                        kernels.to_f16(key, &mut k[..head_dim]);
                        kernels.to_f16(value, &mut v[..head_dim]);
                        let (k, v) = (&k[..head_dim], &v[..head_dim]);
                        put(bytemuck::cast_slice_mut(keys), bytemuck::cast_slice_mut(values), k, v, first_position + t);
                    }
                }
            }
        };
        if n_tokens < SERIAL_TOKENS {
            layer.chunks_exact_mut(len).enumerate().for_each(|(head, cache)| store_head(head, cache));
        } else {
            pool.run_blocks(layer, len, 1, len, &|heads, _, mut cache| store_head(heads.start, cache.row_mut(0)));
        }
    }
}

/// Puts one key and one value at their position.
fn put<T: Copy>(keys: &mut [T], values: &mut [T], key: &[T], value: &[T], position: usize) {
    let head_dim = key.len();
    let tile = &mut keys[position / PANEL_ROWS * head_dim * PANEL_ROWS..][..head_dim * PANEL_ROWS];
    for (d, &k) in key.iter().enumerate() {
        tile[d * PANEL_ROWS + position % PANEL_ROWS] = k;
    }
    values[position * head_dim.next_multiple_of(PANEL_ROWS)..][..head_dim].copy_from_slice(value);
}
