//! Text to token ids, and back, at once or as a stream.

use crate::guard::guard;
use crate::memory::{Buffer, Out, slice, text};
use crate::model::OpenModel;
use crate::objects::{self, tidbit_decoder, tidbit_model};
use crate::status::{Failure, Outcome, Status, TIDBIT_BUSY, TIDBIT_POISONED, TIDBIT_UNSUPPORTED};
use std::ffi::c_char;
use std::sync::{Mutex, MutexGuard, TryLockError};
use tidbit_runtime::model::Model;
use tidbit_runtime::tokenizer::{TextStream, Tokenizer};

/// What a handle of a decoder stands for.
pub(crate) struct Decoder {
    model: Model,
    stream: Mutex<TextStream>,
}

impl Decoder {
    fn lock(&self) -> Outcome<MutexGuard<'_, TextStream>> {
        self.stream.try_lock().map_err(|e| match e {
            TryLockError::WouldBlock => Failure::new(TIDBIT_BUSY, "another thread is using this decoder"),
            TryLockError::Poisoned(_) => Failure::new(TIDBIT_POISONED, "an earlier call on this decoder failed inside"),
        })
    }
}

/// The tokenizer of a model that must have one.
pub(crate) fn tokenizer(model: &Model) -> Outcome<&Tokenizer> {
    model.tokenizer()?.ok_or_else(|| {
        let message = format!("{}: the model has no tokenizer: it takes token ids only", model.file().path().display());
        Failure::new(TIDBIT_UNSUPPORTED, message)
    })
}

/// Tells the token ids of a text. No special token is added; those that are written in the text are recognised.
///
/// Ownership: text and buffer stay the caller's. A null buffer of capacity 0 asks for the number of tokens.
/// Threads: any.
/// Errors: `TIDBIT_BUFFER_TOO_SMALL`, with the number of tokens in `out_length`; `TIDBIT_INVALID_UTF8`;
/// `TIDBIT_UNSUPPORTED` for a model without a tokenizer; `TIDBIT_BAD_MODEL` for a damaged one; `TIDBIT_OUT_OF_MEMORY`,
/// `TIDBIT_INVALID_HANDLE`, `TIDBIT_INVALID_ARGUMENT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_encode(
    model: *const tidbit_model,
    text: *const c_char,
    text_length: usize,
    tokens: *mut u32,
    capacity: usize,
    out_length: *mut usize,
) -> Status {
    guard(|| {
        // SAFETY: the host vouches for its pointers, as the header asks; here and below.
        let out = unsafe { Buffer::new(tokens, capacity, out_length)? };
        let model = objects::get::<OpenModel>(model)?;
        // SAFETY: as above.
        let text = unsafe { self::text(text, text_length, "the text")? };
        out.write(&tokenizer(&model.model)?.encode(text)?)
    })
}

/// Tells the text of token ids, special tokens included. Bytes that are no UTF-8 become U+FFFD; an id that no token has is
/// no text.
///
/// Ownership: tokens and buffer stay the caller's. A null buffer of capacity 0 asks for the length in bytes. A NUL, not
/// counted in the length, follows the text where there is room.
/// Threads: any.
/// Errors: as `tidbit_encode`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_decode(
    model: *const tidbit_model,
    tokens: *const u32,
    n_tokens: usize,
    buffer: *mut c_char,
    capacity: usize,
    out_length: *mut usize,
) -> Status {
    guard(|| {
        // SAFETY: as in `tidbit_encode`.
        let out = unsafe { Buffer::new(buffer, capacity, out_length)? };
        let model = objects::get::<OpenModel>(model)?;
        // SAFETY: as above.
        let tokens = unsafe { slice(tokens, n_tokens, "tokens")? };
        out.write_text(&tokenizer(&model.model)?.decode(tokens))
    })
}

/// Makes a decoder, which turns token ids into text as they come: a character whose bytes are spread over tokens is held
/// back until it is whole.
///
/// Ownership: the caller frees the handle with `tidbit_decoder_free`. It keeps the model.
/// Threads: any. The handle belongs to one thread at a time; another gets `TIDBIT_BUSY`.
/// Errors: `TIDBIT_UNSUPPORTED` for a model without a tokenizer; `TIDBIT_BAD_MODEL`, `TIDBIT_OUT_OF_MEMORY`, `TIDBIT_INVALID_HANDLE`,
/// `TIDBIT_INVALID_ARGUMENT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_decoder_new(
    model: *const tidbit_model,
    out_decoder: *mut *mut tidbit_decoder,
) -> Status {
    guard(|| {
        // SAFETY: as in `tidbit_encode`.
        let out = unsafe { Out::new(out_decoder, std::ptr::null_mut(), "out_decoder")? };
        let model = objects::get::<OpenModel>(model)?.model.clone();
        tokenizer(&model)?;
        out.set(objects::insert(Decoder { model, stream: Mutex::default() })?);
        Ok(())
    })
}

/// Tells the text that further tokens complete: whole characters, often none.
///
/// Ownership: tokens and buffer stay the caller's. A NUL follows the text where there is room.
/// Threads: as `tidbit_decoder_new`.
/// Errors: `TIDBIT_BUFFER_TOO_SMALL`, with the length in `out_length`: the tokens were not taken, give them again;
/// `TIDBIT_BUSY`, `TIDBIT_POISONED`, `TIDBIT_INVALID_HANDLE`, `TIDBIT_INVALID_ARGUMENT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_decoder_push(
    decoder: *mut tidbit_decoder,
    tokens: *const u32,
    n_tokens: usize,
    buffer: *mut c_char,
    capacity: usize,
    out_length: *mut usize,
) -> Status {
    guard(|| {
        // SAFETY: as in `tidbit_encode`.
        let out = unsafe { Buffer::new(buffer, capacity, out_length)? };
        let decoder = objects::get::<Decoder>(decoder)?;
        // SAFETY: as above.
        let tokens = unsafe { slice(tokens, n_tokens, "tokens")? };
        let tokenizer = tokenizer(&decoder.model)?;
        let mut stream = decoder.lock()?;
        let mut after = stream.clone();
        let mut text = String::new();
        for &id in tokens {
            text.push_str(after.push(tokenizer, id));
        }
        out.write_text(&text)?;
        *stream = after;
        Ok(())
    })
}

/// Tells what is left at the end of a text: U+FFFD when a character was never completed, otherwise nothing. The decoder is
/// then ready for another text.
///
/// Ownership, threads, errors: as `tidbit_decoder_push`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_decoder_finish(
    decoder: *mut tidbit_decoder,
    buffer: *mut c_char,
    capacity: usize,
    out_length: *mut usize,
) -> Status {
    guard(|| {
        // SAFETY: as in `tidbit_encode`.
        let out = unsafe { Buffer::new(buffer, capacity, out_length)? };
        let decoder = objects::get::<Decoder>(decoder)?;
        let mut stream = decoder.lock()?;
        out.write_text(stream.clone().finish())?;
        stream.clear();
        Ok(())
    })
}

/// Frees a decoder. Null is nothing to free.
///
/// Threads: any.
/// Errors: `TIDBIT_INVALID_HANDLE`, also when it is freed twice.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_decoder_free(decoder: *mut tidbit_decoder) -> Status {
    guard(|| objects::free::<Decoder>(decoder, |_| {}))
}
