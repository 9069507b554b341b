//! How much each matrix matters: the divergence of the model's predictions when it alone is rounded.

use super::allocation::{Candidate, PROBE};
use super::journal::{Entries, Journal};
use super::rounding::Rounder;
use super::{decode, linears};
use crate::Cancel;
use crate::error::ConvertError;
use crate::plan::Plan;
use tidbit_runtime::backend::{CacheType, Cpu, Part};
use tidbit_runtime::forward::{self, Activations};
use tidbit_runtime::kernels::Kernels;
use tidbit_runtime::kv_cache::KvCache;
use tidbit_runtime::model::{Layer, Linear, Model};
use tidbit_runtime::ops::Buffer;
use tidbit_runtime::quant::{Matrix, QuantType};
use tidbit_runtime::spec::Head;

/// Rows of logits that are made at a time.
const ROWS: usize = 64;

/// The model in f32, run from the middle on.
struct Probe<'a> {
    model: &'a Model,
    backend: Cpu,
    acts: Activations<Cpu>,
    cache: KvCache,
    positions: Vec<usize>,
    finished: Buffer,
    logits: Buffer,
    /// Log-probabilities of the model as it is, `[positions, vocabulary]`.
    expected: Vec<f32>,
}

/// The divergence that each matrix of the plan causes when it alone is rounded to [`PROBE`], on one text. It is measured once and kept.
pub(crate) fn measure(
    (model, plan, journal): (&Model, &Plan, &Journal),
    ids: &[u32],
    device: (Kernels, usize),
    cancel: Cancel<'_>,
    progress: impl FnMut(usize, usize),
) -> Result<Vec<Candidate>, ConvertError> {
    const STEP: &str = "sensitivity";
    if let Some(found) = journal.find(STEP).and_then(|kept| candidates(plan, &kept)) {
        return Ok(found);
    }
    let found = measure_now((model, plan), ids, device, cancel, progress)?;
    let of = |c: &Candidate| (plan.tensors[c.tensor].name.clone(), c.divergence.to_le_bytes().to_vec());
    journal.keep(STEP, &found.iter().map(of).collect());
    Ok(found)
}

/// What was kept of a measurement, in the order of the plan; `None` when it is not one of this plan.
fn candidates(plan: &Plan, kept: &Entries) -> Option<Vec<Candidate>> {
    let mut found = Vec::new();
    for (tensor, planned) in plan.tensors.iter().enumerate() {
        if let Some(bytes) = kept.get(&planned.name) {
            let divergence = f64::from_le_bytes(bytes.as_slice().try_into().ok()?);
            found.push(Candidate { tensor, shape: planned.shape.as_slice().try_into().ok()?, divergence });
        }
    }
    (found.len() == kept.len()).then_some(found)
}

