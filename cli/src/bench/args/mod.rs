//! What `limbeck bench` takes, and the hidden `limbeck bench-ours` that it starts for our side.

mod files;
mod gpu;

pub use files::{BenchKl, BenchQuantize, BenchRuntime, BenchWrite, RoundingKind};
pub use gpu::{BenchGpu, GpuPart, OursOps, OursWork};

use super::distill::Arm;
use clap::{Args, Subcommand, ValueEnum};
use limbeck_model::device::Dtype;
use limbeck_model::ops::codes::QuantizeBase;
use limbeck_trainer::HeadKind;
use std::path::PathBuf;

#[derive(Args, Debug)]
pub struct Bench {
    #[command(subcommand)]
    pub verb: BenchVerb,
}

/// What a student answers by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StudentHead {
    Classification,
    /// The labels as they are spelled.
    Verbalizer,
}

impl StudentHead {
    pub fn kind(self) -> HeadKind {
        match self {
            StudentHead::Classification => HeadKind::Classification,
            StudentHead::Verbalizer => HeadKind::Verbalizer,
        }
    }
}

#[derive(Args, Debug)]
pub struct BenchDistill {
    /// The teacher: a .gguf, a folder of safetensors, an artifact's folder, or `linear`, TF-IDF and logistic regression on the whole
    /// train file, which takes seconds
    #[arg(long, value_name = "PATH|linear")]
    pub teacher: PathBuf,
    /// An adapter on the teacher, with its classification head
    #[arg(long, value_name = "DIR")]
    pub teacher_adapter: Option<PathBuf>,
    /// The base that every arm trains an adapter on
    #[arg(long, value_name = "PATH")]
    pub student: PathBuf,
    /// A folder with train.csv and test.csv, columns text,category
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Where captures, trainings and answers are kept
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Labelled rows a class
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub per_class: usize,
    /// Other train rows, whose labels nobody sees
    #[arg(long, value_name = "N", default_value_t = 1540)]
    pub unlabeled: usize,
    /// What the student learns from, in this order
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Arm::Labels, Arm::Soft, Arm::Hard])]
    pub arms: Vec<Arm>,
    /// Share of the teacher's answers that the noisy arms turn into wrong ones
    #[arg(long, value_name = "0..1", default_value_t = 0.15, value_parser = crate::args::share)]
    pub noise: f64,
    /// How many of the teacher's answers are decided in the reviewed arms; an arm for each
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [250])]
    pub decisions: Vec<usize>,
    /// Draw the rows anew for each seed, with a capture for each
    #[arg(long)]
    pub draw_each: bool,
    /// Test rows, drawn (0: all)
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub test_rows: usize,
    /// Seeds of the trainings
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100))]
    pub seeds: u64,
    /// Passes over labelled and unlabeled rows; labels alone are passed over more often, for as many steps
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub epochs: u64,
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub batch_size: usize,
    #[arg(long, value_name = "RATE", default_value_t = 1e-3)]
    pub learning_rate: f64,
    /// Adapt so many layers from the top (0: all)
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub turbo_layers: usize,
    /// Share of the teacher where a row has a label too
    #[arg(long, value_name = "0..1", default_value_t = 0.5)]
    pub lambda: f32,
    #[arg(long, value_name = "T", default_value_t = 2.0)]
    pub temperature: f64,
    /// What the students answer by: a classification head, or the spelled labels
    #[arg(long, value_enum, default_value_t = StudentHead::Classification)]
    pub head: StudentHead,
    /// Of spelled labels: share of the teacher's posterior whose labels are told apart (1: all)
    #[arg(long, value_name = "0..1", default_value_t = 0.98, value_parser = crate::args::share)]
    pub exact_mass: f64,
    /// Rounds of steps that are timed in turn, the first of which does not count
    #[arg(long, value_name = "N", default_value_t = 9)]
    pub step_rounds: usize,
}

