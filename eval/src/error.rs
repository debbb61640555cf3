//! What can go wrong while measuring, said so that the next step is plain. A failed gate is not an error: it is a verdict.

use std::path::PathBuf;

/// What an [`crate::Answerer`] may fail with.
pub type AnswerError = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    #[error("failed to plan the evaluation: {what}. Try: {hint}")]
    Plan { what: String, hint: String },
    #[error(
        "failed to evaluate: the {split} split has no reviewed row. Try: review some of it (`limbeck review`), or give it a larger share in [data.split]"
    )]
    NoRows { split: &'static str },
    #[error(
        "failed to evaluate row {row}: its target `{target}` is not one of the {labels} labels. Try: add it to [task] labels, or correct the row in review"
    )]
    UnknownTarget { row: String, target: String, labels: usize },
    #[error(
        "failed to evaluate row {row}: its target `{target}` is not what the schema allows: {why}. Try: correct the row in review, or the schema"
    )]
    InvalidTarget { row: String, target: String, why: String },
    #[error("failed to open arm `{arm}`: {source}")]
    Open { arm: String, source: AnswerError },
    #[error("failed to answer row {row} with arm `{arm}`: {source}")]
    Answer { arm: String, row: String, source: AnswerError },
    #[error("failed to ask arm `{arm}`: {source}")]
    Respond { arm: String, source: AnswerError },
    #[error(
        "arm `{arm}` answered row {row} with an unusable posterior: {what}. Try: `limbeck doctor` and the model's file digest; a distribution over the labels was expected"
    )]
    Posterior { arm: String, row: String, what: String },
    #[error("failed to {doing} {}: {source}. Try: check that the folder exists, is writable and has room", path.display())]
    Io { doing: &'static str, path: PathBuf, source: std::io::Error },
    #[error("failed to understand {} as a report: {source}. Try: make it again with `limbeck eval`", path.display())]
    NotAReport { path: PathBuf, source: serde_json::Error },
    #[error("failed to understand {} as a policy: {what}. Try: make it again with `limbeck eval`", path.display())]
    NotAPolicy { path: PathBuf, what: String },
    #[error("failed to compare the evaluation in {}: {what}. Try: `limbeck eval` there again", path.display())]
    NotARun { path: PathBuf, what: String },
    #[error("failed to write {what} as JSON: {source}")]
    Json { what: String, source: serde_json::Error },
    #[error("failed to render the report page: {0}")]
    Render(#[from] minijinja::Error),
}
