//! What a model file's header says, and its bytes.

use super::{DATA_ALIGN, MAX_CHAT, VERSION, key};
use crate::quant::{PANEL_ROWS, QuantType, TILE_ID};
use crate::spec::Spec;
use crate::storage::ALIGN;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// How a tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stored {
    /// Raw bytes (the tokenizer).
    Bytes,
    /// A vector of f32, padded with zeros to 16 elements.
    Vector,
    /// A matrix in panels.
    #[serde(untagged)]
    Matrix(QuantType),
}

impl Stored {
    /// Bytes that a tensor of `shape` takes in the file: a multiple of 64. `None` when it overflows
    /// or the shape has the wrong number of dimensions.
    pub fn bytes(self, shape: &[usize]) -> Option<usize> {
        match (self, shape) {
            (Self::Bytes, [len]) => len.checked_next_multiple_of(ALIGN),
            (Self::Vector, [len]) => len.checked_next_multiple_of(PANEL_ROWS)?.checked_mul(4),
            (Self::Matrix(quant), [rows, cols]) => quant.matrix_bytes(*rows, *cols),
            _ => None,
        }
    }
}

impl std::fmt::Display for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bytes => f.pad("bytes"),
            Self::Vector => f.pad("vector"),
            Self::Matrix(quant) => quant.fmt(f),
        }
    }
}

/// What the header says of one tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorRecord {
    /// How it is stored.
    #[serde(rename = "type")]
    pub stored: Stored,
    /// Its true shape, without padding.
    pub shape: Vec<usize>,
    /// SHA-256 of its bytes in the file, padding included, in hexadecimal.
    pub sha256: String,
}

/// Where a model came from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// Name and version of the program that wrote the file.
    pub converter: String,
    /// What `--quant` asked for.
    pub quant: String,
    /// The text that it was calibrated with, and the size that was asked for, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<String>,
    /// The files it was made from.
    pub sources: Vec<SourceFile>,
}

/// How a model that answers is spoken to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chat {
    /// A Jinja template that makes one text of the messages of a conversation. It is untrusted, and nothing here runs it.
    pub template: String,
    /// The special tokens that it may name, by name (`bos_token`, `eos_token`, …).
    pub tokens: BTreeMap<String, String>,
}

impl Chat {
    /// Checks that it is not larger than any template needs to be.
    ///
    /// # Errors
    /// One line with both sizes.
    pub fn check(&self) -> Result<(), String> {
        let tokens = self.tokens.iter().map(|(name, text)| name.len() + text.len()).sum::<usize>();
        match self.template.len() + tokens {
            bytes if bytes > MAX_CHAT => {
                Err(format!("the chat template has {bytes} bytes, at most {MAX_CHAT} are kept"))
            }
            _ => Ok(()),
        }
    }
}

/// One source file of a conversion.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Its name, without folders.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// SHA-256 in hexadecimal, as model hubs publish it.
    pub sha256: String,
}

/// SHA-256 in hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a `String` cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The digest of a header: over its metadata in order of the keys, then each tensor's name and end.
pub(super) fn digest<'a>(metadata: &BTreeMap<&str, &str>, tensors: impl Iterator<Item = (&'a str, usize)>) -> String {
    let mut hasher = Sha256::new();
    let mut add = |text: &str| {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    for (key, value) in metadata {
        add(key);
        add(value);
    }
    for (name, end) in tensors {
        add(name);
        add(&end.to_string());
    }
    hex(&hasher.finalize())
}

/// The bytes before the data segment: the length, the JSON, and spaces up to [`DATA_ALIGN`].
///
/// `tensors` are in file order, without gaps. The result's length depends on names, types and
/// shapes only (checksums have a fixed width), so a writer can reserve the space first.
///
/// # Errors
/// A message when a size overflows.
pub fn encode(
    spec: &Spec,
    provenance: &Provenance,
    chat: Option<&Chat>,
    tensors: &[(String, TensorRecord)],
) -> Result<Vec<u8>, String> {
    let json = |value: serde_json::Result<String>| value.map_err(|e| e.to_string());
    let spec = json(serde_json::to_string(spec))?;
    let provenance = json(serde_json::to_string(provenance))?;
    let chat = chat.map(|chat| json(serde_json::to_string(chat))).transpose()?;
    let records: BTreeMap<&str, &TensorRecord> = tensors.iter().map(|(name, record)| (name.as_str(), record)).collect();
    let records = json(serde_json::to_string(&records))?;

    let mut end = 0usize;
    let mut ends = Vec::with_capacity(tensors.len());
    let mut entries = BTreeMap::new();
    for (name, record) in tensors {
        let overflow = || format!("tensor `{name}`: shape {:?} overflows", record.shape);
        let start = end;
        end = record.stored.bytes(&record.shape).and_then(|b| start.checked_add(b)).ok_or_else(overflow)?;
        let (dtype, shape) = match record.stored {
            Stored::Vector => ("F32", (end - start) / 4),
            Stored::Bytes | Stored::Matrix(_) => ("U8", end - start),
        };
        entries.insert(
            name.as_str(),
            serde_json::json!({ "dtype": dtype, "shape": [shape], "data_offsets": [start, end] }),
        );
        ends.push((name.as_str(), end));
    }

    let mut metadata = BTreeMap::from([
        (key::VERSION, VERSION),
        (key::TILE, TILE_ID),
        (key::SPEC, &spec),
        (key::TENSORS, &records),
        (key::PROVENANCE, &provenance),
    ]);
    metadata.extend(chat.as_deref().map(|chat| (key::CHAT, chat)));
    let digest = digest(&metadata, ends.into_iter());
    metadata.insert(key::DIGEST, &digest);

    let mut header = BTreeMap::from([("__metadata__", serde_json::json!(metadata))]);
    header.extend(entries);
    let text = json(serde_json::to_string(&header))?;
    let total = (8 + text.len()).next_multiple_of(DATA_ALIGN);
    let mut bytes = Vec::with_capacity(total);
    bytes.extend_from_slice(&((total - 8) as u64).to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
    bytes.resize(total, b' ');
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_types_have_short_names() {
        for (stored, name) in
            [(Stored::Bytes, "bytes"), (Stored::Vector, "vector"), (Stored::Matrix(QuantType::Q4), "q4")]
        {
            assert_eq!(serde_json::to_string(&stored).unwrap(), format!("{name:?}"));
            assert_eq!(serde_json::from_str::<Stored>(&format!("{name:?}")).unwrap(), stored);
            assert_eq!(stored.to_string(), name);
        }
        assert!(serde_json::from_str::<Stored>("\"q9\"").is_err());
    }

    #[test]
    fn every_tensor_is_a_multiple_of_a_line() {
        assert_eq!(Stored::Bytes.bytes(&[65]), Some(128));
        assert_eq!(Stored::Vector.bytes(&[17]), Some(128));
        assert_eq!(Stored::Matrix(QuantType::F16).bytes(&[17, 3]), Some(256));
        assert_eq!(Stored::Vector.bytes(&[usize::MAX]), None);
        assert_eq!(Stored::Vector.bytes(&[4, 4]), None);
    }
}
