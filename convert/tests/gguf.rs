//! GGUF files: every type gives the values that the Python package `gguf` gives, an architecture the model that its Hugging
//! Face form gives, and damaged or hostile files one line each.

mod support;

use std::path::{Path, PathBuf};
use support::gguf::{D, File, Key, llama};
use support::*;
use tidbit_convert::Checkpoint;
use tidbit_runtime::format::{ModelFile, TOKENIZER, TOKENIZER_TABLES};
use tidbit_runtime::quant::QuantType;
use tidbit_runtime::spec::{Activation, NormKind, PoolingKind, Position, Residual, RotaryScaling, Spec};
use tidbit_runtime::tokenizer::Tokenizer;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Whether two model files have the same tensors; tokenizers are not compared.
fn assert_same(a: &ModelFile, b: &ModelFile, what: &str) {
    let sums = |file: &ModelFile| -> Vec<_> {
        let weights = file.tensors().filter(|(name, ..)| ![TOKENIZER, TOKENIZER_TABLES].contains(name));
        weights.map(|(name, record, _)| (name.to_string(), record.clone())).collect()
    };
    let (a, b) = (sums(a), sums(b));
    assert!(!a.is_empty());
    assert_eq!(a.len(), b.len(), "{what}");
    for (a, b) in a.iter().zip(&b) {
        assert!(a == b, "{what}: {a:?}, expected {b:?}");
    }
}

#[test]
fn every_type_gives_the_values_of_the_python_package() {
    let open = |name: &str| converted(&repository("tests/data/gguf").join(name), QuantType::F32).unwrap().0;
    assert_same(&open("types.gguf"), &open("types-f32.gguf"), "types.gguf");
}

/// How queries, keys and values of an architecture lie.
#[derive(Clone, Copy, PartialEq)]
enum Qkv {
    Fused,
    Split,
    Pairs,
}

/// Fixtures of `tests/families`, their architecture in GGUF, and what GGUF cannot say about them.
const FAMILIES: &[(&str, &str, Qkv, fn(&mut Spec))] = &[
    ("llama-1", "llama", Qkv::Pairs, |_| {}),
    ("llama-smollm", "llama", Qkv::Pairs, |_| {}),
    ("llama-linear", "llama", Qkv::Pairs, |_| {}),
    ("llama-yarn", "llama", Qkv::Pairs, |_| {}),
    ("llama-bias", "llama", Qkv::Pairs, |spec| spec.mlp.activation = Activation::Silu),
    ("mistral-window", "llama", Qkv::Pairs, |_| {}),
    ("qwen2", "qwen2", Qkv::Split, |_| {}),
    ("qwen3", "qwen3", Qkv::Split, |_| {}),
    ("gemma-1", "gemma", Qkv::Split, |_| {}),
    ("gemma-2", "gemma2", Qkv::Split, plain_scale),
    ("gemma-3", "gemma3", Qkv::Split, plain_scale),
    ("olmo-1", "olmo", Qkv::Pairs, |_| {}),
    ("olmo-2", "olmo2", Qkv::Split, |_| {}),
    ("stablelm-2", "stablelm", Qkv::Split, |_| {}),
    ("phi-1", "phi2", Qkv::Split, |_| {}),
    ("phi-2", "phi2", Qkv::Fused, |_| {}),
    ("neox-linear", "gptneox", Qkv::Fused, |spec| spec.mlp.activation = Activation::GeluErf),
    ("gpt2-cerebras", "gpt2", Qkv::Fused, |spec| spec.mlp.activation = Activation::GeluTanh),
    ("bloom", "bloom", Qkv::Fused, |_| {}),
    ("falcon-7b", "falcon", Qkv::Fused, |_| {}),
    ("falcon-40b", "falcon", Qkv::Fused, |_| {}),
    ("falcon-11b", "falcon", Qkv::Fused, |_| {}),
    ("mpt", "mpt", Qkv::Fused, |_| {}),
    ("mpt-clip", "mpt", Qkv::Fused, plain_scale),
    ("bert", "bert", Qkv::Split, |_| {}),
    ("t5", "t5", Qkv::Split, usual_distance),
    ("flan-t5", "t5", Qkv::Split, usual_distance),
];

