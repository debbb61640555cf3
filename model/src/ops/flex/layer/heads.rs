//! Norms over each head of queries and keys, between their product and their rotation.

use super::pointwise::inverse_rms;
use crate::ops::flex::buffer::Buffer;
use crate::ops::flex::kernels::dot;
use crate::ops::flex::simd::vectorised;
use rayon::prelude::*;

/// Rows a task.
const ROWS: usize = 256;

/// What a norm's backward pass reads: its input `[tokens, heads · d]`, and 1 / rms `[tokens, heads]`.
#[derive(Debug)]
pub struct Normed {
    pub x: Buffer,
    inverse: Buffer,
}

vectorised! {
    fn norm_rows(x: &mut [f32], weight: &[f32], inverse: &[f32]) {
        for (x, inverse) in x.chunks_exact_mut(weight.len()).zip(inverse) {
            for (x, weight) in x.iter_mut().zip(weight) {
                *x = *x * inverse * weight;
            }
        }
    }
}

/// Norms each head of `x` in place; the weight is `[d]`.
pub fn forward(x: &mut [f32], weight: &[f32], eps: f32) -> Normed {
    let d = weight.len();
    let inverse = inverse_rms(x, d, eps);
    let mut kept = Buffer::take(x.len());
    kept.copy_from_slice(x);
    x.par_chunks_mut(d * ROWS).zip(inverse.par_chunks(ROWS)).for_each(|(x, inverse)| norm_rows(x, weight, inverse));
    Normed { x: kept, inverse }
}

vectorised! {
    fn row_backward(dy: &mut [f32], x: &[f32], weight: &[f32], inverse: f32) {
        for (dy, weight) in dy.iter_mut().zip(weight) {
            *dy *= weight;
        }
        let along = dot(x, dy) * inverse * inverse * inverse / weight.len() as f32;
        for (dy, x) in dy.iter_mut().zip(x) {
            *dy = *dy * inverse - x * along;
        }
    }
}

/// From the gradient of the norms' output, `[heads, tokens, d]`, to that of their input, in place.
pub fn backward(normed: &Normed, weight: &[f32], tokens: usize, dy: &mut [f32]) {
    let (d, heads) = (weight.len(), normed.inverse.len() / tokens);
    dy.par_chunks_mut(tokens * d).enumerate().for_each(|(head, dy)| {
        for (token, dy) in dy.chunks_exact_mut(d).enumerate() {
            let at = token * heads + head;
            row_backward(dy, &normed.x[at * d..][..d], weight, normed.inverse[at]);
        }
    });
}
