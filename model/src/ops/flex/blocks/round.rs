//! Activations as ggml multiplies them with a quantized matrix: int8 codes, 32 to a scale that is a float16 number.

use super::super::shared::Field;
use super::super::simd::vectorised;
use super::BLOCK;
use half::f16;

/// Rows of activations in codes.
pub struct Rounded {
    pub rows: usize,
    pub depth: usize,
    codes: Field<i8>,
    /// `[rows, depth / 32]`.
    scales: Field<f32>,
    /// Sums of a block's codes, `[rows, depth / 32]`.
    sums: Field<i32>,
}

/// The same to be read.
#[derive(Clone, Copy)]
pub struct RoundedRows<'a> {
    pub rows: usize,
    pub depth: usize,
    pub codes: &'a [i8],
    pub scales: &'a [f32],
    pub sums: &'a [i32],
}

impl Rounded {
    /// Room for rows of `depth` values, a multiple of 32.
    pub fn room(rows: usize, depth: usize) -> Rounded {
        assert!(depth.is_multiple_of(BLOCK), "activations in front of blocks are whole blocks");
        let blocks = rows * depth / BLOCK;
        let (codes, scales, sums) = (Field::new(0, rows * depth), Field::new(0.0, blocks), Field::new(0, blocks));
        Rounded { rows, depth, codes, scales, sums }
    }

    /// Rounds row `i`.
    ///
    /// # Safety
    /// No other thread reads or writes this row before the next barrier.
    #[expect(unsafe_code, reason = "threads write to rows of their own")]
    pub unsafe fn row(&self, i: usize, x: &[f32]) {
        assert!(i < self.rows && x.len() == self.depth, "a row of the matrix");
        let blocks = self.depth / BLOCK;
        // SAFETY: as promised by the caller.
        let (codes, scales, sums) = unsafe {
            (
                self.codes.part(i * self.depth, self.depth),
                self.scales.part(i * blocks, blocks),
                self.sums.part(i * blocks, blocks),
            )
        };
        round(x, codes, scales, sums);
    }

    /// What was rounded.
    ///
    /// # Safety
    /// No thread writes a row before the next barrier.
    #[expect(unsafe_code, reason = "threads read what others wrote before a barrier")]
    pub unsafe fn read(&self) -> RoundedRows<'_> {
        // SAFETY: as promised by the caller.
        let (codes, scales, sums) = unsafe { (self.codes.all(), self.scales.all(), self.sums.all()) };
        RoundedRows { rows: self.rows, depth: self.depth, codes, scales, sums }
    }
}

impl RoundedRows<'_> {
    pub fn blocks(&self) -> usize {
        self.depth / BLOCK
    }
}

/// As ggml's `quantize_row_q8_0` for x86 has it: codes are rounded by 127 / max, halves to even, before the scale becomes
/// float16. A scale beyond float16's reach is held at its end instead of becoming infinite.
fn round(x: &[f32], codes: &mut [i8], scales: &mut [f32], sums: &mut [i32]) {
    round_blocks(x.as_chunks::<BLOCK>().0, codes.as_chunks_mut::<BLOCK>().0, scales, sums);
    for scale in scales {
        *scale = f16::from_f32(scale.min(f16::MAX.to_f32())).to_f32();
    }
}

vectorised! {
    fn round_blocks(x: &[[f32; BLOCK]], codes: &mut [[i8; BLOCK]], scales: &mut [f32], sums: &mut [i32]) {
        for (((x, codes), scale), sum) in x.iter().zip(codes).zip(scales).zip(sums) {
            let mut lanes = [0f32; 16];
            for j in 0..16 {
                let (a, b) = (x[j].abs(), x[j + 16].abs());
                lanes[j] = if a > b { a } else { b };
            }
            let max = lanes.iter().fold(0f32, |most, x| if *x > most { *x } else { most });
            *scale = max / 127.0;
            let inverse = if max == 0.0 { 0.0 } else { 127.0 / max };
            let mut total = 0;
            for j in 0..BLOCK {
                // Adding 1.5 * 2^23 rounds to the nearest integer, halves to even, and leaves it in the lowest bits.
                let code = (x[j] * inverse + 12_582_912.0).to_bits() as i8;
                codes[j] = code;
                total += i32::from(code);
            }
            *sum = total;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::flex::kernels::tests::values;

    #[test]
    fn codes_scales_and_sums_are_those_of_the_plain_formula() {
        let (rows, depth) = (3, 96);
        let mut x = values(rows * depth, 3);
        x[32..64].fill(0.0);
        // Halves: 127 is the largest, so that the factor is 1.
        x[64..68].copy_from_slice(&[127.0, 2.5, -3.5, 0.5]);
        let rounded = Rounded::room(rows, depth);
        for i in 0..rows {
            #[expect(unsafe_code, reason = "one thread")]
            // SAFETY: this thread is alone.
            unsafe {
                rounded.row(i, &x[i * depth..][..depth])
            };
        }
        #[expect(unsafe_code, reason = "one thread")]
        // SAFETY: as above.
        let read = unsafe { rounded.read() };
        for (block, x) in x.chunks(BLOCK).enumerate() {
            let max = x.iter().fold(0f32, |most, x| most.max(x.abs()));
            let factor = if max == 0.0 { 0.0 } else { 127.0 / max };
            let codes: Vec<i8> = x.iter().map(|x| (x * factor).round_ties_even() as i8).collect();
            assert_eq!(read.codes[block * BLOCK..][..BLOCK], codes);
            assert_eq!(read.scales[block], f16::from_f32(max / 127.0).to_f32());
            assert_eq!(read.sums[block], codes.iter().map(|c| i32::from(*c)).sum::<i32>());
        }
        assert_eq!(read.codes[64..68], [127, 2, -4, 0]);
    }
}
