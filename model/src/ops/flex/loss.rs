//! The head: cross-entropy at label positions, and plain logits. The loss computes its gradient on the way; in bfloat16 the
//! logits are worked out twice and never stored, in float32 once, in blocks of rows.

use super::bf16::{self, DEPTH, Engine, Left, Square, product};
use super::buffer::Buffer;
use super::kernels::{Threads, View, dot, exp, exp_row, matmul};
use super::linear::backward_of;
use super::simd::vectorised;
use super::{Ad, Flex, FlexMatrix, FlexTensor, dims, flex, primitive, slice};
use crate::ops::Target;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops as Prepared, OpsKind};
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, Shape, Tensor};
use burn_flex::Layout;
use rayon::prelude::*;
use std::sync::Arc;

/// Label positions a block: bounded by their logits, or by a part of the logits' gradient.
const POSITIONS: usize = 256;
const POSITIONS_WITHOUT_LOGITS: usize = 1024;

/// `[m, vocab]` of `x`, `[m, width]`.
fn logits_of_rows(x: &[f32], m: usize, width: usize, vocab: usize, head: &FlexMatrix) -> Buffer {
    let mut logits = Buffer::take(m * vocab);
    match head {
        FlexMatrix::F32 { wt, .. } => {
            let (x, wt) = (View::rows(x, width), View::rows(wt, vocab));
            matmul([m, width, vocab], &mut logits, vocab, false, x, wt, 1.0, Threads::All);
        }
        FlexMatrix::Bf16 { engine, forward, .. } => {
            product(*engine, true, &mut logits, vocab, false, &[(&Left::from_rows(x, width, m, width), forward.all())]);
        }
    }
    logits
}

/// The loss of some label positions, and its gradient by their rows, `[m, width]`.
type LossAndGradient = (f64, Vec<f32>);

vectorised! {
    /// Turns a row of logits into the gradient by them; returns `(max, Σ e^(x - max))`.
    fn gradient_row(row: &mut [f32], weight: f32) -> (f32, f32) {
        let (max, sum) = exp_row(row);
        let factor = weight / sum;
        for x in row.iter_mut() {
            *x *= factor;
        }
        (max, sum)
    }
}

/// With all logits of the positions in memory.
fn with_logits(
    x: &[f32],
    [width, vocab]: [usize; 2],
    (w, wt): (&[f32], &[f32]),
    targets: &[Target],
    denominator: f32,
) -> LossAndGradient {
    let m = targets.len();
    let mut logits = Buffer::take(m * vocab);
    let (xv, wt) = (View::rows(x, width), View::rows(wt, vocab));
    matmul([m, width, vocab], &mut logits, vocab, false, xv, wt, 1.0, Threads::All);
    let losses: Vec<f64> = logits
        .par_chunks_mut(vocab)
        .zip(targets.par_iter())
        .map(|(row, target)| {
            let wanted = row[target.token as usize];
            let weight = target.weight / denominator;
            let (max, sum) = gradient_row(row, weight);
            row[target.token as usize] -= weight;
            weight as f64 * ((sum as f64).ln() + max as f64 - wanted as f64)
        })
        .collect();
    let mut dx = vec![0f32; m * width];
    let (dl, w) = (View::rows(&logits, vocab), View::rows(w, width));
    matmul([m, vocab, width], &mut dx, width, false, dl, w, 1.0, Threads::All);
    (losses.iter().sum(), dx)
}

/// What a rectangle of the logits tells of its rows: `max`, `Σ e^(x - max)`, and the target's logit if it lies there.
struct RowSums {
    max: Vec<f32>,
    sum: Vec<f32>,
    wanted: Vec<Option<f32>>,
}

