//! IEEE 754 half precision, as two bytes: 11 bits of mantissa, up to 65504.

/// To the nearest half, of two equally near ones to the even; beyond its range to infinity.
pub(super) fn to_half(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = (bits >> 16) as u16 & 0x8000;
    let size = bits & 0x7fff_ffff;
    if size > 0x7f80_0000 {
        return sign | 0x7e00;
    }
    // From 65520 on the nearest half is infinity.
    if size >= 0x477f_f000 {
        return sign | 0x7c00;
    }
    // Below the smallest normal half the spacing is 2^-24 throughout.
    if size < 0x3880_0000 {
        let steps = f64::from(f32::from_bits(size)) * f64::from(1u32 << 24);
        return sign | steps.round_ties_even() as u16;
    }
    // Exponent bias 127 to 15; rounding may carry into the exponent, which is then right.
    let rebased = size - (112 << 23);
    sign | ((rebased + 0xfff + ((rebased >> 13) & 1)) >> 13) as u16
}

pub(super) fn from_half(half: u16) -> f32 {
    let sign = if half & 0x8000 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(half >> 10 & 0x1f), f32::from(half & 0x3ff));
    match exponent {
        0 => sign * mantissa * 2f32.powi(-24),
        31 if mantissa == 0.0 => sign * f32::INFINITY,
        31 => f32::NAN,
        _ => sign * (1.0 + mantissa / 1024.0) * 2f32.powi(exponent - 15),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the definition: no other half is nearer.
    #[test]
    fn every_half_comes_back_and_what_lies_between_goes_to_the_nearest() {
        for half in (0..0x7c00u16).chain([0x8000, 0x8001, 0xbc00, 0xfbff]) {
            assert_eq!(to_half(from_half(half)), half);
        }
        for half in 0..0x7bffu16 {
            let (low, high) = (f64::from(from_half(half)), f64::from(from_half(half + 1)));
            let middle = ((low + high) / 2.0) as f32;
            assert_eq!(to_half(middle), if half % 2 == 0 { half } else { half + 1 }, "{half}");
            assert_eq!(to_half(f32::from_bits(middle.to_bits() + 1)), half + 1);
            assert_eq!(to_half(f32::from_bits(middle.to_bits() - 1)), half);
        }
        for (x, want) in
            [(f32::NEG_INFINITY, 0xfc00), (65504.0, 0x7bff), (65519.9, 0x7bff), (65520.0, 0x7c00), (1e9, 0x7c00)]
        {
            assert_eq!(to_half(x), want, "{x}");
        }
        assert!(from_half(to_half(f32::NAN)).is_nan());
    }
}
