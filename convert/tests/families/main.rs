//! Every family of `tests/families` (tiny checkpoints made by transformers): it converts to what its fixture is about, with
//! every value in its place, and what is not supported is refused in one line. Logits are compared by the tests of the whole.

mod configs;
#[path = "../support/mod.rs"]
mod support;

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use support::*;
use tidbit_convert::spec_from_json;
use tidbit_runtime::format::ModelFile;
use tidbit_runtime::quant::QuantType;
use tidbit_runtime::spec::{
    Activation, Alibi, Encoder, Head, NormKind, Pairs, Place, Pooling, PoolingKind, Position, QkNormOver, RelativeBias,
    Residual, Rotary, RotaryScaling, Spec, Trained,
};

fn folder(fixture: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/families").join(fixture)
}

fn open(fixture: &str) -> ModelFile {
    let (file, _) = converted(&folder(fixture), QuantType::F32).unwrap_or_else(|e| panic!("{fixture}: {e}"));
    file
}

fn rotary(spec: &Spec) -> &Rotary {
    match &spec.position {
        Position::Rotary(rotary) => rotary,
        other => panic!("{other:?}"),
    }
}

/// Query heads, key heads, width of a head.
fn heads(spec: &Spec) -> [usize; 3] {
    [spec.attention.n_heads, spec.attention.n_kv_heads, spec.attention.head_dim]
}

/// Biases of query, key and value; of the output; of the network; of the head.
fn biases(spec: &Spec) -> [bool; 4] {
    [spec.attention.qkv_bias, spec.attention.out_bias, spec.mlp.bias, spec.logits.bias]
}

/// The window, and its layers.
fn window(spec: &Spec) -> Option<(usize, Option<&[usize]>)> {
    spec.attention.window.as_ref().map(|w| (w.size, w.layers.as_deref()))
}

fn scale(x: f32) -> f32 {
    1.0 / x.sqrt()
}

type Check = fn(&Spec) -> bool;

const NONE: [bool; 4] = [false; 4];

