//! `tidbit bench`: how fast a model runs here, beside what this machine can do at best.
//!
//! Ceilings and speeds are measured in turn, repetition by repetition, because the speed of a shared machine drifts; what
//! is reported are medians and the 5th and 95th percentile. [`shapes`] are architectures without a download, [`measure`]
//! is the stopwatch, [`report`] the table.

mod measure;
mod report;
mod shapes;

use anyhow::{Context, Result, bail};
use clap::Args;
use measure::{Machine, Run};
use std::path::{Path, PathBuf};
use std::time::Instant;
use tidbit_runtime::quant::QuantType;
use tidbit_runtime::session::{Model, Session, SessionOptions};
use tidbit_runtime::threads::available_cores;

/// Measure speed, beside what this machine can do at best.
///
/// Weights are random unless a model file is given: speed does not depend on them. Ceilings (reading the same bytes, 8-bit
/// multiply-adds) are measured before each repetition with as many threads.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  tidbit bench --shape gpt2 --quant q4,q8
  tidbit bench model.tidbit --threads 2 --depth 0,900 --json")]
pub(crate) struct BenchArgs {
    /// A model file; without one, random weights in the shape that --shape names
    #[arg(required_unless_present = "shape", conflicts_with = "shape")]
    model: Option<PathBuf>,
    /// An architecture: gpt2, gpt2-medium, gpt2-large, gpt2-xl, pythia-70m to pythia-2.8b, or a config.json
    #[arg(long, value_name = "NAME|config.json")]
    shape: Option<String>,
    /// Quant types of the random weights, separated by commas
    #[arg(long, default_value = "q4", value_delimiter = ',')]
    quant: Vec<String>,
    /// Numbers of threads, separated by commas [default: 1 and all cores]
    #[arg(long, value_delimiter = ',')]
    threads: Vec<usize>,
    /// Tokens to run at once, separated by commas (0: none)
    #[arg(long, default_value = "512", value_delimiter = ',')]
    prefill: Vec<usize>,
    /// Tokens to run one by one, in each repetition (0: none)
    #[arg(long, default_value_t = 32)]
    decode: usize,
    /// Tokens in the cache before those, separated by commas
    #[arg(long, default_value = "0", value_delimiter = ',')]
    depth: Vec<usize>,
    /// Repetitions of each measurement, after one to warm up
    #[arg(long, default_value_t = 9)]
    repetitions: usize,
    /// Keep the model of random weights in this file
    #[arg(long, value_name = "FILE", requires = "shape")]
    save: Option<PathBuf>,
    /// A tokenizer.json to put into the saved model
    #[arg(long, value_name = "FILE", requires = "save")]
    tokenizer: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    let threads = if args.threads.is_empty() { default_threads() } else { args.threads.clone() };
    if args.repetitions == 0 {
        bail!("--repetitions is 0, expected at least 1");
    }
    let mut runs = Vec::new();
    let mut models = Vec::new();
    if let Some(path) = &args.model {
        models.push(measure_model(path, args, &threads, &mut runs)?);
    } else if let Some(shape) = &args.shape {
        if args.save.is_some() && args.quant.len() != 1 {
            bail!("--save takes one quant type, found {}", args.quant.join(","));
        }
        let spec = shapes::spec(shape)?;
        let tokenizer = match &args.tokenizer {
            Some(path) => Some(std::fs::read(path).with_context(|| path.display().to_string())?),
            None => None,
        };
        for name in &args.quant {
            let Some(quant) = QuantType::from_name(name) else {
                bail!("--quant is {name:?}, expected one of {}", QuantType::ALL.map(QuantType::name).join(", "));
            };
            let folder = tempfile::tempdir()?;
            let path = args
                .save
                .clone()
                .unwrap_or_else(|| folder.path().join(format!("{shape}-{quant}.tidbit").replace('/', "_")));
            eprintln!("writing random weights of {shape} in {quant}");
            tidbit_convert::write_random(&spec, quant, tokenizer.as_deref(), &path, 1)?;
            models.push(measure_model(&path, args, &threads, &mut runs)?);
        }
    }
    report::print(&models, &runs, args.json)
}

fn default_threads() -> Vec<usize> {
    match available_cores() {
        1 => vec![1],
        n => vec![1, n],
    }
}

fn measure_model(path: &Path, args: &BenchArgs, threads: &[usize], runs: &mut Vec<Run>) -> Result<report::Measured> {
    let start = Instant::now();
    let model = Model::open(path)?;
    let load_ms = start.elapsed().as_secs_f64() * 1e3;
    let longest = args.prefill.iter().chain(&args.depth).max().copied().unwrap_or(0) + args.decode;
    let context = longest.clamp(1, model.spec().context_length);
    if longest > context {
        bail!("{longest} tokens do not fit the context of {context} of {}", path.display());
    }
    let mut isa = "";
    for &n in threads {
        let options = SessionOptions { threads: Some(n), context: Some(context), ..SessionOptions::default() };
        let mut session = Session::new(&model, &options)?;
        isa = session.isa();
        let mut machine = Machine::new(n)?;
        for &tokens in args.prefill.iter().filter(|&&t| t > 0) {
            runs.push(measure::prefill(&mut session, &mut machine, tokens, args.repetitions)?);
            eprintln!("{}", report::line(runs.last().expect("just pushed")));
        }
        for &depth in args.depth.iter().filter(|_| args.decode > 0) {
            runs.push(measure::decode(&mut session, &mut machine, args.decode, depth, args.repetitions)?);
            eprintln!("{}", report::line(runs.last().expect("just pushed")));
        }
    }
    Ok(report::Measured::new(path, &model, load_ms, isa))
}
