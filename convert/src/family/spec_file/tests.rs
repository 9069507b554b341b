//! Every key does something, what is wrong is said in one line, and `docs/model-files.md` tells the truth (`UPDATE=1` writes
//! its tables).

use super::keys::{KEYS, Values};
use super::*;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use tidbit_runtime::spec::{
    Activation, Alibi, Encoder, Pairs, PoolingKind, QkNormOver, RelativeBias, RotaryScaling, Sinusoidal, TensorDecl,
    TransformerXl,
};

/// The keys that must be there.
const BASE: &[(&str, &str)] = &[
    ("vocab_size", "50"),
    ("context_length", "40"),
    ("n_layers", "3"),
    ("d_model", "24"),
    ("n_heads", "3"),
    ("pos_type", "rotary"),
    ("norm_type", "layernorm"),
    ("activation", "gelu"),
];

/// A file of [`BASE`] with these lines changed, added, or, where empty, left out.
fn yaml(changes: &[(&str, &str)]) -> String {
    let kept = BASE.iter().filter(|(key, _)| changes.iter().all(|(changed, _)| changed != key));
    let lines = kept.chain(changes.iter().filter(|(_, value)| !value.is_empty()));
    lines.fold(String::new(), |text, (key, value)| text + key + ": " + value + "\n")
}

fn spec_of(changes: &[(&str, &str)]) -> Spec {
    read("m.yaml", yaml(changes).as_bytes()).unwrap_or_else(|e| panic!("{changes:?}: {e}")).spec
}

const MOE: [(&str, &str); 3] = [("ffn_type", "moe"), ("n_experts", "4"), ("experts_per_token", "2")];
const WINDOW: [(&str, &str); 2] = [("attention_type", "window"), ("window", "8")];

#[test]
fn the_shortest_file_has_the_documented_defaults() {
    let spec = spec_of(&[]);
    let expected = Spec {
        family: "custom".into(),
        vocab_size: 50,
        n_layers: 3,
        d_model: 24,
        context_length: 40,
        embedding: Embedding::default(),
        position: Position::Rotary(Rotary::new(8, 10_000.0)),
        norm: Norm::new(NormKind::LayerNorm, 1e-5),
        attention: Attention::new(3, 3, 8),
        mlp: Mlp { ffn_dim: 96, activation: Activation::GeluErf, bias: false, gated: false, experts: None },
        residual: Residual::Sequential,
        scales: Scales::default(),
        final_norm: true,
        head: Head::Tied,
        logits: Logits::default(),
        pooling: Pooling::default(),
        eos_ids: vec![],
        encoder: None,
    };
    assert_eq!(spec, expected);
}

