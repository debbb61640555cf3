//! Answers against a [`Schema`]: read from text, checked, and written in the one way that training and comparison use.
//! Null, an empty text and an empty list say nothing, and count as a field that is not there.

use super::{Fault, Field, Format, Kind, Rules, Schema};
use crate::digest::canonical_json;
use crate::strict_json;
use serde_json::{Map, Number, Value};

/// Of a value that is quoted in a fault.
const QUOTED: usize = 40;

/// Whether a value says nothing.
pub(super) fn is_blank(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

impl Schema {
    /// Reads an answer's text: a JSON object, in a code fence or not, with white space around it or not. Where answers are
    /// texts, the text itself without the white space around it.
    ///
    /// # Errors
    /// A fault of the whole, where it is something else or names a key twice.
    pub fn read(&self, text: &str) -> Result<Value, Fault> {
        if self.is_text() {
            return Ok(Value::from(text.trim()));
        }
        let whole = |what: String| Fault { field: String::new(), what };
        match strict_json::from_slice(unfenced(text).as_bytes()) {
            Ok(value @ Value::Object(_)) => Ok(value),
            Ok(_) => Err(whole("the answer is JSON, but no object".to_owned())),
            Err(_) if text.trim().is_empty() => Err(whole("the answer is empty".to_owned())),
            Err(e) => Err(whole(format!("the answer is no JSON: {e}"))),
        }
    }

    /// What is wrong with an answer, in the schema's order; nothing where it may stand.
    pub fn check(&self, answer: &Value) -> Vec<Fault> {
        let whole = |what: &str| Fault { field: String::new(), what: what.to_owned() };
        if let Some(rules) = &self.text {
            let empty = answer.as_str().is_some_and(|text| text.trim().is_empty());
            let fault = if empty { Some("the answer is empty".to_owned()) } else { rules.fault(answer) };
            return fault.iter().map(|what| whole(what)).collect();
        }
        let Value::Object(object) = answer else { return vec![whole("the answer is no JSON object")] };
        let mut faults = Vec::new();
        for field in &self.fields {
            let value = object.get(&field.name).unwrap_or(&Value::Null);
            faults.extend(field.fault(value).map(|what| Fault { field: field.name.clone(), what }));
        }
        if !self.additional {
            let extra = object.keys().filter(|key| self.field(key).is_none());
            faults
                .extend(extra.map(|key| Fault { field: key.clone(), what: "the schema has no such field".to_owned() }));
        }
        faults
    }

    /// A text's answer in canonical form.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn canonical_text(&self, text: &str) -> Result<String, Fault> {
        let answer = self.read(text)?;
        match self.check(&answer).into_iter().next() {
            None => Ok(self.canonical(&answer)),
            Some(fault) => Err(fault),
        }
    }

    /// The answer as compact JSON: fields in the schema's order, those that say nothing left out, whole numbers without a
    /// point; fields that the schema does not name follow by name. Two answers that say the same are the same text. Where
    /// answers are texts, the text.
    pub fn canonical(&self, answer: &Value) -> String {
        if self.is_text() {
            return answer.as_str().unwrap_or_default().to_owned();
        }
        let empty = Map::new();
        let object = answer.as_object().unwrap_or(&empty);
        let named = self.fields.iter().filter_map(|field| object.get_key_value(&field.name));
        let mut extra: Vec<(&String, &Value)> = object.iter().filter(|(key, _)| self.field(key).is_none()).collect();
        extra.sort_by_key(|(key, _)| key.as_str());
        let said = named.chain(extra).filter(|(_, value)| !is_blank(value));
        let parts: Vec<String> =
            said.map(|(key, value)| format!("{}:{}", Value::from(key.as_str()), plain(value))).collect();
        format!("{{{}}}", parts.join(","))
    }
}

impl Field {
    /// What is wrong with a value of this field.
    pub fn fault(&self, value: &Value) -> Option<String> {
        if is_blank(value) {
            return (self.required && !self.nullable).then(|| "it must be filled in".to_owned());
        }
        let Some(length) = self.list else { return self.rules.fault(value) };
        let Value::Array(items) = value else { return Some(format!("a list is needed, not {}", quoted(value))) };
        if !length.holds(items.len()) {
            let bounds = bounds(length.least.map(|n| n.to_string()), length.most.map(|n| n.to_string()));
            return Some(format!("{bounds} items are needed, not {}", items.len()));
        }
        items.iter().enumerate().find_map(|(i, item)| Some(format!("item {}: {}", i + 1, self.rules.fault(item)?)))
    }
}

impl Rules {
    /// What is wrong with a single value.
    pub(super) fn fault(&self, value: &Value) -> Option<String> {
        let fits = match (self.kind, value) {
            (Kind::String, Value::String(_)) | (Kind::Boolean, Value::Bool(_)) | (Kind::Number, Value::Number(_)) => {
                true
            }
            (Kind::Integer, Value::Number(n)) => is_whole(n),
            _ => false,
        };
        if !fits {
            let needed = match self.kind {
                Kind::String => "a text is needed",
                Kind::Integer => "a whole number is needed",
                Kind::Number => "a number is needed",
                Kind::Boolean => "true or false is needed",
            };
            return Some(format!("{needed}, not {}", quoted(value)));
        }
        if !self.choices.is_empty() && !self.choices.iter().any(|choice| same(choice, value)) {
            let mut names: Vec<String> = self.choices.iter().map(plain_text).collect();
            if names.len() > 6 {
                names.splice(6.., [format!("{} more", names.len() - 6)]);
            }
            return Some(format!("{} is none of {}", quoted(value), names.join(", ")));
        }
        match value {
            Value::Number(n) => self.number_fault(n),
            Value::String(text) => self.text_fault(text),
            _ => None,
        }
    }

