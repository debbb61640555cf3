//! The resolved recipe as plain structs: what every stage plan is made from. Paths are ready to use; shares and
//! thresholds are from 0 to 1.

use crate::evaluation::{ArmKind, Eval, EvalJudge, JudgeKind};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Recipe {
    pub name: String,
    pub version: String,
    pub seed: u64,
    pub task: Task,
    pub model: Model,
    pub data: Data,
    pub review: Review,
    pub train: Train,
    pub distill: Distill,
    pub quantize: Quantize,
    pub eval: Eval,
    pub promote: Promote,
    pub sign: Sign,
    pub encrypt: Encrypt,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Task {
    pub kind: String,
    /// As written; a dataset sorts them. Of `classify`.
    #[serde(default)]
    pub labels: Vec<String>,
    /// Of `extract`.
    pub schema: Option<PathBuf>,
    pub max_new_tokens: Option<usize>,
    /// Of `extract`: whether answers are kept to the schema while they are written.
    pub constrained: Option<bool>,
    pub system: Option<String>,
    pub guidelines: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Model {
    pub base: BaseModel,
    pub revision: Option<String>,
    pub endpoint: Option<String>,
    pub cache_dir: Option<PathBuf>,
    pub max_seq_length: usize,
    pub device: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub enum BaseModel {
    /// A `.gguf` file or a folder.
    Path(PathBuf),
    /// `OWNER/NAME` or `OWNER/NAME/FILE.gguf` on the hub.
    Hub(String),
}

impl From<String> for BaseModel {
    fn from(text: String) -> BaseModel {
        match text.strip_prefix("hf:") {
            Some(repo) => BaseModel::Hub(repo.to_owned()),
            None => BaseModel::Path(text.into()),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Data {
    pub traces: Vec<PathBuf>,
    /// The name of a reader, or `auto`.
    pub format: String,
    /// From a field of a trace to its column.
    #[serde(default)]
    pub map: BTreeMap<String, String>,
    pub notes: Vec<String>,
    pub redact: bool,
    pub redact_patterns: Vec<String>,
    pub redact_key: Option<PathBuf>,
    pub drop: Vec<String>,
    pub decontaminate_against: Vec<PathBuf>,
    pub balance: Balance,
    pub near_dup_threshold: f64,
    pub min_chars: usize,
    pub max_chars: usize,
    pub split: SplitRatios,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Balance {
    None,
    Sqrt,
    Equal,
}

/// The rest is train.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct SplitRatios {
    pub valid: f64,
    pub calibration: f64,
    pub test: f64,
    pub by_time: bool,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Review {
    pub decisions: Vec<PathBuf>,
    pub store: Option<PathBuf>,
    pub random_share: f64,
    pub reviewers_per_item: u32,
    pub max_label_error: f64,
    pub min_reviewed: MinReviewed,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct MinReviewed {
    pub train: f64,
    pub valid: f64,
    pub calibration: f64,
    pub test: f64,
}

/// What a training trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// An adapter.
    Lora,
    /// Every weight.
    Full,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Head {
    Verbalizer,
    Classification,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrScheduler {
    Linear,
    Cosine,
    Constant,
    WarmupStableDecay,
}

impl LrScheduler {
    pub fn name(self) -> &'static str {
        match self {
            LrScheduler::Linear => "linear",
            LrScheduler::Cosine => "cosine",
            LrScheduler::Constant => "constant",
            LrScheduler::WarmupStableDecay => "warmup_stable_decay",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum DecayType {
    #[serde(rename = "cosine")]
    Cosine,
    #[serde(rename = "linear")]
    Linear,
    #[serde(rename = "1-sqrt")]
    OneMinusSqrt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheDtype {
    F32,
    Bf16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    Auto,
    Bf16,
    Fp32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QuantizeBase {
    None,
    Int8,
    Nf4,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainOn {
    Last,
    AllAssistant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossNormalization {
    Token,
    Example,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ValidMetric {
    Loss,
    Accuracy,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Train {
    pub method: Method,
    pub head: Head,
    pub r: usize,
    pub lora_alpha: f64,
    pub use_rslora: bool,
    pub use_dora: bool,
    pub lora_dropout: f64,
    pub loraplus_lr_ratio: f64,
    pub target_modules: Vec<String>,
    pub turbo_layers: usize,
    pub turbo_cache_dtype: CacheDtype,
    pub train_on: TrainOn,
    pub loss_normalization: LossNormalization,
    pub learning_rate: f64,
    pub lr_scheduler: LrScheduler,
    pub warmup_ratio: f64,
    pub decay_ratio: f64,
    pub decay_type: DecayType,
    pub seed: Option<u64>,
    pub num_epochs: usize,
    pub batch_size: usize,
    pub gradient_accumulation_steps: usize,
    pub weight_decay: f64,
    pub max_grad_norm: f64,
    pub adam_beta1: f64,
    pub adam_beta2: f64,
    pub adam_epsilon: f64,
    pub dtype: Dtype,
    pub quantize_base: QuantizeBase,
    pub bnb_4bit_use_double_quant: bool,
    pub gradient_checkpointing: bool,
    pub save_steps: usize,
    pub save_total_limit: usize,
    pub eval_steps: usize,
    pub early_stopping_patience: usize,
    pub metric_for_best_model: ValidMetric,
    pub load_best_model_at_end: bool,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Distill {
    pub unreviewed_weight: f64,
    pub teacher: Option<PathBuf>,
    pub teacher_adapter: Option<PathBuf>,
    /// Further teachers.
    pub committee: Vec<PathBuf>,
    /// Instead of a teacher.
    pub capture: Option<PathBuf>,
    pub unlabeled: Vec<PathBuf>,
    /// Draws of a teacher that writes, and the share of them that has to agree.
    pub samples: Option<usize>,
    pub min_agreement: Option<f64>,
    /// Of tasks whose answers are written: what is kept of a distribution over tokens.
    pub top_k: Option<usize>,
    pub draws: Option<usize>,
    pub lambda: f64,
    pub temperature: f64,
    /// Of spelled labels.
    pub exact_mass: f64,
    pub divergence: Divergence,
    /// There where the divergence has one.
    pub divergence_alpha: Option<f64>,
    pub divergence_beta: Option<f64>,
    pub trust: Trust,
    pub on_policy: f64,
    pub on_policy_after: f64,
    pub on_policy_temperature: f64,
    pub on_policy_divergence: OnPolicyDivergence,
    /// Of the teacher's hidden states in the loss.
    pub hidden_weight: f64,
    /// From the top, evenly; 0 for all.
    pub hidden_layers: usize,
    pub hidden_loss: HiddenLoss,
    /// Of what its layers attend to.
    pub attention_weight: f64,
    pub rationales: Vec<PathBuf>,
    pub rationale_weight: f64,
    pub rationale_prompt: String,
}

/// At the tokens of a student's own answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnPolicyDivergence {
    ReverseKl,
    ForwardKl,
    Js,
}

impl Distill {
    /// Whether a teacher's answers have a part in the training.
    pub fn is_asked(&self) -> bool {
        let states_alone = self.matches_states() && self.lambda == 0.0 && self.unlabeled.is_empty();
        self.capture.is_some() || (self.teacher.is_some() && !states_alone)
    }

    /// Whether reasons are learnt beside answers.
    pub fn explains(&self) -> bool {
        !self.rationales.is_empty() && self.rationale_weight > 0.0
    }

    /// Whether its hidden states have, or what its layers attend to.
    pub fn matches_states(&self) -> bool {
        self.teacher.is_some() && (self.hidden_weight > 0.0 || self.attention_weight > 0.0)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HiddenLoss {
    Relative,
    Mse,
    Cosine,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Divergence {
    ForwardKl,
    ReverseKl,
    Js,
    SkewKl,
    AlphaBeta,
}

/// What a teacher's answer is worth that nobody confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trust {
    Reviewed,
    Full,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Quantize {
    pub formats: Vec<String>,
    pub ship: String,
    /// The size of the format `mix`.
    pub target: Option<String>,
    pub imatrix: Imatrix,
    pub rounding: Rounding,
    /// Of compensated rounding.
    pub rounding_tokens: usize,
    /// Mixed into the task's rows.
    pub imatrix_text: Option<PathBuf>,
    pub imatrix_text_share: f64,
    pub imatrix_tokens: usize,
    /// 0 recovers nothing.
    pub recover_epochs: usize,
    pub recover_learning_rate: f64,
}

/// How the layers' matrices are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rounding {
    /// Each block for itself.
    Nearest,
    /// Errors make up for each other, on the task's own rows.
    Compensated,
}

/// Where the importance matrix comes from.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(from = "String")]
pub enum Imatrix {
    None,
    /// The task's own train rows, read by the merged model.
    Task,
    File(PathBuf),
}

impl From<String> for Imatrix {
    fn from(text: String) -> Imatrix {
        match text.as_str() {
            "none" => Imatrix::None,
            "task" => Imatrix::Task,
            _ => Imatrix::File(text.into()),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Promote {
    pub channel: String,
    pub store: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Sign {
    pub key: PathBuf,
    /// A program and its arguments; empty where the key signs.
    pub exec: Vec<String>,
    pub public_key: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Encrypt {
    /// age recipients; empty where nothing is encrypted.
    pub recipients: Vec<String>,
    pub identity: Option<PathBuf>,
}

impl Recipe {
    /// Makes relative paths relative to the recipe's folder. The store and the keys stay relative to the current
    /// directory: they belong to the place where a person works, not to the recipe.
    pub(crate) fn rebase(&mut self, folder: &Path) {
        let join = |path: &mut PathBuf| *path = folder.join(&*path);
        if let BaseModel::Path(path) = &mut self.model.base {
            join(path);
        }
        self.model.cache_dir.iter_mut().for_each(join);
        self.data.traces.iter_mut().for_each(join);
        self.data.decontaminate_against.iter_mut().for_each(join);
        self.task.guidelines.iter_mut().for_each(join);
        self.task.schema.iter_mut().for_each(join);
        self.review.decisions.iter_mut().for_each(join);
        self.review.store.iter_mut().for_each(join);
        self.eval.prices.iter_mut().for_each(join);
        for arm in &mut self.eval.arms {
            if let ArmKind::Endpoint(endpoint) = &mut arm.kind {
                endpoint.ca_file.iter_mut().for_each(join);
            }
        }
        for EvalJudge { kind: JudgeKind::Pairwise(judge), .. } in &mut self.eval.judges {
            judge.ca_file.iter_mut().for_each(join);
        }
        self.quantize.imatrix_text.iter_mut().for_each(join);
        self.distill.teacher.iter_mut().for_each(join);
        self.distill.teacher_adapter.iter_mut().for_each(join);
        self.distill.capture.iter_mut().for_each(join);
        self.distill.committee.iter_mut().for_each(join);
        self.distill.unlabeled.iter_mut().for_each(join);
        self.distill.rationales.iter_mut().for_each(join);
        if let Imatrix::File(path) = &mut self.quantize.imatrix {
            join(path);
        }
    }
}
