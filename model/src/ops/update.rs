//! The optimizer's step where parameters stay on a device: AdamW (Loshchilov and Hutter, 2019) as PyTorch computes it, its
//! constants worked out once a step on the host.

use burn::tensor::Tensor;

/// One step of one group of parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// β₁ and β₂, and 1 − β of each, taken before rounding: in f32, 1 − 0.999 is off by 5e-5 of itself.
    pub beta1: f32,
    pub beta2: f32,
    pub rest1: f32,
    pub rest2: f32,
    /// The learning rate over the first moment's correction, 1 − β₁ᵗ.
    pub size: f32,
    /// What decay leaves: 1 − rate · weight decay.
    pub keep: f32,
    /// √(1 − β₂ᵗ).
    pub correction2: f32,
    pub epsilon: f32,
    /// Multiplies gradients first: clipping.
    pub scale: f32,
}

impl Update {
    /// One element's new value, after its moments.
    #[inline(always)]
    pub fn of(&self, value: f32, grad: f32, first: &mut f32, second: &mut f32) -> f32 {
        let grad = grad * self.scale;
        *first = self.beta1 * *first + self.rest1 * grad;
        *second = self.beta2 * *second + self.rest2 * grad * grad;
        value * self.keep - self.size * *first / (second.sqrt() / self.correction2 + self.epsilon)
    }
}

/// A parameter that stays on the device between steps, `[rows, columns]`, with its moments.
#[derive(Clone, Debug)]
pub struct Resident {
    pub value: Tensor<2>,
    pub first: Tensor<2>,
    pub second: Tensor<2>,
}

/// In plain burn: what a kernel is held against.
pub(super) fn update(parameter: &mut Resident, grad: &Tensor<2>, by: &Update) {
    let grad = grad.clone() * by.scale;
    let first = parameter.first.clone() * by.beta1 + grad.clone() * by.rest1;
    let second = parameter.second.clone() * by.beta2 + grad.clone() * grad * by.rest2;
    let step = first.clone() * by.size / (second.clone().sqrt() / by.correction2 + by.epsilon);
    parameter.value = parameter.value.clone() * by.keep - step;
    (parameter.first, parameter.second) = (first, second);
}
