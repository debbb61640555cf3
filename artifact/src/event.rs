//! The one closed enum of things that happen in a run. Stages emit, sinks show: the progress line, the journal and the
//! dashboard all read the same events, so watching a live run and replaying a finished one share one path.

use serde::{Deserialize, Serialize};

/// A stage of the pipeline, in the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    Import,
    Curate,
    Review,
    /// Of recipes that name a teacher only.
    Capture,
    Train,
    Quantize,
    Eval,
    Package,
    Promote,
}

impl Stage {
    pub const ALL: [Stage; 9] = [
        Stage::Import,
        Stage::Curate,
        Stage::Review,
        Stage::Capture,
        Stage::Train,
        Stage::Quantize,
        Stage::Eval,
        Stage::Package,
        Stage::Promote,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Stage::Import => "import",
            Stage::Curate => "curate",
            Stage::Review => "review",
            Stage::Capture => "capture",
            Stage::Train => "train",
            Stage::Quantize => "quantize",
            Stage::Eval => "eval",
            Stage::Package => "package",
            Stage::Promote => "promote",
        }
    }
}

/// An event as the journal keeps it: one JSON object a line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub run: String,
    pub seq: u64,
    /// RFC 3339, UTC, milliseconds.
    pub at: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stage: Option<Stage>,
    #[serde(flatten)]
    pub kind: EventKind,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    RunStarted {
        recipe: String,
        version: String,
        device: String,
        /// What the program was called with; the same again resumes the run. Empty in older journals.
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        arguments: Vec<String>,
    },
    RunFinished {
        exit_code: u8,
        wall_ms: u64,
    },
    StageStarted {},
    /// Nothing to do: a record with the same plan and inputs exists and its outputs are intact.
    StageCached {
        key: String,
    },
    /// An interrupted stage goes on where it stopped.
    StageResumed {
        from: String,
    },
    StageFinished {
        wall_ms: u64,
        summary: String,
    },
    /// Countable work. `unit` is plural: "traces", "rows", "tensors".
    Progress {
        done: u64,
        total: u64,
        unit: String,
    },
    /// What asking a live model has cost so far, in the price table's currency.
    Spent {
        #[serde(deserialize_with = "finite_or_nan")]
        amount: f64,
        currency: String,
    },
    /// So many things were kept or left out, and why. `what` is plural and says what became of them ("rows", "rows left
    /// out"); `reason` is empty for what was kept.
    Counted {
        what: String,
        n: u64,
        reason: String,
    },
    TrainStep {
        step: u64,
        total: u64,
        #[serde(deserialize_with = "finite_or_nan")]
        epoch: f64,
        #[serde(deserialize_with = "finite_or_nan")]
        loss: f64,
        #[serde(deserialize_with = "finite_or_nan")]
        learning_rate: f64,
        #[serde(deserialize_with = "finite_or_nan")]
        grad_norm: f64,
        #[serde(deserialize_with = "finite_or_nan")]
        tokens_per_s: f64,
        #[serde(deserialize_with = "finite_or_nan")]
        eta_s: f64,
    },
    Validated {
        step: u64,
        #[serde(deserialize_with = "finite_or_nan")]
        loss: f64,
        #[serde(deserialize_with = "finite_or_nan")]
        accuracy: f64,
    },
    Checkpoint {
        step: u64,
        path: String,
    },
    /// The process's largest resident set so far (Linux's VmHWM; nothing elsewhere), told when it grew.
    Resources {
        peak_rss_bytes: u64,
    },
    /// An arm of the evaluation: its accuracy on the test rows.
    ArmScored {
        arm: String,
        n: u64,
        #[serde(deserialize_with = "finite_or_nan")]
        accuracy: f64,
        #[serde(deserialize_with = "finite_or_nan")]
        p50_ms: f64,
        #[serde(deserialize_with = "finite_or_nan")]
        p95_ms: f64,
    },
    GateDecided {
        gate: String,
        verdict: String,
        reason: String,
    },
    Wrote {
        path: String,
        bytes: u64,
    },
    Note {
        text: String,
    },
    Warning {
        text: String,
    },
}

/// JSON has no NaN: serde_json writes null for what is not finite, and a diverged loss must not make a journal illegible.
fn finite_or_nan<'de, D: serde::Deserializer<'de>>(d: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(d)?.unwrap_or(f64::NAN))
}

/// What a stage emits to. It must not block for long and never fails: a sink that can't write says so itself.
pub trait Emit: Sync {
    fn emit(&self, kind: EventKind);
}

/// Swallows everything; for tests and for callers that want only the result.
pub struct Silent;

impl Emit for Silent {
    fn emit(&self, _kind: EventKind) {}
}

impl<F: Fn(EventKind) + Sync> Emit for F {
    fn emit(&self, kind: EventKind) {
        self(kind)
    }
}
