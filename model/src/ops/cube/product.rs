//! Matrix products: large ones by cubek's kernels, which the device's tuner chooses among, and the low-rank update by a kernel
//! that adds to what is there.

use super::buffer::{arg, cubes, dims};
use super::with_float;
use burn::tensor::DType;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// The same values with rows and columns changed about; nothing is copied.
pub(super) fn transposed(t: &CubeTensor) -> CubeTensor {
    let mut t = t.clone();
    t.meta.swap(0, 1);
    t
}

/// `a · b`, counted in float32 and written as `dtype`.
pub(super) fn product(a: CubeTensor, b: CubeTensor, dtype: DType) -> CubeTensor {
    match matmul(a, b, None, MatmulStrategy::default(), dtype) {
        Ok(c) => c,
        Err(e) => unreachable!("a matrix product without a kernel: {e:?}"),
    }
}

/// Sides of the square of outputs that a cube makes.
const TILE: usize = 16;

/// `y += t · b`, where `t` is `[n, r]`, and `b` is `[width, r]` (`by_rows`) or `[r, width]`.
#[cube(launch_unchecked)]
fn add_low_rank_kernel<F: Float, B: Float>(
    t: &[F],
    b: &[B],
    y: &mut [F],
    n: u32,
    width: u32,
    r: u32,
    #[comptime] by_rows: bool,
) {
    let across = width.div_ceil(TILE as u32);
    let row = (CUBE_POS as u32 / across) * TILE as u32 + UNIT_POS_Y;
    let first_column = (CUBE_POS as u32 % across) * TILE as u32;
    let column = first_column + UNIT_POS_X;
    let mut left = Shared::<[f32]>::new_slice(TILE * TILE);
    let mut right = Shared::<[f32]>::new_slice(TILE * TILE);
    let here = (UNIT_POS_Y * TILE as u32 + UNIT_POS_X) as usize;
    let mut sum = 0.0f32;
    for k in range_stepped(0u32, r, TILE as u32) {
        let mut value = 0.0f32;
        if row < n && k + UNIT_POS_X < r {
            value = f32::cast_from(t[(row * r + k + UNIT_POS_X) as usize]);
        }
        left[here] = value;
        // `right` is `[k, column]`, so that neighbours read neighbours below.
        let mut value = 0.0f32;
        if comptime!(by_rows) {
            if first_column + UNIT_POS_Y < width && k + UNIT_POS_X < r {
                value = f32::cast_from(b[((first_column + UNIT_POS_Y) * r + k + UNIT_POS_X) as usize]);
            }
            right[(UNIT_POS_X * TILE as u32 + UNIT_POS_Y) as usize] = value;
        } else {
            if column < width && k + UNIT_POS_Y < r {
                value = f32::cast_from(b[((k + UNIT_POS_Y) * width + column) as usize]);
            }
            right[here] = value;
        }
        sync_cube();
        #[unroll]
        for i in 0..TILE {
            sum += left[UNIT_POS_Y as usize * TILE + i] * right[i * TILE + UNIT_POS_X as usize];
        }
        sync_cube();
    }
    if row < n && column < width {
        let at = (row * width + column) as usize;
        y[at] = F::cast_from(f32::cast_from(y[at]) + sum);
    }
}

/// `y += t · b`; nobody else may hold `y`. `by_rows`: `b` is `[width, r]`, and otherwise `[r, width]`.
pub(super) fn add_low_rank(y: &CubeTensor, t: &CubeTensor, b: &CubeTensor, by_rows: bool) {
    let ([n, width], [_, r]) = (dims(y), dims(t));
    let count = cubes(n.div_ceil(TILE) * width.div_ceil(TILE));
    let dim = CubeDim::new_2d(TILE as u32, TILE as u32);
    // SAFETY: every access is behind a check against `n`, `width` and `r`.
    with_float!(y.dtype, F => with_float!(b.dtype, B => unsafe {
        add_low_rank_kernel::launch_unchecked::<F, B>(
            &y.client, count.clone(), dim, arg(t), arg(b), arg(y), n as u32, width as u32, r as u32, by_rows,
        )
    }));
}
