//! Grouped-query attention over packed segments, forward and backward, for the layer op. Scores exist for one block of
//! queries at a time, never for a whole row; the backward pass computes them again from the saved log-sums.

use super::super::bf16::Square;
use super::super::buffer::Buffer;
use super::super::compute::{Compute, Left, Part, Right};
use super::super::kernels::{Threads, dot, exp, exp_row};
use super::super::simd::vectorised;
use crate::layout::Segment;
use crate::ops::{AttentionPlan, Rotation};
use rayon::prelude::*;

/// Queries whose scores are held at once.
const BLOCK: usize = 128;

/// Tokens a task in the loops over tokens.
const TOKENS: usize = 32;

/// The widths that every function here needs.
#[derive(Clone, Copy)]
struct Sizes {
    tokens: usize,
    head_dim: usize,
    heads: usize,
    kv_heads: usize,
    group: usize,
    scale: f32,
}

impl Sizes {
    fn of(plan: &AttentionPlan) -> Sizes {
        Sizes {
            tokens: plan.batch.len(),
            head_dim: plan.head_dim,
            heads: plan.n_heads,
            kv_heads: plan.n_kv_heads,
            group: plan.n_heads / plan.n_kv_heads,
            scale: plan.scale,
        }
    }
}

vectorised! {
    /// One token's heads, rotated by its angle; `sign` is -1 for the inverse.
    fn rotate_token(x: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
        let half = cos.len();
        for head in x.chunks_exact_mut(2 * half) {
            let (low, high) = head.split_at_mut(half);
            for j in 0..half {
                let (a, b) = (low[j], high[j]);
                low[j] = a * cos[j] - sign * b * sin[j];
                high[j] = b * cos[j] + sign * a * sin[j];
            }
        }
    }
}

/// Rotary embedding of `[tokens, heads * head_dim]` in place.
pub fn rotate(x: &mut [f32], heads: usize, plan: &AttentionPlan, sign: f32) {
    let Some(Rotation { cos, sin }) = &plan.rotation else { return };
    let half = plan.head_dim / 2;
    let width = heads * plan.head_dim;
    x.par_chunks_mut(width * TOKENS).enumerate().for_each(|(task, x)| {
        for (i, x) in x.chunks_exact_mut(width).enumerate() {
            let token = task * TOKENS + i;
            rotate_token(x, &cos[token * half..][..half], &sin[token * half..][..half], sign);
        }
    });
}

/// Keys and values of one segment and one key head, as right sides. The backward pass needs both in both orders.
struct Packed<'a> {
    keys: Right<'a>,
    values: Right<'a>,
    /// Of the backward pass: keys `[keys, d]` for dQ, values `[d, keys]` for dP.
    back: Option<(Right<'a>, Right<'a>)>,
    count: usize,
}

/// All segments' keys and values, `[segment][key head]`.
fn pack_all<'a>(plan: &AttentionPlan, compute: Compute, k: &'a [f32], v: &'a [f32], backward: bool) -> Vec<Packed<'a>> {
    let s = Sizes::of(plan);
    let (d, width) = (s.head_dim, s.kv_heads * s.head_dim);
    let tasks: Vec<(&Segment, usize)> =
        plan.segments.iter().flat_map(|segment| (0..s.kv_heads).map(move |head| (segment, head))).collect();
    tasks
        .par_iter()
        .map(|(segment, head)| {
            let (at, count) = (segment.tokens.start * width + head * d, segment.tokens.len());
            let (k, v) = (&k[at..], &v[at..]);
            Packed {
                keys: compute.right_columns(k, width, d, count),
                values: compute.right_rows(v, width, count, d),
                back: backward
                    .then(|| (compute.right_rows(k, width, count, d), compute.right_columns(v, width, d, count))),
                count,
            }
        })
        .collect()
}

/// What a segment's queries see: the batch's prefix, if they do, then their own tokens.
fn sources<'p, 'a>(plan: &AttentionPlan, packed: &'p [Packed<'a>], segment: usize, head: usize) -> Vec<&'p Packed<'a>> {
    let mut parts = Vec::with_capacity(2);
    if plan.segments[segment].sees_prefix {
        parts.push(&packed[head]);
    }
    parts.push(&packed[segment * plan.n_kv_heads + head]);
    parts
}

/// A block of queries of one head: where it lies, and how many keys it sees.
struct Block<'p, 'a> {
    segment: &'p Segment,
    parts: Vec<&'p Packed<'a>>,
    /// First query, inside the segment, and how many.
    first: usize,
    rows: usize,
    /// Keys before the segment's own.
    before: usize,
    /// Columns of the scores: those before, and own keys up to the block's last query.
    total: usize,
}

