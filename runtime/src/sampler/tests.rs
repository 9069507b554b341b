//! The sampler against a naive one, and the distributions it draws from.

use super::*;
use proptest::prelude::*;

fn plain() -> SamplerOptions {
    SamplerOptions { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..SamplerOptions::default() }
}

fn sampler(options: SamplerOptions) -> Sampler {
    Sampler::new(options).unwrap()
}

/// How often each of `n_ids` tokens comes in `n` draws.
fn frequencies(options: SamplerOptions, logits: &[f32], n: usize) -> Vec<f64> {
    let mut sampler = sampler(options);
    let mut counts = vec![0.0; logits.len()];
    for _ in 0..n {
        counts[sampler.sample(logits, &[]).unwrap() as usize] += 1.0 / n as f64;
    }
    counts
}

/// The documented steps, one after the other, each with a full sort: ids that may be drawn, with
/// their probabilities, best first.
fn naive(options: &SamplerOptions, logits: &[f32], recent: &[u32]) -> Vec<(u32, f64)> {
    let mut logits = logits.to_vec();
    let mut seen: Vec<u32> = recent.iter().rev().take(options.repeat_last_n).copied().collect();
    seen.sort_unstable();
    seen.dedup();
    for id in seen {
        let logit = &mut logits[id as usize];
        *logit = if *logit > 0.0 { *logit / options.repeat_penalty } else { *logit * options.repeat_penalty };
    }
    let mut list: Vec<(u32, f64)> = (0..).zip(logits.iter().map(|&l| f64::from(l))).collect();
    list.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if options.temperature == 0.0 {
        return vec![(list[0].0, 1.0)];
    }
    if options.top_k > 0 {
        list.truncate(options.top_k);
    }
    let best = list[0].1;
    for entry in &mut list {
        entry.1 = ((entry.1 - best) / f64::from(options.temperature)).exp();
    }
    let normalize = |list: &mut Vec<(u32, f64)>| {
        let total: f64 = list.iter().map(|e| e.1).sum();
        for entry in list {
            entry.1 /= total;
        }
    };
    normalize(&mut list);
    if options.top_p < 1.0 {
        let mut sum = 0.0;
        let enough = list.iter().position(|e| {
            sum += e.1;
            sum >= f64::from(options.top_p)
        });
        list.truncate(enough.map_or(list.len(), |at| at + 1));
    }
    let bar = list[0].1 * f64::from(options.min_p);
    list.retain(|e| e.1 >= bar);
    normalize(&mut list);
    list
}

#[test]
fn draws_in_proportion_to_the_probabilities() {
    let logits = [0.1f32, 0.2, 0.3, 0.4].map(f32::ln);
    let got = frequencies(plain(), &logits, 100_000);
    for (got, expected) in got.iter().zip([0.1, 0.2, 0.3, 0.4]) {
        assert!((got - expected).abs() < 0.01, "{got} should be near {expected}");
    }
}

#[test]
fn temperature_sharpens_and_flattens() {
    let logits = [0.0, 1.0];
    for temperature in [0.5f32, 1.0, 4.0] {
        let got = frequencies(SamplerOptions { temperature, ..plain() }, &logits, 50_000)[1];
        let expected = 1.0 / (1.0 + (-1.0 / f64::from(temperature)).exp());
        assert!((got - expected).abs() < 0.01, "{temperature}: {got} should be near {expected}");
    }
}

#[test]
fn temperature_zero_takes_the_lowest_id_of_the_best() {
    let mut greedy = sampler(SamplerOptions { temperature: 0.0, ..SamplerOptions::default() });
    assert_eq!(greedy.sample(&[1.0, 3.0, 3.0, 2.0], &[]).unwrap(), 1);
    assert_eq!(greedy.sample(&[f32::NEG_INFINITY, -5.0], &[]).unwrap(), 1);
}

#[test]
fn temperature_zero_still_penalizes_repeats() {
    let mut greedy = sampler(SamplerOptions { temperature: 0.0, repeat_penalty: 2.0, ..SamplerOptions::default() });
    assert_eq!(greedy.sample(&[3.0, 2.0], &[0]).unwrap(), 1);
    assert_eq!(greedy.sample(&[3.0, 2.0], &[0, 0]).unwrap(), 1, "penalized once");
    assert_eq!(greedy.sample(&[3.1, 1.5], &[0, 0]).unwrap(), 0, "penalized once, not twice");
    assert_eq!(greedy.sample(&[-1.0, -1.5], &[0]).unwrap(), 1, "negative logits move down too");
    assert_eq!(greedy.sample(&[3.0, 2.0], &[7]).unwrap(), 0, "ids outside the vocabulary are passed over");
}