/// What a key needs beside it, a value that is not its default, and what then is so.
type Case = (&'static str, &'static [(&'static str, &'static str)], &'static str, fn(&Spec) -> bool);

fn rope(spec: &Spec) -> &Rotary {
    let Position::Rotary(rotary) = &spec.position else { panic!("{:?}", spec.position) };
    rotary
}

fn window_rope(spec: &Spec) -> &Rotary {
    spec.attention.window.as_ref().unwrap().rotary.as_ref().unwrap()
}

fn qk(spec: &Spec) -> &QkNorm {
    spec.attention.qk_norm.as_ref().unwrap()
}

fn sparse(spec: &Spec) -> &Sparse {
    spec.attention.sparse.as_ref().unwrap()
}

fn moe(spec: &Spec) -> &Experts {
    spec.mlp.experts.as_ref().unwrap()
}

const ALTERNATING: &[(&str, &str)] = &[("attention_type", "alternating"), ("window", "8")];
const SPARSE: &[(&str, &str)] = &[("attention_type", "sparse"), ("sparse_block", "4"), ("sparse_stride", "3")];
const QK: &[(&str, &str)] = &[("qk_norm", "per_head")];

const CASES: &[Case] = &[
    ("name", &[], "mine", |s| s.family == "mine"),
    ("vocab_size", &[], "51", |s| s.vocab_size == 51),
    ("context_length", &[], "41", |s| s.context_length == 41),
    ("n_layers", &[], "4", |s| s.n_layers == 4),
    ("d_model", &[], "48", |s| s.d_model == 48 && s.attention.head_dim == 16),
    ("n_heads", &[], "6", |s| s.attention.n_heads == 6 && s.attention.head_dim == 4),
    ("n_kv_heads", &[], "1", |s| s.attention.n_kv_heads == 1),
    ("head_dim", &[], "32", |s| s.attention.head_dim == 32 && rope(s).dims == 32),
    ("bias", &[], "true", |s| s.attention.qkv_bias && s.attention.out_bias && s.mlp.bias),
    ("eos_token_id", &[], "[2, 3]", |s| s.eos_ids == [2, 3]),
    ("encoder_layers", &[], "5", |s| s.encoder == Some(Encoder { n_layers: 5, start_id: 0 })),
    ("decoder_start_token_id", &[("encoder_layers", "1")], "7", |s| {
        s.encoder == Some(Encoder { n_layers: 1, start_id: 7 })
    }),
    ("embedding_dim", &[], "16", |s| s.embedding.dim == Some(16)),
    ("embedding_scale", &[], "4.9", |s| s.embedding.scale == 4.9),
    ("embedding_norm", &[], "true", |s| s.embedding.norm),
    ("pos_type", &[], "learned", |s| s.position == Position::Learned),
    ("pos_type", &[], "none", |s| s.position == Position::None),
    ("pos_type", &[], "alibi", |s| s.position == Position::Alibi(Alibi { max_bias: 8.0, bf16: false })),
    ("pos_type", &[], "sinusoidal", |s| {
        s.position == Position::Sinusoidal(Sinusoidal { pairs: Pairs::Interleaved, offset: 0 })
    }),
    ("pos_type", &[], "relative_bias", |s| {
        s.position == Position::RelativeBias(RelativeBias { buckets: 32, max_distance: 128 })
    }),
    ("pos_type", &[], "transformer_xl", |s| s.position == Position::TransformerXl(TransformerXl { max_distance: 39 })),
    ("sinusoidal_pairs", &[("pos_type", "sinusoidal")], "half", |s| {
        s.position == Position::Sinusoidal(Sinusoidal { pairs: Pairs::Halves, offset: 0 })
    }),
    ("sinusoidal_offset", &[("pos_type", "sinusoidal")], "2", |s| {
        s.position == Position::Sinusoidal(Sinusoidal { pairs: Pairs::Interleaved, offset: 2 })
    }),
    ("relative_buckets", &[("pos_type", "relative_bias")], "16", |s| {
        s.position == Position::RelativeBias(RelativeBias { buckets: 16, max_distance: 128 })
    }),
    ("relative_max_distance", &[("pos_type", "relative_bias")], "64", |s| {
        s.position == Position::RelativeBias(RelativeBias { buckets: 32, max_distance: 64 })
    }),
    ("relative_max_distance", &[("pos_type", "transformer_xl")], "64", |s| {
        s.position == Position::TransformerXl(TransformerXl { max_distance: 64 })
    }),
    ("rope_theta", &[], "5e5", |s| rope(s).theta == 5e5),
    ("rope_dims", &[], "4", |s| rope(s).dims == 4),
    ("rope_pairs", &[], "interleaved", |s| rope(s).pairs == Pairs::Interleaved),
    ("rope_exponent", &[], "7", |s| rope(s).exponent == Some(7)),
    ("rope_scaling", &[], "{type: linear, factor: 2}", |s| {
        rope(s).scaling == Some(RotaryScaling::Linear { factor: 2.0 })
    }),
    ("rope_scaling", &[], "{type: dynamic, factor: 2}", |s| {
        rope(s).scaling == Some(RotaryScaling::Dynamic { factor: 2.0, original: 40 })
    }),
    (
        "rope_scaling",
        &[],
        "\n  type: llama3\n  factor: 8\n  low_freq_factor: 1\n  high_freq_factor: 4\n  original_max_position_embeddings: 20",
        |s| rope(s).scaling == Some(RotaryScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 20 }),
    ),
    (
        "rope_scaling",
        &[],
        "{type: yarn, factor: 4, beta_fast: 16, beta_slow: 2, attention_factor: 1.5, truncate: false}",
        |s| {
            let yarn = RotaryScaling::Yarn {
                factor: 4.0,
                beta_fast: 16.0,
                beta_slow: 2.0,
                original: 40,
                magnitude: 1.5,
                truncate: false,
            };
            rope(s).scaling == Some(yarn)
        },
    ),
    ("alibi_max_bias", &[("pos_type", "alibi")], "4", |s| {
        s.position == Position::Alibi(Alibi { max_bias: 4.0, bf16: false })
    }),
    ("alibi_bf16", &[("pos_type", "alibi")], "true", |s| {
        s.position == Position::Alibi(Alibi { max_bias: 8.0, bf16: true })
    }),
    ("norm_type", &[], "rmsnorm", |s| s.norm == Norm::new(NormKind::RmsNorm, 1e-5)),
    ("norm_type", &[], "scalenorm", |s| s.norm.kind == NormKind::ScaleNorm && s.norm.trained == Trained::Gain),
    ("norm_eps", &[], "1e-6", |s| s.norm.eps == 1e-6),
    ("norm_gain", &[], "false", |s| s.norm.trained == Trained::Nothing),
    ("norm_bias", &[], "false", |s| s.norm.trained == Trained::Gain),
    ("norm_placement", &[], "post", |s| s.norm.place == Place::After && !s.final_norm),
    ("norm_placement", &[], "branch", |s| s.norm.place == Place::Branch && s.final_norm),
    ("norm_placement", &[], "sandwich", |s| s.norm.place == Place::Sandwich && s.final_norm),
    ("final_norm", &[], "false", |s| !s.final_norm),
    ("residual_type", &[], "parallel", |s| s.residual == Residual::Parallel),
    ("residual_type", &[], "parallel_one_norm", |s| s.residual == Residual::ParallelOneNorm),
    ("residual_type", &[], "from_norm", |s| s.residual == Residual::FromNorm),
    ("residual_scale", &[("norm_placement", "post")], "2.2", |s| s.scales == Scales { stream: 2.2, branch: 1.0 }),
    ("branch_scale", &[], "0.5", |s| s.scales == Scales { stream: 1.0, branch: 0.5 }),
    ("attention_type", &[("sparse_block", "4"), ("sparse_stride", "3")], "sparse", |s| {
        let pattern = SparsePattern::Strided;
        s.attention.sparse == Some(Sparse { block: 4, local: 1, stride: 3, pattern, layers: None })
    }),
    ("attention_type", &[("pos_type", "none")], "linear", |s| {
        s.attention.feature_map == Some(FeatureMap::EluPlusOne) && s.attention.scale == 1.0
    }),
    ("sparse_block", SPARSE, "8", |s| sparse(s).block == 8),
    ("sparse_local", SPARSE, "2", |s| sparse(s).local == 2),
    ("sparse_stride", SPARSE, "5", |s| sparse(s).stride == 5),
    ("sparse_pattern", SPARSE, "fixed", |s| sparse(s).pattern == SparsePattern::Fixed),
    ("sparse_layers", SPARSE, "[2]", |s| sparse(s).layers == Some(vec![2])),
    ("attention_type", &[], "bidirectional", |s| !s.attention.causal && s.head == Head::None),
    ("attention_type", &[("window", "8")], "window", |s| {
        s.attention.window == Some(Window { size: 8, layers: None, rotary: None })
    }),
    ("attention_type", &[("window", "8")], "alternating", |s| {
        s.attention.window == Some(Window { size: 8, layers: Some(vec![0, 2]), rotary: None })
    }),
    ("window", &[("attention_type", "window")], "9", |s| s.attention.window.as_ref().unwrap().size == 9),
    ("window_layers", ALTERNATING, "[1]", |s| s.attention.window.as_ref().unwrap().layers == Some(vec![1])),
    ("window_rope_theta", ALTERNATING, "500", |s| *window_rope(s) == Rotary::new(8, 500.0)),
    ("window_rope_dims", ALTERNATING, "4", |s| *window_rope(s) == Rotary::new(4, 10_000.0)),
    ("window_rope_pairs", ALTERNATING, "interleaved", |s| window_rope(s).pairs == Pairs::Interleaved),
    ("window_rope_exponent", ALTERNATING, "7", |s| window_rope(s).exponent == Some(7)),
    ("window_rope_scaling", ALTERNATING, "{type: linear, factor: 3}", |s| window_rope(s).scaling.is_some()),
    ("qkv_bias", &[], "true", |s| s.attention.qkv_bias && !s.attention.out_bias),
    ("attn_out_bias", &[], "true", |s| s.attention.out_bias && !s.attention.qkv_bias),
    ("attention_scale", &[], "0.5", |s| s.attention.scale == 0.5),
    ("attention_scale_by_inverse_layer", &[], "true", |s| s.attention.scale_by_inverse_layer),
    ("attention_softcap", &[], "50", |s| s.attention.softcap == Some(50.0)),
    ("attention_sinks", &[], "true", |s| s.attention.sinks),
    ("qkv_clip", &[], "8", |s| s.attention.clip == Some(8.0)),
    ("qk_norm", &[], "per_head", |s| {
        *qk(s) == QkNorm { kind: NormKind::LayerNorm, eps: 1e-5, trained: Trained::GainAndBias, over: QkNormOver::Head }
    }),
    ("qk_norm", &[], "per_head_gain", |s| qk(s).over == QkNormOver::HeadWithItsGain),
    ("qk_norm", &[], "all_heads", |s| qk(s).over == QkNormOver::AllHeads),
    ("qk_norm_type", QK, "rmsnorm", |s| qk(s).kind == NormKind::RmsNorm && qk(s).trained == Trained::Gain),
    ("qk_norm_eps", QK, "1e-6", |s| qk(s).eps == 1e-6),
    ("qk_norm_gain", QK, "false", |s| qk(s).trained == Trained::Nothing),
    ("qk_norm_bias", QK, "false", |s| qk(s).trained == Trained::Gain),
    ("ffn_type", &[], "gated", |s| s.mlp.gated),
    ("ffn_type", &[("n_experts", "4"), ("experts_per_token", "2")], "moe", |s| {
        s.mlp.gated
            && *moe(s) == Experts { count: 4, used: 2, ffn_dim: 96, renormalized: true, shared_dim: None, layers: None }
    }),
    ("ffn_dim", &[], "72", |s| s.mlp.ffn_dim == 72),
    ("ffn_bias", &[], "true", |s| s.mlp.bias && !s.attention.qkv_bias),
    ("activation", &[], "relu2", |s| s.mlp.activation == Activation::ReluSquared),
    ("n_experts", &MOE, "5", |s| moe(s).count == 5),
    ("experts_per_token", &MOE, "1", |s| moe(s).used == 1),
    ("expert_type", &MOE, "plain", |s| !s.mlp.gated),
    ("expert_dim", &MOE, "40", |s| moe(s).ffn_dim == 40 && s.mlp.ffn_dim == 40),
    ("norm_topk_prob", &MOE, "false", |s| !moe(s).renormalized),
    ("shared_expert_dim", &MOE, "16", |s| moe(s).shared_dim == Some(16)),
    ("moe_layers", &MOE, "[2, 1, 1]", |s| moe(s).layers == Some(vec![1, 2])),
    ("head_type", &[], "untied", |s| s.head == Head::Untied),
    ("head_type", &[], "none", |s| s.head == Head::None && s.attention.causal),
    ("head_bias", &[], "true", |s| s.logits.bias),
    ("logit_scale", &[], "0.25", |s| s.logits.scale == 0.25),
    ("logit_softcap", &[], "30", |s| s.logits.softcap == Some(30.0)),
    ("pooling", &[], "cls", |s| s.pooling.kind == PoolingKind::Cls),
    ("pooling_normalize", &[], "true", |s| s.pooling.normalize),
    ("pooling_max_tokens", &[], "12", |s| s.pooling.max_tokens == Some(12)),
];

