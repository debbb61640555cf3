//! From encoded rows to packed micro-batches: which rows make up a step, the prefix they share, the positions that carry
//! loss. The order of an epoch depends on the seed and the epoch alone.

use crate::random::Random;
use limbeck_model::layout::Packed;
use limbeck_model::ops::Target;
use limbeck_model::prompt::{EncodedExample, shared_prefix};

/// A row ready to train on.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainRow {
    /// The example's id, for messages.
    pub id: String,
    pub encoded: EncodedExample,
    pub weight: f32,
}

/// The rows' order in an epoch.
pub fn epoch_order(rows: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rows).collect();
    Random::new(seed, &format!("order of epoch {epoch}")).shuffle(&mut order);
    order
}

/// Weight of all positions that carry loss: what a step's loss is divided by.
pub fn loss_weight<'a>(rows: impl Iterator<Item = &'a TrainRow>) -> f64 {
    rows.map(|r| r.weight as f64 * r.encoded.completion.len() as f64).sum()
}

/// A micro-batch: rows packed behind their shared prefix, and what each label position should predict.
pub struct MicroBatch {
    pub packed: Packed,
    pub targets: Vec<Target>,
}

/// Packs rows; a shared beginning of fewer than `min_prefix` tokens is not worth its segment.
pub fn pack(rows: &[&TrainRow], min_prefix: usize) -> MicroBatch {
    let mut shared = match rows.len() {
        0 | 1 => 0,
        _ => shared_prefix(rows.iter().map(|r| r.encoded.prompt.as_slice())),
    };
    if shared < min_prefix {
        shared = 0;
    }
    let first = rows.first().map_or(&[][..], |r| &r.encoded.prompt[..shared]);
    let mut packed = Packed::with_prefix(first, 0);
    let mut targets = Vec::new();
    let mut tokens = Vec::new();
    for row in rows {
        let EncodedExample { prompt, completion } = &row.encoded;
        tokens.clear();
        tokens.extend_from_slice(&prompt[shared..]);
        // The last token of the answer predicts nothing.
        tokens.extend_from_slice(&completion[..completion.len().saturating_sub(1)]);
        let range = packed.push_chain(&tokens, shared);
        let answer = range.start + prompt.len() - shared;
        targets.extend(completion.iter().enumerate().map(|(i, &token)| Target {
            row: answer + i - 1,
            token,
            weight: row.weight,
        }));
    }
    MicroBatch { packed, targets }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(prompt: &[u32], completion: &[u32]) -> TrainRow {
        let encoded = EncodedExample { prompt: prompt.to_vec(), completion: completion.to_vec() };
        TrainRow { id: String::new(), encoded, weight: 1.0 }
    }

    #[test]
    fn every_answer_token_is_predicted_from_the_token_before_it() {
        let rows = [row(&[1, 2, 3, 4], &[7, 8, 9]), row(&[1, 2, 5], &[7, 9])];
        for min_prefix in [1, 100] {
            let batch = pack(&rows.iter().collect::<Vec<_>>(), min_prefix);
            let before: Vec<u32> = batch.targets.iter().map(|t| batch.packed.tokens[t.row]).collect();
            assert_eq!(before, [4, 7, 8, 5, 7]);
            let predicted: Vec<u32> = batch.targets.iter().map(|t| t.token).collect();
            assert_eq!(predicted, [7, 8, 9, 7, 9]);
        }
        let batch = pack(&rows.iter().collect::<Vec<_>>(), 1);
        assert_eq!(batch.packed.prefix, 2);
        assert_eq!(batch.packed.positions, [0, 1, 2, 3, 4, 5, 2, 3]);
    }

    #[test]
    fn epochs_differ_and_repeat() {
        assert_eq!(epoch_order(50, 3, 1), epoch_order(50, 3, 1));
        assert_ne!(epoch_order(50, 3, 1), epoch_order(50, 3, 2));
    }
}
