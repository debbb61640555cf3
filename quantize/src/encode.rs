//! f32 values to GGUF blocks, bit for bit as ggml's reference rounding writes them. What a block cannot hold (NaN,
//! infinity, a scale beyond f16) is refused: the file would otherwise decode to NaN.

use half::{bf16, f16};
use limbeck_model::gguf::GgmlType;
use rayon::prelude::*;

/// Values in a block of every type that this module encodes in blocks.
const BLOCK: usize = 32;
/// Values a rayon task takes at once: large enough to hide its cost, small enough to balance two cores.
const TASK: usize = 64 * 1024;

/// Writes one block (of the plain types, up to 32 values) into bytes of just its size.
type EncodeBlock = fn(&[f32], &mut [u8]);

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EncodeError {
    #[error("{0:?} has no encoder; choose one of F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1")]
    Unsupported(GgmlType),
    #[error("{len} values do not fill blocks of 32 of {ty:?}; store the tensor as F16 or F32")]
    Length { ty: GgmlType, len: usize },
    #[error(
        "value {index} is {value}; a model with such a weight is broken: look at the training loss, or at the base"
    )]
    NotFinite { index: usize, value: f32 },
    #[error("value {index} ({value:e}) is beyond what {ty:?} holds; store the tensor as F32")]
    Overflow { ty: GgmlType, index: usize, value: f32 },
}

/// Encodes rows laid end to end; a row's length must be a multiple of 32 for the block types.
pub fn encode(ty: GgmlType, values: &[f32]) -> Result<Vec<u8>, EncodeError> {
    let (encode_block, bytes): (EncodeBlock, usize) = match ty {
        GgmlType::F32 => (f32_block, 4 * BLOCK),
        GgmlType::F16 => (f16_block, 2 * BLOCK),
        GgmlType::BF16 => (bf16_block, 2 * BLOCK),
        GgmlType::Q8_0 => (q8_0, 34),
        GgmlType::Q4_0 => (q4_0, 18),
        GgmlType::Q4_1 => (q4_1, 20),
        GgmlType::Q5_0 => (q5_0, 22),
        GgmlType::Q5_1 => (q5_1, 24),
        other => return Err(EncodeError::Unsupported(other)),
    };
    let in_blocks = !matches!(ty, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16);
    if in_blocks && !values.len().is_multiple_of(BLOCK) {
        return Err(EncodeError::Length { ty, len: values.len() });
    }
    let mut out = vec![0u8; if in_blocks { values.len() / BLOCK * bytes } else { values.len() * (bytes / BLOCK) }];
    // The first error by position, not by time: the message must not depend on which thread was faster.
    let first_error = values
        .par_chunks(TASK)
        .zip(out.par_chunks_mut(TASK / BLOCK * bytes))
        .enumerate()
        .filter_map(|(task, (xs, ys))| {
            for (i, (x, y)) in xs.chunks(BLOCK).zip(ys.chunks_mut(bytes)).enumerate() {
                encode_block(x, y);
                if !encodable(ty, x, y) {
                    return Some(offender(ty, x, task * TASK + i * BLOCK));
                }
            }
            None
        })
        .min_by_key(|error| match error {
            EncodeError::NotFinite { index, .. } | EncodeError::Overflow { index, .. } => *index,
            _ => 0,
        });
    first_error.map_or(Ok(out), Err)
}

/// Whether a block's values were finite and what was written is: infinity sums to infinity or NaN, f16 says it in its bits.
fn encodable(ty: GgmlType, x: &[f32], y: &[u8]) -> bool {
    let half_is_finite = |at: usize| y[at + 1] & 0x7c != 0x7c;
    let sound = x.iter().fold(true, |sound, v| sound & v.is_finite());
    sound
        && match ty {
            GgmlType::F16 => (0..y.len()).step_by(2).all(half_is_finite),
            GgmlType::BF16 => y.chunks_exact(2).all(|b| bf16::from_le_bytes([b[0], b[1]]).is_finite()),
            GgmlType::Q8_0 | GgmlType::Q4_0 | GgmlType::Q5_0 => half_is_finite(0),
            GgmlType::Q4_1 | GgmlType::Q5_1 => half_is_finite(0) && half_is_finite(2),
            _ => true,
        }
}

