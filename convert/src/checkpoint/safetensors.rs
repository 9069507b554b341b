//! Safetensors headers. The `safetensors` crate checks the table; the length of the header is
//! checked here first, so that a damaged one allocates nothing, and a table that it refuses is looked at
//! again for a message with names and values.

use super::{Dtype, SourceTensor, open_file};
use crate::error::{ConvertError, shown};
use safetensors::tensor::Metadata;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

/// The longest header that is read, in bytes (the format's own limit).
const MAX_HEADER: u64 = 100_000_000;

/// Every tensor of a file.
pub(super) fn read(path: &Path, file: usize) -> Result<Vec<(String, SourceTensor)>, ConvertError> {
    let (mut reader, length) = open_file(path)?;
    let error = |reason: String| ConvertError::container(path, reason);
    let Some(rest) = length.checked_sub(8) else {
        return Err(error(format!("{length} bytes are too few for a safetensors file")));
    };
    let mut size = [0; 8];
    reader.read_exact(&mut size).map_err(ConvertError::io(path))?;
    let size = u64::from_le_bytes(size);
    if size > rest.min(MAX_HEADER) {
        let most = rest.min(MAX_HEADER);
        let reason =
            format!("the header claims {size} bytes, at most {most} are possible: truncated or not safetensors");
        return Err(error(reason));
    }
    let mut header = vec![0; size as usize];
    reader.read_exact(&mut header).map_err(ConvertError::io(path))?;
    let table: Metadata = serde_json::from_slice(&header).map_err(|e| {
        error(diagnose(&header).unwrap_or_else(|| format!("damaged header: {}", shown(&e.to_string()))))
    })?;
    let data = rest - size;
    if table.data_len() as u64 != data {
        let expected = table.data_len();
        let what = if data < expected as u64 { "truncated" } else { "too long" };
        return Err(error(format!("{what}: the header describes {expected} bytes of tensors, the file has {data}")));
    }
    let tensors = table.tensors().into_iter().map(|(name, info)| {
        let offset = 8 + size + info.data_offsets.0 as u64;
        let (dtype, shape) = (info.dtype, info.shape.clone());
        let tensor = SourceTensor { file, offset, dtype, shape, unreadable: None, blocks: None };
        (name, tensor)
    });
    Ok(tensors.collect())
}

/// One entry of the table, unchecked.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Finds the first entry of a refused table that is wrong.
fn diagnose(header: &[u8]) -> Option<String> {
    let mut table: BTreeMap<String, serde_json::Value> = serde_json::from_slice(header).ok()?;
    table.remove("__metadata__");
    let mut entries = Vec::new();
    for (name, value) in table {
        let name = shown(&name);
        match serde_json::from_value::<Entry>(value) {
            Ok(entry) => entries.push((name, entry)),
            Err(e) => return Some(format!("tensor `{name}`: {}", shown(&e.to_string()))),
        }
    }
    entries.sort_by_key(|(_, e)| e.data_offsets);
    let mut end = 0;
    for (name, entry) in entries {
        let (from, to) = entry.data_offsets;
        let Ok(dtype) = serde_json::from_value::<Dtype>(entry.dtype.clone().into()) else {
            return Some(format!("tensor `{name}`: unknown type `{}`", shown(&entry.dtype)));
        };
        if from != end {
            let what = if from < end { "overlaps the one before it" } else { "leaves a gap" };
            return Some(format!("tensor `{name}`: {what}: starts at byte {from}, expected {end}"));
        }
        let bits = entry.shape.iter().try_fold(dtype.bitsize() as u64, |n, &d| n.checked_mul(d));
        let Some(bytes) = bits.map(|b| b.div_ceil(8)) else {
            return Some(format!("tensor `{name}`: shape {:?} overflows", entry.shape));
        };
        if to.checked_sub(from) != Some(bytes) {
            let shape = &entry.shape;
            return Some(format!(
                "tensor `{name}`: {shape:?} in {dtype} needs {bytes} bytes, has bytes {from} to {to}"
            ));
        }
        end = to;
    }
    None
}
