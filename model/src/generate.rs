//! Greedy generation over a growing cache of keys and values. For free-form answers; labels are scored exactly instead.

use crate::decoder::{Decoder, DecoderError, KvCache, LoraSet};
use crate::layout::Packed;
use crate::ops::LayerKv;
use burn::tensor::Tensor;
use std::sync::Arc;

/// The likeliest continuation of `prompt`, at most `max_new_tokens`, ending before any token of `stop`.
pub fn generate(
    decoder: &Decoder,
    lora: Option<&LoraSet>,
    prompt: &[u32],
    max_new_tokens: usize,
    stop: &[u32],
) -> Result<Vec<u32>, DecoderError> {
    let mut out = Vec::new();
    let Some((&last, before)) = prompt.split_last() else { return Ok(out) };
    let mut cache = decoder.cache(before, lora)?;
    let mut next = last;
    while out.len() < max_new_tokens {
        let mut batch = Packed::new();
        batch.push_chain(&[next], cache.len);
        let mut step = KvCache::default();
        let hidden = decoder.forward(&Arc::new(batch), lora, Some(&cache), Some(&mut step))?;
        append(&mut cache, step);
        let logits = decoder.ops().logits(&hidden, decoder.head(), &[0]);
        // The first of equals wins, so that the answer does not depend on the order of a reduction.
        let best = (1..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
        next = best as u32;
        if stop.contains(&next) {
            break;
        }
        out.push(next);
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
