//! `tidbit run`: continue a text.

use crate::access;
use crate::cache;
use crate::chat::Conversation;
use crate::cli::{RunArgs, SamplingArgs};
use crate::failure::{Hint, Interrupted, Usage};
use crate::generate::{Finish, Generation, Generator, Limits, generate};
use crate::memory::{self, peak_rss};
use crate::output::{note, print, print_json};
use crate::prompt::{self, Source};
use crate::prompt_loop::prompt_loop;
use indicatif::DecimalBytes;
use serde_json::json;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};
use tidbit_runtime::sampler::{Sampler, SamplerOptions};
use tidbit_runtime::session::{Session, SessionOptions};
use tidbit_runtime::speculate::{DraftModel, Lookup, MAX_GUESSES, Steps};

/// Runs the command.
pub(crate) fn run(args: &RunArgs) -> anyhow::Result<()> {
    let options = sampler_options(&args.sampling);
    let mut sampler = Sampler::new(options)?;
    if args.n_tokens == 0 {
        return Err(Usage("`-n` is 0, expected 1 or more".into()).into());
    }
    if args.stop.iter().any(String::is_empty) {
        return Err(Usage("`--stop` is an empty text, which is found everywhere".into()).into());
    }
    let given = args.prompt.text.is_some() || args.prompt.file.is_some();
    let loops = args.prompt.interactive || args.chat && !given;
    if loops && args.json {
        return Err(Usage("`--json` is for one answer".into()).hint("give the message with -p TEXT"));
    }
    let source = if loops { None } else { Some(prompt::find(&args.prompt)?) };
    let path = cache::model_file(&args.model)?;

    let started = Instant::now();
    // A prompt loop goes on and on.
    let n_tokens = if loops { usize::MAX } else { args.n_tokens };
    let model = access::open(&path, args.access.access, n_tokens)?;
    prompt::check_writes(&model)?;
    if args.chat {
        prompt::check_continues(&model)?;
    }
    if args.mlock {
        memory::lock(model.file())?;
    }
    let tokenizer = prompt::tokenizer(&model)?;
    let mut chat = match (args.chat, tokenizer) {
        (false, _) => None,
        (true, Some(tokenizer)) => Some(Conversation::new(&model, tokenizer, args.system.as_deref())?),
        (true, None) => return Err(prompt::no_tokenizer(&path)),
    };
    let ends = match &chat {
        _ if args.ignore_eos => Vec::new(),
        Some(chat) => chat.ends()?,
        None => model.spec().eos_ids.clone(),
    };
    let cache_type = args.cache.cache_type;
    let options = SessionOptions { context: args.ctx, threads: args.threads, cache_type };
    let mut session = Session::new(&model, &options)?;
    let mut steps = steps(args, n_tokens, &session)?;
    let loaded = started.elapsed();
    let limits = Limits { n_tokens: args.n_tokens, stop: &args.stop, ends: &ends };
    let mut generator =
        Generator { session: &mut session, about: None, tokenizer, sampler: &mut sampler, steps: &mut steps };

    let Some(source) = source else {
        let Some(tokenizer) = tokenizer else { return Err(prompt::no_tokenizer(&path)) };
        return prompt_loop(&mut generator, (tokenizer, chat.as_mut()), &limits, |done| {
            if !args.quiet {
                note(format_args!("{}", speed(done)));
            }
        });
    };

    let context = generator.longest_prompt();
    let prompt = match (&source, &mut chat) {
        (Source::Text(text), Some(chat)) => {
            let ids = chat.ask(text)?;
            prompt::check_length(&ids, &model, context)?;
            ids
        }
        _ => prompt::tokens(&source, &model, tokenizer, context)?,
    };
    let mut history = generator.begin(prompt.clone());
    let streams = !args.json;
    // Only a text that is gone on with is part of the result.
    if streams && !args.no_echo && chat.is_none() && model.encoder().is_none() {
        match &source {
            Source::Text(text) => print(text)?,
            Source::Ids(ids) => print(&tokenizer.map_or_else(|| join(ids), |t| t.decode(ids)))?,
        }
    }
    let done = generate(&mut generator, &mut history, &limits, streams)?;
    let timing = Timing { loaded, first_token: done.first_token.map(|at| at - started) };
    if args.json {
        print_json(&report_json(&source, &prompt, &generator, &done, &timing))?;
    } else if !done.text.ends_with('\n') {
        print("\n")?;
    }
    if !args.quiet {
        if done.finish == Finish::Context {
            note(format_args!("note: the context of {} tokens is full", generator.session.context()));
        }
        if !args.json {
            tell_statistics(&generator, &done, &timing);
        }
    }
    if done.finish == Finish::Interrupted { Err(Interrupted.into()) } else { Ok(()) }
}

