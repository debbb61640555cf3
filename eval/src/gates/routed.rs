//! Gates on how the candidate's calls are routed: what a certificate serves, and where the rest goes.

use super::rules::{Finding, Needs, absent, numbers, proportion};
use super::{Evidence, Verdict};

/// Where something is certified the rest is a proportion; where nothing is, the certificate says what would change it.
pub(super) fn certified_coverage(min: f64, evidence: &Evidence<'_>) -> Finding {
    let Some((routing, certificate)) = evidence.routing.and_then(|r| Some((r, r.certificate.as_ref()?))) else {
        let reason = "No certificate was asked for, or the candidate gives no scores: set eval.escalation.max_error.";
        return Finding { reason: reason.to_owned(), verdict: Verdict::Fail, ..absent(evidence.candidate) };
    };
    if certificate.threshold.is_some() {
        let served = &routing.served;
        let mut finding = proportion("Share of calls served", served.served, served.rows, min, evidence);
        finding.reason = format!("{} {}", certificate.words(), finding.reason);
        return finding;
    }
    Finding {
        verdict: if certificate.rows_needed.is_some() { Verdict::Inconclusive } else { Verdict::Fail },
        reason: certificate.words(),
        numbers: numbers([
            ("demanded", min),
            ("max_error", certificate.target.max_error),
            ("calibration_rows", certificate.calibration_rows as f64),
        ]),
        needs: Needs::AsTold(certificate.rows_needed),
    }
}

pub(super) fn fallback(evidence: &Evidence<'_>) -> Finding {
    let named = evidence.fallback.join(", then ");
    Finding {
        verdict: if evidence.fallback.is_empty() { Verdict::Fail } else { Verdict::Pass },
        reason: match evidence.fallback {
            [] => "The policy names no fallback, so an escalated call has nowhere to go: name one in eval.escalation.fallback.".to_owned(),
            _ => format!("Escalated calls go to {named}."),
        },
        numbers: numbers([("named", evidence.fallback.len() as f64)]),
        needs: Needs::AsTold(None),
    }
}
