//! Sessions: what a handle stands for, and what can be done with the text of one.
//!
//! The text is a list of tokens, and the cache holds the first of them: all but what was chosen last, or taken back. What is
//! missing is run when it is needed. Because the same tokens give the same bits, alone or together, a token can be run once
//! more to have its logits back: so a session keeps none, and being rewound, cloned or restored is nothing special.
//!
//! A call changes the text completely or not at all. The functions of the header are in [`crate::session_calls`].

use crate::guard::injected;
use crate::log::{self, LogSink};
use crate::memory::Buffer;
use crate::options::Settings;
use crate::status::{
    Failure, Outcome, Status, TIDBIT_BUSY, TIDBIT_CANCELLED, TIDBIT_CONTEXT_FULL, TIDBIT_EMPTY, TIDBIT_END, TIDBIT_OK,
    TIDBIT_POISONED,
};
use std::ffi::c_char;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};
use tidbit_runtime::embed;
use tidbit_runtime::engine::{Engine, EngineOptions, Feed, MAX_BATCH, batch_of};
use tidbit_runtime::error::SessionError;
use tidbit_runtime::format::Contents;
use tidbit_runtime::kernels::Kernels;
use tidbit_runtime::model::Model;
use tidbit_runtime::sampler::Sampler;
use tidbit_runtime::sequence::{Sequence, SequenceOptions};
use tidbit_runtime::tokenizer::TextStream;

/// What a handle of a session stands for.
pub(crate) struct Session {
    pub(crate) model: Model,
    cancel: Arc<AtomicBool>,
    state: Mutex<State>,
}

/// A text in progress.
pub(crate) struct State {
    pub(crate) engine: Engine,
    pub(crate) sequence: Sequence,
    /// The tokens of the text, at most the context; the sequence holds the first of them.
    pub(crate) text: Vec<u32>,
    /// The engine's logits are those after this many tokens of the text.
    logits_after: Option<usize>,
    pub(crate) sampler: Sampler,
    pub(crate) stream: TextStream,
    pub(crate) settings: Settings,
    pub(crate) statistics: Statistics,
}

/// What was done so far.
#[derive(Clone, Copy, Default)]
pub(crate) struct Statistics {
    /// Tokens that were given, run, and how long that took.
    pub(crate) prefill: (usize, Duration),
    /// Tokens that were chosen, and how long running and choosing took.
    pub(crate) decode: (usize, Duration),
}

/// How the sequence of a session is made.
fn sequence_options(settings: &Settings) -> SequenceOptions {
    SequenceOptions { context: (settings.context > 0).then_some(settings.context), cache_type: settings.cache_type }
}

fn engine(model: &Model, settings: &Settings, context: usize) -> Outcome<Engine> {
    let threads = (settings.threads > 0).then_some(settings.threads);
    Ok(Engine::new(model, &EngineOptions { threads, max_batch: Some(batch_of(model.spec(), context)) })?)
}

/// Bytes of memory that a session takes: cache, activations, and its list of tokens.
pub(crate) fn memory_bytes(contents: &Contents, settings: &Settings) -> Outcome<usize> {
    let options = sequence_options(settings);
    let context = options.checked_context(contents.spec())?;
    let scratch = Engine::scratch_bytes_of(contents.spec(), batch_of(contents.spec(), context));
    Ok(options.cache_bytes(contents)?.saturating_add(scratch).saturating_add(context.saturating_mul(4)))
}

/// An empty list of tokens with room for a whole context, so that no token allocates.
fn room_for(context: usize) -> Outcome<Vec<u32>> {
    let mut text = Vec::new();
    text.try_reserve_exact(context).map_err(|_| Failure::memory(context.saturating_mul(4), "the tokens"))?;
    Ok(text)
}

