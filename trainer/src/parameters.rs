//! What is trained, an adapter's parts or all weights: their start (an adapter's as PEFT initialises it), their life as tensors of a step, and the
//! way back to an [`Adapter`]. Masters are f32 vectors whatever the device computes in.

use crate::base::Grid;
use crate::matching::MAP;
use crate::optimizer::Moments;
use crate::random::Random;
use burn::tensor::{Tensor, TensorData};
use limbeck_model::ModelError;
use limbeck_model::adapter::{Adapter, AdapterConfig, AdapterError, Head, LoraPair, SCORE};
use limbeck_model::decoder::{Decoder, LoraSet, TensorSet, module_path};
use limbeck_model::layout::Packed;
use limbeck_model::ops::dora::Dora;
use limbeck_model::ops::dropout::{Dropout, module_key, token_keys};
use limbeck_model::ops::{Frozen, Lora, Ops};
use limbeck_model::safetensor;
use limbeck_model::weights::Weights;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// One part of a module's adapter (`lora_A`, `lora_B`, DoRA's `lora_magnitude_vector`), or one weight. A vector is a row,
/// `[1, n]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    pub values: Vec<f32>,
    pub shape: [usize; 2],
    pub moments: Moments,
}

impl Parameter {
    /// Before the first step.
    pub(crate) fn new(values: Vec<f32>, shape: [usize; 2]) -> Parameter {
        let moments = Moments::zeros(values.len());
        Parameter { values, shape, moments }
    }
}

/// What a training trains.
#[derive(Clone, Debug, PartialEq)]
pub enum Tuning {
    Adapter(AdapterConfig),
    /// An adapter and a head that tells these labels apart.
    Classifier(AdapterConfig, Vec<String>),
    /// Every weight of the base.
    Full,
    /// Every weight of the base, and a head that tells these labels apart.
    FullClassifier(Vec<String>),
}

/// All parts by name (`model.layers.0.self_attn.q_proj.lora_A`, or a weight's own name), in the order of their names.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameters {
    pub tuning: Tuning,
    pub all: BTreeMap<String, Parameter>,
}

/// The parts as leaves of one step's graph: an adapter's, or the weights.
#[derive(Default)]
pub struct Leaves {
    pub set: LoraSet,
    /// The classification head, where there is one.
    pub score: Option<Tensor<2>>,
    pub weights: TensorSet,
    /// By layer, from its states to those of a teacher of another width: see [`crate::matching`].
    pub maps: BTreeMap<usize, Tensor<2>>,
    /// What they give stays on the device: see [`crate::resident`].
    pub resident: bool,
}

impl Leaves {
    /// Every leaf by its parameter's name.
    pub fn tensors(&self) -> impl Iterator<Item = (String, &Tensor<2>)> {
        let parts = self.set.iter().flat_map(|(path, lora)| {
            let magnitude = lora.dora.as_ref().map(|dora| ("lora_magnitude_vector", &dora.magnitude));
            let parts = [("lora_A", &lora.a), ("lora_B", &lora.b)].into_iter().chain(magnitude);
            parts.map(move |(part, tensor)| (format!("{path}.{part}"), tensor))
        });
        let score = self.score.iter().map(|score| (SCORE.to_owned(), score));
        let maps = self.maps.iter().map(|(layer, tensor)| (format!("{MAP}{layer}"), tensor));
        parts.chain(score).chain(maps).chain(self.weights.iter().map(|(name, tensor)| (name.clone(), tensor)))
    }

    /// What the loss is worked out by: the classification head, or the decoder's own.
    pub fn head(&self, decoder: &Decoder) -> Frozen {
        match &self.score {
            Some(score) => Frozen::trained(score.clone(), None),
            None => decoder.head().clone(),
        }
    }

