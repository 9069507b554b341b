//! Transformer-XL's positions: the same bits however a text is run. What the bits should be is in `combinations.rs`.

mod support;

use support::models;
use tidbit_runtime::engine::{Engine, EngineOptions, Feed};
use tidbit_runtime::kv_cache::CacheType;
use tidbit_runtime::model::Model;
use tidbit_runtime::sequence::{Sequence, SequenceOptions};
use tidbit_runtime::spec::{Position, Spec, TransformerXl};

/// Six heads of which pairs share keys and values; texts are longer than its distances.
fn spec() -> Spec {
    let mut spec = models::spec();
    (spec.attention.n_heads, spec.attention.n_kv_heads, spec.attention.head_dim) = (6, 3, 20);
    spec.position = Position::TransformerXl(TransformerXl { max_distance: 290 });
    spec
}

fn text(n: usize, seed: u64) -> Vec<u32> {
    (0..n).map(|i| (models::mix(i as u64 ^ seed << 20) % 50) as u32).collect()
}

fn sequence(model: &Model, cache_type: CacheType) -> Sequence {
    Sequence::new(model, &SequenceOptions { context: Some(400), cache_type: Some(cache_type) }).unwrap()
}

fn engine(model: &Model, threads: usize) -> Engine {
    Engine::new(model, &EngineOptions { threads: Some(threads), max_batch: None }).unwrap()
}

fn bits(row: &[f32]) -> Vec<u32> {
    row.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn a_text_has_the_same_bits_in_pieces_in_threads_and_beside_others() {
    let (model, ids, other) = (models::model(&spec(), 5), text(330, 1), text(200, 2));
    for cache_type in CacheType::ALL {
        let mut expected = Vec::new();
        engine(&model, 1).each(&mut sequence(&model, cache_type), &ids, |_, row| expected.push(bits(row))).unwrap();
        assert!(expected.iter().flatten().all(|&x| f32::from_bits(x).is_finite()));
        for (threads, piece) in [(1, 1), (2, 330), (3, 37)] {
            let (mut engine, mut sequence) = (engine(&model, threads), sequence(&model, cache_type));
            let mut found = Vec::new();
            for ids in ids.chunks(piece) {
                engine.each(&mut sequence, ids, |_, row| found.push(bits(row))).unwrap();
            }
            assert!(found == expected, "{cache_type:?}, {threads} threads, {piece} tokens at a time");
        }
        let mut texts = [sequence(&model, cache_type), sequence(&model, cache_type)];
        let [first, second] = &mut texts;
        let mut engine = engine(&model, 2);
        let logits = engine.step(&mut [Feed::new(first, &other), Feed::new(second, &ids)]).unwrap();
        assert_eq!(Some(&bits(logits.row(1))), expected.last(), "{cache_type:?} beside another text");
    }
}

#[test]
fn the_memory_of_its_keys_is_told() {
    let (mut spec, max_batch) = (spec(), 16);
    let with = Engine::scratch_bytes_of(&spec, max_batch);
    spec.position = Position::None;
    // Two layers of 120 dimensions, 291 distances padded to 16, in f32.
    assert_eq!(with - Engine::scratch_bytes_of(&spec, max_batch), 2 * 120 * 304 * 4);
}