#[test]
fn only_the_latest_tokens_are_penalized() {
    let options = SamplerOptions { temperature: 0.0, repeat_penalty: 2.0, ..SamplerOptions::default() };
    let mut short = sampler(SamplerOptions { repeat_last_n: 1, ..options.clone() });
    assert_eq!(short.sample(&[3.0, 2.0], &[0, 1]).unwrap(), 0);
    let mut off = sampler(SamplerOptions { repeat_last_n: 0, ..options });
    assert_eq!(off.sample(&[3.0, 2.0], &[0]).unwrap(), 0);
}

#[test]
fn each_cut_keeps_what_it_says() {
    // Probabilities 0.5, 0.25, 0.125, 0.0625, 0.0625.
    let logits = [0.25f32, 0.5, 0.0625, 0.125, 0.0625].map(f32::ln);
    let kept = |options| {
        let found = frequencies(options, &logits, 5_000);
        (0..5).filter(|&id| found[id] > 0.0).collect::<Vec<_>>()
    };
    assert_eq!(kept(plain()), [0, 1, 2, 3, 4]);
    assert_eq!(kept(SamplerOptions { top_k: 1, ..plain() }), [1]);
    assert_eq!(kept(SamplerOptions { top_k: 4, ..plain() }), [0, 1, 2, 3], "of equals, the lowest id");
    assert_eq!(kept(SamplerOptions { top_k: 99, ..plain() }), [0, 1, 2, 3, 4]);
    assert_eq!(kept(SamplerOptions { top_p: 0.6, ..plain() }), [0, 1]);
    assert_eq!(kept(SamplerOptions { top_p: 1e-6, ..plain() }), [1]);
    assert_eq!(kept(SamplerOptions { min_p: 0.2, ..plain() }), [0, 1, 3]);
    assert_eq!(kept(SamplerOptions { min_p: 1.0, ..plain() }), [1]);
    // Top-p counts within what top-k left: 0.5 of 0.75 is 0.67.
    assert_eq!(kept(SamplerOptions { top_k: 2, top_p: 0.66, ..plain() }), [1]);
}

