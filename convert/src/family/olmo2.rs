//! `OLMo` 2 (arXiv:2501.00656): `LLaMA` with norms after each part instead of before, and of queries and keys over all heads.

use super::base::Fields;
use super::{Family, Rule, llama, same};
use crate::config::Config;
use crate::error::ConvertError;
use tidbit_runtime::spec::{Place, QkNormOver, Spec};

pub(super) static FAMILY: Family = Family {
    model_type: "olmo2",
    architectures: &["Olmo2ForCausalLM", "Olmo2Model"],
    prefixes: llama::PREFIXES,
    spec,
    rules: &[llama::MATRICES, NORMS, llama::NORMS],
    unread: llama::UNREAD,
};

const NORMS: &[Rule] = &[
    same("layers.{}.attn_post_norm.weight", &["layers.{}.post_attention_layernorm.weight"]),
    same("layers.{}.mlp_post_norm.weight", &["layers.{}.post_feedforward_layernorm.weight"]),
];

fn spec(config: &Config) -> Result<Spec, ConvertError> {
    let fields = Fields { eps: (&["rms_norm_eps"], 1e-5), eos: Some(50_279), ..llama::FIELDS };
    let mut spec = llama::start(config, &fields)?;
    spec.norm.place = Place::Branch;
    spec.position = llama::turning(config, &spec)?;
    llama::attention_bias(config, &mut spec)?;
    spec.attention.qk_norm = Some(llama::qk_norm(&spec, QkNormOver::AllHeads));
    Ok(spec)
}
