//! Attention of sequences that grow token by token, and of trees behind them. A token's result follows from its own query and
//! the keys and values before it, one after another in their order: in how many pieces a sequence was read, and what is read
//! beside it, changes no bit.

use super::attend::{Query, Scratch, attend, chain_queries};
use super::attention::rotate;
use super::shared::Shared;
use super::{primitive, slice};
use crate::layout::{ROOT, Row};
use crate::ops::{AttentionPlan, LayerKv};
use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;
use std::ops::Range;

/// Keys side by side: a query's scores of them are the lanes of a register.
pub(super) const LANES: usize = 16;
/// Tokens of a chain whose queries are one task.
const TOKENS: usize = 16;

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
        let first = self.grow(keys.len() / width.max(1), width);
        for (token, key) in (first..).zip(keys.chunks_exact(width)) {
            let block = &mut self.keys[token / LANES * width * LANES..];
            for (lanes, x) in block.as_chunks_mut::<LANES>().0.iter_mut().zip(key) {
                lanes[token % LANES] = *x;
            }
        }
        self.values[first * width..].copy_from_slice(values);
    }

    /// Makes room for tokens, and says which is the first of them.
    fn grow(&mut self, tokens: usize, width: usize) -> usize {
        let first = self.len;
        self.len += tokens;
        self.keys.resize(self.len.div_ceil(LANES) * width * LANES, 0.0);
        self.values.resize(self.len * width, 0.0);
        first
    }

    /// The first tokens.
    pub(super) fn seen(&self, len: usize) -> Seen<'_> {
        Seen { keys: &self.keys, values: &self.values, len }
    }

    /// Room for more tokens that several threads write.
    pub(super) fn slots(&mut self, tokens: usize, width: usize) -> Slots {
        let first = self.grow(tokens, width);
        let lens = [self.keys.len(), self.values.len()];
        Slots { keys: Shared(self.keys.as_mut_ptr()), values: Shared(self.values.as_mut_ptr()), lens, width, first }
    }
}

/// Tokens of a [`KvBlocks`] that threads write and then read.
pub(super) struct Slots {
    keys: Shared,
    values: Shared,
    lens: [usize; 2],
    width: usize,
    /// What there was before.
    pub first: usize,
}

#[expect(unsafe_code, reason = "threads write to tokens of their own")]
impl Slots {
    /// Writes token `i` of the new ones.
    ///
    /// # Safety
    /// The blocks live and are not touched otherwise; no other thread reads or writes this token before the next barrier.
    pub unsafe fn write(&self, i: usize, key: &[f32], value: &[f32]) {
        let (token, width) = (self.first + i, self.width);
        let block = token / LANES * width * LANES + token % LANES;
        assert!(key.len() == width && value.len() == width && (token + 1) * width <= self.lens[1]);
        assert!(block + (width - 1) * LANES < self.lens[0]);
        // SAFETY: the assertions bound what is written, and nobody else does, as promised by the caller.
        unsafe {
            for (j, x) in key.iter().enumerate() {
                *self.keys.at(block + j * LANES) = *x;
            }
            std::ptr::copy_nonoverlapping(value.as_ptr(), self.values.at(token * width), width);
        }
    }

    /// The first tokens, old ones and new.
    ///
    /// # Safety
    /// The blocks live, and nobody writes to them before the next barrier.
    pub unsafe fn seen(&self, len: usize) -> Seen<'_> {
        // SAFETY: as many as there are, and nobody writes to them, as promised by the caller.
        let [keys, values] = unsafe {
            [
                std::slice::from_raw_parts(self.keys.0, self.lens[0]),
                std::slice::from_raw_parts(self.values.0, self.lens[1]),
            ]
        };
        Seen { keys, values, len }
    }
}

/// The first `len` tokens of some blocks.
#[derive(Clone, Copy)]
pub(super) struct Seen<'a> {
    pub keys: &'a [f32],
    pub values: &'a [f32],
    pub len: usize,
}

/// A task: a key head's queries for some tokens.
struct Task {
    row: usize,
    tokens: Range<usize>,
    /// Tokens of the row that the first of them sees, itself included.
    seen: usize,
}

/// The tokens of chains in tasks; `before` says how many a row has already.
fn tasks(rows: &[Row], before: impl Fn(usize) -> usize) -> Vec<Task> {
    let mut tasks = Vec::new();
    for (row, Row { tokens, .. }) in rows.iter().enumerate() {
        for start in tokens.clone().step_by(TOKENS) {
            let seen = before(row) + start - tokens.start + 1;
            tasks.push(Task { row, tokens: start..tokens.end.min(start + TOKENS), seen });
        }
    }
    tasks
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
    let width = plan.n_kv_heads * plan.head_dim;
    let q = rotate(slice(&q), plan.n_heads, plan, 1.0);
    let k = rotate(slice(&k), plan.n_kv_heads, plan, 1.0);
    let tasks = tasks(&plan.batch.rows, |row| rows[row].len());
    assert_eq!(tasks.iter().map(|t| t.tokens.len()).sum::<usize>(), plan.batch.len(), "each token belongs to a chain");
    for (row, own) in plan.batch.rows.iter().zip(rows.iter_mut()) {
        let tokens = row.tokens.start * width..row.tokens.end * width;
        own.push(&k[tokens.clone()], &slice(&v)[tokens], width);
    }
    let rows: Vec<&KvBlocks> = rows.iter().map(|row| &**row).collect();
    run(&q, plan, tasks.len(), |task, kv_head| {
        let Task { row, tokens, seen } = &tasks[task];
        let last = seen + tokens.len() - 1;
        let queries = chain_queries(plan, kv_head, tokens.clone(), *seen).collect();
        (queries, vec![shared.seen(shared.len()), rows[*row].seen(last)])
    })
}

