//! Arms made of other arms' answers, row by row, nobody being asked anew: a cascade goes on to the next one while it is not sure
//! enough, an ensemble lets all of them say how sure they are. What they cost and take follows from who would have been asked.

use crate::arms::Answers;
use crate::calibrator::Calibrator;
use crate::cost::Cost;
use crate::metrics::{Prediction, Said};
use crate::report::{ArmResult, Fact};
use crate::words::percent;
use std::collections::BTreeMap;

/// How an arm is made of others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Composition {
    /// Each arm in turn until one has a valid answer that it is at least so sure of, after calibration; the last one's answer stands.
    Cascade { threshold: f64 },
    /// All of them; the answer with the greatest sum of what each gives it: its calibrated probability, or 1 where an arm does
    /// not say how sure it is. Of equals, that of the arm named first.
    Ensemble,
}

/// An arm that has answered.
pub(crate) struct Member<'a> {
    pub result: &'a ArmResult,
    pub answers: &'a Answers,
}

/// The answers, and what they cost or why nobody knows.
pub(crate) struct Composed {
    pub answers: Answers,
    pub cost: Result<Cost, String>,
}

/// `labels` is their number, 0 where answers are written; `calibration_rows` that of the calibration split.
pub(crate) fn compose(how: Composition, members: &[Member<'_>], labels: usize, calibration_rows: usize) -> Composed {
    match how {
        Composition::Cascade { threshold } => cascade(members, threshold),
        Composition::Ensemble => ensemble(members, labels, calibration_rows),
    }
}

impl Member<'_> {
    fn calibrator(&self) -> Calibrator {
        self.result.calibration.as_ref().map(|calibration| calibration.calibrator()).unwrap_or_default()
    }
}

/// How sure an arm is of its answer; none where it does not say. Of what is no valid answer nobody is sure.
fn sureness(prediction: &Prediction, calibrator: &Calibrator) -> Option<f64> {
    let Some(label) = prediction.label else { return Some(0.0) };
    match (&prediction.posterior, &prediction.said) {
        (Some(posterior), _) => calibrator.posterior(posterior).get(label).copied(),
        (None, Some(said)) => said.confidence.map(|confidence| calibrator.confidence(confidence)),
        (None, None) => None,
    }
}

/// Whether a cascade goes no further: what is no valid answer is no answer, however little it takes.
fn stands(prediction: &Prediction, calibrator: &Calibrator, threshold: f64) -> bool {
    prediction.label.is_some() && sureness(prediction, calibrator).is_some_and(|sure| sure >= threshold)
}

