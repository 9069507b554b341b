//! Which source tensors become which tensor of the model: every one accounted for, with its shape.

use crate::checkpoint::{Dtype, SourceTensor, Weights};
use crate::error::ConvertError;
use crate::family::{Described, Family, Order, Rule};
use std::collections::BTreeSet;
use std::path::Path;
use tidbit_runtime::spec::{Head, Spec, TensorDecl};

/// A tensor of the model and where it comes from.
#[derive(Debug)]
pub(crate) struct Mapped {
    pub(crate) decl: TensorDecl,
    /// One after the other; one, but for orders of several.
    pub(crate) parts: Vec<Part>,
    pub(crate) order: Order,
}

/// A source tensor.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// Its name in the checkpoint.
    pub(crate) name: String,
    pub(crate) source: SourceTensor,
    /// How many of our rows it has.
    pub(crate) rows: usize,
}

impl Mapped {
    /// Bytes of its sources.
    pub(crate) fn source_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.source.bytes().unwrap_or(0)).sum()
    }
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Mapping {
    /// In order of [`Spec::tensors`](tidbit_runtime::spec::Spec::tensors).
    pub(crate) tensors: Vec<Mapped>,
    /// An output projection in a checkpoint whose head is tied.
    pub(crate) spare_head: Option<Part>,
    /// Weights of an encoder's checkpoint that embeddings do not need.
    pub(crate) left_out: Vec<String>,
}

/// Finds the sources of every tensor, and refuses tensors that nothing needs.
pub(crate) fn map(described: &Described, weights: &Weights) -> Result<Mapping, ConvertError> {
    let Described { family, spec, said_by, .. } = described;
    let first = weights.files.first().map_or(Path::new(""), |p| p);
    let n_layers = spec.total_layers();
    if n_layers > weights.tensors.len() {
        let reason = format!("{} tensors cannot make {n_layers} layers ({said_by})", weights.tensors.len());
        return Err(ConvertError::container(first, reason));
    }
    let by = if described.by_spec_file() { format!(" ({said_by})") } else { String::new() };
    let mut used = BTreeSet::new();
    let mut tensors = Vec::new();
    for decl in spec.tensors() {
        let Some((rule, mut names)) = rule_of(family, &decl.name) else {
            return Err(ConvertError::tensor(first, &decl.name, format!("no rule in family {}", family.model_type)));
        };
        if decl.name == EMBEDDING && spec.head == Head::Tied {
            // Where there is only one of the two, it serves as both.
            names.extend(rule_of(family, HEAD).into_iter().flat_map(|(_, names)| names));
        }
        let wanted = match rule.order {
            // Any one of the names.
            Order::Same | Order::Transposed | Order::Grouped | Order::After(_) | Order::LessOne => {
                vec![(names, decl.shape.first().copied().unwrap_or(1))]
            }
            Order::QueryKeyValue | Order::PairsKeyValue | Order::KeyValue => {
                let a = &spec.attention;
                let heads = [a.n_heads, a.n_kv_heads, a.n_kv_heads].map(|heads| heads * a.head_dim);
                let rows = heads.into_iter().skip(usize::from(rule.order == Order::KeyValue));
                names.into_iter().map(|name| vec![name]).zip(rows).collect()
            }
            Order::AfterAndKind(_) => {
                names.into_iter().map(|name| vec![name]).zip([decl.shape.first().copied().unwrap_or(1), 0]).collect()
            }
            Order::ByHead => {
                let heads = decl.len() / spec.attention.head_dim;
                let name = |head: usize| names.iter().map(|n| n.replace("{h}", &head.to_string())).collect();
                (0..heads).map(|head| (name(head), spec.attention.head_dim)).collect()
            }
        };
        let mut parts = Vec::new();
        for (names, rows) in wanted {
            let names: Vec<_> = names.iter().flat_map(|name| prefixed(family, &decl.name, name)).collect();
            let mut shape = source_shape(&decl.shape, rule.order, rows);
            let Some((name, source)) = names.iter().find_map(|name| weights.tensors.get_key_value(name)) else {
                let head =
                    if decl.name == HEAD { format!(", and {}", described.says_tied(false)) } else { String::new() };
                let reason = format!("missing, expected shape {shape:?}{by}{head}");
                let name = names.first().map_or("", String::as_str);
                return Err(ConvertError::tensor(first, name, reason));
            };
            if rows == 0 {
                // None of them is a row of ours; there is one kind of token at least.
                shape[0] = source.shape.first().copied().unwrap_or(1).max(1);
            }
            check(weights, name, source, &shape, said_by)?;
            used.insert(name.as_str());
            parts.push(Part { name: name.clone(), source: source.clone(), rows });
        }
        tensors.push(Mapped { decl, parts, order: rule.order });
    }

    let (mut spare_head, mut left_out) = (None, Vec::new());
    for (name, source) in weights.tensors.iter().filter(|(name, _)| !used.contains(name.as_str())) {
        if family.leaves_out(name) {
            if spec.head == Head::None && matches!(source.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                left_out.push(name.clone());
            }
            continue;
        }
        if spec.head == Head::Tied && spare_head.is_none() && is_head(family, name) {
            check(weights, name, source, &head_shape(spec), said_by)?;
            spare_head = Some(Part { name: name.clone(), source: source.clone(), rows: spec.vocab_size });
            continue;
        }
        let (kind, layers) = (family.model_type, n_layers);
        let reason = format!("not part of a {kind} model of {layers} layers{by}, found shape {:?}", source.shape);
        return Err(ConvertError::tensor(weights.path_of(source), name, reason));
    }
    Ok(Mapping { tensors, spare_head, left_out })
}

