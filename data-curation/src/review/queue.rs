//! The queue: every kept row, and how much of it is decided. Its order is [`super::rank`]'s: by value for train and valid,
//! random for test and calibration on purpose: were doubtful rows reviewed first, a half-reviewed test split would hold
//! the hard ones only, and its accuracy would be nobody's.

use super::{Decision, Decisions, Pass, Said, Verdict, shelf};
use crate::Error;
use crate::curate::{self, CurateSummary, Curated};
use crate::taxonomy::{Answers, Fields};
use crate::text::{hash, mix};
use crate::trace::visible_message;
use limbeck_artifact::dataset::Split;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Why an item stands where it stands; in order of urgency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueueReason {
    /// The recorded answer is none of the labels.
    OutsideTaxonomy,
    /// It is not valid under the schema.
    Invalid,
    /// Copies of the message were answered differently.
    Disagreement,
    /// The message does not say a value of the answer.
    NotInMessage,
    NegativeFeedback,
    /// Few answers have these fields.
    RareFields,
    Random,
}

impl QueueReason {
    /// As a reviewer reads it.
    pub fn text(self) -> &'static str {
        match self {
            QueueReason::OutsideTaxonomy => "the answer is none of the labels",
            QueueReason::Invalid => "the answer is not valid",
            QueueReason::NotInMessage => "the message does not say it",
            QueueReason::RareFields => "few answers have these fields",
            QueueReason::Disagreement => "copies of this message were answered differently",
            QueueReason::NegativeFeedback => "the customer disliked the answer",
            QueueReason::Random => "drawn at random",
        }
    }
}

/// Where an item of the queue comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Production handed the call on, to a larger model or a person.
    Escalated,
    /// Two of teacher, student, copies and feedback contradict each other.
    Disagreement,
    /// The student is unsure of the teacher's label, the least sure first.
    LowConfidence,
    /// Drawn at random, whatever its worth: what estimates are made from.
    Random,
}

impl Source {
    pub const ALL: [Source; 4] = [Source::Escalated, Source::Disagreement, Source::LowConfidence, Source::Random];

    /// As a reviewer reads it.
    pub fn name(self) -> &'static str {
        match self {
            Source::Escalated => "escalated",
            Source::Disagreement => "disagreement",
            Source::LowConfidence => "low confidence",
            Source::Random => "random",
        }
    }
}

/// What a student that never saw the row's label thinks of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hint {
    /// The student's own label, as its number, and how sure it is.
    pub guess: usize,
    pub confidence: f32,
    /// How much it believes in the recorded one.
    pub self_confidence: f32,
    /// Confident learning counts the recorded label as wrong.
    pub suspect: bool,
}

/// What a reviewer is shown.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// The trace's id; decisions name it.
    pub id: String,
    pub split: Split,
    /// Redacted; from outside, so escape it before it meets a terminal.
    pub message: String,
    /// The recorded answer, as recorded.
    pub answer: String,
    /// The label that the answer is, if it is one.
    pub label: Option<String>,
    /// Answers that copies of the message got.
    pub rivals: Vec<String>,
    pub reason: QueueReason,
    /// What exactly: the fault of an answer that is not valid, the values that the message does not say.
    pub detail: Option<String>,
    pub feedback: Option<String>,
    pub at: Option<String>,
    pub shown_sha256: String,
    pub source: Source,
    /// None until the queue was ranked, and for rows that must be judged without it (test, calibration).
    pub hint: Option<Hint>,
    /// Its number in the random draw over train and valid, from 0.
    pub draw: Option<u32>,
    /// Other traces that it stands for, left out as its duplicates.
    pub copies: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Queue {
    /// Test first, then calibration, valid, train; or as ranked.
    pub items: Vec<Item>,
    pub answers: Answers,
    /// How many people must judge an item.
    pub reviewers: u32,
}

/// Reads what [`crate::curate()`] wrote. The seed orders what nothing else orders.
///
/// # Errors
/// When it can't be read.
pub fn queue(curated: &Path, seed: u64) -> Result<Queue, Error> {
    let answers = CurateSummary::load(curated)?.answers()?;
    let items = match shelf::load(curated)? {
        Some(items) => items,
        None => items_of(&curate::load(curated)?, &answers),
    };
    Ok(arranged(items, answers, seed))
}

/// A combination of fields is rare where fewer than this share of the answers have it.
const RARE: f64 = 0.02;

/// What of an item follows from its row alone.
pub(crate) fn items_of(rows: &[Curated], answers: &Answers) -> Vec<Item> {
    rows.par_iter().map(|row| item(row, answers)).collect()
}

