//! `run -i` and `run --chat`: lines from stdin, each continued or answered by the model within one session.

use crate::chat::Conversation;
use crate::generate::{Finish, Generation, Generator, Limits, generate};
use crate::output::{note, print};
use crate::prompt;
use std::io::{BufRead, IsTerminal};
use tidbit_runtime::tokenizer::Tokenizer;

/// Reads lines until `/quit` or the end of stdin. The session goes on from line to line; `/reset`
/// empties it. Ctrl-C stops an answer, and at the prompt ends the process. In a conversation a line is a message; a model with an
/// encoder writes about each line by itself.
///
/// `after` is called with what each line brought.
///
/// # Errors
/// What the session answers, or when stdin cannot be read.
pub(crate) fn prompt_loop(
    generator: &mut Generator<'_>,
    (tokenizer, mut chat): (&Tokenizer, Option<&mut Conversation<'_>>),
    limits: &Limits<'_>,
    mut after: impl FnMut(&Generation),
) -> anyhow::Result<()> {
    let is_terminal = std::io::stdin().is_terminal();
    let model = generator.session.model().clone();
    let encodes = model.encoder().is_some();
    if is_terminal {
        let what = match chat {
            Some(_) => "each line is a message",
            None if encodes => "each line is a text of its own",
            None => "each line goes on where the last answer stopped",
        };
        note(format_args!("{what}; /reset starts afresh, /quit ends"));
    }
    let mut history: Vec<u32> = Vec::new();
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
                if let Some(chat) = &mut chat {
                    chat.clear();
                }
                continue;
            }
            _ => {}
        }
        let text = match &mut chat {
            None if encodes || history.is_empty() => prompt::text_tokens(&line, &model, tokenizer)?,
            None => [&history[..], &tokenizer.encode(&line)?].concat(),
            Some(chat) => chat.ask(&line)?,
        };
        let context = generator.longest_prompt();
        if text.len() > context {
            let needed = text.len();
            // With an encoder each line stands alone.
            let hint = if encodes { "" } else { "; /reset starts afresh" };
            note(format_args!("note: {needed} tokens do not fit the context of {context}{hint}"));
            if let Some(chat) = &mut chat {
                chat.take_back();
            }
            continue;
        }
        if encodes {
            history = generator.begin(text);
        } else {
            go_on(generator, &history, &text);
            history = text;
        }
        let done = generate(generator, &mut history, limits, true)?;
        if let Some(chat) = &mut chat {
            chat.answered(&done.text);
        }
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

/// Makes the session forget what of `before` is not the start of `text`: in a conversation, tokens of an answer that the tokenizer
/// would not have taken for its text. Mostly there are none, and only what is new is run.
fn go_on(generator: &mut Generator<'_>, before: &[u32], text: &[u32]) {
    let common = before.iter().zip(text).take_while(|(a, b)| a == b).count();
    if common < before.len() {
        // One token at least is run, for its logits.
        let start = generator.session.resume_point(common.min(text.len().saturating_sub(1)));
        generator.session.rewind(start);
        generator.steps.clear();
    }
}