fn sampler_options(args: &SamplingArgs) -> SamplerOptions {
    SamplerOptions {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        repeat_penalty: args.repeat_penalty,
        repeat_last_n: args.repeat_last_n,
        // The standard library's hash keys are the only random numbers that need no crate. 32 bits are
        // enough, and short enough to type again.
        seed: args.seed.unwrap_or_else(|| RandomState::new().hash_one(0u8) >> 32),
    }
}

/// One token a step, or guesses with it.
fn steps(args: &RunArgs, n_tokens: usize, session: &Session) -> anyhow::Result<Steps> {
    if let Some(most) = args.speculate {
        return Ok(Steps::speculating(Box::new(Lookup::new()), most));
    }
    let Some(path) = &args.draft else { return Ok(Steps::new()) };
    let draft = access::open(&cache::model_file(path)?, args.access.access, n_tokens)?;
    let options = SessionOptions { threads: args.threads, ..SessionOptions::default() };
    let drafter = DraftModel::new(&draft, &options, session.model())?;
    Ok(Steps::speculating(Box::new(drafter), MAX_GUESSES))
}

/// Times since the model began to be opened.
struct Timing {
    /// Until the session was ready.
    loaded: Duration,
    /// Until the first token was chosen.
    first_token: Option<Duration>,
}

fn join(ids: &[u32]) -> String {
    ids.iter().fold(String::new(), |text, id| text + &id.to_string() + " ")
}

fn per_second((tokens, time): (usize, Duration)) -> Option<f64> {
    (tokens > 0 && !time.is_zero()).then(|| tokens as f64 / time.as_secs_f64())
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// One line: how many tokens, and how fast.
fn speed(done: &Generation) -> String {
    let rate = |run| per_second(run).map_or_else(String::new, |rate| format!(" at {rate:.1} tokens/s"));
    format!(
        "prompt {} tokens{}, generated {} tokens{}",
        done.prefill.0,
        rate(done.prefill),
        done.ids.len(),
        rate(done.decode),
    )
}

fn tell_statistics(generator: &Generator<'_>, done: &Generation, timing: &Timing) {
    let Generator { session, sampler, steps, .. } = generator;
    note(format_args!("{}", speed(done)));
    if let Some(s) = steps.statistics() {
        note(format_args!(
            "{} of {} guesses right, {:.2} tokens a step",
            s.accepted,
            s.guessed,
            s.tokens_per_step().unwrap_or(1.0),
        ));
    }
    let first =
        timing.first_token.map_or_else(String::new, |t| format!(", first token after {:.1} ms", milliseconds(t)));
    let peak = peak_rss().map_or_else(String::new, |peak| format!(", peak memory {}", DecimalBytes(peak)));
    note(format_args!("load {:.1} ms{first}{peak}", milliseconds(timing.loaded)));
    let seed =
        if sampler.options().temperature > 0.0 { format!(", seed {}", sampler.options().seed) } else { String::new() };
    note(format_args!(
        "{} threads, {} kernels, context {} ({} {} cache, {} scratch){seed}",
        session.threads(),
        session.isa(),
        session.context(),
        DecimalBytes(session.cache_bytes() as u64),
        session.cache_type().name(),
        DecimalBytes(session.scratch_bytes() as u64),
    ));
}

fn report_json(
    source: &Source,
    prompt_ids: &[u32],
    generator: &Generator<'_>,
    done: &Generation,
    timing: &Timing,
) -> serde_json::Value {
    let Generator { session, sampler, steps, .. } = generator;
    let prompt = match source {
        Source::Text(text) => Some(text),
        Source::Ids(_) => None,
    };
    json!({
        "model": session.model().file().path(),
        "prompt": prompt,
        "prompt_ids": prompt_ids,
        "text": done.text,
        "ids": done.ids,
        "finish_reason": done.finish.name(),
        "seed": sampler.options().seed,
        "threads": session.threads(),
        "isa": session.isa(),
        "kv": session.cache_type().name(),
        "context": session.context(),
        "timings": {
            "load_ms": milliseconds(timing.loaded),
            "first_token_ms": timing.first_token.map(milliseconds),
            "prefill_ms": milliseconds(done.prefill.1),
            "prefill_tokens": done.prefill.0,
            "prefill_tokens_per_s": per_second(done.prefill),
            "decode_ms": milliseconds(done.decode.1),
            "decode_tokens": done.decode.0,
            "decode_tokens_per_s": per_second(done.decode),
        },
        "speculation": steps.statistics().map(|s| json!({
            "steps": s.steps,
            "guessed": s.guessed,
            "accepted": s.accepted,
            "tokens_per_step": s.tokens_per_step(),
        })),
        "memory": {
            "peak_rss_bytes": peak_rss(),
            "kv_cache_bytes": session.cache_bytes(),
            "scratch_bytes": session.scratch_bytes(),
        },
    })
}
