//! Caches that hold no more than a window, against such that hold everything.

mod support;

use std::sync::atomic::AtomicBool;
use support::models;
use tidbit_runtime::backend::{Backend, Cpu, Part};
use tidbit_runtime::engine::{Engine, EngineOptions, Feed};
use tidbit_runtime::error::SessionError;
use tidbit_runtime::forward::{self, Activations, Batch};
use tidbit_runtime::kernels;
use tidbit_runtime::kv_cache::{CacheType, KvCache};
use tidbit_runtime::model::Model;
use tidbit_runtime::saved;
use tidbit_runtime::sequence::{Sequence, SequenceOptions};
use tidbit_runtime::spec::{Spec, Window};

/// Three layers, of which `layers` have a window.
fn spec(size: usize, layers: Option<Vec<usize>>) -> Spec {
    let mut spec = models::spec();
    (spec.n_layers, spec.context_length) = (3, 32_768);
    spec.attention.window = Some(Window { size, layers, rotary: None });
    spec
}

/// Both kinds: a window in all layers, and in some.
fn specs() -> [Spec; 2] {
    [spec(100, None), spec(100, Some(vec![0, 2]))]
}

fn text(n: usize) -> Vec<u32> {
    (0..n).map(|i| (models::mix(i as u64) % 50) as u32).collect()
}

fn options(cache_type: CacheType) -> SequenceOptions {
    SequenceOptions { context: None, cache_type: Some(cache_type) }
}

/// A model with a cache that holds all positions.
struct Whole {
    model: Model,
    backend: Cpu,
    acts: Activations<Cpu>,
    cache: KvCache,
    position: usize,
}

impl Whole {
    fn new(model: &Model, cache_type: CacheType, context: usize) -> Self {
        let backend = Cpu::new(kernels::active().unwrap(), 1, model, 128).unwrap();
        let acts = Activations::new(&backend, model.spec(), 128).unwrap();
        let cache = KvCache::new(model.spec(), cache_type, context).unwrap();
        Self { model: model.clone(), backend, acts, cache, position: 0 }
    }

    /// Logits after the last token.
    fn append(&mut self, ids: &[u32]) -> Vec<u32> {
        let mut rows = 0;
        for ids in ids.chunks(128) {
            let all = self.position..self.position + ids.len();
            let positions: Vec<usize> = all.clone().collect();
            let mut parts = [Part { cache: &mut self.cache, positions: all.clone(), row: 0, memory: None }];
            let batch = Batch { ids, positions: &positions, parts: &mut parts };
            forward::forward(&mut self.backend, &self.model, &mut self.acts, batch, &AtomicBool::new(false)).unwrap();
            (self.position, rows) = (all.end, ids.len());
        }
        let mut finished = self.backend.buffer(1, self.model.spec().d_model).unwrap();
        let mut logits = self.backend.buffer(1, self.model.spec().vocab_size).unwrap();
        forward::finish(&mut self.backend, &self.model, &self.acts, rows - 1..rows, (&mut finished, 0));
        forward::logits(&mut self.backend, &self.model, &mut self.acts, (&finished, 1), &mut logits);
        bits(logits.row(0))
    }
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}

fn step(engine: &mut Engine, sequence: &mut Sequence, ids: &[u32]) -> Vec<u32> {
    bits(engine.step(&mut [Feed::new(sequence, ids)]).unwrap().row(0))
}

fn engine(model: &Model) -> Engine {
    Engine::new(model, &EngineOptions { threads: Some(1), max_batch: None }).unwrap()
}

#[test]
fn twenty_thousand_tokens_take_the_memory_of_a_window() {
    const N: usize = 20_000;
    let ids = text(N);
    let mut spec = spec(100, None);
    (spec.n_layers, spec.mlp.ffn_dim) = (2, 24);
    let model = models::model(&spec, 1);
    let mut whole = Whole::new(&model, CacheType::F32, N);
    let mut sequence = Sequence::new(&model, &options(CacheType::F32)).unwrap();
    assert!(sequence.context() > N);
    let (mut engine, before) = (engine(&model), resident());
    // A prompt longer than the window, then token by token.
    assert_eq!(step(&mut engine, &mut sequence, &ids[..1000]), whole.append(&ids[..1000]));
    let bytes = sequence.cache_bytes();
    for (i, id) in ids.iter().enumerate().skip(1000) {
        let found = step(&mut engine, &mut sequence, &[*id]);
        assert_eq!(found, whole.append(&[*id]), "after token {i}");
    }
    let head = spec.attention.n_kv_heads * CacheType::F32.head_bytes(spec.attention.head_dim);
    // The window and a batch are 228 positions, in 4 pages and the one they begin in.
    assert_eq!((bytes, sequence.cache_bytes()), (5 * 64 * 2 * head, 5 * 64 * 2 * head));
    assert_eq!(whole.cache.bytes(), N.next_multiple_of(64) * 2 * head);
    if let (Some(before), Some(after)) = (before, resident()) {
        // What the other cache took, and no more than a megabyte beside it.
        let grown = after.saturating_sub(before);
        assert!(grown < whole.cache.bytes() + (1 << 20), "{grown} bytes more are resident");
    }
}

/// Bytes of memory in use, where the system tells.
fn resident() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(status.split(' ').nth(1)?.parse::<usize>().ok()? * 4096)
}

