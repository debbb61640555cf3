//! Questions as batch files, and the results that a provider made of them: OpenAI's batch format, which others read too. Nothing
//! is sent from here; a person carries the files over.
//!
//! A request's `custom_id` is its question's digest, the name under which a live reply is kept. A result to another prompt, model or
//! temperature is therefore no result of ours, and what one way has answered the other does not ask again.

use super::Endpoint;
use super::ask::Open;
use super::replies::{End, ReplyError};
use super::reply::{Reply, reply};
use super::request::{Api, Question, Sampling, prompt_tokens, text_tokens};
use super::wire::{Fault, Reason, Rejection, said};
use limbeck_artifact::digest::{sha256_file, sha256_hex};
use limbeck_artifact::files::AtomicFile;
use limbeck_artifact::journal;
use limbeck_artifact::untrusted::visible_line;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

/// OpenAI takes no more in a file.
pub const MAX_REQUESTS: usize = 50_000;
const MAX_BYTES: usize = 200_000_000;
/// A result's line may have so many bytes.
const MAX_LINE: u64 = 16 << 20;
/// Lines that are shown of each kind that is out of order.
const SHOWN: usize = 5;

#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    #[error("{} holds another batch already, which may be under way. Try: another name", .0.display())]
    Another(PathBuf),
    #[error("failed to {doing} {}: {source}", path.display())]
    File { doing: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Reply(#[from] ReplyError),
}

/// A file of requests that was written.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchFile {
    pub path: PathBuf,
    pub requests: usize,
    pub bytes: u64,
}

/// What became of a line of results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    Answered,
    /// The question itself was refused: it is not asked again.
    Refused,
    /// It was not answered for no fault of the question: it can be asked again.
    Failed,
    /// The question was answered before this reading.
    Known,
    /// The question was answered by a line before.
    Repeated,
    /// No question of ours has this name.
    Unknown,
    Illegible,
}

impl Fate {
    pub fn name(self) -> &'static str {
        match self {
            Fate::Answered => "answered",
            Fate::Refused => "refused",
            Fate::Failed => "failed",
            Fate::Known => "known",
            Fate::Repeated => "repeated",
            Fate::Unknown => "unknown",
            Fate::Illegible => "illegible",
        }
    }
}

/// What files of results held; each line has one fate.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Taken {
    pub fates: BTreeMap<Fate, u64>,
    /// The first lines that are out of order, as `FILE:LINE: why`, by fate.
    pub shown: BTreeMap<Fate, Vec<String>>,
}

impl Taken {
    pub fn of(&self, fate: Fate) -> u64 {
        self.fates.get(&fate).copied().unwrap_or(0)
    }

    pub fn lines(&self) -> u64 {
        self.fates.values().sum()
    }

    fn note(&mut self, fate: Fate, place: &str, why: &str) {
        *self.fates.entry(fate).or_default() += 1;
        if matches!(fate, Fate::Answered | Fate::Known) {
            return;
        }
        let shown = self.shown.entry(fate).or_default();
        if shown.len() < SHOWN {
            shown.push(format!("{place}: {why}"));
        }
    }
}

/// A line of results that says which question it answers.
struct Line {
    key: String,
    end: Result<Reply, Fault>,
    /// Tokens that a reply without a text cost all the same, where it tells.
    usage: Option<(u64, u64)>,
}

impl Endpoint {
    /// What asking these in a batch would cost beyond what is kept: (requests, prompt tokens as reckoned, most answer tokens).
    pub fn estimate_batch(&self, questions: &[Question], sampling: &Sampling) -> (usize, u64, u64) {
        let (_, open) = self.open(questions, sampling, true);
        let prompt = open.iter().map(|open| open.reckoned).sum();
        (open.len(), prompt, open.len() as u64 * u64::from(sampling.max_tokens))
    }

