//! The store: immutable objects, and one append-only log that says which version each channel serves. The commit
//! point of a promotion is the exclusive creation of the next log entry; what a channel serves is a fold over the log.
//!
//! ```text
//! blobs/sha256/<hex>           a file's content, under its digest
//! versions/<sha256>.json       the files of one artifact, under the digest of this record: a version
//! log/<16-digit seq>.json      one promotion, rollback, hold, release, removal or trust policy, with the hash of the entry before it
//! trust/policies/<sha256>.json trust policies with their signatures; trust/approvals/ likewise
//! encryption.json              where blobs are encrypted: for whom; they are named <hex>.age then
//! artifacts/<sha256>/          a version laid out as a folder again, by hard links; can be deleted and is made anew
//! ```
//!
//! Objects are files of a folder, or, with the feature `object-store`, objects of a bucket ([`storage`] is the seam); of a bucket
//! versions are laid out in a local folder.
//!
//! There are no locks: a process killed anywhere leaves a promotion that happened or one that did not, and at worst a
//! `.*.tmp` that nobody reads.

#[cfg(feature = "object-store")]
mod bucket;
mod encrypted;
mod fsck;
mod laid;
mod log;
mod objects;
mod retention;
mod storage;
mod trust;

#[cfg(feature = "object-store")]
pub use bucket::{BucketAccess, SCHEME};
pub use fsck::{Fsck, Repaired};
pub use laid::LaidOut;
pub use log::{ChannelState, Channels, Head, Holds, LogEntry, Operation, fold, holds};
pub(crate) use objects::HashedCopy;
pub use objects::{StoredFile, Version};
pub use retention::{Hold, Removable, Removed, Retention};
pub use trust::{Approved, InForce, Trusted};

use crate::digest::is_sha256;
use crate::encryption::{Identities, Recipients};
use crate::untrusted::visible_line;
use crate::{Error, Result};
use encrypted::Encrypted;
use log::Log;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use storage::{Folder, Storage};

/// More lost races than this means that something else is wrong.
const MAX_TRIES: u32 = 10_000;

/// An opened store. Any number of processes may use one at the same time.
#[derive(Clone, Debug)]
pub struct Store {
    storage: Arc<dyn Storage>,
    /// What the objects lie in; where blobs are encrypted, `storage` is around it.
    bare: Arc<dyn Storage>,
    recipients: Option<Recipients>,
    /// Where versions are laid out as folders.
    artifacts: PathBuf,
}

/// A wish to have a channel serve a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promotion {
    /// The artifact's name, as its manifest has it.
    pub model: String,
    /// Such as `staging` or `production`.
    pub channel: String,
    /// What [`Store::put_artifact`] returned.
    pub version_digest: String,
    /// What the decision rests on: name (`report`, `gates`) to SHA-256.
    pub evidence: BTreeMap<String, String>,
    /// Who decided.
    pub by: String,
    /// When, RFC 3339.
    pub at: String,
}

/// A wish to have a channel serve again what it served before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rollback {
    pub model: String,
    pub channel: String,
    /// A version that the channel served; None for the one before the present one.
    pub to: Option<String>,
    pub evidence: BTreeMap<String, String>,
    pub by: String,
    pub at: String,
}

impl Store {
    /// Opens the store in `dir`, and makes it where there is none.
    pub fn open(dir: &Path) -> Result<Store> {
        Store::over(Arc::new(Folder::open(dir)?), dir.join("artifacts"))
    }

    /// Opens the store in a bucket of object storage. Versions are laid out in `cache`, a local folder.
    #[cfg(feature = "object-store")]
    pub fn open_bucket(access: &BucketAccess, cache: &Path) -> Result<Store> {
        let artifacts = cache.join("artifacts");
        crate::files::create_dirs(&artifacts).map_err(Error::io("make the folder", &artifacts))?;
        Store::over(Arc::new(bucket::Bucket::open(access)?), artifacts)
    }

    fn over(bare: Arc<dyn Storage>, artifacts: PathBuf) -> Result<Store> {
        let recipients = encrypted::recipients_of(bare.as_ref())?;
        let store = Store { storage: Arc::clone(&bare), bare, recipients, artifacts };
        Ok(store.with_identities(Identities::none("no identity was given")))
    }

