//! Learning from a teacher's posteriors: the loss against PyTorch, its place in a step, and the whole training.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use burn::tensor::{Device, Tensor, TensorData};
use common::{Bench, die_at, example, files, settings};
use limbeck_artifact::capture::prompt_key;
use limbeck_artifact::dataset::{Dataset, DatasetCard, Example, LabelSource, Split, example_id};
use limbeck_artifact::event::{EventKind, Silent};
use limbeck_model::device::{DeviceName, ops};
use limbeck_model::label_trie::LabelTrie;
use limbeck_model::ops::stock::StockOps;
use limbeck_model::ops::{Frozen, Ops};
use limbeck_model::score::LabelScorer;
use limbeck_trainer::batch::TrainRow;
use limbeck_trainer::divergence::Divergence;
use limbeck_trainer::learner::{Gradients, Learner};
use limbeck_trainer::parameters::Parameters;
use limbeck_trainer::partition::Partition;
use limbeck_trainer::rows::{encode_with, soft_loss};
use limbeck_trainer::soft::{SoftLabel, SoftLoss, SoftPlace};
use limbeck_trainer::turbo::{CacheDtype, HiddenCache};
use limbeck_trainer::{Base, Distilled, HeadKind, TrainPlan, TrainSettings, Unlabeled, train};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

#[derive(Deserialize)]
struct Golden {
    width: usize,
    vocab: usize,
    tokens: usize,
    labels: Vec<Vec<u32>>,
    nodes: Vec<(u32, i64)>,
    denominator: f32,
    rows: Vec<(usize, usize, f32)>,
    teacher: Vec<Vec<f32>>,
    hidden: Vec<f32>,
    head: Vec<f32>,
    cases: Vec<Case>,
    /// Of each row, the forks that it computes in the cases of `coarse`, and what its teacher says there.
    forks: Vec<Vec<usize>>,
    coarse_teacher: Vec<Vec<f32>>,
    coarse: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    divergence: Divergence,
    temperature: f64,
    loss: f64,
    by_hidden: Vec<f32>,
    by_head: Vec<f32>,
}

/// Of the golden gradients.
const HIDDEN: [usize; 9] = [3, 4, 5, 12, 20, 21, 31, 32, 33];
const HEAD: [usize; 7] = [1, 2, 3, 4, 5, 7, 9];

