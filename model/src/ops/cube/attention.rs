//! Rotary embedding and grouped-query attention over packed rows. Scores exist a tile at a time, in the forward pass (online
//! softmax) and in [`super::attention_backward`], which works them out again: FlashAttention-2 (Dao, 2023). No sum goes through an atomic, so
//! a pass has the same bits each time.

use super::buffer::{UNITS, arg, contiguous, cubes, dims, for_each, room};
use super::pointwise::tanh;
use super::tables::{BLOCK, TOKEN, Tables};
use super::{Cube, CubeTensor, attention_backward, primitive, tensor, with_float};
use crate::ops::AttentionPlan;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops as Prepared, OpsKind};
use burn::tensor::{DType, Tensor};
use cubecl::prelude::*;

/// Sides of the square of units that works on a tile of scores, and columns of a head that are in shared memory at once.
pub(super) const SIDE: usize = 16;

/// A row of a chunk in shared memory: one number more than its columns, so that neighbours lie in different banks.
pub(super) const CHUNK: usize = SIDE + 1;

/// Groups of sixteen columns up to which what a unit adds up stays in registers. More of them, unrolled, take a compiler minutes.
pub(super) const UNROLLED: usize = 8;

/// A score that nothing reaches; `exp` of its distance to any other is 0.
const NEVER: f32 = -1.0e30;

/// Rows (and columns) of scores that a unit works out, by the device's shared memory and the head's size.
fn rows_of_unit(client: &Client, head_dim: usize) -> usize {
    let shared = client.properties().hardware.max_shared_memory_size;
    match shared >= 30 << 10 && head_dim <= 128 {
        true => 4,
        false => 2,
    }
}

/// Tokens of a block: what [`Tables`] are made for.
pub(super) fn block(client: &Client, head_dim: usize) -> usize {
    SIDE * rows_of_unit(client, head_dim)
}

/// What the kernels are compiled for.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    pub rows: usize,
    pub head_dim: usize,
    pub group: usize,
    pub past: bool,
    pub trees: bool,
    pub window: bool,
    pub softcap: bool,
}

impl Kind {
    pub fn of(q: &CubeTensor, plan: &AttentionPlan, tables: &Tables, past: bool) -> Kind {
        Kind {
            rows: rows_of_unit(&q.client, plan.head_dim),
            head_dim: plan.head_dim,
            group: plan.n_heads / plan.n_kv_heads,
            past,
            trees: tables.has_trees,
            window: plan.window.is_some(),
            softcap: plan.softcap.is_some(),
        }
    }

    /// Tokens of a block.
    pub fn block(&self) -> usize {
        SIDE * self.rows
    }
}

/// Each half of a head turned by its token's angle; `sign` is -1 for the inverse.
#[cube(launch_unchecked)]
fn rotate_kernel<F: Float>(
    x: &[F],
    cos: &[f32],
    sin: &[f32],
    y: &mut [F],
    n: u32,
    width: u32,
    sign: f32,
    #[comptime] head_dim: u32,
) {
    if ABSOLUTE_POS < n as usize {
        let half = comptime!(head_dim / 2);
        let pair = ABSOLUTE_POS as u32;
        let pairs = width / 2;
        let token = pair / pairs;
        let in_row = pair % pairs;
        let head = in_row / half;
        let j = in_row % half;
        let low = (token * width + head * head_dim + j) as usize;
        let high = low + half as usize;
        let angle = (token * half + j) as usize;
        let c = cos[angle];
        let s = sign * sin[angle];
        let a = f32::cast_from(x[low]);
        let b = f32::cast_from(x[high]);
        y[low] = F::cast_from(a * c - b * s);
        y[high] = F::cast_from(b * c + a * s);
    }
}

