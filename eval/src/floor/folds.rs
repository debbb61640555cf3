//! What a linear model that did not learn from a row says of it, for every row: the doubts that put a review queue in
//! order. The features are the floor's; learning goes over the rows one by one and stops early, since the order of its
//! doubts is there long before the last digits of its weights.
//!
//! No fold starts from another's weights: they have seen the rows that this one is to answer for.

use super::FloorRow;
use super::grams::{Rows, Vocabulary};
use crate::SplitMix64;
use rayon::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Times that a fold sees a row at most. Where labels are wrong, more would learn the wrong ones by heart.
const MOST_PASSES: usize = 4;
/// The first step's length; it falls to 0 in a straight line.
const RATE: f32 = 1.0;
/// Numbers that are worked on at once: a class's weights are padded to a multiple.
const LANES: usize = 16;
/// Steps between two words about how far it is.
const TELL: usize = 512;

/// What a linear model that did not learn from a row says of it, for every row: [rows][labels]. The rows are dealt into
/// `folds`, label by label, and each fold is answered by a model of the others, which sees at most `visits` rows, each
/// several times where there are few. The same bits on any number of threads. `told` hears the share that is done, from
/// any thread.
pub fn out_of_fold(
    rows: &[FloorRow<'_>],
    labels: usize,
    folds: usize,
    visits: usize,
    told: &(dyn Fn(f32) + Sync),
) -> Vec<Vec<f32>> {
    let folds = folds.clamp(2, rows.len().max(2));
    let order = dealt(rows);
    let texts: Vec<&str> = order.iter().map(|i| rows[*i].text).collect();
    let vocabulary = Vocabulary::of(&texts);
    told(0.05);
    let vectors = Rows::of(&texts, &vocabulary);
    told(0.1);
    let task = Task { rows, order: &order, vectors: &vectors, labels, folds, visits };
    let (done, all) = (AtomicUsize::new(0), task.steps().max(1));
    let step = |n: usize| told(0.1 + 0.85 * (done.fetch_add(n, Ordering::Relaxed) + n) as f32 / all as f32);
    let answers: Vec<Vec<(usize, Vec<f32>)>> = (0..folds).into_par_iter().map(|fold| task.fold(fold, &step)).collect();
    let mut posteriors = vec![Vec::new(); rows.len()];
    answers.into_iter().flatten().for_each(|(row, answer)| posteriors[row] = answer);
    told(1.0);
    posteriors
}

/// The rows label by label, otherwise in an order that has nothing to do with the log's, or a fold would be a season.
fn dealt(rows: &[FloorRow<'_>]) -> Vec<usize> {
    let scattered = |i: &usize| {
        let hash = rows[*i]
            .text
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        (rows[*i].label, SplitMix64::new(hash).next_u64(), *i)
    };
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_cached_key(scattered);
    order
}

struct Task<'a> {
    rows: &'a [FloorRow<'a>],
    /// The places that folds are dealt from, each a row's number.
    order: &'a [usize],
    /// By place.
    vectors: &'a Rows<'a>,
    labels: usize,
    folds: usize,
    visits: usize,
}

impl Task<'_> {
    /// The places that a fold learns from, and how often.
    fn learned(&self, fold: usize) -> (Vec<usize>, usize) {
        let rest: Vec<usize> = (0..self.order.len()).filter(|place| place % self.folds != fold).collect();
        // Every so-many-th, so that each label keeps its share.
        let step = rest.len().div_ceil(self.visits.max(1)).max(1);
        let learned: Vec<usize> = rest.into_iter().step_by(step).collect();
        let passes = (self.visits / learned.len().max(1)).clamp(1, MOST_PASSES);
        (learned, passes)
    }

    fn steps(&self) -> usize {
        (0..self.folds).map(|fold| self.learned(fold)).map(|(learned, passes)| learned.len() * passes).sum()
    }

    /// Learns from the others and answers for the fold's own: (row, distribution).
    fn fold(&self, fold: usize, step: &(dyn Fn(usize) + Sync)) -> Vec<(usize, Vec<f32>)> {
        let (mut learned, passes) = self.learned(fold);
        let mut model = Linear::new(self.vectors.features(), self.labels);
        let mut scratch = Scratch::of(&model);
        let mut rng = SplitMix64::new(fold as u64);
        let all = (learned.len() * passes) as f32;
        let mut seen = 0;
        for _ in 0..passes {
            for i in (1..learned.len()).rev() {
                learned.swap(i, rng.below(i + 1));
            }
            for place in &learned {
                let row = &self.rows[self.order[*place]];
                self.vectors.read(*place, &mut scratch.row);
                let rate = RATE * (1.0 - seen as f32 / all) * row.weight;
                model.step(&mut scratch, row.label, rate);
                seen += 1;
                if seen % TELL == 0 {
                    step(TELL);
                }
            }
        }
        step(seen % TELL);
        let held: Vec<usize> = (fold..self.order.len()).step_by(self.folds).collect();
        held.par_iter()
            .map_init(
                || Scratch::of(&model),
                |scratch, place| {
                    self.vectors.read(*place, &mut scratch.row);
                    model.answer(scratch);
                    (self.order[*place], scratch.answer[..self.labels].to_vec())
                },
            )
            .collect()
    }
}

