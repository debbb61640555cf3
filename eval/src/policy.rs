//! The policy that travels with a model: from which score an answer may be served, what goes to review, where the rest goes,
//! how long that holds and what traffic it was measured on. One JSON file that any gateway can read; it needs nothing of this
//! program, and a gateway that knows a label's or an answer's probability can route by it.

use crate::arms::{Answers, Questions};
use crate::calibration::Served;
use crate::calibrator::Calibrator;
use crate::error::EvalError;
use crate::escalation::{Action, scored};
use crate::floor::text_of;
use crate::mmd;
use crate::plan::EvalPlan;
use crate::report::Report;
use limbeck_artifact::dataset::Example;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

pub const FILE_NAME: &str = "policy.json";
pub const SCHEMA: u32 = 1;
/// Scores of the reference that are kept: evenly spaced ranks.
const REFERENCE_SCORES: usize = 1_000;

/// The number that a threshold is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Score {
    /// The largest label probability as the model gives it, before any calibration.
    TopProbability,
    /// The product of the answer's token probabilities as the model gives them, before any calibration.
    AnswerProbability,
    /// The confidence after calibration.
    Confidence,
}

impl Score {
    fn meaning(self) -> &'static str {
        match self {
            Score::TopProbability => {
                "the largest of the label probabilities as the model gives them, before any calibration"
            }
            Score::AnswerProbability => {
                "the product of the probabilities of the answer's tokens, its end included, before any calibration"
            }
            Score::Confidence => "the confidence of the answer, after `calibration`",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// [`SCHEMA`].
    pub schema: u32,
    pub name: String,
    pub version: String,
    pub score: Score,
    /// What `score` means, in words.
    pub score_means: String,
    /// From the top: the first band whose `from` the score reaches is the answer's. An answer that is not valid escalates.
    pub bands: Vec<PolicyBand>,
    /// Where escalated calls go, in order.
    pub fallback: Vec<String>,
    /// None: the threshold is the recipe's own and nothing is promised of it.
    pub certificate: Option<Promise>,
    pub calibration: CalibrationPolicy,
    pub validity: Validity,
    pub reference: Reference,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyBand {
    pub action: Action,
    /// Null: whatever is left.
    pub from: Option<f64>,
}

/// What was promised, or that nothing could be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Promise {
    pub method: String,
    pub max_error: f64,
    pub confidence: f64,
    /// False: nothing could be certified, and every call escalates.
    pub certified: bool,
    pub calibration_rows: u64,
    pub accepted: u64,
    pub errors: u64,
    pub error_upper: Option<f64>,
    pub in_words: String,
}

/// How a score becomes the confidence that is shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CalibrationPolicy {
    /// `none`; `temperature`: probabilities to the power of 1/temperature, made to sum to 1 again; `platt`: σ(slope · logit(p) +
    /// intercept); `isotonic`: straight lines between points.
    #[serde(flatten)]
    pub calibrator: Calibrator,
    /// Calibration rows that it was fitted on.
    pub rows: u64,
}

/// How long the promise counts as fresh.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Validity {
    pub dataset: String,
    /// Of the rows that it was measured on, where the traces tell times.
    pub traffic_from: Option<String>,
    pub traffic_until: Option<String>,
    /// The day, as YYYY-MM-DD, by which new reviewed rows should certify it again.
    pub recertify_by: Option<String>,
    pub in_words: String,
}

/// What the traffic looked like, for drift.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    pub rows: u64,
    /// In rising order, rounded to six digits; of more than a thousand rows every so-manieth.
    pub scores: Vec<f64>,
    /// In the order of `answers`; empty where answers are fields.
    pub labels: Vec<String>,
    /// Rows answered with each label.
    pub answers: Vec<u64>,
    /// Answers that were not valid.
    pub invalid: u64,
    /// `confusion[truth][answer]` over labels, in rows.
    pub confusion: Vec<Vec<u64>>,
    /// Embeddings of some messages, 64 bytes each in hexadecimal (`limbeck drift`); empty in policies of earlier versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<String>,
}

impl Policy {
    /// What is done with a valid answer of this score.
    pub fn route(&self, score: f64) -> Action {
        let reached = |band: &&PolicyBand| band.from.is_none_or(|from| score >= from);
        self.bands.iter().find(reached).map_or(Action::Escalate, |band| band.action)
    }