fn measure_now(
    (model, plan): (&Model, &Plan),
    ids: &[u32],
    (kernels, threads): (Kernels, usize),
    cancel: Cancel<'_>,
    mut progress: impl FnMut(usize, usize),
) -> Result<Vec<Candidate>, ConvertError> {
    let (spec, weights, n) = (model.spec(), model.weights(), ids.len());
    let Some(head) = &weights.head else {
        let reason = "is an encoder, which predicts nothing: how much a matrix matters cannot be measured";
        return Err(ConvertError::container(model.file().path(), reason));
    };
    let backend = Cpu::new(kernels, threads, model, n)?;
    let acts = Activations::new(&backend, spec, n)?;
    let cache = KvCache::new(spec, CacheType::F32, n)?;
    let (finished, logits) = (Buffer::new(ROWS, spec.d_model)?, Buffer::new(ROWS, spec.vocab_size)?);
    let positions = (0..n).collect();
    let mut probe = Probe { model, backend, acts, cache, positions, finished, logits, expected: Vec::new() };

    let find = |name: &str| plan.tensors.iter().position(|t| t.name == name);
    let total = plan.tensors.iter().filter(|t| t.shape.len() == 2).count();
    let mut found = Vec::new();
    let mut add = |name: &str, matrix: &Matrix, divergence: f64| {
        if let Some(tensor) = find(name) {
            found.push(Candidate { tensor, shape: [matrix.rows(), matrix.cols()], divergence });
        }
        progress(found.len(), total);
    };
    forward::embed(&mut probe.backend, model, &mut probe.acts, ids, &probe.positions.clone());
    let start = probe.acts.residual().rows(0..n).to_vec();
    // The states in front of every block, and what the model predicts.
    let mut states = vec![start];
    for (i, layer) in weights.layers.iter().enumerate() {
        cancel.check()?;
        probe.block(layer, i);
        states.push(probe.acts.residual().rows(0..n).to_vec());
    }
    let expected = probe.predict(head);
    probe.expected = expected;

    // An untied embedding alone; a tied one is measured as both.
    let rounded = rounded(&weights.embedding);
    forward::embed_with(&mut probe.backend, model, &rounded, &mut probe.acts, ids, &probe.positions.clone());
    probe.blocks(0, None);
    let tied = Linear { weight: rounded, bias: head.bias.clone() };
    let divergence = probe.diverges(if spec.head == Head::Tied { &tied } else { head });
    add("embed.tokens", &weights.embedding, divergence);
    for (i, layer) in weights.layers.iter().enumerate() {
        let mut changed = layer.clone();
        for part in 0..linears(&mut changed).len() {
            cancel.check()?;
            let (name, linear) = linears(&mut changed).swap_remove(part);
            let as_is = linear.weight.clone();
            linear.weight = self::rounded(&as_is);
            probe.acts.residual().rows_mut(0..n).copy_from_slice(&states[i]);
            probe.blocks(i, Some(&changed));
            add(&format!("layers.{i}.{name}.weight"), &as_is, probe.diverges(head));
            linears(&mut changed)[part].1.weight = as_is;
        }
    }
    if spec.head == Head::Untied {
        probe.acts.residual().rows_mut(0..n).copy_from_slice(&states[spec.n_layers]);
        let changed = Linear { weight: self::rounded(&head.weight), bias: head.bias.clone() };
        add("head.weight", &head.weight, probe.diverges(&changed));
    }
    Ok(found)
}

impl Probe<'_> {
    fn block(&mut self, layer: &Layer, i: usize) {
        let n = self.positions.len();
        let mut parts = [Part { cache: &mut self.cache, positions: 0..n, row: 0, memory: None }];
        forward::block(&mut self.backend, (self.model.spec(), layer, i), &mut self.acts, &self.positions, &mut parts);
    }

    /// Runs the blocks from `first` on, which may be another one.
    fn blocks(&mut self, first: usize, changed: Option<&Layer>) {
        let model = self.model;
        for (i, layer) in model.weights().layers.iter().enumerate().skip(first) {
            self.block(changed.filter(|_| i == first).unwrap_or(layer), i);
        }
    }

    /// Log-probabilities of every position.
    fn predict(&mut self, head: &Linear) -> Vec<f32> {
        let n = self.positions.len();
        let mut all = Vec::with_capacity(n * self.model.spec().vocab_size);
        for first in (0..n).step_by(ROWS) {
            let rows = first..(first + ROWS).min(n);
            let n = rows.len();
            forward::finish(&mut self.backend, self.model, &self.acts, rows, (&mut self.finished, 0));
            let finished = (&self.finished, n);
            forward::logits_with(&mut self.backend, self.model, head, &mut self.acts, finished, &mut self.logits);
            for row in 0..n {
                let logits = self.logits.row(row);
                let sum = self.backend.kernels().log_sum_exp(logits);
                all.extend(logits.iter().map(|&l| (f64::from(l) - sum) as f32));
            }
        }
        all
    }

    /// The mean divergence from the model as it is.
    fn diverges(&mut self, head: &Linear) -> f64 {
        let found = self.predict(head);
        let each = self.expected.iter().zip(&found);
        // `libm`, for the same bits on every system.
        let sum: f64 = each.map(|(&p, &q)| f64::from(libm::expf(p)) * f64::from(p - q)).sum();
        sum / self.positions.len() as f64
    }
}

/// As it is with few bits, to the nearest.
fn rounded(matrix: &Matrix) -> Matrix {
    let rounder = Rounder::new(PROBE).expect("it is an integer type");
    let rounded = rounder.nearest(&decode(matrix), &vec![1.0; matrix.cols()]);
    let values: Vec<f32> = (0..matrix.rows()).flat_map(|row| rounder.decode_row(&rounded, row)).collect();
    let encoded = Matrix::encode(QuantType::F32, matrix.rows(), matrix.cols(), &values);
    encoded.expect("f32 holds every finite number")
}
