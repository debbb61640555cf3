//! What a teacher told of a position, its likeliest tokens and one bucket for all others, and the divergence of a student
//! from it in plain burn. Source of the bucket: DistillKit's `symmetric_uniform` (a61c2e7, `distillkit/lossfuncs/kl.py`).

use super::{Frozen, Ops, softcap};
use burn::tensor::{Bool, Int, Tensor, TensorData};
use std::collections::BTreeSet;

/// A teacher's answer at one position: log-probabilities of some tokens at temperature 1. What they leave of 1 is the
/// tail's, and no other temperature can be made of it. A student q pays, with p the teacher's probabilities,
/// `Σ p log(p / q)` over the tokens and `(1 - P) log((1 - P) / (1 - Q))` over the tail, P and Q the sums over the tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct SoftTarget {
    row: usize,
    tokens: Vec<u32>,
    log_probs: Vec<f32>,
    weight: f32,
}

#[derive(Debug, thiserror::Error, PartialEq)]
pub enum SoftTargetError {
    #[error("{tokens} tokens and {log_probs} log-probabilities; each token needs one")]
    Lengths { tokens: usize, log_probs: usize },
    #[error("token {0} is listed twice")]
    Twice(u32),
    #[error("the log-probability of token {token} is {value}, which none can be")]
    LogProb { token: u32, value: f32 },
    #[error("the probabilities sum to {0}, more than rounding lets them")]
    Sum(f64),
}

/// How far rounded log-probabilities may go beyond 1: float16 keeps 11 bits.
const ROUNDING: f64 = 1e-2;

/// A teacher's answer as numbers.
pub(super) struct Teacher {
    /// In the order of the tokens.
    pub probs: Vec<f64>,
    /// What is left for the tail; 0 where the tokens are the whole vocabulary.
    pub tail: f64,
    /// Of tokens and tail; 1 but for rounding.
    pub mass: f64,
    /// `Σ p log p`, the tail among them.
    pub negentropy: f64,
}

impl SoftTarget {
    /// The hidden state at `row` should predict as the teacher did. `log_probs` may be -inf.
    ///
    /// # Errors
    /// When the lists differ in length, a token comes twice, or the numbers are no probabilities.
    pub fn new(row: usize, tokens: Vec<u32>, log_probs: Vec<f32>, weight: f32) -> Result<Self, SoftTargetError> {
        if tokens.len() != log_probs.len() {
            return Err(SoftTargetError::Lengths { tokens: tokens.len(), log_probs: log_probs.len() });
        }
        let mut seen = BTreeSet::new();
        for (&token, &value) in tokens.iter().zip(&log_probs) {
            if !seen.insert(token) {
                return Err(SoftTargetError::Twice(token));
            }
            if value.is_nan() || f64::from(value) > ROUNDING {
                return Err(SoftTargetError::LogProb { token, value });
            }
        }
        let sum: f64 = log_probs.iter().map(|lp| f64::from(*lp).exp()).sum();
        match sum <= 1.0 + ROUNDING {
            true => Ok(SoftTarget { row, tokens, log_probs, weight }),
            false => Err(SoftTargetError::Sum(sum)),
        }
    }

    pub fn row(&self) -> usize {
        self.row
    }

    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    pub fn weight(&self) -> f32 {
        self.weight
    }

    pub(super) fn teacher(&self, vocab: usize) -> Teacher {
        let probs: Vec<f64> = self.log_probs.iter().map(|lp| f64::from(*lp).exp()).collect();
        let listed: f64 = probs.iter().sum();
        let tail = if self.tokens.len() < vocab { (1.0 - listed).max(0.0) } else { 0.0 };
        let term = |p: f64| if p > 0.0 { p * p.ln() } else { 0.0 };
        let negentropy = probs.iter().map(|p| term(*p)).sum::<f64>() + term(tail);
        Teacher { probs, tail, mass: listed + tail, negentropy }
    }
}