/// Every fixture of a family that is supported, and what it is about.
const MODELS: &[(&str, Check)] = &[
    ("gpt2-cerebras", |s| {
        (s.mlp.activation, s.mlp.ffn_dim, s.head) == (Activation::GeluErf, 76, Head::Tied)
            && s.position == Position::Learned
            && s.attention.scale == scale(10.0)
    }),
    ("neox-pythia", |s| {
        let r = rotary(s);
        (r.dims, r.exponent, s.residual, s.head) == (4, Some(3), Residual::Parallel, Head::Untied)
    }),
    ("neox-linear", |s| {
        let r = rotary(s);
        r.scaling == Some(RotaryScaling::Linear { factor: 4.0 })
            && (r.dims, r.exponent, s.head) == (6, None, Head::Tied)
            && s.mlp.activation == Activation::GeluTanh
    }),
    ("gptneo", |s| {
        window(s) == Some((9, Some(&[1, 3]))) && s.attention.scale == 1.0 && biases(s) == [false, true, true, false]
    }),
    ("gptneo-pattern", |s| {
        window(s) == Some((5, Some(&[0, 2])))
            && s.mlp.ffn_dim == 96
            && (s.mlp.activation, s.head) == (Activation::Relu, Head::Untied)
    }),
    ("gptj", |s| {
        let r = rotary(s);
        (r.dims, r.pairs, s.residual) == (4, Pairs::Interleaved, Residual::ParallelOneNorm)
            && biases(s) == [false, false, true, true]
            && (s.mlp.ffn_dim, s.context_length) == (128, 48)
    }),
    ("gptj-inner", |s| (rotary(s).dims, s.mlp.ffn_dim, s.attention.n_heads) == (8, 60, 5)),
    ("opt-125m", |s| {
        (s.norm.place, s.final_norm, s.head, s.context_length) == (Place::Before, true, Head::Tied, 64)
            && s.embedding.dim.is_none()
            && biases(s) == [true, true, true, false]
    }),
    ("opt-350m", |s| (s.norm.place, s.final_norm, s.embedding.dim) == (Place::After, false, Some(20))),
    ("opt-nobias", |s| {
        (s.norm.place, s.norm.trained, s.final_norm) == (Place::Before, Trained::Nothing, false)
            && (s.embedding.dim, s.head, biases(s)) == (Some(20), Head::Untied, NONE)
    }),
    ("bloom", |s| {
        s.position == Position::Alibi(Alibi { max_bias: 8.0, bf16: false })
            && s.embedding.norm
            && (s.mlp.activation, s.residual, s.context_length) == (Activation::GeluTanh, Residual::Sequential, 32)
    }),
    ("bloom-residual", |s| s.residual == Residual::FromNorm && s.mlp.ffn_dim == 120),
    ("mpt", |s| {
        s.position == Position::Alibi(Alibi { max_bias: 8.0, bf16: false })
            && (s.norm.trained, s.norm.eps, biases(s)) == (Trained::Gain, 1e-5, NONE)
            && (s.mlp.activation, s.mlp.ffn_dim, s.head) == (Activation::GeluErf, 144, Head::Tied)
    }),
    ("mpt-clip", |s| (s.attention.clip, s.attention.scale) == (Some(1.5), 0.2)),
    ("falcon-7b", |s| {
        (heads(s), s.residual, biases(s), s.head) == ([5, 1, 6], Residual::ParallelOneNorm, NONE, Head::Tied)
            && *rotary(s) == Rotary::new(6, 10_000.0)
    }),
    ("falcon-40b", |s| (heads(s), s.residual) == ([4, 2, 10], Residual::Parallel)),
    ("falcon-11b", |s| {
        (heads(s), s.residual, s.head) == ([4, 1, 8], Residual::ParallelOneNorm, Head::Untied)
            && rotary(s).theta == 500_042.0
    }),
    ("falcon-rw", |s| {
        s.position == Position::Alibi(Alibi { max_bias: 8.0, bf16: true })
            && (heads(s), s.residual, biases(s)) == ([9, 9, 4], Residual::Sequential, [true, true, true, false])
    }),
    ("falcon-rope-mha", |s| {
        rotary(s).scaling == Some(RotaryScaling::Linear { factor: 2.0 })
            && (heads(s), s.residual) == ([4, 4, 8], Residual::ParallelOneNorm)
    }),
    ("phi-1", |s| {
        (rotary(s).dims, s.residual, biases(s)) == (8, Residual::ParallelOneNorm, [true; 4]) && s.eos_ids.is_empty()
    }),
    ("phi-2", |s| (rotary(s).dims, heads(s)) == (4, [3, 3, 10])),
    ("phi-qknorm", |s| {
        let norm = s.attention.qk_norm.as_ref().unwrap();
        (norm.kind, norm.trained, norm.over) == (NormKind::LayerNorm, Trained::GainAndBias, QkNormOver::Head)
            && (norm.eps, heads(s)) == (2e-3, [4, 2, 10])
    }),
    ("llama-1", |s| {
        (heads(s), biases(s), s.head, s.mlp.gated) == ([4, 4, 8], NONE, Head::Untied, true)
            && (s.norm.kind, s.norm.eps, s.mlp.activation) == (NormKind::RmsNorm, 2e-3, Activation::Silu)
            && *rotary(s) == Rotary::new(8, 10_000.0)
    }),
    ("llama-smollm", |s| (heads(s), s.head, rotary(s).theta) == ([3, 1, 12], Head::Tied, 100_000.0)),
    ("llama-bias", |s| {
        (heads(s), biases(s), s.mlp.activation) == ([4, 2, 10], [true, true, true, false], Activation::GeluErf)
    }),
    ("llama-linear", |s| rotary(s).scaling == Some(RotaryScaling::Linear { factor: 4.0 }) && s.context_length == 16),
    ("llama-dynamic", |s| rotary(s).scaling == Some(RotaryScaling::Dynamic { factor: 2.0, original: 20 })),
    ("llama-yarn", |s| {
        let magnitude = (0.1 * 4f64.ln() + 1.0) as f32;
        let (factor, beta_fast, beta_slow) = (4.0, 32.0, 1.0);
        let yarn = RotaryScaling::Yarn { factor, beta_fast, beta_slow, original: 32, magnitude, truncate: true };
        rotary(s).scaling == Some(yarn) && (rotary(s).theta, s.context_length) == (50.0, 128)
    }),
    ("llama-yarn-set", |s| {
        let (factor, beta_fast, beta_slow, magnitude) = (3.0, 4.0, 0.5, 0.9);
        let yarn = RotaryScaling::Yarn { factor, beta_fast, beta_slow, original: 24, magnitude, truncate: false };
        rotary(s).scaling == Some(yarn) && (rotary(s).theta, s.context_length) == (1000.0, 64)
    }),
    ("llama-3", |s| {
        rotary(s).scaling == Some(RotaryScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 64 })
            && (s.context_length, s.eos_ids.as_slice()) == (256, &[2, 3])
    }),
    ("mistral-window", |s| window(s) == Some((16, None)) && heads(s) == [4, 2, 8]),
    ("mistral-nemo", |s| window(s).is_none() && heads(s) == [4, 1, 12]),
    ("qwen2", |s| (window(s), biases(s), s.head) == (None, [true, false, false, false], Head::Tied)),
    ("qwen2-window", |s| window(s) == Some((12, Some(&[1, 2]))) && s.head == Head::Untied),
    ("qwen2-yarn", |s| matches!(rotary(s).scaling, Some(RotaryScaling::Yarn { factor: 4.0, original: 32, .. }))),
    ("qwen3", |s| {
        let norm = s.attention.qk_norm.as_ref().unwrap();
        (norm.kind, norm.trained, norm.over) == (NormKind::RmsNorm, Trained::Gain, QkNormOver::Head)
            && (heads(s), biases(s)) == ([4, 2, 12], NONE)
    }),
    ("qwen3-window", |s| window(s) == Some((10, Some(&[1, 2]))) && biases(s) == [true, true, false, false]),
    ("gemma-1", |s| {
        (heads(s), s.mlp.activation, s.head) == ([3, 1, 16], Activation::GeluTanh, Head::Tied)
            && s.embedding.scale == 32f32.sqrt()
    }),
    ("gemma-2", |s| {
        (s.norm.place, s.attention.softcap, s.logits.softcap) == (Place::Sandwich, Some(5.0), Some(3.0))
            && (s.attention.scale, window(s)) == (scale(20.0), Some((12, Some(&[0, 2]))))
    }),
    ("gemma-2-nocap", |s| {
        (s.attention.softcap, s.logits.softcap, window(s)) == (None, None, Some((12, Some(&[0, 2]))))
    }),
    ("gemma-3", |s| {
        let linear = RotaryScaling::Linear { factor: 8.0 };
        window(s) == Some((12, Some(&[0, 1])))
            && s.attention.window.as_ref().unwrap().rotary == Some(Rotary::new(12, 10_000.0))
            && *rotary(s) == Rotary { scaling: Some(linear), ..Rotary::new(12, 1e6) }
            && s.attention.qk_norm.as_ref().unwrap().over == QkNormOver::Head
    }),
    ("gemma-3-layers", |s| {
        let linear = RotaryScaling::Linear { factor: 8.0 };
        window(s) == Some((12, Some(&[0, 2])))
            && s.attention.window.as_ref().unwrap().rotary == Some(Rotary::new(12, 10_000.0))
            && *rotary(s) == Rotary { scaling: Some(linear), ..Rotary::new(12, 1e6) }
    }),
    ("gemma-3-vision", |s| {
        (s.family.as_str(), s.context_length, s.eos_ids.as_slice()) == ("gemma3", 131_072, &[1, 2])
            && (window(s), s.norm.eps) == (Some((12, Some(&[0]))), 1e-6)
    }),
    ("olmo-1", |s| {
        (s.norm.kind, s.norm.trained, s.norm.eps) == (NormKind::LayerNorm, Trained::Nothing, 1e-5)
            && s.attention.clip == Some(1.5)
    }),
    ("olmo-1-tied", |s| {
        (heads(s), biases(s), s.head) == ([4, 2, 8], [true, true, false, false], Head::Tied)
            && s.attention.clip.is_none()
    }),
    ("olmo-2", |s| {
        let norm = s.attention.qk_norm.as_ref().unwrap();
        (s.norm.place, norm.over, norm.eps) == (Place::Branch, QkNormOver::AllHeads, 2e-3)
    }),
    ("stablelm-2", |s| {
        (s.norm.kind, s.norm.trained, biases(s))
            == (NormKind::LayerNorm, Trained::GainAndBias, [true, false, false, false])
            && (rotary(s).dims, s.residual, s.mlp.gated) == (4, Residual::Sequential, true)
    }),
    ("stablelm-2-12b", |s| {
        let norm = s.attention.qk_norm.as_ref().unwrap();
        (norm.kind, norm.trained, norm.over) == (NormKind::LayerNorm, Trained::Gain, QkNormOver::HeadWithItsGain)
            && (rotary(s).dims, s.residual) == (4, Residual::ParallelOneNorm)
    }),
    ("mixtral", |s| experts(s, [4, 2], true, None)),
    ("mixtral-window", |s| experts(s, [5, 3], true, None) && s.attention.window.as_ref().unwrap().size == 12),
    ("qwen2-moe", |s| experts(s, [5, 2], false, None) && s.mlp.experts.as_ref().unwrap().shared_dim.is_some()),
    ("bert", |s| {
        is_encoder(s) && (s.norm.eps, s.mlp.activation) == (2e-3, Activation::GeluErf) && s.context_length == 64
    }),
    ("minilm", |s| is_encoder(s) && (s.norm.eps, s.mlp.activation) == (1e-12, Activation::GeluTanh)),
    ("roberta", |s| is_encoder(s) && s.context_length == 64 && s.eos_ids.is_empty()),
    ("t5", |s| {
        is_t5(s, [2, 2], [32, 3, 8]) && (s.mlp.gated, s.mlp.activation, s.head) == (false, Activation::Relu, Head::Tied)
    }),
    ("mt5", |s| {
        let position = Position::RelativeBias(RelativeBias { buckets: 32, max_distance: 128 });
        s.encoder == Some(Encoder { n_layers: 1, start_id: 0 })
            && (s.n_layers, s.context_length, heads(s), s.head) == (1, 512, [2, 2, 12], Head::Untied)
            && (s.mlp.gated, s.mlp.activation, s.position == position) == (true, Activation::GeluTanh, true)
    }),
    ("t5-tied-gated", |s| {
        is_t5(s, [1, 2], [32, 2, 8]) && (s.mlp.gated, s.mlp.activation, s.head) == (true, Activation::Silu, Head::Tied)
    }),
    ("flan-t5", |s| {
        let network = (s.mlp.gated, s.mlp.activation, s.mlp.ffn_dim);
        is_t5(s, [2, 1], [32, 3, 8]) && network == (true, Activation::GeluTanh, 36) && s.head == Head::Untied
    }),
    ("qwen3-moe", |s| experts(s, [5, 3], true, Some(&[1])) && s.attention.qk_norm.is_some()),
];

