//! Full fine-tuning: which weights decay (as transformers' Trainer says), resuming to the same bits, layers that are run
//! again, and what is left behind.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Bench, die_at, files, settings};
use limbeck_artifact::dataset::Split;
use limbeck_artifact::event::{EventKind, Silent};
use limbeck_model::decoder::Decoder;
use limbeck_model::device::{DeviceName, Dtype, ops, training_ops};
use limbeck_model::prompt::{EncodedExample, TrainOn, encode_example, encode_prompt};
use limbeck_model::safetensor::SafetensorsFile;
use limbeck_model::score::LabelScorer;
use limbeck_model::weights::Weights;
use limbeck_trainer::batch::TrainRow;
use limbeck_trainer::learner::{Gradients, Learner};
use limbeck_trainer::optimizer::{AdamWSettings, Group};
use limbeck_trainer::parameters::Parameters;
use limbeck_trainer::watch::Metric;
use limbeck_trainer::{Base, Grid, HeadKind, OpenBase, TrainError, TrainReport, TrainSettings, dry_run, train};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn open(bench: &Bench, checkpoint: bool) -> OpenBase {
    let weights = Weights::open(&bench.folder.path().join("base.gguf")).unwrap();
    OpenBase { weights, ops: ops(DeviceName::Cpu).unwrap(), checkpoint, grid: None }
}

fn full() -> TrainSettings {
    let adamw = AdamWSettings { weight_decay: 0.01, ..AdamWSettings::default() };
    TrainSettings { learning_rate: 1e-3, adamw, num_epochs: 2, ..settings() }
}

fn run(bench: &Bench, name: &str, settings: &TrainSettings, base: &OpenBase) -> Result<TrainReport, TrainError> {
    train(&bench.plan(name, settings), base, &bench.tokenizer, &bench.dataset, &Silent)
}

#[test]
fn what_decays_is_what_transformers_lets_decay() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("model/tests/golden");
    for name in ["llama", "smollm2", "qwen2", "phi3", "qwen3", "gemma2", "gemma3"] {
        let text = std::fs::read(golden.join("full").join(name).join("golden.json")).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let mut want: Vec<String> = serde_json::from_value(json["decay"].clone()).unwrap();
        let all = Weights::open(&golden.join("families").join(name)).unwrap().names();
        // A head that is tied to the embedding is named there and is no weight of its own.
        want.retain(|name| all.contains(name));
        let decays = |name: &&String| Group::of(name, 1.0, 1.0, 0.1).weight_decay == 0.1;
        let got: Vec<String> = all.iter().filter(decays).cloned().collect();
        assert_eq!(got, want, "{name}");
        assert!(got.len() < all.len() && all.iter().all(|name| Group::of(name, 0.5, 9.0, 0.1).learning_rate == 0.5));
    }
}

fn rows(bench: &Bench) -> Vec<TrainRow> {
    let encode = |e: &limbeck_artifact::dataset::Example| {
        encode_example(&bench.tokenizer, &e.messages, &e.answer(), TrainOn::Last, 256).unwrap()
    };
    let row = |e| TrainRow::new(String::new(), encode(e), e.weight);
    bench.dataset.rows(Split::Train).iter().map(row).collect()
}

fn gradients(base: Base, s: &TrainSettings, rows: &[TrainRow], parameters: &Parameters) -> Gradients {
    let learner = Learner::new(base, s, rows);
    learner.gradients(parameters, &[0, 3, 5, 7, 8, 11, 14, 18], 3).unwrap()
}

#[track_caller]
fn same(got: &Gradients, want: &Gradients, what: &str) {
    assert!(got.of.keys().eq(want.of.keys()), "{what}");
    let differ = got.of.iter().filter(|(name, grad)| want.of[*name] != **grad).map(|(name, _)| name);
    assert_eq!(differ.collect::<Vec<_>>(), Vec::<&String>::new(), "{what}");
    assert_eq!((got.loss, got.norm), (want.loss, want.norm), "{what}");
}

/// Multiples of a twentieth, but for norms.
struct Twentieths;

impl Grid for Twentieths {
    fn rounded(&self, name: &str, values: &[f32]) -> Option<Vec<f32>> {
        (!name.ends_with("norm.weight")).then(|| values.iter().map(|v| (v * 20.0).round() / 20.0).collect())
    }
}