#[test]
fn every_key_and_every_kind_can_be_had() {
    for (key, beside, value, holds) in CASES {
        let mut lines = beside.to_vec();
        lines.retain(|(other, _)| other != key);
        lines.push((key, value));
        let spec = spec_of(&lines);
        assert!(holds(&spec), "{key}: {value} gives {spec:?}");
    }
    let tried: BTreeSet<&str> = CASES.iter().map(|case| case.0).collect();
    let known: BTreeSet<&str> = KEYS.iter().map(|key| key.name).collect();
    assert_eq!(tried, known, "every key has a case here, and nothing else has");
    for key in KEYS {
        let Values::OneOf(names) = &key.values else { continue };
        for name in names() {
            // Each with what it needs; the default is always one of them.
            let mut lines = vec![(key.name, name)];
            lines.extend(match (key.name, name) {
                ("attention_type", "window" | "alternating") => vec![("window", "8")],
                ("attention_type", "sparse") => SPARSE[1..].to_vec(),
                ("attention_type", "linear") => vec![("pos_type", "none")],
                ("sparse_pattern", _) => SPARSE.to_vec(),
                ("ffn_type", "moe") => MOE[1..].to_vec(),
                _ => key.with.iter().map(|(other, values)| (*other, values[0])).collect(),
            });
            lines.extend(if lines.contains(&("attention_type", "window")) { vec![WINDOW[1]] } else { vec![] });
            lines.extend(if key.name == "expert_type" { MOE[1..].to_vec() } else { vec![] });
            lines.sort_unstable();
            lines.dedup();
            spec_of(&lines);
        }
    }
}

