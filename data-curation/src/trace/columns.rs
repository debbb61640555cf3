//! Tables and JSON under names of one's own: which column is the input, which the output, told by the user or, where the
//! names are the usual ones, seen. A path with dots reaches into JSON.

use super::draft::{Draft, count_at, dig, number_at, rfc3339, structured, text_at, thread_in, time_at};
use super::{Reject, RejectReason, Trace, chat, reject};
use limbeck_artifact::dataset::Message;
use serde_json::Value;
use std::collections::BTreeMap;

/// From a field of a trace to the column that holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns(BTreeMap<&'static str, String>);

/// What can be mapped, in the order in which help names them.
pub const FIELDS: [&str; 14] = [
    "input",
    "output",
    "messages",
    "system",
    "id",
    "customer",
    "thread",
    "time",
    "model",
    "finish_reason",
    "latency_ms",
    "prompt_tokens",
    "completion_tokens",
    "feedback",
];

impl Columns {
    /// # Errors
    /// A field that a trace has not, or no column.
    pub fn set(&mut self, field: &str, column: &str) -> Result<(), String> {
        match FIELDS.iter().find(|f| **f == field) {
            Some(_) if column.is_empty() => Err(format!("no column is named for `{field}`")),
            Some(field) => {
                self.0.insert(field, column.to_string());
                Ok(())
            }
            None => Err(format!("`{field}` is no field of a trace; there are {}", FIELDS.join(", "))),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn get<'v>(&self, record: &'v Value, field: &str) -> Option<&'v Value> {
        dig(record, self.0.get(field)?)
    }
}

const INPUTS: [&str; 12] = [
    "messages",
    "input",
    "prompt",
    "question",
    "query",
    "text",
    "message",
    "instruction",
    "user_message",
    "request",
    "utterance",
    "content",
];
const OUTPUTS: [&str; 11] = [
    "output",
    "answer",
    "response",
    "completion",
    "label",
    "category",
    "intent",
    "target",
    "reply",
    "assistant",
    "generation",
];

fn usual<'n>(record: &Value, names: &[&'n str]) -> Option<&'n str> {
    names.iter().find(|name| record.get(**name).is_some()).copied()
}

pub fn recognises(record: &Value) -> bool {
    usual(record, &INPUTS).is_some() && usual(record, &OUTPUTS).is_some()
}

pub fn read(record: &Value, raw: &[u8], columns: &Columns) -> Result<Trace, Reject> {
    let (prompt_at, answer_at) = places(record, columns)?;
    let Some(asked) = dig(record, &prompt_at) else {
        return reject(RejectReason::MissingMessages, format!("column {} is empty or missing", shown(&prompt_at)));
    };
    let mut messages = chat::prompt(asked, "input")?;
    let system = columns.get(record, "system").or_else(|| record.get("system").or_else(|| record.get("system_prompt")));
    if let Some(system) = system.map(chat::as_text).filter(|s| !s.is_empty())
        && messages.first().is_none_or(|m| m.role != "system")
    {
        messages.insert(0, Message::new("system", &system));
    }
    let mut draft = Draft { messages, ..Draft::default() };
    match answer_at.as_deref().map(|at| (at, dig(record, at))) {
        Some((_, Some(found))) => (draft.answer, draft.finish_reason) = answered(found)?,
        Some((at, None)) => {
            return reject(RejectReason::MissingResponse, format!("column {} is empty or missing", shown(at)));
        }
        None => draft.answer_from_last_turn(),
    }
    // A name of one's own, or the field's.
    let place = |field: &'static str| columns.0.get(field).map_or(field, String::as_str);
    draft.id = text_at(record, &[place("id")]);
    draft.customer = text_at(record, &[place("customer")]);
    draft.thread = text_at(record, &[place("thread")]).or_else(|| thread_in(record));
    draft.at = time_at(record, &[place("time"), "at", "timestamp", "created_at"]).and_then(rfc3339);
    draft.model = text_at(record, &[place("model")]);
    draft.finish_reason = text_at(record, &[place("finish_reason")]).or(draft.finish_reason);
    draft.latency_ms = number_at(record, &[place("latency_ms")]);
    draft.prompt_tokens = count_at(record, &[place("prompt_tokens")]);
    draft.completion_tokens = count_at(record, &[place("completion_tokens")]);
    draft.feedback = text_at(record, &[place("feedback")]);
    draft.finish(raw)
}

/// Where the prompt and the answer are. No answer's place where the messages end with it.
fn places(record: &Value, columns: &Columns) -> Result<(String, Option<String>), Reject> {
    let named = |field: &str| columns.0.get(field).cloned();
    let prompt = named("messages").or(named("input")).or(usual(record, &INPUTS).map(str::to_string));
    let answer = named("output").or_else(|| match named("messages") {
        Some(_) => None,
        None => usual(record, &OUTPUTS).map(str::to_string),
    });
    match prompt {
        Some(prompt) => Ok((prompt, answer)),
        None => reject(
            RejectReason::MissingMessages,
            "no column is known to hold the input; name it: --map input=COLUMN,output=COLUMN",
        ),
    }
}

/// A table's cell is the answer as it stands, JSON too: only what is a structure already is looked into.
fn answered(found: &Value) -> Result<(Option<String>, Option<String>), Reject> {
    match found {
        Value::String(text) => Ok((Some(text.clone()), None)),
        Value::Number(_) | Value::Bool(_) => Ok((Some(found.to_string()), None)),
        other => chat::completion(&structured(other), "output"),
    }
}

/// A column's name comes from the user or from a header that anyone may have written.
fn shown(name: &str) -> String {
    let short: String = name.chars().take(60).collect();
    limbeck_artifact::untrusted::visible_line(&short).into_owned()
}
