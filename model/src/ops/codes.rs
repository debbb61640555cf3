//! A frozen matrix kept as codes, small numbers with one scale a block: what QLoRA trains over. Each code stands for one
//! float32 value, the same in both passes and on every device.

use half::{bf16, f16};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// How the frozen linear layers are kept while an adapter trains. The key is torchtune's, the types are bitsandbytes'.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QuantizeBase {
    /// As the products take them: float32 or bfloat16, packed for both passes.
    #[default]
    None,
    /// GGUF's Q8_0: 8.5 bits a weight.
    Int8,
    /// NormalFloat, with a float32 scale a block: 4.5 bits a weight.
    Nf4,
}

impl QuantizeBase {
    /// As a recipe writes it.
    pub fn name(self) -> &'static str {
        match self {
            QuantizeBase::None => "none",
            QuantizeBase::Int8 => "int8",
            QuantizeBase::Nf4 => "nf4",
        }
    }
}

impl std::fmt::Display for QuantizeBase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Values a block; blocks count along the matrix row by row, so the last of one row may reach into the next.
pub(crate) const INT8_BLOCK: usize = 32;
pub(crate) const NF4_BLOCK: usize = 64;

/// Sixteen quantiles of the normal distribution, scaled to [-1, 1]. Source: Dettmers et al. 2023, "QLoRA", appendix E, as
/// bitsandbytes 0.50 has them (`functional.py::get_4bit_type`).
pub const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The two values of a byte of NF4 codes; the high half is the first.
pub(crate) const NF4_PAIRS: [[f32; 2]; 256] = {
    let mut pairs = [[0.0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [NF4[byte >> 4], NF4[byte & 15]];
        byte += 1;
    }
    pairs
};

/// A matrix `[n_out, n_in]` in codes.
#[derive(Clone, Debug, PartialEq)]
pub struct Codes {
    pub n_out: usize,
    pub n_in: usize,
    pub(crate) form: Form,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Form {
    /// A value is `code · scale`; scales are the bits of float16 numbers.
    Int8 { codes: Vec<i8>, scales: Vec<u16> },
    /// A value is `NF4[code] · absmax`; two codes a byte, the first in the high half.
    Nf4 { codes: Vec<u8>, absmax: Vec<f32> },
    /// The upper halves of float32 numbers.
    Bf16 { bits: Vec<u16> },
}

impl Codes {
    /// `data` is `[n_out, n_in]`, row-major and finite; `None` where nothing is to be quantized.
    pub fn quantize(quantize: QuantizeBase, data: &[f32], n_out: usize, n_in: usize) -> Option<Codes> {
        assert_eq!(data.len(), n_out * n_in, "a matrix has as many values as its shape says");
        let form = match quantize {
            QuantizeBase::None => return None,
            QuantizeBase::Int8 => int8(data),
            QuantizeBase::Nf4 => nf4(data),
        };
        Some(Codes { n_out, n_in, form })
    }

    /// Rounded to bfloat16, in one copy for both passes: how embedding and head are kept beside quantized layers.
    pub fn bf16(data: &[f32], n_out: usize, n_in: usize) -> Codes {
        assert_eq!(data.len(), n_out * n_in, "a matrix has as many values as its shape says");
        let bits = data.par_iter().map(|x| bf16::from_f32(*x).to_bits()).collect();
        Codes { n_out, n_in, form: Form::Bf16 { bits } }
    }

    /// Takes the blocks of a GGUF file's Q8_0 tensor as they are. `None` where the bytes are not that many blocks, or a
    /// scale is not a finite number.
    pub fn from_q8_0(bytes: &[u8], n_out: usize, n_in: usize) -> Option<Codes> {
        let (blocks, rest) = bytes.as_chunks::<{ 2 + INT8_BLOCK }>();
        if !rest.is_empty() || blocks.len() * INT8_BLOCK != n_out * n_in {
            return None;
        }
        let scales: Vec<u16> = blocks.iter().map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
        let codes = blocks.iter().flat_map(|b| b[2..].iter().map(|q| q.cast_signed())).collect();
        let finite = scales.iter().all(|bits| f16::from_bits(*bits).is_finite());
        finite.then_some(Codes { n_out, n_in, form: Form::Int8 { codes, scales } })
    }

    /// Of NF4: two codes a byte, the first in the high half, and the scales.
    pub fn nf4(&self) -> Option<(&[u8], &[f32])> {
        match &self.form {
            Form::Nf4 { codes, absmax } => Some((codes, absmax)),
            Form::Int8 { .. } | Form::Bf16 { .. } => None,
        }
    }

    /// Memory taken by codes and scales.
    pub fn bytes(&self) -> usize {
        match &self.form {
            Form::Int8 { codes, scales } => codes.len() + 2 * scales.len(),
            Form::Nf4 { codes, absmax } => codes.len() + 4 * absmax.len(),
            Form::Bf16 { bits } => 2 * bits.len(),
        }
    }

    /// Every value, `[n_out, n_in]`.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.n_out * self.n_in];
        self.decode(0, &mut out);
        out
    }

    /// The values from number `from` on, counted row by row: plainly, what the kernels are tested against.
    pub(crate) fn decode(&self, from: usize, out: &mut [f32]) {
        for (i, out) in (from..).zip(out) {
            *out = match &self.form {
                Form::Int8 { codes, scales } => f32::from(codes[i]) * f16::from_bits(scales[i / INT8_BLOCK]).to_f32(),
                Form::Nf4 { codes, absmax } => NF4_PAIRS[usize::from(codes[i / 2])][i % 2] * absmax[i / NF4_BLOCK],
                Form::Bf16 { bits } => bf16::from_bits(bits[i]).to_f32(),
            };
        }
    }
}

/// Values a thread quantizes at a time.
const TASK: usize = 1 << 16;

fn absmax(block: &[f32]) -> f32 {
    block.iter().fold(0f32, |most, x| most.max(x.abs()))
}

/// As ggml's `quantize_row_q8_0_ref`: the code is rounded by the scale before that becomes float16, halves away from 0.
fn int8(data: &[f32]) -> Form {
    let mut codes = vec![0i8; data.len()];
    let mut scales = vec![0u16; data.len().div_ceil(INT8_BLOCK)];
    let tasks = codes.par_chunks_mut(TASK).zip(scales.par_chunks_mut(TASK / INT8_BLOCK)).zip(data.par_chunks(TASK));
    tasks.for_each(|((codes, scales), data)| {
        let blocks = data.chunks(INT8_BLOCK).zip(codes.chunks_mut(INT8_BLOCK));
        for ((block, codes), out) in blocks.zip(scales) {
            let scale = absmax(block) / 127.0;
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            // A weight beyond float16's reach is held at its end instead of becoming infinite.
            *out = f16::from_f32(scale.min(f16::MAX.to_f32())).to_bits();
            for (code, x) in codes.iter_mut().zip(block) {
                *code = (x * inverse).round() as i8;
            }
        }
    });
    Form::Int8 { codes, scales }
}

/// As bitsandbytes' `quantize_4bit`: the nearest of the sixteen values, the lower one of two equally near.
fn nf4(data: &[f32]) -> Form {
    let middles: [f32; 15] = std::array::from_fn(|code| (NF4[code] + NF4[code + 1]) / 2.0);
    let mut codes = vec![0u8; data.len().div_ceil(2)];
    let mut scales = vec![0f32; data.len().div_ceil(NF4_BLOCK)];
    let tasks = codes.par_chunks_mut(TASK / 2).zip(scales.par_chunks_mut(TASK / NF4_BLOCK)).zip(data.par_chunks(TASK));
    tasks.for_each(|((codes, scales), data)| {
        let blocks = data.chunks(NF4_BLOCK).zip(codes.chunks_mut(NF4_BLOCK / 2));
        for ((block, codes), out) in blocks.zip(scales) {
            *out = absmax(block);
            let inverse = 1.0 / out.max(1e-38);
            for (i, x) in block.iter().enumerate() {
                let x = (x * inverse).clamp(-1.0, 1.0);
                let code: u8 = middles.iter().map(|middle| u8::from(*middle < x)).sum();
                codes[i / 2] |= if i % 2 == 0 { code << 4 } else { code };
            }
        }
    });
    Form::Nf4 { codes, absmax: scales }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_of_zeros_stays_zero_and_shapes_need_be_no_multiple_of_a_block() {
        for quantize in [QuantizeBase::Int8, QuantizeBase::Nf4] {
            assert!(Codes::quantize(quantize, &[0.0; 65], 5, 13).unwrap().dequantize().iter().all(|x| *x == 0.0));
            let data: Vec<f32> = (0..33 * 7).map(|i| (i as f32 * 0.37).sin() * (1 + i / 70) as f32).collect();
            let codes = Codes::quantize(quantize, &data, 7, 33).unwrap();
            let size = if quantize == QuantizeBase::Int8 { INT8_BLOCK } else { NF4_BLOCK };
            // Half of the widest gap between neighbours, over the block's largest: 1/127 and 0.304.
            let half_gap = if quantize == QuantizeBase::Int8 { 0.5 / 127.0 } else { 0.152 };
            for (block, back) in data.chunks(size).zip(codes.dequantize().chunks(size)) {
                let most = absmax(block);
                for (x, y) in block.iter().zip(back) {
                    assert!((x - y).abs() <= half_gap * most * 1.01 + 1e-3 * most, "{x} became {y} of {most}");
                }
                assert!(back.iter().any(|y| (y.abs() - most).abs() <= 1e-3 * most), "the largest is kept");
            }
        }
        assert!(Codes::quantize(QuantizeBase::None, &[1.0], 1, 1).is_none());
    }

    #[test]
    fn a_scale_never_becomes_infinite() {
        let codes = Codes::quantize(QuantizeBase::Int8, &[1e30, -1e30, 5.0], 1, 3).unwrap();
        assert!(codes.dequantize().iter().all(|x| x.is_finite()));
    }

    #[test]
    fn bytes_of_q8_0_are_checked() {
        let mut block = [0u8; 34];
        block[..2].copy_from_slice(&f16::from_f32(0.5).to_bits().to_le_bytes());
        block[2] = 0x80;
        assert_eq!(Codes::from_q8_0(&block, 1, 32).unwrap().dequantize()[0], -64.0);
        assert!(Codes::from_q8_0(&block, 1, 64).is_none());
        assert!(Codes::from_q8_0(&block[..33], 1, 32).is_none());
        block[..2].copy_from_slice(&f16::NAN.to_bits().to_le_bytes());
        assert!(Codes::from_q8_0(&block, 1, 32).is_none());
    }
}
