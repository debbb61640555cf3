//! The likeliest token of a row of logits and its probability, each in a fixed order, since the vocabulary is long and every
//! row of every step asks.

use crate::ops::flex::{largest, sum_of_exp};

/// Logits whose exponentials are added up in float32 before they join the others in float64.
const BLOCK: usize = 1024;

/// The index of the largest logit, the first of equals, and the natural log of its probability.
pub(super) fn likeliest(logits: &[f32]) -> (usize, f64) {
    let max = largest(logits);
    let best = logits.iter().position(|x| *x == max).unwrap_or(0);
    let sum: f64 = logits.chunks(BLOCK).map(|block| f64::from(sum_of_exp(block, max))).sum();
    (best, -sum.ln())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::log_softmax;

    #[test]
    fn it_is_what_a_plain_softmax_says() {
        let mut z = 3u64;
        for n in [1, 15, 16, 33, 1024, 5001] {
            let mut logits: Vec<f32> = (0..n)
                .map(|_| {
                    z = z.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (z >> 40) as f32 / (1u64 << 20) as f32 - 8.0
                })
                .collect();
            let plain = log_softmax(&logits);
            let best = (1..n).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
            let (found, log_prob) = likeliest(&logits);
            assert_eq!(found, best);
            assert!((log_prob - f64::from(plain[best])).abs() < 2e-6, "{log_prob} against {}", plain[best]);
            logits.push(logits[best]);
            assert_eq!(likeliest(&logits).0, best, "the first of equals");
        }
    }

    #[test]
    fn a_token_that_is_certain_has_probability_one() {
        let mut logits = vec![-200.0f32; 100];
        logits[40] = 30.0;
        assert_eq!(likeliest(&logits), (40, 0.0));
    }
}
