//! One step's gradients: forward, loss and backward over the micro-batches of a step, summed. Nothing is updated here.

use crate::batch::{MIN_PREFIX, MicroBatch, TrainRow, loss_weight, pack};
use crate::optimizer::global_norm;
use crate::parameters::Parameters;
use crate::plan::TrainSettings;
use crate::turbo::HiddenCache;
use burn::tensor::Tensor;
use limbeck_model::decoder::{Decoder, DecoderError, LoraSet};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

/// What a step needs beside its parameters.
pub struct Learner<'a> {
    pub decoder: &'a Decoder,
    pub settings: &'a TrainSettings,
    pub rows: &'a [TrainRow],
    /// Hidden states below the adapted layers, where they are kept.
    pub cache: Option<&'a HiddenCache>,
}

/// The sum over a step's micro-batches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gradients {
    /// Mean loss of the step's rows, as the settings weigh them.
    pub loss: f64,
    /// By parameter name.
    pub of: BTreeMap<String, Vec<f32>>,
    pub norm: f64,
}

impl Learner<'_> {
    pub fn pack(&self, rows: &[usize]) -> MicroBatch {
        let rows: Vec<&TrainRow> = rows.iter().map(|&i| &self.rows[i]).collect();
        pack(&rows, MIN_PREFIX, self.settings.loss_normalization)
    }

    /// Hidden states after the final norm, `[tokens, hidden]`.
    pub fn hidden(&self, batch: &MicroBatch, rows: &[usize], lora: &LoraSet) -> Result<Tensor<2>, DecoderError> {
        let Some(cache) = self.cache else { return self.decoder.forward(&batch.packed, Some(lora), None, None) };
        let lengths: Vec<usize> = rows.iter().map(|&i| self.rows[i].encoded.len()).collect();
        let below = cache.gather(rows, &lengths, batch.packed.prefix, &self.decoder.ops().device());
        let layers = cache.first_layer..self.decoder.config.num_hidden_layers;
        Ok(self.decoder.finish(self.decoder.run_layers(below, layers, &batch.packed, Some(lora), None, None)))
    }

    /// Loss and gradients of step `step` over `rows`, given by their indices; the loss is divided by the weight of the whole
    /// step, so how the rows are cut into micro-batches changes nothing but rounding.
    pub fn gradients(&self, parameters: &Parameters, rows: &[usize], step: u64) -> Result<Gradients, DecoderError> {
        let s = self.settings;
        let denominator = loss_weight(rows.iter().map(|&i| &self.rows[i]), s.loss_normalization) as f32;
        let leaves = parameters.leaves(self.decoder.ops().as_ref());
        let mut sum = Gradients::default();
        for rows in rows.chunks(s.batch_size.max(1)) {
            let batch = self.pack(rows);
            let lora = leaves.with_dropout(s.lora_dropout, &batch.packed, s.seed, step);
            let hidden = self.hidden(&batch, rows, &lora)?;
            let ops: &Arc<_> = self.decoder.ops();
            let loss = ops.linear_cross_entropy(hidden, self.decoder.head(), &batch.targets, denominator);
            sum.loss += value(&loss);
            let mut gradients = loss.backward();
            for (name, leaf) in leaves.tensors() {
                let Some(grad) = leaf.grad_remove(&mut gradients) else { continue };
                let grad = grad.into_data().convert::<f32>().try_into_vec::<f32>().unwrap_or_default();
                match sum.of.entry(name) {
                    Entry::Vacant(e) => {
                        e.insert(grad);
                    }
                    Entry::Occupied(mut e) => e.get_mut().iter_mut().zip(&grad).for_each(|(a, b)| *a += b),
                }
            }
        }
        sum.norm = global_norm(sum.of.values().map(Vec::as_slice));
        Ok(sum)
    }
}

/// A loss as a number.
pub fn value(loss: &Tensor<1>) -> f64 {
    let data = loss.to_data().convert::<f32>().try_into_vec::<f32>().unwrap_or_default();
    data.first().map_or(f64::NAN, |x| *x as f64)
}
