//! Qwen 2 and 2.5 (arXiv:2407.10671): `LLaMA` with biases on queries, keys and values, and a window in the upper layers if
//! the config says so.

use super::base::{Fields, Heads};
use super::window::{layer_types, window};
use super::{Family, llama};
use crate::config::Config;
use crate::error::ConvertError;
use tidbit_runtime::spec::{Spec, Window};

pub(super) static FAMILY: Family = Family {
    model_type: "qwen2",
    architectures: &["Qwen2ForCausalLM", "Qwen2Model"],
    prefixes: llama::PREFIXES,
    spec,
    rules: &[llama::MATRICES, llama::NORMS],
    unread: llama::UNREAD,
};

/// The fields of Qwen, and their defaults.
pub(super) const FIELDS: Fields = Fields {
    heads: Heads::Grouped { kv: Some(32), dim: None },
    context: (&["max_position_embeddings"], 32_768),
    eos: None,
    ..llama::FIELDS
};

fn spec(config: &Config) -> Result<Spec, ConvertError> {
    let mut spec = llama::start(config, &FIELDS)?;
    spec.position = llama::turning(config, &spec)?;
    spec.attention.qkv_bias = true;
    spec.attention.window = upper_window(config, spec.n_layers)?;
    Ok(spec)
}

/// `use_sliding_window`: in the layers that `layer_types` names, or else from `max_window_layers` on.
pub(super) fn upper_window(config: &Config, n_layers: usize) -> Result<Option<Window>, ConvertError> {
    let listed = layer_types(config, n_layers)?;
    if !config.bool("use_sliding_window", false)? {
        config.harmless(&["sliding_window", "max_window_layers"]);
        return match listed {
            Some(list) if list.contains(&true) => {
                let reason = "`layer_types` has a \"sliding_attention\", but `use_sliding_window` is not true";
                Err(config.error(reason))
            }
            _ => Ok(None),
        };
    }
    let first = config.count("max_window_layers")?.unwrap_or(28);
    let inside = listed.unwrap_or_else(|| (0..n_layers).map(|i| i >= first).collect());
    Ok(window(config.size(&["sliding_window"])?.unwrap_or(4096), &inside))
}
