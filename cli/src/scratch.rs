//! A folder for the time of a command, for what is measured and not kept.

use crate::exit::Result;
use crate::stages::cannot;
use std::path::{Path, PathBuf};

/// Goes away with its owner.
pub struct Scratch(PathBuf);

impl Scratch {
    /// `purpose` becomes part of its name.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn new(purpose: &str) -> Result<Scratch> {
        Scratch::within(&std::env::temp_dir(), purpose)
    }

    /// In a folder of the caller's choice.
    ///
    /// # Errors
    /// As [`Scratch::new`].
    pub fn within(place: &Path, purpose: &str) -> Result<Scratch> {
        let dir = place.join(format!("limbeck-{purpose}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).map_err(|e| cannot("create", &dir, &e))?;
        Ok(Scratch(dir))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
