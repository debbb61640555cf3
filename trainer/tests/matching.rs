//! Matching a teacher's hidden states: the loss against PyTorch, its gradient through the whole student, and the whole training.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use burn::tensor::{Device, Tensor, TensorData};
use common::{Bench, die_at, files, settings};
use limbeck_artifact::dataset::Split;
use limbeck_artifact::event::{EventKind, Silent};
use limbeck_model::adapter::AdapterConfig;
use limbeck_model::config::DecoderConfig;
use limbeck_model::decoder::{Decoder, LoraSet};
use limbeck_model::device::{DeviceName, Dtype, ops, training_ops};
use limbeck_model::ops::Ops;
use limbeck_model::ops::stock::StockOps;
use limbeck_model::prompt::{TrainOn, encode_example};
use limbeck_model::weights::Weights;
use limbeck_trainer::batch::TrainRow;
use limbeck_trainer::learner::{Gradients, Learner};
use limbeck_trainer::matching::term;
use limbeck_trainer::parameters::{Parameter, Parameters};
use limbeck_trainer::turbo::{CacheDtype, HiddenCache};
use limbeck_trainer::{Base, Matched, OpenBase, StateLoss, TrainError, TrainPlan, TrainReport, TrainSettings, train};
use serde::Deserialize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Deserialize)]
struct Golden {
    tokens: usize,
    width: usize,
    wider: usize,
    scale: f32,
    hidden: Vec<f32>,
    map: Vec<f32>,
    same: Vec<f32>,
    teacher: Vec<f32>,
    weights: Vec<f64>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    loss: StateLoss,
    mapped: bool,
    value: f64,
    by_hidden: Vec<f32>,
    by_map: Vec<f32>,
}

#[test]
fn the_loss_and_its_gradients_are_pytorchs() {
    let golden: Golden = serde_json::from_str(include_str!("hidden_states.json")).unwrap();
    let stock = StockOps::new(Device::flex().autodiff());
    let every: [Arc<dyn Ops>; 2] = [ops(DeviceName::Cpu).unwrap(), Arc::new(stock)];
    for (ops, case) in every.iter().flat_map(|ops| golden.cases.iter().map(move |case| (ops, case))) {
        let leaf = |values: &[f32], dims: [usize; 2]| -> Tensor<2> {
            Tensor::from_data(TensorData::new(values.to_vec(), dims), &ops.device()).require_grad()
        };
        let hidden = leaf(&golden.hidden, [golden.tokens, golden.width]);
        let map = leaf(&golden.map, [golden.wider, golden.width]);
        let (want, through) = match case.mapped {
            false => (&golden.same, None),
            true => (&golden.teacher, Some(&map)),
        };
        let found = term(ops.as_ref(), &hidden, through, want, &golden.weights, (case.loss, golden.scale));
        let what = format!("{:?}, mapped {}", case.loss, case.mapped);
        assert!((found.value - case.value).abs() < 1e-6 * case.value, "{what}: {} for {}", found.value, case.value);
        let mut gradients = found.form.backward();
        let mut close = |leaf: &Tensor<2>, want: &[f32]| {
            let grad = leaf.grad_remove(&mut gradients).map(|g| g.into_data().try_into_vec::<f32>().unwrap());
            let grad = grad.unwrap_or_default();
            assert_eq!(grad.len(), want.len(), "{what}");
            let size = want.iter().fold(0f32, |m, x| m.max(x.abs()));
            assert!(grad.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-5 * size), "{what}: {grad:?} for {want:?}");
        };
        close(&hidden, &case.by_hidden);
        close(&map, &case.by_map);
    }
}

/// A teacher of six layers, and of another width where one is given.
fn teacher(bench: &Bench, ops: Arc<dyn Ops>, width: Option<usize>) -> Arc<Decoder> {
    let file = bench.folder.path().join("teacher.gguf");
    if !file.is_file() {
        common::write_base(&file, 6, 9);
    }
    let weights = Weights::open(&file).unwrap();
    let Some(width) = width else { return Arc::new(Decoder::from_weights(&weights, ops, false).unwrap()) };
    let own = weights.config().hidden_size;
    let config = DecoderConfig { hidden_size: width, ..weights.config().clone() };
    let mut load = |name: &str| {
        let dense = weights.load(name).unwrap();
        let narrowed = |n: &usize| if *n == own { width } else { *n };
        // Heads of 4 × 16 go with the old width: what comes out of q and into o stays.
        let shape: Vec<usize> = match dense.shape[..] {
            [rows, columns] if name.contains("q_proj") => vec![rows, narrowed(&columns)],
            [rows, columns] if name.contains("o_proj") => vec![narrowed(&rows), columns],
            _ => dense.shape.iter().map(narrowed).collect(),
        };
        let n = shape.iter().product();
        Ok((shape, dense.data[..n].to_vec()))
    };
    Arc::new(Decoder::load(&config, ops, false, &mut load).unwrap())
}

