//! OpenTelemetry's GenAI spans and events: OTLP as JSON (a span's attributes are a list of keys and values), or as SDKs
//! print spans (an object). The names have changed several times; all of them are read:
//!
//! | since | where the messages are |
//! |---|---|
//! | 1.37 | `gen_ai.system_instructions`, `gen_ai.input.messages`, `gen_ai.output.messages`, on the span or on the event `gen_ai.client.inference.operation.details` |
//! | 1.28 | events `gen_ai.system.message`, `gen_ai.user.message`, `gen_ai.assistant.message`, `gen_ai.tool.message`, `gen_ai.choice`, of the span or as log records (`import::join` puts those together) |
//! | 1.26 | events `gen_ai.content.prompt` and `gen_ai.content.completion` |
//! | OpenLLMetry | attributes `gen_ai.prompt.0.role`, `gen_ai.completion.0.content`, … |
//!
//! Sources: `opentelemetry-semantic-conventions` 0.66b2 (`gen_ai_attributes.py`, with the deprecated ones),
//! `opentelemetry-util-genai` 1.3b0 (`types.py`: parts), `opentelemetry-instrumentation-openai` 0.62 (`chat_wrappers.py`,
//! `event_emitter.py`), opentelemetry-proto's `trace.proto` in its JSON form.

use super::draft::{Draft, between, count_at, dig, rfc3339, structured, text_at, time_at};
use super::openinference;
use super::{Reject, RejectReason, Trace, chat, reject};
use limbeck_artifact::dataset::Message;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

/// Dots in a key beyond so many make no more levels.
const MAX_LEVELS: usize = 32;

/// A span or a log record, with its attributes as a tree.
pub struct Span {
    pub id: Option<String>,
    pub attributes: Value,
    events: Vec<(String, Value)>,
    pub begin: Option<OffsetDateTime>,
    pub end: Option<OffsetDateTime>,
    pub failed: bool,
}

pub fn recognises(record: &Value) -> bool {
    let spans =
        ["spanId", "span_id", "context", "startTimeUnixNano", "start_time_unix_nano", "eventName", "context.span_id"];
    let attributes = record.get("attributes").is_some() || flat_attributes(record).next().is_some();
    attributes && spans.iter().any(|key| record.get(key).is_some())
}

/// Tables of spans have a column an attribute: `attributes.llm.model_name`.
fn flat_attributes(record: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let fields = record.as_object().into_iter().flatten();
    fields.filter_map(|(key, value)| Some((key.strip_prefix("attributes.")?, value))).filter(|(_, v)| !v.is_null())
}

pub fn read(record: &Value, raw: &[u8]) -> Result<Trace, Reject> {
    let span = Span::of(record);
    if openinference::speaks(&span) {
        return openinference::read(&span, raw);
    }
    let attributes = &span.attributes;
    if attributes.get("gen_ai").is_none() && !span.events.iter().any(|(name, _)| name.starts_with("gen_ai.")) {
        return reject(RejectReason::NotACall, "no gen_ai attribute");
    }
    match text_at(attributes, &["gen_ai.operation.name", "llm.request.type"]).as_deref() {
        None | Some("chat" | "text_completion" | "completion" | "generate_content") => {}
        Some("embeddings" | "embedding") => return reject(RejectReason::NotACall, "an embedding"),
        Some("execute_tool") => return reject(RejectReason::NotACall, "a tool's run"),
        Some(_) => return reject(RejectReason::NotACall, "gen_ai.operation.name is no chat"),
    }
    let mut draft = Draft::default();
    let found = newest(attributes, &mut draft)?
        || details(&span, &mut draft)?
        || message_events(&span, &mut draft)?
        || content_events(&span, &mut draft)?
        || indexed(attributes, &mut draft)?;
    if !found {
        if span.failed {
            return reject(RejectReason::CallFailed, "the span's status is an error");
        }
        let why = "the span holds no messages; let the instrumentation capture them \
                   (OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT, TRACELOOP_TRACE_CONTENT)";
        return reject(RejectReason::MissingMessages, why);
    }
    if draft.answer.is_none() && span.failed {
        return reject(RejectReason::CallFailed, "the span's status is an error");
    }
    draft.id = span.id.clone().or_else(|| text_at(attributes, &["gen_ai.response.id"]));
    draft.customer =
        text_at(attributes, &["user.id", "enduser.id", "gen_ai.user", "gen_ai.conversation.id", "session.id"]);
    draft.thread = text_at(
        attributes,
        &[
            "gen_ai.conversation.id",
            "session.id",
            "traceloop.association.properties.thread_id",
            "traceloop.association.properties.session_id",
        ],
    );
    draft.at = span.begin.and_then(rfc3339);
    draft.model = text_at(attributes, &["gen_ai.response.model", "gen_ai.request.model"]);
    draft.finish_reason = text_at(attributes, &["gen_ai.response.finish_reasons.0"]).or(draft.finish_reason);
    draft.latency_ms = between(span.begin, span.end);
    draft.prompt_tokens = count_at(attributes, &["gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens"]);
    draft.completion_tokens = count_at(attributes, &["gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens"]);
    draft.feedback = text_at(attributes, &["gen_ai.evaluation.score.label"]);
    draft.finish(raw)
}

