//! The converter: a trained Hugging Face checkpoint in, or weights that a file of ours describes; one Tidbit model file out.
//!
//! | module | what lives there |
//! |---|---|
//! | `error` | [`ConvertError`] |
//! | `checkpoint` | readers of safetensors, torch and GGUF files: which tensor lies where |
//! | `config` | `config.json`, with no field dropped in silence |
//! | `family` | one file per family: config to spec, tensor names to roles and orders; `family::spec_file` reads files of ours |
//! | `generation` | the tokens that end a text |
//! | `mapping` | every source tensor accounted for |
//! | `sentence` | how sentence-transformers pools, beside a checkpoint |
//! | `tokenizer` | `tokenizer.json`, or one built from vocabulary and merges |
//! | `plan` | what will be written, before any weight is read |
//! | `stream` | source files, each read once: tensors and checksums |
//! | `rows` | tensors as rows of the model's matrices |
//! | `calibrate` | matrices rounded with data |
//! | `writer` | encoding and writing, one tensor at a time |
//! | `conversion` | all of it together |
//!
//! Source files are read, never mapped, once and in their own order, a little ahead of the encoder: peak memory is the
//! largest tensor's sources plus some 80 megabytes. Where one of our tensors is made of several (queries, keys and values), the first wait
//! in memory for the last.

#![forbid(unsafe_code)]

mod calibrate;
mod checkpoint;
mod config;
mod conversion;
mod disk;
mod error;
mod family;
mod generation;
mod mapping;
mod plan;
mod random;
mod rows;
mod sentence;
mod stream;
mod tokenizer;
mod writer;

pub use calibrate::journal_folder;
pub use conversion::{Checkpoint, convert, convert_calibrated, read_tokenizer, write_random};
pub use error::ConvertError;
pub use family::supported_families;
pub use plan::{Plan, PlannedTensor};
pub use writer::check_output;

use sha2::{Digest as _, Sha256};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tidbit_runtime::format::header::hex;
use tidbit_runtime::quant::QuantType;
use tidbit_runtime::spec::Spec;

/// How to convert.
#[derive(Clone, Debug)]
pub struct Options {
    /// The quant type of the projections; see [`Plan`] for what the other tensors get.
    pub quant: QuantType,
    /// Set from anywhere to stop; honoured every few megabytes.
    pub cancel: Option<Arc<AtomicBool>>,
}

/// A text to calibrate with where none is given: excerpts of 48 English books in the public domain, of the training data of
/// the demo models.
pub const CALIBRATION_TEXT: &str = include_str!("calibrate/text.txt");

/// What to calibrate with.
#[derive(Clone, Debug)]
pub struct Calibration {
    /// Stands for the text in messages: its file.
    pub name: PathBuf,
    /// The text.
    pub text: String,
    /// Windows of 512 tokens to take from it, at most.
    pub windows: usize,
    /// How large the model may be, if each matrix may have a type of its own.
    pub target: Option<Target>,
}

impl Calibration {
    /// What the model file says of it.
    fn record(&self) -> String {
        let name = self.name.file_name().unwrap_or_default().to_string_lossy();
        let text = format!("{name}, sha256 {}", hex(&Sha256::digest(&self.text)));
        let size = match self.target {
            None => String::new(),
            Some(Target::FileBytes(bytes)) => format!(", for {bytes} bytes"),
            Some(Target::BitsPerWeight(bits)) => format!(", for {bits} bits per weight"),
        };
        format!("{text}, at most {} windows of {}{size}", self.windows, calibrate::WINDOW)
    }
}

/// How large a model may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// Bytes of the file.
    FileBytes(u64),
    /// Bits for each parameter, all tensors counted.
    BitsPerWeight(f64),
}

/// Is told how far a conversion is. All calls come from the converting thread.
pub trait Progress {
    /// The conversion starts: bytes of source tensors to read, and tensors to write.
    fn begin(&mut self, total_bytes: u64, tensors: usize) {
        let _ = (total_bytes, tensors);
    }

    /// How much `done` of so many matrices matter has been measured.
    fn measured(&mut self, done: usize, all: usize) {
        let _ = (done, all);
    }

    /// A tensor has been written, which took so many bytes of the source.
    fn tensor(&mut self, name: &str, source_bytes: u64) {
        let _ = (name, source_bytes);
    }

    /// Everything has been written.
    fn end(&mut self) {}
}

/// No progress wanted.
impl Progress for () {}

/// What a conversion did.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was written.
    pub plan: Plan,
    /// Bytes of the file.
    pub file_bytes: u64,
}

/// Whether a file describes a model without its weights, by its name: a spec file (`.yaml`, `.yml`) or a config (`.json`), in
/// capitals or not. Such a file is for [`read_spec`].
pub fn is_description(path: &Path) -> bool {
    checkpoint::is_spec_file(path) || path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"))
}

/// Reads a file that describes a model without its weights: a spec file (`.yaml`, `.yml`; `docs/model-files.md`), or a bare
/// `config.json`. Returns the architecture, and the fields that were not needed.
///
/// # Errors
/// What is unknown, contradicts itself or is not supported: one line with the file, the key and its value.
pub fn read_spec(path: &Path) -> Result<(Spec, Vec<String>), ConvertError> {
    let described = family::read_described(path)?;
    Ok((described.spec, described.left.ignored))
}

/// Reads a spec file from a string; `name_for_messages` stands for its file.
///
/// # Errors
/// As [`read_spec`].
pub fn spec_from_yaml(name_for_messages: &str, yaml: &str) -> Result<Spec, ConvertError> {
    Ok(family::spec_file::read(name_for_messages, yaml.as_bytes())?.spec)
}

/// Reads a config from a string; `name_for_messages` stands for its file.
///
/// # Errors
/// As the config of a checkpoint.
pub fn spec_from_json(name_for_messages: &str, json: &str) -> Result<(Spec, Vec<String>), ConvertError> {
    let described = family::read_config(name_for_messages, json.as_bytes())?;
    Ok((described.spec, described.left.ignored))
}

/// The caller's wish to stop.
#[derive(Clone, Copy)]
struct Cancel<'a>(Option<&'a AtomicBool>);

impl Cancel<'_> {
    fn check(self) -> Result<(), ConvertError> {
        match self.0 {
            Some(flag) if flag.load(Ordering::Relaxed) => Err(ConvertError::Cancelled),
            _ => Ok(()),
        }
    }
}
