//! From the dataset's examples to rows of tokens. A row that cannot carry the loss it should is refused by its id: nothing
//! is cut, skipped or trained on silently.

use crate::batch::{SoftRow, TrainRow};
use crate::partition::Partitions;
use crate::plan::{Distilled, HeadKind, TrainError, TrainPlan, TrainSettings};
use crate::rationale;
use crate::soft::{SoftLabel, SoftLoss};
use crate::told;
use limbeck_artifact::capture::prompt_key;
use limbeck_artifact::dataset::{Dataset, Example, LabelSource, Split};
use limbeck_artifact::event::{Emit, EventKind};
use limbeck_model::label_trie::{LabelTrie, label_tokens};
use limbeck_model::layout::ROOT;
use limbeck_model::prompt::{EncodedExample, PromptError, encode_example, encode_prompt};
use limbeck_model::score::ScoreError;
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
            Ok(TrainRow::new(e.id.clone(), encoded, e.weight))
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

/// The loss over a teacher's posteriors, where the plan has some.
///
/// # Errors
/// When the dataset has no labels, or two that no model can tell apart.
pub fn soft_loss(
    plan: &TrainPlan,
    tokenizer: &ChatTokenizer,
    dataset: &Dataset,
) -> Result<Option<SoftLoss>, TrainError> {
    let Some(distilled) = &plan.distilled else { return Ok(None) };
    let labels = &dataset.card.labels;
    if labels.len() < 2 {
        return Err(TrainError::NoLabels(labels.len()));
    }
    let whole = plan.settings.head == HeadKind::Classification;
    let trie = match plan.settings.head {
        HeadKind::Classification => LabelTrie::of_classes(labels.len()),
        HeadKind::Verbalizer => {
            let tokens = label_tokens(tokenizer, labels).map_err(ScoreError::from)?;
            LabelTrie::new(&tokens).map_err(|(a, b)| ScoreError::SameTokens(labels[a].clone(), labels[b].clone()))?
        }
    };
    Ok(Some(SoftLoss::new(trie, distilled.divergence, distilled.temperature, whole)))
}

/// The rows to train on: the train split's, with a teacher's answers where there are some, and behind them the prompts that
/// only a teacher answered.
///
/// # Errors
/// As [`encode`], and a teacher's answer that is no posterior over the dataset's labels.
pub fn encode_with(
    tokenizer: &ChatTokenizer,
    dataset: &Dataset,
    plan: &TrainPlan,
    soft: Option<&SoftLoss>,
    emit: &dyn Emit,
) -> Result<Vec<TrainRow>, TrainError> {
    let s = &plan.settings;
    let mut rows = encode(tokenizer, dataset, Split::Train, s)?;
    if let Some(told) = &plan.told {
        told::attach(&mut rows, dataset.rows(Split::Train), told, tokenizer.vocab_size(), emit)?;
        rows.extend(told::answered(tokenizer, told, s.max_seq_length, emit)?);
    }
    if let (Some(distilled), Some(soft)) = (&plan.distilled, soft) {
        taught(&mut rows, tokenizer, dataset, (distilled, soft), s, emit)?;
    }
    if let Some(rationales) = &plan.rationales {
        rationale::attach(&mut rows, dataset.rows(Split::Train), rationales, tokenizer, s.max_seq_length, emit)?;
    }
    Ok(rows)
}

/// Adds what a teacher answered: to rows of the train split, and prompts that only it answered.
fn taught(
    rows: &mut Vec<TrainRow>,
    tokenizer: &ChatTokenizer,
    dataset: &Dataset,
    (distilled, soft): (&Distilled, &SoftLoss),
    s: &TrainSettings,
    emit: &dyn Emit,
) -> Result<(), TrainError> {
    let labels = &dataset.card.labels;
    let mut partitions = Partitions::new(soft.trie(), distilled.exact_mass);
    let (mut told, mut corrected) = (0u64, 0u64);
    for (row, example) in rows.iter_mut().zip(dataset.rows(Split::Train)) {
        let Some(posterior) = distilled.posteriors.get(&prompt_key(&example.messages)) else { continue };
        let said = said(&example.id, posterior, labels.len())?;
        let confirmed = labels[said] == example.target;
        let worth = match (example.label_source, confirmed) {
            // Whoever decided saw more than the teacher knew.
            (LabelSource::Human, false) => {
                corrected += 1;
                continue;
            }
            (LabelSource::Human, true) => 1.0,
            (LabelSource::Teacher, _) => distilled.trust[said],
        };
        if distilled.lambda > 0.0 && worth > 0.0 {
            let own = labels.iter().position(|label| *label == example.target);
            let (partition, weight) = (partitions.of(posterior, own), row.weight * distilled.lambda * worth);
            row.weight *= 1.0 - distilled.lambda;
            row.soft = Some(laid(&row.encoded, SoftLabel { posterior: posterior.clone(), weight, partition }, s.head));
            told += 1;
        }
    }
    let (mut without, mut untrusted) = (0u64, 0u64);
    for unlabeled in &distilled.unlabeled {
        let Some(posterior) = distilled.posteriors.get(&prompt_key(&unlabeled.messages)) else {
            without += 1;
            continue;
        };
        let weight = distilled.trust[said(&unlabeled.id, posterior, labels.len())?];
        if weight <= 0.0 {
            untrusted += 1;
            continue;
        }
        let refused = |source| TrainError::Unlabeled { id: unlabeled.id.clone(), source };
        let prompt = encode_prompt(tokenizer, &unlabeled.messages).map_err(refused)?;
        if prompt.len() > s.max_seq_length {
            return Err(refused(PromptError::TooLong { len: prompt.len(), max: s.max_seq_length }));
        }
        let encoded = EncodedExample::of(prompt, &[]);
        let partition = partitions.of(posterior, None);
        let soft = laid(&encoded, SoftLabel { posterior: posterior.clone(), weight, partition }, s.head);
        let row = TrainRow::new(unlabeled.id.clone(), encoded, 0.0);
        rows.push(TrainRow { soft: Some(soft), ..row });
    }
    tell(distilled, soft, [told, corrected, without, untrusted], rows, emit);
    Ok(())
}