fn is_encoder(s: &Spec) -> bool {
    (s.attention.causal, s.head, s.embedding.norm, s.norm.place, s.final_norm)
        == (false, Head::None, true, Place::After, false)
        && s.pooling == Pooling::default()
}

/// Layers of the encoder and of the decoder; the width, and the heads and theirs.
fn is_t5(s: &Spec, layers: [usize; 2], sizes: [usize; 3]) -> bool {
    let a = &s.attention;
    let scale = if s.head == Head::Tied { scale(32.0) } else { 1.0 };
    s.encoder == Some(Encoder { n_layers: layers[0], start_id: 0 })
        && (s.n_layers, [s.d_model, a.n_heads, a.head_dim]) == (layers[1], sizes)
        && s.position == Position::RelativeBias(RelativeBias { buckets: 16, max_distance: 24 })
        && (s.norm.kind, s.norm.eps, a.scale, s.logits.scale) == (NormKind::RmsNorm, 2e-3, 1.0, scale)
        && (s.context_length, s.eos_ids.as_slice(), biases(s)) == (64, &[1][..], NONE)
}

fn experts(spec: &Spec, counts: [usize; 2], renormalized: bool, layers: Option<&[usize]>) -> bool {
    let e = spec.mlp.experts.as_ref().unwrap();
    ([e.count, e.used], e.renormalized, e.layers.as_deref()) == (counts, renormalized, layers)
}

