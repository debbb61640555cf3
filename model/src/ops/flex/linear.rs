//! Frozen linear layers, with and without a LoRA adapter. The gradient reaches the input and the factors only: dW is
//! never formed, nor is `B A`.

use super::kernels::{Threads, View, matmul};
use super::{Flex, FlexMatrix, FlexTensor, dims, flex, primitive, slice, tensor};
use crate::ops::Lora;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops as Prepared, OpsKind};
use burn::tensor::Tensor;
use std::sync::Arc;

#[derive(Debug)]
struct FrozenBackward;

impl Backward<Flex, 1> for FrozenBackward {
    type State = (Arc<FlexMatrix>, usize, usize);

    fn backward(self, ops: Prepared<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (weight, n_out, n_in) = ops.state;
        let grad = grads.consume::<Flex>(&ops.node).to_contiguous();
        let [Some(parent)] = ops.parents else { return };
        let [n, _] = dims(&grad);
        let mut dx = vec![0f32; n * n_in];
        let (dy, w) = (View::rows(slice(&grad), n_out), View::rows(&weight.w, n_in));
        matmul([n, n_out, n_in], &mut dx, n_in, false, dy, w, 1.0, Threads::All);
        grads.register::<Flex>(parent.id, flex(dx, [n, n_in]));
    }
}

pub(super) fn frozen(x: Tensor<2>, n_out: usize, n_in: usize, weight: &Arc<FlexMatrix>) -> Tensor<2> {
    let x = primitive(x);
    let input = x.primitive().to_contiguous();
    let [n, _] = dims(&input);
    let mut y = vec![0f32; n * n_out];
    let (xv, wt) = (View::rows(slice(&input), n_in), View::rows(&weight.wt, n_out));
    matmul([n, n_in, n_out], &mut y, n_out, false, xv, wt, 1.0, Threads::All);
    let y = flex(y, [n, n_out]);
    tensor(match FrozenBackward.prepare::<NoCheckpointing>([x.node()]).compute_bound().stateful() {
        OpsKind::Tracked(p) => p.finish((weight.clone(), n_out, n_in), y),
        OpsKind::UnTracked(p) => p.finish(y),
    })
}

#[derive(Debug)]
struct LoraState {
    x: FlexTensor,
    weight: Arc<FlexMatrix>,
    a: FlexTensor,
    b: FlexTensor,
    /// `x Aᵀ`, `[n, r]`.
    down: Vec<f32>,
    scaling: f32,
}

#[derive(Debug)]
struct LoraBackward;

impl Backward<Flex, 3> for LoraBackward {
    type State = Arc<LoraState>;

    /// With t = x Aᵀ and u = s · dY B: dB = s · dYᵀ t, dA = uᵀ x, dX = dY W + u A.
    fn backward(self, ops: Prepared<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let state = ops.state;
        let grad = grads.consume::<Flex>(&ops.node).to_contiguous();
        let ([n, n_in], [r, _], [n_out, _]) = (dims(&state.x), dims(&state.a), dims(&state.b));
        let (dy, s) = (slice(&grad), state.scaling);
        let mut up = vec![0f32; n * r];
        let b = View::rows(slice(&state.b), r);
        matmul([n, n_out, r], &mut up, r, false, View::rows(dy, n_out), b, s, Threads::All);
        let [x_node, a_node, b_node] = ops.parents;
        if let Some(node) = b_node {
            let mut db = vec![0f32; n_out * r];
            let (dy_t, t) = (View::transposed(dy, n_out), View::rows(&state.down, r));
            matmul([n_out, n, r], &mut db, r, false, dy_t, t, s, Threads::All);
            grads.register::<Flex>(node.id, flex(db, [n_out, r]));
        }
        if let Some(node) = a_node {
            let mut da = vec![0f32; r * n_in];
            let (up_t, x) = (View::transposed(&up, r), View::rows(slice(&state.x), n_in));
            matmul([r, n, n_in], &mut da, n_in, false, up_t, x, 1.0, Threads::All);
            grads.register::<Flex>(node.id, flex(da, [r, n_in]));
        }
        if let Some(node) = x_node {
            let mut dx = vec![0f32; n * n_in];
            let (dy, w) = (View::rows(dy, n_out), View::rows(&state.weight.w, n_in));
            matmul([n, n_out, n_in], &mut dx, n_in, false, dy, w, 1.0, Threads::All);
            let (up, a) = (View::rows(&up, r), View::rows(slice(&state.a), n_in));
            matmul([n, r, n_in], &mut dx, n_in, true, up, a, 1.0, Threads::All);
            grads.register::<Flex>(node.id, flex(dx, [n, n_in]));
        }
    }
}

pub(super) fn lora(x: Tensor<2>, n_out: usize, n_in: usize, weight: &Arc<FlexMatrix>, lora: &Lora) -> Tensor<2> {
    let (x, a, b) = (primitive(x), primitive(lora.a.clone()), primitive(lora.b.clone()));
    let input = x.primitive().to_contiguous();
    let (a_data, b_data) = (a.primitive().to_contiguous(), b.primitive().to_contiguous());
    let ([n, _], [r, _]) = (dims(&input), dims(&a_data));
    let xv = View::rows(slice(&input), n_in);
    let mut down = vec![0f32; n * r];
    matmul([n, n_in, r], &mut down, r, false, xv, View::transposed(slice(&a_data), n_in), 1.0, Threads::All);
    let mut y = vec![0f32; n * n_out];
    matmul([n, n_in, n_out], &mut y, n_out, false, xv, View::rows(&weight.wt, n_out), 1.0, Threads::All);
    let b_t = View::transposed(slice(&b_data), r);
    matmul([n, r, n_out], &mut y, n_out, true, View::rows(&down, r), b_t, lora.scaling, Threads::All);
    let y = flex(y, [n, n_out]);
    let prepared = LoraBackward.prepare::<NoCheckpointing>([x.node(), a.node(), b.node()]);
    tensor(match prepared.compute_bound().stateful() {
        OpsKind::Tracked(p) => {
            let state =
                LoraState { x: input, weight: weight.clone(), a: a_data, b: b_data, down, scaling: lora.scaling };
            p.finish(Arc::new(state), y)
        }
        OpsKind::UnTracked(p) => p.finish(y),
    })
}
