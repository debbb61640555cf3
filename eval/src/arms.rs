//! The answerers that are compared on the same rows: what production recorded, the linear floor, and models behind the
//! [`Answerer`] trait. An arm is asked once; its predictions are kept and reused while its inputs stay the same.

use crate::composed::Composition;
use crate::cost::Charge;
use crate::error::{AnswerError, EvalError};
use crate::floor::{self, FloorRow, LinearFloor, text_of};
use crate::metrics::{Prediction, Said, Tokens, argmax};
use crate::predictions;
use crate::report::Fact;
use crate::{scored, written};
use limbeck_artifact::dataset::{Example, Message};
use limbeck_artifact::digest::{canonical_json, sha256_hex};
use limbeck_artifact::event::{Emit, EventKind};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::Path;
use std::time::Instant;

/// Something that answers a prompt with a distribution over the plan's labels.
pub trait Answerer {
    /// Returns one probability a label, in the plan's order, summing to 1. An empty vector says "no valid answer",
    /// which counts as wrong and as invalid; an error ends the evaluation.
    fn answer(&mut self, messages: &[Message]) -> Result<Vec<f32>, AnswerError>;

    /// Answers many prompts, in their order, each as [`Answerer::answer`] answers it; tells `done` how many there are, bit by bit.
    /// One by one where nothing better is known.
    fn answer_all(&mut self, asked: &[&[Message]], done: &mut dyn FnMut(usize)) -> Vec<PosteriorOrNot> {
        let one = |messages: &&[Message]| {
            let posterior = self.answer(messages);
            done(1);
            posterior
        };
        asked.iter().map(one).collect()
    }
}

/// A posterior, or why there is none.
pub type PosteriorOrNot = Result<Vec<f32>, AnswerError>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArmKind {
    /// The answers in the traces.
    Recorded,
    /// TF-IDF and logistic regression, trained here on the train split.
    LinearFloor,
    Model,
    /// A live model that is paid by the token.
    Endpoint,
    /// Made of other arms' answers.
    Composed,
}

type Open<'a> = Box<dyn FnOnce() -> Result<Box<dyn Answerer + 'a>, AnswerError> + 'a>;

enum Source<'a> {
    Recorded,
    LinearFloor,
    Model(Open<'a>),
    Writer(OpenWriter<'a>),
    /// With the model's name, by which it is priced.
    Endpoint(String, OpenRespondent<'a>),
    /// Of arms that come before it, in this order.
    Composed(Composition, Vec<String>),
}

/// Something that writes an answer to a prompt.
pub trait AnswerWriter {
    /// An answer that can't be used is no error: it counts as wrong and as invalid. An error ends the evaluation.
    fn write(&mut self, messages: &[Message]) -> Result<Said, AnswerError>;

    /// Answers many prompts, in their order, as [`AnswerWriter::write`] answers each; tells `done` of each. One by one where
    /// nothing better is known.
    fn write_all(&mut self, asked: &[&[Message]], done: &mut dyn FnMut()) -> Result<Vec<SaidOrNot>, AnswerError> {
        let one = |messages: &&[Message]| {
            let said = self.write(messages);
            done();
            said
        };
        Ok(asked.iter().map(one).collect())
    }
}

/// Something far away that is asked about all rows at once.
pub trait Respondent {
    /// One response a prompt, in their order; tells `done` how many there are. What could not be answered is a response
    /// without a valid text; an error ends the evaluation.
    fn respond(&mut self, asked: &[&[Message]], done: &mut dyn FnMut(usize)) -> Result<Vec<Response>, AnswerError>;

    /// What a reader of the report has to know of who answered: kept with the answers.
    fn facts(&self) -> Vec<Fact>;
}

/// What came back.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Response {
    /// Empty where there is no answer.
    pub text: String,
    /// Over the plan's labels, where it is known.
    pub posterior: Option<Vec<f32>>,
    pub confidence: Option<f64>,
    /// Of the call that was answered, in milliseconds.
    pub latency_ms: Option<f64>,
    pub tokens: Option<Tokens>,
}

type OpenRespondent<'a> = Box<dyn FnOnce() -> Result<Box<dyn Respondent + 'a>, AnswerError> + 'a>;

/// An answer, or why there is none.
pub type SaidOrNot = Result<Said, AnswerError>;

type OpenWriter<'a> = Box<dyn FnOnce() -> Result<Box<dyn AnswerWriter + 'a>, AnswerError> + 'a>;

/// One arm of the comparison.
pub struct Arm<'a> {
    /// Short, unique, used in gates and file names: letters, digits, `.`, `_`, `-`.
    pub name: String,
    /// What it is, for a reader.
    pub title: String,
    /// Digest of everything that decides its answers (weights file, system prompt, device); empty for the arms that
    /// are made from the dataset alone.
    pub key: String,
    /// Whether to ask it about the calibration split too and to fit a temperature.
    pub calibrate: bool,
    source: Source<'a>,
}

