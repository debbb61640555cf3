//! Second moments of what goes into linear maps, over all tokens: of the inputs as the written file makes them, and between
//! those and the inputs as the exact model makes them. The number of threads changes no bit.

use limbeck_model::products::{Threads, View, matmul};

/// Tokens that one sum in float32 runs over; such sums are added up in doubles.
const TOKENS: usize = 2048;
/// Columns of a strip. Only what lies right of a strip's beginning is multiplied: the rest is its mirror image.
const STRIP: usize = 256;

/// Means over tokens of `[n_in, n_in]` products.
pub struct Moments {
    pub width: usize,
    /// q·qᵀ, q an input as served.
    pub gram: Vec<f64>,
    /// f·qᵀ, f the exact input.
    pub cross: Vec<f64>,
}

impl Moments {
    /// Of inputs `[tokens, width]`.
    pub fn of(served: &[f32], exact: &[f32], width: usize) -> Moments {
        let mean = width as f64 / served.len().max(1) as f64;
        let (mut gram, mut cross) = (vec![0.0f64; width * width], vec![0.0f64; width * width]);
        let mut sums = vec![0.0f32; width * width];
        for (q, f) in served.chunks(TOKENS * width).zip(exact.chunks(TOKENS * width)) {
            let tokens = q.len() / width;
            matmul(
                [width, tokens, width],
                &mut sums,
                width,
                false,
                View::transposed(f, width),
                View::rows(q, width),
                1.0,
                Threads::All,
            );
            cross.iter_mut().zip(&sums).for_each(|(cross, sum)| *cross += f64::from(*sum) * mean);
            for from in (0..width).step_by(STRIP) {
                let to = (from + STRIP).min(width);
                let (left, right) = (View::transposed(&q[from..], width), View::rows(&q[from..], width));
                let shape = [to - from, tokens, width - from];
                matmul(shape, &mut sums[from * width + from..], width, false, left, right, 1.0, Threads::All);
            }
            for i in 0..width {
                for j in i..width {
                    gram[i * width + j] += f64::from(sums[i * width + j]) * mean;
                }
            }
        }
        for i in 0..width {
            for j in 0..i {
                gram[i * width + j] = gram[j * width + i];
            }
        }
        Moments { width, gram, cross }
    }

    /// The mean of the squares of all inputs.
    pub fn mean_square(&self) -> f64 {
        (0..self.width).map(|i| self.gram[i * self.width + i]).sum::<f64>() / self.width as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_means_of_products() {
        let (tokens, width) = (TOKENS + 37, 300);
        let value = |i: usize, seed: usize| ((i * 7919 + seed) % 1009) as f32 / 1009.0 - 0.4;
        let served: Vec<f32> = (0..tokens * width).map(|i| value(i, 1)).collect();
        let exact: Vec<f32> = (0..tokens * width).map(|i| value(i, 500)).collect();
        let moments = Moments::of(&served, &exact, width);
        for (i, j) in [(0, 0), (3, 299), (299, 3), (255, 256), (256, 255), (280, 280)] {
            let mean = |left: &[f32]| {
                let products = |t: usize| f64::from(left[t * width + i]) * f64::from(served[t * width + j]);
                (0..tokens).map(products).sum::<f64>() / tokens as f64
            };
            assert!((moments.gram[i * width + j] - mean(&served)).abs() < 1e-6, "{i} {j}");
            assert!((moments.cross[i * width + j] - mean(&exact)).abs() < 1e-6, "{i} {j}");
        }
        let trace: f64 = (0..width).map(|i| moments.gram[i * width + i]).sum();
        assert!((moments.mean_square() - trace / width as f64).abs() < 1e-12);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let alone = pool.install(|| Moments::of(&served, &exact, width));
        assert!(alone.gram == moments.gram && alone.cross == moments.cross);
    }
}