/// Where GGUF has no scale of the scores.
fn plain_scale(spec: &mut Spec) {
    spec.attention.scale = 1.0 / (spec.attention.head_dim as f32).sqrt();
}

/// GGUF does not say from where on all distances are in one bucket.
fn usual_distance(spec: &mut Spec) {
    if let Position::RelativeBias(bias) = &mut spec.position {
        bias.max_distance = 128;
    }
}

/// A model of ours as a GGUF has it.
#[expect(clippy::too_many_lines, reason = "a table of keys and names")]
fn as_gguf(architecture: &'static str, spec: &Spec, qkv: Qkv, model: &ModelFile) -> File {
    let mut file = File::default();
    let a = &spec.attention;
    file.key("general.architecture", Key::Text(architecture));
    let mut set = |key: &str, value: Key| {
        file.key(&format!("{architecture}.{key}"), value);
    };
    for (key, n) in [
        ("block_count", spec.n_layers),
        ("context_length", spec.context_length),
        ("embedding_length", spec.d_model),
        ("feed_forward_length", spec.mlp.ffn_dim),
        ("attention.head_count", a.n_heads),
        ("attention.head_count_kv", a.n_kv_heads),
        ("attention.key_length", a.head_dim),
        ("attention.value_length", a.head_dim),
    ] {
        set(key, Key::U32(n as u32));
    }
    let eps = if spec.norm.kind == NormKind::RmsNorm { "layer_norm_rms_epsilon" } else { "layer_norm_epsilon" };
    set(&format!("attention.{eps}"), Key::F32(spec.norm.eps));
    match &spec.position {
        Position::Rotary(rotary) => {
            set("rope.dimension_count", Key::U32(rotary.dims as u32));
            set("rope.freq_base", Key::F32(rotary.theta));
            match &rotary.scaling {
                None => {}
                Some(RotaryScaling::Linear { factor }) => {
                    set("rope.scaling.type", Key::Text("linear"));
                    set("rope.scaling.factor", Key::F32(*factor));
                }
                Some(RotaryScaling::Yarn { factor, original, .. }) => {
                    set("rope.scaling.type", Key::Text("yarn"));
                    set("rope.scaling.factor", Key::F32(*factor));
                    set("rope.scaling.original_context_length", Key::U32(*original as u32));
                    set("rope.scaling.finetuned", Key::Bool(true));
                }
                Some(other) => panic!("{other:?}"),
            }
        }
        Position::Alibi(alibi) if architecture == "mpt" => {
            set("attention.max_alibi_bias", Key::F32(alibi.max_bias));
        }
        _ => {}
    }
    if let Some(clip) = a.clip {
        set("attention.clamp_kqv", Key::F32(clip));
    }
    if let Some(window) = &a.window {
        set("attention.sliding_window", Key::U32(window.size as u32));
        if architecture == "gemma3" {
            let inside = window.layers.as_ref().map_or(0, Vec::len);
            set("attention.sliding_window_pattern", Key::U32(inside as u32 + 1));
        }
    }
    if let Some(cap) = a.softcap {
        set("attn_logit_softcapping", Key::F32(cap));
    }
    if let Some(cap) = spec.logits.softcap {
        set("final_logit_softcapping", Key::F32(cap));
    }
    if architecture == "gptneox" {
        let parallel = spec.residual == Residual::Parallel;
        set("use_parallel_residual", Key::Bool(parallel));
    }
    if let (Some(encoder), Position::RelativeBias(bias)) = (&spec.encoder, &spec.position) {
        set("block_count", Key::U32(encoder.n_layers as u32));
        set("decoder_block_count", Key::U32(spec.n_layers as u32));
        set("decoder_start_token_id", Key::U32(encoder.start_id));
        set("attention.relative_buckets_count", Key::U32(bias.buckets as u32));
        set("attention.layer_norm_epsilon", Key::F32(spec.norm.eps));
    }
    if architecture == "bert" {
        set("attention.causal", Key::Bool(false));
        // Added to the positions already.
        file.f32s("token_types.weight", &[2, spec.d_model], &vec![0.0; 2 * spec.d_model]);
    }
    if let [eos, ..] = spec.eos_ids[..] {
        file.key("tokenizer.ggml.eos_token_id", Key::U32(eos));
    }
    let two_norms = architecture == "falcon" && spec.residual == Residual::Parallel;
    for decl in spec.tensors() {
        let values = values(model, &decl.name);
        let (stack, name) = match decl.name.strip_prefix("encoder.") {
            Some(rest) => ("enc.", rest),
            None if spec.encoder.is_some() && !["embed", "head"].iter().any(|p| decl.name.starts_with(p)) => {
                ("dec.", &*decl.name)
            }
            None => ("", &*decl.name),
        };
        if name == "relative_bias" {
            file.f32s(&format!("{stack}blk.0.attn_rel_b.weight"), &decl.shape, &values);
            continue;
        }
        let (stem, kind) = name.rsplit_once('.').unwrap();
        let (place, part) = match stem.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) {
            Some((layer, part)) => (format!("{stack}blk.{layer}."), part),
            None => (stack.to_string(), if kind == "tokens" || kind == "positions" { name } else { stem }),
        };
        let kind = if ["tokens", "positions"].contains(&kind) { "weight" } else { kind };
        let name = match part {
            "embed.tokens" => "token_embd",
            "embed.positions" => "position_embd",
            "embed.norm" => "token_embd_norm",
            "attn_norm" if two_norms => "attn_norm_2",
            "mlp_norm" if two_norms => "attn_norm",
            "attn_norm" => "attn_norm",
            "mlp_norm" => "ffn_norm",
            "attn_post_norm" if architecture == "bert" => "attn_output_norm",
            "mlp_post_norm" if architecture == "bert" => "layer_output_norm",
            "attn_post_norm" => "post_attention_norm",
            "mlp_post_norm" => "post_ffw_norm",
            "attn.out" if spec.encoder.is_some() => "attn_o",
            "attn.out" => "attn_output",
            "cross_norm" => "cross_attn_norm",
            "cross.q" => "cross_attn_q",
            "cross.kv" => "",
            "cross.out" => "cross_attn_o",
            "attn.q_norm" => "attn_q_norm",
            "attn.k_norm" => "attn_k_norm",
            "attn.qkv" => "attn_qkv",
            "mlp.gate" => "ffn_gate",
            "mlp.up" => "ffn_up",
            "mlp.down" => "ffn_down",
            "final_norm" => "output_norm",
            "head" => "output",
            other => panic!("{other}"),
        };
        if part == "cross.kv" {
            let (half, shape) = (values.len() / 2, [decl.shape[0] / 2, decl.shape[1]]);
            file.f32s(&format!("{place}cross_attn_k.{kind}"), &shape, &values[..half]);
            file.f32s(&format!("{place}cross_attn_v.{kind}"), &shape, &values[half..]);
            continue;
        }
        if part != "attn.qkv" || qkv == Qkv::Fused {
            file.f32s(&format!("{place}{name}.{kind}"), &decl.shape, &values);
            continue;
        }
        let cols = decl.shape.get(1).copied().unwrap_or(1);
        let mut rows = values.chunks_exact(cols);
        for (name, heads) in [("attn_q", a.n_heads), ("attn_k", a.n_kv_heads), ("attn_v", a.n_kv_heads)] {
            let mut part = Vec::new();
            for _ in 0..heads {
                let head: Vec<_> = rows.by_ref().take(a.head_dim).collect();
                if qkv == Qkv::Pairs && name != "attn_v" {
                    let (first, second) = head.split_at(a.head_dim / 2);
                    first.iter().zip(second).for_each(|(a, b)| part.extend([*a, *b]));
                } else {
                    part.extend(head);
                }
            }
            let mut shape = decl.shape.clone();
            shape[0] = heads * a.head_dim;
            file.f32s(&format!("{place}{name}.{kind}"), &shape, &part.concat());
        }
    }
    file
}

