//! Answers that the student writes itself: which rows, by whose word, and that a resumed training writes the same.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Bench, die_at, files, settings};
use limbeck_artifact::capture::{Position, Told, tokens_key};
use limbeck_artifact::dataset::{LabelSource, Split};
use limbeck_artifact::event::Silent;
use limbeck_model::decoder::{Decoder, LoraSet, log_softmax};
use limbeck_model::layout::Packed;
use limbeck_model::prompt::EncodedExample;
use limbeck_trainer::batch::TrainRow;
use limbeck_trainer::divergence::Divergence;
use limbeck_trainer::learner::Learner;
use limbeck_trainer::on_policy::{Asks, OnPolicy, Teacher, Writer, Written, worth};
use limbeck_trainer::parameters::Parameters;
use limbeck_trainer::rows::encode_with;
use limbeck_trainer::{Base, ToldTokens, TrainPlan, TrainSettings, train};
use std::sync::{Arc, Mutex};

/// A decoder, perhaps under an adapter, that tells its whole distribution, or that sharpened; one row it can't read.
struct Reader {
    decoder: Arc<Decoder>,
    lora: Option<LoraSet>,
    sharpened: f32,
    blind_to: Option<String>,
    asked: Mutex<Vec<(String, String, bool)>>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reader")
    }
}

fn distributions(decoder: &Decoder, lora: Option<&LoraSet>, row: &EncodedExample, sharpened: f32) -> Vec<Position> {
    let mut packed = Packed::new();
    packed.push_chain(&row.ids, 0);
    let states = decoder.states_under(&Arc::new(packed), lora).unwrap();
    let width = decoder.config.hidden_size;
    let position = |i: usize| {
        let logits = decoder.logits_behind(&states[(i - 1) * width..i * width]);
        let log_probs = log_softmax(&logits.iter().map(|z| z * sharpened).collect::<Vec<f32>>());
        let likeliest = (0..log_probs.len()).fold(0, |best, i| if log_probs[i] > log_probs[best] { i } else { best });
        Position {
            agrees: likeliest as u32 == row.ids[i],
            tokens: (0..log_probs.len() as u32).collect(),
            told: Told::TopK { log_probs, log_tail: f32::NEG_INFINITY },
        }
    };
    (0..row.ids.len()).filter(|&i| row.mask[i]).map(position).collect()
}

impl Teacher for Reader {
    fn tell(&self, rows: &[Asks<'_>]) -> Result<Vec<Option<Vec<Position>>>, Box<dyn std::error::Error + Send + Sync>> {
        let mut asked = self.asked.lock().unwrap();
        asked.extend(rows.iter().map(|asks| (asks.id.to_owned(), asks.text.to_owned(), asks.ended)));
        let blind = |asks: &Asks| self.blind_to.as_ref().is_some_and(|id| id == asks.id);
        let tell = |asks: &Asks| {
            (!blind(asks)).then(|| distributions(&self.decoder, self.lora.as_ref(), asks.row, self.sharpened))
        };
        Ok(rows.iter().map(tell).collect())
    }
}

fn teacher(bench: &Bench, sharpened: f32) -> Reader {
    Reader { decoder: bench.decoder.clone(), lora: None, sharpened, blind_to: None, asked: Mutex::default() }
}

fn on_policy(teacher: Reader) -> OnPolicy {
    OnPolicy {
        share: 1.0,
        after: 0.0,
        temperature: 1.0,
        max_new_tokens: 6,
        divergence: Divergence::ReverseKl,
        teacher: Arc::new(teacher),
    }
}

/// A capture under which every row may be written anew.
fn agreeing(bench: &Bench, s: &TrainSettings) -> ToldTokens {
    let rows = encode_with(&bench.tokenizer, &bench.dataset, &bench.plan("plain", s), None, &Silent).unwrap();
    let told = |row: &TrainRow| {
        let positions = distributions(&bench.decoder, None, &row.encoded, 1.0);
        let positions = positions.into_iter().map(|p| Position { agrees: true, ..p }).collect();
        (tokens_key(&row.encoded.ids, &row.encoded.mask), positions)
    };
    ToldTokens {
        lambda: 0.5,
        divergence: Divergence::ForwardKl,
        rows: rows.iter().map(told).collect(),
        trust: 0.5,
        contradicts: false,
        answered: Vec::new(),
    }
}

/// An adapter that is somewhere, or one that is nothing.
fn parameters(bench: &Bench, s: &TrainSettings, off: f32) -> Parameters {
    let targets = bench.decoder.config.resolve_targets(&s.target_modules).unwrap();
    let config = limbeck_model::adapter::AdapterConfig::lora("tiny", s.r, s.lora_alpha, &targets, s.use_rslora);
    let mut parameters = Parameters::init(config, &bench.decoder, s.seed);
    for (i, p) in parameters.all.values_mut().enumerate() {
        p.values.iter_mut().enumerate().for_each(|(j, x)| *x += off * ((i * 31 + j) as f32).sin());
    }
    parameters
}

struct Case {
    bench: Bench,
    settings: TrainSettings,
    rows: Vec<TrainRow>,
}

impl Case {
    fn new() -> Case {
        let (bench, settings) = (Bench::new(), settings());
        let rows = encode_with(&bench.tokenizer, &bench.dataset, &bench.plan("plain", &settings), None, &Silent);
        Case { bench, settings, rows: rows.unwrap() }
    }

