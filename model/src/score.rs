//! The exact posterior over a set of labels, by one forward pass over a trie of their tokens, or by a classification head at the
//! prompt's last token. The part of the prompt that all requests share is computed once and kept.

use crate::decoder::{Decoder, DecoderError, KvCache, LoraSet};
use crate::label_trie::{LabelTrie, label_tokens};
use crate::layout::{Packed, ROOT};
use crate::ops::Frozen;
use crate::prompt::{PromptError, encode_prompt, shared_prefix};
use crate::shared_prefix::SharedPrefix;
use crate::tokenizer::ChatTokenizer;
use limbeck_artifact::dataset::Message;
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

/// Tokens of a pass over many prompts, at most, what all of them share not counted; a prompt of more is scored by itself. Enough
/// for reading the weights to cost nothing, and some hundred megabytes of activations of the widest models that run here.
const PASS_TOKENS: usize = 2048;

/// Scores a fixed set of labels with a decoder. On the ops of [`crate::device::writing_ops`] a posterior has the same bits
/// whatever was scored before or is scored beside it. On others that moves a log-probability by the rounding of float32 sums, some
/// 1e-5: the same terms may be added in another order.
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
        let tokens = label_tokens(&tokenizer, labels)?;
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
        Self::of(decoder, tokenizer, labels, LabelTrie::of_classes(labels.len()), Some(head))
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

    pub fn tokenizer(&self) -> &Arc<ChatTokenizer> {
        &self.tokenizer
    }

    /// Tokens that one scoring adds to a prompt.
    pub fn added_tokens(&self) -> usize {
        self.trie.nodes().len()
    }

    /// The tokens of a prompt.
    ///
    /// # Errors
    /// When the template refuses.
    pub fn prompt(&self, messages: &[Message]) -> Result<Vec<u32>, ScoreError> {
        Ok(encode_prompt(&self.tokenizer, messages)?)
    }

    /// Posterior over the labels, in their order; sums to 1.
    pub fn score(&self, messages: &[Message]) -> Result<Vec<f32>, ScoreError> {
        Ok(probabilities(&self.log_posterior(&self.prompt(messages)?)?))
    }

    /// [`LabelScorer::score`] of several prompts by one forward pass, in their order, each with the tokens of its prompt.
    pub fn score_all(&self, asked: &[&[Message]]) -> Vec<Result<(Vec<f32>, usize), ScoreError>> {
        let prompts: Vec<Result<Vec<u32>, ScoreError>> = asked.iter().map(|messages| self.prompt(messages)).collect();
        let good: Vec<&[u32]> = prompts.iter().filter_map(|prompt| prompt.as_deref().ok()).collect();
        let mut found = self.pass(&good).into_iter();
        let one = |prompt: Result<Vec<u32>, ScoreError>| {
            let prompt = prompt?;
            let log_probs = found.next().unwrap_or(Err(ScoreError::NoLabels))?;
            Ok((probabilities(&log_probs), prompt.len()))
        };
        prompts.into_iter().map(one).collect()
    }

    /// [`LabelScorer::score`] of any number of prompts, in their order: those of like length are scored together, as many tokens
    /// at once as bounded memory allows. Tells `done` of each pass how many prompts were in it.
    pub fn score_many(&self, asked: &[&[Message]], done: &mut dyn FnMut(usize)) -> Vec<Result<Vec<f32>, ScoreError>> {
        let prompts: Vec<Result<Vec<u32>, ScoreError>> = asked.iter().map(|messages| self.prompt(messages)).collect();
        let good: Vec<(usize, &[u32])> =
            prompts.iter().enumerate().filter_map(|(i, prompt)| Some((i, prompt.as_deref().ok()?))).collect();
        let lengths: Vec<usize> = good.iter().map(|(_, prompt)| prompt.len()).collect();
        let shared = shared_prefix(good.iter().map(|(_, prompt)| *prompt));
        done(prompts.len() - good.len());
        let mut found: Vec<Result<Vec<f32>, ScoreError>> = prompts.iter().map(|_| Ok(Vec::new())).collect();
        for pass in passes(&lengths, self.added_tokens(), shared) {
            let rows: Vec<&[u32]> = pass.iter().map(|row| good[*row].1).collect();
            for (row, log_probs) in pass.iter().zip(self.pass(&rows)) {
                found[good[*row].0] = log_probs.map(|log_probs| probabilities(&log_probs));
            }
            done(pass.len());
        }
        prompts.into_iter().zip(found).map(|(prompt, found)| prompt.and(found)).collect()
    }

    /// One forward pass; a prompt that can't be computed does not take the others with it.
    fn pass(&self, prompts: &[&[u32]]) -> Vec<Result<Vec<f64>, ScoreError>> {
        match self.together(prompts) {
            Ok(found) => found.into_iter().map(Ok).collect(),
            Err(_) => prompts.iter().map(|prompt| self.log_posterior(prompt)).collect(),
        }
    }

    fn together(&self, prompts: &[&[u32]]) -> Result<Vec<Vec<f64>>, ScoreError> {
        let past = self.prefix.of(prompts, |shared| self.decoder.cache(shared, self.lora.as_ref()))?;
        if prompts.is_empty() { Ok(Vec::new()) } else { self.behind(&past, prompts) }
    }

    /// Log posterior of each label given a tokenized prompt.
    pub fn log_posterior(&self, prompt: &[u32]) -> Result<Vec<f64>, ScoreError> {
        Ok(self.together(&[prompt])?.pop().unwrap_or_default())
    }

    /// What many prompts share, computed once for [`LabelScorer::log_posteriors`].
    ///
    /// # Errors
    /// When a prompt can't be computed.
    pub fn beginning(&self, prompts: &[Vec<u32>]) -> Result<KvCache, ScoreError> {
        let shared = shared_prefix(prompts.iter().map(Vec::as_slice));
        let first = prompts.first().map_or(&[][..], |prompt| &prompt[..shared]);
        Ok(self.decoder.cache(first, self.lora.as_ref())?)
    }

    /// [`LabelScorer::log_posterior`] of several prompts by one forward pass. All of them begin with the tokens of `past`.
    ///
    /// # Errors
    /// When a prompt can't be computed.
    pub fn log_posteriors(&self, past: &KvCache, prompts: &[Vec<u32>]) -> Result<Vec<Vec<f64>>, ScoreError> {
        let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        self.behind(past, &prompts)
    }

    fn behind(&self, past: &KvCache, prompts: &[&[u32]]) -> Result<Vec<Vec<f64>>, ScoreError> {
        let mut batch = Packed::new();
        let mut queries: Vec<(usize, Vec<u32>)> = Vec::with_capacity(prompts.len() * self.trie.forks().len());
        for prompt in prompts {
            let suffix = &prompt[past.len..];
            let row = batch.push_tree(suffix, self.trie.nodes(), past.len).start;
            let position = |at: u32| match at {
                ROOT => row + suffix.len() - 1,
                node => row + suffix.len() + node as usize,
            };
            queries.extend(self.trie.forks().iter().map(|f| (position(f.at), f.tokens.clone())));
        }
        let (batch, ops) = (Arc::new(batch), self.decoder.ops());
        let mut logits = Ok(Vec::new());
        ops.at_once(&mut || {
            let hidden = self.decoder.forward(&batch, self.lora.as_ref(), Some(past), None);
            let head = self.head.as_ref().unwrap_or(self.decoder.head());
            logits = hidden.map(|hidden| ops.logits_of(&hidden, head, &queries));
        });
        let logits = logits?;
        let forks = self.trie.forks().len();
        Ok((0..prompts.len()).map(|i| self.trie.log_posterior(&logits[i * forks..][..forks])).collect())
    }
}

fn probabilities(log_probs: &[f64]) -> Vec<f32> {
    log_probs.iter().map(|l| l.exp() as f32).collect()
}

/// Rows of one pass after another, by length: each adds `added` tokens to its prompt, whose first `shared` are read once.
fn passes(lengths: &[usize], added: usize, shared: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|row| lengths[*row]);
    let (mut passes, mut tokens) = (Vec::<Vec<usize>>::new(), 0);
    for row in order {
        let cost = lengths[row].saturating_sub(shared) + added;
        match passes.last_mut() {
            Some(pass) if tokens + cost <= PASS_TOKENS => {
                pass.push(row);
                tokens += cost;
            }
            _ => {
                passes.push(vec![row]);
                tokens = cost;
            }
        }
    }
    passes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_holds_rows_of_like_length_within_its_tokens() {
        let lengths = [1000, 10, 5000, 900, 20, 10];
        assert_eq!(passes(&lengths, 50, 10), [vec![1, 5, 4, 3], vec![0], vec![2]]);
        assert_eq!(passes(&[500; 10], 24, 12), [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8, 9]]);
        assert!(passes(&[], 1, 0).is_empty());
    }
}
