//! The functions of the header that take a session.

use crate::guard::{guard, guard_status};
use crate::log;
use crate::memory::{Buffer, Out, slice, text};
use crate::model::OpenModel;
use crate::objects::{self, tidbit_model, tidbit_options, tidbit_session};
use crate::options::settings;
use crate::session::{self, Session, empty};
use crate::status::{Failure, Status, TIDBIT_INVALID_HANDLE, TIDBIT_OK};
use crate::tokenizer::tokenizer;
use std::ffi::c_char;
use tidbit_runtime::sampler::Sampler;

/// What `tidbit_session_output` gives: logits, `[vocab_size]` for each token.
pub const TIDBIT_LOGITS: i32 = 0;
/// What `tidbit_session_output` gives: natural logarithms of probabilities, `[vocab_size]` for each token.
pub const TIDBIT_LOG_PROBABILITIES: i32 = 1;
/// What `tidbit_session_output` gives: hidden states after the last block and the final normalization, as the head takes
/// them, `[d_model]` for each token.
pub const TIDBIT_HIDDEN_STATES: i32 = 2;

/// Says how many bytes of memory a session takes, before anything is taken: its cache when full, and its scratch memory.
/// Threads and their stacks are not counted.
///
/// Ownership: handles stay the caller's; `options` may be null.
/// Threads: any.
/// Errors: `TIDBIT_INVALID_ARGUMENT` for a context that the model does not have; `TIDBIT_INVALID_HANDLE`, `TIDBIT_BUSY`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_session_estimate(
    model: *const tidbit_model,
    options: *const tidbit_options,
    out_bytes: *mut u64,
) -> Status {
    guard(|| {
        // SAFETY: the host vouches for its pointers, as the header asks; here and below.
        let out = unsafe { Out::new(out_bytes, 0, "out_bytes")? };
        let model = objects::get::<OpenModel>(model)?;
        out.set(session::memory_bytes(model.model.file().contents(), &settings(options)?)? as u64);
        Ok(())
    })
}

/// Makes a session: an empty text, with all memory that it will need.
///
/// Ownership: the caller frees the handle with `tidbit_session_free`. It keeps the model; options are copied and may be null.
/// Threads: any. The handle belongs to one thread at a time; another gets `TIDBIT_BUSY`. The session has worker threads of its
/// own, which only compute.
/// Errors: `TIDBIT_OUT_OF_MEMORY`, also for `memory.limit`; `TIDBIT_INVALID_ARGUMENT` for options that the model does not
/// take; `TIDBIT_UNSUPPORTED`, `TIDBIT_INVALID_HANDLE`, `TIDBIT_BUSY`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_session_new(
    model: *const tidbit_model,
    options: *const tidbit_options,
    out_session: *mut *mut tidbit_session,
) -> Status {
    guard(|| {
        // SAFETY: as in `tidbit_session_estimate`.
        let out = unsafe { Out::new(out_session, std::ptr::null_mut(), "out_session")? };
        let model = objects::get::<OpenModel>(model)?;
        out.set(objects::insert(Session::new(&model.model, settings(options)?)?)?);
        Ok(())
    })
}

/// Makes another session with the text of this one, the options, and the state of the random numbers. What both have in
/// common is shared, not copied; each goes its own way from there.
///
/// Ownership: the caller frees the new handle. Either may be freed first.
/// Threads: as `tidbit_session_new`.
/// Errors: as `tidbit_session_new`; `TIDBIT_POISONED`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_session_clone(
    session: *const tidbit_session,
    out_session: *mut *mut tidbit_session,
) -> Status {
    guard(|| {
        // SAFETY: as in `tidbit_session_estimate`.
        let out = unsafe { Out::new(out_session, std::ptr::null_mut(), "out_session")? };
        let session = objects::get::<Session>(session)?;
        out.set(objects::insert(session.fork()?)?);
        Ok(())
    })
}

/// Appends tokens to the text and runs them through the model (prefill). No tokens are nothing to do.
///
/// A character that earlier tokens left incomplete is given up.
///
/// A model with an encoder (T5) writes about another text: what is appended to an empty text is read by the encoder, at once,
/// and the text begins with the one token that the model starts with (`architecture.encoder.start_id` of `tidbit_info`). An empty
/// text can be begun again. For the time of the call the encoder takes a cache of the size of its text.
///
/// Ownership: tokens stay the caller's.
/// Threads: as `tidbit_session_new`.
/// Errors: `TIDBIT_CONTEXT_FULL`; `TIDBIT_CANCELLED`; `TIDBIT_INVALID_ARGUMENT` for a token that the model does not have;
/// `TIDBIT_OUT_OF_MEMORY`, `TIDBIT_BUSY`, `TIDBIT_POISONED`, `TIDBIT_INVALID_HANDLE`. The text is then as it was.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_session_append(
    session: *mut tidbit_session,
    tokens: *const u32,
    n_tokens: usize,
) -> Status {
    guard(|| {
        let session = objects::get::<Session>(session)?;
        // SAFETY: as in `tidbit_session_estimate`.
        let tokens = unsafe { slice(tokens, n_tokens, "tokens")? };
        session.lock()?.compute(|state| state.append(tokens))
    })
}

