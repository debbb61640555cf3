//! One label that matters more than the others: how well it is told from them (messages that are out of scope), and what an order
//! by its probability is worth (passages to keep for a question).

use crate::metrics::Prediction;
use crate::ranking::{ndcg, recall_at};
use crate::statistics::{Interval, wilson};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Items of a query that are looked at in [`Ranked`].
pub const FIRST: [usize; 3] = [1, 3, 10];

/// A label against all others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Detection {
    pub label: String,
    /// Rows that have it, and of these how many were answered with it.
    pub rows: u64,
    pub found: u64,
    pub recall: Option<f64>,
    pub recall_interval: Option<Interval>,
    /// Rows that have another label, how many of these were answered with this one, and how many rightly.
    pub others: u64,
    pub false_alarms: u64,
    pub others_right: u64,
    pub precision: Option<f64>,
    /// Chance that a row that has it gets more of its probability than one that has not (ties half); None without posteriors.
    pub auroc: Option<f64>,
}

pub(crate) fn detection(label: usize, name: &str, gold: &[usize], given: &[Prediction], confidence: f64) -> Detection {
    let (mut rows, mut found, mut others, mut false_alarms, mut others_right) = (0, 0, 0, 0, 0);
    for (gold, answer) in gold.iter().zip(given) {
        let said = answer.label == Some(label);
        if *gold == label {
            (rows, found) = (rows + 1, found + u64::from(said));
        } else {
            others += 1;
            false_alarms += u64::from(said);
            others_right += u64::from(answer.label == Some(*gold));
        }
    }
    let share = |k: u64, n: u64| (n > 0).then(|| k as f64 / n as f64);
    let scores: Option<Vec<(f64, bool)>> = gold
        .iter()
        .zip(given)
        .map(|(gold, p)| Some((f64::from(*p.posterior.as_ref()?.get(label)?), *gold == label)))
        .collect();
    Detection {
        label: name.to_owned(),
        rows,
        found,
        recall: share(found, rows),
        recall_interval: (rows > 0).then(|| wilson(found, rows, confidence)),
        others,
        false_alarms,
        others_right,
        precision: share(found, found + false_alarms),
        auroc: scores.and_then(|scores| auroc(&scores)),
    }
}

/// Area under the ROC curve, which is Mann and Whitney's U over the pairs; None where one side is empty.
pub fn auroc(scores: &[(f64, bool)]) -> Option<f64> {
    let mut sorted = scores.to_vec();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut below, mut wins, mut positives) = (0.0, 0.0, 0.0);
    for ties in sorted.chunk_by(|a, b| a.0 == b.0) {
        let right = ties.iter().filter(|(_, is)| *is).count() as f64;
        let wrong = ties.len() as f64 - right;
        wins += right * (below + wrong / 2.0);
        below += wrong;
        positives += right;
    }
    (positives > 0.0 && below > 0.0).then(|| wins / (positives * below))
}

/// The items of each test row's query.
#[derive(Clone, Debug, PartialEq)]
pub struct RankingPlan {
    /// The label of an item that is wanted.
    pub positive: usize,
    /// By the row's id: what is asked, and how many characters the item has.
    pub items: BTreeMap<String, (String, u64)>,
}

/// What an order by the probability of the wanted label is worth, query by query, and what is saved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ranked {
    /// Queries with at least one wanted item and one other, and their items.
    pub queries: u64,
    pub items: u64,
    /// Mean nDCG and mean recall among the first of [`FIRST`].
    pub ndcg: Vec<f64>,
    pub recall: Vec<f64>,
    /// Share of all items' characters that are in items answered otherwise: what need not be sent on.
    pub dropped: f64,
    /// Share of the wanted items that are among them.
    pub lost: f64,
}

