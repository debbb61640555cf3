//! The types with blocks of 32 under an importance matrix, and IQ4_NL with one and without: sixteen blocks at a time.

use limbeck_model::gguf::GgmlType;

use super::lanes::{Affine, LANES, Lane, Symmetric, Trials, level, nonlinear};
use super::pack::{put_f16, put_five_bits, put_nibbles};

/// Values in a block.
const BLOCK: usize = 32;

const FOUR_BITS: Trials = Trials { max: 15.0, first: -0.9, by: 0.05, last: 36, cut_first: true };
const FIVE_BITS: Trials = Trials { max: 31.0, ..FOUR_BITS };

/// Encodes whole rows as long as `importance`.
#[inline(always)]
pub fn rows(ty: GgmlType, x: &[f32], importance: &[f32], y: &mut [u8]) {
    let width = importance.len();
    let energy = row_energies(x, width);
    let bytes = ty.block_bytes();
    for (group, (x, y)) in x.chunks(BLOCK * LANES).zip(y.chunks_mut(bytes * LANES)).enumerate() {
        let x = gather(x);
        let mut w = [[0.0f32; LANES]; BLOCK];
        for k in 0..y.len() / bytes {
            let at = (group * LANES + k) * BLOCK;
            let (own, energy) = (&importance[at % width..][..BLOCK], energy[at / width]);
            for i in 0..BLOCK {
                w[i][k] = own[i] * (energy + x[i][k] * x[i][k]).sqrt();
            }
        }
        encode(ty, &x, &w, y);
    }
}

/// IQ4_NL, whose weights are those of a block by itself: `importance` of a row, or none.
#[inline(always)]
pub fn nonlinear_rows(x: &[f32], importance: Option<&[f32]>, y: &mut [u8]) {
    let bytes = GgmlType::IQ4_NL.block_bytes();
    for (group, (x, y)) in x.chunks(BLOCK * LANES).zip(y.chunks_mut(bytes * LANES)).enumerate() {
        let x = gather(x);
        let (mut w, mut energy) = ([[0.0f32; LANES]; BLOCK], [0.0f32; LANES]);
        for i in 0..BLOCK {
            for k in 0..LANES {
                w[i][k] = x[i][k] * x[i][k];
                energy[k] += w[i][k];
            }
        }
        if let Some(importance) = importance {
            for k in 0..y.len() / bytes {
                let own = &importance[(group * LANES + k) * BLOCK % importance.len()..][..BLOCK];
                for i in 0..BLOCK {
                    w[i][k] = own[i] * (energy[k] * 0.0625 + w[i][k]).sqrt();
                }
            }
        }
        encode(GgmlType::IQ4_NL, &x, &w, y);
    }
}

/// Up to sixteen blocks, one a lane; lanes without one are zeros.
#[inline(always)]
fn gather(x: &[f32]) -> [Lane; BLOCK] {
    let mut lanes = [[0.0f32; LANES]; BLOCK];
    for (k, x) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
        for i in 0..BLOCK {
            lanes[i][k] = x[i];
        }
    }
    lanes
}

/// Mean square of each row; eight rows at a time, for each sum is one chain of additions.
#[inline(always)]
fn row_energies(x: &[f32], width: usize) -> Vec<f32> {
    let mut energies = Vec::with_capacity(x.len() / width);
    for rows in x.chunks(8 * width) {
        let mut sums = [0.0f32; 8];
        if rows.len() == 8 * width {
            for i in 0..width {
                for (k, sum) in sums.iter_mut().enumerate() {
                    *sum += rows[k * width + i] * rows[k * width + i];
                }
            }
        } else {
            for (sum, row) in sums.iter_mut().zip(rows.chunks_exact(width)) {
                *sum = row.iter().fold(0.0, |sum, v| sum + v * v);
            }
        }
        energies.extend(sums[..rows.len() / width].iter().map(|sum| sum / width as f32));
    }
    energies
}

#[inline(always)]
fn encode(ty: GgmlType, x: &[Lane; BLOCK], w: &[Lane; BLOCK], y: &mut [u8]) {
    let (scale, offset, codes) = match ty {
        GgmlType::Q4_0 => {
            let fit = Symmetric::search(x, w, 8.0);
            (fit.scale, None, fit.codes(x, 8))
        }
        GgmlType::Q5_0 => {
            let fit = Symmetric::search(x, w, 16.0);
            (fit.scale, None, fit.codes(x, 16))
        }
        GgmlType::Q4_1 => {
            let fit = Affine::search(x, w, FOUR_BITS);
            (fit.scale, Some(fit.offset), fit.codes(x, FOUR_BITS))
        }
        GgmlType::Q5_1 => {
            let fit = Affine::search(x, w, FIVE_BITS);
            (fit.scale, Some(fit.offset), fit.codes(x, FIVE_BITS))
        }
        _ => {
            let scale = nonlinear(x, w);
            let mut codes = [[0u8; LANES]; BLOCK];
            for k in 0..LANES {
                let inverse = if scale[k] != 0.0 { 1.0 / scale[k] } else { 0.0 };
                for i in 0..BLOCK {
                    codes[i][k] = level(inverse * x[i][k]);
                }
            }
            (scale, None, codes)
        }
    };
    let five_bits = matches!(ty, GgmlType::Q5_0 | GgmlType::Q5_1);
    for (k, y) in y.chunks_exact_mut(ty.block_bytes()).enumerate() {
        let mut own = [0u8; BLOCK];
        for i in 0..BLOCK {
            own[i] = codes[i][k];
        }
        put_f16(y, scale[k]);
        let mut at = 2;
        if let Some(offset) = offset {
            put_f16(&mut y[2..], -offset[k]);
            at = 4;
        }
        match five_bits {
            true => put_five_bits(&mut y[at..], &own),
            false => put_nibbles(&mut y[at..], &own),
        }
    }
}
