//! A judge's preference between two texts: each pair is shown in both orders, and where the orders disagree it is a tie. Beside what
//! it prefers it is told how much the order decides, and how often it sides with reviewers who wrote an answer anew.
//!
//! A live model that judges likes what is long, what comes first and what sounds like itself (Zheng et al. 2023); both orders cancel
//! the second only. So its word never passes a gate alone, and its figures say how far it may be believed.

use crate::arms::Arm;
use crate::bootstrap::unit_mean_bounds;
use crate::error::{AnswerError, EvalError};
use crate::metrics::Prediction;
use crate::plan::EvalPlan;
use crate::report::Fact;
use crate::statistics::{Interval, Paired, mcnemar_exact, wilson};
use crate::texts::is_exact;
use limbeck_artifact::dataset::{Example, Message};
use limbeck_artifact::digest::sha256_hex;
use limbeck_artifact::event::{Emit, EventKind};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What a judge says of two answers in the order in which it saw them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    First,
    Second,
    Tie,
}

/// Two answers to one message, in the order in which they are shown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shown<'a> {
    pub messages: &'a [Message],
    pub first: &'a str,
    pub second: &'a str,
}

/// Someone who compares answers, many pairs at once.
pub trait Comparer {
    /// One verdict a pair, in their order; None where what came back is none. Tells `done` how many there are.
    ///
    /// # Errors
    /// When it can't be asked on; what was answered is kept.
    fn compare(&mut self, shown: &[Shown<'_>], done: &mut dyn FnMut(usize))
    -> Result<Vec<Option<Choice>>, AnswerError>;

    /// What a reader of the report has to know of who judged.
    fn facts(&self) -> Vec<Fact>;
}

type Open<'a> = Box<dyn FnOnce() -> Result<Box<dyn Comparer + 'a>, AnswerError> + 'a>;

/// A judge of the candidate's answers beside those of the arm `against`.
pub struct PairwiseJudge<'a> {
    pub name: String,
    pub against: String,
    /// Test rows to judge at most, drawn.
    pub rows: Option<usize>,
    open: Open<'a>,
}

impl<'a> PairwiseJudge<'a> {
    pub fn new(
        name: &str,
        against: &str,
        rows: Option<usize>,
        open: impl FnOnce() -> Result<Box<dyn Comparer + 'a>, AnswerError> + 'a,
    ) -> PairwiseJudge<'a> {
        PairwiseJudge { name: name.to_owned(), against: against.to_owned(), rows, open: Box::new(open) }
    }
}

/// How much the order in which answers are shown decides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Pairs of different texts that were judged in both orders.
    pub pairs: u64,
    /// Of verdicts that were no tie, the share for the answer that came first; by rows, half where nothing decides.
    pub first_share: Option<f64>,
    pub first_interval: Option<Interval>,
    /// Pairs of which the winner changed with the order: the first each time, the second each time.
    pub always_first: u64,
    pub always_second: u64,
    /// Of the two being as likely (exact McNemar).
    pub p: f64,
}

/// How a judge takes the answers that reviewers wrote anew: theirs beside the one that they did not take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    pub rows: u64,
    pub with: u64,
    pub ties: u64,
    pub against: u64,
    /// Left out: no legible verdict in one order or both.
    pub illegible: u64,
    /// Of the rows that it decided, ties half; Wilson's interval of those that it sided with the reviewer on.
    pub share: f64,
    pub interval: Interval,
}

/// What a judge makes of the candidate's answers, for a report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    pub judge: String,
    pub arm: String,
    pub against: String,
    /// Rows with a verdict.
    pub rows: u64,
    pub wins: u64,
    pub losses: u64,
    /// Where the orders disagreed, where it said so, and where there was nothing to compare.
    pub ties: u64,
    /// Of the ties: both answers are the same text, and nobody was asked.
    pub same: u64,
    /// Decided without asking: one answer is not valid.
    pub by_validity: u64,
    /// Rows without a legible verdict in one order or both, left out.
    pub illegible: u64,
    /// Wins and half of the ties, of all rows.
    pub share: f64,
    pub interval: Interval,
    pub position: Position,
    /// None where no judged row's answer was written anew.
    pub reviewers: Option<Agreement>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub facts: Vec<Fact>,
}

/// A judge's verdicts: 1, a half or 0 a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    pub summary: Judged,
    pub values: Vec<f64>,
}

