//! The labels' tokens as a tree: where labels part (a fork), their posterior is a product of the choices on the way. Forward
//! from the forks' logits to the posterior, and backward from a gradient by the posterior to one by the logits.

use crate::decoder::log_softmax;
use crate::layout::ROOT;
use crate::prompt::{PromptError, encode_completion};
use crate::tokenizer::ChatTokenizer;
use std::collections::BTreeMap;

/// The labels' tokens as a tree. Only nodes above a fork are kept: below the last fork nothing is left to decide.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelTrie {
    nodes: Vec<(u32, u32)>,
    forks: Vec<Fork>,
    labels: usize,
}

/// A place where labels part: after node `at` (or [`ROOT`], the prompt's last token) one of `tokens` follows, and the labels
/// go on with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Fork {
    pub at: u32,
    pub tokens: Vec<u32>,
    /// The labels that go on with each token.
    pub labels: Vec<Vec<usize>>,
}

impl LabelTrie {
    /// Each label's tokens must end in a terminator, so that none is the beginning of another; else the two that can't be
    /// told apart are the error.
    pub fn new(labels: &[Vec<u32>]) -> Result<Self, (usize, usize)> {
        let mut trie = LabelTrie { nodes: Vec::new(), forks: Vec::new(), labels: labels.len() };
        trie.grow(labels, &(0..labels.len()).collect::<Vec<_>>(), 0, ROOT)?;
        Ok(trie)
    }

    /// One fork for all labels: a classification head, whose rows are the tokens.
    pub fn of_classes(labels: usize) -> Self {
        let fork = Fork {
            at: ROOT,
            tokens: (0..labels as u32).collect(),
            labels: (0..labels).map(|label| vec![label]).collect(),
        };
        LabelTrie { nodes: Vec::new(), forks: vec![fork], labels }
    }

    fn grow(&mut self, all: &[Vec<u32>], members: &[usize], depth: usize, at: u32) -> Result<(), (usize, usize)> {
        if members.len() < 2 {
            return Ok(());
        }
        let mut children: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for &label in members {
            match all[label].get(depth) {
                Some(&token) => children.entry(token).or_default().push(label),
                None => return Err((label, members.iter().copied().find(|&m| m != label).unwrap_or(label))),
            }
        }
        if children.len() > 1 {
            let (tokens, labels) = children.iter().map(|(t, l)| (*t, l.clone())).unzip();
            self.forks.push(Fork { at, tokens, labels });
        }
        for (token, members) in children {
            if members.len() > 1 {
                self.nodes.push((token, at));
                let node = (self.nodes.len() - 1) as u32;
                self.grow(all, &members, depth + 1, node)?;
            }
        }
        Ok(())
    }

    /// `(token, parent)` of what one scoring adds to the prompt; a parent is an index into this list or [`ROOT`].
    pub fn nodes(&self) -> &[(u32, u32)] {
        &self.nodes
    }

    pub fn forks(&self) -> &[Fork] {
        &self.forks
    }

    pub fn labels(&self) -> usize {
        self.labels
    }

