//! `tidbit eval`: how well a model predicts a text, and how far it is from a reference.

use crate::cli::EvalArgs;
use crate::failure::Hint;
use crate::interrupt::Catch;
use crate::output::{note, print, print_json};
use crate::progress::Progress;
use crate::sizes::Sizes;
use crate::text_file::read_file;
use crate::{cache, prompt};
use anyhow::anyhow;
use indicatif::DecimalBytes;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::time::Instant;
use tidbit_runtime::error::EvalError;
use tidbit_runtime::eval::{Comparison, Estimate, Evaluation, Unit, Windows, check_vocabularies, evaluate};
use tidbit_runtime::format::header::sha256_hex;
use tidbit_runtime::quant::QuantType;
use tidbit_runtime::session::{CacheType, Model, Session, SessionOptions};

/// The window when none is asked for, in tokens; less when the context of a model is.
const WINDOW: usize = 512;

/// Runs the command.
pub(crate) fn run(args: &EvalArgs) -> anyhow::Result<()> {
    let text = read_file(&args.file)?;
    let model = Model::open(&cache::model_file(&args.model)?)?;
    let reference = match &args.reference {
        // What it is compared with should not be rounded itself.
        Some(path) => Some(Model::open(&cache::model_file_as(path, QuantType::F32)?)?),
        None => None,
    };
    for model in [Some(&model), reference.as_ref()].into_iter().flatten() {
        prompt::check_writes(model)?;
        prompt::check_continues(model)?;
    }
    let calibration = model.file().provenance().calibration.as_deref().unwrap_or_default();
    if calibration.contains(&sha256_hex(text.as_bytes())) {
        let file = args.file.display();
        note(format_args!(
            "warning: {file}: the model was calibrated with this text, and is better on it than elsewhere"
        ));
    }
    let windows = windows(args, &model, reference.as_ref())?;
    let ids = tokens(&model, &text)?;
    if let Some(reference) = &reference {
        check_same_tokens(reference, &text, &model, &ids)?;
    }
    let session = |model: &Model, cache_type: Option<CacheType>| {
        Session::new(model, &SessionOptions { context: Some(windows.length), threads: args.threads, cache_type })
    };
    let mut reference = reference.map(|reference| session(&reference, args.reference_kv)).transpose()?;
    let mut session = session(&model, args.cache.cache_type)?;
    let _caught = Catch::new(session.cancel_flag())?;

    let started = Instant::now();
    let n_run = windows.tokens(&ids);
    let mut progress = Progress::new("evaluating", "{pos}/{len} tokens, {per_sec}, {eta}", n_run as u64);
    let mut seen = 0;
    let result = evaluate(&mut session, reference.as_mut(), &ids, &windows, |done| {
        progress.advance((done - seen) as u64, "");
        seen = done;
    });
    progress.finish();
    let result = result.map_err(|e| match e {
        EvalError::TooShort { .. } => anyhow!("{}: {e}", args.file.display()),
        _ => e.into(),
    })?;
    let seconds = started.elapsed().as_secs_f64();
    let tokens_per_s = if seconds > 0.0 { n_run as f64 / seconds } else { 0.0 };
    let report = Report { args, windows, session, reference, result, tokens_per_s, seconds };
    if args.json { print_json(&report.json()) } else { print(&report.text()) }
}

/// How the text is cut; it must suit both models.
fn windows(args: &EvalArgs, model: &Model, reference: Option<&Model>) -> anyhow::Result<Windows> {
    let both = || [model].into_iter().chain(reference);
    let shortest = both().map(|model| model.spec().context_length).min().unwrap_or(WINDOW);
    let window = args.window.unwrap_or_else(|| WINDOW.min(shortest));
    for model in both() {
        let most = model.spec().context_length;
        if window < 2 || window > most {
            return Err(EvalError::Window { model: model.file().path().to_owned(), window, most }.into());
        }
    }
    if args.skip > window - 2 {
        return Err(EvalError::Skip { skip: args.skip, window }.into());
    }
    Ok(Windows { length: window, skip: args.skip, most: args.windows })
}

fn tokens(model: &Model, text: &str) -> anyhow::Result<Vec<u32>> {
    let Some(tokenizer) = prompt::tokenizer(model)? else { return Err(prompt::no_tokenizer(model.file().path())) };
    Ok(tokenizer.encode(text)?)
}

