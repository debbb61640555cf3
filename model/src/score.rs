//! The exact posterior over a set of labels, by one forward pass over a trie of their tokens, or by a classification head at the
//! prompt's last token. The part of the prompt that all requests share is computed once and kept.

use crate::decoder::{Decoder, DecoderError, KvCache, LoraSet, log_softmax};
use crate::layout::{Packed, ROOT};
use crate::ops::Frozen;
use crate::prompt::{PromptError, encode_completion, encode_prompt};
use crate::shared_prefix::SharedPrefix;
use crate::tokenizer::ChatTokenizer;
use limbeck_artifact::dataset::Message;
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Debug, thiserror::Error)]
pub enum ScoreError {
    #[error(transparent)]
    Prompt(#[from] PromptError),
    #[error(transparent)]
    Decoder(#[from] DecoderError),
    #[error("no labels to choose from")]
    NoLabels,
    #[error("the labels `{0}` and `{1}` have the same tokens; no model can tell them apart")]
    SameTokens(String, String),
    #[error("the classification head has {classes} classes for {labels} labels")]
    Classes { classes: usize, labels: usize },
}

/// The labels' tokens as a tree. Only nodes above a fork are kept: below the last fork nothing is left to decide.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelTrie {
    /// `(token, parent)` of the nodes that must be computed; a parent is an index into this list or [`ROOT`].
    nodes: Vec<(u32, u32)>,
    forks: Vec<Fork>,
}

/// A place where labels part: after node `at` (or [`ROOT`]) one of `tokens` follows, and the labels go on with it.
#[derive(Clone, Debug, PartialEq)]
struct Fork {
    at: u32,
    tokens: Vec<u32>,
    labels: Vec<Vec<usize>>,
}

impl LabelTrie {
    /// Each label's tokens must end in a terminator, so that none is the beginning of another.
    pub fn new(labels: &[Vec<u32>]) -> Result<Self, (usize, usize)> {
        let mut trie = LabelTrie { nodes: Vec::new(), forks: Vec::new() };
        trie.grow(labels, &(0..labels.len()).collect::<Vec<_>>(), 0, ROOT)?;
        Ok(trie)
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

    /// Tokens that one scoring adds to the prompt.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }
}

/// Scores a fixed set of labels with a decoder. Results do not depend on what was scored before.
pub struct LabelScorer {
    decoder: Arc<Decoder>,
    tokenizer: Arc<ChatTokenizer>,
    lora: Option<LoraSet>,
    labels: Vec<String>,
    trie: LabelTrie,
    /// A row a label, in their order, in the place of the decoder's own head; the trie is then the prompt alone.
    head: Option<Frozen>,
    prefix: SharedPrefix<KvCache>,
}

impl LabelScorer {
    /// Labels are scored as the answer that spells them, or, where every label has a token of its own, by these tokens.
    pub fn new(decoder: Arc<Decoder>, tokenizer: Arc<ChatTokenizer>, labels: &[String]) -> Result<Self, ScoreError> {
        let own: Option<Vec<Vec<u32>>> = labels.iter().map(|l| Some(vec![tokenizer.label_id(l)?])).collect();
        let tokens: Vec<Vec<u32>> = match own {
            Some(own) => own,
            None => labels.iter().map(|l| encode_completion(&tokenizer, l)).collect::<Result<_, _>>()?,
        };
        let trie =
            LabelTrie::new(&tokens).map_err(|(a, b)| ScoreError::SameTokens(labels[a].clone(), labels[b].clone()))?;
        Self::of(decoder, tokenizer, labels, trie, None)
    }

    /// Labels are scored by a classification head, `[labels, hidden]`, at the prompt's last token.
    ///
    /// # Errors
    /// When the head has not a row for each label.
    pub fn by_head(
        decoder: Arc<Decoder>,
        tokenizer: Arc<ChatTokenizer>,
        labels: &[String],
        head: Frozen,
    ) -> Result<Self, ScoreError> {
        if head.n_out != labels.len() {
            return Err(ScoreError::Classes { classes: head.n_out, labels: labels.len() });
        }
        let fork = Fork {
            at: ROOT,
            tokens: (0..labels.len() as u32).collect(),
            labels: (0..labels.len()).map(|label| vec![label]).collect(),
        };
        Self::of(decoder, tokenizer, labels, LabelTrie { nodes: Vec::new(), forks: vec![fork] }, Some(head))
    }

    fn of(
        decoder: Arc<Decoder>,
        tokenizer: Arc<ChatTokenizer>,
        labels: &[String],
        trie: LabelTrie,
        head: Option<Frozen>,
    ) -> Result<Self, ScoreError> {
        if labels.is_empty() {
            return Err(ScoreError::NoLabels);
        }
        Ok(LabelScorer {
            decoder,
            tokenizer,
            lora: None,
            labels: labels.to_vec(),
            trie,
            head,
            prefix: SharedPrefix::default(),
        })
    }

    /// The same labels under an adapter that is not merged.
    pub fn with_lora(mut self, lora: LoraSet) -> Self {
        self.lora = Some(lora);
        self
    }

    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Posterior over the labels, in their order; sums to 1.
    pub fn score(&self, messages: &[Message]) -> Result<Vec<f32>, ScoreError> {
        let prompt = encode_prompt(&self.tokenizer, messages)?;
        let log_probs = self.log_posterior(&prompt)?;
        Ok(log_probs.iter().map(|l| l.exp() as f32).collect())
    }

    /// Log posterior of each label given a tokenized prompt.
    pub fn log_posterior(&self, prompt: &[u32]) -> Result<Vec<f64>, ScoreError> {
        let past = self.prefix.of(&[prompt], |shared| self.decoder.cache(shared, self.lora.as_ref()))?;
        let mut batch = Packed::new();
        let suffix = &prompt[past.len..];
        batch.push_tree(suffix, &self.trie.nodes, past.len);
        let hidden = self.decoder.forward(&Arc::new(batch), self.lora.as_ref(), Some(&past), None)?;
        let position = |at: u32| match at {
            ROOT => suffix.len() - 1,
            node => suffix.len() + node as usize,
        };
        let queries: Vec<(usize, Vec<u32>)> =
            self.trie.forks.iter().map(|f| (position(f.at), f.tokens.clone())).collect();
        let head = self.head.as_ref().unwrap_or(self.decoder.head());
        let logits = self.decoder.ops().logits_of(&hidden, head, &queries);
        let mut total = vec![0f64; self.labels.len()];
        for (fork, logits) in self.trie.forks.iter().zip(&logits) {
            for (members, log_prob) in fork.labels.iter().zip(log_softmax(logits)) {
                for &label in members {
                    total[label] += log_prob as f64;
                }
            }
        }
        Ok(total)
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
    fn equal_labels_are_refused() {
        assert!(LabelTrie::new(&[vec![1, 9], vec![1, 9]]).is_err());
        assert!(LabelTrie::new(&[vec![1], vec![1, 2]]).is_err());
    }
}
