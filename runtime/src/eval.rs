//! How well a model predicts a text.

#![forbid(unsafe_code)]

use crate::error::{EvalError, SessionError};
use crate::kernels::Kernels;
use crate::session::Session;

/// Perplexity of a text, and what it was made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Perplexity {
    /// `exp(total_nll / scored_tokens)`.
    pub perplexity: f64,
    /// Sum of the negative log-likelihoods (natural logarithm) of all scored tokens.
    pub total_nll: f64,
    /// Tokens scored: all but the first of each window.
    pub scored_tokens: usize,
    /// Tokens of the text.
    pub tokens: usize,
    /// Tokens of a window.
    pub window: usize,
}

/// Perplexity over consecutive windows of `window` tokens that do not overlap (the last may be shorter).
///
/// Each window runs alone from position 0, and every token but its first is scored: its negative log-likelihood is
/// `-log softmax(logits)[id]`, summed in f64. `progress` gets the tokens done after each window.
///
/// # Errors
/// When there is nothing to score, the window is too short or does not fit the session's context, or the session fails.
pub fn perplexity(
    session: &mut Session,
    ids: &[u32],
    window: usize,
    mut progress: impl FnMut(usize),
) -> Result<Perplexity, EvalError> {
    if ids.len() < 2 {
        return Err(EvalError::TooShort { tokens: ids.len() });
    }
    // The last token of a window is scored but not run.
    let most = session.context().saturating_add(1);
    if window < 2 || window > most {
        return Err(EvalError::Window { window, most });
    }
    let kernels = session.kernels();
    let (mut total_nll, mut scored_tokens, mut done) = (0.0, 0, 0);
    for ids in ids.chunks(window) {
        if ids.len() > 1 {
            session.rewind(0);
            let mut not_finite = None;
            session.append_each(&ids[..ids.len() - 1], |i, logits| match nll(kernels, logits, ids[i + 1]) {
                Ok(nll) => total_nll += nll,
                Err(e) => not_finite = Some(e),
            })?;
            if let Some(error) = not_finite {
                return Err(error.into());
            }
            scored_tokens += ids.len() - 1;
        }
        done += ids.len();
        progress(done);
    }
    let perplexity = (total_nll / scored_tokens as f64).exp();
    Ok(Perplexity { perplexity, total_nll, scored_tokens, tokens: ids.len(), window })
}

/// Negative log-likelihood of `id`.
fn nll(kernels: Kernels, logits: &[f32], id: u32) -> Result<f64, SessionError> {
    let nll = kernels.log_sum_exp(logits) - f64::from(logits[id as usize]);
    // A NaN can hide from the sum, but not from a look at each.
    match logits.iter().position(|v| !v.is_finite()) {
        None if nll.is_finite() => Ok(nll),
        at => {
            let token = at.unwrap_or(id as usize);
            Err(SessionError::NotFinite { token, value: logits[token] })
        }
    }
}
