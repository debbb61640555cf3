//! Every arm against those that matter, row by row: the candidate against each other arm, each other arm against the frontier.

use crate::arms::{Answers, Questions};
use crate::bootstrap::cluster_difference;
use crate::evaluate::right;
use crate::multiple::holm;
use crate::plan::EvalPlan;
use crate::report::{ArmResult, Comparison};
use crate::statistics::{Paired, mcnemar_exact, tango_interval};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) fn compare(
    plan: &EvalPlan,
    results: &[ArmResult],
    answers: &BTreeMap<String, Answers>,
    gold: &[usize],
    questions: &Questions<'_>,
) -> Vec<Comparison> {
    let groups: Vec<&str> = questions.test.iter().map(|row| row.group.as_str()).collect();
    let others = || results.iter().map(|result| result.name.as_str()).filter(|name| *name != plan.candidate);
    let with_candidate = others().map(|other| (plan.candidate.as_str(), other));
    let with_frontier = plan.frontier.iter().flat_map(|frontier| {
        let other_way = plan.constraint.as_ref().map(|constraint| constraint.other.as_str());
        // The candidate written the other way is nobody's rival.
        others()
            .filter(move |other| other != frontier && Some(*other) != other_way)
            .map(move |other| (other, frontier.as_str()))
    });
    let mut comparisons: Vec<Comparison> = with_candidate
        .chain(with_frontier)
        .filter_map(|(arm, against)| {
            let (first, second) = (answers.get(arm)?, answers.get(against)?);
            let (first_right, second_right) = (right(&first.test, gold), right(&second.test, gold));
            let pair = Paired::count(&first_right, &second_right);
            let level = 1.0 - plan.risk.alpha;
            let clustered = (groups.iter().collect::<BTreeSet<_>>().len() < groups.len()).then(|| {
                cluster_difference(&first_right, &second_right, &groups, level, plan.bootstrap_resamples, plan.seed)
            });
            let same = first.test.iter().zip(&second.test).filter(|(x, y)| x.label == y.label).count();
            Some(Comparison {
                arm: arm.to_owned(),
                against: against.to_owned(),
                pair,
                difference: pair.difference(),
                interval: tango_interval(pair, 1.0 - plan.risk.alpha),
                p_mcnemar: mcnemar_exact(pair),
                p_holm: None,
                cluster_interval: clustered.flatten(),
                agreement: same as f64 / gold.len() as f64,
            })
        })
        .collect();
    // Arms that are candidates for the frontier's place: the chance that any of them is told apart by luck.
    if let Some(frontier) = &plan.frontier {
        let rivals: Vec<usize> = (0..comparisons.len()).filter(|i| comparisons[*i].against == *frontier).collect();
        let p: Vec<f64> = rivals.iter().map(|i| comparisons[*i].p_mcnemar).collect();
        for (i, adjusted) in rivals.into_iter().zip(holm(&p)) {
            comparisons[i].p_holm = Some(adjusted);
        }
    }
    comparisons
}
