//! The generation loop: run the tokens that are not in the cache yet, then choose, print and run one
//! token after the other (or several, when guesses are right) until something ends it.

use crate::interrupt::Catch;
use crate::output;
use crate::stop::{Passed, StopMatcher};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};
use tidbit_runtime::error::SessionError;
use tidbit_runtime::sampler::Sampler;
use tidbit_runtime::session::Session;
use tidbit_runtime::speculate::Steps;
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
    /// Tokens that end a text.
    pub(crate) ends: &'a [u32],
}

impl Generator<'_> {
    /// A text begins with the tokens of a prompt: they are what the model goes on with, or what its encoder reads before the
    /// model starts with a token of its own. What the text begins with.
    pub(crate) fn begin(&mut self, prompt: Vec<u32>) -> Vec<u32> {
        let Some(encoder) = &self.session.model().spec().encoder else { return prompt };
        let start = vec![encoder.start_id];
        self.steps.clear();
        self.about = Some(prompt);
        start
    }

    /// Tokens of the longest prompt.
    pub(crate) fn longest_prompt(&self) -> usize {
        let encodes = self.session.model().encoder().is_some();
        if encodes { self.session.max_encoded() } else { self.session.context() }
    }
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
    /// Tokens of the prompt that were run, and how long that took, choosing the first token included.
    pub(crate) prefill: (usize, Duration),
    /// Tokens chosen after the first, and how long that took.
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

/// What chooses tokens.
pub(crate) struct Generator<'a> {
    /// What runs them.
    pub(crate) session: &'a mut Session,
    /// What its encoder is to read before the next text, if it has one.
    pub(crate) about: Option<Vec<u32>>,
    /// Without one, ids are printed.
    pub(crate) tokenizer: Option<&'a Tokenizer>,
    /// Chooses one.
    pub(crate) sampler: &'a mut Sampler,
    /// Runs one after the other, or several.
    pub(crate) steps: &'a mut Steps,
}

/// Continues `history`, to which the new tokens are added. `print` shows the text as it comes.
///
/// Whatever of `history` is not in the session's cache yet is run first: the prompt, and in a prompt
/// loop also the last token of the turn before.
///
/// # Errors
/// What the session answers; being interrupted is no error but a [`Finish`].
pub(crate) fn generate(
    generator: &mut Generator<'_>,
    history: &mut Vec<u32>,
    limits: &Limits<'_>,
    print: bool,
) -> anyhow::Result<Generation> {
    let Generator { session, about, tokenizer, sampler, steps } = generator;
    let caught = Catch::new(session.cancel_flag())?;
    let stream = |t| if about.is_some() { Tokenizer::stream_start(t) } else { Tokenizer::stream(t) };
    let mut decoder = tokenizer.map_or(Decoder::Ids, |t| Decoder::Text(stream(t)));
    let mut stop = StopMatcher::new(limits.stop);
    let mut done = Generation {
        ids: Vec::new(),
        text: String::new(),
        finish: Finish::Interrupted,
        prefill: (0, Duration::ZERO),
        decode: (0, Duration::ZERO),
        first_token: None,
    };
    let show = |text: &str, all: &mut String| {
        all.push_str(text);
        if print { output::print(text) } else { Ok(()) }
    };

    let mut started = Instant::now();
    let mut n_read = 0;
    if let Some(ids) = about.take() {
        match session.encode(&ids) {
            Ok(()) => n_read = ids.len(),
            Err(SessionError::Cancelled) => return Ok(done),
            Err(error) => return Err(error.into()),
        }
    }
    loop {
        let n_new = n_read + history.len() - session.position();
        let left = limits.n_tokens - done.ids.len();
        let step = steps.step(session, sampler, history, left, |id| {
            let now = Instant::now();
            if done.first_token.is_none() {
                done.prefill = (n_new, now - started);
                done.first_token = Some(now);
                started = now;
            } else {
                done.decode = (done.decode.0 + 1, now - started);
            }
            if limits.ends.contains(&id) {
                return ControlFlow::Break(Ok(Finish::Eos));
            }
            done.ids.push(id);
            let Passed { text, stopped } = stop.push(&decoder.push(id));
            if let Err(error) = show(&text, &mut done.text) {
                return ControlFlow::Break(Err(error));
            }
            match () {
                () if stopped => ControlFlow::Break(Ok(Finish::Stop)),
                () if done.ids.len() >= limits.n_tokens => ControlFlow::Break(Ok(Finish::Length)),
                () => ControlFlow::Continue(()),
            }
        });
        match step {
            Ok(ControlFlow::Break(finish)) => {
                done.finish = finish?;
                break;
            }
            Ok(ControlFlow::Continue(())) if session.position() >= session.context() => {
                done.finish = Finish::Context;
                break;
            }
            Ok(ControlFlow::Continue(())) if caught.hit() => break,
            Ok(ControlFlow::Continue(())) => {}
            Err(SessionError::Cancelled) => break,
            Err(error) => return Err(error.into()),
        }
    }
    match done.finish {
        // The text that is gone on with does not end here.
        Finish::Eos => {
            history.pop();
        }
        Finish::Stop => return Ok(done),
        _ => {}
    }
    // The last bytes may be half a character, and may still complete a stop text.
    let Passed { text, stopped } = stop.push(&decoder.finish());
    show(&text, &mut done.text)?;
    if stopped {
        done.finish = Finish::Stop;
    } else {
        show(&stop.finish(), &mut done.text)?;
    }
    Ok(done)
}
