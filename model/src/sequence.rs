//! Sequences that a decoder reads piece by piece, many side by side: each keeps its keys and values, and what they all begin
//! with is kept once.

use crate::decoder::{Decoder, DecoderError, LoraSet};
use crate::layout::Packed;
use crate::ops::GrowingKv;
use burn::tensor::Tensor;
use std::sync::Arc;

/// What a decoder has read of a sequence, behind a beginning that it may share with others.
#[derive(Clone, Debug, Default)]
pub struct Sequence {
    /// A layer each; none until something was read.
    layers: Vec<GrowingKv>,
    len: usize,
}

impl Sequence {
    /// In tokens, the shared beginning not counted.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Decoder {
    /// Reads `tokens` as the beginning of sequences.
    ///
    /// # Errors
    /// As [`Decoder::extend`].
    pub fn begin(&self, tokens: &[u32], lora: Option<&LoraSet>) -> Result<Sequence, DecoderError> {
        let mut begun = Sequence::default();
        if !tokens.is_empty() {
            self.extend(&Sequence::default(), &mut [&mut begun], &[tokens], lora)?;
        }
        Ok(begun)
    }

    /// Reads `tokens[i]` as what follows in `rows[i]`, which goes on from `shared`. Gives the hidden states after the final
    /// norm, `[tokens, hidden]`, row after row. On the ops of [`crate::device::writing_ops`] their bits are the same in
    /// however many pieces a sequence is read and whatever is read beside it.
    ///
    /// # Errors
    /// When a token is outside the vocabulary, a row becomes longer than the context, or the adapter is another model's.
    pub fn extend(
        &self,
        shared: &Sequence,
        rows: &mut [&mut Sequence],
        tokens: &[&[u32]],
        lora: Option<&LoraSet>,
    ) -> Result<Tensor<2>, DecoderError> {
        assert_eq!(rows.len(), tokens.len(), "each row has its tokens");
        self.check_adapter(lora)?;
        let mut batch = Packed::new();
        for (row, tokens) in rows.iter().zip(tokens) {
            batch.push_chain(tokens, shared.len + row.len);
        }
        let batch = Arc::new(batch);
        let mut hidden = self.embed(&batch)?;
        let nothing = GrowingKv::default();
        for (i, plan) in self.plans(&batch).iter().enumerate() {
            let before = shared.layers.get(i).unwrap_or(&nothing);
            let mut own: Vec<&mut GrowingKv> = rows.iter_mut().map(|row| row.layer(i)).collect();
            if let Some(out) = self.layer_growing(i, &hidden, lora, plan, before, &mut own) {
                hidden = out;
                continue;
            }
            hidden = self.run_layer(i, hidden, lora, |qkv| self.ops().attention_growing(qkv, plan, before, &mut own));
        }
        for (row, tokens) in rows.iter_mut().zip(tokens) {
            row.len += tokens.len();
        }
        Ok(self.finish(hidden))
    }
}

impl Sequence {
    fn layer(&mut self, i: usize) -> &mut GrowingKv {
        if self.layers.len() <= i {
            self.layers.resize_with(i + 1, GrowingKv::default);
        }
        &mut self.layers[i]
    }
}
