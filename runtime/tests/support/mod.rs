//! A small model made in the test.

#![allow(dead_code, reason = "each test uses a part of it")]

pub(crate) mod models;
pub(crate) mod reference;

use tidbit_runtime::format::header::{self, sha256_hex};
use tidbit_runtime::format::{Provenance, Stored, TensorRecord};
use tidbit_runtime::quant::QuantType;
use tidbit_runtime::spec::{Role, Spec};

/// Two layers, 24 wide, everything present.
pub(crate) fn spec() -> Spec {
    serde_json::from_value(serde_json::json!({
        "family": "test", "vocab_size": 50, "n_layers": 2, "d_model": 24, "context_length": 40,
        "position": { "kind": "learned" },
        "norm": { "kind": "layer_norm", "eps": 1e-5 },
        "attention": { "n_heads": 3, "n_kv_heads": 3, "head_dim": 8, "scale": 0.3, "scale_by_inverse_layer": false,
            "qkv_bias": true, "out_bias": true },
        "mlp": { "ffn_dim": 96, "activation": "gelu_erf", "bias": true },
        "residual": "sequential", "head": "untied",
    }))
    .unwrap()
}

pub(crate) type Tensors = Vec<(String, TensorRecord)>;

/// Its records: matrices in q8, every value 0.
pub(crate) fn tensors(spec: &Spec) -> Tensors {
    let stored = |role| if role == Role::Vector { Stored::Vector } else { Stored::Matrix(QuantType::Q8) };
    let record = |role, shape: &[usize]| {
        let zeros = vec![0; stored(role).bytes(shape).unwrap()];
        TensorRecord { stored: stored(role), shape: shape.to_vec(), sha256: sha256_hex(&zeros) }
    };
    spec.tensors().iter().map(|t| (t.name.clone(), record(t.role, &t.shape))).collect()
}

/// The file with these records, every value 0.
pub(crate) fn file(spec: &Spec, tensors: &Tensors) -> Vec<u8> {
    let mut bytes = header::encode(spec, &Provenance::default(), None, tensors).unwrap();
    let data: usize = tensors.iter().map(|(_, r)| r.stored.bytes(&r.shape).unwrap()).sum();
    bytes.resize(bytes.len() + data, 0);
    bytes
}
