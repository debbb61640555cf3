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

/// Rows of like confidence.
#[derive(Clone, Copy, Debug)]
struct Bin {
    /// Its share of all rows.
    share: f64,
    rows: f64,
    /// What its rows said on average, and the share that was right.
    said: f64,
    seen: f64,
}

/// Bins of equal mass.
struct Bins(Vec<Bin>);

/// The measured error over equal-mass bins, and bounds of the true one in the same bins.
///
/// The measured error is Σ w |δ + noise| over the bins, where Σ w |δ| is the true one; each term is a folded normal variable.
///
/// - The upper bound is the greatest true error at which so small a measured one may still be expected. Noise is that of the
///   supposed error, not that of the answers seen: all of few may be right by luck. Of the many ways to err by so much in total
///   the one counts that gives the least quantile: errors where noise hides them, answers all right where a bin can hold no
///   more ([`Way`]).
/// - The lower bound supposes an error in one bin alone, which has the greatest mean: the noise of all bins and the error.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Bounds {
    measured: f64,
    lower: f64,
    upper: f64,
    /// Mean of the measured error where the true one is 0.
    by_chance: f64,
}

/// One of the ways in which a bin may truly err, and what it adds to the true error and to the measured one.
#[derive(Clone, Copy, Debug)]
struct Way {
    error: f64,
    mean: f64,
    variance: f64,
}

/// Errors of a bin that are supposed: next to nothing, and a sixth more each time.
const LEAST_ERROR: f64 = 1e-4;
const ERROR_STEP: f64 = 1.16;

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

impl Bin {
    /// Standard error of the share that is right where `right` of them truly are.
    fn noise(&self, right: f64) -> f64 {
        (right * (1.0 - right) / self.rows).sqrt()
    }

    /// A bin in which all are right, or none, need not be so for good: Laplace's rule of succession.
    fn likely_noise(&self) -> f64 {
        self.noise((self.seen * self.rows + 1.0) / (self.rows + 2.0))
    }

    /// The bin errs by `error`, which is positive where it says too much; None where it can't.
    fn way(&self, error: f64) -> Option<Way> {
        let right = self.said - error;
        (0.0..=1.0).contains(&right).then(|| {
            let (mean, variance) = folded(error, self.noise(right));
            Way { error: self.share * error.abs(), mean: self.share * mean, variance: self.share.powi(2) * variance }
        })
    }

    /// From right confidences to answers all wrong or all right.
    fn ways(&self) -> Vec<Way> {
        let mut errors = vec![0.0, self.said, self.said - 1.0];
        let steps = std::iter::successors(Some(LEAST_ERROR), |error| Some(error * ERROR_STEP));
        errors.extend(steps.take_while(|error| *error < 1.0).flat_map(|error| [error, -error]));
        errors.into_iter().filter_map(|error| self.way(error)).collect()
    }
}

impl Bins {
    fn of(rows: &[(f64, bool)]) -> Bins {
        let mut sorted = rows.to_vec();
        sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
        let n = sorted.len();
        let bin = |rows: &[(f64, bool)]| {
            let size = rows.len() as f64;
            let right = rows.iter().filter(|(_, right)| *right).count() as f64;
            let said = rows.iter().map(|(c, _)| c).sum::<f64>() / size;
            Bin { share: size / n as f64, rows: size, said: said.clamp(0.0, 1.0), seen: right / size }
        };
        let parts = (0..BINS).map(|i| &sorted[n * i / BINS..n * (i + 1) / BINS]);
        Bins(parts.filter(|rows| !rows.is_empty()).map(bin).collect())
    }

    /// The same bins with so many times the rows.
    fn grown(&self, times: f64) -> Bins {
        Bins(self.0.iter().map(|bin| Bin { rows: bin.rows * times, ..*bin }).collect())
    }

