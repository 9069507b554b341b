//! MPT (MosaicML 2023): `ALiBi`, gains but no bias anywhere.
//!
//! transformers does not read some fields that MosaicML's own code does: what they say is accepted only where both agree.

use super::base::{Ffn, Fields, HUB, start};
use super::{Family, Rule, same};
use crate::config::Config;
use crate::error::ConvertError;
use tidbit_runtime::spec::{Alibi, Position, Spec, Trained};

pub(super) static FAMILY: Family = Family {
    model_type: "mpt",
    architectures: &["MPTForCausalLM", "MptForCausalLM", "MPTModel", "MptModel"],
    prefixes: &["transformer."],
    spec,
    rules: &[RULES],
    unread: &[],
};

const RULES: &[Rule] = &[
    same("embed.tokens", &["wte.weight"]),
    same("layers.{}.attn_norm.*", &["blocks.{}.norm_1.*"]),
    same("layers.{}.attn.qkv.*", &["blocks.{}.attn.Wqkv.*"]),
    same("layers.{}.attn.out.*", &["blocks.{}.attn.out_proj.*"]),
    same("layers.{}.mlp_norm.*", &["blocks.{}.norm_2.*"]),
    same("layers.{}.mlp.up.*", &["blocks.{}.ffn.up_proj.*"]),
    same("layers.{}.mlp.down.*", &["blocks.{}.ffn.down_proj.*"]),
    same("final_norm.*", &["norm_f.*"]),
    same("head.weight", &["lm_head.weight"]),
];

fn spec(config: &Config) -> Result<Spec, ConvertError> {
    let fields = Fields {
        width: &["d_model", "hidden_size"],
        n_heads: (&["n_heads", "num_attention_heads"], None),
        n_layers: &["n_layers", "num_hidden_layers"],
        context: (&["max_seq_len"], 2048),
        ffn: Ffn::FourTimes("intermediate_size"),
        eps: (&["layer_norm_epsilon"], 1e-5),
        activation: (None, "gelu"),
        tied: true,
        ..HUB
    };
    let mut spec = start(config, &fields)?;
    config.expect_size(&["intermediate_size"], 4 * spec.d_model, "4 times the width")?;
    config.expect_size(&["expansion_ratio"], 4, "as transformers has it")?;
    config.expect_bool("no_bias", true)?;
    let norm = config.text("norm_type")?;
    if norm.is_some_and(|norm| !["low_precision_layernorm", "layernorm"].contains(&norm.as_str())) {
        return Err(config.refuse("norm_type", "\"low_precision_layernorm\" or \"layernorm\""));
    }
    spec.norm.trained = Trained::Gain;
    (spec.attention.qkv_bias, spec.attention.out_bias, spec.mlp.bias) = (false, false, false);
    let mut alibi = Alibi { max_bias: 8.0, bf16: false };
    if let Some(attention) = config.object("attn_config")? {
        alibi.max_bias = attention.positive(&["alibi_bias_max"])?.map_or(alibi.max_bias, |bias| bias as f32);
        spec.attention.clip = attention.positive(&["clip_qkv"])?.map(|clip| clip as f32);
        spec.attention.scale = attention.positive(&["softmax_scale"])?.map_or(spec.attention.scale, |s| s as f32);
        attention.expect_bool("alibi", true)?;
        for field in ["qk_ln", "qk_gn", "prefix_lm", "attn_uses_sequence_id", "rope"] {
            attention.expect_bool(field, false)?;
        }
        if attention.text("attn_type")?.is_some_and(|kind| kind != "multihead_attention") {
            return Err(attention.refuse("attn_type", "\"multihead_attention\""));
        }
        attention.expect_size(&["kv_n_heads"], spec.attention.n_heads, "as many as query heads")?;
        // How the original computes it, and what it reads only for other positions.
        attention.harmless(&[
            "attn_impl",
            "attn_pdrop",
            "rope_theta",
            "rope_impl",
            "rope_dail_config",
            "rope_hf_config",
        ]);
        config.adopt(&attention)?;
    }
    spec.position = Position::Alibi(alibi);
    // Training, and the original's code.
    config.harmless(&["learned_pos_emb", "embedding_fraction", "init_config", "auto_map", "use_pad_tok_in_ffn"]);
    Ok(spec)
}
