//! The merges of BPE: the best pair of neighbours becomes one token, until no pair is left.

use super::bpe::NO_TOKEN;
use super::section::{Numbers, Reader, View};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Pieces that start as up to this many tokens are searched for the best pair anew after each merge: quadratic, but faster for a word than a heap.
const SHORT: usize = 48;

/// The tables: the pairs of each left token lie together, in ascending order of the right one.
#[derive(Debug)]
pub(super) struct Merges {
    /// For each left token, the end of its pairs.
    ends: Numbers,
    /// Right token and rank of each pair.
    pairs: Numbers,
    /// By rank, the token that a pair becomes.
    merged: Numbers,
}

impl Merges {
    pub(super) fn read(from: &mut Reader, n_ids: usize, n_merges: usize) -> Result<Self, String> {
        let is_token = |id: u32| (id as usize) < n_ids;
        let ends = from.numbers(n_ids)?;
        let pairs = from.numbers(n_merges.checked_mul(2).ok_or_else(|| format!("{n_merges} merges"))?)?;
        let merged = from.numbers(n_merges)?;
        if !ends.view().are_ends_of(n_merges) {
            return Err(format!("the ends of the merges do not ascend to {n_merges}"));
        }
        if let Some(rank) = pairs.view().iter().skip(1).step_by(2).find(|&rank| rank as usize >= n_merges) {
            return Err(format!("a merge has rank {rank} of {n_merges}"));
        }
        if let Some(id) = merged.view().iter().find(|&id| !is_token(id)) {
            return Err(format!("a merge makes token {id} of {n_ids}"));
        }
        Ok(Self { ends, pairs, merged })
    }
}

/// Merges one piece after the other, with memory that is used again.
pub(super) struct Merger<'a> {
    ends: View<'a>,
    pairs: View<'a>,
    merged: View<'a>,
    /// Of a short piece: token, and rank of the pair with the next one.
    short: Vec<(u32, u32)>,
    symbols: Vec<Symbol>,
    /// Rank and place of the pairs to try, best and leftmost first.
    queue: BinaryHeap<Reverse<(u32, usize)>>,
}

/// A token of a long piece, and its neighbours.
#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    /// Rank of the pair with the next one; [`NO_RANK`] when there is none.
    rank: u32,
    prev: usize,
    next: usize,
}

/// The rank of a pair that is not merged.
const NO_RANK: u32 = u32::MAX;

impl<'a> Merger<'a> {
    pub(super) fn new(merges: &'a Merges) -> Self {
        Self {
            ends: merges.ends.view(),
            pairs: merges.pairs.view(),
            merged: merges.merged.view(),
            short: Vec::new(),
            symbols: Vec::new(),
            queue: BinaryHeap::new(),
        }
    }

    /// The rank of a pair.
    fn rank(&self, left: u32, right: u32) -> u32 {
        let Some(mut part) = self.ends.part(left as usize) else { return NO_RANK };
        while !part.is_empty() {
            let middle = part.start + part.len() / 2;
            match self.pairs.get(2 * middle).unwrap_or(NO_TOKEN) {
                found if found < right => part.start = middle + 1,
                found if found > right => part.end = middle,
                _ => return self.pairs.get(2 * middle + 1).unwrap_or(NO_RANK),
            }
        }
        NO_RANK
    }

    /// The token that a pair becomes. Ranks were checked.
    fn merged(&self, rank: u32) -> u32 {
        self.merged.get(rank as usize).unwrap_or(NO_TOKEN)
    }

    /// Appends the tokens of a piece that starts as these.
    pub(super) fn merge(&mut self, piece: impl ExactSizeIterator<Item = u32>, out: &mut Vec<u32>) {
        if piece.len() <= SHORT {
            self.merge_short(piece, out);
        } else {
            self.merge_long(piece, out);
        }
    }

    fn merge_short(&mut self, piece: impl Iterator<Item = u32>, out: &mut Vec<u32>) {
        let mut symbols = std::mem::take(&mut self.short);
        symbols.clear();
        symbols.extend(piece.map(|id| (id, NO_RANK)));
        for i in 1..symbols.len() {
            symbols[i - 1].1 = self.rank(symbols[i - 1].0, symbols[i].0);
        }
        while let Some((at, &(_, rank))) = symbols.iter().enumerate().min_by_key(|(_, (_, rank))| *rank)
            && rank != NO_RANK
        {
            symbols[at].0 = self.merged(rank);
            symbols.remove(at + 1);
            symbols[at].1 = symbols.get(at + 1).map_or(NO_RANK, |next| self.rank(symbols[at].0, next.0));
            if at > 0 {
                symbols[at - 1].1 = self.rank(symbols[at - 1].0, symbols[at].0);
            }
        }
        out.extend(symbols.iter().map(|(id, _)| id));
        self.short = symbols;
    }

    fn merge_long(&mut self, piece: impl Iterator<Item = u32>, out: &mut Vec<u32>) {
        let mut symbols = std::mem::take(&mut self.symbols);
        let mut queue = std::mem::take(&mut self.queue);
        symbols.clear();
        symbols.extend(piece.enumerate().map(|(i, id)| Symbol {
            id,
            rank: NO_RANK,
            prev: i.wrapping_sub(1),
            next: i + 1,
        }));
        let offer = |symbols: &mut [Symbol], at: usize, queue: &mut BinaryHeap<_>| {
            let Some(&Symbol { id: right, .. }) = symbols.get(symbols[at].next) else {
                symbols[at].rank = NO_RANK;
                return;
            };
            symbols[at].rank = self.rank(symbols[at].id, right);
            if symbols[at].rank != NO_RANK {
                queue.push(Reverse((symbols[at].rank, at)));
            }
        };
        for at in 0..symbols.len() {
            offer(&mut symbols, at, &mut queue);
        }
        while let Some(Reverse((rank, at))) = queue.pop() {
            // An entry whose pair has changed, or gone, since.
            if symbols[at].rank != rank {
                continue;
            }
            let right = symbols[symbols[at].next];
            let gone = symbols[at].next;
            symbols[gone].rank = NO_RANK;
            symbols[gone].id = NO_TOKEN;
            symbols[at].id = self.merged(rank);
            symbols[at].next = right.next;
            if let Some(next) = symbols.get_mut(right.next) {
                next.prev = at;
            }
            offer(&mut symbols, at, &mut queue);
            if let Some(prev) = Some(symbols[at].prev).filter(|&prev| prev < symbols.len()) {
                offer(&mut symbols, prev, &mut queue);
            }
        }
        out.extend(symbols.iter().map(|symbol| symbol.id).filter(|&id| id != NO_TOKEN));
        self.symbols = symbols;
        self.queue = queue;
    }
}
