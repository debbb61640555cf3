//! GeGLU with its gradient, in parallel over pieces: `gelu(gate) · up`, where `gelu(x) = x · σ(2u)` and
//! `u = √(2/π) · (x + 0.044715 x³)`, which is the tanh formula written with a sigmoid.

use super::kernels::exp;
use super::{Flex, FlexTensor, dims, flex, primitive, slice, tensor};
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops as Prepared, OpsKind};
use burn::tensor::Tensor;
use rayon::prelude::*;

/// Elements a task.
const ELEMENTS: usize = 16 * 1024;
/// 2 · √(2/π).
const TWICE: f32 = 1.595_769_2;
const CUBIC: f32 = 0.044_715;

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-TWICE * (x + CUBIC * x * x * x)))
}

#[derive(Debug)]
struct GegluBackward;

impl Backward<Flex, 2> for GegluBackward {
    /// Gate and up.
    type State = (FlexTensor, FlexTensor);

    fn backward(self, ops: Prepared<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (gate, up) = ops.state;
        let grad = grads.consume::<Flex>(&ops.node).to_contiguous();
        let shape = dims(&gate);
        let (gs, us, ds) = (slice(&gate), slice(&up), slice(&grad));
        let (mut d_gate, mut d_up) = (vec![0f32; gs.len()], vec![0f32; gs.len()]);
        d_gate.par_chunks_mut(ELEMENTS).zip(d_up.par_chunks_mut(ELEMENTS)).enumerate().for_each(
            |(task, (d_gate, d_up))| {
                let (from, n) = (task * ELEMENTS, d_gate.len());
                let (g, u, d) = (&gs[from..][..n], &us[from..][..n], &ds[from..][..n]);
                for i in 0..n {
                    let s = sigmoid(g[i]);
                    let slope = TWICE * (1.0 + 3.0 * CUBIC * g[i] * g[i]);
                    d_up[i] = d[i] * g[i] * s;
                    d_gate[i] = d[i] * u[i] * (s + g[i] * s * (1.0 - s) * slope);
                }
            },
        );
        let [gate_node, up_node] = ops.parents;
        if let Some(node) = gate_node {
            grads.register::<Flex>(node.id, flex(d_gate, shape));
        }
        if let Some(node) = up_node {
            grads.register::<Flex>(node.id, flex(d_up, shape));
        }
    }
}

pub(super) fn geglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    let (gate, up) = (primitive(gate), primitive(up));
    let (g, u) = (gate.primitive().to_contiguous(), up.primitive().to_contiguous());
    let (gs, us) = (slice(&g), slice(&u));
    let mut out = vec![0f32; gs.len()];
    out.par_chunks_mut(ELEMENTS).enumerate().for_each(|(task, out)| {
        let (from, n) = (task * ELEMENTS, out.len());
        let (g, u) = (&gs[from..][..n], &us[from..][..n]);
        for i in 0..n {
            out[i] = g[i] * sigmoid(g[i]) * u[i];
        }
    });
    let out = flex(out, dims(&g));
    tensor(match GegluBackward.prepare::<NoCheckpointing>([gate.node(), up.node()]).compute_bound().stateful() {
        OpsKind::Tracked(p) => p.finish((g, u), out),
        OpsKind::UnTracked(p) => p.finish(out),
    })
}
