//! Distillation over labels: rows whose answer a teacher told as a posterior, and the student's divergence from it. The student's
//! posterior is the exact one that scores, over the outcomes that a row tells apart ([`crate::partition`]): the forks of the label
//! trie that part them are computed, and each is normalised over its own children.
//!
//! A row's loss is `(1 - λ) · CE(gold) + λ · T² · D(teacher ‖ student)`, each term under the row's weight; a row that has one of
//! them has that one whole. A step's loss is divided by the weight of its terms, the divergence counting as one token.
//!
//! What it costs: where labels part at their first token (and under a classification head always) a row that has both runs
//! exactly the tokens of a plain row, and one that has only the teacher's answer runs fewer; logits exist for the labels'
//! tokens alone. Labels that share a beginning add the nodes above the row's forks, but for those on its own answer's way.
//!
//! The arithmetic over labels runs on the host in float64. The graph gets it as a linear form of the logits: its gradient is
//! exact, and its value the loss, on every op set.

use crate::divergence::Divergence;
use crate::partition::Partition;
use burn::tensor::{Int, Tensor, TensorData};
use limbeck_model::label_trie::LabelTrie;
use limbeck_model::layout::ROOT;
use limbeck_model::ops::{Frozen, Ops, capped};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A teacher's answer to one row.
#[derive(Clone, Debug, PartialEq)]
pub struct SoftLabel {
    /// Of the dataset's labels in their order, at temperature 1; sums to 1.
    pub posterior: Vec<f32>,
    /// Of the divergence: the row's λ times what the teacher's word is worth.
    pub weight: f32,
    /// What the row tells apart.
    pub partition: Arc<Partition>,
}

/// A row of a micro-batch that a teacher answered.
#[derive(Clone, Debug, PartialEq)]
pub struct SoftPlace {
    /// Where the prompt's last token lies.
    pub root: usize,
    /// Where the first node of its partition's trie lies.
    pub nodes: usize,
    pub label: SoftLabel,
}

impl SoftPlace {
    /// After which nodes its forks come.
    fn forks(&self) -> impl Iterator<Item = u32> + '_ {
        self.label.partition.trie.forks().iter().map(|fork| fork.at)
    }
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

    /// Of all labels.
    pub fn trie(&self) -> &LabelTrie {
        &self.trie
    }

    /// Tokens that a row has behind its prompt where it tells all labels apart.
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
        let device = ops.device();
        let place = |row: &SoftPlace, at: u32| match at {
            ROOT => row.root,
            node => row.nodes + node as usize,
        };
        let of_row = |row| SoftPlace::forks(row).map(move |at| place(row, at) as i32);
        let places: Vec<i32> = rows.iter().flat_map(of_row).collect();
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

    /// The loss, and its gradient by the logits `[forks of all rows, width]`.
    fn loss(&self, logits: &[f32], width: usize, rows: &[SoftPlace], denominator: f32) -> (f64, Vec<f32>) {
        let (mut loss, mut gradient, mut at) = (0f64, vec![0f32; logits.len()], 0);
        for row in rows {
            let Partition { forks, trie, outcomes } = row.label.partition.as_ref();
            let columns: Vec<&Vec<usize>> = forks.iter().map(|fork| &self.columns[*fork]).collect();
            let of_fork = |(i, columns): (usize, &&Vec<usize>)| -> Vec<f32> {
                columns.iter().map(|column| logits[(at + i) * width + column]).collect()
            };
            let chosen: Vec<Vec<f32>> = columns.iter().enumerate().map(of_fork).collect();
            let by_label = trie.log_posterior(&chosen);
            // Each label has what its outcome has; the first speaks for all.
            let log_q: Vec<f64> = outcomes.iter().map(|members| by_label[members[0]]).collect();
            let (p, log_width) = row.label.partition.told(&row.label.posterior, self.temperature);
            let (value, by_outcome) = self.divergence.at_temperature(self.temperature, &p, &log_q, &log_width);
            let mut by_label = vec![0f64; by_label.len()];
            outcomes.iter().zip(by_outcome).for_each(|(members, g)| by_label[members[0]] = g);
            let weight = f64::from(row.label.weight / denominator);
            loss += weight * value;
            for (i, of_fork) in trie.gradient(&chosen, &by_label).iter().enumerate() {
                for (column, g) in columns[i].iter().zip(of_fork) {
                    gradient[(at + i) * width + column] = (weight * g) as f32;
                }
            }
            at += forks.len();
        }
        (loss, gradient)
    }
}
