//! The head's divergence from a teacher that told its likeliest tokens. The gradient is that of a cross-entropy with the
//! listed tokens' probabilities, and the tail keeps its shape: it is scaled until its sum is the teacher's.

use super::FlexMatrix;
use super::kernels::exp_row;
use super::loss::over_rows;
use crate::ops::SoftTarget;
use burn::tensor::Tensor;
use std::sync::Arc;

pub(super) fn linear_kl(
    hidden: Tensor<2>,
    vocab: usize,
    head: &Arc<FlexMatrix>,
    targets: &[SoftTarget],
    denominator: f32,
) -> Tensor<1> {
    let rows: Vec<usize> = targets.iter().map(SoftTarget::row).collect();
    over_rows(hidden, vocab, head, &rows, |i, row| of_row(&targets[i], denominator, row))
}

/// Turns a position's logits into the loss's gradient by them; returns the loss.
fn of_row(target: &SoftTarget, denominator: f32, row: &mut [f32]) -> f64 {
    let teacher = target.teacher(row.len());
    let weight = f64::from(target.weight() / denominator);
    let along: f64 = target.tokens().iter().zip(&teacher.probs).map(|(t, p)| p * f64::from(row[*t as usize])).sum();
    let (max, _) = exp_row(row);
    // The tail is added up alone: as 1 - Q it would vanish in rounding where the student is sure.
    let listed: Vec<f32> = target.tokens().iter().map(|t| std::mem::take(&mut row[*t as usize])).collect();
    let in_tail = sum(row);
    let all = in_tail + listed.iter().map(|x| f64::from(*x)).sum::<f64>();
    let mut loss = teacher.negentropy + teacher.mass * (f64::from(max) + all.ln()) - along;
    let mut factor = teacher.mass / all;
    if teacher.tail > 0.0 {
        loss -= teacher.tail * (f64::from(max) + in_tail.ln());
        factor -= teacher.tail / in_tail;
    }
    let factor = (weight * factor) as f32;
    for x in row.iter_mut() {
        *x *= factor;
    }
    for ((t, x), p) in target.tokens().iter().zip(&listed).zip(&teacher.probs) {
        row[*t as usize] = (weight * (teacher.mass * f64::from(*x) / all - p)) as f32;
    }
    weight * loss
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