impl Session {
    pub(crate) fn new(model: &Model, settings: Settings) -> Outcome<Self> {
        settings.check_limit(memory_bytes(model.file().contents(), &settings)?, "the session")?;
        let sampler = Sampler::new(settings.sampler.clone())?;
        let sequence = Sequence::new(model, &sequence_options(&settings))?;
        let engine = engine(model, &settings, sequence.context())?;
        let text = room_for(sequence.context())?;
        log::info(settings.log, || {
            let (context, threads, isa) = (sequence.context(), engine.threads(), engine.kernels().name());
            let bytes = sequence.cache_bytes() + engine.scratch_bytes();
            format!("session of {context} tokens, {threads} threads, {isa}, {bytes} bytes")
        });
        Ok(Self::of(State {
            engine,
            sequence,
            text,
            logits_after: None,
            sampler,
            stream: TextStream::default(),
            settings,
            statistics: Statistics::default(),
        }))
    }

    fn of(state: State) -> Self {
        Self { model: state.engine.model().clone(), cancel: state.engine.cancel_flag(), state: Mutex::new(state) }
    }

    /// Another session with the same text, which shares the cache of it.
    pub(crate) fn fork(&self) -> Outcome<Self> {
        let state = self.lock()?;
        let settings = state.settings.clone();
        settings.check_limit(memory_bytes(self.model.file().contents(), &settings)?, "the session")?;
        let mut text = room_for(state.sequence.context())?;
        text.extend_from_slice(&state.text);
        Ok(Self::of(State {
            engine: engine(&self.model, &settings, state.sequence.context())?,
            sequence: state.sequence.fork()?,
            text,
            logits_after: None,
            sampler: state.sampler.clone(),
            stream: state.stream.clone(),
            settings,
            statistics: Statistics::default(),
        }))
    }

    /// The text, for one call at a time.
    pub(crate) fn lock(&self) -> Outcome<Locked<'_>> {
        match self.state.try_lock() {
            Ok(state) => Ok(Locked { state, cancel: &self.cancel }),
            Err(TryLockError::WouldBlock) => Err(Failure::new(TIDBIT_BUSY, "another call is using this session")),
            Err(TryLockError::Poisoned(_)) => {
                let message = "an earlier call on this session failed inside: it can only be freed";
                Err(Failure::new(TIDBIT_POISONED, message))
            }
        }
    }

    /// Stops the call under way, or else the next that computes. An atomic store and nothing else.
    pub(crate) fn cancel(&self) {
        self.cancel.store(true, Ordering::Relaxed);
    }
}

/// A session in use by one call.
pub(crate) struct Locked<'a> {
    state: MutexGuard<'a, State>,
    cancel: &'a AtomicBool,
}

impl std::ops::Deref for Locked<'_> {
    type Target = State;
    fn deref(&self) -> &State {
        &self.state
    }
}

impl std::ops::DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Locked<'_> {
    /// Runs something that computes. Having been cancelled is told once.
    pub(crate) fn compute<T>(mut self, run: impl FnOnce(&mut State) -> Outcome<T>) -> Outcome<T> {
        injected("session");
        let result = if self.cancel.load(Ordering::Relaxed) {
            Err(SessionError::Cancelled.into())
        } else {
            run(&mut self.state)
        };
        match &result {
            Err(failure) if failure.status == TIDBIT_CANCELLED => self.cancel.store(false, Ordering::Relaxed),
            Err(failure) if failure.status != crate::status::TIDBIT_BUFFER_TOO_SMALL => {
                log::warning(self.state.settings.log, || failure.message.clone());
            }
            _ => {}
        }
        result
    }
}

impl State {
    /// The host's log.
    pub(crate) fn log(&self) -> Option<LogSink> {
        self.settings.log
    }

    /// Whether what is appended next is for the encoder: the text then begins by itself, with a token of the model.
    pub(crate) fn encodes(&self) -> bool {
        self.text.is_empty() && self.engine.model().encoder().is_some()
    }

