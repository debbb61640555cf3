//! The messages that are to be answered: lines of text or turns, under the recipe's prompt and redacted as traces are.

use crate::args::Teach;
use crate::exit::{Exit, Failure, Result};
use crate::stages::import::redact_key;
use crate::stages::{Run, cannot};
use limbeck_artifact::dataset::Message;
use limbeck_artifact::digest::sha256_hex;
use limbeck_data_curation::redact::{RedactOptions, Redactor};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;

const MAX_LINE_BYTES: usize = 1 << 20;

#[derive(Deserialize)]
struct Line {
    id: Option<Value>,
    customer: Option<String>,
    thread: Option<String>,
    time: Option<String>,
    text: Option<String>,
    messages: Option<Vec<Message>>,
}

/// A message that is to be answered.
pub struct Unanswered {
    pub id: String,
    pub customer: Option<String>,
    pub thread: Option<String>,
    pub time: Option<String>,
    pub messages: Vec<Message>,
}

/// The messages under the recipe's prompt, redacted as traces are; lines that can't be read go to `rejected`.
pub fn read(run: &Run<'_>, args: &Teach, rejected: &mut Vec<Value>) -> Result<Vec<Unanswered>> {
    let recipe = run.recipe();
    let key = recipe.data.redact_key.as_deref().map(redact_key).transpose()?;
    let options = RedactOptions { patterns: recipe.data.redact_patterns.clone(), key };
    let redactor = match recipe.data.redact && !args.no_redact {
        true => Some(Redactor::with(&options).map_err(|why| Failure::new(Exit::RecipeInvalid, why))?),
        false => None,
    };
    let mut ids = BTreeSet::new();
    let mut unanswered = Vec::new();
    for path in &args.messages {
        let bytes = std::fs::read(path).map_err(|e| cannot("read", path, &e))?;
        for (number, line) in bytes.split(|b| *b == b'\n').enumerate() {
            if line.trim_ascii().is_empty() {
                continue;
            }
            let found = unanswered_in(line, recipe.task.system.as_deref(), redactor.as_ref()).and_then(|one| {
                if ids.insert(one.id.clone()) {
                    Ok(one)
                } else {
                    Err(("repeated", "the id was there before".to_owned()))
                }
            });
            match found {
                Ok(one) => unanswered.push(one),
                Err((reason, detail)) => {
                    let file = path.file_name().map(|n| n.to_string_lossy().into_owned());
                    rejected.push(json!({"file": file, "line": number + 1, "reason": reason, "detail": detail}));
                }
            }
        }
    }
    Ok(unanswered)
}

type Why = (&'static str, String);

fn unanswered_in(
    line: &[u8],
    system: Option<&str>,
    redactor: Option<&Redactor>,
) -> std::result::Result<Unanswered, Why> {
    if line.len() > MAX_LINE_BYTES {
        return Err(("line_too_long", format!("more than {MAX_LINE_BYTES} bytes")));
    }
    let read: Line = serde_json::from_slice(line).map_err(|e| ("invalid_json", format!("column {}", e.column())))?;
    let mut messages = match (read.text, read.messages) {
        (Some(text), None) => vec![Message::new("user", &text)],
        (None, Some(messages)) => messages,
        _ => return Err(("missing_messages", "a line needs either text or messages".to_owned())),
    };
    if !messages.iter().any(|m| m.role == "user" && !m.content.trim().is_empty()) {
        return Err(("empty_message", "nothing is asked".to_owned()));
    }
    if let Some(system) = system {
        messages.retain(|m| m.role != "system" && m.role != "developer");
        messages.insert(0, Message::new("system", system));
    }
    if let Some(redactor) = redactor {
        let mut document = redactor.document();
        for message in &mut messages {
            message.content = document.redact(&message.content);
        }
    }
    let id = match read.id {
        Some(Value::String(id)) if !id.is_empty() => id,
        Some(Value::Number(n)) => n.to_string(),
        _ => format!("taught-{}", &sha256_hex(line)[..16]),
    };
    Ok(Unanswered { id, customer: read.customer, thread: read.thread, time: read.time, messages })
}
