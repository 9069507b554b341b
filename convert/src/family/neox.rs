//! GPT-NeoX and Pythia (Black et al. 2022, Biderman et al. 2023): partial rotary positions, parallel
//! residual, query, key and value fused per head.
//!
//! Defaults are those of transformers' `GPTNeoXConfig`; sizes have none here, a config must state them.

use super::base::{Fields, HUB, start};
use super::rotary::{Part, Turning, rotary};
use super::{Family, Order, Rule, rule, same};
use crate::config::Config;
use crate::error::ConvertError;
use tidbit_runtime::spec::{Position, Residual, Spec};

pub(super) static FAMILY: Family = Family {
    model_type: "gpt_neox",
    architectures: &["GPTNeoXForCausalLM", "GPTNeoXModel"],
    prefixes: &["gpt_neox."],
    spec,
    rules: &[RULES],
    unread: &[
        "layers.{}.attention.bias",
        "layers.{}.attention.masked_bias",
        "layers.{}.attention.rotary_emb.inv_freq",
        "rotary_emb.inv_freq",
    ],
};

const RULES: &[Rule] = &[
    same("embed.tokens", &["embed_in.weight"]),
    same("layers.{}.attn_norm.*", &["layers.{}.input_layernorm.*"]),
    rule("layers.{}.attn.qkv.*", &["layers.{}.attention.query_key_value.*"], Order::Grouped),
    same("layers.{}.attn.out.*", &["layers.{}.attention.dense.*"]),
    same("layers.{}.mlp_norm.*", &["layers.{}.post_attention_layernorm.*"]),
    same("layers.{}.mlp.up.*", &["layers.{}.mlp.dense_h_to_4h.*"]),
    same("layers.{}.mlp.down.*", &["layers.{}.mlp.dense_4h_to_h.*"]),
    same("final_norm.*", &["final_layer_norm.*"]),
    // The hub's checkpoints say `embed_out`, those of transformers 5 `lm_head`.
    same("head.weight", &["embed_out.weight", "lm_head.weight"]),
];

fn spec(config: &Config) -> Result<Spec, ConvertError> {
    let mut spec = start(config, &Fields { eos: Some(2), ..HUB })?;
    let turning = Turning { theta: 10_000.0, part: Part::EvenOrOdd(0.25) };
    spec.position = Position::Rotary(rotary(config, spec.attention.head_dim, spec.context_length, &turning)?);
    let bias = config.bool("attention_bias", true)?;
    (spec.attention.qkv_bias, spec.attention.out_bias) = (bias, bias);
    if config.bool("use_parallel_residual", true)? {
        spec.residual = Residual::Parallel;
    }
    Ok(spec)
}