fn offender(ty: GgmlType, x: &[f32], start: usize) -> EncodeError {
    if let Some(i) = x.iter().position(|v| !v.is_finite()) {
        return EncodeError::NotFinite { index: start + i, value: x[i] };
    }
    let i = (0..x.len()).fold(0, |best, i| if x[i].abs() > x[best].abs() { i } else { best });
    EncodeError::Overflow { ty, index: start + i, value: x[i] }
}

fn f32_block(x: &[f32], y: &mut [u8]) {
    for (v, b) in x.iter().zip(y.chunks_exact_mut(4)) {
        b.copy_from_slice(&v.to_le_bytes());
    }
}

fn f16_block(x: &[f32], y: &mut [u8]) {
    for (v, b) in x.iter().zip(y.chunks_exact_mut(2)) {
        b.copy_from_slice(&f16::from_f32(*v).to_le_bytes());
    }
}

fn bf16_block(x: &[f32], y: &mut [u8]) {
    for (v, b) in x.iter().zip(y.chunks_exact_mut(2)) {
        b.copy_from_slice(&bf16::from_f32(*v).to_le_bytes());
    }
}

/// The inverse of a scale as ggml takes it: of 0 it is 0.
fn inverse(d: f32) -> f32 {
    if d != 0.0 { 1.0 / d } else { 0.0 }
}

/// C's cast of a product to an integer on x86-64: infinity and NaN become i32::MIN, whose low byte is 0. They turn up
/// where a denormal scale has an infinite inverse.
fn cast(v: f32) -> i32 {
    if v.is_finite() { v as i32 } else { i32::MIN }
}

/// C's roundf for |v| < 2^22: half away from zero. Adding the float just below one half, instead of one half, keeps
/// 0.49999997 from becoming 1.
fn round(v: f32) -> i32 {
    cast(v + 0.499_999_97_f32.copysign(v))
}

/// The value with the largest magnitude, the first one of equals; its sign decides the sign of the scale.
fn extreme(x: &[f32]) -> f32 {
    let (mut magnitude, mut value) = (0.0, 0.0);
    for &v in x {
        if v.abs() > magnitude {
            (magnitude, value) = (v.abs(), v);
        }
    }
    value
}

fn span(x: &[f32]) -> (f32, f32) {
    let (mut min, mut max) = (f32::MAX, -f32::MAX);
    for &v in x {
        if v < min {
            min = v;
        }
        if v > max {
            max = v;
        }
    }
    (min, max)
}

fn put_f16(y: &mut [u8], v: f32) {
    y[..2].copy_from_slice(&f16::from_f32(v).to_le_bytes());
}

/// f16 scale, then 32 i8.
fn q8_0(x: &[f32], y: &mut [u8]) {
    let magnitude = x.iter().fold(0.0f32, |m, v| if v.abs() > m { v.abs() } else { m });
    let d = magnitude / 127.0;
    let id = inverse(d);
    put_f16(y, d);
    for (v, q) in x.iter().zip(&mut y[2..]) {
        *q = round(v * id) as u8;
    }
}

/// f16 scale, then 16 bytes: value j in the low half of byte j, value j + 16 in the high half.
fn q4_0(x: &[f32], y: &mut [u8]) {
    let d = extreme(x) / -8.0;
    let id = inverse(d);
    put_f16(y, d);
    let code = |v: f32| (cast(v * id + 8.5) as i8).min(15) as u8;
    for j in 0..16 {
        y[2 + j] = code(x[j]) | (code(x[j + 16]) << 4);
    }
}

