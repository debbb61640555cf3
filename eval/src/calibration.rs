//! How far a confidence may be believed: proper scores, reliability by equal-mass bins, one temperature fitted on the
//! calibration split, and what a threshold on the confidence buys. "Known so far": every figure carries its row count.

use crate::calibrator::Calibrator;
use crate::metrics::argmax;
use crate::statistics::{Interval, upper_bound, wilson};
use serde::{Deserialize, Serialize};

/// Bins of the reliability diagram and of the ECE, each with the same number of rows.
pub const BINS: usize = 15;
/// A posterior of exactly 0 is a rounding of something smaller than this.
const FLOOR: f64 = 1e-12;

/// Proper and binned scores of one set of posteriors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CalibrationScores {
    pub rows: u64,
    /// Expected calibration error over [`BINS`] equal-mass bins.
    pub ece: f64,
    /// Mean over rows of Σ_k (p_k − y_k)², from 0 to 2.
    pub brier: f64,
    /// Mean negative log-likelihood of the gold label, in nats.
    pub nll: f64,
}

/// One bin of the reliability diagram.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    pub rows: u64,
    pub mean_confidence: f64,
    pub accuracy: f64,
    pub interval: Interval,
}

/// Posteriors raised to 1/T and renormalised: above 1 softer, below 1 sharper, the order of labels untouched.
pub fn temper(posterior: &[f32], temperature: f64) -> Vec<f64> {
    let logits: Vec<f64> = posterior.iter().map(|p| f64::from(*p).max(FLOOR).ln() / temperature).collect();
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = logits.iter().map(|l| (l - top).exp()).sum();
    logits.iter().map(|l| (l - top).exp() / total).collect()
}

/// Mean negative log-likelihood at `temperature`; 0 without rows.
pub fn nll(posteriors: &[&[f32]], gold: &[usize], temperature: f64) -> f64 {
    let total: f64 = posteriors.iter().zip(gold).map(|(p, &g)| -temper(p, temperature)[g].max(FLOOR).ln()).sum();
    total / posteriors.len().max(1) as f64
}

/// The temperature that minimises the NLL, by golden section over ln T in [ln 0.05, ln 20]. The NLL is convex in 1/T,
/// so it has one valley. 1 without rows.
pub fn fit_temperature(posteriors: &[&[f32]], gold: &[usize]) -> f64 {
    if posteriors.is_empty() {
        return 1.0;
    }
    let ratio = (5.0_f64.sqrt() - 1.0) / 2.0;
    let loss = |ln_t: f64| nll(posteriors, gold, ln_t.exp());
    let (mut low, mut high) = (0.05_f64.ln(), 20.0_f64.ln());
    let (mut left, mut right) = (high - ratio * (high - low), low + ratio * (high - low));
    let (mut at_left, mut at_right) = (loss(left), loss(right));
    for _ in 0..60 {
        if at_left <= at_right {
            (high, right, at_right) = (right, left, at_left);
            left = high - ratio * (high - low);
            at_left = loss(left);
        } else {
            (low, left, at_left) = (left, right, at_right);
            right = low + ratio * (high - low);
            at_right = loss(right);
        }
    }
    (0.5 * (low + high)).exp()
}

/// Each row's confidence (its largest probability at `temperature`) and whether that answer was right.
pub fn confidences(posteriors: &[&[f32]], gold: &[usize], temperature: f64) -> Vec<(f64, bool)> {
    calibrated(posteriors, gold, &Calibrator::Temperature { temperature })
}

/// Each row's confidence under a calibrator, and whether its answer was right.
pub fn calibrated(posteriors: &[&[f32]], gold: &[usize], calibrator: &Calibrator) -> Vec<(f64, bool)> {
    posteriors
        .iter()
        .zip(gold)
        .map(|(posterior, gold)| match argmax(posterior) {
            Some(answer) => (calibrator.posterior(posterior)[answer], answer == *gold),
            None => (0.0, false),
        })
        .collect()
}