fn arranged(mut items: Vec<Item>, answers: Answers, seed: u64) -> Queue {
    if let Answers::Fields(fields) = &answers {
        mark_rare(&mut items, fields);
    }
    let key = |i: &Item| {
        let urgency = if matches!(i.split, Split::Train | Split::Valid) { i.reason } else { QueueReason::Random };
        (std::cmp::Reverse(i.split), urgency, mix(seed ^ hash(i.id.as_bytes())))
    };
    let mut order: Vec<_> = items.par_iter().enumerate().map(|(at, i)| (key(i), at)).collect();
    order.par_sort_unstable_by(|(a, at), (b, other)| a.cmp(b).then_with(|| items[*at].id.cmp(&items[*other].id)));
    let mut items: Vec<Option<Item>> = items.into_iter().map(Some).collect();
    let items = order.iter().filter_map(|(_, at)| items[*at].take()).collect();
    Queue { items, answers, reviewers: 1 }
}

/// What nothing else says of an item: that few answers have its combination of fields.
fn mark_rare(items: &mut [Item], fields: &Fields) {
    let patterns: Vec<Option<u64>> = items.par_iter().map(|i| i.label.as_deref().map(|l| fields.pattern(l))).collect();
    let mut counts: HashMap<u64, usize> = HashMap::new();
    patterns.iter().flatten().for_each(|p| *counts.entry(*p).or_default() += 1);
    let few = RARE * items.len() as f64;
    for (item, pattern) in items.iter_mut().zip(patterns) {
        let rare = pattern.is_some_and(|p| (counts[&p] as f64) < few);
        if rare && item.reason == QueueReason::Random {
            item.reason = QueueReason::RareFields;
        }
    }
}

/// What `limbeck teach` writes as feedback where a teacher's draws did not agree: never learnt from unreviewed.
pub const TEACHER_DISAGREEMENT: &str = "teacher_disagreement";

/// Whether a teacher could not agree with itself on the answer.
pub(crate) fn is_disagreed(trace: &crate::trace::Trace) -> bool {
    says(trace.feedback.as_deref(), &[TEACHER_DISAGREEMENT])
}

/// Feedback in words of which production logs have no fixed set.
fn says(feedback: Option<&str>, words: &[&str]) -> bool {
    feedback.is_some_and(|f| words.iter().any(|w| f.to_lowercase().contains(w)))
}

fn item(row: &Curated, answers: &Answers) -> Item {
    let trace = &row.row.trace;
    let feedback = trace.feedback.as_deref();
    let message = visible_message(&trace.messages);
    let not_said = match (answers, &row.label) {
        (Answers::Fields(fields), Some(label)) => fields.not_in(label, &message, trace.at.as_deref()),
        _ => Vec::new(),
    };
    let mut detail = None;
    let reason = if row.label.is_none() {
        match answers {
            Answers::Labels(_) => QueueReason::OutsideTaxonomy,
            Answers::Fields(_) => {
                detail = trace.read(answers).err();
                QueueReason::Invalid
            }
        }
    } else if !row.rivals.is_empty() {
        QueueReason::Disagreement
    } else if !not_said.is_empty() {
        let said: Vec<String> = not_said.iter().map(|(name, value)| format!("{name} {value:?}")).collect();
        detail = Some(said.join(", "));
        QueueReason::NotInMessage
    } else if says(feedback, &[TEACHER_DISAGREEMENT]) {
        detail.clone_from(&trace.feedback);
        QueueReason::Disagreement
    } else if says(feedback, &["down", "negative", "bad", "dislike"]) {
        QueueReason::NegativeFeedback
    } else {
        QueueReason::Random
    };
    let source = match reason {
        _ if says(feedback, &["escalat", "handoff", "hand-off", "handed_over", "re-ask", "reask"]) => Source::Escalated,
        // What a server answered and was not quite sure of.
        QueueReason::Random if says(feedback, &["low_confidence", "low-confidence"]) => Source::LowConfidence,
        QueueReason::Random => Source::Random,
        QueueReason::RareFields => Source::LowConfidence,
        _ => Source::Disagreement,
    };
    Item {
        id: trace.id.clone(),
        split: row.split,
        message,
        answer: trace.answer.clone(),
        label: row.label.clone(),
        rivals: row.rivals.clone(),
        reason,
        detail,
        feedback: trace.feedback.clone(),
        at: trace.at.clone(),
        shown_sha256: trace.shown_sha256(),
        source,
        hint: None,
        draw: None,
        copies: 0,
    }
}

/// What the decisions say about an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    Open,
    Skipped,
    /// The target is this label, or these fields in canonical form.
    Labelled(String),
    /// It stays out; why.
    Rejected(String),
    /// There is a decision, but it cannot count; why.
    Void(&'static str),
    /// Judged, but not by as many as must.
    Awaiting,
    /// Judged independently, and not alike: an adjudication is due.
    Disputed,
}

impl Standing {
    pub fn is_reviewed(&self) -> bool {
        matches!(self, Standing::Labelled(_) | Standing::Rejected(_))
    }
}

