//! Embeddings: one vector for a text, made of the hidden states of its tokens as the spec says.
//!
//! Encoders are made for it, and of a model with an encoder it is that one's states. A decoder's hidden states serve too, though
//! nobody trained most decoders for that.

#![forbid(unsafe_code)]

use crate::engine::{Engine, EngineOptions, Feed};
use crate::error::SessionError;
use crate::model::Model;
use crate::sequence::{Sequence, SequenceOptions};
use crate::spec::{Pooling, PoolingKind, Spec};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// A model that embeds texts.
pub struct Embedder {
    engine: Engine,
    pooling: Pooling,
}

impl Embedder {
    /// An embedder that pools as the model says.
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub fn new(model: &Model, options: &EngineOptions) -> Result<Self, SessionError> {
        Ok(Self { engine: Engine::new(model, options)?, pooling: model.spec().pooling.clone() })
    }

    /// Pools in another way.
    #[must_use]
    pub fn with_pooling(self, pooling: Pooling) -> Self {
        Self { pooling, ..self }
    }

    /// How it pools.
    pub fn pooling(&self) -> &Pooling {
        &self.pooling
    }

    /// Elements of an embedding.
    pub fn dimensions(&self) -> usize {
        self.engine.model().spec().d_model
    }

    /// Tokens of the longest text.
    pub fn max_tokens(&self) -> usize {
        max_tokens(self.engine.model().spec(), &self.pooling)
    }

    /// Setting it stops a running [`embed`](Self::embed). It stays set until the caller clears it.
    pub fn cancel_flag(&self) -> Arc<AtomicBool> {
        self.engine.cancel_flag()
    }

    /// The embeddings of texts, as [`embed`] makes them.
    ///
    /// # Errors
    /// As [`embed`].
    pub fn embed(&mut self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, SessionError> {
        embed(&mut self.engine, &self.pooling, texts)
    }
}

/// The embeddings `[d_model]` of texts, given as tokens with those that the tokenizer
/// [puts around a text](crate::tokenizer::Tokenizer::encode_whole). Texts run together as far as a batch holds them; each has
/// the bits that it has alone.
///
/// # Errors
/// When a text has no token, one outside the vocabulary, or more than [`max_tokens`]; when memory cannot be had; when it was
/// cancelled; when an embedding is not finite.
pub fn embed(engine: &mut Engine, pooling: &Pooling, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, SessionError> {
    engine.as_encoder(|engine| embed_with(engine, pooling, texts))
}

fn embed_with(engine: &mut Engine, pooling: &Pooling, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, SessionError> {
    let model = engine.model().clone();
    let most = max_tokens(model.spec(), pooling);
    if let Some(text) = texts.iter().find(|text| text.len() > most) {
        return Err(SessionError::ContextFull { needed: text.len(), context: most });
    }
    let mut embeddings = Vec::with_capacity(texts.len());
    let mut rest = texts;
    while !rest.is_empty() {
        // Caches of all texts at once would be a multiple of the memory for no gain.
        let (group, later) = rest.split_at(fitting(rest, engine.max_batch()));
        rest = later;
        let sequence = |text: &Vec<u32>| {
            let options = SequenceOptions { context: Some(text.len().max(1)), cache_type: None };
            Sequence::new(&model, &options)
        };
        let mut sequences = group.iter().map(sequence).collect::<Result<Vec<_>, _>>()?;
        let mut feeds: Vec<_> = sequences.iter_mut().zip(group).map(|(s, text)| Feed::new(s, text)).collect();
        let mut sums = vec![vec![0f64; model.spec().d_model]; group.len()];
        engine.each_hidden(&mut feeds, |text, token, hidden| {
            let last = group[text].len() - 1;
            let counts = match pooling.kind {
                PoolingKind::Mean => true,
                PoolingKind::Cls => token == 0,
                PoolingKind::Last => token == last,
            };
            if counts {
                sums[text].iter_mut().zip(hidden).for_each(|(sum, x)| *sum += f64::from(*x));
            }
        })?;
        for (sum, text) in sums.into_iter().zip(group) {
            embeddings.push(finish(pooling, sum, text.len())?);
        }
    }
    Ok(embeddings)
}

/// The embedding of a sum of hidden states.
fn finish(pooling: &Pooling, sum: Vec<f64>, n_tokens: usize) -> Result<Vec<f32>, SessionError> {
    let mut divisor = if pooling.kind == PoolingKind::Mean { n_tokens as f64 } else { 1.0 };
    if pooling.normalize {
        // A vector of zeros stays one.
        divisor = sum.iter().map(|x| x * x).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    }
    let embedding: Vec<f32> = sum.into_iter().map(|x| (x / divisor) as f32).collect();
    match embedding.iter().position(|x| !x.is_finite()) {
        Some(dimension) => Err(SessionError::EmbeddingNotFinite { dimension, value: embedding[dimension] }),
        None => Ok(embedding),
    }
}

/// Tokens of the longest text that a model embeds.
pub fn max_tokens(spec: &Spec, pooling: &Pooling) -> usize {
    pooling.max_tokens.unwrap_or(spec.context_length).min(spec.context_length)
}

/// How many of the texts, one at least, have no more than `most` tokens together.
fn fitting(texts: &[Vec<u32>], most: usize) -> usize {
    let mut sum = 0usize;
    let fit = |text: &&Vec<u32>| {
        sum = sum.saturating_add(text.len());
        sum <= most
    };
    texts.iter().take_while(fit).count().max(1)
}
