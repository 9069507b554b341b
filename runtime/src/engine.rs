//! A model at work for any number of texts: tokens go in, logits come out.
//!
//! An [`Engine`] owns what a forward pass needs (kernels, threads, activations), a [`Sequence`] what a text needs (keys and
//! values, a position). A [`step`](Engine::step) takes tokens of any number of sequences, whole prompts and single tokens
//! alike, and reads the weights once for all of them. Sequences come and go between steps, and each gets the bits that it
//! would get alone.
//!
//! ```no_run
//! # use tidbit_runtime::engine::{Engine, EngineOptions, Feed};
//! # use tidbit_runtime::error::SessionError;
//! # use tidbit_runtime::model::Model;
//! # use tidbit_runtime::sequence::{Sequence, SequenceOptions};
//! # fn example(model: &Model, system_prompt: &[u32], questions: &[Vec<u32>]) -> Result<(), SessionError> {
//! let mut engine = Engine::new(model, &EngineOptions::default())?;
//! let mut start = Sequence::new(model, &SequenceOptions::default())?;
//! engine.step(&mut [Feed::new(&mut start, system_prompt)])?;
//! // All begin with the same tokens, which are neither computed nor kept again.
//! let mut texts = questions.iter().map(|_| start.fork()).collect::<Result<Vec<_>, _>>()?;
//! let mut feeds: Vec<_> = texts.iter_mut().zip(questions).map(|(text, ids)| Feed::new(text, ids)).collect();
//! let logits = engine.step(&mut feeds)?;
//! for text in 0..logits.len() {
//!     println!("{:?}", logits.row(text));
//! }
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

use crate::backend::{Backend, Cpu, Part};
use crate::error::SessionError;
use crate::forward::{self, Activations, Batch};
use crate::kernels::{self, Kernels};
use crate::kv_cache::KvCache;
use crate::model::Model;
use crate::ops::{Buffer, RelativeKeys};
use crate::quant::PANEL_ROWS;
use crate::sequence::{Memory, Sequence};
use crate::spec::{Head, Spec};
use crate::threads::{MAX_THREADS, available_cores};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Tokens that run through the model together, unless told otherwise.
///
/// Each batch reads all weights once, so the batch must be large enough for that to vanish beside the arithmetic, and small
/// enough for its activations to stay in the second-level cache.
pub const MAX_BATCH: usize = 128;

/// Rows of logits computed together when all are wanted: bounds that memory to 16 vocabularies.
const LOGIT_ROWS: usize = 16;

/// How an engine is made.
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    /// Threads, the caller's included; one per available core when `None`.
    pub threads: Option<usize>,
    /// Tokens that run together at most, at least 1; [`MAX_BATCH`] when `None`. Others of a step run after them. Where
    /// attention is not causal, and for encoders, as many as the context holds at least.
    pub max_batch: Option<usize>,
}

/// What runs texts of one model. It belongs to one thread at a time.
pub struct Engine {
    model: Model,
    backend: Cpu,
    acts: Activations<Cpu>,
    /// What the head takes and gives, for the tokens whose logits are wanted: `[rows, d_model]` and `[rows, vocab_size]`.
    finished: Buffer,
    logits: Buffer,
    /// How many rows of both are those of the last step.
    n_logits: usize,
    /// The tokens of a batch and their positions.
    ids: Vec<u32>,
    positions: Vec<usize>,
    max_batch: usize,
    cancel: Arc<AtomicBool>,
}

/// Tokens that a sequence takes part in a step with.
pub struct Feed<'a> {
    sequence: &'a mut Sequence,
    ids: &'a [u32],
    n_logits: usize,
    /// Those of the tokens that are in the batch at hand, and the row of the batch where they begin.
    now: Range<usize>,
    row: usize,
}

impl<'a> Feed<'a> {
    /// Appends `ids`; logits after the last of them.
    pub fn new(sequence: &'a mut Sequence, ids: &'a [u32]) -> Self {
        Self { sequence, ids, n_logits: 1, now: 0..0, row: 0 }
    }