#[test]
fn architectures_give_the_models_of_their_hugging_face_form() {
    for (fixture, architecture, qkv, unsaid) in FAMILIES {
        let source = repository("tests/families").join(fixture);
        let (expected, _) = converted(&source, QuantType::F32).unwrap();
        let mut spec = Checkpoint::open(&source).unwrap().spec().clone();
        let folder = tempfile::tempdir().unwrap();
        let path = as_gguf(architecture, &spec, *qkv, &expected).write(folder.path());
        let checkpoint = Checkpoint::open(&path).unwrap_or_else(|e| panic!("{fixture}: {e}"));
        unsaid(&mut spec);
        assert_eq!(*checkpoint.spec(), spec, "{fixture}");
        assert!(checkpoint.warnings().iter().all(|w| !w.contains("unknown")), "{fixture}: {:?}", checkpoint.warnings());
        let (found, _) = converted(&path, QuantType::F32).unwrap();
        assert_same(&found, &expected, fixture);
    }
}

/// The embedding models of llama.cpp's users say how they pool.
#[test]
fn embedding_models_say_how_they_pool() {
    for (n, kind) in [(1, PoolingKind::Mean), (2, PoolingKind::Cls), (3, PoolingKind::Last)] {
        let pooling = opened(set("llama.pooling_type", Key::U32(n))).spec().pooling.clone();
        assert_eq!((pooling.kind, pooling.normalize), (kind, true));
    }
    assert!(!opened(set("llama.pooling_type", Key::U32(0))).spec().pooling.normalize);
    let message = with(set("llama.pooling_type", Key::U32(4)));
    assert!(message.contains("`llama.pooling_type` is 4, expected 0 (none), 1 (mean)"), "{message}");
}