/// Appends a text: its tokens, as `tidbit_encode` tells them, are run through the model. At the beginning of a session come
/// first the tokens that the tokenizer puts before every text (LLaMA's `<s>`), unless the text begins with them; what an encoder
/// reads has all that belong around a text (T5's `</s>`). `out_n_tokens` gets the number of all.
///
/// Ownership: the text stays the caller's. `out_n_tokens` may be null.
/// Threads: as `tidbit_session_new`.
/// Errors: as `tidbit_session_append` and `tidbit_encode`. The text of the session is then as it was.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_session_append_text(
    session: *mut tidbit_session,
    text: *const c_char,
    text_length: usize,
    out_n_tokens: *mut usize,
) -> Status {
    guard(|| {
        // SAFETY: as in `tidbit_session_estimate`.
        let out = unsafe { Out::optional(out_n_tokens, 0, "out_n_tokens")? };
        let session = objects::get::<Session>(session)?;
        // SAFETY: as above.
        let text = unsafe { self::text(text, text_length, "the text")? };
        let state = session.lock()?;
        let tokenizer = tokenizer(&session.model)?;
        let tokens = match state.text.is_empty() {
            _ if state.encodes() => tokenizer.encode_whole(text)?,
            true => tokenizer.encode_start(text)?,
            false => tokenizer.encode(text)?,
        };
        state.compute(|state| state.append(&tokens))?;
        if let Some(out) = out {
            out.set(tokens.len());
        }
        Ok(())
    })
}

/// Chooses the next token, appends it to the text, and tells the text that it completes: whole characters, sometimes none.
///
/// `TIDBIT_OK`: there is a token. `TIDBIT_END`: the model ended the text; the token that says so is in `out_token` but is not
/// appended, and the buffer has what was left of an incomplete character. For a model without a tokenizer the text is
/// always empty.
///
/// Ownership: the buffer stays the caller's. A NUL follows the text where there is room. `out_token` may be null.
/// Threads: as `tidbit_session_new`.
/// Errors: `TIDBIT_BUFFER_TOO_SMALL`, with the length in `out_length`: nothing was lost, the next call chooses the same token;
/// `TIDBIT_EMPTY` before anything was appended; `TIDBIT_CONTEXT_FULL`; `TIDBIT_CANCELLED`; `TIDBIT_NOT_FINITE` for a model
/// that computes no numbers; `TIDBIT_BAD_MODEL` for a damaged tokenizer; `TIDBIT_OUT_OF_MEMORY`, `TIDBIT_BUSY`,
/// `TIDBIT_POISONED`, `TIDBIT_INVALID_HANDLE`, `TIDBIT_INVALID_ARGUMENT`. The text is then as it was.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_session_next(
    session: *mut tidbit_session,
    out_token: *mut u32,
    buffer: *mut c_char,
    capacity: usize,
    out_length: *mut usize,
) -> Status {
    guard_status(|| {
        // SAFETY: as in `tidbit_session_estimate`.
        let out_token = unsafe { Out::optional(out_token, 0, "out_token")? };
        // SAFETY: as above.
        let out = unsafe { Buffer::new(buffer, capacity, out_length)? };
        let session = objects::get::<Session>(session)?;
        session.lock()?.compute(|state| {
            state.next(&out, |token| {
                if let Some(out_token) = out_token {
                    out_token.set(token);
                }
            })
        })
    })
}

/// Sets how tokens are chosen from now on: what `sampling.*` and `session.ignore_eos` of the options say. The random numbers
/// start anew.
///
/// Ownership: options are copied; null stands for the defaults.
/// Threads: as `tidbit_session_new`.
/// Errors: `TIDBIT_BUSY`, `TIDBIT_POISONED`, `TIDBIT_INVALID_HANDLE`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_session_set_sampling(
    session: *mut tidbit_session,
    options: *const tidbit_options,
) -> Status {
    guard(|| {
        let session = objects::get::<Session>(session)?;
        let settings = settings(options)?;
        let sampler = Sampler::new(settings.sampler.clone())?;
        let mut state = session.lock()?;
        state.sampler = sampler;
        state.settings.sampler = settings.sampler;
        state.settings.ignore_eos = settings.ignore_eos;
        Ok(())
    })
}

