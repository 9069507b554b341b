//! Ctrl-C (and SIGTERM): while work is under way it sets that work's flag, so that files are cleaned up
//! and statistics printed; work that cannot be stopped half-way names a folder to remove instead. At any
//! other time it ends the process.

use anyhow::Context;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};

/// What Ctrl-C does to the work under way.
enum Work {
    /// Sets its flag.
    Flag(Arc<AtomicBool>),
    /// Removes its folder and ends the process.
    Folder(PathBuf),
}

/// The work under way.
static WORK: Mutex<Option<Work>> = Mutex::new(None);

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
        flag.store(false, Ordering::Relaxed);
        begin(Work::Flag(Arc::clone(&flag)))?;
        Ok(Self { flag })
    }

    /// Whether Ctrl-C came.
    pub(crate) fn hit(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }
}

impl Drop for Catch {
    fn drop(&mut self) {
        end();
    }
}

/// While it lives, Ctrl-C removes a folder and ends the process.
#[derive(Debug)]
pub(crate) struct RemoveOnInterrupt(());

impl RemoveOnInterrupt {
    /// Makes Ctrl-C remove `folder` with all that is in it.
    ///
    /// # Errors
    /// When the system lets no handler be installed.
    pub(crate) fn new(folder: &Path) -> anyhow::Result<Self> {
        begin(Work::Folder(folder.to_owned()))?;
        Ok(Self(()))
    }
}

impl Drop for RemoveOnInterrupt {
    fn drop(&mut self) {
        end();
    }
}

fn begin(work: Work) -> anyhow::Result<()> {
    static INSTALL: Once = Once::new();
    let mut installed = Ok(());
    INSTALL.call_once(|| installed = ctrlc::set_handler(on_interrupt));
    installed.context("cannot listen to Ctrl-C")?;
    *WORK.lock().unwrap_or_else(PoisonError::into_inner) = Some(work);
    Ok(())
}

fn end() {
    *WORK.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

/// Runs on a thread of its own, so it may lock. The lock is held to the end: work that fails because its folder is gone
/// waits there, and says nothing.
fn on_interrupt() {
    match WORK.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
        Some(Work::Flag(flag)) => flag.store(true, Ordering::Relaxed),
        Some(Work::Folder(folder)) => {
            // A file may appear while the others are removed.
            let gone = (0..3).any(|_| std::fs::remove_dir_all(folder).is_ok());
            if !gone && folder.exists() {
                crate::output::note(format_args!("warning: {}: could not be removed", folder.display()));
            }
            std::process::exit(EXIT_CODE);
        }
        None => std::process::exit(EXIT_CODE),
    }
}
