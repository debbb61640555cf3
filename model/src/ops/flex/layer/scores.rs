//! From products of queries and keys to weights and back, 32 by 32: scale, soft cap, exponentials, sums, and the gradient.

use super::super::bf16::Square;
use super::super::kernels::{dot, exp, max_of};
use super::super::simd::vectorised;
use crate::ops::AttentionPlan;

/// Scores this small need not be shifted before their exponentials are added up: e^60 times a row of any length, and what
/// values do to it, stays inside float32, and so does e^-60.
pub const SMALL: f32 = 60.0;

/// The largest length of `n` rows `[n, d]`, `stride` apart.
pub fn longest(x: &[f32], stride: usize, n: usize, d: usize) -> f32 {
    (0..n).map(|i| dot(&x[i * stride..][..d], &x[i * stride..][..d])).fold(0.0, f32::max).sqrt()
}

/// What turns products of queries and keys into scores.
#[derive(Clone, Copy)]
pub struct Scores {
    pub scale: f32,
    pub softcap: Option<f32>,
}

impl Scores {
    pub fn of(plan: &AttentionPlan) -> Scores {
        Scores { scale: plan.scale, softcap: plan.softcap }
    }

    /// Caps products, where there is a cap, and says what they must be multiplied by to be scores.
    pub fn cap(self, square: &mut Square) -> f32 {
        match self.softcap {
            Some(cap) => {
                cap_square(square, self.scale, cap);
                1.0
            }
            None => self.scale,
        }
    }

    /// No score is larger.
    pub fn bound(self, queries: f32, keys: f32) -> f32 {
        // Lengths are of float32 queries and keys, the products perhaps of rounded ones.
        let bound = 1.02 * self.scale.abs() * queries * keys;
        self.softcap.map_or(bound, |cap| cap.min(bound))
    }
}

vectorised! {
    /// `cap · tanh(scale · x / cap)`.
    fn cap_square(square: &mut Square, scale: f32, cap: f32) {
        let twice = 2.0 * scale / cap;
        for x in square.as_flattened_mut() {
            *x = cap - 2.0 * cap / (exp(*x * twice) + 1.0);
        }
    }
}

vectorised! {
    /// Takes each row's largest, times `scale`, into `max`.
    pub fn max_square(square: &Square, scale: f32, max: &mut [f32]) {
        for (row, max) in square.iter().zip(max) {
            let largest = max_of(row, f32::NEG_INFINITY) * scale;
            *max = if largest > *max { largest } else { *max };
        }
    }
}

vectorised! {
    /// `e^(scale · x - shift)` of each row.
    pub fn exp_square(square: &mut Square, scale: f32, shift: &[f32]) {
        for (row, shift) in square.iter_mut().zip(shift) {
            for x in row.iter_mut() {
                *x = exp(x.mul_add(scale, -shift));
            }
        }
    }
}

vectorised! {
    /// `e^(scale · x - shift) · inverse` of each row.
    pub fn weights_square(square: &mut Square, scale: f32, normalisers: &[[f32; 2]]) {
        for (row, [shift, inverse]) in square.iter_mut().zip(normalisers) {
            for x in row.iter_mut() {
                *x = exp(x.mul_add(scale, -shift)) * inverse;
            }
        }
    }
}

vectorised! {
    /// As [`exp_square`], and adds each row up.
    pub fn exp_sum_square(square: &mut Square, scale: f32, shift: &[f32], sum: &mut [f32]) {
        for ((row, shift), sum) in square.iter_mut().zip(shift).zip(sum) {
            let mut lanes = [0f32; 16];
            for j in 0..16 {
                row[j] = exp(row[j].mul_add(scale, -shift));
                row[j + 16] = exp(row[j + 16].mul_add(scale, -shift));
                lanes[j] = row[j] + row[j + 16];
            }
            *sum += lanes.iter().sum::<f32>();
        }
    }
}

vectorised! {
    pub fn sum_square(square: &Square, sum: &mut [f32]) {
        for (row, sum) in square.iter().zip(sum) {
            let mut lanes = [0f32; 16];
            for j in 0..16 {
                lanes[j] = row[j] + row[j + 16];
            }
            *sum += lanes.iter().sum::<f32>();
        }
    }
}

vectorised! {
    /// The scores' gradient from the weights and theirs; `along` is each row's sum of weight times gradient.
    pub fn score_gradient_square(dp: &mut Square, p: &Square, along: &[f32], scale: f32) {
        for ((dp, p), along) in dp.iter_mut().zip(p).zip(along) {
            for (dp, p) in dp.iter_mut().zip(p) {
                *dp = p * (*dp - along) * scale;
            }
        }
    }
}

vectorised! {
    /// The gradient goes on through the soft cap: times `1 - (score / cap)²`.
    pub fn uncap_square(ds: &mut Square, scores: &Square, cap: f32) {
        for (ds, x) in ds.as_flattened_mut().iter_mut().zip(scores.as_flattened()) {
            *ds *= 1.0 - (x / cap) * (x / cap);
        }
    }
}
