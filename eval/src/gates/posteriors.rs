//! How far the candidate's posteriors are from another arm's: what a change of weights does before it changes an answer.

use super::rules::{Finding, Needs, absent, numbers};
use super::{Evidence, Verdict};
use crate::bootstrap::mean_bounds;
use crate::metrics::Prediction;
use crate::statistics::examples_for_spread;
use crate::words::{percent, thousands};

/// KL divergence of `rival`'s posterior from the candidate's in nats, of each row where both have one.
pub(super) fn divergences(candidate: &[Prediction], rival: &[Prediction]) -> Vec<f64> {
    let of_row = |(q, p): (&Prediction, &Prediction)| {
        let (p, q) = (p.posterior.as_ref()?, q.posterior.as_ref()?);
        let ln = |x: f32| f64::from(x).max(1e-12).ln();
        Some(p.iter().zip(q).map(|(&p, &q)| f64::from(p) * (ln(p) - ln(q))).sum::<f64>().max(0.0))
    };
    candidate.iter().zip(rival).filter_map(of_row).collect()
}

/// Whether the mean divergence is at most `max`: pass when its upper bound is, fail when its lower bound is not.
pub(super) fn mean_divergence(
    candidate: &[Prediction],
    rival: &[Prediction],
    name: &str,
    max: f64,
    evidence: &Evidence<'_>,
) -> Finding {
    let divergences = divergences(candidate, rival);
    if divergences.len() < 2 || divergences.len() < candidate.len() {
        let reason = format!("Not every row has a posterior of both arms, so nothing is known of KL from {name}.");
        return Finding { reason, ..absent(name) };
    }
    let confidence = 1.0 - evidence.risk.alpha;
    let bounds = mean_bounds(&divergences, confidence, evidence.bootstrap_resamples, evidence.seed);
    let verdict = match (bounds.upper <= max, bounds.lower > max) {
        (true, _) => Verdict::Pass,
        (_, true) => Verdict::Fail,
        _ => Verdict::Inconclusive,
    };
    let bound = match verdict {
        Verdict::Fail => format!("at least {:.4}", bounds.lower),
        _ => format!("at most {:.4}", bounds.upper),
    };
    let n = divergences.len() as u64;
    Finding {
        verdict,
        reason: format!(
            "Mean KL divergence from {name} is {:.4} nats; with {} confidence {bound} (bootstrap, {} resamples), allowed {max}.",
            bounds.estimate,
            percent(confidence),
            thousands(u64::from(bounds.resamples)),
        ),
        numbers: numbers([
            ("mean_kl_nats", bounds.estimate),
            ("mean_kl_lower", bounds.lower),
            ("mean_kl_upper", bounds.upper),
            ("mean_kl_allowed", max),
            ("mean_kl_standard_error", bounds.standard_error),
        ]),
        needs: Needs::TestRows(examples_for_spread(bounds.standard_error, n, max - bounds.estimate, evidence.risk)),
    }
}
