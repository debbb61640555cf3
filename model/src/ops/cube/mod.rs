//! The op set for GPUs: kernels written once in CubeCL, which run as WGSL through wgpu and as CUDA, each with its hand-written
//! backward pass. What has no kernel of its own here goes through plain burn ops ([`super::stock`]).
#![allow(unsafe_code, reason = "kernels are launched without bounds checks; each launch says why it stays inside")]
#![allow(
    clippy::collapsible_if,
    clippy::manual_is_multiple_of,
    clippy::too_many_arguments,
    reason = "a kernel is written in what CubeCL compiles: no `let` chains, few methods, no structs of buffers"
)]

mod adamw;
mod attention;
mod attention_backward;
mod buffer;
mod codes;
mod layer;
mod linear;
mod loss;
mod matrix;
mod pointwise;
mod product;
mod tables;

pub(crate) use matrix::CubeMatrix;

use super::codes::Codes;
use super::stock::{self, StockOps};
use super::update::{Resident, Update};
use super::{AttentionPlan, Block, Frozen, FrozenForm, LayerKv, Lora, Ops, SoftTarget, Target, soft, softcap};
use crate::divergence::Divergence;
use crate::fault::{self, DeviceFault};
use buffer::{Held, contiguous, send};
use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops as Prepared, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Device, Tensor};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{Cube, CubeDevice};
use cubecl::ir::features::TypeUsage;
use cubecl::prelude::Scalar;
use pointwise::Gate;
use std::sync::Arc;
use tables::Tables;

type Ad = Autodiff<Cube, NoCheckpointing>;
type AdTensor = FloatTensor<Ad>;

/// Runs what follows with `F` the Rust type of a tensor's elements.
macro_rules! with_float {
    ($dtype:expr, $F:ident => $body:expr) => {
        match $dtype {
            burn::tensor::DType::BF16 => {
                type $F = half::bf16;
                $body
            }
            burn::tensor::DType::F16 => {
                type $F = half::f16;
                $body
            }
            _ => {
                type $F = f32;
                $body
            }
        }
    };
}
use with_float;

/// What matrix products take; they always add up in float32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compute {
    F32,
    Bf16,
    /// For forward passes, and for tests of mixed types where a device has no bfloat16; training in it would want its loss
    /// scaled.
    F16,
}

impl Compute {
    fn dtype(self) -> DType {
        match self {
            Compute::F32 => DType::F32,
            Compute::Bf16 => DType::BF16,
            Compute::F16 => DType::F16,
        }
    }

    /// Whether the device keeps and converts such numbers.
    pub fn is_on(self, device: &Device) -> bool {
        let client = primitive(Tensor::from_data([[0f32]], &device.clone().autodiff())).primitive().client.clone();
        let uses = match self {
            Compute::F32 => return true,
            Compute::Bf16 => half::bf16::supported_uses(&client),
            Compute::F16 => half::f16::supported_uses(&client),
        };
        uses.contains(TypeUsage::Buffer) && uses.contains(TypeUsage::Conversion)
    }
}

/// Our GPU kernels.
pub struct CubeOps {
    device: Device,
    cube: CubeDevice,
    compute: Compute,
    stock: StockOps,
    held: Held,
}

impl CubeOps {
    pub fn new(device: Device, compute: Compute) -> Self {
        let device = device.autodiff();
        let one = primitive(Tensor::from_data([[0f32]], &device));
        let cube = one.primitive().device.clone();
        CubeOps { stock: StockOps::new(device.clone()), device, cube, compute, held: Held::default() }
    }
}

impl CubeOps {
    fn tables(&self, plan: &AttentionPlan) -> Tables {
        Tables::of(&self.held, &self.cube, plan, attention::block(&self.cube.client(), plan.head_dim))
    }
}

/// The autodiff primitive under a tensor; activations of this op set live on a GPU and nowhere else.
fn primitive(t: Tensor<2>) -> AdTensor {
    match t.try_into_primitive::<Ad>() {
        Ok(p) => p,
        Err(e) => unreachable!("a tensor of another device was given to the GPU's ops: {e:?}"),
    }
}

/// The values of a tensor, without gaps; a gradient that was taken out of its graph is one that knows of no graph.
fn bare(t: &Tensor<2>) -> CubeTensor {
    contiguous(match t.clone().try_into_primitive::<Cube>() {
        Ok(p) => p,
        Err(_) => primitive(t.clone()).primitive().clone(),
    })
}

fn tensor(p: AdTensor) -> Tensor<2> {
    Tensor::from_primitive::<Ad>(p)
}

fn matrix(frozen: &Frozen) -> Option<&Arc<CubeMatrix>> {
    match &frozen.form {
        FrozenForm::Cube(matrix) => Some(matrix),
        FrozenForm::Trained { .. } => None,
        _ => unreachable!("a matrix frozen by other ops was given to the GPU's"),
    }
}

