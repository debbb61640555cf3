//! The op set in plain burn: short, slow, and the reference that every kernel is tested against. It is what a device
//! without kernels of its own runs.

use super::{AttentionPlan, Frozen, FrozenForm, LayerKv, Lora, Ops, SoftTarget, Target, soft, softcap};
use crate::divergence::Divergence;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData, activation};
use std::sync::Arc;

/// Plain burn on any device.
pub struct StockOps {
    device: Device,
}

impl StockOps {
    pub fn new(device: Device) -> Self {
        StockOps { device: device.autodiff() }
    }

    fn constant<const D: usize>(&self, data: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
        Tensor::from_data(TensorData::new(data, shape), &self.device)
    }

    fn indices(&self, values: impl Iterator<Item = usize>) -> Tensor<1, Int> {
        let values: Vec<i32> = values.map(|v| v as i32).collect();
        let n = values.len();
        Tensor::from_data(TensorData::new(values, [n]), &self.device)
    }

    /// `[tokens, heads * dim]` -> `[heads, tokens, dim]`, rotated where a plan is given.
    fn heads(&self, x: Tensor<2>, heads: usize, dim: usize) -> Tensor<3> {
        let n = x.dims()[0];
        x.reshape([n, heads, dim]).swap_dims(0, 1)
    }

    fn rotate(&self, x: Tensor<3>, plan: &AttentionPlan) -> Tensor<3> {
        let Some(rotation) = &plan.rotation else { return x };
        let half = plan.head_dim / 2;
        let n = plan.batch.len();
        let cos = self.constant(rotation.cos.to_vec(), [1, n, half]);
        let sin = self.constant(rotation.sin.to_vec(), [1, n, half]);
        let low = x.clone().narrow(2, 0, half);
        let high = x.narrow(2, half, half);
        let rotated_low = low.clone() * cos.clone() - high.clone() * sin.clone();
        let rotated_high = high * cos + low * sin;
        Tensor::cat(vec![rotated_low, rotated_high], 2)
    }
}

pub(super) fn tensor_of(frozen: &Frozen) -> Tensor<2> {
    match &frozen.form {
        FrozenForm::Stock(tensor) | FrozenForm::Trained { weight: tensor, .. } => tensor.as_ref().clone(),
        #[cfg(feature = "cube")]
        FrozenForm::Cube(matrix) => super::cube::dense_tensor(matrix),
        FrozenForm::Flex(_) => unreachable!("a matrix frozen by the flex ops was given to the stock ops"),
    }
}

pub(crate) fn to_vec<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    tensor.to_data().convert::<f32>().try_into_vec::<f32>().unwrap_or_default()
}

impl Ops for StockOps {
    fn device(&self) -> Device {
        self.device.clone()
    }

    fn freeze(&self, data: Vec<f32>, n_out: usize, n_in: usize, _trains: bool) -> Frozen {
        Frozen::new(n_out, n_in, FrozenForm::Stock(Box::new(self.constant(data, [n_out, n_in]))))
    }

    fn embed(&self, table: &Frozen, tokens: &[u32]) -> Tensor<2> {
        tensor_of(table).select(0, self.indices(tokens.iter().map(|&t| t as usize)))
    }

    fn rms_norm(&self, x: Tensor<2>, weight: &Arc<Vec<f32>>, eps: f32) -> Tensor<2> {
        let width = weight.len();
        let scale = (x.clone().powi_scalar(2).mean_dim(1) + eps).sqrt();
        x / scale * self.constant(weight.to_vec(), [1, width])
    }

    fn linear(&self, x: Tensor<2>, weight: &Frozen, lora: Option<&Lora>) -> Tensor<2> {
        if let Some(lora @ Lora { dora: Some(dora), .. }) = lora {
            return super::dora::linear(self, x, weight, lora, dora);
        }
        if let Some(lora @ Lora { dropout: Some(drop), .. }) = lora {
            return super::dropout::linear(self, x, weight, lora, drop);
        }
        let y = x.clone().matmul(tensor_of(weight).transpose());
        let y = match (&weight.bias, &weight.form) {
            (_, FrozenForm::Trained { bias: Some(bias), .. }) => y + bias.as_ref().clone(),
            (None, _) => y,
            (Some(bias), _) => y + self.constant(bias.to_vec(), [1, weight.n_out]),
        };
        match lora {
            None => y,
            Some(lora) => y + x.matmul(lora.a.clone().transpose()).matmul(lora.b.clone().transpose()) * lora.scaling,
        }
    }

    fn dora_norms(&self, weight: &Frozen, lora: &Lora) -> Vec<f32> {
        let values = |factor: &Tensor<2>| Tensor::<2>::from_data(factor.to_data(), &self.device);
        let update = values(&lora.b).matmul(values(&lora.a)) * lora.scaling;
        to_vec(&(tensor_of(weight) + update).powi_scalar(2).sum_dim(1).sqrt())
    }

