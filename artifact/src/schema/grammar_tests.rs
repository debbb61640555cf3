//! The grammar against its referee, the schema's own check: what it lets through is valid, and what is valid it lets through.

use super::*;
use proptest::prelude::*;
use serde_json::{Map, json};

/// Rules of a field, each with texts that are values of it.
const RULES: &[(&str, &[&str])] = &[
    (r#"{"type": "string"}"#, &[r#""a""#, r#""é \"卡\"\\ \u0001\t\u007f😀/""#]),
    (r#"{"type": "string", "minLength": 2, "maxLength": 5}"#, &[r#""ab""#, r#""\n\"卡é😀""#]),
    (r#"{"type": "string", "enum": ["in \"side\"", "inside", "out"]}"#, &[r#""in \"side\"""#, r#""inside""#]),
    (r#"{"type": "string", "pattern": "^[A-Z]\\d{2,}$"}"#, &[r#""A12""#, r#""Z1٣4""#]),
    (r#"{"type": "string", "pattern": "an|^b+$|c$", "maxLength": 6}"#, &[r#""and""#, r#""bbb""#, r#""a\tc""#]),
    (r#"{"type": "string", "pattern": "(?i)^(aa)*$", "minLength": 3, "maxLength": 5}"#, &[r#""aAaA""#]),
    (r#"{"type": "string", "pattern": "\\W\\S", "minLength": 4}"#, &[r#""ab-c""#, r#"" \"\\\u0002""#]),
    (r#"{"type": "string", "format": "date"}"#, &[r#""2024-02-29""#, r#""0000-12-31""#, r#""2000-02-29""#]),
    (r#"{"type": "string", "format": "time"}"#, &[r#""18:30""#, r#""23:59:60Z""#, r#""08:00:00.25-05:30""#]),
    (r#"{"type": "integer"}"#, &["0", "-7", "18446744073709551615", "-9223372036854775808"]),
    (r#"{"type": "integer", "minimum": 1, "maximum": 20}"#, &["1", "9", "10", "20"]),
    (r#"{"type": "integer", "minimum": -105, "maximum": 0.5}"#, &["0", "-1", "-99", "-105"]),
    (r#"{"type": "integer", "minimum": 987}"#, &["987", "990", "1000", "100000"]),
    (r#"{"type": "integer", "maximum": -12}"#, &["-12", "-13", "-100"]),
    (r#"{"type": "number"}"#, &["0", "-0.5", "1e300", "-2.5e-7", "123456.789", "0.00001", "1e16", "2e-300"]),
    (r#"{"type": "number", "minimum": -1.25, "maximum": 3.1}"#, &["3.1", "-1.25", "3.09999", "0", "-0.5", "3e-7"]),
    (r#"{"type": "number", "minimum": 0.05, "maximum": 0.07}"#, &["0.05", "0.0699", "0.07"]),
    (r#"{"type": "number", "minimum": 99.5}"#, &["99.5", "100", "1e20", "99.51"]),
    (r#"{"type": "boolean"}"#, &["true", "false"]),
    (r#"{"enum": [1, 2.5, 4.0]}"#, &["1", "2.5", "4.0", "4"]),
    (r#"{"type": "array", "items": {"type": "string"}, "maxItems": 2}"#, &[r#"["", "a\n"]"#, r#"["b"]"#]),
    (r#"{"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 2}"#, &["[1, 2]", "[0, 10, 3]"]),
    (r#"{"type": "array", "items": {"enum": ["", "x"]}, "minItems": 1, "maxItems": 3}"#, &[r#"["x", ""]"#]),
];

fn schema(fields: &[(usize, bool, bool)]) -> Schema {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for (i, (rules, must, null)) in fields.iter().enumerate() {
        let mut of: Value = serde_json::from_str(RULES[*rules].0).unwrap();
        if *null && of["type"].is_string() {
            of["type"] = json!([of["type"], "null"]);
        }
        let name = format!("{} \"{i}\"", ["time", "é", "x"][i % 3]);
        if *must {
            required.push(name.clone());
        }
        properties.insert(name, of);
    }
    let text = json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false});
    Schema::parse(&text.to_string()).unwrap()
}

fn fields() -> impl Strategy<Value = Vec<(usize, bool, bool)>> {
    prop::collection::vec((0..RULES.len(), any::<bool>(), prop::bool::weighted(0.3)), 1..6)
}

/// Bytes that may come next.
fn next(grammar: &mut Grammar, at: At) -> Vec<(u8, At)> {
    (0..=255).filter_map(|byte| Some((byte, grammar.after(at, byte)?))).collect()
}

#[test]
fn each_rule_lets_its_values_through_and_no_other_spelling() {
    for (i, (rules, values)) in RULES.iter().enumerate() {
        let schema = schema(&[(i, true, false)]);
        let mut grammar = schema.grammar("").unwrap();
        let name = schema.fields()[0].name.clone();
        for value in *values {
            let answer = json!({&name: serde_json::from_str::<Value>(value).unwrap()});
            assert_eq!(schema.check(&answer), [], "{rules} {value}");
            let text = schema.canonical(&answer);
            assert!(grammar.accepts(&text), "{rules} {text}");
            assert!(!grammar.accepts(&format!(" {text}")) && !grammar.accepts(&format!("{text} ")));
            assert!(!grammar.accepts(&text.replacen(':', ": ", 1)));
        }
        assert!(!grammar.accepts("{}"), "it must be filled in: {rules}");
    }
}

#[test]
fn a_lead_may_stand_before_the_answer() {
    let schema = schema(&[(18, true, false)]);
    let text = schema.canonical(&json!({schema.fields()[0].name.clone(): true}));
    let mut grammar = schema.grammar(" ").unwrap();
    assert!(grammar.accepts(&text) && grammar.accepts(&format!(" {text}")) && !grammar.accepts(&format!("  {text}")));
}

/// Two floats that are neighbours of a bound, and the bound.
#[test]
fn bounds_hold_to_the_last_digit() {
    for bound in [0.1, 1.0, 99.5, 100.0, 123456.789, 5e-324, 1e-5, 0.3, 1e22, 2.5e15, 1e300] {
        for sign in [1.0, -1.0] {
            let bound: f64 = sign * bound;
            for key in ["minimum", "maximum"] {
                let text = json!({"type": "object", "properties": {"x": {"type": "number", key: bound}}});
                let schema = Schema::parse(&text.to_string()).unwrap();
                let mut grammar = schema.grammar("").unwrap();
                for value in [bound.next_down(), bound, bound.next_up(), bound / 2.0, bound * 2.0, -bound, bound + 1.0]
                {
                    // With an exponent not all numbers can be written, but none that is out of bounds.
                    let answer = json!({"x": value});
                    let (valid, written) = (schema.check(&answer).is_empty(), schema.canonical(&answer));
                    let accepted = grammar.accepts(&written);
                    assert!(valid || !accepted, "{written} {key} {bound}");
                    assert!(accepted || !valid || written.contains('e'), "{written} {key} {bound}");
                }
            }
        }
    }
}

#[test]
fn what_can_not_be_written_is_left_out_or_told() {
    let of = |field: &str, required: &str| {
        let text = format!(
            r#"{{"type":"object","properties":{{"x":{field},"y":{{"type":"boolean"}}}},"required":[{required}]}}"#
        );
        Schema::parse(&text).unwrap().grammar("")
    };
    let none = r#"{"type":"string","pattern":"^(aa)*$","minLength":3,"maxLength":3}"#;
    let mut grammar = of(none, "").unwrap();
    assert!(grammar.accepts("{}") && grammar.accepts(r#"{"y":true}"#) && !grammar.accepts(r#"{"x":"aaa"}"#));
    for field in [none, r#"{"type":"integer","minimum":0.2,"maximum":0.8}"#, r#"{"type":"string","maxLength":0}"#] {
        let error = of(field, "\"x\"").err().unwrap().to_string();
        assert_eq!(error, "properties.x: no value of this field can be written, and it must be filled in");
    }
    assert!(Schema::parse(r#"{"type":"string"}"#).unwrap().grammar("").is_err(), "a text");
    let error = of(r#"{"type":"string","pattern":"\\bann\\b"}"#, "").err().unwrap().to_string();
    assert!(error.starts_with(r#"properties.x.pattern: "\\bann\\b" can't be kept to while"#), "{error}");
}

#[test]
fn a_hundred_fields_are_no_more_than_a_hundred() {
    let properties: Map<String, Value> =
        (0..100).map(|i| (format!("field_{i}"), json!({"type": "string", "maxLength": 200}))).collect();
    let schema = Schema::parse(&json!({"type": "object", "properties": properties}).to_string()).unwrap();
    let mut grammar = schema.grammar("").unwrap();
    let every: Map<String, Value> =
        (0..100).step_by(7).map(|i| (format!("field_{i}"), json!("v".repeat(i + 1)))).collect();
    assert!(grammar.accepts(&schema.canonical(&Value::Object(every))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_valid_answers_canonical_text_is_let_through(
        fields in fields(), said in prop::collection::vec(prop::option::weighted(0.7, any::<usize>()), 6),
        words in prop::collection::vec(any::<String>(), 6), numbers in prop::collection::vec(any::<f64>(), 6),
    ) {
        let schema = schema(&fields);
        let mut answer = Map::new();
        for (i, ((rules, ..), said)) in fields.iter().zip(&said).enumerate() {
            let name = schema.fields()[i].name.clone();
            let known = RULES[*rules].1;
            let Some(said) = said else { continue };
            let own = match RULES[*rules].0 {
                r#"{"type": "string"}"# => json!(words[i]),
                r#"{"type": "number"}"# if (1e-300..1e300).contains(&numbers[i].abs()) => json!(numbers[i]),
                _ => Value::Null,
            };
            let value = if said % 2 == 0 && !own.is_null() { own } else { serde_json::from_str(known[said % known.len()]).unwrap() };
            answer.insert(name, value);
        }
        let answer = Value::Object(answer);
        prop_assume!(schema.check(&answer).is_empty());
        let text = schema.canonical(&answer);
        prop_assert!(schema.grammar("").unwrap().accepts(&text), "{}", text);
    }

    /// A writer that knows nothing, but keeps to the grammar.
    #[test]
    fn whatever_is_let_through_is_valid(fields in fields(), seed in any::<u64>()) {
        let schema = schema(&fields);
        let mut grammar = schema.grammar("").unwrap();
        let mut z = seed | 1;
        let mut below = |n: usize| {
            z = z.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (z >> 33) as usize % n
        };
        let (mut text, mut at) = (Vec::new(), grammar.start());
        while !grammar.is_whole(at) {
            let ways = next(&mut grammar, at);
            prop_assert!(!ways.is_empty(), "a dead end after {}", String::from_utf8_lossy(&text));
            // Ends what can be ended now and then, or it would go on for long.
            let close = ways.iter().position(|(byte, _)| b"\",}]".contains(byte)).filter(|_| text.len() > 300 || below(4) == 0);
            let (byte, to) = ways[close.unwrap_or_else(|| below(ways.len()))];
            text.push(byte);
            at = to;
            prop_assert!(text.len() < 2000);
        }
        prop_assert!(next(&mut grammar, at).is_empty(), "what is whole is whole");
        let text = String::from_utf8(text).unwrap();
        let canonical = schema.canonical_text(&text);
        prop_assert!(canonical.is_ok(), "{} {:?}", text, canonical);
    }
}

/// Patterns that a stranger might choose: refused, or kept to within a time that a person waits.
#[test]
fn no_pattern_takes_for_ever() {
    let begun = std::time::Instant::now();
    let mut kept = 0;
    for pattern in [
        "^(a|aa)*.{200}b$",
        "(.*a){20}",
        "^((a|b)*a(a|b){15}){3}$",
        r"^(\\w+\\s?)*$",
        r"(\\w{1,9}-){5}",
        "a.*b.*c.*d.*e.*f.*g.*h",
        "(x+x+)+y",
        "(a|b|ab)*c|(b|c|bc)*a|(.{0,30}z){5}",
    ] {
        for length in ["", r#","maxLength":400"#, r#","minLength":200,"maxLength":300"#] {
            let rules = format!(r#"{{"type":"string","pattern":"{pattern}"{length}}}"#);
            // What is too large for the check itself is refused before anything is written.
            let schema = Schema::parse(&format!(r#"{{"type":"object","properties":{{"x":{rules}}}}}"#));
            let Some(mut grammar) = schema.ok().and_then(|schema| schema.grammar("").ok()) else { continue };
            kept += 1;
            let (mut at, mut z) = (grammar.start(), 7u64);
            for _ in 0..500 {
                let ways = next(&mut grammar, at);
                let near: Vec<At> = ways.iter().filter(|(byte, _)| b"abxz- ".contains(byte)).map(|way| way.1).collect();
                let ways = if near.is_empty() { ways.iter().map(|way| way.1).collect() } else { near };
                if ways.is_empty() {
                    break;
                }
                z = z.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                at = ways[(z >> 33) as usize % ways.len()];
            }
        }
    }
    let seconds = begun.elapsed().as_secs();
    assert!(kept >= 20 && seconds < 60, "{kept} in {seconds} s");
}

/// The engine would take it for a mark of where the text ends.
#[test]
fn a_group_called_stop_is_refused_and_any_other_is_none() {
    let of = |group: &str| {
        let pattern = format!("^({group}[0-9]+)$");
        let text =
            json!({"type": "object", "properties": {"n": {"type": "string", "pattern": pattern}}, "required": ["n"]});
        Schema::parse(&text.to_string()).unwrap().grammar("")
    };
    for group in ["?P<stop>", "?<stop>"] {
        let e = of(group).err().unwrap().to_string();
        assert!(e.contains("rename the group") && e.contains("n.pattern"), "{e}");
    }
    let mut grammar = of("?P<line>").unwrap();
    let start = Some(grammar.start());
    assert!(br#"{"n":"12"}"#.iter().fold(start, |at, byte| grammar.after(at?, *byte)).is_some());
}
