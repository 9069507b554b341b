//! Means with their uncertainty, and percentiles.

use std::ops::Range;

/// With so many windows or more, errors come from the spread between windows.
const ENOUGH_WINDOWS: usize = 8;

/// What was taken to be independent when an error was computed.
///
/// Tokens of a window share a passage and a context, so their scores rise and fall together, and the standard error of
/// independent tokens is too small (on 16 windows of tales, 1.18 instead of 1.92 for a perplexity of 29). Windows are run
/// alone and share nothing but the text, so the spread of *their* sums holds whatever their tokens share. That spread must
/// itself be known, which takes some windows: with fewer than 8, tokens are taken for independent, as llama.cpp always does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Windows.
    Window,
    /// Tokens: the error is a lower bound.
    Token,
}

impl Unit {
    /// What the error of so many windows comes from.
    pub(super) fn of(windows: usize) -> Self {
        if windows < ENOUGH_WINDOWS { Self::Token } else { Self::Window }
    }

    /// Its name, in the plural.
    pub fn name(self) -> &'static str {
        match self {
            Self::Window => "windows",
            Self::Token => "tokens",
        }
    }
}

/// A value measured on a sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The value.
    pub value: f64,
    /// Its standard error; infinite when there is one sample only.
    pub error: f64,
    /// The lower end of the 95 % confidence interval.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

impl Estimate {
    /// `e^x` of an estimated `x`: the interval's ends are mapped, the error is that of a small change.
    pub(super) fn exp(self) -> Self {
        let value = libm::exp(self.value);
        Self { value, error: value * self.error, low: libm::exp(self.low), high: libm::exp(self.high) }
    }

    /// The same, of a value that is known to lie in a range.
    pub(super) fn within(self, range: Range<f64>) -> Self {
        Self { low: self.low.max(range.start), high: self.high.min(range.end), ..self }
    }
}

/// A mean over tokens that come window by window.
#[derive(Clone, Debug, Default)]
pub(super) struct Mean {
    n: f64,
    sum: f64,
    squares: f64,
    /// How many values there were when the window began, and their sum.
    before: (f64, f64),
    windows: usize,
    /// Sums over windows of n², n·s and s², for `n` values with sum `s`.
    products: [f64; 3],
}

impl Mean {
    pub(super) fn push(&mut self, value: f64) {
        self.n += 1.0;
        self.sum += value;
        self.squares += value * value;
    }

    pub(super) fn end_window(&mut self) {
        let (n, s) = (self.n - self.before.0, self.sum - self.before.1);
        for (sum, product) in self.products.iter_mut().zip([n * n, n * s, s * s]) {
            *sum += product;
        }
        self.before = (self.n, self.sum);
        self.windows += 1;
    }

    /// The sum of all values.
    pub(super) fn sum(&self) -> f64 {
        self.sum
    }

    /// The mean. Over windows its variance is `k/(k-1) · sum of (s - n·mean)² / N²` for `k` windows: the estimator of a
    /// ratio of sums (Cochran, *Sampling Techniques*, 3rd ed., 6.4), which lets the last window be shorter. Over tokens it
    /// is the sample variance by `N`.
    pub(super) fn estimate(&self) -> Estimate {
        let mean = self.sum / self.n;
        let (n, residues) = match Unit::of(self.windows) {
            Unit::Token => (self.n, self.squares - mean * self.sum),
            Unit::Window => {
                let [nn, ns, ss] = self.products;
                (self.windows as f64, ss - 2.0 * mean * ns + mean * mean * nn)
            }
        };
        let free = n - 1.0;
        if free < 1.0 {
            return Estimate { value: mean, error: f64::INFINITY, low: f64::NEG_INFINITY, high: f64::INFINITY };
        }
        // Rounding may leave a little less than nothing.
        let error = (residues.max(0.0) * n / free).sqrt() / self.n;
        let reach = error * student_t(free);
        Estimate { value: mean, error, low: mean - reach, high: mean + reach }
    }
}

/// The 97.5 % point of Student's t distribution, by the first terms of its expansion about the normal one (Abramowitz and
/// Stegun 26.7.5): within 0.0008 for 7 degrees of freedom, the fewest that windows give.
fn student_t(free: f64) -> f64 {
    let z: f64 = 1.959_963_984_540_054;
    let square = z * z;
    let terms = [
        z,
        z * (square + 1.0) / 4.0,
        z * ((5.0 * square + 16.0) * square + 3.0) / 96.0,
        z * (((3.0 * square + 19.0) * square + 17.0) * square - 15.0) / 384.0,
    ];
    terms.iter().rev().fold(0.0, |sum, term| sum / free + term)
}