    fn writer<'a>(&'a self, plan: &'a OnPolicy, worth: Vec<f32>) -> Writer<'a> {
        Writer {
            plan,
            base: Base::Frozen(&self.bench.decoder),
            settings: &self.settings,
            tokenizer: &self.bench.tokenizer,
            rows: &self.rows,
            examples: self.bench.dataset.rows(Split::Train),
            worth,
            total: 10,
        }
    }
}

const ROWS: [usize; 6] = [4, 0, 11, 7, 2, 9];

#[test]
fn rows_are_written_anew_as_step_and_parameters_say() {
    let case = Case::new();
    let plan = on_policy(teacher(&case.bench, 1.0));
    let writer = case.writer(&plan, vec![1.0; 21]);
    let moved = parameters(&case.bench, &case.settings, 0.02);
    let written = |p: &Parameters, step| writer.rows_of(p, &ROWS, step).unwrap().unwrap();
    let (rows, sum) = written(&moved, 3);
    assert_eq!((rows.len(), sum.rows, sum.unread), (6, 6, 0));
    for (row, own) in rows.iter().zip(ROWS) {
        let own = &case.rows[own];
        assert!(row.written && row.id == own.id && row.weight == own.weight);
        assert_eq!(row.encoded.prompt(), own.encoded.prompt(), "the same prompt");
        assert_eq!(row.told.len(), row.encoded.loss_tokens());
        assert!((1..=7).contains(&row.told.len()));
    }
    assert_eq!(sum.tokens, rows.iter().map(|row| row.told.len() as u64).sum::<u64>());
    assert_eq!(sum.instead_of, ROWS.iter().map(|&row| case.rows[row].encoded.loss_tokens() as u64).sum::<u64>());
    assert_eq!(written(&moved, 3), (rows.clone(), sum), "the same step writes the same");
    let ids = |rows: &[TrainRow]| rows.iter().map(|row| row.encoded.ids.clone()).collect::<Vec<_>>();
    assert_ne!(ids(&written(&moved, 4).0), ids(&rows));
    assert_ne!(ids(&written(&parameters(&case.bench, &case.settings, 0.3), 3).0), ids(&rows));
}

#[test]
fn where_the_teacher_is_not_to_be_followed_the_dataset_answers() {
    let case = Case::new();
    let moved = parameters(&case.bench, &case.settings, 0.02);
    let is_written = |plan: &OnPolicy, worth: Vec<f32>, step| {
        let rows = case.writer(plan, worth).rows_of(&moved, &ROWS, step).unwrap();
        rows.map(|(rows, sum)| (rows.iter().map(|row| row.written).collect::<Vec<_>>(), sum.unread))
    };
    let plan = on_policy(teacher(&case.bench, 1.0));
    let mut some = vec![1.0; 21];
    (some[0], some[7]) = (0.0, 0.0);
    assert_eq!(is_written(&plan, some, 3).unwrap().0, [true, false, true, false, true, true]);
    assert_eq!(is_written(&plan, vec![0.0; 21], 3), None);
    let late = OnPolicy { after: 0.4, ..plan.clone() };
    assert_eq!(is_written(&late, vec![1.0; 21], 3), None);
    assert!(is_written(&late, vec![1.0; 21], 4).is_some());
    assert_eq!(is_written(&OnPolicy { share: 0.0, ..plan.clone() }, vec![1.0; 21], 3), None);
    // Half of them, over many steps.
    let half = OnPolicy { share: 0.5, ..plan };
    let of = |step| is_written(&half, vec![1.0; 21], step).map_or(0, |(rows, _)| rows.iter().filter(|w| **w).count());
    let taken: usize = (0..40).map(of).sum();
    assert!((90..=150).contains(&taken), "{taken} of 240");
    // One that it can't read.
    let id = case.bench.dataset.rows(Split::Train)[11].id.clone();
    let blind = on_policy(Reader { blind_to: Some(id), ..teacher(&case.bench, 1.0) });
    assert_eq!(is_written(&blind, vec![1.0; 21], 3), Some((vec![true, true, false, true, true, true], 1)));
}

#[test]
fn a_row_s_worth_is_that_of_the_teacher_s_word_on_it() {
    let bench = Bench::new();
    let told = agreeing(&bench, &settings()).rows.into_values().next().unwrap();
    let mut otherwise = told.clone();
    otherwise[0].agrees = false;
    let human = bench.dataset.rows(Split::Train)[0].clone();
    let recorded = limbeck_artifact::dataset::Example { label_source: LabelSource::Teacher, ..human.clone() };
    assert_eq!(worth(&human, Some(&told), (0.4, false)), 1.0);
    assert_eq!(worth(&human, Some(&otherwise), (0.4, false)), 0.0, "a person wrote otherwise");
    assert_eq!(worth(&human, Some(&otherwise), (0.4, true)), 1.0);
    assert_eq!(worth(&recorded, Some(&otherwise), (0.4, false)), 0.4);
    assert_eq!(worth(&human, None, (0.4, true)), 0.0, "nothing was told of it");
}

/// A student that is its teacher has nothing to learn from what it writes; one that is not has a reverse KL that is worked out
/// here by itself, position by position.
#[test]
fn the_loss_is_the_divergence_at_the_student_s_own_tokens() {
    let case = Case::new();
    for (off, sharpened) in [(0.0, 1.0), (0.02, 1.0), (0.0, 1.5)] {
        let plan = on_policy(teacher(&case.bench, sharpened));
        let p = parameters(&case.bench, &case.settings, off);
        let (rows, sum) = case.writer(&plan, vec![1.0; 21]).rows_of(&p, &ROWS, 3).unwrap().unwrap();
        let base = Base::Frozen(&case.bench.decoder);
        let learner = Learner { on_policy: Some(Divergence::ReverseKl), ..Learner::new(base, &case.settings, &rows) };
        let found = learner.gradients(&p, &[0, 1, 2, 3, 4, 5], 3).unwrap();
        let (mut loss, mut weights) = (0f64, 0f64);
        for row in &rows {
            let adapter = p.adapter().unwrap().constants(case.bench.decoder.ops().as_ref());
            let student = distributions(&case.bench.decoder, Some(&adapter), &row.encoded, 1.0);
            let teacher = distributions(&case.bench.decoder, None, &row.encoded, sharpened);
            for (p, q) in teacher.iter().zip(&student) {
                let kl = |(p, q): (f32, f32)| f64::from(q).exp() * f64::from(q - p);
                loss += f64::from(row.weight) * p.log_probs().into_iter().zip(q.log_probs()).map(kl).sum::<f64>();
                weights += f64::from(row.weight);
            }
        }
        let want = loss / weights;
        assert!((found.loss - want).abs() < 1e-4 + 1e-3 * want, "{} {want}", found.loss);
        match (off, sharpened) {
            (0.0, 1.0) => assert!(found.norm < 1e-4 && sum.agrees < sum.tokens, "{} {sum:?}", found.norm),
            _ => assert!(found.norm > 1e-3 && want > 1e-3, "{} {want}", found.norm),
        }
    }
}

#[test]
fn a_killed_training_goes_on_to_the_same_bytes() {
    let bench = Bench::new();
    let s = settings();
    let plan = |name: &str| TrainPlan {
        told: Some(agreeing(&bench, &s)),
        on_policy: Some(OnPolicy { share: 0.6, after: 0.2, ..on_policy(teacher(&bench, 1.5)) }),
        ..bench.plan(name, &s)
    };
    let whole = plan("whole");
    let report = train(&whole, &bench.decoder, &bench.tokenizer, &bench.dataset, &Silent).unwrap();
    let Some(Written { rows, tokens, unread: 0, .. }) = report.written else { panic!("{:?}", report.written) };
    // 18 steps, of which 14 write 60 % of 4 rows (the last of an epoch has 1).
    assert!((20..=40).contains(&rows) && tokens > rows, "{rows} {tokens}");
    let want = files(&whole.out.join("adapter"));
    for n in [4, 11, 19, 26] {
        let plan = plan(&format!("killed-{n}"));
        let killed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            train(&plan, &bench.decoder, &bench.tokenizer, &bench.dataset, &die_at(n))
        }));
        assert!(killed.is_err(), "event {n}");
        let resumed = train(&plan, &bench.decoder, &bench.tokenizer, &bench.dataset, &Silent).unwrap();
        assert_eq!(resumed, report, "after event {n}");
        assert_eq!(files(&plan.out.join("adapter")), want, "after event {n}");
    }
}

/// What it is for: the student comes closer to its teacher where it goes itself.
#[test]
fn the_student_comes_closer_at_its_own_tokens() {
    let bench = Bench::new();
    let s = TrainSettings { num_epochs: 20, learning_rate: 1e-2, ..settings() };
    let moved = parameters(&bench, &s, 0.1).adapter().unwrap().constants(bench.decoder.ops().as_ref());
    let plan = TrainPlan {
        told: Some(agreeing(&bench, &s)),
        on_policy: Some(on_policy(Reader { lora: Some(moved), ..teacher(&bench, 1.0) })),
        ..bench.plan("closer", &s)
    };
    train(&plan, &bench.decoder, &bench.tokenizer, &bench.dataset, &Silent).unwrap();
    let log = std::fs::read_to_string(plan.out.join("loss.jsonl")).unwrap();
    let losses: Vec<f64> = log
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64().unwrap())
        .collect();
    let mean = |of: &[f64]| of.iter().sum::<f64>() / of.len() as f64;
    let (first, last) = (mean(&losses[..10]), mean(&losses[losses.len() - 10..]));
    assert!(last < 0.5 * first, "{first} {last}");
}
