//! What a decoder is built from: its architecture and sizes, read from a Hugging Face `config.json` or from GGUF
//! metadata, and checked before anyone allocates by them.

use crate::error::{ModelError, Result, read_capped};
use crate::gguf::{GgufFile, Value};
use serde_json::Value as Json;
use std::path::Path;

const MAX_CONFIG_BYTES: u64 = 1 << 20;
const MAX_LAYERS: u64 = 512;
const MAX_HEADS: u64 = 1024;
const MAX_WIDTH: u64 = 1 << 18;
const MAX_VOCAB: u64 = 1 << 22;
const MAX_POSITIONS: u64 = 1 << 24;

/// The decoder families that can be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// RMSNorm, rotary positions, grouped-query attention without biases, SwiGLU.
    Llama,
}

impl Architecture {
    pub const ALL: [Architecture; 1] = [Architecture::Llama];

    /// The family's name: `general.architecture` in GGUF, `model_type` in config.json.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
        }
    }

    /// The class that Hugging Face names in `architectures`.
    pub fn hf_class(self) -> &'static str {
        match self {
            Architecture::Llama => "LlamaForCausalLM",
        }
    }

    /// Whether the rows of q and k are permuted between the two layouts (interleaved against split-half rotation).
    pub fn permutes_qk(self) -> bool {
        match self {
            Architecture::Llama => true,
        }
    }

    fn parse(path: &Path, name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|a| a.name() == name).ok_or_else(|| ModelError::UnknownArchitecture {
            path: path.into(),
            found: name.chars().take(64).collect(),
            known: Self::ALL.map(Self::name).join(", "),
        })
    }
}

/// The sizes of a decoder, in the words of Hugging Face's config.json.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    pub architecture: Architecture,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub intermediate_size: usize,
    /// Rows of the embedding; a tokenizer may use fewer.
    pub vocab_size: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub max_position_embeddings: usize,
    /// The head is the embedding; there is no `lm_head.weight`.
    pub tie_word_embeddings: bool,
}

impl DecoderConfig {
    /// From a Hugging Face folder's `config.json`.
    ///
    /// # Errors
    /// When it can't be read, names an unknown architecture, or asks for what the decoder does not do.
    pub fn from_hf(path: &Path) -> Result<Self> {
        let bytes = read_capped(path, MAX_CONFIG_BYTES)?;
        let json: Json = serde_json::from_slice(&bytes).map_err(|e| ModelError::config(path, e.to_string()))?;
        Self::from_hf_json(path, &json)
    }

    pub(crate) fn from_hf_json(path: &Path, json: &Json) -> Result<Self> {
        let from = Hf { path, json };
        let model_type = json["model_type"].as_str();
        let architecture = Architecture::parse(path, model_type.unwrap_or("(no model_type)"))?;
        from.refuse_unsupported()?;
        let heads = from.size("num_attention_heads", MAX_HEADS, None)?;
        let hidden_size = from.size("hidden_size", MAX_WIDTH, None)?;
        Self {
            architecture,
            hidden_size,
            num_hidden_layers: from.size("num_hidden_layers", MAX_LAYERS, None)?,
            num_attention_heads: heads,
            num_key_value_heads: from.size("num_key_value_heads", MAX_HEADS, Some(heads))?,
            head_dim: from.size("head_dim", MAX_WIDTH, Some(hidden_size / heads))?,
            intermediate_size: from.size("intermediate_size", MAX_WIDTH, None)?,
            vocab_size: from.size("vocab_size", MAX_VOCAB, None)?,
            rms_norm_eps: from.number(&["rms_norm_eps"], 1e-6)?,
            rope_theta: from.number(&["rope_theta", "/rope_parameters/rope_theta"], 10_000.0)?,
            max_position_embeddings: from.size("max_position_embeddings", MAX_POSITIONS, Some(2048))?,
            tie_word_embeddings: json["tie_word_embeddings"].as_bool().unwrap_or(false),
        }
        .checked(path)
    }