/// What is wrong with a file, and what the message says.
const WRONG: &[(&[(&str, &str)], &str)] = &[
    (&[("n_layers", ""), ("n_layer", "3")], "`n_layer` is 3, expected no such key; did you mean `n_layers`?"),
    (&[("d_model", ""), ("hidden_size", "24")], "`hidden_size` is 24, expected no such key; did you mean `d_model`?"),
    (&[("qwertz", "1")], "`qwertz` is 1, expected no such key; docs/model-files.md has all keys"),
    (&[("n_layers", "")], "`n_layers` missing, expected a positive whole number"),
    (&[("n_layers", "0")], "`n_layers` is 0, expected a positive whole number"),
    (&[("n_layers", "-2")], "`n_layers` is -2, expected a positive whole number"),
    (&[("n_layers", "2.5")], "`n_layers` is 2.5, expected a positive whole number"),
    (&[("n_layers", "many")], "`n_layers` is \"many\", expected a positive whole number"),
    (&[("n_layers", "99999")], "`n_layers` is 99999, expected at most 16384"),
    (
        &[("pos_type", "")],
        "`pos_type` missing, expected one of: learned, sinusoidal, rotary, alibi, relative_bias, transformer_xl, none",
    ),
    (
        &[("pos_type", "rotery")],
        "`pos_type` is \"rotery\", expected one of: learned, sinusoidal, rotary, alibi, relative_bias, transformer_xl, none; did you mean rotary?",
    ),
    (&[("pos_type", "3")], "`pos_type` is 3, expected one of: learned"),
    (
        &[("norm_type", "RMSNorm")],
        "`norm_type` is \"RMSNorm\", expected one of: layernorm, rmsnorm, scalenorm; did you mean rmsnorm?",
    ),
    (&[("activation", "mish")], "`activation` is \"mish\", expected one of: relu"),
    (&[("bias", "yes")], "`bias` is \"yes\", expected true or false"),
    (&[("norm_eps", "0")], "`norm_eps` is 0, expected a positive number"),
    (&[("norm_eps", ".nan")], "`norm_eps` is \".nan\", expected a positive number"),
    (&[("d_model", "25")], "`d_model` is 25, expected a multiple of `n_heads`, which is 3, or a `head_dim`"),
    (&[("n_kv_heads", "2")], "`n_heads` 3 is not a multiple of `n_kv_heads` 2"),
    (&[("head_dim", "7")], "`head_dim` is 7, expected an even number up to `head_dim`, which is 7"),
    (&[("head_dim", "1024")], "`head_dim` is 1024, at most 512"),
    (&[("rope_dims", "10")], "`rope_dims` is 10, expected an even number up to `head_dim`, which is 8"),
    (&[("rope_exponent", "9")], "`rope_exponent` is 9, expected at most `rope_dims`, which is 8"),
    (&[("rope_scaling", "2")], "`rope_scaling` is 2, expected an object"),
    (
        &[("rope_scaling", "{type: magic, factor: 2}")],
        "`rope_scaling.type` is \"magic\", expected one of: default, linear",
    ),
    (&[("rope_scaling", "{type: linear}")], "`rope_scaling.factor` missing"),
    (&[("rope_scaling", "{type: linear, factor: 2, fctor: 3}")], "`rope_scaling.fctor` is unknown"),
    (
        &[("pos_type", "learned"), ("rope_theta", "500")],
        "`rope_theta` is 500, expected it only with `pos_type` rotary, which is learned",
    ),
    (&[("alibi_max_bias", "4")], "expected it only with `pos_type` alibi, which is rotary"),
    (&[("window", "8")], "`window` is 8, expected it only with `attention_type` window or alternating, which is full"),
    (
        &[("pos_type", "transformer_xl"), ("context_length", "70000")],
        "Transformer-XL `max_distance` is 69999, expected 1 to 65535",
    ),
    (
        &[("pos_type", "transformer_xl"), ("attention_softcap", "30")],
        "Transformer-XL positions with a `softcap` of scores, 30, expected none",
    ),
    (&[("attention_type", "window")], "`window` missing, expected a positive whole number"),
    (&[("attention_type", "window"), ("window", "0")], "`window` is 0"),
    (
        &[WINDOW[0], WINDOW[1], ("window_layers", "[0]")],
        "expected it only with `attention_type` alternating, which is window",
    ),
    (
        &[ALTERNATING[0], ALTERNATING[1], ("window_layers", "[0, 3]")],
        "`window_layers` is [0,3], expected numbers less than `n_layers`, which is 3",
    ),
    (&[ALTERNATING[0], ALTERNATING[1], ("window_layers", "[]")], "`window_layers` is [], expected at least one layer"),
    (
        &[WINDOW[0], WINDOW[1], ("pos_type", "none"), ("window_rope_theta", "9")],
        "expected it only with `pos_type` rotary, which is none",
    ),
    (
        &[("qk_norm_eps", "1e-6")],
        "expected it only with `qk_norm` per_head or per_head_gain or all_heads, which is none",
    ),
    (
        &[("qk_norm", "per_head"), ("norm_type", "scalenorm")],
        "`qk_norm_type` missing, expected one of: layernorm, rmsnorm, because `norm_type` is none of them",
    ),
    (&[("rope_dims", "4"), ("rope_exponent", "3"), ("rope_scaling", "{type: yarn, factor: 2}")], "rotary `exponent` 3"),
    (
        &[("norm_gain", "false"), ("norm_bias", "true")],
        "`norm_bias` is true, expected false, because `norm_gain` is false",
    ),
    (&[("n_experts", "4")], "`n_experts` is 4, expected it only with `ffn_type` moe, which is plain"),
    (&[MOE[0], MOE[1]], "`experts_per_token` missing"),
    (
        &[MOE[0], MOE[1], ("experts_per_token", "5")],
        "`experts_per_token` is 5, expected at most `n_experts`, which is 4",
    ),
    (&[MOE[0], MOE[2], ("n_experts", "1000000")], "`n_experts` is 1000000, expected at most 43690 in each of 3 layers"),
    (
        &[MOE[0], MOE[1], MOE[2], ("norm_placement", "post")],
        "`norm_placement` is \"post\", expected pre, because `ffn_type` is moe",
    ),
    (
        &[MOE[0], MOE[1], MOE[2], ("residual_type", "parallel")],
        "`residual_type` is \"parallel\", expected sequential, because `ffn_type` is moe",
    ),
    (
        &[("residual_type", "parallel"), ("norm_placement", "post")],
        "`norm_placement` is \"post\", expected pre, because `residual_type` is not sequential",
    ),
    (
        &[("attention_type", "bidirectional"), ("head_type", "untied")],
        "`head_type` is \"untied\", expected none, because `attention_type` is bidirectional",
    ),
    (
        &[("attention_type", "bidirectional"), ("pos_type", "alibi")],
        "`pos_type` is \"alibi\", expected another one than alibi",
    ),
    (
        &[("head_type", "none"), ("head_bias", "true")],
        "`head_bias` is true, expected it only with `head_type` tied or untied, which is none",
    ),
    (&[("pooling_max_tokens", "41")], "`pooling_max_tokens` is 41, expected at most `context_length`, which is 40"),
    (&[("encoder_layers", "20000")], "`encoder_layers` is 20000, expected at most 16384"),
    (
        &[("encoder_layers", "1"), ("decoder_start_token_id", "50")],
        "`decoder_start_token_id` is 50, expected less than",
    ),
    (&[("decoder_start_token_id", "3")], "`decoder_start_token_id` is 3, expected it to be absent"),
    (&[("encoder_layers", "1"), ("attention_sinks", "true")], "an encoder with sinks, expected none"),
    (&[("eos_token_id", "50")], "`eos_token_id` is 50, expected less than `vocab_size`, which is 50"),
    (&[("vocab_size", "99999999999999999999")], "`vocab_size` is"),
    (&[("vocab_size", "20000000")], "`vocab_size` is 20000000, expected 1 to 16777216"),
];

