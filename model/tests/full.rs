//! Weights that are trained: every op with the gradient of its weight on both op sets, and whole tiny models of several
//! families against transformers; goldens and their script: tests/reference/full.py. Tolerances are those of families.rs.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use burn::tensor::{Tensor, TensorData};
use common::values;
use limbeck_model::decoder::{Decoder, TensorSet};
use limbeck_model::device::{DeviceName, ops};
use limbeck_model::layout::Packed;
use limbeck_model::ops::flex::FlexOps;
use limbeck_model::ops::stock::StockOps;
use limbeck_model::ops::{Frozen, Ops, Target};
use limbeck_model::safetensor::SafetensorsFile;
use limbeck_model::weights::Weights;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

type Inputs = Vec<(Vec<f32>, [usize; 2])>;
type Case<'a> = dyn Fn(&dyn Ops, &[Tensor<2>]) -> Tensor<2> + 'a;

fn read<const D: usize>(t: Tensor<D>) -> Vec<f32> {
    t.into_data().convert::<f32>().try_into_vec::<f32>().unwrap()
}

#[track_caller]
fn within(tolerance: f32, what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let size = want.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
    let gap = got.iter().zip(want).fold(0f32, |m, (g, w)| m.max((g - w).abs()));
    assert!(gap <= tolerance * size, "{what}: {gap} apart, the largest is {size}");
}

/// Output and gradients at the inputs of the output's dot product with a fixed vector.
fn run(ops: &dyn Ops, inputs: &Inputs, f: &Case) -> (Vec<f32>, Vec<Vec<f32>>) {
    let leaf = |(data, shape): &(Vec<f32>, [usize; 2])| -> Tensor<2> {
        Tensor::from_data(TensorData::new(data.clone(), *shape), &ops.device()).require_grad()
    };
    let leaves: Vec<Tensor<2>> = inputs.iter().map(leaf).collect();
    let out = f(ops, &leaves);
    let [rows, cols] = out.dims();
    let probe: Tensor<2> =
        Tensor::from_data(TensorData::new(values(rows * cols, 99, 1.0), [rows, cols]), &ops.device());
    let grads = (out.clone() * probe).sum().backward();
    (read(out), leaves.iter().map(|l| read(l.grad(&grads).unwrap())).collect())
}

/// Kernels equal plain burn, and both central differences.
fn check(name: &str, inputs: Inputs, f: &Case) {
    let (flex, stock) = (FlexOps::default(), StockOps::new(burn::tensor::Device::flex()));
    let ((got, got_grads), (want, want_grads)) = (run(&flex, &inputs, f), run(&stock, &inputs, f));
    within(2e-5, &format!("{name}: output"), &got, &want);
    for (i, (got, want)) in got_grads.iter().zip(&want_grads).enumerate() {
        within(5e-5, &format!("{name}: gradient {i}"), got, want);
    }
    let probe = values(want.len(), 99, 1.0);
    for (i, (data, _)) in inputs.iter().enumerate() {
        for j in [0, data.len() / 2, data.len() - 1] {
            let at = |delta: f32| -> f64 {
                let mut moved = inputs.clone();
                moved[i].0[j] += delta;
                run(&flex, &moved, f).0.iter().zip(&probe).map(|(o, p)| f64::from(*o) * f64::from(*p)).sum()
            };
            let difference = (at(1e-2) - at(-1e-2)) / 2e-2;
            let size = got_grads[i].iter().fold(1e-2f32, |m, x| m.max(x.abs()));
            let gap = (f64::from(got_grads[i][j]) - difference).abs();
            assert!(gap < 2e-2 * f64::from(size), "{name}, input {i}[{j}]: {gap} of {size}");
        }
    }
}

fn matrix(rows: usize, cols: usize, seed: u64) -> (Vec<f32>, [usize; 2]) {
    (values(rows * cols, seed, 0.7), [rows, cols])
}

