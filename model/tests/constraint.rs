//! Answers that are kept to a schema: what a model of random weights writes is valid all the same, beside others as alone, and
//! a right answer may be written in any tokens that spell it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../tests/fixtures/tiny_base.rs"]
mod tiny_base;

use limbeck_artifact::dataset::Message;
use limbeck_artifact::schema::Schema;
use limbeck_model::decoder::Decoder;
use limbeck_model::device::{DeviceName, writing_ops};
use limbeck_model::generate::{Batch, Constraint, Writer, Written};
use limbeck_model::gguf::{Array, GgmlType, Value};
use limbeck_model::tokenizer::ChatTokenizer;
use limbeck_model::weights::Weights;
use proptest::prelude::*;
use serde_json::json;
use std::sync::{Arc, LazyLock};

/// Fields that end: no text may be as long as it likes.
const SHORT: &str = r#"{"type": "object", "properties": {
    "time": {"type": "string", "format": "time"},
    "area": {"enum": ["inside", "out \"side\"", "é卡😀"]},
    "people": {"type": "integer", "minimum": 1, "maximum": 20},
    "share": {"type": "number", "minimum": -1.5, "maximum": 1.5},
    "names": {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 4}, "maxItems": 2},
    "code": {"type": "string", "pattern": "^[A-Zé]{2,3}$"},
    "pets": {"type": "boolean"}
  }, "required": ["area", "people", "names", "code"], "additionalProperties": false}"#;
const FREE: &str = r#"{"type": "object", "properties": {"said": {"type": "string"}, "size": {"type": "number"}},
    "required": ["said"], "additionalProperties": false}"#;

/// SentencePiece's: bytes, the space that a text begins with, and pieces of JSON.
fn sentence_piece() -> Vec<(String, Value)> {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(
        ["▁", "▁{", "{", "\"", "{\"", "\":", ",\"", "a", "e", "an", "é", "卡", "1", "2", "12", "]", "}", "]}"]
            .map(String::from),
    );
    let mut types = vec![1; tokens.len()];
    types[0] = 2;
    types[1..3].fill(3);
    types[3..259].fill(6);
    let scores: Vec<f32> = (0..tokens.len()).map(|i| -(i as f32)).collect();
    let keys = [
        ("tokenizer.ggml.model", "llama".into()),
        ("tokenizer.ggml.pre", "default".into()),
        ("tokenizer.ggml.tokens", Value::strings(tokens)),
        ("tokenizer.ggml.token_type", Value::Array(Array::I32(types))),
        ("tokenizer.ggml.scores", Value::Array(Array::F32(scores))),
        ("tokenizer.ggml.bos_token_id", Value::U32(1)),
        ("tokenizer.ggml.eos_token_id", Value::U32(2)),
        ("tokenizer.ggml.unknown_token_id", Value::U32(0)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(false)),
        ("tokenizer.ggml.add_space_prefix", Value::Bool(true)),
        ("tokenizer.chat_template", "{% for m in messages %}{{ m['content'] }}</s>{% endfor %}".into()),
    ];
    keys.map(|(key, value)| (key.to_owned(), value)).to_vec()
}

struct Model {
    decoder: Arc<Decoder>,
    tokenizer: Arc<ChatTokenizer>,
}

/// Of both kinds of vocabulary.
fn models(seed: u64) -> [Model; 2] {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("base.gguf");
    let open = || {
        let ops = writing_ops(DeviceName::Cpu).unwrap();
        Model {
            decoder: Arc::new(Decoder::from_weights(&Weights::open(&path).unwrap(), ops, false).unwrap()),
            tokenizer: Arc::new(ChatTokenizer::open(&path).unwrap()),
        }
    };
    tiny_base::write(&path, 2, GgmlType::F32, seed);
    let bytes = open();
    tiny_base::write_with(&path, 2, GgmlType::F32, seed, "Tiny Pieces", sentence_piece());
    [bytes, open()]
}

fn written(model: &Model, schema: &Schema, most: usize, rows: usize, asked: &[Vec<Message>]) -> Vec<Written> {
    let writer = Writer::new(model.decoder.clone(), model.tokenizer.clone(), most).within(schema).unwrap();
    let writer = writer.with_batch(Batch::of(rows));
    let asked: Vec<&[Message]> = asked.iter().map(Vec::as_slice).collect();
    writer.write_all(&asked, &|_| true, &mut |_| ()).unwrap().into_iter().map(Result::unwrap).collect()
}

