//! A decoder layer over quantized blocks, for sequences that grow: one op, whose phases a crew of threads goes through
//! together. A token of a small model takes milliseconds, and handing over single ops would cost as much as they do.

use super::super::attend::{Query, Scratch, attend, chain_queries};
use super::super::crew::{Member, together};
use super::super::growing::{KvBlocks, Seen, Slots};
use super::super::kernels::dot;
use super::super::shared::Field;
use super::super::simd::vectorised;
use super::super::{FlexMatrix, dims, gated, matrix, primitive, slice};
use super::round::Rounded;
use super::{BlockMatrix, COLS, Level, strips};
use crate::ops::{AttentionPlan, Block};
use burn::tensor::{Device, Tensor, TensorData};
use std::ops::Range;

/// Phases of a layer.
const PHASES: usize = 10;
/// Rows of a task that works row by row.
const ROWS: usize = 4;
/// Tokens of a task of attention.
const TOKENS: usize = 16;
/// Threads that help with one token, at most: memory gives no more.
const FOR_ONE: usize = 8;

/// The matrix and bias of each of a layer's seven maps.
pub type Maps<'a> = [(&'a BlockMatrix, Option<&'a [f32]>); 7];

/// The layer's maps, where all of them are blocks and none has an adapter.
pub fn maps<'a>(block: &Block<'a>) -> Option<Maps<'a>> {
    if block.lora.iter().any(Option::is_some) {
        return None;
    }
    let mut found = Vec::with_capacity(7);
    for linear in block.linears {
        let FlexMatrix::Blocks { matrix, .. } = matrix(linear).as_ref() else { return None };
        found.push((matrix, linear.bias.as_ref().map(|bias| bias.as_slice())));
    }
    found.try_into().ok()
}

vectorised! {
    /// As [`super::super::pointwise`] has it.
    fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let inverse = 1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt();
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * inverse * weight;
        }
    }
}

vectorised! {
    /// Rotates a head in place.
    fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32]) {
        let (low, high) = x.split_at_mut(cos.len());
        for ((low, high), (cos, sin)) in low.iter_mut().zip(high).zip(cos.iter().zip(sin)) {
            (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
        }
    }
}

/// The layer's output; keys and values are added to `rows`.
pub fn layer(
    x: &Tensor<2>,
    block: &Block,
    maps: Maps,
    plan: &AttentionPlan,
    shared: &KvBlocks,
    rows: &mut [&mut KvBlocks],
) -> Tensor<2> {
    let input = primitive(x.clone()).primitive().to_contiguous();
    let [n, hidden] = dims(&input);
    let (d, width) = (plan.head_dim, plan.n_kv_heads * plan.head_dim);
    let mut tokens = Vec::with_capacity(n);
    let mut slots = Vec::with_capacity(rows.len());
    for (number, (row, own)) in plan.batch.rows.iter().zip(rows.iter_mut()).enumerate() {
        tokens.extend((0..row.len()).map(|i| (number, i)));
        slots.push(own.slots(row.len(), width));
    }
    assert_eq!(tokens.len(), n, "each token belongs to a chain");
    let mut spans = Vec::new();
    for (number, row) in plan.batch.rows.iter().enumerate() {
        let starts = row.tokens.clone().step_by(TOKENS);
        spans.extend(starts.map(|start| (number, start..row.tokens.end.min(start + TOKENS))));
    }
    let [q_width, inner] = [plan.n_heads * d, maps[4].0.n_out];
    let work = Work {
        block,
        plan,
        shared,
        maps,
        x: slice(&input),
        hidden,
        tokens,
        spans,
        slots,
        rounded: Rounded::room(n, hidden),
        qkv: Field::new(0.0, n * (q_width + 2 * width)),
        attended: Field::new(0.0, n * q_width),
        attended_rounded: Rounded::room(n, q_width),
        between: Field::new(0.0, n * hidden),
        between_rounded: Rounded::room(n, hidden),
        gated: Field::new(0.0, n * inner),
        gated_rounded: Rounded::room(n, inner),
        out: Field::new(0.0, n * hidden),
    };
    let threads = if n == 1 { FOR_ONE } else { usize::MAX };
    together(PHASES, threads, |crew| work.run(crew));
    Tensor::from_data(TensorData::new(work.out.into_values(), [n, hidden]), &Device::flex().autodiff())
}

