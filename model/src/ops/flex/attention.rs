//! Rotary embedding and grouped-query attention, segment by segment: a task is one segment and one key head. Padding
//! never exists, a shared prefix is read by every row and computed once, and its gradient is the sum over the rows.

use super::kernels::{Threads, View, dot, exp_row, matmul};
use super::{Flex, FlexTensor, dims, flex, primitive, slice, tensor};
use crate::layout::Segment;
use crate::ops::{AttentionPlan, LayerKv};
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops as Prepared, OpsKind};
use burn::tensor::Tensor;
use rayon::prelude::*;
use std::sync::Arc;

/// Rotates `heads` heads of every token by its angle; `sign` is -1 for the inverse.
pub(super) fn rotate(x: &[f32], heads: usize, plan: &AttentionPlan, sign: f32) -> Vec<f32> {
    let Some(rotation) = &plan.rotation else { return x.to_vec() };
    let (d, half) = (plan.head_dim, plan.head_dim / 2);
    let width = heads * d;
    let mut out = vec![0f32; x.len()];
    out.par_chunks_mut(width).zip(x.par_chunks(width)).enumerate().for_each(|(token, (out, x))| {
        let (cos, sin) = (&rotation.cos[token * half..][..half], &rotation.sin[token * half..][..half]);
        for (out, x) in out.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
            let ((low, high), (out_low, out_high)) = (x.split_at(half), out.split_at_mut(half));
            for j in 0..half {
                out_low[j] = low[j] * cos[j] - sign * high[j] * sin[j];
                out_high[j] = high[j] * cos[j] + sign * low[j] * sin[j];
            }
        }
    });
    out
}

pub(super) fn rotate_keys(k: Tensor<2>, plan: &AttentionPlan) -> Tensor<2> {
    let k = primitive(k).primitive().to_contiguous();
    let shape = dims(&k);
    let rotated = rotate(slice(&k), plan.n_kv_heads, plan, 1.0);
    Tensor::from_data(burn::tensor::TensorData::new(rotated, shape), &burn::tensor::Device::flex().autodiff())
}

/// What a pass works on: rotated queries and keys, values, and the cached prefix.
#[derive(Clone, Debug)]
struct State {
    plan: AttentionPlan,
    q: Arc<Vec<f32>>,
    k: Arc<Vec<f32>>,
    v: FlexTensor,
    past: Option<(FlexTensor, FlexTensor)>,
    out: FlexTensor,
}

/// The keys (or values) that a segment sees, in order: cached, the batch's prefix, its own.
struct Sources<'a> {
    parts: Vec<(&'a [f32], usize)>,
    total: usize,
}

impl<'a> Sources<'a> {
    /// Views of one key head; each part starts at the head's first element.
    fn new(own: &'a [f32], past: Option<&'a [f32]>, plan: &AttentionPlan, segment: &Segment, head: usize) -> Self {
        let width = plan.n_kv_heads * plan.head_dim;
        let at = head * plan.head_dim;
        let mut parts = Vec::with_capacity(3);
        if let Some(past) = past.filter(|p| !p.is_empty()) {
            parts.push((&past[at..], past.len() / width));
        }
        if segment.sees_prefix {
            parts.push((&own[at..], plan.batch.prefix));
        }
        parts.push((&own[segment.tokens.start * width + at..], segment.tokens.len()));
        let total = parts.iter().map(|p| p.1).sum();
        Sources { parts, total }
    }
}

/// Scores of one query head over one segment, `[len, total]`, scaled and capped; nothing is hidden yet.
fn scores(plan: &AttentionPlan, segment: &Segment, q: &[f32], keys: &Sources, out: &mut [f32]) {
    let (len, d, total) = (segment.tokens.len(), plan.head_dim, keys.total);
    let q_width = plan.n_heads * d;
    let kv_width = plan.n_kv_heads * d;
    let mut column = 0;
    for &(part, count) in &keys.parts {
        let k_t = View::transposed(part, kv_width);
        let q = View::rows(q, q_width);
        matmul([len, d, count], &mut out[column..], total, false, q, k_t, plan.scale, Threads::One);
        column += count;
    }
    if let Some(cap) = plan.softcap {
        out.iter_mut().for_each(|x| *x = cap * (*x / cap).tanh());
    }
}

