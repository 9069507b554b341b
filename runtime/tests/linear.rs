//! Linear attention: a state of constant size, and what follows from it for texts that are shared, saved and taken back.

mod support;

use std::sync::atomic::Ordering;
use support::models;
use tidbit_runtime::engine::{Engine, EngineOptions, Feed};
use tidbit_runtime::error::SessionError;
use tidbit_runtime::model::Model;
use tidbit_runtime::saved;
use tidbit_runtime::sequence::{Sequence, SequenceOptions};
use tidbit_runtime::spec::{FeatureMap, Pairs, Position, Sinusoidal};

/// A model without a table of positions, and what runs it.
fn model() -> (Model, Engine) {
    let mut spec = models::spec();
    spec.position = Position::Sinusoidal(Sinusoidal { pairs: Pairs::Interleaved, offset: 0 });
    (spec.attention.feature_map, spec.attention.scale) = (Some(FeatureMap::EluPlusOne), 1.0);
    let model = models::model(&spec, 1);
    let engine = Engine::new(&model, &EngineOptions { threads: Some(2), max_batch: None }).unwrap();
    (model, engine)
}

fn empty(model: &Model, context: usize) -> Sequence {
    Sequence::new(model, &SequenceOptions { context: Some(context), cache_type: None }).unwrap()
}

fn text(n: usize) -> Vec<u32> {
    (0..n).map(|i| (models::mix(i as u64) % 50) as u32).collect()
}

fn step(engine: &mut Engine, sequence: &mut Sequence, ids: &[u32]) -> Vec<u32> {
    engine.step(&mut [Feed::new(sequence, ids)]).unwrap().row(0).iter().map(|x| x.to_bits()).collect()
}

#[test]
fn the_state_has_the_size_of_no_text() {
    let (model, mut engine) = model();
    let ids = text(5000);
    let (mut long, mut pieces) = (empty(&model, 1 << 20), empty(&model, 5000));
    // Two sums of three heads of two layers, before the last step and after it.
    assert_eq!((long.cache_bytes(), pieces.cache_bytes()), (2 * 2 * 3 * 9 * 8 * 4, long.cache_bytes()));
    let expected = step(&mut engine, &mut long, &ids);
    let mut found = Vec::new();
    for ids in ids.chunks(77) {
        found = step(&mut engine, &mut pieces, ids);
    }
    assert_eq!(found, expected);
    assert_eq!(long.cache_bytes(), pieces.cache_bytes());
}

#[test]
fn the_last_step_can_be_taken_back_and_run_again() {
    let (model, mut engine) = model();
    let ids = text(40);
    let mut sequence = empty(&model, 100);
    step(&mut engine, &mut sequence, &ids[..30]);
    let expected = step(&mut engine, &mut sequence, &ids[30..]);
    assert_eq!((sequence.resume_point(30), sequence.resume_point(40), sequence.resume_point(35)), (30, 40, 0));
    sequence.rewind(30);
    assert_eq!(step(&mut engine, &mut sequence, &ids[30..]), expected);
    // A step that is cancelled leaves the text as it was.
    sequence.rewind(30);
    engine.cancel_flag().store(true, Ordering::Relaxed);
    assert!(engine.step(&mut [Feed::new(&mut sequence, &ids[30..])]).is_err());
    engine.cancel_flag().store(false, Ordering::Relaxed);
    assert_eq!(step(&mut engine, &mut sequence, &ids[30..]), expected);
    sequence.rewind(35);
    let error = engine.step(&mut [Feed::new(&mut sequence, &ids[35..])]).map(|_| ()).unwrap_err();
    assert!(matches!(error, SessionError::Rolled { position: 35, from: 40 }), "{error}");
    sequence.rewind(0);
    assert_eq!(step(&mut engine, &mut sequence, &ids), expected);
}

#[test]
fn forks_go_their_own_way_and_saved_texts_are_run_again() {
    let (model, mut engine) = model();
    let ids = text(60);
    let mut sequence = empty(&model, 100);
    step(&mut engine, &mut sequence, &ids[..40]);
    let mut fork = sequence.fork().unwrap();
    let tokens = saved::Text { tokens: ids[..40].to_vec(), ..saved::Text::default() };
    let mut bytes = Vec::new();
    saved::write(&sequence, &tokens, &mut bytes).unwrap();
    assert_eq!(bytes.len(), saved::len(&sequence, 40));
    step(&mut engine, &mut fork, &[7, 7, 7]);
    let expected = step(&mut engine, &mut sequence, &ids[40..]);
    let (mut restored, same) = saved::read(&sequence, &bytes).unwrap();
    assert_eq!((restored.position(), &same), (0, &tokens));
    assert_eq!(step(&mut engine, &mut restored, &ids), expected);
}
