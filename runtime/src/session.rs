//! One text at work: an [`Engine`] and a [`Sequence`] in one, for programs that run one text at a time.

#![forbid(unsafe_code)]

use crate::engine::{Engine, EngineOptions, Feed, Logits, batch_of};
use crate::error::SessionError;
use crate::kernels::Kernels;
pub use crate::kv_cache::CacheType;
pub use crate::model::Model;
use crate::sequence::{Sequence, SequenceOptions};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// How a session is made.
#[derive(Clone, Debug, Default)]
pub struct SessionOptions {
    /// Tokens of the longest text; the model's own context length when `None`.
    pub context: Option<usize>,
    /// Threads, the caller's included; one per available core when `None`.
    pub threads: Option<usize>,
    /// How the cache keeps its numbers; when `None`, as [`usual_type`](crate::kv_cache::usual_type) says.
    pub cache_type: Option<CacheType>,
}

/// One text in progress, and what runs it. It belongs to one thread at a time.
pub struct Session {
    engine: Engine,
    sequence: Sequence,
}

impl Session {
    /// A session at position 0. All memory it will need is taken here, but for an encoder's text.
    ///
    /// # Errors
    /// When an option is out of range, or memory or threads cannot be had.
    pub fn new(model: &Model, options: &SessionOptions) -> Result<Self, SessionError> {
        let of_sequence = SequenceOptions { context: options.context, cache_type: options.cache_type };
        let sequence = Sequence::new(model, &of_sequence)?;
        let max_batch = Some(batch_of(model.spec(), sequence.context()));
        Ok(Self { engine: Engine::new(model, &EngineOptions { threads: options.threads, max_batch })?, sequence })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        self.engine.model()
    }

    /// Tokens of the longest text.
    pub fn context(&self) -> usize {
        self.sequence.context()
    }

    /// Tokens of the text so far.
    pub fn position(&self) -> usize {
        self.sequence.position()
    }

    /// Threads in use.
    pub fn threads(&self) -> usize {
        self.engine.threads()
    }

    /// The kernels in use.
    pub fn kernels(&self) -> Kernels {
        self.engine.kernels()
    }

    /// Name of the kernels in use.
    pub fn isa(&self) -> &'static str {
        self.engine.kernels().name()
    }

    /// How the cache keeps its numbers.
    pub fn cache_type(&self) -> CacheType {
        self.sequence.cache_type()
    }

    /// Bytes of the cache when it is full.
    pub fn cache_bytes(&self) -> usize {
        self.sequence.cache_bytes()
    }

    /// Bytes of scratch memory.
    pub fn scratch_bytes(&self) -> usize {
        self.engine.scratch_bytes()
    }

    /// Setting it stops a running [`append`](Self::append) before its next block. It stays set until the caller clears it.
    pub fn cancel_flag(&self) -> Arc<AtomicBool> {
        self.engine.cancel_flag()
    }

    /// Forgets all tokens from `position` on, as [`Sequence::rewind`] does.
    pub fn rewind(&mut self, position: usize) {
        self.sequence.rewind(position);
    }

    /// Where to rewind to if the text shall go on at `position`, as [`Sequence::resume_point`] says.
    pub fn resume_point(&self, position: usize) -> usize {
        self.sequence.resume_point(position)
    }

    /// What it is made of, for a program that goes on with more texts.
    pub fn into_parts(self) -> (Engine, Sequence) {
        (self.engine, self.sequence)
    }

    /// Lets the encoder read `ids`, and begins a text about them, as [`Engine::encode`] does.
    ///
    /// # Errors
    /// As [`Engine::encode`].
    pub fn encode(&mut self, ids: &[u32]) -> Result<(), SessionError> {
        self.engine.encode(&mut self.sequence, ids)
    }

    /// Tokens of the longest text that an encoder reads.
    pub fn max_encoded(&self) -> usize {
        self.engine.max_batch()
    }

    /// Runs `ids` through the model and returns the logits `[vocab_size]` after the last of them.
    ///
    /// # Errors
    /// When there is no token, one is outside the vocabulary, they do not fit the context (nothing has changed then), or
    /// the session was cancelled (the batches that were finished count).
    pub fn append(&mut self, ids: &[u32]) -> Result<&[f32], SessionError> {
        Ok(self.append_last(ids, 1)?.row(0))
    }

    /// Runs `ids` through the model and returns the logits after each of the last `n` of them.
    ///
    /// # Errors
    /// As [`append`](Self::append), and when `n` is more than the tokens there are, or than run together.
    pub fn append_last(&mut self, ids: &[u32], n: usize) -> Result<Logits<'_>, SessionError> {
        self.engine.step(&mut [Feed::new(&mut self.sequence, ids).with_logits(n)])
    }

    /// Runs `ids` through the model and calls `visit(i, logits)` with the logits `[vocab_size]` after each of them, in order.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub fn append_each(&mut self, ids: &[u32], visit: impl FnMut(usize, &[f32])) -> Result<(), SessionError> {
        self.engine.each(&mut self.sequence, ids, visit)
    }
}
