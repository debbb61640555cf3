//! The product on 512-bit `vdpbf16ps`: 8 rows by 48 columns of sums in 24 registers; and the conversions to bfloat16 that
//! the packing uses. The kernel is assembly because the compiler spills sums that are an array.

#[cfg(target_arch = "x86_64")]
use super::TILE;
use super::{Block, Left, Line, RightPart};

#[cfg(target_arch = "x86_64")]
pub(super) use native::{
    available, fast, interleaved, interleaved_pairs, left_tile, line, rectangle, row, transpose_pairs,
};

#[cfg(not(target_arch = "x86_64"))]
pub(super) use absent::{
    available, fast, interleaved, interleaved_pairs, left_tile, line, rectangle, row, transpose_pairs,
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
    pub unsafe fn rectangle(_: *mut f32, _: usize, _: bool, _: &[(&Left, RightPart)], _: usize, _: usize, _: &Block) {
        unreachable!("this machine has no AVX-512")
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vector instructions behind run-time detection")]
mod native {
    use super::{Block, Left, Line, RightPart, TILE};
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

    /// Rows and right panels of one kernel.
    const ROWS: usize = 8;
    const PANELS: usize = 3;

    #[repr(C, align(64))]
    struct Sums([[f32; PANELS * TILE]; ROWS]);

    /// # Safety
    /// As [`super::super::portable::rectangle`], and [`available`].
    pub unsafe fn rectangle(
        out: *mut f32,
        stride: usize,
        accumulate: bool,
        terms: &[(&Left, RightPart)],
        row: usize,
        col: usize,
        block: &Block,
    ) {
        let mut sums = Sums([[0.0; PANELS * TILE]; ROWS]);
        for j in (0..block.cols).step_by(PANELS * TILE) {
            for i in (0..block.rows).step_by(ROWS) {
                let (rows, cols) = ((block.rows - i).min(ROWS), (block.cols - j).min(PANELS * TILE));
                sums.0 = [[0.0; PANELS * TILE]; ROWS];
                // SAFETY: what is copied is the part of the caller's rectangle that exists. The kernel reads whole tiles
                // inside the operands' vectors: rows and columns are padded to tiles, and a missing panel is replaced by
                // the first, whose sums nobody reads.
                unsafe {
                    let corner = out.add(i * stride + j);
                    if accumulate {
                        for (r, sums) in sums.0.iter_mut().enumerate().take(rows) {
                            std::ptr::copy_nonoverlapping(corner.add(r * stride), sums.as_mut_ptr(), cols);
                        }
                    }
                    for (left, right) in terms {
                        let n = left.depth_tiles();
                        if n == 0 {
                            continue;
                        }
                        let a = left.lines.as_ptr().add((row + i) / TILE * n * TILE + (row + i) % TILE);
                        let b0 = right.lines.as_ptr().add((col + j) / TILE * right.panel * TILE);
                        let b1 = if cols > TILE { b0.add(right.panel * TILE) } else { b0 };
                        let b2 = if cols > 2 * TILE { b0.add(2 * right.panel * TILE) } else { b0 };
                        kernel(&mut sums, a, [b0, b1, b2], n);
                    }
                    for (r, sums) in sums.0.iter().enumerate().take(rows) {
                        std::ptr::copy_nonoverlapping(sums.as_ptr(), corner.add(r * stride), cols);
                    }
                }
            }
        }
    }

    /// Adds the products of `n` tiles: 8 rows from `a` on, 3 panels.
    ///
    /// # Safety
    /// Each pointer leads to `n` tiles (`a` to the first or the ninth line of one); `n` is not 0; [`available`].
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn kernel(sums: &mut Sums, a: *const Line, [b0, b1, b2]: [*const Line; PANELS], n: usize) {
        // SAFETY: as promised by the caller: 16 steps of 4 bytes along 8 lines of `a` and 16 lines of each panel a tile.
        unsafe {
            asm!(
                "vmovaps zmm0, [{sums} + 0]", "vmovaps zmm1, [{sums} + 64]", "vmovaps zmm2, [{sums} + 128]",
                "vmovaps zmm3, [{sums} + 192]", "vmovaps zmm4, [{sums} + 256]", "vmovaps zmm5, [{sums} + 320]",
                "vmovaps zmm6, [{sums} + 384]", "vmovaps zmm7, [{sums} + 448]", "vmovaps zmm8, [{sums} + 512]",
                "vmovaps zmm9, [{sums} + 576]", "vmovaps zmm10, [{sums} + 640]", "vmovaps zmm11, [{sums} + 704]",
                "vmovaps zmm12, [{sums} + 768]", "vmovaps zmm13, [{sums} + 832]", "vmovaps zmm14, [{sums} + 896]",
                "vmovaps zmm15, [{sums} + 960]", "vmovaps zmm16, [{sums} + 1024]", "vmovaps zmm17, [{sums} + 1088]",
                "vmovaps zmm18, [{sums} + 1152]", "vmovaps zmm19, [{sums} + 1216]", "vmovaps zmm20, [{sums} + 1280]",
                "vmovaps zmm21, [{sums} + 1344]", "vmovaps zmm22, [{sums} + 1408]", "vmovaps zmm23, [{sums} + 1472]",
                "2:", "mov {step:e}, 16",
                "3:",
                "vmovaps zmm24, [{b0}]", "vmovaps zmm25, [{b1}]", "vmovaps zmm26, [{b2}]",
                "vbroadcastss zmm27, dword ptr [{a}]", "vdpbf16ps zmm0, zmm27, zmm24", "vdpbf16ps zmm1, zmm27, zmm25", "vdpbf16ps zmm2, zmm27, zmm26",
                "vbroadcastss zmm28, dword ptr [{a} + 64]", "vdpbf16ps zmm3, zmm28, zmm24", "vdpbf16ps zmm4, zmm28, zmm25", "vdpbf16ps zmm5, zmm28, zmm26",
                "vbroadcastss zmm29, dword ptr [{a} + 128]", "vdpbf16ps zmm6, zmm29, zmm24", "vdpbf16ps zmm7, zmm29, zmm25", "vdpbf16ps zmm8, zmm29, zmm26",
                "vbroadcastss zmm30, dword ptr [{a} + 192]", "vdpbf16ps zmm9, zmm30, zmm24", "vdpbf16ps zmm10, zmm30, zmm25", "vdpbf16ps zmm11, zmm30, zmm26",
                "vbroadcastss zmm27, dword ptr [{a} + 256]", "vdpbf16ps zmm12, zmm27, zmm24", "vdpbf16ps zmm13, zmm27, zmm25", "vdpbf16ps zmm14, zmm27, zmm26",
                "vbroadcastss zmm28, dword ptr [{a} + 320]", "vdpbf16ps zmm15, zmm28, zmm24", "vdpbf16ps zmm16, zmm28, zmm25", "vdpbf16ps zmm17, zmm28, zmm26",
                "vbroadcastss zmm29, dword ptr [{a} + 384]", "vdpbf16ps zmm18, zmm29, zmm24", "vdpbf16ps zmm19, zmm29, zmm25", "vdpbf16ps zmm20, zmm29, zmm26",
                "vbroadcastss zmm30, dword ptr [{a} + 448]", "vdpbf16ps zmm21, zmm30, zmm24", "vdpbf16ps zmm22, zmm30, zmm25", "vdpbf16ps zmm23, zmm30, zmm26",
                "add {a}, 4", "add {b0}, 64", "add {b1}, 64", "add {b2}, 64", "dec {step:e}", "jnz 3b",
                "add {a}, 960", "dec {n}", "jnz 2b",
                "vmovaps [{sums} + 0], zmm0", "vmovaps [{sums} + 64], zmm1", "vmovaps [{sums} + 128], zmm2",
                "vmovaps [{sums} + 192], zmm3", "vmovaps [{sums} + 256], zmm4", "vmovaps [{sums} + 320], zmm5",
                "vmovaps [{sums} + 384], zmm6", "vmovaps [{sums} + 448], zmm7", "vmovaps [{sums} + 512], zmm8",
                "vmovaps [{sums} + 576], zmm9", "vmovaps [{sums} + 640], zmm10", "vmovaps [{sums} + 704], zmm11",
                "vmovaps [{sums} + 768], zmm12", "vmovaps [{sums} + 832], zmm13", "vmovaps [{sums} + 896], zmm14",
                "vmovaps [{sums} + 960], zmm15", "vmovaps [{sums} + 1024], zmm16", "vmovaps [{sums} + 1088], zmm17",
                "vmovaps [{sums} + 1152], zmm18", "vmovaps [{sums} + 1216], zmm19", "vmovaps [{sums} + 1280], zmm20",
                "vmovaps [{sums} + 1344], zmm21", "vmovaps [{sums} + 1408], zmm22", "vmovaps [{sums} + 1472], zmm23",
                sums = in(reg) sums, a = inout(reg) a => _, b0 = inout(reg) b0 => _, b1 = inout(reg) b1 => _,
                b2 = inout(reg) b2 => _, n = inout(reg) n => _, step = out(reg) _,
                out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _, out("zmm6") _, out("zmm7") _,
                out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _, out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _,
                out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _, out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
                out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _, out("zmm28") _, out("zmm29") _, out("zmm30") _,
                options(nostack));
        }
    }
}
