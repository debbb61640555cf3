//! The matrix as the kernels read it: of each strip of 32 columns (rows of the file) block after block, the 32 scales in one
//! line, then the codes, four of a column side by side as `vpdpbusd` takes them.

use super::round::RoundedRows;
use super::{BLOCK, COLS};
use crate::gguf::GgmlType;
use crate::ops::blocks::Blocks;
use half::f16;
use rayon::prelude::*;

/// 64 bytes: a register, and what memory gives at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Line(pub [u8; 64]);

/// How codes lie in their lines, and what a code stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A byte each, in 16 lines; the value is the byte less `zero`.
    Bytes { zero: u8 },
    /// Two a byte, in 8 lines, the first half of the block in the low halves; the value is the code less 8.
    Nibbles,
    /// The same; the value is looked up.
    Table,
}

/// ggml's `kvalues_iq4nl`.
pub const VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

impl Form {
    fn of(ty: GgmlType) -> Form {
        match ty {
            GgmlType::Q8_0 => Form::Bytes { zero: 128 },
            GgmlType::Q5_0 => Form::Bytes { zero: 16 },
            GgmlType::Q4_0 => Form::Nibbles,
            GgmlType::IQ4_NL => Form::Table,
            other => unreachable!("there are no kernels for {other}"),
        }
    }

    /// Lines of codes a block.
    pub const fn lines(self) -> usize {
        match self {
            Form::Bytes { .. } => 16,
            Form::Nibbles | Form::Table => 8,
        }
    }

    /// Puts the codes of one block of a column into the lines of its strip's block.
    fn put(self, codes: &[u8], column: usize, lines: &mut [Line]) {
        let (half, at) = (column / 16, column % 16 * 4);
        for (group, four) in codes.chunks_exact(4).enumerate() {
            lines[2 * group + half].0[at..at + 4].copy_from_slice(four);
        }
    }

    /// The value of depth `d` of a block's column.
    #[inline(always)]
    fn value(self, lines: &[Line], column: usize, d: usize) -> i32 {
        let (half, at) = (column / 16, column % 16 * 4);
        let byte = |d: usize| lines[d / 4 * 2 + half].0[at + d % 4];
        let nibble = || if d < BLOCK / 2 { byte(d) & 15 } else { byte(d - BLOCK / 2) >> 4 };
        match self {
            Form::Bytes { zero } => i32::from(byte(d)) - i32::from(zero),
            Form::Nibbles => i32::from(nibble()) - 8,
            Form::Table => i32::from(VALUES[usize::from(nibble())]),
        }
    }
}

/// The lines of a strip: of each block one of scales, then its codes.
#[derive(Clone, Copy)]
pub struct Strip<'a> {
    pub lines: &'a [Line],
    pub form: Form,
}

/// A matrix `[n_out, n_in]` in blocks, packed.
#[derive(Debug)]
pub struct BlockMatrix {
    pub n_out: usize,
    pub n_in: usize,
    pub form: Form,
    lines: Vec<Line>,
}

impl BlockMatrix {
    pub fn new(blocks: &Blocks) -> BlockMatrix {
        let (n_out, n_in, form) = (blocks.n_out, blocks.n_in, Form::of(blocks.ty));
        let (block_lines, block_bytes) = (1 + form.lines(), blocks.ty.block_bytes());
        let strip_lines = n_in / BLOCK * block_lines;
        // The zeros of columns that fill up the last strip are scales, so that their sums are zeros.
        let mut lines = in_large_pages(n_out.div_ceil(COLS) * strip_lines);
        lines.par_chunks_mut(strip_lines).enumerate().for_each(|(strip, lines)| {
            for column in 0..COLS.min(n_out - strip * COLS) {
                let row = blocks.row(strip * COLS + column).chunks_exact(block_bytes);
                for (block, lines) in row.zip(lines.chunks_exact_mut(block_lines)) {
                    lines[0].0[2 * column..][..2].copy_from_slice(&block[..2]);
                    match blocks.ty {
                        GgmlType::Q8_0 => {
                            let codes: [u8; BLOCK] = std::array::from_fn(|d| block[2 + d] ^ 0x80);
                            form.put(&codes, column, &mut lines[1..]);
                        }
                        GgmlType::Q5_0 => form.put(&five_bits(block), column, &mut lines[1..]),
                        _ => form.put(&block[2..], column, &mut lines[1..]),
                    }
                }
            }
        });
        BlockMatrix { n_out, n_in, form, lines }
    }

