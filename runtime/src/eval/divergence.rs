//! How far two predictions of one token are apart.
//!
//! Plain Rust in f64, in lanes that the compiler turns into vectors: nothing here depends on the instruction set or on a
//! system's mathematical library, so the bits are the same everywhere. Probabilities that are almost equal need f64: in f32
//! the rounding of the two normalizations is 1e-7, as much as the divergence of a good 16-bit model.

/// Sums that run side by side, for the compiler to make vectors of.
const LANES: usize = 8;

/// `sum of p (log p - log q)` for `p` and `q` the softmax of `reference` and `logits` (both `[vocab_size]`, finite), in nats.
///
/// With `a` and `b` the logits less their largest: `sum of e^a (a - b) / sum of e^a - log(sum of e^a) + log(sum of e^b)`.
/// The same logits give exactly 0.
pub(super) fn kl_divergence(reference: &[f32], logits: &[f32]) -> f64 {
    assert_eq!(reference.len(), logits.len(), "two predictions of one token");
    let (most_a, most_b) = (f64::from(largest(reference)), f64::from(largest(logits)));
    let mut sums = [[0.0; LANES]; 3];
    let mut add = |lane: usize, a: f32, b: f32| {
        let (a, b) = (f64::from(a) - most_a, f64::from(b) - most_b);
        let (p, q) = (exp(a), exp(b));
        sums[0][lane] += p;
        sums[1][lane] += q;
        sums[2][lane] += p * (a - b);
    };
    let (whole, rest) = (reference.chunks_exact(LANES), logits.chunks_exact(LANES));
    let (last_a, last_b) = (whole.remainder(), rest.remainder());
    for (a, b) in whole.zip(rest) {
        for lane in 0..LANES {
            add(lane, a[lane], b[lane]);
        }
    }
    for (lane, (&a, &b)) in last_a.iter().zip(last_b).enumerate() {
        add(lane, a, b);
    }
    let [p, q, weighted] = sums.map(|lanes| lanes.iter().sum::<f64>());
    // Never negative but by rounding.
    (weighted / p - libm::log(p) + libm::log(q)).max(0.0)
}

/// The most probable token; the first of equals.
pub(super) fn argmax(logits: &[f32]) -> Option<usize> {
    let largest = largest(logits);
    logits.iter().position(|&v| v == largest)
}

fn largest(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; 2 * LANES];
    let chunks = x.chunks_exact(2 * LANES);
    let last = chunks.remainder();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, v);
        }
    }
    lanes.iter().chain(last).copied().fold(f32::NEG_INFINITY, larger)
}

/// `e^x` for `x <= 0`, within 2 units in the last place; 1e-304 below -700.
///
/// `x = k log 2 + r` with `|r| <= log(2) / 2`, the Taylor series of `e^r` to the 12th power (what is left out is 2e-16), and
/// `k` into the exponent. No branch and no call, so that lanes stay vectors.
#[inline(always)]
fn exp(x: f64) -> f64 {
    /// Adding it rounds to a whole number, which is then in the low bits.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    /// log 2 in two parts, the first with so few bits that its products with `k` are exact (fdlibm, `e_exp.c`).
    const LOG2: [f64; 2] = [6.931_471_803_691_238e-1, 1.908_214_929_270_587_7e-10];
    const FACTORIALS: [f64; 13] = [
        479_001_600.0,
        39_916_800.0,
        3_628_800.0,
        362_880.0,
        40_320.0,
        5_040.0,
        720.0,
        120.0,
        24.0,
        6.0,
        2.0,
        1.0,
        1.0,
    ];
    let x = if x > -700.0 { x } else { -700.0 };
    let shifted = x * std::f64::consts::LOG2_E + ROUND;
    let k = shifted - ROUND;
    let r = (x - k * LOG2[0]) - k * LOG2[1];
    let series = FACTORIALS.iter().fold(0.0, |sum, factorial| sum * r + 1.0 / factorial);
    series * f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, one step at a time.
    fn slow(reference: &[f32], logits: &[f32]) -> f64 {
        let softmax = |x: &[f32]| {
            let most = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let terms: Vec<f64> = x.iter().map(|&v| libm::exp(f64::from(v) - f64::from(most))).collect();
            let sum: f64 = terms.iter().sum();
            terms.into_iter().map(|t| t / sum).collect::<Vec<_>>()
        };
        let (p, q) = (softmax(reference), softmax(logits));
        p.iter().zip(&q).filter(|(p, _)| **p > 0.0).map(|(p, q)| p * (libm::log(*p) - libm::log(*q))).sum()
    }

    /// Numbers from -5 to 5, no two alike.
    fn row(n: usize, seed: u32) -> Vec<f32> {
        (0..n as u32).map(|i| ((i * 7919 + seed * 104_729) % 10_007) as f32 / 1000.7 - 5.0).collect()
    }

    #[test]
    fn exp_is_that_of_libm() {
        for i in 0..70_000 {
            let x = -f64::from(i) * 0.01;
            let expected = libm::exp(x);
            assert!((exp(x) - expected).abs() <= 4e-16 * expected, "{x}: {} {expected}", exp(x));
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1e300) > 0.0 && exp(-1e300) < 1e-300);
    }

    #[test]
    fn two_tokens_by_hand() {
        // p = (3/4, 1/4), q = (1/2, 1/2): 3/4 log(3/2) + 1/4 log(1/2).
        let expected = 0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln();
        let found = kl_divergence(&[3f32.ln(), 0.0], &[7.0, 7.0]);
        assert!((found - expected).abs() < 1e-7, "{found} {expected}");
    }

    #[test]
    fn is_the_definition_at_every_length() {
        for n in [1, 2, 7, 8, 9, 15, 16, 17, 1000, 3584] {
            let (a, b) = (row(n, 1), row(n, 2));
            let (found, expected) = (kl_divergence(&a, &b), slow(&a, &b));
            assert!((found - expected).abs() <= 1e-13 * expected.max(1.0), "{n}: {found} {expected}");
            // Almost equal: the divergence is half the variance of the difference.
            let near: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b * 1e-4).collect();
            assert!((kl_divergence(&a, &near) - slow(&a, &near)).abs() < 1e-14, "{n}");
        }
    }

    #[test]
    fn equal_logits_have_none() {
        for n in [1, 9, 1000] {
            assert_eq!(kl_divergence(&row(n, 3), &row(n, 3)), 0.0);
        }
    }

    #[test]
    fn extreme_logits_stay_finite() {
        let found = kl_divergence(&[f32::MAX, f32::MIN, 0.0], &[0.0, f32::MAX, f32::MIN]);
        assert!(found.is_finite() && found > 1e38, "{found}");
        assert!((kl_divergence(&[0.0, -1000.0], &[-1000.0, 0.0]) - 1000.0).abs() < 1e-9);
    }

    #[test]
    fn the_first_of_the_most_probable() {
        for n in [1, 15, 16, 17, 40] {
            for at in 0..n {
                let mut x = vec![-1.0; n];
                x[at] = 2.0;
                x[n - 1] = 2.0;
                assert_eq!(argmax(&x), Some(at));
            }
        }
        assert_eq!(argmax(&[]), None);
    }
}
