//! Reviewers' decisions: append-only, folded into what stands for each item. Nothing is ever rewritten; taking a decision
//! back is a decision too.

use super::store::{self, Place};
use crate::Error;
use limbeck_artifact::digest::{canonical_json, sha256_hex};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime, UtcOffset};

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
    /// Somebody else should look: the item stands as it stood, and comes up for adjudication.
    Flag,
    /// A remark; decides nothing.
    Note,
    /// The reviewer's entry `of` no longer holds; without `of`, the latest on this item.
    Undo,
}

impl Verdict {
    /// Whether it says something about the item's label, or that the reviewer won't.
    pub fn judges(self) -> bool {
        matches!(self, Verdict::Accept | Verdict::Correct | Verdict::Reject | Verdict::Skip)
    }
}

/// How a reviewer came to an item, where it was not as the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pass {
    /// Without sight of what others decided.
    Blind,
    /// To settle what others disagreed on.
    Adjudicate,
}

/// One line of a decisions file: who decided what, when, and what was on the screen.
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
    /// A rejection's reason, or the remark itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub note: Option<String>,
    /// The entry that an undo takes back.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub of: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pass: Option<Pass>,
    /// Digest of what the screen suggested beside the recorded answer: the second guess, others' labels, similar items.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub suggestion_sha256: Option<String>,
    /// From the item's appearance on the screen to the decision.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub dwell_ms: Option<u64>,
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
        let decision = Decision {
            id: String::new(),
            at: at.to_string(),
            reviewer: reviewer.to_string(),
            item: item.to_string(),
            verdict,
            label: label.map(str::to_string),
            shown_sha256: shown_sha256.to_string(),
            note: note.map(str::to_string),
            of: None,
            pass: None,
            suggestion_sha256: None,
            dwell_ms: None,
        };
        decision.sealed()
    }

    /// With the id that its other fields give it.
    pub fn sealed(mut self) -> Decision {
        self.id.clear();
        self.id = sha256_hex(canonical_json(&serde_json::json!(self)).as_bytes())[..16].to_string();
        self
    }

    pub fn to_line(&self) -> String {
        serde_json::json!(self).to_string()
    }
}

/// All decisions of some files, in the order in which they were made.
#[derive(Clone, Debug, Default)]
pub struct Decisions {
    list: Vec<Decision>,
    times: Vec<OffsetDateTime>,
    /// Of each item its entries, by time; of equal times the one that was read first.
    of_item: HashMap<String, Vec<usize>>,
    torn: Vec<(PathBuf, usize)>,
}

impl PartialEq for Decisions {
    fn eq(&self, other: &Decisions) -> bool {
        (&self.list, &self.torn) == (&other.list, &other.torn)
    }
}

impl Decisions {
    /// Reads the files and merges them by time; files that are not there hold no decisions. A torn line (the machine
    /// stopped while it was written, and others may have been appended since) is left out and told in
    /// [`Decisions::torn`]; any other bad line is an error.
    ///
    /// # Errors
    /// When a file can't be read, or a whole line of it is no decision.
    pub fn load<P: AsRef<Path>>(paths: &[P]) -> Result<Decisions, Error> {
        Decisions::load_to(paths).map(|(decisions, _)| decisions)
    }

    /// As [`Decisions::load`]; tells for each file how far it was read, for a [`store::Tail`].
    pub(super) fn load_to<P: AsRef<Path>>(paths: &[P]) -> Result<(Decisions, Vec<(PathBuf, Place)>), Error> {
        let (mut timed, mut torn, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for path in paths {
            let path = path.as_ref();
            let mut place = Place::default();
            let part = store::read_on(path, &mut place, true)?;
            torn.extend(part.torn.into_iter().map(|line| (path.to_path_buf(), line)));
            timed.extend(part.decisions);
            places.push((path.to_path_buf(), place));
        }
        timed.sort_by_key(|(at, _)| *at);
        let mut decisions = Decisions { torn, ..Decisions::default() };
        timed.into_iter().for_each(|(at, decision)| decisions.take(at, decision));
        Ok((decisions, places))
    }

    /// Lines that were left out because they end in the middle: file and line, 1-based.
    pub fn torn(&self) -> &[(PathBuf, usize)] {
        &self.torn
    }

    pub fn list(&self) -> &[Decision] {
        &self.list
    }

    /// Puts a decision on disk (synced) and into the list.
    ///
    /// # Errors
    /// When it may not be on disk.
    pub fn append(&mut self, path: &Path, decision: Decision) -> Result<(), Error> {
        limbeck_artifact::files::append_line(path, &decision.to_line())
            .map_err(|e| Error::io("append a decision to", path, e))?;
        self.add(decision);
        Ok(())
    }

    /// Takes a decision that is on disk already, in whatever order it arrives. One whose `at` is no time counts as the
    /// earliest of all.
    pub fn add(&mut self, decision: Decision) {
        let at = OffsetDateTime::parse(&decision.at, &Rfc3339).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        self.take(at, decision);
    }

    fn take(&mut self, at: OffsetDateTime, decision: Decision) {
        let entries = match self.of_item.get_mut(&decision.item) {
            Some(entries) => entries,
            None => self.of_item.entry(decision.item.clone()).or_default(),
        };
        let place = entries.partition_point(|i| self.times[*i] <= at);
        entries.insert(place, self.list.len());
        self.list.push(decision);
        self.times.push(at);
    }

    /// What was said of an item and not taken back.
    pub fn of(&self, item: &str) -> Said<'_> {
        self.of_item.get(item).map_or_else(Said::default, |entries| said(entries.iter().map(|i| &self.list[*i])))
    }

