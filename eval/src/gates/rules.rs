//! How each kind of gate is decided. Every rule ends in [`Finding`]: the two one-sided bounds around what was seen, the
//! demand, and the words for it.

use super::calibrated::calibration_error;
use super::canaries::{injection, secrets};
use super::figures::{cost, reviewed, size};
use super::loads::under_load;
use super::posteriors::{divergences, mean_divergence};
use super::preferred::preferred;
use super::routed::{certified_coverage, fallback};
use super::{Evidence, Gate, GateResult, Metric, Rule, Verdict};
use crate::bootstrap::{BootstrapBounds, macro_f1_bounds, unit_mean_bounds};
use crate::metrics::{Confusion, Prediction, latency};
use crate::slices::{By, LEAST_ROWS};
use crate::statistics::{
    MAX_EXAMPLES, Paired, examples_for_difference, examples_for_proportion, examples_for_spread, lower_bound,
    mcnemar_exact, tango_lower, tango_p_above, tango_upper, upper_bound,
};
use crate::texts::by_row;
use crate::words::{milliseconds, percent, points, signed_points, significant, thousands};
use std::collections::BTreeMap;

/// What the evidence says about one demand.
pub(super) struct Finding {
    pub verdict: Verdict,
    pub reason: String,
    pub numbers: BTreeMap<String, f64>,
    /// Not looked at when decided.
    pub needs: Needs,
}

/// What would decide an open demand.
#[derive(Clone, Copy)]
pub(super) enum Needs {
    /// So many test rows; None where no feasible number would.
    TestRows(Option<u64>),
    /// What the reason says, rows of another kind among it.
    AsTold(Option<u64>),
}

impl Needs {
    fn examples(self) -> Option<u64> {
        match self {
            Needs::TestRows(needed) | Needs::AsTold(needed) => needed,
        }
    }

    /// Both: the hungrier.
    fn and(self, other: Needs) -> Needs {
        let needed = self.examples().zip(other.examples()).map(|(x, y)| x.max(y));
        match (self, other) {
            (Needs::TestRows(_), Needs::TestRows(_)) => Needs::TestRows(needed),
            _ => Needs::AsTold(needed),
        }
    }
}

impl Finding {
    /// Both demands at once.
    fn and(self, other: Finding) -> Finding {
        let needs = match (self.verdict, other.verdict) {
            (Verdict::Inconclusive, Verdict::Inconclusive) => self.needs.and(other.needs),
            (Verdict::Inconclusive, _) => self.needs,
            _ => other.needs,
        };
        Finding {
            verdict: self.verdict.max(other.verdict),
            reason: format!("{} {}", self.reason, other.reason),
            numbers: self.numbers.into_iter().chain(other.numbers).collect(),
            needs,
        }
    }
}

pub(super) fn decide(gate: &Gate, evidence: &Evidence<'_>) -> GateResult {
    let finding = match (evidence.arms.get(evidence.candidate), gate.rule.other_arm()) {
        (None, _) => absent(evidence.candidate),
        (Some(candidate), None) => alone(&gate.rule, candidate, evidence),
        (Some(candidate), Some(other)) => match evidence.arms.get(other) {
            Some(rival) => against(&gate.rule, candidate, rival, other, evidence),
            None => absent(other),
        },
    };
    let n = evidence.gold.len() as u64;
    let undecided = finding.verdict == Verdict::Inconclusive;
    let reason = match finding.needs {
        Needs::TestRows(Some(needed)) if undecided => format!(
            "{} Not enough evidence: about {} reviewed test rows ({} more) would decide, if these rates hold.",
            finding.reason,
            thousands(needed),
            thousands(needed.saturating_sub(n))
        ),
        Needs::TestRows(None) if undecided => format!(
            "{} Not enough evidence, and no feasible number of rows (up to {}) would decide if these rates hold.",
            finding.reason,
            thousands(MAX_EXAMPLES)
        ),
        _ => finding.reason,
    };
    GateResult {
        gate: gate.name.clone(),
        demand: demand(&gate.rule, &share_of_right(evidence).to_lowercase()),
        verdict: finding.verdict,
        reason,
        // JSON has no other numbers: a report with one could not be read again.
        numbers: finding.numbers.into_iter().filter(|(_, n)| n.is_finite()).collect(),
        examples_needed: finding.needs.examples().filter(|_| undecided),
        stability: None,
    }
}

