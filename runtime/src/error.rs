//! What can go wrong, one enum per layer.
//!
//! Every message is one line, names the thing and gives both values: what was found and what was
//! expected. Messages start in lower case and end without a full stop; callers may add a `hint:`.

#![forbid(unsafe_code)]

use std::path::PathBuf;

/// A model file that cannot be opened or trusted.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Its answer.
        source: std::io::Error,
    },
    /// The file cannot be kept in memory.
    #[error("{}: cannot lock its {bytes} bytes in memory: {source}", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: usize,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// Something that is not a regular file.
    #[error("{}: expected a model file, found a {found}", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// The container (a safetensors file) is damaged.
    #[error("{}: {reason}", path.display())]
    Container {
        /// The file.
        path: PathBuf,
        /// What is wrong, with values.
        reason: String,
    },
    /// A sound safetensors file that is not a Tidbit model.
    #[error("{}: not a tidbit model (its header has no `{missing}`)", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The metadata key that every model has.
        missing: &'static str,
    },
    /// Written by a converter this runtime does not know.
    #[error("{}: `{field}` is {found:?}, this runtime reads {supported:?}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Which part of the format.
        field: &'static str,
        /// What the file has.
        found: String,
        /// What this runtime reads.
        supported: &'static str,
    },
    /// The header contradicts itself.
    #[error("{}: {reason}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong, with values.
        reason: String,
    },
    /// One tensor is wrong.
    #[error("{}: tensor `{tensor}`: {reason}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// Its name.
        tensor: String,
        /// What is wrong, with both values.
        reason: String,
    },
}

/// A tokenizer that cannot be used, or text it cannot handle.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The description is not one the tokenizer library understands.
    #[error("tokenizer.json: {0}")]
    Parse(String),
    /// The tables are damaged.
    #[error("tokenizer.bpe: {0}")]
    Tables(String),
    /// A part that this runtime does not run.
    #[error("tokenizer.json: `{field}` is {found}, supported: {supported}")]
    Unsupported {
        /// Which part.
        field: &'static str,
        /// What it is.
        found: String,
        /// What it may be.
        supported: &'static str,
    },
    /// It has ids that the model has no row for.
    #[error("tokenizer: token {token:?} has id {id}, but the model's vocabulary has {vocab_size} entries")]
    Vocabulary {
        /// The text of the token.
        token: String,
        /// Its id.
        id: u32,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// It failed on a text.
    #[error("cannot tokenize: {0}")]
    Encode(String),
    /// There is not so much memory.
    #[error("cannot allocate {bytes} bytes for {what}: {source}")]
    Memory {
        /// About what it takes.
        bytes: usize,
        /// What for.
        what: &'static str,
        /// The operating system's answer.
        source: std::io::Error,
    },
}

/// A session that cannot be made, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No token to start from.
    #[error("the prompt is empty: at least one token is needed")]
    EmptyPrompt,
    /// More tokens than the context holds.
    #[error("{needed} tokens do not fit a context of {context}")]
    ContextFull {
        /// Tokens in the context after this call.
        needed: usize,
        /// What the context holds.
        context: usize,
    },
    /// A text of a model that was opened apart from the engine's.
    #[error("{}: a text of another model, this engine runs {}", found.display(), expected.display())]
    OtherModel {
        /// The file of the text's model.
        found: PathBuf,
        /// The file of the engine's.
        expected: PathBuf,
    },
    /// Logits after more tokens than there are, or than run together.
    #[error("logits after {asked} tokens are not possible, expected at most {most}")]
    LogitRows {
        /// What was asked.
        asked: usize,
        /// The most.
        most: usize,
    },
    /// The context asked for is out of range.
    #[error("a context of {asked} tokens is not possible, this model takes 1 to {most}")]
    Context {
        /// What was asked.
        asked: usize,
        /// The model's own limit.
        most: usize,
    },
    /// A thread count out of range.
    #[error("{asked} threads are not possible, expected 1 to {most}")]
    Threads {
        /// What was asked.
        asked: usize,
        /// The limit.
        most: usize,
    },
    /// A token id that the model has no row for.
    #[error("token id {id} is outside the vocabulary of {vocab_size}")]
    Token {
        /// The id.
        id: u32,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// A text that was taken back further than its cache reaches.
    #[error(
        "cannot go on at position {position}: what the model needs of the text before it is held from position {from} on"
    )]
    Rolled {
        /// Where the text should go on.
        position: usize,
        /// The first position that is held.
        from: usize,
    },
    /// More tokens for a text that runs at once.
    #[error("this model reads a text at once, and {position} tokens have been read: no more can follow")]
    AtOnce {
        /// Tokens of the text.
        position: usize,
    },
    /// Logits of a model without a head.
    #[error("this model makes embeddings of texts, no logits: it cannot write or score a text")]
    NoHead,
    /// A text of a model that writes about another one, which it was not given.
    #[error("this model writes about a text that its encoder reads, and none was given to it")]
    NothingRead,
    /// A text for an encoder that there is not.
    #[error("this model has no encoder that could read a text beforehand")]
    NoEncoder,
    /// Memory could not be had.
    #[error("cannot allocate {bytes} bytes for {what}: {source}")]
    Memory {
        /// How much.
        bytes: usize,
        /// What for.
        what: &'static str,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// Stopped by the caller.
    #[error("cancelled")]
    Cancelled,
    /// The model computed something that is not a number.
    #[error("the model's logits are not finite (the first is token {token}: {value}); the file may be damaged")]
    NotFinite {
        /// The first such token.
        token: usize,
        /// Its logit.
        value: f32,
    },
    /// The same of hidden states.
    #[error(
        "the model's embedding is not finite (the first is dimension {dimension}: {value}); the file may be damaged"
    )]
    EmbeddingNotFinite {
        /// The first such dimension.
        dimension: usize,
        /// Its value.
        value: f32,
    },
    /// The kernels asked for are not to be had.
    #[error(transparent)]
    Isa(#[from] IsaError),
    /// Threads could not be started.
    #[error("cannot start worker threads: {0}")]
    Spawn(std::io::Error),
}