#[derive(Subcommand, Debug)]
pub enum BenchVerb {
    /// Measure training beside PyTorch + PEFT on the same work, in turn: peer, ours, peer, ours
    #[command(after_help = "\
Example:
  limbeck bench train --peer peer --model smollm2-135m
  limbeck bench train --peer peer --model smollm2-135m --work step,finetune,score --data banking77
  limbeck bench train --peer peer --model smollm2-135m --dtype f32 --our-dtype fp32     without bfloat16

The peer's folder holds peer_step.py and peer_finetune.py, each of which ends with its figures as a line of JSON.
LoRA r=16 on all linear layers, two threads and a process of its own for each side.")]
    Train(BenchTrain),
    /// Measure curation on made-up logs: time and peak memory a stage, and how many planted near-duplicates are found
    #[command(after_help = "\
Example:
  limbeck bench curate
  limbeck bench curate --count 100000,300000,1000000 --datatrove .venv/bin/python

A log is some 1 GB a million traces, and is gone when the command ends. The peer, datatrove's MinHash with its defaults,
runs on the messages of the shortest log: pip install datatrove orjson spacy 'xxhash<4'")]
    Curate(BenchCurate),
    /// Measure the review desk at a full queue: its start, and the way from a key to the next item, disk included
    #[command(after_help = "Example:\n  limbeck bench review --items 100000")]
    Review(BenchReview),
    /// Measure writing: prompts one by one and many at once, in turn
    #[command(after_help = "\
Example:
  limbeck bench write --model smollm2-135m
  limbeck bench write --model runs/booking-extractor/quantize/booking-extractor-Q8_0.gguf --batch 4,16,64 --tokens 32")]
    Write(BenchWrite),
    /// Measure a model file's speed, prompts read and tokens written one at a time, beside llama.cpp in turn
    #[command(after_help = "\
Example:
  limbeck bench runtime --model smollm2-Q8_0.gguf,smollm2-Q4_0.gguf
  limbeck bench runtime --model smollm2-Q8_0.gguf --peer .venv/bin/python      pip install xllamacpp")]
    Runtime(BenchRuntime),
    /// Plant wrong labels in an intent data set and see how many of them come first in the review queue
    #[command(after_help = "Example:\n  limbeck bench suspects --data banking77 --noise 0.15")]
    Suspects(BenchSuspects),
    /// Measure what a teacher is worth: a student on few labels, and with a teacher's soft or hard labels of others
    #[command(after_help = "\
Example:
  limbeck carve smollm2-135m --layers 0-9 --merges 48900 --out student.gguf
  limbeck bench distill --teacher smollm2-135m --teacher-adapter runs/big/train/adapter --student student.gguf \\
    --data banking77 --out distill
  limbeck bench distill --teacher linear --student student.gguf --data banking77 --out distill \\
    --arms hard,noisy-hard,reviewed,reviewed-at-random --noise 0.15 --decisions 100,250     errors, and their review

All arms take about as many steps and answer the same test rows. The same command goes on where it was stopped.")]
    Distill(BenchDistill),
    /// Measure `limbeck serve` under load: many callers at once, or arrivals at a rate whatever the server does
    #[command(after_help = "\
Example:
  limbeck bench serve quickstart/staging --messages recipes/quickstart/traces.jsonl
  limbeck bench serve quickstart/staging --messages recipes/quickstart/traces.jsonl --rate 20 --seconds 60
  limbeck bench serve http://127.0.0.1:8080/v1 --model qwen --messages recipes/quickstart/traces.jsonl --rate 2 --seconds 600

In place of an artifact the address of a live endpoint may stand: llama-server, vLLM, a provider (which is paid for each call).
Times are from when a call was due to the end of its answer, and to its first token where answers come in pieces. The 99th
percentile takes 1,000 answers. A recipe's [eval.load] has the evaluation do this, for its report and its latency gate.")]
    Serve(BenchServe),
    /// Measure the encoders of GGUF's block types, beside ggml's in the same run and byte by byte
    #[command(after_help = "\
Example:
  limbeck bench quantize
  limbeck bench quantize --referee .venv/bin/python      pip install xllamacpp numpy

Both sides use all processors and write into memory that is there already. Without a referee only ours is measured.")]
    Quantize(BenchQuantize),
    /// Measure what quantization does to next-token distributions: KL divergence from the exact model, file by file
    #[command(after_help = "\
Example:
  limbeck bench kl --reference smollm2-135m --file a-Q4_0.gguf,b-Q4_0.gguf --text manual.txt
  limbeck bench kl --reference smollm2-135m --make Q4_0,Q4_K_M --calibrate books/ --text in=other-books/ --text out=mails/
  limbeck bench kl --reference base.gguf --adapter runs/router/train/adapter --dataset runs/router/dataset --make Q4_0

--make writes three files of a format: rounded plainly, with an importance matrix, and compensated, the latter two by the
same tokens. What is calibrated on and what is measured must be different documents; a folder's files are documents.")]
    Kl(BenchKl),
    /// Measure training, scoring and writing on a GPU beside PyTorch + PEFT: exactness, speed, memory, and where the time goes
    #[command(after_help = "\
Example:
  limbeck bench gpu --device cuda:0
  limbeck bench gpu --device cuda:0 --part roofline,step,profile --out gpu-bench     goes on where it was stopped
  limbeck bench gpu --device wgpu --rehearse --python .venv/bin/python

Weights are random, at the shapes of Llama-3.2-1B, Qwen3-0.6B and SmolLM2-135M: nothing is fetched. Each side runs in a process of
its own. The answers lie in --out, with table.txt and report.json.")]
    Gpu(BenchGpu),
    /// Draw calibration rows of an intent data set again and again: does the escalation certificate keep its promise?
    #[command(after_help = "\
Example:
  limbeck bench escalation --data banking77 --per-class 20 --calibration 500
  limbeck bench escalation --data banking77 --model smollm2-135m --out tuned

Without a model the scores are a linear floor's, in seconds. With one it is tuned on the same rows first (LoRA and a classification
head); training and posteriors are kept in --out, so that drawing again takes seconds.")]
    Escalation(BenchEscalation),
}