fn tell(
    distilled: &Distilled,
    soft: &SoftLoss,
    [told, corrected, without, untrusted]: [u64; 4],
    rows: &[TrainRow],
    emit: &dyn Emit,
) {
    let unlabeled = rows.iter().filter(|row| row.soft.is_some() && row.encoded.loss_tokens() == 0).count();
    let mut text = format!("the teacher answers {told} rows beside their labels and {unlabeled} that have none");
    for (n, why) in [
        (corrected, "keep their label alone, for a person decided otherwise"),
        (without, "unlabeled ones have no captured answer and are left out"),
        (untrusted, "unlabeled ones are left out, for the teacher's word on their label is worth nothing yet"),
    ] {
        if n > 0 {
            text.push_str(&format!("; {n} {why}"));
        }
    }
    if soft.added_tokens() > 0 && told + unlabeled as u64 > 0 {
        // The last token of an answer is never read.
        let plain = |row: &TrainRow| row.encoded.len() - usize::from(row.encoded.loss_tokens() > 0);
        let taught = rows.iter().filter(|row| row.soft.is_some());
        let added: usize = taught.map(|row| row.computed() - plain(row)).sum();
        text.push_str(&format!(
            "; labels share beginnings, so these rows compute {:.1} tokens more in the mean ({} where all labels are told \
             apart, none under a classification head)",
            added as f64 / (told as f64 + unlabeled as f64),
            soft.added_tokens()
        ));
    }
    emit.emit(EventKind::Note { text });
    if told == 0 && unlabeled == 0 && !distilled.posteriors.is_empty() {
        let text = "no captured answer is to a row of this dataset; was it captured under another system prompt?";
        emit.emit(EventKind::Warning { text: text.to_owned() });
    }
}

/// The label that a posterior says.
fn said(id: &str, posterior: &[f32], labels: usize) -> Result<usize, TrainError> {
    let wrong = |why: String| TrainError::Posterior { id: id.to_owned(), why };
    if posterior.len() != labels {
        return Err(wrong(format!("is over {} labels, the dataset has {labels}", posterior.len())));
    }
    let sum: f64 = posterior.iter().map(|p| f64::from(*p)).sum();
    if !posterior.iter().all(|p| *p >= 0.0) || (sum - 1.0).abs() > 1e-3 {
        return Err(wrong(format!("is no posterior, it sums to {sum}")));
    }
    // Of equals the first, as everywhere.
    Ok((0..labels).rev().max_by(|&a, &b| posterior[a].total_cmp(&posterior[b])).unwrap_or(0))
}

/// How a row lies in a batch so that what it tells apart is scored behind its prompt.
fn laid(encoded: &EncodedExample, label: SoftLabel, head: HeadKind) -> SoftRow {
    let nodes = label.partition.trie.nodes();
    // The answer is what carries loss without a gap up to the end.
    let answer = encoded.mask.iter().rev().take_while(|loss| **loss).count();
    let prompt = encoded.len() - answer;
    if nodes.is_empty() || head == HeadKind::Classification {
        return SoftRow { label, prompt, tree: Vec::new(), answer: Vec::new() };
    }
    let (mut tree, mut places, mut parent) = (nodes.to_vec(), Vec::new(), ROOT);
    for (i, token) in encoded.ids[prompt..].iter().enumerate() {
        places.push((parent, *token));
        // The last token predicts nothing.
        if i + 1 < answer {
            parent = match tree.iter().position(|node| *node == (*token, parent)) {
                Some(known) => known as u32,
                None => {
                    tree.push((*token, parent));
                    tree.len() as u32 - 1
                }
            };
        }
    }
    SoftRow { label, prompt, tree, answer: places }
}