    /// The same values without gradients, for a pass that builds no graph.
    pub fn without_gradient(&self) -> Leaves {
        let still = |tensor: &Tensor<2>| tensor.clone().set_require_grad(false);
        let lora = |lora: &Lora| Lora {
            a: still(&lora.a),
            b: still(&lora.b),
            dora: lora.dora.as_ref().map(Dora::without_gradient),
            ..lora.clone()
        };
        Leaves {
            set: self.set.iter().map(|(path, l)| (path.clone(), lora(l))).collect(),
            score: self.score.as_ref().map(still),
            weights: self.weights.iter().map(|(name, tensor)| (name.clone(), still(tensor))).collect(),
            maps: self.maps.iter().map(|(layer, tensor)| (*layer, still(tensor))).collect(),
            resident: self.resident,
        }
    }

    /// The factors for one micro-batch of a step; with `p` above 0, their inputs are dropped.
    pub fn with_dropout(&self, p: f32, batch: &Packed, seed: u64, step: u64) -> LoraSet {
        if p == 0.0 {
            return self.set.clone();
        }
        let keys = Arc::new(token_keys(batch, seed, step));
        let drop = |path: &str| Some(Dropout { p, keys: keys.clone(), module: module_key(path) });
        self.set.iter().map(|(path, lora)| (path.clone(), Lora { dropout: drop(path), ..lora.clone() })).collect()
    }
}

impl Parameters {
    /// A ~ U(±1/√n_in) (kaiming_uniform with a = √5), B = 0, and DoRA's magnitudes the row norms of the base: the adapter
    /// starts as the identity. Source: PEFT `lora/layer.py::reset_lora_parameters`, `lora/dora.py::update_layer`.
    pub fn init(config: AdapterConfig, decoder: &Decoder, seed: u64) -> Self {
        let mut all = BTreeMap::new();
        for layer in 0..decoder.config.num_hidden_layers {
            if config.layers_to_transform.as_ref().is_some_and(|layers| !layers.contains(&layer)) {
                continue;
            }
            for (which, linear) in decoder.config.linears().iter().enumerate() {
                let short = linear.rsplit('.').next().unwrap_or(linear);
                if !config.target_modules.iter().any(|t| t == short) {
                    continue;
                }
                let (n_out, n_in) = decoder.linear_shape(layer, which);
                let path = module_path(layer, linear);
                let mut random = Random::new(seed, &path);
                let bound = 1.0 / (n_in as f32).sqrt();
                let a = (0..config.r * n_in).map(|_| (random.unit() * 2.0 - 1.0) * bound).collect();
                let parameter = |values: Vec<f32>, shape| {
                    let moments = Moments::zeros(values.len());
                    Parameter { values, shape, moments }
                };
                all.insert(format!("{path}.lora_A"), parameter(a, [config.r, n_in]));
                all.insert(format!("{path}.lora_B"), parameter(vec![0.0; n_out * config.r], [n_out, config.r]));
                if config.use_dora {
                    let magnitude = parameter(decoder.row_norms(&path), [1, n_out]);
                    all.insert(format!("{path}.lora_magnitude_vector"), magnitude);
                }
            }
        }
        Parameters { tuning: Tuning::Adapter(config), all }
    }

    /// The same with a classification head for these labels. It begins as zeros, all labels equally likely: as B = 0, that is
    /// no random number more, and the factors' gradients begin with the second step.
    pub fn init_classifier(config: AdapterConfig, labels: &[String], decoder: &Decoder, seed: u64) -> Self {
        let mut all = Self::init(config.clone(), decoder, seed).all;
        all.insert(SCORE.to_owned(), score(labels, decoder.config.hidden_size));
        Parameters { tuning: Tuning::Classifier(config, labels.to_vec()), all }
    }

