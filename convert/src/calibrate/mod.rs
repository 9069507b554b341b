//! Conversion with data: what goes into every matrix is seen first, then the matrix is rounded so that what comes out changes
//! least.
//!
//! | module | what lives there |
//! |---|---|
//! | `tap` | a backend that sums up what goes into matrices |
//! | `hessian` | these sums, and their factorization |
//! | `folding` | scales moved from activations into weights |
//! | `rounding` | weights to codes, with feedback |
//! | `sensitivity` | how much each matrix matters |
//! | `allocation` | bits for each matrix, when there is room for so many bytes |
//! | `journal` | what was done, for the next run if this one is stopped |
//!
//! The text runs through the model block by block, on the runtime's own forward pass, so that every family is calibrated by the
//! same code. Each block runs twice: as it was, for the sums, and as it will be, on integers, for what the next one sees.
//! Some of the windows are held out: they decide for each matrix whether feedback helped.

mod allocation;
mod folding;
mod hessian;
mod journal;
mod rounding;
mod sensitivity;
mod tap;

use crate::Cancel;
use crate::error::ConvertError;
use crate::plan::Plan;
use crate::rows::{Rows, Scratch};
use crate::writer::{Content, Tensor};
use hessian::Moments;
use journal::Entries;
use rounding::Rounder;
use std::collections::VecDeque;
use std::ops::Range;
use std::path::Path;
use tap::Tapped;
use tidbit_runtime::backend::{CacheType, Cpu, Part};
use tidbit_runtime::error::SessionError;
use tidbit_runtime::format::Stored;
use tidbit_runtime::forward::{self, Activations};
use tidbit_runtime::kernels::{Element, Kernels, Layout, Source};
use tidbit_runtime::kv_cache::KvCache;
use tidbit_runtime::model::{FeedForward, Layer, Linear, Mlp, Model, NormWeights};
use tidbit_runtime::ops::Buffer;
use tidbit_runtime::quant::Matrix;
use tidbit_runtime::spec::{Head, NormKind, Residual, Trained};
use tidbit_runtime::storage::Bytes;

pub(crate) use allocation::{Candidate, allocate, least_bytes};
pub(crate) use journal::Journal;
pub use journal::journal_folder;
pub(crate) use sensitivity::measure;

/// Tokens of a window, if the model takes so many.
pub(crate) const WINDOW: usize = 512;
/// Rows of a matrix that decide, at most, whether feedback helped.
const JUDGED_ROWS: usize = 256;
/// One window in so many is held out.
const HELD_OUT: usize = 8;

/// The tensors of a model, rounded with data, one block after the other.
pub(crate) struct Calibrator<'a> {
    /// In f32.
    model: &'a Model,
    plan: &'a Plan,
    journal: Journal,
    cancel: Cancel<'a>,
    positions: Vec<usize>,
    backend: Tapped,
    acts: Activations<Tapped>,
    cache: KvCache,
    /// The residual stream of each window.
    states: Vec<Vec<f32>>,
    /// The next block; behind the last one, the rest.
    next: Option<usize>,
    ready: VecDeque<(usize, Content)>,
}

/// What a matrix is fed.
#[derive(Clone)]
struct Fed {
    moments: Moments,
    held_out: Moments,
}

impl Fed {
    fn divide(&mut self, factors: &[f32]) {
        self.moments = self.moments.divided(factors);
        self.held_out = self.held_out.divided(factors);
    }
}

/// A matrix on its way: its weights in f32, and what it is fed.
struct Work {
    /// In its block: `attn.qkv`.
    name: String,
    weights: Vec<f32>,
    fed: Fed,
}

