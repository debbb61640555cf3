//! Products with a frozen matrix that is kept as codes. Both passes decode the same codes, a panel of columns right before
//! it is multiplied, so that no more than a panel ever exists as numbers; the sums are those of the decoded matrix.

use super::bf16::{DEPTH, Square};
use super::compute::{Compute, Left, Part, Right};
use super::kernels::Threads;
use super::simd::vectorised;
use crate::ops::codes::{Absmax, Codes, Form, INT8_BLOCK, NF4_BLOCK, NF4_PAIRS};
use std::ops::Range;

/// The right side of a product: the matrix transposed in the forward pass, as it is in the backward one.
#[derive(Clone, Copy)]
pub(super) struct CodesPart<'a> {
    pub codes: &'a Codes,
    pub forward: bool,
}

/// A panel's columns are a multiple of this, which is what a task of a product takes.
const COLUMNS: usize = 192;
/// Values of a panel, at most, as long as it has [`COLUMNS`]: 1 MiB in bfloat16, so that it is multiplied from cache.
const PANEL: usize = 1 << 19;

impl CodesPart<'_> {
    pub fn depth(&self) -> usize {
        if self.forward { self.codes.n_in } else { self.codes.n_out }
    }

    pub fn cols(&self) -> usize {
        if self.forward { self.codes.n_out } else { self.codes.n_in }
    }

    /// The columns as an operand; they begin at a multiple of [`DEPTH`].
    fn panel(&self, compute: Compute, columns: Range<usize>) -> Right<'static> {
        let [made] = compute.fused([self.depth(), columns.len()], [], |row, col, [out]| {
            let col = columns.start + col;
            match self.forward {
                true => {
                    let mut upright = [[0f32; DEPTH]; DEPTH];
                    square(self.codes, col, row, &mut upright);
                    transpose(&upright, out);
                }
                false => square(self.codes, row, col, out),
            }
        });
        compute.right(made)
    }
}

/// [`Compute::product`] where at least one term's right side is codes.
pub(super) fn product(
    compute: Compute,
    threads: Threads,
    out: &mut [f32],
    stride: usize,
    accumulate: bool,
    terms: &[(&Left, Part)],
) {
    let parts = || terms.iter().filter_map(|(_, part)| if let Part::Codes(part) = part { Some(part) } else { None });
    let (depth, cols) = (parts().map(CodesPart::depth).sum::<usize>(), parts().map(CodesPart::cols).max().unwrap_or(0));
    let width = (PANEL / depth.max(1) / COLUMNS).max(1) * COLUMNS;
    for start in (0..cols).step_by(width) {
        let columns = start..(start + width).min(cols);
        let panels: Vec<Option<Right>> = terms
            .iter()
            .map(|(_, part)| match part {
                Part::Codes(part) => Some(part.panel(compute, columns.clone())),
                _ => None,
            })
            .collect();
        let terms: Vec<(&Left, Part)> = terms
            .iter()
            .zip(&panels)
            .map(|((left, part), panel)| match panel {
                Some(panel) => (*left, panel.all()),
                None => (*left, part.columns(columns.clone())),
            })
            .collect();
        compute.product(threads, &mut out[start..], stride, accumulate, &terms);
    }
}

/// Decodes the square at `(row, col)`, as far as the matrix reaches; `col` is a multiple of [`DEPTH`].
fn square(codes: &Codes, row: usize, col: usize, out: &mut Square) {
    let (rows, width) = ((codes.n_out - row).min(DEPTH), (codes.n_in - col).min(DEPTH));
    // Then each row of the square lies within one block, and begins a byte.
    if codes.n_in.is_multiple_of(DEPTH) {
        match &codes.form {
            Form::Int8 { codes: all, scales } => int8_rows(all, scales, codes.n_in, row, col, &mut out[..rows]),
            Form::Nf4 { codes: all, absmax } => nf4_rows(all, absmax, codes.n_in, row, col, &mut out[..rows]),
            Form::Bf16 { bits } => bf16_rows(bits, codes.n_in, row, col, &mut out[..rows]),
        }
    } else {
        for (i, out) in out[..rows].iter_mut().enumerate() {
            codes.decode((row + i) * codes.n_in + col, &mut out[..width]);
        }
    }
}