    /// Logits after the last `n` tokens, perhaps none.
    #[must_use]
    pub fn with_logits(self, n: usize) -> Self {
        Self { n_logits: n, ..self }
    }

    fn check(&self, model: &Model) -> Result<(), SessionError> {
        let (spec, context) = (model.spec(), self.sequence.context());
        check(model, self.sequence, self.ids)?;
        if spec.encoder.is_some() && self.sequence.memory.is_none() {
            return Err(SessionError::NothingRead);
        }
        if !spec.attention.causal && self.sequence.position() > 0 {
            return Err(SessionError::AtOnce { position: self.sequence.position() });
        }
        if let Err(from) = self.sequence.cache.goes_on_at(self.sequence.position()) {
            return Err(SessionError::Rolled { position: self.sequence.position(), from });
        }
        if self.n_logits > 0 && spec.head == Head::None {
            return Err(SessionError::NoHead);
        }
        if self.ids.len() > context - self.sequence.position() {
            return Err(SessionError::ContextFull {
                needed: self.sequence.position().saturating_add(self.ids.len()),
                context,
            });
        }
        if self.n_logits > self.ids.len() {
            return Err(SessionError::LogitRows { asked: self.n_logits, most: self.ids.len() });
        }
        Ok(())
    }

    /// Those of its tokens in the batch whose logits are wanted.
    fn wanted(&self) -> Range<usize> {
        (self.ids.len() - self.n_logits).clamp(self.now.start, self.now.end)..self.now.end
    }

    /// Where the tokens `tokens` of the batch at hand stand in it.
    fn rows(&self, tokens: &Range<usize>) -> Range<usize> {
        let row = |token| self.row + token - self.now.start;
        row(tokens.start)..row(tokens.end)
    }

    /// Its tokens in the batch, as the backend takes them.
    fn part(&mut self) -> Part<'_> {
        let first = self.sequence.position();
        let Sequence { cache, memory, .. } = &mut *self.sequence;
        let memory = memory.as_ref().map(|memory| (&memory.cache, memory.n_tokens));
        Part { cache, positions: first..first + self.now.len(), row: self.row, memory }
    }
}

/// What comes after some tokens, a row for each: logits `[vocab_size]`.
#[derive(Clone, Copy)]
pub struct Logits<'a> {
    rows: &'a Buffer,
    n: usize,
}

impl<'a> Logits<'a> {
    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.n
    }

    /// Whether none were wanted.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// Row `row`.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row(&self, row: usize) -> &'a [f32] {
        assert!(row < self.n, "row {row} of {} logits", self.n);
        self.rows.row(row)
    }
}