    /// From an adapter that was trained before, here or by PEFT: its values, and moments of nothing.
    pub fn from_adapter(adapter: &Adapter) -> Self {
        let mut all = BTreeMap::new();
        let mut insert = |name: String, values: &[f32], shape| {
            let moments = Moments::zeros(values.len());
            all.insert(name, Parameter { values: values.to_vec(), shape, moments });
        };
        for (path, pair) in &adapter.pairs {
            insert(format!("{path}.lora_A"), &pair.a, [pair.r, pair.n_in]);
            insert(format!("{path}.lora_B"), &pair.b, [pair.n_out, pair.r]);
            if let Some(magnitude) = &pair.magnitude {
                insert(format!("{path}.lora_magnitude_vector"), magnitude, [1, pair.n_out]);
            }
        }
        let config = adapter.config.clone();
        let tuning = match &adapter.head {
            None => Tuning::Adapter(config),
            Some(head) => {
                insert(SCORE.to_owned(), &head.weight, [head.classes(), head.n_in]);
                Tuning::Classifier(config, head.labels.clone())
            }
        };
        Parameters { tuning, all }
    }

    fn config(&self) -> Option<&AdapterConfig> {
        match &self.tuning {
            Tuning::Adapter(config) | Tuning::Classifier(config, _) => Some(config),
            Tuning::Full | Tuning::FullClassifier(_) => None,
        }
    }

    /// Every weight of the model, as it is there.
    ///
    /// # Errors
    /// When one can't be read.
    pub fn full(weights: &Weights) -> Result<Self, ModelError> {
        let parameter = |name: String| {
            let dense = weights.load(&name)?;
            let shape = match dense.shape[..] {
                [rows, cols] => [rows, cols],
                _ => [1, dense.data.len()],
            };
            let moments = Moments::zeros(dense.data.len());
            Ok((name, Parameter { values: dense.data, shape, moments }))
        };
        let all = weights.names().into_iter().map(parameter).collect::<Result<_, ModelError>>()?;
        Ok(Parameters { tuning: Tuning::Full, all })
    }

    /// The same with a classification head for these labels, which begins as zeros.
    ///
    /// # Errors
    /// When a weight can't be read.
    pub fn full_classifier(weights: &Weights, labels: &[String]) -> Result<Self, ModelError> {
        let mut all = Self::full(weights)?.all;
        all.insert(SCORE.to_owned(), score(labels, weights.config().hidden_size));
        Ok(Parameters { tuning: Tuning::FullClassifier(labels.to_vec()), all })
    }

    /// What a training holds beside activations and a frozen base: masters, two moments, the gradient, and the step's own
    /// copy; the gradient twice where a step has several micro-batches.
    pub fn state_bytes(&self, micro_batches: usize) -> u64 {
        self.count() as u64 * 4 * if micro_batches > 1 { 6 } else { 5 }
    }

    /// Of a checkpoint's tensors: masters and two moments.
    pub fn checkpoint_bytes(&self) -> u64 {
        self.count() as u64 * 12
    }

    /// What a model keeps of it.
    pub fn count(&self) -> usize {
        self.kept().map(|(_, p)| p.values.len()).sum()
    }

    /// Without what only a training needs.
    fn kept(&self) -> impl Iterator<Item = (&String, &Parameter)> {
        self.all.iter().filter(|(name, _)| !name.starts_with(MAP))
    }

    /// Weights that have a place on `grid` stand there; an adapter has none.
    pub fn leaves(&self, ops: &dyn Ops, grid: Option<&dyn Grid>) -> Leaves {
        let device = ops.device();
        let weights = matches!(self.tuning, Tuning::Full | Tuning::FullClassifier(_));
        self.leaves_by(&|name, p| {
            let on_grid = grid.filter(|_| weights && name != SCORE && !name.starts_with(MAP));
            let values = on_grid.and_then(|grid| grid.rounded(name, &p.values)).unwrap_or_else(|| p.values.clone());
            Tensor::from_data(TensorData::new(values, p.shape), &device).require_grad()
        })
    }

