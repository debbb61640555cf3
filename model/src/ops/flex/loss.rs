//! The head: losses at label positions, in blocks of them so that full logits never exist, and plain logits. A loss computes
//! its gradient on the way; cross-entropy in bfloat16 works the logits out twice and never stores them.

use super::bf16::{self, DEPTH, Engine, Left, Square, product};
use super::blocks;
use super::buffer::Buffer;
use super::kernels::{Threads, dot, exp, exp_row, max_of};
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
pub(super) const POSITIONS: usize = 256;
const POSITIONS_WITHOUT_LOGITS: usize = 1024;

/// `[m, vocab]` of `x`, `[m, width]`.
fn logits_of_rows(x: &[f32], m: usize, width: usize, vocab: usize, head: &FlexMatrix) -> Buffer {
    let mut logits = Buffer::take(m * vocab);
    let c = head.compute();
    let x = c.left_rows(x, width, m, width);
    c.product(Threads::All, &mut logits, vocab, false, &[(&x, head.forward(vocab))]);
    logits
}

/// The gradient that the logits' gradient `dl` (`[m, vocab]`) sends to their rows, `[m, width]`.
fn hidden_gradient(dl: &[f32], m: usize, width: usize, vocab: usize, head: &FlexMatrix) -> Vec<f32> {
    let mut dx = vec![0f32; m * width];
    let c = head.compute();
    let dl = c.left_rows(dl, vocab, m, vocab);
    c.product(Threads::All, &mut dx, width, false, &[(&dl, head.backward(width))]);
    dx
}

#[derive(Debug)]
struct LossBackward;

impl Backward<Flex, 1> for LossBackward {
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

pub(super) fn gather(rows: impl Iterator<Item = usize>, data: &[f32], width: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for row in rows {
        out.extend_from_slice(&data[row * width..][..width]);
    }
    out
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

/// Turns a position's logits into the loss's gradient by them; returns the loss.
fn cross_entropy_row(row: &mut [f32], target: &Target, denominator: f32) -> f64 {
    let wanted = row[target.token as usize];
    let weight = target.weight / denominator;
    let (max, sum) = gradient_row(row, weight);
    row[target.token as usize] -= weight;
    weight as f64 * ((sum as f64).ln() + max as f64 - wanted as f64)
}

/// The same for a block, side by side.
pub(super) fn cross_entropy_rows(logits: &mut [f32], vocab: usize, block: &[Target], denominator: f32) -> f64 {
    let rows = logits.par_chunks_mut(vocab).zip(block.par_iter());
    let losses: Vec<f64> = rows.map(|(row, target)| cross_entropy_row(row, target, denominator)).collect();
    losses.iter().sum()
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
            let largest = max_of(&values, *max);
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

/// A loss that is a sum over positions, the hidden states at `rows`: `of_block` gets the first position of a block of
/// `size`, their hidden states, and whether their gradient is wanted.
fn over_blocks(
    hidden: Tensor<2>,
    rows: &[usize],
    size: usize,
    of_block: impl Fn(usize, &[f32], bool) -> LossAndGradient,
) -> Tensor<1> {
    let hidden = primitive(hidden);
    let input = hidden.primitive().to_contiguous();
    let [n, width] = dims(&input);
    let xs = slice(&input);
    let prepared = LossBackward.prepare::<NoCheckpointing>([hidden.node()]).compute_bound().stateful();
    // A look at the loss needs no gradient, and a head that is frozen for inference could not give one.
    let tracked = matches!(prepared, OpsKind::Tracked(_));
    let mut d_hidden = vec![0f32; if tracked { n * width } else { 0 }];
    let mut loss = 0f64;
    for (number, block) in rows.chunks(size).enumerate() {
        let (of_block, dx) = of_block(number * size, &gather(block.iter().copied(), xs, width), tracked);
        loss += of_block;
        if !tracked {
            continue;
        }
        for (row, dx) in block.iter().zip(dx.chunks_exact(width)) {
            for (a, x) in d_hidden[row * width..][..width].iter_mut().zip(dx) {
                *a += x;
            }
        }
    }
    let bytes = burn::tensor::Bytes::from_elems(vec![loss as f32]);
    let out = FlexTensor::new(bytes, Layout::contiguous(Shape::from(vec![1])), DType::F32);
    let out = match prepared {
        OpsKind::Tracked(p) => p.finish(flex(d_hidden, [n, width]), out),
        OpsKind::UnTracked(p) => p.finish(out),
    };
    Tensor::from_primitive::<Ad>(out)
}

/// [`over_blocks`] with the block's logits in memory: `of_row(i, logits)` turns position `i`'s logits into the gradient by
/// them and returns its loss.
pub(super) fn over_rows(
    hidden: Tensor<2>,
    vocab: usize,
    head: &Arc<FlexMatrix>,
    rows: &[usize],
    of_row: impl Fn(usize, &mut [f32]) -> f64 + Sync,
) -> Tensor<1> {
    let [_, width] = hidden.dims();
    over_blocks(hidden, rows, POSITIONS, |first, x, tracked| {
        let m = x.len() / width;
        let mut logits = logits_of_rows(x, m, width, vocab, head);
        let losses: Vec<f64> =
            logits.par_chunks_mut(vocab).enumerate().map(|(i, row)| of_row(first + i, row)).collect();
        let dx = if tracked { hidden_gradient(&logits, m, width, vocab, head) } else { Vec::new() };
        (losses.iter().sum(), dx)
    })
}

pub(super) fn linear_cross_entropy(
    hidden: Tensor<2>,
    vocab: usize,
    head: &Arc<FlexMatrix>,
    targets: &[Target],
    denominator: f32,
) -> Tensor<1> {
    let rows: Vec<usize> = targets.iter().map(|t| t.row).collect();
    if let FlexMatrix::Bf16 { engine, forward, backward: Some(backward) } = &**head {
        let [_, width] = hidden.dims();
        let head = (*engine, forward, backward);
        return over_blocks(hidden, &rows, POSITIONS_WITHOUT_LOGITS, |first, x, _| {
            let targets = &targets[first..][..x.len() / width];
            without_logits(x, [width, vocab], head, targets, denominator)
        });
    }
    over_rows(hidden, vocab, head, &rows, |i, row| cross_entropy_row(row, &targets[i], denominator))
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
            if let FlexMatrix::Blocks { matrix, .. } = head {
                return blocks::dots(x, matrix, tokens);
            }
            let logit = |&token: &u32| match head {
                FlexMatrix::F32 { w, .. } => dot(x, &w[token as usize * width..][..width]),
                _ => {
                    weights.clear();
                    head.push_row(token as usize, width, &mut weights);
                    dot(x, &weights)
                }
            };
            tokens.iter().map(logit).collect()
        })
        .collect()
}