/// Rows sorted by confidence and cut into [`BINS`] bins of (nearly) equal size, the larger first.
pub fn reliability(confidences: &[(f64, bool)], confidence_level: f64) -> Vec<Bin> {
    let mut sorted = confidences.to_vec();
    sorted.sort_by(|x, y| x.0.total_cmp(&y.0));
    let (size, extra) = (sorted.len() / BINS, sorted.len() % BINS);
    let mut start = 0;
    (0..BINS)
        .filter_map(|bin| {
            let end = start + size + usize::from(bin < extra);
            let rows = &sorted[start..end];
            start = end;
            let n = rows.len();
            let correct = rows.iter().filter(|(_, right)| *right).count();
            (n > 0).then(|| Bin {
                rows: n as u64,
                mean_confidence: rows.iter().map(|(c, _)| c).sum::<f64>() / n as f64,
                accuracy: correct as f64 / n as f64,
                interval: wilson(correct as u64, n as u64, confidence_level),
            })
        })
        .collect()
}

/// ECE, Brier and NLL of posteriors at `temperature`.
pub fn calibration_scores(posteriors: &[&[f32]], gold: &[usize], temperature: f64) -> CalibrationScores {
    calibrated_scores(posteriors, gold, &Calibrator::Temperature { temperature })
}

/// ECE, Brier and NLL of posteriors under a calibrator.
pub fn calibrated_scores(posteriors: &[&[f32]], gold: &[usize], calibrator: &Calibrator) -> CalibrationScores {
    let n = posteriors.len().max(1) as f64;
    let bins = reliability(&calibrated(posteriors, gold, calibrator), 0.95);
    let ece = bins.iter().map(|bin| bin.rows as f64 / n * (bin.accuracy - bin.mean_confidence).abs()).sum();
    let (mut brier, mut nll) = (0.0, 0.0);
    for (posterior, &gold) in posteriors.iter().zip(gold) {
        let p = calibrator.posterior(posterior);
        brier += p.iter().enumerate().map(|(k, p)| (p - f64::from(u8::from(k == gold))).powi(2)).sum::<f64>();
        nll -= p[gold].max(FLOOR).ln();
    }
    CalibrationScores { rows: posteriors.len() as u64, ece, brier: brier / n, nll: nll / n }
}

/// As [`calibration_scores`], of confidences that are all that is known of an answer: right or wrong are the two classes.
pub fn confidence_scores(confidences: &[(f64, bool)]) -> CalibrationScores {
    let n = confidences.len().max(1) as f64;
    let bins = reliability(confidences, 0.95);
    let ece = bins.iter().map(|bin| bin.rows as f64 / n * (bin.accuracy - bin.mean_confidence).abs()).sum();
    let brier = confidences.iter().map(|(p, right)| 2.0 * (p - f64::from(u8::from(*right))).powi(2)).sum::<f64>();
    let nll = confidences.iter().map(|(p, right)| -(if *right { *p } else { 1.0 - p }).max(FLOOR).ln()).sum::<f64>();
    CalibrationScores { rows: confidences.len() as u64, ece, brier: brier / n, nll: nll / n }
}

/// A confidence as the posterior of right and wrong, as [`temper`] and [`fit_temperature`] take it.
pub(crate) fn as_posterior(confidence: f64) -> [f32; 2] {
    [confidence as f32, (1.0 - confidence) as f32]
}

/// A confidence at `temperature`: its odds to the power of 1/T.
pub fn temper_confidence(confidence: f64, temperature: f64) -> f64 {
    temper(&as_posterior(confidence), temperature)[0]
}

/// A point of the risk–coverage curve: answering only rows at or above `threshold` covers that share of the rows, and
/// that share of the answers is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RiskPoint {
    pub threshold: f64,
    pub coverage: f64,
    pub risk: f64,
}