const PAIRS: [(usize, usize); 2] = [(0, 2), (2, 5)];

fn matched(bench: &Bench, loss: StateLoss, weight: f32, width: Option<usize>) -> Matched {
    let teacher = teacher(bench, ops(DeviceName::Cpu).unwrap(), width);
    Matched { teacher, lora: LoraSet::new(), layers: PAIRS.to_vec(), loss, weight, attention: 0.0 }
}

fn rows(bench: &Bench) -> Vec<TrainRow> {
    let encode = |e: &limbeck_artifact::dataset::Example| {
        encode_example(&bench.tokenizer, &e.messages, &e.answer(), TrainOn::Last, 256).unwrap()
    };
    bench.dataset.rows(Split::Train).iter().map(|e| TrainRow::new(String::new(), encode(e), e.weight)).collect()
}

fn open(bench: &Bench, checkpoint: bool) -> OpenBase {
    let weights = Weights::open(&bench.folder.path().join("base.gguf")).unwrap();
    OpenBase { weights, ops: ops(DeviceName::Cpu).unwrap(), checkpoint, grid: None }
}

/// An adapter after some training, with maps from the width 64 to `wide`.
fn adapter(bench: &Bench, s: &TrainSettings, wide: Option<usize>) -> Parameters {
    let config = AdapterConfig {
        use_dora: s.use_dora,
        ..AdapterConfig::lora("tiny", s.r, s.lora_alpha, &s.target_modules, false)
    };
    let mut parameters = Parameters::init(config, &bench.decoder, 7);
    for (layer, _) in PAIRS.iter().filter(|_| wide.is_some()) {
        let shape = [wide.unwrap(), 64];
        let n = shape[0] * shape[1];
        let map = Parameter { values: vec![0.0; n], shape, moments: limbeck_trainer::optimizer::Moments::zeros(n) };
        parameters.all.insert(format!("hidden_map.{layer}"), map);
    }
    stir(&mut parameters);
    parameters
}

fn stir(parameters: &mut Parameters) {
    let mut z = 1u64;
    for x in parameters.all.values_mut().flat_map(|p| &mut p.values) {
        z = z.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        *x += (z >> 40) as f32 / (1u64 << 24) as f32 * 0.2 - 0.1;
    }
}

const ROWS: [usize; 8] = [0, 3, 5, 7, 8, 11, 14, 18];

fn gradients(base: Base, s: &TrainSettings, rows: &[TrainRow], p: &Parameters, matched: Option<&Matched>) -> Gradients {
    let learner = Learner { matched, ..Learner::new(base, s, rows) };
    learner.gradients(p, &ROWS, 3).unwrap()
}

#[track_caller]
fn same(got: &Gradients, want: &Gradients, what: &str) {
    assert!(got.of.keys().eq(want.of.keys()), "{what}");
    let differ = got.of.iter().filter(|(name, grad)| want.of[*name] != **grad).map(|(name, _)| name);
    assert_eq!(differ.collect::<Vec<_>>(), Vec::<&String>::new(), "{what}");
    let losses = |g: &Gradients| (g.loss, g.hidden_loss, g.attention_loss, g.norm);
    assert_eq!(losses(got), losses(want), "{what}");
}