/// [`Ops::linear_kl`] from the op set's own linear layer: the reference, and what runs under a soft cap.
pub(super) fn linear_kl(
    ops: &dyn Ops,
    hidden: Tensor<2>,
    head: &Frozen,
    targets: &[SoftTarget],
    denominator: f32,
) -> Tensor<1> {
    let (n, vocab, device) = (targets.len(), head.n_out, ops.device());
    if n == 0 {
        return hidden.slice([0..1, 0..1]).sum() * 0.0;
    }
    let column = |values: Vec<f32>| -> Tensor<2> { Tensor::from_data(TensorData::new(values, [n, 1]), &device) };
    let of_teacher =
        |value: &dyn Fn(&Teacher) -> f64| targets.iter().map(|t| value(&t.teacher(vocab)) as f32).collect::<Vec<f32>>();
    let rows: Vec<i32> = targets.iter().map(|t| t.row as i32).collect();
    let rows: Tensor<1, Int> = Tensor::from_data(TensorData::new(rows, [n]), &device);
    let logits = softcap::cap(ops.linear(hidden.select(0, rows), head, None), head.softcap);

    // Lists of one length: what is filled up has the probability 0.
    let most = targets.iter().map(|t| t.tokens.len()).max().unwrap_or(0).max(1);
    let (mut tokens, mut probs, mut listed) = (vec![0i32; n * most], vec![0f32; n * most], vec![false; n * vocab]);
    for (i, target) in targets.iter().enumerate() {
        for (k, (&token, p)) in target.tokens.iter().zip(target.teacher(vocab).probs).enumerate() {
            (tokens[i * most + k], probs[i * most + k]) = (token as i32, p as f32);
            listed[i * vocab + token as usize] = true;
        }
    }
    let tokens: Tensor<2, Int> = Tensor::from_data(TensorData::new(tokens, [n, most]), &device);
    let probs: Tensor<2> = Tensor::from_data(TensorData::new(probs, [n, most]), &device);
    let listed: Tensor<2, Bool> = Tensor::from_data(TensorData::new(listed, [n, vocab]), &device);

    let largest = logits.clone().max_dim(1).detach();
    let exps = (logits.clone() - largest.clone()).exp();
    let log_sum = exps.clone().sum_dim(1).log() + largest.clone();
    // An empty tail has no logarithm; its share is 0.
    let empty = column(targets.iter().map(|t| f32::from(u8::from(t.tokens.len() == vocab))).collect());
    let log_tail = (exps.mask_fill(listed, 0.0).sum_dim(1) + empty).log() + largest;
    let wanted = (logits.gather(1, tokens) * probs).sum_dim(1);
    let (mass, tail) = (column(of_teacher(&|t| t.mass)), column(of_teacher(&|t| t.tail)));
    let negentropy = column(of_teacher(&|t| t.negentropy));
    let weights = column(targets.iter().map(|t| t.weight / denominator).collect());
    ((negentropy + log_sum * mass - wanted - log_tail * tail) * weights).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_distribution_is_refused() {
        let new = |tokens: &[u32], log_probs: &[f32]| SoftTarget::new(0, tokens.to_vec(), log_probs.to_vec(), 1.0);
        assert!(new(&[3, 1], &[-0.1, f32::NEG_INFINITY]).is_ok());
        assert!(new(&[], &[]).is_ok());
        assert_eq!(new(&[3], &[]), Err(SoftTargetError::Lengths { tokens: 1, log_probs: 0 }));
        assert_eq!(new(&[3, 3], &[-1.0, -2.0]), Err(SoftTargetError::Twice(3)));
        assert!(matches!(new(&[3], &[f32::NAN]), Err(SoftTargetError::LogProb { token: 3, .. })));
        assert!(matches!(new(&[3], &[0.5]), Err(SoftTargetError::LogProb { token: 3, .. })));
        assert!(matches!(new(&[3, 4], &[-0.1, -0.1]), Err(SoftTargetError::Sum(_))));
    }

    #[test]
    fn the_tail_is_what_the_tokens_leave() {
        let target = SoftTarget::new(0, vec![5, 2], vec![0.5f32.ln(), 0.25f32.ln()], 1.0).unwrap();
        assert!((target.teacher(10).tail - 0.25).abs() < 1e-7);
        assert_eq!(target.teacher(2).tail, 0.0);
    }
}
