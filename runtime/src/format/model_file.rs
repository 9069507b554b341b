//! Opening a model file: map it, check everything, hand out tensors.

use super::header::{Chat, Provenance, Stored, TensorRecord, digest, hex, sha256_hex};
use super::{DATA_ALIGN, TOKENIZER, TOKENIZER_TABLES, VERSION, key};
use crate::error::FormatError;
use crate::quant::{Matrix, TILE_ID};
use crate::spec::{Role, Spec};
use crate::storage::{self, ALIGN, Bytes};
use safetensors::tensor::Metadata;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The longest header that is read, in bytes (safetensors' own limit).
const MAX_HEADER: u64 = 100_000_000;

/// An opened model file. Whatever it hands out has been checked against the spec.
#[derive(Clone, Debug)]
pub struct ModelFile {
    bytes: Bytes,
    contents: Contents,
}

/// What the header of a model file says, checked against the spec and the length of the file.
#[derive(Clone, Debug)]
pub struct Contents {
    path: PathBuf,
    file_bytes: usize,
    spec: Spec,
    provenance: Provenance,
    chat: Option<Chat>,
    tensors: BTreeMap<String, Tensor>,
}

/// How the bytes of a file are had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Mapped: nothing is read before it is used, and processes share the pages. Who truncates the file ends the process
    /// (SIGBUS).
    #[default]
    Map,
    /// Read into memory: the file may be truncated, rewritten or removed afterwards.
    Copy,
}

/// A model that is a part of an open file.
#[derive(Clone, Copy, Debug)]
pub struct FilePart<'a> {
    /// The file, which need not stay open.
    pub file: &'a File,
    /// Names it in messages.
    pub path: &'a Path,
    /// Where the model begins.
    pub offset: u64,
    /// Its bytes; up to the end of the file when `None`.
    pub len: Option<u64>,
}

/// A tensor's record and place.
#[derive(Clone, Debug)]
struct Tensor {
    record: TensorRecord,
    range: Range<usize>,
}

/// What [`ModelFile::verify`] read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifyReport {
    /// Tensors whose checksum is right.
    pub tensors: usize,
    /// Bytes they have together.
    pub bytes: u64,
}

