//! How fast a model would decode here, before it exists: as fast as this machine reads the bytes that a token needs.
//!
//! That is a bound, and for models of some hundred megabytes a near one: decode reaches 80 to 95 % of it
//! (`docs/performance.md`). Small ones stay further below, because what is done between matrices counts.

use super::cost::Cost;
use super::measure::Machine;
use crate::memory;
use anyhow::Result;
use serde::Serialize;
use tidbit_convert::Plan;
use tidbit_runtime::spec::Spec;
use tidbit_runtime::threads::{MAX_THREADS, available_cores};

/// Bytes that are read at most to measure: more than caches hold, and done in a moment.
const MOST: u64 = 128 << 20;

/// Repetitions; the first warms up.
const REPETITIONS: usize = 4;

/// What to expect of a model in one quant type.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Expected {
    /// The type.
    pub(crate) quant: &'static str,
    /// Weights that a token needs.
    pub(crate) bytes_per_token: u64,
    /// How fast so many bytes are read here.
    pub(crate) read_gb_per_s: f64,
    /// As fast as that allows, with an empty cache.
    pub(crate) tokens_per_s: f64,
}

/// What to expect of `spec` stored by each plan, and with how many threads.
pub(crate) fn expected(spec: &Spec, plans: &[Plan]) -> Result<(usize, Vec<Expected>)> {
    let threads = available_cores().min(MAX_THREADS);
    let mut machine = Machine::new(threads)?;
    let bytes: Vec<u64> = plans
        .iter()
        .map(|plan| Cost::of(spec, plan.tensors.iter().map(|t| (&*t.name, t.stored, &*t.shape, t.bytes))).matrix_bytes)
        .collect();
    let most = MOST.min(memory::available().map_or(MOST, |bytes| bytes / 4)).max(1);
    let largest = bytes.iter().copied().max().unwrap_or(0).min(most);
    let buffer = vec![1u8; largest as usize];
    let mut of_all = None;
    let mut speed = |bytes: u64| {
        let part = &buffer[..bytes.min(largest) as usize];
        if let (true, Some(speed)) = (part.len() == buffer.len(), of_all) {
            return speed;
        }
        // The fastest: what slows a moment on a shared machine says nothing of the model.
        let seconds = (0..REPETITIONS).map(|_| machine.read_seconds(part)).fold(f64::INFINITY, f64::min);
        let speed = part.len() as f64 / seconds;
        if part.len() == buffer.len() {
            of_all = Some(speed);
        }
        speed
    };
    let expected = |(plan, bytes): (&Plan, u64)| {
        let speed = speed(bytes);
        Expected {
            quant: plan.quant.name(),
            bytes_per_token: bytes,
            read_gb_per_s: speed / 1e9,
            tokens_per_s: speed / bytes as f64,
        }
    };
    Ok((threads, plans.iter().zip(bytes).map(expected).collect()))
}
