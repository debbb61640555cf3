//! Curated rows and decisions become the frozen dataset: the target is what a person decided. The numbers of all
//! stages meet here and must add up, from the first line of the log to the last row.

use super::judged::Judged;
use super::queue::{Queue, is_disagreed, items_of};
use super::{Decisions, Missing, ReviewStatus, Standing};
use crate::Error;
use crate::curate::{self, CurateSummary, Curated, LeftOut};
use crate::frozen::{self, Table};
use crate::import::{ImportSummary, NamedFile};
use crate::redact::Redactor;
use crate::redact::measure::measure;
use crate::taxonomy::Answers;
use limbeck_artifact::dataset::{
    Curation, DatasetCard, DatasetWriter, Example, LabelSource, Line, Message, Split, example_id,
};
use limbeck_artifact::digest::sha256_file;
use limbeck_artifact::event::{Emit, EventKind};
use limbeck_artifact::files::write_atomic;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Clone, Debug, PartialEq)]
pub struct FreezePlan {
    /// The folders that import and curate wrote.
    pub imported: PathBuf,
    pub curated: PathBuf,
    /// Files that are not there hold no decisions.
    pub decisions: Vec<NamedFile>,
    /// Put in place of the recorded system prompt; none leaves the recorded one.
    pub system: Option<String>,
    /// How many people must judge a row.
    pub reviewers_per_item: u32,
    /// Share of a split's rows that must be reviewed, 0 to 1.
    pub min_reviewed: BTreeMap<Split, f64>,
    /// Loss weight of the recorded model's answers that nobody looked at; 0 leaves them out. Test and calibration
    /// never hold any.
    pub unreviewed_weight: f32,
    /// Of the queue: which rows its random share drew.
    pub seed: u64,
    /// The share of wrong labels that the review was to bound.
    pub max_label_error: f64,
    /// Whether the import redacted; the card then says how much redaction finds.
    pub redacted: bool,
    /// The dataset folder.
    pub out: PathBuf,
    /// Where rows left out here are listed.
    pub left_out: PathBuf,
}

/// Made-up values a kind for the card: 299 without a miss show 99 % at 95 % confidence.
const MEASURED: u64 = 299;

/// How far the review allowed to go.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "there is one in a run")]
pub enum Frozen {
    Done(DatasetCard),
    /// Nothing was written: these splits need more decisions.
    Incomplete {
        status: ReviewStatus,
        missing: Vec<Missing>,
    },
}

pub fn freeze(plan: &FreezePlan, emit: &dyn Emit) -> Result<Frozen, Error> {
    if !(plan.unreviewed_weight.is_finite() && plan.unreviewed_weight >= 0.0) {
        return Err(Error::Plan(format!("a weight of {} for unreviewed rows", plan.unreviewed_weight)));
    }
    let imported = ImportSummary::load(&plan.imported)?;
    let summary = CurateSummary::load(&plan.curated)?;
    let paths: Vec<&PathBuf> = plan.decisions.iter().map(|d| &d.path).collect();
    let decisions = Decisions::load(&paths)?;
    for (path, line) in decisions.torn() {
        let text =
            format!("line {line} of {} ends in the middle and counts for nothing: decide it again", path.display());
        emit.emit(EventKind::Warning { text });
    }
    let answers = summary.answers()?;
    tell_unreadable(&answers, &decisions, emit);
    let mut freezing = Freezing::new(plan, &imported, &summary)?;
    let mut status = ReviewStatus::default();
    let mut judged = Judged::new(plan.seed);
    let mut done = 0;
    for rows in curate::pieces(&plan.curated)? {
        let rows = rows?;
        // Digests of what was shown are most of the work here.
        let items = items_of(&rows, &answers);
        let queue = Queue { items, answers: answers.clone(), reviewers: plan.reviewers_per_item };
        add(&mut status, queue.status(&decisions));
        for item in &queue.items {
            judged.add(item, &queue.settled(item, &decisions), &decisions);
        }
        let items: BTreeMap<&str, &super::Item> = queue.items.iter().map(|i| (i.id.as_str(), i)).collect();
        let made = rows.par_iter().map(|row| {
            let id = row.row.trace.id.as_str();
            let decision = decisions.of(id).standing();
            let standing = items.get(id).map_or(Standing::Open, |i| queue.settled(i, &decisions));
            let example = match standing {
                Standing::Labelled(label) => {
                    Ok(example(row, plan, label, LabelSource::Human, 1.0, decision.map(|d| d.id.clone())))
                }
                Standing::Rejected(why) => Err(("rejected_in_review", Some(why))),
                Standing::Open | Standing::Skipped | Standing::Void(_) | Standing::Awaiting | Standing::Disputed => {
                    match &row.label {
                        Some(label)
                            if unreviewed(plan.unreviewed_weight, row.row.trace.agreement) > 0.0
                                && matches!(row.split, Split::Train | Split::Valid)
                                && !is_disagreed(&row.row.trace) =>
                        {
                            let weight = unreviewed(plan.unreviewed_weight, row.row.trace.agreement);
                            Ok(example(row, plan, label.clone(), LabelSource::Teacher, weight, None))
                        }
                        _ => Err(("unreviewed", None)),
                    }
                }
            };
            let line = example.as_ref().ok().map(Line::of);
            (example, line)
        });
        let made: Vec<Made> = made.collect();
        freezing.take(&rows, made)?;
        done += rows.len() as u64;
        let total = summary.kept.values().sum();
        emit.emit(EventKind::Progress { done, total, unit: "rows".to_string() });
    }
    let missing = status.missing(&plan.min_reviewed);
    for (why, n) in &status.void {
        emit.emit(EventKind::Warning { text: format!("{n} decisions do not count: {why}") });
    }
    if !missing.is_empty() {
        drop(freezing);
        // Of a dataset that was frozen before, nothing is touched; an empty folder goes.
        let _ = std::fs::remove_dir(&plan.out);
        return Ok(Frozen::Incomplete { status, missing });
    }
    judged.finish(&answers, &decisions, plan.max_label_error, &mut freezing.curation);
    if let Some(text) = freezing.agreed.text() {
        emit.emit(EventKind::Note { text });
    }
    let card = freezing.finish(imported.traces_in)?;
    report(&card, emit);
    Ok(Frozen::Done(card))
}