/// A step on a grid is a step on the rounded weights, and what it moves are the masters behind them.
#[test]
fn a_step_on_a_grid_is_one_on_rounded_weights() {
    let bench = Bench::new();
    let rows = rows(&bench);
    let (plain, mut on_grid) = (open(&bench, false), open(&bench, false));
    on_grid.grid = Some(Arc::new(Twentieths));
    let parameters = Parameters::full(&plain.weights).unwrap();
    let mut rounded = parameters.clone();
    for (name, p) in &mut rounded.all {
        p.values = Twentieths.rounded(name, &p.values).unwrap_or_else(|| p.values.clone());
    }
    assert_ne!(rounded, parameters);
    let s = full();
    let want = gradients(Base::Open(&plain), &s, &rows, &rounded);
    same(&gradients(Base::Open(&on_grid), &s, &rows, &parameters), &want, "on the grid");
    assert_ne!(gradients(Base::Open(&plain), &s, &rows, &parameters).loss, want.loss);
    // The look at the valid split is at the rounded weights, too; the masters that are left are between them.
    let report = run(&bench, "grid", &s, &on_grid).unwrap();
    let trained = Weights::open(&bench.folder.path().join("base.gguf")).unwrap();
    let trained = trained.with_tuned(&bench.folder.path().join("grid/model")).unwrap();
    let masters = trained.load("model.layers.0.mlp.up_proj.weight").unwrap().data;
    assert!(masters.iter().any(|v| (v * 20.0 - (v * 20.0).round()).abs() > 0.01));
    assert!(
        report.valid_loss.unwrap()
            < run(&bench, "zero", &TrainSettings { num_epochs: 1, learning_rate: 1e-9, ..full() }, &on_grid)
                .unwrap()
                .valid_loss
                .unwrap()
    );
}

#[test]
fn layers_that_are_run_again_give_the_same_bits() {
    let bench = Bench::new();
    let rows = rows(&bench);
    let (kept, again) = (open(&bench, false), open(&bench, true));
    let parameters = Parameters::full(&kept.weights).unwrap();
    assert_eq!(parameters.count() as u64, kept.weights.config().parameters());
    for (batch_size, gradient_accumulation_steps) in [(8, 1), (3, 3)] {
        let s = TrainSettings { batch_size, gradient_accumulation_steps, ..full() };
        let whole = gradients(Base::Open(&kept), &s, &rows, &parameters);
        assert!(whole.of.len() == parameters.all.len() && whole.norm > 0.0);
        same(&gradients(Base::Open(&again), &s, &rows, &parameters), &whole, &format!("{batch_size} rows at once"));
    }
    // The same for adapters on layers that are composed: DoRA's, dropout's.
    let weights = Weights::open(&bench.folder.path().join("base.gguf")).unwrap();
    let decoder = |checkpoint| {
        let ops = ops(DeviceName::Cpu).unwrap();
        let decoder = Decoder::from_weights(&weights, ops, true).unwrap();
        Arc::new(decoder.with_checkpointing(checkpoint))
    };
    let (kept, again) = (decoder(false), decoder(true));
    for (use_dora, lora_dropout) in [(true, 0.0), (false, 0.2), (true, 0.2)] {
        let s = TrainSettings { use_dora, lora_dropout, ..settings() };
        let config = limbeck_model::adapter::AdapterConfig {
            use_dora,
            ..limbeck_model::adapter::AdapterConfig::lora("tiny", s.r, s.lora_alpha, &s.target_modules, false)
        };
        let mut parameters = Parameters::init(config, &kept, 7);
        parameters
            .all
            .values_mut()
            .flat_map(|p| &mut p.values)
            .enumerate()
            .for_each(|(i, x)| *x += (i % 7) as f32 * 0.01);
        let whole = gradients(Base::Frozen(&kept), &s, &rows, &parameters);
        let what = format!("DoRA {use_dora}, dropout {lora_dropout}");
        same(&gradients(Base::Frozen(&again), &s, &rows, &parameters), &whole, &what);
    }
}

#[test]
fn eight_rows_at_once_are_eight_times_one() {
    let bench = Bench::new();
    let (rows, base) = (rows(&bench), open(&bench, false));
    let parameters = Parameters::full(&base.weights).unwrap();
    let of = |batch_size: usize| {
        let s = TrainSettings { batch_size, gradient_accumulation_steps: 8 / batch_size, ..full() };
        gradients(Base::Open(&base), &s, &rows, &parameters)
    };
    let (whole, single) = (of(8), of(1));
    for (name, grad) in &whole.of {
        let size = grad.iter().fold(1e-6f32, |m, x| m.max(x.abs()));
        let gap = grad.iter().zip(&single.of[name]).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(gap < 2e-5 * size, "{name}: {gap} of {size}");
    }
}