/// The fixture `bert` with a vocabulary, some keys changed.
fn wordpiece(tokens: &[&str], kinds: Vec<i32>, changed: Option<(&str, Key)>) -> Result<Tokenizer, String> {
    let source = repository("tests/families/bert");
    let spec = Checkpoint::open(&source).unwrap().spec().clone();
    let mut file = as_gguf("bert", &spec, Qkv::Split, &converted(&source, QuantType::F32).unwrap().0);
    file.key("tokenizer.ggml.model", Key::Text("bert"));
    file.key("tokenizer.ggml.tokens", Key::Texts(tokens.iter().map(ToString::to_string).collect()));
    if !kinds.is_empty() {
        file.key("tokenizer.ggml.token_type", Key::Ints(kinds));
    }
    if let Some((key, value)) = changed {
        file.key(key, value);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = file.write(folder.path());
    if let Err(e) = Checkpoint::open(&path) {
        return Err(e.to_string());
    }
    let (model, _) = converted(&path, QuantType::F32).unwrap();
    let (_, json) = model.tokenizer().unwrap();
    Ok(Tokenizer::from_json(&json).unwrap())
}

#[test]
fn word_pieces_are_those_of_bert() {
    let tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁the", "▁cat", "s", "▁'", "▁naive", "ly", "▁漢", "▁[unused7]"];
    // Only what is special has a kind of its own, and in files from before there are no kinds at all.
    for kinds in [vec![], vec![3, 3, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1]] {
        let tokenizer = wordpiece(&tokens, kinds, None).unwrap();
        let ids = |text: &str| tokenizer.encode_whole(text).unwrap();
        assert_eq!(ids("The cats' Naïvely"), [2, 4, 5, 6, 7, 8, 9, 3]);
        assert_eq!(ids("漢the\u{0}dog cat"), [2, 10, 1, 5, 3]);
    }
    let cased = wordpiece(&[&tokens[..], &["▁The"]].concat(), vec![], None).unwrap();
    assert_eq!(cased.encode_whole("The the THE").unwrap(), [2, 12, 4, 1, 3]);
    let told = wordpiece(&tokens, vec![], Some(("tokenizer.ggml.normalizer.lowercase", Key::Bool(false)))).unwrap();
    assert_eq!(told.encode_whole("The the").unwrap(), [2, 1, 4, 3]);

    // A name that is in the vocabulary only by chance is text, a token that users added is one, and not special.
    let kinds = vec![3, 3, 3, 3, 1, 1, 1, 1, 1, 1, 4, 1];
    let added = wordpiece(&[&tokens[..10], &["▁<end>", "[unused7]"]].concat(), kinds, None).unwrap();
    assert_eq!(added.encode_whole("the<end>cat [unused7]").unwrap(), [2, 4, 10, 5, 1, 1, 1, 3]);
    assert!(!added.is_special(10) && added.is_special(2));

    let refused = |tokens: &[&str], changed| wordpiece(tokens, vec![], changed).err().unwrap();
    for (message, expected) in [
        (refused(&tokens[..3], None), "no token \"[SEP]\", and no `tokenizer.ggml.seperator_token_id`"),
        (refused(&[&tokens[..], &["▁cat"]].concat(), None), "tokens 5 and 12 are both \"cat\""),
        (
            refused(&tokens, Some(("tokenizer.ggml.token_type_count", Key::U32(3)))),
            "`tokenizer.ggml.token_type_count` is 3, expected 2, the rows of `token_types.weight`",
        ),
        (
            refused(&tokens, Some(("tokenizer.ggml.cls_token_id", Key::U32(12)))),
            "`tokenizer.ggml.cls_token_id` is 12, expected a token that is in use, of 12",
        ),
        (
            refused(&tokens, Some(("bert.attention.causal", Key::Bool(true)))),
            "`bert.attention.causal` is true, expected false",
        ),
    ] {
        assert!(message.contains(expected), "{message:?} should contain {expected:?}");
    }
}

/// Changes a key, or adds it.
fn set(name: &'static str, value: Key) -> impl FnOnce(&mut File) {
    move |f| {
        f.key(name, value);
    }
}

/// Adds a tensor.
fn tensor(name: &'static str, shape: &'static [usize], values: &'static [f32]) -> impl FnOnce(&mut File) {
    move |f| {
        f.f32s(name, shape, values);
    }
}

/// The message for a changed file.
fn with(change: impl FnOnce(&mut File)) -> String {
    let mut file = llama();
    change(&mut file);
    message(&file.bytes())
}

/// The message for a file of these bytes.
fn message(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    failure(&path)
}

/// The checkpoint of a changed file.
fn opened(change: impl FnOnce(&mut File)) -> Checkpoint {
    let folder = tempfile::tempdir().unwrap();
    let mut file = llama();
    change(&mut file);
    Checkpoint::open(&file.write(folder.path())).unwrap()
}

#[test]
fn files_are_known_by_their_first_bytes_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sha256-0123");
    std::fs::write(&path, llama().bytes()).unwrap();
    assert!(Checkpoint::open(&path).unwrap().spec().n_layers == 1);
}

