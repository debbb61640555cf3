//! What a training stands on: frozen weights under an adapter, or weights that are all trained. A step, a look and a
//! diagnosis ask here for the decoder that they run.

use crate::parameters::{Leaves, Parameters};
use limbeck_model::config::DecoderConfig;
use limbeck_model::decoder::{Decoder, DecoderError, LoraSet};
use limbeck_model::ops::Ops;
use limbeck_model::weights::Weights;
use std::ops::Deref;
use std::sync::Arc;

/// A base whose weights are all trained. They are read when the training begins; what is kept of them are the masters.
pub struct OpenBase {
    pub weights: Weights,
    pub ops: Arc<dyn Ops>,
    /// Keep each layer's input only, and run the layer again in the backward pass.
    pub checkpoint: bool,
    /// Where the weights will have to stand once they are written.
    pub grid: Option<Arc<dyn Grid>>,
}

/// The values that a quantized file can hold. A step runs on rounded weights, and what it finds moves the masters behind them: the
/// straight-through estimator (Bengio et al., arXiv 1308.3432), quantization-aware training.
pub trait Grid: Send + Sync {
    /// A weight as the file will hold it; none of one that it holds as it is.
    fn rounded(&self, name: &str, values: &[f32]) -> Option<Vec<f32>>;
}

#[derive(Clone, Copy)]
pub enum Base<'a> {
    /// Its weights stay as they are; an adapter is trained.
    Frozen(&'a Arc<Decoder>),
    /// Full fine-tuning.
    Open(&'a OpenBase),
}

impl<'a> From<&'a Arc<Decoder>> for Base<'a> {
    fn from(decoder: &'a Arc<Decoder>) -> Self {
        Base::Frozen(decoder)
    }
}

impl<'a> From<&'a OpenBase> for Base<'a> {
    fn from(open: &'a OpenBase) -> Self {
        Base::Open(open)
    }
}

/// The decoder of a step.
pub enum StepDecoder<'a> {
    Lent(&'a Decoder),
    /// Over the step's own leaves.
    Own(Box<Decoder>),
}

impl Deref for StepDecoder<'_> {
    type Target = Decoder;

    fn deref(&self) -> &Decoder {
        match self {
            StepDecoder::Lent(decoder) => decoder,
            StepDecoder::Own(decoder) => decoder,
        }
    }
}

impl<'a> Base<'a> {
    pub fn config(self) -> &'a DecoderConfig {
        match self {
            Base::Frozen(decoder) => &decoder.config,
            Base::Open(open) => open.weights.config(),
        }
    }

    pub fn ops(self) -> &'a Arc<dyn Ops> {
        match self {
            Base::Frozen(decoder) => decoder.ops(),
            Base::Open(open) => &open.ops,
        }
    }

    /// Weights that stay as they are.
    pub fn frozen_parameters(self) -> u64 {
        match self {
            Base::Frozen(decoder) => decoder.parameters(),
            Base::Open(_) => 0,
        }
    }

    /// Whether a step runs its layers again in the backward pass itself: layers that are composed of single ops, as those
    /// of a full fine-tuning, of some families, and under dropout are.
    pub(crate) fn recomputes(self, composed: bool) -> bool {
        match self {
            Base::Frozen(decoder) => decoder.checkpointing() && (composed || !decoder.has_single_ops()),
            Base::Open(open) => open.checkpoint,
        }
    }

    /// What is trained, as a step runs on it.
    pub(crate) fn leaves(self, parameters: &Parameters) -> Leaves {
        let grid = match self {
            Base::Frozen(_) => None,
            Base::Open(open) => open.grid.as_deref(),
        };
        parameters.leaves(self.ops().as_ref(), grid)
    }

    /// The decoder that a step with these leaves runs.
    pub(crate) fn decoder(self, leaves: &Leaves) -> Result<StepDecoder<'a>, DecoderError> {
        Ok(match self {
            Base::Frozen(decoder) => StepDecoder::Lent(decoder),
            Base::Open(open) => {
                let config = open.weights.config();
                StepDecoder::Own(Box::new(Decoder::trained(config, open.ops.clone(), &leaves.weights)?))
            }
        })
    }

    /// The model as it stands, to answer with: no gradients.
    pub(crate) fn answering(self, parameters: &Parameters) -> Result<(Arc<Decoder>, LoraSet), DecoderError> {
        match self {
            Base::Frozen(decoder) => {
                let set = parameters.adapter().map(|adapter| adapter.constants(decoder.ops().as_ref()));
                Ok((decoder.clone(), set.unwrap_or_default()))
            }
            Base::Open(open) => {
                let mut load = |name: &str| {
                    let shape = open.weights.shape(name).unwrap_or_default().to_vec();
                    let values = parameters.all.get(name).map(|p| p.values.as_slice()).unwrap_or_default();
                    let rounded = open.grid.as_ref().and_then(|grid| grid.rounded(name, values));
                    Ok((shape, rounded.unwrap_or_else(|| values.to_vec())))
                };
                let decoder = Decoder::load(open.weights.config(), open.ops.clone(), false, &mut load)?;
                Ok((Arc::new(decoder), LoraSet::new()))
            }
        }
    }
}
