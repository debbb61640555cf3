//! The product in plain Rust: what it means, for every processor. The fast engines are tested against it.

use super::{Block, DEPTH, Left, RightPart, TILE};

fn value(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// # Safety
/// `out` points at a rectangle of `block.rows` by `block.cols` with that stride, which nobody else touches; the rows and
/// columns from `row` and `col` on exist in every term.
#[expect(unsafe_code, reason = "the output is a rectangle inside a matrix that other threads write to")]
pub(super) unsafe fn rectangle(
    out: *mut f32,
    stride: usize,
    accumulate: bool,
    terms: &[(&Left, RightPart)],
    row: usize,
    col: usize,
    block: &Block,
) {
    for i in 0..block.rows {
        // SAFETY: the caller says that this row of the rectangle is ours.
        let out = unsafe { std::slice::from_raw_parts_mut(out.add(i * stride), block.cols) };
        for (j, out) in out.iter_mut().enumerate() {
            let mut sum = if accumulate { *out } else { 0.0 };
            for (left, right) in terms {
                let (i, j) = (row + i, col + j);
                let depth_tiles = left.depth_tiles();
                let lefts = left.lines[i / TILE * depth_tiles * TILE..].iter().skip(i % TILE).step_by(TILE);
                let rights = right.lines[j / TILE * right.panel * TILE..].chunks_exact(TILE);
                for (left, right) in lefts.zip(rights).take(depth_tiles) {
                    for d in 0..DEPTH {
                        sum += value(left.0[d]) * value(right[d / 2].0[j % TILE * 2 + d % 2]);
                    }
                }
            }
            *out = sum;
        }
    }
}
