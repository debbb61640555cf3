//! What an evaluation found, as one value: the JSON that machines read, the page that people read and the terminal's
//! short form are all made from it and hold nothing that it lacks.

mod failing;
mod html;
mod judges;
mod junit;
mod loads;
mod plots;
mod terminal;

pub use html::render_html;
pub use judges::judged_facts;
pub use junit::junit;
pub use loads::load_facts;
pub use terminal::terminal_summary;

use crate::arms::ArmKind;
use crate::calibration::{Bin, CalibrationScores, RiskPoint, Served};
use crate::calibrator::{Calibrator, MethodScore};
use crate::cost::Cost;
use crate::detection::{Detection, Ranked};
use crate::error::EvalError;
use crate::escalation::{Band, Certificate};
use crate::extraction::Extraction;
use crate::gates::{GateResult, Verdict};
use crate::load::Load;
use crate::looks::Looks;
use crate::metrics::{Latency, Scores};
use crate::policy::{self, Policy};
use crate::preference::Judged;
use crate::savings::Savings;
use crate::slices::Slices;
use crate::statistics::{Interval, Paired};
use crate::texts::Texts;
use crate::words::{percent, signed_points};
use limbeck_artifact::dataset::DatasetCard;
use limbeck_artifact::event::{Emit, EventKind};
use limbeck_artifact::files::write_atomic;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Raised when a reader of older reports would misread a newer one.
pub const SCHEMA: u32 = 1;

/// A thing and what is known of it, for a table of facts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fact {
    pub what: String,
    pub value: String,
}

impl Fact {
    pub fn new(what: impl Into<String>, value: impl Into<String>) -> Fact {
        Fact { what: what.into(), value: value.into() }
    }
}

/// The report. Field order is the order of the JSON; every map is sorted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub schema: u32,
    pub name: String,
    pub version: String,
    pub program_version: String,
    pub verdict: Verdict,
    /// The verdict in one sentence.
    pub headline: String,
    /// Name of the arm that the gates judge: the file that would be shipped.
    pub candidate: String,
    /// Of fields that a model wrote; None in reports of earlier versions, whose candidates wrote freely.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constraint: Option<Constraint>,
    /// Name of the arm that it would replace, if it was evaluated.
    pub frontier: Option<String>,
    pub made: Vec<Fact>,
    /// What a reader must know before believing a number ("the traces are simulated").
    pub notes: Vec<String>,
    pub labels: Vec<String>,
    /// The fields' names, where answers are fields; accuracy then means that all of them are right.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<String>,
    pub test: TestRows,
    pub arms: Vec<ArmResult>,
    /// On the same rows: the candidate against each other arm, then each other arm against the frontier.
    pub comparisons: Vec<Comparison>,
    pub gates: Vec<GateResult>,
    /// What judges make of the candidate's texts beside another arm's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub judged: Vec<Judged>,
    pub routing: Option<Routing>,
    /// What a gateway needs to route by it; None in reports of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// What it saves by the month; None where prices are missing, and in reports of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub savings: Option<Savings>,
    /// Where the candidate fails; None in reports of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slices: Option<Slices>,
    /// The candidate's most confident mistakes.
    pub mistakes: Vec<Mistake>,
    pub lineage: Lineage,
    /// Commands, in order.
    pub reproduce: Vec<String>,
}

/// Whether answers are kept to their schema while they are written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Constraint {
    /// The candidate's are.
    pub constrained: bool,
    /// The arm that is the same model asked the other way.
    pub other: String,
}

/// The rows that were judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TestRows {
    pub rows: u64,
    /// Customers, or clusters of near-duplicates: rows of one group are not independent.
    pub groups: u64,
    /// Rows of the test split that nobody reviewed, which were not used.
    pub unreviewed: u64,
    /// Two-sided confidence of the intervals; one-sided for gates.
    pub confidence: f64,
    /// How often these rows have judged; None where nobody counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub looks: Option<Looks>,
}

/// What the answers of an evaluation are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerKind {
    Labels,
    Fields,
    Texts,
}

/// One arm's results on the test rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArmResult {
    pub name: String,
    pub title: String,
    pub kind: ArmKind,
    pub scores: Scores,
    /// As recorded in production for the recorded arm, as measured here for the others.
    pub latency: Option<Latency>,
    pub cost: Option<Cost>,
    /// Why there is no cost.
    pub cost_missing: Option<String>,
    pub calibration: Option<Calibration>,
    /// Field by field, where answers are fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extraction: Option<Extraction>,
    /// Where answers are texts: how like the wanted ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub texts: Option<Texts>,
    /// How well what is out of scope is told from the rest; None where no label says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detection: Option<Detection>,
    /// What an order by the wanted label's probability is worth; None where nothing is ordered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranked: Option<Ranked>,
    /// What callers wait when calls come at a rate of their own; None where that was not tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<Load>,
    /// Who answered, where that is not plain from the title: a live model, when, at what price.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub facts: Vec<Fact>,
}