    /// What stands for each item: an adjudication, or else the latest decision, any reviewer's, that was not taken back.
    pub fn fold(&self) -> BTreeMap<&str, &Decision> {
        self.of_item.keys().filter_map(|item| Some((item.as_str(), self.of(item).standing()?))).collect()
    }

    /// The reviewer's entries that were not taken back, the latest last.
    pub fn history(&self, reviewer: &str) -> Vec<&Decision> {
        let mut own: Vec<usize> = (0..self.list.len()).filter(|i| self.list[*i].reviewer == reviewer).collect();
        own.sort_by_key(|i| self.times[*i]);
        live(own.into_iter().map(|i| &self.list[i]))
    }

    /// The time to write into an entry that is made `now`: later than the item's entries and the reviewer's own, for what is
    /// decided in sight of them must not be read back as made before them, whatever the clocks say.
    pub fn later_than_seen(&self, item: &str, reviewer: &str, now: &str) -> String {
        let of_item = self.of_item.get(item).and_then(|entries| entries.last()).copied();
        let own = (0..self.list.len()).rev().find(|i| self.list[*i].reviewer == reviewer);
        let latest = of_item.into_iter().chain(own).max_by_key(|i| self.times[*i]);
        match (latest, OffsetDateTime::parse(now, &Rfc3339)) {
            (Some(i), Ok(at)) if self.times[i] >= at => {
                let next = self.times[i].checked_add(Duration::MILLISECOND).unwrap_or(at);
                next.to_offset(UtcOffset::UTC).format(&Rfc3339).unwrap_or_else(|_| now.to_string())
            }
            _ => now.to_string(),
        }
    }

    /// The reviewer's latest entry on an item that holds.
    pub fn latest_of(&self, item: &str, reviewer: &str) -> Option<&Decision> {
        let entries = self.of_item.get(item)?.iter().map(|i| &self.list[*i]);
        live(entries).into_iter().rfind(|d| d.reviewer == reviewer)
    }
}

/// What was said of one item and holds.
#[derive(Clone, Debug, Default)]
pub struct Said<'d> {
    /// Each reviewer's latest judgement, by time.
    pub votes: Vec<&'d Decision>,
    pub flags: Vec<&'d Decision>,
    pub notes: Vec<&'d Decision>,
}

impl<'d> Said<'d> {
    /// An adjudication, or else the latest vote.
    pub fn standing(&self) -> Option<&'d Decision> {
        self.adjudication().or(self.votes.last().copied())
    }

    pub fn adjudication(&self) -> Option<&'d Decision> {
        self.votes.iter().rev().find(|d| d.pass == Some(Pass::Adjudicate)).copied()
    }

    pub fn vote_of(&self, reviewer: &str) -> Option<&'d Decision> {
        self.votes.iter().find(|d| d.reviewer == reviewer).copied()
    }
}

/// Entries less those that were taken back, undos themselves left out.
fn live<'d>(entries: impl Iterator<Item = &'d Decision>) -> Vec<&'d Decision> {
    let mut live: Vec<&Decision> = Vec::new();
    for entry in entries {
        if entry.verdict != Verdict::Undo {
            live.push(entry);
            continue;
        }
        let taken_back = |d: &&Decision| match &entry.of {
            Some(id) => d.id == *id && d.reviewer == entry.reviewer,
            None => d.reviewer == entry.reviewer && d.item == entry.item,
        };
        if let Some(i) = live.iter().rposition(taken_back) {
            live.remove(i);
        }
    }
    live
}