fn cascade(members: &[Member<'_>], threshold: f64) -> Composed {
    let calibrators: Vec<Calibrator> = members.iter().map(Member::calibrator).collect();
    let rows = members.first().map_or(0, |member| member.answers.test.len());
    let (mut asked, mut test) = (vec![0_u64; members.len()], Vec::with_capacity(rows));
    for row in 0..rows {
        let mut taken = Some(0.0);
        for (at, member) in members.iter().enumerate() {
            let prediction = &member.answers.test[row];
            asked[at] += 1;
            taken = taken.zip(prediction.latency_ms).map(|(before, ms)| before + ms);
            if stands(prediction, &calibrators[at], threshold) || at + 1 == members.len() {
                let said = prediction.said.as_ref().map(|said| Said { text: said.text.clone(), confidence: None });
                let answer =
                    Prediction { posterior: None, said, latency_ms: taken, tokens: None, ..prediction.clone() };
                test.push(answer);
                break;
            }
        }
    }
    // Of rows on which all that are ever asked were timed: others would count only where they end early.
    for (row, prediction) in test.iter_mut().enumerate() {
        let untimed =
            |(at, member): (usize, &Member<'_>)| asked[at] > 0 && member.answers.test[row].latency_ms.is_none();
        if members.iter().enumerate().any(untimed) {
            prediction.latency_ms = None;
        }
    }
    let share = |at: usize| asked[at] as f64 / rows.max(1) as f64;
    let told: Vec<String> = members
        .iter()
        .enumerate()
        .map(|(at, member)| format!("{} {} of {rows} rows ({})", member.result.name, asked[at], percent(share(at))))
        .collect();
    let cost = costs(members, &|at| share(at), "every arm that is asked is paid, at its mean over all rows");
    Composed {
        answers: Answers { calibration: Vec::new(), test, facts: vec![Fact::new("asked", told.join(", "))] },
        cost,
    }
}

fn ensemble(members: &[Member<'_>], labels: usize, calibration_rows: usize) -> Composed {
    let calibrators: Vec<Calibrator> = members.iter().map(Member::calibrator).collect();
    let split = |of: &dyn Fn(&Answers) -> &[Prediction]| -> Vec<Prediction> {
        let answers: Vec<&[Prediction]> = members.iter().map(|member| of(member.answers)).collect();
        (0..answers.first().map_or(0, |first| first.len()))
            .map(|row| together(&answers.iter().map(|all| &all[row]).collect::<Vec<_>>(), &calibrators, labels))
            .collect()
    };
    let all_calibrated = members.iter().all(|member| member.answers.calibration.len() == calibration_rows);
    let calibration = if all_calibrated { split(&|answers| &answers.calibration) } else { Vec::new() };
    let test = split(&|answers| &answers.test);
    let unlike = test
        .iter()
        .enumerate()
        .filter(|(row, _)| members.iter().any(|m| m.answers.test[*row].label != members[0].answers.test[*row].label))
        .count();
    let told = format!("{unlike} of {} rows ({})", test.len(), percent(unlike as f64 / test.len().max(1) as f64));
    let cost = costs(members, &|_| 1.0, "every arm is paid for every call");
    Composed { answers: Answers { calibration, test, facts: vec![Fact::new("not all of one mind", told)] }, cost }
}

/// What several arms make of one row. Asked side by side, the slowest decides how long it takes.
fn together(given: &[&Prediction], calibrators: &[Calibrator], labels: usize) -> Prediction {
    let mut weights = BTreeMap::<usize, f64>::new();
    for (prediction, calibrator) in given.iter().zip(calibrators) {
        let Some(label) = prediction.label else { continue };
        match &prediction.posterior {
            Some(posterior) => {
                for (label, p) in calibrator.posterior(posterior).into_iter().enumerate() {
                    *weights.entry(label).or_default() += p;
                }
            }
            None => *weights.entry(label).or_default() += sureness(prediction, calibrator).unwrap_or(1.0),
        }
    }
    let first_named = |label: usize| given.iter().position(|p| p.label == Some(label)).unwrap_or(given.len());
    let best = weights
        .iter()
        .max_by(|(a, x), (b, y)| x.total_cmp(y).then_with(|| first_named(**b).cmp(&first_named(**a))).then(b.cmp(a)));
    let (label, weight) = best.map_or((None, 0.0), |(label, weight)| (Some(*label), *weight));
    let total: f64 = weights.values().sum();
    let posterior = (labels > 0 && total > 0.0)
        .then(|| (0..labels).map(|l| (weights.get(&l).copied().unwrap_or(0.0) / total) as f32).collect());
    // A label may win that no arm put first: then none of the texts is the answer.
    let author = given.iter().find(|p| p.label == label);
    let said = author
        .and_then(|p| p.said.as_ref())
        .map(|said| Said { text: said.text.clone(), confidence: Some(weight / given.len().max(1) as f64) });
    let slowest = given.iter().map(|p| p.latency_ms).reduce(|a, b| a.zip(b).map(|(a, b)| a.max(b))).flatten();
    let row = given.first().map_or_else(String::new, |p| p.row.clone());
    Prediction { row, label, posterior, latency_ms: slowest, said, tokens: None }
}

/// The arms' costs by the share of calls that each is asked.
fn costs(members: &[Member<'_>], share: &dyn Fn(usize) -> f64, basis: &str) -> Result<Cost, String> {
    let (mut per_1k_calls, mut currency) = (0.0, None);
    for (at, member) in members.iter().enumerate().filter(|(at, _)| share(*at) > 0.0) {
        let result = member.result;
        let Some(cost) = &result.cost else {
            let why = result.cost_missing.as_deref().unwrap_or("nobody knows it");
            return Err(format!("no cost of {}: {why}", result.name));
        };
        per_1k_calls += share(at) * cost.per_1k_calls;
        currency = Some(cost.currency.clone());
    }
    let currency = currency.ok_or_else(|| "no arm was asked".to_owned())?;
    Ok(Cost { per_1k_calls, currency, basis: basis.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(label: Option<usize>, posterior: Option<Vec<f32>>, text: &str) -> Prediction {
        let said = Some(Said { text: text.to_owned(), confidence: None });
        Prediction { row: String::new(), label, posterior, latency_ms: None, said, tokens: None }
    }

    #[test]
    fn no_valid_answer_is_no_answer_at_any_threshold() {
        let by = Calibrator::None;
        assert!(!stands(&answered(None, None, "?"), &by, 0.0));
        let unsure = answered(Some(0), Some(vec![0.25, 0.75]), "a");
        assert_eq!([0.0, 0.25, 0.5].map(|threshold| stands(&unsure, &by, threshold)), [true, true, false]);
    }

    #[test]
    fn an_ensembles_text_is_its_answer_or_there_is_none() {
        // Each arm is for another label, and both think the third nearly as likely.
        let first = answered(Some(0), Some(vec![0.5, 0.05, 0.45]), "first");
        let second = answered(Some(1), Some(vec![0.05, 0.5, 0.45]), "second");
        let by = [Calibrator::None, Calibrator::None];
        let made = together(&[&first, &second], &by, 3);
        assert_eq!((made.label, made.said), (Some(2), None));
        let sure = answered(Some(1), Some(vec![0.0, 0.9, 0.1]), "sure");
        let made = together(&[&first, &sure], &by, 3);
        assert_eq!((made.label, made.said.unwrap().text.as_str()), (Some(1), "sure"));
    }
}