    /// Writes what is neither answered nor refused yet as requests: to `path`, or to several files numbered after it where one
    /// would hold more than `most` requests or more bytes than are taken. What is there already stays, and must be the same.
    ///
    /// # Errors
    /// Where another batch has the name, or the disk is in the way.
    pub fn write_batch(
        &self,
        questions: &[Question],
        sampling: &Sampling,
        path: &Path,
        most: usize,
    ) -> Result<Vec<BatchFile>, BatchError> {
        let (_, open) = self.open(questions, sampling, true);
        let url = match self.plan.api {
            Api::Chat => "/v1/chat/completions",
            Api::Completions => "/v1/completions",
        };
        let line = |open: &Open| {
            format!(r#"{{"custom_id":"{}","method":"POST","url":"{url}","body":{}}}"#, open.key, open.body) + "\n"
        };
        let (mut texts, mut requests): (Vec<String>, usize) = (Vec::new(), 0);
        let mut files = Vec::new();
        for open in &open {
            let line = line(open);
            match texts.last_mut() {
                Some(text) if requests < most.min(MAX_REQUESTS) && text.len() + line.len() <= MAX_BYTES => {
                    text.push_str(&line);
                    requests += 1;
                }
                _ => {
                    files.extend(texts.last().map(|_| requests));
                    texts.push(line);
                    requests = 1;
                }
            }
        }
        files.extend(texts.last().map(|_| requests));
        let several = texts.len() > 1;
        let named = |i: usize| if several { numbered(path, i + 1) } else { path.to_owned() };
        let files: Vec<BatchFile> = files
            .into_iter()
            .zip(&texts)
            .enumerate()
            .map(|(i, (requests, text))| BatchFile { path: named(i), requests, bytes: text.len() as u64 })
            .collect();
        // All or none: half a batch beside another's half is nobody's.
        for (file, text) in files.iter().zip(&texts) {
            if file.path.exists() && !holds(&file.path, text)? {
                return Err(BatchError::Another(file.path.clone()));
            }
        }
        for (file, text) in files.iter().zip(&texts) {
            write_new(&file.path, text)?;
        }
        Ok(files)
    }

    fn take(
        &mut self,
        line: Line,
        reckoned: u64,
        sampling: &Sampling,
        now: &mut HashSet<String>,
    ) -> Result<(Fate, String), ReplyError> {
        let Line { key, end, usage } = line;
        let before = self.replies.get(&key);
        if let Some(End::Reply(_)) = before {
            return Ok((if now.contains(&key) { Fate::Repeated } else { Fate::Known }, "answered before".to_owned()));
        }
        let fault = match end {
            Ok(reply) => {
                let reply = Reply { at: dated(&reply).unwrap_or_else(self.plan.clock), batch: true, ..reply };
                self.pay_for(&key, &reply, reckoned)?;
                self.replies.add(&key, End::Reply(reply))?;
                now.insert(key);
                return Ok((Fate::Answered, String::new()));
            }
            Err(fault) => fault,
        };
        let again = fault.is_passing() || matches!(fault, Fault::Denied { .. });
        let reason = match &fault {
            // Its words are the batch's, not a server's that could not be reached.
            Fault::NoConnection(_) => Reason::NoResult,
            fault => fault.reason(),
        };
        let detail = match &fault {
            Fault::NoConnection(why) => why.clone(),
            fault => format!("it {}", fault.told()),
        };
        // The same line read twice is charged once.
        if let Some(End::Rejected(known)) = before
            && (known.reason, &known.detail) == (reason, &detail)
        {
            return Ok((if now.contains(&key) { Fate::Repeated } else { Fate::Known }, detail));
        }
        now.insert(key.clone());
        if fault.may_cost() {
            let (prompt_tokens, completion_tokens) = usage.unwrap_or((reckoned, u64::from(sampling.max_tokens)));
            self.charge(&key, [prompt_tokens, completion_tokens], reason.name())?;
        }
        let rejection = Rejection { reason, detail: detail.clone(), again, at: (self.plan.clock)(), retries: 0 };
        self.replies.add(&key, End::Rejected(rejection))?;
        Ok((if again { Fate::Failed } else { Fate::Refused }, detail))
    }

    fn pay_for(&mut self, key: &str, reply: &Reply, reckoned: u64) -> Result<(), ReplyError> {
        let (prompt, completion) = (reply.prompt_tokens.unwrap_or(0), reply.completion_tokens.unwrap_or(0));
        let price = self.plan.budget.price;
        self.purse.pay(price.map_or(0.0, |price| price.of(prompt, completion)) * self.plan.batch_share);
        let lacking = [
            if reply.prompt_tokens.is_none() { reckoned } else { 0 },
            if reply.completion_tokens.is_none() { text_tokens(&reply.text) } else { 0 },
        ];
        match lacking {
            [0, 0] => Ok(()),
            lacking => self.charge(key, lacking, "reckoned: the reply tells no usage"),
        }
    }

    fn charge(&mut self, key: &str, [prompt_tokens, completion_tokens]: [u64; 2], why: &str) -> Result<(), ReplyError> {
        self.purse.pay(self.plan.budget.price.map_or(0.0, |price| price.of(prompt_tokens, completion_tokens)));
        self.replies.add(key, End::Charged { prompt_tokens, completion_tokens, why: why.to_owned() })
    }
}

/// What may be answered by a file of results.
pub struct Batched<'a> {
    pub endpoint: &'a mut Endpoint,
    pub questions: &'a [Question],
    pub sampling: &'a Sampling,
}

