//! The linear floor: TF-IDF and multinomial logistic regression on the train split, seconds of work and no model at all.
//! A tuned model that does not beat it is not worth its weight, so every report shows it.

mod softmax;
mod tfidf;

use softmax::{MAX_STEPS, Softmax, SparseRows};
use tfidf::Vectorizer;

use crate::arms::Answerer;
use crate::error::AnswerError;
use limbeck_artifact::dataset::Message;
use rayon::prelude::*;

/// Changes when the floor's answers may: part of the key under which its predictions are kept.
pub(crate) const VERSION: &str = "tfidf word 1-2 + char_wb 2-5, min_df 2, 50000 features; softmax C 10; 2";

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
        LinearFloor::train_in(rows, labels, MAX_STEPS)
    }

    fn train_in(rows: &[FloorRow<'_>], labels: usize, most_steps: usize) -> LinearFloor {
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
        let softmax = Softmax::fit(&vectors, &gold, &weights, classes.len(), most_steps);
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

/// Steps of a floor that only ranks: the order of its doubts is there long before the last digits of its weights.
const RANKING_STEPS: usize = 20;

/// What a floor that did not learn from a row says of it, for every row: the rows are dealt into `folds`, label by label,
/// and each fold is answered by a floor trained on at most `most` rows of the others. Deterministic. `begun` hears the
/// number of each fold as its training begins.
pub fn out_of_fold(
    rows: &[FloorRow<'_>],
    labels: usize,
    folds: usize,
    most: usize,
    mut begun: impl FnMut(usize),
) -> Vec<Vec<f32>> {
    let folds = folds.clamp(2, rows.len().max(2));
    // Dealt in an order that has nothing to do with the log's, or a fold would be a season.
    let scattered = |i: &usize| {
        let hash = rows[*i]
            .text
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        (rows[*i].label, crate::SplitMix64::new(hash).next_u64(), *i)
    };
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_cached_key(scattered);
    let mut posteriors = vec![Vec::new(); rows.len()];
    for fold in 0..folds {
        begun(fold);
        let (held, rest): (Vec<usize>, Vec<usize>) = (0..order.len()).partition(|place| place % folds == fold);
        // Every so-many-th, so that each label keeps its share.
        let step = rest.len().div_ceil(most.max(1)).max(1);
        let train: Vec<FloorRow<'_>> = rest
            .iter()
            .step_by(step)
            .map(|place| &rows[order[*place]])
            .map(|row| FloorRow { text: row.text, label: row.label, weight: row.weight })
            .collect();
        let floor = LinearFloor::train_in(&train, labels, RANKING_STEPS);
        let answers: Vec<(usize, Vec<f32>)> =
            held.par_iter().map(|place| (order[*place], floor.posterior(rows[order[*place]].text))).collect();
        answers.into_iter().for_each(|(row, answer)| posteriors[row] = answer);
    }
    posteriors
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
    fn a_row_is_answered_by_a_floor_that_never_saw_it() {
        let texts: Vec<String> = (0..60)
            .map(|i| format!("{} case {i} word{i}", ["card lost", "money sent", "pin blocked"][i % 3]))
            .collect();
        // Row 0 carries a label that nothing else in its text's company does.
        let label = |i: usize| if i == 0 { 1 } else { i % 3 };
        let rows: Vec<FloorRow<'_>> =
            texts.iter().enumerate().map(|(i, text)| FloorRow { text, label: label(i), weight: 1.0 }).collect();
        let mut folds = Vec::new();
        let answers = out_of_fold(&rows, 3, 5, 1_000, |fold| folds.push(fold));
        assert_eq!(folds, [0, 1, 2, 3, 4]);
        for (i, answer) in answers.iter().enumerate() {
            assert!((answer.iter().sum::<f32>() - 1.0).abs() < 1e-4);
            assert_eq!(crate::argmax(answer), Some(i % 3), "row {i}");
        }
        assert_eq!(out_of_fold(&rows, 3, 5, 1_000, |_| {}), answers);
        assert!(out_of_fold(&rows, 3, 5, 20, |_| {})[0][0] > 0.3);
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
