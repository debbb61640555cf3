//! The decision log: a line a request in the format that `limbeck import` reads, so that what was escalated is in
//! tomorrow's review queue. A thread writes and syncs; requests wait for room in its queue, never for the disk.

use super::Serving;
use super::metrics::Outcome;
use super::wire::Chat;
use super::workers::Answered;
use limbeck_artifact::files::append_lines;
use limbeck_artifact::journal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::mpsc::{Receiver, Sender, channel};

const QUEUE: usize = 4096;
/// Lines that are written and synced together.
const BATCH: usize = 512;

/// One request and what became of it.
pub struct Decision<'a> {
    pub id: &'a str,
    pub chat: &'a Chat,
    pub answered: &'a Answered,
    /// What the caller got, or would have got.
    pub completion: Option<&'a Value>,
    pub outcome: Outcome,
    pub took: Duration,
}

enum Entry {
    Line { day: String, text: String },
    End,
}

#[derive(Default)]
struct State {
    written: AtomicU64,
    lost: AtomicU64,
    fault: Mutex<Option<String>>,
}

pub struct Decisions {
    entries: Sender<Entry>,
    state: Arc<State>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Decisions {
    /// Writes to `decisions-YYYY-MM-DD.jsonl` in `dir`, a file a day (UTC).
    ///
    /// # Errors
    /// When the folder can't be written to.
    pub fn start(dir: &Path) -> std::io::Result<Decisions> {
        // Known before the first request, not after it.
        append_lines(&file(dir, &day(&journal::now())), &[] as &[&str])?;
        let (entries, received) = channel(QUEUE);
        let state = Arc::new(State::default());
        let (dir, shared) = (dir.to_owned(), Arc::clone(&state));
        let thread = std::thread::spawn(move || write_all(&dir, received, &shared));
        Ok(Decisions { entries, state, thread: Mutex::new(Some(thread)) })
    }

    pub async fn write(&self, serving: &Serving, decision: &Decision<'_>) {
        let now = journal::now();
        let text = line(serving, decision, &now).to_string();
        if self.entries.send(Entry::Line { day: day(&now), text }).await.is_err() {
            self.state.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn written(&self) -> u64 {
        self.state.written.load(Ordering::Relaxed)
    }

    pub fn lost(&self) -> u64 {
        self.state.lost.load(Ordering::Relaxed)
    }

    /// Why the last lines could not be written, while that is so.
    pub fn fault(&self) -> Option<String> {
        self.state.fault.lock().map_or(None, |fault| fault.clone())
    }

    /// Everything that was handed in is on disk when this returns.
    pub fn finish(&self) {
        let thread = self.thread.lock().map_or(None, |mut thread| thread.take());
        if let Some(thread) = thread {
            let _ = self.entries.blocking_send(Entry::End);
            let _ = thread.join();
        }
    }
}

fn write_all(dir: &Path, mut received: Receiver<Entry>, state: &State) {
    let mut going_on = true;
    while going_on {
        let mut days: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut next = received.blocking_recv();
        let mut n = 0;
        loop {
            match next {
                Some(Entry::Line { day, text }) => days.entry(day).or_default().push(text),
                Some(Entry::End) | None => {
                    going_on = false;
                    break;
                }
            }
            n += 1;
            next = match received.try_recv() {
                Ok(entry) if n < BATCH => Some(entry),
                // Not lost: it begins the next batch.
                Ok(entry) => {
                    write(dir, std::mem::take(&mut days), state);
                    n = 0;
                    Some(entry)
                }
                Err(_) => break,
            };
        }
        write(dir, days, state);
    }
}

fn write(dir: &Path, days: BTreeMap<String, Vec<String>>, state: &State) {
    for (day, lines) in days {
        let n = lines.len() as u64;
        let written = append_lines(&file(dir, &day), &lines);
        let counter = if written.is_ok() { &state.written } else { &state.lost };
        counter.fetch_add(n, Ordering::Relaxed);
        if let Ok(mut fault) = state.fault.lock() {
            *fault = written.err().map(|e| e.to_string());
        }
    }
}

fn file(dir: &Path, day: &str) -> PathBuf {
    dir.join(format!("decisions-{day}.jsonl"))
}

/// Of an RFC 3339 time.
fn day(at: &str) -> String {
    at.chars().take(10).collect()
}

fn line(serving: &Serving, decision: &Decision<'_>, now: &str) -> Value {
    let Decision { id, chat, answered, completion, outcome, took } = decision;
    let told = super::wire::told(serving, answered, *outcome);
    let mut response = completion.cloned().unwrap_or(Value::Null);
    if let Some(object) = response.as_object_mut() {
        object.remove("limbeck");
    }
    // The review queue knows what to look at by these words.
    let feedback = match answered.route {
        "serve" => None,
        "serve_and_review" => Some("low_confidence"),
        _ => Some("escalated"),
    };
    json!({
        "id": id,
        "time": now,
        "customer": chat.user(),
        "request": chat.request,
        "response": response,
        "latency_ms": (took.as_secs_f64() * 1e6).round() / 1e3,
        "feedback": feedback,
        "limbeck": told,
    })
}

/// An id that no other request has.
pub fn id() -> String {
    format!("chatcmpl-{:016x}{:08x}", random(), random() as u32)
}

/// 64 bits from the keys that the standard library draws for hash maps: unique, no secret.
pub fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
