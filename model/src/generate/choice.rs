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

/// The same of the tokens that are allowed, as if there were no others; none where none is.
pub(super) fn likeliest_of(logits: &[f32], allowed: &[u32]) -> Option<(usize, f64)> {
    let among: Vec<f32> = allowed.iter().map(|token| logits[*token as usize]).collect();
    let (best, log_prob) = likeliest(&among);
    Some((*allowed.get(best)? as usize, log_prob))
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
    fn those_that_are_not_allowed_have_no_share() {
        let logits = [5.0, 1.0, 3.0, 1.0, 9.0];
        assert_eq!(likeliest_of(&logits, &[]), None);
        assert_eq!(likeliest_of(&logits, &[3]), Some((3, 0.0)));
        let (token, log_prob) = likeliest_of(&logits, &[1, 2, 3]).unwrap();
        let share = 1.0 / (1.0 + 2.0 * (-2.0f64).exp());
        assert!(token == 2 && (log_prob.exp() - share).abs() < 1e-6, "{token} {log_prob}");
    }

    #[test]
    fn a_token_that_is_certain_has_probability_one() {
        let mut logits = vec![-200.0f32; 100];
        logits[40] = 30.0;
        assert_eq!(likeliest(&logits), (40, 0.0));
    }
}
