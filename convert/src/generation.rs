//! `generation_config.json`: the tokens that end a text, of which the config of the model often knows only one, and the one that a
//! decoder begins with beside an encoder.

use crate::checkpoint::read_small;
use crate::config::Config;
use crate::error::ConvertError;
use std::path::{Path, PathBuf};
use tidbit_runtime::spec::Spec;

/// Reads them into the spec, where the file is there and names some; it is returned then.
pub(crate) fn read(folder: &Path, spec: &mut Spec) -> Result<Option<PathBuf>, ConvertError> {
    let path = folder.join("generation_config.json");
    if !path.exists() {
        return Ok(None);
    }
    let config = Config::parse(&path.display().to_string(), &read_small(&path)?)?;
    let ids = |field: &str| {
        let ids = config.token_ids(field, None, spec.vocab_size)?;
        if ids.iter().any(|&id| id as usize >= spec.vocab_size) {
            return Err(config.refuse(field, format!("less than `vocab_size` {}", spec.vocab_size)));
        }
        Ok(ids)
    };
    let ends = ids("eos_token_id")?;
    let starts = if spec.encoder.is_some() { ids("decoder_start_token_id")? } else { Vec::new() };
    let mut used = !ends.is_empty();
    if used {
        spec.eos_ids = ends;
    }
    if let (Some(encoder), Some(&start_id)) = (&mut spec.encoder, starts.first()) {
        if starts.len() > 1 {
            return Err(config.refuse("decoder_start_token_id", "one token id"));
        }
        (encoder.start_id, used) = (start_id, true);
    }
    Ok(used.then_some(path))
}
