//! What a decoder is put together from: weights that are loaded and frozen, or tensors that a full fine-tuning trains.
//! Which parts a layer has is written once, in the decoder, for both.

use crate::decoder::{BlocksLoader, CodesLoader, DecoderError, Loader};
use crate::ops::blocks::Blocks;
use crate::ops::codes::{Codes, QuantizeBase};
use crate::ops::{Frozen, Ops};
use burn::tensor::Tensor;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// A norm's weight, with the family's offset in it.
pub(crate) enum Norm {
    Frozen(Arc<Vec<f32>>),
    /// `[1, n]`.
    Trained(Box<Tensor<2>>),
}

impl Norm {
    pub fn apply(&self, ops: &dyn Ops, x: Tensor<2>, eps: f32) -> Tensor<2> {
        match self {
            Norm::Frozen(weight) => ops.rms_norm(x, weight, eps),
            Norm::Trained(weight) => ops.rms_norm_trained(x, weight.as_ref().clone(), eps),
        }
    }
}

pub(crate) trait Parts {
    /// A matrix outside the layers.
    fn matrix(&mut self, name: &str, n_out: usize, n_in: usize) -> Result<Frozen, DecoderError>;

    /// A linear module of a layer, `(n_out, n_in)`: one map for each range of its rows.
    fn module(
        &mut self,
        path: &str,
        shape: (usize, usize),
        has_bias: bool,
        rows: &[Range<usize>],
    ) -> Result<Vec<Frozen>, DecoderError>;

    fn norm(&mut self, name: &str, n: usize) -> Result<Norm, DecoderError>;
}

/// Weights as they are loaded, each checked and frozen, as numbers or as codes.
pub(crate) struct Loaded<'a, 'b> {
    pub load: &'a mut Loader<'b>,
    /// Asked first, for a module that is one matrix.
    pub stored: &'a mut CodesLoader<'b>,
    /// Asked before anything else.
    pub blocks: &'a mut BlocksLoader<'b>,
    pub ops: &'a dyn Ops,
    pub trains: bool,
    pub quantize: QuantizeBase,
    pub norm_offset: f32,
}

impl Loaded<'_, '_> {
    fn tensor(&mut self, name: &str, want: &[usize]) -> Result<Vec<f32>, DecoderError> {
        let (got, data) = (self.load)(name)?;
        if got != want {
            return Err(DecoderError::Shape { name: name.to_string(), got, want: want.to_vec() });
        }
        match data.iter().all(|x| x.is_finite()) {
            true => Ok(data),
            false => Err(DecoderError::NonFinite(name.to_string())),
        }
    }

    /// A matrix that is to be multiplied as it is stored.
    fn blocks(&mut self, name: &str, want: [usize; 2]) -> Result<Option<Blocks>, DecoderError> {
        let Some(blocks) = (self.blocks)(name)? else { return Ok(None) };
        let got = [blocks.n_out, blocks.n_in];
        match got == want {
            true => Ok(Some(blocks)),
            false => Err(DecoderError::Shape { name: name.to_string(), got: got.to_vec(), want: want.to_vec() }),
        }
    }

    /// A module's matrix, where the file stores it in the codes that are wanted.
    fn stored(&mut self, name: &str, want: [usize; 2]) -> Result<Option<Frozen>, DecoderError> {
        let Some(codes) = (self.stored)(name)? else { return Ok(None) };
        let got = [codes.n_out, codes.n_in];
        match got == want {
            true => Ok(Some(self.ops.freeze_codes(codes, self.trains))),
            false => Err(DecoderError::Shape { name: name.to_string(), got: got.to_vec(), want: want.to_vec() }),
        }
    }
}

impl Parts for Loaded<'_, '_> {
    fn matrix(&mut self, name: &str, n_out: usize, n_in: usize) -> Result<Frozen, DecoderError> {
        if let Some(blocks) = self.blocks(name, [n_out, n_in])? {
            return Ok(self.ops.freeze_blocks(blocks));
        }
        let data = self.tensor(name, &[n_out, n_in])?;
        Ok(match self.quantize {
            QuantizeBase::None => self.ops.freeze(data, n_out, n_in, self.trains),
            _ => self.ops.freeze_codes(Codes::bf16(&data, n_out, n_in), self.trains),
        })
    }

