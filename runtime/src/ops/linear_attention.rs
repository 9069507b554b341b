//! Linear attention: what a query sees is in sums of constant size.

use super::Buffer;
use crate::kv_cache::Part;
use crate::spec::{FeatureMap, MAX_HEAD_DIM};
use crate::threads::Pool;
use std::sync::{Mutex, PoisonError};

/// Rows of `out` `[n_tokens, n_heads * head_dim]` become `f(q) S / f(q) z`, where `S` is the sum of `f(k) v` and `z` that of
/// `f(k)` over all positions of a text up to the query's, its own included. Queries, keys and values stand side by side in
/// the rows of `qkv`. Products and sums are plain and in order: the same on every instruction set.
///
/// # Panics
/// When shapes do not fit together, or a text cannot go on where its part begins.
pub fn linear_attention(
    pool: &mut Pool,
    map: FeatureMap,
    (parts, layer): (&mut [Part<'_>], usize),
    (n_heads, n_kv_heads): (usize, usize),
    qkv: &Buffer,
    out: &mut Buffer,
) {
    let n_tokens = parts.last().map_or(0, |part| part.row + part.positions.len());
    let (head_dim, group) = (out.cols() / n_heads, n_heads / n_kv_heads);
    // One task for each key-value head: it has the sums of all texts to itself, though the compiler cannot know.
    let mut heads: Vec<Vec<Mutex<&mut [f32]>>> = Vec::with_capacity(parts.len());
    let mut rows = Vec::with_capacity(parts.len());
    for part in parts {
        rows.push(part.row..part.row + part.positions.len());
        heads.push(part.cache.sums(layer, &part.positions).map(Mutex::new).collect());
    }
    let stride = out.stride();
    pool.run_blocks(out.rows_mut(0..n_tokens), stride, n_tokens.max(1), group * head_dim, &|_, cols, mut block| {
        let head = cols.start / (group * head_dim);
        if head >= n_kv_heads {
            return;
        }
        for (heads, rows) in heads.iter().zip(&rows) {
            let mut sums = heads[head].lock().unwrap_or_else(PoisonError::into_inner);
            let (products, keys) = sums.split_at_mut(head_dim * head_dim);
            for t in rows.clone() {
                let part = |head: usize| &qkv.row(t)[head * head_dim..][..head_dim];
                let value = part(n_heads + n_kv_heads + head);
                let key = part(n_heads + head).iter().map(|x| feature(map, *x));
                for ((key, sum), products) in key.zip(&mut *keys).zip(products.chunks_exact_mut(head_dim)) {
                    *sum += key;
                    products.iter_mut().zip(value).for_each(|(product, value)| *product += key * value);
                }
                for query in 0..group {
                    let (mut total, mut seen) = (0.0, [0.0; MAX_HEAD_DIM]);
                    let features = part(head * group + query).iter().map(|x| feature(map, *x));
                    for ((feature, sum), products) in features.zip(&*keys).zip(products.chunks_exact(head_dim)) {
                        total += feature * sum;
                        seen.iter_mut().zip(products).for_each(|(seen, product)| *seen += feature * product);
                    }
                    let row = &mut block.row_mut(t)[query * head_dim..][..head_dim];
                    row.iter_mut().zip(seen).for_each(|(out, seen)| *out = seen / total);
                }
            }
        }
    });
}

fn feature(map: FeatureMap, x: f32) -> f32 {
    match map {
        // `libm`, because the system's functions differ between systems in the last digit.
        FeatureMap::EluPlusOne => {
            if x > 0.0 {
                x + 1.0
            } else {
                libm::expf(x)
            }
        }
    }
}
