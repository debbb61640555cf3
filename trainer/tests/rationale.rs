//! Rationales as a second task: what they add to a step, and to nothing else.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Bench, die_at, files, settings};
use limbeck_artifact::dataset::{Message, Split};
use limbeck_artifact::event::{EventKind, Silent};
use limbeck_model::adapter::AdapterConfig;
use limbeck_model::prompt::{TrainOn, encode_example};
use limbeck_trainer::batch::{LossNormalization, TrainRow};
use limbeck_trainer::learner::{Gradients, Learner};
use limbeck_trainer::parameters::Parameters;
use limbeck_trainer::rows::encode_with;
use limbeck_trainer::{
    Base, HeadKind, Matched, Rationales, StateLoss, TrainError, TrainPlan, TrainReport, TrainSettings, train,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

/// Of every other row, of unequal length.
fn rationales(bench: &Bench, weight: f32) -> Rationales {
    let of = |(i, e): (usize, &limbeck_artifact::dataset::Example)| {
        (i % 2 == 0).then(|| (e.id.clone(), format!("it says {}{}", "and so ".repeat(i % 3), e.target)))
    };
    let rows = bench.dataset.rows(Split::Train).iter().enumerate();
    Rationales { weight, prompt: "Why?".to_owned(), of: rows.filter_map(of).collect() }
}

fn plan(bench: &Bench, name: &str, s: &TrainSettings, weight: f32) -> TrainPlan {
    TrainPlan { rationales: Some(rationales(bench, weight)), ..bench.plan(name, s) }
}

fn rows(bench: &Bench, plan: &TrainPlan) -> Vec<TrainRow> {
    encode_with(&bench.tokenizer, &bench.dataset, plan, None, &Silent).unwrap()
}

fn parameters(bench: &Bench, s: &TrainSettings) -> Parameters {
    let config = AdapterConfig::lora("tiny", s.r, s.lora_alpha, &s.target_modules, s.use_rslora);
    let labels = &bench.dataset.card.labels;
    let mut parameters = match s.head {
        HeadKind::Verbalizer => Parameters::init(config, &bench.decoder, 7),
        HeadKind::Classification => Parameters::init_classifier(config.with_head(), labels, &bench.decoder, 7),
    };
    let mut z = 1u64;
    for x in parameters.all.values_mut().flat_map(|p| &mut p.values) {
        z = z.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        *x += (z >> 40) as f32 / (1u64 << 24) as f32 * 0.2 - 0.1;
    }
    parameters
}

const ROWS: [usize; 8] = [0, 3, 5, 6, 8, 11, 14, 18];

fn gradients(
    bench: &Bench,
    s: &TrainSettings,
    rows: &[TrainRow],
    which: &[usize],
    matched: Option<&Matched>,
) -> Gradients {
    let base = Base::Frozen(&bench.decoder);
    let learner = Learner { matched, ..Learner::new(base, s, rows) };
    learner.gradients(&parameters(bench, s), which, 3).unwrap()
}

#[test]
fn the_loss_is_that_of_answers_and_a_share_of_that_of_rationales() {
    let bench = Bench::new();
    let examples = bench.dataset.rows(Split::Train);
    for (head, loss_normalization) in [
        (HeadKind::Verbalizer, LossNormalization::Token),
        (HeadKind::Verbalizer, LossNormalization::Example),
        (HeadKind::Classification, LossNormalization::Token),
    ] {
        let s = TrainSettings { batch_size: 8, head, loss_normalization, ..settings() };
        let plan = plan(&bench, "both", &s, 0.3);
        let plain = rows(&bench, &bench.plan("plain", &s));
        let both = gradients(&bench, &s, &rows(&bench, &plan), &ROWS, None);
        let answers = gradients(&bench, &s, &plain, &ROWS, None);
        // The rationales as rows of their own, learnt by the model's own head.
        let own = TrainSettings { head: HeadKind::Verbalizer, ..s.clone() };
        let row = |i: &usize| {
            let e = &examples[*i];
            let text = plan.rationales.as_ref().unwrap().of.get(&e.id)?;
            let mut messages = e.messages.clone();
            messages.last_mut().unwrap().content.push_str("\n\nWhy?");
            let answer = Message::new("assistant", text);
            let encoded = encode_example(&bench.tokenizer, &messages, &answer, TrainOn::Last, 256).unwrap();
            Some(TrainRow::new(String::new(), encoded, e.weight))
        };
        let explained: Vec<TrainRow> = ROWS.iter().filter_map(row).collect();
        assert!(explained.len() > 3 && explained.iter().any(|r| r.weight != explained[0].weight));
        let all: Vec<usize> = (0..explained.len()).collect();
        let reasons = gradients(&bench, &own, &explained, &all, None);
        let what = format!("{head:?} {loss_normalization:?}");
        if head == HeadKind::Verbalizer {
            assert!((both.loss - answers.loss - 0.3 * reasons.loss).abs() < 1e-5 * both.loss, "{what}");
            for (name, grad) in &both.of {
                let size = grad.iter().fold(1e-6f32, |m, x| m.max(x.abs()));
                let parts = answers.of[name].iter().zip(&reasons.of[name]).map(|(a, r)| a + 0.3 * r);
                let gap = grad.iter().zip(parts).fold(0f32, |m, (g, p)| m.max((g - p).abs()));
                assert!(gap < 2e-5 * size, "{what} {name}: {gap} of {size}");
            }
        } else {
            assert!(both.loss > answers.loss + 0.3, "a head over labels says no words: {} {}", both.loss, answers.loss);
            let score = both.of.keys().find(|name| name.contains("score")).unwrap();
            let size = answers.of[score].iter().fold(1e-6f32, |m, x| m.max(x.abs()));
            let off = both.of[score].iter().zip(&answers.of[score]).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(off < 2e-5 * size, "and learns nothing of them");
        }
        for batch_size in [4, 1] {
            let s = TrainSettings { batch_size, gradient_accumulation_steps: 8 / batch_size, ..s.clone() };
            let cut = gradients(&bench, &s, &rows(&bench, &plan), &ROWS, None);
            assert!(
                (cut.loss - both.loss).abs() < 1e-5 * both.loss && (cut.norm / both.norm - 1.0).abs() < 1e-5,
                "{what}"
            );
        }
    }
}

#[test]
fn it_is_counted_apart_and_goes_on_after_a_kill() {
    std::panic::set_hook(Box::new(|_| ()));
    let bench = Bench::new();
    let s = TrainSettings { num_epochs: 2, ..settings() };
    // Beside a teacher's states.
    let matched = Matched {
        teacher: bench.decoder.clone(),
        lora: Default::default(),
        layers: vec![(1, 1), (2, 2)],
        loss: StateLoss::Relative,
        weight: 0.5,
        attention: 0.0,
    };
    let plan = |name: &str| TrainPlan { matched: Some(matched.clone()), ..plan(&bench, name, &s, 1.0) };
    let run = |plan: &TrainPlan| train(plan, &bench.decoder, &bench.tokenizer, &bench.dataset, &Silent);
    let (whole, notes) = (plan("whole"), Mutex::new(Vec::new()));
    let note = |event: EventKind| {
        if let EventKind::Note { text } = event {
            notes.lock().unwrap().push(text);
        }
    };
    let report: TrainReport = train(&whole, &bench.decoder, &bench.tokenizer, &bench.dataset, &note).unwrap();
    let notes = notes.into_inner().unwrap().join("\n");
    assert!(notes.contains("11 of 21 rows are read a second time, for their rationale"), "{notes}");
    let plain = run(&bench.plan("plain", &s)).unwrap();
    assert_eq!((report.explained_rows, plain.explained_rows), (11, 0));
    assert!(report.explained_tokens > 50);
    assert_eq!((report.rows, report.steps, report.loss_tokens), (plain.rows, plain.steps, plain.loss_tokens));
    let want = files(&whole.out);
    for n in [3, 7, 12] {
        let plan = plan(&format!("killed-{n}"));
        let dies = || train(&plan, &bench.decoder, &bench.tokenizer, &bench.dataset, &die_at(n));
        assert!(catch_unwind(AssertUnwindSafe(dies)).is_err(), "killed at event {n}");
        assert_eq!(run(&plan).unwrap(), report);
        assert_eq!(files(&plan.out), want, "after event {n}");
    }
    let _ = std::panic::take_hook();

    // With no weight, and without one that fits, it is the training without.
    let adapter = |name: &str| files(&bench.folder.path().join(name).join("adapter"));
    let none = too_long(&bench, "none", &s);
    assert_eq!(run(&none).unwrap().explained_rows, 0);
    assert_eq!(adapter("none"), adapter("plain"));
    let turbo = TrainSettings { turbo_layers: 1, ..s.clone() };
    let refused = run(&self::plan(&bench, "turbo", &turbo, 1.0)).unwrap_err();
    assert!(matches!(refused, TrainError::TurboExplains), "{refused}");
}

/// Rationales that are longer than a row may be.
fn too_long(bench: &Bench, name: &str, s: &TrainSettings) -> TrainPlan {
    let mut rationales = rationales(bench, 1.0);
    rationales.of.values_mut().for_each(|text| *text = "so ".repeat(300));
    TrainPlan { rationales: Some(rationales), ..bench.plan(name, s) }
}