/// An id must mean the same to both models. What counts is this text: tokenizers may differ in what it does not use.
fn check_same_tokens(reference: &Model, text: &str, model: &Model, ids: &[u32]) -> anyhow::Result<()> {
    let hint = "compare models that were converted from one checkpoint, or trained with one tokenizer";
    check_vocabularies(model, reference).map_err(|e| e.hint(hint))?;
    // Without a tokenizer nothing is known of its tokens, and a model of the same size is taken at its word.
    if prompt::tokenizer(reference)?.is_none() {
        return Ok(());
    }
    let other = tokens(reference, text)?;
    if other == ids {
        return Ok(());
    }
    let at = other.iter().zip(ids).take_while(|(a, b)| a == b).count();
    let name = |ids: &[u32]| ids.get(at).map_or_else(|| "none".into(), |id| format!("id {id}"));
    let error = anyhow!(
        "{}: token {at} of the text is {} to its tokenizer, {} to that of {}: they cannot be compared",
        reference.file().path().display(),
        name(&other),
        name(ids),
        model.file().path().display(),
    );
    Err(error.hint(hint))
}

/// What was measured, and on what.
struct Report<'a> {
    args: &'a EvalArgs,
    windows: Windows,
    session: Session,
    reference: Option<Session>,
    result: Evaluation,
    tokens_per_s: f64,
    seconds: f64,
}

impl Report<'_> {
    fn json(&self) -> Value {
        let Self { args, result, session, .. } = self;
        let file = session.model().file();
        let mut value = json!({
            "model": file.path(),
            "file": args.file,
            "file_bytes": file.len(),
            "bits_per_weight": Sizes::of_file(file).bits_per_weight(),
            "total_nll": result.total_nll,
            "scored_tokens": result.scored_tokens,
            "tokens": result.tokens,
            "window": self.windows.length,
            "skip": self.windows.skip,
            "windows": result.windows,
            "errors_from": result.unit.name(),
            "threads": session.threads(),
            "isa": session.isa(),
            "kv": session.cache_type().name(),
            "seconds": self.seconds,
            "tokens_per_s": self.tokens_per_s,
        });
        let mut put = |name: &str, estimate: &Estimate| {
            value[name] = json!(estimate.value);
            value[format!("{name}_error")] = json!(estimate.error);
            value[format!("{name}_low")] = json!(estimate.low);
            value[format!("{name}_high")] = json!(estimate.high);
        };
        put("perplexity", &result.perplexity);
        if let (Some(reference), Some(c)) = (&self.reference, &result.comparison) {
            put("reference_perplexity", &c.perplexity);
            put("perplexity_ratio", &c.ratio);
            put("kl_mean", &c.kl);
            put("top1_agreement", &c.agreement);
            for (name, number) in
                [("kl_median", c.kl_median), ("kl_p90", c.kl_p90), ("kl_p99", c.kl_p99), ("kl_max", c.kl_max)]
            {
                value[name] = json!(number);
            }
            value["reference"] = json!(reference.model().file().path());
            value["reference_kv"] = json!(reference.cache_type().name());
        }
        value
    }

    fn text(&self) -> String {
        let Self { result, windows, .. } = self;
        let file = self.session.model().file();
        let skip = if windows.skip > 0 { format!(", {} skipped", windows.skip) } else { String::new() };
        let (perplexity, nll, scored) = (result.perplexity, result.total_nll, result.scored_tokens);
        let mut text = format!(
            "perplexity {:.6}\ntotal nll  {nll:.6} over {scored} scored of {} tokens, window {}{skip}\n\
             interval   {:.4} to {:.4} (95 %, from {} {})\n",
            perplexity.value,
            result.tokens,
            windows.length,
            perplexity.low,
            perplexity.high,
            if result.unit == Unit::Window { result.windows } else { scored },
            result.unit.name(),
        );
        // Writing to a `String` cannot fail.
        if let Some(Comparison { perplexity, ratio, kl, kl_median, kl_p90, kl_p99, kl_max, agreement }) =
            &result.comparison
        {
            let _ = writeln!(
                text,
                "reference  {:.6} ({:.4} to {:.4})\n\
                 ratio      {:.6} ({:.6} to {:.6})\n\
                 kl         {:.6} ({:.6} to {:.6}), median {kl_median:.6}, 90 % below {kl_p90:.6}, 99 % below {kl_p99:.6}, \
                 max {kl_max:.6}\n\
                 same top   {:.3} % ({:.3} to {:.3})",
                perplexity.value,
                perplexity.low,
                perplexity.high,
                ratio.value,
                ratio.low,
                ratio.high,
                kl.value,
                kl.low,
                kl.high,
                agreement.value * 100.0,
                agreement.low * 100.0,
                agreement.high * 100.0,
            );
        }
        let _ = writeln!(
            text,
            "weights    {}, {:.3} bits per weight\n{:.2} s, {:.1} tokens/s",
            DecimalBytes(file.len() as u64),
            Sizes::of_file(file).bits_per_weight(),
            self.seconds,
            self.tokens_per_s,
        );
        text
    }
}
