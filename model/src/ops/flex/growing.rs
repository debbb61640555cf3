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

/// Blocks of keys at a time, and numbers of a value: as many chains of sums as hide what a multiply-add takes.
const BLOCKS: usize = 4;
const VALUES: usize = 64;

vectorised! {
    /// `scale · q·k` of the first keys of a head, as many as `out` has: `keys` begins at the head in the first block.
    fn scores(q: &[f32], keys: &[f32], block: usize, scale: f32, out: &mut [f32]) {
        for (keys, out) in keys.chunks(BLOCKS * block).zip(out.chunks_mut(BLOCKS * LANES)) {
            let mut sums = [[0f32; LANES]; BLOCKS];
            let of = |b: usize| &keys[b * block..][..q.len() * LANES].as_chunks::<LANES>().0[..q.len()];
            let blocks = out.len().div_ceil(LANES);
            if blocks == BLOCKS {
                let keys: [&[[f32; LANES]]; BLOCKS] = std::array::from_fn(of);
                for (i, q) in q.iter().enumerate() {
                    for b in 0..BLOCKS {
                        for j in 0..LANES {
                            sums[b][j] = q.mul_add(keys[b][i][j], sums[b][j]);
                        }
                    }
                }
            } else {
                for (b, sums) in sums.iter_mut().enumerate().take(blocks) {
                    for (q, keys) in q.iter().zip(of(b)) {
                        for j in 0..LANES {
                            sums[j] = q.mul_add(keys[j], sums[j]);
                        }
                    }
                }
            }
            for (out, sum) in out.iter_mut().zip(sums.as_flattened()) {
                *out = sum * scale;
            }
        }
    }
}

vectorised! {
    /// Adds `Σ weight · value`; `values` begins at the head of the first token.
    fn add_weighted(weights: &[f32], values: &[f32], width: usize, out: &mut [f32]) {
        let (whole, rest) = out.as_chunks_mut::<VALUES>();
        let from = whole.len() * VALUES;
        for (c, out) in whole.iter_mut().enumerate() {
            let mut sums = *out;
            for (weight, value) in weights.iter().zip(values.get(c * VALUES..).unwrap_or_default().chunks(width)) {
                if let Some(value) = value.first_chunk::<VALUES>() {
                    for j in 0..VALUES {
                        sums[j] = weight.mul_add(value[j], sums[j]);
                    }
                }
            }
            *out = sums;
        }
        if !rest.is_empty() {
            for (weight, value) in weights.iter().zip(values.get(from..).unwrap_or_default().chunks(width)) {
                for (out, value) in rest.iter_mut().zip(value) {
                    *out = weight.mul_add(*value, *out);
                }
            }
        }
    }
}

/// What a token sees of a beginning and of the sequence behind it: of the latter the first `own` tokens, without the first
/// `hidden` of all and without those that `sees` denies.
pub(super) struct Seen<'a> {
    pub own: usize,
    pub hidden: usize,
    pub sees: Option<&'a dyn Fn(usize) -> bool>,
}

/// Attention of one token's queries to a key head, `[group, head_dim]` as `out` is; `out` is zeros before. Every sum goes
/// through what is seen in its order, so it has the same bits wherever the beginning ends.
pub(super) fn attend(
    plan: &AttentionPlan,
    head: usize,
    q: &[f32],
    [before, own]: [&KvBlocks; 2],
    Seen { own: count, hidden, sees }: Seen,
    weights: &mut Vec<f32>,
    out: &mut [f32],
) {
    let d = plan.head_dim;
    let (width, total) = (plan.n_kv_heads * d, before.len + count);
    weights.resize(total, 0.0);
    for (q, out) in q.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
        let (first, second) = weights.split_at_mut(before.len);
        for (kv, weights) in [(before, first), (own, second)] {
            scores(q, kv.keys.get(head * d * LANES..).unwrap_or_default(), width * LANES, plan.scale, weights);
        }
        if let Some(cap) = plan.softcap {
            weights.iter_mut().for_each(|x| *x = cap * (*x / cap).tanh());
        }
        let hide = |weights: &mut [f32], value: f32| {
            if let Some(sees) = sees {
                let own = weights[before.len..].iter_mut().enumerate();
                own.filter(|(j, _)| !sees(*j)).for_each(|(_, weight)| *weight = value);
            }
        };
        hide(weights, f32::NEG_INFINITY);
        weights[..hidden].fill(0.0);
        let (_, sum) = exp_row(&mut weights[hidden..]);
        hide(weights, 0.0);
        for (kv, weights) in [(before, &weights[..before.len]), (own, &weights[before.len..])] {
            add_weighted(weights, kv.values.get(head * d..).unwrap_or_default(), width, out);
        }
        let inverse = 1.0 / sum;
        out.iter_mut().for_each(|x| *x *= inverse);
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
        let q = &q[task * group * d..][..group * d];
        attend(plan, head, q, [shared, row], Seen { own, hidden, sees: None }, weights, out);
    });
    let shape = [plan.batch.len(), plan.n_heads * d];
    Tensor::from_data(TensorData::new(out, shape), &Device::flex().autodiff())
}