/// tests/reference/label_kd.py: both op sets, a head that is trained and one that is frozen.
#[test]
fn loss_and_gradients_are_pytorchs() {
    let golden: Golden = serde_json::from_str(include_str!("label_kd.json")).unwrap();
    let trie = LabelTrie::new(&golden.labels).unwrap();
    let nodes: Vec<(u32, i64)> =
        trie.nodes().iter().map(|(t, p)| (*t, if *p == u32::MAX { -1 } else { *p as i64 })).collect();
    assert_eq!(nodes, golden.nodes);
    let rows = |teacher: &[Vec<f32>], partition: &dyn Fn(usize) -> Partition| -> Vec<SoftPlace> {
        let row = |(i, (root, nodes, weight)): (usize, &(usize, usize, f32))| SoftPlace {
            root: *root,
            nodes: *nodes,
            label: SoftLabel { posterior: teacher[i].clone(), weight: *weight, partition: Arc::new(partition(i)) },
        };
        golden.rows.iter().enumerate().map(row).collect()
    };
    let whole = rows(&golden.teacher, &|_| Partition::whole(&trie));
    let coarse = rows(&golden.coarse_teacher, &|i| Partition::new(&trie, golden.forks[i].clone()));
    let cases = golden.cases.iter().map(|case| (case, &whole)).chain(golden.coarse.iter().map(|case| (case, &coarse)));
    let stock: Arc<dyn Ops> = Arc::new(StockOps::new(Device::flex()));
    for ops in [stock, ops(DeviceName::Cpu).unwrap()] {
        let tensor = |data: &[f32], rows: usize| -> Tensor<2> {
            Tensor::from_data(TensorData::new(data.to_vec(), [rows, golden.width]), &ops.device()).require_grad()
        };
        for (case, rows) in cases.clone() {
            let part = if rows[0].label.partition.forks.len() == 3 { "" } else { ", in part" };
            let what = format!("{:?} at {}{part}", case.divergence, case.temperature);
            let loss = SoftLoss::new(trie.clone(), case.divergence, case.temperature, false);
            let frozen = ops.freeze(golden.head.clone(), golden.vocab, golden.width, true);
            for head in [None, Some(tensor(&golden.head, golden.vocab))] {
                let hidden = tensor(&golden.hidden, golden.tokens);
                let used = head.as_ref().map_or(frozen.clone(), |head| Frozen::trained(head.clone(), None));
                let value = loss.of(ops.as_ref(), hidden.clone(), &used, rows, golden.denominator);
                let read = |data: TensorData| data.convert::<f32>().try_into_vec::<f32>().unwrap();
                let found = f64::from(read(value.to_data())[0]);
                assert!((found - case.loss).abs() < 2e-6 * case.loss.max(1.0), "{what}: {found} for {}", case.loss);
                let mut gradients = value.backward();
                let close = |found: Vec<f32>, of: &[usize], want: &[f32]| {
                    let size = want.iter().fold(0f32, |m, x| m.max(x.abs()));
                    for (i, row) in of.iter().enumerate() {
                        for j in 0..golden.width {
                            let (a, b) = (found[row * golden.width + j], want[i * golden.width + j]);
                            assert!((a - b).abs() < 1e-5 * size.max(0.1), "{what}, row {row}: {a} for {b}");
                        }
                    }
                };
                let by_hidden = read(hidden.grad_remove(&mut gradients).unwrap().into_data());
                let elsewhere = (0..golden.tokens).filter(|row| !HIDDEN.contains(row));
                assert!(elsewhere.flat_map(|r| &by_hidden[r * golden.width..][..golden.width]).all(|x| *x == 0.0));
                close(by_hidden, &HIDDEN, &case.by_hidden);
                if let Some(head) = head {
                    close(read(head.grad_remove(&mut gradients).unwrap().into_data()), &HEAD, &case.by_head);
                }
            }
        }
    }
}

/// Two that share a beginning, so that their trie has nodes.
const LABELS: [&str; 3] = ["the end", "the thing", "and"];

struct Taught {
    bench: Bench,
    dataset: Dataset,
    plan: TrainPlan,
}

fn relabelled(i: usize, split: Split) -> Example {
    let e = example(i, split);
    let target = LABELS[i % 3].to_owned();
    Example { id: example_id(&e.messages, &target), target, ..e }
}

/// What a teacher would say: mostly `i % 3`, of some rows something else.
fn posterior(i: usize) -> Vec<f32> {
    let mut p = vec![0.1; 3];
    p[if i.is_multiple_of(7) { (i + 1) % 3 } else { i % 3 }] = 0.8;
    p
}

impl Taught {
    fn new(s: &TrainSettings, change: impl Fn(&mut Distilled)) -> Taught {
        let bench = Bench::new();
        let rows = |n: usize, split| (0..n).map(|i| relabelled(i, split)).collect::<Vec<_>>();
        let (train, valid) = (rows(12, Split::Train), rows(3, Split::Valid));
        let mut posteriors: BTreeMap<String, Vec<f32>> =
            train.iter().enumerate().map(|(i, e)| (prompt_key(&e.messages), posterior(i))).collect();
        let unlabeled: Vec<Unlabeled> = (0..6)
            .map(|i| Unlabeled { id: format!("calls.jsonl:{i}"), messages: example(i, Split::Test).messages })
            .collect();
        posteriors.extend(unlabeled.iter().enumerate().map(|(i, u)| (prompt_key(&u.messages), posterior(i + 1))));
        let card =
            DatasetCard { labels: LABELS.map(String::from).to_vec(), traces_in: 15, ..bench.dataset.card.clone() };
        let dir = bench.folder.path().join("relabelled");
        Dataset::write(&dir, card, BTreeMap::from([(Split::Train, train), (Split::Valid, valid)])).unwrap();
        let dataset = Dataset::load(&dir).unwrap();
        // The card sorts its labels.
        let order = ["and", "the end", "the thing"].map(|l| LABELS.iter().position(|own| *own == l).unwrap());
        posteriors.values_mut().for_each(|p| *p = order.iter().map(|at| p[*at]).collect());
        let mut distilled = Distilled {
            lambda: 0.5,
            divergence: Divergence::ForwardKl,
            temperature: 2.0,
            exact_mass: 1.0,
            posteriors,
            trust: vec![0.75, 1.0, 0.5],
            unlabeled,
        };
        change(&mut distilled);
        let plan = TrainPlan { distilled: Some(distilled), ..bench.plan("taught", s) };
        Taught { bench, dataset, plan }
    }

