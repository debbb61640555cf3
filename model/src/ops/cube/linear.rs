//! Frozen linear maps with and without a LoRA adapter. The gradient reaches the input and the factors only: dW is never formed,
//! nor is `B A`.

use super::buffer::{contiguous, dims};
use super::matrix::CubeMatrix;
use super::pointwise::cast_scaled;
use super::product::{add_low_rank, product, transposed};
use super::{Compute, Cube, CubeTensor, primitive, tensor};
use crate::ops::Lora;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops as Prepared, OpsKind};
use burn::tensor::{DType, Tensor};
use std::sync::Arc;

/// An adapter's factors on the device: `a` is `[r, in]`, `b` is `[out, r]`, both float32.
#[derive(Clone, Debug)]
pub(super) struct Factors {
    pub a: CubeTensor,
    pub b: CubeTensor,
    pub scaling: f32,
}

/// What a map keeps for its backward pass: its input as the product took it, and `scaling · x Aᵀ`.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub input: CubeTensor,
    pub down: Option<CubeTensor>,
}

/// `x Wᵀ + s · (x Aᵀ) Bᵀ` in the type of the products.
pub(super) fn forward(
    compute: Compute,
    x: &CubeTensor,
    weight: &CubeMatrix,
    lora: Option<&Factors>,
) -> (CubeTensor, Kept) {
    let dtype = compute.dtype();
    let x = contiguous(cast_scaled(x, dtype, 1.0));
    let y = weight.forward(&x, dtype);
    let down = lora.map(|lora| {
        let a = cast_scaled(&lora.a, dtype, 1.0);
        let down = contiguous(product(x.clone(), transposed(&a), DType::F32));
        let down = cast_scaled(&down, dtype, lora.scaling);
        add_low_rank(&y, &down, &lora.b, true);
        down
    });
    (y, Kept { input: x, down })
}

/// Gradients of the input, in the type of the products, and of A and B, in float32. With t = s · x Aᵀ and u = s · dY B:
/// dB = dYᵀ t, dA = uᵀ x, dX = dY W + u A.
pub(super) fn backward(
    compute: Compute,
    dy: &CubeTensor,
    weight: &CubeMatrix,
    lora: Option<&Factors>,
    kept: &Kept,
) -> (CubeTensor, Option<[CubeTensor; 2]>) {
    let dtype = compute.dtype();
    let dy = contiguous(cast_scaled(dy, dtype, 1.0));
    let dx = weight.backward(&dy, dtype);
    let grads = lora.zip(kept.down.as_ref()).map(|(lora, down)| {
        let b = cast_scaled(&lora.b, dtype, 1.0);
        let up = contiguous(product(dy.clone(), b, DType::F32));
        let up = cast_scaled(&up, dtype, lora.scaling);
        add_low_rank(&dx, &up, &lora.a, false);
        let da = product(transposed(&up), kept.input.clone(), DType::F32);
        let db = product(transposed(&dy), down.clone(), DType::F32);
        [contiguous(da), contiguous(db)]
    });
    (dx, grads)
}

#[derive(Clone, Debug)]
struct State {
    compute: Compute,
    weight: Arc<CubeMatrix>,
    lora: Option<Factors>,
    kept: Kept,
    dtype: DType,
}

#[derive(Debug)]
struct FrozenBackward;

impl Backward<Cube, 1> for FrozenBackward {
    type State = State;

    fn backward(self, ops: Prepared<State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let state = ops.state;
        let dy = grads.consume::<Cube>(&ops.node);
        let [Some(parent)] = ops.parents else { return };
        let (dx, _) = backward(state.compute, &dy, &state.weight, None, &state.kept);
        grads.register::<Cube>(parent.id, cast_scaled(&dx, state.dtype, 1.0));
    }
}

#[derive(Debug)]
struct LoraBackward;

impl Backward<Cube, 3> for LoraBackward {
    type State = State;

    fn backward(self, ops: Prepared<State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let state = ops.state;
        let dy = grads.consume::<Cube>(&ops.node);
        let (dx, factors) = backward(state.compute, &dy, &state.weight, state.lora.as_ref(), &state.kept);
        let [x_node, a_node, b_node] = ops.parents;
        if let Some(node) = x_node {
            grads.register::<Cube>(node.id, cast_scaled(&dx, state.dtype, 1.0));
        }
        let Some([da, db]) = factors else { unreachable!("an adapter's gradients") };
        if let Some(node) = a_node {
            grads.register::<Cube>(node.id, da);
        }
        if let Some(node) = b_node {
            grads.register::<Cube>(node.id, db);
        }
    }
}

/// The op; its output has the type of its input.
pub(super) fn linear(compute: Compute, x: Tensor<2>, weight: &Arc<CubeMatrix>, lora: Option<&Lora>) -> Tensor<2> {
    let x = primitive(x);
    let input = contiguous(x.primitive().clone());
    let dtype = input.dtype;
    debug_assert_eq!(dims(&input)[1], weight.shape()[1]);
    let Some(lora) = lora else {
        let (y, kept) = forward(compute, &input, weight, None);
        let y = cast_scaled(&y, dtype, 1.0);
        return tensor(match FrozenBackward.prepare::<NoCheckpointing>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(p) => p.finish(State { compute, weight: weight.clone(), lora: None, kept, dtype }, y),
            OpsKind::UnTracked(p) => p.finish(y),
        });
    };
    let (a, b) = (primitive(lora.a.clone()), primitive(lora.b.clone()));
    let nodes = [x.node(), a.node(), b.node()];
    let factors =
        Factors { a: contiguous(a.primitive().clone()), b: contiguous(b.primitive().clone()), scaling: lora.scaling };
    let (y, kept) = forward(compute, &input, weight, Some(&factors));
    let y = cast_scaled(&y, dtype, 1.0);
    tensor(match LoraBackward.prepare::<NoCheckpointing>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(p) => p.finish(State { compute, weight: weight.clone(), lora: Some(factors), kept, dtype }, y),
        OpsKind::UnTracked(p) => p.finish(y),
    })
}
