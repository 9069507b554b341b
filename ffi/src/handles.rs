//! Handles: what the host holds instead of pointers.
//!
//! A handle is a number: the place of its object in a table, and how often that place was used before. It is looked up and
//! never followed, so a handle that is null, made up, freed, freed twice, or of another kind is found out and answered by a
//! status, whatever the host does. An object that is freed while another thread uses it goes away when that thread is done.
//!
//! The table is the one thing that is global here. It needs no start and no end: places are made when they are needed and
//! used again, never given back. All of it is atomics, so that `cancel` may look up a session inside a signal handler,
//! and a process that forked finds no lock held.
//!
//! ```text
//! handle:  tag 8 bits | check 8 | generation 24 | place 24      (32-bit machines: generation 16, place 16)
//! state of a place:  generation 32 | alive 1 | users 31
//! ```
//!
//! The check makes it unlikely that a number beside a handle is one too. The tag makes a handle no address that a 64-bit process could have: who follows one is stopped at once, and garbage
//! collectors that look for addresses (Go's) pass over it.

use crate::status::{Failure, Outcome, TIDBIT_INVALID_HANDLE, TIDBIT_OUT_OF_MEMORY};
use std::ops::Deref;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// Bits of a handle for the place.
const PLACE_BITS: u32 = if usize::BITS == 64 { 24 } else { 16 };
/// Bits for the generation; a place is given up when it has been used so often.
const GENERATION_BITS: u32 = if usize::BITS == 64 { 24 } else { 16 };
/// Starts every handle on 64-bit machines.
const TAG: u64 = 0x71;

const ALIVE: u64 = 1 << 31;
const USERS: u64 = ALIVE - 1;

/// Places of the first block; each further block has twice as many as the one before.
const FIRST_BLOCK: usize = 64;
const N_BLOCKS: usize = PLACE_BITS as usize - FIRST_BLOCK.trailing_zeros() as usize;

/// A place for an object.
struct Place<T> {
    state: AtomicU64,
    object: AtomicPtr<T>,
}

/// Objects by handle.
pub(crate) struct Table<T> {
    blocks: [AtomicPtr<Place<T>>; N_BLOCKS],
    /// Where to look for a place next, so that places are used in turn.
    next: AtomicUsize,
}

/// An object in use: it is not freed before this is dropped.
pub(crate) struct Held<'a, T> {
    place: &'a Place<T>,
    object: &'a T,
    in_signal: bool,
}

impl<T> Deref for Held<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.object
    }
}

impl<T> Drop for Held<'_, T> {
    fn drop(&mut self) {
        self.place.leave(self.in_signal);
    }
}

fn generation(state: u64) -> u64 {
    state >> 32
}

impl<T> Place<T> {
    const fn new() -> Self {
        Self { state: AtomicU64::new(1 << 32), object: AtomicPtr::new(std::ptr::null_mut()) }
    }

    /// Takes a place that nobody uses; its generation.
    fn reserve(&self) -> Option<u64> {
        let state = self.state.load(Ordering::Relaxed);
        let unused = state & (ALIVE | USERS) == 0 && generation(state) < 1 << GENERATION_BITS;
        if !unused || self.state.compare_exchange(state, state + 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return None;
        }
        // What a signal handler was the last to use, and could not free.
        self.take_out();
        Some(generation(state))
    }

    /// Drops the object, by whoever is its only user.
    fn take_out(&self) {
        let object = self.object.swap(std::ptr::null_mut(), Ordering::AcqRel);
        if !object.is_null() {
            // SAFETY: it came from `Box::into_raw` in `insert`, and the swap gives it to one thread only. No reference is
            // left: the place is not alive, so nobody can enter, and its one user is the caller.
            drop(unsafe { Box::from_raw(object) });
        }
    }

    /// One user less. The last one of an object that is no longer alive frees it; in a signal handler, where nothing may be
    /// freed, it stays until the place is used again.
    fn leave(&self, in_signal: bool) {
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            if state & (ALIVE | USERS) == 1 {
                if !in_signal {
                    self.take_out();
                }
                self.state.store((generation(state) + 1) << 32, Ordering::Release);
                return;
            }
            match self.state.compare_exchange_weak(state, state - 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(now) => state = now,
            }
        }
    }
}