    /// The lowest score that is served; None where none is.
    pub fn threshold(&self) -> Option<f64> {
        self.bands.iter().filter(|band| band.action != Action::Escalate).filter_map(|band| band.from).reduce(f64::min)
    }

    /// Indented JSON with a final newline.
    pub fn to_json(&self) -> Result<String, EvalError> {
        serde_json::to_string_pretty(self)
            .map(|json| json + "\n")
            .map_err(|source| EvalError::Json { what: "the policy".to_owned(), source })
    }

    /// Reads a `policy.json`.
    pub fn load(path: &Path) -> Result<Policy, EvalError> {
        let unreadable = |what: String| EvalError::NotAPolicy { path: path.to_owned(), what };
        let text = std::fs::read_to_string(path).map_err(|source| EvalError::Io {
            doing: "read the policy",
            path: path.to_owned(),
            source,
        })?;
        let policy: Policy = serde_json::from_str(&text).map_err(|e| unreadable(e.to_string()))?;
        if policy.schema != SCHEMA {
            return Err(unreadable(format!("its schema is {}, this program reads {SCHEMA}", policy.schema)));
        }
        Ok(policy)
    }
}

/// The candidate's policy; None where it gives no scores.
pub(crate) fn make(
    plan: &EvalPlan,
    report: &Report,
    answers: &BTreeMap<String, Answers>,
    questions: &Questions<'_>,
    gold: &[usize],
) -> Option<Policy> {
    let routing = report.routing.as_ref()?;
    let calibration = report.candidate_arm()?.calibration.as_ref()?;
    let candidate = answers.get(&plan.candidate)?;
    let score = match (&routing.certificate, &plan.fields) {
        (None, _) => Score::Confidence,
        (Some(_), None) => Score::TopProbability,
        (Some(_), Some(_)) => Score::AnswerProbability,
    };
    let bands = match &routing.certificate {
        Some(_) => routing.bands.iter().map(|band| PolicyBand { action: band.action, from: band.from }).collect(),
        None => own_bands(&routing.served),
    };
    let times: Vec<&str> =
        questions.calibration.iter().chain(&questions.test).filter_map(|row| row.recorded.at.as_deref()).collect();
    let until = times.iter().max().map(|at| (*at).to_owned());
    let days = plan.escalation.map_or(30, |escalation| escalation.valid_days);
    let recertify_by = until.as_deref().and_then(|at| days_after(at, days));
    Some(Policy {
        schema: SCHEMA,
        name: report.name.clone(),
        version: report.version.clone(),
        score,
        score_means: score.meaning().to_owned(),
        bands,
        fallback: plan.fallback.clone(),
        certificate: routing.certificate.as_ref().map(|certificate| Promise {
            method: "Learn then Test, fixed sequence, exact binomial p values".to_owned(),
            max_error: certificate.target.max_error,
            confidence: certificate.target.confidence,
            certified: certificate.threshold.is_some(),
            calibration_rows: certificate.calibration_rows,
            accepted: certificate.accepted,
            errors: certificate.errors,
            error_upper: certificate.error_upper,
            in_words: certificate.words(),
        }),
        calibration: CalibrationPolicy { calibrator: calibration.calibrator.clone(), rows: calibration.fitted_rows },
        validity: Validity {
            dataset: report.lineage.dataset.clone(),
            traffic_from: times.iter().min().map(|at| (*at).to_owned()),
            traffic_until: until,
            in_words: match &recertify_by {
                Some(day) => format!(
                    "What is promised holds for traffic like the rows it was measured on. Certify again by {day} ({days} days after \
                     the newest of them), and when the traffic drifts."
                ),
                None => format!(
                    "What is promised holds for traffic like the rows it was measured on; the traces tell no time. Certify again \
                     every {days} days, and when the traffic drifts."
                ),
            },
            recertify_by,
        },
        reference: reference(report, candidate, &questions.test, gold)?,
    })
}

fn own_bands(served: &Served) -> Vec<PolicyBand> {
    vec![
        PolicyBand { action: Action::Serve, from: Some(served.threshold) },
        PolicyBand { action: Action::Escalate, from: None },
    ]
}

