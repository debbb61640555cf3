//! The recipe's teacher as it reads, while the training runs, what the student writes: the trainer's rows go to `distill`, what the
//! teacher expected comes back.

use super::tokens::{bridge, sparse};
use super::{Teacher, divergence_at_own_tokens};
use crate::exit::Result;
use crate::stages::Run;
use limbeck_artifact::capture::{Position, Sparse};
use limbeck_artifact::event::{Emit, EventKind};
use limbeck_distill::{TokenTeacher, TokensAsked, tell};
use limbeck_model::prompt::{EncodedExample, encode_completion, encode_prompt};
use limbeck_model::tokenizer::ChatTokenizer;
use limbeck_trainer::on_policy::{self, Asks, OnPolicy};
use std::sync::Arc;

/// A teacher in memory.
struct Reader {
    name: String,
    teacher: TokenTeacher,
    own: Arc<ChatTokenizer>,
    sparse: Sparse,
    /// What ends a turn of the student's.
    end: Option<u32>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Reader").field(&self.name).finish()
    }
}

/// What a training of the recipe does on-policy; none where it does nothing.
///
/// # Errors
/// A teacher that can't be opened, or read in the student's tokens.
pub fn of(run: &Run<'_>, tokenizer: &ChatTokenizer, emit: &dyn Emit) -> Result<Option<OnPolicy>> {
    let (recipe, asked) = (run.recipe(), &run.recipe().distill);
    let (Some(model), Some(max_new_tokens)) = (&asked.teacher, recipe.task.max_new_tokens) else { return Ok(None) };
    if asked.on_policy == 0.0 {
        return Ok(None);
    }
    let found = Teacher::find(model, asked.teacher_adapter.as_deref())?;
    let (mut teacher, own) = found.reader(recipe.model.device.parse()?)?;
    teacher.bridge = bridge(&own, tokenizer)?;
    let text = format!("teacher {} stays in memory beside the student, and reads what it writes", found.named.name);
    emit.emit(EventKind::Note { text });
    let reader = Reader {
        name: found.named.name,
        teacher,
        own,
        // Draws would leave out most of what the student gives weight to.
        sparse: sparse(asked.top_k, None, recipe.seed),
        end: tokenizer.end_of_turn_id(),
    };
    Ok(Some(OnPolicy {
        share: asked.on_policy,
        after: asked.on_policy_after,
        temperature: asked.on_policy_temperature as f32,
        max_new_tokens,
        divergence: divergence_at_own_tokens(asked),
        teacher: Arc::new(reader),
    }))
}

impl Reader {
    /// As the teacher reads it; none where its tokenizer can't write that.
    fn read(&self, asks: &Asks<'_>) -> Option<TokensAsked> {
        let row = asks.row.clone();
        if self.teacher.bridge.is_none() {
            return Some(TokensAsked { id: asks.id.to_owned(), row, read: None });
        }
        let prompt = encode_prompt(&self.own, asks.messages).ok()?;
        let completion = encode_completion(&self.own, asks.text).ok()?;
        let mut row = row;
        if !asks.ended {
            // Both end alike, or nothing can be laid side by side; what is told of that end is not passed on.
            let (prompt, answer) = row.ids.split_at(row.prompt().len());
            let answer: Vec<u32> = answer.iter().copied().chain(self.end).collect();
            row = EncodedExample::of(prompt.to_vec(), &answer);
        }
        Some(TokensAsked { id: asks.id.to_owned(), row, read: Some(EncodedExample::of(prompt, &completion)) })
    }
}

impl on_policy::Teacher for Reader {
    fn tell(
        &self,
        rows: &[Asks<'_>],
    ) -> std::result::Result<Vec<Option<Vec<Position>>>, Box<dyn std::error::Error + Send + Sync>> {
        let read: Vec<Option<TokensAsked>> = rows.iter().map(|asks| self.read(asks)).collect();
        let readable: Vec<TokensAsked> = read.iter().flatten().cloned().collect();
        let mut told = tell(&self.teacher, self.sparse, &readable)?.into_iter();
        let of = |(asks, read): (&Asks<'_>, Option<TokensAsked>)| {
            let mut positions = read.and_then(|_| told.next())??;
            positions.truncate(asks.row.loss_tokens());
            Some(positions)
        };
        Ok(rows.iter().zip(read).map(of).collect())
    }
}
