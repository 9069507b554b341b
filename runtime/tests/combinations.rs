//! Every part of an architecture with every other: the forward pass against [a slow one](support::reference).
//!
//! [`PARTS`] lists the kinds of each part. Models are chosen so that each pair of kinds meets in one of them at least; pairs
//! that make no sense stand in [`CONFLICTS`], with what the spec says of them.

mod support;

use std::collections::BTreeSet;
use std::process::Command;
use support::{models, reference};
use tidbit_runtime::engine::{Engine, EngineOptions, Feed};
use tidbit_runtime::kernels;
use tidbit_runtime::kv_cache::CacheType;
use tidbit_runtime::model::Model;
use tidbit_runtime::sequence::{Sequence, SequenceOptions};
use tidbit_runtime::spec::{
    Activation, Alibi, Encoder, Experts, FeatureMap, Head, Norm, NormKind, Pairs, Place, Position, QkNorm, QkNormOver,
    RelativeBias, Residual, Rotary, RotaryScaling, Scales, Sinusoidal, Sparse, SparsePattern, Spec, Trained,
    TransformerXl, Window,
};

/// A kind of a part, and how a spec gets it.
type Kind = (&'static str, fn(&mut Spec));

const PARTS: &[(&str, &[Kind])] = &[
    (
        "position",
        &[
            ("none", |_| ()),
            ("learned", |s| s.position = Position::Learned),
            ("sinusoidal", |s| s.position = Position::Sinusoidal(Sinusoidal { pairs: Pairs::Interleaved, offset: 0 })),
            ("fairseq", |s| s.position = Position::Sinusoidal(Sinusoidal { pairs: Pairs::Halves, offset: 2 })),
            ("rotary", |s| s.position = Position::Rotary(Rotary::new(8, 100.0))),
            ("partial rotary", |s| s.position = Position::Rotary(Rotary::new(4, 10_000.0))),
            ("interleaved rotary", |s| {
                let scaling = Some(RotaryScaling::Linear { factor: 2.0 });
                s.position = Position::Rotary(Rotary { pairs: Pairs::Interleaved, scaling, ..Rotary::new(6, 50.0) });
            }),
            ("ALiBi", |s| s.position = Position::Alibi(Alibi { max_bias: 8.0, bf16: false })),
            ("relative", |s| s.position = Position::RelativeBias(RelativeBias { buckets: 8, max_distance: 15 })),
            ("Transformer-XL", |s| s.position = Position::TransformerXl(TransformerXl { max_distance: 17 })),
        ],
    ),
    (
        "norm",
        &[
            ("LayerNorm", |_| ()),
            ("LayerNorm without bias", |s| s.norm.trained = Trained::Gain),
            ("LayerNorm untrained", |s| s.norm.trained = Trained::Nothing),
            ("RMSNorm", |s| s.norm = Norm { place: s.norm.place, ..Norm::new(NormKind::RmsNorm, 1e-5) }),
            ("ScaleNorm", |s| s.norm = Norm { place: s.norm.place, ..Norm::new(NormKind::ScaleNorm, 1e-5) }),
        ],
    ),
    (
        "place",
        &[
            ("before", |_| ()),
            ("after", |s| s.norm.place = Place::After),
            ("branch", |s| s.norm.place = Place::Branch),
            ("sandwich", |s| s.norm.place = Place::Sandwich),
            ("DeepNorm", |s| (s.norm.place, s.scales.stream) = (Place::After, 1.7)),
        ],
    ),
    (
        "attention",
        &[
            ("causal", |_| ()),
            ("window", |s| s.attention.window = Some(Window { size: 5, layers: None, rotary: None })),
            ("windows", |s| s.attention.window = Some(Window { size: 5, layers: Some(vec![1]), rotary: None })),
            ("windows of other rotary", |s| {
                let rotary = Some(Rotary::new(8, 30.0));
                s.attention.window = Some(Window { size: 3, layers: Some(vec![0]), rotary });
            }),
            ("strided", |s| s.attention.sparse = Some(sparse(SparsePattern::Strided, None))),
            ("fixed in a layer", |s| s.attention.sparse = Some(sparse(SparsePattern::Fixed, Some(vec![1])))),
            ("bidirectional", |s| s.attention.causal = false),
            ("linear", |s| (s.attention.feature_map, s.attention.scale) = (Some(FeatureMap::EluPlusOne), 1.0)),
        ],
    ),
    (
        "heads",
        &[
            ("multi-head", |_| ()),
            ("grouped", |s| s.attention.n_kv_heads = 2),
            ("multi-query", |s| s.attention.n_kv_heads = 1),
        ],
    ),
    (
        "biases",
        &[
            ("none", |_| ()),
            ("query, key, value", |s| s.attention.qkv_bias = true),
            ("output", |s| s.attention.out_bias = true),
            ("both", |s| (s.attention.qkv_bias, s.attention.out_bias) = (true, true)),
        ],
    ),
    (
        "scores",
        &[
            ("plain", |_| ()),
            ("capped", |s| s.attention.softcap = Some(2.0)),
            ("sinks", |s| s.attention.sinks = true),
            ("capped with sinks", |s| (s.attention.softcap, s.attention.sinks) = (Some(3.0), true)),
            ("by layer", |s| s.attention.scale_by_inverse_layer = true),
        ],
    ),
    (
        "queries and keys",
        &[
            ("plain", |_| ()),
            ("clipped", |s| s.attention.clip = Some(0.8)),
            ("RMSNorm", |s| qk_norm(s, NormKind::RmsNorm, Trained::Gain, QkNormOver::Head)),
            ("LayerNorm of its gain", |s| {
                qk_norm(s, NormKind::LayerNorm, Trained::GainAndBias, QkNormOver::HeadWithItsGain);
            }),
            ("over all heads", |s| qk_norm(s, NormKind::RmsNorm, Trained::Gain, QkNormOver::AllHeads)),
        ],
    ),
    (
        "network",
        &[
            ("plain", |_| ()),
            ("biases", |s| s.mlp.bias = true),
            ("gated", |s| s.mlp.gated = true),
            ("gated with biases", |s| (s.mlp.gated, s.mlp.bias) = (true, true)),
            ("experts", |s| experts(s, None, None)),
            ("shared expert", |s| experts(s, Some(12), Some(vec![1]))),
        ],
    ),
    (
        "activation",
        &[
            ("ReLU", |s| s.mlp.activation = Activation::Relu),
            ("squared ReLU", |s| s.mlp.activation = Activation::ReluSquared),
            ("GELU", |s| s.mlp.activation = Activation::GeluErf),
            ("tanh GELU", |s| s.mlp.activation = Activation::GeluTanh),
            ("quick GELU", |s| s.mlp.activation = Activation::GeluQuick),
            ("SiLU", |s| s.mlp.activation = Activation::Silu),
            ("tanh", |s| s.mlp.activation = Activation::Tanh),
        ],
    ),
    (
        "residual",
        &[
            ("sequential", |_| ()),
            ("scaled", |s| s.scales.branch = 0.6),
            ("parallel", |s| s.residual = Residual::Parallel),
            ("parallel, one norm, scaled", |s| {
                (s.residual, s.scales) = (Residual::ParallelOneNorm, Scales { stream: 0.9, branch: 0.7 });
            }),
            ("from the norm", |s| s.residual = Residual::FromNorm),
        ],
    ),
    (
        "embedding",
        &[
            ("plain", |_| ()),
            ("scaled", |s| s.embedding.scale = 1.5),
            ("normed", |s| s.embedding.norm = true),
            ("projected", |s| s.embedding.dim = Some(10)),
        ],
    ),
    ("final norm", &[("there", |_| ()), ("none", |s| s.final_norm = false)]),
    (
        "head",
        &[
            ("tied", |_| ()),
            ("untied", |s| s.head = Head::Untied),
            ("bias", |s| s.logits.bias = true),
            ("scaled", |s| (s.head, s.logits.scale) = (Head::Untied, 0.3)),
            ("capped", |s| (s.logits.scale, s.logits.softcap) = (0.5, Some(3.0))),
            ("none", |s| s.head = Head::None),
        ],
    ),
    ("encoder", &[("none", |_| ()), ("there", |s| s.encoder = Some(Encoder { n_layers: 1, start_id: 3 }))]),
];

/// Two kinds that make no sense together, and what is said of them.
const CONFLICTS: &[([(&str, &[&str]); 2], &str)] = &[
    (
        [
            ("residual", &["parallel", "parallel, one norm, scaled", "from the norm"]),
            ("place", &["after", "branch", "sandwich", "DeepNorm"]),
        ],
        "with norms in place",
    ),
    (
        [
            ("residual", &["parallel", "parallel, one norm, scaled", "from the norm"]),
            ("network", &["experts", "shared expert"]),
        ],
        "experts in a block that is not sequential",
    ),
    (
        [("place", &["after", "branch", "sandwich", "DeepNorm"]), ("network", &["experts", "shared expert"])],
        "experts in a block that is not sequential with norms before",
    ),
    (
        [("attention", &["bidirectional"]), ("head", &["tied", "untied", "bias", "scaled", "capped"])],
        "attention that is not causal, with a head",
    ),
    ([("attention", &["bidirectional"]), ("position", &["ALiBi"])], "attention that is not causal, with ALiBi"),
    (
        [("attention", &["bidirectional"]), ("position", &["Transformer-XL"])],
        "attention that is not causal, with Transformer-XL positions",
    ),
    (
        [("scores", &["capped", "capped with sinks"]), ("position", &["Transformer-XL"])],
        "Transformer-XL positions with a `softcap`",
    ),
    (
        [
            ("attention", &["windows of other rotary"]),
            ("position", &["none", "learned", "sinusoidal", "fairseq", "ALiBi", "relative", "Transformer-XL"]),
        ],
        "a window with `rotary`, other layers have none",
    ),
    (
        [
            ("attention", &["linear"]),
            ("position", &["rotary", "partial rotary", "interleaved rotary", "ALiBi", "relative", "Transformer-XL"]),
        ],
        "linear attention with",
    ),
    (
        [("attention", &["linear"]), ("scores", &["capped", "sinks", "capped with sinks", "by layer"])],
        "linear attention with",
    ),
    (
        [("encoder", &["there"]), ("residual", &["parallel", "parallel, one norm, scaled", "from the norm"])],
        "an encoder with a residual that is not sequential",
    ),
    (
        [("encoder", &["there"]), ("attention", &["window", "windows", "strided", "fixed in a layer", "linear"])],
        "an encoder with",
    ),
    (
        [("encoder", &["there"]), ("attention", &["windows of other rotary"])],
        "a window with `rotary`, other layers have none",
    ),
    ([("encoder", &["there"]), ("attention", &["bidirectional"])], "attention that is not causal, with a head"),
    ([("encoder", &["there"]), ("position", &["ALiBi"])], "an encoder with ALiBi"),
    ([("encoder", &["there"]), ("position", &["Transformer-XL"])], "an encoder with Transformer-XL positions"),
    ([("encoder", &["there"]), ("scores", &["sinks", "capped with sinks"])], "an encoder with sinks"),
    (
        [
            ("encoder", &["there"]),
            ("queries and keys", &["clipped", "RMSNorm", "LayerNorm of its gain", "over all heads"]),
        ],
        "an encoder with",
    ),
    ([("encoder", &["there"]), ("network", &["experts", "shared expert"])], "an encoder with experts"),
    ([("encoder", &["there"]), ("head", &["none"])], "an encoder with a decoder without a head"),
];

fn sparse(pattern: SparsePattern, layers: Option<Vec<usize>>) -> Sparse {
    Sparse { block: 2, local: 2, stride: 3, pattern, layers }
}

fn qk_norm(spec: &mut Spec, kind: NormKind, trained: Trained, over: QkNormOver) {
    spec.attention.qk_norm = Some(QkNorm { kind, eps: 1e-5, trained, over });
}

fn experts(spec: &mut Spec, shared_dim: Option<usize>, layers: Option<Vec<usize>>) {
    let renormalized = shared_dim.is_none();
    spec.mlp.experts = Some(Experts { count: 4, used: 2, ffn_dim: 14, renormalized, shared_dim, layers });
}

/// The kind of each part by its number.
type Choice = Vec<usize>;

fn spec_of(choice: &Choice) -> Spec {
    let mut spec = models::spec();
    (spec.attention.n_heads, spec.attention.n_kv_heads, spec.attention.head_dim) = (6, 6, 8);
    (spec.attention.qkv_bias, spec.attention.out_bias, spec.mlp.bias) = (false, false, false);
    (spec.vocab_size, spec.position, spec.head) = (30, Position::None, Head::Tied);
    // A few parts look at what others have set.
    for (&kind, (_, kinds)) in choice.iter().zip(PARTS) {
        (kinds[kind].1)(&mut spec);
    }
    spec
}

fn name_of(choice: &Choice) -> String {
    let kinds = choice.iter().zip(PARTS).filter(|(kind, _)| **kind > 0);
    kinds.map(|(&kind, (part, kinds))| format!("{part}: {}", kinds[kind].0)).collect::<Vec<_>>().join(", ")
}

/// What is said of two kinds that make no sense together.
fn conflict((a, x): (usize, usize), (b, y): (usize, usize)) -> Option<&'static str> {
    let is = |(part, kinds): &(&str, &[&str]), i: usize, kind: usize| {
        PARTS[i].0 == *part && kinds.contains(&PARTS[i].1[kind].0)
    };
    let found =
        CONFLICTS.iter().find(|([one, other], _)| is(one, a, x) && is(other, b, y) || is(one, b, y) && is(other, a, x));
    found.map(|(_, message)| *message)
}

