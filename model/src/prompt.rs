//! How a conversation and its wanted answer become tokens, and which of them carry loss. Prompt and answer are
//! tokenized apart and joined, at training and at serving alike, so the same ids are seen by both.

use crate::tokenizer::ChatTokenizer;
use limbeck_artifact::dataset::Message;
use serde::{Deserialize, Serialize};

#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    #[error("the prompt could not be rendered: {0}")]
    Render(String),
    #[error("the text could not be tokenized: {0}")]
    Tokenize(String),
    #[error(
        "the chat template does not extend the prompt when the answer is added; the row's mask would be wrong. \
         Template output: {0:?}"
    )]
    NotAPrefix(String),
    #[error(
        "the chat template ends this prompt in {ends}, others in {other}; the answer's first token would differ between \
         training and serving"
    )]
    OpensOtherwise { ends: &'static str, other: &'static str },
    #[error("the tokenizer names no end-of-turn token; an answer could never end. Check tokenizer_config.json")]
    NoEndOfTurn,
    #[error("the answer is empty: no token would carry loss")]
    EmptyAnswer,
    #[error(
        "the answer {0:?} contains the special token {1:?}; such an answer can't be told from the template's own text"
    )]
    SpecialInAnswer(String, String),
    #[error(
        "the row has {len} tokens, max_seq_length is {max}: the answer would be cut off. Raise max_seq_length or filter long rows"
    )]
    TooLong { len: usize, max: usize },
}

/// Which of the assistant's turns carry loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainOn {
    /// The wanted answer only.
    Last,
    /// Earlier turns of the assistant too.
    AllAssistant,
}

/// A row as the trainer sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncodedExample {
    /// The prompt, the answer and the end-of-turn token.
    pub ids: Vec<u32>,
    /// Of each id, whether it carries loss (is predicted by the position before it).
    pub mask: Vec<bool>,
}

impl EncodedExample {
    /// A prompt without loss and an answer that carries it.
    pub fn of(prompt: Vec<u32>, completion: &[u32]) -> EncodedExample {
        let mut encoded = EncodedExample { mask: vec![false; prompt.len()], ids: prompt };
        encoded.push(completion, true);
        encoded
    }

    fn push(&mut self, ids: &[u32], loss: bool) {
        self.ids.extend_from_slice(ids);
        self.mask.resize(self.ids.len(), loss);
    }

