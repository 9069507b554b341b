//! Models described by a file: every checkpoint of `tests/families`, written anew under the names of `docs/model-files.md` and
//! described by a YAML, is the same model as its family's reader makes; and what can be wrong with the weights.

mod support;

use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use support::*;
use tidbit_convert::{Checkpoint, Options, convert, spec_from_yaml};
use tidbit_runtime::format::ModelFile;
use tidbit_runtime::model::Model;
use tidbit_runtime::quant::QuantType;
use tidbit_runtime::session::{Session, SessionOptions};
use tidbit_runtime::spec::{
    Activation, Head, NormKind, Pairs, Place, Position, QkNormOver, Residual, Rotary, RotaryScaling, Spec, Trained,
};

/// The file that describes a spec: nothing is left to defaults.
fn yaml_of(spec: &Spec) -> String {
    let (a, m) = (&spec.attention, &spec.mlp);
    let mut keys = json!({
        "name": spec.family,
        "vocab_size": spec.vocab_size,
        "context_length": spec.context_length,
        "n_layers": spec.n_layers,
        "d_model": spec.d_model,
        "n_heads": a.n_heads,
        "n_kv_heads": a.n_kv_heads,
        "head_dim": a.head_dim,
        "eos_token_id": spec.eos_ids,
        "embedding_scale": spec.embedding.scale,
        "embedding_norm": spec.embedding.norm,
        "norm_type": norm(spec.norm.kind),
        "norm_eps": spec.norm.eps,
        "norm_gain": spec.norm.trained != Trained::Nothing,
        "norm_bias": spec.norm.trained == Trained::GainAndBias,
        "norm_placement": match spec.norm.place {
            Place::Before => "pre",
            Place::After => "post",
            Place::Branch => "branch",
            Place::Sandwich => "sandwich",
        },
        "final_norm": spec.final_norm,
        "residual_type": match spec.residual {
            Residual::Sequential => "sequential",
            Residual::Parallel => "parallel",
            Residual::ParallelOneNorm => "parallel_one_norm",
            Residual::FromNorm => "from_norm",
        },
        "attention_type": match &a.window {
            _ if !a.causal => "bidirectional",
            None => "full",
            Some(window) => if window.layers.is_some() { "alternating" } else { "window" },
        },
        "qkv_bias": a.qkv_bias,
        "attn_out_bias": a.out_bias,
        "attention_scale": a.scale,
        "attention_scale_by_inverse_layer": a.scale_by_inverse_layer,
        "ffn_type": if m.experts.is_some() { "moe" } else if m.gated { "gated" } else { "plain" },
        "ffn_dim": m.ffn_dim,
        "ffn_bias": m.bias,
        "activation": match m.activation {
            Activation::Relu => "relu",
            Activation::ReluSquared => "relu2",
            Activation::GeluErf => "gelu",
            Activation::GeluTanh => "gelu_tanh",
            Activation::GeluQuick => "quick_gelu",
            Activation::Silu => "silu",
            Activation::Tanh => "tanh",
        },
        "head_type": match spec.head {
            Head::Tied => "tied",
            Head::Untied => "untied",
            Head::None => "none",
        },
        "pooling": spec.pooling.kind.name(),
        "pooling_normalize": spec.pooling.normalize,
    });
    let keys = keys.as_object_mut().unwrap();
    let mut add = |key: &str, value: Option<Value>| keys.extend(value.map(|value| (key.to_owned(), value)));
    add("embedding_dim", spec.embedding.dim.map(Value::from));
    add("attention_softcap", a.softcap.map(Value::from));
    add("qkv_clip", a.clip.map(Value::from));
    add("head_bias", (spec.head != Head::None).then_some(spec.logits.bias.into()));
    add("logit_scale", (spec.head != Head::None).then_some(spec.logits.scale.into()));
    add("logit_softcap", spec.logits.softcap.map(Value::from));
    add("pooling_max_tokens", spec.pooling.max_tokens.map(Value::from));
    let kind = match &spec.position {
        Position::Learned => "learned",
        Position::Sinusoidal(_) => "sinusoidal",
        Position::RelativeBias(_) => "relative_bias",
        Position::TransformerXl(_) => "transformer_xl",
        Position::Rotary(_) => "rotary",
        Position::Alibi(_) => "alibi",
        Position::None => "none",
    };
    add("pos_type", Some(kind.into()));
    if let Position::RelativeBias(bias) = &spec.position {
        add("relative_buckets", Some(bias.buckets.into()));
        add("relative_max_distance", Some(bias.max_distance.into()));
    }
    add("encoder_layers", spec.encoder.as_ref().map(|e| e.n_layers.into()));
    add("decoder_start_token_id", spec.encoder.as_ref().map(|e| e.start_id.into()));
    more(spec, &mut add);
    if let Some(window) = &a.window {
        add("window", Some(window.size.into()));
        add("window_layers", window.layers.clone().map(Value::from));
        keys.extend(window.rotary.iter().flat_map(|r| rope("window_", r)));
    }
    if let Position::Rotary(rotary) = &spec.position {
        keys.extend(rope("", rotary));
    }
    keys.iter().map(|(key, value)| format!("{key}: {value}")).collect::<Vec<_>>().join("\n")
}

