//! The arithmetic under the ops: matrix products through the `gemm` crate, and a vectorisable exponential. Every function
//! gives the same bits whatever the number of threads.

use super::simd::vectorised;
use gemm::Parallelism;
use rayon::prelude::*;

/// A view of a row-major or transposed matrix: element `(i, j)` is `data[i * rows + j * cols]`.
#[derive(Clone, Copy, Debug)]
pub struct View<'a, T = f32> {
    pub data: &'a [T],
    pub row_stride: usize,
    pub col_stride: usize,
}

impl<'a, T> View<'a, T> {
    /// A row-major matrix whose rows begin `stride` apart.
    pub fn rows(data: &'a [T], stride: usize) -> Self {
        View { data, row_stride: stride, col_stride: 1 }
    }

    /// The transpose of a row-major matrix with that stride.
    pub fn transposed(data: &'a [T], stride: usize) -> Self {
        View { data, row_stride: 1, col_stride: stride }
    }
}

fn last_index(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * row_stride + (cols - 1) * col_stride + 1 }
}

/// A number that products are made of.
pub trait Float: Copy + 'static {
    const ONE: Self;
}

impl Float for f32 {
    const ONE: f32 = 1.0;
}

impl Float for f64 {
    const ONE: f64 = 1.0;
}

/// Whether a product may use all threads or runs inside a parallel section already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    All,
    One,
}

/// Depths that are summed in one chain, at most. Longer chains round more, by the square root of their length, and a model
/// whose residual stream has a few huge channels passes that on a thousandfold: on SmolLM2-135M, gradient norms were three
/// to five times further from float64 in one chain of 1,536 than in six of these. The step takes the same time.
const CHAIN: usize = 256;

/// `out[m, n] = scale · a[m, k] b[k, n]`, added to `out` when `accumulate`; `out` is row-major with `out_stride`.
#[expect(clippy::too_many_arguments, reason = "three matrices, their sizes and the mode are what a product is")]
pub fn matmul<T: Float>(
    [m, k, n]: [usize; 3],
    out: &mut [T],
    out_stride: usize,
    accumulate: bool,
    a: View<T>,
    b: View<T>,
    scale: T,
    threads: Threads,
) {
    assert!(out.len() >= last_index(m, n, out_stride, 1), "product's output is too short");
    assert!(a.data.len() >= last_index(m, k, a.row_stride, a.col_stride), "product's left side is too short");
    assert!(b.data.len() >= last_index(k, n, b.row_stride, b.col_stride), "product's right side is too short");
    if m == 0 || n == 0 {
        return;
    }
    let chain = k.div_ceil(k.div_ceil(CHAIN).max(1)).next_multiple_of(16);
    if k > chain {
        for first in (0..k).step_by(chain) {
            let a = View { data: &a.data[first * a.col_stride..], ..a };
            let b = View { data: &b.data[first * b.row_stride..], ..b };
            let size = [m, chain.min(k - first), n];
            matmul(size, out, out_stride, accumulate || first > 0, a, b, scale, threads);
        }
        return;
    }
    let threads = match threads {
        Threads::All if rayon::current_num_threads() > 1 => Parallelism::Rayon(0),
        _ => Parallelism::None,
    };
    // SAFETY: the asserts above bound every element that gemm may touch, for all three matrices, and `out` is
    // exclusively borrowed.
    #[expect(unsafe_code, reason = "the gemm crate takes raw pointers and strides")]
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            out_stride as isize,
            accumulate,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            T::ONE,
            scale,
            false,
            false,
            false,
            threads,
        );
    }
}

/// `[rows, cols]` -> `[cols, rows]`, in tiles that stay in cache.
pub fn transpose(data: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    const TILE: usize = 32;
    let mut out = vec![0.0; rows * cols];
    out.par_chunks_mut(rows.max(1) * TILE).enumerate().for_each(|(t, chunk)| {
        let first = t * TILE;
        let width = chunk.len() / rows;
        for row_tile in (0..rows).step_by(TILE) {
            for c in 0..width {
                for r in row_tile..(row_tile + TILE).min(rows) {
                    chunk[c * rows + r] = data[r * cols + first + c];
                }
            }
        }
    });
    out
}

/// `e^x` within 2 ulp for `x` in [-87, 88], clamped outside (Cephes). It belongs into [`vectorised`] loops: elsewhere a fused
/// multiply-add is a call.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.3, 88.0);
    // Adding 1.5 * 2^23 rounds to the nearest integer, and leaves it in the lowest bits. A cast to an integer would saturate,
    // which the compiler does number by number.
    let shifted = x.mul_add(std::f32::consts::LOG2_E, 12_582_912.0);
    let n = shifted - 12_582_912.0;
    let r = n.mul_add(2.121_944_4e-4, n.mul_add(-0.693_359_4, x));
    let p = 1.987_569_1e-4f32.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 5e-1);
    let y = p.mul_add(r * r, r) + 1.0;
    y * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

/// Dot product in 16 lanes: one fixed order of additions.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let (a16, a_rest) = a.as_chunks::<16>();
    let (b16, b_rest) = b.as_chunks::<16>();
    for (x, y) in a16.iter().zip(b16) {
        for j in 0..16 {
            lanes[j] += x[j] * y[j];
        }
    }
    let tail: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    lanes.iter().sum::<f32>() + tail
}

