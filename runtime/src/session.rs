//! A model at work: tokens go in, logits come out.

#![forbid(unsafe_code)]

use crate::backend::{Backend, Cpu};
use crate::error::SessionError;
use crate::forward::{self, Activations};
use crate::kernels::{self, Kernels};
pub use crate::kv_cache::CacheType;
use crate::kv_cache::{self, KvCache};
pub use crate::model::Model;
use crate::ops::Buffer;
use crate::threads::{MAX_THREADS, available_cores};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Tokens that run through the model together in prefill.
///
/// Each batch reads all weights once, so the batch must be large enough for that to vanish beside the arithmetic, and small
/// enough for its activations to stay in the second-level cache.
const MAX_BATCH: usize = 128;

/// Rows of logits computed together when all are wanted: bounds that memory to 16 vocabularies.
const LOGIT_ROWS: usize = 16;

/// Logits after some tokens, a row `[vocab_size]` for each.
#[derive(Clone, Copy)]
pub struct Logits<'a> {
    rows: &'a Buffer,
    n: usize,
}

impl<'a> Logits<'a> {
    /// How many rows there are, at least one.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.n
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

/// How a session is made.
#[derive(Clone, Debug, Default)]
pub struct SessionOptions {
    /// Tokens the cache holds; the model's own context length when `None`.
    pub context: Option<usize>,
    /// Threads, the caller's included; one per available core when `None`.
    pub threads: Option<usize>,
    /// How the cache keeps its numbers; when `None`, in f32 for a model whose weights are all f32, in f16 for others.
    pub cache_type: Option<CacheType>,
}

/// One text in progress: a model, its cache and its scratch memory. It belongs to one thread at a time.
pub struct Session {
    model: Model,
    backend: Cpu,
    cache: KvCache,
    acts: Activations<Cpu>,
    /// What the head takes and gives, for the tokens whose logits are wanted: `[rows, d_model]` and `[rows, vocab_size]`.
    finished: Buffer,
    logits: Buffer,
    context: usize,
    position: usize,
    max_batch: usize,
    cancel: Arc<AtomicBool>,
}

impl Session {
    /// A session at position 0. All memory it will need is taken here.
    ///
    /// # Errors
    /// When an option is out of range, or memory or threads cannot be had.
    pub fn new(model: &Model, options: &SessionOptions) -> Result<Self, SessionError> {
        let spec = model.spec();
        let context = options.context.unwrap_or(spec.context_length);
        if context == 0 || context > spec.context_length {
            return Err(SessionError::Context { asked: context, most: spec.context_length });
        }
        let threads = options.threads.unwrap_or_else(available_cores);
        if threads == 0 || threads > MAX_THREADS {
            return Err(SessionError::Threads { asked: threads, most: MAX_THREADS });
        }
        let cache_type = options.cache_type.unwrap_or_else(|| kv_cache::default_type(model.file()));
        let max_batch = MAX_BATCH.min(context);
        let backend = Cpu::new(kernels::active()?, threads, spec, max_batch)?;
        Ok(Self {
            cache: backend.cache(spec, cache_type, context)?,
            acts: Activations::new(&backend, spec, max_batch)?,
            finished: backend.buffer(1, spec.d_model)?,
            logits: backend.buffer(1, spec.vocab_size)?,
            model: model.clone(),
            backend,
            context,
            position: 0,
            max_batch,
            cancel: Arc::default(),
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Tokens the cache holds.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Tokens in the cache.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Threads in use.
    pub fn threads(&self) -> usize {
        self.backend.n_threads()
    }

    /// The kernels in use.
    pub fn kernels(&self) -> Kernels {
        self.backend.kernels()
    }

    /// Name of the kernels in use.
    pub fn isa(&self) -> &'static str {
        self.backend.kernels().name()
    }

    /// Bytes of the cache when it is full.
    pub fn cache_bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// Bytes of scratch memory.
    pub fn scratch_bytes(&self) -> usize {
        Activations::<Cpu>::elements(self.model.spec(), self.max_batch) * 4
            + self.backend.scratch_bytes()
            + self.finished.bytes()
            + self.logits.bytes()
    }

    /// Setting it stops a running [`append`](Self::append) before its next block. It stays set until the caller clears it.
    pub fn cancel_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.cancel)
    }

    /// Forgets all tokens from `position` on.
    pub fn rewind(&mut self, position: usize) {
        self.position = self.position.min(position);
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
    /// As [`append`](Self::append), and when `n` is not between 1 and the tokens there are, or more than run together.
    pub fn append_last(&mut self, ids: &[u32], n: usize) -> Result<Logits<'_>, SessionError> {
        if ids.is_empty() {
            return Err(SessionError::EmptyPrompt);
        }
        let most = self.max_batch.min(ids.len());
        if n == 0 || n > most {
            return Err(SessionError::LogitRows { asked: n, most });
        }
        self.reserve_logits(n)?;
        let wanted = ids.len() - n;
        let mut done = 0;
        self.run(ids, |session, batch| {
            let first = wanted.saturating_sub(done).min(batch);
            if first < batch {
                let out = (&mut session.finished, done + first - wanted);
                forward::finish(&mut session.backend, &session.model, &session.acts, first..batch, out);
            }
            done += batch;
        })?;
        forward::logits(&mut self.backend, &self.model, (&self.finished, n), &mut self.logits);
        Ok(Logits { rows: &self.logits, n })
    }

    /// Runs `ids` through the model and calls `visit(i, logits)` with the logits `[vocab_size]` after each of them, in order.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub fn append_each(&mut self, ids: &[u32], mut visit: impl FnMut(usize, &[f32])) -> Result<(), SessionError> {
        self.reserve_logits(LOGIT_ROWS.min(ids.len()))?;
        let mut done = 0;
        self.run(ids, |session, batch| {
            for first in (0..batch).step_by(LOGIT_ROWS) {
                let tokens = first..(first + LOGIT_ROWS).min(batch);
                let n = tokens.len();
                let out = (&mut session.finished, 0);
                forward::finish(&mut session.backend, &session.model, &session.acts, tokens, out);
                forward::logits(&mut session.backend, &session.model, (&session.finished, n), &mut session.logits);
                (0..n).for_each(|row| visit(done + first + row, session.logits.row(row)));
            }
            done += batch;
        })
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

    /// Runs `ids` in batches and calls `after(self, tokens in the batch)` after each.
    fn run(&mut self, ids: &[u32], mut after: impl FnMut(&mut Self, usize)) -> Result<(), SessionError> {
        let vocab_size = self.model.spec().vocab_size;
        if ids.is_empty() {
            return Err(SessionError::EmptyPrompt);
        }
        if ids.len() > self.context - self.position {
            let needed = self.position.saturating_add(ids.len());
            return Err(SessionError::ContextFull { needed, context: self.context });
        }
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(SessionError::Token { id, vocab_size });
        }
        for batch in ids.chunks(self.max_batch) {
            forward::forward(
                &mut self.backend,
                &self.model,
                &mut self.acts,
                &mut self.cache,
                batch,
                self.position,
                &self.cancel,
            )?;
            self.position += batch.len();
            after(self, batch.len());
        }
        Ok(())
    }
}
