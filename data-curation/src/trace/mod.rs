//! A recorded call as a trace, whatever wrote it down, or the reason why it is none. Nothing here trusts the record, and
//! no reason repeats its content: what is rejected was never redacted.

mod alpaca;
pub mod chat;
mod columns;
pub(crate) mod draft;
mod format;
mod langfuse;
mod langsmith;
mod openai;
mod openinference;
mod openpipe;
mod otel;
mod sharegpt;
mod stream;
mod tensorzero;
#[cfg(test)]
mod tests;

pub use columns::Columns;
pub use format::Format;
pub(crate) use otel::any as any_value;

use crate::redact::{Kind, Redactor};
use crate::taxonomy::Answers;
use limbeck_artifact::dataset::Message;
use limbeck_artifact::digest::{canonical_json, sha256_hex};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// A recorded call: what was asked, what the model answered, and what production knew about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// The log's own id, or `sha256:` and the first 32 hex digits of the record's digest.
    pub id: String,
    pub customer: Option<String>,
    /// The conversation that the call belongs to, as the log names it.
    pub thread: Option<String>,
    /// RFC 3339, UTC.
    pub at: Option<String>,
    /// Everything before the answer.
    pub messages: Vec<Message>,
    /// What the model said; where it called tools, the calls as JSON: `{"name": …, "arguments": …}`, or a list of them.
    pub answer: String,
    pub model: String,
    pub finish_reason: Option<String>,
    pub latency_ms: Option<f64>,
    pub prompt_tokens: Option<u64>,
    pub completion_tokens: Option<u64>,
    pub feedback: Option<String>,
    /// Share of several draws that say this answer, as `limbeck teach` found it; none of a single draw.
    pub agreement: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RejectReason {
    LineTooLong,
    InvalidUtf8,
    InvalidJson,
    TooDeep,
    WrongType,
    MissingMessages,
    EmptyMessage,
    MissingResponse,
    /// A span or an observation of something else than a model's call.
    NotACall,
    /// The call ended in an error: there is no answer to learn from.
    CallFailed,
    /// What comes after can't be read: compressed data that end early, a document that is no JSON from here on.
    DamagedFile,
}