    pub fn len(&self) -> usize {
        self.ids.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// What stands before the first id that carries loss.
    pub fn prompt(&self) -> &[u32] {
        &self.ids[..self.mask.iter().position(|loss| *loss).unwrap_or(self.ids.len())]
    }

    pub fn loss_tokens(&self) -> usize {
        self.mask.iter().filter(|loss| **loss).count()
    }
}

/// The conversation up to the point where the model answers, as a server tokenizes it.
///
/// # Errors
/// When the template refuses, or opens this answer otherwise than answers in general.
pub fn encode_prompt(tokenizer: &ChatTokenizer, messages: &[Message]) -> Result<Vec<u32>, PromptError> {
    let prompt = encode_opened(tokenizer, &render(tokenizer, messages, true)?)?;
    check_opening(tokenizer, &prompt)?;
    Ok(prompt)
}

/// The answer's tokens and the token that ends the turn. They are the tokens of an answer where the chat template puts it:
/// after its lead, as text that goes on or as text that begins.
///
/// # Errors
/// When the answer is empty or spells a special token, or the template has no token that ends a turn.
pub fn encode_completion(tokenizer: &ChatTokenizer, answer: &str) -> Result<Vec<u32>, PromptError> {
    if answer.is_empty() {
        return Err(PromptError::EmptyAnswer);
    }
    let opening = tokenizer.opening();
    let text = format!("{}{answer}", opening.lead);
    let mut tokens = tokenizer.encode_answer(&text).map_err(|e| PromptError::Tokenize(e.to_string()))?;
    if let Some(&special) = tokens.iter().find(|&&t| tokenizer.is_structural(t)) {
        let name = tokenizer.token(special).unwrap_or_default().to_string();
        return Err(PromptError::SpecialInAnswer(answer.to_string(), name));
    }
    tokens.push(tokenizer.end_of_turn_id().ok_or(PromptError::NoEndOfTurn)?);
    Ok(tokens)
}

/// Labels are tokenized before any prompt is seen, so all prompts have to end alike.
fn check_opening(tokenizer: &ChatTokenizer, prompt: &[u32]) -> Result<(), PromptError> {
    let goes_on = prompt.last().is_some_and(|&id| !tokenizer.is_special(id));
    let expected = tokenizer.opening().goes_on;
    if !tokenizer.adds_space_prefix() || goes_on == expected {
        return Ok(());
    }
    let name = |goes_on: bool| if goes_on { "text" } else { "a special token" };
    Err(PromptError::OpensOtherwise { ends: name(goes_on), other: name(expected) })
}

/// A training row: `messages`, then `answer` as the assistant's turn. The template's own rendering must begin with the
/// prompt and go on with the answer.
///
/// # Errors
/// When the template refuses, the answer is empty or too long, or a turn can't be told from the template's own text.
pub fn encode_example(
    tokenizer: &ChatTokenizer,
    messages: &[Message],
    answer: &Message,
    train_on: TrainOn,
    max_seq_length: usize,
) -> Result<EncodedExample, PromptError> {
    let opened = render(tokenizer, messages, true)?;
    let mut answered = messages.to_vec();
    answered.push(answer.clone());
    let full = render(tokenizer, &answered, false)?;
    let Some(rest) = full.strip_prefix(&opened) else { return Err(PromptError::NotAPrefix(full)) };
    let mut example = match train_on {
        TrainOn::Last => EncodedExample::of(encode_opened(tokenizer, &opened)?, &[]),
        TrainOn::AllAssistant => with_earlier_turns(tokenizer, messages, &opened)?,
    };
    check_opening(tokenizer, &example.ids)?;
    let said = rest.strip_prefix(&tokenizer.opening().lead).unwrap_or(rest);
    let completion = match answer.tool_calls.is_empty() {
        // As the label trie spells it, so that training and scoring meet the same ids.
        true if said.starts_with(&answer.content) => encode_completion(tokenizer, &answer.content)?,
        true => return Err(PromptError::NotAPrefix(full)),
        false => encode_after(tokenizer, &example, turn(tokenizer, rest)?.1)?,
    };
    example.push(&completion, true);
    match example.len() > max_seq_length {
        true => Err(PromptError::TooLong { len: example.len(), max: max_seq_length }),
        false => Ok(example),
    }
}

fn render(tokenizer: &ChatTokenizer, messages: &[Message], open: bool) -> Result<String, PromptError> {
    tokenizer.render(messages, open).map_err(|e| PromptError::Render(e.to_string()))
}

/// The tokens of a text that begins a prompt.
fn encode_opened(tokenizer: &ChatTokenizer, text: &str) -> Result<Vec<u32>, PromptError> {
    tokenizer.encode_prompt(text).map_err(|e| PromptError::Tokenize(e.to_string()))
}

/// The tokens of a text that follows what is in the row.
fn encode_after(tokenizer: &ChatTokenizer, row: &EncodedExample, text: &str) -> Result<Vec<u32>, PromptError> {
    tokenizer.encode_after(row.ids.last().copied(), text).map_err(|e| PromptError::Tokenize(e.to_string()))
}

/// Of what was said in a turn, in bytes: whitespace that the template writes between the message and the token that ends the
/// turn, as Llama 2's does. A served model is to end its answer with the token, so none of it is to be learnt.
fn template_space(message: &Message, said: &str) -> usize {
    if message.content.is_empty() || !message.tool_calls.is_empty() {
        return 0;
    }
    let after = said.rsplit_once(message.content.as_str()).map_or("", |(_, after)| after);
    if after.trim().is_empty() { after.len() } else { 0 }
}

/// The part of `text` that is an assistant's turn: up to its end-of-turn token, and with it.
fn turn<'t>(tokenizer: &ChatTokenizer, text: &'t str) -> Result<(&'t str, &'t str), PromptError> {
    let end = tokenizer.end_of_turn_id().and_then(|id| tokenizer.token(id)).ok_or(PromptError::NoEndOfTurn)?;
    let (said, after) = text.split_once(end).ok_or(PromptError::NoEndOfTurn)?;
    if said.is_empty() {
        return Err(PromptError::EmptyAnswer);
    }
    // More than the template's own line break after it: the message itself spelled the token.
    match after.trim().is_empty() {
        true => Ok((said, &text[..said.len() + end.len()])),
        false => Err(PromptError::SpecialInAnswer(said.to_string(), end.to_string())),
    }
}

