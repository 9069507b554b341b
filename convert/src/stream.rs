//! Source files as a stream: each is read once, from its first byte to its last. Tensors are handed over as they pass, and
//! the checksum of the whole file is computed on the way, from bytes that are still in the cache.
//!
//! Reading and the checksum are the part of a conversion that cannot be split over threads, so a thread of its own does
//! nothing else. It stays a little ahead of the encoder: [`Room`] says how far.

use crate::Cancel;
use crate::checkpoint::{SourceTensor, Weights, read_range};
use crate::error::ConvertError;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use tidbit_runtime::format::SourceFile;
use tidbit_runtime::format::header::hex;
use tidbit_runtime::storage::Zeros;

/// Bytes that are read at a time: they stay in a core's own cache until the checksum has seen them.
const PIECE: usize = 256 << 10;
/// Bytes of tensors that may be in memory beyond the largest one.
const AHEAD: u64 = 64 << 20;
/// Buffers from this length on are used again: new ones cost a page fault for every 4096 bytes.
const KEPT: usize = 1 << 20;

/// Memory comes in pages of this size, or larger ones.
const PAGE: usize = 4096;

/// A tensor that is wanted.
pub(crate) struct Wanted<'a> {
    /// What the receiver knows it by: its group, and its number in it. All of a group are used together.
    pub(crate) index: (usize, usize),
    pub(crate) name: &'a str,
    pub(crate) source: &'a SourceTensor,
}

/// A tensor that has been read.
pub(crate) struct Loaded {
    pub(crate) index: (usize, usize),
    pub(crate) bytes: Buffer,
}

/// In which order tensors are sent.
pub(crate) struct Schedule<'a> {
    /// With the file during whose pass it is.
    order: Vec<(usize, Wanted<'a>)>,
    /// How many are in each group.
    group_sizes: BTreeMap<usize, usize>,
    /// Bytes that must be in memory together.
    most: u64,
}

impl<'a> Schedule<'a> {
    /// The order of the files, in which tensors wait for the others of their group. Those that would have more wait than the
    /// largest group has bytes are read a second time, when the last of their group comes: a file can have its tensors in
    /// any order, and a hostile one would otherwise have all of them in memory.
    pub(crate) fn new(files: &[PathBuf], weights: &Weights, mut wanted: Vec<Wanted<'a>>) -> Self {
        let file = |w: &Wanted<'_>| files.iter().position(|path| path == weights.path_of(w.source)).unwrap_or(0);
        wanted.sort_by_key(|w| (file(w), w.source.offset, w.index));
        let bytes = |w: &Wanted<'_>| w.source.bytes().unwrap_or(0);
        let (mut group_sizes, mut group_bytes, mut missing) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for w in &wanted {
            *group_sizes.entry(w.index.0).or_default() += 1;
            *missing.entry(w.index.0).or_insert(0usize) += 1;
            *group_bytes.entry(w.index.0).or_insert(0) += bytes(w);
        }
        let largest = group_bytes.values().copied().max().unwrap_or(0);
        let (mut order, mut late) = (Vec::new(), BTreeMap::<usize, Vec<Wanted<'_>>>::new());
        let (mut held, mut held_of, mut most) = (0, BTreeMap::<usize, u64>::new(), 0);
        for w in wanted {
            let (group, at, length) = (w.index.0, file(&w), bytes(&w));
            let left = missing.entry(group).or_default();
            *left -= 1;
            if *left > 0 {
                if held + length > largest {
                    late.entry(group).or_default().push(w);
                    continue;
                }
                held += length;
                *held_of.entry(group).or_default() += length;
                most = most.max(held);
            } else {
                let late = late.remove(&group).unwrap_or_default();
                let earlier = held_of.remove(&group).unwrap_or(0);
                most = most.max(held - earlier + group_bytes.remove(&group).unwrap_or(0));
                held -= earlier;
                order.extend(late.into_iter().map(|w| (at, w)));
            }
            order.push((at, w));
        }
        Self { order, group_sizes, most }
    }

    /// Room for what must be in memory together, and some more.
    pub(crate) fn room(&self) -> Arc<Room> {
        let limit = self.most.saturating_add(AHEAD);
        Arc::new(Room { state: Mutex::default(), freed: Condvar::new(), limit })
    }
}

/// Memory for tensors on their way from the reader to the encoder.
pub(crate) struct Room {
    state: Mutex<State>,
    freed: Condvar,
    limit: u64,
}

#[derive(Default)]
struct State {
    /// Bytes of the buffers that are in use.
    used: u64,
    /// Buffers for later.
    spare: Vec<Zeros<u8>>,
    closed: bool,
}

impl State {
    fn spare_bytes(&self) -> u64 {
        self.spare.iter().map(|b| b.len() as u64).sum()
    }
}

impl Room {
    /// No tensor is wanted any more.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.freed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is room for `length` bytes. `None` when it has been closed. A tensor that waits for others gets an
    /// `exact` buffer, so that no more is held than the schedule knows of.
    fn take(self: &Arc<Self>, length: usize, exact: bool) -> Option<std::io::Result<Buffer>> {
        // What it takes of memory.
        let size = length.next_multiple_of(PAGE);
        let mut state = self.lock();
        let bytes = loop {
            if state.closed {
                return None;
            }
            // The smallest that fits, unless most of it would lie idle.
            let most = if exact { size } else { size.saturating_mul(2) };
            let fits = |b: &Zeros<u8>| (size..=most).contains(&b.len());
            let found = state.spare.iter().enumerate().filter(|(_, b)| fits(b)).min_by_key(|(_, b)| b.len());
            if let Some((i, _)) = found {
                break state.spare.swap_remove(i);
            }
            if state.used == 0 || state.used.saturating_add(size as u64) <= self.limit {
                while !state.spare.is_empty() && state.used + state.spare_bytes() + size as u64 > self.limit {
                    state.spare.pop();
                }
                // A matrix that lies column by column is read from thousands of pages.
                match Zeros::huge(size) {
                    Ok(bytes) => break bytes,
                    Err(e) => return Some(Err(e)),
                }
            }
            state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        state.used += bytes.len() as u64;
        Some(Ok(Buffer { bytes: Some(bytes), length, room: Arc::clone(self) }))
    }
}

/// A tensor's bytes. Dropping it makes room.
pub(crate) struct Buffer {
    /// `None` when it has been given back.
    bytes: Option<Zeros<u8>>,
    length: usize,
    room: Arc<Room>,
}

impl std::ops::Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes.as_deref().unwrap_or_default()[..self.length]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut state = self.room.lock();
        if let Some(bytes) = self.bytes.take() {
            state.used -= bytes.len() as u64;
            if bytes.len() >= KEPT {
                state.spare.push(bytes);
            }
        }
        drop(state);
        self.room.freed.notify_all();
    }
}