/// Takes results in as if they had been answered live: each is kept under its question's name before the next is looked at.
/// Lines that are no result of these questions are told and have no other consequence.
///
/// # Errors
/// When a file can't be read, or a reply can't be kept.
pub fn read_batch(asked: &mut [Batched<'_>], paths: &[PathBuf]) -> Result<Taken, BatchError> {
    // By name: whose question it is, and its prompt's tokens as reckoned.
    let mut named: HashMap<String, (usize, u64)> = HashMap::new();
    for (whose, Batched { endpoint, questions, sampling }) in asked.iter().enumerate() {
        let (keys, _) = endpoint.open(questions, sampling, true);
        let reckoned = questions.iter().map(|question| prompt_tokens(&question.messages).0);
        named.extend(keys.into_iter().zip(reckoned).map(|(key, reckoned)| (key, (whose, reckoned))));
    }
    let (mut taken, mut now) = (Taken::default(), HashSet::new());
    for path in paths {
        let fails = |source| BatchError::File { doing: "read the results in", path: path.clone(), source };
        let mut file = BufReader::new(File::open(path).map_err(fails)?);
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let (mut bytes, mut number) = (Vec::new(), 0u64);
        loop {
            bytes.clear();
            number += 1;
            if (&mut file).take(MAX_LINE).read_until(b'\n', &mut bytes).map_err(fails)? == 0 {
                break;
            }
            let place = format!("{}:{number}", visible_line(&name));
            if bytes.len() as u64 == MAX_LINE && bytes.last() != Some(&b'\n') {
                skip_line(&mut file).map_err(fails)?;
                taken.note(Fate::Illegible, &place, &format!("more than {} MiB", MAX_LINE >> 20));
            } else if !bytes.trim_ascii().is_empty() {
                let (fate, why) = match line(&bytes) {
                    Err(why) => (Fate::Illegible, why),
                    Ok(line) => match named.get(&line.key) {
                        None => (Fate::Unknown, "its custom_id is none of ours".to_owned()),
                        Some((whose, reckoned)) => {
                            let Batched { endpoint, sampling, .. } = &mut asked[*whose];
                            endpoint.take(line, *reckoned, sampling, &mut now)?
                        }
                    },
                };
                taken.note(fate, &place, &why);
            }
        }
        for asked in asked.iter() {
            asked.endpoint.replies.sync()?;
        }
    }
    Ok(taken)
}

/// When the provider says that it answered.
fn dated(reply: &Reply) -> Option<String> {
    Some(reply.at.clone()).filter(|at| !at.is_empty())
}

/// A line of results or of errors: `{"custom_id", "response": {"status_code", "body"}, "error"}`.
fn line(bytes: &[u8]) -> Result<Line, String> {
    let value: Value = serde_json::from_slice(bytes).map_err(|e| format!("no JSON (column {})", e.column()))?;
    let key = value.get("custom_id").and_then(Value::as_str).ok_or("it has no custom_id")?.to_owned();
    let response = value.get("response").filter(|response| !response.is_null());
    let Some(response) = response else {
        let error = value.get("error").filter(|error| !error.is_null());
        let word = |at: &str| error.and_then(|error| error.get(at)).and_then(Value::as_str);
        let told = match (word("code"), word("message")) {
            (Some(code), Some(message)) => format!("{code}: {message}"),
            (one, other) => one.or(other).unwrap_or("neither a response nor an error").to_owned(),
        };
        let told = visible_line(&told).chars().take(300).collect();
        return Ok(Line { key, end: Err(Fault::NoConnection(told)), usage: None });
    };
    let body = response.get("body").unwrap_or(&Value::Null);
    let count = |at: &str| body.pointer(at).and_then(Value::as_u64);
    let usage = count("/usage/prompt_tokens").zip(count("/usage/completion_tokens"));
    let status = response.get("status_code").and_then(Value::as_u64).unwrap_or(200);
    let status = u16::try_from(status).unwrap_or(u16::MAX);
    let message = || said(&body.to_string());
    let end = match status {
        200..=299 => reply(body).map(|reply| {
            let at = body.get("created").and_then(Value::as_i64).and_then(journal::of_unix);
            Reply { at: at.unwrap_or_default(), ..reply }
        }),
        429 => Err(Fault::Busy { retry_after: None }),
        408 | 500.. => Err(Fault::Server { status, retry_after: None }),
        401..=404 => Err(Fault::Denied { status, message: message() }),
        _ => Err(Fault::Refused { status, message: message() }),
    };
    Ok(Line { key, end, usage })
}

fn skip_line(file: &mut impl BufRead) -> io::Result<()> {
    loop {
        let read = file.fill_buf()?;
        let (n, ended) = match read.iter().position(|b| *b == b'\n') {
            Some(at) => (at + 1, true),
            None => (read.len(), read.is_empty()),
        };
        file.consume(n);
        if ended {
            return Ok(());
        }
    }
}

/// `batch.jsonl` as `batch-001.jsonl`.
fn numbered(path: &Path, number: usize) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let end = path.extension().map_or_else(String::new, |end| format!(".{}", end.to_string_lossy()));
    path.with_file_name(format!("{stem}-{number:03}{end}"))
}

fn holds(path: &Path, text: &str) -> Result<bool, BatchError> {
    let found =
        sha256_file(path).map_err(|source| BatchError::File { doing: "read", path: path.to_owned(), source })?;
    Ok(found == sha256_hex(text.as_bytes()))
}

fn write_new(path: &Path, text: &str) -> Result<(), BatchError> {
    let fails = |source| BatchError::File { doing: "write", path: path.to_owned(), source };
    let mut file = AtomicFile::create(path).map_err(fails)?;
    file.write_all(text.as_bytes()).map_err(fails)?;
    match file.commit_new().map_err(fails)? || holds(path, text)? {
        true => Ok(()),
        false => Err(BatchError::Another(path.to_owned())),
    }
}
