//! The processor: kernels spread over a pool of threads.

use super::{Backend, CacheType, Chosen, Epilogue, Part};
use crate::error::SessionError;
use crate::kernels::{Biases, Kernels, Scoring};
use crate::kv_cache::{self, KvCache};
use crate::model::{Linear, Model, NormWeights, ScoreWeights};
use crate::ops::{self, Buffer, MatmulScratch, RelativeKeys, Rotation, Sees};
use crate::quant::Matrix;
use crate::spec::{Activation, Alibi, FeatureMap, NormKind, Position, QkNormOver, Rotary, Sinusoidal, Spec};
use crate::threads::Pool;
use std::ops::Range;

/// Kernels, threads and scratch memory of one session.
pub struct Cpu {
    kernels: Kernels,
    pool: Pool,
    scratch: MatmulScratch,
    /// One for each way to turn that there is in a model.
    rotations: Vec<Rotation>,
    /// By query head; empty without `ALiBi`.
    slopes: Vec<f32>,
}

impl Cpu {
    /// A device for batches of up to `max_tokens` of a model.
    ///
    /// # Errors
    /// When threads or memory cannot be had.
    pub fn new(kernels: Kernels, n_threads: usize, model: &Model, max_tokens: usize) -> Result<Self, SessionError> {
        let spec = model.spec();
        let rotations = rotaries(spec).map(|rotary| Rotation::new(rotary, max_tokens)).collect::<Result<_, _>>()?;
        let slopes = match &spec.position {
            Position::Alibi(alibi) => slopes(alibi, spec.attention.n_heads),
            _ => Vec::new(),
        };
        let mut pool = Pool::new(n_threads).map_err(SessionError::Spawn)?;
        if let Position::TransformerXl(of) = &spec.position {
            let layers = model.weights().layers.iter().filter_map(|layer| layer.scores.keys.as_deref());
            RelativeKeys::prepare(layers, (kernels, &mut pool), (of, spec.d_model))?;
        }
        Ok(Self { kernels, pool, scratch: MatmulScratch::new(max_tokens, widest(spec))?, rotations, slopes })
    }

    /// The kernels in use.
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// The kernels and the threads, for what is not an operation of a backend.
    pub fn device(&mut self) -> (Kernels, &mut Pool) {
        (self.kernels, &mut self.pool)
    }

    /// Threads in use.
    pub fn n_threads(&self) -> usize {
        self.pool.n_threads()
    }

    /// Bytes of scratch memory.
    pub fn scratch_bytes(&self) -> usize {
        let positions = |r: &Rotation| Rotation::bytes_of(r.rotary(), r.max_tokens());
        self.scratch.bytes() + self.rotations.iter().map(positions).sum::<usize>()
    }

    /// Bytes of scratch memory of a device for batches of up to `max_tokens`.
    pub fn scratch_bytes_of(spec: &Spec, max_tokens: usize) -> usize {
        let positions = rotaries(spec).map(|rotary| Rotation::bytes_of(rotary, max_tokens));
        positions.fold(MatmulScratch::bytes_of(max_tokens, widest(spec)), usize::saturating_add)
    }
}

/// The rotary positions of all layers, and those of layers with a window if they have their own.
fn rotaries(spec: &Spec) -> impl Iterator<Item = &Rotary> {
    let usual = match &spec.position {
        Position::Rotary(rotary) => Some(rotary),
        Position::Learned
        | Position::Sinusoidal(_)
        | Position::Alibi(_)
        | Position::RelativeBias(_)
        | Position::TransformerXl(_)
        | Position::None => None,
    };
    usual.into_iter().chain(spec.attention.window.as_ref().and_then(|w| w.rotary.as_ref()))
}

