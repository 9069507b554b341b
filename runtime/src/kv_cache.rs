//! Keys and values of past tokens, in f16, laid out as the attention kernel reads them.
//!
//! ```text
//! layer -> key-value head -> keys   [positions / 16][head_dim][16]
//!                            values [positions][head_dim padded to 16]
//! ```
//!
//! Sixteen keys are interleaved like a weight panel, so their scores come out in sixteen lanes without a horizontal
//! sum. Positions are padded to the attention kernel's block. The memory is an anonymous mapping: zero, and not
//! taken from the system before it is used.

use crate::error::SessionError;
use crate::kernels::{KEYS, Kernels};
use crate::quant::PANEL_ROWS;
use crate::spec::{MAX_HEAD_DIM, Spec};
use crate::threads::Pool;
use memmap2::MmapMut;

/// Tokens below which the cache is written by the calling thread alone: less work than a parallel region.
const SERIAL_TOKENS: usize = 4;

/// The cache of one session.
pub struct KvCache {
    memory: MmapMut,
    n_kv_heads: usize,
    head_dim: usize,
    /// Positions there is room for, a multiple of [`KEYS`].
    positions: usize,
}

/// Bytes that one token takes in the cache of a model.
pub fn bytes_per_token(spec: &Spec) -> usize {
    spec.n_layers * spec.attention.n_kv_heads * elements_per_position(spec.attention.head_dim) * 2
}

fn elements_per_position(head_dim: usize) -> usize {
    head_dim + head_dim.next_multiple_of(PANEL_ROWS)
}

impl KvCache {
    /// An empty cache for `context` tokens.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(spec: &Spec, context: usize) -> Result<Self, SessionError> {
        let positions = context.next_multiple_of(KEYS);
        let bytes = bytes_per_token(spec).saturating_mul(positions);
        let memory = MmapMut::map_anon(bytes).map_err(|source| SessionError::Memory {
            bytes,
            what: "the key-value cache",
            source,
        })?;
        let a = &spec.attention;
        Ok(Self { memory, n_kv_heads: a.n_kv_heads, head_dim: a.head_dim, positions })
    }

    /// Bytes it takes when full.
    pub fn bytes(&self) -> usize {
        self.memory.len()
    }

    fn head_len(&self) -> usize {
        self.positions * elements_per_position(self.head_dim)
    }

    /// Keys and values of one head, as the attention kernel takes them.
    ///
    /// # Panics
    /// When there is no such layer or head.
    pub fn head(&self, layer: usize, head: usize) -> (&[u16], &[u16]) {
        assert!(head < self.n_kv_heads, "head {head} of {}", self.n_kv_heads);
        let len = self.head_len();
        let all: &[u16] = bytemuck::cast_slice(&self.memory);
        all[(layer * self.n_kv_heads + head) * len..][..len].split_at(self.positions * self.head_dim)
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
        let (head_dim, n_heads, len) = (self.head_dim, self.n_kv_heads, self.head_len());
        let keys_len = self.positions * head_dim;
        let padded = head_dim.next_multiple_of(PANEL_ROWS);
        let all: &mut [u16] = bytemuck::cast_slice_mut(&mut self.memory);
        let layer = &mut all[layer * n_heads * len..][..n_heads * len];
        let store_head = |head: usize, cache: &mut [u16]| {
            let (keys, values) = cache.split_at_mut(keys_len);
            let mut halves = [0; MAX_HEAD_DIM];
            for t in 0..n_tokens {
                let (row, position) = (&kv[t * stride..], first_position + t);
                kernels.to_f16(&row[head * head_dim..][..head_dim], &mut halves[..head_dim]);
                let tile = &mut keys[position / PANEL_ROWS * head_dim * PANEL_ROWS..][..head_dim * PANEL_ROWS];
                for (d, &half) in halves[..head_dim].iter().enumerate() {
                    tile[d * PANEL_ROWS + position % PANEL_ROWS] = half;
                }
                kernels.to_f16(
                    &row[(n_heads + head) * head_dim..][..head_dim],
                    &mut values[position * padded..][..head_dim],
                );
            }
        };
        if n_tokens < SERIAL_TOKENS {
            layer.chunks_exact_mut(len).enumerate().for_each(|(head, cache)| store_head(head, cache));
        } else {
            pool.run_blocks(layer, len, 1, len, &|heads, _, mut cache| store_head(heads.start, cache.row_mut(0)));
        }
    }
}
