//! Generation over growing caches of keys and values, many answers at once, greedy or by draws. For free-form answers and fields;
//! labels are scored exactly instead.

mod choice;
mod constraint;
mod continuations;

pub use constraint::Constraint;
pub use continuations::{Asked, Batch, Chosen, Draw, Ends, continuations};

use crate::decoder::{Decoder, DecoderError, LoraSet};
use crate::prompt::{PromptError, encode_prompt};
use crate::sequence::Sequence;
use crate::shared_prefix::SharedPrefix;
use crate::tokenizer::ChatTokenizer;
use limbeck_artifact::dataset::Message;
use limbeck_artifact::schema::{Schema, SchemaError};
use std::sync::Arc;

/// The likeliest continuation of `prompt`, at most `max_new_tokens`, ending before any token of `stop`.
///
/// # Errors
/// When a token is outside the vocabulary or the sequence gets longer than the context.
pub fn generate(
    decoder: &Decoder,
    lora: Option<&LoraSet>,
    prompt: &[u32],
    max_new_tokens: usize,
    stop: &[u32],
) -> Result<Vec<u32>, DecoderError> {
    let ends = Ends { stop, within: None, goes_on: &|_, _| true, done: &mut |_| () };
    let asked = [Asked::greedy(prompt, max_new_tokens)];
    let chosen = continuations(decoder, lora, &Sequence::default(), &asked, Batch::default(), ends)?;
    Ok(chosen.into_iter().flat_map(|chosen| chosen.tokens).collect())
}

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error(transparent)]
    Prompt(#[from] PromptError),
    #[error(transparent)]
    Decoder(#[from] DecoderError),
}

/// An answer that was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    pub text: String,
    /// Of the answer as a whole: the product of its tokens' probabilities, the end of the turn included. Where answers are kept
    /// to a schema, these are shares among the tokens that it allows: how sure the model is which valid answer it is.
    pub probability: f64,
    /// In the model's tokens.
    pub prompt_tokens: usize,
    pub tokens: usize,
    /// The model ended its turn, or the answer is whole under its schema; otherwise the answer was cut off.
    pub ended: bool,
}

/// Writes answers, each the likeliest token by token. What prompts share is computed once and kept.
pub struct Writer {
    decoder: Arc<Decoder>,
    tokenizer: Arc<ChatTokenizer>,
    lora: Option<LoraSet>,
    max_new_tokens: usize,
    within: Option<Arc<Constraint>>,
    batch: Batch,
    prefix: SharedPrefix<Sequence>,
}

impl Writer {
    pub fn new(decoder: Arc<Decoder>, tokenizer: Arc<ChatTokenizer>, max_new_tokens: usize) -> Writer {
        let (batch, prefix) = (Batch::default(), SharedPrefix::default());
        Writer { decoder, tokenizer, lora: None, max_new_tokens, within: None, batch, prefix }
    }

    /// Under an adapter that is not merged.
    pub fn with_lora(mut self, lora: LoraSet) -> Writer {
        self.lora = Some(lora);
        self
    }

    /// Keeps answers to valid ones under a schema of fields, in canonical form.
    ///
    /// # Errors
    /// Where the schema asks for what can't be kept to.
    pub fn within(mut self, schema: &Schema) -> Result<Writer, SchemaError> {
        self.within = Some(Arc::new(Constraint::new(schema, &self.tokenizer, self.decoder.head().n_out)?));
        Ok(self)
    }

    /// How much [`Writer::write_all`] works on at once.
    pub fn with_batch(mut self, batch: Batch) -> Writer {
        self.batch = batch;
        self
    }

    /// Answers a conversation. Asks `goes_on` after each token what is written so far: an answer that can't come to
    /// anything need not be written to its end.
    ///
    /// # Errors
    /// When the template refuses the messages, or they are longer than the model's context.
    pub fn write(&self, messages: &[Message], goes_on: &dyn Fn(&str) -> bool) -> Result<Written, WriteError> {
        let mut written = self.write_all(&[messages], goes_on, &mut |_| ())?;
        let Some(written) = written.pop() else { unreachable!("one conversation has one answer") };
        written
    }

