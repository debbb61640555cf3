//! Every kernel against the plain reference, forward and backward, and the reference's own gradients against central
//! differences. Shapes include odd sizes, length 1, grouped heads, a shared prefix, and label trees.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use burn::tensor::{Tensor, TensorData};
use limbeck_model::device::DeviceName;
use limbeck_model::divergence::Divergence;
use limbeck_model::layout::{Packed, ROOT};
use limbeck_model::ops::codes::{Codes, QuantizeBase};
use limbeck_model::ops::dropout::{Dropout, module_key};
use limbeck_model::ops::flex::FlexOps;
use limbeck_model::ops::stock::StockOps;
use limbeck_model::ops::update::{Resident, Update};
use limbeck_model::ops::{AttentionPlan, Frozen, LayerKv, Lora, Ops, SoftTarget, Target};
use std::sync::{Arc, LazyLock};

fn values(n: usize, seed: u64, scale: f32) -> Vec<f32> {
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            z ^= z << 13;
            z ^= z >> 7;
            z ^= z << 17;
            ((z >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 2.0 * scale
        })
        .collect()
}

fn leaf(ops: &dyn Ops, data: &[f32], shape: [usize; 2]) -> Tensor<2> {
    Tensor::from_data(TensorData::new(data.to_vec(), shape), &ops.device()).require_grad()
}

fn read<const D: usize>(t: &Tensor<D>) -> Vec<f32> {
    t.to_data().try_into_vec::<f32>().unwrap()
}

/// Output and gradients of `f` at the inputs; the loss is the output's dot product with a fixed vector.
type Case<'a> = dyn Fn(&dyn Ops, &[Tensor<2>]) -> Tensor<2> + 'a;

fn run(ops: &dyn Ops, inputs: &[(Vec<f32>, [usize; 2])], f: &Case) -> (Vec<f32>, Vec<Vec<f32>>) {
    let leaves: Vec<Tensor<2>> = inputs.iter().map(|(d, s)| leaf(ops, d, *s)).collect();
    let out = f(ops, &leaves);
    let shape = out.dims();
    let probe = values(shape[0] * shape[1], 99, 1.0);
    let probe = Tensor::<2>::from_data(TensorData::new(probe, shape), &ops.device());
    let loss = (out.clone() * probe).sum();
    let grads = loss.backward();
    let grads = leaves.iter().map(|l| l.grad(&grads).map(|g| read(&g)).unwrap_or_default()).collect();
    (read(&out), grads)
}

fn assert_close(what: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let size = want.iter().fold(1e-2f32, |m, x| m.max(x.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance * size, "{what}[{i}]: {g} against {w} (largest {size})");
    }
}

/// The op set of the device that `LIMBECK_TEST_DEVICE` names, as in `--device`: its kernels are held against the reference, too.
static OF_DEVICE: LazyLock<Option<Arc<dyn Ops>>> = LazyLock::new(|| {
    let name: DeviceName = std::env::var("LIMBECK_TEST_DEVICE").ok()?.parse().unwrap();
    Some(limbeck_model::device::ops(name).unwrap())
});

/// Kernels equal the reference, and the reference's gradient equals central differences.
fn check(name: &str, inputs: Vec<(Vec<f32>, [usize; 2])>, f: &Case) {
    let flex = FlexOps::default();
    let stock = StockOps::new(burn::tensor::Device::flex());
    let (want, want_grads) = run(&stock, &inputs, f);
    let equal = |whose: &str, ops: &dyn Ops| {
        let (got, got_grads) = run(ops, &inputs, f);
        assert_close(&format!("{name} output{whose}"), &got, &want, 2e-5);
        for (i, (g, w)) in got_grads.iter().zip(&want_grads).enumerate() {
            assert_close(&format!("{name} gradient {i}{whose}"), g, w, 5e-5);
        }
        got_grads
    };
    let got_grads = equal("", &flex);
    if let Some(ops) = OF_DEVICE.as_ref() {
        equal(" on the device", ops.as_ref());
    }
    let probe = values(want.len(), 99, 1.0);
    for (i, (data, _)) in inputs.iter().enumerate() {
        for j in [0, data.len() / 2, data.len() - 1] {
            let at = |delta: f32| -> f64 {
                let mut moved = inputs.clone();
                moved[i].0[j] += delta;
                let (out, _) = run(&flex, &moved, f);
                out.iter().zip(&probe).map(|(o, p)| *o as f64 * *p as f64).sum()
            };
            let step = 1e-2;
            let difference = (at(step) - at(-step)) / (2.0 * step as f64);
            let grad = got_grads[i][j] as f64;
            let size = got_grads[i].iter().fold(1e-2f32, |m, x| m.max(x.abs())) as f64;
            assert!((grad - difference).abs() < 2e-2 * size, "{name} input {i}[{j}]: {grad} against {difference}");
        }
    }
}