/// Works tasks out, each for every key head.
fn run<'a>(
    q: &[f32],
    plan: &AttentionPlan,
    tasks: usize,
    of: impl Fn(usize, usize) -> (Vec<Query>, Vec<Seen<'a>>) + Sync,
) -> Tensor<2> {
    let (d, stride) = (plan.head_dim, plan.n_heads * plan.head_dim);
    let mut out = vec![0f32; plan.batch.len() * stride];
    let shared = Shared(out.as_mut_ptr());
    let len = out.len();
    (0..tasks * plan.n_kv_heads).into_par_iter().for_each_init(Scratch::default, |scratch, task| {
        let (task, kv_head) = (task / plan.n_kv_heads, task % plan.n_kv_heads);
        let (queries, parts) = of(task, kv_head);
        attend(plan, (q, stride), &queries, &parts, scratch, &mut |query, sums| {
            let at = query.token * stride + query.head * d;
            assert!(at + d <= len);
            // SAFETY: it lies inside the output, and each query belongs to one task.
            #[expect(unsafe_code, reason = "threads write to heads of their own")]
            unsafe {
                std::ptr::copy_nonoverlapping(sums.as_ptr(), shared.at(at), d);
            }
        });
    });
    Tensor::from_data(TensorData::new(out, [plan.batch.len(), stride]), &Device::flex().autodiff())
}

/// Where a token of a row stands: how much of the chain that the row begins with it sees, and whom beyond it, itself last.
struct Ancestry {
    chain: usize,
    beyond: Vec<usize>,
}

fn ancestry(row: &Row) -> (usize, Vec<Ancestry>) {
    let n = row.len();
    let parent = |i: usize| match &row.parents {
        None => i.checked_sub(1),
        Some(parents) => (parents[i] != ROOT).then_some(parents[i] as usize),
    };
    let chain = (0..n).take_while(|i| parent(*i) == i.checked_sub(1)).count();
    let of = |i: usize| {
        let (mut beyond, mut at) = (Vec::new(), Some(i));
        while let Some(here) = at.filter(|here| *here >= chain) {
            beyond.push(here);
            at = parent(here);
        }
        beyond.reverse();
        Ancestry { chain: at.map_or(0, |last| last + 1), beyond }
    };
    (chain, (0..n).map(of).collect())
}

/// Attention of rows that are chains with trees behind them, all of which go on from `past`: each token's bits are its own
/// here, too. `k` is not rotated yet.
pub(super) fn trees([q, k, v]: [Tensor<2>; 3], plan: &AttentionPlan, past: Option<&LayerKv>) -> Tensor<2> {
    assert_eq!(plan.batch.prefix, 0, "rows that are scored go on from what was read before");
    let [q, k, v] = [q, k, v].map(|x| primitive(x).primitive().to_contiguous());
    let width = plan.n_kv_heads * plan.head_dim;
    let q = rotate(slice(&q), plan.n_heads, plan, 1.0);
    let k = rotate(slice(&k), plan.n_kv_heads, plan, 1.0);
    let v = slice(&v);
    let mut shared = KvBlocks::default();
    if let Some(past) = past {
        let [keys, values] = [&past.keys, &past.values].map(|x| primitive(x.clone()).primitive().to_contiguous());
        shared.push(slice(&keys), slice(&values), width);
    }
    let blocks_of = |tokens: &mut dyn Iterator<Item = usize>| {
        let mut blocks = KvBlocks::default();
        for token in tokens {
            blocks.push(&k[token * width..][..width], &v[token * width..][..width], width);
        }
        blocks
    };
    // The chains' tasks, then one a token of a tree.
    let mut chains = Vec::new();
    let mut nodes: Vec<(usize, usize, Ancestry)> = Vec::new();
    let mut chain_rows = Vec::new();
    for (number, row) in plan.batch.rows.iter().enumerate() {
        let (chain, found) = ancestry(row);
        let start = row.tokens.start;
        chains.push(blocks_of(&mut (start..start + chain)));
        chain_rows.push(Row { tokens: start..start + chain, parents: None });
        nodes.extend(found.into_iter().enumerate().skip(chain).map(|(i, found)| (number, start + i, found)));
    }
    let beyond: Vec<KvBlocks> = nodes
        .par_iter()
        .map(|(row, _, found)| {
            let start = plan.batch.rows[*row].tokens.start;
            blocks_of(&mut found.beyond.iter().map(|i| start + i))
        })
        .collect();
    let chain_tasks = tasks(&chain_rows, |_| 0);
    run(&q, plan, chain_tasks.len() + nodes.len(), |task, kv_head| match chain_tasks.get(task) {
        Some(Task { row, tokens, seen }) => {
            let last = seen + tokens.len() - 1;
            let queries = chain_queries(plan, kv_head, tokens.clone(), *seen).collect();
            (queries, vec![shared.seen(shared.len()), chains[*row].seen(last)])
        }
        None => {
            let node = task - chain_tasks.len();
            let (row, token, found) = &nodes[node];
            let queries = chain_queries(plan, kv_head, *token..token + 1, found.beyond.len()).collect();
            let own = beyond[node].seen(found.beyond.len());
            (queries, vec![shared.seen(shared.len()), chains[*row].seen(found.chain), own])
        }
    })
}
