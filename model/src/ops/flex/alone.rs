//! Attention for answers over packed rows, chains and trees: what a token gets follows from its own query and from the keys and
//! values that it sees, one after another in their order. What lies beside its row, and how much of the beginning was cached,
//! changes no bit. There is no backward pass.

use super::attention::rotate;
use super::growing::{KvBlocks, Seen, attend};
use super::{primitive, slice};
use crate::ops::{AttentionPlan, LayerKv};
use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;

/// `past` holds the positions from 0 on; the batch's own prefix goes on from there, and rows from the prefix.
pub(super) fn attention(qkv: [Tensor<2>; 3], plan: &AttentionPlan, past: Option<&LayerKv>) -> Tensor<2> {
    let [q, k, v] = qkv.map(|x| primitive(x).primitive().to_contiguous());
    let d = plan.head_dim;
    let (width, group) = (plan.n_kv_heads * d, plan.n_heads / plan.n_kv_heads);
    let q = rotate(slice(&q), plan.n_heads, plan, 1.0);
    let k = rotate(slice(&k), plan.n_kv_heads, plan, 1.0);
    let push = |blocks: &mut KvBlocks, tokens: std::ops::Range<usize>| {
        let tokens = tokens.start * width..tokens.end * width;
        blocks.push(&k[tokens.clone()], &slice(&v)[tokens], width);
    };
    let mut before = KvBlocks::default();
    if let Some(past) = past {
        let [keys, values] = [&past.keys, &past.values].map(|x| primitive(x.clone()).primitive().to_contiguous());
        before.push(slice(&keys), slice(&values), width);
    }
    let mut behind_prefix = before.clone();
    push(&mut behind_prefix, 0..plan.batch.prefix);
    let of_segment = |segment: &crate::layout::Segment| {
        let mut own = KvBlocks::default();
        push(&mut own, segment.tokens.clone());
        own
    };
    let own: Vec<KvBlocks> = plan.segments.par_iter().map(of_segment).collect();
    let mut place = vec![(0, 0); plan.batch.len()];
    for (s, segment) in plan.segments.iter().enumerate() {
        segment.tokens.clone().enumerate().for_each(|(at, token)| place[token] = (s, at));
    }
    let mut out = vec![0f32; plan.batch.len() * plan.n_heads * d];
    out.par_chunks_mut(group * d).with_min_len(2).enumerate().for_each_init(Vec::new, |weights, (task, out)| {
        let (token, head) = (task / plan.n_kv_heads, task % plan.n_kv_heads);
        let (s, at) = place[token];
        let segment = &plan.segments[s];
        let before = if segment.sees_prefix { &behind_prefix } else { &before };
        let positions = &plan.batch.positions[segment.tokens.clone()];
        let from = plan.window.map_or(0, |window| (positions[at] as usize + 1).saturating_sub(window));
        let outside = positions[..=at].iter().take_while(|position| (**position as usize) < from).count();
        let hidden = if from <= before.len() { from } else { before.len() + outside };
        let sees = |j: usize| {
            let in_row = segment.visible.as_ref().is_none_or(|visible| visible[at * positions.len() + j]);
            in_row && positions[j] as usize >= from
        };
        // A chain sees all that is before it and within its window.
        let sees: Option<&dyn Fn(usize) -> bool> = if segment.visible.is_some() { Some(&sees) } else { None };
        let q = &q[task * group * d..][..group * d];
        attend(plan, head, q, [before, &own[s]], Seen { own: at + 1, hidden, sees }, weights, out);
    });
    let shape = [plan.batch.len(), plan.n_heads * d];
    Tensor::from_data(TensorData::new(out, shape), &Device::flex().autodiff())
}