/// Turns scores into attention weights; hidden keys weigh exactly 0.
fn weights(plan: &AttentionPlan, segment: &Segment, keys: &Sources, out: &mut [f32]) {
    let (len, total) = (segment.tokens.len(), keys.total);
    let before = total - len;
    let positions = plan.window.map(|window| (window, key_positions(plan, segment, total)));
    for (r, row) in out.chunks_exact_mut(total).enumerate() {
        let reach = before + r + 1;
        row[reach..].fill(0.0);
        let row = &mut row[..reach];
        let hide = |row: &mut [f32], value: f32| {
            if let Some(visible) = &segment.visible {
                for (x, seen) in row[before..].iter_mut().zip(&visible[r * len..]) {
                    if !seen {
                        *x = value;
                    }
                }
            }
            if let Some((window, positions)) = &positions {
                let own = plan.batch.positions[segment.tokens.start + r] as usize;
                for (x, &key) in row.iter_mut().zip(positions) {
                    if key as usize + window <= own {
                        *x = value;
                    }
                }
            }
        };
        hide(row, f32::NEG_INFINITY);
        let (_, sum) = exp_row(row);
        let inverse = 1.0 / sum;
        for x in row.iter_mut() {
            *x *= inverse;
        }
        hide(row, 0.0);
    }
}

/// Where the keys of a segment stand, in the order of [`Sources`]: cached ones from 0 on, the batch's prefix, its own.
fn key_positions(plan: &AttentionPlan, segment: &Segment, total: usize) -> Vec<u32> {
    let prefix = if segment.sees_prefix { plan.batch.prefix } else { 0 };
    let past = total - prefix - segment.tokens.len();
    let own = &plan.batch.positions;
    (0..past as u32).chain(own[..prefix].iter().copied()).chain(own[segment.tokens.clone()].iter().copied()).collect()
}

/// All (segment, key head) pairs, longest first would help balance; the order of results is the order of tasks.
fn tasks(plan: &AttentionPlan) -> Vec<(usize, usize)> {
    (0..plan.segments.len()).flat_map(|s| (0..plan.n_kv_heads).map(move |h| (s, h))).collect()
}