    fn rows(&self) -> (Vec<TrainRow>, SoftLoss) {
        let tokenizer = &self.bench.tokenizer;
        let soft = soft_loss(&self.plan, tokenizer, &self.dataset).unwrap().unwrap();
        (encode_with(tokenizer, &self.dataset, &self.plan, Some(&soft), &Silent).unwrap(), soft)
    }

    /// After some training: with B at zero, A would have no gradient.
    fn parameters(&self) -> Parameters {
        let s = &self.plan.settings;
        let config = limbeck_model::adapter::AdapterConfig::lora("tiny", s.r, s.lora_alpha, &s.target_modules, false);
        let labels = &self.dataset.card.labels;
        let mut parameters = match s.head {
            HeadKind::Verbalizer => Parameters::init(config, &self.bench.decoder, 7),
            HeadKind::Classification => Parameters::init_classifier(config.with_head(), labels, &self.bench.decoder, 7),
        };
        let mut z = 1u64;
        for p in parameters.all.values_mut() {
            for x in &mut p.values {
                z = z.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                *x += (z >> 40) as f32 / (1u64 << 24) as f32 * 0.2 - 0.1;
            }
        }
        parameters
    }

    fn step(&self, rows: &[TrainRow], soft: &SoftLoss, p: &Parameters, cache: Option<&HiddenCache>) -> Gradients {
        let all: Vec<usize> = (0..rows.len()).collect();
        let base = Base::Frozen(&self.bench.decoder);
        let learner = Learner {
            base,
            settings: &self.plan.settings,
            rows,
            cache,
            soft: Some(soft),
            divergence: None,
            matched: None,
        };
        learner.gradients(p, &all, 0).unwrap()
    }
}

fn distance(a: &Gradients, b: &Gradients) -> f32 {
    assert!(a.of.keys().eq(b.of.keys()) && !a.of.is_empty());
    let all = |g: &Gradients| g.of.values().flatten().copied().collect::<Vec<f32>>();
    let (a, b) = (all(a), all(b));
    let size = b.iter().fold(1e-9f32, |m, x| m.max(x.abs()));
    a.iter().zip(&b).fold(0f32, |m, (x, y)| m.max((x - y).abs())) / size
}

const HEADS: [HeadKind; 2] = [HeadKind::Verbalizer, HeadKind::Classification];

