//! What a decoder expects next, over plain memory: final states of many rows first, logits of some of them when they are asked
//! for. Models are compared so, one in memory at a time and the other's states kept.

use crate::decoder::{Decoder, DecoderError, LoraSet, log_softmax};
use crate::layout::Packed;
use crate::ops::stock::to_vec;
use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;
use std::sync::Arc;

impl Decoder {
    /// Hidden states after the final norm, `[tokens, hidden_size]`.
    ///
    /// # Errors
    /// When a token is outside the vocabulary, or a row is longer than the context.
    pub fn states(&self, batch: &Arc<Packed>) -> Result<Vec<f32>, DecoderError> {
        self.states_under(batch, None)
    }

    /// [`Decoder::states`] under an adapter that is not merged.
    ///
    /// # Errors
    /// As there.
    pub fn states_under(&self, batch: &Arc<Packed>, lora: Option<&LoraSet>) -> Result<Vec<f32>, DecoderError> {
        Ok(to_vec(&self.forward(batch, lora, None, None)?))
    }

    /// Logits of all tokens behind each of `states`: `[states, vocabulary]`.
    pub fn logits_behind(&self, states: &[f32]) -> Vec<f32> {
        let width = self.config.hidden_size;
        let rows: Vec<usize> = (0..states.len() / width).collect();
        let states = Tensor::from_data(TensorData::new(states.to_vec(), [rows.len(), width]), &self.ops().device());
        self.ops().logits(&states, self.head(), &rows)
    }
}

/// What two models expect at one position, compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Compared {
    /// KL divergence of the first model's distribution from the second's, in nats.
    pub divergence: f64,
    /// Whether both expect the same token most.
    pub same_top: bool,
    /// How far the log-probability of the token that comes next is lower in the second.
    pub lost: f64,
}

/// Compares logits of two models, a position each of `next`, the tokens that come; `[positions, vocabulary]`. The second may
/// have further tokens, which a classification head adds: they have no part in it.
pub fn compare(first: &[f32], second: &[f32], next: &[u32]) -> Vec<Compared> {
    let n = next.len().max(1);
    let (p, q) = (first.par_chunks_exact(first.len() / n), second.par_chunks_exact(second.len() / n));
    let one = |((next, p), q): ((&u32, &[f32]), &[f32])| {
        let (p, q) = (log_softmax(p), log_softmax(&q[..p.len()]));
        let top = |v: &[f32]| (0..v.len()).fold(0, |best, i| if v[i] > v[best] { i } else { best });
        let term = |(p, q): (&f32, &f32)| f64::from(*p).exp() * (f64::from(*p) - f64::from(*q));
        let divergence = p.iter().zip(&q).map(term).sum::<f64>().max(0.0);
        let lost = f64::from(p[*next as usize]) - f64::from(q[*next as usize]);
        Compared { divergence, same_top: top(&p) == top(&q), lost }
    };
    next.par_iter().zip(p).zip(q).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_of_known_distributions() {
        let logits = |p: &[f64]| p.iter().map(|p| (p.ln() + 3.0) as f32).collect::<Vec<f32>>();
        let (p, q) = ([0.5, 0.25, 0.25], [0.25, 0.5, 0.25]);
        let (first, second) =
            ([logits(&p), logits(&p)].concat(), [logits(&q), vec![9.0], logits(&p), vec![9.0]].concat());
        let compared = compare(&first, &second, &[0, 2]);
        let want: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
        assert!((compared[0].divergence - want).abs() < 1e-6 && !compared[0].same_top, "{compared:?}");
        assert!((compared[0].lost - 2f64.ln()).abs() < 1e-6);
        assert!(compared[1].divergence < 1e-7 && compared[1].same_top && compared[1].lost == 0.0);
    }
}
