//! Whole trainings on a tiny base: killed and resumed, stopped early, refused, rehearsed.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Bench, die_at, files, settings};
use limbeck_artifact::dataset::{Split, example_id};
use limbeck_artifact::event::{EventKind, Silent};
use limbeck_model::adapter::Adapter;
use limbeck_model::decoder::Decoder;
use limbeck_model::prompt::PromptError;
use limbeck_model::score::LabelScorer;
use limbeck_trainer::checkpoint::Checkpoints;
use limbeck_trainer::parameters::Parameters;
use limbeck_trainer::schedule::Scheduler;
use limbeck_trainer::watch::Metric;
use limbeck_trainer::{HeadKind, TrainError, TrainReport, TrainSettings, dry_run, train};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn run(bench: &Bench, name: &str, settings: &TrainSettings) -> Result<TrainReport, TrainError> {
    train(&bench.plan(name, settings), &bench.decoder, &bench.tokenizer, &bench.dataset, &Silent)
}

/// All that a training can have switched on at once.
fn everything() -> TrainSettings {
    TrainSettings {
        lora_dropout: 0.2,
        use_dora: true,
        loraplus_lr_ratio: 4.0,
        lr_scheduler: Scheduler::WarmupStableDecay,
        gradient_accumulation_steps: 2,
        batch_size: 2,
        eval_steps: 3,
        save_steps: 2,
        save_total_limit: 1,
        metric_for_best_model: Metric::Accuracy,
        load_best_model_at_end: true,
        turbo_layers: 2,
        ..settings()
    }
}

#[test]
fn killed_at_any_event_it_goes_on_to_the_same_bytes() {
    killed_at_any_event(everything(), 3);
}

#[test]
fn so_does_a_training_with_a_classification_head() {
    killed_at_any_event(TrainSettings { head: HeadKind::Classification, use_dora: false, ..everything() }, 7);
}

fn killed_at_any_event(s: TrainSettings, every: usize) {
    std::panic::set_hook(Box::new(|_| ()));
    let bench = Bench::new();
    let report = run(&bench, "unbroken", &s).unwrap();
    let want = files(&bench.folder.path().join("unbroken"));
    assert!(want.contains_key(Path::new("adapter/adapter_model.safetensors")));
    assert!(want[Path::new("valid.jsonl")].iter().filter(|b| **b == b'\n').count() >= 4, "a look every three steps");
    let events = AtomicUsize::new(0);
    let count = |_: EventKind| {
        events.fetch_add(1, Ordering::Relaxed);
    };
    train(&bench.plan("counted", &s), &bench.decoder, &bench.tokenizer, &bench.dataset, &count).unwrap();
    let events = events.into_inner();
    assert!(events > 25, "{events}");
    for n in (1..=events).step_by(every) {
        let plan = bench.plan(&format!("killed-{n}"), &s);
        let again = || {
            catch_unwind(AssertUnwindSafe(|| {
                train(&plan, &bench.decoder, &bench.tokenizer, &bench.dataset, &die_at(n))
            }))
        };
        assert!(again().is_err(), "killed at event {n}");
        // Once more, a few events further on, then to the end.
        let _ = again();
        let resumed = train(&plan, &bench.decoder, &bench.tokenizer, &bench.dataset, &Silent).unwrap();
        assert_eq!(resumed, report, "after event {n}");
        assert_eq!(files(&plan.out), want, "after event {n}");
    }
    let _ = std::panic::take_hook();
}

fn factors(bench: &Bench, name: &str) -> Adapter {
    Adapter::load(&bench.folder.path().join(name).join("adapter")).unwrap()
}

