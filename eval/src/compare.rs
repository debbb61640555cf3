//! Two evaluations side by side: what two runs' candidates answered to the test rows that both have. Rows are told by their
//! digest over message and target, so runs over different draws of data are compared where they meet.

use crate::bootstrap::cluster_difference;
use crate::error::EvalError;
use crate::extraction::normalised;
use crate::floor::text_of;
use crate::looks;
use crate::metrics::{Latency, latency};
use crate::predictions;
use crate::report::Report;
use crate::statistics::{Interval, Paired, mcnemar_exact, tango_interval};
use limbeck_artifact::dataset::{Dataset, Split};
use limbeck_artifact::schema::Schema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

const EXAMPLES: usize = 5;
const SHOWN_CHARS: usize = 160;
const RESAMPLES: u32 = 2_000;

/// A candidate's answers to its test rows.
#[derive(Clone, Debug)]
pub struct Answered {
    /// The run's name and version, and the arm.
    pub name: String,
    pub rows: BTreeMap<String, AnsweredRow>,
    times_ms: Vec<f64>,
    /// Digest of the test rows, and how many candidates they have judged by now.
    judged: Option<(String, u64)>,
}

#[derive(Clone, Debug)]
pub struct AnsweredRow {
    pub group: String,
    pub text: String,
    pub gold: String,
    /// As it is compared; None where it is not valid.
    pub answer: Option<String>,
}

impl AnsweredRow {
    fn right(&self) -> bool {
        self.answer.as_ref() == Some(&self.gold)
    }
}

/// A row that one side gets right and the other does not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Changed {
    pub row: String,
    pub text: String,
    pub gold: String,
    pub first: Option<String>,
    pub second: Option<String>,
}

/// The second against the first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Compared {
    pub first: String,
    pub second: String,
    /// Test rows that both have, and that only one has.
    pub rows: u64,
    pub only_first: u64,
    pub only_second: u64,
    pub first_accuracy: f64,
    pub second_accuracy: f64,
    /// `b`: rows only the second gets right, `c`: only the first.
    pub pair: Paired,
    pub difference: f64,
    /// Tango's, two-sided.
    pub interval: Interval,
    /// When whole groups are drawn; None where every row is a group.
    pub cluster_interval: Option<Interval>,
    pub p_mcnemar: f64,
    /// Where both were judged on the same test split: the candidates that it has judged by now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidates: Option<u64>,
    /// Of more than two candidates: McNemar's p times the number of pairs of them (Bonferroni).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p_of_all_pairs: Option<f64>,
    /// Share of the rows that both answer alike.
    pub agreement: f64,
    pub first_latency: Option<Latency>,
    pub second_latency: Option<Latency>,
    /// Rows that the second loses and wins, the first few in the order of their digests.
    pub lost: Vec<Changed>,
    pub won: Vec<Changed>,
}

impl Answered {
    /// The candidate of the evaluation in a run's folder.
    ///
    /// # Errors
    /// When the run has no evaluation, or its files are not whole.
    pub fn load(run: &Path) -> Result<Answered, EvalError> {
        let report = Report::load(&run.join("eval/report.json"))?;
        let name = report.candidate.clone();
        Answered::of_arm(run, report, &name)
    }

    /// The candidate as it answers where nobody keeps its answers to a schema, as other servers give them.
    ///
    /// # Errors
    /// As [`Answered::load`].
    pub fn load_free(run: &Path) -> Result<Answered, EvalError> {
        let report = Report::load(&run.join("eval/report.json"))?;
        let free = report.constraint.as_ref().filter(|constraint| constraint.constrained);
        let name = free.map_or(&report.candidate, |constraint| &constraint.other).clone();
        Answered::of_arm(run, report, &name)
    }

