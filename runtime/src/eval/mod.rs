//! How well a model predicts a text, and how far its predictions are from those of a reference.
//!
//! The text is cut into windows that do not overlap, and each runs alone. With a reference both models run a piece of the
//! window at a time: its logits take [`LOGIT_BYTES`] at most (or 16 rows of both models), however long window and text are.
//! What grows with the text is one f32 for each scored token, because percentiles need all values; a histogram would save
//! these 4 bytes beside the 4 of the token's id, and be wrong by the width of its bins.
//!
//! | module | what lives there |
//! |---|---|
//! | `divergence` | two predictions of one token: KL divergence, most probable token |
//! | `statistics` | means with their confidence intervals, percentiles |

#![forbid(unsafe_code)]

mod divergence;
mod statistics;

pub use statistics::{Estimate, Unit};

use crate::engine::MAX_BATCH;
use crate::error::{EvalError, SessionError};
use crate::kernels::Kernels;
use crate::model::Model;
use crate::session::Session;
use divergence::{argmax, kl_divergence};
use statistics::{Mean, percentile};
use std::num::NonZeroUsize;

/// Logits kept at once when two models are compared, in bytes, of both together.
pub const LOGIT_BYTES: usize = 24 << 20;

/// How a text is cut, and which of its tokens are scored.
#[derive(Clone, Copy, Debug)]
pub struct Windows {
    /// Tokens of a window, at least 2. The last may be shorter when nothing is skipped. Otherwise it is left out, as
    /// llama.cpp does: every window then scores as many tokens.
    pub length: usize,
    /// Predictions at the start of each window that are not scored, at most `length - 2`. Tokens `skip + 1..length` are
    /// scored, each with those before it as context: with 512 and 256 these are the 255 that llama.cpp's
    /// `llama-perplexity` scores.
    pub skip: usize,
    /// Only so many windows, from the start of the text.
    pub most: Option<NonZeroUsize>,
}

impl Windows {
    /// All windows of `length` tokens, scored but for the first token.
    pub fn of_length(length: usize) -> Self {
        Self { length, skip: 0, most: None }
    }

    /// Tokens in the windows that are run.
    ///
    /// # Panics
    /// When the length is 0.
    pub fn tokens(&self, ids: &[u32]) -> usize {
        self.of(ids).map(<[u32]>::len).sum()
    }

    /// The windows that have something to score.
    fn of<'a>(&self, ids: &'a [u32]) -> impl Iterator<Item = &'a [u32]> {
        let shortest = self.shortest();
        let most = self.most.map_or(usize::MAX, NonZeroUsize::get);
        ids.chunks(self.length).filter(move |window| window.len() >= shortest).take(most)
    }

    fn shortest(&self) -> usize {
        if self.skip == 0 { 2 } else { self.length }
    }

    fn check(&self, session: &Session) -> Result<(), EvalError> {
        // The last token of a window is scored but not run.
        let most = session.context().saturating_add(1);
        if self.length < 2 || self.length > most {
            let model = session.model().file().path().to_owned();
            return Err(EvalError::Window { model, window: self.length, most });
        }
        if self.skip > self.length - 2 {
            return Err(EvalError::Skip { skip: self.skip, window: self.length });
        }
        Ok(())
    }
}

/// What was measured on a text. Intervals are those of [`unit`](Self::unit).
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// `exp(total_nll / scored_tokens)`.
    pub perplexity: Estimate,
    /// Sum of the negative log-likelihoods (natural logarithm) of all scored tokens.
    pub total_nll: f64,
    /// Tokens scored.
    pub scored_tokens: usize,
    /// Tokens of the text.
    pub tokens: usize,
    /// Windows run.
    pub windows: usize,
    /// What the errors take to be independent.
    pub unit: Unit,
    /// The same and more beside the reference, if there was one.
    pub comparison: Option<Comparison>,
}

/// A model beside a reference, over the scored tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Perplexity of the reference.
    pub perplexity: Estimate,
    /// Perplexity of the model by that of the reference. Both see the same tokens, so its error is that of the differences of
    /// log-likelihoods, which is far smaller than those of the perplexities.
    pub ratio: Estimate,
    /// Mean of the divergence `KL(reference || model) = sum of p (log p - log q)` over the vocabulary, in nats.
    pub kl: Estimate,
    /// Half of the tokens diverge less.
    pub kl_median: f64,
    /// 90 % do.
    pub kl_p90: f64,
    /// 99 % do.
    pub kl_p99: f64,
    /// The largest divergence.
    pub kl_max: f64,
    /// Part of the tokens at which both models hold the same one for the most probable.
    pub agreement: Estimate,
}

