//! The worker pool: parallel regions of a few microseconds, fifty to a hundred of them per token.
//!
//! Rayon costs 11–22 µs per region entered from outside; this pool costs well under one. Workers spin for a
//! short while between regions and then park. Each thread has a share of a region's tasks that lie side by side, and takes
//! them in order, because what it asks of the memory in advance is then its own; a thread without any left takes the last
//! ones of another's, so one that was descheduled does fewer. The caller waits only for workers that really entered.
//! Nothing computed may depend on which thread ran a task; every kernel writes its own block of the output.
//!
//! This module holds two of the crate's few uses of `unsafe`: a region's closure is lent to the workers
//! without a `'static` bound (the region outlives no borrow, because [`Pool::run`] returns only after every
//! worker left), and one output matrix is written by all threads in disjoint blocks ([`Pool::run_blocks`]).

use crate::storage;
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::{JoinHandle, Thread};

/// Bytes of a worker's stack.
const STACK: usize = 2 << 20;

/// Polls before a waiting worker parks: some 50–100 µs, longer than the serial work between regions.
const SPINS: u32 = 2000;
/// Polls before a caller that waits for the last worker yields its core.
const SPINS_BEFORE_YIELD: u32 = 200;

/// The most threads a pool can have.
pub const MAX_THREADS: usize = 256;

/// `State` bits: the region's number, whether it can be entered, and how many workers are inside.
const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;
const REGION: u64 = 1 << 32;

type Task<'a> = dyn Fn(usize) + Sync + 'a;

/// Tasks that are left of a thread's share: the first one's number, and in the upper half the number behind the last.
///
/// Two cache lines, because processors fetch lines in pairs.
#[repr(align(128))]
struct Share(AtomicU64);

impl Share {
    /// Starts anew. The caller of `run` does so while the region is closed and empty.
    fn set(&self, tasks: Range<u32>) {
        self.0.store(u64::from(tasks.end) << 32 | u64::from(tasks.start), Ordering::Relaxed);
    }

    /// Takes the first task, or the last one.
    fn take(&self, last: bool) -> Option<usize> {
        let split = |tasks: u64| (tasks as u32, (tasks >> 32) as u32);
        let taken = |tasks: u64| {
            let (start, end) = split(tasks);
            (start < end).then(|| if last { tasks - (1 << 32) } else { tasks + 1 })
        };
        let tasks = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).ok()?;
        let (start, end) = split(tasks);
        Some(if last { end - 1 } else { start } as usize)
    }
}

struct Shared {
    state: AtomicU64,
    /// By thread, the caller's first.
    shares: Box<[Share]>,
    /// Written by the caller while the region is closed and empty, read by workers inside it.
    job: UnsafeCell<*const Task<'static>>,
    panicked: AtomicBool,
    stop: AtomicBool,
    spins: u32,
}

// SAFETY: `job` is written only by the caller of `run` (which is `&mut`, so alone) while no worker is inside, and read
// only by workers that entered through `state`; entering is an acquire of the caller's release.
unsafe impl Sync for Shared {}
// SAFETY: the raw pointer in `job` is dereferenced only inside a region, while its closure is borrowed by `run`.
unsafe impl Send for Shared {}

impl Shared {
    /// Does tasks until none is left: those of thread `me`, then others'.
    fn work(&self, me: usize) {
        // SAFETY: the caller is inside the open region (or is the region's owner), so `job` is not being written.
        let task = unsafe { *self.job.get() };
        // SAFETY: `run` keeps the closure borrowed until every worker has left the region.
        let task = unsafe { &*task };
        let (before, from) = self.shares.split_at(me);
        for (i, share) in from.iter().chain(before).enumerate() {
            while let Some(number) = share.take(i > 0) {
                task(number);
            }
        }
    }