/// Weights [features][labels], padded.
struct Linear {
    weights: Vec<f32>,
    intercepts: Vec<f32>,
    labels: usize,
}

struct Scratch {
    /// (feature, weight)
    row: Vec<(u16, f32)>,
    /// [labels], padded.
    answer: Vec<f32>,
}

impl Scratch {
    fn of(model: &Linear) -> Scratch {
        Scratch { row: Vec::new(), answer: vec![0.0; model.intercepts.len()] }
    }
}

impl Linear {
    fn new(features: usize, labels: usize) -> Linear {
        let padded = labels.next_multiple_of(LANES);
        Linear { weights: vec![0.0; features * padded], intercepts: vec![0.0; padded], labels }
    }

    fn weights_of(&self, feature: u16) -> std::ops::Range<usize> {
        let padded = self.intercepts.len();
        usize::from(feature) * padded..(usize::from(feature) + 1) * padded
    }

    /// The distribution over the labels for the row in `scratch`, into its `answer`.
    fn answer(&self, scratch: &mut Scratch) {
        scratch.answer.copy_from_slice(&self.intercepts);
        for (feature, weight) in &scratch.row {
            add(&mut scratch.answer, *weight, &self.weights[self.weights_of(*feature)]);
        }
        let (answer, padding) = scratch.answer.split_at_mut(self.labels);
        padding.fill(0.0);
        let top = answer.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        answer.iter_mut().for_each(|score| *score = (*score - top).exp());
        let total: f32 = answer.iter().sum();
        answer.iter_mut().for_each(|p| *p /= total);
    }

    /// One step down the row's own loss.
    fn step(&mut self, scratch: &mut Scratch, gold: usize, rate: f32) {
        self.answer(scratch);
        scratch.answer[gold] -= 1.0;
        for (feature, weight) in &scratch.row {
            let range = self.weights_of(*feature);
            add(&mut self.weights[range], -rate * weight, &scratch.answer);
        }
        add(&mut self.intercepts, -rate, &scratch.answer);
    }
}