impl<'a> Arm<'a> {
    /// The frontier model's answers as the traces recorded them.
    pub fn recorded(name: &str, title: &str) -> Arm<'a> {
        Arm { name: name.into(), title: title.into(), key: String::new(), calibrate: false, source: Source::Recorded }
    }

    /// The linear floor.
    pub fn linear_floor(name: &str, title: &str) -> Arm<'a> {
        Arm { name: name.into(), title: title.into(), key: String::new(), calibrate: true, source: Source::LinearFloor }
    }

    /// A model; `open` runs only when no kept predictions have this `key`.
    pub fn model(
        name: &str,
        title: &str,
        key: &str,
        open: impl FnOnce() -> Result<Box<dyn Answerer + 'a>, AnswerError> + 'a,
    ) -> Arm<'a> {
        let source = Source::Model(Box::new(open));
        Arm { name: name.into(), title: title.into(), key: key.into(), calibrate: true, source }
    }

    /// A model that writes its answers; otherwise as [`Arm::model`].
    pub fn writer(
        name: &str,
        title: &str,
        key: &str,
        open: impl FnOnce() -> Result<Box<dyn AnswerWriter + 'a>, AnswerError> + 'a,
    ) -> Arm<'a> {
        let source = Source::Writer(Box::new(open));
        Arm { name: name.into(), title: title.into(), key: key.into(), calibrate: true, source }
    }

    /// A live model under its provider's name; otherwise as [`Arm::model`].
    pub fn endpoint(
        name: &str,
        title: &str,
        key: &str,
        model: &str,
        open: impl FnOnce() -> Result<Box<dyn Respondent + 'a>, AnswerError> + 'a,
    ) -> Arm<'a> {
        let source = Source::Endpoint(model.to_owned(), Box::new(open));
        Arm { name: name.into(), title: title.into(), key: key.into(), calibrate: false, source }
    }

    /// Made of the answers of arms that come before it; there are at least two.
    pub fn composed(name: &str, title: &str, how: Composition, of: Vec<String>) -> Arm<'a> {
        let source = Source::Composed(how, of);
        Arm { name: name.into(), title: title.into(), key: String::new(), calibrate: false, source }
    }

    /// What it is made of, where it is made of other arms.
    pub(crate) fn composition(&self) -> Option<(Composition, &[String])> {
        match &self.source {
            Source::Composed(how, of) => Some((*how, of)),
            _ => None,
        }
    }

    /// How its calls are paid for; of one that is made of others, whoever makes it knows.
    pub(crate) fn charge(&self) -> Charge {
        match &self.source {
            Source::Recorded => Charge::Recorded,
            Source::Endpoint(model, _) => Charge::Tokens { model: model.clone() },
            Source::LinearFloor | Source::Model(_) | Source::Writer(_) | Source::Composed(..) => Charge::Machine,
        }
    }

    /// Whether it is asked about the calibration split too.
    pub fn calibrated(mut self, calibrate: bool) -> Arm<'a> {
        self.calibrate = calibrate;
        self
    }

    pub fn kind(&self) -> ArmKind {
        match self.source {
            Source::Recorded => ArmKind::Recorded,
            Source::LinearFloor => ArmKind::LinearFloor,
            Source::Model(_) | Source::Writer(_) => ArmKind::Model,
            Source::Endpoint(..) => ArmKind::Endpoint,
            Source::Composed(..) => ArmKind::Composed,
        }
    }
}