pub(super) fn attention(
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    plan: &AttentionPlan,
    past: Option<&LayerKv>,
) -> Tensor<2> {
    let (q, k, v) = (primitive(q), primitive(k), primitive(v));
    let d = plan.head_dim;
    let (q_width, kv_width, group) = (plan.n_heads * d, plan.n_kv_heads * d, plan.n_heads / plan.n_kv_heads);
    let q_rotated = rotate(slice(&q.primitive().to_contiguous()), plan.n_heads, plan, 1.0);
    let k_rotated = rotate(slice(&k.primitive().to_contiguous()), plan.n_kv_heads, plan, 1.0);
    let values = v.primitive().to_contiguous();
    let past = past.map(|past| {
        let contiguous = |t: &Tensor<2>| primitive(t.clone()).primitive().to_contiguous();
        (contiguous(&past.keys), contiguous(&past.values))
    });
    let past_keys = past.as_ref().map(|p| slice(&p.0));
    let past_values = past.as_ref().map(|p| slice(&p.1));
    let vs = slice(&values);
    let tasks = tasks(plan);
    let outputs: Vec<Vec<f32>> = tasks
        .par_iter()
        .map(|&(s, head)| {
            let segment = &plan.segments[s];
            let len = segment.tokens.len();
            let keys = Sources::new(&k_rotated, past_keys, plan, segment, head);
            let values = Sources::new(vs, past_values, plan, segment, head);
            let mut p = vec![0f32; len * keys.total];
            let mut out = vec![0f32; group * len * d];
            for (g, out) in out.chunks_exact_mut(len * d).enumerate() {
                let q = &q_rotated[segment.tokens.start * q_width + (head * group + g) * d..];
                scores(plan, segment, q, &keys, &mut p);
                weights(plan, segment, &keys, &mut p);
                let mut column = 0;
                for &(part, count) in &values.parts {
                    let p = View::rows(&p[column..], keys.total);
                    matmul([len, count, d], out, d, column > 0, p, View::rows(part, kv_width), 1.0, Threads::One);
                    column += count;
                }
            }
            out
        })
        .collect();
    let mut out = vec![0f32; plan.batch.len() * q_width];
    for (&(s, head), part) in tasks.iter().zip(&outputs) {
        scatter(part, &mut out, &plan.segments[s], q_width, head * group, d);
    }
    let out = flex(out, [plan.batch.len(), q_width]);
    let prepared = AttentionBackward.prepare::<NoCheckpointing>([q.node(), k.node(), v.node()]);
    tensor(match prepared.compute_bound().stateful() {
        OpsKind::Tracked(p) => {
            let state = State {
                plan: plan.clone(),
                q: Arc::new(q_rotated),
                k: Arc::new(k_rotated),
                v: values,
                past,
                out: out.clone(),
            };
            p.finish(state, out)
        }
        OpsKind::UnTracked(p) => p.finish(out),
    })
}

/// `part` is `[heads, len, d]`; it goes to columns `first_head * d ..` of the segment's tokens in `out`.
fn scatter(part: &[f32], out: &mut [f32], segment: &Segment, width: usize, first_head: usize, d: usize) {
    let len = segment.tokens.len();
    for (g, head) in part.chunks_exact(len * d).enumerate() {
        for (r, row) in head.chunks_exact(d).enumerate() {
            out[(segment.tokens.start + r) * width + (first_head + g) * d..][..d].copy_from_slice(row);
        }
    }
}

/// Gradients that one task gives: queries `[group, len, d]`, own keys and values `[len, d]`, and the prefix's.
struct TaskGrads {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    prefix_k: Vec<f32>,
    prefix_v: Vec<f32>,
}

#[derive(Debug)]
struct AttentionBackward;

impl Backward<Flex, 3> for AttentionBackward {
    type State = State;

    /// The weights are computed again instead of kept: memory stays linear in the number of tokens.
    fn backward(self, ops: Prepared<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let state = ops.state;
        let grad = grads.consume::<Flex>(&ops.node).to_contiguous();
        let plan = &state.plan;
        let d = plan.head_dim;
        let (q_width, kv_width, group) = (plan.n_heads * d, plan.n_kv_heads * d, plan.n_heads / plan.n_kv_heads);
        let n = plan.batch.len();
        let tasks = tasks(plan);
        let parts: Vec<TaskGrads> =
            tasks.par_iter().map(|&(s, head)| task_backward(&state, slice(&grad), s, head)).collect();

        let (mut dq, mut dk, mut dv) = (vec![0f32; n * q_width], vec![0f32; n * kv_width], vec![0f32; n * kv_width]);
        for (&(s, head), part) in tasks.iter().zip(&parts) {
            let segment = &plan.segments[s];
            scatter(&part.q, &mut dq, segment, q_width, head * group, d);
            for (own, prefix, out) in [(&part.k, &part.prefix_k, &mut dk), (&part.v, &part.prefix_v, &mut dv)] {
                for (from, rows) in [(segment.tokens.start, own), (0, prefix)] {
                    for (r, row) in rows.chunks_exact(d).enumerate() {
                        let at = &mut out[(from + r) * kv_width + head * d..][..d];
                        for (a, x) in at.iter_mut().zip(row) {
                            *a += x;
                        }
                    }
                }
            }
        }
        let [q_node, k_node, v_node] = ops.parents;
        if let Some(node) = q_node {
            grads.register::<Flex>(node.id, flex(rotate(&dq, plan.n_heads, plan, -1.0), [n, q_width]));
        }
        if let Some(node) = k_node {
            grads.register::<Flex>(node.id, flex(rotate(&dk, plan.n_kv_heads, plan, -1.0), [n, kv_width]));
        }
        if let Some(node) = v_node {
            grads.register::<Flex>(node.id, flex(dv, [n, kv_width]));
        }
    }
}

