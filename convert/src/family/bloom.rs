//! BLOOM (arXiv:2211.05100): `ALiBi`, a norm after the embedding, query, key and value fused per head.

use super::base::{Ffn, Fields, HUB, start};
use super::{Family, Order, Rule, rule, same};
use crate::config::Config;
use crate::error::ConvertError;
use tidbit_runtime::spec::{Alibi, Position, Residual, Spec};

pub(super) static FAMILY: Family = Family {
    model_type: "bloom",
    architectures: &["BloomForCausalLM", "BloomModel"],
    prefixes: &["transformer."],
    spec,
    rules: &[RULES],
    unread: &[],
};

const RULES: &[Rule] = &[
    same("embed.tokens", &["word_embeddings.weight"]),
    same("embed.norm.*", &["word_embeddings_layernorm.*"]),
    same("layers.{}.attn_norm.*", &["h.{}.input_layernorm.*"]),
    rule("layers.{}.attn.qkv.*", &["h.{}.self_attention.query_key_value.*"], Order::Grouped),
    same("layers.{}.attn.out.*", &["h.{}.self_attention.dense.*"]),
    same("layers.{}.mlp_norm.*", &["h.{}.post_attention_layernorm.*"]),
    same("layers.{}.mlp.up.*", &["h.{}.mlp.dense_h_to_4h.*"]),
    same("layers.{}.mlp.down.*", &["h.{}.mlp.dense_4h_to_h.*"]),
    same("final_norm.*", &["ln_f.*"]),
    same("head.weight", &["lm_head.weight"]),
];

fn spec(config: &Config) -> Result<Spec, ConvertError> {
    let fields = Fields {
        width: &["n_embed", "hidden_size"],
        n_heads: (&["n_head", "num_attention_heads"], None),
        n_layers: &["n_layer", "num_hidden_layers"],
        // Only says how long the texts of training were.
        context: (&["seq_length"], 2048),
        ffn: Ffn::FourTimes("n_inner"),
        eps: (&["layer_norm_epsilon"], 1e-5),
        activation: (None, "gelu_pytorch_tanh"),
        tied: true,
        eos: Some(2),
        ..HUB
    };
    let mut spec = start(config, &fields)?;
    config.expect_size(&["n_inner"], 4 * spec.d_model, "4 times the width")?;
    spec.position = Position::Alibi(Alibi { max_bias: 8.0, bf16: false });
    spec.embedding.norm = true;
    if config.bool("apply_residual_connection_post_layernorm", false)? {
        spec.residual = Residual::FromNorm;
    }
    // Orders of summation, and switches of the code that trained it.
    config.harmless(&[
        "pretraining_tp",
        "slow_but_exact",
        "offset_alibi",
        "skip_bias_add",
        "skip_bias_add_qkv",
        "bias_dropout_fusion",
        "attention_softmax_in_fp32",
        "masked_softmax_fusion",
    ]);
    Ok(spec)
}
