//! Causal self-attention over the cache.

use super::Buffer;
use crate::kernels::Kernels;
use crate::kv_cache::KvCache;
use crate::threads::Pool;
use std::ops::Range;

/// Queries per task in prefill: enough to use a block of keys well, few enough to share out evenly.
const QUERIES_PER_TASK: usize = 24;

/// Rows of `out` `[n_tokens, n_heads * head_dim]` become the attention of the queries, which lead the rows of `qkv`, to
/// all positions up to their own. The cache holds the keys and values of the tokens themselves already.
///
/// # Panics
/// When shapes do not fit together.
pub fn attention(
    (kernels, pool): (Kernels, &mut Pool),
    (cache, layer): (&KvCache, usize),
    (n_heads, n_kv_heads, scale): (usize, usize, f32),
    (qkv, positions): (&Buffer, Range<usize>),
    out: &mut Buffer,
) {
    let (n_tokens, first_position) = (positions.len(), positions.start);
    let head_dim = out.cols() / n_heads;
    let queries = qkv.rows(0..n_tokens);
    let (q_stride, stride) = (qkv.stride(), out.stride());
    // Rows are padded: the last columns belong to no head.
    pool.run_blocks(out.rows_mut(0..n_tokens), stride, QUERIES_PER_TASK, head_dim, &|tokens, cols, mut block| {
        let head = cols.start / head_dim;
        if head < n_heads {
            let q = &queries[tokens.start * q_stride + head * head_dim..];
            let kv = cache.head(layer, head / (n_heads / n_kv_heads));
            kernels.attention((q, q_stride), first_position + tokens.start, scale, kv, &mut block);
        }
    });
}