#[test]
fn the_best_model_comes_back_and_outlives_newer_checkpoints() {
    let bench = Bench::new();
    // A rate that spoils what was learnt: the first look is the best.
    let s = TrainSettings {
        learning_rate: 0.3,
        lr_scheduler: Scheduler::Constant,
        warmup_ratio: 0.0,
        num_epochs: 10,
        eval_steps: 2,
        save_steps: 1,
        save_total_limit: 1,
        early_stopping_patience: 4,
        load_best_model_at_end: true,
        ..settings()
    };
    let report = run(&bench, "best", &s).unwrap();
    let (best, total) = (report.best_step.unwrap(), s.total_steps(21));
    assert!(report.stopped_early && report.steps < total, "{report:?}");
    assert_eq!(report.steps, best + 2 * 4, "four looks after the best");
    let looks = std::fs::read_to_string(bench.folder.path().join("best/valid.jsonl")).unwrap();
    let losses: Vec<f64> = looks
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["loss"].as_f64().unwrap_or(f64::NAN))
        .collect();
    let lowest = losses.iter().copied().fold(f64::INFINITY, f64::min);
    assert_eq!(report.valid_loss, Some(lowest), "{losses:?}");
    let kept: Vec<String> = files(&bench.folder.path().join("best/checkpoints"))
        .keys()
        .map(|p| p.display().to_string())
        .filter(|p| p.ends_with(".json"))
        .collect();
    assert_eq!(kept, [format!("step-{best:08}.json"), format!("step-{:08}.json", report.steps)]);

    // The adapter is that of a training that ended after the best step.
    let mut plan = bench.plan("until-best", &s);
    plan.stop_at_step = Some(best);
    train(&plan, &bench.decoder, &bench.tokenizer, &bench.dataset, &Silent).unwrap();
    assert!(!plan.out.join("adapter").exists(), "a training that was told to stop gives no adapter");
    let checkpoints =
        Checkpoints { dir: plan.out.join("checkpoints"), key: "key".into(), keep: 1, best_by: Some(Metric::Loss) };
    let config = factors(&bench, "best").config;
    let mut parameters = Parameters::init(config, &bench.decoder, 99);
    assert!(checkpoints.load(best, &mut parameters));
    assert_eq!(parameters.adapter().unwrap().pairs, factors(&bench, "best").pairs);

    // Without it, the last model is given back.
    let last = run(&bench, "last", &TrainSettings { load_best_model_at_end: false, ..s }).unwrap();
    assert_eq!((last.best_step, last.steps), (None, report.steps));
    assert_ne!(factors(&bench, "last").pairs, factors(&bench, "best").pairs);
}

#[test]
fn going_on_after_a_stop_is_as_if_it_had_not_stopped() {
    let bench = Bench::new();
    let s = TrainSettings { eval_steps: 3, ..settings() };
    run(&bench, "whole", &s).unwrap();
    let mut plan = bench.plan("parts", &s);
    plan.stop_at_step = Some(7);
    let part = train(&plan, &bench.decoder, &bench.tokenizer, &bench.dataset, &Silent).unwrap();
    assert!(part.steps == 7 && part.valid_loss.is_some() && !part.stopped_early);
    plan.stop_at_step = None;
    train(&plan, &bench.decoder, &bench.tokenizer, &bench.dataset, &Silent).unwrap();
    let results = |name: &str| {
        let mut found = files(&bench.folder.path().join(name));
        found.retain(|path, _| !path.starts_with("checkpoints"));
        found
    };
    assert_eq!(results("parts"), results("whole"));
}

#[test]
fn rows_that_cannot_be_trained_on_are_refused_by_name() {
    let too_long = TrainSettings { max_seq_length: 60, ..settings() };
    let bench = Bench::new();
    let error = run(&bench, "long", &too_long).unwrap_err();
    let TrainError::Row { id, source: PromptError::TooLong { len, max }, .. } = &error else { panic!("{error}") };
    assert!(*len > 60 && *max == 60);
    let text = error.to_string();
    assert!(text.contains(id.as_str()) && text.contains(&len.to_string()) && text.contains("60"), "{text}");

    let bench = Bench::with(|rows| rows[3].weight = 0.0);
    let id = bench.dataset.rows(Split::Train)[3].id.clone();
    let error = run(&bench, "weight", &settings()).unwrap_err();
    assert!(matches!(&error, TrainError::NoLoss { id: found, .. } if *found == id), "{error}");

    // With an empty answer nothing would be predicted; the taxonomy is empty too, so the dataset takes the row.
    let bench = Bench::new();
    let mut rows = bench.dataset.rows(Split::Train).to_vec();
    rows[2].target = String::new();
    rows[2].id = example_id(&rows[2].messages, "");
    let mut card = bench.dataset.card.clone();
    (card.labels, card.traces_in) = (Vec::new(), rows.len() as u64);
    let dir = bench.folder.path().join("unlabelled");
    let id = rows[2].id.clone();
    limbeck_artifact::dataset::Dataset::write(&dir, card, [(Split::Train, rows)].into()).unwrap();
    let dataset = limbeck_artifact::dataset::Dataset::load(&dir).unwrap();
    let plan = bench.plan("empty", &settings());
    let error = train(&plan, &bench.decoder, &bench.tokenizer, &dataset, &Silent).unwrap_err();
    assert!(error.to_string().contains(&id) && error.to_string().contains("no token would carry loss"), "{error}");
}

