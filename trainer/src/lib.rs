//! Fine-tuning, of an adapter or of all weights: what a row becomes in a batch, the loop, the optimizer, and checkpoints that a killed run goes on
//! from to the same bits. It reads a frozen dataset and writes an adapter or weights; where the data came from it does not know.

mod base;
pub mod batch;
pub mod checkpoint;
mod diverged;
mod dry_run;
pub mod learner;
mod least_squares;
pub mod matching;
mod memory;
pub mod on_policy;
pub mod optimizer;
pub mod parameters;
pub mod partition;
mod plan;
pub mod random;
pub mod rationale;
pub mod resident;
pub mod rows;
pub mod schedule;
pub mod soft;
pub mod told;
mod train;
pub mod turbo;
mod validate;
pub mod watch;

pub use base::{Base, Grid, OpenBase};
pub use diverged::Diverged;
pub use dry_run::{DryRun, dry_run};
pub use limbeck_model::divergence;
pub use matching::{Matched, StateLoss};
pub use memory::NoRoom;
pub use plan::{
    Answered, Distilled, HeadKind, ToldTokens, TrainError, TrainPlan, TrainReport, TrainSettings, Unlabeled,
};
pub use rationale::Rationales;
pub use train::train;
