//! Accepted traces in, distinct rows in four splits out. Each row that is left out is counted with its reason and
//! listed in `left_out.jsonl`; what comes in equals what is kept plus all reasons.
//!
//! Near-duplicates are removed before the groups are formed. Were they kept, each would tie its customers together,
//! and in a log of short messages all customers would soon be one group that no split can divide.

mod near;
pub mod split;

pub use split::Fractions;

use crate::Error;
use crate::import::{load_json, save_json};
use crate::table::{self, Row};
use crate::text::{normal_form, shingles};
use crate::trace::visible_message;
use limbeck_artifact::dataset::{Split, TraceRef};
use limbeck_artifact::event::{Emit, EventKind};
use limbeck_artifact::files::write_atomic;
use polars::prelude::*;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, PartialEq)]
pub struct CuratePlan {
    /// The folder that [`crate::import`] wrote.
    pub imported: PathBuf,
    /// The taxonomy.
    pub labels: Vec<String>,
    /// Characters of the message.
    pub min_chars: u32,
    pub max_chars: u32,
    /// Jaccard similarity of character 5-grams, above 0 and at most 1, from which two messages are near-duplicates.
    pub near_dup_threshold: f64,
    pub split: Fractions,
    pub seed: u64,
    /// Folder for `curated.parquet`, `left_out.jsonl` and `curate.json`.
    pub out: PathBuf,
}

/// Why a row was left out. A row has one reason: the first that applies, in this order.
pub const REASONS: [&str; 6] =
    ["too_short", "too_long", "duplicate_id", "exact_duplicate", "near_duplicate", "leaks_into_test"];

/// What came of it; kept as `curate.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CurateSummary {
    /// `rows_in` = `kept` of all splits + all of `left_out`.
    pub rows_in: u64,
    pub kept: BTreeMap<Split, u64>,
    pub left_out: BTreeMap<String, u64>,
    /// Kept rows whose recorded answer is none of the labels.
    pub outside_taxonomy: u64,
    /// Kept rows of which some copy was answered otherwise.
    pub disagreements: u64,
    pub groups: u64,
    pub labels: Vec<String>,
}

impl CurateSummary {
    pub fn load(dir: &Path) -> Result<CurateSummary, Error> {
        load_json(&dir.join("curate.json"))
    }
}

/// A line of `left_out.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    #[serde(flatten)]
    pub trace: TraceRef,
    pub reason: String,
    /// The trace that it repeats, or into which it leaks.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub like: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub note: Option<String>,
}

/// A kept row.
#[derive(Clone, Debug, PartialEq)]
pub struct Curated {
    pub row: Row,
    /// The label that the recorded answer is; none when it is outside the taxonomy or was cut off.
    pub label: Option<String>,
    pub split: Split,
    /// Rows of one group never straddle two splits.
    pub group: String,
    /// Other answers that copies of this message got.
    pub rivals: Vec<String>,
}

