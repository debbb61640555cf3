//! The chat-completions API as clients speak it: requests read, completions, events and errors written. What is not
//! supported is refused by name, never passed over in a way that changes the answer.

use super::metrics::Outcome;
use super::workers::Answered;
use super::{Page, Serving};
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};
use limbeck_artifact::dataset::Message;
use limbeck_data_curation::trace::chat;
use serde_json::{Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A request.
pub struct Chat {
    pub messages: Vec<Message>,
    pub stream: bool,
    pub include_usage: bool,
    /// As it came: what the fallback is asked.
    pub request: Value,
}

impl Chat {
    pub fn parse(body: &[u8]) -> Result<Chat, Refusal> {
        let bad = |code, text: String| Refusal::new(StatusCode::BAD_REQUEST, code, text);
        let request: Value =
            serde_json::from_slice(body).map_err(|e| bad("invalid_json", format!("the body is no JSON: {e}")))?;
        let Some(found) = request.get("messages").filter(|m| m.is_array()) else {
            return Err(bad("invalid_request", "`messages` is missing, or no list".to_owned()));
        };
        let messages = chat::messages(found, "messages").map_err(|e| bad("invalid_request", e.detail))?;
        if !messages.iter().any(|m| m.role == "user" && !m.content.trim().is_empty()) {
            return Err(bad("invalid_request", "there is no message of the user to answer".to_owned()));
        }
        if request.get("n").is_some_and(|n| !n.is_null() && *n != json!(1)) {
            return Err(bad(
                "unsupported",
                "`n` above 1 is not supported: the answer is always the likeliest".to_owned(),
            ));
        }
        let is = |value: Option<&Value>| value.and_then(Value::as_bool).unwrap_or(false);
        let stream = is(request.get("stream"));
        let include_usage = is(request.get("stream_options").and_then(|o| o.get("include_usage")));
        Ok(Chat { messages, stream, include_usage, request })
    }

    /// Whom the caller answers for.
    pub fn user(&self) -> Option<&str> {
        self.request.get("user").and_then(Value::as_str)
    }
}

/// An error as clients of the API expect it.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
    retry_after: Option<Duration>,
    /// The answer that was held back, for the decision log.
    pub completion: Option<Box<Value>>,
}

impl Refusal {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { status, code, message: message.into(), retry_after: None, completion: None }
    }

    pub fn retry_after(self, retry_after: Option<Duration>) -> Refusal {
        Refusal { retry_after, ..self }
    }

    pub fn about(self, completion: Value) -> Refusal {
        Refusal { completion: Some(Box::new(completion)), ..self }
    }
}

impl Refusal {
    pub fn into_page(self) -> Page {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            status if status.is_server_error() => "server_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::UNPROCESSABLE_ENTITY => "escalation",
            _ => "invalid_request_error",
        };
        let told = self.completion.as_ref().map(|c| c["limbeck"].clone());
        let mut error = json!({"message": self.message, "type": kind, "param": null, "code": self.code});
        if let Some(told) = told {
            error["limbeck"] = told;
        }
        let mut page = json_page(self.status, &json!({"error": error}));
        if let Some(wait) = self.retry_after {
            // Rounded up: too early is refused again.
            let seconds = wait.as_millis().div_ceil(1000).max(1);
            if let Ok(value) = HeaderValue::from_str(&seconds.to_string()) {
                page.headers_mut().insert(header::RETRY_AFTER, value);
            }
        }
        page
    }
}

pub fn json_page(status: StatusCode, value: &Value) -> Page {
    page(status, "application/json", value.to_string())
}

pub fn page(status: StatusCode, content_type: &'static str, text: String) -> Page {
    let mut page = Response::new(text.into());
    *page.status_mut() = status;
    page.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    page
}

/// The artifact's own answer as a completion.
pub fn completion(serving: &Serving, answered: &Answered, id: &str, outcome: Outcome) -> Value {
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    json!({
        "id": id,
        "object": "chat.completion",
        "created": created,
        "model": format!("{}@{}", serving.name, serving.version),
        "choices": [{
            "index": 0,
            "message": {"role": "assistant", "content": answered.text},
            "finish_reason": "stop",
        }],
        "usage": {
            "prompt_tokens": answered.prompt_tokens,
            "completion_tokens": answered.completion_tokens,
            "total_tokens": answered.prompt_tokens + answered.completion_tokens,
        },
        "limbeck": told(serving, answered, outcome),
    })
}

