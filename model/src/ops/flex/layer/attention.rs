//! Grouped-query attention over packed segments, forward and backward, for the layer op. Scores exist 32 by 32 while they are
//! in cache and are worked out again where they are needed again. Source: Dao, "FlashAttention-2" (2023).

use super::super::bf16::{DEPTH, Square};
use super::super::buffer::Buffer;
use super::super::compute::{Compute, Left, Right};
use super::super::kernels::{Threads, dot};
use super::super::simd::vectorised;
use super::scores::{
    SMALL, Scores, exp_square, exp_sum_square, longest, max_square, score_gradient_square, sum_square, uncap_square,
    weights_square,
};
use crate::layout::Segment;
use crate::ops::{AttentionPlan, Rotation};
use rayon::prelude::*;
use std::ops::Range;

/// Queries and keys whose scores are worked out together: a rectangle of products, and what stays in cache.
const QUERIES: usize = 256;
const KEYS: usize = 512;

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
}

impl Sizes {
    fn of(plan: &AttentionPlan) -> Sizes {
        Sizes {
            tokens: plan.batch.len(),
            head_dim: plan.head_dim,
            heads: plan.n_heads,
            kv_heads: plan.n_kv_heads,
            group: plan.n_heads / plan.n_kv_heads,
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
    /// First token, and how many.
    first: usize,
    count: usize,
    /// The largest length of a key.
    longest: f32,
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
            let (first, count) = (segment.tokens.start, segment.tokens.len());
            let at = first * width + head * d;
            let (k, v) = (&k[at..], &v[at..]);
            Packed {
                longest: longest(k, width, count, d),
                keys: compute.right_columns(k, width, d, count),
                values: compute.right_rows(v, width, count, d),
                back: backward
                    .then(|| (compute.right_rows(k, width, count, d), compute.right_columns(v, width, d, count))),
                first,
                count,
            }
        })
        .collect()
}

/// A block of queries of one head and segment.
#[derive(Clone)]
struct Queries<'p> {
    plan: &'p AttentionPlan,
    segment: &'p Segment,
    /// Inside the segment.
    range: Range<usize>,
}

impl<'p> Queries<'p> {
    /// The segment's tokens, block by block.
    fn of(plan: &'p AttentionPlan, segment: &'p Segment) -> impl Iterator<Item = Queries<'p>> {
        let n = segment.tokens.len();
        (0..n).step_by(QUERIES).map(move |from| Queries { plan, segment, range: from..n.min(from + QUERIES) })
    }

    /// First token of the batch.
    fn first(&self) -> usize {
        self.segment.tokens.start + self.range.start
    }
}

/// A block of keys of what a segment sees: of the batch's prefix, or of its own tokens.
struct Keys<'p, 'a> {
    packed: &'p Packed<'a>,
    own: bool,
    /// Inside the prefix or the segment.
    range: Range<usize>,
    /// Where its gradient begins in a [`Share`], a multiple of 32.
    column: usize,
}