#[test]
fn rejects_what_is_not_supported_by_name() {
    for (message, expected) in [
        (
            with(set("general.architecture", Key::Text("rwkv6"))),
            "`general.architecture` is \"rwkv6\", expected one of: llama, ",
        ),
        (with(|f| f.keys.clear()), "`general.architecture` missing"),
        (
            with(|f| f.tensor("blk.0.attn_q.weight").kind = 20),
            "tensor `blk.0.attn_q.weight`: type is IQ4_NL, expected F32",
        ),
        (with(|f| f.tensor("blk.0.attn_q.weight").kind = 4), "type is number 4"),
        (with(set("llama.expert_count", Key::U32(8))), "`llama.expert_count` is 8, expected it to be absent"),
        (
            with(set("llama.embedding_length", Key::Text("x"))),
            "`llama.embedding_length` is \"x\", expected a whole number",
        ),
        (with(set("llama.block_count", Key::U32(0))), "`llama.block_count` is 0, expected a positive number"),
        (with(set("llama.block_count", Key::U32(2))), "tensor `blk.1.attn_norm.weight`: missing, expected shape [32]"),
        (with(set("llama.block_count", Key::U32(u32::MAX))), "4294967295 layers"),
        (with(set("llama.attention.head_count", Key::Ints(vec![2, 4]))), "is an array of 2 numbers"),
        (with(set("llama.attention.head_count", Key::U32(3))), "not a multiple of 3 heads"),
        (with(set("llama.rope.dimension_count", Key::U32(8))), "is 8, expected 16, the width of a head"),
        (with(set("llama.rope.scaling.type", Key::Text("longrope"))), "expected none, linear or yarn"),
        (with(set("llama.vocab_size", Key::U32(9))), "`llama.vocab_size` is 9, expected 8"),
        (with(set("tokenizer.ggml.eos_token_id", Key::U32(8))), "is 8, expected less than 8"),
        (with(set("split.count", Key::U32(2))), "`split.count` is 2, expected one file"),
        (with(tensor("blk.0.attn_q.extra", &[1], &[0.0])), "`blk.0.attn_q.extra`: not part of a llama model"),
        (with(tensor("rope_freqs.weight", &[8], &[2.0; 8])), "`rope_freqs.weight`: element 0 is 2"),
        (with(|f| f.tensors.retain(|t| t.name != "token_embd.weight")), "`token_embd.weight`: missing"),
        (
            with(|f| f.tensor("blk.0.ffn_up.weight").shape = vec![16, 64]),
            "expected shape [32, 32] (metadata), found [16, 64]",
        ),
        (
            with(|f| f.tensor("blk.0.ffn_norm.weight").kind = 8),
            "type is Q8_0, which has rows of a multiple of 32 weights",
        ),
        (
            with(|f| f.tensor("blk.0.ffn_up.weight").kind = 14),
            "type is Q6_K, which has rows of a multiple of 256 weights",
        ),
    ] {
        assert!(message.contains(expected), "{message:?} should contain {expected:?}");
    }
}

