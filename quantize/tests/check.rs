//! What `check` says of files that are broken each in one way; a file as this crate writes it has nothing to be said of.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

#[path = "../../tests/fixtures/tiny_base.rs"]
mod tiny_base;

use limbeck_artifact::event::Silent;
use limbeck_model::gguf::{Array, GgmlType, GgufFile, GgufWriter, TensorInfo, Value};
use limbeck_quantize::check::{Finding, Level, check};
use std::path::Path;

type Keys = Vec<(String, Value)>;
type Tensors = Vec<(TensorInfo, Vec<u8>)>;

/// The tiny base, changed, and what is found in it.
fn found(edit: impl Fn(&mut Keys, &mut Tensors)) -> Vec<Finding> {
    let dir = tempfile::tempdir().unwrap();
    let (base, broken) = (dir.path().join("base.gguf"), dir.path().join("broken.gguf"));
    tiny_base::write(&base, 1, GgmlType::Q8_0, 1);
    let file = GgufFile::open(&base).unwrap();
    let mut keys = file.metadata().to_vec();
    let mut tensors: Tensors = file.tensors().iter().map(|t| (t.clone(), file.bytes(t).unwrap())).collect();
    edit(&mut keys, &mut tensors);
    let mut writer = GgufWriter::new();
    keys.into_iter().for_each(|(key, value)| {
        writer.set(key, value);
    });
    for (info, bytes) in tensors {
        writer.add_bytes(info.name, info.dims, info.ty, bytes);
    }
    writer.write(&broken).unwrap();
    check(&broken, true, &Silent)
}

fn one(edit: impl Fn(&mut Keys, &mut Tensors), level: Level, says: &str) {
    let found = found(edit);
    let there = found.iter().any(|finding| finding.level == level && finding.what.contains(says));
    assert!(there, "'{says}' is not among {found:#?}");
    assert!(found.iter().all(|finding| !finding.cure.is_empty()));
}

fn put(keys: &mut Keys, key: &str, value: Value) {
    keys.retain(|(k, _)| k != key);
    keys.push((key.to_owned(), value));
}

fn drop_key(keys: &mut Keys, key: &str) {
    let before = keys.len();
    keys.retain(|(k, _)| k != key);
    assert_eq!(keys.len() + 1, before, "{key} was not there");
}

#[test]
fn a_sound_file_has_nothing_to_be_said_of() {
    assert_eq!(found(|_, _| {}), []);
}

#[test]
fn what_llama_cpp_refuses_is_refused() {
    for key in [
        "general.architecture",
        "llama.context_length",
        "llama.block_count",
        "tokenizer.ggml.model",
        "tokenizer.ggml.merges",
    ] {
        one(|keys, _| drop_key(keys, key), Level::Refused, &format!("there is no {key}"));
    }
    one(|keys, _| put(keys, "llama.block_count", Value::U32(513)), Level::Refused, "llama.cpp has room for 512");
    one(|keys, _| put(keys, "llama.block_count", Value::I32(1)), Level::Refused, "not an unsigned 32-bit number");
    one(|keys, _| put(keys, "tokenizer.ggml.model", "unigram".into()), Level::Refused, "'unigram', which llama.cpp");
    one(|keys, _| put(keys, "tokenizer.ggml.pre", "smollm9".into()), Level::Refused, "'smollm9', which llama.cpp");
    let short = || Value::Array(Array::I32(vec![1; 9]));
    one(|keys, _| put(keys, "tokenizer.ggml.token_type", short()), Level::Refused, "reads past its end");
    one(|keys, _| put(keys, "tokenizer.ggml.tokens", short()), Level::Refused, "no array of strings");
    one(|_, tensors| drop(tensors.remove(3)), Level::Refused, "tensor 'blk.0.attn_k.weight' is missing");
    one(|_, tensors| tensors[2].0.name = "blk.0.attn_x.weight".into(), Level::Refused, "no place in a llama model");
    one(|keys, _| put(keys, "llama.block_count", Value::U32(2)), Level::Refused, "'blk.1.attn_q.weight' is missing");
    let nan = |_: &mut Keys, tensors: &mut Tensors| tensors[2].1[..2].copy_from_slice(&0x7e00u16.to_le_bytes());
    one(nan, Level::Refused, "not a finite number");
    let narrow = |_: &mut Keys, tensors: &mut Tensors| {
        let (info, bytes) = &mut tensors[2];
        info.dims = vec![64, 32];
        bytes.truncate(bytes.len() / 2);
    };
    one(narrow, Level::Refused, "is [64, 32], the metadata promise [64, 64]");
}

#[test]
fn what_it_takes_in_silence_is_a_warning() {
    one(|keys, _| drop_key(keys, "tokenizer.ggml.pre"), Level::Warning, "there is no tokenizer.ggml.pre");
    one(|keys, _| drop_key(keys, "tokenizer.chat_template"), Level::Warning, "falls back to ChatML");
    one(
        |keys, _| put(keys, "tokenizer.ggml.eos_token_id", Value::U32(999)),
        Level::Warning,
        "llama.cpp goes on without it",
    );
    one(|keys, _| put(keys, "general.file_type", Value::U32(15)), Level::Warning, "says Q4_K_M, and no matrix is Q4_K");
    let foreign = |_: &mut Keys, tensors: &mut Tensors| {
        let (info, bytes) = &mut tensors[0];
        (info.ty, info.dims[0]) = (GgmlType::MXFP4, 32);
        *bytes = vec![0; (info.n_elements() / 32 * 17) as usize];
    };
    one(foreign, Level::Warning, "values of MXFP4 can't be decoded");
}

#[test]
fn a_file_that_is_none_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    let refused = |bytes: &[u8], says: &str| {
        std::fs::write(&path, bytes).unwrap();
        let found = check(Path::new(&path), true, &Silent);
        assert!(found.len() == 1 && found[0].level == Level::Refused && found[0].what.contains(says), "{found:?}");
    };
    refused(b"", "the header ends at 0");
    refused(b"GGML\0\0\0\0", "does not begin with 'GGUF'");
    refused(&[b"GGUF".as_slice(), &3u32.to_le_bytes(), &u64::MAX.to_le_bytes(), &[0; 8]].concat(), "tensors, but");
}
