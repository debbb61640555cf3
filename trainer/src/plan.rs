//! What a training is asked, what it answers, and how it refuses. The settings' names are those of PEFT, transformers and
//! axolotl; the errors name rows, steps and the cure.

use crate::batch::LossNormalization;
use crate::checkpoint::CheckpointError;
use crate::diverged::Diverged;
use crate::divergence::Divergence;
use crate::matching::Matched;
use crate::memory::NoRoom;
use crate::on_policy::{OnPolicy, Written};
use crate::optimizer::AdamWSettings;
use crate::rationale::Rationales;
use crate::schedule::{Decay, Schedule, Scheduler};
use crate::turbo::CacheDtype;
use crate::watch::Metric;
use limbeck_artifact::capture::Position;
use limbeck_artifact::dataset::Message;
use limbeck_model::ModelError;
use limbeck_model::adapter::{AdapterConfig, AdapterError};
use limbeck_model::decoder::DecoderError;
use limbeck_model::ops::codes::QuantizeBase;
use limbeck_model::prompt::{PromptError, TrainOn};
use limbeck_model::score::ScoreError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadKind {
    /// The base's own head: an answer is the text of its label.
    #[default]
    Verbalizer,
    /// A linear classifier on the hidden state of the prompt's last token, trained beside the adapter: transformers'
    /// `AutoModelForSequenceClassification`.
    Classification,
}

/// How to train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainSettings {
    pub seed: u64,
    pub head: HeadKind,
    /// Of the adapter, as everything down to `turbo_cache_dtype`: a full fine-tuning has none.
    pub r: usize,
    pub lora_alpha: f32,
    pub use_rslora: bool,
    /// Train the lengths of the adapted rows apart from their directions (DoRA).
    pub use_dora: bool,
    /// Chance that an element of an adapter's input is dropped in a training step.
    pub lora_dropout: f32,
    /// Rate of `lora_B` over that of `lora_A` (LoRA+); 1 is plain LoRA.
    pub loraplus_lr_ratio: f64,
    pub target_modules: Vec<String>,
    /// Adapt only so many layers from the top and keep the hidden states below them; 0 adapts all.
    pub turbo_layers: usize,
    pub turbo_cache_dtype: CacheDtype,
    pub train_on: TrainOn,
    pub loss_normalization: LossNormalization,
    pub learning_rate: f64,
    pub lr_scheduler: Scheduler,
    pub warmup_ratio: f64,
    /// Share of the steps in which warmup-stable-decay comes down.
    pub decay_ratio: f64,
    pub decay_type: Decay,
    pub num_epochs: u64,
    /// Rows a micro-batch.
    pub batch_size: usize,
    /// Micro-batches a step.
    pub gradient_accumulation_steps: usize,
    pub max_grad_norm: f64,
    pub adamw: AdamWSettings,
    pub max_seq_length: usize,
    /// Steps between checkpoints.
    pub save_steps: u64,
    /// Checkpoints that are kept; the best is kept beside them.
    pub save_total_limit: usize,
    /// Steps between looks at the valid split; 0 looks at the end only.
    pub eval_steps: u64,
    /// Stop after so many looks in a row that were no better than the best; 0 never stops.
    pub early_stopping_patience: u64,
    pub metric_for_best_model: Metric,
    /// Give back the best model instead of the last.
    pub load_best_model_at_end: bool,
}

impl TrainSettings {
    /// Rows a step.
    pub fn rows_per_step(&self) -> usize {
        self.batch_size.max(1) * self.gradient_accumulation_steps.max(1)
    }

    pub fn steps_per_epoch(&self, rows: usize) -> u64 {
        rows.div_ceil(self.rows_per_step()) as u64
    }

    /// Steps of the whole training on `rows` rows.
    pub fn total_steps(&self, rows: usize) -> u64 {
        self.steps_per_epoch(rows) * self.num_epochs
    }

    pub fn schedule(&self, total_steps: u64) -> Schedule {
        let share = |ratio: f64| (ratio * total_steps as f64).ceil() as u64;
        Schedule {
            kind: self.lr_scheduler,
            peak: self.learning_rate,
            warmup_steps: share(self.warmup_ratio),
            decay_steps: share(self.decay_ratio),
            decay: self.decay_type,
            total_steps,
        }
    }

