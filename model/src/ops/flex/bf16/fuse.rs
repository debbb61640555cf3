//! Products whose float32 sums never reach memory: squares of 32 by 32 sums go to a function while they are in cache, and
//! what it makes of them is packed at once. And products that sum over tokens, on operands that were packed to sum over
//! columns.

use super::super::buffer::Buffer;
use super::pack::{self, Square, Target};
use super::{Block, DEPTH, Engine, Left, Right, RightPart, Sums, TASK_COLS, TASK_ROWS, TILE, ZERO, amx, avx512, check};
use super::{configured, portable, product, tiles};
use rayon::prelude::*;
use std::ops::Range;

/// What a rectangle of the output gave.
pub struct Rectangle<T> {
    pub rows: Range<usize>,
    pub made: T,
}

/// Sums of the block's rows and up to 32 columns from (`row`, `col`) on, added to what is there when `begun`; beyond them
/// the squares hold anything.
pub(super) fn strip(
    engine: Engine,
    sums: &mut [Sums],
    begun: bool,
    terms: &[(&Left, RightPart)],
    row: usize,
    col: usize,
    block: &Block,
) {
    assert!(sums.len() * DEPTH >= block.rows && block.cols <= DEPTH, "a strip's sums have no room");
    let out: *mut f32 = sums.as_mut_ptr().cast();
    // SAFETY: the squares have room for the rows, rounded up to 32, are aligned and exclusively borrowed; whoever calls this
    // checked that the operands reach so far (`check`), and configured the tiles.
    #[expect(unsafe_code, reason = "the engines write through pointers")]
    unsafe {
        match engine {
            Engine::Amx => amx::strip(out, begun, terms, row, col, block),
            Engine::Avx512 => avx512::strip(out, begun, terms, row, col, block),
            Engine::Portable => portable::rectangle(out, DEPTH, begun, terms, row, col, block),
        }
    }
}

/// `I` products of one size over one rectangle: `each` gets a strip's first row and column and its squares of every product,
/// one below the other, strip by strip. A strip begins with the row, a multiple of 32, that `first` says for its column.
fn rectangle<const I: usize>(
    engine: Engine,
    rows: &Range<usize>,
    cols: &Range<usize>,
    products: [&[(&Left, RightPart)]; I],
    first: impl Fn(usize) -> usize,
    mut each: impl FnMut(usize, usize, [&mut [Sums]; I]),
) {
    let mut sums = Buffer::<Sums>::take(I * TASK_ROWS / DEPTH);
    configured(engine, || {
        for col in cols.clone().step_by(DEPTH) {
            let row = first(col).clamp(rows.start, rows.end.next_multiple_of(DEPTH));
            let block = Block { rows: rows.end.saturating_sub(row), cols: DEPTH.min(cols.end - col) };
            let squares = tiles(block.rows, DEPTH);
            let mut parts = sums.chunks_exact_mut(TASK_ROWS / DEPTH);
            let strips = products.map(|terms| {
                let part = parts.next().unwrap_or_default();
                if squares > 0 {
                    strip(engine, part, false, terms, row, col, &block);
                }
                &mut part[..squares]
            });
            each(row, col, strips);
        }
    });
}

/// Every row of a strip is wanted.
fn all_rows(_: usize) -> usize {
    0
}

/// The rectangles of a matrix, in the order of their columns, then rows.
struct Rectangles {
    size: [usize; 2],
    height: usize,
    width: usize,
}

impl Rectangles {
    /// For so many products. Without any a band across is what memory likes best.
    fn of([rows, cols]: [usize; 2], products: usize) -> Rectangles {
        let [height, width] = if products == 0 { [DEPTH, cols.max(1)] } else { [TASK_ROWS, TASK_COLS] };
        Rectangles { size: [rows, cols], height, width }
    }

    fn len(&self) -> usize {
        self.size[0].div_ceil(self.height) * self.size[1].div_ceil(self.width)
    }

