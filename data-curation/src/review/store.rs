//! The store of decisions: a folder in which every session of a reviewer has a stream of its own and reads those of the
//! others. Made for folders on a network too: no locks, no shared writing, and nothing but exclusive creation and reading.
//!
//! A reviewer's decisions are the streams that carry the name, one a session. A stream has one writer, who created it
//! exclusively, so appends never meet; a session that was killed leaves at worst one torn last line, and nobody ever writes
//! after it.

use super::Decision;
use super::decision;
use crate::Error;
use limbeck_artifact::files::{create_dirs, sync_dir};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use time::OffsetDateTime;

/// Sessions of one reviewer that may begin within one millisecond.
const SAME_NAME: u32 = 1000;

/// The streams in a folder, sorted by name; none where there is no folder.
///
/// # Errors
/// When the folder can't be listed.
pub fn streams(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("list", dir, e)),
    };
    let is_stream = |path: &PathBuf| {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        name.starts_with("decisions") && name.ends_with(".jsonl")
    };
    let mut found: Vec<PathBuf> = entries.filter_map(|e| e.ok().map(|e| e.path())).filter(is_stream).collect();
    found.sort();
    Ok(found)
}

/// A reviewer's name as part of a file's.
pub fn file_part(reviewer: &str) -> String {
    let part: String = reviewer
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .take(48)
        .collect();
    match part.trim_matches('-') {
        "" => "reviewer".to_owned(),
        part => part.to_owned(),
    }
}

/// The stream of one session: its only writer. The file is made with the first entry.
pub struct Stream {
    dir: PathBuf,
    stem: String,
    open: Option<(PathBuf, File)>,
    /// An append failed in the middle: the next one begins on a line of its own.
    torn: bool,
}

impl Stream {
    /// `began` is when the session began, RFC 3339.
    pub fn new(dir: &Path, reviewer: &str, began: &str) -> Stream {
        let digits: String = began.chars().filter(char::is_ascii_alphanumeric).collect();
        let stem = format!("decisions-{}-{}", file_part(reviewer), digits.to_ascii_lowercase());
        Stream { dir: dir.to_path_buf(), stem, open: None, torn: false }
    }

    /// The file, once there is one.
    pub fn path(&self) -> Option<&Path> {
        self.open.as_ref().map(|(path, _)| path.as_path())
    }

    /// Returns when the decision is on the disk: written in one call, so that a kill tears at most this line, and synced,
    /// so that a power cut loses nothing that was acknowledged.
    ///
    /// # Errors
    /// When it may not be on disk.
    pub fn append(&mut self, decision: &Decision) -> Result<(), Error> {
        if self.open.is_none() {
            self.open = Some(create(&self.dir, &self.stem)?);
        }
        let Some((path, file)) = &mut self.open else { return Ok(()) };
        let mut line = if self.torn { String::from("\n") } else { String::new() };
        line.push_str(&decision.to_line());
        line.push('\n');
        self.torn = true;
        file.write_all(line.as_bytes())
            .and_then(|()| file.sync_data())
            .map_err(|e| Error::io("append a decision to", path, e))?;
        self.torn = false;
        Ok(())
    }
}

fn create(dir: &Path, stem: &str) -> Result<(PathBuf, File), Error> {
    create_dirs(dir).map_err(|e| Error::io("make the folder", dir, e))?;
    for n in 0..SAME_NAME {
        let path = dir.join(if n == 0 { format!("{stem}.jsonl") } else { format!("{stem}-{n}.jsonl") });
        match OpenOptions::new().append(true).create_new(true).open(&path) {
            Ok(file) => {
                sync_dir(dir).map_err(|e| Error::io("sync the folder", dir, e))?;
                return Ok((path, file));
            }
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(Error::io("create the stream", &path, e)),
        }
    }
    Err(Error::io("create a stream in", dir, std::io::Error::from(ErrorKind::AlreadyExists)))
}

/// How far a stream was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    bytes: u64,
    lines: usize,
}

#[derive(Default)]
pub(super) struct Part {
    pub decisions: Vec<(OffsetDateTime, Decision)>,
    /// Lines that end in the middle, 1-based.
    pub torn: Vec<usize>,
}

/// Reads what a stream holds from `place` on. `at_rest`: a last line without line feed is read too (a whole one counts, a
/// torn one is told); otherwise it is still being written and left for the next time.
pub(super) fn read_on(path: &Path, place: &mut Place, at_rest: bool) -> Result<Part, Error> {
    let mut part = Part::default();
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|mut file| {
        if file.metadata()?.len() > place.bytes {
            file.seek(SeekFrom::Start(place.bytes))?;
            file.read_to_end(&mut bytes)?;
        }
        Ok(())
    });
    match read {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(part),
        Err(e) => return Err(Error::io("read decisions from", path, e)),
    }
    // A network file system may show a file's new length before its new bytes, which read as zeros until then.
    if !at_rest && let Some(unseen) = bytes.iter().position(|b| *b == 0) {
        bytes.truncate(unseen);
    }
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        if !at_rest && !line.ends_with(b"\n") {
            break;
        }
        let text = line.trim_ascii();
        let number = place.lines + 1;
        if !text.is_empty() {
            match decision::read(text) {
                Ok(Some(found)) => part.decisions.push(found),
                Ok(None) if !line.ends_with(b"\n") => {
                    // Somebody may be writing it this moment: a tail reads it again from its beginning.
                    part.torn.push(number);
                    break;
                }
                Ok(None) => part.torn.push(number),
                Err(why) => return Err(Error::BadDecision { path: path.to_path_buf(), line: number, why }),
            }
        }
        place.bytes += line.len() as u64;
        place.lines = number;
    }
    Ok(part)
}