/// What a step's loss is made of, by the posterior that scores.
#[test]
fn the_loss_is_the_divergence_of_the_posterior_that_scores() {
    for head in HEADS {
        let s = TrainSettings { head, ..settings() };
        let taught = Taught::new(&s, |d| d.temperature = 1.0);
        let (rows, soft) = taught.rows();
        assert_eq!(soft.added_tokens() > 0, head == HeadKind::Verbalizer);
        let whole = Partition::whole(soft.trie());
        assert!(rows.iter().filter_map(|row| row.soft.as_ref()).all(|soft| *soft.label.partition == whole));
        let unlabeled: Vec<TrainRow> = rows[rows.len() - 6..].to_vec();
        let parameters = taught.parameters();
        let found = taught.step(&unlabeled, &soft, &parameters, None).loss;
        let decoder = taught.bench.decoder.clone();
        let lora = parameters.adapter().unwrap().constants(decoder.ops().as_ref());
        let (tokenizer, labels) = (taught.bench.tokenizer.clone(), &taught.dataset.card.labels);
        let scorer = match parameters.frozen_head(decoder.ops().as_ref()) {
            None => LabelScorer::new(decoder, tokenizer, labels),
            Some(head) => LabelScorer::by_head(decoder, tokenizer, labels, head),
        };
        let scorer = scorer.unwrap().with_lora(lora);
        let distilled = taught.plan.distilled.as_ref().unwrap();
        let (mut loss, mut weights) = (0f64, 0f64);
        for u in &distilled.unlabeled {
            let (p, q) = (&distilled.posteriors[&prompt_key(&u.messages)], scorer.score(&u.messages).unwrap());
            let said = (0..3).max_by(|a, b| p[*a].total_cmp(&p[*b])).unwrap();
            let weight = f64::from(distilled.trust[said]);
            let kl: f64 = p.iter().zip(&q).map(|(p, q)| f64::from(*p) * f64::from(p / q).ln()).sum();
            (loss, weights) = (loss + weight * kl, weights + weight);
        }
        assert!((found - loss / weights).abs() < 1e-4 * found, "{head:?}: {found} for {}", loss / weights);
    }
}

/// Where "the end" and "the thing" are not told apart, they count as what they have together in the posterior that scores.
#[test]
fn what_is_not_told_apart_counts_together() {
    let taught = Taught::new(&settings(), |d| (d.temperature, d.exact_mass) = (1.0, 0.5));
    let (rows, soft) = taught.rows();
    let (parameters, decoder) = (taught.parameters(), taught.bench.decoder.clone());
    let lora = parameters.adapter().unwrap().constants(decoder.ops().as_ref());
    let labels = &taught.dataset.card.labels;
    let scorer = LabelScorer::new(decoder, taught.bench.tokenizer.clone(), labels).unwrap().with_lora(lora);
    let distilled = taught.plan.distilled.as_ref().unwrap();
    let mut lumped = 0;
    for (u, row) in distilled.unlabeled.iter().zip(&rows[rows.len() - 6..]) {
        let (p, q) = (&distilled.posteriors[&prompt_key(&u.messages)], scorer.score(&u.messages).unwrap());
        let mut pairs: Vec<(f32, f32)> = p.iter().copied().zip(q).collect();
        if p[0] > 0.5 {
            let (end, thing) = (pairs[1], pairs[2]);
            pairs = vec![pairs[0], (end.0 + thing.0, end.1 + thing.1)];
            lumped += 1;
        }
        let told = row.soft.as_ref().unwrap();
        assert_eq!((told.label.partition.outcomes.len(), told.tree.is_empty()), (pairs.len(), pairs.len() == 2));
        let kl: f64 = pairs.iter().map(|(p, q)| f64::from(*p) * f64::from(p / q).ln()).sum();
        let found = taught.step(std::slice::from_ref(row), &soft, &parameters, None).loss;
        assert!((found - kl).abs() < 1e-4 * kl.max(0.1), "{found} for {kl}");
    }
    assert!(lumped > 0 && lumped < 6);
}

