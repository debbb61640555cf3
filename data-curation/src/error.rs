//! What can go wrong in this room. A bad trace line is no error but a rejected line, and a short review is a value.

use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to {attempt} {}: {source}", path.display())]
    Io { attempt: &'static str, path: PathBuf, source: io::Error },
    #[error("failed to {attempt} {}: {source}", path.display())]
    Table { attempt: &'static str, path: PathBuf, source: polars::error::PolarsError },
    #[error("failed to compile a redaction pattern: {0}")]
    Pattern(#[from] regex::Error),
    #[error("{} holds no trace that can be used ({rejected} lines rejected)\nhint: {} says why for each line", sources, log.display())]
    NothingAccepted { sources: String, rejected: u64, log: PathBuf },
    #[error("failed to read the decision in {} line {line}: {why}\nhint: a decisions file is append-only; restore the line from your history", path.display())]
    BadDecision { path: PathBuf, line: usize, why: String },
    #[error("failed to read {}: {why}\nhint: run the stage again that writes it", path.display())]
    BadStage { path: PathBuf, why: String },
    #[error("failed to use the source data: {why}")]
    Source { why: String },
    #[error("failed to split {rows} rows of {groups} groups: {why}\nhint: {hint}")]
    Split { rows: u64, groups: u64, why: String, hint: &'static str },
    #[error("the numbers do not add up in {stage}: {into} in, {out} accounted for; this is a fault of the program")]
    Unaccounted { stage: &'static str, into: u64, out: u64 },
    #[error("failed to freeze the dataset: {0}")]
    Dataset(String),
    #[error("failed to use the plan: {0}")]
    Plan(String),
}

impl Error {
    pub(crate) fn io(attempt: &'static str, path: &Path, source: io::Error) -> Error {
        Error::Io { attempt, path: path.to_path_buf(), source }
    }

    pub(crate) fn table(attempt: &'static str, path: &Path, source: polars::error::PolarsError) -> Error {
        Error::Table { attempt, path: path.to_path_buf(), source }
    }
}
