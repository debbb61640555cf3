//! Attention of sequences that grow token by token. A token's result follows from its own query and the keys and values
//! before it, one after another in their order: in how many pieces a sequence was read, and what is read beside it, changes
//! no bit.

use super::attention::rotate;
use super::kernels::exp_row;
use super::simd::vectorised;
use super::{primitive, slice};
use crate::ops::AttentionPlan;
use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;

/// Keys side by side: a query's scores of them are the lanes of a register.
const LANES: usize = 16;

/// Rotated keys and values of one sequence at one layer.
#[derive(Clone, Debug, Default)]
pub struct KvBlocks {
    len: usize,
    /// `[blocks][heads][head_dim][16]`: sixteen keys a block.
    keys: Vec<f32>,
    /// `[tokens][heads * head_dim]`.
    values: Vec<f32>,
}

impl KvBlocks {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds tokens; `keys` and `values` are `[tokens, width]`.
    pub fn push(&mut self, keys: &[f32], values: &[f32], width: usize) {
        for key in keys.chunks_exact(width) {
            let lane = self.len % LANES;
            if lane == 0 {
                self.keys.resize(self.keys.len() + width * LANES, 0.0);
            }
            let block = self.keys.len() - width * LANES;
            for (i, x) in key.iter().enumerate() {
                self.keys[block + i * LANES + lane] = *x;
            }
            self.len += 1;
        }
        self.values.extend_from_slice(values);
    }
}

vectorised! {
    /// `scale · q·k` of the first keys of a head, as many as `out` has: `keys` begins at the head in the first block.
    fn scores(q: &[f32], keys: &[f32], block: usize, scale: f32, out: &mut [f32]) {
        for (keys, out) in keys.chunks(block).zip(out.chunks_mut(LANES)) {
            let mut sums = [0f32; LANES];
            for (q, keys) in q.iter().zip(keys.as_chunks::<LANES>().0) {
                for j in 0..LANES {
                    sums[j] = q.mul_add(keys[j], sums[j]);
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = sum * scale;
            }
        }
    }
}

vectorised! {
    /// Adds `Σ weight · value`; `values` begins at the head of the first token.
    fn add_weighted(weights: &[f32], values: &[f32], width: usize, out: &mut [f32]) {
        for (weight, value) in weights.iter().zip(values.chunks(width)) {
            for (out, value) in out.iter_mut().zip(value) {
                *out = weight.mul_add(*value, *out);
            }
        }
    }
}

/// Attention of chains, row `i` of the plan's batch going on from `shared` and then from `rows[i]`, to which its keys and
/// values are added.
pub(super) fn attention(
    [q, k, v]: [Tensor<2>; 3],
    plan: &AttentionPlan,
    shared: &KvBlocks,
    rows: &mut [&mut KvBlocks],
) -> Tensor<2> {
    let [q, k, v] = [q, k, v].map(|x| primitive(x).primitive().to_contiguous());
    let d = plan.head_dim;
    let (width, group) = (plan.n_kv_heads * d, plan.n_heads / plan.n_kv_heads);
    let q = rotate(slice(&q), plan.n_heads, plan, 1.0);
    let k = rotate(slice(&k), plan.n_kv_heads, plan, 1.0);
    // Of each token its row, and how many tokens of the row it sees.
    let mut seen = Vec::with_capacity(plan.batch.len());
    for (r, (row, own)) in plan.batch.rows.iter().zip(rows.iter_mut()).enumerate() {
        seen.extend((1..=row.len()).map(|n| (r, own.len() + n)));
        let tokens = row.tokens.start * width..row.tokens.end * width;
        own.push(&k[tokens.clone()], &slice(&v)[tokens], width);
    }
    assert_eq!(seen.len(), plan.batch.len(), "each token belongs to a chain");
    let rows: Vec<&KvBlocks> = rows.iter().map(|row| &**row).collect();
    let mut out = vec![0f32; plan.batch.len() * plan.n_heads * d];
    out.par_chunks_mut(group * d).with_min_len(2).enumerate().for_each_init(Vec::new, |weights, (task, out)| {
        let (token, head) = (task / plan.n_kv_heads, task % plan.n_kv_heads);
        let (row, own) = (rows[seen[token].0], seen[token].1);
        let total = shared.len + own;
        let hidden = plan.window.map_or(0, |window| total.saturating_sub(window));
        for (q, out) in q[task * group * d..].chunks_exact(d).zip(out.chunks_exact_mut(d)) {
            weights.resize(total, 0.0);
            let (before, after) = weights.split_at_mut(shared.len);
            for (kv, weights) in [(shared, before), (row, after)] {
                scores(q, kv.keys.get(head * d * LANES..).unwrap_or_default(), width * LANES, plan.scale, weights);
            }
            if let Some(cap) = plan.softcap {
                weights.iter_mut().for_each(|x| *x = cap * (*x / cap).tanh());
            }
            weights[..hidden].fill(0.0);
            let (_, sum) = exp_row(&mut weights[hidden..]);
            for (kv, weights) in [(shared, &weights[..shared.len]), (row, &weights[shared.len..])] {
                add_weighted(weights, kv.values.get(head * d..).unwrap_or_default(), width, out);
            }
            let inverse = 1.0 / sum;
            out.iter_mut().for_each(|x| *x *= inverse);
        }
    });
    let shape = [plan.batch.len(), plan.n_heads * d];
    Tensor::from_data(TensorData::new(out, shape), &Device::flex().autodiff())
}
