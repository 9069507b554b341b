//! Self-attention over the caches of one or several texts.

use super::Buffer;
use crate::kernels::{Biases, Kernels, Scoring};
use crate::kv_cache::Part;
use crate::threads::Pool;

/// Queries of one text per task: enough to use a block of keys well, few enough to share out evenly.
const QUERIES_PER_TASK: usize = 24;

/// Rows of `out` `[n_tokens, n_heads * head_dim]` become the attention of the queries, which lead the rows of `qkv`, to
/// all positions of their text up to their own, or if it is not `causal` up to the part's last. The caches hold the keys and values of the tokens themselves already.
/// `scoring` says how a head makes scores. One parallel region serves all parts, which lie in the batch in order and without gaps.
///
/// # Panics
/// When shapes do not fit together.
pub fn attention<'a>(
    (kernels, pool): (Kernels, &mut Pool),
    (parts, layer, causal): (&[Part<'_>], usize, bool),
    (n_heads, n_kv_heads): (usize, usize),
    scoring: &(dyn Fn(usize) -> Scoring<'a> + Sync),
    qkv: &Buffer,
    out: &mut Buffer,
) {
    let n_tokens = parts.last().map_or(0, |part| part.row + part.positions.len());
    let longest = parts.iter().map(|part| part.positions.len()).max().unwrap_or(1);
    let head_dim = out.cols() / n_heads;
    let queries = qkv.rows(0..n_tokens);
    let (q_stride, stride) = (qkv.stride(), out.stride());
    let rows_per_task = longest.clamp(1, QUERIES_PER_TASK);
    // Rows are padded: the last columns belong to no head.
    pool.run_blocks(out.rows_mut(0..n_tokens), stride, rows_per_task, head_dim, &|rows, cols, mut block| {
        let head = cols.start / head_dim;
        if head >= n_heads {
            return;
        }
        for part in parts {
            let start = rows.start.max(part.row);
            let end = rows.end.min(part.row + part.positions.len());
            if start < end {
                let cache = part.cache.head(layer, head / (n_heads / n_kv_heads));
                // To the kernel a query sees what stands before it. Where attention is not causal, each runs by itself, as if
                // it were the last.
                let (together, position) = if causal {
                    (end - start, part.positions.start + start - part.row)
                } else {
                    (1, part.positions.end - 1)
                };
                for first in (start..end).step_by(together) {
                    let q = &queries[first * q_stride + head * head_dim..];
                    let mut out = block.rows_mut(first - rows.start..first - rows.start + together);
                    let mut scoring = scoring(head);
                    if let (Some(biases), false) = (scoring.biases, causal) {
                        let before = part.positions.len() - 1 - (first - part.row);
                        scoring.biases = Some(Biases { before, ..biases });
                    }
                    kernels.attention((q, q_stride), position, scoring, cache, &mut out);
                }
            }
        }
    });
}
