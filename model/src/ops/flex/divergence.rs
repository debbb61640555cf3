//! The head's divergence from a teacher that told its likeliest tokens, a block of positions at a time: the vocabulary's logits
//! are turned into their gradient in place. Of it, the tail keeps its shape: it is scaled as its sum has to move.

use super::FlexMatrix;
use super::kernels::exp_row;
use super::loss::over_rows;
use crate::divergence::Divergence;
use crate::ops::SoftTarget;
use crate::ops::soft::SMALLEST;
use burn::tensor::Tensor;
use std::sync::Arc;

pub(super) fn linear_divergence(
    hidden: Tensor<2>,
    vocab: usize,
    head: &Arc<FlexMatrix>,
    targets: &[SoftTarget],
    divergence: Divergence,
    denominator: f32,
) -> Tensor<1> {
    let rows: Vec<usize> = targets.iter().map(SoftTarget::row).collect();
    over_rows(hidden, vocab, head, &rows, |i, row| of_row(&targets[i], divergence, denominator, row))
}

/// Turns a position's logits into the loss's gradient by them; returns the loss.
pub(super) fn of_row(target: &SoftTarget, divergence: Divergence, denominator: f32, row: &mut [f32]) -> f64 {
    let weight = f64::from(target.weight() / denominator);
    let logits: Vec<f64> = target.tokens().iter().map(|t| f64::from(row[*t as usize])).collect();
    let (max, _) = exp_row(row);
    // The tail is added up alone: as 1 - Q it would vanish in rounding where the student is sure.
    let listed: Vec<f32> = target.tokens().iter().map(|t| std::mem::take(&mut row[*t as usize])).collect();
    let in_tail = sum(row);
    let all = in_tail + listed.iter().map(|x| f64::from(*x)).sum::<f64>();
    let (log_all, in_tail) = (all.ln(), in_tail.max(SMALLEST));
    let log_q: Vec<f64> = logits.iter().map(|z| z - f64::from(max) - log_all).collect();
    let slope = target.slope(divergence, row.len(), &log_q, in_tail.ln() - log_all);
    let sum = slope.sum();
    let factor = (weight * (slope.tail / in_tail - sum / all)) as f32;
    for x in row.iter_mut() {
        *x *= factor;
    }
    for ((t, x), by_log_q) in target.tokens().iter().zip(&listed).zip(&slope.tokens) {
        row[*t as usize] = (weight * (by_log_q - sum * f64::from(*x) / all)) as f32;
    }
    weight * slope.loss
}

/// In sixteen lanes, then in one: one order of additions.
fn sum(row: &[f32]) -> f64 {
    let mut lanes = [0f32; 16];
    let (chunks, rest) = row.as_chunks::<16>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += x;
        }
    }
    lanes.iter().chain(rest).map(|x| f64::from(*x)).sum()
}