/// A stream that told nothing for so many looks is a session long over: it is looked at once in [`SELDOM`] only, or a store of
/// a year's sessions on a network would cost a round trip for each, at every look.
const SILENT: u32 = 600;
const SELDOM: u32 = 60;
/// Of a stream that was last written so long ago, the same is assumed from the start.
const OLD: Duration = Duration::from_secs(3600);

/// Follows the streams of a folder, all but one's own.
pub struct Tail {
    dir: PathBuf,
    followed: BTreeMap<PathBuf, Followed>,
    /// Streams that could not be read; told once.
    given_up: BTreeSet<PathBuf>,
}

#[derive(Clone, Copy, Default)]
struct Followed {
    place: Place,
    /// Looks without news.
    silent: u32,
}

/// What others did since the last look.
#[derive(Debug, Default)]
pub struct News {
    pub decisions: Vec<Decision>,
    /// Why a stream is not followed any longer.
    pub trouble: Vec<String>,
}

impl Tail {
    /// `places` are those of the files that were loaded.
    pub(super) fn new(dir: &Path, places: Vec<(PathBuf, Place)>) -> Tail {
        let is_old = |path: &PathBuf| {
            let written = std::fs::metadata(path).and_then(|m| m.modified());
            written.ok().and_then(|at| at.elapsed().ok()).is_some_and(|ago| ago > OLD)
        };
        let follow = |(path, place): (PathBuf, Place)| {
            let silent = if is_old(&path) { SILENT } else { 0 };
            (path, Followed { place, silent })
        };
        Tail { dir: dir.to_path_buf(), followed: places.into_iter().map(follow).collect(), given_up: BTreeSet::new() }
    }

    /// Reads on in every stream but `own`. A bad stream is told and not read again; the others go on.
    pub fn poll(&mut self, own: Option<&Path>) -> News {
        let mut news = News::default();
        let listed = match streams(&self.dir) {
            Ok(listed) => listed,
            // A network folder may be away for a while; the next look tries again.
            Err(_) => return news,
        };
        let elsewhere: Vec<PathBuf> = self.followed.keys().filter(|p| !p.starts_with(&self.dir)).cloned().collect();
        for path in listed.into_iter().chain(elsewhere) {
            if Some(path.as_path()) == own || self.given_up.contains(&path) {
                continue;
            }
            let stream = self.followed.entry(path.clone()).or_default();
            stream.silent = stream.silent.saturating_add(1);
            if stream.silent > SILENT && !stream.silent.is_multiple_of(SELDOM) {
                continue;
            }
            match read_on(&path, &mut stream.place, false) {
                Ok(part) => {
                    if !part.decisions.is_empty() {
                        stream.silent = 0;
                    }
                    news.decisions.extend(part.decisions.into_iter().map(|(_, decision)| decision));
                }
                Err(Error::Io { .. }) => {}
                Err(error) => {
                    let why = error.to_string();
                    news.trouble.push(why.lines().next().unwrap_or_default().to_string());
                    self.given_up.insert(path);
                }
            }
        }
        news
    }
}

/// Loads everything that `files` and the folder's streams hold, and follows them from there. A file that is named twice
/// counts once.
///
/// # Errors
/// When a file can't be read, or a whole line of it is no decision.
pub fn open(dir: &Path, files: &[PathBuf]) -> Result<(super::Decisions, Tail), Error> {
    let real = |path: &PathBuf| std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
    let mut known = BTreeSet::new();
    let mut paths: Vec<PathBuf> = files.iter().cloned().chain(streams(dir)?).collect();
    paths.retain(|path| known.insert(real(path)));
    let (decisions, places) = super::Decisions::load_to(&paths)?;
    Ok((decisions, Tail::new(dir, places)))
}

#[cfg(test)]
mod tests {
    use super::super::{Decisions, Verdict};
    use super::*;

    fn decision(n: u32, reviewer: &str) -> Decision {
        let at = format!("2026-01-01T00:{:02}:{:02}Z", n / 60, n % 60);
        Decision::new(&at, reviewer, &format!("item-{n}"), Verdict::Accept, None, "", None)
    }

