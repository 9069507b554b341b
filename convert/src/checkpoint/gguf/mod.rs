//! GGUF files: key and value pairs, a table of tensors, then the tensors, all in one file.
//!
//! The file is not trusted. Counts and lengths are compared with the bytes that are left before anything is allocated,
//! and what describes the model may have [`MAX_DESCRIPTION`] bytes. Tensors lie inside of the file, aligned, and apart.
//!
//! Here a model is only taken apart; [`family::gguf`](crate::family) says what the keys and tensors mean.

mod blocks;

use super::{Dtype, SourceTensor, open_file};
use crate::error::{ConvertError, shown};
pub(crate) use blocks::Blocks;
use serde_json::{Value as Json, json};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};

/// The first bytes of every file.
const MAGIC: [u8; 4] = *b"GGUF";
/// The most bytes of keys, values and table: a large vocabulary needs some twenty million.
const MAX_DESCRIPTION: u64 = 256 << 20;
/// The longest key or name.
const MAX_NAME: u64 = 1 << 16;
/// Where tensors start, unless the file says otherwise.
const ALIGNMENT: u64 = 32;
/// Most dimensions of a tensor.
const MAX_DIMS: u32 = 4;

/// A file taken apart.
#[derive(Debug)]
pub(crate) struct Gguf {
    pub(crate) metadata: Metadata,
    pub(crate) tensors: BTreeMap<String, SourceTensor>,
}

/// Whether the file at `path` is a GGUF, by its name or its first bytes.
pub(crate) fn is_gguf(path: &Path) -> bool {
    let named = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    let mut start = [0; 4];
    path.is_file() && (named || File::open(path).and_then(|mut f| f.read_exact(&mut start)).is_ok() && start == MAGIC)
}

/// The value of a key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Int(i64),
    /// Only what does not fit into the others.
    Large(u64),
    Float(f64),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Ints(Vec<i32>),
    Floats(Vec<f32>),
    /// Small numbers, signed or not.
    Bytes(Vec<u8>),
    /// Other arrays: only their length is kept.
    Array(u64),
}

impl Value {
    /// Whether it says that there is nothing: 0, false, or empty.
    pub(crate) fn is_neutral(&self) -> bool {
        match self {
            Self::Int(n) => *n == 0,
            Self::Large(_) => false,
            Self::Float(x) => *x == 0.0,
            Self::Bool(b) => !b,
            Self::Text(text) => text.is_empty(),
            Self::Texts(list) => list.is_empty(),
            Self::Ints(list) => list.is_empty(),
            Self::Floats(list) => list.is_empty(),
            Self::Bytes(list) => list.is_empty(),
            Self::Array(length) => *length == 0,
        }
    }

    /// For messages.
    fn shown(&self) -> String {
        match self {
            Self::Int(n) => n.to_string(),
            Self::Large(n) => n.to_string(),
            Self::Float(x) => x.to_string(),
            Self::Bool(b) => b.to_string(),
            Self::Text(text) => format!("{:?}", shown(text)),
            Self::Texts(list) => format!("an array of {} strings", list.len()),
            Self::Ints(list) => format!("an array of {} numbers", list.len()),
            Self::Floats(list) => format!("an array of {} floats", list.len()),
            Self::Bytes(list) => format!("an array of {} bytes", list.len()),
            Self::Array(length) => format!("an array of {length} values"),
        }
    }
}

/// The pairs of a file. Like [`Config`](crate::config::Config) it remembers which were looked at.
#[derive(Debug)]
pub(crate) struct Metadata {
    path: PathBuf,
    values: BTreeMap<String, Value>,
    seen: RefCell<BTreeSet<String>>,
}