impl<'p, 'a> Keys<'p, 'a> {
    /// Everything that a segment's tokens may see, block by block.
    fn of(plan: &AttentionPlan, packed: &'p [Packed<'a>], segment: usize, head: usize) -> Vec<Keys<'p, 'a>> {
        let own = (&packed[segment * plan.n_kv_heads + head], true);
        let prefix = plan.segments[segment].sees_prefix.then(|| (&packed[head], false));
        let mut column = 0;
        let mut out = Vec::new();
        for (packed, own) in prefix.into_iter().chain([own]) {
            for from in (0..packed.count).step_by(KEYS) {
                out.push(Keys { packed, own, range: from..packed.count.min(from + KEYS), column: column + from });
            }
            column += packed.count.next_multiple_of(DEPTH);
        }
        out
    }

    /// The part of the block that some of the queries may see: own keys end with the last query, and a window leaves none of
    /// those before it.
    fn seen_by(&self, queries: &Queries) -> Option<Range<usize>> {
        let end = if self.own { self.range.end.min(queries.range.end) } else { self.range.end };
        let range = self.range.start..end;
        let positions = &queries.plan.batch.positions;
        let below = |window: usize| {
            let last = range.clone().map(|key| positions[self.packed.first + key]).max();
            let own = queries.range.clone().map(|query| positions[queries.segment.tokens.start + query]).min();
            last.zip(own).is_some_and(|(last, own)| last as usize + window <= own as usize)
        };
        (!range.is_empty() && !queries.plan.window.is_some_and(below)).then_some(range)
    }

    /// The row of squares, a multiple of 32, from which on queries may see the keys of a column of squares.
    fn first_row(&self, queries: &Queries, keys: &Range<usize>, col: usize) -> usize {
        let first = if self.own { (keys.start + col).saturating_sub(queries.range.start) } else { 0 };
        first / DEPTH * DEPTH
    }

    /// Whether every query of the square at (`row`, `col`) of the block sees every key; `keys` are the columns of the block.
    fn all_seen(&self, queries: &Queries, keys: &Range<usize>, [row, col]: [usize; 2]) -> bool {
        let below_diagonal = keys.start + col + DEPTH <= queries.range.start + row + 1;
        keys.len() - col >= DEPTH
            && (!self.own || (below_diagonal && queries.segment.visible.is_none()))
            && queries.plan.window.is_none()
    }

    /// Writes `with` where a query may not see a key, into the square of scores at (`row`, `col`) of the block.
    fn hide(&self, queries: &Queries, keys: &Range<usize>, [row, col]: [usize; 2], square: &mut Square, with: f32) {
        let width = (keys.len() - col).min(DEPTH);
        let (first_query, first_key) = (queries.range.start + row, keys.start + col);
        let positions = &queries.plan.batch.positions;
        let len = queries.segment.tokens.len();
        for (query, scores) in (first_query..queries.range.end).zip(square) {
            let mut seen = width;
            if self.own {
                seen = seen.min((query + 1).saturating_sub(first_key));
                if let Some(visible) = &queries.segment.visible {
                    let visible = &visible[query * len + first_key..][..seen];
                    scores.iter_mut().zip(visible).filter(|(_, visible)| !**visible).for_each(|(x, _)| *x = with);
                }
            }
            if let Some(window) = queries.plan.window {
                let own = positions[queries.segment.tokens.start + query] as usize;
                let keys = &positions[self.packed.first + first_key..][..seen];
                scores
                    .iter_mut()
                    .zip(keys)
                    .filter(|(_, key)| **key as usize + window <= own)
                    .for_each(|(x, _)| *x = with);
            }
            scores[seen..].fill(with);
        }
    }
}

vectorised! {
    fn dots(a: &[f32], a_stride: usize, b: &[f32], d: usize, out: &mut [f32]) {
        for (i, out) in out.iter_mut().enumerate() {
            *out = dot(&a[i * a_stride..][..d], &b[i * d..][..d]);
        }
    }
}

