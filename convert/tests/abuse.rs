//! Damaged and hostile input: each a message that names the file, the thing and both values, with
//! nothing left behind.

mod support;

use safetensors::Dtype;
use serde_json::json;
use std::path::Path;
use support::*;

/// The message for a checkpoint that was changed after it was written.
fn after(fake: &Fake, change: impl FnOnce(&Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    fake.write(folder.path());
    change(folder.path());
    failure(folder.path())
}

/// The message for a GPT-2 checkpoint with changed tensors.
fn with(change: impl FnOnce(&mut Tensors)) -> String {
    let mut fake = Fake::gpt2();
    change(&mut fake.tensors);
    after(&fake, |_| {})
}

/// The message for a `model.safetensors` made of this header, and so many bytes of data.
fn header(text: &str, data: usize) -> String {
    after(&Fake::gpt2(), |folder| {
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        std::fs::write(folder.join("model.safetensors"), bytes).unwrap();
    })
}

/// The message for a `model.safetensors` of these bytes.
fn raw(bytes: &[u8]) -> String {
    after(&Fake::gpt2(), |folder| std::fs::write(folder.join("model.safetensors"), bytes).unwrap())
}

fn assert_names(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{message:?} should contain {part:?}");
    }
}

#[test]
fn rejects_files_that_are_missing_or_empty() {
    let remove = |name: &'static str| after(&Fake::gpt2(), move |f| std::fs::remove_file(f.join(name)).unwrap());
    assert_names(&remove("config.json"), &["no config.json in this folder"]);
    assert_names(&remove("model.safetensors"), &["no weights in this folder", "pytorch_model.bin"]);
    assert_names(&failure(Path::new("no/such/place")), &["no/such/place: "]);
    assert_names(&raw(b""), &["model.safetensors: the file is empty"]);
    assert_names(
        &after(&Fake::gpt2(), |f| std::fs::write(f.join("config.json"), "").unwrap()),
        &["config.json: the file is empty"],
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("notes.txt");
    std::fs::write(&file, "x").unwrap();
    assert_names(&failure(&file), &["notes.txt: expected a folder, or a file called"]);
}

#[test]
fn rejects_a_header_that_claims_gigabytes() {
    assert_names(&raw(&[0xff; 100]), &["claims 18446744073709551615 bytes", "at most 92"]);
    let mut claim = (5_000_000_000u64).to_le_bytes().to_vec();
    claim.extend(b"{}");
    assert_names(&raw(&claim), &["claims 5000000000 bytes", "at most 2"]);
    assert_names(&raw(b"{}"), &["2 bytes are too few"]);
    assert_names(
        &raw(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        &["is a git-lfs pointer"],
    );
}

#[test]
fn rejects_a_file_cut_anywhere() {
    let folder = tempfile::tempdir().unwrap();
    Fake::gpt2().write(folder.path());
    let whole = std::fs::read(folder.path().join("model.safetensors")).unwrap();
    for cut in (1..whole.len()).step_by(997).chain([7, 8, 9, whole.len() - 1]) {
        assert_names(&raw(&whole[..cut]), &["model.safetensors: "]);
    }
    assert_names(&raw(&whole[..whole.len() - 4]), &["truncated: the header describes"]);
    assert_names(&raw(&[&whole[..], b"more"].concat()), &["too long: the header describes"]);
}

#[test]
fn a_flipped_byte_of_the_header_never_panics() {
    let folder = tempfile::tempdir().unwrap();
    Fake::neox().write(folder.path());
    let path = folder.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let length = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let mut refused = 0;
    for at in 0..8 + length {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x11;
        std::fs::write(&path, bytes).unwrap();
        refused += usize::from(tidbit_convert::Checkpoint::open(folder.path()).is_err());
    }
    assert!(refused > length * 9 / 10, "{refused} of {length} refused");
}

#[test]
fn rejects_offsets_and_types_that_cannot_be() {
    let two = |a: &str, b: &str| format!(r#"{{"a":{a},"b":{b}}}"#);
    let f32s = |from: u64, to: u64| format!(r#"{{"dtype":"F32","shape":[2],"data_offsets":[{from},{to}]}}"#);
    for (text, expected) in [
        (two(&f32s(0, 8), &f32s(4, 12)), "tensor `b`: overlaps the one before it: starts at byte 4, expected 8"),
        (two(&f32s(0, 8), &f32s(12, 20)), "tensor `b`: leaves a gap: starts at byte 12, expected 8"),
        (two(&f32s(0, 8), &f32s(8, 20)), "tensor `b`: [2] in F32 needs 8 bytes, has bytes 8 to 20"),
        (two(&f32s(0, 8), &f32s(8, 4)), "tensor `b`: "),
        (two(&f32s(0, 8), r#"{"dtype":"F99","shape":[2],"data_offsets":[8,16]}"#), "unknown type `F99`"),
        (two(&f32s(0, 8), r#"{"dtype":"F32","shape":[-2],"data_offsets":[8,16]}"#), "tensor `b`: "),
        (
            r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,16],"data_offsets":[0,8]}}"#.into(),
            "shape [4294967296, 4294967296, 16] overflows",
        ),
        ("{".into(), "damaged header"),
        ("[1]".into(), "damaged header"),
        ("[".repeat(100_000), "damaged header"),
    ] {
        assert_names(&header(&text, 16), &["model.safetensors: ", expected]);
    }
}

#[test]
fn rejects_tensors_that_do_not_fit_the_architecture() {
    const QKV: &str = "transformer.h.1.attn.c_attn.weight";
    const WTE: &str = "transformer.wte.weight";
    let message = with(|t| drop(t.remove(QKV)));
    assert_names(&message, &["model.safetensors: tensor `transformer.h.1.attn.c_attn.weight`: missing", "[12, 36]"]);
    let message = with(|t| drop(t.insert(QKV.into(), Tensor::new(&[12, 12], |_| 0.0))));
    assert_names(&message, &[QKV, "expected shape [12, 36]", "found [12, 12]"]);
    let message = with(|t| drop(t.insert(WTE.into(), Tensor::new(&[VOCAB + 3, D], |_| 0.0))));
    assert_names(&message, &[WTE, "expected shape [37, 12] (config.json), found [40, 12]"]);
    let message = with(|t| drop(t.insert("transformer.h.2.ln_1.weight".into(), Tensor::new(&[D], |_| 0.0))));
    assert_names(&message, &["`transformer.h.2.ln_1.weight`: not part of a gpt2 model of 2 layers, found shape [12]"]);
    let message = with(|t| drop(t.insert("wte.weight".into(), t[WTE].clone())));
    assert_names(&message, &["tensor `wte.weight`: not part of"]);
    let ints = Tensor { dtype: Dtype::I32, shape: vec![D], bytes: vec![0; 4 * D] };
    let message = with(|t| drop(t.insert("transformer.ln_f.bias".into(), ints)));
    assert_names(&message, &["`transformer.ln_f.bias`: type is I32, expected F32, F16 or BF16"]);
}

#[test]
fn rejects_heads_that_contradict_the_config() {
    let mut fake = Fake::gpt2();
    fake.set("tie_word_embeddings", json!(false));
    assert_names(&after(&fake, |_| {}), &["`lm_head.weight`: missing", "`tie_word_embeddings` is false"]);
    let mut fake = Fake::gpt2();
    fake.tensors.insert("lm_head.weight".into(), Tensor::new(&[VOCAB, D + 1], |_| 0.0));
    assert_names(&after(&fake, |_| {}), &["`lm_head.weight`: expected shape [37, 12]", "found [37, 13]"]);
}

#[test]
fn rejects_values_that_cannot_be_stored() {
    let poison = |name: &str, at: usize, value: f32| {
        with(|t| t.get_mut(name).unwrap().bytes[at * 4..][..4].copy_from_slice(&value.to_le_bytes()))
    };
    // Named by their place in the source: [in, out].
    assert_names(
        &poison("transformer.h.0.mlp.c_fc.weight", 3 * FFN + 17, f32::NAN),
        &["model.safetensors: tensor `transformer.h.0.mlp.c_fc.weight`: row 3, column 17 is NaN"],
    );
    assert_names(
        &poison("transformer.wte.weight", 36 * D + 11, f32::INFINITY),
        &["`transformer.wte.weight`: row 36, column 11 is inf, expected a finite number"],
    );
    assert_names(&poison("transformer.ln_f.bias", 7, f32::NAN), &["`transformer.ln_f.bias`: element 7 is NaN"]);
    let mut neox = Fake::neox();
    let name = "gpt_neox.layers.1.attention.query_key_value.weight";
    neox.tensors.get_mut(name).unwrap().bytes[4 * (25 * D + 2)..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    assert_names(&after(&neox, |_| {}), &[name, "row 25, column 2 is NaN"]);

    let folder = tempfile::tempdir().unwrap();
    let mut large = Fake::gpt2();
    large.tensors.get_mut("transformer.wpe.weight").unwrap().bytes[..4].copy_from_slice(&70_000f32.to_le_bytes());
    large.write(folder.path());
    converted(folder.path(), tidbit_runtime::quant::QuantType::F32).unwrap();
    let error = converted(folder.path(), tidbit_runtime::quant::QuantType::F16).unwrap_err();
    assert_names(&error.to_string(), &["`transformer.wpe.weight`: row 0, column 0 is 70000", "stored as f16"]);
    assert!(error.hint().is_some());
}

#[test]
fn hostile_configs_ask_for_no_memory() {
    for (field, value, expected) in [
        ("n_layer", json!(16_000_000), "layers, expected at most"),
        ("n_layer", json!(9000), "tensors cannot make 9000 layers"),
        ("vocab_size", json!(16_000_000), "expected shape [16000000, 12]"),
        ("n_embd", json!(1u64 << 62), "`n_embd` is 4611686018427387904, expected a positive whole number"),
        ("n_positions", json!(u32::MAX), "`context_length` is 4294967295"),
        ("n_head", json!(5), "`n_embd` 12 is not a multiple of `n_head` 5"),
    ] {
        let mut fake = Fake::gpt2();
        fake.set(field, value);
        assert_names(&after(&fake, |_| {}), &[expected]);
    }
}
