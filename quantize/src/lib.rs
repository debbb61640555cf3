//! Merge, encode to GGUF blocks, write the file that is served: one tensor at a time, so that a model may be larger than
//! the memory left. What is written is opened again and checked before anyone may call it done.

mod adapter_file;
pub mod allocate;
pub mod calibrate;
pub mod check;
pub mod compensate;
pub mod encode;
mod error;
mod format;
pub mod imatrix;
pub mod merge;
mod metadata;
pub mod recover;
mod write;

pub use adapter_file::write_adapter;
pub use calibrate::{CalibratePlan, calibrate};
pub use compensate::Compensation;
pub use encode::{BLOCK_TYPES, encode, encode_weighted};
pub use error::{QuantizeError, Result};
pub use format::{Format, Mix};
pub use imatrix::ImportanceMatrix;
pub use merge::Merged;
pub use write::{QuantizePlan, QuantizeReport, file_bytes, quantize, quantize_compensated};
