//! Guesses from the text itself: where its last tokens stood before, it may go on in the same way (prompt lookup; Saxena
//! 2023, github.com/apoorvumang/prompt-lookup-decoding; Leviathan et al. 2023, arXiv:2211.17192, for why guesses pay).
//!
//! The text is indexed by pairs of tokens as LZ77 compressors index by bytes: a map from each pair to where it stood last,
//! and from each place to the one before. A new token costs one insertion; a guess looks at a bounded number of places.

use super::{Drafter, Guess};
use crate::error::SessionError;
use std::collections::HashMap;

/// Places that are compared for the longest match.
const PLACES: usize = 16;

/// Longer matches are as good.
const LONGEST: usize = 32;

/// No such place.
const NOWHERE: u32 = u32::MAX;

/// An index of the text so far, and the guesses made since its last token.
#[derive(Clone, Debug, Default)]
pub struct Lookup {
    text: Vec<u32>,
    /// Where each pair of tokens ended last.
    last: HashMap<[u32; 2], u32>,
    /// Where the pair that ends at a place ended before.
    before: Vec<u32>,
    /// Where the text goes on like here, and over how many tokens the two agree; 0 when nowhere.
    source: usize,
    agreed: usize,
    /// Guesses made from there.
    guessed: Vec<u32>,
}

impl Lookup {
    /// An empty text.
    pub fn new() -> Self {
        Self::default()
    }

    /// The place whose tokens agree longest with the last ones; of equals the latest.
    fn longest_match(&self) -> (usize, usize) {
        let (mut best, mut longest) = (0, 0);
        let Some(&first) = self.before.last() else { return (0, 0) };
        let mut place = first;
        for _ in 0..PLACES {
            if place == NOWHERE {
                break;
            }
            let end = place as usize + 1;
            let pairs = self.text[..end].iter().rev().zip(self.text.iter().rev());
            let agreed = pairs.take(LONGEST).take_while(|(a, b)| a == b).count();
            if agreed > longest {
                (best, longest) = (end, agreed);
            }
            if longest == LONGEST {
                break;
            }
            place = self.before[place as usize];
        }
        (best, longest)
    }
}

impl Drafter for Lookup {
    fn extend(&mut self, new: &[u32]) {
        for &id in new {
            let place = self.text.len();
            let earlier = self.text.last().and_then(|&previous| {
                // A text is far shorter than 2^32 tokens: its context is.
                self.last.insert([previous, id], place as u32)
            });
            self.text.push(id);
            self.before.push(earlier.unwrap_or(NOWHERE));
        }
        self.guessed.clear();
        (self.source, self.agreed) = self.longest_match();
    }

    fn guess(&mut self) -> Result<Option<Guess>, SessionError> {
        if self.agreed == 0 {
            return Ok(None);
        }
        let at = self.source + self.guessed.len();
        // A match that reaches the end goes on with the guesses themselves: the text runs in a circle.
        let id = self.text.get(at).copied().unwrap_or_else(|| self.guessed[at - self.text.len()]);
        self.guessed.push(id);
        let agreed = (self.agreed + self.guessed.len() - 1) as f32;
        Ok(Some(Guess { id, confidence: agreed / (agreed + 4.0) }))
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guesses(lookup: &mut Lookup, n: usize) -> Vec<u32> {
        (0..n).map_while(|_| lookup.guess().unwrap()).map(|g| g.id).collect()
    }

    fn lookup(text: &[u32]) -> Lookup {
        let mut lookup = Lookup::new();
        lookup.extend(text);
        lookup
    }

    #[test]
    fn goes_on_as_the_text_did_before() {
        assert_eq!(guesses(&mut lookup(&[1, 2, 3, 4, 5, 9, 2, 3]), 4), [4, 5, 9, 2]);
        assert_eq!(guesses(&mut lookup(&[1, 2, 3, 4]), 4), [] as [u32; 0]);
        assert_eq!(guesses(&mut lookup(&[]), 1), [] as [u32; 0]);
        assert_eq!(guesses(&mut lookup(&[7]), 1), [] as [u32; 0]);
        assert_eq!(guesses(&mut lookup(&[7, 8, 7]), 1), [] as [u32; 0], "one token is no match");
    }

    #[test]
    fn a_longer_match_wins_over_a_later_one() {
        assert_eq!(guesses(&mut lookup(&[1, 2, 3, 10, 5, 2, 3, 20, 1, 2, 3]), 1), [10]);
        assert_eq!(guesses(&mut lookup(&[1, 2, 10, 1, 2, 20, 1, 2]), 1), [20], "of equals the later");
    }

    #[test]
    fn a_circle_goes_on_for_ever() {
        assert_eq!(guesses(&mut lookup(&[1, 2, 3, 1, 2, 3, 1, 2]), 7), [3, 1, 2, 3, 1, 2, 3]);
        assert_eq!(guesses(&mut lookup(&[5, 5, 5]), 4), [5, 5, 5, 5]);
    }

    #[test]
    fn pieces_are_indexed_like_the_whole() {
        let text: Vec<u32> = (0..300u32).map(|i| i * i % 13 % 7).collect();
        let mut pieces = Lookup::new();
        for (i, id) in text.iter().enumerate() {
            pieces.extend(&[*id]);
            assert_eq!(guesses(&mut pieces, 5), guesses(&mut lookup(&text[..=i]), 5), "after {i} tokens");
        }
        pieces.clear();
        pieces.extend(&[1, 2, 3, 1, 2]);
        assert_eq!(guesses(&mut pieces, 1), [3], "nothing of the old text is left");
    }

    #[test]
    fn confidence_grows_with_the_match() {
        let mut lookup = lookup(&[1, 2, 3, 4, 5, 1, 2]);
        let chances: Vec<f32> = (0..3).filter_map(|_| lookup.guess().unwrap()).map(|g| g.confidence).collect();
        assert!(chances.len() == 3 && chances.is_sorted_by(|a, b| a < b), "{chances:?}");
    }
}
