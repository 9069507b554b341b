//! Attention over the caches of one or several texts.

use super::{Buffer, RelativeKeys};
use crate::kernels::{Biases, Kernels, Scoring};
use crate::kv_cache::Part;
use crate::threads::Pool;

/// Queries of one text per task: enough to use a block of keys well, few enough to share out evenly.
const QUERIES_PER_TASK: usize = 24;

/// What a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sees {
    /// The positions of its text up to its own.
    Before,
    /// All of its text, which is in the batch.
    Text,
    /// All of the text that was read for it.
    Memory,
}

/// Rows of `out` `[n_tokens, n_heads * head_dim]` become the attention of the queries, which lead the rows of `queries`, to
/// what they see. The caches hold the keys and values of the tokens themselves already. `scoring` says how a head makes scores, to
/// which `relative` adds where keys stand. One parallel region serves all parts, which lie in the batch in order and without
/// gaps.
///
/// # Panics
/// When shapes do not fit together.
pub fn attention<'a>(
    (kernels, pool): (Kernels, &mut Pool),
    (parts, layer, sees): (&[Part<'_>], usize, Sees),
    (n_heads, n_kv_heads): (usize, usize),
    scoring: &(dyn Fn(usize) -> Scoring<'a> + Sync),
    relative: Option<&RelativeKeys>,
    queries: &Buffer,
    out: &mut Buffer,
) {
    let n_tokens = parts.last().map_or(0, |part| part.row + part.positions.len());
    let longest = parts.iter().map(|part| part.positions.len()).max().unwrap_or(1);
    let head_dim = out.cols() / n_heads;
    let (q_stride, stride) = (queries.stride(), out.stride());
    let queries = queries.rows(0..n_tokens);
    let rows_per_task = longest.clamp(1, QUERIES_PER_TASK);
    // Rows are padded: the last columns belong to no head.
    pool.run_blocks(out.rows_mut(0..n_tokens), stride, rows_per_task, head_dim, &|rows, cols, mut block| {
        let head = cols.start / head_dim;
        if head >= n_heads {
            return;
        }
        let mut room = Vec::new();
        for part in parts {
            let start = rows.start.max(part.row);
            let end = rows.end.min(part.row + part.positions.len());
            if start < end {
                // To the kernel a query sees what stands before it. Where it sees all of a text, each runs by itself, as if
                // it were the last; and by itself where it has biases of its own.
                let (cache, together, position) = match sees {
                    Sees::Before => {
                        let together = if relative.is_some() { 1 } else { end - start };
                        (&*part.cache, together, part.positions.start + start - part.row)
                    }
                    Sees::Text => (&*part.cache, 1, part.positions.end - 1),
                    Sees::Memory => {
                        let (memory, tokens) = part.memory.expect("a text was read");
                        (memory, 1, tokens - 1)
                    }
                };
                let cache = cache.head(layer, head / (n_heads / n_kv_heads));
                for first in (start..end).step_by(together) {
                    let position = if sees == Sees::Before { position + first - start } else { position };
                    let mut q = &queries[first * q_stride + head * head_dim..];
                    let mut out = block.rows_mut(first - rows.start..first - rows.start + together);
                    let mut scoring = scoring(head);
                    if let (Some(biases), Sees::Text) = (scoring.biases, sees) {
                        let before = part.positions.len() - 1 - (first - part.row);
                        scoring.biases = Some(Biases { before, ..biases });
                    }
                    if let Some(relative) = relative {
                        let n = scoring.window.min(position + 1);
                        let (query, biases) = relative.meet((head, &q[..head_dim]), (n, scoring.scale), &mut room);
                        (q, scoring.biases) = (query, Some(biases));
                    }
                    kernels.attention((q, q_stride), position, scoring, cache, &mut out);
                }
            }
        }
    });
}
