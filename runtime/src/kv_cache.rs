//! Keys and values of past tokens, laid out as the attention kernel reads them.
//!
//! ```text
//! page of 64 positions -> layer -> key-value head -> keys   [64 / 16][head_dim][16]
//!                                                    values [64][head_dim padded to 16]
//!
//!                                           in q8:   keys   [64 / 16][head_dim padded to 4 / 4][16][4]
//!                                                    values [64 / 4][head_dim padded to 16][4]
//!                                                    scales of keys [64], of values [64]
//!
//!                                           in q4:   values [64 / 8][head_dim padded to 16][4], two positions to a byte,
//!                                                    keys and scales as in q8
//! ```
//!
//! Sixteen keys are interleaved like a weight panel, so their scores come out in sixteen lanes without a horizontal
//! sum. A page is a block of the attention kernel, for all layers and heads: what two texts have in common they share page
//! by page. All pages that a cache may need are reserved when it is made.
//!
//! Layers that see only the last positions have pages of their own, in a cache that rolls: as many as the window and the
//! tokens that are added at once reach over. Page `i` of the text is page `i % n` of theirs and takes the place of page
//! `i - n`, so their memory does not grow with the text. What a window has left is lost: a text can be taken back as far
//! as the pages reach, and to its start.

#![forbid(unsafe_code)]

use crate::error::SessionError;
use crate::format::{Contents, ModelFile, Stored};
pub use crate::kernels::CacheType;
use crate::kernels::{CHUNK, HeadCache, KEYS, Kernels};
use crate::linear_state::LinearState;
use crate::pages::Page;
use crate::quant::{PANEL_ROWS, QuantType};
use crate::spec::{MAX_HEAD_DIM, Sparse, Spec, Window};
use crate::storage;
use crate::threads::Pool;
use std::collections::BTreeSet;
use std::ops::Range;

/// Tokens below which the cache is written by the calling thread alone: less work than a parallel region.
const SERIAL_TOKENS: usize = 4;

/// Tokens of a text that a cache which rolls takes at once.
const TOGETHER: usize = 128;

/// The cache of one text.
pub struct KvCache {
    layout: Layout,
    groups: Vec<Group>,
    /// Of each layer: its group, and its number among the group's layers.
    places: Vec<(usize, usize)>,
    /// Instead of all that, where attention is linear.
    linear: Option<LinearState>,
    context: usize,
}

/// Layers that keep the same positions.
struct Group {
    n_layers: usize,
    /// Positions that a query sees, its own included.
    window: usize,
    /// Page `i` of the text is page `i % pages.len()`.
    pages: Vec<Page>,
    /// The first page of the text that is still there.
    first: usize,
}

impl Group {
    /// The page of the text that has taken this place, when the text has `positions` tokens.
    fn page_at(&self, place: usize, positions: usize) -> Option<usize> {
        let last = positions.checked_sub(1)? / KEYS;
        let back = (last + self.pages.len() - place) % self.pages.len();
        last.checked_sub(back).filter(|&page| page >= self.first)
    }

    /// `positions` are written.
    fn roll(&mut self, positions: &Range<usize>) {
        let begins = if positions.start == 0 { 0 } else { self.first };
        self.first = begins.max(positions.end.div_ceil(KEYS).saturating_sub(self.pages.len()));
    }
}

/// Where things lie in a page.
#[derive(Clone, Copy)]
struct Layout {
    cache_type: CacheType,
    n_kv_heads: usize,
    head_dim: usize,
}

/// The bits of its byte that a number takes.
#[derive(Clone, Copy)]
struct Bits {
    mask: u8,
    shift: u32,
}

impl Bits {
    const ALL: Self = Self { mask: 255, shift: 0 };

    fn get(self, byte: u8) -> u8 {
        (byte & self.mask) >> self.shift
    }

    fn put(self, byte: &mut u8, number: u8) {
        *byte = (*byte & !self.mask) | ((number << self.shift) & self.mask);
    }
}

/// Consecutive tokens of a batch that continue one text.
pub struct Part<'a, C = KvCache> {
    /// The text so far; the tokens are added to it.
    pub cache: &'a mut C,
    /// Where the tokens stand in the text.
    pub positions: Range<usize>,
    /// The row of the batch where they begin.
    pub row: usize,
    /// Of a text that an encoder has read for this one: keys and values for each layer, and its tokens.
    pub memory: Option<(&'a C, usize)>,
}

