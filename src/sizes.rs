//! How large a model is, by stored type.

use indicatif::{DecimalBytes, HumanCount};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use tidbit_runtime::format::{ModelFile, Stored};
use tidbit_runtime::spec::{Role, Spec, TensorDecl};

/// The tensors of one stored type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Row {
    tensors: usize,
    /// Elements, padding not counted.
    values: u64,
    /// Bytes in the file, padding included.
    bytes: u64,
}

impl Row {
    fn bits_per_value(self) -> f64 {
        if self.values == 0 { 0.0 } else { self.bytes as f64 * 8.0 / self.values as f64 }
    }
}

/// Sizes by stored type.
#[derive(Debug, Default)]
pub(crate) struct Sizes {
    rows: BTreeMap<&'static str, Row>,
}

impl Sizes {
    /// Adds up tensors, each by how it is stored, its shape and its bytes in the file.
    pub(crate) fn of<'a>(tensors: impl Iterator<Item = (Stored, &'a [usize], u64)>) -> Self {
        let mut sizes = Self::default();
        for (stored, shape, bytes) in tensors {
            let row = sizes.rows.entry(name(stored)).or_default();
            row.tensors += 1;
            row.values += shape.iter().map(|&n| n as u64).product::<u64>();
            row.bytes += bytes;
        }
        sizes
    }

    /// Those of a model file.
    pub(crate) fn of_file(file: &ModelFile) -> Self {
        Self::of(file.tensors().map(|(_, record, bytes)| (record.stored, &*record.shape, bytes as u64)))
    }

    /// Bits per parameter over all weights: everything but the tokenizer.
    pub(crate) fn bits_per_weight(&self) -> f64 {
        let weights = self.rows.iter().filter(|(name, _)| **name != name_of_bytes()).map(|(_, row)| *row);
        weights
            .fold(Row::default(), |a, b| Row { values: a.values + b.values, bytes: a.bytes + b.bytes, ..a })
            .bits_per_value()
    }

    /// A table for people: one line per type, each ending in a line break.
    pub(crate) fn table(&self) -> String {
        let mut text =
            format!("  {:<8} {:>7} {:>15} {:>11} {:>12}\n", "type", "tensors", "values", "size", "bits/value");
        for (name, row) in &self.rows {
            // Writing to a `String` cannot fail.
            let _ = writeln!(
                text,
                "  {name:<8} {:>7} {:>15} {:>11} {:>12.3}",
                row.tensors,
                HumanCount(row.values).to_string(),
                DecimalBytes(row.bytes).to_string(),
                row.bits_per_value(),
            );
        }
        text
    }

    /// The same for scripts.
    pub(crate) fn json(&self) -> Value {
        let row = |(name, row): (&&str, &Row)| {
            json!({ "type": name, "tensors": row.tensors, "values": row.values, "bytes": row.bytes,
                "bits_per_value": row.bits_per_value() })
        };
        self.rows.iter().map(row).collect()
    }
}

fn name(stored: Stored) -> &'static str {
    match stored {
        Stored::Bytes => name_of_bytes(),
        Stored::Vector => "vector",
        Stored::Matrix(quant) => quant.name(),
    }
}

fn name_of_bytes() -> &'static str {
    "bytes"
}

/// Parameters of a spec: all, and those in neither an embedding nor the head (as Pythia counts them).
pub(crate) fn parameters(spec: &Spec) -> (u64, u64) {
    let tensors = spec.tensors();
    let sum =
        |keep: fn(&Role) -> bool| tensors.iter().filter(|t| keep(&t.role)).map(TensorDecl::len).map(|n| n as u64).sum();
    (sum(|_| true), sum(|role| matches!(role, Role::Projection | Role::Router | Role::Vector)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidbit_runtime::quant::QuantType;

    #[test]
    fn adds_up_by_type() {
        let q8 = Stored::Matrix(QuantType::Q8);
        let list: [(Stored, &[usize], u64); 4] =
            [(q8, &[16, 32], 640), (q8, &[16, 32], 640), (Stored::Vector, &[16], 64), (Stored::Bytes, &[1000], 1024)];
        let sizes = Sizes::of(list.into_iter());
        assert_eq!(sizes.rows["q8"], Row { tensors: 2, values: 1024, bytes: 1280 });
        assert!((sizes.rows["q8"].bits_per_value() - 10.0).abs() < 1e-9);
        let expected = (1280.0 + 64.0) * 8.0 / 1040.0;
        assert!((sizes.bits_per_weight() - expected).abs() < 1e-9, "the tokenizer is no weight");
        assert_eq!(sizes.table().lines().count(), 4);
        assert_eq!(sizes.json().as_array().map(Vec::len), Some(3));
    }
}
