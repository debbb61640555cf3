//! OpenInference's spans, as Phoenix exports them and its instrumentations send them: attributes `llm.input_messages`,
//! `llm.output_messages`, `llm.token_count.*`, nested or numbered (`llm.input_messages.0.message.role`). Only spans of the
//! kind LLM are calls of a model.
//!
//! Sources: `openinference-semantic-conventions` 0.1.42 (`trace/__init__.py`), `arize-phoenix-client` 3.5.0 (`Span`,
//! `OtlpSpan`).

use super::draft::{Draft, between, count_at, dig, rfc3339, text_at, thread_in};
use super::otel::{Span, listed};
use super::{Reject, RejectReason, Trace, chat, reject};
use limbeck_artifact::dataset::Message;
use serde_json::{Map, Value};

pub fn recognises(record: &Value) -> bool {
    super::otel::recognises(record) && speaks(&Span::of(record))
}

/// Whether a span's attributes are of this convention.
pub fn speaks(span: &Span) -> bool {
    let of = |path: &str| dig(&span.attributes, path).is_some();
    of("openinference.span.kind") || of("llm.input_messages") || of("llm.model_name")
}

const KINDS: [&str; 9] =
    ["CHAIN", "TOOL", "RETRIEVER", "EMBEDDING", "AGENT", "RERANKER", "GUARDRAIL", "EVALUATOR", "PROMPT"];

pub fn read(span: &Span, raw: &[u8]) -> Result<Trace, Reject> {
    let attributes = &span.attributes;
    if let Some(kind) = text_at(attributes, &["openinference.span.kind"]).filter(|kind| kind != "LLM") {
        let known = KINDS.iter().find(|k| **k == kind).copied().unwrap_or("other");
        return reject(RejectReason::NotACall, format!("openinference.span.kind is {known}"));
    }
    let mut draft = Draft::default();
    match dig(attributes, "llm.input_messages") {
        Some(list) => draft.messages = messages(list, "llm.input_messages")?,
        None => match dig(attributes, "input.value") {
            Some(input) => draft.messages = chat::prompt(input, "input.value")?,
            None => return reject(RejectReason::MissingMessages, "no llm.input_messages and no input.value"),
        },
    }
    match dig(attributes, "llm.output_messages") {
        Some(list) => {
            if let Some(first) = messages(list, "llm.output_messages")?.first() {
                draft.reply(first);
            }
        }
        None => {
            if let Some(output) = dig(attributes, "output.value") {
                (draft.answer, draft.finish_reason) = chat::completion(output, "output.value")?;
            }
        }
    }
    if draft.answer.is_none() {
        return match span.failed {
            true => reject(RejectReason::CallFailed, "the span's status is an error"),
            false => reject(RejectReason::MissingResponse, "no llm.output_messages and no output.value"),
        };
    }
    draft.id = span.id.clone();
    draft.customer = text_at(attributes, &["user.id", "session.id"]);
    draft.thread = text_at(attributes, &["session.id"])
        .or_else(|| thread_in(&attributes.get("metadata").map(super::draft::structured)?));
    draft.at = span.begin.and_then(rfc3339);
    draft.model = text_at(attributes, &["llm.response.model_name", "llm.model_name", "llm.request.model_name"]);
    draft.finish_reason = text_at(attributes, &["llm.finish_reason"]).or(draft.finish_reason);
    draft.latency_ms = between(span.begin, span.end);
    draft.prompt_tokens = count_at(attributes, &["llm.token_count.prompt"]);
    draft.completion_tokens = count_at(attributes, &["llm.token_count.completion"]);
    draft.feedback = text_at(attributes, &["annotation.label", "evaluation.label"]);
    draft.finish(raw)
}

fn messages(list: &Value, name: &str) -> Result<Vec<Message>, Reject> {
    chat::messages(&nested(&super::draft::structured(list)), name)
}

/// A table's messages have dotted keys: `{"message.role": …}`.
fn nested(value: &Value) -> Value {
    match value {
        Value::Array(list) => Value::Array(list.iter().map(nested).collect()),
        Value::Object(fields) => {
            let mut out = Map::new();
            for (key, value) in fields {
                let of_ours = ["message.", "message_content.", "tool_call."].iter().any(|p| key.starts_with(p));
                match key.split_once('.').filter(|_| of_ours) {
                    Some((outer, inner)) => {
                        let into = out.entry(outer).or_insert_with(|| Value::Object(Map::new()));
                        if let Value::Object(into) = into {
                            // `tool_call.function.name` has a level more.
                            match inner.split_once('.') {
                                Some((middle, last)) => {
                                    let into = into.entry(middle).or_insert_with(|| Value::Object(Map::new()));
                                    if let Value::Object(into) = into {
                                        into.insert(last.to_string(), nested(value));
                                    }
                                }
                                None => {
                                    into.insert(inner.to_string(), nested(value));
                                }
                            }
                        }
                    }
                    None => {
                        out.insert(key.clone(), nested(value));
                    }
                }
            }
            listed(Value::Object(out))
        }
        other => other.clone(),
    }
}
