//! Descent in the whole metric: level by level, and each scale by least squares over the levels that it has. Every step makes the
//! error smaller; it ends where none does.

use super::grid::Scales;
use super::round::Metric;
use super::row::Row;
use super::search::sum;
use crate::encode::lanes::LANES;
use crate::encode::pack::through_f16;
use crate::encode::simd::vectorised;

/// Columns whose scale is refitted at once, at most.
const MOST: usize = super::grid::SUPER;

/// What a scale must gain to be moved, as a share of the row's error spread over its scales: each move costs a product with the
/// columns of its block.
const WORTH: f32 = 1e-3;

vectorised! {
    /// Improves what was decided of a row whose exact values are `w`; `gradient` is `H·(w − values)` and stays so. `out` is the
    /// error that is left, `(w − values)ᵀH(w − values)`.
    pub fn refine / refine_portable(row: &mut Row, w: &[f32], metric: &Metric, passes: u32, gradient: &mut [f32], out: &mut f64) {
        let together = row.grid.groups_together();
        for pass in 0..passes {
            let worth = -WORTH * product(w, &row.values, gradient) as f32 / row.units.len() as f32;
            let mut changed = 0;
            for unit in 0..row.units.len() {
                // Scales hardly move, and moving them is dear.
                if pass % 2 == 0 {
                    changed += refit_units(row, unit, metric, gradient, worth);
                }
                for group in unit * together..(unit + 1) * together {
                    if together > 1 {
                        changed += refit_multiples(row, group, metric, gradient);
                    }
                    changed += step_levels(row, group, metric, gradient);
                }
            }
            if changed == 0 {
                break;
            }
        }
        *out = product(w, &row.values, gradient);
    }
}

/// `y += factor · x`, of as many as `y` has.
#[inline(always)]
fn add(y: &mut [f32], factor: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += factor * x;
    }
}

/// `y += Σ factors[i] · x[i]`, four rows of `x` at a time: `y` is read and written once for all of them. Rows lie `width` apart.
#[inline(always)]
fn add_rows(y: &mut [f32], factors: &[f32], x: &[f32], width: usize) {
    let (fours, rest) = factors.as_chunks::<4>();
    for (i, [a, b, c, d]) in fours.iter().enumerate() {
        if *a == 0.0 && *b == 0.0 && *c == 0.0 && *d == 0.0 {
            continue;
        }
        let rows = &x[4 * i * width..];
        let (ra, rb) = (&rows[..y.len()], &rows[width..][..y.len()]);
        let (rc, rd) = (&rows[2 * width..][..y.len()], &rows[3 * width..][..y.len()]);
        for j in 0..y.len() {
            y[j] += (a * ra[j] + b * rb[j]) + (c * rc[j] + d * rd[j]);
        }
    }
    for (i, factor) in rest.iter().enumerate() {
        add(y, *factor, &x[(4 * fours.len() + i) * width..]);
    }
}

/// `Σ (w − values) · gradient`, in doubles, a lane each.
#[inline(always)]
pub fn product(w: &[f32], values: &[f32], gradient: &[f32]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    for (i, lane) in lanes.iter_mut().enumerate() {
        for at in (i..w.len()).step_by(LANES) {
            *lane += f64::from(w[at] - values[at]) * f64::from(gradient[at]);
        }
    }
    lanes.iter().sum()
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for (a, b) in a.as_chunks::<LANES>().0.iter().zip(b.as_chunks::<LANES>().0) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i];
        }
    }
    sum(lanes)
}

/// How the error changes as two numbers move that the values of some columns are linear in: `−2 b·δ + δᵀAδ`.
struct Quadratic {
    b: [f32; 2],
    a: [f32; 3],
}

impl Quadratic {
    /// Of values that move by `first` and `second` a unit of each number, in the columns from `from`.
    #[inline(always)]
    fn of(first: &[f32], second: Option<&[f32]>, from: usize, metric: &Metric, gradient: &[f32]) -> Quadratic {
        let n = first.len();
        let mut out = Quadratic { b: [dot(first, &gradient[from..from + n]), 0.0], a: [0.0; 3] };
        let (mut along, mut along_second) = ([0.0f32; MOST], [0.0f32; MOST]);
        for i in 0..n {
            let h = &metric.h[(from + i) * metric.width + from..][..n];
            along[i] = dot(first, h);
            if let Some(second) = second {
                along_second[i] = dot(second, h);
            }
        }
        out.a[0] = dot(first, &along[..n]);
        if let Some(second) = second {
            out.b[1] = dot(second, &gradient[from..from + n]);
            out.a[1] = dot(second, &along[..n]);
            out.a[2] = dot(second, &along_second[..n]);
        }
        out
    }

    #[inline(always)]
    fn at(&self, x: f32, y: f32) -> f32 {
        let [b0, b1] = self.b;
        let [a00, a01, a11] = self.a;
        x * (a00 * x + 2.0 * (a01 * y - b0)) + y * (a11 * y - 2.0 * b1)
    }

    /// Where it is least; along the first alone where the two can't be told apart.
    #[inline(always)]
    fn least(&self) -> (f32, f32) {
        let [a00, a01, a11] = self.a;
        let determinant = a00 * a11 - a01 * a01;
        if a11 > 0.0 && determinant > 1e-6 * a00 * a11 {
            let [b0, b1] = self.b;
            ((a11 * b0 - a01 * b1) / determinant, (a00 * b1 - a01 * b0) / determinant)
        } else if a00 > 0.0 {
            (self.b[0] / a00, 0.0)
        } else {
            (0.0, 0.0)
        }
    }
}

