//! Messages, as the many dialects of chat write them: OpenAI's roles and parts, LangChain's serialised objects, OpenTelemetry's
//! parts, ShareGPT's pairs. One place turns them into [`Message`]s, so that a reader only has to find them.
//!
//! Sources: OpenAI API reference (chat completions, responses); `langchain_core.messages` (`messages_to_dict`, `dumpd`) as
//! LangSmith stores it; OpenTelemetry GenAI `gen-ai-input-messages.json` (parts).

use super::draft::structured;
use super::{Reject, RejectReason, reject};
use limbeck_artifact::dataset::{Message, ToolCall, ToolFunction};
use serde_json::{Value, json};

/// A role under the name that this program uses; none for one that nobody knows.
pub fn role(name: &str) -> Option<&'static str> {
    Some(match name {
        "system" | "SystemMessage" | "SystemMessageChunk" => "system",
        "developer" => "developer",
        "user" | "human" | "HumanMessage" | "HumanMessageChunk" => "user",
        "assistant" | "ai" | "gpt" | "chatgpt" | "bing" | "bard" | "model" | "bot" | "AIMessage" | "AIMessageChunk"
        | "function_call" => "assistant",
        "tool" | "function" | "observation" | "function_response" | "ToolMessage" | "FunctionMessage" => "tool",
        _ => return None,
    })
}

/// A list of messages; `name` is how a reason calls it.
pub fn messages(list: &Value, name: &str) -> Result<Vec<Message>, Reject> {
    let Some(list) = list.as_array() else {
        return reject(RejectReason::WrongType, format!("{name} is no list"));
    };
    // LangChain keeps a batch: a list of lists with one conversation each.
    let list = match list.as_slice() {
        [Value::Array(first)] => first,
        _ => list,
    };
    let mut out = Vec::with_capacity(list.len());
    for (i, value) in list.iter().enumerate() {
        push(value, &mut out, &|| format!("{name}[{i}]"))?;
    }
    Ok(out)
}

/// One message. `at` says where it stands, for the reason.
pub fn message(value: &Value, at: &dyn Fn() -> String) -> Result<Message, Reject> {
    let mut out = Vec::new();
    push(value, &mut out, at)?;
    match out.pop() {
        Some(message) => Ok(message),
        None => reject(RejectReason::WrongType, format!("{} is no message", at())),
    }
}

/// Most messages are one; a turn that answers several tools at once is one a tool.
fn push(value: &Value, out: &mut Vec<Message>, at: &dyn Fn() -> String) -> Result<(), Reject> {
    let value = &unwrapped(value);
    if let Some([who, what]) = value.as_array().map(Vec::as_slice) {
        // ["human", "hello"]
        return push(&json!({"role": who, "content": what}), out, at);
    }
    // Responses API: calls and their results are items beside the messages.
    match value.get("type").and_then(Value::as_str) {
        Some("function_call") => {
            let Some(call) = tool_call(value) else {
                return reject(RejectReason::WrongType, format!("{} is no call", at()));
            };
            out.push(Message { tool_calls: vec![call], ..Message::new("assistant", "") });
            return Ok(());
        }
        Some("function_call_output") => {
            let said = value.get("output").map(as_text).unwrap_or_default();
            let id = value.get("call_id").and_then(Value::as_str).map(str::to_string);
            out.push(Message { tool_call_id: id, ..Message::new("tool", &said) });
            return Ok(());
        }
        Some("reasoning") if value.get("role").is_none() => return Ok(()),
        _ => {}
    }
    let named = ["role", "type", "from"].iter().find_map(|key| role(value.get(key)?.as_str()?));
    let Some(role) = named else {
        return reject(RejectReason::WrongType, format!("{}.role is no known role", at()));
    };
    let body = ["content", "parts", "value", "contents"].iter().find_map(|key| value.get(key).filter(|v| !v.is_null()));
    let parts = Parts::of(body);
    let mut calls = tool_calls(value, at)?;
    calls.extend(parts.calls);
    let content = match parts.text {
        Some(content) => content,
        // An assistant that only calls tools says nothing, and a tool's results may be all that a turn holds.
        None if !calls.is_empty() && body.is_none() => String::new(),
        None => return reject(RejectReason::WrongType, format!("{}.content is no text", at())),
    };
    for (id, name, said) in &parts.results {
        out.push(Message { tool_call_id: id.clone(), name: name.clone(), ..Message::new("tool", said) });
    }
    if !parts.results.is_empty() && content.is_empty() && calls.is_empty() {
        return Ok(());
    }
    let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_string);
    let (tool_call_id, name) = if role == "tool" { (text("tool_call_id"), text("name")) } else { (None, None) };
    out.push(Message { role: role.to_string(), content, tool_calls: calls, tool_call_id, name });
    Ok(())
}

