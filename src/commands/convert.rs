//! `tidbit convert`: a checkpoint to one model file.

use crate::cli::ConvertArgs;
use crate::interrupt::Catch;
use crate::memory::peak_rss;
use crate::output::{note, print, print_json};
use crate::progress::Conversion;
use crate::sizes::Sizes;
use crate::text_file::read_file;
use indicatif::{DecimalBytes, HumanCount};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use tidbit_convert::{Calibration, Checkpoint, ConvertError, Options, Plan, Target};
use tidbit_runtime::quant::QuantType;

/// Runs the command.
pub(crate) fn run(args: &ConvertArgs) -> anyhow::Result<()> {
    let started = Instant::now();
    let checkpoint = match &args.spec {
        Some(spec) => Checkpoint::open_described(&args.source, spec)?,
        None => Checkpoint::open(&args.source)?,
    };
    tell_about(&checkpoint);
    let few = matches!(args.quant, QuantType::Q3 | QuantType::Q2);
    if few && calibration(args)?.is_none() && checkpoint.has_tokenizer() {
        note(format_args!("note: {} without data costs much quality: --calibrate saves most of it", args.quant));
    }
    let output = args.output.as_deref().filter(|_| !args.dry_run);
    let plan = match output {
        None => checkpoint.plan(args.quant)?,
        Some(output) => {
            // The files of the checkpoint are refused by what converts it.
            let text = args.calibrate.as_ref().and_then(Option::as_deref);
            tidbit_convert::check_output(output, text.into_iter())?;
            let cancel = Arc::new(AtomicBool::new(false));
            let _caught = Catch::new(Arc::clone(&cancel))?;
            let options = Options { quant: args.quant, cancel: Some(cancel) };
            let mut progress = Conversion::default();
            match calibration(args)? {
                None => tidbit_convert::convert(&checkpoint, output, &options, &mut progress)?.plan,
                Some(calibration) => {
                    let how = (&options, &calibration);
                    let done = tidbit_convert::convert_calibrated(&checkpoint, output, how, &mut progress);
                    let kept = tidbit_convert::journal_folder(output);
                    if matches!(done, Err(ConvertError::Cancelled | ConvertError::Io { .. })) && kept.exists() {
                        note(format_args!(
                            "what is done is kept in {}: the same command goes on from there",
                            kept.display()
                        ));
                    }
                    done?.plan
                }
            }
        }
    };
    let elapsed = started.elapsed();
    if args.json {
        print_json(&report_json(args, &checkpoint, &plan, elapsed))
    } else {
        print(&report(output, &plan, elapsed))
    }
}

/// What to calibrate with, if anything.
fn calibration(args: &ConvertArgs) -> anyhow::Result<Option<Calibration>> {
    let target = args.target_size.map(Target::FileBytes).or_else(|| args.target_bpw.map(Target::BitsPerWeight));
    let windows = args.calibration_windows;
    let of = |(name, text)| Calibration { name, text, windows, target };
    Ok(match &args.calibrate {
        Some(Some(name)) => Some(of((name.clone(), read_file(name)?))),
        None if target.is_none() => None,
        _ => Some(of(("built-in text".into(), tidbit_convert::CALIBRATION_TEXT.into()))),
    })
}

/// What a user should know before: fields that make no difference, and doubts.
fn tell_about(checkpoint: &Checkpoint) {
    if !checkpoint.ignored_fields().is_empty() {
        note(format_args!("note: these config fields change nothing: {}", checkpoint.ignored_fields().join(", ")));
    }
    for warning in checkpoint.warnings() {
        note(format_args!("warning: {warning}"));
    }
}

fn sizes(plan: &Plan) -> Sizes {
    Sizes::of(plan.tensors.iter().map(|t| (t.stored, t.shape.as_slice(), t.bytes)))
}

/// What has been written, for people; without an output, what would have been.
pub(super) fn report(output: Option<&Path>, plan: &Plan, elapsed: Duration) -> String {
    let what = match output {
        Some(output) => format!("{}: {}", output.display(), DecimalBytes(plan.file_bytes)),
        None => format!("dry run, nothing written: the file would have {}", DecimalBytes(plan.file_bytes)),
    };
    let memory = peak_rss().map_or_else(String::new, |peak| format!(", peak memory {}", DecimalBytes(peak)));
    format!(
        "{what}\n{} parameters, {:.3} bits per weight\n{}{:.2} s{memory}\n",
        HumanCount(plan.parameters),
        plan.bits_per_weight,
        sizes(plan).table(),
        elapsed.as_secs_f64(),
    )
}

/// The same for scripts.
pub(super) fn written_json(plan: &Plan, elapsed: Duration) -> Value {
    json!({
        "quant": plan.quant_name(),
        "parameters": plan.parameters,
        "file_bytes": plan.file_bytes,
        "bits_per_weight": plan.bits_per_weight,
        "types": sizes(plan).json(),
        "seconds": elapsed.as_secs_f64(),
        "peak_rss_bytes": peak_rss(),
    })
}

fn report_json(args: &ConvertArgs, checkpoint: &Checkpoint, plan: &Plan, elapsed: Duration) -> Value {
    let mut value = written_json(plan, elapsed);
    value["source"] = json!(args.source);
    value["spec"] = json!(args.spec);
    value["output"] = json!(args.output.as_ref().filter(|_| !args.dry_run));
    value["dry_run"] = json!(args.dry_run);
    value["ignored_fields"] = json!(checkpoint.ignored_fields());
    value["warnings"] = json!(checkpoint.warnings());
    value
}