#[test]
fn what_goes_by_the_valid_split_needs_one() {
    let bench = Bench::new();
    let mut card = bench.dataset.card.clone();
    let rows = bench.dataset.rows(Split::Train).to_vec();
    card.traces_in = rows.len() as u64;
    let dir = bench.folder.path().join("no-valid");
    limbeck_artifact::dataset::Dataset::write(&dir, card, [(Split::Train, rows)].into()).unwrap();
    let dataset = limbeck_artifact::dataset::Dataset::load(&dir).unwrap();
    let s = TrainSettings { eval_steps: 2, early_stopping_patience: 1, ..settings() };
    let plan = bench.plan("no-valid-run", &s);
    let error = train(&plan, &bench.decoder, &bench.tokenizer, &dataset, &Silent).unwrap_err();
    assert!(matches!(error, TrainError::NoValid { .. }), "{error}");
    let layers = TrainSettings { turbo_layers: 4, ..settings() };
    assert!(matches!(run(&bench, "deep", &layers).unwrap_err(), TrainError::TooManyLayers { asked: 4, layers: 3 }));
}

#[test]
fn numbers_that_are_none_stop_with_step_rows_and_activations_and_the_checkpoint_stands() {
    let bench = Bench::new();
    let s = TrainSettings {
        learning_rate: 1e30,
        lr_scheduler: Scheduler::Constant,
        warmup_ratio: 0.0,
        save_steps: 1,
        ..settings()
    };
    let error = run(&bench, "diverged", &s).unwrap_err();
    let TrainError::NotFinite(found) = &error else { panic!("{error}") };
    assert_eq!((found.step, found.rows.len(), found.checkpoint), (2, 4, Some(1)));
    assert_eq!(found.activations.len(), 4, "the embedding and three layers");
    assert!(found.activations[0].1.is_finite() && found.activations.iter().any(|(_, size)| !size.is_finite()));
    let ids: Vec<&str> = bench.dataset.rows(Split::Train).iter().map(|r| r.id.as_str()).collect();
    assert!(found.rows.iter().all(|id| ids.contains(&id.as_str())));
    let text = error.to_string();
    assert!(text.contains("step 2") && text.contains("layer 2") && text.contains("checkpoint of step 1"), "{text}");
    assert!(text.contains(&found.rows[0][..12]), "{text}");
    assert!(bench.folder.path().join("diverged/checkpoints/step-00000001.json").exists());
    assert!(!bench.folder.path().join("diverged/adapter").exists());
}

#[test]
fn turbo_adapts_the_top_layers_only_and_says_so_to_peft() {
    let bench = Bench::new();
    run(&bench, "turbo", &TrainSettings { turbo_layers: 2, ..settings() }).unwrap();
    let adapter = factors(&bench, "turbo");
    assert_eq!(adapter.config.layers_to_transform, Some(vec![1, 2]));
    assert!(adapter.pairs.keys().all(|path| !path.contains("layers.0.")), "{:?}", adapter.pairs.keys());
    assert!(adapter.pairs.values().any(|p| p.b.iter().any(|x| *x != 0.0)));
    run(&bench, "all", &settings()).unwrap();
    let text = std::fs::read_to_string(bench.folder.path().join("all/adapter/adapter_config.json")).unwrap();
    assert!(!text.contains("layers_to_transform"), "{text}");
}

