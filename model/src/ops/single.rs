//! One op on given numbers, forward and backward, its answers read back: how an op set is held against another implementation.
//! Everything is `[rows, width]`, row by row.

use super::{AttentionPlan, Lora, Ops, Target};
use crate::layout::Packed;
use burn::tensor::{Tensor, TensorData};
use std::sync::Arc;

/// Values and their shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Numbers {
    pub values: Vec<f32>,
    pub shape: [usize; 2],
}

/// An op, and what it takes beside the inputs that get gradients.
#[derive(Clone, Debug)]
pub enum Single {
    /// Of `x`.
    RmsNorm { weight: Vec<f32>, eps: f32 },
    /// Of gate and up.
    SwiGlu,
    /// Of `x` and the adapter's factors.
    Linear { weight: Numbers, scaling: f32 },
    /// Of queries, keys and values of rows of these lengths, one behind the other.
    Attention { heads: usize, kv_heads: usize, head_dim: usize, theta: f64, lengths: Vec<usize> },
    /// Of hidden states; the mean over all rows, each with its token.
    CrossEntropy { head: Numbers, tokens: Vec<u32> },
}

/// The output, and the gradient of each input where the output's is given.
///
/// # Panics
/// When the inputs are not those of the op: their number and shapes are the caller's to get right.
pub fn run(ops: &dyn Ops, op: &Single, inputs: &[Numbers], output_gradient: &Numbers) -> (Vec<f32>, Vec<Vec<f32>>) {
    let device = ops.device();
    let tensor = |n: &Numbers| Tensor::<2>::from_data(TensorData::new(n.values.clone(), n.shape), &device);
    let leaves: Vec<Tensor<2>> = inputs.iter().map(|n| tensor(n).require_grad()).collect();
    let x = |i: usize| leaves[i].clone();
    let frozen = |n: &Numbers| ops.freeze(n.values.clone(), n.shape[0], n.shape[1], true);
    let y = match op {
        Single::RmsNorm { weight, eps } => ops.rms_norm(x(0), &Arc::new(weight.clone()), *eps),
        Single::SwiGlu => ops.swiglu(x(0), x(1)),
        Single::Linear { weight, scaling } => {
            let lora = Lora { a: x(1), b: x(2), scaling: *scaling, dora: None, dropout: None };
            ops.linear(x(0), &frozen(weight), Some(&lora))
        }
        Single::Attention { heads, kv_heads, head_dim, theta, lengths } => {
            let mut batch = Packed::new();
            for length in lengths {
                batch.push_chain(&vec![0; *length], 0);
            }
            let plan = AttentionPlan::new(*heads, *kv_heads, *head_dim, *theta, Arc::new(batch));
            ops.attention(x(0), x(1), x(2), &plan, None)
        }
        Single::CrossEntropy { head, tokens } => {
            let target = |(row, token): (usize, &u32)| Target { row, token: *token, weight: 1.0 };
            let targets: Vec<Target> = tokens.iter().enumerate().map(target).collect();
            ops.linear_cross_entropy(x(0), &frozen(head), &targets, tokens.len() as f32).reshape([1, 1])
        }
    };
    let gradients = (y.clone() * tensor(output_gradient)).sum().backward();
    let read = |t: Tensor<2>| t.into_data().convert::<f32>().try_into_vec::<f32>().unwrap_or_default();
    let of_inputs = leaves.iter().map(|leaf| leaf.grad(&gradients).map(read).unwrap_or_default()).collect();
    (read(y), of_inputs)
}
