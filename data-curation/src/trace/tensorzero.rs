//! TensorZero's inferences: rows of its tables `ChatInference` and `JsonInference`, as ClickHouse writes them (JSON in text
//! columns) or as its client lists them.
//!
//! Sources: tensorzero.com `docs/gateway/data-model` (columns); the `tensorzero` package 2026.6.0, `generated_types.py`
//! (`StoredChatInference`, `StoredJsonInference`, `StoredInput`, content blocks text, template, raw_text, tool_call,
//! tool_result, thought, file).

use super::draft::{Draft, count_at, number_at, rfc3339, structured, text_at, thread_in, time_at};
use super::{Reject, RejectReason, Trace, chat, reject};
use limbeck_artifact::dataset::Message;
use serde_json::{Value, json};
use time::OffsetDateTime;

pub fn recognises(record: &Value) -> bool {
    record.get("function_name").is_some() && record.get("variant_name").is_some() && record.get("input").is_some()
}

pub fn read(record: &Value, raw: &[u8]) -> Result<Trace, Reject> {
    let input = record.get("input").map(structured).unwrap_or_default();
    let output = record.get("output").map(structured).unwrap_or_default();
    let mut messages = Vec::new();
    if let Some(system) = input.get("system").filter(|s| !s.is_null()) {
        messages.push(Message::new("system", &chat::as_text(system)));
    }
    let Some(list) = input.get("messages") else {
        return reject(RejectReason::MissingMessages, "no input.messages");
    };
    messages.extend(chat::messages(list, "input.messages")?);
    let tags = record.get("tags").map(structured).unwrap_or_default();
    let id = text_at(record, &["inference_id", "id"]);
    let at = time_at(record, &["timestamp"]).or_else(|| id.as_deref().and_then(uuid_v7));
    let draft = Draft {
        customer: text_at(&tags, &["user_id", "customer_id", "customer"]),
        thread: thread_in(&tags).or_else(|| text_at(record, &["episode_id"])),
        at: at.and_then(rfc3339),
        messages,
        answer: answer(&output)?,
        model: text_at(record, &["model_name", "variant_name"]),
        finish_reason: text_at(record, &["finish_reason"]),
        latency_ms: number_at(record, &["processing_time_ms"]),
        prompt_tokens: count_at(record, &["input_tokens"]),
        completion_tokens: count_at(record, &["output_tokens"]),
        feedback: text_at(&tags, &["feedback"]),
        id,
        agreement: None,
    };
    draft.finish(raw)
}

/// A JSON function's output is `{raw, parsed}`, a chat function's a list of content blocks.
fn answer(output: &Value) -> Result<Option<String>, Reject> {
    if let Some(text) = text_at(output, &["raw"]) {
        return Ok(Some(text));
    }
    if let Some(parsed) = output.get("parsed").filter(|p| !p.is_null()) {
        return Ok(Some(parsed.to_string()));
    }
    match output {
        Value::Array(blocks) if blocks.is_empty() => Ok(None),
        Value::Array(_) => {
            let said = chat::message(&json!({"role": "assistant", "content": output}), &|| "output".to_string())?;
            Ok(Some(chat::answer(&said)))
        }
        Value::String(text) => Ok(Some(text.clone())),
        _ => Ok(None),
    }
}

/// The first 48 bits of a UUIDv7 are milliseconds since 1970 (RFC 9562).
fn uuid_v7(id: &str) -> Option<OffsetDateTime> {
    let hex: String = id.chars().filter(|c| *c != '-').collect();
    if hex.len() != 32 || hex.as_bytes().get(12) != Some(&b'7') {
        return None;
    }
    let ms = i128::from(u64::from_str_radix(hex.get(..12)?, 16).ok()?);
    OffsetDateTime::from_unix_timestamp_nanos(ms * 1_000_000).ok()
}
