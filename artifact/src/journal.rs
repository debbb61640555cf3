//! The journal: every event of a run, one JSON object a line, appended and never rewritten. It is the truth that the
//! progress line, the dashboard and a replay show; a line torn by a kill is dropped when the run goes on.

use crate::event::{Emit, Event, EventKind, Stage};
use crate::{Error, Result};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use time::OffsetDateTime;

/// Tells the time as the journal writes it. The default is the system's; tests pass their own.
pub type Clock = fn() -> String;

/// An open journal. One process writes at a time; anyone may read.
pub struct Journal {
    path: PathBuf,
    run: String,
    clock: Clock,
    state: Mutex<State>,
}

struct State {
    file: File,
    next_seq: u64,
    failure: Option<String>,
}

impl Journal {
    /// Opens or makes the journal at `path`; `seq` goes on after the last whole line, and a torn last line is cut off.
    /// Errors where another process has it open, or a line before the last is not an event.
    pub fn open(path: &Path, run_id: &str) -> Result<Journal> {
        Journal::open_with_clock(path, run_id, now)
    }

    pub fn open_with_clock(path: &Path, run_id: &str, clock: Clock) -> Result<Journal> {
        if let Some(dir) = path.parent() {
            crate::files::create_dirs(dir).map_err(Error::io("create the folder of", path))?;
        }
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(Error::io("open the journal", path))?;
        // A writer that was just killed, or a child process between fork and exec, may hold the lock for a moment yet.
        let mut locked = file.try_lock();
        for _ in 0..40 {
            if !matches!(locked, Err(TryLockError::WouldBlock)) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(25));
            locked = file.try_lock();
        }
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let reason = format!("another process is writing {}", path.display());
                return Err(Error::refused(reason, "wait until that run ends, or give this one another name"));
            }
            Err(TryLockError::Error(source)) => {
                return Err(Error::Io { attempted: "lock the journal", path: path.to_path_buf(), source });
            }
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(Error::io("read the journal", path))?;
        let (events, whole) = parse(path, &bytes)?;
        if whole < bytes.len() {
            file.set_len(whole as u64).map_err(Error::io("cut the torn line off", path))?;
        }
        file.seek(SeekFrom::End(0)).map_err(Error::io("read the journal", path))?;
        let next_seq = events.last().map_or(0, |e| e.seq + 1);
        let state = Mutex::new(State { file, next_seq, failure: None });
        Ok(Journal { path: path.to_path_buf(), run: run_id.to_owned(), clock, state })
    }

    /// Writes one event and returns it as written, for the sinks that show it. It never fails: see [`Journal::failure`].
    pub fn record(&self, stage: Option<Stage>, kind: EventKind) -> Event {
        let mut state = self.lock();
        let event = Event { run: self.run.clone(), seq: state.next_seq, at: (self.clock)(), stage, kind };
        state.next_seq += 1;
        if let Err(e) = write_event(&mut state.file, &event)
            && state.failure.is_none()
        {
            state.failure = Some(format!("cannot append to {}: {e}", self.path.display()));
        }
        event
    }

    /// Why the journal stopped keeping events, if it did. Whoever ends the run must look and say so.
    pub fn failure(&self) -> Option<String> {
        self.lock().failure.clone()
    }

    /// An emitter whose events belong to `stage`.
    pub fn stage(&self, stage: Stage) -> StageJournal<'_> {
        StageJournal { journal: self, stage }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A thread that died while it wrote left at worst a torn line, which the reader drops.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Emit for Journal {
    fn emit(&self, kind: EventKind) {
        self.record(None, kind);
    }
}

/// A journal as one stage sees it.
pub struct StageJournal<'a> {
    journal: &'a Journal,
    stage: Stage,
}

impl Emit for StageJournal<'_> {
    fn emit(&self, kind: EventKind) {
        self.journal.record(Some(self.stage), kind);
    }
}

