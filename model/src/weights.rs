//! A model's weights wherever they lie: a Hugging Face folder or a GGUF file, under Hugging Face's names, as f32, each
//! of the shape that the config promises. What a file adds outside the layers is left alone; a tensor in a layer that the
//! decoder has no place for is refused, for the model was trained with it.

use crate::adapter::{Adapter, AdapterError, Head, SCORE};
use crate::config::DecoderConfig;
use crate::error::{ModelError, Result};
use crate::gguf::{GgmlType, GgufFile, TensorInfo};
use crate::names::{gguf_to_hf, hf_to_gguf, unpermute_qk};
use crate::ops::blocks::Blocks;
use crate::ops::codes::{Codes, QuantizeBase};
use crate::safetensor::Shards;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a full fine-tuning leaves.
const TUNED: &str = "model.safetensors";

/// A weight, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct DenseTensor {
    /// `[out, in]` for a matrix, `[n]` for a norm.
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

/// An opened model: its config is read and every weight is known to be there, in its shape.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    config: DecoderConfig,
    shapes: BTreeMap<String, Vec<usize>>,
    from: From,
    /// Weights that a full fine-tuning left in the place of those of `from`.
    tuned: Option<Shards>,
}

#[derive(Debug)]
enum From {
    Folder(Shards),
    Gguf(Box<GgufFile>),
}

impl Weights {
    /// Opens a Hugging Face folder, or a `.gguf` file.
    ///
    /// # Errors
    /// When the files can't be read, break a rule of their format, name an unknown architecture, or lack a weight.
    pub fn open(path: &Path) -> Result<Self> {
        let (config, from) = if path.is_dir() {
            (DecoderConfig::from_hf(&path.join("config.json"))?, From::Folder(Shards::open(path)?))
        } else {
            let file = GgufFile::open(path)?;
            (DecoderConfig::from_gguf(&file)?, From::Gguf(Box::new(file)))
        };
        let shapes: BTreeMap<_, _> = config.tensor_shapes().into_iter().collect();
        let weights = Self { path: path.into(), config, shapes, from, tuned: None };
        for (name, expected) in &weights.shapes {
            let found = weights.stored_shape(name)?;
            if found != *expected {
                let why = format!("its shape is {found:?}, the config promises {expected:?}");
                return Err(ModelError::tensor(path, name, why));
            }
        }
        match weights.stray() {
            Some(name) => {
                let why =
                    format!("a {} decoder of this config has no place for it", weights.config.architecture.name());
                Err(ModelError::tensor(path, &name, why))
            }
            None => Ok(weights),
        }
    }

    /// Whether a folder holds what a full fine-tuning leaves, not an adapter.
    pub fn is_tuned(folder: &Path) -> bool {
        folder.join(TUNED).is_file()
    }

    /// This model with all its weights taken from `folder`, in which a full fine-tuning left them; what else belongs to a
    /// model stays the base's own.
    ///
    /// # Errors
    /// When the folder's weights are not those of this base.
    pub fn with_tuned(self, folder: &Path) -> Result<Self> {
        let tuned = Shards::open(folder)?;
        for (name, expected) in &self.shapes {
            let found = tuned.shape(name);
            if found != Some(expected) {
                let why = match found {
                    None => "it is not among the tuned weights; were they trained on this base?".to_owned(),
                    Some(found) => format!("its shape is {found:?} among the tuned weights, the base has {expected:?}"),
                };
                return Err(ModelError::tensor(folder, name, why));
            }
        }
        Ok(Self { tuned: Some(tuned), ..self })
    }

    /// The classification head that was trained beside all weights, where there is one.
    ///
    /// # Errors
    /// When it can't be read.
    fn tuned_head<E>(&self, folder: &Path) -> Result<Option<Head>, E>
    where
        E: std::convert::From<ModelError> + std::convert::From<AdapterError>,
    {
        let Some((tuned, shape)) = self.tuned.as_ref().and_then(|tuned| Some((tuned, tuned.shape(SCORE)?))) else {
            return Ok(None);
        };
        Ok(Some(Head::of_file(&folder.join(TUNED), shape, tuned.load(SCORE)?)?))
    }