#[test]
fn the_same_seed_gives_the_same_ids() {
    let logits: Vec<f32> = (0..500).map(|i| (i as f32 * 0.37).sin() * 3.0).collect();
    let run = |seed| {
        let mut sampler = sampler(SamplerOptions { seed, ..SamplerOptions::default() });
        (0..12).map(|_| sampler.sample(&logits, &[]).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

/// Written down once: a change of generator, order or arithmetic must show here.
#[test]
fn ids_are_those_of_every_other_machine() {
    let logits: Vec<f32> = (0..64).map(|i: u16| f32::from(i * 29 % 64) * 0.125).collect();
    let mut sampler = sampler(SamplerOptions { seed: 42, ..SamplerOptions::default() });
    let ids: Vec<u32> = (0..10).map(|_| sampler.sample(&logits, &[]).unwrap()).collect();
    assert_eq!(ids, GOLDEN);
}

const GOLDEN: [u32; 10] = [2, 11, 33, 22, 11, 33, 22, 57, 33, 2];

#[test]
fn the_best_token_is_the_first_of_equals_wherever_it_stands() {
    let mut greedy = Sampler::new(SamplerOptions { temperature: 0.0, ..SamplerOptions::default() }).unwrap();
    for len in [1, 63, 64, 65, 130, 257] {
        for at in (0..len).step_by(7) {
            for value in [1.0, -0.0, -3.0] {
                let mut logits: Vec<f32> = (0..len).map(|i| value - 1.0 - (i % 5) as f32).collect();
                logits[at] = value;
                // An equal one, of either zero, comes too late.
                logits[len - 1] = value + 0.0;
                let expected = logits.iter().position(|&l| l == value).unwrap() as u32;
                assert_eq!(greedy.sample(&logits, &[]).unwrap(), expected, "{value} at {at} of {len}");
                logits[len - 1] = f32::NAN;
                let error = greedy.sample(&logits, &[]).unwrap_err().to_string();
                assert!(error.contains(&format!("token {}: NaN", len - 1)), "{error}");
            }
        }
    }
}

#[test]
fn refuses_logits_that_are_not_finite() {
    let mut sampler = sampler(SamplerOptions::default());
    let message = |logits: &[f32], sampler: &mut Sampler| sampler.sample(logits, &[]).unwrap_err().to_string();
    assert!(message(&[0.0, f32::NAN], &mut sampler).contains("token 1: NaN"));
    assert!(message(&[f32::INFINITY], &mut sampler).contains("token 0: inf"));
    assert!(message(&[f32::NEG_INFINITY; 3], &mut sampler).contains("token 0: -inf"));
    assert_eq!(sampler.sample(&[f32::NEG_INFINITY, 0.0], &[]).unwrap(), 1);
}

#[test]
fn extreme_values_stay_in_range() {
    for (temperature, repeat_penalty) in [(1e-40, 1.0), (1e30, 1.0), (1.0, 1e-30), (1.0, 1e30), (1e-40, 1e-30)] {
        let options = SamplerOptions { temperature, repeat_penalty, ..plain() };
        let mut sampler = sampler(options);
        for _ in 0..20 {
            let id = sampler.sample(&[f32::MAX, f32::MIN, 0.0, -0.0, f32::NEG_INFINITY], &[0, 1, 4]).unwrap();
            assert!(id < 4, "{id} has no probability");
        }
    }
}

#[test]
fn names_the_option_that_is_out_of_range() {
    let message = |options| Sampler::new(options).unwrap_err().to_string();
    let base = SamplerOptions::default;
    assert_eq!(message(SamplerOptions { temperature: f32::NAN, ..base() }), "`temperature` is NaN, expected 0 or more");
    assert_eq!(message(SamplerOptions { temperature: -1.0, ..base() }), "`temperature` is -1, expected 0 or more");
    for value in [f32::NAN, 0.0, -0.1, 1.1, f32::INFINITY] {
        assert!(message(SamplerOptions { top_p: value, ..base() }).starts_with("`top-p` is "));
    }
    for value in [f32::NAN, -0.1, 1.1] {
        assert!(message(SamplerOptions { min_p: value, ..base() }).starts_with("`min-p` is "));
    }
    for value in [f32::NAN, 0.0, -1.0, f32::INFINITY] {
        assert!(message(SamplerOptions { repeat_penalty: value, ..base() }).starts_with("`repeat-penalty` is "));
    }
}

#[test]
fn allocates_only_at_the_first_token() {
    let logits: Vec<f32> = (0..3000).map(|i| (i as f32).cos()).collect();
    for top_k in [0, 40] {
        let mut sampler = sampler(SamplerOptions { top_k, repeat_penalty: 1.1, ..plain() });
        sampler.sample(&logits, &[1]).unwrap();
        let before = (sampler.candidates.as_ptr(), sampler.penalized.as_ptr());
        for _ in 0..50 {
            sampler.sample(&logits, &[1, 2, 3]).unwrap();
        }
        assert_eq!(before, (sampler.candidates.as_ptr(), sampler.penalized.as_ptr()));
    }
}

fn options() -> impl Strategy<Value = SamplerOptions> {
    let top_k = prop_oneof![Just(0usize), 1usize..700];
    let top_p = prop_oneof![Just(1.0f32), 0.01f32..1.0];
    let min_p = prop_oneof![Just(0.0f32), 0.0f32..0.5];
    (prop_oneof![Just(0.0f32), 0.1f32..3.0], top_k, top_p, min_p, 0.5f32..2.0, 0usize..8, any::<u64>()).prop_map(
        |(temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n, seed)| SamplerOptions {
            temperature,
            top_k,
            top_p,
            min_p,
            repeat_penalty,
            repeat_last_n,
            seed,
        },
    )
}

proptest! {
    /// Quarter steps, so that equal logits are common and rounding never decides a cut.
    #[test]
    fn draws_from_the_set_that_the_naive_sampler_keeps(
        options in options(),
        steps in prop::collection::vec(-40i16..40, 1..600),
        recent in prop::collection::vec(0usize..600, 0..12),
    ) {
        let logits: Vec<f32> = steps.iter().map(|&s| f32::from(s) * 0.25).collect();
        let recent: Vec<u32> = recent.into_iter().map(|i| (i % logits.len()) as u32).collect();
        let expected = naive(&options, &logits, &recent);
        let mut sampler = sampler(options.clone());
        let id = sampler.sample(&logits, &recent).unwrap();
        // At a cut that falls on the edge of rounding the two may differ by the last one kept.
        prop_assert!(
            expected.iter().any(|e| e.0 == id) || naive_edge(&options, &logits, &recent, id),
            "{} is not among {:?}", id, expected
        );
        if options.temperature > 0.0 {
            let kept: Vec<u32> = {
                let mut c = sampler.candidates.clone();
                c.sort_by(best_first);
                c.iter().map(|c| c.id).collect()
            };
            let ids: Vec<u32> = expected.iter().map(|e| e.0).collect();
            let common = kept.len().min(ids.len());
            prop_assert_eq!(&kept[..common], &ids[..common]);
            // f32 weights against f64: only a run of tokens at the cut's very edge may differ.
            prop_assert!(kept.len().abs_diff(ids.len()) <= 1, "{} kept, {} expected", kept.len(), ids.len());
        }
    }
}

/// Whether a cut a hair wider would keep `id`.
fn naive_edge(options: &SamplerOptions, logits: &[f32], recent: &[u32], id: u32) -> bool {
    let wider = SamplerOptions {
        top_p: (options.top_p * (1.0 + 1e-5)).min(1.0),
        min_p: options.min_p * (1.0 - 1e-5),
        ..options.clone()
    };
    naive(&wider, logits, recent).iter().any(|e| e.0 == id)
}
