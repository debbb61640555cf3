//! Q4_K, Q5_K and Q6_K: superblocks of 256 values whose sub-blocks' scales are integers themselves.

use super::lanes::{ALL_ZERO, Affine, LANES, Lane, Symmetric, Trials, nearest};
use super::pack::{put_f16, put_q4_k, put_q5_k, put_q6_k, put_scales, through_f16};

/// Values in a superblock.
pub const SUPER: usize = 256;

/// What the two affine types differ in.
#[derive(Clone, Copy)]
pub struct AffineK {
    plain: Trials,
    weighted: Trials,
    block_bytes: usize,
}

pub const Q4_K: AffineK = AffineK {
    plain: Trials { max: 15.0, first: -1.0, by: 0.1, last: 20, cut_first: false },
    weighted: Trials { max: 15.0, first: -0.9, by: 0.05, last: 36, cut_first: true },
    block_bytes: 144,
};
pub const Q5_K: AffineK = AffineK {
    plain: Trials { max: 31.0, first: -0.5, by: 0.1, last: 15, cut_first: false },
    weighted: Trials { max: 31.0, first: -0.9, by: 0.05, last: 36, cut_first: true },
    block_bytes: 176,
};

/// Encodes superblocks two at a time, sixteen sub-blocks in all. `weights` gives a superblock's weights by its number.
#[inline(always)]
pub fn affine<'w>(ty: AffineK, x: &[f32], weights: impl Fn(usize) -> Option<&'w [f32]>, y: &mut [u8]) {
    for (pair, (x, y)) in x.chunks(2 * SUPER).zip(y.chunks_mut(2 * ty.block_bytes)).enumerate() {
        let both: [&[f32]; 2] = [&x[..SUPER], if x.len() > SUPER { &x[SUPER..] } else { x }];
        let own = |second: usize| weights(2 * pair + second * (x.len() / SUPER - 1));
        affine_pair(ty, both, own(0).zip(own(1)).map(|(a, b)| [a, b]), y);
    }
}

/// The second superblock may be the first again: it is then not written.
#[inline(always)]
fn affine_pair(ty: AffineK, both: [&[f32]; 2], weights: Option<[&[f32]; 2]>, y: &mut [u8]) {
    let mut x = [[0.0f32; LANES]; 32];
    let mut w = [[0.0f32; LANES]; 32];
    let mut sum_w = [0.0f32; LANES];
    for k in 0..LANES {
        for i in 0..32 {
            x[i][k] = both[k / 8][32 * (k % 8) + i];
        }
    }
    match weights {
        None => plain_weights(&x, &mut w),
        Some(importance) => {
            let energy = energies(both);
            for k in 0..LANES {
                for i in 0..32 {
                    w[i][k] = importance[k / 8][32 * (k % 8) + i];
                }
            }
            for i in 0..32 {
                for k in 0..LANES {
                    w[i][k] *= (energy[k / 8] + x[i][k] * x[i][k]).sqrt();
                }
            }
            for w in &w {
                for k in 0..LANES {
                    sum_w[k] += w[k];
                }
            }
        }
    }
    let trials = if weights.is_some() { ty.weighted } else { ty.plain };
    let fit = Affine::search(&x, &w, trials);
    let (mut step, mut offset) = ([0.0f32; LANES], [0.0f32; LANES]);
    for (second, y) in y.chunks_exact_mut(ty.block_bytes).enumerate() {
        let own = 8 * second..8 * second + 8;
        let (scales, offsets) = (&fit.scale[own.clone()], &fit.offset[own.clone()]);
        let ((d, scale_codes), (d_min, offset_codes)) = match weights {
            None => (even(scales), even(offsets)),
            Some(_) => (fitted(scales, &sum_w[own.clone()]), fitted(offsets, &sum_w[own])),
        };
        put_f16(y, d);
        put_f16(&mut y[2..], d_min);
        put_scales(&mut y[4..16], &scale_codes, &offset_codes);
        let (d, d_min) = (through_f16(d), through_f16(d_min));
        for j in 0..8 {
            step[8 * second + j] = d * f32::from(scale_codes[j]);
            offset[8 * second + j] = d_min * f32::from(offset_codes[j]);
        }
    }
    let mut codes = [[0u8; LANES]; 32];
    for i in 0..32 {
        for k in 0..LANES {
            let code = nearest((x[i][k] + offset[k]) / step[k]);
            codes[i][k] = code.max(0).min(trials.max as i32) as u8;
        }
    }
    let written = 8 * (y.len() / ty.block_bytes);
    if step[..written].contains(&0.0) {
        // A sub-block whose scale vanishes keeps the codes of the search, as in ggml.
        let searched = fit.codes(&x, trials);
        for i in 0..32 {
            for k in 0..LANES {
                codes[i][k] = if step[k] == 0.0 { searched[i][k] } else { codes[i][k] };
            }
        }
    }
    for (second, y) in y.chunks_exact_mut(ty.block_bytes).enumerate() {
        let mut own = [0u8; SUPER];
        for j in 0..8 {
            for i in 0..32 {
                own[32 * j + i] = codes[i][8 * second + j];
            }
        }
        match trials.max {
            15.0 => put_q4_k(&mut y[16..], &own),
            _ => put_q5_k(&mut y[16..], &own),
        }
    }
}

/// ggml's weights without an importance matrix: root mean square of the sub-block plus magnitude.
#[inline(always)]
fn plain_weights(x: &[Lane; 32], w: &mut [Lane; 32]) {
    let mut squares = [0.0f32; LANES];
    for x in x {
        for k in 0..LANES {
            squares[k] += x[k] * x[k];
        }
    }
    let mean = squares.map(|sum| (sum / 32.0).sqrt());
    for i in 0..32 {
        for k in 0..LANES {
            w[i][k] = mean[k] + x[i][k].abs();
        }
    }
}

