//! What counts as an answer, and which one a text means: one of the labels, lenient about dress (case, spaces, quotes, a
//! closing full stop) and strict about words; or fields as a schema has them, written in its canonical form; or a text as it is.

use crate::said::Spoken;
use crate::text::normal_form;
use limbeck_artifact::schema::{Kind, Schema, SchemaError};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::cell::LazyCell;
use std::collections::BTreeSet;

/// The answers of a task.
#[derive(Clone, Debug, PartialEq)]
pub enum Answers {
    /// The taxonomy, sorted.
    Labels(Vec<String>),
    /// An object with a schema's fields, or a text under its rules.
    Fields(Fields),
}

/// A schema as it is understood and as it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Fields {
    pub schema: Schema,
    pub text: String,
}

impl Fields {
    /// # Errors
    /// Why the text is no schema that can be worked with.
    pub fn parse(text: &str) -> Result<Fields, SchemaError> {
        Ok(Fields { schema: Schema::parse(text)?, text: text.to_string() })
    }
}

impl Fields {
    /// Which fields an answer has: one number a combination, the same on every machine.
    pub fn pattern(&self, canonical: &str) -> u64 {
        let said = object(canonical);
        let names: Vec<&str> = said.keys().map(String::as_str).collect();
        crate::text::hash(names.join("\n").as_bytes())
    }

    /// Whether a message must say a field's value as it is. Of a choice, a number or a date in a fixed format it need not.
    fn is_verbatim(&self, name: &str) -> bool {
        self.schema.field(name).is_some_and(|field| {
            field.kind() == Kind::String && field.choices().is_empty() && field.rules.format.is_none()
        })
    }

    /// The values that a message, sent at that time, does not say, as field and value: neither letter for letter, compared in
    /// normal form, nor in other words for the same number, time or day.
    pub fn not_in(&self, canonical: &str, message: &str, sent: Option<&str>) -> Vec<(String, String)> {
        let normal = normal_form(message);
        let spoken = LazyCell::new(|| Spoken::new(message, sent));
        let mut found = Vec::new();
        for (name, value) in object(canonical).iter().filter(|(name, _)| self.is_verbatim(name)) {
            let missing = values(value).into_iter().filter(|v| !normal.contains(&normal_form(v)));
            found.extend(missing.filter(|v| spoken.place_of(v).is_none()).map(|v| (name.clone(), v)));
        }
        found
    }

    /// Whether two answers to near-duplicates contradict each other: they differ by more than the messages do. A
    /// difference is the messages' where a value is said in its own message and not in the other. Of two texts nobody can
    /// tell: there are many good ones.
    pub fn contradict(&self, a: &str, a_normal: &str, b: &str, b_normal: &str) -> bool {
        if self.schema.is_text() {
            return false;
        }
        if a == b || a_normal == b_normal {
            return a != b;
        }
        let (a, b) = (object(a), object(b));
        let explained = |value: Option<&Value>, own: &str, other: &str| {
            value
                .map_or(Vec::new(), values)
                .iter()
                .map(|v| normal_form(v))
                .all(|v| own.contains(&v) && !other.contains(&v))
        };
        let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        names.into_iter().filter(|name| a.get(*name) != b.get(*name)).any(|name| {
            !self.is_verbatim(name)
                || !explained(a.get(name), a_normal, b_normal)
                || !explained(b.get(name), b_normal, a_normal)
        })
    }
}

impl Default for Answers {
    fn default() -> Answers {
        Answers::Labels(Vec::new())
    }
}

impl Answers {
    /// From what summaries and cards keep: labels, and a schema's text where there is one.
    ///
    /// # Errors
    /// Why the text is no schema.
    pub fn of(labels: &[String], schema: Option<&str>) -> Result<Answers, SchemaError> {
        Ok(match schema {
            None => Answers::Labels(labels.to_vec()),
            Some(text) => Answers::Fields(Fields::parse(text)?),
        })
    }

    /// The label that the text is, or its fields in canonical form.
    ///
    /// # Errors
    /// What is wrong with it, in words for a reviewer.
    pub fn read<'a>(&'a self, text: &str) -> Result<Cow<'a, str>, String> {
        match self {
            Answers::Labels(labels) => match label_of(labels, text) {
                Some(label) => Ok(Cow::Borrowed(label)),
                None => Err("it is none of the labels".to_string()),
            },
            Answers::Fields(fields) => {
                fields.schema.canonical_text(text).map(Cow::Owned).map_err(|fault| fault.to_string())
            }
        }
    }

    /// The taxonomy; empty where answers are fields.
    pub fn labels(&self) -> &[String] {
        match self {
            Answers::Labels(labels) => labels,
            Answers::Fields(_) => &[],
        }
    }

    pub fn fields(&self) -> Option<&Fields> {
        match self {
            Answers::Labels(_) => None,
            Answers::Fields(fields) => Some(fields),
        }
    }

    /// Why a decision whose answer is neither can't count.
    pub fn void(&self) -> &'static str {
        match self {
            Answers::Labels(_) => "its label is none of the taxonomy",
            Answers::Fields(fields) if fields.schema.is_text() => "its answer is no text that may stand",
            Answers::Fields(_) => "its answer is not valid under the schema",
        }
    }
}

