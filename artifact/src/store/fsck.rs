//! Checks a whole store and tells everything that is wrong with it, not only the first thing. It changes nothing.

use super::log::{Head, apply, breaks, genesis, parse, seq_of};
use super::{Channels, LogEntry, Store};
use crate::digest::{is_sha256, sha256_file, sha256_hex};
use crate::files::is_temporary;
use crate::oms;
use crate::untrusted::visible_line;
use crate::{Error, Result};
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

impl Store {
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
        for entry in &entries {
            if !self.version_path(&entry.to).is_file() {
                report.problems.push(format!("log entry {} promotes {}, which is not here", entry.seq, entry.to));
            }
        }
        Ok(report)
    }

    fn check_log(&self, expected: Option<&Head>, report: &mut Fsck) -> Result<Vec<LogEntry>> {
        let dir = self.dir.join("log");
        for name in names(&dir, report)? {
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
            let Ok(bytes) = std::fs::read(&path) else {
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
                    let state = channels.get(&entry.model).and_then(|c| c.get(&entry.channel));
                    if entry.from.as_ref() != state.map(|s| &s.version) {
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

    fn check_versions(&self, report: &mut Fsck) -> Result<()> {
        for name in names(&self.dir.join("versions"), report)? {
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
        let dir = self.dir.join("blobs/sha256");
        for name in names(&dir, report)? {
            let path = dir.join(&name);
            report.blobs += 1;
            match sha256_file(&path) {
                Ok(found) if found == name => {}
                Ok(_) => report
                    .problems
                    .push(format!("{}: the blob is damaged", dir.join(visible_line(&name).as_ref()).display())),
                Err(e) => report.problems.push(e.to_string()),
            }
        }
        Ok(())
    }

    fn check_folders(&self, report: &mut Fsck) -> Result<()> {
        let dir = self.dir.join("artifacts");
        for name in names(&dir, report)? {
            let path = dir.join(&name);
            let is_right = self.version(&name).is_ok_and(|version| {
                let Ok(found) = oms::files(&path, None, &[]) else { return false };
                found.len() == version.files.len()
                    && version.files.iter().all(|(name, file)| {
                        found.get(name).is_some_and(|p| sha256_file(p).is_ok_and(|digest| digest == file.sha256))
                    })
            });
            if !is_right {
                let shown = dir.join(visible_line(&name).as_ref());
                report.problems.push(format!("{}: it is not the version; delete it", shown.display()));
            }
        }
        Ok(())
    }
}

/// The names in a folder, sorted; temporary ones are counted and left out.
fn names(dir: &Path, report: &mut Fsck) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in dir.read_dir().map_err(Error::io("list", dir))? {
        let name = entry.map_err(Error::io("list", dir))?.file_name().to_string_lossy().into_owned();
        if is_temporary(&name) {
            report.temporary += 1;
        } else {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
