//! Attention of some queries over keys and values in blocks, a few queries at a time, which read them once. Each sum is one chain
//! of fused multiply-adds in the tokens' order, whatever queries are beside it.

use super::growing::{LANES, Seen};
use super::kernels::exp_row;
use super::simd::{self, vectorised};
use crate::ops::AttentionPlan;
use std::ops::Range;

/// Queries that are worked on together, at most.
const TOGETHER: usize = 8;

/// One query: of which token and head of the batch it is, and how many tokens it sees of the last part.
#[derive(Clone, Copy)]
pub struct Query {
    pub token: usize,
    pub head: usize,
    pub last: usize,
}

/// The queries of a key head for some tokens of a chain, each of which sees one more than the one before it, the first
/// `seen`.
pub fn chain_queries(
    plan: &AttentionPlan,
    kv_head: usize,
    tokens: Range<usize>,
    seen: usize,
) -> impl Iterator<Item = Query> {
    let group = plan.n_heads / plan.n_kv_heads;
    let of = move |(i, token)| (0..group).map(move |g| Query { token, head: kv_head * group + g, last: seen + i });
    tokens.enumerate().flat_map(of)
}

/// Room that a thread uses again and again.
#[derive(Default)]
pub struct Scratch {
    q: Vec<f32>,
    weights: Vec<f32>,
    sums: Vec<f32>,
}

/// What the queries of one key head get: `out` is told each with its result, `[head_dim]`. All see the parts but the last
/// wholly. `q` is `[tokens, stride]`, rotated.
pub fn attend(
    plan: &AttentionPlan,
    (q, stride): (&[f32], usize),
    queries: &[Query],
    parts: &[Seen],
    scratch: &mut Scratch,
    out: &mut impl FnMut(Query, &[f32]),
) {
    let mut rest = queries;
    while !rest.is_empty() {
        let n = [TOGETHER, 4, 3, 2, 1].into_iter().find(|n| *n <= rest.len()).unwrap_or(1);
        let (now, later) = rest.split_at(n);
        attend_together(plan, (q, stride), now, parts, scratch);
        for (query, sums) in now.iter().zip(scratch.sums.chunks_exact(plan.head_dim)) {
            out(*query, sums);
        }
        rest = later;
    }
}

/// [`attend`] of a few queries, whose results are left in `sums`.
fn attend_together(
    plan: &AttentionPlan,
    (q, stride): (&[f32], usize),
    queries: &[Query],
    parts: &[Seen],
    Scratch { q: turned, weights, sums }: &mut Scratch,
) {
    let (n, d) = (queries.len(), plan.head_dim);
    let width = plan.n_kv_heads * d;
    let kv_head = queries[0].head / (plan.n_heads / plan.n_kv_heads);
    turned.clear();
    turned.resize(n * d, 0.0);
    for (i, query) in queries.iter().enumerate() {
        for (turned, x) in turned[i..].iter_mut().step_by(n).zip(&q[query.token * stride + query.head * d..][..d]) {
            *turned = *x;
        }
    }
    let Some((last, before)) = parts.split_last() else { unreachable!("a query sees itself") };
    let common: usize = before.iter().map(|part| part.len).sum();
    let most = queries.iter().map(|query| query.last).max().unwrap_or(0);
    let least = queries.iter().map(|query| query.last).min().unwrap_or(0);
    debug_assert!(most <= last.len);
    let row = common + most;
    weights.clear();
    weights.resize(n * row, 0.0);
    let mut column = 0;
    for (part, len) in before.iter().map(|part| (part, part.len)).chain([(last, most)]) {
        let keys = part.keys.get(kv_head * d * LANES..).unwrap_or_default();
        scores(turned, n, keys, width * LANES, plan.scale, &mut weights[column..], row, len);
        column += len;
    }
    let mut inverse = [0f32; TOGETHER];
    for ((query, weights), inverse) in queries.iter().zip(weights.chunks_exact_mut(row)).zip(&mut inverse) {
        let weights = &mut weights[..common + query.last];
        if let Some(cap) = plan.softcap {
            weights.iter_mut().for_each(|x| *x = cap * (*x / cap).tanh());
        }
        let hidden = plan.window.map_or(0, |window| weights.len().saturating_sub(window));
        weights[..hidden].fill(0.0);
        let (_, sum) = exp_row(&mut weights[hidden..]);
        *inverse = 1.0 / sum;
    }
    sums.clear();
    sums.resize(n * d, 0.0);
    let mut column = 0;
    for (part, len) in before.iter().map(|part| (part, part.len)).chain([(last, least)]) {
        let values = part.values.get(kv_head * d..).unwrap_or_default();
        add_weighted(&weights[column..], n, row, len, values, width, d, sums);
        column += len;
    }
    // What only some of them see.
    for (i, (query, sums)) in queries.iter().zip(sums.chunks_exact_mut(d)).enumerate() {
        let values = last.values.get(least * width + kv_head * d..).unwrap_or_default();
        add_weighted(&weights[i * row + column..], 1, row, query.last - least, values, width, d, sums);
        sums.iter_mut().for_each(|x| *x *= inverse[i]);
    }
}

