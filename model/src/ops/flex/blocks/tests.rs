use super::*;
use crate::gguf::GgmlType;
use crate::ops::blocks::Blocks;
use crate::ops::flex::kernels::tests::values;
use half::f16;

const TYPES: [GgmlType; 4] = [GgmlType::Q8_0, GgmlType::Q5_0, GgmlType::Q4_0, GgmlType::IQ4_NL];
const SHAPES: [(usize, usize); 7] = [(1, 32), (31, 64), (32, 32), (33, 576), (70, 96), (192, 160), (257, 1536)];

/// Blocks with every byte of their codes made up, the extremes among them.
fn made(ty: GgmlType, n_out: usize, n_in: usize, seed: u64) -> Blocks {
    let n = n_out * n_in / ty.block_len();
    let mut z = seed | 1;
    let mut byte = || {
        z = z.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (z >> 56) as u8
    };
    let mut bytes = Vec::new();
    for i in 0..n {
        bytes.extend(f16::from_f32((i % 13) as f32 * 0.01 - 0.05).to_le_bytes());
        let extreme = [0x00, 0x80, 0xff, 0x7f][i % 4];
        bytes.extend((2..ty.block_bytes()).map(|_| if i % 3 == 0 { extreme } else { byte() }));
    }
    Blocks::new(ty, bytes, n_out, n_in).unwrap()
}

/// The sum written out from the decoded matrix and ggml's formula for activations.
fn plain(x: &[f32], w: &[f32]) -> (f64, f64) {
    let (mut sum, mut size) = (0f64, 0f64);
    for (x, w) in x.chunks(BLOCK).zip(w.chunks(BLOCK)) {
        let max = x.iter().fold(0f32, |most, x| most.max(x.abs()));
        let scale = f64::from(f16::from_f32(max / 127.0).to_f32());
        for (x, w) in x.iter().zip(w) {
            let code = if max == 0.0 { 0.0 } else { (x * (127.0 / max)).round_ties_even() };
            sum += f64::from(code) * scale * f64::from(*w);
            size += (f64::from(code) * scale * f64::from(*w)).abs();
        }
    }
    (sum, size)
}

#[test]
fn sums_are_those_of_the_rounded_activations_and_the_decoded_blocks() {
    for ty in TYPES {
        for (n_out, n_in) in SHAPES {
            let blocks = made(ty, n_out, n_in, 7);
            let (right, decoded) = (BlockMatrix::new(&blocks), blocks.dequantize());
            let mut column = vec![0f32; n_in];
            for (i, row) in decoded.chunks(n_in).enumerate() {
                right.column(i, &mut column);
                assert_eq!(column, row, "{ty} {n_out}x{n_in}: row {i} is read back");
            }
            for rows in [1, 2, 5, 6, 7, 13] {
                let mut x = values(rows * n_in, 9);
                x[..BLOCK].fill(0.0);
                let mut out = vec![0.25f32; rows * (n_out + 3)];
                product(Threads::One, &mut out, n_out + 3, false, (View::rows(&x, n_in), rows), &right);
                for i in 0..rows {
                    for j in 0..n_out {
                        let (want, size) = plain(&x[i * n_in..][..n_in], &decoded[j * n_in..][..n_in]);
                        let got = f64::from(out[i * (n_out + 3) + j]);
                        assert!(
                            (got - want).abs() <= 1e-6 * size + 1e-9,
                            "{ty} {n_out}x{n_in} [{i},{j}]: {got} for {want}"
                        );
                    }
                    assert!(out[i * (n_out + 3) + n_out..][..3].iter().all(|x| *x == 0.25));
                }
            }
        }
    }
}

/// Bits of a row: alone, beside others, on any number of threads, by every instruction set, and column by column.
#[test]
fn a_rows_bits_depend_on_nothing_beside_it() {
    for ty in TYPES {
        for (n_out, n_in) in SHAPES {
            let right = BlockMatrix::new(&made(ty, n_out, n_in, 11));
            let rows = 200;
            let x = values(rows * n_in, 4);
            let left = View::rows(&x, n_in);
            let mut all = vec![0f32; rows * n_out];
            product(Threads::One, &mut all, n_out, false, (left, rows), &right);
            for threads in [2, 5] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let mut out = vec![0f32; rows * n_out];
                pool.install(|| product(Threads::All, &mut out, n_out, false, (left, rows), &right));
                assert_eq!(bits(&out), bits(&all));
            }
            for i in [0, 5, 199] {
                let x = &x[i * n_in..][..n_in];
                let mut alone = vec![0f32; n_out];
                product(Threads::One, &mut alone, n_out, false, (View::rows(x, n_in), 1), &right);
                assert_eq!(bits(&alone), bits(&all[i * n_out..][..n_out]));
                let columns: Vec<u32> = (0..n_out as u32).rev().collect();
                let mut singly = dots(x, &right, &columns);
                singly.reverse();
                assert_eq!(bits(&singly), bits(&alone));
            }
            let few = rounded(Threads::One, left, 17, n_in);
            #[expect(unsafe_code, reason = "one thread")]
            // SAFETY: nobody writes to it any more.
            let few = unsafe { few.read() };
            for level in [Level::Vnni, Level::Avx2, Level::Portable].into_iter().filter(|l| l.available()) {
                let mut seen = 0;
                strips(level, few, 0..17, &right, 0..right.strips(), |row, first, sums| {
                    assert_eq!(bits(sums), bits(&all[row * n_out + first..][..sums.len()]), "{ty} {level:?}");
                    seen += sums.len();
                });
                assert_eq!(seen, 17 * n_out);
            }
        }
    }
}

#[test]
fn a_product_is_added_and_a_left_side_may_be_a_transpose() {
    let (rows, n_out, n_in) = (7, 40, 64);
    let right = BlockMatrix::new(&made(GgmlType::Q4_0, n_out, n_in, 3));
    let x = values(rows * n_in, 8);
    let turned: Vec<f32> = (0..rows * n_in).map(|i| x[i % rows * n_in + i / rows]).collect();
    let (mut out, mut added) = (vec![0f32; rows * n_out], vec![1.5f32; rows * n_out]);
    product(Threads::One, &mut out, n_out, false, (View::rows(&x, n_in), rows), &right);
    product(Threads::One, &mut added, n_out, true, (View::transposed(&turned, rows), rows), &right);
    assert!(out.iter().zip(&added).all(|(out, added)| *added == out + 1.5));
}

#[test]
fn what_is_no_matrix_of_a_known_type_is_refused() {
    let good = vec![0u8; 34 * 4];
    assert!(Blocks::new(GgmlType::Q8_0, good.clone(), 2, 64).is_some());
    assert!(Blocks::new(GgmlType::Q8_0, good.clone(), 2, 32).is_none(), "too many bytes");
    assert!(Blocks::new(GgmlType::Q8_0, good.clone(), 4, 34).is_none(), "no whole blocks");
    assert!(Blocks::new(GgmlType::F16, vec![0; 128], 2, 32).is_none(), "not in blocks");
    let mut infinite = good;
    infinite[..2].copy_from_slice(&f16::INFINITY.to_le_bytes());
    assert!(Blocks::new(GgmlType::Q8_0, infinite, 2, 64).is_none());
    let blocks = made(GgmlType::Q5_0, 6, 64, 1);
    assert_eq!(blocks.rows(2..5).dequantize(), blocks.dequantize()[2 * 64..5 * 64]);
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}