pub(crate) fn check(plan: &EvalPlan, arms: &[Arm<'_>], judges: &[PairwiseJudge<'_>]) -> Result<(), EvalError> {
    let refuse = |what: String, hint: &str| Err(EvalError::Plan { what, hint: hint.to_owned() });
    if !judges.is_empty() && plan.fields.as_ref().is_none_or(|fields| !fields.schema.is_text()) {
        return refuse("a judge compares texts, and answers are none".to_owned(), "leave the judge out");
    }
    let mut names = BTreeSet::new();
    for judge in judges {
        if !names.insert(judge.name.as_str()) {
            return refuse(format!("two judges are called `{}`", judge.name), "rename one");
        }
        if judge.against == plan.candidate || !arms.iter().any(|arm| arm.name == judge.against) {
            let what = format!("judge `{}` compares with `{}`, which is no other arm", judge.name, judge.against);
            return refuse(what, "name another arm in `against`");
        }
    }
    Ok(())
}

/// A pair before it is shown, better side first where that is known.
enum Pair<'a> {
    Ask(&'a Example, &'a str, &'a str),
    Decided(f64),
}

/// Has the judge compare the candidate's answers with the other arm's, and reviewers' with those that they did not take.
pub(crate) fn ask(
    plan: &EvalPlan,
    judge: PairwiseJudge<'_>,
    test: &[&Example],
    [candidate, other]: [&[Prediction]; 2],
    emit: &dyn Emit,
) -> Result<Judgement, EvalError> {
    let mut drawn: Vec<usize> = (0..test.len()).collect();
    drawn.sort_by_cached_key(|at| sha256_hex(format!("{} {}", plan.seed, test[*at].id).as_bytes()));
    drawn.truncate(judge.rows.unwrap_or(usize::MAX));
    drawn.sort_unstable();

    let (mut same, mut by_validity) = (0, 0);
    let pairs: Vec<Pair<'_>> = drawn
        .iter()
        .map(|at| match (text(&candidate[*at]), text(&other[*at])) {
            (Some(own), Some(theirs)) if is_exact(own, theirs) => {
                same += 1;
                Pair::Decided(0.5)
            }
            (Some(own), Some(theirs)) => Pair::Ask(test[*at], own, theirs),
            (own, theirs) => {
                by_validity += 1;
                Pair::Decided(if own.is_some() {
                    1.0
                } else if theirs.is_some() {
                    0.0
                } else {
                    0.5
                })
            }
        })
        .collect();
    let asked: Vec<(&Example, &str, &str)> = pairs
        .iter()
        .filter_map(|pair| match pair {
            Pair::Ask(row, own, theirs) => Some((*row, *own, *theirs)),
            Pair::Decided(_) => None,
        })
        .collect();
    let anew: Vec<(&Example, &str, &str)> = drawn
        .iter()
        .map(|at| test[*at])
        .filter(|row| !row.recorded.answer.trim().is_empty() && !is_exact(&row.target, &row.recorded.answer))
        .map(|row| (row, row.target.as_str(), row.recorded.answer.as_str()))
        .collect();

    // Both orders of all pairs, in one go.
    let orders: Vec<(&Example, &str, &str)> = asked.iter().chain(&anew).flat_map(|pair| both_orders(*pair)).collect();
    let shown: Vec<Shown<'_>> =
        orders.iter().map(|(row, first, second)| Shown { messages: &row.messages, first, second }).collect();
    let failed = |source| EvalError::Respond { arm: judge.name.clone(), source };
    let mut comparer = (judge.open)().map_err(failed)?;
    let total = shown.len() as u64;
    let unit = format!("pairs by {}", judge.name);
    let verdicts = comparer
        .compare(&shown, &mut |done| {
            emit.emit(EventKind::Progress { done: done as u64, total, unit: unit.clone() });
        })
        .map_err(failed)?;
    if verdicts.len() != shown.len() {
        return Err(failed(format!("{} verdicts on {} pairs", verdicts.len(), shown.len()).into()));
    }
    let verdicts: Vec<[Option<Choice>; 2]> = verdicts.chunks(2).map(|both| [both[0], both[1]]).collect();
    let (of_rows, of_anew) = verdicts.split_at(asked.len());

    let (mut values, mut illegible, mut next) = (Vec::new(), 0, of_rows.iter());
    for pair in &pairs {
        let value = match pair {
            Pair::Decided(value) => Some(*value),
            Pair::Ask(..) => next.next().and_then(|both| value(*both)),
        };
        match value {
            Some(value) => values.push(value),
            None => illegible += 1,
        }
    }
    let count = |wanted: f64| values.iter().filter(|value| **value == wanted).count() as u64;
    let level = 1.0 - plan.risk.alpha;
    let bounds = unit_mean_bounds(&values, 0.5 + level / 2.0, plan.bootstrap_resamples, plan.seed);
    let summary = Judged {
        judge: judge.name.clone(),
        arm: plan.candidate.clone(),
        against: judge.against.clone(),
        rows: values.len() as u64,
        wins: count(1.0),
        losses: count(0.0),
        ties: count(0.5),
        same,
        by_validity,
        illegible,
        share: values.iter().sum::<f64>() / values.len().max(1) as f64,
        interval: Interval { low: bounds.lower, high: bounds.upper },
        position: position(of_rows, level, plan),
        reviewers: agreement(of_anew, level),
        facts: comparer.facts(),
    };
    Ok(Judgement { summary, values })
}

