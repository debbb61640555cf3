//! LoRA weights at rest, in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`, names and orientation
//! as PEFT reads and writes them; with a classification head where one was trained.

use crate::config::DecoderConfig;
use crate::ops::dora::Dora;
use crate::ops::{Frozen, Lora, Ops};
use burn::tensor::{Tensor, TensorData};
use limbeck_artifact::files::write_atomic;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const PREFIX: &str = "base_model.model.";
/// PEFT writes DoRA's vectors without `.weight` behind.
const MAGNITUDE: &str = "lora_magnitude_vector";
/// The head of transformers' `AutoModelForSequenceClassification`; in an adapter's file after [`PREFIX`].
pub const SCORE: &str = "score.weight";
const SEQ_CLS: &str = "SEQ_CLS";
/// What PEFT saves whole beside an adapter of that task, where the model has it.
const HEADS: [&str; 2] = ["classifier", "score"];
/// The classes' names in their order: transformers has them in the base's config, which is not the adapter's.
const LABELS: &str = "labels.json";

#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    #[error("failed to read adapter file {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("failed to write adapter file {path}: {source}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("adapter file {path} is malformed: {reason}")]
    Malformed { path: PathBuf, reason: String },
    #[error("the adapter does not fit the base model: {0}")]
    Mismatch(String),
}

/// The fields of PEFT's `adapter_config.json` that say how to apply the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterConfig {
    pub base_model_name_or_path: Option<String>,
    pub bias: String,
    pub fan_in_fan_out: bool,
    pub inference_mode: bool,
    #[serde(deserialize_with = "init_of_any_kind")]
    pub init_lora_weights: bool,
    pub lora_alpha: f32,
    #[serde(default)]
    pub lora_dropout: f32,
    pub peft_type: String,
    pub r: usize,
    /// Names, or the end of paths; one pattern where PEFT was given one. What counts is where the factors are.
    #[serde(deserialize_with = "one_or_many")]
    pub target_modules: Vec<String>,
    pub task_type: Option<String>,
    #[serde(default)]
    pub use_rslora: bool,
    #[serde(default)]
    pub use_dora: bool,
    /// The layers that have an adapter; none where all have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers_to_transform: Option<Vec<usize>>,
    /// What is saved whole: the classification head, or nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modules_to_save: Option<Vec<String>>,
}

/// PEFT writes true, or the name of a way to begin; those that change the base are refused by [`Adapter::load`].
fn init_of_any_kind<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    Ok(Json::deserialize(from)?.as_bool().unwrap_or(true))
}

fn one_or_many<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Targets {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Targets::deserialize(from)? {
        Targets::One(pattern) => vec![pattern],
        Targets::Many(names) => names,
    })
}

/// Keys of PEFT's LoRA config that change the arithmetic when they say anything at all. Source: `LoraConfig` of peft
/// 0.21.
const REFUSED: [&str; 17] = [
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "corda_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "lora_ga_config",
    "megatron_config",
    "monteclora_config",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
];

/// Ways to begin that leave the base as it is; others (pissa, olora, loftq, ...) subtract something from it.
const INITS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// What in an `adapter_config.json` asks for more than LoRA and DoRA.
fn beyond_lora(json: &Json) -> Option<String> {
    let says_something = |value: &Json| match value {
        Json::Null | Json::Bool(false) => false,
        Json::Array(list) => !list.is_empty(),
        Json::Object(map) => !map.is_empty(),
        _ => true,
    };
    if json["peft_type"] != "LORA" {
        return Some(format!("'peft_type' is {}", json["peft_type"]));
    }
    if json["bias"].as_str().is_some_and(|bias| bias != "none") {
        return Some(format!("'bias' is {}", json["bias"]));
    }
    if let Some(init) = json["init_lora_weights"].as_str().filter(|init| !INITS.contains(init)) {
        return Some(format!("'init_lora_weights' is '{init}', which changes the base"));
    }
    let whole = json["modules_to_save"].as_array().map_or(&[][..], Vec::as_slice);
    let head = |name: &Json| json["task_type"] == SEQ_CLS && HEADS.iter().any(|head| name == head);
    if let Some(name) = whole.iter().find(|name| !head(name)) {
        return Some(format!("'modules_to_save' names {name}"));
    }
    let key = REFUSED.into_iter().find(|key| says_something(&json[*key]))?;
    Some(format!("'{key}' is {}", json[key].to_string().chars().take(64).collect::<String>()))
}