impl<'p, 'a> Block<'p, 'a> {
    fn new(segment: &'p Segment, parts: Vec<&'p Packed<'a>>, first: usize) -> Self {
        let rows = BLOCK.min(segment.tokens.len() - first);
        let before = parts[..parts.len() - 1].iter().map(|p| p.count).sum();
        Block { segment, parts, first, rows, before, total: before + first + rows }
    }

    /// Column and number of keys of each part.
    fn columns(&self) -> Vec<(usize, usize)> {
        let mut column = 0;
        let mut out = Vec::with_capacity(self.parts.len());
        for (i, part) in self.parts.iter().enumerate() {
            let count = if i + 1 == self.parts.len() { self.total - column } else { part.count };
            out.push((column, count));
            column += count;
        }
        out
    }

    /// Scores, unscaled, `[rows, total]`.
    fn scores(&self, compute: Compute, q: &Left, d: usize, out: &mut [f32]) {
        for (part, (column, count)) in self.parts.iter().zip(self.columns()) {
            let keys = part.keys.first(d, count);
            compute.product(Threads::One, &mut out[column..], self.total, false, &[(q, keys)]);
        }
    }

    /// Calls `f` with each row's number, its scores up to the last key that it may see, and the rest.
    fn rows<'s>(&'s self, scores: &'s mut [f32]) -> impl Iterator<Item = (usize, &'s mut [f32], &'s mut [f32])> {
        scores.chunks_exact_mut(self.total).enumerate().map(|(r, row)| {
            let (seen, rest) = row.split_at_mut(self.before + self.first + r + 1);
            (r, seen, rest)
        })
    }

    /// Whether row `r` sees its own segment's keys, where that is not simply all up to itself.
    fn hidden(&self, r: usize) -> Option<&[bool]> {
        let len = self.segment.tokens.len();
        self.segment.visible.as_ref().map(|visible| &visible[(self.first + r) * len..][..self.first + r + 1])
    }

    /// `Σ left[:, part] · right(part)` into `out`, `[rows, d]`.
    fn gather(
        &self,
        compute: Compute,
        left: &[f32],
        right: impl Fn(&'p Packed<'a>, usize) -> Part<'p>,
        out: &mut [f32],
        d: usize,
    ) {
        let columns = self.columns();
        let lefts: Vec<Left> = columns
            .iter()
            .map(|(column, count)| compute.left_rows(&left[*column..], self.total, self.rows, *count))
            .collect();
        let terms: Vec<(&Left, Part)> =
            lefts.iter().zip(&self.parts).zip(&columns).map(|((l, p), (_, count))| (l, right(p, *count))).collect();
        compute.product(Threads::One, out, d, false, &terms);
    }
}

vectorised! {
    /// Turns scores into attention weights; returns the log of the sum that they were divided by.
    fn softmax_row(row: &mut [f32], scale: f32, hidden: &[bool], before: usize) -> f32 {
        for x in row.iter_mut() {
            *x *= scale;
        }
        for (x, seen) in row[before..].iter_mut().zip(hidden) {
            if !seen {
                *x = f32::NEG_INFINITY;
            }
        }
        let (max, sum) = exp_row(row);
        let inverse = 1.0 / sum;
        for x in row.iter_mut() {
            *x *= inverse;
        }
        for (x, seen) in row[before..].iter_mut().zip(hidden) {
            if !seen {
                *x = 0.0;
            }
        }
        max + sum.ln()
    }
}

vectorised! {
    /// The weights again, from the saved log-sum.
    fn weights_row(row: &mut [f32], scale: f32, log_sum: f32, hidden: &[bool], before: usize) {
        for x in row.iter_mut() {
            *x = exp(*x * scale - log_sum);
        }
        for (x, seen) in row[before..].iter_mut().zip(hidden) {
            if !seen {
                *x = 0.0;
            }
        }
    }
}

vectorised! {
    /// The scores' gradient from the weights and theirs.
    fn score_gradient_row(dp: &mut [f32], p: &[f32], along: f32, scale: f32) {
        for (dp, p) in dp.iter_mut().zip(p) {
            *dp = p * (*dp - along) * scale;
        }
    }
}

vectorised! {
    fn dot_wide(a: &[f32], b: &[f32]) -> f32 {
        dot(a, b)
    }
}

