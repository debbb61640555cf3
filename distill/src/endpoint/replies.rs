//! Replies that are kept: a file of JSON lines, only ever appended to, one line a question's end. A kill loses at most what was
//! in flight; a torn last line is as good as none. The same file is what `--record` writes and `--replay` reads.

use super::reply::Reply;
use super::wire::Rejection;
use limbeck_artifact::files::write_atomic;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
#[error("failed to {doing} the kept replies in {}: {source}. Try: check that the folder exists, is writable and has room", path.display())]
pub struct ReplyError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// How a question ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum End {
    Reply(Reply),
    Rejected(Rejection),
    /// An attempt without an answer that the provider may have reckoned all the same, in tokens.
    Charged {
        prompt_tokens: u64,
        completion_tokens: u64,
        why: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Line {
    key: String,
    #[serde(flatten)]
    end: End,
}

/// All that is kept, by the questions' digests.
#[derive(Debug, Default)]
pub struct Replies {
    known: HashMap<String, End>,
    /// Tokens of what was asked in vain, in order to reckon what was spent.
    charged: Vec<(u64, u64)>,
    file: Option<File>,
    path: PathBuf,
    /// Lines that are none of ours.
    illegible: u64,
}

impl Replies {
    /// Reads what is kept at `path`, to be added to; a file that is not there yet is made with the first reply.
    ///
    /// # Errors
    /// When the file can't be read or written.
    pub fn open(path: &Path) -> Result<Replies, ReplyError> {
        let fails = |doing| move |source| ReplyError { doing, path: path.to_owned(), source };
        let mut replies = match File::open(path) {
            Ok(_) => Replies::read(path)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Replies { path: path.to_owned(), ..Replies::default() },
            Err(e) => return Err(fails("open")(e)),
        };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(fails("make a folder for"))?;
        }
        let mut file = File::options().create(true).read(true).append(true).open(path).map_err(fails("open"))?;
        // What a kill left without its end stays a line of its own, which nobody reads.
        let ends_well = match file.seek(SeekFrom::End(0)).map_err(fails("read"))? {
            0 => true,
            _ => {
                let mut last = [0u8];
                file.seek(SeekFrom::End(-1)).and_then(|_| file.read_exact(&mut last)).map_err(fails("read"))?;
                last == *b"\n"
            }
        };
        if !ends_well {
            file.write_all(b"\n").map_err(fails("add to"))?;
        }
        replies.file = Some(file);
        Ok(replies)
    }

    /// Reads a recording; nothing is added to it.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn read(path: &Path) -> Result<Replies, ReplyError> {
        let fails = |source| ReplyError { doing: "read", path: path.to_owned(), source };
        let mut replies = Replies { path: path.to_owned(), ..Replies::default() };
        for line in BufReader::new(File::open(path).map_err(fails)?).split(b'\n') {
            let line = line.map_err(fails)?;
            if line.trim_ascii().is_empty() {
                continue;
            }
            match serde_json::from_slice::<Line>(&line) {
                Ok(line) => replies.take(line.key, line.end),
                Err(_) => replies.illegible += 1,
            }
        }
        Ok(replies)
    }

    fn take(&mut self, key: String, end: End) {
        match end {
            End::Charged { prompt_tokens, completion_tokens, .. } => {
                self.charged.push((prompt_tokens, completion_tokens))
            }
            // A reply is never taken back by a later failure.
            End::Rejected(_) if matches!(self.known.get(&key), Some(End::Reply(_))) => {}
            end => drop(self.known.insert(key, end)),
        }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&End> {
        self.known.get(key)
    }

    /// Writes the end of a question before anybody learns of it; [`Replies::sync`] makes it outlive the machine.
    pub(crate) fn add(&mut self, key: &str, end: End) -> Result<(), ReplyError> {
        let fails = |source| ReplyError { doing: "add to", path: self.path.clone(), source };
        if let Some(file) = &mut self.file {
            let line = Line { key: key.to_owned(), end: end.clone() };
            let text = serde_json::to_string(&line).map_err(|e| fails(e.into()))? + "\n";
            file.write_all(text.as_bytes()).map_err(fails)?;
        }
        self.take(key.to_owned(), end);
        Ok(())
    }

    pub(crate) fn sync(&self) -> Result<(), ReplyError> {
        let fails = |source| ReplyError { doing: "sync", path: self.path.clone(), source };
        self.file.as_ref().map_or(Ok(()), |file| file.sync_data().map_err(fails))
    }

    /// Tokens of all that was asked, answered or not: of prompts, of answers, and whether in a batch.
    pub(crate) fn tokens(&self) -> Vec<(u64, u64, bool)> {
        let of = |end: &End| match end {
            End::Reply(reply) => {
                Some((reply.prompt_tokens.unwrap_or(0), reply.completion_tokens.unwrap_or(0), reply.batch))
            }
            _ => None,
        };
        let charged = self.charged.iter().map(|(prompt, completion)| (*prompt, *completion, false));
        self.known.values().filter_map(of).chain(charged).collect()
    }

    /// Lines that could not be understood: at most one after a kill.
    pub fn illegible(&self) -> u64 {
        self.illegible
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was answered or rejected of `keys`, as a recording: sorted, so that the same replies are the same bytes.
    pub(crate) fn recording<'k>(&self, keys: impl Iterator<Item = &'k String>) -> BTreeMap<String, End> {
        keys.filter_map(|key| Some((key.clone(), self.known.get(key)?.clone()))).collect()
    }

    /// Adds a recording to the file at `path`, or makes it.
    ///
    /// # Errors
    /// When it can't be read or written.
    pub(crate) fn record(path: &Path, of: BTreeMap<String, End>) -> Result<(), ReplyError> {
        let fails = |source| ReplyError { doing: "write", path: path.to_owned(), source };
        let mut all = match path.exists() {
            true => Replies::read(path)?.known.into_iter().collect(),
            false => BTreeMap::new(),
        };
        all.extend(of);
        let mut text = String::new();
        for (key, end) in all {
            text += &serde_json::to_string(&Line { key, end }).map_err(|e| fails(e.into()))?;
            text.push('\n');
        }
        write_atomic(path, text.as_bytes()).map_err(fails)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Reason;

    fn reply(text: &str) -> End {
        End::Reply(Reply { text: text.to_owned(), prompt_tokens: Some(5), latency_ms: 1.25, ..Reply::default() })
    }

    fn rejection() -> End {
        let detail = "it took too long".to_owned();
        End::Rejected(Rejection { reason: Reason::Timeout, detail, again: true, at: String::new(), retries: 3 })
    }

    #[test]
    fn replies_come_back_and_a_torn_line_costs_only_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("arms/live.jsonl");
        let mut kept = Replies::open(&path).unwrap();
        kept.add("a", reply("one")).unwrap();
        kept.add("b", rejection()).unwrap();
        kept.add("b", End::Charged { prompt_tokens: 7, completion_tokens: 2, why: "timeout".to_owned() }).unwrap();
        drop(kept);
        let whole = std::fs::read(&path).unwrap();
        let first = whole.iter().position(|b| *b == b'\n').unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let mut kept = Replies::open(&path).unwrap();
            assert!(kept.illegible() <= 1, "cut at {cut}");
            kept.add("c", reply("after")).unwrap();
            drop(kept);
            let again = Replies::read(&path).unwrap();
            assert_eq!(again.get("c"), Some(&reply("after")), "cut at {cut}");
            assert_eq!(again.get("a").is_some(), cut >= first, "cut at {cut}");
        }
        std::fs::write(&path, &whole).unwrap();
        let again = Replies::read(&path).unwrap();
        assert_eq!((again.get("a"), again.get("b")), (Some(&reply("one")), Some(&rejection())));
        let mut tokens = again.tokens();
        tokens.sort_unstable();
        assert_eq!(tokens, [(5, 0, false), (7, 2, false)]);
    }

    #[test]
    fn a_recording_is_sorted_and_grows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("live.jsonl");
        let mut kept = Replies::default();
        kept.add("z", reply("last")).unwrap();
        kept.add("a", reply("first")).unwrap();
        let keys = ["z".to_owned(), "a".to_owned(), "lacking".to_owned()];
        Replies::record(&path, kept.recording(keys.iter())).unwrap();
        let first = std::fs::read_to_string(&path).unwrap();
        assert_eq!(first.lines().map(|l| &l[8..9]).collect::<String>(), "az");
        let mut more = Replies::default();
        more.add("m", reply("mid")).unwrap();
        Replies::record(&path, more.recording(["m".to_owned()].iter())).unwrap();
        let second = std::fs::read_to_string(&path).unwrap();
        assert_eq!(second.lines().map(|l| &l[8..9]).collect::<String>(), "amz");
        let mut later = Replies::read(&path).unwrap();
        later.add("a", rejection()).unwrap();
        assert_eq!(later.get("a"), Some(&reply("first")), "a reply stays");
    }
}