type Pair = ((usize, usize), (usize, usize));

fn pairs() -> Vec<Pair> {
    let kinds = |part: usize| (0..PARTS[part].1.len()).map(move |kind| (part, kind));
    let of =
        |a: usize| (a + 1..PARTS.len()).flat_map(move |b| kinds(a).flat_map(move |x| kinds(b).map(move |y| (x, y))));
    (0..PARTS.len()).flat_map(of).collect()
}

/// Two kinds, and for the other parts such as go with all chosen before and bring most pairs that are still `missing`.
fn complete(((a, x), (b, y)): Pair, missing: &BTreeSet<Pair>) -> Choice {
    let mut chosen = vec![(a, x), (b, y)];
    // The parts that have most conflicts first.
    let order = ["attention", "residual", "position", "network", "place", "head"];
    let rank = |part: usize| order.iter().position(|name| *name == PARTS[part].0).unwrap_or(order.len());
    let mut rest: Vec<usize> = (0..PARTS.len()).filter(|part| ![a, b].contains(part)).collect();
    rest.sort_by_key(|&part| rank(part));
    for part in rest {
        let fits = |kind: &usize| chosen.iter().all(|&other| conflict(other, (part, *kind)).is_none());
        let gain = |kind: &usize| {
            let sorted =
                |other: (usize, usize)| if other.0 < part { (other, (part, *kind)) } else { ((part, *kind), other) };
            chosen.iter().filter(|&&other| missing.contains(&sorted(other))).count()
        };
        // Of equal ones the first.
        let kind = (0..PARTS[part].1.len()).rev().filter(fits).max_by_key(gain);
        let kind = kind.unwrap_or_else(|| panic!("no {} with {chosen:?}", PARTS[part].0));
        chosen.push((part, kind));
    }
    chosen.sort_unstable();
    chosen.into_iter().map(|(_, kind)| kind).collect()
}

