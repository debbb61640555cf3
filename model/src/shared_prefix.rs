//! Keys and values of what a prompt shares with the one before it: system prompt and template are computed once for a stream
//! of calls. The first prompt is computed whole; from the second on the common beginning is kept.

use crate::decoder::{Decoder, DecoderError, KvCache, LoraSet};
use std::sync::{Arc, Mutex, PoisonError};

/// A shorter beginning saves nothing.
const MIN_SHARED: usize = 8;

/// The last prompt, and what is kept of its beginning.
#[derive(Default)]
pub(crate) struct SharedPrefix(Mutex<(Vec<u32>, Arc<KvCache>)>);

impl SharedPrefix {
    /// What is kept of this prompt's beginning, perhaps nothing; at least its last token is left out.
    ///
    /// # Errors
    /// When the beginning can't be computed.
    pub fn of(&self, decoder: &Decoder, lora: Option<&LoraSet>, prompt: &[u32]) -> Result<Arc<KvCache>, DecoderError> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, kept) = &*last;
        if kept.len > 0 && prompt.len() > kept.len && prompt[..kept.len] == known[..kept.len] {
            return Ok(kept.clone());
        }
        let limit = prompt.len().saturating_sub(1);
        let common = known.iter().zip(prompt).take(limit).take_while(|(a, b)| a == b).count();
        let kept = match common >= MIN_SHARED {
            true => Arc::new(decoder.cache(&prompt[..common], lora)?),
            false => Arc::default(),
        };
        *last = (prompt.to_vec(), kept.clone());
        Ok(kept)
    }
}
