//! What making students takes: carving a base, and asking a live model for answers.

use super::{RecipeArg, price, share};
use clap::{Args, ValueEnum};
use limbeck_distill::influence::By;
use std::path::PathBuf;

#[derive(Args, Debug)]
#[command(group(clap::ArgGroup::new("which").args(["layers", "keep", "prompts"]).required(true).multiple(true)))]
pub struct Carve {
    /// The model to carve from: a .gguf, or a folder of safetensors
    pub source: PathBuf,
    /// Layers to keep, counted from 0: 0-3,28,29
    #[arg(long, value_name = "LIST", value_parser = layers, conflicts_with = "keep")]
    pub layers: Option<Layers>,
    /// How many layers to keep; which ones is measured on --prompts
    #[arg(long, value_name = "N", requires = "prompts")]
    pub keep: Option<usize>,
    /// How the layers to keep are chosen
    #[arg(long, value_enum, default_value_t = KeepBy::Influence, requires = "keep")]
    pub by: KeepBy,
    /// Prompts of the task: a frozen dataset's folder (runs/NAME/dataset), whose train rows bring answers too, or a file of messages
    #[arg(long, value_name = "PATH")]
    pub prompts: Option<PathBuf>,
    /// Rows of them to measure on, from all over
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rows: u32,
    /// Neurons of each MLP to keep: those that say and write most on --prompts
    #[arg(long, value_name = "N", requires = "prompts")]
    pub neurons: Option<usize>,
    /// How many of the tokenizer's merges to keep, from the first on; the whole vocabulary when left out
    #[arg(long, value_name = "N")]
    pub merges: Option<usize>,
    /// The GGUF file to write; without it the layers are measured, and nothing is written
    #[arg(long, value_name = "FILE", required_unless_present = "prompts")]
    pub out: Option<PathBuf>,
    /// Name inside the file; the file's own name when left out
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// SPDX id of the licence; the source's own when left out
    #[arg(long, value_name = "SPDX")]
    pub license: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KeepBy {
    /// Those that change the prompts' states least go, wherever they are
    Influence,
    /// One stretch goes: that whose ends are nearest
    Window,
    /// One stretch goes: that without which the loss on the answers is least
    Loss,
}

impl std::fmt::Display for KeepBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            KeepBy::Influence => "influence",
            KeepBy::Window => "window",
            KeepBy::Loss => "loss",
        })
    }
}

impl From<KeepBy> for By {
    fn from(by: KeepBy) -> By {
        match by {
            KeepBy::Influence => By::Influence,
            KeepBy::Window => By::Window,
            KeepBy::Loss => By::Loss,
        }
    }
}

#[derive(Args, Debug)]
pub struct Ladder {
    #[command(flatten)]
    pub recipe: RecipeArg,
    /// Layers of each student, the most first; all, two thirds, two fifths and a fifth of the base's when left out
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    pub rungs: Vec<usize>,
    /// How the layers to keep are chosen
    #[arg(long, value_enum, default_value_t = KeepBy::Influence)]
    pub by: KeepBy,
    /// Train rows that the layers are measured on, from all over
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rows: u32,
    /// Neurons of each MLP to keep in the carved rungs
    #[arg(long, value_name = "N")]
    pub neurons: Option<usize>,
    /// How many of the tokenizer's merges to keep in the carved rungs; the whole vocabulary when left out
    #[arg(long, value_name = "N")]
    pub merges: Option<usize>,
    /// Messages that nobody labelled: the first rung answers them for the others
    #[arg(long, value_name = "FILE")]
    pub unlabeled: Vec<PathBuf>,
    /// What the carved rungs train with beside the recipe, for example --heal train.num_epochs=8 (may be repeated)
    #[arg(long, value_name = "KEY=VALUE", value_parser = super::key_value)]
    pub heal: Vec<(String, String)>,
    /// Train the carved rungs on the labels alone
    #[arg(long, conflicts_with = "unlabeled")]
    pub no_teacher: bool,
}

