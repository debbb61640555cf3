//! From float32 matrices to tiles of bfloat16, rounded to nearest even; subnormal inputs become zero, as the instructions
//! take them. Rows are packed side by side in threads, with 512-bit conversions where the processor has them.

use super::super::buffer::Buffer;
use super::super::simd::vectorised;
use super::{DEPTH, Left, Line, Right, TILE, ZERO, avx512, tiles};
use rayon::prelude::*;

/// Round to nearest even, as `vcvtneps2bf16` does: subnormals to zero, NaN to a quiet NaN.
pub fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    if bits & 0x7f80_0000 == 0 {
        return (bits >> 16) as u16 & 0x8000;
    }
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// Below this many values threads cost more than they give.
pub(super) const PARALLEL: usize = 32 * 1024;

/// Calls `fill` for each group of `size` lines with its number.
fn fill(lines: &mut [Line], size: usize, values: usize, fill: impl Fn(usize, &mut [Line]) + Sync) {
    if size == 0 {
        return;
    }
    if values < PARALLEL || rayon::current_num_threads() == 1 {
        lines.chunks_mut(size).enumerate().for_each(|(i, chunk)| fill(i, chunk));
    } else {
        lines.par_chunks_mut(size).enumerate().for_each(|(i, chunk)| fill(i, chunk));
    }
}

/// 32 values to a line; a short slice is filled up with zeros.
fn line(values: &[f32], wide: bool) -> Line {
    if wide {
        return avx512::line(values);
    }
    let mut out = ZERO;
    for (bits, x) in out.0.iter_mut().zip(values) {
        *bits = round(*x);
    }
    out
}

/// Two rows of at most 16 values, value by value; missing ones are zeros.
fn in_turn(even: &[f32], odd: &[f32], wide: bool) -> Line {
    if wide && even.len() == TILE && odd.len() == TILE {
        return avx512::interleaved(even, odd);
    }
    let mut out = ZERO;
    for (offset, row) in [even, odd].into_iter().enumerate() {
        for (j, x) in row.iter().enumerate() {
            out.0[2 * j + offset] = round(*x);
        }
    }
    out
}

/// Pair `j` of line `i` becomes pair `i` of line `j`.
fn transpose_pairs(from: &[Line; TILE], wide: bool, to: &mut [Line]) {
    if wide {
        return avx512::transpose_pairs(from, to);
    }
    for (i, line) in to.iter_mut().enumerate() {
        for (pair, row) in line.0.as_chunks_mut::<2>().0.iter_mut().zip(from) {
            *pair = row.0.as_chunks::<2>().0[i];
        }
    }
}

/// 32 rows by 32 columns on their way into tiles.
pub type Square = [[f32; DEPTH]; DEPTH];

/// Where the squares of a matrix go that is packed as a left side. Tasks share it; each stores squares of its own.
#[derive(Clone, Copy)]
pub(super) struct Target {
    lines: *mut Line,
    rows: usize,
    cols: usize,
}

// SAFETY: it is only used to reach disjoint tiles of a buffer that outlives the tasks (`fuse`).
#[expect(unsafe_code, reason = "a raw pointer crosses threads")]
unsafe impl Send for Target {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "a raw pointer crosses threads")]
unsafe impl Sync for Target {}

impl Target {
    pub fn new(left: &mut Left) -> Target {
        Target { lines: left.lines.as_mut_ptr(), rows: left.rows, cols: left.depth }
    }

    /// Packs the square at (`row`, `col`), both multiples of 32; what it holds beyond the matrix becomes zeros.
    ///
    /// # Safety
    /// The matrix is alive, and nobody else reads or writes this square meanwhile.
    #[expect(unsafe_code, reason = "tiles of one buffer go to different threads")]
    pub unsafe fn store(&self, row: usize, col: usize, square: &mut Square, wide: bool) {
        trim(square, self.rows.saturating_sub(row), self.cols.saturating_sub(col));
        // SAFETY: as promised by the caller.
        unsafe { self.tiles(row, col, |half, tile| left_tile(square, half, wide, tile)) }
    }

