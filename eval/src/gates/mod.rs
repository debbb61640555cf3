//! Gates: what a recipe demands of the candidate, decided as pass, fail or inconclusive with the reason, the numbers and
//! the number of test rows that would decide. Every gate uses one rule of evidence, stated at [`Verdict`].

mod calibrated;
mod canaries;
mod figures;
mod loads;
mod posteriors;
mod preferred;
mod routed;
mod rules;
mod stability;

pub use figures::Costs;
pub use stability::{REPEATS, Stability, stability};

use crate::calibrator::Calibrator;
use crate::load::LoadTest;
use crate::metrics::Prediction;
use crate::planted::PlantedAnswer;
use crate::preference::Judgement;
use crate::report::{Routing, SplitRows};
use crate::slices::By;
use crate::statistics::Risk;
use crate::texts::Likeness;
use limbeck_artifact::dataset::Split;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The rule of evidence, the same for all gates: **pass** if the one-sided confidence bound on the good side of the
/// observed value meets the demand (the chance to pass a candidate that does not meet it is at most alpha), **fail** if
/// the bound on the other side misses it (the chance to fail a candidate that meets it is at most alpha), else
/// **inconclusive**. All gates must pass, so a wrong pass needs no correction for their number. `limbeck eval --self-check`
/// simulates both chances; a paired gate fails a little more often than alpha where very few rows tell the arms apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Pass,
    Inconclusive,
    Fail,
}

impl Verdict {
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::Inconclusive => "inconclusive",
            Verdict::Fail => "fail",
        }
    }

    /// The worst of the gates' verdicts. Without gates nothing was asked, so nothing is certified: inconclusive.
    pub fn overall(verdicts: impl Iterator<Item = Verdict>) -> Verdict {
        verdicts.max().unwrap_or(Verdict::Inconclusive)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    Accuracy,
    MacroF1,
    /// All fields right: what accuracy is of fields.
    ExactMatch,
    /// The answer is one that counts.
    Validity,
    /// How like the wanted text an answer is: mean F1 of ROUGE-L.
    RougeL,
}

/// One demand on the candidate. Rates are shares of 1: a margin of three points is 0.03.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gate {
    /// Shown in the report and in events; unique within a plan.
    pub name: String,
    #[serde(flatten)]
    pub rule: Rule,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Rule {
    /// The metric is at least `min`: exact binomial bounds for accuracy, BCa bootstrap bounds for macro-F1, bounds by the
    /// bootstrap of Student's t for ROUGE-L.
    Floor { metric: Metric, min: f64 },
    /// Accuracy exceeds that of arm `over` by at least `min`, on the same rows (Tango's score test).
    Improvement { over: String, min: f64 },
    /// Accuracy is at most `margin` below that of arm `against`, on the same rows (Tango's score test).
    NonInferiority { against: String, margin: f64 },
    /// The recall of every class is at least `min` (exact binomial bounds a class; a fail is corrected for the number
    /// of classes).
    PerClassRecall { min: f64 },
    /// Of the rows whose label is `gold`, at most `max` are answered `predicted` (exact binomial bounds).
    Cell { gold: String, predicted: String, max: f64 },
    /// The accuracy on every slice of this kind with at least 30 test rows is at least `min` (bounds as for classes).
    SliceFloor { by: By, min: f64 },
    /// The candidate answers as arm `against` does on all but `max_agreement_loss` of the rows and, where they are given, loses
    /// at most `max_accuracy_loss` of accuracy (Tango's score test) and has posteriors whose mean KL divergence, of that arm's
    /// from the candidate's in nats, is at most `max_kl` (bootstrap bounds).
    Quantization {
        against: String,
        max_agreement_loss: f64,
        max_accuracy_loss: Option<f64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max_kl: Option<f64>,
    },
    /// A judge prefers the candidate's answers, ties half, on at least `min` of the rows (bootstrap bounds).
    Judge { judge: String, min: f64 },
    /// The certified threshold serves at least `min` of the rows (exact binomial bounds). Where nothing is certified, more
    /// calibration rows may decide; where none would, it fails.
    CertifiedCoverage { min: f64 },
    /// The policy names where escalated calls go.
    Fallback {},
    /// At most one call in twenty takes longer than `p95_ms` (exact binomial bounds).
    Latency { p95_ms: f64 },
    /// The same of the calls of a load test, from when they were due; a call that failed is late (exact binomial bounds over as many
    /// calls as these are worth: calls that wait behind one another are not independent).
    LatencyUnderLoad { p95_ms: f64 },
    /// An instruction in the message that names another answer changes at most `max_flips` of the answers (exact binomial
    /// bounds; each test row once, with one of a few instructions).
    InjectionCanary { max_flips: f64 },
    /// Of made-up secrets in the messages at most `max_leaks` come out in what is written (likewise).
    PiiCanary { max_leaks: f64 },
    /// The expected calibration error of the calibrated confidences is at most `max_error` (see `calibrated` for the bounds).
    Calibration { max_error: f64 },
    /// A thousand calls cost at most so much in the price table's currency, escalated ones paid twice (bounds of the mean time of
    /// a call by the bootstrap of t, and of the share escalated by exact binomial ones).
    Cost { max_per_1k_calls: f64 },
    /// The file has at most so many megabytes, of a million bytes.
    Size { max_mb: f64 },
    /// People reviewed at least this share of a split's rows.
    Reviewed { of: Split, min: f64 },
}

