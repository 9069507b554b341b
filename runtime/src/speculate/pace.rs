//! How many guesses a step runs: as many as it expects to pay for.
//!
//! A guess costs the time that one more token adds to a step, and brings a token when it and all before it are right. How
//! often guesses are right is learned from the text at hand, separately for each grade of confidence. One that is not
//! worth running is compared all the same with what the model then says: a text that begins to repeat itself is noticed
//! without paying for it, and one that does not costs next to nothing.
//!
//! The time of a token is measured on the way, because it depends on the machine, the threads and the type: 0.05 steps of one
//! token in `q8`, where reading takes longest, and 0.3 in `q4` on two threads. What is written does not depend on it.

use std::time::Duration;

/// Time that one more token adds to a step, in steps of one token, before anything is known; and the least and the most
/// that is believed.
const TOKEN_COST: f32 = 0.15;
const TOKEN_COSTS: [f32; 2] = [0.02, 0.4];

/// Grades of confidence.
const GRADES: usize = 8;

/// Weight of the newest answer in the rate of its grade.
const NEWEST: f32 = 0.125;

/// What is known about the guesses of a drafter.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    /// How often guesses of each grade were right.
    rates: [f32; GRADES],
    /// Seconds of a step of one token, once there was one.
    one: Option<f32>,
    /// Time that one more token adds, in these.
    token: f32,
}

impl Default for Pace {
    fn default() -> Self {
        // The confidence itself, before anything is known.
        let rates = std::array::from_fn(|grade| (grade as f32 + 0.5) / GRADES as f32);
        Self { rates, one: None, token: TOKEN_COST }
    }
}

fn grade(confidence: f32) -> usize {
    // A NaN becomes 0.
    ((confidence * GRADES as f32) as usize).min(GRADES - 1)
}

impl Pace {
    /// Takes note of whether a guess was right.
    pub(super) fn learn(&mut self, confidence: f32, right: bool) {
        let rate = &mut self.rates[grade(confidence)];
        *rate += (f32::from(u8::from(right)) - *rate) * NEWEST;
    }

    /// Takes note of how long a step of so many tokens took.
    pub(super) fn timed(&mut self, n_tokens: usize, time: Duration) {
        let time = time.as_secs_f32();
        match (n_tokens, self.one.filter(|&one| one > 0.0)) {
            (0 | 1, None) => self.one = Some(time),
            // One that was interrupted would make guesses look free for long.
            (0 | 1, Some(one)) => self.one = Some(one + (time.min(2.0 * one) - one) * NEWEST),
            (_, None) => {}
            (_, Some(one)) => {
                let token = (time / one - 1.0) / (n_tokens - 1) as f32;
                self.token += (token.clamp(TOKEN_COSTS[0], TOKEN_COSTS[1]) - self.token) * NEWEST;
            }
        }
    }
}

/// A step that is being put together.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Tokens it will bring, and the time it takes in steps of one token.
    tokens: f32,
    time: f32,
    /// How likely all guesses so far are right.
    chance: f32,
}

impl Plan {
    pub(super) fn new() -> Self {
        Self { tokens: 1.0, time: 1.0, chance: 1.0 }
    }

    /// Adds a guess that took `cost` to make if it raises the tokens per time.
    pub(super) fn take(&mut self, pace: &Pace, confidence: f32, cost: f32) -> bool {
        let chance = self.chance * pace.rates[grade(confidence)];
        let worth = chance * self.time > self.tokens * (pace.token + cost);
        self.time += cost;
        if worth {
            (self.tokens, self.time, self.chance) = (self.tokens + chance, self.time + pace.token, chance);
        }
        worth
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guesses taken of as many as are offered.
    fn taken(pace: &Pace, confidence: f32, cost: f32) -> usize {
        let mut plan = Plan::new();
        (0..100).take_while(|_| plan.take(pace, confidence, cost)).count()
    }

    #[test]
    fn guesses_that_are_right_become_more_and_others_none() {
        let mut pace = Pace::default();
        let first = taken(&pace, 0.5, 0.0);
        assert!(first > 0);
        for _ in 0..40 {
            pace.learn(0.5, false);
        }
        assert_eq!(taken(&pace, 0.5, 0.0), 0, "never right");
        assert!(taken(&pace, 0.9, 0.0) > first, "another grade is not to blame");
        for _ in 0..40 {
            pace.learn(0.5, true);
        }
        assert!(taken(&pace, 0.5, 0.0) > 2 * first, "always right");
    }

    #[test]
    fn guesses_that_cost_more_are_fewer() {
        let pace = Pace::default();
        let counts = [0.0, 0.1, 0.3, 1.0].map(|cost| taken(&pace, 0.9, cost));
        assert!(counts.is_sorted_by(|a, b| a > b) && counts[3] == 0, "{counts:?}");
    }

    #[test]
    fn guesses_are_fewer_where_tokens_take_longer() {
        let count = |micros: &[(usize, u64)]| {
            let mut pace = Pace::default();
            for &(n, micros) in micros.iter().cycle().take(100) {
                pace.timed(n, Duration::from_micros(micros));
            }
            taken(&pace, 0.9, 0.0)
        };
        let counts = [&[(1, 100), (8, 120)], &[(1, 100), (8, 200)], &[(1, 100), (8, 300)]].map(|steps| count(steps));
        assert!(counts.is_sorted_by(|a, b| a > b) && counts[2] > 0, "{counts:?}");
        // Neither clocks that stand still nor steps that were interrupted.
        assert!(count(&[(1, 0), (8, 0)]) > 0);
        assert!(count(&[(1, 100), (8, 1_000_000)]) > 0);
        let mut interrupted = [(1, 100), (8, 300)].repeat(20);
        let usual = count(&interrupted);
        interrupted[20].1 = 100_000;
        assert_eq!(count(&interrupted), usual);
    }

    #[test]
    fn any_confidence_has_a_grade() {
        let grades = [f32::NAN, -1.0, 0.0, 0.5, 1.0, f32::INFINITY].map(grade);
        assert_eq!(grades, [0, 0, 0, 4, 7, 7]);
    }
}