vectorised! {
    fn scale_rows(x: &mut [f32], d: usize, by: &[f32]) {
        for (x, by) in x.chunks_exact_mut(d).zip(by) {
            for x in x {
                *x *= by;
            }
        }
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

/// The attended values `[heads, tokens, d]`, and `[heads, tokens, 2]` what turns a query's scores into its weights: the shift of
/// its exponentials and 1 / their sum. (The logarithm of both in one number would be rounded at the size of the scores, and
/// every weight by as much.) Queries and keys are rotated.
pub fn forward(plan: &AttentionPlan, compute: Compute, q: &[f32], k: &[f32], v: &[f32]) -> (Buffer, Buffer) {
    let s = Sizes::of(plan);
    let d = s.head_dim;
    let packed = pack_all(plan, compute, k, v, false);
    let mut out = Buffer::take(s.heads * s.tokens * d);
    let mut normalisers = Buffer::take(2 * s.heads * s.tokens);
    let outs = by_head_and_segment(&mut out, plan, s.heads, d);
    let of_heads = by_head_and_segment(&mut normalisers, plan, s.heads, 2);
    let segments = plan.segments.len();
    outs.into_par_iter().zip(of_heads).enumerate().for_each(|(task, (out, normalisers))| {
        let (head, at) = (task / segments, task % segments);
        let keys = Keys::of(plan, &packed, at, head / s.group);
        let blocks = out.chunks_mut(QUERIES * d).zip(normalisers.chunks_mut(2 * QUERIES));
        for (queries, (out, normalisers)) in Queries::of(plan, &plan.segments[at]).zip(blocks) {
            let from = queries.first() * s.heads * d + head * d;
            let (q, stride, n) = (&q[from..], s.heads * d, queries.range.len());
            let q = (&compute.left_rows(q, stride, n, d), longest(q, stride, n, d));
            block_forward(compute, &queries, &keys, q, out, normalisers);
        }
    });
    drop(packed);
    (out, normalisers)
}

/// Scores that may be large are worked out twice and never stored: a first pass over the keys finds the largest of each
/// query. `longest` is of the queries; `normalisers` become what [`forward`] says.
fn block_forward(
    compute: Compute,
    queries: &Queries,
    keys: &[Keys],
    (q, longest): (&Left, f32),
    out: &mut [f32],
    normalisers: &mut [f32],
) {
    let (d, n) = (queries.plan.head_dim, queries.range.len());
    let scores = Scores::of(queries.plan);
    let seen: Vec<(&Keys, Range<usize>)> =
        keys.iter().filter_map(|keys| keys.seen_by(queries).map(|range| (keys, range))).collect();
    let longest_key = seen.iter().map(|(keys, _)| keys.packed.longest).fold(0.0, f32::max);
    let shift = if scores.bound(longest, longest_key) <= SMALL {
        vec![0.0; n]
    } else {
        let mut max = vec![f32::NEG_INFINITY; n];
        for (keys, range) in &seen {
            let terms = [(q, keys.packed.keys.part(0..d, range.clone()))];
            let first = |col: usize| keys.first_row(queries, range, col);
            compute.visit([n, range.len()], &terms, first, |row, col, square| {
                let scale = scores.cap(square);
                keys.hide(queries, range, [row, col], square, f32::NEG_INFINITY);
                max_square(square, scale, &mut max[row..]);
            });
        }
        max
    };
    let mut sums = vec![0.0; n];
    for (i, (keys, range)) in seen.iter().enumerate() {
        let terms = [(q, keys.packed.keys.part(0..d, range.clone()))];
        let first = |col: usize| keys.first_row(queries, range, col);
        let weights = compute.fused_here([n, range.len()], [&terms], first, |row, col, [square]: [&mut Square; 1]| {
            let (scale, shift, sums) = (scores.cap(square), &shift[row..], &mut sums[row..]);
            if keys.all_seen(queries, range, [row, col]) {
                exp_sum_square(square, scale, shift, sums);
            } else {
                exp_square(square, scale, shift);
                keys.hide(queries, range, [row, col], square, 0.0);
                sum_square(square, sums);
            }
        });
        let [weights] = weights;
        let values = keys.packed.values.part(range.clone(), 0..d);
        compute.product(Threads::One, out, d, i > 0, &[(&weights, values)]);
    }
    let inverse: Vec<f32> = sums.iter().map(|sum| 1.0 / sum).collect();
    scale_rows(out, d, &inverse);
    for ((normaliser, shift), inverse) in normalisers.as_chunks_mut::<2>().0.iter_mut().zip(shift).zip(inverse) {
        *normaliser = [shift, inverse];
    }
}

/// What the backward pass starts from: queries, keys and values `[tokens, …]`, output and normalisers `[heads, tokens, …]`.
pub struct Saved<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub out: &'a [f32],
    pub normalisers: &'a [f32],
}

/// Gradients by queries, keys and values, `[heads, tokens, d]`; those of queries and keys before their rotation.
pub struct Grads {
    pub q: Buffer,
    pub k: Buffer,
    pub v: Buffer,
}

/// The share of one query head and segment in the gradients of the keys and values that it sees, `[strips of 32 keys, d, 32]`
/// each, as the products give it: prefix and own keys begin a strip.
struct Share {
    k: Buffer,
    v: Buffer,
}

pub fn backward(plan: &AttentionPlan, compute: Compute, saved: &Saved, dy: &[f32]) -> Grads {
    let s = Sizes::of(plan);
    let d = s.head_dim;
    let packed = pack_all(plan, compute, saved.k, saved.v, true);
    let segments = plan.segments.len();
    let mut dq = Buffer::zeros(s.heads * s.tokens * d);
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
                let Share { k, v } = &shares[head * segments + at];
                for (share, out) in [(k, &mut *dk), (v, &mut *dv)] {
                    let (of_prefix, own) = share.split_at(prefix.next_multiple_of(DEPTH) * d);
                    add_transposed(of_prefix, d, &mut out[..prefix * d]);
                    add_transposed(own, d, &mut out[segment.tokens.start * d..][..segment.tokens.len() * d]);
                }
            }
        }
    });
    rotate_back(&mut dq, plan);
    rotate_back(&mut dk, plan);
    Grads { q: dq, k: dk, v: dv }
}

