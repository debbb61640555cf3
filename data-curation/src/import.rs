//! Reads trace files line by line, redacts, and keeps what can be used: `accepted.parquet`, and `rejected.jsonl` with
//! the reason for every other line. Memory holds one line and one row group, however long the log.

use crate::Error;
use crate::redact::{Kind, RedactOptions, Redactor};
use crate::table::{self, Row};
use crate::trace::{self, Reject, RejectReason, Trace};
use limbeck_artifact::digest::hex;
use limbeck_artifact::event::{Emit, EventKind};
use limbeck_artifact::files::{AtomicFile, write_atomic};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
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
    /// Longest line that is read, in bytes; see [`MAX_LINE_BYTES`].
    pub max_line_bytes: usize,
    /// Folder for `accepted.parquet`, `rejected.jsonl` and `import.json`.
    pub out: PathBuf,
}

pub const MAX_LINE_BYTES: usize = 8 << 20;
/// A row group is written when it has so many rows or its text so many bytes.
const GROUP_ROWS: usize = 8192;
const GROUP_BYTES: usize = 32 << 20;

/// What came in; kept as `import.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportSummary {
    /// Lines that are not blank. `traces_in` = `accepted` + all of `rejected`.
    pub traces_in: u64,
    pub accepted: u64,
    pub rejected: BTreeMap<String, u64>,
    /// Values taken out, by kind.
    pub redactions: BTreeMap<String, u64>,
    /// SHA-256 of the files, by name.
    pub sources: BTreeMap<String, String>,
}

impl ImportSummary {
    pub fn load(dir: &Path) -> Result<ImportSummary, Error> {
        load_json(&dir.join("import.json"))
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
    /// 1-based.
    pub line: u64,
    pub reason: RejectReason,
    /// Which field or column; never a value, since nothing here was redacted.
    pub detail: String,
}

/// Reads all files of the plan. A file that cannot be read is an error; a line that cannot is a [`Rejected`].
pub fn import(plan: &ImportPlan, emit: &dyn Emit) -> Result<ImportSummary, Error> {
    let (accepted_path, rejected_path) = (plan.out.join("accepted.parquet"), plan.out.join("rejected.jsonl"));
    let redactor = match plan.redact {
        true => {
            Some(Redactor::with(&plan.redaction).map_err(|why| Error::Plan(format!("data.redact_patterns: {why}")))?)
        }
        false => None,
    };
    let mut accepted = AtomicFile::create(&accepted_path).map_err(|e| Error::io("write", &accepted_path, e))?;
    let rejected = AtomicFile::create(&rejected_path).map_err(|e| Error::io("write", &rejected_path, e))?;
    let table = |e| Error::table("write", &accepted_path, e);
    let mut sink = Sink {
        writer: table::Writer::new(&mut accepted).map_err(table)?,
        accepted_path: &accepted_path,
        rejected,
        rejected_path: &rejected_path,
        group: Vec::new(),
        group_bytes: 0,
        summary: ImportSummary::default(),
    };
    let total = plan.traces.iter().filter_map(|f| std::fs::metadata(&f.path).ok()).map(|m| m.len()).sum();
    let mut done = 0;
    for named in &plan.traces {
        if sink.summary.sources.contains_key(&named.name) {
            return Err(Error::Plan(format!("two trace files are both named {}", named.name)));
        }
        let file = File::open(&named.path).map_err(|e| Error::io("open the traces", &named.path, e))?;
        let mut lines = Lines::new(BufReader::with_capacity(1 << 16, file), plan.max_line_bytes);
        let mut number = 0;
        let (mut batch, mut batch_bytes) = (Vec::new(), 0);
        loop {
            let line = lines.next().map_err(|e| Error::io("read the traces", &named.path, e))?;
            let ended = line.is_none();
            if let Some(line) = line {
                number += 1;
                let line = match line {
                    Line::Whole(bytes) if bytes.trim_ascii().is_empty() => continue,
                    Line::Whole(bytes) => Ok(bytes.to_vec()),
                    Line::TooLong(bytes) => {
                        let detail = format!("{bytes} bytes, at most {} are read", plan.max_line_bytes);
                        Err(Reject { reason: RejectReason::LineTooLong, detail })
                    }
                };
                batch_bytes += line.as_ref().map_or(0, Vec::len);
                batch.push((number, line));
            }
            if ended || batch.len() >= GROUP_ROWS || batch_bytes >= GROUP_BYTES {
                let read = |(number, line): (u64, Result<Vec<u8>, Reject>)| {
                    let mut trace = line.and_then(|bytes| trace::parse(&bytes));
                    let counts = match (&mut trace, &redactor) {
                        (Ok(trace), Some(redactor)) => trace.redact(redactor),
                        _ => BTreeMap::new(),
                    };
                    (number, trace, counts)
                };
                let read: Vec<_> = std::mem::take(&mut batch).into_par_iter().map(read).collect();
                batch_bytes = 0;
                for (number, trace, counts) in read {
                    match trace {
                        Ok(trace) => sink.accept(trace, named, number, counts)?,
                        Err(reject) => sink.reject(reject, named, number)?,
                    }
                }
                emit.emit(EventKind::Progress { done: done + lines.bytes, total, unit: "bytes".to_string() });
            }
            if ended {
                break;
            }
        }
        done += lines.bytes;
        sink.summary.sources.insert(named.name.clone(), hex(&lines.sha256.finalize()));
    }
    emit.emit(EventKind::Progress { done, total: total.max(done), unit: "bytes".to_string() });
    let summary = sink.finish()?;
    let rejects: u64 = summary.rejected.values().sum();
    if summary.traces_in != summary.accepted + rejects {
        return Err(Error::Unaccounted { stage: "import", into: summary.traces_in, out: summary.accepted + rejects });
    }
    if summary.accepted == 0 {
        let sources = plan.traces.iter().map(|f| f.name.as_str()).collect::<Vec<_>>().join(", ");
        return Err(Error::NothingAccepted { sources, rejected: rejects, log: rejected_path });
    }
    accepted.commit().map_err(|e| Error::io("write", &accepted_path, e))?;
    save_json(&plan.out.join("import.json"), &summary)?;
    report(&summary, emit);
    Ok(summary)
}

fn report(summary: &ImportSummary, emit: &dyn Emit) {
    let counted = |what: &str, n: u64, reason: &str| {
        emit.emit(EventKind::Counted { what: what.to_string(), n, reason: reason.to_string() });
    };
    counted("traces", summary.accepted, "");
    summary.rejected.iter().for_each(|(reason, n)| counted("traces rejected", *n, reason));
    summary.redactions.iter().for_each(|(kind, n)| counted("values redacted", *n, kind));
}

struct Sink<'p> {
    writer: table::Writer<'p>,
    accepted_path: &'p Path,
    rejected: AtomicFile,
    rejected_path: &'p Path,
    group: Vec<Row>,
    group_bytes: usize,
    summary: ImportSummary,
}

