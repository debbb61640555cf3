//! The gate on calibration: is the expected calibration error of the candidate's confidences at most so much? The error that is
//! measured is too large on average, more so on few rows, and both bounds take that into account.

use super::rules::{Finding, Needs, absent, numbers};
use super::{Evidence, Verdict};
use crate::calibration::{BINS, calibrated};
use crate::evaluate::posteriors;
use crate::metrics::Prediction;
use crate::said::said_confidences;
use crate::special::{normal_cdf, normal_quantile, t_quantile};
use crate::statistics::{MAX_EXAMPLES, Risk};
use crate::words::{percent, points};

/// What the bins tell: of each its share of the rows, what its rows said on average, the share that was right, and the standard
/// error of that share.
struct Bins(Vec<(f64, f64, f64, f64)>);

/// The measured error over equal-mass bins, and bounds of the true one in the same bins.
///
/// The measured error is Σ w |δ + noise| over the bins, where Σ w |δ| is the true one; each term is a folded normal variable. Its
/// mean is convex in |δ|. So of all ways to err by e in total, the same |δ| = e in each bin has the least mean, and that is what
/// the upper bound supposes; an error in one bin alone has the greatest, the noise of all bins and e, and that is the lower one's.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Bounds {
    measured: f64,
    lower: f64,
    upper: f64,
    /// Mean of the measured error where the true one is 0.
    by_chance: f64,
}

/// Mean and variance of |X| for X normal.
fn folded(mean: f64, sd: f64) -> (f64, f64) {
    if sd <= 0.0 {
        return (mean.abs(), 0.0);
    }
    let z = mean / sd;
    let density = (-z * z / 2.0).exp() * (2.0 / std::f64::consts::PI).sqrt();
    let folded = sd * density + mean * (1.0 - 2.0 * normal_cdf(-z));
    (folded, (mean * mean + sd * sd - folded * folded).max(0.0))
}

impl Bins {
    fn of(rows: &[(f64, bool)]) -> Bins {
        let mut sorted = rows.to_vec();
        sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
        let n = sorted.len();
        let bin = |rows: &[(f64, bool)]| {
            let size = rows.len() as f64;
            let right = rows.iter().filter(|(_, right)| *right).count() as f64;
            // A bin in which all are right, or none, need not be so for good: Laplace's rule of succession.
            let likely = (right + 1.0) / (size + 2.0);
            let said = rows.iter().map(|(c, _)| c).sum::<f64>() / size;
            (size / n as f64, said, right / size, (likely * (1.0 - likely) / size).sqrt())
        };
        let parts = (0..BINS).map(|i| &sorted[n * i / BINS..n * (i + 1) / BINS]);
        Bins(parts.filter(|rows| !rows.is_empty()).map(bin).collect())
    }

    /// Mean and standard deviation of the measured error where each bin errs by `error(bin)`; the noise is `scale` times that of
    /// these rows.
    fn expected(&self, scale: f64, error: impl Fn(f64, f64) -> f64) -> (f64, f64) {
        let parts = self.0.iter().map(|(w, said, seen, se)| (w, folded(error(*said, *seen), se * scale)));
        let (mean, variance) = parts.fold((0.0, 0.0), |sum, (w, (m, v))| (sum.0 + w * m, sum.1 + w * w * v));
        (mean, variance.sqrt())
    }

    /// Of a sum over few bins, whose spread is only estimated: Student's t.
    fn quantile(&self, confidence: f64) -> f64 {
        t_quantile(confidence, (self.0.len().max(2) - 1) as f64)
    }

    fn measured(&self) -> f64 {
        self.0.iter().map(|(w, said, seen, _)| w * (said - seen).abs()).sum()
    }

    fn bounds(&self, confidence: f64) -> Bounds {
        let (measured, z) = (self.measured(), self.quantile(confidence));
        let least = |e: f64| {
            let (mean, sd) = self.expected(1.0, |_, _| e);
            mean - z * sd
        };
        let (by_chance, _) = self.expected(1.0, |_, _| 0.0);
        let (_, sd) = self.expected(1.0, |said, seen| said - seen);
        Bounds {
            measured,
            by_chance,
            lower: (measured - by_chance - z * sd).max(0.0),
            upper: rising_to(measured, least),
        }
    }

    /// Rows at which the demand is met with the usual power, if what is measured above chance is the true error; None where
    /// that is more than is allowed, or where no feasible number would do.
    fn rows_needed(&self, rows: usize, max: f64, risk: Risk) -> Option<u64> {
        let (z, power) = (self.quantile(1.0 - risk.alpha), normal_quantile(risk.power));
        let likely = (self.measured() - self.expected(1.0, |_, _| 0.0).0).max(0.0);
        let decides = |rows_then: u64| {
            let scale = (rows as f64 / rows_then as f64).sqrt();
            let ((allowed, sd), (seen, spread)) =
                (self.expected(scale, |_, _| max), self.expected(scale, |_, _| likely));
            seen + power * spread <= allowed - z * sd
        };
        let mut enough = rows as u64 + 1;
        while !decides(enough) {
            enough += enough.div_ceil(20);
            if enough > MAX_EXAMPLES {
                return None;
            }
        }
        Some(enough)
    }
}

