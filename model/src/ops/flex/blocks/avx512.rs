//! The tile on 512 bits: 32 columns are two registers, and a row's four codes are multiplied with four of each column by one
//! `vpdpbusd`. It takes unsigned codes on one side; what they are above their values is taken away as the sum begins.

use super::pack::{Form, Line, Strip, VALUES};
use super::round::RoundedRows;
use super::{BLOCK, ROWS, Sums};
use std::arch::x86_64::*;
use std::ops::Range;
use std::sync::OnceLock;

pub fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
    })
}

/// Lines between what a lone row multiplies and what it asks memory for.
const AHEAD: usize = 64;

/// What a tile reads and writes.
struct Plan {
    x: *const i8,
    depth: usize,
    /// Of the tile's first row; `blocks` from one row to the next.
    scales: *const f32,
    sums: *const i32,
    blocks: usize,
    w: *const Line,
    zero: i32,
    out: *mut Sums,
}

const BYTES: u8 = 0;
const NIBBLES: u8 = 1;
const TABLE: u8 = 2;

/// [`VALUES`], above zero.
const TABLE_BYTES: [u8; 16] = {
    let mut bytes = [0; 16];
    let mut i = 0;
    while i < 16 {
        bytes[i] = VALUES[i].cast_unsigned() ^ 0x80;
        i += 1;
    }
    bytes
};

type Tile = unsafe fn(&Plan);

/// The sums of some rows over a strip; the caller has checked that they exist.
pub fn tile(x: RoundedRows, rows: Range<usize>, strip: Strip, out: &mut [Sums; ROWS]) {
    let blocks = x.blocks();
    assert!(
        available() && x.codes.len() >= rows.end * x.depth && x.scales.len() >= rows.end * blocks,
        "the rows of a tile"
    );
    assert!(x.sums.len() >= rows.end * blocks && strip.lines.len() == blocks * (1 + strip.form.lines()));
    let (tiles, zero): (&[Tile; ROWS], i32) = match strip.form {
        Form::Bytes { zero } => (&BYTE_TILES, i32::from(zero)),
        Form::Nibbles => (&NIBBLE_TILES, 8),
        Form::Table => (&TABLE_TILES, 128),
    };
    let plan = Plan {
        x: x.codes[rows.start * x.depth..].as_ptr(),
        depth: x.depth,
        scales: x.scales[rows.start * blocks..].as_ptr(),
        sums: x.sums[rows.start * blocks..].as_ptr(),
        blocks,
        w: strip.lines.as_ptr(),
        zero,
        out: out.as_mut_ptr(),
    };
    // SAFETY: the processor has the instructions, and the assertions bound what is read; a tile has at most `ROWS` rows.
    #[expect(unsafe_code, reason = "vector instructions behind run-time detection")]
    unsafe {
        tiles[rows.len() - 1](&plan)
    };
}

/// The same strip with a byte a code, in `bytes`: what many rows multiply need not be taken apart for each tile of them.
pub fn widened<'a>(strip: Strip, bytes: &'a mut Vec<Line>) -> Strip<'a> {
    let (table, zero) = match strip.form {
        Form::Bytes { .. } => unreachable!("a byte each already"),
        Form::Nibbles => (std::array::from_fn(|code| code as u8), 8),
        Form::Table => (TABLE_BYTES, 128),
    };
    let form = Form::Bytes { zero };
    assert!(available(), "vector instructions");
    bytes.clear();
    for block in strip.lines.chunks_exact(1 + strip.form.lines()) {
        let at = bytes.len();
        bytes.push(block[0]);
        bytes.resize(at + 1 + form.lines(), Line([0; 64]));
        let (low, high) = bytes[at + 1..].split_at_mut(form.lines() / 2);
        for ((low, high), line) in low.iter_mut().zip(high).zip(&block[1..]) {
            // SAFETY: the processor has the instructions; lines are 64 bytes, and lie at multiples of them.
            #[expect(unsafe_code, reason = "vector instructions behind run-time detection")]
            unsafe {
                widen(line, &table, low, high)
            };
        }
    }
    Strip { lines: bytes, form }
}

#[target_feature(enable = "avx512f,avx512bw")]
#[expect(unsafe_code, reason = "registers are loaded from pointers")]
unsafe fn widen(line: &Line, table: &[u8; 16], low: &mut Line, high: &mut Line) {
    // SAFETY: references to lines and to a table lead to as many bytes as are read and written.
    unsafe {
        let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
        let [a, b] = halves(_mm512_load_si512(line.0.as_ptr().cast()));
        _mm512_store_si512(low.0.as_mut_ptr().cast(), _mm512_shuffle_epi8(table, a));
        _mm512_store_si512(high.0.as_mut_ptr().cast(), _mm512_shuffle_epi8(table, b));
    }
}

/// The low and the high halves of bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn halves(raw: __m512i) -> [__m512i; 2] {
    let low = _mm512_set1_epi8(15);
    [_mm512_and_si512(raw, low), _mm512_and_si512(_mm512_srli_epi16::<4>(raw), low)]
}