#[derive(Args, Debug)]
pub struct Seeds {
    #[command(flatten)]
    pub recipe: RecipeArg,
    /// Trainings, the recipe's own among them
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(2..=100))]
    pub seeds: u64,
}

/// A type of its own, or clap would take the list for a repeated argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layers(pub Vec<usize>);

fn layers(text: &str) -> Result<Layers, String> {
    let mut list = Vec::new();
    for part in text.split(',').map(str::trim) {
        let number = |s: &str| s.trim().parse::<usize>().map_err(|_| format!("`{s}` is no layer; write 0-3,28,29"));
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        if last < first || last > 10_000 {
            return Err(format!("`{part}` is no range of layers; write 0-3,28,29"));
        }
        list.extend(first..=last);
    }
    Ok(Layers(list))
}

#[derive(Args, Debug)]
pub struct Teach {
    #[command(flatten)]
    pub recipe: RecipeArg,
    /// The live model: the name of an [[eval.arm]] of kind endpoint; several vote together (may be repeated)
    #[arg(long, required = true, value_name = "NAME")]
    pub arm: Vec<String>,
    /// Messages, a line each
    #[arg(long, required = true, value_name = "FILE.jsonl")]
    pub messages: Vec<PathBuf>,
    /// The folder to write: traces.jsonl, queue.jsonl, rejected.jsonl, replies/NAME.jsonl
    #[arg(long, value_name = "DIR", default_value = "taught")]
    pub out: PathBuf,
    /// Draws a message; the arm's own number when left out
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub samples: Option<u32>,
    /// Temperature of the draws; the arm's own when left out, but 0.7 for several draws at 0
    #[arg(long, value_name = "T", value_parser = temperature)]
    pub temperature: Option<f64>,
    /// What fewer of the draws agree on goes to the reviewers
    #[arg(long, value_name = "0..1", default_value_t = 0.6, value_parser = share)]
    pub min_agreement: f64,
    /// Stop before more than this is spent, in the currency of eval.prices; the arm's own cap when left out
    #[arg(long, value_name = "AMOUNT", value_parser = price)]
    pub max_spend: Option<f64>,
    /// Leave personal data in what is sent and written: only for messages that are known to hold none
    #[arg(long)]
    pub no_redact: bool,
    /// Say what would be asked and what it may cost; nothing is sent
    #[arg(long)]
    pub dry_run: bool,
    /// Send nothing: write the requests as files for a provider's batch API (OpenAI's format); with --batch-read, those that still
    /// have no result
    #[arg(long, value_name = "FILE.jsonl", conflicts_with = "dry_run")]
    pub batch_write: Option<PathBuf>,
    /// Send nothing: take a batch's results, and its errors, as the replies
    #[arg(long, value_name = "FILE.jsonl", num_args = 1.., conflicts_with = "dry_run")]
    pub batch_read: Vec<PathBuf>,
    /// Requests in a batch file at most; what is more goes to further files
    #[arg(long, value_name = "N", requires = "batch_write", value_parser = batch_requests)]
    pub batch_requests: Option<usize>,
    /// Add the replies to FILE
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Take the replies from FILE; the network is not used
    #[arg(long, value_name = "FILE", conflicts_with_all = ["record", "batch_write", "batch_read"])]
    pub replay: Option<PathBuf>,
}

fn batch_requests(text: &str) -> Result<usize, String> {
    let most = limbeck_distill::endpoint::MAX_REQUESTS;
    text.parse().ok().filter(|n| (1..=most).contains(n)).ok_or_else(|| format!("expected a number from 1 to {most}"))
}

fn temperature(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|t| (0.0..=2.0).contains(t)).ok_or_else(|| "expected a number from 0 to 2".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_lists_and_ranges() {
        assert_eq!(layers("0-3, 28,29").unwrap().0, [0, 1, 2, 3, 28, 29]);
        for bad in ["", "3-1", "x", "1,,2", "0-99999999"] {
            assert!(layers(bad).is_err(), "{bad}");
        }
    }
}
