//! Multinomial logistic regression by full-batch L-BFGS on sparse rows: minimises mean NLL + |W|² / (2 C n), the
//! objective of scikit-learn's `LogisticRegression`. Parallel over rows forward and over features backward, each output
//! written by one thread, so that the bits do not depend on the thread count.

use super::tfidf::SparseVector;
use rayon::prelude::*;
use std::collections::VecDeque;

/// Inverse strength of the L2 penalty; 10 beat 1 and equalled 100 on Banking77.
const C: f64 = 10.0;
/// Steps at most; a hundred rows a class need some 30.
const MAX_STEPS: usize = 200;
/// Done when no partial derivative of the mean loss is larger.
const GRADIENT_TOLERANCE: f32 = 2e-5;
/// Or when a step lowers the loss by a smaller share than this: below it, f32 weights only move the rounding about.
const LOSS_TOLERANCE: f64 = 1e-7;
/// A step that is not accepted after so many halvings is lost in rounding too.
const MAX_HALVINGS: u32 = 12;
/// Rows and features a thread takes at a time: less is not worth waking it.
const ROWS_AT_ONCE: usize = 32;
const FEATURES_AT_ONCE: usize = 512;
/// Pairs of past steps that shape the next one.
const HISTORY: usize = 6;

/// A sparse matrix, kept by row and by column.
pub struct SparseRows {
    rows: Vec<SparseVector>,
    /// For each feature: (row, weight).
    columns: Vec<SparseVector>,
}

impl SparseRows {
    pub fn new(rows: impl Iterator<Item = SparseVector>, features: usize) -> SparseRows {
        let rows: Vec<SparseVector> = rows.collect();
        let mut columns = vec![SparseVector::new(); features];
        for (row, vector) in rows.iter().enumerate() {
            for &(feature, weight) in vector {
                columns[feature as usize].push((row as u32, weight));
            }
        }
        SparseRows { rows, columns }
    }
}

/// Weights [features + 1][classes], row-major; the last row is the intercept, which is not penalised.
pub struct Softmax {
    weights: Vec<f32>,
    classes: usize,
}

struct Problem<'a> {
    x: &'a SparseRows,
    gold: &'a [usize],
    /// Weight of each row, summing to 1.
    shares: Vec<f32>,
    classes: usize,
    penalty: f64,
}

impl Softmax {
    /// Fits to rows with gold classes in `0..classes` and positive weights, in [`MAX_STEPS`] steps or fewer.
    pub fn fit(x: &SparseRows, gold: &[usize], row_weights: &[f32], classes: usize) -> Softmax {
        let total: f64 = row_weights.iter().map(|w| f64::from(*w)).sum();
        let shares = row_weights.iter().map(|w| (f64::from(*w) / total.max(1e-12)) as f32).collect();
        let problem = Problem { x, gold, shares, classes, penalty: 1.0 / (C * total.max(1e-12)) };
        let size = (x.columns.len() + 1) * classes;
        let mut weights = vec![0.0_f32; size];
        if classes > 1 {
            minimise(&problem, &mut weights);
        }
        Softmax { weights, classes }
    }

    /// Distribution over the classes.
    pub fn posterior(&self, row: &[(u32, f32)]) -> Vec<f32> {
        let (mut scores, mut posterior) = (vec![0.0; self.classes], vec![0.0; self.classes]);
        logits(&self.weights, row, &mut scores);
        softmax(&scores, &mut posterior);
        posterior
    }
}

/// Scores of the classes, summed in f64: the line search compares losses that differ in the seventh digit.
fn logits(weights: &[f32], row: &[(u32, f32)], scores: &mut [f64]) {
    let classes = scores.len();
    for (score, intercept) in scores.iter_mut().zip(&weights[weights.len() - classes..]) {
        *score = f64::from(*intercept);
    }
    for &(feature, value) in row {
        let from = feature as usize * classes;
        for (score, weight) in scores.iter_mut().zip(&weights[from..from + classes]) {
            *score += f64::from(value) * f64::from(*weight);
        }
    }
}

/// Writes the distribution; returns the log of the normaliser.
fn softmax(scores: &[f64], out: &mut [f32]) -> f64 {
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = scores.iter().map(|score| (score - top).exp()).sum();
    for (p, score) in out.iter_mut().zip(scores) {
        *p = ((score - top).exp() / total) as f32;
    }
    top + total.ln()
}

