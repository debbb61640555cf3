//! On-policy distillation: the student writes answers of its own as it stands, the teacher tells what it would have expected at
//! each of their tokens, and the student is trained on that (Agarwal et al., "On-Policy Distillation of Language Models",
//! arXiv 2306.13649). So it learns what to do after its own mistakes, which no answer of the dataset shows.
//!
//! Which rows of a step are written anew, and what is drawn, follows from seed, step and parameters: a resumed training writes the same
//! answers. The draws are constants of the step, no gradient goes through them.

use crate::base::Base;
use crate::batch::TrainRow;
use crate::divergence::Divergence;
use crate::parameters::Parameters;
use crate::plan::{TrainError, TrainPlan, TrainSettings};
use crate::random::Random;
use crate::told::strange;
use limbeck_artifact::capture::{Position, tokens_key};
use limbeck_artifact::dataset::{Dataset, Example, LabelSource, Message, Split};
use limbeck_artifact::event::{Emit, EventKind};
use limbeck_model::decoder::DecoderError;
use limbeck_model::generate::{Asked, Batch, Chosen, Draw, Ends, continuations};
use limbeck_model::ops::SoftTarget;
use limbeck_model::prompt::{EncodedExample, shared_prefix};
use limbeck_model::sequence::Sequence;
use limbeck_model::tokenizer::ChatTokenizer;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Who tells what it would have expected along an answer.
pub trait Teacher: std::fmt::Debug + Send + Sync {
    /// One [`Position`] for each token that carries loss, by row; none of a row that it can't read as the student wrote it.
    ///
    /// # Errors
    /// When it can't be asked at all.
    fn tell(&self, rows: &[Asks<'_>]) -> Result<Vec<Option<Vec<Position>>>, Box<dyn std::error::Error + Send + Sync>>;
}

/// An answer of the student's.
#[derive(Clone, Copy, Debug)]
pub struct Asks<'a> {
    /// Of the row whose prompt it answers.
    pub id: &'a str,
    /// The conversation up to the answer.
    pub messages: &'a [Message],
    /// Without the token that ends the turn.
    pub text: &'a str,
    /// It ended its turn; otherwise it was cut off.
    pub ended: bool,
    /// As the student wrote it.
    pub row: &'a EncodedExample,
}

/// How much of a training is on-policy.
#[derive(Clone, Debug)]
pub struct OnPolicy {
    /// Chance that a row of a step is answered by the student instead of the dataset.
    pub share: f64,
    /// Share of the steps before the first such row.
    pub after: f64,
    /// Of the draws.
    pub temperature: f32,
    pub max_new_tokens: usize,
    /// Between teacher and student at the tokens of the student's answers.
    pub divergence: Divergence,
    pub teacher: Arc<dyn Teacher>,
}

/// What a step had of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Answers of the student's that the step learnt from.
    pub rows: u64,
    /// Their tokens, and those of the dataset's answers in whose place they stand.
    pub tokens: u64,
    pub instead_of: u64,
    /// Tokens among them that the teacher would have written there itself.
    pub agrees: u64,
    /// Answers that the teacher could not read; the step learnt from the dataset's.
    pub unread: u64,
}

impl Written {
    #[must_use]
    pub fn and(self, other: Written) -> Written {
        Written {
            rows: self.rows + other.rows,
            tokens: self.tokens + other.tokens,
            instead_of: self.instead_of + other.instead_of,
            agrees: self.agrees + other.agrees,
            unread: self.unread + other.unread,
        }
    }
}

impl std::fmt::Display for Written {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Written { rows, tokens, instead_of, agrees, unread } = self;
        if *rows == 0 {
            return write!(
                f,
                "the teacher could read none of the {unread} answers that the student wrote, in its own tokens"
            );
        }
        let share = 100.0 * *agrees as f64 / (*tokens).max(1) as f64;
        write!(f, "the student wrote {rows} answers itself, {tokens} tokens in place of {instead_of}")?;
        write!(f, "; {share:.1} % of them the teacher would have written there, too")?;
        match unread {
            0 => Ok(()),
            unread => write!(f, "; {unread} more it could not read in its own tokens"),
        }
    }
}

/// A training's rows, and what may be written in place of their answers.
pub struct Writer<'a> {
    pub plan: &'a OnPolicy,
    pub base: Base<'a>,
    pub settings: &'a TrainSettings,
    pub tokenizer: &'a ChatTokenizer,
    pub rows: &'a [TrainRow],
    pub examples: &'a [Example],
    /// What the teacher's word is worth by row: 0 where only the dataset's answer is learnt.
    pub worth: Vec<f32>,
    /// Steps of the whole training.
    pub total: u64,
}