/// Bytes that one token takes in the cache of a model.
pub fn bytes_per_token(spec: &Spec, cache_type: CacheType) -> usize {
    if spec.attention.feature_map.is_some() {
        return 0;
    }
    spec.n_layers * spec.attention.n_kv_heads * cache_type.head_bytes(spec.attention.head_dim)
}

/// Bytes of a cache for `context` tokens that [rolls](KvCache::rolling) where it can: whole pages.
pub fn bytes_of(spec: &Spec, cache_type: CacheType, context: usize) -> usize {
    if spec.attention.feature_map.is_some() {
        return LinearState::bytes_of(spec);
    }
    let layer = spec.attention.n_kv_heads * cache_type.head_bytes(spec.attention.head_dim) * KEYS;
    let windowed = windowed_layers(spec);
    let window = pages_of_window(spec, context).saturating_mul(layer * windowed);
    context.div_ceil(KEYS).saturating_mul(layer * (spec.n_layers - windowed)).saturating_add(window)
}

/// Bytes of the cache that a token at `position` reads; of sparse attention, the chunks of which it sees something.
pub fn bytes_read(spec: &Spec, cache_type: CacheType, position: usize) -> usize {
    let a = &spec.attention;
    if a.feature_map.is_some() {
        return LinearState::bytes_of(spec);
    }
    let chunks = |sparse: &Sparse| {
        let chunks = (0..position).step_by(CHUNK).map(|first| first..position.min(first + CHUNK));
        chunks.filter(|keys| sparse.sees_some(position, keys.clone())).map(|keys| keys.len()).sum()
    };
    let seen = |layer| match (a.window_of(layer), a.sparse_of(layer)) {
        (Some(window), _) => position.min(window.size),
        (None, Some(sparse)) => chunks(sparse),
        (None, None) => position,
    };
    a.n_kv_heads * cache_type.head_bytes(a.head_dim) * (0..spec.n_layers).map(seen).sum::<usize>()
}

/// Layers that see only the last positions.
fn windowed_layers(spec: &Spec) -> usize {
    match &spec.attention.window {
        None => 0,
        Some(Window { layers: None, .. }) => spec.n_layers,
        Some(Window { layers: Some(layers), .. }) => layers.iter().collect::<BTreeSet<_>>().len(),
    }
}

/// Pages that a layer with a window keeps. The positions that a window and the tokens added at once reach over begin and end
/// anywhere in a page. So many tokens at least can be taken back as are added at once.
fn pages_of_window(spec: &Spec, context: usize) -> usize {
    let all = context.div_ceil(KEYS);
    spec.attention.window.as_ref().map_or(all, |window| all.min((window.size + TOGETHER).div_ceil(KEYS) + 1))
}

/// How the cache of a model is kept unless told otherwise, as [`usual_type`] says of its weights.
pub fn default_type(file: &ModelFile) -> CacheType {
    default_type_of(file.contents())
}

/// The same from the header alone.
pub fn default_type_of(contents: &Contents) -> CacheType {
    usual_type(contents.tensors().filter_map(|(_, record, _)| match record.stored {
        Stored::Bytes | Stored::Vector => None,
        Stored::Matrix(quant) => Some(quant),
    }))
}

/// The cache that suits weights of these types. In f32 when all are, so that nothing at all is rounded. In 8 bits when some
/// are integers of 8 bits or fewer: it costs a fifth of what `q8` weights cost (0.01 % of perplexity on the demo models),
/// and half of what an f16 cache costs to read. In f16 otherwise.
pub fn usual_type(weights: impl IntoIterator<Item = QuantType>) -> CacheType {
    weights.into_iter().fold(CacheType::F32, |found, quant| match quant {
        QuantType::F16 if found == CacheType::F32 => CacheType::F16,
        QuantType::F16 | QuantType::F32 => found,
        _ => CacheType::Q8,
    })
}

impl Layout {
    /// Bytes of one head's block.
    fn block_len(&self) -> usize {
        KEYS * self.cache_type.head_bytes(self.head_dim)
    }

    /// Bytes of all heads' blocks of one layer.
    fn layer_len(&self) -> usize {
        self.n_kv_heads * self.block_len()
    }

