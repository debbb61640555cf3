//! The desk of a run: its review queue, everyone's decisions, and the one file that this reviewer's are appended to.

use super::desk::{Desk, DeskError, Item, Judgement, Verdict};
use limbeck_data_curation::Error;
use limbeck_data_curation::review::{self, Decision, Decisions, Queue, Standing};
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub struct QueueDesk {
    name: String,
    queue: Queue,
    decisions: Decisions,
    own: PathBuf,
    reviewer: String,
    now: Box<dyn Fn() -> String>,
    items: Arc<[Item]>,
    labels: Arc<[String]>,
    standing: Vec<Option<Judgement>>,
}

impl QueueDesk {
    /// `files` are all decision files that count, `own` is the one to append to (read too, whether or not it is among
    /// `files`). `now` tells the time as RFC 3339 in UTC.
    ///
    /// # Errors
    /// When a decision file can't be read or holds a bad line.
    pub fn open(
        name: &str,
        queue: Queue,
        files: &[PathBuf],
        own: &Path,
        reviewer: &str,
        now: impl Fn() -> String + 'static,
    ) -> Result<QueueDesk, Error> {
        drop_torn_line(own).map_err(|source| Error::Io {
            attempt: "mend the end of",
            path: own.to_path_buf(),
            source,
        })?;
        let mut paths = files.to_vec();
        if !paths.iter().any(|path| same_file(path, own)) {
            paths.push(own.to_path_buf());
        }
        let decisions = Decisions::load(&paths)?;
        let folded = decisions.fold();
        let mut items = Vec::with_capacity(queue.items.len());
        let mut standing = Vec::with_capacity(queue.items.len());
        for item in &queue.items {
            let decision = folded.get(item.id.as_str()).copied();
            let stands = item.standing(decision, &queue.labels);
            items.push(shown(item, &stands));
            standing.push(judgement(decision, stands));
        }
        drop(folded);
        Ok(QueueDesk {
            name: name.to_string(),
            labels: queue.labels.clone().into(),
            items: items.into(),
            standing,
            queue,
            decisions,
            own: own.to_path_buf(),
            reviewer: reviewer.to_string(),
            now: Box::new(now),
        })
    }

    /// Everyone's decisions, with those made here.
    pub fn decisions(&self) -> &Decisions {
        &self.decisions
    }

    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    fn append(
        &mut self,
        item: usize,
        verdict: review::Verdict,
        label: Option<&str>,
        note: Option<&str>,
    ) -> Result<(), DeskError> {
        let known =
            self.queue.items.get(item).ok_or_else(|| DeskError(format!("there is no item {item} in the queue")))?;
        // Decisions are read back in the order of their times: a clock that was set back must not reorder them.
        let mut at = (self.now)();
        if let Some(last) = self.decisions.list().iter().rev().find(|d| d.reviewer == self.reviewer)
            && last.at.len() == at.len()
            && last.at > at
        {
            at = last.at.clone();
        }
        let decision = Decision::new(&at, &self.reviewer, &known.id, verdict, label, &known.shown_sha256, note);
        self.decisions.append(&self.own, decision).map_err(|e| DeskError(e.to_string()))?;
        let of_item = self.decisions.list().iter().filter(|d| d.item == known.id).cloned().collect();
        let of_item = Decisions::from_list(of_item);
        let stands = of_item.fold().get(known.id.as_str()).copied();
        self.standing[item] = judgement(stands, known.standing(stands, &self.queue.labels));
        Ok(())
    }
}

impl Desk for QueueDesk {
    fn name(&self) -> &str {
        &self.name
    }

    fn items(&self) -> Arc<[Item]> {
        self.items.clone()
    }

    fn labels(&self) -> Arc<[String]> {
        self.labels.clone()
    }

    fn judgement(&self, item: usize) -> Option<Judgement> {
        self.standing.get(item).cloned().flatten()
    }

    fn history(&self) -> Vec<usize> {
        let place: BTreeMap<&str, usize> =
            self.queue.items.iter().enumerate().map(|(place, item)| (item.id.as_str(), place)).collect();
        let mut history: Vec<usize> = Vec::new();
        for decision in self.decisions.list().iter().filter(|d| d.reviewer == self.reviewer) {
            let Some(&item) = place.get(decision.item.as_str()) else { continue };
            if decision.verdict != review::Verdict::Undo {
                history.push(item);
            } else if let Some(last) = history.iter().rposition(|of| *of == item) {
                history.remove(last);
            }
        }
        history
    }

    fn decide(&mut self, item: usize, judgement: &Judgement) -> Result<(), DeskError> {
        let verdict = match judgement.verdict {
            Verdict::Accept => review::Verdict::Accept,
            Verdict::Correct => review::Verdict::Correct,
            Verdict::Reject => review::Verdict::Reject,
            Verdict::Skip => review::Verdict::Skip,
        };
        self.append(item, verdict, judgement.label.as_deref(), judgement.note.as_deref())
    }

    fn undo(&mut self, item: usize) -> Result<(), DeskError> {
        self.append(item, review::Verdict::Undo, None, None)
    }
}

fn shown(item: &review::Item, stands: &Standing) -> Item {
    let mut why = vec![item.reason.text().to_string()];
    if !item.rivals.is_empty() {
        why.push(format!("other answers: {}", item.rivals.join(", ")));
    }
    if let Standing::Void(reason) = stands {
        why.push(format!("an earlier decision does not count: {reason}"));
    }
    Item {
        id: item.id.clone(),
        message: item.message.clone(),
        answer: item.label.clone().unwrap_or_else(|| item.answer.clone()),
        answered_by: String::new(),
        why,
        feedback: item.feedback.clone(),
        about: [Some(item.id.clone()), Some(item.split.name().to_string()), item.at.clone()]
            .into_iter()
            .flatten()
            .collect(),
    }
}

