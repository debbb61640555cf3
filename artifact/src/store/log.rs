//! The promotion log: one immutable file an entry, each with the hash of the one before, created exclusively. Reading
//! it checks the chain.

use super::Store;
use super::objects::MAX_OBJECT_BYTES;
use crate::digest::{canonical_json, is_sha256, sha256_hex};
use crate::strict_json;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    Promote,
    Rollback,
    /// A version is kept whatever channels do, until it is released.
    Hold,
    Release,
    /// A version was no longer needed, and its content may be gone.
    Remove,
    /// Another trust policy came into force.
    Trust,
}

/// One entry, as the log keeps it: canonical JSON on one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogEntry {
    /// 1 for the first.
    pub seq: u64,
    /// SHA-256 of the entry before it, byte for byte; 64 zeros in the first.
    pub prev: String,
    pub op: Operation,
    pub model: String,
    /// The channel that moved. Of a hold its name; empty where a version was removed.
    pub channel: String,
    /// The version that the channel served until now, or that was held under this name, or the trust policy before.
    pub from: Option<String>,
    /// The version that it serves from now on, or that is held, released, removed; of a trust policy its digest.
    pub to: String,
    pub evidence: BTreeMap<String, String>,
    pub by: String,
    /// RFC 3339.
    pub at: String,
}

/// Where a log ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// 0 for an empty log.
    pub seq: u64,
    /// SHA-256 of the last entry.
    pub sha256: String,
}

/// What a channel serves, and since which entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChannelState {
    pub version: String,
    pub seq: u64,
    pub by: String,
    pub at: String,
    /// The versions behind it, oldest first, this one last; a rollback takes the tail away.
    pub history: Vec<String>,
}

/// Model to channel to what it serves.
pub type Channels = BTreeMap<String, BTreeMap<String, ChannelState>>;

/// Model to a hold's name to the version that it keeps.
pub type Holds = BTreeMap<String, BTreeMap<String, String>>;

/// What is held after these entries.
pub fn holds(entries: &[LogEntry]) -> Holds {
    let mut holds = Holds::new();
    for entry in entries {
        let of_model = || entry.model.clone();
        match entry.op {
            Operation::Hold => {
                holds.entry(of_model()).or_default().insert(entry.channel.clone(), entry.to.clone());
            }
            Operation::Release => {
                holds.entry(of_model()).or_default().remove(&entry.channel);
            }
            Operation::Promote | Operation::Rollback | Operation::Remove | Operation::Trust => {}
        }
    }
    holds.retain(|_, of_model| !of_model.is_empty());
    holds
}

/// What the channels serve after these entries.
pub fn fold(entries: &[LogEntry]) -> Channels {
    let mut channels = Channels::new();
    for entry in entries {
        apply(&mut channels, entry);
    }
    channels
}

/// One step of [`fold`].
pub(super) fn apply(channels: &mut Channels, entry: &LogEntry) {
    if !matches!(entry.op, Operation::Promote | Operation::Rollback) {
        return;
    }
    let of_model = channels.entry(entry.model.clone()).or_default();
    let mut history = of_model.remove(&entry.channel).map_or_else(Vec::new, |state| state.history);
    if entry.op == Operation::Rollback
        && let Some(i) = history.iter().rposition(|v| *v == entry.to)
    {
        history.truncate(i);
    }
    // Promoted again on new evidence: still one version.
    if history.last() != Some(&entry.to) {
        history.push(entry.to.clone());
    }
    let (by, at) = (entry.by.clone(), entry.at.clone());
    let state = ChannelState { version: entry.to.clone(), seq: entry.seq, by, at, history };
    of_model.insert(entry.channel.clone(), state);
}

pub(super) struct Log {
    pub entries: Vec<LogEntry>,
    pub head: Head,
}

impl Log {
    /// Each entry holds the hash of the one before it, so that only the last has to be known apart.
    pub fn contains(&self, head: &Head) -> bool {
        let after = usize::try_from(head.seq).ok().and_then(|seq| self.entries.get(seq));
        *head == self.head || *head == genesis() || after.is_some_and(|entry| entry.prev == head.sha256)
    }

