//! Where a person's judgement enters: what is to be looked at and why ([`queue()`], [`rank`]), what was decided
//! ([`Decisions`], [`store`]), what it comes to ([`ReviewStatus`], [`certify`], [`agree`]), and the dataset that comes of it
//! ([`freeze`]).

pub mod agree;
pub mod certify;
mod cluster;
mod decision;
pub mod exchange;
mod freeze;
pub mod handover;
mod judged;
pub mod noise;
mod queue;
pub mod rank;
pub(crate) mod shelf;
mod similar;
pub mod store;

pub use agree::{Agreement, Reviewer};
pub use certify::{Certificate, Inspection};
pub use decision::{Decision, Decisions, Pass, Said, Verdict};
pub use freeze::{FreezePlan, Frozen, freeze};
pub(crate) use queue::items_of;
pub use queue::{
    Hint, Item, Missing, Queue, QueueReason, ReviewStatus, Source, SplitStatus, Standing, TEACHER_DISAGREEMENT, queue,
};
pub use shelf::FILE as QUEUE_FILE;
pub use similar::Similar;
