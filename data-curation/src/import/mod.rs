//! Reads trace files record by record, redacts, and keeps what can be used: `accepted.parquet`, and `rejected.jsonl` with
//! the reason for every other record. Memory holds a batch of records and one row group, however long the log.

mod join;
mod lines;
mod parquet;
pub mod source;
#[cfg(test)]
mod tests;
pub mod walk;
pub mod watch;

use crate::Error;
use crate::redact::{Kind, RedactOptions, Redactor};
use crate::table::{self, Row};
use crate::trace::{self, Columns, Format, Reject, RejectReason, Trace};
use join::{Join, Joined};
use limbeck_artifact::event::{Emit, EventKind};
use limbeck_artifact::files::{AtomicFile, write_atomic};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use source::{Container, Record, Source, container};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A file and the name by which the dataset speaks of it: a path of this machine says nothing on another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFile {
    pub name: String,
    pub path: PathBuf,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ImportPlan {
    pub traces: Vec<NamedFile>,
    /// Off only for data that is known to hold nothing personal.
    pub redact: bool,
    pub redaction: RedactOptions,
    /// Longest record that is read, in bytes; see [`MAX_LINE_BYTES`].
    pub max_line_bytes: usize,
    /// Folder for `accepted.parquet`, `rejected.jsonl` and `import.json`.
    pub out: PathBuf,
}

/// How files are to be understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// None to tell it from each file's first records.
    pub format: Option<Format>,
    /// Names of columns, for [`Format::Columns`].
    pub columns: Columns,
}

pub const MAX_LINE_BYTES: usize = 8 << 20;
/// Records that are looked at to tell a file's format.
const DETECT_RECORDS: usize = 64;
/// Records of which a batch is parsed and redacted at a time, by all threads.
const BATCH_RECORDS: usize = 2048;
const BATCH_BYTES: usize = 16 << 20;
/// A row group is written when it has so many rows or its text so many bytes.
const GROUP_ROWS: usize = 8192;
const GROUP_BYTES: usize = 32 << 20;

/// What came in; kept as `import.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportSummary {
    /// Records that are not blank lines. `traces_in` = `accepted` + all of `rejected`.
    pub traces_in: u64,
    pub accepted: u64,
    pub rejected: BTreeMap<String, u64>,
    /// Values taken out, by kind.
    pub redactions: BTreeMap<String, u64>,
    /// SHA-256 of the files, by name.
    pub sources: BTreeMap<String, String>,
    /// The format that each file was read as, by name.
    #[serde(default)]
    pub formats: BTreeMap<String, String>,
}

impl ImportSummary {
    pub fn load(dir: &Path) -> Result<ImportSummary, Error> {
        load_json(&dir.join("import.json"))
    }

    /// All that were rejected.
    pub fn rejects(&self) -> u64 {
        self.rejected.values().sum()
    }
}

pub(crate) fn load_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::BadStage { path: path.to_path_buf(), why: e.to_string() })
}

pub(crate) fn save_json<T: Serialize>(path: &Path, value: &T) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::BadStage { path: path.to_path_buf(), why: e.to_string() })?;
    write_atomic(path, format!("{text}\n").as_bytes()).map_err(|e| Error::io("write", path, e))
}

/// A line of `rejected.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    pub file: String,
    /// 1-based: where the record begins; 0 when it is not known.
    pub line: u64,
    pub reason: RejectReason,
    /// Which field or column; never a value, since nothing here was redacted.
    pub detail: String,
}

/// Reads all files of the plan, each in the format that its first records show. A file that cannot be read is an error;
/// a record that cannot is a [`Rejected`].
pub fn import(plan: &ImportPlan, emit: &dyn Emit) -> Result<ImportSummary, Error> {
    import_as(plan, &Reading::default(), emit)
}

