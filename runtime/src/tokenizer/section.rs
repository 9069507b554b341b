//! Reading and writing arrays of little-endian numbers, one after the other, each padded to four bytes.

use crate::storage::Bytes;

/// An array of u32 that lies in the model file.
#[derive(Clone, Debug)]
pub(super) struct Numbers(Bytes);

/// A borrowed [`Numbers`].
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a>(&'a [[u8; 4]]);

impl Numbers {
    pub(super) fn view(&self) -> View<'_> {
        View(self.0.as_chunks().0)
    }
}

impl View<'_> {
    pub(super) fn len(self) -> usize {
        self.0.len()
    }

    pub(super) fn get(self, i: usize) -> Option<u32> {
        self.0.get(i).map(|bytes| u32::from_le_bytes(*bytes))
    }

    /// Where `number` is among these ascending ones.
    pub(super) fn find(self, number: u32) -> Option<usize> {
        self.0.binary_search_by_key(&number, |bytes| u32::from_le_bytes(*bytes)).ok()
    }

    /// Whether `number` is among these ascending ones.
    pub(super) fn contains(self, number: u32) -> bool {
        self.find(number).is_some()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.iter().map(|bytes| u32::from_le_bytes(*bytes))
    }

    /// Where part `i` lies, when this is the ends of parts that lie one behind the other.
    pub(super) fn part(self, i: usize) -> Option<std::ops::Range<usize>> {
        let start = if i == 0 { 0 } else { self.get(i - 1)? };
        Some(start as usize..self.get(i)? as usize)
    }

    /// Whether this is the ends of parts of something of length `len`.
    pub(super) fn are_ends_of(&self, len: usize) -> bool {
        self.iter().is_sorted() && self.iter().last().map_or(0, |end| end as usize) == len
    }
}

/// Takes one array after the other.
#[derive(Clone, Debug)]
pub(super) struct Reader {
    bytes: Bytes,
    at: usize,
}

impl Reader {
    pub(super) fn new(bytes: Bytes) -> Self {
        Self { bytes, at: 0 }
    }

    /// The next `len` bytes.
    pub(super) fn bytes(&mut self, len: usize) -> Result<Bytes, String> {
        let end = self.at.checked_add(len);
        let part = end.and_then(|end| self.bytes.slice(self.at..end));
        let padded = end.and_then(|end| end.checked_next_multiple_of(4));
        match (part, padded) {
            (Some(part), Some(padded)) => {
                self.at = padded;
                Ok(part)
            }
            _ => Err(format!("{len} bytes expected at byte {}, there are {}", self.at, self.bytes.len())),
        }
    }

    /// The next `n` numbers.
    pub(super) fn numbers(&mut self, n: usize) -> Result<Numbers, String> {
        self.bytes(n.checked_mul(4).ok_or_else(|| format!("{n} numbers expected at byte {}", self.at))?).map(Numbers)
    }

    pub(super) fn number(&mut self) -> Result<u32, String> {
        Ok(self.numbers(1)?.view().get(0).unwrap_or_default())
    }

    pub(super) fn end(&self) -> Result<(), String> {
        if self.at == self.bytes.len() {
            return Ok(());
        }
        Err(format!("{} bytes expected, found {}", self.at, self.bytes.len()))
    }
}

/// Puts one array behind the other.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub(super) fn number(&mut self, number: u32) {
        self.bytes(&number.to_le_bytes());
    }

    pub(super) fn numbers(&mut self, numbers: impl IntoIterator<Item = u32>) {
        numbers.into_iter().for_each(|number| self.number(number));
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.0
    }
}
