//! The gate on a judge's word. A recipe that has it has another gate on what people wrote; the recipe's check sees to that.

use super::rules::{Finding, Needs, absent, bootstrapped};
use super::{Evidence, Verdict};
use crate::bootstrap::unit_mean_bounds;
use crate::words::percent;

/// Where more rows than this have no legible verdict, those that have one are no sample of all.
const MOST_ILLEGIBLE: f64 = 0.05;

pub(super) fn preferred(judge: &str, min: f64, evidence: &Evidence<'_>) -> Finding {
    let Some(judgement) = evidence.measured.judged.iter().find(|judgement| judgement.summary.judge == judge) else {
        return Finding { reason: format!("Judge `{judge}` was not asked."), ..absent(evidence.candidate) };
    };
    let (summary, confidence) = (&judgement.summary, 1.0 - evidence.risk.alpha);
    if summary.rows == 0 {
        let reason = format!("Judge `{judge}` gave no legible verdict on any of {} rows.", summary.illegible);
        return Finding { reason, ..absent(evidence.candidate) };
    }
    let bounds = unit_mean_bounds(&judgement.values, confidence, evidence.bootstrap_resamples, evidence.seed);
    let what = format!("Share of rows on which {judge} prefers it to {}", summary.against);
    let mut finding = bootstrapped(&what, &bounds, min, evidence);
    let illegible = summary.illegible as f64 / (summary.rows + summary.illegible) as f64;
    if illegible > MOST_ILLEGIBLE {
        finding.verdict = Verdict::Inconclusive;
        finding.needs = Needs::AsTold(None);
        finding.reason = format!(
            "{} But the judge gave no legible verdict on {} of rows, and beyond {} those that have one are no sample of all: \
             another judge, or simpler criteria, would decide.",
            finding.reason,
            percent(illegible),
            percent(MOST_ILLEGIBLE)
        );
    }
    // Judged rows may be fewer than the test rows.
    finding.numbers.insert("rows".to_owned(), summary.rows as f64);
    finding.numbers.insert("illegible".to_owned(), summary.illegible as f64);
    finding
}
