//! An opened model: the file, its weights resolved by role, and its tokenizer.

#![forbid(unsafe_code)]

use crate::error::{FormatError, TokenizerError};
use crate::format::{ModelFile, TOKENIZER_TABLES};
use crate::quant::Matrix;
use crate::spec::{Head, NormKind, Position, Spec};
use crate::tokenizer::Tokenizer;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// A model, shared by any number of sessions and threads. Cloning shares it.
#[derive(Clone)]
pub struct Model(Arc<Inner>);

struct Inner {
    file: ModelFile,
    weights: Weights,
    tokenizer: OnceLock<Option<Tokenizer>>,
}

/// The weights, by role.
pub struct Weights {
    /// `[vocab_size, d_model]`.
    pub embedding: Matrix,
    /// `[context_length, d_model]`, for learned positions.
    pub positions: Option<Matrix>,
    /// One for each block.
    pub layers: Vec<Layer>,
    /// Before the head.
    pub final_norm: NormWeights,
    /// `[vocab_size, d_model]`; the embedding itself when tied.
    pub head: Linear,
}

/// The weights of one block.
pub struct Layer {
    /// Before attention.
    pub attn_norm: NormWeights,
    /// Queries, keys and values in one: `[(n_heads + 2 n_kv_heads) * head_dim, d_model]`.
    pub qkv: Linear,
    /// `[d_model, n_heads * head_dim]`.
    pub attn_out: Linear,
    /// Before the feed-forward network.
    pub mlp_norm: NormWeights,
    /// `[ffn_dim, d_model]`.
    pub up: Linear,
    /// `[d_model, ffn_dim]`.
    pub down: Linear,
}

/// `x wᵀ + bias`.
pub struct Linear {
    /// `[out, in]`.
    pub weight: Matrix,
    /// `[out]`, padded to 16.
    pub bias: Option<Vec<f32>>,
}

/// Gain and bias of a normalization, padded to 16.
pub struct NormWeights {
    /// Gain.
    pub weight: Vec<f32>,
    /// Bias.
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
        let weights = Weights::resolve(&file)?;
        Ok(Self(Arc::new(Inner { file, weights, tokenizer: OnceLock::new() })))
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
        self.0.file.spec()
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
            let opened = match self.0.file.tokenizer() {
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

impl Weights {
    fn resolve(file: &ModelFile) -> Result<Self, FormatError> {
        let spec = file.spec();
        let linear = |name: &str, bias: bool| {
            let bias = if bias { Some(file.vector(&format!("{name}.bias"))?) } else { None };
            Ok::<_, FormatError>(Linear { weight: file.matrix(&format!("{name}.weight"))?, bias })
        };
        let norm = |name: &str| match spec.norm.kind {
            NormKind::LayerNorm => Ok::<_, FormatError>(NormWeights {
                weight: file.vector(&format!("{name}.weight"))?,
                bias: file.vector(&format!("{name}.bias"))?,
            }),
        };
        let layer = |i: usize| {
            Ok::<_, FormatError>(Layer {
                attn_norm: norm(&format!("layers.{i}.attn_norm"))?,
                qkv: linear(&format!("layers.{i}.attn.qkv"), spec.attention.qkv_bias)?,
                attn_out: linear(&format!("layers.{i}.attn.out"), spec.attention.out_bias)?,
                mlp_norm: norm(&format!("layers.{i}.mlp_norm"))?,
                up: linear(&format!("layers.{i}.mlp.up"), spec.mlp.bias)?,
                down: linear(&format!("layers.{i}.mlp.down"), spec.mlp.bias)?,
            })
        };
        let embedding = file.matrix("embed.tokens")?;
        Ok(Self {
            positions: match spec.position {
                Position::Learned => Some(file.matrix("embed.positions")?),
                Position::Rotary(_) => None,
            },
            layers: (0..spec.n_layers).map(layer).collect::<Result<_, _>>()?,
            final_norm: norm("final_norm")?,
            head: match spec.head {
                Head::Tied => Linear { weight: embedding.clone(), bias: None },
                Head::Untied => linear("head", false)?,
            },
            embedding,
        })
    }
}
