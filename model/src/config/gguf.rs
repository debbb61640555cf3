//! Reading a decoder's config from GGUF metadata, and writing it there. A family or a part that llama.cpp would compute
//! otherwise is refused in both directions.

use super::rope::{ROPE_FACTORS, ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT};
use super::{
    Activation, Architecture, DecoderConfig, LayerConfig, MAX_HEADS, MAX_LAYERS, MAX_POSITIONS, MAX_VOCAB, MAX_WIDTH,
    Rope, RopeScaling, bounded,
};
use crate::error::{ModelError, Result};
use crate::gguf::{GgufFile, MOST_SHOWN, Value, shortened};

/// llama.cpp leaves every fourth layer of SmolLM3 unrotated, whatever the file says.
const SMOLLM3_INTERVAL: usize = 4;

/// It makes a context's length a multiple of this.
const CONTEXT_STEP: usize = 256;

/// What Gemma's files mean where they say nothing: the window, every how manieth layer has none, and both soft caps.
const GEMMA2: (usize, u64, f64, f64) = (4096, 2, 50.0, 30.0);
const GEMMA3_PERIOD: u64 = 6;
const GEMMA3_LOCAL_THETA: f64 = 10_000.0;

/// Whether llama.cpp gives layer `i` the window where the file says that every `period`th has none.
fn is_windowed(i: usize, period: u64) -> bool {
    period == 0 || i as u64 % period < period - 1
}

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
        let from = Gguf { file, prefix: architecture.gguf_name() };
        from.refuse_unsupported(architecture)?;
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
        let context = from.context(architecture)?;
        let rope = from.rope(head_dim, context)?;
        let local = from.local_rope(architecture, &rope)?;
        let windows = from.windows(architecture, num_hidden_layers)?;
        let rotates =
            |layer: usize| architecture != Architecture::SmolLm3 || !(layer + 1).is_multiple_of(SMOLLM3_INTERVAL);
        let layer = |(i, window): (usize, Option<usize>)| {
            let rope = if window.is_some() { &local } else { &rope };
            LayerConfig { rope: rotates(i).then(|| rope.clone()), window }
        };
        let has = |name: &str| file.tensor(&format!("blk.0.{name}.bias")).is_some();
        let gemma = architecture.is_gemma();
        let (attn_logit_softcapping, final_logit_softcapping) = from.softcaps(architecture)?;
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
            max_position_embeddings: rope.context().map_or(context, |stretched| stretched.min(context)),
            tie_word_embeddings: file.tensor("output.weight").is_none(),
            layers: windows.into_iter().enumerate().map(layer).collect(),
            qkv_bias: has("attn_q") || has("attn_qkv"),
            o_bias: has("attn_output"),
            mlp_bias: has("ffn_down"),
            head_norms: matches!(architecture, Architecture::Qwen3 | Architecture::Gemma3),
            post_norms: gemma,
            // Gemma's is in the file's weights.
            norm_offset: 0.0,
            activation: if gemma { Activation::GeluTanh } else { Activation::Silu },
            query_pre_attn_scalar: served_scalar(architecture, num_hidden_layers, (hidden_size, heads, head_dim)),
            attn_logit_softcapping,
            final_logit_softcapping,
            embedding_scale: gemma.then(|| (hidden_size as f64).sqrt() as f32),
            fused_projections: architecture == Architecture::Phi3,
        }
        .checked(path)
    }

    /// The keys that describe this decoder in a GGUF file, `general.architecture` among them. Where llama.cpp does not apply
    /// a sliding window (in all families but Gemma), the context is cut to it: within it, both compute the same.
    ///
    /// # Errors
    /// When llama.cpp has no such model, or would compute another.
    pub fn to_gguf(&self) -> Result<Vec<(String, Value)>> {
        let arch = self.gguf_architecture()?;
        let int = |key: &str, n: usize| (format!("{arch}.{key}"), Value::U32(n as u32));
        let float = |key: &str, x: f64| (format!("{arch}.{key}"), Value::F32(x as f32));
        let full = self.layers.iter().find(|layer| layer.window.is_none() && layer.rope.is_some());
        let rope = full.or(self.layers.first()).and_then(|layer| layer.rope.clone()).unwrap_or(Rope::plain(10_000.0));
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
        match rope.scaling {
            RopeScaling::Linear { factor } => {
                keys.push((format!("{arch}.rope.scaling.type"), "linear".into()));
                keys.push(float("rope.scaling.factor", factor));
            }
            RopeScaling::LongRope { attention_factor, context, .. } => {
                keys.push(int("rope.scaling.original_context_length", context));
                keys.push(float("rope.scaling.attn_factor", attention_factor));
            }
            _ => {}
        }
        let caps = [
            ("attn_logit_softcapping", self.attn_logit_softcapping),
            ("final_logit_softcapping", self.final_logit_softcapping),
        ];
        keys.extend(caps.into_iter().filter_map(|(key, cap)| Some(float(key, f64::from(cap?)))));
        if self.architecture == Architecture::Phi3 {
            // Older versions of llama.cpp miss the key, all others leave the window out.
            keys.push(int("attention.sliding_window", 0));
        }
        if let Some((window, period)) = self.gguf_windows() {
            keys.push(int("attention.sliding_window", window));
            keys.push(int("attention.sliding_window_pattern", period as usize));
            let local = self.layers.iter().find(|layer| layer.window.is_some()).and_then(|layer| layer.rope.as_ref());
            let theta = local.filter(|_| self.architecture == Architecture::Gemma3).map(|rope| rope.theta);
            keys.extend(theta.map(|theta| float("rope.freq_base_swa", theta)));
        }
        Ok(keys)
    }

    /// How many tokens a row may have in the GGUF file of this model.
    pub fn gguf_context(&self) -> usize {
        let windows = self.layers.iter().filter_map(|layer| layer.window).filter(|_| !self.architecture.is_gemma());
        windows.fold(self.max_position_embeddings, usize::min)
    }

    /// The tensors that say what frequencies are divided by, where the file must have any.
    pub fn gguf_rope_tensors(&self) -> Vec<(&'static str, Vec<f32>)> {
        let ropes = self.layers.iter().filter_map(|layer| layer.rope.as_ref());
        ropes.map(|rope| rope.gguf_tensors(self.head_dim)).find(|tensors| !tensors.is_empty()).unwrap_or_default()
    }

    /// Gemma's window, and every how manieth layer has none; `None` where no keys are needed, or none can say it.
    fn gguf_windows(&self) -> Option<(usize, u64)> {
        let n = self.layers.len();
        let (usual, always) = match self.architecture {
            Architecture::Gemma2 => (GEMMA2.1, true),
            Architecture::Gemma3 => (GEMMA3_PERIOD, false),
            _ => return None,
        };
        let window = self.layers.iter().find_map(|layer| layer.window);
        let fits = |period: &u64| {
            (0..n).all(|i| self.layers[i].window == window.filter(|_| is_windowed(i, *period)))
                && (window.is_some() || *period == 1)
        };
        let period = [usual].into_iter().chain(1..=n as u64).chain([0]).find(fits)?;
        Some((window.or(always.then_some(self.max_position_embeddings))?, period))
    }

    /// `general.architecture` of this model's GGUF file.
    ///
    /// # Errors
    /// [`ModelError::NoGguf`] when there is none in which llama.cpp would compute this very model.
    pub fn gguf_architecture(&self) -> Result<&'static str> {
        let refused =
            |why: &str| Err(ModelError::NoGguf { architecture: self.architecture.name().into(), why: why.into() });
        let name = self.architecture.gguf_name();
        // Gemma 3 has another rotation where there is a window.
        let two = self.architecture == Architecture::Gemma3;
        let differ = |windowed: bool| {
            let of = self.layers.iter().filter(|layer| !two || layer.window.is_some() == windowed);
            let mut ropes = of.filter_map(|layer| layer.rope.as_ref());
            let first = ropes.next();
            ropes.any(|rope| Some(rope) != first)
        };
        if differ(false) || differ(true) {
            return refused("its layers rotate differently, and the file has no room for that");
        }
        if let Some(why) = self.beyond_gemma().or(self.beyond_phi3()) {
            return refused(&why);
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
        match (self.activation, self.architecture.is_gemma()) {
            (Activation::Silu, false) | (Activation::GeluTanh, true) => Ok(name),
            (Activation::GeluTanh, false) => refused("llama.cpp gates this family by SiLU, this model by GELU"),
            (Activation::Silu, true) => refused("llama.cpp gates this family by GELU, this model by SiLU"),
        }
    }

    /// What of a Gemma llama.cpp would compute otherwise.
    fn beyond_gemma(&self) -> Option<String> {
        if !self.architecture.is_gemma() {
            return None;
        }
        let (gemma2, scalar) = (self.architecture == Architecture::Gemma2, self.query_pre_attn_scalar);
        let sizes = (self.hidden_size, self.num_attention_heads, self.head_dim);
        let served = served_scalar(self.architecture, self.num_hidden_layers, sizes);
        let any_window = self.layers.iter().any(|layer| layer.window.is_some());
        let local = self.layers.iter().find(|layer| layer.window.is_some()).and_then(|layer| layer.rope.as_ref());
        if scalar != served {
            Some(format!("its query_pre_attn_scalar is {scalar}, llama.cpp takes {served} for a model of these sizes"))
        } else if gemma2 && (self.attn_logit_softcapping.is_none() || self.final_logit_softcapping.is_none()) {
            Some("llama.cpp caps scores and logits in this family, this model does not".into())
        } else if gemma2 && !self.tie_word_embeddings {
            Some("its head is its own, and llama.cpp takes the embedding".into())
        } else if any_window && self.gguf_windows().is_none() {
            Some("its layers have windows in an order for which the file has no key".into())
        } else if !gemma2 && local.is_some_and(|rope| rope.scaling != RopeScaling::None) {
            Some("it scales the rotation of layers with a window".into())
        } else {
            None
        }
    }

    /// The same of a Phi-3.
    fn beyond_phi3(&self) -> Option<String> {
        if self.architecture != Architecture::Phi3 {
            return None;
        }
        let heads = self.num_attention_heads * self.head_dim;
        let stretched = self.layers.iter().find_map(|layer| layer.rope.as_ref()?.context());
        match stretched {
            _ if heads != self.hidden_size => {
                Some(format!("its heads are {heads} wide together, and llama.cpp wants {}", self.hidden_size))
            }
            // A longer context than the original one would be computed by the other factors.
            Some(context) if !context.is_multiple_of(CONTEXT_STEP) => Some(format!(
                "its original context is {context}, and llama.cpp makes contexts multiples of {CONTEXT_STEP}"
            )),
            _ => None,
        }
    }
}

