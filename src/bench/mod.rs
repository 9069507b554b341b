//! `tidbit bench`: how fast a model runs here, beside what this machine can do at best.
//!
//! Ceilings and speeds are measured in turn, repetition by repetition, because the speed of a shared machine drifts; what
//! is reported are medians and the 5th and 95th percentile.
//!
//! | module | what lives there |
//! |---|---|
//! | [`shapes`] | architectures without a download |
//! | [`plan`] | what is to be measured, checked before any work |
//! | [`measure`] | the stopwatch |
//! | [`cost`] | what a token needs |
//! | [`estimate`] | how fast a model would be that does not exist yet |
//! | [`record`] | one measurement with all that says where it comes from |
//! | [`report`] | the same as text, JSON, CSV, Markdown |
//! | [`page`], [`plot`] | the same as a web page with plots |

mod cost;
pub(crate) mod estimate;
mod measure;
mod page;
mod plan;
mod plot;
mod record;
mod report;
mod shapes;

use crate::access::{self, AccessArgs};
use crate::cli::CacheArgs;
use crate::interrupt::RemoveOnInterrupt;
use crate::memory;
use crate::output::{note, print, print_line};
use anyhow::{Result, anyhow};
use clap::Args;
use measure::Machine;
use plan::{Lengths, Plan};
use record::{Record, Subject};
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use tidbit_convert::{Options, is_description};
use tidbit_runtime::engine::{Engine, EngineOptions};
use tidbit_runtime::quant::QuantType;
use tidbit_runtime::sequence::{Sequence, SequenceOptions};
use tidbit_runtime::session::{Model, SessionOptions};
use tidbit_runtime::spec::Spec;

/// Measure speed, beside what this machine can do at best.
///
/// Weights are random unless a model file is given: speed does not depend on them. Ceilings (reading the same bytes, 8-bit
/// multiply-adds) are measured before each repetition with as many threads. Results go to stdout, progress to stderr.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  tidbit bench --shape gpt2 --quant q4,q8
  tidbit bench model.tidbit --threads 2 --depth 0,900 --json
  tidbit bench --shape gpt2 --prefill 0 --batch 1,2,4,8
  tidbit bench --shape gpt2 --quant all --depth 0,900 --html > bench.html")]
pub(crate) struct BenchArgs {
    /// A model file; without one, random weights in the shape that --shape names
    #[arg(required_unless_present = "shape", conflicts_with = "shape")]
    model: Option<PathBuf>,
    /// An architecture: gpt2, gpt2-medium, gpt2-large, gpt2-xl, pythia-70m to pythia-2.8b, a config.json or a YAML file
    #[arg(long, value_name = "NAME|FILE")]
    shape: Option<String>,
    /// Quant types of the random weights, separated by commas, or `all`
    #[arg(long, value_name = "TYPES", default_value = "q4", value_delimiter = ',', conflicts_with = "model")]
    quant: Vec<String>,
    /// Numbers of threads, separated by commas [default: 1 and all cores]
    #[arg(long, value_name = "N", value_delimiter = ',')]
    threads: Vec<usize>,
    /// Tokens to run at once, separated by commas, 0 for none [default: 512, or the context when that is less]
    #[arg(long, value_name = "N", value_delimiter = ',')]
    prefill: Vec<usize>,
    /// Tokens to run one by one, in each repetition, 0 for none [default: 32, or the context when that is less]
    #[arg(long, value_name = "N")]
    decode: Option<usize>,
    /// Tokens in the cache before those, separated by commas
    #[arg(long, value_name = "N", default_value = "0", value_delimiter = ',')]
    depth: Vec<usize>,
    /// Sequences decoded together, separated by commas
    #[arg(long, value_name = "N", default_value = "1", value_delimiter = ',')]
    batch: Vec<usize>,
    #[command(flatten)]
    cache: CacheArgs,
    /// Repetitions of each measurement, after one to warm up
    #[arg(long, value_name = "N", default_value_t = 9)]
    repetitions: usize,
    /// Read the whole model into memory first, and keep the system from taking it out again
    #[arg(long)]
    mlock: bool,
    #[command(flatten)]
    access: AccessArgs,
    /// Keep the model of random weights in this file
    #[arg(long, value_name = "FILE", requires = "shape")]
    save: Option<PathBuf>,
    /// A tokenizer.json to put into the saved model
    #[arg(long, value_name = "FILE", requires = "save")]
    tokenizer: Option<PathBuf>,
    #[command(flatten)]
    format: Format,
}

/// How results are printed; a table for people without any of these.
#[derive(Args, Clone, Copy, Debug)]
#[group(multiple = false)]
#[expect(clippy::struct_excessive_bools, reason = "flags of which one at most is set")]
pub(crate) struct Format {
    /// Print a JSON list with one object for each measurement
    #[arg(long)]
    json: bool,
    /// Print comma-separated values with the same fields
    #[arg(long)]
    csv: bool,
    /// Print a Markdown table
    #[arg(long)]
    md: bool,
    /// Print one self-contained web page with plots
    #[arg(long)]
    html: bool,
}

impl Format {
    /// Whether results are printed as they come.
    fn streams(self) -> bool {
        !(self.json || self.csv || self.md || self.html)
    }
}

