//! Bounds for a statistic that is not a proportion (macro-F1): a seeded bootstrap, stratified by gold label so that the
//! support of every class stays, corrected for bias and skew (BCa, Efron 1987).

use crate::metrics::Confusion;
use crate::rng::SplitMix64;
use crate::special::{normal_cdf, normal_quantile};
use serde::{Deserialize, Serialize};

/// One-sided bounds of macro-F1 and the standard error they came from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BootstrapBounds {
    pub estimate: f64,
    pub lower: f64,
    pub upper: f64,
    pub standard_error: f64,
    pub resamples: u32,
}

/// BCa bounds of macro-F1, each one-sided at `confidence`.
pub fn macro_f1_bounds(
    gold: &[usize],
    predicted: &[Option<usize>],
    labels: usize,
    confidence: f64,
    resamples: u32,
    seed: u64,
) -> BootstrapBounds {
    let full = Confusion::count(gold, predicted, labels);
    let estimate = full.macro_f1();
    let mut by_class: Vec<Vec<Option<usize>>> = vec![Vec::new(); labels];
    for (&gold, answer) in gold.iter().zip(predicted) {
        by_class[gold].push(answer.filter(|label| *label < labels));
    }

    let mut rng = SplitMix64::new(seed);
    let mut draws: Vec<f64> = (0..resamples.max(1)).map(|_| resample(&by_class, labels, &mut rng).macro_f1()).collect();
    draws.sort_by(f64::total_cmp);
    let n = draws.len() as f64;
    let mean = draws.iter().sum::<f64>() / n;
    let standard_error = (draws.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0)).sqrt();

    // Ties count half, else a statistic of few values would look biased.
    let below = draws.iter().filter(|d| **d < estimate - 1e-12).count() as f64;
    let ties = draws.iter().filter(|d| (**d - estimate).abs() <= 1e-12).count() as f64;
    let bias = normal_quantile(((below + ties / 2.0) / n).clamp(0.5 / n, 1.0 - 0.5 / n));
    let skew = acceleration(&full, gold, predicted);
    let bound = |p: f64| {
        let z = bias + normal_quantile(p);
        let adjusted = normal_cdf(bias + z / (1.0 - skew * z).max(1e-6));
        draws[((adjusted * n) as usize).min(draws.len() - 1)]
    };
    let (lower, upper) = (bound(1.0 - confidence).min(estimate), bound(confidence).max(estimate));
    BootstrapBounds { estimate, lower, upper, standard_error, resamples: resamples.max(1) }
}

fn resample(by_class: &[Vec<Option<usize>>], labels: usize, rng: &mut SplitMix64) -> Confusion {
    let mut confusion = Confusion { counts: vec![vec![0; labels]; labels], invalid: vec![0; labels] };
    for (gold, answers) in by_class.iter().enumerate() {
        for _ in 0..answers.len() {
            match answers[rng.below(answers.len())] {
                Some(label) => confusion.counts[gold][label] += 1,
                None => confusion.invalid[gold] += 1,
            }
        }
    }
    confusion
}

/// Skew of the statistic by the jackknife. Rows of one confusion cell are alike, so each cell is left out once.
fn acceleration(full: &Confusion, gold: &[usize], predicted: &[Option<usize>]) -> f64 {
    let mut cells = std::collections::BTreeMap::<(usize, Option<usize>), u64>::new();
    for (&gold, answer) in gold.iter().zip(predicted) {
        *cells.entry((gold, *answer)).or_default() += 1;
    }
    let mut without = full.clone();
    let mut values = Vec::with_capacity(cells.len());
    for (&(gold, answer), &rows) in &cells {
        let cell = match answer {
            Some(label) if label < full.counts.len() => &mut without.counts[gold][label],
            _ => &mut without.invalid[gold],
        };
        *cell -= 1;
        values.push((without.macro_f1(), rows as f64));
        match answer {
            Some(label) if label < full.counts.len() => without.counts[gold][label] += 1,
            _ => without.invalid[gold] += 1,
        }
    }
    let n: f64 = values.iter().map(|(_, rows)| rows).sum();
    let mean = values.iter().map(|(v, rows)| v * rows).sum::<f64>() / n.max(1.0);
    let cubes: f64 = values.iter().map(|(v, rows)| (mean - v).powi(3) * rows).sum();
    let squares: f64 = values.iter().map(|(v, rows)| (mean - v).powi(2) * rows).sum();
    if squares <= 0.0 { 0.0 } else { cubes / (6.0 * squares.powf(1.5)) }
}
