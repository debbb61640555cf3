//! One line of a chat-completion log as a trace, or the reason why it is none. Nothing here trusts the line, and no
//! reason repeats its content: what is rejected was never redacted.

use crate::redact::{Kind, Redactor};
use limbeck_artifact::dataset::{Message, ToolCall};
use limbeck_artifact::digest::{canonical_json, sha256_hex};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

/// A recorded call: what was asked, what the model answered, and what production knew about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// The log's own id, or `sha256:` and the first 32 hex digits of the line's digest.
    pub id: String,
    pub customer: Option<String>,
    /// RFC 3339, UTC.
    pub at: Option<String>,
    /// Everything before the answer.
    pub messages: Vec<Message>,
    pub answer: String,
    pub model: String,
    pub finish_reason: Option<String>,
    pub latency_ms: Option<f64>,
    pub prompt_tokens: Option<u64>,
    pub completion_tokens: Option<u64>,
    pub feedback: Option<String>,
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

/// Reads a line in one of the shapes that production logs have: `{request: {messages}, response: {choices}}`, with the
/// request's or the response's fields at the top level, or a conversation whose last turn is the assistant's.
pub fn parse(line: &[u8]) -> Result<Trace, Reject> {
    let text = std::str::from_utf8(line).or_else(|e| {
        reject(RejectReason::InvalidUtf8, format!("byte {} is no UTF-8; export the log as UTF-8", e.valid_up_to() + 1))
    })?;
    let value: Value = serde_json::from_str(text.trim_start_matches('\u{feff}')).or_else(|e| {
        let deep = e.to_string().starts_with("recursion limit");
        let (reason, what) = if deep {
            (RejectReason::TooDeep, "nested deeper than 128 levels")
        } else if e.is_eof() {
            (RejectReason::InvalidJson, "ends early")
        } else {
            (RejectReason::InvalidJson, "syntax error")
        };
        reject(reason, format!("{what} at column {}", e.column()))
    })?;
    if !value.is_object() {
        return reject(RejectReason::WrongType, "the line is no JSON object");
    }
    let request = object(&value, "request")?.unwrap_or(&value);
    let response = object(&value, "response")?.unwrap_or(&value);
    let mut messages = messages(request)?;
    let (answer, finish_reason) = match answer(response)? {
        Some(found) => found,
        None if messages.last().is_some_and(|m| m.role == "assistant") => {
            (messages.pop().map(|m| m.content).unwrap_or_default(), None)
        }
        None => return reject(RejectReason::MissingResponse, "no response.choices[0].message.content"),
    };
    if !messages.iter().any(|m| m.role == "user") {
        return reject(RejectReason::MissingMessages, "no message of the user");
    }
    if messages.iter().filter(|m| m.role == "user").all(|m| m.content.trim().is_empty()) {
        return reject(RejectReason::EmptyMessage, "the user's message is empty");
    }
    let usage = object(response, "usage")?.unwrap_or(&Value::Null);
    Ok(Trace {
        id: id(&value, response)?.unwrap_or_else(|| format!("sha256:{}", &sha256_hex(line)[..32])),
        customer: string(&value, "customer")?.or(string(request, "user")?).filter(|c| !c.trim().is_empty()),
        at: time_of(&value, response),
        messages,
        answer,
        model: string(response, "model")?.or(string(request, "model")?).unwrap_or_default(),
        finish_reason,
        latency_ms: latency(&value)?,
        prompt_tokens: count(usage, "prompt_tokens")?,
        completion_tokens: count(usage, "completion_tokens")?,
        feedback: string(&value, "feedback")?.filter(|f| !f.is_empty() && f != "none"),
    })
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
    /// Redacts every text of the trace as one document. A customer that is itself an address or a number, or an id
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
        if let Some(customer) = &mut self.customer
            && document.redact(customer) != *customer
        {
            *customer = pseudonym(customer);
        }
        // Only an address: many a random id looks like a telephone number, and a trace must be found again by its id.
        if redactor.has_email(&self.id) {
            self.id = pseudonym(&self.id);
        }
        document.counts().clone()
    }

    /// The label that the answer is; none when it is outside the taxonomy or the token limit cut it off.
    pub fn label<'l>(&self, labels: &'l [String]) -> Option<&'l str> {
        let cut_off = self.finish_reason.as_deref() == Some("length");
        crate::taxonomy::label_of(labels, &self.answer).filter(|_| !cut_off)
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

