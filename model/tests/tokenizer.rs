//! The tokenizer on a vocabulary small enough to read, and files that would break a careless one.

#![allow(clippy::unwrap_used, reason = "tests")]

use limbeck_artifact::dataset::Message;
use limbeck_model::gguf::{Array, GgufWriter, Value};
use limbeck_model::tokenizer::{Algorithm, ChatTokenizer, PreTokenizer, TokenKind, Vocab};
use serde_json::{Value as Json, json};
use std::path::Path;

const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Three control tokens, the letters that the tests use, and two merges.
fn vocab() -> Vocab {
    let tokens =
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tag>", "a", "b", "c", "!", "1", "2", "Ġ", "Ċ", "ab", "!!"];
    let mut kinds = vec![TokenKind::Normal; tokens.len()];
    kinds[..3].fill(TokenKind::Control);
    kinds[3] = TokenKind::UserDefined;
    Vocab {
        tokens: tokens.map(String::from).to_vec(),
        kinds,
        algorithm: byte_level(PreTokenizer::Smollm),
        bos: Some(1),
        eos: Some(0),
        unknown: Some(0),
        padding: Some(2),
        add_bos: false,
    }
}

fn byte_level(pre: PreTokenizer) -> Algorithm {
    let merges = [("a", "b"), ("!", "!")].map(|(a, b)| (a.into(), b.into())).to_vec();
    Algorithm::ByteLevel { pre, merges }
}

fn tokenizer() -> ChatTokenizer {
    ChatTokenizer::from_vocab(Path::new("test"), vocab(), TEMPLATE).unwrap()
}

#[test]
fn merges_digits_and_special_tokens() {
    let t = tokenizer();
    for (text, ids) in [
        ("abc", vec![12, 6]),
        ("12", vec![8, 9]),
        ("ab<|im_end|>a", vec![12, 2, 4]),
        // Without its end it is plain text, of which this vocabulary has only the `a`.
        ("<tag>a <|im_start", vec![3, 4, 10, 4]),
        ("a\nb", vec![4, 11, 5]),
        ("", Vec::new()),
        ("!!", vec![13]),
        // The byte 4 has no token: it is dropped, and what it parts is not joined. So does llama.cpp.
        ("!\u{4}!", vec![7, 7]),
    ] {
        assert_eq!(t.encode(text).unwrap(), ids, "{text:?}");
    }
    assert_eq!(t.decode(&[12, 10, 6, 2, 11, 999]), "ab c<|im_end|>\n");
    assert_eq!((t.token(10), t.token(99), t.token_id("ab"), t.vocab_size()), (Some("Ġ"), None, Some(12), 14));
    assert!(t.is_special(2) && t.is_special(3) && !t.is_special(4));
}

#[test]
fn the_end_of_a_turn_is_found_in_the_template() {
    assert_eq!(tokenizer().end_of_turn_id(), Some(2));
    let without = ChatTokenizer::from_vocab(Path::new("test"), vocab(), "").unwrap();
    assert_eq!(without.end_of_turn_id(), Some(0), "falls back to the end of text");
    let error = without.render(&[], true).unwrap_err().to_string();
    assert!(error.contains("the model has none"), "{error}");
}

#[test]
fn both_formats_hold_the_whole_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    for pre in PreTokenizer::ALL {
        let made =
            ChatTokenizer::from_vocab(Path::new("test"), Vocab { algorithm: byte_level(pre), ..vocab() }, TEMPLATE)
                .unwrap();
        let folder = dir.path().join(pre.name());
        made.save(&folder).unwrap();
        let from_folder = ChatTokenizer::open(&folder).unwrap();
        assert_eq!(from_folder.vocab(), made.vocab());
        let file = folder.join("x.gguf");
        let mut writer = GgufWriter::new();
        from_folder.gguf_metadata().into_iter().for_each(|(key, value)| {
            writer.set(key, value);
        });
        writer.write(&file).unwrap();
        let from_file = ChatTokenizer::open(&file).unwrap();
        assert_eq!(from_file.vocab(), made.vocab());
        assert_eq!(from_file.chat_template(), TEMPLATE);
    }
}

