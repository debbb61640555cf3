//! What a full fine-tuning trains beside the frozen kernels: linear maps, norms, the embedding and the head, each with the
//! gradient of its weight. Weights change with every step, so nothing of them stays packed.

use super::compute::{Compute, Left, Right};
use super::divergence::of_row;
use super::kernels::{Threads, dot};
use super::loss::{POSITIONS, cross_entropy_rows, gather};
use super::scale::column_sums;
use super::{Ad, Flex, FlexTensor, dims, flex, primitive, slice, tensor};
use crate::divergence::Divergence;
use crate::ops::{SoftTarget, Target};
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops as Prepared, OpsKind};
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, Shape, Tensor};
use burn_flex::Layout;
use rayon::prelude::*;

/// `left · right` into a new matrix of `cols` columns.
fn product(compute: Compute, rows: usize, cols: usize, left: &Left, right: &Right) -> Vec<f32> {
    let mut out = vec![0f32; rows * cols];
    compute.product(Threads::All, &mut out, cols, false, &[(left, right.all())]);
    out
}

#[derive(Debug)]
struct LinearBackward;

impl Backward<Flex, 2> for LinearBackward {
    /// Input and weight.
    type State = (FlexTensor, FlexTensor, Compute);

    fn backward(self, ops: Prepared<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (x, w, compute) = ops.state;
        let grad = grads.consume::<Flex>(&ops.node).to_contiguous();
        let ([n, n_in], [n_out, _]) = (dims(&x), dims(&w));
        let dy = slice(&grad);
        let [x_node, w_node] = ops.parents;
        if let Some(node) = x_node {
            let (dy, w) = (compute.left_rows(dy, n_out, n, n_out), compute.right_rows(slice(&w), n_in, n_out, n_in));
            grads.register::<Flex>(node.id, flex(product(compute, n, n_in, &dy, &w), [n, n_in]));
        }
        if let Some(node) = w_node {
            let (dy, x) = (compute.left_columns(dy, n_out, n_out, n), compute.right_rows(slice(&x), n_in, n, n_in));
            grads.register::<Flex>(node.id, flex(product(compute, n_out, n_in, &dy, &x), [n_out, n_in]));
        }
    }
}

/// `x Wᵀ`, `w` being `[out, in]`.
pub(super) fn linear(compute: Compute, x: Tensor<2>, w: Tensor<2>) -> Tensor<2> {
    let (x, w) = (primitive(x), primitive(w));
    let (input, weight) = (x.primitive().to_contiguous(), w.primitive().to_contiguous());
    let ([n, n_in], [n_out, _]) = (dims(&input), dims(&weight));
    let y = {
        let left = compute.left_rows(slice(&input), n_in, n, n_in);
        let right = compute.right_columns(slice(&weight), n_in, n_in, n_out);
        flex(product(compute, n, n_out, &left, &right), [n, n_out])
    };
    tensor(match LinearBackward.prepare::<NoCheckpointing>([x.node(), w.node()]).compute_bound().stateful() {
        OpsKind::Tracked(p) => p.finish((input, weight, compute), y),
        OpsKind::UnTracked(p) => p.finish(y),
    })
}

#[derive(Debug)]
struct EmbedBackward;

impl Backward<Flex, 1> for EmbedBackward {
    /// Tokens, and the table's shape.
    type State = (Vec<u32>, [usize; 2]);

    fn backward(self, ops: Prepared<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (tokens, [vocab, width]) = ops.state;
        let grad = grads.consume::<Flex>(&ops.node).to_contiguous();
        let [Some(parent)] = ops.parents else { return };
        let mut out = vec![0f32; vocab * width];
        for (token, g) in tokens.iter().zip(slice(&grad).chunks_exact(width)) {
            out[*token as usize * width..][..width].iter_mut().zip(g).for_each(|(sum, g)| *sum += g);
        }
        grads.register::<Flex>(parent.id, flex(out, [vocab, width]));
    }
}

