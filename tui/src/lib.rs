//! What a terminal shows: the review screen and a run's progress, both legible without colour. Strings that come from
//! traces pass through [`text`] before they are drawn, and review decisions are the only thing this room has written.

pub mod progress;
pub mod review;
mod terminal;
pub mod text;

/// What goes wrong at the terminal itself; what goes wrong on disk is the desk's to tell.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "the review screen needs a terminal for both input and output; run it from an interactive shell, not through a pipe"
    )]
    NotATerminal,
    #[error(
        "failed to {attempt} the terminal: {source}; every decision made so far is on disk, so start the review again"
    )]
    Terminal { attempt: &'static str, source: std::io::Error },
}