/// How far the arm's confidences may be believed, as far as known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Posteriors are raised to 1/temperature; 1 when the calibration split was empty, and under another method.
    pub temperature: f64,
    /// The method in use with its parameters; in reports of earlier versions the temperature says all.
    #[serde(default)]
    pub calibrator: Calibrator,
    /// Rows of the calibration split that it was fitted on.
    pub fitted_rows: u64,
    /// On the test rows, before and after.
    pub raw: CalibrationScores,
    pub tempered: CalibrationScores,
    /// Reliability on the test rows, after.
    pub bins: Vec<Bin>,
    /// All methods, compared within the calibration split; of the candidate, where there are rows enough.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<MethodScore>,
}

impl Calibration {
    /// The method in use; in reports of earlier versions only the temperature was written.
    pub fn calibrator(&self) -> Calibrator {
        match &self.calibrator {
            Calibrator::Temperature { .. } => Calibrator::Temperature { temperature: self.temperature },
            other => other.clone(),
        }
    }
}

/// One arm against another, row by row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    pub arm: String,
    pub against: String,
    pub pair: Paired,
    /// Accuracy of `arm` minus that of `against`.
    pub difference: f64,
    /// Tango's score interval, two-sided.
    pub interval: Interval,
    pub p_mcnemar: f64,
    /// Of comparisons with the frontier: Holm's adjustment for their number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p_holm: Option<f64>,
    /// The interval when whole groups are drawn; None where every row is a group of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_interval: Option<Interval>,
    pub agreement: f64,
}

/// What happens at the threshold: answers at or above it are served, the others go to the frontier. The threshold is the
/// certificate's, on the score, where there is one, else the recipe's, on the confidence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Routing {
    pub served: Served,
    pub temperature: f64,
    /// Accuracy of served answers and the frontier's recorded answers to the rest.
    pub system_accuracy: Option<f64>,
    pub system_interval: Option<Interval>,
    /// Every call pays the candidate, an escalated one the frontier too.
    pub cost: Option<Cost>,
    /// Times of calls of which the escalated ones wait for both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
    /// Mean error rate over all coverages.
    pub aurc: f64,
    /// The same above what the best order would have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excess_aurc: Option<f64>,
    pub curve: Vec<RiskPoint>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Certificate>,
    /// Served answers of a lower score are queued for review.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub review_below: Option<f64>,
    /// What the certificate does to the test rows; empty without one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bands: Vec<Band>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mistake {
    pub row: String,
    /// The beginning of what was asked.
    pub text: String,
    pub gold: String,
    /// None: no valid answer.
    pub answer: Option<String>,
    pub confidence: Option<f64>,
    pub frontier: Option<String>,
}

/// Where the rows came from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lineage {
    pub dataset: String,
    pub traces_in: u64,
    /// Rows left out on the way, by reason.
    pub left_out: BTreeMap<String, u64>,
    pub splits: Vec<SplitRows>,
    pub redactions: BTreeMap<String, u64>,
    /// Input files and their digests.
    pub sources: BTreeMap<String, String>,
    /// What the review says of the labels; empty in reports of earlier versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SplitRows {
    pub split: String,
    pub rows: u64,
    pub reviewed: u64,
}

impl Lineage {
    pub fn of(card: &DatasetCard) -> Lineage {
        let split = |(split, card): (&limbeck_artifact::dataset::Split, &limbeck_artifact::dataset::SplitCard)| {
            SplitRows { split: split.name().to_owned(), rows: card.rows, reviewed: card.reviewed }
        };
        Lineage {
            dataset: card.digest.clone(),
            traces_in: card.traces_in,
            left_out: card.left_out.clone(),
            splits: card.splits.iter().map(split).collect(),
            redactions: card.redactions.clone(),
            sources: card.sources.clone(),
            labels: card.curation.review_lines(),
        }
    }
}

impl ArmResult {
    /// The figure that [`Report::partial`] names.
    pub fn partial(&self) -> f64 {
        self.texts.as_ref().map_or(self.scores.macro_f1, |texts| texts.rouge_l)
    }

    /// The share of answers that count, where answers are written.
    pub fn validity(&self) -> Option<f64> {
        let of_texts = || self.texts.as_ref().map(|texts| texts.validity);
        self.extraction.as_ref().map(|fields| fields.validity).or_else(of_texts)
    }
}