    /// The same of tensors that `tensor` gives for each parameter.
    pub(crate) fn leaves_by(&self, tensor: &dyn Fn(&str, &Parameter) -> Tensor<2>) -> Leaves {
        let of = |name: &str| self.all.get(name).map(|p| tensor(name, p));
        let map = |(name, p): (&String, &Parameter)| Some((name.strip_prefix(MAP)?.parse().ok()?, tensor(name, p)));
        let maps = self.all.iter().filter_map(map).collect();
        let score = of(SCORE);
        let Some(config) = self.config() else {
            let weights = self.kept().filter(|(name, _)| *name != SCORE);
            let weights = weights.map(|(name, p)| (name.clone(), tensor(name, p))).collect();
            return Leaves { weights, score, maps, ..Leaves::default() };
        };
        let scaling = config.scaling();
        let mut set = LoraSet::new();
        for (name, a) in &self.all {
            let Some(path) = name.strip_suffix(".lora_A") else { continue };
            let Some(b) = of(&format!("{path}.lora_B")) else { continue };
            let dora = of(&format!("{path}.lora_magnitude_vector")).map(Dora::new);
            set.insert(path.to_string(), Lora { a: tensor(name, a), b, scaling, dora, dropout: None });
        }
        Leaves { set, score, maps, ..Leaves::default() }
    }

    /// The classification head as a constant; none where the base's own head answers.
    pub fn frozen_head(&self, ops: &dyn Ops) -> Option<Frozen> {
        let Parameter { values, shape: [classes, n_in], .. } = self.all.get(SCORE)?;
        Some(ops.freeze(values.clone(), *classes, *n_in, false))
    }

    /// The adapter; none of a full fine-tuning.
    pub fn adapter(&self) -> Option<Adapter> {
        let config = self.config()?;
        let mut pairs = BTreeMap::new();
        for (name, a) in &self.all {
            let Some(path) = name.strip_suffix(".lora_A") else { continue };
            let Some(b) = self.all.get(&format!("{path}.lora_B")) else { continue };
            let pair = LoraPair {
                a: a.values.clone(),
                b: b.values.clone(),
                magnitude: self.all.get(&format!("{path}.lora_magnitude_vector")).map(|m| m.values.clone()),
                r: config.r,
                n_in: a.shape[1],
                n_out: b.shape[0],
            };
            pairs.insert(path.to_string(), pair);
        }
        Some(Adapter { config: config.clone(), pairs, head: self.head() })
    }

    /// The classification head, with the names of its classes.
    fn head(&self) -> Option<Head> {
        let score = self.all.get(SCORE)?;
        let labels = match &self.tuning {
            Tuning::Classifier(_, labels) | Tuning::FullClassifier(labels) => labels.clone(),
            Tuning::Adapter(_) | Tuning::Full => Vec::new(),
        };
        Some(Head { labels, weight: score.values.clone(), n_in: score.shape[1] })
    }

    /// Writes what the training is for into `out`: `adapter/` as PEFT has it, or `model/model.safetensors`, all weights in
    /// float32 under Hugging Face's names and in its shapes, a classification head among them and its labels beside them.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&self, out: &Path) -> Result<(), AdapterError> {
        if let Some(adapter) = self.adapter() {
            return adapter.save(&out.join("adapter"));
        }
        if let Some(head) = self.head() {
            head.save_labels(&out.join("model"))?;
        }
        let path = out.join("model/model.safetensors");
        let shape = |p: &Parameter| if p.shape[0] == 1 { vec![p.shape[1]] } else { p.shape.to_vec() };
        let tensors: Vec<_> = self.kept().map(|(name, p)| (name.clone(), shape(p), p.values.as_slice())).collect();
        safetensor::write(&path, &tensors).map_err(|source| AdapterError::Write { path, source })
    }
}

/// A classification head before its first step.
fn score(labels: &[String], hidden: usize) -> Parameter {
    let shape = [labels.len(), hidden];
    let n = shape[0] * shape[1];
    Parameter { values: vec![0.0; n], shape, moments: Moments::zeros(n) }
}