/// One tile a number of rows. Sums are variables of their own: the compiler keeps an array of them in memory.
macro_rules! tile {
    ($name:ident $alone:literal: $($i:literal $int_a:ident $int_b:ident $sum_a:ident $sum_b:ident),+) => {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
        #[expect(unsafe_code, reason = "registers are loaded from pointers")]
        unsafe fn $name<const FORM: u8>(plan: &Plan) {
            const ALONE: bool = $alone;
            let Plan { x, depth, scales, sums, blocks, mut w, zero, out } = *plan;
            // SAFETY: the caller says that the rows, their scales and the strip exist, block by block.
            unsafe {
                let table = _mm512_broadcast_i32x4(_mm_loadu_si128(TABLE_BYTES.as_ptr().cast()));
                $(let (mut $sum_a, mut $sum_b) = (_mm512_setzero_ps(), _mm512_setzero_ps());)+
                for block in 0..blocks {
                    $(
                        let begun = _mm512_set1_epi32(-zero * *sums.add($i * blocks + block));
                        let (mut $int_a, mut $int_b) = (begun, begun);
                    )+
                    let x = x.add(block * BLOCK);
                    let lines: *const __m512i = w.add(1).cast();
                    if ALONE {
                        // A lone row waits for memory; what is asked for behind the strip is the next one, and faults nowhere.
                        for line in 0..if FORM == BYTES { 17 } else { 9 } {
                            _mm_prefetch::<_MM_HINT_T0>(w.wrapping_add(AHEAD + line).cast());
                        }
                    }
                    if FORM == BYTES {
                        for group in 0..8 {
                            let (a, b) = (_mm512_load_si512(lines.add(2 * group)), _mm512_load_si512(lines.add(2 * group + 1)));
                            $(
                                let four = _mm512_set1_epi32(x.add($i * depth + 4 * group).cast::<i32>().read_unaligned());
                                $int_a = _mm512_dpbusd_epi32($int_a, a, four);
                                $int_b = _mm512_dpbusd_epi32($int_b, b, four);
                            )+
                        }
                    } else {
                        for group in 0..4 {
                            let mut a = halves(_mm512_load_si512(lines.add(2 * group)));
                            let mut b = halves(_mm512_load_si512(lines.add(2 * group + 1)));
                            if FORM == TABLE {
                                a = [_mm512_shuffle_epi8(table, a[0]), _mm512_shuffle_epi8(table, a[1])];
                                b = [_mm512_shuffle_epi8(table, b[0]), _mm512_shuffle_epi8(table, b[1])];
                            }
                            $(
                                let codes = x.add($i * depth + 4 * group);
                                let four = _mm512_set1_epi32(codes.cast::<i32>().read_unaligned());
                                $int_a = _mm512_dpbusd_epi32($int_a, a[0], four);
                                $int_b = _mm512_dpbusd_epi32($int_b, b[0], four);
                                let four = _mm512_set1_epi32(codes.add(BLOCK / 2).cast::<i32>().read_unaligned());
                                $int_a = _mm512_dpbusd_epi32($int_a, a[1], four);
                                $int_b = _mm512_dpbusd_epi32($int_b, b[1], four);
                            )+
                        }
                    }
                    let halves: *const __m256i = w.cast();
                    let (a, b) = (_mm512_cvtph_ps(_mm256_load_si256(halves)), _mm512_cvtph_ps(_mm256_load_si256(halves.add(1))));
                    $(
                        let scale = _mm512_set1_ps(*scales.add($i * blocks + block));
                        $sum_a = _mm512_fmadd_ps(_mm512_cvtepi32_ps($int_a), _mm512_mul_ps(a, scale), $sum_a);
                        $sum_b = _mm512_fmadd_ps(_mm512_cvtepi32_ps($int_b), _mm512_mul_ps(b, scale), $sum_b);
                    )+
                    w = w.add(if FORM == BYTES { 17 } else { 9 });
                }
                let out: *mut f32 = out.cast();
                $(
                    _mm512_storeu_ps(out.add($i * 32), $sum_a);
                    _mm512_storeu_ps(out.add($i * 32 + 16), $sum_b);
                )+
            }
        }
    };
}

tile!(tile_1 true: 0 i0 j0 s0 t0);
tile!(tile_2 false: 0 i0 j0 s0 t0, 1 i1 j1 s1 t1);
tile!(tile_3 false: 0 i0 j0 s0 t0, 1 i1 j1 s1 t1, 2 i2 j2 s2 t2);
tile!(tile_4 false: 0 i0 j0 s0 t0, 1 i1 j1 s1 t1, 2 i2 j2 s2 t2, 3 i3 j3 s3 t3);
tile!(tile_5 false: 0 i0 j0 s0 t0, 1 i1 j1 s1 t1, 2 i2 j2 s2 t2, 3 i3 j3 s3 t3, 4 i4 j4 s4 t4);
tile!(tile_6 false: 0 i0 j0 s0 t0, 1 i1 j1 s1 t1, 2 i2 j2 s2 t2, 3 i3 j3 s3 t3, 4 i4 j4 s4 t4, 5 i5 j5 s5 t5);

const BYTE_TILES: [Tile; ROWS] =
    [tile_1::<BYTES>, tile_2::<BYTES>, tile_3::<BYTES>, tile_4::<BYTES>, tile_5::<BYTES>, tile_6::<BYTES>];
const NIBBLE_TILES: [Tile; ROWS] =
    [tile_1::<NIBBLES>, tile_2::<NIBBLES>, tile_3::<NIBBLES>, tile_4::<NIBBLES>, tile_5::<NIBBLES>, tile_6::<NIBBLES>];
const TABLE_TILES: [Tile; ROWS] =
    [tile_1::<TABLE>, tile_2::<TABLE>, tile_3::<TABLE>, tile_4::<TABLE>, tile_5::<TABLE>, tile_6::<TABLE>];