impl Report {
    /// What the share of right answers is called.
    pub fn what(&self) -> &'static str {
        match self.answers() {
            AnswerKind::Labels => "accuracy",
            AnswerKind::Fields | AnswerKind::Texts => "exact match",
        }
    }

    /// What answers are.
    pub fn answers(&self) -> AnswerKind {
        match (self.labels.is_empty(), self.fields.is_empty()) {
            (false, _) => AnswerKind::Labels,
            (true, false) => AnswerKind::Fields,
            (true, true) => AnswerKind::Texts,
        }
    }

    /// The figure beside the share of right answers, which counts what is almost right.
    pub fn partial(&self) -> &'static str {
        match self.answers() {
            AnswerKind::Labels => "macro-F1",
            AnswerKind::Fields => "field F1",
            AnswerKind::Texts => "ROUGE-L",
        }
    }

    /// How often the test rows have judged, in sentences.
    pub fn looks(&self) -> Option<String> {
        self.test.looks.as_ref().map(|looks| looks.words(1.0 - self.test.confidence))
    }

    /// What keeping answers to the schema does, in sentences: the candidate beside the same model the other way.
    pub fn constraint_words(&self) -> Option<String> {
        let constraint = self.constraint.as_ref()?;
        let (own, other) = (self.candidate_arm()?, self.arm(&constraint.other)?);
        let figures = |arm: &ArmResult| {
            let valid = arm.validity().map_or(String::new(), |valid| format!("{} valid, ", percent(valid)));
            format!("{valid}{} exact match", percent(arm.scores.accuracy))
        };
        let [kept, free] = ["kept to the schema while they are written", "written freely"];
        let [first, second] = if constraint.constrained { [kept, free] } else { [free, kept] };
        let difference = self.comparison(&self.candidate, &constraint.other).map_or(String::new(), |pair| {
            let (low, high) = (signed_points(pair.interval.low), signed_points(pair.interval.high));
            let level = percent(self.test.confidence);
            let difference = signed_points(pair.difference);
            format!(
                " Exact match of the first less that of the second: {difference} ({level} interval {low} to {high})."
            )
        });
        Some(format!(
            "Answers are {first}: {}. The same model, answers {second}: {}.{difference}",
            figures(own),
            figures(other)
        ))
    }

    pub fn arm(&self, name: &str) -> Option<&ArmResult> {
        self.arms.iter().find(|arm| arm.name == name)
    }

    pub fn candidate_arm(&self) -> Option<&ArmResult> {
        self.arm(&self.candidate)
    }

    pub fn frontier_arm(&self) -> Option<&ArmResult> {
        self.arm(self.frontier.as_deref()?)
    }

    pub fn comparison(&self, arm: &str, against: &str) -> Option<&Comparison> {
        self.comparisons.iter().find(|c| c.arm == arm && c.against == against)
    }

    /// `arm` against the frontier; None for the frontier itself.
    pub fn versus_frontier(&self, arm: &str) -> Option<&Comparison> {
        self.comparison(arm, self.frontier.as_deref()?)
    }

    /// Indented JSON with a final newline; the same report gives the same bytes.
    pub fn to_json(&self) -> Result<String, EvalError> {
        serde_json::to_string_pretty(self)
            .map(|json| json + "\n")
            .map_err(|source| EvalError::Json { what: "the report".to_owned(), source })
    }

    /// Reads a `report.json`.
    pub fn load(path: &Path) -> Result<Report, EvalError> {
        let text = std::fs::read_to_string(path).map_err(|source| EvalError::Io {
            doing: "read the report",
            path: path.to_owned(),
            source,
        })?;
        serde_json::from_str(&text).map_err(|source| EvalError::NotAReport { path: path.to_owned(), source })
    }

    /// Writes `report.json`, `report.html` and, where there is one, `policy.json` into `dir`.
    pub fn save(&self, dir: &Path, emit: &dyn Emit) -> Result<(), EvalError> {
        let mut files = vec![("report.json", self.to_json()?), ("report.html", render_html(self)?)];
        if let Some(policy) = &self.policy {
            files.push((policy::FILE_NAME, policy.to_json()?));
        }
        for (name, text) in files {
            let path = dir.join(name);
            write_atomic(&path, text.as_bytes()).map_err(|source| EvalError::Io {
                doing: "write the report",
                path: path.clone(),
                source,
            })?;
            emit.emit(EventKind::Wrote { path: path.display().to_string(), bytes: text.len() as u64 });
        }
        Ok(())
    }
}
