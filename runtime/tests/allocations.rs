//! Running a token allocates nothing.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use tidbit_runtime::format::ModelFile;
use tidbit_runtime::session::{Model, Session, SessionOptions};
use tidbit_runtime::spec::{Encoder, Spec};
use tidbit_runtime::storage::Bytes;

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: passed on.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn a_token_allocates_nothing() {
    for encoder in [None, Some(Encoder { n_layers: 1, start_id: 0 })] {
        allocates_nothing(&Spec { encoder, ..support::spec() });
    }
}

fn allocates_nothing(spec: &Spec) {
    let bytes = support::file(spec, &support::tensors(spec));
    let file = ModelFile::from_bytes(Path::new("m.tidbit"), Bytes::copy_from(&bytes)).unwrap();
    let model = Model::new(file).unwrap();
    for threads in [1, 2] {
        let mut session =
            Session::new(&model, &SessionOptions { threads: Some(threads), ..SessionOptions::default() }).unwrap();
        if model.encoder().is_some() {
            session.encode(&[4, 5, 6]).unwrap();
        }
        session.append(&[1, 2, 3, 4, 5]).unwrap();
        assert!(ALLOCATIONS.load(Ordering::Relaxed) > 0, "allocations are counted");
        // A thread that is only just starting allocates for itself, once. What a token allocates shows in every round.
        let fewest = (0..5).map(|round| {
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            for id in 0..6 {
                session.append(&[round * 6 + id]).unwrap();
            }
            ALLOCATIONS.load(Ordering::Relaxed) - before
        });
        assert_eq!(fewest.min(), Some(0), "{threads} threads");
    }
}
