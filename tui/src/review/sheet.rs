//! An answer as fields: what the recorded text says in each, what a person typed there, and what is wrong with it.

use super::spans::{Found, Haystack};
use limbeck_artifact::schema::{Fault, Field, Kind, Schema};
use serde_json::{Map, Value};
use std::sync::Arc;

/// Fields beyond the ninth have letters: no digit reaches them.
const MARKS: &str = "123456789abcdefghijklmnopqrstuvwxyz";

#[derive(Clone, Debug, PartialEq)]
pub struct Sheet {
    pub schema: Arc<Schema>,
    pub rows: Vec<Entry>,
    /// Why the recorded answer could not be read, where it could not.
    pub unreadable: Option<Fault>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub name: String,
    /// Null where nothing is said.
    pub value: Value,
    /// Who says so.
    pub who: String,
    /// What others say of it, where that is something else, each with who.
    pub others: Vec<(Value, String)>,
}

impl Sheet {
    /// The fields of an answer's text; all of them empty where it can't be read.
    pub fn of(schema: &Arc<Schema>, answer: &str) -> Sheet {
        let (value, unreadable) = match schema.read(answer) {
            Ok(value) => (value, None),
            Err(fault) => (Value::Null, Some(fault)),
        };
        let empty = Map::new();
        let object = value.as_object().unwrap_or(&empty);
        let entry = |name: &str| Entry {
            name: name.to_string(),
            value: object.get(name).cloned().unwrap_or_default(),
            who: "recorded".to_string(),
            others: Vec::new(),
        };
        let named = schema.fields().iter().map(|field| entry(&field.name));
        let extra = object.keys().filter(|key| schema.field(key).is_none()).map(|key| entry(key));
        let mut sheet = Sheet { rows: named.chain(extra).collect(), unreadable, schema: schema.clone() };
        if let Some(within) = sheet.unreadable.is_some().then(|| object_within(schema, answer)).flatten() {
            sheet.compare(&[(within, "recorded".to_string())]);
        }
        sheet
    }

    /// Puts beside each field what other answers say in it.
    pub fn compare(&mut self, others: &[(String, String)]) {
        for (answer, who) in others {
            let Ok(Value::Object(other)) = self.schema.read(answer) else { continue };
            for row in &mut self.rows {
                let value = other.get(&row.name).cloned().unwrap_or_default();
                let known = row.others.iter().any(|(known, _)| same(known, &value));
                if !known && !same(&value, &row.value) {
                    row.others.push((value, who.clone()));
                }
            }
        }
    }

    /// The answer as it is recorded.
    pub fn label(&self) -> String {
        self.schema.canonical(&self.without_blank())
    }

    /// What is wrong, in the order of the rows.
    pub fn faults(&self) -> Vec<Fault> {
        self.schema.check(&self.without_blank())
    }

    /// Why it can't be saved as it stands.
    pub fn trouble(&self) -> Option<Fault> {
        self.unreadable.clone().or_else(|| self.faults().into_iter().next())
    }

    fn without_blank(&self) -> Value {
        let said = self.rows.iter().filter(|row| !shown(&row.value).is_empty());
        Value::Object(said.map(|row| (row.name.clone(), row.value.clone())).collect())
    }

    pub fn field(&self, row: usize) -> Option<&Field> {
        self.schema.field(&self.rows.get(row)?.name)
    }

    /// The sign that ties a row to its places in the message.
    pub fn mark(row: usize) -> char {
        MARKS.chars().nth(row).unwrap_or('*')
    }

    /// Where each row's values stand in the message: the row's number, and the place of each of its values.
    pub fn places(&self, message: &Haystack) -> Vec<(usize, Found)> {
        let mut of = Vec::new();
        let mut texts = Vec::new();
        for (i, row) in self.rows.iter().enumerate() {
            let values = match &row.value {
                Value::Array(items) => items.as_slice(),
                value => std::slice::from_ref(value),
            };
            // Yes and no are seldom said in these words.
            for value in values.iter().filter(|value| matches!(value, Value::String(_) | Value::Number(_))) {
                of.push(i);
                texts.push(shown(value));
            }
        }
        of.into_iter().zip(message.places_of(&texts)).collect()
    }
}