/// Rows of the table.
pub(super) fn embed(table: Tensor<2>, tokens: &[u32]) -> Tensor<2> {
    let table = primitive(table);
    let weight = table.primitive().to_contiguous();
    let [vocab, width] = dims(&weight);
    let rows = gather(tokens.iter().map(|&t| t as usize), slice(&weight), width);
    let out = flex(rows, [tokens.len(), width]);
    tensor(match EmbedBackward.prepare::<NoCheckpointing>([table.node()]).compute_bound().stateful() {
        OpsKind::Tracked(p) => p.finish((tokens.to_vec(), [vocab, width]), out),
        OpsKind::UnTracked(p) => p.finish(out),
    })
}

/// Rows a task.
const ROWS: usize = 32;

#[derive(Debug)]
struct RmsNormBackward;

impl Backward<Flex, 2> for RmsNormBackward {
    /// `x / rms`, 1 / rms a row, and the weight.
    type State = (Vec<f32>, Vec<f32>, FlexTensor);

    fn backward(self, ops: Prepared<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (unit, inverse_rms, weight) = ops.state;
        let grad = grads.consume::<Flex>(&ops.node).to_contiguous();
        let [n, width] = dims(&grad);
        let (gs, w) = (slice(&grad), slice(&weight));
        let [x_node, w_node] = ops.parents;
        if let Some(node) = w_node {
            grads.register::<Flex>(node.id, flex(column_sums(gs, Some(&unit), width), [1, width]));
        }
        let Some(node) = x_node else { return };
        let mut out = vec![0f32; n * width];
        out.par_chunks_mut(width * ROWS).enumerate().for_each(|(task, out)| {
            for (r, out) in out.chunks_exact_mut(width).enumerate() {
                let i = task * ROWS + r;
                let (unit, g) = (&unit[i * width..][..width], &gs[i * width..][..width]);
                out.iter_mut().zip(g.iter().zip(w)).for_each(|(out, (g, w))| *out = g * w);
                let along = dot(unit, out) / width as f32;
                out.iter_mut().zip(unit).for_each(|(out, u)| *out = (*out - u * along) * inverse_rms[i]);
            }
        });
        grads.register::<Flex>(node.id, flex(out, [n, width]));
    }
}

/// `x / sqrt(mean(x²) + eps) · weight`, `weight` being `[1, width]`.
pub(super) fn rms_norm(x: Tensor<2>, weight: Tensor<2>, eps: f32) -> Tensor<2> {
    let (x, weight) = (primitive(x), primitive(weight));
    let (input, w) = (x.primitive().to_contiguous(), weight.primitive().to_contiguous());
    let [n, width] = dims(&input);
    let (xs, ws) = (slice(&input), slice(&w));
    let inverse = |row: &[f32]| 1.0 / (dot(row, row) / width as f32 + eps).sqrt();
    let inverse_rms: Vec<f32> = xs.par_chunks(width).map(inverse).collect();
    let (mut unit, mut out) = (vec![0f32; n * width], vec![0f32; n * width]);
    unit.par_chunks_mut(width).zip(out.par_chunks_mut(width)).enumerate().for_each(|(i, (unit, out))| {
        for (j, x) in xs[i * width..][..width].iter().enumerate() {
            unit[j] = x * inverse_rms[i];
            out[j] = unit[j] * ws[j];
        }
    });
    let out = flex(out, [n, width]);
    tensor(match RmsNormBackward.prepare::<NoCheckpointing>([x.node(), weight.node()]).compute_bound().stateful() {
        OpsKind::Tracked(p) => p.finish((unit, inverse_rms, w), out),
        OpsKind::UnTracked(p) => p.finish(out),
    })
}

#[derive(Debug)]
struct LossBackward;

impl Backward<Flex, 2> for LossBackward {
    /// The gradients of the loss by the hidden states and by the head.
    type State = (FlexTensor, FlexTensor);