/// `gen_ai.input.messages` and its like, on a span or on an event. True when there were messages.
fn newest(attributes: &Value, draft: &mut Draft) -> Result<bool, Reject> {
    let Some(input) = dig(attributes, "gen_ai.input.messages").map(structured) else { return Ok(false) };
    if let Some(system) = dig(attributes, "gen_ai.system_instructions").map(structured) {
        draft.messages.push(Message::new("system", &chat::as_text(&system)));
    }
    draft.messages.extend(chat::messages(&input, "gen_ai.input.messages")?);
    if let Some(output) = dig(attributes, "gen_ai.output.messages").map(structured) {
        // One message a choice: the first is the one that was served.
        let first = output.as_array().and_then(|list| list.first()).cloned().unwrap_or(Value::Null);
        (draft.answer, draft.finish_reason) = chat::completion(&first, "gen_ai.output.messages")?;
    }
    Ok(true)
}

fn details(span: &Span, draft: &mut Draft) -> Result<bool, Reject> {
    for (name, attributes) in &span.events {
        if name == "gen_ai.client.inference.operation.details" && newest(attributes, draft)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// An event a message. Its content is in its attributes, in the JSON text `gen_ai.event.content` of them, or its body.
fn message_events(span: &Span, draft: &mut Draft) -> Result<bool, Reject> {
    for (name, event) in &span.events {
        let content = dig(event, "gen_ai.event.content").map(structured);
        let event = content.as_ref().unwrap_or(event);
        let who = match name.as_str() {
            "gen_ai.system.message" => "system",
            "gen_ai.user.message" => "user",
            "gen_ai.assistant.message" => "assistant",
            "gen_ai.tool.message" => "tool",
            "gen_ai.choice" => {
                let first = event.get("index").and_then(Value::as_u64).unwrap_or(0) == 0;
                if first && draft.answer.is_none() {
                    let message = event.get("message").map(structured).unwrap_or_else(|| event.clone());
                    let (answer, _) = chat::completion(&with_role(message, "assistant"), name)?;
                    (draft.answer, draft.finish_reason) = (answer, text_at(event, &["finish_reason"]));
                }
                continue;
            }
            _ => continue,
        };
        let mut message = event.clone();
        if let (None, Some(id)) = (message.get("tool_call_id"), message.get("id").cloned())
            && who == "tool"
        {
            message["tool_call_id"] = id;
        }
        if let Some(calls) = message.get("tool_calls").map(structured) {
            message["tool_calls"] = calls;
        }
        draft.messages.push(chat::message(&with_role(message, who), &|| name.clone())?);
    }
    Ok(!draft.messages.is_empty())
}

fn with_role(mut message: Value, who: &str) -> Value {
    match &mut message {
        Value::Object(fields) => {
            if fields.get("role").and_then(Value::as_str).is_none_or(|r| chat::role(r).is_none()) {
                fields.insert("role".to_string(), who.into());
            }
            message
        }
        _ => json!({"role": who, "content": message}),
    }
}

fn content_events(span: &Span, draft: &mut Draft) -> Result<bool, Reject> {
    for (name, event) in &span.events {
        match name.as_str() {
            "gen_ai.content.prompt" => {
                if let Some(prompt) = dig(event, "gen_ai.prompt") {
                    draft.messages.extend(chat::prompt(prompt, "gen_ai.prompt")?);
                }
            }
            "gen_ai.content.completion" => {
                if let Some(completion) = dig(event, "gen_ai.completion") {
                    (draft.answer, draft.finish_reason) = chat::completion(completion, "gen_ai.completion")?;
                }
            }
            _ => {}
        }
    }
    Ok(!draft.messages.is_empty())
}

/// OpenLLMetry's numbered attributes, and the two plain ones that came before.
fn indexed(attributes: &Value, draft: &mut Draft) -> Result<bool, Reject> {
    let Some(prompt) = dig(attributes, "gen_ai.prompt") else { return Ok(false) };
    draft.messages = chat::prompt(prompt, "gen_ai.prompt")?;
    if let Some(completion) = dig(attributes, "gen_ai.completion") {
        let first = completion.as_array().and_then(|list| list.first());
        let first = first.map(|message| with_role(message.clone(), "assistant"));
        (draft.answer, draft.finish_reason) =
            chat::completion(first.as_ref().unwrap_or(completion), "gen_ai.completion")?;
    }
    Ok(true)
}

impl Span {
    pub fn of(record: &Value) -> Span {
        let mut attributes = match record.get("attributes") {
            Some(found) => tree(found),
            None => Value::Null,
        };
        let flat: Map<String, Value> = flat_attributes(record).map(|(k, v)| (k.to_string(), v.clone())).collect();
        if !flat.is_empty() {
            attributes = tree(&Value::Object(flat));
        }
        let mut events: Vec<(String, Value)> = Vec::new();
        let named = |event: &Value| {
            text_at(event, &["name", "event_name", "eventName", "attributes.event.name"]).unwrap_or_default()
        };
        for event in record.get("events").map(structured).as_ref().and_then(Value::as_array).into_iter().flatten() {
            events.push((named(event), event.get("attributes").map(tree).unwrap_or_default()));
        }
        let body = record.get("body").map(any).unwrap_or_default();
        // A log record is an event of its own.
        let own = text_at(record, &["eventName", "event_name"]).or_else(|| text_at(&attributes, &["event.name"]));
        if let Some(own) = own {
            let mut content = attributes.clone();
            if let (Value::Object(into), Value::Object(more)) = (&mut content, &body) {
                into.extend(more.iter().map(|(k, v)| (k.clone(), v.clone())));
            }
            events.push((own, content));
        }
        let status = text_at(record, &["status.code", "status.status_code", "status_code"]).unwrap_or_default();
        Span {
            id: text_at(record, &["spanId", "span_id", "context.span_id", "context.spanId"]),
            begin: time_at(
                record,
                &["startTimeUnixNano", "start_time_unix_nano", "start_time", "startTime", "timeUnixNano"],
            ),
            end: time_at(record, &["endTimeUnixNano", "end_time_unix_nano", "end_time", "endTime"]),
            failed: ["2", "ERROR", "STATUS_CODE_ERROR"].contains(&status.as_str()),
            attributes,
            events,
        }
    }
}

/// Attributes as a tree: `a.b.0.c` is a list in b in a.
fn tree(attributes: &Value) -> Value {
    let mut root = Value::Object(Map::new());
    match attributes {
        Value::Array(list) => {
            for pair in list {
                if let Some(key) = pair.get("key").and_then(Value::as_str) {
                    insert(&mut root, key, pair.get("value").map(any).unwrap_or_default());
                }
            }
        }
        Value::Object(fields) => fields.iter().for_each(|(key, value)| insert(&mut root, key, value.clone())),
        Value::String(_) => return tree_of_text(attributes),
        _ => {}
    }
    listed(root)
}

/// Table exports write the attributes as JSON text.
fn tree_of_text(text: &Value) -> Value {
    match structured(text) {
        Value::String(_) => Value::Null,
        parsed => tree(&parsed),
    }
}

fn insert(root: &mut Value, key: &str, value: Value) {
    let mut node = root;
    let mut parts = key.splitn(MAX_LEVELS, '.').peekable();
    while let Some(part) = parts.next() {
        if !node.is_object() {
            *node = Value::Object(Map::new());
        }
        let Value::Object(fields) = node else { return };
        if parts.peek().is_none() {
            match (fields.get_mut(part), value) {
                (Some(Value::Object(into)), Value::Object(more)) => into.extend(more),
                // A value and a branch under one name: the branch says more.
                (Some(Value::Object(_)), _) => {}
                (_, value) => {
                    fields.insert(part.to_string(), value);
                }
            }
            return;
        }
        node = fields.entry(part).or_insert(Value::Null);
    }
}

/// Objects whose keys count from 0 become lists.
pub fn listed(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let n = fields.len();
            let counts = n > 0 && (0..n).all(|i| fields.contains_key(&i.to_string()));
            let mut fields = fields;
            if counts {
                let mut take = |i: usize| fields.remove(&i.to_string()).unwrap_or_default();
                return Value::Array((0..n).map(|i| listed(take(i))).collect());
            }
            fields.values_mut().for_each(|v| *v = listed(v.take()));
            Value::Object(fields)
        }
        other => other,
    }
}

/// OTLP's AnyValue as plain JSON. What is none is plain already.
pub fn any(value: &Value) -> Value {
    let Some((kind, inner)) = value.as_object().filter(|o| o.len() == 1).and_then(|o| o.iter().next()) else {
        return value.clone();
    };
    match kind.as_str() {
        "stringValue" | "string_value" | "boolValue" | "bool_value" | "doubleValue" | "double_value" | "bytesValue" => {
            inner.clone()
        }
        // int64 is text in protobuf's JSON.
        "intValue" | "int_value" => match inner.as_str().and_then(|s| s.parse::<i64>().ok()) {
            Some(n) => n.into(),
            None => inner.clone(),
        },
        "arrayValue" | "array_value" => {
            let values = inner.get("values").and_then(Value::as_array);
            Value::Array(values.into_iter().flatten().map(any).collect())
        }
        "kvlistValue" | "kvlist_value" => {
            let pairs = inner.get("values").and_then(Value::as_array).into_iter().flatten();
            let pairs = pairs.filter_map(|p| {
                Some((p.get("key")?.as_str()?.to_string(), p.get("value").map(any).unwrap_or_default()))
            });
            Value::Object(pairs.collect())
        }
        _ => value.clone(),
    }
}