/// See the module. A distinct message of a customer ends in exactly one split.
pub fn curate(plan: &CuratePlan, emit: &dyn Emit) -> Result<CurateSummary, Error> {
    check(plan)?;
    let path = plan.imported.join("accepted.parquet");
    let accepted = table::read(&path)?;
    let failed = |e| Error::table("curate", &path, e);
    let rows = table::rows(&accepted).map_err(failed)?;
    let read = texts(&rows, &plan.labels);

    let frame = with_texts(&accepted, &read).map_err(failed)?;
    let frame = distinct(frame.lazy(), plan).and_then(LazyFrame::collect).map_err(failed)?;
    let live = live_rows(&frame).map_err(failed)?;
    emit.emit(EventKind::Note { text: format!("{} distinct messages, looking for near-duplicates", live.len()) });
    let sets: Vec<Vec<u64>> = live.par_iter().map(|i| shingles(&read[*i].normal)).collect();
    let near = near::clusters(&sets, plan.near_dup_threshold);
    let cluster = clusters_of_all(&frame, &live, &near).map_err(failed)?;
    let frame = with_clusters(frame, &cluster).and_then(LazyFrame::collect).map_err(failed)?;

    let live = live_rows(&frame).map_err(failed)?;
    let dealt = deal(&rows, &read, &live, plan)?;
    let frame = with_splits(frame, &dealt, rows.len()).map_err(failed)?;
    let sets: BTreeMap<usize, Vec<u64>> = live.par_iter().map(|i| (*i, shingles(&read[*i].normal))).collect();
    let frame = without_leaks(frame, &dealt, &sets, plan.near_dup_threshold).map_err(failed)?;

    let rivals = rivals(&rows, &read, &cluster);
    let mut summary = summarize(&frame).map_err(failed)?;
    summary.labels = plan.labels.clone();
    summary.groups = dealt.values().map(|d| d.group).collect::<BTreeSet<_>>().len() as u64;
    let accounted = summary.kept.values().sum::<u64>() + summary.left_out.values().sum::<u64>();
    if accounted != rows.len() as u64 {
        return Err(Error::Unaccounted { stage: "curate", into: rows.len() as u64, out: accounted });
    }
    enough(plan, &summary)?;
    write(plan, frame, &rows, &read, &rivals, &mut summary)?;
    report(&summary, emit);
    Ok(summary)
}

fn check(plan: &CuratePlan) -> Result<(), Error> {
    let distinct: BTreeSet<&String> = plan.labels.iter().collect();
    if plan.labels.len() < 2 || distinct.len() < plan.labels.len() {
        return Err(Error::Plan("the taxonomy needs two labels at least, each once".to_string()));
    }
    if !(plan.near_dup_threshold > 0.0 && plan.near_dup_threshold <= 1.0) {
        return Err(Error::Plan(format!("a near-duplicate threshold of {} is not in (0, 1]", plan.near_dup_threshold)));
    }
    plan.split.check().map_err(Error::Plan)
}

/// What this room reads of a row's text.
struct Read {
    message: String,
    normal: String,
    label: Option<String>,
}

fn texts(rows: &[Row], labels: &[String]) -> Vec<Read> {
    rows.par_iter()
        .map(|row| {
            let message = visible_message(&row.trace.messages);
            let label = row.trace.label(labels).map(str::to_string);
            Read { normal: normal_form(&message), message, label }
        })
        .collect()
}

fn with_texts(accepted: &DataFrame, read: &[Read]) -> PolarsResult<DataFrame> {
    let number: Vec<u64> = (0..read.len() as u64).collect();
    accepted.hstack(&[
        Column::new("row".into(), number),
        Column::new("message".into(), read.iter().map(|r| r.message.as_str()).collect::<Vec<_>>()),
        Column::new("chars".into(), read.iter().map(|r| r.message.chars().count() as u32).collect::<Vec<_>>()),
        Column::new("normal".into(), read.iter().map(|r| r.normal.as_str()).collect::<Vec<_>>()),
        Column::new("label".into(), read.iter().map(|r| r.label.as_deref()).collect::<Vec<_>>()),
    ])
}

/// Adds `reason` (null while a row is kept) and `like` (the number of the row that it repeats).
fn distinct(frame: LazyFrame, plan: &CuratePlan) -> PolarsResult<LazyFrame> {
    let length = when(col("chars").lt(lit(plan.min_chars)))
        .then(lit("too_short"))
        .when(col("chars").gt(lit(plan.max_chars)))
        .then(lit("too_long"))
        .otherwise(lit(NULL).cast(DataType::String));
    let frame = frame
        .with_columns([length.alias("reason"), lit(NULL).cast(DataType::UInt64).alias("like")])
        .select([all().exclude_cols(["chars"]).as_expr()]);
    let frame = all_but_first(frame, "id", "duplicate_id")?;
    all_but_first(frame, "normal", "exact_duplicate")
}