fn said<'d>(entries: impl Iterator<Item = &'d Decision>) -> Said<'d> {
    let mut said = Said::default();
    for entry in live(entries) {
        match entry.verdict {
            Verdict::Flag => said.flags.push(entry),
            Verdict::Note => said.notes.push(entry),
            _ => {
                said.votes.retain(|d| d.reviewer != entry.reviewer);
                said.votes.push(entry);
            }
        }
    }
    said
}

/// A line's decision with its time; none where the line ends in the middle of its object, which is what a kill during the
/// append leaves and nothing else does.
pub(super) fn read(line: &[u8]) -> Result<Option<(OffsetDateTime, Decision)>, String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(at: u32, reviewer: &str, item: &str, verdict: Verdict) -> Decision {
        Decision::new(&format!("2026-01-01T00:00:{at:02}Z"), reviewer, item, verdict, None, "", None)
    }

    fn standing(list: &[&Decision]) -> Option<String> {
        let mut decisions = Decisions::default();
        list.iter().for_each(|d| decisions.add((*d).clone()));
        decisions.of("x").standing().map(|d| format!("{} {:?}", d.reviewer, d.verdict))
    }

    #[test]
    fn the_order_of_arrival_does_not_matter() {
        let a = entry(1, "ann", "x", Verdict::Accept);
        let b = entry(2, "ben", "x", Verdict::Reject);
        let undo = Decision { of: Some(b.id.clone()), ..entry(3, "ben", "x", Verdict::Undo) }.sealed();
        let flag = entry(4, "cat", "x", Verdict::Flag);
        assert_eq!(standing(&[&a, &b]).as_deref(), Some("ben Reject"));
        let orders: [[&Decision; 4]; 4] =
            [[&a, &b, &undo, &flag], [&flag, &undo, &b, &a], [&undo, &a, &flag, &b], [&b, &flag, &a, &undo]];
        for order in orders {
            assert_eq!(standing(&order).as_deref(), Some("ann Accept"));
        }
    }

    #[test]
    fn nobody_takes_back_what_another_decided_and_an_undo_of_old_takes_the_latest() {
        let (a, b) = (entry(1, "ann", "x", Verdict::Accept), entry(2, "ben", "x", Verdict::Skip));
        let foreign = Decision { of: Some(a.id.clone()), ..entry(3, "ben", "x", Verdict::Undo) }.sealed();
        assert_eq!(standing(&[&a, &foreign]).as_deref(), Some("ann Accept"));
        assert_eq!(standing(&[&a, &b, &entry(3, "ben", "x", Verdict::Undo)]).as_deref(), Some("ann Accept"));
        let twice = [&a, &b, &entry(3, "ann", "x", Verdict::Undo), &entry(4, "ben", "x", Verdict::Undo)];
        assert_eq!(standing(&twice), None);
    }

    #[test]
    fn a_clock_that_was_set_back_reorders_nothing() {
        let mut decisions = Decisions::default();
        decisions.add(entry(30, "ann", "x", Verdict::Accept));
        let now = "2026-01-01T00:00:10.5Z";
        assert_eq!(decisions.later_than_seen("x", "ben", now), "2026-01-01T00:00:30.001Z");
        assert_eq!(decisions.later_than_seen("y", "ann", now), "2026-01-01T00:00:30.001Z");
        assert_eq!(decisions.later_than_seen("y", "ben", now), now);
    }

    #[test]
    fn an_adjudication_outranks_later_votes() {
        let settle = Decision { pass: Some(Pass::Adjudicate), ..entry(2, "cat", "x", Verdict::Reject) }.sealed();
        let late = entry(3, "ann", "x", Verdict::Accept);
        assert_eq!(standing(&[&settle, &late]).as_deref(), Some("cat Reject"));
    }

    #[test]
    fn old_lines_keep_their_ids() {
        let old = "{\"id\":\"138f03443da5e566\",\"at\":\"2025-03-17T09:00:00Z\",\"reviewer\":\"banking77-gold\",\"item\":\
            \"call-a2099d462d4e\",\"verdict\":\"accept\",\"shown_sha256\":\
            \"415381145a5222f79d8387b87b4c99db3f81a04b93b7401b9a6f54a1386e380d\"}";
        let (_, decision) = read(old.as_bytes()).unwrap().unwrap();
        assert_eq!(decision.clone().sealed(), decision);
        assert_eq!(decision.to_line(), old);
    }
}
