//! How a probability that a model gives becomes one that may be believed: a temperature on the whole distribution, or a curve
//! from the answer's own probability to its chance of being right (Platt's logistic one, or isotonic regression). Fitted on
//! the calibration split only, and compared within it by cross-validation.

use crate::calibration::{aurc, confidence_scores, fit_temperature, temper, temper_confidence};
use crate::metrics::argmax;
use serde::{Deserialize, Serialize};

/// Isotonic regression has a parameter a row: on fewer rows it learns the noise.
pub const ISOTONIC_ROWS: usize = 1_000;
/// Parts of the calibration split in the comparison of methods.
const FOLDS: usize = 5;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    None,
    #[default]
    Temperature,
    Platt,
    Isotonic,
}

impl Method {
    pub const ALL: [Method; 4] = [Method::None, Method::Temperature, Method::Platt, Method::Isotonic];

    pub fn name(self) -> &'static str {
        match self {
            Method::None => "none",
            Method::Temperature => "temperature",
            Method::Platt => "platt",
            Method::Isotonic => "isotonic",
        }
    }
}

/// A fitted method with its parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case")]
pub enum Calibrator {
    None,
    /// Probabilities to the power of 1/temperature, made to sum to 1 again.
    Temperature {
        temperature: f64,
    },
    /// σ(slope · logit(p) + intercept) of the answer's own probability p.
    Platt {
        slope: f64,
        intercept: f64,
    },
    /// Straight lines between these points, and their ends beyond them.
    Isotonic {
        scores: Vec<f64>,
        confidences: Vec<f64>,
    },
}

impl Default for Calibrator {
    fn default() -> Calibrator {
        Calibrator::Temperature { temperature: 1.0 }
    }
}

impl Calibrator {
    /// Fits to distributions over labels and their gold labels. Without rows nothing changes.
    pub fn of_posteriors(method: Method, posteriors: &[&[f32]], gold: &[usize]) -> Calibrator {
        match method {
            Method::Temperature => Calibrator::Temperature { temperature: fit_temperature(posteriors, gold) },
            _ => Calibrator::of_scores(method, &top(posteriors, gold)),
        }
    }

    /// Fits to the probabilities of answers and whether they were right: all that is known of written ones.
    pub fn of_scores(method: Method, scores: &[(f64, bool)]) -> Calibrator {
        if scores.is_empty() {
            return Calibrator::default();
        }
        match method {
            Method::None => Calibrator::None,
            Method::Temperature => {
                let posteriors: Vec<[f32; 2]> = scores.iter().map(|(p, _)| [*p as f32, (1.0 - p) as f32]).collect();
                let posteriors: Vec<&[f32]> = posteriors.iter().map(|p| p.as_slice()).collect();
                let wrong: Vec<usize> = scores.iter().map(|(_, right)| usize::from(!right)).collect();
                Calibrator::Temperature { temperature: fit_temperature(&posteriors, &wrong) }
            }
            Method::Platt => platt(scores),
            Method::Isotonic => isotonic(scores),
        }
    }

    pub fn method(&self) -> Method {
        match self {
            Calibrator::None => Method::None,
            Calibrator::Temperature { .. } => Method::Temperature,
            Calibrator::Platt { .. } => Method::Platt,
            Calibrator::Isotonic { .. } => Method::Isotonic,
        }
    }

    /// The temperature; 1 of the other methods.
    pub fn temperature(&self) -> f64 {
        if let Calibrator::Temperature { temperature } = self { *temperature } else { 1.0 }
    }

    /// The chance that an answer is right whose own probability is `p`, where that is all that is known.
    pub fn confidence(&self, p: f64) -> f64 {
        match self {
            Calibrator::None => p,
            Calibrator::Temperature { temperature } => temper_confidence(p, *temperature),
            Calibrator::Platt { slope, intercept } => sigmoid(slope * logit(p) + intercept),
            Calibrator::Isotonic { scores, confidences } => interpolate(scores, confidences, p),
        }
    }

    /// The distribution over labels. A curve is about the likeliest one; the others share the rest as they did before.
    pub fn posterior(&self, posterior: &[f32]) -> Vec<f64> {
        if let Calibrator::Temperature { temperature } = self {
            return temper(posterior, *temperature);
        }
        let mut out: Vec<f64> = posterior.iter().map(|p| f64::from(*p)).collect();
        let Some(answer) = argmax(posterior).filter(|_| *self != Calibrator::None) else { return out };
        let (before, after) = (out[answer], self.confidence(out[answer]));
        let others = out.len().saturating_sub(1).max(1) as f64;
        for (label, p) in out.iter_mut().enumerate() {
            *p = match label {
                _ if label == answer => after,
                // Nothing was left to share: to each alike.
                _ if before >= 1.0 => (1.0 - after) / others,
                _ => *p * (1.0 - after) / (1.0 - before),
            };
        }
        out
    }
}