#[test]
fn the_gradient_through_the_whole_student_is_that_of_the_loss() {
    let bench = Bench::new();
    let rows = rows(&bench);
    let s = TrainSettings { batch_size: 8, ..settings() };
    for (loss, weight) in [(StateLoss::Relative, 2.0), (StateLoss::Mse, 30.0), (StateLoss::Cosine, 2.0)] {
        for wide in [None, Some(32)] {
            let matched = matched(&bench, loss, weight, wide);
            let mut parameters = adapter(&bench, &s, wide);
            let base = Base::Frozen(&bench.decoder);
            let whole = gradients(base, &s, &rows, &parameters, Some(&matched));
            let plain = gradients(base, &s, &rows, &parameters, None);
            assert!(whole.hidden_loss > 0.01, "{loss:?}: {}", whole.hidden_loss);
            assert!((whole.loss - plain.loss - f64::from(weight) * whole.hidden_loss).abs() < 1e-6);
            let lora = ["model.layers.0.self_attn.q_proj.lora_B", "model.layers.1.mlp.up_proj.lora_A"];
            let maps = ["hidden_map.0", "hidden_map.2"].into_iter().filter(|_| wide.is_some());
            for name in lora.into_iter().chain(maps) {
                let (grad, of_answers) = (&whole.of[name], plain.of.get(name));
                let own = |at: usize| grad[at] - of_answers.map_or(0.0, |g| g[at]);
                let at = (0..grad.len()).max_by(|a, b| own(*a).abs().total_cmp(&own(*b).abs())).unwrap();
                let mut moved = |by: f32| {
                    parameters.all.get_mut(name).unwrap().values[at] += by;
                    let loss = gradients(base, &s, &rows, &parameters, Some(&matched)).loss;
                    parameters.all.get_mut(name).unwrap().values[at] -= by;
                    loss
                };
                let difference = (moved(1e-2) - moved(-1e-2)) / 2e-2;
                let gap = (difference - f64::from(grad[at])).abs();
                assert!(own(at).abs() > 1e-4, "{name}: nothing comes of the states");
                assert!(gap < 2e-2 * f64::from(own(at).abs()), "{loss:?} {name}: {difference} for {}", grad[at]);
            }
        }
    }
}

#[test]
fn so_it_is_with_what_layers_attend_to() {
    let bench = Bench::new();
    let rows = rows(&bench);
    let s = TrainSettings { batch_size: 8, ..settings() };
    for weight in [0.0, 1.0] {
        let matched = Matched { attention: 20.0, ..matched(&bench, StateLoss::Relative, weight, None) };
        let mut parameters = adapter(&bench, &s, None);
        let base = Base::Frozen(&bench.decoder);
        let whole = gradients(base, &s, &rows, &parameters, Some(&matched));
        let without = gradients(base, &s, &rows, &parameters, Some(&Matched { attention: 0.0, ..matched.clone() }));
        assert!(whole.attention_loss > 1e-3 && without.attention_loss == 0.0, "{}", whole.attention_loss);
        assert!((whole.loss - without.loss - 20.0 * whole.attention_loss).abs() < 1e-6);
        assert_eq!(whole.hidden_loss > 0.0, weight > 0.0, "states cost nothing where they count for nothing");
        for name in ["model.layers.0.self_attn.q_proj.lora_B", "model.layers.1.mlp.up_proj.lora_A"] {
            let (grad, other) = (&whole.of[name], &without.of[name]);
            let own = |at: usize| grad[at] - other[at];
            let at = (0..grad.len()).max_by(|a, b| own(*a).abs().total_cmp(&own(*b).abs())).unwrap();
            let mut moved = |by: f32| {
                parameters.all.get_mut(name).unwrap().values[at] += by;
                let loss = gradients(base, &s, &rows, &parameters, Some(&matched)).loss;
                parameters.all.get_mut(name).unwrap().values[at] -= by;
                loss
            };
            let difference = (moved(1e-2) - moved(-1e-2)) / 2e-2;
            let gap = (difference - f64::from(grad[at])).abs();
            assert!(own(at).abs() > 1e-4, "{name}: nothing comes of attention: {}", own(at));
            assert!(gap < 2e-2 * f64::from(grad[at].abs()) + 2e-4, "{name}: {difference} for {}", grad[at]);
        }
        let cut = TrainSettings { batch_size: 1, gradient_accumulation_steps: 8, ..s.clone() };
        let cut = gradients(base, &cut, &rows, &parameters, Some(&matched));
        assert!((cut.attention_loss - whole.attention_loss).abs() < 1e-5 * whole.attention_loss);
        assert!((cut.norm / whole.norm - 1.0).abs() < 1e-4, "{} {}", cut.norm, whole.norm);
    }
}

