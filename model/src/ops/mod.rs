//! The op set of the hot path: what a decoder layer is made of, each op with its gradient. [`stock`] writes them in plain
//! burn and runs on every device; [`flex`] are our own kernels for the CPU and `cube` those for GPUs, tested against it.

pub mod blocks;
pub mod codes;
#[cfg(feature = "cube")]
pub mod cube;
pub mod dora;
pub mod dropout;
pub mod flex;
mod growing;

pub mod single;
mod soft;
mod softcap;
pub mod stock;
pub mod tap;
pub mod update;

pub use soft::{SoftTarget, SoftTargetError};
pub use softcap::cap as capped;

use crate::config::Rope;
use crate::divergence::Divergence;
use crate::fault::{self, DeviceFault};
use crate::layout::{Packed, Segment};
use blocks::Blocks;
use burn::tensor::{Device, Tensor, TensorData};
use codes::Codes;
use std::sync::{Arc, OnceLock};
use update::{Resident, Update};

/// A linear map of the base: a matrix, `[out, in]` as Hugging Face stores it, in the form its op set wants, and what follows
/// it. It is frozen, unless a full fine-tuning trains it ([`Frozen::trained`]).
#[derive(Clone, Debug)]
pub struct Frozen {
    pub n_out: usize,
    pub n_in: usize,
    /// `[out]`, added by [`Ops::linear`].
    pub bias: Option<Arc<Vec<f32>>>,
    /// Of a head: its logits are `c · tanh(z / c)`, wherever an op computes them.
    pub softcap: Option<f32>,
    /// Squared norms of its rows, worked out when they are first asked for.
    pub(crate) row_squares: Arc<OnceLock<Vec<f64>>>,
    pub(crate) form: FrozenForm,
}

impl Frozen {
    pub(crate) fn new(n_out: usize, n_in: usize, form: FrozenForm) -> Self {
        Frozen { n_out, n_in, bias: None, softcap: None, row_squares: Arc::default(), form }
    }

    /// A map whose weight `[out, in]`, and bias `[1, out]` if there is one, take gradients; on every op set.
    pub fn trained(weight: Tensor<2>, bias: Option<Tensor<2>>) -> Self {
        let [n_out, n_in] = weight.dims();
        Frozen::new(n_out, n_in, FrozenForm::Trained { weight: Box::new(weight), bias: bias.map(Box::new) })
    }

    pub fn with_bias(self, bias: Option<Arc<Vec<f32>>>) -> Self {
        Frozen { bias, ..self }
    }

    /// Memory that the matrix takes on its device.
    pub fn bytes(&self) -> usize {
        match &self.form {
            FrozenForm::Flex(matrix) => matrix.bytes(),
            #[cfg(feature = "cube")]
            FrozenForm::Cube(matrix) => matrix.bytes(),
            FrozenForm::Stock(_) | FrozenForm::Trained { .. } => 4 * self.n_out * self.n_in,
        }
    }

