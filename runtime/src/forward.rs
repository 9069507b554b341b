//! The forward pass: one for every architecture, reading the spec.

#![forbid(unsafe_code)]

use crate::backend::{Backend, Epilogue, Part};
use crate::error::SessionError;
use crate::model::{Cross, FeedForward, Layer, Linear, Mlp, Model, NormWeights};
use crate::quant::{Matrix, PANEL_ROWS};
use crate::spec::{Experts, Place, Position, Residual, Spec};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// The activations of a batch of tokens.
pub struct Activations<B: Backend> {
    /// The residual stream `[tokens, d_model]`.
    x: B::Buffer,
    /// Rows as wide as the embedding, where that is not `d_model`.
    narrow: Option<B::Buffer>,
    /// Normalized for attention, `[tokens, d_model]`; then free.
    attn_in: B::Buffer,
    /// Normalized for the feed-forward network, `[tokens, d_model]`; then free.
    mlp_in: B::Buffer,
    /// Queries, keys and values, `[tokens, (n_heads + 2 n_kv_heads) * head_dim]`.
    qkv: B::Buffer,
    /// What attention gathered, `[tokens, n_heads * head_dim]`.
    attended: B::Buffer,
    /// Inside the feed-forward network, `[tokens, ffn_dim]`.
    inner: B::Buffer,
    experts: Option<ExpertActivations<B>>,
    cross: Option<CrossActivations<B>>,
}

/// The activations of tokens that look at another text, and of that text's.
struct CrossActivations<B: Backend> {
    /// `[tokens, n_heads * head_dim]`.
    queries: B::Buffer,
    /// Keys and values, `[tokens, 2 n_kv_heads * head_dim]`.
    kv: B::Buffer,
}

/// The activations of tokens that take different experts.
struct ExpertActivations<B: Backend> {
    /// What a router says, `[tokens, experts]`.
    scores: B::Buffer,
    /// What the shared expert's says, `[tokens, 1]`.
    shared_score: B::Buffer,
    /// Inside an expert, `[tokens, ffn_dim]` of experts.
    inner: B::Buffer,
    /// Inside the shared one.
    shared_inner: B::Buffer,
    /// What one of them makes, `[tokens, d_model]`.
    out: B::Buffer,
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
            narrow: narrow(spec).map(buffer).transpose()?,
            attn_in: buffer(spec.d_model)?,
            mlp_in: buffer(spec.d_model)?,
            qkv: buffer(a.qkv_rows())?,
            attended: buffer(a.n_heads * a.head_dim)?,
            inner: buffer(plain_dim(spec))?,
            experts: match &spec.mlp.experts {
                None => None,
                Some(experts) => Some(ExpertActivations {
                    scores: buffer(experts.count)?,
                    shared_score: buffer(1)?,
                    inner: buffer(experts.ffn_dim)?,
                    shared_inner: buffer(experts.shared_dim.unwrap_or(1))?,
                    out: buffer(spec.d_model)?,
                }),
            },
            cross: match &spec.encoder {
                None => None,
                Some(_) => {
                    Some(CrossActivations { queries: buffer(a.n_heads * a.head_dim)?, kv: buffer(a.kv_rows())? })
                }
            },
        })
    }

    /// The residual stream `[tokens, d_model]`.
    pub fn residual(&mut self) -> &mut B::Buffer {
        &mut self.x
    }

    /// f32 elements of a batch of `max_tokens`, for an estimate of memory; rows are padded as the processor's are.
    pub fn elements(spec: &Spec, max_tokens: usize) -> usize {
        let a = &spec.attention;
        let experts = |e: &Experts| vec![e.count, 1, e.ffn_dim, e.shared_dim.unwrap_or(1), spec.d_model];
        let mut cols =
            vec![spec.d_model, spec.d_model, spec.d_model, a.qkv_rows(), a.n_heads * a.head_dim, plain_dim(spec)];
        cols.extend(narrow(spec));
        cols.extend(spec.mlp.experts.iter().flat_map(experts));
        cols.extend(spec.encoder.iter().flat_map(|_| [a.n_heads * a.head_dim, a.kv_rows()]));
        max_tokens * cols.iter().map(|cols| cols.next_multiple_of(PANEL_ROWS)).sum::<usize>()
    }
}

