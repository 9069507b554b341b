//! Which layers see only the last positions.

use crate::config::Config;
use crate::error::ConvertError;
use serde_json::Value;
use tidbit_runtime::spec::Window;

/// A window of `size` in the layers for which `inside` is true.
pub(super) fn window(size: usize, inside: &[bool]) -> Option<Window> {
    let layers: Vec<usize> = (0..inside.len()).filter(|&i| inside[i]).collect();
    let all = layers.len() == inside.len();
    (!layers.is_empty()).then_some(Window { size, layers: if all { None } else { Some(layers) }, rotary: None })
}

/// `layer_types`: whether each layer has the window. `None` when the config does not say.
pub(super) fn layer_types(config: &Config, n_layers: usize) -> Result<Option<Vec<bool>>, ConvertError> {
    kinds(config, "layer_types", n_layers, ["full_attention", "sliding_attention"])
}

/// A list of two kinds, one a layer: whether each is the second.
pub(super) fn kinds(
    config: &Config,
    field: &str,
    n_layers: usize,
    [wide, narrow]: [&str; 2],
) -> Result<Option<Vec<bool>>, ConvertError> {
    let Some(value) = config.get(field) else { return Ok(None) };
    let kind = |v: &Value| v.as_str().and_then(|kind| [wide, narrow].iter().position(|k| *k == kind));
    let read = value.as_array().and_then(|list| list.iter().map(kind).collect::<Option<Vec<_>>>());
    let Some(list) = read else {
        return Err(config.refuse(field, format!("a list of \"{wide}\" and \"{narrow}\"")));
    };
    if list.len() != n_layers {
        return Err(config.error(format!("`{field}` has {} layers, expected {n_layers}", list.len())));
    }
    Ok(Some(list.into_iter().map(|kind| kind == 1).collect()))
}
