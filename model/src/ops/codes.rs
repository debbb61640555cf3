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
    /// The same, the scales in eight bits each: 4.13 bits a weight.
    #[serde(rename = "nf4_double_quant")]
    Nf4DoubleQuant,
}

impl QuantizeBase {
    /// As a person reads it, in front of "codes".
    pub fn name(self) -> &'static str {
        match self {
            QuantizeBase::None => "none",
            QuantizeBase::Int8 => "int8",
            QuantizeBase::Nf4 => "nf4",
            QuantizeBase::Nf4DoubleQuant => "double-quantized nf4",
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
/// Scales that share one of their own.
pub(crate) const SCALES_BLOCK: usize = 256;

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

/// The positive half of bitsandbytes' eight-bit table but for its 1: seven decades, each cut twice as finely as the one below.
/// Source: Dettmers 2016, "8-Bit Approximations for Parallelism in Deep Learning", as bitsandbytes 0.50 has it
/// (`functional.py::create_dynamic_map`).
#[rustfmt::skip]
const DYNAMIC_POSITIVE: [f32; 127] = [
    5.500_000_4e-7, 3.250_000_2e-6, 7.75e-6, 2.124_999_8e-5, 4.375e-5, 6.625e-5, 8.875e-5, 1.562_500_1e-4,
    2.687_500_4e-4, 3.812_500_2e-4, 4.937_500_3e-4, 6.062_501e-4, 7.187_500_6e-4, 8.312_5e-4, 9.437_501e-4,
    0.001_281_249_9, 0.001_843_75, 0.002_406_25, 0.002_968_75, 0.003_531_249_7, 0.004_093_75, 0.004_656_249_7,
    0.005_218_750_3, 0.005_781_25, 0.006_343_75, 0.006_906_25, 0.007_468_75, 0.008_031_25, 0.008_593_75,
    0.009_156_249, 0.009_718_75, 0.011_406_25, 0.014_218_75, 0.017_031_25, 0.019_843_752, 0.022_656_25, 0.025_468_75,
    0.028_281_251, 0.031_093_75, 0.033_906_25, 0.036_718_752, 0.039_531_25, 0.042_343_747, 0.045_156_25, 0.047_968_75,
    0.050_781_25, 0.053_593_75, 0.056_406_25, 0.059_218_753, 0.062_031_25, 0.064_843_75, 0.067_656_256, 0.070_468_746,
    0.073_281_25, 0.076_093_75, 0.078_906_25, 0.081_718_76, 0.084_531_25, 0.087_343_75, 0.090_156_25, 0.092_968_754,
    0.095_781_26, 0.098_593_75, 0.107_031_256, 0.121_093_75, 0.135_156_24, 0.149_218_75, 0.163_281_25, 0.177_343_76,
    0.191_406_25, 0.205_468_74, 0.219_531_25, 0.233_593_75, 0.247_656_24, 0.261_718_75, 0.275_781_27, 0.289_843_74,
    0.303_906_26, 0.317_968_73, 0.332_031_25, 0.346_093_74, 0.360_156_24, 0.374_218_76, 0.388_281_23, 0.402_343_75,
    0.416_406_24, 0.430_468_74, 0.444_531_26, 0.458_593_73, 0.472_656_25, 0.486_718_7, 0.500_781_24, 0.514_843_7,
    0.528_906_2, 0.542_968_75, 0.557_031_3, 0.571_093_8, 0.585_156_26, 0.599_218_7, 0.613_281_25, 0.627_343_8,
    0.641_406_3, 0.655_468_76, 0.669_531_2, 0.683_593_75, 0.697_656_3, 0.711_718_8, 0.725_781_26, 0.739_843_7,
    0.753_906_25, 0.767_968_8, 0.782_031_24, 0.796_093_76, 0.810_156_2, 0.824_218_75, 0.838_281_3, 0.852_343_74,
    0.866_406_26, 0.880_468_7, 0.894_531_25, 0.908_593_8, 0.922_656_24, 0.936_718_76, 0.950_781_2, 0.964_843_75,
    0.978_906_3, 0.992_968_74,
];

/// What the 256 codes of a scale stand for, ascending: the positive half mirrored, zero, and one.
pub const DYNAMIC: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut i = 0;
    while i < 127 {
        table[126 - i] = -DYNAMIC_POSITIVE[i];
        table[128 + i] = DYNAMIC_POSITIVE[i];
        i += 1;
    }
    table[255] = 1.0;
    table
};

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
    Nf4 { codes: Vec<u8>, absmax: Absmax },
    /// The upper halves of float32 numbers.
    Bf16 { bits: Vec<u16> },
}

/// The largest value of each block.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Absmax {
    Plain(Vec<f32>),
    /// A scale is `DYNAMIC[code] · absmax + offset`, `absmax` being of [`SCALES_BLOCK`] scales and `offset` the mean of all.
    Double {
        codes: Vec<u8>,
        absmax: Vec<f32>,
        offset: f32,
    },
}

/// Scales in eight bits: one is `DYNAMIC[code] · absmax + offset`, with an `absmax` for each 256.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DoubleScales<'a> {
    pub codes: &'a [u8],
    pub absmax: &'a [f32],
    pub offset: f32,
}

