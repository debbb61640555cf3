//! What a decoder is built from: sizes, and what its layers have, as data that one forward pass reads. It comes from a
//! Hugging Face `config.json` or from GGUF metadata, and is checked before anyone allocates by it.

mod family;
mod gguf;
mod hf;
mod rope;

pub use family::Architecture;
pub use rope::{ROPE_FACTORS, Rope, RopeScaling};

use crate::error::{ModelError, Result};
use std::ops::Range;
use std::path::Path;

const MAX_CONFIG_BYTES: u64 = 1 << 20;
const MAX_LAYERS: u64 = 512;
const MAX_HEADS: u64 = 1024;
const MAX_WIDTH: u64 = 1 << 18;
const MAX_VOCAB: u64 = 1 << 22;
const MAX_POSITIONS: u64 = 1 << 24;

/// The linear modules of a layer, by their Hugging Face names.
pub const LINEARS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// The same where q, k, v and gate, up are one matrix each.
const FUSED_LINEARS: [&str; 4] = ["self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"];

/// What gates the feed-forward: `f(gate) · up`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    Silu,
    /// GELU by its tanh formula.
    GeluTanh,
}

/// What may differ from layer to layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerConfig {
    /// `None`: queries and keys are not rotated.
    pub rope: Option<Rope>,
    /// How many tokens a token sees, itself among them; `None` is all before it.
    pub window: Option<usize>,
}

impl LayerConfig {
    pub fn plain(rope_theta: f64) -> Self {
        LayerConfig { rope: Some(Rope::plain(rope_theta)), window: None }
    }
}

/// One of a layer's seven projections: the rows of a module's output that it gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Projection {
    pub module: &'static str,
    pub rows: Range<usize>,
    pub n_in: usize,
}

/// The sizes and parts of a decoder, in the words of Hugging Face's config.json.
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
    pub max_position_embeddings: usize,
    /// The head is the embedding; there is no `lm_head.weight`.
    pub tie_word_embeddings: bool,
    /// One for each layer.
    pub layers: Vec<LayerConfig>,
    pub qkv_bias: bool,
    pub o_bias: bool,
    pub mlp_bias: bool,
    /// An RMSNorm over each head of q and of k, in front of the rotation.
    pub head_norms: bool,
    /// A norm also behind attention and feed-forward, in front of the residual sum.
    pub post_norms: bool,
    /// Added to a norm's stored weight: 1 where the files hold the distance from 1.
    pub norm_offset: f32,
    pub activation: Activation,
    /// Scores are divided by its square root; `head_dim` unless a family says otherwise.
    pub query_pre_attn_scalar: f64,
    /// `c · tanh(score / c)` in front of the mask.
    pub attn_logit_softcapping: Option<f32>,
    /// The same for the logits.
    pub final_logit_softcapping: Option<f32>,
    /// Multiplies the rows of the embedding, not those of a head that is tied to it.
    pub embedding_scale: Option<f32>,
    /// q, k, v are one module, gate and up another; adapters sit on these, as PEFT's do.
    pub fused_projections: bool,
}