/// Works out the values of a group's columns anew, and carries what changed into the gradient.
#[inline(always)]
fn set_values(row: &mut Row, group: usize, metric: &Metric, gradient: &mut [f32]) {
    let (scale, offset) = row.scale_and_offset(group);
    let (n, from) = (row.grid.group, group * row.grid.group);
    let mut changes = [0.0f32; MOST];
    for (i, change) in changes[..n].iter_mut().enumerate() {
        let value = row.levels[from + i] * scale + offset;
        *change = row.values[from + i] - value;
        row.values[from + i] = value;
    }
    add_rows(gradient, &changes[..n], &metric.h[from * metric.width..], metric.width);
}

/// The f16 numbers of a block by least squares, where the error changes by less than `worth`. Returns 1 when they moved.
#[inline(always)]
fn refit_units(row: &mut Row, unit: usize, metric: &Metric, gradient: &mut [f32], worth: f32) -> u32 {
    let grid = row.grid;
    let together = grid.groups_together();
    let n = together * grid.group;
    let from = unit * n;
    let (mut first, mut second) = ([0.0f32; MOST], [0.0f32; MOST]);
    let sign = if grid.scales == Scales::SharedWithOffset { -1.0 } else { 1.0 };
    for i in 0..n {
        let group = (from + i) / grid.group;
        first[i] = row.multiples[group] * row.levels[from + i];
        second[i] = sign * row.offset_multiples[group];
    }
    let with_offset = matches!(grid.scales, Scales::OwnWithOffset | Scales::SharedWithOffset);
    let quadratic = Quadratic::of(&first[..n], with_offset.then_some(&second[..n]), from, metric, gradient);
    let (x, y) = quadratic.least();
    let now = (row.units[unit], row.offset_units[unit]);
    let moved = (through_f16(now.0 + x), through_f16(now.1 + y));
    let alone = (through_f16(now.0 + if quadratic.a[0] > 0.0 { quadratic.b[0] / quadratic.a[0] } else { 0.0 }), now.1);
    let (mut best, mut taken) = (worth, now);
    for tried in [moved, alone] {
        let allowed = tried.0.is_normal() && tried.1.is_finite() && (sign > 0.0 || tried.1 >= 0.0);
        let change = quadratic.at(tried.0 - now.0, tried.1 - now.1);
        if allowed && change < best {
            (best, taken) = (change, tried);
        }
    }
    if taken == now {
        return 0;
    }
    (row.units[unit], row.offset_units[unit]) = taken;
    for group in unit * together..(unit + 1) * together {
        set_values(row, group, metric, gradient);
    }
    1
}

/// A group's multiples by least squares, rounded, and those about them. Returns 1 when they moved.
#[inline(always)]
fn refit_multiples(row: &mut Row, group: usize, metric: &Metric, gradient: &mut [f32]) -> u32 {
    let grid = row.grid;
    let n = grid.group;
    let from = group * n;
    let unit = group / grid.groups_together();
    let (scale, offset) = (row.units[unit], -row.offset_units[unit]);
    let with_offset = grid.scales == Scales::SharedWithOffset;
    let (mut first, mut second) = ([0.0f32; MOST], [0.0f32; MOST]);
    for i in 0..n {
        first[i] = scale * row.levels[from + i];
        second[i] = offset;
    }
    let with_offset = with_offset && offset != 0.0;
    let quadratic = Quadratic::of(&first[..n], with_offset.then_some(&second[..n]), from, metric, gradient);
    let (x, y) = quadratic.least();
    let now = (row.multiples[group], row.offset_multiples[group]);
    let least = if grid.scales == Scales::SharedWithOffset { 1.0 } else { -128.0 };
    let (mut best, mut taken) = (0.0, now);
    for about in [0.0, -1.0, 1.0] {
        for about_offset in [0.0, -1.0, 1.0] {
            let multiple = ((now.0 + x).round_ties_even() + about).clamp(least, grid.top());
            let offset_multiple = match with_offset {
                true => ((now.1 + y).round_ties_even() + about_offset).clamp(0.0, 63.0),
                false => now.1,
            };
            let change = quadratic.at(multiple - now.0, offset_multiple - now.1);
            if multiple != 0.0 && change < best {
                (best, taken) = (change, (multiple, offset_multiple));
            }
        }
    }
    if taken == now {
        return 0;
    }
    (row.multiples[group], row.offset_multiples[group]) = taken;
    set_values(row, group, metric, gradient);
    1
}

/// Each level of a group to the one next to where the error is least, the others as they are. Returns how many moved.
#[inline(always)]
fn step_levels(row: &mut Row, group: usize, metric: &Metric, gradient: &mut [f32]) -> u32 {
    let (scale, offset) = row.scale_and_offset(group);
    if scale == 0.0 {
        return 0;
    }
    let (inverse, mut moved) = (1.0 / scale, 0);
    for i in group * row.grid.group..(group + 1) * row.grid.group {
        let own = &metric.h[i * metric.width..][..metric.width];
        let level = row.grid.nearest((row.values[i] + gradient[i] / own[i] - offset) * inverse);
        if level == row.levels[i] {
            continue;
        }
        let value = level * scale + offset;
        let change = value - row.values[i];
        if change * (change * own[i] - 2.0 * gradient[i]) < 0.0 {
            add(gradient, -change, own);
            row.levels[i] = level;
            row.values[i] = value;
            moved += 1;
        }
    }
    moved
}
