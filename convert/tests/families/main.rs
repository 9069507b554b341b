//! Every family of `tests/families` (tiny checkpoints made by transformers): it converts to what its fixture is about, with
//! every value in its place, and what is not supported is refused in one line. Logits are compared by the tests of the whole.

mod support;

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use support::*;
use tidbit_convert::spec_from_json;
use tidbit_runtime::format::ModelFile;
use tidbit_runtime::quant::QuantType;
use tidbit_runtime::spec::{
    Activation, Alibi, Head, NormKind, Pairs, Place, Pooling, PoolingKind, Position, QkNormOver, Residual, Rotary,
    RotaryScaling, Spec, Trained,
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
    ("qwen3-moe", |s| experts(s, [5, 3], true, Some(&[1])) && s.attention.qk_norm.is_some()),
];

fn is_encoder(s: &Spec) -> bool {
    (s.attention.causal, s.head, s.embedding.norm, s.norm.place, s.final_norm)
        == (false, Head::None, true, Place::After, false)
        && s.pooling == Pooling::default()
}

fn experts(spec: &Spec, counts: [usize; 2], renormalized: bool, layers: Option<&[usize]>) -> bool {
    let e = spec.mlp.experts.as_ref().unwrap();
    ([e.count, e.used], e.renormalized, e.layers.as_deref()) == (counts, renormalized, layers)
}

/// What is not supported, and what names it.
const REFUSED: &[(&str, &str)] = &[
    ("t5", "T5ForConditionalGeneration"),
    ("t5-tied-gated", "T5ForConditionalGeneration"),
    ("flan-t5", "T5ForConditionalGeneration"),
];

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
    let mut listed: Vec<_> = MODELS.iter().map(|f| f.0).chain(REFUSED.iter().map(|f| f.0)).collect();
    all.sort();
    listed.sort_unstable();
    assert_eq!(listed, all);
}

#[test]
fn other_architectures_are_refused_by_name() {
    for (fixture, name) in REFUSED {
        let message = failure(&folder(fixture));
        assert!(message.contains(name) && message.contains("is not supported, expected one of: gpt2, "), "{message}");
    }
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

/// A fixture's config with changed fields; `REMOVE` removes one.
fn changed(fixture: &str, change: &Value) -> String {
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(folder(fixture).join("config.json")).unwrap()).unwrap();
    for (name, value) in change.as_object().unwrap() {
        if value == "REMOVE" {
            config.as_object_mut().unwrap().remove(name);
        } else {
            config[name] = value.clone();
        }
    }
    config.to_string()
}

