//! The gate on what callers wait under load.

use super::rules::{Finding, Needs, absent, judge, numbers};
use super::{Evidence, Verdict};
use crate::load::bounds_of_share;
use crate::statistics::examples_for_proportion;
use crate::words::{milliseconds, percent, significant, thousands};

/// The share of calls that must be in time for the 95th percentile to be.
const IN_TIME: f64 = 0.95;

pub(super) fn under_load(limit_ms: f64, evidence: &Evidence<'_>) -> Finding {
    let Some(test) = evidence.measured.load else {
        let reason = "The candidate was not tested under load: set eval.load.rate.".to_owned();
        return Finding { reason, numbers: numbers([("calls", 0.0)]), ..absent(evidence.candidate) };
    };
    let (n, confidence) = (test.calls.len() as u64, 1.0 - evidence.risk.alpha);
    let (hits, worth) = test.within(limit_ms);
    let bounds = bounds_of_share(hits, n, worth, confidence);
    let (low, high) = (bounds.low, bounds.high);
    let verdict = judge(low, high, IN_TIME);
    let bound = match verdict {
        Verdict::Fail => format!("at most {}", percent(high)),
        _ => format!("at least {}", percent(low)),
    };
    let observed = hits as f64 / n.max(1) as f64;
    let p95 = test.summary.latency.as_ref().map(|times| times.p95.ms);
    let seen = p95.map_or("No call was answered. ".to_owned(), |ms| format!("p95 is {}. ", milliseconds(ms)));
    let coming = match test.summary.rate {
        Some(rate) => format!("At {} calls a second", significant(rate)),
        None => "With callers that all ask at once".to_owned(),
    };
    // As many calls more as so many independent ones are worth, under the same load.
    let needed = examples_for_proportion(hits, n, IN_TIME, evidence.risk)
        .map(|needed| (needed as f64 * n.max(1) as f64 / worth.max(1.0)).ceil() as u64)
        .filter(|_| verdict == Verdict::Inconclusive);
    let more = match (verdict, needed) {
        (Verdict::Inconclusive, Some(needed)) => {
            format!(
                " Not enough evidence: about {} calls (eval.load.calls) would decide, if this share holds.",
                thousands(needed)
            )
        }
        (Verdict::Inconclusive, None) => {
            " Not enough evidence, and no feasible number of calls would decide.".to_owned()
        }
        _ => String::new(),
    };
    Finding {
        verdict,
        reason: format!(
            "{seen}{coming} the share of calls in time is {} ({} of {}, worth {} independent ones); with {} confidence {bound}, \
             demanded 95 %.{more}",
            percent(observed),
            thousands(hits),
            thousands(n),
            thousands(worth.round() as u64),
            percent(confidence),
        ),
        numbers: numbers([
            ("observed", observed),
            ("lower", low),
            ("upper", high),
            ("demanded", IN_TIME),
            ("calls", n as f64),
            ("independent_calls", worth),
            ("p95_ms", p95.unwrap_or(f64::NAN)),
            ("limit_ms", limit_ms),
        ]),
        needs: Needs::AsTold(None),
    }
}
