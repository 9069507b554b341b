//! `tidbit embed`: one vector for each text.

use crate::cache;
use crate::cli::EmbedArgs;
use crate::failure::{Hint, Usage};
use crate::interrupt::Catch;
use crate::output::{print_json, print_line};
use crate::prompt;
use crate::text_file::{read_file, read_stdin};
use anyhow::anyhow;
use serde_json::json;
use std::fmt::Write as _;
use std::io::IsTerminal;
use tidbit_runtime::embed::Embedder;
use tidbit_runtime::engine::EngineOptions;
use tidbit_runtime::session::Model;
use tidbit_runtime::spec::{Pooling, Spec};
use tidbit_runtime::tokenizer::Tokenizer;

/// Texts that are embedded before the first of them is printed.
const GROUP: usize = 64;

/// Runs the command.
pub(crate) fn run(args: &EmbedArgs) -> anyhow::Result<()> {
    let texts = texts(args)?;
    let path = cache::model_file(&args.model)?;
    let model = Model::open(&path)?;
    let Some(tokenizer) = prompt::tokenizer(&model)? else { return Err(prompt::no_tokenizer(&path)) };
    let options = EngineOptions { threads: args.threads, max_batch: None };
    let embedder = Embedder::new(&model, &options)?;
    let mut embedder = match pooling(args, model.spec()) {
        Some(pooling) => embedder.with_pooling(pooling),
        None => embedder,
    };
    let _caught = Catch::new(embedder.cancel_flag())?;

    let ids = texts.iter().enumerate().map(|(i, text)| tokens(tokenizer, &embedder, i, text, args.truncate));
    let ids = ids.collect::<anyhow::Result<Vec<_>>>()?;
    let mut listed = Vec::new();
    for (texts, ids) in texts.chunks(GROUP).zip(ids.chunks(GROUP)) {
        for ((text, ids), embedding) in texts.iter().zip(ids).zip(embedder.embed(ids)?) {
            if args.json {
                listed.push(json!({ "text": text, "tokens": ids.len(), "embedding": embedding }));
            } else {
                print_line(line(&embedding))?;
            }
        }
    }
    if !args.json {
        return Ok(());
    }
    let Pooling { kind, normalize, .. } = embedder.pooling();
    print_json(&json!({
        "model": path,
        "dimensions": embedder.dimensions(),
        "pooling": kind.name(),
        "normalized": normalize,
        "embeddings": listed,
    }))
}

/// The texts: arguments, the lines of a file, or those of stdin.
fn texts(args: &EmbedArgs) -> anyhow::Result<Vec<String>> {
    if !args.texts.is_empty() {
        return Ok(args.texts.clone());
    }
    let lines = match &args.file {
        Some(file) if file.as_os_str() != "-" => read_file(file)?,
        None if std::io::stdin().is_terminal() => {
            return Err(Usage("no text".into()).hint("give texts, or --file with a text on each line"));
        }
        _ => read_stdin()?,
    };
    Ok(lines.lines().map(String::from).collect())
}

/// What flags change of the model's pooling; `None` when nothing.
fn pooling(args: &EmbedArgs, spec: &Spec) -> Option<Pooling> {
    let own = &spec.pooling;
    let pooling = Pooling {
        kind: args.pooling.unwrap_or(own.kind),
        normalize: own.normalize && !args.no_normalize,
        max_tokens: own.max_tokens,
    };
    (pooling != *own).then_some(pooling)
}

/// The tokens of a text, no more than fit.
fn tokens(tokenizer: &Tokenizer, embedder: &Embedder, i: usize, text: &str, cut: bool) -> anyhow::Result<Vec<u32>> {
    let (ids, most) = (tokenizer.encode_whole(text)?, embedder.max_tokens());
    if ids.is_empty() {
        return Err(anyhow!("text {} is empty: at least one token is needed", i + 1));
    }
    if ids.len() <= most {
        return Ok(ids);
    }
    if !cut {
        let error = anyhow!("text {} has {} tokens, the model embeds at most {most}", i + 1, ids.len());
        return Err(error.hint("--truncate leaves out what is too much"));
    }
    // The special tokens around a text stay.
    let plain = tokenizer.encode(text)?;
    let around = ids.windows(plain.len().max(1)).position(|part| part == plain);
    let (start, end) = around.map_or((0, ids.len()), |at| (at, at + plain.len()));
    let kept = (end - start).saturating_sub(ids.len() - most);
    let mut cut: Vec<u32> = ids[..start + kept].iter().chain(&ids[end..]).copied().collect();
    cut.truncate(most);
    Ok(cut)
}

/// A vector on one line, every digit that tells it from its neighbours.
fn line(embedding: &[f32]) -> String {
    let mut line = String::new();
    for (i, value) in embedding.iter().enumerate() {
        // Writing to a `String` cannot fail.
        let _ = write!(line, "{}{value}", if i > 0 { " " } else { "" });
    }
    line
}