/// The front of a file with these counts, and some bytes.
fn counts(tensors: u64, keys: u64, rest: &[u8]) -> Vec<u8> {
    [b"GGUF\x03\0\0\0", tensors.to_le_bytes().as_slice(), &keys.to_le_bytes(), rest].concat()
}

#[test]
fn rejects_damaged_and_hostile_files() {
    let huge = u64::MAX.to_le_bytes();
    let array = |kind: u32, n: u64| {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend(n.to_le_bytes());
        set("x", Key::Raw(9, bytes))
    };
    for (message, expected) in [
        (message(b""), "the file is empty"),
        (message(b"GG"), "ends at byte 2"),
        (message(b"PK\x03\x04 and so on"), "not a GGUF file: starts with [50, 4b, 03, 04]"),
        (message(b"GGUF\0\0\0\x03________________"), "big-endian"),
        (message(b"GGUF\x01\0\0\0________________"), "version 1 of GGUF, expected 2 or 3"),
        (message(&counts(u64::MAX, 0, &[])), "claims 18446744073709551615 tensors"),
        (message(&counts(0, 1 << 60, &[])), "claims 1152921504606846976 key-value pairs"),
        (message(&counts(0, 1, &[&huge[..], &[0; 64]].concat())), "a key of 18446744073709551615 bytes"),
        (message(&counts(0, 1, &[&60_000u64.to_le_bytes()[..], &[0; 64]].concat())), "claims 60000 bytes of a key"),
        (message(&counts(0, 1, &[&2u64.to_le_bytes()[..], &[255; 64]].concat())), "a key is not UTF-8"),
        (with(array(4, u64::MAX)), "values of `x`"),
        (with(array(8, 1 << 40)), "claims 1099511627776 values of `x`"),
        (with(array(9, 1)), "`x` is an array of arrays"),
        (with(array(77, 1)), "`x` is an array of type 77"),
        (with(set("x", Key::Raw(13, vec![0; 8]))), "`x` has a value of type 13"),
        (with(set("x", Key::Raw(7, vec![2]))), "`x` is 2, expected 0 or 1"),
        (with(set("x", Key::Raw(8, huge.to_vec()))), "claims 18446744073709551615 bytes of `x`"),
        (with(|f| f.keys.push(f.keys[0].clone())), "key `general.architecture` is there twice"),
        (with(set("general.alignment", Key::U32(0))), "`general.alignment` is 0, expected a power of two"),
        (with(|f| f.tensors.push(f.tensors[1].clone())), "tensor `blk.0.attn_q.weight`: is there twice"),
        (with(|f| f.tensors[1].offset = Some(1)), "its offset 1 is not a multiple of 32"),
        (with(|f| f.tensors[1].offset = Some(0)), "inside of `"),
        (with(|f| f.tensors[1].offset = Some(u64::MAX - 31)), "truncated?"),
        (with(|f| f.tensors[1].offset = Some(1 << 40)), "truncated?"),
        (with(|f| f.tensors[1].shape = vec![1 << 33, 1 << 33]), "overflows"),
        (with(|f| f.tensors[1].shape = vec![u64::MAX, 32]), "overflows"),
        (with(|f| f.tensors[1].shape = vec![1; 5]), "5 dimensions, expected 1 to 4"),
        (with(|f| f.tensors[1].shape = vec![]), "0 dimensions"),
    ] {
        assert!(message.contains(expected), "{message:?} should contain {expected:?}");
    }
    let whole = llama().bytes();
    let last = message(&whole[..whole.len() - 128]);
    assert!(last.contains("tensor `output_norm.weight`: 128 bytes at"), "{last}");
}