/// The largest of 32 values and `least`.
#[inline(always)]
pub fn max_of(row: &[f32; 32], least: f32) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    for j in 0..16 {
        lanes[j] = if row[j] > row[j + 16] { row[j] } else { row[j + 16] };
    }
    lanes.iter().fold(least, |a, &b| if a > b { a } else { b })
}

vectorised! {
    /// Turns `row` into `e^(x - max)` and returns `(max, sum)`.
    pub fn exp_row(row: &mut [f32]) -> (f32, f32) {
        let (chunks, rest) = row.as_chunks::<32>();
        let largest = chunks.iter().fold(f32::NEG_INFINITY, |max, chunk| max_of(chunk, max));
        let max = rest.iter().fold(largest, |a, &b| if a > b { a } else { b });
        for x in row.iter_mut() {
            *x = exp(*x - max);
        }
        let mut lanes = [0f32; 16];
        let (chunks, rest) = row.as_chunks::<16>();
        for chunk in chunks {
            for j in 0..16 {
                lanes[j] += chunk[j];
            }
        }
        (max, lanes.iter().sum::<f32>() + rest.iter().sum::<f32>())
    }
}

vectorised! {
    /// The largest value; negative infinity of none.
    pub fn largest(row: &[f32]) -> f32 {
        let (chunks, rest) = row.as_chunks::<32>();
        let largest = chunks.iter().fold(f32::NEG_INFINITY, |max, chunk| max_of(chunk, max));
        rest.iter().fold(largest, |a, &b| if a > b { a } else { b })
    }
}

vectorised! {
    /// `Σ e^(x - max)`.
    pub fn sum_of_exp(row: &[f32], max: f32) -> f32 {
        let mut lanes = [0f32; 16];
        let (chunks, rest) = row.as_chunks::<16>();
        for chunk in chunks {
            for j in 0..16 {
                lanes[j] += exp(chunk[j] - max);
            }
        }
        lanes.iter().sum::<f32>() + rest.iter().map(|x| exp(x - max)).sum::<f32>()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// From -1 to 1, the same for the same seed.
    pub fn values(n: usize, seed: u64) -> Vec<f32> {
        let mut z = seed | 1;
        (0..n)
            .map(|_| {
                z = z.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (z >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect()
    }

    #[test]
    fn exp_is_close_to_the_library() {
        let mut worst = 0f64;
        for i in -8600..8800 {
            let x = i as f32 / 100.0;
            let truth = (x as f64).exp();
            worst = worst.max((exp(x) as f64 / truth - 1.0).abs());
        }
        assert!(worst < 2.5e-7, "relative error {worst:e}");
        assert!(exp(-1e30) < 2e-38);
    }

    #[test]
    fn product_of_strided_views() {
        let a: Vec<f32> = (0..6).map(|x| x as f32).collect();
        let mut out = vec![1.0; 8];
        matmul([2, 3, 2], &mut out, 4, true, View::rows(&a, 3), View::transposed(&a, 3), 2.0, Threads::One);
        assert_eq!(out, [11.0, 29.0, 1.0, 1.0, 29.0, 101.0, 1.0, 1.0]);
    }

    /// Summed in chains: every depth once, and closer to the truth than one chain.
    #[test]
    fn a_deep_product_is_summed_in_chains() {
        for (m, k, n) in [(1, 257, 1), (3, 600, 5), (2, 1536, 33), (4, 4000, 2)] {
            let (a, b) = (values(m * k, 1), values(k * n, 2));
            let (mut out, mut ours, mut one_chain) = (vec![0.5; m * n], 0f64, 0f64);
            matmul([m, k, n], &mut out, n, true, View::rows(&a, k), View::rows(&b, n), 2.0, Threads::One);
            for i in 0..m {
                for j in 0..n {
                    let terms = (0..k).map(|d| (a[i * k + d], b[d * n + j]));
                    let exact = 0.5 + 2.0 * terms.clone().map(|(x, y)| f64::from(x) * f64::from(y)).sum::<f64>();
                    let chain = 0.5 + 2.0 * terms.fold(0f32, |sum, (x, y)| x.mul_add(y, sum));
                    let apart = f64::from(out[i * n + j]) - exact;
                    assert!(apart.abs() < 1e-4, "{m} x {k} x {n}: {apart:e}");
                    ours += apart.powi(2);
                    one_chain += (f64::from(chain) - exact).powi(2);
                }
            }
            assert!(
                m * n < 60 || ours < 0.5 * one_chain,
                "{m} x {k} x {n}: squares {ours:e}, of one chain {one_chain:e}"
            );
        }
    }

    #[test]
    fn transpose_of_odd_sizes() {
        let (r, c) = (37, 65);
        let data: Vec<f32> = (0..r * c).map(|x| x as f32).collect();
        let t = transpose(&data, r, c);
        for i in 0..r {
            for j in 0..c {
                assert_eq!(t[j * r + i], data[i * c + j]);
            }
        }
    }
}
