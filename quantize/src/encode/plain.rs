//! Plain rounding, a block at a time, as ggml's `quantize_row_*_ref` writes it, bit for bit.

use half::{bf16, f16};

use super::pack::{put_f16, put_five_bits, put_nibbles};

const INFINITE: u32 = 0x7f80_0000;

pub fn f32_values(x: &[f32], y: &mut [u8]) {
    for (v, b) in x.iter().zip(y.as_chunks_mut::<4>().0) {
        *b = v.to_le_bytes();
    }
}

pub fn f16_values(x: &[f32], y: &mut [u8]) {
    for (v, b) in x.iter().zip(y.as_chunks_mut::<2>().0) {
        *b = f16::from_f32(*v).to_le_bytes();
    }
}

pub fn bf16_values(x: &[f32], y: &mut [u8]) {
    for (v, b) in x.iter().zip(y.as_chunks_mut::<2>().0) {
        *b = bf16::from_f32(*v).to_le_bytes();
    }
}

/// The inverse of a scale as ggml takes it: of 0 it is 0.
#[inline(always)]
fn inverse(d: f32) -> f32 {
    if d != 0.0 { 1.0 / d } else { 0.0 }
}

/// C's cast of a product to an integer on x86-64: infinity and NaN become i32::MIN, whose low byte is 0. They turn up
/// where a denormal scale has an infinite inverse.
fn cast(v: f32) -> i32 {
    if v.is_finite() { v as i32 } else { i32::MIN }
}

/// The cast of a number that is known to be small.
#[inline(always)]
fn truncated(v: f32) -> i32 {
    debug_assert!(v.abs() < 1e6);
    // SAFETY: callers have found that values, scale and its inverse are finite. A value over its block's scale is then
    // at most a few hundred, and so an i32.
    #[expect(unsafe_code, reason = "the saturating cast takes five instructions for one")]
    unsafe {
        v.to_int_unchecked()
    }
}

/// Codes of 32 values, `(v − low) / d + shift` rounded down, at most `top`. Where that is no number, as C casts it.
#[inline(always)]
fn codes(x: &[f32; 32], low: f32, d: f32, shift: f32, top: u8, numbers: bool) -> [u8; 32] {
    let id = inverse(d);
    let mut codes = [0; 32];
    if numbers && d.is_finite() && id.is_finite() {
        for j in 0..32 {
            codes[j] = (truncated((x[j] - low) * id + shift) as u8).min(top);
        }
    } else {
        for j in 0..32 {
            // Through i8 where ggml goes through it: what is negative there is the larger byte.
            codes[j] = (cast((x[j] - low) * id + shift) as i8).min(top as i8) as u8;
        }
    }
    codes
}

/// C's roundf for |v| < 2^22: half away from zero. Adding the float just below one half, instead of one half, keeps
/// 0.49999997 from becoming 1.
#[inline(always)]
fn away(v: f32) -> f32 {
    v + 0.499_999_97_f32.copysign(v)
}

/// The bits of the largest magnitude; those of what is no number are larger than those of all numbers.
#[inline(always)]
fn magnitude_bits(x: &[f32; 32]) -> u32 {
    let mut lanes = [0u32; 16];
    for half in x.as_chunks::<16>().0 {
        for k in 0..16 {
            lanes[k] = lanes[k].max(half[k].to_bits() & 0x7fff_ffff);
        }
    }
    lanes.into_iter().fold(0, u32::max)
}

/// The value with the largest magnitude, the first one of equals; its sign decides the sign of the scale. And whether all
/// are numbers.
#[inline(always)]
fn extreme(x: &[f32; 32]) -> (f32, bool) {
    // As integers the positive numbers are in order, and as unsigned ones the negative, the other way round.
    let (mut highest, mut lowest) = ([0i32; 16], [0u32; 16]);
    for half in x.as_chunks::<16>().0 {
        for k in 0..16 {
            highest[k] = highest[k].max(half[k].to_bits() as i32);
            lowest[k] = lowest[k].max(half[k].to_bits());
        }
    }
    let highest = highest.into_iter().fold(0, i32::max) as u32;
    let lowest = lowest.into_iter().fold(0, u32::max);
    let below = if lowest >> 31 == 1 { lowest & 0x7fff_ffff } else { 0 };
    let bits = match highest.cmp(&below) {
        std::cmp::Ordering::Greater => highest,
        std::cmp::Ordering::Less => lowest,
        // `-0` counts as 0.
        std::cmp::Ordering::Equal if highest == 0 => 0,
        std::cmp::Ordering::Equal => {
            x.iter().map(|v| v.to_bits()).find(|bits| bits & 0x7fff_ffff == highest).unwrap_or(highest)
        }
    };
    (f32::from_bits(bits), highest.max(below) < INFINITE)
}