#[test]
fn rms_norm() {
    for (n, width) in [(1, 8), (5, 33), (70, 64)] {
        let weight = Arc::new(values(width, 3, 1.5));
        check("rms_norm", vec![(values(n * width, 1, 1.0), [n, width])], &|ops, x| {
            ops.rms_norm(x[0].clone(), &weight, 1e-5)
        });
    }
}

#[test]
fn swiglu() {
    for shape in [[1, 3], [7, 65]] {
        let n = shape[0] * shape[1];
        check("swiglu", vec![(values(n, 1, 4.0), shape), (values(n, 2, 1.0), shape)], &|ops, x| {
            ops.swiglu(x[0].clone(), x[1].clone())
        });
    }
}

#[test]
fn geglu() {
    for shape in [[1, 3], [7, 65]] {
        let n = shape[0] * shape[1];
        check("geglu", vec![(values(n, 1, 4.0), shape), (values(n, 2, 1.0), shape)], &|ops, x| {
            ops.geglu(x[0].clone(), x[1].clone())
        });
    }
}

#[test]
fn add() {
    check("add", vec![(values(15, 1, 4.0), [3, 5]), (values(15, 2, 1.0), [3, 5])], &|ops, x| {
        ops.add(x[0].clone(), x[1].clone())
    });
    check("add twice the same", vec![(values(15, 1, 4.0), [3, 5])], &|ops, x| ops.add(x[0].clone(), x[0].clone()));
}

#[test]
fn linear_with_and_without_lora() {
    for (n, n_in, n_out, r) in [(1, 8, 5, 1), (9, 33, 17, 4)] {
        let w = values(n_in * n_out, 5, 0.5);
        check("linear", vec![(values(n * n_in, 1, 1.0), [n, n_in])], &|ops, x| {
            ops.linear(x[0].clone(), &ops.freeze(w.clone(), n_out, n_in, true), None)
        });
        let inputs = vec![
            (values(n * n_in, 1, 1.0), [n, n_in]),
            (values(r * n_in, 2, 0.5), [r, n_in]),
            (values(n_out * r, 3, 0.5), [n_out, r]),
        ];
        check("lora linear", inputs.clone(), &|ops, x| {
            let lora = Lora { a: x[1].clone(), b: x[2].clone(), scaling: 1.7, dora: None, dropout: None };
            ops.linear(x[0].clone(), &ops.freeze(w.clone(), n_out, n_in, true), Some(&lora))
        });
        let bias = Arc::new(values(n_out, 6, 1.0));
        check("lora linear with bias", inputs, &|ops, x| {
            let lora = Lora { a: x[1].clone(), b: x[2].clone(), scaling: 1.7, dora: None, dropout: None };
            let weight = ops.freeze(w.clone(), n_out, n_in, true).with_bias(Some(bias.clone()));
            ops.linear(x[0].clone(), &weight, Some(&lora))
        });
    }
}

