//! Every instruction set against the scalar one, bit for bit; the scalar one against plain arithmetic in f64.

use super::*;
use crate::kv_cache::{self, KvCache, Part};
use crate::quant::QuantType;
use crate::spec::{Sparse, SparsePattern};
use crate::threads::Pool;
use proptest::prelude::*;

/// Deterministic values in -1..1 with a few large ones.
fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    (0..n)
        .map(|i| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let v = (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
            if (i as u64).wrapping_add(seed).is_multiple_of(61) { v * 30.0 } else { v }
        })
        .collect()
}

/// So many cases, or fewer where `PROPTEST_CASES` says so: `tests/aarch64.sh`, under an emulator.
pub(super) fn cases(most: u32) -> ProptestConfig {
    let usual = ProptestConfig::default();
    ProptestConfig { cases: usual.cases.min(most), ..usual }
}

fn all() -> Vec<Kernels> {
    let list = supported();
    assert_eq!(list.last().unwrap().name(), "scalar");
    list
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

/// Runs a product of all panels; the output starts as `start`.
fn product(
    k: Kernels,
    w: &Matrix,
    x: &[f32],
    tokens: usize,
    bias: Option<&[f32]>,
    epilogue: Epilogue,
    start: f32,
) -> Vec<f32> {
    let width = w.n_panels() * PANEL_ROWS;
    let mut out = vec![start; tokens * width];
    let blocks: Vec<ActBlock> = x
        .chunks(w.cols())
        .flat_map(|row| {
            let mut blocks = vec![ActBlock::ZERO; w.cols().div_ceil(BLOCK)];
            k.quantize(row, &mut blocks);
            blocks
        })
        .collect();
    let input = if w.quant().is_integer() { Input::Int(&blocks) } else { Input::Float { x, stride: w.cols() } };
    // One block: all rows, all columns.
    Pool::new(1).unwrap().run_blocks(&mut out, width, tokens, width, &|_, _, mut block| {
        k.gemm(w, 0..w.n_panels(), input, bias, epilogue, &mut block);
    });
    out
}

proptest! {
    #![proptest_config(cases(60))]

    #[test]
    fn products_have_the_same_bits_on_every_isa(rows in 1usize..70, cols in 1usize..300, tokens in 1usize..36, seed: u64) {
        for quant in QuantType::ALL {
            let w = Matrix::encode(quant, rows, cols, &values(rows * cols, seed)).unwrap();
            let x = values(tokens * cols, seed ^ 1);
            let bias = values(w.n_panels() * PANEL_ROWS, seed ^ 2);
            let expected = product(*all().last().unwrap(), &w, &x, tokens, Some(&bias), Epilogue::Store, 0.0);
            for k in all() {
                let found = product(k, &w, &x, tokens, Some(&bias), Epilogue::Store, 0.0);
                prop_assert_eq!(bits(&found), bits(&expected), "{} {}", k.name(), quant);
                // Alone or with others: the same.
                let last = product(k, &w, &x[(tokens - 1) * cols..], 1, Some(&bias), Epilogue::Store, 0.0);
                prop_assert_eq!(bits(&last), bits(&expected[(tokens - 1) * w.n_panels() * PANEL_ROWS..]), "{} {} alone", k.name(), quant);
            }
        }
    }

    #[test]
    fn any_bytes_have_the_same_product_on_every_isa(rows in 1usize..40, cols in 1usize..200, tokens in 1usize..36, seed: u64) {
        for quant in QuantType::INTEGER {
            let w = matrix_of(quant, rows, cols, &bytes(quant.matrix_bytes(rows, cols).unwrap(), seed));
            let x = values(tokens * cols, seed ^ 1);
            let expected = product(*all().last().unwrap(), &w, &x, tokens, None, Epilogue::Store, 0.0);
            for k in all() {
                let found = product(k, &w, &x, tokens, None, Epilogue::Store, 0.0);
                prop_assert_eq!(bits_but_of_nan(&found), bits_but_of_nan(&expected), "{} {}", k.name(), quant);
            }
        }
    }

    #[test]
    fn products_are_right(rows in 1usize..40, cols in 1usize..200, tokens in 1usize..4, seed: u64) {
        for quant in QuantType::ALL {
            let w = Matrix::encode(quant, rows, cols, &values(rows * cols, seed)).unwrap();
            let x = values(tokens * cols, seed ^ 1);
            let found = product(*all().last().unwrap(), &w, &x, tokens, None, Epilogue::Store, 0.0);
            let mut row = vec![0.0; cols];
            for r in 0..rows {
                w.decode_row(r, &mut row);
                for t in 0..tokens {
                    let x = &x[t * cols..][..cols];
                    let exact: f64 = row.iter().zip(x).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                    // 8-bit activations: each is off by at most half a step of its block.
                    let step: f64 = if quant.is_integer() {
                        row.chunks(BLOCK).zip(x.chunks(BLOCK)).map(|(w, x)| {
                            let largest = x.iter().fold(0f32, |m, v| m.max(v.abs()));
                            w.iter().map(|v| f64::from(v.abs())).sum::<f64>() * f64::from(largest) / 127.0 * 0.51
                        }).sum()
                    } else { 0.0 };
                    let magnitude: f64 = row.iter().zip(x).map(|(&a, &b)| f64::from((a * b).abs())).sum();
                    let error = (f64::from(found[t * w.n_panels() * PANEL_ROWS + r]) - exact).abs();
                    prop_assert!(error <= step + magnitude * 2e-6, "{quant} row {r}: {error}, allowed {step}");
                }
            }
        }
    }

    #[test]
    fn rows_have_the_same_bits_on_every_isa(n in 1usize..200, seed: u64, exponent in -20i32..20) {
        let x: Vec<f32> = values(n, seed).iter().map(|v| v * 2f32.powi(exponent)).collect();
        let padded = n.next_multiple_of(PANEL_ROWS);
        let (mut weight, mut bias) = (values(padded, seed ^ 1), values(padded, seed ^ 2));
        weight[n..].fill(0.0);
        bias[n..].fill(0.0);
        let run = |k: Kernels| {
            let (mut norm, mut other) = (vec![0.0; padded], x.clone());
            k.norm(NormKind::LayerNorm, &x, (&weight, &bias), 1e-5, &mut norm);
            k.norm_in_place(NormKind::RmsNorm, &mut other, (&weight, &bias), 1e-5);
            k.norm_in_place(NormKind::ScaleNorm, &mut other, (&weight, &bias), 1e-5);
            let mut blocks = vec![ActBlock::ZERO; n.div_ceil(BLOCK)];
            k.quantize(&x, &mut blocks);
            let mut halves = vec![0; padded];
            k.to_f16(&norm, &mut halves);
            let mut activated = Vec::new();
            for kind in Activation::ALL {
                let mut y = norm.clone();
                k.activate(kind, &mut y);
                activated.extend(bits(&y));
            }
            (bits(&norm), bits(&other), blocks, halves, activated)
        };
        let expected = run(*all().last().unwrap());
        for k in all() {
            prop_assert_eq!(run(k), expected.clone(), "{}", k.name());
        }
    }

    #[test]
    fn attention_has_the_same_bits_on_every_isa_and_for_any_grouping(
        head_dim in 1usize..80, first in 0usize..600, n in 1usize..20, seed: u64, odd: u8, window in 1usize..700
    ) {
        let scalar = *all().last().unwrap();
        let if_odd = |bit: u8, value: f32| if odd & bit != 0 { value } else { 0.0 };
        let (values, buckets) = (values(9, seed ^ 4), (0..40).map(|i| i % 9).collect::<Vec<u16>>());
        let biases = Biases { values: &values, buckets: &buckets, zero: 7, before: 0 };
        let sparse = sparse(1 + window % 9, SparsePattern::Strided);
        let scoring = Scoring {
            sink: if odd & 16 != 0 { 0.5 } else { f32::NEG_INFINITY },
            biases: (odd & 32 != 0).then_some(biases),
            sparse: (odd & 64 != 0).then_some(&sparse),
            cap: if_odd(1, 3.0),
            slope: if_odd(2, 0.1),
            bf16: odd & 4 != 0,
            window: if odd & 8 != 0 { window } else { usize::MAX },
            ..Scoring::scaled(SCALE)
        };
        for cache_type in CacheType::ALL {
            let expected = attend((scalar, cache_type, scoring), head_dim, first, n, seed, n);
            for k in all() {
                for together in [1, 2, n] {
                    let found = attend((k, cache_type, scoring), head_dim, first, n, seed, together);
                    prop_assert_eq!(bits(&found), bits(&expected), "{} {} at a time in {:?}", k.name(), together, cache_type);
                }
            }
        }
    }

    #[test]
    fn a_byte_and_its_scale_are_within_half_a_step(n in 1usize..100, seed: u64, exponent in -30i32..18) {
        let x: Vec<f32> = values(n, seed).iter().map(|v| v * 2f32.powi(exponent)).collect();
        let largest = x.iter().fold(0f32, |m, v| m.max(v.abs()));
        let mut expected = None;
        for k in all() {
            let mut q = vec![5; n.next_multiple_of(PANEL_ROWS)];
            let bits = k.to_q8(&x, &[], &mut q);
            let scale = half::f16::from_bits(bits).to_f32();
            // A scale that was rounded down: the largest value may be more than 127 steps.
            let step = scale + (largest - 127.0 * scale).max(0.0) * 2.0;
            prop_assert!((scale - largest / 127.0).abs() <= largest / 127.0 / 2048.0 + 2f32.powi(-25), "{scale}");
            for (x, &q) in x.iter().zip(&q) {
                prop_assert!((x - f32::from(q) * scale).abs() <= step * 0.501, "{x} is {q} of {scale}");
            }
            prop_assert!(q[n..].iter().all(|&q| q == 0));
            let found = (bits, q);
            prop_assert_eq!(&found, expected.get_or_insert_with(|| found.clone()), "{}", k.name());
        }
    }

    #[test]
    fn four_bits_and_their_scale_are_as_near_as_can_be(n in 1usize..100, seed: u64, exponent in -12i32..14) {
        let x: Vec<f32> = values(n, seed).iter().map(|v| v * 2f32.powi(exponent)).collect();
        let largest = x.iter().fold(0f32, |m, v| m.max(v.abs()));
        let error = |q: &[i8], scale: f32| x.iter().zip(q).map(|(x, &q)| (x - f32::from(q) * scale).powi(2)).sum::<f32>();
        let mut expected = None;
        for k in all() {
            let mut q = vec![5; n.next_multiple_of(PANEL_ROWS)];
            let bits = k.to_q4(&x, &mut q);
            let scale = half::f16::from_bits(bits).to_f32();
            // No worse than any of the steps that are tried: an eighth of the largest magnitude, of either sign, and less.
            for part in (0..8).flat_map(|i| [1, -1].map(|sign| sign as f32 * (1.0 - 0.06 * i as f32))) {
                // As f16 holds it: below 2^-14 that is another one.
                let step = half::f16::from_f32(largest / 8.0 * part).to_f32();
                let plain: Vec<i8> = x.iter().map(|x| (x / step).round().clamp(-8.0, 7.0) as i8).collect();
                prop_assert!(error(&q, scale) <= 1.01 * error(&plain, step) + 1e-4 * largest * largest, "{part}");
            }
            prop_assert!(q.iter().all(|q| (-8..=7).contains(q)) && q[n..].iter().all(|&q| q == 0));
            let found = (bits, q);
            prop_assert_eq!(&found, expected.get_or_insert_with(|| found.clone()), "{}", k.name());
        }
    }

    #[test]
    fn attention_in_bytes_is_as_near_as_its_steps(head_dim in 1usize..100, first in 0usize..300, seed: u64) {
        let scalar = *all().last().unwrap();
        let found = attend((scalar, CacheType::Q8, Scoring::scaled(SCALE)), head_dim, first, 1, seed, 1);
        let exact = attend((scalar, CacheType::F32, Scoring::scaled(SCALE)), head_dim, first, 1, seed, 1);
        let (q, kv) = operands(head_dim, first + 1, 1, seed);
        let largest = |x: &[f32]| x.iter().fold(0f32, |m, v| m.max(v.abs()));
        // A key is off by half a step in each dimension (and a rounded scale), the query by 2^-15 of its largest.
        let (mut off, mut most) = (0f32, 0f32);
        for row in kv.chunks_exact(2 * head_dim) {
            let step = largest(&row[..head_dim]) / 127.0 * 1.01;
            let sum = q.iter().map(|v| v.abs()).sum::<f32>();
            let query = largest(&q) / 32000.0 * row[..head_dim].iter().map(|v| v.abs()).sum::<f32>();
            off = off.max(SCALE * (step * 0.5 * sum + query));
            most = most.max(largest(&row[head_dim..]));
        }
        // Probabilities are then off by at most this factor, values by half a step, weights by 2^-14 of the largest.
        let bound = most * ((2.0 * off).exp_m1().min(2.0) + 0.51 / 127.0 + (first + 1) as f32 / 16000.0);
        for (a, b) in found.iter().zip(&exact) {
            prop_assert!((a - b).abs() <= bound, "{a} is not {b} within {bound}");
        }
    }
}

/// Pseudorandom bytes: scales that are NaN, infinite and -128, codes that no encoder writes.
fn bytes(n: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..n).map(next).collect()
}