/// The rows that every arm answers; already limited to reviewed ones.
pub(crate) struct Questions<'a> {
    pub labels: &'a [String],
    /// The text of the answers' schema, where they are fields.
    pub schema: Option<&'a str>,
    pub train: Vec<&'a Example>,
    pub calibration: Vec<&'a Example>,
    pub test: Vec<&'a Example>,
}

impl<'a> Questions<'a> {
    /// The same with more rows behind the calibration split's, where no clock is beside them.
    pub fn and(&self, more: impl Iterator<Item = &'a Example>) -> Questions<'a> {
        Questions {
            labels: self.labels,
            schema: self.schema,
            train: self.train.clone(),
            calibration: self.calibration.iter().copied().chain(more).collect(),
            test: self.test.clone(),
        }
    }
}

/// Predictions in the order of the questions.
#[derive(Debug, PartialEq)]
pub(crate) struct Answers {
    pub calibration: Vec<Prediction>,
    pub test: Vec<Prediction>,
    /// Who answered, where that is not plain from the arm.
    pub facts: Vec<Fact>,
}

/// Answers all questions with `arm`, or takes the kept predictions in `dir` if their key still holds.
pub(crate) fn run(arm: Arm<'_>, questions: &Questions<'_>, dir: &Path, emit: &dyn Emit) -> Result<Answers, EvalError> {
    let calibration: &[&Example] = if arm.calibrate { &questions.calibration } else { &[] };
    let path = dir.join(format!("{}.jsonl", arm.name));
    let key = predictions_key(&arm, questions, calibration);
    if let Some(kept) = predictions::load(&path, &key, calibration, &questions.test) {
        emit.emit(EventKind::Note { text: format!("arm {}: predictions kept from before are reused", arm.name) });
        return Ok(kept);
    }

    let total = (calibration.len() + questions.test.len()) as u64;
    let progress = |done: usize| {
        emit.emit(EventKind::Progress { done: done as u64, total, unit: format!("rows by {}", arm.name) });
    };
    let labels = questions.labels;
    let answers = match arm.source {
        Source::Recorded => Answers {
            calibration: Vec::new(),
            facts: Vec::new(),
            test: questions.test.iter().map(|row| recorded_answer(row, labels, questions.schema.is_some())).collect(),
        },
        Source::LinearFloor => ask_each(&arm.name, &mut train_floor(questions), calibration, questions, &progress)?,
        Source::Model(open) => {
            let mut model = open().map_err(|source| EvalError::Open { arm: arm.name.clone(), source })?;
            let splits = [calibration, &questions.test];
            scored::answers(&arm.name, model.as_mut(), splits, labels.len(), &progress, emit)?
        }
        Source::Writer(open) => {
            let mut writer = open().map_err(|source| EvalError::Open { arm: arm.name.clone(), source })?;
            written::answers(&arm.name, writer.as_mut(), [calibration, &questions.test], &progress, emit)?
        }
        // Nobody is asked: see `composed`.
        Source::Composed(..) => Answers { calibration: Vec::new(), test: Vec::new(), facts: Vec::new() },
        Source::Endpoint(_, open) => {
            let mut respondent = open().map_err(|source| EvalError::Open { arm: arm.name.clone(), source })?;
            responses(&arm.name, respondent.as_mut(), calibration, questions, &progress)?
        }
    };
    write(&path, &arm.name, &key, &answers, emit)?;
    Ok(answers)
}

/// Writes the answers of an arm that is made of others, for who wants to read them: they are made anew each time.
pub(crate) fn keep(arm: &str, answers: &Answers, dir: &Path, emit: &dyn Emit) -> Result<(), EvalError> {
    write(&dir.join(format!("{arm}.jsonl")), arm, "", answers, emit)
}

fn write(path: &Path, arm: &str, key: &str, answers: &Answers, emit: &dyn Emit) -> Result<(), EvalError> {
    let bytes = predictions::save(path, arm, key, answers)?;
    emit.emit(EventKind::Wrote { path: path.display().to_string(), bytes });
    Ok(())
}

/// One by one: each call is timed.
fn ask_each(
    arm: &str,
    model: &mut dyn Answerer,
    calibration: &[&Example],
    questions: &Questions<'_>,
    progress: &dyn Fn(usize),
) -> Result<Answers, EvalError> {
    let mut one = |row: &Example| ask(arm, model, row, questions.labels.len());
    // The first call pays for lazy set-up; it is not a latency anyone will see in service.
    if let Some(first) = calibration.first().or(questions.test.first()) {
        one(first)?;
    }
    let mut done = 0;
    let mut ask_split = |rows: &[&Example]| -> Result<Vec<Prediction>, EvalError> {
        rows.iter()
            .map(|row| {
                let prediction = one(row)?;
                done += 1;
                if done % 16 == 0 {
                    progress(done);
                }
                Ok(prediction)
            })
            .collect()
    };
    let (calibration, test) = (ask_split(calibration)?, ask_split(&questions.test)?);
    let answers = Answers { calibration, test, facts: Vec::new() };
    progress(done);
    Ok(answers)
}

/// All rows at once; a text is read as a recorded answer is.
fn responses(
    arm: &str,
    respondent: &mut dyn Respondent,
    calibration: &[&Example],
    questions: &Questions<'_>,
    progress: &dyn Fn(usize),
) -> Result<Answers, EvalError> {
    let rows: Vec<&Example> = calibration.iter().chain(&questions.test).copied().collect();
    let asked: Vec<&[Message]> = rows.iter().map(|row| row.messages.as_slice()).collect();
    let failed = |source| EvalError::Respond { arm: arm.to_owned(), source };
    let responses = respondent.respond(&asked, &mut |done| progress(done)).map_err(failed)?;
    if responses.len() != rows.len() {
        return Err(failed(format!("{} responses to {} rows", responses.len(), rows.len()).into()));
    }
    let labels = questions.labels;
    let prediction = |(row, response): (&&Example, Response)| {
        if let Some(posterior) = &response.posterior {
            let (arm, row) = (arm.to_owned(), row.id.clone());
            check_posterior(posterior, labels.len()).map_err(|what| EvalError::Posterior { arm, row, what })?;
        }
        let label = response.posterior.as_deref().and_then(argmax).or_else(|| label_of(&response.text, labels));
        Ok(Prediction {
            row: row.id.clone(),
            label,
            posterior: response.posterior,
            latency_ms: response.latency_ms.map(microseconds),
            said: Some(Said { text: response.text, confidence: response.confidence }),
            tokens: response.tokens,
        })
    };
    let mut calibration_answers: Vec<Prediction> =
        rows.iter().zip(responses).map(prediction).collect::<Result<_, EvalError>>()?;
    let test = calibration_answers.split_off(calibration.len());
    Ok(Answers { calibration: calibration_answers, test, facts: respondent.facts() })
}

pub(crate) fn ask(arm: &str, model: &mut dyn Answerer, row: &Example, labels: usize) -> Result<Prediction, EvalError> {
    let begun = Instant::now();
    let answer = model.answer(&row.messages);
    let elapsed_ms = begun.elapsed().as_secs_f64() * 1e3;
    Ok(Prediction { latency_ms: Some(microseconds(elapsed_ms)), ..prediction(arm, row, answer, labels)? })
}

/// What a model makes of a row, not timed.
pub(crate) fn prediction(
    arm: &str,
    row: &Example,
    answer: PosteriorOrNot,
    labels: usize,
) -> Result<Prediction, EvalError> {
    let (arm, id) = (arm.to_owned(), row.id.clone());
    let posterior = answer.map_err(|source| EvalError::Answer { arm: arm.clone(), row: id.clone(), source })?;
    check_posterior(&posterior, labels).map_err(|what| EvalError::Posterior { arm, row: id, what })?;
    Ok(Prediction {
        row: row.id.clone(),
        label: argmax(&posterior),
        posterior: (!posterior.is_empty()).then_some(posterior),
        latency_ms: None,
        said: None,
        tokens: None,
    })
}

/// Rounded to them: what is written and read back is the very same number.
pub(crate) fn microseconds(ms: f64) -> f64 {
    (ms * 1e3).round() / 1e3
}

fn check_posterior(posterior: &[f32], labels: usize) -> Result<(), String> {
    if posterior.is_empty() {
        return Ok(());
    }
    if posterior.len() != labels {
        return Err(format!("{} probabilities for {labels} labels", posterior.len()));
    }
    if posterior.iter().any(|p| !p.is_finite() || *p < 0.0) {
        return Err("a probability is negative, infinite or not a number".to_owned());
    }
    let sum: f64 = posterior.iter().map(|p| f64::from(*p)).sum();
    if (sum - 1.0).abs() > 1e-3 { Err(format!("it sums to {sum:.6}")) } else { Ok(()) }
}

fn train_floor(questions: &Questions<'_>) -> LinearFloor {
    let texts: Vec<String> = questions.train.iter().map(|row| text_of(&row.messages)).collect();
    let rows: Vec<FloorRow<'_>> = questions
        .train
        .iter()
        .zip(&texts)
        .filter_map(|(row, text)| {
            let label = label_of(&row.target, questions.labels)?;
            Some(FloorRow { text, label, weight: row.weight })
        })
        .collect();
    LinearFloor::train(&rows, questions.labels.len())
}

fn recorded_answer(row: &Example, labels: &[String], in_words: bool) -> Prediction {
    Prediction {
        row: row.id.clone(),
        label: label_of(&row.recorded.answer, labels),
        posterior: None,
        latency_ms: row.recorded.latency_ms.filter(|ms| ms.is_finite() && *ms >= 0.0),
        said: in_words.then(|| Said { text: row.recorded.answer.clone(), confidence: None }),
        tokens: None,
    }
}

/// The label an answer names: exactly, or but for surrounding space, quotes, a full stop and ASCII case.
pub(crate) fn label_of(answer: &str, labels: &[String]) -> Option<usize> {
    if let Some(exact) = labels.iter().position(|label| label == answer) {
        return Some(exact);
    }
    let plain = |text: &str| {
        text.trim_matches(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '.')).to_ascii_lowercase()
    };
    let answer = plain(answer);
    let mut matches = (0..labels.len()).filter(|&i| plain(&labels[i]) == answer);
    // Labels that differ only by case are no match for an answer that differs by case.
    matches.next().filter(|_| matches.next().is_none())
}