/// Decisions that are named; of more, the status has the count.
const NAMED: usize = 5;

/// Names the first decisions whose fields can't be, with what is wrong: somebody has to mend them.
fn tell_unreadable(answers: &Answers, decisions: &Decisions, emit: &dyn Emit) {
    if answers.fields().is_none() {
        return;
    }
    let faults = decisions.list().iter().filter_map(|d| Some((d, answers.read(d.label.as_deref()?).err()?)));
    for (d, why) in faults.take(NAMED) {
        let text = format!("the decision {} on {} by {} does not count: {why}", d.id, d.item, d.reviewer);
        emit.emit(EventKind::Warning { text });
    }
}

fn add(status: &mut ReviewStatus, piece: ReviewStatus) {
    status.queued += piece.queued;
    status.reviewed += piece.reviewed;
    for (split, n) in piece.per_split {
        let all = status.per_split.entry(split).or_default();
        all.rows += n.rows;
        all.reviewed += n.reviewed;
        all.rejected += n.rejected;
        all.skipped += n.skipped;
        all.awaiting += n.awaiting;
        all.disputed += n.disputed;
    }
    piece.void.into_iter().for_each(|(why, n)| *status.void.entry(why).or_default() += n);
}

/// A row's example with its line, or the reason why there is none.
type Made = (Result<Example, (&'static str, Option<String>)>, Option<limbeck_artifact::Result<Line>>);

/// The dataset in the making: its lines, its table, and the log of what is left out.
struct Freezing<'p> {
    plan: &'p FreezePlan,
    writer: DatasetWriter,
    table: Table,
    log: String,
    left_out: BTreeMap<String, u64>,
    curation: Curation,
    agreed: Agreed,
}

impl<'p> Freezing<'p> {
    fn new(plan: &'p FreezePlan, imported: &ImportSummary, summary: &CurateSummary) -> Result<Freezing<'p>, Error> {
        let mut sources = imported.sources.clone();
        for file in plan.decisions.iter().filter(|d| d.path.exists()) {
            let sha256 = sha256_file(&file.path).map_err(|e| Error::io("read decisions from", &file.path, e))?;
            sources.insert(file.name.clone(), sha256);
        }
        let mut left_out = imported.rejected.clone();
        summary.left_out.iter().for_each(|(reason, n)| *left_out.entry(reason.clone()).or_default() += n);
        let card = DatasetCard {
            digest: String::new(),
            labels: summary.labels.clone(),
            schema: summary.schema.clone(),
            splits: BTreeMap::new(),
            traces_in: imported.traces_in,
            left_out: BTreeMap::new(),
            sources,
            redactions: imported.redactions.clone(),
            curation: Curation::default(),
        };
        let measured = if plan.redacted { Some(measure(&Redactor::new()?, MEASURED, 1)) } else { None };
        let curation = frozen::curation(summary, measured.as_ref());
        let writer = DatasetWriter::create(&plan.out, card).map_err(|e| Error::Dataset(e.to_string()))?;
        let table = Table::create(&plan.out.join(frozen::TABLE))?;
        Ok(Freezing { plan, writer, table, log: String::new(), left_out, curation, agreed: Agreed::default() })
    }

    fn take(&mut self, rows: &[Curated], made: Vec<Made>) -> Result<(), Error> {
        let dataset = |e: limbeck_artifact::Error| Error::Dataset(e.to_string());
        let mut examples = Vec::with_capacity(made.len());
        for (row, (example, line)) in rows.iter().zip(made) {
            match (example, line) {
                (Ok(example), Some(line)) => {
                    self.writer.push(row.split, &example, line.map_err(dataset)?).map_err(dataset)?;
                    frozen::count(&mut self.curation, &example);
                    self.agreed.count(row, &example);
                    examples.push((row.split, example));
                }
                (Err((reason, note)), _) => {
                    *self.left_out.entry(reason.to_string()).or_default() += 1;
                    let line = LeftOut { trace: row.row.trace_ref(), reason: reason.to_string(), like: None, note };
                    self.log.push_str(&format!("{}\n", serde_json::json!(line)));
                }
                (Ok(_), None) => {}
            }
        }
        self.table.write(&examples)
    }

    fn finish(mut self, traces_in: u64) -> Result<DatasetCard, Error> {
        let accounted = self.writer.rows() + self.left_out.values().sum::<u64>();
        if accounted != traces_in {
            return Err(Error::Unaccounted { stage: "freeze", into: traces_in, out: accounted });
        }
        let left_out = &self.plan.left_out;
        write_atomic(left_out, self.log.as_bytes()).map_err(|e| Error::io("write", left_out, e))?;
        self.curation.tables.insert(frozen::TABLE.to_string(), self.table.finish()?);
        let card = self.writer.finish(traces_in, self.left_out, self.curation);
        card.map_err(|e| Error::Dataset(e.to_string()))
    }
}

/// What an answer that nobody looked at weighs: the recipe's weight, times the share of a teacher's draws that say it where
/// there were several. Draws of one model err together, so agreement only ever takes weight away.
fn unreviewed(weight: f32, agreement: Option<f64>) -> f32 {
    weight * agreement.unwrap_or(1.0) as f32
}

/// Of answers that a person decided, how often the recorded one was right: those that all of a teacher's draws say, and those
/// that only some do.
#[derive(Default)]
struct Agreed {
    all: [u64; 2],
    some: [u64; 2],
}

impl Agreed {
    fn count(&mut self, row: &Curated, example: &Example) {
        let (Some(agreement), LabelSource::Human) = (row.row.trace.agreement, example.label_source) else { return };
        let [right, of] = if agreement >= 1.0 { &mut self.all } else { &mut self.some };
        *of += 1;
        *right += u64::from(row.label.as_ref() == Some(&example.target));
    }

    /// What agreement is worth on these rows; none where nobody decided such a row.
    fn text(&self) -> Option<String> {
        let ([all, of_all], [some, of_some]) = (self.all, self.some);
        (of_all + of_some > 0).then(|| {
            format!(
                "of the teacher's answers that a reviewer decided, {all} of {of_all} were right where all draws agreed, and \
                 {some} of {of_some} where only some did"
            )
        })
    }
}

fn example(
    row: &Curated,
    plan: &FreezePlan,
    target: String,
    label_source: LabelSource,
    weight: f32,
    decision: Option<String>,
) -> Example {
    let mut messages = row.row.trace.messages.clone();
    if let Some(system) = &plan.system {
        messages.retain(|m| m.role != "system" && m.role != "developer");
        messages.insert(0, Message::new("system", system));
    }
    let mut recorded = row.row.recorded();
    // As the label that it is, so that nobody has to read answers a second time.
    if let Some(label) = &row.label {
        recorded.answer = label.clone();
    }
    Example {
        id: example_id(&messages, &target),
        messages,
        target,
        target_tool_calls: Vec::new(),
        label_source,
        weight,
        group: row.group.clone(),
        recorded,
        trace: row.row.trace_ref(),
        decision,
    }
}

fn report(card: &DatasetCard, emit: &dyn Emit) {
    for (split, s) in &card.splits {
        emit.emit(EventKind::Counted { what: format!("{} examples", split.name()), n: s.rows, reason: String::new() });
    }
    for reason in ["rejected_in_review", "unreviewed"] {
        if let Some(n) = card.left_out.get(reason) {
            emit.emit(EventKind::Counted { what: "rows left out".to_string(), n: *n, reason: reason.to_string() });
        }
    }
}
