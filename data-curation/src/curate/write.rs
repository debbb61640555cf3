//! The second reading of the traces: kept rows with what was decided about them, left-out rows with the reason, samples
//! of doubtful ones.

use super::gather::Light;
use super::quality::Quality;
use super::{CuratePlan, CurateSummary, Curated, Fate, LeftOut};
use crate::Error;
use crate::import::save_json;
use crate::review::items_of;
use crate::review::shelf::Shelf;
use crate::table::{self, Row, Slices};
use crate::text::{hash, mix};
use limbeck_artifact::dataset::{Split, TraceRef};
use limbeck_artifact::event::{Emit, EventKind};
use limbeck_artifact::files::AtomicFile;
use polars::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

/// A line of `quality.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    pub sign: String,
    #[serde(flatten)]
    pub trace: TraceRef,
    /// The first 240 characters; redacted, like all that is stored.
    pub message: String,
    pub answer: String,
}

/// Samples a sign, and characters of each.
const SAMPLES: usize = 20;
const SAMPLE_CHARS: usize = 240;

pub(super) fn write(
    plan: &CuratePlan,
    light: &Light,
    fate: &Fate,
    rivals: &BTreeMap<u32, BTreeSet<String>>,
    summary: &mut CurateSummary,
    emit: &dyn Emit,
) -> Result<(), Error> {
    let source = plan.imported.join("accepted.parquet");
    let path = plan.out.join("curated.parquet");
    let log_path = plan.out.join("left_out.jsonl");
    let samples = samples(light, fate, plan.seed, summary);
    let mut sampled: Vec<Sample> = Vec::new();
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |e| Error::io("write", &path, e)
    };
    let mut file = AtomicFile::create(&path).map_err(io(&path))?;
    let mut log = AtomicFile::create(&log_path).map_err(io(&log_path))?;
    let failed = |e| Error::table("write", &path, e);
    let mut writer = None;
    let mut shelf = Shelf::create(&plan.out)?;
    let mut from = 0;
    let slices = Slices::open(&source, None)?;
    let total = slices.rows();
    let mut target = Some(&mut file);
    for slice in slices {
        let slice = slice?;
        let range = from..from + slice.height();
        from = range.end;
        let refs = references(&slice).map_err(|e| Error::table("read", &source, e))?;
        for (at, row) in range.clone().enumerate().filter(|(_, row)| fate.reason(*row).is_some()) {
            let line = left_out(light, fate, row, refs[at].clone());
            writeln!(log, "{}", serde_json::json!(line)).map_err(io(&log_path))?;
        }
        sample(&slice, &range, &refs, &samples, &mut sampled).map_err(|e| Error::table("read", &source, e))?;
        let kept = kept(&slice, range, light, fate, rivals).map_err(failed)?;
        if let Some(file) = target.take() {
            writer = Some(table::Writer::of(file, kept.schema()).map_err(failed)?);
        }
        shelf.add(&items_of(&curated(&path, &kept)?, &plan.answers))?;
        if let Some(writer) = &mut writer {
            writer.write_frame(kept).map_err(failed)?;
        }
        emit.emit(EventKind::Progress { done: from as u64, total: total as u64, unit: "rows written".to_string() });
    }
    if let Some(writer) = writer {
        writer.finish().map_err(failed)?;
    }
    shelf.commit()?;
    file.commit().map_err(io(&path))?;
    log.commit().map_err(io(&log_path))?;
    save_samples(&plan.out.join("quality.jsonl"), sampled)?;
    save_json(&plan.out.join("curate.json"), summary)
}

fn references(slice: &DataFrame) -> PolarsResult<Vec<TraceRef>> {
    let (id, file) = (table::texts(slice, "id")?, table::texts(slice, "file")?);
    let line = slice.column("line")?.u64()?;
    let text = |t: Option<&str>| t.unwrap_or_default().to_string();
    let all = id.into_iter().zip(file).zip(line.iter());
    Ok(all.map(|((id, file), line)| TraceRef { id: text(id), file: text(file), line: line.unwrap_or(0) }).collect())
}

fn left_out(light: &Light, fate: &Fate, row: usize, trace: TraceRef) -> LeftOut {
    let twin = fate.like(row);
    let answer = |row: usize| light.answer(row);
    let note = twin
        .filter(|t| answer(*t) != answer(row))
        .map(|t| format!("answered {:?}, the kept one {:?}", answer(row), answer(t)))
        .or_else(|| fate.notes.get(&(row as u32)).cloned());
    let like = twin.map(|t| light.ids.get(t).to_string());
    LeftOut { trace, reason: fate.reason(row).unwrap_or_default().to_string(), like, note }
}