/// A valid answer in its canonical form, taken apart.
pub fn object(canonical: &str) -> Map<String, Value> {
    serde_json::from_str(canonical).unwrap_or_default()
}

/// A single value as text: what a message would have to say for it to be in there.
pub fn values(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(items) => items.iter().flat_map(values).collect(),
        Value::Number(number) => vec![number.to_string()],
        // Neither is ever said in such a word.
        Value::Null | Value::Bool(_) | Value::Object(_) => Vec::new(),
    }
}

/// The label that the answer is, if it is one of them.
pub fn label_of<'l>(labels: &'l [String], answer: &str) -> Option<&'l str> {
    let bare = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '.' | '*');
    let answer = answer.trim_matches(bare);
    let exact = labels.iter().find(|l| l.as_str() == answer);
    let found = exact.or_else(|| {
        let mut alike = labels.iter().filter(|l| l.to_lowercase() == answer.to_lowercase());
        // Two labels that differ in case only are told apart by case only.
        alike.next().filter(|_| alike.next().is_none())
    });
    found.map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn booking() -> Fields {
        Fields::parse(
            r#"{"type": "object", "properties": {"date": {"type": "string"}, "time": {"type": "string"},
            "people": {"type": "string"}, "seat": {"enum": ["in", "out"]}}, "additionalProperties": false}"#,
        )
        .unwrap()
    }

    #[test]
    fn a_value_must_be_said_unless_it_is_a_choice() {
        let not_in = |answer: &str| booking().not_in(answer, "A table at 6 p.m.,  for 4 — outside", None);
        assert_eq!(not_in(r#"{"time":"6 P.M","people":"for 4","seat":"out"}"#), []);
        assert_eq!(not_in(r#"{"date":"today","time":"7 p.m."}"#).len(), 2);
        assert_eq!(not_in(r#"{"people":"four","time":"18:00"}"#), [], "said in other words");
    }

    #[test]
    fn answers_contradict_each_other_where_the_messages_do_not_explain_it() {
        let check = |a: &str, a_text: &str, b: &str, b_text: &str, contradict: bool| {
            for (a, a_text, b, b_text) in [(a, a_text, b, b_text), (b, b_text, a, a_text)] {
                let found = booking().contradict(a, &normal_form(a_text), b, &normal_form(b_text));
                assert_eq!(found, contradict, "{a} {b}");
            }
        };
        let at = |time: &str| format!("{{\"time\":\"{time}\"}}");
        check(&at("6pm"), "at 6pm", &at("7pm"), "at 7pm", false);
        check(&at("6pm"), "at 6pm", "{}", "thanks", false);
        check(&at("6pm"), "at 6pm please", "{}", "hi, at 6pm please", true);
        check(&at("6pm"), "at 6pm", &at("pm"), "at 7 pm", true);
        check(&at("noon"), "at 6pm", "{}", "at 7pm", true);
        check("no json", "at 6pm", &at("6pm"), "at 6pm", true);
        check(r#"{"seat":"in"}"#, "inside", "{}", "a seat", true);
    }

    #[test]
    fn of_two_texts_neither_contradicts_the_other() {
        let texts = Fields::parse(r#"{"type": "string"}"#).unwrap();
        assert!(!texts.contradict("Hello!", "hi", "Good day.", "hi"));
        assert_eq!(texts.not_in("Hello!", "hi", None), []);
        let answers = Answers::Fields(texts);
        assert_eq!(answers.read(" Dear Ann,\n\nyes. ").unwrap(), "Dear Ann,\n\nyes.");
        assert_eq!(answers.read(" ").unwrap_err(), "the answer is empty");
    }

    #[test]
    fn answers_are_read_by_their_kind() {
        let fields = Answers::Fields(booking());
        assert_eq!(
            fields.read("```json\n{\"people\": \"2\", \"date\": null, \"time\": \"7\"}\n```").unwrap(),
            r#"{"time":"7","people":"2"}"#
        );
        assert!(fields.read("{\"size\": 1}").unwrap_err().contains("size"));
        assert!(fields.read("at 7").is_err());
        let labels = Answers::Labels(vec!["a".to_string()]);
        assert_eq!((labels.read("A.").unwrap().as_ref(), labels.read("b").is_err()), ("a", true));
        assert_eq!(booking().pattern(r#"{"time":"1"}"#), booking().pattern(r#"{"time":"2"}"#));
        assert_ne!(booking().pattern(r#"{"time":"1"}"#), booking().pattern("{}"));
    }

    #[test]
    fn dress_does_not_matter_and_words_do() {
        let labels = ["Refund_not_showing_up", "age_limit", "A", "a"].map(str::to_string);
        for (answer, want) in [
            ("age_limit", Some("age_limit")),
            (" `Age_Limit`.\n", Some("age_limit")),
            ("refund_not_showing_up", Some("Refund_not_showing_up")),
            ("a", Some("a")),
            ("age limit", None),
            ("age_limit_issue", None),
            ("", None),
        ] {
            assert_eq!(label_of(&labels, answer), want, "{answer}");
        }
    }
}