/// What goes with ALiBi, query and key norms, and experts.
fn more(spec: &Spec, add: &mut impl FnMut(&str, Option<Value>)) {
    let (a, m) = (&spec.attention, &spec.mlp);
    if let Position::Alibi(alibi) = &spec.position {
        add("alibi_max_bias", Some(alibi.max_bias.into()));
        add("alibi_bf16", Some(alibi.bf16.into()));
    }
    if let Some(norm_of) = &a.qk_norm {
        let over = match norm_of.over {
            QkNormOver::Head => "per_head",
            QkNormOver::HeadWithItsGain => "per_head_gain",
            QkNormOver::AllHeads => "all_heads",
        };
        add("qk_norm", Some(over.into()));
        add("qk_norm_type", Some(norm(norm_of.kind).into()));
        add("qk_norm_eps", Some(norm_of.eps.into()));
        add("qk_norm_gain", Some((norm_of.trained != Trained::Nothing).into()));
        add("qk_norm_bias", Some((norm_of.trained == Trained::GainAndBias).into()));
    }
    if let Some(experts) = &m.experts {
        add("n_experts", Some(experts.count.into()));
        add("experts_per_token", Some(experts.used.into()));
        add("expert_type", Some(if m.gated { "gated" } else { "plain" }.into()));
        add("expert_dim", Some(experts.ffn_dim.into()));
        add("norm_topk_prob", Some(experts.renormalized.into()));
        add("shared_expert_dim", experts.shared_dim.map(Value::from));
        add("moe_layers", experts.layers.clone().map(Value::from));
    }
}

fn norm(kind: NormKind) -> &'static str {
    match kind {
        NormKind::LayerNorm => "layernorm",
        NormKind::RmsNorm => "rmsnorm",
        NormKind::ScaleNorm => "scalenorm",
    }
}

const ORIGINAL: &str = "original_max_position_embeddings";