impl AdapterConfig {
    pub fn lora(base: &str, r: usize, lora_alpha: f32, target_modules: &[String], use_rslora: bool) -> Self {
        let mut target_modules = target_modules.to_vec();
        target_modules.sort();
        AdapterConfig {
            base_model_name_or_path: Some(base.to_string()),
            bias: "none".into(),
            fan_in_fan_out: false,
            inference_mode: true,
            init_lora_weights: true,
            lora_alpha,
            lora_dropout: 0.0,
            peft_type: "LORA".into(),
            r,
            target_modules,
            task_type: Some("CAUSAL_LM".into()),
            use_rslora,
            use_dora: false,
            layers_to_transform: None,
            modules_to_save: None,
        }
    }

    /// The same of an adapter with a classification head, as PEFT has it.
    pub fn with_head(self) -> Self {
        AdapterConfig {
            task_type: Some(SEQ_CLS.into()),
            modules_to_save: Some(HEADS.map(String::from).to_vec()),
            ..self
        }
    }

    /// alpha / r, or alpha / √r for rank-stabilised LoRA.
    pub fn scaling(&self) -> f32 {
        let r = self.r as f32;
        if self.use_rslora { self.lora_alpha / r.sqrt() } else { self.lora_alpha / r }
    }
}

/// One pair of factors: `a` is `[r, n_in]`, `b` is `[n_out, r]`, both row-major; under DoRA, also the lengths of the rows of
/// W + s·B·A.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraPair {
    pub a: Vec<f32>,
    pub b: Vec<f32>,
    /// `[n_out]`; there if and only if the adapter's config says `use_dora`.
    pub magnitude: Option<Vec<f32>>,
    pub r: usize,
    pub n_in: usize,
    pub n_out: usize,
}

/// A linear classifier over the hidden state of the prompt's last token: transformers' `score`, which has no bias.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    /// Of the classes, in the order of the rows; none where the adapter does not name them.
    pub labels: Vec<String>,
    /// `[classes, n_in]`, row-major.
    pub weight: Vec<f32>,
    pub n_in: usize,
}

impl Head {
    /// From a file's matrix; the classes' names lie beside the file, or nowhere.
    ///
    /// # Errors
    /// [`AdapterError::Malformed`] when it is no matrix, or there are not as many names as rows.
    pub(crate) fn of_file(file: &Path, shape: &[usize], weight: Vec<f32>) -> Result<Head, AdapterError> {
        match *shape {
            [classes, n_in] if classes > 0 && n_in > 0 => {
                Ok(Head { labels: labels(&file.with_file_name(LABELS), classes)?, weight, n_in })
            }
            _ => {
                let reason = format!("{SCORE} is {shape:?}, no matrix");
                Err(AdapterError::Malformed { path: file.into(), reason })
            }
        }
    }

    /// Writes the classes' names into the folder that the matrix goes to.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save_labels(&self, dir: &Path) -> Result<(), AdapterError> {
        let mut names = serde_json::json!(self.labels).to_string();
        names.push('\n');
        let path = dir.join(LABELS);
        write_atomic(&path, names.as_bytes()).map_err(|source| AdapterError::Write { path, source })
    }

    pub fn classes(&self) -> usize {
        self.weight.len() / self.n_in.max(1)
    }

    /// The rows in the order of `labels`, as a frozen matrix.
    ///
    /// # Errors
    /// [`AdapterError::Mismatch`] when these are not the labels that it was trained for. One that names none is taken to have
    /// them in this order.
    pub fn freeze(&self, ops: &dyn Ops, labels: &[String]) -> Result<Frozen, AdapterError> {
        let wrong = |why: String| Err(AdapterError::Mismatch(why));
        if labels.len() != self.classes() {
            return wrong(format!("its head tells {} labels apart, the task has {}", self.classes(), labels.len()));
        }
        let mut data = Vec::with_capacity(self.weight.len());
        for (at, label) in labels.iter().enumerate() {
            let row = match self.labels.is_empty() {
                true => Some(at),
                false => self.labels.iter().position(|own| own == label),
            };
            let Some(row) = row else { return wrong(format!("its head was not trained for the label `{label}`")) };
            data.extend_from_slice(&self.weight[row * self.n_in..][..self.n_in]);
        }
        Ok(ops.freeze(data, labels.len(), self.n_in, false))
    }
}

/// An adapter, its pairs by module path (`model.layers.0.self_attn.q_proj`).
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    pub config: AdapterConfig,
    pub pairs: BTreeMap<String, LoraPair>,
    /// In the place of the base's own head.
    pub head: Option<Head>,
}

impl Adapter {
    /// A head alone, over weights that were all trained: no factors.
    pub fn of_head(head: Head) -> Adapter {
        Adapter {
            config: AdapterConfig::lora("", 1, 1.0, &[], false).with_head(),
            pairs: BTreeMap::new(),
            head: Some(head),
        }
    }

    pub fn scaling(&self) -> f32 {
        self.config.scaling()
    }

