//! Mistral (Jiang et al. 2023, arXiv:2310.06825): `LLaMA` with a window in all layers.

use super::base::{Fields, Heads};
use super::window::window;
use super::{Family, llama};
use crate::config::Config;
use crate::error::ConvertError;
use tidbit_runtime::spec::Spec;

pub(super) static FAMILY: Family = Family {
    model_type: "mistral",
    architectures: &["MistralForCausalLM", "MistralModel"],
    prefixes: llama::PREFIXES,
    spec,
    rules: &[llama::MATRICES, llama::NORMS],
    unread: llama::UNREAD,
};

fn spec(config: &Config) -> Result<Spec, ConvertError> {
    let fields = Fields {
        heads: Heads::Grouped { kv: Some(8), dim: None },
        context: (&["max_position_embeddings"], 131_072),
        ..llama::FIELDS
    };
    let mut spec = llama::start(config, &fields)?;
    spec.position = llama::turning(config, &spec)?;
    let absent = (!config.has("sliding_window")).then_some(4096);
    let size = config.size(&["sliding_window"])?.or(absent);
    spec.attention.window = size.and_then(|size| window(size, &vec![true; spec.n_layers]));
    Ok(spec)
}