/// Splits `[heads, tokens, d]` by head and segment, in that order.
fn by_head_and_segment<'a>(x: &'a mut [f32], plan: &AttentionPlan, heads: usize, d: usize) -> Vec<&'a mut [f32]> {
    let mut out = Vec::with_capacity(heads * plan.segments.len());
    let mut rest = x;
    for _ in 0..heads {
        for segment in plan.segments.iter() {
            let (part, after) = rest.split_at_mut(segment.tokens.len() * d);
            out.push(part);
            rest = after;
        }
    }
    out
}

/// A square of `[tokens, heads * d]` out of `[heads, tokens, d]`.
pub fn by_token(x: &[f32], tokens: usize, d: usize, row: usize, col: usize, out: &mut Square) {
    let rows = out.len().min(tokens - row);
    let heads = x.len() / (tokens * d);
    for (i, out) in out[..rows].iter_mut().enumerate() {
        let mut filled = 0;
        while filled < out.len() && col + filled < heads * d {
            let (head, within) = ((col + filled) / d, (col + filled) % d);
            let n = (d - within).min(out.len() - filled);
            out[filled..filled + n].copy_from_slice(&x[(head * tokens + row + i) * d + within..][..n]);
            filled += n;
        }
    }
}

/// Rotary embedding of `[heads, tokens, d]`, backwards.
fn rotate_back(x: &mut [f32], plan: &AttentionPlan) {
    let Some(Rotation { cos, sin }) = &plan.rotation else { return };
    let (d, half, tokens) = (plan.head_dim, plan.head_dim / 2, plan.batch.len());
    x.par_chunks_mut(tokens * d).for_each(|x| {
        for (token, x) in x.chunks_exact_mut(d).enumerate() {
            rotate_token(x, &cos[token * half..][..half], &sin[token * half..][..half], -1.0);
        }
    });
}

/// The attended values `[heads, tokens, d]`, and the log-sums `[heads, tokens]`. Queries and keys are rotated.
pub fn forward(plan: &AttentionPlan, compute: Compute, q: &[f32], k: &[f32], v: &[f32]) -> (Buffer, Buffer) {
    let s = Sizes::of(plan);
    let d = s.head_dim;
    let packed = pack_all(plan, compute, k, v, false);
    let mut out = Buffer::take(s.heads * s.tokens * d);
    let mut log_sums = Buffer::take(s.heads * s.tokens);
    let outs = by_head_and_segment(&mut out, plan, s.heads, d);
    let sums = by_head_and_segment(&mut log_sums, plan, s.heads, 1);
    let segments = plan.segments.len();
    outs.into_par_iter().zip(sums).enumerate().for_each(|(task, (out, sums))| {
        let (head, at) = (task / segments, task % segments);
        let segment = &plan.segments[at];
        for (b, (out, sums)) in out.chunks_mut(BLOCK * d).zip(sums.chunks_mut(BLOCK)).enumerate() {
            let block = Block::new(segment, sources(plan, &packed, at, head / s.group), b * BLOCK);
            let q = &q[(segment.tokens.start + block.first) * s.heads * d + head * d..];
            let mut scores = Buffer::take(block.rows * block.total);
            block.scores(compute, &compute.left_rows(q, s.heads * d, block.rows, d), d, &mut scores);
            for (r, seen, rest) in block.rows(&mut scores) {
                rest.fill(0.0);
                sums[r] = softmax_row(seen, s.scale, block.hidden(r).unwrap_or(&[]), block.before);
            }
            block.gather(compute, &scores, |part, count| part.values.first(count, d), out, d);
        }
    });
    drop(packed);
    (out, log_sums)
}

/// What the backward pass starts from: queries, keys and values `[tokens, …]`, output and log-sums `[heads, tokens, …]`.
pub struct Saved<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub out: &'a [f32],
    pub log_sums: &'a [f32],
}

/// Gradients by queries, keys and values, `[heads, tokens, d]`; those of queries and keys before their rotation.
pub struct Grads {
    pub q: Buffer,
    pub k: Buffer,
    pub v: Buffer,
}

/// The share of one query head and segment in the gradients of the keys and values that it sees, `[total, d]` each.
struct Share {
    k: Buffer,
    v: Buffer,
}

