//! A classification head against transformers and PEFT on tiny random models: logits, loss, gradients and one step; goldens and
//! their script: tests/reference/classification_head.py. Tolerances are those of families.rs, and for their reasons.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use burn::tensor::{Tensor, TensorData};
use limbeck_model::adapter::{Adapter, AdapterError};
use limbeck_model::decoder::{Decoder, LoraSet};
use limbeck_model::device::{DeviceName, ops};
use limbeck_model::layout::Packed;
use limbeck_model::ops::{Frozen, Lora, Target};
use limbeck_model::weights::Weights;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Deserialize)]
struct Golden {
    rows: Vec<Vec<u32>>,
    classes: Vec<u32>,
    weights: Vec<f32>,
    learning_rate: f32,
    adapted: Vec<Vec<f32>>,
    loss: f32,
    grads: BTreeMap<String, Vec<f32>>,
    stepped: Vec<Vec<f32>>,
}

fn goldens(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(kind)
}

fn read<const D: usize>(t: Tensor<D>) -> Vec<f32> {
    t.into_data().convert::<f32>().try_into_vec::<f32>().unwrap()
}

#[track_caller]
fn within(tolerance: f32, what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let size = want.iter().fold(1e-6f32, |m, x| m.max(x.abs()));
    let gap = got.iter().zip(want).fold(0f32, |m, (g, w)| m.max((g - w).abs()));
    assert!(gap <= tolerance * size, "{what}: {gap} apart, the largest is {size}");
}

/// The classes' logits of each row, the loss, and the gradients of every part, with the rows' first `shared` tokens packed
/// once.
fn answer(
    decoder: &Decoder,
    golden: &Golden,
    adapter: &Adapter,
    shared: usize,
) -> (Vec<f32>, f32, BTreeMap<String, Vec<f32>>) {
    let ops = decoder.ops();
    let mut batch = Packed::with_prefix(&golden.rows[0][..shared], 0);
    let last: Vec<usize> = golden.rows.iter().map(|row| batch.push_chain(&row[shared..], shared).end - 1).collect();
    let tracked = |l: Lora| Lora { a: l.a.require_grad(), b: l.b.require_grad(), ..l };
    let set: LoraSet = adapter.constants(ops.as_ref()).into_iter().map(|(path, l)| (path, tracked(l))).collect();
    let head = adapter.head.as_ref().unwrap();
    let data = TensorData::new(head.weight.clone(), [head.classes(), head.n_in]);
    let score: Tensor<2> = Tensor::from_data(data, &ops.device()).require_grad();
    let hidden = decoder.forward(&Arc::new(batch), Some(&set), None, None).unwrap();

    let frozen = head.freeze(ops.as_ref(), &["a", "b", "c"].map(String::from)).unwrap();
    let queries: Vec<(usize, Vec<u32>)> = last.iter().map(|row| (*row, vec![0, 1, 2])).collect();
    let logits = ops.logits_of(&hidden, &frozen, &queries).concat();
    let target = |((row, token), weight): ((&usize, &u32), &f32)| Target { row: *row, token: *token, weight: *weight };
    let targets: Vec<Target> = last.iter().zip(&golden.classes).zip(&golden.weights).map(target).collect();
    let total = golden.weights.iter().sum();
    let loss = ops.linear_cross_entropy(hidden, &Frozen::trained(score.clone(), None), &targets, total);
    let grads = loss.backward();
    let parts = |(path, l): (&String, &Lora)| {
        [("lora_A", &l.a), ("lora_B", &l.b)].map(|(part, t)| (format!("{path}.{part}"), read(t.grad(&grads).unwrap())))
    };
    let mut of: BTreeMap<String, Vec<f32>> = set.iter().flat_map(parts).collect();
    of.insert("score.weight".to_owned(), read(score.grad(&grads).unwrap()));
    (logits, read(loss)[0], of)
}

