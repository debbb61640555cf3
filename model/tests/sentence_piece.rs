//! SentencePiece vocabularies in the shapes of Llama 2, Phi-3 and Gemma 3: ids equal llama.cpp's and HF tokenizers' from
//! either format and after writing either, and prompts and labels meet where llama.cpp sees them meet. Goldens come from
//! tests/reference/sentencepiece_golden.py.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

use limbeck_artifact::dataset::Message;
use limbeck_model::gguf::{Array, GgufFile, GgufWriter, Value};
use limbeck_model::prompt::{EncodedExample, PromptError, TrainOn, encode_completion, encode_example, encode_prompt};
use limbeck_model::tokenizer::{Algorithm, ChatTokenizer, Vocab};
use serde_json::{Value as Json, json};
use std::path::{Path, PathBuf};

const SHAPES: [&str; 3] = ["llama", "phi3", "gemma"];

fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/sentence_piece")
}

fn read(path: &Path) -> Json {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Texts, and llama.cpp's ids of each.
fn golden(shape: &str) -> Vec<(String, Vec<u32>)> {
    let texts = serde_json::from_value::<Vec<String>>(read(&golden_dir().join("llama.ids.json"))["texts"].take());
    let ids = serde_json::from_value::<Vec<Vec<u32>>>(ids(shape)["llamacpp"].take()).unwrap();
    let texts = texts.unwrap();
    assert!(texts.len() == ids.len() && texts.len() > 300);
    texts.into_iter().zip(ids).collect()
}

fn ids(shape: &str) -> Json {
    read(&golden_dir().join(format!("{shape}.ids.json")))
}

fn ids_of(shape: &str, text: &str) -> Vec<u32> {
    golden(shape).into_iter().find(|(other, _)| other == text).unwrap().1
}

fn check(tokenizer: &ChatTokenizer, shape: &str) {
    for (text, expected) in golden(shape) {
        assert_eq!(tokenizer.encode(&text).unwrap(), expected, "{shape} {text:?}");
    }
}

fn config(shape: &str, template: &str) -> Json {
    let (bos, eos) = if shape == "gemma" { ("<bos>", "<eos>") } else { ("<s>", "</s>") };
    json!({"bos_token": bos, "eos_token": eos, "unk_token": "<unk>", "add_bos_token": true, "chat_template": template})
}

/// A Hugging Face folder of the shape, its tokenizer.json changed by `change`.
fn folder(shape: &str, template: &str, change: impl FnOnce(&mut Json)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut json = read(&golden_dir().join(format!("{shape}.json")));
    change(&mut json);
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), config(shape, template).to_string()).unwrap();
    dir
}

fn open(shape: &str, template: &str) -> ChatTokenizer {
    ChatTokenizer::open(folder(shape, template, |_| {}).path()).unwrap()
}

fn write_gguf(path: &Path, name: &str, keys: Vec<(String, Value)>) {
    let mut writer = GgufWriter::new();
    writer.set("general.name", name);
    keys.into_iter().for_each(|(key, value)| {
        writer.set(key, value);
    });
    writer.write(path).unwrap();
}

#[test]
fn ids_equal_llama_cpps_from_either_format_and_after_writing_either() {
    for shape in SHAPES {
        let tokenizer = open(shape, "");
        check(&tokenizer, shape);
        let dir = tempfile::tempdir().unwrap();
        tokenizer.save(dir.path()).unwrap();
        let saved = ChatTokenizer::open(dir.path()).unwrap();
        assert_eq!(saved.vocab(), tokenizer.vocab(), "nothing is lost");
        let file = dir.path().join("x.gguf");
        write_gguf(&file, if shape == "phi3" { "My Phi-3 router" } else { "x" }, tokenizer.gguf_metadata());
        let written = ChatTokenizer::open(&file).unwrap();
        assert_eq!(written.vocab(), tokenizer.vocab());
        check(&written, shape);
    }
    // As llama.cpp's own converter writes them, with the model's own scores.
    for shape in ["llama", "gemma"] {
        let file = ChatTokenizer::open(&golden_dir().join(format!("{shape}.gguf"))).unwrap();
        check(&file, shape);
        let dir = tempfile::tempdir().unwrap();
        file.save(dir.path()).unwrap();
        check(&ChatTokenizer::open(dir.path()).unwrap(), shape);
    }
}