/// Both of a length that is a multiple of [`LANES`].
fn add(to: &mut [f32], factor: f32, from: &[f32]) {
    let (to, from) = (to.as_chunks_mut::<LANES>().0, from.as_chunks::<LANES>().0);
    for (to, from) in to.iter_mut().zip(from) {
        for lane in 0..LANES {
            to[lane] += factor * from[lane];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LinearFloor;

    #[test]
    fn a_row_is_answered_by_a_model_that_never_saw_it() {
        let texts: Vec<String> = (0..60)
            .map(|i| format!("{} case {i} word{i}", ["card lost", "money sent", "pin blocked"][i % 3]))
            .collect();
        // Row 0 carries a label that nothing else in its text's company does.
        let label = |i: usize| if i == 0 { 1 } else { i % 3 };
        let rows: Vec<FloorRow<'_>> =
            texts.iter().enumerate().map(|(i, text)| FloorRow { text, label: label(i), weight: 1.0 }).collect();
        let answers = out_of_fold(&rows, 3, 5, 1_000, &|_| {});
        for (i, answer) in answers.iter().enumerate() {
            assert!((answer.iter().sum::<f32>() - 1.0).abs() < 1e-4);
            assert_eq!(crate::argmax(answer), Some(i % 3), "row {i}");
        }
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(one.install(|| out_of_fold(&rows, 3, 5, 1_000, &|_| {})), answers, "on one thread");
        assert!(out_of_fold(&rows, 3, 5, 20, &|_| {})[0][0] > 0.3);
        assert_eq!(out_of_fold(&rows[..1], 3, 5, 20, &|_| {})[0].len(), 3, "one row, and none to learn from");
        assert!(out_of_fold(&[], 3, 5, 20, &|_| {}).is_empty());
    }

    #[test]
    fn what_is_told_grows_to_all() {
        let texts: Vec<String> = (0..2_000).map(|i| format!("word{} word{}", i % 7, i % 11)).collect();
        let rows: Vec<FloorRow<'_>> =
            texts.iter().enumerate().map(|(i, text)| FloorRow { text, label: i % 7, weight: 1.0 }).collect();
        let heard = std::sync::Mutex::new(Vec::new());
        out_of_fold(&rows, 7, 5, 1_000, &|share| heard.lock().unwrap().push(share));
        let heard = heard.into_inner().unwrap();
        assert_eq!(heard.last(), Some(&1.0));
        assert!(heard.len() > 5 && heard.iter().all(|share| (0.0..=1.0).contains(share)), "{heard:?}");
    }

    /// Against the loss itself: the step is along its gradient by finite differences.
    #[test]
    fn a_step_goes_down_the_gradient() {
        let row = vec![(0_u16, 0.6_f32), (2, -0.8)];
        let mut model = Linear::new(3, 5);
        let mut rng = SplitMix64::new(4);
        for feature in 0..3 {
            for label in 0..5 {
                model.weights[feature * LANES + label] = rng.unit() as f32 - 0.5;
            }
        }
        let loss = |model: &Linear| {
            let mut scratch = Scratch { row: row.clone(), ..Scratch::of(model) };
            model.answer(&mut scratch);
            -f64::from(scratch.answer[3]).ln()
        };
        let mut stepped = Linear { weights: model.weights.clone(), intercepts: model.intercepts.clone(), labels: 5 };
        stepped.step(&mut Scratch { row: row.clone(), ..Scratch::of(&model) }, 3, 1.0);
        for (feature, label) in (0..3).flat_map(|feature| (0..5).map(move |label| (feature, label))) {
            let at = feature * LANES + label;
            let (before, h) = (model.weights[at], 1e-2);
            model.weights[at] = before + h;
            let above = loss(&model);
            model.weights[at] = before - h;
            let slope = (above - loss(&model)) / f64::from(2.0 * h);
            model.weights[at] = before;
            let taken = f64::from(before - stepped.weights[at]);
            assert!((taken - slope).abs() < 1e-3, "{feature} {label}: {taken} {slope}");
        }
        assert!(stepped.weights.chunks(LANES).all(|w| w[5..].iter().all(|x| *x == 0.0)), "padding stays empty");
    }

    /// The floor, which minimises the same loss to the end, agrees about what most rows are.
    #[test]
    fn it_says_what_the_floor_would() {
        let words = ["card", "money", "pin", "app", "fee"];
        let mut rng = SplitMix64::new(9);
        // Every tenth text says nothing of its label.
        let word = |i: usize| if i % 10 == 9 { "so" } else { words[i % 5] };
        let mut other = || format!("thing{} thing{}", rng.below(20), rng.below(20));
        let texts: Vec<String> = (0..300).map(|i| format!("{} {}", word(i), other())).collect();
        let rows: Vec<FloorRow<'_>> =
            texts.iter().enumerate().map(|(i, text)| FloorRow { text, label: i % 5, weight: 1.0 }).collect();
        let (order, answers) = (dealt(&rows), out_of_fold(&rows, 5, 5, 60_000, &|_| {}));
        let mut alike = 0;
        for fold in 0..5 {
            let train: Vec<FloorRow<'_>> = (0..300)
                .filter(|place| place % 5 != fold)
                .map(|place| &rows[order[place]])
                .map(|row| FloorRow { text: row.text, label: row.label, weight: 1.0 })
                .collect();
            let floor = LinearFloor::train(&train, 5);
            let held = (fold..300).step_by(5).map(|place| order[place]);
            alike +=
                held.filter(|i| crate::argmax(&floor.posterior(rows[*i].text)) == crate::argmax(&answers[*i])).count();
        }
        assert!(alike >= 275, "{alike} of 300");
    }
}
