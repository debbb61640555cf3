//! What the answers of one arm are worth on rows whose truth is known: accuracy, macro-F1, per-class precision and
//! recall, confusion. Pure functions of predictions and gold labels; golden values come from scikit-learn.

use crate::extraction::Extraction;
use crate::statistics::{Interval, wilson};
use serde::{Deserialize, Serialize};

/// One arm's answer to one row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// The example's id.
    pub row: String,
    /// Index into the labels; None when the answer was none of them (an invalid answer, which counts as wrong).
    pub label: Option<usize>,
    /// Distribution over the labels, in their order; None where only an answer was recorded.
    pub posterior: Option<Vec<f32>>,
    /// Wall time of the call, in milliseconds, rounded to the microsecond.
    pub latency_ms: Option<f64>,
    /// What was written, where answers are fields; `label` then numbers the distinct answers of one evaluation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said: Option<Said>,
    /// What the call came to, where it is paid by the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Tokens>,
}

/// Tokens of a call: of the prompt and of the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    pub prompt: u64,
    pub completion: u64,
}

/// An answer in words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Said {
    pub text: String,
    /// Of the answer as a whole, from 0 to 1: the product of its tokens' probabilities. None where only an answer was
    /// recorded.
    pub confidence: Option<f64>,
}

/// Rows by gold label and answer. `counts[gold][predicted]`; `invalid[gold]` are answers outside the labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Confusion {
    pub counts: Vec<Vec<u64>>,
    pub invalid: Vec<u64>,
}

impl Confusion {
    pub fn count(gold: &[usize], predicted: &[Option<usize>], labels: usize) -> Confusion {
        let mut confusion = Confusion { counts: vec![vec![0; labels]; labels], invalid: vec![0; labels] };
        for (&gold, predicted) in gold.iter().zip(predicted) {
            match predicted {
                Some(label) if *label < labels => confusion.counts[gold][*label] += 1,
                _ => confusion.invalid[gold] += 1,
            }
        }
        confusion
    }

    /// Rows whose gold label is `class`.
    pub fn support(&self, class: usize) -> u64 {
        self.counts[class].iter().sum::<u64>() + self.invalid[class]
    }

    /// Rows answered with `class`.
    pub fn predicted(&self, class: usize) -> u64 {
        self.counts.iter().map(|row| row[class]).sum()
    }

    pub fn correct(&self) -> u64 {
        (0..self.counts.len()).map(|class| self.counts[class][class]).sum()
    }

    pub fn rows(&self) -> u64 {
        (0..self.counts.len()).map(|class| self.support(class)).sum()
    }

    /// Mean F1 over the classes that occur among the gold labels; 0 when there is none.
    pub fn macro_f1(&self) -> f64 {
        let (mut sum, mut classes) = (0.0, 0_u32);
        for class in 0..self.counts.len() {
            let support = self.support(class);
            if support > 0 {
                // F1 = 2 TP / (gold + predicted), which is 0 and not 0/0 for a class that is never answered.
                sum += 2.0 * self.counts[class][class] as f64 / (support + self.predicted(class)) as f64;
                classes += 1;
            }
        }
        if classes == 0 { 0.0 } else { sum / f64::from(classes) }
    }

    /// Off-diagonal cells (gold, predicted, rows), most rows first, ties in label order.
    pub fn confusions(&self) -> Vec<(usize, usize, u64)> {
        let mut pairs: Vec<_> = self
            .counts
            .iter()
            .enumerate()
            .flat_map(|(gold, row)| row.iter().enumerate().map(move |(predicted, &n)| (gold, predicted, n)))
            .filter(|&(gold, predicted, n)| gold != predicted && n > 0)
            .collect();
        pairs.sort_by_key(|&(gold, predicted, n)| (std::cmp::Reverse(n), gold, predicted));
        pairs
    }
}

/// One class of one arm. Rates without a denominator are None, never 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassScore {
    pub label: String,
    /// Gold rows of the class.
    pub support: u64,
    /// Rows answered with the class.
    pub predicted: u64,
    pub correct: u64,
    pub recall: Option<f64>,
    pub recall_interval: Option<Interval>,
    pub precision: Option<f64>,
    pub precision_interval: Option<Interval>,
    pub f1: Option<f64>,
}