    /// Bytes of the key and the value of one head at one position, without padding.
    fn number_bytes(&self) -> usize {
        match self.cache_type {
            CacheType::F32 => 2 * self.head_dim * 4,
            CacheType::F16 => 2 * self.head_dim * 2,
            CacheType::Q8 | CacheType::Q4 => 2 * self.head_dim + 4,
        }
    }

    /// Positions of values whose numbers follow each other, and which bits of their bytes those of a position take.
    fn value_group(&self, position: usize) -> (usize, Bits) {
        match self.cache_type {
            CacheType::Q4 if position % 8 < 4 => (8, Bits { mask: 15, shift: 0 }),
            CacheType::Q4 => (8, Bits { mask: 240, shift: 4 }),
            _ => (4, Bits::ALL),
        }
    }

    /// Calls `visit` with each piece of a head's block that the key at a position consists of, dimension by dimension, then
    /// with those of the value, then with the scales, if there are any.
    fn pieces(&self, position: usize, mut visit: impl FnMut(Range<usize>, Bits)) {
        let (head_dim, position) = (self.head_dim, position % KEYS);
        let padded = head_dim.next_multiple_of(PANEL_ROWS);
        let mut piece = |start: usize, len: usize, bits: Bits| visit(start..start + len, bits);
        match self.cache_type {
            CacheType::F32 | CacheType::F16 => {
                let bytes = if self.cache_type == CacheType::F32 { 4 } else { 2 };
                let tile = position / PANEL_ROWS * head_dim * PANEL_ROWS + position % PANEL_ROWS;
                (0..head_dim).for_each(|d| piece((tile + d * PANEL_ROWS) * bytes, bytes, Bits::ALL));
                piece((KEYS * head_dim + position * padded) * bytes, head_dim * bytes, Bits::ALL);
            }
            CacheType::Q8 | CacheType::Q4 => {
                let (values, (group, bits)) = (KEYS * head_dim.next_multiple_of(4), self.value_group(position));
                for d in (0..head_dim).step_by(4) {
                    let line = position / PANEL_ROWS * PANEL_ROWS * head_dim.next_multiple_of(4) + d * PANEL_ROWS;
                    piece(line + position % PANEL_ROWS * 4, (head_dim - d).min(4), Bits::ALL);
                }
                (0..head_dim).for_each(|d| piece(values + (position / group * padded + d) * 4 + position % 4, 1, bits));
                let scales = values + KEYS / group * padded * 4;
                piece(scales + position * 2, 2, Bits::ALL);
                piece(scales + (KEYS + position) * 2, 2, Bits::ALL);
            }
        }
    }

    /// Puts the key and the value of one token of head `head` into its block. `row` has all keys, then all values; the next
    /// token's begin `stride` after it.
    fn put(&self, kernels: Kernels, head: usize, block: &mut [u8], position: usize, (row, stride): (&[f32], usize)) {
        let head_dim = self.head_dim;
        let [key_at, value_at] = [head * head_dim, (self.n_kv_heads + head) * head_dim];
        let [key, value] = [key_at, value_at].map(|at| &row[at..][..head_dim]);
        // Rows lie kilobytes apart, where no processor follows: waiting took three fifths of `to_q8` (512 tokens, Zen 4).
        let next = |at| row.get(stride + at..).unwrap_or_default();
        match self.cache_type {
            CacheType::F32 => put(bytemuck::cast_slice_mut(block), key, value, position % KEYS),
            CacheType::F16 => {
                let (mut k, mut v) = ([0u16; MAX_HEAD_DIM], [0u16; MAX_HEAD_DIM]);
                kernels.to_f16(key, &mut k[..head_dim]);
                kernels.to_f16(value, &mut v[..head_dim]);
                put(bytemuck::cast_slice_mut(block), &k[..head_dim], &v[..head_dim], position % KEYS);
            }
            CacheType::Q8 | CacheType::Q4 => {
                let padded = head_dim.next_multiple_of(PANEL_ROWS);
                let (mut k, mut v) = ([0i8; MAX_HEAD_DIM], [0i8; MAX_HEAD_DIM]);
                let key_scale = kernels.to_q8(key, next(key_at), &mut k[..padded]);
                let value_scale = if self.cache_type == CacheType::Q8 {
                    kernels.to_q8(value, next(value_at), &mut v[..padded])
                } else {
                    let scale = kernels.to_q4(value, &mut v[..padded]);
                    v[..padded].iter_mut().for_each(|code| *code += 8);
                    scale
                };
                let (key, value) = (&k[..head_dim.next_multiple_of(4)], &v[..padded]);
                put_integers(block, key, value, (key_scale, value_scale), position % KEYS, self.value_group(position));
            }
        }
    }
}