/// Evaluates a text, beside a reference if there is one.
///
/// The negative log-likelihood of a token is `-log softmax(logits)[id]`; everything is summed in f64, in the order of the
/// text. `progress` gets the tokens done after each window. The first session's cancel flag stops it.
///
/// # Errors
/// When there is nothing to score, a window is too short or does not fit a session's context, the vocabularies are not of one
/// size, a token is outside them, logits are not finite, or a session fails.
pub fn evaluate(
    session: &mut Session,
    mut reference: Option<&mut Session>,
    ids: &[u32],
    windows: &Windows,
    mut progress: impl FnMut(usize),
) -> Result<Evaluation, EvalError> {
    windows.check(session)?;
    if let Some(reference) = &reference {
        windows.check(reference)?;
        check_vocabularies(session.model(), reference.model())?;
    }
    if windows.of(ids).next().is_none() {
        return Err(EvalError::TooShort { tokens: ids.len(), needed: windows.shortest() });
    }
    // The last token of a window is not run, so no session looks at it.
    let vocab_size = session.model().spec().vocab_size;
    if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
        return Err(SessionError::Token { id, vocab_size }.into());
    }
    let mut tally = Tally::default();
    let mut done = 0;
    for window in windows.of(ids) {
        // The logits after `run[i]` predict `next[i]`.
        let (context, run) = window[..window.len() - 1].split_at(windows.skip);
        let next = &window[windows.skip + 1..];
        let first = done + windows.skip;
        start(session, context)?;
        if let Some(reference) = reference.as_deref_mut() {
            start(reference, context)?;
            compare(session, reference, (run, next, first), |score| tally.push(&score))?;
        } else {
            score(session, (run, next, first), |score| tally.push(&score))?;
        }
        tally.end_window();
        done += window.len();
        progress(done);
    }
    Ok(tally.finish(ids.len()))
}

/// Whether two models have as many tokens as each other; which ones, only their tokenizers know.
///
/// # Errors
/// When they have not.
pub fn check_vocabularies(model: &Model, reference: &Model) -> Result<(), EvalError> {
    let (model, reference) = (model.file(), reference.file());
    let (model_size, reference_size) = (model.spec().vocab_size, reference.spec().vocab_size);
    if model_size == reference_size {
        return Ok(());
    }
    let (model, reference) = (model.path().to_owned(), reference.path().to_owned());
    Err(EvalError::Vocabulary { reference, reference_size, model, model_size })
}

/// Begins a window. The head is not computed: what comes after its context is not scored.
fn start(session: &mut Session, context: &[u32]) -> Result<(), SessionError> {
    session.rewind(0);
    if !context.is_empty() {
        session.append_last(context, 0)?;
    }
    Ok(())
}

/// What is known of a token.
struct Score {
    nll: f64,
    beside: Option<Beside>,
}

/// The same of the reference, and both together.
struct Beside {
    nll: f64,
    kl: f64,
    agrees: bool,
}

/// Tokens to run, those that come after each, and where in the text the first is.
type Piece<'a> = (&'a [u32], &'a [u32], usize);

fn score(session: &mut Session, (run, next, first): Piece<'_>, mut push: impl FnMut(Score)) -> Result<(), EvalError> {
    let judge = Judge::of(session);
    let mut result = Ok(());
    session.append_each(run, |i, logits| match judge.nll(logits, next[i], first + i) {
        Ok(nll) => push(Score { nll, beside: None }),
        Err(e) if result.is_ok() => result = Err(e),
        Err(_) => {}
    })?;
    result
}

