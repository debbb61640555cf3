//! What can go wrong while carving, with what to try next.

use std::path::PathBuf;

use limbeck_model::ModelError;

#[derive(Debug, thiserror::Error)]
pub enum CarveError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("cannot keep layer {layer} of {available}: name layers 0 to {last} in ascending order, each once", last = available.saturating_sub(1))]
    Layers { layer: usize, available: usize },
    #[error("cannot keep {asked} layers of {available}: choose 1 to {available}")]
    Keep { asked: usize, available: usize },
    #[error("cannot keep {asked} neurons of {available}: choose 1 to {available}")]
    Width { asked: usize, available: usize },
    #[error("there is no prompt to measure the layers on")]
    NoRows,
    #[error("a prompt does not fit the model: {0}")]
    Row(#[from] limbeck_model::decoder::DecoderError),
    #[error("cannot keep {asked} merges of {available}: choose 1 to {available}")]
    Merges { asked: usize, available: usize },
    #[error("the tokenizer can't be cut: {reason}; only a byte-level BPE vocabulary can")]
    Vocabulary { reason: String },
    #[error("{} can't be carved: {why}", path.display())]
    Source { path: PathBuf, why: String },
    #[error("failed to digest {}: {source}", path.display())]
    Digest { path: PathBuf, source: std::io::Error },
    /// The file was written and is not what was meant; it has been removed.
    #[error("{} reads back wrong: {why}; the disk or this program is at fault, so look before you try again", path.display())]
    ReadBack { path: PathBuf, why: String },
}

pub type Result<T, E = CarveError> = std::result::Result<T, E>;
