//! Curated rows and decisions become the frozen dataset: the target is what a person decided. The numbers of all
//! stages meet here and must add up, from the first line of the log to the last row.

use super::queue::of_rows;
use super::{Decisions, Missing, ReviewStatus, Standing};
use crate::Error;
use crate::curate::{self, CurateSummary, Curated, LeftOut};
use crate::import::{ImportSummary, NamedFile};
use limbeck_artifact::dataset::{Dataset, DatasetCard, Example, LabelSource, Message, Split, example_id};
use limbeck_artifact::digest::sha256_file;
use limbeck_artifact::event::{Emit, EventKind};
use limbeck_artifact::files::write_atomic;
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
    /// The dataset folder.
    pub out: PathBuf,
    /// Where rows left out here are listed.
    pub left_out: PathBuf,
}

/// How far the review allowed to go.
#[derive(Clone, Debug, PartialEq)]
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
    let rows = curate::load(&plan.curated)?;
    let paths: Vec<&PathBuf> = plan.decisions.iter().map(|d| &d.path).collect();
    let decisions = Decisions::load(&paths)?;
    for (path, line) in decisions.torn() {
        let text =
            format!("line {line} of {} ends in the middle and counts for nothing: decide it again", path.display());
        emit.emit(EventKind::Warning { text });
    }
    let mut queue = of_rows(&rows, summary.labels.clone(), 0);
    queue.reviewers = plan.reviewers_per_item;
    let status = queue.status(&decisions);
    let missing = status.missing(&plan.min_reviewed);
    for (why, n) in &status.void {
        emit.emit(EventKind::Warning { text: format!("{n} decisions do not count: {why}") });
    }
    if !missing.is_empty() {
        return Ok(Frozen::Incomplete { status, missing });
    }

    let items: BTreeMap<&str, &super::Item> = queue.items.iter().map(|i| (i.id.as_str(), i)).collect();
    let mut splits: BTreeMap<Split, Vec<Example>> = BTreeMap::new();
    let mut left_out = imported.rejected.clone();
    summary.left_out.iter().for_each(|(reason, n)| *left_out.entry(reason.clone()).or_default() += n);
    let mut log = String::new();
    for row in &rows {
        let id = row.row.trace.id.as_str();
        let decision = decisions.of(id).standing();
        let standing = items.get(id).map_or(Standing::Open, |i| queue.settled(i, &decisions));
        let made = match standing {
            Standing::Labelled(label) => {
                Ok(example(row, plan, label, LabelSource::Human, 1.0, decision.map(|d| d.id.clone())))
            }
            Standing::Rejected(why) => Err(("rejected_in_review", Some(why))),
            Standing::Open | Standing::Skipped | Standing::Void(_) | Standing::Awaiting | Standing::Disputed => {
                match &row.label {
                    Some(label) if plan.unreviewed_weight > 0.0 && matches!(row.split, Split::Train | Split::Valid) => {
                        Ok(example(row, plan, label.clone(), LabelSource::Teacher, plan.unreviewed_weight, None))
                    }
                    _ => Err(("unreviewed", None)),
                }
            }
        };
        match made {
            Ok(example) => splits.entry(row.split).or_default().push(example),
            Err((reason, note)) => {
                *left_out.entry(reason.to_string()).or_default() += 1;
                let line = LeftOut { trace: row.row.trace_ref(), reason: reason.to_string(), like: None, note };
                log.push_str(&format!("{}\n", serde_json::json!(line)));
            }
        }
    }
    let kept: u64 = splits.values().map(|s| s.len() as u64).sum();
    let accounted = kept + left_out.values().sum::<u64>();
    if accounted != imported.traces_in {
        return Err(Error::Unaccounted { stage: "freeze", into: imported.traces_in, out: accounted });
    }
    let mut sources = imported.sources.clone();
    for file in plan.decisions.iter().filter(|d| d.path.exists()) {
        let sha256 = sha256_file(&file.path).map_err(|e| Error::io("read decisions from", &file.path, e))?;
        sources.insert(file.name.clone(), sha256);
    }
    let card = DatasetCard {
        digest: String::new(),
        labels: summary.labels,
        splits: BTreeMap::new(),
        traces_in: imported.traces_in,
        left_out,
        sources,
        redactions: imported.redactions,
    };
    write_atomic(&plan.left_out, log.as_bytes()).map_err(|e| Error::io("write", &plan.left_out, e))?;
    let card = Dataset::write(&plan.out, card, splits).map_err(|e| Error::Dataset(e.to_string()))?;
    report(&card, emit);
    Ok(Frozen::Done(card))
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