fn spec(fixture: &str, change: &Value) -> Spec {
    spec_from_json("config.json", &changed(fixture, change)).unwrap_or_else(|e| panic!("{fixture} {change}: {e}")).0
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn configs_that_ask_for_something_else_are_refused() {
    let mut wrong = Vec::new();
    for (fixture, change, expected) in [
        // Sizes.
        ("llama-1", json!({"num_attention_heads": 5}), "`hidden_size` 32 is not a multiple of `num_attention_heads` 5"),
        (
            "llama-bias",
            json!({"num_key_value_heads": 3}),
            "`num_attention_heads` 4 is not a multiple of `num_key_value_heads` 3",
        ),
        ("qwen2", json!({"num_key_value_heads": "REMOVE"}), "a multiple of `num_key_value_heads` 32 (by default)"),
        (
            "llama-1",
            json!({"intermediate_size": "REMOVE"}),
            "`intermediate_size` missing, expected a positive whole number",
        ),
        ("llama-bias", json!({"head_dim": 0}), "`head_dim` is 0, expected a positive whole number"),
        (
            "llama-bias",
            json!({"head_dim": 9}),
            "rotary_factor` 1 of a head of 9 turns 9 dimensions, expected an even number",
        ),
        ("llama-bias", json!({"head_dim": 1024}), "`head_dim` is 1024, at most 512"),
        ("stablelm-2", json!({"head_dim": 8}), "`head_dim` is 8, expected 16 (width divided by heads)"),
        ("bloom", json!({"n_inner": 100}), "`n_inner` is 100, expected 144 (4 times the width)"),
        ("bloom", json!({"hidden_size": 40}), "`hidden_size` is 40, expected the same as `n_embed`, which is 36"),
        ("opt-350m", json!({"word_embed_proj_dim": 0}), "`word_embed_proj_dim` is 0"),
        ("opt-125m", json!({"ffn_dim": "many"}), "`ffn_dim` is \"many\", expected a positive whole number"),
        ("phi-1", json!({"num_hidden_layers": 20000}), "20000 layers, expected at most 16384"),
        (
            "mistral-window",
            json!({"num_hidden_layers": 4_000_000_000_u32}),
            "4000000000 layers, expected at most 16384",
        ),
        // Rotary positions.
        (
            "llama-1",
            json!({"rope_scaling": {"type": "longrope", "factor": 2.0}}),
            "`rope_scaling.type` is \"longrope\", expected one of: default, linear, dynamic, llama3, yarn",
        ),
        (
            "llama-1",
            json!({"rope_parameters": {"rope_type": "proportional"}}),
            "`rope_parameters.rope_type` is \"proportional\"",
        ),
        (
            "llama-1",
            json!({"rope_scaling": {"type": "linear", "rope_type": "yarn"}}),
            "`rope_scaling.type` is \"linear\", expected the same as `rope_scaling.rope_type`",
        ),
        (
            "llama-1",
            json!({"rope_scaling": {"type": "linear"}}),
            "`rope_scaling.factor` missing, expected a positive number",
        ),
        (
            "llama-1",
            json!({"rope_scaling": {"type": "linear", "factor": -2}}),
            "`rope_scaling.factor` is -2, expected a positive number",
        ),
        (
            "llama-1",
            json!({"rope_scaling": {"type": "linear", "factor": 2, "beta_fast": 3}}),
            "`rope_scaling.beta_fast` is unknown in rotary positions of type linear",
        ),
        (
            "llama-1",
            json!({"rope_scaling": {"factor": 2}}),
            "`rope_scaling.factor` is unknown in rotary positions without `rope_type`",
        ),
        (
            "llama-3",
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1}}),
            "`rope_scaling.high_freq_factor` missing",
        ),
        (
            "llama-3",
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}}),
            "`low` is 4, expected less than `high` 4",
        ),
        (
            "llama-dynamic",
            json!({"rope_scaling": {"type": "dynamic", "factor": 2, "original_max_position_embeddings": 9}}),
            "embeddings` is 9, expected 20",
        ),
        (
            "llama-1",
            json!({"rope_scaling": {"type": "default"}, "rope_parameters": {"rope_theta": 3}}),
            "expected it to be absent beside `rope_scaling`",
        ),
        (
            "llama-linear",
            json!({"rope_scaling": {"type": "linear", "factor": 2, "rope_theta": 50}}),
            "`rope_scaling.rope_theta` is 50, expected the same as `rope_theta`, which is 10000",
        ),
        (
            "llama-1",
            json!({"partial_rotary_factor": 0.5}),
            "`partial_rotary_factor` 0.5 of a head of 8 turns 4 dimensions, expected all of them",
        ),
        ("llama-1", json!({"rope_theta": 0}), "`rope_theta` is 0, expected a positive number"),
        ("phi-2", json!({"partial_rotary_factor": 0.5}), "turns 5 dimensions, expected an even number from 2 to 10"),
        ("stablelm-2", json!({"partial_rotary_factor": 1.5}), "turns 24 dimensions, expected 2 to 16"),
        (
            "neox-pythia",
            json!({"rope_parameters": {"rope_type": "dynamic", "factor": 2, "partial_rotary_factor": 0.25}}),
            "3 of the head's dimensions turn, an odd number",
        ),
        (
            "gptj",
            json!({"rotary_dim": null}),
            "`rotary_dim` is null, expected an even number up to the width of a head, 8",
        ),
        ("gptj", json!({"rotary_dim": 10}), "`rotary_dim` is 10, expected"),
        ("gptj", json!({"rotary_dim": "REMOVE"}), "`rotary_dim` missing, expected"),
        ("gptj", json!({"rope_theta": 50}), "`rope_theta` is 50, expected it to be absent"),
        // Windows.
        ("mistral-window", json!({"sliding_window": 0}), "`sliding_window` is 0, expected a positive whole number"),
        ("qwen2-window", json!({"sliding_window": 0}), "`sliding_window` is 0"),
        ("qwen3-window", json!({"layer_types": ["full_attention"]}), "`layer_types` has 1 layers, expected 3"),
        (
            "qwen3-window",
            json!({"layer_types": ["chunked_attention", "full_attention", "full_attention"]}),
            "`layer_types` is [\"chunked_attention\",",
        ),
        (
            "qwen3-window",
            json!({"use_sliding_window": false}),
            "`layer_types` has a \"sliding_attention\", but `use_sliding_window` is not true",
        ),
        ("gemma-2", json!({"sliding_window": null}), "`sliding_window` is null, expected a positive whole number"),
        ("gemma-3", json!({"sliding_window_pattern": 0}), "`sliding_window_pattern` is 0"),
        ("gptneo", json!({"window_size": 0}), "`window_size` is 0"),
        ("gptneo", json!({"attention_layers": ["global", "local"]}), "`attention_layers` has 2 layers, expected 4"),
        (
            "gptneo",
            json!({"attention_layers": ["global", "sparse", "local", "local"]}),
            "expected a list of \"global\" and \"local\"",
        ),
        (
            "gptneo-pattern",
            json!({"attention_types": [[["local"], 2]]}),
            "`attention_types` is [[[\"local\"],2]], expected the kinds of 3 layers",
        ),
        ("gptneo-pattern", json!({"attention_types": [[["local"], u64::MAX]]}), "expected the kinds of 3 layers"),
        ("gptneo-pattern", json!({"attention_types": [[[], u64::MAX]]}), "expected the kinds of 3 layers"),
        ("gptneo-pattern", json!({"attention_types": [["local", 2]]}), "expected a list of [["),
        (
            "gptneo-pattern",
            json!({"attention_types": "REMOVE"}),
            "`attention_types` missing, expected the kinds of 3 layers",
        ),
        ("llama-1", json!({"sliding_window": 100}), "`sliding_window` is 100, expected it to be absent"),
        // Parts that a family does not have.
        ("llama-1", json!({"hidden_act": "mish"}), "`hidden_act` is \"mish\", expected one of: gelu, "),
        ("llama-1", json!({"attention_bias": 1}), "`attention_bias` is 1, expected true or false"),
        ("mistral-nemo", json!({"attention_bias": true}), "`attention_bias` is true, expected it to be absent"),
        ("llama-1", json!({"clip_qkv": 8}), "`clip_qkv` is 8, expected it to be absent"),
        ("llama-1", json!({"quantization_config": {"bits": 4}}), "`quantization_config` is"),
        (
            "llama-1",
            json!({"architectures": ["LlamaForSequenceClassification"]}),
            "expected one of: LlamaForCausalLM, LlamaModel",
        ),
        ("gemma-3", json!({"use_bidirectional_attention": true}), "`use_bidirectional_attention` is true"),
        (
            "gemma-3",
            json!({"attn_logit_softcapping": 50.0}),
            "`attn_logit_softcapping` is 50.0, expected it to be absent",
        ),
        (
            "gemma-2",
            json!({"final_logit_softcapping": -1}),
            "`final_logit_softcapping` is -1, expected a positive number",
        ),
        ("gemma-2", json!({"query_pre_attn_scalar": 0}), "`query_pre_attn_scalar` is 0"),
        (
            "gemma-3-layers",
            json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}}),
            "`rope_parameters.sliding_attention` missing, expected an object",
        ),
        (
            "gemma-3-layers",
            json!({"rope_theta": 1e6}),
            "`rope_theta` is 1000000.0, expected it to be absent beside `rope_parameters`",
        ),
        ("gemma-3-vision", json!({"text_config": "REMOVE"}), "`text_config` missing, expected an object"),
        ("gemma-3-vision", json!({"text_config": {"hidden_size": "x"}}), "`text_config.hidden_size` is \"x\""),
        ("olmo-1", json!({"clip_qkv": 0}), "`clip_qkv` is 0, expected a positive number"),
        (
            "bloom",
            json!({"activation_function": "relu"}),
            "`activation_function` is \"relu\", expected it to be absent",
        ),
        (
            "falcon-40b",
            json!({"parallel_attn": false}),
            "`parallel_attn` is false, expected true with `new_decoder_architecture`",
        ),
        ("falcon-40b", json!({"num_kv_heads": 3}), "`num_attention_heads` 4 is not a multiple of `num_kv_heads` 3"),
        ("falcon-40b", json!({"num_ln_in_parallel_attn": 3}), "`num_ln_in_parallel_attn` is 3, expected 1 or 2"),
        ("falcon-7b", json!({"num_ln_in_parallel_attn": 2}), "expected 1 without `new_decoder_architecture`"),
        ("falcon-rw", json!({"num_kv_heads": 3}), "`num_kv_heads` is 3, expected 9 (as many as query heads)"),
        // What MosaicML's own code reads, and transformers does not.
        ("mpt", json!({"no_bias": false}), "`no_bias` is false, expected true"),
        ("mpt", json!({"expansion_ratio": 2}), "`expansion_ratio` is 2, expected 4"),
        ("mpt", json!({"norm_type": "rmsnorm"}), "`norm_type` is \"rmsnorm\", expected"),
        ("mpt", json!({"logit_scale": 0.5}), "`logit_scale` is 0.5, expected it to be absent"),
        ("mpt", json!({"attn_config": {"alibi": false}}), "`attn_config.alibi` is false, expected true"),
        ("mpt", json!({"attn_config": {"qk_ln": true}}), "`attn_config.qk_ln` is true, expected false"),
        ("mpt", json!({"attn_config": {"prefix_lm": true}}), "`attn_config.prefix_lm` is true, expected false"),
        (
            "mpt",
            json!({"attn_config": {"attn_type": "multiquery_attention"}}),
            "`attn_config.attn_type` is \"multiquery_attention\"",
        ),
        ("mpt", json!({"attn_config": {"softmax_scale": 0}}), "`attn_config.softmax_scale` is 0"),
    ] {
        let message = match spec_from_json("config.json", &changed(fixture, &change)) {
            Err(e) => e.to_string(),
            Ok((spec, _)) => format!("accepted: {spec:?}"),
        };
        let good = message.starts_with("config.json: ") && !message.contains('\n') && message.contains(expected);
        if !good {
            wrong.push(format!("{fixture} {change}: {message}\n    should contain {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_field_is_honoured() {
    type Same = fn(&Spec) -> bool;
    let cases: &[(&str, Value, Same)] = &[
        ("gptneo", json!({"attention_layers": "REMOVE"}), |s| window(s) == Some((9, Some(&[1, 3])))),
        ("gptneo", json!({"attention_layers": ["local", "local", "local", "local"]}), |s| window(s) == Some((9, None))),
        ("gptneo", json!({"attention_layers": ["global", "global", "global", "global"]}), |s| window(s).is_none()),
        ("opt-125m", json!({"_remove_final_layer_norm": true}), |s| !s.final_norm),
        ("mpt", json!({"attn_config": {"alibi_bias_max": 16}}), |s| {
            s.position == Position::Alibi(Alibi { max_bias: 16.0, bf16: false })
        }),
        ("falcon-7b", json!({"num_kv_heads": 5}), |s| heads(s) == [5, 1, 6]),
        ("falcon-7b", json!({"ffn_hidden_size": null}), |s| s.mlp.ffn_dim == 120),
        ("falcon-7b", json!({"activation": "relu"}), |s| s.mlp.activation == Activation::Relu),
        ("falcon-7b", json!({"alibi": true, "rope_theta": 3.0}), |s| matches!(s.position, Position::Alibi(_))),
        ("falcon-40b", json!({"multi_query": false}), |s| heads(s) == [4, 2, 10]),
        ("falcon-40b", json!({"num_kv_heads": null}), |s| heads(s) == [4, 4, 10]),
        ("falcon-11b", json!({"num_ln_in_parallel_attn": 2}), |s| s.residual == Residual::Parallel),
        ("phi-1", json!({"auto_map": {"AutoConfig": "x.Y"}}), |s| rotary(s).dims == 8),
        ("llama-1", json!({"head_dim": null, "num_key_value_heads": null}), |s| heads(s) == [4, 4, 8]),
        ("llama-1", json!({"rms_norm_eps": "REMOVE"}), |s| s.norm.eps == 1e-6),
        ("llama-1", json!({"rope_scaling": {"type": "linear", "factor": 2, "rope_theta": 500}}), |s| {
            rotary(s).theta == 500.0
        }),
        (
            "llama-yarn",
            json!({"rope_scaling": {"type": "yarn", "factor": 4, "mscale": 1.0, "mscale_all_dim": 0.5}}),
            |s| {
                let ln = 4f64.ln();
                let want = ((0.1 * ln + 1.0) / (0.05 * ln + 1.0)) as f32;
                matches!(rotary(s).scaling, Some(RotaryScaling::Yarn { magnitude, original: 128, .. }) if magnitude == want)
            },
        ),
        ("llama-yarn", json!({"rope_scaling": {"type": "yarn", "factor": 4, "mscale": 2.0, "beta_fast": null}}), |s| {
            let want = (0.1 * 4f64.ln() + 1.0) as f32;
            matches!(rotary(s).scaling, Some(RotaryScaling::Yarn { magnitude, .. }) if magnitude == want)
        }),
        ("llama-yarn", json!({"rope_scaling": {"type": "yarn", "factor": 0.5, "finetuned": true}}), |s| {
            matches!(rotary(s).scaling, Some(RotaryScaling::Yarn { magnitude: 1.0, .. }))
        }),
        (
            "llama-3",
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1,
            "high_freq_factor": 4}}),
            |s| matches!(rotary(s).scaling, Some(RotaryScaling::Llama3 { original: 256, .. })),
        ),
        ("mistral-window", json!({"sliding_window": "REMOVE"}), |s| window(s) == Some((4096, None))),
        ("mistral-window", json!({"num_key_value_heads": null}), |s| heads(s) == [4, 4, 8]),
        ("qwen2-window", json!({"max_window_layers": 0}), |s| window(s) == Some((12, None))),
        ("qwen2-window", json!({"max_window_layers": "REMOVE"}), |s| window(s).is_none()),
        ("qwen2-window", json!({"use_sliding_window": false}), |s| window(s).is_none()),
        ("qwen2", json!({"sliding_window": "REMOVE", "max_window_layers": 0}), |s| window(s).is_none()),
        ("qwen3", json!({"head_dim": "REMOVE"}), |s| heads(s) == [4, 2, 128]),
        ("gemma-1", json!({"hidden_activation": "relu"}), |s| s.mlp.activation == Activation::GeluTanh),
        ("gemma-1", json!({"hidden_act": "relu", "head_dim": "REMOVE"}), |s| {
            (s.mlp.activation, heads(s)) == (Activation::Relu, [3, 1, 256])
        }),
        ("gemma-2", json!({"attn_logit_softcapping": "REMOVE", "final_logit_softcapping": "REMOVE"}), |s| {
            (s.attention.softcap, s.logits.softcap) == (Some(50.0), Some(30.0))
        }),
        ("gemma-2", json!({"query_pre_attn_scalar": "REMOVE", "hidden_act": "relu"}), |s| {
            (s.attention.scale, s.mlp.activation) == (1.0 / 16.0, Activation::GeluTanh)
        }),
        (
            "gemma-3",
            json!({"rope_theta": "REMOVE", "rope_local_base_freq": "REMOVE", "sliding_window_pattern": "REMOVE"}),
            |s| {
                // The pattern's 6 is more than there are layers.
                window(s) == Some((12, None)) && *rotary(s) == Rotary::new(12, 10_000.0)
            },
        ),
        ("gemma-3", json!({"final_logit_softcapping": 30.0}), |s| s.logits.softcap == Some(30.0)),
        ("olmo-1", json!({"rms_norm_eps": 0.1, "layer_norm_eps": 0.1}), |s| s.norm.eps == 1e-5),
        ("stablelm-2", json!({"use_parallel_residual": true}), |s| s.residual == Residual::ParallelOneNorm),
        ("stablelm-2", json!({"partial_rotary_factor": "REMOVE"}), |s| rotary(s).dims == 4),
    ];
    for (fixture, change, check) in cases {
        let spec = spec(fixture, change);
        assert!(check(&spec), "{fixture} {change}: {spec:?}");
    }
}

