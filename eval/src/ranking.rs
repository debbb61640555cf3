//! What an order of items is worth: nDCG and recall among the first k, for rerankers and pruners. Golden values come from
//! scikit-learn.

/// Discounted cumulative gain of the first `k` over the best that any order of the items could have; relevances are given in
/// the order that is judged. The gain is the relevance itself and place i (from 1) counts 1/log₂(i+1). 0 where nothing is relevant,
/// as scikit-learn has it.
pub fn ndcg(ranked: &[f64], k: usize) -> f64 {
    let mut best = ranked.to_vec();
    best.sort_by(|a, b| b.total_cmp(a));
    let ideal = gain(&best, k);
    if ideal > 0.0 { gain(ranked, k) / ideal } else { 0.0 }
}

fn gain(ranked: &[f64], k: usize) -> f64 {
    ranked.iter().take(k).enumerate().map(|(i, relevance)| relevance / (i as f64 + 2.0).log2()).sum()
}

/// Share of the relevant items that are among the first `k`; None where none is relevant.
pub fn recall_at(ranked: &[f64], k: usize) -> Option<f64> {
    let relevant = |items: &[f64]| items.iter().filter(|relevance| **relevance > 0.0).count();
    match relevant(ranked) {
        0 => None,
        all => Some(relevant(&ranked[..k.min(ranked.len())]) as f64 / all as f64),
    }
}
