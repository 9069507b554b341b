//! `RoBERTa` (Liu et al. 2019, arXiv:1907.11692): BERT whose positions begin behind the padding token's number, which is 1.
//! A text that has the padding token itself counts it as any other.

use super::bert::{POSITIONS_AND_KINDS, RULES, spec_from};
use super::{Family, Order, Rule, rule};
use crate::config::Config;
use crate::error::ConvertError;
use tidbit_runtime::spec::Spec;

pub(super) static FAMILY: Family = Family {
    model_type: "roberta",
    architectures: &["RobertaModel", "RobertaForMaskedLM"],
    prefixes: &["roberta."],
    spec,
    rules: &[POSITIONS, RULES],
    unread: &["embeddings.position_ids", "pooler.", "roberta.pooler.", "lm_head."],
};

const PADDING: usize = 1;

const POSITIONS: &[Rule] = &[rule("embed.positions", POSITIONS_AND_KINDS, Order::AfterAndKind(PADDING + 1))];

fn spec(config: &Config) -> Result<Spec, ConvertError> {
    if config.count("pad_token_id")?.is_some_and(|id| id != PADDING) {
        return Err(config.refuse("pad_token_id", format!("{PADDING}, behind which the positions begin")));
    }
    spec_from(config, PADDING + 1)
}
