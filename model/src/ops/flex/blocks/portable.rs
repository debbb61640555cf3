//! The tile in plain Rust, in loops that a compiler can vectorise: for processors without kernels of their own.

use super::pack::{Form, Line, Strip, VALUES};
use super::round::RoundedRows;
use super::{BLOCK, COLS, ROWS, Sums};
use half::f16;
use std::ops::Range;

/// The sums of some rows over a strip; the caller has checked that they exist.
pub fn tile(x: RoundedRows, rows: Range<usize>, strip: Strip, out: &mut [Sums; ROWS]) {
    out[..rows.len()].as_flattened_mut().fill(0.0);
    let mut values = [[0i8; 64]; 16];
    for (block, lines) in strip.lines.chunks_exact(1 + strip.form.lines()).enumerate() {
        decode(strip.form, &lines[1..], &mut values);
        let scales: [f32; COLS] =
            std::array::from_fn(|j| f16::from_le_bytes([lines[0].0[2 * j], lines[0].0[2 * j + 1]]).to_f32());
        for (row, out) in rows.clone().zip(out.iter_mut()) {
            let codes = &x.codes[row * x.depth + block * BLOCK..][..BLOCK];
            let mut whole = [0i32; COLS];
            for (group, four) in codes.as_chunks::<4>().0.iter().enumerate() {
                for (half, whole) in whole.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                    let values = values[2 * group + half].as_chunks::<4>().0;
                    for (whole, values) in whole.iter_mut().zip(values) {
                        for (value, x) in values.iter().zip(four) {
                            *whole += i32::from(*value) * i32::from(*x);
                        }
                    }
                }
            }
            let dx = x.scales[row * x.blocks() + block];
            for (out, (whole, scale)) in out.iter_mut().zip(whole.iter().zip(scales)) {
                *out = (*whole as f32).mul_add(scale * dx, *out);
            }
        }
    }
}

/// The values of a block, four of a column side by side, in the order of [`Form::Bytes`].
fn decode(form: Form, lines: &[Line], values: &mut [[i8; 64]; 16]) {
    match form {
        Form::Bytes { zero } => {
            for (values, line) in values.iter_mut().zip(lines) {
                for (value, code) in values.iter_mut().zip(line.0) {
                    *value = code.wrapping_sub(zero).cast_signed();
                }
            }
        }
        Form::Nibbles | Form::Table => {
            let value = |code: u8| match form {
                Form::Table => VALUES[usize::from(code)],
                _ => code.cast_signed() - 8,
            };
            let (low, high) = values.split_at_mut(8);
            for ((low, high), line) in low.iter_mut().zip(high).zip(lines) {
                for ((low, high), byte) in low.iter_mut().zip(high).zip(line.0) {
                    (*low, *high) = (value(byte & 15), value(byte >> 4));
                }
            }
        }
    }
}