impl<T: Send + Sync> Table<T> {
    /// An empty table.
    pub(crate) const fn new() -> Self {
        Self { blocks: [const { AtomicPtr::new(std::ptr::null_mut()) }; N_BLOCKS], next: AtomicUsize::new(0) }
    }

    /// Puts an object in; its handle.
    pub(crate) fn insert(&self, object: Box<T>) -> Outcome<usize> {
        loop {
            let n_places = self.n_places();
            let start = self.next.fetch_add(1, Ordering::Relaxed) % n_places.max(1);
            for index in (start..n_places).chain(0..start) {
                let Some(place) = self.place(index) else { break };
                let Some(generation) = place.reserve() else { continue };
                place.object.store(Box::into_raw(object), Ordering::Release);
                place.state.store((generation << 32) | ALIVE | 1, Ordering::Release);
                self.next.store(index + 1, Ordering::Relaxed);
                return Ok(encode(index, generation));
            }
            if !self.grow(n_places) {
                return Err(Failure::new(TIDBIT_OUT_OF_MEMORY, format!("{n_places} handles are all in use")));
            }
        }
    }

    /// The object of a handle, which stays for as long as this is held. `what` is for the message.
    pub(crate) fn get(&self, handle: usize, what: &str) -> Outcome<Held<'_, T>> {
        self.enter(handle, false).ok_or_else(|| {
            let which = if handle == 0 { "null" } else { "freed, or never was one" };
            Failure::new(TIDBIT_INVALID_HANDLE, format!("the handle of {what} is {which}"))
        })
    }

    /// The same in a signal handler: nothing is allocated, locked or freed.
    pub(crate) fn get_in_signal(&self, handle: usize) -> Option<Held<'_, T>> {
        self.enter(handle, true)
    }

    /// Ends the life of a handle; its object goes with its last user. Whether there was one.
    pub(crate) fn remove(&self, handle: usize) -> bool {
        let Some((index, wanted)) = decode(handle) else { return false };
        let Some(place) = self.place(index) else { return false };
        let mut state = place.state.load(Ordering::Acquire);
        loop {
            if generation(state) != wanted || state & ALIVE == 0 {
                return false;
            }
            match place.state.compare_exchange_weak(state, state & !ALIVE, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break,
                Err(now) => state = now,
            }
        }
        place.leave(false);
        true
    }

    fn enter(&self, handle: usize, in_signal: bool) -> Option<Held<'_, T>> {
        let (index, wanted) = decode(handle)?;
        let place = self.place(index)?;
        let mut state = place.state.load(Ordering::Acquire);
        loop {
            // So many threads there are not; and one more would spill into the next field.
            if generation(state) != wanted || state & ALIVE == 0 || state & USERS == USERS {
                return None;
            }
            match place.state.compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break,
                Err(now) => state = now,
            }
        }
        let object = place.object.load(Ordering::Acquire);
        // SAFETY: `insert` stored the object before the place became alive. It was alive when this user was counted, and is
        // freed by `leave` or `reserve` only when no user is left.
        let object = unsafe { &*object };
        Some(Held { place, object, in_signal })
    }

    /// How many places there are now.
    fn n_places(&self) -> usize {
        let n_blocks = self.blocks.iter().take_while(|block| !block.load(Ordering::Acquire).is_null()).count();
        FIRST_BLOCK * ((1 << n_blocks) - 1)
    }

    fn place(&self, index: usize) -> Option<&Place<T>> {
        // Block `b` starts at place `FIRST_BLOCK * (2^b - 1)`.
        let b = (index / FIRST_BLOCK + 1).ilog2() as usize;
        let block = self.blocks.get(b)?.load(Ordering::Acquire);
        let offset = index - FIRST_BLOCK * ((1 << b) - 1);
        // SAFETY: a block that is there has `FIRST_BLOCK << b` places, `offset` is below that, and it is never freed while
        // the table lives.
        (!block.is_null()).then(|| unsafe { &*block.add(offset) })
    }

    /// Makes one more block than the `n_places` places that there were, unless another thread has.
    fn grow(&self, n_places: usize) -> bool {
        let b = (n_places / FIRST_BLOCK + 1).ilog2() as usize;
        let Some(slot) = self.blocks.get(b) else { return false };
        let len = FIRST_BLOCK << b;
        let mut places = Vec::new();
        if places.try_reserve_exact(len).is_err() {
            return false;
        }
        places.resize_with(len, Place::new);
        let block: *mut [Place<T>] = Box::into_raw(places.into_boxed_slice());
        if slot.compare_exchange(std::ptr::null_mut(), block.cast(), Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: made above and seen by nobody else.
            drop(unsafe { Box::from_raw(block) });
        }
        true
    }
}

