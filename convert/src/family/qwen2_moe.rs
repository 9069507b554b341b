//! Qwen 1.5 and 2 with experts (arXiv:2407.10671), and one that all tokens take.

use super::base::{Ffn, Fields, Heads};
use super::window::{layer_types, window};
use super::{Family, Rule, llama, qwen2, same};
use crate::config::Config;
use crate::error::ConvertError;
use tidbit_runtime::spec::{Experts, Spec};

pub(super) static FAMILY: Family = Family {
    model_type: "qwen2_moe",
    architectures: &["Qwen2MoeForCausalLM", "Qwen2MoeModel"],
    prefixes: llama::PREFIXES,
    spec,
    rules: &[EXPERTS, llama::MATRICES, llama::NORMS],
    unread: llama::UNREAD,
};

pub(super) const EXPERTS: &[Rule] = &[
    same("layers.{}.mlp.router.weight", &["layers.{}.mlp.gate.weight"]),
    same("layers.{}.mlp.experts.{e}.gate.weight", &["layers.{}.mlp.experts.{e}.gate_proj.weight"]),
    same("layers.{}.mlp.experts.{e}.up.weight", &["layers.{}.mlp.experts.{e}.up_proj.weight"]),
    same("layers.{}.mlp.experts.{e}.down.weight", &["layers.{}.mlp.experts.{e}.down_proj.weight"]),
    same("layers.{}.mlp.shared_router.weight", &["layers.{}.mlp.shared_expert_gate.weight"]),
    same("layers.{}.mlp.shared.gate.weight", &["layers.{}.mlp.shared_expert.gate_proj.weight"]),
    same("layers.{}.mlp.shared.up.weight", &["layers.{}.mlp.shared_expert.up_proj.weight"]),
    same("layers.{}.mlp.shared.down.weight", &["layers.{}.mlp.shared_expert.down_proj.weight"]),
];

fn spec(config: &Config) -> Result<Spec, ConvertError> {
    // Of no meaning where all layers have experts, and not asked for then; else what transformers takes.
    let ffn = Ffn::Or("intermediate_size", 5632);
    let fields = Fields { heads: Heads::Grouped { kv: Some(16), dim: None }, ffn, ..qwen2::FIELDS };
    let mut spec = llama::start(config, &fields)?;
    spec.position = llama::turning(config, &spec)?;
    spec.attention.qkv_bias = config.bool("qkv_bias", true)?;
    let listed = layer_types(config, spec.n_layers)?;
    if config.bool("use_sliding_window", false)? {
        let below = config.count("max_window_layers")?.unwrap_or(28);
        let inside = listed.unwrap_or_else(|| (0..spec.n_layers).map(|i| i < below && i % 2 == 0).collect());
        spec.attention.window = window(config.size(&["sliding_window"])?.unwrap_or(4096), &inside);
    } else {
        config.harmless(&["sliding_window", "max_window_layers"]);
    }
    let shared = config.size(&["shared_expert_intermediate_size"])?.unwrap_or(5632);
    let routed = experts(config, spec.n_layers, [60, 4, 1408])?;
    spec.mlp.experts = routed.map(|routed| Experts { shared_dim: Some(shared), ..routed });
    Ok(spec)
}

/// The experts of Qwen, if a layer has some; how many there are, how many a token takes and how wide they are by default.
pub(super) fn experts(config: &Config, n_layers: usize, defaults: [usize; 3]) -> Result<Option<Experts>, ConvertError> {
    let size = |name, default| Ok::<_, ConvertError>(config.size(&[name])?.unwrap_or(default));
    let step = size("decoder_sparse_step", 1)?;
    let plain = config.counts("mlp_only_layers")?;
    let with: Vec<usize> = (0..n_layers).filter(|i| !plain.contains(i) && (i + 1).is_multiple_of(step)).collect();
    // Only training looks at them.
    config.harmless(&["router_aux_loss_coef", "output_router_logits"]);
    let experts = Experts {
        count: size("num_experts", defaults[0])?,
        used: size("num_experts_per_tok", defaults[1])?,
        ffn_dim: size("moe_intermediate_size", defaults[2])?,
        renormalized: config.bool("norm_topk_prob", false)?,
        shared_dim: None,
        layers: Some(with.clone()).filter(|with| with.len() < n_layers),
    };
    Ok((!with.is_empty()).then_some(experts))
}
