//! Calls that were logged as several events: OpenTelemetry's GenAI conventions 1.28 to 1.36 write a log record a message, and
//! one for the choice. Records that share a span are put together into one, in bounded memory.

use super::source::Record;
use crate::trace::{Reject, RejectReason, json};
use serde_json::{Map, Value, json};
use std::collections::{HashMap, VecDeque};

/// Calls that wait for their choice, and bytes of their records; the oldest is given up beyond.
const MAX_OPEN: usize = 4096;
const MAX_OPEN_BYTES: usize = 64 << 20;

#[derive(Default)]
pub struct Join {
    open: HashMap<String, Call>,
    order: VecDeque<String>,
    bytes: usize,
}

struct Call {
    line: u64,
    begun: Value,
    events: Vec<Value>,
    bytes: usize,
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
        let call = self.open.entry(span.clone()).or_insert_with(|| {
            self.order.push_back(span.clone());
            Call { line, begun: time.clone(), events: Vec::new(), bytes: 0 }
        });
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
            out.push(Record::Row { line: call.line, value: whole });
        }
        while self.order.len() > MAX_OPEN || self.bytes > MAX_OPEN_BYTES {
            let Some(oldest) = self.order.front().cloned() else { break };
            out.extend(self.close(&oldest).map(|call| given_up(call.line)));
        }
        Joined::Taken(out)
    }

    fn close(&mut self, span: &str) -> Option<Call> {
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
        open.into_iter().map(|call| given_up(call.line)).collect()
    }
}

fn given_up(line: u64) -> Record<'static> {
    let detail = "the events of a call without its gen_ai.choice".to_string();
    Record::Bad { line, reject: Reject { reason: RejectReason::MissingResponse, detail } }
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
