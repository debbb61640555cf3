//! Gates on what an artifact weighs, costs and rests on: the size of the file, the price of calls, the share of rows that people
//! reviewed. Sizes and shares are counts and leave no doubt; a cost is as sure as the times and the share served that it comes from.

use super::rules::{Finding, Needs, absent, numbers};
use super::{Evidence, Verdict};
use crate::bootstrap::mean_bounds;
use crate::cost::Cost;
use crate::metrics::Prediction;
use crate::statistics::lower_bound;
use crate::words::{money, percent, thousands};
use limbeck_artifact::dataset::Split;

/// What the candidate's calls cost, and the calls that it does not answer.
#[derive(Clone, Copy, Debug)]
pub struct Costs<'a> {
    pub own: &'a Cost,
    /// Of a call that is escalated, or why nobody knows it.
    pub frontier: Result<&'a Cost, &'a str>,
}

/// A count that meets the demand or does not.
fn settled(meets: bool, reason: String, of: Vec<(&str, f64)>) -> Finding {
    let verdict = if meets { Verdict::Pass } else { Verdict::Fail };
    let numbers = of.into_iter().map(|(name, n)| (name.to_owned(), n)).collect();
    Finding { verdict, reason, numbers, needs: Needs::AsTold(None) }
}

pub(super) fn size(max_mb: f64, evidence: &Evidence<'_>) -> Finding {
    let Some(bytes) = evidence.measured.bytes else {
        return Finding { reason: "Nobody knows how large the file is.".to_owned(), ..absent(evidence.candidate) };
    };
    let mb = bytes as f64 / 1e6;
    let reason = format!("The file has {} bytes, {mb:.1} MB, of {max_mb} MB allowed.", thousands(bytes));
    settled(mb <= max_mb, reason, vec![("mb", mb), ("mb_allowed", max_mb)])
}

pub(super) fn reviewed(of: Split, min: f64, evidence: &Evidence<'_>) -> Finding {
    let split = evidence.measured.reviewed.iter().find(|rows| rows.split == of.name()).filter(|rows| rows.rows > 0);
    let Some(rows) = split else {
        let reason = format!("The {} split has no rows.", of.name());
        return Finding { reason, ..absent(evidence.candidate) };
    };
    let share = rows.reviewed as f64 / rows.rows as f64;
    let reason = format!(
        "Of {} {} rows people reviewed {}, {}; demanded {}.",
        thousands(rows.rows),
        of.name(),
        thousands(rows.reviewed),
        percent(share),
        percent(min)
    );
    settled(share >= min, reason, vec![("reviewed", share), ("demanded", min), ("rows", rows.rows as f64)])
}

/// The candidate's own cost goes by the mean time of a call, the frontier's by the share that is escalated: each is bounded at half
/// of alpha.
pub(super) fn cost(candidate: &[Prediction], max: f64, evidence: &Evidence<'_>) -> Finding {
    let Some(Costs { own, frontier }) = evidence.measured.costs else {
        return Finding { reason: "What a call costs is not known.".to_owned(), ..absent(evidence.candidate) };
    };
    let times: Vec<f64> = candidate.iter().filter_map(|p| p.latency_ms).collect();
    if times.len() < 2 {
        return Finding { reason: "No calls of the candidate were timed.".to_owned(), ..absent(evidence.candidate) };
    }
    let (half, confidence) = (1.0 - evidence.risk.alpha / 2.0, 1.0 - evidence.risk.alpha);
    let time = mean_bounds(&times, half, evidence.bootstrap_resamples, evidence.seed);
    let per_ms = own.per_1k_calls / time.estimate.max(f64::MIN_POSITIVE);
    let served = evidence.routing.map(|routing| (routing.served.served, routing.served.rows));
    let (escalated, with) = match (served, frontier) {
        (Some((served, rows)), Ok(frontier)) => {
            let rate = |share: f64| (1.0 - share) * frontier.per_1k_calls;
            let (least, most) = (lower_bound(served, rows, half), 1.0 - lower_bound(rows - served, rows, half));
            let seen = served as f64 / rows.max(1) as f64;
            ((rate(most), rate(seen), rate(least)), ", escalated ones paid twice")
        }
        (Some((served, rows)), Err(why)) if served < rows => {
            let share = percent((rows - served) as f64 / rows as f64);
            let reason = format!("{share} of the calls are escalated, and nobody knows what these cost: {why}.");
            return Finding { reason, ..absent(evidence.candidate) };
        }
        _ => ((0.0, 0.0, 0.0), ", those that are escalated left out"),
    };
    let (low, seen, high) =
        (per_ms * time.lower.max(0.0) + escalated.0, own.per_1k_calls + escalated.1, per_ms * time.upper + escalated.2);
    let verdict = match (high <= max, low > max) {
        (true, _) => Verdict::Pass,
        (_, true) => Verdict::Fail,
        _ => Verdict::Inconclusive,
    };
    let bound = match verdict {
        Verdict::Fail => format!("at least {}", money(low, &own.currency)),
        _ => format!("at most {}", money(high, &own.currency)),
    };
    // All of the width comes from counts and means, which narrow with the root of their rows.
    let apart = if seen < max { high - seen } else { seen - low };
    let needed = (evidence.gold.len() as f64 * (apart / (max - seen)).powi(2)).ceil();
    let needed = (needed.is_finite() && needed <= crate::statistics::MAX_EXAMPLES as f64).then_some(needed as u64);
    Finding {
        verdict,
        reason: format!(
            "1,000 calls cost {}{with}; with {} confidence {bound}, allowed {}.",
            money(seen, &own.currency),
            percent(confidence),
            money(max, &own.currency),
        ),
        numbers: numbers([
            ("per_1k_calls", seen),
            ("per_1k_calls_lower", low),
            ("per_1k_calls_upper", high),
            ("per_1k_calls_allowed", max),
        ]),
        needs: Needs::TestRows(needed.map(|needed| needed.max(evidence.gold.len() as u64 + 1))),
    }
}
