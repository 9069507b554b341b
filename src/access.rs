//! How the bytes of a model are had: mapped, or copied into huge pages.
//!
//! Decoding reads all weights for each token. Where they lie in pages of 4 KiB, the processor looks up where each of those is;
//! fewer lookups are enough for pages of 2 MiB. What is mapped lies in huge pages if it came into memory so: as the converter wrote
//! it, or from the disk for this program, on file systems that have such pages. What was downloaded or copied lies in small ones until
//! it leaves memory. A copy is made once, in huge pages where the system has any, and takes the file's size of memory that
//! no other process shares.
//!
//! GPT-2 124M in `q4` on two cores of a virtual machine, small pages, in turns: 25 ms to copy 77 MB, then 5 % (one thread) to 10 %
//! (two) more tokens per second, in `q8` 15 % and 4 %. A copy pays after 100 to 200 tokens.

use crate::memory;
use clap::{Args, ValueEnum};
use std::path::Path;
use tidbit_runtime::error::FormatError;
use tidbit_runtime::format::{Access, ModelFile};
use tidbit_runtime::session::Model;

/// Tokens of a run that a copy is made for.
const PAYS_AFTER: usize = 256;
/// Bytes of a huge page, or of a part of one.
const HUGE_PAGE: usize = 2 << 20;

/// How the bytes of a model are had.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct AccessArgs {
    /// Where weights are read from: in-place (the mapped file, whose pages processes share), copy (memory of this process, in
    /// huge pages where the system has them: slower to start, then faster), or auto (copy for long runs, if the mapped file has
    /// no huge pages and it fits well).
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
    let access = if choice == Choice::Copy { Access::Copy } else { Access::Map };
    let mut file = ModelFile::open_as(path, access)?;
    let long = choice == Choice::Auto && n_tokens >= PAYS_AFTER;
    if long && has_huge_pages() && fits_twice(&file) && !lies_in_huge_pages(&file) {
        file = ModelFile::open_as(path, Access::Copy)?;
    }
    Model::new(file)
}

/// Whether the system gives huge pages to who asks for them.
fn has_huge_pages() -> bool {
    let setting = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    setting.is_ok_and(|setting| !setting.contains("[never]"))
}

/// Whether a copy of the file leaves as much memory as it takes.
fn fits_twice(file: &ModelFile) -> bool {
    memory::available().is_some_and(|available| file.len() as u64 <= available / 2)
}

/// Whether most of a mapped file lies in huge pages.
fn lies_in_huge_pages(file: &ModelFile) -> bool {
    let before = memory::mapped_in_huge_pages();
    for page in file.bytes().chunks(HUGE_PAGE) {
        // Reading a byte maps the page it lies in.
        std::hint::black_box(page[0]);
    }
    let (Some(before), Some(now)) = (before, memory::mapped_in_huge_pages()) else { return false };
    now.saturating_sub(before) > file.len() as u64 / 2
}