fn object<'v>(value: &'v Value, key: &str) -> Result<Option<&'v Value>, Reject> {
    match value.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(found) if found.is_object() => Ok(Some(found)),
        Some(_) => reject(RejectReason::WrongType, format!("{key} is no object")),
    }
}

fn string(value: &Value, key: &str) -> Result<Option<String>, Reject> {
    match value.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(s)) => Ok(Some(s.clone())),
        Some(_) => reject(RejectReason::WrongType, format!("{key} is no string")),
    }
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

fn latency(value: &Value) -> Result<Option<f64>, Reject> {
    match value.get("latency_ms") {
        None | Some(Value::Null) => Ok(None),
        Some(n) => match n.as_f64() {
            Some(ms) if ms.is_finite() && ms >= 0.0 => Ok(Some(ms)),
            _ => reject(RejectReason::WrongType, "latency_ms is no number of at least 0"),
        },
    }
}

/// An id becomes part of file contents and screens: long ones and those with control characters are not taken over.
fn id(value: &Value, response: &Value) -> Result<Option<String>, Reject> {
    let found = match value.get("id") {
        Some(Value::Number(n)) => Some(n.to_string()),
        _ => string(value, "id")?.or(string(response, "id")?),
    };
    Ok(found.filter(|id| {
        let plain = id.chars().all(|c| !c.is_control() && !c.is_whitespace());
        (1..=200).contains(&id.len()) && plain
    }))
}

fn messages(request: &Value) -> Result<Vec<Message>, Reject> {
    let Some(found) = request.get("messages").filter(|m| !m.is_null()) else {
        return reject(RejectReason::MissingMessages, "no request.messages");
    };
    let Some(list) = found.as_array() else {
        return reject(RejectReason::WrongType, "messages is no list");
    };
    list.iter()
        .enumerate()
        .map(|(i, m)| {
            let role = match m.get("role").and_then(Value::as_str) {
                Some(role @ ("system" | "developer" | "user" | "assistant" | "tool")) => role.to_string(),
                _ => return reject(RejectReason::WrongType, format!("messages[{i}].role is no known role")),
            };
            let tool_calls = tool_calls(m, i)?;
            let content = match content(m.get("content")) {
                Some(content) => content,
                // An assistant that only calls tools says nothing.
                None if !tool_calls.is_empty() && m.get("content").is_none_or(Value::is_null) => String::new(),
                None => return reject(RejectReason::WrongType, format!("messages[{i}].content is no text")),
            };
            let (tool_call_id, name) = match role.as_str() {
                "tool" => (string(m, "tool_call_id")?, string(m, "name")?),
                _ => (None, None),
            };
            Ok(Message { role, content, tool_calls, tool_call_id, name })
        })
        .collect()
}

fn tool_calls(message: &Value, i: usize) -> Result<Vec<ToolCall>, Reject> {
    match message.get("tool_calls") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(found) => serde_json::from_value(found.clone())
            .or_else(|_| reject(RejectReason::WrongType, format!("messages[{i}].tool_calls is no list of calls"))),
    }
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

/// A string, or a list of text parts. Images and sounds are no text.
fn content(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(s) => Some(s.clone()),
        Value::Array(parts) => parts
            .iter()
            .map(|p| match p.get("type").and_then(Value::as_str) {
                Some("text" | "input_text" | "output_text") => p.get("text").and_then(Value::as_str),
                _ => None,
            })
            .collect::<Option<Vec<_>>>()
            .map(|texts| texts.concat()),
        _ => None,
    }
}

fn answer(response: &Value) -> Result<Option<(String, Option<String>)>, Reject> {
    let Some(choices) = response.get("choices").filter(|c| !c.is_null()) else { return Ok(None) };
    let Some(choice) = choices.as_array().and_then(|list| list.first()) else {
        return reject(RejectReason::MissingResponse, "response.choices holds no choice");
    };
    let Some(message) = object(choice, "message")? else {
        return reject(RejectReason::MissingResponse, "response.choices[0] holds no message");
    };
    match message.get("content") {
        None | Some(Value::Null) => reject(RejectReason::MissingResponse, "response.choices[0].message has no content"),
        found => match content(found) {
            Some(text) => Ok(Some((text, string(choice, "finish_reason")?))),
            None => reject(RejectReason::WrongType, "response.choices[0].message.content is no text"),
        },
    }
}