    /// # Errors
    /// [`AdapterError::Mismatch`] when a pair sits on what a decoder of this config does not have, or has another size.
    pub fn check(&self, config: &DecoderConfig) -> Result<(), AdapterError> {
        for (path, pair) in &self.pairs {
            let inside = path.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
            let module = inside.filter(|(n, _)| n.parse::<usize>().is_ok_and(|n| n < config.num_hidden_layers));
            let module = module.filter(|(_, module)| config.linears().contains(module));
            let Some((_, module)) = module else {
                return Err(AdapterError::Mismatch(format!("it sits on `{path}`, which the base does not have")));
            };
            let (n_out, n_in) = config.linear_shape(module);
            if (pair.n_out, pair.n_in) != (n_out, n_in) {
                let found = format!("[{}, {}]", pair.n_out, pair.n_in);
                return Err(AdapterError::Mismatch(format!("`{path}` is [{n_out}, {n_in}], its factors make {found}")));
            }
        }
        if let Some(head) = self.head.as_ref().filter(|head| head.n_in != config.hidden_size) {
            let why = format!("its head reads states of {}, the base's have {}", head.n_in, config.hidden_size);
            return Err(AdapterError::Mismatch(why));
        }
        Ok(())
    }

    /// The factors as constants of a forward pass.
    pub fn constants(&self, ops: &dyn Ops) -> crate::decoder::LoraSet {
        let device = ops.device();
        let scaling = self.scaling();
        let tensor = |data: &[f32], shape: [usize; 2]| -> Tensor<2> {
            Tensor::from_data(TensorData::new(data.to_vec(), shape), &device)
        };
        self.pairs
            .iter()
            .map(|(path, p)| {
                let (a, b) = (tensor(&p.a, [p.r, p.n_in]), tensor(&p.b, [p.n_out, p.r]));
                let dora = p.magnitude.as_ref().map(|m| Dora::new(tensor(m, [1, p.n_out])));
                (path.clone(), Lora { a, b, scaling, dora, dropout: None })
            })
            .collect()
    }

    /// Writes the two files into `dir`, each whole or not at all; of a head, also the labels that it was trained for.
    pub fn save(&self, dir: &Path) -> Result<(), AdapterError> {
        let config = dir.join("adapter_config.json");
        let weights = dir.join("adapter_model.safetensors");
        let mut bytes: Vec<(String, Vec<u8>, Vec<usize>)> = Vec::new();
        let le = |data: &[f32]| data.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        for (path, p) in &self.pairs {
            bytes.push((format!("{PREFIX}{path}.lora_A.weight"), le(&p.a), vec![p.r, p.n_in]));
            bytes.push((format!("{PREFIX}{path}.lora_B.weight"), le(&p.b), vec![p.n_out, p.r]));
            if let Some(magnitude) = &p.magnitude {
                bytes.push((format!("{PREFIX}{path}.{MAGNITUDE}"), le(magnitude), vec![p.n_out]));
            }
        }
        if let Some(head) = &self.head {
            bytes.push((format!("{PREFIX}{SCORE}"), le(&head.weight), vec![head.classes(), head.n_in]));
            head.save_labels(dir)?;
        }
        let malformed = |reason: String| AdapterError::Malformed { path: weights.clone(), reason };
        let mut views = Vec::with_capacity(bytes.len());
        for (name, data, shape) in &bytes {
            let view = TensorView::new(Dtype::F32, shape.clone(), data).map_err(|e| malformed(e.to_string()))?;
            views.push((name.clone(), view));
        }
        let metadata = std::collections::HashMap::from([("format".to_string(), "pt".to_string())]);
        let file = safetensors::serialize(views, Some(metadata)).map_err(|e| malformed(e.to_string()))?;
        write_atomic(&weights, &file).map_err(|source| AdapterError::Write { path: weights.clone(), source })?;
        let mut json = serde_json::to_string_pretty(&self.config).map_err(|e| malformed(e.to_string()))?;
        json.push('\n');
        write_atomic(&config, json.as_bytes()).map_err(|source| AdapterError::Write { path: config, source })
    }

