//! Caches that share the start of a text, and batches of several texts.

mod support;

use tidbit_runtime::kernels::{self, Kernels, Scoring};
use tidbit_runtime::kv_cache::{self, CacheType, KvCache, Part};
use tidbit_runtime::ops::{self, Buffer};
use tidbit_runtime::spec::{Sparse, SparsePattern, Spec, Window};
use tidbit_runtime::threads::Pool;

const CONTEXT: usize = 400;
const TYPES: [CacheType; 4] = CacheType::ALL;

/// Six heads of which pairs share keys and values.
fn spec() -> Spec {
    let mut spec = support::spec();
    (spec.attention.n_heads, spec.attention.n_kv_heads, spec.attention.head_dim) = (6, 3, 20);
    spec
}

/// Queries, keys and values of a token: the same for the same seed.
fn row(spec: &Spec, layer: usize, token: u32) -> Vec<f32> {
    let mut state = u64::from(token) * 31 + layer as u64 + 7;
    (0..spec.attention.qkv_rows())
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 22) as f32 - 2.0
        })
        .collect()
}

struct Device {
    kernels: Kernels,
    pool: Pool,
    spec: Spec,
}

impl Device {
    fn new(threads: usize) -> Self {
        Self { kernels: kernels::active().unwrap(), pool: Pool::new(threads).unwrap(), spec: spec() }
    }

    fn cache(&self, cache_type: CacheType) -> KvCache {
        KvCache::new(&self.spec, cache_type, CONTEXT).unwrap()
    }

    /// Adds `tokens` to each text at its position, all in one batch; what all rows of all layers attended to, by text.
    fn append(&mut self, texts: &mut [(&mut KvCache, usize, &[u32])]) -> Vec<Vec<u32>> {
        let a = self.spec.attention.clone();
        let n_tokens = texts.iter().map(|(_, _, tokens)| tokens.len()).sum();
        let mut parts = Vec::new();
        let mut tokens = Vec::new();
        for (cache, first, ids) in texts {
            cache.reserve(*first..*first + ids.len()).unwrap();
            parts.push(Part {
                cache: &mut **cache,
                positions: *first..*first + ids.len(),
                row: tokens.len(),
                memory: None,
            });
            tokens.extend_from_slice(ids);
        }
        let mut found = vec![Vec::new(); parts.len()];
        for layer in 0..self.spec.n_layers {
            let mut qkv = Buffer::new(n_tokens, a.qkv_rows()).unwrap();
            let mut out = Buffer::new(n_tokens, a.n_heads * a.head_dim).unwrap();
            let stride = qkv.stride();
            for (t, token) in tokens.iter().enumerate() {
                qkv.rows_mut(t..t + 1)[..a.qkv_rows()].copy_from_slice(&row(&self.spec, layer, *token));
            }
            let kv = qkv.rows(0..n_tokens).get(a.n_heads * a.head_dim..).unwrap_or_default();
            kv_cache::store((self.kernels, &mut self.pool), layer, &mut parts, (kv, stride));
            let scoring = |_| Scoring::scaled(0.3);
            let heads = (a.n_heads, a.n_kv_heads);
            ops::attention(
                (self.kernels, &mut self.pool),
                (&parts, layer, ops::Sees::Before),
                heads,
                &scoring,
                None,
                &qkv,
                &mut out,
            );
            for (part, found) in parts.iter().zip(&mut found) {
                for t in part.row..part.row + part.positions.len() {
                    found.extend(out.row(t).iter().map(|v| v.to_bits()));
                }
            }
        }
        found
    }

    /// The same for one text.
    fn append_one(&mut self, cache: &mut KvCache, first: usize, tokens: &[u32]) -> Vec<u32> {
        self.append(&mut [(cache, first, tokens)]).remove(0)
    }

    /// What `tokens` attend to after `before` in a cache of their own.
    fn alone(&mut self, cache_type: CacheType, before: &[u32], tokens: &[u32]) -> Vec<u32> {
        let mut cache = self.cache(cache_type);
        self.append_one(&mut cache, 0, before);
        self.append_one(&mut cache, before.len(), tokens)
    }
}

fn tokens(n: u32, seed: u32) -> Vec<u32> {
    (0..n).map(|i| seed * 1000 + i).collect()
}

#[test]
fn forks_that_diverge_are_what_independent_caches_are() {
    let mut device = Device::new(2);
    let text = tokens(200, 1);
    for cache_type in TYPES {
        for shared in [1, 63, 64, 65, 128, 199, 200] {
            let mut cache = device.cache(cache_type);
            device.append_one(&mut cache, 0, &text);
            let mut fork = cache.fork(shared).unwrap();
            let (ours, theirs) = (tokens(70, 2), tokens(70, 3));
            // In turn: neither may see what the other writes.
            let first = device.append_one(&mut fork, shared, &theirs[..30]);
            let second = device.append_one(&mut cache, 200, &ours);
            let third = device.append_one(&mut fork, shared + 30, &theirs[30..]);
            assert_eq!(second, device.alone(cache_type, &text, &ours), "{cache_type:?} {shared}: the original");
            let before = &text[..shared];
            assert_eq!(first, device.alone(cache_type, before, &theirs[..30]), "{cache_type:?} {shared}: the fork");
            let before = [before, &theirs[..30]].concat();
            assert_eq!(third, device.alone(cache_type, &before, &theirs[30..]), "{cache_type:?} {shared}: the fork");
        }
    }
}