/// Tells what the model computed at the last `n_last` tokens of the text, row by row, the last token's row last. `what` is
/// `TIDBIT_LOGITS`, `TIDBIT_LOG_PROBABILITIES` or `TIDBIT_HIDDEN_STATES`.
///
/// What comes after the last token is there, or takes no more than `tidbit_session_next` does; for more tokens they are run
/// once more, together. Neither the text nor the random numbers change.
///
/// Ownership: the buffer stays the caller's; capacity and length count floats. A null buffer of capacity 0 asks for the
/// length.
/// Threads: as `tidbit_session_new`.
/// Errors: `TIDBIT_BUFFER_TOO_SMALL`, with the length in `out_length`; `TIDBIT_INVALID_ARGUMENT` for another `what`, for
/// `n_last` of 0, or more than the tokens there are, or than the session gives at once (`max_batch` of `tidbit_info`, at most 128);
/// `TIDBIT_EMPTY`, `TIDBIT_NOT_FINITE` (log-probabilities only), `TIDBIT_OUT_OF_MEMORY`, `TIDBIT_CANCELLED`, `TIDBIT_BUSY`,
/// `TIDBIT_POISONED`, `TIDBIT_INVALID_HANDLE`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_session_output(
    session: *mut tidbit_session,
    what: i32,
    n_last: usize,
    buffer: *mut f32,
    capacity: usize,
    out_length: *mut usize,
) -> Status {
    guard(|| {
        // SAFETY: as in `tidbit_session_estimate`.
        let out = unsafe { Buffer::new(buffer, capacity, out_length)? };
        let session = objects::get::<Session>(session)?;
        let spec = session.model.spec();
        let width = match what {
            TIDBIT_LOGITS | TIDBIT_LOG_PROBABILITIES => spec.vocab_size,
            TIDBIT_HIDDEN_STATES => spec.d_model,
            _ => return Err(Failure::argument(format!("there is no output {what}, expected 0 to 2"))),
        };
        let state = session.lock()?;
        if state.text.is_empty() {
            return Err(empty());
        }
        let most = state.most_rows();
        if n_last == 0 || n_last > most {
            return Err(Failure::argument(format!("{n_last} tokens are not possible, expected 1 to {most}")));
        }
        let length = n_last * width;
        out.require(length)?;
        state.compute(|state| {
            let kernels = state.engine.kernels();
            let mut wrong = None;
            state.last(n_last, |row, logits, hidden| match what {
                TIDBIT_LOGITS => out.put(row * width, logits),
                TIDBIT_HIDDEN_STATES => out.put(row * width, hidden),
                _ => match session::log_total(kernels, logits) {
                    Ok(total) => {
                        for (i, &logit) in logits.iter().enumerate() {
                            out.put(row * width + i, &[(f64::from(logit) - total) as f32]);
                        }
                    }
                    Err(failure) => wrong = Some(failure),
                },
            })?;
            wrong.map_or(Ok(()), Err)
        })?;
        out.finish(length);
        Ok(())
    })
}

/// Embeds a text: a vector `[d_model]`, made of the hidden states of its tokens and of those that the tokenizer puts around them
/// (BERT's `[CLS]` and `[SEP]`), pooled and normalized as the model says (`architecture.pooling` of `tidbit_info`). The text of
/// the session has no part in it and stays as it is.
///
/// It is what encoders are for, which have no logits: `tidbit_session_append` and what follows from it are
/// `TIDBIT_UNSUPPORTED` there. A decoder embeds too. For the time of the call it takes a cache of the size of the text.
///
/// Ownership: text and buffer stay the caller's; capacity and length count floats. A null buffer of capacity 0 asks for the
/// length.
/// Threads: as `tidbit_session_new`.
/// Errors: `TIDBIT_BUFFER_TOO_SMALL`, with the length in `out_length`; `TIDBIT_CONTEXT_FULL` for a text of more tokens than the
/// model embeds; `TIDBIT_EMPTY` for one without any; `TIDBIT_NOT_FINITE`, `TIDBIT_OUT_OF_MEMORY`, `TIDBIT_CANCELLED`,
/// `TIDBIT_POISONED`; otherwise as `tidbit_encode`, and `TIDBIT_BUSY`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_session_embed(
    session: *mut tidbit_session,
    text: *const c_char,
    text_length: usize,
    buffer: *mut f32,
    capacity: usize,
    out_length: *mut usize,
) -> Status {
    guard(|| {
        // SAFETY: as in `tidbit_session_estimate`.
        let out = unsafe { Buffer::new(buffer, capacity, out_length)? };
        let session = objects::get::<Session>(session)?;
        // SAFETY: as above.
        let text = unsafe { self::text(text, text_length, "the text")? };
        let state = session.lock()?;
        let tokens = tokenizer(&session.model)?.encode_whole(text)?;
        out.require(session.model.spec().d_model)?;
        out.write(&state.compute(|state| state.embed(tokens))?)
    })
}