impl Engine {
    /// An engine for texts of `model`.
    ///
    /// # Errors
    /// When an option is out of range, or memory or threads cannot be had.
    pub fn new(model: &Model, options: &EngineOptions) -> Result<Self, SessionError> {
        let spec = model.spec();
        let threads = options.threads.unwrap_or_else(available_cores);
        if threads == 0 || threads > MAX_THREADS {
            return Err(SessionError::Threads { asked: threads, most: MAX_THREADS });
        }
        let max_batch = options.max_batch.unwrap_or(MAX_BATCH).max(least_batch(spec));
        let backend = Cpu::new(kernels::active()?, threads, model, max_batch)?;
        Ok(Self {
            acts: Activations::new(&backend, spec, max_batch)?,
            finished: backend.buffer(1, spec.d_model)?,
            logits: backend.buffer(1, spec.vocab_size)?,
            n_logits: 0,
            ids: Vec::with_capacity(max_batch),
            positions: Vec::with_capacity(max_batch),
            model: model.clone(),
            backend,
            max_batch,
            cancel: Arc::default(),
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Threads in use.
    pub fn threads(&self) -> usize {
        self.backend.n_threads()
    }

    /// The kernels in use.
    pub fn kernels(&self) -> Kernels {
        self.backend.kernels()
    }

    /// Tokens that run together at most.
    pub fn max_batch(&self) -> usize {
        self.max_batch
    }

    /// Bytes of scratch memory, and of the keys of distances, which engines of a model share.
    pub fn scratch_bytes(&self) -> usize {
        Activations::<Cpu>::elements(self.model.spec(), self.max_batch) * 4
            + self.backend.scratch_bytes()
            + RelativeKeys::bytes_of(self.model.spec())
            + self.finished.bytes()
            + self.logits.bytes()
    }

    /// Bytes of scratch memory that an engine takes which is asked for one row of logits at a time, as far as the
    /// architecture tells.
    pub fn scratch_bytes_of(spec: &Spec, max_batch: usize) -> usize {
        let max_batch = max_batch.max(least_batch(spec));
        let row = spec.d_model.next_multiple_of(PANEL_ROWS) + spec.vocab_size.next_multiple_of(PANEL_ROWS);
        (Activations::<Cpu>::elements(spec, max_batch) + row) * 4
            + Cpu::scratch_bytes_of(spec, max_batch)
            + RelativeKeys::bytes_of(spec)
    }

    /// Setting it stops a running [`step`](Self::step) before its next block. It stays set until the caller clears it.
    pub fn cancel_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.cancel)
    }

    /// Runs the tokens of all feeds and returns the logits that they want, feed by feed: without further ado row `i` is
    /// what comes after feed `i`. Sequences that want many tokens and such that want one may be mixed; the weights are
    /// read once for every [`max_batch`](Self::max_batch) tokens.
    ///
    /// # Errors
    /// When a feed has no token, or one outside the vocabulary, or more than its context holds, or is a text of another
    /// model; when more logits are wanted than run together; when memory cannot be had: nothing has changed then, for any
    /// of them. And when it was cancelled: the batches that were finished count.
    pub fn step(&mut self, feeds: &mut [Feed<'_>]) -> Result<Logits<'_>, SessionError> {
        let n = feeds.iter().try_fold(0usize, |sum, feed| sum.checked_add(feed.n_logits)).unwrap_or(usize::MAX);
        if n > self.max_batch {
            return Err(SessionError::LogitRows { asked: n, most: self.max_batch });
        }
        self.n_logits = 0;
        self.reserve_logits(n)?;
        let mut at = 0;
        self.run(feeds, |engine, _, feed| {
            let wanted = feed.wanted();
            if !wanted.is_empty() {
                let out = (&mut engine.finished, at);
                forward::finish(&mut engine.backend, &engine.model, &engine.acts, feed.rows(&wanted), out);
                at += wanted.len();
            }
        })?;
        if n > 0 {
            forward::logits(&mut self.backend, &self.model, &mut self.acts, (&self.finished, n), &mut self.logits);
        }
        self.n_logits = n;
        Ok(self.logits())
    }

    /// The logits that the last [`step`](Self::step) returned; none after one that failed, and after [`each`](Self::each).
    pub fn logits(&self) -> Logits<'_> {
        Logits { rows: &self.logits, n: self.n_logits }
    }

    /// Hidden states `[d_model]` that [`logits`](Self::logits) were made from: the residual stream after the last block and
    /// the final normalization, as the head takes it.
    pub fn hidden(&self) -> Logits<'_> {
        Logits { rows: &self.finished, n: self.n_logits }
    }

    /// Runs the tokens of all feeds and calls `visit(feed, token, hidden)` with the hidden states `[d_model]` of each, as the
    /// head takes them (see [`hidden`](Self::hidden)), feed by feed and in order. Logits that feeds want are left out.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn each_hidden(
        &mut self,
        feeds: &mut [Feed<'_>],
        mut visit: impl FnMut(usize, usize, &[f32]),
    ) -> Result<(), SessionError> {
        for feed in &mut *feeds {
            feed.n_logits = 0;
        }
        self.n_logits = 0;
        if self.finished.max_rows() < LOGIT_ROWS {
            self.finished = self.backend.buffer(LOGIT_ROWS, self.model.spec().d_model)?;
        }
        self.run(feeds, |engine, i, feed| {
            for first in feed.now.clone().step_by(LOGIT_ROWS) {
                let tokens = first..(first + LOGIT_ROWS).min(feed.now.end);
                let out = (&mut engine.finished, 0);
                forward::finish(&mut engine.backend, &engine.model, &engine.acts, feed.rows(&tokens), out);
                tokens.enumerate().for_each(|(row, token)| visit(i, token, engine.finished.row(row)));
            }
        })
    }

    /// Runs `ids` and calls `visit(i, logits)` with the logits `[vocab_size]` after each of them, in order.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn each(
        &mut self,
        sequence: &mut Sequence,
        ids: &[u32],
        mut visit: impl FnMut(usize, &[f32]),
    ) -> Result<(), SessionError> {
        self.n_logits = 0;
        self.reserve_logits(LOGIT_ROWS.min(ids.len()))?;
        self.run(&mut [Feed::new(sequence, ids)], |engine, _, feed| {
            for first in feed.now.clone().step_by(LOGIT_ROWS) {
                let tokens = first..(first + LOGIT_ROWS).min(feed.now.end);
                let out = (&mut engine.finished, 0);
                forward::finish(&mut engine.backend, &engine.model, &engine.acts, feed.rows(&tokens), out);
                let finished = (&engine.finished, tokens.len());
                forward::logits(&mut engine.backend, &engine.model, &mut engine.acts, finished, &mut engine.logits);
                tokens.enumerate().for_each(|(row, token)| visit(token, engine.logits.row(row)));
            }
        })
    }