/// Only the adapter's input is dropped, and what is kept is scaled up: against the sum written out.
#[test]
fn lora_dropout() {
    let (n, n_in, n_out, r) = (5, 12, 7, 3);
    let w = values(n_in * n_out, 5, 0.5);
    let drop = Dropout { p: 0.4, keys: Arc::new((1..=n as u64).collect()), module: module_key("q_proj") };
    let inputs = vec![
        (values(n * n_in, 1, 1.0), [n, n_in]),
        (values(r * n_in, 2, 0.5), [r, n_in]),
        (values(n_out * r, 3, 0.5), [n_out, r]),
    ];
    check("lora with dropout", inputs.clone(), &|ops, x| {
        let lora = Lora { a: x[1].clone(), b: x[2].clone(), scaling: 1.7, dora: None, dropout: Some(drop.clone()) };
        ops.linear(x[0].clone(), &ops.freeze(w.clone(), n_out, n_in, true), Some(&lora))
    });
    let [x, a, b] = [0, 1, 2].map(|i| inputs[i].0.clone());
    let mask = drop.mask(n_in);
    let mut want = vec![0f32; n * n_out];
    for t in 0..n {
        for o in 0..n_out {
            let plain: f32 = (0..n_in).map(|i| x[t * n_in + i] * w[o * n_in + i]).sum();
            let down =
                |k: usize| (0..n_in).map(|i| x[t * n_in + i] * mask[t * n_in + i] * a[k * n_in + i]).sum::<f32>();
            want[t * n_out + o] = plain + 1.7 * (0..r).map(|k| down(k) * b[o * r + k]).sum::<f32>();
        }
    }
    let ops = FlexOps::default();
    let lora = Lora {
        a: leaf(&ops, &a, [r, n_in]),
        b: leaf(&ops, &b, [n_out, r]),
        scaling: 1.7,
        dora: None,
        dropout: Some(drop.clone()),
    };
    let y = ops.linear(leaf(&ops, &x, [n, n_in]), &ops.freeze(w, n_out, n_in, true), Some(&lora));
    assert_close("lora dropout", &read(&y), &want, 1e-5);
}

fn attention_case(name: &str, batch: Packed, heads: usize, kv_heads: usize, d: usize, past: usize) {
    let plain = |plan| plan;
    planned_attention_case(name, batch.clone(), heads, kv_heads, d, past, &plain);
    for window in [1, 2, 4] {
        let name = format!("{name}, window {window}");
        planned_attention_case(&name, batch.clone(), heads, kv_heads, d, past, &|plan| AttentionPlan {
            window: Some(window),
            ..plan
        });
    }
    let capped = |plan| AttentionPlan { softcap: Some(0.7), window: Some(3), scale: 0.9, rotation: None, ..plan };
    planned_attention_case(&format!("{name}, capped"), batch, heads, kv_heads, d, past, &capped);
}

fn planned_attention_case(
    name: &str,
    batch: Packed,
    heads: usize,
    kv_heads: usize,
    d: usize,
    past: usize,
    edit: &dyn Fn(AttentionPlan) -> AttentionPlan,
) {
    let n = batch.len();
    let batch = Arc::new(batch);
    let inputs = vec![
        (values(n * heads * d, 1, 1.0), [n, heads * d]),
        (values(n * kv_heads * d, 2, 1.0), [n, kv_heads * d]),
        (values(n * kv_heads * d, 3, 1.0), [n, kv_heads * d]),
    ];
    check(name, inputs, &|ops, x| {
        let plan = edit(AttentionPlan::new(heads, kv_heads, d, 10_000.0, batch.clone()));
        let constant = |seed| -> Tensor<2> {
            let data = values(past * kv_heads * d, seed, 1.0);
            Tensor::from_data(TensorData::new(data, [past, kv_heads * d]), &ops.device())
        };
        let kv = (past > 0).then(|| LayerKv { keys: constant(7), values: constant(8) });
        ops.attention(x[0].clone(), x[1].clone(), x[2].clone(), &plan, kv.as_ref())
    });
}

#[test]
fn attention_over_packed_rows() {
    let mut plain = Packed::new();
    plain.push_chain(&[1; 5], 0);
    plain.push_chain(&[1; 1], 0);
    plain.push_chain(&[1; 7], 0);
    attention_case("rows", plain.clone(), 4, 4, 8, 0);
    attention_case("rows, grouped heads", plain.clone(), 6, 2, 4, 0);
    let mut single = Packed::new();
    single.push_chain(&[1], 0);
    attention_case("one token", single, 2, 1, 4, 0);
    let mut shared = Packed::with_prefix(&[1; 4], 0);
    shared.push_chain(&[1; 3], 4);
    shared.push_chain(&[1; 1], 4);
    attention_case("shared prefix", shared, 6, 3, 4, 0);
    let mut tree = Packed::with_prefix(&[1; 2], 0);
    tree.push_tree(&[1, 1, 1], &[(1, ROOT), (1, 0), (1, ROOT), (1, 2)], 2);
    tree.push_chain(&[1, 1], 2);
    attention_case("label tree", tree, 4, 2, 4, 0);
    let mut cached = Packed::new();
    cached.push_tree(&[1, 1], &[(1, ROOT), (1, ROOT)], 3);
    attention_case("cached prefix", cached, 4, 2, 4, 3);
}

