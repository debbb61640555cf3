//! Alpaca: an instruction, an input to it that may be empty, and the output.
//!
//! Sources: tatsu-lab/stanford_alpaca `alpaca_data.json` (`instruction`, `input`, `output`); LLaMA-Factory
//! `data/README.md` (the user's message is instruction, line break, input; `system` and `history` beside them).

use super::draft::{Draft, text_at};
use super::{Reject, RejectReason, Trace, chat, reject};
use limbeck_artifact::dataset::Message;
use serde_json::Value;

pub fn recognises(record: &Value) -> bool {
    record.get("instruction").is_some() && (record.get("output").is_some() || record.get("response").is_some())
}

pub fn read(record: &Value, raw: &[u8]) -> Result<Trace, Reject> {
    let text = |key: &str| record.get(key).map(chat::as_text).unwrap_or_default();
    if record.get("instruction").is_none() {
        return reject(RejectReason::MissingMessages, "no instruction");
    }
    let mut messages = Vec::new();
    if let Some(system) = text_at(record, &["system"]) {
        messages.push(Message::new("system", &system));
    }
    for turn in record.get("history").and_then(Value::as_array).into_iter().flatten() {
        if let Some([asked, answered]) = turn.as_array().map(Vec::as_slice) {
            messages.push(Message::new("user", &chat::as_text(asked)));
            messages.push(Message::new("assistant", &chat::as_text(answered)));
        }
    }
    let (instruction, input) = (text("instruction"), text("input"));
    let asked = [instruction.as_str(), input.as_str()];
    let asked: Vec<&str> = asked.into_iter().filter(|t| !t.trim().is_empty()).collect();
    messages.push(Message::new("user", &asked.join("\n")));
    let answer = ["output", "response"].iter().find_map(|key| record.get(key)).filter(|v| !v.is_null());
    let draft = Draft {
        id: text_at(record, &["id"]),
        model: text_at(record, &["model"]),
        messages,
        answer: answer.map(chat::as_text),
        ..Draft::default()
    };
    draft.finish(raw)
}
