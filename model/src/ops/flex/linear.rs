//! Frozen linear layers, with and without a LoRA adapter. The gradient reaches the input and the factors only: dW is
//! never formed, nor is `B A`.

use super::bf16;
use super::compute::{Compute, Left, Right};
use super::kernels::{Threads, View, matmul, transpose};
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
    right: Option<Arc<Right<'static>>>,
}

/// A packed input, as the left side and as the right one.
type Packed = (Arc<Left<'static>>, Option<Arc<Right<'static>>>);

impl Inputs {
    /// In bfloat16: `x` as the left side of its products; with `for_backward` also as the right side of the factors' gradient.
    fn packed(&self, x: &FlexTensor, for_backward: bool) -> Packed {
        let [n, width] = dims(x);
        let data = slice(x);
        let mut last = match self.0.lock() {
            Ok(last) => last,
            Err(poisoned) => poisoned.into_inner(),
        };
        let known = last.as_mut().filter(|input| std::ptr::eq(slice(&input.x), data));
        let input = match known {
            Some(input) => input,
            None => {
                let left = Arc::new(Left::Bf16(bf16::Left::from_rows(data, width, n, width)));
                last.insert(Input { x: x.clone(), left, right: None })
            }
        };
        if for_backward && input.right.is_none() {
            input.right = Some(Arc::new(Right::Bf16(bf16::Right::from_rows(data, width, n, width))));
        }
        (input.left.clone(), input.right.clone().filter(|_| for_backward))
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
    let left = match c {
        Compute::F32 => Arc::new(c.left_rows(slice(&input), n_in, n, n_in)),
        Compute::Bf16(_) => inputs.packed(&input, false).0,
    };
    c.product(Threads::All, &mut y, n_out, false, &[(&left, weight.forward(n_out))]);
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
    n: usize,
    scaling: f32,
    saved: Saved,
}

/// What the backward pass reads again: the input and `scaling · x Aᵀ`.
#[derive(Debug)]
enum Saved {
    F32 { x: FlexTensor, down: Vec<f32> },
    Bf16 { x: Arc<Right<'static>>, down_t: Left<'static> },
}

/// Gradients of input, A and B.
struct LoraGrads {
    x: Option<Vec<f32>>,
    a: Option<Vec<f32>>,
    b: Option<Vec<f32>>,
}

#[derive(Debug)]
struct LoraBackward;

impl Backward<Flex, 3> for LoraBackward {
    type State = Arc<LoraState>;

