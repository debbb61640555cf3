//! The op set of the hot path: what a decoder layer is made of, each op with its gradient. [`stock`] writes them in plain
//! burn and runs on every device; [`flex`] are our own kernels for the CPU, tested against it.

pub mod dropout;
pub mod flex;
pub mod stock;

use crate::layout::{Packed, Segment};
use burn::tensor::{Device, Tensor};
use std::sync::Arc;

/// A frozen weight matrix, `[out, in]` as Hugging Face stores it, in the form its op set wants.
#[derive(Clone, Debug)]
pub struct Frozen {
    pub n_out: usize,
    pub n_in: usize,
    pub(crate) form: FrozenForm,
}

#[derive(Clone, Debug)]
pub(crate) enum FrozenForm {
    Flex(Arc<flex::FlexMatrix>),
    Stock(Box<Tensor<2>>),
}

/// The two factors of a LoRA adapter as they take part in a step: `a` is `[r, in]`, `b` is `[out, r]`, as in PEFT.
#[derive(Clone, Debug)]
pub struct Lora {
    pub a: Tensor<2>,
    pub b: Tensor<2>,
    pub scaling: f32,
    /// In training only, and only where the recipe asks for it.
    pub dropout: Option<dropout::Dropout>,
}

/// Keys (rotated) and values of one layer, each `[tokens, kv_heads * head_dim]`.
#[derive(Clone, Debug)]
pub struct LayerKv {
    pub keys: Tensor<2>,
    pub values: Tensor<2>,
}

/// What attention must know beside its inputs.
#[derive(Clone, Debug)]
pub struct AttentionPlan {
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub batch: Arc<Packed>,
    pub segments: Arc<Vec<Segment>>,
    /// `[tokens, head_dim / 2]`: cosine and sine of each token's angle.
    pub cos: Arc<Vec<f32>>,
    pub sin: Arc<Vec<f32>>,
}

impl AttentionPlan {
    /// Angles in float32 as PyTorch computes them: `position · theta^(-2j/d)`.
    pub fn new(n_heads: usize, n_kv_heads: usize, head_dim: usize, rope_theta: f64, batch: Arc<Packed>) -> Self {
        let half = head_dim / 2;
        let frequency: Vec<f32> =
            (0..half).map(|j| 1.0 / (rope_theta as f32).powf(2.0 * j as f32 / head_dim as f32)).collect();
        let mut cos = Vec::with_capacity(batch.len() * half);
        let mut sin = Vec::with_capacity(batch.len() * half);
        for &position in &batch.positions {
            for f in &frequency {
                let (s, c) = (position as f32 * f).sin_cos();
                cos.push(c);
                sin.push(s);
            }
        }
        let segments = Arc::new(batch.segments());
        AttentionPlan { n_heads, n_kv_heads, head_dim, batch, segments, cos: Arc::new(cos), sin: Arc::new(sin) }
    }
}

/// One position that carries loss: the hidden state at `row` should predict `token`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    pub row: usize,
    pub token: u32,
    pub weight: f32,
}

/// The ops of a decoder. All activations are `[tokens, width]`; all gradients are exact.
pub trait Ops: Send + Sync {
    fn device(&self) -> Device;

    /// Takes a frozen matrix `[n_out, n_in]`; `trains` says that gradients must flow through it to its input.
    fn freeze(&self, data: Vec<f32>, n_out: usize, n_in: usize, trains: bool) -> Frozen;

    /// Rows of the embedding table.
    fn embed(&self, table: &Frozen, tokens: &[u32]) -> Tensor<2>;

    /// `x / sqrt(mean(x²) + eps) · weight`, `weight` frozen, `[width]`.
    fn rms_norm(&self, x: Tensor<2>, weight: &Arc<Vec<f32>>, eps: f32) -> Tensor<2>;

    /// `x Wᵀ + scaling · (drop(x) Aᵀ) Bᵀ`; the product `B A` is never formed.
    fn linear(&self, x: Tensor<2>, weight: &Frozen, lora: Option<&Lora>) -> Tensor<2>;

    /// Rotary embedding on queries and keys, then grouped-query attention as the plan's layout says. `past` is seen by
    /// every token and takes no gradient.
    fn attention(
        &self,
        q: Tensor<2>,
        k: Tensor<2>,
        v: Tensor<2>,
        plan: &AttentionPlan,
        past: Option<&LayerKv>,
    ) -> Tensor<2>;

    /// The keys as attention rotates them, for the cache.
    fn rotate_keys(&self, k: Tensor<2>, plan: &AttentionPlan) -> Tensor<2>;

    /// The residual sum.
    fn add(&self, a: Tensor<2>, b: Tensor<2>) -> Tensor<2>;

    /// `silu(gate) · up`.
    fn swiglu(&self, gate: Tensor<2>, up: Tensor<2>) -> Tensor<2>;

    /// `Σ weight · nll / denominator` over the targets, a tensor `[1]`; the head runs on the targets' rows only.
    fn linear_cross_entropy(&self, hidden: Tensor<2>, head: &Frozen, targets: &[Target], denominator: f32)
    -> Tensor<1>;

    /// Logits of all tokens at the given rows: `[rows, vocabulary]`. No gradient.
    fn logits(&self, hidden: &Tensor<2>, head: &Frozen, rows: &[usize]) -> Vec<f32>;

    /// Logits of chosen tokens, each query `(row, tokens)`. No gradient.
    fn logits_of(&self, hidden: &Tensor<2>, head: &Frozen, queries: &[(usize, Vec<u32>)]) -> Vec<Vec<f32>>;
}
