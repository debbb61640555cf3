//! Reading a decoder's config from GGUF metadata, and writing it there. A family or a part that llama.cpp would compute
//! otherwise is refused in both directions.

use super::{
    Activation, Architecture, DecoderConfig, LayerConfig, MAX_HEADS, MAX_LAYERS, MAX_POSITIONS, MAX_VOCAB, MAX_WIDTH,
    Rope, RopeScaling, bounded,
};
use crate::error::{ModelError, Result};
use crate::gguf::{GgufFile, MOST_SHOWN, Value, shortened};

/// The one tensor that belongs to the config: what the frequencies are divided by.
pub const ROPE_FACTORS: &str = "rope_freqs.weight";

/// llama.cpp leaves every fourth layer of SmolLM3 unrotated, whatever the file says.
const SMOLLM3_INTERVAL: usize = 4;

impl DecoderConfig {
    /// From a GGUF file's metadata. The head counts as tied when the file has no `output.weight`.
    ///
    /// # Errors
    /// When a key is missing or of the wrong type, or names what the decoder does not do.
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        let path = file.path();
        let name = file.get_as("general.architecture", "a string", Value::as_str)?;
        let name = name.unwrap_or("(no general.architecture)");
        let architecture = Architecture::of_gguf(path, name)?;
        let from = Gguf { file, prefix: architecture.gguf_name().unwrap_or_default() };
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
        let num_hidden_layers = from.size("block_count", MAX_LAYERS, None)?;
        let rope = from.rope(head_dim)?;
        let rotates =
            |layer: usize| architecture != Architecture::SmolLm3 || !(layer + 1).is_multiple_of(SMOLLM3_INTERVAL);
        let layer = |i| LayerConfig { rope: rotates(i).then(|| rope.clone()), window: None };
        let has = |name: &str| file.tensor(&format!("blk.0.{name}.bias")).is_some();
        Self {
            architecture,
            hidden_size,
            num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: from.size("attention.head_count_kv", MAX_HEADS, Some(heads))?,
            head_dim,
            intermediate_size: from.size("feed_forward_length", MAX_WIDTH, None)?,
            vocab_size: from.size("vocab_size", MAX_VOCAB, tokens.map(<[String]>::len))?,
            rms_norm_eps: from
                .number("attention.layer_norm_rms_epsilon")?
                .map_or_else(|| from.missing("attention.layer_norm_rms_epsilon"), Ok)?,
            max_position_embeddings: from.size("context_length", MAX_POSITIONS, None)?,
            tie_word_embeddings: file.tensor("output.weight").is_none(),
            layers: (0..num_hidden_layers).map(layer).collect(),
            qkv_bias: has("attn_q"),
            o_bias: has("attn_output"),
            mlp_bias: has("ffn_down"),
            head_norms: architecture == Architecture::Qwen3,
            post_norms: false,
            norm_offset: 0.0,
            activation: Activation::Silu,
            query_pre_attn_scalar: head_dim as f64,
            attn_logit_softcapping: None,
            final_logit_softcapping: None,
            embedding_scale: None,
            fused_projections: false,
        }
        .checked(path)
    }

    /// The keys that describe this decoder in a GGUF file, `general.architecture` among them. The context of a model with
    /// a sliding window is cut to the window, for llama.cpp would not apply it: within it, both compute the same.
    ///
    /// # Errors
    /// When llama.cpp has no such model, or would compute another.
    pub fn to_gguf(&self) -> Result<Vec<(String, Value)>> {
        let arch = self.gguf_architecture()?;
        let int = |key: &str, n: usize| (format!("{arch}.{key}"), Value::U32(n as u32));
        let float = |key: &str, x: f64| (format!("{arch}.{key}"), Value::F32(x as f32));
        let rope = self.layers.iter().find_map(|layer| layer.rope.clone()).unwrap_or(Rope::plain(10_000.0));
        let mut keys = vec![
            ("general.architecture".into(), arch.into()),
            int("vocab_size", self.vocab_size),
            int("context_length", self.gguf_context()),
            int("embedding_length", self.hidden_size),
            int("block_count", self.num_hidden_layers),
            int("feed_forward_length", self.intermediate_size),
            int("attention.head_count", self.num_attention_heads),
            int("attention.head_count_kv", self.num_key_value_heads),
            int("attention.key_length", self.head_dim),
            int("attention.value_length", self.head_dim),
            int("rope.dimension_count", self.head_dim),
            float("rope.freq_base", rope.theta),
            float("attention.layer_norm_rms_epsilon", self.rms_norm_eps),
        ];
        if let RopeScaling::Linear { factor } = rope.scaling {
            keys.push((format!("{arch}.rope.scaling.type"), "linear".into()));
            keys.push(float("rope.scaling.factor", factor));
        }
        Ok(keys)
    }

    /// How many tokens a row may have in the GGUF file of this model.
    pub fn gguf_context(&self) -> usize {
        let windows = self.layers.iter().filter_map(|layer| layer.window);
        windows.fold(self.max_position_embeddings, usize::min)
    }

    /// The values of [`ROPE_FACTORS`], where the file must have it.
    pub fn gguf_rope_factors(&self) -> Option<Vec<f32>> {
        self.layers.iter().find_map(|layer| layer.rope.as_ref()?.gguf_factors(self.head_dim))
    }

    /// `general.architecture` of this model's GGUF file.
    ///
    /// # Errors
    /// [`ModelError::NoGguf`] when there is none in which llama.cpp would compute this very model.
    pub fn gguf_architecture(&self) -> Result<&'static str> {
        let refused =
            |why: &str| Err(ModelError::NoGguf { architecture: self.architecture.name().into(), why: why.into() });
        let Some(name) = self.architecture.gguf_name() else {
            return refused("this program does not know how llama.cpp wants that family");
        };
        let mut ropes = self.layers.iter().filter_map(|layer| layer.rope.as_ref());
        let first = ropes.next();
        if ropes.any(|rope| Some(rope) != first) {
            return refused("its layers rotate differently, and the file has room for one rotation");
        }
        let rotates = self.layers.iter().map(|layer| layer.rope.is_some());
        let as_served =
            |i: usize| self.architecture != Architecture::SmolLm3 || !(i + 1).is_multiple_of(SMOLLM3_INTERVAL);
        if !rotates.enumerate().all(|(i, rotates)| rotates == as_served(i)) {
            return refused("llama.cpp leaves exactly every fourth layer unrotated, this model others");
        }
        let llama = matches!(self.architecture, Architecture::Llama | Architecture::Mistral);
        let biased = (self.qkv_bias && self.architecture != Architecture::Qwen2) || self.o_bias || self.mlp_bias;
        if biased && !llama {
            return refused("it has biases where llama.cpp expects none");
        }
        match self.activation {
            Activation::Silu => Ok(name),
            Activation::GeluTanh => refused("llama.cpp gates this family by SiLU, this model by GELU"),
        }
    }
}

