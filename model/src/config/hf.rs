//! Reading a Hugging Face `config.json`. A key that nobody here understands is refused unless it is known to leave the
//! arithmetic alone: a model that runs is the model that was trained.

use super::{
    Activation, Architecture, DecoderConfig, LayerConfig, MAX_CONFIG_BYTES, MAX_HEADS, MAX_LAYERS, MAX_POSITIONS,
    MAX_VOCAB, MAX_WIDTH, Rope, bounded,
};
use crate::error::{ModelError, Result, read_capped};
use serde_json::Value as Json;
use std::path::Path;

/// Keys that every family reads.
const COMMON: [&str; 18] = [
    "architectures",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "tie_word_embeddings",
    "vocab_size",
    // Read by no forward pass without dropout, in training mode by none here.
    "attention_dropout",
    "embd_pdrop",
    "resid_pdrop",
];

/// Keys that leave the arithmetic alone: provenance, generation, how transformers runs it.
const IDLE: [&str; 40] = [
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_model_name_or_path",
    "_name_or_path",
    "attn_implementation",
    "auto_map",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "do_sample",
    "dtype",
    "eos_token_id",
    "finetuning_task",
    "id2label",
    "initializer_range",
    "is_llama_config",
    "keys_to_ignore_at_inference",
    "label2id",
    "language",
    "license",
    "max_length",
    "model_name",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "return_dict",
    "task_specific_params",
    "temperature",
    "tokenizer_class",
    "tokenizer_model_max_length",
    "tokenizer_padding_side",
    "top_k",
    "top_p",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
];

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
        let model_type = json["model_type"].as_str();
        let architecture = Architecture::of_hf(path, model_type.unwrap_or("(no model_type)"))?;
        let from = Hf { path, json, architecture };
        from.refuse_unknown()?;
        let defaults = architecture.defaults();
        let heads = from.size("num_attention_heads", MAX_HEADS, None)?;
        let hidden_size = from.size("hidden_size", MAX_WIDTH, None)?;
        let own_heads = defaults.head_dim.or(hidden_size.is_multiple_of(heads).then_some(hidden_size / heads));
        let head_dim = from.size("head_dim", MAX_WIDTH, own_heads)?;
        let num_hidden_layers = from.size("num_hidden_layers", MAX_LAYERS, None)?;
        let layers = from.layers(num_hidden_layers, defaults.rope_theta, head_dim)?;
        let stretched = layers.iter().filter_map(|layer| layer.rope.as_ref()?.context()).min();
        let attention_bias = from.flag("attention_bias", false)?;
        let gemma = architecture.is_gemma();
        Self {
            architecture,
            hidden_size,
            num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: from.size("num_key_value_heads", MAX_HEADS, Some(heads))?,
            head_dim,
            intermediate_size: from.size("intermediate_size", MAX_WIDTH, None)?,
            vocab_size: from.size("vocab_size", MAX_VOCAB, None)?,
            rms_norm_eps: from.number("rms_norm_eps")?.unwrap_or(defaults.rms_norm_eps),
            max_position_embeddings: stretched.map_or_else(|| from.context(), Ok)?,
            tie_word_embeddings: from.flag("tie_word_embeddings", defaults.tie_word_embeddings)?,
            layers,
            qkv_bias: attention_bias || architecture == Architecture::Qwen2,
            o_bias: attention_bias,
            mlp_bias: from.flag("mlp_bias", false)?,
            head_norms: matches!(architecture, Architecture::Qwen3 | Architecture::Gemma3),
            post_norms: gemma,
            norm_offset: if gemma { 1.0 } else { 0.0 },
            activation: from.activation()?,
            query_pre_attn_scalar: match gemma {
                true => from.number("query_pre_attn_scalar")?.unwrap_or(256.0),
                false => head_dim as f64,
            },
            attn_logit_softcapping: from.softcap("attn_logit_softcapping", 50.0)?,
            final_logit_softcapping: from.softcap("final_logit_softcapping", 30.0)?,
            embedding_scale: gemma.then(|| (hidden_size as f64).sqrt() as f32),
            fused_projections: architecture == Architecture::Phi3,
        }
        .checked(path)
    }
}