vectorised! {
    /// Adds `x`, `[strips of 32 keys, d, 32]`, to `out`, `[keys, d]`.
    fn add_transposed(x: &[f32], d: usize, out: &mut [f32]) {
        for (x, out) in x.chunks_exact(d * DEPTH).zip(out.chunks_mut(DEPTH * d)) {
            for (key, out) in out.chunks_exact_mut(d).enumerate() {
                for (out, x) in out.iter_mut().zip(x.chunks_exact(DEPTH)) {
                    *out += x[key];
                }
            }
        }
    }
}

/// A block of queries as the backward pass multiplies it.
struct Sides<'a> {
    q: Left<'a>,
    dy: Left<'a>,
    /// `[d, queries]`.
    q_t: Left<'a>,
    dy_t: Left<'a>,
    along: Vec<f32>,
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
    let blocks: Vec<(Queries, Sides)> = Queries::of(plan, segment)
        .map(|queries| {
            let (from, n) = (queries.first() * width + head * d, queries.range.len());
            let (q, dy, y) = (&saved.q[from..], &dy[from..], &saved.out[(head * s.tokens + queries.first()) * d..]);
            let mut along = vec![0.0; n];
            dots(dy, width, y, d, &mut along);
            let (q_t, dy_t) = (compute.left_columns(q, width, d, n), compute.left_columns(dy, width, d, n));
            let (q, dy) = (compute.left_rows(q, width, n, d), compute.left_rows(dy, width, n, d));
            (queries, Sides { q, dy, q_t, dy_t, along })
        })
        .collect();
    let keys = Keys::of(plan, packed, at, head / s.group);
    let total = keys.last().map_or(0, |keys| (keys.column + keys.range.len()).next_multiple_of(DEPTH));
    let mut share = Share { k: Buffer::zeros(total * d), v: Buffer::zeros(total * d) };
    for keys in &keys {
        for ((queries, sides), dq) in blocks.iter().zip(dq.chunks_mut(QUERIES * d)) {
            let Some(range) = keys.seen_by(queries) else { continue };
            let normalisers =
                &saved.normalisers.as_chunks::<2>().0[head * s.tokens + queries.first()..][..queries.range.len()];
            let [p, ds] = weights_and_gradient(compute, queries, keys, &range, sides, normalisers);
            let Some((keys_back, _)) = &keys.packed.back else { unreachable!("packed for the backward pass") };
            compute.product(Threads::One, dq, d, true, &[(&ds, keys_back.part(range, 0..d))]);
            compute.add_over_rows(&sides.q_t, &ds, &mut share.k[keys.column * d..]);
            compute.add_over_rows(&sides.dy_t, &p, &mut share.v[keys.column * d..]);
        }
    }
    share
}

/// The weights of a block of queries over a block of keys again, and the gradient of their scores.
fn weights_and_gradient(
    compute: Compute,
    queries: &Queries,
    keys: &Keys,
    range: &Range<usize>,
    sides: &Sides,
    normalisers: &[[f32; 2]],
) -> [Left<'static>; 2] {
    let d = queries.plan.head_dim;
    let scores = Scores::of(queries.plan);
    let Some((_, values)) = &keys.packed.back else { unreachable!("packed for the backward pass") };
    let terms =
        [[(&sides.q, keys.packed.keys.part(0..d, range.clone()))], [(&sides.dy, values.part(0..d, range.clone()))]];
    compute.fused_here(
        [queries.range.len(), range.len()],
        [&terms[0], &terms[1]],
        |col| keys.first_row(queries, range, col),
        |row, col, [p, ds]: [&mut Square; 2]| {
            let scale = scores.cap(p);
            let capped = scores.softcap.map(|cap| (cap, *p));
            weights_square(p, scale, &normalisers[row..]);
            if !keys.all_seen(queries, range, [row, col]) {
                keys.hide(queries, range, [row, col], p, 0.0);
            }
            score_gradient_square(ds, p, &sides.along[row..], scores.scale);
            if let Some((cap, scores)) = capped {
                uncap_square(ds, &scores, cap);
            }
        },
    )
}
