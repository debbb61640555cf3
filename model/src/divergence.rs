//! How far a student's distribution is from a teacher's, and the gradient by the student's logarithms. All in float64, over a few
//! outcomes, labels or a token's likeliest: nothing here needs a tensor.

use serde::{Deserialize, Serialize};

/// A teacher's smallest probability where a logarithm of it is taken.
const FLOOR: f64 = 1e-8;

/// A divergence of a student q from a teacher p.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Divergence {
    /// KL(p ‖ q): the cross-entropy with soft labels, less the teacher's entropy. Keeps the student calibrated.
    ForwardKl,
    /// KL(q ‖ p): the student keeps to what the teacher holds for likely.
    ReverseKl,
    /// β KL(p ‖ m) + (1 - β) KL(q ‖ m), m = β p + (1 - β) q. Near β = 0 it is β KL(p ‖ q), and is not divided by β here.
    /// Source: Agarwal et al., "On-Policy Distillation of Language Models" (2023).
    JensenShannon { beta: f64 },
    /// KL(p ‖ α p + (1 - α) q). Source: Ko et al., "DistiLLM" (2024).
    SkewKl { alpha: f64 },
    /// -1/(αβ) Σ [p^α q^β - α/(α+β) p^(α+β) - β/(α+β) q^(α+β)]; α = 1, β → 0 is KL(p ‖ q). Source: Wang et al., "ABKD" (2025).
    AlphaBeta { alpha: f64, beta: f64 },
}

impl Divergence {
    /// The divergence of exp(`log_q`) from `p`, both of sum 1, and its gradient by each of `log_q`, as if they were free.
    pub fn of(self, p: &[f64], log_q: &[f64]) -> (f64, Vec<f64>) {
        let terms: Vec<(f64, f64)> = p.iter().zip(log_q).map(|(p, log_q)| self.term(*p, *log_q)).collect();
        (terms.iter().map(|t| t.0).sum(), terms.iter().map(|t| t.1).collect())
    }

    /// One label's part of the sum, and its derivative by log q.
    fn term(self, p: f64, log_q: f64) -> (f64, f64) {
        let q = log_q.exp();
        // x ln(x / y), which is 0 at x = 0.
        let entropy = |x: f64, y: f64| if x > 0.0 { x * (x / y).ln() } else { 0.0 };
        match self {
            Divergence::ForwardKl if p > 0.0 => (p * (p.ln() - log_q), -p),
            Divergence::ForwardKl => (0.0, 0.0),
            Divergence::ReverseKl => {
                let gap = log_q - p.max(FLOOR).ln();
                (q * gap, q * (gap + 1.0))
            }
            Divergence::JensenShannon { beta } => {
                let m = beta * p + (1.0 - beta) * q;
                let own = entropy(q, m);
                (beta * entropy(p, m) + (1.0 - beta) * own, (1.0 - beta) * own)
            }
            Divergence::SkewKl { alpha } => {
                let m = alpha * p + (1.0 - alpha) * q;
                (entropy(p, m), if p > 0.0 { -p * (1.0 - alpha) * q / m } else { 0.0 })
            }
            Divergence::AlphaBeta { alpha, beta } => {
                let both = alpha + beta;
                let (mixed, own) = (p.powf(alpha) * q.powf(beta), q.powf(both));
                let value = -(mixed - alpha / both * p.powf(both) - beta / both * own) / (alpha * beta);
                (value, (own - mixed) / alpha)
            }
        }
    }

    /// T² D(p_T ‖ q_T), where x_T is w x^(1/T) made to sum to 1, and its gradient by `log_q`. T² keeps the gradient's size.
    /// `log_width` is ln w: 0 of a label, and of several labels under one outcome see [`crate::partition`].
    /// Source: Hinton et al., "Distilling the Knowledge in a Neural Network" (2015).
    pub fn at_temperature(self, temperature: f64, p: &[f64], log_q: &[f64], log_width: &[f64]) -> (f64, Vec<f64>) {
        let logs: Vec<f64> = p.iter().map(|p| p.ln()).collect();
        let soft_p: Vec<f64> = softened(&logs, temperature, log_width).into_iter().map(f64::exp).collect();
        let soft_q = softened(log_q, temperature, log_width);
        let (value, by_soft_q) = self.of(&soft_p, &soft_q);
        let all: f64 = by_soft_q.iter().sum();
        // The softened logarithms are normalised: each of them moves all the others.
        let back = by_soft_q.iter().zip(&soft_q).map(|(g, log_q)| temperature * (g - log_q.exp() * all)).collect();
        (temperature * temperature * value, back)
    }
}

