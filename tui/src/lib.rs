//! What a terminal shows: the review screen, a run's progress and its dashboard, all legible without colour. Strings that come from
//! traces pass through [`text`] before they are drawn, and review decisions are the only thing this room has written.

pub mod audit;
mod paint;
pub mod progress;
pub mod review;
mod terminal;
pub mod text;
pub mod watch;

/// What goes wrong at the terminal itself; what goes wrong on disk is the desk's to tell.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "the screen needs a terminal for both input and output; run it from an interactive shell, not through a pipe"
    )]
    NotATerminal,
    #[error("failed to {attempt} the terminal: {source}; nothing on disk is lost, so start it again")]
    Terminal { attempt: &'static str, source: std::io::Error },
    #[error(transparent)]
    Journal(#[from] limbeck_artifact::Error),
}
