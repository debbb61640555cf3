//! What the comparison on a GPU takes, and our side of it.

use super::OursModel;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A part of the comparison; they stand in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GpuPart {
    /// What the device reaches: a matrix product, a copy
    Roofline,
    /// Single ops and their gradients, against float64
    Ops,
    /// Losses of 50 steps, against float32
    Curve,
    /// Steps at real shapes: tokens a second, memory, share of the device's peak
    Step,
    /// Fine-tuning on short messages with one prompt
    Intent,
    /// Choosing among labels, and writing
    Answer,
    /// Which of our kernels the time goes to
    Profile,
}

#[derive(Args, Debug, Clone)]
pub struct BenchGpu {
    /// A Python with torch, transformers, peft and safetensors
    #[arg(long, value_name = "FILE", default_value = "python3")]
    pub python: PathBuf,
    /// Where models and answers are kept; the same command goes on where it was stopped
    #[arg(long, value_name = "DIR", default_value = "gpu-bench")]
    pub out: PathBuf,
    /// Parts to run [default: all]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART,...")]
    pub part: Vec<GpuPart>,
    /// Traces of one short task, for the intent workload
    #[arg(long, value_name = "FILE.jsonl", default_value = "recipes/quickstart/traces.jsonl")]
    pub traces: PathBuf,
    /// Whose tokenizer and chat template those are put into
    #[arg(long, value_name = "PATH", default_value = "recipes/quickstart/base.gguf")]
    pub tokenizer: PathBuf,
    /// Tiny shapes, the peer on the CPU: shows that everything runs, says nothing of speed
    #[arg(long)]
    pub rehearse: bool,
    /// Measure anew what was measured before
    #[arg(long)]
    pub again: bool,
}

#[derive(Args, Debug)]
pub struct OursOps {
    /// What `peer.py ops` wrote
    #[arg(long, value_name = "FILE")]
    pub tensors: PathBuf,
    /// What it said of it
    #[arg(long, value_name = "FILE")]
    pub cases: PathBuf,
}

#[derive(Args, Debug)]
pub struct OursWork {
    #[command(flatten)]
    pub model: OursModel,
    #[arg(long, value_name = "FILE")]
    pub work: PathBuf,
    /// Of a training: the adapter that it begins with
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Of labels: the tokenizer
    #[arg(long, value_name = "PATH")]
    pub tokenizer: Option<PathBuf>,
    /// Of a training: which kernels the time of its last step goes to
    #[arg(long)]
    pub profile: bool,
}