    /// Makes the square at (`row`, `col`) zeros.
    ///
    /// # Safety
    /// As [`Target::store`].
    #[expect(unsafe_code, reason = "tiles of one buffer go to different threads")]
    pub unsafe fn store_zeros(&self, row: usize, col: usize) {
        // SAFETY: as promised by the caller.
        unsafe { self.tiles(row, col, |_, tile| tile.fill(ZERO)) }
    }

    /// The tiles of a square, each with its number in it.
    ///
    /// # Safety
    /// As [`Target::store`].
    #[expect(unsafe_code, reason = "tiles of one buffer go to different threads")]
    unsafe fn tiles(&self, row: usize, col: usize, mut each: impl FnMut(usize, &mut [Line])) {
        assert!(row < self.rows && col < self.cols, "the square lies outside the matrix");
        let across = tiles(self.cols, DEPTH);
        for half in 0..2 {
            let tile = row / TILE + half;
            if tile * TILE < self.rows {
                // SAFETY: the tile exists, as the comparisons say, and is the caller's alone.
                let tile = unsafe {
                    std::slice::from_raw_parts_mut(self.lines.add((tile * across + col / DEPTH) * TILE), TILE)
                };
                each(half, tile);
            }
        }
    }
}

vectorised! {
    fn unpack(lines: &[Line], out: &mut [[f32; DEPTH]]) {
        for (line, out) in lines.iter().zip(out) {
            for (x, bits) in out.iter_mut().zip(&line.0) {
                *x = f32::from_bits((*bits as u32) << 16);
            }
        }
    }
}

/// Zeros beyond the matrix.
fn trim(square: &mut Square, rows: usize, cols: usize) {
    if cols < DEPTH {
        square.iter_mut().for_each(|row| row[cols..].fill(0.0));
    }
    if rows < DEPTH {
        square[rows..].iter_mut().for_each(|row| row.fill(0.0));
    }
}

fn left_tile(square: &Square, half: usize, wide: bool, tile: &mut [Line]) {
    let rows = &square[half * TILE..][..TILE];
    if wide {
        return avx512::left_tile(rows, tile);
    }
    for (line, row) in tile.iter_mut().zip(rows) {
        for (bits, x) in line.0.iter_mut().zip(row) {
            *bits = round(*x);
        }
    }
}

/// The columns from `16 * half` on of 16 rows (a left tile) as half a right tile.
pub(super) fn half_right_tile(rows: &[Line], half: usize, wide: bool, tile: &mut [Line]) {
    if wide {
        return avx512::interleaved_pairs(rows, half, tile);
    }
    for (line, [even, odd]) in tile.iter_mut().zip(rows.as_chunks::<2>().0) {
        for j in 0..TILE {
            line.0[2 * j] = even.0[half * TILE + j];
            line.0[2 * j + 1] = odd.0[half * TILE + j];
        }
    }
}

impl Left {
    /// Room for a matrix; whoever takes it stores every square.
    pub(super) fn room(rows: usize, depth: usize) -> Left {
        Left { lines: Buffer::take(tiles(rows, TILE) * tiles(depth, DEPTH) * TILE), rows, depth }
    }

    /// The values of the square at (`row`, `col`), both multiples of 32, as they were rounded; zeros beyond the matrix's
    /// columns, and what was there before beyond its rows.
    pub fn square(&self, row: usize, col: usize, out: &mut Square) {
        let across = self.depth_tiles();
        for (half, out) in out.chunks_exact_mut(TILE).enumerate() {
            let tile = row / TILE + half;
            if tile * TILE < self.rows {
                unpack(&self.lines[(tile * across + col / DEPTH) * TILE..][..TILE], out);
            }
        }
    }

    /// The tile of rows from `16 * tile` on and depths from `32 * depth` on; none beyond the rows.
    pub(super) fn tile(&self, tile: usize, depth: usize) -> Option<&[Line]> {
        (tile * TILE < self.rows).then(|| &self.lines[(tile * self.depth_tiles() + depth) * TILE..][..TILE])
    }

