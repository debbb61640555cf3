//! Intervals, paired tests and the number of examples that would decide. Pure functions of counts; every one is checked
//! against scipy, statsmodels or an independent maximisation (tests/reference/eval_golden.py).

use crate::special::{beta_quantile, binomial_cdf, normal_cdf, normal_quantile};
use limbeck_artifact::random::SplitMix64;
use serde::{Deserialize, Serialize};

/// A closed interval; `low <= high`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    pub low: f64,
    pub high: f64,
}

/// Wilson's score interval of k successes in n, two-sided at `confidence`. [0, 1] when n = 0.
pub fn wilson(k: u64, n: u64, confidence: f64) -> Interval {
    if n == 0 {
        return Interval { low: 0.0, high: 1.0 };
    }
    let (z, n_f) = (normal_quantile(0.5 + confidence / 2.0), n as f64);
    let (p, z2) = (k as f64 / n_f, z * z);
    let centre = (p + z2 / (2.0 * n_f)) / (1.0 + z2 / n_f);
    let half = z / (1.0 + z2 / n_f) * (p * (1.0 - p) / n_f + z2 / (4.0 * n_f * n_f)).sqrt();
    // At the ends the bound is exactly 0 or 1; rounding must not say otherwise.
    let low = if k == 0 { 0.0 } else { (centre - half).clamp(0.0, p) };
    let high = if k == n { 1.0 } else { (centre + half).clamp(p, 1.0) };
    Interval { low, high }
}

/// Exact (Clopper–Pearson) lower bound of a proportion, one-sided: P(true < bound) <= 1 − confidence.
pub fn lower_bound(k: u64, n: u64, confidence: f64) -> f64 {
    if k == 0 || n == 0 { 0.0 } else { beta_quantile(1.0 - confidence, k as f64, (n - k) as f64 + 1.0) }
}

/// Exact (Clopper–Pearson) upper bound of a proportion, one-sided.
pub fn upper_bound(k: u64, n: u64, confidence: f64) -> f64 {
    if k >= n { 1.0 } else { beta_quantile(confidence, k as f64 + 1.0, (n - k) as f64) }
}

/// Exact (Clopper–Pearson) interval, two-sided at `confidence`.
pub fn clopper_pearson(k: u64, n: u64, confidence: f64) -> Interval {
    let one_sided = 0.5 + confidence / 2.0;
    Interval { low: lower_bound(k, n, one_sided), high: upper_bound(k, n, one_sided) }
}

/// Two answerers on the same n rows: `b` rows only the first got right, `c` rows only the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paired {
    pub n: u64,
    pub b: u64,
    pub c: u64,
}

impl Paired {
    /// Counts the discordant rows of two equally long vectors of "was it right".
    pub fn count(first: &[bool], second: &[bool]) -> Paired {
        let b = first.iter().zip(second).filter(|(x, y)| **x && !**y).count() as u64;
        let c = first.iter().zip(second).filter(|(x, y)| !**x && **y).count() as u64;
        Paired { n: first.len().min(second.len()) as u64, b, c }
    }

    /// Draws n rows of which the first alone is right with one chance and the second alone with the other: for simulations.
    pub fn drawn(random: &mut SplitMix64, n: u64, first: f64, second: f64) -> Paired {
        let mut pair = Paired { n, b: 0, c: 0 };
        for _ in 0..n {
            let u = random.unit();
            pair.b += u64::from(u < first);
            pair.c += u64::from(u >= first && u < first + second);
        }
        pair
    }

    /// Accuracy of the first minus accuracy of the second.
    pub fn difference(self) -> f64 {
        if self.n == 0 { 0.0 } else { (self.b as f64 - self.c as f64) / self.n as f64 }
    }

    /// The share of rows on which exactly one is right.
    pub fn discordance(self) -> f64 {
        if self.n == 0 { 0.0 } else { (self.b + self.c) as f64 / self.n as f64 }
    }
}

/// McNemar's exact two-sided p value: under the null each discordant row is a coin toss. 1 without discordant rows.
pub fn mcnemar_exact(pair: Paired) -> f64 {
    let discordant = pair.b + pair.c;
    if discordant == 0 { 1.0 } else { (2.0 * binomial_cdf(pair.b.min(pair.c), discordant, 0.5)).min(1.0) }
}

/// Variance, times n, of the difference when its true value is `delta`, with the other parameter at its restricted
/// maximum likelihood (Tango 1998): 2q̃ + Δ(1 − Δ). Takes rates, so b, c are shares of n.
fn tango_variance(b: f64, c: f64, delta: f64) -> f64 {
    let linear = -b - c + (2.0 - b + c) * delta;
    let constant = -c * delta * (1.0 - delta);
    let root = (linear * linear - 8.0 * constant).max(0.0).sqrt();
    // (√(B² − 4AC) − B) / 2A, or the same with the cancellation taken out.
    let q = if linear <= 0.0 { (root - linear) / 4.0 } else { -2.0 * constant / (root + linear) };
    // Both cells are probabilities: q >= 0 and q + Δ >= 0.
    let q = q.max(0.0).max(-delta);
    (2.0 * q + delta * (1.0 - delta)).max(0.0)
}