fn rope(prefix: &str, rotary: &Rotary) -> Map<String, Value> {
    let mut keys = Map::new();
    let mut add = |key: &str, value: Value| keys.insert(format!("{prefix}{key}"), value);
    add("rope_theta", rotary.theta.into());
    add("rope_dims", rotary.dims.into());
    add("rope_pairs", if rotary.pairs == Pairs::Halves { "half" } else { "interleaved" }.into());
    if let Some(exponent) = rotary.exponent {
        add("rope_exponent", exponent.into());
    }
    let scaling = match rotary.scaling.clone() {
        None => return keys,
        Some(RotaryScaling::Linear { factor }) => json!({ "type": "linear", "factor": factor }),
        Some(RotaryScaling::Dynamic { factor, original }) => {
            json!({ "type": "dynamic", "factor": factor, ORIGINAL: original })
        }
        Some(RotaryScaling::Llama3 { factor, low, high, original }) => json!({
            "type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high, ORIGINAL: original }),
        Some(RotaryScaling::Yarn { factor, beta_fast, beta_slow, original, magnitude, truncate }) => json!({
            "type": "yarn", "factor": factor, "beta_fast": beta_fast, "beta_slow": beta_slow, ORIGINAL: original,
            "attention_factor": magnitude, "truncate": truncate }),
    };
    add("rope_scaling", scaling);
    keys
}

/// The tensors of a model file under their own names.
fn exported(file: &ModelFile) -> Tensors {
    let decls = file.spec().tensors().into_iter();
    let tensor = |name: &str, shape: &[usize]| {
        let values = values(file, name);
        Tensor::new(shape, |i| values[i])
    };
    decls.map(|decl| (decl.name.clone(), tensor(&decl.name, &decl.shape))).collect()
}

/// Writes weights and their description.
fn write(folder: &Path, yaml: &str, tensors: &Tensors) -> (PathBuf, PathBuf) {
    let (weights, spec) = (folder.join("weights.safetensors"), folder.join("model.yaml"));
    write_safetensors(&weights, tensors);
    std::fs::write(&spec, yaml).unwrap();
    (weights, spec)
}

fn convert_described(folder: &Path, (weights, spec): (&Path, &Path)) -> Model {
    let output = folder.join("model.tidbit");
    let checkpoint = Checkpoint::open_described(weights, spec).unwrap();
    convert(&checkpoint, &output, &Options { quant: QuantType::F32, cancel: None }, &mut ()).unwrap();
    Model::open(&output).unwrap()
}

/// Logits after some tokens; of an encoder there are none.
fn logits(model: &Model) -> Vec<f32> {
    if model.spec().head == Head::None {
        return Vec::new();
    }
    let options = SessionOptions { threads: Some(1), context: Some(8), ..SessionOptions::default() };
    let mut session = Session::new(model, &options).unwrap();
    if model.encoder().is_some() {
        session.encode(&[9, 3, 8]).unwrap();
    }
    session.append(&[1, 5, 2, 7]).unwrap().to_vec()
}

#[test]
fn every_family_can_be_described_and_is_the_same_model() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/families");
    let mut compared = 0;
    for entry in std::fs::read_dir(fixtures).unwrap() {
        let path = entry.unwrap().path();
        let Ok(checkpoint) = Checkpoint::open(&path) else { continue };
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("family.tidbit");
        convert(&checkpoint, &output, &Options { quant: QuantType::F32, cancel: None }, &mut ()).unwrap();
        let model = Model::open(&output).unwrap();

        let yaml = yaml_of(model.spec());
        let spec = spec_from_yaml("model.yaml", &yaml).unwrap_or_else(|e| panic!("{name}: {e}\n{yaml}"));
        assert_eq!(&spec, model.spec(), "{name}\n{yaml}");
        let tensors = exported(model.file());
        let (weights, spec) = write(folder.path(), &yaml, &tensors);
        let described = convert_described(folder.path(), (&weights, &spec));
        for decl in model.spec().tensors() {
            assert!(values(described.file(), &decl.name) == values(model.file(), &decl.name), "{name}: {}", decl.name);
        }
        let (ours, theirs) = (logits(&described), logits(&model));
        assert!(
            ours.iter().zip(&theirs).all(|(a, b)| a.to_bits() == b.to_bits()) && ours.len() == theirs.len(),
            "{name}"
        );
        compared += 1;
    }
    assert!(compared > 40, "{compared} families");
}

/// A small model that has its queries, keys and values in one tensor, and what describes it.
fn small() -> (String, Tensors) {
    small_with("")
}

/// The same with more lines.
fn small_with(more: &str) -> (String, Tensors) {
    let yaml = "vocab_size: 37\ncontext_length: 10\nn_layers: 2\nd_model: 12\nn_heads: 3\nn_kv_heads: 1\nffn_dim: 20\nbias: true\n\
                pos_type: learned\nnorm_type: layernorm\nactivation: gelu\n";
    let yaml = format!("{yaml}{more}");
    let mut tensors = Tensors::new();
    for (salt, decl) in spec_from_yaml("m", &yaml).unwrap().tensors().iter().enumerate() {
        let value = move |i: usize| ((i * 64 + salt) as f32).mul_add(1e-5, -0.3);
        tensors.insert(decl.name.clone(), Tensor::new(&decl.shape, value));
    }
    (yaml, tensors)
}

#[test]
fn names_as_pytorch_has_them_are_the_same_model() {
    for more in ["", "encoder_layers: 1\n"] {
        same_under_names_of_pytorch(more);
    }
}

fn same_under_names_of_pytorch(more: &str) {
    let folder = tempfile::tempdir().unwrap();
    let (yaml, tensors) = small_with(more);
    let (weights, spec) = write(folder.path(), &yaml, &tensors);
    let model = convert_described(folder.path(), (&weights, &spec));
    let expected = exported(model.file());

    let mut renamed = Tensors::new();
    for (name, tensor) in tensors {
        let parts = match name.split('.').nth_back(1) {
            Some("qkv") => &[("q", 0, 12), ("k", 12, 4), ("v", 16, 4)][..],
            Some("kv") => &[("k", 0, 4), ("v", 4, 4)],
            _ => {
                let table = name.ends_with("embed.tokens") || name.ends_with("embed.positions");
                renamed.insert(format!("model.{name}{}", if table { ".weight" } else { "" }), tensor);
                continue;
            }
        };
        let (stem, kind) = name.rsplit_once('.').unwrap();
        let stem = stem.trim_end_matches("qkv").trim_end_matches("kv");
        let cols = tensor.shape.get(1).copied().unwrap_or(1);
        for &(part, first, rows) in parts {
            let values = tensor.values();
            let shape = if tensor.shape.len() == 1 { vec![rows] } else { vec![rows, cols] };
            renamed.insert(format!("model.{stem}{part}.{kind}"), Tensor::new(&shape, |i| values[first * cols + i]));
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let (weights, spec) = write(folder.path(), &yaml, &renamed);
    let model = convert_described(folder.path(), (&weights, &spec));
    for (name, tensor) in exported(model.file()) {
        assert!(tensor.values() == expected[&name].values(), "{name}");
    }
}

#[test]
fn weights_that_do_not_fit_are_refused_in_one_line() {
    let failure = |change: &dyn Fn(&mut String, &mut Tensors)| {
        let folder = tempfile::tempdir().unwrap();
        let (mut yaml, mut tensors) = small();
        change(&mut yaml, &mut tensors);
        let (weights, spec) = write(folder.path(), &yaml, &tensors);
        let error = Checkpoint::open_described(&weights, &spec).unwrap_err();
        let (message, hint) = (error.to_string(), error.hint());
        assert!(!message.contains('\n'), "{message}");
        (message, hint.unwrap_or_default())
    };
    let (message, hint) = failure(&|_, tensors| drop(tensors.remove("layers.1.attn.qkv.weight")));
    let expected = "weights.safetensors: tensor `layers.1.attn.qkv.weight`: missing, expected shape [20, 12] (--spec)";
    assert!(message.ends_with(expected), "{message}");
    assert!(hint.contains("docs/model-files.md"), "{hint}");
    let (message, _) = failure(&|_, tensors| drop(tensors.insert("attn.mask".into(), Tensor::new(&[4, 4], |_| 0.0))));
    let expected = "tensor `attn.mask`: not part of a custom model of 2 layers (--spec), found shape [4, 4]";
    assert!(message.ends_with(expected), "{message}");
    let (message, hint) = failure(&|_, tensors| {
        tensors.insert("layers.0.mlp.up.weight".into(), Tensor::new(&[12, 20], |_| 0.0));
    });
    let expected = "tensor `layers.0.mlp.up.weight`: expected shape [20, 12] (--spec), found [12, 20]";
    assert!(message.ends_with(expected), "{message}");
    assert!(hint.contains("[out, in]"), "{hint}");
    let (message, _) = failure(&|yaml, _| yaml.push_str("head_type: untied\n"));
    let expected = "tensor `head.weight`: missing, expected shape [37, 12] (--spec), and `head_type` is untied";
    assert!(message.ends_with(expected), "{message}");
    let (message, _) = failure(&|_, tensors| {
        tensors.insert("head.weight".into(), Tensor::new(&[37, 12], |_| 0.0));
    });
    assert!(
        message.contains("model.yaml: `head_type` is tied, but row 0, column 0 of `head.weight` is 0"),
        "{message}"
    );
    let (message, _) = failure(&|yaml, _| *yaml = yaml.replace("n_layers: 2", "n_layers: 300"));
    assert!(message.contains("cannot make 300 layers (--spec)"), "{message}");
}

#[test]
fn a_config_describes_weights_under_our_names_too() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::gpt2();
    fake.write(folder.path());
    let (file, _) = converted(folder.path(), QuantType::F32).unwrap();
    let described = tempfile::tempdir().unwrap();
    let weights = described.path().join("weights.safetensors");
    write_safetensors(&weights, &exported(&file));
    let model = convert_described(described.path(), (&weights, &folder.path().join("config.json")));
    assert_eq!(model.spec(), file.spec());
    assert!(values(model.file(), "layers.1.attn.qkv.weight") == values(&file, "layers.1.attn.qkv.weight"));
}
