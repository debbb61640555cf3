//! Soft caps on logits, `c · tanh(z / c)`, in plain burn for any op set: Gemma 2 and some of Gemma 3 have them, and too few
//! train those for a kernel of its own.

use super::{Frozen, Ops, Target};
use burn::tensor::{Int, Tensor, TensorData, activation};

/// The capped logits; as they are without a cap.
pub fn cap(logits: Tensor<2>, softcap: Option<f32>) -> Tensor<2> {
    match softcap {
        None => logits,
        Some(cap) => (logits / cap).tanh() * cap,
    }
}

/// The same on values that take no gradient.
pub(super) fn cap_values(logits: &mut [f32], softcap: Option<f32>) {
    if let Some(cap) = softcap {
        logits.iter_mut().for_each(|z| *z = cap * (*z / cap).tanh());
    }
}

/// [`Ops::linear_cross_entropy`] under a cap, from the op set's own linear layer.
pub(super) fn cross_entropy(
    ops: &dyn Ops,
    hidden: Tensor<2>,
    head: &Frozen,
    targets: &[Target],
    denominator: f32,
) -> Tensor<1> {
    let (n, device) = (targets.len(), ops.device());
    if n == 0 {
        return hidden.slice([0..1, 0..1]).sum() * 0.0;
    }
    let ints = |values: Vec<i32>| -> Tensor<1, Int> { Tensor::from_data(TensorData::new(values, [n]), &device) };
    let rows = hidden.select(0, ints(targets.iter().map(|t| t.row as i32).collect()));
    let log_probs = activation::log_softmax(cap(ops.linear(rows, head, None), head.softcap), 1);
    let wanted = ints(targets.iter().map(|t| t.token as i32).collect()).reshape([n, 1]);
    let weights: Vec<f32> = targets.iter().map(|t| t.weight / denominator).collect();
    let weights: Tensor<2> = Tensor::from_data(TensorData::new(weights, [n, 1]), &device);
    (log_probs.gather(1, wanted) * weights).sum().neg()
}