/// As [`import`], with files to be understood as `reading` says.
pub fn import_as(plan: &ImportPlan, reading: &Reading, emit: &dyn Emit) -> Result<ImportSummary, Error> {
    let (accepted_path, rejected_path) = (plan.out.join("accepted.parquet"), plan.out.join("rejected.jsonl"));
    let redactor = match plan.redact {
        true => {
            Some(Redactor::with(&plan.redaction).map_err(|why| Error::Plan(format!("data.redact_patterns: {why}")))?)
        }
        false => None,
    };
    let mut accepted = AtomicFile::create(&accepted_path).map_err(|e| Error::io("write", &accepted_path, e))?;
    let mut sink = Sink::new(&mut accepted, &accepted_path, &rejected_path)?;
    let total = plan.traces.iter().filter_map(|f| std::fs::metadata(&f.path).ok()).map(|m| m.len()).sum();
    let mut done = 0;
    for named in &plan.traces {
        if sink.summary.sources.contains_key(&named.name) {
            return Err(Error::Plan(format!("two trace files are both named {}", named.name)));
        }
        let (mut source, format) = open(named, reading, plan.max_line_bytes)?;
        let mut batch = Batch::of(format);
        let mut told = 0;
        while let Some(record) = source.next_record()? {
            batch.push(record);
            if batch.full() {
                sink.take(batch.read(format, &reading.columns, redactor.as_ref()), named)?;
                // Files of gigabytes and of long records alike: some hundred times a file, and not at every batch.
                let bytes = source.bytes();
                if bytes >= told + (4 << 20) {
                    told = bytes;
                    emit.emit(EventKind::Progress { done: done + bytes, total, unit: "bytes".to_string() });
                }
            }
        }
        batch.end();
        sink.take(batch.read(format, &reading.columns, redactor.as_ref()), named)?;
        done += source.bytes();
        sink.summary.formats.insert(named.name.clone(), format.name().to_string());
        sink.summary.sources.insert(named.name.clone(), source.finish()?);
    }
    emit.emit(EventKind::Progress { done, total: total.max(done), unit: "bytes".to_string() });
    let summary = sink.finish()?;
    if summary.traces_in != summary.accepted + summary.rejects() {
        let out = summary.accepted + summary.rejects();
        return Err(Error::Unaccounted { stage: "import", into: summary.traces_in, out });
    }
    if summary.accepted == 0 {
        let sources = plan.traces.iter().map(|f| f.name.as_str()).collect::<Vec<_>>().join(", ");
        return Err(Error::NothingAccepted { sources, rejected: summary.rejects(), log: rejected_path });
    }
    accepted.commit().map_err(|e| Error::io("write", &accepted_path, e))?;
    save_json(&plan.out.join("import.json"), &summary)?;
    report(&summary, emit);
    Ok(summary)
}

/// Hands over each call of `files`, redacted where a redactor is given, without writing anything; gives the number of records
/// that are none.
///
/// # Errors
/// When a file can't be read, and those of `take`.
pub fn each_call(
    files: &[NamedFile],
    reading: &Reading,
    redactor: Option<&Redactor>,
    mut take: impl FnMut(Trace) -> Result<(), Error>,
) -> Result<u64, Error> {
    let mut rejected = 0;
    for named in files {
        let (mut source, format) = open(named, reading, MAX_LINE_BYTES)?;
        let mut batch = Batch::of(format);
        let mut ended = false;
        while !ended {
            match source.next_record()? {
                Some(record) => batch.push(record),
                None => {
                    batch.end();
                    ended = true;
                }
            }
            if ended || batch.full() {
                for done in batch.read(format, &reading.columns, redactor) {
                    match done.result {
                        Ok((trace, _)) => take(trace)?,
                        Err(_) => rejected += 1,
                    }
                }
            }
        }
    }
    Ok(rejected)
}

/// A file's records and the format that they are read as.
///
/// # Errors
/// When it can't be read.
pub fn open(file: &NamedFile, reading: &Reading, limit: usize) -> Result<(Source, Format), Error> {
    let container = container(&file.path).map_err(|e| Error::io("open the traces", &file.path, e))?;
    let format = match reading.format {
        Some(format) => format,
        None if !reading.columns.is_empty() => Format::Columns,
        None => detect(&file.path, container, limit)?,
    };
    Ok((Source::open(&file.path, container, limit)?, format))
}

