//! `run -i`: lines from stdin, each continued by the model within one session.

use crate::generate::{Finish, Generation, Generator, Limits, generate};
use crate::output::{note, print};
use std::io::{BufRead, IsTerminal};
use tidbit_runtime::tokenizer::Tokenizer;

/// Reads lines until `/quit` or the end of stdin. The session goes on from line to line; `/reset`
/// empties it. Ctrl-C stops an answer, and at the prompt ends the process.
///
/// `after` is called with what each line brought.
///
/// # Errors
/// What the session answers, or when stdin cannot be read.
pub(crate) fn prompt_loop(
    generator: &mut Generator<'_>,
    tokenizer: &Tokenizer,
    limits: &Limits<'_>,
    mut after: impl FnMut(&Generation),
) -> anyhow::Result<()> {
    let is_terminal = std::io::stdin().is_terminal();
    if is_terminal {
        note(format_args!("each line goes on where the last answer stopped; /reset starts afresh, /quit ends"));
    }
    let mut history = Vec::new();
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if is_terminal {
            print("> ")?;
        }
        let Some(line) = lines.next() else { break };
        let line = line.map_err(|e| anyhow::anyhow!("stdin: {e}"))?;
        match line.trim() {
            "" => continue,
            "/quit" => return Ok(()),
            "/reset" => {
                generator.session.rewind(0);
                generator.steps.clear();
                history.clear();
                continue;
            }
            _ => {}
        }
        let ids = tokenizer.encode(&line)?;
        let needed = history.len() + ids.len();
        let context = generator.session.context();
        if needed > context {
            note(format_args!("note: {needed} tokens do not fit the context of {context}; /reset starts afresh"));
            continue;
        }
        history.extend_from_slice(&ids);
        let done = generate(generator, &mut history, limits, true)?;
        if !done.text.ends_with('\n') {
            print("\n")?;
        }
        if done.finish == Finish::Context {
            note(format_args!("note: the context of {context} tokens is full; /reset starts afresh"));
        }
        after(&done);
    }
    if is_terminal { print("\n") } else { Ok(()) }
}
