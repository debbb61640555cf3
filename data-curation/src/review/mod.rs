//! Where a person's judgement enters: what is to be looked at and why ([`queue()`]), what was decided ([`Decisions`]),
//! how far it got ([`ReviewStatus`]), and the dataset that comes of it ([`freeze`]).

mod decision;
mod freeze;
mod queue;

pub use decision::{Decision, Decisions, Verdict};
pub use freeze::{FreezePlan, Frozen, freeze};
pub use queue::{Item, Missing, Queue, QueueReason, ReviewStatus, SplitStatus, Standing, queue};
