//! Small f32 models of random weights, and the weights beside them.

use super::spec as zeros;
use std::collections::BTreeMap;
use std::path::Path;
use tidbit_runtime::format::header::{self, sha256_hex};
use tidbit_runtime::format::{ModelFile, Provenance, Stored, TensorRecord};
use tidbit_runtime::model::Model;
use tidbit_runtime::quant::{PANEL_ROWS, QuantType};
use tidbit_runtime::spec::{Role, Spec};
use tidbit_runtime::storage::Bytes;

/// By name, in row-major order.
pub(crate) type Weights = BTreeMap<String, Vec<f32>>;

/// Two layers with norms before, causal attention of three heads of 8, and a network of 20.
pub(crate) fn spec() -> Spec {
    let mut spec = zeros();
    spec.mlp.ffn_dim = 20;
    spec
}

/// Spreads every bit (`SplitMix64`).
pub(crate) fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Gains around 1, matrices with a gain of about 1.5, everything else up to a half.
pub(crate) fn weights(spec: &Spec, seed: u64) -> Weights {
    let tensors = spec.tensors().into_iter().enumerate();
    tensors
        .map(|(number, tensor)| {
            let gain = tensor.name.ends_with("norm.weight");
            let spread = match (tensor.role, tensor.shape.as_slice()) {
                (Role::Projection | Role::Router | Role::Head, &[_, cols]) => 2.6 / (cols as f32).sqrt(),
                _ => 0.5,
            };
            let value = |i: usize| {
                let bits = mix(mix(seed << 32 | number as u64) ^ i as u64);
                f32::from(u8::from(gain)) + spread * ((bits >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
            };
            (tensor.name.clone(), (0..tensor.len()).map(value).collect())
        })
        .collect()
}

/// The model with these weights.
pub(crate) fn model_of(spec: &Spec, weights: &Weights) -> Model {
    spec.validate().unwrap();
    let mut data = Vec::new();
    let record = |tensor: tidbit_runtime::spec::TensorDecl| {
        let values = &weights[&tensor.name];
        let (stored, laid_out) = match (tensor.role, tensor.shape.as_slice()) {
            (Role::Vector, _) => (Stored::Vector, padded(values)),
            (_, &[rows, cols]) => (Stored::Matrix(QuantType::F32), panels(values, rows, cols)),
            _ => panic!("{tensor:?}"),
        };
        let bytes: Vec<u8> = laid_out.iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(stored.bytes(&tensor.shape), Some(bytes.len()), "{tensor:?}");
        let sha256 = sha256_hex(&bytes);
        data.extend(bytes);
        (tensor.name, TensorRecord { stored, shape: tensor.shape, sha256 })
    };
    let tensors: Vec<_> = spec.tensors().into_iter().map(record).collect();
    let mut bytes = header::encode(spec, &Provenance::default(), None, &tensors).unwrap();
    bytes.extend(data);
    Model::new(ModelFile::from_bytes(Path::new("random.tidbit"), Bytes::copy_from(&bytes)).unwrap()).unwrap()
}

/// A model of random weights.
pub(crate) fn model(spec: &Spec, seed: u64) -> Model {
    model_of(spec, &weights(spec, seed))
}

fn padded(values: &[f32]) -> Vec<f32> {
    let mut padded = values.to_vec();
    padded.resize(values.len().next_multiple_of(PANEL_ROWS), 0.0);
    padded
}

/// Panels of 16 rows, column by column.
fn panels(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let at = |row: usize, col: usize| if row < rows { values[row * cols + col] } else { 0.0 };
    let panel =
        |panel: usize| (0..cols).flat_map(move |col| (0..PANEL_ROWS).map(move |row| at(panel * PANEL_ROWS + row, col)));
    (0..rows.div_ceil(PANEL_ROWS)).flat_map(panel).collect()
}
