//! How the bytes of a model are had: mapped, or copied into huge pages.
//!
//! Decoding reads all weights for each token. In a mapped file they lie in pages of 4 KiB, and the processor looks up where
//! each of them is; in a copy, where the system has huge pages, in ones of 2 MiB. A copy is made once and takes the file's size
//! of memory that no other process shares.
//!
//! GPT-2 124M in `q4` on two cores of a virtual machine, in turns: 25 ms to copy 77 MB, then 5 % (one thread) to 10 % (two)
//! more tokens per second, in `q8` 15 % and 4 %. A copy pays after 100 to 200 tokens.

use crate::memory;
use clap::{Args, ValueEnum};
use std::path::Path;
use tidbit_runtime::error::FormatError;
use tidbit_runtime::format::{Access, ModelFile};
use tidbit_runtime::session::Model;

/// Tokens of a run that a copy is made for.
const PAYS_AFTER: usize = 256;

/// How the bytes of a model are had.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct AccessArgs {
    /// Where weights are read from: in-place (the mapped file, whose pages processes share), copy (memory of this process, in
    /// huge pages where the system has them: slower to start, then faster), or auto (copy for long runs, if it fits well).
    #[arg(long, value_name = "HOW", default_value = "auto")]
    pub(crate) access: Choice,
}

/// As [`AccessArgs::access`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Choice {
    Auto,
    Copy,
    InPlace,
}

/// Opens a model of which `n_tokens` will be wanted.
///
/// # Errors
/// As [`Model::open`].
pub(crate) fn open(path: &Path, choice: Choice, n_tokens: usize) -> Result<Model, FormatError> {
    let copy = match choice {
        Choice::Copy => true,
        Choice::InPlace => false,
        Choice::Auto => n_tokens >= PAYS_AFTER && has_huge_pages() && fits_twice(path),
    };
    Model::new(ModelFile::open_as(path, if copy { Access::Copy } else { Access::Map })?)
}

/// Whether the system gives huge pages to who asks for them.
fn has_huge_pages() -> bool {
    let setting = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    setting.is_ok_and(|setting| !setting.contains("[never]"))
}

/// Whether a copy of the file leaves as much memory as it takes.
fn fits_twice(path: &Path) -> bool {
    let bytes = std::fs::metadata(path).map_or(u64::MAX, |file| file.len());
    memory::available().is_some_and(|available| bytes <= available / 2)
}
