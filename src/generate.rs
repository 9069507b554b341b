//! The generation loop: run the tokens that are not in the cache yet, then choose, print and run one
//! token after the other until something ends it.

use crate::interrupt::Catch;
use crate::output;
use crate::stop::{Passed, StopMatcher};
use std::time::{Duration, Instant};
use tidbit_runtime::error::SessionError;
use tidbit_runtime::sampler::Sampler;
use tidbit_runtime::session::Session;
use tidbit_runtime::tokenizer::{StreamDecoder, Tokenizer};

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    /// The model ended the text.
    Eos,
    /// A stop text came.
    Stop,
    /// As many tokens as were asked for.
    Length,
    /// The context is full.
    Context,
    /// Ctrl-C.
    Interrupted,
}

impl Finish {
    /// The `finish_reason` of the JSON output.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Eos => "eos",
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Context => "context",
            Self::Interrupted => "interrupted",
        }
    }
}

/// What ends a generation, besides the model.
#[derive(Debug)]
pub(crate) struct Limits<'a> {
    /// Most tokens.
    pub(crate) n_tokens: usize,
    /// Stop texts.
    pub(crate) stop: &'a [String],
    /// Do not end at the tokens that end a text.
    pub(crate) ignore_eos: bool,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Generation {
    /// The generated tokens, the one that ended the text not included.
    pub(crate) ids: Vec<u32>,
    /// Their text, up to a stop text.
    pub(crate) text: String,
    /// Why it ended.
    pub(crate) finish: Finish,
    /// Tokens of the prompt that were run, and how long that took.
    pub(crate) prefill: (usize, Duration),
    /// Tokens that were run one by one, and how long that took, choosing included.
    pub(crate) decode: (usize, Duration),
    /// When the first token was there.
    pub(crate) first_token: Option<Instant>,
}

/// Token ids as text; without a tokenizer, as numbers.
enum Decoder<'a> {
    Text(StreamDecoder<'a>),
    Ids,
}

impl Decoder<'_> {
    fn push(&mut self, id: u32) -> String {
        match self {
            Self::Text(stream) => stream.push(id).to_owned(),
            Self::Ids => format!("{id} "),
        }
    }

    fn finish(&mut self) -> String {
        match self {
            Self::Text(stream) => stream.finish().to_owned(),
            Self::Ids => String::new(),
        }
    }
}

/// Continues `history`, to which the new tokens are added. `print` shows the text as it comes.
///
/// Whatever of `history` is not in the session's cache yet is run first: the prompt, and in a prompt
/// loop also the last token of the turn before.
///
/// # Errors
/// What the session answers; being interrupted is no error but a [`Finish`].
pub(crate) fn generate(
    session: &mut Session,
    tokenizer: Option<&Tokenizer>,
    sampler: &mut Sampler,
    history: &mut Vec<u32>,
    limits: &Limits<'_>,
    print: bool,
) -> anyhow::Result<Generation> {
    let caught = Catch::new(session.cancel_flag())?;
    let eos = if limits.ignore_eos { Vec::new() } else { session.model().spec().eos_ids.clone() };
    let mut decoder = tokenizer.map_or(Decoder::Ids, |t| Decoder::Text(t.stream()));
    let mut stop = StopMatcher::new(limits.stop);
    let mut done = Generation {
        ids: Vec::new(),
        text: String::new(),
        finish: Finish::Interrupted,
        prefill: (0, Duration::ZERO),
        decode: (0, Duration::ZERO),
        first_token: None,
    };
    let emit = |text: &str, all: &mut String| {
        all.push_str(text);
        if print { output::print(text) } else { Ok(()) }
    };

    let mut started = Instant::now();
    loop {
        let fresh = history.get(session.position()..).unwrap_or_default();
        let n_fresh = fresh.len();
        let logits = match session.append(fresh) {
            Ok(logits) => logits,
            Err(SessionError::Cancelled) => break,
            Err(error) => return Err(error.into()),
        };
        let prefilled = done.first_token.is_none().then(Instant::now);
        let id = sampler.sample(logits, history)?;
        let now = Instant::now();
        if let Some(prefilled) = prefilled {
            done.prefill = (n_fresh, prefilled - started);
            done.first_token = Some(now);
            started = now;
        } else {
            done.decode = (done.decode.0 + 1, now - started);
        }
        if eos.contains(&id) {
            done.finish = Finish::Eos;
            break;
        }
        done.ids.push(id);
        history.push(id);
        let Passed { text, stopped } = stop.push(&decoder.push(id));
        emit(&text, &mut done.text)?;
        if stopped {
            done.finish = Finish::Stop;
            return Ok(done);
        }
        if done.ids.len() >= limits.n_tokens {
            done.finish = Finish::Length;
            break;
        }
        if session.position() >= session.context() {
            done.finish = Finish::Context;
            break;
        }
        if caught.hit() {
            break;
        }
    }
    // The last bytes may be half a character, and may still complete a stop text.
    let Passed { text, stopped } = stop.push(&decoder.finish());
    emit(&text, &mut done.text)?;
    if stopped {
        done.finish = Finish::Stop;
    } else {
        emit(&stop.finish(), &mut done.text)?;
    }
    Ok(done)
}
