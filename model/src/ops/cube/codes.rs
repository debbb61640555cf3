//! Codes of a frozen matrix on a GPU ([`crate::ops::codes`]): decoded into the products' type in front of a large product, and
//! inside the product where its input has few rows, as when an answer is written token by token.

use super::buffer::{UNITS, arg, dims, for_each, for_rows, room, send};
use super::pointwise::cube_sum;
use super::with_float;
use crate::ops::codes::{Absmax, Codes, DYNAMIC, Form, INT8_BLOCK, NF4, NF4_BLOCK, SCALES_BLOCK};
use burn::tensor::DType;
use burn_cubecl::CubeDevice;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use half::f16;

const INT8: u32 = 0;
const NF4_PLAIN: u32 = 1;
const NF4_DOUBLE: u32 = 2;
const BF16: u32 = 3;

/// From so many rows on a product decodes its matrix first.
pub(super) const FEW: usize = 8;

/// A matrix `[n_out, n_in]` in codes.
#[derive(Clone, Debug)]
pub(crate) struct CubeCodes {
    pub n_out: usize,
    pub n_in: usize,
    kind: u32,
    /// Four bytes of codes a number.
    codes: CubeTensor,
    /// One scale a block; of double-quantized scales the offset, then one for each [`SCALES_BLOCK`] of them.
    scales: CubeTensor,
    /// Codes of double-quantized scales, four a number.
    scale_codes: CubeTensor,
    /// What the sixteen codes of NF4 stand for, then the 256 of a scale.
    table: CubeTensor,
}

/// Four bytes a number, the first in its lowest bits.
fn words(bytes: impl Iterator<Item = u8>) -> Vec<u32> {
    let bytes: Vec<u8> = bytes.collect();
    let word = |four: &[u8]| four.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte));
    bytes.chunks(4).map(word).collect()
}