/// The object in an answer that talks around it, or the fields of one that was cut off.
fn object_within(schema: &Schema, answer: &str) -> Option<String> {
    let object = &answer[answer.find('{')?..];
    let whole = object.rfind('}').map(|last| object[..=last].to_string());
    let cut = object.rmatch_indices(',').take(schema.fields().len() + 1).map(|(at, _)| format!("{}}}", &object[..at]));
    whole.into_iter().chain(cut).find(|text| schema.read(text).is_ok())
}

fn same(a: &Value, b: &Value) -> bool {
    shown(a) == shown(b)
}

/// A value as one reads and types it; empty where it says nothing.
pub fn shown(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items)
            if items.iter().any(|item| shown(item).contains(',') || item.is_object() || item.is_array()) =>
        {
            value.to_string()
        }
        Value::Array(items) => items.iter().map(shown).collect::<Vec<_>>().join(", "),
        Value::Bool(true) => "yes".to_string(),
        Value::Bool(false) => "no".to_string(),
        // 4.0 is the whole number that the schema asks for.
        Value::Number(n) if n.is_f64() => n.as_f64().map_or_else(|| n.to_string(), |x| x.to_string()),
        other => other.to_string(),
    }
}

/// What was typed, as the field's value. What is none of its kind stays a text, and the schema says so.
pub fn read(field: Option<&Field>, typed: &str) -> Value {
    let typed = typed.trim();
    let Some(field) = field else {
        return if typed.is_empty() { Value::Null } else { Value::from(typed) };
    };
    match field.list {
        _ if typed.is_empty() => Value::Null,
        None => single(field, typed),
        Some(_) => match serde_json::from_str(typed) {
            Ok(list @ Value::Array(_)) => list,
            _ => typed
                .split(',')
                .map(str::trim)
                .filter(|part| !part.is_empty())
                .map(|part| single(field, part))
                .collect(),
        },
    }
}

fn single(field: &Field, typed: &str) -> Value {
    if let Some(choice) = choice(field, typed) {
        return choice.clone();
    }
    let read = match field.kind() {
        Kind::String => None,
        Kind::Integer | Kind::Number => serde_json::from_str(typed).ok().filter(Value::is_number),
        Kind::Boolean => match typed.to_lowercase().as_str() {
            "y" | "yes" | "true" => Some(Value::Bool(true)),
            "n" | "no" | "false" => Some(Value::Bool(false)),
            _ => None,
        },
    };
    read.unwrap_or_else(|| Value::from(typed))
}

/// The one choice that is, or else begins with, what was typed.
fn choice<'f>(field: &'f Field, typed: &str) -> Option<&'f Value> {
    let lower = typed.to_lowercase();
    let of = |holds: &dyn Fn(&str) -> bool| {
        let mut found = field.choices().iter().filter(|choice| holds(&shown(choice).to_lowercase()));
        found.next().filter(|_| found.next().is_none())
    };
    of(&|choice| choice == lower).or_else(|| of(&|choice| choice.starts_with(&lower)))
}