fn matrix_of(quant: QuantType, rows: usize, cols: usize, data: &[u8]) -> Matrix {
    Matrix::new(quant, rows, cols, crate::storage::Bytes::copy_from(data)).unwrap()
}

/// Bits; a NaN is a NaN, whatever its sign and payload.
fn bits_but_of_nan(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() }).collect()
}

#[test]
fn extreme_bytes_have_the_same_product_on_every_isa() {
    let (rows, cols) = (20, 100);
    for quant in QuantType::INTEGER {
        let panel = quant.panel_bytes(cols).unwrap();
        for row_scale in [1.0, -1.0, f32::NAN, f32::INFINITY, f32::MAX, f32::MIN_POSITIVE / 4.0] {
            for byte in [0, 0x7f, 0x80, 0xff] {
                // Scales and codes: -128 everywhere, for one.
                let mut data = vec![byte; quant.matrix_bytes(rows, cols).unwrap()];
                for panel in data.chunks_exact_mut(panel) {
                    panel[..64].copy_from_slice(&row_scale.to_le_bytes().repeat(16));
                }
                let w = matrix_of(quant, rows, cols, &data);
                for tokens in [1, 3, 12, 20] {
                    let x = vec![1.0; tokens * cols];
                    let expected = product(*all().last().unwrap(), &w, &x, tokens, None, Epilogue::Store, 0.0);
                    for k in all() {
                        let found = product(k, &w, &x, tokens, None, Epilogue::Store, 0.0);
                        assert_eq!(
                            bits_but_of_nan(&found),
                            bits_but_of_nan(&expected),
                            "{} {quant} scales {row_scale}, bytes {byte}, {tokens} tokens",
                            k.name()
                        );
                    }
                    // Activations of 127 steps are exact, and so are these sums; padding is multiplied by zero.
                    if row_scale == 1.0 {
                        let mut row = vec![0.0; cols];
                        w.decode_row(0, &mut row);
                        let sum: f64 = row.iter().map(|&v| f64::from(v)).sum();
                        assert!(
                            (f64::from(expected[0]) - sum).abs() <= sum.abs() * 1e-5,
                            "{quant} {byte}: {} not {sum}",
                            expected[0]
                        );
                    }
                }
            }
        }
    }
}

