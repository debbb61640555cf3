//! A reviewer's decisions: an append-only log a reviewer, folded into what stands for each item. Nothing is ever
//! rewritten; taking a decision back is a decision too.

use crate::Error;
use limbeck_artifact::digest::{canonical_json, sha256_hex};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The recorded answer is right.
    Accept,
    /// The right answer is `label`.
    Correct,
    /// The row is unfit for any split; `note` says why.
    Reject,
    /// Not now; the item goes to the end of the queue.
    Skip,
    /// The reviewer's latest decision on this item no longer holds.
    Undo,
}

/// One line of a decisions file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    /// The first 16 hex digits of the SHA-256 of the decision's canonical JSON with `id` empty.
    pub id: String,
    /// RFC 3339.
    pub at: String,
    pub reviewer: String,
    /// The trace's id.
    pub item: String,
    pub verdict: Verdict,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub label: Option<String>,
    /// Digest of the message and answer on the screen: a decision about another text does not count.
    pub shown_sha256: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub note: Option<String>,
}

impl Decision {
    pub fn new(
        at: &str,
        reviewer: &str,
        item: &str,
        verdict: Verdict,
        label: Option<&str>,
        shown_sha256: &str,
        note: Option<&str>,
    ) -> Decision {
        let mut decision = Decision {
            id: String::new(),
            at: at.to_string(),
            reviewer: reviewer.to_string(),
            item: item.to_string(),
            verdict,
            label: label.map(str::to_string),
            shown_sha256: shown_sha256.to_string(),
            note: note.map(str::to_string),
        };
        decision.id = sha256_hex(canonical_json(&serde_json::json!(decision)).as_bytes())[..16].to_string();
        decision
    }

    pub fn to_line(&self) -> String {
        serde_json::json!(self).to_string()
    }
}

/// All decisions of some files, in the order in which they were made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decisions {
    list: Vec<Decision>,
    torn: Vec<(PathBuf, usize)>,
}

impl Decisions {
    /// Reads the files and merges them by time; files that are not there hold no decisions. A torn line (the machine
    /// stopped while it was written, and others may have been appended since) is left out and told in
    /// [`Decisions::torn`]; any other bad line is an error.
    pub fn load<P: AsRef<Path>>(paths: &[P]) -> Result<Decisions, Error> {
        let (mut timed, mut torn) = (Vec::new(), Vec::new());
        for path in paths {
            let path = path.as_ref();
            let bytes = match std::fs::read(path) {
                Ok(bytes) => bytes,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::io("read decisions from", path, e)),
            };
            for (i, line) in bytes.split(|b| *b == b'\n').enumerate().filter(|(_, l)| !l.trim_ascii().is_empty()) {
                match read(line) {
                    Ok(Some(found)) => timed.push(found),
                    Ok(None) => torn.push((path.to_path_buf(), i + 1)),
                    Err(why) => return Err(Error::BadDecision { path: path.to_path_buf(), line: i + 1, why }),
                }
            }
        }
        timed.sort_by_key(|(at, _)| *at);
        Ok(Decisions { list: timed.into_iter().map(|(_, d)| d).collect(), torn })
    }

    /// Lines that were left out because they end in the middle: file and line, 1-based.
    pub fn torn(&self) -> &[(PathBuf, usize)] {
        &self.torn
    }

    pub fn from_list(list: Vec<Decision>) -> Decisions {
        Decisions { list, torn: Vec::new() }
    }

    pub fn list(&self) -> &[Decision] {
        &self.list
    }

    /// Puts a decision on disk (synced) and into the list.
    pub fn append(&mut self, path: &Path, decision: Decision) -> Result<(), Error> {
        limbeck_artifact::files::append_line(path, &decision.to_line())
            .map_err(|e| Error::io("append a decision to", path, e))?;
        self.list.push(decision);
        Ok(())
    }

    /// What stands for each item: the latest decision, any reviewer's, that was not taken back.
    pub fn fold(&self) -> BTreeMap<&str, &Decision> {
        let mut stacks: BTreeMap<&str, Vec<&Decision>> = BTreeMap::new();
        for decision in &self.list {
            let stack = stacks.entry(&decision.item).or_default();
            if decision.verdict == Verdict::Undo {
                if let Some(i) = stack.iter().rposition(|d| d.reviewer == decision.reviewer) {
                    stack.remove(i);
                }
            } else {
                stack.push(decision);
            }
        }
        stacks.into_iter().filter_map(|(item, stack)| Some((item, *stack.last()?))).collect()
    }
}

/// A line's decision with its time; none where the line ends in the middle of its object, which is what a kill during the
/// append leaves and nothing else does.
fn read(line: &[u8]) -> Result<Option<(OffsetDateTime, Decision)>, String> {
    let utf8 = std::str::from_utf8(line);
    // Torn inside of a character, it is no UTF-8 either.
    match serde_json::from_str::<Decision>(&String::from_utf8_lossy(line)) {
        Err(e) if e.is_eof() && line.starts_with(b"{") => Ok(None),
        Err(e) => Err(e.to_string()),
        Ok(_) if utf8.is_err() => Err("the line is no UTF-8".to_string()),
        Ok(decision) => checked(decision).map(Some),
    }
}

fn checked(decision: Decision) -> Result<(OffsetDateTime, Decision), String> {
    let at = OffsetDateTime::parse(&decision.at, &Rfc3339).map_err(|_| "`at` is no RFC 3339 time".to_string())?;
    if decision.verdict == Verdict::Correct && decision.label.is_none() {
        return Err("a `correct` needs its `label`".to_string());
    }
    Ok((at, decision))
}