/// Tango's score statistic for H0: accuracy difference = `delta`, approximately standard normal under it. Positive
/// when the data lie above `delta`. Without variance (no discordant row and delta 0) it is 0, or infinite when the
/// data contradict `delta` outright.
pub fn tango_z(pair: Paired, delta: f64) -> f64 {
    if pair.n == 0 {
        return 0.0;
    }
    let n = pair.n as f64;
    let distance = pair.difference() - delta;
    let variance = tango_variance(pair.b as f64 / n, pair.c as f64 / n, delta) / n;
    if distance.abs() < 1e-15 {
        0.0
    } else if variance < 1e-300 {
        distance.signum() * f64::INFINITY
    } else {
        distance / variance.sqrt()
    }
}

/// One-sided p value of "the difference is above `delta`" by Tango's score test.
pub fn tango_p_above(pair: Paired, delta: f64) -> f64 {
    1.0 - normal_cdf(tango_z(pair, delta))
}

/// Lower bound of the accuracy difference, one-sided: the smallest `delta` that Tango's test does not reject.
pub fn tango_lower(pair: Paired, confidence: f64) -> f64 {
    if pair.n == 0 {
        return -1.0;
    }
    let z = normal_quantile(confidence);
    let (mut low, mut high) = (-1.0_f64, pair.difference());
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        if tango_z(pair, middle) > z { low = middle } else { high = middle }
    }
    low
}

/// Upper bound of the accuracy difference, one-sided.
pub fn tango_upper(pair: Paired, confidence: f64) -> f64 {
    -tango_lower(Paired { n: pair.n, b: pair.c, c: pair.b }, confidence)
}

/// Tango's interval of the accuracy difference, two-sided at `confidence`.
pub fn tango_interval(pair: Paired, confidence: f64) -> Interval {
    let one_sided = 0.5 + confidence / 2.0;
    Interval { low: tango_lower(pair, one_sided), high: tango_upper(pair, one_sided) }
}

/// The error rates that a decision is made with: one-sided `alpha` and the `power` that "examples needed" aims at.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Risk {
    pub alpha: f64,
    pub power: f64,
}

impl Default for Risk {
    fn default() -> Self {
        Self { alpha: 0.05, power: 0.8 }
    }
}

/// Past this many examples the honest answer is that more of them will not decide.
pub const MAX_EXAMPLES: u64 = 100_000;

/// (z_α √v0 + z_β √v1)² / gap²: examples at which a normal test at level alpha finds `gap` with the given power, where
/// v0 and v1 are the variances of one example under the null and at the observed rates. None past [`MAX_EXAMPLES`].
fn examples(v0: f64, v1: f64, gap: f64, risk: Risk) -> Option<u64> {
    let reach = normal_quantile(1.0 - risk.alpha) * v0.sqrt() + normal_quantile(risk.power) * v1.sqrt();
    let n = (reach / gap).powi(2).ceil();
    (n.is_finite() && n <= MAX_EXAMPLES as f64).then_some(n.max(1.0) as u64)
}

/// Examples, in all, that would decide between "above" and "below" `threshold` for an accuracy difference, if the
/// observed discordance and difference are the true ones. None: more than [`MAX_EXAMPLES`].
pub fn examples_for_difference(pair: Paired, threshold: f64, risk: Risk) -> Option<u64> {
    let n = pair.n.max(1) as f64;
    let difference = pair.difference();
    let v0 = tango_variance(pair.b as f64 / n, pair.c as f64 / n, threshold);
    let v1 = (pair.discordance() - difference * difference).max(0.0);
    examples(v0, v1, difference - threshold, risk).map(|needed| needed.max(pair.n + 1))
}

/// Examples, in all, that would decide between "above" and "below" `threshold` for a proportion of which k of n were
/// seen. The exact bound needs at least ln α / ln threshold rows without a single miss, whatever the rate.
pub fn examples_for_proportion(k: u64, n: u64, threshold: f64, risk: Risk) -> Option<u64> {
    let p = if n == 0 { 0.5 } else { k as f64 / n as f64 };
    let v0 = threshold * (1.0 - threshold);
    let least = if p > threshold && threshold > 0.0 { (risk.alpha.ln() / threshold.ln()).ceil() as u64 } else { 0 };
    examples(v0, p * (1.0 - p), p - threshold, risk).map(|needed| needed.max(least).max(n + 1))
}

/// Examples with which a normal test at level alpha tells a rate of `rate` from one of `limit` with the given power. None past
/// [`MAX_EXAMPLES`].
pub fn examples_for_rate(rate: f64, limit: f64, risk: Risk) -> Option<u64> {
    examples(limit * (1.0 - limit), rate * (1.0 - rate), rate - limit, risk)
}

/// Examples, in all, that would decide for an estimate whose standard error at n rows is known, `gap` away from the
/// demand: the error shrinks with √n.
pub fn examples_for_spread(standard_error: f64, n: u64, gap: f64, risk: Risk) -> Option<u64> {
    let variance = standard_error * standard_error * n as f64;
    examples(variance, variance, gap, risk).map(|needed| needed.max(n + 1))
}
