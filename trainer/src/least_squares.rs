//! A linear map fitted by weighted least squares with a little ridge: the normal equations in float64, by Cholesky.

/// The ridge, as a share of the mean of the diagonal.
const RIDGE: f64 = 1e-3;

/// Sums over the pairs `(x, y)` seen so far.
pub(crate) struct Fit {
    n_in: usize,
    n_out: usize,
    /// `Σ w x xᵀ`, and `Σ w x yᵀ`, by rows of `x`.
    xx: Vec<f64>,
    xy: Vec<f64>,
}

impl Fit {
    pub fn new(n_in: usize, n_out: usize) -> Fit {
        Fit { n_in, n_out, xx: vec![0.0; n_in * n_in], xy: vec![0.0; n_in * n_out] }
    }

    pub fn add(&mut self, x: &[f32], y: &[f32], weight: f64) {
        for (i, xi) in x.iter().enumerate() {
            let wx = weight * f64::from(*xi);
            let row = &mut self.xx[i * self.n_in..=i * self.n_in + i];
            row.iter_mut().zip(x).for_each(|(sum, xj)| *sum += wx * f64::from(*xj));
            let row = &mut self.xy[i * self.n_out..][..self.n_out];
            row.iter_mut().zip(y).for_each(|(sum, yj)| *sum += wx * f64::from(*yj));
        }
    }

    /// The map `[n_out, n_in]`.
    pub fn solve(mut self) -> Vec<f32> {
        let n = self.n_in;
        let mean = (0..n).map(|i| self.xx[i * n + i]).sum::<f64>() / n.max(1) as f64;
        let ridge = (RIDGE * mean).max(f64::MIN_POSITIVE);
        (0..n).for_each(|i| self.xx[i * n + i] += ridge);
        // Cholesky in place, by rows: only the lower triangle is there.
        for i in 0..n {
            for j in 0..=i {
                let (row, other) = (&self.xx[i * n..][..=i], &self.xx[j * n..][..=j]);
                let dot: f64 = row[..j].iter().zip(&other[..j]).map(|(a, b)| a * b).sum();
                let rest = row[j] - dot;
                let value = if i == j { rest.max(ridge * f64::EPSILON).sqrt() } else { rest / other[j] };
                self.xx[i * n + j] = value;
            }
        }
        let mut out = vec![0f32; self.n_out * n];
        let mut z = vec![0f64; n];
        for o in 0..self.n_out {
            for i in 0..n {
                let row = &self.xx[i * n..][..i];
                let dot: f64 = row.iter().zip(&z).map(|(a, b)| a * b).sum();
                z[i] = (self.xy[i * self.n_out + o] - dot) / self.xx[i * n + i];
            }
            for i in (0..n).rev() {
                let dot: f64 = (i + 1..n).map(|k| self.xx[k * n + i] * z[k]).sum();
                z[i] = (z[i] - dot) / self.xx[i * n + i];
            }
            out[o * n..][..n].iter_mut().zip(&z).for_each(|(out, z)| *out = *z as f32);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_map_is_found_again() {
        let map = [[0.5f32, -1.0, 2.0], [1.5, 0.25, -0.75]];
        let mut fit = Fit::new(3, 2);
        for i in 0..50 {
            // Of other frequencies: phases of one would lie in a plane.
            let x: Vec<f32> = (0..3).map(|j| ((i * 7 * (j + 1)) as f32 * 0.37).sin()).collect();
            let y: Vec<f32> = map.iter().map(|row| row.iter().zip(&x).map(|(a, b)| a * b).sum()).collect();
            fit.add(&x, &y, 1.0 + (i % 3) as f64);
        }
        for (found, want) in fit.solve().iter().zip(map.as_flattened()) {
            assert!((found - want).abs() < 1e-2, "{found} {want}");
        }
        assert!(Fit::new(3, 2).solve().iter().all(|x| *x == 0.0), "nothing seen is no map");
    }
}
