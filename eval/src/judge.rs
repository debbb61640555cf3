//! What an answer is right against: labels by their number, or fields, of which every distinct answer of an evaluation gets
//! a number. Two answers have the same number where all their fields are equal, so that the statistics of labels hold; texts,
//! where they are the same but for white space.

use crate::arms::{Answers, label_of};
use crate::error::EvalError;
use crate::extraction::normalised;
use crate::metrics::Prediction;
use crate::plan::Fields;
use crate::texts::{Likeness, rouge_l};
use limbeck_artifact::dataset::Example;
use rayon::prelude::*;
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};

pub(crate) enum Judge<'p> {
    Labels(&'p [String]),
    Fields(Numbers<'p>),
}

/// Distinct answers in the order of first sight.
pub(crate) struct Numbers<'p> {
    fields: &'p Fields,
    known: HashMap<String, usize>,
    /// As first written, and as compared.
    shown: Vec<(String, Value)>,
}

impl<'p> Judge<'p> {
    pub fn new(labels: &'p [String], fields: Option<&'p Fields>) -> Judge<'p> {
        match fields {
            None => Judge::Labels(labels),
            Some(fields) => Judge::Fields(Numbers { fields, known: HashMap::new(), shown: Vec::new() }),
        }
    }

    /// The numbers of the rows' targets.
    pub fn gold(&mut self, rows: &[&Example]) -> Result<Vec<usize>, EvalError> {
        rows.iter()
            .map(|row| match self {
                Judge::Labels(labels) => label_of(&row.target, labels).ok_or_else(|| EvalError::UnknownTarget {
                    row: row.id.clone(),
                    target: row.target.clone(),
                    labels: labels.len(),
                }),
                Judge::Fields(numbers) => numbers.of(&row.target).map_err(|why| EvalError::InvalidTarget {
                    row: row.id.clone(),
                    target: row.target.clone(),
                    why,
                }),
            })
            .collect()
    }

    /// Numbers what was written; an answer that is not valid has none.
    pub fn mark(&mut self, answers: &mut Answers) {
        let Judge::Fields(numbers) = self else { return };
        for prediction in answers.calibration.iter_mut().chain(&mut answers.test) {
            prediction.label = prediction.said.as_ref().and_then(|said| numbers.of(&said.text).ok());
        }
    }

    /// How like the wanted texts an arm's answers are; nothing where answers are no texts.
    pub fn likeness(&self, gold: &[usize], answers: &[Prediction]) -> Likeness {
        let Some(numbers) = self.numbers().filter(|numbers| numbers.fields.schema.is_text()) else {
            return Likeness::new();
        };
        let text = |number: usize| numbers.shown[number].0.as_str();
        let pairs: BTreeSet<(usize, usize)> =
            gold.iter().zip(answers).filter_map(|(gold, answer)| Some((*gold, answer.label?))).collect();
        pairs.into_par_iter().map(|(gold, said)| ((gold, said), rouge_l(text(gold), text(said)).f1)).collect()
    }

    /// The label, the text, or the fields as JSON.
    pub fn name(&self, number: usize) -> String {
        match self {
            Judge::Labels(labels) => labels[number].clone(),
            Judge::Fields(numbers) => numbers.shown[number].0.clone(),
        }
    }

    pub fn numbers(&self) -> Option<&Numbers<'p>> {
        match self {
            Judge::Labels(_) => None,
            Judge::Fields(numbers) => Some(numbers),
        }
    }
}

impl Numbers<'_> {
    fn of(&mut self, text: &str) -> Result<usize, String> {
        let schema = &self.fields.schema;
        let shown = schema.canonical_text(text).map_err(|fault| fault.to_string())?;
        let value = normalised(schema, &schema.read(&shown).map_err(|fault| fault.to_string())?);
        let next = self.shown.len();
        let number = *self.known.entry(schema.canonical(&value)).or_insert(next);
        if number == next {
            self.shown.push((shown, value));
        }
        Ok(number)
    }

    pub fn gold_values(&self, gold: &[usize]) -> Vec<Value> {
        gold.iter().map(|number| self.shown[*number].1.clone()).collect()
    }

    pub fn values(&self, predictions: &[Prediction]) -> Vec<Option<Value>> {
        predictions.iter().map(|p| Some(self.shown[p.label?].1.clone())).collect()
    }
}