/// The format of a file, from its first records. One that nobody knows is read as chat completions: those reasons say
/// what was looked for.
fn detect(path: &Path, container: Container, limit: usize) -> Result<Format, Error> {
    let mut source = Source::open(path, container, limit)?;
    let mut seen = Vec::new();
    let mut bytes_seen = 0;
    while seen.len() < DETECT_RECORDS && bytes_seen < BATCH_BYTES {
        match source.next_record()? {
            None => break,
            Some(Record::Json { bytes, .. }) => {
                bytes_seen += bytes.len().max(1);
                seen.extend(trace::json(bytes).ok());
            }
            Some(Record::Row { value, .. }) => seen.push(value),
            Some(Record::Bad { .. }) => bytes_seen += 1 << 10,
        }
    }
    let table = matches!(container, Container::Csv { .. } | Container::Parquet);
    Ok(Format::detect(&seen).unwrap_or(if table { Format::Columns } else { Format::OpenAi }))
}

fn report(summary: &ImportSummary, emit: &dyn Emit) {
    let counted = |what: &str, n: u64, reason: &str| {
        emit.emit(EventKind::Counted { what: what.to_string(), n, reason: reason.to_string() });
    };
    counted("traces", summary.accepted, "");
    summary.rejected.iter().for_each(|(reason, n)| counted("traces rejected", *n, reason));
    summary.redactions.iter().for_each(|(kind, n)| counted("values redacted", *n, kind));
}

/// Records on their way to the threads.
#[derive(Default)]
pub(crate) struct Batch {
    records: Vec<(u64, Raw)>,
    bytes: usize,
    /// None where no format of the file logs a call in pieces.
    join: Option<Join>,
    /// Calls that wait from other files.
    waiting: Option<Join>,
}

enum Raw {
    Json(Vec<u8>),
    Row(Value),
    Bad(Reject),
}

/// A record that was read: the trace and what was redacted in it, or the reason.
pub(crate) struct Done {
    pub line: u64,
    pub result: Result<(Trace, BTreeMap<Kind, u64>), Reject>,
}

impl Batch {
    pub fn of(format: Format) -> Batch {
        let mut batch = Batch::default();
        batch.expect(format);
        batch
    }

    /// The format is known from here on.
    pub fn expect(&mut self, format: Format) {
        let in_pieces = matches!(format, Format::Otel | Format::OpenInference);
        if in_pieces && self.join.is_none() {
            self.join = Some(self.waiting.take().unwrap_or_default());
        }
    }

    /// Calls of other files may end in this one.
    pub fn wait_for(&mut self, join: Join) {
        self.waiting = Some(join);
    }

    /// The calls that still wait, for the next file.
    pub fn still_waiting(&mut self) -> Join {
        self.join.take().or(self.waiting.take()).unwrap_or_default()
    }

    /// Where the records that come now stand.
    pub fn at(&mut self, offset: u64) {
        self.join.iter_mut().for_each(|join| join.at.offset = offset);
    }

    /// Takes a record, or keeps it until the others of its call have come.
    pub fn push(&mut self, record: Record<'_>) {
        if let Record::Json { line, bytes } = &record
            && let Some(join) = &mut self.join
            && let Joined::Taken(whole) = join.take(*line, bytes)
        {
            return whole.into_iter().for_each(|record| self.add(record));
        }
        self.add(record);
    }

    /// Gives up what still waits: no more records come.
    pub fn end(&mut self) {
        let waiting = self.join.as_mut().map(Join::finish).unwrap_or_default();
        waiting.into_iter().for_each(|record| self.add(record));
    }

    fn add(&mut self, record: Record<'_>) {
        let (line, raw, bytes) = match record {
            Record::Json { bytes, .. } if bytes.trim_ascii().is_empty() => return,
            Record::Json { line, bytes } => (line, Raw::Json(bytes.to_vec()), bytes.len()),
            Record::Row { line, value } => {
                let cells = value.as_object().into_iter().flat_map(|o| o.values());
                let bytes = cells.map(|v| v.as_str().map_or(8, str::len)).sum();
                (line, Raw::Row(value), bytes)
            }
            Record::Bad { line, reject } => (line, Raw::Bad(reject), 0),
        };
        self.bytes += bytes;
        self.records.push((line, raw));
    }