impl ModelFile {
    /// Maps and checks a model file. Only the header is read; tensor data is not touched.
    ///
    /// # Errors
    /// The first thing that is wrong, with the file, the tensor and both values.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        Self::open_as(path, Access::Map)
    }

    /// The same, mapped or copied.
    ///
    /// # Errors
    /// As [`open`](Self::open), and when there is not enough memory for a copy.
    pub fn open_as(path: &Path, access: Access) -> Result<Self, FormatError> {
        let file = open_regular(path)?;
        Self::from_file(FilePart { file: &file, path, offset: 0, len: None }, access)
    }

    /// Checks a model that is a part of an open file. Its place must be a multiple of [`ALIGN`] bytes if it is mapped.
    ///
    /// # Errors
    /// As [`open`](Self::open), and when the file does not have such a part.
    pub fn from_file(part: FilePart<'_>, access: Access) -> Result<Self, FormatError> {
        let path = part.path;
        let io = |source| FormatError::Io { path: path.into(), source };
        let len = part.check()?;
        match access {
            Access::Map if !part.offset.is_multiple_of(ALIGN as u64) => {
                let reason = format!("a model at byte {} cannot be mapped, only at multiples of {ALIGN}", part.offset);
                Err(FormatError::Container { path: path.into(), reason })
            }
            Access::Map => Self::from_bytes(path, Bytes::map_part(part.file, part.offset, len).map_err(io)?),
            Access::Copy => {
                // Before memory is taken that a file only claims to need.
                Contents::read(part)?;
                Self::from_bytes(path, Bytes::read_part(part.file, part.offset, len).map_err(io)?)
            }
        }
    }

    /// Checks a model that is in memory already; `path` only names it in messages.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(path: &Path, bytes: Bytes) -> Result<Self, FormatError> {
        Ok(Self { contents: Contents::of_bytes(path, &bytes)?, bytes })
    }

    /// What its header says.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.contents.path
    }

    /// The architecture.
    pub fn spec(&self) -> &Spec {
        &self.contents.spec
    }

    /// Where it came from.
    pub fn provenance(&self) -> &Provenance {
        &self.contents.provenance
    }

    /// How the model is spoken to, if it answers.
    pub fn chat(&self) -> Option<&Chat> {
        self.contents.chat.as_ref()
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether they lie in a mapped file.
    pub fn is_mapped(&self) -> bool {
        self.bytes.is_mapped()
    }

    /// SHA-256 of everything before the tensors, in hexadecimal. It stands for the whole file, since the header has the
    /// checksum of every tensor.
    pub fn header_sha256(&self) -> String {
        hex(&self.header_digest())
    }

    /// The same as bytes.
    pub fn header_digest(&self) -> [u8; 32] {
        let end = self.contents.tensors.values().map(|t| t.range.start).min().unwrap_or(self.bytes.len());
        Sha256::digest(&self.bytes[..end]).into()
    }

    /// Length of the file in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether the file is empty (an opened one never is).
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Name, record and bytes in the file of every tensor, in order of the names.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorRecord, usize)> {
        self.contents.tensors()
    }

    /// The tokenizer's form ([`TOKENIZER`] or [`TOKENIZER_TABLES`]) and its bytes, when the file has one.
    pub fn tokenizer(&self) -> Option<(&'static str, Bytes)> {
        [TOKENIZER_TABLES, TOKENIZER].into_iter().find_map(|name| {
            let tensor = self.contents.tensors.get(name)?;
            let len = *tensor.record.shape.first()?;
            Some((name, self.bytes.slice(tensor.range.start..tensor.range.start.checked_add(len)?)?))
        })
    }

    /// A weight matrix of the spec.
    ///
    /// # Errors
    /// When the spec has no matrix of that name.
    pub fn matrix(&self, name: &str) -> Result<Matrix, FormatError> {
        let error = |reason: String| FormatError::Tensor { path: self.path().into(), tensor: name.into(), reason };
        let tensor = self.contents.tensors.get(name).ok_or_else(|| error("missing".into()))?;
        let bytes = self.bytes.slice(tensor.range.clone()).ok_or_else(|| error("outside the file".into()))?;
        match (tensor.record.stored, tensor.record.shape.as_slice()) {
            (Stored::Matrix(quant), &[rows, cols]) => Matrix::new(quant, rows, cols, bytes).map_err(error),
            (stored, _) => Err(error(format!("expected a matrix, found {stored}"))),
        }
    }

    /// A vector of the spec, padded with zeros to a multiple of 16 elements.
    ///
    /// # Errors
    /// When the spec has no vector of that name.
    pub fn vector(&self, name: &str) -> Result<Vec<f32>, FormatError> {
        let error = |reason: String| FormatError::Tensor { path: self.path().into(), tensor: name.into(), reason };
        let tensor = self.contents.tensors.get(name).ok_or_else(|| error("missing".into()))?;
        if tensor.record.stored != Stored::Vector {
            return Err(error(format!("expected a vector, found {}", tensor.record.stored)));
        }
        let bytes = self.bytes.slice(tensor.range.clone()).ok_or_else(|| error("outside the file".into()))?;
        Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    /// Reads the whole file into memory and keeps it there for as long as it is open.
    ///
    /// # Errors
    /// When the system refuses, mostly because a process may lock only so much.
    pub fn lock(&self) -> Result<(), FormatError> {
        let error = |source| FormatError::Lock { path: self.path().into(), bytes: self.bytes.len(), source };
        self.bytes.lock().map_err(error)
    }

    /// Reads every tensor and compares its checksum.
    ///
    /// # Errors
    /// The first tensor whose bytes are not those that were written.
    pub fn verify(&self) -> Result<VerifyReport, FormatError> {
        let mut report = VerifyReport { tensors: 0, bytes: 0 };
        for (name, tensor) in &self.contents.tensors {
            let error = |reason| FormatError::Tensor { path: self.path().into(), tensor: name.clone(), reason };
            let bytes = self.bytes.get(tensor.range.clone()).ok_or_else(|| error("outside the file".into()))?;
            let found = sha256_hex(bytes);
            if found != tensor.record.sha256 {
                return Err(error(format!("sha256 is {found}, the header says {}", tensor.record.sha256)));
            }
            report.tensors += 1;
            report.bytes += bytes.len() as u64;
        }
        Ok(report)
    }
}