/// Heads as they are in models, rows and a prefix that are longer than a kernel's blocks, and rows that begin inside one.
#[test]
fn attention_past_a_block() {
    let mut rows = Packed::new();
    rows.push_chain(&[1; 70], 0);
    rows.push_chain(&[1; 3], 0);
    rows.push_chain(&[1; 65], 0);
    let mut shared = Packed::with_prefix(&[1; 67], 0);
    shared.push_chain(&[1; 40], 67);
    shared.push_tree(&[1; 30], &[(1, ROOT), (1, 0), (1, ROOT)], 67);
    let plain = |plan| plan;
    planned_attention_case("long rows", rows.clone(), 6, 2, 64, 0, &plain);
    planned_attention_case("long rows behind a cache", rows.clone(), 2, 2, 16, 70, &plain);
    planned_attention_case("wide heads", rows, 2, 1, 128, 0, &plain);
    planned_attention_case("long prefix", shared.clone(), 3, 1, 80, 0, &plain);
    planned_attention_case("window over blocks", shared.clone(), 2, 1, 16, 0, &|plan| AttentionPlan {
        window: Some(33),
        ..plan
    });
    let mut few = Packed::with_prefix(&[1; 3], 0);
    few.push_chain(&[1; 5], 3);
    planned_attention_case("the widest heads", few, 1, 1, 256, 0, &plain);
}

#[test]
fn cross_entropy_at_label_positions() {
    let (n, width, vocab) = (9, 12, 37);
    let head = values(vocab * width, 4, 1.0);
    let targets: Vec<Target> =
        [(2, 5, 1.0), (3, 36, 0.5), (8, 0, 2.0)].map(|(row, token, weight)| Target { row, token, weight }).to_vec();
    check("cross entropy", vec![(values(n * width, 1, 1.0), [n, width])], &|ops, x| {
        let head = ops.freeze(head.clone(), vocab, width, true);
        ops.linear_cross_entropy(x[0].clone(), &head, &targets, 3.5).reshape([1, 1])
    });
    check("cross entropy of capped logits", vec![(values(n * width, 1, 1.0), [n, width])], &|ops, x| {
        let head = ops.freeze(head.clone(), vocab, width, true).with_softcap(Some(1.5));
        ops.linear_cross_entropy(x[0].clone(), &head, &targets, 3.5).reshape([1, 1])
    });
    // More targets than one block, several at one row.
    let many: Vec<Target> =
        (0..300).map(|i| Target { row: i % n, token: (i * 7 % vocab) as u32, weight: 1.0 }).collect();
    check("cross entropy in blocks", vec![(values(n * width, 1, 1.0), [n, width])], &|ops, x| {
        let head = ops.freeze(head.clone(), vocab, width, true);
        ops.linear_cross_entropy(x[0].clone(), &head, &many, 300.0).reshape([1, 1])
    });
}

/// A teacher over `vocab` tokens that told its `k` likeliest, from seeded logits.
fn soft_target(row: usize, vocab: usize, k: usize, seed: u64, weight: f32) -> SoftTarget {
    let logits = values(vocab, seed, 3.0);
    let log_sum = logits.iter().map(|z| z.exp()).sum::<f32>().ln();
    let mut order: Vec<usize> = (0..vocab).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    let listed = &order[..k];
    let log_probs = listed.iter().map(|&t| logits[t] - log_sum).collect();
    SoftTarget::new(row, listed.iter().map(|&t| t as u32).collect(), log_probs, weight).unwrap()
}

/// With the settings of `tests/reference/linear_divergence.py`.
const DIVERGENCES: [Divergence; 5] = [
    Divergence::ForwardKl,
    Divergence::ReverseKl,
    Divergence::JensenShannon { beta: 0.3 },
    Divergence::SkewKl { alpha: 0.1 },
    Divergence::AlphaBeta { alpha: 0.2, beta: 0.7 },
];