#[test]
fn no_damage_makes_it_panic() {
    let whole = llama().bytes();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let front = whole.len() - 30_000;
    for length in (0..front).step_by(7) {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(Checkpoint::open(&path).is_err(), "{length} bytes");
    }
    let mut state = 1u64;
    for at in 0..front.min(2000) {
        let mut bytes = whole.clone();
        for i in 0..=at % 3 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bytes[(at + i * 5) % front] = (state >> 40) as u8;
        }
        std::fs::write(&path, bytes).unwrap();
        if let Err(e) = Checkpoint::open(&path) {
            assert!(!e.to_string().contains('\n'), "{e}");
        }
    }
}

#[test]
fn llama_3_positions_are_known_by_their_factors() {
    let (head, theta) = (64, 500_000f64);
    // High frequencies stay, low ones are divided by 8, a ramp in between: for 8192 positions, from 1 to 4 turns.
    let factors: Vec<f32> = (0..head / 2)
        .map(|i| {
            let turns = 8192.0 / (std::f64::consts::TAU * theta.powf(f64::from(2 * i) / f64::from(head)));
            let smooth = ((turns - 1.0) / 3.0).clamp(0.0, 1.0);
            (1.0 / ((1.0 - smooth) / 8.0 + smooth)) as f32
        })
        .collect();
    let checkpoint = opened(|f| {
        f.key("llama.rope.freq_base", Key::F32(theta as f32));
        f.key("llama.attention.key_length", Key::U32(64)).key("llama.attention.value_length", Key::U32(64));
        for name in ["attn_q", "attn_k", "attn_v"] {
            let name = format!("blk.0.{name}.weight");
            f.tensors.retain(|t| t.name != name);
            f.f32s(&name, &[128, D], &vec![0.5; 128 * D]);
        }
        f.tensors.retain(|t| t.name != "blk.0.attn_output.weight");
        f.f32s("blk.0.attn_output.weight", &[D, 128], &vec![0.5; 128 * D]);
        f.f32s("rope_freqs.weight", &[32], &factors);
    });
    let Position::Rotary(rotary) = &checkpoint.spec().position else { panic!() };
    let expected = RotaryScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192 };
    assert_eq!(rotary.scaling, Some(expected));
}

/// A file with a byte-level tokenizer of 8 tokens.
fn tokens(pre: &'static str) -> impl FnOnce(&mut File) {
    move |f| {
        let list = ["<|end|>", "h", "e", "l", "o", "he", "Ġ", "[PAD]"].map(String::from).to_vec();
        f.key("tokenizer.ggml.model", Key::Text("gpt2")).key("tokenizer.ggml.pre", Key::Text(pre));
        f.key("tokenizer.ggml.tokens", Key::Texts(list));
        f.key("tokenizer.ggml.token_type", Key::Ints(vec![3, 1, 1, 1, 1, 1, 1, 5]));
        f.key("tokenizer.ggml.merges", Key::Texts(vec!["h e".into()]));
        f.key("tokenizer.chat_template", Key::Text("{{ messages }}"));
    }
}