/// Of the rows still kept that share a key, leaves out all but the first.
fn all_but_first(frame: LazyFrame, key: &str, reason: &str) -> PolarsResult<LazyFrame> {
    let live = || col("reason").is_null();
    let first = when(live()).then(col("row")).otherwise(lit(NULL)).min().over([col(key)])?;
    Ok(frame
        .with_column(first.alias("first"))
        .with_column(live().and(col("row").neq(col("first"))).alias("again"))
        .with_columns([
            when(col("again")).then(lit(reason)).otherwise(col("reason")).alias("reason"),
            when(col("again")).then(col("first")).otherwise(col("like")).alias("like"),
        ])
        .select([all().exclude_cols(["first", "again"]).as_expr()]))
}

fn live_rows(frame: &DataFrame) -> PolarsResult<Vec<usize>> {
    let reason = frame.column("reason")?.str()?;
    Ok(reason.iter().enumerate().filter(|(_, r)| r.is_none()).map(|(i, _)| i).collect())
}

/// The first row of each row's cluster, also for exact duplicates; for other rows themselves.
fn clusters_of_all(frame: &DataFrame, live: &[usize], near: &[usize]) -> PolarsResult<Vec<usize>> {
    let mut cluster: Vec<usize> = (0..frame.height()).collect();
    live.iter().zip(near).for_each(|(row, first)| cluster[*row] = live[*first]);
    let (reason, like) = (frame.column("reason")?.str()?, frame.column("like")?.u64()?);
    for (row, (reason, like)) in reason.iter().zip(like.iter()).enumerate() {
        if let (Some("exact_duplicate"), Some(like)) = (reason, like) {
            cluster[row] = cluster[like as usize];
        }
    }
    Ok(cluster)
}

fn with_clusters(mut frame: DataFrame, cluster: &[usize]) -> PolarsResult<LazyFrame> {
    frame.with_column(Column::new("cluster".into(), cluster.iter().map(|c| *c as u64).collect::<Vec<_>>()))?;
    all_but_first(frame.lazy(), "cluster", "near_duplicate")
}

struct Dealt {
    split: Split,
    group: usize,
}

/// Groups are customers; a row without one is a group of its own. Clusters need no joining here: one row of each is
/// left.
fn deal(rows: &[Row], read: &[Read], live: &[usize], plan: &CuratePlan) -> Result<BTreeMap<usize, Dealt>, Error> {
    let mut first_of: BTreeMap<&str, usize> = BTreeMap::new();
    let group: Vec<usize> = live
        .iter()
        .map(|i| match rows[*i].trace.customer.as_deref() {
            Some(customer) => *first_of.entry(customer).or_insert(*i),
            None => *i,
        })
        .collect();
    // The recorded answer stands in for the label that review has yet to give; the last number is "none of them".
    let label: Vec<usize> = live
        .iter()
        .map(|i| plan.labels.iter().position(|l| Some(l) == read[*i].label.as_ref()).unwrap_or(plan.labels.len()))
        .collect();
    let splits = split::assign(&group, &label, &plan.split, plan.seed);
    Ok(live.iter().zip(group.into_iter().zip(splits)).map(|(i, (group, split))| (*i, Dealt { split, group })).collect())
}

fn with_splits(mut frame: DataFrame, dealt: &BTreeMap<usize, Dealt>, n: usize) -> PolarsResult<DataFrame> {
    let split: Vec<Option<&str>> = (0..n).map(|i| dealt.get(&i).map(|d| d.split.name())).collect();
    let group: Vec<Option<String>> = (0..n).map(|i| dealt.get(&i).map(|d| format!("g{:06}", d.group))).collect();
    frame.with_column(Column::new("split".into(), split))?;
    frame.with_column(Column::new("group".into(), group))?;
    Ok(frame)
}