    fn get(&self, i: usize) -> (Range<usize>, Range<usize>) {
        let down = self.size[0].div_ceil(self.height);
        let (row, col) = (i % down * self.height, i / down * self.width);
        (row..self.size[0].min(row + self.height), col..self.size[1].min(col + self.width))
    }

    fn iter(&self) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
        (0..self.len()).map(|i| self.get(i))
    }

    fn map<T: Send>(&self, work: impl Fn(Range<usize>, Range<usize>) -> T + Sync) -> Vec<T> {
        let work = |i: usize| {
            let (rows, cols) = self.get(i);
            work(rows, cols)
        };
        if self.size[0] * self.size[1] < pack::PARALLEL || rayon::current_num_threads() == 1 {
            (0..self.len()).map(work).collect()
        } else {
            (0..self.len()).into_par_iter().map(work).collect()
        }
    }
}

/// A product's sums, a strip of 32 columns after the other: `each` gets what `begin` made for the rectangle, the strip's
/// first row and column and its squares, one below the other.
pub fn strips<T: Send>(
    engine: Engine,
    size: [usize; 2],
    terms: &[(&Left, RightPart)],
    begin: impl Fn(&Range<usize>) -> T + Sync,
    each: impl Fn(&mut T, usize, usize, &[Sums]) + Sync,
) -> Vec<Rectangle<T>> {
    check(engine, size, terms);
    Rectangles::of(size, 1).map(|rows, cols| {
        let mut made = begin(&rows);
        rectangle(engine, &rows, &cols, [terms], all_rows, |row, col, [squares]| each(&mut made, row, col, squares));
        Rectangle { rows, made }
    })
}

/// Squares of a product's sums, in this thread; of a column those from row `first` on, a multiple of 32.
pub fn visit(
    engine: Engine,
    size: [usize; 2],
    terms: &[(&Left, RightPart)],
    first: impl Fn(usize) -> usize,
    mut each: impl FnMut(usize, usize, &mut Square),
) {
    check(engine, size, terms);
    for (rows, cols) in Rectangles::of(size, 1).iter() {
        rectangle(engine, &rows, &cols, [terms], &first, |row, col, [squares]| {
            for (i, Sums(square)) in squares.iter_mut().enumerate() {
                each(row + i * DEPTH, col, square);
            }
        });
    }
}

/// `N` matrices `[rows, cols]`, packed as left sides: `values` gets a square's first row and column and `N` squares, of
/// which the first `I` hold the products' sums, and works out all of them; what lies beyond the matrices may hold anything.
pub fn fused<const I: usize, const N: usize>(
    engine: Engine,
    size: [usize; 2],
    products: [&[(&Left, RightPart)]; I],
    values: impl Fn(usize, usize, [&mut Square; N]) + Sync,
) -> [Left; N] {
    products.iter().for_each(|terms| check(engine, size, terms));
    let mut made = [(); N].map(|()| Left::room(size[0], size[1]));
    let targets = made.each_mut().map(Target::new);
    Rectangles::of(size, I)
        .map(|rows, cols| packed_rectangle(engine, [&rows, &cols], products, &targets, all_rows, &values));
    made
}

/// As [`fused`], in this thread; squares of a column before row `first`, a multiple of 32, are zeros.
pub fn fused_here<const I: usize, const N: usize>(
    engine: Engine,
    size: [usize; 2],
    products: [&[(&Left, RightPart)]; I],
    first: impl Fn(usize) -> usize,
    mut values: impl FnMut(usize, usize, [&mut Square; N]),
) -> [Left; N] {
    products.iter().for_each(|terms| check(engine, size, terms));
    let mut made = [(); N].map(|()| Left::room(size[0], size[1]));
    let targets = made.each_mut().map(Target::new);
    for (rows, cols) in Rectangles::of(size, I).iter() {
        packed_rectangle(engine, [&rows, &cols], products, &targets, &first, &mut values);
    }
    made
}