/// Models in which every pair of kinds meets that makes sense.
fn covering() -> Vec<Choice> {
    let mut missing: BTreeSet<Pair> = pairs().into_iter().filter(|&(a, b)| conflict(a, b).is_none()).collect();
    let mut choices = Vec::new();
    while let Some(&pair) = missing.first() {
        let choice = complete(pair, &missing);
        missing.retain(|&((a, x), (b, y))| choice[a] != x || choice[b] != y);
        choices.push(choice);
    }
    choices
}

/// What a model makes of a text that is fed in such pieces.
fn run(model: &Model, pieces: &[&[u32]]) -> Vec<Vec<f32>> {
    let mut engine = Engine::new(model, &EngineOptions { threads: Some(1), max_batch: None }).unwrap();
    let options = SequenceOptions { context: None, cache_type: Some(CacheType::F32) };
    let mut sequence = Sequence::new(model, &options).unwrap();
    if model.encoder().is_some() {
        engine.encode(&mut sequence, &read(pieces.iter().map(|ids| ids.len()).sum())).unwrap();
    }
    let mut rows = Vec::new();
    for ids in pieces {
        if model.spec().head == Head::None {
            let feeds = &mut [Feed::new(&mut sequence, ids).with_logits(0)];
            engine.each_hidden(feeds, |_, _, row| rows.push(row.to_vec())).unwrap();
        } else {
            engine.each(&mut sequence, ids, |_, row| rows.push(row.to_vec())).unwrap();
        }
    }
    rows
}

