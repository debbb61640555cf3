//! Products whose float32 sums never reach memory: squares of 32 by 32 sums go to a function while they are in cache, and
//! what it makes of them is packed at once. And products that sum over tokens, on operands that were packed to sum over
//! columns.

use super::super::buffer::Buffer;
use super::pack::{self, Square, Target};
use super::{Block, DEPTH, Engine, Left, Right, RightPart, Sums, TASK_COLS, TASK_ROWS, TILE, ZERO, amx, avx512, check};
use super::{configured, portable, tiles};
use rayon::prelude::*;
use std::ops::Range;

/// What a rectangle of the output gave.
pub struct Rectangle<T> {
    pub rows: Range<usize>,
    pub cols: Range<usize>,
    pub made: T,
}

/// Sums of the block's rows and up to 32 columns from (`row`, `col`) on; beyond them the squares hold anything.
fn strip(engine: Engine, sums: &mut [Sums], terms: &[(&Left, RightPart)], row: usize, col: usize, block: &Block) {
    assert!(sums.len() * DEPTH >= block.rows && block.cols <= DEPTH, "a strip's sums have no room");
    let out: *mut f32 = sums.as_mut_ptr().cast();
    // SAFETY: the squares have room for the rows, rounded up to 32, are aligned and exclusively borrowed; whoever calls this
    // checked that the operands reach so far (`check`), and configured the tiles.
    #[expect(unsafe_code, reason = "the engines write through pointers")]
    unsafe {
        match engine {
            Engine::Amx => amx::strip(out, false, terms, row, col, block),
            Engine::Avx512 => avx512::rectangle(out, DEPTH, false, terms, row, col, block),
            Engine::Portable => portable::rectangle(out, DEPTH, false, terms, row, col, block),
        }
    }
}

/// `I` products of one size, a strip of 32 columns after the other: `each` gets what `begin` made for the rectangle, the
/// strip's first row and column and the squares of each product, one below the other. Rectangles come back in the order
/// of their columns, then rows.
pub fn strips<const I: usize, T: Send>(
    engine: Engine,
    [rows, cols]: [usize; 2],
    products: [&[(&Left, RightPart)]; I],
    begin: impl Fn(&Range<usize>, &Range<usize>) -> T + Sync,
    each: impl Fn(&mut T, usize, usize, [&mut [Sums]; I]) + Sync,
) -> Vec<Rectangle<T>> {
    products.iter().for_each(|terms| check(engine, [rows, cols], terms));
    // Without products a band across is what memory likes best.
    let [height, width] = if I == 0 { [DEPTH, cols.max(1)] } else { [TASK_ROWS, TASK_COLS] };
    let down = rows.div_ceil(height);
    let task = |t: usize| {
        let (row, col) = (t % down * height, t / down * width);
        let (rows, cols) = (row..rows.min(row + height), col..cols.min(col + width));
        let mut made = begin(&rows, &cols);
        let mut sums = Buffer::<Sums>::take(I * TASK_ROWS / DEPTH);
        let squares = tiles(rows.len(), DEPTH);
        configured(engine, || {
            for col in cols.clone().step_by(DEPTH) {
                let block = Block { rows: rows.len(), cols: DEPTH.min(cols.end - col) };
                let mut parts = sums.chunks_exact_mut(TASK_ROWS / DEPTH);
                let strips = products.map(|terms| {
                    let part = parts.next().unwrap_or_default();
                    strip(engine, part, terms, row, col, &block);
                    &mut part[..squares]
                });
                each(&mut made, row, col, strips);
            }
        });
        Rectangle { rows, cols, made }
    };
    let n = down * cols.div_ceil(width);
    if rows * cols < pack::PARALLEL || rayon::current_num_threads() == 1 {
        (0..n).map(task).collect()
    } else {
        (0..n).into_par_iter().map(task).collect()
    }
}

