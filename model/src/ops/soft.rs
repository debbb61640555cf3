//! What a teacher told of a position, its likeliest tokens and one bucket for all others, and the divergence of a student
//! from it in plain burn. Source of the bucket: DistillKit's `symmetric_uniform` (a61c2e7, `distillkit/lossfuncs/kl.py`).

use super::{Frozen, Ops, softcap};
use crate::divergence::Divergence;
use burn::tensor::{Bool, Int, Tensor, TensorData};
use std::collections::BTreeSet;

/// A teacher's answer at one position: log-probabilities of some tokens at temperature 1. What they leave of 1 is the
/// tail's, and no other temperature can be made of it. A student q pays, with p the teacher's probabilities and the forward
/// KL, `Σ p log(p / q)` over the tokens and `(1 - P) log((1 - P) / (1 - Q))` over the tail, P and Q the sums over the tokens.
///
/// Where the right token is known too ([`SoftTarget::with_gold`]), the student pays `(1 - λ)` of its cross-entropy beside `λ`
/// of the divergence, out of the same logits.
#[derive(Clone, Debug, PartialEq)]
pub struct SoftTarget {
    row: usize,
    tokens: Vec<u32>,
    log_probs: Vec<f32>,
    weight: f32,
    gold: Option<Gold>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Gold {
    /// Among the tokens.
    at: usize,
    /// λ.
    share_of_teacher: f32,
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
    #[error("the right token {0} is none of those that the teacher told")]
    Unlisted(u32),
}

/// How far rounded log-probabilities may go beyond 1: float16 keeps 11 bits.
const ROUNDING: f64 = 1e-2;

/// A teacher's answer as numbers.
struct Teacher {
    /// In the order of the tokens.
    probs: Vec<f64>,
    /// What is left for the tail; 0 where the tokens are the whole vocabulary.
    tail: f64,
}

/// A loss at one position, and its derivatives by the logarithms of the student's probabilities, as if they were free.
pub(super) struct Slope {
    pub loss: f64,
    /// In the order of the tokens.
    pub tokens: Vec<f64>,
    pub tail: f64,
}

impl Slope {
    /// Of all of them: what a logit takes from every other by the sum that they are normalised with.
    pub fn sum(&self) -> f64 {
        self.tokens.iter().sum::<f64>() + self.tail
    }
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
            true => Ok(SoftTarget { row, tokens, log_probs, weight, gold: None }),
            false => Err(SoftTargetError::Sum(sum)),
        }
    }

    /// The same at another row, under another weight.
    pub fn placed(&self, row: usize, weight: f32) -> SoftTarget {
        SoftTarget { row, weight, ..self.clone() }
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

    /// The right token, and the teacher's share of the loss, 0 to 1.
    ///
    /// # Errors
    /// When the teacher told nothing of that token and left a tail, which it may be part of.
    pub fn with_gold(mut self, token: u32, share_of_teacher: f32) -> Result<Self, SoftTargetError> {
        let listed: f64 = self.log_probs.iter().map(|lp| f64::from(*lp).exp()).sum();
        let at = match self.tokens.iter().position(|known| *known == token) {
            Some(at) => at,
            // Draws leave no tail: what was not drawn has no weight.
            None if (listed - 1.0).abs() < 1e-6 => {
                self.tokens.push(token);
                self.log_probs.push(f32::NEG_INFINITY);
                self.tokens.len() - 1
            }
            None => return Err(SoftTargetError::Unlisted(token)),
        };
        self.gold = Some(Gold { at, share_of_teacher });
        Ok(self)
    }

    fn teacher(&self, vocab: usize) -> Teacher {
        let probs: Vec<f64> = self.log_probs.iter().map(|lp| f64::from(*lp).exp()).collect();
        let listed: f64 = probs.iter().sum();
        let tail = if self.tokens.len() < vocab { (1.0 - listed).max(0.0) } else { 0.0 };
        Teacher { probs, tail }
    }

    /// The teacher's share of the loss, and the right token's place among the tokens.
    fn shares(&self) -> (f64, Option<usize>) {
        self.gold.map_or((1.0, None), |gold| (f64::from(gold.share_of_teacher), Some(gold.at)))
    }

    /// What a student pays who gives the tokens and the tail these log-probabilities; the weight is not in it.
    pub(super) fn slope(&self, divergence: Divergence, vocab: usize, log_q: &[f64], log_tail: f64) -> Slope {
        let Teacher { mut probs, tail } = self.teacher(vocab);
        let (share, gold) = self.shares();
        let mut all = log_q.to_vec();
        // A tail that is empty on both sides is no outcome.
        let has_tail = self.tokens.len() < vocab;
        if has_tail {
            probs.push(tail);
            all.push(log_tail);
        }
        let (value, mut by) = divergence.of(&probs, &all);
        by.iter_mut().for_each(|g| *g *= share);
        let mut loss = share * value;
        if let Some(at) = gold {
            loss -= (1.0 - share) * log_q[at];
            by[at] -= 1.0 - share;
        }
        let tail = if has_tail { by.pop().unwrap_or(0.0) } else { 0.0 };
        Slope { loss, tokens: by, tail }
    }
}

/// [`Ops::linear_divergence`] from the op set's own linear layer: what runs where there is no kernel for it.
pub(super) fn linear_divergence(
    ops: &dyn Ops,
    hidden: Tensor<2>,
    head: &Frozen,
    targets: &[SoftTarget],
    divergence: Divergence,
    denominator: f32,
) -> Tensor<1> {
    if targets.is_empty() {
        return hidden.slice([0..1, 0..1]).sum() * 0.0;
    }
    let rows: Vec<i32> = targets.iter().map(|t| t.row as i32).collect();
    let rows: Tensor<1, Int> = Tensor::from_data(TensorData::new(rows, [targets.len()]), &ops.device());
    let logits = softcap::cap(ops.linear(hidden.select(0, rows), head, None), head.softcap);
    match divergence {
        Divergence::ForwardKl => forward_kl(ops, logits, head.n_out, targets, denominator),
        _ => on_the_host(ops, logits, head.n_out, targets, divergence, denominator),
    }
}