    fn module(
        &mut self,
        path: &str,
        (n_out, n_in): (usize, usize),
        has_bias: bool,
        rows: &[Range<usize>],
    ) -> Result<Vec<Frozen>, DecoderError> {
        let name = format!("{path}.weight");
        let bias = match has_bias {
            true => Some(self.tensor(&format!("{path}.bias"), &[n_out])?),
            false => None,
        };
        if let Some(blocks) = self.blocks(&name, [n_out, n_in])? {
            let part = |rows: &Range<usize>| {
                let bias = bias.as_ref().map(|bias| Arc::new(bias[rows.clone()].to_vec()));
                self.ops.freeze_blocks(blocks.rows(rows.clone())).with_bias(bias)
            };
            return Ok(rows.iter().map(part).collect());
        }
        if let [_] = rows
            && let Some(weight) = self.stored(&name, [n_out, n_in])?
        {
            return Ok(vec![weight.with_bias(bias.map(Arc::new))]);
        }
        let mut whole = self.tensor(&name, &[n_out, n_in])?;
        let part = |rows: &Range<usize>| {
            let data = match rows.len() < n_out {
                true => whole[rows.start * n_in..rows.end * n_in].to_vec(),
                false => std::mem::take(&mut whole),
            };
            let bias = bias.as_ref().map(|bias| Arc::new(bias[rows.clone()].to_vec()));
            let weight = match Codes::quantize(self.quantize, &data, rows.len(), n_in) {
                Some(codes) => self.ops.freeze_codes(codes, self.trains),
                None => self.ops.freeze(data, rows.len(), n_in, self.trains),
            };
            weight.with_bias(bias)
        };
        Ok(rows.iter().map(part).collect())
    }

    fn norm(&mut self, name: &str, n: usize) -> Result<Norm, DecoderError> {
        let mut weight = self.tensor(name, &[n])?;
        if self.norm_offset != 0.0 {
            weight.iter_mut().for_each(|w| *w += self.norm_offset);
        }
        Ok(Norm::Frozen(Arc::new(weight)))
    }
}

/// Tensors by their Hugging Face names, vectors as `[1, n]`.
pub type TensorSet = BTreeMap<String, Tensor<2>>;

pub(crate) struct Trained<'a> {
    pub tensors: &'a TensorSet,
    pub norm_offset: f32,
}

impl Trained<'_> {
    fn tensor(&self, name: &str, want: [usize; 2]) -> Result<Tensor<2>, DecoderError> {
        let missing = || DecoderError::Weights(format!("there is no tensor `{name}` to train"));
        let tensor = self.tensors.get(name).ok_or_else(missing)?;
        match tensor.dims() == want {
            true => Ok(tensor.clone()),
            false => {
                let (got, want) = (tensor.dims().to_vec(), want.to_vec());
                Err(DecoderError::Shape { name: name.to_string(), got, want })
            }
        }
    }
}

impl Parts for Trained<'_> {
    fn matrix(&mut self, name: &str, n_out: usize, n_in: usize) -> Result<Frozen, DecoderError> {
        Ok(Frozen::trained(self.tensor(name, [n_out, n_in])?, None))
    }

    fn module(
        &mut self,
        path: &str,
        (n_out, n_in): (usize, usize),
        has_bias: bool,
        rows: &[Range<usize>],
    ) -> Result<Vec<Frozen>, DecoderError> {
        let whole = self.tensor(&format!("{path}.weight"), [n_out, n_in])?;
        let bias = match has_bias {
            true => Some(self.tensor(&format!("{path}.bias"), [1, n_out])?),
            false => None,
        };
        let cut = |tensor: &Tensor<2>, dim: usize, rows: &Range<usize>| match rows.len() < n_out {
            true => tensor.clone().narrow(dim, rows.start, rows.len()),
            false => tensor.clone(),
        };
        let part = |rows: &Range<usize>| Frozen::trained(cut(&whole, 0, rows), bias.as_ref().map(|b| cut(b, 1, rows)));
        Ok(rows.iter().map(part).collect())
    }

    fn norm(&mut self, name: &str, n: usize) -> Result<Norm, DecoderError> {
        let weight = self.tensor(name, [1, n])?;
        Ok(Norm::Trained(Box::new(if self.norm_offset == 0.0 { weight } else { weight + self.norm_offset })))
    }
}