impl<'a> Writer<'a> {
    /// Of a plan; none where nothing is on-policy.
    ///
    /// # Errors
    /// Settings that keep what the dataset's answers are.
    pub fn of(
        plan: &'a TrainPlan,
        base: Base<'a>,
        tokenizer: &'a ChatTokenizer,
        dataset: &'a Dataset,
        rows: &'a [TrainRow],
        emit: &dyn Emit,
    ) -> Result<Option<Writer<'a>>, TrainError> {
        let (Some(on_policy), settings) = (&plan.on_policy, &plan.settings) else { return Ok(None) };
        if settings.turbo_layers > 0 {
            return Err(TrainError::TurboOnPolicy);
        }
        let examples = dataset.rows(Split::Train);
        let told = |row: &TrainRow| {
            let told = plan.told.as_ref()?;
            told.rows.get(&tokens_key(&row.encoded.ids, &row.encoded.mask)).map(Vec::as_slice)
        };
        let trust = plan.told.as_ref().map_or((0.0, false), |told| (told.trust, told.contradicts));
        let worth: Vec<f32> =
            rows.iter().zip(examples).map(|(row, example)| worth(example, told(row), trust)).collect();
        let open = worth.iter().filter(|worth| **worth > 0.0).count();
        let mut text = format!(
            "on-policy from {:.0} % of the steps on: of {open} rows of {} the student writes the answer itself with a chance of {:.0} %",
            on_policy.after * 100.0,
            rows.len(),
            on_policy.share * 100.0,
        );
        if open < rows.len() {
            text.push_str(
                "; of the others the teacher would not have written the answer, or its word is worth nothing yet",
            );
        }
        emit.emit(EventKind::Note { text });
        if open == 0 {
            let text = "nothing is on-policy: the teacher would have written the answer of no train row itself";
            emit.emit(EventKind::Warning { text: text.to_owned() });
        }
        let total = settings.total_steps(rows.len());
        Ok(Some(Writer { plan: on_policy, base, settings, tokenizer, rows, examples, worth, total }))
    }

    /// The rows of step `step`, those that are on-policy under answers that the student wrote; none where the step has none.
    ///
    /// # Errors
    /// When the student can't write, or the teacher can't be asked.
    pub fn rows_of(
        &self,
        parameters: &Parameters,
        chosen: &[usize],
        step: u64,
    ) -> Result<Option<(Vec<TrainRow>, Written)>, TrainError> {
        if (step as f64) < self.plan.after * self.total as f64 {
            return Ok(None);
        }
        let mut random = Random::new(self.settings.seed, &format!("on policy at step {step}"));
        // A number for each row, taken or not: the worth of one has no part in another's chance.
        let drawn: Vec<(bool, u64)> =
            chosen.iter().map(|_| (f64::from(random.unit()) < self.plan.share, random.next_u64())).collect();
        let takes = |(&row, &(taken, stream)): (&usize, &(bool, u64))| {
            (taken && self.worth.get(row).is_some_and(|worth| *worth > 0.0)).then_some((row, stream))
        };
        let taken: Vec<Option<(usize, u64)>> = chosen.iter().zip(&drawn).map(takes).collect();
        let writes: Vec<(usize, u64)> = taken.iter().flatten().copied().collect();
        if writes.is_empty() {
            return Ok(None);
        }
        let answers = self.write(parameters, &writes)?;
        let written: Vec<EncodedExample> =
            writes.iter().zip(&answers).map(|((row, _), answer)| self.encode(*row, answer)).collect();
        let mut told = self.told(&writes, &answers, &written)?.into_iter().zip(written).zip(writes);
        let (mut rows, mut sum) = (Vec::with_capacity(chosen.len()), Written::default());
        for (&own, taken) in chosen.iter().zip(&taken) {
            let own = &self.rows[own];
            let Some(((told, encoded), (row, _))) = taken.and_then(|_| told.next()) else {
                rows.push(own.clone());
                continue;
            };
            let Some(positions) = told else {
                sum.unread += 1;
                rows.push(own.clone());
                continue;
            };
            sum.rows += 1;
            sum.tokens += positions.len() as u64;
            sum.instead_of += own.encoded.loss_tokens() as u64;
            sum.agrees += positions.iter().filter(|p| p.agrees).count() as u64;
            let weight = own.weight * self.worth[row];
            let row = self.row(own.id.clone(), encoded, &positions, weight)?;
            rows.push(TrainRow { explained: own.explained.clone(), ..row });
        }
        Ok(Some((rows, sum)))
    }

    /// The student's answers to the prompts of rows, each by its own stream of draws.
    fn write(&self, parameters: &Parameters, writes: &[(usize, u64)]) -> Result<Vec<Chosen>, DecoderError> {
        let (decoder, lora) = self.base.answering(parameters)?;
        let prompts: Vec<&[u32]> = writes.iter().map(|(row, _)| self.rows[*row].encoded.prompt()).collect();
        // At least a token of each is its own.
        let shared = match prompts.len() {
            1 => 0,
            _ => shared_prefix(prompts.iter().copied()).min(prompts.iter().map(|p| p.len() - 1).min().unwrap_or(0)),
        };
        let begun = match shared {
            0 => Sequence::default(),
            _ => decoder.begin(&prompts[0][..shared], Some(&lora))?,
        };
        let most = self.settings.max_seq_length;
        let asked: Vec<Asked> = (prompts.iter().zip(writes))
            .map(|(prompt, (_, stream))| Asked {
                prompt: &prompt[shared..],
                // The end of the turn is a token of the row, too.
                max_new_tokens: self.plan.max_new_tokens.min(most.saturating_sub(prompt.len() + 1)),
                draw: Some(Draw { temperature: self.plan.temperature, stream: *stream }),
            })
            .collect();
        let stop: Vec<u32> = self.tokenizer.end_of_turn_id().into_iter().chain(self.tokenizer.eos_id()).collect();
        let ends = Ends { stop: &stop, within: None, goes_on: &|_, _| true, done: &mut |_| () };
        continuations(&decoder, Some(&lora), &begun, &asked, Batch::default(), ends)
    }

    /// A row's prompt and the student's answer, the end of its turn with it where it came to it.
    fn encode(&self, row: usize, answer: &Chosen) -> EncodedExample {
        let end = self.tokenizer.end_of_turn_id().filter(|_| answer.ended);
        let answer: Vec<u32> = answer.tokens.iter().copied().chain(end).collect();
        EncodedExample::of(self.rows[row].encoded.prompt().to_vec(), &answer)
    }

    fn told(
        &self,
        writes: &[(usize, u64)],
        answers: &[Chosen],
        written: &[EncodedExample],
    ) -> Result<Vec<Option<Vec<Position>>>, TrainError> {
        let lead = &self.tokenizer.opening().lead;
        let text = |answer: &Chosen| {
            let text = self.tokenizer.decode(&answer.tokens);
            text.strip_prefix(lead.as_str()).map(str::to_owned).unwrap_or(text)
        };
        let texts: Vec<String> = answers.iter().map(text).collect();
        // Nothing was written where there was no room.
        let some: Vec<usize> = (0..writes.len()).filter(|i| written[*i].loss_tokens() > 0).collect();
        let asks: Vec<Asks> = (some.iter())
            .map(|&i| {
                let example = &self.examples[writes[i].0];
                Asks {
                    id: &example.id,
                    messages: &example.messages,
                    text: &texts[i],
                    ended: answers[i].ended,
                    row: &written[i],
                }
            })
            .collect();
        let told = self.plan.teacher.tell(&asks).map_err(|source| TrainError::Teacher { source })?;
        let mut all = vec![None; writes.len()];
        for ((i, told), asks) in some.into_iter().zip(told).zip(&asks) {
            let fits = |positions: &Vec<Position>| positions.len() == asks.row.loss_tokens();
            all[i] = told.filter(fits);
        }
        Ok(all)
    }

    /// A row of which the teacher's word is all that is learnt.
    fn row(
        &self,
        id: String,
        encoded: EncodedExample,
        positions: &[Position],
        weight: f32,
    ) -> Result<TrainRow, TrainError> {
        let vocab = self.tokenizer.vocab_size();
        let target = |position: &Position| {
            if let Some(token) = position.tokens.iter().find(|token| **token as usize >= vocab) {
                return Err(TrainError::Told { id: id.clone(), why: strange(*token, vocab) });
            }
            SoftTarget::new(0, position.tokens.clone(), position.log_probs(), 1.0)
                .map(Some)
                .map_err(|e| TrainError::Told { id: id.clone(), why: format!("can't be used: {e}") })
        };
        let told = positions.iter().map(target).collect::<Result<_, _>>()?;
        Ok(TrainRow { told, written: true, ..TrainRow::new(id.clone(), encoded, weight) })
    }
}

/// What a teacher's word is worth where the student goes its own way from a row's prompt: that of the row in whose place it stands.
/// Where a person wrote what the teacher would not have, the person's answer is all there is to learn.
pub fn worth(example: &Example, told: Option<&[Position]>, (trust, contradicts): (f32, bool)) -> f32 {
    let Some(told) = told else { return 0.0 };
    match example.label_source {
        LabelSource::Human if contradicts || told.iter().all(|p| p.agrees) => 1.0,
        LabelSource::Human => 0.0,
        LabelSource::Teacher => trust,
    }
}