/// Every head of every token turned by its angle, or turned back.
pub(super) fn rotate(x: &CubeTensor, plan: &AttentionPlan, tables: &Tables, sign: f32) -> CubeTensor {
    let Some([cos, sin]) = &tables.angles else { return x.clone() };
    let [n, width] = dims(x);
    let y = room(x, [n, width], x.dtype);
    let pairs = n * width / 2;
    let (count, dim) = for_each(pairs);
    // SAFETY: a unit a pair of `x`; there is an angle for each token and half of a head.
    with_float!(x.dtype, F => unsafe {
        rotate_kernel::launch_unchecked::<F>(
            &x.client, count, dim, arg(x), arg(cos), arg(sin), arg(&y), pairs as u32, width as u32, sign,
            plan.head_dim as u32,
        )
    });
    y
}

/// Sixteen columns of some rows of `x` into shared memory; zeros past the rows' or the head's end.
#[cube]
pub(super) fn load<F: Float>(
    chunk: &mut [f32],
    x: &[F],
    first: u32,
    limit: u32,
    width: u32,
    column: u32,
    columns: u32,
    #[comptime] rows: u32,
) {
    for e in range_stepped(UNIT_POS, comptime!(rows * SIDE as u32), UNITS as u32) {
        let r = e / SIDE as u32;
        let c = e % SIDE as u32;
        let mut value = 0.0f32;
        if first + r < limit && c < columns {
            value = f32::cast_from(x[((first + r) * width + column + c) as usize]);
        }
        chunk[(r * CHUNK as u32 + c) as usize] = value;
    }
}

/// Adds the products of sixteen columns to a unit's scores: rows `UNIT_POS_Y + 16 r`, columns `UNIT_POS_X + 16 c`.
#[cube]
pub(super) fn add_products(sums: &mut Array<f32>, left: &[f32], right: &[f32], #[comptime] rows: usize) {
    for k in 0..SIDE as u32 {
        let mut b = Array::<f32>::new(rows);
        #[unroll]
        for c in 0..rows {
            b[c] = right[(UNIT_POS_X as usize + c * SIDE) * CHUNK + k as usize];
        }
        #[unroll]
        for r in 0..rows {
            let a = left[(UNIT_POS_Y as usize + r * SIDE) * CHUNK + k as usize];
            #[unroll]
            for c in 0..rows {
                sums[r * rows + c] += a * b[c];
            }
        }
    }
}

/// Adds `weights · chunk` to sixteen columns of a unit's rows: column `UNIT_POS_X` of group `group`.
#[cube]
pub(super) fn add_weighted(
    out: &mut Array<f32>,
    weights: &[f32],
    chunk: &[f32],
    group: usize,
    #[comptime] groups: usize,
    #[comptime] rows: usize,
) {
    let across = comptime!((rows * SIDE) as u32);
    for k in 0..across {
        let b = chunk[k as usize * CHUNK + UNIT_POS_X as usize];
        #[unroll]
        for r in 0..rows {
            let row = UNIT_POS_Y as usize + r * SIDE;
            out[r * groups + group] += weights[row * comptime!(rows * SIDE + 1) + k as usize] * b;
        }
    }
}

/// Whether token `i` sees token `j` of the batch: as one of its prefix where `of_prefix`, and as one of its own otherwise.
#[cube]
pub(super) fn sees(
    tokens: &[u32],
    bits: &[u32],
    i: u32,
    j: u32,
    prefix: u32,
    of_prefix: bool,
    window: u32,
    #[comptime] trees: bool,
    #[comptime] has_window: bool,
) -> bool {
    let at = i as usize * TOKEN;
    let start = tokens[at];
    let mut seen = j >= start && j <= i;
    if comptime!(trees) {
        let row = tokens[at + 2];
        if seen && row != 4_294_967_295u32 {
            let bit = j - start;
            seen = (bits[(row + bit / 32) as usize] >> (bit % 32)) & 1 == 1;
        }
    }
    if of_prefix {
        seen = tokens[at + 1] == 1 && j < prefix;
    }
    if comptime!(has_window) {
        if tokens[j as usize * TOKEN + 3] + window <= tokens[at + 3] {
            seen = false;
        }
    }
    seen
}

