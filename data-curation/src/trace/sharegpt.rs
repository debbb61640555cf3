//! ShareGPT: a conversation as pairs of who and what, under `conversations` (or `conversation`, `items`).
//!
//! Sources: the ShareGPT dumps that FastChat reads (`{"id", "conversations": [{"from", "value"}]}`), LLaMA-Factory's
//! `data/README.md` (roles human, gpt, observation, function_call; `system`, `tools` beside them).

use super::draft::{Draft, text_at};
use super::{Reject, RejectReason, Trace, chat, reject};
use limbeck_artifact::dataset::{Message, ToolCall, ToolFunction};
use serde_json::Value;

const LISTS: [&str; 3] = ["conversations", "conversation", "items"];

fn turns(record: &Value) -> Option<&Value> {
    LISTS.iter().find_map(|key| record.get(key))
}

pub fn recognises(record: &Value) -> bool {
    let list = turns(record).map(super::draft::structured);
    list.as_ref().and_then(Value::as_array).and_then(|l| l.first()).is_some_and(|turn| turn.get("from").is_some())
}

pub fn read(record: &Value, raw: &[u8]) -> Result<Trace, Reject> {
    let Some(list) = turns(record).map(super::draft::structured) else {
        return reject(RejectReason::MissingMessages, "no conversations");
    };
    let mut messages = chat::messages(&list, "conversations")?;
    let wrote = list.as_array().into_iter().flatten().map(|turn| turn.get("from").and_then(Value::as_str));
    for (message, from) in messages.iter_mut().zip(wrote) {
        if from == Some("function_call") {
            called(message);
        }
    }
    if let Some(system) = text_at(record, &["system", "system_prompt"])
        && messages.first().is_none_or(|m| m.role != "system")
    {
        messages.insert(0, Message::new("system", &system));
    }
    let mut draft = Draft {
        id: text_at(record, &["id"]),
        model: text_at(record, &["model"]),
        customer: text_at(record, &["customer", "user"]),
        messages,
        ..Draft::default()
    };
    draft.answer_from_last_turn();
    if draft.answer.is_none() {
        return reject(RejectReason::MissingResponse, "the last turn is not the assistant's");
    }
    draft.finish(raw)
}

/// A turn whose text is the call: `{"name": …, "arguments": …}`.
fn called(message: &mut Message) {
    let Ok(call) = serde_json::from_str::<Value>(&message.content) else { return };
    if let Some(name) = call.get("name").and_then(Value::as_str) {
        let arguments = call.get("arguments").cloned().unwrap_or_default();
        let function = ToolFunction { name: name.to_string(), arguments };
        message.tool_calls = vec![ToolCall { id: None, kind: "function".to_string(), function }];
        message.content.clear();
    }
}