#[test]
fn divergence_from_a_sparse_teacher() {
    let (n, width, vocab) = (9, 12, 37);
    let head = values(vocab * width, 4, 1.0);
    let inputs = vec![(values(n * width, 1, 1.0), [n, width])];
    let of = |divergence: Divergence, softcap: Option<f32>, targets: &[SoftTarget], denominator: f32| {
        check("divergence", inputs.clone(), &|ops, x| {
            let head = ops.freeze(head.clone(), vocab, width, true).with_softcap(softcap);
            ops.linear_divergence(x[0].clone(), &head, targets, divergence, denominator).reshape([1, 1])
        });
    };
    // One token, several, nearly all, all, none; a token of probability 0; two targets at one row.
    let mut targets: Vec<SoftTarget> = [(0, 1), (3, 6), (8, 36), (2, 37), (3, 0)]
        .iter()
        .map(|&(row, k)| soft_target(row, vocab, k, 40 + k as u64, 0.5 + k as f32 / 30.0))
        .collect();
    targets.push(SoftTarget::new(5, vec![7, 9], vec![-0.3, f32::NEG_INFINITY], 1.0).unwrap());
    let told = soft_target(1, vocab, 4, 50, 1.0);
    let gold = told.tokens()[2];
    targets.push(told.with_gold(gold, 0.4).unwrap());
    for divergence in DIVERGENCES {
        of(divergence, None, &targets, 3.5);
        of(divergence, Some(1.5), &targets, 3.5);
    }
    // More than one block of rows.
    let many: Vec<SoftTarget> = (0..300).map(|i| soft_target(i % n, vocab, i % 12, i as u64, 1.0)).collect();
    of(Divergence::ForwardKl, None, &many, 300.0);
    of(Divergence::JensenShannon { beta: 0.5 }, None, &many, 300.0);
}

#[test]
fn divergence_equals_pytorchs() {
    let golden: serde_json::Value = serde_json::from_str(include_str!("golden/linear_divergence.json")).unwrap();
    let floats = |v: &serde_json::Value| -> Vec<f32> { serde_json::from_value(v.clone()).unwrap() };
    let size = |key: &str| golden[key].as_u64().unwrap() as usize;
    let (rows, width, vocab) = (size("rows"), size("width"), size("vocab"));
    let targets: Vec<SoftTarget> = golden["targets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| {
            let tokens = serde_json::from_value(t["tokens"].clone()).unwrap();
            let weight = t["weight"].as_f64().unwrap() as f32;
            let told =
                SoftTarget::new(t["row"].as_u64().unwrap() as usize, tokens, floats(&t["log_probs"]), weight).unwrap();
            match t["gold"].as_u64() {
                Some(gold) => told.with_gold(gold as u32, t["share"].as_f64().unwrap() as f32).unwrap(),
                None => told,
            }
        })
        .collect();
    let denominator = golden["denominator"].as_f64().unwrap() as f32;
    for (divergence, name) in DIVERGENCES.into_iter().zip(["forward_kl", "reverse_kl", "js", "skew_kl", "alpha_beta"]) {
        let golden_of = &golden["of"][name];
        let want = |what: &str, loss: &Tensor<1>, gradient: &Tensor<2>, key: &str| {
            assert_close(what, &read(loss), &[golden_of["loss"].as_f64().unwrap() as f32], 2e-6);
            assert_close(what, &read(gradient), &floats(&golden_of[key]), 4e-6);
        };
        for ops in [&FlexOps::default() as &dyn Ops, &StockOps::new(burn::tensor::Device::flex())] {
            let x = leaf(ops, &floats(&golden["hidden"]), [rows, width]);
            let head = ops.freeze(floats(&golden["head"]), vocab, width, true);
            let loss = ops.linear_divergence(x.clone(), &head, &targets, divergence, denominator);
            want(name, &loss, &x.grad(&loss.backward()).unwrap(), "gradient");
            // A head that is trained takes its own gradient.
            let (x, w) = (
                leaf(ops, &floats(&golden["hidden"]), [rows, width]),
                leaf(ops, &floats(&golden["head"]), [vocab, width]),
            );
            let loss =
                ops.linear_divergence(x.clone(), &Frozen::trained(w.clone(), None), &targets, divergence, denominator);
            let gradients = loss.backward();
            want(name, &loss, &x.grad(&gradients).unwrap(), "gradient");
            want(name, &loss, &w.grad(&gradients).unwrap(), "head_gradient");
        }
    }
}