#[test]
fn layers_that_are_run_again_give_the_same_bits() {
    let bench = Bench::new();
    let rows = rows(&bench);
    for (wide, attention) in [(None, 0.0), (Some(32), 0.0), (None, 2.0), (Some(32), 2.0)] {
        let matched = Matched { attention, ..matched(&bench, StateLoss::Relative, 1.0, wide) };
        let (kept, again) = (open(&bench, false), open(&bench, true));
        let mut parameters = Parameters::full(&kept.weights).unwrap();
        parameters
            .all
            .extend(adapter(&bench, &settings(), wide).all.into_iter().filter(|(name, _)| name.starts_with("hidden")));
        let s = TrainSettings { batch_size: 3, gradient_accumulation_steps: 3, learning_rate: 1e-3, ..settings() };
        let whole = gradients(Base::Open(&kept), &s, &rows, &parameters, Some(&matched));
        assert!(whole.of.len() == parameters.all.len() && whole.hidden_loss > 0.0);
        same(&gradients(Base::Open(&again), &s, &rows, &parameters, Some(&matched)), &whole, "all weights");
        // Layers as one op that runs itself again, and layers that are composed.
        let weights = Weights::open(&bench.folder.path().join("base.gguf")).unwrap();
        let decoder = Decoder::from_weights(&weights, ops(DeviceName::Cpu).unwrap(), true).unwrap();
        let again = Arc::new(decoder.with_checkpointing(true));
        for (use_dora, lora_dropout) in [(false, 0.0), (true, 0.0), (false, 0.2)] {
            let s = TrainSettings { use_dora, lora_dropout, ..s.clone() };
            let parameters = adapter(&bench, &s, wide);
            let whole = gradients(Base::Frozen(&bench.decoder), &s, &rows, &parameters, Some(&matched));
            let what = format!("DoRA {use_dora}, dropout {lora_dropout}");
            same(&gradients(Base::Frozen(&again), &s, &rows, &parameters, Some(&matched)), &whole, &what);
        }
    }
}

#[test]
fn how_a_step_is_cut_changes_nothing_but_rounding() {
    let bench = Bench::new();
    let rows = rows(&bench);
    let matched = matched(&bench, StateLoss::Relative, 3.0, None);
    let s = settings();
    let parameters = adapter(&bench, &s, None);
    let of = |batch_size: usize| {
        let s = TrainSettings { batch_size, gradient_accumulation_steps: 8 / batch_size, ..s.clone() };
        gradients(Base::Frozen(&bench.decoder), &s, &rows, &parameters, Some(&matched))
    };
    // Eight rows share their beginning; alone each has it for itself.
    let whole = of(8);
    for batch_size in [4, 1] {
        let cut = of(batch_size);
        assert!((cut.hidden_loss - whole.hidden_loss).abs() < 1e-6 * whole.hidden_loss);
        for (name, grad) in &whole.of {
            let size = grad.iter().fold(1e-6f32, |m, x| m.max(x.abs()));
            let gap = grad.iter().zip(&cut.of[name]).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(gap < 2e-5 * size, "{name}: {gap} of {size}");
        }
    }
}

#[test]
fn states_from_the_cache_below_the_adapted_layers_are_the_same() {
    let bench = Bench::new();
    let rows = rows(&bench);
    let s = TrainSettings { turbo_layers: 2, ..settings() };
    let mut parameters = adapter(&bench, &s, None);
    parameters.all.retain(|name, _| !name.contains("layers.0."));
    let matched = Matched { layers: vec![(1, 2), (2, 5)], ..matched(&bench, StateLoss::Cosine, 1.0, None) };
    let cache = HiddenCache::fill(&bench.decoder, &rows, 1, CacheDtype::F32).unwrap();
    let of = |cache| {
        let base = Base::Frozen(&bench.decoder);
        let learner = Learner { cache, matched: Some(&matched), ..Learner::new(base, &s, &rows) };
        learner.gradients(&parameters, &ROWS, 3).unwrap()
    };
    let (with, without) = (of(Some(&cache)), of(None));
    assert!((with.loss - without.loss).abs() < 1e-6 && (with.norm / without.norm - 1.0).abs() < 1e-5);
}

fn run(bench: &Bench, plan: &TrainPlan, base: Base) -> Result<TrainReport, TrainError> {
    train(plan, base, &bench.tokenizer, &bench.dataset, &Silent)
}

#[test]
fn without_weight_it_is_the_training_without_a_teacher() {
    let bench = Bench::new();
    let s = settings();
    let plain = bench.plan("plain", &s);
    run(&bench, &plain, Base::Frozen(&bench.decoder)).unwrap();
    let matched = Some(matched(&bench, StateLoss::Relative, 0.0, None));
    let none = TrainPlan { matched, ..bench.plan("none", &s) };
    let report = run(&bench, &none, Base::Frozen(&bench.decoder)).unwrap();
    assert!(report.final_hidden_loss > Some(0.1), "it is measured all the same");
    let adapter = |plan: &TrainPlan| std::fs::read(plan.out.join("adapter/adapter_model.safetensors")).unwrap();
    assert_eq!(adapter(&plain), adapter(&none));
    let log = std::fs::read_to_string(plain.out.join("loss.jsonl")).unwrap();
    assert!(!log.contains("hidden_loss"), "a log of before has no more in it");
}