#[test]
fn what_is_wrong_is_said_in_one_line() {
    for (changes, expected) in WRONG {
        let message = read("m.yaml", yaml(changes).as_bytes()).expect_err(expected).to_string();
        assert!(
            message.starts_with("m.yaml: ") && message.contains(expected),
            "{message}\nfor {changes:?}, expected\n{expected}"
        );
        assert!(!message.contains('\n'), "{message}");
    }
}

/// Specs that together have every tensor there is; each size has one meaning in them.
fn specs_of_all_tensors() -> Vec<Spec> {
    let sizes =
        [("vocab_size", "101"), ("context_length", "103"), ("n_layers", "2"), ("d_model", "12"), ("n_heads", "6")];
    let sizes = [&sizes[..], &[("head_dim", "18"), ("n_kv_heads", "2"), ("ffn_dim", "107"), ("bias", "true")]].concat();
    let plain = [("embedding_dim", "109"), ("embedding_norm", "true"), ("pos_type", "learned"), ("ffn_type", "gated")];
    let plain =
        [&plain[..], &[("head_type", "untied"), ("head_bias", "true"), ("norm_placement", "sandwich")]].concat();
    let moe = [("expert_dim", "113"), ("shared_expert_dim", "127"), ("n_experts", "131")];
    let moe = [&MOE[..1], &MOE[2..], &moe].concat();
    let with = |over: &'static str, more: &[(&'static str, &'static str)]| {
        spec_of(&[&sizes[..], more, &[("qk_norm", over)]].concat())
    };
    let relative = [("pos_type", "relative_bias"), ("relative_buckets", "136"), ("attention_sinks", "true")];
    let keys = with("none", &[("pos_type", "transformer_xl")]);
    let encoder = [("encoder_layers", "1"), ("norm_placement", "sandwich")];
    let encoder = spec_of(&[&sizes[..], &encoder].concat());
    vec![with("all_heads", &plain), with("per_head", &moe), with("per_head_gain", &relative), keys, encoder]
}

