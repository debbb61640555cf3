//! The product on 512-bit `vdpbf16ps`: 8 rows by 32 columns of sums in registers, or 16 by 16; and the conversions to
//! bfloat16 that the packing uses. The kernels are assembly because the compiler spills sums that are an array.

use super::{Block, Left, Line, RightPart};
#[cfg(target_arch = "x86_64")]
use super::{DEPTH, TILE};

#[cfg(target_arch = "x86_64")]
pub(super) use native::{
    available, fast, interleaved, interleaved_pairs, left_tile, line, row, strip, transpose_pairs,
};

#[cfg(not(target_arch = "x86_64"))]
pub(super) use absent::{
    available, fast, interleaved, interleaved_pairs, left_tile, line, row, strip, transpose_pairs,
};

#[cfg(not(target_arch = "x86_64"))]
mod absent {
    use super::{Block, Left, Line, RightPart};

    pub fn available() -> bool {
        false
    }

    pub fn fast() -> bool {
        false
    }

    pub fn line(_: &[f32]) -> Line {
        unreachable!("this machine has no AVX-512")
    }

    pub fn transpose_pairs(_: &[Line; 16], _: &mut [Line]) {
        unreachable!("this machine has no AVX-512")
    }

    pub fn row(_: &[f32], _: &mut [Line]) {
        unreachable!("this machine has no AVX-512")
    }

    pub fn interleaved(_: &[f32], _: &[f32]) -> Line {
        unreachable!("this machine has no AVX-512")
    }

    pub fn left_tile(_: &[[f32; 32]], _: &mut [Line]) {
        unreachable!("this machine has no AVX-512")
    }

    pub fn interleaved_pairs(_: &[Line], _: usize, _: &mut [Line]) {
        unreachable!("this machine has no AVX-512")
    }