fn both_orders<'a>((row, one, two): (&'a Example, &'a str, &'a str)) -> [(&'a Example, &'a str, &'a str); 2] {
    [(row, one, two), (row, two, one)]
}

/// A valid answer's text.
fn text(prediction: &Prediction) -> Option<&str> {
    prediction.label.and(prediction.said.as_ref()).map(|said| said.text.as_str())
}

/// What two orders say of the one that came first in the first of them; None where either says nothing.
fn value([as_first, as_second]: [Option<Choice>; 2]) -> Option<f64> {
    Some(match (as_first?, as_second?) {
        (Choice::First, Choice::Second) => 1.0,
        (Choice::Second, Choice::First) => 0.0,
        _ => 0.5,
    })
}

fn position(verdicts: &[[Option<Choice>; 2]], level: f64, plan: &EvalPlan) -> Position {
    let both: Vec<[Choice; 2]> = verdicts.iter().filter_map(|[one, two]| Some([(*one)?, (*two)?])).collect();
    let always = |choice: Choice| both.iter().filter(|pair| **pair == [choice; 2]).count() as u64;
    // By rows: the two verdicts on one pair are not independent.
    let of_row = |pair: &[Choice; 2]| {
        let decided = pair.iter().filter(|choice| **choice != Choice::Tie).count();
        let first = pair.iter().filter(|choice| **choice == Choice::First).count();
        (decided > 0).then(|| first as f64 / decided as f64)
    };
    let shares: Vec<f64> = both.iter().filter_map(of_row).collect();
    let bounds = unit_mean_bounds(&shares, 0.5 + level / 2.0, plan.bootstrap_resamples, plan.seed);
    let (always_first, always_second) = (always(Choice::First), always(Choice::Second));
    Position {
        pairs: both.len() as u64,
        first_share: (!shares.is_empty()).then_some(bounds.estimate),
        first_interval: (!shares.is_empty()).then_some(Interval { low: bounds.lower, high: bounds.upper }),
        always_first,
        always_second,
        p: mcnemar_exact(Paired { n: both.len() as u64, b: always_first, c: always_second }),
    }
}

/// The reviewer's answer came first in the first order.
fn agreement(verdicts: &[[Option<Choice>; 2]], level: f64) -> Option<Agreement> {
    let values: Vec<f64> = verdicts.iter().filter_map(|both| value(*both)).collect();
    let count = |wanted: f64| values.iter().filter(|value| **value == wanted).count() as u64;
    let (rows, with) = (values.len() as u64, count(1.0));
    (!verdicts.is_empty()).then(|| Agreement {
        rows,
        with,
        ties: count(0.5),
        against: count(0.0),
        illegible: verdicts.len() as u64 - rows,
        share: values.iter().sum::<f64>() / rows.max(1) as f64,
        interval: wilson(with, rows, level),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_that_disagree_are_a_tie_and_silence_is_no_verdict() {
        use Choice::{First, Second, Tie};
        for (both, expected) in [
            ([Some(First), Some(Second)], Some(1.0)),
            ([Some(Second), Some(First)], Some(0.0)),
            ([Some(First), Some(First)], Some(0.5)),
            ([Some(Second), Some(Second)], Some(0.5)),
            ([Some(First), Some(Tie)], Some(0.5)),
            ([Some(Tie), Some(Tie)], Some(0.5)),
            ([Some(First), None], None),
        ] {
            assert_eq!(value(both), expected, "{both:?}");
        }
    }
}
