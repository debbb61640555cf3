//! What the families have in common and where they differ, as data: names in the two formats, defaults of the config
//! keys that a file may leave out, and the keys that each understands.

use crate::error::{ModelError, Result};
use std::path::Path;

/// The decoder families that can be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Llama 2, 3, 3.1, 3.2, SmolLM, SmolLM2 and all that share their config.
    Llama,
    /// Llama with a sliding window.
    Mistral,
    /// Llama with layers that do not rotate.
    SmolLm3,
    /// Qwen2 and 2.5: biases on q, k and v.
    Qwen2,
    /// Norms on the heads of q and k.
    Qwen3,
    /// Norms before and after, GeGLU, scaled embedding, soft caps; every other layer has a window.
    Gemma2,
    /// The text model of Gemma 3: Gemma 2 with norms on the heads, two rotations and no soft cap on attention.
    Gemma3,
    /// Llama with q, k, v in one matrix, and gate and up in another.
    Phi3,
}

/// What a family's config means where it says nothing. Source: the classes `*Config` of transformers 5.23.
pub(super) struct Defaults {
    pub head_dim: Option<usize>,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub max_position_embeddings: usize,
    pub tie_word_embeddings: bool,
}

impl Architecture {
    pub const ALL: [Architecture; 8] = [
        Architecture::Llama,
        Architecture::Mistral,
        Architecture::SmolLm3,
        Architecture::Qwen2,
        Architecture::Qwen3,
        Architecture::Gemma2,
        Architecture::Gemma3,
        Architecture::Phi3,
    ];

    /// `model_type` in config.json.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            Architecture::Mistral => "mistral",
            Architecture::SmolLm3 => "smollm3",
            Architecture::Qwen2 => "qwen2",
            Architecture::Qwen3 => "qwen3",
            Architecture::Gemma2 => "gemma2",
            Architecture::Gemma3 => "gemma3_text",
            Architecture::Phi3 => "phi3",
        }
    }

    /// `general.architecture` in GGUF. Mistral is a Llama there.
    pub fn gguf_name(self) -> &'static str {
        match self {
            Architecture::Llama | Architecture::Mistral => "llama",
            Architecture::SmolLm3 => "smollm3",
            Architecture::Qwen2 => "qwen2",
            Architecture::Qwen3 => "qwen3",
            Architecture::Gemma2 => "gemma2",
            Architecture::Gemma3 => "gemma3",
            Architecture::Phi3 => "phi3",
        }
    }

    /// The class that Hugging Face names in `architectures`.
    pub fn hf_class(self) -> &'static str {
        match self {
            Architecture::Llama => "LlamaForCausalLM",
            Architecture::Mistral => "MistralForCausalLM",
            Architecture::SmolLm3 => "SmolLM3ForCausalLM",
            Architecture::Qwen2 => "Qwen2ForCausalLM",
            Architecture::Qwen3 => "Qwen3ForCausalLM",
            Architecture::Gemma2 => "Gemma2ForCausalLM",
            Architecture::Gemma3 => "Gemma3ForCausalLM",
            Architecture::Phi3 => "Phi3ForCausalLM",
        }
    }

    /// Whether the rows of q and k are permuted in GGUF (interleaved against split-half rotation).
    pub fn permutes_qk(self) -> bool {
        matches!(self, Architecture::Llama | Architecture::Mistral | Architecture::SmolLm3)
    }

    pub(super) fn is_gemma(self) -> bool {
        matches!(self, Architecture::Gemma2 | Architecture::Gemma3)
    }

    pub(super) fn defaults(self) -> Defaults {
        let (head_dim, rms_norm_eps, rope_theta, max_position_embeddings, tie_word_embeddings) = match self {
            Architecture::Llama => (None, 1e-6, 1e4, 2048, false),
            Architecture::Mistral => (None, 1e-6, 1e4, 131_072, false),
            Architecture::SmolLm3 => (None, 1e-6, 2e6, 32_768, true),
            Architecture::Qwen2 => (None, 1e-6, 1e4, 32_768, false),
            Architecture::Qwen3 => (Some(128), 1e-6, 1e4, 32_768, false),
            Architecture::Gemma2 => (Some(256), 1e-6, 1e4, 8192, true),
            Architecture::Gemma3 => (Some(256), 1e-6, 1e6, 131_072, true),
            Architecture::Phi3 => (None, 1e-5, 1e4, 4096, false),
        };
        Defaults { head_dim, rms_norm_eps, rope_theta, max_position_embeddings, tie_word_embeddings }
    }

    /// Keys of config.json that this family reads beside those that all do.
    pub(super) fn own_keys(self) -> &'static [&'static str] {
        match self {
            Architecture::Llama => &["attention_bias", "mlp_bias", "head_dim"],
            Architecture::Mistral => &["sliding_window", "head_dim"],
            Architecture::SmolLm3 => &[
                "attention_bias",
                "mlp_bias",
                "head_dim",
                "no_rope_layers",
                "no_rope_layer_interval",
                "use_sliding_window",
                "sliding_window",
                // A family of Qwen's heritage; it decides nothing here.
                "max_window_layers",
                "layer_types",
            ],
            Architecture::Qwen2 => {
                &["head_dim", "use_sliding_window", "sliding_window", "max_window_layers", "layer_types"]
            }
            Architecture::Qwen3 => &[
                "attention_bias",
                "head_dim",
                "use_sliding_window",
                "sliding_window",
                "max_window_layers",
                "layer_types",
            ],
            Architecture::Gemma2 => &[
                "attention_bias",
                "head_dim",
                "hidden_activation",
                "query_pre_attn_scalar",
                "sliding_window",
                "layer_types",
                "attn_logit_softcapping",
                "final_logit_softcapping",
            ],
            // Not attn_logit_softcapping: transformers does not apply it in this family, so a file that sets it is unclear.
            Architecture::Gemma3 => &[
                "attention_bias",
                "head_dim",
                "hidden_activation",
                "query_pre_attn_scalar",
                "sliding_window",
                "sliding_window_pattern",
                "_sliding_window_pattern",
                "layer_types",
                "final_logit_softcapping",
                "rope_local_base_freq",
            ],
            Architecture::Phi3 => &["head_dim", "sliding_window", "original_max_position_embeddings"],
        }
    }

    pub(super) fn of_hf(path: &Path, model_type: &str) -> Result<Self> {
        if model_type == "gemma3" {
            let why = "it is the multimodal Gemma 3; only a text model (model_type gemma3_text) can be run";
            return Err(ModelError::config(path, why));
        }
        let known = || Self::ALL.map(Self::name).join(", ");
        Self::ALL.into_iter().find(|a| a.name() == model_type).ok_or_else(|| unknown(path, model_type, known()))
    }

    pub(super) fn of_gguf(path: &Path, name: &str) -> Result<Self> {
        let mut known = Self::ALL.map(Self::gguf_name).to_vec();
        known.dedup();
        let found = Self::ALL.into_iter().find(|a| a.gguf_name() == name);
        found.ok_or_else(|| unknown(path, name, known.join(", ")))
    }
}

fn unknown(path: &Path, found: &str, known: String) -> ModelError {
    ModelError::UnknownArchitecture { path: path.into(), found: found.chars().take(64).collect(), known }
}
