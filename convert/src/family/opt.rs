//! OPT (Zhang et al. 2022, arXiv:2205.01068): learned positions that begin at row 2, `ReLU`; the model of 350M has norms
//! after each part and embeddings that are narrower than the model.

use super::base::{Ffn, Fields, HUB, start};
use super::{Family, Order, Rule, rule, same};
use crate::config::Config;
use crate::error::ConvertError;
use tidbit_runtime::spec::{Place, Position, Spec, Trained};

pub(super) static FAMILY: Family = Family {
    model_type: "opt",
    architectures: &["OPTForCausalLM", "OPTModel"],
    prefixes: &["model.decoder.", "decoder."],
    spec,
    rules: &[RULES],
    unread: &[],
};

const RULES: &[Rule] = &[
    same("embed.tokens", &["embed_tokens.weight"]),
    rule("embed.positions", &["embed_positions.weight"], Order::After(2)),
    same("embed.project.weight", &["project_in.weight"]),
    same("layers.{}.attn_norm.*", &["layers.{}.self_attn_layer_norm.*"]),
    same("layers.{}.attn_post_norm.*", &["layers.{}.self_attn_layer_norm.*"]),
    rule(
        "layers.{}.attn.qkv.*",
        &["layers.{}.self_attn.q_proj.*", "layers.{}.self_attn.k_proj.*", "layers.{}.self_attn.v_proj.*"],
        Order::QueryKeyValue,
    ),
    same("layers.{}.attn.out.*", &["layers.{}.self_attn.out_proj.*"]),
    same("layers.{}.mlp_norm.*", &["layers.{}.final_layer_norm.*"]),
    same("layers.{}.mlp_post_norm.*", &["layers.{}.final_layer_norm.*"]),
    same("layers.{}.mlp.up.*", &["layers.{}.fc1.*"]),
    same("layers.{}.mlp.down.*", &["layers.{}.fc2.*"]),
    same("final_norm.*", &["final_layer_norm.*"]),
    same("head.project.weight", &["project_out.weight"]),
    same("head.weight", &["lm_head.weight"]),
];

fn spec(config: &Config) -> Result<Spec, ConvertError> {
    let fields = Fields {
        ffn: Ffn::Stated("ffn_dim"),
        eps: (&[], 1e-5),
        activation: (Some("activation_function"), "relu"),
        tied: true,
        eos: Some(2),
        ..HUB
    };
    let mut spec = start(config, &fields)?;
    spec.position = Position::Learned;
    spec.embedding.dim = config.size(&["word_embed_proj_dim"])?.filter(|dim| *dim != spec.d_model);
    let before = config.bool("do_layer_norm_before", true)?;
    spec.norm.place = if before { Place::Before } else { Place::After };
    spec.final_norm = before && !config.bool("_remove_final_layer_norm", false)?;
    if !config.bool("layer_norm_elementwise_affine", true)? {
        spec.norm.trained = Trained::Nothing;
    }
    let bias = config.bool("enable_bias", true)?;
    (spec.attention.qkv_bias, spec.attention.out_bias, spec.mlp.bias) = (bias, bias, bias);
    Ok(spec)
}
