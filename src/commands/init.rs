//! `tidbit init`: a model of random weights from a description.

use super::convert::{report, written_json};
use crate::cli::InitArgs;
use crate::interrupt::Catch;
use crate::output::{note, print, print_json};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use tidbit_convert::Options;

/// Runs the command.
pub(crate) fn run(args: &InitArgs) -> anyhow::Result<()> {
    let started = Instant::now();
    let folder = args.spec.is_dir();
    let path = if folder { args.spec.join("config.json") } else { args.spec.clone() };
    let (spec, ignored) = tidbit_convert::read_spec(&path)?;
    if !ignored.is_empty() {
        note(format_args!("note: these config fields change nothing: {}", ignored.join(", ")));
    }
    let beside = folder.then(|| args.spec.join("tokenizer.json")).filter(|path| path.is_file());
    let named = args.tokenizer.as_ref().or(beside.as_ref());
    let tokenizer = named.map(|path| tidbit_convert::read_tokenizer(path, spec.vocab_size)).transpose()?;
    if tokenizer.is_none() {
        note(format_args!("warning: no tokenizer: the model will not take text (`run --ids` works)"));
    }
    let cancel = Arc::new(AtomicBool::new(false));
    let _caught = Catch::new(Arc::clone(&cancel))?;
    let options = Options { quant: args.quant, cancel: Some(cancel) };
    let inputs: Vec<&Path> = named.into_iter().chain([&path]).map(PathBuf::as_path).collect();
    let target = (args.output.as_path(), &inputs[..], args.seed);
    let plan = tidbit_convert::write_random(&spec, &options, tokenizer.as_deref(), target)?.plan;
    let elapsed = started.elapsed();
    if args.json {
        let mut value = written_json(&plan, elapsed);
        value["spec"] = json!(path);
        value["output"] = json!(args.output);
        value["seed"] = json!(args.seed);
        value["ignored_fields"] = json!(ignored);
        return print_json(&value);
    }
    print(&report(Some(&args.output), &plan, elapsed))
}