impl CubeCodes {
    pub(super) fn new(device: &CubeDevice, codes: &Codes) -> CubeCodes {
        let none = || vec![0u32];
        let (kind, own, scales, scale_codes) = match &codes.form {
            Form::Int8 { codes, scales } => {
                let scales = scales.iter().map(|bits| f16::from_bits(*bits).to_f32()).collect();
                (INT8, words(codes.iter().map(|code| code.cast_unsigned())), scales, none())
            }
            Form::Nf4 { codes, absmax: Absmax::Plain(scales) } => {
                (NF4_PLAIN, words(codes.iter().copied()), scales.clone(), none())
            }
            Form::Nf4 { codes, absmax: Absmax::Double { codes: of_scales, absmax, offset } } => {
                let scales = std::iter::once(*offset).chain(absmax.iter().copied()).collect();
                (NF4_DOUBLE, words(codes.iter().copied()), scales, words(of_scales.iter().copied()))
            }
            Form::Bf16 { bits } => (BF16, words(bits.iter().flat_map(|bits| bits.to_le_bytes())), vec![0.0], none()),
        };
        let table: Vec<f32> = NF4.iter().chain(&DYNAMIC).copied().collect();
        let sent = |values: &[u32]| send(device, values, [1, values.len()]);
        CubeCodes {
            n_out: codes.n_out,
            n_in: codes.n_in,
            kind,
            codes: sent(&own),
            scales: send::<f32>(device, &scales, [1, scales.len()]),
            scale_codes: sent(&scale_codes),
            table: send(device, &table, [1, table.len()]),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        [&self.codes, &self.scales, &self.scale_codes].map(|t| 4 * dims(t)[1]).into_iter().sum()
    }

    /// Every value.
    pub(super) fn decode(&self, dtype: DType) -> CubeTensor {
        let n = self.n_out * self.n_in;
        let out = room(&self.codes, [self.n_out, self.n_in], dtype);
        let (count, dim) = for_each(n);
        // SAFETY: units past the end do nothing; the codes and scales were made for `n` values.
        with_float!(dtype, F => unsafe {
            decode_kernel::launch_unchecked::<F>(
                &out.client, count, dim, arg(&self.codes), arg(&self.scales), arg(&self.scale_codes),
                arg(&self.table), arg(&out), n as u32, self.kind,
            )
        });
        out
    }

    /// Rows `indices`, `[1, n]` of `u32`.
    pub(super) fn rows(&self, indices: &CubeTensor, dtype: DType) -> CubeTensor {
        let [_, n] = dims(indices);
        let out = room(&self.codes, [n, self.n_in], dtype);
        let (count, dim) = for_each(n * self.n_in);
        // SAFETY: units past the end do nothing, and the caller vouches for the indices.
        with_float!(dtype, F => unsafe {
            rows_kernel::launch_unchecked::<F>(
                &out.client, count, dim, arg(&self.codes), arg(&self.scales), arg(&self.scale_codes),
                arg(&self.table), arg(indices), arg(&out), (n * self.n_in) as u32, self.n_in as u32, self.kind,
            )
        });
        out
    }

    /// `x Wᵀ` of at most [`FEW`] rows.
    pub(super) fn product_of_few(&self, x: &CubeTensor, dtype: DType) -> CubeTensor {
        let [n, n_in] = dims(x);
        debug_assert!(n <= FEW && n_in == self.n_in);
        let out = room(x, [n, self.n_out], dtype);
        let (count, dim) = for_rows(self.n_out);
        // SAFETY: a cube for each row of the matrix; `x` holds `n · n_in` values and `out` `n · n_out`.
        with_float!(x.dtype, A => with_float!(dtype, B => unsafe {
            few_kernel::launch_unchecked::<A, B>(
                &out.client, count.clone(), dim, arg(x), arg(&self.codes), arg(&self.scales),
                arg(&self.scale_codes), arg(&self.table), arg(&out), self.n_out as u32, n_in as u32, n, self.kind,
            )
        }));
        out
    }
}

/// The byte `i` of numbers of four.
#[cube]
fn byte(words: &[u32], i: u32) -> u32 {
    (words[(i / 4) as usize] >> ((i % 4) * 8)) & 255
}

/// The value number `i`, counted row by row.
#[cube]
fn value(codes: &[u32], scales: &[f32], scale_codes: &[u32], table: &[f32], i: u32, #[comptime] kind: u32) -> f32 {
    if comptime!(kind == INT8) {
        let code = byte(codes, i);
        let code = f32::cast_from(code) - select(code > 127, 256.0f32, 0.0f32);
        code * scales[(i / INT8_BLOCK as u32) as usize]
    } else if comptime!(kind == BF16) {
        let two = byte(codes, 2 * i) | (byte(codes, 2 * i + 1) << 8);
        f32::reinterpret(two << 16)
    } else {
        let two = byte(codes, i / 2);
        let code = select(i % 2 == 0, two >> 4, two & 15);
        let block = i / NF4_BLOCK as u32;
        if comptime!(kind == NF4_PLAIN) {
            table[code as usize] * scales[block as usize]
        } else {
            let scale = table[16 + byte(scale_codes, block) as usize];
            let scale = scale * scales[1 + (block / SCALES_BLOCK as u32) as usize] + scales[0];
            table[code as usize] * scale
        }
    }
}

#[cube(launch_unchecked)]
fn decode_kernel<F: Float>(
    codes: &[u32],
    scales: &[f32],
    scale_codes: &[u32],
    table: &[f32],
    out: &mut [F],
    n: u32,
    #[comptime] kind: u32,
) {
    if ABSOLUTE_POS < n as usize {
        out[ABSOLUTE_POS] = F::cast_from(value(codes, scales, scale_codes, table, ABSOLUTE_POS as u32, kind));
    }
}

#[cube(launch_unchecked)]
fn rows_kernel<F: Float>(
    codes: &[u32],
    scales: &[f32],
    scale_codes: &[u32],
    table: &[f32],
    indices: &[u32],
    out: &mut [F],
    n: u32,
    width: u32,
    #[comptime] kind: u32,
) {
    if ABSOLUTE_POS < n as usize {
        let at = ABSOLUTE_POS as u32;
        let i = indices[(at / width) as usize] * width + at % width;
        out[ABSOLUTE_POS] = F::cast_from(value(codes, scales, scale_codes, table, i, kind));
    }
}

/// A cube a row of the matrix: each value is decoded once, for all rows of `x`.
#[cube(launch_unchecked)]
fn few_kernel<A: Float, B: Float>(
    x: &[A],
    codes: &[u32],
    scales: &[f32],
    scale_codes: &[u32],
    table: &[f32],
    out: &mut [B],
    n_out: u32,
    n_in: u32,
    #[comptime] rows: usize,
    #[comptime] kind: u32,
) {
    let column = CUBE_POS as u32;
    if column < n_out {
        let mut sums = Array::<f32>::new(rows);
        #[unroll]
        for row in 0..rows {
            sums[row] = 0.0f32;
        }
        for i in range_stepped(UNIT_POS, n_in, UNITS as u32) {
            let weight = value(codes, scales, scale_codes, table, column * n_in + i, kind);
            #[unroll]
            for row in 0..rows {
                sums[row] += weight * f32::cast_from(x[row * n_in as usize + i as usize]);
            }
        }
        #[unroll]
        for row in 0..rows {
            let sum = cube_sum(sums[row]);
            if UNIT_POS == 0 {
                out[row * n_out as usize + column as usize] = B::cast_from(sum);
            }
        }
    }
}
