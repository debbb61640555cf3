//! What extracted fields are worth: each field's precision, recall and F1 with missing, wrong and hallucinated values told
//! apart, and answers that are right as a whole. Pure functions of answers; golden values come from scipy's assignment.

use crate::statistics::{Interval, wilson};
use limbeck_artifact::schema::{Field, Kind, Schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One field of one arm, counted by values: a list counts each of its items. Rates without a denominator are None.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FieldScore {
    pub field: String,
    /// Values that are there to be found, and values that were answered.
    pub gold: u64,
    pub answered: u64,
    pub correct: u64,
    /// Another value in place of the right one.
    pub wrong: u64,
    /// Nothing where there is a value.
    pub missing: u64,
    /// A value where there is none.
    pub hallucinated: u64,
    pub precision: Option<f64>,
    pub recall: Option<f64>,
    pub f1: Option<f64>,
    pub recall_interval: Option<Interval>,
}

/// The fields of one arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Extraction {
    /// In the schema's order.
    pub fields: Vec<FieldScore>,
    /// All fields' values together (micro).
    pub all: FieldScore,
    /// Answers that the schema allows.
    pub valid: u64,
    pub validity: f64,
    pub validity_interval: Interval,
}

impl Extraction {
    /// Mean F1 of the fields that occur in gold; 0 when none does.
    pub fn macro_f1(&self) -> f64 {
        let occur: Vec<f64> = self.fields.iter().filter(|f| f.gold > 0).filter_map(|f| f.f1).collect();
        if occur.is_empty() { 0.0 } else { occur.iter().sum::<f64>() / occur.len() as f64 }
    }
}

/// An answer as it is compared: white space and case of free text do not count, nor does the order of a list. Of an answer that
/// is a text, the amount of white space does not count.
pub fn normalised(schema: &Schema, answer: &Value) -> Value {
    if schema.is_text() {
        return Value::from(answer.as_str().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" "));
    }
    let mut out = Map::new();
    for (name, value) in answer.as_object().into_iter().flatten() {
        let free = schema.field(name).is_some_and(is_free);
        let value = match value {
            Value::Array(items) => {
                let mut items: Vec<Value> = items.iter().map(|item| folded(item, free)).collect();
                items.sort_by_key(Value::to_string);
                Value::Array(items)
            }
            value => folded(value, free),
        };
        out.insert(name.clone(), value);
    }
    Value::Object(out)
}

/// Text of which no choice, pattern or format says how it is spelled.
fn is_free(field: &Field) -> bool {
    field.kind() == Kind::String
        && field.choices().is_empty()
        && field.rules.format.is_none()
        && field.rules.pattern.is_none()
}

fn folded(value: &Value, free: bool) -> Value {
    match value {
        Value::String(text) if free => {
            Value::String(text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase())
        }
        // 2 and 2.0 are one number.
        Value::Number(n) => n.as_f64().map_or_else(|| value.clone(), Value::from),
        value => value.clone(),
    }
}

/// Scores answers against gold, both [`normalised`] and in row order; an answer that is None was not valid, and misses all
/// that there is.
pub fn score_fields(schema: &Schema, gold: &[Value], answers: &[Option<Value>], confidence: f64) -> Extraction {
    let mut fields: Vec<FieldScore> = schema
        .fields()
        .iter()
        .map(|field| {
            let mut score = FieldScore { field: field.name.clone(), ..FieldScore::default() };
            for (gold, answer) in gold.iter().zip(answers) {
                let given = answer.as_ref().map_or(&[][..], |answer| values(answer, &field.name));
                count(&mut score, values(gold, &field.name), given);
            }
            score
        })
        .collect();
    let mut all = FieldScore { field: "all fields".to_owned(), ..FieldScore::default() };
    for field in &fields {
        all.gold += field.gold;
        all.answered += field.answered;
        all.correct += field.correct;
        all.wrong += field.wrong;
        all.missing += field.missing;
        all.hallucinated += field.hallucinated;
    }
    fields.iter_mut().chain([&mut all]).for_each(|score| rates(score, confidence));
    let (valid, rows) = (answers.iter().flatten().count() as u64, answers.len() as u64);
    Extraction {
        fields,
        all,
        valid,
        validity: share(valid, rows).unwrap_or(0.0),
        validity_interval: wilson(valid, rows, confidence),
    }
}

/// A field's values: a list's items, a single value, or nothing.
fn values<'a>(answer: &'a Value, name: &str) -> &'a [Value] {
    match answer.get(name) {
        None | Some(Value::Null) => &[],
        Some(Value::Array(items)) => items,
        Some(value) => std::slice::from_ref(value),
    }
}

/// Assigns answered values to gold ones so that as many as possible are equal. Equality is all that counts, so pairing
/// equals off, in any order, is the optimal assignment; what is left on both sides was wrong.
fn count(score: &mut FieldScore, gold: &[Value], answered: &[Value]) {
    let mut left: Vec<&Value> = gold.iter().collect();
    let mut correct = 0;
    for value in answered {
        if let Some(at) = left.iter().position(|gold| *gold == value) {
            left.swap_remove(at);
            correct += 1;
        }
    }
    let (unfound, extra) = (left.len() as u64, answered.len() as u64 - correct);
    let wrong = unfound.min(extra);
    score.gold += gold.len() as u64;
    score.answered += answered.len() as u64;
    score.correct += correct;
    score.wrong += wrong;
    score.missing += unfound - wrong;
    score.hallucinated += extra - wrong;
}