/// `N` matrices `[rows, cols]`, packed as left sides: `values` gets a square's first row and column and `N` squares, of
/// which the first `I` hold the products' sums, and works out all of them; what lies beyond the matrices may hold anything.
pub fn fused<const I: usize, const N: usize>(
    engine: Engine,
    [rows, cols]: [usize; 2],
    products: [&[(&Left, RightPart)]; I],
    values: impl Fn(usize, usize, [&mut Square; N]) + Sync,
) -> [Left; N] {
    const { assert!(I <= N) };
    let wide = avx512::available();
    let mut made = [(); N].map(|()| Left::room(rows, cols));
    let targets = made.each_mut().map(Target::new);
    strips(
        engine,
        [rows, cols],
        products,
        |_, _| Buffer::<Sums>::take(N - I),
        |more, row, col, mut sums: [&mut [Sums]; I]| {
            for row in (row..rows.min(row + if I == 0 { DEPTH } else { TASK_ROWS })).step_by(DEPTH) {
                let mut sums = sums.iter_mut().filter_map(|strip| {
                    let (first, rest) = std::mem::take(strip).split_first_mut()?;
                    *strip = rest;
                    Some(first)
                });
                let mut more = more.iter_mut();
                let mut squares = [(); N].map(|()| match sums.next().or_else(|| more.next()) {
                    Some(Sums(square)) => square,
                    None => unreachable!("there are N squares"),
                });
                values(row, col, squares.each_mut().map(|square| &mut **square));
                for (target, square) in targets.iter().zip(squares) {
                    // SAFETY: each square belongs to one rectangle, and the matrices outlive this call.
                    #[expect(unsafe_code, reason = "tiles of one buffer go to different threads")]
                    unsafe {
                        target.store(row, col, square, wide);
                    }
                }
            }
        },
    );
    made
}

/// `left · x` for each left `[rows, n]`, row-major `[rows, cols]`, with `x` `[n, cols]` as it was packed for products from
/// the left: its tiles are turned into right ones 32 columns at a time.
pub fn over_rows(engine: Engine, lefts: &[&Left], x: &Left) -> Vec<Vec<f32>> {
    let (n, cols) = (x.rows, x.depth);
    assert!(lefts.iter().all(|left| left.depth == n), "the product's operands do not fit");
    let wide = avx512::available();
    let depth_tiles = tiles(n, DEPTH);
    let strips: Vec<Vec<Vec<f32>>> = (0..tiles(cols, DEPTH))
        .into_par_iter()
        .map(|c| {
            let width = DEPTH.min(cols - c * DEPTH);
            let mut right = Right { lines: Buffer::take(2 * depth_tiles * TILE), depth: n, cols: width };
            let (low, high) = right.lines.split_at_mut(depth_tiles * TILE);
            for (y, (low, high)) in low.chunks_exact_mut(TILE).zip(high.chunks_exact_mut(TILE)).enumerate() {
                let mut rows = [ZERO; DEPTH];
                for (half, rows) in rows.chunks_exact_mut(TILE).enumerate() {
                    if let Some(tile) = x.tile(2 * y + half, c) {
                        rows.copy_from_slice(tile);
                    }
                }
                pack::right_tile(&rows, 0, wide, low);
                pack::right_tile(&rows, 1, wide, high);
            }
            lefts.iter().map(|left| rows_of_strip(engine, left, &right)).collect()
        })
        .collect();
    let mut outs: Vec<Vec<f32>> = lefts.iter().map(|left| vec![0.0; left.rows * cols]).collect();
    for (c, strips) in strips.into_iter().enumerate() {
        for (out, strip) in outs.iter_mut().zip(strips) {
            let width = DEPTH.min(cols - c * DEPTH);
            for (out, strip) in out.chunks_exact_mut(cols).zip(strip.chunks_exact(DEPTH)) {
                out[c * DEPTH..][..width].copy_from_slice(&strip[..width]);
            }
        }
    }
    outs
}

/// All rows of `left · right`, 32 values a row.
fn rows_of_strip(engine: Engine, left: &Left, right: &Right) -> Vec<f32> {
    let terms = [(left, right.all())];
    check(engine, [left.rows, right.cols], &terms);
    let mut out = Vec::with_capacity(left.rows * DEPTH);
    let mut sums = Buffer::<Sums>::take(TASK_ROWS / DEPTH);
    configured(engine, || {
        for row in (0..left.rows).step_by(TASK_ROWS) {
            let block = Block { rows: TASK_ROWS.min(left.rows - row), cols: right.cols };
            strip(engine, &mut sums, &terms, row, 0, &block);
            out.extend(sums.iter().flat_map(|Sums(square)| square).take(block.rows).flatten());
        }
    });
    out
}
