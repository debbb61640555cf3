//! One way to write a product for both computing types: operands are packed for bfloat16 and merely viewed in float32.
//! Sums are float32 in both, in an order that the number of threads does not change.

use super::FlexMatrix;
use super::bf16::{self, DEPTH, Engine, Square};
use super::blocks::{self, BlockMatrix};
use super::buffer::Buffer;
use super::codes::{self, CodesPart};
use super::kernels::{Threads, View, matmul};
use super::strips::{self, Strips};
use rayon::prelude::*;
use std::ops::Range;

/// What the matrix products compute in. Norms, softmax and the adapter's masters are float32 in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compute {
    F32,
    /// Float32 for writing: a row's bits do not depend on the rows beside it. No backward pass.
    Strips,
    Bf16(Engine),
}

/// The left side, `[rows, depth]`.
#[derive(Debug)]
pub(super) enum Left<'a> {
    F32 {
        view: View<'a>,
        rows: usize,
        depth: usize,
    },
    /// Row-major.
    Owned {
        data: Buffer,
        rows: usize,
        depth: usize,
    },
    Bf16(bf16::Left),
}

/// The right side, `[depth, cols]`.
#[derive(Debug)]
pub(super) enum Right<'a> {
    F32 {
        view: View<'a>,
        cols: usize,
    },
    /// Row-major.
    Owned {
        data: Buffer,
        cols: usize,
    },
    Strips(Strips),
    Bf16(bf16::Right),
}

