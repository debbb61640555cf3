//! Float32 products for writing, where a few rows meet a whole matrix at every token. The frozen matrix lies in strips of
//! columns, so that it is read once, in order; each sum is one chain of fused multiply-adds over the depths in their order,
//! so that a row's result has the same bits whatever rows are beside it, on any number of threads.

use super::buffer::Buffer;
use super::kernels::{Threads, View};
use super::shared::Shared;
use rayon::prelude::*;

/// Columns a strip: two registers of 512 bits.
const COLS: usize = 32;
/// Rows a tile, at most: their sums fill 24 registers.
const ROWS: usize = 12;

/// A right side `[depth, cols]`: strip by strip, of each depth the strip's 32 columns. Columns that fill up the last strip
/// are zeros.
#[derive(Debug)]
pub struct Strips {
    data: Vec<f32>,
    depth: usize,
    cols: usize,
}

impl Strips {
    /// `b` is row-major `[depth, cols]`, rows `stride` apart.
    pub fn from_rows(b: &[f32], stride: usize, depth: usize, cols: usize) -> Self {
        Strips::new(depth, cols, |strip, first, width| {
            for (row, b) in strip.chunks_exact_mut(COLS).zip(b.chunks(stride.max(1))) {
                row[..width].copy_from_slice(&b[first..][..width]);
            }
        })
    }

    /// The transpose of `b`, which is `[cols, depth]`, rows `stride` apart.
    pub fn from_columns(b: &[f32], stride: usize, depth: usize, cols: usize) -> Self {
        Strips::new(depth, cols, |strip, first, width| {
            for j in 0..width {
                for (row, b) in strip.chunks_exact_mut(COLS).zip(&b[(first + j) * stride..]) {
                    row[j] = *b;
                }
            }
        })
    }

    /// `fill` gets a strip, its first column and how many it has.
    fn new(depth: usize, cols: usize, fill: impl Fn(&mut [f32], usize, usize) + Sync) -> Self {
        let mut data = vec![0f32; cols.div_ceil(COLS) * depth * COLS];
        data.par_chunks_mut((depth * COLS).max(1)).enumerate().for_each(|(s, strip)| {
            fill(strip, s * COLS, COLS.min(cols - s * COLS));
        });
        Strips { data, depth, cols }
    }

    /// Column `i`, `[depth]`.
    pub fn column(&self, i: usize, out: &mut [f32]) {
        let strip = &self.data[i / COLS * self.depth * COLS..][..self.depth * COLS];
        for (out, row) in out.iter_mut().zip(strip.chunks_exact(COLS)) {
            *out = row[i % COLS];
        }
    }

    pub fn bytes(&self) -> usize {
        4 * self.data.len()
    }
}

/// `out[rows, cols] = left[rows, depth] · right`, added to `out` when `accumulate`.
pub fn product(
    threads: Threads,
    out: &mut [f32],
    stride: usize,
    accumulate: bool,
    (left, rows): (View, usize),
    right: &Strips,
) {
    let (depth, cols) = (right.depth, right.cols);
    if rows == 0 || cols == 0 {
        return;
    }
    assert!(stride >= cols && out.len() >= (rows - 1) * stride + cols, "product's output is too short");
    let panels = panels(left, rows, depth);
    let shared = Shared(out.as_mut_ptr());
    let strip = |s: usize| {
        let strip = &right.data[s * depth * COLS..][..depth * COLS];
        let (first, width) = (s * COLS, COLS.min(cols - s * COLS));
        for (g, panel) in panels.chunks(ROWS * depth.max(1)).enumerate() {
            let rows = ROWS.min(rows - g * ROWS);
            // SAFETY: the assertion above bounds rows and columns; each strip has columns of its own.
            #[expect(unsafe_code, reason = "threads write to columns of one matrix")]
            unsafe {
                let out = shared.at(g * ROWS * stride + first);
                part(rows, panel, strip, out, stride, width, accumulate);
            }
        }
    };
    let strips = 0..cols.div_ceil(COLS);
    match threads {
        Threads::All => strips.into_par_iter().with_min_len(2).for_each(strip),
        Threads::One => strips.for_each(strip),
    }
}

