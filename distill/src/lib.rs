//! Teacher to student. [`carve()`] makes the student: some layers, neurons and the first merges of a base, and what it writes is
//! again a base, with a tokenizer that fits; [`influence`] says which layers and neurons a task can go without. [`capture()`] asks
//! a local teacher for its posteriors over the labels, [`capture_tokens()`] for what it expects at each token of an answer, [`endpoint`] a teacher behind an address; [`committee`] makes one
//! capture of several, [`best`] says what several answers agree on. Training on them is the trainer's.

pub mod best;
pub mod bridge;
mod capture;
mod carve;
pub mod committee;
pub mod endpoint;
mod error;
pub mod influence;
pub mod prompt;
mod source;
mod token_capture;
mod vocabulary;

pub use capture::{Asked, CaptureError, CapturePlan, CaptureReport, capture, tokenizer_digest};
pub use carve::{CarvePlan, CarveReport, carve};
pub use error::CarveError;
pub use token_capture::{TokenCapturePlan, TokenCaptureReport, TokenTeacher, TokensAsked, capture_tokens, tell};
pub use vocabulary::{Cut, Vocabulary};