/// What transformers loads from our folder is what we train on.
#[test]
fn hf_tokenizers_reads_the_same_from_what_is_saved() {
    for shape in SHAPES {
        let dir = tempfile::tempdir().unwrap();
        open(shape, "").save(dir.path()).unwrap();
        let hf = tokenizers::Tokenizer::from_file(dir.path().join("tokenizer.json")).unwrap();
        let differs = ids(shape)["hf_differs"].take();
        assert!(
            differs.as_object().unwrap().len() <= 1,
            "Unicode spaces after Phi-3's tokens; a spelled-out space of Gemma's"
        );
        for (i, (text, expected)) in golden(shape).into_iter().enumerate() {
            let theirs = hf.encode(text.as_str(), false).unwrap();
            if differs.get(i.to_string()).is_none() {
                assert_eq!(theirs.get_ids(), expected, "{shape} {text:?}");
            }
        }
    }
}

/// `LIMBECK_TOKENIZERS=FOLDER`, made as tests/reference/sentencepiece_golden.py tells.
#[test]
fn published_vocabularies_tokenize_as_llama_cpp_does() {
    let Some(root) = std::env::var_os("LIMBECK_TOKENIZERS").map(PathBuf::from) else {
        return eprintln!("SKIPPED: LIMBECK_TOKENIZERS does not name a folder with llama2, mistral and gemma3");
    };
    // SentencePiece's own file, and what transformers' converter makes of it.
    let model = std::fs::read(root.join("mistral/tokenizer.model")).unwrap();
    check(&ChatTokenizer::open(own_file(&model, &Json::Null).path()).unwrap(), "mistral");
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(root.join("mistral-remade/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    check(&ChatTokenizer::open(dir.path()).unwrap(), "mistral");
    for name in ["llama2", "mistral", "gemma3"] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(root.join(name).join("tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
        let shape = if name == "gemma3" { "gemma" } else { "llama" };
        std::fs::write(dir.path().join("tokenizer_config.json"), config(shape, "").to_string()).unwrap();
        let tokenizer = ChatTokenizer::open(dir.path()).unwrap();
        check(&tokenizer, name);
        let file = dir.path().join("x.gguf");
        write_gguf(&file, "x", tokenizer.gguf_metadata());
        check(&ChatTokenizer::open(&file).unwrap(), name);
        tokenizer.save(dir.path()).unwrap();
        check(&ChatTokenizer::open(dir.path()).unwrap(), name);
    }
}

#[test]
fn text_comes_back_from_its_tokens() {
    for shape in SHAPES {
        let tokenizer = open(shape, "");
        let prefix = if shape == "gemma" { "" } else { " " };
        let mut bytes = 0;
        for (text, ids) in golden(shape) {
            // Gemma's line breaks and runs of spaces are tokens of their own, and text.
            let special =
                |id: &u32| if shape == "gemma" { tokenizer.is_structural(*id) } else { tokenizer.is_special(*id) };
            let special = ids.iter().any(special);
            if special || text.contains('▁') || text.is_empty() {
                continue;
            }
            assert_eq!(tokenizer.decode(&ids), format!("{prefix}{text}"), "{shape}");
            bytes += ids.iter().filter(|&&id| tokenizer.token(id).unwrap().starts_with("<0x")).count();
        }
        assert!(bytes > 500, "the texts hold characters that only bytes spell");
        // Half a character is told as such, and a token that no text becomes has no text.
        let half = ["<0xE2>", "<0x82>"].map(|byte| tokenizer.token_id(byte).unwrap());
        assert_eq!(tokenizer.decode(&half), "\u{fffd}");
        let euro = [half[0], half[1], tokenizer.token_id("<0xAC>").unwrap()];
        assert_eq!(tokenizer.decode(&euro), "€");
        assert_eq!(tokenizer.decode(&[9999]), "");
    }
}

/// Quadratic merging would take minutes for each.
#[test]
fn long_runs_are_no_trouble() {
    for shape in SHAPES {
        let tokenizer = open(shape, "");
        for piece in ["a", " ", "\n", "▁", "<", "the ", "\u{10ffff}", "<|end|>", "</s> ", "<start_of_turn"] {
            let text = piece.repeat((1 << 18) / piece.len());
            let ids = tokenizer.encode(&text).unwrap();
            if shape == "gemma" || !ids.iter().any(|&id| tokenizer.is_special(id)) {
                let prefix = if shape == "gemma" { "" } else { " " };
                assert!(tokenizer.decode(&ids) == format!("{prefix}{}", text.replace('▁', " ")), "{shape} {piece:?}");
            }
        }
        let error = tokenizer.encode(&"a".repeat((16 << 20) + 1)).unwrap_err().to_string();
        assert!(error.contains("16 MiB"), "{error}");
    }
}

#[test]
fn metaspace_is_another_spelling_of_the_same() {
    let plain = open("llama", "");
    for scheme in ["always", "first"] {
        let spelled = folder("llama", "", |json| {
            json["normalizer"] = Json::Null;
            json["pre_tokenizer"] =
                json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
        });
        assert_eq!(ChatTokenizer::open(spelled.path()).unwrap().vocab(), plain.vocab());
    }
    let never = folder("gemma", "", |json| {
        json["normalizer"] = Json::Null;
        json["pre_tokenizer"] =
            json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": false});
    });
    assert_eq!(ChatTokenizer::open(never.path()).unwrap().vocab(), open("gemma", "").vocab());
    // Merges as older files spell them; what the post-processor says of the first token.
    let older = folder("llama", "", |json| {
        let joined = |m: &Json| json!(format!("{} {}", m[0].as_str().unwrap(), m[1].as_str().unwrap()));
        json["model"]["merges"] = json["model"]["merges"].as_array().unwrap().iter().map(joined).collect();
        json["post_processor"] = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}}], "pair": [], "special_tokens": {}});
    });
    std::fs::write(
        older.path().join("tokenizer_config.json"),
        json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}}).to_string(),
    )
    .unwrap();
    assert_eq!(ChatTokenizer::open(older.path()).unwrap().vocab(), plain.vocab());
}

