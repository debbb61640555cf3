//! The likeliest token of a row of logits, or one that is drawn, and its probability, each in a fixed order, since the vocabulary
//! is long and every row of every step asks.

use crate::ops::flex::{largest, sum_of_exp};
use std::borrow::Cow;

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

/// The token that `unit`, uniform in [0, 1), draws at a temperature: the first at which the running sum of the probabilities, in the
/// order of the ids, is above it. Only allowed ones where these are given, none where there are none. The log of the probability
/// is that of temperature 1.
pub(super) fn drawn(logits: &[f32], allowed: Option<&[u32]>, temperature: f32, unit: f64) -> Option<(usize, f64)> {
    let among: Cow<[f32]> = match allowed {
        None => logits.into(),
        Some(allowed) => allowed.iter().map(|token| logits[*token as usize]).collect(),
    };
    let (best, log_prob_of_best) = likeliest(&among);
    let max = *among.get(best)?;
    let weight = |logit: &f32| f64::from((logit - max) / temperature).exp();
    let mut left = unit * among.iter().map(weight).sum::<f64>();
    // Rounding may leave a rest behind the last: then it is the likeliest.
    let at = among.iter().position(|logit| {
        left -= weight(logit);
        left < 0.0
    });
    let at = at.unwrap_or(best);
    let log_prob = log_prob_of_best + f64::from(among[at] - max);
    Some((allowed.map_or(at, |allowed| allowed[at] as usize), log_prob))
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

    /// A grid of 10,000 units draws each token as often as the softmax at that temperature says, to the width of the grid.
    #[test]
    fn what_is_drawn_has_the_softmax_s_shares() {
        let logits = [0.3f32, -1.0, 2.0, 0.0, -4.0];
        for (temperature, allowed) in [(1.0, None), (0.5, None), (2.0, None), (1.0, Some(&[1u32, 3, 4][..]))] {
            let tokens: Vec<usize> = allowed
                .map_or_else(|| (0..5).collect(), |allowed: &[u32]| allowed.iter().map(|t| *t as usize).collect());
            let exp = |t: usize, by: f32| f64::from(logits[t] / by).exp();
            let all: f64 = tokens.iter().map(|t| exp(*t, temperature)).sum();
            let plain: f64 = tokens.iter().map(|t| exp(*t, 1.0)).sum();
            let mut counts = [0u32; 5];
            for i in 0..10_000 {
                let (token, log_prob) = drawn(&logits, allowed, temperature, f64::from(i) / 10_000.0).unwrap();
                counts[token] += 1;
                assert!((log_prob - (exp(token, 1.0) / plain).ln()).abs() < 1e-6);
            }
            for token in 0..5 {
                let share = if tokens.contains(&token) { exp(token, temperature) / all } else { 0.0 };
                assert!((f64::from(counts[token]) / 10_000.0 - share).abs() < 2e-4, "{token}: {counts:?}");
            }
        }
        assert_eq!(drawn(&logits, Some(&[]), 1.0, 0.5), None);
    }

    #[test]
    fn a_token_that_is_certain_has_probability_one() {
        let mut logits = vec![-200.0f32; 100];
        logits[40] = 30.0;
        assert_eq!(likeliest(&logits), (40, 0.0));
    }
}