/// On the device, in plain burn: the reference of the kernel.
fn forward_kl(ops: &dyn Ops, logits: Tensor<2>, vocab: usize, targets: &[SoftTarget], denominator: f32) -> Tensor<1> {
    let (n, device) = (targets.len(), ops.device());
    let column = |values: Vec<f32>| -> Tensor<2> { Tensor::from_data(TensorData::new(values, [n, 1]), &device) };
    // Cross-entropy and divergence are one linear form of the student's logarithms, by the mixture of label and teacher.
    let mixtures: Vec<Mixture> = targets.iter().map(|t| Mixture::of(t, vocab)).collect();
    let of_teacher = |value: &dyn Fn(&Mixture) -> f64| mixtures.iter().map(|t| value(t) as f32).collect::<Vec<f32>>();

    // Lists of one length: what is filled up has the probability 0.
    let most = targets.iter().map(|t| t.tokens.len()).max().unwrap_or(0).max(1);
    let (mut tokens, mut probs, mut listed) = (vec![0i32; n * most], vec![0f32; n * most], vec![false; n * vocab]);
    for (i, (target, mixture)) in targets.iter().zip(&mixtures).enumerate() {
        for (k, (&token, p)) in target.tokens.iter().zip(&mixture.probs).enumerate() {
            (tokens[i * most + k], probs[i * most + k]) = (token as i32, *p as f32);
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

/// The right token and the teacher's answer in one distribution.
struct Mixture {
    probs: Vec<f64>,
    tail: f64,
    /// Of tokens and tail; 1 but for rounding.
    mass: f64,
    /// λ `Σ p log p` of the teacher, the tail among them.
    negentropy: f64,
}

impl Mixture {
    fn of(target: &SoftTarget, vocab: usize) -> Mixture {
        let Teacher { mut probs, tail } = target.teacher(vocab);
        let (share, gold) = target.shares();
        let term = |p: f64| if p > 0.0 { p * p.ln() } else { 0.0 };
        let negentropy = share * (probs.iter().map(|p| term(*p)).sum::<f64>() + term(tail));
        probs.iter_mut().for_each(|p| *p *= share);
        if let Some(at) = gold {
            probs[at] += 1.0 - share;
        }
        let tail = share * tail;
        let mass = probs.iter().sum::<f64>() + tail;
        Mixture { probs, tail, mass, negentropy }
    }
}

/// By the definition, a position at a time in float64; the graph gets a linear form of the logits whose value is the loss.
fn on_the_host(
    ops: &dyn Ops,
    logits: Tensor<2>,
    vocab: usize,
    targets: &[SoftTarget],
    divergence: Divergence,
    denominator: f32,
) -> Tensor<1> {
    let device = ops.device();
    let values = logits.to_data().convert::<f32>().try_into_vec::<f32>().unwrap_or_default();
    let (mut loss, mut gradient) = (0f64, Vec::with_capacity(values.len()));
    for (target, row) in targets.iter().zip(values.chunks_exact(vocab.max(1))) {
        let weight = f64::from(target.weight / denominator);
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exps: Vec<f64> = row.iter().map(|z| f64::from(z - max).exp()).collect();
        let all: f64 = exps.iter().sum();
        let listed: BTreeSet<u32> = target.tokens.iter().copied().collect();
        let outside = |t: usize| !listed.contains(&(t as u32));
        let in_tail: f64 = exps.iter().enumerate().filter(|(t, _)| outside(*t)).map(|(_, x)| x).sum();
        let log_q: Vec<f64> = target.tokens.iter().map(|t| (exps[*t as usize] / all).ln()).collect();
        let slope = target.slope(divergence, vocab, &log_q, (in_tail.max(SMALLEST) / all).ln());
        loss += weight * slope.loss;
        let sum = slope.sum();
        let of = |t: usize, x: f64| match target.tokens.iter().position(|known| *known as usize == t) {
            Some(k) => slope.tokens[k] - sum * x / all,
            None => slope.tail * x / in_tail.max(SMALLEST) - sum * x / all,
        };
        gradient.extend(exps.iter().enumerate().map(|(t, x)| (weight * of(t, *x)) as f32));
    }
    let gradient: Tensor<2> = Tensor::from_data(TensorData::new(gradient, [targets.len(), vocab]), &device);
    let linear = (logits * gradient).sum();
    let constant: Tensor<1> = Tensor::from_data(TensorData::new(vec![loss as f32], [1]), &device);
    linear.clone() - linear.detach() + constant
}

/// A student's tail is never taken for less, beside its likeliest token: it has a logarithm.
pub(super) const SMALLEST: f64 = 1e-30;

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

    #[test]
    fn the_right_token_has_to_be_told_unless_there_is_no_tail() {
        let told = |log_probs: [f32; 2]| SoftTarget::new(0, vec![5, 2], log_probs.map(f32::ln).to_vec(), 1.0).unwrap();
        assert_eq!(told([0.5, 0.25]).with_gold(7, 0.5), Err(SoftTargetError::Unlisted(7)));
        assert_eq!(told([0.5, 0.25]).with_gold(2, 0.5).unwrap().tokens(), [5, 2]);
        assert_eq!(told([0.5, 0.5]).with_gold(7, 0.5).unwrap().tokens(), [5, 2, 7]);
    }
}