/// RFC 3339 or seconds since 1970; anything else is no time that can be trusted and stays out.
fn time_of(value: &Value, response: &Value) -> Option<String> {
    let found = ["time", "created_at", "created"].iter().find_map(|k| value.get(k)).or(response.get("created"))?;
    let at = match found {
        Value::String(s) => OffsetDateTime::parse(s, &Rfc3339).ok()?,
        Value::Number(n) => OffsetDateTime::from_unix_timestamp(n.as_i64()?).ok()?,
        _ => return None,
    };
    at.checked_to_offset(UtcOffset::UTC)?.format(&Rfc3339).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: &str = r#"{"role":"user","content":"hello"}"#;

    fn line(request: &str, response: &str) -> String {
        format!(r#"{{"id":"t1","request":{request},"response":{response}}}"#)
    }

    fn reason(line: &str) -> RejectReason {
        parse(line.as_bytes()).unwrap_err().reason
    }

    #[test]
    fn reads_a_recorded_call() {
        let trace = parse(
            br#"{"id":"t1","time":"2026-02-03T10:00:00+01:00","customer":"c1","request":{"model":"m","messages":
            [{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"hi"}]}]},"response":{"model":"m-1",
            "choices":[{"message":{"role":"assistant","content":"a"},"finish_reason":"stop"}],
            "usage":{"prompt_tokens":12,"completion_tokens":3}},"latency_ms":812.5,"feedback":"thumbs_up"}"#,
        )
        .unwrap();
        assert_eq!(trace.at.as_deref(), Some("2026-02-03T09:00:00Z"));
        assert_eq!(visible_message(&trace.messages), "hi");
        assert_eq!((trace.answer.as_str(), trace.model.as_str()), ("a", "m-1"));
        assert_eq!((trace.prompt_tokens, trace.latency_ms), (Some(12), Some(812.5)));
    }

    #[test]
    fn reads_a_conversation_whose_last_turn_is_the_answer() {
        let trace =
            parse(format!(r#"{{"messages":[{USER},{{"role":"assistant","content":"a"}}]}}"#).as_bytes()).unwrap();
        assert_eq!((trace.messages.len(), trace.answer.as_str()), (1, "a"));
        assert!(trace.id.starts_with("sha256:"));
    }

    #[test]
    fn tool_calls_are_read_shown_and_redacted() {
        let call =
            r#"{"id":"c1","type":"function","function":{"name":"find","arguments":"{\"mail\":\"anna@example.com\"}"}}"#;
        let object = r#"{"function":{"name":"tell","arguments":{"to":["anna@example.com"],"n":1}}}"#;
        let line = format!(
            r#"{{"messages":[{USER},{{"role":"assistant","content":null,"tool_calls":[{call},{object}]}},
            {{"role":"tool","tool_call_id":"c1","name":"find","content":"found"}},{{"role":"assistant","content":"a"}}]}}"#
        );
        let mut trace = parse(line.as_bytes()).unwrap();
        assert_eq!(trace.messages.len(), 3);
        assert_eq!(trace.messages[2].tool_call_id.as_deref(), Some("c1"));
        trace.redact(&Redactor::new().unwrap());
        let shown = visible_message(&trace.messages);
        assert!(shown.contains("tell({\"to\":[\"<EMAIL_1>\"],\"n\":1})") && shown.contains("tool: found"), "{shown}");
        assert!(!serde_json::to_string(&trace.messages).unwrap().contains("anna"));
        let bad = line.replace(&format!("[{call},{object}]"), "[1]");
        assert_eq!(reason(&bad), RejectReason::WrongType);
    }

    #[test]
    fn every_bad_line_has_its_reason() {
        use RejectReason::*;
        let ok = r#"{"choices":[{"message":{"content":"a"}}]}"#;
        let deep = "[".repeat(100_000);
        for (line, want) in [
            ("{\"id\": \"t1\", \"req".to_string(), InvalidJson),
            ("not json".to_string(), InvalidJson),
            (deep, TooDeep),
            ("[1]".to_string(), WrongType),
            (line("{}", ok), MissingMessages),
            (line(r#"{"messages":"hello"}"#, ok), WrongType),
            (line(r#"{"messages":[1]}"#, ok), WrongType),
            (line(r#"{"messages":[]}"#, ok), MissingMessages),
            (line(r#"{"messages":[{"role":"user","content":" \n"}]}"#, ok), EmptyMessage),
            (line(r#"{"messages":[{"role":"user","content":7}]}"#, ok), WrongType),
            (line(&format!(r#"{{"messages":[{USER}]}}"#), "null"), MissingResponse),
            (line(&format!(r#"{{"messages":[{USER}]}}"#), r#"{"choices":[]}"#), MissingResponse),
            (
                line(&format!(r#"{{"messages":[{USER}]}}"#), r#"{"choices":[{"message":{"content":null}}]}"#),
                MissingResponse,
            ),
            (line(&format!(r#"{{"messages":[{USER}]}}"#), r#"{"choices":[{"message":{"content":4}}]}"#), WrongType),
        ] {
            assert_eq!(reason(&line), want, "{}", &line[..line.len().min(120)]);
        }
        assert_eq!(parse(b"{\"id\": \"\xff\"}").unwrap_err().reason, InvalidUtf8);
    }

    #[test]
    fn a_reason_never_repeats_what_the_line_holds() {
        let e = parse(br#"{"request":{"messages":[{"role":"anna@example.com","content":"4111111111111111"}]}}"#)
            .unwrap_err();
        assert!(!e.detail.contains("anna") && !e.detail.contains("4111"), "{}", e.detail);
    }

    #[test]
    fn redaction_reaches_message_answer_and_customer() {
        let mut trace = parse(
            br#"{"id":"call-022378070604","customer":"anna@example.com","messages":[{"role":"user","content":"I am anna@example.com"},
            {"role":"assistant","content":"hello anna@example.com"}]}"#,
        )
        .unwrap();
        let counts = trace.redact(&Redactor::new().unwrap());
        assert_eq!(trace.messages[0].content, "I am <EMAIL_1>");
        assert_eq!(trace.answer, "hello <EMAIL_1>");
        assert!(trace.customer.unwrap().starts_with("sha256:"));
        assert_eq!(trace.id, "call-022378070604");
        assert_eq!(counts[&Kind::Email], 3);
    }

    /// Thousands of damaged copies of a good line: each is a trace or a reason, redaction holds twice, and no detail
    /// repeats what the line said.
    #[test]
    fn damaged_lines_never_stop_the_import() {
        let good = r#"{"id":"t1","time":"2026-02-03T10:00:00Z","customer":"c1","request":{"messages":[{"role":"user",
            "content":"mail anna@example.com, call +44 7700 900123, card 4111 1111 1111 1111 é"}]},"response":{"choices":[
            {"message":{"content":"x"},"finish_reason":"stop"}],"usage":{"prompt_tokens":12}},"latency_ms":1e3}"#;
        let pieces = [
            &b"\""[..],
            b"{",
            b"}",
            b"[",
            b"null",
            b"-1e999",
            b"\xff",
            b"\\ud800",
            b"@",
            b"+",
            b"4",
            b"\xc3",
            b":",
            b"<",
        ];
        let redactor = Redactor::new().unwrap();
        let mut rng = crate::text::Rng::new(11);
        let (mut read, mut rejected) = (0, 0);
        for _ in 0..6000 {
            let mut line = good.as_bytes().to_vec();
            for _ in 0..1 + rng.below(3) {
                let at = rng.below(line.len());
                let until = (at + rng.below(9)).min(line.len());
                line.splice(at..until, rng.pick(&pieces).iter().copied());
            }
            match parse(&line) {
                Ok(mut trace) => {
                    read += 1;
                    trace.redact(&redactor);
                    let once = trace.clone();
                    trace.redact(&redactor);
                    assert_eq!(trace, once);
                }
                Err(reject) => {
                    rejected += 1;
                    assert!(!reject.detail.contains("anna") && !reject.detail.contains("4111"), "{}", reject.detail);
                }
            }
        }
        assert!(read > 500 && rejected > 500, "{read} read, {rejected} rejected");
    }
}