    fn backward(self, ops: Prepared<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let state = ops.state;
        let grad = grads.consume::<Flex>(&ops.node).to_contiguous();
        let [x_node, a_node, b_node] = ops.parents;
        let wanted = [x_node.is_some(), a_node.is_some(), b_node.is_some()];
        let made = match &state.saved {
            Saved::F32 { x, down } => backward_f32(&state, slice(x), down, slice(&grad), wanted),
            Saved::Bf16 { x, down_t } => backward_bf16(&state, x, down_t, slice(&grad), wanted),
        };
        let ([r, n_in], [n_out, _]) = (dims(&state.a), dims(&state.b));
        let shapes = [[state.n, n_in], [r, n_in], [n_out, r]];
        for ((node, grad), shape) in [x_node, a_node, b_node].into_iter().zip([made.x, made.a, made.b]).zip(shapes) {
            if let (Some(node), Some(grad)) = (node, grad) {
                grads.register::<Flex>(node.id, flex(grad, shape));
            }
        }
    }
}

/// With t = s · x Aᵀ and u = s · dY B: dB = dYᵀ t, dA = uᵀ x, dX = dY W + u A.
fn backward_f32(
    state: &LoraState,
    x: &[f32],
    down: &[f32],
    dy: &[f32],
    [wants_x, wants_a, wants_b]: [bool; 3],
) -> LoraGrads {
    let c = Compute::F32;
    let ([r, n_in], [n_out, _], n) = (dims(&state.a), dims(&state.b), state.n);
    let mut up = vec![0f32; n * r];
    let b = View::rows(slice(&state.b), r);
    matmul([n, n_out, r], &mut up, r, false, View::rows(dy, n_out), b, state.scaling, Threads::All);
    let b = wants_b.then(|| {
        let mut db = vec![0f32; n_out * r];
        let (dy_t, t) = (View::transposed(dy, n_out), View::rows(down, r));
        matmul([n_out, n, r], &mut db, r, false, dy_t, t, 1.0, Threads::All);
        db
    });
    let a = wants_a.then(|| {
        let mut da = vec![0f32; r * n_in];
        let (up_t, x) = (View::transposed(&up, r), View::rows(x, n_in));
        matmul([r, n, n_in], &mut da, n_in, false, up_t, x, 1.0, Threads::All);
        da
    });
    let x = wants_x.then(|| {
        let mut dx = vec![0f32; n * n_in];
        let (dy, up) = (c.left_rows(dy, n_out, n, n_out), c.left_rows(&up, r, n, r));
        let a = c.right_rows(slice(&state.a), n_in, r, n_in);
        c.product(Threads::All, &mut dx, n_in, false, &[(&dy, state.weight.backward(n_in)), (&up, a.all())]);
        dx
    });
    LoraGrads { x, a, b }
}

/// As [`backward_f32`]; both parts of dX are one product, and dB is made transposed, where its long side is the columns.
fn backward_bf16(
    state: &LoraState,
    x: &Right,
    down_t: &Left,
    dy: &[f32],
    [wants_x, wants_a, wants_b]: [bool; 3],
) -> LoraGrads {
    let c = state.weight.compute();
    let ([r, n_in], [n_out, _], n) = (dims(&state.a), dims(&state.b), state.n);
    let dy_left = c.left_rows(dy, n_out, n, n_out);
    let mut up = vec![0f32; n * r];
    c.product(Threads::All, &mut up, r, false, &[(&dy_left, c.right_rows(slice(&state.b), r, n_out, r).all())]);
    up.iter_mut().for_each(|x| *x *= state.scaling);
    let b = wants_b.then(|| {
        let mut db_t = vec![0f32; r * n_out];
        c.product(Threads::All, &mut db_t, n_out, false, &[(down_t, c.right_rows(dy, n_out, n, n_out).all())]);
        transpose(&db_t, r, n_out)
    });
    let a = wants_a.then(|| {
        let mut da = vec![0f32; r * n_in];
        c.product(Threads::All, &mut da, n_in, false, &[(&c.left_columns(&up, r, r, n), x.all())]);
        da
    });
    let x = wants_x.then(|| {
        let mut dx = vec![0f32; n * n_in];
        let (up, a) = (c.left_rows(&up, r, n, r), c.right_rows(slice(&state.a), n_in, r, n_in));
        c.product(Threads::All, &mut dx, n_in, false, &[(&dy_left, state.weight.backward(n_in)), (&up, a.all())]);
        dx
    });
    LoraGrads { x, a, b }
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
    let prepared = LoraBackward.prepare::<NoCheckpointing>([x.node(), a.node(), b.node()]).compute_bound().stateful();
    let tracked = matches!(prepared, OpsKind::Tracked(_));
    let (mut y, mut down) = (vec![0f32; n * n_out], vec![0f32; n * r]);
    let c = weight.compute();
    let b_t = c.right_columns(slice(&b_data), r, r, n_out);
    let saved = match c {
        Compute::F32 => {
            let (xv, a_t) = (View::rows(slice(&input), n_in), View::transposed(slice(&a_data), n_in));
            matmul([n, n_in, r], &mut down, r, false, xv, a_t, lora.scaling, Threads::All);
            let (x, t) = (c.left_rows(slice(&input), n_in, n, n_in), c.left_rows(&down, r, n, r));
            c.product(Threads::All, &mut y, n_out, false, &[(&x, weight.forward(n_out)), (&t, b_t.all())]);
            drop((x, t));
            Some(Saved::F32 { x: input, down })
        }
        Compute::Bf16(_) => {
            let (x, right) = inputs.packed(&input, tracked);
            let a_t = c.right_columns(slice(&a_data), n_in, n_in, r);
            c.product(Threads::All, &mut down, r, false, &[(&x, a_t.all())]);
            down.iter_mut().for_each(|x| *x *= lora.scaling);
            let t = c.left_rows(&down, r, n, r);
            c.product(Threads::All, &mut y, n_out, false, &[(&x, weight.forward(n_out)), (&t, b_t.all())]);
            right.map(|x| Saved::Bf16 { x, down_t: Left::Bf16(bf16::Left::from_columns(&down, r, r, n)) })
        }
    };
    drop(b_t);
    let y = flex(y, [n, n_out]);
    tensor(match (prepared, saved) {
        (OpsKind::Tracked(p), Some(saved)) => {
            let state = LoraState { weight: weight.clone(), a: a_data, b: b_data, n, scaling: lora.scaling, saved };
            p.finish(Arc::new(state), y)
        }
        (OpsKind::Tracked(_), None) => unreachable!("a tracked product saves its input"),
        (OpsKind::UnTracked(p), _) => p.finish(y),
    })
}