/// The value below which a fraction of all lie, between neighbours in proportion. Reorders the values.
///
/// # Panics
/// When there are none.
pub(super) fn percentile(values: &mut [f32], fraction: f64) -> f64 {
    let at = fraction * (values.len() - 1) as f64;
    let (_, &mut low, above) = values.select_nth_unstable_by(at as usize, f32::total_cmp);
    let low = f64::from(low);
    // The next larger one; at the very end there is none.
    let high = above.iter().copied().min_by(f32::total_cmp).map_or(low, f64::from);
    low + (high - low) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-12 * b.abs().max(1.0)
    }

    fn mean(windows: &[Vec<f64>]) -> Mean {
        let mut mean = Mean::default();
        for window in windows {
            for &value in window {
                mean.push(value);
            }
            mean.end_window();
        }
        mean
    }

    #[test]
    fn a_few_windows_count_as_independent_tokens() {
        // Sum 20, squares 120: variance (120 - 400/5) / 4 = 10, of the mean 2.
        let found = mean(&[vec![0.0, 2.0, 4.0], vec![6.0, 8.0]]).estimate();
        assert!(near(found.value, 4.0) && near(found.error, 2f64.sqrt()), "{found:?}");
        // t for 4 degrees of freedom is 2.776.
        assert!((found.high - 4.0 - 2.776 * found.error).abs() < 0.02, "{found:?}");
        assert!(near(found.high - 4.0, 4.0 - found.low));
    }

    #[test]
    fn many_windows_count_as_one_value_each() {
        // Tokens that repeat their window's value say nothing new: the error is that of the windows' values.
        let values = [1.0, 5.0, 2.0, 8.0, 3.0, 3.0, 7.0, 3.0, 4.0];
        let windows: Vec<_> = values.iter().map(|&v| vec![v; 50]).collect();
        let average = values.iter().sum::<f64>() / 9.0;
        let variance = values.iter().map(|v| (v - average) * (v - average)).sum::<f64>() / 8.0;
        let found = mean(&windows).estimate();
        assert!(near(found.value, average) && near(found.error, (variance / 9.0).sqrt()), "{found:?}");
    }

    #[test]
    fn a_shorter_window_weighs_less() {
        let mut windows: Vec<_> = (0..9).map(|i| vec![f64::from(i), f64::from(i * i) / 10.0, 2.0]).collect();
        windows.push(vec![40.0]);
        let all: Vec<f64> = windows.concat();
        let average = all.iter().sum::<f64>() / all.len() as f64;
        let residue = |w: &Vec<f64>| (w.iter().sum::<f64>() - w.len() as f64 * average).powi(2);
        let variance = windows.iter().map(residue).sum::<f64>() * 10.0 / 9.0 / (all.len() as f64).powi(2);
        let found = mean(&windows).estimate();
        assert!(near(found.value, average) && near(found.error, variance.sqrt()), "{found:?}");
    }

    #[test]
    fn one_value_says_nothing_of_its_error() {
        let found = mean(&[vec![3.0]]).estimate();
        assert_eq!((found.value, found.error, found.low), (3.0, f64::INFINITY, f64::NEG_INFINITY));
        assert_eq!((found.exp().low, found.exp().high), (0.0, f64::INFINITY));
        assert_eq!(found.within(0.0..1.0).low, 0.0);
    }

    #[test]
    fn equal_values_have_no_error() {
        for windows in [3, 20] {
            let found = mean(&vec![vec![1.0; 7]; windows]).estimate();
            assert_eq!((found.value, found.error, found.low, found.high), (1.0, 0.0, 1.0, 1.0));
        }
    }

    #[test]
    fn quantiles_of_the_t_distribution() {
        for (free, expected) in [(7.0, 2.364_624), (10.0, 2.228_139), (30.0, 2.042_272), (1e9, 1.959_964)] {
            assert!((student_t(free) - expected).abs() < 1e-3, "{free}: {}", student_t(free));
        }
    }

    #[test]
    fn percentiles_lie_between_neighbours() {
        let mut values = [5.0, 1.0, 4.0, 2.0, 3.0];
        for (fraction, expected) in [(0.0, 1.0), (0.5, 3.0), (0.9, 4.6), (0.99, 4.96), (1.0, 5.0)] {
            assert!(near(percentile(&mut values, fraction), expected), "{fraction}");
        }
        assert_eq!(percentile(&mut [1.0, 2.0], 0.5), 1.5);
        assert_eq!(percentile(&mut [7.0], 0.9), 7.0);
    }
}