/// The score of a product, scaled and capped.
#[cube]
pub(super) fn score(product: f32, scale: f32, cap: f32, #[comptime] softcap: bool) -> f32 {
    let mut score = product * scale;
    if comptime!(softcap) {
        score = cap * tanh(score / cap);
    }
    score
}

/// How a score's gradient goes on to its product.
#[cube]
pub(super) fn slope(score: f32, scale: f32, cap: f32, #[comptime] softcap: bool) -> f32 {
    let mut slope = scale;
    if comptime!(softcap) {
        let t = score / cap;
        slope *= 1.0f32 - t * t;
    }
    slope
}

/// A cube a block of queries of one head. `past` holds keys and values from position 0 on, if there are some.
#[cube(launch_unchecked)]
fn forward_kernel<F: Float>(
    q: &[F],
    k: &[F],
    v: &[F],
    past_k: &[F],
    past_v: &[F],
    tokens: &[u32],
    blocks: &[u32],
    bits: &[u32],
    out: &mut [F],
    sums: &mut [f32],
    n: u32,
    heads: u32,
    prefix: u32,
    past: u32,
    window: u32,
    scale: f32,
    cap: f32,
    #[comptime] rows: usize,
    #[comptime] head_dim: u32,
    #[comptime] group: u32,
    #[comptime] has_past: bool,
    #[comptime] trees: bool,
    #[comptime] has_window: bool,
    #[comptime] softcap: bool,
) {
    let block = comptime!((rows * SIDE) as u32);
    let groups = comptime!((head_dim as usize).div_ceil(SIDE));
    let cube = CUBE_POS as u32;
    let query_block = cube / heads;
    if query_block * block < n {
        let head = cube % heads;
        let first = query_block * block;
        let q_width = heads * head_dim;
        let kv_width = (heads / group) * head_dim;
        let q_column = head * head_dim;
        let kv_column = (head / group) * head_dim;

        let mut left = Shared::<[f32]>::new_slice(comptime!(rows * SIDE * CHUNK));
        let mut right = Shared::<[f32]>::new_slice(comptime!(rows * SIDE * CHUNK));
        let mut weights = Shared::<[f32]>::new_slice(comptime!(rows * SIDE * (rows * SIDE + 1)));
        let mut highest = Shared::<[f32]>::new_slice(comptime!(rows * SIDE * CHUNK));

        let mut acc = Array::<f32>::new(comptime!(rows * groups));
        let mut largest = Array::<f32>::new(rows);
        let mut total = Array::<f32>::new(rows);
        #[unroll]
        for r in 0..rows {
            largest[r] = f32::new(NEVER);
            total[r] = 0.0f32;
            #[unroll(groups <= UNROLLED)]
            for g in 0..groups {
                acc[r * groups + g] = 0.0f32;
            }
        }

        let table = query_block as usize * BLOCK;
        let own_first = blocks[table];
        let own_end = blocks[table + 1];
        let mut of_past = 0u32;
        if comptime!(has_past) {
            of_past = past.div_ceil(block);
        }
        let of_prefix = select(blocks[table + 2] == 1, prefix.div_ceil(block), 0u32);
        let of_own = (own_end - own_first).div_ceil(block);
        for t in 0..of_past + of_prefix + of_own {
            let in_past = t < of_past;
            let in_prefix = t >= of_past && t < of_past + of_prefix;
            let mut base = own_first + (t - of_past - of_prefix) * block;
            let mut limit = own_end;
            if in_past {
                base = t * block;
                limit = past;
            }
            if in_prefix {
                base = (t - of_past) * block;
                limit = prefix;
            }

            let mut s = Array::<f32>::new(comptime!(rows * rows));
            #[unroll]
            for e in 0..comptime!(rows * rows) {
                s[e] = 0.0f32;
            }
            for g in 0..comptime!(groups as u32) {
                let columns = head_dim - g * SIDE as u32;
                let at = g * SIDE as u32;
                load::<F>(&mut left, q, first, n, q_width, q_column + at, columns, block);
                if comptime!(has_past) {
                    if in_past {
                        load::<F>(&mut right, past_k, base, limit, kv_width, kv_column + at, columns, block);
                    } else {
                        load::<F>(&mut right, k, base, limit, kv_width, kv_column + at, columns, block);
                    }
                } else {
                    load::<F>(&mut right, k, base, limit, kv_width, kv_column + at, columns, block);
                }
                sync_cube();
                add_products(&mut s, &left, &right, rows);
                sync_cube();
            }

            #[unroll]
            for r in 0..rows {
                let i = first + UNIT_POS_Y + comptime!((r * SIDE) as u32);
                let mut most = f32::new(NEVER);
                #[unroll]
                for c in 0..rows {
                    let j = base + UNIT_POS_X + comptime!((c * SIDE) as u32);
                    let mut seen = i < n && j < limit;
                    if seen {
                        if in_past {
                            if comptime!(has_window) {
                                seen = j + window > tokens[i as usize * TOKEN + 3];
                            }
                        } else {
                            seen = sees(tokens, bits, i, j, prefix, in_prefix, window, trees, has_window);
                        }
                    }
                    let value = select(seen, score(s[r * rows + c], scale, cap, softcap), f32::new(NEVER));
                    s[r * rows + c] = value;
                    if value > most {
                        most = value;
                    }
                }
                highest[(UNIT_POS_Y as usize + r * SIDE) * CHUNK + UNIT_POS_X as usize] = most;
            }
            sync_cube();
            #[unroll]
            for r in 0..rows {
                let row = UNIT_POS_Y as usize + r * SIDE;
                let mut most = largest[r];
                #[unroll]
                for x in 0..SIDE {
                    let value = highest[row * CHUNK + x];
                    if value > most {
                        most = value;
                    }
                }
                let shrink = (largest[r] - most).exp();
                largest[r] = most;
                let mut sum = total[r] * shrink;
                #[unroll]
                for c in 0..rows {
                    let value = s[r * rows + c];
                    let weight = select(value > f32::new(0.5 * NEVER), (value - most).exp(), 0.0f32);
                    sum += weight;
                    weights[row * comptime!(rows * SIDE + 1) + UNIT_POS_X as usize + c * SIDE] = weight;
                }
                total[r] = sum;
                #[unroll(groups <= UNROLLED)]
                for g in 0..groups {
                    acc[r * groups + g] *= shrink;
                }
            }
            #[unroll(groups <= UNROLLED)]
            for g in 0..groups {
                let columns = head_dim - (g * SIDE) as u32;
                let at = (g * SIDE) as u32;
                if comptime!(has_past) {
                    if in_past {
                        load::<F>(&mut right, past_v, base, limit, kv_width, kv_column + at, columns, block);
                    } else {
                        load::<F>(&mut right, v, base, limit, kv_width, kv_column + at, columns, block);
                    }
                } else {
                    load::<F>(&mut right, v, base, limit, kv_width, kv_column + at, columns, block);
                }
                sync_cube();
                add_weighted(&mut acc, &weights, &right, g, groups, rows);
                sync_cube();
            }
        }

        // The sums of a row's sixteen units.
        #[unroll]
        for r in 0..rows {
            highest[(UNIT_POS_Y as usize + r * SIDE) * CHUNK + UNIT_POS_X as usize] = total[r];
        }
        sync_cube();
        #[unroll]
        for r in 0..rows {
            let row = UNIT_POS_Y as usize + r * SIDE;
            let i = first + row as u32;
            let mut sum = 0.0f32;
            #[unroll]
            for x in 0..SIDE {
                sum += highest[row * CHUNK + x];
            }
            if i < n {
                if UNIT_POS_X == 0 {
                    sums[(head * n + i) as usize] = largest[r] + sum.ln();
                }
                #[unroll(groups <= UNROLLED)]
                for g in 0..groups {
                    let column = UNIT_POS_X + (g * SIDE) as u32;
                    if column < head_dim {
                        out[(i * q_width + q_column + column) as usize] = F::cast_from(acc[r * groups + g] / sum);
                    }
                }
            }
        }
    }
}

