//! GPT-2 (Radford et al. 2019): learned positions, `Conv1D` weights (stored transposed), tied head.
//!
//! Defaults are those of transformers' `GPT2Config`; sizes have none here, a config must state them.

use super::{Family, Order, Rule, activation, head_dim, rule};
use crate::config::Config;
use crate::error::ConvertError;
use tidbit_runtime::spec::{Attention, Embedding, Head, Logits, Mlp, Norm, NormKind, Position, Residual, Spec};

pub(super) static FAMILY: Family = Family {
    model_type: "gpt2",
    architectures: &["GPT2LMHeadModel", "GPT2Model"],
    prefix: "transformer.",
    spec,
    rules: &RULES,
    buffers: &["h.{}.attn.bias", "h.{}.attn.masked_bias"],
};

static RULES: [Rule; 17] = [
    rule("embed.tokens", &["wte.weight"], Order::Same),
    rule("embed.positions", &["wpe.weight"], Order::Same),
    rule("layers.{}.attn_norm.weight", &["h.{}.ln_1.weight"], Order::Same),
    rule("layers.{}.attn_norm.bias", &["h.{}.ln_1.bias"], Order::Same),
    rule("layers.{}.attn.qkv.weight", &["h.{}.attn.c_attn.weight"], Order::Transposed),
    rule("layers.{}.attn.qkv.bias", &["h.{}.attn.c_attn.bias"], Order::Same),
    rule("layers.{}.attn.out.weight", &["h.{}.attn.c_proj.weight"], Order::Transposed),
    rule("layers.{}.attn.out.bias", &["h.{}.attn.c_proj.bias"], Order::Same),
    rule("layers.{}.mlp_norm.weight", &["h.{}.ln_2.weight"], Order::Same),
    rule("layers.{}.mlp_norm.bias", &["h.{}.ln_2.bias"], Order::Same),
    rule("layers.{}.mlp.up.weight", &["h.{}.mlp.c_fc.weight"], Order::Transposed),
    rule("layers.{}.mlp.up.bias", &["h.{}.mlp.c_fc.bias"], Order::Same),
    rule("layers.{}.mlp.down.weight", &["h.{}.mlp.c_proj.weight"], Order::Transposed),
    rule("layers.{}.mlp.down.bias", &["h.{}.mlp.c_proj.bias"], Order::Same),
    rule("final_norm.weight", &["ln_f.weight"], Order::Same),
    rule("final_norm.bias", &["ln_f.bias"], Order::Same),
    rule("head.weight", &["lm_head.weight"], Order::Same),
];

fn spec(config: &Config) -> Result<Spec, ConvertError> {
    let d_model = config.required_size(&["n_embd", "hidden_size"])?;
    let n_heads = config.required_size(&["n_head", "num_attention_heads"])?;
    let n_layers = config.required_size(&["n_layer", "num_hidden_layers"])?;
    let vocab_size = config.required_size(&["vocab_size"])?;
    // `n_ctx` is the old name; transformers does not read it where the new one is given.
    let context_length = match config.size(&["n_positions", "max_position_embeddings"])? {
        Some(positions) => positions,
        None => config.size(&["n_ctx"])?.unwrap_or(1024),
    };
    let head_dim = head_dim(config, d_model, n_heads, ["n_embd", "n_head"])?;
    // Only changes the order in which the original multiplies in half precision.
    config.bool("reorder_and_upcast_attn", false)?;
    Ok(Spec {
        family: "gpt2".into(),
        vocab_size,
        n_layers,
        d_model,
        context_length,
        position: Position::Learned,
        norm: Norm::new(NormKind::LayerNorm, config.positive(&["layer_norm_epsilon"])?.unwrap_or(1e-5) as f32),
        embedding: Embedding::default(),
        final_norm: true,
        logits: Logits::default(),
        attention: Attention {
            n_heads,
            n_kv_heads: n_heads,
            head_dim,
            scale: if config.bool("scale_attn_weights", true)? { 1.0 / (head_dim as f32).sqrt() } else { 1.0 },
            scale_by_inverse_layer: config.bool("scale_attn_by_inverse_layer_idx", false)?,
            qkv_bias: true,
            out_bias: true,
            ..Attention::new(n_heads, n_heads, head_dim)
        },
        mlp: Mlp {
            ffn_dim: config.size(&["n_inner"])?.unwrap_or(4 * d_model),
            activation: activation(config, "activation_function", "gelu_new")?,
            bias: true,
            gated: false,
        },
        residual: Residual::Sequential,
        head: if config.bool("tie_word_embeddings", true)? { Head::Tied } else { Head::Untied },
        eos_ids: config.token_ids("eos_token_id", 50256, vocab_size)?,
    })
}