    fn number_fault(&self, n: &Number) -> Option<String> {
        let value = n.as_f64()?;
        let below = self.minimum.as_ref().is_some_and(|least| least.as_f64().is_some_and(|least| value < least));
        let above = self.maximum.as_ref().is_some_and(|most| most.as_f64().is_some_and(|most| value > most));
        let bounds =
            || bounds(self.minimum.as_ref().map(Number::to_string), self.maximum.as_ref().map(Number::to_string));
        (below || above).then(|| format!("{} is needed, not {n}", bounds()))
    }

    fn text_fault(&self, text: &str) -> Option<String> {
        let chars = text.chars().count();
        if !self.length.holds(chars) {
            let bounds = bounds(self.length.least.map(|n| n.to_string()), self.length.most.map(|n| n.to_string()));
            return Some(format!("{bounds} characters are needed, not {chars}"));
        }
        if let Some(pattern) = self.pattern.as_ref().filter(|pattern| !pattern.0.is_match(text)) {
            return Some(format!("{} does not match {}", quoted(&Value::from(text)), pattern.text()));
        }
        match self.format {
            Some(Format::Date) if !is_date(text) => Some("a date such as 2026-03-04 is needed".to_owned()),
            Some(Format::Time) if !is_time(text) => Some("a time such as 18:30 is needed".to_owned()),
            _ => None,
        }
    }
}

/// Without the fence that chat models put around JSON.
fn unfenced(text: &str) -> &str {
    let text = text.trim();
    let inside = text.strip_prefix("```").and_then(|rest| rest.strip_suffix("```"));
    // What stands behind the fence on its line names a language.
    inside.and_then(|inside| inside.split_once('\n')).map_or(text, |(_, body)| body)
}

fn is_whole(n: &Number) -> bool {
    n.is_i64() || n.is_u64() || n.as_f64().is_some_and(|n| n.fract() == 0.0)
}

fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || (a.is_f64() || b.is_f64()) && a.as_f64() == b.as_f64(),
        _ => a == b,
    }
}

/// Compact JSON of a value, keys sorted and whole numbers without a point.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::Number(n) => plain_number(n),
        Value::Array(items) => format!("[{}]", items.iter().map(plain).collect::<Vec<_>>().join(",")),
        other => canonical_json(other),
    }
}

fn plain_number(n: &Number) -> String {
    /// Beyond it a float stands for several whole numbers.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match n.as_f64() {
        Some(x) if n.is_f64() && x.fract() == 0.0 && x.abs() <= EXACT => format!("{}", x as i64),
        _ => n.to_string(),
    }
}

fn plain_text(value: &Value) -> String {
    value.as_str().map_or_else(|| plain(value), str::to_owned)
}

fn quoted(value: &Value) -> String {
    let text = plain(value);
    match text.char_indices().nth(QUOTED) {
        None => text,
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

fn bounds(least: Option<String>, most: Option<String>) -> String {
    match (least, most) {
        (Some(a), Some(b)) if a == b => format!("exactly {a}"),
        (Some(a), Some(b)) => format!("{a} to {b}"),
        (Some(a), None) => format!("at least {a}"),
        (None, Some(b)) => format!("at most {b}"),
        (None, None) => String::new(),
    }
}

/// Digits of exactly this many places, as a number.
fn digits(text: &str, places: usize) -> Option<u32> {
    (text.len() == places && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

fn is_date(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let [year, month, day] = parts.as_slice() else { return false };
    let (Some(year), Some(month), Some(day)) = (digits(year, 4), digits(month, 2), digits(day, 2)) else {
        return false;
    };
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        4 | 6 | 9 | 11 => 30,
        2 => 28 + u32::from(leap),
        1..=12 => 31,
        _ => 0,
    };
    (1..=days).contains(&day)
}

fn is_time(text: &str) -> bool {
    // An offset is a clock reading too.
    let (clock, offset) = match text.strip_suffix(['Z', 'z']) {
        Some(clock) => (clock, None),
        None => match text.rfind(['+', '-']) {
            Some(at) => (&text[..at], Some(&text[at + 1..])),
            None => (text, None),
        },
    };
    let reads = |clock: &str, most_parts: usize| {
        let parts: Vec<&str> = clock.split(':').collect();
        (2..=most_parts).contains(&parts.len())
            && digits(parts[0], 2).is_some_and(|h| h < 24)
            && digits(parts[1], 2).is_some_and(|m| m < 60)
            && parts.get(2).is_none_or(|seconds| {
                let (whole, part) = seconds.split_once('.').unwrap_or((seconds, "0"));
                // 60 is a leap second.
                digits(whole, 2).is_some_and(|s| s <= 60) && digits(part, part.len().max(1)).is_some()
            })
    };
    reads(clock, 3) && offset.is_none_or(|offset| reads(offset, 2))
}
