//! The product on 512-bit `vdpbf16ps`: 8 rows by 48 or 32 columns of sums in registers, read and written where they belong;
//! and the conversions to bfloat16 that the packing uses. The kernels are assembly because the compiler spills sums that are
//! an array.

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

    /// Rows of one kernel, and the most right panels.
    const ROWS: usize = 8;
    const PANELS: usize = 3;

    /// What a kernel works on where its rectangle is not whole.
    #[repr(C, align(64))]
    struct Sums([[f32; PANELS * TILE]; ROWS]);

    /// Panels of the next kernel where so many columns are left: three, or two where three would leave a single one or
    /// multiply for nobody. (Squares of 32 columns and heads of 64 would waste a third.)
    fn panels(columns: usize) -> usize {
        match columns.div_ceil(TILE) {
            1 | 2 | 4 => 2,
            _ => PANELS,
        }
    }

    /// Tiles along the depth that all rows are multiplied with before the next: a kernel's panels stay in L1 (18 KiB).
    const CHUNK: usize = 18;

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
        let mut j = 0;
        while j < block.cols {
            let panels = panels(block.cols - j);
            let cols = (block.cols - j).min(panels * TILE);
            let mut add = accumulate;
            for (left, right) in terms {
                let n = left.depth_tiles();
                let chunk = CHUNK / panels;
                for depth in (0..n).step_by(chunk) {
                    let tiles = (n - depth).min(chunk);
                    for i in (0..block.rows).step_by(ROWS) {
                        let rows = (block.rows - i).min(ROWS);
                        // SAFETY: the kernel reads whole tiles inside the operands' vectors: rows and columns are padded to
                        // tiles, and a missing panel is replaced by the first, whose sums nobody reads. What it writes is
                        // the part of the caller's rectangle that begins here.
                        unsafe {
                            let a = left.lines.as_ptr().add(((row + i) / TILE * n + depth) * TILE + (row + i) % TILE);
                            let b0 = right.lines.as_ptr().add(((col + j) / TILE * right.panel + depth) * TILE);
                            let b =
                                [0, 1, 2].map(|k| if cols > k * TILE { b0.add(k * right.panel * TILE) } else { b0 });
                            sum(out.add(i * stride + j), stride, add, a, b, tiles, panels, [rows, cols]);
                        }
                    }
                    add = true;
                }
            }
            if !add {
                for i in 0..block.rows {
                    // SAFETY: a row of the caller's rectangle.
                    unsafe { std::ptr::write_bytes(out.add(i * stride + j), 0, cols) };
                }
            }
            j += panels * TILE;
        }
    }

    /// One kernel's work, of which `rows` and `cols` exist.
    ///
    /// # Safety
    /// As of [`three`] or [`two`], whichever `panels` says, but for the rows and columns that do not exist.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "what two kernels take, and what of it exists")]
    unsafe fn sum(
        out: *mut f32,
        stride: usize,
        add: bool,
        a: *const Line,
        [b0, b1, b2]: [*const Line; PANELS],
        tiles: usize,
        panels: usize,
        [rows, cols]: [usize; 2],
    ) {
        // SAFETY: as promised by the caller; where rows or columns are missing, the kernel writes to a place of its own.
        unsafe {
            let kernel = |out: *mut f32, stride: usize| match panels {
                PANELS => three(out, stride, add, a, [b0, b1, b2], tiles),
                _ => two(out, stride, add, a, [b0, b1], tiles),
            };
            if rows == ROWS && cols == panels * TILE {
                return kernel(out, stride);
            }
            let mut sums = Sums([[0.0; PANELS * TILE]; ROWS]);
            if add {
                for (r, sums) in sums.0.iter_mut().enumerate().take(rows) {
                    std::ptr::copy_nonoverlapping(out.add(r * stride), sums.as_mut_ptr(), cols);
                }
            }
            kernel(sums.0.as_mut_ptr().cast(), PANELS * TILE);
            for (r, sums) in sums.0.iter().enumerate().take(rows) {
                std::ptr::copy_nonoverlapping(sums.as_ptr(), out.add(r * stride), cols);
            }
        }
    }

    /// The products of `n` tiles, added to `out` or written there: 8 rows from `a` on, 3 panels.
    ///
    /// # Safety
    /// `out` leads to 8 rows of 48 values; the others to `n` tiles (`a` to the first or the ninth line of one); `n` is not
    /// 0; [`available`].
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn three(
        out: *mut f32,
        stride: usize,
        accumulate: bool,
        a: *const Line,
        [b0, b1, b2]: [*const Line; 3],
        n: usize,
    ) {
        // SAFETY: as promised by the caller: 16 steps of 4 bytes along 8 lines of `a` and 16 lines of each panel a tile.
        unsafe {
            asm!(
                "test {add}, {add}", "jz 4f",
                "vmovups zmm0, [{out}]", "vmovups zmm1, [{out} + 64]", "vmovups zmm2, [{out} + 128]",
                "vmovups zmm3, [{out} + {stride}]", "vmovups zmm4, [{out} + {stride} + 64]", "vmovups zmm5, [{out} + {stride} + 128]",
                "vmovups zmm6, [{out} + 2 * {stride}]", "vmovups zmm7, [{out} + 2 * {stride} + 64]", "vmovups zmm8, [{out} + 2 * {stride} + 128]",
                "vmovups zmm9, [{out} + {stride3}]", "vmovups zmm10, [{out} + {stride3} + 64]", "vmovups zmm11, [{out} + {stride3} + 128]",
                "vmovups zmm12, [{out4}]", "vmovups zmm13, [{out4} + 64]", "vmovups zmm14, [{out4} + 128]",
                "vmovups zmm15, [{out4} + {stride}]", "vmovups zmm16, [{out4} + {stride} + 64]", "vmovups zmm17, [{out4} + {stride} + 128]",
                "vmovups zmm18, [{out4} + 2 * {stride}]", "vmovups zmm19, [{out4} + 2 * {stride} + 64]", "vmovups zmm20, [{out4} + 2 * {stride} + 128]",
                "vmovups zmm21, [{out4} + {stride3}]", "vmovups zmm22, [{out4} + {stride3} + 64]", "vmovups zmm23, [{out4} + {stride3} + 128]",
                "jmp 2f", "4:",
                "vpxord zmm0, zmm0, zmm0", "vpxord zmm1, zmm1, zmm1", "vpxord zmm2, zmm2, zmm2", "vpxord zmm3, zmm3, zmm3", "vpxord zmm4, zmm4, zmm4", "vpxord zmm5, zmm5, zmm5",
                "vpxord zmm6, zmm6, zmm6", "vpxord zmm7, zmm7, zmm7", "vpxord zmm8, zmm8, zmm8", "vpxord zmm9, zmm9, zmm9", "vpxord zmm10, zmm10, zmm10", "vpxord zmm11, zmm11, zmm11",
                "vpxord zmm12, zmm12, zmm12", "vpxord zmm13, zmm13, zmm13", "vpxord zmm14, zmm14, zmm14", "vpxord zmm15, zmm15, zmm15", "vpxord zmm16, zmm16, zmm16", "vpxord zmm17, zmm17, zmm17",
                "vpxord zmm18, zmm18, zmm18", "vpxord zmm19, zmm19, zmm19", "vpxord zmm20, zmm20, zmm20", "vpxord zmm21, zmm21, zmm21", "vpxord zmm22, zmm22, zmm22", "vpxord zmm23, zmm23, zmm23",
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
                "vmovups [{out}], zmm0", "vmovups [{out} + 64], zmm1", "vmovups [{out} + 128], zmm2",
                "vmovups [{out} + {stride}], zmm3", "vmovups [{out} + {stride} + 64], zmm4", "vmovups [{out} + {stride} + 128], zmm5",
                "vmovups [{out} + 2 * {stride}], zmm6", "vmovups [{out} + 2 * {stride} + 64], zmm7", "vmovups [{out} + 2 * {stride} + 128], zmm8",
                "vmovups [{out} + {stride3}], zmm9", "vmovups [{out} + {stride3} + 64], zmm10", "vmovups [{out} + {stride3} + 128], zmm11",
                "vmovups [{out4}], zmm12", "vmovups [{out4} + 64], zmm13", "vmovups [{out4} + 128], zmm14",
                "vmovups [{out4} + {stride}], zmm15", "vmovups [{out4} + {stride} + 64], zmm16", "vmovups [{out4} + {stride} + 128], zmm17",
                "vmovups [{out4} + 2 * {stride}], zmm18", "vmovups [{out4} + 2 * {stride} + 64], zmm19", "vmovups [{out4} + 2 * {stride} + 128], zmm20",
                "vmovups [{out4} + {stride3}], zmm21", "vmovups [{out4} + {stride3} + 64], zmm22", "vmovups [{out4} + {stride3} + 128], zmm23",
                out = in(reg) out, stride = in(reg) 4 * stride, stride3 = in(reg) 12 * stride, out4 = in(reg) out.wrapping_add(4 * stride),
                add = in(reg) accumulate as usize, a = inout(reg) a => _, b0 = inout(reg) b0 => _, b1 = inout(reg) b1 => _,
                b2 = inout(reg) b2 => _, n = inout(reg) n => _, step = out(reg) _,
                out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _, out("zmm6") _, out("zmm7") _,
                out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _, out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _,
                out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _, out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
                out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _, out("zmm28") _, out("zmm29") _, out("zmm30") _,
                options(nostack));
        }
    }

    /// As [`three`], of 2 panels.
    ///
    /// # Safety
    /// As of [`three`]; the rows of `out` have 32 values.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn two(
        out: *mut f32,
        stride: usize,
        accumulate: bool,
        a: *const Line,
        [b0, b1]: [*const Line; 2],
        n: usize,
    ) {
        // SAFETY: as in `three`.
        unsafe {
            asm!(
                "test {add}, {add}", "jz 4f",
                "vmovups zmm0, [{out}]", "vmovups zmm1, [{out} + 64]",
                "vmovups zmm2, [{out} + {stride}]", "vmovups zmm3, [{out} + {stride} + 64]",
                "vmovups zmm4, [{out} + 2 * {stride}]", "vmovups zmm5, [{out} + 2 * {stride} + 64]",
                "vmovups zmm6, [{out} + {stride3}]", "vmovups zmm7, [{out} + {stride3} + 64]",
                "vmovups zmm8, [{out4}]", "vmovups zmm9, [{out4} + 64]",
                "vmovups zmm10, [{out4} + {stride}]", "vmovups zmm11, [{out4} + {stride} + 64]",
                "vmovups zmm12, [{out4} + 2 * {stride}]", "vmovups zmm13, [{out4} + 2 * {stride} + 64]",
                "vmovups zmm14, [{out4} + {stride3}]", "vmovups zmm15, [{out4} + {stride3} + 64]",
                "jmp 2f", "4:",
                "vpxord zmm0, zmm0, zmm0", "vpxord zmm1, zmm1, zmm1", "vpxord zmm2, zmm2, zmm2", "vpxord zmm3, zmm3, zmm3",
                "vpxord zmm4, zmm4, zmm4", "vpxord zmm5, zmm5, zmm5", "vpxord zmm6, zmm6, zmm6", "vpxord zmm7, zmm7, zmm7",
                "vpxord zmm8, zmm8, zmm8", "vpxord zmm9, zmm9, zmm9", "vpxord zmm10, zmm10, zmm10", "vpxord zmm11, zmm11, zmm11",
                "vpxord zmm12, zmm12, zmm12", "vpxord zmm13, zmm13, zmm13", "vpxord zmm14, zmm14, zmm14", "vpxord zmm15, zmm15, zmm15",
                "2:", "mov {step:e}, 16",
                "3:",
                "vmovaps zmm24, [{b0}]", "vmovaps zmm25, [{b1}]",
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
                "vmovups [{out}], zmm0", "vmovups [{out} + 64], zmm1",
                "vmovups [{out} + {stride}], zmm2", "vmovups [{out} + {stride} + 64], zmm3",
                "vmovups [{out} + 2 * {stride}], zmm4", "vmovups [{out} + 2 * {stride} + 64], zmm5",
                "vmovups [{out} + {stride3}], zmm6", "vmovups [{out} + {stride3} + 64], zmm7",
                "vmovups [{out4}], zmm8", "vmovups [{out4} + 64], zmm9",
                "vmovups [{out4} + {stride}], zmm10", "vmovups [{out4} + {stride} + 64], zmm11",
                "vmovups [{out4} + 2 * {stride}], zmm12", "vmovups [{out4} + 2 * {stride} + 64], zmm13",
                "vmovups [{out4} + {stride3}], zmm14", "vmovups [{out4} + {stride3} + 64], zmm15",
                out = in(reg) out, stride = in(reg) 4 * stride, stride3 = in(reg) 12 * stride, out4 = in(reg) out.wrapping_add(4 * stride),
                add = in(reg) accumulate as usize, a = inout(reg) a => _, b0 = inout(reg) b0 => _, b1 = inout(reg) b1 => _,
                n = inout(reg) n => _, step = out(reg) _,
                out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _, out("zmm6") _, out("zmm7") _,
                out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _, out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _,
                out("zmm24") _, out("zmm25") _, out("zmm27") _, out("zmm28") _, out("zmm29") _, out("zmm30") _,
                options(nostack));
        }
    }
}