/// A teacher that is sure of one token is a label; one that is the student itself has nothing to teach.
#[test]
fn divergence_of_a_sure_teacher_is_the_cross_entropy_and_of_ones_own_answer_nothing() {
    let (n, width, vocab) = (3, 12, 37);
    let ops = FlexOps::default();
    let head = ops.freeze(values(vocab * width, 4, 1.0), vocab, width, true);
    let hidden = values(n * width, 1, 1.0);
    let of = |loss: &dyn Fn(Tensor<2>) -> Tensor<1>| {
        let x = leaf(&ops, &hidden, [n, width]);
        let loss = loss(x.clone());
        (read(&loss), read(&x.grad(&loss.backward()).unwrap()))
    };
    let labels = [Target { row: 0, token: 7, weight: 1.0 }, Target { row: 2, token: 0, weight: 0.5 }];
    let sure: Vec<SoftTarget> =
        labels.iter().map(|t| SoftTarget::new(t.row, vec![t.token], vec![0.0], t.weight).unwrap()).collect();
    let (loss, gradient) = of(&|x| ops.linear_divergence(x, &head, &sure, Divergence::ForwardKl, 1.5));
    let (want, want_gradient) = of(&|x| ops.linear_cross_entropy(x, &head, &labels, 1.5));
    assert_close("loss", &loss, &want, 1e-6);
    assert_close("gradient", &gradient, &want_gradient, 1e-6);

    let x = Tensor::<2>::from_data(TensorData::new(hidden.clone(), [n, width]), &ops.device());
    let log_probs = limbeck_model::decoder::log_softmax(&ops.logits(&x, &head, &[1]));
    let own = SoftTarget::new(1, vec![3, 30, 12], [3, 30, 12].map(|t: usize| log_probs[t]).to_vec(), 1.0).unwrap();
    let (loss, gradient) =
        of(&|x| ops.linear_divergence(x, &head, std::slice::from_ref(&own), Divergence::ForwardKl, 1.0));
    assert!(loss[0].abs() < 1e-6 && gradient.iter().all(|g| g.abs() < 1e-6), "{loss:?} {gradient:?}");
}

#[test]
fn no_targets_is_a_loss_of_zero() {
    for ops in [&FlexOps::default() as &dyn Ops, &StockOps::new(burn::tensor::Device::flex())] {
        let x = leaf(ops, &values(6, 1, 1.0), [2, 3]);
        let head = ops.freeze(values(12, 2, 1.0), 4, 3, true);
        let loss = ops.linear_cross_entropy(x.clone(), &head, &[], 1.0);
        assert_eq!(read(&loss), [0.0]);
        let grads = loss.backward();
        assert!(x.grad(&grads).is_none_or(|g| read(&g).iter().all(|v| *v == 0.0)));
        assert_eq!(read(&ops.linear_divergence(x, &head, &[], Divergence::ForwardKl, 1.0)), [0.0]);
    }
}

#[test]
fn logits_equal_the_reference() {
    let (n, width, vocab) = (4, 10, 21);
    let (x, head) = (values(n * width, 1, 1.0), values(vocab * width, 2, 1.0));
    let (flex, stock) = (FlexOps::default(), StockOps::new(burn::tensor::Device::flex()));
    let of = |ops: &dyn Ops| {
        let hidden = Tensor::<2>::from_data(TensorData::new(x.clone(), [n, width]), &ops.device());
        let capped = ops.freeze(head.clone(), vocab, width, false).with_softcap(Some(2.0));
        let head = ops.freeze(head.clone(), vocab, width, false);
        let plain = ops.logits_of(&hidden, &head, &[(3, vec![0, 20])]);
        let under = ops.logits_of(&hidden, &capped, &[(3, vec![0, 20])]);
        for (z, capped) in plain[0].iter().zip(&under[0]) {
            assert!((2.0 * (z / 2.0).tanh() - capped).abs() < 1e-5);
        }
        assert!((ops.logits(&hidden, &capped, &[3])[20] - under[0][1]).abs() < 1e-5);
        let all = ops.logits(&hidden, &head, &[3, 0]);
        let some = ops.logits_of(&hidden, &head, &[(3, vec![0, 20]), (0, vec![7])]);
        assert!((all[20] - some[0][1]).abs() < 1e-5 && (all[vocab + 7] - some[1][0]).abs() < 1e-5);
        let codes = ops.freeze_codes(Codes::bf16(&values(vocab * width, 2, 1.0), vocab, width), false);
        let (all_of_codes, some) = (ops.logits(&hidden, &codes, &[1]), ops.logits_of(&hidden, &codes, &[(1, vec![9])]));
        assert!((all_of_codes[9] - some[0][0]).abs() < 1e-5);
        all
    };
    let want = of(&stock);
    for ops in [Some(&flex as &dyn Ops), OF_DEVICE.as_deref()].into_iter().flatten() {
        assert_close("logits", &of(ops), &want, 2e-5);
    }
}

