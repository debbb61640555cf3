//! What can go wrong on the way from a file, a folder or the hub to a decoder that runs. Every variant names what was
//! attempted on which path, and ends with what to try where there is something to try.

use std::path::{Path, PathBuf};

pub type Result<T, E = ModelError> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("failed to read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("failed to write {}: {source}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("{} is not a usable GGUF file: {why}", path.display())]
    Gguf { path: PathBuf, why: String },
    #[error("{} is not a usable safetensors file: {why}", path.display())]
    Safetensors { path: PathBuf, why: String },
    #[error("{} does not describe a model that can be run: {why}", path.display())]
    Config { path: PathBuf, why: String },
    #[error("{}: architecture '{found}' is not known; known: {known}", path.display())]
    UnknownArchitecture { path: PathBuf, found: String, known: String },
    #[error(
        "a {architecture} model can't be written as a GGUF file: {why}\nhint: choose a base of another family (llama, \
         mistral, qwen2, qwen3 and smollm3 can be written), or stop at `limbeck train` and serve the adapter through PEFT"
    )]
    NoGguf { architecture: String, why: String },
    #[error("{} holds no tensor '{name}'", path.display())]
    MissingTensor { path: PathBuf, name: String },
    #[error("tensor '{name}' of {} can't be used: {why}", path.display())]
    Tensor { path: PathBuf, name: String, why: String },
    #[error("failed to load the tokenizer of {}: {why}", path.display())]
    Tokenizer { path: PathBuf, why: String },
    #[error("failed to encode text: {why}")]
    Encode { why: String },
    #[error("failed to render the chat template: {why}")]
    ChatTemplate { why: String },
    #[error("'{given}' is no model reference: {why}")]
    ModelRef { given: String, why: String },
    #[error("failed to get {model} from {endpoint}: {why}")]
    Hub { model: String, endpoint: String, why: String },
    #[error("{model} is not in the cache {} and --offline forbids a download: {why}", cache.display())]
    Offline { model: String, cache: PathBuf, why: String },
    #[error("{what}")]
    Compute { what: String },
}

impl ModelError {
    pub(crate) fn gguf(path: &Path, why: impl Into<String>) -> Self {
        Self::Gguf { path: path.into(), why: why.into() }
    }

    pub(crate) fn safetensors(path: &Path, why: impl Into<String>) -> Self {
        Self::Safetensors { path: path.into(), why: why.into() }
    }

    pub(crate) fn config(path: &Path, why: impl Into<String>) -> Self {
        Self::Config { path: path.into(), why: why.into() }
    }

    pub(crate) fn tokenizer(path: &Path, why: impl Into<String>) -> Self {
        Self::Tokenizer { path: path.into(), why: why.into() }
    }

    pub(crate) fn tensor(path: &Path, name: &str, why: impl Into<String>) -> Self {
        Self::Tensor { path: path.into(), name: name.into(), why: why.into() }
    }

    pub(crate) fn read(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Read { path: path.into(), source }
    }

    pub(crate) fn write(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Write { path: path.into(), source }
    }
}

/// The whole of a small file, refused beyond `cap` bytes.
pub(crate) fn read_capped(path: &Path, cap: u64) -> Result<Vec<u8>> {
    use std::io::Read;
    let file = std::fs::File::open(path).map_err(ModelError::read(path))?;
    let mut bytes = Vec::new();
    file.take(cap + 1).read_to_end(&mut bytes).map_err(ModelError::read(path))?;
    if bytes.len() as u64 > cap {
        let why = format!("larger than the {} MiB that such a file may have", cap >> 20);
        return Err(ModelError::Read { path: path.into(), source: std::io::Error::other(why) });
    }
    Ok(bytes)
}
