//! The layer's loops over elements: RMSNorm with its gradient and sums, by rows or by squares on their way into a
//! packed operand.

use super::super::bf16::{DEPTH, Square};
use super::super::buffer::Buffer;
use super::super::kernels::dot;
use super::super::simd::vectorised;
use rayon::prelude::*;

/// Rows a task: enough work to pay for the hand-over.
const ROWS: usize = 32;

vectorised! {
    fn inverse_rows(x: &[f32], width: usize, eps: f32, inverse_rms: &mut [f32]) {
        for (x, inverse) in x.chunks_exact(width).zip(inverse_rms) {
            *inverse = 1.0 / (dot(x, x) / width as f32 + eps).sqrt();
        }
    }
}

/// `1 / sqrt(mean(x²) + eps)` of each row.
pub fn inverse_rms(x: &[f32], width: usize, eps: f32) -> Buffer {
    let mut out = Buffer::take(x.len() / width);
    x.par_chunks(width * ROWS).zip(out.par_chunks_mut(ROWS)).for_each(|(x, out)| inverse_rows(x, width, eps, out));
    out
}

vectorised! {
    /// Adds `row` to each row of `out`.
    pub fn add_rows(out: &mut [f32], row: &[f32]) {
        for out in out.chunks_exact_mut(row.len()) {
            for (out, x) in out.iter_mut().zip(row) {
                *out += x;
            }
        }
    }
}

vectorised! {
    fn add_slices(out: &mut [f32], x: &[f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out += x;
        }
    }
}

/// `out += x`.
pub fn add(out: &mut [f32], x: &[f32]) {
    const PIECE: usize = 1 << 14;
    out.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).for_each(|(out, x)| add_slices(out, x));
}

vectorised! {
    /// A square of `x · inverse_rms · weight`.
    pub fn normed(x: &[f32], inverse_rms: &[f32], weight: &[f32], row: usize, col: usize, out: &mut Square) {
        let width = weight.len();
        let rows = (x.len() / width - row).min(DEPTH);
        let mut spare = [[0f32; DEPTH]; 2];
        let [spare_w, spare_x] = &mut spare;
        let w = row_of(weight, col, width - col, spare_w);
        for (i, out) in out[..rows].iter_mut().enumerate() {
            let inv = inverse_rms[row + i];
            let x = row_of(x, (row + i) * width + col, width - col, spare_x);
            for j in 0..DEPTH {
                out[j] = x[j] * inv * w[j];
            }
        }
    }
}

vectorised! {
    fn norm_backward_rows(x: &[f32], weight: &[f32], inverse_rms: &[f32], dy: &[f32], residual: &[f32], out: &mut [f32]) {
        let width = weight.len();
        let rows = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(residual.chunks_exact(width));
        for (((x, dy), residual), (out, inv)) in rows.zip(out.chunks_exact_mut(width).zip(inverse_rms)) {
            for ((out, dy), w) in out.iter_mut().zip(dy).zip(weight) {
                *out = dy * w;
            }
            let along = dot(x, out) * inv * inv * inv / width as f32;
            for ((out, x), residual) in out.iter_mut().zip(x).zip(residual) {
                *out = residual + (*out * inv - x * along);
            }
        }
    }
}

/// The gradient that the norm sends to its input, added to the one that went around it.
pub fn rms_norm_backward(
    x: &[f32],
    (weight, inverse_rms): (&[f32], &[f32]),
    dy: &[f32],
    residual: &[f32],
    out: &mut [f32],
) {
    let size = weight.len() * ROWS;
    x.par_chunks(size)
        .zip(dy.par_chunks(size))
        .zip(residual.par_chunks(size))
        .zip(out.par_chunks_mut(size).zip(inverse_rms.par_chunks(ROWS)))
        .for_each(|(((x, dy), residual), (out, inverse))| norm_backward_rows(x, weight, inverse, dy, residual, out));
}

/// Row `i` of a square that begins at `from`: its 32 values, or a copy of as many as there are.
#[inline(always)]
fn row_of<'a>(x: &'a [f32], from: usize, width: usize, spare: &'a mut [f32; DEPTH]) -> &'a [f32; DEPTH] {
    match x[from..].first_chunk::<DEPTH>() {
        Some(row) if width >= DEPTH => row,
        _ => {
            spare[..width].copy_from_slice(&x[from..from + width]);
            spare
        }
    }
}

vectorised! {
    /// Adds 32 values of `row` to each row of a square.
    pub fn add_row(square: &mut Square, row: &[f32]) {
        for square in square.iter_mut() {
            for (x, y) in square.iter_mut().zip(row) {
                *x += y;
            }
        }
    }
}