impl<'a> Calibrator<'a> {
    /// `ids` is the text, in windows of `window` tokens.
    pub(crate) fn new(
        (model, plan, journal): (&'a Model, &'a Plan, Journal),
        (ids, window): (&[u32], usize),
        (kernels, threads): (Kernels, usize),
        cancel: Cancel<'a>,
    ) -> Result<Self, SessionError> {
        let spec = model.spec();
        let mut backend = Tapped::new(Cpu::new(kernels, threads, model, window)?);
        let mut acts = Activations::new(&backend, spec, window)?;
        let positions: Vec<usize> = (0..window).collect();
        let mut states = Vec::new();
        for ids in ids.chunks_exact(window) {
            forward::embed(&mut backend, model, &mut acts, ids, &positions);
            states.push(acts.residual().rows(0..window).to_vec());
        }
        let cache = KvCache::new(spec, CacheType::F32, window)?;
        let (next, ready) = (Some(0), VecDeque::new());
        Ok(Self { model, plan, journal, cancel, positions, backend, acts, cache, states, next, ready })
    }

    /// Runs over all windows: `run` is given the state of each.
    fn each_window(
        &mut self,
        mut run: impl FnMut(&mut Self, &mut Vec<f32>) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        let mut states = std::mem::take(&mut self.states);
        let n = states.len();
        for (i, state) in states.iter_mut().enumerate() {
            self.cancel.check()?;
            self.backend.held_out = n >= HELD_OUT && i % HELD_OUT == HELD_OUT - 1;
            self.acts.residual().rows_mut(0..self.positions.len()).copy_from_slice(state);
            run(self, state)?;
        }
        self.states = states;
        Ok(())
    }

    /// Runs a block over all windows; `keep` says whether what comes out is what the next one sees.
    fn run(&mut self, (layer, i): (&Layer, usize), keep: bool) -> Result<(), ConvertError> {
        let window = self.positions.len();
        self.each_window(|this, state| {
            let mut parts = [Part { cache: &mut this.cache, positions: 0..window, row: 0, memory: None }];
            let spec = this.model.spec();
            forward::block(&mut this.backend, (spec, layer, i), &mut this.acts, &this.positions, &mut parts);
            if keep {
                state.copy_from_slice(this.acts.residual().rows(0..window));
            }
            Ok(())
        })
    }

    /// What was fed to a matrix that was watched.
    fn fed(&mut self, linear: &Linear) -> Fed {
        let [moments, held_out] = self.backend.take(linear);
        let moments = moments.mean();
        // A text too short to hold something out, or an expert that nothing held out took.
        let held_out = if held_out.tokens() == 0 { moments.clone() } else { held_out.mean() };
        Fed { moments, held_out }
    }

    /// Block `i`: its tensors are ready afterwards.
    fn block(&mut self, i: usize) -> Result<(), ConvertError> {
        let (prefix, step) = (format!("layers.{i}."), format!("block-{i}"));
        let done = self.journal.find(&step);
        let found = done.and_then(|made| Some((self.rebuilt(i, &prefix, &made)?, made)));
        let (layer, made) = if let Some(found) = found {
            found
        } else {
            let made = self.rounded(i, &prefix)?;
            self.journal.keep(&step, &made);
            (self.rebuilt(i, &prefix, &made).expect("all that was rounded is there"), made)
        };
        self.emit(|name| name.starts_with(&prefix), made)?;
        self.run((&layer, i), true)
    }