impl KvCache {
    /// An empty cache for `context` tokens, which holds all of them in all layers.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(spec: &Spec, cache_type: CacheType, context: usize) -> Result<Self, SessionError> {
        if spec.attention.feature_map.is_some() {
            let cache = Self::with_groups(spec, cache_type, context, Vec::new(), Vec::new())?;
            return Ok(Self { linear: Some(LinearState::new(spec)?), ..cache });
        }
        let places = (0..spec.n_layers).map(|layer| (0, layer)).collect();
        Self::with_groups(spec, cache_type, context, vec![(spec.n_layers, usize::MAX, context.div_ceil(KEYS))], places)
    }

    /// An empty cache for texts of `context` tokens, of which layers that see only the last positions hold no more than
    /// they need. At most [`most_together`](Self::most_together) tokens are added at once.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn rolling(spec: &Spec, cache_type: CacheType, context: usize) -> Result<Self, SessionError> {
        let windowed = windowed_layers(spec);
        let Some(window) = spec.attention.window.as_ref().filter(|_| windowed > 0) else {
            return Self::new(spec, cache_type, context);
        };
        let mut groups = vec![(windowed, window.size, pages_of_window(spec, context))];
        if windowed < spec.n_layers {
            groups.push((spec.n_layers - windowed, usize::MAX, context.div_ceil(KEYS)));
        }
        let mut counts = [0; 2];
        let place = |layer| {
            let group = usize::from(spec.attention.window_of(layer).is_none());
            counts[group] += 1;
            (group, counts[group] - 1)
        };
        let places = (0..spec.n_layers).map(place).collect();
        Self::with_groups(spec, cache_type, context, groups, places)
    }

    /// A cache of groups of so many layers, with such a window and so many pages.
    fn with_groups(
        spec: &Spec,
        cache_type: CacheType,
        context: usize,
        groups: Vec<(usize, usize, usize)>,
        places: Vec<(usize, usize)>,
    ) -> Result<Self, SessionError> {
        let a = &spec.attention;
        let layout = Layout { cache_type, n_kv_heads: a.n_kv_heads, head_dim: a.head_dim };
        let group = |(n_layers, window, n_pages): (usize, usize, usize)| {
            let mut pages = Vec::new();
            let page_len = n_layers * layout.layer_len();
            let failed = |source| memory_error(n_pages.saturating_mul(page_len), source);
            pages.try_reserve_exact(n_pages).map_err(|_| failed(std::io::ErrorKind::OutOfMemory.into()))?;
            for _ in 0..n_pages {
                pages.push(Page::new(page_len).map_err(failed)?);
            }
            storage::ensure(0).map_err(failed)?;
            Ok::<_, SessionError>(Group { n_layers, window, pages, first: 0 })
        };
        Ok(Self {
            layout,
            groups: groups.into_iter().map(group).collect::<Result<_, _>>()?,
            places,
            linear: None,
            context,
        })
    }

    /// A cache of the same size that begins with the first `positions` tokens of this one. Pages that these fill are shared,
    /// the page that they end in is copied.
    ///
    /// # Errors
    /// When the memory cannot be had.
    ///
    /// # Panics
    /// When there is no room for so many positions.
    pub fn fork(&self, positions: usize) -> Result<Self, SessionError> {
        self.assert_room(positions);
        let fork = |group: &Group| {
            let page_len = group.n_layers * self.layout.layer_len();
            let page = |(place, page): (usize, &Page)| match group.page_at(place, positions) {
                Some(held) if (held + 1) * KEYS <= positions => Ok(page.clone()),
                Some(_) => copy(page),
                None => Page::new(page_len).map_err(|source| memory_error(page_len, source)),
            };
            let pages = group.pages.iter().enumerate().map(page).collect::<Result<_, _>>()?;
            storage::ensure(0).map_err(|source| memory_error(page_len, source))?;
            Ok::<_, SessionError>(Group { pages, ..*group })
        };
        let groups = self.groups.iter().map(fork).collect::<Result<_, _>>()?;
        let linear = self.linear.as_ref().map(LinearState::copy).transpose()?;
        Ok(Self { groups, places: self.places.clone(), linear, ..*self })
    }

    /// Makes sure that `positions` can be written: pages that another cache shares are copied. Nothing happens to a
    /// text that only grows; one that was rewound into what it shares has pages to copy.
    ///
    /// # Errors
    /// When the memory cannot be had.
    ///
    /// # Panics
    /// When there is no room for these positions.
    pub fn reserve(&mut self, positions: Range<usize>) -> Result<(), SessionError> {
        self.assert_room(positions.end);
        for group in &mut self.groups {
            let n = group.pages.len();
            for number in (positions.start / KEYS..positions.end.div_ceil(KEYS)).take(n) {
                // A page that is to be rolled over may hold what the tokens before see.
                let page = &mut group.pages[number % n];
                if page.is_shared() {
                    *page = copy(page)?;
                } else if positions.start <= number * KEYS {
                    page.prepare();
                }
            }
        }
        Ok(())
    }

    fn assert_room(&self, positions: usize) {
        assert!(positions <= self.context.next_multiple_of(KEYS), "{positions} positions of {}", self.context);
    }

    /// Tokens of a text that can be added at once, at least.
    pub fn most_together(&self) -> usize {
        let rolls = |group: &Group| group.pages.len() * KEYS < self.context;
        if self.groups.iter().any(rolls) { TOGETHER } else { usize::MAX }
    }

    /// Whether the text can go on at `position`: all that a query there sees is held. If not, the first position that is held.
    ///
    /// # Errors
    /// That position.
    pub fn goes_on_at(&self, position: usize) -> Result<(), usize> {
        if let Some(linear) = &self.linear {
            return linear.goes_on_at(position);
        }
        let lost = |group: &&Group| (position + 1).saturating_sub(group.window) / KEYS < group.first;
        match self.groups.iter().find(lost) {
            Some(group) if position > 0 => Err(group.first * KEYS),
            _ => Ok(()),
        }
    }

    /// Whether it keeps something of each token.
    pub fn keeps_tokens(&self) -> bool {
        self.linear.is_none()
    }

    /// The sums of each head of a layer with linear attention, after the tokens before `positions`; the caller adds theirs.
    ///
    /// # Panics
    /// When there are none, or the text cannot go on there.
    pub(crate) fn sums(&mut self, layer: usize, positions: &Range<usize>) -> impl Iterator<Item = &mut [f32]> {
        self.linear.as_mut().expect("linear attention").heads(layer, positions)
    }

    /// The first position that all layers hold.
    pub fn first_position(&self) -> usize {
        self.groups.iter().map(|group| group.first * KEYS).max().unwrap_or(0)
    }

    /// Bytes it takes when full, those it shares included.
    pub fn bytes(&self) -> usize {
        let linear = self.linear.as_ref().map_or(0, LinearState::bytes);
        self.pages().map(|page| page.bytes().len()).sum::<usize>() + linear
    }

    /// Bytes of the pages that another cache has too.
    pub fn shared_bytes(&self) -> usize {
        self.pages().filter(|page| page.is_shared()).map(|page| page.bytes().len()).sum()
    }

    fn pages(&self) -> impl Iterator<Item = &Page> {
        self.groups.iter().flat_map(|group| &group.pages)
    }

    /// Bytes of the keys and values of one token, without padding: in all layers, or in those that keep all positions.
    pub fn token_bytes(&self, all_layers: bool) -> usize {
        let kept = self.groups.iter().filter(|group| all_layers || group.window == usize::MAX);
        kept.map(|group| group.n_layers).sum::<usize>() * self.layout.n_kv_heads * self.layout.number_bytes()
    }

    /// Copies the keys and values of one token out: for each layer and head the key, the value, and the scales of both if
    /// there are any. Layers with a window are left out where `out` has no room for them.
    ///
    /// # Panics
    /// When there is no such position, or `out` has not [`token_bytes`](Self::token_bytes) bytes.
    pub fn export(&self, position: usize, out: &mut [u8]) {
        let (layout, all_layers) = (&self.layout, self.all_layers(out.len()));
        let mut outs = out.chunks_exact_mut(layout.number_bytes());
        for &(group, number) in &self.places {
            let group = &self.groups[group];
            if !all_layers && group.window != usize::MAX {
                continue;
            }
            let page = group.pages[position / KEYS % group.pages.len()].bytes();
            let blocks = page[number * layout.layer_len()..][..layout.layer_len()].chunks_exact(layout.block_len());
            for (block, out) in blocks.zip(&mut outs) {
                let mut done = 0;
                layout.pieces(position, |piece, bits| {
                    for &byte in &block[piece] {
                        out[done] = bits.get(byte);
                        done += 1;
                    }
                });
            }
        }
    }

    /// Whether the bytes of a token are those of all layers.
    fn all_layers(&self, bytes: usize) -> bool {
        let all = bytes == self.token_bytes(true);
        assert!(all || bytes == self.token_bytes(false), "the bytes of a token");
        all
    }

    /// Copies the keys and values of one token in, as [`export`](Self::export) gave them, one token after the other. Padding
    /// must be zero already, as it is in a new cache.
    ///
    /// # Panics
    /// When there is no such position, another cache shares it, or `token` has not [`token_bytes`](Self::token_bytes) bytes.
    pub fn import(&mut self, position: usize, token: &[u8]) {
        let (layout, all_layers) = (self.layout, self.all_layers(token.len()));
        let mut tokens = token.chunks_exact(layout.number_bytes());
        for &(group, number) in &self.places {
            let group = &mut self.groups[group];
            if !all_layers && group.window != usize::MAX {
                group.first = position / KEYS + 1;
                continue;
            }
            let n_pages = group.pages.len();
            group.first = group.first.max((position / KEYS + 1).saturating_sub(n_pages));
            let page = group.pages[position / KEYS % n_pages].bytes_mut().expect("a page of its own");
            let blocks = page[number * layout.layer_len()..][..layout.layer_len()].chunks_exact_mut(layout.block_len());
            for (block, token) in blocks.zip(&mut tokens) {
                let mut done = 0;
                layout.pieces(position, |piece, bits| {
                    for byte in &mut block[piece] {
                        bits.put(byte, token[done]);
                        done += 1;
                    }
                });
            }
        }
    }

    /// How it keeps its numbers.
    pub fn cache_type(&self) -> CacheType {
        self.layout.cache_type
    }

    /// Keys and values of one head, as the attention kernel takes them.
    ///
    /// # Panics
    /// When there is no such layer or head.
    pub(crate) fn head(&self, layer: usize, head: usize) -> HeadCache<'_> {
        let layout = &self.layout;
        assert!(layer < self.places.len() && head < layout.n_kv_heads, "layer {layer}, head {head}");
        let (group, number) = self.places[layer];
        let at = number * layout.layer_len() + head * layout.block_len();
        HeadCache { cache_type: layout.cache_type, head_dim: layout.head_dim, pages: &self.groups[group].pages, at }
    }

    /// The blocks of a layer in one page.
    fn layer_mut(&mut self, layer: usize, page: usize) -> &mut [u8] {
        let (len, (group, number)) = (self.layout.layer_len(), self.places[layer]);
        let pages = &mut self.groups[group].pages;
        let n_pages = pages.len();
        let bytes = pages[page % n_pages].bytes_mut().expect("`reserve` copied what is shared");
        &mut bytes[number * len..][..len]
    }
}