/// The kept rows of a piece, with their label, split, group and rivals.
fn kept(
    slice: &DataFrame,
    range: std::ops::Range<usize>,
    light: &Light,
    fate: &Fate,
    rivals: &BTreeMap<u32, BTreeSet<String>>,
) -> PolarsResult<DataFrame> {
    let column = |name: &str, get: &dyn Fn(usize) -> Option<String>| {
        Column::new(name.into(), range.clone().map(get).collect::<Vec<_>>())
    };
    let columns = [
        column("label", &|row| light.known.get(light.label[row] as usize).cloned()),
        column("split", &|row| fate.split[row].map(|s| s.name().to_string())),
        column("group", &|row| Some(format!("g{:06}", fate.group[row]))),
        column("rivals", &|row| rivals.get(&(row as u32)).map(|r| serde_json::json!(r).to_string())),
    ];
    let mask: BooleanChunked = range.map(|row| fate.reason(row).is_none()).collect();
    slice.hstack(&columns)?.filter(&mask)
}

/// For each sign the rows that stand for it, drawn at random among the kept and those that it left out.
fn samples(light: &Light, fate: &Fate, seed: u64, summary: &CurateSummary) -> BTreeMap<u32, Vec<Quality>> {
    let mut out: BTreeMap<u32, Vec<Quality>> = BTreeMap::new();
    for sign in Quality::ALL.into_iter().filter(|s| summary.signs.contains_key(s.name())) {
        let shows = |row: &usize| {
            light.signs[*row] & sign.bit() != 0 && fate.reason(*row).is_none_or(|reason| reason == sign.name())
        };
        let mut rows: Vec<(u64, u32)> =
            (0..light.len()).filter(shows).map(|row| (mix(seed ^ hash(&row.to_le_bytes())), row as u32)).collect();
        rows.sort_unstable();
        rows.into_iter().take(SAMPLES).for_each(|(_, row)| out.entry(row).or_default().push(sign));
    }
    out
}

fn sample(
    slice: &DataFrame,
    range: &std::ops::Range<usize>,
    refs: &[TraceRef],
    samples: &BTreeMap<u32, Vec<Quality>>,
    sampled: &mut Vec<Sample>,
) -> PolarsResult<()> {
    let start = |text: &str| text.chars().take(SAMPLE_CHARS).collect::<String>();
    for (row, signs) in samples.range(range.start as u32..range.end as u32) {
        let at = *row as usize - range.start;
        let rows: Vec<Row> = table::rows(&slice.slice(at as i64, 1))?;
        for (row, sign) in rows.iter().flat_map(|row| signs.iter().map(move |sign| (row, sign))) {
            sampled.push(Sample {
                sign: sign.name().to_string(),
                trace: refs[at].clone(),
                message: start(&crate::trace::visible_message(&row.trace.messages)),
                answer: start(&row.trace.answer),
            });
        }
    }
    Ok(())
}

fn save_samples(path: &Path, mut samples: Vec<Sample>) -> Result<(), Error> {
    samples.sort_by_key(|s| Quality::named(&s.sign));
    let lines: String = samples.iter().map(|s| format!("{}\n", serde_json::json!(s))).collect();
    limbeck_artifact::files::write_atomic(path, lines.as_bytes()).map_err(|e| Error::io("write", path, e))
}

/// The kept rows in pieces, in the order of the traces.
pub fn pieces(dir: &Path) -> Result<impl Iterator<Item = Result<Vec<Curated>, Error>>, Error> {
    let path = dir.join("curated.parquet");
    Ok(Slices::open(&path, None)?.map(move |frame| curated(&path, &frame?)))
}

/// All kept rows, in the order of the traces.
pub fn load(dir: &Path) -> Result<Vec<Curated>, Error> {
    let mut out = Vec::new();
    for piece in pieces(dir)? {
        out.extend(piece?);
    }
    Ok(out)
}

fn curated(path: &Path, frame: &DataFrame) -> Result<Vec<Curated>, Error> {
    let failed = |e| Error::table("read", path, e);
    let bad = |why: &str| Error::BadStage { path: path.to_path_buf(), why: why.to_string() };
    let rows = table::rows(frame).map_err(failed)?;
    let column = |name: &str| table::texts(frame, name).map_err(failed);
    let (label, split, group, rivals) = (column("label")?, column("split")?, column("group")?, column("rivals")?);
    let rest = label.into_iter().zip(split).zip(group).zip(rivals);
    rows.into_iter()
        .zip(rest)
        .map(|(row, (((label, split), group), rivals))| {
            let split = Split::ALL.into_iter().find(|s| Some(s.name()) == split);
            let rivals = rivals.map_or(Ok(Vec::new()), serde_json::from_str);
            Ok(Curated {
                row,
                label: label.map(str::to_string),
                split: split.ok_or_else(|| bad("a row has no split"))?,
                group: group.ok_or_else(|| bad("a row has no group"))?.to_string(),
                rivals: rivals.map_err(|_| bad("a row's rivals are no list"))?,
            })
        })
        .collect()
}