    /// The forks that a label goes through, as indices into [`LabelTrie::forks`].
    pub fn forks_of(&self, label: usize) -> impl Iterator<Item = usize> + '_ {
        let goes = move |fork: &Fork| fork.labels.iter().any(|members| members.contains(&label));
        self.forks.iter().enumerate().filter(move |(_, fork)| goes(fork)).map(|(i, _)| i)
    }

    /// The same labels with some of the forks alone (ascending, none without those above it) and the nodes that lead there. Labels
    /// that none of them part are one outcome; each of them then has the log posterior of all its members together.
    pub fn part(&self, forks: &[usize]) -> LabelTrie {
        let mut needed = vec![false; self.nodes.len()];
        for &fork in forks {
            let mut at = self.forks[fork].at;
            while at != ROOT && !std::mem::replace(&mut needed[at as usize], true) {
                at = self.nodes[at as usize].1;
            }
        }
        // A node comes behind its parent, so that what is needed stays in order.
        let kept: Vec<u32> = (0u32..).zip(&needed).filter(|(_, needed)| **needed).map(|(node, _)| node).collect();
        let moved = |at: u32| if at == ROOT { ROOT } else { kept.partition_point(|node| *node < at) as u32 };
        let nodes = kept.iter().map(|&node| self.nodes[node as usize]).map(|(token, at)| (token, moved(at))).collect();
        let fork = |&i: &usize| Fork { at: moved(self.forks[i].at), ..self.forks[i].clone() };
        LabelTrie { nodes, forks: forks.iter().map(fork).collect(), labels: self.labels }
    }

    /// Labels that no fork parts, by the first of each: of a whole trie every label by itself.
    pub fn outcomes(&self) -> Vec<Vec<usize>> {
        let mut turns: Vec<Vec<(usize, usize)>> = vec![Vec::new(); self.labels];
        for (i, fork) in self.forks.iter().enumerate() {
            for (child, members) in fork.labels.iter().enumerate() {
                members.iter().for_each(|&label| turns[label].push((i, child)));
            }
        }
        let mut known: BTreeMap<&[(usize, usize)], usize> = BTreeMap::new();
        let mut outcomes: Vec<Vec<usize>> = Vec::new();
        for (label, turns) in turns.iter().enumerate() {
            let at = *known.entry(turns).or_insert(outcomes.len());
            match outcomes.get_mut(at) {
                Some(members) => members.push(label),
                None => outcomes.push(vec![label]),
            }
        }
        outcomes
    }

    /// The log posterior of each label, by each fork's logits in the order of its tokens.
    pub fn log_posterior<L: AsRef<[f32]>>(&self, logits: &[L]) -> Vec<f64> {
        let mut total = vec![0f64; self.labels];
        for (fork, logits) in self.forks.iter().zip(logits) {
            for (members, log_prob) in fork.labels.iter().zip(log_softmax(logits.as_ref())) {
                for &label in members {
                    total[label] += log_prob as f64;
                }
            }
        }
        total
    }

    /// The way back: from a gradient by the labels' log posterior to one by each fork's logits. A child takes what its labels
    /// are given, and gives its share of what all labels of the fork are given.
    pub fn gradient<L: AsRef<[f32]>>(&self, logits: &[L], by_label: &[f64]) -> Vec<Vec<f64>> {
        let of_fork = |(fork, logits): (&Fork, &L)| {
            let log_probs = log_softmax(logits.as_ref());
            let taken: Vec<f64> =
                fork.labels.iter().map(|members| members.iter().map(|&label| by_label[label]).sum()).collect();
            let all: f64 = taken.iter().sum();
            taken.iter().zip(&log_probs).map(|(taken, log_prob)| taken - f64::from(*log_prob).exp() * all).collect()
        };
        self.forks.iter().zip(logits).map(of_fork).collect()
    }
}

