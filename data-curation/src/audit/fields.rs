//! The schema that a call site's answers suggest: which fields they have, of what kind, which of them always, and where the
//! same few values recur. A draft: what a field means is for a person to write.

use limbeck_artifact::schema::Schema;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Fields in fewer of the answers are slips of the model.
const LEAST_SHARE: f64 = 0.01;
/// Values of another kind than the field's others are slips where they are fewer.
const LEAST_KIND: f64 = 0.05;
/// A text is a choice where so many values or fewer make up all of so many answers or more.
const MOST_CHOICES: usize = 12;
const CHOICE_ANSWERS: u64 = 100;
/// Distinct values of a field that are remembered.
const REMEMBERED: usize = 64;

#[derive(Default)]
struct Found {
    answers: u64,
    kinds: BTreeMap<&'static str, u64>,
    /// Of the items, where the value is a list.
    items: BTreeSet<&'static str>,
    values: BTreeMap<String, u64>,
    too_many: bool,
}

/// Gathers while the answers pass by.
#[derive(Default)]
pub struct Suggested {
    objects: u64,
    fields: BTreeMap<String, Found>,
    /// In the order of first sight.
    order: Vec<String>,
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

impl Suggested {
    pub fn add(&mut self, answer: &str) {
        let Ok(Value::Object(said)) = serde_json::from_str(answer) else { return };
        self.objects += 1;
        for (name, value) in said {
            if !self.fields.contains_key(&name) {
                if self.fields.len() >= REMEMBERED {
                    continue;
                }
                self.order.push(name.clone());
            }
            let found = self.fields.entry(name).or_default();
            found.answers += 1;
            *found.kinds.entry(kind(&value)).or_default() += 1;
            match value {
                Value::Array(items) => found.items.extend(items.iter().map(kind)),
                Value::String(text) if found.values.len() < REMEMBERED || found.values.contains_key(&text) => {
                    *found.values.entry(text).or_default() += 1;
                }
                Value::String(_) => found.too_many = true,
                _ => {}
            }
        }
    }

    /// The schema's text, and the fields that it leaves out because a form can't hold them. None where nothing is left.
    pub fn schema(&self) -> Option<(String, Vec<String>)> {
        let (mut properties, mut required, mut left_out) = (Map::new(), Vec::new(), Vec::new());
        for name in &self.order {
            let found = &self.fields[name];
            if (found.answers as f64) < LEAST_SHARE * self.objects as f64 {
                continue;
            }
            match property(found) {
                Some(property) => {
                    properties.insert(name.clone(), property);
                    if found.answers == self.objects && !found.kinds.contains_key("null") {
                        required.push(name.clone());
                    }
                }
                None => left_out.push(name.clone()),
            }
        }
        if properties.is_empty() {
            return None;
        }
        let whole = json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "properties": properties,
            "required": required, "additionalProperties": !left_out.is_empty(),
        });
        let text = serde_json::to_string_pretty(&whole).ok()? + "\n";
        Schema::parse(&text).ok().map(|_| (text, left_out))
    }
}

fn property(found: &Found) -> Option<Value> {
    let nullable = found.kinds.contains_key("null");
    let usual = |(kind, n): &(&&'static str, &u64)| **kind != "null" && **n as f64 >= LEAST_KIND * found.answers as f64;
    let plain: BTreeSet<&'static str> = found.kinds.iter().filter(usual).map(|(kind, _)| *kind).collect();
    let of = |kinds: &BTreeSet<&'static str>| match kinds.iter().copied().collect::<Vec<_>>()[..] {
        ["integer", "number"] => Some("number"),
        ["array" | "object"] | [] => None,
        [one] => Some(one),
        _ => None,
    };
    if plain.len() == 1 && plain.contains("array") {
        let items: BTreeSet<&'static str> = found.items.iter().copied().collect();
        return Some(json!({"type": "array", "items": {"type": of(&items)?}, "description": "say what these are"}));
    }
    let kind = of(&plain)?;
    let mut property = json!({"type": kind, "description": "say what this is"});
    if nullable {
        property["type"] = json!([kind, "null"]);
    }
    let few = !found.too_many && (2..=MOST_CHOICES).contains(&found.values.len());
    if kind == "string" && few && !nullable && found.answers >= CHOICE_ANSWERS {
        property["enum"] = found.values.keys().map(|value| Value::from(value.as_str())).collect();
    }
    Some(property)
}

#[cfg(test)]
mod tests {
    use super::*;
    use limbeck_artifact::schema::Kind;

    #[test]
    fn a_schema_is_what_the_answers_have_in_common() {
        let mut suggested = Suggested::default();
        for n in 0..300 {
            let urgency = ["low", "high"][n % 2];
            let mut answer =
                json!({"order": format!("A{n}"), "urgency": urgency, "total": n as f64 / 2.0, "paid": true});
            if n % 3 == 0 {
                answer["note"] = Value::Null;
                answer["items"] = json!(["tea", "cups"]);
                answer["address"] = json!({"street": "x"});
            } else {
                answer["note"] = json!(format!("note {n}"));
            }
            if n == 7 {
                answer["slip"] = json!("x");
                answer["order"] = json!(7);
            }
            suggested.add(&answer.to_string());
        }
        suggested.add("sorry, I can't");
        let (text, left_out) = suggested.schema().unwrap();
        let schema = Schema::parse(&text).unwrap();
        assert_eq!(left_out, ["address"], "a form has no place for an object in an object");
        let field = |name: &str| schema.field(name).unwrap();
        assert_eq!((field("order").kind(), field("order").required), (Kind::String, true));
        assert_eq!(field("urgency").choices(), ["high", "low"]);
        assert!(field("order").choices().is_empty());
        assert_eq!((field("total").kind(), field("paid").kind()), (Kind::Number, Kind::Boolean));
        assert!(field("note").nullable && !field("note").required);
        assert!(field("items").list.is_some() && !field("items").required);
        assert!(schema.field("slip").is_none());
        assert!(schema.additional(), "what is left out must still be allowed");
        assert!(Suggested::default().schema().is_none());
    }
}
