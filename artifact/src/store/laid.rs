//! An artifact laid out as a folder, for whoever reads it. That of an encrypted store is its owner's alone, and there only as long
//! as somebody holds on to it.

use super::storage::remove;
use crate::{Error, Result};
use std::fs::{self, DirBuilder, File};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

const OPEN: &str = ".open.";
const LOCK: &str = "lock";

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Used as the folder's path.
#[derive(Debug)]
pub struct LaidOut {
    path: PathBuf,
    /// Removed with it.
    private: Option<Private>,
}

impl LaidOut {
    pub(super) fn within(private: Private, name: &str) -> LaidOut {
        LaidOut { path: private.dir.join(name), private: Some(private) }
    }

    /// Whether it was decrypted, and goes away.
    pub fn is_private(&self) -> bool {
        self.private.is_some()
    }
}

impl From<PathBuf> for LaidOut {
    fn from(path: PathBuf) -> LaidOut {
        LaidOut { path, private: None }
    }
}

impl Deref for LaidOut {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

impl AsRef<Path> for LaidOut {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

/// A folder that only its owner may look into, locked while its process lives.
#[derive(Debug)]
pub(super) struct Private {
    dir: PathBuf,
    _lock: File,
}

impl Private {
    /// In `above`, after what killed processes left there was removed.
    pub fn new(above: &Path) -> Result<Private> {
        clear(above)?;
        let n = COUNTER.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}-{n}.tmp", std::process::id());
        // It gets the name by which others know it only when it is locked.
        let (making, dir) = (above.join(format!(".opening.{id}")), above.join(format!("{OPEN}{id}")));
        let failed = || Error::io("make a folder for what is decrypted,", &dir);
        let _ = fs::remove_dir_all(&making);
        let mut builder = DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&making).map_err(failed())?;
        let lock = File::create(making.join(LOCK)).map_err(failed())?;
        lock.try_lock().map_err(|e| failed()(e.into()))?;
        fs::rename(&making, &dir).map_err(failed())?;
        Ok(Private { dir, _lock: lock })
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Removes the folders whose process is no more: they hold what was to be read by nobody for longer than it took.
pub(super) fn clear(above: &Path) -> Result<()> {
    for entry in fs::read_dir(above).map_err(Error::io("list", above))? {
        let path = entry.map_err(Error::io("list", above))?.path();
        let is_open = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(OPEN));
        if is_open && File::open(path.join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok()) {
            match remove(&path) {
                // Another one was faster.
                Err(_) if !path.exists() => {}
                removed => removed?,
            }
        }
    }
    Ok(())
}