/// The logarithms of w x^(1/T) made to sum to 1; -inf stays.
fn softened(logs: &[f64], temperature: f64, log_width: &[f64]) -> Vec<f64> {
    let scaled: Vec<f64> = logs.iter().zip(log_width).map(|(l, width)| l / temperature + width).collect();
    let max = scaled.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = max + scaled.iter().map(|l| (l - max).exp()).sum::<f64>().ln();
    scaled.into_iter().map(|l| l - log_sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    pub const ALL: [Divergence; 7] = [
        Divergence::ForwardKl,
        Divergence::ReverseKl,
        Divergence::JensenShannon { beta: 0.5 },
        Divergence::JensenShannon { beta: 0.2 },
        Divergence::SkewKl { alpha: 0.1 },
        Divergence::AlphaBeta { alpha: 0.2, beta: 0.7 },
        Divergence::AlphaBeta { alpha: 1.0, beta: 0.5 },
    ];

    fn logs(of: &[f64]) -> Vec<f64> {
        let sum: f64 = of.iter().sum();
        of.iter().map(|x| (x / sum).ln()).collect()
    }

    #[test]
    fn the_gradient_is_that_of_the_value() {
        let teachers = [[0.7, 0.2, 0.08, 0.02], [0.9, 0.1, 0.0, 0.0]];
        for (teacher, width) in teachers.iter().flat_map(|p| [(p, [0.0; 4]), (p, [0.0, 0.9, 0.0, 1.7])]) {
            let log_q = logs(&[0.2, 0.5, 0.2, 0.1]);
            for divergence in ALL {
                for temperature in [1.0, 2.0, 0.5] {
                    let of = |log_q: &[f64]| divergence.at_temperature(temperature, teacher, log_q, &width).0;
                    let (value, gradient) = divergence.at_temperature(temperature, teacher, &log_q, &width);
                    assert!(value > 0.0 && value.is_finite(), "{divergence:?}");
                    for i in 0..4 {
                        let moved = |by: f64| {
                            let mut moved = log_q.clone();
                            moved[i] += by;
                            of(&moved)
                        };
                        let difference = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                        let gap = (difference - gradient[i]).abs();
                        assert!(gap < 1e-6, "{divergence:?} at {temperature}: {difference} for {}", gradient[i]);
                    }
                }
            }
        }
    }

    #[test]
    fn who_says_the_same_pays_nothing_and_gets_no_gradient() {
        let p = [0.6, 0.3, 0.1];
        for divergence in ALL {
            let (value, gradient) = divergence.at_temperature(2.0, &p, &logs(&p), &[0.0, 0.4, 0.0]);
            assert!(value.abs() < 1e-12 && gradient.iter().all(|g| g.abs() < 1e-9), "{divergence:?}: {value}");
        }
    }

    #[test]
    fn their_limits_are_the_plain_ones() {
        let (p, log_q) = ([0.6, 0.3, 0.1], logs(&[0.2, 0.5, 0.3]));
        let of = |divergence: Divergence| divergence.of(&p, &log_q).0;
        let forward = of(Divergence::ForwardKl);
        assert!((of(Divergence::SkewKl { alpha: 1e-9 }) - forward).abs() < 1e-6);
        assert!((of(Divergence::JensenShannon { beta: 1e-7 }) / 1e-7 - forward).abs() < 1e-5);
        assert!((of(Divergence::AlphaBeta { alpha: 1.0, beta: 1e-6 }) - forward).abs() < 1e-4);
        assert!((of(Divergence::AlphaBeta { alpha: 1e-6, beta: 1.0 }) - of(Divergence::ReverseKl)).abs() < 1e-4);
        let other: Vec<f64> = log_q.iter().map(|l| l.exp()).collect();
        let half = Divergence::JensenShannon { beta: 0.5 };
        let swapped = half.of(&other, &logs(&p)).0;
        assert!((of(half) - swapped).abs() < 1e-12, "half and half is symmetric");
    }
}
