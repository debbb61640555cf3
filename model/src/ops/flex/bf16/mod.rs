//! Matrix products in bfloat16 with float32 sums, on operands that were packed into tiles beforehand. A frozen weight is
//! packed once for both passes; an activation is packed once and read by every product that needs it.
//!
//! A tile is 16 lines of 64 bytes, what AMX loads in one instruction. On the left a line is one row's 32 values along the
//! depth; on the right it is one pair of depths for 16 columns, `(b[2d][j], b[2d+1][j])`. Missing rows, columns and depths
//! are zeros. Every output is summed in the order of the depths by one thread: the bits do not depend on the threads.

mod amx;
mod avx512;
mod fuse;
mod pack;
mod portable;

pub use fuse::{add_over_rows, fused, fused_here, over_rows, strips, turned, visit};
pub use pack::Square;

use super::buffer::Buffer;
use super::shared::Shared;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::OnceLock;

/// Rows of a left tile, and columns of a right one.
pub const TILE: usize = 16;
/// Depth of a tile.
pub const DEPTH: usize = 32;

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Line(pub [u16; DEPTH]);

const ZERO: Line = Line([0; DEPTH]);

/// A square of sums, aligned as the tiles are loaded and stored.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Sums(pub Square);

/// `[rows, depth]`, the activation side of a product.
#[derive(Clone, Debug)]
pub struct Left {
    lines: Buffer<Line>,
    pub rows: usize,
    pub depth: usize,
}

/// `[depth, cols]`, the side that is a weight, or an activation that plays its part.
#[derive(Clone, Debug)]
pub struct Right {
    lines: Buffer<Line>,
    pub depth: usize,
    pub cols: usize,
}

/// Which instructions multiply. They round alike but sum in different orders, so their results differ in the last bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Intel's matrix tiles (AMX-BF16).
    Amx,
    /// `vdpbf16ps` on 512 bits.
    Avx512,
    /// Plain Rust, for every machine; the reference of the other two.
    Portable,
}

impl Engine {
    /// The fastest that this processor and its kernel allow.
    pub fn best() -> Engine {
        static BEST: OnceLock<Engine> = OnceLock::new();
        *BEST.get_or_init(|| {
            if amx::available() {
                Engine::Amx
            } else if avx512::available() {
                Engine::Avx512
            } else {
                Engine::Portable
            }
        })
    }

    /// Whether bfloat16 beats float32 here: with AMX, or with AMD's `vdpbf16ps`. Intel's runs at half the rate of its
    /// float32 multiply-add (Sapphire Rapids: 1.2 against 4.9 instructions a nanosecond), so it gains nothing.
    pub fn pays() -> bool {
        match Engine::best() {
            Engine::Amx => true,
            Engine::Avx512 => avx512::fast(),
            Engine::Portable => false,
        }
    }

    /// Whether this machine can run it.
    pub fn available(self) -> bool {
        match self {
            Engine::Amx => amx::available(),
            Engine::Avx512 => avx512::available(),
            Engine::Portable => true,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Engine::Amx => "bf16 (AMX)",
            Engine::Avx512 => "bf16 (AVX-512)",
            Engine::Portable => "bf16 (portable)",
        }
    }
}

fn tiles(n: usize, size: usize) -> usize {
    n.div_ceil(size)
}

impl Left {
    fn depth_tiles(&self) -> usize {
        tiles(self.depth, DEPTH)
    }
}

/// The first depths and columns of a [`Right`].
#[derive(Clone, Copy, Debug)]
pub struct RightPart<'a> {
    lines: &'a [Line],
    /// Tiles from one panel to the next.
    panel: usize,
    pub depth: usize,
    pub cols: usize,
}

