//! A decoder-only transformer over an op set: frozen weights, optional LoRA factors, one forward pass over packed rows for
//! every family, which reads what a layer has from its config. Training, scoring and generation go through it.

use crate::attending::Attending;
pub use crate::config::LINEARS;
use crate::config::{Activation, DecoderConfig, LayerConfig, Rope};
use crate::fault::DeviceFault;
use crate::layout::Packed;
use crate::ops::blocks::Blocks;
use crate::ops::codes::{Codes, QuantizeBase};
use crate::ops::dora::row_squares;
use crate::ops::{AttentionPlan, Block, Frozen, GrowingKv, LayerKv, Lora, Ops, Rotation};
pub use crate::parts::TensorSet;
use crate::parts::{Loaded, Norm, Parts, Trained};
use crate::weights::Weights;
use burn::tensor::Tensor;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

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
    #[error(transparent)]
    Device(#[from] DeviceFault),
    #[error("the adapter sits on `{module}`, which this base does not have; was it trained on another?")]
    Adapter { module: String },
}

/// The LoRA factors that take part in a forward pass, by module path.
pub type LoraSet = BTreeMap<String, Lora>;

/// One of a layer's seven linear maps.
struct Projection {
    weight: Frozen,
    /// The module that an adapter sits on, made once.
    path: String,
    /// The rows of the module's output that this one gives, where several share the module.
    rows: Option<Range<usize>>,
}

impl Projection {
    /// The factors of the module's adapter, cut to this projection's rows.
    fn lora(&self, set: Option<&LoraSet>) -> Option<Lora> {
        let lora = set?.get(&self.path)?;
        Some(match &self.rows {
            None => lora.clone(),
            Some(rows) => {
                let b = lora.b.clone().narrow(0, rows.start, rows.len());
                Lora { b, dora: lora.dora.as_ref().map(|dora| dora.rows(rows)), ..lora.clone() }
            }
        })
    }
}

/// Norms that not every family has are `None`.
struct Layer {
    projections: [Projection; 7],
    input_norm: Norm,
    /// Over each head of queries and keys.
    head_norms: Option<[Norm; 2]>,
    /// Behind attention, in front of the residual sum.
    attention_post_norm: Option<Norm>,
    /// In front of the feed-forward.
    mlp_norm: Norm,
    mlp_post_norm: Option<Norm>,
}

impl Layer {
    /// The layer as one op, where it is of the plain kind and frozen.
    fn block<'a>(&'a self, c: &DecoderConfig, lora: Option<&LoraSet>, checkpoint: bool) -> Option<Block<'a>> {
        let plain = self.attention_post_norm.is_none()
            && self.mlp_post_norm.is_none()
            && matches!(c.activation, Activation::Silu);
        let (true, Norm::Frozen(input_norm), Norm::Frozen(post_norm)) = (plain, &self.input_norm, &self.mlp_norm)
        else {
            return None;
        };
        let head_norms = match &self.head_norms {
            None => None,
            Some([Norm::Frozen(q), Norm::Frozen(k)]) => Some([q, k]),
            Some(_) => return None,
        };
        Some(Block {
            linears: self.projections.each_ref().map(|p| &p.weight),
            lora: self.projections.each_ref().map(|p| p.lora(lora)),
            input_norm,
            head_norms,
            post_norm,
            eps: c.rms_norm_eps as f32,
            checkpoint,
        })
    }
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
    norm: Norm,
    head: Frozen,
    checkpoint: bool,
    quantized: QuantizeBase,
}

/// Gives a tensor by its Hugging Face name: shape and row-major data.
pub type Loader<'a> = dyn FnMut(&str) -> Result<(Vec<usize>, Vec<f32>), DecoderError> + 'a;

/// Gives the blocks of a matrix that is to be multiplied as it is stored.
pub type BlocksLoader<'a> = dyn FnMut(&str) -> Result<Option<Blocks>, DecoderError> + 'a;

/// Gives the codes of a layer's matrix where it is stored in them.
pub type CodesLoader<'a> = dyn FnMut(&str) -> Result<Option<Codes>, DecoderError> + 'a;

