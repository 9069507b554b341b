//! What `tidbit bench` prints.

use super::measure::Run;
use anyhow::Result;
use serde::Serialize;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use tidbit_runtime::session::Model;

/// Facts about one measured file.
#[derive(Debug, Serialize)]
pub(super) struct Measured {
    file: String,
    file_bytes: usize,
    /// SHA-256 of the file's header, which holds the checksum of every tensor.
    header_sha256: String,
    quant: String,
    load_ms: f64,
    isa: &'static str,
    cpu: String,
    cores: usize,
}

impl Measured {
    pub(super) fn new(path: &Path, model: &Model, load_ms: f64, isa: &'static str) -> Self {
        Self {
            file: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            file_bytes: model.file().len(),
            header_sha256: model.file().header_sha256(),
            quant: model.file().provenance().quant.clone(),
            load_ms,
            isa,
            cpu: cpu_name(),
            cores: tidbit_runtime::threads::available_cores(),
        }
    }
}

/// The processor's name where the system tells.
fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.into(), |(_, name)| name.trim().into())
}

/// One measurement in one line.
pub(super) fn line(run: &Run) -> String {
    let what = match run.phase {
        "prefill" => format!("prefill {}", run.n_tokens),
        phase => format!("{phase} at depth {}", run.depth),
    };
    let threads = if run.threads == 1 { "1 thread ".into() } else { format!("{} threads", run.threads) };
    let mut text = format!(
        "{:4} {what:18} {threads:9} {:8.1} tokens/s ({:.1} to {:.1})",
        run.quant, run.tokens_per_s, run.p5, run.p95
    );
    let achieved = run.read_gb_per_s.map(|v| (v, "GB/s")).or(run.int8_tops.map(|v| (v, "int8 Tops")));
    if let (Some((value, unit)), Some(roof), Some(fraction)) = (achieved, run.roof, run.roof_fraction) {
        // Writing to a `String` cannot fail.
        let _ = write!(text, "  {value:6.2} of {roof:.2} {unit} = {:.0} %", fraction * 100.0);
    }
    text
}

/// Everything, to stdout.
pub(super) fn print(models: &[Measured], runs: &[Run], json: bool) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        let all = serde_json::json!({ "models": models, "runs": runs });
        writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?;
        return Ok(());
    }
    for model in models {
        writeln!(
            out,
            "{} ({:.1} MB, opened in {:.2} ms), {} on {}, {} cores",
            model.file,
            model.file_bytes as f64 / 1e6,
            model.load_ms,
            model.isa,
            model.cpu,
            model.cores
        )?;
    }
    for run in runs {
        writeln!(out, "{}", line(run))?;
    }
    Ok(())
}