    /// Mean and standard deviation of the sum over the bins.
    fn sum(&self, of: impl Fn(&Bin) -> (f64, f64)) -> (f64, f64) {
        let parts = self.0.iter().map(|bin| (bin.share, of(bin)));
        let (mean, variance) = parts.fold((0.0, 0.0), |sum, (w, (m, v))| (sum.0 + w * m, sum.1 + w * w * v));
        (mean, variance.sqrt())
    }

    /// Of a sum over few bins, whose spread is only estimated: Student's t.
    fn quantile(&self, confidence: f64) -> f64 {
        t_quantile(confidence, (self.0.len().max(2) - 1) as f64)
    }

    fn measured(&self) -> f64 {
        self.sum(|bin| ((bin.said - bin.seen).abs(), 0.0)).0
    }

    fn by_chance(&self) -> f64 {
        self.sum(|bin| folded(0.0, bin.noise(bin.said))).0
    }

    fn bounds(&self, confidence: f64) -> Bounds {
        let (measured, z) = (self.measured(), self.quantile(confidence));
        let (noise, _) = self.sum(|bin| folded(0.0, bin.likely_noise()));
        let (_, sd) = self.sum(|bin| folded(bin.said - bin.seen, bin.likely_noise()));
        Bounds {
            measured,
            by_chance: self.by_chance(),
            lower: (measured - noise - z * sd).max(0.0),
            upper: self.upper(measured, z),
        }
    }

    /// The greatest true error in these bins at which the measured one is as little as `measured`, or less, with the probability
    /// that lies below the quantile `z`: the greatest Σ error with Σ mean − z √(Σ variance) ≤ measured.
    ///
    /// The root is concave, so no tangent at any `sd` is below it: √V ≤ sd / 2 + V / (2 sd). Under a tangent the condition is a
    /// sum over bins, and Lagrange's multiplier bounds the error by a choice in each bin alone. Every pair of `sd` and multiplier
    /// gives a bound; the least of them is looked for.
    fn upper(&self, measured: f64, z: f64) -> f64 {
        let ways: Vec<Vec<Way>> = self.0.iter().map(Bin::ways).collect();
        let bound = |price: f64, sd: f64| {
            let worth = |way: &Way| price * way.error - way.mean + z * way.variance / (2.0 * sd);
            let best = |ways: &Vec<Way>| {
                let worths = ways.iter().map(|way| (worth(way), way.variance));
                worths.fold((f64::NEG_INFINITY, 0.0), |best, one| if one.0 > best.0 { one } else { best })
            };
            let (worth, variance) =
                ways.iter().map(best).fold((0.0, 0.0), |sum, (worth, variance)| (sum.0 + worth, sum.1 + variance));
            ((measured + z * sd / 2.0 + worth) / price, variance.sqrt())
        };
        let (mut least, mut sd) = (1.0_f64, self.sum(|bin| folded(0.0, bin.noise(bin.said))).1.max(1e-9));
        for _ in 0..6 {
            // A ratio of a convex function and a line has one valley. The measured error rises by no more than the true one.
            let (mut low, mut high) = (-5.0_f64, 0.0_f64);
            for _ in 0..25 {
                let third = (high - low) / 3.0;
                let (left, right) = (low + third, high - third);
                if bound(left.exp(), sd).0 <= bound(right.exp(), sd).0 { high = right } else { low = left }
            }
            let (error, spread) = bound((0.5 * (low + high)).exp(), sd);
            least = least.min(error);
            sd = spread.max(1e-9);
        }
        least.max(0.0)
    }

