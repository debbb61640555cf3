//! The frozen rows as a Parquet table beside their JSON lines, and what the card says of how they came about.

use crate::Error;
use crate::curate::CurateSummary;
use crate::redact::measure::{Measured, NAMES};
use limbeck_artifact::dataset::{Curation, Example, LabelSource, Split};
use limbeck_artifact::digest::sha256_file;
use limbeck_artifact::files::AtomicFile;
use polars::prelude::*;
use polars_io::parquet::write::{BatchedWriter, ParquetWriter};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The table's name in a dataset folder.
pub const TABLE: &str = "rows.parquet";

/// The rows as columns: prompts as JSON text, the rest flat, so that any tool reads them.
pub(crate) fn frame(rows: &[(Split, Example)]) -> PolarsResult<DataFrame> {
    let texts = |name: &str, get: fn(&(Split, Example)) -> &str| {
        Column::new(name.into(), rows.iter().map(get).collect::<Vec<_>>())
    };
    let maybe = |name: &str, get: fn(&Example) -> Option<&str>| {
        Column::new(name.into(), rows.iter().map(|r| get(&r.1)).collect::<Vec<_>>())
    };
    let json = |e: serde_json::Error| polars_err!(ComputeError: "messages: {e}");
    let messages: Vec<String> =
        rows.iter().map(|r| serde_json::to_string(&r.1.messages).map_err(json)).collect::<PolarsResult<_>>()?;
    DataFrame::new(
        rows.len(),
        vec![
            texts("id", |r| &r.1.id),
            texts("split", |r| r.0.name()),
            Column::new("messages".into(), messages),
            texts("target", |r| &r.1.target),
            texts("label_source", |r| source(r.1.label_source)),
            Column::new("weight".into(), rows.iter().map(|r| r.1.weight).collect::<Vec<_>>()),
            texts("group", |r| &r.1.group),
            texts("trace_id", |r| &r.1.trace.id),
            texts("trace_file", |r| &r.1.trace.file),
            Column::new("trace_line".into(), rows.iter().map(|r| r.1.trace.line).collect::<Vec<_>>()),
            maybe("decision", |e| e.decision.as_deref()),
            texts("recorded_answer", |r| &r.1.recorded.answer),
            texts("recorded_model", |r| &r.1.recorded.model),
            maybe("recorded_at", |e| e.recorded.at.as_deref()),
            maybe("feedback", |e| e.recorded.feedback.as_deref()),
        ],
    )
}

fn source(source: LabelSource) -> &'static str {
    match source {
        LabelSource::Human => "human",
        LabelSource::Teacher => "teacher",
    }
}

/// Values a slice counts by name; the rest is "(other)".
const VALUES: usize = 100;

/// Counts a row into the card.
pub(crate) fn count(curation: &mut Curation, row: &Example) {
    let by = curation.labels_by.entry(row.label_source).or_default();
    by.rows += 1;
    by.weight += f64::from(row.weight);
    curation.corrected += u64::from(is_corrected(row));
    let month = row.recorded.at.as_deref().and_then(|at| at.get(..7)).unwrap_or("(none)");
    let feedback = row.recorded.feedback.as_deref().unwrap_or("(none)");
    let model = if row.recorded.model.is_empty() { "(none)" } else { &row.recorded.model };
    for (slice, value) in [("model", model), ("month", month), ("feedback", feedback)] {
        let values = match curation.slices.get_mut(slice) {
            Some(values) => values,
            None => curation.slices.entry(slice.to_string()).or_default(),
        };
        let value = if values.len() < VALUES || values.contains_key(value) { value } else { "(other)" };
        match values.get_mut(value) {
            Some(n) => *n += 1,
            None => {
                values.insert(value.to_string(), 1);
            }
        }
    }
}

/// Whether a person put another answer in place of the recorded one: a pair of chosen and rejected.
pub fn is_corrected(row: &Example) -> bool {
    row.label_source == LabelSource::Human && row.recorded.answer != row.target && !row.recorded.answer.is_empty()
}

/// What the card says before any row is counted.
pub(crate) fn curation(summary: &CurateSummary, measured: Option<&Measured>) -> Curation {
    Curation {
        redaction_recall: measured.into_iter().flat_map(|m| &m.kinds).map(|(k, f)| (k.clone(), f.recall())).collect(),
        redaction_precision: measured.map(Measured::precision),
        redaction_note: measured.map_or("the traces were not redacted".to_string(), |_| NAMES.to_string()),
        signs: summary.signs.clone(),
        disagreements: summary.disagreements,
        ..Curation::default()
    }
}

/// The table in the making; dropped before [`Table::finish`], it leaves nothing.
pub(crate) struct Table {
    path: PathBuf,
    file: Shared,
    inner: BatchedWriter<Shared>,
}

/// The Parquet writer keeps what it writes to; this lets the file be put in place all the same.
#[derive(Clone)]
struct Shared(Arc<Mutex<Option<AtomicFile>>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Option<AtomicFile>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lock().as_mut().map_or_else(|| Err(io::Error::other("the table is in place")), |f| f.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.lock().as_mut().map_or(Ok(()), AtomicFile::flush)
    }
}

impl Table {
    pub fn create(path: &Path) -> Result<Table, Error> {
        let file = AtomicFile::create(path).map_err(|e| Error::io("write", path, e))?;
        let file = Shared(Arc::new(Mutex::new(Some(file))));
        let failed = |e| Error::table("write", path, e);
        let schema = frame(&[]).map_err(failed)?.schema().clone();
        let inner = ParquetWriter::new(file.clone()).batched(&schema).map_err(failed)?;
        Ok(Table { path: path.to_path_buf(), file, inner })
    }

    pub fn write(&mut self, rows: &[(Split, Example)]) -> Result<(), Error> {
        if rows.is_empty() {
            return Ok(());
        }
        frame(rows).and_then(|f| self.inner.write_batch(&f)).map_err(|e| Error::table("write", &self.path, e))
    }

    /// Puts the table in place and gives its SHA-256.
    pub fn finish(self) -> Result<String, Error> {
        self.inner.finish().map_err(|e| Error::table("write", &self.path, e))?;
        let io = |e| Error::io("write", &self.path, e);
        if let Some(file) = self.file.lock().take() {
            file.commit().map_err(io)?;
        }
        sha256_file(&self.path).map_err(io)
    }
}
