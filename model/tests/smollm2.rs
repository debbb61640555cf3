//! SmolLM2-135M-Instruct against PyTorch: `LIMBECK_SMOLLM2=FILE.gguf ./test -p limbeck -p limbeck-model --test smollm2`. The
//! golden values are transformers' on the f32-dequantized file; greedy text would be no golden, near ties flip.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may panic, and says when it is skipped")]

use limbeck_model::decoder::Decoder;
use limbeck_model::device::{DeviceName, ops};
use limbeck_model::tokenizer::ChatTokenizer;
use limbeck_model::weights::Weights;
use std::path::PathBuf;

#[test]
fn log_probabilities_equal_pytorchs() {
    let Some(path) = std::env::var_os("LIMBECK_SMOLLM2").map(PathBuf::from) else {
        eprintln!("skipped: LIMBECK_SMOLLM2 does not name the model's GGUF file");
        return;
    };
    let weights = Weights::open(&path).unwrap();
    let tokenizer = ChatTokenizer::open(&path).unwrap();
    let decoder = Decoder::from_weights(&weights, ops(DeviceName::Cpu).unwrap(), false).unwrap();
    let prompt = tokenizer.encode("The capital of France is").unwrap();
    let last = decoder.log_probs(&prompt, None).unwrap().pop().unwrap();
    for (word, want) in [(" Paris", -0.258), (" the", -2.741), (" London", -4.384), (" Le", -4.620), (" New", -4.678)] {
        let ids = tokenizer.encode(word).unwrap();
        assert_eq!(ids.len(), 1, "{word:?} is one token");
        let got = last[ids[0] as usize];
        assert!((got - want).abs() < 1e-3, "{word:?}: {got} against {want}");
    }
}
