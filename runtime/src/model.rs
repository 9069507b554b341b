//! An opened model: the file, its weights resolved by role, and its tokenizer.

#![forbid(unsafe_code)]

use crate::error::{FormatError, TokenizerError};
use crate::format::{ModelFile, TOKENIZER_TABLES};
use crate::ops::RelativeKeys;
use crate::quant::Matrix;
use crate::spec::{Head, NormKind, Position, QkNormOver, RelativeBias, Residual, Spec, Trained};
use crate::storage;
use crate::tokenizer::Tokenizer;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// A model, shared by any number of sessions and threads. Cloning shares it.
#[derive(Clone)]
pub struct Model(Arc<Inner>);

struct Inner {
    file: ModelFile,
    /// The file's, or its encoder's.
    spec: Spec,
    weights: Weights,
    encoder: Option<Model>,
    tokenizer: OnceLock<Option<Tokenizer>>,
}

/// The weights, by role.
pub struct Weights {
    /// `[vocab_size, d_model]`, or as wide as the spec's embedding.
    pub embedding: Matrix,
    /// From such rows to `d_model`.
    pub embedding_project: Option<Linear>,
    /// Behind the embedding.
    pub embedding_norm: Option<NormWeights>,
    /// `[context_length, d_model]`, for learned positions.
    pub positions: Option<Matrix>,
    /// One for each block.
    pub layers: Vec<Layer>,
    /// Before the head.
    pub final_norm: Option<NormWeights>,
    /// From `d_model` to the head's width.
    pub head_project: Option<Linear>,
    /// `[vocab_size, d_model]`, or as wide as the embedding, which it is when tied; `None` where there is none.
    pub head: Option<Linear>,
}

/// The weights of one block.
#[derive(Clone)]
pub struct Layer {
    /// Before attention.
    pub attn_norm: Option<NormWeights>,
    /// Queries, keys and values in one: `[(n_heads + 2 n_kv_heads) * head_dim, d_model]`.
    pub qkv: Linear,
    /// Of queries and of keys.
    pub qk_norm: Option<[NormWeights; 2]>,
    /// Beside the products of queries and keys.
    pub scores: ScoreWeights,
    /// `[d_model, n_heads * head_dim]`.
    pub attn_out: Linear,
    /// Behind attention.
    pub attn_post_norm: Option<NormWeights>,
    /// Attention to what an encoder has read.
    pub cross: Option<Cross>,
    /// Before the feed-forward network.
    pub mlp_norm: Option<NormWeights>,
    /// The feed-forward network, or several.
    pub mlp: Mlp,
    /// Behind the feed-forward network.
    pub mlp_post_norm: Option<NormWeights>,
}

/// The weights of a block's attention to another text.
#[derive(Clone)]
pub struct Cross {
    /// Before it.
    pub norm: Option<NormWeights>,
    /// `[n_heads * head_dim, d_model]`, of the block's own stream.
    pub q: Linear,
    /// `[2 n_kv_heads * head_dim, d_model]`, of the encoder's states.
    pub kv: Linear,
    /// `[d_model, n_heads * head_dim]`.
    pub out: Linear,
    /// Behind it.
    pub post_norm: Option<NormWeights>,
}

/// What is trained of scores.
#[derive(Clone, Default)]
pub struct ScoreWeights {
    /// `[n_heads]`, padded; empty where there are none.
    pub sinks: Vec<f32>,
    /// The same for all layers.
    pub relative: Option<Arc<RelativeBiases>>,
    /// Of distances, in each layer.
    pub keys: Option<Arc<RelativeKeys>>,
}

/// Biases of scores by distance.
pub struct RelativeBiases {
    /// `[n_heads][buckets]`.
    pub by_head: Vec<Vec<f32>>,
    /// Buckets of distances from the least on.
    pub buckets: Vec<u16>,
    /// Where distance 0 is.
    pub zero: usize,
}

/// The feed-forward part of a block.
#[derive(Clone)]
pub enum Mlp {
    /// One network.
    One(FeedForward),
    /// Some of several for each token.
    Experts {
        /// `[experts, d_model]`.
        router: Linear,
        /// All of them.
        experts: Vec<FeedForward>,
        /// One for all tokens, and `[1, d_model]` to weigh it.
        shared: Option<(FeedForward, Linear)>,
    },
}