/// Risk at every distinct confidence, most confident first. Rows of equal confidence enter together.
pub fn risk_coverage(confidences: &[(f64, bool)]) -> Vec<RiskPoint> {
    let mut sorted = confidences.to_vec();
    sorted.sort_by(|x, y| y.0.total_cmp(&x.0));
    let (mut wrong, mut points) = (0_u64, Vec::new());
    for (i, (confidence, right)) in sorted.iter().enumerate() {
        wrong += u64::from(!right);
        if sorted.get(i + 1).is_none_or(|next| next.0 < *confidence) {
            let (covered, n) = ((i + 1) as f64, sorted.len() as f64);
            points.push(RiskPoint { threshold: *confidence, coverage: covered / n, risk: wrong as f64 / covered });
        }
    }
    points
}

/// Area under the risk–coverage curve: the mean, over k, of the error rate among the k most confident rows.
pub fn aurc(confidences: &[(f64, bool)]) -> f64 {
    let mut sorted = confidences.to_vec();
    sorted.sort_by(|x, y| y.0.total_cmp(&x.0));
    let mut wrong = 0_u64;
    let total: f64 = sorted
        .iter()
        .enumerate()
        .map(|(i, (_, right))| {
            wrong += u64::from(!right);
            wrong as f64 / (i + 1) as f64
        })
        .sum();
    total / sorted.len().max(1) as f64
}

/// AURC above that of an oracle which is as often right and least sure of what it gets wrong: 0 is the best order there is.
pub fn excess_aurc(confidences: &[(f64, bool)]) -> f64 {
    let right = confidences.iter().filter(|(_, right)| *right).count();
    let oracle: Vec<(f64, bool)> = (0..confidences.len()).map(|i| (-(i as f64), i < right)).collect();
    aurc(confidences) - aurc(&oracle)
}

/// What a threshold on the confidence does to these rows: serve at or above it, escalate below.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Served {
    pub threshold: f64,
    pub rows: u64,
    pub served: u64,
    pub coverage: f64,
    pub coverage_interval: Interval,
    pub wrong: u64,
    /// Share of the served answers that are wrong; None when nothing is served.
    pub risk: Option<f64>,
    /// Exact one-sided upper bound of that share. It holds for a threshold fixed before these rows were looked at.
    pub risk_upper: Option<f64>,
}

pub fn serve_at(confidences: &[(f64, bool)], threshold: f64, confidence_level: f64) -> Served {
    let rows = confidences.len() as u64;
    let served = confidences.iter().filter(|(c, _)| *c >= threshold).count() as u64;
    let wrong = confidences.iter().filter(|(c, right)| *c >= threshold && !right).count() as u64;
    Served {
        threshold,
        rows,
        served,
        coverage: if rows == 0 { 0.0 } else { served as f64 / rows as f64 },
        coverage_interval: wilson(served, rows, confidence_level),
        wrong,
        risk: (served > 0).then(|| wrong as f64 / served as f64),
        risk_upper: (served > 0).then(|| upper_bound(wrong, served, confidence_level)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A confidence is the posterior of a classifier of two labels whose first is chosen.
    #[test]
    fn confidences_are_scored_as_two_classes() {
        let given = [(0.9, true), (0.8, false), (0.6, true), (0.99, true), (0.7, false)];
        let posteriors: Vec<[f32; 2]> = given.iter().map(|(p, _)| as_posterior(*p)).collect();
        let posteriors: Vec<&[f32]> = posteriors.iter().map(|p| p.as_slice()).collect();
        let gold: Vec<usize> = given.iter().map(|(_, right)| usize::from(!right)).collect();
        let (ours, theirs) = (confidence_scores(&given), calibration_scores(&posteriors, &gold, 1.0));
        for (ours, theirs) in [(ours.ece, theirs.ece), (ours.brier, theirs.brier), (ours.nll, theirs.nll)] {
            assert!((ours - theirs).abs() < 1e-6, "{ours} {theirs}");
        }
        assert!((temper_confidence(0.8, 2.0) - 2.0 / 3.0).abs() < 1e-6, "odds of 4 become odds of 2");
        assert!(temper_confidence(0.0, 2.0) < 1e-5 && temper_confidence(1.0, 2.0) > 1.0 - 1e-5);
    }
}
