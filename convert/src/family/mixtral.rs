//! Mixtral (Jiang et al. 2024, arXiv:2401.04088): Mistral with experts in all layers.

use super::base::{Fields, Heads};
use super::rotary::{Turning, WHOLE, rotary};
use super::window::window;
use super::{Family, Rule, llama, same};
use crate::config::Config;
use crate::error::ConvertError;
use tidbit_runtime::spec::{Experts, Position, Spec};

pub(super) static FAMILY: Family = Family {
    model_type: "mixtral",
    architectures: &["MixtralForCausalLM", "MixtralModel"],
    prefixes: llama::PREFIXES,
    spec,
    rules: &[EXPERTS, llama::MATRICES, llama::NORMS],
    unread: llama::UNREAD,
};

const EXPERTS: &[Rule] = &[
    same("layers.{}.mlp.router.weight", &["layers.{}.block_sparse_moe.gate.weight"]),
    same("layers.{}.mlp.experts.{e}.gate.weight", &["layers.{}.block_sparse_moe.experts.{e}.w1.weight"]),
    same("layers.{}.mlp.experts.{e}.up.weight", &["layers.{}.block_sparse_moe.experts.{e}.w3.weight"]),
    same("layers.{}.mlp.experts.{e}.down.weight", &["layers.{}.block_sparse_moe.experts.{e}.w2.weight"]),
];

fn spec(config: &Config) -> Result<Spec, ConvertError> {
    let fields = Fields {
        heads: Heads::Grouped { kv: Some(8), dim: None },
        context: (&["max_position_embeddings"], 131_072),
        eps: (&["rms_norm_eps"], 1e-5),
        ..llama::FIELDS
    };
    let mut spec = llama::start(config, &fields)?;
    let turning = Turning { theta: 1e6, ..WHOLE };
    spec.position = Position::Rotary(rotary(config, spec.attention.head_dim, spec.context_length, &turning)?);
    let size = config.size(&["sliding_window"])?;
    spec.attention.window = size.and_then(|size| window(size, &vec![true; spec.n_layers]));
    spec.mlp.experts = Some(Experts {
        count: config.size(&["num_local_experts", "num_experts"])?.unwrap_or(8),
        used: config.size(&["num_experts_per_tok"])?.unwrap_or(2),
        ffn_dim: spec.mlp.ffn_dim,
        renormalized: true,
        shared_dim: None,
        layers: None,
    });
    // Only training looks at them.
    config.harmless(&["router_jitter_noise", "router_aux_loss_coef", "output_router_logits"]);
    Ok(spec)
}
