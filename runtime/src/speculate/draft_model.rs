//! Guesses from a smaller model with the same vocabulary (Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023,
//! arXiv:2302.01318): its best token, whatever the sampler of the larger one.

use super::{Drafter, Guess};
use crate::error::{DraftError, SessionError};
use crate::model::Model;
use crate::session::{Session, SessionOptions};

/// A session of the smaller model that follows the text.
pub struct DraftModel {
    session: Session,
    cost: f32,
    text: Vec<u32>,
    /// Tokens in the session's cache: those of the text, then guesses.
    cached: Vec<u32>,
    /// The last guess since the text grew.
    last: Option<u32>,
}

impl DraftModel {
    /// Guesses for `target`, made by `draft` in a session with these options.
    ///
    /// # Errors
    /// When the two models have not the same tokens, or the session cannot be made.
    pub fn new(draft: &Model, options: &SessionOptions, target: &Model) -> Result<Self, DraftError> {
        if draft.encoder().is_some() {
            return Err(DraftError::Encoder { draft: draft.file().path().to_owned() });
        }
        check_same_tokens(draft, target)?;
        let session = Session::new(draft, options)?;
        // Both read about their whole file for a token; where the target has an encoder, it reads less, and guesses are taken for
        // cheaper than they are.
        let cost = draft.file().len() as f32 / target.file().len() as f32;
        Ok(Self { session, cost, text: Vec::new(), cached: Vec::new(), last: None })
    }

    /// Forgets guesses that were wrong, and appends what is new in the text to the tokens in the cache, without running
    /// it; from where on that is. At least the last token is to be run, because its logits are wanted.
    fn follow(&mut self) -> usize {
        let right = self.cached.iter().zip(&self.text).take_while(|(a, b)| a == b).count();
        let right = self.session.resume_point(right.min(self.text.len().saturating_sub(1)));
        self.session.rewind(right);
        self.cached.truncate(right);
        self.cached.extend_from_slice(&self.text[right..]);
        right
    }
}

/// A guess is a token id, so an id must mean the same to both.
fn check_same_tokens(draft: &Model, target: &Model) -> Result<(), DraftError> {
    let (draft, target) = (draft.file(), target.file());
    let (draft_size, size) = (draft.spec().vocab_size, target.spec().vocab_size);
    if draft_size != size {
        let (draft, target) = (draft.path().to_owned(), target.path().to_owned());
        return Err(DraftError::Vocabulary { draft, draft_size, target, target_size: size });
    }
    match (draft.tokenizer(), target.tokenizer()) {
        (Some((form, a)), Some((other_form, b))) if form != other_form || a[..] != b[..] => {
            Err(DraftError::Tokenizer { draft: draft.path().to_owned(), target: target.path().to_owned(), size })
        }
        // Without a tokenizer nothing is known of the tokens, and wrong guesses only cost time.
        _ => Ok(()),
    }
}

impl Drafter for DraftModel {
    fn extend(&mut self, new: &[u32]) {
        self.text.extend_from_slice(new);
        self.last = None;
    }

    fn guess(&mut self) -> Result<Option<Guess>, SessionError> {
        let from = match self.last {
            None => self.follow(),
            Some(id) => {
                self.cached.push(id);
                self.cached.len() - 1
            }
        };
        // This model's context may be shorter than the other's.
        if self.text.is_empty() || self.cached.len() > self.session.context() {
            self.cached.truncate(from);
            return Ok(None);
        }
        let kernels = self.session.kernels();
        let logits = match self.session.append(&self.cached[from..]) {
            Ok(logits) => logits,
            Err(error) => {
                self.cached.truncate(self.session.position());
                return Err(error);
            }
        };
        let (best, logit) = logits
            .iter()
            .copied()
            .enumerate()
            .fold((0, f32::NEG_INFINITY), |best, (id, logit)| if logit > best.1 { (id, logit) } else { best });
        let confidence = (f64::from(logit) - kernels.log_sum_exp(logits)).exp() as f32;
        self.last = Some(best as u32);
        Ok(Some(Guess { id: best as u32, confidence }))
    }

    fn clear(&mut self) {
        self.session.rewind(0);
        self.text.clear();
        self.cached.clear();
        self.last = None;
    }

    fn cost(&self) -> f32 {
        self.cost
    }
}