/// A right side, or its first depths and columns.
#[derive(Clone, Copy)]
pub(super) enum Part<'a> {
    F32 {
        view: View<'a>,
        cols: usize,
    },
    Strips(&'a Strips),
    Bf16(bf16::RightPart<'a>),
    /// A frozen matrix, decoded where it is multiplied.
    Codes(CodesPart<'a>),
    /// A frozen matrix, for which the left side is rounded.
    Blocks(&'a BlockMatrix),
}

impl<'a> Part<'a> {
    /// Some of its columns, from a multiple of a tile's on.
    pub(super) fn columns(self, columns: Range<usize>) -> Part<'a> {
        match self {
            Part::F32 { view, .. } => {
                let data = view.data.get(columns.start * view.col_stride..).unwrap_or(&[]);
                Part::F32 { view: View { data, ..view }, cols: columns.len() }
            }
            Part::Bf16(right) => Part::Bf16(right.columns(columns.start, columns.len())),
            Part::Strips(_) | Part::Codes(_) | Part::Blocks(_) => unreachable!("they are multiplied whole"),
        }
    }
}

impl Compute {
    /// `x` is row-major `[rows, depth]`, rows `stride` apart.
    pub(super) fn left_rows(self, x: &[f32], stride: usize, rows: usize, depth: usize) -> Left<'_> {
        match self {
            Compute::F32 | Compute::Strips => Left::F32 { view: View::rows(x, stride), rows, depth },
            Compute::Bf16(_) => Left::Bf16(bf16::Left::from_rows(x, stride, rows, depth)),
        }
    }

    /// The transpose of `x`, which is `[depth, rows]`.
    pub(super) fn left_columns(self, x: &[f32], stride: usize, rows: usize, depth: usize) -> Left<'_> {
        match self {
            Compute::F32 | Compute::Strips => Left::F32 { view: View::transposed(x, stride), rows, depth },
            Compute::Bf16(_) => Left::Bf16(bf16::Left::from_columns(x, stride, rows, depth)),
        }
    }

    /// `b` is row-major `[depth, cols]`.
    pub(super) fn right_rows(self, b: &[f32], stride: usize, depth: usize, cols: usize) -> Right<'_> {
        match self {
            Compute::F32 => Right::F32 { view: View::rows(b, stride), cols },
            Compute::Strips => Right::Strips(Strips::from_rows(b, stride, depth, cols)),
            Compute::Bf16(_) => Right::Bf16(bf16::Right::from_rows(b, stride, depth, cols)),
        }
    }

    /// The transpose of `b`, which is `[cols, depth]`.
    pub(super) fn right_columns(self, b: &[f32], stride: usize, depth: usize, cols: usize) -> Right<'_> {
        match self {
            Compute::F32 => Right::F32 { view: View::transposed(b, stride), cols },
            Compute::Strips => Right::Strips(Strips::from_columns(b, stride, depth, cols)),
            Compute::Bf16(_) => Right::Bf16(bf16::Right::from_columns(b, stride, depth, cols)),
        }
    }

    /// `N` matrices `[rows, cols]` as left sides that `values` works out square by square, the first `I` of them from the
    /// sums of a product, as [`bf16::fused`] says.
    pub(super) fn fused<const I: usize, const N: usize>(
        self,
        size: [usize; 2],
        products: [&[(&Left, Part)]; I],
        values: impl Fn(usize, usize, [&mut Square; N]) + Sync,
    ) -> [Left<'static>; N] {
        if products.iter().any(|terms| terms.iter().any(|(_, right)| matches!(right, Part::Codes(_)))) {
            // Codes are decoded by columns, into sums that are complete when the squares are worked out.
            let sums: [Buffer; I] = self.sums(Threads::All, size, products);
            return self.fused_numbers(size, [], |row, col, mut squares: [&mut Square; N]| {
                for (sums, square) in sums.iter().zip(&mut squares) {
                    copy(sums, size[1], row, col, square);
                }
                values(row, col, squares);
            });
        }
        self.fused_numbers(size, products, values)
    }

    /// [`Compute::fused`] without codes.
    fn fused_numbers<const I: usize, const N: usize>(
        self,
        size: [usize; 2],
        products: [&[(&Left, Part)]; I],
        values: impl Fn(usize, usize, [&mut Square; N]) + Sync,
    ) -> [Left<'static>; N] {
        if let Compute::Bf16(engine) = self {
            let products = products.map(packed);
            return bf16::fused(engine, size, products.each_ref().map(Vec::as_slice), values).map(Left::Bf16);
        }
        let mut made = self.sums(Threads::All, size, products);
        bands(&mut made, size[1]).into_par_iter().enumerate().for_each(|(y, mut band)| {
            work_band::<I, N>(y * DEPTH, &mut band, size[1], &values);
        });
        made.map(|data| Left::Owned { data, rows: size[0], depth: size[1] })
    }

    /// As [`Compute::fused`], in this thread; squares of a column before row `first`, a multiple of 32, are zeros.
    pub(super) fn fused_here<const I: usize, const N: usize>(
        self,
        size: [usize; 2],
        products: [&[(&Left, Part)]; I],
        first: impl Fn(usize) -> usize,
        mut values: impl FnMut(usize, usize, [&mut Square; N]),
    ) -> [Left<'static>; N] {
        if let Compute::Bf16(engine) = self {
            let products = products.map(packed);
            return bf16::fused_here(engine, size, products.each_ref().map(Vec::as_slice), first, values)
                .map(Left::Bf16);
        }
        let mut made = self.sums(Threads::One, size, products);
        for (y, mut band) in bands(&mut made, size[1]).into_iter().enumerate() {
            work_band::<I, N>(y * DEPTH, &mut band, size[1], |row, col, mut squares: [&mut Square; N]| {
                if row < first(col) {
                    squares.iter_mut().for_each(|square| square.as_flattened_mut().fill(0.0));
                } else {
                    values(row, col, squares);
                }
            });
        }
        made.map(|data| Left::Owned { data, rows: size[0], depth: size[1] })
    }

    /// Squares of a product's sums, in this thread; of a column those from row `first` on, a multiple of 32.
    pub(super) fn visit(
        self,
        size: [usize; 2],
        terms: &[(&Left, Part)],
        first: impl Fn(usize) -> usize,
        mut each: impl FnMut(usize, usize, &mut Square),
    ) {
        match self {
            Compute::Bf16(engine) => bf16::visit(engine, size, &packed(terms), first, each),
            Compute::F32 | Compute::Strips => {
                let [sums] = self.sums::<1, 1>(Threads::One, size, [terms]);
                let mut square = [[0f32; DEPTH]; DEPTH];
                for row in (0..size[0]).step_by(DEPTH) {
                    for col in (0..size[1]).step_by(DEPTH).filter(|col| row >= first(*col)) {
                        copy(&sums, size[1], row, col, &mut square);
                        each(row, col, &mut square);
                    }
                }
            }
        }
    }

    /// Room for `N` matrices, the first of them the products.
    fn sums<const I: usize, const N: usize>(
        self,
        threads: Threads,
        [rows, cols]: [usize; 2],
        products: [&[(&Left, Part)]; I],
    ) -> [Buffer; N] {
        let mut made = [(); N].map(|()| Buffer::take(rows * cols));
        for (terms, out) in products.into_iter().zip(&mut made) {
            self.product(threads, out, cols, false, terms);
        }
        made
    }

    /// What [`Compute::fused`] made as a right side.
    pub(super) fn right(self, made: Left<'static>) -> Right<'static> {
        match made {
            Left::Bf16(left) => Right::Bf16(bf16::turned(&left)),
            Left::Owned { data, depth, .. } => Right::Owned { data, cols: depth },
            Left::F32 { .. } => unreachable!("a view of somebody else's matrix"),
        }
    }

    /// `left · x` for each left `[rows, n]`, row-major `[rows, cols]`; `x` `[n, cols]` is what other products take as their
    /// left side.
    pub(super) fn over_rows(self, lefts: &[&Left], x: &Left) -> Vec<Vec<f32>> {
        match (self, x) {
            (Compute::Bf16(engine), Left::Bf16(x)) => {
                let lefts: Vec<&bf16::Left> = lefts.iter().map(|left| left.packed()).collect();
                bf16::over_rows(engine, &lefts, x)
            }
            _ => {
                let (x, n, cols) = x.view();
                let product = |left: &&Left| {
                    let (left, rows, _) = left.view();
                    let mut out = vec![0f32; rows * cols];
                    matmul([rows, n, cols], &mut out, cols, false, left, x, 1.0, Threads::All);
                    out
                };
                lefts.iter().map(product).collect()
            }
        }
    }

    /// Adds `left · x` to `out`, `[strips of 32 columns, rows, 32]`, in this thread; `x` as in [`Compute::over_rows`].
    pub(super) fn add_over_rows(self, left: &Left, x: &Left, out: &mut [f32]) {
        match (self, x) {
            (Compute::Bf16(engine), Left::Bf16(x)) => bf16::add_over_rows(engine, left.packed(), x, out),
            _ => {
                let ((x, n, cols), (left, rows, _)) = (x.view(), left.view());
                let mut sums = Buffer::take(rows * cols);
                matmul([rows, n, cols], &mut sums, cols, false, left, x, 1.0, Threads::One);
                for (c, out) in out.chunks_mut(rows * DEPTH).enumerate().take(cols.div_ceil(DEPTH)) {
                    for (out, sums) in out.chunks_exact_mut(DEPTH).zip(sums.chunks_exact(cols)) {
                        out.iter_mut().zip(&sums[c * DEPTH..]).for_each(|(out, x)| *out += x);
                    }
                }
            }
        }
    }

    /// `out[rows, cols] = Σ left · right`, added to `out` when `accumulate`.
    pub(super) fn product(
        self,
        threads: Threads,
        out: &mut [f32],
        stride: usize,
        accumulate: bool,
        terms: &[(&Left, Part)],
    ) {
        if terms.iter().any(|(_, right)| matches!(right, Part::Codes(_))) {
            return codes::product(self, threads, out, stride, accumulate, terms);
        }
        if terms.iter().any(|(_, right)| matches!(right, Part::Blocks(_))) {
            for (i, (left, right)) in terms.iter().enumerate() {
                let accumulate = accumulate || i > 0;
                let Part::Blocks(right) = right else {
                    self.product(threads, out, stride, accumulate, &[(left, *right)]);
                    continue;
                };
                let (view, rows, _) = left.view();
                blocks::product(threads, out, stride, accumulate, (view, rows), right);
            }
            return;
        }
        match self {
            Compute::F32 => {
                for (i, (left, right)) in terms.iter().enumerate() {
                    let Part::F32 { view: b, cols } = right else {
                        unreachable!("a bfloat16 operand in a float32 product")
                    };
                    let (a, rows, depth) = left.view();
                    matmul([rows, depth, *cols], out, stride, accumulate || i > 0, a, *b, 1.0, threads);
                }
            }
            Compute::Strips => {
                for (i, (left, right)) in terms.iter().enumerate() {
                    let Part::Strips(right) = right else { unreachable!("an operand that is not in strips") };
                    let (view, rows, _) = left.view();
                    strips::product(threads, out, stride, accumulate || i > 0, (view, rows), right);
                }
            }
            Compute::Bf16(engine) => {
                bf16::product(engine, threads == Threads::All, out, stride, accumulate, &packed(terms));
            }
        }
    }
}

