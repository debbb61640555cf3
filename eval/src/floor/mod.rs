//! The linear floor: TF-IDF and multinomial logistic regression on the train split, seconds of work and no model at all.
//! A tuned model that does not beat it is not worth its weight, so every report shows it.

mod folds;
mod grams;
mod softmax;
mod tfidf;

pub use folds::out_of_fold;
use softmax::{Softmax, SparseRows};
pub(crate) use tfidf::Vectorizer;

use crate::arms::Answerer;
use crate::error::AnswerError;
use limbeck_artifact::dataset::Message;

/// Changes when the floor's answers may: part of the key under which its predictions are kept.
pub(crate) const VERSION: &str = "tfidf word 1-2 + char_wb 2-5, min_df 2, 50000 features; softmax C 10; 2";

/// Changes when [`out_of_fold`] may answer otherwise.
pub const RANKING_VERSION: &str = "tfidf of 16000 rows, 1000 characters; 4 passes at 1.0; 1";

/// One training row: its text, the index of its label, its weight.
pub struct FloorRow<'a> {
    pub text: &'a str,
    pub label: usize,
    pub weight: f32,
}

/// A trained floor; answers in well under a millisecond.
pub struct LinearFloor {
    vectorizer: Vectorizer,
    softmax: Softmax,
    /// The label of each column of `softmax`: labels without training rows have none and get probability 0.
    classes: Vec<usize>,
    labels: usize,
}

impl LinearFloor {
    /// Trains on `rows` whose labels lie in `0..labels`. Deterministic: no seed, no clock, no thread order.
    /// Without any row of positive weight it answers uniformly.
    pub fn train(rows: &[FloorRow<'_>], labels: usize) -> LinearFloor {
        let rows: Vec<&FloorRow<'_>> = rows.iter().filter(|row| row.weight > 0.0 && row.label < labels).collect();
        let mut classes: Vec<usize> = rows.iter().map(|row| row.label).collect();
        classes.sort_unstable();
        classes.dedup();

        let texts: Vec<&str> = rows.iter().map(|row| row.text).collect();
        let vectorizer = Vectorizer::fit(&texts);
        let vectors = SparseRows::new(texts.iter().map(|text| vectorizer.transform(text)), vectorizer.features());
        let gold: Vec<usize> =
            rows.iter().map(|row| classes.iter().position(|class| *class == row.label).unwrap_or(0)).collect();
        let weights: Vec<f32> = rows.iter().map(|row| row.weight).collect();
        let softmax = Softmax::fit(&vectors, &gold, &weights, classes.len());
        LinearFloor { vectorizer, softmax, classes, labels }
    }

    /// Distribution over the labels.
    pub fn posterior(&self, text: &str) -> Vec<f32> {
        if self.classes.is_empty() {
            return vec![1.0 / self.labels.max(1) as f32; self.labels];
        }
        let mut posterior = vec![0.0; self.labels];
        let scores = self.softmax.posterior(&self.vectorizer.transform(text));
        for (class, p) in self.classes.iter().zip(scores) {
            posterior[*class] = p;
        }
        posterior
    }

    /// Distinct n-grams kept.
    pub fn features(&self) -> usize {
        self.vectorizer.features()
    }
}

impl Answerer for LinearFloor {
    fn answer(&mut self, messages: &[Message]) -> Result<Vec<f32>, AnswerError> {
        Ok(self.posterior(&text_of(messages)))
    }
}

/// What the floor reads of a prompt: everything but the system turn, which is the same in every row.
pub fn text_of(messages: &[Message]) -> String {
    let turns: Vec<&str> = messages.iter().filter(|m| m.role != "system").map(|m| m.content.as_str()).collect();
    turns.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_without_training_rows_gets_no_probability() {
        let rows = [
            FloorRow { text: "where is my card", label: 0, weight: 1.0 },
            FloorRow { text: "where is the card", label: 0, weight: 1.0 },
            FloorRow { text: "my pin is blocked", label: 2, weight: 1.0 },
            FloorRow { text: "the pin was blocked", label: 2, weight: 1.0 },
        ];
        let floor = LinearFloor::train(&rows, 3);
        let posterior = floor.posterior("is my card here");
        assert_eq!(posterior[1], 0.0);
        assert!((posterior.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        assert!(posterior[0] > posterior[2]);
    }

    #[test]
    fn no_rows_and_no_words_are_answered_without_a_panic() {
        assert_eq!(LinearFloor::train(&[], 4).posterior("anything"), vec![0.25; 4]);
        let one = LinearFloor::train(&[FloorRow { text: "", label: 1, weight: 1.0 }], 2);
        assert_eq!(one.posterior(""), vec![0.0, 1.0]);
    }

    #[test]
    fn rows_of_weight_zero_do_not_train() {
        let weighted = |weight| {
            let rows = [
                FloorRow { text: "card lost", label: 0, weight: 1.0 },
                FloorRow { text: "card lost", label: 1, weight },
                FloorRow { text: "card gone", label: 1, weight: 1.0 },
            ];
            LinearFloor::train(&rows, 2).posterior("card lost")[0]
        };
        assert!(weighted(0.0) > weighted(1.0));
    }

    #[test]
    fn training_twice_gives_the_same_bits() {
        let texts: Vec<String> = (0..200).map(|i| format!("message number {} about topic {}", i % 37, i % 7)).collect();
        let rows: Vec<FloorRow> =
            texts.iter().enumerate().map(|(i, text)| FloorRow { text, label: i % 7, weight: 1.0 }).collect();
        let (first, second) = (LinearFloor::train(&rows, 7), LinearFloor::train(&rows, 7));
        assert_eq!(first.posterior("about topic 3"), second.posterior("about topic 3"));
    }
}