impl Decoder {
    /// Loads every weight through `load`; `trains` keeps what the backward pass needs.
    pub fn load(
        config: &DecoderConfig,
        ops: Arc<dyn Ops>,
        trains: bool,
        load: &mut Loader,
    ) -> Result<Self, DecoderError> {
        Decoder::load_quantized(config, ops, trains, QuantizeBase::None, load, &mut |_| Ok(None))
    }

    /// The same, the layers' linear maps kept as codes; embedding and head in one bfloat16 copy, as QLoRA has them, and norms
    /// as they are. A matrix is loaded, quantized and let go before the next. `stored` is asked first, for a module that is
    /// one matrix.
    pub fn load_quantized(
        config: &DecoderConfig,
        ops: Arc<dyn Ops>,
        trains: bool,
        quantize: QuantizeBase,
        load: &mut Loader,
        stored: &mut CodesLoader,
    ) -> Result<Self, DecoderError> {
        let held = ops.clone();
        let norm_offset = config.norm_offset;
        let blocks = &mut |_: &str| Ok(None);
        let mut parts = Loaded { load, stored, blocks, ops: held.as_ref(), trains, quantize, norm_offset };
        let decoder = Self::of(config, ops, &mut parts)?;
        Ok(Decoder { quantized: quantize, ..decoder })
    }

    /// A decoder over tensors that take gradients, for one forward and one backward pass: what of its parts is worked out
    /// from them (the rows of a fused module) belongs to that pass's graph.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape; vectors are `[1, n]`.
    pub fn trained(config: &DecoderConfig, ops: Arc<dyn Ops>, tensors: &TensorSet) -> Result<Self, DecoderError> {
        Self::of(config, ops, &mut Trained { tensors, norm_offset: config.norm_offset })
    }

    fn of(c: &DecoderConfig, ops: Arc<dyn Ops>, parts: &mut dyn Parts) -> Result<Self, DecoderError> {
        let h = c.hidden_size;
        let embed = parts.matrix("model.embed_tokens.weight", c.vocab_size, h)?;
        let head = match c.tie_word_embeddings {
            true => embed.clone(),
            false => parts.matrix("lm_head.weight", c.vocab_size, h)?,
        };
        let layers = (0..c.num_hidden_layers).map(|i| load_layer(c, i, parts)).collect::<Result<_, _>>()?;
        let norm = parts.norm("model.norm.weight", h)?;
        let head = head.with_softcap(c.final_logit_softcapping);
        Ok(Decoder {
            config: c.clone(),
            ops,
            embed,
            layers,
            norm,
            head,
            checkpoint: false,
            quantized: QuantizeBase::None,
        })
    }

    /// Keep each layer's input only, and run it again in the backward pass: a third more work for a fraction of the memory,
    /// and the same bits. Layers that the op set has no single op for keep what they keep; a trainer runs those again itself.
    pub fn with_checkpointing(self, checkpoint: bool) -> Self {
        Decoder { checkpoint, ..self }
    }

    /// From a folder or GGUF file, as `weights` reads it.
    pub fn from_weights(weights: &Weights, ops: Arc<dyn Ops>, trains: bool) -> Result<Self, DecoderError> {
        Decoder::from_weights_quantized(weights, ops, trains, QuantizeBase::None)
    }

    /// The same as [`Decoder::load_quantized`]; what a GGUF file stores in the form asked for is taken as it is.
    pub fn from_weights_quantized(
        weights: &Weights,
        ops: Arc<dyn Ops>,
        trains: bool,
        quantize: QuantizeBase,
    ) -> Result<Self, DecoderError> {
        let wrong = |e: crate::ModelError| DecoderError::Weights(e.to_string());
        let mut load = |name: &str| weights.load(name).map(|dense| (dense.shape, dense.data)).map_err(wrong);
        let mut stored = |name: &str| weights.codes(name, quantize).map_err(wrong);
        Decoder::load_quantized(weights.config(), ops, trains, quantize, &mut load, &mut stored)
    }