fn packed<'a>(terms: &[(&'a Left, Part<'a>)]) -> Vec<(&'a bf16::Left, bf16::RightPart<'a>)> {
    let both = |(left, right): &(&'a Left, Part<'a>)| match right {
        Part::Bf16(right) => (left.packed(), *right),
        _ => unreachable!("a float32 operand, or codes, in a bfloat16 product"),
    };
    terms.iter().map(both).collect()
}

impl Left<'_> {
    fn packed(&self) -> &bf16::Left {
        match self {
            Left::Bf16(left) => left,
            Left::F32 { .. } | Left::Owned { .. } => unreachable!("a float32 operand in a bfloat16 product"),
        }
    }

    /// The matrix, its rows and its depth.
    fn view(&self) -> (View<'_>, usize, usize) {
        match self {
            Left::F32 { view, rows, depth } => (*view, *rows, *depth),
            Left::Owned { data, rows, depth } => (View::rows(data, *depth), *rows, *depth),
            Left::Bf16(_) => unreachable!("a bfloat16 operand in a float32 product"),
        }
    }

    /// The values of the square at (`row`, `col`) of a matrix that [`Compute::fused`] made, as far as it reaches.
    pub fn square(&self, row: usize, col: usize, out: &mut Square) {
        match self {
            Left::Bf16(left) => left.square(row, col, out),
            Left::Owned { data, depth, .. } => copy(data, *depth, row, col, out),
            Left::F32 { .. } => unreachable!("a view of somebody else's matrix"),
        }
    }
}

