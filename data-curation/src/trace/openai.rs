//! Chat completions as OpenAI's API and everything like it speak them: a request and its response on one line, the fields
//! of either at the top, a stored completion with its messages, a conversation whose last turn is the answer, and the
//! Responses API. Responses may be streamed ones.
//!
//! Sources: OpenAI API reference, "create chat completion", "list chat completions" (stored ones; their messages are
//! listed apart, under `/chat/completions/ID/messages`), "create a model response", "batch" (`response.body`).

use super::draft::{Draft, rfc3339, string, structured, text_at, thread_in, time};
use super::{Reject, RejectReason, Trace, chat, reject, stream};
use limbeck_artifact::dataset::Message;
use serde_json::Value;

pub fn recognises(record: &Value) -> bool {
    let within = |outer: &str, key: &str| record.get(outer).is_some_and(|v| v.get(key).is_some());
    let answered = ["answer", "output", "completion"].iter().any(|key| record.get(key).is_some());
    let messages =
        (record.get("messages").is_some() && !answered) || within("request", "messages") || within("request", "input");
    messages || (record.get("choices").is_some() && record.get("object").is_some_and(|o| o == "chat.completion"))
}

pub fn read(record: &Value, raw: &[u8]) -> Result<Trace, Reject> {
    let request = body(object(record, "request")?.unwrap_or(record));
    let merged = record.get("response").and_then(stream::whole);
    let response = match &merged {
        Some(whole) => whole,
        None => body(object(record, "response")?.unwrap_or(record)),
    };
    let mut draft = Draft { messages: messages(request, response)?, ..Draft::default() };
    answer(response, &mut draft)?;
    draft.answer_from_last_turn();
    if draft.answer.is_none() {
        return reject(RejectReason::MissingResponse, "no response.choices[0].message.content");
    }
    let usage = object(response, "usage")?.unwrap_or(&Value::Null);
    draft.id = id(record, response)?;
    draft.customer = string(record, "customer")?.or(string(request, "user")?).filter(|c| !c.trim().is_empty());
    draft.thread = thread(record, request);
    draft.at = time_of(record, response);
    draft.model = string(response, "model")?.or(string(request, "model")?);
    draft.latency_ms = latency(record)?;
    draft.prompt_tokens = count(usage, "prompt_tokens")?.or(count(usage, "input_tokens")?);
    draft.completion_tokens = count(usage, "completion_tokens")?.or(count(usage, "output_tokens")?);
    draft.feedback = string(record, "feedback")?;
    draft.agreement = record.get("limbeck_teacher").and_then(agreement);
    draft.finish(raw)
}

/// What `limbeck teach` found: a single draw agrees with itself, which says nothing.
fn agreement(teacher: &Value) -> Option<f64> {
    teacher.get("draws")?.as_u64().filter(|draws| *draws > 1)?;
    teacher.get("agreement")?.as_f64()
}

fn object<'v>(value: &'v Value, key: &str) -> Result<Option<&'v Value>, Reject> {
    match value.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(found) if found.is_object() => Ok(Some(found)),
        Some(_) => reject(RejectReason::WrongType, format!("{key} is no object")),
    }
}

/// Batch results and HTTP logs put the API's own object under `body`.
fn body(value: &Value) -> &Value {
    value.get("body").filter(|b| b.is_object()).unwrap_or(value)
}

fn messages(request: &Value, response: &Value) -> Result<Vec<Message>, Reject> {
    let found = request.get("messages").filter(|m| !m.is_null());
    if let Some(found) = found {
        // What `/chat/completions/ID/messages` gives is a list object.
        return chat::messages(&structured(found.get("data").unwrap_or(found)), "messages");
    }
    if let Some(input) = request.get("input").filter(|i| !i.is_null()) {
        let mut out = Vec::new();
        if let Some(text) = request.get("instructions").and_then(Value::as_str) {
            out.push(Message::new("system", text));
        }
        out.extend(chat::prompt(input, "input")?);
        return Ok(out);
    }
    match response.get("object").and_then(Value::as_str) {
        Some("chat.completion") => reject(
            RejectReason::MissingMessages,
            "a completion without its messages; add what /chat/completions/ID/messages lists, as `messages`",
        ),
        _ => reject(RejectReason::MissingMessages, "no request.messages"),
    }
}

