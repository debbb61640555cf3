//! Token ids equal llama.cpp's on 1,100 texts. The goldens come from tests/conformance/tokenizer.py; the test on
//! SmolLM2 needs the model: `LIMBECK_SMOLLM2=SmolLM2-135M-Instruct.Q4_1.gguf cargo test -p limbeck-model`.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

use limbeck_artifact::dataset::Message;
use limbeck_model::gguf::GgufWriter;
use limbeck_model::tokenizer::ChatTokenizer;
use std::path::{Path, PathBuf};

fn texts() -> Vec<String> {
    serde_json::from_str(include_str!("golden/tokenizer_texts.json")).unwrap()
}

fn check(tokenizer: &ChatTokenizer, golden: &str) {
    let golden: Vec<Vec<u32>> = serde_json::from_str(golden).unwrap();
    let texts = texts();
    assert_eq!(golden.len(), texts.len());
    for (text, expected) in texts.iter().zip(&golden) {
        assert_eq!(&tokenizer.encode(text).unwrap(), expected, "{text:?}");
    }
}

fn smollm2() -> Option<PathBuf> {
    let path = std::env::var_os("LIMBECK_SMOLLM2").map(PathBuf::from);
    if path.is_none() {
        eprintln!("SKIPPED: LIMBECK_SMOLLM2 does not name SmolLM2-135M-Instruct.Q4_1.gguf");
    }
    path
}

#[test]
fn smollm2_tokenizes_as_llama_cpp_does_from_either_format() {
    let Some(path) = smollm2() else { return };
    let from_gguf = ChatTokenizer::open(&path).unwrap();
    check(&from_gguf, include_str!("golden/tokenizer_smollm2.json"));

    let dir = tempfile::tempdir().unwrap();
    from_gguf.save(dir.path()).unwrap();
    let from_folder = ChatTokenizer::open(dir.path()).unwrap();
    check(&from_folder, include_str!("golden/tokenizer_smollm2.json"));
    assert_eq!(from_folder.gguf_metadata(), from_gguf.gguf_metadata(), "nothing is lost between the formats");
}

/// The quickstart's base is carved from SmolLM2: fewer merges, so other ids, with a golden of its own.
#[test]
fn the_quickstarts_base_tokenizes_as_llama_cpp_does() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (base, golden) =
        (root.join("../recipes/quickstart/base.gguf"), root.join("tests/golden/tokenizer_quickstart.json"));
    let Ok(golden) = std::fs::read_to_string(golden) else {
        return eprintln!("SKIPPED: there is no golden of the quickstart's base");
    };
    check(&ChatTokenizer::open(&base).unwrap(), &golden);
}

#[test]
fn smollm2_knows_its_special_tokens_and_its_template() {
    let Some(path) = smollm2() else { return };
    let tokenizer = ChatTokenizer::open(&path).unwrap();
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.end_of_turn_id()), (Some(1), Some(2), Some(2)));
    let user = Message::new("user", "Hi");
    let expected = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging \
                    Face<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(tokenizer.render(&[user], true).unwrap(), expected);
    for text in texts().iter().filter(|t| !t.chars().any(|c| c.is_control() || c as u32 > 0xffff)) {
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()), *text);
    }
}

#[test]
fn metadata_written_to_a_new_file_makes_the_same_tokenizer() {
    let Some(path) = smollm2() else { return };
    let tokenizer = ChatTokenizer::open(&path).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let copy: &Path = &dir.path().join("copy.gguf");
    let mut writer = GgufWriter::new();
    tokenizer.gguf_metadata().into_iter().for_each(|(key, value)| {
        writer.set(key, value);
    });
    writer.write(copy).unwrap();
    check(&ChatTokenizer::open(copy).unwrap(), include_str!("golden/tokenizer_smollm2.json"));
}
