//! Bounds by resampling, corrected for bias and skew (BCa, Efron 1987), seeded: of macro-F1, stratified by gold label so that the
//! support of every class stays, of differences between arms when rows come in groups; and of means (bootstrap-t).

use crate::metrics::Confusion;
use crate::special::{normal_cdf, normal_quantile};
use crate::statistics::Interval;
use limbeck_artifact::random::SplitMix64;
use serde::{Deserialize, Serialize};

/// One-sided bounds of macro-F1 or a mean, and the standard error they came from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BootstrapBounds {
    pub estimate: f64,
    pub lower: f64,
    pub upper: f64,
    pub standard_error: f64,
    pub resamples: u32,
}

/// Interval of the accuracy difference of two answerers of the same rows, two-sided at `confidence`, when whole groups are
/// drawn (cluster bootstrap, BCa with groups left out one at a time): rows of one customer are not independent. None with
/// fewer than two groups.
pub fn cluster_difference(
    first: &[bool],
    second: &[bool],
    groups: &[&str],
    confidence: f64,
    resamples: u32,
    seed: u64,
) -> Option<Interval> {
    let mut sums = std::collections::BTreeMap::<&str, (f64, f64)>::new();
    for ((first, second), group) in first.iter().zip(second).zip(groups) {
        let sum = sums.entry(group).or_default();
        sum.0 += f64::from(u8::from(*first)) - f64::from(u8::from(*second));
        sum.1 += 1.0;
    }
    let groups: Vec<(f64, f64)> = sums.into_values().collect();
    if groups.len() < 2 {
        return None;
    }
    let whole = groups.iter().fold((0.0, 0.0), |sum, group| (sum.0 + group.0, sum.1 + group.1));
    let estimate = whole.0 / whole.1;
    let mut rng = SplitMix64::new(seed);
    let mut draw = || {
        let (mut difference, mut rows) = (0.0, 0.0);
        for _ in 0..groups.len() {
            let group = groups[rng.below(groups.len())];
            difference += group.0;
            rows += group.1;
        }
        difference / rows
    };
    let mut draws: Vec<f64> = (0..resamples.max(1)).map(|_| draw()).collect();
    draws.sort_by(f64::total_cmp);
    let without: Vec<f64> = groups.iter().map(|group| (whole.0 - group.0) / (whole.1 - group.1)).collect();
    let mean = without.iter().sum::<f64>() / without.len() as f64;
    let cubes: f64 = without.iter().map(|v| (mean - v).powi(3)).sum();
    let squares: f64 = without.iter().map(|v| (mean - v).powi(2)).sum();
    let skew = if squares <= 0.0 { 0.0 } else { cubes / (6.0 * squares.powf(1.5)) };
    let bounds = Bca { draws: &draws, estimate, skew };
    let one_sided = 0.5 + confidence / 2.0;
    Some(Interval { low: bounds.at(1.0 - one_sided).min(estimate), high: bounds.at(one_sided).max(estimate) })
}

/// A t that no sample of any use has.
const BEYOND: f64 = 1e9;

