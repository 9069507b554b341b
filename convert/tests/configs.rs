//! Every field of a config is honoured, or refused by name; all spellings of all ages are understood.

use serde_json::{Value, json};
use tidbit_convert::{spec_from_json, supported_families};
use tidbit_runtime::spec::{Activation, Head, Position, Residual, Rotary, Spec};

fn gpt2() -> Value {
    json!({"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100})
}

fn neox() -> Value {
    json!({"model_type": "gpt_neox", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 200, "vocab_size": 100})
}

/// `base` with the fields of `extra`; those that say `REMOVE` are removed.
fn with(mut base: Value, extra: &Value) -> String {
    for (name, value) in extra.as_object().unwrap() {
        if value == "REMOVE" {
            base.as_object_mut().unwrap().remove(name);
        } else {
            base[name] = value.clone();
        }
    }
    base.to_string()
}

fn spec(base: Value, extra: &Value) -> Spec {
    spec_from_json("config.json", &with(base, extra)).unwrap_or_else(|e| panic!("{e}")).0
}

fn error(base: Value, extra: &Value) -> String {
    let message = spec_from_json("config.json", &with(base, extra)).unwrap_err().to_string();
    assert!(message.starts_with("config.json: ") && !message.contains('\n'), "{message}");
    message
}

fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits()
}

fn rotary(extra: &Value) -> Rotary {
    match spec(neox(), extra).position {
        Position::Rotary(rotary) => rotary,
        _ => panic!("NeoX has rotary positions"),
    }
}

#[test]
fn gpt2_defaults_are_those_of_transformers() {
    let s = spec(gpt2(), &json!({}));
    assert_eq!((s.context_length, s.mlp.ffn_dim, s.head), (1024, 256, Head::Tied));
    assert_eq!((s.norm.eps, s.mlp.activation), (1e-5, Activation::GeluTanh));
    assert_eq!((s.attention.scale, s.attention.scale_by_inverse_layer), (0.25, false));
    assert_eq!((s.attention.head_dim, s.residual, s.position), (16, Residual::Sequential, Position::Learned));
    assert!(s.attention.qkv_bias && s.attention.out_bias && s.mlp.bias);
    assert!(s.eos_ids.is_empty(), "the default id 50256 is outside this vocabulary");
    assert_eq!(spec(gpt2(), &json!({"vocab_size": 50257})).eos_ids, [50256]);
}

#[test]
fn neox_defaults_are_those_of_transformers() {
    let s = spec(neox(), &json!({}));
    assert_eq!((s.context_length, s.mlp.ffn_dim, s.head), (2048, 200, Head::Untied));
    assert_eq!((s.norm.eps, s.mlp.activation), (1e-5, Activation::GeluErf));
    assert_eq!((s.residual, s.attention.scale), (Residual::Parallel, 0.25));
    assert_eq!(s.position, Position::Rotary(Rotary::new(4, 10_000.0)));
    assert!(s.attention.qkv_bias && s.attention.out_bias && s.mlp.bias);
    assert_eq!(s.eos_ids, [2]);
}

#[test]
fn every_gpt2_field_is_honoured() {
    type Check = fn(&Spec) -> bool;
    let cases: [(Value, Check); 14] = [
        (json!({"n_inner": 100}), |s| s.mlp.ffn_dim == 100),
        (json!({"n_inner": null}), |s| s.mlp.ffn_dim == 256),
        (json!({"n_positions": 77, "n_ctx": 50}), |s| s.context_length == 77),
        (json!({"n_ctx": 50}), |s| s.context_length == 50),
        (json!({"layer_norm_epsilon": 1e-6}), |s| same(s.norm.eps, 1e-6)),
        (json!({"activation_function": "relu"}), |s| s.mlp.activation == Activation::Relu),
        (json!({"scale_attn_weights": false}), |s| same(s.attention.scale, 1.0)),
        (json!({"scale_attn_by_inverse_layer_idx": true}), |s| s.attention.scale_by_inverse_layer),
        (json!({"reorder_and_upcast_attn": true}), |s| same(s.attention.scale, 0.25)),
        (json!({"tie_word_embeddings": false}), |s| s.head == Head::Untied),
        (json!({"eos_token_id": 7}), |s| s.eos_ids == [7]),
        (json!({"eos_token_id": [7, 9]}), |s| s.eos_ids == [7, 9]),
        (json!({"eos_token_id": null}), |s| s.eos_ids.is_empty()),
        (json!({"n_embd": "REMOVE", "hidden_size": 64, "n_layer": "REMOVE", "num_hidden_layers": 2}), |s| {
            s.d_model == 64
        }),
    ];
    for (extra, check) in cases {
        assert!(check(&spec(gpt2(), &extra)), "{extra}");
    }
}

#[test]
fn every_neox_field_is_honoured() {
    type Check = fn(&Spec) -> bool;
    let cases: [(Value, Check); 7] = [
        (json!({"max_position_embeddings": 77}), |s| s.context_length == 77),
        (json!({"layer_norm_eps": 1e-6}), |s| same(s.norm.eps, 1e-6)),
        (json!({"hidden_act": "gelu_fast"}), |s| s.mlp.activation == Activation::GeluTanh),
        (json!({"use_parallel_residual": false}), |s| s.residual == Residual::Sequential),
        (json!({"attention_bias": false}), |s| !s.attention.qkv_bias && !s.attention.out_bias && s.mlp.bias),
        (json!({"tie_word_embeddings": true}), |s| s.head == Head::Tied),
        (json!({"eos_token_id": 0, "num_key_value_heads": 4, "head_dim": 16}), |s| s.eos_ids == [0]),
    ];
    for (extra, check) in cases {
        assert!(check(&spec(neox(), &extra)), "{extra}");
    }
}

#[test]
fn rotary_settings_are_read_in_every_spelling() {
    let half = Rotary::new(8, 500.0);
    for extra in [
        json!({"rotary_pct": 0.5, "rotary_emb_base": 500}),
        json!({"partial_rotary_factor": 0.5, "rope_theta": 500.0}),
        json!({"rope_parameters": {"rope_type": "default", "rope_theta": 500, "partial_rotary_factor": 0.5}}),
        json!({"rotary_pct": 0.5, "rope_parameters": {"rope_theta": 500}, "rotary_emb_base": 500.0}),
        json!({"rotary_pct": 0.5, "rotary_emb_base": 500, "rope_scaling": null}),
        json!({"rotary_pct": 0.5, "rotary_emb_base": 500, "rope_scaling": {"type": "default"}}),
    ] {
        assert_eq!(rotary(&extra), half, "{extra}");
    }
    assert_eq!(rotary(&json!({"rotary_pct": 1.0})).dims, 16);
    let odd = rotary(&json!({"rotary_pct": 0.2}));
    assert_eq!((odd.dims, odd.exponent), (4, Some(3)), "an odd number is one more");
}

#[test]
fn rotary_settings_that_contradict_are_refused() {
    for (extra, expected) in [
        (
            json!({"rotary_pct": 0.5, "partial_rotary_factor": 0.25}),
            "`partial_rotary_factor` is 0.25, expected the same as `rotary_pct`, which is 0.5",
        ),
        (
            json!({"rotary_emb_base": 10000, "rope_parameters": {"rope_theta": 500}}),
            "`rope_parameters.rope_theta` is 500, expected the same as `rotary_emb_base`, which is 10000",
        ),
        (
            json!({"rope_scaling": {"type": "longrope", "factor": 2.0}}),
            "`rope_scaling.type` is \"longrope\", expected one of: default, linear, dynamic, llama3, yarn",
        ),
        (json!({"rope_parameters": {"rope_type": "yarn"}}), "`rope_parameters.factor` missing, expected a positive"),
        (json!({"rope_parameters": {"factor": 2.0}}), "`rope_parameters.factor` is unknown"),
        (json!({"rope_parameters": 3}), "`rope_parameters` is 3, expected an object"),
        (json!({"rotary_pct": 0.01}), "turns 0 dimensions"),
        (json!({"rotary_pct": 1.5}), "turns 24 dimensions"),
        (json!({"rotary_pct": 0}), "`rotary_pct` is 0, expected a positive number"),
    ] {
        let message = error(neox(), &extra);
        assert!(message.contains(expected), "{message} should contain {expected}");
    }
}

#[test]
fn activations_are_told_apart() {
    use Activation::{GeluErf, GeluQuick, GeluTanh, Relu, ReluSquared, Silu, Tanh};
    for (name, activation) in [
        ("gelu", GeluErf),
        ("gelu_python", GeluErf),
        ("gelu_new", GeluTanh),
        ("gelu_fast", GeluTanh),
        ("gelu_pytorch_tanh", GeluTanh),
        ("gelu_accurate", GeluTanh),
        ("quick_gelu", GeluQuick),
        ("relu", Relu),
        ("relu2", ReluSquared),
        ("silu", Silu),
        ("swish", Silu),
        ("tanh", Tanh),
    ] {
        assert_eq!(spec(gpt2(), &json!({"activation_function": name})).mlp.activation, activation, "{name}");
        assert_eq!(spec(neox(), &json!({"hidden_act": name})).mlp.activation, activation, "{name}");
    }
    let message = error(neox(), &json!({"hidden_act": "mish"}));
    assert!(message.contains("`hidden_act` is \"mish\", expected one of: gelu, "), "{message}");
}

#[test]
fn sizes_must_be_stated_and_fit() {
    for field in ["n_embd", "n_layer", "n_head", "vocab_size"] {
        let message = error(gpt2(), &json!({ field: "REMOVE" }));
        assert!(message.contains(&format!("`{field}` missing, expected a positive whole number")), "{message}");
    }
    for field in ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"] {
        let message = error(neox(), &json!({ field: "REMOVE" }));
        assert!(message.contains(&format!("`{field}` missing")), "{message}");
    }
    for (extra, expected) in [
        (json!({"n_embd": "64"}), "`n_embd` is \"64\", expected a positive whole number"),
        (json!({"n_head": 5}), "`n_embd` 64 is not a multiple of `n_head` 5"),
        (json!({"n_head": 0}), "`n_head` is 0"),
        (json!({"hidden_size": 32}), "`hidden_size` is 32, expected the same as `n_embd`, which is 64"),
        (json!({"layer_norm_epsilon": 0.0}), "`layer_norm_epsilon` is 0.0, expected a positive number"),
        (json!({"scale_attn_weights": "no"}), "`scale_attn_weights` is \"no\", expected true or false"),
        (json!({"eos_token_id": 100}), "end-of-text id 100 is outside the vocabulary of 100"),
        (json!({"eos_token_id": -1}), "`eos_token_id` is -1"),
        (json!({"num_key_value_heads": 2}), "`num_key_value_heads` is 2, expected 4 (as many as query heads)"),
        (json!({"head_dim": 8}), "`head_dim` is 8, expected 16"),
    ] {
        let message = error(gpt2(), &extra);
        assert!(message.contains(expected), "{message} should contain {expected}");
    }
}

