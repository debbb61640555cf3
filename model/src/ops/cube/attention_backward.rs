//! The backward pass of attention: what a query gets from its keys, block of queries by block of queries, and what a key and its
//! value get from all that see them, block of keys by block of keys.

use super::attention::{CHUNK, Kind, SIDE, UNROLLED, add_products, add_weighted, load, score, sees, slope};
use super::buffer::{UNITS, arg, cubes, dims, for_each, room};
use super::tables::{BLOCK, TOKEN, Tables};
use super::{CubeTensor, with_float};
use crate::ops::AttentionPlan;
use burn::tensor::DType;
use cubecl::prelude::*;

/// `Σ dO · O` of each head of each token, `[heads, tokens]`.
#[cube(launch_unchecked)]
fn delta_kernel<F: Float>(out: &[F], d_out: &[F], delta: &mut [f32], n: u32, heads: u32, #[comptime] head_dim: u32) {
    if ABSOLUTE_POS < (n * heads) as usize {
        let at = ABSOLUTE_POS as u32;
        let token = at / heads;
        let head = at % heads;
        let start = at * head_dim;
        let mut sum = 0.0f32;
        for c in 0..head_dim {
            let i = (start + c) as usize;
            sum += f32::cast_from(out[i]) * f32::cast_from(d_out[i]);
        }
        delta[(head * n + token) as usize] = sum;
    }
}

/// A cube a block of queries of one head.
#[cube(launch_unchecked)]
fn queries_kernel<F: Float>(
    q: &[F],
    k: &[F],
    v: &[F],
    past_k: &[F],
    past_v: &[F],
    d_out: &[F],
    sums: &[f32],
    delta: &[f32],
    tokens: &[u32],
    blocks: &[u32],
    bits: &[u32],
    dq: &mut [F],
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
        let mut slopes = Shared::<[f32]>::new_slice(comptime!(rows * SIDE * (rows * SIDE + 1)));
        let mut acc = Array::<f32>::new(comptime!(rows * groups));
        #[unroll]
        for e in 0..comptime!(rows * groups) {
            acc[e] = 0.0f32;
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
            let mut dp = Array::<f32>::new(comptime!(rows * rows));
            #[unroll]
            for e in 0..comptime!(rows * rows) {
                s[e] = 0.0f32;
                dp[e] = 0.0f32;
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
                load::<F>(&mut left, d_out, first, n, q_width, q_column + at, columns, block);
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
                add_products(&mut dp, &left, &right, rows);
                sync_cube();
            }
            #[unroll]
            for r in 0..rows {
                let row = UNIT_POS_Y as usize + r * SIDE;
                let i = first + row as u32;
                #[unroll]
                for c in 0..rows {
                    let j = base + UNIT_POS_X + comptime!((c * SIDE) as u32);
                    let mut value = 0.0f32;
                    if i < n && j < limit {
                        let mut seen = true;
                        if in_past {
                            if comptime!(has_window) {
                                seen = j + window > tokens[i as usize * TOKEN + 3];
                            }
                        } else {
                            seen = sees(tokens, bits, i, j, prefix, in_prefix, window, trees, has_window);
                        }
                        if seen {
                            let at = (head * n + i) as usize;
                            let z = score(s[r * rows + c], scale, cap, softcap);
                            let p = (z - sums[at]).exp();
                            value = p * (dp[r * rows + c] - delta[at]) * slope(z, scale, cap, softcap);
                        }
                    }
                    slopes[row * comptime!(rows * SIDE + 1) + UNIT_POS_X as usize + c * SIDE] = value;
                }
            }
            #[unroll(groups <= UNROLLED)]
            for g in 0..groups {
                let columns = head_dim - (g * SIDE) as u32;
                let at = (g * SIDE) as u32;
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
                add_weighted(&mut acc, &slopes, &right, g, groups, rows);
                sync_cube();
            }
        }
        #[unroll]
        for r in 0..rows {
            let i = first + UNIT_POS_Y + comptime!((r * SIDE) as u32);
            #[unroll(groups <= UNROLLED)]
            for g in 0..groups {
                let column = UNIT_POS_X + (g * SIDE) as u32;
                if i < n && column < head_dim {
                    dq[(i * q_width + q_column + column) as usize] = F::cast_from(acc[r * groups + g]);
                }
            }
        }
    }
}

