//! `pytorch_model.bin`: a zip archive with stored entries, as `torch.save` writes since 1.6.
//!
//! `NAME/data.pkl` describes the tensors (see [`pickle`](super::pickle)), `NAME/data/KEY` are their
//! storages. Entries are not compressed, so a tensor is a range of the archive like in any other file.

use super::pickle::{self, Tensor};
use super::{SourceTensor, open_file};
use crate::error::{ConvertError, LEGACY_TORCH, shown};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read as _, Seek as _, SeekFrom};
use std::path::Path;
use zip::{CompressionMethod, ZipArchive};

/// The longest `data.pkl` that is read, in bytes: about 300 are needed per tensor.
const MAX_PICKLE: u64 = 16 << 20;

/// Every tensor of a file.
pub(super) fn read(path: &Path, file: usize) -> Result<Vec<(String, SourceTensor)>, ConvertError> {
    let (mut reader, length) = open_file(path)?;
    let error = |reason: String| ConvertError::container(path, reason);
    let mut magic = [0; 4];
    let got = reader.read(&mut magic).map_err(ConvertError::io(path))?;
    match &magic[..got] {
        [b'P', b'K', ..] => {}
        // Protocol 2 pickle, or a tar archive of the very first versions.
        [0x80, ..] => return Err(error(format!("is in {LEGACY_TORCH}, expected the zip form"))),
        other => return Err(error(format!("not a torch file: starts with {other:02x?}, expected a zip archive"))),
    }
    reader.seek(SeekFrom::Start(0)).map_err(ConvertError::io(path))?;
    let mut archive = ZipArchive::new(BufReader::new(reader))
        .map_err(|e| error(format!("damaged zip archive of {length} bytes: {}", shown(&e.to_string()))))?;
    let entries = stored_entries(path, length, &mut archive)?;

    let Some(root) = entries.keys().find_map(|name| name.strip_suffix("data.pkl")) else {
        return Err(error("no data.pkl in this zip archive: not written by torch.save".into()));
    };
    if let Some(entry) = entries.get(&format!("{root}byteorder")) {
        let order = read_entry(path, entry, 16)?;
        if order != b"little" {
            let found = shown(&String::from_utf8_lossy(&order));
            return Err(error(format!("byteorder is {found}, only little is supported")));
        }
    }
    let Some(entry) = entries.get(&format!("{root}data.pkl")) else { return Ok(Vec::new()) };
    let bytes = read_entry(path, entry, MAX_PICKLE)?;
    let state = pickle::read(&bytes).map_err(|e| error(format!("data.pkl: {e}")))?;
    state
        .into_iter()
        .map(|(name, tensor)| {
            let placed = place(&tensor, root, &entries, file).map_err(|e| ConvertError::tensor(path, &name, e))?;
            Ok((name, placed))
        })
        .collect()
}

/// Where an entry's bytes lie in the archive.
#[derive(Clone, Copy)]
struct Place {
    offset: u64,
    bytes: u64,
}

type Archive = ZipArchive<BufReader<File>>;

fn stored_entries(path: &Path, length: u64, archive: &mut Archive) -> Result<HashMap<String, Place>, ConvertError> {
    let mut entries = HashMap::new();
    for i in 0..archive.len() {
        let error = |e: &dyn std::fmt::Display| {
            ConvertError::container(path, format!("entry {i} of the zip archive: {}", shown(&e.to_string())))
        };
        let entry = archive.by_index_raw(i).map_err(|e| error(&e))?;
        let name = entry.name().map_err(|e| error(&e))?.into_owned();
        if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
            let reason = format!("`{}` is compressed ({}), expected stored", shown(&name), entry.compression());
            return Err(error(&reason));
        }
        let (bytes, offset) = (entry.size(), entry.data_start().unwrap_or(u64::MAX));
        if entry.compressed_size() != bytes || offset.checked_add(bytes).is_none_or(|end| end > length) {
            let reason = format!("`{}` has {bytes} bytes from byte {offset} on, the file has {length}", shown(&name));
            return Err(error(&reason));
        }
        entries.insert(name, Place { offset, bytes });
    }
    Ok(entries)
}

fn read_entry(path: &Path, entry: &Place, most: u64) -> Result<Vec<u8>, ConvertError> {
    let Place { offset, bytes } = *entry;
    if bytes > most {
        return Err(ConvertError::container(path, format!("an entry has {bytes} bytes, expected at most {most}")));
    }
    super::read_range(path, "data.pkl", offset, bytes)
}

/// Checks a tensor against its storage.
fn place(tensor: &Tensor, root: &str, entries: &HashMap<String, Place>, file: usize) -> Result<SourceTensor, String> {
    let storage = &tensor.storage;
    let key = shown(&storage.key);
    let place = entries
        .get(&format!("{root}data/{}", storage.key))
        .ok_or_else(|| format!("its storage `data/{key}` is not in the archive"))?;
    let width = storage.dtype.bitsize() as u64 / 8;
    let fits = |elements: u64| elements.checked_mul(width).is_some_and(|bytes| bytes <= place.bytes);
    if !fits(storage.elements) {
        let (n, dtype) = (storage.elements, storage.dtype);
        return Err(format!("its storage `data/{key}` has {} bytes, expected {n} elements of {dtype}", place.bytes));
    }
    let elements = tensor.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64));
    let end = elements.and_then(|n| n.checked_add(tensor.offset));
    // A strided view may reach less far than its element count; it is refused when it is needed.
    let contiguous = tensor.is_contiguous();
    if contiguous && end.is_none_or(|end| end > storage.elements) {
        let (shape, n) = (&tensor.shape, storage.elements);
        return Err(format!("shape {shape:?} at element {} reaches outside its storage of {n}", tensor.offset));
    }
    let unreadable =
        (!contiguous).then(|| format!("not contiguous: shape {:?}, strides {:?}", tensor.shape, tensor.strides));
    Ok(SourceTensor {
        file,
        offset: tensor.offset.checked_mul(width).and_then(|o| o.checked_add(place.offset)).ok_or("offset overflows")?,
        dtype: storage.dtype,
        shape: tensor.shape.clone(),
        unreadable,
        blocks: None,
    })
}
