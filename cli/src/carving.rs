//! Which layers of a base a task can go without: its prompts are run through the base, and what was measured becomes a choice.
//! The verb `carve` and the ladder of students both ask here.

use crate::exit::{Exit, Failure, Result};
use crate::stages::named;
use limbeck_artifact::dataset::{Message, Split, each_row};
use limbeck_artifact::event::{Emit, EventKind};
use limbeck_data_curation::curate::unlabeled::read;
use limbeck_distill::influence::{By, Influence, losses, measure, windows};
use limbeck_model::decoder::Decoder;
use limbeck_model::device::{self, DeviceName};
use limbeck_model::prompt::{EncodedExample, TrainOn, encode_example, encode_prompt};
use limbeck_model::tokenizer::ChatTokenizer;
use limbeck_model::weights::Weights;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A longer row is left out.
const LONGEST: usize = 2048;

/// What was measured, and what was chosen by it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chosen {
    pub influence: Influence,
    pub choices: Vec<Choice>,
}

/// Some of the layers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Ascending.
    pub kept: Vec<usize>,
    /// Where the prompts have answers.
    pub loss: Option<Loss>,
}

/// Which layers are asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Wanted {
    All,
    Named(Vec<usize>),
    /// So many, chosen.
    Some(usize, By),
}

/// Mean loss a token on the answers, in nats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Loss {
    pub whole: f64,
    pub carved: f64,
}

/// Prompts for a model: of a frozen dataset with their answers, of a file of messages without. From all over the rows.
///
/// # Errors
/// When they can't be read, or there are none that fit.
pub fn measured_on(model: &Path, data: &Path, n: usize, emit: &dyn Emit) -> Result<Vec<EncodedExample>> {
    let tokenizer = ChatTokenizer::open(model)?;
    let (mut rows, mut lost): (Vec<EncodedExample>, u64) = (Vec::new(), 0);
    let mut push = |encoded: Option<EncodedExample>| match encoded.filter(|row| (1..=LONGEST).contains(&row.len())) {
        Some(row) => rows.push(row),
        None => lost += 1,
    };
    if data.join("dataset.json").is_file() {
        let mut all: Vec<(Vec<Message>, Message)> = Vec::new();
        for row in each_row(data, Split::Train)? {
            let row = row?;
            all.push((row.messages.clone(), row.answer()));
        }
        for (messages, answer) in spread(&all, n) {
            push(encode_example(&tokenizer, messages, answer, TrainOn::Last, LONGEST).ok());
        }
    } else if data.is_dir() {
        let message = format!("{} is no frozen dataset: it holds no dataset.json", data.display());
        return Err(Failure::new(Exit::Usage, message).help("name runs/NAME/dataset, or a file of messages"));
    } else {
        let mut all = Vec::new();
        for file in named(std::slice::from_ref(&data.to_owned())) {
            all.extend(read(&file)?.into_iter().map(|(_, messages)| messages));
        }
        for messages in spread(&all, n) {
            let prompt = messages.as_ref().and_then(|messages| encode_prompt(&tokenizer, messages).ok());
            push(prompt.map(|ids| EncodedExample { mask: vec![false; ids.len()], ids }));
        }
    }
    if lost > 0 {
        let text =
            format!("{lost} prompts hold no message, do not fit the chat template or are too long, and are left out");
        emit.emit(EventKind::Warning { text });
    }
    match rows.is_empty() {
        true => {
            let message = format!("{} has no prompt that could be measured on", data.display());
            Err(Failure::new(Exit::Usage, message)
                .help("name a dataset with train rows, or a file with a message a line"))
        }
        false => Ok(rows),
    }
}

/// `n` of them, evenly from the first to the last; all where there are fewer.
fn spread<T>(all: &[T], n: usize) -> impl Iterator<Item = &T> {
    let taken = n.min(all.len());
    (0..taken).map(move |i| &all[i * all.len() / taken])
}

/// Measures the layers and chooses; a choice for each that is wanted.
///
/// # Errors
/// When the model can't be read, a row does not fit it, or it has not so many layers.
pub fn choose(
    model: &Path,
    rows: &[EncodedExample],
    wanted: &[Wanted],
    device: DeviceName,
    emit: &dyn Emit,
) -> Result<Chosen> {
    let weights = Weights::open(model)?;
    let decoder = Decoder::from_weights(&weights, device::ops(device)?, false)?;
    let layers = decoder.config.num_hidden_layers;
    let all: Vec<usize> = (0..layers).collect();
    let influence = measure(&decoder, &weights, rows, emit)?;
    let answered = rows.iter().any(|row| row.loss_tokens() > 0);
    let of = |wanted: &Wanted| -> Result<Vec<Vec<usize>>> {
        match wanted {
            Wanted::All => Ok(vec![all.clone()]),
            Wanted::Named(named) => match named.iter().find(|layer| **layer >= layers) {
                Some(layer) => Err(limbeck_distill::CarveError::Layers { layer: *layer, available: layers }.into()),
                None => Ok(vec![named.clone()]),
            },
            Wanted::Some(_, By::Loss) if !answered => {
                let message = "no prompt has an answer, and by loss is by the loss on answers";
                Err(Failure::new(Exit::Usage, message)
                    .help("name a frozen dataset as --prompts, or choose --by window"))
            }
            Wanted::Some(keep, By::Loss) => Ok(windows(layers, *keep)?),
            Wanted::Some(keep, by) => Ok(vec![influence.keep(*keep, *by)?]),
        }
    };
    let candidates: Vec<Vec<Vec<usize>>> = wanted.iter().map(of).collect::<Result<_>>()?;
    let asked: Vec<Vec<usize>> = std::iter::once(all.clone()).chain(candidates.iter().flatten().cloned()).collect();
    let losses = if answered { losses(&decoder, rows, &asked, emit)? } else { None };
    let mut of_candidates = losses.iter().flatten().skip(1).copied();
    let mut choices = Vec::new();
    for candidates in candidates {
        let own: Vec<f64> = of_candidates.by_ref().take(candidates.len()).collect();
        let best = (0..own.len()).min_by(|a, b| own[*a].total_cmp(&own[*b])).unwrap_or(0);
        let whole = losses.as_ref().and_then(|losses| losses.first());
        let loss = whole.zip(own.get(best)).map(|(whole, carved)| Loss { whole: *whole, carved: *carved });
        choices.extend(candidates.into_iter().nth(best).map(|kept| Choice { kept, loss }));
    }
    Ok(Chosen { influence, choices })
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn rows_are_from_all_over() {
        let all: Vec<usize> = (0..100).collect();
        assert_eq!(spread(&all, 4).copied().collect::<Vec<_>>(), [0, 25, 50, 75]);
        assert_eq!(spread(&all[..2], 4).count(), 2);
        assert_eq!(spread(&all[..0], 4).count(), 0);
    }
}