vectorised! {
    /// `scale · q·k` of `n` queries with the first keys of a head: `q` is `[head_dim, n]`, `keys` begins at the head in the
    /// first block, `out` is `[n, row]`.
    fn scores(q: &[f32], n: usize, keys: &[f32], block: usize, scale: f32, out: &mut [f32], row: usize, len: usize) {
        match n {
            8 => scores_of::<8>(q, keys, block, scale, out, row, len),
            4 => scores_of::<4>(q, keys, block, scale, out, row, len),
            3 => scores_of::<3>(q, keys, block, scale, out, row, len),
            2 => scores_of::<2>(q, keys, block, scale, out, row, len),
            _ => scores_of::<1>(q, keys, block, scale, out, row, len),
        }
    }
}

/// `x · y + sums`, fused. By value: written in place, in an array of such sums, the compiler takes lane by lane.
#[inline(always)]
fn add_product(x: f32, y: &[f32; LANES], sums: &[f32; LANES]) -> [f32; LANES] {
    let mut out = [0f32; LANES];
    for j in 0..LANES {
        out[j] = x.mul_add(y[j], sums[j]);
    }
    out
}

#[inline(always)]
fn scores_of<const N: usize>(
    q: &[f32],
    keys: &[f32],
    block: usize,
    scale: f32,
    out: &mut [f32],
    row: usize,
    len: usize,
) {
    if native::scores(simd::width(), N, q, keys, block, scale, out, row, len) {
        return;
    }
    let q = q.as_chunks::<N>().0;
    for (first, keys) in (0..len).step_by(LANES).zip(keys.chunks(block)) {
        let mut sums = [[0f32; LANES]; N];
        for (q, keys) in q.iter().zip(keys.as_chunks::<LANES>().0) {
            for (sums, q) in sums.iter_mut().zip(q) {
                *sums = add_product(*q, keys, sums);
            }
        }
        let count = LANES.min(len - first);
        for (i, sums) in sums.iter().enumerate() {
            for (out, sum) in out[i * row + first..][..count].iter_mut().zip(sums) {
                *out = sum * scale;
            }
        }
    }
}

vectorised! {
    /// Adds `Σ weight · value` of the first tokens; `weights` is `[n, row]`, `values` begins at the head of the first token,
    /// `out` is `[n, head_dim]`.
    fn add_weighted(weights: &[f32], n: usize, row: usize, len: usize, values: &[f32], width: usize, d: usize, out: &mut [f32]) {
        match n {
            8 => weighted_of::<8>(weights, row, len, values, width, d, out),
            4 => weighted_of::<4>(weights, row, len, values, width, d, out),
            3 => weighted_of::<3>(weights, row, len, values, width, d, out),
            2 => weighted_of::<2>(weights, row, len, values, width, d, out),
            _ => weighted_of::<1>(weights, row, len, values, width, d, out),
        }
    }
}