#[test]
fn what_llama_cpp_would_do_otherwise_is_refused() {
    type Change = fn(&mut Json);
    let cases: [(&str, Change, &str); 14] = [
        ("llama", |j| j["model"]["vocab"][&"x".repeat(513)] = 900.into(), "token 900 is longer than 512 bytes"),
        ("llama", |j| j["model"]["type"] = "Unigram".into(), "Unigram without byte fallback, is not supported"),
        ("llama", |j| j["model"]["byte_fallback"] = false.into(), "BPE without byte fallback, is not supported"),
        ("llama", |j| j["model"]["ignore_merges"] = true.into(), "ignore_merges true is not supported"),
        ("llama", |j| j["normalizer"] = json!({"type": "NFKC"}), "normalizer {\"type\":\"NFKC\"} is not supported"),
        ("llama", |j| j["normalizer"] = Json::Null, "nothing in it turns spaces into"),
        ("llama", |j| j["pre_tokenizer"] = json!({"type": "Whitespace"}), "pre-tokenizer {\"type\":\"Whitespace\"}"),
        (
            "llama",
            |j| j["pre_tokenizer"] = json!({"type": "Metaspace", "replacement": "▁", "split": true}),
            "splits words, llama.cpp would not",
        ),
        ("llama", |j| j["added_tokens"][1]["lstrip"] = true.into(), "'<s>' is matched with lstrip"),
        ("llama", |j| j["added_tokens"][1]["single_word"] = true.into(), "'<s>' is matched with single_word"),
        ("llama", |j| j["added_tokens"][1]["rstrip"] = true.into(), "drops the whitespace after it (rstrip)"),
        ("llama", |j| j["model"]["merges"][3] = json!(["a", "zzz"]), "joins or makes what is no token"),
        ("llama", |j| j["model"]["merges"].as_array_mut().unwrap().swap(0, 400), "not those of a SentencePiece"),
        (
            "llama",
            |j| {
                let id = j["model"]["vocab"].as_object_mut().unwrap().remove("<0x41>").unwrap();
                j["model"]["vocab"]["<0xXX>"] = id;
            },
            "no token <0x41>",
        ),
    ];
    for (shape, change, because) in cases {
        let error = ChatTokenizer::open(folder(shape, "", change).path()).unwrap_err().to_string();
        assert!(error.contains(because), "'{error}' does not say '{because}'");
    }
}

