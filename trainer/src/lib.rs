//! LoRA fine-tuning: what a row becomes in a batch, the loop, the optimizer, and checkpoints that a killed run goes on
//! from to the same bits. It reads a frozen dataset and writes an adapter; where the data came from it does not know.

pub mod batch;
pub mod checkpoint;
pub mod optimizer;
pub mod parameters;
pub mod random;
pub mod schedule;
mod train;

pub use train::{TrainError, TrainPlan, TrainReport, TrainSettings, train};
