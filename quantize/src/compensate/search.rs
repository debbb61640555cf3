//! Scales for a group of values by least weighted error, each value rounded to the level next to it: where error feedback
//! starts from. A weight says what a column's error costs once the columns to come have made up for what they can.

use crate::encode::lanes::{LANES, Lane, level_value};
use crate::encode::pack::through_f16;

use super::grid::{Grid, Levels};

/// Inverse scales tried, in units of the one that brings the largest magnitude to the furthest level, for either sign.
const SCALES: [f32; 2] = [0.72, 0.025];
const SCALE_TRIALS: u32 = 21;
/// Spans tried for levels from zero up: so much less than all of them, and by how much more each time.
const SPANS: [f32; 2] = [-2.0, 0.125];
const SPAN_TRIALS: u32 = 33;

/// The sum of lanes, in one order.
#[inline(always)]
pub fn sum(lanes: Lane) -> f32 {
    let mut lanes = lanes;
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}

/// The levels next to sixteen values.
#[inline(always)]
fn nearest(grid: Grid, v: Lane) -> Lane {
    let mut out = v;
    match grid.levels {
        Levels::Whole { .. } => {
            for i in 0..LANES {
                out[i] = grid.nearest(v[i]);
            }
        }
        Levels::Nonlinear => {
            for i in 0..LANES {
                out[i] = level_value(v[i]);
            }
        }
    }
    out
}

/// `Σ h · (w − its place on the grid)²`.
#[inline(always)]
pub fn error(grid: Grid, w: &[f32], h: &[f32], scale: f32, offset: f32) -> f32 {
    let inverse = 1.0 / scale;
    let mut lanes = [0.0f32; LANES];
    for (w, h) in w.as_chunks::<LANES>().0.iter().zip(h.as_chunks::<LANES>().0) {
        let mut v = *w;
        for i in 0..LANES {
            v[i] = (w[i] - offset) * inverse;
        }
        let levels = nearest(grid, v);
        for i in 0..LANES {
            let off = w[i] - (levels[i] * scale + offset);
            lanes[i] += h[i] * off * off;
        }
    }
    sum(lanes)
}

/// The scale of a group whose values are `scale · level`; 0 for a group of zeros.
#[inline(always)]
pub fn scale(grid: Grid, w: &[f32], h: &[f32], through: bool) -> f32 {
    let mut extreme = 0.0f32;
    for v in w {
        extreme = if v.abs() > extreme.abs() { *v } else { extreme };
    }
    let (mut best, mut found) = (f32::INFINITY, 0.0);
    if extreme == 0.0 {
        return found;
    }
    for sign in [-1.0f32, 1.0] {
        for trial in 0..SCALE_TRIALS {
            let inverse = sign * grid.reach() * (SCALES[0] + SCALES[1] * trial as f32) / extreme;
            let (mut product, mut square) = ([0.0f32; LANES], [0.0f32; LANES]);
            for (w, h) in w.as_chunks::<LANES>().0.iter().zip(h.as_chunks::<LANES>().0) {
                let mut v = *w;
                for i in 0..LANES {
                    v[i] = w[i] * inverse;
                }
                let levels = nearest(grid, v);
                for i in 0..LANES {
                    product[i] += h[i] * w[i] * levels[i];
                    square[i] += h[i] * levels[i] * levels[i];
                }
            }
            let fitted = sum(product) / sum(square);
            let fitted = if through { through_f16(fitted) } else { fitted };
            if !fitted.is_normal() {
                continue;
            }
            let error = error(grid, w, h, fitted, 0.0);
            if error < best {
                (best, found) = (error, fitted);
            }
        }
    }
    found
}

/// Scale and offset of a group whose levels go up from zero; the offset is not above zero unless it is `free`.
#[inline(always)]
pub fn scale_and_offset(grid: Grid, w: &[f32], h: &[f32], free: bool) -> (f32, f32) {
    let Levels::Whole { high, .. } = grid.levels else { return (0.0, 0.0) };
    let (mut low, mut most) = (w[0], w[0]);
    let (mut sum_h, mut sum_w) = (0.0f32, 0.0f32);
    for (w, h) in w.iter().zip(h) {
        low = if *w < low { *w } else { low };
        most = if *w > most { *w } else { most };
        sum_h += h;
        sum_w += h * w;
    }
    if !free && low > 0.0 {
        low = 0.0;
    }
    if most <= low {
        // All alike: the offset alone, where it may be what they are.
        return if free || low <= 0.0 { (0.0, low) } else { (0.0, 0.0) };
    }
    let (mut best, mut found) = (f32::INFINITY, ((most - low) / high, low));
    for trial in 0..SPAN_TRIALS {
        let inverse = (high + SPANS[0] + SPANS[1] * trial as f32) / (most - low);
        let (mut l, mut l2, mut lw) = ([0.0f32; LANES], [0.0f32; LANES], [0.0f32; LANES]);
        for (w, h) in w.as_chunks::<LANES>().0.iter().zip(h.as_chunks::<LANES>().0) {
            let mut v = *w;
            for i in 0..LANES {
                v[i] = (w[i] - low) * inverse;
            }
            let levels = nearest(grid, v);
            for i in 0..LANES {
                let weighted = h[i] * levels[i];
                l[i] += weighted;
                l2[i] += weighted * levels[i];
                lw[i] += weighted * w[i];
            }
        }
        let (l, l2, lw) = (sum(l), sum(l2), sum(lw));
        let determinant = sum_h * l2 - l * l;
        if determinant <= 0.0 {
            continue;
        }
        let (mut scale, mut offset) = ((sum_h * lw - sum_w * l) / determinant, (l2 * sum_w - l * lw) / determinant);
        if offset > 0.0 && !free {
            (scale, offset) = (lw / l2, 0.0);
        }
        if scale <= 0.0 || !scale.is_normal() {
            continue;
        }
        let error = error(grid, w, h, scale, offset);
        if error < best {
            (best, found) = (error, (scale, offset));
        }
    }
    found
}