    /// Block `i` with the tensors that were made for it; `None` when some are missing or misshapen.
    fn rebuilt(&self, i: usize, prefix: &str, made: &Entries) -> Option<Layer> {
        let mut layer = self.model.weights().layers[i].clone();
        let tensors = &self.plan.tensors;
        let bytes_of = |name: &str| made.get(&format!("{prefix}{name}"));
        for (name, linear) in linears(&mut layer) {
            let (rows, cols) = (linear.weight.rows(), linear.weight.cols());
            let name = format!("{name}.weight");
            let planned = tensors.iter().find(|t| t.name.strip_prefix(prefix) == Some(&name))?;
            let Stored::Matrix(quant) = planned.stored else { return None };
            let bytes = Bytes::copy_from(bytes_of(&name)?);
            linear.weight = Matrix::new(quant, rows, cols, bytes).ok()?;
        }
        let vector = |name: &str, values: &mut Vec<f32>| match bytes_of(name) {
            Some(bytes) if bytes.len() == values.len() * 4 => {
                *values = floats(bytes);
                Some(())
            }
            // Nothing trained.
            None if tensors.iter().all(|t| t.name.strip_prefix(prefix) != Some(name)) => Some(()),
            _ => None,
        };
        for (name, norm) in [("attn_norm", &mut layer.attn_norm), ("mlp_norm", &mut layer.mlp_norm)] {
            if let Some(norm) = norm {
                vector(&format!("{name}.weight"), &mut norm.gain)?;
                vector(&format!("{name}.bias"), &mut norm.bias)?;
            }
        }
        for (name, linear) in linears(&mut layer) {
            if let Some(bias) = &mut linear.bias {
                vector(&format!("{name}.bias"), bias)?;
            }
        }
        Some(layer)
    }

    /// Rounds block `i`: the bytes of its matrices, and its vectors.
    fn rounded(&mut self, i: usize, prefix: &str) -> Result<Entries, ConvertError> {
        let model = self.model;
        let mut layer = model.weights().layers[i].clone();
        let names: Vec<String> = linears(&mut layer).into_iter().map(|(name, _)| name).collect();
        // What goes into a gate goes into the other half too.
        let shares = |name: &str| name.strip_suffix(".up").map(|n| format!("{n}.gate"));
        let watched = |name: &str| shares(name).is_none_or(|gate| !names.contains(&gate));
        for (_, linear) in linears(&mut layer).into_iter().filter(|(name, _)| watched(name)) {
            self.backend.watch(linear)?;
        }
        self.run((&layer, i), false)?;
        let mut work: Vec<Work> = Vec::new();
        for (name, linear) in linears(&mut layer) {
            let fed = match work.iter().find(|w| shares(&name).as_ref() == Some(&w.name)) {
                Some(gate) => gate.fed.clone(),
                None => self.fed(linear),
            };
            work.push(Work { name, weights: decode(&linear.weight), fed });
        }
        self.move_scales(&mut layer, &mut work);

        let mut made = Entries::new();
        for work in work {
            self.cancel.check()?;
            let name = format!("{prefix}{}.weight", work.name);
            let bytes = self.round(&name, work)?;
            made.insert(name, bytes);
        }
        let mut vectors = |name: &str, values: &[f32]| {
            let name = format!("{prefix}{name}");
            if self.plan.tensors.iter().any(|t| t.name == name) {
                made.insert(name, bytemuck::cast_slice(values).to_vec());
            }
        };
        for (name, norm) in [("attn_norm", &layer.attn_norm), ("mlp_norm", &layer.mlp_norm)] {
            if let Some(norm) = norm {
                vectors(&format!("{name}.weight"), &norm.gain);
                vectors(&format!("{name}.bias"), &norm.bias);
            }
        }
        for (name, linear) in linears(&mut layer) {
            if let Some(bias) = &linear.bias {
                vectors(&format!("{name}.bias"), bias);
            }
        }
        Ok(made)
    }

