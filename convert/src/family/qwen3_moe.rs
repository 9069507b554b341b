//! Qwen 3 with experts (arXiv:2505.09388).

use super::base::{Ffn, Fields, Heads};
use super::window::{layer_types, window};
use super::{Family, llama, qwen2, qwen2_moe};
use crate::config::Config;
use crate::error::ConvertError;
use tidbit_runtime::spec::{QkNormOver, Spec};

pub(super) static FAMILY: Family = Family {
    model_type: "qwen3_moe",
    architectures: &["Qwen3MoeForCausalLM", "Qwen3MoeModel"],
    prefixes: llama::PREFIXES,
    spec,
    rules: &[qwen2_moe::EXPERTS, llama::MATRICES, llama::NORMS],
    unread: llama::UNREAD,
};

fn spec(config: &Config) -> Result<Spec, ConvertError> {
    // Of no meaning where all layers have experts, and not asked for then; else what transformers takes.
    let ffn = Ffn::Or("intermediate_size", 6144);
    let fields = Fields { heads: Heads::Grouped { kv: Some(4), dim: None }, ffn, ..qwen2::FIELDS };
    let mut spec = llama::start(config, &fields)?;
    spec.position = llama::turning(config, &spec)?;
    llama::attention_bias(config, &mut spec)?;
    spec.attention.qk_norm = Some(llama::qk_norm(&spec, QkNormOver::Head));
    let listed = layer_types(config, spec.n_layers)?;
    if config.bool("use_sliding_window", false)? {
        let inside = listed.unwrap_or_else(|| vec![true; spec.n_layers]);
        spec.attention.window = window(config.size(&["sliding_window"])?.unwrap_or(4096), &inside);
    } else {
        config.harmless(&["sliding_window"]);
    }
    config.harmless(&["max_window_layers"]);
    spec.mlp.experts = qwen2_moe::experts(config, spec.n_layers, [128, 8, 768])?;
    Ok(spec)
}
