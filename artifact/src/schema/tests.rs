use super::*;
use proptest::prelude::*;
use serde_json::json;

const BOOKING: &str = r#"{
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "title": "booking",
  "type": "object",
  "properties": {
    "time": {"type": ["string", "null"], "description": "as the guest said it"},
    "people": {"type": "integer", "minimum": 1, "maximum": 20},
    "date": {"type": "string", "format": "date"},
    "area": {"enum": ["inside", "outside"]},
    "names": {"type": "array", "items": {"type": "string", "pattern": "^[A-Z]"}, "maxItems": 2},
    "pets": {"type": "boolean"},
    "start": {"type": "string", "format": "time"}
  },
  "required": ["time", "people"],
  "additionalProperties": false
}"#;

fn booking() -> Schema {
    Schema::parse(BOOKING).unwrap()
}

#[test]
fn fields_keep_the_files_order() {
    let schema = booking();
    let names: Vec<&str> = schema.fields().iter().map(|f| f.name.as_str()).collect();
    assert_eq!(names, ["time", "people", "date", "area", "names", "pets", "start"]);
    let time = schema.field("time").unwrap();
    assert!(time.required && time.nullable && time.description == "as the guest said it");
    assert_eq!(schema.field("area").unwrap().choices(), [json!("inside"), json!("outside")]);
    assert_eq!(schema.field("names").unwrap().list, Some(Length { least: None, most: Some(2) }));
    assert!(!schema.additional());
}

