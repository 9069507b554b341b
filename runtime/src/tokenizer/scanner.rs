//! Cutting text where a pattern matches: a class for each character, and a table over classes.
//!
//! The converter compiles what a tokenizer searches for (the splitting expression, the added tokens)
//! to such tables, so a running model needs neither an expression compiler nor tables of Unicode:
//! they cost a hundred times the start of everything else, and other versions of them would give other ids.

use super::section::{Reader, Writer};

/// The state that no match goes on from.
pub const DEAD: u16 = 0;
/// The state before the first character.
pub const START: u16 = 1;
/// Accepted value of a run of spaces: unless it ends the text, it leaves its last character to what follows.
///
/// That is what `\s+(?!\S)|\s+` means at the end of a splitting expression; a plain table cannot look ahead.
pub const SPACES: u32 = u32::MAX;

/// Steps that scanning may take for each byte of text. Real tables take two or three; one made to go back and forth
/// over a long text is an error instead of a wait.
const STEPS_PER_BYTE: u64 = 256;

/// What a scanner is made of. The shape of `next` is `[states, n_classes]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScannerParts {
    /// First character of each range, ascending from 0; a range ends where the next one starts.
    pub starts: Vec<u32>,
    /// The class of each range.
    pub classes: Vec<u8>,
    /// Number of classes.
    pub n_classes: usize,
    /// The next state.
    pub next: Vec<u16>,
    /// For each state what has been matched when it is reached, 0 for nothing.
    pub accept: Vec<u32>,
}

impl ScannerParts {
    pub(super) fn write(&self, out: &mut Writer) {
        out.numbers([self.starts.len(), self.n_classes, self.accept.len()].map(|n| n as u32));
        out.numbers(self.starts.iter().copied());
        out.bytes(&self.classes);
        out.bytes(&self.next.iter().flat_map(|state| state.to_le_bytes()).collect::<Vec<_>>());
        out.numbers(self.accept.iter().copied());
    }
}

/// A checked scanner: every class and state is in range.
#[derive(Debug)]
pub(super) struct Scanner {
    parts: ScannerParts,
    ascii: [u8; 128],
}

/// A piece of text and what accepted it; 0 for what lies between matches.
type Piece<'t> = (&'t str, u32);

impl Scanner {
    /// Reads a scanner that accepts 0 and `allowed` values only; `None` for an empty one, which matches nothing.
    pub(super) fn read(from: &mut Reader, allowed: impl Fn(u32) -> bool) -> Result<Option<Self>, String> {
        let (n_ranges, n_classes, n_states) = (from.number()?, from.number()?, from.number()?);
        let (n_ranges, n_classes, n_states) = (n_ranges as usize, n_classes as usize, n_states as usize);
        if n_classes > 256 || n_states > 1 << 16 {
            return Err(format!("a scanner has {n_classes} classes and {n_states} states, at most 256 and 65536"));
        }
        let starts: Vec<u32> = from.numbers(n_ranges)?.view().iter().collect();
        let classes = from.bytes(n_ranges)?.to_vec();
        let next = from.bytes(n_classes * n_states * 2)?;
        let next: Vec<u16> = next.as_chunks().0.iter().map(|state| u16::from_le_bytes(*state)).collect();
        let accept: Vec<u32> = from.numbers(n_states)?.view().iter().collect();
        if n_states == 0 {
            return Ok(None);
        }
        if n_states < 2 || starts.first() != Some(&0) || !starts.is_sorted() {
            return Err(format!("a scanner has {n_states} states, and ranges that do not ascend from 0"));
        }
        if let Some(class) = classes.iter().find(|&&class| usize::from(class) >= n_classes) {
            return Err(format!("a scanner has class {class} of {n_classes}"));
        }
        if let Some(state) = next.iter().find(|&&state| usize::from(state) >= n_states) {
            return Err(format!("a scanner has state {state} of {n_states}"));
        }
        if let Some(value) = accept.iter().find(|&&value| value != 0 && !allowed(value)) {
            return Err(format!("a scanner accepts {value}, which means nothing"));
        }
        let mut scanner = Self { parts: ScannerParts { starts, classes, n_classes, next, accept }, ascii: [0; 128] };
        scanner.ascii = std::array::from_fn(|c| scanner.class_of_range(c as u32));
        Ok(Some(scanner))
    }

    fn class_of_range(&self, c: u32) -> u8 {
        let after = self.parts.starts.partition_point(|&start| start <= c);
        self.parts.classes[after - 1]
    }

    fn class(&self, c: char) -> u8 {
        match self.ascii.get(c as usize) {
            Some(&class) => class,
            None => self.class_of_range(c as u32),
        }
    }

    /// The match at the start of `text`: its length in bytes, and what accepted it.
    fn find(&self, text: &str, steps: &mut u64) -> Option<(usize, u32)> {
        let (mut state, mut found) = (START, None);
        for (i, c) in text.char_indices() {
            *steps += 1;
            let at = usize::from(state) * self.parts.n_classes + usize::from(self.class(c));
            state = self.parts.next[at];
            if state == DEAD {
                break;
            }
            let accept = self.parts.accept[usize::from(state)];
            if accept != 0 {
                found = Some((i + c.len_utf8(), accept));
            }
        }
        found
    }

    /// Cuts `text` into matches and what lies between them: each time the first place where one starts, and there what
    /// the table accepts last.
    pub(super) fn pieces<'t>(&self, text: &'t str) -> Pieces<'_, 't> {
        let steps = (text.len() as u64).saturating_mul(STEPS_PER_BYTE).saturating_add(1 << 16);
        Pieces { scanner: self, rest: text, found: None, steps: 0, most_steps: steps }
    }
}

/// See [`Scanner::pieces`].
pub(super) struct Pieces<'s, 't> {
    scanner: &'s Scanner,
    rest: &'t str,
    /// The match at the start of `rest`, found behind a gap that was handed out first.
    found: Option<(usize, u32)>,
    steps: u64,
    most_steps: u64,
}

impl<'t> Iterator for Pieces<'_, 't> {
    /// `Err` when the table goes back and forth too much.
    type Item = Result<Piece<'t>, String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let mut found = self.found.take();
        let mut gap = 0;
        while found.is_none() {
            let ahead = &self.rest[gap..];
            let Some(c) = ahead.chars().next() else { break };
            found = self.scanner.find(ahead, &mut self.steps);
            if self.steps > self.most_steps {
                let reason = format!("more than {STEPS_PER_BYTE} steps for each of {} bytes", ahead.len());
                self.rest = "";
                return Some(Err(reason));
            }
            if found.is_none() {
                gap += c.len_utf8();
            }
        }
        if gap > 0 {
            self.found = found;
            return Some(Ok((self.take(gap), 0)));
        }
        let (mut len, accept) = found?;
        if accept == SPACES && len < self.rest.len() {
            let last = self.rest[..len].chars().next_back().map_or(0, char::len_utf8);
            len = if last < len { len - last } else { len };
        }
        Some(Ok((self.take(len), accept)))
    }
}

impl<'t> Pieces<'_, 't> {
    fn take(&mut self, len: usize) -> &'t str {
        let (piece, rest) = self.rest.split_at(len);
        self.rest = rest;
        piece
    }
}
