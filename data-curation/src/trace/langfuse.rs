//! Langfuse's observations: what its interface, its API and its export to blob storage write, in camelCase or snake_case.
//! Only generations are calls of a model; spans, events and the like around them are counted as what they are.
//!
//! Sources: the `langfuse` package 5.0.4, `api/commons/types/observation_v2.py`; langfuse.com
//! `docs/api-and-data-platform/features/blob-storage-export-fields` (times as `YYYY-MM-DD hh:mm:ss.ffffff`, UTC) and
//! `faq/all/export-single-trace-or-session` (`{trace, observations, scores}`).

use super::draft::{Draft, between, count_at, dig, number_at, rfc3339, score, structured, text_at, thread_in, time_at};
use super::{Reject, RejectReason, Trace, chat, reject};
use serde_json::Value;

fn kind(record: &Value) -> Option<&str> {
    record.get("type").and_then(Value::as_str)
}

const KINDS: [&str; 10] =
    ["GENERATION", "SPAN", "EVENT", "AGENT", "TOOL", "CHAIN", "RETRIEVER", "EVALUATOR", "EMBEDDING", "GUARDRAIL"];

pub fn recognises(record: &Value) -> bool {
    let of_trace = record.get("traceId").is_some() || record.get("trace_id").is_some();
    of_trace && kind(record).is_some_and(|kind| KINDS.iter().any(|k| k.eq_ignore_ascii_case(kind)))
}

pub fn read(record: &Value, raw: &[u8]) -> Result<Trace, Reject> {
    if let Some(kind) = kind(record).filter(|kind| !kind.eq_ignore_ascii_case("generation")) {
        // The kind is one of a fixed list; what is none of them is not repeated.
        let known = KINDS.iter().find(|k| k.eq_ignore_ascii_case(kind)).copied().unwrap_or("other");
        return reject(RejectReason::NotACall, format!("type is {known}"));
    }
    let Some(input) = record.get("input").filter(|v| !v.is_null()) else {
        return reject(RejectReason::MissingMessages, "no input; export the observations with their input and output");
    };
    let failed = text_at(record, &["level"]).is_some_and(|level| level.eq_ignore_ascii_case("error"));
    let Some(output) = record.get("output").filter(|v| !v.is_null()) else {
        return match failed {
            true => reject(RejectReason::CallFailed, "level is ERROR and there is no output"),
            false => reject(RejectReason::MissingResponse, "no output"),
        };
    };
    let (answer, finish_reason) = chat::completion(output, "output")?;
    let begin = time_at(record, &["startTime", "start_time", "timestamp"]);
    let end = time_at(record, &["endTime", "end_time"]);
    let usage = ["usageDetails", "usage_details", "usage"].iter().find_map(|key| record.get(key));
    let usage = usage.map(structured).unwrap_or_default();
    let draft = Draft {
        id: text_at(record, &["id"]),
        customer: text_at(record, &["userId", "user_id", "sessionId", "session_id"]),
        thread: text_at(record, &["sessionId", "session_id", "trace.sessionId"])
            .or_else(|| thread_in(&record.get("metadata").map(structured).unwrap_or_default())),
        at: begin.and_then(rfc3339),
        messages: chat::prompt(input, "input")?,
        answer,
        finish_reason,
        model: text_at(record, &["model", "providedModelName", "provided_model_name"]),
        // Its own `latency` is in seconds.
        latency_ms: between(begin, end).or_else(|| number_at(record, &["latency"]).map(|s| s * 1000.0)),
        prompt_tokens: count_at(&usage, &["input", "promptTokens", "prompt_tokens", "input_tokens"])
            .or_else(|| count_at(record, &["promptTokens", "inputUsage", "input_usage"])),
        completion_tokens: count_at(&usage, &["output", "completionTokens", "completion_tokens", "output_tokens"])
            .or_else(|| count_at(record, &["completionTokens", "outputUsage", "output_usage"])),
        feedback: feedback(record),
        agreement: None,
    };
    draft.finish(raw)
}

/// The first score, in a list of `{name, value | stringValue}` or an object of names and values.
fn feedback(record: &Value) -> Option<String> {
    match structured(record.get("scores")?) {
        Value::Array(scores) => scores.iter().find_map(|s| {
            let value = dig(s, "stringValue").or_else(|| dig(s, "string_value")).or_else(|| dig(s, "value"))?;
            score(s.get("name")?.as_str()?, value)
        }),
        Value::Object(scores) => scores.iter().find_map(|(name, value)| score(name, value)),
        _ => None,
    }
}
