//! Falcon (Almazrouei et al. 2023, arXiv:2311.16867): queries that share one key head, or in the new architecture
//! groups of them; attention and network at once; rotary positions, or `ALiBi` in bf16.

use super::base::{Ffn, Fields, HUB, Heads, start};
use super::rotary::{WHOLE, rotary};
use super::{Family, Order, Rule, rule, same};
use crate::config::Config;
use crate::error::ConvertError;
use tidbit_runtime::spec::{Alibi, Position, Residual, Spec};

pub(super) static FAMILY: Family = Family {
    model_type: "falcon",
    architectures: &["FalconForCausalLM", "FalconModel"],
    prefixes: &["transformer."],
    spec,
    rules: &[RULES],
    unread: &["h.{}.self_attention.rotary_emb.inv_freq", "h.{}.self_attention.maybe_rotary.inv_freq"],
};

const RULES: &[Rule] = &[
    same("embed.tokens", &["word_embeddings.weight"]),
    // The second name of each norm is that of two norms side by side.
    same("layers.{}.attn_norm.*", &["h.{}.input_layernorm.*", "h.{}.ln_attn.*"]),
    rule("layers.{}.attn.qkv.*", &["h.{}.self_attention.query_key_value.*"], Order::Grouped),
    same("layers.{}.attn.out.*", &["h.{}.self_attention.dense.*"]),
    same("layers.{}.mlp_norm.*", &["h.{}.post_attention_layernorm.*", "h.{}.ln_mlp.*"]),
    same("layers.{}.mlp.up.*", &["h.{}.mlp.dense_h_to_4h.*"]),
    same("layers.{}.mlp.down.*", &["h.{}.mlp.dense_4h_to_h.*"]),
    same("final_norm.*", &["ln_f.*"]),
    same("head.weight", &["lm_head.weight"]),
];

fn spec(config: &Config) -> Result<Spec, ConvertError> {
    let fields = Fields {
        width: &["n_embed", "hidden_size"],
        n_heads: (&["num_attention_heads", "n_head"], None),
        heads: Heads::Divided,
        n_layers: &["num_hidden_layers", "n_layer"],
        ffn: Ffn::FourTimes("ffn_hidden_size"),
        eps: (&["layer_norm_epsilon"], 1e-5),
        activation: (Some("activation"), "gelu"),
        tied: true,
        eos: Some(11),
        ..HUB
    };
    let mut spec = start(config, &fields)?;
    (spec.attention.n_kv_heads, spec.residual) = block(config, spec.attention.n_heads)?;
    let bias = config.bool("bias", false)?;
    (spec.attention.qkv_bias, spec.attention.out_bias, spec.mlp.bias) = (bias, bias, bias);
    spec.position = if config.bool("alibi", false)? {
        config.harmless(&["rope_theta", "rope_scaling", "rope_parameters"]);
        Position::Alibi(Alibi { max_bias: 8.0, bf16: true })
    } else {
        Position::Rotary(rotary(config, spec.attention.head_dim, spec.context_length, &WHOLE)?)
    };
    // The same code as in transformers.
    config.harmless(&["auto_map"]);
    Ok(spec)
}

/// Key heads, and how a block is put together.
fn block(config: &Config, n_heads: usize) -> Result<(usize, Residual), ConvertError> {
    const KV: [&str; 2] = ["num_kv_heads", "n_head_kv"];
    const NORMS: &str = "num_ln_in_parallel_attn";
    let parallel = config.bool("parallel_attn", true)?;
    let norms = config.size(&[NORMS])?;
    if config.bool("new_decoder_architecture", false)? {
        let n_kv_heads = config.size(&KV)?.unwrap_or(n_heads);
        if !n_heads.is_multiple_of(n_kv_heads) {
            let reason = format!("`num_attention_heads` {n_heads} is not a multiple of `num_kv_heads` {n_kv_heads}");
            return Err(config.error(reason));
        }
        config.harmless(&["multi_query"]);
        if !parallel {
            return Err(config.refuse("parallel_attn", "true with `new_decoder_architecture`"));
        }
        return match norms {
            None | Some(2) => Ok((n_kv_heads, Residual::Parallel)),
            Some(1) => Ok((n_kv_heads, Residual::ParallelOneNorm)),
            Some(_) => Err(config.refuse(NORMS, "1 or 2")),
        };
    }
    if norms.is_some_and(|norms| norms != 1) {
        return Err(config.refuse(NORMS, "1 without `new_decoder_architecture`"));
    }
    let residual = if parallel { Residual::ParallelOneNorm } else { Residual::Sequential };
    if config.bool("multi_query", true)? {
        config.harmless(&KV);
        return Ok((1, residual));
    }
    config.expect_size(&KV, n_heads, "as many as query heads")?;
    Ok((n_heads, residual))
}
