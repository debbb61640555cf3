//! What a store may forget. A version stays while a channel serves it or can go back to it, while somebody holds it, and
//! while it is young; the log tells of every removal, before it happens.
//!
//! Removing races with promoting, without a lock: whoever wants an object makes it young first, and whoever removes one
//! takes it aside first and looks at its age again. So either the removal sees that the object is wanted and puts it
//! back, or the promotion sees that it is gone and says so; no channel ever points at nothing.

use super::log::holds;
use super::objects::{blob_key, version_key};
use super::storage::has_age;
use super::{Channels, LogEntry, Operation, Step, Store, check_digest, check_name};
use crate::digest::is_sha256;
use crate::encryption;
use crate::untrusted::visible_line;
use crate::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, SystemTime};

/// What is to stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// So many versions of each channel: the one that it serves and those before it. At least 1.
    pub keep_last: usize,
    /// Nothing younger than this goes: it may be on its way into a channel.
    pub min_age: Duration,
}

/// A wish to keep a version whatever channels do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    pub model: String,
    /// Why it is kept, as one word: `audit-2026`.
    pub name: String,
    pub version_digest: String,
    pub by: String,
    /// RFC 3339.
    pub at: String,
}

/// A version that nothing keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removable {
    pub digest: String,
    pub name: String,
    pub version: String,
    /// Of the content that no other version has, in bytes.
    pub bytes: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    pub versions: Vec<Removable>,
    /// Blobs that no version had any more.
    pub blobs: u64,
    pub bytes: u64,
}

impl Store {
    /// Keeps a version until it is released. The same hold again changes nothing; a hold of that name on another version
    /// is refused.
    pub fn hold(&self, hold: &Hold) -> Result<LogEntry> {
        check_name("model", &hold.model)?;
        check_name("hold", &hold.name)?;
        let version = self.version(&hold.version_digest)?;
        if version.name != hold.model {
            let reason = format!("version {} is of {}, not of {}", hold.version_digest, version.name, hold.model);
            return Err(Error::refused(reason, "hold it under its own name"));
        }
        self.append(|log, _| {
            self.touch_version(&hold.version_digest)?;
            self.check_blobs_present(&version)?;
            let held = holds(&log.entries).get(&hold.model).and_then(|h| h.get(&hold.name)).cloned();
            if held.as_ref() == Some(&hold.version_digest) {
                let said = |e: &&LogEntry| e.op == Operation::Hold && e.model == hold.model && e.channel == hold.name;
                if let Some(entry) = log.entries.iter().rev().find(said) {
                    return Ok(Step::Already(entry.clone()));
                }
            }
            if let Some(other) = held {
                let reason = format!("{} already holds version {other}", hold.name);
                return Err(Error::refused(reason, "release it first, or take another name"));
            }
            Ok(Step::Append(log.next(
                Operation::Hold,
                (&hold.model, &hold.name),
                (None, hold.version_digest.clone()),
                &BTreeMap::new(),
                (&hold.by, &hold.at),
            )))
        })
    }

    /// Ends the hold `name` of `model`.
    pub fn release(&self, model: &str, name: &str, by: &str, at: &str) -> Result<LogEntry> {
        self.append(|log, _| {
            let held = holds(&log.entries).get(model).and_then(|h| h.get(name)).cloned();
            let Some(version) = held else {
                let reason = format!("nothing of {} is held as {}", visible_line(model), visible_line(name));
                return Err(Error::refused(reason, "the log tells what is held"));
            };
            let (from, to) = (Some(version.clone()), version);
            Ok(Step::Append(log.next(Operation::Release, (model, name), (from, to), &BTreeMap::new(), (by, at))))
        })
    }

    /// The versions that nothing keeps, oldest first.
    pub fn removable(&self, retention: Retention) -> Result<Vec<Removable>> {
        let entries = self.log()?;
        let wanted = wanted(&super::fold(&entries), &entries, retention.keep_last);
        let mut found = Vec::new();
        let mut users: BTreeMap<String, u64> = BTreeMap::new();
        for digest in self.versions()? {
            let version = self.version(&digest)?;
            version.files.values().map(|f| &f.sha256).collect::<BTreeSet<_>>().into_iter().for_each(|sha256| {
                *users.entry(sha256.clone()).or_default() += 1;
            });
            let at = self.storage.stat(&version_key(&digest)).map_or_else(|_| SystemTime::now(), |stat| stat.modified);
            if !wanted.contains(&digest) && has_age(at, retention.min_age) {
                found.push((at, digest, version));
            }
        }
        found.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        let removable = found.into_iter().map(|(_, digest, version)| {
            let own: BTreeMap<&String, u64> =
                version.files.values().filter(|f| users[&f.sha256] == 1).map(|f| (&f.sha256, f.bytes)).collect();
            let bytes = own.values().sum();
            Removable { digest, name: version.name, version: version.version, bytes }
        });
        Ok(removable.collect())
    }