/// The largest difference from the reference, all at once and, where a text need not run at once, token by token.
fn differences(spec: &Spec, seed: u64, ids: &[u32]) -> Vec<f64> {
    let weights = models::weights(spec, seed);
    let model = models::model_of(spec, &weights);
    let expected = match spec.encoder {
        Some(_) => reference::forward_about(spec, &weights, &read(ids.len()), ids),
        None => reference::forward(spec, &weights, ids),
    };
    let tokens: Vec<&[u32]> = ids.chunks(1).collect();
    let texts: &[&[&[u32]]] = if spec.attention.causal { &[&[ids], &tokens] } else { &[&[ids]] };
    let difference = |pieces: &&[&[u32]]| {
        let found = run(&model, pieces);
        assert_eq!(found.len(), expected.len());
        let pairs = found.iter().flatten().zip(expected.iter().flatten());
        pairs
            .map(|(found, expected)| (f64::from(*found) - expected).abs())
            .fold(0.0, |a, b| if a < b || b.is_nan() { b } else { a })
    };
    texts.iter().map(difference).collect()
}

/// What an encoder reads for a text of `n` tokens: a longer one.
fn read(n: usize) -> Vec<u32> {
    text(n + 16).into_iter().rev().collect()
}

fn text(n: usize) -> Vec<u32> {
    (0..n).map(|i| (models::mix(i as u64 + 77) % 30) as u32).collect()
}