impl<'a> RightPart<'a> {
    /// `cols` columns from `start` on, which is a multiple of [`TILE`].
    pub fn columns(self, start: usize, cols: usize) -> RightPart<'a> {
        assert!(start.is_multiple_of(TILE) && start + cols <= self.cols, "columns of a part lie inside it");
        RightPart { lines: &self.lines[start / TILE * self.panel * TILE..], cols, ..self }
    }
}

impl Right {
    fn depth_tiles(&self) -> usize {
        tiles(self.depth, DEPTH)
    }

    /// Memory taken.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.lines)
    }

    pub fn all(&self) -> RightPart<'_> {
        self.part(0..self.depth, 0..self.cols)
    }

    /// Depths and columns in ranges that begin at a tile. A depth may end inside a tile where the left side's values from
    /// there on are zeros up to the tile's end.
    pub fn part(&self, depth: Range<usize>, cols: Range<usize>) -> RightPart<'_> {
        assert!(depth.end <= self.depth && cols.end <= self.cols, "a part is no larger than the whole");
        assert!(depth.start.is_multiple_of(DEPTH) && cols.start.is_multiple_of(TILE), "a part begins at a tile");
        let panel = self.depth_tiles();
        let first = (cols.start / TILE * panel + depth.start / DEPTH) * TILE;
        RightPart { lines: &self.lines[first..], panel, depth: depth.len(), cols: cols.len() }
    }

    /// The values of one column, `[depth]`: a row of the matrix that was packed transposed.
    pub fn column(&self, column: usize, out: &mut [f32]) {
        let (panel, lane) = (column / TILE, column % TILE);
        let lines = &self.lines[panel * self.depth_tiles() * TILE..][..self.depth_tiles() * TILE];
        for (pair, line) in out.chunks_mut(2).zip(lines) {
            for (x, bits) in pair.iter_mut().zip(&line.0[2 * lane..]) {
                *x = f32::from_bits((*bits as u32) << 16);
            }
        }
    }
}

/// The size of a task's rectangle.
struct Block {
    rows: usize,
    cols: usize,
}

/// Rows and columns that a task computes: its left tiles stay in L2, a right panel in L1.
const TASK_ROWS: usize = 256;
const TASK_COLS: usize = 192;

/// `out[m, n] = Σ left · right`, added to `out` when `accumulate`. All lefts have `m` rows, all rights `n` columns; each
/// pair has a depth of its own. `out` is row-major with `stride`; `parallel` false where the caller is one of many.
pub fn product(
    engine: Engine,
    parallel: bool,
    out: &mut [f32],
    stride: usize,
    accumulate: bool,
    terms: &[(&Left, RightPart)],
) {
    let Some((left, right)) = terms.first() else { return };
    let (m, n) = (left.rows, right.cols);
    if m == 0 || n == 0 {
        return;
    }
    check(engine, [m, n], terms);
    assert!(stride >= n && out.len() >= (m - 1) * stride + n, "product's output is too short");
    let (row_tasks, col_tasks) = (m.div_ceil(TASK_ROWS), n.div_ceil(TASK_COLS));
    let shared = Shared(out.as_mut_ptr());
    let task = |t: usize| {
        let (rows, cols) = (t % row_tasks * TASK_ROWS, t / row_tasks * TASK_COLS);
        let block = Block { rows: TASK_ROWS.min(m - rows), cols: TASK_COLS.min(n - cols) };
        // SAFETY: the asserts above bound every row and column of `out`; the tasks' rectangles are disjoint and `out` is
        // exclusively borrowed for as long as they run.
        #[expect(unsafe_code, reason = "disjoint rectangles of one matrix go to different threads")]
        unsafe {
            let out = shared.at(rows * stride + cols);
            match engine {
                Engine::Amx | Engine::Avx512 => {
                    by_strips(engine, (out, stride), accumulate, terms, [rows, cols], &block)
                }
                Engine::Portable => portable::rectangle(out, stride, accumulate, terms, rows, cols, &block),
            }
        }
    };
    let n_tasks = row_tasks * col_tasks;
    if !parallel || n_tasks == 1 || rayon::current_num_threads() == 1 {
        (0..n_tasks).for_each(task);
    } else {
        (0..n_tasks).into_par_iter().for_each(task);
    }
}