/// Every whole event of the journal at `path`, also of one that is being written. A torn last line is left out; a bad
/// line before it is an error with its number.
pub fn read(path: &Path) -> Result<Vec<Event>> {
    let bytes = std::fs::read(path).map_err(Error::io("read the journal", path))?;
    Ok(parse(path, &bytes)?.0)
}

/// Whether a process has the journal open for writing. Asks for the writer's lock and gives it back at once; a writer that
/// starts in that moment waits longer than this takes.
///
/// # Errors
/// Where there is no journal, or the file system knows no locks.
pub fn is_live(path: &Path) -> Result<bool> {
    let file = File::open(path).map_err(Error::io("open the journal", path))?;
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(source)) => {
            Err(Error::Io { attempted: "ask for the lock of", path: path.to_path_buf(), source })
        }
    }
}

/// At most so much is read at once; a longer line is no event.
const CHUNK: u64 = 4 << 20;

/// A journal as its reader follows it, from the first line on and then as it grows. It never writes.
pub struct Tail {
    path: PathBuf,
    /// Everything before this byte was whole lines.
    offset: u64,
}

/// What a look at the journal brought.
#[derive(Debug, Default)]
pub struct News {
    pub events: Vec<Event>,
    /// Whole lines that are no events: this program's newer kinds, or damage.
    pub bad_lines: u64,
    /// The file is shorter than it was: what was read before is no longer so.
    pub began_again: bool,
    /// There is more to read at once.
    pub more: bool,
}

impl Tail {
    pub fn new(path: &Path) -> Tail {
        Tail { path: path.to_path_buf(), offset: 0 }
    }

    /// The events of the whole lines that came since the last look. A line that is still being written is left for the
    /// next look.
    ///
    /// # Errors
    /// Where the file can't be read.
    pub fn poll(&mut self) -> Result<News> {
        let (bytes, began_again) = self.chunk().map_err(Error::io("read the journal", &self.path.clone()))?;
        let mut news = News { began_again, ..News::default() };
        let whole = match bytes.iter().rposition(|b| *b == b'\n') {
            Some(last) => last + 1,
            // Too long for a line: passed over, and what is left of it is no event.
            None if bytes.len() as u64 == CHUNK => bytes.len(),
            None => 0,
        };
        for line in bytes[..whole].split_inclusive(|b| *b == b'\n') {
            match serde_json::from_slice(line) {
                Ok(event) => news.events.push(event),
                Err(_) => news.bad_lines += 1,
            }
        }
        self.offset += whole as u64;
        news.more = bytes.len() as u64 == CHUNK;
        Ok(news)
    }

    /// Bytes from where the last look ended, and whether the file is shorter than it was then.
    fn chunk(&mut self) -> std::io::Result<(Vec<u8>, bool)> {
        let mut file = File::open(&self.path)?;
        let began_again = file.metadata()?.len() < self.offset;
        if began_again {
            self.offset = 0;
        }
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        file.take(CHUNK).read_to_end(&mut bytes)?;
        Ok((bytes, began_again))
    }
}

/// A time as the journal writes it, as milliseconds since 1970 UTC; None where it is no such time.
pub fn unix_ms(at: &str) -> Option<i64> {
    let time = OffsetDateTime::parse(at, &time::format_description::well_known::Rfc3339).ok()?;
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok()
}

/// The events, and how many bytes hold them.
fn parse(path: &Path, bytes: &[u8]) -> Result<(Vec<Event>, usize)> {
    let mut events = Vec::new();
    let mut whole = 0;
    for (i, line) in bytes.split_inclusive(|b| *b == b'\n').enumerate() {
        let is_last = whole + line.len() == bytes.len();
        match serde_json::from_slice(line) {
            Ok(event) if line.ends_with(b"\n") => events.push(event),
            Ok(_) => break,
            // A kill tears the last line; a power cut can also leave it full of zeros.
            Err(_) if is_last => break,
            Err(e) => {
                let reason = format!("line {} is not an event: {e}", i + 1);
                return Err(Error::invalid(path, reason, "move the file away to start a new journal"));
            }
        }
        whole += line.len();
    }
    Ok((events, whole))
}

