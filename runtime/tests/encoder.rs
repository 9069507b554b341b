//! Models of an encoder and a decoder: what the encoder read stays with its text, whatever runs beside it, and what cannot be is an
//! error.

mod support;

use std::path::Path;
use std::sync::atomic::Ordering;
use support::models;
use tidbit_runtime::embed::Embedder;
use tidbit_runtime::engine::{Engine, EngineOptions, Feed};
use tidbit_runtime::error::{DraftError, SavedError, SessionError};
use tidbit_runtime::format::ModelFile;
use tidbit_runtime::kv_cache::CacheType;
use tidbit_runtime::model::Model;
use tidbit_runtime::saved::{self, Text};
use tidbit_runtime::sequence::{Sequence, SequenceOptions};
use tidbit_runtime::session::{Session, SessionOptions};
use tidbit_runtime::spec::{Encoder, Position, RelativeBias, Spec};
use tidbit_runtime::speculate::DraftModel;
use tidbit_runtime::storage::Bytes;

const START: u32 = 3;

fn spec() -> Spec {
    let mut spec = models::spec();
    spec.position = Position::RelativeBias(RelativeBias { buckets: 8, max_distance: 15 });
    spec.encoder = Some(Encoder { n_layers: 3, start_id: START });
    spec
}

fn model() -> Model {
    models::model(&spec(), 7)
}

fn engine(model: &Model) -> Engine {
    Engine::new(model, &EngineOptions { threads: Some(2), max_batch: None }).unwrap()
}

fn sequence(model: &Model) -> Sequence {
    Sequence::new(model, &SequenceOptions::default()).unwrap()
}

fn text(n: usize, salt: u64) -> Vec<u32> {
    (0..n as u64).map(|i| (models::mix(i + salt) % 50) as u32).collect()
}

/// The bits of the logits after each token.
fn bits(engine: &mut Engine, sequence: &mut Sequence, ids: &[u32]) -> Vec<u32> {
    let mut bits = Vec::new();
    engine.each(sequence, ids, |_, row| bits.extend(row.iter().map(|x| x.to_bits()))).unwrap();
    bits
}

#[test]
fn texts_in_one_batch_are_as_alone() {
    let (model, ids) = (model(), text(20, 0));
    let mut engine = engine(&model);
    for cache_type in CacheType::ALL {
        let options = SequenceOptions { context: None, cache_type: Some(cache_type) };
        let mut texts = [(1, 3), (40, 20), (17, 1), (5, 9)].map(|(read, written)| {
            let mut sequence = Sequence::new(&model, &options).unwrap();
            engine.encode(&mut sequence, &text(read, read as u64)).unwrap();
            assert_eq!(sequence.encoded(), Some(read));
            (sequence, &ids[..written])
        });
        let alone: Vec<u32> = texts.iter_mut().flat_map(|(s, ids)| bits(&mut engine, s, ids)).collect();
        for (sequence, _) in &mut texts {
            sequence.rewind(0);
        }
        let mut feeds: Vec<_> = texts.iter_mut().map(|(s, ids)| Feed::new(s, ids).with_logits(ids.len())).collect();
        let logits = engine.step(&mut feeds).unwrap();
        let together: Vec<u32> = (0..logits.len()).flat_map(|i| logits.row(i).iter().map(|x| x.to_bits())).collect();
        assert!(alone == together, "{cache_type:?}");
    }
}

#[test]
fn forks_share_what_was_read_and_go_their_own_way() {
    let model = model();
    let mut engine = engine(&model);
    let (mut first, ids) = (sequence(&model), text(6, 1));
    engine.encode(&mut first, &text(30, 2)).unwrap();
    assert_eq!(first.shared_bytes(), 0);
    let expected = bits(&mut engine, &mut first, &ids);
    let mut second = first.fork().unwrap();
    assert!(second.shared_bytes() > 0 && second.encoded() == Some(30));

    // The other reads something else; this one's stays.
    engine.encode(&mut first, &text(4, 3)).unwrap();
    assert_eq!((first.position(), first.encoded(), second.position()), (0, Some(4), 6));
    assert_ne!(bits(&mut engine, &mut first, &ids), expected);
    second.rewind(0);
    assert_eq!(bits(&mut engine, &mut second, &ids), expected);
    // And read again it is the same.
    engine.encode(&mut first, &text(30, 2)).unwrap();
    assert_eq!(bits(&mut engine, &mut first, &ids), expected);
}