#[test]
fn fields_of_other_architectures_are_refused_when_active() {
    for (field, value) in [
        ("sliding_window", json!(256)),
        ("rope_scaling", json!({"type": "linear"})),
        ("attention_window", json!([3])),
        ("alibi", json!(true)),
        ("position_embedding_type", json!("relative_key")),
        ("multi_query", json!(true)),
        ("logit_scale", json!(0.1)),
        ("final_logit_softcapping", json!(30)),
        ("parallel_attn", json!(true)),
        ("quantization_config", json!({"bits": 4})),
        ("auto_map", json!({"AutoConfig": "x.Y"})),
        ("pruned_heads", json!({"1": [0]})),
        ("qk_layernorm", json!(true)),
        ("add_cross_attention", json!(true)),
        ("is_encoder_decoder", json!(true)),
        ("use_parallel_residual", json!(true)),
    ] {
        let message = error(gpt2(), &json!({ field: value.clone() }));
        assert!(message.contains(&format!("`{field}` is {value}, expected it to be absent")), "{message}");
    }
    spec(
        gpt2(),
        &json!({"sliding_window": null, "alibi": false, "pruned_heads": {}, "position_embedding_type": "absolute"}),
    );
}

#[test]
fn the_rest_is_listed_once_as_ignored() {
    let extra = json!({"attn_pdrop": 0.1, "transformers_version": "5.0", "use_cache": true, "novelty": 3});
    let (_, ignored) = spec_from_json("config.json", &with(gpt2(), &extra)).unwrap();
    assert_eq!(ignored, ["attn_pdrop", "novelty", "transformers_version", "use_cache"]);
}

#[test]
fn families_are_listed() {
    let names: Vec<_> = supported_families().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names[..2], ["gpt2", "gpt_neox"]);
    let mut once = names.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), names.len(), "{names:?}");
}
