//! One text in progress: its keys and values, and how far it is.

#![forbid(unsafe_code)]

use crate::error::SessionError;
use crate::format::Contents;
use crate::kv_cache::{self, CacheType, KvCache};
use crate::model::Model;
use crate::spec::Spec;
use std::sync::Arc;

/// How a sequence is made.
#[derive(Clone, Debug, Default)]
pub struct SequenceOptions {
    /// Tokens of the longest text, up to [`max_context`](crate::spec::Spec::max_context); the model's own context length when
    /// `None`. Layers that see only the last positions hold no more than those.
    pub context: Option<usize>,
    /// How the cache keeps its numbers; when `None`, as [`usual_type`](crate::kv_cache::usual_type) says.
    pub cache_type: Option<CacheType>,
}

impl SequenceOptions {
    /// Tokens of the longest text of such a sequence.
    ///
    /// # Errors
    /// When the context is out of range.
    pub fn checked_context(&self, spec: &Spec) -> Result<usize, SessionError> {
        let context = self.context.unwrap_or(spec.context_length);
        if context == 0 || context > spec.max_context() {
            return Err(SessionError::Context { asked: context, most: spec.max_context() });
        }
        Ok(context)
    }

    /// Bytes of the cache when it is full, and with an encoder of what it keeps of the longest text that it reads.
    ///
    /// # Errors
    /// When the context is out of range.
    pub fn cache_bytes(&self, contents: &Contents) -> Result<usize, SessionError> {
        let spec = contents.spec();
        let context = self.checked_context(spec)?;
        let cache_type = self.cache_type.unwrap_or_else(|| kv_cache::default_type_of(contents));
        let bytes = |tokens| kv_cache::bytes_of(spec, cache_type, tokens);
        let read = if spec.encoder.is_some() { bytes(context.max(spec.context_length)) } else { 0 };
        Ok(bytes(context).saturating_add(read))
    }
}

/// One text in progress. It is nothing but memory: an [`Engine`](crate::engine::Engine) of the same model runs it.
pub struct Sequence {
    model: Model,
    pub(crate) cache: KvCache,
    /// What it is about, if its model has an encoder that has read something.
    pub(crate) memory: Option<Arc<Memory>>,
    context: usize,
    position: usize,
}

/// A text that an encoder has read.
pub(crate) struct Memory {
    /// Its keys and values in each layer of the decoder.
    pub(crate) cache: KvCache,
    /// Its tokens.
    pub(crate) n_tokens: usize,
}

impl Sequence {
    /// An empty text.
    ///
    /// # Errors
    /// When the context is out of range, or its memory cannot be had.
    pub fn new(model: &Model, options: &SequenceOptions) -> Result<Self, SessionError> {
        let spec = model.spec();
        let context = options.checked_context(spec)?;
        let cache_type = options.cache_type.unwrap_or_else(|| kv_cache::default_type(model.file()));
        let cache = KvCache::rolling(spec, cache_type, context)?;
        Ok(Self { model: model.clone(), cache, memory: None, context, position: 0 })
    }

    /// Another text that begins with all tokens of this one, about the same that an encoder has read. The pages that these fill
    /// are shared, not copied; each text goes its own way from there.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn fork(&self) -> Result<Self, SessionError> {
        let cache = self.cache.fork(self.position)?;
        let (model, memory) = (self.model.clone(), self.memory.clone());
        Ok(Self { model, cache, memory, context: self.context, position: self.position })
    }

    /// An empty text of the same model, as long at most, in a cache of its own.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub(crate) fn empty(&self) -> Result<Self, SessionError> {
        let options = SequenceOptions { context: Some(self.context), cache_type: Some(self.cache.cache_type()) };
        Self::new(&self.model, &options)
    }

    /// The model that it is a text of.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Tokens of the longest text.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Tokens of the text so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Tokens of the text that an [encoder has read](crate::engine::Engine::encode) for this one; `None` when it has not.
    pub fn encoded(&self) -> Option<usize> {
        self.memory.as_ref().map(|memory| memory.n_tokens)
    }

    /// Forgets all tokens from `position` on. Where layers see only the last positions, those before them may be lost: the next
    /// step is refused then, unless [`resume_point`](Self::resume_point) was asked.
    pub fn rewind(&mut self, position: usize) {
        self.position = self.position.min(position);
    }

    /// Where to rewind to if the text shall go on at `position`: there, or to the start if what stands before is no longer
    /// held. The tokens between are to be run again.
    pub fn resume_point(&self, position: usize) -> usize {
        let position = self.position.min(position);
        if self.cache.goes_on_at(position).is_ok() { position } else { 0 }
    }

    /// How the cache keeps its numbers.
    pub fn cache_type(&self) -> CacheType {
        self.cache.cache_type()
    }

    /// Bytes of the cache when it is full and of what an encoder has read, those it shares included.
    pub fn cache_bytes(&self) -> usize {
        self.cache.bytes() + self.memory.as_ref().map_or(0, |memory| memory.cache.bytes())
    }

    /// Bytes of them that another sequence has too.
    pub fn shared_bytes(&self) -> usize {
        let memory = self.memory.as_ref().filter(|memory| Arc::strong_count(memory) > 1);
        self.cache.shared_bytes() + memory.map_or(0, |memory| memory.cache.bytes())
    }

    /// The text begins, about another one.
    pub(crate) fn begin(&mut self, memory: Memory) {
        (self.memory, self.position) = (Some(Arc::new(memory)), 0);
    }

    /// `n` more tokens are in the cache.
    pub(crate) fn advance(&mut self, n: usize) {
        self.position += n;
    }
}
