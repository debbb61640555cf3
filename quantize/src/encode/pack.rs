//! Where a block keeps its codes: nibbles, fifth and sixth bits, and the packed scales of a superblock.

use half::f16;

#[inline(always)]
pub fn put_f16(y: &mut [u8], v: f32) {
    y[..2].copy_from_slice(&f16_bits(v).to_le_bytes());
}

#[inline(always)]
pub fn take_f16(y: &[u8]) -> f32 {
    f16::from_bits(u16::from_le_bytes([y[0], y[1]])).to_f32()
}

/// A scale as the reader will see it.
#[inline]
pub fn through_f16(v: f32) -> f32 {
    f16::from_bits(f16_bits(v)).to_f32()
}

/// The f16 next to `v`, half to even. By sums of floats whose last bit is the f16's, so that it stands inline: `half` asks
/// the processor each time whether it has an instruction for it.
#[inline(always)]
fn f16_bits(v: f32) -> u16 {
    let (bits, twice) = (v.to_bits(), v.to_bits() << 1);
    // 2^112, then 2^-110: what is beyond f16 becomes infinite, the rest is four times too large.
    let large = v.abs() * f32::from_bits(0x7780_0000) * f32::from_bits(0x0880_0000);
    let exponent = (twice & 0xff00_0000).max(0x7100_0000);
    let rounded = (f32::from_bits((exponent >> 1) + 0x0780_0000) + large).to_bits();
    let magnitude = ((rounded >> 13) & 0x7c00) + (rounded & 0x0fff);
    let magnitude = if twice > 0xff00_0000 { 0x7e00 } else { magnitude };
    (bits >> 16 & 0x8000) as u16 | magnitude as u16
}

/// 32 four-bit codes in 16 bytes: code j in the low half of byte j, code j + 16 in the high half.
#[inline(always)]
pub fn put_nibbles(y: &mut [u8], codes: &[u8; 32]) {
    for j in 0..16 {
        y[j] = (codes[j] & 15) | (codes[j + 16] << 4);
    }
}

/// 32 five-bit codes: a word with the fifth bits, code j's in bit j, then the low four as nibbles.
#[inline(always)]
pub fn put_five_bits(y: &mut [u8], codes: &[u8; 32]) {
    let high = codes.iter().enumerate().fold(0u32, |high, (j, code)| high | u32::from(code >> 4 & 1) << j);
    y[..4].copy_from_slice(&high.to_le_bytes());
    put_nibbles(&mut y[4..], codes);
}

/// The six-bit scales and minima of eight sub-blocks in 12 bytes, as in Q4_K and Q5_K.
#[inline(always)]
pub fn put_scales(y: &mut [u8], scales: &[u8; 8], mins: &[u8; 8]) {
    for j in 0..4 {
        let (scale, min) = (scales[j + 4], mins[j + 4]);
        y[j] = (scales[j] & 63) | (scale >> 4) << 6;
        y[j + 4] = (mins[j] & 63) | (min >> 4) << 6;
        y[j + 8] = (scale & 15) | (min & 15) << 4;
    }
}

/// The inverse of [`put_scales`].
pub fn take_scales(y: &[u8]) -> ([u8; 8], [u8; 8]) {
    let high = |j: usize| (y[j] >> 6) << 4;
    let scale = |j: usize| if j < 4 { y[j] & 63 } else { (y[j + 4] & 15) | high(j - 4) };
    let min = |j: usize| if j < 4 { y[j + 4] & 63 } else { (y[j + 4] >> 4) | high(j) };
    (std::array::from_fn(scale), std::array::from_fn(min))
}

/// The 256 codes of Q4_K in 128 bytes: 64 codes at a time, the second 32 of them in the high halves.
#[inline(always)]
pub fn put_q4_k(y: &mut [u8], codes: &[u8; 256]) {
    for (y, codes) in y.chunks_exact_mut(32).zip(codes.as_chunks::<64>().0) {
        for j in 0..32 {
            y[j] = codes[j] | codes[j + 32] << 4;
        }
    }
}

/// The 256 codes of Q5_K in 160 bytes: fifth bits, sub-block b's in bit b of 32 bytes, then as in Q4_K.
#[inline(always)]
pub fn put_q5_k(y: &mut [u8], codes: &[u8; 256]) {
    let (high, low) = y.split_at_mut(32);
    for (j, high) in high.iter_mut().enumerate() {
        *high = (0..8).fold(0, |bits, b| bits | (codes[32 * b + j] >> 4 & 1) << b);
    }
    let mut fours = *codes;
    fours.iter_mut().for_each(|code| *code &= 15);
    put_q4_k(low, &fours);
}

/// The 256 codes of Q6_K, plus 32, in 192 bytes: low four bits, then two high bits; 128 codes at a time.
#[inline(always)]
pub fn put_q6_k(y: &mut [u8], codes: &[u8; 256]) {
    let (low, high) = y.split_at_mut(128);
    for (part, codes) in codes.as_chunks::<128>().0.iter().enumerate() {
        for j in 0..32 {
            let (a, b, c, d) = (codes[j], codes[j + 32], codes[j + 64], codes[j + 96]);
            low[64 * part + j] = (a & 15) | (c & 15) << 4;
            low[64 * part + 32 + j] = (b & 15) | (d & 15) << 4;
            high[32 * part + j] = (a >> 4) | (b >> 4) << 2 | (c >> 4) << 4 | (d >> 4) << 6;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f16_is_the_nearest_half_to_even() {
        // Every 97th float, and all about the borders between two f16.
        for bits in (0..=u32::MAX).step_by(97) {
            let v = f32::from_bits(bits);
            if !v.is_nan() {
                assert_eq!(f16_bits(v), f16::from_f32(v).to_bits(), "{v:e}");
            }
        }
        for low in 0..0x7c00u16 {
            let (a, b) = (f16::from_bits(low).to_f64(), f16::from_bits(low + 1).to_f64());
            let middle = if b.is_finite() { ((a + b) / 2.0) as f32 } else { 65520.0 };
            for v in [middle.next_down(), middle, middle.next_up()] {
                assert_eq!(f16_bits(v), f16::from_f32(v).to_bits(), "{v:e}");
                assert_eq!(f16_bits(-v), f16::from_f32(-v).to_bits(), "{v:e}");
            }
        }
        for v in [f32::NAN, -f32::NAN] {
            assert!(f16::from_bits(f16_bits(v)).is_nan());
        }
    }
}