/// A feed-forward network.
#[derive(Clone)]
pub struct FeedForward {
    /// `[ffn_dim, d_model]`.
    pub gate: Option<Linear>,
    /// `[ffn_dim, d_model]`.
    pub up: Linear,
    /// `[d_model, ffn_dim]`.
    pub down: Linear,
}

/// `x wᵀ + bias`.
#[derive(Clone)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Matrix,
    /// `[out]`, padded to 16.
    pub bias: Option<Vec<f32>>,
}

/// Gain and bias of a normalization.
#[derive(Clone)]
pub struct NormWeights {
    /// Ones where nothing is trained.
    pub gain: Vec<f32>,
    /// Zeros where nothing is trained.
    pub bias: Vec<f32>,
}

impl Model {
    /// Opens a model file; tensor data is not read.
    ///
    /// # Errors
    /// As [`ModelFile::open`].
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        Self::new(ModelFile::open(path)?)
    }

    /// A model from an opened file.
    ///
    /// # Errors
    /// When a tensor is missing or of the wrong kind.
    pub fn new(file: ModelFile) -> Result<Self, FormatError> {
        let no_memory = |source| FormatError::Io { path: file.path().into(), source };
        storage::ensure(file.contents().vector_bytes()).map_err(no_memory)?;
        let spec = file.spec().clone();
        let weights = Stack { file: &file, spec: &spec, prefix: "" }.weights()?;
        let encoder = match spec.of_encoder() {
            None => None,
            Some(spec) => {
                let weights = Stack { file: &file, spec: &spec, prefix: "encoder." }.weights()?;
                Some(Self::of(file.clone(), spec, weights, None))
            }
        };
        Ok(Self::of(file, spec, weights, encoder))
    }

    fn of(file: ModelFile, spec: Spec, weights: Weights, encoder: Option<Self>) -> Self {
        Self(Arc::new(Inner { file, spec, weights, encoder, tokenizer: OnceLock::new() }))
    }

    /// Whether it is the same model: opened once, and shared.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The file.
    pub fn file(&self) -> &ModelFile {
        &self.0.file
    }

    /// The architecture.
    pub fn spec(&self) -> &Spec {
        &self.0.spec
    }

    /// The encoder that reads the texts this one writes about, a model of the same file; `None` where there is none.
    pub fn encoder(&self) -> Option<&Self> {
        self.0.encoder.as_ref()
    }

    /// The weights.
    pub fn weights(&self) -> &Weights {
        &self.0.weights
    }

    /// The tokenizer, opened at the first call; `None` when the file has none.
    ///
    /// # Errors
    /// When it cannot be used with this model.
    pub fn tokenizer(&self) -> Result<Option<&Tokenizer>, TokenizerError> {
        if self.0.tokenizer.get().is_none() {
            let stored = self.0.file.tokenizer();
            // What is made of tables takes about their length, what the library makes of a description many times that.
            let times = if matches!(stored, Some((TOKENIZER_TABLES, _))) { 2 } else { 16 };
            let bytes = stored.as_ref().map_or(0, |(_, stored)| stored.len()).saturating_mul(times);
            storage::ensure(bytes).map_err(|source| TokenizerError::Memory { bytes, what: "the tokenizer", source })?;
            let opened = match stored {
                None => None,
                Some((TOKENIZER_TABLES, tables)) => Some(Tokenizer::from_tables(tables)?),
                // A copy: the parser may trust that bytes it checked stay as they are, and mapped ones might not.
                Some((_, json)) => {
                    let json = json.to_vec();
                    Some(Tokenizer::from_json(&json)?)
                }
            };
            if let Some(tokenizer) = &opened {
                tokenizer.check_vocabulary(self.spec().vocab_size)?;
            }
            // Another thread may have been faster; both opened the same.
            let _ = self.0.tokenizer.set(opened);
        }
        Ok(self.0.tokenizer.get().and_then(Option::as_ref))
    }
}