    pub fn full(&self) -> bool {
        self.records.len() >= BATCH_RECORDS || self.bytes >= BATCH_BYTES
    }

    /// All of them, in order; the batch is empty after.
    pub fn read(&mut self, format: Format, columns: &Columns, redactor: Option<&Redactor>) -> Vec<Done> {
        self.bytes = 0;
        let records = std::mem::take(&mut self.records);
        let one = |(line, raw): (u64, Raw)| {
            let read = match raw {
                Raw::Json(bytes) => trace::json(&bytes).and_then(|value| format.read(&value, &bytes, columns)),
                Raw::Row(value) => format.read(&value, value.to_string().as_bytes(), columns),
                Raw::Bad(reject) => Err(reject),
            };
            let redacted = |mut trace: Trace| {
                let counts = redactor.map(|redactor| trace.redact(redactor)).unwrap_or_default();
                (trace, counts)
            };
            Done { line, result: read.map(redacted) }
        };
        records.into_par_iter().map(one).collect()
    }
}

pub(crate) struct Sink<'p> {
    writer: table::Writer<'p>,
    accepted_path: &'p Path,
    rejected: AtomicFile,
    rejected_path: &'p Path,
    group: Vec<Row>,
    group_bytes: usize,
    pub summary: ImportSummary,
}

impl<'p> Sink<'p> {
    pub fn new(accepted: &'p mut AtomicFile, accepted_path: &'p Path, rejected_path: &'p Path) -> Result<Self, Error> {
        let rejected = AtomicFile::create(rejected_path).map_err(|e| Error::io("write", rejected_path, e))?;
        Ok(Sink {
            writer: table::Writer::new(accepted).map_err(|e| Error::table("write", accepted_path, e))?,
            accepted_path,
            rejected,
            rejected_path,
            group: Vec::new(),
            group_bytes: 0,
            summary: ImportSummary::default(),
        })
    }

    pub fn take(&mut self, done: Vec<Done>, from: &NamedFile) -> Result<(), Error> {
        for Done { line, result } in done {
            self.summary.traces_in += 1;
            match result {
                Ok((trace, counts)) => self.accept(trace, counts, from, line)?,
                Err(reject) => self.reject(reject, from, line)?,
            }
        }
        Ok(())
    }

    fn accept(&mut self, trace: Trace, counts: BTreeMap<Kind, u64>, from: &NamedFile, line: u64) -> Result<(), Error> {
        for (kind, n) in counts {
            *self.summary.redactions.entry(Kind::name(kind).to_string()).or_default() += n;
        }
        self.summary.accepted += 1;
        self.group_bytes += trace.answer.len() + trace.messages.iter().map(|m| m.content.len()).sum::<usize>();
        self.group.push(Row { trace, file: from.name.clone(), line });
        if self.group.len() >= GROUP_ROWS || self.group_bytes >= GROUP_BYTES { self.flush() } else { Ok(()) }
    }

    fn reject(&mut self, reject: Reject, from: &NamedFile, line: u64) -> Result<(), Error> {
        *self.summary.rejected.entry(reject.reason.name().to_string()).or_default() += 1;
        let rejected = Rejected { file: from.name.clone(), line, reason: reject.reason, detail: reject.detail };
        writeln!(self.rejected, "{}", serde_json::json!(rejected))
            .map_err(|e| Error::io("write", self.rejected_path, e))
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.writer.write(&self.group).map_err(|e| Error::table("write", self.accepted_path, e))?;
        self.group.clear();
        self.group_bytes = 0;
        Ok(())
    }

    pub fn finish(mut self) -> Result<ImportSummary, Error> {
        self.flush()?;
        self.writer.finish().map_err(|e| Error::table("write", self.accepted_path, e))?;
        self.rejected.commit().map_err(|e| Error::io("write", self.rejected_path, e))?;
        Ok(self.summary)
    }
}
