//! A frozen matrix on a GPU: in the type that products compute in, or as codes that a kernel decodes in front of each product.

use super::Compute;
use super::buffer::{arg, contiguous, dims, for_each, room, send};
use super::codes::{CubeCodes, FEW};
use super::pointwise::cast_scaled;
use super::product::{product, transposed};
use super::with_float;
use crate::ops::codes::Codes;
use burn::tensor::DType;
use burn_cubecl::CubeDevice;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// `[out, in]`.
#[derive(Clone, Debug)]
pub(crate) enum CubeMatrix {
    Dense(Box<CubeTensor>),
    Codes(Box<CubeCodes>),
}

impl CubeMatrix {
    pub(super) fn new(device: &CubeDevice, compute: Compute, data: &[f32], n_out: usize, n_in: usize) -> Self {
        let sent = send(device, data, [n_out, n_in]);
        CubeMatrix::Dense(Box::new(cast_scaled(&sent, compute.dtype(), 1.0)))
    }

    pub(super) fn in_codes(device: &CubeDevice, codes: &Codes) -> Self {
        CubeMatrix::Codes(Box::new(CubeCodes::new(device, codes)))
    }

    /// Rows and columns.
    pub(super) fn shape(&self) -> [usize; 2] {
        match self {
            CubeMatrix::Dense(values) => dims(values),
            CubeMatrix::Codes(codes) => [codes.n_out, codes.n_in],
        }
    }

    /// All values, as `dtype`.
    pub(super) fn dense(&self, dtype: DType) -> CubeTensor {
        match self {
            CubeMatrix::Dense(values) => cast_scaled(values, dtype, 1.0),
            CubeMatrix::Codes(codes) => codes.decode(dtype),
        }
    }

    /// `x Wᵀ`, where `x` has the type of the products.
    pub(super) fn forward(&self, x: &CubeTensor, dtype: DType) -> CubeTensor {
        match self {
            CubeMatrix::Codes(codes) if dims(x)[0] <= FEW => codes.product_of_few(x, dtype),
            _ => contiguous(product(x.clone(), transposed(&self.dense(x.dtype)), dtype)),
        }
    }

    /// `dy W`, where `dy` has the type of the products.
    pub(super) fn backward(&self, dy: &CubeTensor, dtype: DType) -> CubeTensor {
        contiguous(product(dy.clone(), self.dense(dy.dtype), dtype))
    }

    /// Memory taken on the device.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            CubeMatrix::Dense(values) => dims(values).iter().product::<usize>() * values.dtype.size(),
            CubeMatrix::Codes(codes) => codes.bytes(),
        }
    }

    /// Rows `indices`, `[1, n]` of `u32`, in float32.
    pub(super) fn rows(&self, indices: &CubeTensor) -> CubeTensor {
        match self {
            CubeMatrix::Dense(values) => gather(values, indices, DType::F32),
            CubeMatrix::Codes(codes) => codes.rows(indices, DType::F32),
        }
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
