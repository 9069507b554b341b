//! Ctrl-C (and SIGTERM): while work is under way it sets that work's flag, so that files are cleaned up
//! and statistics printed; at any other time it ends the process.

use anyhow::Context;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};

/// The flag of the work under way.
static WORK: Mutex<Option<Arc<AtomicBool>>> = Mutex::new(None);

/// Exit code of a process that Ctrl-C ended: 128 plus the number of SIGINT.
const EXIT_CODE: i32 = 130;

/// While it lives, Ctrl-C sets the flag and does nothing else.
#[derive(Debug)]
pub(crate) struct Catch {
    flag: Arc<AtomicBool>,
}

impl Catch {
    /// Clears `flag` and makes Ctrl-C set it.
    ///
    /// # Errors
    /// When the system lets no handler be installed.
    pub(crate) fn new(flag: Arc<AtomicBool>) -> anyhow::Result<Self> {
        static INSTALL: Once = Once::new();
        let mut installed = Ok(());
        INSTALL.call_once(|| installed = ctrlc::set_handler(on_interrupt));
        installed.context("cannot listen to Ctrl-C")?;
        flag.store(false, Ordering::Relaxed);
        *WORK.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&flag));
        Ok(Self { flag })
    }

    /// Whether Ctrl-C came.
    pub(crate) fn hit(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }
}

impl Drop for Catch {
    fn drop(&mut self) {
        *WORK.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Runs on a thread of its own, so it may lock.
fn on_interrupt() {
    match WORK.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
        Some(flag) => flag.store(true, Ordering::Relaxed),
        None => std::process::exit(EXIT_CODE),
    }
}