#[test]
fn tokens_are_padded_to_the_rows_of_the_embedding() {
    let dir = tempfile::tempdir().unwrap();
    tokenizer().save(dir.path()).unwrap();
    let config = json!({"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
                        "intermediate_size": 8, "vocab_size": 16});
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let padded = ChatTokenizer::open(dir.path()).unwrap();
    assert_eq!((padded.vocab_size(), padded.token(15)), (16, Some("[PAD15]")));
    assert_eq!(padded.encode("!\u{4}!ab").unwrap(), [7, 7, 12]);
}

#[test]
fn a_hub_tokenizers_own_truncation_and_padding_do_not_apply() {
    let dir = tempfile::tempdir().unwrap();
    tokenizer().save(dir.path()).unwrap();
    let path = dir.path().join("tokenizer.json");
    let mut json: Json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    json["truncation"] = json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = json!({"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                             "pad_type_id": 0, "pad_token": "<|endoftext|>"});
    std::fs::write(&path, json.to_string()).unwrap();
    assert_eq!(ChatTokenizer::open(dir.path()).unwrap().encode("abcab").unwrap(), [12, 6, 12]);
}

#[test]
fn broken_gguf_tokenizers_are_refused_with_a_reason() {
    let ids = |v: Vec<i32>| Value::Array(Array::I32(v));
    for (key, value, because) in [
        ("model", Value::from("bert"), "'bert' is not supported; gpt2 (byte-level BPE) and llama"),
        ("add_eos_token", true.into(), "end every prompt"),
        ("pre", "made-up".into(), "'made-up' is not known; known: gpt-2, smollm"),
        ("tokens", Value::strings(vec!["a".into(), "a".into()]), "token types for 2 tokens"),
        ("tokens", ids(vec![1]), "is not an array of strings"),
        ("token_type", ids(vec![1; 3]), "3 token types for 14 tokens"),
        ("token_type", ids(vec![9; 14]), "not one of 0 to 6"),
        ("merges", Value::strings(vec!["ab".into()]), "'ab' is no pair"),
        ("merges", Value::strings(vec!["a zz".into()]), "zz"),
        ("eos_token_id", Value::U32(14), "the eos token 14 is not one of 14"),
        ("bos_token_id", Value::I32(-1), "is not a token id"),
        ("bos_token_id", Value::U64(1 << 40), "is no token id"),
        ("add_bos_token", Value::U8(1), "is not a bool"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        let mut writer = GgufWriter::new();
        tokenizer().gguf_metadata().into_iter().for_each(|(key, value)| {
            writer.set(key, value);
        });
        writer.set(format!("tokenizer.ggml.{key}"), value);
        writer.write(&path).unwrap();
        let error = ChatTokenizer::open(&path).unwrap_err().to_string();
        assert!(error.contains(because), "{key}: '{error}' does not say '{because}'");
    }
}

#[test]
fn duplicate_tokens_are_refused() {
    let mut twice = vocab();
    twice.tokens[5] = "a".into();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    let mut writer = GgufWriter::new();
    twice.to_gguf().into_iter().for_each(|(key, value)| {
        writer.set(key, value);
    });
    writer.write(&path).unwrap();
    let error = ChatTokenizer::open(&path).unwrap_err().to_string();
    assert!(error.contains("token 'a' is given twice"), "{error}");
}

#[test]
fn messages_reach_the_prompt_unescaped() {
    let message = Message::new("user", "<b> & \"q\" {{ 1 }}");
    let text = tokenizer().render(&[message], true).unwrap();
    assert_eq!(text, "<|im_start|>user\n<b> & \"q\" {{ 1 }}<|im_end|>\n<|im_start|>assistant\n");
}

#[test]
fn a_cut_that_gguf_has_no_name_for_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    tokenizer().save(dir.path()).unwrap();
    let path = dir.path().join("tokenizer.json");
    let mut json: Json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (pre, because) in [
        (
            json!({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": false}, {"type": "ByteLevel",
                "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]}),
            "no name in GGUF",
        ),
        (
            json!({"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": true}),
            "without byte fallback, is not supported",
        ),
        (Json::Null, "without byte fallback, is not supported"),
    ] {
        json["pre_tokenizer"] = pre;
        std::fs::write(&path, json.to_string()).unwrap();
        let error = ChatTokenizer::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(because), "'{error}' does not say '{because}'");
    }
}