#[test]
fn every_model_converts() {
    let mut wrong = Vec::new();
    for (fixture, check) in MODELS {
        match converted(&folder(fixture), QuantType::F32) {
            Err(e) => wrong.push(format!("{fixture}: {e}")),
            Ok((file, _)) if !check(file.spec()) => wrong.push(format!("{fixture}: {:?}", file.spec())),
            Ok(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_fixture_is_listed() {
    let all = std::fs::read_dir(folder("")).unwrap().map(|e| e.unwrap().path());
    let mut all: Vec<_> = all
        .filter(|p| p.join("config.json").exists())
        .map(|p| p.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    let mut listed: Vec<_> = MODELS.iter().map(|f| f.0).collect();
    all.sort();
    listed.sort_unstable();
    assert_eq!(listed, all);
}

#[test]
fn other_architectures_are_refused_by_name() {
    let config = r#"{"model_type": "umt5", "architectures": ["UMT5ForConditionalGeneration"]}"#;
    let message = tidbit_convert::spec_from_json("config.json", config).unwrap_err().to_string();
    let parts = ["UMT5ForConditionalGeneration", "is not supported, expected one of: gpt2, "];
    assert!(parts.iter().all(|part| message.contains(part)), "{message}");
}

/// The source's tensors of a fixture.
fn source(fixture: &str) -> Tensors {
    read_safetensors(&[folder(fixture).join("model.safetensors")])
}

/// The source's values, one tensor after the other.
fn joined(source: &Tensors, names: &[String]) -> Vec<f32> {
    names.iter().flat_map(|name| source[name].values()).collect()
}

#[test]
fn queries_keys_and_values_are_joined() {
    for (fixture, stem) in [
        ("llama-bias", "model.layers.1.self_attn."),
        ("llama-smollm", "model.layers.1.self_attn."),
        ("gptneo", "transformer.h.1.attn.attention."),
        ("opt-350m", "decoder.layers.1.self_attn."),
    ] {
        let (file, source) = (open(fixture), source(fixture));
        for kind in ["weight", "bias"] {
            let names = ["q", "k", "v"].map(|part| format!("{stem}{part}_proj.{kind}"));
            if source.contains_key(&names[0]) {
                let got = values(&file, &format!("layers.1.attn.qkv.{kind}"));
                assert!(got == joined(&source, &names), "{fixture}: {kind}");
            }
        }
    }
}

#[test]
fn keys_and_values_of_the_encoders_text_are_joined() {
    let (source, file) = (source("t5"), open("t5"));
    let theirs = |part: &str| format!("decoder.block.1.layer.1.EncDecAttention.{part}.weight");
    assert_eq!(values(&file, "layers.1.cross.kv.weight"), joined(&source, &[theirs("k"), theirs("v")]));
    assert_eq!(values(&file, "layers.1.cross.q.weight"), source[&theirs("q")].values());
    let table = |stack: &str| format!("{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
    for (ours, stack) in [("encoder.relative_bias", "encoder"), ("relative_bias", "decoder")] {
        assert_eq!(values(&file, ours), source[&table(stack)].values());
    }
}

#[test]
fn generation_configs_say_where_a_text_begins_and_ends() {
    let converted_with = |fixture: &str, generation: &Value| {
        let scratch = tempfile::tempdir().unwrap();
        for name in ["config.json", "model.safetensors"] {
            std::fs::copy(folder(fixture).join(name), scratch.path().join(name)).unwrap();
        }
        std::fs::write(scratch.path().join("generation_config.json"), generation.to_string()).unwrap();
        converted(scratch.path(), QuantType::F32).map(|(file, _)| file).map_err(|e| e.to_string())
    };
    let start = |file: &ModelFile| file.spec().encoder.as_ref().map(|e| e.start_id);
    let file = converted_with("t5", &json!({"decoder_start_token_id": 5})).unwrap();
    assert_eq!((start(&file), &file.spec().eos_ids[..]), (Some(5), &[1][..]));
    assert!(file.provenance().sources.iter().any(|source| source.name == "generation_config.json"));
    let file = converted_with("t5", &json!({"eos_token_id": [1, 7]})).unwrap();
    assert_eq!((start(&file), &file.spec().eos_ids[..]), (Some(0), &[1, 7][..]));
    for (field, value) in [("decoder_start_token_id", json!(71)), ("eos_token_id", json!([1, 71]))] {
        let message = converted_with("t5", &json!({ field: value })).unwrap_err();
        assert!(message.contains(&format!("`{field}` is {value}, expected less than `vocab_size` 71")), "{message}");
    }
    let message = converted_with("t5", &json!({"decoder_start_token_id": [0, 1]})).unwrap_err();
    assert!(message.contains("`decoder_start_token_id` is [0,1], expected one token id"), "{message}");
    // It means nothing to a decoder alone.
    let file = converted_with("llama-1", &json!({"decoder_start_token_id": 99_999})).unwrap();
    assert_eq!(start(&file), None);
}

#[test]
fn positions_have_the_first_kind_of_token_added() {
    for (fixture, prefix, unused) in [("bert", "bert.", 0), ("minilm", "", 0), ("roberta", "roberta.", 2)] {
        let (file, source) = (open(fixture), source(fixture));
        let name = |part: &str| format!("{prefix}embeddings.{part}_embeddings.weight");
        let (places, kinds) = (&source[&name("position")], source[&name("token_type")].values());
        let d_model = places.shape[1];
        let want = places.values().into_iter().enumerate().skip(unused * d_model);
        let want: Vec<f32> = want.map(|(i, place)| place + kinds[i % d_model]).collect();
        assert!(values(&file, "embed.positions") == want, "{fixture}");
    }
}

#[test]
fn weights_that_embeddings_do_not_need_are_named() {
    for (fixture, expected) in [
        ("bert", "bert.pooler.dense.bias, bert.pooler.dense.weight, cls.predictions.bias"),
        ("roberta", "lm_head.bias, lm_head.dense.bias"),
    ] {
        let checkpoint = tidbit_convert::Checkpoint::open(&folder(fixture)).unwrap();
        let warnings = checkpoint.warnings().join("\n");
        assert!(warnings.contains("leave out: ") && warnings.contains(expected), "{warnings}");
    }
}

/// A copy of the tiny BERT with files of sentence-transformers beside it: what it pools, or why it is refused.
fn pooled(modules: &Value, pooling: &Value, limits: &Value) -> Result<Pooling, String> {
    let copy = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(folder("bert").join(name), copy.path().join(name)).unwrap();
    }
    std::fs::create_dir(copy.path().join("1_Pooling")).unwrap();
    std::fs::write(copy.path().join("modules.json"), modules.to_string()).unwrap();
    std::fs::write(copy.path().join("1_Pooling/config.json"), pooling.to_string()).unwrap();
    std::fs::write(copy.path().join("sentence_bert_config.json"), limits.to_string()).unwrap();
    let checkpoint = tidbit_convert::Checkpoint::open(copy.path());
    checkpoint.map(|c| c.spec().pooling.clone()).map_err(|e| e.to_string())
}

#[test]
fn pooling_is_what_sentence_transformers_wrote() {
    let list = |kinds: &[&str]| {
        let module =
            |kind: &&str| json!({ "type": format!("sentence_transformers.models.{kind}"), "path": "1_Pooling" });
        Value::Array(kinds.iter().map(module).collect())
    };
    let (mean, none) = (json!({ "pooling_mode_mean_tokens": true, "word_embedding_dimension": 36 }), json!({}));
    let usual = list(&["Transformer", "Pooling"]);
    let good = |modules: &Value, pooling: &Value, limits: &Value| pooled(modules, pooling, limits).unwrap();
    let plain = Pooling::default();
    assert_eq!(good(&usual, &mean, &none), plain);
    assert_eq!(good(&usual, &none, &json!({ "max_seq_length": 64 })), plain, "no less than the context");
    let normalized = good(&list(&["Transformer", "Pooling", "Normalize"]), &mean, &json!({ "max_seq_length": 32 }));
    assert_eq!(normalized, Pooling { normalize: true, max_tokens: Some(32), ..plain.clone() });
    for (pooling, kind) in [
        (json!({ "pooling_mode_cls_token": true }), PoolingKind::Cls),
        (json!({ "pooling_mode": "lasttoken" }), PoolingKind::Last),
    ] {
        assert_eq!(good(&usual, &pooling, &none).kind, kind);
    }
    for (modules, pooling, expected) in [
        (&usual, json!({ "pooling_mode_max_tokens": true }), "`pooling_mode_max_tokens` is true, expected false"),
        (
            &usual,
            json!({ "pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true }),
            "pooling is one of: mean",
        ),
        (&usual, json!({ "pooling_mode": "max" }), "`pooling_mode` is \"max\", expected one of: mean, cls"),
        (&usual, json!({ "word_embedding_dimension": 40 }), "`word_embedding_dimension` is 40, expected 36"),
        (&list(&["Transformer", "Pooling", "Dense"]), mean.clone(), "module 2 is Dense, expected Transformer, Pooling"),
        (&list(&["Pooling"]), mean.clone(), "module 0 is Pooling"),
        (&json!({}), mean.clone(), "expected a list of modules"),
        (
            &json!([{ "type": "Transformer" }, { "type": "Pooling", "path": "../x" }]),
            mean.clone(),
            "`path` is \"../x\"",
        ),
    ] {
        let message = pooled(modules, &pooling, &none).unwrap_err();
        assert!(message.contains(expected) && !message.contains('\n'), "{message} should contain {expected}");
    }
}

#[test]
fn groups_of_queries_key_and_value_are_taken_apart() {
    for (fixture, [h, k, d]) in [
        ("bloom", [9, 9, 4]),
        ("falcon-7b", [5, 1, 6]),
        ("falcon-40b", [4, 2, 10]),
        ("falcon-11b", [4, 1, 8]),
        ("falcon-rw", [9, 9, 4]),
    ] {
        let (file, source) = (open(fixture), source(fixture));
        for kind in ["weight", "bias"] {
            let name = |prefix: &str| format!("{prefix}h.1.self_attention.query_key_value.{kind}");
            let Some(theirs) = source.get(&name("transformer.")).or(source.get(&name(""))) else { continue };
            let (theirs, cols) = (theirs.values(), theirs.shape.get(1).copied().unwrap_or(1));
            let (mut all_q, mut all_k, mut all_v) = (Vec::<f32>::new(), Vec::<f32>::new(), Vec::<f32>::new());
            let mut heads = theirs.chunks(d * cols);
            for _ in 0..k {
                heads.by_ref().take(h / k).for_each(|head| all_q.extend(head));
                all_k.extend(heads.next().unwrap());
                all_v.extend(heads.next().unwrap());
            }
            let want = [all_q, all_k, all_v].concat();
            assert!(values(&file, &format!("layers.1.attn.qkv.{kind}")) == want, "{fixture}: {kind}");
        }
    }
}

#[test]
fn other_orders_are_undone() {
    // Two rows of OPT's positions come before the first.
    let positions = source("opt-125m")["model.decoder.embed_positions.weight"].values();
    assert_eq!(values(&open("opt-125m"), "embed.positions"), positions[2 * 30..]);
    // Gemma's gains are stored less 1.
    let file = open("gemma-2");
    for (ours, theirs) in [
        ("layers.2.mlp_norm.weight", "model.layers.2.pre_feedforward_layernorm.weight"),
        ("layers.0.attn_post_norm.weight", "model.layers.0.post_attention_layernorm.weight"),
        ("final_norm.weight", "model.norm.weight"),
    ] {
        let want: Vec<f32> = source("gemma-2")[theirs].values().iter().map(|g| g + 1.0).collect();
        assert_eq!(values(&file, ours), want, "{ours}");
    }
    // StableLM's heads have a gain each.
    let names: Vec<_> = (0..4).map(|h| format!("model.layers.1.self_attn.q_layernorm.norms.{h}.weight")).collect();
    let file = open("stablelm-2-12b");
    assert_eq!(values(&file, "layers.1.attn.q_norm.weight"), joined(&source("stablelm-2-12b"), &names));
    assert_eq!(values(&file, "layers.1.attn.k_norm.weight").len(), 20);
    // MPT's queries, keys and values lie as ours.
    let theirs = source("mpt")["transformer.blocks.1.attn.Wqkv.weight"].values();
    assert_eq!(values(&open("mpt"), "layers.1.attn.qkv.weight"), theirs);
}
