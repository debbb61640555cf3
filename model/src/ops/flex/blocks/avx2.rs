//! The tile on 256 bits: 32 columns are four registers, row by row. `vpmaddubsw` takes unsigned codes on one side and adds
//! pairs in 16 bits: weights give their size and the activations take their sign, so that no pair overflows.

use super::pack::{Form, Line, Strip, VALUES};
use super::round::RoundedRows;
use super::{BLOCK, COLS, ROWS, Sums};
use std::arch::x86_64::*;
use std::ops::Range;
use std::sync::OnceLock;

pub fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
    })
}

/// The sums of some rows over a strip; the caller has checked that they exist.
pub fn tile(x: RoundedRows, rows: Range<usize>, strip: Strip, out: &mut [Sums; ROWS]) {
    assert!(available() && strip.lines.len() == x.blocks() * (1 + strip.form.lines()), "a strip of the matrix");
    for (row, out) in rows.zip(out) {
        let (codes, scales) = (&x.codes[row * x.depth..][..x.depth], &x.scales[row * x.blocks()..][..x.blocks()]);
        // SAFETY: the processor has the instructions; the codes are as many as the scales' blocks, and so is the strip.
        #[expect(unsafe_code, reason = "vector instructions behind run-time detection")]
        unsafe {
            one(codes, scales, strip.lines, strip.form, out)
        };
    }
}

/// Adds the products of four codes with four values of eight columns each.
#[inline]
#[target_feature(enable = "avx2")]
fn add(sum: __m256i, values: __m256i, four: __m256i) -> __m256i {
    let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(values), _mm256_sign_epi8(four, values));
    _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
}

/// # Safety
/// `strip` has a line of scales and the form's lines of codes for each block of `codes`.
#[target_feature(enable = "avx2,fma,f16c")]
#[expect(unsafe_code, reason = "registers are loaded from pointers")]
unsafe fn one(codes: &[i8], scales: &[f32], strip: &[Line], form: Form, out: &mut Sums) {
    // SAFETY: as promised by the caller: every load lies within a line, a block of codes, or the table.
    unsafe {
        let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(VALUES.as_ptr().cast()));
        let low = _mm256_set1_epi8(15);
        let mut total = [_mm256_setzero_ps(); 4];
        let mut w = strip.as_ptr();
        for (codes, scale) in codes.chunks_exact(BLOCK).zip(scales) {
            let four = |d: usize| _mm256_set1_epi32(codes.as_ptr().add(d).cast::<i32>().read_unaligned());
            let lines: *const __m256i = w.add(1).cast();
            let mut whole = [_mm256_setzero_si256(); 4];
            match form {
                Form::Bytes { zero } => {
                    let zero = _mm256_set1_epi8(zero.cast_signed());
                    for group in 0..8 {
                        let x = four(4 * group);
                        for (part, sum) in whole.iter_mut().enumerate() {
                            let values = _mm256_sub_epi8(_mm256_load_si256(lines.add(4 * group + part)), zero);
                            *sum = add(*sum, values, x);
                        }
                    }
                }
                Form::Nibbles | Form::Table => {
                    for group in 0..4 {
                        let (first, second) = (four(4 * group), four(BLOCK / 2 + 4 * group));
                        for (part, sum) in whole.iter_mut().enumerate() {
                            let raw = _mm256_load_si256(lines.add(4 * group + part));
                            let halves =
                                [_mm256_and_si256(raw, low), _mm256_and_si256(_mm256_srli_epi16::<4>(raw), low)];
                            let [a, b] = match form {
                                Form::Table => {
                                    [_mm256_shuffle_epi8(table, halves[0]), _mm256_shuffle_epi8(table, halves[1])]
                                }
                                _ => {
                                    let zero = _mm256_set1_epi8(8);
                                    [_mm256_sub_epi8(halves[0], zero), _mm256_sub_epi8(halves[1], zero)]
                                }
                            };
                            *sum = add(add(*sum, a, first), b, second);
                        }
                    }
                }
            }
            let halves: *const __m128i = w.cast();
            let dx = _mm256_set1_ps(*scale);
            for (part, (total, whole)) in total.iter_mut().zip(whole).enumerate() {
                let scale = _mm256_mul_ps(_mm256_cvtph_ps(_mm_load_si128(halves.add(part))), dx);
                *total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), scale, *total);
            }
            w = w.add(1 + form.lines());
        }
        const { assert!(COLS == 32) };
        for (part, total) in total.into_iter().enumerate() {
            _mm256_storeu_ps(out.as_mut_ptr().add(8 * part), total);
        }
    }
}