/// The message inside its wrapping: LangChain's constructor (`lc`, `kwargs`), its `{type, data}`, OpenInference's
/// `message`, and OpenAI's plain object as it is.
fn unwrapped(value: &Value) -> Value {
    let class = value.get("id").and_then(Value::as_array).and_then(|path| path.last()).and_then(Value::as_str);
    if let (Some(kwargs), Some(class)) = (value.get("kwargs").and_then(Value::as_object), class) {
        let mut inner = kwargs.clone();
        if !inner.contains_key("role") && inner.get("type").and_then(Value::as_str).is_none_or(|t| role(t).is_none()) {
            inner.insert("role".to_string(), json!(class));
        }
        return Value::Object(with_additional(inner));
    }
    if let (Some(data), Some(kind)) = (value.get("data").and_then(Value::as_object), value.get("type")) {
        let mut inner = data.clone();
        inner.insert("role".to_string(), kind.clone());
        return Value::Object(with_additional(inner));
    }
    match value.get("message").filter(|m| m.is_object() && value.get("role").is_none()) {
        Some(inner) => inner.clone(),
        None => value.clone(),
    }
}

/// LangChain keeps what is OpenAI's own under `additional_kwargs`.
fn with_additional(mut inner: serde_json::Map<String, Value>) -> serde_json::Map<String, Value> {
    let listed = |v: &Value| v.as_array().is_some_and(|list| !list.is_empty());
    if !inner.get("tool_calls").is_some_and(listed)
        && let Some(calls) = inner.get("additional_kwargs").and_then(|more| more.get("tool_calls")).cloned()
    {
        inner.insert("tool_calls".to_string(), calls);
    }
    inner
}

fn tool_calls(message: &Value, at: &dyn Fn() -> String) -> Result<Vec<ToolCall>, Reject> {
    if let Some(call) = message.get("function_call").filter(|c| c.is_object()) {
        return Ok(tool_call(call).into_iter().collect());
    }
    match message.get("tool_calls") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(found) => match found.as_array().map(|list| list.iter().map(tool_call).collect::<Option<Vec<_>>>()) {
            Some(Some(calls)) => Ok(calls),
            _ => reject(RejectReason::WrongType, format!("{}.tool_calls is no list of calls", at())),
        },
    }
}

/// `{id, function: {name, arguments}}`, `{name, arguments | args | input, id | call_id}`, or either within `tool_call`.
/// Arguments stay as they were written, text or object.
pub fn tool_call(value: &Value) -> Option<ToolCall> {
    let value = value.get("tool_call").filter(|c| c.is_object()).unwrap_or(value);
    let function = value.get("function").filter(|f| f.is_object()).unwrap_or(value);
    let name = ["name", "raw_name"].iter().find_map(|key| function.get(key)?.as_str())?;
    let arguments = ["arguments", "args", "input", "raw_arguments", "parameters"]
        .iter()
        .find_map(|key| function.get(key).filter(|v| !v.is_null()))
        .cloned()
        .unwrap_or_default();
    let id = ["id", "call_id", "tool_call_id"].iter().find_map(|key| value.get(key)?.as_str());
    Some(ToolCall {
        id: id.filter(|id| !id.is_empty()).map(str::to_string),
        kind: "function".to_string(),
        function: ToolFunction { name: name.to_string(), arguments },
    })
}

/// What a message's content holds.
#[derive(Default)]
struct Parts {
    /// None where something is no text: an image, a sound.
    text: Option<String>,
    calls: Vec<ToolCall>,
    /// A tool's answers: call id, tool, text.
    results: Vec<(Option<String>, Option<String>, String)>,
}

impl Parts {
    fn of(body: Option<&Value>) -> Parts {
        let mut parts = Parts::default();
        let list = match body {
            Some(Value::String(s)) => return Parts { text: Some(s.clone()), ..parts },
            Some(Value::Array(list)) => list.as_slice(),
            Some(one @ Value::Object(_)) => std::slice::from_ref(one),
            _ => return parts,
        };
        let mut text = Some(String::new());
        for part in list {
            parts.take(part, &mut text);
        }
        parts.text = text;
        parts
    }

    fn take(&mut self, part: &Value, text: &mut Option<String>) {
        let part = part.get("message_content").filter(|p| p.is_object()).unwrap_or(part);
        let field = |keys: &[&str]| keys.iter().find_map(|key| part.get(key)?.as_str());
        let part_type = part.get("type").and_then(Value::as_str);
        match part_type {
            None if part.is_string() => append(text, part.as_str()),
            Some("text" | "input_text" | "output_text" | "raw_text") | None => {
                match field(&["text", "content", "value"]) {
                    Some(said) => append(text, Some(said)),
                    // TensorZero's arguments of a template are what the caller said.
                    None => append(text, part.get("arguments").map(Value::to_string).as_deref()),
                }
            }
            Some("template") => append(text, part.get("arguments").map(Value::to_string).as_deref()),
            Some("refusal") => append(text, field(&["refusal", "content"])),
            // What a model thinks to itself is no part of what it said.
            Some("reasoning" | "thinking" | "redacted_thinking" | "thought" | "compaction") => {}
            Some("tool_call" | "tool_use" | "function_call") => match tool_call(part) {
                Some(call) => self.calls.push(call),
                None => *text = None,
            },
            Some("tool_call_response" | "tool_result" | "function_call_output") => {
                let said = ["response", "result", "content", "output"].iter().find_map(|key| part.get(key));
                let id = field(&["id", "tool_use_id", "call_id"]).map(str::to_string);
                self.results.push((id, field(&["name"]).map(str::to_string), said.map(as_text).unwrap_or_default()));
            }
            Some(_) => *text = None,
        }
    }
}