#[derive(Args, Debug, Clone)]
pub struct BenchServe {
    #[command(flatten)]
    pub of: crate::args::ArtifactArgs,
    /// Traces whose messages are asked
    #[arg(long, value_name = "FILE.jsonl")]
    pub messages: PathBuf,
    /// The model's name there, where the artifact is the address of a live endpoint
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub model: String,
    /// NAME of the environment variable that holds its key
    #[arg(long, value_name = "NAME")]
    pub key_env: Option<String>,
    /// Certificates (PEM) that its must stem from, instead of the public authorities'
    #[arg(long, value_name = "PEM")]
    pub ca_file: Option<PathBuf>,
    /// Its longest answer, in tokens
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=32_768))]
    pub max_tokens: u32,
    /// Callers; with --rate, the most that may wait at the same time
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=2000))]
    pub clients: u16,
    /// Requests a second at random times (Poisson) instead of as fast as answers come
    #[arg(long, value_name = "N", value_parser = per_second)]
    pub rate: Option<f64>,
    /// How long
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
    /// Requests that the server answers at the same time
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: u16,
}

fn per_second(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= 100_000.0 => Ok(rate),
        _ => Err("expected a number above 0, for example 20".to_owned()),
    }
}

#[derive(Args, Debug, Clone)]
pub struct BenchEscalation {
    /// A folder with train.csv and test.csv, columns text,category
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Train rows of a label, for the linear floor or the model whose scores are used
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = positive)]
    pub per_class: usize,
    /// Tune this base on the train rows and use its scores: a .gguf or a folder of safetensors
    #[arg(long, value_name = "PATH", requires = "out")]
    pub model: Option<PathBuf>,
    /// Where the training and the posteriors of the test rows are kept
    #[arg(long, value_name = "DIR", requires = "model")]
    pub out: Option<PathBuf>,
    /// Passes of the model over the train rows
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub epochs: u64,
    /// Its peak learning rate
    #[arg(long, value_name = "RATE", default_value_t = 1e-3)]
    pub learning_rate: f64,
    /// Adapt so many of its layers from the top (0: all)
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub turbo_layers: usize,
    /// Test rows that are drawn for calibration; the rest counts errors
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = positive)]
    pub calibration: usize,
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = positive)]
    pub draws: usize,
    /// Share of served answers that may be wrong
    #[arg(long, value_name = "0..1", default_value_t = 0.05, value_parser = rate)]
    pub max_error: f64,
    /// How sure the certificate is of it
    #[arg(long, value_name = "0..1", default_value_t = 0.95, value_parser = rate)]
    pub confidence: f64,
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

fn rate(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|x| *x > 0.0 && *x < 1.0).ok_or_else(|| "expected a number between 0 and 1".to_owned())
}

