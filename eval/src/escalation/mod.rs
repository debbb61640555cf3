//! The escalation certificate: a threshold from which answers may be served, with a proof of how often they err. Learn Then
//! Test with a fixed sequence (Angelopoulos et al., 2110.01052): of thresholds that were fixed before any calibration answer
//! was looked at, the strictest is tested first, and testing goes on while each hypothesis "errs more often" is rejected.
//!
//! Why the promise holds, and what it rests on. The thresholds are quantiles of the test rows' scores, which is a look at what
//! the model says and none at what is right; calibration rows have no part in them, nor in where the sequence starts. So each
//! count of errors among the accepted calibration rows is binomial, each p value is exact, and a sequence that stops at its
//! first p above 1 − confidence accepts a threshold that errs more often than `max_error` with at most that probability,
//! whatever the model is worth and whether or not its risk falls with its score. The score is the model's own, without a
//! temperature: that one is fitted on the calibration labels and would spend them twice. Rows must be independent and like
//! the traffic to come.

mod bands;

pub use bands::{Action, Band, bands, review_below};

use crate::metrics::Prediction;
use crate::special::binomial_cdf;
use crate::statistics::{MAX_EXAMPLES, Risk, examples_for_rate, upper_bound};
use crate::words::{percent, thousands};
use serde::{Deserialize, Serialize};

/// Thresholds at most; ties leave fewer.
pub const THRESHOLDS: usize = 50;
/// The sequence starts where this many times the least number of accepted rows is expected. At the least number itself one
/// error ends it, so that a model which errs once in two hundred of its surest answers would fail one time in four.
const START: f64 = 2.0;
/// But not beyond this share of the calibration rows: where they are few, starting so late would pass by all that is sure.
const LATEST: f64 = 0.4;
/// A little more than the least number, lest fewer rows than expected be accepted.
const EARLIEST: f64 = 1.1;

/// Accepted rows that are expected where the sequence starts: a function of the number of calibration rows, and of nothing in
/// them.
fn start(rows: usize, least: u64) -> f64 {
    (START * least as f64).min(LATEST * rows as f64).max(EARLIEST * least as f64)
}

/// What served answers must keep to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// Share of served answers that may be wrong.
    pub max_error: f64,
    /// Chance, over calibration sets, that the certified threshold keeps to it.
    pub confidence: f64,
}

/// One answer as routing sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// The model's own probability of its answer: of the label, or of all that was written. None where the answer is not
    /// valid, which nobody serves.
    pub score: Option<f64>,
    pub right: bool,
}

impl Scored {
    /// Whether a threshold serves it.
    pub fn passes(&self, threshold: f64) -> bool {
        self.score.is_some_and(|score| score >= threshold)
    }
}

/// A threshold that was tested.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    pub threshold: f64,
    /// Of the calibration rows.
    pub accepted: u64,
    pub errors: u64,
    /// Of "errs more often than `max_error`".
    pub p: f64,
}

/// What the calibration rows certify.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Certificate {
    pub target: Target,
    /// Serve at or above this score. None: nothing can be certified, every call escalates.
    pub threshold: Option<f64>,
    pub calibration_rows: u64,
    /// Thresholds that there were to test.
    pub candidates: u64,
    /// Accepted rows without a single error that the first test takes.
    pub least_accepted: u64,
    /// What was tested, strictest first; the last one failed unless it is the loosest there is.
    pub steps: Vec<Step>,
    /// At the certified threshold, on the calibration rows: accepted, wrong, and the exact upper bound of the error.
    pub accepted: u64,
    pub errors: u64,
    pub error_upper: Option<f64>,
    /// Calibration rows, in all, that would probably certify something if the rates seen are the true ones. None where
    /// something is certified, and where no feasible number of rows would do.
    pub rows_needed: Option<u64>,
}

