//! Products computed straight from GGUF's quantized blocks, as llama.cpp serves them: activations are rounded to int8 by
//! blocks of 32, products are sums of integers, and scales meet them once a block. The matrix lies in strips of 32 rows of the
//! file, repacked so that it is read once, in order.
//!
//! A sum is one chain of fused multiply-adds over the blocks in their order, and what each adds is exact: a row's bits depend
//! neither on the rows beside it, nor on the threads, nor on the instructions.

pub mod layer;
pub mod round;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod pack;
mod portable;

pub use pack::BlockMatrix;
#[cfg(target_arch = "x86_64")]
use pack::Form;
use pack::{Line, Strip};

use super::kernels::{Threads, View};
use super::shared::Shared;
use rayon::prelude::*;
use round::{Rounded, RoundedRows};
use std::ops::Range;
use std::sync::OnceLock;

/// Values that share a scale.
pub const BLOCK: usize = 32;
/// Columns of a strip.
pub const COLS: usize = 32;
/// Rows of a tile, at most.
pub const ROWS: usize = 6;
/// Rows that pay for taking a strip's half bytes apart beforehand.
const MANY_ROWS: usize = 3 * ROWS;
/// Rows of a task.
const TASK_ROWS: usize = 32 * ROWS;

/// A row's sums over a strip.
pub type Sums = [f32; COLS];

/// Which instructions multiply; the bits are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// `vpdpbusd` on 512 bits (AVX512-VNNI).
    Vnni,
    /// `vpmaddubsw` on 256 bits.
    Avx2,
    /// Plain Rust, for every machine; the reference of the other two.
    Portable,
}

impl Level {
    /// The fastest that this processor has.
    pub fn best() -> Level {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| [Level::Vnni, Level::Avx2].into_iter().find(|l| l.available()).unwrap_or(Level::Portable))
    }

    /// Whether this processor has it.
    pub fn available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Level::Vnni => avx512::available(),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => avx2::available(),
            #[cfg(not(target_arch = "x86_64"))]
            Level::Vnni | Level::Avx2 => false,
            Level::Portable => true,
        }
    }
}

/// The sums of `rows` (at most [`ROWS`]) rows from `row` on, over a strip.
#[inline(always)]
fn tile(level: Level, x: RoundedRows, rows: Range<usize>, strip: Strip, out: &mut [Sums; ROWS]) {
    assert!(rows.end <= x.rows && (1..=ROWS).contains(&rows.len()), "a tile of the left side");
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Vnni => avx512::tile(x, rows, strip, out),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => avx2::tile(x, rows, strip, out),
        _ => portable::tile(x, rows, strip, out),
    }
}

/// The strip with a byte a code, where that is faster for many rows.
#[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables, reason = "for AVX-512"))]
fn widened<'a>(level: Level, strip: Strip<'a>, bytes: &'a mut Vec<Line>) -> Strip<'a> {
    match (level, strip.form) {
        #[cfg(target_arch = "x86_64")]
        (Level::Vnni, Form::Nibbles | Form::Table) => avx512::widened(strip, bytes),
        _ => strip,
    }
}

/// Hands the sums of rows over strip after strip to `each`: row, first column, and as many sums as the strip has columns.
pub fn strips(
    level: Level,
    x: RoundedRows,
    rows: Range<usize>,
    right: &BlockMatrix,
    strips: Range<usize>,
    mut each: impl FnMut(usize, usize, &[f32]),
) {
    assert_eq!(x.depth, right.n_in, "the left side's depth");
    let mut sums = [[0f32; COLS]; ROWS];
    let mut bytes = Vec::new();
    for number in strips {
        let (first, width) = (number * COLS, COLS.min(right.n_out - number * COLS));
        let strip = match rows.len() >= MANY_ROWS {
            true => widened(level, right.strip(number), &mut bytes),
            false => right.strip(number),
        };
        for start in rows.clone().step_by(ROWS) {
            let tile_rows = start..rows.end.min(start + ROWS);
            tile(level, x, tile_rows.clone(), strip, &mut sums);
            for (row, sums) in tile_rows.zip(&sums) {
                each(row, first, &sums[..width]);
            }
        }
    }
}

/// `out[rows, cols] = left[rows, depth] · right`, added to `out` when `accumulate`.
pub fn product(
    threads: Threads,
    out: &mut [f32],
    stride: usize,
    accumulate: bool,
    (left, rows): (View, usize),
    right: &BlockMatrix,
) {
    if rows == 0 || right.n_out == 0 {
        return;
    }
    assert!(stride >= right.n_out && out.len() >= (rows - 1) * stride + right.n_out, "product's output is too short");
    let rounded = rounded(threads, left, rows, right.n_in);
    // SAFETY: nobody writes to it any more.
    #[expect(unsafe_code, reason = "it was filled by several threads")]
    let x = unsafe { rounded.read() };
    let shared = Shared(out.as_mut_ptr());
    let row_tasks = rows.div_ceil(TASK_ROWS);
    let task = |task: usize| {
        let (strip, from) = (task / row_tasks, task % row_tasks * TASK_ROWS);
        strips(Level::best(), x, from..rows.min(from + TASK_ROWS), right, strip..strip + 1, |row, first, sums| {
            // SAFETY: the assertion above bounds rows and columns; each task has a rectangle of its own.
            #[expect(unsafe_code, reason = "threads write to rectangles of one matrix")]
            let out = unsafe { std::slice::from_raw_parts_mut(shared.at(row * stride + first), sums.len()) };
            match accumulate {
                true => out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum),
                false => out.copy_from_slice(sums),
            }
        });
    };
    let tasks = 0..right.strips() * row_tasks;
    match threads {
        Threads::All => tasks.into_par_iter().with_min_len(2).for_each(task),
        Threads::One => tasks.for_each(task),
    }
}

fn rounded(threads: Threads, left: View, rows: usize, depth: usize) -> Rounded {
    let rounded = Rounded::room(rows, depth);
    let row = |i: usize| {
        let x = &left.data[i * left.row_stride..];
        let gathered: Vec<f32>;
        let x = match left.col_stride {
            1 => &x[..depth],
            stride => {
                gathered = x.iter().step_by(stride.max(1)).take(depth).copied().collect();
                &gathered
            }
        };
        // SAFETY: each task has a row of its own.
        #[expect(unsafe_code, reason = "threads write to rows of one matrix")]
        unsafe {
            rounded.row(i, x)
        };
    };
    match threads {
        Threads::All => (0..rows).into_par_iter().with_min_len(16).for_each(row),
        Threads::One => (0..rows).for_each(row),
    }
    rounded
}

/// The product of one row with some columns, each the bits of [`product`].
pub fn dots(x: &[f32], right: &BlockMatrix, columns: &[u32]) -> Vec<f32> {
    let rounded = rounded(Threads::One, View::rows(x, x.len()), 1, right.n_in);
    // SAFETY: nobody writes to it any more.
    #[expect(unsafe_code, reason = "it was filled through a shared reference")]
    let x = unsafe { rounded.read() };
    columns.iter().map(|&column| right.dot(x, 0, column as usize)).collect()
}

#[cfg(test)]
mod tests;