#[test]
fn linear() {
    for (n, n_in, n_out) in [(1, 8, 5), (9, 33, 17), (70, 5, 40)] {
        check("linear", vec![matrix(n, n_in, 1), matrix(n_out, n_in, 2)], &|ops, x| {
            ops.linear(x[0].clone(), &Frozen::trained(x[1].clone(), None), None)
        });
        let inputs = vec![matrix(n, n_in, 1), matrix(n_out, n_in, 2), matrix(1, n_out, 3)];
        check("linear with bias", inputs, &|ops, x| {
            ops.linear(x[0].clone(), &Frozen::trained(x[1].clone(), Some(x[2].clone())), None)
        });
    }
}

#[test]
fn rms_norm() {
    for (n, width) in [(1, 8), (5, 33), (70, 16)] {
        check("rms_norm", vec![matrix(n, width, 1), matrix(1, width, 2)], &|ops, x| {
            ops.rms_norm_trained(x[0].clone(), x[1].clone(), 1e-5)
        });
    }
}

#[test]
fn embedding() {
    // A token that comes several times, one that never comes.
    check("embedding", vec![matrix(6, 5, 1)], &|ops, x| {
        ops.embed(&Frozen::trained(x[0].clone(), None), &[3, 0, 3, 5, 3])
    });
}

#[test]
fn cross_entropy() {
    let (n, width, vocab) = (9, 12, 37);
    let few: Vec<Target> =
        [(2, 5, 1.0), (3, 36, 0.5), (8, 0, 2.0)].map(|(row, token, weight)| Target { row, token, weight }).to_vec();
    // More targets than one block, several at one row.
    let many: Vec<Target> =
        (0..300).map(|i| Target { row: i % n, token: (i * 7 % vocab) as u32, weight: 1.0 }).collect();
    for (targets, softcap) in [(few.clone(), None), (many, None), (few, Some(1.5))] {
        check("cross entropy", vec![matrix(n, width, 1), matrix(vocab, width, 2)], &|ops, x| {
            let head = Frozen::trained(x[1].clone(), None).with_softcap(softcap);
            ops.linear_cross_entropy(x[0].clone(), &head, &targets, targets.len() as f32).reshape([1, 1])
        });
    }
}

#[derive(Deserialize)]
struct Rows {
    rows: Vec<Vec<u32>>,
    at: Vec<(usize, usize)>,
    targets: Vec<(usize, usize, u32)>,
}

#[derive(Deserialize)]
struct Golden {
    loss: f32,
    learning_rate: f32,
    stepped: Vec<Vec<f32>>,
}

fn goldens(kind: &str, name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(kind).join(name)
}