/// A folder with SentencePiece's own file and no tokenizer.json.
fn own_file(bytes: &[u8], config: &Json) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.model"), bytes).unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    dir
}

fn own_model() -> Vec<u8> {
    std::fs::read(golden_dir().join("own.model")).unwrap()
}

/// FNV-1a over the ids' bytes, as the script has it.
fn hash(ids: &[u32]) -> u32 {
    let bytes = ids.iter().flat_map(|id| id.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)) as u32
}

#[test]
fn sentencepieces_own_file_gives_its_ids_and_llama_cpps() {
    let dir = own_file(&own_model(), &config("llama", ZEPHYR));
    let tokenizer = ChatTokenizer::open(dir.path()).unwrap();
    check(&tokenizer, "own");
    let vocab = tokenizer.vocab();
    assert_eq!((vocab.unknown, vocab.bos, vocab.eos, vocab.add_bos), (Some(0), Some(1), Some(2), true));
    // A thousand texts, as sentencepiece itself tokenizes them.
    let texts: Vec<String> = serde_json::from_value(read(&golden_dir().join("../tokenizer_texts.json"))).unwrap();
    let hashes: Vec<u32> = serde_json::from_value(ids("own")["sentencepiece"].take()).unwrap();
    assert!(texts.len() == hashes.len() && texts.len() > 1000);
    let mut differ: Vec<&String> = Vec::new();
    for (text, want) in texts.iter().zip(hashes) {
        let ours = tokenizer.encode(text).unwrap();
        // What is a special token to a server is text to sentencepiece.
        let special = ours.iter().any(|id| tokenizer.is_special(*id));
        differ.extend((!special && hash(&ours) != want).then_some(text));
    }
    assert!(differ.is_empty(), "{} differ: {:?}", differ.len(), &differ[..differ.len().min(5)]);

    // In a GGUF file and in tokenizer.json it is the same.
    let file = dir.path().join("x.gguf");
    write_gguf(&file, "x", tokenizer.gguf_metadata());
    check(&ChatTokenizer::open(&file).unwrap(), "own");
    let saved = tempfile::tempdir().unwrap();
    tokenizer.save(saved.path()).unwrap();
    check(&ChatTokenizer::open(saved.path()).unwrap(), "own");
    let (prompt, answer) = ([Message::new("user", "Hi")], Message::new("assistant", "top_up"));
    let row = encode_example(&tokenizer, &prompt, &answer, TrainOn::Last, 256).unwrap();
    assert_eq!(marked(&tokenizer, &row), "<s> <|user|>\nHi</s> \n<|assistant|>\n⟦top_up</s>⟧");
    // Without a config, the file's own ids.
    std::fs::remove_file(dir.path().join("tokenizer_config.json")).unwrap();
    assert_eq!(ChatTokenizer::open(dir.path()).unwrap().vocab(), vocab);
}