#[test]
fn killed_at_any_event_it_goes_on_to_the_same_bytes() {
    std::panic::set_hook(Box::new(|_| ()));
    let bench = Bench::new();
    let s = TrainSettings { batch_size: 2, gradient_accumulation_steps: 2, eval_steps: 3, num_epochs: 2, ..settings() };
    for dtype in [Dtype::Fp32, Dtype::Bf16] {
        let own = training_ops(DeviceName::Cpu, dtype).unwrap();
        let weights = Weights::open(&bench.folder.path().join("base.gguf")).unwrap();
        let decoder = Arc::new(Decoder::from_weights(&weights, own.clone(), true).unwrap());
        // A teacher of another width: its maps are of the checkpoint, too.
        let matched =
            Matched { teacher: teacher(&bench, own, Some(32)), ..matched(&bench, StateLoss::Relative, 1.0, None) };
        let plan =
            |name: String| TrainPlan { matched: Some(matched.clone()), ..bench.plan(&format!("{name}-{dtype:?}"), &s) };
        let events = AtomicUsize::new(0);
        let count = |_: EventKind| {
            events.fetch_add(1, Ordering::Relaxed);
        };
        let unbroken = plan("unbroken".to_owned());
        let report = train(&unbroken, &decoder, &bench.tokenizer, &bench.dataset, &count).unwrap();
        assert!(
            report.trained_parameters as usize == adapter(&bench, &s, None).count(),
            "the maps are not the model's"
        );
        let want = files(&unbroken.out);
        let shipped = String::from_utf8_lossy(&want[Path::new("adapter/adapter_model.safetensors")]).into_owned();
        assert!(!shipped.contains("hidden_map") && shipped.contains("lora_A"));
        for n in (1..=events.into_inner()).step_by(7) {
            let plan = plan(format!("killed-{n}"));
            let again = || {
                catch_unwind(AssertUnwindSafe(|| train(&plan, &decoder, &bench.tokenizer, &bench.dataset, &die_at(n))))
            };
            assert!(again().is_err(), "killed at event {n}");
            let _ = again();
            assert_eq!(train(&plan, &decoder, &bench.tokenizer, &bench.dataset, &Silent).unwrap(), report);
            assert_eq!(files(&plan.out), want, "after event {n}");
        }
    }
    let _ = std::panic::take_hook();
}

#[test]
fn a_student_comes_near_its_teacher() {
    let bench = Bench::new();
    let base = open(&bench, false);
    let s = TrainSettings { num_epochs: 8, learning_rate: 1e-3, ..settings() };
    for wide in [None, Some(32)] {
        let of = |weight: f32| {
            let matched = matched(&bench, StateLoss::Relative, weight, wide);
            let plan = TrainPlan { matched: Some(matched), ..bench.plan(&format!("full-{wide:?}-{weight}"), &s) };
            let report = run(&bench, &plan, Base::Open(&base)).unwrap();
            assert_eq!(report.trained_parameters, base.weights.config().parameters());
            let file = std::fs::read(plan.out.join("model/model.safetensors")).unwrap();
            assert!(!String::from_utf8_lossy(&file).contains("hidden_map"), "a model keeps no map");
            report.final_hidden_loss.unwrap()
        };
        let (without, with) = (of(0.0), of(10.0));
        assert!(with < 0.7 * without, "{wide:?}: {with}, {without} where it has no weight");
    }
}

#[test]
fn layers_that_are_not_there_are_refused() {
    let bench = Bench::new();
    let refused = |layers: &[(usize, usize)], s: TrainSettings| {
        let matched = Matched { layers: layers.to_vec(), ..matched(&bench, StateLoss::Relative, 1.0, None) };
        let plan = TrainPlan { matched: Some(matched), ..bench.plan("refused", &s) };
        run(&bench, &plan, Base::Frozen(&bench.decoder)).unwrap_err().to_string()
    };
    assert!(refused(&[(3, 5)], settings()).contains("layer 3 is asked for, and the student has 3 layers"));
    assert!(refused(&[(2, 6)], settings()).contains("layer 6 of the teacher is asked for, which has 6"));
    assert!(refused(&[], settings()).contains("no layer is named"));
    assert!(refused(&[(2, 5), (1, 2)], settings()).contains("not in their order"));
    let turbo = TrainSettings { turbo_layers: 1, ..settings() };
    assert!(refused(&[(1, 2)], turbo).contains("none of those that train.turbo_layers adapts, from 2 on"));
}
