//! What every call goes through: panics become a status, failures leave a message.
//!
//! The panic hook is replaced once, by one that hands the place and the text of a panic to this guard instead of printing
//! them. It covers calls of this library only: any other panic goes to the hook that was there before.

use crate::message;
use crate::status::{Outcome, Status, TIDBIT_INTERNAL, TIDBIT_OK};
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    /// Calls of this library that the thread is in.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    /// Place and text of a panic inside one.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs the inside of a call.
pub(crate) fn guard(call: impl FnOnce() -> Outcome) -> Status {
    guard_status(|| call().map(|()| TIDBIT_OK))
}

/// Runs the inside of a call that has more than one way to succeed.
pub(crate) fn guard_status(call: impl FnOnce() -> Outcome<Status>) -> Status {
    install_hook();
    enter(1);
    // Whatever a panic leaves half-way is behind a mutex that it poisons, or is dropped by it.
    let result = catch_unwind(AssertUnwindSafe(call));
    enter(-1);
    match result {
        Ok(Ok(status)) => status,
        Ok(Err(failure)) => {
            message::set(&failure.message);
            failure.status
        }
        Err(payload) => {
            let text = PANIC.try_with(|text| std::mem::take(&mut *text.borrow_mut())).unwrap_or_default();
            message::set(&format!("internal error, please report it: {text}"));
            // Dropping a payload could panic once more.
            std::mem::forget(payload);
            TIDBIT_INTERNAL
        }
    }
}

fn enter(step: isize) {
    let _ = DEPTH.try_with(|depth| depth.set(depth.get().saturating_add_signed(step)));
}

fn install_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let ours = DEPTH.try_with(Cell::get).is_ok_and(|depth| depth > 0);
            // The workers of a session panic on threads of their own; the call that waits for them panics next.
            let worker = std::thread::current().name().is_some_and(|name| name.starts_with("tidbit-"));
            if ours {
                let _ = PANIC.try_with(|text| {
                    if let Ok(mut text) = text.try_borrow_mut() {
                        *text = info.to_string().replace(['\n', '\r'], " ");
                    }
                });
            } else if !worker {
                before(info);
            }
        }));
    });
}

/// Panics where the tests ask for it, to see what the host gets.
#[cfg(feature = "inject-panic")]
pub mod inject {
    use std::cell::Cell;

    thread_local! {
        static PLACE: Cell<&'static str> = const { Cell::new("") };
    }

    /// The next call of this thread that comes to `place` panics there.
    pub fn panic_at(place: &'static str) {
        PLACE.set(place);
    }

    pub(crate) fn here(place: &str) {
        if PLACE.get() == place {
            PLACE.set("");
            panic!("injected into {place}");
        }
    }
}

/// A place where the tests may want a panic; nothing in what is released.
pub(crate) fn injected(place: &str) {
    #[cfg(feature = "inject-panic")]
    inject::here(place);
    let _ = place;
}