/// The left side by tiles: of each depth the tile's rows side by side.
fn panels(left: View, rows: usize, depth: usize) -> Buffer {
    let mut panels = Buffer::take(rows * depth);
    for (g, panel) in panels.chunks_mut(ROWS * depth.max(1)).enumerate() {
        let height = ROWS.min(rows - g * ROWS);
        for i in 0..height {
            let row = &left.data[(g * ROWS + i) * left.row_stride..];
            for (d, x) in row.iter().step_by(left.col_stride.max(1)).take(depth).enumerate() {
                panel[d * height + i] = *x;
            }
        }
    }
    panels
}

/// A tile of sums, of which `width` columns are wanted.
///
/// # Safety
/// `out` leads to `rows` rows, `stride` apart, of `width` values that nobody else touches.
#[expect(unsafe_code, reason = "the output is a rectangle inside a matrix that other threads write to")]
unsafe fn part(
    rows: usize,
    panel: &[f32],
    strip: &[f32],
    out: *mut f32,
    stride: usize,
    width: usize,
    accumulate: bool,
) {
    let mut whole = [[0f32; COLS]; ROWS];
    // SAFETY: as promised by the caller; a tile that is whole is written where it belongs, another one to `whole`.
    unsafe {
        if width == COLS && native::tile(rows, panel, strip, out, stride, accumulate) {
            return;
        }
        if accumulate {
            for (i, row) in whole.iter_mut().enumerate().take(rows) {
                std::ptr::copy_nonoverlapping(out.add(i * stride), row.as_mut_ptr(), width);
            }
        }
        if !native::tile(rows, panel, strip, whole.as_flattened_mut().as_mut_ptr(), COLS, true) {
            portable(rows, panel, strip, &mut whole);
        }
        for (i, row) in whole.iter().enumerate().take(rows) {
            std::ptr::copy_nonoverlapping(row.as_ptr(), out.add(i * stride), width);
        }
    }
}

super::simd::vectorised! {
    /// The same chains, three rows at a time, as the compiler vectorises them.
    fn portable(rows: usize, panel: &[f32], strip: &[f32], sums: &mut [[f32; COLS]; ROWS]) {
        let mut first = 0;
        while first < rows {
            let height = (rows - first).min(3);
            match height {
                3 => chains::<3>(rows, first, panel, strip, sums),
                2 => chains::<2>(rows, first, panel, strip, sums),
                _ => chains::<1>(rows, first, panel, strip, sums),
            }
            first += height;
        }
    }
}

#[inline(always)]
fn chains<const N: usize>(rows: usize, first: usize, panel: &[f32], strip: &[f32], sums: &mut [[f32; COLS]; ROWS]) {
    let mut own: [[f32; COLS]; N] = std::array::from_fn(|i| sums[first + i]);
    for (x, w) in panel.chunks_exact(rows).zip(strip.as_chunks::<COLS>().0) {
        for i in 0..N {
            let x = x[first + i];
            for j in 0..COLS {
                own[i][j] = x.mul_add(w[j], own[i][j]);
            }
        }
    }
    sums[first..first + N].copy_from_slice(&own);
}

