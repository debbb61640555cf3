//! A frozen matrix on a GPU: in the type that products compute in, or as codes that a kernel decodes in front of each product.

use super::Compute;
use super::buffer::{arg, contiguous, dims, for_each, room, send};
use super::pointwise::cast_scaled;
use super::with_float;
use burn::tensor::DType;
use burn_cubecl::CubeDevice;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// `[out, in]`.
#[derive(Clone, Debug)]
pub(crate) struct CubeMatrix {
    values: CubeTensor,
}

impl CubeMatrix {
    pub(super) fn new(device: &CubeDevice, compute: Compute, data: &[f32], n_out: usize, n_in: usize) -> Self {
        let sent = send(device, data, [n_out, n_in]);
        CubeMatrix { values: contiguous(cast_scaled(&sent, compute.dtype(), 1.0)) }
    }

    /// The values as products take them.
    pub(super) fn dense(&self) -> CubeTensor {
        self.values.clone()
    }

    /// Memory taken on the device.
    pub(crate) fn bytes(&self) -> usize {
        let [n_out, n_in] = dims(&self.values);
        n_out * n_in * self.values.dtype.size()
    }

    /// Rows `indices`, `[1, n]` of `u32`, in float32.
    pub(super) fn rows(&self, indices: &CubeTensor) -> CubeTensor {
        gather(&self.values, indices, DType::F32)
    }
}

/// `y[i] = x[indices[i]]`, row by row.
#[cube(launch_unchecked)]
fn gather_kernel<A: Float, B: Float>(x: &[A], indices: &[u32], y: &mut [B], n: u32, width: u32) {
    if ABSOLUTE_POS < n as usize {
        let width = width as usize;
        let from = indices[ABSOLUTE_POS / width] as usize;
        y[ABSOLUTE_POS] = B::cast_from(f32::cast_from(x[from * width + ABSOLUTE_POS % width]));
    }
}

/// Rows of `x`, in another type; every index has to be below its number of rows.
pub(super) fn gather(x: &CubeTensor, indices: &CubeTensor, dtype: DType) -> CubeTensor {
    let ([_, width], [_, n]) = (dims(x), dims(indices));
    let y = room(x, [n, width], dtype);
    let (count, dim) = for_each(n * width);
    // SAFETY: units past the end do nothing, and the caller vouches for the indices.
    with_float!(x.dtype, A => with_float!(dtype, B => unsafe {
        gather_kernel::launch_unchecked::<A, B>(
            &x.client, count.clone(), dim, arg(x), arg(indices), arg(&y), (n * width) as u32, width as u32,
        )
    }));
    y
}