    /// Appends tokens and runs them.
    pub(crate) fn append(&mut self, ids: &[u32]) -> Outcome {
        if ids.is_empty() {
            return Ok(());
        }
        let (before, started) = (self.text.len(), Instant::now());
        let context = self.sequence.context();
        let encodes = self.encodes();
        if let (true, Some(encoder)) = (encodes, &self.engine.model().spec().encoder) {
            let start_id = encoder.start_id;
            self.logits_after = None;
            self.engine.encode(&mut self.sequence, ids)?;
            self.text.push(start_id);
        } else {
            if ids.len() > context - before {
                return Err(SessionError::ContextFull { needed: before.saturating_add(ids.len()), context }.into());
            }
            self.check_vocabulary(ids)?;
            self.text.extend_from_slice(ids);
        }
        let result = self.run(1);
        if result.is_err() {
            self.text.truncate(before);
            self.sequence.rewind(before);
            return result;
        }
        self.stream = if encodes { TextStream::at_start() } else { TextStream::default() };
        let (n, time) = self.statistics.prefill;
        self.statistics.prefill = (n + ids.len(), time + started.elapsed());
        Ok(())
    }

    /// Every id has a row in the vocabulary.
    pub(crate) fn check_vocabulary(&self, ids: &[u32]) -> Outcome {
        let vocab_size = self.engine.model().spec().vocab_size;
        match ids.iter().find(|&&id| id as usize >= vocab_size) {
            Some(&id) => Err(SessionError::Token { id, vocab_size }.into()),
            None => Ok(()),
        }
    }

    /// Runs what is not in the cache yet, and has the logits after the last `n_logits` tokens of the text: at least 1, at most
    /// as many as there are.
    fn run(&mut self, n_logits: usize) -> Outcome {
        let len = self.text.len();
        if self.logits_after == Some(len) && self.engine.logits().len() >= n_logits {
            return Ok(());
        }
        self.logits_after = None;
        // Logits that are gone, or were not asked for, come back with their token.
        let start = self.sequence.resume_point(len - n_logits);
        self.sequence.rewind(start);
        let feed = Feed::new(&mut self.sequence, &self.text[start..]);
        self.engine.step(&mut [feed.with_logits(n_logits)])?;
        self.logits_after = Some(len);
        Ok(())
    }

    /// Chooses the next token and tells its text. `out_token` gets it when the text fits the buffer.
    pub(crate) fn next(&mut self, out: &Buffer<c_char>, out_token: impl FnOnce(u32)) -> Outcome<Status> {
        let started = Instant::now();
        if self.text.is_empty() {
            return Err(empty());
        }
        let context = self.sequence.context();
        if self.text.len() >= context {
            return Err(Failure::new(TIDBIT_CONTEXT_FULL, format!("the context of {context} tokens is full")));
        }
        self.run(1)?;
        let (draws, logits) = (self.sampler.draws(), self.engine.logits());
        let id = self.sampler.sample(logits.row(logits.len() - 1), &self.text)?;
        let model = self.engine.model();
        let ends = !self.settings.ignore_eos && model.spec().eos_ids.contains(&id);
        let mut stream = self.stream.clone();
        let piece = match model.tokenizer()? {
            _ if ends => stream.finish(),
            Some(tokenizer) => stream.push(tokenizer, id),
            None => "",
        };
        if let Err(failure) = out.write_text(piece) {
            // As if it had not been chosen: the next call chooses the same.
            self.sampler.set_draws(draws);
            return Err(failure);
        }
        out_token(id);
        self.stream = stream;
        if !ends {
            self.text.push(id);
        }
        let (n, time) = self.statistics.decode;
        self.statistics.decode = (n + 1, time + started.elapsed());
        Ok(if ends { TIDBIT_END } else { TIDBIT_OK })
    }

    /// The embedding of another text, given as tokens. The session's own stays as it is.
    pub(crate) fn embed(&mut self, ids: Vec<u32>) -> Outcome<Vec<f32>> {
        self.logits_after = None;
        let pooling = self.engine.model().spec().pooling.clone();
        let mut embeddings = embed::embed(&mut self.engine, &pooling, &[ids])?;
        Ok(embeddings.pop().expect("one for each text"))
    }