impl Sink<'_> {
    fn accept(
        &mut self,
        trace: Trace,
        from: &NamedFile,
        line: u64,
        redacted: BTreeMap<Kind, u64>,
    ) -> Result<(), Error> {
        for (kind, n) in redacted {
            *self.summary.redactions.entry(Kind::name(kind).to_string()).or_default() += n;
        }
        self.summary.traces_in += 1;
        self.summary.accepted += 1;
        self.group_bytes += trace.answer.len() + trace.messages.iter().map(|m| m.content.len()).sum::<usize>();
        self.group.push(Row { trace, file: from.name.clone(), line });
        if self.group.len() >= GROUP_ROWS || self.group_bytes >= GROUP_BYTES { self.flush() } else { Ok(()) }
    }

    fn reject(&mut self, reject: Reject, from: &NamedFile, line: u64) -> Result<(), Error> {
        self.summary.traces_in += 1;
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

    fn finish(mut self) -> Result<ImportSummary, Error> {
        self.flush()?;
        self.writer.finish().map_err(|e| Error::table("write", self.accepted_path, e))?;
        self.rejected.commit().map_err(|e| Error::io("write", self.rejected_path, e))?;
        Ok(self.summary)
    }
}

/// The lines of a file, none held beyond the limit, and the digest of all its bytes.
struct Lines<R> {
    from: R,
    limit: usize,
    line: Vec<u8>,
    bytes: u64,
    sha256: Sha256,
}

enum Line<'l> {
    Whole(&'l [u8]),
    /// How long it is.
    TooLong(u64),
}

impl<R: BufRead> Lines<R> {
    fn new(from: R, limit: usize) -> Lines<R> {
        Lines { from, limit, line: Vec::new(), bytes: 0, sha256: Sha256::new() }
    }

    fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        self.line.clear();
        let (mut length, mut any, mut ended) = (0u64, false, false);
        while !ended {
            let piece = match self.from.fill_buf() {
                Ok(piece) => piece,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            if piece.is_empty() {
                break;
            }
            any = true;
            let end = piece.iter().position(|b| *b == b'\n');
            ended = end.is_some();
            let content = &piece[..end.unwrap_or(piece.len())];
            length += content.len() as u64;
            if length <= self.limit as u64 {
                self.line.extend_from_slice(content);
            }
            let used = end.map_or(piece.len(), |e| e + 1);
            self.sha256.update(&piece[..used]);
            self.bytes += used as u64;
            self.from.consume(used);
        }
        Ok(match any {
            false => None,
            true if length > self.limit as u64 => Some(Line::TooLong(length)),
            true => Some(Line::Whole(&self.line)),
        })
    }
}