fn rates(score: &mut FieldScore, confidence: f64) {
    score.precision = share(score.correct, score.answered);
    score.recall = share(score.correct, score.gold);
    score.recall_interval = (score.gold > 0).then(|| wilson(score.correct, score.gold, confidence));
    score.f1 = share(2 * score.correct, score.gold + score.answered);
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const SCHEMA: &str = r#"{"type": "object", "properties": {"time": {"type": "string"}, "size": {"enum": ["S", "L"]},
        "people": {"type": "integer"}, "names": {"type": "array", "items": {"type": "string"}}}}"#;

    fn compare(gold: Value, answer: Value) -> (Vec<[u64; 4]>, bool) {
        let schema = Schema::parse(SCHEMA).unwrap();
        let (gold, answer) = (normalised(&schema, &gold), normalised(&schema, &answer));
        let scored = score_fields(&schema, std::slice::from_ref(&gold), &[Some(answer.clone())], 0.95);
        let counts = scored.fields.iter().map(|f| [f.correct, f.wrong, f.missing, f.hallucinated]);
        (counts.collect(), schema.canonical(&gold) == schema.canonical(&answer))
    }

    #[test]
    fn dress_of_free_text_and_the_order_of_lists_do_not_count() {
        let (counts, exact) = compare(
            json!({"time": "Half  past SIX", "people": 2, "names": ["Ann", "Bo"]}),
            json!({"time": "half past six ", "people": 2.0, "names": ["bo", "ann"]}),
        );
        assert_eq!((counts[0], counts[2], counts[3], exact), ([1, 0, 0, 0], [1, 0, 0, 0], [2, 0, 0, 0], true));
        let (counts, exact) = compare(json!({"size": "S"}), json!({"size": "s"}));
        assert_eq!((counts[1], exact), ([0, 1, 0, 0], false), "a choice is spelled as it is");
    }

    #[test]
    fn missing_wrong_and_hallucinated_are_apart() {
        let (counts, exact) = compare(
            json!({"time": "six", "size": "S", "names": ["a", "b", "b", "c"]}),
            json!({"time": "seven", "people": 2, "names": ["b", "a", "d", "b", "e"]}),
        );
        assert_eq!(counts, [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [3, 1, 0, 1]]);
        assert!(!exact);
        assert!(compare(json!({}), json!({"time": null, "names": []})).1);
    }

    #[test]
    fn an_invalid_answer_misses_everything() {
        let schema = Schema::parse(SCHEMA).unwrap();
        let scored = score_fields(&schema, &[json!({"time": "six"}), json!({})], &[None, Some(json!({}))], 0.95);
        assert_eq!((scored.all.missing, scored.valid, scored.validity), (1, 1, 0.5));
        assert_eq!((scored.fields[0].recall, scored.fields[0].precision, scored.fields[1].f1), (Some(0.0), None, None));
        assert_eq!(scored.macro_f1(), 0.0);
    }

    /// Against scipy's linear_sum_assignment: tests/reference/extraction_golden.py.
    #[test]
    fn scores_are_those_of_the_reference() {
        let golden: Value = serde_json::from_str(include_str!("../tests/golden/extraction.json")).unwrap();
        let schema = Schema::parse(golden["schema"].as_str().unwrap()).unwrap();
        for case in golden["cases"].as_array().unwrap() {
            let list = |key: &str| case[key].as_array().unwrap().clone();
            let gold: Vec<Value> = list("gold").iter().map(|v| normalised(&schema, v)).collect();
            let answers: Vec<Option<Value>> =
                list("answers").iter().map(|v| (!v.is_null()).then(|| normalised(&schema, v))).collect();
            let scored = score_fields(&schema, &gold, &answers, 0.95);
            for (ours, theirs) in scored.fields.iter().chain([&scored.all]).zip(list("fields")) {
                let counts = [ours.correct, ours.wrong, ours.missing, ours.hallucinated];
                assert_eq!(json!(counts), theirs["counts"], "{}", ours.field);
                for (rate, key) in [(ours.precision, "precision"), (ours.recall, "recall"), (ours.f1, "f1")] {
                    match theirs[key].as_f64() {
                        Some(theirs) => assert!((rate.unwrap() - theirs).abs() < 1e-12, "{} {key}", ours.field),
                        None => assert_eq!(rate, None),
                    }
                }
            }
            assert!((scored.macro_f1() - case["macro_f1"].as_f64().unwrap()).abs() < 1e-12);
            assert!((scored.validity - case["validity"].as_f64().unwrap()).abs() < 1e-12);
            let exact = gold
                .iter()
                .zip(&answers)
                .filter(|(g, a)| a.as_ref().is_some_and(|a| schema.canonical(a) == schema.canonical(g)));
            assert_eq!(exact.count() as u64, case["exact"].as_u64().unwrap());
        }
    }
}