impl Problem<'_> {
    /// The loss at `weights`; writes its gradient.
    fn loss(&self, weights: &[f32], gradient: &mut [f32]) -> f64 {
        let k = self.classes;
        let mut residuals = vec![0.0_f32; self.x.rows.len() * k];
        let losses: Vec<f64> = residuals
            .par_chunks_mut(k)
            .enumerate()
            .with_min_len(ROWS_AT_ONCE)
            .map_init(
                || vec![0.0_f64; k],
                |scores, (row, residual)| {
                    logits(weights, &self.x.rows[row], scores);
                    let loss = softmax(scores, residual) - scores[self.gold[row]];
                    residual[self.gold[row]] -= 1.0;
                    residual.iter_mut().for_each(|r| *r *= self.shares[row]);
                    loss * f64::from(self.shares[row])
                },
            )
            .collect();

        let (features, intercept) = gradient.split_at_mut(self.x.columns.len() * k);
        features.par_chunks_mut(k).enumerate().with_min_len(FEATURES_AT_ONCE).for_each(|(feature, out)| {
            for (g, w) in out.iter_mut().zip(&weights[feature * k..(feature + 1) * k]) {
                *g = (self.penalty * f64::from(*w)) as f32;
            }
            for &(row, value) in &self.x.columns[feature] {
                let from = row as usize * k;
                for (g, r) in out.iter_mut().zip(&residuals[from..from + k]) {
                    *g += value * r;
                }
            }
        });
        intercept.fill(0.0);
        for residual in residuals.chunks(k) {
            for (g, r) in intercept.iter_mut().zip(residual) {
                *g += r;
            }
        }
        let penalised = &weights[..features.len()];
        losses.iter().sum::<f64>() + 0.5 * self.penalty * dot(penalised, penalised)
    }
}

/// Summed in f64, in slices of fixed length: the same bits on any number of threads.
fn dot(x: &[f32], y: &[f32]) -> f64 {
    let partial: Vec<f64> = x
        .par_chunks(1 << 14)
        .zip(y.par_chunks(1 << 14))
        .map(|(x, y)| x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>())
        .collect();
    partial.iter().sum()
}

fn add_scaled(to: &mut [f32], factor: f64, from: &[f32]) {
    let factor = factor as f32;
    to.iter_mut().zip(from).for_each(|(to, from)| *to += factor * from);
}

/// L-BFGS with backtracking. The loss is convex, so every pair of steps has positive curvature up to rounding.
fn minimise(problem: &Problem<'_>, weights: &mut Vec<f32>) {
    let mut gradient = vec![0.0; weights.len()];
    let mut loss = problem.loss(weights, &mut gradient);
    let mut history = VecDeque::<(Vec<f32>, Vec<f32>, f64)>::new();
    for _ in 0..MAX_STEPS {
        if gradient.iter().all(|g| g.abs() <= GRADIENT_TOLERANCE) {
            return;
        }
        let direction = newton_direction(&gradient, &history);
        let slope = dot(&direction, &gradient);
        let mut length = if history.is_empty() { 1.0 / dot(&gradient, &gradient).sqrt() } else { 1.0 };
        let (mut next, mut next_gradient) = (weights.clone(), vec![0.0; weights.len()]);
        let mut next_loss = f64::INFINITY;
        for _ in 0..MAX_HALVINGS {
            next.copy_from_slice(weights);
            add_scaled(&mut next, length, &direction);
            next_loss = problem.loss(&next, &mut next_gradient);
            if next_loss <= loss + 1e-4 * length * slope {
                break;
            }
            length *= 0.5;
        }
        if next_loss >= loss {
            return;
        }
        let settled = loss - next_loss < LOSS_TOLERANCE * loss;
        let step: Vec<f32> = next.iter().zip(weights.iter()).map(|(new, old)| new - old).collect();
        let change: Vec<f32> = next_gradient.iter().zip(&gradient).map(|(new, old)| new - old).collect();
        let curvature = dot(&step, &change);
        if curvature > 0.0 {
            if history.len() == HISTORY {
                history.pop_front();
            }
            history.push_back((step, change, 1.0 / curvature));
        }
        (*weights, gradient, loss) = (next, next_gradient, next_loss);
        if settled {
            return;
        }
    }
}

/// −H·gradient by the two-loop recursion.
fn newton_direction(gradient: &[f32], history: &VecDeque<(Vec<f32>, Vec<f32>, f64)>) -> Vec<f32> {
    let mut direction: Vec<f32> = gradient.iter().map(|g| -g).collect();
    let mut alphas = Vec::with_capacity(history.len());
    for (step, change, inverse) in history.iter().rev() {
        let alpha = inverse * dot(step, &direction);
        add_scaled(&mut direction, -alpha, change);
        alphas.push(alpha);
    }
    if let Some((_, change, inverse)) = history.back() {
        let scale = (1.0 / (inverse * dot(change, change))) as f32;
        direction.iter_mut().for_each(|d| *d *= scale);
    }
    for ((step, change, inverse), alpha) in history.iter().zip(alphas.iter().rev()) {
        let beta = inverse * dot(change, &direction);
        add_scaled(&mut direction, alpha - beta, step);
    }
    direction
}