#[test]
fn killed_at_any_event_it_goes_on_to_the_same_bytes() {
    std::panic::set_hook(Box::new(|_| ()));
    let bench = Bench::new();
    let s = TrainSettings {
        gradient_accumulation_steps: 2,
        batch_size: 2,
        eval_steps: 3,
        save_steps: 2,
        save_total_limit: 1,
        metric_for_best_model: Metric::Accuracy,
        load_best_model_at_end: true,
        ..full()
    };
    // In bfloat16, as training goes where a processor has it.
    for dtype in [Dtype::Fp32, Dtype::Bf16] {
        let base = OpenBase { ops: training_ops(DeviceName::Cpu, dtype).unwrap(), ..open(&bench, false) };
        let report = run(&bench, &format!("unbroken-{dtype:?}"), &s, &base).unwrap();
        let want = files(&bench.folder.path().join(format!("unbroken-{dtype:?}")));
        assert!(want.contains_key(Path::new("model/model.safetensors")));
        assert!(!want.keys().any(|path| path.starts_with("adapter")));
        let events = AtomicUsize::new(0);
        let count = |_: EventKind| {
            events.fetch_add(1, Ordering::Relaxed);
        };
        let plan = bench.plan(&format!("counted-{dtype:?}"), &s);
        train(&plan, &base, &bench.tokenizer, &bench.dataset, &count).unwrap();
        let events = events.into_inner();
        assert!(events > 15, "{events}");
        for n in (1..=events).step_by(5) {
            let plan = bench.plan(&format!("killed-{dtype:?}-{n}"), &s);
            let again =
                || catch_unwind(AssertUnwindSafe(|| train(&plan, &base, &bench.tokenizer, &bench.dataset, &die_at(n))));
            assert!(again().is_err(), "killed at event {n}");
            let _ = again();
            let resumed = train(&plan, &base, &bench.tokenizer, &bench.dataset, &Silent).unwrap();
            assert_eq!(resumed, report, "after event {n}");
            assert_eq!(files(&plan.out), want, "after event {n}");
        }
    }
    let _ = std::panic::take_hook();
}

#[test]
fn it_learns_every_weight_and_leaves_a_model() {
    let bench = Bench::new();
    let base = open(&bench, false);
    let s = TrainSettings { num_epochs: 6, ..full() };
    let report = run(&bench, "full", &s, &base).unwrap();
    assert_eq!(report.trained_parameters, base.weights.config().parameters());
    let log = std::fs::read_to_string(bench.folder.path().join("full/loss.jsonl")).unwrap();
    let loss = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64().unwrap();
    let (first, last) = (loss(log.lines().next().unwrap()), loss(log.lines().last().unwrap()));
    assert!(last < 0.5 * first, "{first} to {last}");
    let folder = bench.folder.path().join("full/model");
    let file = SafetensorsFile::open(&folder.join("model.safetensors")).unwrap();
    let tuned = Weights::open(&bench.folder.path().join("base.gguf")).unwrap().with_tuned(&folder).unwrap();
    for name in base.weights.names() {
        assert_eq!(file.shapes()[&name], base.weights.shape(&name).unwrap());
        assert_ne!(tuned.load(&name).unwrap().data, base.weights.load(&name).unwrap().data, "{name}");
    }
}

/// Rows whose answer is a class, and a head that is not zero.
fn classified(bench: &Bench, base: &OpenBase) -> (Vec<TrainRow>, Parameters) {
    let row = |(i, e): (usize, &limbeck_artifact::dataset::Example)| {
        let prompt = encode_prompt(&bench.tokenizer, &e.messages).unwrap();
        TrainRow::new(String::new(), EncodedExample::of(prompt, &[i as u32 % 3]), e.weight)
    };
    let rows = bench.dataset.rows(Split::Train).iter().enumerate().map(row).collect();
    let mut parameters = Parameters::full_classifier(&base.weights, &bench.dataset.card.labels).unwrap();
    let score = &mut parameters.all.get_mut("score.weight").unwrap().values;
    score.iter_mut().enumerate().for_each(|(i, x)| *x = (i as f32 * 0.7).sin() * 0.3);
    (rows, parameters)
}

