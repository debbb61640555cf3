//! Rounding a matrix by what its rounding does to the outputs: error feedback column by column (GPTQ, Frantar et al. 2023), then
//! descent over levels and scales under the whole metric. Rows are independent; a tile of them shares the products.

use limbeck_model::gguf::{GgmlType, dequantize};
use limbeck_model::products::{Threads, View, matmul};
use rayon::prelude::*;

use super::grid::{Grid, Scales};
use super::refine::refine;
use super::row::Row;
use super::search;
use crate::encode::pack::through_f16;
use crate::encode::simd::vectorised;
use crate::encode::{EncodeError, encode};

/// Rows that are rounded together.
const TILE: usize = 32;

/// What rounding is measured by: the damped second moments H of the inputs, in units of their mean square.
pub struct Metric {
    pub width: usize,
    /// `[width, width]`.
    pub h: Vec<f32>,
    /// The upper triangle with H⁻¹ = UᵀU.
    pub u: Vec<f32>,
    /// `1 / U[i, i]²`: what an error in column i costs when the columns behind it make up for it as well as they can.
    pub importance: Vec<f32>,
}

/// A rounded matrix, and what rounding it costs: `Σ over rows of (ŵ − w)ᵀ H (ŵ − w)`.
pub struct Rounded {
    pub bytes: Vec<u8>,
    pub error: f64,
    /// The same of plain rounding on this grid.
    pub plain_error: f64,
}

/// Rounds rows as long as the metric is wide; never worse than plain rounding, row by row.
///
/// # Errors
/// When a value is not finite or beyond what a block can hold.
pub fn round(ty: GgmlType, target: &[f32], metric: &Metric, passes: u32) -> Result<Rounded, EncodeError> {
    let width = metric.width;
    let plain = encode(ty, target)?;
    let row_bytes = plain.len() / (target.len() / width).max(1);
    let Some(grid) = Grid::of(ty) else {
        let tiles = target.par_chunks(TILE * width).zip(plain.par_chunks(TILE * row_bytes));
        let errors: Vec<f64> = tiles.map(|(w, y)| of_blocks(ty, w, y, metric).1).collect();
        let error = errors.iter().sum();
        return Ok(Rounded { bytes: plain, error, plain_error: error });
    };
    let mut bytes = plain;
    let errors: Vec<[f64; 2]> = target
        .par_chunks(TILE * width)
        .zip(bytes.par_chunks_mut(TILE * row_bytes))
        .map(|(target, bytes)| tile(grid, target, metric, passes, bytes))
        .collect();
    let sum = |which: usize| errors.iter().map(|e| e[which]).sum();
    Ok(Rounded { bytes, error: sum(0), plain_error: sum(1) })
}

/// The same of a tile, over the blocks of plain rounding; its error and that of plain rounding.
fn tile(grid: Grid, target: &[f32], metric: &Metric, passes: u32, bytes: &mut [u8]) -> [f64; 2] {
    let width = metric.width;
    let mut rows: Vec<Row> = target.chunks_exact(width).map(|_| Row::new(grid, width)).collect();
    let (plain, _) = of_blocks(grid.ty, target, bytes, metric);
    feed_back(target.to_vec(), metric, &mut rows);
    let mut gradients = gradients(target, rows.iter().map(|row| row.values.as_slice()), metric);
    let mut sums = [0.0; 2];
    let row_bytes = bytes.len() / rows.len().max(1);
    let with_targets = rows.iter_mut().zip(target.chunks_exact(width)).zip(gradients.chunks_exact_mut(width));
    for ((((row, w), gradient), y), plain) in with_targets.zip(bytes.chunks_exact_mut(row_bytes)).zip(plain) {
        let mut own = 0.0;
        refine(row, w, metric, passes, gradient, &mut own);
        if own < plain && row.units.iter().chain(&row.offset_units).all(|unit| unit.is_finite()) {
            row.write(y);
        }
        sums = [sums[0] + own.min(plain), sums[1] + plain];
    }
    sums
}

/// `H·(w − values)` of some rows.
fn gradients<'v>(target: &[f32], values: impl Iterator<Item = &'v [f32]>, metric: &Metric) -> Vec<f32> {
    let width = metric.width;
    let with_values = target.chunks_exact(width).zip(values);
    let off: Vec<f32> = with_values.flat_map(|(w, v)| w.iter().zip(v).map(|(w, v)| w - v)).collect();
    let mut out = vec![0.0f32; off.len()];
    let shape = [off.len() / width, width, width];
    let (left, right) = (View::rows(&off, width), View::rows(&metric.h, width));
    matmul(shape, &mut out, width, false, left, right, 1.0, Threads::One);
    out
}

/// The error of each row as it was written, and of all.
fn of_blocks(ty: GgmlType, target: &[f32], bytes: &[u8], metric: &Metric) -> (Vec<f64>, f64) {
    let width = metric.width;
    let mut values = vec![0.0; target.len()];
    if dequantize(ty, bytes, &mut values).is_err() {
        return (vec![f64::INFINITY; target.len() / width], f64::INFINITY);
    }
    let gradients = gradients(target, values.chunks_exact(width), metric);
    let rows = target.chunks_exact(width).zip(values.chunks_exact(width)).zip(gradients.chunks_exact(width));
    let errors: Vec<f64> = rows.map(|((w, v), g)| super::refine::product(w, v, g)).collect();
    let all = errors.iter().sum();
    (errors, all)
}

