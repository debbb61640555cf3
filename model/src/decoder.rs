//! A decoder-only transformer of the Llama family over an op set: frozen weights, optional LoRA factors, a forward pass
//! over packed rows. Training, scoring and generation all go through [`Decoder::forward`].

use crate::config::DecoderConfig;
use crate::layout::Packed;
use crate::ops::{AttentionPlan, Frozen, LayerKv, Lora, Ops};
use burn::tensor::Tensor;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// The seven linear layers of a block, by their Hugging Face names.
pub const LINEARS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// `model.layers.{layer}.{linear}`: how PEFT names the module that an adapter sits on.
pub fn module_path(layer: usize, linear: &str) -> String {
    format!("model.layers.{layer}.{linear}")
}

#[derive(Debug, thiserror::Error)]
pub enum DecoderError {
    #[error("the base model's weights: {0}")]
    Weights(String),
    #[error("tensor `{name}` has shape {got:?}, and the config asks for {want:?}; the file does not match its config")]
    Shape { name: String, got: Vec<usize>, want: Vec<usize> },
    #[error("token {token} is outside the vocabulary of {vocab}; tokenizer and weights do not belong together")]
    Token { token: u32, vocab: usize },
    #[error("a row of {len} tokens is longer than the model's context of {max}; shorten it or lower max_seq_length")]
    TooLong { len: usize, max: usize },
    #[error("non-finite values in `{0}`; the weights are damaged")]
    NonFinite(String),
}

/// The LoRA factors that take part in a forward pass, by module path.
pub type LoraSet = BTreeMap<String, Lora>;

struct Layer {
    linears: [Frozen; 7],
    /// Module paths, made once.
    paths: [String; 7],
    input_norm: Arc<Vec<f32>>,
    post_norm: Arc<Vec<f32>>,
}

/// Rotated keys and values of a shared prefix, a layer each.
#[derive(Clone, Debug, Default)]
pub struct KvCache {
    pub layers: Vec<LayerKv>,
    pub len: usize,
}

pub struct Decoder {
    pub config: DecoderConfig,
    ops: Arc<dyn Ops>,
    embed: Frozen,
    layers: Vec<Layer>,
    norm: Arc<Vec<f32>>,
    head: Frozen,
}

/// Gives a tensor by its Hugging Face name: shape and row-major data.
pub type Loader<'a> = dyn FnMut(&str) -> Result<(Vec<usize>, Vec<f32>), DecoderError> + 'a;

impl Decoder {
    /// Loads every weight through `load`; `trains` keeps what the backward pass needs.
    pub fn load(
        config: &DecoderConfig,
        ops: Arc<dyn Ops>,
        trains: bool,
        load: &mut Loader,
    ) -> Result<Self, DecoderError> {
        let c = config;
        let mut tensor = |name: &str, want: &[usize]| -> Result<Vec<f32>, DecoderError> {
            let (got, data) = load(name)?;
            if got != want {
                return Err(DecoderError::Shape { name: name.to_string(), got, want: want.to_vec() });
            }
            if !data.iter().all(|x| x.is_finite()) {
                return Err(DecoderError::NonFinite(name.to_string()));
            }
            Ok(data)
        };
        let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
        let (h, f) = (c.hidden_size, c.intermediate_size);
        let shapes = [(q, h), (kv, h), (kv, h), (h, q), (f, h), (f, h), (h, f)];
        let table = tensor("model.embed_tokens.weight", &[c.vocab_size, h])?;
        let head = match c.tie_word_embeddings {
            true => None,
            false => Some(tensor("lm_head.weight", &[c.vocab_size, h])?),
        };
        let embed = ops.freeze(table, c.vocab_size, h, trains);
        let head = match head {
            None => embed.clone(),
            Some(head) => ops.freeze(head, c.vocab_size, h, trains),
        };
        let mut layers = Vec::with_capacity(c.num_hidden_layers);
        for i in 0..c.num_hidden_layers {
            let paths = LINEARS.map(|l| module_path(i, l));
            let mut linears = Vec::with_capacity(7);
            for (path, (n_out, n_in)) in paths.iter().zip(shapes) {
                let data = tensor(&format!("{path}.weight"), &[n_out, n_in])?;
                linears.push(ops.freeze(data, n_out, n_in, trains));
            }
            let Ok(linears) = linears.try_into() else { unreachable!("seven shapes give seven matrices") };
            let norm = |name: &str| format!("model.layers.{i}.{name}.weight");
            layers.push(Layer {
                linears,
                paths,
                input_norm: Arc::new(tensor(&norm("input_layernorm"), &[h])?),
                post_norm: Arc::new(tensor(&norm("post_attention_layernorm"), &[h])?),
            });
        }
        let norm = Arc::new(tensor("model.norm.weight", &[h])?);
        Ok(Decoder { config: c.clone(), ops, embed, layers, norm, head })
    }

    /// From a folder or GGUF file, as `weights` reads it.
    pub fn from_weights(
        weights: &crate::weights::Weights,
        ops: Arc<dyn Ops>,
        trains: bool,
    ) -> Result<Self, DecoderError> {
        Decoder::load(weights.config(), ops, trains, &mut |name| {
            let dense = weights.load(name).map_err(|e| DecoderError::Weights(e.to_string()))?;
            Ok((dense.shape, dense.data))
        })
    }

    pub fn ops(&self) -> &Arc<dyn Ops> {
        &self.ops
    }

    pub fn head(&self) -> &Frozen {
        &self.head
    }

    /// The shape `(n_out, n_in)` of a linear layer.
    pub fn linear_shape(&self, layer: usize, linear: usize) -> (usize, usize) {
        let frozen = &self.layers[layer].linears[linear];
        (frozen.n_out, frozen.n_in)
    }

