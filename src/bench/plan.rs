//! What is to be measured. Everything that can be wrong with it is said here, before a weight is written or memory taken.

use super::BenchArgs;
use crate::access::Choice;
use crate::failure::{Hint, Usage};
use crate::memory;
use crate::output::note;
use anyhow::{Result, anyhow};
use indicatif::DecimalBytes;
use std::path::Path;
use tidbit_convert::{Plan as FilePlan, check_output, is_description};
use tidbit_runtime::error::SessionError;
use tidbit_runtime::kv_cache::{self, CacheType};
use tidbit_runtime::quant::QuantType;
use tidbit_runtime::session::Model;
use tidbit_runtime::spec::Spec;
use tidbit_runtime::threads::{MAX_THREADS, available_cores};

/// Prompt, unless told otherwise.
const PREFILL: usize = 512;

/// Tokens decoded in each repetition, unless told otherwise.
const DECODE: usize = 32;

/// Layers whose tensors are listed one by one.
const LISTED: usize = 1024;

/// A checked command line.
pub(super) struct Plan<'a> {
    args: &'a BenchArgs,
    pub(super) quants: Vec<QuantType>,
    pub(super) threads: Vec<usize>,
    pub(super) repetitions: usize,
    pub(super) mlock: bool,
    pub(super) access: Choice,
    /// The model's own when `None`.
    pub(super) cache_type: Option<CacheType>,
}

/// What is to be run on a model, all of which fits its context.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Lengths {
    pub(super) prefill: Vec<usize>,
    pub(super) decode: usize,
    /// Empty when nothing is decoded.
    pub(super) depth: Vec<usize>,
    /// Sequences decoded together; the same.
    pub(super) batch: Vec<usize>,
    /// Tokens that a session must hold.
    pub(super) context: usize,
}

impl<'a> Plan<'a> {
    /// Checks what needs no model.
    pub(super) fn new(args: &'a BenchArgs) -> Result<Self> {
        if args.repetitions == 0 {
            return usage("--repetitions is 0, expected at least 1");
        }
        if args.decode == Some(0) && !args.prefill.is_empty() && args.prefill.iter().all(|&n| n == 0) {
            return usage("--prefill and --decode are both 0, nothing is left to measure");
        }
        let threads = if args.threads.is_empty() { default_threads() } else { unique(&args.threads) };
        if let Some(&asked) = threads.iter().find(|&&n| n == 0 || n > MAX_THREADS) {
            return Err(SessionError::Threads { asked, most: MAX_THREADS }.into());
        }
        if args.batch.contains(&0) {
            return usage("--batch is 0, expected at least 1");
        }
        let cores = available_cores();
        if let Some(n) = threads.iter().find(|&&n| n > cores) {
            note(format_args!("warning: {n} threads share {cores} cores: expect them to wait for each other"));
        }
        let quants = quants(&args.quant)?;
        if let Some(save) = &args.save {
            if quants.len() != 1 {
                let found = args.quant.join(",");
                return usage(format!("--save takes one quant type, --quant is {found}"));
            }
            let described = args.shape.as_deref().map(Path::new).filter(|shape| is_description(shape));
            check_output(save, described.into_iter().chain(args.tokenizer.as_deref()))?;
        }
        Ok(Self {
            args,
            quants,
            threads,
            repetitions: args.repetitions,
            mlock: args.mlock,
            access: args.access.access,
            cache_type: args.cache.cache_type,
        })
    }

    /// What is to be run on a model called `name`.
    pub(super) fn lengths(&self, name: &str, context: usize) -> Result<Lengths> {
        let Some(lengths) = lengths(self.args, context) else {
            let asked = |values: &[usize]| values.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
            return usage(format!(
                "--prefill {}, --decode {} after --depth {}: more than the context of {context} tokens of {name}",
                if self.args.prefill.is_empty() { PREFILL.min(context).to_string() } else { asked(&self.args.prefill) },
                self.args.decode.unwrap_or(DECODE.min(context)),
                asked(&self.args.depth),
            ));
        };
        Ok(lengths)
    }
}