    /// Moves scales out of the block's activations, wherever that changes nothing else.
    fn move_scales(&self, layer: &mut Layer, work: &mut [Work]) {
        let spec = self.model.spec();
        let a = &spec.attention;
        // A norm with one gain for all dimensions cannot take factors.
        let trained = spec.norm.trained != Trained::Nothing && spec.norm.kind != NormKind::ScaleNorm;
        let at = |work: &[Work], name: &str| work.iter().position(|w| w.name == name);
        // Out of the norms, where nothing but the matrices sees what they give.
        if trained && spec.residual != Residual::FromNorm {
            let shared = spec.residual == Residual::ParallelOneNorm;
            let feeds: [(&mut Option<NormWeights>, &[&str]); 2] = [
                (&mut layer.attn_norm, if shared { &["attn.qkv", "mlp.gate", "mlp.up"] } else { &["attn.qkv"] }),
                (&mut layer.mlp_norm, &["mlp.gate", "mlp.up"]),
            ];
            for (norm, names) in feeds {
                let fed: Vec<usize> = names.iter().filter_map(|name| at(work, name)).collect();
                let (Some(norm), Some(&first)) = (norm, fed.first()) else { continue };
                let factors = folding::factors(&work[first].fed.moments.diagonal());
                folding::divide_rows(&mut norm.gain, 1, &factors);
                folding::divide_rows(&mut norm.bias, 1, &factors);
                for i in fed {
                    folding::multiply_columns(&mut work[i].weights, &factors);
                    work[i].fed.divide(&factors);
                }
            }
        }
        // Out of the values, which attention only adds up.
        if let (Some(qkv), Some(out), None) = (at(work, "attn.qkv"), at(work, "attn.out"), a.clip) {
            let energy = work[out].fed.moments.diagonal();
            let group = a.n_heads / a.n_kv_heads * a.head_dim;
            // Heads that share values are divided alike.
            let channel = |kv: usize, dim: usize| {
                let heads = energy[kv * group..][..group].iter().skip(dim).step_by(a.head_dim);
                heads.sum::<f64>()
            };
            let sums: Vec<f64> =
                (0..a.n_kv_heads * a.head_dim).map(|i| channel(i / a.head_dim, i % a.head_dim)).collect();
            let factors = folding::factors(&sums);
            let first = (a.n_heads + a.n_kv_heads) * a.head_dim;
            folding::divide_rows(&mut work[qkv].weights[first * spec.d_model..], spec.d_model, &factors);
            if let Some(bias) = &mut layer.qkv.bias {
                folding::divide_rows(&mut bias[first..], 1, &factors);
            }
            let of = |i: usize| factors[i / group * a.head_dim + i % a.head_dim];
            let factors: Vec<f32> = (0..energy.len()).map(of).collect();
            folding::multiply_columns(&mut work[out].weights, &factors);
            work[out].fed.divide(&factors);
        }
        // Out of the half of a gated network that is not activated.
        let gated: Vec<String> = work.iter().filter_map(|w| w.name.strip_suffix(".gate").map(Into::into)).collect();
        for name in gated {
            let (Some(up), Some(down)) = (at(work, &format!("{name}.up")), at(work, &format!("{name}.down"))) else {
                continue;
            };
            let factors = folding::factors(&work[down].fed.moments.diagonal());
            let cols = work[up].weights.len() / factors.len();
            folding::divide_rows(&mut work[up].weights, cols, &factors);
            for (part, linear) in linears(layer) {
                if let (true, Some(bias)) = (part == work[up].name, &mut linear.bias) {
                    folding::divide_rows(bias, 1, &factors);
                }
            }
            folding::multiply_columns(&mut work[down].weights, &factors);
            work[down].fed.divide(&factors);
        }
    }