    /// Whom the store's blobs are encrypted for; None where they are not.
    pub fn recipients(&self) -> Option<&Recipients> {
        self.recipients.as_ref()
    }

    /// The store as these can read it. Without, what is encrypted can be put, promoted and forgotten, and not be read.
    pub fn with_identities(self, identities: Identities) -> Store {
        let Some(recipients) = self.recipients.clone() else { return self };
        let around = Encrypted::new(Arc::clone(&self.bare), recipients, identities, &self.artifacts);
        Store { storage: Arc::new(around), ..self }
    }

    /// Makes sure that the store is encrypted for these people and nobody else. A new store becomes it.
    ///
    /// # Errors
    /// When it is encrypted for others, or holds blobs that are not encrypted.
    pub fn encrypted_for(self, recipients: &Recipients) -> Result<Store> {
        let place = self.place("");
        let mut store = self;
        if store.recipients.is_none() {
            let blobs = store.storage.list("blobs/sha256").map_err(Error::io("list", &place))?;
            if !blobs.names.is_empty() {
                let reason = format!("the store {} holds blobs that are not encrypted", place.display());
                return Err(Error::refused(reason, "take another store, and remove this one when nobody needs it"));
            }
            encrypted::mark(store.bare.as_ref(), recipients)?;
            store.recipients = encrypted::recipients_of(store.bare.as_ref())?;
        }
        match &store.recipients {
            Some(found) if found == recipients => Ok(store.with_identities(Identities::none("no identity was given"))),
            found => {
                let found = found.as_ref().map_or_else(|| "nobody".to_owned(), ToString::to_string);
                let reason =
                    format!("the store {} is encrypted for {found}, and not for {recipients}", place.display());
                Err(Error::refused(reason, "name the same recipients, or another store"))
            }
        }
    }

    /// The path or the address of the store or of an object in it, for a person.
    pub fn place(&self, key: &str) -> PathBuf {
        self.storage.place(key)
    }

    /// Has `channel` serve the version from now on and returns the log entry. Where the channel serves it already, on
    /// the same evidence, the entry that said so is returned and nothing is written.
    pub fn promote(&self, promotion: Promotion) -> Result<LogEntry> {
        self.promote_if(promotion, |_| Ok(()))
    }

    /// As [`Store::promote`], where `gate` agrees. It is asked about the state of the channel that the promotion would
    /// replace, and asked again each time another promotion got in between. Its error is the reason of the refusal.
    pub fn promote_if(
        &self,
        promotion: Promotion,
        gate: impl Fn(Option<&ChannelState>) -> std::result::Result<(), String>,
    ) -> Result<LogEntry> {
        let Promotion { model, channel, version_digest, evidence, by, at } = promotion;
        check_name("model", &model)?;
        check_name("channel", &channel)?;
        let version = self.version(&version_digest)?;
        if version.name != model {
            let reason = format!("version {version_digest} is of {}, not of {model}", version.name);
            return Err(Error::refused(reason, "promote it under its own name"));
        }
        self.touch_version(&version_digest)?;
        self.check_blobs_present(&version)?;
        self.append(|log, channels| {
            let state = channels.get(&model).and_then(|c| c.get(&channel));
            let mut evidence = evidence.clone();
            if let Some(trust) = self.trust_in(&log.entries)? {
                evidence.extend(self.admit(&trust, &version_digest, &channel, log.head.seq + 1)?);
            }
            if let Some(state) = state
                && state.version == version_digest
                && let Some(entry) = log.entries.get((state.seq as usize).saturating_sub(1))
                && entry.evidence == evidence
            {
                return Ok(Step::Already(entry.clone()));
            }
            gate(state).map_err(|reason| {
                let hint = format!("{channel} serves what it served before");
                Error::refused(format!("{model} is not promoted to {channel}: {reason}"), hint)
            })?;
            Ok(Step::Append(log.next(
                Operation::Promote,
                (&model, &channel),
                (state.map(|s| s.version.clone()), version_digest.clone()),
                &evidence,
                (&by, &at),
            )))
        })
    }