    /// Removes what nothing keeps: says so in the log, then removes the records of the versions, their folders, and the
    /// content that no version has any more. Killed anywhere, the next call goes on.
    pub fn remove_unneeded(&self, retention: Retention, by: &str, at: &str) -> Result<Removed> {
        self.storage.can_remove()?;
        let mut removed = Removed::default();
        for candidate in self.removable(retention)? {
            if self.say_removed(&candidate, retention, by, at)? && self.take_away(&candidate.digest, retention)? {
                removed.versions.push(candidate);
            }
        }
        let mut kept = BTreeSet::new();
        for digest in self.versions()? {
            kept.extend(self.version(&digest)?.files.into_values().map(|f| f.sha256));
        }
        for name in self.names("blobs/sha256", &mut 0)? {
            if !is_sha256(&name) || kept.contains(&name) {
                continue;
            }
            let key = blob_key(&name);
            let bytes = self.storage.stat(&key).map_or(0, |stat| stat.bytes);
            if self.storage.remove_old(&key, retention.min_age)? {
                removed.blobs += 1;
                removed.bytes += bytes;
            }
        }
        Ok(removed)
    }

    /// False where the version is wanted by now.
    fn say_removed(&self, candidate: &Removable, retention: Retention, by: &str, at: &str) -> Result<bool> {
        check_digest(&candidate.digest)?;
        let entry = self.append(|log, channels| {
            let last = log.entries.last().cloned();
            if wanted(channels, &log.entries, retention.keep_last).contains(&candidate.digest) {
                // Something was appended since: there is an entry.
                return last.map(Step::Already).ok_or_else(|| Error::refused("the log is empty", "try again"));
            }
            // A removal that was announced and not carried out, after a kill.
            let told = |e: &&LogEntry| e.to == candidate.digest;
            if let Some(entry) = log.entries.iter().rev().find(told).filter(|e| e.op == Operation::Remove) {
                return Ok(Step::Already(entry.clone()));
            }
            Ok(Step::Append(log.next(
                Operation::Remove,
                (&candidate.name, ""),
                (Some(candidate.digest.clone()), candidate.digest.clone()),
                &BTreeMap::new(),
                (by, at),
            )))
        })?;
        Ok(entry.op == Operation::Remove && entry.to == candidate.digest)
    }

    /// The record first: from then on nobody can promote the version, and its content is nobody's.
    fn take_away(&self, digest: &str, retention: Retention) -> Result<bool> {
        if !self.storage.remove_old(&version_key(digest), retention.min_age)? {
            return Ok(false);
        }
        let folder = self.artifacts.join(digest);
        match fs::remove_dir_all(&folder) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &folder)(e)),
            _ => Ok(true),
        }
    }

    /// The digests of all versions that are here.
    pub fn versions(&self) -> Result<Vec<String>> {
        let names = self.names("versions", &mut 0)?;
        let digest = |name: &String| name.strip_suffix(".json").filter(|d| is_sha256(d)).map(str::to_owned);
        Ok(names.iter().filter_map(digest).collect())
    }
}

/// The versions that a channel serves or may go back to, and those that are held.
fn wanted(channels: &Channels, entries: &[LogEntry], keep_last: usize) -> BTreeSet<String> {
    let histories = channels.values().flat_map(BTreeMap::values).map(|state| &state.history);
    let mut wanted: BTreeSet<String> =
        histories.flat_map(|history| history.iter().rev().take(keep_last.max(1)).cloned()).collect();
    wanted.extend(holds(entries).into_values().flat_map(BTreeMap::into_values));
    wanted
}

/// What an object that is about to be removed is called meanwhile.
pub(super) fn aside_name(name: &str) -> String {
    format!(".{name}.{}.tmp", std::process::id())
}

/// The object that a file was before a removal that was killed took it aside.
pub(super) fn was_aside(temporary: &str) -> Option<&str> {
    let (name, _) = temporary.strip_prefix('.')?.strip_suffix(".tmp")?.rsplit_once('.')?;
    let digest = [".json", encryption::SUFFIX].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
    is_sha256(digest).then_some(name)
}