pub fn backward(plan: &AttentionPlan, compute: Compute, saved: &Saved, dy: &[f32]) -> Grads {
    let s = Sizes::of(plan);
    let d = s.head_dim;
    let packed = pack_all(plan, compute, saved.k, saved.v, true);
    let segments = plan.segments.len();
    let mut dq = Buffer::take(s.heads * s.tokens * d);
    let outs = by_head_and_segment(&mut dq, plan, s.heads, d);
    let shares: Vec<Share> = outs
        .into_par_iter()
        .enumerate()
        .map(|(task, dq)| {
            let (head, at) = (task / segments, task % segments);
            task_backward(plan, compute, saved, dy, &packed, [head, at], dq)
        })
        .collect();
    drop(packed);
    let (mut dk, mut dv) = (Buffer::zeros(s.kv_heads * s.tokens * d), Buffer::zeros(s.kv_heads * s.tokens * d));
    dk.par_chunks_mut(s.tokens * d).zip(dv.par_chunks_mut(s.tokens * d)).enumerate().for_each(|(kv_head, (dk, dv))| {
        for (at, segment) in plan.segments.iter().enumerate() {
            let prefix = if segment.sees_prefix { plan.batch.prefix } else { 0 };
            for head in kv_head * s.group..(kv_head + 1) * s.group {
                let share = &shares[head * segments + at];
                for (share, out) in [(&share.k, &mut *dk), (&share.v, &mut *dv)] {
                    let (of_prefix, own) = share.split_at(prefix * d);
                    add_to(&mut out[..prefix * d], of_prefix);
                    add_to(&mut out[segment.tokens.start * d..][..own.len()], own);
                }
            }
        }
    });
    rotate_back(&mut dq, plan);
    rotate_back(&mut dk, plan);
    Grads { q: dq, k: dk, v: dv }
}

vectorised! {
    fn add_to(out: &mut [f32], x: &[f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out += x;
        }
    }
}

fn task_backward(
    plan: &AttentionPlan,
    compute: Compute,
    saved: &Saved,
    dy: &[f32],
    packed: &[Packed],
    [head, at]: [usize; 2],
    dq: &mut [f32],
) -> Share {
    let s = Sizes::of(plan);
    let (d, width) = (s.head_dim, s.heads * s.head_dim);
    let segment = &plan.segments[at];
    let parts = sources(plan, packed, at, head / s.group);
    let total: usize = parts.iter().map(|p| p.count).sum();
    let mut share = Share { k: Buffer::zeros(total * d), v: Buffer::zeros(total * d) };
    for (b, dq) in dq.chunks_mut(BLOCK * d).enumerate() {
        let block = Block::new(segment, parts.clone(), b * BLOCK);
        let from = (segment.tokens.start + block.first) * width + head * d;
        let at = head * s.tokens + segment.tokens.start + block.first;
        let (q, dy, y) = (&saved.q[from..], &dy[from..], &saved.out[at * d..]);
        let log_sums = &saved.log_sums[at..][..block.rows];
        let size = block.rows * block.total;
        let (mut p, mut ds) = (Buffer::take(size), Buffer::take(size));
        block.scores(compute, &compute.left_rows(q, width, block.rows, d), d, &mut p);
        for (r, seen, rest) in block.rows(&mut p) {
            rest.fill(0.0);
            weights_row(seen, s.scale, log_sums[r], block.hidden(r).unwrap_or(&[]), block.before);
        }
        let dy_left = compute.left_rows(dy, width, block.rows, d);
        for (part, (column, count)) in block.parts.iter().zip(block.columns()) {
            let Some((_, values)) = &part.back else { unreachable!("packed for the backward pass") };
            let term = (&dy_left, values.first(d, count));
            compute.product(Threads::One, &mut ds[column..], block.total, false, &[term]);
        }
        for (r, (ds, p)) in ds.chunks_exact_mut(block.total).zip(p.chunks_exact(block.total)).enumerate() {
            let along = dot_wide(&dy[r * width..][..d], &y[r * d..][..d]);
            score_gradient_row(ds, p, along, s.scale);
        }
        block.gather(
            compute,
            &ds,
            |part, count| match &part.back {
                Some((keys, _)) => keys.first(count, d),
                None => unreachable!("packed for the backward pass"),
            },
            dq,
            d,
        );
        let (q_right, dy_right) =
            (compute.right_rows(q, width, block.rows, d), compute.right_rows(dy, width, block.rows, d));
        for (left, right, out) in [(&ds, &q_right, &mut share.k), (&p, &dy_right, &mut share.v)] {
            let left = compute.left_columns(left, block.total, block.total, block.rows);
            compute.product(Threads::One, out, d, true, &[(&left, right.all())]);
        }
    }
    share
}