/// Panics unless the engine runs here and every term gives `[rows, cols]` and lies inside its operands.
fn check(engine: Engine, [rows, cols]: [usize; 2], terms: &[(&Left, RightPart)]) {
    // For AMX this is also what asks the system for the tile state.
    assert!(engine.available(), "this machine has no {}", engine.name());
    for (l, r) in terms {
        assert!(l.rows == rows && r.cols == cols && l.depth == r.depth, "the product's operands do not fit");
        let panels = tiles(cols, TILE);
        assert!(
            panels == 0 || r.lines.len() >= ((panels - 1) * r.panel + l.depth_tiles()) * TILE,
            "an operand is short"
        );
    }
}

/// Runs `work` with the engine's registers set up.
fn configured(engine: Engine, work: impl FnOnce()) {
    match engine {
        Engine::Amx => amx::configured(work),
        Engine::Avx512 | Engine::Portable => work(),
    }
}

/// A rectangle on an engine that sums in memory: the sums of 32 columns lie together, not a page apart as in `out`, until
/// they are complete.
///
/// # Safety
/// As [`portable::rectangle`], and the engine is available.
#[expect(unsafe_code, reason = "the output is a rectangle inside a matrix that other threads write to")]
unsafe fn by_strips(
    engine: Engine,
    (out, stride): (*mut f32, usize),
    accumulate: bool,
    terms: &[(&Left, RightPart)],
    [row, col]: [usize; 2],
    block: &Block,
) {
    let mut sums = Buffer::<Sums>::take(TASK_ROWS / DEPTH);
    configured(engine, || {
        for j in (0..block.cols).step_by(DEPTH) {
            let cols = (block.cols - j).min(DEPTH);
            let rows: *mut f32 = sums.as_mut_ptr().cast();
            // SAFETY: what is copied to and from `out` is the caller's rectangle, and `sums` has room for a task's rows.
            unsafe {
                if accumulate {
                    for i in 0..block.rows {
                        copy_row(out.add(i * stride + j), rows.add(i * DEPTH), cols);
                    }
                }
                fuse::strip(engine, &mut sums, accumulate, terms, row, col + j, &Block { rows: block.rows, cols });
                for i in 0..block.rows {
                    copy_row(rows.add(i * DEPTH), out.add(i * stride + j), cols);
                }
            }
        }
    });
}

