//! What an answer must look like where it is no label but written: a small subset of JSON Schema, one object with flat
//! properties, or a text. What a form can show and a person can fill in is in it; what is outside is refused by name.

mod answer;
mod grammar;
mod numerals;
mod parse;

pub use grammar::{At, Grammar};

use regex::Regex;
use serde_json::{Number, Value};

/// What an answer must look like. [`Schema::parse`] reads it from JSON Schema.
#[derive(Clone, Debug, PartialEq)]
pub struct Schema {
    fields: Vec<Field>,
    /// Whether fields that are not named may be there too; JSON Schema's default.
    additional: bool,
    /// Where the answer is a text and no object: what the text must be. There are no fields then.
    text: Option<Rules>,
}

/// One property of the answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    pub name: String,
    /// Empty where the schema has none.
    pub title: String,
    /// For the person or model that fills it in; empty where the schema has none.
    pub description: String,
    /// Whether something must be said. A field that may be null may always be left out, for null says as little.
    pub required: bool,
    pub nullable: bool,
    /// What its value must be, or, of a list, each of its items.
    pub rules: Rules,
    /// Bounds of the list, where the value is one.
    pub list: Option<Length>,
}

impl Field {
    /// The kind of the value, or of a list's items.
    pub fn kind(&self) -> Kind {
        self.rules.kind
    }

    /// The values there are to choose from; empty where it is not one of a list.
    pub fn choices(&self) -> &[Value] {
        &self.rules.choices
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    String,
    Integer,
    Number,
    Boolean,
}

impl Kind {
    /// As JSON Schema names it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::String => "string",
            Kind::Integer => "integer",
            Kind::Number => "number",
            Kind::Boolean => "boolean",
        }
    }
}

/// What a single value must be.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    pub kind: Kind,
    /// From `enum`, in its order.
    pub choices: Vec<Value>,
    pub minimum: Option<Number>,
    pub maximum: Option<Number>,
    /// In characters.
    pub length: Length,
    pub pattern: Option<Pattern>,
    pub format: Option<Format>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Length {
    pub least: Option<u64>,
    pub most: Option<u64>,
}

impl Length {
    fn holds(self, n: usize) -> bool {
        let n = n as u64;
        self.least.is_none_or(|least| n >= least) && self.most.is_none_or(|most| n <= most)
    }
}

/// A regular expression that must be found somewhere in the value, as JSON Schema has it.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

impl Pattern {
    pub fn text(&self) -> &str {
        self.0.as_str()
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.text() == other.text()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// RFC 3339's full-date: 2026-03-04.
    Date,
    /// Hours and minutes, with or without seconds and offset: 18:30, 18:30:00, 18:30:00Z. JSON Schema asks for all of them,
    /// which no customer says.
    Time,
}

/// What is wrong with an answer, in words that a reviewer reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Empty where it is not one field's.
    pub field: String,
    pub what: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.field.as_str() {
            "" => f.write_str(&self.what),
            field => write!(f, "{field}: {}", self.what),
        }
    }
}

/// Why a text is no schema that can be worked with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{what}", if at.is_empty() { String::new() } else { format!("{at}: ") })]
pub struct SchemaError {
    /// The place, as `properties.people.minimum`; empty for the whole.
    pub at: String,
    pub what: String,
}

impl Schema {
    /// In the file's order.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// Whether an answer is a text as it stands, no object of fields.
    pub fn is_text(&self) -> bool {
        self.text.is_some()
    }

    /// Whether an answer may have fields that the schema does not name.
    pub fn additional(&self) -> bool {
        self.additional
    }
}

#[cfg(test)]
mod grammar_tests;
#[cfg(test)]
mod tests;
