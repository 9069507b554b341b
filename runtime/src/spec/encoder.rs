//! A stack that reads one text, beside the one that writes another about it (Vaswani et al. 2017, arXiv:1706.03762).

#![forbid(unsafe_code)]

use super::{Attention, Head, Logits, MAX_COUNT, Position, Residual, Spec};
use serde::{Deserialize, Serialize};

/// What an encoder-decoder has beside its decoder, which the rest of the spec is about. The encoder is made of the same parts,
/// of the same sizes, and has the same table of tokens; each of its tokens sees its whole text, and it has no head. Each layer
/// of the decoder looks, between its attention and its network, at what the encoder made of its text: a norm where the others
/// have one, queries of its own stream, keys and values of the encoder's last states, no positions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Encoder {
    /// Its blocks.
    pub n_layers: usize,
    /// The token that the decoder's text begins with.
    pub start_id: u32,
}

impl Spec {
    /// The encoder as a model of its own: what it makes are hidden states. `None` where there is none.
    pub fn of_encoder(&self) -> Option<Self> {
        let encoder = self.encoder.as_ref()?;
        Some(Self {
            n_layers: encoder.n_layers,
            attention: Attention { causal: false, ..self.attention.clone() },
            head: Head::None,
            logits: Logits::default(),
            eos_ids: Vec::new(),
            encoder: None,
            ..self.clone()
        })
    }

    /// Blocks of all stacks.
    pub fn total_layers(&self) -> usize {
        self.encoder.as_ref().map_or(0, |encoder| encoder.n_layers).saturating_add(self.n_layers)
    }

    /// Checks that all parts are such as both stacks can have, and layers that look at another text.
    pub(super) fn validate_encoder(&self) -> Result<(), String> {
        let Some(encoder) = &self.encoder else { return Ok(()) };
        if encoder.n_layers == 0 || encoder.n_layers > MAX_COUNT {
            return Err(format!("encoder `n_layers` is {}, expected 1 to {MAX_COUNT}", encoder.n_layers));
        }
        if encoder.start_id as usize >= self.vocab_size {
            let (id, vocab_size) = (encoder.start_id, self.vocab_size);
            return Err(format!("encoder `start_id` {id} is outside the vocabulary of {vocab_size}"));
        }
        let a = &self.attention;
        for (name, there) in [
            ("a decoder whose attention is not causal", !a.causal),
            ("a decoder without a head", self.head == Head::None),
            ("a residual that is not sequential", self.residual != Residual::Sequential),
            ("linear attention", a.feature_map.is_some()),
            ("a window", a.window.is_some()),
            ("sparse blocks", a.sparse.is_some()),
            ("sinks", a.sinks),
            ("clipped queries", a.clip.is_some()),
            ("a norm of queries and keys", a.qk_norm.is_some()),
            ("experts", self.mlp.experts.is_some()),
            ("ALiBi", matches!(self.position, Position::Alibi(_))),
            ("Transformer-XL positions", matches!(self.position, Position::TransformerXl(_))),
        ] {
            if there {
                return Err(format!("an encoder with {name}, expected none"));
            }
        }
        // What is left: numbers that only texts read at once are held to.
        self.of_encoder().map_or(Ok(()), |spec| spec.validate().map_err(|e| format!("the encoder: {e}")))
    }
}