    /// Lets the encoder read `ids`: what `sequence` says from now on, from its start, is about them. At most
    /// [`max_batch`](Self::max_batch) tokens, which run at once, and no more than the model has positions.
    ///
    /// # Errors
    /// When the model has no encoder; when there is no token, or one outside the vocabulary, or more than that; when it is a text
    /// of another model; when memory cannot be had; when it was cancelled. Nothing has changed then.
    pub fn encode(&mut self, sequence: &mut Sequence, ids: &[u32]) -> Result<(), SessionError> {
        let Self { model, backend, acts, positions, max_batch, cancel, .. } = self;
        let Some(encoder) = model.encoder() else { return Err(SessionError::NoEncoder) };
        check(model, sequence, ids)?;
        let (n_tokens, cache_type) = (ids.len(), sequence.cache_type());
        let most = (*max_batch).min(model.spec().max_context());
        if n_tokens > most {
            return Err(SessionError::ContextFull { needed: n_tokens, context: most });
        }
        let mut memory = KvCache::new(model.spec(), cache_type, n_tokens)?;
        // Of use only until the last of its blocks has run.
        let mut cache = KvCache::new(encoder.spec(), cache_type, n_tokens)?;
        positions.clear();
        positions.extend(0..n_tokens);
        let parts = &mut [Part { cache: &mut cache, positions: 0..n_tokens, row: 0, memory: None }];
        forward::forward(backend, encoder, acts, Batch { ids, positions, parts }, cancel)?;
        forward::remember(backend, (model, encoder), (acts, n_tokens), &mut memory, cancel)?;
        sequence.begin(Memory { cache: memory, n_tokens });
        Ok(())
    }

    /// Runs something with the encoder for a model, if there is one; an engine has room for both.
    pub(crate) fn as_encoder<T>(&mut self, run: impl FnOnce(&mut Self) -> T) -> T {
        let Some(encoder) = self.model.encoder().cloned() else { return run(self) };
        let model = std::mem::replace(&mut self.model, encoder);
        let result = run(self);
        self.model = model;
        result
    }

    /// Room for `n` rows of logits; kept, so that it is taken once.
    fn reserve_logits(&mut self, n: usize) -> Result<(), SessionError> {
        if self.logits.max_rows() < n {
            let spec = self.model.spec();
            self.finished = self.backend.buffer(n, spec.d_model)?;
            self.logits = self.backend.buffer(n, spec.vocab_size)?;
        }
        Ok(())
    }