    /// From a quantized GGUF file, for inference as llama.cpp serves it: the file's blocks are multiplied as they are, with
    /// activations rounded to int8 in front of them. What [`Weights::is_served`] answers for.
    pub fn served(weights: &Weights, ops: Arc<dyn Ops>) -> Result<Self, DecoderError> {
        let wrong = |e: crate::ModelError| DecoderError::Weights(e.to_string());
        let held = ops.clone();
        let mut parts = Loaded {
            load: &mut |name| weights.load(name).map(|dense| (dense.shape, dense.data)).map_err(wrong),
            stored: &mut |_| Ok(None),
            blocks: &mut |name| weights.blocks(name).map_err(wrong),
            ops: held.as_ref(),
            trains: false,
            quantize: QuantizeBase::None,
            norm_offset: weights.config().norm_offset,
        };
        Self::of(weights.config(), ops, &mut parts)
    }

    /// How the layers' linear maps are kept.
    pub fn quantized(&self) -> QuantizeBase {
        self.quantized
    }

    /// Memory of the frozen matrices: those of the layers, then embedding and head, which count once where they are one.
    pub fn base_bytes(&self) -> [u64; 2] {
        let projections = self.layers.iter().flat_map(|layer| &layer.projections);
        let head = if self.config.tie_word_embeddings { 0 } else { self.head.bytes() };
        [projections.map(|p| p.weight.bytes() as u64).sum(), (self.embed.bytes() + head) as u64]
    }

    pub fn checkpointing(&self) -> bool {
        self.checkpoint
    }

    /// Whether each layer is one op, as long as nothing of it is dropped.
    pub fn has_single_ops(&self) -> bool {
        self.ops.has_layer() && self.layers.iter().all(|layer| layer.block(&self.config, None, false).is_some())
    }

    pub fn ops(&self) -> &Arc<dyn Ops> {
        &self.ops
    }

    pub fn head(&self) -> &Frozen {
        &self.head
    }

    /// The shape `(n_out, n_in)` of a layer's linear module, counted as [`DecoderConfig::linears`] lists them.
    pub fn linear_shape(&self, _layer: usize, linear: usize) -> (usize, usize) {
        self.config.linear_shape(self.config.linears()[linear])
    }

    /// Norms of the rows of the module at `path`, as its weight is held here: where DoRA's magnitudes begin. Empty where
    /// there is no such module.
    pub fn row_norms(&self, path: &str) -> Vec<f32> {
        let parts = self.layers.iter().flat_map(|layer| &layer.projections).filter(|p| p.path == path);
        parts.flat_map(|p| row_squares(self.ops.as_ref(), &p.weight)).map(|square| square.sqrt() as f32).collect()
    }

    /// Parameters of the base, tied head counted once.
    pub fn parameters(&self) -> u64 {
        self.config.parameters()
    }