    #[test]
    fn a_session_writes_its_own_stream_and_hears_of_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let (_, mut tail) = open(dir.path(), &[]).unwrap();
        let mut ann = Stream::new(dir.path(), "Ann B", "2026-01-01T00:00:00Z");
        let mut ben = Stream::new(dir.path(), "ben", "2026-01-01T00:00:00Z");
        let mut twin = Stream::new(dir.path(), "Ann B", "2026-01-01T00:00:00Z");
        assert_eq!(streams(dir.path()).unwrap().len(), 0, "nothing is written before there is something to say");
        for (n, stream) in [&mut ann, &mut ben, &mut twin].into_iter().enumerate() {
            stream.append(&decision(n as u32, "x")).unwrap();
        }
        let names: Vec<String> = streams(dir.path())
            .unwrap()
            .iter()
            .map(|p| p.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(
            names,
            [
                "decisions-ann-b-20260101t000000z-1.jsonl",
                "decisions-ann-b-20260101t000000z.jsonl",
                "decisions-ben-20260101t000000z.jsonl"
            ]
        );
        let heard = tail.poll(ann.path());
        assert_eq!((heard.decisions.len(), heard.trouble.len()), (2, 0));
        assert_eq!(tail.poll(ann.path()).decisions, []);
        ben.append(&decision(7, "ben")).unwrap();
        assert_eq!(tail.poll(ann.path()).decisions, [decision(7, "ben")]);
        assert_eq!(
            open(dir.path(), &names.iter().map(|n| dir.path().join(n)).collect::<Vec<_>>()).unwrap().0.list().len(),
            4
        );
    }

    /// Every cut of the last line, as a kill at any byte leaves it, and what a network shows before it is whole.
    #[test]
    fn half_a_line_is_not_news_and_not_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("decisions-ben.jsonl");
        let (first, second) = (decision(1, "bén"), decision(2, "bén"));
        let (one, two) = (first.to_line() + "\n", second.to_line() + "\n");
        for cut in 0..two.len() {
            for zeros in [0, 3] {
                let (_, mut tail) = open(dir.path(), &[]).unwrap();
                let torn = [one.as_bytes(), &two.as_bytes()[..cut], &vec![0; zeros]].concat();
                std::fs::write(&path, torn).unwrap();
                assert_eq!(tail.poll(None).decisions, std::slice::from_ref(&first));
                let list = Decisions::load(&[&path]);
                if zeros == 0 {
                    // A line that lacks its line feed only is whole.
                    let whole = usize::from(cut == two.len() - 1);
                    let list = list.unwrap();
                    assert_eq!(list.list().len(), 1 + whole, "{cut}");
                    assert_eq!(list.torn().len(), usize::from(cut > 0) - whole, "{cut}");
                }
                std::fs::write(&path, format!("{one}{two}")).unwrap();
                let news = tail.poll(None);
                assert_eq!((news.decisions, news.trouble.len()), (vec![second.clone()], 0), "{cut}");
                std::fs::remove_file(&path).unwrap();
            }
        }
    }

    #[test]
    fn a_tail_that_began_at_half_a_line_reads_it_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("decisions-ben.jsonl");
        let line = decision(1, "ben").to_line() + "\n";
        std::fs::write(&path, &line[..20]).unwrap();
        let (decisions, mut tail) = open(dir.path(), &[]).unwrap();
        assert_eq!((decisions.list().len(), decisions.torn().len()), (0, 1));
        std::fs::write(&path, &line).unwrap();
        assert_eq!(tail.poll(None).decisions, [decision(1, "ben")]);
    }

    #[test]
    fn a_bad_stream_is_told_once_and_silences_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let (_, mut tail) = open(dir.path(), &[]).unwrap();
        std::fs::write(dir.path().join("decisions-bad.jsonl"), "{}\n").unwrap();
        let mut ben = Stream::new(dir.path(), "ben", "2026-01-01T00:00:00Z");
        ben.append(&decision(1, "ben")).unwrap();
        let news = tail.poll(None);
        assert_eq!((news.decisions.len(), news.trouble.len()), (1, 1));
        assert!(news.trouble[0].contains("decisions-bad.jsonl"), "{:?}", news.trouble);
        assert_eq!(tail.poll(None).trouble.len(), 0);
    }

    #[test]
    fn a_stream_long_silent_is_heard_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let mut ben = Stream::new(dir.path(), "ben", "2026-01-01T00:00:00Z");
        ben.append(&decision(1, "ben")).unwrap();
        let (_, mut tail) = open(dir.path(), &[]).unwrap();
        (0..=SILENT).for_each(|_| assert_eq!(tail.poll(None).decisions, []));
        ben.append(&decision(2, "ben")).unwrap();
        let heard: usize = (0..SELDOM).map(|_| tail.poll(None).decisions.len()).sum();
        assert_eq!(heard, 1);
        ben.append(&decision(3, "ben")).unwrap();
        assert_eq!(tail.poll(None).decisions.len(), 1, "and at once from then on");
    }

    #[test]
    fn a_reviewers_name_makes_a_safe_file_name() {
        assert_eq!(file_part("Ann Bee <a@b.c>"), "ann-bee--a-b-c");
        assert_eq!(file_part("../.."), "reviewer");
    }
}