    /// The adapter that this trains on a base of `layers` layers.
    pub(crate) fn adapter_config(&self, base: &str, targets: &[String], layers: usize) -> AdapterConfig {
        let config = AdapterConfig::lora(base, self.r, self.lora_alpha, targets, self.use_rslora);
        let config = if self.head == HeadKind::Classification { config.with_head() } else { config };
        let turbo = self.first_layer(layers) > 0;
        let layers_to_transform = turbo.then(|| (self.first_layer(layers)..layers).collect());
        AdapterConfig { lora_dropout: self.lora_dropout, use_dora: self.use_dora, layers_to_transform, ..config }
    }

    /// The lowest layer that is adapted.
    pub(crate) fn first_layer(&self, layers: usize) -> usize {
        if self.turbo_layers == 0 { 0 } else { layers.saturating_sub(self.turbo_layers) }
    }

    /// Whether the best model must outlive the newer ones.
    pub(crate) fn keeps_best(&self) -> bool {
        self.load_best_model_at_end || self.early_stopping_patience > 0
    }
}

#[derive(Clone, Debug)]
pub struct TrainPlan {
    pub settings: TrainSettings,
    /// Identifies plan, data and base; a checkpoint of another key is not gone on from.
    pub key: String,
    /// Receives `adapter/` (or `model/`, of a full fine-tuning), `checkpoints/`, `loss.jsonl`, `valid.jsonl`.
    pub out: PathBuf,
    /// Recorded in `adapter_config.json`.
    pub base_name: String,
    /// Stop after this step, on the schedule of the whole training: a checkpoint and the valid loss, no adapter. None, or
    /// a step past the last, trains to the end.
    pub stop_at_step: Option<u64>,
    /// A teacher's answers, where there is one.
    pub distilled: Option<Distilled>,
    /// What a teacher expected at each token, where one told.
    pub told: Option<ToldTokens>,
    /// Whether the student writes answers of its own, which need [`TrainPlan::told`] to say where its teacher may be followed.
    pub on_policy: Option<OnPolicy>,
    /// A teacher whose hidden states are matched, where there is one.
    pub matched: Option<Matched>,
    /// What is learnt of answers' reasons, where the recipe has some.
    pub rationales: Option<Rationales>,
}

/// What a teacher told, and how it counts: see [`crate::soft`].
#[derive(Clone, Debug)]
pub struct Distilled {
    /// Share of the divergence in the loss of a row that has both; the answer has the rest. 0 to 1.
    pub lambda: f32,
    pub divergence: Divergence,
    pub temperature: f64,
    /// Share of the teacher's word on a row whose labels are told apart where labels are spelled: [`crate::partition`]. 1 tells all apart.
    pub exact_mass: f64,
    /// By the prompt's digest ([`limbeck_artifact::capture::prompt_key`]): the posterior over the dataset's labels, in their order.
    pub posteriors: BTreeMap<String, Vec<f32>>,
    /// What the teacher's word is worth where nobody confirmed it, by the label that it says: 0 to 1.
    pub trust: Vec<f32>,
    /// Prompts without an answer, learnt from the teacher alone.
    pub unlabeled: Vec<Unlabeled>,
}

/// What a teacher expected along the answers: see [`crate::told`].
#[derive(Clone, Debug)]
pub struct ToldTokens {
    /// Share of the divergence in the loss of a token; the answer's own token has the rest. 0 to 1.
    pub lambda: f32,
    pub divergence: Divergence,
    /// By a row's tokens ([`limbeck_artifact::capture::tokens_key`]): one for each token that carries loss.
    pub rows: BTreeMap<String, Vec<Position>>,
    /// What the teacher's word is worth in rows that no person decided: 0 to 1.
    pub trust: f32,
    /// Whether it counts, too, where a person's token is not its likeliest.
    pub contradicts: bool,
    /// Messages that nobody else answered, with what it wrote.
    pub answered: Vec<Answered>,
}

