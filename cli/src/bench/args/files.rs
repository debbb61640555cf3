//! What the benches of model files take: rounding, divergence, speed.

use super::{length, positive, rate};
use crate::args::ArithmeticArg;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

#[derive(Args, Debug, Clone)]
pub struct BenchQuantize {
    /// A Python with xllamacpp and numpy, whose ggml runs beside
    #[arg(long, value_name = "PYTHON")]
    pub referee: Option<PathBuf>,
    /// MB of f32 that each type encodes
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = positive)]
    pub megabytes: usize,
    /// How often each side takes its turn; the best of its timings counts
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = positive)]
    pub rounds: usize,
    /// What the weights are made from
    #[arg(long, value_name = "N", default_value_t = 17)]
    pub seed: u64,
}

#[derive(Args, Debug, Clone)]
pub struct BenchKl {
    /// The exact model: a .gguf in F32, F16 or BF16, or a folder of safetensors
    #[arg(long, value_name = "PATH")]
    pub reference: PathBuf,
    /// What a training left, merged into the exact model
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Files to measure; ratios are to the first
    #[arg(long, value_name = "FILE.gguf,...", value_delimiter = ',')]
    pub file: Vec<PathBuf>,
    /// Formats to make of the exact model and to measure; ratios are to the file with an importance matrix
    #[arg(long, value_name = "FORMAT,...", value_delimiter = ',')]
    pub make: Vec<limbeck_quantize::Format>,
    /// Sizes of files to make, their block types chosen by what rounding each matrix costs: 90MB or 4.5bpw
    #[arg(long, value_name = "SIZE,...", value_delimiter = ',')]
    pub mix: Vec<limbeck_quantize::allocate::Target>,
    /// Tokens that matrices are measured on, for --mix
    #[arg(long, value_name = "N", default_value_t = 768, value_parser = positive)]
    pub mix_tokens: usize,
    /// Which files of a format are made
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "KIND,...",
        default_value = "plain,imatrix,compensated"
    )]
    pub rounding: Vec<RoundingKind>,
    /// Texts to calibrate on: a file or a folder of them; beside --dataset, the general share
    #[arg(long, value_name = "PATH")]
    pub calibrate: Vec<PathBuf>,
    /// A run's frozen dataset: its train rows are calibrated on, its test rows measured
    #[arg(long, value_name = "DIR")]
    pub dataset: Option<PathBuf>,
    /// Of the calibration, what --calibrate gives beside --dataset
    #[arg(long, value_name = "0..1", default_value_t = 0.25, value_parser = rate)]
    pub general_share: f64,
    /// Tokens to calibrate on
    #[arg(long, value_name = "N", default_value_t = 16_384, value_parser = positive)]
    pub calibration_tokens: usize,
    /// Texts to measure on: a file or a folder; NAME=PATH puts several under one name
    #[arg(long, value_name = "[NAME=]PATH")]
    pub text: Vec<String>,
    /// Tokens to measure of each name, and of the dataset
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = positive)]
    pub tokens: usize,
    /// Tokens of a piece of text, which begins anew
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = length)]
    pub length: usize,
    /// Where made files are kept, and taken from when they are there already
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Of compensated rounding: share of the mean square on the diagonals
    #[arg(long, value_name = "SHARE", default_value_t = 0.01, hide = true)]
    pub damping: f64,
    /// How far matrices move to make up for the layers before them
    #[arg(long, value_name = "0..1", default_value_t = 1.0, hide = true)]
    pub asymmetry: f64,
    /// Passes of descent
    #[arg(long, value_name = "N", default_value_t = 8, hide = true)]
    pub passes: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoundingKind {
    Plain,
    Imatrix,
    Compensated,
}

impl RoundingKind {
    pub fn name(self) -> &'static str {
        match self {
            RoundingKind::Plain => "plain",
            RoundingKind::Imatrix => "imatrix",
            RoundingKind::Compensated => "compensated",
        }
    }
}

#[derive(Args, Debug, Clone)]
pub struct BenchWrite {
    /// The model: a .gguf, or a folder of safetensors
    #[arg(long, value_name = "PATH")]
    pub model: PathBuf,
    /// Rows at once, beside one by one
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "8,32", value_parser = positive)]
    pub batch: Vec<usize>,
    /// Prompts
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = positive)]
    pub rows: usize,
    /// Tokens of a prompt behind the shared beginning, about
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = positive)]
    pub prompt: usize,
    /// Tokens to write to each
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = positive)]
    pub tokens: usize,
    /// Each also with answers kept to a schema, in turn; the model must have its tokenizer beside it
    #[arg(long)]
    pub constrained: bool,
    /// How often each is measured
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=100))]
    pub rounds: u64,
}

#[derive(Args, Debug, Clone)]
pub struct BenchRuntime {
    /// Model files; those that llama.cpp is to read are GGUF
    #[arg(long, value_name = "FILE,...", value_delimiter = ',', required = true)]
    pub model: Vec<PathBuf>,
    /// A Python with xllamacpp, to run it beside
    #[arg(long, value_name = "PYTHON")]
    pub peer: Option<PathBuf>,
    /// Our arithmetic: of the file's blocks as llama.cpp serves them, or of weights expanded to float32
    #[arg(long, value_enum, default_value_t = ArithmeticArg::Served)]
    pub arithmetic: ArithmeticArg,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = positive)]
    pub prompt: usize,
    /// Tokens to write behind it
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = positive)]
    pub tokens: usize,
    /// How often each is measured
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=100))]
    pub rounds: u64,
}
