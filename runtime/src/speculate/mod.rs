//! Decoding, with or without guesses (speculative decoding; Leviathan et al. 2023, arXiv:2211.17192).
//!
//! A step runs the last token together with guesses of what follows: that costs little more than the token alone, because
//! the weights are read once. The sampler then chooses as always, token after token, from the logits of each place, for as
//! long as its choice is the guess. Logits have the same bits whether tokens run together or one by one, and the sampler
//! draws one number for each token: the text is exactly what it would be without guesses, for any sampler and any seed.
//!
//! | module | what lives there |
//! |---|---|
//! | [`lookup`] | guesses from the text itself |
//! | [`draft_model`] | guesses from a smaller model |
//! | `pace` | how many of them a step runs |

#![forbid(unsafe_code)]

pub mod draft_model;
pub mod lookup;
mod pace;

pub use draft_model::DraftModel;
pub use lookup::Lookup;

use crate::error::SessionError;
use crate::sampler::Sampler;
use crate::session::Session;
use pace::{Pace, Plan};
use std::ops::ControlFlow;
use std::time::Instant;

/// Most guesses of a step.
pub const MAX_GUESSES: usize = 31;

/// Most steps for which a drafter that costs time is not asked, after it had nothing worth running.
const MOST_PAUSE: usize = 16;

/// A token that may come next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guess {
    /// The token.
    pub id: u32,
    /// From 0 to 1: which guesses are right more often. It need not be a probability.
    pub confidence: f32,
}

/// Something that guesses how a text goes on.
pub trait Drafter {
    /// The text has grown by these tokens; guesses start anew after them.
    fn extend(&mut self, new: &[u32]);

    /// What comes after the text and the guesses made since it grew; `None` when it has no idea.
    ///
    /// # Errors
    /// When a model that guesses fails.
    fn guess(&mut self) -> Result<Option<Guess>, SessionError>;

    /// The text is empty again.
    fn clear(&mut self);

    /// Time that a guess takes, in steps of one token of the model that it is made for.
    fn cost(&self) -> f32 {
        0.0
    }
}

/// What guessing brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Steps after the prompt.
    pub steps: usize,
    /// Guesses that ran in them.
    pub guessed: usize,
    /// Those that were right.
    pub accepted: usize,
}

impl Statistics {
    /// Tokens that a step brought; `None` before the first.
    pub fn tokens_per_step(&self) -> Option<f64> {
        (self.steps > 0).then(|| (self.steps + self.accepted) as f64 / self.steps as f64)
    }
}

/// Decodes a text, step by step.
#[derive(Default)]
pub struct Steps {
    speculation: Option<Speculation>,
    /// The tokens of a step: new ones of the text, then guesses.
    ids: Vec<u32>,
    guesses: Vec<Guess>,
    statistics: Statistics,
}

struct Speculation {
    drafter: Box<dyn Drafter>,
    most: usize,
    pace: Pace,
    /// Tokens of the text that the drafter knows.
    told: usize,
    /// Steps to go without guesses, and how many there will be the next time.
    pause: usize,
    next_pause: usize,
}

impl Steps {
    /// One token a step.
    pub fn new() -> Self {
        Self::default()
    }

    /// One token a step, and as many of `most` guesses as are expected to pay ([`MAX_GUESSES`] at most).
    pub fn speculating(drafter: Box<dyn Drafter>, most: usize) -> Self {
        let most = most.min(MAX_GUESSES);
        let speculation = Speculation { drafter, most, pace: Pace::default(), told: 0, pause: 0, next_pause: 1 };
        Self { speculation: Some(speculation), ..Self::default() }
    }

    /// What guessing brought so far; `None` without a drafter.
    pub fn statistics(&self) -> Option<Statistics> {
        self.speculation.as_ref().map(|_| self.statistics)
    }

    /// The next text is another one, and does not go on where the last one ended.
    pub fn clear(&mut self) {
        if let Some(speculation) = &mut self.speculation {
            speculation.drafter.clear();
            speculation.told = 0;
        }
    }