#[test]
fn tokenizers_are_made_of_tokens_and_merges() {
    for pre in ["gpt-2", "smollm", "llama-bpe", "qwen2", "falcon", "bloom"] {
        let folder = tempfile::tempdir().unwrap();
        let mut file = llama();
        tokens(pre)(&mut file);
        let (model, _) = converted(&file.write(folder.path()), QuantType::F32).unwrap();
        let (name, bytes) = model.tokenizer().unwrap();
        let tokenizer = match name {
            TOKENIZER_TABLES => Tokenizer::from_tables(bytes).unwrap(),
            _ => Tokenizer::from_json(&bytes).unwrap(),
        };
        let ids = tokenizer.encode("hello<|end|> hell").unwrap();
        assert_eq!(ids, [5, 3, 3, 4, 0, 6, 5, 3, 3], "{pre}");
        assert_eq!(tokenizer.decode(&ids), "hello<|end|> hell", "{pre}");
        assert!(tokenizer.is_special(0) && !tokenizer.is_special(5), "{pre}");
    }
    let ended = |f: &mut File| {
        tokens("gpt-2")(f);
        f.key("tokenizer.ggml.eos_token_id", Key::U32(0));
    };
    assert!(opened(ended).ignored_fields().iter().all(|field| !field.contains("chat_template")));
    let folder = tempfile::tempdir().unwrap();
    let mut file = llama();
    ended(&mut file);
    let (model, _) = converted(&file.write(folder.path()), QuantType::F32).unwrap();
    let chat = model.chat().unwrap();
    assert_eq!(chat.template, "{{ messages }}");
    assert_eq!(chat.tokens.get("eos_token").map(String::as_str), Some("<|end|>"));
}

#[test]
fn texts_begin_as_the_file_says() {
    for (pre, flag, expected) in [
        ("gpt-2", None, &[5, 3][..]),
        ("gpt-2", Some(true), &[0, 5, 3]),
        ("llama-bpe", None, &[0, 5, 3]),
        ("llama-bpe", Some(false), &[5, 3]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut file = llama();
        tokens(pre)(&mut file);
        let list = ["<|end|>", "h", "e", "l", "a", "he", "Ġ", "[PAD]"].map(String::from).to_vec();
        file.key("tokenizer.ggml.tokens", Key::Texts(list)).key("tokenizer.ggml.bos_token_id", Key::U32(0));
        if let Some(flag) = flag {
            file.key("tokenizer.ggml.add_bos_token", Key::Bool(flag));
        }
        let (model, _) = converted(&file.write(folder.path()), QuantType::F32).unwrap();
        let (name, bytes) = model.tokenizer().unwrap();
        let tokenizer = match name {
            TOKENIZER_TABLES => Tokenizer::from_tables(bytes).unwrap(),
            _ => Tokenizer::from_json(&bytes).unwrap(),
        };
        assert_eq!(tokenizer.encode_start("hel").unwrap(), expected, "{pre} {flag:?}");
        assert_eq!(tokenizer.encode_whole("hel").unwrap(), expected, "{pre} {flag:?}");
        assert_eq!(tokenizer.encode("hel").unwrap(), [5, 3], "{pre} {flag:?}");
    }
}

#[test]
fn unknown_tokenizers_are_left_out_with_a_warning() {
    for (checkpoint, expected) in [
        (opened(tokens("tekken")), "`tokenizer.ggml.pre` is \"tekken\", expected one of: gpt-2"),
        (opened(|_| {}), "no `tokenizer.ggml.model`: converted without a tokenizer"),
        (
            opened(set("tokenizer.ggml.model", Key::Text("rwkv"))),
            "`tokenizer.ggml.model` is \"rwkv\", only gpt2, llama, t5 and bert are supported",
        ),
    ] {
        assert!(!checkpoint.has_tokenizer());
        assert!(checkpoint.warnings().iter().any(|w| w.contains(expected)), "{:?}", checkpoint.warnings());
    }
    for (key, value, expected) in [
        ("token_type", Key::Ints(vec![1]), "expected as many as there are tokens, 8"),
        ("merges", Key::Texts(vec!["he".into()]), "merge 0 is \"he\", expected two tokens"),
        ("tokens", Key::Texts(vec!["a".into(); 8]), "tokens 0 and 1 are both \"a\""),
        ("tokens", Key::Texts(vec!["a".into(); 9]), "expected at most 8, the rows of the embedding"),
    ] {
        let message = with(|f| {
            tokens("gpt-2")(f);
            f.key(&format!("tokenizer.ggml.{key}"), value);
        });
        assert!(message.contains(expected), "{message:?} should contain {expected:?}");
    }
}