#[test]
fn rewinding_into_shared_pages_leaves_the_other_text_alone() {
    let mut device = Device::new(1);
    let (text, other) = (tokens(200, 1), tokens(150, 2));
    for cache_type in TYPES {
        let mut cache = device.cache(cache_type);
        device.append_one(&mut cache, 0, &text);
        let mut fork = cache.fork(200).unwrap();
        let found = device.append_one(&mut cache, 10, &other);
        assert_eq!(found, device.alone(cache_type, &text[..10], &other), "{cache_type:?}: what was rewound");
        let found = device.append_one(&mut fork, 200, &[5]);
        assert_eq!(found, device.alone(cache_type, &text, &[5]), "{cache_type:?}: the other");
        // The other way round, and after a fork of a fork.
        let mut second = fork.fork(130).unwrap();
        device.append_one(&mut fork, 0, &other);
        let found = device.append_one(&mut second, 130, &[6]);
        assert_eq!(found, device.alone(cache_type, &text[..130], &[6]), "{cache_type:?}: a fork of a fork");
    }
}

#[test]
fn what_is_exported_can_be_imported() {
    let mut device = Device::new(1);
    let text = tokens(75, 1);
    for (cache_type, head_dim) in TYPES.into_iter().flat_map(|t| [1, 7, 8, 20, 33].map(|d| (t, d))) {
        device.spec.attention.head_dim = head_dim;
        let mut cache = device.cache(cache_type);
        device.append_one(&mut cache, 0, &text);
        let mut copy = device.cache(cache_type);
        for position in 0..text.len() {
            // Nothing that was in the bytes before shows.
            let mut token = [vec![0; cache.token_bytes(true)], vec![255; cache.token_bytes(true)]];
            for token in &mut token {
                cache.export(position, token);
            }
            assert_eq!(token[0], token[1], "{cache_type:?} {head_dim}");
            copy.import(position, &token[1]);
            copy.export(position, &mut token[1]);
            assert_eq!(token[0], token[1], "{cache_type:?} {head_dim}");
        }
        let found = device.append_one(&mut copy, text.len(), &[5]);
        assert_eq!(found, device.append_one(&mut cache, text.len(), &[5]), "{cache_type:?} {head_dim}");
    }
}

#[test]
fn full_pages_are_shared_and_the_rest_is_reserved() {
    let mut device = Device::new(1);
    let mut cache = device.cache(CacheType::F16);
    assert_eq!(cache.shared_bytes(), 0);
    let page = kv_cache::bytes_per_token(&device.spec, CacheType::F16) * 64;
    assert_eq!(cache.bytes(), 7 * page, "{CONTEXT} positions");
    let mut fork = cache.fork(200).unwrap();
    assert_eq!(fork.bytes(), cache.bytes());
    assert_eq!((cache.shared_bytes(), fork.shared_bytes()), (3 * page, 3 * page));
    // Growing shares what it shared; writing to a shared page ends that for this page alone.
    device.append_one(&mut fork, 200, &tokens(100, 1));
    assert_eq!(fork.shared_bytes(), 3 * page);
    device.append_one(&mut cache, 70, &[1]);
    assert_eq!((cache.shared_bytes(), fork.shared_bytes()), (2 * page, 2 * page));
    drop(fork);
    assert_eq!(cache.shared_bytes(), 0);
}

#[test]
fn texts_in_one_batch_are_what_each_is_alone() {
    for threads in [1, 3] {
        let mut device = Device::new(threads);
        // Positions before, and tokens in the batch: single tokens, a prompt, none at all.
        for lengths in [&[(0, 1), (64, 1), (130, 1)][..], &[(5, 1), (60, 50), (0, 0), (129, 3), (0, 30)]] {
            for cache_type in TYPES {
                let texts: Vec<_> = (1..).zip(lengths).map(|(i, &(n, _))| tokens(n, i)).collect();
                let added: Vec<_> = (100..).zip(lengths).map(|(i, &(_, n))| tokens(n, i)).collect();
                let mut caches: Vec<_> = texts.iter().map(|_| device.cache(cache_type)).collect();
                for (cache, text) in caches.iter_mut().zip(&texts) {
                    device.append_one(cache, 0, text);
                }
                let mut batch: Vec<_> = caches
                    .iter_mut()
                    .zip(texts.iter().zip(&added))
                    .map(|(cache, (text, added))| (cache, text.len(), &added[..]))
                    .collect();
                let found = device.append(&mut batch);
                for ((text, added), found) in texts.iter().zip(&added).zip(found) {
                    assert_eq!(found, device.alone(cache_type, text, added), "{cache_type:?} {lengths:?}");
                }
            }
        }
    }
}

#[test]
fn what_is_read_of_a_cache_is_what_is_seen() {
    let mut spec = spec();
    let token = kv_cache::bytes_per_token(&spec, CacheType::F16);
    let read = |spec: &Spec| kv_cache::bytes_read(spec, CacheType::F16, 2000) as f64 / token as f64;
    assert_eq!(read(&spec), 2000.0);
    spec.attention.window = Some(Window { size: 100, layers: Some(vec![1]), rotary: None });
    assert_eq!(read(&spec), 1050.0);
    // Of its chunks of 256 positions, a text sees the last and the one with block 26, one of every 40 back.
    let sparse = Sparse { block: 30, local: 2, stride: 40, pattern: SparsePattern::Strided, layers: Some(vec![0]) };
    (spec.attention.window, spec.attention.sparse) = (None, Some(sparse));
    assert_eq!(read(&spec), 1000.0 + (256.0 + 2000.0 - 7.0 * 256.0) / 2.0);
}