/// What a field takes, in a few words.
pub fn rules(field: &Field) -> String {
    let kind = match field.kind() {
        _ if !field.choices().is_empty() => field.choices().iter().map(shown).collect::<Vec<_>>().join(" | "),
        Kind::String => match field.rules.format {
            Some(limbeck_artifact::schema::Format::Date) => "a date, 2026-03-04".to_string(),
            Some(limbeck_artifact::schema::Format::Time) => "a time, 18:30".to_string(),
            None => "text".to_string(),
        },
        Kind::Integer => "a whole number".to_string(),
        Kind::Number => "a number".to_string(),
        Kind::Boolean => "yes or no".to_string(),
    };
    let bounds = match (&field.rules.minimum, &field.rules.maximum) {
        (Some(a), Some(b)) => format!(", {a} to {b}"),
        (Some(a), None) => format!(", at least {a}"),
        (None, Some(b)) => format!(", at most {b}"),
        (None, None) => String::new(),
    };
    let list = if field.list.is_some() { "a list, by commas: " } else { "" };
    let optional = if field.required && !field.nullable { "" } else { "; may be left out" };
    format!("{list}{kind}{bounds}{optional}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema() -> Arc<Schema> {
        let text = r#"{"type":"object","properties":{
            "people":{"type":"integer","minimum":1},"time":{"type":"string"},"area":{"enum":["inside","outside","bar"]},
            "pets":{"type":"boolean"},"names":{"type":"array","items":{"type":"string"}},"size":{"enum":[1,10]}},
            "required":["people"],"additionalProperties":false}"#;
        Arc::new(Schema::parse(text).unwrap())
    }

    #[test]
    fn what_is_typed_becomes_the_fields_value() {
        let schema = schema();
        let read = |name: &str, typed: &str| read(schema.field(name), typed);
        assert_eq!(read("people", " 4 "), json!(4));
        assert_eq!(read("people", "four"), json!("four"));
        assert_eq!(read("time", "7 pm"), json!("7 pm"));
        assert_eq!(read("time", "4"), json!("4"));
        assert_eq!(read("area", "OUT"), json!("outside"));
        assert_eq!(read("area", "x"), json!("x"));
        assert_eq!(read("pets", "Y"), json!(true));
        assert_eq!(read("names", "Ann, Ben,"), json!(["Ann", "Ben"]));
        assert_eq!(read("names", r#"["Smith, Ann"]"#), json!(["Smith, Ann"]));
        assert_eq!(read("size", "1"), json!(1));
        assert_eq!(read("time", "  "), Value::Null);
    }

    #[test]
    fn what_is_shown_is_read_back() {
        let schema = schema();
        let cases = [
            ("people", json!(4)),
            ("time", json!("7")),
            ("pets", json!(false)),
            ("names", json!(["a", "b, c"])),
            ("size", json!(10)),
        ];
        for (name, value) in cases {
            assert_eq!(read(schema.field(name), &shown(&value)), value);
        }
    }

    #[test]
    fn a_sheet_holds_what_the_answer_says() {
        let mut sheet = Sheet::of(&schema(), "```json\n{\"time\": \"7\", \"people\": 4.0, \"floor\": 2}\n```");
        assert_eq!(sheet.label(), r#"{"people":4,"time":"7","floor":2}"#);
        assert_eq!(sheet.faults().len(), 1, "{:?}", sheet.faults());
        sheet.rows.last_mut().unwrap().value = Value::Null;
        assert_eq!(sheet.faults(), []);
        assert_eq!(sheet.places(&Haystack::new("for 4 at 7")), [(0, Found::At(4..5)), (1, Found::At(9..10))]);
        let others = [("{\"people\": 4, \"time\": \"8\"}".to_string(), "ann".to_string()), ("no".into(), "ben".into())];
        sheet.compare(&others);
        assert_eq!(sheet.rows[1].others, [(json!("8"), "ann".to_string())]);
        assert!(sheet.rows[0].others.is_empty());
        let unread = Sheet::of(&schema(), "Four people!");
        assert!(unread.unreadable.is_some() && unread.label() == "{}" && unread.faults().len() == 1);
        let talk = Sheet::of(&schema(), "Sure! {\"people\": 2} Enjoy.");
        assert!(talk.unreadable.is_some() && talk.label() == "{}");
        assert_eq!(talk.rows[0].others, [(json!(2), "recorded".to_string())]);
        let cut = Sheet::of(&schema(), "```json\n{\"people\": 2, \"time\": \"7, or 8\", \"area\": \"ins");
        assert_eq!(cut.rows[1].others, [(json!("7, or 8"), "recorded".to_string())]);
    }
}
