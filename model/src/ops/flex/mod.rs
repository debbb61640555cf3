//! The op set on burn's Flex backend with our own kernels and hand-written backward passes. Frozen weights take no
//! gradient, `B A` is never formed, logits exist at label positions only, and attention goes row by row.

mod attention;
mod kernels;
mod linear;
mod loss;
mod pointwise;

use super::{AttentionPlan, Frozen, FrozenForm, LayerKv, Lora, Ops, Target};
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Flex};
use burn::tensor::{Bytes, DType, Device, Shape, Tensor, TensorData};
use burn_flex::{FlexTensor, Layout};
use std::sync::Arc;

type Ad = Autodiff<Flex, NoCheckpointing>;
type AdTensor = FloatTensor<Ad>;

/// A frozen matrix in both orders: `wt` (`[in, out]`) serves the forward product, `w` (`[out, in]`) the backward one and
/// row look-ups. A right-hand side in its natural order keeps the GEMM at full speed.
#[derive(Debug)]
pub(crate) struct FlexMatrix {
    pub w: Vec<f32>,
    pub wt: Vec<f32>,
}

/// Our CPU kernels.
pub struct FlexOps {
    device: Device,
}

impl Default for FlexOps {
    fn default() -> Self {
        FlexOps { device: Device::flex().autodiff() }
    }
}

/// The autodiff primitive under a tensor; activations of this op set live on Flex and nowhere else.
fn primitive(t: Tensor<2>) -> AdTensor {
    match t.try_into_primitive::<Ad>() {
        Ok(p) => p,
        Err(e) => unreachable!("a tensor of another device was given to the flex ops: {e:?}"),
    }
}

fn tensor(p: AdTensor) -> Tensor<2> {
    Tensor::from_primitive::<Ad>(p)
}

/// A contiguous Flex tensor around `data`.
fn flex(data: Vec<f32>, shape: [usize; 2]) -> FlexTensor {
    debug_assert_eq!(data.len(), shape[0] * shape[1]);
    FlexTensor::new(Bytes::from_elems(data), Layout::contiguous(Shape::from(shape.to_vec())), DType::F32)
}

/// The elements of a contiguous Flex tensor.
fn slice(t: &FlexTensor) -> &[f32] {
    let n = t.layout().shape().num_elements();
    let start = t.layout().start_offset();
    &t.storage::<f32>()[start..start + n]
}

fn dims(t: &FlexTensor) -> [usize; 2] {
    let shape = t.layout().shape();
    [shape[0], shape[1]]
}

fn matrix(frozen: &Frozen) -> &Arc<FlexMatrix> {
    match &frozen.form {
        FrozenForm::Flex(matrix) => matrix,
        FrozenForm::Stock(_) => unreachable!("a matrix frozen by the stock ops was given to the flex ops"),
    }
}

impl Ops for FlexOps {
    fn device(&self) -> Device {
        self.device.clone()
    }

    fn freeze(&self, data: Vec<f32>, n_out: usize, n_in: usize, _trains: bool) -> Frozen {
        let wt = kernels::transpose(&data, n_out, n_in);
        Frozen { n_out, n_in, form: FrozenForm::Flex(Arc::new(FlexMatrix { w: data, wt })) }
    }

    fn embed(&self, table: &Frozen, tokens: &[u32]) -> Tensor<2> {
        let width = table.n_in;
        let mut out = Vec::with_capacity(tokens.len() * width);
        for &token in tokens {
            out.extend_from_slice(&matrix(table).w[token as usize * width..][..width]);
        }
        Tensor::from_data(TensorData::new(out, [tokens.len(), width]), &self.device)
    }

    fn rms_norm(&self, x: Tensor<2>, weight: &Arc<Vec<f32>>, eps: f32) -> Tensor<2> {
        pointwise::rms_norm(x, weight, eps)
    }

    fn linear(&self, x: Tensor<2>, weight: &Frozen, lora: Option<&Lora>) -> Tensor<2> {
        match lora {
            None => linear::frozen(x, weight.n_out, weight.n_in, matrix(weight)),
            Some(lora @ Lora { dropout: Some(drop), .. }) => super::dropout::linear(self, x, weight, lora, drop),
            Some(lora) => linear::lora(x, weight.n_out, weight.n_in, matrix(weight), lora),
        }
    }

    fn attention(
        &self,
        q: Tensor<2>,
        k: Tensor<2>,
        v: Tensor<2>,
        plan: &AttentionPlan,
        past: Option<&LayerKv>,
    ) -> Tensor<2> {
        attention::attention(q, k, v, plan, past)
    }

    fn rotate_keys(&self, k: Tensor<2>, plan: &AttentionPlan) -> Tensor<2> {
        attention::rotate_keys(k, plan)
    }

    fn add(&self, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
        pointwise::add(a, b)
    }

    fn swiglu(&self, gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
        pointwise::swiglu(gate, up)
    }

    fn linear_cross_entropy(
        &self,
        hidden: Tensor<2>,
        head: &Frozen,
        targets: &[Target],
        denominator: f32,
    ) -> Tensor<1> {
        loss::linear_cross_entropy(hidden, head.n_out, matrix(head), targets, denominator)
    }

    fn logits(&self, hidden: &Tensor<2>, head: &Frozen, rows: &[usize]) -> Vec<f32> {
        loss::logits(hidden, head.n_out, head.n_in, matrix(head), rows)
    }

    fn logits_of(&self, hidden: &Tensor<2>, head: &Frozen, queries: &[(usize, Vec<u32>)]) -> Vec<Vec<f32>> {
        loss::logits_of(hidden, head.n_in, matrix(head), queries)
    }
}