/// The value of a finite float16 number.
#[inline(always)]
fn half(bits: u16) -> f32 {
    // The exponents' biases differ by 112: the product is exact for subnormal numbers, too.
    let magnitude = f32::from_bits((u32::from(bits) & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
    f32::from_bits(magnitude.to_bits() | (u32::from(bits) & 0x8000) << 16)
}

vectorised! {
    fn int8_rows(codes: &[i8], scales: &[u16], n_in: usize, row: usize, col: usize, out: &mut [[f32; DEPTH]]) {
        for (i, out) in out.iter_mut().enumerate() {
            let from = (row + i) * n_in + col;
            let scale = half(scales[from / INT8_BLOCK]);
            let Some(codes) = codes[from..].first_chunk::<DEPTH>() else { return };
            for j in 0..DEPTH {
                out[j] = f32::from(codes[j]) * scale;
            }
        }
    }
}

fn nf4_rows(codes: &[u8], absmax: &Absmax, n_in: usize, row: usize, col: usize, out: &mut [[f32; DEPTH]]) {
    for (i, out) in out.iter_mut().enumerate() {
        let from = (row + i) * n_in + col;
        let scale = absmax.of(from / NF4_BLOCK);
        let Some(codes) = codes[from / 2..].first_chunk::<{ DEPTH / 2 }>() else { return };
        if !wide::nf4(codes, scale, out) {
            for (pair, code) in out.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
                *pair = NF4_PAIRS[usize::from(*code)].map(|x| x * scale);
            }
        }
    }
}

vectorised! {
    fn bf16_rows(bits: &[u16], n_in: usize, row: usize, col: usize, out: &mut [[f32; DEPTH]]) {
        for (i, out) in out.iter_mut().enumerate() {
            let Some(bits) = bits[(row + i) * n_in + col..].first_chunk::<DEPTH>() else { return };
            for j in 0..DEPTH {
                out[j] = f32::from_bits(u32::from(bits[j]) << 16);
            }
        }
    }
}

fn transpose(from: &Square, to: &mut Square) {
    if !wide::transpose(from, to) {
        for (i, to) in to.iter_mut().enumerate() {
            for (to, from) in to.iter_mut().zip(from) {
                *to = from[i];
            }
        }
    }
}

/// Shuffles that the compiler does not find: it takes gathers for them, which are slow, and slower where a processor's
/// microcode guards them. Each returns false where the processor has no 512-bit vectors.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vector instructions behind run-time detection")]
mod wide {
    use super::super::simd::{Width, width};
    use super::{DEPTH, Square};
    use crate::ops::codes::NF4;
    use std::arch::x86_64::*;

    pub fn nf4(codes: &[u8; DEPTH / 2], scale: f32, out: &mut [f32; DEPTH]) -> bool {
        let here = width() == Width::Avx512;
        if here {
            // SAFETY: `width` found the instructions on this processor.
            unsafe { nf4_inner(codes, scale, out) }
        }
        here
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn nf4_inner(codes: &[u8; DEPTH / 2], scale: f32, out: &mut [f32; DEPTH]) {
        // SAFETY: the table and the codes have 16 elements, the output 32.
        unsafe {
            let table = _mm512_loadu_ps(NF4.as_ptr());
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.as_ptr().cast()));
            let scale = _mm512_set1_ps(scale);
            // The look-up reads the lowest four bits of an index.
            let first = _mm512_mul_ps(_mm512_permutexvar_ps(_mm512_srli_epi32::<4>(bytes), table), scale);
            let second = _mm512_mul_ps(_mm512_permutexvar_ps(bytes, table), scale);
            let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
            _mm512_storeu_ps(out.as_mut_ptr(), _mm512_permutex2var_ps(first, low, second));
            _mm512_storeu_ps(out.as_mut_ptr().add(16), _mm512_permutex2var_ps(first, high, second));
        }
    }

    pub fn transpose(from: &Square, to: &mut Square) -> bool {
        let here = width() == Width::Avx512;
        if here {
            let (from, to) = (from.as_flattened().as_ptr(), to.as_flattened_mut().as_mut_ptr());
            for (i, j) in [(0, 0), (0, 16), (16, 0), (16, 16)] {
                // SAFETY: `width` found the instructions on this processor; both corners are those of a quarter.
                unsafe { quarter(from.add(i * DEPTH + j), to.add(j * DEPTH + i)) }
            }
        }
        here
    }

    /// # Safety
    /// Both lead to 16 rows of 16 values, [`DEPTH`] apart.
    #[target_feature(enable = "avx512f")]
    unsafe fn quarter(from: *const f32, to: *mut f32) {
        // SAFETY: as promised by the caller.
        unsafe {
            // Loops, for the compiler does not merge a closure with these instructions into `map` or `from_fn`.
            let mut rows = [_mm512_setzero_ps(); 16];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = _mm512_loadu_ps(from.add(i * DEPTH));
            }
            // Each step doubles what lies together of a column: 2 rows, then 4 in each of four parts, 8, and 16.
            let mut pairs = rows;
            for i in 0..8 {
                let (a, b) = (rows[2 * i], rows[2 * i + 1]);
                (pairs[2 * i], pairs[2 * i + 1]) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            }
            let mut fours = pairs;
            for i in 0..4 {
                for half in 0..2 {
                    let (a, b) = (_mm512_castps_pd(pairs[4 * i + half]), _mm512_castps_pd(pairs[4 * i + half + 2]));
                    fours[4 * i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
                    fours[4 * i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
                }
            }
            for column in 0..4 {
                let (a, b, c, d) = (fours[column], fours[column + 4], fours[column + 8], fours[column + 12]);
                let (even, even_below) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d));
                let (odd, odd_below) = (_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(c, d));
                let to = to.add(column * DEPTH);
                _mm512_storeu_ps(to, _mm512_shuffle_f32x4::<0x88>(even, even_below));
                _mm512_storeu_ps(to.add(4 * DEPTH), _mm512_shuffle_f32x4::<0x88>(odd, odd_below));
                _mm512_storeu_ps(to.add(8 * DEPTH), _mm512_shuffle_f32x4::<0xdd>(even, even_below));
                _mm512_storeu_ps(to.add(12 * DEPTH), _mm512_shuffle_f32x4::<0xdd>(odd, odd_below));
            }
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod wide {
    use super::{DEPTH, Square};

    pub fn nf4(_: &[u8; DEPTH / 2], _: f32, _: &mut [f32; DEPTH]) -> bool {
        false
    }

    pub fn transpose(_: &Square, _: &mut Square) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::codes::QuantizeBase;
    use crate::ops::flex::bf16::Engine;
    use crate::ops::flex::kernels::tests::values;

    fn computes() -> Vec<Compute> {
        let engines = [Engine::Portable, Engine::Avx512, Engine::Amx].into_iter().filter(|e| e.available());
        std::iter::once(Compute::F32).chain(engines.map(Compute::Bf16)).collect()
    }

    const SHAPES: [(usize, usize); 8] =
        [(1, 1), (3, 64), (40, 33), (64, 32), (200, 96), (33, 192), (500, 320), (384, 1600)];

    /// None is bfloat16.
    const FORMS: [QuantizeBase; 4] =
        [QuantizeBase::None, QuantizeBase::Int8, QuantizeBase::Nf4, QuantizeBase::Nf4DoubleQuant];

    fn made(quantize: QuantizeBase, n_out: usize, n_in: usize, seed: u64) -> Codes {
        let data = values(n_out * n_in, seed);
        Codes::quantize(quantize, &data, n_out, n_in).unwrap_or_else(|| Codes::bf16(&data, n_out, n_in))
    }

    #[test]
    fn squares_hold_the_very_values_of_the_plain_decoding() {
        for quantize in FORMS {
            for (n_out, n_in) in SHAPES {
                let codes = made(quantize, n_out, n_in, 5);
                let plain = codes.dequantize();
                for row in (0..n_out).step_by(DEPTH) {
                    for col in (0..n_in).step_by(DEPTH) {
                        let mut out = [[9f32; DEPTH]; DEPTH];
                        square(&codes, row, col, &mut out);
                        let mut turned = [[0f32; DEPTH]; DEPTH];
                        transpose(&out, &mut turned);
                        for i in 0..(n_out - row).min(DEPTH) {
                            for j in 0..(n_in - col).min(DEPTH) {
                                assert_eq!(out[i][j].to_bits(), plain[(row + i) * n_in + col + j].to_bits());
                                assert_eq!(turned[j][i].to_bits(), out[i][j].to_bits());
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn every_float16_scale_is_read_exactly() {
        for bits in (0..=u16::MAX).filter(|bits| half::f16::from_bits(*bits).is_finite()) {
            assert_eq!(half(bits).to_bits(), half::f16::from_bits(bits).to_f32().to_bits(), "{bits:#06x}");
        }
    }

    /// Two codes and one plain matrix in one product, into a wider output: the bits of the product with the decoded
    /// matrices, in float32 the same sums up to the order that gemm chooses for another width.
    #[test]
    fn a_product_with_codes_is_the_product_with_the_decoded_matrix() {
        for quantize in FORMS {
            for (n_out, n_in) in SHAPES {
                for forward in [true, false] {
                    for compute in computes() {
                        check(quantize, n_out, n_in, forward, compute);
                    }
                }
            }
        }
    }

    fn check(quantize: QuantizeBase, n_out: usize, n_in: usize, forward: bool, compute: Compute) {
        let (depth, cols) = if forward { (n_in, n_out) } else { (n_out, n_in) };
        let (m, r, gap) = (17, 5, 3);
        let codes = [5, 6].map(|seed| made(quantize, n_out, n_in, seed));
        let plain = codes.each_ref().map(Codes::dequantize);
        let (x, t, b) = (values(m * depth, 7), values(m * r, 8), values(r * cols, 9));
        let (x, t) = (compute.left_rows(&x, depth, m, depth), compute.left_rows(&t, r, m, r));
        let b = compute.right_rows(&b, cols, r, cols);
        let stride = cols + gap;
        let run = |parts: [Part; 2], accumulate: bool| {
            let mut out = vec![0.25f32; m * stride];
            let terms = [(&x, parts[0]), (&t, b.all()), (&x, parts[1])];
            compute.product(Threads::All, &mut out, stride, accumulate, &terms);
            out
        };
        let right = plain.each_ref().map(|w| match forward {
            true => compute.right_columns(w, n_in, depth, cols),
            false => compute.right_rows(w, n_in, depth, cols),
        });
        for accumulate in [false, true] {
            let got = run(codes.each_ref().map(|codes| Part::Codes(CodesPart { codes, forward })), accumulate);
            let want = run([right[0].all(), right[1].all()], accumulate);
            for (at, (got, want)) in got.iter().zip(&want).enumerate() {
                let what = format!("{quantize} {n_out}x{n_in} forward {forward} {compute:?} [{at}]: {got}, {want}");
                match compute {
                    Compute::Bf16(_) => assert_eq!(got.to_bits(), want.to_bits(), "{what}"),
                    Compute::F32 | Compute::Strips => {
                        assert!((got - want).abs() <= 1e-6 * (depth as f32).sqrt() * 4.0, "{what}")
                    }
                }
            }
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let parts = codes.each_ref().map(|codes| Part::Codes(CodesPart { codes, forward }));
                assert_eq!(pool.install(|| run(parts, accumulate)), got, "{threads} threads");
            }
        }
    }
}
