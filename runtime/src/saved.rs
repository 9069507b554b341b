//! A sequence as bytes: what a program keeps to go on with a text later, or elsewhere.
//!
//! ```text
//! magic    8 bytes   "tidbit-s"
//! version  u32       1
//! cache    u32       how keys and values are kept: 0 f32, 1 f16, 2 q8, 3 q4
//! model    32 bytes  SHA-256 of the model's header, which has the checksum of every tensor
//! counts   u64 x 3   tokens of the text, those of them in the cache, random numbers taken
//! pending  4 bytes   how many bytes of an incomplete character (0 to 3), those bytes, zeros
//! first    u32       the first token that all layers hold: layers with a window have forgotten those before
//! tokens   u32 each
//! cache    for each token in it: [layers][key-value heads][key head_dim, value head_dim, in q8 and q4 an f16 scale of either];
//!          before `first`, of layers without a window only; in q4 a byte is one number of a value, 8 more than it is
//! check    32 bytes  SHA-256 of all before
//! ```
//!
//! Numbers are little-endian. The order of the cache is not that of its pages, so a page may be laid out otherwise later.
//! Tokens that were taken back are not in it, nor anything else that was in memory by chance. What comes from outside is
//! untrusted: everything is checked before anything changes, and any numbers in a cache are numbers. Like the checksums of
//! a model, this one finds damage, not forgery.

#![forbid(unsafe_code)]

use crate::error::{SavedError, SessionError};
use crate::kernels::CacheType;
use crate::model::Model;
use crate::sequence::Sequence;
use sha2::{Digest, Sha256};
use std::io::{self, Write};

const MAGIC: &[u8; 8] = b"tidbit-s";
const VERSION: u32 = 1;
const FIXED: usize = 8 + 4 + 4 + 32 + 3 * 8 + 8;
const CHECK: usize = 32;
/// Bytes of a character that may be missing the rest.
const MOST_PENDING: usize = 3;

/// What is kept beside the cache.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text {
    /// The tokens. The sequence holds the first of them, perhaps all.
    pub tokens: Vec<u32>,
    /// Random numbers that a sampler took.
    pub draws: u64,
    /// Bytes of a character that is not complete, at most 3.
    pub pending: Vec<u8>,
}

/// Checks that sequences of a model can be saved.
///
/// # Errors
/// When it has an encoder: a text without the one it is about is of no use.
pub fn check(model: &Model) -> Result<(), SavedError> {
    if model.encoder().is_some() { Err(SavedError::Encoder) } else { Ok(()) }
}

/// The length in bytes of a saved sequence with a text of `n_tokens`.
pub fn len(sequence: &Sequence, n_tokens: usize) -> usize {
    FIXED + CHECK + n_tokens * 4 + cache_len(sequence, first(sequence), saved_position(sequence))
}

/// Tokens of which the cache is saved: none where it keeps sums, which the tokens are run again for.
fn saved_position(sequence: &Sequence) -> usize {
    if sequence.cache.keeps_tokens() { sequence.position() } else { 0 }
}

/// The first of its tokens that all layers hold.
fn first(sequence: &Sequence) -> usize {
    sequence.cache.first_position().min(sequence.position())
}

/// Bytes of the cache of `position` tokens, of which all layers hold those from `first` on.
fn cache_len(sequence: &Sequence, first: usize, position: usize) -> usize {
    let all = (position - first).saturating_mul(sequence.cache.token_bytes(true));
    first.saturating_mul(sequence.cache.token_bytes(false)).saturating_add(all)
}

/// The most bytes that a saved sequence may have that this one can take.
pub fn most(sequence: &Sequence) -> usize {
    let context = sequence.context();
    (FIXED + CHECK).saturating_add(context.saturating_mul(4 + sequence.cache.token_bytes(true)))
}

/// Writes everything that is digested, and the digest.
struct Digesting<W> {
    out: W,
    digest: Sha256,
}

impl<W: Write> Digesting<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.digest.update(bytes);
        self.out.write_all(bytes)
    }
}