    pub fn with_softcap(self, softcap: Option<f32>) -> Self {
        Frozen { softcap, ..self }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum FrozenForm {
    Flex(Arc<flex::FlexMatrix>),
    Stock(Box<Tensor<2>>),
    #[cfg(feature = "cube")]
    Cube(Arc<cube::CubeMatrix>),
    Trained {
        weight: Box<Tensor<2>>,
        bias: Option<Box<Tensor<2>>>,
    },
}

/// The two factors of a LoRA adapter as they take part in a step: `a` is `[r, in]`, `b` is `[out, r]`, as in PEFT.
#[derive(Clone, Debug)]
pub struct Lora {
    pub a: Tensor<2>,
    pub b: Tensor<2>,
    pub scaling: f32,
    /// The trained lengths of the rows, where it is a DoRA adapter.
    pub dora: Option<dora::Dora>,
    /// In training only, and only where the recipe asks for it.
    pub dropout: Option<dropout::Dropout>,
}

/// Keys (rotated) and values of one layer, each `[tokens, kv_heads * head_dim]`.
#[derive(Clone, Debug)]
pub struct LayerKv {
    pub keys: Tensor<2>,
    pub values: Tensor<2>,
}

/// Rotated keys and values of one sequence at one layer, in the order of its tokens; more come at its end. The op set that
/// puts something in chooses the form.
#[derive(Clone, Debug, Default)]
pub enum GrowingKv {
    #[default]
    Empty,
    Tensors(Box<LayerKv>),
    Blocks(flex::KvBlocks),
}

impl GrowingKv {
    fn tensors(&self) -> Option<&LayerKv> {
        match self {
            GrowingKv::Tensors(kv) => Some(kv),
            GrowingKv::Empty => None,
            GrowingKv::Blocks(_) => unreachable!("a sequence that the flex ops read was given to others"),
        }
    }

    fn blocks_mut(&mut self) -> &mut flex::KvBlocks {
        if matches!(self, GrowingKv::Empty) {
            *self = GrowingKv::Blocks(flex::KvBlocks::default());
        }
        match self {
            GrowingKv::Blocks(blocks) => blocks,
            _ => unreachable!("a sequence that other ops read was given to the flex ops"),
        }
    }
}

/// Each token's angles: cosine and sine, `[tokens, head_dim / 2]`.
#[derive(Clone, Debug)]
pub struct Rotation {
    pub cos: Arc<Vec<f32>>,
    pub sin: Arc<Vec<f32>>,
}

impl Rotation {
    /// In float32 as PyTorch computes them.
    pub fn new(rope: &Rope, head_dim: usize, positions: &[u32]) -> Self {
        let (frequencies, factor) = (rope.frequencies(head_dim), rope.attention_factor());
        let mut cos = Vec::with_capacity(positions.len() * frequencies.len());
        let mut sin = Vec::with_capacity(positions.len() * frequencies.len());
        for &position in positions {
            for f in &frequencies {
                let (s, c) = (position as f32 * f).sin_cos();
                cos.push(factor * c);
                sin.push(factor * s);
            }
        }
        Rotation { cos: Arc::new(cos), sin: Arc::new(sin) }
    }
}

/// What attention must know beside its inputs: one layer's plan over one batch.
#[derive(Clone, Debug)]
pub struct AttentionPlan {
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub batch: Arc<Packed>,
    pub segments: Arc<Vec<Segment>>,
    /// `None`: queries and keys stay as they are.
    pub rotation: Option<Rotation>,
    /// Multiplies the scores.
    pub scale: f32,
    /// Then they become `c · tanh(score / c)`.
    pub softcap: Option<f32>,
    /// A token sees those whose position is less than this below its own.
    pub window: Option<usize>,
}

impl AttentionPlan {
    /// The plain plan: every head rotated from base `rope_theta`, scores over `√head_dim`, the whole row seen.
    pub fn new(n_heads: usize, n_kv_heads: usize, head_dim: usize, rope_theta: f64, batch: Arc<Packed>) -> Self {
        let rotation = Some(Rotation::new(&Rope::plain(rope_theta), head_dim, &batch.positions));
        let segments = Arc::new(batch.segments());
        let scale = 1.0 / (head_dim as f32).sqrt();
        AttentionPlan { n_heads, n_kv_heads, head_dim, batch, segments, rotation, scale, softcap: None, window: None }
    }
}

/// One position that carries loss: the hidden state at `row` should predict `token`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    pub row: usize,
    pub token: u32,
    pub weight: f32,
}

/// A decoder layer of the plain kind: norm, attention (with norms over heads or without), residual sum, norm, SwiGLU, residual
/// sum.
pub struct Block<'a> {
    /// In the order of [`crate::decoder::LINEARS`].
    pub linears: [&'a Frozen; 7],
    pub lora: [Option<Lora>; 7],
    pub input_norm: &'a Arc<Vec<f32>>,
    /// Over each head of queries and keys, where the family has them.
    pub head_norms: Option<[&'a Arc<Vec<f32>>; 2]>,
    pub post_norm: &'a Arc<Vec<f32>>,
    pub eps: f32,
    /// Keep the input only and run the layer again in the backward pass.
    pub checkpoint: bool,
}

/// The ops of a decoder. All activations are `[tokens, width]`; all gradients are exact.
pub trait Ops: Send + Sync {
    fn device(&self) -> Device;

    /// What the matrix products compute in, for a person and for the key of a checkpoint.
    fn compute(&self) -> &'static str {
        "fp32"
    }

    /// Does `work`, which is many ops, where they are handed to threads at the least cost.
    fn at_once(&self, work: &mut (dyn FnMut() + Send)) {
        work();
    }

    /// Waits until the device has done all that was asked of it.
    fn finish(&self) {}

    /// Takes a frozen matrix `[n_out, n_in]`; `trains` says that gradients must flow through it to its input.
    fn freeze(&self, data: Vec<f32>, n_out: usize, n_in: usize, trains: bool) -> Frozen;

    /// The same of a matrix in codes. An op set without products for them decodes it here, and saves no memory.
    fn freeze_codes(&self, codes: Codes, trains: bool) -> Frozen {
        self.freeze(codes.dequantize(), codes.n_out, codes.n_in, trains)
    }

    /// The same of a matrix in a GGUF file's blocks, for inference: products with it round their input to int8, as llama.cpp's
    /// do. An op set without such products decodes it here, and rounds nothing.
    fn freeze_blocks(&self, blocks: Blocks) -> Frozen {
        self.freeze(blocks.dequantize(), blocks.n_out, blocks.n_in, false)
    }

    /// Rows of the embedding table.
    fn embed(&self, table: &Frozen, tokens: &[u32]) -> Tensor<2>;

    /// `x / sqrt(mean(x²) + eps) · weight`, `weight` frozen, `[width]`.
    fn rms_norm(&self, x: Tensor<2>, weight: &Arc<Vec<f32>>, eps: f32) -> Tensor<2>;

    /// The same with a weight that takes a gradient, `[1, width]`.
    fn rms_norm_trained(&self, x: Tensor<2>, weight: Tensor<2>, eps: f32) -> Tensor<2> {
        let scale = (x.clone().powi_scalar(2).mean_dim(1) + eps).sqrt();
        x / scale * weight
    }

    /// `x Wᵀ + scaling · (drop(x) Aᵀ) Bᵀ`, plus the bias if there is one; the product `B A` is never formed. Under DoRA, what
    /// the two terms give is scaled column by column.
    fn linear(&self, x: Tensor<2>, weight: &Frozen, lora: Option<&Lora>) -> Tensor<2>;

    /// `y ⊙ scale + bias`; `scale` is `[1, width]` and takes a gradient, the bias is frozen.
    fn scale_columns(&self, y: Tensor<2>, scale: Tensor<2>, bias: Option<&Arc<Vec<f32>>>) -> Tensor<2> {
        let width = y.dims()[1];
        let y = y * scale;
        match bias {
            None => y,
            Some(bias) => y + Tensor::from_data(TensorData::new(bias.to_vec(), [1, width]), &self.device()),
        }
    }

    /// Row norms of `W₀ + s·B·A`. No gradient.
    fn dora_norms(&self, weight: &Frozen, lora: &Lora) -> Vec<f32> {
        dora::norms(self, weight, lora)
    }

    /// Whether [`Ops::layer`] answers for a layer of the plain kind without dropout.
    fn has_layer(&self) -> bool {
        false
    }

    /// Whether that holds under DoRA, too.
    fn layer_takes_dora(&self) -> bool {
        self.has_layer()
    }

    /// A whole layer as one op, where the op set has one for such a plan; the decoder composes it from the others otherwise.
    fn layer(&self, x: Tensor<2>, block: &Block, plan: &AttentionPlan) -> Option<Tensor<2>> {
        let _ = (x, block, plan);
        None
    }

    /// Rotary embedding on queries and keys, then grouped-query attention as the plan's layout says. `past` holds the
    /// positions from 0 on, is seen by every token whose window reaches it, and takes no gradient.
    fn attention(
        &self,
        q: Tensor<2>,
        k: Tensor<2>,
        v: Tensor<2>,
        plan: &AttentionPlan,
        past: Option<&LayerKv>,
    ) -> Tensor<2>;

    /// Attention of chains without a prefix of their own, row `i` of the plan's batch going on from `shared` and then from
    /// `rows[i]`, to which its rotated keys and its values are added. `qkv` are queries, keys and values, not rotated. No
    /// gradient.
    fn attention_growing(
        &self,
        qkv: [Tensor<2>; 3],
        plan: &AttentionPlan,
        shared: &GrowingKv,
        rows: &mut [&mut GrowingKv],
    ) -> Tensor<2> {
        growing::row_by_row(self, qkv, plan, shared, rows)
    }

    /// A whole layer of [`Ops::attention_growing`]'s chains as one op, where the op set has one for such a layer.
    fn layer_growing(
        &self,
        x: &Tensor<2>,
        block: &Block,
        plan: &AttentionPlan,
        shared: &GrowingKv,
        rows: &mut [&mut GrowingKv],
    ) -> Option<Tensor<2>> {
        let _ = (x, block, plan, shared, rows);
        None
    }

    /// The keys as attention rotates them, for the cache.
    fn rotate_keys(&self, k: Tensor<2>, plan: &AttentionPlan) -> Tensor<2>;

    /// The residual sum.
    fn add(&self, a: Tensor<2>, b: Tensor<2>) -> Tensor<2>;

    /// `silu(gate) · up`.
    fn swiglu(&self, gate: Tensor<2>, up: Tensor<2>) -> Tensor<2>;

    /// `gelu(gate) · up`, GELU by its tanh formula.
    fn geglu(&self, gate: Tensor<2>, up: Tensor<2>) -> Tensor<2>;

    /// `Σ weight · nll / denominator` over the targets, a tensor `[1]`; the head runs on the targets' rows only.
    fn linear_cross_entropy(&self, hidden: Tensor<2>, head: &Frozen, targets: &[Target], denominator: f32)
    -> Tensor<1>;

    /// `Σ weight · D(teacher, student) / denominator` over the targets, a tensor `[1]`: the divergence of what a teacher
    /// told of each position, its tail as one more outcome ([`SoftTarget`]). The head runs on the targets' rows only.
    fn linear_divergence(
        &self,
        hidden: Tensor<2>,
        head: &Frozen,
        targets: &[SoftTarget],
        divergence: Divergence,
        denominator: f32,
    ) -> Tensor<1>;

    /// Logits of all tokens at the given rows: `[rows, vocabulary]`. No gradient.
    fn logits(&self, hidden: &Tensor<2>, head: &Frozen, rows: &[usize]) -> Vec<f32>;

    /// Logits of chosen tokens, each query `(row, tokens)`. No gradient.
    fn logits_of(&self, hidden: &Tensor<2>, head: &Frozen, queries: &[(usize, Vec<u32>)]) -> Vec<Vec<f32>>;

    /// Whether parameters that are trained had better stay on the device between steps than be sent there for each.
    fn keeps_parameters(&self) -> bool {
        false
    }

    /// The sum of the squares of each gradient's elements.
    ///
    /// # Errors
    /// When the device could not compute the gradients.
    fn square_sums(&self, gradients: &[&Tensor<2>]) -> Result<Vec<f64>, DeviceFault> {
        let squares = |g: &&Tensor<2>| Ok(fault::read(g)?.iter().map(|x| f64::from(*x) * f64::from(*x)).sum());
        gradients.iter().map(squares).collect()
    }

    /// A step of AdamW. The parameter is this one's own: it may change where it lies.
    fn update(&self, parameter: &mut Resident, gradient: &Tensor<2>, by: &Update) {
        update::update(parameter, gradient, by);
    }
}
