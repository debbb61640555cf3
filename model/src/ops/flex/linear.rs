//! Frozen linear layers, with and without a LoRA adapter. The gradient reaches the input and the factors only: dW is
//! never formed, nor is `B A`.

use super::bf16;
use super::compute::{Compute, Left};
use super::kernels::{Threads, transpose};
use super::{Flex, FlexMatrix, FlexTensor, dims, flex, primitive, slice, tensor};
use crate::ops::Lora;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops as Prepared, OpsKind};
use burn::tensor::Tensor;
use std::sync::{Arc, Mutex};

/// The last input that was packed: queries, keys and values read the same one, and so do gate and up.
#[derive(Default)]
pub(super) struct Inputs(Mutex<Option<Input>>);

struct Input {
    /// Held so that nothing else can come to lie at its address, nor be written there.
    x: FlexTensor,
    left: Arc<Left<'static>>,
}

impl Inputs {
    /// In bfloat16: `x` as the left side of its products. Float32 takes it as it lies.
    fn packed(&self, compute: Compute, x: &FlexTensor) -> Option<Arc<Left<'static>>> {
        if !matches!(compute, Compute::Bf16(_)) {
            return None;
        }
        let [n, width] = dims(x);
        let data = slice(x);
        let mut last = match self.0.lock() {
            Ok(last) => last,
            Err(poisoned) => poisoned.into_inner(),
        };
        if let Some(input) = last.as_ref().filter(|input| std::ptr::eq(slice(&input.x), data)) {
            return Some(input.left.clone());
        }
        let left = Arc::new(Left::Bf16(bf16::Left::from_rows(data, width, n, width)));
        Some(last.insert(Input { x: x.clone(), left }).left.clone())
    }
}

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
        let c = weight.compute();
        let dy = c.left_rows(slice(&grad), n_out, n, n_out);
        c.product(Threads::All, &mut dx, n_in, false, &[(&dy, weight.backward(n_in))]);
        grads.register::<Flex>(parent.id, flex(dx, [n, n_in]));
    }
}

pub(super) fn frozen(inputs: &Inputs, x: Tensor<2>, n_out: usize, n_in: usize, weight: &Arc<FlexMatrix>) -> Tensor<2> {
    let x = primitive(x);
    let input = x.primitive().to_contiguous();
    let [n, _] = dims(&input);
    let mut y = vec![0f32; n * n_out];
    let c = weight.compute();
    let packed = inputs.packed(c, &input);
    let view;
    let left = match &packed {
        Some(packed) => packed.as_ref(),
        None => {
            view = c.left_rows(slice(&input), n_in, n, n_in);
            &view
        }
    };
    c.product(Threads::All, &mut y, n_out, false, &[(left, weight.forward(n_out))]);
    let y = flex(y, [n, n_out]);
    tensor(match FrozenBackward.prepare::<NoCheckpointing>([x.node()]).compute_bound().stateful() {
        OpsKind::Tracked(p) => p.finish((weight.clone(), n_out, n_in), y),
        OpsKind::UnTracked(p) => p.finish(y),
    })
}

#[derive(Debug)]
struct LoraState {
    weight: Arc<FlexMatrix>,
    a: FlexTensor,
    b: FlexTensor,
    scaling: f32,
    input: FlexTensor,
    /// The input as the products took it, where that is not a view of it.
    packed: Option<Arc<Left<'static>>>,
    /// `scaling · x Aᵀ`.
    down: Vec<f32>,
}

#[derive(Debug)]
struct LoraBackward;

impl Backward<Flex, 3> for LoraBackward {
    type State = Arc<LoraState>;

    /// With t = s · x Aᵀ and u = s · dY B: dB = dYᵀ t, dA = uᵀ x, dX = dY W + u A, whose parts are one product. dB is made
    /// transposed, where its long side is the columns.
    fn backward(self, ops: Prepared<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let state = ops.state;
        let grad = grads.consume::<Flex>(&ops.node).to_contiguous();
        let [x_node, a_node, b_node] = ops.parents;
        let (c, a, b) = (state.weight.compute(), slice(&state.a), slice(&state.b));
        let ([n, n_in], [r, _], [n_out, _]) = (dims(&state.input), dims(&state.a), dims(&state.b));
        let dy = c.left_rows(slice(&grad), n_out, n, n_out);
        let mut up = vec![0f32; n * r];
        c.product(Threads::All, &mut up, r, false, &[(&dy, c.right_rows(b, r, n_out, r).all())]);
        up.iter_mut().for_each(|x| *x *= state.scaling);
        let over_rows = |left: &[f32], x: &Left| c.over_rows(&[&c.left_columns(left, r, r, n)], x).swap_remove(0);
        if let Some(node) = b_node {
            let db = transpose(&over_rows(&state.down, &dy), r, n_out);
            grads.register::<Flex>(node.id, flex(db, [n_out, r]));
        }
        if let Some(node) = a_node {
            let da = match &state.packed {
                Some(x) => over_rows(&up, x),
                None => over_rows(&up, &c.left_rows(slice(&state.input), n_in, n, n_in)),
            };
            grads.register::<Flex>(node.id, flex(da, [r, n_in]));
        }
        if let Some(node) = x_node {
            let mut dx = vec![0f32; n * n_in];
            let (up, a) = (c.left_rows(&up, r, n, r), c.right_rows(a, n_in, r, n_in));
            c.product(Threads::All, &mut dx, n_in, false, &[(&dy, state.weight.backward(n_in)), (&up, a.all())]);
            grads.register::<Flex>(node.id, flex(dx, [n, n_in]));
        }
    }
}

pub(super) fn lora(
    inputs: &Inputs,
    x: Tensor<2>,
    n_out: usize,
    n_in: usize,
    weight: &Arc<FlexMatrix>,
    lora: &Lora,
) -> Tensor<2> {
    let (x, a, b) = (primitive(x), primitive(lora.a.clone()), primitive(lora.b.clone()));
    let input = x.primitive().to_contiguous();
    let (a_data, b_data) = (a.primitive().to_contiguous(), b.primitive().to_contiguous());
    let ([n, _], [r, _]) = (dims(&input), dims(&a_data));
    let (mut y, mut down) = (vec![0f32; n * n_out], vec![0f32; n * r]);
    let c = weight.compute();
    let packed = inputs.packed(c, &input);
    let view;
    let left = match &packed {
        Some(packed) => packed.as_ref(),
        None => {
            view = c.left_rows(slice(&input), n_in, n, n_in);
            &view
        }
    };
    let a_t = c.right_columns(slice(&a_data), n_in, n_in, r);
    c.product(Threads::All, &mut down, r, false, &[(left, a_t.all())]);
    down.iter_mut().for_each(|x| *x *= lora.scaling);
    let (t, b_t) = (c.left_rows(&down, r, n, r), c.right_columns(slice(&b_data), r, r, n_out));
    c.product(Threads::All, &mut y, n_out, false, &[(left, weight.forward(n_out)), (&t, b_t.all())]);
    drop((t, b_t, a_t));
    let y = flex(y, [n, n_out]);
    tensor(match LoraBackward.prepare::<NoCheckpointing>([x.node(), a.node(), b.node()]).compute_bound().stateful() {
        OpsKind::Tracked(p) => {
            let (weight, scaling) = (weight.clone(), lora.scaling);
            p.finish(Arc::new(LoraState { weight, a: a_data, b: b_data, scaling, input, packed, down }), y)
        }
        OpsKind::UnTracked(p) => p.finish(y),
    })
}