    pub(crate) fn check_adapter(&self, lora: Option<&LoraSet>) -> Result<(), DecoderError> {
        let Some(set) = lora else { return Ok(()) };
        let own: BTreeSet<&str> =
            self.layers.iter().flat_map(|layer| &layer.projections).map(|p| p.path.as_str()).collect();
        match set.keys().find(|module| !own.contains(module.as_str())) {
            Some(module) => Err(DecoderError::Adapter { module: module.clone() }),
            None => Ok(()),
        }
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

    /// Each layer's attention over a batch; layers that rotate alike share their angles.
    pub(crate) fn plans(&self, batch: &Arc<Packed>) -> Vec<AttentionPlan> {
        let c = &self.config;
        let segments = Arc::new(batch.segments());
        let mut rotations: Vec<(&Rope, Rotation)> = Vec::new();
        let mut rotation = |rope| match rotations.iter().find(|(known, _)| *known == rope) {
            Some((_, rotation)) => rotation.clone(),
            None => {
                let made = Rotation::new(rope, c.head_dim, &batch.positions);
                rotations.push((rope, made.clone()));
                made
            }
        };
        let plan = |layer: &LayerConfig, rotation| AttentionPlan {
            n_heads: c.num_attention_heads,
            n_kv_heads: c.num_key_value_heads,
            head_dim: c.head_dim,
            batch: batch.clone(),
            segments: segments.clone(),
            rotation,
            scale: 1.0 / (c.query_pre_attn_scalar as f32).sqrt(),
            softcap: c.attn_logit_softcapping,
            window: layer.window,
        };
        c.layers.iter().map(|layer| plan(layer, layer.rope.as_ref().map(&mut rotation))).collect()
    }

    /// Hidden states after the final norm, `[tokens, hidden]`; with `capture`, also each layer's keys and values.
    pub fn forward(
        &self,
        batch: &Arc<Packed>,
        lora: Option<&LoraSet>,
        past: Option<&KvCache>,
        capture: Option<&mut KvCache>,
    ) -> Result<Tensor<2>, DecoderError> {
        self.check_adapter(lora)?;
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
        let hidden = self.ops.embed(&self.embed, &batch.tokens);
        Ok(match self.config.embedding_scale {
            Some(scale) => hidden * scale,
            None => hidden,
        })
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
        let ops = &self.ops;
        let layers = self.layers.iter().zip(self.plans(batch)).enumerate();
        for (i, (layer, plan)) in layers.take(range.end).skip(range.start) {
            if past.is_none()
                && capture.is_none()
                && let Some(block) = layer.block(&self.config, lora, self.checkpoint)
                && let Some(out) = ops.layer(hidden.clone(), &block, &plan)
            {
                hidden = out;
                continue;
            }
            hidden = self.run_layer(i, hidden, lora, |[q, k, v]| {
                if let Some(cache) = capture.as_deref_mut() {
                    cache.layers.push(LayerKv { keys: ops.rotate_keys(k.clone(), &plan), values: v.clone() });
                }
                ops.attention(q, k, v, &plan, past.and_then(|p| p.layers.get(i)))
            });
        }
        if let Some(cache) = capture {
            cache.len = past.map_or(0, |p| p.len) + batch.len();
        }
        hidden
    }

    /// A layer composed of single ops; `attend` makes of queries, keys and values what attention gives.
    pub(crate) fn run_layer(
        &self,
        i: usize,
        hidden: Tensor<2>,
        lora: Option<&LoraSet>,
        attend: impl FnOnce([Tensor<2>; 3]) -> Tensor<2>,
    ) -> Tensor<2> {
        let linear = |x: Tensor<2>, which: usize| {
            let projection = &self.layers[i].projections[which];
            self.ops.linear(x, &projection.weight, projection.lora(lora).as_ref())
        };
        self.run_layer_by(i, hidden, linear, attend)
    }

    /// A layer of chains that grow as one op, where the op set has one for it.
    pub(crate) fn layer_growing(
        &self,
        i: usize,
        hidden: &Tensor<2>,
        lora: Option<&LoraSet>,
        plan: &AttentionPlan,
        shared: &GrowingKv,
        rows: &mut [&mut GrowingKv],
    ) -> Option<Tensor<2>> {
        let block = self.layers[i].block(&self.config, lora, false)?;
        self.ops.layer_growing(hidden, &block, plan, shared, rows)
    }

    /// One of a layer's linear maps, by its number in [`LINEARS`].
    pub(crate) fn projection(&self, layer: usize, which: usize) -> &Frozen {
        &self.layers[layer].projections[which].weight
    }

    /// The same, with `linear` in the place of the layer's own maps; it is told which of [`LINEARS`] is asked for.
    pub(crate) fn run_layer_by(
        &self,
        i: usize,
        hidden: Tensor<2>,
        mut linear: impl FnMut(Tensor<2>, usize) -> Tensor<2>,
        attend: impl FnOnce([Tensor<2>; 3]) -> Tensor<2>,
    ) -> Tensor<2> {
        let (c, ops, layer) = (&self.config, &self.ops, &self.layers[i]);
        let eps = c.rms_norm_eps as f32;
        let normed = |x: Tensor<2>, norm: &Norm| norm.apply(ops.as_ref(), x, eps);
        let optional_norm = |x: Tensor<2>, norm: &Option<Norm>| match norm {
            None => x,
            Some(norm) => normed(x, norm),
        };
        let x = normed(hidden.clone(), &layer.input_norm);
        let (q, k, v) = (linear(x.clone(), 0), linear(x.clone(), 1), linear(x, 2));
        let [q, k] = self.head_normed(layer, [q, k]);
        let attended = linear(attend([q, k, v]), 3);
        let hidden = ops.add(hidden, optional_norm(attended, &layer.attention_post_norm));
        let x = normed(hidden.clone(), &layer.mlp_norm);
        let (gate, up) = (linear(x.clone(), 4), linear(x, 5));
        let gated = match c.activation {
            Activation::Silu => ops.swiglu(gate, up),
            Activation::GeluTanh => ops.geglu(gate, up),
        };
        ops.add(hidden, optional_norm(linear(gated, 6), &layer.mlp_post_norm))
    }

    /// Queries and keys behind the norms over their heads, where the family has them.
    fn head_normed(&self, layer: &Layer, qk: [Tensor<2>; 2]) -> [Tensor<2>; 2] {
        let Some([q_norm, k_norm]) = &layer.head_norms else { return qk };
        let d = self.config.head_dim;
        let by_head = |x: Tensor<2>, norm: &Norm| {
            let [n, width] = x.dims();
            let heads = x.reshape([n * width / d, d]);
            norm.apply(self.ops.as_ref(), heads, self.config.rms_norm_eps as f32).reshape([n, width])
        };
        let [q, k] = qk;
        [by_head(q, q_norm), by_head(k, k_norm)]
    }

    /// How a layer attends over what goes into it: its queries and keys, worked out apart from the layer itself.
    pub fn attending(&self, i: usize, input: Tensor<2>, batch: &Arc<Packed>, lora: Option<&LoraSet>) -> Attending {
        let layer = &self.layers[i];
        let x = layer.input_norm.apply(self.ops.as_ref(), input, self.config.rms_norm_eps as f32);
        let linear =
            |projection: &Projection| self.ops.linear(x.clone(), &projection.weight, projection.lora(lora).as_ref());
        let [q, k] = self.head_normed(layer, [linear(&layer.projections[0]), linear(&layer.projections[1])]);
        Attending { q, k, plan: self.plans(batch).swap_remove(i) }
    }

    /// The final norm: what the head and the loss take.
    pub fn finish(&self, hidden: Tensor<2>) -> Tensor<2> {
        self.norm.apply(self.ops.as_ref(), hidden, self.config.rms_norm_eps as f32)
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

fn load_layer(c: &DecoderConfig, layer: usize, parts: &mut dyn Parts) -> Result<Layer, DecoderError> {
    let mut projections = Vec::with_capacity(7);
    for module in c.linears() {
        let path = module_path(layer, module);
        let rows: Vec<Range<usize>> =
            c.projections().into_iter().filter(|p| p.module == *module).map(|p| p.rows).collect();
        let fused = rows.len() > 1;
        let weights = parts.module(&path, c.linear_shape(module), c.has_bias(module), &rows)?;
        let projection = |(weight, rows): (Frozen, Range<usize>)| {
            let rows = fused.then_some(rows);
            Projection { weight, path: path.clone(), rows }
        };
        projections.extend(weights.into_iter().zip(rows).map(projection));
    }
    // Modules come in the order of their projections, fused or not.
    let Ok(projections) = projections.try_into() else { unreachable!("the modules of a layer give seven projections") };
    let mut norm = |name: &str, n: usize| parts.norm(&format!("model.layers.{layer}.{name}.weight"), n);
    let (h, d) = (c.hidden_size, c.head_dim);
    // Hugging Face's post_attention_layernorm is behind attention only where a family has norms there.
    let (attention_post_norm, mlp_norm, mlp_post_norm) = match c.post_norms {
        false => (None, norm("post_attention_layernorm", h)?, None),
        true => (
            Some(norm("post_attention_layernorm", h)?),
            norm("pre_feedforward_layernorm", h)?,
            Some(norm("post_feedforward_layernorm", h)?),
        ),
    };
    Ok(Layer {
        projections,
        attention_post_norm,
        mlp_norm,
        mlp_post_norm,
        head_norms: match c.head_norms {
            true => Some([norm("self_attn.q_norm", d)?, norm("self_attn.k_norm", d)?]),
            false => None,
        },
        input_norm: norm("input_layernorm", h)?,
    })
}
