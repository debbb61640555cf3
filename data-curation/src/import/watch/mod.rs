//! Keeps up with a folder of logs that grow: reads the lines that are new since the last look, and nothing twice. Every
//! look that found some leaves a numbered pair of files, `accepted-000001.parquet` and `rejected-000001.jsonl`, and then
//! says so in `watch.json`: that rename is the commit. A watcher killed before it leaves files that the next one writes
//! over; killed after it, nothing is read again.
//!
//! A file is known by its place on the disk and by its first bytes. So a log that is renamed (`app.log.1`) goes on where
//! it was, one that is copied and cut to nothing begins anew while its copy counts as read, and one that was compressed
//! after its turn is not read a second time.

mod logs;

use super::join::{Join, Piece as Place, Waiting, without_choice};
use super::lines::{Line, Lines};
use super::source::{Compression, Record, too_long};
use super::walk::{self, Piece, Shape, Walk};
use super::{BATCH_BYTES, Batch, Done, NamedFile, Reading, Sink, load_json, save_json};
use crate::Error;
use crate::redact::Redactor;
use crate::trace::{self, Format, Reject, RejectReason};
use limbeck_artifact::files::{AtomicFile, create_dirs, is_temporary};
use logs::{Present, Tail, recognise};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Between two looks at the folder.
pub const INTERVAL: Duration = Duration::from_secs(2);
/// A last line without a line feed is taken when it is whole JSON and the file has rested so long.
pub const SETTLED: Duration = Duration::from_secs(10);
/// So long a call that was logged in pieces waits for its answer.
pub const PATIENCE: Duration = Duration::from_secs(600);
/// First bytes by which a file is known again.
const HEAD: u64 = 4096;
/// A pair of files is ended at so many bytes of log, so that a folder of gigabytes is committed in steps.
const SEGMENT_BYTES: u64 = 256 << 20;

#[derive(Clone, Debug)]
pub struct WatchPlan {
    pub folder: PathBuf,
    pub out: PathBuf,
    pub redact: bool,
    pub max_line_bytes: usize,
    pub reading: Reading,
    /// See [`PATIENCE`].
    pub patience: Duration,
}

/// What was read so far; kept as `watch.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    /// Pairs of files that are committed; the next gets the number after.
    pub segments: u64,
    pub traces_in: u64,
    pub accepted: u64,
    pub rejected: BTreeMap<String, u64>,
    pub redactions: BTreeMap<String, u64>,
    files: Vec<Tail>,
    /// Calls of which a part was read and the answer is to come. None of them counts in `traces_in` yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<Waiting>,
}

pub struct Watch {
    plan: WatchPlan,
    redactor: Option<Redactor>,
    pub state: Watched,
    /// The calls of `state.waiting`, with their texts; none before the first look.
    join: Option<Join>,
    /// Held while this process watches.
    _lock: File,
}

/// What a look found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Look {
    pub accepted: u64,
    pub rejected: u64,
    pub bytes: u64,
    /// Files that are not logs of lines; each is told once.
    pub strange: Vec<String>,
    /// More is there already: a segment was full.
    pub more: bool,
}

impl Watch {
    /// Begins, or goes on where the last watcher of this folder stopped.
    ///
    /// # Errors
    /// When the folders can't be used, or another process watches into the same one.
    pub fn open(plan: WatchPlan) -> Result<Watch, Error> {
        create_dirs(&plan.out).map_err(|e| Error::io("make the folder", &plan.out, e))?;
        let lock_path = plan.out.join("watch.lock");
        let lock = File::create(&lock_path).map_err(|e| Error::io("write", &lock_path, e))?;
        if lock.try_lock().is_err() {
            let why =
                format!("another process watches into {}\nhint: stop it, or name another --out", plan.out.display());
            return Err(Error::Source { why });
        }
        let path = plan.out.join("watch.json");
        let state = if path.exists() { load_json(&path)? } else { Watched::default() };
        let redactor = if plan.redact { Some(Redactor::new()?) } else { None };
        Ok(Watch { plan, redactor, state, join: None, _lock: lock })
    }

