//! GPT-Neo (Black et al. 2021): GPT-2 with a window in every second layer, scores that are not divided, and queries, keys
//! and values apart and without bias.

use super::base::{Ffn, Fields, HUB, start};
use super::window::{kinds, window};
use super::{Family, Order, Rule, rule, same};
use crate::config::Config;
use crate::error::ConvertError;
use serde_json::Value;
use tidbit_runtime::spec::{Position, Spec};

pub(super) static FAMILY: Family = Family {
    model_type: "gpt_neo",
    architectures: &["GPTNeoForCausalLM", "GPTNeoModel"],
    prefixes: &["transformer."],
    spec,
    rules: &[RULES],
    unread: &["h.{}.attn.attention.bias", "h.{}.attn.attention.masked_bias"],
};

const RULES: &[Rule] = &[
    same("embed.tokens", &["wte.weight"]),
    same("embed.positions", &["wpe.weight"]),
    same("layers.{}.attn_norm.*", &["h.{}.ln_1.*"]),
    rule(
        "layers.{}.attn.qkv.*",
        &["h.{}.attn.attention.q_proj.*", "h.{}.attn.attention.k_proj.*", "h.{}.attn.attention.v_proj.*"],
        Order::QueryKeyValue,
    ),
    same("layers.{}.attn.out.*", &["h.{}.attn.attention.out_proj.*"]),
    same("layers.{}.mlp_norm.*", &["h.{}.ln_2.*"]),
    same("layers.{}.mlp.up.*", &["h.{}.mlp.c_fc.*"]),
    same("layers.{}.mlp.down.*", &["h.{}.mlp.c_proj.*"]),
    same("final_norm.*", &["ln_f.*"]),
    same("head.weight", &["lm_head.weight"]),
];

fn spec(config: &Config) -> Result<Spec, ConvertError> {
    let fields = Fields {
        n_heads: (&["num_heads", "num_attention_heads"], None),
        n_layers: &["num_layers", "num_hidden_layers"],
        ffn: Ffn::FourTimes("intermediate_size"),
        eps: (&["layer_norm_epsilon"], 1e-5),
        activation: (Some("activation_function"), "gelu_new"),
        tied: true,
        eos: Some(50_256),
        ..HUB
    };
    let mut spec = start(config, &fields)?;
    spec.position = Position::Learned;
    spec.attention.scale = 1.0;
    spec.attention.qkv_bias = false;
    let size = config.size(&["window_size"])?.unwrap_or(256);
    spec.attention.window = window(size, &local(config, spec.n_layers)?);
    Ok(spec)
}

/// Which layers are local.
fn local(config: &Config, n_layers: usize) -> Result<Vec<bool>, ConvertError> {
    const TYPES: &str = "attention_types";
    if let Some(listed) = kinds(config, "attention_layers", n_layers, ["global", "local"])? {
        config.harmless(&["attention_types"]);
        return Ok(listed);
    }
    let Some(value) = config.get(TYPES) else {
        // The default has 24 layers, and transformers refuses others.
        return match n_layers {
            24 => Ok((0..n_layers).map(|i| i % 2 == 1).collect()),
            _ => Err(config.refuse(TYPES, format!("the kinds of {n_layers} layers"))),
        };
    };
    let wrong = || config.refuse(TYPES, "a list of [[\"global\" or \"local\", …], times]");
    let mut layers = Vec::new();
    for part in value.as_array().ok_or_else(wrong)? {
        let Some([Value::Array(kinds), times]) = part.as_array().map(Vec::as_slice) else { return Err(wrong()) };
        let read = |kind: &Value| match kind.as_str() {
            Some("global") => Ok(false),
            Some("local") => Ok(true),
            _ => Err(wrong()),
        };
        let kinds = kinds.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        for _ in 0..times.as_u64().ok_or_else(wrong)? {
            layers.extend(&kinds);
            // Also ends a hostile number of times.
            if kinds.is_empty() || layers.len() > n_layers {
                break;
            }
        }
    }
    if layers.len() != n_layers {
        return Err(config.refuse(TYPES, format!("the kinds of {n_layers} layers")));
    }
    Ok(layers)
}