vectorised! {
    /// Takes a square's first `cols` columns into its rows' sums.
    fn add_square(square: &Square, cols: usize, max: &mut [f32], sum: &mut [f32]) {
        for ((row, max), sum) in square.iter().zip(max).zip(sum) {
            let mut values = *row;
            values[cols..].fill(f32::NEG_INFINITY);
            let mut lanes = [f32::NEG_INFINITY; 16];
            for j in 0..16 {
                lanes[j] = if values[j] > values[j + 16] { values[j] } else { values[j + 16] };
            }
            let largest = lanes.iter().fold(*max, |a, &b| if a > b { a } else { b });
            let mut sums = [0f32; 16];
            for j in 0..16 {
                sums[j] = exp(values[j] - largest) + exp(values[j + 16] - largest);
            }
            *sum = *sum * exp(*max - largest) + sums.iter().sum::<f32>();
            *max = largest;
        }
    }
}

vectorised! {
    /// `weight · e^(x - log_sum)` of each row.
    fn probabilities(square: &mut Square, log_sum: &[f32], weight: &[f32]) {
        for ((row, log_sum), weight) in square.iter_mut().zip(log_sum).zip(weight) {
            for x in row.iter_mut() {
                *x = weight * exp(*x - log_sum);
            }
        }
    }
}

/// Columns of the logits' gradient that exist at once.
const VOCABULARY: usize = 3072;

/// Without logits in memory: one pass over the vocabulary gives each row's sum, a second one the gradient. Source: Wijmans
/// et al., "Cut Your Losses in Large-Vocabulary Language Models" (2024).
fn without_logits(
    x: &[f32],
    [width, vocab]: [usize; 2],
    (engine, forward, backward): (Engine, &bf16::Right, &bf16::Right),
    targets: &[Target],
    denominator: f32,
) -> LossAndGradient {
    let m = targets.len();
    let x = Left::from_rows(x, width, m, width);
    let found = bf16::strips(
        engine,
        [m, vocab],
        &[(&x, forward.all())],
        |rows| {
            let n = rows.len();
            RowSums { max: vec![f32::NEG_INFINITY; n], sum: vec![0.0; n], wanted: vec![None; n] }
        },
        |found, first, col, squares| {
            let cols = DEPTH.min(vocab - col);
            let targets = targets[first..].chunks(DEPTH);
            let sums = found.max.chunks_mut(DEPTH).zip(found.sum.chunks_mut(DEPTH)).zip(found.wanted.chunks_mut(DEPTH));
            for ((square, targets), ((max, sum), wanted)) in squares.iter().zip(targets).zip(sums) {
                add_square(&square.0, cols, max, sum);
                for ((row, target), wanted) in square.0.iter().zip(targets).zip(wanted) {
                    if let Some(logit) = (target.token as usize).checked_sub(col).and_then(|j| row[..cols].get(j)) {
                        *wanted = Some(*logit);
                    }
                }
            }
        },
    );
    let mut log_sums = vec![(f64::NEG_INFINITY, 0f64); m];
    let mut wanted = vec![0f64; m];
    for rectangle in found {
        let RowSums { max, sum, wanted: here } = rectangle.made;
        for (i, row) in rectangle.rows.enumerate() {
            let (so_far, total) = log_sums[row];
            let largest = so_far.max(max[i] as f64);
            let total = total * (so_far - largest).exp() + sum[i] as f64 * (max[i] as f64 - largest).exp();
            log_sums[row] = (largest, total);
            wanted[row] = here[i].map_or(wanted[row], f64::from);
        }
    }
    let weights: Vec<f32> = targets.iter().map(|target| target.weight / denominator).collect();
    let log_sums: Vec<f32> = log_sums.into_iter().map(|(max, sum)| (max + sum.ln()) as f32).collect();
    let losses = weights.iter().zip(&log_sums).zip(&wanted).map(|((w, l), x)| *w as f64 * (*l as f64 - x));
    let loss = losses.sum();

    let mut dx = vec![0f32; m * width];
    for first in (0..vocab).step_by(VOCABULARY) {
        let columns = first..vocab.min(first + VOCABULARY);
        let part = forward.part(0..width, columns.clone());
        let [dl] = bf16::fused(engine, [m, columns.len()], [&[(&x, part)]], |row, col, [square]| {
            let rows = row..m.min(row + DEPTH);
            probabilities(square, &log_sums[rows.clone()], &weights[rows.clone()]);
            for ((target, weight), square) in targets[rows.clone()].iter().zip(&weights[rows]).zip(square) {
                if let Some(x) = (target.token as usize).checked_sub(first + col).and_then(|j| square.get_mut(j)) {
                    *x -= weight;
                }
            }
        });
        product(engine, true, &mut dx, width, first > 0, &[(&dl, backward.part(columns, 0..width))]);
    }
    (loss, dx)
}