fn predictions_key(arm: &Arm<'_>, questions: &Questions<'_>, calibration: &[&Example]) -> String {
    let ids = |rows: &[&Example]| rows.iter().map(|row| row.id.clone()).collect::<Vec<_>>();
    let made_of = match arm.source {
        Source::Model(_) | Source::Writer(_) | Source::Endpoint(..) | Source::Composed(..) => json!("model"),
        Source::Recorded => json!(questions.test.iter().map(|row| &row.recorded).collect::<Vec<_>>()),
        Source::LinearFloor => {
            let weights: Vec<f32> = questions.train.iter().map(|row| row.weight).collect();
            json!([floor::VERSION, ids(&questions.train), weights])
        }
    };
    let mut inputs = json!({
        "arm": arm.name, "key": arm.key, "made_of": made_of, "labels": questions.labels,
        "calibration": ids(calibration), "test": ids(&questions.test),
    });
    if let Some(schema) = questions.schema {
        inputs["schema"] = json!(schema);
    }
    sha256_hex(canonical_json(&inputs).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_answers_match_labels_through_usual_dressing() {
        let labels = ["card_arrival".to_owned(), "Top up".to_owned(), "PIN".to_owned(), "pin".to_owned()];
        for (answer, expected) in [
            ("card_arrival", Some(0)),
            (" \"Card_Arrival\".\n", Some(0)),
            ("`top up`", Some(1)),
            ("pin", Some(3)),
            ("Pin", None),
            ("I think it is card_arrival", None),
            ("", None),
        ] {
            assert_eq!(label_of(answer, &labels), expected, "{answer:?}");
        }
    }

    #[test]
    fn unusable_posteriors_are_named() {
        assert!(check_posterior(&[0.5, 0.5], 3).unwrap_err().contains("2 probabilities for 3"));
        assert!(check_posterior(&[0.5, f32::NAN], 2).unwrap_err().contains("not a number"));
        assert!(check_posterior(&[0.5, 0.1], 2).unwrap_err().contains("sums to"));
        assert!(check_posterior(&[], 2).is_ok());
    }
}
