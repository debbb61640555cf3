//! Checks a whole store and tells everything that is wrong with it, not only the first thing, and changes nothing.
//! Repair removes what the store makes anew by itself; content that is gone has to be put again.

use super::log::{Head, apply, breaks, genesis, holds, parse, seq_of};
use super::objects::{blob_key, version_key};
use super::storage::{clear_abandoned, remove};
use super::{Channels, LogEntry, Operation, Store, laid};
use crate::digest::{is_sha256, sha256_file, sha256_hex};
use crate::encryption::Unreadable;
use crate::files::is_temporary;
use crate::oms;
use crate::untrusted::visible_line;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fsck {
    pub entries: u64,
    pub versions: u64,
    pub blobs: u64,
    /// Leftovers of killed processes; harmless.
    pub temporary: u64,
    pub head: Head,
    /// In words, each with the path it is about. Empty: all is well.
    pub problems: Vec<String>,
}

impl Fsck {
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }
}

/// What a repair did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Files and folders that killed processes left.
    pub temporary: u64,
    /// Objects that a killed removal had taken aside, put back.
    pub restored: u64,
    /// Laid-out folders that were not their version; they are made anew when they are asked for.
    pub folders: u64,
}

impl Store {
    /// Removes what can be had again: leftovers older than an hour, and laid-out folders that are not their version.
    /// Damaged content is mended by [`Store::mend`] with the artifact's folder.
    pub fn repair(&self) -> Result<Repaired> {
        let mut done = self.storage.clear_leftovers()?;
        laid::clear(&self.artifacts)?;
        done.temporary += clear_abandoned(&self.artifacts)?;
        for name in names(&self.artifacts, &mut 0)? {
            let path = self.artifacts.join(&name);
            if !self.is_version(&name, &path) {
                remove(&path)?;
                done.folders += 1;
            }
        }
        Ok(done)
    }

    /// Checks the log's chain, every version and every blob by its digest, and every laid-out folder. A chain cannot
    /// show that its end was cut off or rewritten: `expected` is a head that was noted down elsewhere
    /// ([`Store::head`]), which the log must still contain.
    pub fn fsck(&self, expected: Option<&Head>) -> Result<Fsck> {
        let mut report =
            Fsck { entries: 0, versions: 0, blobs: 0, temporary: 0, head: genesis(), problems: Vec::new() };
        let entries = self.check_log(expected, &mut report)?;
        self.check_versions(&mut report)?;
        self.check_blobs(&mut report)?;
        self.check_folders(&mut report)?;
        self.check_trust(&mut report);
        let removed: BTreeMap<&String, u64> =
            entries.iter().filter(|e| e.op == Operation::Remove).map(|e| (&e.to, e.seq)).collect();
        for entry in &entries {
            if entry.op == Operation::Trust {
                continue;
            }
            let was_removed = removed.get(&entry.to).is_some_and(|seq| *seq >= entry.seq);
            if !was_removed && self.storage.stat(&version_key(&entry.to)).is_err() {
                report.problems.push(format!("log entry {} names {}, which is not here", entry.seq, entry.to));
            }
        }
        Ok(report)
    }

    fn check_log(&self, expected: Option<&Head>, report: &mut Fsck) -> Result<Vec<LogEntry>> {
        let dir = self.place("log");
        for name in self.names("log", &mut report.temporary)? {
            if seq_of(&name).is_none() {
                report
                    .problems
                    .push(format!("{} does not belong there", dir.join(visible_line(&name).as_ref()).display()));
            }
        }
        let mut entries = Vec::new();
        let mut channels = Channels::new();
        let mut is_expected_found = expected.is_none_or(|head| *head == genesis());
        for seq in 1..=self.last_listed()? {
            let path = self.entry_path(seq);
            let Ok(bytes) = self.entry_bytes(seq) else {
                report.problems.push(format!("{} is missing or cannot be read", path.display()));
                report.head.seq = seq;
                continue;
            };
            let head = Head { seq, sha256: sha256_hex(&bytes) };
            match parse(&path, &bytes) {
                Ok(entry) => {
                    report.entries += 1;
                    if let Some(reason) = breaks(&entry, &report.head) {
                        report.problems.push(format!("{}: {reason}", path.display()));
                    }
                    if entry.from.as_ref() != before(&entry, &channels, &entries).as_ref() {
                        report.problems.push(format!("{}: it replaces what was not served", path.display()));
                    }
                    apply(&mut channels, &entry);
                    entries.push(entry);
                }
                Err(e) => report.problems.push(e.to_string()),
            }
            is_expected_found |= expected == Some(&head);
            report.head = head;
        }
        if let Some(head) = expected.filter(|_| !is_expected_found) {
            let problem = format!("{}: the log no longer contains entry {} ({})", dir.display(), head.seq, head.sha256);
            report.problems.push(problem);
        }
        Ok(entries)
    }