    /// Calls `visit(row, logits, hidden)` for the last `n` tokens of the text.
    pub(crate) fn last(&mut self, n: usize, mut visit: impl FnMut(usize, &[f32], &[f32])) -> Outcome {
        self.run(n)?;
        let (logits, hidden) = (self.engine.logits(), self.engine.hidden());
        let skip = logits.len() - n;
        (0..n).for_each(|row| visit(row, logits.row(skip + row), hidden.row(skip + row)));
        Ok(())
    }

    /// How many rows [`last`](Self::last) can give at once.
    pub(crate) fn most_rows(&self) -> usize {
        // Where an encoder takes long texts at once, rows of logits for all of them would be more memory than was asked for.
        self.text.len().min(self.engine.max_batch()).min(MAX_BATCH)
    }

    /// Logarithms of the probabilities of `ids` after the text, which stays as it is. The first of an empty text has none: 0.
    pub(crate) fn score(&mut self, ids: &[u32]) -> Outcome<Vec<f32>> {
        let (before, context) = (self.text.len(), self.sequence.context());
        let Some(n_run) = ids.len().checked_sub(1) else { return Ok(Vec::new()) };
        if self.encodes() {
            return Err(SessionError::NothingRead.into());
        }
        if n_run > context - before {
            return Err(SessionError::ContextFull { needed: before.saturating_add(n_run), context }.into());
        }
        self.check_vocabulary(ids)?;
        let mut scores = Vec::new();
        scores.try_reserve_exact(ids.len()).map_err(|_| Failure::memory(ids.len().saturating_mul(4), "the scores"))?;
        let kernels = self.engine.kernels();
        if before == 0 {
            scores.push(0.0);
        } else {
            self.run(1)?;
            let logits = self.engine.logits();
            scores.push(log_probability(kernels, logits.row(logits.len() - 1), ids[0])?);
        }
        if n_run > 0 {
            self.logits_after = None;
            let mut wrong = None;
            let result = self.engine.each(&mut self.sequence, &ids[..n_run], |i, logits| {
                injected("score");
                match log_probability(kernels, logits, ids[i + 1]) {
                    Ok(score) => scores.push(score),
                    Err(failure) => wrong = Some(failure),
                }
            });
            self.sequence.rewind(before);
            result?;
            if let Some(failure) = wrong {
                return Err(failure);
            }
        }
        Ok(scores)
    }

    /// Forgets all tokens from `position` on.
    pub(crate) fn rewind(&mut self, position: usize) -> Outcome {
        let len = self.text.len();
        if position > len {
            return Err(Failure::argument(format!("position {position} is behind the end of the text, {len}")));
        }
        if position < len {
            self.text.truncate(position);
            self.sequence.rewind(position);
            self.logits_after = None;
            self.stream.clear();
            // Behind an encoder's text the decoder's begins with the first token that is written.
            if position == 1 && self.engine.model().encoder().is_some() {
                self.stream = TextStream::at_start();
            }
        }
        Ok(())
    }

    /// The text is another one: these tokens, of which the sequence holds the first.
    pub(crate) fn replaced(&mut self, draws: u64, stream: TextStream) {
        self.logits_after = None;
        self.sampler.set_draws(draws);
        self.stream = stream;
    }
}

/// The failure of a session without any token.
pub(crate) fn empty() -> Failure {
    Failure::new(TIDBIT_EMPTY, "the session has no token yet: append a text first")
}

/// What a logit is lowered by to become the natural logarithm of a probability.
pub(crate) fn log_total(kernels: Kernels, logits: &[f32]) -> Outcome<f64> {
    let total = kernels.log_sum_exp(logits);
    match logits.iter().position(|v| v.is_nan() || *v == f32::INFINITY) {
        None if total.is_finite() => Ok(total),
        at => {
            let token = at.unwrap_or(0);
            Err(SessionError::NotFinite { token, value: logits[token] }.into())
        }
    }
}

/// Natural logarithm of the probability of `id`.
fn log_probability(kernels: Kernels, logits: &[f32], id: u32) -> Outcome<f32> {
    Ok((f64::from(logits[id as usize]) - log_total(kernels, logits)?) as f32)
}