/// The rows of some matrices in bands of 32: `[band][matrix]`.
fn bands<const N: usize>(matrices: &mut [Buffer; N], cols: usize) -> Vec<Vec<&mut [f32]>> {
    let mut bands: Vec<Vec<&mut [f32]>> = Vec::new();
    for matrix in matrices {
        for (y, part) in matrix.chunks_mut((DEPTH * cols).max(1)).enumerate() {
            if y == bands.len() {
                bands.push(Vec::with_capacity(N));
            }
            bands[y].push(part);
        }
    }
    bands
}

/// Works out the squares of a band of row-major matrices in place; the first `I` hold sums.
fn work_band<const I: usize, const N: usize>(
    row: usize,
    band: &mut [&mut [f32]],
    cols: usize,
    mut values: impl FnMut(usize, usize, [&mut Square; N]),
) {
    let mut squares = [[[0f32; DEPTH]; DEPTH]; N];
    for col in (0..cols).step_by(DEPTH) {
        for (square, part) in squares.iter_mut().zip(&*band).take(I) {
            copy(part, cols, 0, col, square);
        }
        values(row, col, squares.each_mut());
        let width = DEPTH.min(cols - col);
        for (square, part) in squares.iter().zip(&mut *band) {
            for (from, to) in square.iter().zip(part.chunks_exact_mut(cols)) {
                copy_values(from, &mut to[col..], width);
            }
        }
    }
}