/// transformers' converter lists merges of one score by the lengths of their parts, so those of the runs of spaces are mixed.
#[test]
fn merges_of_one_score_may_be_mixed() {
    let remade = open("own", "");
    check(&remade, "own");
    let Algorithm::SentencePiece { scores, .. } = &remade.vocab().algorithm else { panic!("not SentencePiece") };
    let score = |n: usize| scores[remade.token_id(&"▁".repeat(n)).unwrap() as usize];
    assert!((4..=16).filter(|n| *n != 15).all(|n| score(n) == score(3)), "one score");
    assert!(score(3) < score_of(&remade, scores, "▁the"), "below all others");
    let dir = tempfile::tempdir().unwrap();
    remade.save(dir.path()).unwrap();
    assert_eq!(ChatTokenizer::open(dir.path()).unwrap().vocab(), remade.vocab());
    // In another order they are of no one score.
    let change = |json: &mut Json| {
        let merges = json["model"]["merges"].as_array_mut().unwrap();
        let n = merges.len();
        merges.swap(n - 40, n - 20);
    };
    let error = ChatTokenizer::open(folder("own", "", change).path()).unwrap_err().to_string();
    assert!(error.contains("not those of a SentencePiece vocabulary") && error.contains("are mixed with"), "{error}");
}

fn score_of(tokenizer: &ChatTokenizer, scores: &[f32], token: &str) -> f32 {
    scores[tokenizer.token_id(token).unwrap() as usize]
}

#[test]
fn tokens_that_were_added_to_the_own_file_are_taken_in() {
    let mut config = config("llama", "");
    let token = |content: &str, special: bool| json!({"content": content, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false, "special": special});
    config["added_tokens_decoder"] =
        json!({"0": token("<unk>", true), "1106": token("<|im_end|>", true), "1108": token("<p>", false)});
    let dir = own_file(&own_model(), &config);
    std::fs::write(dir.path().join("added_tokens.json"), "{\"<|im_start|>\": 1107, \"<|im_end|>\": 1106}").unwrap();
    let tokenizer = ChatTokenizer::open(dir.path()).unwrap();
    let id = |text: &str| tokenizer.token_id(text).unwrap();
    assert_eq!([id("<|im_end|>"), id("<|im_start|>"), id("<p>")], [1106, 1107, 1108]);
    assert!(tokenizer.is_structural(1106) && tokenizer.is_structural(1107) && !tokenizer.is_structural(1108));
    assert_eq!(tokenizer.encode("<|im_start|><p><|im_end|>").unwrap(), [1107, 1108, 1106], "matched as a whole");
    for (change, because) in [
        (json!({"5": {"content": "x", "lstrip": true}}), "'x' is matched with lstrip"),
        (json!({"five": {"content": "x"}}), "no id"),
        (json!({"5": {}}), "no content"),
        (json!({"70000000": {"content": "x"}}), "no id"),
    ] {
        config["added_tokens_decoder"] = change;
        let error = ChatTokenizer::open(own_file(&own_model(), &config).path()).unwrap_err().to_string();
        assert!(error.contains(because), "'{error}' does not say '{because}'");
    }
}

/// A message's field of bytes, as protocol buffers write it.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut n = bytes.len();
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
    out.extend(bytes);
    out
}

