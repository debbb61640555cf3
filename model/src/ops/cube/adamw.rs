//! AdamW in one pass over a parameter and its moments, and the sums of squares that clipping asks for, of many gradients at once.

use super::buffer::{UNITS, arg, dims, for_each, for_rows, send};
use super::pointwise::cube_sum;
use crate::ops::update::Update;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// The formula of [`Update::of`], in place. `by` holds beta1, beta2, 1 − beta1, 1 − beta2, size, keep, correction2, epsilon, scale.
#[cube(launch_unchecked)]
fn adamw_kernel(value: &mut [f32], first: &mut [f32], second: &mut [f32], grad: &[f32], by: &[f32], n: u32) {
    if ABSOLUTE_POS < n as usize {
        let grad = grad[ABSOLUTE_POS] * by[8];
        let m = by[0] * first[ABSOLUTE_POS] + by[2] * grad;
        let v = by[1] * second[ABSOLUTE_POS] + by[3] * grad * grad;
        first[ABSOLUTE_POS] = m;
        second[ABSOLUTE_POS] = v;
        value[ABSOLUTE_POS] = value[ABSOLUTE_POS] * by[5] - by[4] * m / (v.sqrt() / by[6] + by[7]);
    }
}

/// All four have one shape; the first three are written, and nobody else may read them meanwhile.
pub(super) fn adamw([value, first, second]: [&CubeTensor; 3], grad: &CubeTensor, by: &Update) {
    let n: usize = dims(value).iter().product();
    let Update { beta1, beta2, rest1, rest2, size, keep, correction2, epsilon, scale } = *by;
    let by = send(&value.device, &[beta1, beta2, rest1, rest2, size, keep, correction2, epsilon, scale], [1, 9]);
    let (count, dim) = for_each(n);
    // SAFETY: four matrices of one shape, and units past their end do nothing.
    unsafe {
        adamw_kernel::launch_unchecked(
            &value.client,
            count,
            dim,
            arg(value),
            arg(first),
            arg(second),
            arg(grad),
            arg(&by),
            n as u32,
        )
    };
}

/// One cube sums the squares of `x` into `out[slot]`, in one order.
#[cube(launch_unchecked)]
fn squares_kernel(x: &[f32], out: &mut [f32], n: u32, slot: u32) {
    let mut sum = 0.0f32;
    for i in range_stepped(UNIT_POS, n, UNITS as u32) {
        sum += x[i as usize] * x[i as usize];
    }
    let sum = cube_sum(sum);
    if UNIT_POS == 0 {
        out[slot as usize] = sum;
    }
}

/// Writes the sum of the squares of `x` to `out[slot]`.
pub(super) fn squares(x: &CubeTensor, out: &CubeTensor, slot: usize) {
    let n: usize = dims(x).iter().product();
    let (count, dim) = for_rows(1);
    // SAFETY: reads below `n`, and the caller gives a slot inside `out`.
    unsafe { squares_kernel::launch_unchecked(&x.client, count, dim, arg(x), arg(out), n as u32, slot as u32) };
}