/// Attention of rotated queries and keys: its output, and the logarithm of each softmax's sum, `[heads, tokens]`.
pub(super) fn forward(
    [q, k, v]: [&CubeTensor; 3],
    plan: &AttentionPlan,
    tables: &Tables,
    past: Option<[&CubeTensor; 2]>,
) -> (CubeTensor, CubeTensor) {
    let n = plan.batch.len();
    let kind = Kind::of(q, plan, tables, past.is_some());
    let out = room(q, [n, plan.n_heads * plan.head_dim], q.dtype);
    let sums = room(q, [plan.n_heads, n], DType::F32);
    let count = cubes(n.div_ceil(kind.block()) * plan.n_heads);
    let dim = CubeDim::new_2d(SIDE as u32, SIDE as u32);
    let [past_k, past_v] = past.unwrap_or([k, v]);
    let past_len = past.map_or(0, |past| dims(past[0])[0]);
    // SAFETY: every read is below `n`, the past's length or the prefix, and every write below `n`; the tables were made for
    // this batch and this size of blocks.
    with_float!(q.dtype, F => unsafe {
        forward_kernel::launch_unchecked::<F>(
            &q.client, count, dim, arg(q), arg(k), arg(v), arg(past_k), arg(past_v), arg(&tables.tokens),
            arg(&tables.blocks), arg(&tables.bits), arg(&out), arg(&sums), n as u32, plan.n_heads as u32,
            plan.batch.prefix as u32, past_len as u32, plan.window.unwrap_or(0) as u32, plan.scale,
            plan.softcap.unwrap_or(0.0), kind.rows, kind.head_dim as u32, kind.group as u32, kind.past, kind.trees,
            kind.window, kind.softcap,
        )
    });
    (out, sums)
}

