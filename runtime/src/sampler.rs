//! Logits to one token id.
//!
//! The order is fixed: repeat penalty, temperature, top-k, top-p, min-p, draw. Each step sees what
//! the one before left. The same seed and the same logits give the same ids on every machine: the
//! exponential is `libm`'s, sums run in one fixed order in f64, equal logits are ordered by id, and
//! each token takes exactly one number from the generator.
//!
//! Nothing sorts the whole vocabulary: top-k gathers its candidates in one scan, and top-p without
//! top-k orders only as many as it keeps. Buffers are kept from token to token.

#![forbid(unsafe_code)]

use crate::error::{SamplerError, SessionError};
use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::{Rng, SeedableRng};
use std::cmp::Ordering;

/// How a token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerOptions {
    /// Logits are divided by it; 0 always takes the best token (the lowest id of equals).
    pub temperature: f32,
    /// Keep this many of the best tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the fewest best tokens whose probabilities sum to at least this; 1 keeps all
    /// (Holtzman et al. 2020, arXiv:1904.09751).
    pub top_p: f32,
    /// Keep tokens with at least this fraction of the best one's probability; 0 keeps all
    /// (Nguyen et al. 2024, arXiv:2407.01082).
    pub min_p: f32,
    /// Positive logits of recent tokens are divided by it, negative ones multiplied; 1 changes
    /// nothing (Keskar et al. 2019, arXiv:1909.05858). Applies at temperature 0 too.
    pub repeat_penalty: f32,
    /// How many of the latest tokens count as recent.
    pub repeat_last_n: usize,
    /// Start of the random numbers (PCG, O'Neill 2014).
    pub seed: u64,
}

impl Default for SamplerOptions {
    fn default() -> Self {
        Self { temperature: 0.8, top_k: 40, top_p: 0.95, min_p: 0.05, repeat_penalty: 1.0, repeat_last_n: 64, seed: 0 }
    }
}

impl SamplerOptions {
    /// Checks every value.
    ///
    /// # Errors
    /// The first that is out of range.
    pub fn validate(&self) -> Result<(), SamplerError> {
        let finite = |v: f32| v.is_finite();
        for (option, value, fits, expected) in [
            ("temperature", self.temperature, finite(self.temperature) && self.temperature >= 0.0, "0 or more"),
            ("top-p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "more than 0 and at most 1"),
            ("min-p", self.min_p, (0.0..=1.0).contains(&self.min_p), "0 to 1"),
            (
                "repeat-penalty",
                self.repeat_penalty,
                finite(self.repeat_penalty) && self.repeat_penalty > 0.0,
                "more than 0",
            ),
        ] {
            if !fits {
                return Err(SamplerError { option, value: value.to_string(), expected });
            }
        }
        Ok(())
    }
}

/// A token that may be drawn.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: u32,
    logit: f32,
    /// Probability relative to the best token's.
    weight: f32,
}

