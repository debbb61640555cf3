//! The head: cross-entropy at label positions, in blocks of rows so that full logits never exist, and plain logits. The
//! loss computes its gradient on the way, for the probabilities are at hand only there.

use super::bf16::{Left, product};
use super::buffer::Buffer;
use super::kernels::{Threads, View, dot, exp_row, matmul};
use super::linear::backward_of;
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
pub(super) const BLOCK: usize = 256;

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

/// The gradient that the logits' gradient `dl` (`[m, vocab]`) sends to their rows, `[m, width]`.
fn hidden_gradient(dl: &[f32], m: usize, width: usize, vocab: usize, head: &FlexMatrix) -> Vec<f32> {
    let mut dx = vec![0f32; m * width];
    match head {
        FlexMatrix::F32 { w, .. } => {
            let (dl, w) = (View::rows(dl, vocab), View::rows(w, width));
            matmul([m, vocab, width], &mut dx, width, false, dl, w, 1.0, Threads::All);
        }
        FlexMatrix::Bf16 { engine, backward, .. } => {
            let dl = Left::from_rows(dl, vocab, m, vocab);
            product(*engine, true, &mut dx, width, false, &[(&dl, backward_of(backward).all())]);
        }
    }
    dx
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

pub(super) fn gather(rows: impl Iterator<Item = usize>, data: &[f32], width: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for row in rows {
        out.extend_from_slice(&data[row * width..][..width]);
    }
    out
}

/// Turns a block's logits into the loss's gradient by them, and gives the block's loss.
pub(super) fn softmax_gradient(logits: &mut [f32], vocab: usize, block: &[Target], denominator: f32) -> f64 {
    let losses: Vec<f64> = logits
        .par_chunks_mut(vocab)
        .zip(block.par_iter())
        .map(|(row, target)| {
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
        .collect();
    losses.iter().sum()
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
    let prepared = CrossEntropyBackward.prepare::<NoCheckpointing>([hidden.node()]).compute_bound().stateful();
    // A look at the loss needs no gradient, and a head that is frozen for inference could not give one.
    let tracked = matches!(prepared, OpsKind::Tracked(_));
    let mut d_hidden = vec![0f32; if tracked { n * width } else { 0 }];
    let mut loss = 0f64;
    for block in targets.chunks(BLOCK) {
        let m = block.len();
        let x = gather(block.iter().map(|t| t.row), xs, width);
        let mut logits = logits_of_rows(&x, m, width, vocab, head);
        loss += softmax_gradient(&mut logits, vocab, block, denominator);
        if !tracked {
            continue;
        }
        let dx = hidden_gradient(&logits, m, width, vocab, head);
        for (target, dx) in block.iter().zip(dx.chunks_exact(width)) {
            for (a, x) in d_hidden[target.row * width..][..width].iter_mut().zip(dx) {
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
