//! GPT-J (Wang & Komatsuzaki 2021): rotary positions of neighbouring dimensions, attention and network at once after one
//! norm, a bias on the logits.

use super::base::{Ffn, Fields, HUB, start};
use super::{Family, Order, Rule, rule, same};
use crate::config::Config;
use crate::error::ConvertError;
use tidbit_runtime::spec::{Pairs, Position, Residual, Rotary, Spec};

pub(super) static FAMILY: Family = Family {
    model_type: "gptj",
    architectures: &["GPTJForCausalLM", "GPTJModel"],
    prefixes: &["transformer."],
    spec,
    rules: &[RULES],
    unread: &["h.{}.attn.bias", "h.{}.attn.masked_bias", "h.{}.attn.embed_positions"],
};

const RULES: &[Rule] = &[
    same("embed.tokens", &["wte.weight"]),
    same("layers.{}.attn_norm.*", &["h.{}.ln_1.*"]),
    rule(
        "layers.{}.attn.qkv.*",
        &["h.{}.attn.q_proj.*", "h.{}.attn.k_proj.*", "h.{}.attn.v_proj.*"],
        Order::QueryKeyValue,
    ),
    same("layers.{}.attn.out.*", &["h.{}.attn.out_proj.*"]),
    same("layers.{}.mlp.up.*", &["h.{}.mlp.fc_in.*"]),
    same("layers.{}.mlp.down.*", &["h.{}.mlp.fc_out.*"]),
    same("final_norm.*", &["ln_f.*"]),
    same("head.*", &["lm_head.*"]),
];

fn spec(config: &Config) -> Result<Spec, ConvertError> {
    let fields = Fields {
        width: &["n_embd", "hidden_size"],
        n_heads: (&["n_head", "num_attention_heads"], None),
        n_layers: &["n_layer", "num_hidden_layers"],
        context: (&["n_positions", "max_position_embeddings"], 2048),
        ffn: Ffn::FourTimes("n_inner"),
        eps: (&["layer_norm_epsilon"], 1e-5),
        activation: (Some("activation_function"), "gelu_new"),
        eos: Some(50_256),
        ..HUB
    };
    let mut spec = start(config, &fields)?;
    let head_dim = spec.attention.head_dim;
    let default = (!config.has("rotary_dim")).then_some(64);
    let dims = config.size(&["rotary_dim"])?.or(default);
    let Some(dims) = dims.filter(|dims| *dims <= head_dim && dims.is_multiple_of(2)) else {
        return Err(config.refuse("rotary_dim", format!("an even number up to the width of a head, {head_dim}")));
    };
    let pairs = Pairs::Interleaved;
    spec.position = Position::Rotary(Rotary { dims, theta: 10_000.0, exponent: None, pairs, scaling: None });
    (spec.attention.qkv_bias, spec.attention.out_bias) = (false, false);
    spec.residual = Residual::ParallelOneNorm;
    spec.logits.bias = true;
    config.harmless(&["rotary", "scale_attn_weights", "n_ctx"]);
    Ok(spec)
}