    /// Every promotion since there is a policy, by the policy of then and what is known of its keys now.
    fn check_trust(&self, report: &mut Fsck) {
        // What is wrong with the log itself was told already.
        let Ok(log) = self.read_log() else { return };
        let now = match self.trust_in(&log.entries) {
            Ok(Some(now)) => now,
            Ok(None) => return,
            Err(e) => return report.problems.push(e.to_string()),
        };
        let first = log.entries.iter().find(|e| e.op == Operation::Trust).map_or(0, |e| e.seq);
        for entry in log.entries.iter().filter(|e| e.op == Operation::Promote && e.seq > first) {
            if let Err(e) = self.vet_entry(&log, &now, entry) {
                report.problems.push(format!("log entry {} is not to be trusted: {e}", entry.seq));
            }
        }
    }

    fn check_versions(&self, report: &mut Fsck) -> Result<()> {
        for name in self.names("versions", &mut report.temporary)? {
            let Some(digest) = name.strip_suffix(".json").filter(|d| is_sha256(d)) else {
                report.problems.push(format!("versions/{} does not belong there", visible_line(&name)));
                continue;
            };
            report.versions += 1;
            if let Err(e) = self.version(digest).and_then(|v| self.check_blobs_present(&v)) {
                report.problems.push(e.to_string());
            }
        }
        Ok(())
    }

    fn check_blobs(&self, report: &mut Fsck) -> Result<()> {
        let dir = self.place("blobs/sha256");
        let listing = self.storage.list("blobs/sha256").map_err(Error::io("list", &dir))?;
        report.temporary += listing.temporary;
        for name in listing.strange {
            let shown = dir.join(visible_line(&name).as_ref());
            report.problems.push(format!("{}: it is not encrypted, and the store is", shown.display()));
        }
        let mut locked = Vec::new();
        for name in listing.names {
            report.blobs += 1;
            let place = self.place(&blob_key(visible_line(&name).as_ref()));
            match self.storage.digest(&blob_key(&name)) {
                Ok(found) if found == name => {}
                Ok(_) => report.problems.push(format!("{}: the blob is damaged", place.display())),
                Err(e) if is_locked(&e) => locked.push(e),
                Err(e) => report.problems.push(format!("{}: {e}", place.display())),
            }
        }
        if let Some(e) = locked.first() {
            let n = locked.len();
            report.blobs -= n as u64;
            report.problems.push(format!("{}: the content of {n} blobs was not checked: {e}", dir.display()));
        }
        Ok(())
    }

    fn check_folders(&self, report: &mut Fsck) -> Result<()> {
        let dir = &self.artifacts;
        for name in names(dir, &mut report.temporary)? {
            if !self.is_version(&name, &dir.join(&name)) {
                let shown = dir.join(visible_line(&name).as_ref());
                report.problems.push(format!("{}: it is not the version; a repair removes it", shown.display()));
            }
        }
        Ok(())
    }

    /// Whether a folder holds exactly the version that it is named after.
    fn is_version(&self, name: &str, folder: &Path) -> bool {
        self.version(name).is_ok_and(|version| {
            let Ok(found) = oms::files(folder, None, &[]) else { return false };
            found.len() == version.files.len()
                && version.files.iter().all(|(name, file)| {
                    found.get(name).is_some_and(|p| sha256_file(p).is_ok_and(|digest| digest == file.sha256))
                })
        })
    }
}

/// Whether it is for want of a key that a blob can't be read.
fn is_locked(e: &io::Error) -> bool {
    let inner = e.get_ref().and_then(|e| e.downcast_ref::<Unreadable>());
    matches!(inner, Some(Unreadable::NoKey { .. }))
}

/// What `entry` had to replace.
fn before(entry: &LogEntry, channels: &Channels, entries: &[LogEntry]) -> Option<String> {
    match entry.op {
        Operation::Promote | Operation::Rollback => {
            channels.get(&entry.model).and_then(|c| c.get(&entry.channel)).map(|state| state.version.clone())
        }
        Operation::Hold | Operation::Release => {
            holds(entries).get(&entry.model).and_then(|h| h.get(&entry.channel)).cloned()
        }
        Operation::Remove => Some(entry.to.clone()),
        Operation::Trust => entries.iter().rev().find(|e| e.op == Operation::Trust).map(|e| e.to.clone()),
    }
}

/// The names in a folder, sorted; temporary ones are counted and left out.
fn names(dir: &Path, temporary: &mut u64) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in dir.read_dir().map_err(Error::io("list", dir))? {
        let name = entry.map_err(Error::io("list", dir))?.file_name().to_string_lossy().into_owned();
        if is_temporary(&name) {
            *temporary += 1;
        } else {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
