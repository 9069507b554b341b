//! Text from ids that come one at a time.

use super::Tokenizer;

/// Turns ids into text as they come. Everything it returns, put together, is the lossy UTF-8 of all
/// the tokens' bytes.
#[derive(Debug)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    stream: TextStream,
}

impl<'a> StreamDecoder<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, stream: TextStream) -> Self {
        Self { tokenizer, stream }
    }

    /// The text that `id` completes: whole characters only, often empty within an emoji. A byte that
    /// can never become part of a character is U+FFFD at once.
    pub fn push(&mut self, id: u32) -> &str {
        self.stream.push(self.tokenizer, id)
    }

    /// What is left at the end: U+FFFD when a character was never completed.
    pub fn finish(&mut self) -> &str {
        self.stream.finish()
    }
}

/// A [`StreamDecoder`] that is told each time which tokenizer it belongs to, for whoever owns both.
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    /// The start of a character: at most 3 bytes between calls.
    pending: Vec<u8>,
    text: String,
    /// Whether nothing has come yet of a text from its beginning.
    starts: bool,
}

impl TextStream {
    /// A stream of a text from its beginning.
    pub fn at_start() -> Self {
        Self { starts: true, ..Self::default() }
    }

    /// As [`StreamDecoder::push`].
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> &str {
        tokenizer.push_bytes(id, &mut self.pending);
        if self.starts && !self.pending.is_empty() {
            self.starts = false;
            if self.pending[0] == b' ' && tokenizer.adds_space() {
                self.pending.remove(0);
            }
        }
        self.text.clear();
        let mut done = 0;
        loop {
            let rest = &self.pending[done..];
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    self.text.push_str(valid);
                    done = self.pending.len();
                    break;
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    self.text.push_str(&String::from_utf8_lossy(&rest[..valid]));
                    done += valid;
                    // No length means that the end of the bytes cuts a character: wait for the rest.
                    let Some(invalid) = error.error_len() else { break };
                    self.text.push(char::REPLACEMENT_CHARACTER);
                    done += invalid;
                }
            }
        }
        self.pending.drain(..done);
        &self.text
    }

    /// As [`StreamDecoder::finish`].
    pub fn finish(&mut self) -> &str {
        self.text.clear();
        self.text.push_str(&String::from_utf8_lossy(&self.pending));
        self.pending.clear();
        &self.text
    }

    /// A stream in the middle of a character.
    pub fn with_pending(pending: Vec<u8>) -> Self {
        Self { pending, ..Self::default() }
    }

    /// Bytes of a character that is not complete: at most 3.
    pub fn pending(&self) -> &[u8] {
        &self.pending
    }

    /// Forgets a character that is not complete.
    pub fn clear(&mut self) {
        self.starts = false;
        self.pending.clear();
    }
}