/// Twice the mean square of each; both sums at once, for each is one chain of additions.
#[inline(always)]
fn energies([a, b]: [&[f32]; 2]) -> [f32; 2] {
    let mut sums = [0.0f32; 2];
    for i in 0..SUPER {
        sums[0] += a[i] * a[i];
        sums[1] += b[i] * b[i];
    }
    sums.map(|sum| 2.0 * sum / 256.0)
}

/// Six-bit codes whose largest is 63, and the unit.
#[inline(always)]
fn even(values: &[f32]) -> (f32, [u8; 8]) {
    let largest = values.iter().fold(0.0f32, |largest, &v| if v > largest { v } else { largest });
    let inverse = if largest > 0.0 { 63.0 / largest } else { 0.0 };
    let mut codes = [0; 8];
    for (code, v) in codes.iter_mut().zip(values) {
        *code = (nearest(inverse * v) as u8).min(63);
    }
    (largest / 63.0, codes)
}

/// ggml's `make_qp_quants` with 63 steps: a weighted search for the unit, then codes moved one by one while that helps.
#[inline(always)]
fn fitted(x: &[f32], w: &[f32]) -> (f32, [u8; 8]) {
    const TOP: i32 = 63;
    let mut codes = [0u8; 8];
    let largest = x.iter().fold(0.0f32, |largest, &v| if largest > v { largest } else { v });
    if largest < ALL_ZERO {
        return (0.0, codes);
    }
    let mut best_step = 63.0 / largest;
    let mut best = 0.0f32;
    for i in 0..8 {
        let off = x[i] - 1.0 / best_step * f32::from(nearest(best_step * x[i]) as u8);
        best += w[i] * off * off;
    }
    for trial in (-4i32..=4).filter(|trial| *trial != 0) {
        let step = (0.1f32 * trial as f32 + 63.0) / largest;
        let unit = 1.0 / step;
        let mut error = 0.0f32;
        for i in 0..8 {
            let off = x[i] - unit * nearest(step * x[i]).min(TOP) as f32;
            error += w[i] * off * off;
        }
        if error < best {
            (best, best_step) = (error, step);
        }
    }
    let (mut sum_xl, mut sum_l2) = (0.0f32, 0.0f32);
    for i in 0..8 {
        let code = nearest(best_step * x[i]).min(TOP);
        codes[i] = code as u8;
        sum_xl += w[i] * x[i] * code as f32;
        sum_l2 += w[i] * code as f32 * code as f32;
    }
    for _ in 0..5 {
        let mut moved = false;
        for i in 0..8 {
            let now = f32::from(codes[i]);
            let (mut xl, mut l2) = (sum_xl - w[i] * x[i] * now, sum_l2 - w[i] * now * now);
            if xl > 0.0 && l2 > 0.0 {
                let code = nearest(x[i] * l2 / xl).min(TOP);
                if code != i32::from(codes[i]) {
                    xl += w[i] * x[i] * code as f32;
                    l2 += w[i] * code as f32 * code as f32;
                    if xl * xl * sum_l2 > sum_xl * sum_xl * l2 {
                        (codes[i], sum_xl, sum_l2, moved) = (code as u8, xl, l2, true);
                    }
                }
            }
        }
        if !moved {
            break;
        }
    }
    (if sum_l2 > 0.0 { sum_xl / sum_l2 } else { 0.0 }, codes)
}

/// Encodes one superblock of Q6_K: sixteen sub-blocks of sixteen, signed eight-bit scales.
#[inline(always)]
pub fn q6_k(x: &[f32], weights: Option<&[f32]>, y: &mut [u8]) {
    let mut lanes = [[0.0f32; LANES]; 16];
    let mut w = [[0.0f32; LANES]; 16];
    for k in 0..LANES {
        for i in 0..16 {
            lanes[i][k] = x[16 * k + i];
        }
    }
    match weights {
        None => {
            for i in 0..16 {
                for k in 0..LANES {
                    w[i][k] = lanes[i][k] * lanes[i][k];
                }
            }
        }
        Some(importance) => {
            for k in 0..LANES {
                for i in 0..16 {
                    w[i][k] = importance[16 * k + i];
                }
            }
        }
    }
    let fit = Symmetric::search(&lanes, &w, 32.0);
    let (mut largest, mut magnitude) = (0.0f32, 0.0f32);
    for scale in fit.scale {
        if scale.abs() > magnitude {
            (largest, magnitude) = (scale, scale.abs());
        }
    }
    if magnitude < ALL_ZERO {
        y.fill(0);
        return;
    }
    let inverse = -128.0 / largest;
    put_f16(&mut y[208..], 1.0 / inverse);
    let d = through_f16(1.0 / inverse);
    let mut step = [0.0f32; LANES];
    for k in 0..LANES {
        let scale = nearest(inverse * fit.scale[k]).min(127) as i8;
        y[192 + k] = scale as u8;
        step[k] = d * f32::from(scale);
    }
    let mut codes = [[0u8; LANES]; 16];
    for i in 0..16 {
        for k in 0..LANES {
            codes[i][k] = (nearest(lanes[i][k] / step[k]).clamp(-32, 31) + 32) as u8;
        }
    }
    if step.contains(&0.0) {
        let searched = fit.codes(&lanes, 32);
        for i in 0..16 {
            for k in 0..LANES {
                codes[i][k] = if step[k] == 0.0 { searched[i][k] } else { codes[i][k] };
            }
        }
    }
    let mut own = [0u8; SUPER];
    for k in 0..LANES {
        for i in 0..16 {
            own[16 * k + i] = codes[i][k];
        }
    }
    put_q6_k(&mut y[..192], &own);
}
