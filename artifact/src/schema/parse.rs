//! JSON Schema's text to a [`Schema`]. Keywords that nobody here understands are refused: a rule that is read past would
//! let answers through that its author believes impossible.

use super::{Field, Format, Kind, Length, Pattern, Rules, Schema, SchemaError};
use crate::strict_json;
use regex::RegexBuilder;
use serde_json::{Map, Number, Value};

/// More fields than this nobody reviews.
const MAX_FIELDS: usize = 100;
/// A compiled pattern's bytes at most; patterns come from a file that may be a stranger's.
const MAX_PATTERN: usize = 1 << 20;

/// Says nothing about answers.
const REMARKS: [&str; 5] = ["$schema", "$id", "$comment", "title", "description"];
const OF_OBJECT: [&str; 4] = ["type", "properties", "required", "additionalProperties"];
const OF_LIST: [&str; 4] = ["type", "items", "minItems", "maxItems"];
const OF_VALUE: [&str; 9] =
    ["type", "enum", "minimum", "maximum", "minLength", "maxLength", "pattern", "format", "examples"];

type Result<T> = std::result::Result<T, SchemaError>;

fn error<T>(at: &str, what: impl Into<String>) -> Result<T> {
    Err(SchemaError { at: at.to_owned(), what: what.into() })
}

fn below(at: &str, key: &str) -> String {
    if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") }
}

impl Schema {
    /// Reads a schema; properties keep the text's order.
    ///
    /// # Errors
    /// With the place and what may stand there: JSON that can't be read (or names a key twice), keywords outside the subset,
    /// rules that contradict each other, a pattern that is no regular expression.
    pub fn parse(json_text: &str) -> Result<Schema> {
        let parsed: Value = strict_json::from_slice(json_text.as_bytes())
            .map_err(|e| SchemaError { at: String::new(), what: format!("it is no JSON: {e}") })?;
        let Value::Object(root) = &parsed else { return error("", "a schema is a JSON object") };
        match root.get("type") {
            Some(Value::String(kind)) if kind == "object" => {}
            Some(Value::String(kind)) if kind == "string" => {
                let (rules, _) = value(root, "")?;
                return Ok(Schema { fields: Vec::new(), additional: false, text: Some(rules) });
            }
            None => return error("type", "it is missing; write \"type\": \"object\""),
            Some(other) => {
                return error("type", format!("{other}: an answer is an \"object\" of fields, or a \"string\""));
            }
        }
        known(root, "", &OF_OBJECT)?;
        let properties = match root.get("properties") {
            Some(Value::Object(properties)) if !properties.is_empty() => properties,
            _ => return error("properties", "an object that names at least one field is needed"),
        };
        if properties.len() > MAX_FIELDS {
            return error("properties", format!("{} fields; {MAX_FIELDS} at most", properties.len()));
        }
        let required = required(root, properties)?;
        let additional = match root.get("additionalProperties") {
            None => true,
            Some(Value::Bool(additional)) => *additional,
            Some(_) => {
                return error("additionalProperties", "true or false; rules for unnamed fields are not supported");
            }
        };
        let fields = properties
            .iter()
            .map(|(name, of)| field(name, of, required.contains(&name.as_str())))
            .collect::<Result<Vec<Field>>>()?;
        Ok(Schema { fields, additional, text: None })
    }
}

/// Refuses a keyword that is neither a remark nor one of `keywords`.
fn known(object: &Map<String, Value>, at: &str, keywords: &[&str]) -> Result<()> {
    match object.keys().find(|key| !REMARKS.contains(&key.as_str()) && !keywords.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => error(
            &below(at, key),
            format!("this keyword is not supported here; there are {} and {}", keywords.join(", "), REMARKS.join(", ")),
        ),
    }
}

fn required<'v>(root: &'v Map<String, Value>, properties: &Map<String, Value>) -> Result<Vec<&'v str>> {
    let names: Option<Vec<&str>> = match root.get("required") {
        None => Some(Vec::new()),
        Some(Value::Array(names)) => names.iter().map(Value::as_str).collect(),
        Some(_) => None,
    };
    let Some(names) = names else { return error("required", "a list of field names is needed") };
    match names.iter().find(|name| !properties.contains_key(**name)) {
        Some(name) => error("required", format!("there is no field {name:?} in properties")),
        None => Ok(names),
    }
}

fn field(name: &str, of: &Value, required: bool) -> Result<Field> {
    let at = below("properties", name);
    if name.trim().is_empty() {
        return error(&at, "a field needs a name");
    }
    let Value::Object(object) = of else { return error(&at, "a field's rules are an object") };
    let text = |key: &str| match object.get(key) {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => error(&below(&at, key), "a text is needed"),
    };
    let (title, description) = (text("title")?, text("description")?);
    let (kind, nullable) = kind(object, &at)?;
    let named =
        |rules, nullable, list| Field { name: name.to_owned(), title, description, required, nullable, rules, list };
    match kind {
        Some("array") => {
            known(object, &at, &OF_LIST)?;
            let at_items = below(&at, "items");
            let Some(Value::Object(items)) = object.get("items") else {
                return error(&at_items, "a list needs the rules of its items, such as {\"type\": \"string\"}");
            };
            let (rules, null_item) = value(items, &at_items)?;
            if null_item {
                return error(&at_items, "an item of a list can't be null");
            }
            Ok(named(rules, nullable, Some(length(object, &at, "minItems", "maxItems")?)))
        }
        Some("object") => error(&at, "objects within the answer are not supported: fields are flat"),
        _ => {
            let (rules, nullable) = value(object, &at)?;
            Ok(named(rules, nullable, None))
        }
    }
}