/// The likeliest label's probability and whether it is the gold one; 0 of no answer.
fn top(posteriors: &[&[f32]], gold: &[usize]) -> Vec<(f64, bool)> {
    let one = |(posterior, gold): (&&[f32], &usize)| match argmax(posterior) {
        Some(answer) => (f64::from(posterior[answer]), answer == *gold),
        None => (0.0, false),
    };
    posteriors.iter().zip(gold).map(one).collect()
}

fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

/// Log odds; a probability of exactly 0 or 1 is a rounding of something within 1e-7, which is what float32 tells from 1.
fn logit(p: f64) -> f64 {
    let p = p.clamp(1e-7, 1.0 - 1e-7);
    (p / (1.0 - p)).ln()
}

/// Maximum likelihood under Platt's targets (1999), which are those of a uniform prior: (n₊ + 1)/(n₊ + 2) for right ones,
/// 1/(n₋ + 2) for wrong ones. Newton's method with halved steps (Lin, Lin and Weng 2007).
fn platt(scores: &[(f64, bool)]) -> Calibrator {
    let right = scores.iter().filter(|(_, right)| *right).count() as f64;
    let (high, low) = ((right + 1.0) / (right + 2.0), 1.0 / (scores.len() as f64 - right + 2.0));
    let rows: Vec<(f64, f64)> = scores.iter().map(|(p, right)| (logit(*p), if *right { high } else { low })).collect();
    let loss = |slope: f64, intercept: f64| -> f64 {
        // −t ln σ(z) − (1 − t) ln(1 − σ(z)), without overflow.
        rows.iter()
            .map(|(x, t)| {
                let z = slope * x + intercept;
                z.max(0.0) - t * z + (-z.abs()).exp().ln_1p()
            })
            .sum()
    };
    let (mut slope, mut intercept) = (0.0, ((right + 1.0) / (scores.len() as f64 - right + 1.0)).ln());
    let mut at = loss(slope, intercept);
    for _ in 0..100 {
        let (mut g, mut h) = ([0.0; 2], [1e-12, 0.0, 1e-12]);
        for (x, t) in &rows {
            let p = sigmoid(slope * x + intercept);
            let (error, weight) = (p - t, p * (1.0 - p));
            g[0] += error * x;
            g[1] += error;
            h[0] += weight * x * x;
            h[1] += weight * x;
            h[2] += weight;
        }
        let determinant = h[0] * h[2] - h[1] * h[1];
        if g[0].abs() + g[1].abs() < 1e-10 || determinant <= 0.0 {
            break;
        }
        let step = [(h[2] * g[0] - h[1] * g[1]) / determinant, (h[0] * g[1] - h[1] * g[0]) / determinant];
        let mut size = 1.0;
        loop {
            let (next_slope, next_intercept) = (slope - size * step[0], intercept - size * step[1]);
            let next = loss(next_slope, next_intercept);
            if next <= at {
                (slope, intercept, at) = (next_slope, next_intercept, next);
                break;
            }
            size /= 2.0;
            if size < 1e-10 {
                return Calibrator::Platt { slope, intercept };
            }
        }
    }
    Calibrator::Platt { slope, intercept }
}

/// The rising curve of least squares, by pooling adjacent violators; rows of one score are one point.
fn isotonic(scores: &[(f64, bool)]) -> Calibrator {
    let mut sorted = scores.to_vec();
    sorted.sort_by(|x, y| x.0.total_cmp(&y.0));
    // A point a score: (score, weight, sum of rights).
    let mut points: Vec<(f64, f64, f64)> = Vec::new();
    for (score, right) in sorted {
        let hit = f64::from(u8::from(right));
        match points.last_mut() {
            Some(last) if last.0 == score => (last.1, last.2) = (last.1 + 1.0, last.2 + hit),
            _ => points.push((score, 1.0, hit)),
        }
    }
    // Blocks of points: (first, last, weight, sum).
    let mut blocks: Vec<(f64, f64, f64, f64)> = Vec::new();
    for (score, weight, sum) in points {
        let mut block = (score, score, weight, sum);
        while let Some(last) = blocks.last().filter(|last| last.3 / last.2 >= block.3 / block.2).copied() {
            blocks.pop();
            block = (last.0, block.1, last.2 + block.2, last.3 + block.3);
        }
        blocks.push(block);
    }
    let (mut at, mut confidences) = (Vec::new(), Vec::new());
    for (first, last, weight, sum) in blocks {
        for score in if first == last { vec![first] } else { vec![first, last] } {
            at.push(score);
            confidences.push(sum / weight);
        }
    }
    Calibrator::Isotonic { scores: at, confidences }
}

