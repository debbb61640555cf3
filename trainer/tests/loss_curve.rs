//! Fifty steps beside PyTorch + PEFT, from the same adapter and on the same batches: warm-up, cosine decay, clipping, weight
//! decay, accumulation. The yardstick is how far PyTorch's own float32 leaves its float64; the script that made the golden
//! is tests/reference/loss_curve_golden.py.
//!
//! On SmolLM2-135M, with a golden of your own:
//! `python tests/reference/loss_curve_golden.py BASE OUT`, then
//! `LIMBECK_LOSS_CURVE_BASE=BASE LIMBECK_LOSS_CURVE=OUT cargo test --release -p limbeck-trainer --test loss_curve -- --nocapture`
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may panic, and tells its figures")]

mod common;

use common::settings;
use limbeck_model::adapter::{Adapter, AdapterConfig};
use limbeck_model::decoder::Decoder;
use limbeck_model::device::{DeviceName, ops};
use limbeck_model::prompt::EncodedExample;
use limbeck_model::weights::Weights;
use limbeck_trainer::Base;
use limbeck_trainer::TrainSettings;
use limbeck_trainer::batch::TrainRow;
use limbeck_trainer::learner::Learner;
use limbeck_trainer::optimizer::{AdamWSettings, Group, adamw, clip_factor, update_of};
use limbeck_trainer::parameters::Parameters;
use limbeck_trainer::schedule::Scheduler;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Deserialize)]
struct Golden {
    steps: u64,
    warmup: u64,
    rows_a_micro_batch: usize,
    learning_rate: f64,
    weight_decay: f64,
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    max_grad_norm: f64,
    rows: Vec<Row>,
    batches: Vec<Vec<usize>>,
    /// In float64.
    losses: Vec<f64>,
    norms: Vec<f64>,
    /// How far float32 leaves that, by step, at most.
    spread: Vec<f64>,
    adapter_spread: f64,
    adapter: BTreeMap<String, Vec<f64>>,
}

#[derive(Deserialize)]
struct Row {
    ids: Vec<u32>,
    mask: Vec<bool>,
}

/// Ours stays within this many times PyTorch's own float32. Five ways of rounding are few: the largest of five is passed by a
/// sixth of the same kind in one run of six, by how much is open, and our kernels sum in another order throughout. Of the
/// small mistakes in the second test, the least is 85 times the yardstick.
const TIMES: f64 = 3.0;
/// Rounding of the loss itself: two units in the last place of float32.
const LAST_PLACES: f64 = 2.4e-7;

/// What PEFT calls "all-linear".
const LINEARS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

struct Curve {
    losses: Vec<f64>,
    /// Largest distance from the golden, in units of the yardstick so far, and where.
    worst: (f64, usize),
    /// Of the adapter at the end, relative to its largest value, in units of PyTorch's.
    adapter: Option<f64>,
}

/// Trains as `trainer::train` does, on the golden's batches; `change` may spoil the settings.
fn curve(base: &Path, golden: &Golden, start: &Adapter, change: impl FnOnce(&mut TrainSettings)) -> Curve {
    let decoder = Decoder::from_weights(&Weights::open(base).unwrap(), ops(DeviceName::Cpu).unwrap(), true).unwrap();
    let decoder = Arc::new(decoder);
    let mut s = TrainSettings {
        r: start.config.r,
        lora_alpha: start.config.lora_alpha,
        learning_rate: golden.learning_rate,
        lr_scheduler: Scheduler::Cosine,
        warmup_ratio: golden.warmup as f64 / golden.steps as f64,
        batch_size: golden.rows_a_micro_batch,
        gradient_accumulation_steps: golden.batches[0].len() / golden.rows_a_micro_batch,
        max_grad_norm: golden.max_grad_norm,
        adamw: AdamWSettings {
            beta1: golden.beta1,
            beta2: golden.beta2,
            epsilon: golden.epsilon,
            weight_decay: golden.weight_decay,
        },
        ..settings()
    };
    change(&mut s);
    let row = |row: &Row| {
        let encoded = EncodedExample { ids: row.ids.clone(), mask: row.mask.clone() };
        TrainRow::new(String::new(), encoded, 1.0)
    };
    let rows: Vec<TrainRow> = golden.rows.iter().map(row).collect();
    let config = AdapterConfig::lora("", s.r, s.lora_alpha, &LINEARS.map(String::from), false);
    let mut parameters = Parameters::init(config, &decoder, 0);
    for (path, pair) in &start.pairs {
        parameters.all.get_mut(&format!("{path}.lora_A")).unwrap().values.clone_from(&pair.a);
        parameters.all.get_mut(&format!("{path}.lora_B")).unwrap().values.clone_from(&pair.b);
    }
    assert_eq!(parameters.all.len(), 2 * start.pairs.len());
    let learner = Learner::new(Base::Frozen(&decoder), &s, &rows);
    let schedule = s.schedule(golden.steps);
    let (mut losses, mut worst, mut yardstick) = (Vec::new(), (0.0, 0), 0f64);
    for (step, batch) in golden.batches.iter().enumerate() {
        let gradients = learner.gradients(&parameters, batch, step as u64).unwrap();
        let clip = clip_factor(gradients.norm, s.max_grad_norm);
        for (name, grad) in &gradients.of {
            let p = parameters.all.get_mut(name).unwrap();
            let group = Group::of(name, schedule.rate(step as u64), s.loraplus_lr_ratio, s.adamw.weight_decay);
            adamw(&update_of(&s.adamw, &group, step as u64 + 1, clip), &mut p.values, grad, &mut p.moments);
        }
        yardstick = yardstick.max(golden.spread[step]).max(LAST_PLACES * golden.losses[step]);
        let apart = (gradients.loss - golden.losses[step]).abs() / yardstick;
        if apart.is_nan() || apart > worst.0 {
            worst = (apart, step);
        }
        losses.push(gradients.loss);
    }
    let size = golden.adapter.values().flatten().fold(0f64, |m, x| m.max(x.abs()));
    let apart = golden.adapter.iter().flat_map(|(name, want)| {
        let have = &parameters.all[name].values;
        assert_eq!(have.len(), want.len());
        have.iter().zip(want).map(|(a, b)| (f64::from(*a) - b).abs() / size)
    });
    let adapter = (size > 0.0).then(|| apart.fold(0.0, f64::max) / golden.adapter_spread);
    Curve { losses, worst, adapter }
}

