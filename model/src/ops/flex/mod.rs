//! The op set on burn's Flex backend with our own kernels and hand-written backward passes. Frozen weights take no
//! gradient, `B A` is never formed, logits exist at label positions only, and attention goes row by row.

mod attend;
mod attention;
pub mod bf16;
mod bias;
mod blocks;
pub mod buffer;
mod codes;
mod compute;
mod crew;
mod dense;
mod divergence;
mod gated;
mod growing;
mod kernels;
mod layer;
mod linear;
mod loss;
mod pointwise;
mod scale;
mod shared;
mod simd;
mod strips;

pub use compute::Compute;
pub use growing::KvBlocks;
pub use kernels::{Float, Threads, View, matmul};
pub(crate) use kernels::{largest, sum_of_exp};

use super::blocks::Blocks;
use super::codes::Codes;
use super::{
    AttentionPlan, Block, Frozen, FrozenForm, GrowingKv, LayerKv, Lora, Ops, SoftTarget, Target, soft, softcap,
};
use crate::divergence::Divergence;
use blocks::BlockMatrix;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Flex};
use burn::tensor::{Bytes, DType, Device, Int, Shape, Tensor, TensorData};
use burn_flex::{FlexTensor, Layout};
use std::sync::Arc;
use strips::Strips;

type Ad = Autodiff<Flex, NoCheckpointing>;
type AdTensor = FloatTensor<Ad>;

/// A frozen matrix `[out, in]`, packed for both passes.
#[derive(Debug)]
pub(crate) enum FlexMatrix {
    /// In both orders: `wt` (`[in, out]`) serves the forward product, `w` (`[out, in]`) the backward one and row look-ups.
    /// A right-hand side in its natural order keeps the GEMM at full speed.
    F32 { w: Vec<f32>, wt: Vec<f32> },
    /// `forward` multiplies `[n, in]`, `backward` `[n, out]`; the latter is there where gradients must flow through.
    Bf16 { engine: bf16::Engine, forward: bf16::Right, backward: Option<bf16::Right> },
    /// For writing: the forward product alone, of any number of rows with the same bits.
    Strips(Strips),
    /// Not packed: both passes decode the same codes.
    Codes { compute: Compute, codes: Codes },
    /// For inference: multiplied as it is, with its input rounded. `compute` is that of other matrices.
    Blocks { compute: Compute, matrix: BlockMatrix },
}

impl FlexMatrix {
    fn new(compute: Compute, data: Vec<f32>, n_out: usize, n_in: usize, trains: bool) -> Self {
        match compute {
            Compute::F32 => {
                let wt = kernels::transpose(&data, n_out, n_in);
                FlexMatrix::F32 { w: data, wt }
            }
            Compute::Strips => FlexMatrix::Strips(Strips::from_columns(&data, n_in, n_in, n_out)),
            Compute::Bf16(engine) => FlexMatrix::Bf16 {
                engine,
                forward: bf16::Right::from_columns(&data, n_in, n_in, n_out),
                backward: trains.then(|| bf16::Right::from_rows(&data, n_in, n_out, n_in)),
            },
        }
    }

    /// Appends row `i`, `[n_in]`.
    fn push_row(&self, i: usize, n_in: usize, out: &mut Vec<f32>) {
        match self {
            FlexMatrix::F32 { w, .. } => out.extend_from_slice(&w[i * n_in..][..n_in]),
            FlexMatrix::Bf16 { forward, .. } => {
                let from = out.len();
                out.resize(from + n_in, 0.0);
                forward.column(i, &mut out[from..]);
            }
            FlexMatrix::Strips(strips) => {
                let from = out.len();
                out.resize(from + n_in, 0.0);
                strips.column(i, &mut out[from..]);
            }
            FlexMatrix::Codes { codes, .. } => {
                let from = out.len();
                out.resize(from + n_in, 0.0);
                codes.decode(i * n_in, &mut out[from..]);
            }
            FlexMatrix::Blocks { matrix, .. } => {
                let from = out.len();
                out.resize(from + n_in, 0.0);
                matrix.column(i, &mut out[from..]);
            }
        }
    }

    /// Memory taken.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            FlexMatrix::F32 { w, wt } => 4 * (w.len() + wt.len()),
            FlexMatrix::Bf16 { forward, backward, .. } => {
                forward.bytes() + backward.as_ref().map_or(0, bf16::Right::bytes)
            }
            FlexMatrix::Strips(strips) => strips.bytes(),
            FlexMatrix::Codes { codes, .. } => codes.bytes(),
            FlexMatrix::Blocks { matrix, .. } => matrix.bytes(),
        }
    }
}

/// Our CPU kernels.
pub struct FlexOps {
    device: Device,
    compute: Compute,
    inputs: linear::Inputs,
}

impl Default for FlexOps {
    fn default() -> Self {
        FlexOps::new(Compute::F32)
    }
}