#[test]
fn every_pair_of_parts_is_what_the_reference_makes_of_it() {
    let choices = covering();
    let mut worst: f64 = 0.0;
    for (seed, choice) in choices.iter().enumerate() {
        let spec = spec_of(choice);
        spec.validate().unwrap_or_else(|e| panic!("{}: {e}", name_of(choice)));
        for difference in differences(&spec, seed as u64, &text(24)) {
            assert!(difference < 1e-4, "{}: {difference:e} from the reference", name_of(choice));
            worst = worst.max(difference);
        }
    }
    println!("{} pairs of kinds in {} models, {worst:e} from the reference at most", pairs().len(), choices.len());
}

/// Set where this program runs itself, to give only the digest.
const DIGEST_ONLY: &str = "TIDBIT_COMBINATIONS_DIGEST";

/// What every instruction set makes of the same models: each runs in a process of its own, since a process has one.
#[test]
fn every_instruction_set_gives_the_same_bits() {
    if std::env::var_os(DIGEST_ONLY).is_some() {
        println!("digest {:x}", bits_of_every_model());
        return;
    }
    let bits_of = |isa: &str| {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.env("TIDBIT_ISA", isa).env(DIGEST_ONLY, "1");
        child.args(["--exact", "every_instruction_set_gives_the_same_bits", "--nocapture"]);
        let out = child.output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        let digest = text.split_whitespace().skip_while(|word| *word != "digest").nth(1).map(str::to_owned);
        assert!(out.status.success() && digest.is_some(), "{isa}: {text}");
        digest
    };
    let expected = bits_of("scalar");
    for kernels in kernels::supported() {
        assert_eq!(bits_of(kernels.name()), expected, "{}", kernels.name());
    }
}

