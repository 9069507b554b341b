//! Stop texts, matched over streamed text: a match may span any number of pieces.

/// Passes text on until a stop text appears; what may be the start of one is held back.
#[derive(Debug)]
pub(crate) struct StopMatcher<'a> {
    stops: &'a [String],
    held: String,
}

/// What [`StopMatcher::push`] found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Passed {
    /// Text to print.
    pub(crate) text: String,
    /// Whether a stop text follows it.
    pub(crate) stopped: bool,
}

impl<'a> StopMatcher<'a> {
    /// A matcher for `stops`, none of which is empty.
    pub(crate) fn new(stops: &'a [String]) -> Self {
        Self { stops, held: String::new() }
    }

    /// Takes a piece of text.
    pub(crate) fn push(&mut self, piece: &str) -> Passed {
        self.held.push_str(piece);
        // The text that is complete first decides, so that the result does not depend on the pieces.
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str()).map(|at| (at + stop.len(), at)));
        if let Some((_, at)) = found.min() {
            self.held.truncate(at);
            return Passed { text: std::mem::take(&mut self.held), stopped: true };
        }
        let rest = self.held.split_off(self.held.len() - self.undecided());
        Passed { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// What is held back at the end of the text.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end of what is held that may be the start of a stop text.
    fn undecided(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let earliest = self.held.len().saturating_sub(longest);
        (earliest..self.held.len())
            .filter(|&at| self.held.is_char_boundary(at))
            .find(|&at| self.stops.iter().any(|stop| stop.starts_with(&self.held[at..])))
            .map_or(0, |at| self.held.len() - at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stops(list: &[&str]) -> Vec<String> {
        list.iter().map(|&s| s.to_owned()).collect()
    }

    #[test]
    fn finds_a_text_across_pieces() {
        let stops = stops(&["END"]);
        let mut matcher = StopMatcher::new(&stops);
        assert_eq!(matcher.push("the E"), Passed { text: "the ".into(), stopped: false });
        assert_eq!(matcher.push("N"), Passed { text: String::new(), stopped: false });
        assert_eq!(matcher.push("D of"), Passed { text: String::new(), stopped: true });
    }

    #[test]
    fn lets_go_of_what_is_no_match() {
        let stops = stops(&["aab"]);
        let mut matcher = StopMatcher::new(&stops);
        assert_eq!(matcher.push("aaa"), Passed { text: "a".into(), stopped: false });
        assert_eq!(matcher.push("c"), Passed { text: "aac".into(), stopped: false });
        assert_eq!(matcher.push("aa"), Passed { text: String::new(), stopped: false });
        assert_eq!(matcher.finish(), "aa");
    }

    #[test]
    fn the_match_that_ends_first_wins() {
        let stops = stops(&["late", "e l"]);
        let mut matcher = StopMatcher::new(&stops);
        assert_eq!(matcher.push("the late one"), Passed { text: "th".into(), stopped: true });
    }

    #[test]
    fn without_stop_texts_all_passes() {
        let mut matcher = StopMatcher::new(&[]);
        assert_eq!(matcher.push("é"), Passed { text: "é".into(), stopped: false });
        assert_eq!(matcher.finish(), "");
    }

    /// Every way to cut a text into two or three pieces gives the same result.
    #[test]
    fn pieces_do_not_matter() {
        let text = "aéababéabab!é";
        for list in [&["ab!"][..], &["éab", "!é"], &["babé"], &["zzz"], &["é", "a"], &["abab!", "ba"]] {
            let stops = stops(list);
            let ends = list.iter().filter_map(|s| text.find(s).map(|at| (at + s.len(), at)));
            let expected = ends.min().map_or(text.len(), |(_, at)| at);
            let cuts: Vec<_> = (0..=text.len()).filter(|&i| text.is_char_boundary(i)).collect();
            for &first in &cuts {
                for &second in cuts.iter().filter(|&&c| c >= first) {
                    let mut matcher = StopMatcher::new(&stops);
                    let mut found = String::new();
                    let mut stopped = false;
                    for piece in [&text[..first], &text[first..second], &text[second..]] {
                        if !stopped {
                            let passed = matcher.push(piece);
                            found.push_str(&passed.text);
                            stopped = passed.stopped;
                        }
                    }
                    if !stopped {
                        found.push_str(&matcher.finish());
                    }
                    assert_eq!((found.as_str(), stopped), (&text[..expected], expected < text.len()), "{list:?}");
                }
            }
        }
    }
}