#[derive(Debug)]
struct CrossEntropyBackward;

impl Backward<Flex, 1> for CrossEntropyBackward {
    /// The gradient of the loss by the hidden states.
    type State = FlexTensor;

    fn backward(self, ops: Prepared<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node).to_contiguous();
        let upstream = slice(&grad)[0];
        if let [Some(parent)] = ops.parents {
            grads.register::<Flex>(parent.id, Flex::float_mul_scalar(ops.state, upstream.into()));
        }
    }
}

fn gather(rows: impl Iterator<Item = usize>, data: &[f32], width: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for row in rows {
        out.extend_from_slice(&data[row * width..][..width]);
    }
    out
}

pub(super) fn linear_cross_entropy(
    hidden: Tensor<2>,
    vocab: usize,
    head: &Arc<FlexMatrix>,
    targets: &[Target],
    denominator: f32,
) -> Tensor<1> {
    let hidden = primitive(hidden);
    let input = hidden.primitive().to_contiguous();
    let [n, width] = dims(&input);
    let xs = slice(&input);
    let mut d_hidden = vec![0f32; n * width];
    let mut loss = 0f64;
    let size = [width, vocab];
    for block in targets.chunks(match &**head {
        FlexMatrix::F32 { .. } => POSITIONS,
        FlexMatrix::Bf16 { .. } => POSITIONS_WITHOUT_LOGITS,
    }) {
        let x = gather(block.iter().map(|t| t.row), xs, width);
        let (of_block, dx) = match &**head {
            FlexMatrix::F32 { w, wt } => with_logits(&x, size, (w, wt), block, denominator),
            FlexMatrix::Bf16 { engine, forward, backward } => {
                without_logits(&x, size, (*engine, forward, backward_of(backward)), block, denominator)
            }
        };
        loss += of_block;
        for (target, dx) in block.iter().zip(dx.chunks_exact(width)) {
            for (a, x) in d_hidden[target.row * width..][..width].iter_mut().zip(dx) {
                *a += x;
            }
        }
    }
    let bytes = burn::tensor::Bytes::from_elems(vec![loss as f32]);
    let out = FlexTensor::new(bytes, Layout::contiguous(Shape::from(vec![1])), DType::F32);
    let out = match CrossEntropyBackward.prepare::<NoCheckpointing>([hidden.node()]).compute_bound().stateful() {
        OpsKind::Tracked(p) => p.finish(flex(d_hidden, [n, width]), out),
        OpsKind::UnTracked(p) => p.finish(out),
    };
    Tensor::from_primitive::<Ad>(out)
}

pub(super) fn logits(hidden: &Tensor<2>, vocab: usize, width: usize, head: &FlexMatrix, rows: &[usize]) -> Vec<f32> {
    let input = primitive(hidden.clone()).primitive().to_contiguous();
    let x = gather(rows.iter().copied(), slice(&input), width);
    logits_of_rows(&x, rows.len(), width, vocab, head).to_vec()
}

pub(super) fn logits_of(
    hidden: &Tensor<2>,
    width: usize,
    head: &FlexMatrix,
    queries: &[(usize, Vec<u32>)],
) -> Vec<Vec<f32>> {
    let input = primitive(hidden.clone()).primitive().to_contiguous();
    let xs = slice(&input);
    let mut weights = Vec::new();
    queries
        .iter()
        .map(|(row, tokens)| {
            let x = &xs[row * width..][..width];
            let logit = |&token: &u32| match head {
                FlexMatrix::F32 { w, .. } => dot(x, &w[token as usize * width..][..width]),
                FlexMatrix::Bf16 { .. } => {
                    weights.clear();
                    head.push_row(token as usize, width, &mut weights);
                    dot(x, &weights)
                }
            };
            tokens.iter().map(logit).collect()
        })
        .collect()
}
