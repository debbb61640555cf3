//! One way to write a product for both computing types: operands are packed for bfloat16 and merely viewed in float32.
//! Sums are float32 in both, in an order that the number of threads does not change.

use super::FlexMatrix;
use super::bf16::{self, DEPTH, Engine, Sides, Square};
use super::buffer::Buffer;
use super::codes::{self, CodesPart};
use super::kernels::{Threads, View, matmul};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// What the matrix products compute in. Norms, softmax and the adapter's masters are float32 in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compute {
    F32,
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
        data: Arc<Buffer>,
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
        depth: usize,
        cols: usize,
    },
    /// Row-major.
    Owned {
        data: Arc<Buffer>,
        cols: usize,
    },
    Bf16(bf16::Right),
}

/// A right side, or its first depths and columns.
#[derive(Clone, Copy)]
pub(super) enum Part<'a> {
    F32 {
        view: View<'a>,
        cols: usize,
    },
    Bf16(bf16::RightPart<'a>),
    /// A frozen matrix, decoded where it is multiplied.
    Codes(CodesPart<'a>),
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
            Part::Codes(_) => unreachable!("codes are decoded by columns"),
        }
    }
}

impl Compute {
    /// `x` is row-major `[rows, depth]`, rows `stride` apart.
    pub(super) fn left_rows(self, x: &[f32], stride: usize, rows: usize, depth: usize) -> Left<'_> {
        match self {
            Compute::F32 => Left::F32 { view: View::rows(x, stride), rows, depth },
            Compute::Bf16(_) => Left::Bf16(bf16::Left::from_rows(x, stride, rows, depth)),
        }
    }

    /// The transpose of `x`, which is `[depth, rows]`.
    pub(super) fn left_columns(self, x: &[f32], stride: usize, rows: usize, depth: usize) -> Left<'_> {
        match self {
            Compute::F32 => Left::F32 { view: View::transposed(x, stride), rows, depth },
            Compute::Bf16(_) => Left::Bf16(bf16::Left::from_columns(x, stride, rows, depth)),
        }
    }

    /// `b` is row-major `[depth, cols]`.
    pub(super) fn right_rows(self, b: &[f32], stride: usize, depth: usize, cols: usize) -> Right<'_> {
        match self {
            Compute::F32 => Right::F32 { view: View::rows(b, stride), depth, cols },
            Compute::Bf16(_) => Right::Bf16(bf16::Right::from_rows(b, stride, depth, cols)),
        }
    }

    /// The transpose of `b`, which is `[cols, depth]`.
    pub(super) fn right_columns(self, b: &[f32], stride: usize, depth: usize, cols: usize) -> Right<'_> {
        match self {
            Compute::F32 => Right::F32 { view: View::transposed(b, stride), depth, cols },
            Compute::Bf16(_) => Right::Bf16(bf16::Right::from_columns(b, stride, depth, cols)),
        }
    }

    /// `N` matrices `[rows, cols]` that `values` works out square by square, as [`bf16::squares`] says.
    pub(super) fn squares<const N: usize>(
        self,
        rows: usize,
        cols: usize,
        sides: [Sides; N],
        values: impl Fn(usize, usize, &mut [Square; N]) + Sync,
    ) -> [(Option<Left<'static>>, Option<Right<'static>>); N] {
        if let Compute::Bf16(_) = self {
            return bf16::squares(rows, cols, sides, values)
                .map(|(left, right)| (left.map(Left::Bf16), right.map(Right::Bf16)));
        }
        let mut made = [(); N].map(|()| Buffer::take(rows * cols));
        let mut bands: Vec<Vec<&mut [f32]>> = (0..rows.div_ceil(DEPTH)).map(|_| Vec::with_capacity(N)).collect();
        for matrix in &mut made {
            for (band, part) in bands.iter_mut().zip(matrix.chunks_mut(DEPTH * cols)) {
                band.push(part);
            }
        }
        bands.into_par_iter().enumerate().for_each(|(y, mut band)| {
            let mut squares = [[[0f32; DEPTH]; DEPTH]; N];
            for x in (0..cols).step_by(DEPTH) {
                values(y * DEPTH, x, &mut squares);
                let width = DEPTH.min(cols - x);
                for (square, part) in squares.iter().zip(&mut band) {
                    for (from, to) in square.iter().zip(part.chunks_exact_mut(cols)) {
                        to[x..x + width].copy_from_slice(&from[..width]);
                    }
                }
            }
        });
        made.map(|data| {
            let data = Arc::new(data);
            let left = Left::Owned { data: data.clone(), rows, depth: cols };
            (Some(left), Some(Right::Owned { data, cols }))
        })
    }

    /// Both sides of a row-major matrix.
    pub(super) fn both(self, x: &[f32], rows: usize, cols: usize) -> (Left<'_>, Right<'_>) {
        match self {
            Compute::F32 => (self.left_rows(x, cols, rows, cols), self.right_rows(x, cols, rows, cols)),
            Compute::Bf16(_) => {
                let [(left, right)] =
                    self.squares(rows, cols, [Sides::Both], |r, c, [square]| copy(x, cols, r, c, square));
                match (left, right) {
                    (Some(left), Some(right)) => (left, right),
                    _ => unreachable!("both sides were asked for"),
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
        match self {
            Compute::F32 => {
                for (i, (left, right)) in terms.iter().enumerate() {
                    let Part::F32 { view: b, cols } = right else {
                        unreachable!("a bfloat16 operand in a float32 product")
                    };
                    let (a, rows, depth) = match left {
                        Left::F32 { view, rows, depth } => (*view, *rows, *depth),
                        Left::Owned { data, rows, depth } => (View::rows(data, *depth), *rows, *depth),
                        Left::Bf16(_) => unreachable!("a bfloat16 operand in a float32 product"),
                    };
                    matmul([rows, depth, *cols], out, stride, accumulate || i > 0, a, *b, 1.0, threads);
                }
            }
            Compute::Bf16(engine) => {
                let terms: Vec<(&bf16::Left, bf16::RightPart)> = terms
                    .iter()
                    .map(|(left, right)| match (left, right) {
                        (Left::Bf16(left), Part::Bf16(right)) => (left, *right),
                        _ => unreachable!("a float32 operand in a bfloat16 product"),
                    })
                    .collect();
                bf16::product(engine, threads == Threads::All, out, stride, accumulate, &terms);
            }
        }
    }
}

/// Copies the square at `(row, col)` of a row-major matrix, as far as the matrix reaches.
pub(super) fn copy(x: &[f32], cols: usize, row: usize, col: usize, square: &mut Square) {
    let width = DEPTH.min(cols - col);
    for (from, to) in x.chunks_exact(cols).skip(row).zip(square) {
        to[..width].copy_from_slice(&from[col..col + width]);
    }
}

impl Right<'_> {
    pub fn all(&self) -> Part<'_> {
        match self {
            Right::F32 { view, cols, .. } => Part::F32 { view: *view, cols: *cols },
            Right::Owned { data, cols } => Part::F32 { view: View::rows(data, *cols), cols: *cols },
            Right::Bf16(right) => Part::Bf16(right.all()),
        }
    }

    /// The first `depth` depths and `cols` columns.
    pub fn first(&self, depth: usize, cols: usize) -> Part<'_> {
        match self {
            Right::F32 { view, depth: most, cols: most_cols } => {
                debug_assert!(depth <= *most && cols <= *most_cols);
                Part::F32 { view: *view, cols }
            }
            Right::Owned { data, cols: most_cols } => Part::F32 { view: View::rows(data, *most_cols), cols },
            Right::Bf16(right) => Part::Bf16(right.first(depth, cols)),
        }
    }
}

