//! What can go wrong in this room: every error says what was attempted on which path, and ends with what to try next
//! where there is something to try.

use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {attempted} {}: {source}", path.display())]
    Io { attempted: &'static str, path: PathBuf, source: io::Error },
    /// A file is there, but what it says cannot be right.
    #[error("{}: {reason}; {hint}", path.display())]
    Invalid { path: PathBuf, reason: String, hint: String },
    /// It is encrypted for others, or nobody's key was given.
    #[error("{}: {reason}", path.display())]
    Locked { path: PathBuf, reason: String },
    /// What was asked for cannot be done; nothing was written.
    #[error("{reason}; {hint}")]
    Refused { reason: String, hint: String },
    /// The store's trust policy does not allow it.
    #[error("{reason}; {hint}")]
    Untrusted { reason: String, hint: String },
    /// The trust policy would allow it once enough keys agree.
    #[error("{reason}; {hint}")]
    Unapproved { reason: String, hint: String },
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn io(attempted: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::Io { attempted, path, source }
    }

    pub(crate) fn invalid(path: &Path, reason: impl Into<String>, hint: impl Into<String>) -> Error {
        Error::Invalid { path: path.to_path_buf(), reason: reason.into(), hint: hint.into() }
    }

    pub(crate) fn refused(reason: impl Into<String>, hint: impl Into<String>) -> Error {
        Error::Refused { reason: reason.into(), hint: hint.into() }
    }

    pub(crate) fn untrusted(reason: impl Into<String>, hint: impl Into<String>) -> Error {
        Error::Untrusted { reason: reason.into(), hint: hint.into() }
    }
}