/// f16 scale, f16 minimum, then the 4-bit codes as in Q4_0.
fn q4_1(x: &[f32], y: &mut [u8]) {
    let (min, max) = span(x);
    let d = (max - min) / 15.0;
    let id = inverse(d);
    put_f16(y, d);
    put_f16(&mut y[2..], min);
    let code = |v: f32| (cast((v - min) * id + 0.5) as i8).min(15) as u8;
    for j in 0..16 {
        y[4 + j] = code(x[j]) | (code(x[j + 16]) << 4);
    }
}

/// The low four bits as in Q4_0 behind a word that holds every value's fifth bit, value j in bit j.
fn put_five_bits(y: &mut [u8], code: impl Fn(usize) -> u8) {
    let mut high = 0u32;
    for j in 0..16 {
        let (a, b) = (code(j), code(j + 16));
        y[4 + j] = (a & 15) | (b << 4);
        high |= (u32::from(a >> 4) & 1) << j | (u32::from(b >> 4) & 1) << (j + 16);
    }
    y[..4].copy_from_slice(&high.to_le_bytes());
}

/// f16 scale, then five bits a value.
fn q5_0(x: &[f32], y: &mut [u8]) {
    let d = extreme(x) / -16.0;
    let id = inverse(d);
    put_f16(y, d);
    put_five_bits(&mut y[2..], |j| (cast(x[j] * id + 16.5) as i8).min(31) as u8);
}

/// f16 scale, f16 minimum, then five bits a value.
fn q5_1(x: &[f32], y: &mut [u8]) {
    let (min, max) = span(x);
    let d = (max - min) / 31.0;
    let id = inverse(d);
    put_f16(y, d);
    put_f16(&mut y[2..], min);
    put_five_bits(&mut y[4..], |j| cast((x[j] - min) * id + 0.5) as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_c_s_roundf() {
        for step in 0..4_000_000u32 {
            let v = (step as f32 - 2_000_000.0) / 15_625.0;
            for v in [v, v.next_up(), v.next_down()] {
                assert_eq!(round(v), v.round() as i32, "{v}");
            }
        }
        for i in -130..130 {
            for v in [i as f32 + 0.5, (i as f32 + 0.5).next_up(), (i as f32 + 0.5).next_down()] {
                assert_eq!(round(v), v.round() as i32, "{v}");
            }
        }
    }

    #[test]
    fn what_a_block_cannot_hold_is_refused_by_position() {
        let mut x = vec![0.25f32; 3 * TASK];
        x[2 * TASK + 7] = f32::NAN;
        x[TASK + 40] = f32::NEG_INFINITY;
        for ty in [GgmlType::F32, GgmlType::F16, GgmlType::BF16, GgmlType::Q8_0, GgmlType::Q4_0, GgmlType::Q5_1] {
            let refused = EncodeError::NotFinite { index: TASK + 40, value: f32::NEG_INFINITY };
            assert_eq!(encode(ty, &x), Err(refused), "{ty:?}");
        }
        x[2 * TASK + 7] = 3e30;
        x[TASK + 40] = 0.0;
        for ty in [GgmlType::F16, GgmlType::Q8_0, GgmlType::Q4_0, GgmlType::Q4_1, GgmlType::Q5_0, GgmlType::Q5_1] {
            assert_eq!(encode(ty, &x), Err(EncodeError::Overflow { ty, index: 2 * TASK + 7, value: 3e30 }));
        }
        assert!(encode(GgmlType::F32, &x).is_ok() && encode(GgmlType::BF16, &x).is_ok());
        assert_eq!(encode(GgmlType::Q8_0, &x[..33]), Err(EncodeError::Length { ty: GgmlType::Q8_0, len: 33 }));
        assert_eq!(encode(GgmlType::Q6_K, &x[..256]), Err(EncodeError::Unsupported(GgmlType::Q6_K)));
        assert_eq!(encode(GgmlType::F16, &x[..33]).map(|b| b.len()), Ok(66));
    }
}