#[test]
fn what_cannot_be_read_changes_nothing() {
    let (model, other) = (model(), models::model(&models::spec(), 1));
    let (mut engine, mut sequence, ids) = (engine(&model), sequence(&model), text(5, 4));
    let unread = engine.step(&mut [Feed::new(&mut sequence, &[START])]).err().unwrap();
    assert!(matches!(unread, SessionError::NothingRead), "{unread}");

    engine.encode(&mut sequence, &text(9, 5)).unwrap();
    let expected = bits(&mut engine, &mut sequence, &ids);
    let long = text(engine.max_batch() + 1, 0);
    let cases: [(&[u32], &str); 3] = [
        (&[], "the prompt is empty"),
        (&[1, 50], "token id 50 is outside the vocabulary of 50"),
        (&long, "129 tokens do not fit a context of 128"),
    ];
    for (ids, message) in cases {
        let error = engine.encode(&mut sequence, ids).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    engine.cancel_flag().store(true, Ordering::Relaxed);
    assert!(matches!(engine.encode(&mut sequence, &[1]), Err(SessionError::Cancelled)));
    engine.cancel_flag().store(false, Ordering::Relaxed);
    assert_eq!((sequence.position(), sequence.encoded()), (5, Some(9)));
    sequence.rewind(0);
    assert_eq!(bits(&mut engine, &mut sequence, &ids), expected);

    let mut foreign = Sequence::new(&other, &SequenceOptions::default()).unwrap();
    assert!(matches!(engine.encode(&mut foreign, &[1]), Err(SessionError::OtherModel { .. })));
    let mut decoder = self::engine(&other);
    assert!(matches!(decoder.encode(&mut foreign, &[1]), Err(SessionError::NoEncoder)));
}

#[test]
fn a_text_is_no_longer_than_there_are_positions() {
    let model = models::model(&Spec { position: Position::Learned, ..spec() }, 7);
    let (mut engine, mut sequence) = (engine(&model), sequence(&model));
    assert!(engine.max_batch() > 41, "more than the model's 40 positions run together");
    engine.encode(&mut sequence, &text(40, 6)).unwrap();
    let error = engine.encode(&mut sequence, &text(41, 6)).unwrap_err().to_string();
    assert!(error.contains("41 tokens do not fit a context of 40"), "{error}");
}

#[test]
fn a_text_may_be_as_long_as_the_session_was_made_for() {
    let model = model();
    assert_eq!(model.spec().max_context(), 1 << 16);
    for (context, most) in [(10, 40), (300, 300)] {
        let options = SessionOptions { context: Some(context), threads: Some(1), cache_type: None };
        let mut session = Session::new(&model, &options).unwrap();
        assert_eq!(session.max_encoded(), most, "what it was trained for at least");
        session.encode(&text(most, 6)).unwrap();
        session.append(&[START]).unwrap();
        let error = session.encode(&text(most + 1, 6)).unwrap_err();
        assert!(matches!(error, SessionError::ContextFull { .. }), "{error}");
    }
}

#[test]
fn embeddings_are_of_the_encoder() {
    let model = model();
    let (options, ids) = (EngineOptions { threads: Some(1), max_batch: None }, text(11, 8));
    let encoder = model.encoder().unwrap();
    assert!(encoder.encoder().is_none() && !encoder.is(&model));
    let embed = |model| Embedder::new(model, &options).unwrap().embed(&[ids.clone(), ids[..3].to_vec()]).unwrap();
    assert_eq!(embed(&model), embed(encoder));
}

#[test]
fn what_needs_more_than_a_text_is_refused() {
    let model = model();
    let mut out = Vec::new();
    let error = saved::write(&sequence(&model), &Text::default(), &mut out).unwrap_err();
    assert!(error.to_string().contains("a session of a model with an encoder cannot be saved") && out.is_empty());
    assert!(matches!(saved::read(&sequence(&model), &[]), Err(SavedError::Encoder)));
    let draft = DraftModel::new(&model, &SessionOptions::default(), &model);
    assert!(matches!(draft, Err(DraftError::Encoder { .. })));
}

#[test]
fn files_that_claim_an_encoder_which_they_lack_are_refused() {
    let open = |spec: &Spec, tensors: &support::Tensors| {
        let bytes = Bytes::copy_from(&support::file(spec, tensors));
        ModelFile::from_bytes(Path::new("m.tidbit"), bytes).map(|_| ()).map_err(|e| e.to_string())
    };
    let plain = support::spec();
    let tensors = support::tensors(&plain);
    let with = |n_layers, start_id| Spec { encoder: Some(Encoder { n_layers, start_id }), ..plain.clone() };
    for (spec, expected) in [
        (with(1, 0), "tensor `encoder.embed.positions`: missing"),
        (with(0, 0), "encoder `n_layers` is 0, expected 1 to 16777216"),
        (with(usize::MAX, 0), "encoder `n_layers` is 18446744073709551615, expected 1 to 16777216"),
        (with(1 << 24, 0), "16777218 layers cannot be made of 29 tensors"),
        (with(1, 50), "encoder `start_id` 50 is outside the vocabulary of 50"),
    ] {
        let message = open(&spec, &tensors).unwrap_err();
        assert!(message.starts_with("m.tidbit: ") && message.contains(expected), "{message}");
    }
    let (spec, mut tensors) = (with(1, 0), support::tensors(&with(1, 0)));
    open(&spec, &tensors).unwrap();
    for (name, shape, expected) in [
        ("layers.1.cross.kv.weight", vec![24, 48], "tensor `layers.1.cross.kv.weight`: expected shape [48, 24]"),
        ("encoder.final_norm.bias", vec![25], "tensor `encoder.final_norm.bias`: expected shape [24], found [25]"),
    ] {
        let record = &mut tensors.iter_mut().find(|(found, _)| found == name).unwrap().1;
        let good = std::mem::replace(&mut record.shape, shape);
        let message = open(&spec, &tensors).unwrap_err();
        assert!(message.contains(expected), "{message}");
        tensors.iter_mut().find(|(found, _)| found == name).unwrap().1.shape = good;
    }
    // Its tensors without it are another architecture.
    let message = open(&plain, &tensors).unwrap_err();
    assert!(message.contains("not part of this architecture"), "{message}");
}