/// A frozen matrix in float32, for ops in plain burn.
pub(super) fn dense_tensor(matrix: &CubeMatrix) -> Tensor<2> {
    tensor(AdTensor::new(matrix.dense(DType::F32)))
}

/// An op of one input whose gradient the state gives.
#[derive(Debug)]
struct Unary<S>(std::marker::PhantomData<S>);

/// What an op of one input kept, and how it turns the gradient of its output into that of its input.
trait Back: Clone + Send + Sync + std::fmt::Debug + 'static {
    fn back(&self, dy: &CubeTensor) -> CubeTensor;
}

impl<S: Back> Backward<Cube, 1> for Unary<S> {
    type State = S;

    fn backward(self, ops: Prepared<S, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Cube>(&ops.node));
        if let [Some(parent)] = ops.parents {
            grads.register::<Cube>(parent.id, ops.state.back(&dy));
        }
    }
}

fn unary<S: Back>(x: &AdTensor, y: CubeTensor, state: S) -> Tensor<2> {
    let op = Unary::<S>(std::marker::PhantomData);
    tensor(match op.prepare::<NoCheckpointing>([x.node()]).compute_bound().stateful() {
        OpsKind::Tracked(p) => p.finish(state, y),
        OpsKind::UnTracked(p) => p.finish(y),
    })
}

#[derive(Clone, Debug)]
struct NormState {
    x: CubeTensor,
    weight: CubeTensor,
    eps: f32,
}

impl Back for NormState {
    fn back(&self, dy: &CubeTensor) -> CubeTensor {
        pointwise::rms_norm_backward(&self.x, &self.weight, dy, None, self.eps)
    }
}

/// The bias is frozen: the gradient goes through.
#[derive(Clone, Debug)]
struct BiasState;

impl Back for BiasState {
    fn back(&self, dy: &CubeTensor) -> CubeTensor {
        dy.clone()
    }
}

#[derive(Debug)]
struct GatedBackward;

impl Backward<Cube, 2> for GatedBackward {
    type State = (Gate, CubeTensor, CubeTensor);

    fn backward(self, ops: Prepared<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (kind, gate, up) = ops.state;
        let dy = contiguous(grads.consume::<Cube>(&ops.node));
        let made = pointwise::gated_backward(kind, &gate, &up, &dy);
        for (node, grad) in ops.parents.into_iter().zip(made) {
            if let Some(node) = node {
                grads.register::<Cube>(node.id, grad);
            }
        }
    }
}

fn gated(kind: Gate, gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    let (gate, up) = (primitive(gate), primitive(up));
    let (g, u) = (contiguous(gate.primitive().clone()), contiguous(up.primitive().clone()));
    let y = pointwise::gated(kind, &g, &u);
    tensor(match GatedBackward.prepare::<NoCheckpointing>([gate.node(), up.node()]).compute_bound().stateful() {
        OpsKind::Tracked(p) => p.finish((kind, g, u), y),
        OpsKind::UnTracked(p) => p.finish(y),
    })
}

impl Ops for CubeOps {
    fn device(&self) -> Device {
        self.device.clone()
    }