/// The gradient of a step that has rows of all kinds, against differences of its loss.
#[test]
fn the_gradient_of_a_mixed_step_is_that_of_its_loss() {
    for (head, exact_mass) in HEADS.into_iter().map(|head| (head, 1.0)).chain([(HeadKind::Verbalizer, 0.5)]) {
        for divergence in [Divergence::ForwardKl, Divergence::JensenShannon { beta: 0.5 }] {
            let taught = Taught::new(&TrainSettings { head, ..settings() }, |d| {
                (d.divergence, d.exact_mass) = (divergence, exact_mass);
            });
            let (rows, soft) = taught.rows();
            let mut parameters = taught.parameters();
            let gradients = taught.step(&rows, &soft, &parameters, None);
            for (name, grad) in gradients.of.iter().step_by(7) {
                let largest = (0..grad.len()).max_by(|a, b| grad[*a].abs().total_cmp(&grad[*b].abs())).unwrap();
                let mut at = |by: f32| {
                    parameters.all.get_mut(name).unwrap().values[largest] += by;
                    let loss = taught.step(&rows, &soft, &parameters, None).loss;
                    parameters.all.get_mut(name).unwrap().values[largest] -= by;
                    loss
                };
                let difference = (at(1e-2) - at(-1e-2)) / 2e-2;
                let gap = (difference - f64::from(grad[largest])).abs();
                assert!(
                    gap < 2e-2 * f64::from(grad[largest].abs()) + 2e-4,
                    "{head:?} {name}: {difference} {}",
                    grad[largest]
                );
            }
        }
    }
}

#[test]
fn a_row_in_a_tree_learns_its_answer_as_a_chain_does() {
    let taught = Taught::new(&settings(), |d| (d.lambda, d.unlabeled) = (1e-7, Vec::new()));
    let (rows, soft) = taught.rows();
    let parameters = taught.parameters();
    let told = rows.iter().filter(|row| row.soft.as_ref().is_some_and(|soft| !soft.tree.is_empty())).count();
    assert_eq!(told, 10, "where a person decided otherwise, the teacher is not heard");
    let plain: Vec<TrainRow> = rows.iter().cloned().map(|row| TrainRow { soft: None, ..row }).collect();
    let (found, want) = (taught.step(&rows, &soft, &parameters, None), taught.step(&plain, &soft, &parameters, None));
    assert!(distance(&found, &want) < 1e-4 && (found.loss - want.loss).abs() < 1e-4);
    // "and" lies beside the nodes that "the end" and "the thing" share.
    assert!(rows.iter().any(|row| row.computed() > row.encoded.len() - 1));
}

#[test]
fn how_rows_are_cut_and_cached_changes_nothing_but_rounding() {
    for (head, exact_mass) in HEADS.into_iter().map(|head| (head, 1.0)).chain([(HeadKind::Verbalizer, 0.5)]) {
        let s = TrainSettings { head, turbo_layers: 2, ..settings() };
        let taught = Taught::new(&s, |d| d.exact_mass = exact_mass);
        let (rows, soft) = taught.rows();
        let mut parameters = taught.parameters();
        parameters.all.retain(|name, _| !name.contains("layers.0."));
        let whole = taught.step(&rows, &soft, &parameters, None);
        let cache = HiddenCache::fill(&taught.bench.decoder, &rows, 1, CacheDtype::F32).unwrap();
        assert!(distance(&taught.step(&rows, &soft, &parameters, Some(&cache)), &whole) < 1e-5, "{head:?}");
        let mut one = Taught::new(&TrainSettings { batch_size: 1, ..s.clone() }, |d| d.exact_mass = exact_mass);
        one.plan.settings.gradient_accumulation_steps = rows.len();
        assert!(distance(&one.step(&rows, &soft, &parameters, None), &whole) < 1e-5, "{head:?}");
    }
}