fn load(folder: &Path) -> (Golden, Adapter) {
    let golden: Golden = serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
    assert!(golden.steps == 50 && golden.losses.len() == 50 && golden.spread.len() == 50);
    (golden, Adapter::load(folder).unwrap())
}

fn tiny() -> (PathBuf, Golden, Adapter) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (golden, adapter) = load(&here.join("tests/loss_curve"));
    (here.join("../model/tests/golden/families/llama"), golden, adapter)
}

#[test]
fn fifty_steps_stay_within_the_growth_of_rounding() {
    let (base, golden, adapter) = tiny();
    let clipped = golden.norms.iter().filter(|norm| **norm > golden.max_grad_norm).count();
    assert!((10..50).contains(&clipped), "clipping takes part in {clipped} of 50 steps");
    let found = curve(&base, &golden, &adapter, |_| ());
    assert!(found.losses[49] < 0.8 * found.losses[0], "it learns");
    eprintln!(
        "loss {:.4} to {:.4}; worst distance {:.2} of PyTorch's own (step {}), adapter {:.2}",
        found.losses[0],
        found.losses[49],
        found.worst.0,
        found.worst.1,
        found.adapter.unwrap()
    );
    assert!(found.worst.0 < TIMES, "step {}: {:.2} times PyTorch's own float32", found.worst.1, found.worst.0);
    assert!(found.adapter.unwrap() < TIMES, "the adapter: {:.2} times PyTorch's own", found.adapter.unwrap());
}

/// The bound can fail: small mistakes in any part of a step leave it far behind.
#[test]
fn a_small_mistake_leaves_the_bound() {
    let (base, golden, adapter) = tiny();
    type Change = fn(&mut TrainSettings);
    let mistakes: [(&str, Change); 7] = [
        ("rate, 1 in 1,000", |s| s.learning_rate *= 1.001),
        ("weight decay, none", |s| s.adamw.weight_decay = 0.0),
        ("epsilon", |s| s.adamw.epsilon = 1e-6),
        ("second moment", |s| s.adamw.beta2 = 0.9991),
        ("clipping, 1 in 1,000", |s| s.max_grad_norm *= 1.001),
        ("warm-up, a step more", |s| s.warmup_ratio += 0.02),
        ("linear decay", |s| s.lr_scheduler = Scheduler::Linear),
    ];
    for (what, change) in mistakes {
        let found = curve(&base, &golden, &adapter, change);
        assert!(found.worst.0 > TIMES || found.adapter.unwrap() > TIMES, "{what}: {:.2}", found.worst.0);
        eprintln!("{what}: {:.0} times, adapter {:.0} times", found.worst.0, found.adapter.unwrap());
    }
}

#[test]
fn a_model_of_ones_own_stays_within_the_growth_of_rounding() {
    let env = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let (Some(base), Some(folder)) = (env("LIMBECK_LOSS_CURVE_BASE"), env("LIMBECK_LOSS_CURVE")) else {
        return eprintln!("SKIPPED: LIMBECK_LOSS_CURVE_BASE and LIMBECK_LOSS_CURVE do not name a base and its golden");
    };
    let (golden, adapter) = load(&folder);
    let found = curve(&base, &golden, &adapter, |_| ());
    let largest = golden.spread.iter().copied().fold(0.0, f64::max);
    eprintln!(
        "loss {:.4} to {:.4}; PyTorch's float32 is up to {largest:.2e} off its float64, ours {:.2} times that (step {})",
        found.losses[0], found.losses[49], found.worst.0, found.worst.1
    );
    assert!(found.worst.0 < TIMES, "step {}: {:.2} times PyTorch's own float32", found.worst.1, found.worst.0);
}