/// Reads `files` in order and sends every wanted tensor, in the order of the schedule. Returns the files' checksums.
///
/// # Errors
/// What is wrong with a file; [`ConvertError::Cancelled`] also when the room was closed or nobody receives.
pub(crate) fn read(
    files: &[PathBuf],
    weights: &Weights,
    schedule: &Schedule<'_>,
    room: &Arc<Room>,
    send: &Sender<Result<Loaded, ConvertError>>,
    cancel: Cancel<'_>,
) -> Result<Vec<SourceFile>, ConvertError> {
    let mut sources = Vec::new();
    for (i, path) in files.iter().enumerate() {
        let mut pass = Pass::open(path, room, cancel)?;
        for (_, wanted) in schedule.order.iter().filter(|(file, _)| *file == i) {
            let exact = schedule.group_sizes.get(&wanted.index.0).is_some_and(|n| *n > 1);
            let bytes = pass.tensor(wanted, weights.path_of(wanted.source), exact)?;
            send.send(Ok(Loaded { index: wanted.index, bytes })).map_err(|_| ConvertError::Cancelled)?;
        }
        sources.push(pass.finish()?);
    }
    Ok(sources)
}

/// One file, from its first byte to its last.
struct Pass<'a> {
    path: &'a Path,
    file: File,
    position: u64,
    hasher: Sha256,
    room: &'a Arc<Room>,
    cancel: Cancel<'a>,
}

impl<'a> Pass<'a> {
    fn open(path: &'a Path, room: &'a Arc<Room>, cancel: Cancel<'a>) -> Result<Self, ConvertError> {
        let file = File::open(path).map_err(ConvertError::io(path))?;
        Ok(Self { path, file, position: 0, hasher: Sha256::new(), room, cancel })
    }

