//! A run's folder where the recipe encrypts: open while a command works in it, encrypted as soon as none does. Any number of
//! commands may work in one at the same time; the last of them encrypts.

use crate::exit::{Exit, Failure, Result};
use crate::output;
use crate::settings::shell;
use crate::stages::cannot;
use crate::stores;
use limbeck_artifact::Error;
use limbeck_artifact::encryption::{Recipients, SUFFIX};
use limbeck_artifact::files::{create_dirs, sweep};
use limbeck_artifact::sealed::{self, LOCK_NAME};
use limbeck_recipes::Encrypt;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

/// So often the last one out tries to be alone, for some 0.25 s.
const TRIES: u32 = 10;
const JOURNAL: &str = "journal.jsonl";

/// What this process holds open: a run in a run's folder is open with it.
static HELD: Mutex<Vec<Weak<Held>>> = Mutex::new(Vec::new());

/// A folder that is open as long as somebody has this.
pub struct Held {
    dir: PathBuf,
    canonical: PathBuf,
    /// None where what was encrypted is to stay open: its recipe no longer encrypts.
    recipients: Option<Recipients>,
    lock: File,
}

/// Opens a run's folder, and has it encrypted when the last one lets go. None where there is nothing to encrypt.
///
/// # Errors
/// When no identity opens what is encrypted, or it was changed.
pub fn hold(dir: &Path, encrypt: &Encrypt) -> Result<Option<Arc<Held>>> {
    let recipients = stores::recipients(encrypt)?;
    if recipients.is_none() && !(dir.is_dir() && sealed::is_sealed(dir)?) {
        return Ok(None);
    }
    create_dirs(dir).map_err(|e| cannot("create", dir, &e))?;
    let canonical = dir.canonicalize().map_err(|e| cannot("find", dir, &e))?;
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    held.retain(|one| one.strong_count() > 0);
    if let Some(around) = held.iter().filter_map(Weak::upgrade).find(|one| canonical.starts_with(&one.canonical)) {
        return Ok(Some(around));
    }
    if recipients.is_some() {
        owner_only(dir)?;
    }
    let path = dir.join(LOCK_NAME);
    let lock = File::create(&path).map_err(|e| cannot("write", &path, &e))?;
    let failed = |e: std::io::Error| cannot("lock", &path, &e);
    loop {
        lock.lock_shared().map_err(failed)?;
        if !sealed::is_sealed(dir)? {
            break;
        }
        lock.unlock().map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {
                let opened = unseal(dir, encrypt.identity.as_deref(), recipients.as_ref());
                lock.unlock().map_err(failed)?;
                opened?;
            }
            // Another one is opening it.
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(50)),
            Err(TryLockError::Error(e)) => return Err(failed(e)),
        }
    }
    let one = Arc::new(Held { dir: dir.to_owned(), canonical, recipients, lock });
    held.push(Arc::downgrade(&one));
    Ok(Some(one))
}

impl Held {
    /// A process that was just killed may hold the lock for a moment yet.
    fn try_alone(&self, tries_before: u32) -> bool {
        if tries_before > 0 {
            std::thread::sleep(Duration::from_millis(25));
        }
        self.lock.try_lock().is_ok()
    }

    /// Whom it is going to be encrypted for.
    pub fn recipients(&self) -> Option<&Recipients> {
        self.recipients.as_ref()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(recipients) = &self.recipients else { return };
        let alone = self.lock.unlock().is_ok() && (0..TRIES).any(|n| self.try_alone(n));
        // A folder that is gone was somebody's for the time of a command.
        if alone
            && self.dir.is_dir()
            && let Err(failure) = seal_run(&self.dir, recipients)
        {
            output::stderr(&format!(
                "warning: {} is not encrypted: {failure}; the next command in it tries again\n",
                self.dir.display()
            ));
        }
    }
}

/// What killed commands left in a run's folder is nobody's; in other folders it isn't ours to say.
fn seal_run(dir: &Path, recipients: &Recipients) -> Result<u64> {
    sweep(dir).map_err(|e| cannot("clear", dir, &e))?;
    Ok(sealed::seal(dir, recipients)?)
}

fn unseal(dir: &Path, named: Option<&Path>, recipients: Option<&Recipients>) -> Result<u64> {
    let identities = stores::identities(named)?;
    sealed::unseal(dir, &identities, recipients).map_err(Failure::from)
}

#[cfg(unix)]
fn owner_only(dir: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)).map_err(|e| cannot("protect", dir, &e))
}

#[cfg(not(unix))]
fn owner_only(_dir: &Path) -> Result<()> {
    Ok(())
}

/// A folder that is encrypted, told as that and not as one without the file that is looked for.
///
/// # Errors
/// When it is one.
pub fn refuse(dir: &Path, file: &str) -> Result<()> {
    if !dir.join(format!("{file}{SUFFIX}")).is_file() {
        return Ok(());
    }
    let message = format!("{} is encrypted", dir.display());
    Err(Failure::new(Exit::Usage, message).help(format!(
        "`limbeck unseal {}` opens it; where its recipe or a channel (MODEL/CHANNEL) is named instead, it is opened while it is read",
        shell(dir)
    )))
}

/// Encrypts a folder by hand.
///
/// # Errors
/// When somebody works in it, or the disk fails.
pub fn by_hand(dir: &Path, recipients: &Recipients) -> Result<u64> {
    alone(
        dir,
        || if dir.join(JOURNAL).exists() { seal_run(dir, recipients) } else { Ok(sealed::seal(dir, recipients)?) },
    )
}

/// Decrypts a folder by hand, for good.
///
/// # Errors
/// When somebody works in it, no identity opens it, or it was changed.
pub fn open_by_hand(dir: &Path, named: Option<&Path>) -> Result<u64> {
    alone(dir, || unseal(dir, named, None))
}

fn alone(dir: &Path, work: impl FnOnce() -> Result<u64>) -> Result<u64> {
    if !dir.is_dir() {
        return Err(Failure::new(Exit::Usage, format!("there is no folder {}", dir.display())));
    }
    let path = dir.join(LOCK_NAME);
    let lock = File::create(&path).map_err(|e| cannot("write", &path, &e))?;
    // What works in it without encrypting holds one of these.
    let others = [JOURNAL, "watch.lock"].map(|name| File::open(dir.join(name)));
    if lock.try_lock().is_err() || others.iter().flatten().any(|other| other.try_lock().is_err()) {
        let reason = format!("another command works in {}", dir.display());
        return Err(Error::Refused { reason, hint: "wait until it ends".to_owned() }.into());
    }
    let done = work();
    // Others than runs' are left without it; in a run's, another command may have it open already.
    if !dir.join(JOURNAL).exists() {
        let _ = std::fs::remove_file(&path);
    }
    done
}