impl Absmax {
    #[inline(always)]
    pub(crate) fn of(&self, block: usize) -> f32 {
        match self {
            Absmax::Plain(scales) => scales[block],
            Absmax::Double { codes, absmax, offset } => {
                DYNAMIC[usize::from(codes[block])] * absmax[block / SCALES_BLOCK] + offset
            }
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Absmax::Plain(scales) => 4 * scales.len(),
            Absmax::Double { codes, absmax, .. } => codes.len() + 4 * absmax.len() + 4,
        }
    }
}

impl Codes {
    /// `data` is `[n_out, n_in]`, row-major and finite; `None` where nothing is to be quantized.
    pub fn quantize(quantize: QuantizeBase, data: &[f32], n_out: usize, n_in: usize) -> Option<Codes> {
        assert_eq!(data.len(), n_out * n_in, "a matrix has as many values as its shape says");
        let form = match quantize {
            QuantizeBase::None => return None,
            QuantizeBase::Int8 => int8(data),
            QuantizeBase::Nf4 => nf4(data, Absmax::Plain),
            QuantizeBase::Nf4DoubleQuant => nf4(data, double),
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
            Form::Nf4 { codes, absmax: Absmax::Plain(scales) } => Some((codes, scales)),
            _ => None,
        }
    }

    /// Of double-quantized NF4: the codes, and the scales as they are kept.
    pub fn nf4_double(&self) -> Option<(&[u8], DoubleScales<'_>)> {
        match &self.form {
            Form::Nf4 { codes: own, absmax: Absmax::Double { codes, absmax, offset } } => {
                Some((own, DoubleScales { codes, absmax, offset: *offset }))
            }
            _ => None,
        }
    }

    /// Memory taken by codes and scales.
    pub fn bytes(&self) -> usize {
        match &self.form {
            Form::Int8 { codes, scales } => codes.len() + 2 * scales.len(),
            Form::Nf4 { codes, absmax } => codes.len() + absmax.bytes(),
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
                Form::Nf4 { codes, absmax } => NF4_PAIRS[usize::from(codes[i / 2])][i % 2] * absmax.of(i / NF4_BLOCK),
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
fn nf4(data: &[f32], keep: fn(Vec<f32>) -> Absmax) -> Form {
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
    Form::Nf4 { codes, absmax: keep(scales) }
}

/// As bitsandbytes' `quantize_4bit(compress_statistics=True)` on the CPU, whose library looks a value up on a grid of 65,535
/// steps before it takes the nearest of the 256: the bits are those of its tables. The mean is summed in double precision;
/// PyTorch's own sum is another on another processor.
fn double(scales: Vec<f32>) -> Absmax {
    let mean = scales.iter().map(|s| f64::from(*s)).sum::<f64>() / scales.len().max(1) as f64;
    let offset = mean as f32;
    let middles: [f32; 255] = std::array::from_fn(|code| (DYNAMIC[code] + DYNAMIC[code + 1]) / 2.0);
    let mut codes = Vec::with_capacity(scales.len());
    let mut largest = Vec::with_capacity(scales.len().div_ceil(SCALES_BLOCK));
    for block in scales.chunks(SCALES_BLOCK) {
        let rest: Vec<f32> = block.iter().map(|scale| scale - offset).collect();
        let most = absmax(&rest);
        largest.push(most);
        codes.extend(rest.iter().map(|x| {
            let x = if most > 0.0 { x / most } else { 0.0 };
            let step = ((x + 1.0) * 32767.5 + 0.5).floor();
            let x = step / 65535.0 * 2.0 - 1.0;
            middles.partition_point(|middle| *middle < x) as u8
        }));
    }
    Absmax::Double { codes, absmax: largest, offset }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_of_zeros_stays_zero_and_shapes_need_be_no_multiple_of_a_block() {
        for quantize in [QuantizeBase::Int8, QuantizeBase::Nf4, QuantizeBase::Nf4DoubleQuant] {
            assert!(Codes::quantize(quantize, &[0.0; 65], 5, 13).unwrap().dequantize().iter().all(|x| *x == 0.0));
            let data: Vec<f32> = (0..33 * 7).map(|i| (i as f32 * 0.37).sin() * (1 + i / 70) as f32).collect();
            let codes = Codes::quantize(quantize, &data, 7, 33).unwrap();
            let size = if quantize == QuantizeBase::Int8 { INT8_BLOCK } else { NF4_BLOCK };
            // Half of the widest gap between neighbours, over the block's largest: 1/127 and 0.304.
            let half_gap = if quantize == QuantizeBase::Int8 { 0.5 / 127.0 } else { 0.152 };
            // Eight bits keep a scale to half a step of the table, at most 0.7 % of the widest.
            let slack = if quantize == QuantizeBase::Nf4DoubleQuant { 2e-2 } else { 1e-3 };
            for (block, back) in data.chunks(size).zip(codes.dequantize().chunks(size)) {
                let most = absmax(block);
                for (x, y) in block.iter().zip(back) {
                    assert!((x - y).abs() <= half_gap * most * 1.01 + slack * most, "{x} became {y} of {most}");
                }
                assert!(back.iter().any(|y| (y.abs() - most).abs() <= slack * most), "the largest is kept");
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