    fn backward(self, ops: Prepared<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node).to_contiguous();
        let upstream = slice(&grad)[0];
        let [hidden_node, head_node] = ops.parents;
        for (node, made) in [(hidden_node, ops.state.0), (head_node, ops.state.1)] {
            if let Some(node) = node {
                // Mostly one, and the head is the largest matrix of all.
                let made = if upstream == 1.0 { made } else { Flex::float_mul_scalar(made, upstream.into()) };
                grads.register::<Flex>(node.id, made);
            }
        }
    }
}

/// As [`super::loss::linear_cross_entropy`], with a gradient for the head too.
pub(super) fn linear_cross_entropy(
    compute: Compute,
    hidden: Tensor<2>,
    head: Tensor<2>,
    targets: &[Target],
    denominator: f32,
) -> Tensor<1> {
    let rows: Vec<usize> = targets.iter().map(|t| t.row).collect();
    over_rows(compute, hidden, head, &rows, |first, vocab, logits| {
        let block = &targets[first..][..logits.len() / vocab];
        cross_entropy_rows(logits, vocab, block, denominator)
    })
}

/// As [`super::divergence::linear_divergence`], with a gradient for the head too.
pub(super) fn linear_divergence(
    compute: Compute,
    hidden: Tensor<2>,
    head: Tensor<2>,
    targets: &[SoftTarget],
    divergence: Divergence,
    denominator: f32,
) -> Tensor<1> {
    let rows: Vec<usize> = targets.iter().map(SoftTarget::row).collect();
    over_rows(compute, hidden, head, &rows, |first, vocab, logits| {
        let of = |(i, row): (usize, &mut [f32])| of_row(&targets[first + i], divergence, denominator, row);
        let losses: Vec<f64> = logits.par_chunks_mut(vocab).enumerate().map(of).collect();
        losses.iter().sum()
    })
}

/// A sum over positions, the hidden states at `rows`: `of_block(first, vocabulary, logits)` turns the logits of some positions
/// from `first` on into the gradient by them and returns their loss.
fn over_rows(
    compute: Compute,
    hidden: Tensor<2>,
    head: Tensor<2>,
    rows: &[usize],
    of_block: impl Fn(usize, usize, &mut [f32]) -> f64,
) -> Tensor<1> {
    let (hidden, head) = (primitive(hidden), primitive(head));
    let (input, weight) = (hidden.primitive().to_contiguous(), head.primitive().to_contiguous());
    let ([n, width], [vocab, _]) = (dims(&input), dims(&weight));
    let w = slice(&weight);
    let (forward, backward) =
        (compute.right_columns(w, width, width, vocab), compute.right_rows(w, width, vocab, width));
    let (mut d_hidden, mut d_head) = (vec![0f32; n * width], vec![0f32; vocab * width]);
    let mut loss = 0f64;
    for (i, block) in rows.chunks(POSITIONS).enumerate() {
        let m = block.len();
        let x = gather(block.iter().copied(), slice(&input), width);
        let mut logits = product(compute, m, vocab, &compute.left_rows(&x, width, m, width), &forward);
        loss += of_block(i * POSITIONS, vocab, &mut logits);
        let dx = product(compute, m, width, &compute.left_rows(&logits, vocab, m, vocab), &backward);
        for (row, dx) in block.iter().zip(dx.chunks_exact(width)) {
            d_hidden[row * width..][..width].iter_mut().zip(dx).for_each(|(sum, x)| *sum += x);
        }
        let (dl, x) = (compute.left_columns(&logits, vocab, vocab, m), compute.right_rows(&x, width, m, width));
        compute.product(Threads::All, &mut d_head, width, i > 0, &[(&dl, x.all())]);
    }
    let bytes = burn::tensor::Bytes::from_elems(vec![loss as f32]);
    let out = FlexTensor::new(bytes, Layout::contiguous(Shape::from(vec![1])), DType::F32);
    let prepared = LossBackward.prepare::<NoCheckpointing>([hidden.node(), head.node()]);
    let out = match prepared.compute_bound().stateful() {
        OpsKind::Tracked(p) => p.finish((flex(d_hidden, [n, width]), flex(d_head, [vocab, width])), out),
        OpsKind::UnTracked(p) => p.finish(out),
    };
    Tensor::from_primitive::<Ad>(out)
}