/// Rounds the columns from left to right; what each loses is made up for by those behind it. `w` is used up.
fn feed_back(mut w: Vec<f32>, metric: &Metric, rows: &mut [Row]) {
    let width = metric.width;
    let Some(grid) = rows.first().map(|row| row.grid) else { return };
    let mut errors = vec![0.0f32; rows.len() * grid.group];
    for group in 0..width / grid.group {
        let (from, to) = (group * grid.group, (group + 1) * grid.group);
        let rounded = rows.iter_mut().zip(w.chunks_exact_mut(width)).zip(errors.chunks_exact_mut(grid.group));
        for ((row, w), errors) in rounded {
            round_group(row, group, w, metric, errors);
        }
        if to < width {
            let shape = [rows.len(), grid.group, width - to];
            let (left, right) = (View::rows(&errors, grid.group), View::rows(&metric.u[from * width + to..], width));
            matmul(shape, &mut w[to..], width, true, left, right, -1.0, Threads::One);
        }
    }
}

vectorised! {
    fn round_group / round_group_portable(row: &mut Row, group: usize, w: &mut [f32], metric: &Metric, errors: &mut [f32]) {
        let grid = row.grid;
        let together = grid.groups_together();
        if group.is_multiple_of(together) {
            choose_units(row, group, w, &metric.importance);
        }
        let columns = group * grid.group..(group + 1) * grid.group;
        if together > 1 {
            choose_multiples(row, group, &w[columns.clone()], &metric.importance[columns.clone()]);
        }
        let (scale, offset) = row.scale_and_offset(group);
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        for i in columns.clone() {
            let level = grid.nearest((w[i] - offset) * inverse);
            row.levels[i] = level;
            row.values[i] = level * scale + offset;
            let u = &metric.u[i * metric.width..][..metric.width];
            let error = (w[i] - row.values[i]) / u[i];
            errors[i - columns.start] = error;
            for (w, u) in w[i + 1..columns.end].iter_mut().zip(&u[i + 1..columns.end]) {
                *w -= error * u;
            }
        }
    }
}

/// What the scales of a superblock are multiples of, or a group's own scale, by the values as they stand now.
#[inline(always)]
fn choose_units(row: &mut Row, group: usize, w: &[f32], importance: &[f32]) {
    let grid = row.grid;
    let unit = group / grid.groups_together();
    let of = |group: usize| {
        let columns = group * grid.group..(group + 1) * grid.group;
        (&w[columns.clone()], &importance[columns])
    };
    let groups = group..group + grid.groups_together();
    (row.units[unit], row.offset_units[unit]) = match grid.scales {
        Scales::Own => (search::scale(grid, of(group).0, of(group).1, true), 0.0),
        Scales::OwnWithOffset => {
            let (scale, offset) = search::scale_and_offset(grid, of(group).0, of(group).1, true);
            (through_f16(scale), through_f16(offset))
        }
        Scales::Shared => {
            let mut largest = 0.0f32;
            for group in groups {
                let scale = search::scale(grid, of(group).0, of(group).1, false);
                largest = if scale.abs() > largest.abs() { scale } else { largest };
            }
            (through_f16(largest / -128.0), 0.0)
        }
        Scales::SharedWithOffset => {
            let mut largest = (0.0f32, 0.0f32);
            for group in groups {
                let (scale, offset) = search::scale_and_offset(grid, of(group).0, of(group).1, false);
                largest = (largest.0.max(scale), largest.1.max(-offset));
            }
            (through_f16(largest.0 / grid.top()), through_f16(largest.1 / grid.top()))
        }
    };
}

/// The multiples of a group under its superblock's units: those next to what the group would have for itself, and those about
/// them.
#[inline(always)]
fn choose_multiples(row: &mut Row, group: usize, w: &[f32], importance: &[f32]) {
    const ABOUT: [f32; 5] = [0.0, -1.0, 1.0, -2.0, 2.0];
    let grid = row.grid;
    let unit = group / grid.groups_together();
    let (unit, offset_unit) = (row.units[unit], row.offset_units[unit]);
    let with_offset = grid.scales == Scales::SharedWithOffset;
    let (scale, offset) = match with_offset {
        true => search::scale_and_offset(grid, w, importance, false),
        false => (search::scale(grid, w, importance, false), 0.0),
    };
    let least = if with_offset { 0.0 } else { -128.0 };
    let next_to = |v: f32, unit: f32| if unit == 0.0 { 0.0 } else { (v / unit).round_ties_even() };
    let (first, first_offset) = (next_to(scale, unit), next_to(-offset, offset_unit));
    let mut best = f32::INFINITY;
    for about in ABOUT {
        let multiple = (first + about).clamp(least, grid.top());
        for about in &ABOUT[..if with_offset { ABOUT.len() } else { 1 }] {
            let offset_multiple = (first_offset + about).clamp(0.0, 63.0);
            let (scale, offset) = (unit * multiple, -(offset_unit * offset_multiple));
            let error = match scale == 0.0 {
                true => w.iter().zip(importance).map(|(w, h)| h * (w - offset) * (w - offset)).sum(),
                false => search::error(grid, w, importance, scale, offset),
            };
            if error < best {
                best = error;
                (row.multiples[group], row.offset_multiples[group]) = (multiple, offset_multiple);
            }
        }
    }
}