impl Item {
    /// `decision` is what [`Decisions::fold`] holds for this item.
    pub fn standing(&self, decision: Option<&Decision>, answers: &Answers) -> Standing {
        let Some(decision) = decision else { return Standing::Open };
        if decision.verdict == Verdict::Skip {
            return Standing::Skipped;
        }
        if decision.shown_sha256 != self.shown_sha256 {
            return Standing::Void("it was made about another text");
        }
        let label: Option<Cow<'_, str>> = match decision.verdict {
            Verdict::Reject => {
                return Standing::Rejected(decision.note.clone().unwrap_or_else(|| "no reason given".to_string()));
            }
            Verdict::Correct => decision.label.as_deref().and_then(|l| answers.read(l).ok()),
            _ => self.label.as_deref().map(Cow::Borrowed),
        };
        label.map_or(Standing::Void(answers.void()), |l| Standing::Labelled(l.into_owned()))
    }

    /// What all that was said of the item comes to, where `reviewers` must judge it. With one reviewer the latest decision
    /// stands, unless somebody judged blind: independent judgements that differ are a dispute, never a matter of who was
    /// last.
    pub fn settled(&self, said: &Said<'_>, answers: &Answers, reviewers: u32) -> Standing {
        let latest = self.standing(said.standing(), answers);
        if said.adjudication().is_some() {
            return latest;
        }
        let blind = said.votes.iter().any(|d| d.pass == Some(Pass::Blind));
        if reviewers <= 1 && !blind {
            return latest;
        }
        let judged: Vec<Standing> =
            said.votes.iter().map(|d| self.standing(Some(d), answers)).filter(Standing::is_reviewed).collect();
        let alike = |a: &Standing, b: &Standing| match (a, b) {
            (Standing::Rejected(_), Standing::Rejected(_)) => true,
            (a, b) => a == b,
        };
        match judged.as_slice() {
            [] => latest,
            [first, rest @ ..] if rest.iter().any(|other| !alike(first, other)) => Standing::Disputed,
            some if some.len() < reviewers as usize => Standing::Awaiting,
            [first, ..] => first.clone(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitStatus {
    pub rows: u64,
    /// Labelled or rejected.
    pub reviewed: u64,
    /// Of these, rejected.
    pub rejected: u64,
    pub skipped: u64,
    /// Judged by fewer than must, and judged differently: both still to do.
    #[serde(default)]
    pub awaiting: u64,
    #[serde(default)]
    pub disputed: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReviewStatus {
    pub queued: u64,
    pub reviewed: u64,
    pub per_split: BTreeMap<Split, SplitStatus>,
    /// Decisions that cannot count, by reason.
    pub void: BTreeMap<String, u64>,
}

/// A split that needs more decisions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    pub split: Split,
    pub reviewed: u64,
    pub needed: u64,
}

impl Queue {
    pub fn settled(&self, item: &Item, decisions: &Decisions) -> Standing {
        item.settled(&decisions.of(&item.id), &self.answers, self.reviewers)
    }

    pub fn status(&self, decisions: &Decisions) -> ReviewStatus {
        let mut status = ReviewStatus { queued: self.items.len() as u64, ..ReviewStatus::default() };
        for item in &self.items {
            let split = status.per_split.entry(item.split).or_default();
            split.rows += 1;
            match self.settled(item, decisions) {
                Standing::Open => {}
                Standing::Awaiting => split.awaiting += 1,
                Standing::Disputed => split.disputed += 1,
                Standing::Skipped => split.skipped += 1,
                Standing::Labelled(_) => split.reviewed += 1,
                Standing::Rejected(_) => {
                    split.reviewed += 1;
                    split.rejected += 1;
                }
                Standing::Void(why) => *status.void.entry(why.to_string()).or_default() += 1,
            }
        }
        status.reviewed = status.per_split.values().map(|s| s.reviewed).sum();
        status
    }

    /// What is still to be decided, in order; skipped items come last.
    pub fn open<'q>(&'q self, decisions: &Decisions) -> Vec<&'q Item> {
        let standing = |i: &Item| self.settled(i, decisions);
        let open: Vec<&Item> = self.items.iter().filter(|i| !standing(i).is_reviewed()).collect();
        let (skipped, open): (Vec<_>, Vec<_>) = open.into_iter().partition(|i| standing(i) == Standing::Skipped);
        open.into_iter().chain(skipped).collect()
    }
}

impl ReviewStatus {
    /// The splits that have less than their share reviewed. A split that is not named needs nothing.
    pub fn missing(&self, min_reviewed: &BTreeMap<Split, f64>) -> Vec<Missing> {
        let mut missing = Vec::new();
        for (split, share) in min_reviewed {
            let found = self.per_split.get(split).copied().unwrap_or_default();
            // Less a hair, so that 0.1 of 10 rows is one row in binary too.
            let needed = (share.clamp(0.0, 1.0) * found.rows as f64 - 1e-9).ceil() as u64;
            if found.reviewed < needed {
                missing.push(Missing { split: *split, reviewed: found.reviewed, needed });
            }
        }
        missing
    }
}
