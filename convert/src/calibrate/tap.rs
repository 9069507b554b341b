//! A backend that watches what goes into matrices.

use super::hessian::Hessian;
use std::collections::BTreeMap;
use std::ops::Range;
use tidbit_runtime::backend::{Backend, CacheType, Chosen, Cpu, Epilogue, Part};
use tidbit_runtime::error::SessionError;
use tidbit_runtime::kv_cache::KvCache;
use tidbit_runtime::model::{Linear, NormWeights, ScoreWeights};
use tidbit_runtime::ops::Buffer;
use tidbit_runtime::quant::Matrix;
use tidbit_runtime::spec::{FeatureMap, NormKind, Rotary, Sinusoidal, Spec};

/// The processor, and the inputs of some products, summed up.
pub(crate) struct Tapped {
    pub(crate) cpu: Cpu,
    /// By the address of the product's weights.
    taps: BTreeMap<usize, [Hessian; 2]>,
    /// Whether inputs count as held out.
    pub(crate) held_out: bool,
}

impl Tapped {
    pub(crate) fn new(cpu: Cpu) -> Self {
        Self { cpu, taps: BTreeMap::new(), held_out: false }
    }

    /// From now on, inputs of `linear` are summed up.
    pub(crate) fn watch(&mut self, linear: &Linear) -> Result<(), SessionError> {
        let n = linear.weight.cols();
        self.taps.insert(address(linear), [Hessian::new(n)?, Hessian::new(n)?]);
        Ok(())
    }

    /// What was summed up, and what of it was held out. Ends it.
    ///
    /// # Panics
    /// When it was not watched.
    pub(crate) fn take(&mut self, linear: &Linear) -> [Hessian; 2] {
        self.taps.remove(&address(linear)).expect("it was watched")
    }

    /// Rows of a buffer that go into `linear` are summed up, if that is wanted.
    pub(crate) fn see(&mut self, linear: &Linear, x: &Buffer, tokens: Range<usize>) {
        if let Some(hessians) = self.taps.get_mut(&address(linear)) {
            hessians[usize::from(self.held_out)].add(self.cpu.device(), x, tokens);
        }
    }
}

fn address(linear: &Linear) -> usize {
    std::ptr::from_ref(linear).addr()
}

impl Backend for Tapped {
    type Buffer = Buffer;
    type Cache = KvCache;

    fn linear(&mut self, linear: &Linear, x: &Buffer, tokens: Range<usize>, epilogue: Epilogue, out: &mut Buffer) {
        self.see(linear, x, tokens.clone());
        self.cpu.linear(linear, x, tokens, epilogue, out);
    }

    fn buffer(&self, max_tokens: usize, cols: usize) -> Result<Buffer, SessionError> {
        self.cpu.buffer(max_tokens, cols)
    }
    fn cache(&self, spec: &Spec, cache_type: CacheType, context: usize) -> Result<KvCache, SessionError> {
        self.cpu.cache(spec, cache_type, context)
    }
    fn embed(&mut self, tokens: (&Matrix, f32), ids: &[u32], out: &mut Buffer) {
        self.cpu.embed(tokens, ids, out);
    }
    fn embed_positions(&mut self, places: &Matrix, positions: &[usize], out: &mut Buffer) {
        self.cpu.embed_positions(places, positions, out);
    }
    fn embed_sinusoids(&mut self, of: &Sinusoidal, positions: &[usize], out: &mut Buffer) {
        self.cpu.embed_sinusoids(of, positions, out);
    }
    fn scale(&mut self, x: &mut Buffer, n_tokens: usize, factor: f32) {
        self.cpu.scale(x, n_tokens, factor);
    }
    fn norm(&mut self, norm: (NormKind, f32, &NormWeights), x: (&Buffer, Range<usize>), out: (&mut Buffer, usize)) {
        self.cpu.norm(norm, x, out);
    }
    fn add(&mut self, x: &Buffer, n_tokens: usize, out: &mut Buffer) {
        self.cpu.add(x, n_tokens, out);
    }
    fn copy(&mut self, x: (&Buffer, Range<usize>), out: (&mut Buffer, usize)) {
        self.cpu.copy(x, out);
    }
    fn clip(&mut self, x: &mut Buffer, n_tokens: usize, most: f32) {
        self.cpu.clip(x, n_tokens, most);
    }
    fn softcap(&mut self, x: &mut Buffer, n_tokens: usize, cap: f32) {
        self.cpu.softcap(x, n_tokens, cap);
    }
    fn norm_heads(&mut self, spec: &Spec, weights: &[NormWeights; 2], qkv: &mut Buffer, n_tokens: usize) {
        self.cpu.norm_heads(spec, weights, qkv, n_tokens);
    }
    fn choose(&self, scores: &Buffer, n_tokens: usize, of: (usize, bool)) -> Vec<Chosen> {
        self.cpu.choose(scores, n_tokens, of)
    }
    fn gather(&mut self, x: &Buffer, rows: &[(usize, f32)], out: &mut Buffer) {
        self.cpu.gather(x, rows, out);
    }
    fn scatter(&mut self, x: &Buffer, rows: &[(usize, f32)], out: &mut Buffer) {
        self.cpu.scatter(x, rows, out);
    }
    fn rotate(&mut self, rotary: &Rotary, x: &mut Buffer, positions: &[usize], n_heads: usize, head_dim: usize) {
        self.cpu.rotate(rotary, x, positions, n_heads, head_dim);
    }
    fn reserve(&self, cache: &mut KvCache, positions: Range<usize>) -> Result<(), SessionError> {
        self.cpu.reserve(cache, positions)
    }
    fn store(&mut self, spec: &Spec, parts: &mut [Part<'_>], layer: usize, qkv: &Buffer) {
        self.cpu.store(spec, parts, layer, qkv);
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
        self.cpu.attend(spec, scores, parts, layer, qkv, out);
    }
    fn remember(&mut self, memory: &mut KvCache, layer: usize, kv: &Buffer, n_tokens: usize) {
        self.cpu.remember(memory, layer, kv, n_tokens);
    }
    fn attend_memory(&mut self, spec: &Spec, parts: &[Part<'_>], layer: usize, queries: &Buffer, out: &mut Buffer) {
        self.cpu.attend_memory(spec, parts, layer, queries, out);
    }
    fn attend_linearly(
        &mut self,
        of: (&Spec, FeatureMap),
        parts: &mut [Part<'_>],
        layer: usize,
        qkv: &Buffer,
        out: &mut Buffer,
    ) {
        self.cpu.attend_linearly(of, parts, layer, qkv, out);
    }
    fn read<'a>(&self, buffer: &'a Buffer, row: usize) -> &'a [f32] {
        self.cpu.read(buffer, row)
    }
}
