//! The factor of an inverse: for a symmetric positive definite A the upper triangle U with A⁻¹ = UᵀU, in blocks, in doubles.
//! Its rows are what error feedback divides among the columns to come, and `T·A⁻¹` is two products with it.

use limbeck_model::products::{Threads, View, matmul};
use rayon::prelude::*;

/// Rows and columns of a block.
const BLOCK: usize = 64;

/// U of a symmetric `a`, `[n, n]`; `None` when `a` is not positive definite, as far as doubles can tell.
pub fn inverse_factor(a: &[f64], n: usize) -> Option<Vec<f64>> {
    // With rows and columns in reverse order A = R·Rᵀ, R lower; then A⁻¹ = (R⁻¹)ᵀR⁻¹, and R⁻¹ turned back is upper.
    let mut reversed: Vec<f64> = a.iter().rev().copied().collect();
    cholesky(&mut reversed, n)?;
    let mut inverse = invert_lower(&reversed, n);
    inverse.reverse();
    Some(inverse)
}

/// `a = L·Lᵀ`, L in its lower triangle; what is above it is left as it was.
fn cholesky(a: &mut [f64], n: usize) -> Option<()> {
    for from in (0..n).step_by(BLOCK) {
        let to = (from + BLOCK).min(n);
        let width = to - from;
        // The block on the diagonal.
        for i in from..to {
            for j in from..=i {
                let sum: f64 = (from..j).map(|k| a[i * n + k] * a[j * n + k]).sum();
                let rest = a[i * n + j] - sum;
                a[i * n + j] = match i == j {
                    true if rest > 0.0 && rest.is_finite() => rest.sqrt(),
                    true => return None,
                    false => rest / a[j * n + j],
                };
            }
        }
        if to == n {
            break;
        }
        // The rows below it.
        let (above, below) = a.split_at_mut(to * n);
        let diagonal = &above[from * n..];
        below.par_chunks_mut(n).for_each(|row| {
            for j in 0..width {
                let sum: f64 = (0..j).map(|k| row[from + k] * diagonal[j * n + from + k]).sum();
                row[from + j] = (row[from + j] - sum) / diagonal[j * n + from + j];
            }
        });
        // What is left of them, a strip of rows at a time: A −= P·Pᵀ, up to the diagonal.
        let panel: Vec<f64> = below.chunks_exact(n).flat_map(|row| row[from..to].iter().copied()).collect();
        for (strip, rows) in below.chunks_mut(BLOCK * n).enumerate() {
            let first = strip * BLOCK;
            let (own, seen) = (&panel[first * width..], first + rows.len() / n);
            let shape = [rows.len() / n, width, seen];
            let (left, right) = (View::rows(own, width), View::transposed(&panel[..seen * width], width));
            matmul(shape, &mut rows[to..], n, true, left, right, -1.0, Threads::All);
        }
    }
    Some(())
}

/// The inverse of the lower triangle of `l`, with zeros above.
fn invert_lower(l: &[f64], n: usize) -> Vec<f64> {
    let mut out = vec![0.0; n * n];
    for from in (0..n).step_by(BLOCK) {
        let to = (from + BLOCK).min(n);
        let width = to - from;
        // The block on the diagonal, column by column.
        let mut own = vec![0.0; width * width];
        for j in 0..width {
            own[j * width + j] = 1.0 / l[(from + j) * n + from + j];
            for i in j + 1..width {
                let sum: f64 = (j..i).map(|k| l[(from + i) * n + from + k] * own[k * width + j]).sum();
                own[i * width + j] = -sum / l[(from + i) * n + from + i];
            }
        }
        let (above, rows) = out.split_at_mut(from * n);
        if from > 0 {
            let mut product = vec![0.0; width * from];
            let (left, done) = (View::rows(&l[from * n..], n), View::rows(&*above, n));
            matmul([width, from, from], &mut product, from, false, left, done, 1.0, Threads::All);
            let (left, right) = (View::rows(&own, width), View::rows(&product, from));
            matmul([width, width, from], rows, n, false, left, right, -1.0, Threads::All);
        }
        for (row, own) in rows.chunks_mut(n).zip(own.chunks_exact(width)) {
            row[from..to].copy_from_slice(own);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Σ of random outer products, and a little on the diagonal.
    fn positive(n: usize, seed: u64) -> Vec<f64> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as f64 / (1u64 << 31) as f64 - 0.5
        };
        let x: Vec<f64> = (0..2 * n * n).map(|_| next()).collect();
        let mut a = vec![0.0; n * n];
        for row in x.chunks_exact(n) {
            for i in 0..n {
                for j in 0..n {
                    a[i * n + j] += row[i] * row[j];
                }
            }
        }
        (0..n).for_each(|i| a[i * n + i] += 0.1);
        a
    }

    #[test]
    fn the_factor_s_square_is_the_inverse() {
        for n in [1, 2, 5, 63, 64, 65, 128, 200] {
            let a = positive(n, n as u64);
            let u = inverse_factor(&a, n).unwrap();
            for i in 0..n {
                assert!((0..i).all(|j| u[i * n + j] == 0.0) && u[i * n + i] > 0.0);
                for j in 0..n {
                    // (UᵀU·A)[i, j]
                    let inverse = |k: usize| (0..n).map(|m| u[m * n + i] * u[m * n + k]).sum::<f64>();
                    let own: f64 = (0..n).map(|k| inverse(k) * a[k * n + j]).sum();
                    assert!((own - f64::from(u8::from(i == j))).abs() < 1e-8, "{n} {i} {j} {own}");
                }
            }
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            assert_eq!(pool.install(|| inverse_factor(&a, n)).unwrap(), u);
        }
    }

    #[test]
    fn what_is_not_positive_definite_has_none() {
        assert_eq!(inverse_factor(&[1.0, 2.0, 2.0, 1.0], 2), None);
        assert_eq!(inverse_factor(&[0.0], 1), None);
        assert_eq!(inverse_factor(&[f64::NAN], 1), None);
    }
}