fn answer(response: &Value, draft: &mut Draft) -> Result<(), Reject> {
    if let Some(items) = response.get("output").and_then(Value::as_array) {
        return answer_of_items(items, response, draft);
    }
    let Some(choices) = response.get("choices").filter(|c| !c.is_null()) else { return Ok(()) };
    let Some(choice) = choices.as_array().and_then(|list| list.first()) else {
        return reject(RejectReason::MissingResponse, "response.choices holds no choice");
    };
    let Some(message) = object(choice, "message")? else {
        return reject(RejectReason::MissingResponse, "response.choices[0] holds no message");
    };
    let listed = message.get("tool_calls").and_then(Value::as_array).is_some_and(|calls| !calls.is_empty());
    let calls = listed || message.get("function_call").is_some_and(Value::is_object);
    if message.get("content").is_none_or(Value::is_null) && !calls {
        return reject(RejectReason::MissingResponse, "response.choices[0].message has no content");
    }
    let mut said = message.clone();
    said["role"] = "assistant".into();
    draft.reply(&chat::message(&said, &|| "response.choices[0].message".to_string())?);
    draft.finish_reason = string(choice, "finish_reason")?;
    Ok(())
}

/// The Responses API: messages and calls side by side; calls are the answer where there are any.
fn answer_of_items(items: &[Value], response: &Value, draft: &mut Draft) -> Result<(), Reject> {
    let mut whole = Message::new("assistant", "");
    for (i, item) in items.iter().enumerate() {
        // Reasoning, searches and the like are steps on the way.
        if let Some("message" | "function_call") = item.get("type").and_then(Value::as_str) {
            let said = chat::message(item, &|| format!("response.output[{i}]"))?;
            whole.content.push_str(&said.content);
            whole.tool_calls.extend(said.tool_calls);
        }
    }
    if whole.content.is_empty() && whole.tool_calls.is_empty() {
        return reject(RejectReason::MissingResponse, "response.output holds no message and no call");
    }
    draft.reply(&whole);
    draft.finish_reason = text_at(response, &["incomplete_details.reason"])
        .map(|why| if why == "max_output_tokens" { "length".to_string() } else { why });
    Ok(())
}

fn id(record: &Value, response: &Value) -> Result<Option<String>, Reject> {
    match record.get("id") {
        Some(Value::Number(n)) => Ok(Some(n.to_string())),
        _ => Ok(string(record, "id")?.or(string(response, "id")?)),
    }
}

/// Beside the call, in the metadata of either, or, with the Responses API, as the conversation.
fn thread(record: &Value, request: &Value) -> Option<String> {
    let within = |value: &Value| thread_in(value.get("metadata")?);
    let beside = |value: &Value| text_at(value, &["thread_id", "conversation_id", "session_id", "conversation.id"]);
    [record, request].into_iter().find_map(|value| beside(value).or_else(|| within(value)))
}

fn count(value: &Value, key: &str) -> Result<Option<u64>, Reject> {
    match value.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(n) => match n.as_u64() {
            // i64 is what the Parquet reader of any tool can hold.
            Some(n) if i64::try_from(n).is_ok() => Ok(Some(n)),
            _ => reject(RejectReason::WrongType, format!("{key} is no count")),
        },
    }
}

fn latency(record: &Value) -> Result<Option<f64>, Reject> {
    match record.get("latency_ms") {
        None | Some(Value::Null) => Ok(None),
        Some(n) => match n.as_f64() {
            Some(ms) if ms.is_finite() && ms >= 0.0 => Ok(Some(ms)),
            _ => reject(RejectReason::WrongType, "latency_ms is no number of at least 0"),
        },
    }
}

fn time_of(record: &Value, response: &Value) -> Option<String> {
    let found = ["time", "timestamp", "created_at", "created"].iter().find_map(|k| record.get(k));
    rfc3339(time(found.or(response.get("created")).or(response.get("created_at"))?)?)
}
