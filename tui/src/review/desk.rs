//! What the review screen needs from whoever keeps the queue and the decisions: items to show, and a place where a
//! judgement is on disk before the call returns.

use std::sync::Arc;

/// One thing to judge. Every string may come from a stranger; the screen spells out what can't be shown.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Item {
    pub id: String,
    pub message: String,
    /// The model's answer as it stands in the taxonomy, or as recorded when it isn't in there.
    pub answer: String,
    /// Who answered, empty when unknown.
    pub answered_by: String,
    /// Why it is in the queue.
    pub why: Vec<String>,
    pub feedback: Option<String>,
    /// Customer, time, split and the like, shown beside the item's number.
    pub about: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The model's answer is right.
    Accept,
    /// Another label is right.
    Correct,
    /// The item is unfit for any split; the note says why.
    Reject,
    /// Not now.
    Skip,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    pub verdict: Verdict,
    /// The right label; none for a rejected or skipped item.
    pub label: Option<String>,
    pub note: Option<String>,
}

/// Says what was attempted on which file and what to try.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DeskError(pub String);

/// Keeps the queue and its decisions.
pub trait Desk {
    /// What is reviewed, for the title.
    fn name(&self) -> &str;

    /// The queue, in the order in which it should be gone through. It does not change while the screen is open.
    fn items(&self) -> Arc<[Item]>;

    /// The taxonomy, in the order of the label list. Empty when answers are free text, which can't be corrected here.
    fn labels(&self) -> Arc<[String]>;

    /// What stands for an item now.
    fn judgement(&self, item: usize) -> Option<Judgement>;

    /// This reviewer's judgements that can be taken back, the latest last.
    fn history(&self) -> Vec<usize>;

    /// Puts a judgement on disk and syncs it.
    ///
    /// # Errors
    /// When it may not be on disk; the item then stays on the screen.
    fn decide(&mut self, item: usize, judgement: &Judgement) -> Result<(), DeskError>;

    /// Takes this reviewer's latest judgement on `item` back, on disk and synced.
    ///
    /// # Errors
    /// When the taking back may not be on disk.
    fn undo(&mut self, item: usize) -> Result<(), DeskError>;
}