/// The greatest x from 0 to 1 at which what rises with it is at most `limit`; 0 where nothing is.
fn rising_to(limit: f64, rising: impl Fn(f64) -> f64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..50 {
        let middle = 0.5 * (low + high);
        if rising(middle) <= limit { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

pub(super) fn calibration_error(candidate: &[Prediction], max: f64, evidence: &Evidence<'_>) -> Finding {
    let confidences = evidence.measured.calibrator.and_then(|calibrator| match posteriors(candidate) {
        Some(posteriors) => Some(calibrated(&posteriors, evidence.gold, calibrator)),
        None => said_confidences(candidate, evidence.gold, calibrator),
    });
    let Some(rows) = confidences.filter(|rows| !rows.is_empty()) else {
        let reason = "The candidate does not say how sure it is of every answer.".to_owned();
        return Finding { reason, ..absent(evidence.candidate) };
    };
    let confidence = 1.0 - evidence.risk.alpha;
    let bins = Bins::of(&rows);
    let found = bins.bounds(confidence);
    let verdict = match (found.upper <= max, found.lower > max) {
        (true, _) => Verdict::Pass,
        (_, true) => Verdict::Fail,
        _ => Verdict::Inconclusive,
    };
    let bound = match verdict {
        Verdict::Fail => format!("at least {}", points(found.lower)),
        _ => format!("at most {}", points(found.upper)),
    };
    Finding {
        verdict,
        reason: format!(
            "The calibration error is {} over {BINS} bins of equal mass, of which some {} would be there by chance; the true \
             one is with {} confidence {bound}, allowed {}.",
            points(found.measured),
            points(found.by_chance),
            percent(confidence),
            points(max),
        ),
        numbers: numbers([
            ("ece", found.measured),
            ("ece_by_chance", found.by_chance),
            ("ece_lower", found.lower),
            ("ece_upper", found.upper),
            ("ece_allowed", max),
            ("rows", rows.len() as f64),
        ]),
        needs: Needs::TestRows(bins.rows_needed(rows.len(), max, evidence.risk)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use limbeck_artifact::random::SplitMix64;

    /// Rows whose confidence is uniform from 0.6 to 1, right as often as it says less `error(confidence)`.
    fn rows(n: usize, seed: u64, error: impl Fn(f64) -> f64) -> Vec<(f64, bool)> {
        let mut rng = SplitMix64::new(seed);
        let mut one = || {
            let confidence = 0.6 + 0.4 * rng.unit();
            (confidence, rng.unit() < confidence - error(confidence))
        };
        (0..n).map(|_| one()).collect()
    }

    /// Share of 400 samples for which it holds.
    fn share(n: usize, error: impl Fn(f64) -> f64 + Copy, holds: impl Fn(Bounds) -> bool) -> f64 {
        (0..400).filter(|seed| holds(Bins::of(&rows(n, *seed, error)).bounds(0.95))).count() as f64 / 400.0
    }

    #[test]
    fn a_folded_normal_is_what_draws_say() {
        let mut rng = SplitMix64::new(3);
        for (mean, sd) in [(0.0, 1.0), (0.5, 1.0), (-0.8, 0.4), (3.0, 0.5)] {
            let draws: Vec<f64> =
                (0..40_000).map(|_| (mean + sd * normal_quantile(rng.unit().max(1e-12))).abs()).collect();
            let average = draws.iter().sum::<f64>() / 40_000.0;
            let variance = draws.iter().map(|x| (x - average).powi(2)).sum::<f64>() / 40_000.0;
            let (m, v) = folded(mean, sd);
            assert!(
                (m - average).abs() < 0.02 && (v - variance).abs() < 0.02,
                "{mean} {sd}: {m} {average} {v} {variance}"
            );
        }
    }

    #[test]
    fn bounds_hold_wherever_the_error_sits() {
        // The same everywhere, in a fifth of the rows alone, in both directions.
        let everywhere = |_: f64| 0.05;
        let one_place = |c: f64| if c < 0.68 { 0.25 } else { 0.0 };
        let both_ways = |c: f64| if c < 0.8 { -0.05 } else { 0.05 };
        for n in [300, 1_200] {
            for error in [&everywhere as &dyn Fn(f64) -> f64, &one_place, &both_ways] {
                assert!(share(n, error, |b| b.upper < 0.05) <= 0.08, "{n}");
                assert!(share(n, error, |b| b.lower > 0.05) <= 0.08, "{n}");
            }
        }
    }

    #[test]
    fn calibrated_confidences_are_seen_to_be_so_with_rows_enough() {
        let none = |_: f64| 0.0;
        assert!(share(400, none, |b| b.upper <= 0.1) > 0.9);
        assert!(share(2_000, none, |b| b.upper <= 0.05) > 0.9);
        assert!(share(600, |_| 0.2, |b| b.lower > 0.05) > 0.9, "what is far off is told early");
        // As many rows as are asked for decide as often as they should.
        let found = Bins::of(&rows(400, 1, none));
        let needed = found.rows_needed(400, 0.04, Risk::default()).unwrap() as usize;
        assert!((600..6_000).contains(&needed), "{needed}");
        assert!(share(needed, none, |b| b.upper <= 0.04) > 0.6, "{needed}");
    }
}