/// Both models run as many tokens as there is room for logits, and these are compared.
fn compare(
    session: &mut Session,
    reference: &mut Session,
    (run, next, first): Piece<'_>,
    mut push: impl FnMut(Score),
) -> Result<(), EvalError> {
    let (threads, judge, of_reference) = (session.threads(), Judge::of(session), Judge::of(reference));
    let room = LOGIT_BYTES / (2 * 4 * session.model().spec().vocab_size).max(1);
    let rows = room.clamp(16, MAX_BATCH).min(session.context()).min(reference.context());
    for (piece, (run, next)) in run.chunks(rows).zip(next.chunks(rows)).enumerate() {
        let first = first + piece * rows;
        let expected = reference.append_last(run, run.len())?;
        let found = session.append_last(run, run.len())?;
        let score = |i: usize| {
            let (p, q) = (expected.row(i), found.row(i));
            let nll = judge.nll(q, next[i], first + i)?;
            let of_reference = of_reference.nll(p, next[i], first + i)?;
            let beside = Beside { nll: of_reference, kl: kl_divergence(p, q), agrees: argmax(p) == argmax(q) };
            Ok(Score { nll, beside: Some(beside) })
        };
        in_parallel(threads, run.len(), score)?.into_iter().for_each(&mut push);
    }
    Ok(())
}

/// `task(0..n)` in order. A piece takes milliseconds, so threads of its own are cheap, and the pools of the sessions stay theirs.
fn in_parallel<T: Send>(
    threads: usize,
    n: usize,
    task: impl Fn(usize) -> Result<T, EvalError> + Sync,
) -> Result<Vec<T>, EvalError> {
    let share = n.div_ceil(threads).max(1);
    let task = &task;
    std::thread::scope(|scope| {
        let mut parts = Vec::with_capacity(threads);
        for first in (share..n).step_by(share) {
            let part = move || (first..n.min(first + share)).map(task).collect::<Result<Vec<_>, _>>();
            parts.push(std::thread::Builder::new().spawn_scoped(scope, part).map_err(SessionError::Spawn)?);
        }
        let mut results = (0..n.min(share)).map(task).collect::<Result<Vec<_>, _>>()?;
        for part in parts {
            results.extend(part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(results)
    })
}

/// What it takes to judge a model's logits.
struct Judge {
    kernels: Kernels,
    model: Model,
}

impl Judge {
    fn of(session: &Session) -> Self {
        Self { kernels: session.kernels(), model: session.model().clone() }
    }

    /// Negative log-likelihood of `id`, by the logits after token `position` of the text.
    fn nll(&self, logits: &[f32], id: u32, position: usize) -> Result<f64, EvalError> {
        let nll = self.kernels.log_sum_exp(logits) - f64::from(logits[id as usize]);
        // A NaN can hide from the sum, but not from a look at each.
        match logits.iter().position(|v| !v.is_finite()) {
            None if nll.is_finite() => Ok(nll),
            at => {
                let token = at.unwrap_or(id as usize);
                let model = self.model.file().path().to_owned();
                Err(EvalError::NotFinite { model, position, token, value: logits[token] })
            }
        }
    }
}

/// Sums over the scored tokens.
#[derive(Default)]
struct Tally {
    nll: Mean,
    scored: usize,
    windows: usize,
    /// What there is when there is a reference.
    reference_nll: Mean,
    difference: Mean,
    kl: Mean,
    agreement: Mean,
    kl_values: Vec<f32>,
}

impl Tally {
    fn push(&mut self, score: &Score) {
        self.nll.push(score.nll);
        self.scored += 1;
        if let Some(beside) = &score.beside {
            self.reference_nll.push(beside.nll);
            self.difference.push(score.nll - beside.nll);
            self.kl.push(beside.kl);
            self.agreement.push(f64::from(u8::from(beside.agrees)));
            self.kl_values.push(beside.kl as f32);
        }
    }

    fn end_window(&mut self) {
        self.windows += 1;
        for mean in [&mut self.nll, &mut self.reference_nll, &mut self.difference, &mut self.kl, &mut self.agreement] {
            mean.end_window();
        }
    }

    fn finish(mut self, tokens: usize) -> Evaluation {
        let comparison = (!self.kl_values.is_empty()).then(|| {
            let [kl_median, kl_p90, kl_p99, kl_max] =
                [0.5, 0.9, 0.99, 1.0].map(|fraction| percentile(&mut self.kl_values, fraction));
            Comparison {
                perplexity: self.reference_nll.estimate().exp(),
                ratio: self.difference.estimate().exp(),
                kl: self.kl.estimate().within(0.0..f64::INFINITY),
                kl_median,
                kl_p90,
                kl_p99,
                kl_max,
                agreement: self.agreement.estimate().within(0.0..1.0),
            }
        });
        Evaluation {
            perplexity: self.nll.estimate().exp(),
            total_nll: self.nll.sum(),
            scored_tokens: self.scored,
            tokens,
            windows: self.windows,
            unit: Unit::of(self.windows),
            comparison,
        }
    }
}
