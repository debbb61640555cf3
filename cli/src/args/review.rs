//! What reviewing takes: who reviews which part of the queue, and the tools that a queue goes to and comes from.

use super::{RecipeArg, share};
use clap::Args;
use std::path::PathBuf;

#[derive(Args, Debug)]
pub struct Review {
    #[command(flatten)]
    pub recipe: RecipeArg,
    /// Who reviews; goes into every decision
    #[arg(long, value_name = "NAME")]
    pub reviewer: Option<String>,
    /// Only say how far the review got
    #[arg(long)]
    pub status: bool,
    /// Only say how many reviews of the random share certify review.max_label_error
    #[arg(long, conflicts_with = "status")]
    pub plan: bool,
    /// Only show the tally: certificate, agreement between reviewers, what each did
    #[arg(long, conflicts_with_all = ["status", "plan"])]
    pub tally: bool,
    /// Judge without sight of what others decided (always so where review.reviewers_per_item is above 1)
    #[arg(long)]
    pub blind: bool,
    /// Settle items that were judged differently or flagged; not those that you judged yourself
    #[arg(long, conflicts_with = "blind")]
    pub adjudicate: bool,
    /// Hand half of what is yours in the queue to somebody, or another share: NAME=0.3
    #[arg(long, value_name = "NAME[=SHARE]", value_parser = part)]
    pub hand_over: Option<Part>,
    /// Write what is still open as JSON for another tool: tasks and a labelling configuration, or records
    #[arg(long, value_name = "FILE", requires = "format")]
    pub export: Option<PathBuf>,
    /// The other tool
    #[arg(long, value_enum, requires = "export")]
    pub format: Option<Tool>,
    /// Take what people answered in Label Studio (exported as JSON) or Argilla (records.to_json) as blind judgements
    #[arg(long, value_name = "FILE")]
    pub import: Option<PathBuf>,
    /// Keys of the screen, a TOML file
    #[arg(long, value_name = "FILE")]
    pub keys: Option<PathBuf>,
    /// Let the wheel scroll; selecting text then needs the terminal's shift key
    #[arg(long)]
    pub mouse: bool,
}

/// Who gets what part of a queue.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    pub to: String,
    pub share: f64,
}

fn part(text: &str) -> Result<Part, String> {
    let (to, of) = text.split_once('=').map_or((text, None), |(to, of)| (to, Some(of)));
    let share = of.map_or(Ok(0.5), share)?;
    match to.trim() {
        "" => Err("expected a reviewer's name, for example ben or ben=0.3".to_owned()),
        to => Ok(Part { to: to.to_owned(), share }),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Tool {
    LabelStudio,
    Argilla,
}
