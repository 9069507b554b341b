//! GPT-NeoX and Pythia (Black et al. 2022, Biderman et al. 2023): partial rotary positions, parallel
//! residual, query, key and value fused per head.
//!
//! Defaults are those of transformers' `GPTNeoXConfig`; sizes have none here, a config must state them.
//! Rotary settings have had three spellings over the years; all that are present must agree.

use super::{Family, Order, Rule, activation, head_dim, rule};
use crate::config::Config;
use crate::error::ConvertError;
use tidbit_runtime::spec::{Attention, Embedding, Head, Logits, Mlp, Norm, NormKind, Position, Residual, Rotary, Spec};

pub(super) static FAMILY: Family = Family {
    model_type: "gpt_neox",
    architectures: &["GPTNeoXForCausalLM", "GPTNeoXModel"],
    prefix: "gpt_neox.",
    spec,
    rules: &RULES,
    buffers: &[
        "layers.{}.attention.bias",
        "layers.{}.attention.masked_bias",
        "layers.{}.attention.rotary_emb.inv_freq",
        "rotary_emb.inv_freq",
    ],
};

static RULES: [Rule; 16] = [
    rule("embed.tokens", &["embed_in.weight"], Order::Same),
    rule("layers.{}.attn_norm.weight", &["layers.{}.input_layernorm.weight"], Order::Same),
    rule("layers.{}.attn_norm.bias", &["layers.{}.input_layernorm.bias"], Order::Same),
    rule("layers.{}.attn.qkv.weight", &["layers.{}.attention.query_key_value.weight"], Order::FusedPerHead),
    rule("layers.{}.attn.qkv.bias", &["layers.{}.attention.query_key_value.bias"], Order::FusedPerHead),
    rule("layers.{}.attn.out.weight", &["layers.{}.attention.dense.weight"], Order::Same),
    rule("layers.{}.attn.out.bias", &["layers.{}.attention.dense.bias"], Order::Same),
    rule("layers.{}.mlp_norm.weight", &["layers.{}.post_attention_layernorm.weight"], Order::Same),
    rule("layers.{}.mlp_norm.bias", &["layers.{}.post_attention_layernorm.bias"], Order::Same),
    rule("layers.{}.mlp.up.weight", &["layers.{}.mlp.dense_h_to_4h.weight"], Order::Same),
    rule("layers.{}.mlp.up.bias", &["layers.{}.mlp.dense_h_to_4h.bias"], Order::Same),
    rule("layers.{}.mlp.down.weight", &["layers.{}.mlp.dense_4h_to_h.weight"], Order::Same),
    rule("layers.{}.mlp.down.bias", &["layers.{}.mlp.dense_4h_to_h.bias"], Order::Same),
    rule("final_norm.weight", &["final_layer_norm.weight"], Order::Same),
    rule("final_norm.bias", &["final_layer_norm.bias"], Order::Same),
    // The hub's checkpoints say `embed_out`, those of transformers 5 `lm_head`.
    rule("head.weight", &["embed_out.weight", "lm_head.weight"], Order::Same),
];

fn spec(config: &Config) -> Result<Spec, ConvertError> {
    let d_model = config.required_size(&["hidden_size"])?;
    let n_heads = config.required_size(&["num_attention_heads"])?;
    let n_layers = config.required_size(&["num_hidden_layers"])?;
    let vocab_size = config.required_size(&["vocab_size"])?;
    let ffn_dim = config.required_size(&["intermediate_size"])?;
    let head_dim = head_dim(config, d_model, n_heads, ["hidden_size", "num_attention_heads"])?;
    let bias = config.bool("attention_bias", true)?;
    let parallel = config.bool("use_parallel_residual", true)?;
    Ok(Spec {
        family: "gpt_neox".into(),
        vocab_size,
        n_layers,
        d_model,
        context_length: config.size(&["max_position_embeddings"])?.unwrap_or(2048),
        position: Position::Rotary(rotary(config, head_dim)?),
        norm: Norm::new(NormKind::LayerNorm, config.positive(&["layer_norm_eps"])?.unwrap_or(1e-5) as f32),
        embedding: Embedding::default(),
        final_norm: true,
        logits: Logits::default(),
        attention: Attention {
            n_heads,
            n_kv_heads: n_heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            scale_by_inverse_layer: false,
            qkv_bias: bias,
            out_bias: bias,
            ..Attention::new(n_heads, n_heads, head_dim)
        },
        mlp: Mlp { ffn_dim, activation: activation(config, "hidden_act", "gelu")?, bias: true, gated: false },
        residual: if parallel { Residual::Parallel } else { Residual::Sequential },
        head: if config.bool("tie_word_embeddings", false)? { Head::Tied } else { Head::Untied },
        eos_ids: config.token_ids("eos_token_id", 2, vocab_size)?,
    })
}

fn rotary(config: &Config, head_dim: usize) -> Result<Rotary, ConvertError> {
    let mut fraction = config.positive(&["rotary_pct", "partial_rotary_factor"])?;
    let mut theta = config.positive(&["rotary_emb_base", "rope_theta"])?;
    // Two names of one object; `type` and `rope_type` are two names of its kind.
    for name in ["rope_parameters", "rope_scaling"] {
        let Some(rope) = config.object(name)? else { continue };
        for kind in ["rope_type", "type"] {
            if rope.text(kind)?.is_some_and(|kind| kind != "default") {
                return Err(rope.refuse(kind, "\"default\" (scaled positions are not supported)"));
            }
        }
        for (field, plain, value) in
            [("partial_rotary_factor", "rotary_pct", &mut fraction), ("rope_theta", "rotary_emb_base", &mut theta)]
        {
            match (rope.positive(&[field])?, &*value) {
                (Some(inner), Some(outer)) if inner.to_bits() != outer.to_bits() => {
                    return Err(rope.refuse(field, format!("the same as `{plain}`, which is {outer}")));
                }
                (Some(inner), _) => *value = Some(inner),
                (None, _) => {}
            }
        }
        if let Some(unknown) = rope.finish()?.unknown.first() {
            return Err(config.error(format!("`{unknown}` is unknown, and may change the positions")));
        }
    }
    let fraction = fraction.unwrap_or(0.25);
    let dims = (head_dim as f64 * fraction) as usize;
    if dims == 0 || !dims.is_multiple_of(2) || dims > head_dim {
        let reason = format!(
            "`rotary_pct` {fraction} of a head of {head_dim} turns {dims} dimensions, expected an even number from 2 to {head_dim}"
        );
        return Err(config.error(reason));
    }
    Ok(Rotary::new(dims, theta.unwrap_or(10_000.0) as f32))
}
