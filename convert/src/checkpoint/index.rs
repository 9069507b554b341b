//! The index of a sharded checkpoint: which file has which tensor.

use super::{Kind, Weights, json_object, read_small};
use crate::error::{ConvertError, shown};
use std::collections::BTreeSet;
use std::path::Path;

/// Reads the index at `path` and every shard it names in `folder`.
pub(super) fn read(path: &Path, folder: &Path, kind: Kind, weights: &mut Weights) -> Result<(), ConvertError> {
    let index = json_object(path, &read_small(path)?)?;
    let Some(map) = index.get("weight_map").and_then(|v| v.as_object()) else {
        return Err(ConvertError::container(path, "no `weight_map` object: not the index of a sharded checkpoint"));
    };
    let mut shards = BTreeSet::new();
    for (tensor, shard) in map {
        let plain = shard.as_str().filter(|s| Path::new(s).file_name().is_some_and(|n| n == *s));
        let Some(shard) = plain else {
            let reason = format!("its shard is {}, expected a file name", shown(&shard.to_string()));
            return Err(ConvertError::tensor(path, tensor, reason));
        };
        shards.insert(shard);
    }
    for shard in shards {
        let file = folder.join(shard);
        if !file.exists() {
            return Err(ConvertError::container(path, format!("shard {} is missing", shown(shard))));
        }
        weights.add_file(&file, kind)?;
    }
    for (tensor, shard) in map {
        let shard = folder.join(shard.as_str().unwrap_or_default());
        match weights.tensors.get(tensor) {
            Some(found) if weights.path_of(found) == shard => {}
            Some(found) => {
                let reason = format!("the index has it in this file, found it in {}", weights.path_of(found).display());
                return Err(ConvertError::tensor(&shard, tensor, reason));
            }
            None => return Err(ConvertError::tensor(&shard, tensor, "in the index, but not in this file")),
        }
    }
    Ok(())
}
