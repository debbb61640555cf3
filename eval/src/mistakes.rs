//! The candidate's surest mistakes, for a reader: each is a wrong answer given with confidence, or a wrong label.

use crate::arms::{Answers, Questions};
use crate::calibrator::Calibrator;
use crate::floor::text_of;
use crate::judge::Judge;
use crate::metrics::Prediction;
use crate::plan::EvalPlan;
use crate::report::{ArmResult, Mistake};
use std::collections::BTreeMap;

pub(crate) fn mistakes(
    plan: &EvalPlan,
    judge: &Judge<'_>,
    results: &[ArmResult],
    answers: &BTreeMap<String, Answers>,
    questions: &Questions<'_>,
    gold: &[usize],
) -> Vec<Mistake> {
    const SHOWN_CHARS: usize = 240;
    let Some(candidate) = answers.get(&plan.candidate) else { return Vec::new() };
    let calibrator = results
        .iter()
        .find(|result| result.name == plan.candidate)
        .and_then(|result| result.calibration.as_ref())
        .map_or(Calibrator::None, |calibration| calibration.calibrator.clone());
    let frontier = plan.frontier.as_ref().and_then(|name| answers.get(name));
    let confidence = |p: &Prediction| match (&p.posterior, &p.said) {
        (Some(posterior), _) => Some(calibrator.posterior(posterior)[p.label?]),
        (None, said) => p.label.and(said.as_ref()?.confidence).map(|c| calibrator.confidence(c)),
    };
    let mut wrong: Vec<(usize, Option<f64>)> = candidate
        .test
        .iter()
        .enumerate()
        .filter(|(i, p)| p.label != Some(gold[*i]))
        .map(|(i, p)| (i, confidence(p)))
        .collect();
    wrong.sort_by(|x, y| y.1.unwrap_or(-1.0).total_cmp(&x.1.unwrap_or(-1.0)).then(x.0.cmp(&y.0)));
    wrong
        .into_iter()
        .take(plan.mistakes)
        .map(|(i, confidence)| {
            let text = text_of(&questions.test[i].messages);
            let cut: String = text.chars().take(SHOWN_CHARS).collect();
            let name = |label: Option<usize>| label.map(|label| judge.name(label));
            Mistake {
                row: questions.test[i].id.clone(),
                text: if cut.len() < text.len() { cut + "…" } else { cut },
                gold: judge.name(gold[i]),
                answer: name(candidate.test[i].label),
                confidence,
                frontier: frontier.and_then(|frontier| name(frontier.test[i].label)),
            }
        })
        .collect()
}
