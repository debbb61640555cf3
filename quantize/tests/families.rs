//! The families through GGUF and back: what was written from a Hugging Face folder answers as the folder does. That
//! llama.cpp answers so too is tests/conformance/families.sh.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

#[path = "../examples/export-families.rs"]
mod export_families;

use limbeck_model::decoder::Decoder;
use limbeck_model::device::{DeviceName, ops};
use limbeck_model::weights::Weights;
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden/families").join(name)
}

fn answers(path: &Path, row: &[u32]) -> Vec<f32> {
    let decoder = Decoder::from_weights(&Weights::open(path).unwrap(), ops(DeviceName::Cpu).unwrap(), false).unwrap();
    decoder.log_probs(row, None).unwrap().concat()
}

#[test]
fn what_was_written_answers_as_what_was_read() {
    let out = tempfile::tempdir().unwrap();
    for name in ["llama", "llama3", "llama-linear", "llama-dynamic", "smollm2", "smollm3", "mistral", "qwen2", "qwen3"]
    {
        let file = export_families::export(&golden(name), out.path()).unwrap();
        let config = Weights::open(&file).unwrap().config().clone();
        let row: Vec<u32> = (0..config.max_position_embeddings.min(40) as u32).map(|i| i * 7 % 61).collect();
        let (from, to) = (answers(&golden(name), &row), answers(&file, &row));
        let gap = from.iter().zip(&to).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        // Theta, eps and the factors of the frequencies are kept as float32; all else is the same numbers.
        assert!(gap < 2e-5, "{name}: {gap}");
    }
}

#[test]
fn a_window_becomes_the_context() {
    let out = tempfile::tempdir().unwrap();
    for (name, context) in [("mistral", 5), ("qwen2", 7), ("llama", 64)] {
        let file = export_families::export(&golden(name), out.path()).unwrap();
        assert_eq!(Weights::open(&file).unwrap().config().max_position_embeddings, context, "{name}");
    }
}

#[test]
fn families_that_can_not_be_written_say_so_and_leave_no_file() {
    let out = tempfile::tempdir().unwrap();
    for name in ["gemma2", "gemma3", "phi3"] {
        let error = export_families::export(&golden(name), out.path()).unwrap_err().to_string();
        assert!(error.contains("can't be written as a GGUF file") && error.contains("hint: "), "{error}");
        assert!(!out.path().join(format!("{name}.gguf")).exists());
    }
}
