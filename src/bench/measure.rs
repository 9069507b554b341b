//! The stopwatch: start, prefill, decode, and the machine's own ceilings in the same breath.

use super::cost::Cost;
use anyhow::Result;
use serde::Serialize;
use std::time::Instant;
use tidbit_runtime::engine::{Engine, Feed};
use tidbit_runtime::error::FormatError;
use tidbit_runtime::kernels::{self, Kernels};
use tidbit_runtime::kv_cache;
use tidbit_runtime::sequence::Sequence;
use tidbit_runtime::session::{Model, Session, SessionOptions};
use tidbit_runtime::threads::Pool;

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Run {
    /// `prefill` or `decode`.
    pub(crate) phase: &'static str,
    /// The quant type that `convert` was asked for.
    pub(crate) quant: String,
    pub(crate) threads: usize,
    /// Tokens timed in each repetition.
    pub(crate) n_tokens: usize,
    /// Tokens in the cache before those.
    pub(crate) depth: usize,
    /// Sequences at once.
    pub(crate) batch: usize,
    /// Of all sequences together, median.
    pub(crate) tokens_per_s: f64,
    pub(crate) p5: f64,
    pub(crate) p95: f64,
    /// Bytes of weights and caches that a step of one token for each sequence needs, times steps per second (decode).
    pub(crate) read_gb_per_s: Option<f64>,
    /// Multiply-adds of the matrix products, counted as two, per second (prefill).
    pub(crate) int8_tops: Option<f64>,
    /// The machine's own figure for the same bytes, or the same operations, with as many threads: median.
    pub(crate) roof: Option<f64>,
    /// The median of the fractions of the roof, each against the roof measured next to it.
    pub(crate) roof_fraction: Option<f64>,
}

impl Run {
    /// What was reached, in the unit of the roof: GB/s, or 10^12 operations per second.
    pub(crate) fn achieved(&self) -> Option<f64> {
        self.read_gb_per_s.or(self.int8_tops)
    }

    /// The unit of the roof.
    pub(crate) fn unit(&self) -> &'static str {
        if self.read_gb_per_s.is_some() { "GB/s" } else { "int8 Tops" }
    }

    /// Tokens per second at the roof.
    pub(crate) fn roof_tokens_per_s(&self) -> Option<f64> {
        Some(self.tokens_per_s * self.roof? / self.achieved()?)
    }
}

/// Tokens of the prompt until whose logits a start is timed.
pub(crate) const FIRST_PROMPT: usize = 5;

/// Most starts that are timed: they vary little, and each runs a prompt.
const MOST_STARTS: usize = 5;

/// How long it takes until a model answers, medians, in a process that runs already and with the file in the system's cache.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Start {
    /// Opening the file and making a session.
    pub(crate) load_ms: f64,
    /// The same, and the logits after a prompt of [`FIRST_PROMPT`] tokens.
    pub(crate) first_token_ms: f64,
}

/// Opens the model and makes a session, several times after one to warm up; the last session is kept.
pub(crate) fn start(
    open: impl Fn() -> Result<Model, FormatError>,
    options: &SessionOptions,
    repetitions: usize,
) -> Result<(Session, Start)> {
    let mut samples = Vec::new();
    let once = || -> Result<(Session, (f64, f64))> {
        let begin = Instant::now();
        let model = open()?;
        let mut session = Session::new(&model, options)?;
        let loaded = begin.elapsed().as_secs_f64();
        let ids = ids(&model, FIRST_PROMPT.min(session.context()));
        session.append(&ids)?;
        Ok((session, (loaded * 1e3, begin.elapsed().as_secs_f64() * 1e3)))
    };
    let (mut session, _) = once()?;
    for _ in 0..repetitions.clamp(1, MOST_STARTS) {
        // One session at a time, so that the peak of memory is that of one.
        drop(session);
        let sample;
        (session, sample) = once()?;
        samples.push(sample);
    }
    let (loads, firsts): (Vec<_>, Vec<_>) = samples.into_iter().unzip();
    Ok((session, Start { load_ms: percentile(&loads, 50.0), first_token_ms: percentile(&firsts, 50.0) }))
}

/// The ceilings of this machine with a number of threads.
pub(crate) struct Machine {
    kernels: Kernels,
    pool: Pool,
}

impl Machine {
    pub(crate) fn new(threads: usize) -> Result<Self> {
        Ok(Self { kernels: kernels::active()?, pool: Pool::new(threads)? })
    }

    /// Seconds to read `bytes` once with all threads.
    pub(super) fn read_seconds(&mut self, bytes: &[u8]) -> f64 {
        let part = bytes.len().div_ceil(self.pool.n_threads() * 8).next_multiple_of(64);
        let parts: Vec<&[u8]> = bytes.chunks(part).collect();
        let start = Instant::now();
        self.pool.run(parts.len(), &|i| {
            std::hint::black_box(self.kernels.read(parts[i]));
        });
        start.elapsed().as_secs_f64()
    }

    /// 8-bit operations per second, in 10^12, a multiply-add counted as two.
    fn int8_tops(&mut self) -> f64 {
        let threads = self.pool.n_threads();
        let done = std::sync::atomic::AtomicU64::new(0);
        let start = Instant::now();
        self.pool.run(threads * 4, &|_| {
            done.fetch_add(self.kernels.multiply(1 << 28), std::sync::atomic::Ordering::Relaxed);
        });
        2.0 * done.into_inner() as f64 / start.elapsed().as_secs_f64() / 1e12
    }
}

fn cost(model: &Model) -> Cost {
    let tensors = model.file().tensors();
    Cost::of(model.spec(), tensors.map(|(name, record, bytes)| (name, record.stored, &*record.shape, bytes as u64)))
}