/// Best first; equals by id, so that the order is total and any algorithm sorts alike.
fn best_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// Chooses tokens. See the module for the order of its steps.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplerOptions,
    rng: Pcg64Mcg,
    draws: u64,
    penalized: Vec<f32>,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// A sampler at the start of its random numbers.
    ///
    /// # Errors
    /// When an option is out of range.
    pub fn new(options: SamplerOptions) -> Result<Self, SamplerError> {
        options.validate()?;
        let rng = Pcg64Mcg::seed_from_u64(options.seed);
        Ok(Self { options, rng, draws: 0, penalized: Vec::new(), candidates: Vec::new() })
    }

    /// The options it was made with.
    pub fn options(&self) -> &SamplerOptions {
        &self.options
    }

    /// How many random numbers were taken: one for each token, none at temperature 0.
    pub fn draws(&self) -> u64 {
        self.draws
    }

    /// Goes to the place where `draws` random numbers have been taken since it was made.
    pub fn set_draws(&mut self, draws: u64) {
        self.rng = Pcg64Mcg::seed_from_u64(self.options.seed);
        self.rng.advance(u128::from(draws));
        self.draws = draws;
    }

    /// The next token. `logits` is `[vocab_size]`; `recent` are the tokens so far, latest last.
    ///
    /// A logit of minus infinity is a token that is never taken.
    ///
    /// # Errors
    /// [`SessionError::NotFinite`] when a logit is NaN or plus infinity, or all are minus infinity.
    ///
    /// # Panics
    /// When `logits` is empty.
    pub fn sample(&mut self, logits: &[f32], recent: &[u32]) -> Result<u32, SessionError> {
        assert!(!logits.is_empty(), "logits of an empty vocabulary");
        if let Some(token) = first(logits, |l| l.is_nan() || l == f32::INFINITY) {
            return Err(SessionError::NotFinite { token, value: logits[token] });
        }
        let recent = &recent[recent.len().saturating_sub(self.options.repeat_last_n)..];
        if self.options.repeat_penalty == 1.0 || recent.is_empty() {
            return self.choose(logits);
        }
        let mut penalized = std::mem::take(&mut self.penalized);
        penalized.clear();
        penalized.extend_from_slice(logits);
        for &id in recent {
            // Computed from the original, so that a token that occurs twice is penalized once.
            if let (Some(to), Some(&from)) = (penalized.get_mut(id as usize), logits.get(id as usize)) {
                *to = penalize(from, self.options.repeat_penalty);
            }
        }
        let chosen = self.choose(&penalized);
        self.penalized = penalized;
        chosen
    }

    fn choose(&mut self, logits: &[f32]) -> Result<u32, SessionError> {
        let best = best_of(logits);
        let best_logit = logits[best];
        if best_logit == f32::NEG_INFINITY {
            return Err(SessionError::NotFinite { token: best, value: best_logit });
        }
        if self.options.temperature == 0.0 {
            return Ok(best as u32);
        }
        let sorted = self.options.top_k > 0;
        if sorted {
            self.gather_top_k(logits);
        } else {
            self.gather_all(logits);
        }
        for candidate in &mut self.candidates {
            candidate.weight = libm::expf((candidate.logit - best_logit) / self.options.temperature);
        }
        // Both cuts keep the best tokens, so cutting at min-p first leaves the same ones and
        // saves sorting. Top-p refers to the sum before that cut.
        let total = self.total();
        self.candidates.retain(|c| c.weight >= self.options.min_p);
        if self.options.top_p < 1.0 {
            self.cut_at_top_p(total, sorted);
        }
        Ok(self.draw())
    }

    fn gather_all(&mut self, logits: &[f32]) {
        self.candidates.clear();
        self.candidates.extend(logits.iter().enumerate().map(|(id, &logit)| Candidate {
            id: id as u32,
            logit,
            weight: 0.0,
        }));
    }

    /// The best `top_k` tokens, best first, in one scan: whatever is not above the worst of `top_k`
    /// already seen is passed over, and the gathered ones are cut back when they have doubled.
    fn gather_top_k(&mut self, logits: &[f32]) {
        let k = self.options.top_k.min(logits.len());
        let most = (2 * k).max(256);
        self.candidates.clear();
        let mut bar = f32::NEG_INFINITY;
        for (id, &logit) in logits.iter().enumerate() {
            // An equal logit with a higher id is not better.
            if logit > bar || self.candidates.len() < k {
                self.candidates.push(Candidate { id: id as u32, logit, weight: 0.0 });
                if self.candidates.len() == most {
                    self.keep_best(k);
                    bar = self.candidates[k - 1].logit;
                }
            }
        }
        self.keep_best(k);
        self.candidates.sort_unstable_by(best_first);
    }

    /// Cuts back to the best `k`; the worst of them is last.
    fn keep_best(&mut self, k: usize) {
        if self.candidates.len() > k {
            self.candidates.select_nth_unstable_by(k - 1, best_first);
            self.candidates.truncate(k);
        }
    }

    fn total(&self) -> f64 {
        self.candidates.iter().map(|c| f64::from(c.weight)).sum()
    }

    /// Keeps the fewest best tokens with at least `top_p` of `total`. Orders what it must look at.
    fn cut_at_top_p(&mut self, total: f64, sorted: bool) {
        let goal = f64::from(self.options.top_p) * total;
        let len = self.candidates.len();
        let mut ordered = if sorted { len } else { 0 };
        let mut sum = 0.0;
        for n in 0..len {
            if n == ordered {
                ordered = (n * 4).clamp(256.min(len), len);
                let rest = &mut self.candidates[n..];
                if ordered < len {
                    rest.select_nth_unstable_by(ordered - n, best_first);
                }
                rest[..ordered - n].sort_unstable_by(best_first);
            }
            sum += f64::from(self.candidates[n].weight);
            if sum >= goal {
                self.candidates.truncate(n + 1);
                return;
            }
        }
        // The rest fell to min-p. All were looked at, so they are in order.
    }

    /// Draws one of the candidates by weight. The best one is always among them, so the sum is
    /// at least 1.
    fn draw(&mut self) -> u32 {
        self.draws += 1;
        // 53 random bits: every f64 step of [0, 1).
        let unit = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let goal = unit * self.total();
        let mut sum = 0.0;
        let mut last = 0;
        for candidate in self.candidates.iter().filter(|c| c.weight > 0.0) {
            sum += f64::from(candidate.weight);
            last = candidate.id;
            if sum > goal {
                break;
            }
        }
        last
    }
}

/// Values that are looked at together: as many as vectors of any processor hold.
const TOGETHER: usize = 64;

/// The first logit that `fits`.
fn first(logits: &[f32], fits: impl Fn(f32) -> bool) -> Option<usize> {
    // No early end within a chunk, which is three times as fast.
    let some = |chunk: &[f32]| chunk.iter().map(|&l| u32::from(fits(l))).sum::<u32>() > 0;
    let start = logits.chunks(TOGETHER).position(some)? * TOGETHER;
    logits[start..].iter().position(|&l| fits(l)).map(|i| start + i)
}

/// Index of the largest value, the first of equals. NaN is nowhere, as `sample` has checked.
fn best_of(logits: &[f32]) -> usize {
    let mut most = [f32::NEG_INFINITY; TOGETHER];
    for chunk in logits.chunks(TOGETHER) {
        for (most, &logit) in most.iter_mut().zip(chunk) {
            *most = if logit > *most { logit } else { *most };
        }
    }
    let largest = most.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
    first(logits, |l| l == largest).unwrap_or(0)
}

fn penalize(logit: f32, penalty: f32) -> f32 {
    let changed = if logit > 0.0 { logit / penalty } else { logit * penalty };
    // A penalty below 1 may reach infinity, which would no longer have a probability.
    if logit == f32::NEG_INFINITY { logit } else { changed.clamp(f32::MIN, f32::MAX) }
}

#[cfg(test)]
mod tests;
