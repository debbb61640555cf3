//! DoRA against the formula written out, central differences, and PEFT on tiny random models; goldens and their script:
//! tests/reference/dora.py. Tolerances are those of families.rs, and for their reasons.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use burn::tensor::{Tensor, TensorData};
use common::values;
use limbeck_model::adapter::Adapter;
use limbeck_model::decoder::{Decoder, LoraSet};
use limbeck_model::device::{DeviceName, ops};
use limbeck_model::layout::Packed;
use limbeck_model::ops::dora::Dora;
use limbeck_model::ops::dropout::{Dropout, module_key};
use limbeck_model::ops::flex::bf16::Engine;
use limbeck_model::ops::flex::{Compute, FlexOps};
use limbeck_model::ops::stock::StockOps;
use limbeck_model::ops::{Frozen, Lora, Ops, Target};
use limbeck_model::weights::Weights;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn leaf(ops: &dyn Ops, data: &[f32], shape: [usize; 2]) -> Tensor<2> {
    Tensor::from_data(TensorData::new(data.to_vec(), shape), &ops.device()).require_grad()
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

/// One linear layer under DoRA: the sizes, and everything that goes in.
struct Layer {
    n: usize,
    n_in: usize,
    n_out: usize,
    r: usize,
    scaling: f32,
    w: Vec<f32>,
    bias: Option<Arc<Vec<f32>>>,
    drop: Option<Dropout>,
    /// x, A, B, m.
    inputs: [Vec<f32>; 4],
}

impl Layer {
    fn new(n: usize, n_in: usize, n_out: usize, r: usize) -> Layer {
        let inputs = [
            values(n * n_in, 1, 1.0),
            values(r * n_in, 2, 0.5),
            values(n_out * r, 3, 0.5),
            values(n_out, 4, 0.3).iter().map(|x| x + 1.0).collect(),
        ];
        Layer { n, n_in, n_out, r, scaling: 1.7, w: values(n_in * n_out, 5, 0.5), bias: None, drop: None, inputs }
    }

    fn frozen(&self, ops: &dyn Ops) -> Frozen {
        ops.freeze(self.w.clone(), self.n_out, self.n_in, true).with_bias(self.bias.clone())
    }

    fn leaves(&self, ops: &dyn Ops) -> [Tensor<2>; 4] {
        let shapes = [[self.n, self.n_in], [self.r, self.n_in], [self.n_out, self.r], [1, self.n_out]];
        [0, 1, 2, 3].map(|i| leaf(ops, &self.inputs[i], shapes[i]))
    }

    /// Row norms of W + s·B·A, from the sum itself.
    fn norms(&self) -> Vec<f32> {
        let [_, a, b, _] = &self.inputs;
        let element = |o: usize, i: usize| {
            let update: f64 = (0..self.r).map(|k| f64::from(b[o * self.r + k]) * f64::from(a[k * self.n_in + i])).sum();
            f64::from(self.w[o * self.n_in + i]) + f64::from(self.scaling) * update
        };
        (0..self.n_out).map(|o| (0..self.n_in).map(|i| element(o, i).powi(2)).sum::<f64>().sqrt() as f32).collect()
    }

    /// The op under test.
    fn op(&self, ops: &dyn Ops, [x, a, b, m]: &[Tensor<2>; 4]) -> Tensor<2> {
        let dora = Some(Dora::new(m.clone()));
        let lora = Lora { a: a.clone(), b: b.clone(), scaling: self.scaling, dora, dropout: self.drop.clone() };
        ops.linear(x.clone(), &self.frozen(ops), Some(&lora))
    }

    /// PEFT's formula in plain burn, with constant norms: `xWᵀ + b + (g - 1) ⊙ dWᵀ + g ⊙ s·dAᵀBᵀ` where `d` is the dropped
    /// input and `g = m / norm`.
    fn formula(&self, ops: &dyn Ops, [x, a, b, m]: &[Tensor<2>; 4], norms: &[f32]) -> Tensor<2> {
        let constant = |data: &[f32], shape: [usize; 2]| -> Tensor<2> {
            Tensor::from_data(TensorData::new(data.to_vec(), shape), &ops.device())
        };
        let w = constant(&self.w, [self.n_out, self.n_in]).transpose();
        let d = match &self.drop {
            None => x.clone(),
            Some(drop) => x.clone() * constant(&drop.mask(self.n_in), [self.n, self.n_in]),
        };
        let g = m.clone() / constant(norms, [1, self.n_out]);
        let low = d.clone().matmul(a.clone().transpose()).matmul(b.clone().transpose()) * self.scaling;
        let y = x.clone().matmul(w.clone()) + d.matmul(w) * (g.clone() - 1.0) + low * g;
        match &self.bias {
            None => y,
            Some(bias) => y + constant(bias, [1, self.n_out]),
        }
    }

    /// Output, and the gradients of its dot product with a fixed vector.
    fn run(&self, ops: &dyn Ops, f: &dyn Fn(&[Tensor<2>; 4]) -> Tensor<2>) -> (Vec<f32>, [Vec<f32>; 4]) {
        let leaves = self.leaves(ops);
        let out = f(&leaves);
        let probe = values(self.n * self.n_out, 99, 1.0);
        let probe = Tensor::<2>::from_data(TensorData::new(probe, [self.n, self.n_out]), &ops.device());
        let grads = (out.clone() * probe).sum().backward();
        (read(out), leaves.map(|l| read(l.grad(&grads).unwrap())))
    }
}

fn check(name: &str, mut layer: Layer) {
    let stock = StockOps::new(burn::tensor::Device::flex());
    let norms = layer.norms();
    let (want, want_grads) = layer.run(&stock, &|x| layer.formula(&stock, x, &norms));
    for ops in [&stock as &dyn Ops, &FlexOps::default()] {
        let (got, got_grads) = layer.run(ops, &|x| layer.op(ops, x));
        within(2e-5, &format!("{name}: output"), &got, &want);
        for ((part, got), want) in ["x", "A", "B", "m"].iter().zip(&got_grads).zip(&want_grads) {
            within(5e-5, &format!("{name}: gradient of {part}"), got, want);
        }
    }
    let probe = values(layer.n * layer.n_out, 99, 1.0);
    for (i, grads) in want_grads.iter().enumerate() {
        for j in [0, layer.inputs[i].len() / 2, layer.inputs[i].len() - 1] {
            let mut at = |delta: f32| -> f64 {
                let before = layer.inputs[i][j];
                layer.inputs[i][j] = before + delta;
                // The norms stay: no gradient flows through them.
                let (out, _) = layer.run(&stock, &|x| layer.formula(&stock, x, &norms));
                layer.inputs[i][j] = before;
                out.iter().zip(&probe).map(|(o, p)| f64::from(*o) * f64::from(*p)).sum()
            };
            let difference = (at(1e-2) - at(-1e-2)) / 2e-2;
            let size = grads.iter().fold(1e-2f32, |m, x| m.max(x.abs()));
            let gap = (f64::from(grads[j]) - difference).abs();
            assert!(gap < 2e-2 * f64::from(size), "{name}, input {i}[{j}]: {gap} of {size}");
        }
    }
}

#[test]
fn a_layer_is_the_formula_of_peft() {
    for (n, n_in, n_out, r) in [(1, 8, 5, 1), (9, 33, 17, 4), (130, 20, 31, 3)] {
        let plain = || Layer::new(n, n_in, n_out, r);
        let bias = Some(Arc::new(values(n_out, 6, 1.0)));
        let keys = Arc::new((1..=n as u64).collect());
        let drop = Some(Dropout { p: 0.4, keys, module: module_key("q_proj") });
        check("dora", plain());
        check("dora with bias", Layer { bias: bias.clone(), ..plain() });
        check("dora with dropout", Layer { drop: drop.clone(), ..plain() });
        check("dora with both", Layer { bias, drop, ..plain() });
    }
}

#[test]
fn norms_without_the_product_are_those_of_the_product() {
    for (n_in, n_out, r) in [(8, 5, 1), (33, 600, 4), (64, 31, 16)] {
        let mut layer = Layer::new(1, n_in, n_out, r);
        let asked = |layer: &Layer, ops: &dyn Ops| {
            let [_, a, b, _] = layer.leaves(ops);
            let lora = Lora { a, b, scaling: layer.scaling, dora: None, dropout: None };
            ops.dora_norms(&layer.frozen(ops), &lora)
        };
        within(2e-6, "norms", &asked(&layer, &FlexOps::default()), &layer.norms());
        let stock = StockOps::new(burn::tensor::Device::flex());
        within(2e-6, "stock norms", &asked(&layer, &stock), &layer.norms());
        // W and A are rounded to 8 bits of mantissa; over a row most of it evens out.
        within(4e-3, "norms in bfloat16", &asked(&layer, &FlexOps::new(Compute::Bf16(Engine::best()))), &layer.norms());
        // A row that the adapter takes to zero has no norm, and no NaN either.
        let (a, b) = (layer.inputs[1].clone(), layer.inputs[2].clone());
        for i in 0..n_in {
            layer.w[i] = -layer.scaling * (0..r).map(|k| b[k] * a[k * n_in + i]).sum::<f32>();
        }
        let norms = asked(&layer, &FlexOps::default());
        assert!(norms[0] >= 0.0 && norms[0] < 1e-2 && norms[0].is_finite(), "{}", norms[0]);
    }
}

/// At the start B is zero and m the row norms, whatever the products compute in: the layer is the plain one to the bit.
#[test]
fn an_adapter_that_has_learnt_nothing_changes_nothing() {
    for compute in [Compute::F32, Compute::Bf16(Engine::best())] {
        let ops = FlexOps::new(compute);
        let mut layer = Layer::new(7, 33, 17, 4);
        layer.inputs[2].fill(0.0);
        let frozen = layer.frozen(&ops);
        let [x, a, b, _] = layer.leaves(&ops);
        let lora = Lora { a, b, scaling: 1.7, dora: None, dropout: None };
        layer.inputs[3] = ops.dora_norms(&frozen, &lora);
        let dora = Some(Dora::new(leaf(&ops, &layer.inputs[3], [1, layer.n_out])));
        let plain = read(ops.linear(x.clone(), &frozen, Some(&lora)));
        assert_eq!(read(ops.linear(x, &frozen, Some(&Lora { dora, ..lora }))), plain);
    }
}

#[derive(Deserialize)]
struct Golden {
    rows: Vec<Vec<u32>>,
    at: Vec<(usize, usize)>,
    targets: Vec<(usize, usize, u32)>,
    learning_rate: f32,
    adapted: Vec<Vec<f32>>,
    loss: f32,
    grads: BTreeMap<String, Vec<f32>>,
    stepped: Vec<Vec<f32>>,
    start: BTreeMap<String, Vec<f32>>,
}

fn goldens(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(kind)
}

/// Logits where the golden looks, and loss and gradients of every part, with the rows' first `shared` tokens packed once.
fn answer(
    decoder: &Decoder,
    golden: &Golden,
    lora: &LoraSet,
    shared: usize,
) -> (Vec<f32>, f32, BTreeMap<String, Vec<f32>>) {
    let ops = decoder.ops();
    let mut batch = Packed::with_prefix(&golden.rows[0][..shared], 0);
    let starts: Vec<usize> = golden.rows.iter().map(|row| batch.push_chain(&row[shared..], shared).start).collect();
    let place = |row: usize, at: usize| if at < shared { at } else { starts[row] + at - shared };
    let tracked = |l: &Lora| Lora {
        a: l.a.clone().require_grad(),
        b: l.b.clone().require_grad(),
        dora: l.dora.as_ref().map(|d| Dora::new(d.magnitude.clone().require_grad())),
        ..l.clone()
    };
    let set: LoraSet = lora.iter().map(|(path, l)| (path.clone(), tracked(l))).collect();
    let hidden = decoder.forward(&Arc::new(batch), Some(&set), None, None).unwrap();
    let at: Vec<usize> = golden.at.iter().map(|&(row, at)| place(row, at)).collect();
    let logits = ops.logits(&hidden, decoder.head(), &at);
    let target = |&(row, at, token): &(usize, usize, u32)| Target { row: place(row, at), token, weight: 1.0 };
    let targets: Vec<Target> = golden.targets.iter().map(target).collect();
    let loss = ops.linear_cross_entropy(hidden, decoder.head(), &targets, targets.len() as f32);
    let grads = loss.backward();
    let parts = |(path, l): (&String, &Lora)| {
        let magnitude = &l.dora.as_ref().unwrap().magnitude;
        [("lora_A", &l.a), ("lora_B", &l.b), ("lora_magnitude_vector", magnitude)]
            .map(|(part, t)| (format!("{path}.{part}"), read(t.grad(&grads).unwrap())))
    };
    (logits, read(loss)[0], set.iter().flat_map(parts).collect())
}

#[test]
fn adapters_of_peft_answer_and_learn_as_they_do_there() {
    for name in ["llama", "qwen2", "phi3", "gemma3"] {
        let folder = goldens("dora").join(name);
        let golden: Golden = serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
        for device in [DeviceName::CpuReference, DeviceName::Cpu] {
            let ops = ops(device).unwrap();
            let weights = Weights::open(&goldens("families").join(name)).unwrap();
            let decoder = Decoder::from_weights(&weights, ops.clone(), true).unwrap();
            let adapter = Adapter::load(&folder.join("adapter")).unwrap();
            assert!(adapter.config.use_dora && adapter.check(&decoder.config).is_ok());
            for (path, start) in &golden.start {
                let module = path.strip_suffix(".lora_magnitude_vector").unwrap();
                within(1e-6, &format!("{path} at the start"), &decoder.row_norms(module), start);
            }
            for shared in [0, 5] {
                let what = |of: &str| format!("{name} on {device}, {shared} tokens shared: {of}");
                let (logits, loss, grads) = answer(&decoder, &golden, &adapter.constants(ops.as_ref()), shared);
                within(2e-5, &what("logits"), &logits, &golden.adapted.concat());
                within(2e-5, &what("loss"), &[loss], &[golden.loss]);
                assert!(golden.grads.keys().any(|part| part.ends_with("lora_magnitude_vector")));
                for (part, want) in &golden.grads {
                    // Of one part's own largest: a vector's gradient must not hide behind a matrix's.
                    within(1e-4, &what(part), &grads[part], want);
                }
                let mut stepped = adapter.clone();
                for (path, pair) in &mut stepped.pairs {
                    let magnitude = pair.magnitude.as_mut().unwrap();
                    for (part, values) in
                        [("lora_A", &mut pair.a), ("lora_B", &mut pair.b), ("lora_magnitude_vector", magnitude)]
                    {
                        let grad = &grads[&format!("{path}.{part}")];
                        values.iter_mut().zip(grad).for_each(|(v, g)| *v -= golden.learning_rate * g);
                    }
                }
                let (logits, ..) = answer(&decoder, &golden, &stepped.constants(ops.as_ref()), shared);
                within(2e-4, &what("logits after a step"), &logits, &golden.stepped.concat());
            }
        }
    }
}

#[test]
fn an_adapter_survives_the_disk_and_must_say_what_it_is() {
    let from = goldens("dora").join("llama/adapter");
    let adapter = Adapter::load(&from).unwrap();
    let folder = tempfile::tempdir().unwrap();
    adapter.save(folder.path()).unwrap();
    assert_eq!(Adapter::load(folder.path()).unwrap(), adapter);

    // Magnitudes that the config does not announce, and an announcement without magnitudes.
    let config = std::fs::read_to_string(folder.path().join("adapter_config.json")).unwrap();
    std::fs::write(
        folder.path().join("adapter_config.json"),
        config.replace("\"use_dora\": true", "\"use_dora\": false"),
    )
    .unwrap();
    let error = Adapter::load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("use_dora is false") && error.contains("has a lora_magnitude_vector"), "{error}");
    let mut plain = adapter.clone();
    plain.pairs.values_mut().for_each(|pair| pair.magnitude = None);
    plain.save(folder.path()).unwrap();
    let error = Adapter::load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("use_dora is true") && error.contains("has no lora_magnitude_vector"), "{error}");
}
