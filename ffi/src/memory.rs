//! What crosses the boundary: texts and arrays in, results out.
//!
//! All of it is checked before it is touched: null pointers with a length, lengths that no memory has, addresses that are
//! not aligned, texts that are not UTF-8.

use crate::status::{Failure, Outcome, TIDBIT_BUFFER_TOO_SMALL, TIDBIT_INVALID_UTF8};
use std::ffi::c_char;
use std::path::Path;

/// `length` elements from the host.
///
/// # Safety
/// Where `data` is not null, it has `length` elements, and nobody writes to them while they are used.
pub(crate) unsafe fn slice<'a, T: Copy>(data: *const T, length: usize, what: &str) -> Outcome<&'a [T]> {
    if length == 0 {
        return Ok(&[]);
    }
    if data.is_null() {
        return Err(Failure::argument(format!("{what} is null, but its length is {length}")));
    }
    if length > isize::MAX as usize / size_of::<T>() {
        return Err(Failure::argument(format!("{what} cannot have {length} elements")));
    }
    if !data.is_aligned() {
        return Err(Failure::argument(format!("{what} is not aligned to {} bytes", align_of::<T>())));
    }
    // SAFETY: not null, aligned, and of a possible length, as checked; the caller vouches for the rest.
    Ok(unsafe { std::slice::from_raw_parts(data, length) })
}

/// A text from the host.
///
/// # Safety
/// As [`slice`].
pub(crate) unsafe fn text<'a>(data: *const c_char, length: usize, what: &str) -> Outcome<&'a str> {
    // SAFETY: as the caller says; bytes of either sign are bytes.
    let bytes = unsafe { slice(data.cast::<u8>(), length, what)? };
    std::str::from_utf8(bytes)
        .map_err(|e| Failure::new(TIDBIT_INVALID_UTF8, format!("{what} is not UTF-8 at byte {}", e.valid_up_to())))
}

/// A path from the host.
///
/// # Safety
/// As [`slice`].
pub(crate) unsafe fn path<'a>(data: *const c_char, length: usize) -> Outcome<&'a Path> {
    #[cfg(unix)]
    {
        // SAFETY: as the caller says; bytes of either sign are bytes.
        let bytes = unsafe { slice(data.cast::<u8>(), length, "the path")? };
        if bytes.is_empty() || bytes.contains(&0) {
            return Err(Failure::argument("a path has at least one byte and no NUL"));
        }
        Ok(Path::new(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(bytes)))
    }
    #[cfg(not(unix))]
    {
        // SAFETY: as the caller says.
        let text = unsafe { text(data, length, "the path")? };
        if text.is_empty() || text.contains('\0') {
            return Err(Failure::argument("a path has at least one byte and no NUL"));
        }
        Ok(Path::new(text))
    }
}

/// A place for one result.
pub(crate) struct Out<T>(*mut T);

impl<T: Copy> Out<T> {
    /// The place, which holds `empty` until there is a result.
    ///
    /// # Safety
    /// Where `place` is not null, one `T` can be written to it until the call returns.
    pub(crate) unsafe fn new(place: *mut T, empty: T, what: &str) -> Outcome<Self> {
        if place.is_null() || !place.is_aligned() {
            let problem = if place.is_null() { "null" } else { "not aligned" };
            return Err(Failure::argument(format!("{what} is {problem}")));
        }
        // SAFETY: the caller vouches for it.
        unsafe { place.write(empty) };
        Ok(Self(place))
    }

    /// The same, or none where the host does not want the result.
    ///
    /// # Safety
    /// As [`new`](Self::new).
    pub(crate) unsafe fn optional(place: *mut T, empty: T, what: &str) -> Outcome<Option<Self>> {
        if place.is_null() {
            return Ok(None);
        }
        // SAFETY: as the caller says.
        unsafe { Self::new(place, empty, what) }.map(Some)
    }

    /// Puts the result there.
    pub(crate) fn set(&self, value: T) {
        // SAFETY: checked and vouched for in `new`.
        unsafe { self.0.write(value) };
    }
}

/// The host's buffer for a result of unknown length, and the place for that length.
pub(crate) struct Buffer<T> {
    data: *mut T,
    capacity: usize,
    out_length: Out<usize>,
}

impl<T: Copy> Buffer<T> {
    /// The buffer; the length is 0 until there is a result. A null buffer of capacity 0 asks for the length.
    ///
    /// # Safety
    /// Where `data` is not null, `capacity` elements can be written to it until the call returns; `out_length` as for
    /// [`Out::new`].
    pub(crate) unsafe fn new(data: *mut T, capacity: usize, out_length: *mut usize) -> Outcome<Self> {
        // SAFETY: as the caller says.
        let out_length = unsafe { Out::new(out_length, 0, "the place for the length")? };
        if capacity > 0 && (data.is_null() || !data.is_aligned()) {
            let problem = if data.is_null() { "null" } else { "not aligned" };
            return Err(Failure::argument(format!("the buffer is {problem}, but its capacity is {capacity}")));
        }
        Ok(Self { data, capacity, out_length })
    }

    /// Fails unless `length` elements fit, and says that length.
    pub(crate) fn require(&self, length: usize) -> Outcome {
        if length <= self.capacity {
            return Ok(());
        }
        self.out_length.set(length);
        let message = format!("the result has {length} elements, the buffer {}", self.capacity);
        Err(Failure::new(TIDBIT_BUFFER_TOO_SMALL, message))
    }

    /// Copies the result there.
    pub(crate) fn write(&self, result: &[T]) -> Outcome {
        self.require(result.len())?;
        self.put(0, result);
        self.finish(result.len());
        Ok(())
    }

    /// Copies a part of a result whose length was [required](Self::require).
    pub(crate) fn put(&self, at: usize, part: &[T]) {
        assert!(at <= self.capacity && part.len() <= self.capacity - at, "a part outside the buffer");
        if !part.is_empty() {
            // SAFETY: inside the buffer, which is not null as its capacity is not 0. The host's buffer and our result do not
            // overlap; were it to give memory that it lent as a model, it would break its promise not to write there.
            unsafe { self.data.add(at).copy_from_nonoverlapping(part.as_ptr(), part.len()) };
        }
    }

    /// Says how long the result is that was put there.
    pub(crate) fn finish(&self, length: usize) {
        self.out_length.set(length);
    }
}

impl Buffer<c_char> {
    /// Copies a text there; a NUL follows it where there is room.
    pub(crate) fn write_text(&self, text: &str) -> Outcome {
        // SAFETY: bytes of either sign are bytes.
        let bytes = unsafe { std::slice::from_raw_parts(text.as_ptr().cast::<c_char>(), text.len()) };
        self.write(bytes)?;
        if self.capacity > text.len() {
            self.put(text.len(), &[0]);
        }
        Ok(())
    }
}