/// A cube a block of keys of one head of keys: the sum over the queries of its group that see them, in one order.
#[cube(launch_unchecked)]
fn keys_kernel<F: Float>(
    q: &[F],
    k: &[F],
    v: &[F],
    d_out: &[F],
    sums: &[f32],
    delta: &[f32],
    tokens: &[u32],
    blocks: &[u32],
    bits: &[u32],
    dk: &mut [F],
    dv: &mut [F],
    n: u32,
    heads: u32,
    prefix: u32,
    window: u32,
    scale: f32,
    cap: f32,
    #[comptime] rows: usize,
    #[comptime] head_dim: u32,
    #[comptime] group: u32,
    #[comptime] trees: bool,
    #[comptime] has_window: bool,
    #[comptime] softcap: bool,
) {
    let block = comptime!((rows * SIDE) as u32);
    let groups = comptime!((head_dim as usize).div_ceil(SIDE));
    let cube = CUBE_POS as u32;
    let kv_heads = heads / group;
    let key_block = cube / kv_heads;
    if key_block * block < n {
        let kv_head = cube % kv_heads;
        let first = key_block * block;
        let q_width = heads * head_dim;
        let kv_width = kv_heads * head_dim;
        let kv_column = kv_head * head_dim;

        let mut left = Shared::<[f32]>::new_slice(comptime!(rows * SIDE * CHUNK));
        let mut right = Shared::<[f32]>::new_slice(comptime!(rows * SIDE * CHUNK));
        let mut weights = Shared::<[f32]>::new_slice(comptime!(rows * SIDE * (rows * SIDE + 1)));
        let mut acc_k = Array::<f32>::new(comptime!(rows * groups));
        let mut acc_v = Array::<f32>::new(comptime!(rows * groups));
        #[unroll]
        for e in 0..comptime!(rows * groups) {
            acc_k[e] = 0.0f32;
            acc_v[e] = 0.0f32;
        }

        let end = blocks[key_block as usize * BLOCK + 3];
        let of_queries = (end - first).div_ceil(block);
        for t in 0..of_queries * group {
            let head = kv_head * group + t / of_queries;
            let base = first + (t % of_queries) * block;
            let q_column = head * head_dim;
            let mut s = Array::<f32>::new(comptime!(rows * rows));
            let mut dp = Array::<f32>::new(comptime!(rows * rows));
            #[unroll]
            for e in 0..comptime!(rows * rows) {
                s[e] = 0.0f32;
                dp[e] = 0.0f32;
            }
            for g in 0..comptime!(groups as u32) {
                let columns = head_dim - g * SIDE as u32;
                let at = g * SIDE as u32;
                load::<F>(&mut left, k, first, n, kv_width, kv_column + at, columns, block);
                load::<F>(&mut right, q, base, end, q_width, q_column + at, columns, block);
                sync_cube();
                add_products(&mut s, &left, &right, rows);
                sync_cube();
                load::<F>(&mut left, v, first, n, kv_width, kv_column + at, columns, block);
                load::<F>(&mut right, d_out, base, end, q_width, q_column + at, columns, block);
                sync_cube();
                add_products(&mut dp, &left, &right, rows);
                sync_cube();
            }
            // The weights first, for the values; the slopes wait in `dp`.
            #[unroll]
            for r in 0..rows {
                let row = UNIT_POS_Y as usize + r * SIDE;
                let j = first + row as u32;
                #[unroll]
                for c in 0..rows {
                    let i = base + UNIT_POS_X + comptime!((c * SIDE) as u32);
                    let mut weight = 0.0f32;
                    let mut value = 0.0f32;
                    if i < end && j < n {
                        let of_prefix = j < prefix && tokens[i as usize * TOKEN + 1] == 1;
                        if sees(tokens, bits, i, j, prefix, of_prefix, window, trees, has_window) {
                            let at = (head * n + i) as usize;
                            let z = score(s[r * rows + c], scale, cap, softcap);
                            weight = (z - sums[at]).exp();
                            value = weight * (dp[r * rows + c] - delta[at]) * slope(z, scale, cap, softcap);
                        }
                    }
                    dp[r * rows + c] = value;
                    weights[row * comptime!(rows * SIDE + 1) + UNIT_POS_X as usize + c * SIDE] = weight;
                }
            }
            #[unroll(groups <= UNROLLED)]
            for g in 0..groups {
                let columns = head_dim - (g * SIDE) as u32;
                let at = (g * SIDE) as u32;
                load::<F>(&mut right, d_out, base, end, q_width, q_column + at, columns, block);
                sync_cube();
                add_weighted(&mut acc_v, &weights, &right, g, groups, rows);
                sync_cube();
            }
            #[unroll]
            for r in 0..rows {
                let row = UNIT_POS_Y as usize + r * SIDE;
                #[unroll]
                for c in 0..rows {
                    let at = row * comptime!(rows * SIDE + 1) + UNIT_POS_X as usize + c * SIDE;
                    weights[at] = dp[r * rows + c];
                }
            }
            #[unroll(groups <= UNROLLED)]
            for g in 0..groups {
                let columns = head_dim - (g * SIDE) as u32;
                let at = (g * SIDE) as u32;
                load::<F>(&mut right, q, base, end, q_width, q_column + at, columns, block);
                sync_cube();
                add_weighted(&mut acc_k, &weights, &right, g, groups, rows);
                sync_cube();
            }
        }
        #[unroll]
        for r in 0..rows {
            let j = first + UNIT_POS_Y + comptime!((r * SIDE) as u32);
            #[unroll(groups <= UNROLLED)]
            for g in 0..groups {
                let column = UNIT_POS_X + (g * SIDE) as u32;
                if j < n && column < head_dim {
                    let at = (j * kv_width + kv_column + column) as usize;
                    dk[at] = F::cast_from(acc_k[r * groups + g]);
                    dv[at] = F::cast_from(acc_v[r * groups + g]);
                }
            }
        }
    }
}