    /// A matrix as it is planned: its bytes in the file.
    fn round(&self, name: &str, work: Work) -> Result<Vec<u8>, ConvertError> {
        let Work { weights, fed, .. } = work;
        let cols = fed.moments.n();
        let rows = weights.len() / cols;
        let planned = self.plan.tensors.iter().find(|t| t.name == name).map(|t| t.stored);
        let Some(Stored::Matrix(quant)) = planned else { unreachable!("{name} is a matrix of the plan") };
        let Some(rounder) = Rounder::new(quant) else {
            let matrix = Matrix::encode(quant, rows, cols, &weights)
                .map_err(|e| refused(self.model, name, e.row, e.col, e.value))?;
            return Ok(matrix.bytes().to_vec());
        };
        if let Some(at) = weights.iter().position(|w| !w.is_finite()) {
            return Err(refused(self.model, name, at / cols, at % cols, weights[at]));
        }
        let energy: Vec<f32> = fed.moments.diagonal().iter().map(|&d| d as f32).collect();
        let candidates = [rounder.with_feedback(&weights, &fed.moments), rounder.nearest(&weights, &energy)];
        let error = |rounded| {
            let mut errors = Vec::new();
            // Some rows stand for all: their errors do not depend on each other.
            for row in (0..rows).step_by(rows.div_ceil(JUDGED_ROWS)) {
                let original = &weights[row * cols..][..cols];
                errors.extend(rounder.decode_row(rounded, row).iter().zip(original).map(|(a, b)| a - b));
            }
            fed.held_out.weigh(&errors)
        };
        let [with_feedback, nearest] = [error(&candidates[0]), error(&candidates[1])];
        Ok(rounder.encode(&candidates[usize::from(nearest < with_feedback)]))
    }

    /// What is neither in a block nor behind them, and then the head.
    fn rest(&mut self) -> Result<(), ConvertError> {
        let model = self.model;
        let (spec, weights) = (model.spec(), model.weights());
        let window = self.positions.len();
        let mut made = Entries::new();
        // Where rows are as wide as the residual stream, and the final norm gives them.
        if let (Some(head), None) = (&weights.head, &weights.head_project) {
            self.backend.watch(head)?;
            let mut finished = Buffer::new(window, spec.d_model)?;
            self.each_window(|this, _| {
                forward::finish(&mut this.backend, model, &this.acts, 0..window, (&mut finished, 0));
                this.backend.see(head, &finished, 0..window);
                Ok(())
            })?;
            let mut work = Work { name: String::new(), weights: decode(&head.weight), fed: self.fed(head) };
            let mut norm = weights.final_norm.clone();
            // A tied table serves as embedding too, which must stay as it is.
            if let (Head::Untied, true, Some(norm)) = (spec.head, spec.norm.trained != Trained::Nothing, &mut norm) {
                let factors = folding::factors(&work.fed.moments.diagonal());
                folding::divide_rows(&mut norm.gain, 1, &factors);
                folding::divide_rows(&mut norm.bias, 1, &factors);
                folding::multiply_columns(&mut work.weights, &factors);
                work.fed.divide(&factors);
            }
            if let Some(norm) = norm {
                made.insert("final_norm.weight".into(), bytemuck::cast_slice(&norm.gain).to_vec());
                made.insert("final_norm.bias".into(), bytemuck::cast_slice(&norm.bias).to_vec());
            }
            let name = if spec.head == Head::Tied { "embed.tokens" } else { "head.weight" };
            made.insert(name.into(), self.round(name, work)?);
        }
        self.emit(|name| !name.starts_with("layers."), made)
    }

    /// Hands over the planned tensors of some names: as they were made, or else as they were.
    fn emit(&mut self, wanted: impl Fn(&str) -> bool, mut made: Entries) -> Result<(), ConvertError> {
        for (i, tensor) in self.plan.tensors.iter().enumerate().filter(|(_, t)| wanted(&t.name)) {
            let file = self.model.file();
            let content = match (made.remove(&tensor.name), tensor.stored) {
                (Some(bytes), Stored::Matrix(_)) => Content::Encoded(bytes),
                (Some(bytes), _) => Content::Rows(Box::new(Values(floats(&bytes)))),
                (None, Stored::Matrix(_)) => {
                    Content::Rows(Box::new(Decoded(file.matrix(&tensor.name)?, tensor.name.clone())))
                }
                (None, _) => Content::Rows(Box::new(Values(file.vector(&tensor.name)?))),
            };
            self.ready.push_back((i, content));
        }
        Ok(())
    }

    fn advance(&mut self) -> Result<(), ConvertError> {
        match self.next {
            Some(i) if i < self.model.spec().n_layers => {
                self.next = Some(i + 1);
                self.block(i)
            }
            _ => {
                self.next = None;
                self.rest()
            }
        }
    }
}