fn without_leaks(
    mut frame: DataFrame,
    dealt: &BTreeMap<usize, Dealt>,
    sets: &BTreeMap<usize, Vec<u64>>,
    threshold: f64,
) -> PolarsResult<DataFrame> {
    let (test, others): (Vec<usize>, Vec<usize>) = dealt.keys().partition(|i| dealt[i].split == Split::Test);
    let of = |rows: &[usize]| rows.iter().map(|i| sets[i].clone()).collect::<Vec<_>>();
    let found = near::leaks(&of(&others), &of(&test), threshold);
    let mut leak: Vec<Option<u64>> = vec![None; frame.height()];
    others.iter().zip(&found).for_each(|(row, hit)| leak[*row] = hit.map(|t| test[t] as u64));
    frame.with_column(Column::new("leak".into(), leak))?;
    let leaks = || col("leak").is_not_null();
    frame
        .lazy()
        .with_columns([
            when(leaks()).then(lit("leaks_into_test")).otherwise(col("reason")).alias("reason"),
            when(leaks()).then(col("leak")).otherwise(col("like")).alias("like"),
        ])
        .collect()
}

/// For the first row of each cluster, the answers of the others that are not its own.
fn rivals(rows: &[Row], read: &[Read], cluster: &[usize]) -> BTreeMap<usize, Vec<String>> {
    let answer = |i: usize| read[i].label.clone().unwrap_or_else(|| rows[i].trace.answer.clone());
    let mut answers: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
    cluster.iter().enumerate().for_each(|(i, first)| {
        answers.entry(*first).or_default().insert(answer(i));
    });
    answers
        .into_iter()
        .filter(|(_, all)| all.len() > 1)
        .map(|(first, mut all)| {
            all.remove(&answer(first));
            (first, all.into_iter().collect())
        })
        .collect()
}

fn summarize(frame: &DataFrame) -> PolarsResult<CurateSummary> {
    let counts = |frame: LazyFrame, by: &str| -> PolarsResult<Vec<(String, u64)>> {
        let counted = frame
            .group_by([col(by)])
            .agg([len().cast(DataType::UInt64).alias("n")])
            .sort([by], SortMultipleOptions::default())
            .collect()?;
        let names = table::optional_texts(&counted, by)?;
        let n = counted.column("n")?.u64()?.iter().map(Option::unwrap_or_default).collect::<Vec<_>>();
        Ok(names.into_iter().map(Option::unwrap_or_default).zip(n).collect())
    };
    let kept = frame.clone().lazy().filter(col("reason").is_null());
    let by_split: BTreeMap<String, u64> = counts(kept.clone(), "split")?.into_iter().collect();
    let outside = kept.filter(col("label").is_null()).collect()?.height() as u64;
    Ok(CurateSummary {
        rows_in: frame.height() as u64,
        kept: Split::ALL.into_iter().map(|s| (s, by_split.get(s.name()).copied().unwrap_or(0))).collect(),
        left_out: counts(frame.clone().lazy().filter(col("reason").is_not_null()), "reason")?.into_iter().collect(),
        outside_taxonomy: outside,
        ..CurateSummary::default()
    })
}

/// A split that should have rows and has none would only fail later, and less clearly.
fn enough(plan: &CuratePlan, summary: &CurateSummary) -> Result<(), Error> {
    let wanted = |split: &Split| match split {
        Split::Train => true,
        Split::Valid => plan.split.valid > 0.0,
        Split::Calibration => plan.split.calibration > 0.0,
        Split::Test => plan.split.test > 0.0,
    };
    match summary.kept.iter().find(|(split, n)| **n == 0 && wanted(split)) {
        None => Ok(()),
        Some((split, _)) => Err(Error::Split {
            rows: summary.rows_in - summary.left_out.values().sum::<u64>(),
            groups: summary.groups,
            why: format!("none came to {}", split.name()),
            hint: "bring traces of more customers, or set the fraction of this split to 0",
        }),
    }
}

