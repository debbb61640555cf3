//! OpenPipe's exported request logs: the request as `input`, the response as `output`, tags beside them; and the payload
//! names that its reporting API and older exports have. Its dataset export is a conversation, which the reader of chat
//! completions takes.
//!
//! Sources: docs.openpipe.ai `features/request-logs/exporting-logs` and `features/datasets/exporting-data`; the `openpipe`
//! package, `client.py` (`req_payload`, `resp_payload`, `requested_at`, `received_at` in milliseconds).

use super::draft::{Draft, between, count_at, rfc3339, structured, text_at, thread_in, time_at};
use super::{Reject, RejectReason, Trace, chat, reject, stream};
use serde_json::Value;

const REQUESTS: [&str; 3] = ["input", "reqPayload", "req_payload"];
const RESPONSES: [&str; 3] = ["output", "respPayload", "resp_payload"];

fn part(record: &Value, keys: &[&str]) -> Option<Value> {
    keys.iter().find_map(|key| record.get(key)).map(structured).filter(|v| !v.is_null())
}

pub fn recognises(record: &Value) -> bool {
    let (request, response) = (part(record, &REQUESTS), part(record, &RESPONSES));
    let named = record.get("reqPayload").is_some() || record.get("req_payload").is_some();
    let asked = request.is_some_and(|r| r.get("messages").is_some());
    asked && (named || response.is_some_and(|r| r.get("choices").is_some() || r.get("error").is_some()))
}

pub fn read(record: &Value, raw: &[u8]) -> Result<Trace, Reject> {
    let request = part(record, &REQUESTS).unwrap_or(Value::Null);
    let response = part(record, &RESPONSES).unwrap_or(Value::Null);
    let response = stream::whole(&response).unwrap_or(response);
    let failed = text_at(record, &["errorMessage", "error_message"]).is_some() || response.get("error").is_some();
    if failed && response.get("choices").is_none() {
        return reject(RejectReason::CallFailed, "the call ended in an error");
    }
    let Some(messages) = request.get("messages") else {
        return reject(RejectReason::MissingMessages, "no input.messages");
    };
    let (answer, finish_reason) = chat::completion(&response, "output")?;
    let begin = time_at(record, &["requestedAt", "requested_at", "createdAt", "created_at"]);
    let end = time_at(record, &["receivedAt", "received_at"]);
    let draft = Draft {
        id: text_at(record, &["id"]).or_else(|| text_at(&response, &["id"])),
        customer: text_at(record, &["tags.user_id", "tags.customer", "metadata.user_id"])
            .or_else(|| text_at(&request, &["user", "metadata.user_id"])),
        thread: record.get("tags").and_then(thread_in).or_else(|| thread_in(record.get("metadata")?)),
        at: begin.or_else(|| time_at(&response, &["created"])).and_then(rfc3339),
        messages: chat::messages(messages, "input.messages")?,
        answer,
        finish_reason,
        model: text_at(&response, &["model"]).or_else(|| text_at(&request, &["model"])),
        latency_ms: between(begin, end),
        prompt_tokens: count_at(&response, &["usage.prompt_tokens"]),
        completion_tokens: count_at(&response, &["usage.completion_tokens"]),
        feedback: text_at(record, &["tags.feedback", "metadata.feedback"]),
        agreement: None,
    };
    draft.finish(raw)
}
