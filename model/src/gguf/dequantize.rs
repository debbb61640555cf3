//! Quantized blocks to f32, value by value as ggml's reference `dequantize_row_*` does it: the same operations in the
//! same order, so that a decoded weight is the very number that llama.cpp multiplies with.

use super::GgmlType;
use half::{bf16, f16};

const IQ4_NL_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Decodes whole blocks of `ty` into `out`.
///
/// # Errors
/// When `bytes` is not exactly what `out.len()` values take, that is no whole number of blocks, or the type can't be decoded.
pub fn dequantize(ty: GgmlType, bytes: &[u8], out: &mut [f32]) -> Result<(), String> {
    if ty.bytes_for(out.len() as u64) != Some(bytes.len() as u64) {
        return Err(format!("{} bytes of {ty} can't be {} values", bytes.len(), out.len()));
    }
    let blocks = bytes.chunks_exact(ty.block_bytes()).zip(out.chunks_exact_mut(ty.block_len()));
    match ty {
        GgmlType::F32 => blocks.for_each(|(b, y)| y[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        GgmlType::F16 => blocks.for_each(|(b, y)| y[0] = half_at(b, 0)),
        GgmlType::BF16 => blocks.for_each(|(b, y)| y[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32()),
        GgmlType::Q8_0 => blocks.for_each(|(b, y)| q8_0(b, y)),
        GgmlType::Q4_0 => blocks.for_each(|(b, y)| q4_0(b, y)),
        GgmlType::Q4_1 => blocks.for_each(|(b, y)| q4_1(b, y)),
        GgmlType::Q5_0 => blocks.for_each(|(b, y)| q5_0(b, y)),
        GgmlType::Q5_1 => blocks.for_each(|(b, y)| q5_1(b, y)),
        GgmlType::Q4_K => blocks.for_each(|(b, y)| q4_k(b, y)),
        GgmlType::Q5_K => blocks.for_each(|(b, y)| q5_k(b, y)),
        GgmlType::Q6_K => blocks.for_each(|(b, y)| q6_k(b, y)),
        GgmlType::IQ4_NL => blocks.for_each(|(b, y)| iq4_nl(b, y)),
        other => return Err(format!("{other} can't be decoded")),
    }
    Ok(())
}

fn half_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

fn q8_0(b: &[u8], y: &mut [f32]) {
    let d = half_at(b, 0);
    for (y, &q) in y.iter_mut().zip(&b[2..34]) {
        *y = f32::from(q as i8) * d;
    }
}

fn q4_0(b: &[u8], y: &mut [f32]) {
    let d = half_at(b, 0);
    for (j, &q) in b[2..18].iter().enumerate() {
        y[j] = (i32::from(q & 15) - 8) as f32 * d;
        y[j + 16] = (i32::from(q >> 4) - 8) as f32 * d;
    }
}

fn q4_1(b: &[u8], y: &mut [f32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    for (j, &q) in b[4..20].iter().enumerate() {
        y[j] = f32::from(q & 15) * d + m;
        y[j + 16] = f32::from(q >> 4) * d + m;
    }
}

fn q5_0(b: &[u8], y: &mut [f32]) {
    let d = half_at(b, 0);
    let high = u32::from_le_bytes([b[2], b[3], b[4], b[5]]);
    for (j, &q) in b[6..22].iter().enumerate() {
        let (lo, hi) = five_bits(q, high, j);
        y[j] = (lo as i32 - 16) as f32 * d;
        y[j + 16] = (hi as i32 - 16) as f32 * d;
    }
}

fn q5_1(b: &[u8], y: &mut [f32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    let high = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
    for (j, &q) in b[8..24].iter().enumerate() {
        let (lo, hi) = five_bits(q, high, j);
        y[j] = lo as f32 * d + m;
        y[j + 16] = hi as f32 * d + m;
    }
}

/// The two five-bit values of byte `j`: its nibbles, each with its fifth bit from `high`.
fn five_bits(q: u8, high: u32, j: usize) -> (u32, u32) {
    let lo = u32::from(q & 15) | (high >> j & 1) << 4;
    let hi = u32::from(q >> 4) | (high >> (j + 16) & 1) << 4;
    (lo, hi)
}

/// Scale and minimum of sub-block `j`: eight six-bit pairs packed in twelve bytes.
fn scale_min(j: usize, s: &[u8]) -> (u8, u8) {
    if j < 4 {
        (s[j] & 63, s[j + 4] & 63)
    } else {
        ((s[j + 4] & 15) | (s[j - 4] >> 6) << 4, (s[j + 4] >> 4) | (s[j] >> 6) << 4)
    }
}

fn q4_k(b: &[u8], y: &mut [f32]) {
    let (d, dmin, scales) = (half_at(b, 0), half_at(b, 2), &b[4..16]);
    for (pair, (qs, y)) in b[16..144].chunks_exact(32).zip(y.chunks_exact_mut(64)).enumerate() {
        let (d1, m1) = scaled(d, dmin, scale_min(2 * pair, scales));
        let (d2, m2) = scaled(d, dmin, scale_min(2 * pair + 1, scales));
        for (l, &q) in qs.iter().enumerate() {
            y[l] = d1 * f32::from(q & 15) - m1;
            y[l + 32] = d2 * f32::from(q >> 4) - m2;
        }
    }
}

fn q5_k(b: &[u8], y: &mut [f32]) {
    let (d, dmin, scales, high) = (half_at(b, 0), half_at(b, 2), &b[4..16], &b[16..48]);
    for (pair, (qs, y)) in b[48..176].chunks_exact(32).zip(y.chunks_exact_mut(64)).enumerate() {
        let (d1, m1) = scaled(d, dmin, scale_min(2 * pair, scales));
        let (d2, m2) = scaled(d, dmin, scale_min(2 * pair + 1, scales));
        for (l, &q) in qs.iter().enumerate() {
            let fifth = |bit: usize| (high[l] >> bit & 1) << 4;
            y[l] = d1 * f32::from((q & 15) + fifth(2 * pair)) - m1;
            y[l + 32] = d2 * f32::from((q >> 4) + fifth(2 * pair + 1)) - m2;
        }
    }
}

fn scaled(d: f32, dmin: f32, (scale, min): (u8, u8)) -> (f32, f32) {
    (d * f32::from(scale), dmin * f32::from(min))
}

fn q6_k(b: &[u8], y: &mut [f32]) {
    let d = half_at(b, 208);
    for (half, y) in y.chunks_exact_mut(128).enumerate() {
        let (ql, qh, sc) = (&b[64 * half..], &b[128 + 32 * half..], &b[192 + 8 * half..]);
        for l in 0..32 {
            let value = |low: u8, shift: u8| i32::from(low | (qh[l] >> shift & 3) << 4) - 32;
            let scale = |at: usize| d * f32::from(sc[l / 16 + at] as i8);
            y[l] = scale(0) * value(ql[l] & 15, 0) as f32;
            y[l + 32] = scale(2) * value(ql[l + 32] & 15, 2) as f32;
            y[l + 64] = scale(4) * value(ql[l] >> 4, 4) as f32;
            y[l + 96] = scale(6) * value(ql[l + 32] >> 4, 6) as f32;
        }
    }
}

fn iq4_nl(b: &[u8], y: &mut [f32]) {
    let d = half_at(b, 0);
    for (j, &q) in b[2..18].iter().enumerate() {
        y[j] = d * f32::from(IQ4_NL_VALUES[usize::from(q & 15)]);
        y[j + 16] = d * f32::from(IQ4_NL_VALUES[usize::from(q >> 4)]);
    }
}