    /// Reads what PEFT or [`Adapter::save`] wrote, LoRA or DoRA. Biases and fan-in-fan-out are refused.
    pub fn load(dir: &Path) -> Result<Adapter, AdapterError> {
        let path = dir.join("adapter_config.json");
        let text = std::fs::read(&path).map_err(|source| AdapterError::Read { path: path.clone(), source })?;
        let json: Json = serde_json::from_slice(&text)
            .map_err(|e| AdapterError::Malformed { path: path.clone(), reason: e.to_string() })?;
        if let Some(what) = beyond_lora(&json) {
            return Err(AdapterError::Malformed {
                path,
                reason: format!("only LoRA and DoRA are supported, and {what}"),
            });
        }
        let config: AdapterConfig = serde_json::from_value(json)
            .map_err(|e| AdapterError::Malformed { path: path.clone(), reason: e.to_string() })?;
        if config.r == 0 {
            return Err(AdapterError::Malformed { path, reason: "r must be at least 1".into() });
        }
        let path = dir.join("adapter_model.safetensors");
        let bytes = std::fs::read(&path).map_err(|source| AdapterError::Read { path: path.clone(), source })?;
        let malformed = |reason: String| AdapterError::Malformed { path: path.clone(), reason };
        let file = SafeTensors::deserialize(&bytes).map_err(|e| malformed(e.to_string()))?;
        type Part = Option<(Vec<usize>, Vec<f32>)>;
        let mut parts: BTreeMap<String, [Part; 3]> = BTreeMap::new();
        let mut score: Part = None;
        let classifies = config.task_type.as_deref() == Some(SEQ_CLS);
        for (name, view) in file.tensors() {
            if classifies && name.strip_prefix(PREFIX) == Some(SCORE) {
                let data = floats(&view).map_err(|e| malformed(format!("tensor `{name}`: {e}")))?;
                score = Some((view.shape().to_vec(), data));
                continue;
            }
            let stem = name.strip_prefix(PREFIX);
            let stem = stem.and_then(|n| n.strip_suffix(".weight").or(n.ends_with(MAGNITUDE).then_some(n)));
            let found = stem.and_then(|stem| match stem.rsplit_once('.') {
                Some((path, "lora_A")) => Some((path, 0)),
                Some((path, "lora_B")) => Some((path, 1)),
                Some((path, MAGNITUDE)) => Some((path, 2)),
                _ => None,
            });
            let Some((module, which)) = found else { return Err(malformed(format!("unexpected tensor `{name}`"))) };
            let data = floats(&view).map_err(|e| malformed(format!("tensor `{name}`: {e}")))?;
            parts.entry(module.to_string()).or_default()[which] = Some((view.shape().to_vec(), data));
        }
        let mut pairs = BTreeMap::new();
        for (module, parts) in parts {
            let [Some((a_shape, a)), Some((b_shape, b)), magnitude] = parts else {
                return Err(malformed(format!("module `{module}` lacks one of lora_A and lora_B")));
            };
            if magnitude.is_some() != config.use_dora {
                let has = if config.use_dora { "no" } else { "a" };
                let why = format!("use_dora is {}, and module `{module}` has {has} {MAGNITUDE}", config.use_dora);
                return Err(malformed(why));
            }
            if let Some((shape, _)) =
                magnitude.as_ref().filter(|(shape, _)| shape.len() != 1 || shape.first() != b_shape.first())
            {
                return Err(malformed(format!("module `{module}`: {MAGNITUDE} is {shape:?} beside {b_shape:?}")));
            }
            let magnitude = magnitude.map(|(_, values)| values);
            match (a_shape.as_slice(), b_shape.as_slice()) {
                (&[r, n_in], &[n_out, r2]) if r == r2 && r == config.r => {
                    pairs.insert(module, LoraPair { a, b, magnitude, r, n_in, n_out });
                }
                _ => return Err(malformed(format!("module `{module}`: shapes {a_shape:?} and {b_shape:?}"))),
            }
        }
        let head = match score {
            None if classifies => return Err(malformed(format!("task_type is {SEQ_CLS}, and there is no {SCORE}"))),
            None => None,
            Some((shape, weight)) => Some(Head::of_file(&path, &shape, weight)?),
        };
        Ok(Adapter { config, pairs, head })
    }
}

/// The classes' names, if the file is there: distinct, one a class.
fn labels(path: &Path, classes: usize) -> Result<Vec<String>, AdapterError> {
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let malformed = |reason: String| AdapterError::Malformed { path: path.into(), reason };
    let text = std::fs::read(path).map_err(|source| AdapterError::Read { path: path.into(), source })?;
    let names: Vec<String> = serde_json::from_slice(&text).map_err(|e| malformed(e.to_string()))?;
    let distinct: std::collections::BTreeSet<&String> = names.iter().collect();
    match distinct.len() == classes && names.len() == classes {
        true => Ok(names),
        false => {
            Err(malformed(format!("{} labels, of which {} differ, for {classes} classes", names.len(), distinct.len())))
        }
    }
}

fn floats(view: &TensorView) -> Result<Vec<f32>, String> {
    let data = view.data();
    let values: Vec<f32> = match view.dtype() {
        Dtype::F32 => data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F16 => data.as_chunks::<2>().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::BF16 => data.as_chunks::<2>().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
        other => return Err(format!("dtype {other:?} is not supported (F32, F16, BF16 are)")),
    };
    match values.iter().all(|x| x.is_finite()) {
        true => Ok(values),
        false => Err("non-finite values".into()),
    }
}
