//! Attention weights that are worked out apart from the kernels: against PyTorch, and against what attention makes of values.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use burn::tensor::{Tensor, TensorData};
use limbeck_model::attending::Attending;
use limbeck_model::device::{DeviceName, ops};
use limbeck_model::layout::{Packed, ROOT};
use limbeck_model::ops::{AttentionPlan, Ops};
use serde::Deserialize;
use std::sync::Arc;

#[derive(Deserialize)]
struct Golden {
    head_dim: usize,
    theta: f64,
    scale: f32,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    heads: [usize; 2],
    teacher_heads: usize,
    cap: Option<f32>,
    window: Option<usize>,
    q: Vec<f32>,
    k: Vec<f32>,
    teacher_q: Vec<f32>,
    teacher_k: Vec<f32>,
    weights: Vec<f64>,
    value: f64,
    by_q: Vec<f32>,
    by_k: Vec<f32>,
}

/// A shared prefix of three tokens, a chain of three, and two with two branches behind them.
fn batch() -> Arc<Packed> {
    let mut packed = Packed::with_prefix(&[1, 2, 3], 0);
    packed.push_chain(&[4, 5, 6], 3);
    packed.push_tree(&[7, 8], &[(9, ROOT), (1, 0), (2, ROOT)], 3);
    Arc::new(packed)
}

fn leaf(ops: &dyn Ops, values: &[f32], width: usize) -> Tensor<2> {
    let data = TensorData::new(values.to_vec(), [values.len() / width, width]);
    Tensor::from_data(data, &ops.device()).require_grad()
}

#[test]
fn a_student_is_held_against_its_teachers_rows_as_pytorch_has_it() {
    let golden: Golden = serde_json::from_str(include_str!("golden/attention_rows.json")).unwrap();
    let (ops, d) = (ops(DeviceName::Cpu).unwrap(), golden.head_dim);
    for case in &golden.cases {
        let plan = |heads, kv_heads| AttentionPlan {
            scale: golden.scale,
            softcap: case.cap,
            window: case.window,
            ..AttentionPlan::new(heads, kv_heads, d, golden.theta, batch())
        };
        let [heads, kv_heads] = case.heads;
        let their = case.teacher_heads;
        let teacher = Attending {
            q: leaf(ops.as_ref(), &case.teacher_q, their * d),
            k: leaf(ops.as_ref(), &case.teacher_k, their * d),
            plan: plan(their, their),
        };
        let (q, k) = (leaf(ops.as_ref(), &case.q, heads * d), leaf(ops.as_ref(), &case.k, kv_heads * d));
        let student = Attending { q: q.clone(), k: k.clone(), plan: plan(heads, kv_heads) };
        let held = student.held_against(&teacher.rows(), &case.weights, 0.5);
        assert!((held.value - case.value).abs() < 1e-5 * case.value, "{} for {}", held.value, case.value);
        let mut gradients = held.form.backward();
        for (leaf, want) in [(&q, &case.by_q), (&k, &case.by_k)] {
            let grad = leaf.grad_remove(&mut gradients).unwrap().into_data().try_into_vec::<f32>().unwrap();
            let size = want.iter().fold(0f32, |m, x| m.max(x.abs()));
            let gap = grad.iter().zip(want).fold(0f32, |m, (g, w)| m.max((g - w).abs()));
            assert!(gap < 2e-5 * size, "{heads} heads against {their}: {gap} of {size}");
        }
        let own = student.held_against(&student.rows(), &case.weights, 0.5);
        assert!(own.value.abs() < 1e-6, "nothing is nearer than itself: {}", own.value);
    }
}

#[test]
fn the_rows_are_those_that_attention_goes_by() {
    let (ops, d) = (ops(DeviceName::Cpu).unwrap(), 8);
    let made = |width: usize, seed: f32| -> Vec<f32> { (0..11 * width).map(|i| (i as f32 * seed).sin()).collect() };
    for (window, softcap) in [(None, None), (Some(3), Some(0.9))] {
        let plan = AttentionPlan { window, softcap, ..AttentionPlan::new(4, 2, d, 1e4, batch()) };
        let (q, k) = (leaf(ops.as_ref(), &made(32, 0.7), 32), leaf(ops.as_ref(), &made(16, 1.3), 16));
        // Values that name their token: what attention gives of them are its weights.
        let mut named = vec![0f32; 11 * 16];
        let rows = Attending { q: q.clone(), k: k.clone(), plan: plan.clone() }.rows();
        let seen = plan.batch.dense_visibility();
        let near = |i: usize, j: usize| {
            window.is_none_or(|w| plan.batch.positions[j] as usize + w > plan.batch.positions[i] as usize)
        };
        // Eight tokens at a time, for a head has eight values.
        for first in [0, 8] {
            named.fill(0.0);
            (first..11.min(first + 8)).for_each(|j| {
                named[j * 16 + j - first] = 1.0;
                named[j * 16 + 8 + j - first] = 1.0;
            });
            let out = ops.attention(q.clone(), k.clone(), leaf(ops.as_ref(), &named, 16), &plan, None);
            let out = out.into_data().try_into_vec::<f32>().unwrap();
            let mut at = 0;
            for i in 0..11 {
                let of: Vec<usize> = (0..11).filter(|&j| seen[i * 11 + j] && near(i, j)).collect();
                for head in 0..4 {
                    for j in &of {
                        let weight = rows.weights[at];
                        at += 1;
                        if (first..first + 8).contains(j) {
                            let got = out[i * 32 + head * 8 + j - first];
                            assert!((got - weight).abs() < 1e-5, "{i} {head} {j}: {got} {weight}");
                        }
                    }
                }
            }
            assert_eq!(at, rows.weights.len());
        }
    }
}