impl Iterator for Calibrator<'_> {
    type Item = Tensor;

    fn next(&mut self) -> Option<Tensor> {
        while self.ready.is_empty() {
            self.next?;
            if let Err(e) = self.advance() {
                self.next = None;
                return Some(Err(e));
            }
        }
        self.ready.pop_front().map(Ok)
    }
}

/// The matrices of a block, but for routers; to be changed, as most callers do.
fn linears(layer: &mut Layer) -> Vec<(String, &mut Linear)> {
    let mut list = vec![("attn.qkv".to_string(), &mut layer.qkv), ("attn.out".into(), &mut layer.attn_out)];
    let networks: Vec<(String, &mut FeedForward)> = match &mut layer.mlp {
        Mlp::One(network) => vec![("mlp".into(), network)],
        Mlp::Experts { experts, shared, .. } => {
            let mut list: Vec<_> =
                experts.iter_mut().enumerate().map(|(i, n)| (format!("mlp.experts.{i}"), n)).collect();
            list.extend(shared.as_mut().map(|(n, _)| ("mlp.shared".to_string(), n)));
            list
        }
    };
    for (name, n) in networks {
        list.extend(n.gate.as_mut().map(|gate| (format!("{name}.gate"), gate)));
        list.push((format!("{name}.up"), &mut n.up));
        list.push((format!("{name}.down"), &mut n.down));
    }
    list
}

/// The numbers of these bytes, as this machine has them.
fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|four| f32::from_ne_bytes([four[0], four[1], four[2], four[3]])).collect()
}

/// All values, row by row.
fn decode(matrix: &Matrix) -> Vec<f32> {
    let mut values = vec![0.0; matrix.rows() * matrix.cols()];
    for (row, out) in values.chunks_exact_mut(matrix.cols()).enumerate() {
        matrix.decode_row(row, out);
    }
    values
}

fn refused(model: &Model, name: &str, row: usize, col: usize, value: f32) -> ConvertError {
    let reason = format!("row {row}, column {col} is {value}, expected a finite number that the type can hold");
    ConvertError::tensor(model.file().path(), name, reason)
}

/// A vector that was made.
struct Values(Vec<f32>);

/// A matrix of the f32 model, and its name.
struct Decoded(Matrix, String);

impl Rows for Values {
    fn source<'s>(&'s self, rows: Range<usize>, _: usize, scratch: &'s mut Scratch) -> Source<'s> {
        scratch.starts.clear();
        scratch.starts.extend(rows);
        let layout = Layout::Rows { starts: &scratch.starts };
        Source { bytes: bytemuck::must_cast_slice(&self.0), element: Element::F32, layout }
    }

    fn refuse(&self, row: usize, _: usize, value: f32, stored: Stored) -> ConvertError {
        let reason = format!("element {row} became {value}, which cannot be stored as {stored}");
        ConvertError::tensor(Path::new("calibration"), "a gain or bias", reason)
    }
}

impl Rows for Decoded {
    fn source<'s>(&'s self, rows: Range<usize>, cols: usize, scratch: &'s mut Scratch) -> Source<'s> {
        let Scratch { values, starts } = scratch;
        values.resize(rows.len() * cols, 0.0);
        starts.clear();
        starts.extend((0..rows.len()).map(|row| row * cols));
        for (row, out) in rows.zip(values.chunks_exact_mut(cols)) {
            self.0.decode_row(row, out);
        }
        Source { bytes: bytemuck::must_cast_slice(values), element: Element::F32, layout: Layout::Rows { starts } }
    }

    fn refuse(&self, row: usize, col: usize, value: f32, stored: Stored) -> ConvertError {
        let reason = format!("row {row}, column {col} is {value}, which cannot be stored as {stored}");
        ConvertError::tensor(Path::new("the model in f32"), &self.1, reason)
    }
}