fn interpolate(xs: &[f64], ys: &[f64], x: f64) -> f64 {
    let above = xs.partition_point(|at| *at < x);
    match (above.checked_sub(1), ys.get(above)) {
        (None, None) => x,
        (None, Some(first)) => *first,
        (Some(last), None) => ys[last],
        (Some(below), Some(high)) => ys[below] + (high - ys[below]) * (x - xs[below]) / (xs[above] - xs[below]),
    }
}

/// What a method is worth on rows of the calibration split that it was not fitted on. Right and wrong are the two classes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MethodScore {
    pub method: Method,
    /// The one that is in use.
    pub chosen: bool,
    /// Why it was not tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
    pub ece: Option<f64>,
    pub brier: Option<f64>,
    pub aurc: Option<f64>,
}

/// The numbers of rows to what a calibrator makes of them: confidence, and whether the answer is right.
type Confidences<'a> = &'a dyn Fn(&Calibrator, &[usize]) -> Vec<(f64, bool)>;

/// Compares all methods by cross-validation within the calibration split. `fit` and `confidences` take the numbers of rows; rows
/// of one group stay together, so that no customer is on both sides.
pub(crate) fn compare_methods(
    chosen: Method,
    groups: &[&str],
    fit: &dyn Fn(Method, &[usize]) -> Calibrator,
    confidences: Confidences<'_>,
) -> Vec<MethodScore> {
    let mut names: Vec<&str> = groups.to_vec();
    names.sort_unstable();
    names.dedup();
    if names.len() < FOLDS {
        return Vec::new();
    }
    let fold = |row: usize| names.binary_search(&groups[row]).unwrap_or(0) % FOLDS;
    let score = |method: Method| {
        let blank =
            MethodScore { method, chosen: method == chosen, left_out: None, ece: None, brier: None, aurc: None };
        if method == Method::Isotonic && groups.len() < ISOTONIC_ROWS {
            let why = format!("needs {} calibration rows", crate::words::thousands(ISOTONIC_ROWS as u64));
            return MethodScore { left_out: Some(why), ..blank };
        }
        let mut held_out: Vec<(usize, (f64, bool))> = Vec::new();
        for part in 0..FOLDS {
            let (test, train): (Vec<usize>, Vec<usize>) = (0..groups.len()).partition(|row| fold(*row) == part);
            let calibrator = fit(method, &train);
            held_out.extend(test.iter().copied().zip(confidences(&calibrator, &test)));
        }
        // In the order of rows: ties keep the same order under every method.
        held_out.sort_by_key(|(row, _)| *row);
        let rows: Vec<(f64, bool)> = held_out.into_iter().map(|(_, row)| row).collect();
        let scores = confidence_scores(&rows);
        MethodScore { ece: Some(scores.ece), brier: Some(scores.brier), aurc: Some(aurc(&rows)), ..blank }
    };
    Method::ALL.into_iter().map(score).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use limbeck_artifact::random::SplitMix64;
    use serde_json::Value;

    /// Overconfident: right with probability p² of what is said.
    fn rows(n: usize) -> Vec<(f64, bool)> {
        let mut rng = SplitMix64::new(4);
        (0..n)
            .map(|_| {
                let p = 0.3 + 0.7 * rng.unit();
                (p, rng.unit() < p * p)
            })
            .collect()
    }

    /// Against scikit-learn: tests/reference/calibrator_golden.py.
    #[test]
    fn curves_are_scikit_learns() {
        let golden: Value = serde_json::from_str(include_str!("../tests/golden/calibrator.json")).unwrap();
        let floats = |v: &Value| v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect::<Vec<f64>>();
        for case in golden["cases"].as_array().unwrap() {
            let right = case["right"].as_array().unwrap().iter().map(|r| r.as_bool().unwrap());
            let rows: Vec<(f64, bool)> = floats(&case["scores"]).into_iter().zip(right).collect();
            let Calibrator::Platt { slope, intercept } = platt(&rows) else { unreachable!() };
            let theirs = floats(&case["platt"]);
            assert!(
                (slope - theirs[0]).abs() < 1e-4 && (intercept - theirs[1]).abs() < 1e-4,
                "{slope} {intercept} {theirs:?}"
            );
            let curve = isotonic(&rows);
            for (at, theirs) in floats(&case["at"]).into_iter().zip(floats(&case["isotonic"])) {
                let ours = curve.confidence(at);
                assert!((ours - theirs).abs() < 1e-9, "at {at}: {ours} against {theirs}");
            }
        }
    }

    #[test]
    fn a_curve_is_about_the_answer_and_the_rest_is_shared() {
        let posterior = [0.2_f32, 0.7, 0.1];
        for calibrator in [
            Calibrator::Platt { slope: 0.5, intercept: -0.3 },
            Calibrator::Isotonic { scores: vec![0.5, 0.9], confidences: vec![0.1, 0.5] },
        ] {
            let out = calibrator.posterior(&posterior);
            // As near as float32 posteriors sum to 1.
            assert!((out.iter().sum::<f64>() - 1.0).abs() < 1e-6, "{out:?}");
            assert!((out[1] - calibrator.confidence(f64::from(0.7_f32))).abs() < 1e-12);
            assert!((out[0] / out[2] - 2.0).abs() < 1e-6, "as they did before");
        }
        let sure = Calibrator::Platt { slope: 1.0, intercept: -8.0 }.posterior(&[0.0, 1.0, 0.0]);
        assert!(sure[0] > 0.0 && (sure[0] - sure[2]).abs() < 1e-15 && (sure.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        assert_eq!(Calibrator::None.posterior(&[0.25, 0.75]), [0.25, 0.75]);
        assert_eq!(Calibrator::of_scores(Method::Platt, &[]).temperature(), 1.0);
    }

    #[test]
    fn calibrated_confidences_mean_what_they_say() {
        let (train, test) = (rows(4_000), &rows(8_000)[4_000..]);
        let ece = |calibrator: &Calibrator| {
            let of: Vec<(f64, bool)> = test.iter().map(|(p, right)| (calibrator.confidence(*p), *right)).collect();
            confidence_scores(&of).ece
        };
        let raw = ece(&Calibrator::None);
        for method in [Method::Platt, Method::Isotonic] {
            let fitted = ece(&Calibrator::of_scores(method, &train));
            assert!(fitted < raw / 5.0, "{}: {fitted} of {raw}", method.name());
        }
        // A temperature leaves what is surer than a coin surer than a coin, and some of it is not.
        assert!(ece(&Calibrator::of_scores(Method::Temperature, &train)) < raw);
    }

    #[test]
    fn methods_are_compared_on_rows_they_were_not_fitted_on() {
        let rows = rows(1_200);
        let names: Vec<String> = (0..rows.len()).map(|i| format!("customer {}", i / 3)).collect();
        let groups: Vec<&str> = names.iter().map(String::as_str).collect();
        let pick = |of: &[usize]| of.iter().map(|i| rows[*i]).collect::<Vec<_>>();
        let compared = |n: usize| {
            compare_methods(
                Method::Platt,
                &groups[..n],
                &|method, of| {
                    assert!(of.len() < n, "some are held out");
                    Calibrator::of_scores(method, &pick(of))
                },
                &|calibrator, of| pick(of).into_iter().map(|(p, right)| (calibrator.confidence(p), right)).collect(),
            )
        };
        let all = compared(1_200);
        assert_eq!(all.iter().map(|m| m.method).collect::<Vec<_>>(), Method::ALL);
        assert!(all.iter().all(|m| m.left_out.is_none()) && all[2].chosen && !all[1].chosen);
        assert!(all[2].brier < all[0].brier, "{all:?}");
        assert!(compared(900)[3].left_out.as_deref().is_some_and(|why| why.contains("1,000")));
        assert!(compared(12).is_empty(), "four customers are no five parts");
    }

    #[test]
    fn calibrators_read_back() {
        for calibrator in [Calibrator::None, Calibrator::default(), platt(&rows(50)), isotonic(&rows(50))] {
            let text = serde_json::to_string(&calibrator).unwrap();
            assert!(text.contains(&format!("\"method\":\"{}\"", calibrator.method().name())), "{text}");
            assert_eq!(serde_json::from_str::<Calibrator>(&text).unwrap(), calibrator);
        }
    }
}
