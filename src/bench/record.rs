//! One measurement with all that says where it comes from: a line of a log that can be understood alone.

use super::measure::{Run, Start};
use serde::Serialize;
use std::path::Path;
use tidbit_runtime::session::Session;

/// Fields of a [`Record`], in the order of the columns of a table.
pub(super) const FIELDS: [&str; 28] = [
    "phase",
    "quant",
    "threads",
    "n_tokens",
    "depth",
    "batch",
    "tokens_per_s",
    "p5",
    "p95",
    "read_gb_per_s",
    "int8_tops",
    "roof",
    "roof_fraction",
    "file",
    "file_bytes",
    "header_sha256",
    "isa",
    "kv",
    "access",
    "cpu",
    "cores",
    "load_ms",
    "first_token_ms",
    "peak_rss_bytes",
    "cache_bytes",
    "scratch_bytes",
    "repetitions",
    "version",
];

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Record {
    #[serde(flatten)]
    pub(super) run: Run,
    #[serde(flatten)]
    pub(super) subject: Subject,
    /// The most memory of the process since the model was opened for this number of threads, pages of the mapped file
    /// included.
    pub(super) peak_rss_bytes: Option<u64>,
}

/// What was measured, and where.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Subject {
    /// Name of the model file.
    pub(super) file: String,
    pub(super) file_bytes: usize,
    /// SHA-256 of the file's header, which holds the checksum of every tensor.
    pub(super) header_sha256: String,
    /// Name of the kernels.
    pub(super) isa: &'static str,
    /// How keys and values are kept.
    pub(super) kv: &'static str,
    /// Where weights are read from: `in-place` or `copy`.
    pub(super) access: &'static str,
    pub(super) cpu: String,
    pub(super) cores: usize,
    #[serde(flatten)]
    pub(super) start: Start,
    /// Of the session.
    pub(super) cache_bytes: usize,
    /// Of the session.
    pub(super) scratch_bytes: usize,
    /// Samples of each figure.
    pub(super) repetitions: usize,
    /// Of Tidbit.
    pub(super) version: &'static str,
}

impl Subject {
    pub(super) fn new(path: &Path, session: &Session, start: Start, repetitions: usize) -> Self {
        let file = session.model().file();
        Self {
            file: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            file_bytes: file.len(),
            header_sha256: file.header_sha256(),
            isa: session.isa(),
            kv: session.cache_type().name(),
            access: if file.is_mapped() { "in-place" } else { "copy" },
            cpu: cpu_name(),
            cores: tidbit_runtime::threads::available_cores(),
            start,
            cache_bytes: session.cache_bytes(),
            scratch_bytes: session.scratch_bytes(),
            repetitions,
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}

/// The processor's name where the system tells.
fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.into(), |(_, name)| name.trim().into())
}

/// A record for tests of what is made of records.
#[cfg(test)]
pub(super) fn example(phase: &'static str, quant: &str, threads: usize, depth: usize, tokens_per_s: f64) -> Record {
    let decode = phase == "decode";
    Record {
        run: Run {
            phase,
            quant: quant.into(),
            threads,
            n_tokens: if decode { 32 } else { 512 },
            depth,
            batch: 1,
            tokens_per_s,
            p5: tokens_per_s * 0.9,
            p95: tokens_per_s * 1.1,
            read_gb_per_s: decode.then_some(10.0),
            int8_tops: (!decode && quant != "f32").then_some(0.5),
            roof: (decode || quant != "f32").then_some(if decode { 20.0 } else { 1.0 }),
            roof_fraction: (decode || quant != "f32").then_some(0.5),
        },
        subject: Subject {
            file: format!("a<b>|\"c\", d-{quant}.tidbit"),
            file_bytes: 1000,
            header_sha256: "0".repeat(64),
            isa: "portable",
            kv: "f16",
            access: "in-place",
            cpu: "A CPU, of \"8\" cores | <fast>".into(),
            cores: 2,
            start: Start { load_ms: 0.25, first_token_ms: 4.0 },
            cache_bytes: 100,
            scratch_bytes: 10,
            repetitions: 9,
            version: "0.0.0",
        },
        peak_rss_bytes: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_fields_is_complete() {
        let record = serde_json::to_value(example("decode", "q4", 1, 0, 100.0)).unwrap();
        let mut found: Vec<_> = record.as_object().unwrap().keys().map(String::as_str).collect();
        let mut expected = FIELDS;
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected);
    }
}