#[test]
fn prompts_of_any_length_are_exact_in_every_kind_of_cache() {
    let ids = text(1500);
    for spec in specs() {
        let model = models::model(&spec, 2);
        let mut engine = engine(&model);
        for cache_type in CacheType::ALL {
            let mut whole = Whole::new(&model, cache_type, ids.len());
            let mut sequence = Sequence::new(&model, &options(cache_type)).unwrap();
            let mut done = 0;
            for n in [1, 63, 200, 1, 128, 129, 700, 1, 1, 64, 65] {
                let ids = &ids[done..done + n];
                assert_eq!(step(&mut engine, &mut sequence, ids), whole.append(ids), "{cache_type:?} {n} after {done}");
                done += n;
            }
        }
    }
}

#[test]
fn texts_of_windowed_models_run_together_as_alone() {
    let model = models::model(&specs()[1], 3);
    let mut engine = engine(&model);
    let ids = text(600);
    let lengths = [300, 1, 450, 30];
    let alone: Vec<_> = lengths
        .iter()
        .map(|&n| step(&mut engine, &mut Sequence::new(&model, &options(CacheType::F32)).unwrap(), &ids[..n]))
        .collect();
    let mut texts: Vec<_> = lengths.iter().map(|_| Sequence::new(&model, &options(CacheType::F32)).unwrap()).collect();
    let mut feeds: Vec<_> = texts.iter_mut().zip(lengths).map(|(text, n)| Feed::new(text, &ids[..n])).collect();
    let together = engine.step(&mut feeds).unwrap();
    for (i, alone) in alone.iter().enumerate() {
        assert_eq!(&bits(together.row(i)), alone, "text {i}");
    }
}

#[test]
fn forks_and_saved_texts_go_on_as_the_text_does() {
    let ids = text(900);
    for spec in specs() {
        let model = models::model(&spec, 4);
        let mut engine = engine(&model);
        for n in [50, 100, 640, 700] {
            for cache_type in CacheType::ALL {
                let mut sequence = Sequence::new(&model, &options(cache_type)).unwrap();
                step(&mut engine, &mut sequence, &ids[..n]);
                let mut fork = sequence.fork().unwrap();
                let text = saved::Text { tokens: ids[..n].to_vec(), ..saved::Text::default() };
                let mut bytes = Vec::new();
                saved::write(&sequence, &text, &mut bytes).unwrap();
                assert_eq!(bytes.len(), saved::len(&sequence, n));
                let (mut restored, same) = saved::read(&sequence, &bytes).unwrap();
                assert_eq!(same, text);
                // A cache with as many pages as the context needs is another one inside.
                let short =
                    Sequence::new(&model, &SequenceOptions { context: Some(900), ..options(cache_type) }).unwrap();
                let (mut other, _) = saved::read(&short, &bytes).unwrap();
                let expected = step(&mut engine, &mut sequence, &ids[n..900]);
                for (what, text) in [("fork", &mut fork), ("restored", &mut restored), ("other", &mut other)] {
                    assert_eq!(step(&mut engine, text, &ids[n..900]), expected, "{what}: {n} tokens, {cache_type:?}");
                }
            }
        }
    }
}

#[test]
fn texts_are_taken_back_as_far_as_the_cache_reaches() {
    let ids = text(1000);
    for spec in specs() {
        let model = models::model(&spec, 5);
        let mut engine = engine(&model);
        let mut sequence = Sequence::new(&model, &options(CacheType::F32)).unwrap();
        step(&mut engine, &mut sequence, &ids[..1000]);
        // As many tokens as are added at once, at least.
        for back in [1, 64, 128] {
            let position = 1000 - back;
            assert_eq!(sequence.resume_point(position), position);
            sequence.rewind(position);
            let mut whole = Whole::new(&model, CacheType::F32, 1000);
            whole.append(&ids[..position]);
            assert_eq!(
                step(&mut engine, &mut sequence, &ids[..back]),
                whole.append(&ids[..back]),
                "{back} tokens back"
            );
        }
        assert_eq!(sequence.resume_point(500), 0);
        sequence.rewind(500);
        let error = engine.step(&mut [Feed::new(&mut sequence, &ids[..1])]).map(|_| ()).unwrap_err();
        assert!(matches!(error, SessionError::Rolled { position: 500, from: 704 }), "{error}");
        assert!(error.to_string().contains("cannot go on at position 500"), "{error}");
        // From the start it can always begin again.
        sequence.rewind(sequence.resume_point(500));
        let mut fresh = Sequence::new(&model, &options(CacheType::F32)).unwrap();
        assert_eq!(step(&mut engine, &mut sequence, &ids[..300]), step(&mut engine, &mut fresh, &ids[..300]));
    }
}

#[test]
fn refuses_a_saved_text_that_forgot_more_than_it_has() {
    let ids = text(700);
    let model = models::model(&specs()[0], 6);
    let mut sequence = Sequence::new(&model, &options(CacheType::F32)).unwrap();
    step(&mut engine(&model), &mut sequence, &ids);
    let mut bytes = Vec::new();
    saved::write(&sequence, &saved::Text { tokens: ids, ..saved::Text::default() }, &mut bytes).unwrap();
    bytes[76..80].copy_from_slice(&701u32.to_le_bytes());
    let error = saved::read(&sequence, &bytes).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("the first of 700 tokens in the cache is number 701"), "{error}");
}