#[test]
fn hostile_and_unsuited_own_files_are_refused_with_a_reason() {
    let good = own_model();
    let with = |more: &[u8]| [&good[..], more].concat();
    let varint = |number: u64, value: u64| {
        let key = number << 3;
        let mut out = if key < 0x80 { vec![key as u8] } else { vec![key as u8 | 0x80, (key >> 7) as u8] };
        out.push(value as u8);
        out
    };
    for (bytes, because) in [
        (b"x".to_vec(), "no SentencePiece model"),
        (Vec::new(), "it has no tokens"),
        (good[..good.len() / 2].to_vec(), "reaches beyond its end"),
        (with(&field(1, &field(1, b"\xff\xfe"))), "token 1106: it is not UTF-8"),
        (with(&field(1, &varint(3, 9))), "token 1106: 9 is no kind of token"),
        (with(&field(1, &[])), "token 1106: it has no text"),
        (with(&field(1, &field(1, b"<s>"))), "'<s>' is given twice"),
        (with(&field(1, &field(1, "x".repeat(513).as_bytes()))), "token 1106 is longer than 512 bytes"),
        (
            with(&field(1, &[field(1, b"new"), vec![0x15, 0, 0, 0xc0, 0x7f]].concat())),
            "score of token 1106 is not finite",
        ),
        (with(&field(2, &varint(3, 1))), "its model is of the unigram kind"),
        (with(&field(2, &varint(24, 1))), "treat_whitespace_as_suffix"),
        (with(&field(3, &field(2, b"table"))), "a normalizer with a table"),
        (with(&field(3, &varint(4, 1))), "remove_extra_whitespaces"),
        (with(&field(3, &varint(5, 0))), "escape_whitespaces is false"),
        (with(&varint(1, 5)), "a message was expected"),
        (field(1, &field(1, b"alone")), "its model is of the unigram kind"),
        (
            [field(1, &field(1, b"alone")), field(2, &varint(3, 2)), field(3, &varint(4, 0))].concat(),
            "bos token 1 is not one",
        ),
    ] {
        let error = ChatTokenizer::open(own_file(&bytes, &Json::Null).path()).unwrap_err().to_string();
        assert!(error.contains(because), "'{error}' does not say '{because}'");
    }
    // Without its bytes, a character could have no token.
    let three = [b"a", b"b", b"c"].map(|piece| field(1, &field(1, piece)));
    let bytes = [three.concat(), field(2, &varint(3, 2)), field(3, &varint(4, 0))].concat();
    let error = ChatTokenizer::open(own_file(&bytes, &Json::Null).path()).unwrap_err().to_string();
    assert!(error.contains("no token <0x00>"), "{error}");
    // No change of a byte takes the reader along.
    let mut z = 7u64;
    for _ in 0..300 {
        z = z.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let mut bytes = good.clone();
        let at = (z >> 33) as usize % bytes.len();
        bytes[at] ^= 1 << (z % 8);
        let _ = ChatTokenizer::open(own_file(&bytes, &Json::Null).path());
    }
    let prefix = own_file(&with(&field(3, &varint(3, 0))), &config("llama", ""));
    assert!(!ChatTokenizer::open(prefix.path()).unwrap().adds_space_prefix(), "the last word counts");
}

#[test]
fn hostile_files_are_refused_with_a_reason() {
    let keys = || {
        let file = GgufFile::open(&golden_dir().join("llama.gguf")).unwrap();
        file.metadata().iter().filter(|(key, _)| key.starts_with("tokenizer.")).cloned().collect::<Vec<_>>()
    };
    let floats = |v: Vec<f32>| Value::Array(Array::F32(v));
    let tokens = |change: fn(&mut Vec<String>)| {
        let mut tokens = ChatTokenizer::open(&golden_dir().join("llama.gguf")).unwrap().vocab().tokens.clone();
        change(&mut tokens);
        Value::strings(tokens)
    };
    let mut nan = vec![0.0; 900];
    nan[7] = f32::NAN;
    for (key, value, because) in [
        ("scores", floats(nan), "the score of token 7 is not finite"),
        ("scores", floats(vec![0.0; 899]), "899 scores for 900 tokens"),
        ("scores", Value::strings(vec!["a".into()]), "is not an array of floats"),
        ("tokens", tokens(|t| t[300] = "x".repeat(513)), "token 300 is longer than 512 bytes"),
        ("tokens", tokens(|t| t[3] = "gone".into()), "no token <0x00>"),
        ("tokens", tokens(|t| t[300] = "<s>".into()), "'<s>' is given twice"),
        ("eos_token_id", Value::U32(900), "the eos token 900 is not one of 900"),
        ("add_eos_token", true.into(), "end every prompt"),
        ("add_space_prefix", Value::U32(1), "is not a bool"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        let mut keys = keys();
        let key = format!("tokenizer.ggml.{key}");
        keys.retain(|(other, _)| *other != key);
        keys.push((key, value));
        write_gguf(&path, "x", keys);
        let error = ChatTokenizer::open(&path).unwrap_err().to_string();
        assert!(error.contains(because), "'{error}' does not say '{because}'");
    }
    let without: Vec<_> = keys().into_iter().filter(|(key, _)| !key.ends_with("scores")).collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    write_gguf(&path, "x", without);
    assert!(ChatTokenizer::open(&path).unwrap_err().to_string().contains("there is no tokenizer.ggml.scores"));
}

const LLAMA2: &str = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}\
                      {% else %}{{ ' ' + m.content + ' ' + eos_token }}{% if not loop.last %}{{ bos_token }}{% endif %}{% endif %}{% endfor %}";
