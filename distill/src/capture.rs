//! A local teacher answers prompts by its exact posterior over the labels, into a file that grows chunk by chunk
//! (`limbeck_artifact::capture`). A kill loses the chunk in the making; going on gives the same bytes.
//!
//! Prompts of a chunk are packed behind what all prompts of the capture share, computed once: a forward pass takes as many tokens
//! as the rows have of their own, and the trie's forks. How rows meet in a pass follows from their order alone.

use limbeck_artifact::capture::{
    CHUNK, Capture, CaptureWriter, Header, LABEL_POSTERIORS, Named, Row, Started, prompt_key,
};
use limbeck_artifact::dataset::Message;
use limbeck_artifact::digest::sha256_hex;
use limbeck_artifact::event::{Emit, EventKind};
use limbeck_model::score::{LabelScorer, ScoreError};
use limbeck_model::tokenizer::ChatTokenizer;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Rows a forward pass.
const ROWS: usize = 16;

/// Who answers what, into which file.
#[derive(Clone, Debug, PartialEq)]
pub struct CapturePlan {
    pub teacher: Named,
    pub data: Named,
    pub out: PathBuf,
    pub program_version: String,
}

/// A prompt, and what a person calls it.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    pub id: String,
    pub messages: Vec<Message>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaptureReport {
    pub file: PathBuf,
    pub digest: String,
    /// Distinct prompts.
    pub rows: u64,
    pub labels: u64,
    pub bytes: u64,
    pub bytes_per_row: f64,
    /// Rows that were there already.
    pub resumed: u64,
    /// Of the rows that were answered now; 0 where there were none.
    pub rows_per_s: f64,
    /// The same in tokens that were computed, those that all prompts share counted once.
    pub tokens_per_s: f64,
    /// Share of the time that the teacher's forward passes took; the rest is prompts, digests and the disk.
    pub forward_share: f64,
    pub wall_s: f64,
}

#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error(transparent)]
    File(#[from] limbeck_artifact::Error),
    #[error("the teacher can't answer row {id}: {source}")]
    Row { id: String, source: ScoreError },
    #[error(transparent)]
    Score(#[from] ScoreError),
    #[error("there are no prompts to answer. Try: another --data")]
    NoRows,
    #[error(
        "teacher and student write the same bytes in none of {0} rows, so nothing can be carried over. Take a teacher of the base's \
         family, or let it write answers: `limbeck teach`"
    )]
    Unlike(u64),
}

/// What stands for a tokenizer: its tokens in their order.
pub fn tokenizer_digest(tokenizer: &ChatTokenizer) -> String {
    let tokens: Vec<&str> =
        (0..tokenizer.vocab_size()).map(|id| tokenizer.token(id as u32).unwrap_or_default()).collect();
    sha256_hex(tokens.join("\0").as_bytes())
}

/// Answers every distinct prompt, in the order of their first appearance.
///
/// # Errors
/// A prompt that the teacher can't take, by its id; another capture in the file's place; the disk.
pub fn capture(
    plan: &CapturePlan,
    teacher: &LabelScorer,
    asked: &[Asked],
    emit: &dyn Emit,
) -> Result<CaptureReport, CaptureError> {
    let begun = Instant::now();
    let mut seen = BTreeSet::new();
    let keyed = asked.iter().map(|asked| (prompt_key(&asked.messages), asked));
    let distinct: Vec<(String, &Asked)> = keyed.filter(|(key, _)| seen.insert(key.clone())).collect();
    if distinct.is_empty() {
        return Err(CaptureError::NoRows);
    }
    let total = distinct.len() as u64;
    let tokenizer = teacher.tokenizer();
    let header = Header {
        kind: LABEL_POSTERIORS.to_owned(),
        teacher: plan.teacher.clone(),
        tokenizer: tokenizer_digest(tokenizer),
        template: sha256_hex(tokenizer.chat_template().as_bytes()),
        data: plan.data.clone(),
        rows: total,
        labels: teacher.labels().to_vec(),

        sparse: None,
        program_version: plan.program_version.clone(),
    };
    let (mut writer, known) = match CaptureWriter::open(&plan.out, header)? {
        Started::Done(known) => return Ok(report(plan, &known, total, [0.0; 4])),
        Started::Open(writer, known) => (writer, known.len()),
    };
    if known > 0 {
        emit.emit(EventKind::StageResumed { from: format!("row {known} of {total}") });
    }
    let row = |asked: &Asked| {
        let named = |source| CaptureError::Row { id: asked.id.clone(), source };
        teacher.prompt(&asked.messages).map_err(named)
    };
    let prompts: Vec<Vec<u32>> = distinct.iter().map(|(_, asked)| row(asked)).collect::<Result<_, _>>()?;
    let past = teacher.beginning(&prompts)?;
    let (mut answered, mut tokens, mut forward) = (0u64, 0u64, Duration::ZERO);
    let rows = || distinct.iter().zip(&prompts).skip(known);
    let all: Vec<_> = rows().collect();
    for chunk in all.chunks(CHUNK) {
        let mut made = Vec::with_capacity(chunk.len());
        for pass in chunk.chunks(ROWS) {
            let prompts: Vec<Vec<u32>> = pass.iter().map(|(_, prompt)| prompt.to_vec()).collect();
            let first = || pass.first().map_or_else(String::new, |((_, asked), _)| asked.id.clone());
            let since = Instant::now();
            let answers =
                teacher.log_posteriors(&past, &prompts).map_err(|source| CaptureError::Row { id: first(), source })?;
            forward += since.elapsed();
            for (((key, _), prompt), answer) in pass.iter().zip(answers) {
                tokens += (prompt.len() - past.len + teacher.added_tokens()) as u64;
                made.push(Row { key: key.clone(), log_probs: answer.iter().map(|l| *l as f32).collect() });
            }
        }
        writer.push(&made)?;
        answered += made.len() as u64;
        emit.emit(EventKind::Progress { done: writer.rows(), total, unit: "rows".to_owned() });
    }
    writer.finish()?;
    let wall_s = begun.elapsed().as_secs_f64();
    let known_rows = known as u64;
    let found = Capture::load(&plan.out)?;
    let per_s = |n: f64| n / wall_s.max(1e-9);
    let rates = [per_s(answered as f64), per_s(tokens as f64), per_s(forward.as_secs_f64()), wall_s];
    Ok(report(plan, &found, known_rows, rates))
}

fn report(plan: &CapturePlan, found: &Capture, resumed: u64, rates: [f64; 4]) -> CaptureReport {
    let rows = found.rows.len() as u64;
    CaptureReport {
        file: plan.out.clone(),
        digest: found.digest.clone(),
        rows,
        labels: found.header.labels.len() as u64,
        bytes: found.bytes,
        bytes_per_row: found.bytes as f64 / rows.max(1) as f64,
        resumed,
        rows_per_s: rates[0],
        tokens_per_s: rates[1],
        forward_share: rates[2],
        wall_s: rates[3],
    }
}