#[test]
fn a_model_that_knows_nothing_writes_valid_answers() {
    let schema = Schema::parse(SHORT).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for seed in 1..6 {
        let asked: Vec<Vec<Message>> =
            (0..5).map(|i| vec![Message::new("user", &format!("{seed} and {i}, é"))]).collect();
        for model in models(seed) {
            let alone: Vec<Written> =
                asked.iter().flat_map(|one| written(&model, &schema, 300, 1, std::slice::from_ref(one))).collect();
            for answer in &alone {
                assert!(answer.ended, "{answer:?}");
                let canonical = schema.canonical_text(&answer.text).unwrap();
                assert!(answer.probability > 0.0 && answer.probability < 1.0);
                seen.insert(canonical);
            }
            let exactly = |answers: &[Written]| -> Vec<(String, u64)> {
                answers.iter().map(|a| (a.text.clone(), a.probability.to_bits())).collect()
            };
            for rows in [2, 32] {
                assert_eq!(exactly(&written(&model, &schema, 300, rows, &asked)), exactly(&alone));
            }
            // Where there is no room for the whole, it is said to be cut off.
            let cut = &written(&model, &schema, 9, 1, &asked[..1])[0];
            assert!(!cut.ended && cut.tokens == 9 && alone[0].text.starts_with(cut.text.trim_end_matches('\u{fffd}')));
        }
    }
    assert!(seen.len() > 4, "{seen:?}");
}

#[test]
fn a_sure_token_costs_no_probability() {
    let schema = Schema::parse(r#"{"type":"object","properties":{"x":{"enum":["only"]}},"required":["x"]}"#).unwrap();
    for model in models(7) {
        let answer = &written(&model, &schema, 100, 1, &[vec![Message::new("user", "a")]])[0];
        assert!(answer.ended && answer.text.trim_start() == r#"{"x":"only"}"#, "{answer:?}");
        // Which tokens spell it is all that is left to choose.
        assert!(answer.probability > 0.0 && answer.probability <= 1.0);
    }
}

/// What places take in memory is given back, and what answers may say does not depend on it.
#[test]
fn a_constraint_that_is_used_for_months_stays_small() {
    let schema = r#"{"type":"object","properties":{"said":{"type":"string","maxLength":2000}},"required":["said"]}"#;
    let schema = Schema::parse(schema).unwrap();
    let [model, _] = &*MODELS;
    let vocab = model.decoder.config.vocab_size;
    let new = || Constraint::new(&schema, &model.tokenizer, vocab).unwrap();
    let (roomy, tight) = (new(), new().within_bytes(1 << 20));
    let (begun, mut given_back) = (tight.bytes(), 0);
    for n in [1, 200, 800, 30, 500, 900, 700, 3] {
        let before = tight.bytes();
        for text in [format!("{{\"said\":\"{}\"}}", "a".repeat(n)), format!("{{\"said\":\"{}", "b".repeat(n))] {
            let tokens = pieces(&model.tokenizer, &text, n as u64);
            assert_eq!(tight.accepts(&tokens), text.ends_with('}'), "{n}");
            assert_eq!(roomy.accepts(&tokens), text.ends_with('}'), "{n}");
        }
        given_back += usize::from(tight.bytes() < before);
    }
    let [small, large] = [&tight, &roomy].map(Constraint::bytes);
    assert!(given_back >= 2 && small >= begun && small < large / 4, "{given_back} times: {small} of {large}");
}

/// The same tokens written in pieces as a die falls.
fn pieces(tokenizer: &ChatTokenizer, text: &str, mut seed: u64) -> Vec<u32> {
    let (mut rest, mut tokens) = (text.as_bytes(), Vec::new());
    while !rest.is_empty() {
        let fits = |id: &u32| tokenizer.bytes(*id).is_some_and(|bytes| !bytes.is_empty() && rest.starts_with(&bytes));
        let fitting: Vec<u32> = (0..tokenizer.vocab_size() as u32).filter(fits).collect();
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let token = fitting[(seed >> 33) as usize % fitting.len()];
        rest = &rest[tokenizer.bytes(token).unwrap().len()..];
        tokens.push(token);
    }
    tokens
}

static MODELS: LazyLock<[Model; 2]> = LazyLock::new(|| models(1));

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_right_answer_may_be_spelled_in_any_tokens(
        said in "[ -~é卡😀\n\u{0}-\u{1f}]{1,12}", size in prop::option::of(-1e6f64..1e6), seed in any::<u64>(),
        at in any::<prop::sample::Index>(), other in any::<char>(),
    ) {
        let schema = Schema::parse(FREE).unwrap();
        let text = schema.canonical(&json!({"said": said, "size": size}));
        for model in MODELS.iter() {
            let constraint = Constraint::new(&schema, &model.tokenizer, usize::MAX).unwrap();
            prop_assert!(constraint.accepts(&pieces(&model.tokenizer, &text, seed)), "{}", text);
            prop_assert!(constraint.accepts(&model.tokenizer.encode_answer(&text).unwrap()), "{}", text);
            // With a letter changed it may be no answer any more; if it is let through, it is one.
            let mut letters: Vec<char> = text.chars().collect();
            let i = at.index(letters.len());
            letters[i] = other;
            let changed: String = letters.into_iter().collect();
            let let_through = constraint.accepts(&pieces(&model.tokenizer, &changed, seed));
            prop_assert!(!let_through || schema.canonical_text(&changed).is_ok(), "{}", changed);
        }
    }
}
