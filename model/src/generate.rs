//! Greedy generation over a growing cache of keys and values. For free-form answers and fields; labels are scored exactly
//! instead.

use crate::decoder::{Decoder, DecoderError, KvCache, LoraSet, log_softmax};
use crate::layout::Packed;
use crate::ops::LayerKv;
use crate::prompt::{PromptError, encode_prompt};
use crate::shared_prefix::SharedPrefix;
use crate::tokenizer::ChatTokenizer;
use burn::tensor::Tensor;
use limbeck_artifact::dataset::Message;
use std::sync::Arc;

/// The likeliest continuation of `prompt`, at most `max_new_tokens`, ending before any token of `stop`.
pub fn generate(
    decoder: &Decoder,
    lora: Option<&LoraSet>,
    prompt: &[u32],
    max_new_tokens: usize,
    stop: &[u32],
) -> Result<Vec<u32>, DecoderError> {
    Ok(greedy(decoder, lora, &KvCache::default(), prompt, max_new_tokens, stop, &|_| true)?.tokens)
}

/// Tokens that were chosen one after another.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chosen {
    pub tokens: Vec<u32>,
    /// Sum of the natural logs of their probabilities over the whole vocabulary, that of the stop token included.
    pub log_prob: f64,
    /// A stop token was chosen; otherwise there was no room for more, or `goes_on` ended it.
    pub ended: bool,
}

/// As [`generate`], after what `past` holds of the prompt's beginning; asks `goes_on` after each token. At least one token
/// of the prompt must not be in `past`.
pub fn greedy(
    decoder: &Decoder,
    lora: Option<&LoraSet>,
    past: &KvCache,
    prompt: &[u32],
    max_new_tokens: usize,
    stop: &[u32],
    goes_on: &dyn Fn(&[u32]) -> bool,
) -> Result<Chosen, DecoderError> {
    let mut out = Chosen::default();
    let mut cache = past.clone();
    let mut next = prompt.get(cache.len..).unwrap_or_default().to_vec();
    if next.is_empty() {
        return Ok(out);
    }
    while out.tokens.len() < max_new_tokens {
        let mut batch = Packed::new();
        batch.push_chain(&next, cache.len);
        let mut step = KvCache::default();
        // A cache without layers is no cache.
        let seen = Some(&cache).filter(|c| c.len > 0);
        let hidden = decoder.forward(&Arc::new(batch), lora, seen, Some(&mut step))?;
        append(&mut cache, step);
        let logits = decoder.ops().logits(&hidden, decoder.head(), &[next.len() - 1]);
        // The first of equals wins, so that the answer does not depend on the order of a reduction.
        let best = (1..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
        out.log_prob += f64::from(log_softmax(&logits)[best]);
        if stop.contains(&(best as u32)) {
            out.ended = true;
            break;
        }
        out.tokens.push(best as u32);
        if !goes_on(&out.tokens) {
            break;
        }
        next = vec![best as u32];
    }
    Ok(out)
}

fn append(cache: &mut KvCache, step: KvCache) {
    cache.len = step.len;
    if cache.layers.is_empty() {
        cache.layers = step.layers;
        return;
    }
    for (old, new) in cache.layers.iter_mut().zip(step.layers) {
        let join = |a: &Tensor<2>, b: Tensor<2>| Tensor::cat(vec![a.clone(), b], 0);
        *old = LayerKv { keys: join(&old.keys, new.keys), values: join(&old.values, new.values) };
    }
}

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error(transparent)]
    Prompt(#[from] PromptError),
    #[error(transparent)]
    Decoder(#[from] DecoderError),
}

/// An answer that was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    pub text: String,
    /// Of the answer as a whole: the product of its tokens' probabilities, the end of the turn included.
    pub probability: f64,
    /// The model ended its turn; otherwise the answer was cut off.
    pub ended: bool,
}

/// Writes answers, each the likeliest token by token. What all prompts share is computed once and kept.
pub struct Writer {
    decoder: Arc<Decoder>,
    tokenizer: Arc<ChatTokenizer>,
    lora: Option<LoraSet>,
    max_new_tokens: usize,
    /// The prompt before, and the keys and values of what this one shares with it.
    prefix: SharedPrefix,
}

impl Writer {
    pub fn new(decoder: Arc<Decoder>, tokenizer: Arc<ChatTokenizer>, max_new_tokens: usize) -> Writer {
        Writer { decoder, tokenizer, lora: None, max_new_tokens, prefix: SharedPrefix::default() }
    }

    /// Under an adapter that is not merged.
    pub fn with_lora(mut self, lora: LoraSet) -> Writer {
        self.lora = Some(lora);
        self
    }

    /// Answers a conversation. Asks `goes_on` after each token what is written so far: an answer that can't come to
    /// anything need not be written to its end.
    ///
    /// # Errors
    /// When the template refuses the messages, or they are longer than the model's context.
    pub fn write(&self, messages: &[Message], goes_on: &dyn Fn(&str) -> bool) -> Result<Written, WriteError> {
        let prompt = encode_prompt(&self.tokenizer, messages)?;
        let past = self.prefix.of(&self.decoder, self.lora.as_ref(), &prompt)?;
        let stop: Vec<u32> = self.tokenizer.end_of_turn_id().into_iter().chain(self.tokenizer.eos_id()).collect();
        let room = self.decoder.config.max_position_embeddings.saturating_sub(prompt.len()).min(self.max_new_tokens);
        let more = |tokens: &[u32]| goes_on(self.text(tokens).trim_start());
        let chosen = greedy(&self.decoder, self.lora.as_ref(), &past, &prompt, room, &stop, &more)?;
        Ok(Written { text: self.text(&chosen.tokens), probability: chosen.log_prob.exp(), ended: chosen.ended })
    }

    /// Without the white space that the template puts before answers.
    fn text(&self, tokens: &[u32]) -> String {
        let text = self.tokenizer.decode(tokens);
        match text.strip_prefix(&self.tokenizer.opening().lead) {
            Some(rest) => rest.to_owned(),
            None => text,
        }
    }
}
