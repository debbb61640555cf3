//! The searches for a sub-block's scale, sixteen sub-blocks at a time: one a lane, and in each lane ggml's operations in
//! ggml's order, so that every lane ends with the bits that ggml finds for it alone.

/// Sub-blocks that are searched at once.
pub const LANES: usize = 16;
/// One value of each sub-block.
pub type Lane = [f32; LANES];

/// Below this largest magnitude a sub-block counts as zero.
pub const ALL_ZERO: f32 = 1e-15;

/// ggml's `nearest_int`: half to even, by the bits of a sum. Beyond 2^22 it gives the bits that ggml's gives.
#[inline(always)]
pub fn nearest(v: f32) -> i32 {
    ((v + 12_582_912.0).to_bits() as i32 & 0x007f_ffff) - 0x0040_0000
}

/// The same as a float, of |v| < 2^22: what no sub-block's own extreme scales beyond.
#[inline(always)]
pub fn rounded(v: f32) -> f32 {
    v + 12_582_912.0 - 12_582_912.0
}

/// C's `MIN(a, b)`, which gives `b` where `a` is NaN.
#[inline(always)]
fn least(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// What the search for `scale · code − offset` tries: steps of `(first + by · trial + max) / span`.
#[derive(Clone, Copy)]
pub struct Trials {
    pub max: f32,
    pub first: f32,
    pub by: f32,
    pub last: u32,
    /// Whether a trial's codes are cut to the range as numbers (ggml's `make_qkx3_quants`) or as integers (`make_qkx2_quants`).
    pub cut_first: bool,
}

/// `x ≈ scale · code − offset` with codes from 0 to the trials' maximum.
pub struct Affine {
    pub scale: Lane,
    /// Never negative.
    pub offset: Lane,
    step: Lane,
    from: Lane,
    found: [bool; LANES],
    flat: [bool; LANES],
}

impl Affine {
    /// Least weighted squared error over the trials' steps, scale and offset by least squares for each.
    #[inline(always)]
    pub fn search(x: &[Lane; 32], w: &[Lane; 32], trials: Trials) -> Affine {
        let max = trials.max;
        let (mut low, mut high, mut sum_w, mut sum_x) = (x[0], x[0], w[0], [0.0; LANES]);
        for k in 0..LANES {
            sum_x[k] = w[0][k] * x[0][k];
        }
        for i in 1..32 {
            for k in 0..LANES {
                let (x, w) = (x[i][k], w[i][k]);
                low[k] = if x < low[k] { x } else { low[k] };
                high[k] = if x > high[k] { x } else { high[k] };
                sum_w[k] += w;
                sum_x[k] += w * x;
            }
        }
        let mut flat = [false; LANES];
        for k in 0..LANES {
            low[k] = if low[k] > 0.0 { 0.0 } else { low[k] };
            flat[k] = high[k] <= low[k];
        }
        let (lowest, mut from) = (low, low);
        let (mut step, mut scale, mut error) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        for k in 0..LANES {
            step[k] = max / (high[k] - low[k]);
            scale[k] = 1.0 / step[k];
        }
        for i in 0..32 {
            for k in 0..LANES {
                let code = nearest(step[k] * (x[i][k] - low[k])).max(0).min(max as i32) as f32;
                let off = scale[k] * code + low[k] - x[i][k];
                error[k] += w[i][k] * (off * off);
            }
        }
        let mut found = [false; LANES];
        let mut codes = [[0.0f32; LANES]; 32];
        for trial in 0..=trials.last {
            let reach = trials.first + trials.by * trial as f32 + max;
            let mut tried = [0.0; LANES];
            for k in 0..LANES {
                tried[k] = reach / (high[k] - low[k]);
            }
            let (mut sum_l, mut sum_l2, mut sum_xl) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
            for i in 0..32 {
                for k in 0..LANES {
                    let v = tried[k] * (x[i][k] - low[k]);
                    let code = match trials.cut_first {
                        true => cut(v, max),
                        false => nearest(v).max(0).min(max as i32) as f32,
                    };
                    codes[i][k] = code;
                    let weighted = w[i][k] * code;
                    sum_l[k] += weighted;
                    sum_l2[k] += weighted * code;
                    sum_xl[k] += weighted * x[i][k];
                }
            }
            let (mut this_scale, mut this_low, mut solved) = ([0.0; LANES], [0.0; LANES], [false; LANES]);
            for k in 0..LANES {
                let determinant = sum_w[k] * sum_l2[k] - sum_l[k] * sum_l[k];
                solved[k] = determinant > 0.0;
                let slope = (sum_w[k] * sum_xl[k] - sum_x[k] * sum_l[k]) / determinant;
                let start = (sum_l2[k] * sum_x[k] - sum_l[k] * sum_xl[k]) / determinant;
                let through_zero = sum_xl[k] / sum_l2[k];
                let above = start > 0.0;
                this_low[k] = if above { 0.0 } else { start };
                this_scale[k] = if above { through_zero } else { slope };
            }
            let mut this_error = [0.0; LANES];
            for i in 0..32 {
                for k in 0..LANES {
                    let off = this_scale[k] * codes[i][k] + this_low[k] - x[i][k];
                    this_error[k] += w[i][k] * (off * off);
                }
            }
            for k in 0..LANES {
                let better = solved[k] & (this_error[k] < error[k]);
                error[k] = if better { this_error[k] } else { error[k] };
                scale[k] = if better { this_scale[k] } else { scale[k] };
                step[k] = if better { tried[k] } else { step[k] };
                from[k] = if better { low[k] } else { from[k] };
                low[k] = if better { this_low[k] } else { low[k] };
                found[k] |= better;
            }
        }
        let mut offset = [0.0; LANES];
        for k in 0..LANES {
            scale[k] = if flat[k] { 0.0 } else { scale[k] };
            offset[k] = -(if flat[k] { lowest[k] } else { low[k] });
        }
        Affine { scale, offset, step, from, found, flat }
    }

    /// The codes that the best trial gave, which are those of its step and not of the scale that least squares made of them.
    #[inline(always)]
    pub fn codes(&self, x: &[Lane; 32], trials: Trials) -> [[u8; LANES]; 32] {
        let mut codes = [[0; LANES]; 32];
        for i in 0..32 {
            for k in 0..LANES {
                let v = self.step[k] * (x[i][k] - self.from[k]);
                let code = match trials.cut_first && self.found[k] {
                    true => cut(v, trials.max) as i32,
                    false => nearest(v).max(0).min(trials.max as i32),
                };
                codes[i][k] = if self.flat[k] { 0 } else { code as u8 };
            }
        }
        codes
    }
}

/// The code of `v`, cut to `0..=max` before it is rounded: `v` may be anything.
#[inline(always)]
fn cut(v: f32, max: f32) -> f32 {
    let code = nearest(least(v, max));
    (if v > 0.0 { code } else { 0 }) as f32
}

/// `x ≈ scale · code` with codes from `-max` to `max − 1`.
pub struct Symmetric {
    pub scale: Lane,
    step: Lane,
    zero: [bool; LANES],
}

impl Symmetric {
    /// ggml's `make_qx_quants`: the step that makes the largest magnitude `-max`, and eighteen beside it.
    #[inline(always)]
    pub fn search<const LEN: usize>(x: &[Lane; LEN], w: &[Lane; LEN], max: f32) -> Symmetric {
        let mut weighted = [[0.0f32; LANES]; LEN];
        for i in 0..LEN {
            for k in 0..LANES {
                weighted[i][k] = w[i][k] * x[i][k];
            }
        }
        let (mut extreme, mut magnitude) = ([0.0f32; LANES], [0.0f32; LANES]);
        for x in x {
            for k in 0..LANES {
                let larger = x[k].abs() > magnitude[k];
                extreme[k] = if larger { x[k] } else { extreme[k] };
                magnitude[k] = if larger { x[k].abs() } else { magnitude[k] };
            }
        }
        let (mut scale, mut best, mut step) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        for trial in 0..19 {
            // 0 first, then -9 to 9 without it.
            let shift = [0, trial - 10, trial - 9][usize::from(trial > 0) + usize::from(trial > 9)];
            let reach = if trial == 0 { max } else { max + 0.1f32 * shift as f32 };
            let mut tried = [0.0; LANES];
            for k in 0..LANES {
                tried[k] = -reach / extreme[k];
            }
            let (mut sum_xl, mut sum_l2) = ([0.0; LANES], [0.0; LANES]);
            for i in 0..LEN {
                for k in 0..LANES {
                    let code = rounded(tried[k] * x[i][k]);
                    let code = if code > -max { code } else { -max };
                    let code = if code < max - 1.0 { code } else { max - 1.0 };
                    sum_xl[k] += weighted[i][k] * code;
                    sum_l2[k] += w[i][k] * code * code;
                }
            }
            for k in 0..LANES {
                let better = match trial {
                    0 => true,
                    _ => (sum_l2[k] > 0.0) & (sum_xl[k] * sum_xl[k] > best[k] * sum_l2[k]),
                };
                let fitted = sum_xl[k] / sum_l2[k];
                let fitted = if trial == 0 && sum_l2[k] == 0.0 { 0.0 } else { fitted };
                scale[k] = if better { fitted } else { scale[k] };
                best[k] = if better { fitted * sum_xl[k] } else { best[k] };
                step[k] = if better { tried[k] } else { step[k] };
            }
        }
        let mut zero = [false; LANES];
        for k in 0..LANES {
            zero[k] = magnitude[k] < ALL_ZERO;
            scale[k] = if zero[k] { 0.0 } else { scale[k] };
        }
        Symmetric { scale, step, zero }
    }

    /// The best trial's codes plus `max`; those of a sub-block of zeros are 0, as ggml has them.
    #[inline(always)]
    pub fn codes<const LEN: usize>(&self, x: &[Lane; LEN], max: i32) -> [[u8; LANES]; LEN] {
        let mut codes = [[0; LANES]; LEN];
        for i in 0..LEN {
            for k in 0..LANES {
                let code = nearest(self.step[k] * x[i][k]).max(-max).min(max - 1) + max;
                codes[i][k] = if self.zero[k] { 0 } else { code as u8 };
            }
        }
        codes
    }
}

/// The sixteen values of IQ4_NL, in units of the scale.
pub const LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Half-way between two levels: from here on it is the upper one. The values are exact, and so are both of the distances
/// that ggml compares wherever they are close.
const BORDERS: [f32; 15] =
    [-115.5, -93.5, -74.0, -57.0, -42.0, -28.5, -16.0, -4.5, 7.0, 19.0, 31.5, 45.5, 61.0, 79.0, 101.0];

/// The number of the level next to `v`; of NaN the last, as a search by halves ends there.
#[inline(always)]
pub fn level(v: f32) -> u8 {
    let mut number = 0;
    for border in BORDERS {
        number += if v < border { 0 } else { 1 };
    }
    number
}

/// The level next to `v`.
#[inline(always)]
pub fn level_value(v: f32) -> f32 {
    let mut value = f32::from(LEVELS[0]);
    for (i, border) in BORDERS.into_iter().enumerate() {
        let gap = f32::from(LEVELS[i + 1]) - f32::from(LEVELS[i]);
        value += if v < border { 0.0 } else { gap };
    }
    value
}

/// IQ4_NL's scales: the one that makes the largest magnitude the last level, and fifteen that make it the first or so.
#[inline(always)]
pub fn nonlinear(x: &[Lane; 32], w: &[Lane; 32]) -> Lane {
    let (mut extreme, mut magnitude) = ([0.0f32; LANES], [0.0f32; LANES]);
    for x in x {
        for k in 0..LANES {
            let larger = x[k].abs() > magnitude[k];
            extreme[k] = if larger { x[k] } else { extreme[k] };
            magnitude[k] = if larger { x[k].abs() } else { magnitude[k] };
        }
    }
    let first = f32::from(LEVELS[0]);
    let (mut scale, mut best) = ([0.0; LANES], [0.0; LANES]);
    for trial in -8i32..=7 {
        let mut inverse = [0.0; LANES];
        for k in 0..LANES {
            inverse[k] = match trial {
                -8 => 1.0 / (-extreme[k] / first),
                _ => (trial as f32 + first) / extreme[k],
            };
        }
        let (mut sum_qx, mut sum_q2) = ([0.0; LANES], [0.0; LANES]);
        for (x, w) in x.iter().zip(w) {
            for k in 0..LANES {
                let q = level_value(inverse[k] * x[k]);
                let weighted = w[k] * q;
                sum_qx[k] += weighted * x[k];
                sum_q2[k] += weighted * q;
            }
        }
        for k in 0..LANES {
            let better = match trial {
                -8 => true,
                _ => (sum_q2[k] > 0.0) & (sum_qx[k] * sum_qx[k] > best[k] * sum_q2[k]),
            };
            let fitted = sum_qx[k] / sum_q2[k];
            let fitted = if trial == -8 && sum_q2[k] == 0.0 { 0.0 } else { fitted };
            scale[k] = if better { fitted } else { scale[k] };
            best[k] = if better { fitted * sum_qx[k] } else { best[k] };
        }
    }
    for k in 0..LANES {
        scale[k] = if magnitude[k] < ALL_ZERO { 0.0 } else { scale[k] };
    }
    scale
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ggml's `best_index_int8`, by halves and by distances.
    fn by_halves(v: f32) -> u8 {
        let at = |i: usize| f32::from(LEVELS[i]);
        if v <= at(0) {
            return 0;
        }
        if v >= at(15) {
            return 15;
        }
        let (mut low, mut high) = (0, 15);
        while high - low > 1 {
            let middle = (low + high) / 2;
            if v < at(middle) { high = middle } else { low = middle }
        }
        if v - at(high - 1) < at(high) - v { (high - 1) as u8 } else { high as u8 }
    }

    #[test]
    fn borders_say_what_a_search_by_halves_says() {
        let mut seen = [false; 16];
        let mut check = |v: f32| {
            let number = level(v);
            assert_eq!(number, by_halves(v), "{v}");
            if v.is_finite() {
                assert_eq!(level_value(v), f32::from(LEVELS[usize::from(number)]), "{v}");
            }
            seen[usize::from(number)] = true;
        };
        for step in -300_000..300_000 {
            check(step as f32 / 2048.0);
        }
        for border in BORDERS.into_iter().chain(LEVELS.map(f32::from)) {
            let (mut below, mut above) = (border, border);
            for _ in 0..2000 {
                check(below);
                check(above);
                (below, above) = (below.next_down(), above.next_up());
            }
        }
        [0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-40, -1e-40].into_iter().for_each(&mut check);
        assert_eq!(seen, [true; 16]);
    }

    #[test]
    fn rounding_by_bits_is_to_even() {
        for step in -4_000_000..4_000_000i32 {
            let v = step as f32 / 4.0;
            assert_eq!(nearest(v), v.round_ties_even() as i32, "{v}");
        }
    }
}