#[test]
fn dora_learns_its_magnitudes_and_leaves_them_to_peft() {
    let bench = Bench::new();
    let s = TrainSettings { use_dora: true, ..settings() };
    let report = run(&bench, "dora", &s).unwrap();
    let plain = run(&bench, "lora", &settings()).unwrap();
    let adapter = factors(&bench, "dora");
    assert!(adapter.config.use_dora);
    let rows: usize = adapter.pairs.values().map(|p| p.n_out).sum();
    assert_eq!(report.trained_parameters, plain.trained_parameters + rows as u64);
    for (path, pair) in &adapter.pairs {
        let (start, end) = (bench.decoder.row_norms(path), pair.magnitude.as_ref().unwrap());
        assert!(start.len() == pair.n_out && end.len() == pair.n_out);
        assert!(start.iter().zip(end).all(|(a, b)| a != b && (a - b).abs() < 0.5 * a), "{path}: {start:?}, {end:?}");
    }
    // The first step has the same loss and the same gradient of B, whose product was nothing yet; later ones do not.
    let log = |name: &str| -> Vec<f64> {
        let text = std::fs::read_to_string(bench.folder.path().join(name).join("loss.jsonl")).unwrap();
        text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["loss"].as_f64().unwrap()).collect()
    };
    let (dora, lora) = (log("dora"), log("lora"));
    assert!((dora[0] - lora[0]).abs() < 1e-5 && dora.last() < dora.first() && dora[5] != lora[5], "{dora:?} {lora:?}");
}

#[test]
fn a_dry_run_measures_and_leaves_nothing() {
    let bench = Bench::new();
    for s in [TrainSettings { eval_steps: 5, ..settings() }, everything()] {
        let plan = bench.plan("rehearsed", &s);
        let found = dry_run(&plan, &bench.decoder, &bench.tokenizer, &bench.dataset, &Silent).unwrap();
        assert!(!plan.out.exists());
        assert_eq!((found.rows, found.valid_rows, found.steps), (21, 6, s.total_steps(21)));
        assert!(found.micro_batch_tokens as f64 >= found.tokens_per_step / s.gradient_accumulation_steps as f64);
        assert!((0.05..0.9).contains(&found.prefix_saves), "{}", found.prefix_saves);
        assert!(found.total_s > 0.0 && found.loss.is_finite() && found.grad_norm > 0.0);
        let report = run(&bench, "real", &s).unwrap();
        assert_eq!(found.trained_parameters, report.trained_parameters);
        let looks = std::fs::read_to_string(bench.folder.path().join("real/valid.jsonl")).unwrap().lines().count();
        assert_eq!(found.looks, looks as u64);
        std::fs::remove_dir_all(bench.folder.path().join("real")).unwrap();
    }
}

#[test]
fn a_classification_head_learns_beside_the_adapter_and_is_gone_on_from() {
    let bench = Bench::new();
    let s = TrainSettings {
        head: HeadKind::Classification,
        num_epochs: 12,
        learning_rate: 1e-2,
        gradient_accumulation_steps: 2,
        batch_size: 4,
        ..settings()
    };
    let report = run(&bench, "head", &s).unwrap();
    let plain =
        run(&bench, "plain", &TrainSettings { head: HeadKind::Verbalizer, num_epochs: 1, ..s.clone() }).unwrap();
    let hidden = bench.decoder.config.hidden_size as u64;
    assert_eq!(report.trained_parameters, plain.trained_parameters + 3 * hidden);
    assert_eq!(report.loss_tokens, 21 * 12, "one class a row");
    let log = std::fs::read_to_string(bench.folder.path().join("head/loss.jsonl")).unwrap();
    let first: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert!(
        (first["loss"].as_f64().unwrap() - 3f64.ln()).abs() < 1e-6,
        "zeros tell three labels apart by chance: {first}"
    );
    assert!(report.final_loss < 0.6 * 3f64.ln(), "{}", report.final_loss);
    assert!(report.valid_accuracy > Some(0.5), "{:?} of the valid rows, by chance a third", report.valid_accuracy);

    // PEFT's layout, our labels beside it; the file is where a training may go on from.
    let adapter = factors(&bench, "head");
    let head = adapter.head.as_ref().unwrap();
    assert_eq!(head.labels, bench.dataset.card.labels);
    assert_eq!((adapter.config.task_type.as_deref(), head.classes()), (Some("SEQ_CLS"), 3));
    let again = Parameters::from_adapter(&adapter);
    assert_eq!(again.adapter().unwrap(), adapter);

    // The valid split is scored by the head.
    let ops = bench.decoder.ops();
    let frozen = head.freeze(ops.as_ref(), &bench.dataset.card.labels).unwrap();
    let labels = &bench.dataset.card.labels;
    let scorer = LabelScorer::by_head(bench.decoder.clone(), bench.tokenizer.clone(), labels, frozen).unwrap();
    let scorer = scorer.with_lora(adapter.constants(ops.as_ref()));
    let loss: f64 = bench
        .dataset
        .rows(Split::Valid)
        .iter()
        .map(|e| {
            let posterior = scorer.score(&e.messages).unwrap();
            assert!((posterior.iter().sum::<f32>() - 1.0).abs() < 1e-5);
            let right = labels.iter().position(|label| *label == e.target).unwrap();
            -f64::from(e.weight) * f64::from(posterior[right]).ln()
        })
        .sum();
    let weight: f64 = bench.dataset.rows(Split::Valid).iter().map(|e| f64::from(e.weight)).sum();
    let (got, want) = (report.valid_loss.unwrap(), loss / weight);
    assert!((got - want).abs() < 1e-4 * want.abs() + 1e-6, "{got} against {want}: each row counts by its weight");
}