#[inline(always)]
fn weighted_of<const N: usize>(
    weights: &[f32],
    row: usize,
    len: usize,
    values: &[f32],
    width: usize,
    d: usize,
    out: &mut [f32],
) {
    if len == 0 {
        return;
    }
    let weights: [&[f32]; N] = std::array::from_fn(|i| &weights[i * row..][..len]);
    let whole = d / LANES * LANES;
    let by_hand = native::weighted(simd::width(), &weights, values, width, d, out);
    for at in (0..if by_hand { 0 } else { whole }).step_by(LANES) {
        let mut sums = [[0f32; LANES]; N];
        for (i, sums) in sums.iter_mut().enumerate() {
            sums.copy_from_slice(&out[i * d + at..][..LANES]);
        }
        for (token, value) in values[at..].chunks(width).take(len).enumerate() {
            let Some(value) = value.first_chunk::<LANES>() else { unreachable!("a head's values are whole") };
            for (sums, weights) in sums.iter_mut().zip(&weights) {
                *sums = add_product(weights[token], value, sums);
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            out[i * d + at..][..LANES].copy_from_slice(sums);
        }
    }
    for (i, weights) in weights.iter().enumerate() {
        for at in whole..d {
            let sum = &mut out[i * d + at];
            for (weight, value) in weights.iter().zip(values[at..].iter().step_by(width)) {
                *sum = weight.mul_add(*value, *sum);
            }
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod native {
    use super::super::simd::Width;

    pub fn scores(
        _: Width,
        _: usize,
        _: &[f32],
        _: &[f32],
        _: usize,
        _: f32,
        _: &mut [f32],
        _: usize,
        _: usize,
    ) -> bool {
        false
    }

    pub fn weighted(_: Width, _: &[&[f32]], _: &[f32], _: usize, _: usize, _: &mut [f32]) -> bool {
        false
    }
}

/// The same chains on 512 and 256 bits, by hand: the compiler turned the loops the other way round and gathered keys lane by
/// lane, which was two thirds of the time that a prompt of 512 tokens took.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vector instructions behind run-time detection")]
mod native {
    use super::super::simd::Width;
    use super::{LANES, TOGETHER};

    /// A register of keys: `q` is `[depth, n]`, `keys` `[depth, 16]` from a lane on; the first `count` go to each query's row of
    /// `out`.
    type Scores =
        unsafe fn(q: *const f32, keys: *const f32, depth: usize, scale: f32, out: *mut f32, row: usize, count: usize);
    /// A register's values of each of `len` tokens, `stride` apart; `out` has them for each query, `d` apart.
    type Weighted = unsafe fn(weights: &[&[f32]], values: *const f32, stride: usize, out: *mut f32, d: usize);

    /// What a width has for `n` queries, and how many lanes a register of it.
    struct Kernels {
        scores: Scores,
        weighted: Weighted,
        lanes: usize,
    }

    /// The kernels of one width, from its names for loads, stores and multiply-adds. Sums are variables of their own: the
    /// compiler keeps an array of them in memory.
    macro_rules! kernels {
        ($features:literal $lanes:literal) => {
            kernels!($features scores_1 weighted_1 1: 0 s0 w0);
            kernels!($features scores_2 weighted_2 2: 0 s0 w0, 1 s1 w1);
            kernels!($features scores_3 weighted_3 3: 0 s0 w0, 1 s1 w1, 2 s2 w2);
            kernels!($features scores_4 weighted_4 4: 0 s0 w0, 1 s1 w1, 2 s2 w2, 3 s3 w3);
            kernels!($features scores_8 weighted_8 8: 0 s0 w0, 1 s1 w1, 2 s2 w2, 3 s3 w3, 4 s4 w4, 5 s5 w5, 6 s6 w6, 7 s7 w7);

            pub fn of(n: usize) -> Option<Kernels> {
                let (scores, weighted): (Scores, Weighted) = match n {
                    1 => (scores_1, weighted_1),
                    2 => (scores_2, weighted_2),
                    3 => (scores_3, weighted_3),
                    4 => (scores_4, weighted_4),
                    TOGETHER => (scores_8, weighted_8),
                    _ => return None,
                };
                Some(Kernels { scores, weighted, lanes: $lanes })
            }
        };
        ($features:literal $scores:ident $weighted:ident $n:literal: $($i:literal $sum:ident $w:ident),+) => {
            #[target_feature(enable = $features)]
            unsafe fn $scores(q: *const f32, keys: *const f32, depth: usize, scale: f32, out: *mut f32, row: usize, count: usize) {
                // SAFETY: the caller says how much there is to read and to write.
                unsafe {
                    $(let mut $sum = zero();)+
                    for j in 0..depth {
                        let keys = load(keys.add(j * LANES));
                        $($sum = multiply_add(all(*q.add(j * $n + $i)), keys, $sum);)+
                    }
                    let scale = all(scale);
                    $(store_first(out.add($i * row), multiply($sum, scale), count);)+
                }
            }

            #[target_feature(enable = $features)]
            unsafe fn $weighted(weights: &[&[f32]], values: *const f32, stride: usize, out: *mut f32, d: usize) {
                // SAFETY: as above; the weights of all queries are as many.
                unsafe {
                    $(let mut $sum = load(out.add($i * d));)+
                    $(let $w = weights[$i].as_ptr();)+
                    for token in 0..weights[0].len() {
                        let value = load(values.add(token * stride));
                        $($sum = multiply_add(all(*$w.add(token)), value, $sum);)+
                    }
                    $(store(out.add($i * d), $sum);)+
                }
            }
        };
    }

    mod wide {
        use super::{Kernels, LANES, Scores, TOGETHER, Weighted};
        use std::arch::x86_64::{
            __m512, _mm512_fmadd_ps as multiply_add, _mm512_loadu_ps as load, _mm512_mask_storeu_ps,
            _mm512_mul_ps as multiply, _mm512_set1_ps as all, _mm512_setzero_ps as zero, _mm512_storeu_ps as store,
        };

        #[target_feature(enable = "avx512f")]
        unsafe fn store_first(out: *mut f32, x: __m512, count: usize) {
            // SAFETY: the caller has room for so many, and a lane beyond them is masked.
            unsafe { _mm512_mask_storeu_ps(out, u16::MAX >> (16 - count), x) };
        }

        kernels!("avx512f" 16);
    }

    mod narrow {
        use super::{Kernels, LANES, Scores, TOGETHER, Weighted};
        use std::arch::x86_64::{
            __m256, _mm256_cmpgt_epi32, _mm256_fmadd_ps as multiply_add, _mm256_loadu_ps as load, _mm256_maskstore_ps,
            _mm256_mul_ps as multiply, _mm256_set1_epi32, _mm256_set1_ps as all, _mm256_setr_epi32,
            _mm256_setzero_ps as zero, _mm256_storeu_ps as store,
        };

        #[target_feature(enable = "avx2,fma")]
        unsafe fn store_first(out: *mut f32, x: __m256, count: usize) {
            let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
            // SAFETY: the caller has room for so many, and a lane beyond them is masked.
            unsafe { _mm256_maskstore_ps(out, mask, x) };
        }

        kernels!("avx2,fma" 8);
    }

    fn kernels(width: Width, n: usize) -> Option<Kernels> {
        match width {
            Width::Avx512 => wide::of(n),
            Width::Avx2 => narrow::of(n),
            Width::Base => None,
        }
    }

    /// As [`super::scores`]; says whether it was done.
    #[expect(clippy::too_many_arguments, reason = "a leaf takes its slices plainly")]
    pub fn scores(
        width: Width,
        n: usize,
        q: &[f32],
        keys: &[f32],
        block: usize,
        scale: f32,
        out: &mut [f32],
        row: usize,
        len: usize,
    ) -> bool {
        let Some(Kernels { scores, lanes, .. }) = kernels(width, n) else { return false };
        let depth = q.len() / n;
        for (first, keys) in (0..len).step_by(LANES).zip(keys.chunks(block)) {
            let count = LANES.min(len - first);
            assert!(keys.len() >= depth * LANES && out.len() >= (n - 1) * row + first + count, "a block of keys");
            for lane in (0..count).step_by(lanes) {
                let (keys, out) = (&keys[lane..], &mut out[first + lane..]);
                // SAFETY: the processor has the instructions, and the assertion bounds what is read and written.
                unsafe {
                    scores(q.as_ptr(), keys.as_ptr(), depth, scale, out.as_mut_ptr(), row, lanes.min(count - lane));
                }
            }
        }
        true
    }

    /// The whole registers of [`super::weighted_of`]; says whether it was done.
    pub fn weighted(
        width: Width,
        weights: &[&[f32]],
        values: &[f32],
        stride: usize,
        d: usize,
        out: &mut [f32],
    ) -> bool {
        let (n, len) = (weights.len(), weights[0].len());
        let Some(Kernels { weighted, lanes, .. }) = kernels(width, n) else { return false };
        assert!(weights.iter().all(|of_one| of_one.len() == len) && out.len() >= n * d, "queries of one kind");
        for at in (0..d / LANES * LANES).step_by(lanes) {
            assert!(values.len() >= (len - 1) * stride + at + lanes, "the tokens' values");
            // SAFETY: the processor has the instructions, and the assertions bound what is read and written.
            unsafe { weighted(weights, values.as_ptr().add(at), stride, out.as_mut_ptr().add(at), d) };
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::kernels::tests::values;
    use super::super::simd::Width;
    use super::*;

    /// Chains written out: depths in their order, tokens in theirs.
    #[test]
    fn sums_are_chains_in_order_however_many_queries_and_keys() {
        let (d, width) = (20, 44);
        for n in [1, 2, 3, 4, TOGETHER] {
            for len in [1usize, 15, 16, 17, 40] {
                let (row, at) = (len + 3, 7);
                let blocks = len.div_ceil(LANES);
                let (q, keys) = (values(n * d, 1), values(blocks * width * LANES, 2));
                let mut out = vec![9.0; n * row];
                scores(&q, n, &keys[at * LANES..], width * LANES, 0.5, &mut out, row, len);
                for narrower in [Width::Avx512, Width::Avx2].into_iter().filter(|narrower| narrower.available()) {
                    let mut again = vec![9.0; n * row];
                    let keys = &keys[at * LANES..];
                    assert!(native::scores(narrower, n, &q, keys, width * LANES, 0.5, &mut again, row, len));
                    assert_eq!(again, out, "{narrower:?}: {n} {len}");
                }
                let (weights, value) = (values(n * row, 3), values(len * width, 4));
                let mut sums = values(n * d, 5);
                let before = sums.clone();
                add_weighted(&weights, n, row, len, &value[at..], width, d, &mut sums);
                for narrower in [Width::Avx512, Width::Avx2].into_iter().filter(|narrower| narrower.available()) {
                    let mut again = before.clone();
                    let of_all: Vec<&[f32]> = (0..n).map(|i| &weights[i * row..][..len]).collect();
                    assert!(native::weighted(narrower, &of_all, &value[at..], width, d, &mut again));
                    let whole =
                        |x: &[f32]| x.chunks(d).flat_map(|x| x[..d / LANES * LANES].to_vec()).collect::<Vec<_>>();
                    assert_eq!(whole(&again), whole(&sums), "{narrower:?}: {n} {len}");
                }
                for i in 0..n {
                    for token in 0..len {
                        let key = |j: usize| keys[token / LANES * width * LANES + (at + j) * LANES + token % LANES];
                        let chain = (0..d).fold(0f32, |sum, j| q[j * n + i].mul_add(key(j), sum));
                        assert_eq!(out[i * row + token].to_bits(), (chain * 0.5).to_bits(), "{n} {len}: {i} {token}");
                    }
                    assert!(out[i * row + len..][..3].iter().all(|x| *x == 9.0), "what lies behind is not touched");
                    for j in 0..d {
                        let chain = (0..len).fold(before[i * d + j], |sum, token| {
                            weights[i * row + token].mul_add(value[token * width + at + j], sum)
                        });
                        assert_eq!(sums[i * d + j].to_bits(), chain.to_bits(), "{n} {len}: {i} {j}");
                    }
                }
            }
        }
    }
}