/// Refuses an encoder-decoder: what a prompt is, and what a token reads, differ from what is reported here.
pub(super) fn check_continues(name: &str, spec: &Spec) -> Result<()> {
    if spec.encoder.is_none() {
        return Ok(());
    }
    Err(anyhow!("{name}: a model with an encoder is not measured yet, expected one that goes on with a text"))
}

/// Checks that the cache for a model fits the memory, and a copy of its file. The file itself need not: it is mapped.
pub(super) fn check_cache(
    model: &Model,
    access: Choice,
    cache_type: Option<CacheType>,
    lengths: &Lengths,
) -> Result<()> {
    let copied = if access == Choice::Copy { model.file().len() as u64 } else { 0 };
    let cache_type = cache_type.unwrap_or_else(|| kv_cache::default_type(model.file()));
    let cache = cache_bytes(model.spec(), cache_type, lengths);
    fits(&model.file().path().display().to_string(), Some(copied), cache)
}

fn usage<T>(message: impl Into<String>) -> Result<T> {
    Err(Usage(message.into()).into())
}

fn default_threads() -> Vec<usize> {
    unique(&[1, available_cores().min(MAX_THREADS)])
}

/// The values in their order, each once.
fn unique<T: Copy + PartialEq>(values: &[T]) -> Vec<T> {
    let mut once = Vec::new();
    for &value in values {
        if !once.contains(&value) {
            once.push(value);
        }
    }
    once
}

fn quants(names: &[String]) -> Result<Vec<QuantType>> {
    let mut quants = Vec::new();
    for name in names {
        if name == "all" {
            quants.extend(QuantType::ALL);
        } else if let Some(quant) = QuantType::from_name(name) {
            quants.push(quant);
        } else {
            let known = QuantType::ALL.map(QuantType::name).join(", ");
            return usage(format!("--quant is {name:?}, expected all, or some of {known}"));
        }
    }
    Ok(unique(&quants))
}

/// `None` when something does not fit the context.
fn lengths(args: &BenchArgs, context: usize) -> Option<Lengths> {
    let mut prefill = if args.prefill.is_empty() { vec![PREFILL.min(context)] } else { unique(&args.prefill) };
    prefill.retain(|&n| n > 0);
    let decode = args.decode.unwrap_or(DECODE.min(context));
    let (depth, batch) =
        if decode == 0 { (Vec::new(), Vec::new()) } else { (unique(&args.depth), unique(&args.batch)) };
    let deepest = depth.iter().max().map_or(Some(0), |d| d.checked_add(decode))?;
    let longest =
        deepest.max(prefill.iter().max().copied().unwrap_or(0)).max(super::measure::FIRST_PROMPT.min(context));
    (longest <= context).then_some(Lengths { prefill, decode, depth, batch, context: longest })
}

/// Checks that a model of random weights and its cache fit the memory.
pub(super) fn check_memory(
    name: &str,
    spec: &Spec,
    (quant, cache_type): (QuantType, Option<CacheType>),
    lengths: &Lengths,
) -> Result<()> {
    let cache = cache_bytes(spec, cache_type.unwrap_or_else(|| kv_cache::usual_type([quant])), lengths);
    fits(&format!("{name} in {quant}"), weight_bytes(spec, quant), cache)
}

/// Bytes of all weights; of very many layers from two small models, because a list of millions would itself fill the memory.
fn weight_bytes(spec: &Spec, quant: QuantType) -> Option<u64> {
    let bytes = |n_layers| {
        let plan = FilePlan::of_spec(&Spec { n_layers, ..spec.clone() }, quant).ok()?;
        plan.tensors.iter().try_fold(0u64, |sum, t| sum.checked_add(t.bytes))
    };
    // Layers may differ.
    if spec.n_layers <= LISTED {
        return bytes(spec.n_layers);
    }
    let (one, two) = (bytes(1)?, bytes(2)?);
    (two - one).checked_mul(spec.n_layers as u64 - 1)?.checked_add(one)
}

/// Bytes of the caches of the largest batch.
fn cache_bytes(spec: &Spec, cache_type: CacheType, lengths: &Lengths) -> Option<u64> {
    let sequences = lengths.batch.iter().max().copied().unwrap_or(1);
    (kv_cache::bytes_of(spec, cache_type, lengths.context) as u64).checked_mul(sequences as u64)
}

