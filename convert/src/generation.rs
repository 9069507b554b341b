//! `generation_config.json`: the tokens that end a text, of which the config of the model often knows only one.

use crate::checkpoint::read_small;
use crate::config::Config;
use crate::error::ConvertError;
use std::path::{Path, PathBuf};
use tidbit_runtime::spec::Spec;

/// Reads them into the spec, where the file is there and names some; it is returned then.
pub(crate) fn read_ends(folder: &Path, spec: &mut Spec) -> Result<Option<PathBuf>, ConvertError> {
    let path = folder.join("generation_config.json");
    if !path.exists() {
        return Ok(None);
    }
    let config = Config::parse(&path.display().to_string(), &read_small(&path)?)?;
    let ids = config.token_ids("eos_token_id", None, spec.vocab_size)?;
    if ids.iter().any(|&id| id as usize >= spec.vocab_size) {
        return Err(config.refuse("eos_token_id", format!("less than `vocab_size` {}", spec.vocab_size)));
    }
    if ids.is_empty() {
        return Ok(None);
    }
    spec.eos_ids = ids;
    Ok(Some(path))
}