fn write_event(file: &mut File, event: &Event) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    file.write_all(&line)?;
    // What was handed to the kernel survives a kill; the milestones also survive a power cut.
    match event.kind {
        EventKind::StageFinished { .. }
        | EventKind::Checkpoint { .. }
        | EventKind::GateDecided { .. }
        | EventKind::RunFinished { .. } => file.sync_data(),
        _ => Ok(()),
    }
}

/// The time now: RFC 3339, UTC, milliseconds.
pub fn now() -> String {
    written(OffsetDateTime::now_utc())
}

/// Seconds since 1970 UTC as the journal writes times; None beyond the calendar.
pub fn of_unix(seconds: i64) -> Option<String> {
    let time = OffsetDateTime::from_unix_timestamp(seconds).ok()?;
    (0..=9999).contains(&time.year()).then(|| written(time))
}

fn written(t: OffsetDateTime) -> String {
    let (date, (h, m, s, ms)) = (t.date(), t.to_hms_milli());
    format!("{:04}-{:02}-{:02}T{h:02}:{m:02}:{s:02}.{ms:03}Z", date.year(), u8::from(date.month()), date.day())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn clock() -> String {
        "2026-01-02T03:04:05.678Z".to_owned()
    }

    fn open(path: &Path) -> Journal {
        Journal::open_with_clock(path, "run-1", clock).unwrap()
    }

    fn note(text: &str) -> EventKind {
        EventKind::Note { text: text.to_owned() }
    }

    #[test]
    fn events_come_back_as_they_were_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/journal.jsonl");
        let journal = open(&path);
        let kinds = [
            EventKind::StageStarted {},
            EventKind::TrainStep {
                step: 1,
                total: 2,
                epoch: 0.5,
                loss: 1.25,
                learning_rate: 1e-4,
                grad_norm: 3.0,
                tokens_per_s: 10.0,
                eta_s: 4.0,
            },
            EventKind::StageFinished { wall_ms: 7, summary: "line\nfeed".to_owned() },
        ];
        let told: Vec<Event> = kinds.iter().map(|k| journal.record(Some(Stage::Train), k.clone())).collect();
        journal.emit(note("no stage"));
        let read_back = read(&path).unwrap();
        assert_eq!(read_back[..3], told[..]);
        assert_eq!(read_back[3].stage, None);
        assert_eq!(read_back.iter().map(|e| e.seq).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert_eq!(journal.failure(), None);
        let first = fs::read_to_string(&path).unwrap().lines().next().unwrap().to_owned();
        insta::assert_snapshot!(first, @r#"{"run":"run-1","seq":0,"at":"2026-01-02T03:04:05.678Z","stage":"train","event":"stage_started"}"#);
    }

    #[test]
    fn a_loss_that_is_not_a_number_can_be_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        open(&path).emit(EventKind::Validated { step: 1, loss: f64::NAN, accuracy: 0.5 });
        let events = read(&path).unwrap();
        assert!(matches!(events[0].kind, EventKind::Validated { loss, .. } if loss.is_nan()));
    }

    #[test]
    fn a_torn_last_line_is_dropped_wherever_it_is_torn_and_seq_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let journal = open(&path);
        journal.emit(note("one"));
        journal.emit(note("two"));
        drop(journal);
        let whole = fs::read(&path).unwrap();
        let one = whole.iter().position(|b| *b == b'\n').unwrap() + 1;
        for cut in one..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(read(&path).unwrap().len(), 1, "cut at {cut}");
            open(&path).emit(note("again"));
            let events = read(&path).unwrap();
            assert_eq!(events.len(), 2, "cut at {cut}");
            assert_eq!((events[1].seq, &events[1].kind), (1, &note("again")));
        }
    }

    #[test]
    fn damage_before_the_last_line_is_an_error_with_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let journal = open(&path);
        journal.emit(note("one"));
        drop(journal);
        let good = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{good}{{\"nonsense\"\n{good}")).unwrap();
        let e = read(&path).unwrap_err().to_string();
        assert!(e.contains("line 2"), "{e}");
    }

    #[test]
    fn two_writers_cannot_have_it_at_once_and_threads_do_not_mix_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let journal = open(&path);
        assert!(Journal::open(&path, "other").is_err());
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| (0..50).for_each(|i| journal.stage(Stage::Curate).emit(note(&i.to_string()))));
            }
        });
        let events = read(&path).unwrap();
        assert!(events.iter().enumerate().all(|(i, e)| e.seq == i as u64) && events.len() == 200);
        drop(journal);
        assert!(Journal::open(&path, "other").is_ok());
    }

    #[test]
    fn a_reader_follows_a_journal_that_is_written_torn_and_begun_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        assert!(Tail::new(&path).poll().is_err());
        let journal = open(&path);
        let mut tail = Tail::new(&path);
        journal.emit(note("one"));
        assert_eq!(tail.poll().unwrap().events.len(), 1);
        assert!(is_live(&path).unwrap());
        journal.emit(note("two"));
        drop(journal);
        assert!(!is_live(&path).unwrap(), "nobody holds the lock");
        // Half a line, then the other half.
        let whole = fs::read(&path).unwrap();
        let mut torn = whole.clone();
        torn.extend_from_slice(&whole[..30]);
        fs::write(&path, &torn).unwrap();
        let news = tail.poll().unwrap();
        assert_eq!((news.events.len(), news.bad_lines, news.more), (1, 0, false));
        assert_eq!(tail.poll().unwrap().events.len(), 0);
        open(&path).emit(note("three"));
        let news = tail.poll().unwrap();
        assert_eq!(news.events.iter().map(|e| e.kind.clone()).collect::<Vec<_>>(), [note("three")]);
        // A line that is no event is counted and passed over; a shorter file is another journal.
        fs::write(&path, [&whole[..], b"{}\n", &whole[..]].concat()).unwrap();
        let news = Tail::new(&path).poll().unwrap();
        assert_eq!((news.events.len(), news.bad_lines), (4, 1));
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let news = tail.poll().unwrap();
        assert!(news.began_again && news.events.len() == 1);
    }

    #[test]
    fn times_are_read_as_they_are_written() {
        assert_eq!(unix_ms("1970-01-01T00:00:01.500Z"), Some(1500));
        assert_eq!(unix_ms("2026-11-22T02:57:47.168Z"), Some(1_795_316_267_168));
        assert_eq!(unix_ms("yesterday"), None);
        assert!(unix_ms(&now()).is_some());
        assert_eq!(of_unix(1_795_316_267).as_deref(), Some("2026-11-22T02:57:47.000Z"));
        assert_eq!(of_unix(i64::MAX), None);
    }

    #[test]
    fn a_journal_of_the_first_version_still_reads() {
        let old = r#"{"run":"r","seq":0,"at":"2026-01-01T00:00:00.000Z","event":"run_started","recipe":"a","version":"b","device":"cpu"}"#;
        let event: Event = serde_json::from_str(old).unwrap();
        assert!(matches!(event.kind, EventKind::RunStarted { ref arguments, .. } if arguments.is_empty()));
        assert_eq!(serde_json::to_string(&event).unwrap(), old);
    }

    #[test]
    fn the_time_is_rfc_3339_in_milliseconds() {
        let t = now();
        assert!(t.len() == 24 && t.ends_with('Z') && t.as_bytes()[10] == b'T' && t.as_bytes()[19] == b'.', "{t}");
    }
}