impl Certificate {
    /// What is certified, or why nothing is and what would change it.
    pub fn words(&self) -> String {
        let (limit, sure) = (percent(self.target.max_error), percent(self.target.confidence));
        if let (Some(threshold), Some(upper)) = (self.threshold, self.error_upper) {
            return format!(
                "From a score of {} on, at most {limit} of the served answers are wrong, with {sure} confidence: of {} calibration rows \
                 {} are accepted and {} of those wrong, which bounds the error at {}.",
                score(threshold),
                thousands(self.calibration_rows),
                thousands(self.accepted),
                thousands(self.errors),
                percent(upper)
            );
        }
        let nothing = format!(
            "Nothing can be certified at {limit} with {sure} confidence on {} reviewed calibration rows, so every call escalates.",
            thousands(self.calibration_rows)
        );
        match self.rows_needed {
            Some(needed) => format!(
                "{nothing} About {} rows ({} more) would probably be enough, if what was seen holds.",
                thousands(needed),
                thousands(needed - self.calibration_rows)
            ),
            None if self.calibration_rows < self.least_accepted => format!(
                "{nothing} At least {} accepted rows without a single error are needed, whatever the model is worth.",
                thousands(self.least_accepted)
            ),
            None => format!(
                "{nothing} No feasible number of rows (up to {}) would be enough: it errs too often even where it is surest. A better \
                 model or a larger max_error would.",
                thousands(MAX_EXAMPLES)
            ),
        }
    }
}

/// A score to four digits; what rounds to 1 and is less shows how much less.
pub fn score(score: f64) -> String {
    if score < 1.0 && score > 0.999_95 { format!("1 − {:.1e}", 1.0 - score) } else { format!("{score:.4}") }
}

/// The answers of an arm as routing sees them; None where it has no scores, as recorded answers have none.
pub fn scored(predictions: &[Prediction], gold: &[usize]) -> Option<Vec<Scored>> {
    let one = |(p, gold): (&Prediction, &usize)| {
        let score = p.label.and_then(|label| match (&p.posterior, &p.said) {
            (Some(posterior), _) => posterior.get(label).map(|p| f64::from(*p)),
            (None, Some(said)) => said.confidence,
            (None, None) => None,
        });
        Scored { score, right: p.label == Some(*gold) }
    };
    let rows: Vec<Scored> = predictions.iter().zip(gold).map(one).collect();
    (rows.is_empty() || rows.iter().any(|row| row.score.is_some())).then_some(rows)
}

/// Thresholds at evenly spaced shares of `unlabelled` rows, strictest first, and the share that each accepts.
fn thresholds(unlabelled: &[Option<f64>]) -> Vec<(f64, f64)> {
    let n = unlabelled.len();
    let mut sorted: Vec<f64> = unlabelled.iter().flatten().copied().collect();
    sorted.sort_by(|x, y| y.total_cmp(x));
    let mut grid: Vec<(f64, f64)> = Vec::new();
    for i in 1..=THRESHOLDS {
        let rank = (i * n).div_ceil(THRESHOLDS).min(sorted.len());
        let Some(&threshold) = rank.checked_sub(1).and_then(|at| sorted.get(at)) else { continue };
        if grid.last().is_none_or(|(last, _)| threshold < *last) {
            let accepted = sorted.partition_point(|score| *score >= threshold);
            grid.push((threshold, accepted as f64 / n as f64));
        }
    }
    grid
}

/// Rows without a single error that exclude a rate of `max_error` at `confidence`: ⌈ln(1 − confidence) / ln(1 − max_error)⌉.
pub fn least_accepted(target: Target) -> u64 {
    ((1.0 - target.confidence).ln() / (1.0 - target.max_error).ln()).ceil() as u64
}

/// Thresholds with what they accept of the calibration rows, from where the sequence starts until its end or its first failure;
/// and all of them, for what might have been.
struct Sequence {
    grid: Vec<(f64, f64)>,
    steps: Vec<Step>,
}

impl Sequence {
    fn run(calibration: &[Scored], unlabelled: &[Option<f64>], target: Target) -> Sequence {
        let grid = thresholds(unlabelled);
        let expected = start(calibration.len(), least_accepted(target));
        let enough = |(_, coverage): &(f64, f64)| coverage * calibration.len() as f64 >= expected;
        let start = grid.iter().position(enough).unwrap_or(grid.len().saturating_sub(1));
        let mut steps: Vec<Step> = Vec::new();
        for (threshold, _) in grid.iter().skip(start) {
            steps.push(step(*threshold, calibration, target));
            if steps.last().is_some_and(|step| step.p > 1.0 - target.confidence) {
                break;
            }
        }
        Sequence { grid, steps }
    }

    fn certified(&self, target: Target) -> Option<Step> {
        self.steps.iter().rfind(|step| step.p <= 1.0 - target.confidence).copied()
    }
}

fn step(threshold: f64, calibration: &[Scored], target: Target) -> Step {
    let accepted = calibration.iter().filter(|row| row.passes(threshold)).count() as u64;
    let errors = calibration.iter().filter(|row| row.passes(threshold) && !row.right).count() as u64;
    let p = if accepted == 0 { 1.0 } else { binomial_cdf(errors, accepted, target.max_error) };
    Step { threshold, accepted, errors, p }
}