/// The inner width of networks that are no experts; 1 where no layer has one, because a buffer has columns.
fn plain_dim(spec: &Spec) -> usize {
    spec.mlp.plain_dim(spec.n_layers).unwrap_or(1)
}

/// The width of the embedding's rows, where it is not `d_model`.
fn narrow(spec: &Spec) -> Option<usize> {
    spec.embedding.dim.filter(|&dim| dim != spec.d_model)
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
    embed(backend, model, acts, ids, positions);
    for (i, layer) in model.weights().layers.iter().enumerate() {
        if cancel.load(Ordering::Relaxed) {
            return Err(SessionError::Cancelled);
        }
        block(backend, (model.spec(), layer, i), acts, positions, parts);
    }
    Ok(())
}

/// Runs block `i` over the residual stream.
pub fn block<B: Backend>(
    backend: &mut B,
    (spec, layer, i): (&Spec, &Layer, usize),
    acts: &mut Activations<B>,
    positions: &[usize],
    parts: &mut [Part<'_, B::Cache>],
) {
    attention(backend, (spec, layer, i), acts, positions, parts);
    if let Some(cross) = &layer.cross {
        cross_attention(backend, (spec, cross, i), acts, 0..positions.len(), parts);
    }
    feed_forward(backend, (spec, layer), acts, 0..positions.len());
}

/// Fills the residual stream.
pub fn embed<B: Backend>(backend: &mut B, model: &Model, acts: &mut Activations<B>, ids: &[u32], positions: &[usize]) {
    embed_with(backend, model, &model.weights().embedding, acts, ids, positions);
}

/// The same with another table.
pub fn embed_with<B: Backend>(
    backend: &mut B,
    model: &Model,
    table: &Matrix,
    acts: &mut Activations<B>,
    ids: &[u32],
    positions: &[usize],
) {
    let (spec, weights, all) = (model.spec(), model.weights(), 0..ids.len());
    let table = (table, spec.embedding.scale);
    if let (Some(narrow), Some(project)) = (&mut acts.narrow, &weights.embedding_project) {
        backend.embed(table, ids, narrow);
        backend.linear(project, narrow, all.clone(), Epilogue::Store, &mut acts.x);
    } else {
        backend.embed(table, ids, &mut acts.x);
    }
    if let Some(places) = &weights.positions {
        backend.embed_positions(places, positions, &mut acts.x);
    }
    if let Position::Sinusoidal(of) = &spec.position {
        backend.embed_sinusoids(of, positions, &mut acts.x);
    }
    if let Some(norm) = &weights.embedding_norm {
        norm_x(backend, spec, norm, (&mut acts.x, &mut acts.attn_in), all);
    }
}

/// The attention half of block `i`, and the norm of the other half where that takes the same input.
fn attention<B: Backend>(
    backend: &mut B,
    (spec, layer, i): (&Spec, &Layer, usize),
    acts: &mut Activations<B>,
    positions: &[usize],
    parts: &mut [Part<'_, B::Cache>],
) {
    let (a, all) = (&spec.attention, 0..positions.len());
    let kind = |norm| (spec.norm.kind, spec.norm.eps, norm);
    if let Some(norm) = &layer.attn_norm {
        backend.norm(kind(norm), (&acts.x, all.clone()), (&mut acts.attn_in, 0));
    }
    if let (Residual::Parallel, Some(norm)) = (spec.residual, &layer.mlp_norm) {
        backend.norm(kind(norm), (&acts.x, all.clone()), (&mut acts.mlp_in, 0));
    }
    let input = if layer.attn_norm.is_some() { &acts.attn_in } else { &acts.x };
    backend.linear(&layer.qkv, input, all.clone(), Epilogue::Store, &mut acts.qkv);
    if let Some(most) = a.clip {
        backend.clip(&mut acts.qkv, all.len(), most);
    }
    if let Some(norm) = &layer.qk_norm {
        backend.norm_heads(spec, norm, &mut acts.qkv, all.len());
    }
    if let Position::Rotary(rotary) = &spec.position {
        let rotary = a.window_of(i).and_then(|w| w.rotary.as_ref()).unwrap_or(rotary);
        // Queries and keys stand side by side.
        backend.rotate(rotary, &mut acts.qkv, positions, a.n_heads + a.n_kv_heads, a.head_dim);
    }
    if let Some(map) = a.feature_map {
        backend.attend_linearly((spec, map), parts, i, &acts.qkv, &mut acts.attended);
    } else {
        backend.store(spec, parts, i, &acts.qkv);
        backend.attend(spec, &layer.scores, parts, i, &acts.qkv, &mut acts.attended);
    }
    if spec.residual == Residual::FromNorm {
        std::mem::swap(&mut acts.x, &mut acts.attn_in);
    }
    scale_stream(backend, spec, &mut acts.x, all.len());
    let free = match spec.residual {
        // The other half wants its input still; there is no norm behind attention then.
        Residual::ParallelOneNorm => (&mut acts.mlp_in, None),
        Residual::Parallel => (&mut acts.attn_in, None),
        Residual::Sequential | Residual::FromNorm => (&mut acts.attn_in, Some(&mut acts.mlp_in)),
    };
    join(backend, spec, (&layer.attn_out, &acts.attended, all), layer.attn_post_norm.as_ref(), free, &mut acts.x);
}

/// Between the halves of block `i`: attention to the text that an encoder has read. Only sequential blocks have it.
fn cross_attention<B: Backend>(
    backend: &mut B,
    (spec, cross, i): (&Spec, &Cross, usize),
    acts: &mut Activations<B>,
    all: Range<usize>,
    parts: &[Part<'_, B::Cache>],
) {
    let Some(room) = &mut acts.cross else { unreachable!("there is room where the spec has an encoder") };
    if let Some(norm) = &cross.norm {
        backend.norm((spec.norm.kind, spec.norm.eps, norm), (&acts.x, all.clone()), (&mut acts.attn_in, 0));
    }
    let input = if cross.norm.is_some() { &acts.attn_in } else { &acts.x };
    backend.linear(&cross.q, input, all.clone(), Epilogue::Store, &mut room.queries);
    backend.attend_memory(spec, parts, i, &room.queries, &mut acts.attended);
    scale_stream(backend, spec, &mut acts.x, all.len());
    let free = (&mut acts.attn_in, Some(&mut acts.mlp_in));
    join(backend, spec, (&cross.out, &acts.attended, all), cross.post_norm.as_ref(), free, &mut acts.x);
}

/// Puts into `memory` the keys and values that the blocks of a decoder will look at: those of the residual stream, in which its
/// `encoder` has just left `n_tokens`.
///
/// # Errors
/// [`SessionError::Cancelled`] when `cancel` is set; it is looked at before every block.
pub fn remember<B: Backend>(
    backend: &mut B,
    (model, encoder): (&Model, &Model),
    (acts, n_tokens): (&mut Activations<B>, usize),
    memory: &mut B::Cache,
    cancel: &AtomicBool,
) -> Result<(), SessionError> {
    if let Some(norm) = &encoder.weights().final_norm {
        norm_x(backend, encoder.spec(), norm, (&mut acts.x, &mut acts.attn_in), 0..n_tokens);
    }
    let Some(room) = &mut acts.cross else { unreachable!("there is room where the spec has an encoder") };
    let crosses = model.weights().layers.iter().filter_map(|layer| layer.cross.as_ref());
    for (i, cross) in crosses.enumerate() {
        if cancel.load(Ordering::Relaxed) {
            return Err(SessionError::Cancelled);
        }
        backend.linear(&cross.kv, &acts.x, 0..n_tokens, Epilogue::Store, &mut room.kv);
        backend.remember(memory, i, &room.kv, n_tokens);
    }
    Ok(())
}

/// Multiplies the residual stream by its scale.
fn scale_stream<B: Backend>(backend: &mut B, spec: &Spec, x: &mut B::Buffer, n_tokens: usize) {
    if spec.scales.stream != 1.0 {
        backend.scale(x, n_tokens, spec.scales.stream);
    }
}

/// The other half of a block.
fn feed_forward<B: Backend>(
    backend: &mut B,
    (spec, layer): (&Spec, &Layer),
    acts: &mut Activations<B>,
    all: Range<usize>,
) {
    let input = match (spec.residual, &layer.mlp_norm) {
        (Residual::ParallelOneNorm, _) => &acts.attn_in,
        (Residual::Parallel, Some(_)) => &acts.mlp_in,
        (_, Some(norm)) => {
            backend.norm((spec.norm.kind, spec.norm.eps, norm), (&acts.x, all.clone()), (&mut acts.mlp_in, 0));
            &acts.mlp_in
        }
        (_, None) => &acts.x,
    };
    let network = match (&layer.mlp, &mut acts.experts) {
        (Mlp::One(network), _) => network,
        (Mlp::Experts { router, experts, shared }, Some(room)) => {
            // Sequential, norms before: `mlp_in` is the input, and `attn_in` is free.
            scale_stream(backend, spec, &mut acts.x, all.len());
            let buffers = (&acts.mlp_in, &mut acts.attn_in, room, &mut acts.x);
            return mixture(backend, spec, (router, experts, shared.as_ref()), buffers, all);
        }
        (Mlp::Experts { .. }, None) => unreachable!("there is room where the spec has experts"),
    };
    enter(backend, spec, network, (input, all.clone()), &mut acts.inner);
    if spec.residual == Residual::FromNorm {
        std::mem::swap(&mut acts.x, &mut acts.mlp_in);
    }
    if matches!(spec.residual, Residual::Sequential | Residual::FromNorm) {
        scale_stream(backend, spec, &mut acts.x, all.len());
    }
    let free = (&mut acts.attn_in, Some(&mut acts.mlp_in));
    join(backend, spec, (&network.down, &acts.inner, all), layer.mlp_post_norm.as_ref(), free, &mut acts.x);
}

/// The first half of a feed-forward network.
fn enter<B: Backend>(
    backend: &mut B,
    spec: &Spec,
    network: &FeedForward,
    (input, tokens): (&B::Buffer, Range<usize>),
    inner: &mut B::Buffer,
) {
    let activate = Epilogue::Activate(spec.mlp.activation);
    if let Some(gate) = &network.gate {
        backend.linear(gate, input, tokens.clone(), activate, inner);
        backend.linear(&network.up, input, tokens, Epilogue::Multiply, inner);
    } else {
        backend.linear(&network.up, input, tokens, activate, inner);
    }
}

/// Adds to the residual stream `x` what the experts make of each token that takes them. Those that none takes are not read.
fn mixture<B: Backend>(
    backend: &mut B,
    spec: &Spec,
    (router, experts, shared): (&Linear, &[FeedForward], Option<&(FeedForward, Linear)>),
    (input, gathered, room, x): (&B::Buffer, &mut B::Buffer, &mut ExpertActivations<B>, &mut B::Buffer),
    all: Range<usize>,
) {
    let Some(about) = &spec.mlp.experts else { return };
    backend.linear(router, input, all.clone(), Epilogue::Store, &mut room.scores);
    let chosen = backend.choose(&room.scores, all.len(), (about.used, about.renormalized));
    for (expert, network) in experts.iter().enumerate() {
        let of_it = chosen.iter().filter(|c| c.expert == expert);
        let rows: Vec<(usize, f32)> = of_it.map(|c| (c.row, c.weight * spec.scales.branch)).collect();
        if rows.is_empty() {
            continue;
        }
        backend.gather(input, &rows, gathered);
        enter(backend, spec, network, (gathered, 0..rows.len()), &mut room.inner);
        backend.linear(&network.down, &room.inner, 0..rows.len(), Epilogue::Store, &mut room.out);
        backend.scatter(&room.out, &rows, x);
    }
    if let Some((network, router)) = shared {
        backend.linear(router, input, all.clone(), Epilogue::Store, &mut room.shared_score);
        enter(backend, spec, network, (input, all.clone()), &mut room.shared_inner);
        backend.linear(&network.down, &room.shared_inner, all.clone(), Epilogue::Store, &mut room.out);
        let sigmoid = |x: f32| 1.0 / (1.0 + libm::expf(-x));
        let score = |row| backend.read(&room.shared_score, row).first().copied().unwrap_or(0.0);
        let rows: Vec<(usize, f32)> = all.map(|row| (row, sigmoid(score(row)) * spec.scales.branch)).collect();
        backend.scatter(&room.out, &rows, x);
    }
}

/// Adds a projection to the residual stream `x`, with the norm that stands behind it, if one does. Of the free buffers the
/// second is needed for a norm of the projection.
fn join<B: Backend>(
    backend: &mut B,
    spec: &Spec,
    (linear, from, all): (&Linear, &B::Buffer, Range<usize>),
    norm: Option<&NormWeights>,
    (spare, other): (&mut B::Buffer, Option<&mut B::Buffer>),
    x: &mut B::Buffer,
) {
    let (n_tokens, scale) = (all.len(), spec.scales.branch);
    let after = spec.norm.place == Place::After;
    match (norm.filter(|_| !after), other) {
        (Some(norm), Some(other)) => {
            backend.linear(linear, from, all.clone(), Epilogue::Store, spare);
            backend.norm((spec.norm.kind, spec.norm.eps, norm), (spare, all.clone()), (&mut *other, 0));
            if scale != 1.0 {
                backend.scale(other, n_tokens, scale);
            }
            backend.add(other, n_tokens, x);
        }
        _ if scale == 1.0 => backend.linear(linear, from, all.clone(), Epilogue::Add, x),
        _ => {
            backend.linear(linear, from, all.clone(), Epilogue::Store, spare);
            backend.scale(spare, n_tokens, scale);
            backend.add(spare, n_tokens, x);
        }
    }
    if let Some(norm) = norm.filter(|_| after) {
        norm_x(backend, spec, norm, (x, spare), all);
    }
}

/// Normalizes the residual stream itself.
fn norm_x<B: Backend>(
    backend: &mut B,
    spec: &Spec,
    norm: &NormWeights,
    (x, free): (&mut B::Buffer, &mut B::Buffer),
    all: Range<usize>,
) {
    backend.norm((spec.norm.kind, spec.norm.eps, norm), (x, all), (&mut *free, 0));
    std::mem::swap(x, free);
}

/// Rows `at..` of `out` become rows `tokens` of the last batch as the head takes them.
pub fn finish<B: Backend>(
    backend: &mut B,
    model: &Model,
    acts: &Activations<B>,
    tokens: Range<usize>,
    (out, at): (&mut B::Buffer, usize),
) {
    let norm = &model.spec().norm;
    match &model.weights().final_norm {
        Some(weights) => backend.norm((norm.kind, norm.eps, weights), (&acts.x, tokens), (out, at)),
        None => backend.copy((&acts.x, tokens), (out, at)),
    }
}

/// The first rows of `out` become the logits of the first `n` rows of `finished`; nothing happens without a head.
pub fn logits<B: Backend>(
    backend: &mut B,
    model: &Model,
    acts: &mut Activations<B>,
    finished: (&B::Buffer, usize),
    out: &mut B::Buffer,
) {
    if let Some(head) = &model.weights().head {
        logits_with(backend, model, head, acts, finished, out);
    }
}

/// The same with another head.
pub fn logits_with<B: Backend>(
    backend: &mut B,
    model: &Model,
    head: &Linear,
    acts: &mut Activations<B>,
    (finished, n): (&B::Buffer, usize),
    out: &mut B::Buffer,
) {
    if let (Some(narrow), Some(project)) = (&mut acts.narrow, &model.weights().head_project) {
        backend.linear(project, finished, 0..n, Epilogue::Store, narrow);
        backend.linear(head, narrow, 0..n, Epilogue::Store, out);
    } else {
        backend.linear(head, finished, 0..n, Epilogue::Store, out);
    }
    let about = &model.spec().logits;
    if about.scale != 1.0 {
        backend.scale(out, n, about.scale);
    }
    if let Some(cap) = about.softcap {
        backend.softcap(out, n, cap);
    }
}