    /// Waits for a region other than `seen` and enters it. `None` when the pool stops.
    fn enter(&self, seen: &mut u64, sleeping: &AtomicBool) -> Option<()> {
        let mut spins = 0;
        loop {
            let state = self.state.load(Ordering::Acquire);
            if state & OPEN != 0 && state / REGION != *seen {
                if self.state.compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    *seen = state / REGION;
                    return Some(());
                }
                continue;
            }
            if self.stop.load(Ordering::Acquire) {
                return None;
            }
            if spins < self.spins {
                spins += 1;
                std::hint::spin_loop();
                continue;
            }
            sleeping.store(true, Ordering::SeqCst);
            // Look once more after announcing: the caller looks at `sleeping` after opening.
            let state = self.state.load(Ordering::SeqCst);
            let work = state & OPEN != 0 && state / REGION != *seen;
            if !work && !self.stop.load(Ordering::SeqCst) {
                std::thread::park();
            }
            sleeping.store(false, Ordering::SeqCst);
            spins = 0;
        }
    }
}

struct Worker {
    thread: Thread,
    sleeping: Arc<AtomicBool>,
    handle: Option<JoinHandle<()>>,
}

/// A fixed set of threads that run short parallel regions together with the caller.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
}

impl Pool {
    /// A pool of `n_threads` threads, the caller's own included.
    ///
    /// # Errors
    /// When the operating system starts no more threads.
    ///
    /// # Panics
    /// When `n_threads` is 0.
    pub fn new(n_threads: usize) -> std::io::Result<Self> {
        assert!(n_threads > 0, "a pool has at least the caller's thread");
        let cores = available_cores();
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            shares: (0..n_threads).map(|_| Share(AtomicU64::new(0))).collect(),
            job: UnsafeCell::new(&|_| {}),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            // With more threads than cores a spinning worker only keeps another from running.
            spins: if n_threads > cores { 0 } else { SPINS },
        });
        let mut pool = Self { shared, workers: Vec::with_capacity(n_threads - 1) };
        for i in 1..n_threads {
            // A thread takes more before it runs our code: a stack for signals, a table of its thread-locals. The C library and
            // the standard one end the process where these are refused; so one thread starts at a time, with memory to spare.
            storage::ensure(STACK)?;
            let shared = Arc::clone(&pool.shared);
            let sleeping = Arc::new(AtomicBool::new(false));
            let asleep = Arc::clone(&sleeping);
            let started = Arc::new(Barrier::new(2));
            let start = Arc::clone(&started);
            let builder = std::thread::Builder::new().name(format!("tidbit-{i}")).stack_size(STACK);
            let handle = builder.spawn(move || {
                start.wait();
                let mut seen = 0;
                while shared.enter(&mut seen, &asleep).is_some() {
                    if catch_unwind(AssertUnwindSafe(|| shared.work(i))).is_err() {
                        shared.panicked.store(true, Ordering::Relaxed);
                    }
                    shared.state.fetch_sub(1, Ordering::Release);
                }
            })?;
            started.wait();
            pool.workers.push(Worker { thread: handle.thread().clone(), sleeping, handle: Some(handle) });
        }
        storage::ensure(0)?;
        Ok(pool)
    }

    /// Threads that work in a region, the caller's included.
    pub fn n_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(0)` to `task(n_tasks - 1)`, each once, on all threads; returns when all are done.
    ///
    /// # Panics
    /// When a task panics, after all threads left, or when there are 2^32 tasks or more.
    pub fn run(&mut self, n_tasks: usize, task: &Task<'_>) {
        if self.workers.is_empty() || n_tasks <= 1 {
            (0..n_tasks).for_each(task);
            return;
        }
        assert!(u32::try_from(n_tasks).is_ok(), "{n_tasks} tasks in a region");
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. The pointer is used by workers inside this region only, and this function
        // does not return or unwind before all of them have left.
        let task: &Task<'static> = unsafe { std::mem::transmute(task) };
        // SAFETY: the region is closed and empty (the last `run` saw to it, and `&mut self` excludes another), so no
        // worker reads `job` now.
        unsafe { *shared.job.get() = task };
        let (n_tasks, n_threads) = (n_tasks as u64, self.n_threads() as u64);
        let number = |i: usize| (i as u64 * n_tasks / n_threads) as u32;
        for (i, share) in shared.shares.iter().enumerate() {
            share.set(number(i)..number(i + 1));
        }
        let region = (shared.state.load(Ordering::Relaxed) / REGION).wrapping_add(1) % (1 << 32);
        shared.state.store((region * REGION) | OPEN, Ordering::SeqCst);
        for worker in &self.workers {
            if worker.sleeping.load(Ordering::SeqCst) {
                worker.thread.unpark();
            }
        }
        let own = catch_unwind(AssertUnwindSafe(|| shared.work(0)));
        shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0;
        while shared.state.load(Ordering::Acquire) & INSIDE != 0 {
            spins += 1;
            if spins > SPINS_BEFORE_YIELD {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        assert!(!shared.panicked.swap(false, Ordering::Relaxed), "a task of a parallel region panicked");
    }

    /// Splits the matrix `out` (rows of `stride` elements) into blocks of `block_rows` x `block_cols` and calls
    /// `task` once for each, with the rows and columns it covers.
    ///
    /// # Panics
    /// When `out` is not a whole number of rows, or a block size is 0.
    pub fn run_blocks<T: Send>(
        &mut self,
        out: &mut [T],
        stride: usize,
        block_rows: usize,
        block_cols: usize,
        task: &(dyn Fn(Range<usize>, Range<usize>, BlockMut<'_, T>) + Sync),
    ) {
        assert!(stride > 0 && out.len().is_multiple_of(stride), "{} elements in rows of {stride}", out.len());
        assert!(block_rows > 0 && block_cols > 0, "blocks of {block_rows} x {block_cols}");
        let n_rows = out.len() / stride;
        let (down, across) = (n_rows.div_ceil(block_rows), stride.div_ceil(block_cols));
        let base = SendPtr(out.as_mut_ptr());
        self.run(down * across, &|i| {
            let base = &base;
            let (r, c) = (i / across * block_rows, i % across * block_cols);
            let (rows, cols) = (r..(r + block_rows).min(n_rows), c..(c + block_cols).min(stride));
            let block = BlockMut {
                // SAFETY: `r * stride + c` lies inside `out`.
                first: unsafe { base.0.add(r * stride + c) },
                stride,
                n_rows: rows.len(),
                n_cols: cols.len(),
                borrow: PhantomData,
            };
            // Blocks of different task numbers are disjoint, and `run` hands out each number once.
            task(rows, cols, block);
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in &mut self.workers {
            worker.thread.unpark();
            if let Some(handle) = worker.handle.take() {
                // A worker catches panics of tasks; there is nothing to learn from joining.
                let _ = handle.join();
            }
        }
    }
}

/// Cores this process may use.
pub fn available_cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

struct SendPtr<T>(*mut T);
// SAFETY: the pointer is used by `run_blocks` only, to write disjoint blocks of a slice that it borrows mutably; `T: Send`
// is required there.
unsafe impl<T> Sync for SendPtr<T> {}

/// A rectangular part of a matrix that one task may write.
pub struct BlockMut<'a, T> {
    first: *mut T,
    stride: usize,
    n_rows: usize,
    n_cols: usize,
    borrow: PhantomData<&'a mut T>,
}

impl<T> BlockMut<'_, T> {
    /// Rows of the block.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Columns of the block.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// Elements from one row of the block to the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The first element, for kernels that write the whole block.
    pub fn as_mut_ptr(&mut self) -> *mut T {
        self.first
    }

    /// The block's rows `rows`.
    ///
    /// # Panics
    /// When there are no such rows.
    pub fn rows_mut(&mut self, rows: Range<usize>) -> BlockMut<'_, T> {
        assert!(rows.start <= rows.end && rows.end <= self.n_rows, "rows {rows:?} of {}", self.n_rows);
        // A row of no block has no place in the matrix.
        let start = if rows.is_empty() { 0 } else { rows.start };
        BlockMut {
            // SAFETY: the row lies inside the matrix that `run_blocks` borrowed.
            first: unsafe { self.first.add(start * self.stride) },
            stride: self.stride,
            n_rows: rows.len(),
            n_cols: self.n_cols,
            borrow: PhantomData,
        }
    }

    /// Row `row` of the block.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row_mut(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.n_rows, "row {row} of {}", self.n_rows);
        // SAFETY: the row lies inside the matrix that `run_blocks` borrowed, no other block covers these elements, and
        // `&mut self` excludes a second borrow through this one.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(row * self.stride), self.n_cols) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn every_task_runs_once_at_any_thread_count() {
        for n_threads in [1, 2, 3, 8] {
            let mut pool = Pool::new(n_threads).unwrap();
            for n_tasks in [0, 1, 2, 7, 100] {
                let counts: Vec<AtomicU32> = (0..n_tasks).map(|_| AtomicU32::new(0)).collect();
                for _ in 0..50 {
                    pool.run(n_tasks, &|i| {
                        counts[i].fetch_add(1, Ordering::Relaxed);
                    });
                }
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 50), "{n_threads} threads, {n_tasks} tasks");
            }
        }
    }

    #[test]
    fn a_share_is_taken_from_both_ends() {
        let share = Share(AtomicU64::new(0));
        assert_eq!(share.take(false), None);
        share.set(7..10);
        assert_eq!(
            [false, true, false, false, true].map(|last| share.take(last)),
            [Some(7), Some(9), Some(8), None, None]
        );
        share.set(0..1);
        assert_eq!([true, true, false].map(|last| share.take(last)), [Some(0), None, None]);
    }

    #[test]
    fn a_thread_does_its_own_tasks_in_order_and_those_of_one_that_is_held_up() {
        let mut pool = Pool::new(2).unwrap();
        let (done, held) = (std::sync::Mutex::new(Vec::new()), AtomicU32::new(0));
        pool.run(8, &|i| {
            done.lock().unwrap().push((std::thread::current().id(), i));
            // The worker's first task waits until the caller has done all others.
            if i == 4 && std::thread::current().name() == Some("tidbit-1") {
                held.store(1, Ordering::SeqCst);
                while done.lock().unwrap().len() < 8 {
                    std::thread::yield_now();
                }
            }
            // The caller's first one waits for the worker.
            while i == 0 && held.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
        });
        let me = std::thread::current().id();
        let mine: Vec<usize> = done.into_inner().unwrap().iter().filter(|(id, _)| *id == me).map(|&(_, i)| i).collect();
        assert_eq!(mine, [0, 1, 2, 3, 7, 6, 5]);
    }

    #[test]
    fn blocks_cover_the_matrix_once() {
        let mut pool = Pool::new(3).unwrap();
        let mut out = vec![0u32; 7 * 10];
        pool.run_blocks(&mut out, 10, 2, 4, &|rows, cols, mut block| {
            assert_eq!((block.n_rows(), block.n_cols()), (rows.len(), cols.len()));
            for r in 0..rows.len() {
                for (c, v) in block.row_mut(r).iter_mut().enumerate() {
                    *v += ((rows.start + r) * 10 + cols.start + c) as u32 + 1;
                }
            }
        });
        assert!(out.iter().enumerate().all(|(i, &v)| v == i as u32 + 1), "{out:?}");
    }

    #[test]
    fn parked_workers_wake_up() {
        let mut pool = Pool::new(2).unwrap();
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            let both = AtomicU32::new(0);
            pool.run(2, &|_| {
                both.fetch_add(1, Ordering::SeqCst);
                // Each thread waits for the other: fails (by hanging) if the worker never wakes.
                while both.load(Ordering::SeqCst) < 2 {
                    std::thread::yield_now();
                }
            });
        }
    }

    #[test]
    fn a_panicking_task_reaches_the_caller_and_the_pool_goes_on() {
        let mut pool = Pool::new(4).unwrap();
        let result = catch_unwind(AssertUnwindSafe(|| pool.run(64, &|i| assert!(i != 17, "task 17 fails"))));
        assert!(result.is_err());
        let count = AtomicU32::new(0);
        pool.run(64, &|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.load(Ordering::Relaxed), 64);
    }
}