    /// Reads what is new, and commits it.
    ///
    /// # Errors
    /// When the disk fails; nothing is lost by it.
    pub fn look(&mut self) -> Result<Look, Error> {
        let mut look = Look::default();
        let present = self.present(&mut look)?;
        let mut next = self.state.clone();
        let tails = recognise(&mut next, &present);
        let news =
            present.iter().zip(&tails).filter(|(file, tail)| file.has_news(&next.files[**tail])).collect::<Vec<_>>();
        let mut join = match &self.join {
            Some(join) => join.clone(),
            None => self.found_again(&present, &tails, &next),
        };
        join.now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs());
        let patient_since = join.now.saturating_sub(self.plan.patience.as_secs());
        if news.is_empty() {
            join.give_up(patient_since);
        }
        if news.is_empty() && join.lost.is_empty() {
            self.join = Some(join);
            if next != self.state {
                self.commit(next)?;
            }
            return Ok(look);
        }
        let number = self.state.segments + 1;
        let accepted_path = self.plan.out.join(format!("accepted-{number:06}.parquet"));
        let rejected_path = self.plan.out.join(format!("rejected-{number:06}.jsonl"));
        let mut accepted = AtomicFile::create(&accepted_path).map_err(|e| Error::io("write", &accepted_path, e))?;
        let mut sink = Sink::new(&mut accepted, &accepted_path, &rejected_path)?;
        for (file, tail) in news {
            look.bytes += self.follow(file, &mut next.files[*tail], &mut sink, &mut join)?;
            if look.bytes >= SEGMENT_BYTES {
                look.more = true;
                break;
            }
        }
        join.give_up(patient_since);
        for place in std::mem::take(&mut join.lost) {
            let named = NamedFile { name: place.file, path: PathBuf::new() };
            sink.take(vec![Done { line: place.line, result: Err(without_choice()) }], &named)?;
        }
        next.waiting = join.waiting();
        self.join = Some(join);
        if sink.summary.traces_in == 0 {
            // Nothing to keep: the temporary files go as they are dropped. What was learnt of the logs is kept.
            drop(sink);
            if next != self.state {
                self.commit(next)?;
            }
            return Ok(look);
        }
        let summary = sink.finish()?;
        if summary.accepted > 0 {
            accepted.commit().map_err(|e| Error::io("write", &accepted_path, e))?;
        }
        (look.accepted, look.rejected) = (summary.accepted, summary.rejects());
        next.segments = number;
        next.traces_in += summary.traces_in;
        next.accepted += summary.accepted;
        for (into, from) in [(&mut next.rejected, summary.rejected), (&mut next.redactions, summary.redactions)] {
            from.into_iter().for_each(|(key, n)| *into.entry(key).or_default() += n);
        }
        self.commit(next)?;
        Ok(look)
    }

    /// The calls that waited when the last watcher stopped, from where they stand. One whose log is gone is lost.
    fn found_again(&self, present: &[Present], tails: &[usize], state: &Watched) -> Join {
        let mut join = Join::default();
        for waiting in &state.waiting {
            let all = waiting.pieces.iter().all(|place| {
                let at = tails.iter().position(|tail| state.files[*tail].name == place.file);
                let Some(Ok(from)) = at.map(|at| present[at].content(place.offset)) else { return false };
                let mut lines = Lines::new(from, self.plan.max_line_bytes);
                let Ok(Some(Line::Whole { bytes, .. })) = lines.next_line() else { return false };
                each_record(bytes, self.plan.max_line_bytes, &mut |found| {
                    if let Piece::Record { bytes, .. } = found {
                        join.take_again(waiting, place, bytes);
                    }
                });
                true
            });
            if !(join.waits_for(&waiting.span) && all) {
                join.close(&waiting.span);
                join.lost.extend(waiting.pieces.first().cloned());
            }
        }
        join
    }

    fn commit(&mut self, next: Watched) -> Result<(), Error> {
        save_json(&self.plan.out.join("watch.json"), &next)?;
        self.state = next;
        Ok(())
    }

    /// The logs in the folder, the one that was written to longest ago first.
    fn present(&self, look: &mut Look) -> Result<Vec<Present>, Error> {
        let cannot = |e| Error::io("look into the folder", &self.plan.folder, e);
        let out = self.plan.out.canonicalize().ok();
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.plan.folder).map_err(cannot)? {
            let entry = entry.map_err(cannot)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // A file that vanishes between two calls was renamed: it is seen at the next look.
            let Ok(metadata) = fs::metadata(entry.path()) else { continue };
            let ours = out.as_deref() == entry.path().parent().and_then(|p| p.canonicalize().ok()).as_deref();
            if !metadata.is_file() || name.starts_with('.') || is_temporary(&name) || ours {
                continue;
            }
            match Present::of(entry.path(), name.clone(), &metadata) {
                Ok(Some(file)) => files.push(file),
                Ok(None) => look.strange.push(name),
                Err(_) => {}
            }
        }
        files.sort_by(|a, b| a.changed.cmp(&b.changed).then_with(|| a.name.cmp(&b.name)));
        Ok(files)
    }

    /// Reads a file's new lines; gives how many bytes they were.
    fn follow(&self, file: &Present, tail: &mut Tail, sink: &mut Sink<'_>, waiting: &mut Join) -> Result<u64, Error> {
        let cannot = |e| Error::io("read the traces", &file.path, e);
        let Ok(from) = file.content(tail.offset) else { return Ok(0) };
        let mut lines = Lines::new(from, self.plan.max_line_bytes);
        let named = NamedFile { name: tail.name.clone(), path: file.path.clone() };
        let (mut batch, mut taken, mut to_the_end) = (Batch::default(), 0u64, true);
        let mut format = self.plan.reading.format.or_else(|| tail.format.as_deref().and_then(Format::named));
        if format.is_none() && !self.plan.reading.columns.is_empty() {
            format = Some(Format::Columns);
        }
        waiting.at = Place { file: tail.name.clone(), ..Place::default() };
        batch.wait_for(std::mem::take(waiting));
        format.into_iter().for_each(|format| batch.expect(format));
        let mut undecided: Vec<(u64, u64, Vec<u8>)> = Vec::new();
        loop {
            let offset = tail.offset + taken;
            let number = tail.lines + 1;
            let line = match lines.next_line() {
                Ok(Some(line)) => line,
                Ok(None) => break,
                // A compressed file that is still being written: its rest comes later.
                Err(_) if file.compression != Compression::None => break,
                Err(e) => return Err(cannot(e)),
            };
            let complete = match line {
                Line::Whole { bytes, ended } => {
                    let complete = ended || (file.rested() && trace::json(bytes).is_ok());
                    match format {
                        _ if !complete => {}
                        Some(_) => push(&mut batch, number, offset, bytes, self.plan.max_line_bytes),
                        None => undecided.push((number, offset, bytes.to_vec())),
                    }
                    complete
                }
                Line::TooLong { bytes, ended } => {
                    if ended {
                        batch.push(too_long(number, bytes, self.plan.max_line_bytes));
                    }
                    ended
                }
            };
            if !complete {
                break;
            }
            tail.lines = number;
            taken = lines.bytes();
            let gathered = undecided.iter().map(|(_, _, bytes)| bytes.len()).sum::<usize>();
            if format.is_none() && (undecided.len() >= super::DETECT_RECORDS || gathered >= BATCH_BYTES) {
                format = Some(self.decide(&mut undecided, tail, &mut batch));
            }
            if let Some(format) = format
                && batch.full()
            {
                sink.take(batch.read(format, &self.plan.reading.columns, self.redactor.as_ref()), &named)?;
            }
            if taken >= SEGMENT_BYTES {
                to_the_end = false;
                break;
            }
        }
        let format = match format {
            Some(format) => format,
            None => self.decide(&mut undecided, tail, &mut batch),
        };
        *waiting = batch.still_waiting();
        sink.take(batch.read(format, &self.plan.reading.columns, self.redactor.as_ref()), &named)?;
        tail.offset += taken;
        tail.read_length = if to_the_end { file.length } else { 0 };
        if taken > 0 && tail.head_bytes < HEAD {
            (tail.head_bytes, tail.head_sha256) = file.head(tail.offset.min(HEAD)).map_err(cannot)?;
        }
        Ok(taken)
    }

    /// Tells the format from the first lines. It is remembered once somebody knew it.
    fn decide(&self, undecided: &mut Vec<(u64, u64, Vec<u8>)>, tail: &mut Tail, batch: &mut Batch) -> Format {
        let mut seen = Vec::new();
        for (_, _, bytes) in undecided.iter() {
            each_record(bytes, self.plan.max_line_bytes, &mut |piece| {
                if let Piece::Record { bytes, .. } = piece
                    && seen.len() < super::DETECT_RECORDS
                {
                    seen.extend(trace::json(bytes).ok());
                }
            });
        }
        let known = Format::detect(&seen);
        tail.format = known.map(|f| f.name().to_string());
        known.into_iter().for_each(|format| batch.expect(format));
        for (number, offset, bytes) in undecided.drain(..) {
            push(batch, number, offset, &bytes, self.plan.max_line_bytes);
        }
        known.unwrap_or(Format::OpenAi)
    }
}

/// A line is a record, or OTLP's envelope around many.
fn push(batch: &mut Batch, line: u64, offset: u64, bytes: &[u8], limit: usize) {
    batch.at(offset);
    each_record(bytes, limit, &mut |piece| match piece {
        Piece::Record { bytes, .. } => batch.push(Record::Json { line, bytes }),
        Piece::TooLong { bytes, .. } => batch.push(too_long(line, bytes, limit)),
        Piece::Broken { .. } => {
            let detail = "the line is no JSON from some place on".to_string();
            batch.push(Record::Bad { line, reject: Reject { reason: RejectReason::InvalidJson, detail } });
        }
    });
}

fn each_record(bytes: &[u8], limit: usize, each: &mut dyn FnMut(Piece<'_>)) {
    if walk::shape(bytes) != Some(Shape::Containers) {
        return each(Piece::Record { line: 1, bytes });
    }
    let mut walk = Walk::new(bytes, Shape::Containers, limit);
    // A slice is read without errors.
    while let Ok(Some(piece)) = walk.next_piece() {
        each(piece);
    }
}

/// The files that a watcher left in a folder, in order, for an import of all that was accepted.
pub fn segments(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with("accepted-") && name.ends_with(".parquet") && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