    /// Has a channel serve again what it served before, as a new entry: history stays. Rolled back twice, a channel
    /// goes two versions back.
    pub fn rollback(&self, rollback: Rollback) -> Result<LogEntry> {
        let Rollback { model, channel, to, evidence, by, at } = rollback;
        self.append(|log, channels| {
            let served = |state: &ChannelState, to: &str| state.history.iter().any(|v| v == to) && state.version != to;
            let state = channels.get(&model).and_then(|c| c.get(&channel));
            let Some(state) = state else { return Err(nothing_promoted(&model, &channel)) };
            let before = state.history.len().checked_sub(2).map(|i| state.history[i].clone());
            let target = match &to {
                Some(to) if served(state, to) => to.clone(),
                Some(to) => {
                    let reason = format!("{channel} of {model} did not serve {} before", visible_line(to));
                    return Err(Error::refused(reason, "name a version from its log"));
                }
                None => before.ok_or_else(|| {
                    Error::refused(
                        format!("{channel} of {model} has served one version only"),
                        "promote another version instead",
                    )
                })?,
            };
            if let Some(trust) = self.trust_in(&log.entries)? {
                self.vet(log, &trust, &model, &channel, &target)?;
            }
            self.touch_version(&target)?;
            self.check_blobs_present(&self.version(&target)?)?;
            Ok(Step::Append(log.next(
                Operation::Rollback,
                (&model, &channel),
                (Some(state.version.clone()), target),
                &evidence,
                (&by, &at),
            )))
        })
    }

    /// Reads the log, asks `decide` for the next entry, tries to be the one who writes it; again, if another was.
    fn append(&self, decide: impl Fn(&Log, &Channels) -> Result<Step>) -> Result<LogEntry> {
        for _ in 0..MAX_TRIES {
            let log = self.read_log()?;
            match decide(&log, &fold(&log.entries))? {
                Step::Already(entry) => {
                    self.storage.settle()?;
                    return Ok(entry);
                }
                Step::Append(entry) => {
                    self.storage.settle()?;
                    if self.write_entry(&entry)? {
                        return Ok(entry);
                    }
                }
            }
        }
        let reason = format!("the log of {} went on {MAX_TRIES} times without us", self.place("").display());
        Err(Error::refused(reason, "find out who writes to it all the time"))
    }

    /// Every entry, oldest first, its hash chain checked.
    pub fn log(&self) -> Result<Vec<LogEntry>> {
        Ok(self.read_log()?.entries)
    }

    /// Where the log ends now. Whoever keeps it can later tell that the log was cut short or rewritten:
    /// [`Store::fsck`].
    pub fn head(&self) -> Result<Head> {
        Ok(self.read_log()?.head)
    }

    /// Whether the log still contains the entry that `head` names.
    pub fn holds_head(&self, head: &Head) -> Result<bool> {
        Ok(self.read_log()?.contains(head))
    }

    /// What every channel of every model serves.
    pub fn channels(&self) -> Result<Channels> {
        Ok(fold(&self.log()?))
    }

    /// The version that a channel serves.
    pub fn current(&self, model: &str, channel: &str) -> Result<String> {
        let channels = self.channels()?;
        let state = channels.get(model).and_then(|c| c.get(channel));
        state.map(|s| s.version.clone()).ok_or_else(|| nothing_promoted(model, channel))
    }

    /// The folder of the artifact that a channel serves. Its files are shared with the store: read them only.
    pub fn resolve(&self, model: &str, channel: &str) -> Result<LaidOut> {
        self.lay_out(&self.current(model, channel)?)
    }
}

enum Step {
    Already(LogEntry),
    Append(LogEntry),
}

fn nothing_promoted(model: &str, channel: &str) -> Error {
    let reason = format!("nothing of {} was promoted to {}", visible_line(model), visible_line(channel));
    Error::refused(reason, "promote a version to it first")
}

/// Names go into the log for good: short, and of characters that no shell, path or terminal takes for something else.
fn check_name(what: &str, name: &str) -> Result<()> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let starts_well = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if starts_well && name.len() <= 128 && name.bytes().all(plain) {
        return Ok(());
    }
    let reason = format!("{:?} is no name for a {what}", visible_line(name));
    Err(Error::refused(reason, "use up to 128 letters, digits, '-', '_' and '.', a letter or digit first"))
}

fn check_digest(digest: &str) -> Result<()> {
    if is_sha256(digest) {
        return Ok(());
    }
    let reason = format!("{:?} is no version's digest", visible_line(digest));
    Err(Error::refused(reason, "a version is named by 64 hex digits"))
}