    /// From `x` (row-major, `[rows, depth]`, rows `stride` apart).
    pub fn from_rows(x: &[f32], stride: usize, rows: usize, depth: usize) -> Left {
        let n = tiles(depth, DEPTH);
        let wide = avx512::available();
        let mut lines = Buffer::take(tiles(rows, TILE) * n * TILE);
        fill(&mut lines, n * TILE, rows * depth, |tile, lines| {
            let present = TILE.min(rows - tile * TILE);
            for tile in lines.chunks_exact_mut(TILE) {
                tile[present..].fill(ZERO);
            }
            for r in 0..present {
                let x = &x[(tile * TILE + r) * stride..][..depth];
                let whole = if wide { depth / DEPTH } else { 0 };
                if whole > 0 {
                    avx512::row(x, &mut lines[r..]);
                }
                for (d, values) in x.chunks(DEPTH).enumerate().skip(whole) {
                    lines[d * TILE + r] = line(values, wide);
                }
            }
        });
        Left { lines, rows, depth }
    }

    /// The transpose of `x` (`[depth, rows]`, rows of `x` `stride` apart).
    pub fn from_columns(x: &[f32], stride: usize, rows: usize, depth: usize) -> Left {
        let n = tiles(depth, DEPTH);
        let wide = avx512::available();
        let mut lines = Buffer::take(tiles(rows, TILE) * n * TILE);
        fill(&mut lines, n * TILE, rows * depth, |tile, lines| {
            let width = TILE.min(rows - tile * TILE);
            let row = |d: usize| match d < depth {
                true => &x[d * stride + tile * TILE..][..width],
                false => &[][..],
            };
            let mut pairs = [ZERO; TILE];
            for (d, lines) in lines.chunks_exact_mut(TILE).enumerate() {
                for (pair, line) in pairs.iter_mut().enumerate() {
                    let from = d * DEPTH + 2 * pair;
                    *line = in_turn(row(from), row(from + 1), wide);
                }
                transpose_pairs(&pairs, wide, lines);
            }
        });
        Left { lines, rows, depth }
    }
}

impl Right {
    /// From `b` (row-major, `[depth, cols]`, rows `stride` apart).
    pub fn from_rows(b: &[f32], stride: usize, depth: usize, cols: usize) -> Right {
        let n = tiles(depth, DEPTH);
        let wide = avx512::available();
        let mut lines = Buffer::take(tiles(cols, TILE) * n * TILE);
        fill(&mut lines, n * TILE, depth * cols, |panel, lines| {
            let width = TILE.min(cols - panel * TILE);
            let row = |d: usize| match d < depth {
                true => &b[d * stride + panel * TILE..][..width],
                false => &[][..],
            };
            for (pair, line) in lines.iter_mut().enumerate() {
                *line = in_turn(row(2 * pair), row(2 * pair + 1), wide);
            }
        });
        Right { lines, depth, cols }
    }

    /// The transpose of `w` (`[cols, depth]`, rows of `w` `stride` apart): a weight as Hugging Face stores it.
    pub fn from_columns(w: &[f32], stride: usize, depth: usize, cols: usize) -> Right {
        let n = tiles(depth, DEPTH);
        let wide = avx512::available();
        let mut lines = Buffer::take(tiles(cols, TILE) * n * TILE);
        fill(&mut lines, n * TILE, depth * cols, |panel, lines| {
            let mut rows = [ZERO; TILE];
            for (d, tile) in lines.chunks_exact_mut(TILE).enumerate() {
                let from = d * DEPTH;
                let values = DEPTH.min(depth - from);
                for (j, row) in rows.iter_mut().enumerate() {
                    let column = panel * TILE + j;
                    *row = match column < cols {
                        true => line(&w[column * stride + from..][..values], wide),
                        false => ZERO,
                    };
                }
                transpose_pairs(&rows, wide, tile);
            }
        });
        Right { lines, depth, cols }
    }
}
