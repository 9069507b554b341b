//! `StableLM` 2 (arXiv:2402.17834): `LLaMA` with layer norms, positions that turn a part of a head, and in the larger model
//! both parts of a block at once and a norm for each head.

use super::base::{Fields, Heads};
use super::rotary::{Part, Turning, rotary};
use super::{Family, Order, Rule, llama, rule};
use crate::config::Config;
use crate::error::ConvertError;
use tidbit_runtime::spec::{NormKind, Position, QkNorm, QkNormOver, Residual, Spec, Trained};

pub(super) static FAMILY: Family = Family {
    model_type: "stablelm",
    architectures: &["StableLmForCausalLM", "StableLmModel"],
    prefixes: llama::PREFIXES,
    spec,
    rules: &[llama::MATRICES, QK_NORMS, llama::NORMS],
    unread: llama::UNREAD,
};

const QK_NORMS: &[Rule] = &[
    rule("layers.{}.attn.q_norm.weight", &["layers.{}.self_attn.q_layernorm.norms.{h}.weight"], Order::ByHead),
    rule("layers.{}.attn.k_norm.weight", &["layers.{}.self_attn.k_layernorm.norms.{h}.weight"], Order::ByHead),
];

fn spec(config: &Config) -> Result<Spec, ConvertError> {
    let fields = Fields {
        heads: Heads::Grouped { kv: Some(32), dim: None },
        context: (&["max_position_embeddings"], 4096),
        eps: (&["layer_norm_eps"], 1e-5),
        eos: Some(0),
        ..llama::FIELDS
    };
    let mut spec = llama::start(config, &fields)?;
    config.expect_size(&["head_dim"], spec.d_model / spec.attention.n_heads, "width divided by heads")?;
    (spec.norm.kind, spec.norm.trained) = (NormKind::LayerNorm, Trained::GainAndBias);
    let turning = Turning { theta: 10_000.0, part: Part::Even(0.25) };
    spec.position = Position::Rotary(rotary(config, spec.attention.head_dim, spec.context_length, &turning)?);
    spec.attention.qkv_bias = config.bool("use_qkv_bias", false)?;
    if config.bool("qk_layernorm", false)? {
        let over = QkNormOver::HeadWithItsGain;
        let norm = QkNorm { kind: NormKind::LayerNorm, eps: spec.norm.eps, trained: Trained::Gain, over };
        spec.attention.qk_norm = Some(norm);
    }
    if config.bool("use_parallel_residual", false)? {
        spec.residual = Residual::ParallelOneNorm;
    }
    Ok(spec)
}