struct Hf<'a> {
    path: &'a Path,
    json: &'a Json,
    architecture: Architecture,
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

    fn number(&self, key: &str) -> Result<Option<f64>> {
        match (&self.json[key], self.json[key].as_f64()) {
            (Json::Null, _) => Ok(None),
            (_, Some(x)) => Ok(Some(x)),
            _ => self.wrong(format!("'{key}' is no number")),
        }
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match &self.json[key] {
            Json::Null => Ok(default),
            Json::Bool(flag) => Ok(*flag),
            _ => self.wrong(format!("'{key}' is neither true nor false")),
        }
    }

    /// Gemma 2 caps where its config does not say; a null in it means no cap.
    fn softcap(&self, key: &str, gemma2: f32) -> Result<Option<f32>> {
        match self.architecture == Architecture::Gemma2 && self.json.get(key).is_none() {
            true => Ok(Some(gemma2)),
            false => Ok(self.number(key)?.map(|cap| cap as f32)),
        }
    }

    fn activation(&self) -> Result<Activation> {
        let keys = ["hidden_activation", "hidden_act"];
        let mut found = None;
        for (key, name) in keys.iter().filter_map(|key| Some((key, self.json[*key].as_str()?))) {
            let activation = match name {
                "silu" | "swish" => Activation::Silu,
                "gelu_pytorch_tanh" => Activation::GeluTanh,
                other => {
                    return self.wrong(format!(
                        "activation '{other}' ({key}) is not supported; known: silu, gelu_pytorch_tanh"
                    ));
                }
            };
            if found.is_some_and(|before| before != activation) {
                return self.wrong("hidden_activation and hidden_act name different activations".into());
            }
            found = Some(activation);
        }
        let usual = if self.architecture.is_gemma() { Activation::GeluTanh } else { Activation::Silu };
        Ok(found.unwrap_or(usual))
    }

    /// How far rows may go, as the config says.
    fn context(&self) -> Result<usize> {
        let default = self.architecture.defaults().max_position_embeddings;
        self.size("max_position_embeddings", MAX_POSITIONS, Some(default))
    }

    fn layers(&self, n: usize, default_theta: f64, head_dim: usize) -> Result<Vec<LayerConfig>> {
        let (rope, local) = self.ropes(default_theta, head_dim)?;
        let sliding = self.sliding_layers(n)?;
        let window = match sliding.iter().any(|s| *s) {
            true => Some(self.size("sliding_window", MAX_POSITIONS, None)?),
            false => None,
        };
        let rotates = self.rotating_layers(n)?;
        let layer = |(sliding, rotates): (bool, bool)| LayerConfig {
            rope: rotates.then(|| if sliding { local.clone() } else { rope.clone() }),
            window: window.filter(|_| sliding),
        };
        Ok(sliding.into_iter().zip(rotates).map(layer).collect())
    }

    /// Which layers have the window.
    fn sliding_layers(&self, n: usize) -> Result<Vec<bool>> {
        let has_window = !self.json["sliding_window"].is_null();
        let asked = match self.architecture {
            Architecture::Llama => false,
            Architecture::Mistral | Architecture::Phi3 => return Ok(vec![has_window; n]),
            Architecture::Gemma2 | Architecture::Gemma3 => true,
            Architecture::SmolLm3 | Architecture::Qwen2 | Architecture::Qwen3 => {
                has_window && self.flag("use_sliding_window", false)?
            }
        };
        // transformers reads the list whatever the flag says, but gives such a layer no window then.
        if let Some(types) = self.json["layer_types"].as_array() {
            if types.len() < n {
                return self.wrong(format!("layer_types names {} layers of {n}", types.len()));
            }
            let sliding = types.iter().take(n).map(|ty| match ty.as_str() {
                Some("full_attention") => Ok(false),
                Some("sliding_attention") if asked => Ok(true),
                _ => self
                    .wrong(format!("layer type {ty} is not supported here; known: full_attention, sliding_attention")),
            });
            return sliding.collect();
        }
        Ok(match self.architecture {
            _ if !asked => vec![false; n],
            Architecture::Gemma2 => (0..n).map(|i| i.is_multiple_of(2)).collect(),
            Architecture::Gemma3 => {
                let keys = ["sliding_window_pattern", "_sliding_window_pattern"];
                let key = keys.into_iter().find(|key| !self.json[*key].is_null()).unwrap_or(keys[0]);
                let pattern = self.size(key, MAX_LAYERS, Some(6))?;
                (0..n).map(|i| !(i + 1).is_multiple_of(pattern)).collect()
            }
            Architecture::SmolLm3 => self.rotating_layers(n)?.into_iter().map(|rotates| !rotates).collect(),
            _ => {
                let full = self.size_or_zero("max_window_layers", 28)?;
                (0..n).map(|i| i >= full).collect()
            }
        })
    }

    fn size_or_zero(&self, key: &str, default: usize) -> Result<usize> {
        if self.json[key].as_u64() == Some(0) { Ok(0) } else { self.size(key, MAX_POSITIONS, Some(default)) }
    }

    /// Which layers rotate queries and keys.
    fn rotating_layers(&self, n: usize) -> Result<Vec<bool>> {
        if self.architecture != Architecture::SmolLm3 {
            return Ok(vec![true; n]);
        }
        let Some(given) = self.json["no_rope_layers"].as_array() else {
            let interval = self.size("no_rope_layer_interval", MAX_LAYERS, Some(4))?;
            return Ok((0..n).map(|i| !(i + 1).is_multiple_of(interval)).collect());
        };
        // The name notwithstanding, 1 stands for a layer that rotates.
        let flags: Option<Vec<bool>> =
            given.iter().take(n).map(|v| v.as_u64().filter(|v| *v < 2).map(|v| v == 1)).collect();
        match flags {
            Some(flags) if flags.len() == n => Ok(flags),
            _ => self.wrong(format!("no_rope_layers is to be {n} times 0 or 1")),
        }
    }

    /// The rotation of full layers, and that of layers with a window.
    fn ropes(&self, default_theta: f64, head_dim: usize) -> Result<(Rope, Rope)> {
        let (scaling, parameters) = (&self.json["rope_scaling"], &self.json["rope_parameters"]);
        if !scaling.is_null() && !parameters.is_null() {
            return self.wrong("both rope_scaling and rope_parameters are given; keep one".into());
        }
        let theta = self.number("rope_theta")?.unwrap_or(default_theta);
        if self.architecture != Architecture::Gemma3 {
            let (key, json) =
                if parameters.is_null() { ("rope_scaling", scaling) } else { ("rope_parameters", parameters) };
            let kind = json["rope_type"].as_str().or(json["type"].as_str());
            let rope = match (self.architecture, kind) {
                // The older name is the same thing.
                (Architecture::Phi3, Some("longrope" | "su")) => {
                    let contexts = (self.original_context(json)?, self.context()?);
                    Rope::longrope(self.path, key, json, (theta, head_dim), contexts)?
                }
                _ => Rope::from_hf(self.path, key, json, theta)?,
            };
            return Ok((rope.clone(), rope));
        }
        let local_theta = self.number("rope_local_base_freq")?.unwrap_or(1e4);
        if parameters.is_null() {
            return Ok((Rope::from_hf(self.path, "rope_scaling", scaling, theta)?, Rope::plain(local_theta)));
        }
        let kinds = ["full_attention", "sliding_attention"];
        if let Some(odd) = parameters.as_object().into_iter().flatten().find(|(key, _)| !kinds.contains(&key.as_str()))
        {
            return self.wrong(format!("'rope_parameters.{}' is not understood; known: {}", odd.0, kinds.join(", ")));
        }
        let of = |kind: &str, theta| Rope::from_hf(self.path, "rope_parameters", &parameters[kind], theta);
        Ok((of(kinds[0], theta)?, of(kinds[1], local_theta)?))
    }

    /// The context that a longer one was made from: in the rope's parameters or beside them.
    fn original_context(&self, rope: &Json) -> Result<usize> {
        const KEY: &str = "original_max_position_embeddings";
        let inner = match &rope[KEY] {
            Json::Null => None,
            value => Some(value.as_u64().filter(|n| (2..=MAX_POSITIONS).contains(n)).map(|n| n as usize)),
        };
        match (inner, self.json[KEY].is_null()) {
            (Some(None), _) => self.wrong(format!("'{KEY}' is no usable number")),
            (Some(Some(inner)), false) if self.size(KEY, MAX_POSITIONS, None)? != inner => {
                self.wrong(format!("'{KEY}' is given twice, and differs"))
            }
            (Some(Some(inner)), _) => Ok(inner),
            // Phi-3's default.
            (None, _) => match self.size(KEY, MAX_POSITIONS, Some(4096))? {
                // Its logarithm divides.
                1 => self.wrong(format!("'{KEY}' is no usable number")),
                size => Ok(size),
            },
        }
    }

    /// Every key must be understood, known to be idle, or say no to something.
    fn refuse_unknown(&self) -> Result<()> {
        let name = self.architecture.name();
        for (key, value) in self.json.as_object().into_iter().flatten() {
            let known = COMMON.contains(&key.as_str())
                || IDLE.contains(&key.as_str())
                || self.architecture.own_keys().contains(&key.as_str());
            let says_no = match value {
                Json::Null | Json::Bool(false) => true,
                Json::Array(list) => list.is_empty(),
                Json::Object(map) => map.is_empty(),
                _ => false,
            };
            let whole = key == "partial_rotary_factor" && value.as_f64() == Some(1.0);
            if !(known || says_no || whole) {
                let value: String = value.to_string().chars().take(64).collect();
                return self.wrong(format!(
                    "'{key}' ({value}) is not understood for a {name} model and may change what it computes; take the key \
                     out of the file if it does not"
                ));
            }
        }
        let classes = self.json["architectures"].as_array().map(Vec::as_slice).unwrap_or_default();
        let class = self.architecture.hf_class();
        match classes.iter().filter_map(Json::as_str).find(|found| *found != class) {
            Some(found) => self.wrong(format!("it is a {found}; of {name} models only {class} can be run")),
            None => Ok(()),
        }
    }
}
