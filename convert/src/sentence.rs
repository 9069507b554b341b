//! What sentence-transformers writes beside a checkpoint: how hidden states become an embedding.
//!
//! `modules.json` lists the steps after each other, `1_Pooling/config.json` says which states are pooled, and
//! `sentence_bert_config.json` how long a text may be. A checkpoint without them has the mean of its states, as they are.

use crate::checkpoint::read_small;
use crate::config::Config;
use crate::error::{ConvertError, shown};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tidbit_runtime::spec::{PoolingKind, Spec};

/// The ways to pool that are known by name, and the switches that older versions wrote for them.
const KINDS: [(&str, &str, Option<PoolingKind>); 6] = [
    ("mean", "pooling_mode_mean_tokens", Some(PoolingKind::Mean)),
    ("cls", "pooling_mode_cls_token", Some(PoolingKind::Cls)),
    ("lasttoken", "pooling_mode_lasttoken", Some(PoolingKind::Last)),
    ("max", "pooling_mode_max_tokens", None),
    ("mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens", None),
    ("weightedmean", "pooling_mode_weightedmean_tokens", None),
];

/// What pooling is supported, for messages.
const SUPPORTED: &str = "one of: mean, cls, lasttoken";

/// Reads how a checkpoint pools into its spec, and says which files say so.
pub(crate) fn read_pooling(folder: &Path, spec: &mut Spec) -> Result<Vec<PathBuf>, ConvertError> {
    let modules = folder.join("modules.json");
    if !modules.exists() {
        return Ok(Vec::new());
    }
    let error = |reason: String| ConvertError::config(&modules.display().to_string(), reason);
    let list: Value = serde_json::from_slice(&read_small(&modules)?)
        .map_err(|e| error(format!("not valid JSON: {}", shown(&e.to_string()))))?;
    let list = list.as_array().ok_or_else(|| error("expected a list of modules".into()))?;
    let mut files = vec![modules.clone()];
    for (i, module) in list.iter().enumerate() {
        let text = |name: &str| module[name].as_str().unwrap_or_default();
        // Newer versions have longer paths in front.
        match (i, text("type").rsplit('.').next().unwrap_or_default()) {
            (0, "Transformer") => {}
            (1, "Pooling") => {
                let path = text("path");
                if path.contains(['/', '\\']) || path == ".." {
                    return Err(error(format!("`path` is \"{}\", expected a folder beside it", shown(path))));
                }
                let file = folder.join(path).join("config.json");
                let config = Config::parse(&file.display().to_string(), &read_small(&file)?)?;
                spec.pooling.kind = kind(&config)?;
                for width in ["word_embedding_dimension", "embedding_dimension"] {
                    config.expect_size(&[width], spec.d_model, "the width of the model")?;
                }
                files.push(file);
            }
            (2, "Normalize") => spec.pooling.normalize = true,
            (_, other) => {
                let expected = "Transformer, Pooling, and perhaps Normalize";
                return Err(error(format!("module {i} is {}, expected {expected}", shown(other))));
            }
        }
    }
    let limits = folder.join("sentence_bert_config.json");
    if limits.exists() {
        let config = Config::parse(&limits.display().to_string(), &read_small(&limits)?)?;
        spec.pooling.max_tokens = config.size(&["max_seq_length"])?.filter(|&most| most < spec.context_length);
        files.push(limits);
    }
    Ok(files)
}

/// The one way to pool that a config asks for.
fn kind(config: &Config) -> Result<PoolingKind, ConvertError> {
    if let Some(name) = config.text("pooling_mode")? {
        let known = KINDS.iter().find(|kind| kind.0 == name).and_then(|kind| kind.2);
        return known.ok_or_else(|| config.refuse("pooling_mode", SUPPORTED));
    }
    let mut found = None;
    for (_, switch, kind) in KINDS {
        if config.bool(switch, false)? {
            if kind.is_none() || found.is_some() {
                return Err(config.refuse(switch, format!("false; pooling is {SUPPORTED}")));
            }
            found = kind;
        }
    }
    Ok(found.unwrap_or(PoolingKind::Mean))
}
