//! What the review screen needs from whoever keeps the queue and the decisions: items to show, and a place where a
//! judgement is on disk before the call returns.

use limbeck_artifact::schema::Schema;
use std::sync::Arc;
use std::time::Duration;

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
    /// Labels (or answers) that somebody or something else would give it, the likeliest first, each with who says so. One key
    /// takes one; of fields, one by one.
    pub instead: Vec<(String, String)>,
    pub feedback: Option<String>,
    /// Customer, time, split and the like, shown beside the item's number.
    pub about: Vec<String>,
    /// What it may be filtered by beside its answer: source, split.
    pub tags: Vec<&'static str>,
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
    /// Somebody else should look at it; decides nothing.
    Flag,
    /// A remark; decides nothing.
    Note,
}

impl Verdict {
    /// Whether the item is done with, so that the next one comes.
    pub fn judges(self) -> bool {
        !matches!(self, Verdict::Flag | Verdict::Note)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    pub verdict: Verdict,
    /// The right label; none for a rejected or skipped item.
    pub label: Option<String>,
    pub note: Option<String>,
}

/// What stands for an item, as far as this reviewer may see it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    pub judgement: Option<Judgement>,
    /// There is nothing for this reviewer to do: it is decided, or somebody else's.
    pub closed: bool,
    pub marks: Marks,
}

/// What was said beside the judgement.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Marks {
    /// Who flagged it.
    pub flags: Vec<String>,
    /// Remarks, each with its author.
    pub notes: Vec<String>,
    /// What each reviewer said, where that may be seen.
    pub votes: Vec<String>,
}

impl Marks {
    pub fn is_empty(&self) -> bool {
        self.flags.is_empty() && self.notes.is_empty() && self.votes.is_empty()
    }
}

/// What an answer is, and so how it is shown and corrected.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Form {
    /// One of the labels.
    #[default]
    Labels,
    /// A JSON object under a schema; a judgement's label is its canonical text.
    Fields(Schema),
    /// Free text.
    Text,
}

/// What was on the screen when a judgement was made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// Since the item appeared.
    pub dwell: Duration,
    /// Every suggestion beside the answer, as shown.
    pub suggested: Vec<String>,
}

/// An item like the one on the screen, and how it was labelled.
#[derive(Clone, Debug, PartialEq)]
pub struct Alike {
    pub item: usize,
    pub label: String,
    /// A person's label; otherwise the recorded answer, unreviewed.
    pub decided: bool,
}

/// How the whole review stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gauge {
    /// A few words for the screen's corner; empty when there is nothing to say.
    pub short: String,
    /// What was asked for is reached.
    pub reached: bool,
}

/// Says what was attempted on which file and what to try.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DeskError(pub String);

/// Keeps the queue and its decisions.
pub trait Desk {
    /// What is reviewed, for the title.
    fn name(&self) -> &str;

    /// The queue. An item keeps its number, its id and its message while the screen is open; what else is told of it
    /// may change with the order.
    fn items(&self) -> Arc<[Item]>;

    /// The items' numbers in the order in which they should be gone through, each once.
    fn order(&self) -> Arc<[u32]> {
        (0..self.items().len() as u32).collect()
    }

    /// Whether order and items are others since the last look, which [`Desk::poll`] may have brought.
    fn rearranged(&mut self) -> bool {
        false
    }

    /// What the answers are.
    fn form(&self) -> Form {
        Form::Labels
    }

    /// The taxonomy, in the order of the label list. Empty where answers are no labels.
    fn labels(&self) -> Arc<[String]>;

    /// What stands for an item now.
    fn state(&self, item: usize) -> State;

    /// This reviewer's entries that can be taken back, the latest last.
    fn history(&self) -> Vec<usize>;

    /// Puts a judgement on disk and syncs it.
    ///
    /// # Errors
    /// When it may not be on disk; the item then stays on the screen.
    fn decide(&mut self, item: usize, judgement: &Judgement, seen: &Seen) -> Result<(), DeskError>;

    /// Takes this reviewer's latest entry on `item` back, on disk and synced.
    ///
    /// # Errors
    /// When the taking back may not be on disk.
    fn undo(&mut self, item: usize) -> Result<(), DeskError>;

    /// Looks at what others did meanwhile: the items of which something changed, and what the person must know.
    fn poll(&mut self) -> (Vec<usize>, Option<String>) {
        (Vec::new(), None)
    }

    /// The items most like this one, the most alike first; none while that is not known yet.
    fn similar(&self, item: usize) -> Option<Vec<Alike>> {
        let _ = item;
        Some(Vec::new())
    }

    fn gauge(&mut self) -> Gauge {
        Gauge::default()
    }

    /// How the labels are to be given, as written by whoever runs the review; empty when nobody did.
    fn guidelines(&self) -> &str {
        ""
    }

    /// Certificate, agreement and reviewers, as lines.
    fn report(&mut self) -> Vec<String> {
        Vec::new()
    }
}
