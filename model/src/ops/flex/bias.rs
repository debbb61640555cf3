//! The frozen bias of a linear layer: added to every row, invisible to the gradient.

use super::{Flex, dims, flex, primitive, slice, tensor};
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops as Prepared, OpsKind};
use burn::tensor::Tensor;
use rayon::prelude::*;
use std::sync::Arc;

/// Rows a task.
const ROWS: usize = 64;

#[derive(Debug)]
struct BiasBackward;

impl Backward<Flex, 1> for BiasBackward {
    type State = ();

    fn backward(self, ops: Prepared<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        if let [Some(parent)] = ops.parents {
            grads.register::<Flex>(parent.id, grad);
        }
    }
}

pub(super) fn add_bias(y: Tensor<2>, bias: &Arc<Vec<f32>>) -> Tensor<2> {
    let y = primitive(y);
    let input = y.primitive().to_contiguous();
    let [n, width] = dims(&input);
    let mut out = slice(&input).to_vec();
    out.par_chunks_mut(width.max(1) * ROWS).for_each(|rows| {
        for row in rows.chunks_exact_mut(width) {
            row.iter_mut().zip(bias.iter()).for_each(|(y, b)| *y += b);
        }
    });
    let out = flex(out, [n, width]);
    tensor(match BiasBackward.prepare::<NoCheckpointing>([y.node()]).compute_bound().stateful() {
        OpsKind::Tracked(p) => p.finish((), out),
        OpsKind::UnTracked(p) => p.finish(out),
    })
}