/// Runs the command.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    let plan = Plan::new(args)?;
    let mut records = Vec::new();
    if let Some(path) = &args.model {
        let model = Model::open(path)?;
        plan::check_continues(&path.display().to_string(), model.spec())?;
        let lengths = plan.lengths(&path.display().to_string(), model.spec().context_length)?;
        plan::check_cache(&model, plan.access, args.cache.cache_type, &lengths)?;
        drop(model);
        measure_model(path, &plan, &lengths, args.format, &mut records)?;
    } else if let Some(shape) = &args.shape {
        let spec = shapes::spec(shape)?;
        plan::check_continues(shape, &spec)?;
        let lengths = plan.lengths(shape, spec.context_length)?;
        // All of them before the first is written.
        for &quant in &plan.quants {
            plan::check_memory(shape, &spec, (quant, args.cache.cache_type), &lengths)?;
        }
        let tokenizer = match &args.tokenizer {
            Some(path) => Some(std::fs::read(path).map_err(|e| anyhow!("{}: {e}", path.display()))?),
            None => None,
        };
        for &quant in &plan.quants {
            let file = RandomModel::write(shape, &spec, quant, tokenizer.as_deref(), args.save.as_deref())?;
            measure_model(&file.path, &plan, &lengths, args.format, &mut records)?;
        }
    }
    match args.format {
        Format { json: true, .. } => print_line(serde_json::to_string_pretty(&records)?),
        Format { csv: true, .. } => print(&report::csv(&records)?),
        Format { md: true, .. } => print(&report::markdown(&records)),
        Format { html: true, .. } => print(&page::html(&records)),
        _ => Ok(()),
    }
}

/// A model file of random weights, in a folder that is removed with it, unless the file is to be kept.
struct RandomModel {
    path: PathBuf,
    // In this order: first the folder goes, then nobody needs to remove it.
    _folder: TempDir,
    _guard: RemoveOnInterrupt,
}

impl RandomModel {
    fn write(
        shape: &str,
        spec: &Spec,
        quant: QuantType,
        tokenizer: Option<&[u8]>,
        save: Option<&Path>,
    ) -> Result<Self> {
        let parent = match save {
            // Beside its final place, so that it can be renamed.
            Some(save) => save.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned(),
            None => std::env::temp_dir(),
        };
        let folder = tempfile::Builder::new()
            .prefix("tidbit-bench")
            .tempdir_in(&parent)
            .map_err(|e| anyhow!("cannot make a folder for random weights: {e}"))?;
        let guard = RemoveOnInterrupt::new(folder.path())?;
        let shape_path = Path::new(shape);
        // A name has no extension, but `pythia-1.4b` has a dot.
        let stem = if is_description(shape_path) { shape_path.file_stem() } else { shape_path.file_name() };
        let name = format!("{}-{quant}.tidbit", stem.unwrap_or_default().to_string_lossy());
        let mut path = folder.path().join(name);
        note(format_args!("writing random weights of {shape} in {quant}"));
        let options = Options { quant, cancel: None };
        tidbit_convert::write_random(spec, &options, tokenizer, (&path, &[], 1))?;
        if let Some(save) = save {
            std::fs::rename(&path, save).map_err(|e| anyhow!("{}: {e}", save.display()))?;
            save.clone_into(&mut path);
        }
        Ok(Self { path, _folder: folder, _guard: guard })
    }
}

fn measure_model(path: &Path, plan: &Plan, lengths: &Lengths, format: Format, records: &mut Vec<Record>) -> Result<()> {
    let tell = |line: String| {
        if format.streams() {
            return print_line(line);
        }
        note(format_args!("{line}"));
        Ok(())
    };
    for &n in &plan.threads {
        memory::reset_peak_rss();
        let options = SessionOptions { threads: Some(n), context: Some(lengths.context), cache_type: plan.cache_type };
        let (mut session, start) =
            measure::start(|| access::open(path, plan.access, lengths.decode), &options, plan.repetitions)?;
        if plan.mlock {
            memory::lock(session.model().file())?;
        }
        let mut machine = Machine::new(n)?;
        let subject = Subject::new(path, &session, start, plan.repetitions);
        if n == plan.threads[0] {
            tell(report::heading(&subject))?;
        }
        tell(report::start_line(n, &subject))?;
        let mut done = |run, cache_bytes: Option<usize>| {
            let subject = Subject { cache_bytes: cache_bytes.unwrap_or(subject.cache_bytes), ..subject.clone() };
            let record = Record { run, subject, peak_rss_bytes: memory::peak_rss() };
            let told = tell(report::line(&record.run));
            records.push(record);
            told
        };
        for &tokens in &lengths.prefill {
            done(measure::prefill(&mut session, &mut machine, tokens, plan.repetitions)?, None)?;
        }
        let model = session.model().clone();
        let (mut engine, sequence) = session.into_parts();
        let of_sequence = SequenceOptions { context: Some(lengths.context), cache_type: plan.cache_type };
        let mut sequences = vec![sequence];
        for &batch in &lengths.batch {
            if batch > engine.max_batch() {
                engine = Engine::new(&model, &EngineOptions { threads: Some(n), max_batch: Some(batch) })?;
            }
            sequences.truncate(batch);
            while sequences.len() < batch {
                sequences.push(Sequence::new(&model, &of_sequence)?);
            }
            for &depth in &lengths.depth {
                let texts = (&mut engine, &mut sequences[..]);
                let run = measure::decode(texts, &mut machine, lengths.decode, depth, plan.repetitions)?;
                let cache_bytes = sequences.iter().map(Sequence::cache_bytes).sum();
                done(run, Some(cache_bytes))?;
            }
        }
    }
    if let (true, Some(peak)) = (format.streams(), memory::peak_rss()) {
        print_line(format_args!("peak memory {:.1} MB, pages of the mapped file included", peak as f64 / 1e6))?;
    }
    Ok(())
}
