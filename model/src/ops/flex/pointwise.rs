//! RMSNorm and the residual sum with their gradients, in parallel over rows. burn's own elementwise ops on this
//! backend run on one thread, so that none is left in a step.

use super::kernels::dot;
use super::{Flex, FlexTensor, dims, flex, primitive, slice, tensor};
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops as Prepared, OpsKind};
use burn::tensor::Tensor;
use rayon::prelude::*;
use std::sync::Arc;

/// Rows a task: enough work to pay for the hand-over.
const ROWS: usize = 32;

#[derive(Debug)]
struct RmsNormBackward;

impl Backward<Flex, 1> for RmsNormBackward {
    /// Input, weight, and 1 / rms a row.
    type State = (FlexTensor, Arc<Vec<f32>>, Arc<Vec<f32>>);

    fn backward(self, ops: Prepared<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (x, weight, inverse_rms) = ops.state;
        let grad = grads.consume::<Flex>(&ops.node).to_contiguous();
        let [Some(parent)] = ops.parents else { return };
        let [n, width] = dims(&x);
        let (xs, gs) = (slice(&x), slice(&grad));
        let mut out = vec![0f32; n * width];
        out.par_chunks_mut(width * ROWS).enumerate().for_each(|(task, out)| {
            let mut scaled = vec![0f32; width];
            for (r, out) in out.chunks_exact_mut(width).enumerate() {
                let i = task * ROWS + r;
                let (x, g, inv) = (&xs[i * width..][..width], &gs[i * width..][..width], inverse_rms[i]);
                for j in 0..width {
                    scaled[j] = g[j] * weight[j];
                }
                let along = dot(x, &scaled) * inv * inv * inv / width as f32;
                for j in 0..width {
                    out[j] = scaled[j] * inv - x[j] * along;
                }
            }
        });
        grads.register::<Flex>(parent.id, flex(out, [n, width]));
    }
}

pub(super) fn rms_norm(x: Tensor<2>, weight: &Arc<Vec<f32>>, eps: f32) -> Tensor<2> {
    let x = primitive(x);
    let input = x.primitive().to_contiguous();
    let [n, width] = dims(&input);
    let xs = slice(&input);
    let mut out = vec![0f32; n * width];
    let mut inverse_rms = vec![0f32; n];
    out.par_chunks_mut(width * ROWS).zip(inverse_rms.par_chunks_mut(ROWS)).enumerate().for_each(
        |(task, (out, inverse))| {
            for (r, (out, inverse)) in out.chunks_exact_mut(width).zip(inverse).enumerate() {
                let x = &xs[(task * ROWS + r) * width..][..width];
                let inv = 1.0 / (dot(x, x) / width as f32 + eps).sqrt();
                *inverse = inv;
                for j in 0..width {
                    out[j] = x[j] * inv * weight[j];
                }
            }
        },
    );
    let out = flex(out, [n, width]);
    tensor(match RmsNormBackward.prepare::<NoCheckpointing>([x.node()]).compute_bound().stateful() {
        OpsKind::Tracked(p) => p.finish((input, weight.clone(), Arc::new(inverse_rms)), out),
        OpsKind::UnTracked(p) => p.finish(out),
    })
}

/// Elements a task.
const ELEMENTS: usize = 16 * 1024;

#[derive(Debug)]
struct AddBackward;

impl Backward<Flex, 2> for AddBackward {
    type State = ();

    fn backward(self, ops: Prepared<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        let [left, right] = ops.parents;
        if let Some(node) = left {
            grads.register::<Flex>(node.id, grad.clone());
        }
        if let Some(node) = right {
            grads.register::<Flex>(node.id, grad);
        }
    }
}

pub(super) fn add(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    let (a, b) = (primitive(a), primitive(b));
    let (x, y) = (a.primitive().to_contiguous(), b.primitive().to_contiguous());
    let (xs, ys) = (slice(&x), slice(&y));
    let mut out = vec![0f32; xs.len()];
    out.par_chunks_mut(ELEMENTS).enumerate().for_each(|(task, out)| {
        let (from, n) = (task * ELEMENTS, out.len());
        for (out, (x, y)) in out.iter_mut().zip(xs[from..][..n].iter().zip(&ys[from..][..n])) {
            *out = x + y;
        }
    });
    let out = flex(out, dims(&x));
    tensor(match AddBackward.prepare::<NoCheckpointing>([a.node(), b.node()]).compute_bound().stateful() {
        OpsKind::Tracked(p) => p.finish((), out),
        OpsKind::UnTracked(p) => p.finish(out),
    })
}