fn write(
    plan: &CuratePlan,
    frame: DataFrame,
    rows: &[Row],
    read: &[Read],
    rivals: &BTreeMap<usize, Vec<String>>,
    summary: &mut CurateSummary,
) -> Result<(), Error> {
    let path = plan.out.join("curated.parquet");
    let failed = |e| Error::table("write", &path, e);
    let (reason, like) =
        (table::optional_texts(&frame, "reason").map_err(failed)?, frame.column("like").map_err(failed)?);
    let like: Vec<Option<u64>> = like.u64().map_err(failed)?.iter().collect();
    let mut left_out = String::new();
    for (i, reason) in reason.iter().enumerate() {
        let Some(reason) = reason else { continue };
        let twin = like[i].map(|l| l as usize);
        let answer = |i: usize| read[i].label.as_deref().unwrap_or(&rows[i].trace.answer);
        let note = twin
            .filter(|t| answer(*t) != answer(i))
            .map(|t| format!("answered {:?}, the kept one {:?}", answer(i), answer(t)));
        let like = twin.map(|t| rows[t].trace.id.clone());
        let line = LeftOut { trace: rows[i].trace_ref(), reason: reason.clone(), like, note };
        left_out.push_str(&serde_json::json!(line).to_string());
        left_out.push('\n');
    }
    let disputed: Vec<Option<String>> =
        (0..rows.len()).map(|i| rivals.get(&i).map(|r| serde_json::json!(r).to_string())).collect();
    let columns = [Column::new("rivals".into(), disputed)];
    let mut kept = frame
        .hstack(&columns)
        .and_then(|f| {
            f.lazy()
                .filter(col("reason").is_null())
                .sort(["row"], SortMultipleOptions::default())
                .select([all()
                    .exclude_cols(["row", "message", "normal", "cluster", "reason", "like", "leak"])
                    .as_expr()])
                .collect()
        })
        .map_err(failed)?;
    summary.disagreements = (kept.height() - kept.column("rivals").map_err(failed)?.null_count()) as u64;
    table::write(&path, &mut kept)?;
    let log = plan.out.join("left_out.jsonl");
    write_atomic(&log, left_out.as_bytes()).map_err(|e| Error::io("write", &log, e))?;
    save_json(&plan.out.join("curate.json"), summary)
}

/// The kept rows, in the order of the traces.
pub fn load(dir: &Path) -> Result<Vec<Curated>, Error> {
    let path = dir.join("curated.parquet");
    let frame = table::read(&path)?;
    let failed = |e| Error::table("read", &path, e);
    let bad = |why: &str| Error::BadStage { path: path.clone(), why: why.to_string() };
    let rows = table::rows(&frame).map_err(failed)?;
    let column = |name: &str| table::optional_texts(&frame, name).map_err(failed);
    let (label, split, group, rivals) = (column("label")?, column("split")?, column("group")?, column("rivals")?);
    let rest = label.into_iter().zip(split).zip(group).zip(rivals);
    rows.into_iter()
        .zip(rest)
        .map(|(row, (((label, split), group), rivals))| {
            let split = Split::ALL.into_iter().find(|s| Some(s.name()) == split.as_deref());
            let rivals = rivals.map_or(Ok(Vec::new()), |r| serde_json::from_str(&r));
            Ok(Curated {
                row,
                label,
                split: split.ok_or_else(|| bad("a row has no split"))?,
                group: group.ok_or_else(|| bad("a row has no group"))?,
                rivals: rivals.map_err(|_| bad("a row's rivals are no list"))?,
            })
        })
        .collect()
}

fn report(summary: &CurateSummary, emit: &dyn Emit) {
    let counted =
        |what: String, n: u64, reason: &str| emit.emit(EventKind::Counted { what, n, reason: reason.to_string() });
    for (split, n) in &summary.kept {
        counted(format!("{} rows", split.name()), *n, "");
    }
    for reason in REASONS {
        if let Some(n) = summary.left_out.get(reason) {
            counted("rows left out".to_string(), *n, reason);
        }
    }
    if summary.outside_taxonomy > 0 {
        counted("rows for review".to_string(), summary.outside_taxonomy, "answer_outside_taxonomy");
    }
    if summary.disagreements > 0 {
        counted("rows for review".to_string(), summary.disagreements, "copies_answered_differently");
    }
}