/// The threshold that [`certify`] certifies, and nothing else.
pub fn certified_threshold(calibration: &[Scored], unlabelled: &[Option<f64>], target: Target) -> Option<f64> {
    Sequence::run(calibration, unlabelled, target).certified(target).map(|step| step.threshold)
}

/// Certifies a threshold on `calibration`. `unlabelled` are the scores of other rows of the same traffic, None where the
/// answer is not valid; `power` is the chance that [`Certificate::rows_needed`] aims at.
pub fn certify(calibration: &[Scored], unlabelled: &[Option<f64>], target: Target, power: f64) -> Certificate {
    let rows = calibration.len() as u64;
    let sequence = Sequence::run(calibration, unlabelled, target);
    let certified = sequence.certified(target);
    let rows_needed = match certified {
        Some(_) => None,
        None => needed(&sequence.grid, calibration, target, power),
    };
    Certificate {
        target,
        threshold: certified.map(|step| step.threshold),
        calibration_rows: rows,
        candidates: sequence.grid.len() as u64,
        least_accepted: least_accepted(target),
        steps: sequence.steps,
        accepted: certified.map_or(0, |step| step.accepted),
        errors: certified.map_or(0, |step| step.errors),
        error_upper: certified.map(|step| upper_bound(step.errors, step.accepted, target.confidence)),
        rows_needed: rows_needed.map(|needed| needed.max(rows + 1)).filter(|needed| *needed <= MAX_EXAMPLES),
    }
}

/// Calibration rows with which a sequence that starts at the best of these thresholds would probably certify it: the best by
/// the normal approximation, then counted. Half an error is added to what was seen, lest a threshold that accepted two rows
/// without an error pass for perfect.
fn needed(grid: &[(f64, f64)], calibration: &[Scored], target: Target, power: f64) -> Option<u64> {
    let risk = Risk { alpha: 1.0 - target.confidence, power };
    // A threshold below the latest start must be reached by twice the least number of rows.
    let least = |coverage: f64| least_accepted(target) as f64 * if coverage < LATEST { START } else { EARLIEST };
    let at = |(threshold, coverage): &(f64, f64)| {
        let step = step(*threshold, calibration, target);
        let rate = (step.errors as f64 + 0.5) / (step.accepted as f64 + 1.0);
        let accepted = (rate < target.max_error).then(|| examples_for_rate(rate, target.max_error, risk)).flatten()?;
        Some(((accepted as f64).max(least(*coverage)) / coverage, rate, *coverage))
    };
    let (_, rate, coverage) = grid.iter().filter_map(at).min_by(|x, y| x.0.total_cmp(&y.0))?;
    let accepted = accepted_needed(rate, target, power)? as f64;
    Some((accepted.max(least(coverage)) / coverage).ceil() as u64)
}

/// Beyond so many accepted rows the normal approximation is as good as counting.
const COUNTED: u64 = 5_000;

/// The smallest number of accepted rows with which an error rate of `rate` is certified with probability `power`. None past
/// [`MAX_EXAMPLES`].
pub fn accepted_needed(rate: f64, target: Target, power: f64) -> Option<u64> {
    if rate >= target.max_error {
        return None;
    }
    let delta = 1.0 - target.confidence;
    let approximate = examples_for_rate(rate, target.max_error, Risk { alpha: delta, power })?;
    if approximate > COUNTED {
        return Some(approximate);
    }
    let mut rows = least_accepted(target);
    // For each number of errors that is let through, the fewest rows that let it through.
    for errors in 0..COUNTED {
        rows = fewest(rows, |rows| binomial_cdf(errors, rows, target.max_error) <= delta);
        if binomial_cdf(errors, rows, rate) >= power {
            return Some(rows);
        }
    }
    None
}

