//! Which source tensor becomes which tensor of the model: every one accounted for, with its shape.

use crate::checkpoint::{Dtype, SourceTensor, Weights};
use crate::error::ConvertError;
use crate::family::{Described, Family, Order, layer_of};
use std::collections::BTreeSet;
use std::path::Path;
use tidbit_runtime::spec::{Head, TensorDecl};

/// A tensor of the model and where it comes from.
#[derive(Debug)]
pub(crate) struct Mapped {
    pub(crate) decl: TensorDecl,
    /// Its name in the checkpoint.
    pub(crate) name: String,
    pub(crate) source: SourceTensor,
    pub(crate) order: Order,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Mapping {
    /// In order of [`Spec::tensors`](tidbit_runtime::spec::Spec::tensors).
    pub(crate) tensors: Vec<Mapped>,
    /// An output projection in a checkpoint whose head is tied: it must equal the embedding.
    pub(crate) spare_head: Option<(String, SourceTensor)>,
}

/// Finds the source of every tensor, and refuses tensors that nothing needs.
pub(crate) fn map(described: &Described, weights: &Weights) -> Result<Mapping, ConvertError> {
    let Described { family, spec, .. } = described;
    let first = weights.files.first().map_or(Path::new(""), |p| p);
    if spec.n_layers > weights.tensors.len() {
        let reason = format!("{} tensors cannot make {} layers (config.json)", weights.tensors.len(), spec.n_layers);
        return Err(ConvertError::container(first, reason));
    }
    let mut used = BTreeSet::new();
    let mut tensors = Vec::new();
    for decl in spec.tensors() {
        let candidates = candidates(family, &decl.name);
        let Some((order, names)) = candidates else {
            return Err(ConvertError::tensor(first, &decl.name, format!("no rule in family {}", family.model_type)));
        };
        let found = names.iter().find_map(|name| weights.tensors.get_key_value(name));
        let shape = source_shape(&decl.shape, order);
        let Some((name, source)) = found else {
            let untied = if decl.name == HEAD { ", and `tie_word_embeddings` is false" } else { "" };
            let name = names.first().map_or("", String::as_str);
            return Err(ConvertError::tensor(first, name, format!("missing, expected shape {shape:?}{untied}")));
        };
        check(weights, name, source, &shape)?;
        used.insert(name.as_str());
        tensors.push(Mapped { decl, name: name.clone(), source: source.clone(), order });
    }

    let mut spare_head = None;
    let head_names = candidates(family, HEAD).map(|(_, names)| names).unwrap_or_default();
    for (name, source) in weights.tensors.iter().filter(|(name, _)| !used.contains(name.as_str())) {
        let bare = name.strip_prefix(family.prefix).unwrap_or(name);
        if family.buffers.iter().any(|pattern| layer_of(pattern, bare).is_some()) {
            continue;
        }
        if spec.head == Head::Tied && spare_head.is_none() && head_names.contains(name) {
            check(weights, name, source, &[spec.vocab_size, spec.d_model])?;
            spare_head = Some((name.clone(), source.clone()));
            continue;
        }
        let (kind, layers) = (family.model_type, spec.n_layers);
        let reason = format!("not part of a {kind} model of {layers} layers, found shape {:?}", source.shape);
        return Err(ConvertError::tensor(weights.path_of(source), name, reason));
    }
    Ok(Mapping { tensors, spare_head })
}

const HEAD: &str = "head.weight";

/// The names that one of our tensors may have in a checkpoint.
fn candidates(family: &Family, ours: &str) -> Option<(Order, Vec<String>)> {
    let (rule, layer) = family.rules.iter().find_map(|rule| Some((rule, layer_of(rule.ours, ours)?)))?;
    let bare = rule.theirs.iter().map(|name| name.replacen("{}", layer, 1));
    let names = bare.flat_map(|name| {
        let prefixed = format!("{}{name}", family.prefix);
        // The head stands outside the part that the prefix names.
        if ours == HEAD { [name, prefixed] } else { [prefixed, name] }
    });
    Some((rule.order, names.collect()))
}

fn source_shape(shape: &[usize], order: Order) -> Vec<usize> {
    match order {
        Order::Same | Order::FusedPerHead => shape.to_vec(),
        Order::Transposed => shape.iter().rev().copied().collect(),
    }
}

fn check(weights: &Weights, name: &str, source: &SourceTensor, shape: &[usize]) -> Result<(), ConvertError> {
    let error = |reason| Err(ConvertError::tensor(weights.path_of(source), name, reason));
    if source.shape != shape {
        return error(format!("expected shape {shape:?} (config.json), found {:?}", source.shape));
    }
    if !matches!(source.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
        return error(format!("type is {}, expected F32, F16 or BF16", source.dtype));
    }
    match &source.unreadable {
        Some(reason) => error(reason.clone()),
        None => Ok(()),
    }
}