    /// A base under what a training left: all of its weights, or an adapter, which stays apart. A classification head that was
    /// trained beside all weights is an adapter without factors.
    ///
    /// # Errors
    /// When one of the two can't be read, or the weights are not those of this base.
    pub fn open_trained<E>(base: &Path, trained: Option<&Path>) -> Result<(Weights, Option<Adapter>), E>
    where
        E: std::convert::From<ModelError> + std::convert::From<AdapterError>,
    {
        let weights = Weights::open(base)?;
        Ok(match trained {
            None => (weights, None),
            Some(folder) if Weights::is_tuned(folder) => {
                let weights = weights.with_tuned(folder)?;
                let head = weights.tuned_head::<E>(folder)?;
                (weights, head.map(Adapter::of_head))
            }
            Some(folder) => (weights, Some(Adapter::load(folder)?)),
        })
    }

    /// Whether the weights are other than those of the file that is named.
    pub fn tuned(&self) -> bool {
        self.tuned.is_some()
    }

    /// A tensor of a layer that takes no part in the forward pass; frequencies follow from the config.
    fn stray(&self) -> Option<String> {
        let stray = |name: &&str| !self.shapes.contains_key(*name) && !name.ends_with("rotary_emb.inv_freq");
        match &self.from {
            From::Folder(shards) => {
                shards.names().filter(|name| name.starts_with("model.layers.")).find(stray).map(str::to_owned)
            }
            From::Gguf(file) => {
                let known = |name: &str| {
                    gguf_to_hf(self.config.architecture, name).is_some_and(|hf| self.shapes.contains_key(&hf))
                };
                let names = file.tensors().iter().map(|info| info.name.as_str());
                names.filter(|name| name.starts_with("blk.")).find(|name| !known(name)).map(str::to_owned)
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Hugging Face's names of all weights, sorted. `lm_head.weight` is among them only when the head is its own.
    pub fn names(&self) -> Vec<String> {
        self.shapes.keys().cloned().collect()
    }

    pub fn contains(&self, name: &str) -> bool {
        self.shapes.contains_key(name)
    }

    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.shapes.get(name).map(Vec::as_slice)
    }

    /// The weight called `name`, `[out, in]` and in Hugging Face's row order.
    ///
    /// # Errors
    /// When there is no such weight, reading fails, or a value is not finite.
    pub fn load(&self, name: &str) -> Result<DenseTensor> {
        let shape = self.shapes.get(name).ok_or_else(|| self.missing(name))?.clone();
        if let Some(tuned) = &self.tuned {
            return Ok(DenseTensor { shape, data: tuned.load(name)? });
        }
        let data = match &self.from {
            From::Folder(shards) => shards.load(name)?,
            From::Gguf(file) => {
                let info = self.gguf_tensor(file, name).ok_or_else(|| self.missing(name))?;
                let data = file.dequantize(info)?;
                match self.permuted_heads(name) {
                    Some(heads) => unpermute_qk(&data, heads, shape.get(1).copied().unwrap_or(1)),
                    None => data,
                }
            }
        };
        Ok(DenseTensor { shape, data })
    }

    /// The codes of a matrix that the file stores in the very form asked for: a Q8_0 tensor for int8, block by block as it
    /// is. `None` where the weight is to be loaded and quantized.
    ///
    /// # Errors
    /// When reading fails, or a scale is not finite.
    pub fn codes(&self, name: &str, quantize: QuantizeBase) -> Result<Option<Codes>> {
        let From::Gguf(file) = &self.from else { return Ok(None) };
        let info = self.gguf_tensor(file, name).filter(|info| info.ty == GgmlType::Q8_0);
        let (Some(info), QuantizeBase::Int8, Some(&[n_out, n_in])) = (info, quantize, self.shape(name)) else {
            return Ok(None);
        };
        let bytes = self.rows_in_order(name, file.bytes(info)?, n_out);
        let why = "a scale is not a finite number";
        Codes::from_q8_0(&bytes, n_out, n_in).map(Some).ok_or_else(|| ModelError::tensor(&self.path, name, why))
    }

    /// Whether [`crate::decoder::Decoder::served`] computes as llama.cpp serves this file: it is a GGUF file, and there are
    /// kernels for the blocks of everything that activations are multiplied with.
    pub fn is_served(&self) -> bool {
        let From::Gguf(file) = &self.from else { return false };
        let head = if self.config.tie_word_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
        let mut matrices = self
            .shapes
            .iter()
            .filter(|(name, shape)| shape.len() == 2 && (name.as_str() == head || name.starts_with("model.layers.")));
        let multiplied = |(name, shape): (&String, &Vec<usize>)| {
            let info = self.gguf_tensor(file, name);
            info.is_some_and(|info| Blocks::multiplied(info.ty, shape[1]))
        };
        self.tuned.is_none() && matrices.all(multiplied)
    }

    /// The blocks of a matrix as the file has them, in Hugging Face's row order; `None` where there is no kernel for them.
    ///
    /// # Errors
    /// When reading fails, or a scale is not finite.
    pub fn blocks(&self, name: &str) -> Result<Option<Blocks>> {
        let From::Gguf(file) = &self.from else { return Ok(None) };
        let info = self.gguf_tensor(file, name);
        let (Some(info), Some(&[n_out, n_in])) = (info, self.shape(name)) else { return Ok(None) };
        if self.tuned.is_some() || !Blocks::multiplied(info.ty, n_in) {
            return Ok(None);
        }
        let bytes = self.rows_in_order(name, file.bytes(info)?, n_out);
        let why = "a scale is not a finite number";
        Blocks::new(info.ty, bytes, n_out, n_in).map(Some).ok_or_else(|| ModelError::tensor(&self.path, name, why))
    }

    /// The bytes of a matrix, its rows in Hugging Face's order.
    fn rows_in_order(&self, name: &str, bytes: Vec<u8>, n_out: usize) -> Vec<u8> {
        match self.permuted_heads(name) {
            Some(heads) => unpermute_qk(&bytes, heads, bytes.len() / n_out.max(1)),
            None => bytes,
        }
    }

    /// The files that hold the weights.
    pub fn files(&self) -> Vec<PathBuf> {
        match &self.from {
            From::Folder(shards) => shards.files().map(Path::to_path_buf).collect(),
            From::Gguf(_) => vec![self.path.clone()],
        }
    }

    pub fn gguf(&self) -> Option<&GgufFile> {
        match &self.from {
            From::Folder(_) => None,
            From::Gguf(file) => Some(file),
        }
    }

    /// A weight by its Hugging Face name.
    fn gguf_tensor<'f>(&self, file: &'f GgufFile, name: &str) -> Option<&'f TensorInfo> {
        file.tensor(&hf_to_gguf(self.config.architecture, name)?)
    }

    fn permuted_heads(&self, name: &str) -> Option<usize> {
        qk_heads(&self.config, name)
    }

    fn missing(&self, name: &str) -> ModelError {
        ModelError::MissingTensor { path: self.path.clone(), name: name.into() }
    }

    fn stored_shape(&self, name: &str) -> Result<Vec<usize>> {
        match &self.from {
            From::Folder(shards) => shards.shape(name).map(<[usize]>::to_vec).ok_or_else(|| self.missing(name)),
            From::Gguf(file) => {
                let info = self.gguf_tensor(file, name).ok_or_else(|| self.missing(name))?;
                // ggml counts the fastest dimension first.
                info.dims.iter().rev().map(|&d| usize::try_from(d).map_err(|_| self.missing(name))).collect()
            }
        }
    }
}

/// How many heads the rows of a weight are permuted in when it goes to or from GGUF; `None` for all but q and k.
pub fn qk_heads(config: &DecoderConfig, name: &str) -> Option<usize> {
    if !config.architecture.permutes_qk() {
        None
    } else if name.contains(".self_attn.q_proj.") {
        Some(config.num_attention_heads)
    } else if name.contains(".self_attn.k_proj.") {
        Some(config.num_key_value_heads)
    } else {
        None
    }
}
