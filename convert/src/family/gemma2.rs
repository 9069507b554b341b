//! Gemma 2 (arXiv:2408.00118): norms before and after each part, capped scores and logits, a window in every second layer.

use super::base::{Fields, Heads};
use super::window::{layer_types, window};
use super::{Family, Order, Rule, gemma, llama, rule};
use crate::config::Config;
use crate::error::ConvertError;
use tidbit_runtime::spec::{Place, Spec};

pub(super) static FAMILY: Family = Family {
    model_type: "gemma2",
    architectures: &["Gemma2ForCausalLM", "Gemma2Model"],
    prefixes: llama::PREFIXES,
    spec,
    rules: &[llama::MATRICES, NORMS],
    unread: llama::UNREAD,
};

/// The norms of Gemma 2 and 3.
pub(super) const NORMS: &[Rule] = &[
    rule("layers.{}.attn_norm.weight", &["layers.{}.input_layernorm.weight"], Order::LessOne),
    rule("layers.{}.attn_post_norm.weight", &["layers.{}.post_attention_layernorm.weight"], Order::LessOne),
    rule("layers.{}.mlp_norm.weight", &["layers.{}.pre_feedforward_layernorm.weight"], Order::LessOne),
    rule("layers.{}.mlp_post_norm.weight", &["layers.{}.post_feedforward_layernorm.weight"], Order::LessOne),
    rule("layers.{}.attn.q_norm.weight", &["layers.{}.self_attn.q_norm.weight"], Order::LessOne),
    rule("layers.{}.attn.k_norm.weight", &["layers.{}.self_attn.k_norm.weight"], Order::LessOne),
    rule("final_norm.weight", &["norm.weight"], Order::LessOne),
];

/// The fields of Gemma 2, and their defaults.
pub(super) const FIELDS: Fields = Fields {
    heads: Heads::Grouped { kv: Some(4), dim: Some(256) },
    activation: (Some("hidden_activation"), "gelu_pytorch_tanh"),
    ..gemma::FIELDS
};

/// What Gemma 2 and 3 have; `narrow` says which layers have the window where the config does not.
pub(super) fn start(config: &Config, fields: &Fields, narrow: impl Fn(usize) -> bool) -> Result<Spec, ConvertError> {
    let mut spec = gemma::start(config, fields)?;
    spec.norm.place = Place::Sandwich;
    spec.attention.scale = 1.0 / config.positive(&["query_pre_attn_scalar"])?.unwrap_or(256.0).sqrt() as f32;
    let listed = layer_types(config, spec.n_layers)?;
    let inside = listed.unwrap_or_else(|| (0..spec.n_layers).map(narrow).collect());
    if config.has("sliding_window") && inside.contains(&true) {
        config.required_size(&["sliding_window"])?;
    }
    spec.attention.window = window(config.size(&["sliding_window"])?.unwrap_or(4096), &inside);
    // The other name of the activation, which these do not read; a copy of the window; a choice of the original's cache.
    config.harmless(&["hidden_act", "sliding_window_size", "cache_implementation"]);
    Ok(spec)
}

fn spec(config: &Config) -> Result<Spec, ConvertError> {
    let mut spec = start(config, &FIELDS, |layer| layer % 2 == 0)?;
    spec.position = llama::turning(config, &spec)?;
    spec.attention.softcap = config.optional("attn_logit_softcapping", 50.0)?;
    spec.logits.softcap = config.optional("final_logit_softcapping", 30.0)?;
    Ok(spec)
}