/// Where the weights of a stack are: in tensors whose names begin with `prefix`, but for the embedding, which all stacks share.
struct Stack<'a> {
    file: &'a ModelFile,
    spec: &'a Spec,
    prefix: &'a str,
}

impl Stack<'_> {
    fn weights(&self) -> Result<Weights, FormatError> {
        let Self { file, spec, prefix } = *self;
        let embedding = file.matrix("embed.tokens")?;
        let narrow = spec.embedding.dim.is_some_and(|dim| dim != spec.d_model);
        let head_bias = if spec.logits.bias { Some(file.vector("head.bias")?) } else { None };
        let relative = RelativeBiases::resolve(file, (spec, prefix))?;
        Ok(Weights {
            embedding_project: self.linear_if(narrow, "embed.project", false)?,
            embedding_norm: self.norm_if(spec.embedding.norm, &format!("{prefix}embed.norm"))?,
            positions: match spec.position {
                Position::Learned => Some(file.matrix(&format!("{prefix}embed.positions"))?),
                Position::Sinusoidal(_)
                | Position::Rotary(_)
                | Position::Alibi(_)
                | Position::RelativeBias(_)
                | Position::TransformerXl(_)
                | Position::None => None,
            },
            layers: (0..spec.n_layers).map(|i| self.layer(i, relative.clone())).collect::<Result<_, _>>()?,
            final_norm: self.norm_if(spec.final_norm, &format!("{prefix}final_norm"))?,
            head_project: self.linear_if(narrow && spec.head != Head::None, "head.project", false)?,
            head: match spec.head {
                Head::Tied => Some(Linear { weight: embedding.clone(), bias: head_bias }),
                Head::Untied => Some(Linear { weight: file.matrix("head.weight")?, bias: head_bias }),
                Head::None => None,
            },
            embedding,
        })
    }

    fn layer(&self, i: usize, relative: Option<Arc<RelativeBiases>>) -> Result<Layer, FormatError> {
        let (a, place) = (&self.spec.attention, self.spec.norm.place);
        let two = self.spec.residual != Residual::ParallelOneNorm;
        let name = |part: &str| format!("{}layers.{i}.{part}", self.prefix);
        Ok(Layer {
            attn_norm: self.norm_if(place.before(), &name("attn_norm"))?,
            qkv: self.linear(&name("attn.qkv"), a.qkv_bias)?,
            qk_norm: self.qk_norm(&name("attn"))?,
            scores: ScoreWeights {
                sinks: if a.sinks { self.file.vector(&name("attn.sinks"))? } else { Vec::new() },
                relative,
                keys: self.relative_keys(&name("attn"))?,
            },
            attn_out: self.linear(&name("attn.out"), a.out_bias)?,
            attn_post_norm: self.norm_if(place.behind(), &name("attn_post_norm"))?,
            cross: match &self.spec.encoder {
                None => None,
                Some(_) => Some(Cross {
                    norm: self.norm_if(place.before(), &name("cross_norm"))?,
                    q: self.linear(&name("cross.q"), a.qkv_bias)?,
                    kv: self.linear(&name("cross.kv"), a.qkv_bias)?,
                    out: self.linear(&name("cross.out"), a.out_bias)?,
                    post_norm: self.norm_if(place.behind(), &name("cross_post_norm"))?,
                }),
            },
            mlp_norm: self.norm_if(place.before() && two, &name("mlp_norm"))?,
            mlp: self.mlp(i, &name("mlp"))?,
            mlp_post_norm: self.norm_if(place.behind(), &name("mlp_post_norm"))?,
        })
    }

    fn mlp(&self, i: usize, name: &str) -> Result<Mlp, FormatError> {
        let Some(experts) = self.spec.mlp.experts_of(i) else { return self.feed_forward(name).map(Mlp::One) };
        let shared = || {
            let router = self.linear(&format!("{name}.shared_router"), false)?;
            Ok::<_, FormatError>((self.feed_forward(&format!("{name}.shared"))?, router))
        };
        Ok(Mlp::Experts {
            router: self.linear(&format!("{name}.router"), false)?,
            experts: (0..experts.count)
                .map(|e| self.feed_forward(&format!("{name}.experts.{e}")))
                .collect::<Result<_, _>>()?,
            shared: experts.shared_dim.map(|_| shared()).transpose()?,
        })
    }

    fn feed_forward(&self, name: &str) -> Result<FeedForward, FormatError> {
        let (bias, gated) = (self.spec.mlp.bias, self.spec.mlp.gated);
        Ok(FeedForward {
            gate: self.linear_if(gated, &format!("{name}.gate"), bias)?,
            up: self.linear(&format!("{name}.up"), bias)?,
            down: self.linear(&format!("{name}.down"), bias)?,
        })
    }

    fn qk_norm(&self, name: &str) -> Result<Option<[NormWeights; 2]>, FormatError> {
        let a = &self.spec.attention;
        let Some(qk) = &a.qk_norm else { return Ok(None) };
        let dim = |heads| if qk.over == QkNormOver::Head { a.head_dim } else { heads * a.head_dim };
        let queries = self.norm(&format!("{name}.q_norm"), (qk.kind, qk.trained), dim(a.n_heads))?;
        Ok(Some([queries, self.norm(&format!("{name}.k_norm"), (qk.kind, qk.trained), dim(a.n_kv_heads))?]))
    }

    fn relative_keys(&self, name: &str) -> Result<Option<Arc<RelativeKeys>>, FormatError> {
        let Position::TransformerXl(of) = &self.spec.position else { return Ok(None) };
        let bias = |part: &str| self.file.vector(&format!("{name}.{part}"));
        let weight = self.file.matrix(&format!("{name}.relative.weight"))?;
        Ok(Some(Arc::new(RelativeKeys::new(weight, [bias("content_bias")?, bias("position_bias")?], of))))
    }

    fn linear(&self, name: &str, bias: bool) -> Result<Linear, FormatError> {
        let bias = if bias { Some(self.file.vector(&format!("{name}.bias"))?) } else { None };
        Ok(Linear { weight: self.file.matrix(&format!("{name}.weight"))?, bias })
    }

    fn linear_if(&self, there: bool, name: &str, bias: bool) -> Result<Option<Linear>, FormatError> {
        if there { self.linear(name, bias).map(Some) } else { Ok(None) }
    }

    fn norm(&self, name: &str, (kind, trained): (NormKind, Trained), dim: usize) -> Result<NormWeights, FormatError> {
        let part = |name: String, trained: bool, fill: f32| {
            if trained { self.file.vector(&name) } else { Ok(vec![fill; dim]) }
        };
        let mut gain = part(format!("{name}.weight"), trained != Trained::Nothing, 1.0)?;
        if kind.gain_len(dim) < dim {
            gain = vec![gain[0]; dim];
        }
        let bias = part(format!("{name}.bias"), trained == Trained::GainAndBias, 0.0)?;
        Ok(NormWeights { gain, bias })
    }

    fn norm_if(&self, there: bool, name: &str) -> Result<Option<NormWeights>, FormatError> {
        let norm = &self.spec.norm;
        if there { self.norm(name, (norm.kind, norm.trained), self.spec.d_model).map(Some) } else { Ok(None) }
    }
}

impl RelativeBiases {
    fn resolve(file: &ModelFile, (spec, prefix): (&Spec, &str)) -> Result<Option<Arc<Self>>, FormatError> {
        let Position::RelativeBias(bias) = &spec.position else { return Ok(None) };
        let table = file.matrix(&format!("{prefix}relative_bias"))?;
        Ok(Some(Arc::new(Self::new(&table, bias, spec.attention.causal))))
    }

    /// Of a table `[buckets, n_heads]`.
    fn new(table: &Matrix, bias: &RelativeBias, causal: bool) -> Self {
        let mut by_head = vec![vec![0.0; bias.buckets]; table.cols()];
        let mut row = vec![0.0; table.cols()];
        for bucket in 0..bias.buckets {
            table.decode_row(bucket, &mut row);
            by_head.iter_mut().zip(&row).for_each(|(head, x)| head[bucket] = *x);
        }
        let (buckets, zero) = bias.table(causal);
        Self { by_head, buckets, zero }
    }
}