/// Compares with what the system says it has left; `None` is more than can be counted.
fn fits(what: &str, weights: Option<u64>, cache: Option<u64>) -> Result<()> {
    let Some((weights, cache, sum)) = weights.zip(cache).and_then(|(w, c)| Some((w, c, w.checked_add(c)?))) else {
        return usage(format!("{what}: its size overflows 64 bits"));
    };
    match memory::available() {
        Some(available) if sum > available => Err(Usage(format!(
            "{what}: {} are needed (weights {}, cache {}), {} are available",
            DecimalBytes(sum),
            DecimalBytes(weights),
            DecimalBytes(cache),
            DecimalBytes(available)
        ))
        .hint("take a smaller shape, fewer bits with --quant, or less with --prefill, --depth and --batch")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::shapes;

    /// The lengths that these options give.
    fn lengths(options: &[&str], context: usize) -> Option<Lengths> {
        #[derive(clap::Parser)]
        struct Only {
            #[command(flatten)]
            args: BenchArgs,
        }
        let options = ["bench", "--shape", "x"].iter().chain(options);
        super::lengths(&<Only as clap::Parser>::try_parse_from(options).unwrap().args, context)
    }

    #[test]
    fn lengths_fit_the_context() {
        let all = lengths(&[], 1024).unwrap();
        let expected = Lengths { prefill: vec![512], decode: 32, depth: vec![0], batch: vec![1], context: 512 };
        assert_eq!(all, expected);
        let small = lengths(&[], 8).unwrap();
        assert_eq!(small, Lengths { prefill: vec![8], decode: 8, depth: vec![0], batch: vec![1], context: 8 });
        let full = lengths(&["--prefill", "1024", "--decode", "1", "--depth", "1023,0,1023"], 1024).unwrap();
        assert_eq!((full.depth, full.context), (vec![1023, 0], 1024));
        assert_eq!(lengths(&["--prefill", "1025", "--decode", "1"], 1024), None);
        assert_eq!(lengths(&["--decode", "2", "--depth", "1023"], 1024), None);
        assert_eq!(lengths(&["--decode", "18446744073709551615", "--depth", "1"], 1024), None);
        let only_prefill = ["--prefill", "0,3", "--decode", "0", "--depth", "18446744073709551615", "--batch", "9"];
        let only_prefill = lengths(&only_prefill, 1024).unwrap();
        assert_eq!((only_prefill.prefill, only_prefill.depth, only_prefill.batch), (vec![3], vec![], vec![]));
    }

    #[test]
    fn the_largest_batch_counts() {
        let spec = shapes::spec("gpt2").unwrap();
        let bytes = |options: &[&str]| cache_bytes(&spec, CacheType::F16, &lengths(options, 1024).unwrap());
        assert_eq!(bytes(&["--batch", "2,8,4"]), bytes(&[]).map(|one| 8 * one));
        assert_eq!(bytes(&["--batch", "18446744073709551615"]), None);
    }

    #[test]
    fn weights_are_counted_without_listing_the_layers() {
        let spec = shapes::spec("gpt2").unwrap();
        for quant in QuantType::ALL {
            let plan = FilePlan::of_spec(&spec, quant).unwrap();
            assert_eq!(weight_bytes(&spec, quant), Some(plan.tensors.iter().map(|t| t.bytes).sum()), "{quant}");
        }
        let endless = Spec { n_layers: 1 << 50, ..spec };
        assert_eq!(weight_bytes(&endless, QuantType::F32), None);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(fits("x", Some(1), Some(1)).is_ok());
        assert!(fits("x", None, Some(1)).unwrap_err().to_string().contains("overflows"));
        assert!(fits("x", Some(u64::MAX), Some(1)).unwrap_err().to_string().contains("overflows"));
        if memory::available().is_some() {
            assert!(fits("x", Some(1 << 60), Some(1)).unwrap_err().to_string().contains("weights"));
        }
    }

    #[test]
    fn all_is_every_quant_type_once() {
        let names = ["q4".to_string(), "all".to_string()];
        let found = quants(&names).unwrap();
        assert_eq!(found.len(), QuantType::ALL.len());
        assert_eq!(found[0], QuantType::Q4);
    }
}