/// What llama.cpp divides scores by the square root of, which no key says: Gemma's largest models have a size of their own.
fn served_scalar(
    architecture: Architecture,
    n_layers: usize,
    (hidden_size, heads, head_dim): (usize, usize, usize),
) -> f64 {
    let largest = matches!((architecture, n_layers), (Architecture::Gemma2, 46) | (Architecture::Gemma3, 62));
    (if largest { hidden_size / heads } else { head_dim }) as f64
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

    /// How far rows may go. Phi-3's window is one that llama.cpp does not apply: up to it, a row is what it was trained as.
    fn context(&self, architecture: Architecture) -> Result<usize> {
        let context = self.size("context_length", MAX_POSITIONS, None)?;
        let window = match architecture {
            Architecture::Phi3 => self.whole("attention.sliding_window")?.filter(|window| *window > 0),
            _ => None,
        };
        Ok(window.map_or(context, |window| context.min(usize::try_from(window).unwrap_or(context))))
    }

    /// Each layer's window.
    fn windows(&self, architecture: Architecture, n: usize) -> Result<Vec<Option<usize>>> {
        const KEY: &str = "attention.sliding_window";
        let (window, period) = match architecture {
            Architecture::Gemma2 => (self.size(KEY, MAX_POSITIONS, Some(GEMMA2.0))?, GEMMA2.1),
            Architecture::Gemma3 if self.whole(KEY)?.is_some_and(|window| window > 0) => {
                (self.size(KEY, MAX_POSITIONS, None)?, GEMMA3_PERIOD)
            }
            _ => return Ok(vec![None; n]),
        };
        let period = self.whole("attention.sliding_window_pattern")?.unwrap_or(period);
        Ok((0..n).map(|i| Some(window).filter(|_| is_windowed(i, period))).collect())
    }

    /// Of the scores, and of the logits.
    fn softcaps(&self, architecture: Architecture) -> Result<(Option<f32>, Option<f32>)> {
        let cap = |key: &str, default: Option<f64>| {
            let found = self.number(key)?.or(default).map(|cap| cap as f32);
            Ok::<_, ModelError>(found.filter(|cap| *cap != 0.0))
        };
        Ok(match architecture {
            Architecture::Gemma2 => {
                (cap("attn_logit_softcapping", Some(GEMMA2.2))?, cap("final_logit_softcapping", Some(GEMMA2.3))?)
            }
            Architecture::Gemma3 => (None, cap("final_logit_softcapping", None)?),
            _ => (None, None),
        })
    }

    /// The rotation where there is a window.
    fn local_rope(&self, architecture: Architecture, rope: &Rope) -> Result<Rope> {
        let theta = self.number("rope.freq_base_swa")?;
        Ok(match architecture {
            Architecture::Gemma3 => Rope::plain(theta.unwrap_or(GEMMA3_LOCAL_THETA)),
            Architecture::Gemma2 => Rope { theta: theta.unwrap_or(rope.theta), ..rope.clone() },
            _ => rope.clone(),
        })
    }

    /// A tensor of factors, one a frequency.
    fn factors(&self, name: &str, head_dim: usize) -> Result<Option<Vec<f32>>> {
        let factors = match self.file.tensor(name) {
            Some(info) if info.n_elements() == head_dim as u64 / 2 => self.file.dequantize(info)?,
            Some(_) => return self.wrong(format!("{name} has no factor for each frequency")),
            None => return Ok(None),
        };
        match factors.iter().all(|f| *f > 0.0) {
            true => Ok(Some(factors)),
            false => self.wrong(format!("{name} holds a factor that is not positive")),
        }
    }

    fn rope(&self, head_dim: usize, context: usize) -> Result<Rope> {
        let theta = self.number("rope.freq_base")?.unwrap_or(10_000.0);
        let kind = format!("{}.rope.scaling.type", self.prefix);
        let kind = self.file.get_as(&kind, "a string", Value::as_str)?.unwrap_or("none");
        let factor = self.number("rope.scaling.factor")?;
        let attention_factor = self.number("rope.scaling.attn_factor")?.unwrap_or(1.0);
        let long = (self.factors(ROPE_FACTORS_LONG, head_dim)?, self.factors(ROPE_FACTORS_SHORT, head_dim)?);
        if let ("none" | "longrope", (Some(long), Some(short))) = (kind, long)
            && (attention_factor > 0.0 && attention_factor.is_finite())
            && self.prefix == Architecture::Phi3.gguf_name()
        {
            let original = self.size("rope.scaling.original_context_length", MAX_POSITIONS, Some(context))?;
            let scaling = RopeScaling::LongRope { short, long, attention_factor, context: original };
            return Ok(Rope { theta, scaling });
        }
        if attention_factor != 1.0 {
            let attention_factor = attention_factor as f32;
            return self
                .wrong(format!("rope.scaling.attn_factor {attention_factor} is not supported without longrope"));
        }
        let scaling = match (kind, factor, self.factors(ROPE_FACTORS, head_dim)?) {
            ("none", _, None) => RopeScaling::None,
            ("none", _, Some(factors)) => RopeScaling::Factors(factors),
            ("linear", Some(factor), None) if factor > 0.0 => RopeScaling::Linear { factor },
            _ => {
                let why = "rope scaling '{}' is not supported; known: none, linear with a factor, rope_freqs.weight, and \
                           Phi-3's longrope";
                return self.wrong(why.replace("{}", &shortened(kind, MOST_SHOWN)));
            }
        };
        Ok(Rope { theta, scaling })
    }

    fn whole(&self, key: &str) -> Result<Option<u64>> {
        self.file.get_as(&format!("{}.{key}", self.prefix), "a whole number", Value::as_u64)
    }

    fn refuse_unsupported(&self, architecture: Architecture) -> Result<()> {
        let whole = |key: &str| Ok::<u64, ModelError>(self.whole(key)?.unwrap_or(0));
        if whole("expert_count")? > 0 {
            return self.wrong("mixtures of experts are not supported".into());
        }
        let (window, context) = (whole("attention.sliding_window")?, whole("context_length")?);
        let understood = architecture.is_gemma() || architecture == Architecture::Phi3;
        if window > 0 && window < context && !understood {
            return self.wrong(format!(
                "a sliding window of {window} in a {} file: llama.cpp would not apply it, so what is meant is unclear",
                self.prefix
            ));
        }
        Ok(())
    }
}
