//! From the dataset's examples to rows of tokens. A row that cannot carry the loss it should is refused by its id: nothing
//! is cut, skipped or trained on silently.

use crate::batch::TrainRow;
use crate::plan::{HeadKind, TrainError, TrainSettings};
use limbeck_artifact::dataset::{Dataset, Example, Split};
use limbeck_model::prompt::{EncodedExample, PromptError, encode_example, encode_prompt};
use limbeck_model::tokenizer::ChatTokenizer;

/// The rows of a split as tokens, in the dataset's order.
///
/// # Errors
/// A row without weight or without a token that carries loss, one that is too long, one that the template refuses.
pub fn encode(
    tokenizer: &ChatTokenizer,
    dataset: &Dataset,
    split: Split,
    settings: &TrainSettings,
) -> Result<Vec<TrainRow>, TrainError> {
    let labels = &dataset.card.labels;
    let trace = |e: &Example| format!("{}:{}", e.trace.file, e.trace.line);
    dataset
        .rows(split)
        .iter()
        .map(|e| {
            // Not `<=`: a NaN weight must be refused as well.
            if !(e.weight > 0.0 && e.weight.is_finite()) {
                return Err(TrainError::NoLoss { id: e.id.clone(), trace: trace(e), weight: e.weight });
            }
            let refused = |source| TrainError::Row { id: e.id.clone(), split: split.name(), trace: trace(e), source };
            let encoded = match settings.head {
                HeadKind::Verbalizer => {
                    encode_example(tokenizer, &e.messages, &e.answer(), settings.train_on, settings.max_seq_length)
                        .map_err(refused)?
                }
                HeadKind::Classification => {
                    let Some(class) = labels.iter().position(|label| *label == e.target) else {
                        let (target, labels) = (e.target.clone(), labels.len());
                        let (id, split) = (e.id.clone(), split.name());
                        return Err(TrainError::NoClass { id, split, trace: trace(e), target, labels });
                    };
                    classified(tokenizer, e, class as u32, settings.max_seq_length).map_err(refused)?
                }
            };
            if encoded.loss_tokens() == 0 {
                let len = encoded.len();
                return Err(TrainError::EmptyMask { id: e.id.clone(), split: split.name(), trace: trace(e), len });
            }
            Ok(TrainRow { id: e.id.clone(), encoded, weight: e.weight })
        })
        .collect()
}

/// The prompt, and behind it the class in the place of the answer's tokens: the last id of a row is predicted and never read.
fn classified(
    tokenizer: &ChatTokenizer,
    example: &Example,
    class: u32,
    max: usize,
) -> Result<EncodedExample, PromptError> {
    let prompt = encode_prompt(tokenizer, &example.messages)?;
    match prompt.len() > max {
        true => Err(PromptError::TooLong { len: prompt.len(), max }),
        false => Ok(EncodedExample::of(prompt, &[class])),
    }
}