#[derive(Args, Debug, Clone)]
pub struct BenchCurate {
    /// Traces in a log; several make a table of growth
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "100000", value_parser = clap::value_parser!(u64).range(1000..=10_000_000))]
    pub count: Vec<u64>,
    /// A Python with datatrove, to run it beside
    #[arg(long, value_name = "PYTHON", visible_alias = "peer-python")]
    pub datatrove: Option<PathBuf>,
    /// What the logs are made from
    #[arg(long, value_name = "N", default_value_t = 17)]
    pub seed: u64,
    /// Threads of our side
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = positive)]
    pub threads: usize,
    /// Where logs and results lie while it runs; the system's folder for temporary files when left out
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

#[derive(Args, Debug, Clone)]
pub struct BenchReview {
    /// Items in the queue; the traces are made up
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = positive)]
    pub items: usize,
    /// Decisions to make
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = positive)]
    pub decisions: usize,
    /// What the answers are
    #[arg(long, value_enum, default_value_t = AnswerKind::Labels)]
    pub answers: AnswerKind,
    /// Columns and rows of the screen
    #[arg(long, value_name = "N", default_value_t = 80)]
    pub width: u16,
    #[arg(long, value_name = "N", default_value_t = 24)]
    pub height: u16,
    /// Where the run is made and thrown away; the system's folder for temporary files when left out
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerKind {
    /// One of 77 labels
    Labels,
    /// A form of three fields
    Fields,
}

