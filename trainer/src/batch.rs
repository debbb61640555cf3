//! From encoded rows to packed micro-batches: which rows make up a step, the prefix they share, the positions that carry
//! loss. The order of an epoch depends on the seed and the epoch alone.

use crate::random::Random;
use crate::rationale::Explained;
use crate::soft::{SoftLabel, SoftPlace};
use limbeck_model::layout::{Packed, ROOT};
use limbeck_model::ops::{SoftTarget, Target};
use limbeck_model::prompt::{EncodedExample, shared_prefix};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Rows shorter than this in common are packed without a shared prefix.
pub const MIN_PREFIX: usize = 16;

/// What a step's loss is the mean of; a row's weight counts in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossNormalization {
    /// Of all tokens that carry loss, over the whole step: long answers count for more.
    Token,
    /// Of the rows, each the mean of its tokens.
    Example,
}

/// A row ready to train on.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainRow {
    /// The example's id, for messages.
    pub id: String,
    pub encoded: EncodedExample,
    /// Of the answer's tokens.
    pub weight: f32,
    /// What a teacher answered, where one was asked.
    pub soft: Option<SoftRow>,
    /// What a teacher expected of each token that carries loss, in their order, where it told; empty where it told nothing.
    pub told: Vec<Option<SoftTarget>>,
    /// The student wrote its answer ([`crate::on_policy`]): what the teacher told of it is all there is to learn.
    pub written: bool,
    /// The row once more, asked for the reasons of its answer.
    pub explained: Option<Explained>,
}

/// A teacher's answer to a row, and how the row lies in a batch for its sake.
#[derive(Clone, Debug, PartialEq)]
pub struct SoftRow {
    pub label: SoftLabel,
    /// Tokens of the prompt, the last of which all labels follow.
    pub prompt: usize,
    /// `(token, parent)` behind the prompt: the nodes of the row's part of the label trie, then the answer's where they are not among those. Empty
    /// where the labels part at their first token: the answer is then a chain as in any row.
    pub tree: Vec<(u32, u32)>,
    /// `(parent, token)` of the answer in that tree.
    pub answer: Vec<(u32, u32)>,
}

impl TrainRow {
    /// A row that is learnt from its answer alone.
    pub fn new(id: String, encoded: EncodedExample, weight: f32) -> TrainRow {
        TrainRow { id, encoded, weight, soft: None, told: Vec::new(), written: false, explained: None }
    }

    /// What is computed of it: a chain of tokens, and a tree behind them. The last token predicts nothing.
    fn laid(&self) -> (&[u32], &[(u32, u32)]) {
        let ids = &self.encoded.ids;
        match &self.soft {
            Some(soft) if !soft.tree.is_empty() || self.encoded.loss_tokens() == 0 => (&ids[..soft.prompt], &soft.tree),
            _ => (&ids[..ids.len().saturating_sub(1)], &[]),
        }
    }

    /// Tokens that a step computes of it.
    pub fn computed(&self) -> usize {
        let (chain, tree) = self.laid();
        let explained = self.explained.as_ref().map_or(0, |e| e.encoded.len().saturating_sub(1));
        chain.len() + tree.len() + explained
    }

    /// The weight of each of its tokens that carry loss.
    fn token_weight(&self, normalization: LossNormalization) -> f32 {
        match normalization {
            LossNormalization::Token => self.weight,
            LossNormalization::Example => self.weight / self.encoded.loss_tokens().max(1) as f32,
        }
    }
}

/// The rows' order in an epoch.
pub fn epoch_order(rows: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rows).collect();
    Random::new(seed, &format!("order of epoch {epoch}")).shuffle(&mut order);
    order
}

/// Weight of all positions that carry loss, a teacher's answer counting as one: what a step's loss is divided by.
pub fn loss_weight<'a>(rows: impl Iterator<Item = &'a TrainRow>, normalization: LossNormalization) -> f64 {
    rows.map(|r| {
        let answer = match normalization {
            LossNormalization::Token => r.weight as f64 * r.encoded.loss_tokens() as f64,
            LossNormalization::Example => r.weight as f64,
        };
        answer + r.soft.as_ref().map_or(0.0, |soft| soft.label.weight as f64)
    })
    .sum()
}

/// A micro-batch: rows packed behind their shared prefix, and what each label position should predict.
pub struct MicroBatch {
    pub packed: Arc<Packed>,
    pub targets: Vec<Target>,
    /// The rows that a teacher answered.
    pub soft: Vec<SoftPlace>,
    /// Label positions of which a teacher told what it expected; they are none of `targets`.
    pub told: Vec<SoftTarget>,
    /// Those of answers that the student wrote.
    pub written: Vec<SoftTarget>,
    /// What explanations go on with: weighed apart from answers ([`crate::rationale`]).
    pub explained: Vec<Target>,
}

/// Tokens that rows share at their beginning; 0 where it is not worth a segment of its own.
pub fn prefix_of(rows: &[&TrainRow], min_prefix: usize) -> usize {
    match rows.len() {
        0 | 1 => 0,
        _ => {
            let explained = rows.iter().filter_map(|r| Some(r.explained.as_ref()?.encoded.prompt()));
            let prompts = rows.iter().map(|r| r.encoded.prompt()).chain(explained);
            Some(shared_prefix(prompts)).filter(|n| *n >= min_prefix).unwrap_or(0)
        }
    }
}

