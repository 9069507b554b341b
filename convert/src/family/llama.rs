//! `LLaMA` 1 to 3 (Touvron et al. 2023, arXiv:2302.13971) and those like it: RMS norms, rotary positions, a gated network,
//! keys and values of several query heads. [`start`] and the rules serve families that differ in a part.

use super::base::{self, Fields, HUB, Heads};
use super::rotary::{WHOLE, rotary};
use super::{Family, Order, Rule, rule, same};
use crate::config::Config;
use crate::error::ConvertError;
use tidbit_runtime::spec::{Norm, NormKind, Position, QkNorm, QkNormOver, Spec, Trained};

pub(super) static FAMILY: Family = Family {
    model_type: "llama",
    architectures: &["LlamaForCausalLM", "LlamaModel"],
    prefixes: PREFIXES,
    spec,
    rules: &[MATRICES, NORMS],
    unread: UNREAD,
};

pub(super) const PREFIXES: &[&str] = &["model."];
pub(super) const UNREAD: &[&str] = &["layers.{}.self_attn.rotary_emb.inv_freq", "rotary_emb.inv_freq"];

/// Everything but the norms.
pub(super) const MATRICES: &[Rule] = &[
    same("embed.tokens", &["embed_tokens.weight"]),
    rule(
        "layers.{}.attn.qkv.*",
        &["layers.{}.self_attn.q_proj.*", "layers.{}.self_attn.k_proj.*", "layers.{}.self_attn.v_proj.*"],
        Order::QueryKeyValue,
    ),
    same("layers.{}.attn.out.*", &["layers.{}.self_attn.o_proj.*"]),
    same("layers.{}.mlp.gate.*", &["layers.{}.mlp.gate_proj.*"]),
    same("layers.{}.mlp.up.*", &["layers.{}.mlp.up_proj.*"]),
    same("layers.{}.mlp.down.*", &["layers.{}.mlp.down_proj.*"]),
    same("head.weight", &["lm_head.weight"]),
];

pub(super) const NORMS: &[Rule] = &[
    same("layers.{}.attn_norm.*", &["layers.{}.input_layernorm.*"]),
    same("layers.{}.mlp_norm.*", &["layers.{}.post_attention_layernorm.*"]),
    same("layers.{}.attn.q_norm.*", &["layers.{}.self_attn.q_norm.*"]),
    same("layers.{}.attn.k_norm.*", &["layers.{}.self_attn.k_norm.*"]),
    same("final_norm.*", &["norm.*"]),
];

/// The names of `LLaMA`'s fields, and its defaults.
pub(super) const FIELDS: Fields = Fields {
    heads: Heads::Grouped { kv: None, dim: None },
    eps: (&["rms_norm_eps"], 1e-6),
    activation: (Some("hidden_act"), "silu"),
    eos: Some(2),
    ..HUB
};

/// `LLaMA` without position and biases.
pub(super) fn start(config: &Config, fields: &Fields) -> Result<Spec, ConvertError> {
    let mut spec = base::start(config, fields)?;
    spec.norm = Norm::new(NormKind::RmsNorm, spec.norm.eps);
    (spec.attention.qkv_bias, spec.attention.out_bias) = (false, false);
    (spec.mlp.bias, spec.mlp.gated) = (false, true);
    Ok(spec)
}

/// `LLaMA`'s positions: all of a head turns.
pub(super) fn turning(config: &Config, spec: &Spec) -> Result<Position, ConvertError> {
    Ok(Position::Rotary(rotary(config, spec.attention.head_dim, spec.context_length, &WHOLE)?))
}

/// An RMS norm of queries and keys, of the same kind as the others.
pub(super) fn qk_norm(spec: &Spec, over: QkNormOver) -> QkNorm {
    QkNorm { kind: NormKind::RmsNorm, eps: spec.norm.eps, trained: Trained::Gain, over }
}

/// `attention_bias`, on all four projections.
pub(super) fn attention_bias(config: &Config, spec: &mut Spec) -> Result<(), ConvertError> {
    let bias = config.bool("attention_bias", false)?;
    (spec.attention.qkv_bias, spec.attention.out_bias) = (bias, bias);
    Ok(())
}

fn spec(config: &Config) -> Result<Spec, ConvertError> {
    let mut spec = start(config, &FIELDS)?;
    spec.position = turning(config, &spec)?;
    attention_bias(config, &mut spec)?;
    spec.mlp.bias = config.bool("mlp_bias", false)?;
    // An order of summation, and a field that only converters of weights read.
    config.harmless(&["pretraining_tp", "rope_interleaved"]);
    Ok(spec)
}