/// What each tensor is.
const TENSORS: &[(&str, &str)] = &[
    ("embed.tokens", "the token table; also called `embed.tokens.weight`, as `nn.Embedding` has it"),
    ("embed.project.weight", "with `embedding_dim`: to the width of the model"),
    ("embed.positions", "with `pos_type: learned`; also called `embed.positions.weight`"),
    ("embed.norm", "with `embedding_norm`"),
    ("relative_bias", "with `pos_type: relative_bias`; the same in all layers"),
    ("layers.{i}.attn_norm", "before attention, unless `norm_placement` is post or branch"),
    (
        "layers.{i}.attn.qkv",
        "all queries, then all keys, then all values; or three tensors `attn.q`, `attn.k`, `attn.v` of `[q_dim, d_model]`, `[kv_dim, d_model]` and `[kv_dim, d_model]`",
    ),
    ("layers.{i}.attn.q_norm", "with `qk_norm`: `[head_dim]` if per_head, else `[q_dim]`"),
    ("layers.{i}.attn.k_norm", "with `qk_norm`: `[head_dim]` if per_head, else `[kv_dim]`"),
    (
        "layers.{i}.attn.relative.weight",
        "with `pos_type: transformer_xl`: from the sinusoids of a distance to its keys; `r_net` in the authors' code",
    ),
    (
        "layers.{i}.attn.content_bias",
        "with `pos_type: transformer_xl`: added to queries that meet keys of tokens; `r_w_bias` there, flattened, and written for each layer where all share it",
    ),
    (
        "layers.{i}.attn.position_bias",
        "with `pos_type: transformer_xl`: added to queries that meet keys of distances; `r_r_bias`, the same",
    ),
    ("layers.{i}.attn.sinks", "with `attention_sinks`"),
    ("layers.{i}.attn.out", "the output of attention"),
    ("layers.{i}.attn_post_norm", "behind attention, if `norm_placement` is post, branch or sandwich"),
    ("layers.{i}.cross_norm", "with `encoder_layers`: before the look at the encoder's text, as `attn_norm`"),
    ("layers.{i}.cross.q", "with `encoder_layers`: queries of the decoder's stream"),
    (
        "layers.{i}.cross.kv",
        "with `encoder_layers`: all keys, then all values, of what the encoder makes; or two tensors `cross.k` and `cross.v`, where `attn.q` is one of three",
    ),
    ("layers.{i}.cross.out", "with `encoder_layers`: what comes of it"),
    ("layers.{i}.cross_post_norm", "with `encoder_layers`: behind it, as `attn_post_norm`"),
    ("layers.{i}.mlp_norm", "before the network, as `attn_norm`; not with `residual_type: parallel_one_norm`"),
    ("layers.{i}.mlp.gate", "with `ffn_type: gated`"),
    ("layers.{i}.mlp.up", "in layers without experts"),
    ("layers.{i}.mlp.down", "in layers without experts"),
    ("layers.{i}.mlp.router.weight", "in layers with experts: their scores"),
    ("layers.{i}.mlp.experts.{e}.gate", "with `expert_type: gated`"),
    ("layers.{i}.mlp.experts.{e}.up", "expert `e`, from 0"),
    ("layers.{i}.mlp.experts.{e}.down", "expert `e`, from 0"),
    ("layers.{i}.mlp.shared_router.weight", "with `shared_expert_dim`: what its sigmoid is taken of"),
    ("layers.{i}.mlp.shared.gate", "with `expert_type: gated`"),
    ("layers.{i}.mlp.shared.up", "the expert that all tokens take"),
    ("layers.{i}.mlp.shared.down", "the expert that all tokens take"),
    ("layers.{i}.mlp_post_norm", "behind the network, as `attn_post_norm`"),
    ("final_norm", "with `final_norm`"),
    ("head.project.weight", "with `embedding_dim` and a head: back to the width of the table"),
    ("head.weight", "with `head_type: untied`"),
    ("head.bias", "with `head_bias`"),
];

