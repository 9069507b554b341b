//! Compiling what a tokenizer searches for to the runtime's scanners: a class for each character, and a table over classes.
//!
//! An expression over Unicode classes has some hundred thousand transitions over bytes, but few over the classes of
//! characters that it tells apart. So characters are classed first, the expression is rewritten over "bytes" that are class
//! numbers, and `regex-automata` makes that deterministic.

use regex_automata::Anchored;
use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::nfa::thompson;
use regex_automata::util::primitives::StateID;
use regex_syntax::hir::{Capture, Class, ClassBytes, ClassBytesRange, Hir, HirKind, Repetition};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use tidbit_runtime::tokenizer::scanner::{DEAD, SPACES, START, ScannerParts};

/// How every splitting expression of the GPT-2 kind ends: a run of spaces leaves its last one to the word that follows. The
/// look-ahead is no regular language, so the runtime knows it as [`SPACES`].
const SPACES_END: &str = r"|\s+(?!\S)|\s+";

/// Characters, as ranges that include both ends.
type Set = Vec<(u32, u32)>;

/// Compiles an expression. `Err` says what it has that a table cannot do.
pub(super) fn from_regex(expression: &str) -> Result<ScannerParts, String> {
    let parse = |part: &str| {
        let hir = regex_syntax::parse(part).map_err(|_| format!("the expression {part:?} looks around"))?;
        let properties = hir.properties();
        if !properties.look_set().is_empty() || properties.minimum_len().is_none_or(|len| len == 0) {
            return Err(format!("the expression {part:?} looks around, or matches nothing at all"));
        }
        Ok(hir)
    };
    let patterns = match expression.strip_suffix(SPACES_END) {
        Some(main) => vec![parse(main)?, parse(r"\s+")?],
        None => vec![parse(expression)?],
    };
    let mut sets = BTreeSet::new();
    for pattern in &patterns {
        collect_sets(pattern, &mut sets)?;
    }
    let alphabet = Alphabet::new(sets.into_iter().collect())?;
    let patterns = patterns.iter().map(|hir| alphabet.rewrite(hir)).collect::<Result<Vec<_>, _>>()?;
    let (next, accept) = determinize(&patterns, alphabet.n_classes).map_err(|e| format!("{expression:?}: {e}"))?;
    Ok(ScannerParts { starts: alphabet.starts, classes: alphabet.classes, n_classes: alphabet.n_classes, next, accept })
}

/// A scanner of the characters that `is` holds for: each by itself, or runs of them.
pub(super) fn from_characters(is: impl Fn(char) -> bool, runs: bool) -> ScannerParts {
    let mut parts = ScannerParts { n_classes: 2, ..ScannerParts::default() };
    for c in '\0'..=char::MAX {
        let class = u8::from(is(c));
        if parts.classes.last() != Some(&class) {
            parts.starts.push(c as u32);
            parts.classes.push(class);
        }
    }
    let again = if runs { START + 1 } else { DEAD };
    parts.next = vec![DEAD, DEAD, DEAD, START + 1, DEAD, again];
    parts.accept = vec![0, 0, 1];
    parts
}

/// A scanner of words, the longest first, each with the value it accepts.
pub(super) fn from_words(words: &[(String, u32)]) -> Result<ScannerParts, String> {
    if words.is_empty() {
        return Ok(ScannerParts::default());
    }
    let letters: BTreeSet<char> = words.iter().flat_map(|(word, _)| word.chars()).collect();
    let sets = letters.iter().map(|&c| vec![(c as u32, c as u32)]).collect();
    let alphabet = Alphabet::new(sets)?;
    let mut states = vec![(BTreeMap::new(), 0), (BTreeMap::new(), 0)];
    for (word, value) in words {
        let mut state = usize::from(START);
        for c in word.chars() {
            let (class, n) = (alphabet.class(c as u32), states.len());
            state = *states[state].0.entry(class).or_insert(n);
            if state == n {
                states.push((BTreeMap::new(), 0));
            }
        }
        states[state].1 = *value;
    }
    if states.len() > 1 << 16 {
        return Err(format!("the added tokens need {} states, at most 65536", states.len()));
    }
    let mut next = vec![DEAD; states.len() * alphabet.n_classes];
    for (i, (edges, _)) in states.iter().enumerate() {
        for (&class, &to) in edges {
            next[i * alphabet.n_classes + usize::from(class)] = to as u16;
        }
    }
    let accept = states.iter().map(|state| state.1).collect();
    Ok(ScannerParts { starts: alphabet.starts, classes: alphabet.classes, n_classes: alphabet.n_classes, next, accept })
}

/// The sets of characters that an expression names, literals one by one.
fn collect_sets(hir: &Hir, sets: &mut BTreeSet<Set>) -> Result<(), String> {
    match hir.kind() {
        HirKind::Literal(literal) => sets.extend(letters(&literal.0)?.map(|c| vec![(c, c)])),
        HirKind::Class(class) => drop(sets.insert(ranges(class)?)),
        HirKind::Empty | HirKind::Look(_) => {}
        HirKind::Repetition(Repetition { sub, .. }) | HirKind::Capture(Capture { sub, .. }) => collect_sets(sub, sets)?,
        HirKind::Concat(subs) | HirKind::Alternation(subs) => {
            subs.iter().try_for_each(|sub| collect_sets(sub, sets))?;
        }
    }
    Ok(())
}

fn letters(literal: &[u8]) -> Result<impl Iterator<Item = u32>, String> {
    let text = std::str::from_utf8(literal).map_err(|_| "the expression matches bytes, not characters".to_string())?;
    Ok(text.chars().map(|c| c as u32))
}