fn json<T: serde::de::DeserializeOwned>(path: PathBuf) -> T {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The family's rows behind `shared` common tokens: the batch, and where a row's position lies.
fn pack(rows: &[Vec<u32>], shared: usize) -> (Arc<Packed>, impl Fn(usize, usize) -> usize + use<>) {
    let mut batch = Packed::with_prefix(&rows[0][..shared], 0);
    let starts: Vec<usize> = rows.iter().map(|row| batch.push_chain(&row[shared..], shared).start).collect();
    let place = move |row: usize, at: usize| if at < shared { at } else { starts[row] + at - shared };
    (Arc::new(batch), place)
}

fn trained(
    weights: &BTreeMap<String, (Vec<f32>, [usize; 2])>,
    config: &Weights,
    ops: &Arc<dyn Ops>,
) -> (Decoder, TensorSet) {
    let leaf = |(data, shape): &(Vec<f32>, [usize; 2])| -> Tensor<2> {
        Tensor::from_data(TensorData::new(data.clone(), *shape), &ops.device()).require_grad()
    };
    let set: TensorSet = weights.iter().map(|(name, weight)| (name.clone(), leaf(weight))).collect();
    (Decoder::trained(config.config(), ops.clone(), &set).unwrap(), set)
}

#[test]
fn the_gradient_of_every_weight_is_that_of_transformers() {
    for name in ["llama", "smollm2", "qwen2", "phi3", "qwen3", "gemma2", "gemma3"] {
        let known: Rows = json(goldens("families", name).join("golden.json"));
        let golden: Golden = json(goldens("full", name).join("golden.json"));
        let file = SafetensorsFile::open(&goldens("full", name).join("grads.safetensors")).unwrap();
        let opened = Weights::open(&goldens("families", name)).unwrap();
        assert!(opened.names().iter().eq(file.shapes().keys()), "{name}: as many gradients as weights");
        let weights: BTreeMap<String, (Vec<f32>, [usize; 2])> = opened
            .names()
            .into_iter()
            .map(|name| {
                let dense = opened.load(&name).unwrap();
                let shape =
                    if dense.shape.len() == 2 { [dense.shape[0], dense.shape[1]] } else { [1, dense.data.len()] };
                (name, (dense.data, shape))
            })
            .collect();
        for device in [DeviceName::CpuReference, DeviceName::Cpu] {
            let ops = ops(device).unwrap();
            for shared in [0, 5] {
                let what = |of: &str| format!("{name} on {device}, {shared} tokens shared: {of}");
                let (decoder, set) = trained(&weights, &opened, &ops);
                let (batch, place) = pack(&known.rows, shared);
                let target =
                    |&(row, at, token): &(usize, usize, u32)| Target { row: place(row, at), token, weight: 1.0 };
                let targets: Vec<Target> = known.targets.iter().map(target).collect();
                let hidden = decoder.forward(&batch, None, None, None).unwrap();
                let loss = ops.linear_cross_entropy(hidden, decoder.head(), &targets, targets.len() as f32);
                let grads = loss.backward();
                within(2e-5, &what("loss"), &read(loss), &[golden.loss]);
                let mut stepped = weights.clone();
                for (name, tensor) in &set {
                    let grad = read(tensor.grad(&grads).unwrap());
                    // Each of its own largest: a norm's gradient must not hide behind the embedding's.
                    within(1e-4, &what(name), &grad, &file.load(name).unwrap());
                    let (values, _) = stepped.get_mut(name).unwrap();
                    values.iter_mut().zip(&grad).for_each(|(v, g)| *v -= golden.learning_rate * g);
                }
                let (decoder, _) = trained(&stepped, &opened, &ops);
                let hidden = decoder.forward(&batch, None, None, None).unwrap();
                let at: Vec<usize> = known.at.iter().map(|&(row, at)| place(row, at)).collect();
                let logits = ops.logits(&hidden, decoder.head(), &at);
                within(1e-4, &what("logits after a step"), &logits, &golden.stepped.concat());
                let some = ops.logits_of(&hidden, decoder.head(), &[(at[0], vec![7, 3])]);
                assert_eq!(some[0], [logits[7], logits[3]]);
            }
        }
    }
}

#[test]
fn tuned_weights_take_the_place_of_the_base_s() {
    let base = goldens("families", "qwen2");
    let folder = tempfile::tempdir().unwrap();
    let opened = Weights::open(&base).unwrap();
    let loaded: Vec<_> = opened.names().into_iter().map(|name| (name.clone(), opened.load(&name).unwrap())).collect();
    let doubled: Vec<Vec<f32>> = loaded.iter().map(|(_, t)| t.data.iter().map(|x| 2.0 * x).collect()).collect();
    let write = |skip: usize, shape: &dyn Fn(&[usize]) -> Vec<usize>| {
        let tensors: Vec<_> = loaded
            .iter()
            .zip(&doubled)
            .skip(skip)
            .map(|((name, dense), data)| (name.clone(), shape(&dense.shape), data.as_slice()))
            .collect();
        limbeck_model::safetensor::write(&folder.path().join("model.safetensors"), &tensors).unwrap();
        Weights::open(&base).unwrap().with_tuned(folder.path())
    };
    assert!(!Weights::is_tuned(folder.path()));
    let tuned = write(0, &|shape| shape.to_vec()).unwrap();
    assert!(Weights::is_tuned(folder.path()) && tuned.tuned() && !opened.tuned());
    for ((name, dense), data) in loaded.iter().zip(&doubled) {
        let found = tuned.load(name).unwrap();
        assert!(found.data == *data && found.shape == dense.shape, "{name}");
    }
    let error = write(1, &|shape| shape.to_vec()).unwrap_err().to_string();
    assert!(error.contains("not among the tuned weights") && error.contains(&loaded[0].0), "{error}");
    let error = write(0, &|shape| shape.iter().rev().copied().collect()).unwrap_err().to_string();
    assert!(error.contains("among the tuned weights, the base has"), "{error}");
}