#[derive(Args, Debug, Clone)]
pub struct BenchSuspects {
    /// A folder with train.csv and test.csv, columns text,category
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Share of labels that are replaced by another, any other alike
    #[arg(long, value_name = "0..1", default_value_t = 0.15)]
    pub noise: f64,
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

#[derive(Args, Debug, Clone)]
pub struct BenchTrain {
    /// The folder of peer_step.py and peer_finetune.py
    #[arg(long, value_name = "DIR")]
    pub peer: PathBuf,
    /// A Python with torch, transformers and peft [default: .venv/bin/python in the peer's folder]
    #[arg(long, value_name = "FILE")]
    pub python: Option<PathBuf>,
    /// The base model, a Hugging Face folder
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Comparisons: steps of one shape, a fine-tuning, scoring of labels after it; and growth of batch and length, ours alone
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WORK,...", default_value = "step")]
    pub work: Vec<Work>,
    /// How often each side runs
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=100))]
    pub rounds: u64,
    /// What the peer computes in
    #[arg(long, value_enum, default_value_t = PeerDtype::Bf16)]
    pub dtype: PeerDtype,
    /// What our matrix products compute in; auto is bf16 where the processor is faster with it
    #[arg(long, value_enum, default_value_t = OurDtype::Auto)]
    pub our_dtype: OurDtype,
    /// Rows a step
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = positive)]
    pub batch_size: usize,
    /// Tokens a row, in steps of one shape
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = length)]
    pub length: usize,
    /// Steps before those that are measured
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub warmup: u64,
    /// Steps that are measured
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..))]
    pub steps: u64,
    /// The intents to fine-tune on: a folder with train.csv and test.csv, columns text,category
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Take the first categories in alphabetical order
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = positive)]
    pub classes: usize,
    /// Train rows a category, at most
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = positive)]
    pub per_class: usize,
    /// Test rows a category, at most
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = positive)]
    pub test_per_class: usize,
    /// Epochs of the fine-tuning
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    pub epochs: u64,
    /// Its learning rate: warm-up over a twentieth of the steps, then a cosine to zero
    #[arg(long, value_name = "RATE", default_value_t = 5e-4)]
    pub learning_rate: f64,
    /// Compute our layers a second time in the backward pass instead of keeping what they computed
    #[arg(long)]
    pub gradient_checkpointing: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Work {
    Step,
    Finetune,
    Score,
    Growth,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PeerDtype {
    Bf16,
    F32,
}

impl PeerDtype {
    pub fn name(self) -> &'static str {
        match self {
            PeerDtype::Bf16 => "bf16",
            PeerDtype::F32 => "f32",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OurDtype {
    Auto,
    Bf16,
    Fp32,
}

impl OurDtype {
    pub fn name(self) -> &'static str {
        match self {
            OurDtype::Auto => "auto",
            OurDtype::Bf16 => "bf16",
            OurDtype::Fp32 => "fp32",
        }
    }

    fn compute(self) -> Dtype {
        match self {
            OurDtype::Auto => Dtype::Auto,
            OurDtype::Bf16 => Dtype::Bf16,
            OurDtype::Fp32 => Dtype::Fp32,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OurBase {
    None,
    Int8,
    Nf4,
}

#[derive(Args, Debug)]
pub struct BenchOurs {
    #[command(subcommand)]
    pub verb: OursVerb,
}

#[derive(Subcommand, Debug)]
pub enum OursVerb {
    /// Steps of one shape, every position with loss
    Step(OursStep),
    /// A whole fine-tuning on all rows of a folder, and its accuracy
    Finetune(OursFinetune),
    /// One stage of curation on a made-up log
    Curate(OursCurate),
    /// Single ops on a peer's inputs
    Op(OursOps),
    /// Steps on a work's rows
    Train(OursWork),
    /// Choices among a work's labels
    Label(OursWork),
    /// Greedy continuations of a work's prompts
    Write(OursWork),
}

#[derive(Args, Debug)]
pub struct OursCurate {
    #[arg(long, value_enum)]
    pub stage: crate::bench::curate::CurateStage,
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    #[arg(long, default_value_t = 1000)]
    pub count: u64,
    #[arg(long, default_value_t = 17)]
    pub seed: u64,
}

#[derive(Args, Debug)]
pub struct OursModel {
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    #[arg(long, value_enum, default_value_t = OurDtype::Auto)]
    dtype: OurDtype,
    #[arg(long)]
    pub gradient_checkpointing: bool,
    /// How the frozen linear layers are kept: train.quantize_base of a recipe
    #[arg(long, value_enum, default_value_t = OurBase::None)]
    quantize_base: OurBase,
}

impl OursModel {
    pub fn quantize_base(&self) -> QuantizeBase {
        match self.quantize_base {
            OurBase::None => QuantizeBase::None,
            OurBase::Int8 => QuantizeBase::Int8,
            OurBase::Nf4 => QuantizeBase::Nf4,
        }
    }

    pub fn dtype(&self) -> Dtype {
        self.dtype.compute()
    }
}

#[derive(Args, Debug)]
pub struct OursStep {
    #[command(flatten)]
    pub model: OursModel,
    #[arg(long, default_value_t = 8, value_parser = positive)]
    pub bs: usize,
    #[arg(long, default_value_t = 128, value_parser = length)]
    pub seq: usize,
    #[arg(long, default_value_t = 2)]
    pub warmup: u64,
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..))]
    pub steps: u64,
}

#[derive(Args, Debug)]
pub struct OursFinetune {
    #[command(flatten)]
    pub model: OursModel,
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    pub epochs: u64,
    #[arg(long, default_value_t = 8, value_parser = positive)]
    pub bs: usize,
    #[arg(long, default_value_t = 5e-4)]
    pub lr: f64,
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "expected a whole number of at least 1".to_owned())
}

/// One token alone predicts nothing.
fn length(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 1).ok_or_else(|| "expected a whole number of at least 2".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Verb};
    use clap::Parser;

    fn train(more: &str) -> Result<BenchTrain, clap::Error> {
        let line = format!("limbeck bench train --peer p --model m {more}");
        match Cli::try_parse_from(line.split_whitespace())?.verb {
            Verb::Bench(Bench { verb: BenchVerb::Train(args) }) => Ok(args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_defaults_are_the_peers_and_work_is_a_list() {
        let args = train("").unwrap();
        assert_eq!((args.work, args.rounds, args.dtype), (vec![Work::Step], 2, PeerDtype::Bf16));
        assert_eq!((args.batch_size, args.length, args.warmup, args.steps), (8, 128, 2, 8));
        assert_eq!((args.classes, args.per_class, args.epochs, args.learning_rate), (12, 40, 3, 5e-4));
        assert_eq!(train("--work growth,score").unwrap().work, [Work::Growth, Work::Score]);
        for bad in ["--rounds 0", "--work race", "--length 1", "--dtype fp16", "--steps 0", "--classes 0"] {
            assert!(train(bad).is_err(), "{bad}");
        }
    }
}
