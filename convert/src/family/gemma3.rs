//! Gemma 3 (arXiv:2503.19786): Gemma 2 with norms of queries and keys instead of caps, and positions that turn faster in
//! the layers with a window. Of the models that also take images, the part that reads and writes text.

use super::base::{Fields, Heads};
use super::rotary::{Part, Turning, rotary, rotary_of};
use super::{Family, gemma2, llama};
use crate::config::Config;
use crate::error::ConvertError;
use tidbit_runtime::spec::{Head, Position, QkNormOver, Rotary, Spec};

pub(super) static TEXT: Family = Family {
    model_type: "gemma3_text",
    architectures: &["Gemma3ForCausalLM", "Gemma3TextModel"],
    prefixes: llama::PREFIXES,
    spec,
    rules: &[llama::MATRICES, gemma2::NORMS],
    unread: llama::UNREAD,
};

pub(super) static TEXT_AND_IMAGE: Family = Family {
    model_type: "gemma3",
    architectures: &["Gemma3ForConditionalGeneration", "Gemma3Model"],
    prefixes: &["language_model.model.", "model.language_model.", "language_model."],
    spec: text_of,
    rules: &[llama::MATRICES, gemma2::NORMS],
    unread: &["vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."],
};

const FIELDS: Fields = Fields {
    vocab: Some(262_208),
    n_heads: (&["num_attention_heads"], Some(8)),
    heads: Heads::Grouped { kv: Some(4), dim: Some(256) },
    context: (&["max_position_embeddings"], 131_072),
    ..gemma2::FIELDS
};

const WIDE: Turning = Turning { theta: 1_000_000.0, part: Part::Whole };
const NARROW: Turning = Turning { theta: 10_000.0, part: Part::Whole };

fn spec(config: &Config) -> Result<Spec, ConvertError> {
    let pattern = config.size(&["sliding_window_pattern", "_sliding_window_pattern"])?.unwrap_or(6);
    let mut spec = gemma2::start(config, &FIELDS, |layer| (layer + 1) % pattern != 0)?;
    spec.logits.softcap = config.positive(&["final_logit_softcapping"])?.map(|cap| cap as f32);
    spec.attention.qk_norm = Some(llama::qk_norm(&spec, QkNormOver::Head));
    let [wide, narrow] = turnings(config, &spec)?;
    let layers = spec.attention.window.as_ref().map(|w| w.layers.is_none());
    match (layers, &mut spec.attention.window) {
        // No layer is without a window.
        (Some(true), _) => spec.position = Position::Rotary(narrow),
        (_, window) => {
            spec.position = Position::Rotary(wide);
            if let Some(window) = window {
                window.rotary = Some(narrow);
            }
        }
    }
    Ok(spec)
}

/// How positions turn in layers without a window, and in those with one.
fn turnings(config: &Config, spec: &Spec) -> Result<[Rotary; 2], ConvertError> {
    let (dim, trained) = (spec.attention.head_dim, spec.context_length);
    let local = config.positive(&["rope_local_base_freq"])?;
    let parts = config.object("rope_parameters")?;
    let Some(parts) = parts else {
        let narrow = Rotary {
            theta: local.unwrap_or(NARROW.theta) as f32,
            scaling: None,
            ..rotary(config, dim, trained, &WIDE)?
        };
        return Ok([rotary(config, dim, trained, &WIDE)?, narrow]);
    };
    // The fields outside belong to the old spelling.
    for name in ["rope_scaling", "rope_theta", "rope_local_base_freq"] {
        if config.get(name).is_some() {
            return Err(config.refuse(name, "it to be absent beside `rope_parameters`"));
        }
    }
    let part = |name: &str, turning: &Turning| {
        let part = parts.object(name)?.ok_or_else(|| parts.refuse(name, "an object"))?;
        rotary_of(&parts, Some(part), dim, trained, turning)
    };
    let both = [part("full_attention", &WIDE)?, part("sliding_attention", &NARROW)?];
    match parts.finish()?.unknown.first() {
        Some(unknown) => Err(config.error(format!("`{unknown}` is unknown, and may change the positions"))),
        None => Ok(both),
    }
}

/// The text model of one for text and images.
fn text_of(config: &Config) -> Result<Spec, ConvertError> {
    let text = config.object("text_config")?.ok_or_else(|| config.refuse("text_config", "an object"))?;
    let mut spec = spec(&text)?;
    if config.has("eos_token_id") {
        spec.eos_ids = config.token_ids("eos_token_id", None, spec.vocab_size)?;
    }
    if config.has("tie_word_embeddings") {
        let tied = config.bool("tie_word_embeddings", true)?;
        spec.head = if tied { Head::Tied } else { Head::Untied };
    }
    config.adopt(&text)?;
    // About images, which text does not touch.
    config.harmless(&[
        "vision_config",
        "mm_tokens_per_image",
        "boi_token_index",
        "eoi_token_index",
        "image_token_index",
        "boi_token_id",
        "eoi_token_id",
        "image_token_id",
    ]);
    Ok(spec)
}
