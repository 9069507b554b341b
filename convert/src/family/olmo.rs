//! `OLMo` (Groeneveld et al. 2024, arXiv:2402.00838): `LLaMA` with layer norms of which nothing is trained.

use super::base::Fields;
use super::{Family, llama};
use crate::config::Config;
use crate::error::ConvertError;
use tidbit_runtime::spec::{NormKind, Spec, Trained};

pub(super) static FAMILY: Family = Family {
    model_type: "olmo",
    architectures: &["OlmoForCausalLM", "OlmoModel"],
    prefixes: llama::PREFIXES,
    spec,
    rules: &[llama::MATRICES],
    unread: llama::UNREAD,
};

fn spec(config: &Config) -> Result<Spec, ConvertError> {
    let fields = Fields { eps: (&[], 1e-5), eos: Some(50_279), ..llama::FIELDS };
    let mut spec = llama::start(config, &fields)?;
    (spec.norm.kind, spec.norm.trained) = (NormKind::LayerNorm, Trained::Nothing);
    spec.position = llama::turning(config, &spec)?;
    llama::attention_bias(config, &mut spec)?;
    spec.attention.clip = config.positive(&["clip_qkv"])?.map(|clip| clip as f32);
    // The eps is 1e-5 whatever they say.
    config.harmless(&["rms_norm_eps", "layer_norm_eps"]);
    Ok(spec)
}