/// Gradients of rotated queries and keys and of values, from the forward pass's output and sums and the output's gradient.
/// The past takes none.
pub(super) fn backward(
    [q, k, v]: [&CubeTensor; 3],
    [out, sums, d_out]: [&CubeTensor; 3],
    plan: &AttentionPlan,
    tables: &Tables,
    past: Option<[&CubeTensor; 2]>,
) -> [CubeTensor; 3] {
    let (n, heads) = (plan.batch.len(), plan.n_heads);
    let kind = Kind::of(q, plan, tables, past.is_some());
    let delta = room(q, [heads, n], DType::F32);
    let [dq, dk, dv] = [q, k, v].map(|t| room(t, dims(t), t.dtype));
    let [past_k, past_v] = past.unwrap_or([k, v]);
    let past_len = past.map_or(0, |past| dims(past[0])[0]);
    let dim = CubeDim::new_2d(SIDE as u32, SIDE as u32);
    debug_assert_eq!(SIDE * SIDE, UNITS);
    let (count, flat) = for_each(n * heads);
    let blocks = n.div_ceil(kind.block());
    let (prefix, window) = (plan.batch.prefix as u32, plan.window.unwrap_or(0) as u32);
    let cap = plan.softcap.unwrap_or(0.0);
    // SAFETY: every read is below `n`, the past's length or the prefix, and every write below `n`; the tables were made for
    // this batch and this size of blocks.
    with_float!(q.dtype, F => unsafe {
        delta_kernel::launch_unchecked::<F>(
            &q.client, count.clone(), flat, arg(out), arg(d_out), arg(&delta), n as u32, heads as u32,
            kind.head_dim as u32,
        );
        queries_kernel::launch_unchecked::<F>(
            &q.client, cubes(blocks * heads), dim, arg(q), arg(k), arg(v), arg(past_k), arg(past_v), arg(d_out),
            arg(sums), arg(&delta), arg(&tables.tokens), arg(&tables.blocks), arg(&tables.bits), arg(&dq), n as u32,
            heads as u32, prefix, past_len as u32, window, plan.scale, cap, kind.rows, kind.head_dim as u32,
            kind.group as u32, kind.past, kind.trees, kind.window, kind.softcap,
        );
        keys_kernel::launch_unchecked::<F>(
            &q.client, cubes(blocks * plan.n_kv_heads), dim, arg(q), arg(k), arg(v), arg(d_out), arg(sums),
            arg(&delta), arg(&tables.tokens), arg(&tables.blocks), arg(&tables.bits), arg(&dk), arg(&dv), n as u32,
            heads as u32, prefix, window, plan.scale, cap, kind.rows, kind.head_dim as u32, kind.group as u32,
            kind.trees, kind.window, kind.softcap,
        );
    });
    [dq, dk, dv]
}