/// Any ids do: speed does not depend on them.
fn ids(model: &Model, n: usize) -> Vec<u32> {
    let vocab = model.spec().vocab_size;
    (0..n).map(|i| u32::try_from(i * 7919 % vocab).unwrap_or(0)).collect()
}

/// Runs `n_tokens` at once.
pub(crate) fn prefill(
    session: &mut Session,
    machine: &mut Machine,
    n_tokens: usize,
    repetitions: usize,
) -> Result<Run> {
    let (model, ids) = (session.model().clone(), ids(session.model(), n_tokens));
    let cost = cost(&model);
    let tera_ops = 2.0 * (cost.block_macs * n_tokens + cost.head_macs) as f64 / 1e12;
    let integer = model.weights().layers.first().is_some_and(|l| l.qkv.weight.quant().is_integer());
    let mut samples = Vec::new();
    for repetition in 0..=repetitions {
        let roof = if integer { machine.int8_tops() } else { f64::NAN };
        session.rewind(0);
        let start = Instant::now();
        session.append(&ids)?;
        if repetition > 0 {
            samples.push((start.elapsed().as_secs_f64(), roof));
        }
    }
    let rates: Vec<f64> = samples.iter().map(|(seconds, _)| n_tokens as f64 / seconds).collect();
    let fractions: Vec<f64> = samples.iter().map(|(seconds, roof)| tera_ops / seconds / roof).collect();
    let roofs: Vec<f64> = samples.iter().map(|s| s.1).collect();
    Ok(Run {
        phase: "prefill",
        quant: model.file().provenance().quant.clone(),
        threads: session.threads(),
        n_tokens,
        depth: 0,
        batch: 1,
        tokens_per_s: percentile(&rates, 50.0),
        p5: percentile(&rates, 5.0),
        p95: percentile(&rates, 95.0),
        read_gb_per_s: None,
        int8_tops: integer.then(|| tera_ops / n_tokens as f64 * percentile(&rates, 50.0)),
        roof: integer.then(|| percentile(&roofs, 50.0)),
        roof_fraction: integer.then(|| percentile(&fractions, 50.0)),
    })
}

/// Runs `n_tokens` of each sequence, one of each at a time, after `depth` others.
pub(crate) fn decode(
    (engine, sequences): (&mut Engine, &mut [Sequence]),
    machine: &mut Machine,
    n_tokens: usize,
    depth: usize,
    repetitions: usize,
) -> Result<Run> {
    let (model, ids) = (engine.model().clone(), ids(engine.model(), n_tokens + depth));
    let batch = sequences.len();
    for sequence in &mut *sequences {
        sequence.rewind(0);
        if depth > 0 {
            // No sharing: each reads a cache of its own.
            engine.step(&mut [Feed::new(sequence, &ids[..depth])])?;
        }
    }
    let cache_bytes = kv_cache::bytes_read(model.spec(), sequences[0].cache_type(), depth + n_tokens / 2);
    let bytes = cost(&model).matrix_bytes as usize + batch * cache_bytes;
    // The model's own pages, where they lie: the same memory that decode reads.
    let file = model.file().bytes();
    let same = &file[file.len() - bytes.min(file.len())..];
    let mut samples = Vec::new();
    for repetition in 0..=repetitions {
        let roof = same.len() as f64 / machine.read_seconds(same);
        for sequence in &mut *sequences {
            sequence.rewind(sequence.resume_point(depth));
            if sequence.position() < depth {
                // A window has passed what stood before.
                engine.step(&mut [Feed::new(sequence, &ids[..depth])])?;
            }
        }
        let start = Instant::now();
        for id in ids[depth..].chunks(1) {
            if let [sequence] = sequences {
                engine.step(&mut [Feed::new(sequence, id)])?;
            } else {
                let mut feeds: Vec<_> = sequences.iter_mut().map(|sequence| Feed::new(sequence, id)).collect();
                engine.step(&mut feeds)?;
            }
        }
        if repetition > 0 {
            samples.push((start.elapsed().as_secs_f64() / n_tokens as f64, roof));
        }
    }
    let steps: Vec<f64> = samples.iter().map(|(seconds, _)| 1.0 / seconds).collect();
    let fractions: Vec<f64> = samples.iter().map(|(seconds, roof)| bytes as f64 / seconds / roof).collect();
    let roofs: Vec<f64> = samples.iter().map(|s| s.1 / 1e9).collect();
    let tokens_per_s = |percent| batch as f64 * percentile(&steps, percent);
    Ok(Run {
        phase: "decode",
        quant: model.file().provenance().quant.clone(),
        threads: engine.threads(),
        n_tokens,
        depth,
        batch,
        tokens_per_s: tokens_per_s(50.0),
        p5: tokens_per_s(5.0),
        p95: tokens_per_s(95.0),
        read_gb_per_s: Some(bytes as f64 * percentile(&steps, 50.0) / 1e9),
        int8_tops: None,
        roof: Some(percentile(&roofs, 50.0)),
        roof_fraction: Some(percentile(&fractions, 50.0)),
    })
}

/// The value below which `percent` of the samples lie (nearest rank).
fn percentile(samples: &[f64], percent: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (percent / 100.0 * (sorted.len() as f64 - 1.0)).round() as usize;
    sorted.get(rank).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let samples = [3.0, 1.0, 2.0, 5.0, 4.0];
        assert_eq!(percentile(&samples, 50.0), 3.0);
        assert_eq!(percentile(&samples, 5.0), 1.0);
        assert_eq!(percentile(&samples, 95.0), 5.0);
        assert_eq!(percentile(&[7.0], 50.0), 7.0);
    }
}
