//! What a recipe asks of its evaluation: arms, judges, gates, certificates, load. Plain structs like the rest of the recipe.

use serde::Deserialize;
use std::path::PathBuf;

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Eval {
    pub prices: Option<PathBuf>,
    pub threshold: f64,
    pub confidence: f64,
    pub power: f64,
    pub bootstrap_samples: usize,
    pub calibration: CalibrationMethod,
    /// One of the labels.
    pub out_of_scope: Option<String>,
    pub ranking: Ranking,
    /// The untuned base is an arm.
    pub base: bool,
    pub arithmetic: EvalArithmetic,
    pub escalation: Escalation,
    pub load: Load,
    #[serde(rename = "arm", default)]
    pub arms: Vec<EvalArm>,
    #[serde(rename = "judge", default)]
    pub judges: Vec<EvalJudge>,
    #[serde(rename = "gate", default)]
    pub gates: Vec<Gate>,
}

/// Someone who compares texts.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct EvalJudge {
    pub name: String,
    #[serde(flatten)]
    pub kind: JudgeKind,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum JudgeKind {
    Pairwise(Box<PairwiseJudge>),
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct PairwiseJudge {
    pub url: String,
    pub model: String,
    /// The environment variable that holds the key.
    pub key_env: Option<String>,
    pub ca_file: Option<PathBuf>,
    pub against: String,
    pub criteria: Option<String>,
    pub rows: Option<usize>,
    pub max_tokens: u32,
    pub max_tokens_key: String,
    pub concurrency: usize,
    pub max_retries: u32,
    pub timeout_s: f64,
    pub requests_per_minute: u32,
    pub tokens_per_minute: u32,
    pub max_spend: Option<f64>,
}

impl PairwiseJudge {
    /// The same as an arm that is asked once, greedily, and told nothing beside its question.
    pub fn endpoint(&self) -> EndpointArm {
        EndpointArm {
            url: self.url.clone(),
            model: self.model.clone(),
            key_env: self.key_env.clone(),
            ca_file: self.ca_file.clone(),
            api: EndpointApi::Chat,
            prompt: PromptStyle::Recipe,
            shots: 0,
            label_codes: false,
            logprobs: false,
            samples: 1,
            temperature: 0.0,
            max_tokens: Some(self.max_tokens),
            max_tokens_key: self.max_tokens_key.clone(),
            calibrate: false,
            asked_again: 0,
            concurrency: self.concurrency,
            max_retries: self.max_retries,
            timeout_s: self.timeout_s,
            requests_per_minute: self.requests_per_minute,
            tokens_per_minute: self.tokens_per_minute,
            max_spend: self.max_spend,
        }
    }
}

/// An arm beside those that every evaluation has.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct EvalArm {
    pub name: String,
    #[serde(flatten)]
    pub kind: ArmKind,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ArmKind {
    Endpoint(Box<EndpointArm>),
    FewShot { shots: usize, prompt: PromptStyle },
    Cascade { of: Vec<String>, threshold: Option<f64> },
    Ensemble { of: Vec<String> },
}

/// What a model that was not tuned is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PromptStyle {
    /// The labels or the schema, and how to answer.
    Guided,
    /// No more than the row's own prompt.
    Recipe,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointApi {
    Chat,
    Completions,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct EndpointArm {
    pub url: String,
    pub model: String,
    /// The environment variable that holds the key.
    pub key_env: Option<String>,
    /// Where its certificate comes from, instead of the public authorities.
    pub ca_file: Option<PathBuf>,
    pub api: EndpointApi,
    pub prompt: PromptStyle,
    pub shots: usize,
    pub label_codes: bool,
    pub logprobs: bool,
    pub samples: u32,
    pub temperature: f64,
    pub max_tokens: Option<u32>,
    pub max_tokens_key: String,
    pub calibrate: bool,
    /// Rows that are asked once more, to see how often the answer is another.
    pub asked_again: usize,
    pub concurrency: usize,
    pub max_retries: u32,
    pub timeout_s: f64,
    pub requests_per_minute: u32,
    pub tokens_per_minute: u32,
    pub max_spend: Option<f64>,
}

/// In which arithmetic quantized files answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EvalArithmetic {
    Served,
    F32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CalibrationMethod {
    Temperature,
    Platt,
    Isotonic,
    None,
}

/// Without `max_error` no certificate is asked for.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Escalation {
    pub max_error: Option<f64>,
    pub confidence: f64,
    pub review_share: f64,
    pub fallback: Vec<String>,
    pub valid_days: u32,
}

/// Without `positive` nothing is ranked.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Ranking {
    /// One of the labels.
    pub positive: Option<String>,
    pub separator: String,
}

/// Without `rate` nothing is tested under load.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Load {
    pub rate: Option<f64>,
    pub calls: usize,
    pub workers: u16,
    pub at_most: usize,
    pub arms: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Gate {
    pub name: String,
    #[serde(flatten)]
    pub rule: GateRule,
}

/// A split of the dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SplitName {
    Train,
    Valid,
    Calibration,
    Test,
}

/// What the shipped file must do; arms are named base, linear, frontier and tuned, and as the recipe names its own.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum GateRule {
    Floor { metric: Metric, min: f64 },
    Improvement { over: String, min: f64 },
    NonInferiority { against: String, margin: f64 },
    PerClassRecall { min: f64 },
    Cell { gold: String, predicted: String, max: f64 },
    Quantization { against: String, max_agreement_loss: f64, max_accuracy_loss: Option<f64>, max_kl: Option<f64> },
    SliceFloor { by: SliceBy, min: f64 },
    Judge { judge: String, min: f64 },
    CertifiedCoverage { min: f64 },
    Fallback {},
    Latency { p95_ms: f64, under_load: bool },
    InjectionCanary { max_flips: f64 },
    PiiCanary { max_leaks: f64 },
    Calibration { max_error: f64 },
    Cost { max_per_1k_calls: f64 },
    Size { max_mb: f64 },
    Reviewed { of: SplitName, min: f64 },
}

/// What slices the test rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SliceBy {
    Class,
    Length,
    Time,
    Customer,
    Source,
    Script,
    Language,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    Accuracy,
    MacroF1,
    /// All fields right.
    ExactMatch,
    /// The answer is valid under the schema.
    Validity,
    /// How like the wanted text it is.
    RougeL,
}
