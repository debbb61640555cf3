//! SwiGLU and GeGLU, `act(gate) · up`, with their gradients: the plain ops, and by squares in the layer op. GELU is its tanh
//! formula, written with a sigmoid: `x · σ(2u)` with `u = √(2/π) · (x + 0.044715 x³)`.

use super::bf16::Square;
use super::kernels::exp;
use super::simd::vectorised;
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

#[derive(Clone, Copy, Debug)]
pub(super) enum Activation {
    Silu,
    GeluTanh,
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `x · σ(x)` and its slope.
#[inline(always)]
fn silu(x: f32) -> (f32, f32) {
    let s = sigmoid(x);
    let y = x * s;
    (y, s + y * (1.0 - s))
}

#[inline(always)]
fn gelu(x: f32) -> (f32, f32) {
    let s = sigmoid(TWICE * (x + CUBIC * x * x * x));
    let y = x * s;
    (y, s + y * (1.0 - s) * (TWICE * (1.0 + 3.0 * CUBIC * x * x)))
}

#[inline(always)]
fn forward(act: impl Fn(f32) -> (f32, f32), gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, g), u) in out.iter_mut().zip(gate).zip(up) {
        *out = act(*g).0 * u;
    }
}

/// From gate, up and the output's gradient: the output again in the gradient's place, gate's and up's gradients in theirs.
#[inline(always)]
fn backward(act: impl Fn(f32) -> (f32, f32), d_out: &mut [f32], gate: &mut [f32], up: &mut [f32]) {
    for ((d, g), u) in d_out.iter_mut().zip(gate).zip(up) {
        let (y, slope) = act(*g);
        (*d, *g, *u) = (y * *u, *d * *u * slope, *d * y);
    }
}

vectorised! {
    /// `act(gate) · up`.
    pub fn forward_all(activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
        match activation {
            Activation::Silu => forward(silu, gate, up, out),
            Activation::GeluTanh => forward(gelu, gate, up, out),
        }
    }
}

vectorised! {
    fn backward_all(activation: Activation, d_out: &mut [f32], gate: &mut [f32], up: &mut [f32]) {
        match activation {
            Activation::Silu => backward(silu, d_out, gate, up),
            Activation::GeluTanh => backward(gelu, d_out, gate, up),
        }
    }
}

vectorised! {
    /// `silu(gate) · up` of squares.
    pub fn swiglu_square(gate: &Square, up: &Square, out: &mut Square) {
        forward(silu, gate.as_flattened(), up.as_flattened(), out.as_flattened_mut());
    }
}

vectorised! {
    /// From squares of SwiGLU's output's gradient, gate and up: the output again, and the gradients of gate and up.
    pub fn swiglu_square_backward(d_out: &mut Square, gate: &mut Square, up: &mut Square) {
        backward(silu, d_out.as_flattened_mut(), gate.as_flattened_mut(), up.as_flattened_mut());
    }
}

#[derive(Debug)]
struct GatedBackward;

impl Backward<Flex, 2> for GatedBackward {
    /// Gate and up.
    type State = (Activation, FlexTensor, FlexTensor);

    fn backward(self, ops: Prepared<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (activation, gate, up) = ops.state;
        let mut d_out = slice(&grads.consume::<Flex>(&ops.node).to_contiguous()).to_vec();
        let shape = dims(&gate);
        let (mut d_gate, mut d_up) = (slice(&gate).to_vec(), slice(&up).to_vec());
        d_out
            .par_chunks_mut(ELEMENTS)
            .zip(d_gate.par_chunks_mut(ELEMENTS))
            .zip(d_up.par_chunks_mut(ELEMENTS))
            .for_each(|((d_out, d_gate), d_up)| backward_all(activation, d_out, d_gate, d_up));
        for (node, grad) in ops.parents.into_iter().zip([d_gate, d_up]) {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, flex(grad, shape));
            }
        }
    }
}

/// `act(gate) · up`, both `[n, width]`.
pub(super) fn gated(activation: Activation, gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    let (gate, up) = (primitive(gate), primitive(up));
    let (g, u) = (gate.primitive().to_contiguous(), up.primitive().to_contiguous());
    let (gs, us) = (slice(&g), slice(&u));
    let mut out = vec![0f32; gs.len()];
    out.par_chunks_mut(ELEMENTS)
        .zip(gs.par_chunks(ELEMENTS).zip(us.par_chunks(ELEMENTS)))
        .for_each(|(out, (g, u))| forward_all(activation, g, u, out));
    let out = flex(out, dims(&g));
    tensor(match GatedBackward.prepare::<NoCheckpointing>([gate.node(), up.node()]).compute_bound().stateful() {
        OpsKind::Tracked(p) => p.finish((activation, g, u), out),
        OpsKind::UnTracked(p) => p.finish(out),
    })
}