/// Both passes over a base in codes, of few rows (decoded inside the product) and of many, against the decoded matrix.
#[test]
fn products_with_codes() {
    for (n, n_in, n_out) in [(1, 64, 5), (7, 33, 17), (40, 96, 70)] {
        let w = values(n_in * n_out, 5, 0.5);
        let forms = [QuantizeBase::Int8, QuantizeBase::Nf4, QuantizeBase::Nf4DoubleQuant];
        let quantized = forms.map(|form| Codes::quantize(form, &w, n_out, n_in).unwrap());
        for codes in quantized.into_iter().chain([Codes::bf16(&w, n_out, n_in)]) {
            check("linear over codes", vec![(values(n * n_in, 1, 1.0), [n, n_in])], &|ops, x| {
                ops.linear(x[0].clone(), &ops.freeze_codes(codes.clone(), true), None)
            });
            let rows: Vec<u32> = (0..n_out as u32).rev().step_by(2).collect();
            let both = [&FlexOps::default() as &dyn Ops, &StockOps::new(burn::tensor::Device::flex())];
            let all = both.into_iter().chain(OF_DEVICE.as_deref());
            let embedded: Vec<Vec<f32>> =
                all.map(|ops| read(&ops.embed(&ops.freeze_codes(codes.clone(), false), &rows))).collect();
            assert!(embedded.windows(2).all(|two| two[0] == two[1]), "rows of codes differ between op sets");
        }
    }
}

/// Three steps of AdamW where parameters stay on the device, against the formula on the host, and the norm's parts.
#[test]
fn updates_on_the_device() {
    let by = Update {
        beta1: 0.9,
        beta2: 0.999,
        rest1: 0.1,
        rest2: 0.001,
        size: 0.2,
        keep: 0.99,
        correction2: 0.7,
        epsilon: 1e-8,
        scale: 0.5,
    };
    let shape = [9, 33];
    let n = shape[0] * shape[1];
    let stock = StockOps::new(burn::tensor::Device::flex());
    for ops in [Some(&stock as &dyn Ops), OF_DEVICE.as_deref()].into_iter().flatten() {
        let sent = |values: &[f32]| Tensor::<2>::from_data(TensorData::new(values.to_vec(), shape), &ops.device());
        let (mut value, mut first, mut second) = (values(n, 1, 1.0), vec![0f32; n], vec![0f32; n]);
        let mut on_device = Resident { value: sent(&value), first: sent(&first), second: sent(&second) };
        for step in 0..3 {
            let grad = values(n, 10 + step, 2.0);
            let sums = ops.square_sums(&[&sent(&grad), &sent(&value)]).unwrap();
            for (sum, of) in sums.iter().zip([&grad, &value]) {
                let want: f64 = of.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
                assert!((sum - want).abs() < 1e-5 * want, "{sum} against {want}");
            }
            ops.update(&mut on_device, &sent(&grad), &by);
            for i in 0..n {
                value[i] = by.of(value[i], grad[i], &mut first[i], &mut second[i]);
            }
        }
        assert_close("values", &read(&on_device.value), &value, 2e-6);
        assert_close("first moments", &read(&on_device.first), &first, 2e-6);
        assert_close("second moments", &read(&on_device.second), &second, 2e-6);
    }
}
