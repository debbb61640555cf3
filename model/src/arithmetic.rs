//! In which arithmetic a model is computed to be judged, scored or served: a quantized file as llama.cpp serves it, or every
//! weight expanded to float32. What was evaluated is what ships, so the choice is made and named in one place.

use crate::decoder::{Decoder, DecoderError};
use crate::device::{self, DeviceError, DeviceName};
use crate::weights::Weights;
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arithmetic {
    /// A quantized GGUF file's blocks are multiplied as they are, activations rounded to int8 by blocks, as llama.cpp does.
    /// The same row has the same bits in every batch, on any number of threads and any processor with 32-bit floats.
    #[default]
    Served,
    /// Weights are expanded to float32, and nothing is rounded.
    F32,
}

impl Arithmetic {
    /// What can be had: there are kernels for the CPU only, and for some block types.
    pub fn of(self, weights: &Weights, device: DeviceName) -> Arithmetic {
        match self == Arithmetic::Served && device == DeviceName::Cpu && weights.is_served() {
            true => Arithmetic::Served,
            false => Arithmetic::F32,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Arithmetic::Served => "served",
            Arithmetic::F32 => "f32",
        }
    }
}

impl std::fmt::Display for Arithmetic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Decoder(#[from] DecoderError),
}

/// A decoder that scores or writes, and the arithmetic that it got. On the ops for writing: a rounded activation that lies on an
/// edge would carry the last bit of what a sum depends on into all that follows, and they let it depend on nothing; nor does a
/// score then depend on what is scored beside it.
///
/// # Errors
/// When the device is not there, or the weights can't be read.
pub fn open(weights: &Weights, device: DeviceName, wanted: Arithmetic) -> Result<(Decoder, Arithmetic), OpenError> {
    let arithmetic = wanted.of(weights, device);
    let ops = device::writing_ops(device)?;
    let decoder = match arithmetic {
        Arithmetic::Served => Decoder::served(weights, ops)?,
        Arithmetic::F32 => Decoder::from_weights(weights, ops, false)?,
    };
    Ok((decoder, arithmetic))
}
