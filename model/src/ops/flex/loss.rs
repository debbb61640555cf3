//! The head: losses at label positions, in blocks of rows so that full logits never exist, and plain logits. A loss
//! computes its gradient on the way, for the probabilities are at hand only there.

use super::buffer::Buffer;
use super::kernels::{Threads, dot, exp_row};
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

/// Label positions a block.
const BLOCK: usize = 256;

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

fn gather(rows: impl Iterator<Item = usize>, data: &[f32], width: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for row in rows {
        out.extend_from_slice(&data[row * width..][..width]);
    }
    out
}

/// A loss that is a sum over positions, the hidden states at `rows`. `of_row(i, logits)` turns position `i`'s logits into
/// the gradient by them and returns its loss.
pub(super) fn over_rows(
    hidden: Tensor<2>,
    vocab: usize,
    head: &Arc<FlexMatrix>,
    rows: &[usize],
    of_row: impl Fn(usize, &mut [f32]) -> f64 + Sync,
) -> Tensor<1> {
    let hidden = primitive(hidden);
    let input = hidden.primitive().to_contiguous();
    let [n, width] = dims(&input);
    let xs = slice(&input);
    let mut d_hidden = vec![0f32; n * width];
    let mut loss = 0f64;
    for (number, block) in rows.chunks(BLOCK).enumerate() {
        let m = block.len();
        let x = gather(block.iter().copied(), xs, width);
        let mut logits = logits_of_rows(&x, m, width, vocab, head);
        let losses: Vec<f64> =
            logits.par_chunks_mut(vocab).enumerate().map(|(i, row)| of_row(number * BLOCK + i, row)).collect();
        loss += losses.iter().sum::<f64>();
        let dx = hidden_gradient(&logits, m, width, vocab, head);
        for (row, dx) in block.iter().zip(dx.chunks_exact(width)) {
            for (a, x) in d_hidden[row * width..][..width].iter_mut().zip(dx) {
                *a += x;
            }
        }
    }
    let bytes = burn::tensor::Bytes::from_elems(vec![loss as f32]);
    let out = FlexTensor::new(bytes, Layout::contiguous(Shape::from(vec![1])), DType::F32);
    let out = match LossBackward.prepare::<NoCheckpointing>([hidden.node()]).compute_bound().stateful() {
        OpsKind::Tracked(p) => p.finish(flex(d_hidden, [n, width]), out),
        OpsKind::UnTracked(p) => p.finish(out),
    };
    Tensor::from_primitive::<Ad>(out)
}

pub(super) fn linear_cross_entropy(
    hidden: Tensor<2>,
    vocab: usize,
    head: &Arc<FlexMatrix>,
    targets: &[Target],
    denominator: f32,
) -> Tensor<1> {
    let rows: Vec<usize> = targets.iter().map(|t| t.row).collect();
    over_rows(hidden, vocab, head, &rows, |i, row| {
        let target = &targets[i];
        let wanted = row[target.token as usize];
        let (max, sum) = exp_row(row);
        let weight = target.weight / denominator;
        let factor = weight / sum;
        for x in row.iter_mut() {
            *x *= factor;
        }
        row[target.token as usize] -= weight;
        weight as f64 * ((sum as f64).ln() + max as f64 - wanted as f64)
    })
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
                FlexMatrix::Bf16 { .. } | FlexMatrix::Codes { .. } => {
                    weights.clear();
                    head.push_row(token as usize, width, &mut weights);
                    dot(x, &weights)
                }
            };
            tokens.iter().map(logit).collect()
        })
        .collect()
}
