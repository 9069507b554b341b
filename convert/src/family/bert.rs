//! BERT (Devlin et al. 2018, arXiv:1810.04805), and `MiniLM`, which is one: an encoder. Every token sees all others, and norms
//! stand behind each part. All tokens are of the first kind, whose embedding is added to the positions here.

use super::base::{Fields, HUB, start};
use super::{Family, Order, Rule, rule, same};
use crate::config::Config;
use crate::error::ConvertError;
use tidbit_runtime::spec::{Head, Place, Position, Spec};

pub(super) static FAMILY: Family = Family {
    model_type: "bert",
    architectures: &["BertModel", "BertForMaskedLM", "BertForPreTraining"],
    prefixes: &["bert."],
    spec,
    rules: &[POSITIONS, RULES],
    unread: &["embeddings.position_ids", "pooler.", "bert.pooler.", "cls."],
};

const POSITIONS: &[Rule] = &[rule("embed.positions", POSITIONS_AND_KINDS, Order::AfterAndKind(0))];

pub(super) const POSITIONS_AND_KINDS: &[&str] =
    &["embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight"];

pub(super) const RULES: &[Rule] = &[
    same("embed.tokens", &["embeddings.word_embeddings.weight"]),
    same("embed.norm.weight", &["embeddings.LayerNorm.weight", "embeddings.LayerNorm.gamma"]),
    same("embed.norm.bias", &["embeddings.LayerNorm.bias", "embeddings.LayerNorm.beta"]),
    rule(
        "layers.{}.attn.qkv.*",
        &[
            "encoder.layer.{}.attention.self.query.*",
            "encoder.layer.{}.attention.self.key.*",
            "encoder.layer.{}.attention.self.value.*",
        ],
        Order::QueryKeyValue,
    ),
    same("layers.{}.attn.out.*", &["encoder.layer.{}.attention.output.dense.*"]),
    same(
        "layers.{}.attn_post_norm.weight",
        &["encoder.layer.{}.attention.output.LayerNorm.weight", "encoder.layer.{}.attention.output.LayerNorm.gamma"],
    ),
    same(
        "layers.{}.attn_post_norm.bias",
        &["encoder.layer.{}.attention.output.LayerNorm.bias", "encoder.layer.{}.attention.output.LayerNorm.beta"],
    ),
    same("layers.{}.mlp.up.*", &["encoder.layer.{}.intermediate.dense.*"]),
    same("layers.{}.mlp.down.*", &["encoder.layer.{}.output.dense.*"]),
    same(
        "layers.{}.mlp_post_norm.weight",
        &["encoder.layer.{}.output.LayerNorm.weight", "encoder.layer.{}.output.LayerNorm.gamma"],
    ),
    same(
        "layers.{}.mlp_post_norm.bias",
        &["encoder.layer.{}.output.LayerNorm.bias", "encoder.layer.{}.output.LayerNorm.beta"],
    ),
];

/// The encoder that a config describes, with so many rows of positions that no token takes.
pub(super) fn spec_from(config: &Config, unused_positions: usize) -> Result<Spec, ConvertError> {
    const CONTEXT: &[&str] = &["max_position_embeddings"];
    let fields = Fields { context: (CONTEXT, 512), eps: (&["layer_norm_eps"], 1e-12), tied: true, ..HUB };
    let mut spec = start(config, &fields)?;
    config.expect_bool("is_decoder", false)?;
    // The file says how many kinds of tokens there are; the first is used.
    config.size(&["type_vocab_size"])?;
    spec.context_length = match spec.context_length.checked_sub(unused_positions) {
        None | Some(0) => return Err(config.refuse(CONTEXT[0], format!("more than {unused_positions}"))),
        Some(left) => left,
    };
    spec.position = Position::Learned;
    spec.embedding.norm = true;
    spec.norm.place = Place::After;
    spec.final_norm = false;
    spec.attention.causal = false;
    spec.head = Head::None;
    // Nothing is written that a token could end.
    spec.eos_ids.clear();
    Ok(spec)
}

fn spec(config: &Config) -> Result<Spec, ConvertError> {
    spec_from(config, 0)
}