fn encode(index: usize, generation: u64) -> usize {
    let used = (generation << PLACE_BITS) | index as u64;
    let check = used.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56;
    if usize::BITS == 64 { ((TAG << 56) | (check << 48) | used) as usize } else { used as usize }
}

/// Place and generation.
fn decode(handle: usize) -> Option<(usize, u64)> {
    let used = handle as u64 & ((1 << (PLACE_BITS + GENERATION_BITS)) - 1);
    let (index, generation) = (used as usize & ((1 << PLACE_BITS) - 1), used >> PLACE_BITS);
    (generation > 0 && encode(index, generation) == handle).then_some((index, generation))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    /// Counts what is alive.
    struct Counted(Arc<AtomicUsize>);

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn put(table: &Table<Counted>, count: &Arc<AtomicUsize>) -> usize {
        count.fetch_add(1, Ordering::SeqCst);
        table.insert(Box::new(Counted(Arc::clone(count)))).unwrap()
    }

    #[test]
    fn a_handle_dies_once_and_its_neighbours_live() {
        let (table, count) = (Table::new(), Arc::default());
        let [a, b, c] = [(); 3].map(|()| put(&table, &count));
        assert!(table.remove(b) && !table.remove(b));
        assert!(table.get(b, "it").is_err() && table.get(a, "it").is_ok() && table.get(c, "it").is_ok());
        assert_eq!(count.load(Ordering::SeqCst), 2);
        for wrong in [0, 1, usize::MAX, a ^ 1 << PLACE_BITS, a + 1, a + 1000, a | 0xFF_FFFF, a.wrapping_neg()] {
            assert!(table.get(wrong, "it").is_err() && !table.remove(wrong), "{wrong:x}");
        }
        assert!(table.remove(a) && table.remove(c));
        assert_eq!(count.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn handles_are_not_used_again() {
        let (table, count) = (Table::new(), Arc::default());
        let mut seen = std::collections::HashSet::new();
        for _ in 0..10_000 {
            let handle = put(&table, &count);
            assert!(seen.insert(handle));
            assert!(table.remove(handle));
        }
        let live: Vec<_> = (0..1000).map(|_| put(&table, &count)).collect();
        assert!(live.iter().all(|&handle| seen.insert(handle) && table.get(handle, "it").is_ok()));
        assert!(live.iter().all(|&handle| table.remove(handle)));
        assert_eq!(count.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn freed_in_use_goes_with_the_last_user() {
        let (table, count) = (Table::new(), Arc::default());
        let handle = put(&table, &count);
        let held = table.get(handle, "it").unwrap();
        assert!(table.remove(handle) && table.get(handle, "it").is_err());
        assert_eq!(count.load(Ordering::SeqCst), 1);
        drop(held);
        assert_eq!(count.load(Ordering::SeqCst), 0);
        // A signal handler frees nothing; whoever uses the place next does.
        let handle = put(&table, &count);
        let held = table.get_in_signal(handle).unwrap();
        assert!(table.remove(handle));
        drop(held);
        assert_eq!(count.load(Ordering::SeqCst), 1);
        let more: Vec<_> = (0..FIRST_BLOCK).map(|_| put(&table, &count)).collect();
        assert_eq!(count.load(Ordering::SeqCst), FIRST_BLOCK);
        assert!(!more.contains(&handle));
    }

    #[test]
    fn threads_put_use_and_free_at_once() {
        let (table, count) = (Table::new(), Arc::default());
        let (table, count, stop) = (&table, &count, &AtomicBool::new(false));
        let shared = &AtomicUsize::new(put(table, count));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let handle = shared.load(Ordering::Relaxed);
                        if let Ok(held) = table.get(handle, "it") {
                            assert!(held.0.load(Ordering::SeqCst) > 0);
                        }
                        drop(table.get_in_signal(handle));
                    }
                });
            }
            for _ in 0..20_000 {
                let old = shared.swap(put(table, count), Ordering::Relaxed);
                assert!(table.remove(old));
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(table.remove(shared.load(Ordering::Relaxed)));
        // Some may wait in places that a `get_in_signal` left last.
        assert!(count.load(Ordering::SeqCst) < FIRST_BLOCK);
    }
}
