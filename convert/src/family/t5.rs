//! T5 (Raffel et al. 2019, arXiv:1910.10683), its version 1.1, Flan-T5 and mT5: an encoder and a decoder with RMS norms before each
//! part, no biases, and relative biases in buckets, of which each stack has one table for all its layers. Scores are not
//! scaled. The first T5, whose head is its embedding, divides the head's input by the root of its width.

use super::base::{Ffn, Fields, HUB, Heads, MAX_LAYERS, start};
use super::{Family, Order, Rule, rule, same};
use crate::config::Config;
use crate::error::ConvertError;
use tidbit_runtime::spec::{Activation, Encoder, Head, Norm, NormKind, Position, RelativeBias, Spec};

pub(super) static T5: Family = Family {
    model_type: "t5",
    architectures: &["T5ForConditionalGeneration", "T5WithLMHeadModel"],
    prefixes: &[],
    spec: t5,
    rules: &[RULES],
    unread: &[
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
        // Old checkpoints have a table that was never used.
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
    ],
};

pub(super) static MT5: Family =
    Family { model_type: "mt5", architectures: &["MT5ForConditionalGeneration"], spec: mt5, ..T5 };

const RULES: &[Rule] = &[
    same("embed.tokens", &["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]),
    same("encoder.relative_bias", &["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]),
    same("relative_bias", &["decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]),
    same("encoder.layers.{}.attn_norm.weight", &["encoder.block.{}.layer.0.layer_norm.weight"]),
    rule(
        "encoder.layers.{}.attn.qkv.weight",
        &[
            "encoder.block.{}.layer.0.SelfAttention.q.weight",
            "encoder.block.{}.layer.0.SelfAttention.k.weight",
            "encoder.block.{}.layer.0.SelfAttention.v.weight",
        ],
        Order::QueryKeyValue,
    ),
    same("encoder.layers.{}.attn.out.weight", &["encoder.block.{}.layer.0.SelfAttention.o.weight"]),
    same("encoder.layers.{}.mlp_norm.weight", &["encoder.block.{}.layer.1.layer_norm.weight"]),
    same("encoder.layers.{}.mlp.gate.weight", &["encoder.block.{}.layer.1.DenseReluDense.wi_0.weight"]),
    same(
        "encoder.layers.{}.mlp.up.weight",
        &["encoder.block.{}.layer.1.DenseReluDense.wi.weight", "encoder.block.{}.layer.1.DenseReluDense.wi_1.weight"],
    ),
    same("encoder.layers.{}.mlp.down.weight", &["encoder.block.{}.layer.1.DenseReluDense.wo.weight"]),
    same("encoder.final_norm.weight", &["encoder.final_layer_norm.weight"]),
    same("layers.{}.attn_norm.weight", &["decoder.block.{}.layer.0.layer_norm.weight"]),
    rule(
        "layers.{}.attn.qkv.weight",
        &[
            "decoder.block.{}.layer.0.SelfAttention.q.weight",
            "decoder.block.{}.layer.0.SelfAttention.k.weight",
            "decoder.block.{}.layer.0.SelfAttention.v.weight",
        ],
        Order::QueryKeyValue,
    ),
    same("layers.{}.attn.out.weight", &["decoder.block.{}.layer.0.SelfAttention.o.weight"]),
    same("layers.{}.cross_norm.weight", &["decoder.block.{}.layer.1.layer_norm.weight"]),
    same("layers.{}.cross.q.weight", &["decoder.block.{}.layer.1.EncDecAttention.q.weight"]),
    rule(
        "layers.{}.cross.kv.weight",
        &["decoder.block.{}.layer.1.EncDecAttention.k.weight", "decoder.block.{}.layer.1.EncDecAttention.v.weight"],
        Order::KeyValue,
    ),
    same("layers.{}.cross.out.weight", &["decoder.block.{}.layer.1.EncDecAttention.o.weight"]),
    same("layers.{}.mlp_norm.weight", &["decoder.block.{}.layer.2.layer_norm.weight"]),
    same("layers.{}.mlp.gate.weight", &["decoder.block.{}.layer.2.DenseReluDense.wi_0.weight"]),
    same(
        "layers.{}.mlp.up.weight",
        &["decoder.block.{}.layer.2.DenseReluDense.wi.weight", "decoder.block.{}.layer.2.DenseReluDense.wi_1.weight"],
    ),
    same("layers.{}.mlp.down.weight", &["decoder.block.{}.layer.2.DenseReluDense.wo.weight"]),
    same("final_norm.weight", &["decoder.final_layer_norm.weight"]),
    same("head.weight", &["lm_head.weight"]),
];

const FIELDS: Fields = Fields {
    width: &["d_model"],
    n_heads: (&["num_heads"], None),
    heads: Heads::OfWidth("d_kv", 64),
    n_layers: &["num_layers"],
    context: (&["n_positions"], 512),
    ffn: Ffn::Stated("d_ff"),
    eps: (&["layer_norm_epsilon"], 1e-6),
    activation: (None, "relu"),
    tied: true,
    eos: Some(1),
    ..HUB
};

fn t5(config: &Config) -> Result<Spec, ConvertError> {
    let mut spec = spec(config)?;
    // Transformers 5 writes that the head is tied whether it is or not, and this beside it.
    if config.bool("scale_decoder_outputs", spec.head == Head::Tied)? {
        spec.logits.scale = (spec.d_model as f32).sqrt().recip();
    }
    Ok(spec)
}

fn mt5(config: &Config) -> Result<Spec, ConvertError> {
    config.expect_bool("scale_decoder_outputs", false)?;
    spec(config)
}

fn spec(config: &Config) -> Result<Spec, ConvertError> {
    let mut spec = start(config, &FIELDS)?;
    config.expect_bool("is_encoder_decoder", true)?;
    // Both stacks would be one.
    config.expect_bool("tie_encoder_decoder", false)?;
    let encoder_layers = spec.n_layers;
    if let Some(n_layers) = config.size(&["num_decoder_layers"])? {
        if n_layers > MAX_LAYERS {
            return Err(config.refuse("num_decoder_layers", format!("at most {MAX_LAYERS}")));
        }
        spec.n_layers = n_layers;
    }
    let vocab_size = spec.vocab_size;
    let start_ids = config.token_ids("decoder_start_token_id", Some(0), vocab_size)?;
    let &[start_id] = start_ids.as_slice() else {
        return Err(config.refuse("decoder_start_token_id", "one token id"));
    };
    if start_id as usize >= vocab_size {
        return Err(config.refuse("decoder_start_token_id", format!("less than `vocab_size` {vocab_size}")));
    }
    spec.encoder = Some(Encoder { n_layers: encoder_layers, start_id });
    spec.position = Position::RelativeBias(RelativeBias {
        buckets: config.size(&["relative_attention_num_buckets"])?.unwrap_or(32),
        max_distance: config.size(&["relative_attention_max_distance"])?.unwrap_or(128),
    });
    spec.norm = Norm::new(NormKind::RmsNorm, spec.norm.eps);
    spec.attention.scale = 1.0;
    (spec.attention.qkv_bias, spec.attention.out_bias, spec.mlp.bias) = (false, false, false);
    (spec.mlp.gated, spec.mlp.activation) = network(config)?;
    // They repeat `feed_forward_proj`, which decides.
    config.harmless(&["dense_act_fn", "is_gated_act", "dropout_rate", "initializer_factor"]);
    Ok(spec)
}

/// Whether the network has a gate, and its activation.
fn network(config: &Config) -> Result<(bool, Activation), ConvertError> {
    let name = config.text("feed_forward_proj")?;
    Ok(match name.as_deref().unwrap_or("relu") {
        "relu" => (false, Activation::Relu),
        "gelu" => (false, Activation::GeluErf),
        "gelu_new" => (false, Activation::GeluTanh),
        "silu" => (false, Activation::Silu),
        "gated-relu" => (true, Activation::Relu),
        // So the reference has it, and not the exact one.
        "gated-gelu" | "gated-gelu_new" => (true, Activation::GeluTanh),
        "gated-silu" => (true, Activation::Silu),
        _ => {
            let expected = "one of: relu, gelu, gelu_new, silu, gated-relu, gated-gelu, gated-gelu_new, gated-silu";
            return Err(config.refuse("feed_forward_proj", expected));
        }
    })
}
