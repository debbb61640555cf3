//! How steady a gate's verdict is: decided again and again on the same answers with the rows drawn anew (A/A). A gate whose
//! repeats disagree stands near its demand, and its verdict is as much the draw's as the candidate's. Whole groups are drawn,
//! since rows of one customer come together.

use super::{Evidence, Gate, Rule, Verdict, decide};
use crate::metrics::Prediction;
use limbeck_artifact::random::{SplitMix64, mix};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Repeats that a report is made with.
pub const REPEATS: u32 = 200;

/// Verdicts of a gate on rows drawn anew.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stability {
    pub repeats: u32,
    pub passes: f64,
    pub inconclusive: f64,
    pub fails: f64,
    /// Share of the repeats that say what the rows themselves say.
    pub same: f64,
    /// Chance that two repeats disagree.
    pub flip: f64,
}

/// Decides `gate` on `repeats` draws of the rows' `groups`. None for what does not depend on the test rows' draw alone (a
/// certificate, a fallback, a load test, a judge, what was planted, a cost, a size, a review), for slices, which a draw would cut
/// anew, and for a calibration error, which grows by the noise of a draw: rows drawn anew have that of the first draw in them, and
/// fail where fresh rows would not.
pub fn stability(
    gate: &Gate,
    verdict: Verdict,
    evidence: &Evidence<'_>,
    groups: &[&str],
    repeats: u32,
) -> Option<Stability> {
    if matches!(
        gate.rule,
        Rule::CertifiedCoverage { .. }
            | Rule::Fallback {}
            | Rule::SliceFloor { .. }
            | Rule::LatencyUnderLoad { .. }
            | Rule::Judge { .. }
            | Rule::Cost { .. }
            | Rule::Size { .. }
            | Rule::Reviewed { .. }
            | Rule::Calibration { .. }
    ) || gate.rule.canary().is_some()
        || evidence.gold.is_empty()
    {
        return None;
    }
    let mut rows_of = BTreeMap::<&str, Vec<usize>>::new();
    for (row, group) in groups.iter().enumerate() {
        rows_of.entry(group).or_default().push(row);
    }
    let groups: Vec<Vec<usize>> = rows_of.into_values().collect();
    let asked: Vec<&str> = std::iter::once(evidence.candidate).chain(gate.rule.other_arm()).collect();
    let looks_at_posteriors = matches!(gate.rule, Rule::Quantization { max_kl: Some(_), .. });
    // What no verdict looks at is left behind: a row is then copied without allocating.
    let light = |p: &Prediction| Prediction {
        row: String::new(),
        label: p.label,
        posterior: p.posterior.clone().filter(|_| looks_at_posteriors),
        latency_ms: p.latency_ms,
        said: None,
        tokens: None,
    };
    let arms: BTreeMap<&str, Vec<Prediction>> = evidence
        .arms
        .iter()
        .filter(|(name, _)| asked.contains(name))
        .map(|(name, rows)| (*name, rows.iter().map(light).collect()))
        .collect();

    let again = |repeat: u32| {
        let mut rng = SplitMix64::new(mix(evidence.seed ^ (u64::from(repeat) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let drawn: Vec<usize> =
            (0..groups.len()).flat_map(|_| groups[rng.below(groups.len())].iter().copied()).collect();
        let gold: Vec<usize> = drawn.iter().map(|row| evidence.gold[*row]).collect();
        let picked: BTreeMap<&str, Vec<Prediction>> =
            arms.iter().map(|(name, rows)| (*name, drawn.iter().map(|row| rows[*row].clone()).collect())).collect();
        let evidence = Evidence {
            gold: &gold,
            arms: picked.iter().map(|(name, rows)| (*name, rows.as_slice())).collect(),
            bootstrap_resamples: evidence.bootstrap_resamples.min(200),
            ..*evidence
        };
        decide(gate, &evidence).verdict
    };
    let verdicts: Vec<Verdict> = (0..repeats).into_par_iter().map(again).collect();
    let share = |of: Verdict| verdicts.iter().filter(|v| **v == of).count() as f64 / f64::from(repeats.max(1));
    let (passes, inconclusive, fails) = (share(Verdict::Pass), share(Verdict::Inconclusive), share(Verdict::Fail));
    Some(Stability {
        repeats,
        passes,
        inconclusive,
        fails,
        same: share(verdict),
        flip: 1.0 - passes * passes - inconclusive * inconclusive - fails * fails,
    })
}
