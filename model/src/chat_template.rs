//! Chat templates come inside model files and are programs: they run in minijinja's sandbox with limits on steps,
//! depth and output, see the messages and nothing else, and are rendered with the settings that transformers uses.

use crate::error::{ModelError, Result};
use limbeck_artifact::dataset::{Message, ToolCall};
use minijinja::machinery::{Token, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Enumerator, Object, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value, context};
use serde_json::Value as Json;
use std::io::{self, Write};
use std::sync::Arc;

const MAX_TEMPLATE_BYTES: usize = 1 << 20;
const MAX_OUTPUT_BYTES: usize = 16 << 20;
const MAX_MESSAGES: usize = 10_000;
/// Steps for the template itself and for each message; published templates take some tens a message.
const FUEL: u64 = 100_000;
const FUEL_A_MESSAGE: u64 = 10_000;
const MAX_DEPTH: usize = 64;
/// The parser goes down a frame for each link of a chain, and so does whoever walks its tree: 4,000 links fit on a stack of 8 MiB, and
/// threads have two. Published templates have some tens of tokens in a tag and as many alternatives in all.
const MAX_TAG_TOKENS: usize = 1000;
const MAX_ALTERNATIVES: usize = 200;
const NAME: &str = "chat_template";

/// A parsed template with the special tokens that it may name.
pub struct ChatTemplate {
    source: String,
    environment: Environment<'static>,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

impl ChatTemplate {
    /// Parses `source`; an empty one is accepted and refuses to render.
    ///
    /// # Errors
    /// When the template is too large or has a mistake.
    pub fn new(source: &str, bos_token: Option<String>, eos_token: Option<String>) -> Result<Self> {
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(ModelError::ChatTemplate { why: format!("{} bytes are more than 1 MiB", source.len()) });
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(wrong)?;
        let source_to_parse = without_generation_tags(source);
        check_chains(&source_to_parse, syntax.clone())?;
        environment.set_syntax(syntax);
        environment.set_recursion_limit(MAX_DEPTH);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_formatter(capped_format);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", raise_exception);
        environment.add_template_owned(NAME, source_to_parse).map_err(wrong)?;
        Ok(Self { source: source.into(), environment, bos_token, eos_token })
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// # Errors
    /// When there is no template, it raises an exception, or it exceeds its limits.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        if self.source.is_empty() {
            let why = "the model has none; take an instruction-tuned model, or add chat_template.jinja to its folder";
            return Err(ModelError::ChatTemplate { why: why.into() });
        }
        if messages.len() > MAX_MESSAGES {
            return Err(ModelError::ChatTemplate { why: format!("{} messages are too many", messages.len()) });
        }
        let messages: Vec<Value> = messages.iter().map(message).collect();
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(FUEL + FUEL_A_MESSAGE * messages.len() as u64));
        let template = environment.get_template(NAME).map_err(wrong)?;
        let mut out = Capped(Vec::new());
        let given = context! {
            messages,
            add_generation_prompt,
            bos_token => self.bos_token.as_deref(),
            eos_token => self.eos_token.as_deref(),
            tools => (),
            documents => (),
        };
        template.render_captured_to(given, &mut out).map_err(wrong)?;
        String::from_utf8(out.0).map_err(|_| ModelError::ChatTemplate { why: "it gave no UTF-8".into() })
    }
}

/// A message as transformers hands it to a template: what a message does not have is no key of it.
fn message(m: &Message) -> Value {
    let mut fields = vec![("role", Value::from(m.role.as_str())), ("content", Value::from(m.content.as_str()))];
    if !m.tool_calls.is_empty() {
        fields.push(("tool_calls", m.tool_calls.iter().map(tool_call).collect()));
    }
    for (key, value) in [("tool_call_id", &m.tool_call_id), ("name", &m.name)] {
        fields.extend(value.as_deref().map(|text| (key, Value::from(text))));
    }
    Value::from_object(Ordered(fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()))
}

/// Templates write the arguments with `tojson`, so the JSON text that APIs give becomes the object that it is.
fn tool_call(call: &ToolCall) -> Value {
    let arguments = match call.function.arguments.as_str().map(serde_json::from_str::<Json>) {
        Some(Ok(parsed @ Json::Object(_))) => ordered(&parsed),
        _ => ordered(&call.function.arguments),
    };
    let function =
        vec![("name".to_owned(), Value::from(call.function.name.as_str())), ("arguments".to_owned(), arguments)];
    let mut fields = Vec::new();
    fields.extend(call.id.as_deref().map(|id| ("id".to_owned(), Value::from(id))));
    fields.push(("type".to_owned(), Value::from(call.kind.as_str())));
    fields.push(("function".to_owned(), Value::from_object(Ordered(function))));
    Value::from_object(Ordered(fields))
}