struct Work<'a> {
    block: &'a Block<'a>,
    plan: &'a AttentionPlan,
    shared: &'a KvBlocks,
    maps: Maps<'a>,
    x: &'a [f32],
    hidden: usize,
    /// Of each token its row, and its number there.
    tokens: Vec<(usize, usize)>,
    /// Tasks of attention: a row and some of its tokens.
    spans: Vec<(usize, Range<usize>)>,
    slots: Vec<Slots>,
    rounded: Rounded,
    qkv: Field<f32>,
    attended: Field<f32>,
    attended_rounded: Rounded,
    between: Field<f32>,
    between_rounded: Rounded,
    gated: Field<f32>,
    gated_rounded: Rounded,
    out: Field<f32>,
}

#[expect(
    unsafe_code,
    reason = "threads write to parts of their own in each phase, and read what was written in earlier ones"
)]
impl Work<'_> {
    /// In every phase each task writes rows, columns or heads of its own, and reads what earlier phases wrote: that is the
    /// safety of all calls below.
    fn run(&self, crew: &mut Member) {
        let (n, d, hidden) = (self.tokens.len(), self.plan.head_dim, self.hidden);
        let row_tasks = n.div_ceil(ROWS);
        let each_row = |task: usize| task * ROWS..n.min((task + 1) * ROWS);
        let (mut normed, mut room) = (vec![0f32; hidden], vec![0f32; d]);
        let (q_width, width) = (self.plan.n_heads * d, self.plan.n_kv_heads * d);
        let (qkv_width, inner) = (q_width + 2 * width, self.maps[4].0.n_out);

        crew.share(row_tasks, |task| {
            for i in each_row(task) {
                rms_norm(&self.x[i * hidden..][..hidden], self.block.input_norm, self.block.eps, &mut normed);
                // SAFETY: a row of this task's.
                unsafe { self.rounded.row(i, &normed) };
            }
        });
        let offsets = [0, q_width, q_width + width];
        let strips_of: [usize; 3] = std::array::from_fn(|i| self.maps[i].0.strips());
        crew.share(strips_of.iter().sum(), |task| {
            let (map, strip) = match task {
                q if q < strips_of[0] => (0, q),
                k if k < strips_of[0] + strips_of[1] => (1, k - strips_of[0]),
                v => (2, v - strips_of[0] - strips_of[1]),
            };
            // SAFETY: what was rounded in the phase before.
            let x = unsafe { self.rounded.read() };
            strips(Level::best(), x, 0..n, self.maps[map].0, strip..strip + 1, |row, first, sums| {
                // SAFETY: columns of this task's.
                let out = unsafe { self.qkv.part(row * qkv_width + offsets[map] + first, sums.len()) };
                put(out, sums, self.maps[map].1, first);
            });
        });
        crew.share(row_tasks, |task| {
            for i in each_row(task) {
                // SAFETY: a row of this task's, and its token's keys and values.
                unsafe { self.heads(i, self.qkv.part(i * qkv_width, qkv_width), &mut room) };
            }
        });
        let mut scratch = Scratch::default();
        crew.share(self.spans.len() * self.plan.n_kv_heads, |task| {
            let ((number, tokens), kv_head) = (&self.spans[task / self.plan.n_kv_heads], task % self.plan.n_kv_heads);
            let slots = &self.slots[*number];
            let seen = slots.first + self.tokens[tokens.start].1 + 1;
            let queries: Vec<Query> = chain_queries(self.plan, kv_head, tokens.clone(), seen).collect();
            // SAFETY: they were written in the phase before.
            let own: Seen = unsafe { slots.seen(seen + tokens.len() - 1) };
            let parts = [self.shared.seen(self.shared.len()), own];
            // SAFETY: as above.
            let q = (unsafe { self.qkv.all() }, qkv_width);
            attend(self.plan, q, &queries, &parts, &mut scratch, &mut |query, sums| {
                // SAFETY: a head of this task's.
                unsafe { self.attended.part(query.token * q_width + query.head * d, d) }.copy_from_slice(sums);
            });
        });
        crew.share(row_tasks, |task| {
            for i in each_row(task) {
                // SAFETY: a row of this task's, of what was written in the phase before.
                unsafe { self.attended_rounded.row(i, &self.attended.all()[i * q_width..][..q_width]) };
            }
        });
        crew.share(self.maps[3].0.strips(), |strip| {
            // SAFETY: what was rounded in the phase before.
            let x = unsafe { self.attended_rounded.read() };
            self.residual(x, 3, strip, self.x, &self.between);
        });
        crew.share(row_tasks, |task| {
            for i in each_row(task) {
                // SAFETY: a row of this task's, of what was written in the phase before.
                unsafe {
                    let x = &self.between.all()[i * hidden..][..hidden];
                    rms_norm(x, self.block.post_norm, self.block.eps, &mut normed);
                    self.between_rounded.row(i, &normed);
                }
            }
        });
        let mut up = vec![0f32; n * COLS];
        crew.share(self.maps[4].0.strips(), |strip| {
            // SAFETY: what was rounded in the phase before.
            let x = unsafe { self.between_rounded.read() };
            strips(Level::best(), x, 0..n, self.maps[5].0, strip..strip + 1, |row, first, sums| {
                put(&mut up[row * COLS..][..sums.len()], sums, self.maps[5].1, first);
            });
            strips(Level::best(), x, 0..n, self.maps[4].0, strip..strip + 1, |row, first, sums| {
                let mut gate = [0f32; COLS];
                put(&mut gate[..sums.len()], sums, self.maps[4].1, first);
                // SAFETY: columns of this task's.
                let out = unsafe { self.gated.part(row * inner + first, sums.len()) };
                gated::forward_all(gated::Activation::Silu, &gate[..sums.len()], &up[row * COLS..][..sums.len()], out);
            });
        });
        crew.share(row_tasks, |task| {
            for i in each_row(task) {
                // SAFETY: a row of this task's, of what was written in the phase before.
                unsafe { self.gated_rounded.row(i, &self.gated.all()[i * inner..][..inner]) };
            }
        });
        crew.share(self.maps[6].0.strips(), |strip| {
            // SAFETY: what was rounded and what was summed in earlier phases.
            let (x, between) = unsafe { (self.gated_rounded.read(), self.between.all()) };
            self.residual(x, 6, strip, between, &self.out);
        });
    }

    /// Norms over heads and rotation, in place, of a token's queries and keys; then its keys and values go where they belong.
    ///
    /// # Safety
    /// Nobody else writes this token's keys and values.
    unsafe fn heads(&self, token: usize, qkv: &mut [f32], room: &mut [f32]) {
        let (plan, d) = (self.plan, self.plan.head_dim);
        let (q_width, width) = (plan.n_heads * d, plan.n_kv_heads * d);
        if let Some(norms) = self.block.head_norms {
            let (q, k) = qkv[..q_width + width].split_at_mut(q_width);
            for (heads, norm) in [(q, norms[0]), (k, norms[1])] {
                for head in heads.chunks_exact_mut(d) {
                    rms_norm(head, norm, self.block.eps, room);
                    head.copy_from_slice(room);
                }
            }
        }
        if let Some(rotation) = &plan.rotation {
            let angles = token * d / 2..(token + 1) * d / 2;
            let (cos, sin) = (&rotation.cos[angles.clone()], &rotation.sin[angles]);
            qkv[..q_width + width].chunks_exact_mut(d).for_each(|head| rotate(head, cos, sin));
        }
        let (row, i) = self.tokens[token];
        let (k, v) = qkv[q_width..].split_at(width);
        // SAFETY: as promised by the caller.
        unsafe { self.slots[row].write(i, k, v) };
    }

    /// `base` plus a strip of a product.
    fn residual(&self, x: super::round::RoundedRows, map: usize, strip: usize, base: &[f32], out: &Field<f32>) {
        let (matrix, bias) = self.maps[map];
        strips(Level::best(), x, 0..x.rows, matrix, strip..strip + 1, |row, first, sums| {
            let at = row * self.hidden + first;
            // SAFETY: columns of this task's.
            let out = unsafe { out.part(at, sums.len()) };
            put(out, sums, bias, first);
            out.iter_mut().zip(&base[at..]).for_each(|(out, base)| *out += base);
        });
    }
}

/// Sums with the bias of their columns.
#[inline(always)]
fn put(out: &mut [f32], sums: &[f32], bias: Option<&[f32]>, first: usize) {
    out.copy_from_slice(sums);
    if let Some(bias) = bias {
        out.iter_mut().zip(&bias[first..]).for_each(|(out, bias)| *out += bias);
    }
}
