//! Columns scaled by a trained vector, with their bias: what DoRA adds to a linear layer, in parallel over rows.

use super::{Flex, FlexTensor, dims, flex, primitive, slice, tensor};
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops as Prepared, OpsKind};
use burn::tensor::Tensor;
use rayon::prelude::*;
use std::sync::Arc;

/// Rows a task.
const ROWS: usize = 64;

#[derive(Debug)]
struct ScaleBackward;

impl Backward<Flex, 2> for ScaleBackward {
    /// Input and scale.
    type State = (FlexTensor, FlexTensor);

    fn backward(self, ops: Prepared<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (y, scale) = ops.state;
        let grad = grads.consume::<Flex>(&ops.node).to_contiguous();
        let [n, width] = dims(&y);
        let (ys, gs, scales) = (slice(&y), slice(&grad), slice(&scale));
        let [y_node, scale_node] = ops.parents;
        if let Some(node) = scale_node {
            grads.register::<Flex>(node.id, flex(column_sums(gs, Some(ys), width), [1, width]));
        }
        if let Some(node) = y_node {
            let mut out = vec![0f32; n * width];
            out.par_chunks_mut(width.max(1) * ROWS).zip(gs.par_chunks(width.max(1) * ROWS)).for_each(|(out, g)| {
                for (out, g) in out.chunks_exact_mut(width).zip(g.chunks_exact(width)) {
                    for ((out, g), s) in out.iter_mut().zip(g).zip(scales) {
                        *out = g * s;
                    }
                }
            });
            grads.register::<Flex>(node.id, flex(out, [n, width]));
        }
    }
}

/// `Σ g` of each column, or `Σ g · y`: blocks of rows apart, added in their order.
pub(super) fn column_sums(g: &[f32], y: Option<&[f32]>, width: usize) -> Vec<f32> {
    let chunk = width.max(1) * ROWS;
    let block = |i: usize, g: &[f32]| -> Vec<f32> {
        let mut sums = vec![0f32; width];
        for (r, g) in g.chunks_exact(width).enumerate() {
            match y {
                None => sums.iter_mut().zip(g).for_each(|(sum, g)| *sum += g),
                Some(y) => {
                    let y = &y[i * chunk + r * width..][..width];
                    sums.iter_mut().zip(g.iter().zip(y)).for_each(|(sum, (g, y))| *sum += g * y);
                }
            }
        }
        sums
    };
    let blocks: Vec<Vec<f32>> = g.par_chunks(chunk).enumerate().map(|(i, g)| block(i, g)).collect();
    let mut total = vec![0f32; width];
    for sums in blocks {
        total.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
    }
    total
}

/// `y ⊙ scale + bias`, `scale` being `[1, width]`.
pub(super) fn scale_columns(y: Tensor<2>, scale: Tensor<2>, bias: Option<&Arc<Vec<f32>>>) -> Tensor<2> {
    let (y, scale) = (primitive(y), primitive(scale));
    let (input, factors) = (y.primitive().to_contiguous(), scale.primitive().to_contiguous());
    let [n, width] = dims(&input);
    let scales = slice(&factors);
    let mut out = slice(&input).to_vec();
    out.par_chunks_mut(width.max(1) * ROWS).for_each(|rows| {
        for row in rows.chunks_exact_mut(width) {
            row.iter_mut().zip(scales).for_each(|(y, s)| *y *= s);
            if let Some(bias) = bias {
                row.iter_mut().zip(bias.iter()).for_each(|(y, b)| *y += b);
            }
        }
    });
    let out = flex(out, [n, width]);
    tensor(match ScaleBackward.prepare::<NoCheckpointing>([y.node(), scale.node()]).compute_bound().stateful() {
        OpsKind::Tracked(p) => p.finish((input, factors), out),
        OpsKind::UnTracked(p) => p.finish(out),
    })
}