/// Bounds of a mean, each one-sided at `confidence`, by the bootstrap of Student's t (Efron 1981, Hall 1988): rows are drawn one
/// by one. Of numbers that are rarely large, as divergences are, the upper bound lies further from the mean than the lower one,
/// which BCa does too little of on a few hundred rows.
pub fn mean_bounds(values: &[f64], confidence: f64, resamples: u32, seed: u64) -> BootstrapBounds {
    let (n, resamples) = (values.len() as f64, resamples.max(1));
    let moments = |sum: f64, squares: f64| {
        let mean = sum / n;
        (mean, ((squares / n - mean * mean).max(0.0) / (n - 1.0).max(1.0)).sqrt())
    };
    let of = |sum: (f64, f64), v: f64| (sum.0 + v, sum.1 + v * v);
    let (sum, squares) = values.iter().fold((0.0, 0.0), |sum, v| of(sum, *v));
    let (estimate, standard_error) = moments(sum, squares);
    let mut rng = SplitMix64::new(seed);
    let mut t = || {
        let (sum, squares) = (0..values.len()).fold((0.0, 0.0), |sum, _| of(sum, values[rng.below(values.len())]));
        let (mean, own) = moments(sum, squares);
        let off = mean - estimate;
        match own > 0.0 {
            true => off / own,
            // One value drawn over and over tells nothing of the spread: it counts as beyond every bound.
            false if off.abs() > 1e-12 * estimate.abs() => off.signum() * BEYOND,
            false => 0.0,
        }
    };
    let mut draws: Vec<f64> = (0..resamples).map(|_| t()).collect();
    draws.sort_by(f64::total_cmp);
    let at = |p: f64| draws[((p * f64::from(resamples)) as usize).min(draws.len() - 1)];
    let (lower, upper) = (estimate - at(confidence) * standard_error, estimate - at(1.0 - confidence) * standard_error);
    BootstrapBounds { estimate, lower: lower.min(estimate), upper: upper.max(estimate), standard_error, resamples }
}

/// As [`mean_bounds`], of values between 0 and 1. What n rows did not show at all may still be a share of up to 1 - alpha^(1/n)
/// of those to come, as bad (as good) as can be: the bounds are at least that far from the mean, or values that are all the same
/// would be proof.
pub fn unit_mean_bounds(values: &[f64], confidence: f64, resamples: u32, seed: u64) -> BootstrapBounds {
    let bounds = mean_bounds(values, confidence, resamples, seed);
    let unseen = 1.0 - (1.0 - confidence).powf(1.0 / (values.len() as f64).max(1.0));
    let (lowest, highest) = (bounds.estimate * (1.0 - unseen), bounds.estimate + (1.0 - bounds.estimate) * unseen);
    BootstrapBounds { lower: bounds.lower.min(lowest).max(0.0), upper: bounds.upper.max(highest).min(1.0), ..bounds }
}

/// Quantiles of sorted draws, corrected for bias and skew.
struct Bca<'a> {
    draws: &'a [f64],
    estimate: f64,
    skew: f64,
}

impl Bca<'_> {
    fn at(&self, p: f64) -> f64 {
        let n = self.draws.len() as f64;
        // Ties count half, else a statistic of few values would look biased.
        let below = self.draws.iter().filter(|d| **d < self.estimate - 1e-12).count() as f64;
        let ties = self.draws.iter().filter(|d| (**d - self.estimate).abs() <= 1e-12).count() as f64;
        let bias = normal_quantile(((below + ties / 2.0) / n).clamp(0.5 / n, 1.0 - 0.5 / n));
        let z = bias + normal_quantile(p);
        let adjusted = normal_cdf(bias + z / (1.0 - self.skew * z).max(1e-6));
        self.draws[((adjusted * n) as usize).min(self.draws.len() - 1)]
    }
}

/// BCa bounds of macro-F1, each one-sided at `confidence`.
pub fn macro_f1_bounds(
    gold: &[usize],
    predicted: &[Option<usize>],
    labels: usize,
    confidence: f64,
    resamples: u32,
    seed: u64,
) -> BootstrapBounds {
    let full = Confusion::count(gold, predicted, labels);
    let estimate = full.macro_f1();
    let mut by_class: Vec<Vec<Option<usize>>> = vec![Vec::new(); labels];
    for (&gold, answer) in gold.iter().zip(predicted) {
        by_class[gold].push(answer.filter(|label| *label < labels));
    }

    let mut rng = SplitMix64::new(seed);
    let mut draws: Vec<f64> = (0..resamples.max(1)).map(|_| resample(&by_class, labels, &mut rng).macro_f1()).collect();
    draws.sort_by(f64::total_cmp);
    let n = draws.len() as f64;
    let mean = draws.iter().sum::<f64>() / n;
    let standard_error = (draws.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0)).sqrt();

    let bounds = Bca { draws: &draws, estimate, skew: acceleration(&full, gold, predicted) };
    let (lower, upper) = (bounds.at(1.0 - confidence).min(estimate), bounds.at(confidence).max(estimate));
    BootstrapBounds { estimate, lower, upper, standard_error, resamples: resamples.max(1) }
}

