//! What `limbeck capture` takes.

use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Capture {
    #[command(subcommand)]
    pub verb: Option<CaptureVerb>,
    #[command(flatten)]
    pub ask: Option<Ask>,
}

#[derive(Subcommand, Debug)]
pub enum CaptureVerb {
    /// Say whose answers a file holds, to what, and how sure the teacher was
    #[command(after_help = "Example:\n  limbeck capture show router.capture --json")]
    Show {
        /// A capture, finished or not
        file: PathBuf,
    },
    /// Make one capture of several over the same rows: the mean of what their teachers say
    #[command(after_help = "\
Example:
  limbeck capture merge large.capture other.capture --out both.capture
  limbeck capture merge large.capture other.capture --weight 3 --weight 1 --out both.capture

A recipe takes it with distill.capture; one that names distill.teacher and distill.committee does this by itself.")]
    Merge {
        /// Captures over the same labels and prompts, or over the same rows' tokens
        #[arg(required = true, num_args = 2.., value_name = "CAPTURE")]
        files: Vec<PathBuf>,
        /// What each counts beside the others, in their order; all count alike when left out
        #[arg(long, value_name = "W", value_parser = weight)]
        weight: Vec<f64>,
        /// The file to write
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

fn weight(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|w: &f64| *w > 0.0 && w.is_finite()).ok_or_else(|| "expected a number above 0".to_owned())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Turns {
    Last,
    AllAssistant,
}

#[derive(Args, Debug)]
pub struct Ask {
    /// The teacher: a .gguf, a folder of safetensors, or an artifact's folder
    #[arg(long, value_name = "PATH")]
    pub teacher: PathBuf,
    /// What a training left on it, with its classification head if it has one: an adapter's folder as PEFT and `limbeck train` write it,
    /// or that of all weights (runs/NAME/train/model)
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// A frozen dataset's folder (runs/NAME/dataset), or a file of messages
    #[arg(long, value_name = "PATH")]
    pub data: PathBuf,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// The labels to choose from, one a line; a dataset, an artifact or an adapter's head names its own
    #[arg(long, value_name = "FILE")]
    pub labels: Option<PathBuf>,
    /// Put in place of a file's system prompts; a dataset's rows have theirs
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Of a dataset of written answers: so many likeliest tokens are kept of what the teacher expects at each (20 when left out)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=100), conflicts_with = "draws")]
    pub top_k: Option<u8>,
    /// Instead of the likeliest: so many draws, unbiased and in half the room
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=100))]
    pub draws: Option<u8>,
    /// Of a dataset of written answers: the model that is to learn, where it has another tokenizer or chat template than the teacher
    #[arg(long, value_name = "PATH")]
    pub student: Option<PathBuf>,
    /// Tokens that a row of written answers may have, as in the recipe (model.max_seq_length)
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub max_seq_length: usize,
    /// Which of the assistant's turns are answered, as in the recipe (train.train_on)
    #[arg(long, value_enum, default_value_t = Turns::Last)]
    pub train_on: Turns,
}
