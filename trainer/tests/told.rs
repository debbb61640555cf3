//! Learning from what a teacher expects at each token: whose word counts where, and what the loss makes of it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Bench, settings};
use limbeck_artifact::capture::{Position, Told, tokens_key};
use limbeck_artifact::dataset::{LabelSource, Split};
use limbeck_artifact::event::Silent;
use limbeck_model::layout::Packed;
use limbeck_trainer::batch::TrainRow;
use limbeck_trainer::divergence::Divergence;
use limbeck_trainer::learner::{Gradients, Learner};
use limbeck_trainer::parameters::Parameters;
use limbeck_trainer::rows::encode_with;
use limbeck_trainer::{Base, ToldTokens, TrainError, TrainPlan, TrainSettings, train};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What `of` makes of each predicted token: its place in the answer, itself, and the base's own log-probabilities there.
fn told(bench: &Bench, s: &TrainSettings, of: impl Fn(usize, u32, &[f32]) -> Position) -> ToldTokens {
    let plan = bench.plan("plain", s);
    let rows = encode_with(&bench.tokenizer, &bench.dataset, &plan, None, &Silent).unwrap();
    let position = |row: &TrainRow| {
        let (ids, mask) = (&row.encoded.ids, &row.encoded.mask);
        let mut packed = Packed::new();
        packed.push_chain(ids, 0);
        let states = bench.decoder.states(&Arc::new(packed)).unwrap();
        let width = bench.decoder.config.hidden_size;
        let expected = |i: usize| {
            let logits = bench.decoder.logits_behind(&states[(i - 1) * width..i * width]);
            limbeck_model::decoder::log_softmax(&logits)
        };
        let predicted = (0..ids.len()).filter(|&i| mask[i]);
        let positions = predicted.enumerate().map(|(at, i)| of(at, ids[i], &expected(i))).collect();
        (tokens_key(ids, mask), positions)
    };
    ToldTokens {
        lambda: 0.5,
        divergence: Divergence::ForwardKl,
        rows: rows.iter().map(position).collect(),
        trust: 0.5,
        contradicts: false,
        answered: Vec::new(),
    }
}

/// The whole distribution of the base itself.
fn whole(_: usize, token: u32, log_probs: &[f32]) -> Position {
    let likeliest = (0..log_probs.len()).fold(0, |best, i| if log_probs[i] > log_probs[best] { i } else { best });
    Position {
        agrees: likeliest as u32 == token,
        tokens: (0..log_probs.len() as u32).collect(),
        told: Told::TopK { log_probs: log_probs.to_vec(), log_tail: f32::NEG_INFINITY },
    }
}

/// The answer's own token and nothing else.
fn sure(_: usize, token: u32, _: &[f32]) -> Position {
    Position { agrees: true, tokens: vec![token], told: Told::Drawn(vec![50]) }
}

fn rows_of(bench: &Bench, plan: &TrainPlan) -> Vec<TrainRow> {
    encode_with(&bench.tokenizer, &bench.dataset, plan, None, &Silent).unwrap()
}

fn gradients(bench: &Bench, plan: &TrainPlan) -> Gradients {
    let rows = rows_of(bench, plan);
    let s = &plan.settings;
    let targets = bench.decoder.config.resolve_targets(&s.target_modules).unwrap();
    let config = limbeck_model::adapter::AdapterConfig::lora("tiny", s.r, s.lora_alpha, &targets, s.use_rslora);
    let mut parameters = Parameters::init(config, &bench.decoder, s.seed);
    // Off the point where an adapter is nothing.
    for (i, p) in parameters.all.values_mut().enumerate() {
        p.values.iter_mut().enumerate().for_each(|(j, x)| *x += 0.02 * ((i * 31 + j) as f32).sin());
    }
    let divergence = plan.told.as_ref().map(|told| told.divergence);
    let learner = Learner { divergence, ..Learner::new(Base::Frozen(&bench.decoder), s, &rows) };
    learner.gradients(&parameters, &[0, 1, 2, 3, 4, 5], 0).unwrap()
}

fn distance(a: &Gradients, b: &Gradients) -> f64 {
    let (mut off, mut all) = (0f64, 0f64);
    for (name, a) in &a.of {
        for (x, y) in a.iter().zip(&b.of[name]) {
            off += f64::from(x - y).powi(2);
            all += f64::from(*y).powi(2);
        }
    }
    (off / all.max(1e-30)).sqrt()
}

#[test]
fn a_teacher_that_is_sure_of_the_answer_is_the_answer() {
    let bench = Bench::new();
    let plain = bench.plan("plain", &settings());
    let want = gradients(&bench, &plain);
    for lambda in [0.3, 1.0] {
        let told = ToldTokens { lambda, ..told(&bench, &plain.settings, sure) };
        let found = gradients(&bench, &TrainPlan { told: Some(told), ..plain.clone() });
        assert!((found.loss - want.loss).abs() < 1e-5, "{} {}", found.loss, want.loss);
        assert!(distance(&found, &want) < 1e-5, "λ {lambda}: {}", distance(&found, &want));
    }
}

