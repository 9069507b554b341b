//! Models that `run` converted itself: kept in the user's cache folder under a name that says what
//! they were made from, so that a changed checkpoint or converter makes a new one.

use crate::failure::Hint;
use crate::interrupt::Catch;
use crate::output::note;
use crate::progress::Conversion;
use anyhow::{Context, anyhow};
use etcetera::BaseStrategy;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tidbit_convert::{Checkpoint, Options};
use tidbit_runtime::format::{self, ModelFile};
use tidbit_runtime::quant::{QuantType, TILE_ID};

/// How `run` stores the checkpoints that it converts.
const QUANT: QuantType = QuantType::Q8;

/// The model file of `path`: itself, or the converted one when `path` is the folder of a checkpoint.
///
/// # Errors
/// When the checkpoint cannot be read or converted, or the cache not be written.
pub(crate) fn model_file(path: &Path) -> anyhow::Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.into());
    }
    let checkpoint = Checkpoint::open(path)?;
    let cached = folder()?.join(file_name(path, &checkpoint)?);
    if cached.exists() {
        match ModelFile::open(&cached) {
            Ok(_) => return Ok(cached),
            Err(error) => note(format_args!("note: converting again: {error}")),
        }
    }
    convert(path, &checkpoint, &cached)?;
    Ok(cached)
}

fn convert(source: &Path, checkpoint: &Checkpoint, cached: &Path) -> anyhow::Result<()> {
    note(format_args!("converting {} to {QUANT}, kept as {}", source.display(), cached.display()));
    for warning in checkpoint.warnings() {
        note(format_args!("warning: {warning}"));
    }
    if let Some(parent) = cached.parent() {
        std::fs::create_dir_all(parent)
            .map_err(|e| anyhow!("{}: {e}", parent.display()).hint("TIDBIT_CACHE names another cache folder"))?;
    }
    let cancel = Arc::new(AtomicBool::new(false));
    let _caught = Catch::new(Arc::clone(&cancel))?;
    let options = Options { quant: QUANT, cancel: Some(cancel) };
    tidbit_convert::convert(checkpoint, cached, &options, &mut Conversion::default())?;
    Ok(())
}

/// `TIDBIT_CACHE`, or `tidbit` in the user's cache folder.
fn folder() -> anyhow::Result<PathBuf> {
    if let Some(folder) = std::env::var_os("TIDBIT_CACHE").filter(|f| !f.is_empty()) {
        return Ok(folder.into());
    }
    let base = etcetera::choose_base_strategy().context("no home folder to keep the converted model in");
    let base = base.map_err(|e| e.hint("TIDBIT_CACHE names a cache folder"))?;
    Ok(base.cache_dir().join("tidbit"))
}

/// Name of the folder, quant type, and a hash over all that decides the file's content.
fn file_name(source: &Path, checkpoint: &Checkpoint) -> anyhow::Result<String> {
    let mut hasher = Sha256::new();
    for part in [env!("CARGO_PKG_VERSION"), format::VERSION, TILE_ID, QUANT.name()] {
        hasher.update(part.as_bytes());
        hasher.update([0]);
    }
    for file in checkpoint.files() {
        hash_file(&mut hasher, file).map_err(|e| anyhow!("{}: {e}", file.display()))?;
    }
    let key = format::header::hex(&hasher.finalize());
    let folder = std::path::absolute(source).ok().and_then(|p| Some(p.file_name()?.to_string_lossy().into_owned()));
    Ok(format!("{}-{QUANT}-{}.tidbit", folder.as_deref().unwrap_or("model"), &key[..16]))
}

/// Adds a file's name, length and content.
fn hash_file(hasher: &mut Sha256, path: &Path) -> std::io::Result<()> {
    let file = File::open(path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    hasher.update(name.as_bytes());
    hasher.update([0]);
    hasher.update(file.metadata()?.len().to_le_bytes());
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(()),
            n => hasher.update(&buffer[..n]),
        }
    }
}