    pub fn strips(&self) -> usize {
        self.n_out.div_ceil(COLS)
    }

    pub fn strip(&self, strip: usize) -> Strip<'_> {
        let lines = self.n_in / BLOCK * (1 + self.form.lines());
        Strip { lines: &self.lines[strip * lines..][..lines], form: self.form }
    }

    pub fn bytes(&self) -> usize {
        size_of_val(&*self.lines)
    }

    /// The values of one column, `[n_in]`: a row of the file.
    pub fn column(&self, column: usize, out: &mut [f32]) {
        let blocks = self.strip(column / COLS).lines.chunks_exact(1 + self.form.lines());
        for (out, lines) in out.chunks_exact_mut(BLOCK).zip(blocks) {
            let scale = scale(&lines[0], column % COLS);
            for (d, out) in out.iter_mut().enumerate() {
                *out = self.form.value(&lines[1..], column % COLS, d) as f32 * scale;
            }
        }
    }

    /// The sum of row `row` and a column, plainly.
    pub fn dot(&self, x: RoundedRows, row: usize, column: usize) -> f32 {
        let codes = x.codes[row * x.depth..][..x.depth].chunks_exact(BLOCK);
        let blocks = self.strip(column / COLS).lines.chunks_exact(1 + self.form.lines());
        let mut sum = 0f32;
        for ((codes, dx), lines) in codes.zip(&x.scales[row * x.blocks()..]).zip(blocks) {
            let value = |d: usize| self.form.value(&lines[1..], column % COLS, d);
            let whole: i32 = codes.iter().enumerate().map(|(d, x)| i32::from(*x) * value(d)).sum();
            sum = (whole as f32).mul_add(scale(&lines[0], column % COLS) * dx, sum);
        }
        sum
    }
}

#[inline(always)]
fn scale(line: &Line, column: usize) -> f32 {
    f16::from_le_bytes([line.0[2 * column], line.0[2 * column + 1]]).to_f32()
}

/// Lines of zeros, in large pages where the system has such for who asks: a matrix is read from front to back at every token,
/// and a page of four kilobytes is over after a few blocks.
fn in_large_pages(n: usize) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::with_capacity(n);
    #[cfg(target_os = "linux")]
    {
        const LARGE: usize = 2 << 20;
        let start = lines.as_ptr().addr();
        let (first, end) = (start.next_multiple_of(LARGE), (start + 64 * lines.capacity()) / LARGE * LARGE);
        if first < end {
            let pages = lines.as_mut_ptr().cast::<u8>().wrapping_add(first - start);
            // SAFETY: the pages lie inside the allocation; the advice changes nothing of what they hold.
            #[expect(unsafe_code, reason = "a system call without a safe wrapper")]
            unsafe {
                libc::madvise(pages.cast(), end - first, libc::MADV_HUGEPAGE)
            };
        }
    }
    lines.resize(n, Line([0; 64]));
    lines
}

/// The codes of a Q5_0 block, 0 to 31 each.
fn five_bits(block: &[u8]) -> [u8; BLOCK] {
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    std::array::from_fn(|d| {
        let byte = block[6 + d % 16];
        let low = if d < 16 { byte & 15 } else { byte >> 4 };
        low | ((high >> d & 1) as u8) << 4
    })
}