    fn of_arm(run: &Path, report: Report, arm: &str) -> Result<Answered, EvalError> {
        let path = run.join(format!("eval/predictions/{arm}.jsonl"));
        let unusable = |what: String| EvalError::NotARun { path: run.to_owned(), what };
        let kept =
            predictions::read_test(&path).ok_or_else(|| unusable(format!("{} can't be read", path.display())))?;
        let dataset = Dataset::load(&run.join("dataset")).map_err(|e| unusable(e.to_string()))?;
        let schema = match &dataset.card.schema {
            Some(text) => Some(Schema::parse(text).map_err(|e| unusable(e.to_string()))?),
            None => None,
        };
        let canonical = |text: &str| match &schema {
            None => Some(text.to_owned()),
            Some(schema) => Answered::canonical(schema, text),
        };
        let of: BTreeMap<&str, _> = dataset.rows(Split::Test).iter().map(|row| (row.id.as_str(), row)).collect();
        let (mut rows, mut times_ms) = (BTreeMap::new(), Vec::new());
        for prediction in kept {
            let Some(row) = of.get(prediction.row.as_str()) else {
                return Err(unusable(format!("row {} is not in its dataset", prediction.row)));
            };
            let answer = match &prediction.said {
                Some(said) => canonical(&said.text),
                None => prediction.label.and_then(|label| report.labels.get(label).cloned()),
            };
            times_ms.extend(prediction.latency_ms);
            let text = text_of(&row.messages);
            let cut: String = text.chars().take(SHOWN_CHARS).collect();
            let answered = AnsweredRow {
                group: row.group.clone(),
                text: if cut.len() < text.len() { cut + "…" } else { cut },
                gold: canonical(&row.target).unwrap_or_else(|| row.target.clone()),
                answer,
            };
            rows.insert(row.id.clone(), answered);
        }
        let judged = match &report.test.looks {
            Some(looks) => Some((looks.test.clone(), looks::judged(run, &looks.test)?.max(looks.candidates))),
            None => None,
        };
        let name = format!("{} {} ({})", report.name, report.version, arm);
        Ok(Answered { name, rows, times_ms, judged })
    }

    /// Share of the rows that are right.
    pub fn accuracy(&self) -> f64 {
        self.rows.values().filter(|row| row.right()).count() as f64 / self.rows.len().max(1) as f64
    }

    /// Fields as they are compared; None where they are not valid.
    pub fn canonical(schema: &Schema, text: &str) -> Option<String> {
        let shown = schema.canonical_text(text).ok()?;
        Some(schema.canonical(&normalised(schema, &schema.read(&shown).ok()?)))
    }

    /// Made by hand, for what was not run here.
    pub fn new(name: &str, rows: BTreeMap<String, AnsweredRow>, times_ms: Vec<f64>) -> Answered {
        Answered { name: name.to_owned(), rows, times_ms, judged: None }
    }
}

