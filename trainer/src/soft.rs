//! Distillation over labels: rows whose answer a teacher told as a posterior, and the student's divergence from it. The student's
//! posterior is the exact one that scores: every fork of the label trie is computed, and each is normalised over its own
//! children.
//!
//! A row's loss is `(1 - λ) · CE(gold) + λ · T² · D(teacher ‖ student)`, each term under the row's weight; a row that has one of
//! them has that one whole. A step's loss is divided by the weight of its terms, the divergence counting as one token.
//!
//! What it costs: where labels part at their first token (and under a classification head always) a row that has both runs
//! exactly the tokens of a plain row, and one that has only the teacher's answer runs fewer; logits exist for the labels'
//! tokens alone. Labels that share a beginning add the nodes above their forks to each row ([`SoftLoss::added_tokens`]):
//! exactness is bought with that many more tokens.
//!
//! The arithmetic over labels runs on the host in float64. The graph gets it as a linear form of the logits: its gradient is
//! exact, and its value the loss, on every op set.

use crate::divergence::Divergence;
use burn::tensor::{Int, Tensor, TensorData};
use limbeck_model::label_trie::LabelTrie;
use limbeck_model::layout::ROOT;
use limbeck_model::ops::{Frozen, Ops, capped};
use std::collections::BTreeSet;

/// A teacher's answer to one row.
#[derive(Clone, Debug, PartialEq)]
pub struct SoftLabel {
    /// Of the dataset's labels in their order, at temperature 1; sums to 1.
    pub posterior: Vec<f32>,
    /// Of the divergence: the row's λ times what the teacher's word is worth.
    pub weight: f32,
}

/// A row of a micro-batch that a teacher answered.
#[derive(Clone, Debug, PartialEq)]
pub struct SoftPlace {
    /// Where the prompt's last token lies.
    pub root: usize,
    /// Where the first node of the trie lies.
    pub nodes: usize,
    pub label: SoftLabel,
}

/// The divergence over a fixed set of labels.
#[derive(Clone, Debug)]
pub struct SoftLoss {
    trie: LabelTrie,
    /// Tokens that any fork chooses from, ascending.
    tokens: Vec<u32>,
    /// Of each fork, where its tokens lie in that list.
    columns: Vec<Vec<usize>>,
    /// All tokens of the head, as those of a classification head.
    whole: bool,
    divergence: Divergence,
    temperature: f64,
}

impl SoftLoss {
    pub fn new(trie: LabelTrie, divergence: Divergence, temperature: f64, whole: bool) -> SoftLoss {
        let tokens: BTreeSet<u32> = trie.forks().iter().flat_map(|fork| fork.tokens.iter().copied()).collect();
        let tokens: Vec<u32> = tokens.into_iter().collect();
        let column = |token: &u32| tokens.binary_search(token).unwrap_or_default();
        let columns = trie.forks().iter().map(|fork| fork.tokens.iter().map(column).collect()).collect();
        SoftLoss { trie, tokens, columns, whole, divergence, temperature }
    }

    /// `(token, parent)` of what a row has behind its prompt.
    pub fn nodes(&self) -> &[(u32, u32)] {
        self.trie.nodes()
    }

    /// Tokens that the exact posterior adds to a row.
    pub fn added_tokens(&self) -> usize {
        self.trie.nodes().len()
    }

    /// `Σ weight · T² · D / denominator` over the rows, a tensor `[1]`.
    pub fn of(
        &self,
        ops: &dyn Ops,
        hidden: Tensor<2>,
        head: &Frozen,
        rows: &[SoftPlace],
        denominator: f32,
    ) -> Tensor<1> {
        let (forks, device) = (self.trie.forks(), ops.device());
        let place = |row: &SoftPlace, at: u32| match at {
            ROOT => row.root,
            node => row.nodes + node as usize,
        };
        let places: Vec<i32> =
            rows.iter().flat_map(|row| forks.iter().map(|fork| place(row, fork.at) as i32)).collect();
        if places.is_empty() {
            return hidden.slice([0..1, 0..1]).sum() * 0.0;
        }
        let n = places.len();
        let places: Tensor<1, Int> = Tensor::from_data(TensorData::new(places, [n]), &device);
        let head = if self.whole { head.clone() } else { self.rows_of(ops, head) };
        let logits = capped(ops.linear(hidden.select(0, places), &head, None), head.softcap);
        let width = head.n_out;
        let values = logits.to_data().convert::<f32>().try_into_vec::<f32>().unwrap_or_default();
        let (loss, gradient) = self.loss(&values, width, rows, denominator);
        let gradient: Tensor<2> = Tensor::from_data(TensorData::new(gradient, [n, width]), &device);
        let linear = (logits * gradient).sum();
        // Its value is the loss, to the bit, and its gradient the one worked out above.
        let constant: Tensor<1> = Tensor::from_data(TensorData::new(vec![loss as f32], [1]), &device);
        linear.clone() - linear.detach() + constant
    }

    /// The head's rows for the labels' tokens, with the head's gradient where it takes one.
    fn rows_of(&self, ops: &dyn Ops, head: &Frozen) -> Frozen {
        Frozen::trained(ops.embed(head, &self.tokens), None).with_softcap(head.softcap)
    }

    /// The loss, and its gradient by the logits `[rows · forks, width]`.
    fn loss(&self, logits: &[f32], width: usize, rows: &[SoftPlace], denominator: f32) -> (f64, Vec<f32>) {
        let forks = self.columns.len();
        let (mut loss, mut gradient) = (0f64, vec![0f32; logits.len()]);
        for (row, at) in rows.iter().zip((0..).step_by(forks.max(1))) {
            let of_fork = |i: usize| -> Vec<f32> {
                self.columns[i].iter().map(|column| logits[(at + i) * width + column]).collect()
            };
            let chosen: Vec<Vec<f32>> = (0..forks).map(of_fork).collect();
            let log_q = self.trie.log_posterior(&chosen);
            let p: Vec<f64> = row.label.posterior.iter().map(|p| f64::from(*p)).collect();
            let (value, by_label) = self.divergence.at_temperature(self.temperature, &p, &log_q);
            let weight = f64::from(row.label.weight / denominator);
            loss += weight * value;
            for (i, of_fork) in self.trie.gradient(&chosen, &by_label).iter().enumerate() {
                for (column, g) in self.columns[i].iter().zip(of_fork) {
                    gradient[(at + i) * width + column] = (weight * g) as f32;
                }
            }
        }
        (loss, gradient)
    }
}