/// The type's name, if it is given, and whether null is one too.
fn kind<'v>(object: &'v Map<String, Value>, at: &str) -> Result<(Option<&'v str>, bool)> {
    let names = match object.get("type") {
        None => return Ok((None, false)),
        Some(Value::String(name)) => vec![name.as_str()],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        Some(_) => Vec::new(),
    };
    let nullable = names.contains(&"null");
    let others: Vec<&str> = names.into_iter().filter(|name| *name != "null").collect();
    match others.as_slice() {
        [name] if matches!(*name, "string" | "integer" | "number" | "boolean" | "array" | "object") => {
            Ok((Some(*name), nullable))
        }
        _ => error(
            &below(at, "type"),
            "one of string, integer, number, boolean, array is needed, or such a one with null: [\"string\", \"null\"]",
        ),
    }
}

/// The rules of a single value, and whether it may be null.
fn value(object: &Map<String, Value>, at: &str) -> Result<(Rules, bool)> {
    known(object, at, &OF_VALUE)?;
    let (named, mut nullable) = kind(object, at)?;
    let mut choices = match object.get("enum") {
        None => Vec::new(),
        Some(Value::Array(choices)) if !choices.is_empty() => choices.clone(),
        Some(_) => return error(&below(at, "enum"), "a list of at least one value is needed"),
    };
    if choices.iter().any(Value::is_null) {
        nullable = nullable || named.is_none();
        choices.retain(|choice| !choice.is_null());
    }
    let kind = match (named, choices.first()) {
        (Some("string"), _) | (None, Some(Value::String(_))) => Kind::String,
        (Some("integer"), _) => Kind::Integer,
        (Some("number"), _) | (None, Some(Value::Number(_))) => Kind::Number,
        (Some("boolean"), _) | (None, Some(Value::Bool(_))) => Kind::Boolean,
        (Some(name), _) => return error(&below(at, "type"), format!("a list's items can't be of the type {name}")),
        (None, _) => return error(at, "it needs a type (string, integer, number, boolean, array) or an enum"),
    };
    let rules = Rules {
        kind,
        minimum: number(object, at, "minimum")?,
        maximum: number(object, at, "maximum")?,
        length: length(object, at, "minLength", "maxLength")?,
        pattern: pattern(object, at)?,
        format: format(object, at)?,
        choices,
    };
    fitting(&rules, object, at)?;
    Ok((rules, nullable))
}

/// Refuses rules that say nothing of a value of this kind, and choices that break them.
fn fitting(rules: &Rules, object: &Map<String, Value>, at: &str) -> Result<()> {
    let foreign: &[&str] = match rules.kind {
        Kind::String => &["minimum", "maximum"],
        Kind::Integer | Kind::Number => &["minLength", "maxLength", "pattern", "format"],
        Kind::Boolean => &["minimum", "maximum", "minLength", "maxLength", "pattern", "format"],
    };
    if let Some(key) = foreign.iter().find(|key| object.contains_key(**key)) {
        return error(&below(at, key), format!("it says nothing of a value of the type {}", rules.kind.name()));
    }
    if let (Some(least), Some(most)) = (&rules.minimum, &rules.maximum)
        && least.as_f64() > most.as_f64()
    {
        return error(at, format!("no value is at least {least} and at most {most}"));
    }
    for (i, choice) in rules.choices.iter().enumerate() {
        if let Some(what) = rules.fault(choice) {
            return error(&below(at, "enum"), format!("the choice {choice} breaks the field's own rules: {what}"));
        }
        if rules.choices[..i].contains(choice) {
            return error(&below(at, "enum"), format!("the choice {choice} is there twice"));
        }
    }
    Ok(())
}

fn number(object: &Map<String, Value>, at: &str, key: &str) -> Result<Option<Number>> {
    match object.get(key) {
        None => Ok(None),
        Some(Value::Number(n)) => Ok(Some(n.clone())),
        Some(_) => error(&below(at, key), "a number is needed"),
    }
}

fn length(object: &Map<String, Value>, at: &str, least: &str, most: &str) -> Result<Length> {
    let of = |key: &str| match object.get(key) {
        None => Ok(None),
        Some(n) => match n.as_u64() {
            Some(n) => Ok(Some(n)),
            None => error(&below(at, key), "a whole number from 0 is needed"),
        },
    };
    let length = Length { least: of(least)?, most: of(most)? };
    match (length.least, length.most) {
        (Some(a), Some(b)) if a > b => error(at, format!("{least} {a} is more than {most} {b}")),
        _ => Ok(length),
    }
}

fn pattern(object: &Map<String, Value>, at: &str) -> Result<Option<Pattern>> {
    let text = match object.get("pattern") {
        None => return Ok(None),
        Some(Value::String(text)) => text,
        Some(_) => return error(&below(at, "pattern"), "a regular expression is needed, as a text"),
    };
    match RegexBuilder::new(text).size_limit(MAX_PATTERN).build() {
        Ok(regex) => Ok(Some(Pattern(regex))),
        // Of its several lines with a caret the last names the reason.
        Err(e) => {
            let why = e.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            error(&below(at, "pattern"), format!("{text:?} can't be used as a regular expression: {why}"))
        }
    }
}

fn format(object: &Map<String, Value>, at: &str) -> Result<Option<Format>> {
    match object.get("format").map(Value::as_str) {
        None => Ok(None),
        Some(Some("date")) => Ok(Some(Format::Date)),
        Some(Some("time")) => Ok(Some(Format::Time)),
        Some(_) => error(&below(at, "format"), "date or time; another form can be asked for by a pattern"),
    }
}
