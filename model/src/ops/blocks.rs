//! A matrix as a GGUF file has it: quantized blocks, not expanded. What a kernel makes of them is the op set's business; here
//! they are read plainly.

use crate::gguf::{GgmlType, dequantize};
use half::f16;
use std::ops::Range;

/// A matrix `[n_out, n_in]` in ggml's blocks, row by row as the file has them.
#[derive(Clone, Debug, PartialEq)]
pub struct Blocks {
    pub ty: GgmlType,
    pub n_out: usize,
    pub n_in: usize,
    bytes: Vec<u8>,
}

impl Blocks {
    /// Whether there are kernels for rows of `n_in` values of this type.
    pub fn multiplied(ty: GgmlType, n_in: usize) -> bool {
        let known = matches!(ty, GgmlType::Q8_0 | GgmlType::Q5_0 | GgmlType::Q4_0 | GgmlType::IQ4_NL);
        known && n_in > 0 && n_in.is_multiple_of(ty.block_len())
    }

    /// `None` where there is no kernel for the type, the bytes are not the matrix's, or a scale is not a finite number.
    pub fn new(ty: GgmlType, bytes: Vec<u8>, n_out: usize, n_in: usize) -> Option<Blocks> {
        let expected = ty.bytes_for((n_out * n_in) as u64);
        if !Blocks::multiplied(ty, n_in) || expected != Some(bytes.len() as u64) {
            return None;
        }
        let scale = |block: &[u8]| f16::from_le_bytes([block[0], block[1]]);
        let finite = bytes.chunks_exact(ty.block_bytes()).all(|block| scale(block).is_finite());
        finite.then_some(Blocks { ty, n_out, n_in, bytes })
    }

    /// Some of its rows.
    pub fn rows(&self, rows: Range<usize>) -> Blocks {
        let width = self.row_bytes();
        let bytes = self.bytes[rows.start * width..rows.end * width].to_vec();
        Blocks { n_out: rows.len(), bytes, ..*self }
    }

    /// The blocks of one row.
    pub(crate) fn row(&self, i: usize) -> &[u8] {
        &self.bytes[i * self.row_bytes()..][..self.row_bytes()]
    }

    fn row_bytes(&self) -> usize {
        self.n_in / self.ty.block_len() * self.ty.block_bytes()
    }

    /// Every value, `[n_out, n_in]`.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.n_out * self.n_in];
        match dequantize(self.ty, &self.bytes, &mut out) {
            Ok(()) => out,
            Err(why) => unreachable!("blocks are whole, and of a type that is decoded: {why}"),
        }
    }
}