    fn compute(&self) -> &'static str {
        match self.compute {
            Compute::F32 => "fp32",
            Compute::Bf16 => "bf16",
            Compute::F16 => "fp16",
        }
    }

    fn finish(&self) {
        // What went wrong shows where something is read.
        let _ = self.device.sync();
    }

    fn freeze(&self, data: Vec<f32>, n_out: usize, n_in: usize, _trains: bool) -> Frozen {
        let matrix = CubeMatrix::new(&self.cube, self.compute, &data, n_out, n_in);
        Frozen::new(n_out, n_in, FrozenForm::Cube(Arc::new(matrix)))
    }

    fn freeze_codes(&self, codes: Codes, _trains: bool) -> Frozen {
        let (n_out, n_in) = (codes.n_out, codes.n_in);
        Frozen::new(n_out, n_in, FrozenForm::Cube(Arc::new(CubeMatrix::in_codes(&self.cube, &codes))))
    }

    fn embed(&self, table: &Frozen, tokens: &[u32]) -> Tensor<2> {
        match matrix(table) {
            None => self.stock.embed(table, tokens),
            Some(matrix) => {
                let indices = send(&self.cube, tokens, [1, tokens.len()]);
                tensor(AdTensor::new(matrix.rows(&indices)))
            }
        }
    }

    fn rms_norm(&self, x: Tensor<2>, weight: &Arc<Vec<f32>>, eps: f32) -> Tensor<2> {
        let x = primitive(x);
        let input = contiguous(x.primitive().clone());
        let weight = self.held.row(&self.cube, weight);
        let y = pointwise::rms_norm(&input, &weight, eps, input.dtype);
        unary(&x, y, NormState { x: input, weight, eps })
    }

    fn linear(&self, x: Tensor<2>, weight: &Frozen, lora: Option<&Lora>) -> Tensor<2> {
        let Some(matrix) = matrix(weight) else { return self.stock.linear(x, weight, lora) };
        let y = match lora {
            Some(lora @ Lora { dora: Some(dora), .. }) => return super::dora::linear(self, x, weight, lora, dora),
            Some(lora @ Lora { dropout: Some(drop), .. }) => {
                return super::dropout::linear(self, x, weight, lora, drop);
            }
            lora => linear::linear(self.compute, x, matrix, lora),
        };
        let Some(bias) = &weight.bias else { return y };
        let y = primitive(y);
        let sum = contiguous(y.primitive().copy());
        pointwise::add_row(&sum, &self.held.row(&self.cube, bias));
        unary(&y, sum, BiasState)
    }

    fn layer(&self, x: Tensor<2>, block: &Block, plan: &AttentionPlan) -> Option<Tensor<2>> {
        layer::layer(self, x, block, plan)
    }

    fn has_layer(&self) -> bool {
        true
    }

    fn layer_takes_dora(&self) -> bool {
        false
    }

    fn dora_norms(&self, weight: &Frozen, lora: &Lora) -> Vec<f32> {
        self.stock.dora_norms(weight, lora)
    }

    fn attention(
        &self,
        q: Tensor<2>,
        k: Tensor<2>,
        v: Tensor<2>,
        plan: &AttentionPlan,
        past: Option<&LayerKv>,
    ) -> Tensor<2> {
        let tables = self.tables(plan);
        let past = past.map(|past| [bare(&past.keys), bare(&past.values)]);
        attention::attention([q, k, v], plan, &tables, past)
    }

    fn rotate_keys(&self, k: Tensor<2>, plan: &AttentionPlan) -> Tensor<2> {
        let rotated = attention::rotate(&bare(&k), plan, &self.tables(plan), 1.0);
        tensor(AdTensor::new(rotated))
    }

    fn add(&self, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
        a + b
    }

    fn swiglu(&self, gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
        gated(Gate::Silu, gate, up)
    }

    fn geglu(&self, gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
        gated(Gate::GeluTanh, gate, up)
    }

    fn linear_cross_entropy(
        &self,
        hidden: Tensor<2>,
        head: &Frozen,
        targets: &[Target],
        denominator: f32,
    ) -> Tensor<1> {
        match matrix(head) {
            _ if targets.is_empty() => self.stock.linear_cross_entropy(hidden, head, targets, denominator),
            None => self.stock.linear_cross_entropy(hidden, head, targets, denominator),
            Some(_) if head.softcap.is_some() => softcap::cross_entropy(self, hidden, head, targets, denominator),
            Some(matrix) => loss::linear_cross_entropy(self.compute, hidden, matrix, targets, denominator),
        }
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
        let Some(matrix) = matrix(head) else { return self.stock.logits(hidden, head, rows) };
        let hidden = bare(hidden);
        let mut logits = loss::logits(self.compute, &hidden, matrix, rows);
        softcap::cap_values(&mut logits, head.softcap);
        logits
    }

    fn logits_of(&self, hidden: &Tensor<2>, head: &Frozen, queries: &[(usize, Vec<u32>)]) -> Vec<Vec<f32>> {
        let Some(matrix) = matrix(head) else { return self.stock.logits_of(hidden, head, queries) };
        let rows: Vec<u32> = queries.iter().flat_map(|(row, of)| of.iter().map(|_| *row as u32)).collect();
        let tokens: Vec<u32> = queries.iter().flat_map(|(_, of)| of.iter().copied()).collect();
        if tokens.is_empty() {
            return queries.iter().map(|_| Vec::new()).collect();
        }
        let hidden = bare(hidden);
        let mut logits = loss::read(loss::logits_of(&hidden, matrix, &rows, &tokens));
        softcap::cap_values(&mut logits, head.softcap);
        let mut logits = logits.into_iter();
        queries.iter().map(|(_, of)| logits.by_ref().take(of.len()).collect()).collect()
    }

    fn keeps_parameters(&self) -> bool {
        true
    }

    fn square_sums(&self, gradients: &[&Tensor<2>]) -> Result<Vec<f64>, DeviceFault> {
        let n = gradients.len();
        if n == 0 {
            return Ok(Vec::new());
        }
        let sums = send(&self.cube, &vec![0f32; n], [1, n]);
        for (slot, gradient) in gradients.iter().enumerate() {
            adamw::squares(&bare(gradient), &sums, slot);
        }
        Ok(fault::read(&tensor(AdTensor::new(sums)))?.into_iter().map(f64::from).collect())
    }

    fn update(&self, parameter: &mut Resident, gradient: &Tensor<2>, by: &Update) {
        let [value, first, second] = [&parameter.value, &parameter.first, &parameter.second].map(bare);
        adamw::adamw([&value, &first, &second], &bare(gradient), by);
        let made = [value, first, second].map(|t| tensor(AdTensor::new(t)));
        let [value, first, second] = made;
        *parameter = Resident { value, first, second };
    }
}