/// What the op keeps: rotated queries and keys, values, the past, the output and the softmax's sums.
#[derive(Clone, Debug)]
pub(super) struct State {
    plan: AttentionPlan,
    tables: Tables,
    qkv: [CubeTensor; 3],
    past: Option<[CubeTensor; 2]>,
    out: CubeTensor,
    sums: CubeTensor,
}

#[derive(Debug)]
struct AttentionBackward;

impl Backward<Cube, 3> for AttentionBackward {
    type State = State;

    fn backward(self, ops: Prepared<State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let State { plan, tables, qkv, past, out, sums } = ops.state;
        let d_out = contiguous(grads.consume::<Cube>(&ops.node));
        let past = past.as_ref().map(|past| past.each_ref());
        let [dq, dk, dv] = attention_backward::backward(qkv.each_ref(), [&out, &sums, &d_out], &plan, &tables, past);
        let made = [rotate(&dq, &plan, &tables, -1.0), rotate(&dk, &plan, &tables, -1.0), dv];
        for (node, grad) in ops.parents.into_iter().zip(made) {
            if let Some(node) = node {
                grads.register::<Cube>(node.id, grad);
            }
        }
    }
}

/// The op, of queries and keys that are not rotated yet.
pub(super) fn attention(
    qkv: [Tensor<2>; 3],
    plan: &AttentionPlan,
    tables: &Tables,
    past: Option<[CubeTensor; 2]>,
) -> Tensor<2> {
    let qkv = qkv.map(primitive);
    let nodes = qkv.each_ref().map(|t| t.node());
    let [q, k, v] = qkv.each_ref().map(|t| contiguous(t.primitive().clone()));
    let qkv = [rotate(&q, plan, tables, 1.0), rotate(&k, plan, tables, 1.0), v];
    let (out, sums) = forward(qkv.each_ref(), plan, tables, past.as_ref().map(|past| past.each_ref()));
    tensor(match AttentionBackward.prepare::<NoCheckpointing>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(p) => {
            let state = State { plan: plan.clone(), tables: tables.clone(), qkv, past, out: out.clone(), sums };
            p.finish(state, out)
        }
        OpsKind::UnTracked(p) => p.finish(out),
    })
}
