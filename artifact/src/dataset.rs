//! The frozen dataset on disk, where curation and training meet without knowing each other: four JSONL splits and a
//! card, addressed by content. A row carries what is needed to walk back to its trace and to the reviewer's decision.
//!
//! Layout of a dataset folder: `dataset.json` (a [`DatasetCard`]), and `train.jsonl`, `valid.jsonl`,
//! `calibration.jsonl`, `test.jsonl`, each one [`Example`] a line.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    Train,
    Valid,
    Calibration,
    Test,
}

impl Split {
    pub const ALL: [Split; 4] = [Split::Train, Split::Valid, Split::Calibration, Split::Test];

    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Valid => "valid",
            Split::Calibration => "calibration",
            Split::Test => "test",
        }
    }
}

/// One chat message: `role` is system, user, assistant or tool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub role: String,
    pub content: String,
}

/// Who said what the target is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LabelSource {
    /// A reviewer's decision.
    Human,
    /// The recorded model's answer, which nobody looked at.
    Teacher,
}

/// What production recorded of the frontier model's call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    pub answer: String,
    pub model: String,
    pub latency_ms: Option<f64>,
    pub prompt_tokens: Option<u64>,
    pub completion_tokens: Option<u64>,
    /// RFC 3339.
    pub at: Option<String>,
    pub feedback: Option<String>,
}

/// The very line a row came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceRef {
    /// The trace's own id, or its digest where it has none.
    pub id: String,
    pub file: String,
    /// 1-based.
    pub line: u64,
}

/// One row: a prompt, the answer that is wanted, and where both came from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// SHA-256 over the canonical JSON of messages and target; names the row in reports and errors.
    pub id: String,
    /// The prompt: everything before the answer (system and user turns), redacted.
    pub messages: Vec<Message>,
    pub target: String,
    pub label_source: LabelSource,
    /// 1 for a reviewed row; the recipe's weight for an unreviewed one.
    pub weight: f32,
    /// Rows of one group (customer, near-duplicate) never straddle two splits.
    pub group: String,
    pub recorded: Recorded,
    pub trace: TraceRef,
    /// The review decision's id, when a person decided.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub decision: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SplitCard {
    pub rows: u64,
    pub reviewed: u64,
    pub sha256: String,
    /// Rows a label.
    pub labels: BTreeMap<String, u64>,
}

/// The card of a frozen dataset. `digest` is the SHA-256 of the card's canonical JSON with `digest` itself empty.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatasetCard {
    pub digest: String,
    /// The taxonomy, sorted.
    pub labels: Vec<String>,
    pub splits: BTreeMap<Split, SplitCard>,
    /// What was left out on the way, by reason; `traces_in` = rows of all splits + these.
    pub traces_in: u64,
    pub left_out: BTreeMap<String, u64>,
    /// Digests of the inputs: trace files, decision files.
    pub sources: BTreeMap<String, String>,
    pub redactions: BTreeMap<String, u64>,
}