fn judgement(decision: Option<&Decision>, stands: Standing) -> Option<Judgement> {
    let decision = decision?;
    let (verdict, label) = match stands {
        Standing::Open | Standing::Void(_) => return None,
        Standing::Skipped => (Verdict::Skip, None),
        Standing::Rejected(_) => (Verdict::Reject, None),
        Standing::Labelled(label) if decision.verdict == review::Verdict::Correct => (Verdict::Correct, Some(label)),
        Standing::Labelled(label) => (Verdict::Accept, Some(label)),
    };
    Some(Judgement { verdict, label, note: decision.note.clone() })
}

fn same_file(a: &Path, b: &Path) -> bool {
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    real(a) == real(b)
}

/// A line that was being written when the machine stopped was never acknowledged. It must go before the next is
/// appended, or it would stand in the middle of the file as a bad one.
fn drop_torn_line(path: &Path) -> std::io::Result<()> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let torn = std::str::from_utf8(&text[whole..]).map_or(true, |line| serde_json::from_str::<Decision>(line).is_err());
    if whole == text.len() || !torn {
        return Ok(());
    }
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(whole as u64)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::review::{App, carry_out};
    use limbeck_artifact::dataset::Split;
    use limbeck_data_curation::review::QueueReason;
    use ratatui::crossterm::event::{KeyCode, KeyEvent};
    use ratatui::layout::Size;
    use std::fs;

    fn queue() -> Queue {
        let item = |id: &str, answer: &str, label: Option<&str>| review::Item {
            id: id.to_string(),
            split: Split::Test,
            message: format!("message of {id}"),
            answer: answer.to_string(),
            label: label.map(str::to_string),
            rivals: Vec::new(),
            reason: QueueReason::Random,
            feedback: None,
            at: None,
            shown_sha256: format!("digest of {id}"),
        };
        let items = vec![
            item("t1", "Card Arrival", Some("card_arrival")),
            item("t2", "exchange_rate", Some("exchange_rate")),
            item("t3", "sorry, what?", None),
        ];
        Queue { items, labels: vec!["card_arrival".into(), "exchange_rate".into()] }
    }

    fn open(dir: &Path, reviewer: &str) -> QueueDesk {
        let others = vec![dir.join("shipped.jsonl")];
        let now = || "2026-03-04T10:11:12.000Z".to_string();
        QueueDesk::open("quickstart", queue(), &others, &dir.join("own.jsonl"), reviewer, now).unwrap()
    }

    fn type_in(desk: &mut QueueDesk, keys: &str) -> App {
        let mut app = App::new(desk);
        app.fit(Size { width: 80, height: 24 });
        for c in keys.chars() {
            let code = if c == '\n' { KeyCode::Enter } else { KeyCode::Char(c) };
            let effect = app.handle(KeyEvent::from(code));
            carry_out(&mut app, desk, effect);
        }
        app
    }

    #[test]
    fn what_is_decided_is_found_again_by_the_next_session() {
        let dir = tempfile::tempdir().unwrap();
        let app = type_in(&mut open(dir.path(), "ada"), "\ncarr\nnsee ticket\nxunreadable\n");
        assert_eq!((app.reviewed(), app.total()), (3, 3));
        assert_eq!(fs::read_to_string(dir.path().join("own.jsonl")).unwrap().lines().count(), 3);

        let mut again = open(dir.path(), "ada");
        let status = again.queue().status(again.decisions());
        assert_eq!((status.reviewed, status.void.len()), (3, 0));
        assert_eq!(again.judgement(1).unwrap().label.as_deref(), Some("card_arrival"));
        assert_eq!(again.judgement(2).unwrap().note.as_deref(), Some("unreadable; see ticket"));
        let app = type_in(&mut again, "uu");
        assert_eq!((app.reviewed(), again.history()), (1, vec![0]));
        assert_eq!(open(dir.path(), "ada").history(), [0]);
    }

    #[test]
    fn nobody_takes_back_what_another_decided() {
        let dir = tempfile::tempdir().unwrap();
        type_in(&mut open(dir.path(), "ada"), "\n\n");
        let mut desk = open(dir.path(), "ben");
        assert_eq!(desk.history(), Vec::<usize>::new());
        let app = type_in(&mut desk, "u");
        assert_eq!(app.reviewed(), 2);
    }

    #[test]
    fn a_torn_last_line_is_dropped_and_the_log_stays_readable() {
        let dir = tempfile::tempdir().unwrap();
        type_in(&mut open(dir.path(), "ada"), "\n");
        let path = dir.path().join("own.jsonl");
        let whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{whole}{{\"id\":\"12\",\"at\":\"20")).unwrap();
        let app = type_in(&mut open(dir.path(), "ada"), "\n");
        assert_eq!(app.reviewed(), 2);
        assert_eq!(open(dir.path(), "ada").decisions().list().len(), 2);
    }

    #[test]
    fn a_decision_about_another_text_is_asked_again_and_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let old = Decision::new("2026-01-01T00:00:00Z", "ada", "t1", review::Verdict::Accept, None, "other", None);
        fs::write(dir.path().join("shipped.jsonl"), old.to_line() + "\n").unwrap();
        let desk = open(dir.path(), "ada");
        assert_eq!(desk.judgement(0), None);
        assert!(desk.items()[0].why.iter().any(|why| why.contains("another text")));
    }
}
