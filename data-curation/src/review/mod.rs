//! Where a person's judgement enters.

mod decision;

pub use decision::{Decision, Decisions, Verdict};
