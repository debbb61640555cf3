//! What becomes of a model's distributions where one of its matrices is another. Hidden states before that matrix are known, so
//! only what comes after it is computed.

use crate::decoder::{Decoder, DecoderError};
use crate::layout::Packed;
use crate::ops::Frozen;
use crate::ops::stock::to_vec;
use crate::ops::tap::DISTINCT_INPUTS;
use burn::tensor::{Tensor, TensorData};
use std::collections::BTreeMap;
use std::sync::Arc;

impl Decoder {
    /// What goes into each layer and, last, what comes out of the last one, `[tokens, hidden_size]` each. `see` gets each layer's
    /// number, one of [`DISTINCT_INPUTS`] and what goes in there, `[tokens, n_in]`.
    ///
    /// # Errors
    /// When a token is outside the vocabulary, or a row is longer than the context.
    pub fn hidden_states(
        &self,
        batch: &Arc<Packed>,
        see: &mut dyn FnMut(usize, usize, &[f32]),
    ) -> Result<Vec<Vec<f32>>, DecoderError> {
        let mut hidden = self.embed(batch)?;
        let mut states = vec![to_vec(&hidden)];
        for (layer, plan) in self.plans(batch).iter().enumerate() {
            let linear = |x: Tensor<2>, which: usize| {
                if DISTINCT_INPUTS.contains(&which) {
                    see(layer, which, &to_vec(&x));
                }
                self.ops().linear(x, self.projection(layer, which), None)
            };
            hidden = self.run_layer_by(layer, hidden, linear, |[q, k, v]| self.ops().attention(q, k, v, plan, None));
            states.push(to_vec(&hidden));
        }
        Ok(states)
    }

    /// Logits after the tokens `rows` of the batch, `[rows, vocabulary]`, where `hidden` goes into layer `layer` and each of
    /// `changed`, maps of it by their numbers in [`crate::config::LINEARS`], is `[n_out, n_in]` of other values.
    ///
    /// # Panics
    /// When `hidden` or the matrix is of another size.
    pub fn logits_from(
        &self,
        batch: &Arc<Packed>,
        layer: usize,
        hidden: &[f32],
        changed: Vec<(usize, Vec<f32>)>,
        rows: &[usize],
    ) -> Vec<f32> {
        let (mut hidden, mut next) = (self.tensor(hidden, batch), layer);
        if !changed.is_empty() {
            let freeze = |(which, data): (usize, Vec<f32>)| {
                let own = self.projection(layer, which);
                assert_eq!(data.len(), own.n_out * own.n_in, "a matrix of another size");
                (which, self.ops().freeze(data, own.n_out, own.n_in, false).with_bias(own.bias.clone()))
            };
            let changed: BTreeMap<usize, Frozen> = changed.into_iter().map(freeze).collect();
            let linear = |x: Tensor<2>, asked: usize| {
                let weight = changed.get(&asked).unwrap_or_else(|| self.projection(layer, asked));
                self.ops().linear(x, weight, None)
            };
            let plan = self.plans(batch).swap_remove(layer);
            hidden = self.run_layer_by(layer, hidden, linear, |[q, k, v]| self.ops().attention(q, k, v, &plan, None));
            next += 1;
        }
        let hidden = self.run_layers(hidden, next..self.config.num_hidden_layers, batch, None, None, None);
        self.ops().logits(&self.finish(hidden), self.head(), rows)
    }

    /// The same from what comes out of the last layer, with another matrix in the head's place: `[vocabulary, hidden_size]`.
    ///
    /// # Panics
    /// When `hidden` or the matrix is of another size.
    pub fn logits_by(&self, batch: &Arc<Packed>, hidden: &[f32], head: Vec<f32>, rows: &[usize]) -> Vec<f32> {
        let head = self.ops().freeze(head, self.config.vocab_size, self.config.hidden_size, false);
        self.ops().logits(&self.finish(self.tensor(hidden, batch)), &head, rows)
    }

    /// What the head takes where `hidden` goes into the first of `layers`, each of them hands on to the next, and there are no
    /// others: `[tokens, hidden_size]`.
    ///
    /// # Panics
    /// When `hidden` is of another size.
    pub fn states_through(&self, batch: &Arc<Packed>, layers: &[usize], hidden: &[f32]) -> Vec<f32> {
        let run = |hidden, layer: &usize| self.run_layers(hidden, *layer..layer + 1, batch, None, None, None);
        let hidden = layers.iter().fold(self.tensor(hidden, batch), run);
        to_vec(&self.finish(hidden))
    }

    /// What comes out of the last layer where `hidden` goes into the first.
    pub fn last_state(&self, batch: &Arc<Packed>, hidden: &[f32]) -> Vec<f32> {
        let hidden = self.tensor(hidden, batch);
        to_vec(&self.run_layers(hidden, 0..self.config.num_hidden_layers, batch, None, None, None))
    }

    /// What the head takes, from what comes out of the last layer: `[tokens, hidden_size]`.
    pub fn finished(&self, batch: &Arc<Packed>, hidden: &[f32]) -> Vec<f32> {
        to_vec(&self.finish(self.tensor(hidden, batch)))
    }

    fn tensor(&self, hidden: &[f32], batch: &Arc<Packed>) -> Tensor<2> {
        let shape = [batch.len(), self.config.hidden_size];
        Tensor::from_data(TensorData::new(hidden.to_vec(), shape), &self.ops().device())
    }
}