/// Packs rows behind the prefix they share, if that has at least `min_prefix` tokens.
pub fn pack(rows: &[&TrainRow], min_prefix: usize, normalization: LossNormalization) -> MicroBatch {
    let shared = prefix_of(rows, min_prefix);
    let first = rows.first().map_or(&[][..], |r| &r.encoded.ids[..shared]);
    let mut packed = Packed::with_prefix(first, 0);
    let (mut targets, mut soft, mut explained) = (Vec::new(), Vec::new(), Vec::new());
    let (mut told, mut written) = (Vec::new(), Vec::new());
    for row in rows {
        let ids = &row.encoded.ids;
        let (chain, tree) = row.laid();
        let start = packed.push_tree(&chain[shared..], tree, shared).start;
        let nodes = start + chain.len() - shared;
        let weight = row.token_weight(normalization);
        if weight > 0.0 {
            // Of an answer that lies in a tree, only earlier turns are in the chain.
            let in_chain = if tree.is_empty() { ids.len() } else { chain.len() };
            let with_loss = row.encoded.mask.iter().enumerate().filter(|(i, loss)| **loss && *i > 0 && *i < in_chain);
            for (of_answer, (i, _)) in with_loss.enumerate() {
                let place = start + i - 1 - shared;
                match row.told.get(of_answer) {
                    Some(Some(target)) if row.written => written.push(target.placed(place, weight)),
                    Some(Some(target)) => told.push(target.placed(place, weight)),
                    _ => targets.push(Target { row: place, token: ids[i], weight }),
                }
            }
        }
        if let Some(e) = &row.explained {
            let ids = &e.encoded.ids;
            let start = packed.push_chain(&ids[shared..ids.len() - 1], shared).start;
            let weight = e.share * e.token_weight(normalization);
            let spoken = e.encoded.mask.iter().enumerate().filter(|(i, loss)| **loss && *i > 0);
            let target = |(i, _)| Target { row: start + i - 1 - shared, token: ids[i], weight };
            explained.extend(spoken.map(target));
        }
        let Some(answered) = &row.soft else { continue };
        let root = start + answered.prompt - 1 - shared;
        if weight > 0.0 {
            let place = |parent: u32| if parent == ROOT { root } else { nodes + parent as usize };
            targets.extend(answered.answer.iter().map(|(parent, token)| Target {
                row: place(*parent),
                token: *token,
                weight,
            }));
        }
        if answered.label.weight > 0.0 {
            soft.push(SoftPlace { root, nodes, label: answered.label.clone() });
        }
    }
    MicroBatch { packed: Arc::new(packed), targets, soft, told, written, explained }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(prompt: &[u32], completion: &[u32]) -> TrainRow {
        let encoded = EncodedExample::of(prompt.to_vec(), completion);
        TrainRow::new(String::new(), encoded, 1.0)
    }

    #[test]
    fn every_answer_token_is_predicted_from_the_token_before_it() {
        let rows = [row(&[1, 2, 3, 4], &[7, 8, 9]), row(&[1, 2, 5], &[7, 9])];
        for min_prefix in [1, 100] {
            let batch = pack(&rows.iter().collect::<Vec<_>>(), min_prefix, LossNormalization::Token);
            let before: Vec<u32> = batch.targets.iter().map(|t| batch.packed.tokens[t.row]).collect();
            assert_eq!(before, [4, 7, 8, 5, 7]);
            let predicted: Vec<u32> = batch.targets.iter().map(|t| t.token).collect();
            assert_eq!(predicted, [7, 8, 9, 7, 9]);
        }
        let batch = pack(&rows.iter().collect::<Vec<_>>(), 1, LossNormalization::Token);
        assert_eq!(batch.packed.prefix, 2);
        assert_eq!(batch.packed.positions, [0, 1, 2, 3, 4, 5, 2, 3]);
    }

    #[test]
    fn a_turn_in_the_middle_carries_loss_where_the_mask_says() {
        let mut first = row(&[1, 2, 3, 4, 5, 6], &[7]);
        first.encoded.mask[2] = true;
        first.encoded.mask[3] = true;
        let rows = [first, row(&[1, 2, 9, 9], &[8])];
        let batch = pack(&rows.iter().collect::<Vec<_>>(), 1, LossNormalization::Token);
        assert_eq!(batch.packed.prefix, 1, "what carries loss is never shared, nor the token before it");
        let pairs: Vec<(u32, u32)> = batch.targets.iter().map(|t| (batch.packed.tokens[t.row], t.token)).collect();
        assert_eq!(pairs, [(2, 3), (3, 4), (6, 7), (9, 8)]);
    }

    #[test]
    fn by_example_each_row_counts_by_its_weight_alone() {
        let mut rows = [row(&[1, 2], &[7, 8, 9, 10]), row(&[3], &[7])];
        rows[0].weight = 0.5;
        let refs: Vec<&TrainRow> = rows.iter().collect();
        let total = |n| pack(&refs, 1, n).targets.iter().map(|t| t.weight as f64).sum::<f64>();
        for (normalization, want) in [(LossNormalization::Token, 3.0), (LossNormalization::Example, 1.5)] {
            assert_eq!(total(normalization), want);
            assert_eq!(loss_weight(rows.iter(), normalization), want);
        }
        assert_eq!(pack(&refs, 1, LossNormalization::Example).targets[0].weight, 0.125);
    }

    #[test]
    fn epochs_differ_and_repeat() {
        assert_eq!(epoch_order(50, 3, 1), epoch_order(50, 3, 1));
        assert_ne!(epoch_order(50, 3, 1), epoch_order(50, 3, 2));
    }
}