impl Metadata {
    /// The value of a key, which counts as looked at.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.seen.borrow_mut().insert(key.into());
        self.values.get(key)
    }

    /// An error about a key: its value, and what it may be.
    pub(crate) fn refuse(&self, key: &str, expected: impl std::fmt::Display) -> ConvertError {
        let value = self.values.get(key).map_or_else(|| "missing".into(), |v| format!("is {}", v.shown()));
        self.error(format!("`{}` {value}, expected {expected}", shown(key)))
    }

    /// An error about the file.
    pub(crate) fn error(&self, reason: impl Into<String>) -> ConvertError {
        ConvertError::container(&self.path, reason)
    }

    /// One kind of value, or `None` without the key.
    fn kind<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ConvertError> {
        self.get(key).map(|value| read(value).ok_or_else(|| self.refuse(key, expected))).transpose()
    }

    /// A whole number that is not negative.
    pub(crate) fn count(&self, key: &str) -> Result<Option<u64>, ConvertError> {
        self.kind(key, "a whole number", |v| match v {
            Value::Int(n) => u64::try_from(*n).ok(),
            Value::Large(n) => Some(*n),
            _ => None,
        })
    }

    /// A number, as JSON.
    pub(crate) fn number(&self, key: &str) -> Result<Option<Json>, ConvertError> {
        self.kind(key, "a number", |v| match v {
            Value::Int(n) => Some(json!(n)),
            Value::Float(x) if x.is_finite() => Some(json!(x)),
            _ => None,
        })
    }

    /// A finite number.
    pub(crate) fn float(&self, key: &str) -> Result<Option<f64>, ConvertError> {
        Ok(self.number(key)?.and_then(|n| n.as_f64()))
    }

    pub(crate) fn bool(&self, key: &str) -> Result<Option<bool>, ConvertError> {
        self.kind(key, "true or false", |v| if let Value::Bool(b) = v { Some(*b) } else { None })
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>, ConvertError> {
        self.kind(key, "a string", |v| if let Value::Text(text) = v { Some(text.as_str()) } else { None })
    }

    pub(crate) fn texts(&self, key: &str) -> Result<Option<&[String]>, ConvertError> {
        self.kind(key, "an array of strings", |v| match v {
            Value::Texts(list) => Some(list.as_slice()),
            Value::Array(0) => Some(&[]),
            _ => None,
        })
    }

    pub(crate) fn ints(&self, key: &str) -> Result<Option<&[i32]>, ConvertError> {
        self.kind(key, "an array of numbers", |v| match v {
            Value::Ints(list) => Some(list.as_slice()),
            Value::Array(0) => Some(&[]),
            _ => None,
        })
    }

    pub(crate) fn floats(&self, key: &str) -> Result<Option<&[f32]>, ConvertError> {
        self.kind(key, "an array of floats", |v| if let Value::Floats(list) = v { Some(list.as_slice()) } else { None })
    }

    pub(crate) fn bytes(&self, key: &str) -> Result<Option<&[u8]>, ConvertError> {
        self.kind(key, "an array of bytes", |v| if let Value::Bytes(list) = v { Some(list.as_slice()) } else { None })
    }

    /// The keys that nobody looked at.
    pub(crate) fn unseen(&self) -> Vec<String> {
        let seen = self.seen.borrow();
        self.values.keys().filter(|key| !seen.contains(*key)).cloned().collect()
    }
}

/// Reads all but the tensors.
pub(crate) fn read(path: &Path, file: usize) -> Result<Gguf, ConvertError> {
    let (reader, length) = open_file(path)?;
    let mut reader = Reader { path, file: BufReader::new(reader), position: 0, end: length.min(MAX_DESCRIPTION) };
    let magic: [u8; 4] = reader.array()?;
    if magic != MAGIC {
        return Err(reader.error(format!("not a GGUF file: starts with {magic:02x?}")));
    }
    let version = reader.u32()?;
    match version {
        2 | 3 => {}
        _ if version.swap_bytes() <= 3 => return Err(reader.error("big-endian, only little-endian files are read")),
        _ => return Err(reader.error(format!("version {version} of GGUF, expected 2 or 3"))),
    }
    let (n_tensors, n_pairs) = (reader.u64()?, reader.u64()?);
    // An entry: the length of a name, the number of dimensions, a type, an offset. A pair: a length, a type, a value.
    reader.expect(n_tensors, 24, "tensors")?;
    reader.expect(n_pairs, 13, "key-value pairs")?;
    let mut values = BTreeMap::new();
    for _ in 0..n_pairs {
        let key = reader.name("a key")?;
        let value = reader.value(&key)?;
        if values.insert(key.clone(), value).is_some() {
            return Err(reader.error(format!("key `{}` is there twice", shown(&key))));
        }
    }
    let metadata = Metadata { path: path.into(), values, seen: RefCell::default() };
    let alignment = metadata.count("general.alignment")?.unwrap_or(ALIGNMENT);
    if !alignment.is_power_of_two() || !(8..=1 << 24).contains(&alignment) {
        return Err(metadata.refuse("general.alignment", "a power of two from 8 to 16777216"));
    }
    let mut entries = BTreeMap::new();
    for _ in 0..n_tensors {
        let name = reader.name("a tensor's name")?;
        let entry = reader.entry(&name, file)?;
        if entries.insert(name.clone(), entry).is_some() {
            return Err(ConvertError::tensor(path, &name, "is there twice"));
        }
    }
    let data = reader.position.next_multiple_of(alignment);
    let tensors = place(path, entries, data, length, alignment)?;
    Ok(Gguf { metadata, tensors })
}

