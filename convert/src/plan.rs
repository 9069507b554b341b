//! What a conversion will write: the stored type and size of every tensor, before any weight is read.

use crate::tokenizer::StoredTokenizer;
use tidbit_runtime::format::{Provenance, SourceFile, Stored, TensorRecord, header};
use tidbit_runtime::quant::QuantType;
use tidbit_runtime::spec::{Role, Spec, TensorDecl};

/// What a conversion will write.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The quant type asked for; of no meaning when types are mixed.
    pub quant: QuantType,
    /// Whether each matrix has a type of its own, to meet a target.
    pub mixed: bool,
    /// What the file says of its calibration.
    pub calibration: Option<String>,
    /// Every tensor of the model, in file order.
    pub tensors: Vec<PlannedTensor>,
    /// Bytes of the tokenizer in the file; 0 without one.
    pub tokenizer_bytes: u64,
    /// Bytes of the whole file.
    pub file_bytes: u64,
    /// Number of parameters (a tied head counts once).
    pub parameters: u64,
    /// Bits that a parameter takes on average, scales and padding included: the tensors' bytes times 8
    /// by the parameters.
    pub bits_per_weight: f64,
    /// Bytes of all source tensors that are read.
    pub source_bytes: u64,
    /// Bytes of the largest tensor's sources: they are held in memory while it is converted.
    pub largest_source_bytes: u64,
}

/// A tensor to be written.
#[derive(Clone, Debug)]
pub struct PlannedTensor {
    /// Its name in the file.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub stored: Stored,
    /// Bytes in the file.
    pub bytes: u64,
    /// Bytes in the checkpoint.
    pub source_bytes: u64,
}

/// How a tensor is stored when `quant` is asked for. Vectors stay f32. Embedding and head suffer most from few bits, so they
/// get one or two types more (`q8` under `q4` was no better use of the bytes: gpt2-mini, calibrated, 5.44 bits and a divergence of
/// 0.0046 where bits that went where they count most took 4.99 for 0.0047); so do positions, of which there are few, and routers, on which hangs what is computed at all.
fn stored(role: Role, quant: QuantType) -> Stored {
    match role {
        Role::Vector => Stored::Vector,
        _ if !quant.is_integer() => Stored::Matrix(quant),
        Role::Projection => Stored::Matrix(quant),
        Role::Router => Stored::Matrix(QuantType::F16),
        Role::Positions => Stored::Matrix(QuantType::Q8),
        Role::Embedding | Role::Head => Stored::Matrix(match quant {
            QuantType::Q5 | QuantType::Q4 => QuantType::Q6,
            QuantType::Q3 => QuantType::Q5,
            QuantType::Q2 => QuantType::Q4,
            _ => QuantType::Q8,
        }),
    }
}

impl Plan {
    /// The plan of a model of which only the architecture is known: no tokenizer, no sources.
    ///
    /// # Errors
    /// A message when a size overflows.
    pub fn of_spec(spec: &Spec, quant: QuantType) -> Result<Self, String> {
        Self::new(spec, quant, &vec![0; spec.tensors().len()], None, &[])
    }

    /// Plans a file. `source_bytes` has one entry per tensor of the spec.
    ///
    /// # Errors
    /// A message when a size overflows.
    pub(crate) fn new(
        spec: &Spec,
        quant: QuantType,
        source_bytes: &[u64],
        tokenizer: Option<&StoredTokenizer>,
        sources: &[SourceFile],
    ) -> Result<Self, String> {
        let types = spec.tensors().iter().map(|decl| stored(decl.role, quant)).collect();
        Self::with_types(spec, (quant, types, None), source_bytes, tokenizer, sources)
    }

    /// The same with a type for each tensor of the spec.
    ///
    /// # Errors
    /// A message when a size overflows.
    pub(crate) fn with_types(
        spec: &Spec,
        (quant, types, calibration): (QuantType, Vec<Stored>, Option<String>),
        source_bytes: &[u64],
        tokenizer: Option<&StoredTokenizer>,
        sources: &[SourceFile],
    ) -> Result<Self, String> {
        let usual = |(decl, found): (&TensorDecl, &Stored)| stored(decl.role, quant) == *found;
        let mut plan = Self {
            quant,
            mixed: !spec.tensors().iter().zip(&types).all(usual),
            calibration,
            tensors: Vec::new(),
            tokenizer_bytes: 0,
            file_bytes: 0,
            parameters: 0,
            bits_per_weight: 0.0,
            source_bytes: source_bytes.iter().sum(),
            largest_source_bytes: source_bytes.iter().copied().max().unwrap_or(0),
        };
        let mut bytes_of_tensors = 0;
        for ((decl, &source_bytes), stored) in spec.tensors().into_iter().zip(source_bytes).zip(types) {
            let overflow = || format!("tensor `{}`: shape {:?} overflows", decl.name, decl.shape);
            let bytes = stored.bytes(&decl.shape).ok_or_else(overflow)? as u64;
            plan.parameters = plan.parameters.checked_add(decl.len() as u64).ok_or_else(overflow)?;
            bytes_of_tensors = u64::checked_add(bytes_of_tensors, bytes).ok_or_else(overflow)?;
            plan.tensors.push(PlannedTensor { name: decl.name, shape: decl.shape, stored, bytes, source_bytes });
        }
        if let Some(tokenizer) = tokenizer {
            plan.tokenizer_bytes =
                Stored::Bytes.bytes(&[tokenizer.bytes.len()]).ok_or("the tokenizer's size overflows")? as u64;
        }
        let header = header::encode(
            spec,
            &plan.provenance(sources.to_vec()),
            tokenizer.and_then(|t| t.chat.as_ref()),
            &plan.records(tokenizer),
        )?;
        plan.file_bytes = header.len() as u64 + bytes_of_tensors + plan.tokenizer_bytes;
        plan.bits_per_weight = bytes_of_tensors as f64 * 8.0 / plan.parameters.max(1) as f64;
        Ok(plan)
    }

    /// The header's records, with checksums still to be filled in: as long as the final ones.
    pub(crate) fn records(&self, tokenizer: Option<&StoredTokenizer>) -> Vec<(String, TensorRecord)> {
        let record = |stored, shape| TensorRecord { stored, shape, sha256: NO_HASH.into() };
        let mut records: Vec<_> =
            self.tensors.iter().map(|t| (t.name.clone(), record(t.stored, t.shape.clone()))).collect();
        records.extend(tokenizer.map(|t| (t.name.to_string(), record(Stored::Bytes, vec![t.bytes.len()]))));
        records
    }

    /// What was asked for: a type, or `mixed` where each matrix has one of its own.
    pub fn quant_name(&self) -> &'static str {
        if self.mixed { "mixed" } else { self.quant.name() }
    }

    pub(crate) fn provenance(&self, sources: Vec<SourceFile>) -> Provenance {
        let converter = format!("tidbit {}", env!("CARGO_PKG_VERSION"));
        Provenance { converter, quant: self.quant_name().into(), calibration: self.calibration.clone(), sources }
    }
}

/// Stands for a checksum not yet known.
pub(crate) const NO_HASH: &str = "0000000000000000000000000000000000000000000000000000000000000000";