/// Copies up to 32 values; a whole row without a call.
///
/// # Safety
/// Both lead to that many values and do not overlap.
#[inline(always)]
#[expect(unsafe_code, reason = "rows of a rectangle inside a matrix that other threads write to")]
unsafe fn copy_row(from: *const f32, to: *mut f32, n: usize) {
    type Row = [f32; DEPTH];
    // SAFETY: as promised by the caller.
    unsafe {
        if n == DEPTH {
            to.cast::<Row>().write_unaligned(from.cast::<Row>().read_unaligned());
        } else {
            std::ptr::copy_nonoverlapping(from, to, n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::kernels::tests::values;
    use super::*;
    use proptest::prelude::*;

    fn transposed(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
        (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
    }

    fn rounded(x: f32) -> f64 {
        f32::from_bits((pack::round(x) as u32) << 16) as f64
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Two terms, packed from rows and from columns, into a wider output that is added to: every engine gives the sum
        /// of the rounded operands' products, and touches nothing beside it.
        #[test]
        fn every_engine_gives_the_product_of_the_rounded_operands(
            m in 1usize..70, k in 1usize..90, n in 1usize..70, gap in 0usize..4, add: bool, seed: u64
        ) {
            let (a, b) = (values(m * k, seed), values(k * n, seed ^ 77));
            let (a_t, b_t) = (transposed(&a, m, k), transposed(&b, k, n));
            let [left] = fused(Engine::best(), [m, k], [], |row, col, [square]| {
                for (i, out) in square.iter_mut().enumerate().take(m - row) {
                    for (j, out) in out.iter_mut().enumerate().take(k - col) {
                        *out = a[(row + i) * k + col + j];
                    }
                }
            });
            let lefts = [Left::from_rows(&a, k, m, k), Left::from_columns(&a_t, m, m, k), left];
            let rights = [Right::from_rows(&b, n, k, n), Right::from_columns(&b_t, k, k, n)];
            prop_assert_eq!(&lefts[0].lines[..].iter().map(|l| l.0).collect::<Vec<_>>(), &lefts[1].lines[..].iter().map(|l| l.0).collect::<Vec<_>>());
            prop_assert_eq!(&lefts[0].lines[..].iter().map(|l| l.0).collect::<Vec<_>>(), &lefts[2].lines[..].iter().map(|l| l.0).collect::<Vec<_>>());
            prop_assert_eq!(&rights[0].lines[..].iter().map(|l| l.0).collect::<Vec<_>>(), &rights[1].lines[..].iter().map(|l| l.0).collect::<Vec<_>>());
            for engine in [Engine::Portable, Engine::Avx512, Engine::Amx].into_iter().filter(|e| e.available()) {
                let stride = n + gap;
                let mut out = vec![0.5f32; m * stride];
                product(engine, true, &mut out, stride, add, &[(&lefts[0], rights[0].all()), (&lefts[1], rights[1].all())]);
                for i in 0..m {
                    for j in 0..n {
                        let sum: f64 = (0..k).map(|d| rounded(a[i * k + d]) * rounded(b[d * n + j])).sum();
                        let want = 2.0 * sum + if add { 0.5 } else { 0.0 };
                        let got = out[i * stride + j] as f64;
                        prop_assert!((got - want).abs() < 2e-5 * (1.0 + k as f64).sqrt(), "{engine:?} [{i},{j}]: {got} for {want}");
                    }
                    for j in n..stride {
                        prop_assert_eq!(out[i * stride + j], 0.5);
                    }
                }
            }
        }

        /// What a product's sums become on the way, and what a sum over rows is, whatever the engine: as from the matrices.
        #[test]
        fn fused_products_and_sums_over_rows_are_those_of_the_plain_matrices(
            m in 1usize..300, k in 1usize..70, n in 1usize..230, r in 1usize..40, seed: u64
        ) {
            let (a, b, u) = (values(m * k, seed), values(k * n, seed ^ 77), values(m * r, seed ^ 5));
            let (left, right) = (Left::from_rows(&a, k, m, k), Right::from_rows(&b, n, k, n));
            for engine in [Engine::Portable, Engine::Avx512, Engine::Amx].into_iter().filter(|e| e.available()) {
                let mut plain = vec![0.0; m * n];
                product(engine, true, &mut plain, n, false, &[(&left, right.all())]);
                let [same, other] = fused(engine, [m, n], [&[(&left, right.all())]], |row, col, [sums, made]| {
                    for (i, (sums, made)) in sums.iter().zip(made).enumerate() {
                        for (j, (sum, made)) in sums.iter().zip(made).enumerate() {
                            *made = sum + ((row + i) * 7 + col + j) as f32;
                        }
                    }
                });
                let mut square = [[0.0; DEPTH]; DEPTH];
                for (made, more) in [(&same, 0.0), (&other, 1.0)] {
                    for row in (0..m).step_by(DEPTH) {
                        for col in (0..n).step_by(DEPTH) {
                            made.square(row, col, &mut square);
                            for i in row..m.min(row + DEPTH) {
                                for j in col..n.min(col + DEPTH) {
                                    let want = plain[i * n + j] + more * (i * 7 + j) as f32;
                                    prop_assert_eq!(square[i - row][j - col] as f64, rounded(want), "{:?} [{}, {}]", engine, i, j);
                                }
                            }
                        }
                    }
                }
                let by_rows = Left::from_columns(&u, r, r, m);
                let [got] = &over_rows(engine, &[&by_rows], &left)[..] else { panic!("one left side") };
                let mut sum = vec![0.25; r * k.next_multiple_of(DEPTH)];
                add_over_rows(engine, &by_rows, &left, &mut sum);
                for i in 0..r {
                    for j in 0..k {
                        prop_assert!((sum[j / DEPTH * r * DEPTH + i * DEPTH + j % DEPTH] - 0.25 - got[i * k + j]).abs() < 1e-5 * (1.0 + m as f32).sqrt());
                        let want: f64 = (0..m).map(|t| rounded(u[t * r + i]) * rounded(a[t * k + j])).sum();
                        prop_assert!((got[i * k + j] as f64 - want).abs() < 2e-5 * (1.0 + m as f64).sqrt());
                    }
                }
            }
        }

        /// A part is the product of the first depths and columns, whatever the rest holds.
        #[test]
        fn a_part_is_the_first_depths_and_columns(k in 1usize..100, n in 1usize..60, seed: u64) {
            let (depth, cols) = (1 + seed as usize % k, 1 + (seed >> 20) as usize % n);
            let (a, b) = (values(3 * depth.max(k), seed), values(k * n, seed ^ 5));
            let left = Left::from_rows(&a, depth, 3, depth);
            let (whole, exact) = (Right::from_rows(&b, n, k, n), Right::from_rows(&b, n, depth, cols));
            let (mut got, mut want) = (vec![0.0; 3 * cols], vec![0.0; 3 * cols]);
            product(Engine::best(), true, &mut got, cols, false, &[(&left, whole.part(0..depth, 0..cols))]);
            product(Engine::best(), true, &mut want, cols, false, &[(&left, exact.all())]);
            prop_assert_eq!(got, want);
            let (from_depth, from_col) = (depth / DEPTH * DEPTH, cols / TILE * TILE);
            if from_depth < k && from_col < n {
                let left = Left::from_rows(&a[..k - from_depth], k - from_depth, 1, k - from_depth);
                let exact = Right::from_rows(&b[from_depth * n + from_col..], n, k - from_depth, n - from_col);
                let (mut got, mut want) = (vec![0.0; n - from_col], vec![0.0; n - from_col]);
                product(Engine::best(), true, &mut got, n, false, &[(&left, whole.part(from_depth..k, from_col..n))]);
                product(Engine::best(), true, &mut want, n, false, &[(&left, exact.all())]);
                prop_assert_eq!(got, want);
            }
        }

        #[test]
        fn rounding_is_to_nearest_even_and_alike_in_vectors(values in proptest::collection::vec(any::<f32>(), 32)) {
            for x in &values {
                let bits = pack::round(*x);
                let back = f32::from_bits((bits as u32) << 16);
                if x.is_nan() {
                    prop_assert!(back.is_nan());
                } else if x.is_subnormal() {
                    prop_assert!(back == 0.0 && back.is_sign_negative() == x.is_sign_negative());
                } else if x.is_finite() && back.is_finite() {
                    let next = |step: i32| f32::from_bits(((bits as i32 + step) as u32) << 16);
                    let gap = (*x as f64 - back as f64).abs();
                    for neighbour in [next(1), next(-1)].into_iter().filter(|f| f.is_finite()) {
                        let other = (*x as f64 - neighbour as f64).abs();
                        prop_assert!(gap < other || (gap == other && bits & 1 == 0), "{x:e}");
                    }
                }
            }
            if avx512::available() {
                let line = avx512::line(&values);
                for (x, bits) in values.iter().zip(line.0) {
                    prop_assert_eq!(pack::round(*x), bits, "{}", x);
                }
            }
        }
    }
}
