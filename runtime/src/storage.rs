//! Bytes that do not move: a memory-mapped file, a copy of one, or memory that someone lends; and memory of zeros.
//!
//! [`Bytes`] is a cheap, shared window into such memory. Everything above it (tensors, matrices)
//! owns a window and needs no lifetime, so a model can be shared by any number of threads. [`Zeros`] is scratch memory.
//! What takes memory here and elsewhere asks `ensure` whether enough is left.

use bytemuck::Pod;
use memmap2::MmapMut;
use std::fs::File;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

/// Alignment of every tensor: one cache line, and one AVX-512 register.
pub const ALIGN: usize = 64;

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([u8; ALIGN]);

// SAFETY: `Line` is 64 plain bytes at an alignment of 64: no padding, and every bit pattern is valid.
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: as above; `Line` is `Copy` and `repr(C)`.
unsafe impl bytemuck::Pod for Line {}

#[derive(Debug)]
enum Memory {
    Mapped(memmap2::Mmap),
    Owned(Vec<Line>),
    Copied(MmapMut),
    Lent(Box<dyn Lender>),
}

impl Memory {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(lines) => bytemuck::must_cast_slice(lines),
            Self::Copied(map) => map,
            Self::Lent(lender) => lender.bytes(),
        }
    }
}

/// Someone else's memory. It is given back by dropping the lender, with the last window into it.
///
/// # Safety
/// [`bytes`](Self::bytes) returns the same memory each time, and nobody writes to it.
pub unsafe trait Lender: std::fmt::Debug + Send + Sync {
    /// The memory.
    fn bytes(&self) -> &[u8];
}

/// A shared, immutable window of bytes.
#[derive(Clone, Debug)]
pub struct Bytes {
    memory: Arc<Memory>,
    range: Range<usize>,
}

impl Bytes {
    /// Maps `len` bytes of a file from `offset` on, read-only. They are aligned as `offset` is.
    ///
    /// What is read from the disk because of it comes in huge pages, where the file system has them (ext4 of Linux 6.18). By itself
    /// it reads small ones for threads that begin in several places, and keeps them for every process after. Zen 4, GPT-2 124M
    /// in `q4`: 15 ms to the first token instead of 24, 60 instead of 130 from the disk, and 14 % faster decoding on one thread.
    ///
    /// # Errors
    /// What the operating system answers.
    pub fn map_part(file: &File, offset: u64, len: usize) -> std::io::Result<Self> {
        // SAFETY: the mapping is read-only and private to this process. If another process truncates
        // or rewrites the file while it is mapped, reads can fault or change: the documented limit of
        // mapped files (SECURITY.md). No Rust invariant is built on the mapped values: all
        // offsets were copied out of the header and checked against the length at open.
        let map = unsafe { memmap2::MmapOptions::new().offset(offset).len(len).map(file)? };
        ensure(0)?;
        #[cfg(target_os = "linux")]
        // A system without huge pages refuses: then it is small ones.
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self::all_of(Memory::Mapped(map)))
    }

    /// Reads `len` bytes of a file from `offset` on into memory of its own: what happens to the file later does not matter.
    ///
    /// # Errors
    /// When there is not so much memory, the file ends before, or it cannot be read.
    pub fn read_part(file: &File, offset: u64, len: usize) -> std::io::Result<Self> {
        let mut map = room(len)?;
        read_exact_at(file, &mut map[..len], offset)?;
        Ok(Self { memory: Arc::new(Memory::Copied(map)), range: 0..len })
    }

    /// Copies `bytes` as [`copy_from`](Self::copy_from) does, unless there is not so much memory.
    ///
    /// # Errors
    /// What the operating system answers.
    pub fn try_copy_from(bytes: &[u8]) -> std::io::Result<Self> {
        let mut map = room(bytes.len())?;
        map[..bytes.len()].copy_from_slice(bytes);
        Ok(Self { memory: Arc::new(Memory::Copied(map)), range: 0..bytes.len() })
    }

    /// Memory that `lender` lends until the last window into it is dropped.
    pub fn lent(lender: Box<dyn Lender>) -> Self {
        Self::all_of(Memory::Lent(lender))
    }

    /// Whether it lies in a mapped file.
    pub fn is_mapped(&self) -> bool {
        matches!(*self.memory, Memory::Mapped(_))
    }

    fn all_of(memory: Memory) -> Self {
        let range = 0..memory.as_slice().len();
        Self { memory: Arc::new(memory), range }
    }

    /// Copies `bytes` into a buffer aligned to [`ALIGN`].
    pub fn copy_from(bytes: &[u8]) -> Self {
        let mut lines = vec![Line([0; ALIGN]); bytes.len().div_ceil(ALIGN)];
        bytemuck::must_cast_slice_mut::<Line, u8>(&mut lines)[..bytes.len()].copy_from_slice(bytes);
        Self { memory: Arc::new(Memory::Owned(lines)), range: 0..bytes.len() }
    }

    /// Reads all pages of a mapped file into memory and keeps them there, until the last window is dropped.
    ///
    /// # Errors
    /// What the operating system answers, mostly that it is more than this process may lock.
    pub fn lock(&self) -> std::io::Result<()> {
        match &*self.memory {
            #[cfg(unix)]
            Memory::Mapped(map) => map.lock(),
            #[cfg(unix)]
            Memory::Copied(map) => map.lock(),
            #[cfg(not(unix))]
            Memory::Mapped(_) | Memory::Copied(_) => Err(std::io::ErrorKind::Unsupported.into()),
            Memory::Owned(_) | Memory::Lent(_) => Ok(()),
        }
    }

    /// The part `range` of this window, or `None` when it reaches outside.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        let start = self.range.start.checked_add(range.start)?;
        let end = self.range.start.checked_add(range.end)?;
        (start <= end && end <= self.range.end).then(|| Self { memory: Arc::clone(&self.memory), range: start..end })
    }
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.memory.as_slice()[self.range.clone()]
    }
}