    /// Reads until `out` is full or the file ends; how many bytes there were.
    fn fill(&mut self, out: &mut [u8]) -> Result<usize, ConvertError> {
        let mut filled = 0;
        for piece in out.chunks_mut(PIECE) {
            self.cancel.check()?;
            if self.room.lock().closed {
                return Err(ConvertError::Cancelled);
            }
            let mut n = 0;
            while n < piece.len() {
                match self.file.read(&mut piece[n..]) {
                    Ok(0) => break,
                    Ok(more) => n += more,
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(ConvertError::io(self.path)(e)),
                }
            }
            self.hasher.update(&piece[..n]);
            (filled, self.position) = (filled + n, self.position + n as u64);
            if n < piece.len() {
                break;
            }
        }
        Ok(filled)
    }

    /// Passes over everything before `offset`.
    fn skip_to(&mut self, offset: u64) -> Result<(), ConvertError> {
        let mut scratch = vec![0; PIECE.min((offset - self.position) as usize)];
        while self.position < offset {
            let n = scratch.len().min((offset - self.position) as usize);
            if self.fill(&mut scratch[..n])? < n {
                break;
            }
        }
        Ok(())
    }

    fn tensor(&mut self, wanted: &Wanted<'_>, path: &Path, exact: bool) -> Result<Buffer, ConvertError> {
        let error = |reason: String| ConvertError::tensor(path, wanted.name, reason);
        let length = wanted.source.bytes().ok_or_else(|| error("its size overflows".into()))?;
        let room = self.room.take(length as usize, exact).ok_or(ConvertError::Cancelled)?;
        let mut buffer = room.map_err(|_| error(format!("cannot allocate {length} bytes")))?;
        let bytes = &mut buffer.bytes.as_deref_mut().unwrap_or_default()[..length as usize];
        if path != self.path || wanted.source.offset < self.position {
            // It comes late, or shares bytes with a tensor that has passed.
            bytes.copy_from_slice(&read_range(path, wanted.name, wanted.source.offset, length)?);
            return Ok(buffer);
        }
        self.skip_to(wanted.source.offset)?;
        let found = self.fill(bytes)? as u64;
        if found < length {
            let reason = format!("truncated while it was read: expected {length} bytes, found {found}");
            return Err(ConvertError::tensor(self.path, wanted.name, reason));
        }
        Ok(buffer)
    }

    fn finish(mut self) -> Result<SourceFile, ConvertError> {
        let mut scratch = vec![0; PIECE];
        while self.fill(&mut scratch)? == scratch.len() {}
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(SourceFile { name, bytes: self.position, sha256: hex(&self.hasher.finalize()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Dtype;

    /// The order in which tensors come, as letters, and the most that is in memory. `groups` has for each group the places
    /// of its members, each as many f32 as its letter's number.
    fn schedule(groups: &[&[(u64, usize)]]) -> (String, u64) {
        let file = PathBuf::from("a");
        let weights = Weights { files: vec![file.clone()], ..Weights::default() };
        let tensor = |&(offset, n): &(u64, usize)| SourceTensor {
            file: 0,
            offset,
            dtype: Dtype::F32,
            shape: vec![n],
            blocks: None,
            unreadable: None,
        };
        let sources: Vec<Vec<SourceTensor>> = groups.iter().map(|g| g.iter().map(tensor).collect()).collect();
        let mut wanted = Vec::new();
        for (i, group) in sources.iter().enumerate() {
            wanted.extend(group.iter().enumerate().map(|(j, source)| Wanted { index: (i, j), name: "", source }));
        }
        let schedule = Schedule::new(&[file], &weights, wanted);
        let letter = |(_, w): &(usize, Wanted<'_>)| char::from(b'a' + w.index.0 as u8);
        (schedule.order.iter().map(letter).collect(), schedule.most)
    }

    #[test]
    fn groups_are_held_until_they_are_whole() {
        assert_eq!(schedule(&[&[(0, 5)], &[(20, 3)]]), ("ab".into(), 20));
        // A part of `a` waits while `b` passes.
        assert_eq!(schedule(&[&[(0, 2), (20, 3)], &[(8, 3)]]), ("aba".into(), 20));
        assert_eq!(schedule(&[&[(0, 2), (20, 1)], &[(8, 3)]]), ("aba".into(), 20));
    }

    #[test]
    fn no_more_waits_than_the_largest_group_has() {
        // First all first parts, then all second ones: those of `c` and `d` come later.
        let parts: Vec<Vec<_>> = (0..4).map(|i| vec![(i * 8, 2), (100 + i * 8, 2)]).collect();
        let parts: Vec<&[_]> = parts.iter().map(Vec::as_slice).collect();
        assert_eq!(schedule(&parts), ("ababccdd".into(), 24));
    }
}