/// What scores are multiplied by.
const SCALE: f32 = 0.3;

/// `[n][head_dim]` queries, and `[positions][2][head_dim]` keys and values, all of which are f16 numbers.
fn operands(head_dim: usize, positions: usize, n: usize, seed: u64) -> (Vec<f32>, Vec<f32>) {
    let kv = values(positions * 2 * head_dim, seed).into_iter().map(|v| half::f16::from_f32(v).to_f32());
    (values(n * head_dim, seed ^ 2), kv.collect())
}

/// Blocks of so many positions, of which few are seen.
fn sparse(block: usize, pattern: SparsePattern) -> Sparse {
    Sparse { block, local: 2, stride: 13, pattern, layers: None }
}

/// A spec of one layer with one head.
fn one_head(head_dim: usize) -> crate::spec::Spec {
    serde_json::from_value(serde_json::json!({
        "family": "test", "vocab_size": 50, "n_layers": 1, "d_model": 24, "context_length": 400,
        "position": { "kind": "learned" },
        "norm": { "kind": "layer_norm", "eps": 1e-5 },
        "attention": { "n_heads": 1, "n_kv_heads": 1, "head_dim": head_dim, "scale": SCALE,
            "scale_by_inverse_layer": false, "qkv_bias": true, "out_bias": true },
        "mlp": { "ffn_dim": 96, "activation": "gelu_erf", "bias": true },
        "residual": "sequential", "head": "untied",
    }))
    .unwrap()
}

