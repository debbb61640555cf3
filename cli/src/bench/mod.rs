//! Our training beside PyTorch + PEFT: the same work, in turn, each side in a process of its own. Here are the figures that
//! one run of a side gives; their names are those of the peer's scripts, so both sides' lines read alike.

pub mod args;
pub mod banking;
pub mod curate;
pub mod distill;
pub mod escalation;
pub mod gpu;
pub mod ours;
pub mod report;
pub mod review;
pub mod runtime;
pub mod serve;
pub mod sides;
pub mod text;
mod tuned;
pub mod write;

use limbeck_model::ops::codes::QuantizeBase;
use serde::{Deserialize, Serialize};

/// Of either side; the peer's fine-tuning always takes two.
pub const THREADS: usize = 2;

/// The rank of the adapter, on all linear layers; its alpha is twice that.
pub const RANK: usize = 16;

/// Training steps of one shape, every token real. Tokens are rows × length on both sides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepFigures {
    /// The peer's dtype, or what our products are computed in.
    pub dtype: String,
    pub bs: usize,
    pub seq: usize,
    pub tokens_per_s_median: f64,
    pub tokens_per_s_best: f64,
    /// Tokens over processor time a thread: what a machine without other users would do, at best.
    pub tokens_per_s_cpu_normalised: Option<f64>,
    pub peak_rss_mib: Option<u64>,
    /// The peer's version of PyTorch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub torch: Option<String>,
    /// Multiplications and additions of a token's forward pass in products with weights; ours only.
    #[serde(default)]
    pub linear_flops: f64,
    /// The same in attention, at the mean position of a row.
    #[serde(default)]
    pub attention_flops: f64,
    /// Mean loss of the last step; ours only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// How the frozen linear layers were kept; ours only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantize_base: Option<QuantizeBase>,
    /// Memory of these layers, in every form that is kept, and of embedding and head; ours only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers_mib: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding_mib: Option<f64>,
}

/// A whole fine-tuning and its accuracy afterwards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FinetuneFigures {
    pub dtype: String,
    pub classes: usize,
    /// Rows trained on.
    pub train: usize,
    pub steps: u64,
    /// Of the training alone.
    pub wall_s: f64,
    /// Every token of every row counted, also where a shared beginning was computed once.
    pub tokens_per_s: f64,
    pub tokens_per_s_cpu_normalised: Option<f64>,
    /// Mean loss of the last 20 steps.
    pub loss_last20: f64,
    /// Of the training.
    pub peak_rss_mib: Option<u64>,
    pub tuned: Tuned,
}

/// The likeliest label by its full log-probability, over the test rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tuned {
    pub accuracy: f64,
    pub n: u64,
    pub seconds: f64,
}
