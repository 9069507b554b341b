//! Checkpoint readers: where a checkpoint's files are, and which tensor lies where in them.
//!
//! Every container comes down to one table of [`SourceTensor`]s: a file, an offset, a type and a
//! shape. Tensors are read with seek and read, never mapped, so that pages of the source do not
//! count as this process's memory; one tensor is held at a time.

pub(crate) mod gguf;
mod index;
mod pickle;
mod safetensors;
mod torch_zip;

use crate::error::{ConvertError, GIT_LFS, shown};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

pub(crate) use ::safetensors::Dtype;

/// The longest JSON file (config, index, tokenizer) that is read, in bytes.
const MAX_JSON: u64 = 256 << 20;

/// Where a tensor lies.
#[derive(Clone, Debug)]
pub(crate) struct SourceTensor {
    /// The file, an index into [`Weights::files`].
    pub(crate) file: usize,
    /// Byte offset in the file.
    pub(crate) offset: u64,
    /// Type of its elements.
    pub(crate) dtype: Dtype,
    /// Its shape.
    pub(crate) shape: Vec<usize>,
    /// Why its bytes cannot be read in order, if so (a strided view in a torch file).
    pub(crate) unreadable: Option<String>,
    /// The blocks that its elements are in, if so; the type is then the one that they are read as.
    pub(crate) blocks: Option<gguf::Blocks>,
}

impl SourceTensor {
    /// Number of elements; `None` when it overflows.
    pub(crate) fn elements(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
    }

    /// Bytes in the file; `None` when it overflows.
    pub(crate) fn bytes(&self) -> Option<u64> {
        match self.blocks {
            Some(blocks) => blocks.bytes_of(self.elements()?).map(|n| n as u64),
            None => (self.elements()? as u64).checked_mul(self.dtype.bitsize() as u64 / 8),
        }
    }
}

/// The weight files of a checkpoint and every tensor in them.
#[derive(Debug, Default)]
pub(crate) struct Weights {
    pub(crate) files: Vec<PathBuf>,
    pub(crate) tensors: BTreeMap<String, SourceTensor>,
}

impl Weights {
    /// Adds a file's tensors.
    fn add_file(&mut self, path: &Path, kind: Kind) -> Result<(), ConvertError> {
        let file = self.files.len();
        let found = match kind {
            Kind::Safetensors => safetensors::read(path, file)?,
            Kind::Torch => torch_zip::read(path, file)?,
        };
        self.files.push(path.into());
        for (name, tensor) in found {
            if let Some(earlier) = self.tensors.insert(name.clone(), tensor) {
                let other = self.files.get(earlier.file).map(|p| p.display().to_string()).unwrap_or_default();
                return Err(ConvertError::tensor(path, &name, format!("also in {other}")));
            }
        }
        Ok(())
    }

    /// The path of the file that has `tensor`.
    pub(crate) fn path_of(&self, tensor: &SourceTensor) -> &Path {
        self.files.get(tensor.file).map_or(Path::new(""), PathBuf::as_path)
    }
}

/// The kinds of weight files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Safetensors,
    Torch,
}

/// The files of a checkpoint, found but not yet read.
#[derive(Debug)]
pub(crate) struct Layout {
    /// The folder that has the config and the tokenizer.
    pub(crate) folder: PathBuf,
    /// `config.json`, or the file that describes the model instead.
    pub(crate) config: PathBuf,
    weights: Source,
}

#[derive(Debug)]
enum Source {
    Single(PathBuf, Kind),
    Index(PathBuf, Kind),
}

/// What a folder may hold, best first.
const NAMES: [(&str, bool, Kind); 4] = [
    ("model.safetensors", false, Kind::Safetensors),
    ("model.safetensors.index.json", true, Kind::Safetensors),
    ("pytorch_model.bin", false, Kind::Torch),
    ("pytorch_model.bin.index.json", true, Kind::Torch),
];

/// Whether a file is a spec file, by its name: `.yaml` or `.yml`, in capitals or not.
pub(crate) fn is_spec_file(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("yaml") || e.eq_ignore_ascii_case("yml"))
}