/// Compares on the rows that both have; None where there is none.
pub fn compare(first: &Answered, second: &Answered, confidence: f64, seed: u64) -> Option<Compared> {
    let both: Vec<(&String, &AnsweredRow, &AnsweredRow)> =
        first.rows.iter().filter_map(|(id, row)| Some((id, row, second.rows.get(id)?))).collect();
    let n = both.len();
    if n == 0 {
        return None;
    }
    let first_right: Vec<bool> = both.iter().map(|(_, row, _)| row.right()).collect();
    let second_right: Vec<bool> = both.iter().map(|(_, _, row)| row.right()).collect();
    let groups: Vec<&str> = both.iter().map(|(_, row, _)| row.group.as_str()).collect();
    let pair = Paired::count(&second_right, &first_right);
    let share = |right: &[bool]| right.iter().filter(|right| **right).count() as f64 / n as f64;
    let mut distinct = groups.clone();
    distinct.sort_unstable();
    distinct.dedup();
    let changed = |wins: bool| -> Vec<Changed> {
        let rows = both.iter().zip(first_right.iter().zip(&second_right));
        rows.filter(|(_, (first, second))| if wins { !**first && **second } else { **first && !**second })
            .take(EXAMPLES)
            .map(|((id, first, second), _)| Changed {
                row: (*id).clone(),
                text: first.text.clone(),
                gold: first.gold.clone(),
                first: first.answer.clone(),
                second: second.answer.clone(),
            })
            .collect()
    };
    let candidates = match (&first.judged, &second.judged) {
        (Some((test, a)), Some((other, b))) if test == other => Some(*a.max(b)),
        _ => None,
    };
    let pairs = candidates.map(|n| n as f64 * (n as f64 - 1.0) / 2.0);
    Some(Compared {
        first: first.name.clone(),
        second: second.name.clone(),
        rows: n as u64,
        only_first: (first.rows.len() - n) as u64,
        only_second: (second.rows.len() - n) as u64,
        first_accuracy: share(&first_right),
        second_accuracy: share(&second_right),
        pair,
        difference: pair.difference(),
        interval: tango_interval(pair, confidence),
        cluster_interval: (distinct.len() < n)
            .then(|| cluster_difference(&second_right, &first_right, &groups, confidence, RESAMPLES, seed))
            .flatten(),
        p_mcnemar: mcnemar_exact(pair),
        candidates,
        p_of_all_pairs: pairs.filter(|pairs| *pairs > 1.0).map(|pairs| (mcnemar_exact(pair) * pairs).min(1.0)),
        agreement: both.iter().filter(|(_, first, second)| first.answer == second.answer).count() as f64 / n as f64,
        first_latency: latency(&first.times_ms),
        second_latency: latency(&second.times_ms),
        lost: changed(false),
        won: changed(true),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(name: &str, rows: &[(u32, &str)]) -> Answered {
        let row = |(id, answer): &(u32, &str)| {
            let answer = (*answer != "-").then(|| (*answer).to_owned());
            let row =
                AnsweredRow { group: format!("g{}", id / 2), text: format!("row {id}"), gold: "yes".into(), answer };
            (format!("{id:03}"), row)
        };
        Answered::new(name, rows.iter().map(row).collect(), vec![1.0, 2.0])
    }

    #[test]
    fn the_second_is_held_against_the_first_where_both_answered() {
        let first = answered("a", &[(1, "yes"), (2, "yes"), (3, "no"), (4, "yes"), (9, "no")]);
        let second = answered("b", &[(1, "yes"), (2, "no"), (3, "yes"), (4, "-"), (7, "yes"), (8, "yes")]);
        let compared = compare(&first, &second, 0.95, 1).unwrap();
        assert_eq!((compared.rows, compared.only_first, compared.only_second), (4, 1, 2));
        assert_eq!((compared.first_accuracy, compared.second_accuracy, compared.difference), (0.75, 0.5, -0.25));
        assert_eq!(compared.pair, Paired { n: 4, b: 1, c: 2 });
        assert_eq!(compared.agreement, 0.25);
        assert_eq!(compared.lost.iter().map(|c| c.row.as_str()).collect::<Vec<_>>(), ["002", "004"]);
        assert_eq!((compared.won[0].row.as_str(), compared.lost[1].second.as_deref()), ("003", None));
        assert!(compared.cluster_interval.is_some() && compared.interval.low < -0.25);
        assert!((compared.p_mcnemar - 1.0).abs() < 1e-12);
        assert_eq!(compare(&first, &answered("c", &[(50, "yes")]), 0.95, 1), None);
    }

    #[test]
    fn a_pair_out_of_many_is_told_apart_with_less_ease() {
        let all: Vec<(u32, &str)> = (0..20).map(|i| (i, "yes")).collect();
        let most: Vec<(u32, &str)> = (0..20).map(|i| (i, if i < 8 { "no" } else { "yes" })).collect();
        let of = |judged: [Option<(&str, u64)>; 2]| {
            let [a, b] = judged.map(|judged| judged.map(|(test, n)| (test.to_owned(), n)));
            let (first, second) = (answered("a", &most), answered("b", &all));
            let (first, second) = (Answered { judged: a, ..first }, Answered { judged: b, ..second });
            let compared = compare(&first, &second, 0.95, 1).unwrap();
            (compared.candidates, compared.p_of_all_pairs.map(|p| p / compared.p_mcnemar))
        };
        assert_eq!(of([None, None]), (None, None));
        assert_eq!(of([Some(("t", 2)), Some(("t", 2))]), (Some(2), None));
        assert_eq!(of([Some(("t", 4)), Some(("t", 3))]), (Some(4), Some(6.0)));
        assert_eq!(of([Some(("t", 4)), Some(("u", 4))]), (None, None), "other rows");
    }
}