impl Part<'_> {
    /// Writes keys and values of the part's tokens; `spread` runs over the heads' blocks of a page.
    fn store(
        &mut self,
        kernels: Kernels,
        layer: usize,
        (kv, stride): (&[f32], usize),
        mut spread: impl FnMut(&mut [u8], usize, &(dyn Fn(usize, &mut [u8]) + Sync)),
    ) {
        let (layout, all, row) = (self.cache.layout, self.positions.clone(), self.row);
        let most = self.cache.most_together();
        assert!(all.len() <= most, "{} tokens at once, at most {most} fit a cache that rolls", all.len());
        let (group, _) = self.cache.places[layer];
        self.cache.groups[group].roll(&all);
        let mut start = all.start;
        while start < all.end {
            let end = (start + 1).next_multiple_of(KEYS).min(all.end);
            let blocks = self.cache.layer_mut(layer, start / KEYS);
            spread(blocks, layout.block_len(), &|head, block| {
                for position in start..end {
                    let row = row + position - all.start;
                    layout.put(kernels, head, block, position, (&kv[row * stride..], stride));
                }
            });
            start = end;
        }
    }

    /// The same by the calling thread alone.
    fn store_alone(&mut self, kernels: Kernels, layer: usize, kv: (&[f32], usize)) {
        self.store(kernels, layer, kv, |blocks, len, store| {
            blocks.chunks_exact_mut(len).enumerate().for_each(|(head, block)| store(head, block));
        });
    }
}

