//! Calls that were logged as several events: OpenTelemetry's GenAI conventions 1.28 to 1.36 write a log record a message, and
//! one for the choice. Records that share a span are put together into one, in bounded memory. Where a folder is watched, a
//! call waits beyond the end of a file: its choice may come in the next.

use super::source::Record;
use crate::trace::{Reject, RejectReason, json};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::{HashMap, VecDeque};

/// Calls that wait for their choice, and bytes of their records; the oldest is given up beyond.
const MAX_OPEN: usize = 4096;
const MAX_OPEN_BYTES: usize = 64 << 20;

#[derive(Clone, Debug, Default)]
pub struct Join {
    open: HashMap<String, Call>,
    order: VecDeque<String>,
    bytes: usize,
    /// Where the records that come now stand, and the time in seconds since 1970.
    pub at: Piece,
    pub now: u64,
    /// First pieces of calls that were given up and began in another file than the one that is read.
    pub lost: Vec<Piece>,
}

/// Where a line is that holds an event of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    pub file: String,
    pub line: u64,
    /// Of the line in the file's content.
    pub offset: u64,
}

/// A call that waits: no text of it, which nobody has redacted, but where the text is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    pub span: String,
    /// Seconds since 1970.
    pub since: u64,
    pub pieces: Vec<Piece>,
}

#[derive(Clone, Debug)]
pub struct Call {
    since: u64,
    pieces: Vec<Piece>,
    begun: Value,
    events: Vec<Value>,
    bytes: usize,
}

impl Call {
    /// Its line in the file that is read, or the line that ended it.
    fn line(&self, at: &Piece, line: u64) -> u64 {
        self.pieces.first().filter(|first| first.file == at.file).map_or(line, |first| first.line)
    }
}

/// What became of a record.
pub enum Joined {
    /// It is no event of this kind.
    No,
    /// It waits, or completed a call; calls that were given up come first.
    Taken(Vec<Record<'static>>),
}

impl Join {
    pub fn take(&mut self, line: u64, bytes: &[u8]) -> Joined {
        // Most records are none: a search is cheaper than a parse.
        let has = |what: &[u8]| bytes.windows(what.len()).any(|w| w == what);
        if !has(b"\"body\"") || !(has(b"gen_ai.choice") || has(b".message\"")) {
            return Joined::No;
        }
        let Ok(record) = json(bytes) else { return Joined::No };
        let (Some(name), Some(span)) = (event_name(&record), text(&record, &["spanId", "span_id"])) else {
            return Joined::No;
        };
        let last = match name.as_str() {
            "gen_ai.choice" => true,
            "gen_ai.system.message" | "gen_ai.user.message" | "gen_ai.assistant.message" | "gen_ai.tool.message" => {
                false
            }
            _ => return Joined::No,
        };
        let mut out = Vec::new();
        let time = record.get("timeUnixNano").or(record.get("observedTimeUnixNano")).cloned().unwrap_or_default();
        let piece = Piece { line, ..self.at.clone() };
        let call = self.open.entry(span.clone()).or_insert_with(|| {
            self.order.push_back(span.clone());
            Call { since: self.now, pieces: Vec::new(), begun: time.clone(), events: Vec::new(), bytes: 0 }
        });
        if call.pieces.last() != Some(&piece) {
            call.pieces.push(piece);
        }
        call.events.push(json!({"name": name, "attributes": content(&record)}));
        call.bytes += bytes.len();
        self.bytes += bytes.len();
        if last && let Some(call) = self.close(&span) {
            let whole = json!({
                "spanId": span,
                "startTimeUnixNano": call.begun,
                "endTimeUnixNano": time,
                "attributes": {},
                "events": call.events,
            });
            out.push(Record::Row { line: call.line(&self.at, line), value: whole });
        }
        while self.order.len() > MAX_OPEN || self.bytes > MAX_OPEN_BYTES {
            let Some(oldest) = self.order.front().cloned() else { break };
            let Some(call) = self.close(&oldest) else { break };
            match call.pieces.first() {
                Some(first) if first.file != self.at.file => self.lost.push(first.clone()),
                _ => out.push(given_up(call.line(&self.at, line))),
            }
        }
        Joined::Taken(out)
    }

    /// Takes events of a waiting call again, from a line that holds them.
    pub fn take_again(&mut self, waiting: &Waiting, piece: &Piece, bytes: &[u8]) {
        let Ok(record) = json(bytes) else { return };
        if text(&record, &["spanId", "span_id"]).as_deref() == Some(waiting.span.as_str()) {
            (self.at, self.now) = (piece.clone(), waiting.since);
            self.take(piece.line, bytes);
        }
    }

    pub fn waits_for(&self, span: &str) -> bool {
        self.open.contains_key(span)
    }

    /// The calls that wait, the longest first.
    pub fn waiting(&self) -> Vec<Waiting> {
        let calls = self.order.iter().filter_map(|span| Some((span, self.open.get(span)?)));
        calls.map(|(span, c)| Waiting { span: span.clone(), since: c.since, pieces: c.pieces.clone() }).collect()
    }

    /// Gives up the calls that wait since before `since`.
    pub fn give_up(&mut self, since: u64) {
        while let Some(oldest) = self.order.front().cloned()
            && self.open.get(&oldest).is_some_and(|call| call.since < since)
        {
            let call = self.close(&oldest);
            self.lost.extend(call.and_then(|call| call.pieces.into_iter().next()));
        }
    }

    /// Forgets a call.
    pub fn close(&mut self, span: &str) -> Option<Call> {
        self.order.retain(|s| s != span);
        let call = self.open.remove(span)?;
        self.bytes -= call.bytes;
        Some(call)
    }

    /// At the end: calls whose choice never came.
    pub fn finish(&mut self) -> Vec<Record<'static>> {
        let order = std::mem::take(&mut self.order);
        let open: Vec<Call> = order.iter().filter_map(|span| self.open.remove(span)).collect();
        self.bytes = 0;
        open.into_iter().map(|call| given_up(call.line(&self.at, 0))).collect()
    }
}

fn given_up(line: u64) -> Record<'static> {
    Record::Bad { line, reject: without_choice() }
}

/// Why a call was given up.
pub fn without_choice() -> Reject {
    let detail = "the events of a call without its gen_ai.choice".to_string();
    Reject { reason: RejectReason::MissingResponse, detail }
}

fn text(record: &Value, keys: &[&str]) -> Option<String> {
    keys.iter().find_map(|key| Some(record.get(key)?.as_str()?.to_string())).filter(|s| !s.is_empty())
}

fn event_name(record: &Value) -> Option<String> {
    text(record, &["eventName", "event_name"]).or_else(|| {
        let named = |pair: &&Value| pair.get("key").and_then(Value::as_str) == Some("event.name");
        let pair = record.get("attributes")?.as_array()?.iter().find(named)?;
        Some(pair.get("value")?.get("stringValue")?.as_str()?.to_string())
    })
}

/// The event's body, as OTLP writes it; its attributes where the body is empty.
fn content(record: &Value) -> Value {
    let body = record.get("body").map(crate::trace::any_value).unwrap_or_default();
    match body {
        Value::Object(_) => body,
        _ => {
            let pairs = record.get("attributes").and_then(Value::as_array).into_iter().flatten();
            let pairs = pairs.filter_map(|pair| {
                Some((pair.get("key")?.as_str()?.to_string(), crate::trace::any_value(pair.get("value")?)))
            });
            Value::Object(pairs.collect::<Map<String, Value>>())
        }
    }
}