#[cfg(not(target_arch = "x86_64"))]
mod native {
    /// # Safety
    /// It touches nothing.
    #[expect(unsafe_code, reason = "the same signature as on the processors that have it")]
    pub unsafe fn tile(_: usize, _: &[f32], _: &[f32], _: *mut f32, _: usize, _: bool) -> bool {
        false
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vector instructions behind run-time detection")]
mod native {
    use super::super::simd::{Width, width};
    use super::{COLS, ROWS};
    use std::arch::x86_64::*;

    type Tile = unsafe fn(*const f32, *const f32, usize, *mut f32, usize, bool);

    /// One tile a number of rows. Sums are variables of their own: the compiler keeps an array of them in memory.
    macro_rules! tile {
        ($name:ident $rows:literal: $($i:literal $low:ident $high:ident),+) => {
            #[target_feature(enable = "avx512f")]
            unsafe fn $name(mut x: *const f32, mut w: *const f32, depth: usize, out: *mut f32, stride: usize, add: bool) {
                // SAFETY: the caller says how much there is to read and to write.
                unsafe {
                    $(let (mut $low, mut $high) = match add {
                        false => (_mm512_setzero_ps(), _mm512_setzero_ps()),
                        true => (_mm512_loadu_ps(out.add($i * stride)), _mm512_loadu_ps(out.add($i * stride + 16))),
                    };)+
                    for _ in 0..depth {
                        let (first, second) = (_mm512_loadu_ps(w), _mm512_loadu_ps(w.add(16)));
                        $(
                            let value = _mm512_set1_ps(*x.add($i));
                            $low = _mm512_fmadd_ps(value, first, $low);
                            $high = _mm512_fmadd_ps(value, second, $high);
                        )+
                        x = x.add($rows);
                        w = w.add(COLS);
                    }
                    $(
                        _mm512_storeu_ps(out.add($i * stride), $low);
                        _mm512_storeu_ps(out.add($i * stride + 16), $high);
                    )+
                }
            }
        };
    }

    tile!(tile_1 1: 0 a0 b0);
    tile!(tile_2 2: 0 a0 b0, 1 a1 b1);
    tile!(tile_3 3: 0 a0 b0, 1 a1 b1, 2 a2 b2);
    tile!(tile_4 4: 0 a0 b0, 1 a1 b1, 2 a2 b2, 3 a3 b3);
    tile!(tile_5 5: 0 a0 b0, 1 a1 b1, 2 a2 b2, 3 a3 b3, 4 a4 b4);
    tile!(tile_6 6: 0 a0 b0, 1 a1 b1, 2 a2 b2, 3 a3 b3, 4 a4 b4, 5 a5 b5);
    tile!(tile_7 7: 0 a0 b0, 1 a1 b1, 2 a2 b2, 3 a3 b3, 4 a4 b4, 5 a5 b5, 6 a6 b6);
    tile!(tile_8 8: 0 a0 b0, 1 a1 b1, 2 a2 b2, 3 a3 b3, 4 a4 b4, 5 a5 b5, 6 a6 b6, 7 a7 b7);
    tile!(tile_9 9: 0 a0 b0, 1 a1 b1, 2 a2 b2, 3 a3 b3, 4 a4 b4, 5 a5 b5, 6 a6 b6, 7 a7 b7, 8 a8 b8);
    tile!(tile_10 10: 0 a0 b0, 1 a1 b1, 2 a2 b2, 3 a3 b3, 4 a4 b4, 5 a5 b5, 6 a6 b6, 7 a7 b7, 8 a8 b8, 9 a9 b9);
    tile!(tile_11 11: 0 a0 b0, 1 a1 b1, 2 a2 b2, 3 a3 b3, 4 a4 b4, 5 a5 b5, 6 a6 b6, 7 a7 b7, 8 a8 b8, 9 a9 b9,
        10 a10 b10);
    tile!(tile_12 12: 0 a0 b0, 1 a1 b1, 2 a2 b2, 3 a3 b3, 4 a4 b4, 5 a5 b5, 6 a6 b6, 7 a7 b7, 8 a8 b8, 9 a9 b9,
        10 a10 b10, 11 a11 b11);

    const TILES: [Tile; ROWS] =
        [tile_1, tile_2, tile_3, tile_4, tile_5, tile_6, tile_7, tile_8, tile_9, tile_10, tile_11, tile_12];

    /// Works a tile out, where the processor has 512-bit registers; says whether it did.
    ///
    /// # Safety
    /// `out` leads to `rows` rows, `stride` apart, of 32 values that nobody else touches.
    pub unsafe fn tile(rows: usize, panel: &[f32], strip: &[f32], out: *mut f32, stride: usize, add: bool) -> bool {
        let depth = strip.len() / COLS;
        assert!((1..=ROWS).contains(&rows) && panel.len() == rows * depth, "a tile's left side");
        if width() != Width::Avx512 {
            return false;
        }
        // SAFETY: the processor has the instructions, the assertion bounds what is read, and the caller what is written.
        unsafe { TILES[rows - 1](panel.as_ptr(), strip.as_ptr(), depth, out, stride, add) };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::kernels::tests::values;
    use super::*;

    /// One chain a sum, written out.
    fn chain(x: &[f32], w: impl Iterator<Item = f32>, start: f32) -> f32 {
        x.iter().zip(w).fold(start, |sum, (x, w)| x.mul_add(w, sum))
    }

    #[test]
    fn sums_are_chains_whatever_the_size_and_however_many_work() {
        for (rows, depth, cols) in [(1, 1, 1), (1, 576, 192), (3, 40, 24), (12, 24, 32), (13, 24, 33), (31, 7, 100)] {
            let x = values(rows * depth, 1);
            let b = values(depth * cols, 2);
            let before = values(rows * (cols + 3), 3);
            for (accumulate, threads) in [(false, 1), (true, 1), (false, 3), (true, 5)] {
                let right = Strips::from_rows(&b, cols, depth, cols);
                let mut out = before.clone();
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let left = (View::rows(&x, depth), rows);
                pool.install(|| product(Threads::All, &mut out, cols + 3, accumulate, left, &right));
                for i in 0..rows {
                    for j in 0..cols + 3 {
                        let start = before[i * (cols + 3) + j];
                        let column = (0..depth).map(|d| b[d * cols + j]);
                        let want = match (j < cols, accumulate) {
                            (false, _) => start,
                            (true, true) => chain(&x[i * depth..][..depth], column, start),
                            (true, false) => chain(&x[i * depth..][..depth], column, 0.0),
                        };
                        assert_eq!(out[i * (cols + 3) + j].to_bits(), want.to_bits(), "{rows}x{depth}x{cols}: {i} {j}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_portable_chains_are_the_same() {
        for rows in 1..=ROWS {
            let (panel, strip) = (values(rows * 50, 4), values(50 * COLS, 5));
            let mut portably = [[0.5f32; COLS]; ROWS];
            portable(rows, &panel, &strip, &mut portably);
            for i in 0..rows {
                let x: Vec<f32> = (0..50).map(|d| panel[d * rows + i]).collect();
                for j in 0..COLS {
                    let want = chain(&x, (0..50).map(|d| strip[d * COLS + j]), 0.5);
                    assert_eq!(portably[i][j].to_bits(), want.to_bits());
                }
            }
        }
    }

    #[test]
    fn both_ways_to_lay_a_matrix_out_are_one() {
        let (depth, cols) = (37, 70);
        let b = values(depth * cols, 6);
        let turned: Vec<f32> = (0..cols * depth).map(|i| b[i % depth * cols + i / depth]).collect();
        let (rows, columns) =
            (Strips::from_rows(&b, cols, depth, cols), Strips::from_columns(&turned, depth, depth, cols));
        assert_eq!(rows.data, columns.data);
        let mut column = vec![0f32; depth];
        rows.column(69, &mut column);
        assert_eq!(column, turned[69 * depth..]);
        assert_eq!(rows.bytes(), 3 * 37 * 32 * 4);
    }

    /// A column of a left side that is transposed.
    #[test]
    fn a_left_side_may_be_a_transpose() {
        let (rows, depth) = (14, 9);
        let x = values(rows * depth, 7);
        let turned: Vec<f32> = (0..rows * depth).map(|i| x[i % rows * depth + i / rows]).collect();
        let right = Strips::from_rows(&values(depth * 40, 8), 40, depth, 40);
        let mut out = [vec![0f32; rows * 40], vec![0f32; rows * 40]];
        product(Threads::One, &mut out[0], 40, false, (View::rows(&x, depth), rows), &right);
        product(Threads::One, &mut out[1], 40, false, (View::transposed(&turned, rows), rows), &right);
        assert_eq!(out[0], out[1]);
    }
}
