//! What `limbeck gguf` takes.

use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Args, Debug)]
pub struct Gguf {
    #[command(subcommand)]
    pub verb: GgufVerb,
}

#[derive(Subcommand, Debug)]
pub enum GgufVerb {
    /// List a file's metadata, and its tensors with their types and bits a weight
    #[command(after_help = "Example:\n  limbeck gguf show runs/quickstart/quantize/quickstart-Q4_0.gguf")]
    Show(GgufShow),
    /// Say how two files differ: keys, tensors, and how far their values are apart
    #[command(after_help = "Example:\n  limbeck gguf diff quickstart-Q8_0.gguf quickstart-Q4_K_M.gguf")]
    Diff(GgufDiff),
    /// Say what llama.cpp would refuse, or take in silence and shouldn't
    #[command(after_help = "\
Example:
  limbeck gguf check model.gguf && llama-server -m model.gguf

Exit code 6 where llama.cpp would not load the file. Keys and tensors are checked for the families that limbeck runs.")]
    Check(GgufCheck),
}

#[derive(Args, Debug, Clone)]
pub struct GgufShow {
    pub file: PathBuf,
    /// Show long texts and lists as they are
    #[arg(long)]
    pub full: bool,
}

#[derive(Args, Debug, Clone)]
pub struct GgufDiff {
    pub a: PathBuf,
    pub b: PathBuf,
}

#[derive(Args, Debug, Clone)]
pub struct GgufCheck {
    pub file: PathBuf,
    /// Read the header alone: nothing is said of the weights' values
    #[arg(long)]
    pub header_only: bool,
}