/// Writes keys and values of the tokens of all parts. `kv` has rows of `stride` elements, which start with all keys, then all
/// values.
///
/// # Panics
/// When a position was not [reserved](KvCache::reserve), or an element is out of range.
pub fn store((kernels, pool): (Kernels, &mut Pool), layer: usize, parts: &mut [Part<'_>], kv: (&[f32], usize)) {
    let n_tokens: usize = parts.iter().map(|part| part.positions.len()).sum();
    if n_tokens < SERIAL_TOKENS {
        for part in parts {
            part.store_alone(kernels, layer, kv);
        }
    } else if let [part] = parts {
        part.store(kernels, layer, kv, |blocks, len, store| {
            pool.run_blocks(blocks, len, 1, len, &|heads, _, mut block| store(heads.start, block.row_mut(0)));
        });
    } else {
        pool.run_blocks(parts, 1, 1, 1, &|_, _, mut part| part.row_mut(0)[0].store_alone(kernels, layer, kv));
    }
}

fn copy(page: &Page) -> Result<Page, SessionError> {
    let copy = page.copy().and_then(|copy| storage::ensure(0).map(|()| copy));
    copy.map_err(|source| memory_error(page.bytes().len(), source))
}

fn memory_error(bytes: usize, source: std::io::Error) -> SessionError {
    SessionError::Memory { bytes, what: "the key-value cache", source }
}

/// Puts one key and one value at their position of a block of floats.
fn put<T: Copy>(block: &mut [T], key: &[T], value: &[T], position: usize) {
    let head_dim = key.len();
    let (keys, values) = block.split_at_mut(KEYS * head_dim);
    let tile = &mut keys[position / PANEL_ROWS * head_dim * PANEL_ROWS..][..head_dim * PANEL_ROWS];
    for (d, &k) in key.iter().enumerate() {
        tile[d * PANEL_ROWS + position % PANEL_ROWS] = k;
    }
    values[position * head_dim.next_multiple_of(PANEL_ROWS)..][..head_dim].copy_from_slice(value);
}

/// Puts one key and one value at their position of a block of integers; `group` and `bits` as in [`Layout::value_group`].
fn put_integers(
    block: &mut [u8],
    key: &[i8],
    value: &[i8],
    scales: (u16, u16),
    position: usize,
    (group, bits): (usize, Bits),
) {
    let (key, value): (&[u8], &[u8]) = (bytemuck::cast_slice(key), bytemuck::cast_slice(value));
    let (keys, rest) = block.split_at_mut(KEYS * key.len());
    let (values, rest) = rest.split_at_mut(KEYS / group * 4 * value.len());
    let (key_scales, value_scales) = rest.split_at_mut(KEYS * 2);
    // Four dimensions of a key, of 16 positions, make a line.
    let lines = keys[position / PANEL_ROWS * PANEL_ROWS * key.len()..].chunks_exact_mut(4 * PANEL_ROWS);
    for (line, four) in lines.zip(key.chunks_exact(4)) {
        line[position % PANEL_ROWS * 4..][..4].copy_from_slice(four);
    }
    // Four positions of a value, of all dimensions, follow each other; in 4 bits the next four share their bytes.
    let group = &mut values[position / group * 4 * value.len()..][..4 * value.len()];
    // The bytes of all four at once, which the compiler makes vectors of.
    let byte = position as u32 % 4 * 8;
    let (mask, shift) = (u32::from(bits.mask) << byte, bits.shift + byte);
    for (four, &v) in group.as_chunks_mut().0.iter_mut().zip(value) {
        *four = (u32::from_le_bytes(*four) & !mask | u32::from(v) << shift & mask).to_le_bytes();
    }
    key_scales[position * 2..][..2].copy_from_slice(&scales.0.to_le_bytes());
    value_scales[position * 2..][..2].copy_from_slice(&scales.1.to_le_bytes());
}