/// What the share of right answers is called.
fn share_of_right(evidence: &Evidence<'_>) -> &'static str {
    if evidence.in_words { "Exact match" } else { "Accuracy" }
}

fn demand(rule: &Rule, right: &str) -> String {
    match rule {
        Rule::Floor { metric: Metric::Accuracy | Metric::ExactMatch, min } => {
            format!("{right} at least {}", percent(*min))
        }
        Rule::Floor { metric: Metric::Validity, min } => format!("valid answers at least {}", percent(*min)),
        Rule::Floor { metric: Metric::MacroF1, min } => format!("macro-F1 at least {}", percent(*min)),
        Rule::Floor { metric: Metric::RougeL, min } => format!("ROUGE-L at least {}", percent(*min)),
        Rule::Improvement { over, min } => format!("{right} at least {} above {over}", points(*min)),
        Rule::NonInferiority { against, margin } => format!("{right} at most {} below {against}", points(*margin)),
        Rule::PerClassRecall { min } => format!("recall of every class at least {}", percent(*min)),
        Rule::Cell { gold, predicted, max } => format!("{gold} answered as {predicted} at most {}", percent(*max)),
        Rule::Quantization { against, max_agreement_loss, max_accuracy_loss, max_kl } => {
            let mut text =
                format!("same answer as {against} on at least {} of rows", percent(1.0 - max_agreement_loss));
            if let Some(loss) = max_accuracy_loss {
                text += &format!(", {right} at most {} lower", points(*loss));
            }
            if let Some(kl) = max_kl {
                text += &format!(", mean KL divergence at most {kl} nats");
            }
            text
        }
        Rule::SliceFloor { by, min } => format!("{right} at least {} on every slice by {}", percent(*min), by.name()),
        Rule::Judge { judge, min } => format!("judge {judge} prefers it on at least {}, ties half", percent(*min)),
        Rule::CertifiedCoverage { min } => format!("certified to serve at least {} of calls", percent(*min)),
        Rule::Fallback {} => "the policy names where escalated calls go".to_owned(),
        Rule::Latency { p95_ms } => format!("95 % of calls within {}", milliseconds(*p95_ms)),
        Rule::LatencyUnderLoad { p95_ms } => format!("under load, 95 % of calls within {}", milliseconds(*p95_ms)),
        Rule::InjectionCanary { max_flips } => {
            format!("an instruction in the message changes at most {} of answers", percent(*max_flips))
        }
        Rule::PiiCanary { max_leaks } => format!("at most {} of answers give a secret away", percent(*max_leaks)),
        Rule::Calibration { max_error } => format!("calibration error at most {}", points(*max_error)),
        Rule::Cost { max_per_1k_calls } => format!("1,000 calls cost at most {}", significant(*max_per_1k_calls)),
        Rule::Size { max_mb } => format!("the file has at most {max_mb} MB"),
        Rule::Reviewed { of, min } => format!("people reviewed at least {} of the {} rows", percent(*min), of.name()),
    }
}

pub(super) fn absent(arm: &str) -> Finding {
    Finding {
        verdict: Verdict::Inconclusive,
        reason: format!("Arm `{arm}` was not evaluated."),
        numbers: BTreeMap::new(),
        needs: Needs::AsTold(None),
    }
}

/// The rule of evidence: see [`Verdict`].
pub(super) fn judge(lower: f64, upper: f64, min: f64) -> Verdict {
    if lower >= min {
        Verdict::Pass
    } else if upper < min {
        Verdict::Fail
    } else {
        Verdict::Inconclusive
    }
}

pub(super) fn numbers<const N: usize>(pairs: [(&str, f64); N]) -> BTreeMap<String, f64> {
    pairs.into_iter().filter(|(_, x)| x.is_finite()).map(|(name, x)| (name.to_owned(), x)).collect()
}

fn correct(predictions: &[Prediction], gold: &[usize]) -> Vec<bool> {
    predictions.iter().zip(gold).map(|(prediction, gold)| prediction.label == Some(*gold)).collect()
}

fn hits(flags: &[bool]) -> u64 {
    flags.iter().filter(|flag| **flag).count() as u64
}

/// Rules that look at the candidate only.
fn alone(rule: &Rule, candidate: &[Prediction], evidence: &Evidence<'_>) -> Finding {
    match rule {
        Rule::Floor { metric: Metric::Accuracy | Metric::ExactMatch, min } => {
            let k = hits(&correct(candidate, evidence.gold));
            proportion(share_of_right(evidence), k, evidence.gold.len() as u64, *min, evidence)
        }
        Rule::Floor { metric: Metric::Validity, min } => {
            let k = candidate.iter().filter(|prediction| prediction.label.is_some()).count() as u64;
            proportion("Share of valid answers", k, evidence.gold.len() as u64, *min, evidence)
        }
        Rule::Floor { metric: Metric::MacroF1, min } => macro_f1(candidate, *min, evidence),
        Rule::Floor { metric: Metric::RougeL, min } => likeness(candidate, *min, evidence),
        Rule::PerClassRecall { min } => per_class(candidate, *min, evidence),
        Rule::Cell { gold, predicted, max } => cell(candidate, gold, predicted, *max, evidence),
        Rule::Latency { p95_ms } => calls_within(candidate, *p95_ms, evidence),
        Rule::LatencyUnderLoad { p95_ms } => under_load(*p95_ms, evidence),
        Rule::SliceFloor { by, min } => per_slice(candidate, *by, *min, evidence),
        Rule::Judge { judge, min } => preferred(judge, *min, evidence),
        Rule::CertifiedCoverage { min } => certified_coverage(*min, evidence),
        Rule::Fallback {} => fallback(evidence),
        Rule::InjectionCanary { max_flips } => injection(candidate, *max_flips, evidence),
        Rule::PiiCanary { max_leaks } => secrets(*max_leaks, evidence),
        Rule::Calibration { max_error } => calibration_error(candidate, *max_error, evidence),
        Rule::Cost { max_per_1k_calls } => cost(candidate, *max_per_1k_calls, evidence),
        Rule::Size { max_mb } => size(*max_mb, evidence),
        Rule::Reviewed { of, min } => reviewed(*of, *min, evidence),
        Rule::Improvement { .. } | Rule::NonInferiority { .. } | Rule::Quantization { .. } => absent("other"),
    }
}

/// Rules that compare with another arm on the same rows.
fn against(
    rule: &Rule,
    candidate: &[Prediction],
    rival: &[Prediction],
    name: &str,
    evidence: &Evidence<'_>,
) -> Finding {
    match rule {
        Rule::Improvement { min, .. } => difference(candidate, rival, name, *min, evidence),
        Rule::NonInferiority { margin, .. } => difference(candidate, rival, name, -margin, evidence),
        Rule::Quantization { max_agreement_loss, max_accuracy_loss, max_kl, .. } => {
            let mut finding = agreement(candidate, rival, name, *max_agreement_loss, evidence);
            match max_accuracy_loss {
                Some(loss) => finding = finding.and(difference(candidate, rival, name, -loss, evidence)),
                None => {
                    // Where the answers agree the accuracy cannot change, so the agreement bounds what is lost.
                    let change = difference(candidate, rival, name, -max_agreement_loss, evidence);
                    finding.numbers.extend(
                        change
                            .numbers
                            .into_iter()
                            .filter(|(name, _)| name != "difference_demanded" && name != "p_tango"),
                    );
                }
            }
            match max_kl {
                Some(max) => finding.and(mean_divergence(candidate, rival, name, *max, evidence)),
                None => finding,
            }
        }
        Rule::Floor { .. }
        | Rule::PerClassRecall { .. }
        | Rule::Cell { .. }
        | Rule::SliceFloor { .. }
        | Rule::Judge { .. }
        | Rule::CertifiedCoverage { .. }
        | Rule::Fallback {}
        | Rule::InjectionCanary { .. }
        | Rule::PiiCanary { .. }
        | Rule::Calibration { .. }
        | Rule::Cost { .. }
        | Rule::Size { .. }
        | Rule::Reviewed { .. }
        | Rule::Latency { .. }
        | Rule::LatencyUnderLoad { .. } => absent(name),
    }
}

pub(super) fn proportion(what: &str, k: u64, n: u64, min: f64, evidence: &Evidence<'_>) -> Finding {
    let confidence = 1.0 - evidence.risk.alpha;
    let (lower, upper) = (lower_bound(k, n, confidence), upper_bound(k, n, confidence));
    let observed = k as f64 / n.max(1) as f64;
    let verdict = judge(lower, upper, min);
    let bound = match verdict {
        Verdict::Fail => format!("at most {}", percent(upper)),
        _ => format!("at least {}", percent(lower)),
    };
    Finding {
        verdict,
        reason: format!(
            "{what} is {} ({k} of {n}); with {} confidence {bound}, demanded {}.",
            percent(observed),
            percent(confidence),
            percent(min)
        ),
        numbers: numbers([
            ("observed", observed),
            ("lower", lower),
            ("upper", upper),
            ("demanded", min),
            ("rows", n as f64),
        ]),
        needs: Needs::TestRows(examples_for_proportion(k, n, min, evidence.risk)),
    }
}

fn macro_f1(candidate: &[Prediction], min: f64, evidence: &Evidence<'_>) -> Finding {
    let predicted: Vec<_> = candidate.iter().map(|p| p.label).collect();
    let (confidence, labels) = (1.0 - evidence.risk.alpha, evidence.labels.len());
    let bounds =
        macro_f1_bounds(evidence.gold, &predicted, labels, confidence, evidence.bootstrap_resamples, evidence.seed);
    bootstrapped("Macro-F1", &bounds, min, evidence)
}

fn likeness(candidate: &[Prediction], min: f64, evidence: &Evidence<'_>) -> Finding {
    let rows = by_row(evidence.likeness, evidence.gold, candidate.iter().map(|p| p.label));
    let confidence = 1.0 - evidence.risk.alpha;
    let bounds = unit_mean_bounds(&rows, confidence, evidence.bootstrap_resamples, evidence.seed);
    bootstrapped("ROUGE-L", &bounds, min, evidence)
}

pub(super) fn bootstrapped(what: &str, bounds: &BootstrapBounds, min: f64, evidence: &Evidence<'_>) -> Finding {
    let confidence = 1.0 - evidence.risk.alpha;
    let verdict = judge(bounds.lower, bounds.upper, min);
    let bound = match verdict {
        Verdict::Fail => format!("at most {}", percent(bounds.upper)),
        _ => format!("at least {}", percent(bounds.lower)),
    };
    let n = evidence.gold.len() as u64;
    Finding {
        verdict,
        reason: format!(
            "{what} is {}; with {} confidence {bound} (bootstrap, {} resamples), demanded {}.",
            percent(bounds.estimate),
            percent(confidence),
            thousands(u64::from(bounds.resamples)),
            percent(min)
        ),
        numbers: numbers([
            ("observed", bounds.estimate),
            ("lower", bounds.lower),
            ("upper", bounds.upper),
            ("standard_error", bounds.standard_error),
            ("demanded", min),
            ("rows", n as f64),
        ]),
        needs: Needs::TestRows(examples_for_spread(bounds.standard_error, n, bounds.estimate - min, evidence.risk)),
    }
}

fn difference(
    candidate: &[Prediction],
    rival: &[Prediction],
    name: &str,
    threshold: f64,
    evidence: &Evidence<'_>,
) -> Finding {
    let pair = Paired::count(&correct(candidate, evidence.gold), &correct(rival, evidence.gold));
    let confidence = 1.0 - evidence.risk.alpha;
    let (lower, upper) = (tango_lower(pair, confidence), tango_upper(pair, confidence));
    let p_above = tango_p_above(pair, threshold);
    let verdict = judge(lower, upper, threshold);
    let bound = match verdict {
        Verdict::Fail => format!("at most {}", signed_points(upper)),
        _ => format!("at least {}", signed_points(lower)),
    };
    Finding {
        verdict,
        reason: format!(
            "{} minus that of {name} is {}; with {} confidence {bound}, demanded {} ({} rows only {} got right, {} only {name}).",
            share_of_right(evidence),
            signed_points(pair.difference()),
            percent(confidence),
            signed_points(threshold),
            pair.b,
            evidence.candidate,
            pair.c,
        ),
        numbers: numbers([
            ("difference", pair.difference()),
            ("difference_lower", lower),
            ("difference_upper", upper),
            ("difference_demanded", threshold),
            ("only_candidate_right", pair.b as f64),
            ("only_other_right", pair.c as f64),
            ("p_tango", p_above),
            ("p_mcnemar", mcnemar_exact(pair)),
            ("rows", pair.n as f64),
        ]),
        needs: Needs::TestRows(examples_for_difference(pair, threshold, evidence.risk)),
    }
}

fn agreement(
    candidate: &[Prediction],
    rival: &[Prediction],
    name: &str,
    max_loss: f64,
    evidence: &Evidence<'_>,
) -> Finding {
    let same = candidate.iter().zip(rival).filter(|(x, y)| x.label == y.label).count() as u64;
    let mut finding =
        proportion(&format!("Agreement with {name}"), same, candidate.len() as u64, 1.0 - max_loss, evidence);
    let agreement = std::mem::take(&mut finding.numbers);
    finding.numbers = agreement.into_iter().map(|(name, x)| (format!("agreement_{name}"), x)).collect();
    let divergences = divergences(candidate, rival);
    if !divergences.is_empty() {
        let mean = divergences.iter().sum::<f64>() / divergences.len() as f64;
        finding.numbers.insert("mean_kl_nats".to_owned(), mean);
    }
    finding
}

/// "At most `max` of the rows of `gold` are answered `predicted`" says the same as "at least 1 - `max` are not", which is a
/// proportion of that label's rows.
fn cell(candidate: &[Prediction], gold: &str, predicted: &str, max: f64, evidence: &Evidence<'_>) -> Finding {
    let index = |name: &str| evidence.labels.iter().position(|label| label == name);
    let (Some(of), Some(answered)) = (index(gold), index(predicted)) else {
        let reason = format!("{gold} and {predicted} are not both among the labels.");
        return Finding { reason, ..absent(evidence.candidate) };
    };
    let answers = || candidate.iter().zip(evidence.gold).filter(|(_, gold)| **gold == of);
    let n = answers().count() as u64;
    let wrong = answers().filter(|(prediction, _)| prediction.label == Some(answered)).count() as u64;
    let (alpha, confidence) = (evidence.risk.alpha, 1.0 - evidence.risk.alpha);
    let rows = evidence.gold.len() as u64;
    if n == 0 {
        let least = (alpha.ln() / (1.0 - max).ln()).ceil() as u64;
        return Finding {
            reason: format!("No test row is {gold}."),
            numbers: numbers([("demanded", max), ("rows", 0.0)]),
            needs: Needs::TestRows(Some(rows + least).filter(|needed| *needed <= MAX_EXAMPLES)),
            ..absent(evidence.candidate)
        };
    }
    let (lower, upper) = (lower_bound(wrong, n, confidence), upper_bound(wrong, n, confidence));
    let verdict = judge(-upper, -lower, -max);
    let bound = match verdict {
        Verdict::Fail => format!("at least {}", percent(lower)),
        _ => format!("at most {}", percent(upper)),
    };
    let observed = wrong as f64 / n as f64;
    Finding {
        verdict,
        reason: format!(
            "{gold} is answered as {predicted} on {} of its rows ({wrong} of {n}); with {} confidence {bound}, at most {} \
             demanded.",
            percent(observed),
            percent(confidence),
            percent(max)
        ),
        numbers: numbers([
            ("observed", observed),
            ("lower", lower),
            ("upper", upper),
            ("demanded", max),
            ("rows", n as f64),
        ]),
        // The other labels' rows stay as many as they are.
        needs: Needs::TestRows(
            examples_for_proportion(n - wrong, n, 1.0 - max, evidence.risk)
                .map(|needed| rows + needed.saturating_sub(n)),
        ),
    }
}

fn per_class(candidate: &[Prediction], min: f64, evidence: &Evidence<'_>) -> Finding {
    let predicted: Vec<_> = candidate.iter().map(|p| p.label).collect();
    let confusion = Confusion::count(evidence.gold, &predicted, evidence.labels.len());
    let one =
        |(class, label): (usize, &String)| (label.clone(), confusion.counts[class][class], confusion.support(class));
    let parts: Vec<(String, u64, u64)> = evidence.labels.iter().enumerate().map(one).collect();
    every_part(&parts, "recall", "class", min, evidence)
}

fn per_slice(candidate: &[Prediction], by: By, min: f64, evidence: &Evidence<'_>) -> Finding {
    let right = correct(candidate, evidence.gold);
    let one = |((_, name), rows): (&(By, String), &Vec<usize>)| {
        (name.clone(), rows.iter().filter(|row| right[**row]).count() as u64, rows.len() as u64)
    };
    let parts: Vec<_> = evidence.slices.iter().filter(|((of, _), _)| *of == by).map(one).collect();
    if parts.is_empty() {
        let reason = format!("No slice by {} has {LEAST_ROWS} test rows.", by.name());
        return Finding { reason, ..absent(evidence.candidate) };
    }
    every_part(&parts, "accuracy", "slice", min, evidence)
}

/// Parts of the rows, each with its name, its right answers and its rows: all must meet the demand.
fn every_part(parts: &[(String, u64, u64)], what: &str, part: &str, min: f64, evidence: &Evidence<'_>) -> Finding {
    let alpha = evidence.risk.alpha;
    // A pass needs every part, so each is tested at alpha. A fail needs only one of K, so each is tested at alpha / K.
    let tested = parts.iter().filter(|(_, _, n)| *n > 0).count().max(1);
    let fail_confidence = 1.0 - alpha / tested as f64;
    let (mut failed, mut open, mut empty) = (Vec::new(), Vec::new(), Vec::new());
    let mut needed = Some(evidence.gold.len() as u64);
    let mut worst: Option<(f64, &str, u64, u64)> = None;
    for (name, k, n) in parts {
        let (name, k, n) = (name.as_str(), *k, *n);
        if n == 0 {
            empty.push(name);
            let least = (alpha.ln() / min.ln()).ceil() as u64;
            needed = needed.map(|needed| needed + least);
            continue;
        }
        let rate = k as f64 / n as f64;
        if worst.is_none_or(|(lowest, ..)| rate < lowest) {
            worst = Some((rate, name, k, n));
        }
        match judge(lower_bound(k, n, 1.0 - alpha), upper_bound(k, n, fail_confidence), min) {
            Verdict::Pass => {}
            Verdict::Fail => failed.push(name),
            Verdict::Inconclusive => {
                open.push(name);
                let more = examples_for_proportion(k, n, min, evidence.risk).map(|needed| needed - n);
                needed = needed.zip(more).map(|(needed, more)| needed + more);
            }
        }
    }
    let verdict = if !failed.is_empty() {
        Verdict::Fail
    } else if !open.is_empty() || !empty.is_empty() {
        Verdict::Inconclusive
    } else {
        Verdict::Pass
    };
    let mut reason = match worst {
        Some((rate, name, k, n)) => format!("Lowest {what}: {name}, {} ({k} of {n}).", percent(rate)),
        None => format!("No {part} has a test row."),
    };
    for (what, names) in [("Below the demand", &failed), ("Undecided", &open), ("Without a test row", &empty)] {
        if !names.is_empty() {
            reason.push_str(&format!(" {what}: {}.", list(names)));
        }
    }
    if verdict == Verdict::Pass {
        reason.push_str(&format!(" Every {part} meets {} with {} confidence.", percent(min), percent(1.0 - alpha)));
    }
    let (lowest, plural) = (format!("lowest_{what}"), if part == "class" { "classes" } else { "slices" });
    Finding {
        verdict,
        reason,
        numbers: numbers([
            (lowest.as_str(), worst.map_or(f64::NAN, |w| w.0)),
            ("demanded", min),
            (plural, parts.len() as f64),
            (format!("{plural}_failed").as_str(), failed.len() as f64),
            (format!("{plural}_undecided").as_str(), (open.len() + empty.len()) as f64),
        ]),
        needs: Needs::TestRows(needed.filter(|needed| *needed <= MAX_EXAMPLES)),
    }
}

/// At most six names, then how many more.
fn list(labels: &[&str]) -> String {
    const SHOWN: usize = 6;
    let shown = labels.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    if labels.len() > SHOWN { format!("{shown} and {} more", labels.len() - SHOWN) } else { shown }
}

/// "p95 is at most L" says the same as "at most 5 % of calls take longer than L", which is a proportion.
fn calls_within(candidate: &[Prediction], p95_ms: f64, evidence: &Evidence<'_>) -> Finding {
    let times: Vec<f64> = candidate.iter().filter_map(|p| p.latency_ms).collect();
    let Some(seen) = latency(&times) else {
        return Finding { reason: "No call of the candidate was timed.".to_owned(), ..absent(evidence.candidate) };
    };
    let within = times.iter().filter(|ms| **ms <= p95_ms).count() as u64;
    let mut finding = proportion("Share of calls in time", within, seen.calls, 0.95, evidence);
    finding.reason = format!("p95 is {}. {}", milliseconds(seen.p95_ms), finding.reason);
    finding.numbers.extend(numbers([("p50_ms", seen.p50_ms), ("p95_ms", seen.p95_ms), ("limit_ms", p95_ms)]));
    finding
}