/// A model that cannot guess for another.
#[derive(Debug, thiserror::Error)]
pub enum DraftError {
    /// It would have to read what the other does.
    #[error("{}: it writes about a text that its encoder reads: it cannot draft for another", draft.display())]
    Encoder {
        /// The file of the smaller model.
        draft: PathBuf,
    },
    /// Another number of tokens.
    #[error(
        "{}: its vocabulary has {draft_size} tokens, that of {} has {target_size}: it cannot draft for it",
        draft.display(),
        target.display()
    )]
    Vocabulary {
        /// The file of the smaller model.
        draft: PathBuf,
        /// Its tokens.
        draft_size: usize,
        /// The file of the model it should guess for.
        target: PathBuf,
        /// Its tokens.
        target_size: usize,
    },
    /// As many tokens, but other ones.
    #[error(
        "{}: its tokenizer is not that of {}, vocabularies of {size} tokens: it cannot draft for it",
        draft.display(),
        target.display()
    )]
    Tokenizer {
        /// The file of the smaller model.
        draft: PathBuf,
        /// The file of the model it should guess for.
        target: PathBuf,
        /// Tokens of either.
        size: usize,
    },
    /// Its session cannot be made.
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// A saved sequence that cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// It is not what was written.
    #[error("not a saved session, or a damaged one: {0}")]
    Damaged(String),
    /// It belongs to another model.
    #[error("a saved session of another model: its header has sha256 {found}, expected {expected}")]
    OtherModel {
        /// What was saved.
        found: String,
        /// That of the model at hand.
        expected: String,
    },
    /// Its model has an encoder, and what that has read is not saved.
    #[error("a session of a model with an encoder cannot be saved: begin it anew")]
    Encoder,
    /// Its keys and values are of another type.
    #[error("a saved session whose cache is kept in another type")]
    OtherCache,
    /// It does not fit, or memory cannot be had.
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// A sampling option out of range.
#[derive(Debug, thiserror::Error)]
#[error("`{option}` is {value}, expected {expected}")]
pub struct SamplerError {
    /// Which option.
    pub option: &'static str,
    /// Its value.
    pub value: String,
    /// What it may be.
    pub expected: &'static str,
}

/// `TIDBIT_ISA` asks for kernels that are unknown or that this processor cannot run.
#[derive(Debug, thiserror::Error)]
#[error("TIDBIT_ISA is {asked:?}, this processor runs: {supported}")]
pub struct IsaError {
    /// What was asked.
    pub asked: String,
    /// What could be asked.
    pub supported: String,
}

/// A text that cannot be evaluated.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// Nothing to score.
    #[error("the text has {tokens} tokens, at least {needed} are needed to score one")]
    TooShort {
        /// Its tokens.
        tokens: usize,
        /// The fewest that would do.
        needed: usize,
    },
    /// A window that scores nothing or does not fit.
    #[error("{}: a window of {window} tokens is not possible, expected 2 to {most}", model.display())]
    Window {
        /// The file of the model.
        model: PathBuf,
        /// What was asked.
        window: usize,
        /// The longest.
        most: usize,
    },
    /// So much context that nothing is left of a window.
    #[error("skipping {skip} tokens of a window of {window} leaves nothing to score, expected 0 to {most}", most = window - 2)]
    Skip {
        /// What was asked.
        skip: usize,
        /// Tokens of a window, at least 2.
        window: usize,
    },
    /// A reference with another number of tokens.
    #[error(
        "{}: its vocabulary has {reference_size} tokens, that of {} has {model_size}: they cannot be compared",
        reference.display(),
        model.display()
    )]
    Vocabulary {
        /// The file of the reference.
        reference: PathBuf,
        /// Its tokens.
        reference_size: usize,
        /// The file of the model.
        model: PathBuf,
        /// Its tokens.
        model_size: usize,
    },
    /// A model computed something that is not a number.
    #[error(
        "{}: the logits after token {position} of the text are not finite (the first is token id {token}: {value}); \
         the file may be damaged",
        model.display()
    )]
    NotFinite {
        /// The file of the model.
        model: PathBuf,
        /// Where in the text.
        position: usize,
        /// The first such token id.
        token: usize,
        /// Its logit.
        value: f32,
    },
    /// The session failed.
    #[error(transparent)]
    Session(#[from] SessionError),
}