/// Attention of `n` queries from position `first`, `together` at a time.
fn attend(
    (kernels, cache_type, scoring): (Kernels, CacheType, Scoring<'_>),
    head_dim: usize,
    first: usize,
    n: usize,
    seed: u64,
    together: usize,
) -> Vec<f32> {
    let positions = first + n;
    let (q, kv) = operands(head_dim, positions, n, seed);
    let mut pool = Pool::new(1).unwrap();
    let mut cache = KvCache::new(&one_head(head_dim), cache_type, positions).unwrap();
    let mut parts = [Part { cache: &mut cache, positions: 0..positions, row: 0, memory: None }];
    kv_cache::store((kernels, &mut pool), 0, &mut parts, (&kv, 2 * head_dim));
    let head = cache.head(0, 0);
    let mut out = vec![0.0; n * head_dim];
    pool.run_blocks(&mut out, head_dim, together, head_dim, &|rows, _, mut block| {
        kernels.attention((&q[rows.start * head_dim..], head_dim), first + rows.start, scoring, head, &mut block);
    });
    out
}

#[test]
fn attention_is_right() {
    let (head_dim, first, n, seed) = (20, 600, 3, 5);
    let (q, kv) = operands(head_dim, first + n, n, seed);
    let plain = Scoring::scaled(SCALE);
    let (values, buckets) = ([0.3, -1.0, 0.8], [2, 2, 0, 1, 1, 1, 0, 2]);
    let (strided, fixed) = (sparse(3, SparsePattern::Strided), sparse(30, SparsePattern::Fixed));
    let scorings = [
        plain,
        Scoring { sink: 1.5, ..plain },
        Scoring { sink: 90.0, window: 5, ..plain },
        Scoring { biases: Some(Biases { values: &values, buckets: &buckets, zero: 2, before: 0 }), ..plain },
        Scoring { sparse: Some(&strided), ..plain },
        // Whole chunks are not seen.
        Scoring { sparse: Some(&fixed), sink: 0.1, ..plain },
        Scoring { cap: 2.0, ..plain },
        Scoring { slope: 0.02, ..plain },
        Scoring { slope: 0.02, bf16: true, ..plain },
        // Across chunks, to the position; one that begins with a chunk, and a single key.
        Scoring { window: 300, ..plain },
        Scoring { window: 89, ..plain },
        Scoring { window: 1, ..plain },
        Scoring { cap: 5.0, slope: 0.01, window: 400, ..plain },
    ];
    let types = [(CacheType::F32, 3e-5), (CacheType::F16, 3e-5), (CacheType::Q8, 2e-3), (CacheType::Q4, 2e-3)];
    for ((cache_type, allowed), scoring) in types.into_iter().flat_map(|t| scorings.map(|s| (t, s))) {
        let found = attend((*all().last().unwrap(), cache_type, scoring), head_dim, first, n, seed, n);
        // What the cache holds: bytes of a scale for each key and each value.
        let kept: Vec<f64> = kv
            .chunks_exact(head_dim)
            .enumerate()
            .flat_map(|(i, x)| {
                let mut codes = vec![0; head_dim.next_multiple_of(PANEL_ROWS)];
                let step = half::f16::from_bits(all().last().unwrap().to_q4(x, &mut codes)).to_f64();
                let largest = x.iter().fold(0f32, |m, v| m.max(v.abs()));
                let scale = half::f16::from_f32(largest / 127.0).to_f64();
                x.iter().zip(codes).map(move |(&x, code)| {
                    let x = f64::from(x);
                    let in_bytes = (x / scale).round_ties_even().clamp(-127.0, 127.0) * scale;
                    match cache_type {
                        CacheType::F32 | CacheType::F16 => x,
                        CacheType::Q4 if i % 2 == 1 => f64::from(code) * step,
                        CacheType::Q8 | CacheType::Q4 => in_bytes,
                    }
                })
            })
            .collect();
        for i in 0..n {
            let row = |j: usize| &kept[j * 2 * head_dim..][..2 * head_dim];
            let score = |j: usize| {
                let dot: f64 = (0..head_dim).map(|d| f64::from(q[i * head_dim + d]) * row(j)[d]).sum();
                let scaled = dot * f64::from(SCALE);
                let cap = f64::from(scoring.cap);
                let capped = if cap > 0.0 { cap * (scaled / cap).tanh() } else { scaled };
                let slope = f64::from(scoring.slope);
                let capped = capped
                    + scoring.biases.map_or(0.0, |b| {
                        let distance = (first + i + b.zero - j).min(b.buckets.len() - 1);
                        f64::from(b.values[usize::from(b.buckets[distance])])
                    });
                if scoring.bf16 {
                    let round = |x: f64| half::bf16::from_f64(x).to_f64();
                    capped + round(round(slope) * j as f64) * f64::from(SCALE)
                } else {
                    capped + slope * (j as f64 - (first + i) as f64)
                }
            };
            let seen = (first + i + 1).saturating_sub(scoring.window)..=first + i;
            let visible = |&j: &usize| scoring.sparse.is_none_or(|s| s.sees(first + i, j));
            let seen: Vec<usize> = seen.filter(visible).collect();
            let weights: Vec<f64> = seen.iter().map(|&j| score(j).exp()).collect();
            let total = weights.iter().sum::<f64>() + f64::from(scoring.sink).exp();
            for d in 0..head_dim {
                let sum: f64 = weights.iter().zip(&seen).map(|(w, &j)| w * row(j)[head_dim + d]).sum();
                let exact = sum / total;
                let error = (f64::from(found[i * head_dim + d]) - exact).abs();
                assert!(error < allowed, "{cache_type:?}, {scoring:?}, query {i} dimension {d}: off by {error}");
            }
        }
    }
}

#[test]
fn chunks_of_which_no_query_sees_anything_are_not_read() {
    let (head_dim, first, n) = (20, 2000, 3);
    let (q, kv) = operands(head_dim, first + n, n, 9);
    for pattern in [SparsePattern::Strided, SparsePattern::Fixed] {
        let sparse = Sparse { block: 30, local: 2, stride: 40, pattern, layers: None };
        let scoring = Scoring { sparse: Some(&sparse), ..Scoring::scaled(SCALE) };
        let seen = |page: usize| {
            let chunk = page * KEYS / CHUNK * CHUNK;
            (0..n).any(|i| (chunk..(chunk + CHUNK).min(first + i + 1)).any(|key| sparse.sees(first + i, key)))
        };
        for (k, cache_type) in all().into_iter().flat_map(|k| CacheType::ALL.map(|t| (k, t))) {
            let mut pool = Pool::new(1).unwrap();
            let mut cache = KvCache::new(&one_head(head_dim), cache_type, first + n).unwrap();
            let mut parts = [Part { cache: &mut cache, positions: 0..first + n, row: 0, memory: None }];
            kv_cache::store((k, &mut pool), 0, &mut parts, (&kv, 2 * head_dim));
            let whole = cache.head(0, 0);
            // A page of a byte: to ask for what it should hold would be a panic.
            let page = |(i, page): (usize, &Page)| if seen(i) { page.clone() } else { Page::new(1).unwrap() };
            let pages: Vec<Page> = whole.pages.iter().enumerate().map(page).collect();
            let left_out = (0..pages.len()).filter(|&page| !seen(page)).count();
            assert_eq!(left_out, 6 * CHUNK / KEYS, "{pattern:?}");
            let mut attend = |pages: &[Page]| {
                let mut out = vec![0.0; n * head_dim];
                pool.run_blocks(&mut out, head_dim, n, head_dim, &|_, _, mut block| {
                    k.attention((&q, head_dim), first, scoring, HeadCache { pages, ..whole }, &mut block);
                });
                bits(&out)
            };
            assert_eq!(attend(&pages), attend(whole.pages), "{} {cache_type:?} {pattern:?}", k.name());
        }
    }
}

#[test]
fn damage_in_a_cache_of_bytes_shows() {
    let (head_dim, first) = (20, 70);
    for k in all() {
        let types = [CacheType::Q8, CacheType::Q4];
        let damage = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        for (bad, cache_type) in damage.into_iter().flat_map(|bad| types.map(|t| (bad, t))) {
            let mut q = vec![0; 32];
            let mut x = values(head_dim, 1);
            x[17] = bad;
            assert!(half::f16::from_bits(k.to_q8(&x, &[], &mut q)).is_nan(), "{} {bad}", k.name());
            assert!(half::f16::from_bits(k.to_q4(&x, &mut q)).is_nan(), "{} {bad} in 4 bits", k.name());
            let (q, mut kv) = operands(head_dim, first + 1, 1, 1);
            kv[30 * 2 * head_dim + head_dim + 3] = bad;
            let mut pool = Pool::new(1).unwrap();
            let mut cache = KvCache::new(&one_head(head_dim), cache_type, first + 1).unwrap();
            let mut parts = [Part { cache: &mut cache, positions: 0..first + 1, row: 0, memory: None }];
            kv_cache::store((k, &mut pool), 0, &mut parts, (&kv, 2 * head_dim));
            let mut out = vec![0.0; head_dim];
            pool.run_blocks(&mut out, head_dim, 1, head_dim, &|_, _, mut block| {
                k.attention((&q, head_dim), first, Scoring::scaled(SCALE), cache.head(0, 0), &mut block);
            });
            assert!(out.iter().all(|v| v.is_nan()), "{} {bad}", k.name());
        }
    }
}

#[test]
fn activations_are_right() {
    let x: Vec<f32> = (-1600..1600).map(|i| i as f32 / 100.0).collect();
    for kind in Activation::ALL {
        let mut y = x.clone();
        all()[0].activate(kind, &mut y);
        for (&x, &y) in x.iter().zip(&y) {
            let x = f64::from(x);
            let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
            let exact = match kind {
                Activation::Relu => x.max(0.0),
                Activation::ReluSquared => x.max(0.0).powi(2),
                Activation::GeluErf => 0.5 * x * libm::erfc(-x / std::f64::consts::SQRT_2),
                Activation::GeluTanh => {
                    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
                }
                Activation::GeluQuick => x * sigmoid(1.702 * x),
                Activation::Silu => x * sigmoid(x),
                Activation::Tanh => x.tanh(),
            };
            let error = (f64::from(y) - exact).abs();
            assert!(error <= 4e-7 * exact.abs().max(x.abs()).max(1.0), "{kind:?}({x}) is {y}, exactly {exact}");
        }
    }
}

#[test]
fn log_sum_exp_is_right_and_the_same_everywhere() {
    for n in [1, 15, 16, 255, 256, 300, 5000] {
        let x: Vec<f32> = values(n, 3).iter().map(|v| v * 5.0).collect();
        let exact = x.iter().map(|&v| f64::from(v).exp()).sum::<f64>().ln();
        let expected = all().last().unwrap().log_sum_exp(&x);
        assert!((expected - exact).abs() < 1e-6, "{n}: {expected} is not {exact}");
        for k in all() {
            assert_eq!(k.log_sum_exp(&x).to_bits(), expected.to_bits(), "{} {n}", k.name());
        }
    }
    assert!(!all()[0].log_sum_exp(&[]).is_finite());
}

#[test]
fn epilogues_add_and_activate() {
    for quant in QuantType::ALL {
        let w = Matrix::encode(quant, 20, 50, &values(1000, 1)).unwrap();
        for k in all() {
            for tokens in [1, 9] {
                let x = values(tokens * 50, 2);
                let plain = product(k, &w, &x, tokens, None, Epilogue::Store, 5.0);
                let added = product(k, &w, &x, tokens, None, Epilogue::Add, 5.0);
                let relu = product(k, &w, &x, tokens, None, Epilogue::Activate(Activation::Relu), 5.0);
                for i in 0..plain.len() {
                    assert_eq!(added[i].to_bits(), (plain[i] + 5.0).to_bits(), "{quant} {}", k.name());
                    assert_eq!(relu[i], plain[i].max(0.0), "{quant} {}", k.name());
                }
            }
        }
    }
}

#[test]
fn extreme_activations_neither_overflow_nor_vanish() {
    for quant in [QuantType::Q8, QuantType::Q4] {
        let w = Matrix::encode(quant, 16, 64, &[1.0; 1024]).unwrap();
        for k in all() {
            for (value, expected) in [(1e30f32, 64e30), (-1e-30, -64e-30), (0.0, 0.0)] {
                for tokens in [1, 8] {
                    let out = product(k, &w, &vec![value; 64 * tokens], tokens, None, Epilogue::Store, 0.0);
                    assert!(
                        out.iter().all(|v| (v - expected).abs() <= expected.abs() * 0.02),
                        "{quant} {} {value}",
                        k.name()
                    );
                }
            }
            for bad in [f32::NAN, f32::INFINITY] {
                let mut x = vec![1.0; 64];
                x[40] = bad;
                let out = product(k, &w, &x, 1, None, Epilogue::Store, 0.0);
                assert!(out.iter().all(|v| !v.is_finite()), "{quant} {}: {bad} must show", k.name());
            }
        }
    }
}

#[test]
fn the_forced_isa_is_the_one_that_runs() {
    let w = Matrix::encode(QuantType::Q4, 16, 32, &values(512, 1)).unwrap();
    for k in all() {
        let chosen = choose(Some(k.name().as_ref())).unwrap();
        assert_eq!(chosen.name(), k.name());
        let before = chosen.products_so_far();
        product(chosen, &w, &values(32, 2), 1, None, Epilogue::Store, 0.0);
        assert!(chosen.products_so_far() > before, "{} did not run", k.name());
    }
    let error = choose(Some("mmx".as_ref())).unwrap_err().to_string();
    assert!(error.starts_with("TIDBIT_ISA is \"mmx\", this processor runs: ") && error.ends_with("scalar"), "{error}");
}

/// The variable is set where the processor is known: under qemu, by `tests/aarch64.sh`.
#[test]
fn the_best_isa_of_a_known_processor_is_chosen() {
    match std::env::var("TIDBIT_TEST_BEST_ISA") {
        Ok(best) => assert_eq!(choose(None).unwrap().name(), best),
        Err(_) => println!("skipped: TIDBIT_TEST_BEST_ISA is not set"),
    }
}