impl RejectReason {
    pub fn name(self) -> &'static str {
        match self {
            RejectReason::LineTooLong => "line_too_long",
            RejectReason::InvalidUtf8 => "invalid_utf8",
            RejectReason::InvalidJson => "invalid_json",
            RejectReason::TooDeep => "too_deep",
            RejectReason::WrongType => "wrong_type",
            RejectReason::MissingMessages => "missing_messages",
            RejectReason::EmptyMessage => "empty_message",
            RejectReason::MissingResponse => "missing_response",
            RejectReason::NotACall => "not_a_call",
            RejectReason::CallFailed => "call_failed",
            RejectReason::DamagedFile => "damaged_file",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    pub reason: RejectReason,
    /// Which field, which column; never a value.
    pub detail: String,
}

fn reject<T>(reason: RejectReason, detail: impl Into<String>) -> Result<T, Reject> {
    Err(Reject { reason, detail: detail.into() })
}

/// Levels of nesting that are read: serde_json's own bound, which keeps its recursion off the end of the stack.
pub const MAX_DEPTH: usize = 128;

/// A record's bytes as JSON.
///
/// # Errors
/// What is no UTF-8, no JSON or nested too deeply, with the column.
pub fn json(record: &[u8]) -> Result<Value, Reject> {
    let text = std::str::from_utf8(record).or_else(|e| {
        reject(RejectReason::InvalidUtf8, format!("byte {} is no UTF-8; export the log as UTF-8", e.valid_up_to() + 1))
    })?;
    serde_json::from_str(text.trim_start_matches('\u{feff}')).or_else(|e| {
        let deep = e.to_string().starts_with("recursion limit");
        let (reason, what) = if deep {
            (RejectReason::TooDeep, format!("nested deeper than {MAX_DEPTH} levels"))
        } else if e.is_eof() {
            (RejectReason::InvalidJson, "ends early".to_string())
        } else {
            (RejectReason::InvalidJson, "syntax error".to_string())
        };
        reject(reason, format!("{what} at column {}", e.column()))
    })
}

/// Reads a line of a chat-completion log: [`Format::OpenAi`].
///
/// # Errors
/// Why it is no trace.
pub fn parse(line: &[u8]) -> Result<Trace, Reject> {
    Format::OpenAi.read(&json(line)?, line, &Columns::default())
}

/// What a person or a near-duplicate search reads of a prompt: the one user message, or all turns but the system's.
pub fn visible_message(messages: &[Message]) -> String {
    let turns: Vec<&Message> = messages.iter().filter(|m| m.role != "system" && m.role != "developer").collect();
    match turns.as_slice() {
        [one] => one.content.clone(),
        many => many.iter().map(|m| format!("{}: {}", m.role, said(m))).collect::<Vec<_>>().join("\n"),
    }
}

/// A message's text, and the calls that it makes.
fn said(message: &Message) -> String {
    let calls = message.tool_calls.iter().map(|c| format!("{}({})", c.function.name, c.function.arguments));
    let text = Some(message.content.clone()).filter(|text| !text.is_empty() || message.tool_calls.is_empty());
    text.into_iter().chain(calls).collect::<Vec<_>>().join("\n")
}

impl Trace {
    /// Redacts every text of the trace as one document. A customer or a thread that is itself an address or a number, or an id
    /// that is an address, becomes its digest, so that it still groups.
    pub fn redact(&mut self, redactor: &Redactor) -> BTreeMap<Kind, u64> {
        let mut document = redactor.document();
        for message in &mut self.messages {
            message.content = document.redact(&message.content);
            for call in &mut message.tool_calls {
                redact_arguments(&mut call.function.arguments, &mut |text| document.redact(text));
            }
        }
        self.answer = document.redact(&self.answer);
        self.feedback = self.feedback.take().map(|f| document.redact(&f));
        for name in [&mut self.customer, &mut self.thread].into_iter().flatten() {
            if document.redact(name) != *name {
                *name = pseudonym(name);
            }
        }
        // Only an address: many a random id looks like a telephone number, and a trace must be found again by its id.
        if redactor.has_email(&self.id) {
            self.id = pseudonym(&self.id);
        }
        document.counts().clone()
    }

    /// The label that the answer is; none when it is outside the taxonomy or the token limit cut it off.
    pub fn label<'l>(&self, labels: &'l [String]) -> Option<&'l str> {
        crate::taxonomy::label_of(labels, &self.answer).filter(|_| !self.is_cut_off())
    }

    /// The answer as the task reads it.
    ///
    /// # Errors
    /// Why it is none that counts.
    pub fn read<'a>(&self, answers: &'a Answers) -> Result<Cow<'a, str>, String> {
        match self.is_cut_off() {
            true => Err("the token limit cut it off".to_string()),
            false => answers.read(&self.answer),
        }
    }

    fn is_cut_off(&self) -> bool {
        self.finish_reason.as_deref() == Some("length")
    }

    /// The digest of what a reviewer is shown: a decision holds only for this.
    pub fn shown_sha256(&self) -> String {
        shown_sha256(&visible_message(&self.messages), &self.answer)
    }
}

/// See [`Trace::shown_sha256`].
pub fn shown_sha256(message: &str, answer: &str) -> String {
    sha256_hex(canonical_json(&serde_json::json!({ "answer": answer, "message": message })).as_bytes())
}

fn pseudonym(name: &str) -> String {
    format!("sha256:{}", &sha256_hex(name.as_bytes())[..32])
}

/// Every text of an argument, however deep, goes through `redact`; names of fields stay.
fn redact_arguments(value: &mut Value, redact: &mut impl FnMut(&str) -> String) {
    match value {
        Value::String(text) => *text = redact(text),
        Value::Array(items) => items.iter_mut().for_each(|item| redact_arguments(item, redact)),
        Value::Object(fields) => fields.values_mut().for_each(|field| redact_arguments(field, redact)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
