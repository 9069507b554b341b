//! Kernels by themselves, on one thread: `cargo bench --bench kernels`.
//!
//! Matrix-vector products report bytes of weights per second, to be read against `ceiling/read`; products with many
//! tokens report multiply-adds per second, against `ceiling/multiply` (q8 to q2); encoders report weights per second.
//! `tidbit bench` measures whole models.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use tidbit_runtime::kernels::{self, ActBlock, Element, Epilogue, Input, Layout, Source};
use tidbit_runtime::quant::{BLOCK, Matrix, PANEL_ROWS, QuantType};
use tidbit_runtime::threads::Pool;

/// The feed-forward matrix of GPT-2 124M.
const ROWS: usize = 3072;
const COLS: usize = 768;

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 % 2003) as f32 / 1001.0) - 1.0).collect()
}

fn products(c: &mut Criterion) {
    for tokens in [1, 128] {
        let mut group = c.benchmark_group(if tokens == 1 { "gemv" } else { "gemm" });
        for quant in QuantType::ALL {
            let w = Matrix::encode(quant, ROWS, COLS, &values(ROWS * COLS)).expect("finite values");
            let x = values(tokens * COLS);
            for k in kernels::supported().into_iter().filter(|k| k.name() != "scalar") {
                let mut blocks = vec![ActBlock::ZERO; tokens * COLS.div_ceil(BLOCK)];
                for (x, blocks) in x.chunks(COLS).zip(blocks.chunks_mut(COLS.div_ceil(BLOCK))) {
                    k.quantize(x, blocks);
                }
                let input = if quant.is_integer() { Input::Int(&blocks) } else { Input::Float { x: &x, stride: COLS } };
                let width = w.n_panels() * PANEL_ROWS;
                let mut out = vec![0.0; tokens * width];
                let mut pool = Pool::new(1).expect("no thread is started");
                group.throughput(if tokens == 1 {
                    Throughput::Bytes(w.bytes().len() as u64)
                } else {
                    Throughput::Elements((ROWS * COLS * tokens) as u64)
                });
                group.bench_function(BenchmarkId::new(quant.name(), k.name()), |b| {
                    b.iter(|| {
                        pool.run_blocks(&mut out, width, tokens, width, &|_, _, mut block| {
                            k.gemm(&w, 0..w.n_panels(), input, None, Epilogue::Store, &mut block);
                        });
                    });
                });
            }
        }
        group.finish();
    }
}

fn ceilings(c: &mut Criterion) {
    let mut group = c.benchmark_group("ceiling");
    // As many bytes as the q4 matrix above, so that both live in the same cache.
    let bytes = vec![1u8; QuantType::Q4.matrix_bytes(ROWS, COLS).expect("a small matrix")];
    for k in kernels::supported().into_iter().filter(|k| k.name() != "scalar") {
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(BenchmarkId::new("read", k.name()), |b| b.iter(|| black_box(k.read(black_box(&bytes)))));
        group.throughput(Throughput::Elements(k.multiply(1 << 20)));
        group.bench_function(BenchmarkId::new("multiply", k.name()), |b| b.iter(|| black_box(k.multiply(1 << 20))));
    }
    group.finish();
}

fn encoders(c: &mut Criterion) {
    let values = values(ROWS * COLS);
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let starts: Vec<usize> = (0..ROWS).map(|row| row * COLS).collect();
    let layouts = [("rows", Layout::Rows { starts: &starts }), ("columns", Layout::Columns { first: 0, stride: ROWS })];
    let mut group = c.benchmark_group("encode");
    group.throughput(Throughput::Elements((ROWS * COLS) as u64));
    for quant in QuantType::INTEGER {
        let mut panels = vec![0; quant.matrix_bytes(ROWS, COLS).expect("a small matrix")];
        for k in kernels::supported().into_iter().filter(|k| k.name() != "scalar") {
            for (name, layout) in layouts {
                let source = Source { bytes: &bytes, element: Element::F32, layout };
                group.bench_function(BenchmarkId::new(format!("{quant} from {name}"), k.name()), |b| {
                    b.iter(|| k.encode(quant, &source, [ROWS, COLS], &mut panels).expect("finite values"));
                });
            }
        }
    }
    group.finish();
}

criterion_group!(benches, products, encoders, ceilings);
criterion_main!(benches);