fn ranges(class: &Class) -> Result<Set, String> {
    match class {
        Class::Unicode(class) => Ok(class.ranges().iter().map(|r| (r.start() as u32, r.end() as u32)).collect()),
        Class::Bytes(_) => Err("the expression matches bytes, not characters".into()),
    }
}

/// Characters in classes: two are in the same when they are in the same sets.
struct Alphabet {
    starts: Vec<u32>,
    classes: Vec<u8>,
    n_classes: usize,
    /// The classes that each set is made of.
    classes_of: HashMap<Set, Vec<u8>>,
}

impl Alphabet {
    fn new(sets: Vec<Set>) -> Result<Self, String> {
        let edges: BTreeSet<u32> =
            sets.iter().flatten().flat_map(|&(start, end)| [start, end + 1]).chain([0]).collect();
        let mut known: HashMap<Vec<bool>, u8> = HashMap::new();
        let (mut starts, mut classes) = (Vec::new(), Vec::new());
        for start in edges.into_iter().filter(|&start| start <= char::MAX as u32) {
            let within = |set: &Set| {
                let after = set.partition_point(|range| range.0 <= start);
                after > 0 && set[after - 1].1 >= start
            };
            let member: Vec<bool> = sets.iter().map(within).collect();
            let n = known.len();
            let class = match known.get(&member) {
                Some(&class) => class,
                None => *known
                    .entry(member)
                    .or_insert(u8::try_from(n).map_err(|_| "more than 256 classes of characters".to_string())?),
            };
            if classes.last() != Some(&class) {
                starts.push(start);
                classes.push(class);
            }
        }
        let classes_of = sets.into_iter().enumerate().map(|(i, set)| {
            let mut of: Vec<u8> = known.iter().filter(|(member, _)| member[i]).map(|(_, &class)| class).collect();
            of.sort_unstable();
            (set, of)
        });
        Ok(Self { starts, classes, n_classes: known.len(), classes_of: classes_of.collect() })
    }

    fn class(&self, c: u32) -> u8 {
        self.classes[self.starts.partition_point(|&start| start <= c) - 1]
    }

    /// The expression over class numbers instead of characters.
    fn rewrite(&self, hir: &Hir) -> Result<Hir, String> {
        let all = |subs: &[Hir]| subs.iter().map(|sub| self.rewrite(sub)).collect::<Result<Vec<_>, _>>();
        Ok(match hir.kind() {
            HirKind::Empty => Hir::empty(),
            HirKind::Look(look) => Hir::look(*look),
            HirKind::Literal(literal) => Hir::literal(letters(&literal.0)?.map(|c| self.class(c)).collect::<Vec<_>>()),
            HirKind::Class(class) => {
                let classes = self.classes_of.get(&ranges(class)?).into_iter().flatten();
                Hir::class(Class::Bytes(ClassBytes::new(classes.map(|&c| ClassBytesRange::new(c, c)))))
            }
            HirKind::Repetition(repetition) => {
                Hir::repetition(Repetition { sub: Box::new(self.rewrite(&repetition.sub)?), ..repetition.clone() })
            }
            HirKind::Capture(capture) => self.rewrite(&capture.sub)?,
            HirKind::Concat(subs) => Hir::concat(all(subs)?),
            HirKind::Alternation(subs) => Hir::alternation(all(subs)?),
        })
    }
}

/// The table of the leftmost match, of which earlier alternatives and patterns win, and what its states accept.
fn determinize(patterns: &[Hir], n_classes: usize) -> Result<(Vec<u16>, Vec<u32>), String> {
    let nfa = thompson::Compiler::new()
        .configure(thompson::Config::new().utf8(false))
        .build_many_from_hir(patterns)
        .map_err(|e| e.to_string())?;
    // Expressions of real tokenizers stay far below both limits.
    let config = dense::Config::new()
        .start_kind(StartKind::Anchored)
        .minimize(true)
        .dfa_size_limit(Some(16 << 20))
        .determinize_size_limit(Some(64 << 20));
    let dfa = dense::Builder::new().configure(config).build_from_nfa(&nfa).map_err(|e| e.to_string())?;
    let start = dfa.universal_start_state(Anchored::Yes).ok_or("its start depends on what is before")?;

    // That automaton accepts one step late, so that it can look at what follows. Without look-around, the step at the end of
    // the text says what was accepted.
    let accept = |state: StateID| {
        let end = dfa.next_eoi_state(state);
        match dfa.is_match_state(end) {
            true if dfa.match_pattern(end, 0).as_usize() == 0 => 1,
            true => SPACES,
            false => 0,
        }
    };
    let mut states = vec![None, Some(start)];
    let mut number = HashMap::from([(start, START)]);
    let (mut next, mut accepts) = (vec![DEAD; n_classes], vec![0]);
    let mut at = usize::from(START);
    while let Some(&state) = states.get(at) {
        let state = state.ok_or("its table has a hole")?;
        accepts.push(accept(state));
        for class in 0..n_classes {
            let to = dfa.next_state(state, class as u8);
            if dfa.is_dead_state(to) {
                next.push(DEAD);
                continue;
            }
            let n = states.len();
            let to = if let Some(&to) = number.get(&to) {
                to
            } else {
                let n = u16::try_from(n).map_err(|_| "more than 65536 states")?;
                states.push(Some(to));
                *number.entry(to).or_insert(n)
            };
            next.push(to);
        }
        at += 1;
    }
    Ok((next, accepts))
}