    /// Parameters of the base, tied head counted once.
    pub fn parameters(&self) -> u64 {
        let matrices = self.layers.iter().flat_map(|l| l.linears.iter()).map(|m| (m.n_out * m.n_in) as u64);
        let norms = (self.layers.len() * 2 + 1) as u64 * self.config.hidden_size as u64;
        let table = (self.embed.n_out * self.embed.n_in) as u64;
        let head = if self.config.tie_word_embeddings { 0 } else { table };
        matrices.sum::<u64>() + norms + table + head
    }

    fn check(&self, batch: &Packed) -> Result<(), DecoderError> {
        let vocab = self.config.vocab_size;
        if let Some(&token) = batch.tokens.iter().find(|&&t| t as usize >= vocab) {
            return Err(DecoderError::Token { token, vocab });
        }
        let max = self.config.max_position_embeddings;
        match batch.positions.iter().max() {
            Some(&last) if last as usize >= max => Err(DecoderError::TooLong { len: last as usize + 1, max }),
            _ => Ok(()),
        }
    }

    /// Hidden states after the final norm, `[tokens, hidden]`; with `capture`, also each layer's keys and values.
    pub fn forward(
        &self,
        batch: &Arc<Packed>,
        lora: Option<&LoraSet>,
        past: Option<&KvCache>,
        capture: Option<&mut KvCache>,
    ) -> Result<Tensor<2>, DecoderError> {
        let hidden = self.embed(batch)?;
        let hidden = self.run_layers(hidden, 0..self.layers.len(), batch, lora, past, capture);
        Ok(self.finish(hidden))
    }

    /// What goes into the first layer: `[tokens, hidden]`.
    ///
    /// # Errors
    /// When a token is outside the vocabulary or a row is longer than the context.
    pub fn embed(&self, batch: &Packed) -> Result<Tensor<2>, DecoderError> {
        self.check(batch)?;
        Ok(self.ops.embed(&self.embed, &batch.tokens))
    }

    /// The layers of `range`, from what goes into the first of them to what comes out of the last, before the final
    /// norm. A `capture` is filled from the range's layers only.
    pub fn run_layers(
        &self,
        mut hidden: Tensor<2>,
        range: Range<usize>,
        batch: &Arc<Packed>,
        lora: Option<&LoraSet>,
        past: Option<&KvCache>,
        mut capture: Option<&mut KvCache>,
    ) -> Tensor<2> {
        let c = &self.config;
        let plan =
            AttentionPlan::new(c.num_attention_heads, c.num_key_value_heads, c.head_dim, c.rope_theta, batch.clone());
        let eps = c.rms_norm_eps as f32;
        let ops = &self.ops;
        for (i, layer) in self.layers.iter().enumerate().take(range.end).skip(range.start) {
            let linear = |x: Tensor<2>, which: usize| {
                ops.linear(x, &layer.linears[which], lora.and_then(|set| set.get(&layer.paths[which])))
            };
            let x = ops.rms_norm(hidden.clone(), &layer.input_norm, eps);
            let (q, k, v) = (linear(x.clone(), 0), linear(x.clone(), 1), linear(x, 2));
            if let Some(cache) = capture.as_deref_mut() {
                cache.layers.push(LayerKv { keys: ops.rotate_keys(k.clone(), &plan), values: v.clone() });
            }
            let attended = ops.attention(q, k, v, &plan, past.and_then(|p| p.layers.get(i)));
            hidden = ops.add(hidden, linear(attended, 3));
            let x = ops.rms_norm(hidden.clone(), &layer.post_norm, eps);
            let (gate, up) = (linear(x.clone(), 4), linear(x, 5));
            hidden = ops.add(hidden, linear(ops.swiglu(gate, up), 6));
        }
        if let Some(cache) = capture {
            cache.len = past.map_or(0, |p| p.len) + batch.len();
        }
        hidden
    }

    /// The final norm: what the head and the loss take.
    pub fn finish(&self, hidden: Tensor<2>) -> Tensor<2> {
        self.ops.rms_norm(hidden, &self.norm, self.config.rms_norm_eps as f32)
    }

    /// Runs `tokens` once and keeps their keys and values, to be the prefix of later rows.
    pub fn cache(&self, tokens: &[u32], lora: Option<&LoraSet>) -> Result<KvCache, DecoderError> {
        let mut cache = KvCache::default();
        if tokens.is_empty() {
            return Ok(cache);
        }
        let mut batch = Packed::new();
        batch.push_chain(tokens, 0);
        self.forward(&Arc::new(batch), lora, None, Some(&mut cache))?;
        Ok(cache)
    }

    /// Log-probabilities over the whole vocabulary after each token of one causal row: `[tokens][vocabulary]`.
    pub fn log_probs(&self, tokens: &[u32], lora: Option<&LoraSet>) -> Result<Vec<Vec<f32>>, DecoderError> {
        let mut batch = Packed::new();
        batch.push_chain(tokens, 0);
        let hidden = self.forward(&Arc::new(batch), lora, None, None)?;
        let rows: Vec<usize> = (0..tokens.len()).collect();
        let logits = self.ops.logits(&hidden, &self.head, &rows);
        Ok(logits.chunks_exact(self.config.vocab_size).map(log_softmax).collect())
    }
}

/// `x - logsumexp(x)`, summed in f64.
pub fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| ((x - max) as f64).exp()).sum();
    let log_sum = max as f64 + sum.ln();
    logits.iter().map(|&x| (x as f64 - log_sum) as f32).collect()
}