    /// From a GGUF file's metadata. The head counts as tied when the file has no `output.weight`.
    ///
    /// # Errors
    /// When a key is missing or of the wrong type, or names what the decoder does not do.
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        let path = file.path();
        let name = file.get_as("general.architecture", "a string", Value::as_str)?;
        let architecture = Architecture::parse(path, name.unwrap_or("(no general.architecture)"))?;
        let from = Gguf { file, prefix: architecture.name() };
        from.refuse_unsupported()?;
        let heads = from.size("attention.head_count", MAX_HEADS, None)?;
        let hidden_size = from.size("embedding_length", MAX_WIDTH, None)?;
        let head_dim = from.size("attention.key_length", MAX_WIDTH, Some(hidden_size / heads))?;
        let tokens = file.get_as("tokenizer.ggml.tokens", "an array of strings", Value::as_strings)?;
        for key in ["attention.value_length", "rope.dimension_count"] {
            let other = from.size(key, MAX_WIDTH, Some(head_dim))?;
            if other != head_dim {
                return Err(ModelError::config(path, format!("{key} {other} differs from the head size {head_dim}")));
            }
        }
        Self {
            architecture,
            hidden_size,
            num_hidden_layers: from.size("block_count", MAX_LAYERS, None)?,
            num_attention_heads: heads,
            num_key_value_heads: from.size("attention.head_count_kv", MAX_HEADS, Some(heads))?,
            head_dim,
            intermediate_size: from.size("feed_forward_length", MAX_WIDTH, None)?,
            vocab_size: from.size("vocab_size", MAX_VOCAB, tokens.map(<[String]>::len))?,
            rms_norm_eps: from.number("attention.layer_norm_rms_epsilon", None)?,
            rope_theta: from.number("rope.freq_base", Some(10_000.0))?,
            max_position_embeddings: from.size("context_length", MAX_POSITIONS, None)?,
            tie_word_embeddings: file.tensor("output.weight").is_none(),
        }
        .checked(path)
    }

    /// The keys that describe this decoder in a GGUF file, `general.architecture` among them.
    pub fn to_gguf(&self) -> Vec<(String, Value)> {
        let arch = self.architecture.name();
        let int = |key: &str, n: usize| (format!("{arch}.{key}"), Value::U32(n as u32));
        let float = |key: &str, x: f64| (format!("{arch}.{key}"), Value::F32(x as f32));
        vec![
            ("general.architecture".into(), arch.into()),
            int("vocab_size", self.vocab_size),
            int("context_length", self.max_position_embeddings),
            int("embedding_length", self.hidden_size),
            int("block_count", self.num_hidden_layers),
            int("feed_forward_length", self.intermediate_size),
            int("attention.head_count", self.num_attention_heads),
            int("attention.head_count_kv", self.num_key_value_heads),
            int("attention.key_length", self.head_dim),
            int("attention.value_length", self.head_dim),
            int("rope.dimension_count", self.head_dim),
            float("rope.freq_base", self.rope_theta),
            float("attention.layer_norm_rms_epsilon", self.rms_norm_eps),
        ]
    }

    /// The config.json that Hugging Face's transformers reads, for weights kept as `torch_dtype`.
    pub fn to_hf_json(&self, torch_dtype: &str) -> Json {
        serde_json::json!({
            "architectures": [self.architecture.hf_class()],
            "model_type": self.architecture.name(),
            "torch_dtype": torch_dtype,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate_size,
            "vocab_size": self.vocab_size,
            "hidden_act": "silu",
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "max_position_embeddings": self.max_position_embeddings,
            "tie_word_embeddings": self.tie_word_embeddings,
            "attention_bias": false,
            "mlp_bias": false,
        })
    }

    /// Every weight by its Hugging Face name, with its `[out, in]` shape: what a file must hold to be this decoder.
    pub fn tensor_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let (d, f) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, d])];
        for layer in 0..self.num_hidden_layers {
            let mut add = |name: &str, shape| shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
            add("input_layernorm", vec![d]);
            add("self_attn.q_proj", vec![q, d]);
            add("self_attn.k_proj", vec![kv, d]);
            add("self_attn.v_proj", vec![kv, d]);
            add("self_attn.o_proj", vec![d, q]);
            add("post_attention_layernorm", vec![d]);
            add("mlp.gate_proj", vec![f, d]);
            add("mlp.up_proj", vec![f, d]);
            add("mlp.down_proj", vec![d, f]);
        }
        shapes.push(("model.norm.weight".into(), vec![d]));
        if !self.tie_word_embeddings {
            shapes.push(("lm_head.weight".into(), vec![self.vocab_size, d]));
        }
        shapes
    }

    fn checked(self, path: &Path) -> Result<Self> {
        let wrong = |why: String| Err(ModelError::config(path, why));
        let (heads, kv) = (self.num_attention_heads, self.num_key_value_heads);
        if !heads.is_multiple_of(kv) {
            return wrong(format!("{heads} attention heads can't share {kv} key-value heads"));
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) {
            return wrong(format!("rotary positions need an even head size, not {}", self.head_dim));
        }
        if heads * self.head_dim > MAX_WIDTH as usize {
            return wrong(format!("{heads} heads of {} are wider than {MAX_WIDTH}", self.head_dim));
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            return wrong(format!("rms_norm_eps {} is not within 0 and 1", self.rms_norm_eps));
        }
        if !(self.rope_theta >= 1.0 && self.rope_theta <= 1e12) {
            return wrong(format!("rope_theta {} is not within 1 and 1e12", self.rope_theta));
        }
        Ok(self)
    }
}