/// Writes a sequence and its text, [`len`] bytes.
///
/// # Errors
/// What `out` answers, and as [`check`].
///
/// # Panics
/// When the sequence holds more tokens than the text has, or there are more than 3 pending bytes.
pub fn write(sequence: &Sequence, text: &Text, out: impl Write) -> io::Result<()> {
    check(sequence.model()).map_err(|e| io::Error::new(io::ErrorKind::Unsupported, e))?;
    let (position, n_pending) = (saved_position(sequence), text.pending.len());
    assert!(position <= text.tokens.len(), "{position} tokens in the cache of a text of {}", text.tokens.len());
    assert!(n_pending <= MOST_PENDING, "{n_pending} bytes are a character");
    let mut out = Digesting { out, digest: Sha256::new() };
    out.put(MAGIC)?;
    out.put(&VERSION.to_le_bytes())?;
    out.put(&cache_number(sequence.cache.cache_type()).to_le_bytes())?;
    out.put(&sequence.model().file().header_digest())?;
    for count in [text.tokens.len() as u64, position as u64, text.draws] {
        out.put(&count.to_le_bytes())?;
    }
    let mut pending = [0; 8];
    pending[0] = n_pending as u8;
    pending[1..=n_pending].copy_from_slice(&text.pending);
    let first = first(sequence);
    // A context has at most 2^24 tokens.
    pending[4..].copy_from_slice(&(first as u32).to_le_bytes());
    out.put(&pending)?;
    for token in &text.tokens {
        out.put(&token.to_le_bytes())?;
    }
    let mut token = vec![0; sequence.cache.token_bytes(true)];
    for position in 0..position {
        let token = &mut token[..sequence.cache.token_bytes(position >= first)];
        sequence.cache.export(position, token);
        out.put(token)?;
    }
    let check = out.digest.finalize();
    out.out.write_all(&check)
}

/// Takes what [`write()`] wrote: a sequence like `like` with that text. Nothing else of `like` matters but its model, its
/// context, and how its cache is kept.
///
/// # Errors
/// As [`check`]; when the bytes are damaged, of another model or another type of cache, or more than the context holds; when memory cannot
/// be had.
pub fn read(like: &Sequence, bytes: &[u8]) -> Result<(Sequence, Text), SavedError> {
    check(like.model())?;
    let damaged = |reason: String| SavedError::Damaged(reason);
    if bytes.len() < FIXED + CHECK || !bytes.starts_with(MAGIC) {
        return Err(damaged(format!("{} bytes, and not the start of one", bytes.len())));
    }
    let (body, check) = bytes.split_at(bytes.len() - CHECK);
    let (fixed, rest) = body.split_at(FIXED);
    let number = |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
    let count = |at: usize| u64::from(number(at)) | (u64::from(number(at + 4)) << 32);
    if number(8) != VERSION {
        return Err(damaged(format!("version {}, this runtime reads {VERSION}", number(8))));
    }
    let expected = like.model().file().header_digest();
    if fixed[16..48] != expected {
        let found = fixed[16..48].try_into().unwrap_or_default();
        return Err(SavedError::OtherModel { found: hex(&found), expected: hex(&expected) });
    }
    if number(12) != cache_number(like.cache.cache_type()) {
        return Err(SavedError::OtherCache);
    }
    let (n_tokens, position, draws) = (count(48), count(56), count(64));
    let context = like.context();
    if n_tokens > context as u64 {
        let needed = usize::try_from(n_tokens).unwrap_or(usize::MAX);
        return Err(SessionError::ContextFull { needed, context }.into());
    }
    // Both are now at most the context.
    let n_tokens = n_tokens as usize;
    if position > n_tokens as u64 {
        return Err(damaged(format!("{position} tokens in the cache of a text of {n_tokens}")));
    }
    let (position, first) = (position as usize, number(76) as usize);
    if first > position || first > 0 && like.cache.token_bytes(true) == like.cache.token_bytes(false) {
        return Err(damaged(format!("the first of {position} tokens in the cache is number {first}")));
    }
    let expected = cache_len(like, first, position).saturating_add(n_tokens * 4);
    if rest.len() != expected {
        return Err(damaged(format!("{} bytes of tokens and cache, expected {expected}", rest.len())));
    }
    if check != &Sha256::digest(body)[..] {
        return Err(damaged("its checksum is wrong".into()));
    }
    let n_pending = usize::from(fixed[72]);
    if n_pending > MOST_PENDING {
        return Err(damaged(format!("an incomplete character of {n_pending} bytes")));
    }
    let (tokens, cache) = rest.split_at(n_tokens * 4);
    let vocab_size = like.model().spec().vocab_size;
    let tokens: Vec<u32> = tokens.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    if let Some(&id) = tokens.iter().find(|&&id| id as usize >= vocab_size) {
        return Err(SessionError::Token { id, vocab_size }.into());
    }
    let mut sequence = like.empty()?;
    let mut rest = cache;
    for position in 0..position {
        let (token, others) = rest.split_at(like.cache.token_bytes(position >= first));
        sequence.cache.import(position, token);
        rest = others;
    }
    sequence.advance(position);
    Ok((sequence, Text { tokens, draws, pending: fixed[73..73 + n_pending].to_vec() }))
}

fn cache_number(cache_type: CacheType) -> u32 {
    match cache_type {
        CacheType::F32 => 0,
        CacheType::F16 => 1,
        CacheType::Q8 => 2,
        CacheType::Q4 => 3,
    }
}

fn hex(digest: &[u8; 32]) -> String {
    crate::format::header::hex(digest)
}
