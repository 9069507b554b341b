//! Model files that are wrong in every way we could think of: an error that says how, and never a panic.

mod support;

use proptest::prelude::*;
use std::path::Path;
use support::{Tensors, file, spec, tensors};
use tidbit_runtime::format::{ModelFile, Provenance, Stored, TOKENIZER, TensorRecord, header};
use tidbit_runtime::session::{Model, Session, SessionOptions};
use tidbit_runtime::spec::Spec;
use tidbit_runtime::storage::Bytes;

fn open(bytes: &[u8]) -> Result<ModelFile, String> {
    let opened = ModelFile::from_bytes(Path::new("m.tidbit"), Bytes::copy_from(bytes)).map_err(|e| e.to_string());
    if let Err(message) = &opened {
        assert!(message.starts_with("m.tidbit: ") && !message.contains('\n'), "{message}");
    }
    opened
}

#[test]
fn a_sound_file_opens_verifies_and_runs() {
    let file = open(&file(&spec(), &tensors(&spec()))).unwrap();
    assert_eq!(file.verify().unwrap().tensors, file.tensors().count());
    let mut session = Session::new(&Model::new(file).unwrap(), &SessionOptions::default()).unwrap();
    assert_eq!(session.append(&[1, 2, 3]).unwrap().len(), 50);
}

type Change = fn(&mut Spec, &mut Tensors);

#[test]
fn a_sound_container_with_wrong_contents_is_refused_by_name() {
    fn find<'a>(tensors: &'a mut Tensors, name: &str) -> &'a mut TensorRecord {
        &mut tensors.iter_mut().find(|t| t.0 == name).unwrap().1
    }
    let cases: [(&str, Change); 11] = [
        ("tensor `layers.1.mlp.up.bias`: missing", |_, t| t.retain(|t| t.0 != "layers.1.mlp.up.bias")),
        ("tensor `layers.0.attn.gate`: not part of this architecture", |_, t| {
            let record = t[0].1.clone();
            t.push(("layers.0.attn.gate".into(), record));
        }),
        ("tensor `head.weight`: expected shape [50, 24], found [24, 50]", |_, t| {
            find(t, "head.weight").shape = vec![24, 50];
        }),
        ("tensor `final_norm.bias`: expected a vector, found bytes", |_, t| {
            find(t, "final_norm.bias").stored = Stored::Bytes;
        }),
        ("tensor `embed.tokens`: expected shape [50, 24], found [50]", |_, t| {
            *find(t, "embed.tokens") = TensorRecord { stored: Stored::Vector, shape: vec![50], sha256: String::new() };
        }),
        ("tensor `final_norm.bias`: shape [0] is not possible for vector", |_, t| {
            find(t, "final_norm.bias").shape = vec![0];
        }),
        ("tensor `tokenizer.json`: expected bytes, found vector", |_, t| {
            let record = TensorRecord { stored: Stored::Vector, shape: vec![24], sha256: String::new() };
            t.push((TOKENIZER.into(), record));
        }),
        ("16777215 layers cannot be made of 29 tensors", |s, _| s.n_layers = (1 << 24) - 1),
        ("`n_layers` is 1152921504606846976, expected 1 to 16777216", |s, _| s.n_layers = 1 << 60),
        ("`head_dim` is 4096, at most 512", |s, _| s.attention.head_dim = 4096),
        ("norm eps is 0", |s, _| s.norm.eps = 0.0),
    ];
    for (expected, change) in cases {
        let (mut spec, mut tensors) = (spec(), tensors(&spec()));
        change(&mut spec, &mut tensors);
        let message = open(&file(&spec, &tensors)).unwrap_err();
        assert!(message.contains(expected), "{message} should contain {expected}");
    }
}

#[test]
fn damage_is_noticed() {
    let good = file(&spec(), &tensors(&spec()));
    let cases: [(&str, Vec<u8>); 5] = [
        ("3 bytes are too few", good[..3].to_vec()),
        ("the header claims", good[..5000].to_vec()),
        ("truncated: the header describes", good[..good.len() - 1].to_vec()),
        ("too long: the header describes", [&good[..], &[0]].concat()),
        ("at most 100000000 are possible", [&u64::MAX.to_le_bytes()[..], &vec![b' '; 100_000_010]].concat()),
    ];
    for (expected, bytes) in cases {
        let message = open(&bytes).unwrap_err();
        assert!(message.contains(expected), "{message} should contain {expected}");
    }
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let message = open(&flipped).unwrap().verify().unwrap_err().to_string();
    assert!(message.contains("tensor `head.weight`: sha256 is "), "{message}");
}

#[test]
fn a_context_too_large_for_memory_is_an_error() {
    let mut spec = spec();
    (spec.context_length, spec.n_layers) = (1 << 24, 600);
    spec.position = serde_json::from_value(serde_json::json!({ "kind": "rotary", "dims": 8, "theta": 1e4 })).unwrap();
    (spec.attention.n_heads, spec.attention.n_kv_heads, spec.attention.head_dim) = (24, 24, 512);
    let model = Model::new(open(&file(&spec, &tensors(&spec))).unwrap()).unwrap();
    let Err(error) = Session::new(&model, &SessionOptions::default()) else { panic!("that cache cannot exist") };
    assert!(error.to_string().starts_with("cannot allocate "), "{error}");
}

proptest! {
    #[test]
    fn flipped_bytes_never_panic(changes in prop::collection::vec((0usize..6000, any::<u8>()), 1..4)) {
        let mut bytes = file(&spec(), &tensors(&spec()));
        for (at, value) in changes {
            bytes[at] = value;
        }
        if let Ok(file) = open(&bytes) {
            // Only the padding after the JSON may differ; a model that opens must run.
            let mut session = Session::new(&Model::new(file).unwrap(), &SessionOptions::default()).unwrap();
            prop_assert!(session.append(&[0]).is_ok());
        }
    }

    #[test]
    fn any_weights_run_without_a_panic(seed: u64) {
        // Bit patterns of all kinds: NaN and infinite scales among them.
        let (spec, tensors) = (spec(), tensors(&spec()));
        let mut bytes = file(&spec, &tensors);
        let data = header::encode(&spec, &Provenance::default(), None, &tensors).unwrap().len();
        let mut state = seed | 1;
        for byte in &mut bytes[data..] {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (state >> 56) as u8;
        }
        let model = Model::new(open(&bytes).unwrap()).unwrap();
        let mut session = Session::new(&model, &SessionOptions { threads: Some(1), ..SessionOptions::default() }).unwrap();
        prop_assert_eq!(session.append(&[3, 49, 0, 7]).unwrap().len(), 50);
    }
}
