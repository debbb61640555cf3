//! Do reviewers agree: Cohen's κ and Krippendorff's α over items that were judged independently, and what each reviewer
//! did. Judgements made in sight of another's say nothing about agreement and are left out.

use super::{Decision, Decisions, Item, Pass, Queue, Standing, Verdict};
use crate::taxonomy::Answers;
use crate::text::hash;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Agreement over the items that two or more judged without sight of each other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    pub items: u64,
    /// Pairs of judgements, and those that are equal.
    pub pairs: u64,
    pub equal: u64,
    /// Mean of the reviewers' pairwise κ, weighted by the items they share. None without items, or where everybody always
    /// says the same one thing.
    pub cohen_kappa: Option<f64>,
    /// Nominal, any number of reviewers, gaps allowed.
    pub krippendorff_alpha: Option<f64>,
}

impl Agreement {
    /// In a word: .8 is the usual bar, .667 enough for tentative conclusions (Krippendorff).
    pub fn word(&self) -> &'static str {
        match self.krippendorff_alpha {
            None => "too little to tell",
            Some(alpha) if alpha >= 0.8 => "good",
            Some(alpha) if alpha >= 0.667 => "tentative",
            Some(_) => "poor: sharpen the guidelines",
        }
    }
}

/// Two raters on the same items. None without items, or where chance alone explains every agreement (κ is 0/0).
pub fn cohen_kappa(pairs: &[(usize, usize)]) -> Option<f64> {
    let n = pairs.len() as f64;
    let mut counts: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
    for (a, b) in pairs {
        counts.entry(*a).or_default().0 += 1.0;
        counts.entry(*b).or_default().1 += 1.0;
    }
    let observed = pairs.iter().filter(|(a, b)| a == b).count() as f64 / n;
    let by_chance = counts.values().map(|(a, b)| a * b).sum::<f64>() / (n * n);
    (!pairs.is_empty() && by_chance < 1.0).then(|| (observed - by_chance) / (1.0 - by_chance))
}

/// Nominal α: each unit holds its ratings, whoever made them. Units with one rating say nothing. None where nothing is
/// left, or all ratings are equal.
pub fn krippendorff_alpha(units: &[Vec<usize>]) -> Option<f64> {
    let mut values: BTreeMap<usize, f64> = BTreeMap::new();
    let mut disagreeing = 0.0;
    for unit in units.iter().filter(|unit| unit.len() > 1) {
        let mut of_unit: BTreeMap<usize, f64> = BTreeMap::new();
        for value in unit {
            *of_unit.entry(*value).or_default() += 1.0;
            *values.entry(*value).or_default() += 1.0;
        }
        let m = unit.len() as f64;
        disagreeing += (m * m - of_unit.values().map(|n| n * n).sum::<f64>()) / (m - 1.0);
    }
    let n: f64 = values.values().sum();
    let by_chance = n * n - values.values().map(|v| v * v).sum::<f64>();
    (n > 1.0 && by_chance > 0.0).then(|| 1.0 - (n - 1.0) * disagreeing / by_chance)
}

/// The votes on an item that nobody else's could have swayed: the first, and the blind ones.
fn independent<'d>(said: &super::Said<'d>) -> Vec<&'d Decision> {
    let votes = said.votes.iter().filter(|d| d.verdict != Verdict::Skip && d.pass != Some(Pass::Adjudicate));
    let mut first = true;
    votes
        .filter(|d| {
            let counts = first || d.pass == Some(Pass::Blind);
            first = false;
            counts
        })
        .copied()
        .collect()
}

/// A judgement as a category: the label's number or the digest of the fields, and one more for a rejection.
fn category(standing: &Standing, answers: &Answers) -> Option<usize> {
    match (standing, answers) {
        (Standing::Labelled(label), Answers::Labels(labels)) => labels.iter().position(|l| l == label),
        (Standing::Labelled(fields), Answers::Fields(_)) => Some(hash(fields.as_bytes()) as usize),
        (Standing::Rejected(_), _) => Some(usize::MAX),
        _ => None,
    }
}

/// Over some items of the queue, or all.
pub fn agreement<'q>(items: impl Iterator<Item = &'q Item>, answers: &Answers, decisions: &Decisions) -> Agreement {
    let mut units = Vec::new();
    let mut of_pair: BTreeMap<(&str, &str), Vec<(usize, usize)>> = BTreeMap::new();
    let mut found = Agreement::default();
    for item in items {
        let said = decisions.of(&item.id);
        if said.votes.len() < 2 {
            continue;
        }
        let mut rated: Vec<(&str, usize)> = independent(&said)
            .into_iter()
            .filter_map(|vote| Some((vote.reviewer.as_str(), category(&item.standing(Some(vote), answers), answers)?)))
            .collect();
        rated.sort_unstable();
        if rated.len() < 2 {
            continue;
        }
        found.items += 1;
        for (i, (a, x)) in rated.iter().enumerate() {
            for (b, y) in &rated[i + 1..] {
                found.pairs += 1;
                found.equal += u64::from(x == y);
                of_pair.entry((a, b)).or_default().push((*x, *y));
            }
        }
        units.push(rated.into_iter().map(|(_, value)| value).collect());
    }
    let kappas: Vec<(f64, f64)> =
        of_pair.values().filter_map(|pairs| Some((cohen_kappa(pairs)?, pairs.len() as f64))).collect();
    let weight: f64 = kappas.iter().map(|(_, n)| n).sum();
    found.cohen_kappa = (weight > 0.0).then(|| kappas.iter().map(|(kappa, n)| kappa * n).sum::<f64>() / weight);
    found.krippendorff_alpha = krippendorff_alpha(&units);
    found
}