/// JSON as a template's value, its keys in their order.
fn ordered(json: &Json) -> Value {
    match json {
        Json::Array(items) => items.iter().map(ordered).collect(),
        Json::Object(fields) => {
            Value::from_object(Ordered(fields.iter().map(|(key, value)| (key.clone(), ordered(value))).collect()))
        }
        Json::String(text) => Value::from(text.as_str()),
        Json::Bool(yes) => Value::from(*yes),
        Json::Null => Value::from(()),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => Value::from(n),
            (_, Some(n)) => Value::from(n),
            _ => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
    }
}

/// A map that keeps the order of its keys, as Python's does.
#[derive(Debug)]
struct Ordered(Vec<(String, Value)>);

impl Object for Ordered {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let key = key.as_str()?;
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.0.iter().map(|(name, _)| Value::from(name.as_str())).collect())
    }
}

fn wrong(error: Error) -> ModelError {
    let line = error.line().map(|n| format!(" (line {n})")).unwrap_or_default();
    let detail = error.detail().map(|d| format!(": {d}")).unwrap_or_default();
    ModelError::ChatTemplate { why: format!("{}{detail}{line}", error.kind()) }
}

fn raise_exception(message: String) -> std::result::Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// As Python's `json.dumps(…, ensure_ascii=False)`: a space after each comma and colon, nothing escaped for HTML.
fn to_json(value: &Value) -> std::result::Result<String, Error> {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    Ok(match value.kind() {
        ValueKind::Undefined | ValueKind::None => "null".into(),
        // Printed as Python does, True; JSON wants true.
        ValueKind::Bool => value.is_true().to_string(),
        ValueKind::Number => value.to_string(),
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?.map(|item| to_json(&item)).collect::<std::result::Result<Vec<_>, _>>()?;
            format!("[{}]", items.join(", "))
        }
        ValueKind::Map => {
            let entry = |key: Value| Ok(format!("{}: {}", quoted(&key.to_string()), to_json(&value.get_item(&key)?)?));
            let items = value.try_iter()?.map(entry).collect::<std::result::Result<Vec<_>, Error>>()?;
            format!("{{{}}}", items.join(", "))
        }
        _ => quoted(&value.to_string()),
    })
}

/// Bounds each printed value, which bounds captured blocks (`{% set x %}…`) as well.
fn capped_format(out: &mut Output, state: &mut State, value: &Value) -> std::result::Result<(), Error> {
    if value.len().is_some_and(|n| n > MAX_OUTPUT_BYTES) || value.as_str().is_some_and(|s| s.len() > MAX_OUTPUT_BYTES) {
        return Err(Error::new(ErrorKind::WriteFailure, "the output is larger than 16 MiB"));
    }
    minijinja::escape_formatter(out, state, value)
}

struct Capped(Vec<u8>);

impl Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT_BYTES {
            return Err(io::Error::other("the output is larger than 16 MiB"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Refuses a template whose parsing would take the stack.
fn check_chains(source: &str, syntax: SyntaxConfig) -> Result<()> {
    let (mut in_tag, mut alternatives) = (0, 0);
    // A mistake ends the count: the parser stops there too, and tells it.
    for (token, _) in tokenize(source, false, syntax).map_while(std::result::Result::ok) {
        match token {
            Token::VariableStart | Token::BlockStart => in_tag = 0,
            Token::Ident("elif") => alternatives += 1,
            _ => {}
        }
        in_tag += 1;
        if in_tag > MAX_TAG_TOKENS || alternatives > MAX_ALTERNATIVES {
            let why = format!("more than {MAX_TAG_TOKENS} tokens in one tag, or {MAX_ALTERNATIVES} alternatives");
            return Err(ModelError::ChatTemplate { why });
        }
    }
    Ok(())
}

/// transformers' `{% generation %}` marks the assistant's text for its own masks; to us it says nothing. It becomes a
/// comment with the same whitespace control.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let Some(end) = rest[at..].find("%}").map(|n| at + n) else { break };
        let inside = &rest[at + 2..end];
        let word = inside.trim_matches(['-', '+']).trim();
        out.push_str(&rest[..at]);
        if word == "generation" || word == "endgeneration" {
            let mark = |c: Option<char>| c.filter(|&c| c == '-').map(String::from).unwrap_or_default();
            out.push_str(&format!("{{#{} {}#}}", mark(inside.chars().next()), mark(inside.chars().last())));
        } else {
            out.push_str(&rest[at..end + 2]);
        }
        rest = &rest[end + 2..];
    }
    out.push_str(rest);
    out
}