/// Memory of `len` bytes, in huge pages where the system has them, unless too little is left beside it.
///
/// Decoding reads a copy of the whole model for each token. In pages of 4 KiB, that misses the TLB all the time.
fn room(len: usize) -> std::io::Result<MmapMut> {
    // An empty mapping is not possible.
    let map = anonymous(len.max(1))?;
    ensure(0)?;
    Ok(map)
}

/// `len` zeros, in huge pages where the system has them.
pub(crate) fn anonymous(len: usize) -> std::io::Result<MmapMut> {
    let map = MmapMut::map_anon(len)?;
    #[cfg(target_os = "linux")]
    // A system without huge pages refuses: then it is small ones.
    let _ = map.advise(memmap2::Advice::HugePage);
    Ok(map)
}

/// Bytes that many small things may take beside a large one: in Rust, a small thing that cannot be had ends the process.
const SPARE: usize = 2 << 20;

/// Whether `bytes` of memory can be had now, and some for small things beside them. Whoever has taken memory in large pieces
/// asks whether that left some, and so makes an error of what would be an abort soon.
///
/// # Errors
/// [`OutOfMemory`](std::io::ErrorKind::OutOfMemory), in whatever words the operating system says so.
pub(crate) fn ensure(bytes: usize) -> std::io::Result<()> {
    MmapMut::map_anon(bytes.saturating_add(SPARE)).map(drop).map_err(|_| std::io::ErrorKind::OutOfMemory.into())
}

/// Fills `into` from `offset` on, without moving the file's own position: a descriptor may be shared.
///
/// # Errors
/// When the file ends before, or cannot be read.
pub(crate) fn read_exact_at(file: &File, into: &mut [u8], offset: u64) -> std::io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::read_exact_at(file, into, offset);
    #[cfg(windows)]
    {
        let (mut into, mut offset) = (into, offset);
        while !into.is_empty() {
            let n = std::os::windows::fs::FileExt::seek_read(file, into, offset)?;
            if n == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            (into, offset) = (&mut into[n..], offset + n as u64);
        }
        Ok(())
    }
    #[cfg(not(any(unix, windows)))]
    {
        let _ = (file, into, offset);
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

/// Numbers that are zero at first, in memory that the system supplies when it is first written: what is not used
/// costs nothing.
pub struct Zeros<T> {
    map: MmapMut,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Pod> Zeros<T> {
    /// `len` zeros.
    ///
    /// # Errors
    /// When there is not so much memory.
    pub fn new(len: usize) -> std::io::Result<Self> {
        // An empty mapping is not possible.
        let zeros = Self::in_memory(len, |bytes| MmapMut::map_anon(bytes.max(1)))?;
        ensure(0)?;
        Ok(zeros)
    }

    /// The same in huge pages where the system has them, for what is written as a whole and then read here and there.
    ///
    /// # Errors
    /// When there is not so much memory.
    pub fn huge(len: usize) -> std::io::Result<Self> {
        Self::in_memory(len, room)
    }

    fn in_memory(len: usize, map: impl Fn(usize) -> std::io::Result<MmapMut>) -> std::io::Result<Self> {
        let bytes = len.checked_mul(size_of::<T>()).ok_or(std::io::ErrorKind::OutOfMemory)?;
        Ok(Self { map: map(bytes)?, len, of: PhantomData })
    }
}

impl<T: Pod> Deref for Zeros<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // A mapping starts at a page: aligned for every number.
        bytemuck::cast_slice(&self.map[..self.len * size_of::<T>()])
    }
}

impl<T: Pod> DerefMut for Zeros<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.map[..self.len * size_of::<T>()])
    }
}

impl<T> std::fmt::Debug for Zeros<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Zeros").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_zero_and_too_many_are_an_error() {
        for n in [0, 1, 5000] {
            for mut zeros in [Zeros::<f32>::new(n).unwrap(), Zeros::huge(n).unwrap()] {
                assert_eq!(*zeros, vec![0.0; n]);
                zeros.fill(1.5);
                assert_eq!(zeros.iter().sum::<f32>(), 1.5 * n as f32);
            }
        }
        assert!(Zeros::<f32>::new(usize::MAX / 2).is_err() && Zeros::<f32>::new(usize::MAX / 64).is_err());
    }

    #[test]
    fn slices_stay_inside_their_window() {
        let all = Bytes::copy_from(&[1, 2, 3, 4, 5]);
        let mid = all.slice(1..4).unwrap();
        assert_eq!(&*mid, [2, 3, 4]);
        assert_eq!(&*mid.slice(1..3).unwrap(), [3, 4]);
        assert!(mid.slice(0..4).is_none(), "may not see past its own end");
        assert!(mid.slice(usize::MAX..usize::MAX).is_none());
    }

    #[test]
    fn owned_buffers_are_aligned() {
        for n in [0, 1, 63, 64, 65] {
            let bytes = Bytes::copy_from(&vec![7; n]);
            assert_eq!(bytes.len(), n);
            assert_eq!(bytes.as_ptr().align_offset(ALIGN), 0);
        }
    }
}