    /// Runs all feeds in batches, and after each batch calls `after(self, i, feed)` for every feed that had tokens in it.
    fn run(
        &mut self,
        feeds: &mut [Feed<'_>],
        mut after: impl FnMut(&mut Self, usize, &Feed<'_>),
    ) -> Result<(), SessionError> {
        feeds.iter().try_for_each(|feed| feed.check(&self.model))?;
        for feed in &mut *feeds {
            let first = feed.sequence.position();
            self.backend.reserve(&mut feed.sequence.cache, first..first + feed.ids.len())?;
        }
        let (mut rest, mut first) = (feeds, 0);
        while !rest.is_empty() {
            let n_feeds = self.fill_batch(rest);
            self.forward(&mut rest[..n_feeds])?;
            for (i, feed) in rest[..n_feeds].iter_mut().enumerate() {
                feed.sequence.advance(feed.now.len());
                after(self, first + i, feed);
            }
            let n_done = rest.iter().take_while(|feed| feed.now.end == feed.ids.len()).count();
            first += n_done;
            rest = &mut rest[n_done..];
        }
        Ok(())
    }

    /// Fills a batch with the tokens that come next; how many feeds have some in it.
    fn fill_batch(&mut self, feeds: &mut [Feed<'_>]) -> usize {
        self.ids.clear();
        self.positions.clear();
        let causal = self.model.spec().attention.causal;
        for (i, feed) in feeds.iter_mut().enumerate() {
            let (start, row) = (feed.now.end, self.ids.len());
            let left = feed.ids.len() - start;
            let n = left.min(self.max_batch - row).min(feed.sequence.cache.most_together());
            // A text of which every token sees all others is not divided.
            if n == 0 || !causal && n < feed.ids.len() {
                return i;
            }
            (feed.now, feed.row) = (start..start + n, row);
            self.ids.extend_from_slice(&feed.ids[start..start + n]);
            let first = feed.sequence.position();
            self.positions.extend(first..first + n);
            if n < left {
                // Feeds are finished in order.
                return i + 1;
            }
        }
        feeds.len()
    }

    /// Runs the batch that was filled from `feeds`.
    fn forward(&mut self, feeds: &mut [Feed<'_>]) -> Result<(), SessionError> {
        let Self { backend, model, acts, ids, positions, cancel, .. } = self;
        let mut run =
            |parts: &mut [Part<'_>]| forward::forward(backend, model, acts, Batch { ids, positions, parts }, cancel);
        match feeds {
            // The usual case, and it allocates nothing.
            [feed] => run(&mut [feed.part()]),
            feeds => run(&mut feeds.iter_mut().map(Feed::part).collect::<Vec<_>>()),
        }
    }
}

/// Tokens that run together where texts have up to `context` of them and are run one by one: no more than a text has, and all
/// of them where an encoder reads one at once.
pub fn batch_of(spec: &Spec, context: usize) -> usize {
    if spec.encoder.is_some() { context } else { MAX_BATCH.min(context) }
}

/// Checks tokens for a sequence that may be of another model.
fn check(model: &Model, sequence: &Sequence, ids: &[u32]) -> Result<(), SessionError> {
    if !sequence.model().is(model) {
        return Err(SessionError::OtherModel {
            found: sequence.model().file().path().to_owned(),
            expected: model.file().path().to_owned(),
        });
    }
    let vocab_size = model.spec().vocab_size;
    match ids.iter().find(|&&id| id as usize >= vocab_size) {
        _ if ids.is_empty() => Err(SessionError::EmptyPrompt),
        Some(&id) => Err(SessionError::Token { id, vocab_size }),
        None => Ok(()),
    }
}

/// The smallest batch that a text can be run in: where each token sees all others, it is not divided.
fn least_batch(spec: &Spec) -> usize {
    if spec.attention.causal && spec.encoder.is_none() { 1 } else { spec.context_length }
}