fn resample(by_class: &[Vec<Option<usize>>], labels: usize, rng: &mut SplitMix64) -> Confusion {
    let mut confusion = Confusion { counts: vec![vec![0; labels]; labels], invalid: vec![0; labels] };
    for (gold, answers) in by_class.iter().enumerate() {
        for _ in 0..answers.len() {
            match answers[rng.below(answers.len())] {
                Some(label) => confusion.counts[gold][label] += 1,
                None => confusion.invalid[gold] += 1,
            }
        }
    }
    confusion
}

/// Skew of the statistic by the jackknife. Rows of one confusion cell are alike, so each cell is left out once.
fn acceleration(full: &Confusion, gold: &[usize], predicted: &[Option<usize>]) -> f64 {
    let mut cells = std::collections::BTreeMap::<(usize, Option<usize>), u64>::new();
    for (&gold, answer) in gold.iter().zip(predicted) {
        *cells.entry((gold, *answer)).or_default() += 1;
    }
    let mut without = full.clone();
    let mut values = Vec::with_capacity(cells.len());
    for (&(gold, answer), &rows) in &cells {
        let cell = match answer {
            Some(label) if label < full.counts.len() => &mut without.counts[gold][label],
            _ => &mut without.invalid[gold],
        };
        *cell -= 1;
        values.push((without.macro_f1(), rows as f64));
        match answer {
            Some(label) if label < full.counts.len() => without.counts[gold][label] += 1,
            _ => without.invalid[gold] += 1,
        }
    }
    let n: f64 = values.iter().map(|(_, rows)| rows).sum();
    let mean = values.iter().map(|(v, rows)| v * rows).sum::<f64>() / n.max(1.0);
    let cubes: f64 = values.iter().map(|(v, rows)| (mean - v).powi(3) * rows).sum();
    let squares: f64 = values.iter().map(|(v, rows)| (mean - v).powi(2) * rows).sum();
    if squares <= 0.0 { 0.0 } else { cubes / (6.0 * squares.powf(1.5)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Means of skewed numbers: a bound is on the wrong side of the truth about as often as it may be.
    #[test]
    fn bounds_of_a_mean_hold_what_they_promise() {
        let mut rng = SplitMix64::new(3);
        let mut uniform = || (rng.below(1 << 24) as f64 + 0.5) / (1u64 << 24) as f64;
        let trials = 600;
        for (sigma, rows, slack) in [(0.5f64, 300, 0.03), (1.0, 300, 0.045)] {
            let truth = (sigma * sigma / 2.0).exp();
            let (mut below, mut above) = (0, 0);
            for trial in 0..trials {
                let values: Vec<f64> = (0..rows).map(|_| (sigma * normal_quantile(uniform())).exp()).collect();
                let bounds = mean_bounds(&values, 0.95, 300, trial);
                assert!(bounds.lower <= bounds.estimate && bounds.estimate <= bounds.upper);
                below += u32::from(bounds.upper < truth);
                above += u32::from(bounds.lower > truth);
            }
            let share = |n: u32| f64::from(n) / trials as f64;
            assert!(
                share(below) < 0.05 + slack && share(above) < 0.05 + slack,
                "{sigma}: {below}, {above} of {trials}"
            );
            assert!(share(below) > 0.01 && share(above) > 0.005, "{sigma}: {below}, {above} of {trials}");
        }
    }

    #[test]
    fn a_mean_of_equal_numbers_is_known() {
        let bounds = mean_bounds(&[0.25; 40], 0.95, 100, 1);
        assert_eq!((bounds.lower, bounds.estimate, bounds.upper), (0.25, 0.25, 0.25));
        let two = mean_bounds(&[0.0, 1.0], 0.95, 100, 1);
        assert!(two.lower < 0.0 + 0.5 && two.upper > 0.5 && two.standard_error == 0.5);
    }
}
