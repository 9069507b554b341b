//! Qwen 3 (arXiv:2505.09388): `LLaMA` with norms of queries and keys, each head for itself.

use super::base::{Fields, Heads};
use super::{Family, llama, qwen2};
use crate::config::Config;
use crate::error::ConvertError;
use tidbit_runtime::spec::{QkNormOver, Spec};

pub(super) static FAMILY: Family = Family {
    model_type: "qwen3",
    architectures: &["Qwen3ForCausalLM", "Qwen3Model"],
    prefixes: llama::PREFIXES,
    spec,
    rules: &[llama::MATRICES, llama::NORMS],
    unread: llama::UNREAD,
};

fn spec(config: &Config) -> Result<Spec, ConvertError> {
    let fields = Fields { heads: Heads::Grouped { kv: Some(32), dim: Some(128) }, ..qwen2::FIELDS };
    let mut spec = llama::start(config, &fields)?;
    spec.position = llama::turning(config, &spec)?;
    llama::attention_bias(config, &mut spec)?;
    spec.attention.qk_norm = Some(llama::qk_norm(&spec, QkNormOver::Head));
    spec.attention.window = qwen2::upper_window(config, spec.n_layers)?;
    Ok(spec)
}