impl Layout {
    /// Finds the checkpoint at `path`: a folder, or one of its weight files. Another file may describe it than the config
    /// beside them.
    pub(crate) fn find(path: &Path, described_by: Option<&Path>) -> Result<Self, ConvertError> {
        let missing = |reason: String| ConvertError::NotACheckpoint { path: path.into(), reason };
        let about = std::fs::metadata(path).map_err(ConvertError::io(path))?;
        let (folder, weights) = if about.is_dir() {
            let weights = NAMES.iter().find_map(|&(name, index, kind)| {
                let file = path.join(name);
                if !file.exists() {
                    return None;
                }
                Some(if index { Source::Index(file, kind) } else { Source::Single(file, kind) })
            });
            (path.to_path_buf(), weights)
        } else {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let kind = if name.contains(".safetensors") { Kind::Safetensors } else { Kind::Torch };
            let weights = match name.rsplit_once('.') {
                Some((_, "safetensors" | "bin" | "pt" | "pth")) => Source::Single(path.into(), kind),
                Some((_, "json")) if name.ends_with(".index.json") => Source::Index(path.into(), kind),
                _ if is_spec_file(path) => {
                    return Err(missing("describes a model, expected its weights, and this file as --spec".into()));
                }
                _ => {
                    return Err(missing(
                        "expected a folder, or a file called *.safetensors, *.bin, *.index.json or *.gguf".into(),
                    ));
                }
            };
            let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            (folder.to_path_buf(), Some(weights))
        };
        let config = described_by.map_or_else(|| folder.join("config.json"), Path::to_path_buf);
        if described_by.is_none() && !config.is_file() {
            let place = if about.is_dir() { "no config.json in this folder" } else { "no config.json beside it" };
            return Err(missing(place.into()));
        }
        let weights = weights.ok_or_else(|| {
            let names: Vec<_> = NAMES.iter().map(|n| n.0).collect();
            missing(format!("no weights in this folder (looked for {})", names.join(", ")))
        })?;
        Ok(Self { folder, config, weights })
    }

    /// Reads the headers of all weight files. Also returns the index file, if there is one.
    pub(crate) fn open(&self) -> Result<(Weights, Option<PathBuf>), ConvertError> {
        let mut weights = Weights::default();
        match &self.weights {
            Source::Single(path, kind) => {
                weights.add_file(path, *kind)?;
                Ok((weights, None))
            }
            Source::Index(path, kind) => {
                index::read(path, &self.folder, *kind, &mut weights)?;
                Ok((weights, Some(path.clone())))
            }
        }
    }
}

/// Opens a regular, non-empty file and returns its length.
fn open_file(path: &Path) -> Result<(File, u64), ConvertError> {
    let about = std::fs::metadata(path).map_err(ConvertError::io(path))?;
    if !about.is_file() {
        return Err(ConvertError::container(path, "not a regular file"));
    }
    if about.len() == 0 {
        return Err(ConvertError::container(path, "the file is empty"));
    }
    let mut file = File::open(path).map_err(ConvertError::io(path))?;
    let mut start = [0; 24];
    let got = file.read(&mut start).map_err(ConvertError::io(path))?;
    if start[..got].starts_with(b"version https://git-lfs") {
        return Err(ConvertError::container(path, format!("is {GIT_LFS}")));
    }
    file.seek(SeekFrom::Start(0)).map_err(ConvertError::io(path))?;
    Ok((file, about.len()))
}

/// Reads a whole small file (JSON, merges).
pub(crate) fn read_small(path: &Path) -> Result<Vec<u8>, ConvertError> {
    let (file, length) = open_file(path)?;
    if length > MAX_JSON {
        return Err(ConvertError::container(path, format!("{length} bytes, expected at most {MAX_JSON}")));
    }
    let mut bytes = Vec::new();
    file.take(MAX_JSON).read_to_end(&mut bytes).map_err(ConvertError::io(path))?;
    Ok(bytes)
}

/// Reads `length` bytes at `offset`. The range was checked against the file's length at open.
pub(crate) fn read_range(path: &Path, name: &str, offset: u64, length: u64) -> Result<Vec<u8>, ConvertError> {
    let memory = |_| ConvertError::tensor(path, name, format!("cannot allocate {length} bytes"));
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(length as usize).map_err(memory)?;
    let mut file = File::open(path).map_err(ConvertError::io(path))?;
    file.seek(SeekFrom::Start(offset)).map_err(ConvertError::io(path))?;
    file.take(length).read_to_end(&mut bytes).map_err(ConvertError::io(path))?;
    if bytes.len() as u64 != length {
        let reason = format!("truncated while it was read: expected {length} bytes, found {}", bytes.len());
        return Err(ConvertError::tensor(path, name, reason));
    }
    Ok(bytes)
}

/// Parses a JSON object.
pub(crate) fn json_object(
    path: &Path,
    bytes: &[u8],
) -> Result<serde_json::Map<String, serde_json::Value>, ConvertError> {
    match serde_json::from_slice(bytes) {
        Ok(serde_json::Value::Object(map)) => Ok(map),
        Ok(_) => Err(ConvertError::container(path, "expected a JSON object")),
        Err(e) => Err(ConvertError::container(path, format!("not valid JSON: {}", shown(&e.to_string())))),
    }
}