impl Contents {
    /// Reads and checks the header of a model, and nothing else of its file.
    ///
    /// # Errors
    /// As [`ModelFile::open`].
    pub fn read(part: FilePart<'_>) -> Result<Self, FormatError> {
        let path = part.path;
        let io = |source| FormatError::Io { path: path.into(), source };
        let len = part.check()?;
        let mut first = [0; 8];
        let first = if len < first.len() {
            None
        } else {
            storage::read_exact_at(part.file, &mut first, part.offset).map_err(io)?;
            Some(&first)
        };
        let header_len = header_len(path, first, len)?;
        let mut header = Vec::new();
        header.try_reserve_exact(header_len).map_err(|_| io(std::io::ErrorKind::OutOfMemory.into()))?;
        header.resize(header_len, 0);
        storage::read_exact_at(part.file, &mut header, part.offset).map_err(io)?;
        if first != header.first_chunk() {
            return Err(FormatError::Container { path: path.into(), reason: "it changed while it was read".into() });
        }
        Self::check(path, &header, len)
    }

    /// Checks the header of a model that is in memory.
    ///
    /// # Errors
    /// As [`ModelFile::open`].
    pub fn of_bytes(path: &Path, bytes: &[u8]) -> Result<Self, FormatError> {
        let header = header_len(path, bytes.first_chunk(), bytes.len())?;
        Self::check(path, &bytes[..header], bytes.len())
    }

    /// Checks a header against the spec in it and the length of the whole file.
    fn check(path: &Path, header: &[u8], len: usize) -> Result<Self, FormatError> {
        // What is made of it takes a few times its length.
        storage::ensure(header.len().saturating_mul(4))
            .map_err(|source| FormatError::Io { path: path.into(), source })?;
        let (data_at, container) = read_container(path, header, len)?;
        let no_metadata = HashMap::new();
        let metadata = container.metadata().as_ref().unwrap_or(&no_metadata);
        let get = |key: &'static str| {
            metadata.get(key).map(String::as_str).ok_or(FormatError::Foreign { path: path.into(), missing: key })
        };
        for (field, supported) in [(key::VERSION, VERSION), (key::TILE, TILE_ID)] {
            let found = get(field)?;
            if found != supported {
                return Err(FormatError::Version { path: path.into(), field, found: found.into(), supported });
            }
        }
        check_digest(path, &container, metadata, get(key::DIGEST)?)?;

        let header = |reason: String| FormatError::Header { path: path.into(), reason };
        let json_error = |key: &str, e: serde_json::Error| header(format!("`{key}`: {e}"));
        let spec: Spec = serde_json::from_str(get(key::SPEC)?).map_err(|e| json_error(key::SPEC, e))?;
        spec.validate().map_err(|e| header(format!("`{}`: {e}", key::SPEC)))?;
        let provenance = serde_json::from_str(get(key::PROVENANCE)?).map_err(|e| json_error(key::PROVENANCE, e))?;
        let chat: Option<Chat> = match metadata.get(key::CHAT) {
            None => None,
            Some(json) => Some(serde_json::from_str(json).map_err(|e| json_error(key::CHAT, e))?),
        };
        chat.iter().try_for_each(Chat::check).map_err(|e| header(format!("`{}`: {e}", key::CHAT)))?;
        let records: BTreeMap<String, TensorRecord> =
            serde_json::from_str(get(key::TENSORS)?).map_err(|e| json_error(key::TENSORS, e))?;

