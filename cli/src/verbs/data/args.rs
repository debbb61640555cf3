//! What `limbeck data` takes.

use clap::{Args, Subcommand, ValueEnum};
use limbeck_artifact::dataset::Split;
use std::path::PathBuf;

#[derive(Args, Debug)]
pub struct Data {
    #[command(subcommand)]
    pub verb: DataVerb,
}

#[derive(Subcommand, Debug)]
pub enum DataVerb {
    /// Check a frozen dataset and show its card: classes, slices, whose labels, what was left out and why
    #[command(
        after_help = "Example:\n  limbeck data show recipes/quickstart\n  limbeck data show runs/quickstart --json"
    )]
    Show {
        /// A recipe, a run's folder or name, or a dataset's folder
        #[arg(value_name = "DATASET")]
        of: PathBuf,
    },
    /// Say what changed from one frozen dataset to another: rows added, removed, relabelled, moved between splits
    #[command(after_help = "\
Example:
  limbeck data diff runs/quickstart runs/quickstart-2
  limbeck data diff old/dataset runs/quickstart --json")]
    Diff {
        #[arg(value_name = "A")]
        a: PathBuf,
        #[arg(value_name = "B")]
        b: PathBuf,
        /// List so many rows of each kind
        #[arg(long, value_name = "N", default_value_t = 5)]
        rows: usize,
    },
    /// Tell where a row came from, and who decided on it; or, of a trace that is no row, why it was left out
    #[command(after_help = "\
Example:
  limbeck data lineage recipes/quickstart 1c551ab4           a row, by the first digits of its id
  limbeck data lineage recipes/quickstart call-a2099d462d4e  a trace, by its id")]
    Lineage {
        /// A recipe, a run's folder or name, or a dataset's folder
        #[arg(value_name = "DATASET")]
        of: PathBuf,
        /// The row's id or its beginning, or a trace's id
        #[arg(value_name = "ROW")]
        row: String,
        /// Further decision files to look in
        #[arg(long, value_name = "FILE.jsonl")]
        decisions: Vec<PathBuf>,
    },
    /// Write rows as other trainers read them: chat JSONL (TRL, axolotl), or preference pairs from corrections
    #[command(after_help = "\
Example:
  limbeck data export recipes/quickstart --format chat --split train > train.jsonl
  limbeck data export recipes/quickstart --format dpo --out pairs.jsonl

chat: {\"messages\": [...]}, the wanted answer as the last turn. TRL's SFTTrainer reads it as it is; axolotl with
`type: chat_template`. dpo: {\"prompt\": [...], \"chosen\": [...], \"rejected\": [...]} of every row whose recorded answer a
person replaced; TRL's DPOTrainer reads it as it is.")]
    Export {
        /// A recipe, a run's folder or name, or a dataset's folder
        #[arg(value_name = "DATASET")]
        of: PathBuf,
        #[arg(long, value_enum)]
        format: Format,
        /// Which split
        #[arg(long, value_enum, default_value_t = SplitName::Train)]
        split: SplitName,
        /// A file instead of stdout
        #[arg(long, value_name = "FILE.jsonl")]
        out: Option<PathBuf>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Chat,
    Dpo,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SplitName {
    Train,
    Valid,
    Calibration,
    Test,
}

impl SplitName {
    pub fn split(self) -> Split {
        match self {
            SplitName::Train => Split::Train,
            SplitName::Valid => Split::Valid,
            SplitName::Calibration => Split::Calibration,
            SplitName::Test => Split::Test,
        }
    }
}