    fn attention(
        &self,
        q: Tensor<2>,
        k: Tensor<2>,
        v: Tensor<2>,
        plan: &AttentionPlan,
        past: Option<&LayerKv>,
    ) -> Tensor<2> {
        let (n, d) = (plan.batch.len(), plan.head_dim);
        let q = self.rotate(self.heads(q, plan.n_heads, d), plan);
        let mut k = self.rotate(self.heads(k, plan.n_kv_heads, d), plan);
        let mut v = self.heads(v, plan.n_kv_heads, d);
        let mut past_len = 0;
        if let Some(past) = past {
            past_len = past.keys.dims()[0];
            k = Tensor::cat(vec![self.heads(past.keys.clone(), plan.n_kv_heads, d), k], 1);
            v = Tensor::cat(vec![self.heads(past.values.clone(), plan.n_kv_heads, d), v], 1);
        }
        let keys = past_len + n;
        let group = plan.n_heads / plan.n_kv_heads;
        let repeat = |t: Tensor<3>| -> Tensor<3> {
            t.reshape([plan.n_kv_heads, 1, keys * d]).expand([plan.n_kv_heads, group, keys * d]).reshape([
                plan.n_heads,
                keys,
                d,
            ])
        };
        let (k, v) = (repeat(k), repeat(v));
        let seen = plan.batch.dense_visibility();
        let positions = &plan.batch.positions;
        let mut hidden = Vec::with_capacity(n * keys);
        for i in 0..n {
            let far = |key: usize| plan.window.is_some_and(|window| key + window <= positions[i] as usize);
            hidden.extend((0..past_len).map(far));
            hidden.extend((0..n).map(|j| !seen[i * n + j] || far(positions[j] as usize)));
        }
        let hidden: Tensor<3, Bool> = Tensor::from_data(TensorData::new(hidden, [1, n, keys]), &self.device);
        let scores = q.matmul(k.transpose()) * plan.scale;
        let scores = match plan.softcap {
            None => scores,
            Some(cap) => (scores / cap).tanh() * cap,
        };
        let scores = scores.mask_fill(hidden.expand([plan.n_heads, n, keys]), -1e30);
        let out = activation::softmax(scores, 2).matmul(v);
        out.swap_dims(0, 1).reshape([n, plan.n_heads * d])
    }

    fn rotate_keys(&self, k: Tensor<2>, plan: &AttentionPlan) -> Tensor<2> {
        let n = plan.batch.len();
        let k = self.rotate(self.heads(k, plan.n_kv_heads, plan.head_dim), plan);
        k.swap_dims(0, 1).reshape([n, plan.n_kv_heads * plan.head_dim])
    }

    fn add(&self, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
        a + b
    }

    fn swiglu(&self, gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
        activation::silu(gate) * up
    }

    fn geglu(&self, gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
        // burn's gelu is the one by the error function.
        let inner = (gate.clone() + gate.clone().powi_scalar(3) * 0.044_715) * (2.0 / std::f32::consts::PI).sqrt();
        gate * 0.5 * (inner.tanh() + 1.0) * up
    }

    fn linear_cross_entropy(
        &self,
        hidden: Tensor<2>,
        head: &Frozen,
        targets: &[Target],
        denominator: f32,
    ) -> Tensor<1> {
        if targets.is_empty() {
            return hidden.slice([0..1, 0..1]).sum() * 0.0;
        }
        let n = targets.len();
        let rows = hidden.select(0, self.indices(targets.iter().map(|t| t.row)));
        let logits = softcap::cap(rows.matmul(tensor_of(head).transpose()), head.softcap);
        let log_probs = activation::log_softmax(logits, 1);
        let wanted = self.indices(targets.iter().map(|t| t.token as usize)).reshape([n, 1]);
        let weights = self.constant(targets.iter().map(|t| t.weight / denominator).collect(), [n, 1]);
        (log_probs.gather(1, wanted) * weights).sum().neg()
    }

    fn linear_divergence(
        &self,
        hidden: Tensor<2>,
        head: &Frozen,
        targets: &[SoftTarget],
        divergence: Divergence,
        denominator: f32,
    ) -> Tensor<1> {
        soft::linear_divergence(self, hidden, head, targets, divergence, denominator)
    }

    fn logits(&self, hidden: &Tensor<2>, head: &Frozen, rows: &[usize]) -> Vec<f32> {
        let rows = hidden.clone().select(0, self.indices(rows.iter().copied()));
        to_vec(&softcap::cap(rows.matmul(tensor_of(head).transpose()), head.softcap))
    }

    fn logits_of(&self, hidden: &Tensor<2>, head: &Frozen, queries: &[(usize, Vec<u32>)]) -> Vec<Vec<f32>> {
        queries
            .iter()
            .map(|(row, tokens)| {
                let h = hidden.clone().select(0, self.indices(std::iter::once(*row)));
                let w = tensor_of(head).select(0, self.indices(tokens.iter().map(|&t| t as usize)));
                to_vec(&softcap::cap(h.matmul(w.transpose()), head.softcap))
            })
            .collect()
    }
}