fn reference(report: &Report, candidate: &Answers, test: &[&Example], gold: &[usize]) -> Option<Reference> {
    let mut scores: Vec<f64> = scored(&candidate.test, gold)?.iter().filter_map(|row| row.score).collect();
    scores.sort_by(f64::total_cmp);
    let kept = scores.len().min(REFERENCE_SCORES);
    // Ranks in the middle of equal stretches: the smallest and the largest score are no likelier to be kept than others.
    let at = |i: usize| scores[((2 * i + 1) * scores.len()) / (2 * kept)];
    let confusion = &report.candidate_arm()?.scores.confusion;
    Some(Reference {
        rows: gold.len() as u64,
        scores: (0..kept).map(|i| (at(i) * 1e6).round() / 1e6).collect(),
        labels: report.labels.clone(),
        answers: (0..confusion.counts.len()).map(|label| confusion.predicted(label)).collect(),
        invalid: report.candidate_arm()?.scores.invalid,
        confusion: confusion.counts.clone(),
        messages: mmd::spread(test.len()).map(|row| mmd::embedding(&text_of(&test[row].messages))).collect(),
    })
}

/// The day so many days after an RFC 3339 time.
fn days_after(at: &str, days: u32) -> Option<String> {
    let mut parts = at.get(..10)?.split('-');
    let mut next = || parts.next()?.parse::<i64>().ok();
    let (year, month, day) = (next()?, next()?, next()?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Days since 0000-03-01 and back (Hinnant, "chrono-compatible low-level date algorithms"): years begin in March, so that
    // a leap day is a year's last.
    let (y, m) = (year - i64::from(month <= 2), (month + 9) % 12);
    let (era, of_era) = (y.div_euclid(400), y.rem_euclid(400));
    let n = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + (153 * m + 2) / 5 + day - 1 + i64::from(days);
    let (era, of_era) = (n.div_euclid(146_097), n.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let m = (5 * of_year + 2) / 153;
    let (day, month) = (of_year - (153 * m + 2) / 5 + 1, if m < 10 { m + 3 } else { m - 9 });
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    Some(format!("{year:04}-{month:02}-{day:02}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_counted_over_months_and_leap_days() {
        for (at, days, expected) in [
            ("2026-11-22T10:00:00Z", 30, Some("2026-12-22")),
            ("2024-02-28T23:59:59.999Z", 1, Some("2024-02-29")),
            ("2023-02-28", 1, Some("2023-03-01")),
            ("2100-02-28", 1, Some("2100-03-01")),
            ("2025-12-31T00:00:00+02:00", 0, Some("2025-12-31")),
            ("1999-12-31", 366, Some("2000-12-31")),
            ("yesterday, at noon", 1, None),
            ("2026-13-01", 1, None),
        ] {
            assert_eq!(days_after(at, days).as_deref(), expected, "{at} + {days}");
        }
    }

    #[test]
    fn a_score_goes_to_the_first_band_that_it_reaches() {
        let band = |action, from| PolicyBand { action, from };
        let mut policy = Policy {
            schema: SCHEMA,
            name: String::new(),
            version: String::new(),
            score: Score::TopProbability,
            score_means: String::new(),
            bands: vec![
                band(Action::Serve, Some(0.9)),
                band(Action::ServeAndReview, Some(0.8)),
                band(Action::Escalate, None),
            ],
            fallback: Vec::new(),
            certificate: None,
            calibration: CalibrationPolicy { calibrator: Calibrator::None, rows: 0 },
            validity: Validity {
                dataset: String::new(),
                traffic_from: None,
                traffic_until: None,
                recertify_by: None,
                in_words: String::new(),
            },
            reference: Reference::default(),
        };
        let routes = [0.95, 0.9, 0.85, 0.8, 0.5, f64::NAN].map(|score| policy.route(score).name());
        assert_eq!(routes, ["serve", "serve", "serve_and_review", "serve_and_review", "escalate", "escalate"]);
        assert_eq!(policy.threshold(), Some(0.8));
        policy.bands.drain(..2);
        assert_eq!((policy.threshold(), policy.route(1.0)), (None, Action::Escalate));
    }
}