/// What the artifact made of the message, beside whoever's answer it is.
pub fn told(serving: &Serving, answered: &Answered, outcome: Outcome) -> Value {
    json!({
        "artifact": serving.name,
        "version": serving.version,
        "manifest_sha256": serving.manifest_digest,
        "outcome": outcome.name(),
        "route": answered.route,
        "answer": answered.text,
        "fault": answered.fault,
        "confidence": answered.confidence,
        "score": answered.score,
        "threshold": serving.threshold,
        "threshold_on": serving.threshold_on,
    })
}

/// A whole completion as server-sent events: its role and content, its end, its usage where asked for.
pub fn events(completion: &Value, include_usage: bool) -> String {
    let choice = &completion["choices"][0];
    let mut delta = choice["message"].clone();
    if let Some(calls) = delta.get_mut("tool_calls").and_then(Value::as_array_mut) {
        // In a stream a call says which one it is.
        calls.iter_mut().enumerate().for_each(|(i, call)| call["index"] = json!(i));
    }
    let chunk = |choices: Value, usage: Value| {
        let mut chunk = json!({
            "id": completion["id"],
            "object": "chat.completion.chunk",
            "created": completion["created"],
            "model": completion["model"],
            "choices": choices,
        });
        if include_usage {
            chunk["usage"] = usage;
        }
        chunk
    };
    let said = json!([{"index": 0, "delta": delta, "finish_reason": null}]);
    let end = json!([{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]);
    let mut last = chunk(end, Value::Null);
    last["limbeck"] = completion["limbeck"].clone();
    let mut chunks = vec![chunk(said, Value::Null), last];
    if include_usage {
        chunks.push(chunk(json!([]), completion["usage"].clone()));
    }
    let mut text: String = chunks.iter().map(|chunk| format!("data: {chunk}\n\n")).collect();
    text.push_str("data: [DONE]\n\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &str) -> String {
        Chat::parse(body.as_bytes()).map(|_| ()).unwrap_err().message
    }

    #[test]
    fn requests_of_all_shapes_are_read_and_what_is_none_is_told() {
        let chat = Chat::parse(
            br#"{"model":"m","user":"u1","stream":true,"stream_options":{"include_usage":true},"temperature":0,
                "messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"hi"}]}]}"#,
        )
        .unwrap();
        assert_eq!((chat.messages[1].content.as_str(), chat.stream, chat.include_usage), ("hi", true, true));
        assert_eq!(chat.user(), Some("u1"));
        assert!(refused("{").contains("no JSON"));
        assert!(refused("{}").contains("`messages` is missing"));
        assert!(refused(r#"{"messages":[{"role":"system","content":"s"}]}"#).contains("no message of the user"));
        assert!(refused(r#"{"messages":[{"role":"user","content":" "}]}"#).contains("no message of the user"));
        assert!(refused(r#"{"messages":[{"role":"user","content":"x"}],"n":2}"#).contains("`n` above 1"));
    }

    #[test]
    fn a_completion_becomes_the_events_that_clients_put_together_again() {
        let completion = json!({
            "id": "x", "created": 1, "model": "m", "usage": {"total_tokens": 3}, "limbeck": {"route": "serve"},
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}],
        });
        let text = events(&completion, true);
        let lines: Vec<&str> = text.split("\n\n").filter(|l| !l.is_empty()).collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[3], "data: [DONE]");
        let chunk = |i: usize| serde_json::from_str::<Value>(lines[i].strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(chunk(0)["choices"][0]["delta"]["content"], "a");
        assert_eq!(chunk(1)["choices"][0]["finish_reason"], "stop");
        assert_eq!(chunk(1)["limbeck"]["route"], "serve");
        assert_eq!((&chunk(2)["choices"], &chunk(2)["usage"]["total_tokens"]), (&json!([]), &json!(3)));
    }
}