impl Rule {
    /// The arm that the rule compares with.
    pub fn other_arm(&self) -> Option<&str> {
        match self {
            Rule::Improvement { over: arm, .. }
            | Rule::NonInferiority { against: arm, .. }
            | Rule::Quantization { against: arm, .. } => Some(arm),
            Rule::Floor { .. }
            | Rule::PerClassRecall { .. }
            | Rule::Cell { .. }
            | Rule::SliceFloor { .. }
            | Rule::Judge { .. }
            | Rule::CertifiedCoverage { .. }
            | Rule::Fallback {}
            | Rule::InjectionCanary { .. }
            | Rule::PiiCanary { .. }
            | Rule::Calibration { .. }
            | Rule::Cost { .. }
            | Rule::Size { .. }
            | Rule::Reviewed { .. }
            | Rule::Latency { .. }
            | Rule::LatencyUnderLoad { .. } => None,
        }
    }

    /// What is wrong with the rule's numbers, if anything.
    pub fn problem(&self) -> Option<String> {
        let share = |what: &str, x: f64, open: bool| {
            let inside = if open { x > 0.0 && x < 1.0 } else { (0.0..=1.0).contains(&x) };
            (!inside).then(|| {
                format!("{what} is {x}; it must lie {} 0 and 1", if open { "strictly between" } else { "between" })
            })
        };
        match self {
            Rule::Floor { min, .. }
            | Rule::PerClassRecall { min }
            | Rule::SliceFloor { min, .. }
            | Rule::Judge { min, .. }
            | Rule::CertifiedCoverage { min } => share("min", *min, true),
            Rule::Fallback {} => None,
            Rule::Cell { gold, predicted, .. } if gold == predicted => {
                Some(format!("gold and predicted are both {gold}, which is no mistake"))
            }
            Rule::Cell { max, .. } => share("max", *max, true),
            Rule::InjectionCanary { max_flips } => share("max_flips", *max_flips, true),
            Rule::PiiCanary { max_leaks } => share("max_leaks", *max_leaks, true),
            Rule::Calibration { max_error } => share("max_error", *max_error, true),
            Rule::Reviewed { min, .. } => {
                share("min", *min, false).or_else(|| (*min == 0.0).then(|| "min is 0".into()))
            }
            Rule::Cost { max_per_1k_calls: max } => {
                (!max.is_finite() || *max <= 0.0).then(|| format!("max_per_1k_calls is {max}; it must be above 0"))
            }
            Rule::Size { max_mb } => {
                (!max_mb.is_finite() || *max_mb <= 0.0).then(|| format!("max_mb is {max_mb}; it must be above 0"))
            }
            Rule::Improvement { min, .. } => {
                share("min", *min, false).or_else(|| (*min == 1.0).then(|| "min is 1".into()))
            }
            Rule::NonInferiority { margin, .. } => share("margin", *margin, true),
            Rule::Quantization { max_agreement_loss, max_accuracy_loss, max_kl, .. } => {
                let of_kl = |kl: f64| {
                    (!kl.is_finite() || kl <= 0.0)
                        .then(|| format!("max_kl is {kl}; it must be a number of nats above 0"))
                };
                share("max_agreement_loss", *max_agreement_loss, true)
                    .or_else(|| max_accuracy_loss.and_then(|loss| share("max_accuracy_loss", loss, true)))
                    .or_else(|| max_kl.and_then(of_kl))
            }
            Rule::Latency { p95_ms } | Rule::LatencyUnderLoad { p95_ms } => {
                (!p95_ms.is_finite() || *p95_ms <= 0.0).then(|| format!("p95_ms is {p95_ms}; it must be above 0"))
            }
        }
    }
}

/// A gate's decision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GateResult {
    pub gate: String,
    /// The demand in plain words.
    pub demand: String,
    pub verdict: Verdict,
    pub reason: String,
    pub numbers: BTreeMap<String, f64>,
    /// Reviewed test rows (calibration rows where a certificate is what lacks), in all, that would probably decide if the
    /// observed rates are the true ones. None when the gate is decided, or when no feasible number would do (the reason
    /// then says so).
    pub examples_needed: Option<u64>,
    /// What the gate says when the rows are drawn anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stability: Option<Stability>,
}

/// What the gates look at: every arm's predictions on the test rows.
#[derive(Clone)]
pub struct Evidence<'a> {
    pub labels: &'a [String],
    /// Answers are written: what is right is right as a whole.
    pub in_words: bool,
    /// Where answers are texts: how like the wanted one each is. Empty otherwise.
    pub likeness: &'a Likeness,
    /// Gold label of each test row.
    pub gold: &'a [usize],
    pub arms: BTreeMap<&'a str, &'a [Prediction]>,
    pub candidate: &'a str,
    pub risk: Risk,
    pub bootstrap_resamples: u32,
    pub seed: u64,
    /// How the candidate's calls are routed; None where it gives no scores.
    pub routing: Option<&'a Routing>,
    /// Where escalated calls go.
    pub fallback: &'a [String],
    /// The test rows of each slice that is large enough.
    pub slices: &'a BTreeMap<(By, String), Vec<usize>>,
    /// What the candidate makes of rows with a canary in them.
    pub planted: &'a [PlantedAnswer],
    pub measured: Measured<'a>,
}

/// What was measured of the candidate beside its answers to the test rows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measured<'a> {
    pub load: Option<&'a LoadTest>,
    pub judged: &'a [Judgement],
    /// How its confidences are calibrated, fitted on the calibration split.
    pub calibrator: Option<&'a Calibrator>,
    pub costs: Option<Costs<'a>>,
    /// Of the file that would be shipped.
    pub bytes: Option<u64>,
    /// Rows of the dataset's splits.
    pub reviewed: &'a [SplitRows],
}

/// Decides one gate.
pub fn decide(gate: &Gate, evidence: &Evidence<'_>) -> GateResult {
    rules::decide(gate, evidence)
}
