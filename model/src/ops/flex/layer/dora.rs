//! DoRA inside the layer op: what a linear and its adapter give is scaled column by column, by a trained length over the row
//! norm of `W₀ + s·B·A`. The norms are constants of the step, so the gradient of a length is that of its column's scale.

use crate::ops::flex::bf16::{DEPTH, Square};
use crate::ops::flex::buffer::Buffer;
use crate::ops::flex::simd::vectorised;
use crate::ops::flex::{FlexTensor, slice};
use rayon::prelude::*;
use std::sync::Arc;

/// Rows a task.
const ROWS: usize = 32;

/// The lengths of a linear's rows.
#[derive(Debug)]
pub struct Lengths {
    /// `[1, out]`, trained.
    pub magnitude: FlexTensor,
    norms: Arc<Vec<f32>>,
    /// Magnitude over norm, a column each.
    pub scale: Vec<f32>,
}

impl Lengths {
    pub fn new(magnitude: FlexTensor, norms: Arc<Vec<f32>>) -> Self {
        let scale = slice(&magnitude).iter().zip(norms.iter()).map(|(m, norm)| m / norm).collect();
        Lengths { magnitude, norms, scale }
    }

    /// `y ⊙ scale + bias` in place.
    pub fn apply(&self, y: &mut [f32], bias: Option<&[f32]>) {
        let width = self.scale.len();
        y.par_chunks_mut(width * ROWS).for_each(|y| {
            scale_rows(y, &self.scale);
            if let Some(bias) = bias {
                super::pointwise::add_rows(y, bias);
            }
        });
    }

    /// A gradient `[n, out]` as it arrives in front of the scale.
    pub fn in_front(&self, dy: &[f32]) -> Buffer {
        let mut out = Buffer::take(dy.len());
        out.copy_from_slice(dy);
        self.apply(&mut out, None);
        out
    }

    /// The magnitudes' gradient from each column's `Σ dy · y`, `y` being the scaled product without the bias: what was
    /// scaled is `y / scale`, and `∂scale = 1 / norm`. A row of length zero gives nothing to tell it from.
    pub fn gradient(&self, sums: &[f32]) -> Vec<f32> {
        let of = |(sum, m): (&f32, &f32)| if *m == 0.0 { 0.0 } else { sum / m };
        sums.iter().zip(slice(&self.magnitude)).map(of).collect()
    }

    /// The same from `Σ du · y`, where `du` is in front of the scale.
    pub fn gradient_in_front(&self, sums: &[f32]) -> Vec<f32> {
        let of = |(sum, (m, norm)): (&f32, (&f32, &f32))| if *m == 0.0 { 0.0 } else { sum * norm / (m * m) };
        sums.iter().zip(slice(&self.magnitude).iter().zip(self.norms.iter())).map(of).collect()
    }

    /// Takes a gradient `[heads, tokens, d]` in front of the scale, in place; the magnitudes' gradient. `y` is `[tokens,
    /// heads · d]`, with the bias.
    pub fn heads_back(&self, dy: &mut [f32], y: &[f32], bias: Option<&[f32]>, tokens: usize, d: usize) -> Vec<f32> {
        let (width, zeros) = (self.scale.len(), vec![0.0; d]);
        let mut sums = vec![0f32; width];
        dy.par_chunks_mut(tokens * d).zip(sums.par_chunks_mut(d)).enumerate().for_each(|(head, (dy, sums))| {
            let columns = head * d..(head + 1) * d;
            let bias = bias.map_or(zeros.as_slice(), |bias| &bias[columns.clone()]);
            for (token, dy) in dy.chunks_exact_mut(d).enumerate() {
                add_products(sums, dy, &y[token * width + head * d..][..d], bias);
            }
            scale_rows(dy, &self.scale[columns]);
        });
        self.gradient(&sums)
    }
}

vectorised! {
    fn scale_rows(x: &mut [f32], scale: &[f32]) {
        for x in x.chunks_exact_mut(scale.len()) {
            for (x, scale) in x.iter_mut().zip(scale) {
                *x *= scale;
            }
        }
    }
}

vectorised! {
    fn add_products(sums: &mut [f32], dy: &[f32], y: &[f32], bias: &[f32]) {
        for ((sum, dy), (y, bias)) in sums.iter_mut().zip(dy).zip(y.iter().zip(bias)) {
            *sum += dy * (y - bias);
        }
    }
}

vectorised! {
    /// Multiplies each row of a square by 32 columns' scales.
    pub fn scale_square(square: &mut Square, scale: &[f32]) {
        for row in square.iter_mut() {
            for (x, scale) in row.iter_mut().zip(scale) {
                *x *= scale;
            }
        }
    }
}

/// `Σ g · (y − bias)` of each column of two matrices `[rows, cols]` that are read square by square: columns in parallel, rows
/// in their order.
pub fn column_sums(
    [rows, cols]: [usize; 2],
    g: impl Fn(usize, usize, &mut Square) + Sync,
    y: impl Fn(usize, usize, &mut Square) + Sync,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let zeros = [0f32; DEPTH];
    let mut sums = vec![0f32; cols];
    sums.par_chunks_mut(DEPTH).enumerate().for_each(|(block, sums)| {
        let col = block * DEPTH;
        let bias = bias.map_or(&zeros[..sums.len()], |bias| &bias[col..col + sums.len()]);
        let mut squares = [[[0f32; DEPTH]; DEPTH]; 2];
        let [left, right] = &mut squares;
        for row in (0..rows).step_by(DEPTH) {
            g(row, col, left);
            y(row, col, right);
            for (g, y) in left.iter().zip(&*right).take(rows - row) {
                add_products(sums, g, y, bias);
            }
        }
    });
    sums
}