/// A prompt with a teacher's own answer, learnt as a row beside the dataset's.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered {
    /// For messages.
    pub id: String,
    pub messages: Vec<Message>,
    pub answer: String,
    /// What it weighs as a row: above 0.
    pub weight: f32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Unlabeled {
    /// For messages.
    pub id: String,
    pub messages: Vec<Message>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainReport {
    /// Steps taken.
    pub steps: u64,
    pub rows: u64,
    pub trained_parameters: u64,
    /// Tokens that carry loss, over the steps taken.
    pub loss_tokens: u64,
    /// Rows that a teacher answered, and those among them that have no other answer.
    #[serde(default, skip_serializing_if = "none")]
    pub soft_rows: u64,
    #[serde(default, skip_serializing_if = "none")]
    pub unlabeled_rows: u64,
    /// Tokens of the rows at which a teacher told what it expected.
    #[serde(default, skip_serializing_if = "none")]
    pub told_tokens: u64,
    /// Answers that the student wrote itself and learnt from, over the steps taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<Written>,
    /// Rows that are read once more for their rationale, and the tokens of those that carry loss.
    #[serde(default, skip_serializing_if = "none")]
    pub explained_rows: u64,
    #[serde(default, skip_serializing_if = "none")]
    pub explained_tokens: u64,
    pub final_loss: f64,
    /// Of the teacher's hidden states alone, without its weight in the loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_hidden_loss: Option<f64>,
    /// Of what its layers attend to, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_attention_loss: Option<f64>,
    /// Of the model that is given back, on the valid split.
    pub valid_accuracy: Option<f64>,
    pub valid_loss: Option<f64>,
    /// The step whose model is given back, where it is not the last.
    #[serde(default)]
    pub best_step: Option<u64>,
    /// The valid split had stopped getting better.
    #[serde(default)]
    pub stopped_early: bool,
    /// How the base's linear layers were kept.
    #[serde(default)]
    pub quantize_base: QuantizeBase,
}

fn none(n: &u64) -> bool {
    *n == 0
}

#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error("the train split is empty; nothing to learn from. Review more traces or lower the other splits' shares")]
    NoRows,
    #[error("row {id} of the {split} split (trace {trace}): {source}")]
    Row { id: String, split: &'static str, trace: String, source: PromptError },
    #[error("row {id} (trace {trace}) carries no loss: its weight is {weight}. Remove it or give it a positive weight")]
    NoLoss { id: String, trace: String, weight: f32 },
    #[error(
        "row {id} of the {split} split (trace {trace}) carries no loss: none of its {len} tokens is to be predicted. \
         Remove it, or look at its answer"
    )]
    EmptyMask { id: String, split: &'static str, trace: String, len: usize },
    #[error(
        "row {id} of the {split} split (trace {trace}) can't be classified: `{target}` is none of the dataset's {labels} labels. \
         Correct it, or train with train.head = \"verbalizer\""
    )]
    NoClass { id: String, split: &'static str, trace: String, target: String, labels: usize },
    #[error("step {}: {}", .0.step, .0)]
    OutOfMemory(Box<NoRoom>),
    #[error("unlabeled row {id}: {source}")]
    Unlabeled { id: String, source: PromptError },
    #[error("the teacher's answer to row {id} {why}. Capture it again")]
    Posterior { id: String, why: String },
    #[error("what the teacher told of row {id} {why}. Capture it again")]
    Told { id: String, why: String },
    #[error("the teacher could not be asked what it expects of the student's answers: {source}")]
    Teacher { source: Box<dyn std::error::Error + Send + Sync> },
    #[error(
        "answers of the student's own begin at the prompt's end, and train.turbo_layers keeps what the dataset's answers are; \
         set train.turbo_layers = 0 or distill.on_policy = 0"
    )]
    TurboOnPolicy,
    #[error("a teacher's posteriors are over labels, and the dataset has {0}. Take [distill] out of the recipe")]
    NoLabels(usize),
    #[error(
        "turbo_layers keeps the hidden states of rows as their answers are learnt, and rationales read them otherwise; set \
         train.turbo_layers = 0, or take distill.rationales out"
    )]
    TurboExplains,
    #[error("the teacher's hidden states can't be matched: {why}")]
    Matching { why: String },
    #[error("a classification head {why}; train with train.head = \"verbalizer\"")]
    NoHead { why: String },
    #[error("target_modules names {unknown:?}, which this base does not have; it has {known}")]
    Targets { unknown: Vec<String>, known: String },
    #[error("target_modules is empty; there is nothing to train")]
    NoTargets,
    #[error("turbo_layers is {asked}, but the base has {layers} layers; adapt fewer, or 0 for all without a cache")]
    TooManyLayers { asked: usize, layers: usize },
    #[error(
        "turbo_layers adapts the top layers only, and this training trains all weights; set train.turbo_layers = 0"
    )]
    TurboOfAll,
    #[error(
        "{what} goes by the valid split, which {why}. Raise data.split.valid, or train without it: \
         --set train.early_stopping_patience=0 --set train.load_best_model_at_end=false"
    )]
    NoValid { what: &'static str, why: &'static str },
    #[error(transparent)]
    NotFinite(Box<Diverged>),
    #[error("the best model, of step {step}, has no intact checkpoint; remove the checkpoints folder and train again")]
    BestLost { step: u64 },
    #[error("failed to write {path}: {source}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Decoder(#[from] DecoderError),
    #[error(transparent)]
    Score(#[from] ScoreError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}
