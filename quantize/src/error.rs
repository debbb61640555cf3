//! What can go wrong while merging and writing: what was attempted, on which tensor of which path.

use std::path::PathBuf;

use limbeck_model::ModelError;
use limbeck_model::adapter::AdapterError;

use crate::encode::EncodeError;

pub type Result<T, E = QuantizeError> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum QuantizeError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    #[error(
        "'{given}' is no format; choose one of F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q5_1, Q5_0, Q4_K_M, Q4_K_S, Q4_1, Q4_0, IQ4_NL"
    )]
    Format { given: String },
    #[error("failed to merge the adapter into '{name}': {why}; was it trained on this base?")]
    Merge { name: String, why: String },
    #[error("failed to fold the classification head into the model's own: {why}")]
    Head { why: String },
    #[error("the adapter can't go into a GGUF file of its own: {why}; serve the merged file")]
    AdapterFile { why: String },
    #[error("failed to encode '{name}': {source}")]
    Encode { name: String, source: EncodeError },
    #[error("'{name}' of {} can't go into a {architecture} GGUF file: {why}", path.display())]
    Tensor { path: PathBuf, architecture: String, name: String, why: String },
    #[error("the importance matrix {} {why}", path.display())]
    Importance { path: PathBuf, why: String },
    #[error("failed to calibrate: {why}")]
    Calibrate { why: String },
    #[error("failed to digest {}: {source}", path.display())]
    Digest { path: PathBuf, source: std::io::Error },
    /// The file was written and is not what was meant; it has been removed.
    #[error("{} reads back wrong: {why}; the disk or this program is at fault, so look before you try again", path.display())]
    ReadBack { path: PathBuf, why: String },
}