/// Checks where the tensors lie, and counts their offsets from the start of the file.
fn place(
    path: &Path,
    mut tensors: BTreeMap<String, SourceTensor>,
    data: u64,
    length: u64,
    alignment: u64,
) -> Result<BTreeMap<String, SourceTensor>, ConvertError> {
    let mut ranges = Vec::new();
    for (name, tensor) in &mut tensors {
        let error = |reason: String| Err(ConvertError::tensor(path, name, reason));
        let (offset, shape) = (tensor.offset, &tensor.shape);
        if !offset.is_multiple_of(alignment) {
            return error(format!("its offset {offset} is not a multiple of {alignment}"));
        }
        let Some(bytes) = tensor.bytes() else {
            return error(format!("shape {shape:?} overflows"));
        };
        let start = data.checked_add(offset);
        match start.and_then(|start| start.checked_add(bytes)) {
            Some(end) if end <= length => ranges.push((end - bytes, end, name.clone())),
            _ => return error(format!("{bytes} bytes at {data} + {offset}, but the file has {length}: truncated?")),
        }
        tensor.offset = start.unwrap_or(offset);
    }
    ranges.sort();
    for pair in ranges.windows(2) {
        let [(_, end, earlier), (start, _, name)] = pair else { continue };
        if start < end {
            let reason = format!("starts at byte {start}, inside of `{}`, which ends at {end}", shown(earlier));
            return Err(ConvertError::tensor(path, name, reason));
        }
    }
    Ok(tensors)
}

/// The front of a file, from its first byte on.
struct Reader<'a> {
    path: &'a Path,
    file: BufReader<File>,
    position: u64,
    /// Nothing is read from here on.
    end: u64,
}

