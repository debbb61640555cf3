//! What a written text is worth against the wanted one: exact match, and ROUGE-L, which is for telling a regression and never for
//! passing a gate alone. Golden values come from rouge-score.

use crate::bootstrap::unit_mean_bounds;
use crate::statistics::{Interval, wilson};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// How many times rows are drawn anew for the interval of a mean.
const RESAMPLES: u32 = 2_000;

/// The texts of one arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Texts {
    /// Mean F1 of ROUGE-L; an answer that is not valid has 0.
    pub rouge_l: f64,
    /// By the bootstrap of Student's t, over rows.
    pub rouge_l_interval: Interval,
    /// Answers that ended before the token limit and say something.
    pub valid: u64,
    pub validity: f64,
    pub validity_interval: Interval,
}

/// ROUGE-L's F1 by wanted text and answer, each as its number.
pub type Likeness = HashMap<(usize, usize), f64>;

/// ROUGE-L of each row; 0 where the answer is not valid.
pub(crate) fn by_row(likeness: &Likeness, gold: &[usize], answers: impl Iterator<Item = Option<usize>>) -> Vec<f64> {
    let of = |(gold, answer): (&usize, Option<usize>)| likeness.get(&(*gold, answer?)).copied();
    gold.iter().zip(answers).map(|row| of(row).unwrap_or(0.0)).collect()
}

/// Scores texts against the wanted ones, in row order.
pub(crate) fn score_texts(likeness: &Likeness, gold: &[usize], answers: &[Option<usize>], confidence: f64) -> Texts {
    let rows = by_row(likeness, gold, answers.iter().copied());
    let bounds = unit_mean_bounds(&rows, 0.5 + confidence / 2.0, RESAMPLES, 0);
    let (valid, n) = (answers.iter().flatten().count() as u64, answers.len() as u64);
    Texts {
        rouge_l: bounds.estimate,
        rouge_l_interval: Interval { low: bounds.lower, high: bounds.upper },
        valid,
        validity: valid as f64 / n.max(1) as f64,
        validity_interval: wilson(valid, n, confidence),
    }
}

/// Precision, recall and their harmonic mean.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RougeL {
    pub precision: f64,
    pub recall: f64,
    pub f1: f64,
}

/// The same text but for the amount of white space.
pub fn is_exact(target: &str, said: &str) -> bool {
    target.split_whitespace().eq(said.split_whitespace())
}

/// The longest common subsequence of words over each side's words (Lin 2004). Words are runs of ASCII letters and digits in
/// lower case, as rouge-score has them without a stemmer; 0 where either side has none.
pub fn rouge_l(target: &str, said: &str) -> RougeL {
    let (target, said) = (words(target), words(said));
    if target.is_empty() || said.is_empty() {
        return RougeL::default();
    }
    let common = longest_common(&target, &said) as f64;
    let (precision, recall) = (common / said.len() as f64, common / target.len() as f64);
    let f1 = if common > 0.0 { 2.0 * precision * recall / (precision + recall) } else { 0.0 };
    RougeL { precision, recall, f1 }
}

fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let runs = lower.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit());
    runs.filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// In two rows of the table instead of all of it.
fn longest_common(a: &[String], b: &[String]) -> usize {
    let mut above = vec![0; b.len() + 1];
    for word in a {
        let mut row = vec![0; b.len() + 1];
        for (j, other) in b.iter().enumerate() {
            row[j + 1] = if word == other { above[j] + 1 } else { above[j + 1].max(row[j]) };
        }
        above = row;
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_not_valid_is_like_nothing() {
        let likeness = Likeness::from([((0, 0), 1.0), ((1, 2), 0.5)]);
        let texts = score_texts(&likeness, &[0, 1, 1], &[Some(0), Some(2), None], 0.95);
        assert_eq!((texts.rouge_l, texts.valid), (0.5, 2));
        assert!(texts.rouge_l_interval.low < 0.2 && texts.rouge_l_interval.high > 0.8);
        // Three answers that are all perfect prove little.
        let perfect = score_texts(&likeness, &[0, 0, 0], &[Some(0); 3], 0.95);
        assert!((perfect.rouge_l_interval.low - 0.025_f64.powf(1.0 / 3.0)).abs() < 1e-12);
        assert_eq!(perfect.rouge_l_interval.high, 1.0);
    }

    #[test]
    fn exact_is_exact_but_for_space() {
        assert!(is_exact("a  b\n", "a b") && is_exact("", " "));
        assert!(!is_exact("a b", "ab") && !is_exact("a", "A"));
    }
}
