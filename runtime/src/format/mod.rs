//! The model file: one safetensors container that is mapped and used in place.
//!
//! `docs/format.md` is the specification; this module is its implementation. [`header`] is what
//! stands in the file's metadata and how a header is written; [`model_file`] opens a file, checks
//! *everything* once and hands out tensors that are trusted from then on. Writing the tensors
//! themselves is the converter's work.

#![forbid(unsafe_code)]

pub mod header;
pub mod model_file;

pub use header::{Chat, Provenance, SourceFile, Stored, TensorRecord};
pub use model_file::{Access, Contents, FilePart, ModelFile, VerifyReport, open_regular};

/// Version of the format; a reader refuses any other.
pub const VERSION: &str = "1";
/// The data segment starts at a multiple of this: the largest page of the systems we map on.
pub const DATA_ALIGN: usize = 16 * 1024;
/// Name of the tensor that holds the tokenizer's description, in a file without [`TOKENIZER_TABLES`].
pub const TOKENIZER: &str = "tokenizer.json";
/// Name of the tensor that holds the tokenizer's tables.
pub const TOKENIZER_TABLES: &str = "tokenizer.bpe";

/// The longest chat template with its tokens, in bytes; those of real models have up to 20,000.
pub const MAX_CHAT: usize = 1 << 18;

/// Keys of the safetensors metadata.
pub mod key {
    /// Says that a safetensors file is a model of ours: [`VERSION`](super::VERSION).
    pub const VERSION: &str = "tidbit.version";
    /// The interleaving of panels: [`TILE_ID`](crate::quant::TILE_ID).
    pub const TILE: &str = "tidbit.tile";
    /// JSON of [`Spec`](crate::spec::Spec).
    pub const SPEC: &str = "tidbit.spec";
    /// JSON of a map from tensor name to [`TensorRecord`](super::TensorRecord).
    pub const TENSORS: &str = "tidbit.tensors";
    /// JSON of [`Provenance`](super::Provenance).
    pub const PROVENANCE: &str = "tidbit.provenance";
    /// JSON of [`Chat`](super::Chat), if the model has one.
    pub const CHAT: &str = "tidbit.chat";
    /// SHA-256 over all of the above and the tensors' places.
    pub const DIGEST: &str = "tidbit.digest";
}