impl DecoderConfig {
    /// The linear modules of a layer: what an adapter can sit on.
    pub fn linears(&self) -> &'static [&'static str] {
        if self.fused_projections { &FUSED_LINEARS } else { &LINEARS }
    }

    /// The seven projections in the order of [`LINEARS`].
    pub fn projections(&self) -> [Projection; 7] {
        let (q, kv) = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        let (h, f) = (self.hidden_size, self.intermediate_size);
        let at = |module, rows: Range<usize>, n_in| Projection { module, rows, n_in };
        let [qkv, o, gate_up, down] = FUSED_LINEARS;
        match self.fused_projections {
            false => {
                let [q_proj, k_proj, v_proj, o_proj, gate, up, down] = LINEARS;
                [
                    at(q_proj, 0..q, h),
                    at(k_proj, 0..kv, h),
                    at(v_proj, 0..kv, h),
                    at(o_proj, 0..h, q),
                    at(gate, 0..f, h),
                    at(up, 0..f, h),
                    at(down, 0..h, f),
                ]
            }
            true => [
                at(qkv, 0..q, h),
                at(qkv, q..q + kv, h),
                at(qkv, q + kv..q + 2 * kv, h),
                at(o, 0..h, q),
                at(gate_up, 0..f, h),
                at(gate_up, f..2 * f, h),
                at(down, 0..h, f),
            ],
        }
    }

    /// `(n_out, n_in)` of a linear module.
    pub fn linear_shape(&self, module: &str) -> (usize, usize) {
        let parts = self.projections().into_iter().filter(|p| p.module == module);
        parts.fold((0, 0), |(n_out, _), p| (n_out.max(p.rows.end), p.n_in))
    }

    pub fn has_bias(&self, module: &str) -> bool {
        match module {
            "self_attn.o_proj" => self.o_bias,
            attention if attention.starts_with("self_attn.") => self.qkv_bias,
            _ => self.mlp_bias,
        }
    }

    /// The modules that `target_modules` means, sorted: a short name each, as PEFT takes them. Where a family has q, k
    /// and v in one module, each of their names means that one, and likewise gate and up.
    ///
    /// # Errors
    /// The names that are no linear module of this family.
    pub fn resolve_targets(&self, target_modules: &[String]) -> Result<Vec<String>, Vec<String>> {
        let short = |module: &str| module.rsplit('.').next().unwrap_or(module).to_owned();
        let known: Vec<String> = self.linears().iter().map(|m| short(m)).collect();
        let (mut found, mut unknown) = (Vec::new(), Vec::new());
        for target in target_modules {
            let fused = || LINEARS.iter().zip(self.projections()).find(|(plain, _)| short(plain) == *target);
            match known.contains(target) {
                true => found.push(target.clone()),
                false => match fused() {
                    Some((_, projection)) => found.push(short(projection.module)),
                    None => unknown.push(target.clone()),
                },
            }
        }
        found.sort();
        found.dedup();
        if unknown.is_empty() { Ok(found) } else { Err(unknown) }
    }

    /// Every weight by its Hugging Face name, with its `[out, in]` shape: what a file must hold to be this decoder.
    pub fn tensor_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let d = self.hidden_size;
        let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, d])];
        for layer in 0..self.num_hidden_layers {
            let mut add = |name: String, shape| shapes.push((format!("model.layers.{layer}.{name}"), shape));
            let (attention, mlp): (Vec<_>, Vec<_>) =
                self.linears().iter().partition(|module| module.starts_with("self_attn."));
            add("input_layernorm.weight".into(), vec![d]);
            let linear = |module: &str, add: &mut dyn FnMut(String, Vec<usize>)| {
                let (n_out, n_in) = self.linear_shape(module);
                add(format!("{module}.weight"), vec![n_out, n_in]);
                if self.has_bias(module) {
                    add(format!("{module}.bias"), vec![n_out]);
                }
            };
            attention.into_iter().for_each(|module| linear(module, &mut add));
            if self.head_norms {
                add("self_attn.q_norm.weight".into(), vec![self.head_dim]);
                add("self_attn.k_norm.weight".into(), vec![self.head_dim]);
            }
            add("post_attention_layernorm.weight".into(), vec![d]);
            if self.post_norms {
                add("pre_feedforward_layernorm.weight".into(), vec![d]);
            }
            mlp.into_iter().for_each(|module| linear(module, &mut add));
            if self.post_norms {
                add("post_feedforward_layernorm.weight".into(), vec![d]);
            }
        }
        shapes.push(("model.norm.weight".into(), vec![d]));
        if !self.tie_word_embeddings {
            shapes.push(("lm_head.weight".into(), vec![self.vocab_size, d]));
        }
        shapes
    }

    /// How many weights it has; a tied head counts once.
    pub fn parameters(&self) -> u64 {
        self.tensor_shapes().iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum()
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
        for rope in self.layers.iter().filter_map(|layer| layer.rope.as_ref()) {
            if !(rope.theta >= 1.0 && rope.theta <= 1e12) {
                return wrong(format!("rope_theta {} is not within 1 and 1e12", rope.theta));
            }
        }
        if self.layers.len() != self.num_hidden_layers || self.layers.iter().any(|l| l.window == Some(0)) {
            return wrong("its layers' kinds contradict num_hidden_layers, or a window is 0".into());
        }
        if !(self.query_pre_attn_scalar > 0.0 && self.query_pre_attn_scalar < 1e9) {
            return wrong(format!("query_pre_attn_scalar {} is not usable", self.query_pre_attn_scalar));
        }
        let caps = [self.attn_logit_softcapping, self.final_logit_softcapping];
        if caps.into_iter().flatten().any(|cap| !(cap > 0.0 && cap.is_finite())) {
            return wrong("a soft cap is not a positive number".into());
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