/// Least and largest value, and whether all are numbers.
#[inline(always)]
fn span(x: &[f32; 32]) -> (f32, f32, bool) {
    let (mut min, mut max) = ([f32::MAX; 16], [-f32::MAX; 16]);
    for half in x.as_chunks::<16>().0 {
        for k in 0..16 {
            min[k] = if half[k] < min[k] { half[k] } else { min[k] };
            max[k] = if half[k] > max[k] { half[k] } else { max[k] };
        }
    }
    let least = min.into_iter().fold(f32::MAX, |a, b| if b < a { b } else { a });
    let most = max.into_iter().fold(-f32::MAX, |a, b| if b > a { b } else { a });
    (first_zero(x, least), first_zero(x, most), magnitude_bits(x) < INFINITE)
}

/// Of `0` and `-0`, which are equal, the one that comes first.
#[inline(always)]
fn first_zero(x: &[f32; 32], v: f32) -> f32 {
    if v == 0.0 { x.iter().copied().find(|v| *v == 0.0).unwrap_or(v) } else { v }
}

/// f16 scale, then 32 i8. Each of these says whether all values were numbers.
#[inline(always)]
pub fn q8_0(x: &[f32; 32], y: &mut [u8; 34]) -> bool {
    let magnitude = magnitude_bits(x);
    let d = f32::from_bits(magnitude) / 127.0;
    let id = inverse(d);
    put_f16(y, d);
    if magnitude < INFINITE && id.is_finite() {
        for j in 0..32 {
            y[2 + j] = truncated(away(x[j] * id)) as u8;
        }
    } else {
        for j in 0..32 {
            y[2 + j] = cast(away(x[j] * id)) as u8;
        }
    }
    magnitude < INFINITE
}

/// f16 scale, then nibbles.
#[inline(always)]
pub fn q4_0(x: &[f32; 32], y: &mut [u8; 18]) -> bool {
    let (extreme, numbers) = extreme(x);
    let d = extreme / -8.0;
    put_f16(y, d);
    put_nibbles(&mut y[2..], &codes(x, 0.0, d, 8.5, 15, numbers));
    numbers
}

/// f16 scale, f16 minimum, then nibbles.
#[inline(always)]
pub fn q4_1(x: &[f32; 32], y: &mut [u8; 20]) -> bool {
    let (min, max, numbers) = span(x);
    let d = (max - min) / 15.0;
    put_f16(y, d);
    put_f16(&mut y[2..], min);
    put_nibbles(&mut y[4..], &codes(x, min, d, 0.5, 15, numbers));
    numbers
}

/// f16 scale, then five bits a value.
#[inline(always)]
pub fn q5_0(x: &[f32; 32], y: &mut [u8; 22]) -> bool {
    let (extreme, numbers) = extreme(x);
    let d = extreme / -16.0;
    put_f16(y, d);
    put_five_bits(&mut y[2..], &codes(x, 0.0, d, 16.5, 31, numbers));
    numbers
}

/// f16 scale, f16 minimum, then five bits a value.
#[inline(always)]
pub fn q5_1(x: &[f32; 32], y: &mut [u8; 24]) -> bool {
    let (min, max, numbers) = span(x);
    let d = (max - min) / 31.0;
    put_f16(y, d);
    put_f16(&mut y[2..], min);
    // ggml cuts these to no range; a finite one is 31 at most by itself.
    let mut codes = codes(x, min, d, 0.5, u8::MAX, numbers);
    if !d.is_finite() || !inverse(d).is_finite() {
        for (code, v) in codes.iter_mut().zip(x) {
            *code = cast((v - min) * inverse(d) + 0.5) as u8;
        }
    }
    put_five_bits(&mut y[4..], &codes);
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(v: f32) -> i32 {
        away(v) as i32
    }

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
    fn the_extreme_is_the_first_of_the_largest_and_tells_what_is_no_number() {
        let slow = |x: &[f32; 32]| {
            let (mut magnitude, mut value) = (0.0f32, 0.0f32);
            for &v in x {
                if v.abs() > magnitude {
                    (magnitude, value) = (v.abs(), v);
                }
            }
            value
        };
        let mut state = 1u32;
        let mut block = [0.0f32; 32];
        for round in 0..20_000 {
            for v in &mut block {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *v = ((state >> 28) as f32 - 8.0) * if round % 3 == 0 { 0.0 } else { 0.5 };
            }
            let (value, numbers) = extreme(&block);
            assert_eq!((value.to_bits(), numbers), (slow(&block).to_bits(), true), "{block:?}");
            assert_eq!(f32::from_bits(magnitude_bits(&block)), slow(&block).abs());
            let hurt = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY][round % 4];
            block[round % 32] = hurt;
            assert!(!extreme(&block).1 && magnitude_bits(&block) >= INFINITE && !span(&block).2, "{hurt}");
        }
    }
}
