//! What `limbeck capture` takes.

use clap::{Args, Subcommand};
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
}

#[derive(Args, Debug)]
pub struct Ask {
    /// The teacher: a .gguf, a folder of safetensors, or an artifact's folder
    #[arg(long, value_name = "PATH")]
    pub teacher: PathBuf,
    /// An adapter on it, with its classification head if it has one: a folder as PEFT and `limbeck train` write it
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
}