/// A tensor's name without numbers, and without `weight` or `bias` where both may be; its kind.
fn pattern(decl: &TensorDecl) -> (String, String) {
    let part = |(at, part)| match (at, str::parse::<usize>(part)) {
        (_, Err(_)) => part,
        (1, Ok(_)) => "{i}",
        (_, Ok(_)) => "{e}",
    };
    // An encoder's are those of a decoder.
    let name = decl.name.strip_prefix("encoder.").unwrap_or(&decl.name);
    let name = name.split('.').enumerate().map(part).collect::<Vec<_>>().join(".");
    match name.rsplit_once('.') {
        Some((stem, kind @ ("weight" | "bias"))) if TENSORS.iter().any(|(known, _)| known == &stem) => {
            (stem.to_owned(), kind.to_owned())
        }
        _ => (name, String::new()),
    }
}

#[test]
fn the_documentation_lists_every_key_and_every_tensor() {
    let mut keys = String::from("| key | values | default | meaning |\n|---|---|---|---|\n");
    for key in KEYS {
        let values = match &key.values {
            Values::Like(text) => (*text).to_owned(),
            Values::OneOf(names) => names().join(", "),
        };
        let with = key.with.iter().map(|(other, values)| format!("`{other}` {}", values.join(" or ")));
        let with = with.collect::<Vec<_>>().join(", ");
        let with = if with.is_empty() { with } else { format!(" (only with {with})") };
        let _ = writeln!(keys, "| `{}` | {values} | {} | {}{with} |", key.name, key.default, key.about);
    }

    let symbols = [
        (101, "vocab_size"),
        (103, "context_length"),
        (12, "d_model"),
        (107, "ffn_dim"),
        (109, "embedding_dim"),
        (113, "expert_dim"),
        (127, "shared_expert_dim"),
        (131, "n_experts"),
        (136, "relative_buckets"),
        (6, "n_heads"),
        (6 * 18, "q_dim"),
        (2 * 18, "kv_dim"),
        (2 * 2 * 18, "2 kv_dim"),
        ((6 + 2 * 2) * 18, "q_dim + 2 kv_dim"),
        (18, "head_dim"),
        (1, "1"),
    ];
    let mut rows: Vec<(String, BTreeSet<String>, String)> = Vec::new();
    for spec in specs_of_all_tensors() {
        for decl in spec.tensors() {
            let (name, kind) = pattern(&decl);
            let size = |n: &usize| symbols.iter().find(|(size, _)| size == n).unwrap_or_else(|| panic!("{decl:?}")).1;
            let shape = format!("[{}]", decl.shape.iter().map(size).collect::<Vec<_>>().join(", "));
            match rows.iter_mut().find(|(known, ..)| *known == name) {
                Some((_, kinds, shapes)) => {
                    if kinds.insert(kind) && *shapes != shape {
                        let _ = write!(shapes, ", bias {shape}");
                    }
                }
                None => rows.push((name, BTreeSet::from([kind]), shape)),
            }
        }
    }
    let found: BTreeSet<&str> = rows.iter().map(|row| row.0.as_str()).collect();
    assert_eq!(found, TENSORS.iter().map(|t| t.0).collect(), "every tensor is described, and nothing else");
    let mut tensors = String::from("| tensor | shape | |\n|---|---|---|\n");
    for (name, about) in TENSORS {
        let (_, kinds, shape) = rows.iter().find(|row| row.0 == *name).unwrap();
        let name = match kinds.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["bias", "weight"] => format!("`{name}.weight`, `.bias`"),
            ["weight"] => format!("`{name}.weight`"),
            _ => format!("`{name}`"),
        };
        let _ = writeln!(tensors, "| {name} | `{shape}` | {about} |");
    }

    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/model-files.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut wanted = text.clone();
    for (name, table) in [("keys", keys), ("tensors", tensors)] {
        let (begin, end) = (format!("<!-- {name}: written by a test -->\n"), format!("<!-- end of {name} -->"));
        let (before, rest) = wanted.split_once(&begin).expect(&begin);
        let (_, after) = rest.split_once(&end).expect(&end);
        wanted = format!("{before}{begin}{table}{end}{after}");
    }
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    } else {
        assert!(text == wanted, "docs/model-files.md is not current: UPDATE=1 cargo test -p tidbit-convert --lib");
    }
    // Its examples are files that work.
    let examples: Vec<&str> = text.split("```yaml\n").skip(1).map(|part| part.split("```").next().unwrap()).collect();
    assert!(examples.len() >= 3, "{examples:?}");
    for example in examples {
        read("example", example.as_bytes()).unwrap_or_else(|e| panic!("{e} in\n{example}"));
    }
}
