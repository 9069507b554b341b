//! GPT-2 (Radford et al. 2019): learned positions, `Conv1D` weights (stored transposed), tied head.
//!
//! Defaults are those of transformers' `GPT2Config`; sizes have none here, a config must state them.

use super::base::{Ffn, Fields, HUB, start};
use super::{Family, Order, Rule, rule, same};
use crate::config::Config;
use crate::error::ConvertError;
use tidbit_runtime::spec::{Position, Spec};

pub(super) static FAMILY: Family = Family {
    model_type: "gpt2",
    architectures: &["GPT2LMHeadModel", "GPT2Model"],
    prefixes: &["transformer."],
    spec,
    rules: &[RULES],
    unread: &["h.{}.attn.bias", "h.{}.attn.masked_bias"],
};

const RULES: &[Rule] = &[
    same("embed.tokens", &["wte.weight"]),
    same("embed.positions", &["wpe.weight"]),
    same("layers.{}.attn_norm.*", &["h.{}.ln_1.*"]),
    rule("layers.{}.attn.qkv.*", &["h.{}.attn.c_attn.*"], Order::Transposed),
    rule("layers.{}.attn.out.*", &["h.{}.attn.c_proj.*"], Order::Transposed),
    same("layers.{}.mlp_norm.*", &["h.{}.ln_2.*"]),
    rule("layers.{}.mlp.up.*", &["h.{}.mlp.c_fc.*"], Order::Transposed),
    rule("layers.{}.mlp.down.*", &["h.{}.mlp.c_proj.*"], Order::Transposed),
    same("final_norm.*", &["ln_f.*"]),
    same("head.weight", &["lm_head.weight"]),
];

const FIELDS: Fields = Fields {
    width: &["n_embd", "hidden_size"],
    n_heads: (&["n_head", "num_attention_heads"], None),
    n_layers: &["n_layer", "num_hidden_layers"],
    context: (&["n_positions", "max_position_embeddings"], 1024),
    ffn: Ffn::FourTimes("n_inner"),
    eps: (&["layer_norm_epsilon"], 1e-5),
    activation: (Some("activation_function"), "gelu_new"),
    tied: true,
    eos: Some(50_256),
    ..HUB
};

fn spec(config: &Config) -> Result<Spec, ConvertError> {
    let mut spec = start(config, &FIELDS)?;
    spec.position = Position::Learned;
    // `n_ctx` is the old name; transformers does not read it where the new one is given.
    if config.size(FIELDS.context.0)?.is_none() {
        spec.context_length = config.size(&["n_ctx"])?.unwrap_or(spec.context_length);
    }
    if !config.bool("scale_attn_weights", true)? {
        spec.attention.scale = 1.0;
    }
    spec.attention.scale_by_inverse_layer = config.bool("scale_attn_by_inverse_layer_idx", false)?;
    // Only changes the order in which the original multiplies in half precision.
    config.bool("reorder_and_upcast_attn", false)?;
    Ok(spec)
}