impl Reader<'_> {
    fn error(&self, reason: impl Into<String>) -> ConvertError {
        ConvertError::container(self.path, reason)
    }

    /// An error unless `n` things of at least `bytes` each can follow.
    fn expect(&self, n: u64, bytes: u64, what: &str) -> Result<(), ConvertError> {
        let left = self.end - self.position;
        if n.checked_mul(bytes).is_some_and(|bytes| bytes <= left) {
            return Ok(());
        }
        Err(self.error(format!("claims {n} {what} at byte {}, where {left} bytes can follow", self.position)))
    }

    fn bytes(&mut self, length: u64, what: &str) -> Result<Vec<u8>, ConvertError> {
        self.expect(length, 1, &format!("bytes of {what}"))?;
        let mut bytes = vec![0; length as usize];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), ConvertError> {
        if bytes.len() as u64 > self.end - self.position {
            return Err(self.error(format!("ends at byte {} in the middle of its description", self.end)));
        }
        self.file.read_exact(bytes).map_err(ConvertError::io(self.path))?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ConvertError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, ConvertError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, ConvertError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn name(&mut self, what: &str) -> Result<String, ConvertError> {
        let length = self.u64()?;
        if length > MAX_NAME {
            return Err(self.error(format!("{what} of {length} bytes at byte {}, at most {MAX_NAME}", self.position)));
        }
        let bytes = self.bytes(length, what)?;
        String::from_utf8(bytes).map_err(|e| self.error(format!("{what} is not UTF-8: {}", shown(&e.to_string()))))
    }

    /// Text; what is not UTF-8 in it becomes U+FFFD.
    fn text(&mut self, key: &str) -> Result<String, ConvertError> {
        let length = self.u64()?;
        let bytes = self.bytes(length, &format!("`{}`", shown(key)))?;
        Ok(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
    }

    fn value(&mut self, key: &str) -> Result<Value, ConvertError> {
        let kind = self.u32()?;
        if kind == 9 {
            return self.list(key);
        }
        self.single(key, kind)
    }

    /// A value that is no array.
    fn single(&mut self, key: &str, kind: u32) -> Result<Value, ConvertError> {
        let large = |n: u64| i64::try_from(n).map_or(Value::Large(n), Value::Int);
        Ok(match kind {
            0 => Value::Int(u8::from_le_bytes(self.array()?).into()),
            1 => Value::Int(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Int(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Int(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Int(self.u32()?.into()),
            5 => Value::Int(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => match self.array()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => return Err(self.error(format!("`{}` is {other}, expected 0 or 1", shown(key)))),
            },
            8 => Value::Text(self.text(key)?),
            10 => large(self.u64()?),
            11 => Value::Int(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            _ => return Err(self.error(format!("`{}` has a value of type {kind}, which is not known", shown(key)))),
        })
    }

    fn list(&mut self, key: &str) -> Result<Value, ConvertError> {
        let (kind, n) = (self.u32()?, self.u64()?);
        let width = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => return Err(self.error(format!("`{}` is an array of arrays", shown(key)))),
            _ => return Err(self.error(format!("`{}` is an array of type {kind}, which is not known", shown(key)))),
        };
        self.expect(n, width, &format!("values of `{}`", shown(key)))?;
        match kind {
            8 => {
                let mut texts = Vec::new();
                for _ in 0..n {
                    texts.push(self.text(key)?);
                }
                Ok(Value::Texts(texts))
            }
            5 => {
                let mut ints = Vec::new();
                for _ in 0..n {
                    ints.push(i32::from_le_bytes(self.array()?));
                }
                Ok(Value::Ints(ints))
            }
            6 => {
                let mut floats = Vec::new();
                for _ in 0..n {
                    floats.push(f32::from_le_bytes(self.array()?));
                }
                Ok(Value::Floats(floats))
            }
            0 | 1 => Ok(Value::Bytes(self.bytes(n, &format!("`{}`", shown(key)))?)),
            _ => {
                let mut left = n * width;
                let mut scratch = [0; 4096];
                while left > 0 {
                    let some = left.min(scratch.len() as u64);
                    self.fill(&mut scratch[..some as usize])?;
                    left -= some;
                }
                Ok(Value::Array(n))
            }
        }
    }

    /// An entry of the table after its name. The offset is still counted from the first tensor's place.
    fn entry(&mut self, name: &str, file: usize) -> Result<SourceTensor, ConvertError> {
        let path = self.path;
        let error = |reason: String| Err(ConvertError::tensor(path, name, reason));
        let n_dims = self.u32()?;
        if !(1..=MAX_DIMS).contains(&n_dims) {
            return error(format!("{n_dims} dimensions, expected 1 to {MAX_DIMS}"));
        }
        let mut shape = Vec::new();
        for _ in 0..n_dims {
            let n = self.u64()?;
            shape.push(usize::try_from(n).unwrap_or(usize::MAX));
        }
        // GGUF has the dimension first that varies fastest.
        shape.reverse();
        let (kind, offset) = (self.u32()?, self.u64()?);
        let (dtype, blocks) = match kind_of(kind) {
            Ok(found) => found,
            Err(found) => {
                return error(format!(
                    "type is {found}, expected F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K or Q6_K"
                ));
            }
        };
        let tensor = SourceTensor { file, offset, dtype, shape, unreadable: None, blocks };
        let (Some(blocks), [.., cols]) = (blocks, tensor.shape.as_slice()) else { return Ok(tensor) };
        if tensor.shape.len() < 2 || !cols.is_multiple_of(blocks.weights()) {
            let expected = format!("rows of a multiple of {} weights", blocks.weights());
            return error(format!("type is {}, which has {expected}, found shape {:?}", blocks.name(), tensor.shape));
        }
        Ok(tensor)
    }
}

/// A type by its number: what its elements are, and the blocks they are in. `Err` has the name of one that is not read.
fn kind_of(kind: u32) -> Result<(Dtype, Option<Blocks>), String> {
    let blocks = match kind {
        0 => return Ok((Dtype::F32, None)),
        1 => return Ok((Dtype::F16, None)),
        30 => return Ok((Dtype::BF16, None)),
        2 => Blocks::Q4_0,
        3 => Blocks::Q4_1,
        6 => Blocks::Q5_0,
        7 => Blocks::Q5_1,
        8 => Blocks::Q8_0,
        10 => Blocks::Q2K,
        11 => Blocks::Q3K,
        12 => Blocks::Q4K,
        13 => Blocks::Q5K,
        14 => Blocks::Q6K,
        _ => return Err(OTHERS.iter().find(|o| o.0 == kind).map_or_else(|| format!("number {kind}"), |o| o.1.into())),
    };
    Ok((Dtype::F32, Some(blocks)))
}

/// Types that are not read.
const OTHERS: [(u32, &str); 20] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];
