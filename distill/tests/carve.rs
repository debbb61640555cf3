//! A carved base is a base: its tokenizer works, its blocks are the source's own, and it says where it comes from.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

#[path = "../../tests/fixtures/tiny_base.rs"]
mod tiny_base;

use std::path::{Path, PathBuf};

use limbeck_artifact::digest::sha256_file;
use limbeck_artifact::event::Silent;
use limbeck_distill::{CarvePlan, carve};
use limbeck_model::gguf::{Array, GgmlType, GgufFile, Value};
use limbeck_model::tokenizer::ChatTokenizer;
use limbeck_model::weights::Weights;

fn plan(source: &Path, layers: &[usize], merges: usize, out: PathBuf) -> CarvePlan {
    CarvePlan {
        source: source.into(),
        layers: layers.to_vec(),
        neurons: None,
        merges: Some(merges),
        out,
        name: "Small Base".into(),
        license: None,
    }
}

#[test]
fn layers_and_tokens_are_the_source_s_own_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source.gguf");
    tiny_base::write(&source, 4, GgmlType::Q8_0, 1);
    let report = carve(&plan(&source, &[0, 3], 5, dir.path().join("small.gguf")), &Silent).unwrap();

    let (from, to) = (GgufFile::open(&source).unwrap(), GgufFile::open(&report.path).unwrap());
    assert_eq!(to.tensors().len(), 2 + 2 * 9);
    for (new, old) in [(0, 0), (1, 3)] {
        for part in
            ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"]
        {
            let bytes = |file: &GgufFile, layer: usize| {
                file.bytes(file.tensor(&format!("blk.{layer}.{part}.weight")).unwrap()).unwrap()
            };
            assert_eq!(bytes(&to, new), bytes(&from, old), "{part}");
        }
    }
    let embedding = |file: &GgufFile| file.bytes(file.tensor("token_embd.weight").unwrap()).unwrap();
    let tokens = |file: &GgufFile| file.get("tokenizer.ggml.tokens").unwrap().as_strings().unwrap().to_vec();
    let (old_rows, new_rows, old_tokens) = (embedding(&from), embedding(&to), tokens(&from));
    let row = 2 * 34;
    for (id, token) in tokens(&to).iter().enumerate() {
        let old = old_tokens.iter().position(|t| t == token).unwrap();
        assert_eq!(new_rows[id * row..][..row], old_rows[old * row..][..row], "{token}");
    }

    assert_eq!(report.tokens, 3 + 256 + 5);
    assert_eq!((report.layers, report.source_layers, report.source_tokens), (2, 4, 271));
    assert_eq!(report.source_sha256, sha256_file(&source).unwrap());
    assert_eq!(report.sha256, sha256_file(&report.path).unwrap());
    assert_eq!(to.get("llama.block_count"), Some(&Value::U32(2)));
    assert_eq!(to.get("llama.vocab_size"), Some(&Value::U32(264)));
    assert_eq!(to.get("general.name"), Some(&"Small Base".into()));
    assert_eq!(to.get("general.license"), Some(&"apache-2.0".into()));
    assert_eq!(to.get("general.base_model.0.name"), Some(&"Tiny Base".into()));
    assert_eq!(to.get("general.organization"), None);
    assert_eq!(to.get("limbeck.carve.source_sha256"), Some(&report.source_sha256.as_str().into()));
    assert_eq!(to.get("limbeck.carve.layers"), Some(&Value::Array(Array::U32(vec![0, 3]))));
    assert_eq!(Weights::open(&report.path).unwrap().config().num_hidden_layers, 2);
}