fn bounded(path: &Path, key: &str, n: u64, cap: u64) -> Result<usize> {
    match usize::try_from(n) {
        Ok(size) if (1..=cap).contains(&n) => Ok(size),
        _ => Err(ModelError::config(path, format!("{key} is {n}; 1 to {cap} is possible"))),
    }
}

struct Hf<'a> {
    path: &'a Path,
    json: &'a Json,
}

impl Hf<'_> {
    fn wrong<T>(&self, why: String) -> Result<T> {
        Err(ModelError::config(self.path, why))
    }

    fn size(&self, key: &str, cap: u64, default: Option<usize>) -> Result<usize> {
        match (&self.json[key], default) {
            (Json::Null, Some(default)) => Ok(default),
            (Json::Null, None) => self.wrong(format!("'{key}' is missing")),
            (value, _) => match value.as_u64() {
                Some(n) => bounded(self.path, key, n, cap),
                None => self.wrong(format!("'{key}' is no whole number")),
            },
        }
    }

    /// The first of `places` (a key, or a JSON pointer) that holds something.
    fn number(&self, places: &[&str], default: f64) -> Result<f64> {
        let at = |place: &str| match place.starts_with('/') {
            true => self.json.pointer(place),
            false => self.json.get(place),
        };
        match places.iter().filter_map(|p| at(p)).find(|v| !v.is_null()) {
            None => Ok(default),
            Some(value) => match value.as_f64() {
                Some(x) => Ok(x),
                None => self.wrong(format!("'{}' is no number", places[0])),
            },
        }
    }

    fn refuse_unsupported(&self) -> Result<()> {
        for key in ["attention_bias", "mlp_bias"] {
            if self.json[key].as_bool() == Some(true) {
                return self.wrong(format!("'{key}' is true; biases are not supported"));
            }
        }
        if let Some(act) = self.json["hidden_act"].as_str().filter(|act| !matches!(*act, "silu" | "swish")) {
            return self.wrong(format!("activation '{act}' is not supported; silu is"));
        }
        for key in ["rope_scaling", "rope_parameters"] {
            let rope = &self.json[key];
            let kind = rope["rope_type"].as_str().or(rope["type"].as_str());
            if let Some(kind) = kind.filter(|kind| *kind != "default") {
                return self.wrong(format!("rope scaling '{kind}' is not supported"));
            }
        }
        Ok(())
    }
}

struct Gguf<'a> {
    file: &'a GgufFile,
    prefix: &'static str,
}

impl Gguf<'_> {
    fn missing<T>(&self, key: &str) -> Result<T> {
        Err(ModelError::config(self.file.path(), format!("'{}.{key}' is missing", self.prefix)))
    }

    fn size(&self, key: &str, cap: u64, default: Option<usize>) -> Result<usize> {
        let full = format!("{}.{key}", self.prefix);
        match (self.file.get_as(&full, "a whole number (one for all layers)", Value::as_u64)?, default) {
            (Some(n), _) => bounded(self.file.path(), &full, n, cap),
            (None, Some(default)) => Ok(default),
            (None, None) => self.missing(key),
        }
    }

    fn number(&self, key: &str, default: Option<f64>) -> Result<f64> {
        let full = format!("{}.{key}", self.prefix);
        match (self.file.get_as(&full, "a float", Value::as_f64)?, default) {
            // Written as f32: 1e-5 comes back as 9.999999747e-6, which is what llama.cpp computes with too.
            (Some(x), _) | (None, Some(x)) => Ok(x),
            (None, None) => self.missing(key),
        }
    }

    fn refuse_unsupported(&self) -> Result<()> {
        let scaling = format!("{}.rope.scaling.type", self.prefix);
        let scaling = self.file.get_as(&scaling, "a string", Value::as_str)?.filter(|kind| *kind != "none");
        if scaling.is_some() || self.file.tensor("rope_freqs.weight").is_some() {
            return Err(ModelError::config(self.file.path(), "rope scaling is not supported"));
        }
        if self.file.get_as(&format!("{}.expert_count", self.prefix), "a whole number", Value::as_u64)?.unwrap_or(0) > 0
        {
            return Err(ModelError::config(self.file.path(), "mixtures of experts are not supported"));
        }
        Ok(())
    }
}