/// What one reviewer did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reviewer {
    pub name: String,
    pub accepted: u64,
    pub corrected: u64,
    pub rejected: u64,
    pub skipped: u64,
    pub flagged: u64,
    pub adjudicated: u64,
    /// Entries that the reviewer took back.
    pub taken_back: u64,
    /// Items judged with at least one other independently, and those judged as the settled answer is.
    pub shared: u64,
    pub as_settled: u64,
    /// Of decisions that tell it.
    pub median_dwell_ms: Option<u64>,
    pub last: Option<String>,
}

impl Reviewer {
    pub fn judged(&self) -> u64 {
        self.accepted + self.corrected + self.rejected
    }
}

/// By name.
pub fn reviewers(queue: &Queue, decisions: &Decisions) -> Vec<Reviewer> {
    let names: BTreeSet<&str> = decisions.list().iter().map(|d| d.reviewer.as_str()).collect();
    let mut out: Vec<Reviewer> = names.iter().map(|name| of_reviewer(name, decisions)).collect();
    for item in &queue.items {
        let said = decisions.of(&item.id);
        let votes = independent(&said);
        if votes.len() < 2 {
            continue;
        }
        let answers = &queue.answers;
        let settled = category(&item.settled(&said, answers, queue.reviewers), answers);
        let Some(settled) = settled else { continue };
        for vote in votes {
            if let Ok(i) = out.binary_search_by(|r| r.name.as_str().cmp(&vote.reviewer)) {
                out[i].shared += 1;
                let same = category(&item.standing(Some(vote), answers), answers) == Some(settled);
                out[i].as_settled += u64::from(same);
            }
        }
    }
    out
}

fn of_reviewer(name: &str, decisions: &Decisions) -> Reviewer {
    let mut reviewer = Reviewer { name: name.to_string(), ..Reviewer::default() };
    let mut dwell = Vec::new();
    for decision in decisions.history(name) {
        *match (decision.pass, decision.verdict) {
            (_, Verdict::Flag) => &mut reviewer.flagged,
            (_, Verdict::Skip) => &mut reviewer.skipped,
            (Some(Pass::Adjudicate), Verdict::Accept | Verdict::Correct | Verdict::Reject) => &mut reviewer.adjudicated,
            (_, Verdict::Accept) => &mut reviewer.accepted,
            (_, Verdict::Correct) => &mut reviewer.corrected,
            (_, Verdict::Reject) => &mut reviewer.rejected,
            (_, Verdict::Note | Verdict::Undo) => continue,
        } += 1;
        dwell.extend(decision.dwell_ms.filter(|_| decision.verdict.judges()));
        reviewer.last = Some(decision.at.clone());
    }
    let undos = |d: &&Decision| d.reviewer == name && d.verdict == Verdict::Undo;
    reviewer.taken_back = decisions.list().iter().filter(undos).count() as u64;
    dwell.sort_unstable();
    reviewer.median_dwell_ms = dwell.get(dwell.len() / 2).copied();
    reviewer
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// Against scikit-learn and the krippendorff package: tests/reference/review_golden.py.
    #[test]
    fn kappa_and_alpha_are_those_of_the_packages() {
        let golden: Value = serde_json::from_str(include_str!("golden/agreement.json")).unwrap();
        let numbers =
            |v: &Value| v.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as usize).collect::<Vec<_>>();
        let near = |ours: Option<f64>, theirs: &Value| match (ours, theirs.as_f64()) {
            (Some(ours), Some(theirs)) => assert!((ours - theirs).abs() < 1e-9, "{ours} {theirs}"),
            (ours, theirs) => assert_eq!(ours, theirs),
        };
        for case in golden["kappa"].as_array().unwrap() {
            let pairs: Vec<_> = numbers(&case["a"]).into_iter().zip(numbers(&case["b"])).collect();
            near(cohen_kappa(&pairs), &case["kappa"]);
        }
        for case in golden["alpha"].as_array().unwrap() {
            let units: Vec<Vec<usize>> = case["units"].as_array().unwrap().iter().map(numbers).collect();
            near(krippendorff_alpha(&units), &case["alpha"]);
        }
        assert_eq!((cohen_kappa(&[]), krippendorff_alpha(&[vec![1]])), (None, None));
    }
}
