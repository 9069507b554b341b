//! The forward pass: one for every architecture, reading the spec.

#![forbid(unsafe_code)]

use crate::backend::{Backend, Epilogue, Part};
use crate::error::SessionError;
use crate::model::Model;
use crate::quant::PANEL_ROWS;
use crate::spec::{Position, Residual, Spec};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// The activations of a batch of tokens.
pub struct Activations<B: Backend> {
    /// The residual stream `[tokens, d_model]`.
    x: B::Buffer,
    /// Normalized for attention, `[tokens, d_model]`.
    attn_in: B::Buffer,
    /// Normalized for the feed-forward network, `[tokens, d_model]`.
    mlp_in: B::Buffer,
    /// Queries, keys and values, `[tokens, (n_heads + 2 n_kv_heads) * head_dim]`.
    qkv: B::Buffer,
    /// What attention gathered, `[tokens, n_heads * head_dim]`.
    attended: B::Buffer,
    /// Inside the feed-forward network, `[tokens, ffn_dim]`.
    inner: B::Buffer,
}

impl<B: Backend> Activations<B> {
    /// Room for batches of up to `max_tokens`.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(backend: &B, spec: &Spec, max_tokens: usize) -> Result<Self, SessionError> {
        let a = &spec.attention;
        let buffer = |cols| backend.buffer(max_tokens, cols);
        Ok(Self {
            x: buffer(spec.d_model)?,
            attn_in: buffer(spec.d_model)?,
            mlp_in: buffer(spec.d_model)?,
            qkv: buffer(a.qkv_rows())?,
            attended: buffer(a.n_heads * a.head_dim)?,
            inner: buffer(spec.mlp.ffn_dim)?,
        })
    }

    /// f32 elements of a batch of `max_tokens`, for an estimate of memory; rows are padded as the processor's are.
    pub fn elements(spec: &Spec, max_tokens: usize) -> usize {
        let a = &spec.attention;
        let cols = [spec.d_model, spec.d_model, spec.d_model, a.qkv_rows(), a.n_heads * a.head_dim, spec.mlp.ffn_dim];
        max_tokens * cols.map(|cols| cols.next_multiple_of(PANEL_ROWS)).iter().sum::<usize>()
    }
}

/// Tokens that run together, of one text or of several.
pub struct Batch<'a, 'b, C> {
    /// The tokens, row by row.
    pub ids: &'a [u32],
    /// Where each stands in its text.
    pub positions: &'a [usize],
    /// Which rows belong to which text, in order and without gaps; the positions are
    /// [reserved](Backend::reserve) in the caches.
    pub parts: &'a mut [Part<'b, C>],
}

/// Runs the blocks over a batch and extends the caches by it.
///
/// Afterwards the residual stream holds the batch; [`finish`] takes rows of it, and [`logits`] makes logits of those.
///
/// # Errors
/// [`SessionError::Cancelled`] when `cancel` is set; it is looked at before every block. The caches then hold nothing
/// new that counts.
pub fn forward<B: Backend>(
    backend: &mut B,
    model: &Model,
    acts: &mut Activations<B>,
    Batch { ids, positions, parts }: Batch<'_, '_, B::Cache>,
    cancel: &AtomicBool,
) -> Result<(), SessionError> {
    let (spec, weights) = (model.spec(), model.weights());
    let all = 0..ids.len();
    backend.embed(weights, ids, positions, &mut acts.x);
    for (i, layer) in weights.layers.iter().enumerate() {
        if cancel.load(Ordering::Relaxed) {
            return Err(SessionError::Cancelled);
        }
        backend.norm(&spec.norm, &layer.attn_norm, (&acts.x, all.clone()), (&mut acts.attn_in, 0));
        if spec.residual == Residual::Parallel {
            backend.norm(&spec.norm, &layer.mlp_norm, (&acts.x, all.clone()), (&mut acts.mlp_in, 0));
        }
        backend.linear(&layer.qkv, &acts.attn_in, all.clone(), Epilogue::Store, &mut acts.qkv);
        if let Position::Rotary(rotary) = &spec.position {
            // Queries and keys stand side by side.
            let heads = spec.attention.n_heads + spec.attention.n_kv_heads;
            backend.rotate(rotary, &mut acts.qkv, positions, heads, spec.attention.head_dim);
        }
        backend.store(spec, parts, i, &acts.qkv);
        backend.attend(spec, parts, i, &acts.qkv, &mut acts.attended);
        backend.linear(&layer.attn_out, &acts.attended, all.clone(), Epilogue::Add, &mut acts.x);
        if spec.residual == Residual::Sequential {
            backend.norm(&spec.norm, &layer.mlp_norm, (&acts.x, all.clone()), (&mut acts.mlp_in, 0));
        }
        let activate = Epilogue::Activate(spec.mlp.activation);
        backend.linear(&layer.up, &acts.mlp_in, all.clone(), activate, &mut acts.inner);
        backend.linear(&layer.down, &acts.inner, all.clone(), Epilogue::Add, &mut acts.x);
    }
    Ok(())
}

/// Rows `at..` of `out` become rows `tokens` of the last batch as the head takes them.
pub fn finish<B: Backend>(
    backend: &mut B,
    model: &Model,
    acts: &Activations<B>,
    tokens: Range<usize>,
    (out, at): (&mut B::Buffer, usize),
) {
    backend.norm(&model.spec().norm, &model.weights().final_norm, (&acts.x, tokens), (out, at));
}

/// The first rows of `out` become the logits of the first `n` rows of `finished`.
pub fn logits<B: Backend>(backend: &mut B, model: &Model, (finished, n): (&B::Buffer, usize), out: &mut B::Buffer) {
    backend.linear(&model.weights().head, finished, 0..n, Epilogue::Store, out);
}
