//! The simulated frontier model: right most of the time, wrong where the words of a message point to a neighbouring
//! category. Only + - * / and square roots, which IEEE 754 rounds the same way everywhere.

use crate::text::{Rng, normal_form};
use std::collections::{BTreeMap, BTreeSet};

pub struct Frontier {
    labels: Vec<usize>,
    /// A message's chance of a wrong answer, by its index.
    error: Vec<f64>,
    /// Similarity of a message to each category, by message and label.
    likeness: Vec<Vec<f64>>,
}

impl Frontier {
    /// `messages` are pairs of text and label; `error_rate` is the mean over all.
    pub fn new(messages: &[(String, usize)], n_labels: usize, error_rate: f64) -> Frontier {
        let likeness = likeness(messages, n_labels);
        let labels: Vec<usize> = messages.iter().map(|m| m.1).collect();
        // The harder the message, the likelier the mistake: the fifth with the smallest margin errs nine times as
        // often as the easiest half.
        let mut by_margin: Vec<usize> = (0..messages.len()).collect();
        let margin = |i: usize| {
            let others = likeness[i].iter().enumerate().filter(|(l, _)| *l != labels[i]).map(|(_, s)| *s);
            likeness[i][labels[i]] - others.fold(0.0, f64::max)
        };
        by_margin.sort_by(|a, b| margin(*a).total_cmp(&margin(*b)).then(a.cmp(b)));
        let mut error = vec![0.0; messages.len()];
        for (rank, i) in by_margin.iter().enumerate() {
            let weight = match (rank * 10) / messages.len() {
                0 | 1 => 9.0,
                2..=4 => 2.5,
                _ => 1.0,
            };
            error[*i] = weight;
        }
        let mean = error.iter().sum::<f64>() / error.len() as f64;
        error.iter_mut().for_each(|e| *e = (*e * error_rate / mean).min(0.9));
        Frontier { labels, error, likeness }
    }

    /// The label that it answers to message `index`.
    pub fn answer(&self, index: usize, rng: &mut Rng) -> usize {
        let gold = self.labels[index];
        if !rng.chance(self.error[index]) {
            return gold;
        }
        // To the fourth power: nearly always one of the two nearest neighbours.
        let weights: Vec<f64> = (0..self.likeness[index].len())
            .map(|l| if l == gold { 0.0 } else { (self.likeness[index][l] + 0.02).powi(4) })
            .collect();
        rng.weighted(&weights)
    }
}

/// Cosine between a message's words and a category's, rare words weighing more (1 / how many categories use it). The
/// name of a category counts among its words: that is what a model is shown.
fn likeness(messages: &[(String, usize)], n_labels: usize) -> Vec<Vec<f64>> {
    let words = |text: &str| -> BTreeSet<String> { normal_form(text).split(' ').map(str::to_string).collect() };
    let bags: Vec<BTreeSet<String>> = messages.iter().map(|m| words(&m.0)).collect();
    let mut by_label: Vec<BTreeMap<&str, f64>> = vec![BTreeMap::new(); n_labels];
    for (bag, (_, label)) in bags.iter().zip(messages) {
        for word in bag {
            *by_label[*label].entry(word).or_default() += 1.0;
        }
    }
    let mut used_by: BTreeMap<&str, f64> = BTreeMap::new();
    for word in by_label.iter().flat_map(BTreeMap::keys) {
        *used_by.entry(word).or_default() += 1.0;
    }
    let norm: Vec<f64> = by_label
        .iter()
        .map(|words| words.iter().map(|(w, n)| (n / used_by[w]) * (n / used_by[w])).sum::<f64>().sqrt().max(1e-9))
        .collect();
    bags.iter()
        .map(|bag| {
            let size =
                bag.iter().map(|w| 1.0 / (used_by[w.as_str()] * used_by[w.as_str()])).sum::<f64>().sqrt().max(1e-9);
            by_label
                .iter()
                .zip(&norm)
                .map(|(words, norm)| {
                    let dot: f64 = bag
                        .iter()
                        .filter_map(|w| Some(words.get(w.as_str())? / (used_by[w.as_str()] * used_by[w.as_str()])))
                        .sum();
                    dot / (size * norm)
                })
                .collect()
        })
        .collect()
}

/// exp(sigma z) for a standard normal z: twelve uniforms added up, and exp by repeated squaring, since the C library's
/// differs between systems in the last digit.
pub fn lognormal(sigma: f64, rng: &mut Rng) -> f64 {
    let z: f64 = (0..12).map(|_| rng.unit()).sum::<f64>() - 6.0;
    let mut y = 1.0 + sigma * z / 1024.0;
    for _ in 0..10 {
        y *= y;
    }
    y
}