const ZEPHYR: &str = "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}\
                      {% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}";
const PHI3: &str = "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}\
                    {% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}";
const GEMMA: &str = "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) \
                     + '\n' + m.content + '<end_of_turn>\n' }}{% endfor %}\
                     {% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}";

/// What is trained is what is scored is what llama.cpp sees: the row's ids are llama.cpp's of the rendered text.
#[test]
fn prompt_and_label_are_the_tokens_that_llama_cpp_sees() {
    let question = [Message::new("user", "Where is my card?")];
    let answer = Message::new("assistant", "card_arrival");
    for (shape, template, prompt, said, end) in [
        ("llama", LLAMA2, "<s>[INST] Where is my card? [/INST]", " card_arrival", "</s>"),
        ("llama", ZEPHYR, "<|user|>\nWhere is my card?</s>\n<|assistant|>\n", "card_arrival", "</s>"),
        ("phi3", PHI3, "<|user|>\nWhere is my card?<|end|>\n<|assistant|>\n", "card_arrival", "<|end|>"),
        (
            "gemma",
            GEMMA,
            "<bos><start_of_turn>user\nWhere is my card?<end_of_turn>\n<start_of_turn>model\n",
            "card_arrival",
            "<end_of_turn>",
        ),
    ] {
        let tokenizer = open(shape, template);
        let end = tokenizer.token_id(end).unwrap();
        assert_eq!(tokenizer.end_of_turn_id(), Some(end), "{shape}");
        // A server puts the first token there where the template does not spell it.
        let spelled = prompt.starts_with("<s>") || prompt.starts_with("<bos>");
        let mut seen: Vec<u32> = tokenizer.bos_id().into_iter().filter(|_| !spelled).collect();
        let before = seen.len();
        seen.extend(ids_of(shape, prompt));
        assert_eq!(encode_prompt(&tokenizer, &question).unwrap(), seen, "{shape}");

        let row = encode_example(&tokenizer, &question, &answer, TrainOn::Last, 256).unwrap();
        let mut whole = seen[..before].to_vec();
        whole.extend(ids_of(shape, &format!("{prompt}{said}")));
        whole.push(end);
        assert_eq!(row.ids, whole, "{shape}: {:?}", tokenizer.decode(&row.ids));
        assert_eq!(row.prompt(), seen);
        assert_eq!(encode_completion(&tokenizer, "card_arrival").unwrap(), whole[seen.len()..], "as a label is scored");

        // From the GGUF file that is served, the same.
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.gguf");
        write_gguf(&file, if shape == "phi3" { "phi-3" } else { "x" }, tokenizer.gguf_metadata());
        let served = ChatTokenizer::open(&file).unwrap();
        assert_eq!(encode_example(&served, &question, &answer, TrainOn::Last, 256).unwrap(), row);
        assert_eq!((served.end_of_turn_id(), served.opening()), (Some(end), tokenizer.opening()));
    }
}