    /// Answers conversations, in their order; `done` is told the number of each as it is done. On
    /// [`crate::device::writing_ops`] an answer and its probability are the bits that [`Writer::write`] gives.
    ///
    /// # Errors
    /// Of one conversation, as [`Writer::write`]; of all, when the decoder fails.
    pub fn write_all(
        &self,
        asked: &[&[Message]],
        goes_on: &dyn Fn(&str) -> bool,
        done: &mut dyn FnMut(usize),
    ) -> Result<Vec<Result<Written, WriteError>>, WriteError> {
        let asked: Vec<(&[Message], Option<Draw>)> = asked.iter().map(|messages| (*messages, None)).collect();
        self.draw_all(&asked, goes_on, done)
    }

    /// As [`Writer::write_all`], each answer by draws where they are asked for.
    ///
    /// # Errors
    /// Those of [`Writer::write_all`].
    pub fn draw_all(
        &self,
        asked: &[(&[Message], Option<Draw>)],
        goes_on: &dyn Fn(&str) -> bool,
        done: &mut dyn FnMut(usize),
    ) -> Result<Vec<Result<Written, WriteError>>, WriteError> {
        let prompts: Vec<Result<Vec<u32>, WriteError>> =
            asked.iter().map(|(messages, _)| self.encode(messages)).collect();
        let good: Vec<&[u32]> = prompts.iter().flatten().map(Vec::as_slice).collect();
        let numbers: Vec<usize> = (0..prompts.len()).filter(|i| prompts[*i].is_ok()).collect();
        (0..prompts.len()).filter(|i| prompts[*i].is_err()).for_each(&mut *done);
        let lora = self.lora.as_ref();
        let shared = self.prefix.of(&good, |tokens| self.decoder.begin(tokens, lora))?;
        let context = self.decoder.config.max_position_embeddings;
        let of_prompt = |prompt: &&'_ [u32]| context.saturating_sub(prompt.len()).min(self.max_new_tokens);
        let rows: Vec<Asked> = (good.iter().zip(&numbers))
            .map(|(prompt, number)| Asked {
                prompt: &prompt[shared.len()..],
                max_new_tokens: of_prompt(prompt),
                draw: asked[*number].1,
            })
            .collect();
        let stop: Vec<u32> = self.tokenizer.end_of_turn_id().into_iter().chain(self.tokenizer.eos_id()).collect();
        let ends = Ends {
            stop: &stop,
            within: self.within.as_deref(),
            goes_on: &|_, tokens| goes_on(self.text(tokens).trim_start()),
            done: &mut |row| done(numbers[row]),
        };
        let chosen = continuations(&self.decoder, lora, &shared, &rows, self.batch, ends)?;
        let mut chosen = chosen.into_iter();
        let written = |prompt: Result<Vec<u32>, WriteError>| {
            let (prompt, chosen) = (prompt?, chosen.next().unwrap_or_default());
            Ok(Written {
                text: self.text(&chosen.tokens),
                probability: chosen.log_prob.exp(),
                prompt_tokens: prompt.len(),
                tokens: chosen.tokens.len(),
                ended: chosen.ended,
            })
        };
        Ok(prompts.into_iter().map(written).collect())
    }

    fn encode(&self, messages: &[Message]) -> Result<Vec<u32>, WriteError> {
        let prompt = encode_prompt(&self.tokenizer, messages)?;
        let max = self.decoder.config.max_position_embeddings;
        match prompt.len() > max {
            true => Err(DecoderError::TooLong { len: prompt.len(), max }.into()),
            false => Ok(prompt),
        }
    }

    /// Without the white space that the template puts before answers.
    fn text(&self, tokens: &[u32]) -> String {
        let text = self.tokenizer.decode(tokens);
        match text.strip_prefix(&self.tokenizer.opening().lead) {
            Some(rest) => rest.to_owned(),
            None => text,
        }
    }
}