/// One rectangle of [`fused`] or [`fused_here`].
fn packed_rectangle<const I: usize, const N: usize>(
    engine: Engine,
    [rows, cols]: [&Range<usize>; 2],
    products: [&[(&Left, RightPart)]; I],
    targets: &[Target; N],
    first: impl Fn(usize) -> usize,
    mut values: impl FnMut(usize, usize, [&mut Square; N]),
) {
    const { assert!(I <= N) };
    let wide = avx512::available();
    let mut more = Buffer::<Sums>::take(N - I);
    rectangle(engine, rows, cols, products, first, |row, col, mut sums| {
        for above in (rows.start..row.min(rows.end)).step_by(DEPTH) {
            for target in targets {
                // SAFETY: as below.
                #[expect(unsafe_code, reason = "tiles of one buffer go to different threads")]
                unsafe {
                    target.store_zeros(above, col);
                }
            }
        }
        for row in (row..rows.end).step_by(DEPTH) {
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
                // SAFETY: each square belongs to one rectangle, and the matrices outlive the rectangles' tasks.
                #[expect(unsafe_code, reason = "tiles of one buffer go to different threads")]
                unsafe {
                    target.store(row, col, square, wide);
                }
            }
        }
    });
}

/// `left · x` for each left `[rows, n]`, row-major `[rows, cols]`, with `x` `[n, cols]` as it was packed for products from
/// the left: its tiles are turned into right ones 32 columns at a time.
pub fn over_rows(engine: Engine, lefts: &[&Left], x: &Left) -> Vec<Vec<f32>> {
    let cols = x.depth;
    let strips: Vec<Vec<Vec<f32>>> = (0..tiles(cols, DEPTH))
        .into_par_iter()
        .map(|c| {
            let right = turned_columns(x, c);
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

/// Adds `left · x` to `out`, `[strips of 32 columns, rows, 32]`, in this thread; `x` as in [`over_rows`].
pub fn add_over_rows(engine: Engine, left: &Left, x: &Left, out: &mut [f32]) {
    for (c, out) in out.chunks_mut(left.rows * DEPTH).enumerate().take(tiles(x.depth, DEPTH)) {
        product(engine, false, out, DEPTH, true, &[(left, turned_columns(x, c).all())]);
    }
}

/// A packed left side as a right side.
pub fn turned(x: &Left) -> Right {
    let columns: Vec<Right> = (0..tiles(x.depth, DEPTH)).into_par_iter().map(|c| turned_columns(x, c)).collect();
    let panel = tiles(x.rows, DEPTH) * TILE;
    let mut lines = Buffer::take(tiles(x.depth, TILE) * panel);
    for (two, columns) in lines.chunks_mut(2 * panel).zip(&columns) {
        two.copy_from_slice(&columns.lines[..two.len()]);
    }
    Right { lines, depth: x.rows, cols: x.depth }
}

/// 32 columns of a packed left side as a right side.
fn turned_columns(x: &Left, c: usize) -> Right {
    let (n, wide) = (x.rows, avx512::available());
    let depth_tiles = tiles(n, DEPTH);
    let mut right =
        Right { lines: Buffer::take(2 * depth_tiles * TILE), depth: n, cols: DEPTH.min(x.depth - c * DEPTH) };
    let (low, high) = right.lines.split_at_mut(depth_tiles * TILE);
    let halves = low.chunks_exact_mut(TILE / 2).zip(high.chunks_exact_mut(TILE / 2));
    for (tile, (low, high)) in halves.enumerate() {
        let rows = x.tile(tile, c).unwrap_or(&[ZERO; TILE]);
        pack::half_right_tile(rows, 0, wide, low);
        pack::half_right_tile(rows, 1, wide, high);
    }
    right
}

/// All rows of `left · right`, 32 values a row.
fn rows_of_strip(engine: Engine, left: &Left, right: &Right) -> Vec<f32> {
    let mut out = vec![0.0; left.rows * DEPTH];
    product(engine, false, &mut out, DEPTH, false, &[(left, right.all())]);
    out
}