    /// Rows at which the demand is met with the usual power, if what is measured above chance is the true error; None where
    /// that is more than is allowed, or where no feasible number would do.
    fn rows_needed(&self, rows: usize, max: f64, risk: Risk) -> Option<u64> {
        let (z, power) = (self.quantile(1.0 - risk.alpha), normal_quantile(risk.power));
        let likely = (self.measured() - self.by_chance()).max(0.0);
        let decides = |rows_then: u64| {
            let then = self.grown(rows_then as f64 / rows as f64);
            let (mean, spread) = then.sum(|bin| {
                // It errs the way that it seems to, as far as it can.
                let right = (bin.said - likely.copysign(bin.said - bin.seen)).clamp(0.0, 1.0);
                folded(bin.said - right, bin.noise(right))
            });
            then.upper(mean + power * spread, z) <= max
        };
        let (mut few, mut enough) = (rows as u64, rows as u64 + 1);
        while !decides(enough) {
            (few, enough) = (enough, enough * 2);
            if enough > MAX_EXAMPLES {
                return None;
            }
        }
        // As exact as such a number can be.
        while enough - few > 1 + few / 50 {
            let middle = few + (enough - few) / 2;
            if decides(middle) { enough = middle } else { few = middle }
        }
        Some(enough)
    }
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
        needs: Needs::TestRows(match verdict {
            Verdict::Inconclusive => bins.rows_needed(rows.len(), max, evidence.risk),
            Verdict::Pass | Verdict::Fail => None,
        }),
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

    /// Share of 600 samples that pass a demand of `max`: what a row says by a draw from 0 to 1, how often it is right by what it says.
    fn passed(n: usize, max: f64, said: impl Fn(f64) -> f64, right: impl Fn(f64) -> f64) -> f64 {
        let one = |rng: &mut SplitMix64| {
            let said = said(rng.unit());
            (said, rng.unit() < right(said))
        };
        let passes = |seed: &u64| {
            let mut rng = SplitMix64::new(*seed);
            let rows: Vec<(f64, bool)> = (0..n).map(|_| one(&mut rng)).collect();
            Bins::of(&rows).bounds(0.95).upper <= max
        };
        (0..600).filter(passes).count() as f64 / 600.0
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
    fn confidences_close_to_one_pass_no_more_often_than_others() {
        // What all rows say, and how many are right.
        for (said, right) in [(0.97_f64, 0.94), (0.99, 0.96), (0.999, 0.98), (0.95, 0.98), (0.9, 0.8)] {
            for n in [30, 150, 600, 1_200] {
                let passes = passed(n, (said - right).abs(), |_| said, |_| right);
                assert!(passes <= 0.07, "said {said}, right {right}, {n} rows: {passes}");
            }
        }
        // Three hundredths too sure: so few rows can't show it, and all of them right is no proof of the contrary.
        let all_right = vec![(0.97, true); 150];
        assert!(Bins::of(&all_right).bounds(0.95).upper > 0.03);
    }

    #[test]
    fn errors_pass_nowhere_that_other_rows_could_hide_them() {
        // Half of the rows are beyond doubt, the rest are not, and err.
        let said = |at: f64| if at < 0.5 { 0.999 } else { 0.4 + 0.4 * at };
        for error in [0.06, 0.2] {
            let right = |said: f64| if said > 0.9 { said } else { said - error };
            for n in [60, 150, 600, 1_200] {
                let passes = passed(n, error / 2.0, said, right);
                assert!(passes <= 0.07, "{error}, {n} rows: {passes}");
            }
        }
    }

    #[test]
    fn calibrated_confidences_are_seen_to_be_so_with_rows_enough() {
        let none = |_: f64| 0.0;
        assert!(share(400, none, |b| b.upper <= 0.1) > 0.85);
        assert!(share(2_000, none, |b| b.upper <= 0.05) > 0.9);
        assert!(share(600, |_| 0.2, |b| b.lower > 0.05) > 0.9, "what is far off is told early");
        // As many rows as are asked for decide as often as they should.
        let found = Bins::of(&rows(400, 1, none));
        let needed = found.rows_needed(400, 0.04, Risk::default()).unwrap() as usize;
        assert!((600..6_000).contains(&needed), "{needed}");
        assert!(share(needed, none, |b| b.upper <= 0.04) > 0.6, "{needed}");
    }
}