    /// # Safety
    /// Never called where [`available`] is false.
    #[expect(unsafe_code, reason = "the same signature as on the processors that have it")]
    pub unsafe fn strip(_: *mut f32, _: bool, _: &[(&Left, RightPart)], _: usize, _: usize, _: &Block) {
        unreachable!("this machine has no AVX-512")
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vector instructions behind run-time detection")]
mod native {
    use super::{Block, DEPTH, Left, Line, RightPart, TILE};
    use std::arch::asm;
    use std::arch::x86_64::*;
    use std::sync::OnceLock;

    pub fn available() -> bool {
        static AVAILABLE: OnceLock<bool> = OnceLock::new();
        *AVAILABLE.get_or_init(|| {
            is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512bf16")
        })
    }

    /// Whether the instruction keeps up with float32's: on AMD's processors it does.
    pub fn fast() -> bool {
        let leaf = __cpuid(0);
        available() && [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
    }

    /// Up to 32 values, rounded; zeros behind them.
    #[inline(always)]
    pub fn line(values: &[f32]) -> Line {
        assert!(values.len() <= 32 && available());
        // SAFETY: the processor has the instructions, and the slice at most 32 values.
        unsafe { line_inner(values) }
    }

    /// A row's whole lines, one in each tile: `tiles` begins at the row's line of the first.
    pub fn row(values: &[f32], tiles: &mut [Line]) {
        assert!(available());
        // SAFETY: the processor has the instructions.
        unsafe { row_inner(values, tiles) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn row_inner(values: &[f32], tiles: &mut [Line]) {
        for (line, values) in tiles.iter_mut().step_by(TILE).zip(values.as_chunks::<32>().0) {
            // SAFETY: a chunk has 32 values.
            *line = unsafe { line_inner(values) };
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn line_inner(values: &[f32]) -> Line {
        let present = if values.len() == 32 { u32::MAX } else { (1u32 << values.len()) - 1 };
        // SAFETY: the caller gave at most 32 values, and the masks leave out what lies behind them.
        unsafe {
            let low = _mm512_maskz_loadu_ps(present as u16, values.as_ptr());
            let high = _mm512_maskz_loadu_ps((present >> 16) as u16, values.as_ptr().wrapping_add(16));
            Line(std::mem::transmute::<__m512bh, [u16; 32]>(_mm512_cvtne2ps_pbh(high, low)))
        }
    }

    /// Pair `j` of line `i` becomes pair `i` of line `j`.
    pub fn transpose_pairs(from: &[Line; TILE], to: &mut [Line]) {
        assert!(to.len() == TILE && available());
        // SAFETY: the processor has the instructions, and both sides 16 lines.
        unsafe { transpose_pairs_inner(from, to) }
    }

    /// In four rounds: pairs, pairs of pairs, then 128-bit quarters twice.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn transpose_pairs_inner(from: &[Line; TILE], to: &mut [Line]) {
        // SAFETY: the caller says that both sides have 16 lines of 64 bytes.
        unsafe {
            let zero = _mm512_setzero_si512();
            let (mut a, mut b) = ([zero; TILE], [zero; TILE]);
            for (a, line) in a.iter_mut().zip(from) {
                *a = _mm512_loadu_si512(line.0.as_ptr().cast());
            }
            for i in 0..8 {
                b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
                b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
            }
            for i in 0..4 {
                a[4 * i] = _mm512_unpacklo_epi64(b[4 * i], b[4 * i + 2]);
                a[4 * i + 1] = _mm512_unpackhi_epi64(b[4 * i], b[4 * i + 2]);
                a[4 * i + 2] = _mm512_unpacklo_epi64(b[4 * i + 1], b[4 * i + 3]);
                a[4 * i + 3] = _mm512_unpackhi_epi64(b[4 * i + 1], b[4 * i + 3]);
            }
            for i in 0..4 {
                for half in 0..2 {
                    let (x, y) = (a[8 * half + i], a[8 * half + i + 4]);
                    b[8 * half + i] = _mm512_shuffle_i32x4::<0x88>(x, y);
                    b[8 * half + i + 4] = _mm512_shuffle_i32x4::<0xdd>(x, y);
                }
            }
            for i in 0..8 {
                let line = to[i].0.as_mut_ptr().cast();
                _mm512_storeu_si512(line, _mm512_shuffle_i32x4::<0x88>(b[i], b[i + 8]));
                let line = to[i + 8].0.as_mut_ptr().cast();
                _mm512_storeu_si512(line, _mm512_shuffle_i32x4::<0xdd>(b[i], b[i + 8]));
            }
        }
    }

    /// 16 values each, rounded, in turn.
    #[inline(always)]
    pub fn interleaved(even: &[f32], odd: &[f32]) -> Line {
        assert!(even.len() == 16 && odd.len() == 16 && available());
        // SAFETY: the processor has the instructions, and the slices have 16 values each.
        unsafe { interleaved_inner(even, odd) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn interleaved_inner(even: &[f32], odd: &[f32]) -> Line {
        const ORDER: [u16; 32] = {
            let mut order = [0; 32];
            let mut i = 0;
            while i < 16 {
                order[2 * i] = i as u16;
                order[2 * i + 1] = i as u16 + 16;
                i += 1;
            }
            order
        };
        // SAFETY: the caller gave 16 values on each side; the order is 64 bytes.
        unsafe {
            let both = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(odd.as_ptr()), _mm512_loadu_ps(even.as_ptr()));
            let order = _mm512_loadu_si512(ORDER.as_ptr().cast());
            let mixed = _mm512_permutexvar_epi16(order, std::mem::transmute::<__m512bh, __m512i>(both));
            Line(std::mem::transmute::<__m512i, [u16; 32]>(mixed))
        }
    }

    /// 16 rows of 32 values to the 16 lines of a left tile.
    pub fn left_tile(rows: &[[f32; 32]], tile: &mut [Line]) {
        assert!(available());
        // SAFETY: the processor has the instructions.
        unsafe { left_tile_inner(rows, tile) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn left_tile_inner(rows: &[[f32; 32]], tile: &mut [Line]) {
        for (line, row) in tile.iter_mut().zip(rows) {
            // SAFETY: a row has 32 values.
            *line = unsafe { line_inner(row) };
        }
    }

    /// Line `i` becomes lines `2i` and `2i + 1`, value by value, of the 16 columns from `16 * half` on.
    pub fn interleaved_pairs(rows: &[Line], half: usize, out: &mut [Line]) {
        assert!(available() && half < 2);
        // SAFETY: the processor has the instructions.
        unsafe { interleaved_pairs_inner(rows, half, out) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn interleaved_pairs_inner(rows: &[Line], half: usize, out: &mut [Line]) {
        const ORDER: [[u16; 32]; 2] = {
            let mut order = [[0; 32]; 2];
            let mut i = 0;
            while i < 32 {
                order[i / 16][2 * (i % 16)] = i as u16;
                order[i / 16][2 * (i % 16) + 1] = i as u16 + 32;
                i += 1;
            }
            order
        };
        // SAFETY: lines and the order are 64 bytes.
        unsafe {
            let order = _mm512_loadu_si512(ORDER[half].as_ptr().cast());
            for (line, [even, odd]) in out.iter_mut().zip(rows.as_chunks::<2>().0) {
                let (even, odd) =
                    (_mm512_loadu_si512(even.0.as_ptr().cast()), _mm512_loadu_si512(odd.0.as_ptr().cast()));
                let mixed = _mm512_permutex2var_epi16(even, order, odd);
                _mm512_storeu_si512(line.0.as_mut_ptr().cast(), mixed);
            }
        }
    }

    /// Tiles along the depth that all rows are multiplied with before the next: two panels of them stay in L1 (18 KiB).
    const CHUNK: usize = 9;

    /// Sums of up to 32 columns, row-major in `sums`, 32 apart; added to what is there when `begun`.
    ///
    /// # Safety
    /// [`available`]. `sums` has room for the block's rows, rounded up to 16, is aligned to 64 bytes, and nobody else
    /// touches it; the rows and columns from `row` and `col` on exist in every term.
    pub unsafe fn strip(
        sums: *mut f32,
        mut begun: bool,
        terms: &[(&Left, RightPart)],
        row: usize,
        col: usize,
        block: &Block,
    ) {
        for (left, right) in terms {
            let n = left.depth_tiles();
            // A single tile's pairs beyond the depth are zeros.
            let pairs = if left.depth < DEPTH { left.depth.div_ceil(2) } else { TILE };
            for from in (0..n).step_by(CHUNK) {
                let depth = Depth { tiles: (n - from).min(CHUNK), pairs };
                for i in (0..block.rows).step_by(TILE) {
                    // SAFETY: the kernels read whole tiles inside the operands' vectors, whose rows and columns are padded
                    // to tiles: 16 rows, and a panel where a column is. The sums are the caller's.
                    unsafe {
                        let sums = sums.add(i * DEPTH);
                        let a = left.lines.as_ptr().add(((row + i) / TILE * n + from) * TILE);
                        let b = right.lines.as_ptr().add((col / TILE * right.panel + from) * TILE);
                        if block.cols > TILE {
                            let b = [b, b.add(right.panel * TILE)];
                            two(sums, begun, a, b, &depth);
                            if block.rows - i > TILE / 2 {
                                two(sums.add(TILE / 2 * DEPTH), begun, a.add(TILE / 2), b, &depth);
                            }
                        } else {
                            one(sums, begun, a, b, &depth);
                        }
                    }
                }
                begun = true;
            }
        }
        if !begun {
            // SAFETY: the caller says that there is room.
            unsafe { std::ptr::write_bytes(sums, 0, block.rows * DEPTH) };
        }
    }

    /// How far a kernel goes along the depth: so many pairs in each of its tiles.
    struct Depth {
        tiles: usize,
        pairs: usize,
    }

    /// Products along a depth, added to 8 rows of 32 sums or written there: 8 rows from `a` on, 2 panels.
    ///
    /// # Safety
    /// `sums` leads to the 8 rows; `a` to the first or the ninth line of the depth's tiles, of which there is one at least,
    /// and `b` to as many; [`available`].
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn two(sums: *mut f32, add: bool, a: *const Line, [b0, b1]: [*const Line; 2], depth: &Depth) {
        // SAFETY: as promised by the caller: up to 16 steps of 4 bytes along 8 lines of `a`, and of a line of each panel, a
        // tile. A tile of fewer steps is the last.
        unsafe {
            asm!(
                "test {add}, {add}", "jz 4f",
                "vmovaps zmm0, [{sums}]", "vmovaps zmm1, [{sums} + 64]", "vmovaps zmm2, [{sums} + 128]", "vmovaps zmm3, [{sums} + 192]",
                "vmovaps zmm4, [{sums} + 256]", "vmovaps zmm5, [{sums} + 320]", "vmovaps zmm6, [{sums} + 384]", "vmovaps zmm7, [{sums} + 448]",
                "vmovaps zmm8, [{sums} + 512]", "vmovaps zmm9, [{sums} + 576]", "vmovaps zmm10, [{sums} + 640]", "vmovaps zmm11, [{sums} + 704]",
                "vmovaps zmm12, [{sums} + 768]", "vmovaps zmm13, [{sums} + 832]", "vmovaps zmm14, [{sums} + 896]", "vmovaps zmm15, [{sums} + 960]",
                "jmp 2f", "4:",
                "vpxord zmm0, zmm0, zmm0", "vpxord zmm1, zmm1, zmm1", "vpxord zmm2, zmm2, zmm2", "vpxord zmm3, zmm3, zmm3",
                "vpxord zmm4, zmm4, zmm4", "vpxord zmm5, zmm5, zmm5", "vpxord zmm6, zmm6, zmm6", "vpxord zmm7, zmm7, zmm7",
                "vpxord zmm8, zmm8, zmm8", "vpxord zmm9, zmm9, zmm9", "vpxord zmm10, zmm10, zmm10", "vpxord zmm11, zmm11, zmm11",
                "vpxord zmm12, zmm12, zmm12", "vpxord zmm13, zmm13, zmm13", "vpxord zmm14, zmm14, zmm14", "vpxord zmm15, zmm15, zmm15",
                "2:", "mov {step:e}, {pairs:e}",
                "3:", "vmovaps zmm24, [{b0}]", "vmovaps zmm25, [{b1}]",
                "vbroadcastss zmm27, dword ptr [{a}]", "vdpbf16ps zmm0, zmm27, zmm24", "vdpbf16ps zmm1, zmm27, zmm25",
                "vbroadcastss zmm28, dword ptr [{a} + 64]", "vdpbf16ps zmm2, zmm28, zmm24", "vdpbf16ps zmm3, zmm28, zmm25",
                "vbroadcastss zmm29, dword ptr [{a} + 128]", "vdpbf16ps zmm4, zmm29, zmm24", "vdpbf16ps zmm5, zmm29, zmm25",
                "vbroadcastss zmm30, dword ptr [{a} + 192]", "vdpbf16ps zmm6, zmm30, zmm24", "vdpbf16ps zmm7, zmm30, zmm25",
                "vbroadcastss zmm27, dword ptr [{a} + 256]", "vdpbf16ps zmm8, zmm27, zmm24", "vdpbf16ps zmm9, zmm27, zmm25",
                "vbroadcastss zmm28, dword ptr [{a} + 320]", "vdpbf16ps zmm10, zmm28, zmm24", "vdpbf16ps zmm11, zmm28, zmm25",
                "vbroadcastss zmm29, dword ptr [{a} + 384]", "vdpbf16ps zmm12, zmm29, zmm24", "vdpbf16ps zmm13, zmm29, zmm25",
                "vbroadcastss zmm30, dword ptr [{a} + 448]", "vdpbf16ps zmm14, zmm30, zmm24", "vdpbf16ps zmm15, zmm30, zmm25",
                "add {a}, 4", "add {b0}, 64", "add {b1}, 64", "dec {step:e}", "jnz 3b",
                "add {a}, 960", "dec {n}", "jnz 2b",
                "vmovaps [{sums}], zmm0", "vmovaps [{sums} + 64], zmm1", "vmovaps [{sums} + 128], zmm2", "vmovaps [{sums} + 192], zmm3",
                "vmovaps [{sums} + 256], zmm4", "vmovaps [{sums} + 320], zmm5", "vmovaps [{sums} + 384], zmm6", "vmovaps [{sums} + 448], zmm7",
                "vmovaps [{sums} + 512], zmm8", "vmovaps [{sums} + 576], zmm9", "vmovaps [{sums} + 640], zmm10", "vmovaps [{sums} + 704], zmm11",
                "vmovaps [{sums} + 768], zmm12", "vmovaps [{sums} + 832], zmm13", "vmovaps [{sums} + 896], zmm14", "vmovaps [{sums} + 960], zmm15",
                sums = in(reg) sums, add = in(reg) add as usize, a = inout(reg) a => _, b0 = inout(reg) b0 => _, b1 = inout(reg) b1 => _,
                n = inout(reg) depth.tiles => _, pairs = in(reg) depth.pairs, step = out(reg) _,
                out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _, out("zmm6") _, out("zmm7") _,
                out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _, out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _,
                out("zmm24") _, out("zmm25") _, out("zmm27") _, out("zmm28") _, out("zmm29") _, out("zmm30") _,
                options(nostack));
        }
    }

    /// As [`two`], of 16 rows and the first 16 of their sums.
    ///
    /// # Safety
    /// As of [`two`], of 16 rows; `a` leads to the first line.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn one(sums: *mut f32, add: bool, a: *const Line, b: *const Line, depth: &Depth) {
        // SAFETY: as in `two`, along 16 lines of `a`.
        unsafe {
            asm!(
                "test {add}, {add}", "jz 4f",
                "vmovaps zmm0, [{sums}]", "vmovaps zmm1, [{sums} + 128]", "vmovaps zmm2, [{sums} + 256]", "vmovaps zmm3, [{sums} + 384]",
                "vmovaps zmm4, [{sums} + 512]", "vmovaps zmm5, [{sums} + 640]", "vmovaps zmm6, [{sums} + 768]", "vmovaps zmm7, [{sums} + 896]",
                "vmovaps zmm8, [{sums} + 1024]", "vmovaps zmm9, [{sums} + 1152]", "vmovaps zmm10, [{sums} + 1280]", "vmovaps zmm11, [{sums} + 1408]",
                "vmovaps zmm12, [{sums} + 1536]", "vmovaps zmm13, [{sums} + 1664]", "vmovaps zmm14, [{sums} + 1792]", "vmovaps zmm15, [{sums} + 1920]",
                "jmp 2f", "4:",
                "vpxord zmm0, zmm0, zmm0", "vpxord zmm1, zmm1, zmm1", "vpxord zmm2, zmm2, zmm2", "vpxord zmm3, zmm3, zmm3",
                "vpxord zmm4, zmm4, zmm4", "vpxord zmm5, zmm5, zmm5", "vpxord zmm6, zmm6, zmm6", "vpxord zmm7, zmm7, zmm7",
                "vpxord zmm8, zmm8, zmm8", "vpxord zmm9, zmm9, zmm9", "vpxord zmm10, zmm10, zmm10", "vpxord zmm11, zmm11, zmm11",
                "vpxord zmm12, zmm12, zmm12", "vpxord zmm13, zmm13, zmm13", "vpxord zmm14, zmm14, zmm14", "vpxord zmm15, zmm15, zmm15",
                "2:", "mov {step:e}, {pairs:e}",
                "3:", "vmovaps zmm24, [{b}]",
                "vdpbf16ps zmm0, zmm24, dword ptr [{a}]{{1to16}}", "vdpbf16ps zmm1, zmm24, dword ptr [{a} + 64]{{1to16}}",
                "vdpbf16ps zmm2, zmm24, dword ptr [{a} + 128]{{1to16}}", "vdpbf16ps zmm3, zmm24, dword ptr [{a} + 192]{{1to16}}",
                "vdpbf16ps zmm4, zmm24, dword ptr [{a} + 256]{{1to16}}", "vdpbf16ps zmm5, zmm24, dword ptr [{a} + 320]{{1to16}}",
                "vdpbf16ps zmm6, zmm24, dword ptr [{a} + 384]{{1to16}}", "vdpbf16ps zmm7, zmm24, dword ptr [{a} + 448]{{1to16}}",
                "vdpbf16ps zmm8, zmm24, dword ptr [{a} + 512]{{1to16}}", "vdpbf16ps zmm9, zmm24, dword ptr [{a} + 576]{{1to16}}",
                "vdpbf16ps zmm10, zmm24, dword ptr [{a} + 640]{{1to16}}", "vdpbf16ps zmm11, zmm24, dword ptr [{a} + 704]{{1to16}}",
                "vdpbf16ps zmm12, zmm24, dword ptr [{a} + 768]{{1to16}}", "vdpbf16ps zmm13, zmm24, dword ptr [{a} + 832]{{1to16}}",
                "vdpbf16ps zmm14, zmm24, dword ptr [{a} + 896]{{1to16}}", "vdpbf16ps zmm15, zmm24, dword ptr [{a} + 960]{{1to16}}",
                "add {a}, 4", "add {b}, 64", "dec {step:e}", "jnz 3b",
                "add {a}, 960", "dec {n}", "jnz 2b",
                "vmovaps [{sums}], zmm0", "vmovaps [{sums} + 128], zmm1", "vmovaps [{sums} + 256], zmm2", "vmovaps [{sums} + 384], zmm3",
                "vmovaps [{sums} + 512], zmm4", "vmovaps [{sums} + 640], zmm5", "vmovaps [{sums} + 768], zmm6", "vmovaps [{sums} + 896], zmm7",
                "vmovaps [{sums} + 1024], zmm8", "vmovaps [{sums} + 1152], zmm9", "vmovaps [{sums} + 1280], zmm10", "vmovaps [{sums} + 1408], zmm11",
                "vmovaps [{sums} + 1536], zmm12", "vmovaps [{sums} + 1664], zmm13", "vmovaps [{sums} + 1792], zmm14", "vmovaps [{sums} + 1920], zmm15",
                sums = in(reg) sums, add = in(reg) add as usize, a = inout(reg) a => _, b = inout(reg) b => _,
                n = inout(reg) depth.tiles => _, pairs = in(reg) depth.pairs, step = out(reg) _,
                out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _, out("zmm6") _, out("zmm7") _,
                out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _, out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _,
                out("zmm24") _,
                options(nostack));
        }
    }
}