impl FlexMatrix {
    /// For `[n, in]` on the left.
    pub(super) fn forward(&self, n_out: usize) -> Part<'_> {
        match self {
            FlexMatrix::F32 { wt, .. } => Part::F32 { view: View::rows(wt, n_out), cols: n_out },
            FlexMatrix::Bf16 { forward, .. } => Part::Bf16(forward.all()),
            FlexMatrix::Codes { codes, .. } => Part::Codes(CodesPart { codes, forward: true }),
        }
    }

    /// For `[n, out]` on the left, in the backward pass.
    pub(super) fn backward(&self, n_in: usize) -> Part<'_> {
        match self {
            FlexMatrix::F32 { w, .. } => Part::F32 { view: View::rows(w, n_in), cols: n_in },
            FlexMatrix::Bf16 { backward: Some(right), .. } => Part::Bf16(right.all()),
            FlexMatrix::Bf16 { backward: None, .. } => {
                unreachable!("a gradient flows through a matrix that was frozen for inference")
            }
            FlexMatrix::Codes { codes, .. } => Part::Codes(CodesPart { codes, forward: false }),
        }
    }

    pub(super) fn compute(&self) -> Compute {
        match self {
            FlexMatrix::F32 { .. } => Compute::F32,
            FlexMatrix::Bf16 { engine, .. } => Compute::Bf16(*engine),
            FlexMatrix::Codes { compute, .. } => *compute,
        }
    }
}
