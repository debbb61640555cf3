//! A streamed response put together again: chunks with deltas, as a list or as the server-sent events they came in,
//! become the response that an unstreamed call would have got.
//!
//! Source: OpenAI API reference, "chat completion chunk object"; `stream_options.include_usage` sends a last chunk without
//! choices that holds the usage. Tool calls come in pieces that share an `index`.

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// A response as one object: merged where it is a list of chunks or a text of server-sent events. None where it is
/// neither.
pub fn whole(response: &Value) -> Option<Value> {
    match response {
        Value::Array(chunks) => merge(chunks.iter().cloned()),
        Value::String(text) if text.trim_start().starts_with("data:") => {
            let events = text.lines().filter_map(|line| line.strip_prefix("data:"));
            merge(events.filter_map(|data| serde_json::from_str(data.trim()).ok()))
        }
        Value::String(_) => match super::draft::structured(response) {
            Value::String(_) => None,
            parsed => whole(&parsed).or(Some(parsed)),
        },
        _ => None,
    }
}

fn merge(chunks: impl Iterator<Item = Value>) -> Option<Value> {
    let mut out = Map::new();
    let mut content: Option<String> = None;
    let mut calls: BTreeMap<u64, Call> = BTreeMap::new();
    let mut finish = Value::Null;
    let mut any = false;
    for chunk in chunks {
        for key in ["id", "model", "created", "usage"] {
            if let Some(found) = chunk.get(key).filter(|v| !v.is_null() && v.as_str() != Some("")) {
                out.insert(key.to_string(), found.clone());
            }
        }
        let choices = chunk.get("choices").and_then(Value::as_array);
        any |= choices.is_some();
        // Of several answers to one prompt the first is the one that was served.
        let first = |c: &&Value| c.get("index").and_then(Value::as_u64).unwrap_or(0) == 0;
        for choice in choices.into_iter().flatten().filter(first) {
            if let Some(why) = choice.get("finish_reason").filter(|v| !v.is_null()) {
                finish = why.clone();
            }
            let Some(delta) = choice.get("delta") else { continue };
            if let Some(piece) = delta.get("content").and_then(Value::as_str) {
                content.get_or_insert_default().push_str(piece);
            }
            for piece in delta.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
                calls.entry(piece.get("index").and_then(Value::as_u64).unwrap_or(0)).or_default().take(piece);
            }
        }
    }
    if !any {
        return None;
    }
    let calls: Vec<Value> = calls.into_values().map(Call::done).collect();
    let mut message = json!({"role": "assistant", "content": content});
    if !calls.is_empty() {
        message["tool_calls"] = Value::Array(calls);
    }
    out.insert("choices".to_string(), json!([{"index": 0, "message": message, "finish_reason": finish}]));
    Some(Value::Object(out))
}

#[derive(Default)]
struct Call {
    id: Option<String>,
    name: String,
    arguments: String,
}

impl Call {
    fn take(&mut self, piece: &Value) {
        if let Some(id) = piece.get("id").and_then(Value::as_str) {
            self.id = Some(id.to_string());
        }
        let function = piece.get("function").unwrap_or(piece);
        let text = |key: &str| function.get(key).and_then(Value::as_str).unwrap_or_default();
        self.name.push_str(text("name"));
        self.arguments.push_str(text("arguments"));
    }

    fn done(self) -> Value {
        json!({"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}})
    }
}