/// The prompt with loss on the assistant's turns in it: on the message and on the token that ends the turn. The tokens are the
/// prompt's own where each of these begins and ends at a token's border; where a merge crosses one, the pieces are tokenized
/// apart and joined.
fn with_earlier_turns(
    tokenizer: &ChatTokenizer,
    messages: &[Message],
    opened: &str,
) -> Result<EncodedExample, PromptError> {
    // Stretches of `opened`, one after another: the byte where one ends, and whether it carries loss.
    let mut stretches: Vec<(usize, bool)> = Vec::new();
    for (i, message) in messages.iter().enumerate().filter(|(_, m)| m.role == "assistant") {
        let before = render(tokenizer, &messages[..i], true)?;
        let after = render(tokenizer, &messages[..=i], false)?;
        let Some(said) = after.strip_prefix(&before) else { return Err(PromptError::NotAPrefix(after)) };
        let (said, ended) = turn(tokenizer, said)?;
        let end = before.len() + ended.len();
        if !opened.starts_with(&after[..end]) {
            return Err(PromptError::NotAPrefix(opened.to_string()));
        }
        stretches.push((before.len(), false));
        let (told, space) = (before.len() + said.len(), template_space(message, said));
        if space > 0 {
            stretches.extend([(told - space, true), (told, false)]);
        }
        stretches.push((end, true));
    }
    let whole = encode_opened(tokenizer, opened)?;
    let mut mask = Vec::with_capacity(whole.len());
    let mut fit = true;
    for &(border, loss) in &stretches {
        let beginning = encode_opened(tokenizer, &opened[..border])?;
        fit &= whole.starts_with(&beginning) && beginning.len() >= mask.len();
        mask.resize(beginning.len(), loss);
    }
    if fit {
        mask.resize(whole.len(), false);
        return Ok(EncodedExample { ids: whole, mask });
    }
    let mut example = EncodedExample::default();
    let mut from = 0;
    for &(border, loss) in stretches.iter().chain([&(opened.len(), false)]) {
        let text = &opened[from..border];
        let ids = if from == 0 { encode_opened(tokenizer, text)? } else { encode_after(tokenizer, &example, text)? };
        example.push(&ids, loss);
        from = border;
    }
    Ok(example)
}

/// Length of the longest prefix that all prompts share, leaving at least one token of each to itself.
pub fn shared_prefix<'a>(prompts: impl IntoIterator<Item = &'a [u32]>) -> usize {
    let mut prompts = prompts.into_iter();
    let Some(first) = prompts.next() else { return 0 };
    let mut shared = first.len().saturating_sub(1);
    for prompt in prompts {
        let common = first.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        shared = shared.min(common).min(prompt.len().saturating_sub(1));
    }
    shared
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shared_prefix_leaves_each_row_a_token() {
        assert_eq!(shared_prefix([&[1, 2, 3][..], &[1, 2, 4]]), 2);
        assert_eq!(shared_prefix([&[1, 2][..], &[1, 2]]), 1);
        assert_eq!(shared_prefix([&[1][..], &[2]]), 0);
        assert_eq!(shared_prefix(std::iter::empty::<&[u32]>()), 0);
        assert_eq!(shared_prefix([&[][..], &[1]]), 0);
    }
}