#[test]
fn the_carved_tokenizer_reads_and_writes_any_text() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source.gguf");
    tiny_base::write(&source, 1, GgmlType::Q8_0, 1);
    let whole = ChatTokenizer::open(&source).unwrap();
    let report = carve(&plan(&source, &[0], 5, dir.path().join("small.gguf")), &Silent).unwrap();
    let cut = ChatTokenizer::open(&report.path).unwrap();
    for text in ["hello and the thing", "Grüße, 東京 🦀\t\r\n  1234", "<|im_start|>user\nhi<|im_end|>\n", " ", ""]
    {
        let ids = cut.encode(text).unwrap();
        assert_eq!(cut.decode(&ids), whole.decode(&whole.encode(text).unwrap()), "{text:?}");
    }
    let pieces = |t: &ChatTokenizer, text: &str| -> Vec<String> {
        t.encode(text).unwrap().iter().map(|&id| t.decode(&[id])).collect()
    };
    assert_eq!(pieces(&whole, " the hello"), [" the", " ", "hello"]);
    // "hell" and "hello" are later merges.
    assert_eq!(pieces(&cut, " the hello"), [" the", " ", "he", "l", "l", "o"]);
    assert_eq!(cut.encode("<|im_end|>").unwrap(), [2]);
    assert_eq!(
        (cut.eos_id(), cut.bos_id(), cut.end_of_turn_id()),
        (whole.eos_id(), whole.bos_id(), whole.end_of_turn_id())
    );
    assert_eq!(cut.chat_template(), whole.chat_template());
}

#[test]
fn the_same_plan_gives_the_same_bytes_and_carving_goes_on_from_a_carved_base() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source.gguf");
    tiny_base::write(&source, 4, GgmlType::Q4_0, 1);
    let first = carve(&plan(&source, &[0, 1, 3], 9, dir.path().join("a.gguf")), &Silent).unwrap();
    let again = carve(&plan(&source, &[0, 1, 3], 9, dir.path().join("b.gguf")), &Silent).unwrap();
    assert_eq!(first.sha256, again.sha256);
    let twice = carve(&plan(&first.path, &[0, 2], 4, dir.path().join("c.gguf")), &Silent).unwrap();
    let once = carve(&plan(&source, &[0, 3], 4, dir.path().join("d.gguf")), &Silent).unwrap();
    let (twice, once) = (GgufFile::open(&twice.path).unwrap(), GgufFile::open(&once.path).unwrap());
    for info in once.tensors() {
        assert_eq!(once.bytes(info).unwrap(), twice.bytes(twice.tensor(&info.name).unwrap()).unwrap(), "{}", info.name);
    }
    assert_eq!(once.get("tokenizer.ggml.merges"), twice.get("tokenizer.ggml.merges"));
}

#[test]
fn what_is_not_there_can_t_be_kept() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source.gguf");
    tiny_base::write(&source, 3, GgmlType::Q8_0, 1);
    let out = dir.path().join("small.gguf");
    let refused = |layers: &[usize], merges: usize, says: &str| {
        let error = carve(&plan(&source, layers, merges, out.clone()), &Silent).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert!(!out.exists());
    };
    refused(&[0, 3], 5, "cannot keep layer 3 of 3: name layers 0 to 2");
    refused(&[1, 0], 5, "cannot keep layer 0 of 3");
    refused(&[1, 1], 5, "cannot keep layer 1 of 3");
    refused(&[], 5, "no layer was named");
    refused(&[0], 13, "cannot keep 13 merges of 12");
    refused(&[0], 0, "choose 1 to 12");
}

/// On the real model, where LIMBECK_SMOLLM2 names its GGUF file.
#[test]
fn smollm2_is_carved() {
    let Some(source) = std::env::var_os("LIMBECK_SMOLLM2").map(PathBuf::from) else { return };
    let dir = tempfile::tempdir().unwrap();
    let report = carve(&plan(&source, &[0, 1, 29], 8000, dir.path().join("small.gguf")), &Silent).unwrap();
    assert_eq!(report.tokens, 17 + 235 + 8000);
    let (whole, cut) = (ChatTokenizer::open(&source).unwrap(), ChatTokenizer::open(&report.path).unwrap());
    let text = "My card payment of £1,234.56 hasn't arrived —  can you check?\n\nThanks!";
    let ids = cut.encode(text).unwrap();
    assert_eq!(cut.decode(&ids), text);
    assert!(ids.len() >= whole.encode(text).unwrap().len() && ids.len() < text.len());
}
