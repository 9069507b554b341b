//! `tidbit perplexity`: how well a model predicts a text.

use crate::cli::PerplexityArgs;
use crate::interrupt::Catch;
use crate::output::{print_json, print_line};
use crate::progress::Progress;
use crate::text_file::read_file;
use crate::{cache, prompt};
use serde_json::json;
use std::time::Instant;
use tidbit_runtime::error::EvalError;
use tidbit_runtime::eval;
use tidbit_runtime::session::{Model, Session, SessionOptions};

/// The window when none is asked for, in tokens; less when the model's context is.
const WINDOW: usize = 512;

/// Runs the command.
pub(crate) fn run(args: &PerplexityArgs) -> anyhow::Result<()> {
    let text = read_file(&args.file)?;
    let path = cache::model_file(&args.model)?;
    let model = Model::open(&path)?;
    prompt::check_writes(&model)?;
    let most = model.spec().context_length;
    let window = args.window.unwrap_or_else(|| WINDOW.min(most));
    if window < 2 || window > most {
        return Err(EvalError::Window { window, most }.into());
    }
    let Some(tokenizer) = prompt::tokenizer(&model)? else { return Err(prompt::no_tokenizer(&path)) };
    let ids = tokenizer.encode(&text)?;
    let mut session = Session::new(
        &model,
        &SessionOptions { context: Some(window), threads: args.threads, cache_type: args.cache.cache_type },
    )?;
    let _caught = Catch::new(session.cancel_flag())?;

    let started = Instant::now();
    let mut progress = Progress::new("evaluating", "{pos}/{len} tokens, {per_sec}, {eta}", ids.len() as u64);
    let mut seen = 0;
    let result = eval::perplexity(&mut session, &ids, window, |done| {
        progress.advance((done - seen) as u64, "");
        seen = done;
    });
    progress.finish();
    let result = result.map_err(|e| match e {
        EvalError::TooShort { .. } => anyhow::anyhow!("{}: {e}", args.file.display()),
        _ => e.into(),
    })?;
    let seconds = started.elapsed().as_secs_f64();
    let rate = if seconds > 0.0 { result.tokens as f64 / seconds } else { 0.0 };
    if args.json {
        return print_json(&json!({
            "model": path,
            "file": args.file,
            "perplexity": result.perplexity,
            "total_nll": result.total_nll,
            "scored_tokens": result.scored_tokens,
            "tokens": result.tokens,
            "window": result.window,
            "threads": session.threads(),
            "isa": session.isa(),
            "kv": session.cache_type().name(),
            "seconds": seconds,
            "tokens_per_s": rate,
        }));
    }
    print_line(format_args!(
        "perplexity {:.6}\ntotal nll  {:.6} over {} scored of {} tokens, window {}\n{seconds:.2} s, {rate:.1} tokens/s",
        result.perplexity, result.total_nll, result.scored_tokens, result.tokens, result.window,
    ))
}