/// A digest of all logits of all models.
fn bits_of_every_model() -> u64 {
    let mut digest = 0u64;
    for (seed, choice) in covering().iter().enumerate() {
        let model = models::model(&spec_of(choice), seed as u64);
        for x in run(&model, &[&text(24)]).into_iter().flatten() {
            digest = models::mix(digest ^ u64::from(x.to_bits()));
        }
    }
    digest
}

/// The same beyond a chunk of the attention kernels and the pages of the cache.
#[test]
fn long_texts_are_what_the_reference_makes_of_them() {
    let part = |name: &str| PARTS.iter().position(|(part, _)| *part == name).unwrap();
    let (position, attention, scores) = (part("position"), part("attention"), part("scores"));
    let mut cases = Vec::new();
    for kind in 0..PARTS[position].1.len() {
        cases.push([(position, kind), (scores, 2), (attention, 0)]);
    }
    for kind in 0..PARTS[attention].1.len() {
        cases.push([(attention, kind), (scores, 3), (position, 4)]);
    }
    for kind in [1, 4, 8] {
        cases.push([(part("encoder"), 1), (position, kind), (attention, 0)]);
    }
    for kind in [1, 4] {
        cases.push([(position, 9), (attention, kind), (scores, 4)]);
    }
    for (seed, case) in cases.into_iter().enumerate() {
        let mut choice = vec![0; PARTS.len()];
        for (part, kind) in case {
            choice[part] = kind;
        }
        if PARTS[attention].1[choice[attention]].0 == "linear" {
            (choice[scores], choice[position]) = (0, 1);
        }
        let mut spec = spec_of(&choice);
        (spec.context_length, spec.attention.n_heads, spec.attention.n_kv_heads) = (700, 2, 1);
        if let Some(window) = &mut spec.attention.window {
            window.size = 70;
        }
        if let Some(sparse) = &mut spec.attention.sparse {
            // Whole chunks between what is seen from afar are not seen.
            (sparse.block, sparse.local, sparse.stride) = (20, 3, 28);
        }
        if let Position::TransformerXl(of) = &mut spec.position {
            of.max_distance = 500;
        }
        if !spec.attention.causal {
            spec.head = Head::None;
        }
        for difference in differences(&spec, seed as u64, &text(600)) {
            assert!(difference < 1e-4, "{}: {difference:e} from the reference", name_of(&choice));
        }
    }
}

#[test]
fn a_network_that_no_layer_has_takes_no_memory() {
    let of = |ffn_dim: usize| {
        let mut spec = models::spec();
        experts(&mut spec, None, None);
        spec.mlp.ffn_dim = ffn_dim;
        let model = models::model(&spec, 1);
        let bytes = Engine::new(&model, &EngineOptions { threads: Some(1), max_batch: None }).unwrap().scratch_bytes();
        (bytes, Engine::scratch_bytes_of(&spec, 1), run(&model, &[&text(24)]))
    };
    assert_eq!(of(0), of(usize::MAX));
}

#[test]
fn pairs_that_make_no_sense_are_refused_by_name() {
    let mut n = 0;
    for (a, b) in pairs() {
        if let Some(message) = conflict(a, b) {
            let mut choice = vec![0; PARTS.len()];
            (choice[a.0], choice[b.0]) = (a.1, b.1);
            let error = spec_of(&choice).validate().unwrap_err();
            assert!(error.contains(message), "{}: {error}", name_of(&choice));
            n += 1;
        }
    }
    println!("{n} pairs are refused");
}