/// None where no row has a posterior, or no query two kinds of items.
pub(crate) fn ranked(plan: &RankingPlan, gold: &[usize], given: &[Prediction]) -> Option<Ranked> {
    let mut queries = BTreeMap::<&str, Vec<(f64, f64)>>::new();
    let (mut all, mut dropped, mut wanted, mut lost) = (0, 0, 0_u64, 0_u64);
    for (gold, answer) in gold.iter().zip(given) {
        let Some((query, characters)) = plan.items.get(&answer.row) else { continue };
        let score = f64::from(*answer.posterior.as_ref()?.get(plan.positive)?);
        let is = *gold == plan.positive;
        queries.entry(query).or_default().push((score, f64::from(u8::from(is))));
        all += characters;
        wanted += u64::from(is);
        if answer.label != Some(plan.positive) {
            dropped += characters;
            lost += u64::from(is);
        }
    }
    let orders: Vec<Vec<f64>> = queries
        .into_values()
        .map(|mut items| {
            // Of equals the unwanted come first: an order that can't tell is not flattered.
            items.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.total_cmp(&b.1)));
            items.into_iter().map(|(_, relevance)| relevance).collect::<Vec<f64>>()
        })
        .filter(|order| order.contains(&1.0) && order.contains(&0.0))
        .collect();
    if orders.is_empty() || all == 0 || wanted == 0 {
        return None;
    }
    let mean = |of: &dyn Fn(&[f64]) -> f64| orders.iter().map(|order| of(order)).sum::<f64>() / orders.len() as f64;
    Some(Ranked {
        queries: orders.len() as u64,
        items: orders.iter().map(|order| order.len() as u64).sum(),
        ndcg: FIRST.iter().map(|k| mean(&|order| ndcg(order, *k))).collect(),
        recall: FIRST.iter().map(|k| mean(&|order| recall_at(order, *k).unwrap_or(0.0))).collect(),
        dropped: dropped as f64 / all as f64,
        lost: lost as f64 / wanted as f64,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use limbeck_artifact::random::SplitMix64;

    fn row(id: usize, p: f64) -> Prediction {
        let posterior = vec![p as f32, 1.0 - p as f32];
        let label = Some(usize::from(p < 0.5));
        Prediction {
            row: id.to_string(),
            label,
            posterior: Some(posterior),
            latency_ms: None,
            said: None,
            tokens: None,
        }
    }

    #[test]
    fn auroc_is_the_share_of_pairs_in_order() {
        let mut rng = SplitMix64::new(5);
        let scores: Vec<(f64, bool)> =
            (0..200).map(|_| ((rng.unit() * 10.0).floor() / 10.0, rng.unit() < 0.3)).collect();
        let (mut wins, mut pairs) = (0.0, 0.0);
        for (a, _) in scores.iter().filter(|(_, is)| *is) {
            for (b, _) in scores.iter().filter(|(_, is)| !is) {
                wins += if a > b {
                    1.0
                } else if a == b {
                    0.5
                } else {
                    0.0
                };
                pairs += 1.0;
            }
        }
        assert!((auroc(&scores).unwrap() - wins / pairs).abs() < 1e-12);
        assert_eq!(auroc(&[(0.1, true)]), None);
    }

    #[test]
    fn a_label_is_told_from_the_others_by_hand() {
        // Label 0 on three rows, of which two are found; one of two others is taken for it.
        let (gold, given) = ([0, 0, 0, 1, 1], [row(0, 0.9), row(1, 0.8), row(2, 0.3), row(3, 0.6), row(4, 0.1)]);
        let found = detection(0, "none", &gold, &given, 0.95);
        assert_eq!((found.rows, found.found, found.others, found.false_alarms, found.others_right), (3, 2, 2, 1, 1));
        assert_eq!((found.recall, found.precision), (Some(2.0 / 3.0), Some(2.0 / 3.0)));
        assert_eq!(found.auroc, Some(5.0 / 6.0));
    }

    #[test]
    fn an_order_is_worth_what_it_puts_first() {
        let gold = [0, 1, 1, 0, 1, 1];
        let given = [row(0, 0.9), row(1, 0.2), row(2, 0.1), row(3, 0.4), row(4, 0.6), row(5, 0.3)];
        let item = |id: usize| (id.to_string(), ((if id < 3 { "a" } else { "b" }).to_owned(), 100));
        let plan = RankingPlan { positive: 0, items: (0..6).map(item).collect() };
        let found = ranked(&plan, &gold, &given).unwrap();
        // In the first query the wanted item is first, in the second it is second.
        assert_eq!((found.queries, found.items), (2, 6));
        assert_eq!(found.recall, [0.5, 1.0, 1.0]);
        assert!((found.ndcg[1] - (1.0 + 1.0 / 3.0_f64.log2()) / 2.0).abs() < 1e-12);
        // Four items are answered otherwise, one of them wanted.
        assert!((found.dropped - 4.0 / 6.0).abs() < 1e-12 && (found.lost - 0.5).abs() < 1e-12);
    }
}