fn append(text: &mut Option<String>, more: Option<&str>) {
    match more {
        Some(more) => {
            if let Some(text) = text {
                text.push_str(more);
            }
        }
        None => *text = None,
    }
}

/// A text as it is, a list of text parts joined, anything else as JSON.
pub fn as_text(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        Value::Null => String::new(),
        Value::Array(_) => Parts::of(Some(value)).text.unwrap_or_else(|| value.to_string()),
        other => other.to_string(),
    }
}

/// What a message answers: the calls it makes, as JSON, or its text.
pub fn answer(message: &Message) -> String {
    let call = |call: &ToolCall| json!({"name": call.function.name, "arguments": structured(&call.function.arguments)});
    match message.tool_calls.as_slice() {
        [] => message.content.clone(),
        [one] => call(one).to_string(),
        many => Value::Array(many.iter().map(call).collect()).to_string(),
    }
}

/// A prompt as loggers keep it: a list of messages, `{messages: […]}`, one message, a text, or JSON text of any of them.
pub fn prompt(value: &Value, name: &str) -> Result<Vec<Message>, Reject> {
    let value = structured(value);
    match &value {
        Value::String(text) => Ok(vec![Message::new("user", text)]),
        Value::Array(_) => messages(&value, name),
        Value::Object(fields) => {
            let inside = ["messages", "input", "prompt", "contents"];
            let system = ["system", "instructions"].iter().find_map(|key| fields.get(*key)).map(as_text);
            let mut out: Vec<Message> =
                system.filter(|s| !s.is_empty()).map(|s| Message::new("system", &s)).into_iter().collect();
            if let Some((key, found)) = inside.iter().find_map(|key| Some((key, fields.get(*key)?))) {
                out.extend(prompt(found, &format!("{name}.{key}"))?);
            } else {
                out.push(message(&value, &|| name.to_string())?);
            }
            Ok(out)
        }
        _ => reject(RejectReason::MissingMessages, format!("{name} holds no prompt")),
    }
}

/// A completion as loggers keep it: a message, a list whose last is one, a response with `choices` or `output`, a text,
/// or JSON text of any of them. Gives the answer and the finish reason.
pub fn completion(value: &Value, name: &str) -> Result<(Option<String>, Option<String>), Reject> {
    let value = structured(value);
    let finish =
        |v: &Value| ["finish_reason", "stop_reason"].iter().find_map(|k| Some(v.get(k)?.as_str()?.to_string()));
    match &value {
        Value::Null => Ok((None, None)),
        Value::String(text) => Ok((Some(text.clone()), None)),
        Value::Array(list) if list.iter().all(|v| role_of(v).is_some()) && !list.is_empty() => {
            let last = messages(&value, name)?.pop();
            Ok((last.as_ref().map(answer), list.last().and_then(finish)))
        }
        Value::Array(list) => {
            // Content blocks without a role: the assistant's.
            let body = Value::Array(list.clone());
            let said = message(&json!({"role": "assistant", "content": body}), &|| name.to_string())?;
            Ok((Some(answer(&said)), None))
        }
        Value::Object(fields) => {
            if let Some(choice) = fields.get("choices").and_then(Value::as_array).and_then(|c| c.first()) {
                let inner = choice.get("message").unwrap_or(choice);
                let (said, _) = completion(inner, name)?;
                return Ok((said, finish(choice)));
            }
            if role_of(&value).is_some() {
                let said = message(&value, &|| name.to_string())?;
                return Ok((Some(answer(&said)), finish(&value)));
            }
            for key in
                ["output", "messages", "message", "content", "text", "completion", "answer", "response", "result"]
            {
                if let Some(inner) = fields.get(key).filter(|v| !v.is_null()) {
                    let (said, why) = completion(inner, &format!("{name}.{key}"))?;
                    return Ok((said, why.or_else(|| finish(&value))));
                }
            }
            // A structured answer that is logged as the object it is.
            Ok((Some(value.to_string()), None))
        }
        other => Ok((Some(other.to_string()), None)),
    }
}

fn role_of(value: &Value) -> Option<&'static str> {
    let inner = unwrapped(value);
    ["role", "type", "from"].iter().find_map(|key| role(inner.get(key)?.as_str()?))
}
