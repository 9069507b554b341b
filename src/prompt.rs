//! The prompt: where its text comes from, and its tokens.

use crate::cli::PromptArgs;
use crate::failure::{Hint, Usage};
use crate::text_file::{read_file, read_stdin, without_final_line_break};
use anyhow::anyhow;
use std::io::IsTerminal;
use std::path::Path;
use tidbit_runtime::error::SessionError;
use tidbit_runtime::session::Model;
use tidbit_runtime::spec::Head;
use tidbit_runtime::tokenizer::Tokenizer;

/// A prompt as the user gave it.
#[derive(Debug)]
pub(crate) enum Source {
    /// Text.
    Text(String),
    /// Token ids.
    Ids(Vec<u32>),
}

/// Finds the prompt of a single run: an option, a file, or stdin.
///
/// # Errors
/// When there is none, or it cannot be read.
pub(crate) fn find(args: &PromptArgs) -> anyhow::Result<Source> {
    if !args.ids.is_empty() {
        return Ok(Source::Ids(args.ids.clone()));
    }
    let text = match (&args.text, &args.file) {
        (Some(text), _) => text.clone(),
        (None, Some(file)) if file.as_os_str() == "-" => without_final_line_break(&read_stdin()?).to_owned(),
        (None, Some(file)) => without_final_line_break(&read_file(file)?).to_owned(),
        (None, None) if std::io::stdin().is_terminal() => {
            return Err(Usage("no prompt".into()).hint("give a text with -p TEXT, or -i for a prompt loop"));
        }
        (None, None) => without_final_line_break(&read_stdin()?).to_owned(),
    };
    Ok(Source::Text(text))
}

/// The model's tokenizer, which must fit the model.
///
/// # Errors
/// When the tokenizer is damaged or has tokens that the model lacks.
pub(crate) fn tokenizer(model: &Model) -> anyhow::Result<Option<&Tokenizer>> {
    let path = model.file().path().display();
    let tokenizer = model.tokenizer().map_err(|e| anyhow!("{path}: {e}"))?;
    if let Some(tokenizer) = tokenizer {
        tokenizer.check_vocabulary(model.spec().vocab_size).map_err(|e| anyhow!("{path}: {e}"))?;
    }
    Ok(tokenizer)
}

/// Refuses a model that only makes embeddings.
///
/// # Errors
/// When it has no head.
pub(crate) fn check_writes(model: &Model) -> anyhow::Result<()> {
    if model.spec().head != Head::None {
        return Ok(());
    }
    let path = model.file().path().display();
    Err(anyhow!("{path}: {}", SessionError::NoHead).hint(format!("tidbit embed {path} TEXT")))
}

/// Refuses a model that writes about a text that its encoder reads.
///
/// # Errors
/// When it has an encoder.
pub(crate) fn check_continues(model: &Model) -> anyhow::Result<()> {
    if model.encoder().is_none() {
        return Ok(());
    }
    let path = model.file().path().display();
    Err(anyhow!("{path}: {}", SessionError::NothingRead).hint(format!("tidbit run {path} -p TEXT")))
}

/// The error of a model that cannot read text.
pub(crate) fn no_tokenizer(path: &Path) -> anyhow::Error {
    anyhow!("{}: the model has no tokenizer", path.display())
}

/// Refuses a prompt that does not fit.
///
/// # Errors
/// When it has more tokens than the context holds.
pub(crate) fn check_length(ids: &[u32], model: &Model, context: usize) -> anyhow::Result<()> {
    if ids.len() <= context {
        return Ok(());
    }
    let spec = model.spec();
    let most = if spec.encoder.is_some() { spec.max_context() } else { spec.context_length };
    let error = anyhow!("the prompt has {} tokens, the context holds {context}", ids.len());
    Err(if ids.len() <= most {
        error.hint(format!("this model takes --ctx up to {most}"))
    } else {
        error.hint(format!("shorten the prompt: this model takes at most {most} tokens"))
    })
}

/// The tokens of a text to begin with: the start of one that the model goes on with, or a whole one for its encoder.
///
/// # Errors
/// When it cannot be tokenized.
pub(crate) fn text_tokens(text: &str, model: &Model, tokenizer: &Tokenizer) -> anyhow::Result<Vec<u32>> {
    let ids = if model.encoder().is_some() { tokenizer.encode_whole(text) } else { tokenizer.encode_start(text) };
    Ok(ids?)
}

/// The tokens of a prompt, at least one and no more than the context holds.
///
/// # Errors
/// When it is empty, too long or cannot be tokenized.
pub(crate) fn tokens(
    source: &Source,
    model: &Model,
    tokenizer: Option<&Tokenizer>,
    context: usize,
) -> anyhow::Result<Vec<u32>> {
    let ids = match (source, tokenizer) {
        (Source::Ids(ids), _) => ids.clone(),
        (Source::Text(text), Some(tokenizer)) => text_tokens(text, model, tokenizer)?,
        (Source::Text(_), None) => {
            return Err(no_tokenizer(model.file().path()).hint("give token ids with --ids 1,2,3"));
        }
    };
    if ids.is_empty() {
        return Err(SessionError::EmptyPrompt.hint("give a text with -p TEXT, or a token with --ids"));
    }
    check_length(&ids, model, context)?;
    Ok(ids)
}
