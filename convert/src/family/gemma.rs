//! Gemma (arXiv:2403.08295): `LLaMA` with a GELU gate, embeddings times the root of their width, and gains that are stored
//! less 1.

use super::base::{Fields, Heads};
use super::{Family, Order, Rule, llama, rule};
use crate::config::Config;
use crate::error::ConvertError;
use tidbit_runtime::spec::{Activation, Spec};

pub(super) static FAMILY: Family = Family {
    model_type: "gemma",
    architectures: &["GemmaForCausalLM", "GemmaModel"],
    prefixes: llama::PREFIXES,
    spec,
    rules: &[llama::MATRICES, NORMS],
    unread: llama::UNREAD,
};

const NORMS: &[Rule] = &[
    rule("layers.{}.attn_norm.weight", &["layers.{}.input_layernorm.weight"], Order::LessOne),
    rule("layers.{}.mlp_norm.weight", &["layers.{}.post_attention_layernorm.weight"], Order::LessOne),
    rule("final_norm.weight", &["norm.weight"], Order::LessOne),
];

/// The fields of Gemma, and their defaults.
pub(super) const FIELDS: Fields = Fields {
    heads: Heads::Grouped { kv: Some(16), dim: Some(256) },
    context: (&["max_position_embeddings"], 8192),
    activation: (Some("hidden_act"), "gelu_pytorch_tanh"),
    tied: true,
    eos: Some(1),
    ..llama::FIELDS
};

/// What all Gemmas have.
pub(super) fn start(config: &Config, fields: &Fields) -> Result<Spec, ConvertError> {
    let mut spec = llama::start(config, fields)?;
    spec.embedding.scale = (spec.d_model as f32).sqrt();
    llama::attention_bias(config, &mut spec)?;
    Ok(spec)
}

fn spec(config: &Config) -> Result<Spec, ConvertError> {
    let mut spec = start(config, &FIELDS)?;
    spec.position = llama::turning(config, &spec)?;
    // The first configs said "gelu"; the model was trained with the other form.
    if spec.mlp.activation == Activation::GeluErf {
        spec.mlp.activation = Activation::GeluTanh;
    }
    config.harmless(&["hidden_activation"]);
    Ok(spec)
}