fn task_backward(state: &State, grad: &[f32], s: usize, head: usize) -> TaskGrads {
    let plan = &state.plan;
    let segment = &plan.segments[s];
    let (len, d) = (segment.tokens.len(), plan.head_dim);
    let (q_width, kv_width, group) = (plan.n_heads * d, plan.n_kv_heads * d, plan.n_heads / plan.n_kv_heads);
    let keys = Sources::new(&state.k, state.past.as_ref().map(|p| slice(&p.0)), plan, segment, head);
    let values = Sources::new(slice(&state.v), state.past.as_ref().map(|p| slice(&p.1)), plan, segment, head);
    let total = keys.total;
    let prefix = if segment.sees_prefix { plan.batch.prefix } else { 0 };
    let mut out = TaskGrads {
        q: vec![0f32; group * len * d],
        k: vec![0f32; len * d],
        v: vec![0f32; len * d],
        prefix_k: vec![0f32; prefix * d],
        prefix_v: vec![0f32; prefix * d],
    };
    let mut p = vec![0f32; len * total];
    let mut ds = vec![0f32; len * total];
    for g in 0..group {
        let at = segment.tokens.start * q_width + (head * group + g) * d;
        let (q, dy, y) = (&state.q[at..], &grad[at..], &slice(&state.out)[at..]);
        scores(plan, segment, q, &keys, &mut p);
        // What a cap lets through of a score's gradient: 1 - tanh².
        let through: Option<Vec<f32>> =
            plan.softcap.map(|cap| p.iter().map(|capped| 1.0 - (capped / cap) * (capped / cap)).collect());
        weights(plan, segment, &keys, &mut p);
        let dy_rows = View::rows(dy, q_width);
        let mut column = 0;
        for &(part, count) in &values.parts {
            let v_t = View::transposed(part, kv_width);
            matmul([len, d, count], &mut ds[column..], total, false, dy_rows, v_t, 1.0, Threads::One);
            column += count;
        }
        for r in 0..len {
            let along = dot(&dy[r * q_width..][..d], &y[r * q_width..][..d]);
            for (ds, p) in ds[r * total..][..total].iter_mut().zip(&p[r * total..]) {
                *ds = p * (*ds - along) * plan.scale;
            }
        }
        if let Some(through) = &through {
            ds.iter_mut().zip(through).for_each(|(ds, through)| *ds *= through);
        }
        let dq = &mut out.q[g * len * d..][..len * d];
        let mut column = 0;
        for &(part, count) in &keys.parts {
            let ds = View::rows(&ds[column..], total);
            matmul([len, count, d], dq, d, column > 0, ds, View::rows(part, kv_width), 1.0, Threads::One);
            column += count;
        }
        let own = total - len;
        let q_rows = View::rows(q, q_width);
        let add = |out: &mut [f32], columns: usize, count: usize, left: &[f32], right: View| {
            let left = View::transposed(&left[columns..], total);
            matmul([count, len, d], out, d, true, left, right, 1.0, Threads::One);
        };
        add(&mut out.k, own, len, &ds, q_rows);
        add(&mut out.v, own, len, &p, dy_rows);
        if prefix > 0 {
            add(&mut out.prefix_k, own - prefix, prefix, &ds, q_rows);
            add(&mut out.prefix_v, own - prefix, prefix, &p, dy_rows);
        }
    }
    out
}
