//! Distillation over tokens: what a teacher expected at each token of an answer, beside the token itself. Where both stand, a
//! position's loss is `(1 - λ) · CE(token) + λ · D(teacher ‖ student)`, out of one product with the head.
//!
//! Whose word counts is told token by token. In a row that a person decided, the teacher has a part where the person's token is
//! its likeliest; where it would have gone on otherwise, the person's word stands alone. In a row that nobody reviewed, λ is
//! scaled by what the teacher's word was measured to be worth.

use crate::batch::TrainRow;
use crate::plan::{Answered, ToldTokens, TrainError};
use limbeck_artifact::capture::{Position, tokens_key};
use limbeck_artifact::dataset::{Example, LabelSource, Message};
use limbeck_artifact::event::{Emit, EventKind};
use limbeck_model::ops::SoftTarget;
use limbeck_model::prompt::{TrainOn, encode_example};
use limbeck_model::tokenizer::ChatTokenizer;

/// Said of a token that the base has not.
pub(crate) fn strange(token: u32, vocab: usize) -> String {
    format!("names token {token}, of {vocab} that the base has")
}

/// What is told of each token of a row's answer; none where the teacher has no share.
fn targets(
    row: &TrainRow,
    positions: &[Position],
    vocab: usize,
    share: &dyn Fn(&Position) -> f32,
) -> Result<Vec<Option<SoftTarget>>, TrainError> {
    let wrong = |why: String| TrainError::Told { id: row.id.clone(), why };
    let answer: Vec<u32> =
        (row.encoded.ids.iter().zip(&row.encoded.mask)).filter(|(_, loss)| **loss).map(|(id, _)| *id).collect();
    if answer.len() != positions.len() {
        return Err(wrong(format!("is of {} tokens, and {} carry loss", positions.len(), answer.len())));
    }
    let mut targets = Vec::with_capacity(answer.len());
    for (position, token) in positions.iter().zip(answer) {
        let share = share(position);
        if share <= 0.0 {
            targets.push(None);
            continue;
        }
        if let Some(token) = position.tokens.iter().find(|token| **token as usize >= vocab) {
            return Err(wrong(strange(*token, vocab)));
        }
        let target = SoftTarget::new(0, position.tokens.clone(), position.log_probs(), 1.0);
        let target = target
            .and_then(|target| target.with_gold(token, share))
            .map_err(|e| wrong(format!("can't be used: {e}")))?;
        targets.push(Some(target));
    }
    Ok(targets)
}

/// Rows of the teacher's own answers. What its word is worth is in their weight, so λ is not scaled again; one whose tokens were
/// not captured, for the student's tokenizer writes it otherwise, is learnt from its answer alone.
///
/// # Errors
/// An answer that can't be a row, or what was told does not fit it.
pub fn answered(
    tokenizer: &ChatTokenizer,
    told: &ToldTokens,
    max_seq_length: usize,
    emit: &dyn Emit,
) -> Result<Vec<TrainRow>, TrainError> {
    let mut rows = Vec::with_capacity(told.answered.len());
    for Answered { id, messages, answer, weight } in &told.answered {
        let answer = Message::new("assistant", answer);
        let encoded = encode_example(tokenizer, messages, &answer, TrainOn::Last, max_seq_length)
            .map_err(|source| TrainError::Unlabeled { id: id.clone(), source })?;
        let mut row = TrainRow::new(id.clone(), encoded, *weight);
        if let Some(positions) = told.rows.get(&tokens_key(&row.encoded.ids, &row.encoded.mask)) {
            row.told = targets(&row, positions, tokenizer.vocab_size(), &|_| told.lambda)?;
        }
        rows.push(row);
    }
    if !rows.is_empty() {
        let mean = told.answered.iter().map(|answered| f64::from(answered.weight)).sum::<f64>() / rows.len() as f64;
        let text = format!(
            "{} rows beside the dataset's are answers of the teacher's own, at a weight of {mean:.2} on average",
            rows.len()
        );
        emit.emit(EventKind::Note { text });
    }
    Ok(rows)
}

/// Adds to `rows`, which are those of `examples`, what the teacher told of them.
///
/// # Errors
/// What was told does not fit a row, or a vocabulary of `vocab` tokens.
pub fn attach(
    rows: &mut [TrainRow],
    examples: &[Example],
    told: &ToldTokens,
    vocab: usize,
    emit: &dyn Emit,
) -> Result<(), TrainError> {
    let (mut without, mut counted, mut alone) = (0u64, 0u64, 0u64);
    for (row, example) in rows.iter_mut().zip(examples) {
        let Some(positions) = told.rows.get(&tokens_key(&row.encoded.ids, &row.encoded.mask)) else {
            without += 1;
            continue;
        };
        let share = |position: &Position| match example.label_source {
            LabelSource::Human if position.agrees || told.contradicts => told.lambda,
            LabelSource::Human => 0.0,
            LabelSource::Teacher => told.lambda * told.trust,
        };
        let targets = targets(row, positions, vocab, &share)?;
        let some = targets.iter().flatten().count() as u64;
        (counted, alone) = (counted + some, alone + targets.len() as u64 - some);
        row.told = targets;
    }
    let mut text = format!("the teacher told what it expected at {counted} tokens of the answers");
    if alone > 0 {
        text.push_str(&format!(
            "; {alone} count alone, for a person wrote otherwise there or the teacher's word is worth nothing yet"
        ));
    }
    if without > 0 {
        text.push_str(&format!("; {without} rows are not among what was captured"));
    }
    emit.emit(EventKind::Note { text });
    if counted == 0 && !told.rows.is_empty() {
        let text = "nothing of what was captured is of a row of this dataset as this recipe reads it; was it captured with another \
                    base, system prompt or train.train_on?";
        emit.emit(EventKind::Warning { text: text.to_owned() });
    }
    Ok(())
}
