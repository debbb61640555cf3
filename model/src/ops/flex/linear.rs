//! Frozen linear layers, with and without a LoRA adapter. The gradient reaches the input and the factors only: dW is
//! never formed, nor is `B A`.

use super::bf16::{Engine, Left, Right, product};
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
    left: Arc<Left>,
    right: Option<Arc<Right>>,
}

impl Inputs {
    /// `x` as the left side of its products; with `for_backward` also as the right side of the factors' gradient.
    fn packed(&self, x: &FlexTensor, for_backward: bool) -> (Arc<Left>, Option<Arc<Right>>) {
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
                let left = Arc::new(Left::from_rows(data, width, n, width));
                last.insert(Input { x: x.clone(), left, right: None })
            }
        };
        if for_backward && input.right.is_none() {
            input.right = Some(Arc::new(Right::from_rows(data, width, n, width)));
        }
        (input.left.clone(), input.right.clone().filter(|_| for_backward))
    }
}

pub(super) fn backward_of(backward: &Option<Right>) -> &Right {
    match backward {
        Some(right) => right,
        None => unreachable!("a gradient flows through a matrix that was frozen for inference"),
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
        match &*weight {
            FlexMatrix::F32 { w, .. } => {
                let (dy, w) = (View::rows(slice(&grad), n_out), View::rows(w, n_in));
                matmul([n, n_out, n_in], &mut dx, n_in, false, dy, w, 1.0, Threads::All);
            }
            FlexMatrix::Bf16 { engine, backward, .. } => {
                let dy = Left::from_rows(slice(&grad), n_out, n, n_out);
                product(*engine, true, &mut dx, n_in, false, &[(&dy, backward_of(backward).all())]);
            }
        }
        grads.register::<Flex>(parent.id, flex(dx, [n, n_in]));
    }
}

pub(super) fn frozen(inputs: &Inputs, x: Tensor<2>, n_out: usize, n_in: usize, weight: &Arc<FlexMatrix>) -> Tensor<2> {
    let x = primitive(x);
    let input = x.primitive().to_contiguous();
    let [n, _] = dims(&input);
    let mut y = vec![0f32; n * n_out];
    match &**weight {
        FlexMatrix::F32 { wt, .. } => {
            let (xv, wt) = (View::rows(slice(&input), n_in), View::rows(wt, n_out));
            matmul([n, n_in, n_out], &mut y, n_out, false, xv, wt, 1.0, Threads::All);
        }
        FlexMatrix::Bf16 { engine, forward, .. } => {
            let (x, _) = inputs.packed(&input, false);
            product(*engine, true, &mut y, n_out, false, &[(&x, forward.all())]);
        }
    }
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
    Bf16 { x: Arc<Right>, down_t: Left },
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
    let FlexMatrix::F32 { w, .. } = &*state.weight else { unreachable!("saved in float32 beside a bfloat16 weight") };
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
        let (dy, w) = (View::rows(dy, n_out), View::rows(w, n_in));
        matmul([n, n_out, n_in], &mut dx, n_in, false, dy, w, 1.0, Threads::All);
        let (up, a) = (View::rows(&up, r), View::rows(slice(&state.a), n_in));
        matmul([n, r, n_in], &mut dx, n_in, true, up, a, 1.0, Threads::All);
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
    let FlexMatrix::Bf16 { engine, backward, .. } = &*state.weight else {
        unreachable!("saved in bfloat16 beside a float32 weight")
    };
    let ([r, n_in], [n_out, _], n) = (dims(&state.a), dims(&state.b), state.n);
    let dy_left = Left::from_rows(dy, n_out, n, n_out);
    let up = scaled_product(*engine, &dy_left, &Right::from_rows(slice(&state.b), r, n_out, r), state.scaling);
    let b = wants_b.then(|| {
        let mut db_t = vec![0f32; r * n_out];
        product(*engine, true, &mut db_t, n_out, false, &[(down_t, Right::from_rows(dy, n_out, n, n_out).all())]);
        transpose(&db_t, r, n_out)
    });
    let a = wants_a.then(|| {
        let mut da = vec![0f32; r * n_in];
        product(*engine, true, &mut da, n_in, false, &[(&Left::from_columns(&up, r, r, n), x.all())]);
        da
    });
    let x = wants_x.then(|| {
        let mut dx = vec![0f32; n * n_in];
        let (up, a) = (Left::from_rows(&up, r, n, r), Right::from_rows(slice(&state.a), n_in, r, n_in));
        product(*engine, true, &mut dx, n_in, false, &[(&dy_left, backward_of(backward).all()), (&up, a.all())]);
        dx
    });
    LoraGrads { x, a, b }
}

fn scaled_product(engine: Engine, left: &Left, right: &Right, scale: f32) -> Vec<f32> {
    let mut out = vec![0f32; left.rows * right.cols];
    product(engine, true, &mut out, right.cols, false, &[(left, right.all())]);
    out.iter_mut().for_each(|x| *x *= scale);
    out
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
    let mut y = vec![0f32; n * n_out];
    let saved = match &**weight {
        FlexMatrix::F32 { wt, .. } => {
            let xv = View::rows(slice(&input), n_in);
            let mut down = vec![0f32; n * r];
            let a_t = View::transposed(slice(&a_data), n_in);
            matmul([n, n_in, r], &mut down, r, false, xv, a_t, lora.scaling, Threads::All);
            matmul([n, n_in, n_out], &mut y, n_out, false, xv, View::rows(wt, n_out), 1.0, Threads::All);
            let b_t = View::transposed(slice(&b_data), r);
            matmul([n, r, n_out], &mut y, n_out, true, View::rows(&down, r), b_t, 1.0, Threads::All);
            Some(Saved::F32 { x: input, down })
        }
        FlexMatrix::Bf16 { engine, forward, .. } => {
            let (left, right) = inputs.packed(&input, tracked);
            let a_t = Right::from_columns(slice(&a_data), n_in, n_in, r);
            let down = scaled_product(*engine, &left, &a_t, lora.scaling);
            let b_t = Right::from_columns(slice(&b_data), r, r, n_out);
            let terms = [(&*left, forward.all()), (&Left::from_rows(&down, r, n, r), b_t.all())];
            product(*engine, true, &mut y, n_out, false, &terms);
            right.map(|x| Saved::Bf16 { x, down_t: Left::from_columns(&down, r, r, n) })
        }
    };
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