#[test]
fn a_classification_head_wants_labels_and_an_adapter() {
    let s = TrainSettings { head: HeadKind::Classification, ..settings() };
    let bench = Bench::new();
    let rows = bench.dataset.rows(Split::Train).to_vec();
    let mut card = bench.dataset.card.clone();
    (card.labels, card.traces_in) = (Vec::new(), rows.len() as u64);
    let dir = bench.folder.path().join("unlabelled");
    limbeck_artifact::dataset::Dataset::write(&dir, card, [(Split::Train, rows)].into()).unwrap();
    let dataset = limbeck_artifact::dataset::Dataset::load(&dir).unwrap();
    let error = train(&bench.plan("none", &s), &bench.decoder, &bench.tokenizer, &dataset, &Silent).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("is none of the dataset's 0 labels") && text.contains("train.head = \"verbalizer\""),
        "{text}"
    );
    let long = run(&bench, "long", &TrainSettings { max_seq_length: 20, ..s }).unwrap_err();
    assert!(matches!(long, TrainError::Row { source: PromptError::TooLong { .. }, .. }), "{long}");
}

/// Software Vulkan binds no more than 128 MiB at a time: what one matrix of activations takes here.
#[test]
#[ignore = "minutes on software Vulkan"]
fn a_batch_that_a_device_has_no_room_for_is_answered_with_one_that_fits() {
    if common::device() != limbeck_model::device::DeviceName::Wgpu {
        return;
    }
    let bench = Bench::with(|rows| {
        *rows = (0..1500)
            .map(|i| {
                let mut row = common::example(i, Split::Train);
                row.messages[1].content += &" and so on".repeat(14);
                row.id = example_id(&row.messages, &row.target);
                row
            })
            .collect();
    });
    let base = bench.folder.path().join("one-layer.gguf");
    common::write_base(&base, 1, 1);
    let ops = limbeck_model::device::ops(common::device()).unwrap();
    let weights = limbeck_model::weights::Weights::open(&base).unwrap();
    let decoder = Arc::new(Decoder::from_weights(&weights, ops, true).unwrap());
    let s = TrainSettings { num_epochs: 1, batch_size: 1500, target_modules: vec!["o_proj".to_owned()], ..settings() };
    let error = train(&bench.plan("crowded", &s), &decoder, &bench.tokenizer, &bench.dataset, &Silent).unwrap_err();
    let TrainError::OutOfMemory(found) = &error else { panic!("{error}") };
    assert!(found.rows == 1500 && found.tokens > 300_000 && found.fits == Some(750) && found.accumulation == 2);
    let text = error.to_string();
    assert!(text.contains("train.batch_size = 750 with train.gradient_accumulation_steps = 2"), "{text}");
}