#[test]
fn weights_follow_who_confirmed_what() {
    let taught = Taught::new(&settings(), |d| {
        // The label "and" is never trusted.
        d.trust = vec![0.0, 1.0, 0.5];
        d.unlabeled.push(Unlabeled { id: "later".to_owned(), messages: example(99, Split::Test).messages });
    });
    let (rows, soft) = (Mutex::new(Vec::new()), soft_loss(&taught.plan, &taught.bench.tokenizer, &taught.dataset));
    let note = |kind: EventKind| {
        if let EventKind::Note { text } = kind {
            rows.lock().unwrap().push(text);
        }
    };
    let (tokenizer, soft) = (&taught.bench.tokenizer, soft.unwrap());
    let made = encode_with(tokenizer, &taught.dataset, &taught.plan, soft.as_ref(), &note).unwrap();
    let said = rows.lock().unwrap().join("\n");
    for part in
        ["10 rows beside their labels", "2 keep their label alone", "1 unlabeled ones have no captured", "tokens more"]
    {
        assert!(said.contains(part), "{said}");
    }
    // Row 0 was decided otherwise: its label counts whole. Row 1 was confirmed: half and half, whatever the trust.
    assert!(made[0].soft.is_none() && made[0].weight == 0.5);
    assert_eq!((made[1].weight, made[1].soft.as_ref().unwrap().label.weight), (0.5, 0.5));
    let weights: Vec<f32> = made[12..].iter().map(|row| row.soft.as_ref().unwrap().label.weight).collect();
    assert!(made[12..].iter().all(|row| row.weight == 0.0 && row.encoded.loss_tokens() == 0));
    assert!(weights.len() < 6 && weights.iter().all(|w| [1.0, 0.5].contains(w)), "{weights:?}");

    let unreviewed = Taught::new(&settings(), |_| ());
    let mut e = unreviewed.dataset.rows(Split::Train)[1].clone();
    e.label_source = LabelSource::Teacher;
    let dir = unreviewed.bench.folder.path().join("unreviewed");
    let card = DatasetCard { traces_in: 1, ..unreviewed.dataset.card.clone() };
    Dataset::write(&dir, card, BTreeMap::from([(Split::Train, vec![e])])).unwrap();
    let dataset = Dataset::load(&dir).unwrap();
    let made = encode_with(tokenizer, &dataset, &unreviewed.plan, soft.as_ref(), &Silent).unwrap();
    // "the thing" is worth a half where nobody confirmed it.
    assert_eq!(made[0].soft.as_ref().unwrap().label.weight, 0.25);

    let broken = Taught::new(&settings(), |d| d.posteriors.values_mut().for_each(|p| p[0] = 0.7));
    let e = encode_with(tokenizer, &broken.dataset, &broken.plan, soft.as_ref(), &Silent).unwrap_err().to_string();
    assert!(e.contains("is no posterior") && e.contains("Capture it again"), "{e}");
}

#[test]
fn killed_at_any_event_it_ends_in_the_same_bytes() {
    for head in HEADS {
        let s = TrainSettings { head, num_epochs: 3, learning_rate: 1e-2, save_steps: 3, ..settings() };
        let taught = Taught::new(&s, |_| ());
        let run = |plan: &TrainPlan, emit: &dyn limbeck_artifact::event::Emit| {
            train(plan, &taught.bench.decoder, &taught.bench.tokenizer, &taught.dataset, emit)
        };
        let report = run(&taught.plan, &Silent).unwrap();
        assert_eq!((report.soft_rows, report.unlabeled_rows, report.rows), (16, 6, 18));
        let whole = files(&taught.plan.out);
        let log = String::from_utf8(whole[std::path::Path::new("loss.jsonl")].clone()).unwrap();
        let losses: Vec<f64> = log
            .lines()
            .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["loss"].as_f64().unwrap())
            .collect();
        let mean = |of: &[f64]| of.iter().sum::<f64>() / of.len() as f64;
        // A head begins where all labels are alike, which is not far from this teacher.
        let most = if head == HeadKind::Verbalizer { 0.8 } else { 1.1 };
        assert!(mean(&losses[losses.len() - 4..]) < most * mean(&losses[..4]), "{losses:?}");
        for n in [4, 13] {
            let plan = TrainPlan { out: taught.plan.out.with_extension(n.to_string()), ..taught.plan.clone() };
            let dies = die_at(n);
            assert!(catch_unwind(AssertUnwindSafe(|| run(&plan, &dies))).is_err(), "event {n} was not reached");
            run(&plan, &Silent).unwrap();
            assert!(files(&plan.out) == whole, "{head:?}, killed at event {n}");
        }
    }
}