#[test]
fn no_value_of_any_field_panics() {
    let values = [
        json!(null),
        json!(-1),
        json!(0),
        json!(1),
        json!(3),
        json!(1.5),
        json!(u64::MAX),
        json!(1u64 << 32),
        json!(true),
    ];
    let values: Vec<Value> =
        values.into_iter().chain([json!("x"), json!([]), json!(["x"]), json!({}), json!({"x": 1})]).collect();
    for (fixture, _) in MODELS {
        let config: Value = serde_json::from_str(&changed(fixture, &json!({}))).unwrap();
        let fields = config.as_object().unwrap();
        // Also those inside of objects.
        let inner = fields.iter().filter_map(|(name, value)| Some((name, value.as_object()?)));
        let inner = inner.flat_map(|(name, object)| object.keys().map(move |field| (Some(name), field)));
        for (object, field) in fields.keys().map(|field| (None, field)).chain(inner) {
            for value in &values {
                let mut config = config.clone();
                let place = if let Some(name) = object { &mut config[name] } else { &mut config };
                place[field] = value.clone();
                if let Err(e) = spec_from_json("config.json", &config.to_string()) {
                    let message = e.to_string();
                    let good = message.starts_with("config.json: ") && !message.contains('\n') && message.len() < 500;
                    assert!(good, "{fixture}: {field} {value}: {message}");
                }
            }
        }
    }
}