#[test]
fn a_head_of_peft_answers_and_learns_as_it_does_there() {
    for name in ["llama", "qwen2"] {
        let folder = goldens("classification").join(name);
        let golden: Golden = serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
        for device in [DeviceName::CpuReference, DeviceName::Cpu] {
            let weights = Weights::open(&goldens("families").join(name)).unwrap();
            let decoder = Decoder::from_weights(&weights, ops(device).unwrap(), true).unwrap();
            let adapter = Adapter::load(&folder.join("adapter")).unwrap();
            adapter.check(&decoder.config).unwrap();
            for shared in [0, 6] {
                let what = |of: &str| format!("{name} on {device}, {shared} tokens shared: {of}");
                let (logits, loss, grads) = answer(&decoder, &golden, &adapter, shared);
                within(2e-5, &what("logits"), &logits, &golden.adapted.concat());
                within(2e-5, &what("loss"), &[loss], &[golden.loss]);
                assert!(golden.grads.contains_key("score.weight") && golden.grads.len() > 10);
                for (part, want) in &golden.grads {
                    within(1e-4, &what(part), &grads[part], want);
                }
                let mut stepped = adapter.clone();
                let step = |values: &mut Vec<f32>, part: &str| {
                    values.iter_mut().zip(&grads[part]).for_each(|(v, g)| *v -= golden.learning_rate * g);
                };
                step(&mut stepped.head.as_mut().unwrap().weight, "score.weight");
                for (path, pair) in &mut stepped.pairs {
                    step(&mut pair.a, &format!("{path}.lora_A"));
                    step(&mut pair.b, &format!("{path}.lora_B"));
                }
                let (logits, ..) = answer(&decoder, &golden, &stepped, shared);
                within(2e-4, &what("logits after a step"), &logits, &golden.stepped.concat());
            }
        }
    }
}

#[test]
fn a_head_survives_the_disk_and_knows_its_labels() {
    let mut adapter = Adapter::load(&goldens("classification").join("llama/adapter")).unwrap();
    assert!(adapter.head.as_ref().unwrap().labels.is_empty(), "PEFT's file does not name them");
    let names = |names: [&str; 3]| names.map(String::from).to_vec();
    adapter.head.as_mut().unwrap().labels = names(["x", "y", "z"]);
    let folder = tempfile::tempdir().unwrap();
    adapter.save(folder.path()).unwrap();
    assert_eq!(Adapter::load(folder.path()).unwrap(), adapter);

    // Rows go with their labels, in whatever order a task has these.
    let ops = ops(DeviceName::Cpu).unwrap();
    let head = adapter.head.as_ref().unwrap();
    let row = |frozen: &Frozen, i: u32| read(ops.embed(frozen, &[i]));
    let (plain, turned) = (
        head.freeze(ops.as_ref(), &names(["x", "y", "z"])).unwrap(),
        head.freeze(ops.as_ref(), &names(["z", "x", "y"])).unwrap(),
    );
    assert_eq!([0, 1, 2].map(|i| row(&plain, i)), [1, 2, 0].map(|i| row(&turned, i)));
    for (labels, because) in [
        (vec!["x".to_owned()], "tells 3 labels apart, the task has 1"),
        (names(["x", "y", "w"]), "not trained for the label `w`"),
    ] {
        let error = head.freeze(ops.as_ref(), &labels).unwrap_err();
        assert!(matches!(error, AdapterError::Mismatch(_)) && error.to_string().contains(because), "{error}");
    }

    let file = |name: &str| folder.path().join(name);
    let config = std::fs::read_to_string(file("adapter_config.json")).unwrap();
    for (text, labels, because) in [
        (config.replace("\"score\"", "\"lm_head\""), "[\"x\",\"y\",\"z\"]", "'modules_to_save' names \"lm_head\""),
        (config.replace("SEQ_CLS", "CAUSAL_LM"), "[\"x\",\"y\",\"z\"]", "'modules_to_save' names \"classifier\""),
        (config.clone(), "[\"x\",\"y\",\"x\"]", "3 labels, of which 2 differ, for 3 classes"),
        (config.clone(), "[\"x\"]", "1 labels, of which 1 differ, for 3 classes"),
        (config.clone(), "{}", "labels.json is malformed"),
    ] {
        std::fs::write(file("adapter_config.json"), text).unwrap();
        std::fs::write(file("labels.json"), labels).unwrap();
        let error = Adapter::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains(because), "'{error}' does not say '{because}'");
    }
    std::fs::write(file("adapter_config.json"), config).unwrap();
    std::fs::write(file("labels.json"), "[\"x\",\"y\",\"z\"]").unwrap();
    adapter.head = None;
    let plain = tempfile::tempdir().unwrap();
    adapter.save(plain.path()).unwrap();
    let error = Adapter::load(plain.path()).unwrap_err().to_string();
    assert!(error.contains("task_type is SEQ_CLS, and there is no score.weight"), "{error}");
}