    /// Runs the tokens of `text` that are not in the session yet, chooses what follows, and appends it to `text`: one
    /// token or more, `most` at most, each given to `emit`, which may end the text there.
    ///
    /// From step to step a text only grows, at its end, unless [`clear`](Self::clear) is called. Afterwards all of it but
    /// the last token is in the session.
    ///
    /// # Errors
    /// As [`Session::append`] and [`Sampler::sample`]. What was chosen before stays in `text`.
    pub fn step<B>(
        &mut self,
        session: &mut Session,
        sampler: &mut Sampler,
        text: &mut Vec<u32>,
        most: usize,
        mut emit: impl FnMut(u32) -> ControlFlow<B>,
    ) -> Result<ControlFlow<B>, SessionError> {
        let start = session.position();
        self.ids.clear();
        self.ids.extend_from_slice(text.get(start..).unwrap_or_default());
        let n_new = self.ids.len();
        // A prompt is long enough by itself.
        let room = if n_new == 1 { (session.context() - start).min(most).saturating_sub(1) } else { 0 };
        let n_run = self.guess(text, room)?;
        self.ids.extend(self.guesses[..n_run].iter().map(|g| g.id));

        let began = Instant::now();
        let logits = session.append_last(&self.ids, n_run + 1)?;
        if let (Some(speculation), 1) = (&mut self.speculation, n_new) {
            speculation.pace.timed(n_run + 1, began.elapsed());
        }
        let (mut right, mut answer) = (0, Ok(ControlFlow::Continue(())));
        for row in 0..=n_run {
            let id = match sampler.sample(logits.row(row), text) {
                Ok(id) => id,
                Err(error) => {
                    answer = Err(error);
                    break;
                }
            };
            text.push(id);
            let is_right = self.learn(row, id);
            // A guess that did not run is learned from, and that is all.
            right += usize::from(is_right && row < n_run);
            if let ControlFlow::Break(end) = emit(id) {
                answer = Ok(ControlFlow::Break(end));
                break;
            }
            if !is_right {
                break;
            }
        }
        let known = (start + n_new + right).min(text.len().saturating_sub(1));
        // Sums of linear attention can be taken back by a whole step only: what was right of it runs again.
        session.rewind(match session.resume_point(known) {
            0 => session.resume_point(start),
            position => position,
        });
        if n_new == 1 {
            self.statistics.steps += 1;
            self.statistics.guessed += n_run;
            self.statistics.accepted += right;
        }
        answer
    }

    /// Makes guesses after `text`, for a step that has room for so many; how many of them are to be run. One more, that is
    /// not worth it, may follow those.
    fn guess(&mut self, text: &[u32], room: usize) -> Result<usize, SessionError> {
        self.guesses.clear();
        let Some(speculation) = &mut self.speculation else { return Ok(0) };
        let room = room.min(speculation.most);
        if speculation.pause > 0 || room == 0 {
            speculation.pause = speculation.pause.saturating_sub(1);
            return Ok(0);
        }
        let Speculation { drafter, pace, told, .. } = speculation;
        drafter.extend(text.get(*told..).unwrap_or_default());
        *told = text.len();
        let (mut plan, mut n_run) = (Plan::new(), 0);
        while n_run < room
            && let Some(guess) = drafter.guess()?
        {
            self.guesses.push(guess);
            if !plan.take(pace, guess.confidence, drafter.cost()) {
                break;
            }
            n_run += 1;
        }
        if n_run > 0 {
            speculation.next_pause = 1;
        } else if drafter.cost() > 0.0 {
            speculation.pause = speculation.next_pause;
            speculation.next_pause = (2 * speculation.next_pause).min(MOST_PAUSE);
        }
        Ok(n_run)
    }

    /// Compares guess `i` with what came; whether there was one, and it was right.
    fn learn(&mut self, i: usize, id: u32) -> bool {
        let (Some(speculation), Some(guess)) = (&mut self.speculation, self.guesses.get(i)) else { return false };
        let right = guess.id == id;
        speculation.pace.learn(guess.confidence, right);
        right
    }
}