/// Scores tokens as what follows the text, which stays as it is: the natural logarithm of the probability of each after all
/// before it. `out_total` gets their sum. The first token of an empty text follows nothing; its score is 0 and does not count.
///
/// Ownership: tokens and buffer stay the caller's. `scores` has room for `n_tokens` values, or is null.
/// Threads: as `tidbit_session_new`.
/// Errors: `TIDBIT_CONTEXT_FULL` when all but the last do not fit behind the text; `TIDBIT_EMPTY` when the model has an encoder that has
/// read nothing yet; otherwise as `tidbit_session_append`, and `TIDBIT_NOT_FINITE`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_session_score(
    session: *mut tidbit_session,
    tokens: *const u32,
    n_tokens: usize,
    scores: *mut f32,
    out_total: *mut f64,
) -> Status {
    guard(|| {
        // SAFETY: as in `tidbit_session_estimate`.
        let total = unsafe { Out::new(out_total, 0.0, "out_total")? };
        let session = objects::get::<Session>(session)?;
        // SAFETY: as above.
        let tokens = unsafe { slice(tokens, n_tokens, "tokens")? };
        let mut unused = 0;
        // SAFETY: as above; `unused` outlives the buffer.
        let out = unsafe { Buffer::new(scores, if scores.is_null() { 0 } else { n_tokens }, &raw mut unused)? };
        let values = session.lock()?.compute(|state| state.score(tokens))?;
        if !scores.is_null() {
            out.write(&values)?;
        }
        total.set(values.iter().map(|&score| f64::from(score)).sum());
        Ok(())
    })
}

/// Takes tokens back: those from `position` (a number of tokens) on are forgotten. Position 0 is an empty text. The random
/// numbers go on.
///
/// Threads: as `tidbit_session_new`.
/// Errors: `TIDBIT_INVALID_ARGUMENT` for a position behind the end; `TIDBIT_BUSY`, `TIDBIT_POISONED`, `TIDBIT_INVALID_HANDLE`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_session_rewind(session: *mut tidbit_session, position: usize) -> Status {
    guard(|| objects::get::<Session>(session)?.lock()?.rewind(position))
}

/// Tells the tokens of the text.
///
/// Ownership: the buffer stays the caller's. A null buffer of capacity 0 asks for their number.
/// Threads: as `tidbit_session_new`.
/// Errors: `TIDBIT_BUFFER_TOO_SMALL`, with their number in `out_length`; `TIDBIT_BUSY`, `TIDBIT_POISONED`,
/// `TIDBIT_INVALID_HANDLE`, `TIDBIT_INVALID_ARGUMENT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_session_tokens(
    session: *const tidbit_session,
    tokens: *mut u32,
    capacity: usize,
    out_length: *mut usize,
) -> Status {
    guard(|| {
        // SAFETY: as in `tidbit_session_estimate`.
        let out = unsafe { Buffer::new(tokens, capacity, out_length)? };
        let session = objects::get::<Session>(session)?;
        let state = session.lock()?;
        out.write(&state.text)
    })
}

/// Stops the call that is using the session, before its next layer, or else the next call that computes: that call returns
/// `TIDBIT_CANCELLED`, once, and the text is as it was before it.
///
/// Threads: any, at any time, also in a signal handler: it stores one atomic and neither waits, locks nor allocates.
/// Errors: `TIDBIT_INVALID_HANDLE`. This function leaves no message.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_session_cancel(session: *const tidbit_session) -> Status {
    match objects::get_in_signal::<Session>(session) {
        Some(session) => {
            session.cancel();
            TIDBIT_OK
        }
        None => TIDBIT_INVALID_HANDLE,
    }
}

/// Frees a session. Null is nothing to free. A call that is using it on another thread is cancelled, and frees it when it
/// returns.
///
/// Threads: any.
/// Errors: `TIDBIT_INVALID_HANDLE`, also when it is freed twice.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_session_free(session: *mut tidbit_session) -> Status {
    guard(|| {
        objects::free::<Session>(session, |session| {
            if let Ok(state) = session.lock() {
                log::info(state.log(), || format!("session freed at {} tokens", state.text.len()));
            }
            session.cancel();
        })
    })
}
