//! The base to be carved, a GGUF file or a Hugging Face folder, seen as GGUF either way: metadata, tensors, bytes.

use std::path::{Path, PathBuf};

use limbeck_artifact::digest::{sha256_file, sha256_hex};
use limbeck_model::config::ROPE_FACTORS;
use limbeck_model::gguf::{GgmlType, TensorInfo, Value};
use limbeck_model::names::{gguf_to_hf, hf_to_gguf, permute_qk};
use limbeck_model::tokenizer::ChatTokenizer;
use limbeck_model::weights::{Weights, qk_heads};

use crate::error::{CarveError, Result};

pub(crate) struct Source {
    path: PathBuf,
    weights: Weights,
    metadata: Vec<(String, Value)>,
    /// Only the decoder's own; offsets mean nothing for a folder.
    tensors: Vec<TensorInfo>,
    pub block_count: usize,
}

impl Source {
    pub fn open(path: &Path) -> Result<Source> {
        let weights = Weights::open(path)?;
        let refused = |why: &str| Err(CarveError::Source { path: path.into(), why: why.into() });
        if weights.config().gguf_architecture()? != "llama" {
            return refused("it is not of the Llama family");
        }
        if weights.gguf().is_none() && !weights.config().gguf_rope_tensors().is_empty() {
            return refused("its frequencies are scaled one by one; carve its GGUF file instead of the folder");
        }
        let (metadata, tensors) = match weights.gguf() {
            Some(file) => {
                let own = |info: &&TensorInfo| {
                    info.name == ROPE_FACTORS
                        || gguf_to_hf(weights.config().architecture, &info.name)
                            .is_some_and(|name| weights.contains(&name))
                };
                (file.metadata().to_vec(), file.tensors().iter().filter(own).cloned().collect())
            }
            None => {
                let mut metadata = weights.config().to_gguf()?;
                metadata.extend(ChatTokenizer::open(path)?.gguf_metadata());
                metadata.push(("general.file_type".into(), Value::U32(0)));
                (metadata, folder_tensors(&weights))
            }
        };
        let block_count = weights.config().num_hidden_layers;
        Ok(Source { path: path.into(), weights, metadata, tensors, block_count })
    }

    /// Neurons of a layer's MLP.
    pub fn intermediate_size(&self) -> usize {
        self.weights.config().intermediate_size
    }

    pub fn metadata(&self) -> &[(String, Value)] {
        &self.metadata
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.iter().find(|(k, _)| k == key).map(|(_, value)| value)
    }

    /// `llama.NAME`.
    pub fn key(&self, name: &str) -> String {
        format!("llama.{name}")
    }

    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// A tensor's bytes in GGUF's order: a GGUF file's own, else the values as F32.
    pub fn bytes(&self, info: &TensorInfo) -> Result<Vec<u8>, limbeck_model::ModelError> {
        if let Some(file) = self.weights.gguf() {
            return file.bytes(info);
        }
        let name = gguf_to_hf(self.weights.config().architecture, &info.name).unwrap_or_else(|| info.name.clone());
        let mut dense = self.weights.load(&name)?;
        if let Some(heads) = qk_heads(self.weights.config(), &name) {
            dense.data = permute_qk(&dense.data, heads, dense.shape.get(1).copied().unwrap_or(1));
        }
        Ok(dense.data.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// SHA-256 and size: of the file, or of a folder's weights, config and tokenizer by digest and name.
    pub fn digest(&self) -> Result<(String, u64)> {
        let fails = |path: &Path| {
            let path = path.to_path_buf();
            move |source| CarveError::Digest { path, source }
        };
        let size = |path: &Path| std::fs::metadata(path).map(|m| m.len()).map_err(fails(path));
        let mut files = self.weights.files();
        if self.weights.gguf().is_some() {
            return Ok((sha256_file(&self.path).map_err(fails(&self.path))?, size(&self.path)?));
        }
        let beside = [
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "chat_template.jinja",
        ];
        files.extend(beside.iter().map(|name| self.path.join(name)).filter(|path| path.is_file()));
        files.sort();
        let (mut lines, mut bytes) = (String::new(), 0);
        for file in &files {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            lines += &format!("{}  {name}\n", sha256_file(file).map_err(fails(file))?);
            bytes += size(file)?;
        }
        Ok((sha256_hex(lines.as_bytes()), bytes))
    }

    pub fn refused(&self, why: &str) -> CarveError {
        CarveError::Source { path: self.path.clone(), why: why.into() }
    }
}

fn folder_tensors(weights: &Weights) -> Vec<TensorInfo> {
    let shapes = weights.config().tensor_shapes();
    let tensor = |(name, shape): (String, Vec<usize>)| {
        let dims: Vec<u64> = shape.iter().rev().map(|&n| n as u64).collect();
        let n_bytes = dims.iter().product::<u64>() * 4;
        Some(TensorInfo {
            name: hf_to_gguf(weights.config().architecture, &name)?,
            dims,
            ty: GgmlType::F32,
            offset: 0,
            n_bytes,
        })
    };
    shapes.into_iter().filter_map(tensor).collect()
}