    pub fn next(
        &self,
        op: Operation,
        (model, channel): (&str, &str),
        (from, to): (Option<String>, String),
        evidence: &BTreeMap<String, String>,
        (by, at): (&str, &str),
    ) -> LogEntry {
        LogEntry {
            seq: self.head.seq + 1,
            prev: self.head.sha256.clone(),
            op,
            model: model.to_owned(),
            channel: channel.to_owned(),
            from,
            to,
            evidence: evidence.clone(),
            by: by.to_owned(),
            at: at.to_owned(),
        }
    }
}

pub(super) fn genesis() -> Head {
    Head { seq: 0, sha256: "0".repeat(64) }
}

pub(super) const TO_FSCK: &str = "restore the log from a copy; fsck tells all that is wrong";

impl Store {
    pub(super) fn entry_path(&self, seq: u64) -> PathBuf {
        self.place(&entry_key(seq))
    }

    pub(super) fn entry_bytes(&self, seq: u64) -> io::Result<Vec<u8>> {
        self.storage.read(&entry_key(seq), MAX_OBJECT_BYTES)
    }

    pub(super) fn read_log(&self) -> Result<Log> {
        // Listed first: an entry that is listed now must be reached below, or one before it is gone.
        let listed = self.last_listed()?;
        self.storage.expect_reads(&(1..=listed).map(entry_key).collect::<Vec<_>>(), MAX_OBJECT_BYTES);
        let mut entries = Vec::new();
        let mut head = genesis();
        loop {
            let path = self.entry_path(head.seq + 1);
            let bytes = match self.entry_bytes(head.seq + 1) {
                Ok(bytes) => bytes,
                Err(e) if e.kind() == io::ErrorKind::NotFound && listed > head.seq => {
                    return Err(Error::invalid(&path, "the entry is gone, later ones are there", TO_FSCK));
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Log { entries, head }),
                Err(e) => return Err(Error::io("read the log entry", &path)(e)),
            };
            let entry = parse(&path, &bytes)?;
            if let Some(reason) = breaks(&entry, &head) {
                return Err(Error::invalid(&path, reason, TO_FSCK));
            }
            head = Head { seq: entry.seq, sha256: sha256_hex(&bytes) };
            entries.push(entry);
        }
    }

    /// The highest number of an entry that the folder lists.
    pub(super) fn last_listed(&self) -> Result<u64> {
        Ok(self.names("log", &mut 0)?.iter().filter_map(|name| seq_of(name)).max().unwrap_or(0))
    }

    /// Ok(false): another wrote an entry of this number first.
    pub(super) fn write_entry(&self, entry: &LogEntry) -> Result<bool> {
        let path = self.entry_path(entry.seq);
        let bytes = encode(&path, entry)?;
        self.storage.create(&entry_key(entry.seq), &bytes).map_err(Error::io("write the log entry", &path))
    }
}

fn entry_key(seq: u64) -> String {
    format!("log/{seq:016}.json")
}

/// The number in the name of an entry's file.
pub(super) fn seq_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".json")?;
    (digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}

fn encode(path: &Path, entry: &LogEntry) -> Result<Vec<u8>> {
    let value = serde_json::to_value(entry)
        .map_err(|e| Error::invalid(path, format!("the entry cannot be written: {e}"), "this is a defect"))?;
    Ok((canonical_json(&value) + "\n").into_bytes())
}

pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<LogEntry> {
    let entry: LogEntry = strict_json::from_slice(bytes)
        .map_err(|e| Error::invalid(path, format!("it is not a log entry: {e}"), TO_FSCK))?;
    if encode(path, &entry)? != bytes {
        return Err(Error::invalid(path, "it is not spelled as entries are written", TO_FSCK));
    }
    Ok(entry)
}

/// Why `entry` cannot follow on `head`.
pub(super) fn breaks(entry: &LogEntry, head: &Head) -> Option<String> {
    if entry.seq != head.seq + 1 {
        return Some(format!("its number is {}, its place is {}", entry.seq, head.seq + 1));
    }
    if entry.prev != head.sha256 {
        return Some(format!("the chain is broken: entry {} is not the one that it was written after", head.seq));
    }
    (!is_sha256(&entry.to)).then(|| "it names what is no version".to_owned())
}