struct Gguf<'a> {
    file: &'a GgufFile,
    prefix: &'static str,
}

impl Gguf<'_> {
    fn wrong<T>(&self, why: String) -> Result<T> {
        Err(ModelError::config(self.file.path(), why))
    }

    fn missing<T>(&self, key: &str) -> Result<T> {
        self.wrong(format!("'{}.{key}' is missing", self.prefix))
    }

    fn size(&self, key: &str, cap: u64, default: Option<usize>) -> Result<usize> {
        let full = format!("{}.{key}", self.prefix);
        match (self.file.get_as(&full, "a whole number (one for all layers)", Value::as_u64)?, default) {
            (Some(n), _) => bounded(self.file.path(), &full, n, cap),
            (None, Some(default)) => Ok(default),
            (None, None) => self.missing(key),
        }
    }

    /// Written as f32: 1e-5 comes back as 9.999999747e-6, which is what llama.cpp computes with too.
    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.file.get_as(&format!("{}.{key}", self.prefix), "a float", Value::as_f64)
    }

    fn rope(&self, head_dim: usize) -> Result<Rope> {
        let theta = self.number("rope.freq_base")?.unwrap_or(10_000.0);
        let kind = format!("{}.rope.scaling.type", self.prefix);
        let kind = self.file.get_as(&kind, "a string", Value::as_str)?.unwrap_or("none");
        let factor = self.number("rope.scaling.factor")?;
        let factors = match self.file.tensor(ROPE_FACTORS) {
            Some(info) if info.n_elements() == head_dim as u64 / 2 => Some(self.file.dequantize(info)?),
            Some(_) => return self.wrong(format!("{ROPE_FACTORS} has no factor for each frequency")),
            None => None,
        };
        let scaling = match (kind, factor, factors) {
            ("none", _, None) => RopeScaling::None,
            ("none", _, Some(factors)) if factors.iter().all(|f| *f > 0.0) => RopeScaling::Factors(factors),
            ("none", _, Some(_)) => return self.wrong(format!("{ROPE_FACTORS} holds a factor that is not positive")),
            ("linear", Some(factor), None) if factor > 0.0 => RopeScaling::Linear { factor },
            _ => {
                let why = "rope scaling '{}' is not supported; known: none, linear with a factor, rope_freqs.weight";
                return self.wrong(why.replace("{}", &shortened(kind, MOST_SHOWN)));
            }
        };
        Ok(Rope { theta, scaling })
    }

    fn refuse_unsupported(&self) -> Result<()> {
        let whole = |key: &str| {
            let full = format!("{}.{key}", self.prefix);
            Ok::<u64, ModelError>(self.file.get_as(&full, "a whole number", Value::as_u64)?.unwrap_or(0))
        };
        if whole("expert_count")? > 0 {
            return self.wrong("mixtures of experts are not supported".into());
        }
        let (window, context) = (whole("attention.sliding_window")?, whole("context_length")?);
        if window > 0 && window < context {
            return self.wrong(format!(
                "a sliding window of {window} in a {} file: llama.cpp would not apply it, so what is meant is unclear",
                self.prefix
            ));
        }
        Ok(())
    }
}
