//! Configs of the fixtures with changed fields: refused in one line, or honoured; nothing panics.

use super::*;

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
            "rotary `exponent` 3 with scaling, expected none or a linear one",
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
        // T5.
        (
            "t5",
            json!({"feed_forward_proj": "gated-tanh"}),
            "`feed_forward_proj` is \"gated-tanh\", expected one of: relu",
        ),
        ("t5", json!({"is_encoder_decoder": false}), "`is_encoder_decoder` is false, expected true"),
        ("t5", json!({"tie_encoder_decoder": true}), "`tie_encoder_decoder` is true, expected false"),
        ("t5", json!({"decoder_start_token_id": 71}), "`decoder_start_token_id` is 71, expected less than"),
        ("t5", json!({"decoder_start_token_id": [0, 1]}), "`decoder_start_token_id` is [0,1], expected one token id"),
        ("t5", json!({"decoder_start_token_id": null}), "`decoder_start_token_id` is null, expected one token id"),
        ("t5", json!({"num_decoder_layers": 20000}), "`num_decoder_layers` is 20000, expected at most 16384"),
        ("t5", json!({"num_layers": 20000}), "20000 layers, expected at most 16384"),
        ("t5", json!({"num_layers": "REMOVE"}), "`num_layers` missing"),
        (
            "t5",
            json!({"relative_attention_num_buckets": 6}),
            "the encoder: relative `buckets` is 6, expected a multiple of 4",
        ),
        ("t5", json!({"relative_attention_max_distance": 8}), "relative `max_distance` is 8, expected more than 8"),
        ("t5", json!({"n_positions": 70000}), "the encoder: `context_length` 70000 of a text that is read at once"),
        ("t5", json!({"d_kv": 600}), "`head_dim` is 600, at most 512"),
        (
            "t5",
            json!({"architectures": ["T5EncoderModel"]}),
            "`architectures` is [\"T5EncoderModel\"], expected one of: T5",
        ),
        ("mt5", json!({"scale_decoder_outputs": true}), "`scale_decoder_outputs` is true, expected false"),
        ("t5", json!({"num_key_value_heads": 1}), "`num_key_value_heads` is 1, expected 3"),
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
fn experts_may_be_in_all_layers_or_in_none() {
    for (fixture, change, plain, experts) in [
        ("qwen2-moe", json!({"intermediate_size": "REMOVE"}), None, true),
        ("qwen3-moe", json!({"intermediate_size": "REMOVE"}), Some(6144), true),
        ("qwen2-moe", json!({"mlp_only_layers": [0, 1], "intermediate_size": "REMOVE"}), Some(5632), false),
        ("qwen3-moe", json!({"decoder_sparse_step": 5, "intermediate_size": 40}), Some(40), false),
    ] {
        let spec = spec_from_json("config.json", &changed(fixture, &change)).unwrap().0;
        assert_eq!((spec.mlp.plain_dim(spec.n_layers), spec.mlp.experts.is_some()), (plain, experts), "{change}");
    }
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
        ("t5", json!({"num_decoder_layers": null}), |s| s.n_layers == 2),
        ("t5", json!({"num_decoder_layers": 5, "d_kv": "REMOVE"}), |s| (s.n_layers, heads(s)) == (5, [3, 3, 64])),
        ("t5", json!({"n_positions": "REMOVE", "layer_norm_epsilon": "REMOVE", "eos_token_id": "REMOVE"}), |s| {
            (s.context_length, s.norm.eps, s.eos_ids.as_slice()) == (512, 1e-6, &[1])
        }),
        ("t5", json!({"relative_attention_num_buckets": "REMOVE", "relative_attention_max_distance": "REMOVE"}), |s| {
            s.position == Position::RelativeBias(RelativeBias { buckets: 32, max_distance: 128 })
        }),
        ("t5", json!({"tie_word_embeddings": false}), |s| (s.head, s.logits.scale) == (Head::Untied, 1.0)),
        ("t5", json!({"scale_decoder_outputs": false}), |s| (s.head, s.logits.scale) == (Head::Tied, 1.0)),
        ("flan-t5", json!({"scale_decoder_outputs": true}), |s| {
            (s.head, s.logits.scale) == (Head::Untied, scale(32.0))
        }),
        ("mt5", json!({"tie_word_embeddings": true}), |s| (s.head, s.logits.scale) == (Head::Tied, 1.0)),
        ("t5", json!({"decoder_start_token_id": 4}), |s| s.encoder == Some(Encoder { n_layers: 2, start_id: 4 })),
        ("t5", json!({"decoder_start_token_id": "REMOVE"}), |s| s.encoder.as_ref().unwrap().start_id == 0),
        ("t5", json!({"feed_forward_proj": "REMOVE", "dense_act_fn": "silu"}), |s| {
            (s.mlp.gated, s.mlp.activation) == (false, Activation::Relu)
        }),
        // Not the same GELU.
        ("t5", json!({"feed_forward_proj": "gelu"}), |s| s.mlp.activation == Activation::GeluErf),
        ("t5", json!({"feed_forward_proj": "gated-gelu"}), |s| s.mlp.activation == Activation::GeluTanh && s.mlp.gated),
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
