//! What linear attention keeps of a text: for each layer and key-value head two sums, whatever the text's length.
//!
//! Sums are kept twice, as they were before the last tokens and after them: a step that was cancelled can run again, and the
//! last step can be taken back. Nothing else can, since a sum does not tell what was added.

#![forbid(unsafe_code)]

use crate::error::SessionError;
use crate::spec::Spec;
use crate::storage::Zeros;
use std::ops::Range;

/// The sums of a text in all layers.
pub(crate) struct LinearState {
    layers: Vec<LayerState>,
    /// Elements of a head: `[head_dim + 1][head_dim]`.
    head_len: usize,
}

struct LayerState {
    /// After how many tokens either is.
    positions: [usize; 2],
    /// `[n_kv_heads][head_dim + 1][head_dim]`: the sum of products of each dimension of the keys with the values, and of the keys.
    sums: [Zeros<f32>; 2],
}

impl LinearState {
    /// Bytes of such a state.
    pub(crate) fn bytes_of(spec: &Spec) -> usize {
        let a = &spec.attention;
        spec.n_layers.saturating_mul(2 * a.n_kv_heads * 4).saturating_mul(head_len(a.head_dim))
    }

    /// Of no text.
    pub(crate) fn new(spec: &Spec) -> Result<Self, SessionError> {
        let a = &spec.attention;
        let (bytes, head_len) = (Self::bytes_of(spec), head_len(a.head_dim));
        let zeros = || Zeros::new(a.n_kv_heads * head_len).map_err(|source| memory_error(bytes, source));
        let layer = |_| Ok::<_, SessionError>(LayerState { positions: [0; 2], sums: [zeros()?, zeros()?] });
        Ok(Self { layers: (0..spec.n_layers).map(layer).collect::<Result<_, _>>()?, head_len })
    }

    /// The same for another text that begins alike.
    pub(crate) fn copy(&self) -> Result<Self, SessionError> {
        let sums = |sums: &Zeros<f32>| {
            let mut copy = Zeros::new(sums.len()).map_err(|source| memory_error(self.bytes(), source))?;
            copy.copy_from_slice(sums);
            Ok::<_, SessionError>(copy)
        };
        let layer = |layer: &LayerState| {
            let [a, b] = &layer.sums;
            Ok::<_, SessionError>(LayerState { positions: layer.positions, sums: [sums(a)?, sums(b)?] })
        };
        Ok(Self { layers: self.layers.iter().map(layer).collect::<Result<_, _>>()?, head_len: self.head_len })
    }

    /// Bytes it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.layers.iter().flat_map(|layer| &layer.sums).map(|sums| sums.len() * 4).sum()
    }

    /// Whether the text can go on at `position`; if not, where it can.
    pub(crate) fn goes_on_at(&self, position: usize) -> Result<(), usize> {
        let lost = |layer: &&LayerState| position > 0 && !layer.positions.contains(&position);
        self.layers.iter().find(lost).map_or(Ok(()), |layer| Err(layer.positions.into_iter().max().unwrap_or(0)))
    }

    /// The sums of a layer's heads after the tokens before `positions`, which are to become those after them.
    ///
    /// # Panics
    /// When the text cannot go on there.
    pub(crate) fn heads(&mut self, layer: usize, positions: &Range<usize>) -> impl Iterator<Item = &mut [f32]> {
        let layer = &mut self.layers[layer];
        let (before, after) = match layer.positions {
            [_, at] if at == positions.start && at > 0 => (1, 0),
            [at, _] if at == positions.start || positions.start == 0 => (0, 1),
            at => panic!("position {} of sums at {at:?}", positions.start),
        };
        let [first, second] = &mut layer.sums;
        let (from, to) = if before == 0 { (first, second) } else { (second, first) };
        if positions.start == 0 {
            to.fill(0.0);
        } else {
            to.copy_from_slice(from);
        }
        (layer.positions[before], layer.positions[after]) = (positions.start, positions.end);
        to.chunks_exact_mut(self.head_len)
    }
}

fn memory_error(bytes: usize, source: std::io::Error) -> SessionError {
    SessionError::Memory { bytes, what: "the state of linear attention", source }
}

fn head_len(head_dim: usize) -> usize {
    (head_dim + 1) * head_dim
}