impl FlexOps {
    pub fn new(compute: Compute) -> Self {
        FlexOps { device: Device::flex().autodiff(), compute, inputs: linear::Inputs::default() }
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
        #[cfg(feature = "cube")]
        FrozenForm::Cube(_) => unreachable!("a matrix frozen by a GPU's ops was given to the flex ops"),
        FrozenForm::Trained { .. } => unreachable!("a matrix that is trained was taken for a frozen one"),
    }
}

impl Ops for FlexOps {
    fn device(&self) -> Device {
        self.device.clone()
    }

    fn compute(&self) -> &'static str {
        match self.compute {
            Compute::F32 | Compute::Strips => "fp32",
            Compute::Bf16(engine) => engine.name(),
        }
    }

    /// On a thread of the pool: one from outside would be put to sleep and woken by every op.
    fn at_once(&self, work: &mut (dyn FnMut() + Send)) {
        rayon::scope(|_| work());
    }

    fn freeze(&self, data: Vec<f32>, n_out: usize, n_in: usize, trains: bool) -> Frozen {
        let matrix = FlexMatrix::new(self.compute, data, n_out, n_in, trains);
        Frozen::new(n_out, n_in, FrozenForm::Flex(Arc::new(matrix)))
    }

    fn freeze_codes(&self, codes: Codes, _trains: bool) -> Frozen {
        let (n_out, n_in) = (codes.n_out, codes.n_in);
        let matrix = FlexMatrix::Codes { compute: self.compute, codes };
        Frozen::new(n_out, n_in, FrozenForm::Flex(Arc::new(matrix)))
    }

    fn freeze_blocks(&self, blocks: Blocks) -> Frozen {
        let (n_out, n_in) = (blocks.n_out, blocks.n_in);
        let matrix = FlexMatrix::Blocks { compute: self.compute, matrix: BlockMatrix::new(&blocks) };
        Frozen::new(n_out, n_in, FrozenForm::Flex(Arc::new(matrix)))
    }

    fn embed(&self, table: &Frozen, tokens: &[u32]) -> Tensor<2> {
        if let FrozenForm::Trained { weight, .. } = &table.form {
            return dense::embed(weight.as_ref().clone(), tokens);
        }
        let width = table.n_in;
        let mut out = Vec::with_capacity(tokens.len() * width);
        for &token in tokens {
            matrix(table).push_row(token as usize, width, &mut out);
        }
        Tensor::from_data(TensorData::new(out, [tokens.len(), width]), &self.device)
    }

    fn rms_norm(&self, x: Tensor<2>, weight: &Arc<Vec<f32>>, eps: f32) -> Tensor<2> {
        pointwise::rms_norm(x, weight, eps)
    }

    fn rms_norm_trained(&self, x: Tensor<2>, weight: Tensor<2>, eps: f32) -> Tensor<2> {
        dense::rms_norm(x, weight, eps)
    }

    fn linear(&self, x: Tensor<2>, weight: &Frozen, lora: Option<&Lora>) -> Tensor<2> {
        if let FrozenForm::Trained { weight, bias } = &weight.form {
            debug_assert!(lora.is_none(), "an adapter beside weights that are trained themselves");
            let y = dense::linear(self.compute, x, weight.as_ref().clone());
            return match bias {
                None => y,
                Some(bias) => y + bias.as_ref().clone(),
            };
        }
        let y = match lora {
            None => linear::frozen(&self.inputs, x, weight.n_out, weight.n_in, matrix(weight)),
            Some(lora @ Lora { dora: Some(dora), .. }) => return super::dora::linear(self, x, weight, lora, dora),
            Some(lora @ Lora { dropout: Some(drop), .. }) => {
                return super::dropout::linear(self, x, weight, lora, drop);
            }
            Some(lora) => linear::lora(&self.inputs, x, weight.n_out, weight.n_in, matrix(weight), lora),
        };
        match &weight.bias {
            None => y,
            Some(bias) => bias::add_bias(y, bias),
        }
    }

    fn scale_columns(&self, y: Tensor<2>, scale: Tensor<2>, bias: Option<&Arc<Vec<f32>>>) -> Tensor<2> {
        scale::scale_columns(y, scale, bias)
    }

    fn layer(&self, x: Tensor<2>, block: &Block, plan: &AttentionPlan) -> Option<Tensor<2>> {
        let in_blocks = |frozen: &&Frozen| matches!(**matrix(frozen), FlexMatrix::Blocks { .. });
        let dropped = block.lora.iter().flatten().any(|lora| lora.dropout.is_some());
        if !self.has_layer() || dropped || block.linears.iter().any(in_blocks) {
            return None;
        }
        let norms = std::array::from_fn(|i| {
            let lora = block.lora[i].as_ref()?;
            Some(lora.dora.as_ref()?.norms(self, block.linears[i], lora))
        });
        Some(layer::layer(x, block, norms, plan))
    }

    /// Not for writing, where attention goes on from what was read before.
    fn has_layer(&self) -> bool {
        self.compute != Compute::Strips
    }

    fn attention(
        &self,
        q: Tensor<2>,
        k: Tensor<2>,
        v: Tensor<2>,
        plan: &AttentionPlan,
        past: Option<&LayerKv>,
    ) -> Tensor<2> {
        // The ops for writing keep each row's bits its own, whatever the rows are.
        match self.compute == Compute::Strips && plan.batch.prefix == 0 {
            true => growing::trees([q, k, v], plan, past),
            false => attention::attention(q, k, v, plan, past),
        }
    }

    fn attention_growing(
        &self,
        qkv: [Tensor<2>; 3],
        plan: &AttentionPlan,
        shared: &GrowingKv,
        rows: &mut [&mut GrowingKv],
    ) -> Tensor<2> {
        let mut rows: Vec<&mut KvBlocks> = rows.iter_mut().map(|row| row.blocks_mut()).collect();
        match shared {
            GrowingKv::Blocks(shared) => growing::attention(qkv, plan, shared, &mut rows),
            _ => growing::attention(qkv, plan, &KvBlocks::default(), &mut rows),
        }
    }

    fn layer_growing(
        &self,
        x: &Tensor<2>,
        block: &Block,
        plan: &AttentionPlan,
        shared: &GrowingKv,
        rows: &mut [&mut GrowingKv],
    ) -> Option<Tensor<2>> {
        let maps = blocks::layer::maps(block)?;
        let mut rows: Vec<&mut KvBlocks> = rows.iter_mut().map(|row| row.blocks_mut()).collect();
        let nothing = KvBlocks::default();
        let shared = match shared {
            GrowingKv::Blocks(shared) => shared,
            _ => &nothing,
        };
        Some(blocks::layer::layer(x, block, maps, plan, shared, &mut rows))
    }

    fn rotate_keys(&self, k: Tensor<2>, plan: &AttentionPlan) -> Tensor<2> {
        attention::rotate_keys(k, plan)
    }

    fn add(&self, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
        pointwise::add(a, b)
    }

    fn swiglu(&self, gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
        gated::gated(gated::Activation::Silu, gate, up)
    }

    fn geglu(&self, gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
        gated::gated(gated::Activation::GeluTanh, gate, up)
    }

    fn linear_cross_entropy(
        &self,
        hidden: Tensor<2>,
        head: &Frozen,
        targets: &[Target],
        denominator: f32,
    ) -> Tensor<1> {
        if head.softcap.is_some() {
            return softcap::cross_entropy(self, hidden, head, targets, denominator);
        }
        if let FrozenForm::Trained { weight, .. } = &head.form {
            return dense::linear_cross_entropy(self.compute, hidden, weight.as_ref().clone(), targets, denominator);
        }
        loss::linear_cross_entropy(hidden, head.n_out, matrix(head), targets, denominator)
    }

    fn linear_divergence(
        &self,
        hidden: Tensor<2>,
        head: &Frozen,
        targets: &[SoftTarget],
        divergence: Divergence,
        denominator: f32,
    ) -> Tensor<1> {
        if head.softcap.is_some() {
            return soft::linear_divergence(self, hidden, head, targets, divergence, denominator);
        }
        if let FrozenForm::Trained { weight, .. } = &head.form {
            let weight = weight.as_ref().clone();
            return dense::linear_divergence(self.compute, hidden, weight, targets, divergence, denominator);
        }
        divergence::linear_divergence(hidden, head.n_out, matrix(head), targets, divergence, denominator)
    }

    fn logits(&self, hidden: &Tensor<2>, head: &Frozen, rows: &[usize]) -> Vec<f32> {
        let mut logits = match &head.form {
            FrozenForm::Trained { weight, .. } => {
                let indices: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
                let indices = Tensor::<1, Int>::from_data(TensorData::new(indices, [rows.len()]), &self.device);
                let rows = hidden.clone().select(0, indices);
                super::stock::to_vec(&dense::linear(self.compute, rows, weight.as_ref().clone()))
            }
            _ => loss::logits(hidden, head.n_out, head.n_in, matrix(head), rows),
        };
        softcap::cap_values(&mut logits, head.softcap);
        logits
    }

    fn logits_of(&self, hidden: &Tensor<2>, head: &Frozen, queries: &[(usize, Vec<u32>)]) -> Vec<Vec<f32>> {
        if let FrozenForm::Trained { .. } = &head.form {
            let of = |(row, tokens): &(usize, Vec<u32>)| {
                let logits = self.logits(hidden, head, &[*row]);
                tokens.iter().map(|&token| logits[token as usize]).collect()
            };
            return queries.iter().map(of).collect();
        }
        let mut logits = loss::logits_of(hidden, head.n_in, matrix(head), queries);
        logits.iter_mut().for_each(|row| softcap::cap_values(row, head.softcap));
        logits
    }
}