#[test]
fn earlier_turns_are_the_tokens_that_llama_cpp_sees() {
    let tokenizer = open("llama", LLAMA2);
    let messages =
        [Message::new("user", "Hi"), Message::new("assistant", "top_up"), Message::new("user", "Where is my card?")];
    let answer = Message::new("assistant", "card_arrival");
    let all = encode_example(&tokenizer, &messages, &answer, TrainOn::AllAssistant, 256).unwrap();
    let text = "<s>[INST] Hi [/INST] top_up </s><s>[INST] Where is my card? [/INST] card_arrival";
    assert_eq!(all.ids[..all.len() - 1], ids_of("llama", text));
    // The space that the template puts before the end of a turn is none that an answer has.
    assert_eq!(
        marked(&tokenizer, &all),
        "<s> [INST] Hi [/INST]⟦ top_up⟧ ⟦</s>⟧<s> [INST] Where is my card? [/INST]⟦ card_arrival</s>⟧"
    );
    let last = encode_example(&tokenizer, &messages, &answer, TrainOn::Last, 256).unwrap();
    assert_eq!(last.ids, all.ids);
    // A message that ends in a space of its own keeps it, and the template's is left out.
    let mut spaced = messages.clone();
    spaced[1].content = "top_up ".into();
    let all = encode_example(&tokenizer, &spaced, &answer, TrainOn::AllAssistant, 256).unwrap();
    assert!(marked(&tokenizer, &all).contains("⟦ top_up ⟧ ⟦</s>⟧"), "{}", marked(&tokenizer, &all));
    // Where the template puts none, nothing is cut out of the turn.
    let plain = open("llama", ZEPHYR);
    let all = encode_example(&plain, &messages, &answer, TrainOn::AllAssistant, 256).unwrap();
    assert!(marked(&plain, &all).contains("⟦top_up</s>⟧"), "{}", marked(&plain, &all));
}

/// The row's text with what carries loss between brackets.
fn marked(tokenizer: &ChatTokenizer, row: &EncodedExample) -> String {
    let mut text = String::new();
    for part in row.mask.chunk_by(|a, b| a == b).scan(0, |at, part| {
        *at += part.len();
        Some((*at - part.len(), part.len(), part[0]))
    }) {
        let (at, len, loss) = part;
        let piece = tokenizer.decode(&row.ids[at..at + len]);
        text.push_str(&if loss { format!("⟦{piece}⟧") } else { piece });
    }
    text
}

#[test]
fn a_prompt_that_ends_otherwise_than_all_others_is_refused() {
    // The answer follows a token where the user was polite, text elsewhere.
    let template = "{% for m in messages %}{% if m.role == 'assistant' %}{{ 'A:' }}{% endif %}{{ m.content + '</s>' }}{% endfor %}\
                    {% if add_generation_prompt and 'please' not in messages[0].content %}{{ 'A:' }}{% endif %}";
    let tokenizer = open("llama", template);
    let ask = |text: &str| encode_prompt(&tokenizer, &[Message::new("user", text)]);
    assert!(ask("card").is_ok());
    let error = ask("card, please").unwrap_err();
    assert!(matches!(error, PromptError::OpensOtherwise { .. }), "{error}");
}

#[test]
fn text_that_gemma_has_tokens_for_is_no_structure() {
    let tokenizer = open("gemma", GEMMA);
    let ids = encode_completion(&tokenizer, "<h1>a\n\n  b</h1>").unwrap();
    assert_eq!(tokenizer.decode(&ids), "<h1>a\n\n  b</h1><end_of_turn>");
    let error = encode_completion(&tokenizer, "a<end_of_turn>").unwrap_err();
    assert!(matches!(error, PromptError::SpecialInAnswer(..)), "{error}");
}

#[test]
fn an_embedding_with_more_rows_gets_tokens_for_them() {
    let vocab: Vocab = open("llama", "").vocab().clone().padded_to(1000);
    let Algorithm::SentencePiece { scores, .. } = &vocab.algorithm else { panic!("{:?}", vocab.algorithm) };
    assert_eq!((vocab.tokens.len(), vocab.kinds.len(), scores.len()), (1000, 1000, 1000));
    check(&ChatTokenizer::from_vocab(Path::new("test"), vocab, "").unwrap(), "llama");
}
