//! Phi 1, 1.5 and 2 (Li et al. 2023, arXiv:2309.05463): positions that turn a part of a head, attention and network at
//! once after one norm, biases everywhere, also on the logits.

use super::base::{Fields, HUB, Heads, start};
use super::rotary::{Part, Turning, rotary};
use super::{Family, Order, Rule, rule, same};
use crate::config::Config;
use crate::error::ConvertError;
use tidbit_runtime::spec::{NormKind, Position, QkNorm, QkNormOver, Residual, Spec, Trained};

pub(super) static FAMILY: Family = Family {
    model_type: "phi",
    architectures: &["PhiForCausalLM", "PhiModel"],
    prefixes: &["model."],
    spec,
    rules: &[RULES],
    unread: &["layers.{}.self_attn.rotary_emb.inv_freq", "rotary_emb.inv_freq"],
};

const RULES: &[Rule] = &[
    same("embed.tokens", &["embed_tokens.weight"]),
    same("layers.{}.attn_norm.*", &["layers.{}.input_layernorm.*"]),
    rule(
        "layers.{}.attn.qkv.*",
        &["layers.{}.self_attn.q_proj.*", "layers.{}.self_attn.k_proj.*", "layers.{}.self_attn.v_proj.*"],
        Order::QueryKeyValue,
    ),
    same("layers.{}.attn.q_norm.*", &["layers.{}.self_attn.q_layernorm.*"]),
    same("layers.{}.attn.k_norm.*", &["layers.{}.self_attn.k_layernorm.*"]),
    same("layers.{}.attn.out.*", &["layers.{}.self_attn.dense.*"]),
    same("layers.{}.mlp.up.*", &["layers.{}.mlp.fc1.*"]),
    same("layers.{}.mlp.down.*", &["layers.{}.mlp.fc2.*"]),
    same("final_norm.*", &["final_layernorm.*"]),
    same("head.*", &["lm_head.*"]),
];

fn spec(config: &Config) -> Result<Spec, ConvertError> {
    let fields = Fields {
        heads: Heads::Grouped { kv: None, dim: None },
        activation: (Some("hidden_act"), "gelu_new"),
        eos: Some(2),
        ..HUB
    };
    let mut spec = start(config, &fields)?;
    let turning = Turning { theta: 10_000.0, part: Part::Even(0.5) };
    spec.position = Position::Rotary(rotary(config, spec.attention.head_dim, spec.context_length, &turning)?);
    if config.bool("qk_layernorm", false)? {
        let (kind, trained) = (NormKind::LayerNorm, Trained::GainAndBias);
        spec.attention.qk_norm = Some(QkNorm { kind, eps: spec.norm.eps, trained, over: QkNormOver::Head });
    }
    spec.residual = Residual::ParallelOneNorm;
    spec.logits.bias = true;
    // The same code as in transformers.
    config.harmless(&["auto_map"]);
    Ok(spec)
}