/// The tokens of each label: a token of its own where every label has one, else the answer that spells it and ends the turn.
///
/// # Errors
/// When a label can't be an answer.
pub fn label_tokens(tokenizer: &ChatTokenizer, labels: &[String]) -> Result<Vec<Vec<u32>>, PromptError> {
    let own: Option<Vec<Vec<u32>>> = labels.iter().map(|l| Some(vec![tokenizer.label_id(l)?])).collect();
    match own {
        Some(own) => Ok(own),
        None => labels.iter().map(|l| encode_completion(tokenizer, l)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_above_a_fork_is_computed() {
        let labels = vec![vec![1, 2, 3, 9], vec![1, 2, 4, 9], vec![5, 6, 9], vec![1, 9]];
        let trie = LabelTrie::new(&labels).unwrap();
        assert_eq!(trie.nodes, [(1, ROOT), (2, 0)]);
        assert_eq!(trie.forks.len(), 3);
        assert_eq!(trie.forks[0].tokens, [1, 5]);
        assert_eq!(trie.forks[0].labels, [vec![0, 1, 3], vec![2]]);
    }

    #[test]
    fn of_a_part_an_outcome_has_what_its_labels_have_together() {
        let labels = vec![vec![1, 2, 3, 9], vec![1, 2, 4, 9], vec![5, 6, 9], vec![1, 9], vec![5, 7, 8], vec![5, 7, 9]];
        let whole = LabelTrie::new(&labels).unwrap();
        let all: Vec<usize> = (0..whole.forks.len()).collect();
        assert_eq!(whole.part(&all), whole);
        assert_eq!(whole.outcomes(), [[0], [1], [2], [3], [4], [5]]);
        let logits: Vec<Vec<f32>> = (0..all.len()).map(|i| vec![0.3 * i as f32, -0.7]).collect();
        let posterior = whole.log_posterior(&logits);
        // With a label all forks on its way.
        for (kept, want) in [
            (vec![], vec![vec![0, 1, 2, 3, 4, 5]]),
            (whole.forks_of(3).collect(), vec![vec![0, 1], vec![2, 4, 5], vec![3]]),
            (whole.forks_of(0).collect(), vec![vec![0], vec![1], vec![2, 4, 5], vec![3]]),
            (whole.forks_of(4).collect(), vec![vec![0, 1, 3], vec![2], vec![4], vec![5]]),
        ] {
            let part = whole.part(&kept);
            assert_eq!(part.outcomes(), want, "{kept:?}");
            let chosen: Vec<&Vec<f32>> = kept.iter().map(|fork| &logits[*fork]).collect();
            let coarse = part.log_posterior(&chosen);
            for members in want {
                let sum: f64 = members.iter().map(|label| posterior[*label].exp()).sum();
                assert!(members.iter().all(|label| (coarse[*label].exp() - sum).abs() < 1e-6), "{kept:?} {members:?}");
            }
        }
        let deep = whole.part(&whole.forks_of(4).collect::<Vec<_>>());
        assert_eq!(deep.nodes, [(5, ROOT), (7, 0)], "what leads to no kept fork is gone");
        assert_eq!(deep.forks.iter().map(|fork| fork.at).collect::<Vec<_>>(), [ROOT, 0, 1]);
    }

    #[test]
    fn equal_labels_are_refused() {
        assert!(LabelTrie::new(&[vec![1, 9], vec![1, 9]]).is_err());
        assert!(LabelTrie::new(&[vec![1], vec![1, 2]]).is_err());
    }

    /// The posterior of labels that part three times, and its gradient against differences of the posterior itself.
    #[test]
    fn the_gradient_is_that_of_the_posterior() {
        let labels = vec![vec![1, 2, 3, 9], vec![1, 2, 4, 9], vec![5, 6, 9], vec![1, 9]];
        let trie = LabelTrie::new(&labels).unwrap();
        let logits: Vec<Vec<f32>> = trie
            .forks
            .iter()
            .enumerate()
            .map(|(i, f)| (0..f.tokens.len()).map(|j| ((3 * i + j) as f32).sin()).collect())
            .collect();
        let posterior = trie.log_posterior(&logits);
        assert!((posterior.iter().map(|l| l.exp()).sum::<f64>() - 1.0).abs() < 1e-6);
        let by_label = [0.3, -1.2, 0.8, 0.5];
        let value =
            |logits: &[Vec<f32>]| -> f64 { trie.log_posterior(logits).iter().zip(&by_label).map(|(l, g)| l * g).sum() };
        let gradient = trie.gradient(&logits, &by_label);
        for (i, fork) in trie.forks.iter().enumerate() {
            for j in 0..fork.tokens.len() {
                let moved = |by: f32| {
                    let mut logits = logits.clone();
                    logits[i][j] += by;
                    value(&logits)
                };
                let difference = (moved(0.02) - moved(-0.02)) / 0.04;
                assert!((difference - gradient[i][j]).abs() < 3e-4, "{i} {j}: {difference} {}", gradient[i][j]);
            }
        }
        assert_eq!(LabelTrie::of_classes(3).log_posterior(&[[0.0f32; 3]]).len(), 3);
    }
}
