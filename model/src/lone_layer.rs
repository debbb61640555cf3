//! One layer by itself, over hidden states that lie in plain memory: what goes into its linear maps is shown, and maps may be
//! replaced before they are used. Who walks through a model so holds one layer of it at a time.

use crate::config::{DecoderConfig, LINEARS};
use crate::decoder::{Decoder, DecoderError, Loader};
use crate::layout::Packed;
use crate::ops::stock::to_vec;
use crate::ops::tap::DISTINCT_INPUTS;
use crate::ops::{Frozen, Ops};
use burn::tensor::{Tensor, TensorData};
use std::sync::Arc;

/// What stands in the place of a layer's own maps that read one input, in the order of [`LINEARS`]: each `[n_out, n_in]`.
pub type Replaced = Option<Vec<Vec<f32>>>;

/// A layer without the rest of its model.
pub struct LoneLayer {
    decoder: Decoder,
}

impl LoneLayer {
    /// Loads layer `layer` of a model of this config through `load`, which is asked for that layer's tensors only.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn load(
        config: &DecoderConfig,
        layer: usize,
        ops: Arc<dyn Ops>,
        load: &mut Loader,
    ) -> Result<LoneLayer, DecoderError> {
        let width = config.hidden_size;
        let alone = DecoderConfig {
            layers: vec![config.layers[layer].clone()],
            num_hidden_layers: 1,
            vocab_size: 1,
            tie_word_embeddings: true,
            ..config.clone()
        };
        let mut load = |name: &str| match name.strip_prefix("model.layers.0.") {
            Some(rest) => load(&format!("model.layers.{layer}.{rest}")),
            // Embedding and final norm, which nothing here goes through.
            None if name == "model.norm.weight" => Ok((vec![width], vec![0.0; width])),
            None => Ok((vec![1, width], vec![0.0; width])),
        };
        let decoder = Decoder::load(&alone, ops, false, &mut load)?;
        Ok(LoneLayer { decoder })
    }

    /// What the layer makes of `hidden`, `[tokens, hidden_size]`. `see` gets one of [`DISTINCT_INPUTS`] and what goes in there,
    /// `[tokens, n_in]`, before any map that reads it is used.
    ///
    /// # Panics
    /// When `hidden` is of another size than the batch, or a replacement is not as large as what it replaces.
    pub fn run(
        &self,
        hidden: Vec<f32>,
        batch: &Arc<Packed>,
        see: &mut dyn FnMut(usize, &[f32]) -> Replaced,
    ) -> Vec<f32> {
        let (decoder, ops) = (&self.decoder, self.decoder.ops());
        let shape = [batch.len(), decoder.config.hidden_size];
        let hidden = Tensor::from_data(TensorData::new(hidden, shape), &ops.device());
        let mut replaced: [Option<Frozen>; LINEARS.len()] = Default::default();
        let linear = |x: Tensor<2>, which: usize| {
            if DISTINCT_INPUTS.contains(&which)
                && let Some(weights) = see(which, &to_vec(&x))
            {
                for (i, data) in weights.into_iter().enumerate() {
                    let own = decoder.projection(0, which + i);
                    assert_eq!(data.len(), own.n_out * own.n_in, "a replacement of another size");
                    let frozen = ops.freeze(data, own.n_out, own.n_in, false).with_bias(own.bias.clone());
                    replaced[which + i] = Some(frozen);
                }
            }
            ops.linear(x, replaced[which].as_ref().unwrap_or(decoder.projection(0, which)), None)
        };
        let plan = decoder.plans(batch).swap_remove(0);
        let out = decoder.run_layer_by(0, hidden, linear, |[q, k, v]| ops.attention(q, k, v, &plan, None));
        to_vec(&out)
    }
}
