//! Several texts at once: each gets the bits that it would get alone, however they come, go and share.

mod cli_support;

use cli_support::scratch;
use std::path::Path;
use std::sync::atomic::Ordering;
use tidbit_convert::{Checkpoint, Options, convert};
use tidbit_runtime::engine::{Engine, EngineOptions, Feed};
use tidbit_runtime::error::SessionError;
use tidbit_runtime::quant::QuantType;
use tidbit_runtime::sequence::{Sequence, SequenceOptions};
use tidbit_runtime::session::{Model, Session, SessionOptions};

fn model(name: &str, quant: QuantType) -> Model {
    let folder = scratch();
    let output = folder.path().join("model.tidbit");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name);
    let checkpoint = Checkpoint::open(&source).unwrap();
    convert(&checkpoint, &output, &Options { quant, cancel: None }, &mut ()).unwrap();
    Model::open(&output).unwrap()
}

fn engine(model: &Model, threads: usize) -> Engine {
    Engine::new(model, &EngineOptions { threads: Some(threads), ..EngineOptions::default() }).unwrap()
}

fn sequence(model: &Model) -> Sequence {
    Sequence::new(model, &SequenceOptions::default()).unwrap()
}

/// The tokens of text `text`; any ids do.
fn ids(text: usize, n: usize) -> Vec<u32> {
    (0..n).map(|i| ((text * 977 + i * 7919 + i * i * 31) % 3584) as u32).collect()
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|v| v.to_bits()).collect()
}

/// Logits after each token of a text that runs alone.
fn alone(model: &Model, ids: &[u32]) -> Vec<Vec<u32>> {
    let mut session = Session::new(model, &SessionOptions { threads: Some(1), ..SessionOptions::default() }).unwrap();
    let mut rows = Vec::new();
    session.append_each(ids, |_, logits| rows.push(bits(logits))).unwrap();
    rows
}

/// Pieces of a text: one token, a few, or more than run together, in an order that differs from text to text.
fn piece(text: usize, step: usize) -> usize {
    [1, 1, 3, 1, 70, 2, 1, 140, 1, 16][(text * 3 + step) % 10]
}

#[test]
fn every_text_gets_the_bits_it_would_get_alone() {
    const TEXTS: usize = 7;
    for (name, quant) in [
        ("gpt2-mini", QuantType::F32),
        ("gpt2-mini", QuantType::Q4),
        ("neox-mini", QuantType::F16),
        ("neox-mini", QuantType::Q8),
    ] {
        let model = model(name, quant);
        let texts: Vec<Vec<u32>> = (0..TEXTS).map(|text| ids(text, 60 + 53 * text)).collect();
        let expected: Vec<_> = texts.iter().map(|ids| alone(&model, ids)).collect();
        for threads in [1, 2, 5] {
            let mut engine = engine(&model, threads);
            let mut sequences: Vec<Sequence> = (0..TEXTS).map(|_| sequence(&model)).collect();
            let mut step = 0;
            // Text `i` joins at step `2 i` and leaves when it is done.
            while sequences.iter().zip(&texts).any(|(s, ids)| s.position() < ids.len()) {
                let mut wanted = Vec::new();
                let mut feeds = Vec::new();
                for (i, sequence) in sequences.iter_mut().enumerate().take(1 + step / 2) {
                    let at = sequence.position();
                    let n = piece(i, step).min(texts[i].len() - at);
                    if n > 0 {
                        // Logits of none, one or several of the tokens.
                        let n_logits = (step + i) % 4 % (n + 1);
                        wanted.extend((at + n - n_logits..at + n).map(|token| (i, token)));
                        feeds.push(Feed::new(sequence, &texts[i][at..at + n]).with_logits(n_logits));
                    }
                }
                let logits = engine.step(&mut feeds).unwrap();
                assert_eq!(logits.len(), wanted.len());
                for (row, (text, token)) in wanted.into_iter().enumerate() {
                    let same = bits(logits.row(row)) == expected[text][token];
                    assert!(same, "{name} {quant}, {threads} threads: token {token} of text {text} in step {step}");
                }
                step += 1;
            }
        }
    }
}

