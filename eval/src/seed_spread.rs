//! How much of a result is the seed's doing: the same recipe trained again with other seeds, on the same data, answering the same
//! test rows. What a difference between two recipes has to exceed before it says anything of the recipes.

use crate::compare::Answered;
use crate::special::t_quantile;
use crate::statistics::Interval;
use serde::{Deserialize, Serialize};

/// Of accuracies that differ by the seed alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SeedSpread {
    pub trainings: u64,
    pub rows: u64,
    pub mean: f64,
    /// Between trainings, with n − 1.
    pub sd: f64,
    pub least: f64,
    pub most: f64,
    /// Where one more training is expected to come out: mean ± t · sd · √(1 + 1/n), within 0 and 1.
    pub next: Interval,
    pub confidence: f64,
    /// Two trainings' difference that the seed alone brings about with that chance: t · sd · √2.
    pub least_difference: f64,
    /// Mean share of the rows that two of the trainings answer differently.
    pub unlike: f64,
}

/// The spread of at least two trainings that answered the same rows; None of fewer, or where rows differ.
pub fn seed_spread(trainings: &[Answered], confidence: f64) -> Option<SeedSpread> {
    let first = trainings.first()?;
    let same_rows = |other: &Answered| first.rows.keys().eq(other.rows.keys());
    if trainings.len() < 2 || first.rows.is_empty() || !trainings.iter().all(same_rows) {
        return None;
    }
    let accuracies: Vec<f64> = trainings.iter().map(Answered::accuracy).collect();
    let n = accuracies.len() as f64;
    let mean = accuracies.iter().sum::<f64>() / n;
    let sd = (accuracies.iter().map(|a| (a - mean) * (a - mean)).sum::<f64>() / (n - 1.0)).sqrt();
    let t = t_quantile(0.5 + confidence / 2.0, n - 1.0);
    let half = t * sd * (1.0 + 1.0 / n).sqrt();
    let unlike = |a: &Answered, b: &Answered| {
        let differ = a.rows.values().zip(b.rows.values()).filter(|(a, b)| a.answer != b.answer).count();
        differ as f64 / a.rows.len() as f64
    };
    let pairs: Vec<f64> = (1..trainings.len())
        .flat_map(|i| (0..i).map(move |j| (i, j)))
        .map(|(i, j)| unlike(&trainings[i], &trainings[j]))
        .collect();
    Some(SeedSpread {
        trainings: trainings.len() as u64,
        rows: first.rows.len() as u64,
        mean,
        sd,
        least: accuracies.iter().copied().fold(f64::INFINITY, f64::min),
        most: accuracies.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        next: Interval { low: (mean - half).max(0.0), high: (mean + half).min(1.0) },
        confidence,
        least_difference: t * sd * std::f64::consts::SQRT_2,
        unlike: pairs.iter().sum::<f64>() / pairs.len() as f64,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::compare::AnsweredRow;
    use std::collections::BTreeMap;

    /// Of ten rows whose answer is "yes" the first few are answered so.
    fn right(first: usize, rows: usize) -> Answered {
        let row = |i: usize| AnsweredRow {
            group: format!("g{i}"),
            text: String::new(),
            gold: "yes".to_owned(),
            answer: Some(if i < first { "yes" } else { "no" }.to_owned()),
        };
        let rows: BTreeMap<String, AnsweredRow> = (0..rows).map(|i| (format!("{i:02}"), row(i))).collect();
        Answered::new("a", rows, Vec::new())
    }

    #[test]
    fn the_figures_of_three_trainings_by_hand() {
        let found = seed_spread(&[right(8, 10), right(7, 10), right(9, 10)], 0.95).unwrap();
        assert!((found.mean - 0.8).abs() < 1e-12 && (found.sd - 0.1).abs() < 1e-12);
        assert_eq!((found.least, found.most, found.trainings, found.rows), (0.7, 0.9, 3, 10));
        // t of two degrees of freedom at 97.5 %: 4.302653.
        assert!((found.least_difference - 4.302_652_7 * 0.1 * 2.0_f64.sqrt()).abs() < 1e-6);
        let half = 4.302_652_7 * 0.1 * (4.0_f64 / 3.0).sqrt();
        assert!((found.next.low - (0.8 - half)).abs() < 1e-6 && found.next.high == 1.0);
        // Rows that two answer differently: 1, 1 and 2 of ten.
        assert!((found.unlike - 4.0 / 30.0).abs() < 1e-12);
        assert!(seed_spread(&[right(8, 10)], 0.95).is_none());
        assert!(seed_spread(&[right(8, 10), right(8, 9)], 0.95).is_none(), "other rows");
    }
}