#[test]
fn an_answer_may_be_a_text() {
    let schema = Schema::parse(r#"{"type": "string", "maxLength": 12}"#).unwrap();
    assert!(schema.is_text() && schema.fields().is_empty());
    assert_eq!(schema.canonical_text("  {\"a\": 1}\n").unwrap(), "{\"a\": 1}", "JSON is text, too");
    assert_eq!(schema.canonical_text(" \n").unwrap_err().to_string(), "the answer is empty");
    assert!(schema.canonical_text("thirteen chars").unwrap_err().to_string().contains("at most 12 characters"));
    assert_eq!(schema.check(&json!({})).len(), 1, "an object is none");
    assert!(Schema::parse(r#"{"type": "string", "minimum": 3}"#).is_err());
    assert!(!booking().is_text());
}

/// Keeps an object's order, whatever the features of serde_json: the order of the form and of the canonical text.
#[test]
fn the_order_is_the_texts_and_not_the_alphabets() {
    let text = r#"{"type":"object","properties":{"z":{"type":"string"},"a":{"type":"string"},"m":{"type":"string"}}}"#;
    let schema = Schema::parse(text).unwrap();
    assert_eq!(schema.canonical(&json!({"a": "1", "m": "2", "z": "3"})), r#"{"z":"3","a":"1","m":"2"}"#);
}

#[test]
fn faults_read_well() {
    let check = |answer: Value, faults: &[&str]| {
        let found: Vec<String> = booking().check(&answer).iter().map(Fault::to_string).collect();
        assert_eq!(found, faults, "{answer}");
    };
    check(json!({"people": 4}), &[]);
    check(json!({"time": "", "people": 4.0, "names": [], "date": null}), &[]);
    check(json!({}), &["people: it must be filled in"]);
    check(json!({"people": 21}), &["people: 1 to 20 is needed, not 21"]);
    check(json!({"people": "4"}), &["people: a whole number is needed, not \"4\""]);
    check(json!({"people": 4.5}), &["people: a whole number is needed, not 4.5"]);
    check(json!({"people": 4, "date": "tomorrow"}), &["date: a date such as 2026-03-04 is needed"]);
    check(json!({"people": 4, "start": "6pm"}), &["start: a time such as 18:30 is needed"]);
    check(json!({"people": 4, "area": "roof"}), &["area: \"roof\" is none of inside, outside"]);
    check(json!({"people": 4, "names": ["Ann", "ben"]}), &["names: item 2: \"ben\" does not match ^[A-Z]"]);
    check(json!({"people": 4, "names": ["A", "B", "C"]}), &["names: at most 2 items are needed, not 3"]);
    check(json!({"people": 4, "names": "Ann"}), &["names: a list is needed, not \"Ann\""]);
    check(json!({"people": 4, "pets": "yes"}), &["pets: true or false is needed, not \"yes\""]);
    check(json!({"people": 4, "size": 1}), &["size: the schema has no such field"]);
    check(json!([4]), &["the answer is no JSON object"]);
    let long = "x".repeat(500);
    assert!(booking().check(&json!({"people": long}))[0].what.len() < 90);
}

#[test]
fn times_are_clock_readings() {
    let schema = Schema::parse(r#"{"type":"object","properties":{"x":{"type":"string","format":"time"}}}"#).unwrap();
    let valid = |text: &str| schema.check(&json!({"x": text})).is_empty();
    for good in ["18:30", "00:00", "23:59:59", "18:30:00.25", "18:30Z", "18:30:00+02:00", "23:59:60Z", "08:00-05:30"] {
        assert!(valid(good), "{good}");
    }
    for bad in [
        "6pm",
        "24:00",
        "18:60",
        "8:30",
        "18",
        "18:30:61",
        "18:30+2",
        "18:30:",
        "18:30:00.",
        "18:30:00:00",
        "+18:30",
        "１８:30",
    ] {
        assert!(!valid(bad), "{bad}");
    }
}

#[test]
fn canonical_text_says_the_same_the_same_way() {
    let schema = booking();
    let text = schema.canonical(&json!({"people": 4.0, "pets": false, "time": "19:00", "names": [], "date": ""}));
    assert_eq!(text, r#"{"time":"19:00","people":4,"pets":false}"#);
    assert_eq!(
        schema.canonical(&json!({"b": 1, "a": {"y": 1, "x": 2}, "people": 1})),
        r#"{"people":1,"a":{"x":2,"y":1},"b":1}"#
    );
    assert_eq!(schema.canonical(&json!("no object")), "{}");
}

#[test]
fn answers_are_read_as_models_write_them() {
    let schema = booking();
    let want = json!({"people": 4});
    let wraps = [
        "{\"people\": 4}",
        " \n{\"people\":4}\n\n",
        "```json\n{\"people\": 4}\n```",
        "```\n{\n\"people\":4}\n```\n",
        "```JSON \r\n{\"people\":4}```",
    ];
    for text in wraps {
        assert_eq!(schema.read(text).as_ref(), Ok(&want), "{text:?}");
    }
    let fault = |text: &str| schema.read(text).unwrap_err().to_string();
    assert_eq!(fault(" "), "the answer is empty");
    assert_eq!(fault("[4]"), "the answer is JSON, but no object");
    assert!(fault("Four people!").starts_with("the answer is no JSON: expected value at line 1"));
    assert!(fault("{\"people\": 4} Enjoy!").contains("trailing characters"));
    assert!(fault("{\"people\": 4, \"people\": 5}").contains("occurs twice"));
    assert!(fault("``````").starts_with("the answer is no JSON"));
    assert!(fault(&"[".repeat(10_000)).contains("recursion limit"));
}

#[test]
fn what_is_outside_the_subset_is_refused_by_name() {
    let with = |field: &str| format!(r#"{{"type":"object","properties":{{"x":{field}}}}}"#);
    let check = |text: &str, says: &str| {
        let error = Schema::parse(text).unwrap_err().to_string();
        assert!(error.contains(says), "{text}\n{error}");
    };
    check("type: object", "it is no JSON");
    check("[]", "a schema is a JSON object");
    check("{}", "type: it is missing");
    check(r#"{"type":"array"}"#, "type: \"array\": an answer is an \"object\" of fields");
    check(r#"{"type":"object"}"#, "properties: an object that names at least one field is needed");
    check(
        r#"{"type":"object","properties":{"a":{"type":"string"}},"required":["b"]}"#,
        "required: there is no field \"b\"",
    );
    check(
        r#"{"type":"object","properties":{"a":{"type":"string"}},"oneOf":[]}"#,
        "oneOf: this keyword is not supported here; there are type, properties",
    );
    check(r#"{"type":"object","properties":{"a":{},"a":{}}}"#, "occurs twice");
    check(
        r#"{"type":"object","properties":{"a":{"type":"string"}},"additionalProperties":{}}"#,
        "additionalProperties: true or false",
    );
    check(
        &with(r#"{"type":"string","minimun":1}"#),
        "properties.x.minimun: this keyword is not supported here; there are type, enum, minimum",
    );
    check(&with(r#"{"type":"object"}"#), "properties.x: objects within the answer are not supported");
    check(&with(r#"{"type":"text"}"#), "properties.x.type: one of string, integer");
    check(&with(r#"{"type":["string","integer"]}"#), "properties.x.type: one of string, integer");
    check(&with("{}"), "properties.x: it needs a type");
    check(&with(r#"{"type":"array"}"#), "properties.x.items: a list needs the rules of its items");
    check(&with(r#"{"type":"array","items":{"type":"array","items":{}}}"#), "properties.x.items.items: this keyword");
    check(&with(r#"{"type":"array","items":{"type":"string"},"enum":[[]]}"#), "properties.x.enum: this keyword");
    check(
        &with(r#"{"type":"string","maximum":3}"#),
        "properties.x.maximum: it says nothing of a value of the type string",
    );
    check(&with(r#"{"type":"integer","minimum":3,"maximum":2}"#), "no value is at least 3 and at most 2");
    check(&with(r#"{"type":"string","minLength":3,"maxLength":2}"#), "minLength 3 is more than maxLength 2");
    check(&with(r#"{"type":"string","minLength":-1}"#), "properties.x.minLength: a whole number from 0");
    check(&with(r#"{"type":"string","enum":[]}"#), "properties.x.enum: a list of at least one value");
    check(&with(r#"{"type":"string","enum":["a","a"]}"#), "the choice \"a\" is there twice");
    check(
        &with(r#"{"type":"integer","enum":["a"]}"#),
        "the choice \"a\" breaks the field's own rules: a whole number is needed",
    );
    check(
        &with(r#"{"type":"string","pattern":"("}"#),
        "properties.x.pattern: \"(\" can't be used as a regular expression: unclosed group",
    );
    check(&with(r#"{"type":"string","pattern":"(?=a)"}"#), "look-around");
    check(&with(r#"{"type":"string","pattern":"(a{1000}){1000}"}"#), "can't be used as a regular expression");
    check(&with(r#"{"type":"string","format":"email"}"#), "properties.x.format: date or time");
    check(&with(r#"{"type":"string","description":3}"#), "properties.x.description: a text is needed");
    let many: Vec<String> = (0..101).map(|i| format!(r#""f{i}":{{"type":"string"}}"#)).collect();
    check(&format!(r#"{{"type":"object","properties":{{{}}}}}"#, many.join(",")), "101 fields; 100 at most");
}

/// The jsonschema package's verdicts, from tests/reference/schema_golden.py.
#[test]
fn verdicts_are_those_of_a_validator_of_the_whole_standard() {
    let golden: Value = serde_json::from_str(include_str!("../../tests/golden/schema.json")).unwrap();
    let mut verdicts = [0, 0];
    for case in golden["values"].as_array().unwrap() {
        let schema = json!({"type": "object", "properties": {"x": case[0]}});
        let found = Schema::parse(&schema.to_string()).unwrap().check(&json!({"x": case[1]}));
        assert_eq!(Value::from(found.is_empty()), case[2], "{case} {found:?}");
        verdicts[usize::from(found.is_empty())] += 1;
    }
    for case in golden["answers"].as_array().unwrap() {
        let found = Schema::parse(&case[0].to_string()).unwrap().check(&case[1]);
        assert_eq!(Value::from(found.is_empty()), case[2], "{case} {found:?}");
        verdicts[usize::from(found.is_empty())] += 1;
    }
    assert!(verdicts.iter().all(|n| *n > 60), "{verdicts:?}");
}

fn any_value() -> impl Strategy<Value = Value> {
    let single = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_filter("JSON", |x| x.is_finite()).prop_map(Value::from),
        "[ -~é卡]{0,6}".prop_map(Value::from),
        Just(json!("inside")),
        (1..22).prop_map(Value::from),
    ];
    prop_oneof![4 => single.clone(), 1 => prop::collection::vec(single, 0..4).prop_map(Value::from)]
}

proptest! {
    /// What is trained on is checked no differently from what was reviewed, and is a fixed point.
    #[test]
    fn the_canonical_text_reads_back_and_keeps_the_verdict(
        answer in prop::collection::hash_map(
            prop::sample::select(vec!["time", "people", "date", "area", "names", "pets", "start", "other"]), any_value(), 0..8),
    ) {
        let schema = booking();
        let answer = Value::Object(answer.into_iter().map(|(key, value)| (key.to_string(), value)).collect());
        let text = schema.canonical(&answer);
        let back = schema.read(&text).unwrap();
        prop_assert_eq!(schema.canonical(&back), text.clone());
        prop_assert_eq!(&serde_json::from_str::<Value>(&text).unwrap(), &back);
        let faults = |answer: &Value| -> Vec<String> {
            let blank = |f: &&Fault| !answer[&f.field].is_null() && answer[&f.field] != "" && answer[&f.field] != json!([]);
            schema.check(answer).iter().filter(blank).map(|f| f.field.clone()).collect()
        };
        prop_assert_eq!(faults(&back), faults(&answer));
        let missing = |answer: &Value| schema.check(answer).iter().any(|f| f.what == "it must be filled in");
        prop_assert_eq!(missing(&back), missing(&answer));
    }

    #[test]
    fn no_text_panics(text in any::<String>(), near in r#"[\[\]{}",:0-9`a-z \n]{0,60}"#) {
        let schema = booking();
        let _ = (schema.read(&text), schema.read(&near), Schema::parse(&text), Schema::parse(&near));
    }
}