const EMBEDDING: &str = "embed.tokens";
const HEAD: &str = "head.weight";

/// The rule for one of our tensors, and its names without a prefix.
fn rule_of(family: &'static Family, ours: &str) -> Option<(&'static Rule, Vec<String>)> {
    family.rules.iter().copied().flatten().find_map(|rule| Some((rule, rule.names(ours)?)))
}

/// A name with each prefix, the likeliest first.
fn prefixed(family: &Family, ours: &str, name: &str) -> Vec<String> {
    let mut names: Vec<_> = family.prefixes.iter().map(|prefix| format!("{prefix}{name}")).collect();
    // The head stands outside the part that the prefix names.
    names.insert(if ours.starts_with("head.") { 0 } else { names.len() }, name.into());
    names
}

fn is_head(family: &'static Family, name: &str) -> bool {
    let names = rule_of(family, HEAD).map(|(_, names)| names).unwrap_or_default();
    names.iter().any(|head| prefixed(family, HEAD, head).iter().any(|n| n == name))
}

fn head_shape(spec: &Spec) -> [usize; 2] {
    [spec.vocab_size, spec.embedding.dim.unwrap_or(spec.d_model)]
}

/// The shape of a source that has `rows` of our rows.
fn source_shape(ours: &[usize], order: Order, rows: usize) -> Vec<usize> {
    let mut shape = ours.to_vec();
    match order {
        Order::Transposed => shape.reverse(),
        Order::After(skipped) | Order::AfterAndKind(skipped) => shape[0] = rows + skipped,
        Order::Same
        | Order::Grouped
        | Order::QueryKeyValue
        | Order::KeyValue
        | Order::PairsKeyValue
        | Order::ByHead
        | Order::LessOne => {
            shape[0] = rows;
        }
    }
    shape
}

fn check(
    weights: &Weights,
    name: &str,
    source: &SourceTensor,
    shape: &[usize],
    said_by: &str,
) -> Result<(), ConvertError> {
    let error = |reason| Err(ConvertError::tensor(weights.path_of(source), name, reason));
    if source.shape != shape {
        return error(format!("expected shape {shape:?} ({said_by}), found {:?}", source.shape));
    }
    if !matches!(source.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
        return error(format!("type is {}, expected F32, F16 or BF16", source.dtype));
    }
    match &source.unreadable {
        Some(reason) => error(reason.clone()),
        None => Ok(()),
    }
}