#[test]
fn texts_that_begin_alike_share_what_they_begin_with() {
    const TEXTS: usize = 4;
    for (name, quant) in [("gpt2-mini", QuantType::Q8), ("neox-mini", QuantType::F32)] {
        let model = model(name, quant);
        let mut engine = engine(&model, 2);
        // Two whole pages and a part of the third.
        let prompt = ids(100, 150);
        let mut start = sequence(&model);
        engine.step(&mut [Feed::new(&mut start, &prompt)]).unwrap();
        let mut texts: Vec<Sequence> = (0..TEXTS).map(|_| start.fork().unwrap()).collect();
        let page = start.cache_bytes() / (512 / 64);
        for text in &texts {
            assert_eq!((text.position(), text.context()), (150, 512));
            assert_eq!(text.shared_bytes(), 2 * page, "whole pages are shared, the last is copied");
        }
        // The one they come from goes on too, and they must not see it.
        engine.step(&mut [Feed::new(&mut start, &ids(101, 9))]).unwrap();
        drop(start);
        let own: Vec<Vec<u32>> = (0..TEXTS).map(|text| ids(text, 20 + 30 * text)).collect();
        let mut feeds: Vec<Feed<'_>> = texts.iter_mut().zip(&own).map(|(text, ids)| Feed::new(text, ids)).collect();
        let logits = engine.step(&mut feeds).unwrap();
        for (text, own) in own.iter().enumerate() {
            let whole = [&prompt[..], own].concat();
            assert!(bits(logits.row(text)) == *alone(&model, &whole).last().unwrap(), "{name} {quant}: text {text}");
        }
        // Rewound into what they share, one writes to a page of its own.
        let [first, second, ..] = &mut texts[..] else { unreachable!() };
        first.rewind(30);
        let logits = engine.step(&mut [Feed::new(first, &[5, 6, 7])]).unwrap();
        let whole = [&prompt[..30], &[5, 6, 7]].concat();
        assert!(bits(logits.row(0)) == *alone(&model, &whole).last().unwrap(), "{name} {quant}: rewound");
        assert_eq!(first.shared_bytes(), page, "the first page is its own now");
        let logits = engine.step(&mut [Feed::new(second, &[9])]).unwrap();
        let whole = [&prompt[..], &own[1], &[9]].concat();
        assert!(bits(logits.row(0)) == *alone(&model, &whole).last().unwrap(), "{name} {quant}: beside it");
    }
}

#[test]
fn a_step_that_is_refused_changes_nothing() {
    let model = model("gpt2-mini", QuantType::Q8);
    let other = self::model("gpt2-mini", QuantType::Q8);
    let mut engine = engine(&model, 2);
    let text = ids(0, 40);
    let expected = alone(&model, &text);
    let (mut good, mut full) = (sequence(&model), sequence(&model));
    let mut foreign = sequence(&other);
    engine.step(&mut [Feed::new(&mut good, &text[..30]), Feed::new(&mut full, &ids(1, 510))]).unwrap();
    let long = ids(2, 513);
    let many: Vec<u32> = ids(3, 200);

    let mut refused = |bad: Feed<'_>, parts: &[&str]| {
        let error = engine.step(&mut [Feed::new(&mut good, &text[30..39]), bad]).err().unwrap().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        assert_eq!(good.position(), 30, "{error}");
    };
    refused(Feed::new(&mut full, &[1, 2, 3]), &["513 tokens", "512"]);
    refused(Feed::new(&mut full, &[3584]), &["3584", "vocabulary"]);
    refused(Feed::new(&mut full, &[]), &["at least one token"]);
    refused(Feed::new(&mut full, &[1]).with_logits(2), &["2 tokens", "1"]);
    refused(Feed::new(&mut foreign, &[1]), &["model.tidbit", "another model"]);
    let mut empty = sequence(&model);
    refused(Feed::new(&mut empty, &long), &["513 tokens", "512"]);
    refused(Feed::new(&mut empty, &many).with_logits(128), &["129 tokens", "128"]);
    assert_eq!((full.position(), empty.position(), foreign.position()), (510, 0, 0));
    assert_eq!(engine.step(&mut []).unwrap().len(), 0);

    // Cancelled in its first batch, a step has not begun.
    let cancel = engine.cancel_flag();
    cancel.store(true, Ordering::Relaxed);
    let cancelled = engine.step(&mut [Feed::new(&mut good, &text[30..39]), Feed::new(&mut full, &[1])]).err();
    assert!(matches!(cancelled, Some(SessionError::Cancelled)));
    assert_eq!((good.position(), full.position()), (30, 510));
    cancel.store(false, Ordering::Relaxed);

    let logits = engine.step(&mut [Feed::new(&mut full, &[1, 2]), Feed::new(&mut good, &text[30..])]).unwrap();
    assert!(bits(logits.row(1)) == expected[39]);
}

#[test]
fn small_batches_give_the_same_bits() {
    let model = model("neox-mini", QuantType::Q4);
    let text = ids(0, 50);
    let expected = alone(&model, &text);
    for max_batch in [1, 2, 7, 200] {
        let options = EngineOptions { threads: Some(2), max_batch: Some(max_batch) };
        let mut engine = Engine::new(&model, &options).unwrap();
        let mut sequence = sequence(&model);
        let logits = engine.step(&mut [Feed::new(&mut sequence, &text)]).unwrap();
        assert!(bits(logits.row(0)) == expected[49], "batches of {max_batch}");
    }
}