#[test]
fn a_head_over_all_weights_has_the_gradient_of_its_loss() {
    let bench = Bench::new();
    let (kept, again) = (open(&bench, false), open(&bench, true));
    let (rows, mut parameters) = classified(&bench, &kept);
    let s = TrainSettings { head: HeadKind::Classification, batch_size: 8, ..full() };
    let whole = gradients(Base::Open(&kept), &s, &rows, &parameters);
    same(&gradients(Base::Open(&again), &s, &rows, &parameters), &whole, "layers that are run again");
    let parts = TrainSettings { batch_size: 2, gradient_accumulation_steps: 4, ..s.clone() };
    let cut = gradients(Base::Open(&kept), &parts, &rows, &parameters);
    assert!((cut.loss - whole.loss).abs() < 1e-5);
    for name in ["score.weight", "model.norm.weight", "model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"]
    {
        let grad = &whole.of[name];
        let at = (0..grad.len()).max_by(|a, b| grad[*a].abs().total_cmp(&grad[*b].abs())).unwrap();
        assert!((cut.of[name][at] - grad[at]).abs() < 1e-4 * grad[at].abs(), "{name} in parts");
        let mut moved = |by: f32| {
            parameters.all.get_mut(name).unwrap().values[at] += by;
            let loss = gradients(Base::Open(&kept), &s, &rows, &parameters).loss;
            parameters.all.get_mut(name).unwrap().values[at] -= by;
            loss
        };
        let difference = (moved(1e-2) - moved(-1e-2)) / 2e-2;
        let gap = (difference - f64::from(grad[at])).abs();
        assert!(gap < 2e-2 * f64::from(grad[at].abs()) + 2e-4, "{name}: {difference} for {}", grad[at]);
    }
}

#[test]
fn a_head_is_learnt_beside_all_weights_and_found_beside_them() {
    let bench = Bench::new();
    let base = open(&bench, false);
    let s = TrainSettings {
        head: HeadKind::Classification,
        num_epochs: 12,
        learning_rate: 3e-3,
        batch_size: 4,
        save_steps: 5,
        ..full()
    };
    let report = run(&bench, "headed", &s, &base).unwrap();
    let hidden = base.weights.config().hidden_size as u64;
    assert_eq!(report.trained_parameters, base.weights.config().parameters() + 3 * hidden);
    assert!(report.final_loss < 0.8 * 3f64.ln() && report.valid_accuracy > Some(0.5), "{report:?}");

    // The base's file and the folder together are what the valid split was scored by.
    let (file, folder) = (bench.folder.path().join("base.gguf"), bench.folder.path().join("headed/model"));
    let (weights, adapter) = Weights::open_trained::<Box<dyn std::error::Error>>(&file, Some(&folder)).unwrap();
    let (head, labels) = (adapter.unwrap().head.unwrap(), &bench.dataset.card.labels);
    assert_eq!((&head.labels, head.classes()), (labels, 3));
    let decoder = Arc::new(Decoder::from_weights(&weights, base.ops.clone(), false).unwrap());
    let frozen = head.freeze(base.ops.as_ref(), labels).unwrap();
    let scorer = LabelScorer::by_head(decoder, bench.tokenizer.clone(), labels, frozen).unwrap();
    let (mut loss, mut weight) = (0f64, 0f64);
    for e in bench.dataset.rows(Split::Valid) {
        let right = labels.iter().position(|label| *label == e.target).unwrap();
        loss -= f64::from(e.weight) * f64::from(scorer.score(&e.messages).unwrap()[right]).ln();
        weight += f64::from(e.weight);
    }
    let (got, want) = (report.valid_loss.unwrap(), loss / weight);
    assert!((got - want).abs() < 1e-4 * want + 1e-6, "{got} for {want}");

    // Killed, it ends in the same bytes.
    let dies = catch_unwind(AssertUnwindSafe(|| {
        train(&bench.plan("killed", &s), &base, &bench.tokenizer, &bench.dataset, &die_at(17))
    }));
    assert!(dies.is_err());
    assert_eq!(run(&bench, "killed", &s, &base).unwrap(), report);
    assert!(files(&bench.folder.path().join("killed")) == files(&bench.folder.path().join("headed")));
}

#[test]
fn a_dry_run_counts_what_it_will_hold() {
    let bench = Bench::new();
    let base = open(&bench, true);
    let plan = bench.plan("rehearsed", &full());
    let found = dry_run(&plan, &base, &bench.tokenizer, &bench.dataset, &Silent).unwrap();
    let n = base.weights.config().parameters();
    assert_eq!((found.trained_parameters, found.frozen_parameters), (n, 0));
    assert_eq!((found.state_bytes, found.checkpoint_bytes, found.checkpoints_kept), (20 * n, 12 * n, 2));
    assert!(!plan.out.exists() && found.loss.is_finite());
    let report = run(&bench, "real", &TrainSettings { save_steps: 4, ..full() }, &base).unwrap();
    let saved = files(&bench.folder.path().join("real/checkpoints"));
    let newest = saved.keys().rfind(|path| path.extension().is_some_and(|e| e == "safetensors")).unwrap();
    let gap = saved[newest].len() as u64 - found.checkpoint_bytes;
    assert!(report.steps == found.steps && gap < 16 * 1024, "{gap} bytes of names");
    let error = run(&bench, "turbo", &TrainSettings { turbo_layers: 1, ..full() }, &base).unwrap_err().to_string();
    assert!(error.contains("trains all weights") && error.contains("train.turbo_layers = 0"), "{error}");
}