/// The scores of one arm on the test rows. Where answers are fields, accuracy is the share of answers whose fields are all
/// right, macro-F1 the mean over fields, and there are no classes. Intervals are Wilson's, two-sided at the plan's confidence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    pub rows: u64,
    pub correct: u64,
    pub accuracy: f64,
    pub accuracy_interval: Interval,
    /// Over classes with gold rows; the others are in `zero_support`.
    pub macro_f1: f64,
    pub zero_support: Vec<String>,
    pub invalid: u64,
    pub invalid_rate: f64,
    pub per_class: Vec<ClassScore>,
    pub confusion: Confusion,
}

/// Scores `predicted` against `gold` (indices into `labels`), both in row order.
pub fn score(gold: &[usize], predicted: &[Option<usize>], labels: &[String], confidence: f64) -> Scores {
    let confusion = Confusion::count(gold, predicted, labels.len());
    let per_class: Vec<ClassScore> =
        labels.iter().enumerate().map(|(class, label)| class_score(&confusion, class, label, confidence)).collect();
    let (rows, correct, invalid) = (confusion.rows(), confusion.correct(), confusion.invalid.iter().sum::<u64>());
    Scores {
        rows,
        correct,
        accuracy: share(correct, rows).unwrap_or(0.0),
        accuracy_interval: wilson(correct, rows, confidence),
        macro_f1: confusion.macro_f1(),
        zero_support: per_class.iter().filter(|c| c.support == 0).map(|c| c.label.clone()).collect(),
        invalid,
        invalid_rate: share(invalid, rows).unwrap_or(0.0),
        per_class,
        confusion,
    }
}

/// As [`score`], of answers that no list of labels has: without classes, and with their mean F1 over fields.
pub fn score_answers(
    gold: &[usize],
    predicted: &[Option<usize>],
    fields: Option<&Extraction>,
    confidence: f64,
) -> Scores {
    let (rows, invalid) = (gold.len() as u64, predicted.iter().filter(|p| p.is_none()).count() as u64);
    let correct = gold.iter().zip(predicted).filter(|(gold, p)| **p == Some(**gold)).count() as u64;
    Scores {
        rows,
        correct,
        accuracy: share(correct, rows).unwrap_or(0.0),
        accuracy_interval: wilson(correct, rows, confidence),
        macro_f1: fields.map_or(0.0, Extraction::macro_f1),
        zero_support: fields
            .map_or(&[][..], |fields| &fields.fields)
            .iter()
            .filter(|f| f.gold == 0)
            .map(|f| f.field.clone())
            .collect(),
        invalid,
        invalid_rate: share(invalid, rows).unwrap_or(0.0),
        per_class: Vec::new(),
        confusion: Confusion { counts: Vec::new(), invalid: Vec::new() },
    }
}

fn class_score(confusion: &Confusion, class: usize, label: &str, confidence: f64) -> ClassScore {
    let (support, predicted) = (confusion.support(class), confusion.predicted(class));
    let correct = confusion.counts[class][class];
    ClassScore {
        label: label.to_owned(),
        support,
        predicted,
        correct,
        recall: share(correct, support),
        recall_interval: (support > 0).then(|| wilson(correct, support, confidence)),
        precision: share(correct, predicted),
        precision_interval: (predicted > 0).then(|| wilson(correct, predicted, confidence)),
        f1: share(2 * correct, support + predicted).filter(|_| support > 0),
    }
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// The largest entry's index, the first of equals; None for an empty slice.
pub fn argmax(posterior: &[f32]) -> Option<usize> {
    posterior
        .iter()
        .enumerate()
        .fold(None, |best, (i, p)| match best {
            Some((_, top)) if *p <= top => best,
            _ => Some((i, *p)),
        })
        .map(|(i, _)| i)
}

/// Percentiles of measured call times, by order statistics (the smallest time that a share p of calls do not exceed).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub calls: u64,
    pub mean_ms: f64,
    pub p50_ms: f64,
    pub p95_ms: f64,
    pub max_ms: f64,
}

/// Summarises call times in milliseconds; None without any.
pub fn latency(times_ms: &[f64]) -> Option<Latency> {
    let mut sorted = times_ms.to_vec();
    sorted.sort_by(f64::total_cmp);
    let max_ms = *sorted.last()?;
    let at = |p: f64| sorted[((p * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len()) - 1];
    let mean_ms = sorted.iter().sum::<f64>() / sorted.len() as f64;
    Some(Latency { calls: sorted.len() as u64, mean_ms, p50_ms: at(0.50), p95_ms: at(0.95), max_ms })
}