        let tensors = place_tensors(path, &container, records, data_at)?;
        let contents = Self { path: path.into(), file_bytes: len, spec, provenance, chat, tensors };
        contents.check_against_spec()?;
        Ok(contents)
    }

    /// The architecture.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Name, record and bytes in the file of every tensor, in order of the names.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorRecord, usize)> {
        self.tensors.iter().map(|(name, t)| (name.as_str(), &t.record, t.range.len()))
    }

    /// Length of the file in bytes.
    pub fn file_bytes(&self) -> usize {
        self.file_bytes
    }

    /// Bytes of memory that an opened model takes besides its file: the vectors.
    pub fn vector_bytes(&self) -> usize {
        self.tensors().filter(|(_, record, _)| record.stored == Stored::Vector).map(|(_, _, bytes)| bytes).sum()
    }

    /// Every tensor of the spec is there with its shape, and nothing else but a tokenizer.
    fn check_against_spec(&self) -> Result<(), FormatError> {
        // A hostile spec may claim millions of layers; there are never more than tensors.
        let n_layers = self.spec.total_layers();
        if n_layers > self.tensors.len() {
            let reason = format!("{n_layers} layers cannot be made of {} tensors", self.tensors.len());
            return Err(FormatError::Header { path: self.path.clone(), reason });
        }
        let declared = self.spec.tensors();
        for decl in &declared {
            let error = |reason| FormatError::Tensor { path: self.path.clone(), tensor: decl.name.clone(), reason };
            let tensor = self.tensors.get(&decl.name).ok_or_else(|| error("missing".into()))?;
            if tensor.record.shape != decl.shape {
                return Err(error(format!("expected shape {:?}, found {:?}", decl.shape, tensor.record.shape)));
            }
            let fits = match decl.role {
                Role::Vector => tensor.record.stored == Stored::Vector,
                Role::Embedding | Role::Positions | Role::Projection | Role::Router | Role::Head => {
                    matches!(tensor.record.stored, Stored::Matrix(_))
                }
            };
            if !fits {
                let expected = if decl.role == Role::Vector { "a vector" } else { "a matrix" };
                return Err(error(format!("expected {expected}, found {}", tensor.record.stored)));
            }
        }
        let tokenizers: Vec<_> =
            [TOKENIZER, TOKENIZER_TABLES].into_iter().filter_map(|n| self.tensors.get_key_value(n)).collect();
        let wrong =
            |(name, tensor): &&(&String, &Tensor)| tensor.record.stored != Stored::Bytes || *name != tokenizers[0].0;
        if let Some((name, tensor)) = tokenizers.iter().find(wrong) {
            let reason = match tensor.record.stored {
                Stored::Bytes => format!("beside `{}`, a model has one tokenizer", tokenizers[0].0),
                stored => format!("expected bytes, found {stored}"),
            };
            return Err(FormatError::Tensor { path: self.path.clone(), tensor: (*name).clone(), reason });
        }
        let known: std::collections::HashSet<&str> =
            declared.iter().map(|d| d.name.as_str()).chain([TOKENIZER, TOKENIZER_TABLES]).collect();
        match self.tensors.iter().find(|(name, _)| !known.contains(name.as_str())) {
            Some((name, _)) => {
                let reason = "not part of this architecture".into();
                Err(FormatError::Tensor { path: self.path.clone(), tensor: name.clone(), reason })
            }
            None => Ok(()),
        }
    }
}

impl FilePart<'_> {
    /// Its length, once it is known to be a part of a regular file.
    fn check(&self) -> Result<usize, FormatError> {
        let path = self.path;
        let metadata = self.file.metadata().map_err(|source| FormatError::Io { path: path.into(), source })?;
        regular(path, metadata.file_type())?;
        let error = |reason| FormatError::Container { path: path.into(), reason };
        let all = metadata.len();
        if all == 0 {
            return Err(error("the file is empty".into()));
        }
        let len = self.len.unwrap_or_else(|| all.saturating_sub(self.offset));
        if self.offset.checked_add(len).is_none_or(|end| end > all) {
            let offset = self.offset;
            return Err(error(format!("expected {len} bytes from byte {offset} on, the file has {all} in all")));
        }
        usize::try_from(len).map_err(|_| error(format!("{len} bytes are more than this machine can address")))
    }
}

/// Opens a file for reading, if it is a file: opening a pipe would wait for its writer.
///
/// # Errors
/// When the system refuses, or something else has the path.
pub fn open_regular(path: &Path) -> Result<File, FormatError> {
    let io = |source| FormatError::Io { path: path.into(), source };
    regular(path, std::fs::metadata(path).map_err(io)?.file_type())?;
    File::open(path).map_err(io)
}

