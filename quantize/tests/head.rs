//! A classification head in the served file: the tokens of the labels have the classes' logits, whatever the base's own head is.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

#[path = "../../tests/fixtures/tiny_base.rs"]
mod tiny_base;

use limbeck_artifact::dataset::Message;
use limbeck_artifact::event::Silent;
use limbeck_model::adapter::{Adapter, Head, LoraPair};
use limbeck_model::decoder::Decoder;
use limbeck_model::device::{DeviceName, ops};
use limbeck_model::gguf::{GgmlType, GgufFile};
use limbeck_model::score::LabelScorer;
use limbeck_model::tokenizer::ChatTokenizer;
use limbeck_model::weights::Weights;
use limbeck_quantize::{Format, QuantizePlan, quantize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const LABELS: [&str; 3] = ["lost card", "top_up", "größe"];

fn labels() -> Vec<String> {
    LABELS.map(String::from).to_vec()
}

fn made_up(n: usize, seed: u64) -> Vec<f32> {
    let mut next = tiny_base::splitmix64(seed);
    (0..n).map(|_| (next() >> 40) as f32 / (1 << 24) as f32 - 0.5).collect()
}

/// An adapter on one module and a head, on disk.
fn adapter(folder: &Path, base: &Path, labels: Vec<String>) -> Adapter {
    let config = Weights::open(base).unwrap().config().clone();
    let (n_out, n_in) = config.linear_shape("mlp.down_proj");
    let pair = LoraPair { a: made_up(2 * n_in, 1), b: made_up(2 * n_out, 2), magnitude: None, r: 2, n_in, n_out };
    let lora = limbeck_model::adapter::AdapterConfig::lora("tiny", 2, 3.0, &["down_proj".into()], false);
    let head = Head { weight: made_up(3 * config.hidden_size, 3), labels, n_in: config.hidden_size };
    let pairs = BTreeMap::from([("model.layers.1.mlp.down_proj".to_owned(), pair)]);
    let adapter = Adapter { config: lora.with_head(), pairs, head: Some(head) };
    adapter.save(folder).unwrap();
    adapter
}

fn plan(base: &Path, adapter: &Path, format: Format, out: PathBuf) -> QuantizePlan {
    QuantizePlan {
        base: base.into(),
        adapter: Some(adapter.into()),
        format,
        types: BTreeMap::new(),
        imatrix: None,
        out,
        name: "Router".into(),
        version: None,
        license: None,
        provenance: BTreeMap::new(),
    }
}

fn decoder(path: &Path) -> Arc<Decoder> {
    Arc::new(Decoder::from_weights(&Weights::open(path).unwrap(), ops(DeviceName::Cpu).unwrap(), false).unwrap())
}

#[test]
fn the_file_answers_by_tokens_as_the_head_does() {
    for tied in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base.gguf");
        match tied {
            true => tiny_base::write(&base, 2, GgmlType::F32, 1),
            false => tiny_base::write_untied(&base, 2, GgmlType::F32, 1),
        };
        assert_eq!(Weights::open(&base).unwrap().config().tie_word_embeddings, tied);
        let folder = dir.path().join("adapter");
        let adapter = adapter(&folder, &base, labels());
        let tokenizer = Arc::new(ChatTokenizer::open(&base).unwrap());
        let head = adapter.head.as_ref().unwrap().freeze(ops(DeviceName::Cpu).unwrap().as_ref(), &labels()).unwrap();
        let by_head = LabelScorer::by_head(decoder(&base), tokenizer.clone(), &labels(), head).unwrap();
        let by_head = by_head.with_lora(adapter.constants(ops(DeviceName::Cpu).unwrap().as_ref()));
        for (format, tolerance) in [(Format::F32, 1e-5), (Format::Q8_0, 0.02)] {
            let report = quantize(&plan(&base, &folder, format, dir.path().join("out.gguf")), &Silent).unwrap();
            let own = ChatTokenizer::open(&report.path).unwrap();
            let n = tokenizer.vocab_size();
            assert_eq!((own.vocab_size(), Weights::open(&report.path).unwrap().config().vocab_size), (n + 3, n + 3));
            for (i, label) in LABELS.iter().enumerate() {
                let id = own.label_id(label).unwrap();
                assert_eq!(id as usize, n + i);
                assert_eq!(own.decode(&[id]), format!("<|label:{label}|>"));
                // No text becomes the token, also not its own spelling; an answer of the model does.
                assert!(!own.is_special(id));
                assert!(!own.encode(&format!("a <|label:{label}|> b<|label:{label}|>")).unwrap().contains(&id));
            }
            let file = LabelScorer::new(decoder(&report.path), Arc::new(own), &labels()).unwrap();
            for text in ["hello", "and the thing", "the other thing and so on and on"] {
                let asked = [Message::new("system", "Say which."), Message::new("user", text)];
                let (want, got) = (by_head.score(&asked).unwrap(), file.score(&asked).unwrap());
                for (want, got) in want.iter().zip(&got) {
                    assert!((want - got).abs() < tolerance, "{text}: {got} against {want} in {format:?}, tied {tied}");
                }
            }
            // Another order of the labels is no other answer.
            let turned: Vec<String> = labels().into_iter().rev().collect();
            let tokenizer = Arc::new(ChatTokenizer::open(&report.path).unwrap());
            let other = LabelScorer::new(decoder(&report.path), tokenizer, &turned).unwrap();
            let asked = [Message::new("user", "hello")];
            let mut posterior = other.score(&asked).unwrap();
            posterior.reverse();
            assert_eq!(posterior, file.score(&asked).unwrap());
        }
        if !tied {
            let file = GgufFile::open(&dir.path().join("out.gguf")).unwrap();
            let table = file.dequantize(file.tensor("token_embd.weight").unwrap()).unwrap();
            let width = table.len() / (tokenizer.vocab_size() + 3);
            assert!(table[tokenizer.vocab_size() * width..].iter().all(|x| *x == 0.0), "no prompt has these tokens");
        }
    }
}

#[test]
fn a_head_that_can_not_be_folded_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.gguf");
    tiny_base::write(&base, 2, GgmlType::F32, 1);
    let refused = |labels: Vec<String>, base: &Path| {
        let folder = dir.path().join("adapter");
        let made = adapter(&folder, base, labels);
        if made.head.as_ref().is_some_and(|head| head.labels.is_empty()) {
            std::fs::remove_file(folder.join("labels.json")).unwrap();
        }
        quantize(&plan(base, &folder, Format::F32, dir.path().join("out.gguf")), &Silent).unwrap_err().to_string()
    };
    let error = refused(Vec::new(), &base);
    assert!(error.contains("no labels.json that names its 3 classes"), "{error}");
    let error = refused(vec!["a".repeat(201), "b".into(), "c".into()], &base);
    assert!(error.contains("longer than 200 bytes"), "{error}");
    // A file that has one already is no base for another of the same labels.
    let folder = dir.path().join("adapter");
    adapter(&folder, &base, labels());
    let folded = quantize(&plan(&base, &folder, Format::F32, dir.path().join("first.gguf")), &Silent).unwrap().path;
    let error = refused(labels(), &folded);
    assert!(error.contains("has a token <|label:lostĠcard|> already"), "{error}");
    assert!(!dir.path().join("out.gguf").exists());
}
