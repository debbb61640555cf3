//! Rationales as a second task (Distilling step-by-step, Hsieh et al. 2023): a row that has one is read once more, asked to explain, and
//! the explanation is what is learnt. `L = L_answer + λ · L_rationale`, each a mean of its own, so that long explanations
//! take nothing from short answers. The model is never asked to explain where it serves, and no look at the valid split does.

use crate::batch::{LossNormalization, TrainRow};
use crate::plan::TrainError;
use limbeck_artifact::dataset::{Example, Message};
use limbeck_artifact::event::{Emit, EventKind};
use limbeck_model::prompt::{EncodedExample, PromptError, TrainOn, encode_example};
use limbeck_model::tokenizer::ChatTokenizer;
use std::collections::BTreeMap;

/// What is to be learnt beside the answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Rationales {
    /// λ.
    pub weight: f32,
    /// What asks for an explanation: a paragraph behind the user's last words.
    pub prompt: String,
    /// By the row's id.
    pub of: BTreeMap<String, String>,
}

/// A row's second reading.
#[derive(Clone, Debug, PartialEq)]
pub struct Explained {
    pub encoded: EncodedExample,
    /// Of the row, as its answer's.
    pub weight: f32,
    /// λ.
    pub share: f32,
}

impl Explained {
    /// The weight of each of its tokens that carry loss, in the mean and in the sum that is divided by it.
    pub fn token_weight(&self, normalization: LossNormalization) -> f32 {
        match normalization {
            LossNormalization::Token => self.weight,
            LossNormalization::Example => self.weight / self.encoded.loss_tokens().max(1) as f32,
        }
    }
}

/// Weight of all tokens of explanations: what their loss is divided by.
pub fn loss_weight<'a>(rows: impl Iterator<Item = &'a TrainRow>, normalization: LossNormalization) -> f64 {
    let of = |e: &Explained| f64::from(e.token_weight(normalization)) * e.encoded.loss_tokens() as f64;
    rows.filter_map(|row| row.explained.as_ref()).map(of).sum()
}

/// Adds to `rows`, which begin with those of `examples`, the explanations that they have. One that is longer than a row may be is left
/// out, for half a reason is none.
///
/// # Errors
/// A row that the template refuses.
pub fn attach(
    rows: &mut [TrainRow],
    examples: &[Example],
    rationales: &Rationales,
    tokenizer: &ChatTokenizer,
    max_seq_length: usize,
    emit: &dyn Emit,
) -> Result<(), TrainError> {
    let (mut explained, mut tokens, mut too_long) = (0u64, 0usize, 0u64);
    for (row, example) in rows.iter_mut().zip(examples) {
        let Some(text) = rationales.of.get(&example.id) else { continue };
        let mut messages = example.messages.clone();
        let Some(last) = messages.iter_mut().rfind(|m| m.role == "user") else { continue };
        last.content = format!("{}\n\n{}", last.content.trim_end(), rationales.prompt);
        let answer = Message::new("assistant", text);
        let encoded = match encode_example(tokenizer, &messages, &answer, TrainOn::Last, max_seq_length) {
            Ok(encoded) => encoded,
            Err(PromptError::TooLong { .. }) => {
                too_long += 1;
                continue;
            }
            Err(source) => {
                let trace = format!("{}:{}", example.trace.file, example.trace.line);
                return Err(TrainError::Row { id: example.id.clone(), split: "train", trace, source });
            }
        };
        explained += 1;
        tokens += encoded.loss_tokens();
        row.explained = Some(Explained { encoded, weight: example.weight, share: rationales.weight });
    }
    let mut text = format!(
        "{explained} of {} rows are read a second time, for their rationale, which has {:.0} tokens in the mean",
        examples.len(),
        tokens as f64 / explained.max(1) as f64
    );
    if too_long > 0 {
        text.push_str(&format!(
            "; {too_long} are left out, being longer with it than model.max_seq_length = {max_seq_length}"
        ));
    }
    emit.emit(EventKind::Note { text });
    Ok(())
}