fn regular(path: &Path, kind: std::fs::FileType) -> Result<(), FormatError> {
    if kind.is_file() {
        return Ok(());
    }
    let found = if kind.is_dir() { "directory" } else { "special file" };
    Err(FormatError::NotAFile { path: path.into(), found })
}

/// The length of the header with the eight bytes that say it, checked against the length of the file.
fn header_len(path: &Path, first: Option<&[u8; 8]>, len: usize) -> Result<usize, FormatError> {
    let error = |reason: String| FormatError::Container { path: path.into(), reason };
    let Some(first) = first else {
        return Err(error(format!("{len} bytes are too few for a model")));
    };
    let length = u64::from_le_bytes(*first);
    let limit = MAX_HEADER.min(len.saturating_sub(first.len()) as u64);
    if length > limit {
        return Err(error(format!(
            "the header claims {length} bytes, at most {limit} are possible: not a model, or truncated"
        )));
    }
    Ok(first.len() + length as usize)
}

/// Parses the safetensors header of a file with `len` bytes: where the data starts, and the table of tensors.
fn read_container(path: &Path, header: &[u8], len: usize) -> Result<(usize, Metadata), FormatError> {
    let error = |reason: String| FormatError::Container { path: path.into(), reason };
    let container: Metadata =
        serde_json::from_slice(&header[8..]).map_err(|e| error(format!("damaged header: {e}")))?;
    let data_at = header.len();
    if !data_at.is_multiple_of(DATA_ALIGN)
        && container.metadata().as_ref().is_some_and(|m| m.contains_key(key::VERSION))
    {
        return Err(error(format!("data starts at byte {data_at}, which is no multiple of {DATA_ALIGN}")));
    }
    let (expected, found) = (container.data_len(), len - data_at);
    if expected != found {
        let what = if found < expected { "truncated" } else { "too long" };
        return Err(error(format!("{what}: the header describes {expected} bytes of tensors, the file has {found}")));
    }
    Ok((data_at, container))
}

fn check_digest(
    path: &Path,
    container: &Metadata,
    metadata: &HashMap<String, String>,
    expected: &str,
) -> Result<(), FormatError> {
    let pairs = metadata.iter().filter(|(k, _)| *k != key::DIGEST).map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let tensors = container.tensors();
    let mut places: Vec<_> = tensors.iter().map(|(name, info)| (info.data_offsets, name.as_str())).collect();
    places.sort_unstable();
    let found = digest(&pairs, places.into_iter().map(|((_, end), name)| (name, end)));
    if found == expected {
        return Ok(());
    }
    let reason = format!("damaged header: its sha256 is {found}, expected {expected}");
    Err(FormatError::Container { path: path.into(), reason })
}

/// Joins the records with their places in the file, and checks that sizes agree.
fn place_tensors(
    path: &Path,
    container: &Metadata,
    records: BTreeMap<String, TensorRecord>,
    data_at: usize,
) -> Result<BTreeMap<String, Tensor>, FormatError> {
    let places = container.tensors();
    let error = |tensor: &str, reason: String| FormatError::Tensor { path: path.into(), tensor: tensor.into(), reason };
    if let Some(name) = places.keys().find(|name| !records.contains_key(*name)) {
        return Err(error(name, format!("in the file, but not in `{}`", key::TENSORS)));
    }
    let mut tensors = BTreeMap::new();
    for (name, record) in records {
        let Some(info) = places.get(&name) else {
            return Err(error(&name, format!("in `{}`, but not in the file", key::TENSORS)));
        };
        let (start, end) = info.data_offsets;
        let empty = record.shape.contains(&0);
        let Some(expected) = record.stored.bytes(&record.shape).filter(|_| !empty) else {
            return Err(error(&name, format!("shape {:?} is not possible for {}", record.shape, record.stored)));
        };
        if end - start != expected {
            let reason =
                format!("{:?} in {} needs {expected} bytes, found {}", record.shape, record.stored, end - start);
            return Err(error(&name, reason));
        }
        // `data_at + end` is at most the file's length, which was checked.
        tensors.insert(name, Tensor { record, range: data_at + start..data_at + end });
    }
    Ok(tensors)
}
