//! What routing makes of the test rows: which calls the candidate answers, which go to the fallback, and what the two together
//! are right on, cost and take. By a certificate where one is asked for, else by the recipe's own threshold.

use crate::arms::Answers;
use crate::calibration::{RiskPoint, Served, aurc, calibrated, excess_aurc, risk_coverage, serve_at};
use crate::cost::Cost;
use crate::escalation::{Certificate, Scored, bands, certify, review_below, scored};
use crate::evaluate::{posteriors, right};
use crate::metrics::{Latency, latency};
use crate::plan::{Escalation, EvalPlan};
use crate::report::{ArmResult, Routing};
use crate::said::said_confidences;
use crate::statistics::wilson;
use std::collections::BTreeMap;

/// Points of the risk–coverage curve that a report keeps.
const CURVE_POINTS: usize = 200;

pub(crate) fn route(
    plan: &EvalPlan,
    results: &[ArmResult],
    answers: &BTreeMap<String, Answers>,
    gold: &[usize],
    calibration_gold: &[usize],
) -> Option<Routed> {
    let result = results.iter().find(|result| result.name == plan.candidate)?;
    let calibrator = &result.calibration.as_ref()?.calibrator;
    let candidate = answers.get(&plan.candidate)?;
    let level = 1.0 - plan.risk.alpha;
    let mut certified = None;
    let (rows, threshold) = match plan.escalation {
        None => {
            let rows = match posteriors(&candidate.test) {
                Some(posteriors) => calibrated(&posteriors, gold, calibrator),
                None => said_confidences(&candidate.test, gold, calibrator)?,
            };
            (rows, Some(plan.threshold))
        }
        Some(escalation) => {
            let found = certificate(plan, escalation, candidate, gold, calibration_gold)?;
            let rows = found.test.iter().map(|row| (row.score.unwrap_or(-1.0), row.right)).collect();
            let threshold = found.certificate.threshold;
            certified = Some(found);
            (rows, threshold)
        }
    };
    let serves: Vec<bool> = rows.iter().map(|(score, _)| threshold.is_some_and(|t| *score >= t)).collect();
    let served = match threshold {
        Some(threshold) => serve_at(&rows, threshold, level),
        None => Served { served: 0, wrong: 0, risk: None, risk_upper: None, ..serve_at(&rows, f64::MAX, level) },
    };
    let frontier = plan.frontier.as_ref().and_then(|name| answers.get(name));
    let system_right = frontier.map(|frontier| {
        let frontier_right = right(&frontier.test, gold);
        let own = rows.iter().map(|(_, right)| *right);
        own.zip(&frontier_right)
            .zip(&serves)
            .filter(|((own, frontier), serve)| if **serve { *own } else { **frontier })
            .count()
    });
    let frontier_cost = plan.frontier.as_ref().and_then(|name| results.iter().find(|r| r.name == *name)?.cost.as_ref());
    let cost = result.cost.as_ref().zip(frontier_cost).map(|(own, frontier)| Cost {
        per_1k_calls: own.per_1k_calls + (1.0 - served.coverage) * frontier.per_1k_calls,
        currency: own.currency.clone(),
        basis: "every call pays the candidate, an escalated one the frontier too".to_owned(),
    });
    let n = gold.len() as u64;
    let (certificate, review_below, bands) = match certified {
        Some(found) => (Some(found.certificate), found.review_below, found.bands),
        None => (None, None, Vec::new()),
    };
    let routing = Routing {
        temperature: calibrator.temperature(),
        system_accuracy: system_right.map(|right| right as f64 / n as f64),
        system_interval: system_right.map(|right| wilson(right as u64, n, level)),
        cost,
        latency: frontier.and_then(|frontier| blended(candidate, frontier, &serves)),
        aurc: aurc(&rows),
        excess_aurc: Some(excess_aurc(&rows)),
        curve: thin(risk_coverage(&rows)),
        served: Served { threshold: threshold.unwrap_or(1.0), ..served },
        certificate,
        review_below,
        bands,
    };
    Some(Routed { routing, serves })
}

/// Routing, and which test rows it serves.
pub(crate) struct Routed {
    pub routing: Routing,
    pub serves: Vec<bool>,
}

struct Certified {
    certificate: Certificate,
    review_below: Option<f64>,
    bands: Vec<crate::escalation::Band>,
    test: Vec<Scored>,
}

fn certificate(
    plan: &EvalPlan,
    escalation: Escalation,
    candidate: &Answers,
    gold: &[usize],
    calibration_gold: &[usize],
) -> Option<Certified> {
    let test = scored(&candidate.test, gold)?;
    let calibration = scored(&candidate.calibration, calibration_gold)?;
    // Of the test rows the scores are taken, never whether an answer was right.
    let unlabelled: Vec<Option<f64>> = test.iter().map(|row| row.score).collect();
    let certificate = certify(&calibration, &unlabelled, escalation.target, plan.risk.power);
    let review_below = certificate.threshold.and_then(|t| review_below(&unlabelled, t, escalation.review_share));
    let bands = bands(&test, certificate.threshold, review_below, 1.0 - plan.risk.alpha);
    Some(Certified { certificate, review_below, bands, test })
}

/// Times of calls of which the escalated ones wait for both, row by row, of the rows that the candidate was timed on: all, or a
/// random draw. None where an escalated one of them was not timed at the frontier.
fn blended(candidate: &Answers, frontier: &Answers, serves: &[bool]) -> Option<Latency> {
    let rows = candidate.test.iter().zip(&frontier.test).zip(serves);
    let times = rows.filter_map(|((own, frontier), serves)| {
        let escalated = if *serves { Some(0.0) } else { frontier.latency_ms };
        own.latency_ms.map(|own| Some(own + escalated?))
    });
    latency(&times.collect::<Option<Vec<f64>>>()?)
}

/// Every k-th point, the first and the last among them.
fn thin(points: Vec<RiskPoint>) -> Vec<RiskPoint> {
    let every = points.len().div_ceil(CURVE_POINTS).max(1);
    let last = points.len().saturating_sub(1);
    points.into_iter().enumerate().filter(|(i, _)| i % every == 0 || *i == last).map(|(_, point)| point).collect()
}