#[test]
fn the_loss_is_a_mixture_of_answer_and_teacher() {
    let bench = Bench::new();
    let plain = bench.plan("plain", &settings());
    let of = |lambda: f32, divergence: Divergence| {
        let told = ToldTokens { lambda, divergence, contradicts: true, ..told(&bench, &plain.settings, whole) };
        gradients(&bench, &TrainPlan { told: Some(told), ..plain.clone() })
    };
    let answers = gradients(&bench, &plain);
    for divergence in [Divergence::ForwardKl, Divergence::ReverseKl, Divergence::SkewKl { alpha: 0.1 }] {
        let (teacher, both) = (of(1.0, divergence), of(0.25, divergence));
        assert!((both.loss - (0.75 * answers.loss + 0.25 * teacher.loss)).abs() < 1e-5, "{divergence:?}");
        let mut mixed = answers.clone();
        for (name, of) in &mut mixed.of {
            of.iter_mut().zip(&teacher.of[name]).for_each(|(a, t)| *a = 0.75 * *a + 0.25 * *t);
        }
        assert!(distance(&both, &mixed) < 1e-4, "{divergence:?}: {}", distance(&both, &mixed));
    }
    // The adapter moved the student off the base, its teacher: there is something to go back to, and less than to learn.
    let teacher = of(1.0, Divergence::ForwardKl);
    assert!(teacher.loss > 0.0 && teacher.loss < 0.2 * answers.loss, "{} {}", teacher.loss, answers.loss);
}

#[test]
fn whose_word_counts_is_told_token_by_token() {
    let bench = Bench::with(|rows| {
        for row in rows.iter_mut().skip(10) {
            row.label_source = LabelSource::Teacher;
        }
    });
    let s = settings();
    // The teacher would have begun every answer otherwise.
    let otherwise =
        |at: usize, token: u32, log_probs: &[f32]| Position { agrees: at != 0, ..whole(at, token, log_probs) };
    let counted = |change: &dyn Fn(&mut ToldTokens)| -> (usize, usize) {
        let mut told = told(&bench, &s, otherwise);
        change(&mut told);
        let rows = rows_of(&bench, &TrainPlan { told: Some(told), ..bench.plan("told", &s) });
        let of = |rows: &[TrainRow]| rows.iter().flat_map(|row| &row.told).filter(|t| t.is_some()).count();
        (of(&rows[..10]), of(&rows[10..]))
    };
    let tokens = |rows: std::ops::Range<usize>| -> usize {
        rows_of(&bench, &bench.plan("plain", &s))[rows].iter().map(|row| row.encoded.loss_tokens()).sum()
    };
    let (decided, unreviewed) = (tokens(0..10), tokens(10..21));
    assert_eq!(counted(&|_| ()), (decided - 10, unreviewed), "where a person wrote otherwise the teacher is not heard");
    assert_eq!(counted(&|told| told.contradicts = true), (decided, unreviewed));
    assert_eq!(counted(&|told| told.trust = 0.0), (decided - 10, 0), "no reviewed row bears it out");
    assert_eq!(counted(&|told| told.lambda = 0.0), (0, 0));
    // What was told of other rows is told of none here.
    assert_eq!(counted(&|told| told.rows = BTreeMap::from([("0".repeat(32), Vec::new())])), (0, 0));
}

#[test]
fn what_does_not_fit_a_row_is_refused_by_its_id() {
    let bench = Bench::new();
    let s = settings();
    let refused = |of: &dyn Fn(usize, u32, &[f32]) -> Position, cut: bool| {
        let mut told = told(&bench, &s, of);
        if cut {
            told.rows.values_mut().for_each(|positions| positions.truncate(1));
        }
        let plan = TrainPlan { told: Some(told), ..bench.plan("told", &s) };
        let e = train(&plan, &bench.decoder, &bench.tokenizer, &bench.dataset, &Silent).unwrap_err();
        assert!(matches!(&e, TrainError::Told { id, .. } if *id == bench.dataset.rows(Split::Train)[0].id), "{e}");
        e.to_string()
    };
    assert!(refused(&whole, true).contains("is of 1 tokens"));
    let beyond =
        |_: usize, _: u32, _: &[f32]| Position { agrees: true, tokens: vec![1 << 30], told: Told::Drawn(vec![5]) };
    assert!(refused(&beyond, false).contains("names token 1073741824"));
    let elsewhere = |_: usize, token: u32, _: &[f32]| Position {
        agrees: true,
        tokens: vec![u32::from(token == 0)],
        told: Told::TopK { log_probs: vec![-1.0], log_tail: -0.5 },
    };
    assert!(refused(&elsewhere, false).contains("none of those that the teacher told"));
}