/// Copies the square at `(row, col)` of a row-major matrix, as far as the matrix reaches.
pub(super) fn copy(x: &[f32], cols: usize, row: usize, col: usize, square: &mut Square) {
    let width = DEPTH.min(cols - col);
    for (from, to) in x.chunks_exact(cols).skip(row).zip(square) {
        copy_values(&from[col..], to, width);
    }
}

/// The first `n` values, at most 32; a whole row without a call.
#[inline(always)]
fn copy_values(from: &[f32], to: &mut [f32], n: usize) {
    match (from.first_chunk::<DEPTH>(), to.first_chunk_mut::<DEPTH>()) {
        (Some(from), Some(to)) if n == DEPTH => *to = *from,
        _ => to[..n].copy_from_slice(&from[..n]),
    }
}

impl Right<'_> {
    pub fn all(&self) -> Part<'_> {
        match self {
            Right::F32 { view, cols } => Part::F32 { view: *view, cols: *cols },
            Right::Owned { data, cols } => Part::F32 { view: View::rows(data, *cols), cols: *cols },
            Right::Strips(right) => Part::Strips(right),
            Right::Bf16(right) => Part::Bf16(right.all()),
        }
    }

    /// Some depths and columns; both ranges begin at a multiple of 32.
    pub fn part(&self, depths: Range<usize>, cols: Range<usize>) -> Part<'_> {
        match (self, self.all()) {
            (Right::Bf16(right), _) => Part::Bf16(right.part(depths, cols)),
            (_, Part::F32 { view: View { data, row_stride, col_stride }, .. }) => {
                let data = &data[depths.start * row_stride + cols.start * col_stride..];
                Part::F32 { view: View { data, row_stride, col_stride }, cols: cols.len() }
            }
            _ => unreachable!("a right side is packed or a view"),
        }
    }
}

impl FlexMatrix {
    /// For `[n, in]` on the left.
    pub(super) fn forward(&self, n_out: usize) -> Part<'_> {
        match self {
            FlexMatrix::F32 { wt, .. } => Part::F32 { view: View::rows(wt, n_out), cols: n_out },
            FlexMatrix::Bf16 { forward, .. } => Part::Bf16(forward.all()),
            FlexMatrix::Strips(strips) => Part::Strips(strips),
            FlexMatrix::Codes { codes, .. } => Part::Codes(CodesPart { codes, forward: true }),
            FlexMatrix::Blocks { matrix, .. } => Part::Blocks(matrix),
        }
    }

    /// For `[n, out]` on the left, in the backward pass.
    pub(super) fn backward(&self, n_in: usize) -> Part<'_> {
        match self {
            FlexMatrix::F32 { w, .. } => Part::F32 { view: View::rows(w, n_in), cols: n_in },
            FlexMatrix::Bf16 { backward: Some(right), .. } => Part::Bf16(right.all()),
            FlexMatrix::Bf16 { backward: None, .. } | FlexMatrix::Strips(_) | FlexMatrix::Blocks { .. } => {
                unreachable!("a gradient flows through a matrix that was frozen for inference")
            }
            FlexMatrix::Codes { codes, .. } => Part::Codes(CodesPart { codes, forward: false }),
        }
    }

    pub(super) fn compute(&self) -> Compute {
        match self {
            FlexMatrix::F32 { .. } => Compute::F32,
            FlexMatrix::Strips(_) => Compute::Strips,
            FlexMatrix::Bf16 { engine, .. } => Compute::Bf16(*engine),
            FlexMatrix::Codes { compute, .. } | FlexMatrix::Blocks { compute, .. } => *compute,
        }
    }
}