/// The smallest n from `low` on that passes, where all after the first do.
fn fewest(low: u64, passes: impl Fn(u64) -> bool) -> u64 {
    if passes(low) {
        return low;
    }
    let (mut low, mut step) = (low, 1);
    while !passes(low + step) {
        low += step;
        step *= 2;
    }
    let mut high = low + step;
    while low + 1 < high {
        let middle = low + (high - low) / 2;
        if passes(middle) { high = middle } else { low = middle }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::*;
    use limbeck_artifact::random::SplitMix64;

    const TARGET: Target = Target { max_error: 0.05, confidence: 0.95 };

    /// Rows whose error rate is `risk(score)`, scores uniform.
    fn draw(rng: &mut SplitMix64, n: usize, risk: impl Fn(f64) -> f64) -> Vec<Scored> {
        let one = |_| {
            let score = rng.unit();
            let wrong = rng.unit() < risk(score);
            Scored { score: Some(score), right: !wrong }
        };
        (0..n).map(one).collect()
    }

    fn scores(rows: &[Scored]) -> Vec<Option<f64>> {
        rows.iter().map(|row| row.score).collect()
    }

    #[test]
    fn fifty_nine_rows_without_an_error_are_the_least() {
        assert_eq!(least_accepted(TARGET), 59);
        assert_eq!(least_accepted(Target { max_error: 0.01, confidence: 0.95 }), 299);
        let right = |n| vec![Scored { score: Some(0.9), right: true }; n];
        let of = |n| certify(&right(n), &[Some(0.9); 10], TARGET, 0.8);
        assert_eq!((of(59).threshold, of(59).accepted), (Some(0.9), 59));
        let few = of(58);
        assert_eq!((few.threshold, few.candidates, few.steps.len()), (None, 1, 1));
        // One error in 58.5 seen at worst: 1 in 93 is let through, then 2 in 124.
        assert_eq!(few.rows_needed, Some(93));
    }

    #[test]
    fn what_is_never_sure_enough_escalates_and_no_rows_help() {
        let mut rng = SplitMix64::new(5);
        let rows = draw(&mut rng, 600, |_| 0.3);
        let certificate = certify(&rows, &scores(&draw(&mut rng, 600, |_| 0.3)), TARGET, 0.8);
        assert_eq!((certificate.threshold, certificate.error_upper, certificate.rows_needed), (None, None, None));
        assert_eq!(certify(&[], &[], TARGET, 0.8).threshold, None);
        assert_eq!(certify(&rows, &[None, None], TARGET, 0.8).candidates, 0);
    }

    #[test]
    fn an_answer_that_is_not_valid_is_never_served() {
        let mut rows = vec![Scored { score: Some(1.0), right: true }; 100];
        rows.extend(vec![Scored { score: None, right: false }; 100]);
        let certificate = certify(&rows, &scores(&rows), TARGET, 0.8);
        assert_eq!((certificate.threshold, certificate.accepted, certificate.errors), (Some(1.0), 100, 0));
    }

    /// Where risk rises with the score the strictest thresholds are the worst: monotone risk is not assumed.
    #[test]
    fn the_promise_holds_whatever_the_risk_looks_like() {
        type Shape = (&'static str, fn(f64) -> f64);
        let shapes: [Shape; 4] = [
            ("flat, at the limit", |_| 0.050_001),
            ("falling", |s| 0.2 * (1.0 - s)),
            ("rising", |s| 0.1 * s),
            ("a bump", |s| if (0.55..0.8).contains(&s) { 0.16 } else { 0.01 }),
        ];
        for (name, risk) in shapes {
            // The true error of serving from a score on, by the midpoint rule.
            let error_from = |from: f64| {
                let at = |i: usize| from + (1.0 - from) * (i as f64 + 0.5) / 2_000.0;
                (0..2_000).map(|i| risk(at(i))).sum::<f64>() / 2_000.0
            };
            let mut rng = SplitMix64::new(23);
            let trials = 1_500;
            let mut broken = 0;
            for _ in 0..trials {
                let (calibration, unlabelled) = (draw(&mut rng, 400, risk), draw(&mut rng, 300, risk));
                let threshold = certified_threshold(&calibration, &scores(&unlabelled), TARGET);
                broken += usize::from(threshold.is_some_and(|t| error_from(t) > TARGET.max_error));
            }
            let rate = broken as f64 / trials as f64;
            // Three standard errors above five in a hundred.
            assert!(rate <= 0.05 + 3.0 * (0.05 * 0.95 / trials as f64).sqrt(), "{name}: {rate}");
        }
    }

    #[test]
    fn as_many_accepted_rows_as_needed_certify_four_times_in_five() {
        for rate in [0.005, 0.01, 0.02, 0.03] {
            let n = accepted_needed(rate, TARGET, 0.8).unwrap();
            let allowed = (0..n).take_while(|k| binomial_cdf(*k, n, 0.05) <= 0.05).count() as u64;
            let power = binomial_cdf(allowed - 1, n, rate);
            assert!((0.8..0.93).contains(&power), "{rate}: {n} rows, {power}");
        }
        assert_eq!(accepted_needed(0.05, TARGET, 0.8), None);
        assert_eq!(accepted_needed(0.0, TARGET, 0.8), Some(59));
    }
}