/// The most columns that a product of this architecture has.
fn widest(spec: &Spec) -> usize {
    spec.d_model.max(spec.mlp.widest(spec.n_layers)).max(spec.attention.n_heads * spec.attention.head_dim)
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

    fn embed(&mut self, tokens: (&Matrix, f32), ids: &[u32], out: &mut Buffer) {
        ops::embed(&mut self.pool, tokens, ids, out);
    }

    fn embed_positions(&mut self, places: &Matrix, positions: &[usize], out: &mut Buffer) {
        ops::embed_positions(&mut self.pool, places, positions, out);
    }

    fn embed_sinusoids(&mut self, of: &Sinusoidal, positions: &[usize], out: &mut Buffer) {
        ops::embed_sinusoids(&mut self.pool, of, positions, out);
    }

    fn norm(
        &mut self,
        (kind, eps, weights): (NormKind, f32, &NormWeights),
        x: (&Buffer, Range<usize>),
        out: (&mut Buffer, usize),
    ) {
        ops::norm((self.kernels, &mut self.pool), (kind, eps, (&weights.gain, &weights.bias)), x, out);
    }

    fn add(&mut self, x: &Buffer, n_tokens: usize, out: &mut Buffer) {
        ops::add(&mut self.pool, (x, n_tokens), out);
    }

    fn copy(&mut self, x: (&Buffer, Range<usize>), out: (&mut Buffer, usize)) {
        ops::copy(x, out);
    }

    fn scale(&mut self, x: &mut Buffer, n_tokens: usize, factor: f32) {
        ops::each_row(&mut self.pool, (x, n_tokens), &|_, row| {
            for x in &mut *row {
                *x *= factor;
            }
        });
    }

    fn clip(&mut self, x: &mut Buffer, n_tokens: usize, most: f32) {
        ops::each_row(&mut self.pool, (x, n_tokens), &|_, row| {
            for x in &mut *row {
                *x = x.clamp(-most, most);
            }
        });
    }

    fn softcap(&mut self, x: &mut Buffer, n_tokens: usize, cap: f32) {
        let kernels = self.kernels;
        ops::each_row(&mut self.pool, (x, n_tokens), &|_, row| {
            for x in &mut *row {
                *x *= 1.0 / cap;
            }
            kernels.activate(Activation::Tanh, row);
            for x in &mut *row {
                *x *= cap;
            }
        });
    }

    fn norm_heads(&mut self, spec: &Spec, weights: &[NormWeights; 2], qkv: &mut Buffer, n_tokens: usize) {
        let (a, mut start) = (&spec.attention, 0);
        let Some(qk) = &a.qk_norm else { return };
        for (weights, n_heads) in weights.iter().zip([a.n_heads, a.n_kv_heads]) {
            let cols = start..start + n_heads * a.head_dim;
            let group = if qk.over == QkNormOver::AllHeads { cols.len() } else { a.head_dim };
            let each = qk.over != QkNormOver::Head;
            let norm = (qk.kind, qk.eps, (&weights.gain[..], &weights.bias[..]));
            start = cols.end;
            ops::norm_groups((self.kernels, &mut self.pool), norm, (&mut *qkv, n_tokens), (cols, group, each));
        }
    }

    fn linear(&mut self, linear: &Linear, x: &Buffer, tokens: Range<usize>, epilogue: Epilogue, out: &mut Buffer) {
        let device = (self.kernels, &mut self.pool);
        ops::matmul(device, &mut self.scratch, (&linear.weight, linear.bias.as_deref()), (x, tokens), epilogue, out);
    }

    fn choose(&self, scores: &Buffer, n_tokens: usize, (used, renormalized): (usize, bool)) -> Vec<Chosen> {
        (0..n_tokens).flat_map(|row| choose(row, scores.row(row), used, renormalized)).collect()
    }

    fn gather(&mut self, x: &Buffer, rows: &[(usize, f32)], out: &mut Buffer) {
        ops::each_row(&mut self.pool, (out, rows.len()), &|i, out| {
            let (row, _) = rows[i];
            out.copy_from_slice(x.rows(row..row + 1));
        });
    }

    fn scatter(&mut self, x: &Buffer, rows: &[(usize, f32)], out: &mut Buffer) {
        for (i, &(row, weight)) in rows.iter().enumerate() {
            let sums = out.rows_mut(row..row + 1);
            sums.iter_mut().zip(x.row(i)).for_each(|(sum, x)| *sum = weight.mul_add(*x, *sum));
        }
    }

    fn rotate(&mut self, rotary: &Rotary, x: &mut Buffer, positions: &[usize], n_heads: usize, head_dim: usize) {
        let rotation = self.rotations.iter_mut().find(|r| r.rotary() == rotary).expect("one of the model's");
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

    fn attend(
        &mut self,
        spec: &Spec,
        scores: &ScoreWeights,
        parts: &[Part<'_>],
        layer: usize,
        qkv: &Buffer,
        out: &mut Buffer,
    ) {
        let a = &spec.attention;
        let all = Scoring {
            cap: a.softcap.unwrap_or(0.0),
            bf16: matches!(&spec.position, Position::Alibi(alibi) if alibi.bf16),
            sparse: a.sparse_of(layer),
            window: a.window_of(layer).map_or(usize::MAX, |window| window.size),
            ..Scoring::scaled(a.scale_of(layer))
        };
        let relative = scores.relative.as_deref();
        let scoring = |head: usize| Scoring {
            slope: self.slopes.get(head).copied().unwrap_or(0.0),
            biases: relative.map(|r| Biases { values: &r.by_head[head], buckets: &r.buckets, zero: r.zero, before: 0 }),
            sink: scores.sinks.get(head).copied().unwrap_or(f32::NEG_INFINITY),
            ..all
        };
        let heads = (a.n_heads, a.n_kv_heads);
        let sees = if a.causal { Sees::Before } else { Sees::Text };
        let keys = scores.keys.as_deref();
        ops::attention((self.kernels, &mut self.pool), (parts, layer, sees), heads, &scoring, keys, qkv, out);
    }

    fn remember(&mut self, memory: &mut KvCache, layer: usize, kv: &Buffer, n_tokens: usize) {
        let parts = &mut [Part { cache: memory, positions: 0..n_tokens, row: 0, memory: None }];
        let rows = (kv.rows(0..n_tokens), kv.stride());
        kv_cache::store((self.kernels, &mut self.pool), layer, parts, rows);
    }

    fn attend_memory(&mut self, spec: &Spec, parts: &[Part<'_>], layer: usize, queries: &Buffer, out: &mut Buffer) {
        let a = &spec.attention;
        let scoring = Scoring { cap: a.softcap.unwrap_or(0.0), ..Scoring::scaled(a.scale_of(layer)) };
        let heads = (a.n_heads, a.n_kv_heads);
        let device = (self.kernels, &mut self.pool);
        ops::attention(device, (parts, layer, Sees::Memory), heads, &|_| scoring, None, queries, out);
    }

    fn attend_linearly(
        &mut self,
        (spec, map): (&Spec, FeatureMap),
        parts: &mut [Part<'_>],
        layer: usize,
        qkv: &Buffer,
        out: &mut Buffer,
    ) {
        let heads = (spec.attention.n_heads, spec.attention.n_kv_heads);
        ops::linear_attention(&mut self.pool, map, (parts, layer), heads, qkv, out);
    }

    fn read<'a>(&self, buffer: &'a Buffer, row: usize) -> &'a [f32] {
        buffer.row(row)
    }
}

/// The experts that a row of scores likes best: softmax over all of them, equal ones in order of their numbers.
fn choose(row: usize, scores: &[f32], used: usize, renormalized: bool) -> Vec<Chosen> {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // `libm`, because the system's functions differ between systems in the last digit.
    let likes: Vec<f32> = scores.iter().map(|s| libm::expf(s - largest)).collect();
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| likes[b].total_cmp(&likes[a]));
    order.truncate(used);
    let among: f32 = if renormalized { order.iter().map(|&e| likes[e]).sum() } else { likes.iter().sum() };
    order.into_iter().map(|expert| Chosen { row, expert, weight: likes[expert] / among }).collect()
}

/// The slopes of `n_heads` heads.
fn slopes(alibi: &Alibi, n_heads: usize) -> Vec<f32> {
    let n = n_heads.next_power_of_two();
    // `libm`, because the system's functions differ between systems in the last digit.
    let slope = |i: usize| libm::exp2(-f64::from(alibi.max_bias) * i as f64 / n as f64) as f32;
    if n == n_heads {
        return (1..=n).map(slope).collect();
    }
    // Those of the next smaller power of two, then those between.
    let (even, odd) = ((2..=n).step_by(2), (1..=n).step_by(2));
    even.chain(odd).take(n_heads).map(slope).collect()
}
